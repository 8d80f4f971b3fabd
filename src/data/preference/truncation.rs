//! The token ids of a pair: finds the start of the responses, and truncates to the recipe's
//! lengths.

use crate::data::PreferencePair;
use crate::recipe::{Lengths, Preprocessing, Truncation};

/// Token ids before truncation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    pub prompt: Vec<u32>,
    pub chosen: Vec<u32>,
    pub rejected: Vec<u32>,
    /// The gold response of TPO; empty if the row has none.
    pub gold: Vec<u32>,
}

/// As in TRL: the responses start at the first id at which the prompt and the full sequences
/// differ. `gold` is the third full sequence of TPO.
pub fn apart(
    mut prompt: Vec<u32>,
    chosen: Vec<u32>,
    rejected: Vec<u32>,
    gold: Option<Vec<u32>>,
) -> Ids {
    let shared = |whole: &Vec<u32>| prompt.iter().zip(whole).take_while(|(a, b)| a == b).count();
    let wholes = [&chosen, &rejected].into_iter().chain(&gold);
    let length = wholes.map(shared).min().unwrap_or(0);
    prompt.truncate(length);
    let response = |mut whole: Vec<u32>| {
        whole.drain(..length);
        whole
    };
    Ids {
        prompt,
        chosen: response(chosen),
        rejected: response(rejected),
        gold: gold.map(response).unwrap_or_default(),
    }
}

/// Truncates a pair to the lengths of the recipe; `None` if a response becomes empty.
pub fn truncate(
    mut ids: Ids,
    lengths: &Lengths,
    preprocessing: Preprocessing,
) -> Option<PreferencePair> {
    if let Some(length) = lengths.max_completion_length {
        ids.responses().for_each(|response| response.truncate(length));
    }
    if lengths.max_prompt_length.is_some() || preprocessing == Preprocessing::HandbookV1 {
        truncate_until_trl_0_11(&mut ids, lengths);
    } else if let Some(length) = lengths.max_length {
        match lengths.truncation_mode {
            Truncation::KeepStart => keep_start(&mut ids, length),
            Truncation::KeepEnd => keep_end(&mut ids, length),
        }
    }
    let Ids { prompt, chosen, rejected, gold } = ids;
    (!chosen.is_empty() && !rejected.is_empty()).then_some(PreferencePair {
        prompt,
        chosen,
        rejected,
        gold,
    })
}

impl Ids {
    fn responses(&mut self) -> impl Iterator<Item = &mut Vec<u32>> {
        [&mut self.chosen, &mut self.rejected, &mut self.gold].into_iter()
    }
}

fn keep_start(ids: &mut Ids, length: usize) {
    let room = length.saturating_sub(ids.prompt.len());
    ids.responses().for_each(|response| response.truncate(room));
}

/// Keeps the last `length` tokens. TRL truncates the sequences separately, so that the side with
/// the longer response keeps less of the prompt; here all sides keep the prompt that fits the
/// longest response.
fn keep_end(ids: &mut Ids, length: usize) {
    ids.responses().for_each(|response| keep_last(response, length));
    let longest = ids.responses().map(|response| response.len()).max().unwrap_or(0);
    keep_last(&mut ids.prompt, length - longest);
}

fn keep_last(ids: &mut Vec<u32>, length: usize) {
    ids.drain(..ids.len().saturating_sub(length));
}

/// Truncates only pairs that are longer than `max_length`: first the prompt to `max_prompt_length`
/// (at the end that `truncation_mode` says), then, if still too long, the responses to `max_length
/// − max_prompt_length`, even if the prompt is shorter than its limit.
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
        let (prompt, chosen) = (vec![1, 2, 3, 4], vec![5, 6, 7, 8]);
        Ids { prompt, chosen, rejected: vec![9, 10], gold: vec![] }
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
        // The prompt is shorter than its limit, but the responses are truncated as if it were not.
        assert_eq!(keep(7, 6, Truncation::KeepEnd), Some([vec![1, 2, 3, 4], vec![5], vec![9]]));
        assert_eq!(keep(6, 6, Truncation::KeepEnd), None);
    }

    #[test]
    fn responses_begin_where_the_ids_differ() {
        let parts = |[chosen, rejected]: [Vec<u32>; 2], gold| {
            let Ids { prompt, chosen, rejected, gold } =
                apart(vec![1, 2, 3], chosen, rejected, gold);
            [prompt, chosen, rejected, gold]
        };
        let sides = [vec![1, 2, 3, 4], vec![1, 2, 3, 5]];
        assert_eq!(parts(sides.clone(), None), [vec![1, 2, 3], vec![4], vec![5], vec![]]);
        let merged = [vec![1, 2, 3, 4], vec![1, 2, 35]];
        assert_eq!(parts(merged, None), [vec![1, 2], vec![3, 4], vec![35], vec![]]);
        // The gold response counts too.
        let gold = Some(vec![1, 23]);
        assert_eq!(parts(sides, gold), [vec![1], vec![2, 3, 4], vec![2, 3, 5], vec![23]]);
    }

    #[test]
    fn a_gold_response_is_cut_like_the_others() {
        let with_gold = || Ids { gold: vec![11, 12, 13, 14, 15], ..ids() };
        let cut = |length, mode| {
            let settings = settings(length, None, mode);
            let pair = truncate(with_gold(), &settings, Preprocessing::Trl).unwrap();
            [pair.prompt, pair.chosen, pair.rejected, pair.gold]
        };
        let start = [vec![1, 2, 3, 4], vec![5, 6], vec![9, 10], vec![11, 12]];
        assert_eq!(cut(6, Truncation::KeepStart), start);
        let end = [vec![4], vec![5, 6, 7, 8], vec![9, 10], vec![11, 12, 13, 14, 15]];
        assert_eq!(cut(6, Truncation::KeepEnd), end);
    }
}
