//! A preference row → prompt, chosen and rejected token ids.
//!
//! Three ways: [`Preprocessing::Trl`] is TRL 1.16 (`DPOTrainer._prepare_dataset`); [`Preprocessing::TrlText`] is its older
//! way, which the trainers of ORPO and CPO still go; [`Preprocessing::HandbookV1`] is the alignment-handbook's first version
//! with TRL 0.7.2–0.7.4, which made Zephyr-7B-β. Of the last one quirk is not reproduced: there, EOS tokens inside the text
//! had the attention mask 0; here they are seen like any other token. For rows with a system turn or whose first turn is not
//! the user's, the handbook's `chosen[1:]` repeated the prompt in the response; here the response is what comes after the
//! first user turn.

use std::sync::Once;

use super::{
    Message, PreferencePair, Tokenizer, TokenizerError, UnpairedRow,
    load::{Outcome, encode, render},
    report::BadRow,
    source::Cell,
};
use crate::recipe::{Lengths, Preprocessing, Truncation};

const ASSISTANT_PREFIX: &str = "<|assistant|>\n";

/// The settings that decide what a row becomes.
pub(super) struct PreferenceRules<'a> {
    pub tokenizer: &'a Tokenizer,
    pub lengths: &'a Lengths,
    pub preprocessing: Preprocessing,
    /// Put an empty system message before chats that have none.
    pub insert_system: bool,
    /// Done when the user has heard that prompts lose their end.
    pub warned: Once,
}

/// A row with its prompt apart from both responses.
#[derive(Debug, PartialEq, Eq)]
enum Sides {
    Chat { prompt: Vec<Message>, chosen: Vec<Message>, rejected: Vec<Message> },
    Text { prompt: String, chosen: String, rejected: String },
}

/// Token ids before truncation.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ids {
    prompt: Vec<u32>,
    chosen: Vec<u32>,
    rejected: Vec<u32>,
}

