//! Parts of the attention kernels: tiles in shared memory and their products.
//!
//! A tile holds `tile` tokens of one head in float32. Its rows have one number of padding (`stride`
//! is `e + 1`), so that units that read the same column of different rows use different memory
//! banks. Products are computed in blocks of 4 × 4 numbers, each by one unit. The four rows and
//! columns of a block are spread evenly over the tile, so that units with neighboring blocks read
//! neighboring numbers.

use cubecl::prelude::*;

use crate::attention::cube::heads::HeadShape;

/// Rows and columns of the blocks in which products are computed.
pub(super) const BLOCK: usize = 4;

/// Numbers of a block.
pub(super) const BLOCK_AREA: usize = BLOCK * BLOCK;

/// What is fixed when an attention kernel is compiled.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct TileShape {
    /// Tokens of a tile, a multiple of [`BLOCK`].
    pub tile: usize,
    /// The heads.
    pub heads: HeadShape,
    /// Units of a cube.
    pub units: usize,
}

impl TileShape {
    /// Numbers from one row of a tile to the next.
    pub fn stride(self) -> usize {
        self.heads.width + 1
    }

    /// Blocks that a unit has of a result of `tile` rows and `columns` columns.
    pub fn blocks(self, columns: usize) -> usize {
        (self.tile / BLOCK * (columns / BLOCK)).div_ceil(self.units)
    }

    /// Whether loops over a unit's blocks are unrolled, so that the sums stay in registers. On the
    /// CPU a unit may have many blocks, which would take long to compile.
    pub fn unrolls(self) -> bool {
        self.units > 2 || self.blocks(self.heads.width) <= 4
    }
}

/// Loads `count` rows that begin at `first` of one head, rotated to their positions, into `tile`;
/// further rows become zeros. `x` has `heads` heads a token; `cos` and `sin` are `[t, n]` for `n`
/// angles.
#[cube]
pub(super) fn load_rotated<E: Float>(
    x: &[E],
    cos: &[f32],
    sin: &[f32],
    tile: &mut Shared<[f32]>,
    first: usize,
    count: usize,
    heads: usize,
    head: usize,
    #[comptime] shape: TileShape,
) {
    let angles = comptime!(shape.heads.angles);
    let stride = comptime!(shape.stride());
    let mut index = UNIT_POS as usize;
    while index < comptime!(shape.tile * shape.heads.angles) {
        let row = index / angles;
        let pair = index % angles;
        let mut low = 0.0f32;
        let mut high = 0.0f32;
        if row < count {
            let token = first + row;
            let at = (token * heads + head) * comptime!(shape.heads.width) + pair;
            let x_low = f32::cast_from(x[at]);
            let x_high = f32::cast_from(x[at + angles]);
            let c = cos[token * angles + pair];
            let s = sin[token * angles + pair];
            low = x_low * c - x_high * s;
            high = x_high * c + x_low * s;
        }
        tile[row * stride + pair] = low;
        tile[row * stride + pair + angles] = high;
        index += comptime!(shape.units);
    }
    if comptime!(shape.heads.rest() > 0) {
        let from = comptime!(shape.heads.rotated());
        load_columns::<E>(x, tile, first, count, heads, head, from, shape);
    }
}

/// [`load_rotated`] without a rotation.
#[cube]
pub(super) fn load<E: Float>(
    x: &[E],
    tile: &mut Shared<[f32]>,
    first: usize,
    count: usize,
    heads: usize,
    head: usize,
    #[comptime] shape: TileShape,
) {
    load_columns::<E>(x, tile, first, count, heads, head, 0usize, shape);
}

/// The columns of [`load`] that begin at `from`.
#[cube]
fn load_columns<E: Float>(
    x: &[E],
    tile: &mut Shared<[f32]>,
    first: usize,
    count: usize,
    heads: usize,
    head: usize,
    #[comptime] from: usize,
    #[comptime] shape: TileShape,
) {
    let width = comptime!(shape.heads.width);
    let columns = comptime!(width - from);
    let stride = comptime!(shape.stride());
    let mut index = UNIT_POS as usize;
    while index < comptime!(shape.tile * columns) {
        let row = index / columns;
        let column = from + index % columns;
        let mut value = 0.0f32;
        if row < count {
            value = f32::cast_from(x[((first + row) * heads + head) * width + column]);
        }
        tile[row * stride + column] = value;
        index += comptime!(shape.units);
    }
}

