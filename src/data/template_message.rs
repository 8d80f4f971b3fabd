//! Messages as chat templates see them.

use std::sync::Arc;

use minijinja::{
    Value,
    value::{Enumerator, Object, ObjectRepr, Serde},
};
use serde_json::Value as Json;

use super::Message;
use super::content::Blocks;

/// A message of only role and content as templates see it: a map with these keys, in this order.
#[derive(Debug)]
struct MessageObject {
    role: Value,
    content: Value,
}

impl Object for MessageObject {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match key.as_str()? {
            "role" => Some(self.role.clone()),
            "content" => Some(self.content.clone()),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(&["role", "content"])
    }
}

/// The fields of a message whose content is a list of blocks.
#[derive(Debug)]
struct Fields(Vec<(String, Value)>);

impl Object for Fields {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let key = key.as_str()?;
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.iter().map(|(name, _)| Value::from(name.as_str())).collect())
    }
}

/// A message as templates see it, with all of its fields.
pub(super) fn message_value(message: &Message) -> Value {
    if let Some(fields) = message.fields() {
        let fields = with_reasoning(fields);
        let Some(Json::Array(blocks)) = fields.get("content") else {
            return Value::from(Serde(fields));
        };
        let blocks = Value::from_object(Blocks(blocks.clone()));
        let value = |(name, value): (String, Json)| match &*name {
            "content" => (name, blocks.clone()),
            _ => (name, Value::from(Serde(value))),
        };
        return Value::from_object(Fields(fields.into_iter().map(value).collect()));
    }
    Value::from_object(MessageObject {
        role: Value::from(message.role.as_str()),
        content: Value::from(message.content.as_str()),
    })
}

/// The fields of a message. As in transformers 5, the reasoning has the names `reasoning_content`
/// and `thinking`, whichever of the three names it has in the data.
fn with_reasoning(fields: &serde_json::Map<String, Json>) -> serde_json::Map<String, Json> {
    const NAMES: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
    let Some(reasoning) = NAMES.iter().find_map(|name| fields.get(*name)) else {
        return fields.clone();
    };
    let mut all = serde_json::Map::new();
    all.insert("thinking".to_owned(), reasoning.clone());
    all.extend(fields.iter().map(|(name, value)| (name.clone(), value.clone())));
    all.insert("reasoning_content".to_owned(), reasoning.clone());
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::data::template::ChatTemplate;
    use crate::data::template_values::TemplateValues;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source, []).unwrap()
    }

    /// The texts are those of transformers 5.24.
    #[test]
    fn all_fields_of_a_message_are_seen() {
        let message = |fields: Json| {
            let Json::Object(fields) = fields else { unreachable!() };
            let text = |key: &str| fields.get(key).and_then(Json::as_str).unwrap_or_default();
            Message::with_fields(text("role"), text("content"), fields.clone())
        };
        let render = |source: &str, chat: &[Message]| {
            template(source).render(chat, false, &TemplateValues::default()).unwrap().text
        };
        let source = "{% for m in messages %}{{ m.role }}: {% if m.reasoning_content %}think: {{ m.reasoning_content }} | {% endif %}{{ m.content }}\n{% endfor %}";
        for name in ["reasoning_content", "reasoning", "thinking"] {
            let answer = json!({"role": "assistant", "content": "It is 5.", name: "add them"});
            let chat = [Message::new("user", "2+3?"), message(answer)];
            let expected = "user: 2+3?\nassistant: think: add them | It is 5.\n";
            assert_eq!(render(source, &chat), expected);
        }
        let answer = json!({"content": "x", "role": "assistant", "name": null, "thinking": "t"});
        assert_eq!(
            render("{{ messages | tojson }}", &[message(answer)]),
            r#"[{"thinking": "t", "content": "x", "role": "assistant", "reasoning_content": "t"}]"#
        );
        let call = json!({"function": {"name": "f", "arguments": {"x": 1, "y": 1.0, "z": null}}});
        let call = json!({"role": "assistant", "content": null, "tool_calls": [call]});
        let answer = json!({"role": "tool", "content": "3", "name": "f"});
        assert_eq!(
            render("{{ messages | tojson }}", &[message(call), message(answer)]),
            r#"[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1, "y": 1.0, "z": null}}}]}, {"role": "tool", "content": "3", "name": "f"}]"#
        );
    }

    /// The texts are those of transformers 5.24.
    #[test]
    fn a_template_gets_blocks_of_content_as_they_are() {
        let blocks = json!([{"type": "text", "text": "it's a\nb"}, {"type": "image", "url": "x"}]);
        let fields = json!({"role": "user", "content": blocks});
        let Json::Object(fields) = fields else { unreachable!() };
        let chat = [Message::with_fields("user", "a", fields), Message::new("assistant", "c")];
        let render = |source: &str| {
            template(source).render(&chat, false, &TemplateValues::default()).map(|r| r.text)
        };
        for (source, expected) in [
            (
                "{{ messages[0].content }}",
                "[{'type': 'text', 'text': \"it's a\\nb\"}, {'type': 'image', 'url': 'x'}]",
            ),
            (
                "{{ messages | tojson }}",
                "[{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"it's a\\nb\"}, \
                 {\"type\": \"image\", \"url\": \"x\"}]}, {\"role\": \"assistant\", \"content\": \"c\"}]",
            ),
            (
                "{% for m in messages %}{% if m.content is string %}S{{ m.content }}{% else %}\
                 {% for b in m.content %}{{ loop.index }}{{ b.type }}{{ b['text'] }}{% endfor %}\
                 {{ m.content | length }}{{ m.content[-1].url }}{% endif %}\
                 {{ m.content is sequence }}{{ m.content is mapping }}{% endfor %}",
                "1textit's a\nb2image2xTrueFalseScTrueFalse",
            ),
            (
                "{{ messages[0].content | selectattr('type', 'equalto', 'text') \
                 | map(attribute='text') | join('') }}",
                "it's a\nb",
            ),
        ] {
            assert_eq!(render(source).unwrap(), expected, "{source}");
        }
        assert!(render("{{ 'U ' + messages[0].content }}").is_err());
    }
}
