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
}

/// As in TRL: the responses start at the first id at which the prompt and the full sequences
/// differ.
pub fn apart(mut prompt: Vec<u32>, mut chosen: Vec<u32>, mut rejected: Vec<u32>) -> Ids {
    let shared = |whole: &[u32]| prompt.iter().zip(whole).take_while(|(a, b)| a == b).count();
    let length = shared(&chosen).min(shared(&rejected));
    prompt.truncate(length);
    chosen.drain(..length);
    rejected.drain(..length);
    Ids { prompt, chosen, rejected }
}

/// Truncates a pair to the lengths of the recipe; `None` if a response becomes empty.
pub fn truncate(
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

/// Keeps the last `length` tokens. TRL truncates the two sequences separately, so that the side
/// with the longer response keeps less of the prompt; here both sides keep the prompt that fits the
/// longer response.
fn keep_end(ids: &mut Ids, length: usize) {
    keep_last(&mut ids.chosen, length);
    keep_last(&mut ids.rejected, length);
    keep_last(&mut ids.prompt, length - ids.chosen.len().max(ids.rejected.len()));
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
        // The prompt is shorter than its limit, but the responses are truncated as if it were not.
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
}