impl PreferenceRules<'_> {
    /// Makes a pair of a row's `chosen`, `rejected` and, if the data set has that column, `prompt`.
    pub fn pair(
        &self,
        chosen: Cell,
        rejected: Cell,
        prompt: Option<Cell>,
    ) -> Result<Outcome<PreferencePair>, TokenizerError> {
        match self.whole_pair(chosen, rejected, prompt)? {
            Outcome::Kept(ids) => Ok(truncate(ids, self.lengths, self.preprocessing)
                .map_or(Outcome::NoRoom, Outcome::Kept)),
            Outcome::NoRoom => Ok(Outcome::NoRoom),
            Outcome::NoLabel => Ok(Outcome::NoLabel),
            Outcome::Bad(reason) => Ok(Outcome::Bad(reason)),
        }
    }

    /// A row's ids before truncation.
    fn whole_pair(
        &self,
        chosen: Cell,
        rejected: Cell,
        prompt: Option<Cell>,
    ) -> Result<Outcome<Ids>, TokenizerError> {
        let sides = match self.sides(chosen, rejected, prompt) {
            Ok(sides) => sides,
            Err(reason) => return Ok(Outcome::Bad(reason)),
        };
        let ids = match (self.preprocessing, sides) {
            (Preprocessing::Trl, Sides::Chat { prompt, chosen, rejected }) => {
                self.trl_chat(&prompt, &chosen, &rejected)
            }
            (Preprocessing::Trl, Sides::Text { prompt, chosen, rejected }) => {
                self.trl_text(&prompt, &chosen, &rejected)
            }
            (Preprocessing::HandbookV1, Sides::Chat { prompt, chosen, rejected }) => {
                self.handbook_chat(prompt, chosen, rejected)
            }
            (Preprocessing::HandbookV1, Sides::Text { prompt, chosen, rejected }) => {
                self.handbook_text(&prompt, &chosen, &rejected)
            }
            (Preprocessing::TrlText, Sides::Chat { prompt, chosen, rejected }) => {
                self.templated(&prompt, &chosen, &rejected)
            }
            (Preprocessing::TrlText, Sides::Text { prompt, chosen, rejected }) => {
                self.with_bos_and_eos(&prompt, &chosen, &rejected)
            }
        };
        match ids {
            Ok(ids) if ids.chosen.is_empty() => {
                Ok(Outcome::Bad(BadRow::Empty("chosen".to_owned())))
            }
            Ok(ids) if ids.rejected.is_empty() => {
                Ok(Outcome::Bad(BadRow::Empty("rejected".to_owned())))
            }
            Ok(ids) => Ok(Outcome::Kept(ids)),
            Err(refused) => refused.into_outcome(),
        }
    }

    /// The two labelled rows of a pair that is taken apart, and whose prompt leaves room for a response; see [`UnpairedRow`].
    pub fn unpaired(
        &self,
        chosen: Cell,
        rejected: Cell,
        prompt: Option<Cell>,
    ) -> Result<Outcome<Vec<UnpairedRow>>, TokenizerError> {
        Ok(match self.whole_pair(chosen, rejected, prompt)? {
            Outcome::Kept(Ids { prompt, chosen, rejected }) => {
                let row =
                    |completion, label| UnpairedRow { prompt: prompt.clone(), completion, label };
                let rows = vec![row(chosen, true), row(rejected, false)];
                self.with_room(rows)
            }
            Outcome::NoRoom => Outcome::NoRoom,
            Outcome::NoLabel => Outcome::NoLabel,
            Outcome::Bad(reason) => Outcome::Bad(reason),
        })
    }

    /// The row of a `prompt`, a `completion` and a `label`.
    pub fn labelled(
        &self,
        prompt: Cell,
        completion: Cell,
        label: Cell,
    ) -> Result<Outcome<Vec<UnpairedRow>>, TokenizerError> {
        match self.labelled_row(prompt, completion, label) {
            Ok(row) => Ok(self.with_room(vec![row])),
            Err(refused) => refused.into_outcome(),
        }
    }

    fn with_room(&self, rows: Vec<UnpairedRow>) -> Outcome<Vec<UnpairedRow>> {
        match self.lengths.max_length {
            Some(length) if rows[0].prompt.len() >= length => Outcome::NoRoom,
            _ => Outcome::Kept(rows),
        }
    }

    fn labelled_row(&self, prompt: Cell, completion: Cell, label: Cell) -> Refusable<UnpairedRow> {
        let label = match label {
            Cell::Flag(label) => label,
            Cell::Bad(reason) => return Err(Refused::Row(reason)),
            _ => return Err(Refused::Row(BadRow::NotALabel)),
        };
        let (prompt, whole) = match (prompt, completion) {
            (Cell::Bad(reason), _) | (_, Cell::Bad(reason)) => return Err(Refused::Row(reason)),
            (Cell::Chat(prompt), Cell::Chat(completion)) => {
                let prompt = self.prepared(prompt, "prompt").map_err(Refused::Row)?;
                let completion = self.prepared(completion, "completion").map_err(Refused::Row)?;
                not_blank(&completion[completion.len() - 1].content)?;
                let prompt = self.with_system(&prompt);
                let ids = |chat: &[Message], generate| {
                    encode(self.tokenizer, &render(self.tokenizer, chat, generate)?, false)
                };
                (ids(&prompt, true)?, ids(&[prompt, completion].concat(), false)?)
            }
            (Cell::Text(prompt), Cell::Text(completion)) => {
                not_blank(&completion)?;
                let eos = self.tokenizer.eos_token().map_err(Refused::Tokenizer)?;
                let end = if completion.ends_with(eos) { "" } else { eos };
                let whole = encode(self.tokenizer, &format!("{prompt}{completion}{end}"), true)?;
                (encode(self.tokenizer, &prompt, true)?, whole)
            }
            _ => return Err(Refused::Row(BadRow::WrongType("completion".to_owned()))),
        };
        let Ids { prompt, chosen: completion, .. } = self.apart(prompt, whole.clone(), whole);
        match completion.is_empty() {
            true => Err(Refused::Row(BadRow::Empty("completion".to_owned()))),
            false => Ok(UnpairedRow { prompt, completion, label }),
        }
    }

    fn sides(&self, chosen: Cell, rejected: Cell, prompt: Option<Cell>) -> Result<Sides, BadRow> {
        match (chosen, rejected) {
            (Cell::Bad(reason), _) | (_, Cell::Bad(reason)) => Err(reason),
            (Cell::Text(chosen), Cell::Text(rejected)) => text_sides(chosen, rejected, prompt),
            (Cell::Chat(chosen), Cell::Chat(rejected)) => {
                let chosen = self.prepared(chosen, "chosen")?;
                let rejected = self.prepared(rejected, "rejected")?;
                let prompt = match prompt {
                    Some(Cell::Chat(prompt)) => Some(self.prepared(prompt, "prompt")?),
                    Some(Cell::Text(prompt)) => Some(vec![Message::new("user", prompt)]),
                    Some(Cell::Bad(reason)) => return Err(reason),
                    Some(Cell::Flag(_)) => return Err(BadRow::WrongType("prompt".to_owned())),
                    None => None,
                };
                chat_sides(chosen, rejected, prompt)
            }
            _ => Err(BadRow::WrongType("rejected".to_owned())),
        }
    }

    fn prepared(&self, chat: Vec<Message>, field: &str) -> Result<Vec<Message>, BadRow> {
        super::load::checked(self.tokenizer, chat, field)
    }

    fn with_system(&self, prompt: &[Message]) -> Vec<Message> {
        super::load::with_system(prompt, self.insert_system)
    }

    fn apart(&self, prompt: Vec<u32>, chosen: Vec<u32>, rejected: Vec<u32>) -> Ids {
        let whole = prompt.len();
        let ids = apart(prompt, chosen, rejected);
        if ids.prompt.len() < whole {
            self.warned.call_once(|| {
                tracing::warn!(
                    "the end of a prompt is not in its sequence: the chat template writes a prompt alone in another way \
                     than with a response, or tokens merge across the border; the response begins where they differ"
                );
            });
        }
        ids
    }

    fn trl_chat(
        &self,
        prompt: &[Message],
        chosen: &[Message],
        rejected: &[Message],
    ) -> Refusable<Ids> {
        let prompt = self.with_system(prompt);
        let ids = |response: &[Message], generate: bool| {
            let chat = [&prompt, response].concat();
            encode(self.tokenizer, &render(self.tokenizer, &chat, generate)?, false)
        };
        Ok(self.apart(ids(&[], true)?, ids(chosen, false)?, ids(rejected, false)?))
    }

    fn trl_text(&self, prompt: &str, chosen: &str, rejected: &str) -> Refusable<Ids> {
        let eos = self.tokenizer.eos_token().map_err(Refused::Tokenizer)?;
        let ids = |response: &str| {
            let end = if response.ends_with(eos) { "" } else { eos };
            encode(self.tokenizer, &format!("{prompt}{response}{end}"), true)
        };
        Ok(self.apart(encode(self.tokenizer, prompt, true)?, ids(chosen)?, ids(rejected)?))
    }

    /// The handbook's prompt is the system message (an empty one where there is none) and the first user turn.
    fn handbook_chat(
        &self,
        mut prompt: Vec<Message>,
        mut chosen: Vec<Message>,
        mut rejected: Vec<Message>,
    ) -> Refusable<Ids> {
        let first_user = prompt
            .iter()
            .position(|message| message.role == "user")
            .ok_or(Refused::Row(BadRow::NoPrompt))?;
        let later = prompt.split_off(first_user + 1);
        chosen.splice(0..0, later.clone());
        rejected.splice(0..0, later);
        if prompt[0].role != "system" {
            prompt.insert(0, Message::new("system", ""));
        }
        let text = |chat: &[Message]| {
            let text = render(self.tokenizer, chat, false)?;
            Ok(text.strip_prefix(ASSISTANT_PREFIX).unwrap_or(&text).to_owned())
        };
        let prompt = render(self.tokenizer, &prompt, true)?;
        self.handbook_text(&prompt, &text(&chosen)?, &text(&rejected)?)
    }

    /// TRL's ORPO and CPO write the template's texts first, and then treat them as plain ones. A response's text is what its
    /// chat has behind the common beginning with the prompt's text.
    fn templated(
        &self,
        prompt: &[Message],
        chosen: &[Message],
        rejected: &[Message],
    ) -> Refusable<Ids> {
        let prompt = self.with_system(prompt);
        let text =
            |response: &[Message]| render(self.tokenizer, &[&prompt, response].concat(), false);
        let asked = render(self.tokenizer, &prompt, true)?;
        let (chosen, rejected) = (text(chosen)?, text(rejected)?);
        let length = common_start(&asked, &chosen).min(common_start(&asked, &rejected));
        self.with_bos_and_eos(&asked[..length], &chosen[length..], &rejected[length..])
    }

    /// Prompt and response encoded as one text without special tokens, BOS before it and EOS behind it unless they are there.
    fn with_bos_and_eos(&self, prompt: &str, chosen: &str, rejected: &str) -> Refusable<Ids> {
        self.tokenizer.eos_token().map_err(Refused::Tokenizer)?;
        let ids = |response: &str| encode(self.tokenizer, &format!("{prompt}{response}"), false);
        let prompt = encode(self.tokenizer, prompt, false)?;
        let mut ids = self.apart(prompt, ids(chosen)?, ids(rejected)?);
        if let Some(bos) = self.tokenizer.bos_id()
            && ids.prompt.first() != Some(&bos)
        {
            ids.prompt.insert(0, bos);
        }
        for response in [&mut ids.chosen, &mut ids.rejected] {
            if response.last().copied() != self.tokenizer.eos_id() {
                response.extend(self.tokenizer.eos_id());
            }
        }
        Ok(ids)
    }

    /// TRL 0.7.2–0.7.4: prompt and responses are encoded apart, without BOS, and an EOS ends each response (a second one,
    /// where the template wrote one).
    fn handbook_text(&self, prompt: &str, chosen: &str, rejected: &str) -> Refusable<Ids> {
        self.tokenizer.eos_token().map_err(Refused::Tokenizer)?;
        let response = |text: &str| {
            let mut ids = encode(self.tokenizer, text, false)?;
            ids.extend(self.tokenizer.eos_id());
            Ok(ids)
        };
        let prompt = encode(self.tokenizer, prompt, false)?;
        Ok(Ids { prompt, chosen: response(chosen)?, rejected: response(rejected)? })
    }
}

