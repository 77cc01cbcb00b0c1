//! A message of a conversation.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What one side of a conversation says, as `messages` columns and chat templates know it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// What is said: a text; a list of parts such as `{"type": "text", "text": "..."}`; or null where tools are called.
    #[serde(default)]
    pub content: Value,
    /// Everything else: `tool_calls`, `reasoning_content`, `name`.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Message {
    /// A message of plain text.
    #[must_use]
    pub fn new(role: impl Into<String>, text: impl Into<String>) -> Self {
        Self { role: role.into(), content: Value::String(text.into()), other: Map::new() }
    }

    /// What is said, where that is one text.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        self.content.as_str()
    }
}
