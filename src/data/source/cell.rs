//! Rows as read from a file, before checks and encoding.

use serde_json::{Map, Value};

use crate::data::Message;
use crate::data::content::text_of;
use crate::data::message::calls_tools;
use crate::data::report::BadRow;

/// The column with the tools that a chat may call.
pub const TOOLS: &str = "tools";
/// The column with further variables of the chat template.
pub const CHAT_TEMPLATE_KWARGS: &str = "chat_template_kwargs";
/// The columns that are read as JSON and given to the chat template.
pub const TEMPLATE_COLUMNS: [&str; 2] = [TOOLS, CHAT_TEMPLATE_KWARGS];

/// The columns of chats. A text in them may be the JSON text of a chat.
const CHAT_COLUMNS: [&str; 7] =
    ["messages", "conversations", "prompt", "completion", "chosen", "rejected", "reference"];

/// The number of rows in a batch.
pub const BATCH: usize = 512;

/// The content of one row in one column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    Text(String),
    Chat(Vec<Message>),
    /// The content of a column in [`TEMPLATE_COLUMNS`]; null if the row lacks it.
    Json(Value),
    /// True or false, or the numbers 1 or 0.
    Flag(bool),
    /// Unusable, with the reason.
    Bad(BadRow),
}

/// A row with its cells in the order of the requested columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawRow {
    /// The row's index in the file, from 0.
    pub row: usize,
    pub cells: Vec<Cell>,
}

/// The standard role for a role in `from`/`value` messages.
pub fn role_of_from(from: &str) -> &str {
    match from {
        "human" => "user",
        "gpt" | "chatgpt" | "bot" => "assistant",
        other => other,
    }
}

/// A chat from the JSON of its messages.
pub fn chat_of(items: Vec<Value>, column: &str) -> Result<Cell, BadRow> {
    let messages = items.into_iter().map(|item| match item {
        Value::Object(fields) => message_of(fields, column),
        _ => Err(BadRow::WrongType(column.to_owned())),
    });
    messages.collect::<Result<_, _>>().map(Cell::Chat)
}

/// A text. In a column of chats, the JSON text of a list of messages is the chat itself.
pub fn text_or_chat(text: String, column: &str) -> Result<Cell, BadRow> {
    match messages_in(&text).filter(|_| CHAT_COLUMNS.contains(&column)) {
        Some(items) => chat_of(items, column),
        None => Ok(Cell::Text(text)),
    }
}

/// The messages in a text that is the JSON of a list of them: objects with a role.
fn messages_in(text: &str) -> Option<Vec<Value>> {
    let text = text.trim();
    if !text.starts_with('[') || !text.ends_with(']') {
        return None;
    }
    let items: Vec<Value> = serde_json::from_str(text).ok()?;
    let has_role = |item: &Value| {
        ["role", "from"].iter().any(|key| item.get(*key).is_some_and(Value::is_string))
    };
    (!items.is_empty() && items.iter().all(has_role)).then_some(items)
}

/// A message from all of its fields. A role in `from` and a content in `value` are renamed and come
/// last, as in TRL. The content may be missing if the message calls tools.
pub fn message_of(mut fields: Map<String, Value>, column: &str) -> Result<Message, BadRow> {
    let (from, role) = text_field(&mut fields, column, ["role", "from"])?;
    let content = match text_field(&mut fields, column, ["content", "value"]) {
        Ok((_, content)) => content,
        Err(BadRow::Null(_) | BadRow::MissingField(_)) if calls_tools(&fields) => String::new(),
        Err(reason) => return Err(reason),
    };
    if !from {
        return Ok(Message::with_fields(role, content, fields));
    }
    let role = role_of_from(&role).to_owned();
    fields.insert("role".to_owned(), Value::from(role.as_str()));
    Ok(Message::with_fields(role, content, fields))
}

/// The text of the first of two fields that exists, and whether it is the second. The second one
/// is renamed to the first and moved to the end. A content may be a list of blocks.
fn text_field(
    fields: &mut Map<String, Value>,
    column: &str,
    keys: [&str; 2],
) -> Result<(bool, String), BadRow> {
    let [standard, other] = keys;
    let field = || format!("{column}.{standard}");
    let is_other = !fields.contains_key(standard) && fields.contains_key(other);
    if is_other && let Some(value) = fields.shift_remove(other) {
        fields.insert(standard.to_owned(), value);
    }
    match fields.get(standard) {
        Some(Value::String(text)) => Ok((is_other, text.clone())),
        Some(Value::Null) => Err(BadRow::Null(field())),
        Some(blocks) if standard == "content" => match text_of(blocks) {
            Some(text) => Ok((is_other, text)),
            None => Err(BadRow::WrongType(field())),
        },
        Some(_) => Err(BadRow::WrongType(field())),
        None => Err(BadRow::MissingField(field())),
    }
}
