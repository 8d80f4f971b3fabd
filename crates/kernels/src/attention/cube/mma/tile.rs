//! Tiles of tokens in shared memory, and a plane's rows of their products.
//!
//! A tile holds tokens of one head in the type of the inputs. Rows beyond the tokens of a tile
//! repeat its last token: they are finite, and masks hide them.

use cubecl::prelude::*;

use super::fragment::{Chunk, Operand, Pair, lane, load_square, multiply, plane_row, rounded};
use super::shape::{BLOCK, PlaneShape, SQUARE, first_column, number_at, row_of};

/// Loads `count` tokens that begin at `first` of one head into the `rows` rows of `tile`. `x` has
/// `heads` heads a token. If the loop is unrolled, it takes more registers.
#[cube]
pub(super) fn load<E: Float>(
    x: &[Chunk<E>],
    tile: &mut Shared<[Chunk<E>]>,
    first: usize,
    count: usize,
    heads: usize,
    head: usize,
    #[comptime] rows: usize,
    #[comptime] unrolls: bool,
    #[comptime] shape: PlaneShape,
) {
    load_chunks::<E>(x, tile, first, count, heads, head, rows, 0usize, unrolls, shape);
}

/// The chunks of [`load`] that begin at `from`.
#[cube]
fn load_chunks<E: Float>(
    x: &[Chunk<E>],
    tile: &mut Shared<[Chunk<E>]>,
    first: usize,
    count: usize,
    heads: usize,
    head: usize,
    #[comptime] rows: usize,
    #[comptime] from: usize,
    #[comptime] unrolls: bool,
    #[comptime] shape: PlaneShape,
) {
    let width = comptime!(shape.heads.width / BLOCK);
    let chunks = comptime!(width - from);
    let work = comptime!(rows * chunks);
    #[unroll(unrolls)]
    for step in 0..comptime!(shape.steps(work)) {
        let index = step * comptime!(shape.units()) + UNIT_POS as usize;
        if comptime!(work % shape.units() == 0) || index < work {
            let row = index / chunks;
            let chunk = from + index % chunks;
            let token = first + min(row, count - 1);
            tile[row * comptime!(shape.stride()) + chunk] =
                x[(token * heads + head) * width + chunk];
        }
    }
}

/// [`load`], rotated to the tokens' positions. `cos` and `sin` are `[t, n]` for `n` angles.
#[cube]
pub(super) fn load_rotated<E: Float>(
    x: &[Chunk<E>],
    cos: &[Chunk<f32>],
    sin: &[Chunk<f32>],
    tile: &mut Shared<[Chunk<E>]>,
    first: usize,
    count: usize,
    heads: usize,
    head: usize,
    #[comptime] rows: usize,
    #[comptime] unrolls: bool,
    #[comptime] shape: PlaneShape,
) {
    let angles = comptime!(shape.heads.angles / BLOCK);
    let work = comptime!(rows * angles);
    #[unroll(unrolls)]
    for step in 0..comptime!(shape.steps(work)) {
        let index = step * comptime!(shape.units()) + UNIT_POS as usize;
        if comptime!(work % shape.units() == 0) || index < work {
            let row = index / angles;
            let chunk = index % angles;
            let token = first + min(row, count - 1);
            let at = (token * heads + head) * comptime!(shape.heads.width / BLOCK) + chunk;
            let low = Chunk::<f32>::cast_from(x[at]);
            let high = Chunk::<f32>::cast_from(x[at + angles]);
            let c = cos[token * angles + chunk];
            let s = sin[token * angles + chunk];
            let to = row * comptime!(shape.stride()) + chunk;
            tile[to] = Chunk::<E>::cast_from(low * c - high * s);
            tile[to + angles] = Chunk::<E>::cast_from(high * c + low * s);
        }
    }
    if comptime!(shape.heads.rest() > 0) {
        let from = comptime!(shape.heads.rotated() / BLOCK);
        load_chunks::<E>(x, tile, first, count, heads, head, rows, from, unrolls, shape);
    }
}

