//! Squares in the registers of a plane: loads, products and sums over rows. Only these functions
//! differ between a plane of 32 lanes, which uses tensor cores, and a plane of one lane.

use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::prelude::*;

use super::shape::{BLOCK, PlaneShape, SQUARE};

/// Neighbors in a row of a tile in memory, and a row of a block.
pub(super) type Chunk<E> = Vector<E, Const<8>>;

/// Neighbors in a row, in one register.
pub(super) type Pair<E> = Vector<E, Const<2>>;

/// How a square of a tile takes part in a product.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(super) enum Operand {
    /// As the left operand.
    Left,
    /// As the right operand.
    Right,
    /// Its transpose is the right operand.
    RightTransposed,
}

impl Operand {
    /// Whether the second block of a lane's registers is the one below the first in the tile, not
    /// the one beside it.
    fn goes_down(self) -> bool {
        self != Self::RightTransposed
    }

    /// Whether a lane has numbers of the columns of the tile's blocks. The registers of a right
    /// operand have those of a column.
    fn transposes(self) -> bool {
        self == Self::Right
    }
}

/// The lane of a unit in its plane.
#[cube]
pub(super) fn lane(#[comptime] shape: PlaneShape) -> usize {
    UNIT_POS as usize % comptime!(shape.lanes)
}

/// The first row of a plane in its cube's tile.
#[cube]
pub(super) fn plane_row(#[comptime] shape: PlaneShape) -> usize {
    UNIT_POS as usize / comptime!(shape.lanes) * SQUARE
}

/// The square of a tile whose first number is in `row` and at the start of `chunk`.
#[cube]
pub(super) fn load_square<E: Float>(
    tile: &Shared<[Chunk<E>]>,
    row: usize,
    chunk: usize,
    #[comptime] operand: Operand,
    #[comptime] shape: PlaneShape,
) -> Array<Pair<E>> {
    if comptime!(shape.lanes == 1) {
        copy_square::<E>(tile, row, chunk, operand, shape)
    } else {
        let (down, right) = address_of_lane(lane(shape), operand);
        let at = (row + down) * comptime!(shape.stride()) + chunk + right;
        let product = MmaDefinition::<E, E, f32>::new(16usize, 8usize, 16usize);
        let transposes = comptime!(operand.transposes());
        product.load_matrix::<Chunk<E>, Const<2>>(
            &tile[at..at + 1],
            MatrixIdent::A,
            4usize,
            transposes,
        )
    }
}

/// The row and the chunk in a square that a lane names in `ldmatrix`: lane `8 b + r` names row `r`
/// of the block that becomes register `b`.
#[cube]
fn address_of_lane(lane: usize, #[comptime] operand: Operand) -> (usize, usize) {
    let (down, right) = place_of_block(lane / BLOCK, operand);
    (down * BLOCK + lane % BLOCK, right)
}

/// Blocks from the top and from the left of a square of a tile to the block that becomes register
/// `block`.
#[cube]
fn place_of_block(block: usize, #[comptime] operand: Operand) -> (usize, usize) {
    if comptime!(operand.goes_down()) { (block % 2, block / 2) } else { (block / 2, block % 2) }
}

/// [`load_square`] for one lane.
#[cube]
fn copy_square<E: Float>(
    tile: &Shared<[Chunk<E>]>,
    row: usize,
    chunk: usize,
    #[comptime] operand: Operand,
    #[comptime] shape: PlaneShape,
) -> Array<Pair<E>> {
    let stride = comptime!(shape.stride());
    let mut square = Array::<Pair<E>>::new(comptime!(shape.numbers() / 2));
    for block in 0..4usize.runtime() {
        let (down, right) = place_of_block(block, operand);
        let start = (row + down * BLOCK) * stride + chunk + right;
        #[unroll]
        for i in 0..BLOCK {
            #[unroll]
            for j in 0..BLOCK / 2 {
                let mut pair = Pair::<E>::empty();
                if comptime!(operand.transposes()) {
                    pair.insert(0usize, tile[start + 2 * j * stride].extract(i));
                    pair.insert(1usize, tile[start + (2 * j + 1) * stride].extract(i));
                } else {
                    pair.insert(0usize, tile[start + i * stride].extract(2 * j));
                    pair.insert(1usize, tile[start + i * stride].extract(2 * j + 1));
                }
                square[(block * BLOCK + i) * (BLOCK / 2) + j] = pair;
            }
        }
    }
    square
}

/// The `square`-th square of results, rounded, as a left operand.
#[cube]
pub(super) fn rounded<E: Float>(
    numbers: &Array<f32>,
    square: usize,
    #[comptime] shape: PlaneShape,
) -> Array<Pair<E>> {
    let mut pairs = Array::<Pair<E>>::new(comptime!(shape.numbers() / 2));
    #[unroll(comptime!(shape.unrolls()))]
    for i in 0..comptime!(shape.numbers() / 2) {
        let at = square * comptime!(shape.numbers()) + 2 * i;
        let mut pair = Pair::<f32>::empty();
        pair.insert(0usize, numbers[at]);
        pair.insert(1usize, numbers[at + 1]);
        pairs[i] = Pair::<E>::cast_from(pair);
    }
    pairs
}

