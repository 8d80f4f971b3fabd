//! Log-probs of the frozen reference: computed once, and stored under the hash of all that they
//! depend on.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::desirable_length::weighted_sums;
use crate::data::TwoResponses;
use crate::data::ragged::{RaggedBatch, within_budget};
use crate::files::replace::replace_cache_file;
use crate::kernels::linear_logp::token_scores;
use crate::kernels::timed;
use crate::model::decoder::Decoder;

/// Most tokens of one batch of the reference pass. A single row that has more is a batch of its
/// own.
pub const TOKENS_A_BATCH: usize = 4096;

/// Log-probs of both responses of each row under the reference, in nats, `[rows]` each.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReferenceLogps {
    /// Those of the chosen responses of pairs, or of the completions of KTO's rows.
    pub first: Vec<f64>,
    /// Those of the rejected responses of pairs, or of the mismatched completions of KTO's rows.
    pub second: Vec<f64>,
}

impl ReferenceLogps {
    /// Log-probs of one of [`batches`], without gradients: for each row the log-prob of its first
    /// response, then that of its second, `[2 · rows]`. `ld_alpha` is the α of LD-DPO.
    pub fn of_batch(
        reference: &Decoder,
        batch: &[impl TwoResponses],
        ld_alpha: Option<f64>,
    ) -> Vec<f64> {
        timed!("reference pass");
        sequence_logps(reference, &RaggedBatch::responses(batch), ld_alpha)
    }

    /// Joins the results of [`Self::of_batch`] for all batches.
    pub fn join(batches: impl IntoIterator<Item = Vec<f64>>) -> Self {
        let mut all = Self::default();
        for sums in batches {
            all.first.extend(sums.iter().step_by(2));
            all.second.extend(sums.iter().skip(1).step_by(2));
        }
        all
    }

    /// Appends the log-probs of the rows that follow.
    pub fn extend(&mut self, other: Self) {
        self.first.extend(other.first);
        self.second.extend(other.second);
    }

    /// Log-probs of the rows at the indices `rows` as log-probs of all rows, `count` of them. Those
    /// of the other rows are NaN: they must not be read.
    pub fn spread(&self, rows: &[usize], count: usize) -> Self {
        let spread = |values: &[f64]| {
            let mut all = vec![f64::NAN; count];
            rows.iter().zip(values).for_each(|(row, value)| all[*row] = *value);
            all
        };
        Self { first: spread(&self.first), second: spread(&self.second) }
    }

    /// The name under which log-probs of these rows under these weights are stored.
    pub fn key<'r, R: TwoResponses + 'r>(
        weights: &[u8; 32],
        rows: impl Iterator<Item = Cow<'r, R>>,
        settings: &str,
    ) -> String {
        let mut hash = blake3::Hasher::new();
        hash.update(b"reference log-probs 1").update(weights).update(settings.as_bytes());
        for row in rows {
            let [first, second] = row.responses();
            for ids in [row.prompt(), first, second] {
                hash.update(&(ids.len() as u64).to_le_bytes());
                hash.update(bytemuck::cast_slice(ids));
            }
        }
        hash.finalize().to_hex()[..32].to_string()
    }

    /// Reads log-probs of `rows` rows that [`Self::store`] wrote. `None` if no file exists, or a
    /// damaged one.
    pub fn read(folder: &Path, key: &str, rows: usize) -> Option<Self> {
        let bytes = std::fs::read(path(folder, key)).ok()?;
        let (checksum, body) = bytes.split_at_checked(32)?;
        if blake3::hash(body).as_bytes() != checksum || body.len() != rows * 16 {
            tracing::warn!("stored reference log-probs {key} are damaged; computing them again");
            return None;
        }
        let number = |bytes: &[u8; 8]| f64::from_le_bytes(*bytes);
        let values: Vec<f64> = body.as_chunks::<8>().0.iter().map(number).collect();
        let (first, second) = values.split_at(rows);
        Some(Self { first: first.to_vec(), second: second.to_vec() })
    }

    /// Stores the log-probs in `folder` under `key`. A reader never sees half a file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn store(&self, folder: &Path, key: &str) -> std::io::Result<()> {
        let values = self.first.iter().chain(&self.second);
        let body: Vec<u8> = values.flat_map(|value| value.to_le_bytes()).collect();
        let bytes = [blake3::hash(&body).as_bytes().as_slice(), &body].concat();
        replace_cache_file(&path(folder, key), &bytes)
    }

    /// Removes the file that [`Self::store`] wrote. A file that cannot be removed does no harm.
    pub fn forget(folder: &Path, key: &str) {
        if let Err(error) = std::fs::remove_file(path(folder, key)) {
            tracing::debug!("stored reference log-probs {key} are not removed: {error}");
        }
    }
}

/// Log-prob of each sequence of a batch, in nats, `[sequences]`. `ld_alpha` is that of LD-DPO.
pub fn sequence_logps(model: &Decoder, batch: &RaggedBatch, ld_alpha: Option<f64>) -> Vec<f64> {
    let scores = token_scores(model.scored_states(batch), model.output_head(), &batch.targets);
    weighted_sums(batch, &scores.logp, ld_alpha)
}

fn path(folder: &Path, key: &str) -> PathBuf {
    folder.join(format!("reference-{key}.logps"))
}

/// The numbers of rows of batches of consecutive rows with at most [`TOKENS_A_BATCH`] tokens.
/// `tokens` are those of each row. Ranks share the batches, so these depend on the rows alone.
pub fn batch_sizes(tokens: &[usize]) -> Vec<usize> {
    within_budget(tokens, TOKENS_A_BATCH, |tokens| *tokens).into_iter().map(<[_]>::len).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::PreferencePair;

    fn pair(len: usize) -> PreferencePair {
        let [prompt, chosen, rejected] = [vec![1; len], vec![2, 3], vec![4]];
        PreferencePair { prompt, chosen, rejected, gold: vec![] }
    }

    #[test]
    fn batches_keep_to_the_budget_and_lose_no_pair() {
        let tokens = [2000, 2000, 5000, 10, 10].map(|len| pair(len).tokens());
        assert_eq!(batch_sizes(&tokens), [2, 1, 2]);
        assert!(batch_sizes(&[]).is_empty());
    }

    #[test]
    fn stored_log_probs_come_back_and_damaged_ones_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let logps = ReferenceLogps { first: vec![-1.5, -2.25], second: vec![-0.1, -1e4] };
        let key =
            ReferenceLogps::key(&[7; 32], [3, 4].map(pair).iter().map(Cow::Borrowed), "float32");
        logps.store(folder.path(), &key).unwrap();
        assert_eq!(ReferenceLogps::read(folder.path(), &key, 2), Some(logps));
        assert_eq!(ReferenceLogps::read(folder.path(), &key, 3), None);
        let file = path(folder.path(), &key);
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[40] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        assert_eq!(ReferenceLogps::read(folder.path(), &key, 2), None);
    }

    #[test]
    fn the_key_depends_on_weights_rows_and_settings() {
        let key =
            |w: u8, len, s| ReferenceLogps::key(&[w; 32], [pair(len)].iter().map(Cow::Borrowed), s);
        assert_eq!(key(1, 3, "a"), key(1, 3, "a"));
        assert_ne!(key(1, 3, "a"), key(2, 3, "a"));
        assert_ne!(key(1, 3, "a"), key(1, 4, "a"));
        assert_ne!(key(1, 3, "a"), key(1, 3, "b"));
    }
}
