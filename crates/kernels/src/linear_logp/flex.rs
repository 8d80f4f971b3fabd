//! The CPU form of log-probs and their gradients (Flex, float32): multi-threaded passes over
//! slices.

use std::ops::Range;
use std::sync::Arc;

use burn::backend::{Flex, tensor::FloatTensor};
use rayon::prelude::*;

use super::chunks::chunk_len;
use super::row::{exponentials, logit_gradient, score_row};
use super::scores::{COLUMNS, HIGHEST, NORM, ScoredRow};
use super::{ScoreTokens, capped};

use crate::flex::product::{Matrix, add_product, append_product};
use crate::flex::{contiguous, slice, tensor};
use crate::timed;

impl ScoreTokens for Flex {
    fn score_tokens(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        softcap: Option<f32>,
        targets: Arc<Vec<u32>>,
        kept_rows: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        timed!("head");
        let head = Head::new(head);
        let hidden = contiguous(hidden);
        let mut out = vec![0.0; targets.len() * COLUMNS];
        let mut kept = Vec::with_capacity(kept_rows * head.vocab);
        let mut passing = Vec::new();
        for rows in head.chunks(targets.len()) {
            let (targets, out) = (&targets[rows.clone()], &mut out[columns(&rows)]);
            if rows.end <= kept_rows {
                head.append_logits(slice(&hidden), rows.clone(), &mut kept);
                score_rows(&mut kept[rows.start * head.vocab..], targets, out, softcap);
            } else {
                passing.clear();
                head.append_logits(slice(&hidden), rows, &mut passing);
                score_rows(&mut passing, targets, out, softcap);
            }
        }
        let out = tensor(out, &[targets.len(), COLUMNS]);
        (out, tensor(kept, &[kept_rows, head.vocab]))
    }

    fn score_tokens_grad(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        softcap: Option<f32>,
        kept: FloatTensor<Self>,
        rows: Arc<Vec<ScoredRow>>,
        trains_head: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        timed!("head.backward");
        let head = Head::new(head);
        let (hidden, mut kept) = (contiguous(hidden), contiguous(kept));
        let kept = kept.storage_mut::<f32>();
        let mut gradients = GrowingGradients::new(&head, slice(&hidden), trains_head);
        let mut made_again = Vec::new();
        for chunk in head.chunks(rows.len()) {
            let rows = &rows[chunk.clone()];
            let logits = match kept.get_mut(chunk.start * head.vocab..chunk.end * head.vocab) {
                Some(kept) => kept,
                None => {
                    made_again.clear();
                    head.append_logits(slice(&hidden), chunk.clone(), &mut made_again);
                    make_again(&mut made_again, rows, softcap);
                    &mut made_again
                }
            };
            logit_gradients(logits, rows, softcap);
            gradients.add(chunk, logits);
        }
        gradients.tensors()
    }

    fn score_tokens_with_grad(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        softcap: Option<f32>,
        targets: Arc<Vec<u32>>,
        upstream: Arc<Vec<f32>>,
        trains_head: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        timed!("head with gradient");
        let head = Head::new(head);
        let hidden = contiguous(hidden);
        let mut out = vec![0.0; targets.len() * COLUMNS];
        let mut gradients = GrowingGradients::new(&head, slice(&hidden), trains_head);
        let mut logits = Vec::new();
        for chunk in head.chunks(targets.len()) {
            let (targets, out) = (&targets[chunk.clone()], &mut out[columns(&chunk)]);
            logits.clear();
            head.append_logits(slice(&hidden), chunk.clone(), &mut logits);
            score_rows(&mut logits, targets, out, softcap);
            let scores = targets.iter().zip(out.chunks_exact(COLUMNS));
            let rows: Vec<ScoredRow> = scores
                .zip(&upstream[chunk.clone()])
                .map(|((target, out), g)| ScoredRow::new(*target, out[HIGHEST], out[NORM], *g))
                .collect();
            logit_gradients(&mut logits, &rows, softcap);
            gradients.add(chunk, &logits);
        }
        let (d_hidden, d_head) = gradients.tensors();
        (tensor(out, &[targets.len(), COLUMNS]), d_hidden, d_head)
    }
}

/// The range of these rows in the result of the operation.
fn columns(rows: &Range<usize>) -> Range<usize> {
    rows.start * COLUMNS..rows.end * COLUMNS
}

