//! What is no error of messages and probably not meant: fields that the chat template leaves out, and names in options that no
//! message has.

use crate::{chat_options::Messages, messages::Turn};
use dlm_tokenizer::{ChatTemplate, Message, RenderOptions};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

/// What was remarked of the messages of a row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Remarks {
    /// Messages with something in a field that the chat template leaves out, by the field.
    pub(crate) ignored: BTreeMap<String, u64>,
    /// What the options ask for and a message has.
    pub(crate) seen: BTreeSet<String>,
}

/// What messages are looked at for.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Roles that are asked for, by the template's names.
    roles: Vec<(String, String)>,
    /// Properties of a message that are asked for, by the template's names.
    properties: Vec<(String, String)>,
    training: Option<String>,
    detail: Option<String>,
    /// Whether the template has a place for a field, as far as that was asked.
    known: Mutex<BTreeMap<String, bool>>,
}

impl Clone for Watch {
    fn clone(&self) -> Self {
        let Self { roles, properties, training, detail, known: _ } = self;
        let (roles, properties) = (roles.clone(), properties.clone());
        Self { roles, properties, training: training.clone(), detail: detail.clone(), known: Mutex::default() }
    }
}

impl Watch {
    /// What these options ask for that messages may have or not.
    pub(crate) fn new(options: &Messages) -> Self {
        let role = |name: &String| {
            let known = options.roles.iter().find(|(_, names)| names.contains(name));
            (known.map_or(name, |(role, _)| role).clone(), format!("role `{name}` of `roles_to_train`"))
        };
        // Without any role that is learnt nothing is left to write, which is an error of its own.
        let is_usual = options.train_on_inputs || options.roles_to_train == Messages::default().roles_to_train;
        let roles = options.roles_to_train.iter().filter(|_| !is_usual).map(role).collect();
        let field = |option: &str, name: &String| format!("field `{name}` of `{option}`");
        let properties = options.message_property_mappings.iter();
        let properties = properties.filter(|(to, _)| *to != "role" && *to != "content");
        let property = |(to, from): (&String, &String)| (to.clone(), field("message_property_mappings", from));
        Self {
            roles,
            properties: properties.map(property).collect(),
            training: options.message_field_training.as_ref().map(|name| field("message_field_training", name)),
            detail: options
                .message_field_training_detail
                .as_ref()
                .map(|name| field("message_field_training_detail", name)),
            known: Mutex::default(),
        }
    }

    /// Everything that is asked for, in words.
    pub(crate) fn expected(&self) -> impl Iterator<Item = &String> {
        let named = self.roles.iter().chain(&self.properties).map(|(_, what)| what);
        named.chain(&self.training).chain(&self.detail)
    }

    /// What there is to say of the messages of a row that this template renders.
    pub(crate) fn look(
        &self,
        turns: &[Turn],
        tools: Option<(&str, &Value)>,
        template: &ChatTemplate,
        render: &RenderOptions,
    ) -> Remarks {
        let mut remarks = Remarks::default();
        for turn in turns {
            let other = &turn.message.other;
            let roles = self.roles.iter().filter(|(role, _)| *role == turn.message.role);
            let properties = self.properties.iter().filter(|(name, _)| other.contains_key(name));
            remarks.seen.extend(roles.chain(properties).map(|(_, what)| what.clone()));
            remarks.seen.extend(self.training.clone().filter(|_| turn.training.is_some()));
            remarks.seen.extend(self.detail.clone().filter(|_| turn.detail.is_some()));
            for (name, _) in other.iter().filter(|(_, value)| says_something(value)) {
                if !self.has_place(name, template, render) {
                    *remarks.ignored.entry(name.clone()).or_default() += 1;
                }
            }
        }
        if let Some((column, tools)) = tools
            && says_something(tools)
            && !template.source().contains("tools")
        {
            remarks.ignored.insert(column.to_owned(), 1);
        }
        remarks
    }

    fn has_place(&self, field: &str, template: &ChatTemplate, render: &RenderOptions) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(field) {
            return *known;
        }
        // A template may also write messages down as they are, whatever is in them.
        let has_place = template.source().contains(field) || writes_anything(field, template, render);
        known.insert(field.to_owned(), has_place);
        has_place
    }
}

/// Whether something else is written when messages have such a field.
fn writes_anything(field: &str, template: &ChatTemplate, render: &RenderOptions) -> bool {
    let rendered = |value: Option<Value>| {
        let message = |role: &str| {
            let mut message = Message::new(role, "a");
            message.other.extend(value.clone().map(|value| (field.to_owned(), value)));
            message
        };
        template.render(&[message("user"), message("assistant")], render).ok()
    };
    rendered(None) != rendered(Some(json!("b")))
}

fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(entries) => !entries.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked(source: &str, message: &Value) -> BTreeMap<String, u64> {
        let template = ChatTemplate::from_source("test", source).unwrap();
        let mut turn = Turn { message: Message::new("assistant", "x"), training: None, detail: None };
        turn.message.other = message.as_object().unwrap().clone();
        let turns = [turn.clone(), turn];
        Watch::default().look(&turns, None, &template, &RenderOptions::default()).ignored
    }

    #[test]
    fn a_field_is_left_out_where_the_template_neither_names_it_nor_writes_whole_messages() {
        let message = json!({ "tool_calls": [1], "name": "n", "empty": [], "null": null });
        let found = looked("{% for m in messages %}{{ m.content }}{{ m.name }}{% endfor %}", &message);
        assert_eq!(found, BTreeMap::from([("tool_calls".to_owned(), 2)]));
        let found = looked("{% for m in messages %}{{ m | tojson }}{% endfor %}", &message);
        assert_eq!(found, BTreeMap::new());
    }
}
