//! The sizes of the kernels, and which numbers of a matrix each lane holds.
//!
//! A plane (a CUDA warp) computes with squares of 16 × 16 numbers. A square has four blocks of
//! 8 × 8 numbers, in the order top left, bottom left, top right, bottom right. The numbers of a
//! block, row by row, are dealt to the lanes in equal runs. With 32 lanes, a lane has two neighbors
//! of one row. This is the layout of all operands of `mma.sync.m16n8k16` and of `ldmatrix` (PTX
//! ISA, "Matrix fragments for mma.m16n8k16"). With one lane, this lane has all numbers.
//!
//! A result of a product has the same layout as a left operand, so a product of weights and values
//! starts from the registers in which the weights were computed (FlashAttention-2, arXiv
//! 2307.08691).

use cubecl::prelude::*;

use crate::attention::cube::heads::HeadShape;

/// Rows and columns of a square.
pub(super) const SQUARE: usize = 16;

/// Rows and columns of a block, and elements of a chunk.
pub(super) const BLOCK: usize = 8;

/// What is fixed when a kernel is compiled.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct PlaneShape {
    /// Planes of a cube. Each has [`SQUARE`] rows of the cube's tile.
    pub planes: usize,
    /// Units of a plane: 32 on a GPU, 1 on the CPU.
    pub lanes: usize,
    /// Tokens of the tiles that a cube visits, a multiple of [`SQUARE`].
    pub columns: usize,
    /// The heads. Their width is a multiple of [`SQUARE`], their angles of [`BLOCK`].
    pub heads: HeadShape,
}

impl PlaneShape {
    /// Tokens of the tile of a cube.
    pub fn rows(self) -> usize {
        self.planes * SQUARE
    }

    /// Units of a cube.
    pub fn units(self) -> usize {
        self.planes * self.lanes
    }

    /// Chunks of a token in a tile in shared memory. The last one is padding, so that eight lanes
    /// that read the same chunk of neighboring rows use different memory banks.
    pub fn stride(self) -> usize {
        self.heads.width / BLOCK + 1
    }

    /// Numbers of a square that a lane has.
    pub fn numbers(self) -> usize {
        SQUARE * SQUARE / self.lanes
    }

    /// Numbers of a block that a lane has.
    pub fn block_numbers(self) -> usize {
        BLOCK * BLOCK / self.lanes
    }

    /// Neighbors in a row of a block that a lane has.
    pub fn row_numbers(self) -> usize {
        self.block_numbers().min(BLOCK)
    }

    /// Rows of a block of which a lane has numbers.
    pub fn block_rows(self) -> usize {
        self.block_numbers() / self.row_numbers()
    }

    /// Rows of a square of which a lane has numbers.
    pub fn lane_rows(self) -> usize {
        2 * self.block_rows()
    }

    /// Numbers that a lane has of a plane's rows of a matrix with `columns` columns.
    pub fn numbers_of(self, columns: usize) -> usize {
        columns / SQUARE * self.numbers()
    }

    /// Steps in which all units together do `work`, one item each in a step.
    pub fn steps(self, work: usize) -> usize {
        work.div_ceil(self.units())
    }

    /// Whether loops over a lane's numbers are unrolled, so that the numbers stay in registers. A
    /// single lane has too many.
    pub fn unrolls(self) -> bool {
        self.lanes > 1
    }
}

/// The row in a square of a lane's `row`-th row.
#[cube]
pub(super) fn row_of(row: usize, lane: usize, #[comptime] shape: PlaneShape) -> usize {
    let in_block = comptime!(shape.block_rows());
    row / in_block * BLOCK + lane * comptime!(shape.block_numbers()) / BLOCK + row % in_block
}

/// The column in a block of a lane's first number in each row.
#[cube]
pub(super) fn first_column(lane: usize, #[comptime] shape: PlaneShape) -> usize {
    lane * comptime!(shape.block_numbers()) % BLOCK
}

/// The index of one of a lane's numbers of a matrix: in its `row`-th row, at `column` from
/// [`first_column`] of the blocks at column `8 · block`.
#[cube]
pub(super) fn number_at(
    row: usize,
    block: usize,
    column: usize,
    #[comptime] shape: PlaneShape,
) -> usize {
    let in_block = comptime!(shape.block_rows());
    block / 2 * comptime!(shape.numbers())
        + (block % 2 * 2 + row / in_block) * comptime!(shape.block_numbers())
        + row % in_block * comptime!(shape.row_numbers())
        + column
}

