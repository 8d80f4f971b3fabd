//! Operations on whole parameters: sums of gradients, their squares, optimizer updates.
//!
//! All vectors are without autodiff, and float32 unless a function says otherwise. The CPU and the
//! GPU form work in place if the caller holds the only reference to the vector.

mod composed;
#[cfg(feature = "cube")]
mod cube;
mod factored;
mod flex;
mod rule;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
#[cfg(feature = "cube")]
use burn::tensor::TensorData;
use burn::tensor::{DType, Device, Tensor};

use super::form::Form;
use super::host;
use super::in_type;
pub use composed::update_composed;
use composed::{add_rows_into_composed, squares_composed};
#[cfg(feature = "ptx")]
pub(crate) use cube::ptx;
pub use factored::{FactoredMeans, FactoredRule};
pub use rule::{UpdateKind, UpdateRule, UpdateState};

/// Elements whose squares are summed together. A slice of a parameter that begins at a multiple of
/// this has the block sums of the whole parameter.
pub const SQUARES_BLOCK: usize = 1 << 12;

/// `sum + value`, both `[n]`, in place if `sum` is the only reference. `value` may be float32,
/// bfloat16 or float16; its numbers are added as float32.
pub fn add_into(sum: Tensor<1>, value: Tensor<1>) -> Tensor<1> {
    let form = form(&sum.device(), sum.dtype());
    let value = match form {
        // The kernel converts each number.
        Form::Cube => value,
        Form::Composed | Form::Flex => in_type(value, DType::F32),
    };
    match form {
        Form::Composed => sum + value,
        Form::Flex | Form::Cube => {
            Tensor::from_dispatch(Dispatch::add_vectors(sum.into_dispatch(), value.into_dispatch()))
        }
    }
}

/// Elements `start..start + len` of `vector`, as the value of a parameter. On GPUs a view, or a copy
/// on the device if the elements do not begin and end at aligned addresses: its kernels take parts
/// of a buffer as they are. On the CPU a copy, because Burn's own operations would copy a view each
/// time that they read it.
pub fn part(vector: &Tensor<1>, start: usize, len: usize) -> Tensor<1> {
    let (device, dtype) = (vector.device(), vector.dtype());
    let view = vector.clone().narrow(0, start, len);
    match Form::fused(&device, dtype) {
        Form::Cube => view,
        // The host's memory is the device's.
        Form::Composed | Form::Flex => Tensor::from_data(view.into_data(), (&device, dtype)),
    }
}

/// Adds row `i` of `rows` (`[t, d]`) to row `ids[i]` of `sum` (`[v · d]`), in the order of the
/// rows, in place if `sum` is the only reference.
pub fn add_rows_into(sum: Tensor<1>, ids: &[u32], rows: Tensor<2>) -> Tensor<1> {
    match form(&sum.device(), sum.dtype()) {
        Form::Composed => add_rows_into_composed(sum, ids, rows),
        Form::Flex | Form::Cube => Tensor::from_dispatch(Dispatch::add_rows(
            sum.into_dispatch(),
            Arc::new(ids.to_vec()),
            rows.into_dispatch(),
        )),
    }
}

/// `Σ x²` of each block of [`SQUARES_BLOCK`] elements of `x` (`[n]`), in double precision. The
/// result does not depend on the number of threads or ranks. The composed form does not sum by
/// blocks: its first number is the sum over the whole vector, computed in float32, and the others
/// are 0.
pub fn block_squares(x: &Tensor<1>) -> Vec<f64> {
    let blocks = x.dims()[0].div_ceil(SQUARES_BLOCK);
    let sums = match form(&x.device(), x.dtype()) {
        Form::Composed => squares_composed(x),
        Form::Flex | Form::Cube => {
            Tensor::from_dispatch(Dispatch::squares(x.clone().into_dispatch()))
        }
    };
    let mut sums = in_f64(sums);
    sums.resize(blocks, 0.0);
    sums
}

