//! Files of prompts, in the formats of common benchmarks.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::data::{BadRow, Message, TemplateValues, calls_tools, text_of};

/// The roles that a message may have. A chat template drops a message of any other role silently.
const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];

/// Why a file of prompts cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PromptsError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: not a JSON list of rows: {source}", path.display())]
    NotAList { path: PathBuf, source: serde_json::Error },
    #[error("no prompts in {}", .0.display())]
    NoRows(PathBuf),
    /// `place` is the file with the number of the line or row, counted from 1.
    #[error("{place}: {reason}")]
    Row { place: String, reason: RowError },
}

/// Why a row of a file holds no prompt.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    #[error("not valid JSON: {0}")]
    NotJson(serde_json::Error),
    #[error("an object is expected, found {0}")]
    NotAnObject(Value),
    #[error("none of `prompt`, `messages`, `instruction`, `turns` is given")]
    NoPrompt,
    #[error("`{key}` should be a text or a list of messages, not {found}")]
    NotAPrompt { key: &'static str, found: Value },
    #[error("`turns` should be a list of texts")]
    NotTexts,
    #[error("`turns` is empty")]
    NoTurns,
    #[error("`{key}` needs `role` and `content` in each message")]
    NotMessages { key: &'static str },
    #[error(
        "`{key}` has a message of the role `{role}`\nhelp: the roles are {}", ROLES.join(", ")
    )]
    UnknownRole { key: &'static str, role: String },
    #[error("`{key}` has no message of the user")]
    NoUserMessage { key: &'static str },
    #[error("{0}")]
    TemplateValue(BadRow),
}

/// The prompt of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Question {
    /// `prompt`, AlpacaEval's `instruction`, or chat messages up to the last user message.
    Chat(Vec<Message>),
    /// MT-Bench's `turns`: user messages, each asked after the previous one was answered.
    Turns(Vec<String>),
}

/// A row of a prompt file.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptRow {
    /// The file and the line, for messages.
    pub place: String,
    pub question: Question,
    /// `tools` and `chat_template_kwargs` of the row, for the chat template.
    pub(crate) values: TemplateValues,
    /// All fields of the row, unchanged.
    pub fields: Map<String, Value>,
}

/// Reads a `.jsonl` file (one object per line) or a `.json` file (a list of objects).
///
/// # Errors
/// The file cannot be read or has no rows, or a row is not an object or has no prompt. The message
/// names the row.
pub fn read(path: &Path) -> Result<Vec<PromptRow>, PromptsError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| PromptsError::Read { path: path.to_owned(), source })?;
    // Some editors write a byte order mark at the start of a file. It is not part of the text.
    let rows = rows(path, text.strip_prefix('\u{feff}').unwrap_or(&text))?;
    if rows.is_empty() {
        return Err(PromptsError::NoRows(path.to_owned()));
    }
    Ok(rows)
}

fn rows(path: &Path, text: &str) -> Result<Vec<PromptRow>, PromptsError> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let place = |what: &str, number: usize| format!("{}, {what} {number}", path.display());
    if path.extension().is_some_and(|extension| extension == "json") {
        let rows: Vec<Value> = serde_json::from_str(text)
            .map_err(|source| PromptsError::NotAList { path: path.to_owned(), source })?;
        let rows = rows.into_iter().enumerate();
        return rows.map(|(index, row)| prompt_row(Ok(row), place("row", index + 1))).collect();
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let rows = lines.map(|(index, line)| {
        let row = serde_json::from_str(line).map_err(RowError::NotJson);
        prompt_row(row, place("line", index + 1))
    });
    rows.collect()
}

fn prompt_row(row: Result<Value, RowError>, place: String) -> Result<PromptRow, PromptsError> {
    let parsed = row.and_then(|row| match row {
        Value::Object(fields) => {
            let values = TemplateValues::of_fields(&fields).map_err(RowError::TemplateValue)?;
            Ok((question(&fields)?, values, fields))
        }
        other => Err(RowError::NotAnObject(other)),
    });
    match parsed {
        Ok((question, values, fields)) => Ok(PromptRow { place, question, values, fields }),
        Err(reason) => Err(PromptsError::Row { place, reason }),
    }
}

/// The prompt in the first of the known columns that is not `null`: a table joined from several
/// benchmarks has `null` in the columns that a row does not use.
fn question(fields: &Map<String, Value>) -> Result<Question, RowError> {
    let given = ["turns", "messages", "prompt", "instruction"]
        .into_iter()
        .find_map(|key| Some((key, fields.get(key).filter(|value| !value.is_null())?)));
    match given {
        Some(("turns", value)) => Ok(Question::Turns(turns(value)?)),
        Some((key, Value::Array(messages))) => Ok(Question::Chat(chat(key, messages)?)),
        Some((_, Value::String(text))) => Ok(Question::Chat(vec![Message::new("user", text)])),
        Some((key, other)) => Err(RowError::NotAPrompt { key, found: other.clone() }),
        None => Err(RowError::NoPrompt),
    }
}

fn turns(value: &Value) -> Result<Vec<String>, RowError> {
    let turns = value.as_array().ok_or(RowError::NotTexts)?;
    let texts = turns.iter().map(|turn| turn.as_str().map(str::to_owned));
    let texts: Vec<String> = texts.collect::<Option<_>>().ok_or(RowError::NotTexts)?;
    if texts.is_empty() { Err(RowError::NoTurns) } else { Ok(texts) }
}

