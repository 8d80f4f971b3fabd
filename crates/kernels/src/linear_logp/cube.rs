//! The GPU form of log-probs and their gradients. A chunk of logits is one matrix product. One
//! kernel reduces each of its rows to the scores, another turns it into the gradient of the logits.
//! Nothing is kept for the backward pass: it computes the logits again.

use std::ops::Range;
use std::sync::Arc;

use burn::backend::{Cube, ops::FloatTensorOps, tensor::FloatTensor};
use burn::tensor::{DType, Slice};
use burn_cubecl::kernel::cast;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::ScoreTokens;
use super::chunks::chunk_len;
use super::scores::{COLUMNS, HIGHEST, NORM, ScoredRow};
use crate::cube::product::{product, transposed};
#[cfg(feature = "ptx")]
use crate::cube::ptx::{Ptx, ROW_UNITS, Target, argument, device, properties, settings};
use crate::cube::soft_cap::{NO_CAP, slope_of_cap, soft_capped};
use crate::cube::{
    address, buffer, contiguous, cube_max, cube_sum, cubes, elements, elementwise, empty, floats,
    free_row_units, indices, row_units, zeros,
};
use crate::timed;
use crate::update::VectorPasses;

/// Terms that a unit adds one after another before it adds their sum to the total.
const STRETCH: usize = 1024;

impl ScoreTokens for Cube {
    fn score_tokens(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        softcap: Option<f32>,
        targets: Arc<Vec<u32>>,
        _kept_rows: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        timed!("head");
        let head = Head::new(hidden, head, softcap);
        let out = empty(&head.hidden, [targets.len(), COLUMNS], DType::F32);
        let targets_n = indices(&out, &targets);
        for rows in head.chunks(targets.len()) {
            score_rows(&head.logits(&rows), &targets_n, rows.start, softcap, &out);
        }
        let nothing = empty(&out, [1, 1], DType::F32);
        (out, nothing)
    }

    fn score_tokens_grad(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        softcap: Option<f32>,
        _kept: FloatTensor<Self>,
        rows: Arc<Vec<ScoredRow>>,
        trains_head: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        timed!("head.backward");
        let head = Head::new(hidden, head, softcap);
        let column = |number: fn(&ScoredRow) -> f32| {
            floats(&head.hidden, &rows.iter().map(number).collect::<Vec<_>>())
        };
        let targets: Vec<u32> = rows.iter().map(|row| row.target).collect();
        let scored = Scored {
            targets: indices(&head.hidden, &targets),
            highest: column(|row| row.highest),
            factor: column(|row| row.factor),
            g: column(|row| row.g),
        };
        let mut gradients = GrowingGradients::new(&head, trains_head);
        for chunk in head.chunks(rows.len()) {
            gradients.add(&chunk, scored.logit_gradients(&head.logits(&chunk), chunk.start, &head));
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
        let head = Head::new(hidden, head, softcap);
        let out = empty(&head.hidden, [targets.len(), COLUMNS], DType::F32);
        let scored = Scored {
            targets: indices(&out, &targets),
            highest: empty(&out, [targets.len()], DType::F32),
            factor: empty(&out, [targets.len()], DType::F32),
            g: floats(&out, &upstream),
        };
        let mut gradients = GrowingGradients::new(&head, trains_head);
        for chunk in head.chunks(targets.len()) {
            let logits = head.logits(&chunk);
            score_rows(&logits, &scored.targets, chunk.start, softcap, &out);
            scored.read_columns(&out, &chunk);
            gradients.add(&chunk, scored.logit_gradients(&logits, chunk.start, &head));
        }
        let (d_hidden, d_head) = gradients.tensors();
        (out, d_hidden, d_head)
    }
}

/// Hidden states `[n, d]` and the output head `[v, d]`.
struct Head {
    hidden: CubeTensor,
    weight: CubeTensor,
    vocab: usize,
    width: usize,
    /// The soft cap of the logits.
    softcap: Option<f32>,
}

impl Head {
    fn new(hidden: CubeTensor, weight: CubeTensor, softcap: Option<f32>) -> Self {
        let (hidden, weight) = (contiguous(hidden), contiguous(weight));
        let [vocab, width] = weight.meta.shape().dims();
        Self { hidden, weight, vocab, width, softcap }
    }

    /// The chunks of `n` scored tokens.
    fn chunks(&self, n: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let len = chunk_len(n, self.vocab);
        (0..n).step_by(len).map(move |start| start..(start + len).min(n))
    }

    /// The hidden states of a chunk, `[c, d]`.
    fn rows(&self, chunk: &Range<usize>) -> CubeTensor {
        let rows = Slice::new(chunk.start as isize, Some(chunk.end as isize), 1);
        contiguous(Cube::float_slice(self.hidden.clone(), &[rows, Slice::full()]))
    }

