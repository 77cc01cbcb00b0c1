//! The options of the chat step: how a row becomes a conversation.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// How a row becomes a conversation: which parts are prompts and which are answers, for the model to produce.
///
/// The names of the options are Axolotl's where it has the option.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "format", rename_all = "snake_case")]
pub enum Chat {
    /// Columns `instruction`, `output` and (if there) `input`, in the words of the Alpaca data.
    Alpaca(Alpaca),
    /// Columns of any name in words of one's own.
    UserDefined(UserDefined),
    /// A column of messages with `role` and `content`, rendered by a chat template.
    Messages(Messages),
    /// The same with the names of the ShareGPT data: `conversations`, `from` and `value`.
    #[serde(deserialize_with = "sharegpt")]
    Sharegpt(Messages),
    /// Columns `prompt` and `completion`: two texts, or two lists of messages.
    PromptCompletion(PromptCompletion),
    /// A column of segments with `text` and `label`, taken as they are.
    InputOutput(InputOutput),
    /// A column of text, all of it a target.
    Completion(Completion),
}

impl Chat {
    /// The format and its options, for people.
    pub(crate) fn describe(&self) -> String {
        let mut options =
            serde_json::to_value(self).ok().and_then(|chat| chat.as_object().cloned()).unwrap_or_default();
        let format = options.shift_remove("format").unwrap_or_default();
        format!("{} {}", format.as_str().unwrap_or_default(), Value::Object(options))
    }

    /// The columns without which no row can become a conversation, and those that were asked for by a name of their own: only the
    /// usual names of optional columns may be names of none.
    pub(crate) fn required_columns(&self) -> Vec<&str> {
        let named = |name, usual: &'static str| Some(name).filter(|name: &&str| *name != usual);
        match self {
            Self::Alpaca(alpaca) => {
                let mut columns = vec![alpaca.field_instruction.as_str(), &alpaca.field_output];
                columns.extend(alpaca.field_system.as_deref());
                columns.extend(named(&alpaca.field_input, "input"));
                columns
            }
            Self::UserDefined(defined) => {
                let mut columns = vec![defined.field_instruction.as_str(), &defined.field_output];
                columns.extend(named(&defined.field_system, "system"));
                columns.extend(named(&defined.field_input, "input"));
                columns
            }
            Self::Messages(messages) | Self::Sharegpt(messages) => {
                let mut columns = vec![messages.column.as_str()];
                columns.extend(named(&messages.field_system, "system"));
                columns.extend(named(&messages.field_tools, "tools"));
                columns
            }
            Self::PromptCompletion(columns) => vec![&columns.field_prompt, &columns.field_completion],
            Self::InputOutput(segments) => vec![&segments.column],
            Self::Completion(completion) => vec![&completion.field],
        }
    }

    /// All columns that are looked at where they exist.
    pub(crate) fn columns(&self) -> Vec<&str> {
        let mut columns = self.required_columns();
        let optional = match self {
            Self::Alpaca(alpaca) => vec![alpaca.field_input.as_str()],
            Self::UserDefined(defined) => vec![defined.field_input.as_str(), &defined.field_system],
            Self::Messages(messages) | Self::Sharegpt(messages) => {
                vec![messages.field_system.as_str(), &messages.field_tools]
            }
            Self::PromptCompletion(_) | Self::InputOutput(_) | Self::Completion(_) => Vec::new(),
        };
        for name in optional {
            if !columns.contains(&name) {
                columns.push(name);
            }
        }
        columns
    }

    /// Whether the end token of the tokenizer has to follow answers, unless the tokenize step says otherwise.
    pub(crate) fn needs_end(&self) -> bool {
        matches!(self, Self::Alpaca(_) | Self::UserDefined(_) | Self::Completion(_))
    }

    /// The tokens that end a turn, beside the tokenizer's end token.
    pub(crate) fn eot_tokens(&self) -> &[String] {
        match self {
            Self::Messages(messages) | Self::Sharegpt(messages) => &messages.eot_tokens,
            Self::PromptCompletion(columns) => &columns.eot_tokens,
            _ => &[],
        }
    }
}