/// Adds a product to the `square`-th square of `sums`.
#[cube]
pub(super) fn multiply<E: Float>(
    left: &Array<Pair<E>>,
    right: &Array<Pair<E>>,
    sums: &mut Array<f32>,
    square: usize,
    #[comptime] shape: PlaneShape,
) {
    if comptime!(shape.lanes == 1) {
        multiply_alone::<E>(left, right, sums, square, shape);
    } else {
        let product = MmaDefinition::<E, E, f32>::new(16usize, 8usize, 16usize);
        // An instruction has eight columns of the right operand and of the result.
        #[unroll]
        for half in 0..2usize {
            let at = square * comptime!(shape.numbers()) + half * 4;
            let mut columns = Array::<Pair<E>>::new(2usize);
            let mut before = Array::<Pair<f32>>::new(2usize);
            #[unroll]
            for i in 0..2usize {
                columns[i] = right[half * 2 + i];
                let mut pair = Pair::<f32>::empty();
                pair.insert(0usize, sums[at + 2 * i]);
                pair.insert(1usize, sums[at + 2 * i + 1]);
                before[i] = pair;
            }
            let after = product.execute(left, &columns, &before);
            #[unroll]
            for i in 0..2usize {
                sums[at + 2 * i] = after[i].extract(0usize);
                sums[at + 2 * i + 1] = after[i].extract(1usize);
            }
        }
    }
}

/// [`multiply`] for one lane.
#[cube]
fn multiply_alone<E: Float>(
    left: &Array<Pair<E>>,
    right: &Array<Pair<E>>,
    sums: &mut Array<f32>,
    square: usize,
    #[comptime] shape: PlaneShape,
) {
    // Pairs of a row of a block, and of a block.
    let of_row = comptime!(BLOCK / 2);
    let of_block = comptime!(BLOCK * BLOCK / 2);
    for row in 0..SQUARE.runtime() {
        for column in 0..SQUARE.runtime() {
            let left_row = row / BLOCK * of_block + row % BLOCK * of_row;
            let right_row = column / BLOCK * 2 * of_block + column % BLOCK * of_row;
            let mut sum = 0.0f32;
            for half in 0..2usize.runtime() {
                #[unroll]
                for i in 0..of_row {
                    let a = Pair::<f32>::cast_from(left[left_row + half * 2 * of_block + i]);
                    let b = Pair::<f32>::cast_from(right[right_row + half * of_block + i]);
                    let both = a * b;
                    sum += both.extract(0usize) + both.extract(1usize);
                }
            }
            let block = column / BLOCK * 2 + row / BLOCK;
            let at = (block * BLOCK + row % BLOCK) * BLOCK + column % BLOCK;
            sums[square * comptime!(shape.numbers()) + at] += sum;
        }
    }
}

/// The highest of a row's numbers, from the highest of each lane.
#[cube]
pub(super) fn highest_of_row(x: f32, #[comptime] shape: PlaneShape) -> f32 {
    if comptime!(shape.lanes == 1) {
        x
    } else {
        // The four lanes of a row are neighbors.
        let of_two = max(x, plane_shuffle_xor(x, 1u32));
        max(of_two, plane_shuffle_xor(of_two, 2u32))
    }
}

/// The sum of a row's numbers, from the sum of each lane.
#[cube]
pub(super) fn sum_of_row(x: f32, #[comptime] shape: PlaneShape) -> f32 {
    if comptime!(shape.lanes == 1) {
        x
    } else {
        let of_two = x + plane_shuffle_xor(x, 1u32);
        of_two + plane_shuffle_xor(of_two, 2u32)
    }
}

#[cfg(test)]
mod tests {
    use super::super::shape::tests::{ptx_left, ptx_right};
    use super::*;

    /// Row and column in a square of a tile of the numbers that `ldmatrix.x4` gives to a lane (PTX
    /// ISA, "ldmatrix"): register `b` has two neighbors of row `lane / 4` of matrix `b`, or of this
    /// column if the matrices are transposed.
    fn loaded(lane: usize, operand: Operand) -> Vec<(usize, usize)> {
        let in_matrix = |matrix: usize, row: usize, column: usize| {
            let (row, chunk) = address_of_lane(matrix * 8 + row, operand);
            (row, chunk * BLOCK + column)
        };
        let (across, along) = (lane / 4, lane % 4 * 2);
        let of_register = |b: usize| {
            [0, 1].map(|i| match operand.transposes() {
                false => in_matrix(b, across, along + i),
                true => in_matrix(b, along + i, across),
            })
        };
        (0..4).flat_map(of_register).collect()
    }

    #[test]
    fn lanes_load_the_operands_of_ptx() {
        for lane in 0..32 {
            let left: Vec<_> = (0..8).map(|i| ptx_left(lane, i)).collect();
            assert_eq!(loaded(lane, Operand::Left), left);
            // Two operands of eight columns.
            let right: Vec<_> = (0..8)
                .map(|i| (ptx_right(lane, i % 4), i / 4 * 8))
                .map(|((row, column), first)| (row, first + column))
                .collect();
            assert_eq!(loaded(lane, Operand::Right), right);
            let transposed: Vec<_> = right.iter().map(|(row, column)| (*column, *row)).collect();
            assert_eq!(loaded(lane, Operand::RightTransposed), transposed);
        }
    }
}
