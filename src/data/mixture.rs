//! Chooses rows from the sets of a mixture and orders them.
//!
//! Shuffles are seeded ChaCha8 permutations, whose stream will not change. They are not numpy's:
//! with the same seed, `datasets` gives a shuffled mixture another order, and fractions below 1
//! taken after a shuffle select other rows. Only the split of a listed mixture is drawn as numpy
//! draws it.

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::DataError;
use super::numpy_random::numpy_permutation;
use crate::recipe::{DataSettings, DatasetSpec, Mixture, SplitSize};

/// The old handbook shuffles a `dataset_mixer` with this seed, whatever the recipe's seed is.
const MIXER_SEED: u64 = 42;

/// One row of one set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowRef {
    /// Index into [`specs`].
    pub set: usize,
    /// The row's index over all files of the set.
    pub row: usize,
}

/// The rows of both splits in their final order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ChosenRows {
    pub train: Vec<RowRef>,
    pub test: Vec<RowRef>,
}

/// All sets of a mixture: first those of the training split, then those of the test split.
pub(super) fn specs(mixture: &Mixture) -> Vec<&DatasetSpec> {
    match mixture {
        Mixture::Mixer { train, test, .. } => train.iter().chain(test).collect(),
        Mixture::Pooled { sets, .. } | Mixture::Listed { sets, .. } => sets.iter().collect(),
        Mixture::Named { train, test } => std::iter::once(train).chain(test).collect(),
    }
}

/// Chooses and orders the rows. `counts` has the number of rows of each set, in the order of
/// [`specs`].
pub(super) fn choose_rows(
    settings: &DataSettings,
    counts: &[usize],
) -> Result<ChosenRows, DataError> {
    let (mut train, mut test) = match &settings.mixture {
        Mixture::Mixer { train, shuffle, .. } => {
            let seed = shuffle.then_some(MIXER_SEED);
            let (train_counts, test_counts) = counts.split_at(train.len());
            let train_rows = train
                .iter()
                .zip(train_counts)
                .enumerate()
                .flat_map(|(set, (spec, count))| rows(set, share(spec.fraction, *count)));
            let test_rows = test_counts
                .iter()
                .enumerate()
                .flat_map(|(set, count)| rows(train.len() + set, *count));
            (shuffled(train_rows.collect(), seed), shuffled(test_rows.collect(), seed))
        }
        Mixture::Pooled { sets, seed, test_split_size } => {
            let pooled = sets
                .iter()
                .zip(counts)
                .enumerate()
                .flat_map(|(set, (spec, count))| {
                    let mut chosen = shuffled(rows(set, *count).collect(), Some(*seed));
                    chosen.truncate(share(spec.fraction, *count));
                    chosen
                })
                .collect();
            let mut train = shuffled(pooled, Some(*seed));
            let test = match test_split_size {
                Some(size) => split_off(&mut train, *size, sets)?,
                None => Vec::new(),
            };
            (train, test)
        }
        Mixture::Listed { sets, fractions, seed, test_split_size } => {
            let taken = match fractions {
                Some(fractions) => shares(fractions, counts),
                None => counts.to_vec(),
            };
            let mut train: Vec<RowRef> =
                taken.iter().enumerate().flat_map(|(set, count)| rows(set, *count)).collect();
            let test = match test_split_size {
                Some(size) => {
                    let order = numpy_permutation(train.len(), *seed);
                    train = order.into_iter().map(|at| train[at]).collect();
                    split_off(&mut train, *size, sets)?
                }
                None => Vec::new(),
            };
            (train, test)
        }
        Mixture::Named { train, .. } => (
            rows(0, share(train.fraction, counts[0])).collect(),
            counts.get(1).map_or_else(Vec::new, |count| rows(1, *count).collect()),
        ),
    };
    train.truncate(settings.max_train_samples.unwrap_or(usize::MAX));
    test.truncate(settings.max_eval_samples.unwrap_or(usize::MAX));
    Ok(ChosenRows { train, test })
}

fn rows(set: usize, count: usize) -> impl Iterator<Item = RowRef> {
    (0..count).map(move |row| RowRef { set, row })
}

/// `int(fraction · count)`, computed as Python does.
fn share(fraction: f64, count: usize) -> usize {
    ((fraction * count as f64) as usize).min(count)
}

/// The number of rows of each set in the largest mixture in which the sets have these shares and no
/// row is repeated, as TRL computes it (`get_dataset`). The shares need not add up to 1.
fn shares(fractions: &[f64], counts: &[usize]) -> Vec<usize> {
    let sum: f64 = fractions.iter().sum();
    let weights: Vec<f64> = fractions.iter().map(|fraction| fraction / sum).collect();
    let whole = weights.iter().zip(counts).filter(|(weight, _)| **weight > 0.0);
    let total = whole.map(|(weight, count)| *count as f64 / weight).fold(f64::INFINITY, f64::min);
    let taken = weights.iter().zip(counts);
    taken.map(|(weight, count)| ((weight * total).round_ties_even() as usize).min(*count)).collect()
}

fn shuffled(mut rows: Vec<RowRef>, seed: Option<u64>) -> Vec<RowRef> {
    if let Some(seed) = seed {
        rows.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    }
    rows
}

