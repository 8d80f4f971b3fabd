//! Rows with something to answer, in the forms that benchmarks have.

use std::path::Path;

use anyhow::{Context, bail};
use serde_json::{Map, Value};

use crate::data::Message;

/// What a message may be of. A template passes over others without a word.
const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];

/// What a row asks.
#[derive(Debug, Clone, PartialEq)]
pub enum Question {
    /// `prompt`, or AlpacaEval's `instruction`, or chat messages up to the answer.
    Chat(Vec<Message>),
    /// MT-Bench's `turns`: each is asked after the one before it has been answered.
    Turns(Vec<String>),
}

/// A row as it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptRow {
    /// File and line, for messages.
    pub place: String,
    pub question: Question,
    pub fields: Map<String, Value>,
}

/// Reads a `.jsonl` file (one object a line) or a `.json` file (a list of objects).
///
/// # Errors
/// The file cannot be read or has no rows; a row, which is named, is no object or asks nothing.
pub fn read(path: &Path) -> anyhow::Result<Vec<PromptRow>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    // Some editors begin a file with a byte order mark, which is no part of the text.
    let rows = rows(path, text.strip_prefix('\u{feff}').unwrap_or(&text))?;
    if rows.is_empty() {
        bail!("no prompts in {}", path.display());
    }
    Ok(rows)
}

fn rows(path: &Path, text: &str) -> anyhow::Result<Vec<PromptRow>> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let place = |what: &str, number: usize| format!("{}, {what} {number}", path.display());
    if path.extension().is_some_and(|extension| extension == "json") {
        let rows: Vec<Value> = serde_json::from_str(text)
            .with_context(|| format!("{} is no JSON list of rows", path.display()))?;
        let rows = rows.into_iter().enumerate();
        return rows.map(|(index, row)| prompt_row(Ok(row), place("row", index + 1))).collect();
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let rows = lines.map(|(index, line)| {
        let row = serde_json::from_str(line).context("not valid JSON");
        prompt_row(row, place("line", index + 1))
    });
    rows.collect()
}

fn prompt_row(row: anyhow::Result<Value>, place: String) -> anyhow::Result<PromptRow> {
    let read = row.and_then(|row| {
        let Value::Object(fields) = row else { bail!("an object is expected, found {row}") };
        Ok((question(&fields)?, fields))
    });
    match read {
        Ok((question, fields)) => Ok(PromptRow { place, question, fields }),
        Err(error) => Err(error.context(place)),
    }
}

/// A table that was joined from several has `null` in the columns that a row does not use.
fn question(fields: &Map<String, Value>) -> anyhow::Result<Question> {
    let asked = ["turns", "messages", "prompt", "instruction"]
        .into_iter()
        .find_map(|name| Some((name, fields.get(name).filter(|value| !value.is_null())?)));
    Ok(match asked {
        Some(("turns", value)) => Question::Turns(turns(value)?),
        Some((name, Value::Array(messages))) => Question::Chat(chat(name, messages)?),
        Some((_, Value::String(text))) => Question::Chat(vec![Message::new("user", text)]),
        Some((name, other)) => bail!("`{name}` should be a text or a list of messages: {other}"),
        None => bail!("none of `prompt`, `messages`, `instruction`, `turns` is there"),
    })
}

fn turns(value: &Value) -> anyhow::Result<Vec<String>> {
    let turns = value.as_array().context("`turns` should be a list of texts")?;
    let texts = turns.iter().map(|turn| turn.as_str().map(str::to_owned));
    let texts: Option<Vec<String>> = texts.collect();
    let texts = texts.context("`turns` should be a list of texts")?;
    if texts.is_empty() {
        bail!("`turns` is empty");
    }
    Ok(texts)
}

/// Messages up to the last one of the user: what the row has after it is the answer of somebody else.
fn chat(name: &str, messages: &[Value]) -> anyhow::Result<Vec<Message>> {
    let message = |value: &Value| {
        let text = |key: &str| value.get(key)?.as_str();
        Some(Message::new(text("role")?, text("content")?))
    };
    let chat: Option<Vec<Message>> = messages.iter().map(message).collect();
    let mut chat =
        chat.with_context(|| format!("`{name}` needs `role` and `content` in each message"))?;
    if let Some(other) = chat.iter().find(|message| !ROLES.contains(&message.role.as_str())) {
        let (role, known) = (&other.role, ROLES.join(", "));
        bail!("`{name}` has a message of the role `{role}`\nhelp: the roles are {known}");
    }
    let Some(last) = chat.iter().rposition(|message| message.role == "user") else {
        bail!("`{name}` has no message of the user");
    };
    chat.truncate(last + 1);
    Ok(chat)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(name: &str, text: &str) -> anyhow::Result<Vec<PromptRow>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    fn user(text: &str) -> Question {
        Question::Chat(vec![Message::new("user", text)])
    }

    #[test]
    fn rows_have_four_forms() {
        let text = r#"{"prompt": "a"}
{"instruction": "b", "dataset": "helpful_base"}

{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "x"}]}
{"question_id": 81, "category": "writing", "turns": ["d", "e"]}
{"turns": null, "messages": null, "prompt": "f"}
"#;
        let rows = read_text("rows.jsonl", text).unwrap();
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
    fn a_byte_order_mark_is_no_text_and_an_empty_file_is_said() {
        let rows = read_text("rows.jsonl", "\u{feff}{\"prompt\": \"a\"}\r\n").unwrap();
        assert_eq!(rows[0].question, user("a"));
        for (name, text) in [("a.jsonl", ""), ("a.jsonl", "\u{feff}\n\n"), ("a.json", " [] ")] {
            let error = read_text(name, text).unwrap_err().to_string();
            assert!(error.starts_with("no prompts in ") && error.ends_with(name), "{error}");
        }
        assert!(read_text("a.json", "").unwrap_err().to_string().starts_with("no prompts in "));
    }

    #[test]
    fn a_bad_row_is_named() {
        for (text, expected) in [
            ("{\"prompt\": \"a\"}\n{\"text\": \"b\"}", "line 2"),
            ("{\"prompt\": 1}", "`prompt` should be"),
            ("{\"turns\": []}", "`turns` is empty"),
            ("{\"prompt\": null}", "none of `prompt`"),
            ("{\"messages\": [{\"role\": \"user\"}]}", "`role` and `content`"),
            ("{\"messages\": []}", "no message of the user"),
            (
                "\n{\"messages\": [{\"role\": \"User\", \"content\": \"a\"}]}",
                "line 2: `messages` has a message of the role `User`\nhelp: the roles are system, user",
            ),
            ("[1]", "an object is expected"),
            ("{", "not valid JSON"),
        ] {
            let error = format!("{:#}", read_text("rows.jsonl", text).unwrap_err());
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
