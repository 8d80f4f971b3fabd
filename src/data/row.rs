//! What becomes of one row of a data set, and the steps that every kind of row shares: check its
//! chat, write it with the chat template, encode the text.

use super::Message;
use super::report::BadRow;
use super::template::TemplateError;
use super::tokenizer::{Tokenizer, TokenizerError};

/// What became of a row.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome<T> {
    Kept(T),
    NoRoom,
    NoLabel,
    Bad(BadRow),
}

/// A row that cannot be turned into ids, or a tokenizer that fails.
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

/// The chat, with an empty system message before it where `insert` says so and there is none.
pub(super) fn with_system(chat: &[Message], insert: bool) -> Vec<Message> {
    let mut chat = chat.to_vec();
    if insert && chat.first().is_none_or(|message| message.role != "system") {
        chat.insert(0, Message::new("system", ""));
    }
    chat
}

/// The chat, if it has messages and roles that the template can know.
pub(super) fn checked(
    tokenizer: &Tokenizer,
    chat: Vec<Message>,
    field: &str,
) -> Result<Vec<Message>, BadRow> {
    if chat.is_empty() {
        return Err(BadRow::EmptyChat(field.to_owned()));
    }
    // A tokenizer without a template says so when it is to write the chat.
    let knows = |role: &str| tokenizer.template().map_or(true, |t| t.knows_role(role));
    match chat.iter().find(|message| message.role.is_empty() || !knows(&message.role)) {
        Some(message) => Err(BadRow::BrokenRole(message.role.clone())),
        None => Ok(chat),
    }
}

/// The text of a chat; a chat that the template refuses is a bad row, a tokenizer without template is not.
pub(super) fn render(tokenizer: &Tokenizer, chat: &[Message], generate: bool) -> Refusable<String> {
    tokenizer.apply_chat_template(chat, generate).map_err(|error| match error {
        TemplateError::Refused(message) => Refused::Row(BadRow::Template(message)),
        other => Refused::Tokenizer(other.into()),
    })
}

/// Token ids of a text.
pub(super) fn encode(tokenizer: &Tokenizer, text: &str, special: bool) -> Refusable<Vec<u32>> {
    tokenizer.encode(text, special).map_err(Refused::Tokenizer)
}