/// The Alpaca prompt and its options. The answer ends with the end token, an empty one has none (as in Axolotl).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Alpaca {
    /// How the prompt is worded.
    pub style: AlpacaStyle,
    /// What stands before the prompt, in place of Alpaca's sentence that explains it; an empty text is nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// A column whose text takes the place of `system_prompt` in its row, also where it is empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field_system: Option<String>,
    /// The column with what is asked.
    pub field_instruction: String,
    /// The column with more about it; it may be null or empty, and `input` may be missing.
    pub field_input: String,
    /// The column with the answer.
    pub field_output: String,
    /// Makes the prompt a target as well.
    pub train_on_inputs: bool,
}

impl Default for Alpaca {
    fn default() -> Self {
        Self {
            style: AlpacaStyle::default(),
            system_prompt: None,
            field_system: None,
            field_instruction: "instruction".to_owned(),
            field_input: "input".to_owned(),
            field_output: "output".to_owned(),
            train_on_inputs: false,
        }
    }
}

/// The wordings of the Alpaca prompt that Axolotl knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlpacaStyle {
    /// `### Instruction:`, `### Input:` and `### Response:` after a sentence that explains them.
    #[default]
    Instruct,
    /// `USER:` and `ASSISTANT:`.
    Chat,
    /// `<|im_start|>` and `<|im_end|>`.
    Chatml,
    /// `<|user|>`, `<|end|>` and `<|assistant|>`.
    Phi,
}

/// A prompt in words of one's own: texts with `{instruction}`, `{input}`, `{system}` and `{output}` in them, a brace as `{{` or `}}`.
///
/// The words may hold special tokens, and what rows put between them may not. The answer ends with the end token, an empty one
/// has none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UserDefined {
    /// What the model is told first, where the row has no text of its own for it; empty is nothing.
    pub system_prompt: String,
    /// The words around it.
    pub system_format: String,
    /// The words around what is asked.
    pub prompt_format: String,
    /// The same where there is no input. Unset: `prompt_format` with nothing in the place of the input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_input_format: Option<String>,
    /// The words around the answer.
    pub output_format: String,
    /// The column with what the model is told first; it may be null, and `system` may be missing.
    pub field_system: String,
    /// The column with what is asked.
    pub field_instruction: String,
    /// The column with more about it; it may be null or empty, and `input` may be missing.
    pub field_input: String,
    /// The column with the answer.
    pub field_output: String,
    /// Makes the prompt a target as well.
    pub train_on_inputs: bool,
}

impl Default for UserDefined {
    fn default() -> Self {
        Self {
            system_prompt: String::new(),
            system_format: "{system}".to_owned(),
            prompt_format: "{instruction} {input} ".to_owned(),
            no_input_format: None,
            output_format: "{output}".to_owned(),
            field_system: "system".to_owned(),
            field_instruction: "instruction".to_owned(),
            field_input: "input".to_owned(),
            field_output: "output".to_owned(),
            train_on_inputs: false,
        }
    }
}

/// Conversations of any number of turns; every turn of the assistant is an answer, with the token that ends it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Messages {
    /// The column with the list of messages.
    pub column: String,
    /// The chat template: `tokenizer` for the tokenizer's own, the name of a built-in one such as `chatml`, a file, or Jinja itself;
    /// `tokenizer|chatml` for the tokenizer's own where it has one, and otherwise another.
    pub template: String,
    /// More variables for the template, such as `enable_thinking`.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub chat_template_kwargs: Map<String, Value>,
    /// How the data calls what a template knows as `role`, `content` or anything else.
    pub message_property_mappings: BTreeMap<String, String>,
    /// For each role of the template the names that the data has for it. A name that stands nowhere is the role itself.
    pub roles: BTreeMap<String, Vec<String>>,
    /// Whose turns are answers, by the template's names or the data's.
    pub roles_to_train: Vec<String>,
    /// Makes every turn a target, not only those of `roles_to_train`.
    pub train_on_inputs: bool,
    /// Which of the tokenizer's end tokens behind turns are targets.
    pub train_on_eos: TrainOnEnd,
    /// The same for `eot_tokens`; unset: as `train_on_eos`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_on_eot: Option<TrainOnEnd>,
    /// Tokens that end a turn; empty means the tokenizer's end token. One that follows a turn within three tokens
    /// belongs to it (as in Axolotl).
    pub eot_tokens: Vec<String>,
    /// The key of a message that says whether it is a target: true, false, 1 or 0. It overrules the roles; null says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_field_training: Option<String>,
    /// The key of a message that says which parts of it are targets: a list of `{begin_offset, end_offset, train}`, in characters,
    /// the last one included. What no part covers is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_field_training_detail: Option<String>,
    /// What the model is told first where a conversation does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// A column with what the model is told first, where the messages do not begin with it; `system` may be missing.
    pub field_system: String,
    /// A column with the tools that the model may call, a list, or one as JSON; `tools` may be missing.
    pub field_tools: String,
    /// Leaves out what the model is told first.
    pub drop_system_message: bool,
}