/// Takes the test rows from the front of the shuffled pool: ⌈share · n⌉ rows, as in
/// `train_test_split`.
fn split_off(
    pool: &mut Vec<RowRef>,
    size: SplitSize,
    sets: &[DatasetSpec],
) -> Result<Vec<RowRef>, DataError> {
    let count = match size {
        SplitSize::Share(share) => (share * pool.len() as f64).ceil() as usize,
        SplitSize::Rows(rows) => rows,
    };
    if count >= pool.len() {
        let first = sets.first();
        return Err(DataError::Mixture {
            id: first.map_or_else(String::new, |spec| spec.id.clone()),
            split: first.map_or_else(String::new, |spec| spec.split.clone()),
            message: format!(
                "test_split_size takes {count} rows, but the mixture has only {}: no row is left \
                 to train on",
                pool.len()
            ),
        });
    }
    let train = pool.split_off(count);
    Ok(std::mem::replace(pool, train))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Preprocessing;

    fn spec(split: &str, fraction: f64) -> DatasetSpec {
        DatasetSpec { fraction, ..DatasetSpec::new("set", split) }
    }

    fn settings(mixture: Mixture) -> DataSettings {
        DataSettings {
            mixture,
            streaming: false,
            max_train_samples: None,
            max_eval_samples: None,
            max_bad_rows: 0.01,
            dataset_num_proc: None,
            auto_insert_empty_system_msg: false,
            preprocessing: Preprocessing::Trl,
        }
    }

    fn sorted(rows: &[RowRef]) -> Vec<(usize, usize)> {
        let mut rows: Vec<_> = rows.iter().map(|row| (row.set, row.row)).collect();
        rows.sort_unstable();
        rows
    }

    #[test]
    fn a_mixer_takes_the_first_rows_of_each_train_split_and_the_whole_test_split() {
        let mixer = |shuffle| Mixture::Mixer {
            train: vec![spec("train", 0.5), spec("train", 1.0)],
            test: vec![spec("test", 0.5)],
            shuffle,
        };
        let kept = choose_rows(&settings(mixer(false)), &[5, 2, 3]).unwrap();
        assert_eq!(sorted(&kept.train), [(0, 0), (0, 1), (1, 0), (1, 1)]);
        assert_eq!(sorted(&kept.test), [(2, 0), (2, 1), (2, 2)]);
        let mixed = choose_rows(&settings(mixer(true)), &[5, 2, 3]).unwrap();
        assert_eq!(sorted(&mixed.train), sorted(&kept.train));
        assert_eq!(mixed, choose_rows(&settings(mixer(true)), &[5, 2, 3]).unwrap());
    }

    #[test]
    fn a_pool_is_split_anew() {
        let pool = |test_split_size| Mixture::Pooled {
            sets: vec![spec("train", 0.5), spec("test", 1.0)],
            seed: 0,
            test_split_size,
        };
        let whole = choose_rows(&settings(pool(None)), &[100, 10]).unwrap();
        assert_eq!((whole.train.len(), whole.test.len()), (60, 0));
        assert!(
            whole.train.iter().any(|row| row.set == 0 && row.row >= 50),
            "shuffled before it is cut"
        );
        let split = choose_rows(&settings(pool(Some(SplitSize::Share(0.11)))), &[100, 10]).unwrap();
        assert_eq!((split.train.len(), split.test.len()), (53, 7));
        let all: Vec<_> = split.test.iter().chain(&split.train).copied().collect();
        assert_eq!(sorted(&all), sorted(&whole.train));
        let rows = choose_rows(&settings(pool(Some(SplitSize::Rows(60)))), &[100, 10]);
        assert!(rows.unwrap_err().to_string().contains("no row is left to train on"));
    }

    fn listed(fractions: Option<Vec<f64>>, test_split_size: Option<SplitSize>) -> Mixture {
        let sets = vec![spec("train", 1.0), spec("train", 1.0)];
        Mixture::Listed { sets, fractions, seed: 42, test_split_size }
    }

    /// The numbers of rows are those of TRL 1.16 (`get_dataset`).
    #[test]
    fn listed_sets_keep_their_order_and_have_their_shares() {
        let chosen = |fractions: Option<Vec<f64>>, counts: [usize; 2]| {
            let chosen = choose_rows(&settings(listed(fractions, None)), &counts).unwrap();
            assert!(chosen.test.is_empty());
            let of = |set: usize| {
                let rows = chosen.train.iter().filter(|row| row.set == set);
                let rows: Vec<usize> = rows.map(|row| row.row).collect();
                assert_eq!(rows, (0..rows.len()).collect::<Vec<_>>(), "the first rows in order");
                rows.len()
            };
            [of(0), of(1)]
        };
        assert_eq!(chosen(None, [5, 2]), [5, 2]);
        assert_eq!(chosen(Some(vec![0.5, 0.5]), [5, 2]), [2, 2]);
        assert_eq!(chosen(Some(vec![3.0, 1.0]), [10, 10]), [10, 3]);
        assert_eq!(chosen(Some(vec![0.3, 0.7]), [7, 100]), [7, 16]);
    }

    /// The rows are those of `train_test_split(test_size, seed=42)` of datasets.
    #[test]
    fn a_listed_mixture_is_split_as_datasets_splits_it() {
        let size = Some(SplitSize::Share(0.25));
        let chosen = choose_rows(&settings(listed(None, size)), &[6, 4]).unwrap();
        let flat = |rows: &[RowRef]| -> Vec<usize> {
            rows.iter().map(|row| 6 * row.set + row.row).collect()
        };
        assert_eq!(flat(&chosen.test), [5, 6, 0]);
        assert_eq!(flat(&chosen.train), [7, 3, 2, 4, 9, 1, 8]);
    }

    #[test]
    fn samples_are_cut_after_mixing() {
        let mut settings =
            settings(Mixture::Named { train: spec("train", 1.0), test: Some(spec("test", 1.0)) });
        settings.max_train_samples = Some(3);
        settings.max_eval_samples = Some(1);
        let chosen = choose_rows(&settings, &[9, 9]).unwrap();
        assert_eq!(sorted(&chosen.train), [(0, 0), (0, 1), (0, 2)]);
        assert_eq!(sorted(&chosen.test), [(1, 0)]);
    }
}
