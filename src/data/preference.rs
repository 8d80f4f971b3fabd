//! A preference row → prompt, chosen and rejected token ids.
//!
//! Three semantics exist, and the rows of TPO, which follow the first of them.
//! [`Preprocessing::Trl`] is TRL 1.16 (`DPOTrainer._prepare_dataset`). [`Preprocessing::TrlText`]
//! is TRL's older method, which its trainers of ORPO and CPO still use.
//! [`Preprocessing::HandbookV1`] is the alignment-handbook's first version with TRL 0.7.2–0.7.4,
//! which produced Zephyr-7B-β.
//!
//! Two quirks of the last one are not reproduced. It gave EOS tokens inside the text the attention
//! mask 0; here they are normal tokens. For rows with a system turn, or whose first turn is not the
//! user's, its `chosen[1:]` repeated the prompt in the response; here the response starts after the
//! first user turn.

mod sides;
mod triple;
mod truncation;

use std::sync::Once;

use self::{
    sides::{GivenPrompt, Sides, chat_sides, text_sides},
    truncation::{Ids, apart, truncate},
};
use super::LabelledCompletion;
use super::Message;
use super::PreferencePair;
use super::Tokenizer;
use super::TokenizerError;
use super::report::BadRow;
use super::row::{
    Outcome, Refusable, Refused, as_turn, check_response, checked, encode, in_one_form, render,
    with_system,
};
use super::source::Cell;
use super::template_values::TemplateValues;
use crate::recipe::{Lengths, Preprocessing};

const ASSISTANT_PREFIX: &str = "<|assistant|>\n";

/// The settings that determine the token ids of a row.
pub(super) struct PreferenceRules<'a> {
    pub tokenizer: &'a Tokenizer,
    pub lengths: &'a Lengths,
    pub preprocessing: Preprocessing,
    /// Insert an empty system message into chats that have none.
    pub insert_system: bool,
    /// Completed once the warning about a prompt that loses its end was shown.
    pub warned: Once,
}

