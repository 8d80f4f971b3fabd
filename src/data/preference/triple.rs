//! A row of TPO → prompt, chosen, rejected and gold token ids, as TRL 1.16 makes them
//! (`TPOTrainer._prepare_dataset`).

use super::PreferenceRules;
use super::sides::Sides;
use super::truncation::{Ids, truncate};
use crate::data::Message;
use crate::data::PreferencePair;
use crate::data::TokenizerError;
use crate::data::report::BadRow;
use crate::data::row::{Outcome, Refusable, Refused, as_turn, check_response};
use crate::data::source::Cell;
use crate::data::template_values::TemplateValues;

/// The column of the gold response.
const GOLD: &str = "reference";

impl PreferenceRules<'_> {
    /// Makes a pair with a gold response from a row's `chosen`, `rejected` and `reference` and, if
    /// the data set has that column, its `prompt`. Without a prompt, it is what the pair has in
    /// common, and the gold response must begin with it. `keeps_gold`: whether the gold response is
    /// computed; the prompt ends where the first of the three responses begins in any case.
    pub fn triple(
        &self,
        [chosen, rejected, gold]: [Cell; 3],
        prompt: Option<Cell>,
        keeps_gold: bool,
        values: &TemplateValues,
    ) -> Result<Outcome<PreferencePair>, TokenizerError> {
        let mut ids = match self.triple_ids([chosen, rejected, gold], prompt, values) {
            Ok(ids) => ids,
            Err(refused) => return refused.into_outcome(),
        };
        if !keeps_gold {
            ids.gold.clear();
        }
        let pair = truncate(ids, self.lengths, self.preprocessing);
        Ok(pair.map_or(Outcome::NoRoom, Outcome::Kept))
    }

    /// The ids of a row before truncation.
    fn triple_ids(
        &self,
        [chosen, rejected, gold]: [Cell; 3],
        prompt: Option<Cell>,
        values: &TemplateValues,
    ) -> Refusable<Ids> {
        let is_given = prompt.is_some();
        let ids = match self.sides(chosen, rejected, prompt).map_err(Refused::Row)? {
            Sides::Chat { prompt, chosen, rejected } => {
                let gold = self.gold_turns(gold, &prompt, is_given).map_err(Refused::Row)?;
                self.trl_chat(&prompt, &chosen, &rejected, Some(&gold), values)?
            }
            Sides::Text { prompt, chosen, rejected } => {
                let gold = gold_text(gold, &prompt, is_given).map_err(Refused::Row)?;
                self.trl_text(&prompt, &chosen, &rejected, Some(&gold))?
            }
        };
        let sides = [("chosen", &ids.chosen), ("rejected", &ids.rejected), (GOLD, &ids.gold)];
        let empty = sides.into_iter().find(|(_, side)| side.is_empty());
        match empty.map(|(name, _)| BadRow::Empty(name.to_owned())) {
            Some(reason) => Err(Refused::Row(reason)),
            None => Ok(ids),
        }
    }

    /// The turns of the gold response, which end in an assistant turn.
    fn gold_turns(
        &self,
        gold: Cell,
        prompt: &[Message],
        prompt_is_given: bool,
    ) -> Result<Vec<Message>, BadRow> {
        let chat = match as_turn(gold, "assistant") {
            Cell::Chat(chat) => self.prepared(chat, GOLD)?,
            Cell::Bad(reason) => return Err(reason),
            _ => return Err(BadRow::WrongType(GOLD.to_owned())),
        };
        let response = match chat.strip_prefix(prompt) {
            Some(response) => response.to_vec(),
            None if prompt_is_given => chat,
            None => return Err(BadRow::OtherPrompt(GOLD.to_owned())),
        };
        check_response(&response, GOLD)?;
        Ok(response)
    }
}

/// The text of the gold response.
fn gold_text(gold: Cell, prompt: &str, prompt_is_given: bool) -> Result<String, BadRow> {
    let text = match gold {
        Cell::Text(text) => text,
        Cell::Bad(reason) => return Err(reason),
        _ => return Err(BadRow::WrongType(GOLD.to_owned())),
    };
    let response = match text.strip_prefix(prompt) {
        _ if prompt_is_given => text,
        Some(response) => response.to_owned(),
        None => return Err(BadRow::OtherPrompt(GOLD.to_owned())),
    };
    match response.trim().is_empty() {
        true => Err(BadRow::Empty(GOLD.to_owned())),
        false => Ok(response),
    }
}