/// Writes the first `count` rows of `tile`, rotated back from their positions: the gradient of what
/// [`load_rotated`] read.
#[cube]
pub(super) fn store_rotated_back<E: Float>(
    x: &mut [E],
    cos: &[f32],
    sin: &[f32],
    tile: &Shared<[f32]>,
    first: usize,
    count: usize,
    heads: usize,
    head: usize,
    #[comptime] shape: TileShape,
) {
    let angles = comptime!(shape.heads.angles);
    let stride = comptime!(shape.stride());
    let mut index = UNIT_POS as usize;
    while index < count * angles {
        let row = index / angles;
        let pair = index % angles;
        let token = first + row;
        let low = tile[row * stride + pair];
        let high = tile[row * stride + pair + angles];
        let c = cos[token * angles + pair];
        let s = sin[token * angles + pair];
        let at = (token * heads + head) * comptime!(shape.heads.width) + pair;
        x[at] = E::cast_from(low * c + high * s);
        x[at + angles] = E::cast_from(high * c - low * s);
        index += comptime!(shape.units);
    }
    if comptime!(shape.heads.rest() > 0) {
        let from = comptime!(shape.heads.rotated());
        store_columns::<E>(x, tile, first, count, heads, head, from, shape);
    }
}

/// Writes the first `count` rows of `tile`.
#[cube]
pub(super) fn store<E: Float>(
    x: &mut [E],
    tile: &Shared<[f32]>,
    first: usize,
    count: usize,
    heads: usize,
    head: usize,
    #[comptime] shape: TileShape,
) {
    store_columns::<E>(x, tile, first, count, heads, head, 0usize, shape);
}

/// The columns of [`store`] that begin at `from`.
#[cube]
fn store_columns<E: Float>(
    x: &mut [E],
    tile: &Shared<[f32]>,
    first: usize,
    count: usize,
    heads: usize,
    head: usize,
    #[comptime] from: usize,
    #[comptime] shape: TileShape,
) {
    let width = comptime!(shape.heads.width);
    let columns = comptime!(width - from);
    let stride = comptime!(shape.stride());
    let mut index = UNIT_POS as usize;
    while index < count * columns {
        let row = index / columns;
        let column = from + index % columns;
        x[((first + row) * heads + head) * width + column] =
            E::cast_from(tile[row * stride + column]);
        index += comptime!(shape.units);
    }
}

/// A unit's blocks of a `[tile, e]` result, all zeros.
#[cube]
pub(super) fn zeros(#[comptime] shape: TileShape) -> Array<f32> {
    let len = comptime!(shape.blocks(shape.heads.width) * BLOCK_AREA);
    zeros_of_len(len, comptime!(shape.unrolls()))
}

#[cube]
fn zeros_of_len(#[comptime] len: usize, #[comptime] unrolls: bool) -> Array<f32> {
    let mut numbers = Array::<f32>::new(len);
    #[unroll(unrolls)]
    for i in 0..len {
        numbers[i] = 0.0f32;
    }
    numbers
}

/// The block at `(row, column)` of `a · bᵀ` for two tiles, `[tile, tile]`.
#[cube]
pub(super) fn block_of_scores(
    a: &Shared<[f32]>,
    b: &Shared<[f32]>,
    row: usize,
    column: usize,
    #[comptime] shape: TileShape,
) -> Array<f32> {
    let step = comptime!(shape.tile / BLOCK * shape.stride());
    let mut sums = zeros_of_len(BLOCK_AREA, true);
    let a_row = row * comptime!(shape.stride());
    let b_row = column * comptime!(shape.stride());
    for e in 0..comptime!(shape.heads.width).runtime() {
        let mut b_values = Array::<f32>::new(BLOCK);
        #[unroll]
        for j in 0..BLOCK {
            b_values[j] = b[b_row + e + j * step];
        }
        #[unroll]
        for i in 0..BLOCK {
            let a_value = a[a_row + e + i * step];
            #[unroll]
            for j in 0..BLOCK {
                sums[i * BLOCK + j] += a_value * b_values[j];
            }
        }
    }
    sums
}