impl PreferenceRules<'_> {
    /// Makes a pair from a row's `chosen`, `rejected` and, if the data set has that column,
    /// `prompt`. `values` go to the chat template.
    pub fn pair(
        &self,
        chosen: Cell,
        rejected: Cell,
        prompt: Option<Cell>,
        values: &TemplateValues,
    ) -> Result<Outcome<PreferencePair>, TokenizerError> {
        match self.whole_pair(chosen, rejected, prompt, values)? {
            Outcome::Kept(ids) => Ok(truncate(ids, self.lengths, self.preprocessing)
                .map_or(Outcome::NoRoom, Outcome::Kept)),
            Outcome::NoRoom => Ok(Outcome::NoRoom),
            Outcome::NoLabel => Ok(Outcome::NoLabel),
            Outcome::Bad(reason) => Ok(Outcome::Bad(reason)),
        }
    }

    /// The ids of a row before truncation.
    fn whole_pair(
        &self,
        chosen: Cell,
        rejected: Cell,
        prompt: Option<Cell>,
        values: &TemplateValues,
    ) -> Result<Outcome<Ids>, TokenizerError> {
        let sides = match self.sides(chosen, rejected, prompt) {
            Ok(sides) => sides,
            Err(reason) => return Ok(Outcome::Bad(reason)),
        };
        let ids = match (self.preprocessing, sides) {
            (Preprocessing::Trl, Sides::Chat { prompt, chosen, rejected }) => {
                self.trl_chat(&prompt, &chosen, &rejected, None, values)
            }
            (Preprocessing::Trl, Sides::Text { prompt, chosen, rejected }) => {
                self.trl_text(&prompt, &chosen, &rejected, None)
            }
            (Preprocessing::HandbookV1, Sides::Chat { prompt, chosen, rejected }) => {
                self.handbook_chat(prompt, chosen, rejected, values)
            }
            (Preprocessing::HandbookV1, Sides::Text { prompt, chosen, rejected }) => {
                self.handbook_text(&prompt, &chosen, &rejected)
            }
            (Preprocessing::TrlText, Sides::Chat { prompt, chosen, rejected }) => {
                self.templated(&prompt, &chosen, &rejected, values)
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

    /// Makes the two labelled rows of a pair, if the prompt leaves room for a response; see
    /// [`LabelledCompletion`].
    pub fn unpaired(
        &self,
        chosen: Cell,
        rejected: Cell,
        prompt: Option<Cell>,
        values: &TemplateValues,
    ) -> Result<Outcome<Vec<LabelledCompletion>>, TokenizerError> {
        Ok(match self.whole_pair(chosen, rejected, prompt, values)? {
            Outcome::Kept(Ids { prompt, chosen, rejected, .. }) => {
                let row = |completion, label| LabelledCompletion {
                    prompt: prompt.clone(),
                    completion,
                    label,
                };
                let rows = vec![row(chosen, true), row(rejected, false)];
                self.with_room(rows)
            }
            Outcome::NoRoom => Outcome::NoRoom,
            Outcome::NoLabel => Outcome::NoLabel,
            Outcome::Bad(reason) => Outcome::Bad(reason),
        })
    }

    /// Makes the row of a `prompt`, a `completion` and a `label`.
    pub fn labelled(
        &self,
        prompt: Cell,
        completion: Cell,
        label: Cell,
        values: &TemplateValues,
    ) -> Result<Outcome<Vec<LabelledCompletion>>, TokenizerError> {
        match self.labelled_row(prompt, completion, label, values) {
            Ok(row) => Ok(self.with_room(vec![row])),
            Err(refused) => refused.into_outcome(),
        }
    }

    fn with_room(&self, rows: Vec<LabelledCompletion>) -> Outcome<Vec<LabelledCompletion>> {
        match self.lengths.max_length {
            Some(length) if rows[0].prompt.len() >= length => Outcome::NoRoom,
            _ => Outcome::Kept(rows),
        }
    }

    fn labelled_row(
        &self,
        prompt: Cell,
        completion: Cell,
        label: Cell,
        values: &TemplateValues,
    ) -> Refusable<LabelledCompletion> {
        let label = match label {
            Cell::Flag(label) => label,
            Cell::Bad(reason) => return Err(Refused::Row(reason)),
            _ => return Err(Refused::Row(BadRow::NotALabel)),
        };
        let (prompt, whole) = match in_one_form(prompt, completion) {
            (Cell::Bad(reason), _) | (_, Cell::Bad(reason)) => return Err(Refused::Row(reason)),
            (Cell::Chat(prompt), Cell::Chat(completion)) => {
                let prompt = self.prepared(prompt, "prompt").map_err(Refused::Row)?;
                let completion = self.prepared(completion, "completion").map_err(Refused::Row)?;
                check_response(&completion, "completion").map_err(Refused::Row)?;
                let prompt = self.with_system(&prompt);
                let ids = |chat: &[Message], generate| {
                    encode(self.tokenizer, &render(self.tokenizer, chat, generate, values)?, false)
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
        let Ids { prompt, chosen: completion, .. } = self.apart(prompt, whole.clone(), whole, None);
        match completion.is_empty() {
            true => Err(Refused::Row(BadRow::Empty("completion".to_owned()))),
            false => Ok(LabelledCompletion { prompt, completion, label }),
        }
    }

    fn sides(
        &self,
        mut chosen: Cell,
        mut rejected: Cell,
        prompt: Option<Cell>,
    ) -> Result<Sides, BadRow> {
        if let Some(Cell::Chat(_)) = prompt {
            chosen = as_turn(chosen, "assistant");
            rejected = as_turn(rejected, "assistant");
        }
        match (chosen, rejected) {
            (Cell::Bad(reason), _) | (_, Cell::Bad(reason)) => Err(reason),
            (Cell::Text(chosen), Cell::Text(rejected)) => text_sides(chosen, rejected, prompt),
            (Cell::Chat(chosen), Cell::Chat(rejected)) => {
                let chosen = self.prepared(chosen, "chosen")?;
                let rejected = self.prepared(rejected, "rejected")?;
                let prompt = match prompt {
                    Some(Cell::Chat(prompt)) => {
                        Some(GivenPrompt::Chat(self.prepared(prompt, "prompt")?))
                    }
                    Some(Cell::Text(prompt)) => Some(GivenPrompt::Text(prompt)),
                    Some(Cell::Bad(reason)) => return Err(reason),
                    Some(_) => return Err(BadRow::WrongType("prompt".to_owned())),
                    None => None,
                };
                chat_sides(chosen, rejected, prompt)
            }
            _ => Err(BadRow::WrongType("rejected".to_owned())),
        }
    }

    fn prepared(&self, chat: Vec<Message>, field: &str) -> Result<Vec<Message>, BadRow> {
        checked(self.tokenizer, chat, field)
    }

    fn with_system(&self, prompt: &[Message]) -> Vec<Message> {
        with_system(prompt, self.insert_system)
    }

    fn apart(
        &self,
        prompt: Vec<u32>,
        chosen: Vec<u32>,
        rejected: Vec<u32>,
        gold: Option<Vec<u32>>,
    ) -> Ids {
        let whole = prompt.len();
        let ids = apart(prompt, chosen, rejected, gold);
        if ids.prompt.len() < whole {
            self.warned.call_once(|| {
                tracing::warn!(
                    "a prompt does not end where its response begins: the chat template writes \
                     a prompt without response \
                     differently, or tokens merge across the boundary; the response begins where \
                     the ids differ"
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
        gold: Option<&[Message]>,
        values: &TemplateValues,
    ) -> Refusable<Ids> {
        let prompt = self.with_system(prompt);
        let ids = |response: &[Message], generate: bool| {
            let chat = [&prompt, response].concat();
            encode(self.tokenizer, &render(self.tokenizer, &chat, generate, values)?, false)
        };
        let gold = gold.map(|gold| ids(gold, false)).transpose()?;
        Ok(self.apart(ids(&[], true)?, ids(chosen, false)?, ids(rejected, false)?, gold))
    }

    fn trl_text(
        &self,
        prompt: &str,
        chosen: &str,
        rejected: &str,
        gold: Option<&str>,
    ) -> Refusable<Ids> {
        let eos = self.tokenizer.eos_token().map_err(Refused::Tokenizer)?;
        let ids = |response: &str| {
            let end = if response.ends_with(eos) { "" } else { eos };
            encode(self.tokenizer, &format!("{prompt}{response}{end}"), true)
        };
        let gold = gold.map(ids).transpose()?;
        let prompt = encode(self.tokenizer, prompt, true)?;
        Ok(self.apart(prompt, ids(chosen)?, ids(rejected)?, gold))
    }

    /// The handbook's prompt is the system message (an empty one if missing) and the first user
    /// turn.
    fn handbook_chat(
        &self,
        mut prompt: Vec<Message>,
        mut chosen: Vec<Message>,
        mut rejected: Vec<Message>,
        values: &TemplateValues,
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
            let text = render(self.tokenizer, chat, false, values)?;
            Ok(text.strip_prefix(ASSISTANT_PREFIX).unwrap_or(&text).to_owned())
        };
        let prompt = render(self.tokenizer, &prompt, true, values)?;
        self.handbook_text(&prompt, &text(&chosen)?, &text(&rejected)?)
    }

    /// TRL's ORPO and CPO render the chat template first and treat the results as plain texts. The
    /// prompt's text is the longest common prefix with both chats; a response is the rest of its
    /// chat.
    fn templated(
        &self,
        prompt: &[Message],
        chosen: &[Message],
        rejected: &[Message],
        values: &TemplateValues,
    ) -> Refusable<Ids> {
        let prompt = self.with_system(prompt);
        let text = |response: &[Message]| {
            render(self.tokenizer, &[&prompt, response].concat(), false, values)
        };
        let asked = render(self.tokenizer, &prompt, true, values)?;
        let (chosen, rejected) = (text(chosen)?, text(rejected)?);
        let length = common_start(&asked, &chosen).min(common_start(&asked, &rejected));
        self.with_bos_and_eos(&asked[..length], &chosen[length..], &rejected[length..])
    }

    /// Encodes prompt and response as one text without special tokens; adds BOS before it and EOS
    /// after it if they are missing.
    fn with_bos_and_eos(&self, prompt: &str, chosen: &str, rejected: &str) -> Refusable<Ids> {
        self.tokenizer.eos_token().map_err(Refused::Tokenizer)?;
        let ids = |response: &str| encode(self.tokenizer, &format!("{prompt}{response}"), false);
        let prompt = encode(self.tokenizer, prompt, false)?;
        let mut ids = self.apart(prompt, ids(chosen)?, ids(rejected)?, None);
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

    /// TRL 0.7.2–0.7.4: prompt and responses are encoded separately, without BOS. An EOS is added
    /// to each response, even if the template wrote one.
    fn handbook_text(&self, prompt: &str, chosen: &str, rejected: &str) -> Refusable<Ids> {
        self.tokenizer.eos_token().map_err(Refused::Tokenizer)?;
        let response = |text: &str| {
            let mut ids = encode(self.tokenizer, text, false)?;
            ids.extend(self.tokenizer.eos_id());
            Ok(ids)
        };
        let prompt = encode(self.tokenizer, prompt, false)?;
        let (chosen, rejected) = (response(chosen)?, response(rejected)?);
        Ok(Ids { prompt, chosen, rejected, gold: Vec::new() })
    }
}

fn not_blank(completion: &str) -> Refusable<()> {
    match completion.trim().is_empty() {
        true => Err(Refused::Row(BadRow::Empty("completion".to_owned()))),
        false => Ok(()),
    }
}

/// Length in bytes of the common prefix of both texts, in whole characters.
fn common_start(a: &str, b: &str) -> usize {
    let differ = a.char_indices().zip(b.chars()).find(|((_, x), y)| x != y);
    differ.map_or(a.len().min(b.len()), |((at, _), _)| at)
}
