//! The result for one row of a data set, and steps that all kinds of rows share: checking a chat,
//! rendering it with the chat template, encoding text.

use super::Message;
use super::report::BadRow;
use super::template::TemplateError;
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

/// Renders a chat as text. If the template refuses the chat, the row is bad; other errors are
/// fatal.
pub(super) fn render(tokenizer: &Tokenizer, chat: &[Message], generate: bool) -> Refusable<String> {
    tokenizer.apply_chat_template(chat, generate).map_err(|error| match error {
        TemplateError::Refused(message) => Refused::Row(BadRow::Template(message)),
        other => Refused::Tokenizer(other.into()),
    })
}

/// Encodes a text as token ids.
pub(super) fn encode(tokenizer: &Tokenizer, text: &str, special: bool) -> Refusable<Vec<u32>> {
    tokenizer.encode(text, special).map_err(Refused::Tokenizer)
}