#[cfg(test)]
pub(super) mod tests {
    use cubecl::cmma::MatrixIdent;
    use cubecl::prelude::polyfills::mma::{col_index, row_index};

    use super::*;

    fn shape(lanes: usize) -> PlaneShape {
        PlaneShape { planes: 2, lanes, columns: 32, heads: HeadShape::plain(64) }
    }

    /// Row and column in a matrix of 16 rows of a lane's number at each index.
    fn positions(lane: usize, columns: usize, shape: PlaneShape) -> Vec<(usize, usize)> {
        let mut positions = vec![(usize::MAX, usize::MAX); shape.numbers_of(columns)];
        for row in 0..shape.lane_rows() {
            for block in 0..columns / BLOCK {
                for column in 0..shape.row_numbers() {
                    let at = BLOCK * block + first_column(lane, shape) + column;
                    positions[number_at(row, block, column, shape)] =
                        (row_of(row, lane, shape), at);
                }
            }
        }
        positions
    }

    #[test]
    fn each_number_has_one_lane_and_index() {
        for lanes in [1, 32] {
            let shape = shape(lanes);
            let columns = 48;
            let mut held: Vec<(usize, usize)> =
                (0..lanes).flat_map(|lane| positions(lane, columns, shape)).collect();
            held.sort_unstable();
            let all: Vec<(usize, usize)> =
                (0..SQUARE).flat_map(|row| (0..columns).map(move |column| (row, column))).collect();
            assert_eq!(held, all);
        }
    }

    /// The tables of the PTX ISA for `mma.m16n8k16` with elements of 16 bits: row and column of
    /// the element `i` of a lane.
    pub fn ptx_left(lane: usize, i: usize) -> (usize, usize) {
        let row = if i < 2 || (4..6).contains(&i) { lane / 4 } else { lane / 4 + 8 };
        let column = lane % 4 * 2 + (i & 1) + if i < 4 { 0 } else { 8 };
        (row, column)
    }

    pub fn ptx_right(lane: usize, i: usize) -> (usize, usize) {
        (lane % 4 * 2 + (i & 1) + if i < 2 { 0 } else { 8 }, lane / 4)
    }

    fn ptx_result(lane: usize, i: usize) -> (usize, usize) {
        (if i < 2 { lane / 4 } else { lane / 4 + 8 }, lane % 4 * 2 + (i & 1))
    }

    #[test]
    fn left_operands_and_results_have_the_layout_of_ptx() {
        let shape = shape(32);
        for lane in 0..32 {
            let held = positions(lane, SQUARE, shape);
            for (i, position) in held.iter().enumerate() {
                assert_eq!(*position, ptx_left(lane, i));
                // A square of results is two results of 8 columns, side by side.
                let (row, column) = ptx_result(lane, i % 4);
                assert_eq!(*position, (row, column + i / 4 * 8));
            }
        }
    }

    /// A right operand of 16 columns is held as its transpose, with the blocks of a row one after
    /// the other: the first half of a lane's numbers is the operand of the first eight columns.
    #[test]
    fn right_operands_have_the_layout_of_ptx() {
        let shape = shape(32);
        for lane in 0..32 {
            for i in 0..shape.numbers() {
                let (block, number) = (i / shape.block_numbers(), i % shape.block_numbers());
                let column = block / 2 * BLOCK + row_of(0, lane, shape);
                let row = block % 2 * BLOCK + first_column(lane, shape) + number;
                let (of_ptx, column_of_ptx) = ptx_right(lane, i % 4);
                assert_eq!((row, column), (of_ptx, column_of_ptx + i / 4 * 8));
            }
        }
    }

    /// CubeCL states the same layouts.
    #[test]
    fn cubecl_has_the_layouts_of_ptx() {
        let of = |lane: usize, i: usize, elements: usize, matrix| {
            let (lane, i) = (lane as u32, i as u32);
            let row = row_index(lane, i, elements, matrix);
            (row as usize, col_index(lane, i, elements, matrix) as usize)
        };
        for lane in 0..32 {
            for i in 0..8 {
                assert_eq!(of(lane, i, 2, MatrixIdent::A), ptx_left(lane, i));
            }
            for i in 0..4 {
                assert_eq!(of(lane, i, 2, MatrixIdent::B), ptx_right(lane, i));
                assert_eq!(of(lane, i, 1, MatrixIdent::Accumulator), ptx_result(lane, i));
            }
        }
    }
}