/// Whether `part` lies in the memory of `vector`, on a device of which this can be known.
pub fn is_view(part: &Tensor<1>, vector: &Tensor<1>) -> bool {
    #[cfg(feature = "cube")]
    if super::form::is_cube(&part.device()) && super::form::is_cube(&vector.device()) {
        return cube::share_memory(part.clone(), vector.clone());
    }
    let _ = (part, vector);
    false
}

/// `Σ x²` over the elements of all `vectors`, in double precision. On the CPU the blocks of
/// [`block_squares`] are added in their order. A GPU adds them on the device, and one number is
/// read.
pub fn sum_of_squares<'a>(vectors: impl IntoIterator<Item = &'a Tensor<1>>) -> f64 {
    let vectors: Vec<&Tensor<1>> = vectors.into_iter().collect();
    #[cfg(feature = "cube")]
    if let Some(blocks) = blocks_on_device(&vectors) {
        let blocks = Dispatch::sum_of_blocks(blocks.into_dispatch());
        return in_f64(Tensor::from_dispatch(blocks)).into_iter().sum();
    }
    let blocks = vectors.into_iter().flat_map(block_squares);
    blocks.fold(0.0, |total, block| total + block)
}

/// [`block_squares`] of all `vectors`, one after another. A GPU's are read at once.
pub fn all_block_squares(vectors: &[&Tensor<1>]) -> Vec<f64> {
    #[cfg(feature = "cube")]
    if let Some(blocks) = blocks_on_device(vectors) {
        let mut blocks = in_f64(blocks);
        blocks.pop();
        return blocks;
    }
    vectors.iter().flat_map(|x| block_squares(x)).collect()
}

/// The sum of blocks of squares, with the bits of [`sum_of_squares`] over the vectors on `device`
/// that have these blocks.
pub fn sum_of_blocks(mut blocks: Vec<f64>, device: &Device) -> f64 {
    #[cfg(feature = "cube")]
    if Form::fused(device, DType::F32) == Form::Cube {
        // As in `blocks_on_device`.
        blocks.push(0.0);
        let len = blocks.len();
        let blocks: Tensor<1> = host::upload(TensorData::new(blocks, [len]), device, DType::F64);
        let total = Dispatch::sum_of_blocks(blocks.into_dispatch());
        return in_f64(Tensor::from_dispatch(total)).into_iter().sum();
    }
    let _ = device;
    blocks.drain(..).fold(0.0, |total, block| total + block)
}

/// [`block_squares`] of all `vectors`, and a zero behind them, if all of them are on a device with
/// a form for GPUs.
#[cfg(feature = "cube")]
fn blocks_on_device(vectors: &[&Tensor<1>]) -> Option<Tensor<1>> {
    let is_cube = |x: &&Tensor<1>| form(&x.device(), x.dtype()) == Form::Cube;
    let first = vectors.first()?;
    if !vectors.iter().all(is_cube) {
        return None;
    }
    let blocks_of = |x: &Tensor<1>| x.dims()[0].div_ceil(SQUARES_BLOCK);
    let blocks: usize = vectors.iter().map(|x| blocks_of(x)).sum();
    // One element more, which stays 0: CubeCL has no empty buffers.
    let target = (&first.device(), DType::F64);
    let mut sums = Tensor::<1>::zeros([blocks + 1], target).into_dispatch();
    let mut at = 0;
    for x in vectors {
        sums = Dispatch::squares_into(sums, (*x).clone().into_dispatch(), at);
        at += blocks_of(x);
    }
    Some(Tensor::from_dispatch(sums))
}

/// The numbers of a vector, read from its device.
fn in_f64(x: Tensor<1>) -> Vec<f64> {
    host::read(x).convert::<f64>().try_into_vec::<f64>().expect("converted to float64")
}

