//! One turn of a chat, with every field that the chat template may read.

use std::hash::{Hash, Hasher};

use serde_json::{Map, Value};

/// One turn of a chat.
#[derive(Debug, Clone, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, …
    pub role: String,
    /// The text; empty if the turn only calls tools. If the content is a list of blocks, the texts
    /// of its blocks.
    pub content: String,
    /// All fields in the order of the data set, without those that are null. `None` stands for a
    /// `role` followed by a `content`.
    fields: Option<Box<Map<String, Value>>>,
}

impl Message {
    /// A message with this role and content.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), fields: None }
    }

    /// A message with more fields than role and content, such as `tool_calls` or `name`. `fields`
    /// are all fields of the message in their order. As in transformers, null fields are left out.
    pub fn with_fields(
        role: impl Into<String>,
        content: impl Into<String>,
        mut fields: Map<String, Value>,
    ) -> Self {
        fields.retain(|_, value| !value.is_null());
        let is_plain = fields.keys().eq(["role", "content"]) && fields["content"].is_string();
        let fields = (!is_plain).then(|| Box::new(fields));
        Self { role: role.into(), content: content.into(), fields }
    }

    /// All fields in their order, if they are not just `role` and `content`.
    pub(crate) fn fields(&self) -> Option<&Map<String, Value>> {
        self.fields.as_deref()
    }

    /// Whether the message neither says anything nor calls a tool.
    pub(super) fn is_blank(&self) -> bool {
        self.content.trim().is_empty() && !self.fields().is_some_and(calls_tools)
    }
}

/// Whether a message calls tools. Such a message may have no content.
pub(crate) fn calls_tools(fields: &Map<String, Value>) -> bool {
    ["tool_calls", "function_call"].into_iter().any(|key| match fields.get(key) {
        None | Some(Value::Null) => false,
        Some(Value::Array(calls)) => !calls.is_empty(),
        Some(_) => true,
    })
}

/// The order of fields does not matter, as for dicts in Python.
impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        let same_fields = match (self.fields(), other.fields()) {
            (None, None) => true,
            (Some(own), Some(others)) => own == others,
            (Some(fields), None) | (None, Some(fields)) => {
                let is_text = |key| fields.get(key).is_some_and(Value::is_string);
                fields.len() == 2 && is_text("role") && is_text("content")
            }
        };
        self.role == other.role && self.content == other.content && same_fields
    }
}

impl Hash for Message {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.role.hash(state);
        self.content.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_order_of_fields_does_not_matter_for_equality() {
        let message = |fields: Value| {
            let Value::Object(fields) = fields else { unreachable!() };
            Message::with_fields("user", "a", fields)
        };
        let plain = Message::new("user", "a");
        assert_eq!(message(json!({"role": "user", "content": "a", "name": null})), plain);
        assert_eq!(message(json!({"content": "a", "role": "user"})), plain);
        assert_ne!(message(json!({"role": "user", "content": "a", "name": "x"})), plain);
        let blocks = json!([{"type": "text", "text": "a"}]);
        assert_ne!(message(json!({"role": "user", "content": blocks})), plain);
    }
}