/// Adds to a unit's blocks of a `[tile, e]` result `weights · values`, or `weightsᵀ · values` if
/// `transposes`, for `weights` (`[tile, tile]`) and a tile of values.
#[cube]
pub(super) fn add_weighted(
    sums: &mut Array<f32>,
    weights: &Shared<[f32]>,
    values: &Shared<[f32]>,
    #[comptime] transposes: bool,
    #[comptime] shape: TileShape,
) {
    let tile = comptime!(shape.tile);
    let rows = comptime!(shape.tile / BLOCK);
    let columns = comptime!(shape.heads.width / BLOCK);
    let stride = comptime!(shape.stride());
    #[unroll(comptime!(shape.unrolls()))]
    for n in 0..comptime!(shape.blocks(shape.heads.width)) {
        let block = n * comptime!(shape.units) + UNIT_POS as usize;
        if block < comptime!(rows * columns) {
            let row = block / columns;
            let column = block % columns;
            for k in 0..comptime!(shape.tile).runtime() {
                let mut of_row = Array::<f32>::new(BLOCK);
                #[unroll]
                for i in 0..BLOCK {
                    let at = row + i * rows;
                    if comptime!(transposes) {
                        of_row[i] = weights[k * tile + at];
                    } else {
                        of_row[i] = weights[at * tile + k];
                    }
                }
                #[unroll]
                for j in 0..BLOCK {
                    let value = values[k * stride + column + j * columns];
                    #[unroll]
                    for i in 0..BLOCK {
                        sums[n * BLOCK_AREA + i * BLOCK + j] += of_row[i] * value;
                    }
                }
            }
        }
    }
}

/// Writes a unit's blocks of a `[tile, e]` result to a tile.
#[cube]
pub(super) fn store_blocks(
    sums: &Array<f32>,
    tile: &mut Shared<[f32]>,
    #[comptime] shape: TileShape,
) {
    let rows = comptime!(shape.tile / BLOCK);
    let columns = comptime!(shape.heads.width / BLOCK);
    let stride = comptime!(shape.stride());
    #[unroll(comptime!(shape.unrolls()))]
    for n in 0..comptime!(shape.blocks(shape.heads.width)) {
        let block = n * comptime!(shape.units) + UNIT_POS as usize;
        if block < comptime!(rows * columns) {
            let row = block / columns;
            let column = block % columns;
            #[unroll]
            for i in 0..BLOCK {
                #[unroll]
                for j in 0..BLOCK {
                    tile[(row + i * rows) * stride + column + j * columns] =
                        sums[n * BLOCK_AREA + i * BLOCK + j];
                }
            }
        }
    }
}

/// Multiplies each row of a unit's blocks of a `[tile, e]` result by its factor.
#[cube]
pub(super) fn scale_rows(
    sums: &mut Array<f32>,
    factors: &Shared<[f32]>,
    #[comptime] shape: TileShape,
) {
    let rows = comptime!(shape.tile / BLOCK);
    let columns = comptime!(shape.heads.width / BLOCK);
    #[unroll(comptime!(shape.unrolls()))]
    for n in 0..comptime!(shape.blocks(shape.heads.width)) {
        let block = n * comptime!(shape.units) + UNIT_POS as usize;
        if block < comptime!(rows * columns) {
            let row = block / columns;
            #[unroll]
            for i in 0..BLOCK {
                let factor = factors[row + i * rows];
                #[unroll]
                for j in 0..BLOCK {
                    sums[n * BLOCK_AREA + i * BLOCK + j] *= factor;
                }
            }
        }
    }
}

/// Whether the query at position `query` of its sequence sees the key at position `key`.
#[cube]
pub(super) fn sees(query: usize, key: usize, window: usize) -> bool {
    key <= query && key + window > query
}