/// Loads one number for each token of [`load`]. `x` has a number for each of the `heads` heads of a
/// token.
#[cube]
pub(super) fn load_numbers(
    x: &[f32],
    numbers: &mut Shared<[f32]>,
    first: usize,
    count: usize,
    heads: usize,
    head: usize,
    #[comptime] rows: usize,
    #[comptime] shape: PlaneShape,
) {
    let mut row = UNIT_POS as usize;
    while row < rows {
        numbers[row] = x[(first + min(row, count - 1)) * heads + head];
        row += comptime!(shape.units());
    }
}

/// A plane's rows of a matrix of zeros with `columns` columns.
#[cube]
pub(super) fn zeros(#[comptime] columns: usize, #[comptime] shape: PlaneShape) -> Array<f32> {
    let mut numbers = Array::<f32>::new(comptime!(shape.numbers_of(columns)));
    #[unroll(comptime!(shape.unrolls()))]
    for i in 0..comptime!(shape.numbers_of(columns)) {
        numbers[i] = 0.0f32;
    }
    numbers
}

/// A plane's rows of `own · otherᵀ`, for a tile of the cube and one that it visits.
#[cube]
pub(super) fn scores_of<E: Float>(
    own: &Shared<[Chunk<E>]>,
    other: &Shared<[Chunk<E>]>,
    #[comptime] shape: PlaneShape,
) -> Array<f32> {
    let mut scores = zeros(comptime!(shape.columns), shape);
    #[unroll(comptime!(shape.unrolls()))]
    for step in 0..comptime!(shape.heads.width / SQUARE) {
        let left = load_square::<E>(own, plane_row(shape), 2 * step, Operand::Left, shape);
        #[unroll(comptime!(shape.unrolls()))]
        for square in 0..comptime!(shape.columns / SQUARE) {
            let row = square * SQUARE;
            let right = load_square::<E>(other, row, 2 * step, Operand::RightTransposed, shape);
            multiply::<E>(&left, &right, &mut scores, square, shape);
        }
    }
    scores
}

/// Adds a plane's rows of `weights · other` to `sums`, for a tile that the cube visits.
#[cube]
pub(super) fn add_weighted<E: Float>(
    sums: &mut Array<f32>,
    weights: &Array<f32>,
    other: &Shared<[Chunk<E>]>,
    #[comptime] shape: PlaneShape,
) {
    #[unroll(comptime!(shape.unrolls()))]
    for step in 0..comptime!(shape.columns / SQUARE) {
        let left = rounded::<E>(weights, step, shape);
        #[unroll(comptime!(shape.unrolls()))]
        for square in 0..comptime!(shape.heads.width / SQUARE) {
            let row = step * SQUARE;
            let right = load_square::<E>(other, row, 2 * square, Operand::Right, shape);
            multiply::<E>(&left, &right, sums, square, shape);
        }
    }
}

/// Multiplies a lane's `row`-th row of a `[rows, e]` result by `factor`.
#[cube]
pub(super) fn scale_row(
    sums: &mut Array<f32>,
    row: usize,
    factor: f32,
    #[comptime] shape: PlaneShape,
) {
    #[unroll(comptime!(shape.unrolls()))]
    for block in 0..comptime!(shape.heads.width / BLOCK) {
        #[unroll(comptime!(shape.unrolls()))]
        for column in 0..comptime!(shape.row_numbers()) {
            sums[number_at(row, block, column, shape)] *= factor;
        }
    }
}

/// Writes a plane's rows of a `[rows, e]` result for `count` tokens that begin at `first`.
#[cube]
pub(super) fn store<E: Float>(
    x: &mut [Pair<E>],
    sums: &Array<f32>,
    first: usize,
    count: usize,
    heads: usize,
    head: usize,
    #[comptime] shape: PlaneShape,
) {
    store_blocks::<E>(x, sums, 1.0f32, first, count, heads, head, 0usize, shape);
}