/// The messages up to the last user message. An answer behind it in the row is dropped.
fn chat(key: &'static str, messages: &[Value]) -> Result<Vec<Message>, RowError> {
    let message = |value: &Value| {
        let fields = value.as_object()?;
        let content = match fields.get("content") {
            None | Some(Value::Null) if calls_tools(fields) => String::new(),
            content => text_of(content?)?,
        };
        Some(Message::with_fields(fields.get("role")?.as_str()?, content, fields.clone()))
    };
    let chat: Option<Vec<Message>> = messages.iter().map(message).collect();
    let mut chat = chat.ok_or(RowError::NotMessages { key })?;
    if let Some(other) = chat.iter().find(|message| !ROLES.contains(&message.role.as_str())) {
        return Err(RowError::UnknownRole { key, role: other.role.clone() });
    }
    let last = chat.iter().rposition(|message| message.role == "user");
    let last = last.ok_or(RowError::NoUserMessage { key })?;
    chat.truncate(last + 1);
    Ok(chat)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_text(name: &str, text: &str) -> Result<Vec<PromptRow>, PromptsError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    fn user(text: &str) -> Question {
        Question::Chat(vec![Message::new("user", text)])
    }

    #[test]
    fn all_four_row_formats_are_read() {
        let text = r#"{"prompt": "a"}
{"instruction": "b", "dataset": "helpful_base"}

{"messages": SYSTEM_USER_ASSISTANT}
{"question_id": 81, "category": "writing", "turns": ["d", "e"]}
{"turns": null, "messages": null, "prompt": "f"}
"#;
        let messages = [("system", "s"), ("user", "c"), ("assistant", "x")]
            .map(|(role, content)| json!({"role": role, "content": content}));
        let text = text.replace("SYSTEM_USER_ASSISTANT", &json!(messages).to_string());
        let rows = read_text("rows.jsonl", &text).unwrap();
        assert_eq!(rows[0].question, user("a"));
        assert_eq!(rows[1].question, user("b"));
        let chat = vec![Message::new("system", "s"), Message::new("user", "c")];
        assert_eq!(rows[2].question, Question::Chat(chat));
        assert_eq!(rows[3].question, Question::Turns(vec!["d".into(), "e".into()]));
        assert_eq!(rows[4].question, user("f"));
        assert_eq!(rows[1].fields["dataset"], "helpful_base");
        assert!(rows[2].place.ends_with("rows.jsonl, line 4"), "{}", rows[2].place);
        assert_eq!(read_text("rows.json", r#"[{"prompt": "a"}]"#).unwrap().len(), 1);
    }

    #[test]
    fn further_fields_of_a_message_are_kept() {
        let text = r#"{"messages": [{"role": "user", "content": "a", "name": "Ann"}]}"#;
        let Question::Chat(chat) = &read_text("rows.jsonl", text).unwrap()[0].question else {
            panic!("a chat is expected")
        };
        assert_eq!(chat[0].fields().unwrap()["name"], "Ann");
    }

    #[test]
    fn tools_and_variables_of_a_row_are_read() {
        let tool = json!({"type": "function", "function": {"name": "f"}});
        let row = json!({"prompt": "a", "tools": [tool], "chat_template_kwargs": {"think": true}});
        let values = &read_text("rows.jsonl", &row.to_string()).unwrap()[0].values;
        assert_eq!(values.tools, Some(json!([tool])));
        assert_eq!(values.variables["think"], true);
        let row = json!({"prompt": "a", "tools": "f"});
        let error = read_text("rows.jsonl", &row.to_string()).unwrap_err().to_string();
        assert!(error.ends_with("line 1: `tools` is neither a list of objects nor its JSON text"));
    }

    #[test]
    fn calls_of_tools_and_blocks_of_content_are_read() {
        let call = json!({"function": {"name": "f", "arguments": {}}});
        let row = json!({"messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "content": "3"},
            {"role": "user", "content": [{"type": "text", "text": "b"}]},
        ]});
        let Question::Chat(chat) = &read_text("rows.jsonl", &row.to_string()).unwrap()[0].question
        else {
            panic!("a chat is expected")
        };
        assert_eq!(chat.len(), 4);
        assert_eq!((&*chat[1].content, &*chat[3].content), ("", "b"));
        assert!(chat[3].fields().unwrap()["content"].is_array());
    }

    #[test]
    fn a_byte_order_mark_is_skipped_and_an_empty_file_is_an_error() {
        let rows = read_text("rows.jsonl", "\u{feff}{\"prompt\": \"a\"}\r\n").unwrap();
        assert_eq!(rows[0].question, user("a"));
        for (name, text) in [("a.jsonl", ""), ("a.jsonl", "\u{feff}\n\n"), ("a.json", " [] ")] {
            let error = read_text(name, text).unwrap_err().to_string();
            assert!(error.starts_with("no prompts in ") && error.ends_with(name), "{error}");
        }
        assert!(read_text("a.json", "").unwrap_err().to_string().starts_with("no prompts in "));
    }

    #[test]
    fn the_error_of_a_bad_row_names_the_row_and_the_reason() {
        for (text, expected) in [
            ("{\"prompt\": \"a\"}\n{\"text\": \"b\"}", "line 2"),
            ("{\"prompt\": 1}", "`prompt` should be"),
            ("{\"turns\": []}", "`turns` is empty"),
            ("{\"prompt\": null}", "none of `prompt`"),
            ("{\"messages\": [{\"role\": \"user\"}]}", "`role` and `content`"),
            ("{\"messages\": []}", "no message of the user"),
            (
                "\n{\"messages\": [{\"role\": \"User\", \"content\": \"a\"}]}",
                "line 2: `messages` has a message of the role `User`\nhelp: the roles are system, \
                 user",
            ),
            ("[1]", "an object is expected"),
            ("{", "not valid JSON"),
        ] {
            let error = read_text("rows.jsonl", text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