fn not_blank(completion: &str) -> Refusable<()> {
    match completion.trim().is_empty() {
        true => Err(Refused::Row(BadRow::Empty("completion".to_owned()))),
        false => Ok(()),
    }
}

/// Bytes that both texts begin with, to the last whole character.
fn common_start(a: &str, b: &str) -> usize {
    let differ = a.char_indices().zip(b.chars()).find(|((_, x), y)| x != y);
    differ.map_or(a.len().min(b.len()), |((at, _), _)| at)
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

/// Plain texts; without a `prompt` it is what both texts begin with, as TRL's `extract_prompt` cuts it: a blank right before
/// the difference belongs to the responses, and of a text that the other one continues the last character does too.
fn text_sides(chosen: String, rejected: String, prompt: Option<Cell>) -> Result<Sides, BadRow> {
    if chosen == rejected {
        return Err(BadRow::IdenticalSides);
    }
    let sides = match prompt {
        Some(Cell::Text(prompt)) => Sides::Text { prompt, chosen, rejected },
        Some(Cell::Bad(reason)) => return Err(reason),
        Some(Cell::Chat(_) | Cell::Flag(_)) => {
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

/// Chats; the prompt is the messages that both begin with (of a chat that the other one continues, all but the last), unless
/// it is given and both are only responses to it.
fn chat_sides(
    mut chosen: Vec<Message>,
    mut rejected: Vec<Message>,
    given: Option<Vec<Message>>,
) -> Result<Sides, BadRow> {
    if chosen == rejected {
        return Err(BadRow::IdenticalSides);
    }
    for (chat, field) in [(&chosen, "chosen"), (&rejected, "rejected")] {
        match chat.last() {
            None => return Err(BadRow::EmptyChat(field.to_owned())),
            Some(last) if last.content.trim().is_empty() => {
                return Err(BadRow::Empty(field.to_owned()));
            }
            Some(_) => {}
        }
    }
    let differ = chosen.iter().zip(&rejected).position(|(a, b)| a != b);
    let shared = differ.unwrap_or(chosen.len().min(rejected.len()) - 1);
    let includes =
        |prompt: &Vec<Message>| chosen.starts_with(prompt) && rejected.starts_with(prompt);
    let prompt = match given {
        Some(prompt) if shared == 0 || (prompt.len() > 1 && !includes(&prompt)) => prompt,
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

/// TRL: the responses begin where the prompt's ids, and the ids of prompt and response, are no longer the same in both.
fn apart(mut prompt: Vec<u32>, mut chosen: Vec<u32>, mut rejected: Vec<u32>) -> Ids {
    let shared = |whole: &[u32]| prompt.iter().zip(whole).take_while(|(a, b)| a == b).count();
    let length = shared(&chosen).min(shared(&rejected));
    prompt.truncate(length);
    chosen.drain(..length);
    rejected.drain(..length);
    Ids { prompt, chosen, rejected }
}

/// Cuts a pair to the lengths of the recipe; `None` where no token of a response is left.
fn truncate(
    mut ids: Ids,
    lengths: &Lengths,
    preprocessing: Preprocessing,
) -> Option<PreferencePair> {
    if let Some(length) = lengths.max_completion_length {
        ids.chosen.truncate(length);
        ids.rejected.truncate(length);
    }
    if lengths.max_prompt_length.is_some() || preprocessing == Preprocessing::HandbookV1 {
        truncate_until_trl_0_11(&mut ids, lengths);
    } else if let Some(length) = lengths.max_length {
        match lengths.truncation_mode {
            Truncation::KeepStart => keep_start(&mut ids, length),
            Truncation::KeepEnd => keep_end(&mut ids, length),
        }
    }
    let Ids { prompt, chosen, rejected } = ids;
    (!chosen.is_empty() && !rejected.is_empty()).then_some(PreferencePair {
        prompt,
        chosen,
        rejected,
    })
}

fn keep_start(ids: &mut Ids, length: usize) {
    let room = length.saturating_sub(ids.prompt.len());
    ids.chosen.truncate(room);
    ids.rejected.truncate(room);
}

/// The last `length` tokens. TRL cuts the two sequences one by one, so that a long response leaves its side less of the prompt
/// than the other side has; here both keep the prompt that the longer one has room for.
fn keep_end(ids: &mut Ids, length: usize) {
    keep_last(&mut ids.chosen, length);
    keep_last(&mut ids.rejected, length);
    keep_last(&mut ids.prompt, length - ids.chosen.len().max(ids.rejected.len()));
}

fn keep_last(ids: &mut Vec<u32>, length: usize) {
    ids.drain(..ids.len().saturating_sub(length));
}

/// Only a pair that is longer than `max_length` is cut: first its prompt to `max_prompt_length` (from the end that
/// `truncation_mode` says), then, if that is not enough, the responses to `max_length − max_prompt_length`, even where the
/// prompt is shorter than that.
fn truncate_until_trl_0_11(ids: &mut Ids, lengths: &Lengths) {
    let Some(length) = lengths.max_length else { return };
    let too_long = |ids: &Ids| ids.prompt.len() + ids.chosen.len().max(ids.rejected.len()) > length;
    if let (true, Some(prompt)) = (too_long(ids), lengths.max_prompt_length) {
        match lengths.truncation_mode {
            Truncation::KeepStart => ids.prompt.truncate(prompt),
            Truncation::KeepEnd => keep_last(&mut ids.prompt, prompt),
        }
    }
    if too_long(ids) {
        let room = length.saturating_sub(lengths.max_prompt_length.unwrap_or(ids.prompt.len()));
        ids.chosen.truncate(room);
        ids.rejected.truncate(room);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(max_length: usize, max_prompt_length: Option<usize>, mode: Truncation) -> Lengths {
        Lengths {
            max_length: Some(max_length),
            max_prompt_length,
            max_completion_length: None,
            truncation_mode: mode,
        }
    }

    fn ids() -> Ids {
        Ids { prompt: vec![1, 2, 3, 4], chosen: vec![5, 6, 7, 8], rejected: vec![9, 10] }
    }

    fn cut(settings: &Lengths) -> Option<[Vec<u32>; 3]> {
        truncate(ids(), settings, Preprocessing::Trl)
            .map(|pair| [pair.prompt, pair.chosen, pair.rejected])
    }

    #[test]
    fn keep_start_cuts_the_ends_and_drops_what_has_no_room() {
        let keep = |length| cut(&settings(length, None, Truncation::KeepStart));
        assert_eq!(keep(8), Some([vec![1, 2, 3, 4], vec![5, 6, 7, 8], vec![9, 10]]));
        assert_eq!(keep(7), Some([vec![1, 2, 3, 4], vec![5, 6, 7], vec![9, 10]]));
        assert_eq!(keep(5), Some([vec![1, 2, 3, 4], vec![5], vec![9]]));
        assert_eq!(keep(4), None);
    }

    #[test]
    fn keep_end_cuts_the_starts_and_keeps_the_prompt_common() {
        let keep = |length| cut(&settings(length, None, Truncation::KeepEnd));
        assert_eq!(keep(6), Some([vec![3, 4], vec![5, 6, 7, 8], vec![9, 10]]));
        assert_eq!(keep(3), Some([vec![], vec![6, 7, 8], vec![9, 10]]));
    }

    #[test]
    fn a_prompt_limit_counts_only_for_pairs_that_are_too_long() {
        let keep = |length, prompt, mode| cut(&settings(length, Some(prompt), mode));
        let whole = Some([vec![1, 2, 3, 4], vec![5, 6, 7, 8], vec![9, 10]]);
        assert_eq!(keep(8, 2, Truncation::KeepEnd), whole);
        assert_eq!(
            keep(7, 3, Truncation::KeepEnd),
            Some([vec![2, 3, 4], vec![5, 6, 7, 8], vec![9, 10]])
        );
        assert_eq!(
            keep(7, 3, Truncation::KeepStart),
            Some([vec![1, 2, 3], vec![5, 6, 7, 8], vec![9, 10]])
        );
        assert_eq!(keep(5, 2, Truncation::KeepEnd), Some([vec![3, 4], vec![5, 6, 7], vec![9, 10]]));
        // The prompt is shorter than its limit; the responses are cut as if it were not.
        assert_eq!(keep(7, 6, Truncation::KeepEnd), Some([vec![1, 2, 3, 4], vec![5], vec![9]]));
        assert_eq!(keep(6, 6, Truncation::KeepEnd), None);
    }

    #[test]
    fn responses_begin_where_the_ids_differ() {
        let whole = apart(vec![1, 2, 3], vec![1, 2, 3, 4], vec![1, 2, 3, 5]);
        assert_eq!(whole, Ids { prompt: vec![1, 2, 3], chosen: vec![4], rejected: vec![5] });
        let merged = apart(vec![1, 2, 3], vec![1, 2, 3, 4], vec![1, 2, 35]);
        assert_eq!(merged, Ids { prompt: vec![1, 2], chosen: vec![3, 4], rejected: vec![35] });
    }

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
        assert_eq!(
            prompt_of(chat_sides(chosen.clone(), rejected.clone(), Some(prompt.clone()))),
            (prompt.clone(), 1)
        );
        assert_eq!(
            prompt_of(chat_sides(
                chosen[1..].to_vec(),
                rejected[1..].to_vec(),
                Some(prompt.clone())
            )),
            (prompt, 1)
        );
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