/// [`store`] of `sums · factor`, the blocks that begin at `from`.
#[cube]
fn store_blocks<E: Float>(
    x: &mut [Pair<E>],
    sums: &Array<f32>,
    factor: f32,
    first: usize,
    count: usize,
    heads: usize,
    head: usize,
    #[comptime] from: usize,
    #[comptime] shape: PlaneShape,
) {
    let lane = lane(shape);
    #[unroll(comptime!(shape.unrolls()))]
    for i in 0..comptime!(shape.lane_rows()) {
        let row = plane_row(shape) + row_of(i, lane, shape);
        if row < count {
            let to = ((first + row) * heads + head) * comptime!(shape.heads.width);
            #[unroll(comptime!(shape.unrolls()))]
            for block in from..comptime!(shape.heads.width / BLOCK) {
                #[unroll(comptime!(shape.unrolls()))]
                for j in 0..comptime!(shape.row_numbers() / 2) {
                    let pair = pair_at(sums, number_at(i, block, 2 * j, shape), factor);
                    let column = block * BLOCK + first_column(lane, shape) + 2 * j;
                    x[(to + column) / 2] = Pair::<E>::cast_from(pair);
                }
            }
        }
    }
}

/// Two neighbors of a row of `sums · factor`, the first one at the index `at`.
#[cube]
fn pair_at(sums: &Array<f32>, at: usize, factor: f32) -> Pair<f32> {
    let mut pair = Pair::<f32>::empty();
    pair.insert(0usize, sums[at] * factor);
    pair.insert(1usize, sums[at + 1] * factor);
    pair
}

/// [`store`] of `sums · factor`, rotated back from the tokens' positions: the gradient of what
/// [`load_rotated`] read.
#[cube]
pub(super) fn store_rotated_back<E: Float>(
    x: &mut [Pair<E>],
    cos: &[Chunk<f32>],
    sin: &[Chunk<f32>],
    sums: &Array<f32>,
    factor: f32,
    first: usize,
    count: usize,
    heads: usize,
    head: usize,
    #[comptime] shape: PlaneShape,
) {
    let angles = comptime!(shape.heads.angles);
    let lane = lane(shape);
    let cos = cos.with_vector_size::<Const<2>>();
    let sin = sin.with_vector_size::<Const<2>>();
    #[unroll(comptime!(shape.unrolls()))]
    for i in 0..comptime!(shape.lane_rows()) {
        let row = plane_row(shape) + row_of(i, lane, shape);
        if row < count {
            let token = first + row;
            let to = (token * heads + head) * comptime!(shape.heads.width);
            #[unroll(comptime!(shape.unrolls()))]
            for block in 0..comptime!(shape.heads.angles / BLOCK) {
                #[unroll(comptime!(shape.unrolls()))]
                for j in 0..comptime!(shape.row_numbers() / 2) {
                    let high_block = block + angles / BLOCK;
                    let low = pair_at(sums, number_at(i, block, 2 * j, shape), factor);
                    let high = pair_at(sums, number_at(i, high_block, 2 * j, shape), factor);
                    let column = block * BLOCK + first_column(lane, shape) + 2 * j;
                    let c = cos[(token * angles + column) / 2];
                    let s = sin[(token * angles + column) / 2];
                    x[(to + column) / 2] = Pair::<E>::cast_from(low * c + high * s);
                    x[(to + angles + column) / 2] = Pair::<E>::cast_from(high * c - low * s);
                }
            }
        }
    }
    if comptime!(shape.heads.rest() > 0) {
        let from = comptime!(shape.heads.rotated() / BLOCK);
        store_blocks::<E>(x, sums, factor, first, count, heads, head, from, shape);
    }
}
