//! The content of a message: a text, or a list of blocks such as `{"type": "text", "text": …}`.
//! As in transformers, a chat template gets what the data has: a text or the list.

use std::fmt;
use std::sync::Arc;

use minijinja::{
    Value,
    value::{Enumerator, Object, ObjectRepr, Serde},
};
use serde_json::Value as Json;

/// The text of a content: of a list of blocks, the texts of its blocks of type `text`, joined.
/// `None` if it is neither a text nor a list of blocks.
pub(crate) fn text_of(content: &Json) -> Option<String> {
    match content {
        Json::String(text) => Some(text.clone()),
        Json::Array(blocks)
            if !blocks.is_empty() && blocks.iter().all(|b| b["type"].is_string()) =>
        {
            let texts = blocks.iter().filter(|block| block["type"] == "text");
            Some(texts.filter_map(|block| block["text"].as_str()).collect())
        }
        _ => None,
    }
}

/// A list of blocks as templates see it. If a template writes the list itself, the text is
/// Python's.
#[derive(Debug)]
pub(super) struct Blocks(pub Vec<Json>);

impl Object for Blocks {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let place = i64::try_from(key.clone()).ok()?;
        let from_end = || self.0.len().checked_sub(usize::try_from(place.unsigned_abs()).ok()?);
        let place = usize::try_from(place).ok().or_else(from_end)?;
        self.0.get(place).map(|block| Value::from(Serde(block)))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&python_list(&self.0))
    }
}

/// The text of a list in Python.
fn python_list(items: &[Json]) -> String {
    format!("[{}]", items.iter().map(python).collect::<Vec<_>>().join(", "))
}

/// Python's `repr` of a value.
fn python(value: &Json) -> String {
    match value {
        Json::Null => "None".to_owned(),
        Json::Bool(true) => "True".to_owned(),
        Json::Bool(false) => "False".to_owned(),
        Json::Number(number) => number.to_string(),
        Json::String(text) => python_text(text),
        Json::Array(items) => python_list(items),
        Json::Object(fields) => {
            let field =
                |(key, value): (&String, &Json)| format!("{}: {}", python_text(key), python(value));
            format!("{{{}}}", fields.iter().map(field).collect::<Vec<_>>().join(", "))
        }
    }
}

/// Python's `repr` of a text: in single quotes, unless it has single quotes and no double ones.
fn python_text(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut shown = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => shown.push_str("\\\\"),
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            c if c == quote => shown.extend(['\\', c]),
            c if c.is_control() => shown.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => shown.push(c),
        }
    }
    shown.push(quote);
    shown
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_text_of_blocks_is_that_of_their_texts() {
        let text = |text: &str| json!({"type": "text", "text": text});
        assert_eq!(text_of(&json!("a")).as_deref(), Some("a"));
        let blocks = json!([text("a"), {"type": "image", "url": "x"}, text("b")]);
        assert_eq!(text_of(&blocks).as_deref(), Some("ab"));
        for other in [json!([]), json!(["a"]), json!({"type": "text"}), json!(3), json!(null)] {
            assert_eq!(text_of(&other), None, "{other}");
        }
    }

    /// The texts are those of Python 3.
    #[test]
    fn a_list_is_written_as_in_python() {
        let blocks =
            json!([{"type": "text", "text": "it's\n\"ä\"", "n": null, "x": [1, true, 0.5]}]);
        let Json::Array(blocks) = blocks else { unreachable!() };
        let list = "[{'type': 'text', 'text': 'it\\'s\\n\"ä\"', 'n': None, 'x': [1, True, 0.5]}]";
        assert_eq!(Value::from_object(Blocks(blocks)).to_string(), list);
        assert_eq!(python_text("it's"), "\"it's\"");
    }
}
