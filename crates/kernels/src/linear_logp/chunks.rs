//! How many rows the head works on at once, and the memory that this takes.

use crate::form::Form;

/// Size of the logits of one chunk, in bytes.
const CHUNK_BYTES: usize = 64 << 20;

/// Size of the exponentials that a forward pass may keep for its backward pass, in bytes.
const KEPT_BYTES: usize = 256 << 20;

/// Bytes that the head uses for `n` scored tokens besides hidden states, weights and gradients: its
/// logits and what it keeps for the backward pass. Set `upstream_is_known` for
/// `token_scores_with_grad` and for a pass without gradients: both keep nothing.
pub fn work_bytes(form: Form, n: usize, vocab: usize, upstream_is_known: bool) -> usize {
    match form {
        Form::Flex if upstream_is_known => chunk_bytes(n, vocab),
        Form::Flex => bytes_to_gradient(n, vocab),
        // Logits in float32, and their gradient in the type of the hidden states.
        Form::Cube => 2 * chunk_bytes(n, vocab),
        // Logits in both precisions, their log-softmax, its exponential, the product of these two.
        Form::Composed => 5 * (4 * vocab * n.min(chunk_rows(vocab))),
    }
}

/// Bytes of the logits of one chunk of `n` scored tokens.
fn chunk_bytes(n: usize, vocab: usize) -> usize {
    4 * vocab * chunk_len(n, vocab).min(n)
}

/// Bytes of the exponentials that are kept between both passes, and of a chunk of logits if not all
/// are kept.
fn bytes_to_gradient(n: usize, vocab: usize) -> usize {
    let kept = kept_rows(n, vocab);
    let passing = if kept < n { chunk_bytes(n, vocab) } else { 0 };
    4 * vocab * kept + passing
}

/// Rows whose float32 logits fit [`CHUNK_BYTES`].
pub(super) fn chunk_rows(vocab: usize) -> usize {
    (CHUNK_BYTES / 4 / vocab).max(1)
}

/// Rows of a chunk. Chunks have nearly equal sizes: a product of a single row sums in another order
/// than one of several rows, and the log-prob of a token must not depend on the rest of the batch.
pub(super) fn chunk_len(n: usize, vocab: usize) -> usize {
    let chunks = n.div_ceil(chunk_rows(vocab)).max(1);
    n.div_ceil(chunks).max(1)
}

/// Rows whose exponentials are kept: whole chunks that fit [`KEPT_BYTES`].
pub(super) fn kept_rows(n: usize, vocab: usize) -> usize {
    let chunk = chunk_len(n, vocab);
    (KEPT_BYTES / 4 / vocab / chunk * chunk).min(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_rows_are_whole_chunks_within_the_bound() {
        let vocab = 32_000;
        for n in [0, 1, 524, 525, 2_048, 2_097, 2_098, 4_096, 100_000] {
            let (kept, chunk) = (kept_rows(n, vocab), chunk_len(n, vocab));
            assert!(kept == n || kept % chunk == 0, "{n}: {kept} of chunks of {chunk}");
            assert!(4 * vocab * kept <= KEPT_BYTES && chunk <= chunk_rows(vocab));
            assert!(kept == n || kept + chunk > KEPT_BYTES / 4 / vocab, "{n}: one more would fit");
        }
    }
}