    /// `hidden · headᵀ` in float32, before the soft cap, `[c, v]`.
    fn logits(&self, chunk: &Range<usize>) -> CubeTensor {
        contiguous(product(self.rows(chunk), transposed(self.weight.clone()), DType::F32))
    }
}

/// What the gradient needs of each scored token, all `[n]`.
struct Scored {
    targets: CubeTensor,
    /// The largest logit.
    highest: CubeTensor,
    /// Factor on the exponentials, `−g / norm`.
    factor: CubeTensor,
    /// Gradient of the loss with respect to the log-prob.
    g: CubeTensor,
}

impl Scored {
    /// Fills `highest` and `factor` of a chunk from the columns of the scores.
    fn read_columns(&self, columns: &CubeTensor, chunk: &Range<usize>) {
        let (count, cube) = elementwise(&columns.client, chunk.len());
        // SAFETY: a unit has one row of the chunk.
        unsafe {
            factors::launch_unchecked(
                &columns.client,
                count,
                cube,
                address([columns]),
                buffer(columns),
                buffer(&self.g),
                buffer(&self.highest),
                buffer(&self.factor),
                chunk.start,
                chunk.len(),
            );
        }
    }

    /// `g · (onehot(target) − softmax)` of a chunk that begins at row `first`, times the slope of
    /// the soft cap, in the type of the hidden states, `[c, v]`.
    fn logit_gradients(&self, logits: &CubeTensor, first: usize, head: &Head) -> CubeTensor {
        let [rows, vocab] = logits.meta.shape().dims();
        let out = empty(logits, [rows, vocab], head.hidden.dtype);
        let units = free_row_units(&logits.client);
        let (count, cube) = cubes(rows, units);
        // SAFETY: a cube has one row of the chunk and columns below `vocab`.
        unsafe {
            gradients_of_row::launch_unchecked(
                &logits.client,
                count,
                cube,
                address([logits]),
                buffer(logits),
                buffer(&self.targets),
                buffer(&self.highest),
                buffer(&self.factor),
                buffer(&self.g),
                buffer(&out),
                vocab,
                first,
                head.softcap.unwrap_or(NO_CAP),
                units,
                head.softcap.is_some(),
                elements(out.dtype),
            );
        }
        out
    }
}

/// Writes the columns of the rows of a chunk of logits (`[c, v]`) that begins at row `first`.
fn score_rows(
    logits: &CubeTensor,
    targets: &CubeTensor,
    first: usize,
    softcap: Option<f32>,
    out: &CubeTensor,
) {
    let [rows, vocab] = logits.meta.shape().dims();
    let units = row_units(&logits.client);
    let (count, cube) = cubes(rows, units);
    // SAFETY: a cube has one row of the chunk and of `out`, and columns below `vocab`.
    unsafe {
        score_row::launch_unchecked(
            &logits.client,
            count,
            cube,
            address([logits]),
            buffer(logits),
            buffer(targets),
            buffer(out),
            vocab,
            first,
            softcap.unwrap_or(NO_CAP),
            units,
            softcap.is_some(),
        );
    }
}

/// The two gradients, to which each chunk adds its own.
struct GrowingGradients<'a> {
    head: &'a Head,
    trains_head: bool,
    d_hidden: Vec<CubeTensor>,
    /// `[v, d]` in float32; none before the first chunk.
    d_head: Option<CubeTensor>,
}

impl<'a> GrowingGradients<'a> {
    fn new(head: &'a Head, trains_head: bool) -> Self {
        Self { head, trains_head, d_hidden: Vec::new(), d_head: None }
    }

    /// Adds the next chunk, given the gradients of its logits (`[c, v]`).
    fn add(&mut self, chunk: &Range<usize>, d_logits: CubeTensor) {
        let dtype = self.head.hidden.dtype;
        self.d_hidden.push(product(d_logits.clone(), self.head.weight.clone(), dtype));
        if self.trains_head {
            let part = product(transposed(d_logits), self.head.rows(chunk), DType::F32);
            self.d_head = Some(match self.d_head.take() {
                Some(sum) => Cube::add_vectors(sum, part),
                None => contiguous(part),
            });
        }
    }

    fn tensors(mut self) -> (FloatTensor<Cube>, FloatTensor<Cube>) {
        let head = self.head;
        let d_hidden = match self.d_hidden.len() {
            1 => self.d_hidden.remove(0),
            _ => Cube::float_cat(self.d_hidden, 0),
        };
        let d_head = match self.d_head {
            Some(sum) => cast(sum, head.weight.dtype),
            None => zeros(&d_hidden, [1, head.width], head.weight.dtype),
        };
        (d_hidden, d_head)
    }
}