/// Whether no element of `x` (`[n]`) is NaN or infinite. It reads the vector once, on its device.
pub fn is_finite(x: &Tensor<1>) -> bool {
    match form(&x.device(), x.dtype()) {
        // Squares of float32 are finite in double precision, and so is their sum.
        Form::Flex | Form::Cube => sum_of_squares([x]).is_finite(),
        // Only NaN and infinite numbers give NaN.
        Form::Composed => in_f64((x.clone() * 0.0).sum()).iter().all(|sum| sum.is_finite()),
    }
}

/// Applies `rule` to `state` with the gradient `g` (`[n]`), in place if `state` holds the only
/// references to its vectors.
pub fn update(state: UpdateState, g: Tensor<1>, rule: UpdateRule) -> UpdateState {
    match form(&state.parameter.device(), state.parameter.dtype()) {
        Form::Composed => return update_composed(state, g, rule),
        Form::Flex | Form::Cube => {}
    }
    let (parameter, first, second) = Dispatch::update_vectors(
        state.parameter.into_dispatch(),
        state.first.into_dispatch(),
        state.second.into_dispatch(),
        g.into_dispatch(),
        rule,
    );
    UpdateState {
        parameter: Tensor::from_dispatch(parameter),
        first: Tensor::from_dispatch(first),
        second: Tensor::from_dispatch(second),
    }
}

/// [`update`], and the new parameter in type `dtype`: the weights of a model that `state` has in
/// float32. A GPU rounds them in the same pass.
pub fn update_rounded(
    state: UpdateState,
    g: Tensor<1>,
    rule: UpdateRule,
    dtype: DType,
) -> (UpdateState, Tensor<1>) {
    #[cfg(feature = "cube")]
    if dtype != DType::F32 && form(&state.parameter.device(), state.parameter.dtype()) == Form::Cube
    {
        let (parameter, first, second, rounded) = Dispatch::update_and_round(
            state.parameter.into_dispatch(),
            state.first.into_dispatch(),
            state.second.into_dispatch(),
            g.into_dispatch(),
            rule,
            dtype,
        );
        let [parameter, first, second, rounded] =
            [parameter, first, second, rounded].map(Tensor::from_dispatch);
        return (UpdateState { parameter, first, second }, rounded);
    }
    let state = update(state, g, rule);
    let rounded = in_type(state.parameter.clone(), dtype);
    (state, rounded)
}

/// The form that runs for vectors of this type on this device.
pub fn form(device: &Device, dtype: DType) -> Form {
    match dtype {
        DType::F32 => Form::fused(device, dtype),
        _ => Form::Composed,
    }
}

/// Back ends on which the sum of squares of several vectors stays on the device.
#[cfg(feature = "cube")]
#[backend_extension(Cube)]
pub trait SquaresOnDevice: Backend {
    /// `sums` (`[m]` in float64) with the sums of the blocks of `x` from place `at` on, in place.
    fn squares_into(sums: FloatTensor<Self>, x: FloatTensor<Self>, at: usize) -> FloatTensor<Self>;

    /// The sum of `sums` (`[m]` in float64), `[1]`.
    fn sum_of_blocks(sums: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// Back ends that round the new parameter in the pass that computes it.
#[cfg(feature = "cube")]
#[backend_extension(Cube)]
pub trait RoundingUpdate: Backend {
    /// See [`update_rounded`]: parameter, both means, and the parameter in type `dtype`.
    fn update_and_round(
        parameter: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        g: FloatTensor<Self>,
        rule: UpdateRule,
        dtype: DType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

/// Back ends with their own form of the operations of this module.
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait VectorPasses: Backend {
    /// See [`add_into`].
    fn add_vectors(sum: FloatTensor<Self>, value: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`add_rows_into`].
    fn add_rows(
        sum: FloatTensor<Self>,
        ids: Arc<Vec<u32>>,
        rows: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// See [`block_squares`]. Returns a float64 for each block.
    fn squares(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`update()`].
    fn update_vectors(
        parameter: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        g: FloatTensor<Self>,
        rule: UpdateRule,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}
