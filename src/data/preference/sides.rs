//! The columns of a preference row → a prompt and two responses, as chats or as texts.

use crate::data::Message;
use crate::data::report::BadRow;
use crate::data::row::check_response;
use crate::data::source::Cell;

/// A row split into prompt and responses.
#[derive(Debug, PartialEq, Eq)]
pub enum Sides {
    Chat { prompt: Vec<Message>, chosen: Vec<Message>, rejected: Vec<Message> },
    Text { prompt: String, chosen: String, rejected: String },
}

/// Splits plain texts. Without a `prompt` column, the prompt is the common prefix, as in TRL's
/// `extract_prompt`: a space right before the difference belongs to the responses, and if one text
/// is a prefix of the other, its last character does too.
pub fn text_sides(chosen: String, rejected: String, prompt: Option<Cell>) -> Result<Sides, BadRow> {
    if chosen == rejected {
        return Err(BadRow::IdenticalSides);
    }
    let sides = match prompt {
        Some(Cell::Text(prompt)) => Sides::Text { prompt, chosen, rejected },
        Some(Cell::Bad(reason)) => return Err(reason),
        Some(_) => {
            return Err(BadRow::WrongType("prompt".to_owned()));
        }
        None => {
            let mut pairs = chosen.char_indices().zip(rejected.chars());
            let differ = pairs.find(|((_, a), b)| a != b).map(|((at, _), _)| at);
            let shorter = if chosen.len() < rejected.len() { &chosen } else { &rejected };
            let mut cut =
                differ.unwrap_or_else(|| shorter.char_indices().last().map_or(0, |(at, _)| at));
            if differ.is_some() && chosen[..cut].ends_with(' ') {
                cut -= 1;
            }
            Sides::Text {
                prompt: chosen[..cut].to_owned(),
                chosen: chosen[cut..].to_owned(),
                rejected: rejected[cut..].to_owned(),
            }
        }
    };
    let Sides::Text { chosen, rejected, .. } = &sides else { return Ok(sides) };
    for (text, field) in [(chosen, "chosen"), (rejected, "rejected")] {
        if text.trim().is_empty() {
            return Err(BadRow::Empty(field.to_owned()));
        }
    }
    Ok(sides)
}

/// The prompt of a row whose responses are chats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GivenPrompt {
    Chat(Vec<Message>),
    /// A text, beside whole chats that start with it (as in UltraFeedback) or beside responses
    /// alone.
    Text(String),
}

/// Splits chats. The prompt is the messages that both chats start with (if one chat is a prefix of
/// the other, all but its last message), unless a prompt is given that they do not include. Both
/// must end in an assistant turn.
pub fn chat_sides(
    mut chosen: Vec<Message>,
    mut rejected: Vec<Message>,
    given: Option<GivenPrompt>,
) -> Result<Sides, BadRow> {
    if chosen == rejected {
        return Err(BadRow::IdenticalSides);
    }
    for (chat, field) in [(&chosen, "chosen"), (&rejected, "rejected")] {
        check_response(chat, field)?;
    }
    let differ = chosen.iter().zip(&rejected).position(|(a, b)| a != b);
    let shared = differ.unwrap_or(chosen.len().min(rejected.len()) - 1);
    let includes =
        |prompt: &Vec<Message>| chosen.starts_with(prompt) && rejected.starts_with(prompt);
    let prompt = match given {
        Some(GivenPrompt::Chat(prompt)) if !includes(&prompt) => prompt,
        Some(GivenPrompt::Text(prompt)) if shared == 0 => vec![Message::new("user", prompt)],
        _ => {
            rejected.drain(..shared);
            chosen.drain(..shared).collect()
        }
    };
    if prompt.is_empty() {
        return Err(BadRow::NoPrompt);
    }
    Ok(Sides::Chat { prompt, chosen, rejected })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extracted(chosen: &str, rejected: &str) -> [String; 3] {
        match text_sides(chosen.to_owned(), rejected.to_owned(), None).unwrap() {
            Sides::Text { prompt, chosen, rejected } => [prompt, chosen, rejected],
            Sides::Chat { .. } => unreachable!(),
        }
    }

    #[test]
    fn an_implicit_prompt_is_what_both_texts_begin_with() {
        assert_eq!(
            extracted("The sky is blue", "The sky is green"),
            ["The sky is", " blue", " green"]
        );
        assert_eq!(extracted("größer", "großer"), ["gr", "ößer", "oßer"]);
        assert_eq!(extracted("abc", "abcde"), ["ab", "c", "cde"]);
        assert_eq!(text_sides("a".into(), "a".into(), None), Err(BadRow::IdenticalSides));
        let prompt = Some(Cell::Text("p".into()));
        assert_eq!(
            text_sides("a".into(), " ".into(), prompt),
            Err(BadRow::Empty("rejected".into()))
        );
    }

    fn chat(turns: &[(&str, &str)]) -> Vec<Message> {
        turns.iter().map(|(role, content)| Message::new(*role, *content)).collect()
    }

    fn prompt_of(sides: Result<Sides, BadRow>) -> (Vec<Message>, usize) {
        match sides.unwrap() {
            Sides::Chat { prompt, chosen, .. } => (prompt, chosen.len()),
            Sides::Text { .. } => unreachable!(),
        }
    }

    #[test]
    fn an_implicit_prompt_is_the_messages_that_both_begin_with() {
        let chosen = chat(&[("user", "q"), ("assistant", "good")]);
        let rejected = chat(&[("user", "q"), ("assistant", "bad")]);
        let prompt = chat(&[("user", "q")]);
        assert_eq!(
            prompt_of(chat_sides(chosen.clone(), rejected.clone(), None)),
            (prompt.clone(), 1)
        );
        for given in [GivenPrompt::Chat(prompt.clone()), GivenPrompt::Text("q".into())] {
            let given = Some(given);
            let whole = chat_sides(chosen.clone(), rejected.clone(), given.clone());
            assert_eq!(prompt_of(whole), (prompt.clone(), 1));
            let responses = chat_sides(chosen[1..].to_vec(), rejected[1..].to_vec(), given);
            assert_eq!(prompt_of(responses), (prompt.clone(), 1));
        }
        // Responses of several turns that share their first turn are still responses.
        let first = [("assistant", "a"), ("user", "r")];
        let long = |last| chat(&[&first[..], &[("assistant", last)]].concat());
        let given = Some(GivenPrompt::Chat(prompt.clone()));
        assert_eq!(prompt_of(chat_sides(long("x"), long("y"), given)), (prompt, 3));
        assert_eq!(
            chat_sides(chosen[1..].to_vec(), rejected[1..].to_vec(), None),
            Err(BadRow::NoPrompt)
        );
        assert_eq!(chat_sides(chosen.clone(), chosen.clone(), None), Err(BadRow::IdenticalSides));
        assert_eq!(
            chat_sides(chosen, Vec::new(), None),
            Err(BadRow::EmptyChat("rejected".to_owned()))
        );
    }
}