/// The columns of one row of logits, in the order of [`TokenScores`](super::TokenScores).
#[cube(launch_unchecked, address_type = "dynamic")]
fn score_row(
    logits: &[f32],
    targets: &[u32],
    out: &mut [f32],
    vocab: usize,
    first: usize,
    softcap: f32,
    #[comptime] units: usize,
    #[comptime] is_capped: bool,
) {
    let row = CUBE_POS * vocab;
    let unit = UNIT_POS as usize;
    let mut highest = f32::min_value();
    let mut column = unit;
    while column < vocab {
        highest = max(highest, soft_capped(logits[row + column], softcap, is_capped));
        column += units;
    }
    let highest = cube_max(highest, units);

    let mut total = 0.0f32;
    let mut norm = 0.0f32;
    let mut squares = 0.0f32;
    let mut weighted = 0.0f32;
    // The place of the first largest logit: the negative numbers of columns are exact in float32.
    let mut best = f32::min_value();
    let mut column = unit;
    while column < vocab {
        // Sums of sums: a float32 sum of very many terms would lose the small ones.
        let end = min(column + comptime!(STRETCH * units), vocab);
        let mut part_total = 0.0f32;
        let mut part_norm = 0.0f32;
        let mut part_squares = 0.0f32;
        let mut part_weighted = 0.0f32;
        while column < end {
            let shifted = soft_capped(logits[row + column], softcap, is_capped) - highest;
            let exponential = shifted.exp();
            part_total += shifted;
            part_norm += exponential;
            part_squares += exponential * exponential;
            part_weighted += exponential * shifted;
            if shifted == 0.0f32 {
                best = max(best, 0.0f32 - f32::cast_from(column));
            }
            column += units;
        }
        total += part_total;
        norm += part_norm;
        squares += part_squares;
        weighted += part_weighted;
    }
    let total = cube_sum(total, units);
    let norm = cube_sum(norm, units);
    let squares = cube_sum(squares, units);
    let weighted = cube_sum(weighted, units);
    let best = cube_max(best, units);
    if unit == 0 {
        let target = targets[first + CUBE_POS] as usize;
        let log_norm = norm.ln();
        let to = (first + CUBE_POS) * comptime!(COLUMNS);
        let of_target = soft_capped(logits[row + target], softcap, is_capped);
        out[to] = of_target - highest - log_norm;
        out[to + 1] = log_norm - weighted / norm;
        let mut correct = 0.0f32;
        if best == 0.0f32 - f32::cast_from(target) {
            correct = 1.0f32;
        }
        out[to + 2] = correct;
        out[to + 3] = total / f32::cast_from(vocab) + highest;
        out[to + 4] = highest;
        out[to + 5] = norm;
        out[to + 6] = squares.ln() - 2.0f32 * log_norm;
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn factors(
    columns: &[f32],
    g: &[f32],
    highest: &mut [f32],
    factor: &mut [f32],
    first: usize,
    rows: usize,
) {
    if ABSOLUTE_POS < rows {
        let row = first + ABSOLUTE_POS;
        highest[row] = columns[row * comptime!(COLUMNS) + comptime!(HIGHEST)];
        factor[row] = (0.0f32 - g[row]) / columns[row * comptime!(COLUMNS) + comptime!(NORM)];
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn gradients_of_row<E: Float>(
    logits: &[f32],
    targets: &[u32],
    highest: &[f32],
    factor: &[f32],
    g: &[f32],
    out: &mut [E],
    vocab: usize,
    first: usize,
    softcap: f32,
    #[comptime] units: usize,
    #[comptime] is_capped: bool,
    #[define(E)] _type: ElemType,
) {
    let row = CUBE_POS * vocab;
    let scored = first + CUBE_POS;
    let target = targets[scored] as usize;
    let highest = highest[scored];
    let factor = factor[scored];
    let mut column = UNIT_POS as usize;
    while column < vocab {
        let logit = soft_capped(logits[row + column], softcap, is_capped);
        let mut gradient = (logit - highest).exp() * factor;
        if column == target {
            gradient += g[scored];
        }
        let slope = slope_of_cap(logit, softcap, is_capped);
        out[row + column] = E::cast_from(gradient * slope);
        column += units;
    }
}

/// The kernels as PTX.
#[cfg(feature = "ptx")]
pub(crate) fn ptx(target: Target) -> Vec<Ptx> {
    let (b, units) = (argument, ROW_UNITS);
    let score = score_row::ScoreRow::new(
        settings(units),
        device(),
        properties(),
        b(),
        b(),
        b(),
        (),
        (),
        (),
        units,
        false,
    );
    let gradient = gradients_of_row::GradientsOfRow::new(
        settings(units),
        device(),
        properties(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        (),
        (),
        (),
        units,
        false,
        target.elements,
    );
    vec![
        target.compile("head, scores of a row", units, score),
        target.compile("head, gradient of the logits", units, gradient),
    ]
}