impl Default for Messages {
    fn default() -> Self {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let roles = [("user", &["user", "human"][..]), ("assistant", &["assistant", "gpt"]), ("system", &["system"])];
        Self {
            column: "messages".to_owned(),
            template: "tokenizer".to_owned(),
            chat_template_kwargs: Map::new(),
            message_property_mappings: mappings("role", "content"),
            roles: roles.into_iter().map(|(role, known)| (role.to_owned(), names(known))).collect(),
            roles_to_train: names(&["assistant"]),
            train_on_inputs: false,
            train_on_eos: TrainOnEnd::Turn,
            train_on_eot: None,
            eot_tokens: Vec::new(),
            message_field_training: None,
            message_field_training_detail: None,
            system_prompt: None,
            field_system: "system".to_owned(),
            field_tools: "tools".to_owned(),
            drop_system_message: false,
        }
    }
}

impl Messages {
    /// The names of the ShareGPT data.
    #[must_use]
    pub fn sharegpt() -> Self {
        Self {
            column: "conversations".to_owned(),
            message_property_mappings: mappings("from", "value"),
            ..Self::default()
        }
    }
}

fn mappings(role: &str, content: &str) -> BTreeMap<String, String> {
    [("role", role), ("content", content)].map(|(to, from)| (to.to_owned(), from.to_owned())).into()
}

/// Reads messages whose defaults are ShareGPT's.
fn sharegpt<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Messages, D::Error> {
    let given = Map::<String, Value>::deserialize(deserializer)?;
    let defaults = Messages::sharegpt();
    let mut all = Map::new();
    all.insert("column".to_owned(), defaults.column.into());
    let mappings = serde_json::to_value(defaults.message_property_mappings).map_err(serde::de::Error::custom)?;
    all.insert("message_property_mappings".to_owned(), mappings);
    all.extend(given);
    serde_json::from_value(Value::Object(all)).map_err(serde::de::Error::custom)
}

/// Which of the tokens that end turns are targets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainOnEnd {
    /// Those behind turns that are targets.
    #[default]
    Turn,
    /// Those behind all turns.
    All,
    /// The one behind the last turn that is a target.
    Last,
    /// None.
    None,
}

/// A prompt and its completion, as TRL knows them. Of messages, the assistant's in the completion are answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PromptCompletion {
    /// The column with the prompt.
    pub field_prompt: String,
    /// The column with the completion.
    pub field_completion: String,
    /// For messages, the chat template; see [`Messages::template`].
    pub template: String,
    /// For messages, the tokens that end a turn; see [`Messages::eot_tokens`].
    pub eot_tokens: Vec<String>,
    /// Makes the prompt a target as well.
    pub train_on_inputs: bool,
}

impl Default for PromptCompletion {
    fn default() -> Self {
        Self {
            field_prompt: "prompt".to_owned(),
            field_completion: "completion".to_owned(),
            template: "tokenizer".to_owned(),
            eot_tokens: Vec::new(),
            train_on_inputs: false,
        }
    }
}

/// Segments without any template: nothing is put before, between or behind them, and special tokens in them are such.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InputOutput {
    /// The column with the list of segments, each with `text` and `label`: true for what the model must produce.
    pub column: String,
    /// Makes all of them targets.
    pub train_on_inputs: bool,
}

impl Default for InputOutput {
    fn default() -> Self {
        Self { column: "segments".to_owned(), train_on_inputs: false }
    }
}

/// Plain text as a conversation, for pipelines that mix it with others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Completion {
    /// The column with the text.
    pub field: String,
}

impl Default for Completion {
    fn default() -> Self {
        Self { field: "text".to_owned() }
    }
}
