//! Messages of a row: whatever its data calls roles and contents, as templates know them.

use crate::{
    chat_options::Messages,
    row::{kind, text},
};
use dlm_tokenizer::Message;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A message, and what the data says about learning it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Turn {
    pub(crate) message: Message,
    /// Whether it is a target, where the data says so.
    pub(crate) training: Option<bool>,
    /// Which of its characters are targets, where the data says so.
    pub(crate) detail: Option<Vec<Detail>>,
}

/// A part of a message that is a target or is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Detail {
    /// Its first character.
    pub(crate) begin: usize,
    /// Its last character.
    pub(crate) end: usize,
    /// Whether it is a target.
    pub(crate) train: bool,
}

/// Reads messages by the names that the options give.
#[derive(Debug, Clone)]
pub(crate) struct MessageReader {
    column: String,
    /// Pairs of the template's name for a property and the data's.
    properties: Vec<(String, String)>,
    /// The role of the template for each of the data.
    roles: BTreeMap<String, String>,
    training: Option<String>,
    detail: Option<String>,
    field_system: String,
    field_tools: String,
    system_prompt: Option<String>,
    drop_system_message: bool,
}

impl MessageReader {
    pub(crate) fn new(options: &Messages) -> Self {
        let mut properties = options.message_property_mappings.clone();
        for name in ["role", "content"] {
            properties.entry(name.to_owned()).or_insert_with(|| name.to_owned());
        }
        let roles = options.roles.iter();
        let roles = roles.flat_map(|(role, names)| names.iter().map(move |name| (name.clone(), role.clone())));
        Self {
            column: options.column.clone(),
            properties: properties.into_iter().collect(),
            roles: roles.collect(),
            training: options.message_field_training.clone(),
            detail: options.message_field_training_detail.clone(),
            field_system: options.field_system.clone(),
            field_tools: options.field_tools.clone(),
            system_prompt: options.system_prompt.clone(),
            drop_system_message: options.drop_system_message,
        }
    }

    /// The messages of a row, what the model is told first included, and its tools.
    pub(crate) fn turns(&self, row: &Map<String, Value>) -> Result<(Vec<Turn>, Option<Value>), String> {
        let messages = row.get(&self.column).unwrap_or(&Value::Null);
        let mut turns = self.turns_of(messages, &self.column)?;
        let begins_with_system = turns.first().is_some_and(|turn| turn.message.role == "system");
        // A column of that name may be anything in data that does not use it so.
        let from_column = if self.field_system == self.column { None } else { text(row, &self.field_system)? };
        let system = from_column.or(self.system_prompt.as_deref());
        if let Some(system) = system.filter(|_| !begins_with_system) {
            let message = Message::new("system", system);
            turns.insert(0, Turn { message, training: None, detail: None });
        }
        if self.drop_system_message && turns.first().is_some_and(|turn| turn.message.role == "system") {
            turns.remove(0);
        }
        if turns.is_empty() {
            return Err("there are no messages".to_owned());
        }
        let tools = row.get(&self.field_tools).filter(|tools| !tools.is_null());
        Ok((turns, tools.map(|tools| self.tools(tools)).transpose()?))
    }

    fn tools(&self, tools: &Value) -> Result<Value, String> {
        let parsed = match tools {
            Value::String(json) => serde_json::from_str(json).map_err(|error| format!("{error}")),
            other => Ok(other.clone()),
        };
        let wrong = |found: &str| format!("`{}` is {found}, and has to be a list of tools", self.field_tools);
        match parsed {
            Ok(tools @ Value::Array(_)) => Ok(tools),
            Ok(other) => Err(wrong(kind(&other))),
            Err(error) => Err(wrong(&format!("text that is no JSON ({error})"))),
        }
    }

    /// The messages in a value, which may be JSON.
    pub(crate) fn turns_of(&self, messages: &Value, column: &str) -> Result<Vec<Turn>, String> {
        let wrong = |found: &str| format!("`{column}` is {found}, and has to be a list of messages");
        let parsed;
        let list = match messages {
            Value::Null => return Err(format!("`{column}` is missing or null")),
            Value::Array(list) => list,
            Value::String(json) => {
                parsed = serde_json::from_str::<Vec<Value>>(json).map_err(|_| wrong("text that is no JSON list"))?;
                &parsed
            }
            other => return Err(wrong(kind(other))),
        };
        if list.is_empty() {
            return Err("there are no messages".to_owned());
        }
        let turn = |(i, message)| self.turn(message).map_err(|error| format!("message {}: {error}", i + 1));
        list.iter().enumerate().map(turn).collect()
    }

