//! Log-probs of the frozen reference: computed once, stored by the hash of what they depend on.

use std::path::{Path, PathBuf};

use super::desirable_length::weighted_sums;
use crate::data::PreferencePair;
use crate::data::ragged::{RaggedBatch, within_budget};
use crate::files::replace::replace_shared_file;
use crate::kernels::linear_logp::token_scores;
use crate::kernels::timed;
use crate::model::decoder::Decoder;

/// Tokens of one batch of the reference pass, unless a single pair has more.
pub const TOKENS_A_BATCH: usize = 4096;

/// Log-probs of both responses of each pair under the reference, in nats, `[pairs]` each.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReferenceLogps {
    pub chosen: Vec<f64>,
    pub rejected: Vec<f64>,
}

impl ReferenceLogps {
    /// Log-probs of one of [`batches`], without gradients: of each pair the chosen and the rejected
    /// response's, `[2 · pairs]`. `ld_alpha` is LD-DPO's.
    pub fn of_batch(
        reference: &Decoder,
        batch: &[PreferencePair],
        ld_alpha: Option<f64>,
    ) -> Vec<f64> {
        timed!("reference pass");
        sequence_logps(reference, &RaggedBatch::preferences(batch), ld_alpha)
    }

    /// Joins what [`Self::of_batch`] gave for all batches.
    pub fn join(batches: impl IntoIterator<Item = Vec<f64>>) -> Self {
        let mut all = Self::default();
        for sums in batches {
            all.chosen.extend(sums.iter().step_by(2));
            all.rejected.extend(sums.iter().skip(1).step_by(2));
        }
        all
    }

    /// Appends those of the pairs that follow.
    pub fn extend(&mut self, other: Self) {
        self.chosen.extend(other.chosen);
        self.rejected.extend(other.rejected);
    }

    /// Log-probs of the rows `rows` as a set of `pairs` pairs. Those of the others are NaN: nobody may ask for them.
    pub fn spread(&self, rows: &[usize], pairs: usize) -> Self {
        let spread = |values: &[f64]| {
            let mut all = vec![f64::NAN; pairs];
            rows.iter().zip(values).for_each(|(row, value)| all[*row] = *value);
            all
        };
        Self { chosen: spread(&self.chosen), rejected: spread(&self.rejected) }
    }

    /// The name under which log-probs of these pairs under these weights are kept.
    pub fn key(weights: &[u8; 32], pairs: &[PreferencePair], settings: &str) -> String {
        let mut hash = blake3::Hasher::new();
        hash.update(b"reference log-probs 1").update(weights).update(settings.as_bytes());
        for pair in pairs {
            for ids in [&pair.prompt, &pair.chosen, &pair.rejected] {
                hash.update(&(ids.len() as u64).to_le_bytes());
                hash.update(bytemuck::cast_slice(ids));
            }
        }
        hash.finalize().to_hex()[..32].to_string()
    }

    /// Reads what [`Self::store`] wrote; `None` where there is nothing, or nothing whole.
    pub fn read(folder: &Path, key: &str, pairs: usize) -> Option<Self> {
        let bytes = std::fs::read(path(folder, key)).ok()?;
        let (checksum, body) = bytes.split_at_checked(32)?;
        if blake3::hash(body).as_bytes() != checksum || body.len() != pairs * 16 {
            tracing::warn!("stored reference log-probs {key} are damaged; computing them again");
            return None;
        }
        let number = |bytes: &[u8; 8]| f64::from_le_bytes(*bytes);
        let values: Vec<f64> = body.as_chunks::<8>().0.iter().map(number).collect();
        let (chosen, rejected) = values.split_at(pairs);
        Some(Self { chosen: chosen.to_vec(), rejected: rejected.to_vec() })
    }

    /// Keeps the log-probs in `folder` under `key`; a reader never sees half a file.
    pub fn store(&self, folder: &Path, key: &str) -> std::io::Result<()> {
        let values = self.chosen.iter().chain(&self.rejected);
        let body: Vec<u8> = values.flat_map(|value| value.to_le_bytes()).collect();
        let bytes = [blake3::hash(&body).as_bytes().as_slice(), &body].concat();
        replace_shared_file(&path(folder, key), &bytes)
    }

    /// Removes what [`Self::store`] wrote. Where that fails it lies about, and does no harm.
    pub fn forget(folder: &Path, key: &str) {
        if let Err(error) = std::fs::remove_file(path(folder, key)) {
            tracing::debug!("stored reference log-probs {key} are left: {error}");
        }
    }
}

/// Log-prob of each sequence of a batch, in nats, `[sequences]`; `ld_alpha` is LD-DPO's.
pub fn sequence_logps(model: &Decoder, batch: &RaggedBatch, ld_alpha: Option<f64>) -> Vec<f64> {
    let scores = token_scores(model.scored_states(batch), model.head().matrix(), &batch.targets);
    weighted_sums(batch, &scores.logp, ld_alpha)
}

fn path(folder: &Path, key: &str) -> PathBuf {
    folder.join(format!("reference-{key}.logps"))
}

/// Consecutive pairs whose tokens fit the budget. Ranks share the batches, so they depend on the pairs alone.
pub fn batches(pairs: &[PreferencePair]) -> Vec<&[PreferencePair]> {
    within_budget(pairs, TOKENS_A_BATCH, PreferencePair::tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(len: usize) -> PreferencePair {
        PreferencePair { prompt: vec![1; len], chosen: vec![2, 3], rejected: vec![4] }
    }

    #[test]
    fn batches_keep_to_the_budget_and_lose_no_pair() {
        let pairs: Vec<_> = [2000, 2000, 5000, 10, 10].map(pair).into();
        let sizes: Vec<usize> = batches(&pairs).into_iter().map(<[_]>::len).collect();
        assert_eq!(sizes, [2, 1, 2]);
        assert_eq!(batches(&[]).len(), 0);
    }

    #[test]
    fn stored_log_probs_come_back_and_damaged_ones_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let logps = ReferenceLogps { chosen: vec![-1.5, -2.25], rejected: vec![-0.1, -1e4] };
        let key = ReferenceLogps::key(&[7; 32], &[pair(3), pair(4)], "float32");
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
        let key = |w: u8, len, s| ReferenceLogps::key(&[w; 32], &[pair(len)], s);
        assert_eq!(key(1, 3, "a"), key(1, 3, "a"));
        assert_ne!(key(1, 3, "a"), key(2, 3, "a"));
        assert_ne!(key(1, 3, "a"), key(1, 4, "a"));
        assert_ne!(key(1, 3, "a"), key(1, 3, "b"));
    }
}
