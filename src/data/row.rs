//! The result for one row of a data set, and steps that all kinds of rows share: checking a chat,
//! rendering it with the chat template, encoding text.

use std::sync::Once;

use super::Message;
use super::report::BadRow;
use super::source::Cell;
use super::template::TemplateError;
use super::template_values::TemplateValues;
use super::tokenizer::{Tokenizer, TokenizerError};

/// The result for one row.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome<T> {
    Kept(T),
    NoRoom,
    NoLabel,
    Bad(BadRow),
}

/// Why a row has no token ids: the row is bad, or the tokenizer failed.
pub(super) enum Refused {
    Row(BadRow),
    Tokenizer(TokenizerError),
}

impl Refused {
    pub fn into_outcome<T>(self) -> Result<Outcome<T>, TokenizerError> {
        match self {
            Self::Row(reason) => Ok(Outcome::Bad(reason)),
            Self::Tokenizer(error) => Err(error),
        }
    }
}

pub(super) type Refusable<T> = Result<T, Refused>;

/// The chat, starting with an empty system message if `insert` is set and it has no system message.
pub(super) fn with_system(chat: &[Message], insert: bool) -> Vec<Message> {
    let mut chat = chat.to_vec();
    if insert && chat.first().is_none_or(|message| message.role != "system") {
        chat.insert(0, Message::new("system", ""));
    }
    chat
}

/// The chat, if it is not empty and the template knows all roles.
pub(super) fn checked(
    tokenizer: &Tokenizer,
    chat: Vec<Message>,
    field: &str,
) -> Result<Vec<Message>, BadRow> {
    if chat.is_empty() {
        return Err(BadRow::EmptyChat(field.to_owned()));
    }
    // A missing template is reported when the chat is rendered.
    let knows = |role: &str| tokenizer.template().map_or(true, |t| t.knows_role(role));
    match chat.iter().find(|message| message.role.is_empty() || !knows(&message.role)) {
        Some(message) => Err(BadRow::BrokenRole(message.role.clone())),
        None => Ok(chat),
    }
}

/// Checks that a response (or a whole chat with it) ends in an assistant turn that is not blank.
pub(super) fn check_response(chat: &[Message], field: &str) -> Result<(), BadRow> {
    match chat.last() {
        None => Err(BadRow::EmptyChat(field.to_owned())),
        Some(last) if last.role != "assistant" => Err(BadRow::NoAssistantEnd(field.to_owned())),
        Some(last) if last.is_blank() => Err(BadRow::Empty(field.to_owned())),
        Some(_) => Ok(()),
    }
}

/// A prompt and its response in one form. If only one of them is a chat, the other one, a text,
/// becomes a chat of one turn.
pub(super) fn in_one_form(prompt: Cell, response: Cell) -> (Cell, Cell) {
    match (prompt, response) {
        (Cell::Chat(prompt), response) => (Cell::Chat(prompt), as_turn(response, "assistant")),
        (prompt, Cell::Chat(response)) => (as_turn(prompt, "user"), Cell::Chat(response)),
        other => other,
    }
}

/// The cell, with a text as the turn of `role`.
pub(super) fn as_turn(cell: Cell, role: &str) -> Cell {
    static NOTED: Once = Once::new();
    let Cell::Text(text) = cell else { return cell };
    NOTED.call_once(|| {
        tracing::warn!(
            "some rows mix chats and texts; a text is taken as a turn: a prompt as the user's, a \
             response as the assistant's"
        );
    });
    Cell::Chat(vec![Message::new(role, text)])
}

/// Renders a chat as text. If the template refuses the chat, the row is bad; other errors are
/// fatal.
pub(super) fn render(
    tokenizer: &Tokenizer,
    chat: &[Message],
    generate: bool,
    values: &TemplateValues,
) -> Refusable<String> {
    let rendered = tokenizer.render_with(chat, generate, values);
    rendered.map(|rendered| rendered.text).map_err(|error| match error {
        TemplateError::Refused(message) => Refused::Row(BadRow::Template(message)),
        other => Refused::Tokenizer(other.into()),
    })
}

/// Encodes a text as token ids.
pub(super) fn encode(tokenizer: &Tokenizer, text: &str, special: bool) -> Refusable<Vec<u32>> {
    tokenizer.encode(text, special).map_err(Refused::Tokenizer)
}
