//! The few-shot examples of each document of an lm-eval task.

use super::config::Sampler;
use super::random::Random;
use super::row::Row;

/// The places in `pool` of the examples of each document. If the documents may be in the pool, as
/// lm-eval sees it, `excluded` are these documents: a document is no example of itself.
///
/// # Errors
/// The pool is too small; the text says how small.
pub fn drawn(
    sampler: Sampler,
    pool: &[Row],
    documents: usize,
    excluded: Option<&[Row]>,
    num_fewshot: usize,
    seed: i64,
) -> Result<Vec<Vec<usize>>, String> {
    let mut rnd = Random::new(seed);
    let of_document = |document: usize| {
        let own = excluded.map(|documents| &documents[document]);
        let is_other = |place: &usize| own.is_none_or(|own| pool[*place] != *own);
        match sampler {
            Sampler::FirstN => {
                Some((0..pool.len()).filter(is_other).take(num_fewshot).collect::<Vec<_>>())
            }
            Sampler::Random => {
                let count = num_fewshot + usize::from(own.is_some());
                let mut taken = rnd.sample(pool.len(), count)?;
                taken.retain(is_other);
                taken.truncate(num_fewshot);
                if taken.len() < num_fewshot {
                    // Several rows equal the document: drawn again among the others.
                    let others: Vec<usize> = (0..pool.len()).filter(is_other).collect();
                    let places = rnd.sample(others.len(), num_fewshot)?;
                    taken = places.into_iter().map(|place| others[place]).collect();
                }
                Some(taken)
            }
        }
        .filter(|taken| taken.len() == num_fewshot)
    };
    (0..documents).map(of_document).collect::<Option<_>>().ok_or_else(|| {
        format!("{num_fewshot} examples are asked for, and the split has {} rows", pool.len())
    })
}

/// The places that occur in `shots`, ascending. `shots` then has places among these.
pub fn compacted(shots: &mut [Vec<usize>]) -> Vec<usize> {
    let mut used: Vec<usize> = shots.iter().flatten().copied().collect();
    used.sort_unstable();
    used.dedup();
    for place in shots.iter_mut().flatten() {
        *place = used.partition_point(|other| other < place);
    }
    used
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rows(numbers: &[usize]) -> Vec<Row> {
        numbers.iter().map(|number| Row::from_iter([("n".to_owned(), json!(number))])).collect()
    }

    /// The places are those of `Random(1234).sample(range(9), 3)`, twice.
    #[test]
    fn examples_are_drawn_for_one_document_after_another() {
        let pool = rows(&[0, 1, 2, 3, 4, 5, 6, 7, 8]);
        let shots = drawn(Sampler::Random, &pool, 2, None, 3, 1234).unwrap();
        let mut rnd = Random::new(1234);
        assert_eq!(shots, [rnd.sample(9, 3).unwrap(), rnd.sample(9, 3).unwrap()]);
    }

    #[test]
    fn a_document_is_no_example_of_itself() {
        let pool = rows(&[0, 1, 2, 3]);
        let shots = drawn(Sampler::Random, &pool, 4, Some(&pool), 3, 1).unwrap();
        for (document, shots) in shots.iter().enumerate() {
            assert_eq!(shots.len(), 3);
            assert!(!shots.contains(&document));
        }
        let first = drawn(Sampler::FirstN, &pool, 2, Some(&pool), 2, 1).unwrap();
        assert_eq!(first, [[1, 2], [0, 2]]);
        let same = rows(&[7, 7, 7, 1, 2]);
        let shots = drawn(Sampler::Random, &same, 1, Some(&same), 2, 1).unwrap();
        assert!(shots[0].iter().all(|place| *place > 2));
        assert!(drawn(Sampler::Random, &same, 1, Some(&same), 3, 1).is_err());
    }

    #[test]
    fn only_used_rows_are_kept() {
        let mut shots = vec![vec![9, 4], vec![4, 100]];
        assert_eq!(compacted(&mut shots), [4, 9, 100]);
        assert_eq!(shots, [[1, 0], [0, 2]]);
    }
}