    /// What the data calls a property of the template.
    fn source_of<'a>(&'a self, name: &'a str) -> &'a str {
        self.properties.iter().find(|(to, _)| to == name).map_or(name, |(_, from)| from.as_str())
    }

    fn turn(&self, message: &Value) -> Result<Turn, String> {
        let Value::Object(message) = message else {
            return Err(format!("it is {}, and has to be an object", kind(message)));
        };
        let role_key = self.source_of("role");
        let role = text(message, role_key)?.ok_or_else(|| format!("`{role_key}` is missing or null"))?;
        let role = self.roles.get(role).map_or(role, String::as_str).to_owned();

        let is_ours = |key: &String| [&self.training, &self.detail].into_iter().flatten().any(|ours| ours == key);
        let is_renamed = |key: &String| self.properties.iter().any(|(_, from)| from == key);
        let others = message.iter().filter(|(key, _)| !is_ours(key) && !is_renamed(key));
        let mut other: Map<String, Value> = others.map(|(key, value)| (key.clone(), value.clone())).collect();
        for (to, from) in self.properties.iter().filter(|(to, _)| to != "role" && to != "content") {
            other.extend(message.get(from).map(|value| (to.clone(), value.clone())));
        }
        other.remove("role");
        other.remove("content");
        other.get_mut("tool_calls").into_iter().for_each(parse_arguments);

        let content_key = self.source_of("content");
        let content = match message.get(content_key) {
            None | Some(Value::Null) if other.get("tool_calls").is_some_and(|calls| !calls.is_null()) => Value::Null,
            None | Some(Value::Null) => return Err(format!("`{content_key}` is missing or null")),
            Some(content @ (Value::String(_) | Value::Array(_))) => content.clone(),
            Some(other) => return Err(format!("`{content_key}` is {}, and has to be text", kind(other))),
        };
        let training = self.training.as_ref().map(|key| training(message, key)).transpose()?.flatten();
        let detail = self.detail.as_ref().map(|key| details(message, key)).transpose()?.flatten();
        Ok(Turn { message: Message { role, content, other }, training, detail })
    }
}

/// Tool calls that hold their arguments as JSON in a text hold them as an object afterwards, which is what templates expect.
fn parse_arguments(calls: &mut Value) {
    for call in calls.as_array_mut().into_iter().flatten() {
        let pointer = if call.get("function").is_some() { "/function/arguments" } else { "/arguments" };
        if let Some(arguments) = call.pointer_mut(pointer)
            && let Some(parsed) = arguments.as_str().and_then(|json| serde_json::from_str::<Map<_, _>>(json).ok())
        {
            *arguments = Value::Object(parsed);
        }
    }
}

fn training(message: &Map<String, Value>, key: &str) -> Result<Option<bool>, String> {
    match message.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(train)) => Ok(Some(*train)),
        Some(Value::Number(weight)) if weight.as_f64() == Some(0.0) => Ok(Some(false)),
        Some(Value::Number(weight)) if weight.as_f64() == Some(1.0) => Ok(Some(true)),
        Some(other) => Err(format!("`{key}` is `{other}`; a message is learnt (true, 1) or not (false, 0)")),
    }
}

fn details(message: &Map<String, Value>, key: &str) -> Result<Option<Vec<Detail>>, String> {
    let wrong = || format!("`{key}` has to be a list of objects with `begin_offset`, `end_offset` and `train`");
    match message.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(parts)) => {
            let number = |part: &Value, name: &str| part.get(name)?.as_u64().and_then(|n| usize::try_from(n).ok());
            let detail = |part: &Value| {
                let (begin, end) = (number(part, "begin_offset")?, number(part, "end_offset")?);
                Some(Detail { begin, end, train: part.get("train")?.as_bool()? })
            };
            parts.iter().map(|part| detail(part).ok_or_else(wrong)).collect::<Result<_, _>>().map(Some)
        }
        Some(_) => Err(wrong()),
    }
}
