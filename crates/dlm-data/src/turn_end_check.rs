//! Whether answers end in a token that a model can learn to stop at, found out before the first row by a small conversation.

use crate::{
    answer::is_target,
    chat::ChatFormat,
    chat_options::{Chat, Messages, TrainOnEnd},
    tokenize::Encoder,
};
use serde_json::{Map, Value, json};

/// What is wrong with the ends of answers, in words; `None` where nothing is, or where no end is asked for.
///
/// Templates and tokenizers are combined freely, and nothing fails when the one writes `<|eot_id|>` and the other knows no such
/// token, or takes another one for the end: only the model never learns to stop.
pub(crate) fn endless(chat: &Chat, format: &ChatFormat, encoder: &Encoder) -> Option<String> {
    let (Chat::Messages(options) | Chat::Sharegpt(options)) = chat else { return None };
    let asks =
        [Some(options.train_on_eos), options.train_on_eot].into_iter().flatten().any(|end| end != TrainOnEnd::None);
    // A template that does not take this conversation tells so at the first row that it does not take.
    let tokens = encoder.conversation(&format.conversation(&conversation(options)).ok()?).ok()?;
    let last = tokens.labels.iter().rposition(|label| is_target(*label))?;
    if !asks || encoder.is_end(tokens.ids[last]) {
        return None;
    }
    let behind = encoder.decoded(&tokens.ids[last + 1..]);
    let ends = encoder.ends().iter().map(|end| format!("`{end}`")).collect::<Vec<_>>().join(", ");
    Some(format!(
        "no token that ends turns ({ends}) is a target behind answers, where the chat template writes {behind:?}: a model that is \
         trained on these rows does not learn where to stop. Name the right token in `eot_tokens`, or take a template whose tokens the \
         tokenizer has"
    ))
}

/// A question and its answer, as the data would have them.
fn conversation(options: &Messages) -> Map<String, Value> {
    let key =
        |property: &str| options.message_property_mappings.get(property).map_or(property.to_owned(), Clone::clone);
    let name = |role: &str| {
        let names = options.roles.get(role).and_then(|names| names.first());
        names.cloned().unwrap_or_else(|| role.to_owned())
    };
    let answering = options.roles_to_train.first().map_or("assistant", String::as_str);
    let message = |role: String, content: &str| json!({ key("role"): role, key("content"): content });
    let messages = json!([message(name("user"), "Is it?"), message(name(answering), "It is")]);
    Map::from_iter([(options.column.clone(), messages)])
}