/// Writes the columns of each row of logits (`[c, v]`). The logits become exponentials; with a soft
/// cap, capped logits.
fn score_rows(logits: &mut [f32], targets: &[u32], out: &mut [f32], softcap: Option<f32>) {
    if let Some(cap) = softcap {
        return capped::score_rows(logits, targets, out, cap);
    }
    let vocab = logits.len() / targets.len();
    let rows = logits.par_chunks_exact_mut(vocab).zip(out.par_chunks_exact_mut(COLUMNS));
    rows.zip(targets).for_each(|((logits, out), target)| {
        out.copy_from_slice(&score_row(logits, *target as usize));
    });
}

/// Turns logits (`[c, v]`) into what [`score_rows`] leaves.
fn make_again(logits: &mut [f32], rows: &[ScoredRow], softcap: Option<f32>) {
    let vocab = logits.len() / rows.len();
    match softcap {
        Some(cap) => capped::cap_rows(logits, vocab, cap),
        None => {
            let scored = logits.par_chunks_exact_mut(vocab).zip(rows);
            scored.for_each(|(logits, row)| exponentials(logits, row.highest));
        }
    }
}

/// Turns what [`score_rows`] leaves (`[c, v]`) into the gradients of the logits.
fn logit_gradients(exponentials: &mut [f32], rows: &[ScoredRow], softcap: Option<f32>) {
    if let Some(cap) = softcap {
        return capped::logit_gradients(exponentials, rows, cap);
    }
    let vocab = exponentials.len() / rows.len();
    let rows = exponentials.par_chunks_exact_mut(vocab).zip(rows);
    rows.for_each(|(exponentials, row)| logit_gradient(exponentials, row));
}

/// The output head `[v, d]` and the chunking of its logits.
struct Head {
    weight: FloatTensor<Flex>,
    vocab: usize,
    width: usize,
}

impl Head {
    fn new(weight: FloatTensor<Flex>) -> Self {
        let weight = contiguous(weight);
        let [vocab, width] = [0, 1].map(|axis| weight.layout().shape()[axis]);
        Self { weight, vocab, width }
    }

    fn matrix(&self) -> Matrix<'_> {
        Matrix::dense(slice(&self.weight), self.vocab, self.width)
    }

    /// The chunks of `n` scored tokens.
    fn chunks(&self, n: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let len = chunk_len(n, self.vocab);
        (0..n).step_by(len).map(move |start| start..(start + len).min(n))
    }

    /// Appends `logits[c, v] = h[c, d] · head[v, d]ᵀ` for these rows of `hidden`.
    fn append_logits(&self, hidden: &[f32], rows: Range<usize>, logits: &mut Vec<f32>) {
        let hidden = &hidden[rows.start * self.width..rows.end * self.width];
        let hidden = Matrix::dense(hidden, rows.len(), self.width);
        append_product(hidden, self.matrix().transposed(), logits);
    }
}

/// The two gradients, to which each chunk adds its own.
struct GrowingGradients<'a> {
    head: &'a Head,
    /// `[n, d]`.
    hidden: &'a [f32],
    d_hidden: Vec<f32>,
    /// `[v, d]`; empty before the first chunk. None for a head that is not trained.
    d_head: Option<Vec<f32>>,
}

impl<'a> GrowingGradients<'a> {
    fn new(head: &'a Head, hidden: &'a [f32], trains_head: bool) -> Self {
        let d_hidden = Vec::with_capacity(hidden.len());
        Self { head, hidden, d_hidden, d_head: trains_head.then(Vec::new) }
    }

    /// Adds the next chunk, given the gradients of its logits (`[c, v]`).
    fn add(&mut self, rows: Range<usize>, d_logits: &[f32]) {
        let (vocab, width, chunk) = (self.head.vocab, self.head.width, rows.len());
        let place = rows.start * width..rows.end * width;
        // dh[c, d] = dl[c, v] · head[v, d]
        let d_logits = Matrix::dense(d_logits, chunk, vocab);
        append_product(d_logits, self.head.matrix(), &mut self.d_hidden);
        // dw[v, d] += dl[c, v]ᵀ · h[c, d]
        let Some(d_head) = &mut self.d_head else { return };
        let hidden = Matrix::dense(&self.hidden[place], chunk, width);
        match d_head.is_empty() {
            true => append_product(d_logits.transposed(), hidden, d_head),
            false => add_product(d_logits.transposed(), hidden, d_head),
        }
    }

    fn tensors(self) -> (FloatTensor<Flex>, FloatTensor<Flex>) {
        let width = self.head.width;
        let d_head = self.d_head.unwrap_or_default();
        let (n, vocab) = (self.d_hidden.len() / width, d_head.len() / width);
        (tensor(self.d_hidden, &[n, width]), tensor(d_head, &[vocab, width]))
    }
}
