//! The GPU form of attention: one launch a batch forward and three backward, with sums in float32.
//! Scores are never in memory; the log-sum-exp of each row is kept for the backward pass.

mod kernels;
pub(super) mod prepared;
mod tables;
mod tile;

use std::sync::Arc;

use burn::backend::{Cube, tensor::FloatTensor};
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::{AttentionLayout, SegmentAttention, SegmentAttentionGrad};
#[cfg(feature = "ptx")]
use crate::cube::ptx::{Ptx, SHARED_MEMORY, Target, argument, device, properties, settings};
use crate::cube::{address, buffer, contiguous, cubes, elements, elementwise, empty};
use crate::timed;
use prepared::{Inputs, Prepared};
#[cfg(feature = "ptx")]
use prepared::{UNITS, largest_tile};
#[cfg(feature = "ptx")]
use tile::TileShape;

/// The window of a layer without one: more than any sequence has tokens.
const NO_WINDOW: usize = 1 << 30;

/// What the kernels read besides the inputs, on the device of `like`.
fn on_device(layout: &AttentionLayout, like: &CubeTensor) -> Arc<Prepared> {
    let AttentionLayout { segments, head_dim, cos, sin, .. } = layout;
    layout.on_device.get(Inputs { segments, head_dim: *head_dim, cos, sin }, like)
}

impl SegmentAttention for Cube {
    fn segment_attention(
        q_t: FloatTensor<Self>,
        k_t: FloatTensor<Self>,
        v_t: FloatTensor<Self>,
        layout: Arc<AttentionLayout>,
    ) -> FloatTensor<Self> {
        Self::segment_attention_keeping(q_t, k_t, v_t, &layout).0
    }
}

impl SegmentAttentionGrad for Cube {
    fn segment_attention_keeping(
        q_t: FloatTensor<Self>,
        k_t: FloatTensor<Self>,
        v_t: FloatTensor<Self>,
        layout: &Arc<AttentionLayout>,
    ) -> (FloatTensor<Self>, Vec<FloatTensor<Self>>) {
        timed!("attention");
        let [q, k, v] = [q_t, k_t, v_t].map(contiguous);
        let prepared = on_device(layout, &q);
        let tokens = layout.segments.tokens();
        let out = empty(&q, [tokens, layout.heads * layout.head_dim], q.dtype);
        let log_sums = empty(&q, [tokens, layout.heads], DType::F32);
        if prepared.queries.len > 0 {
            let table = &prepared.queries;
            let (count, cube) = cubes(table.len * layout.heads, prepared.shape.units);
            // SAFETY: the table has tokens of the batch only, and each in one tile.
            unsafe {
                kernels::forward::launch_unchecked(
                    &q.client,
                    count,
                    cube,
                    address([&q, &k]),
                    buffer(&q),
                    buffer(&k),
                    buffer(&v),
                    buffer(&prepared.cos),
                    buffer(&prepared.sin),
                    buffer(&table.tiles),
                    buffer(&table.spans),
                    buffer(&out),
                    buffer(&log_sums),
                    layout.heads,
                    layout.kv_heads,
                    layout.window.unwrap_or(NO_WINDOW),
                    layout.scale(),
                    prepared.shape,
                    elements(q.dtype),
                );
            }
        }
        (out.clone(), vec![out, log_sums])
    }

    fn segment_attention_grad(
        inputs: [FloatTensor<Self>; 3],
        kept: Vec<FloatTensor<Self>>,
        d_t: FloatTensor<Self>,
        layout: &Arc<AttentionLayout>,
        [q_wanted, k_wanted, v_wanted]: [bool; 3],
    ) -> [Option<FloatTensor<Self>>; 3] {
        timed!("attention.backward");
        let [out, log_sums] = kept.try_into().expect("the forward pass kept two tensors");
        let [q, k, v] = inputs.map(contiguous);
        let d = contiguous(d_t);
        let products = products_of_heads(&out, &d, layout);
        let backward = Backward { q, k, v, d, log_sums, products, layout };
        let dq = q_wanted.then(|| backward.query_gradient());
        let (dk, dv) = match k_wanted || v_wanted {
            true => {
                let (dk, dv) = backward.key_value_gradients();
                (k_wanted.then_some(dk), v_wanted.then_some(dv))
            }
            false => (None, None),
        };
        [dq, dk, dv]
    }
}

/// `Σ d · out` over the elements of each head, `[t, h]`.
fn products_of_heads(out: &CubeTensor, d: &CubeTensor, layout: &AttentionLayout) -> CubeTensor {
    let len = layout.segments.tokens() * layout.heads;
    let products = empty(out, [layout.segments.tokens(), layout.heads], DType::F32);
    let (count, cube) = elementwise(&out.client, len);
    if len > 0 {
        // SAFETY: a unit has one head of one token.
        unsafe {
            kernels::products_of_heads::launch_unchecked(
                &out.client,
                count,
                cube,
                address([out]),
                buffer(out),
                buffer(d),
                buffer(&products),
                layout.head_dim,
                elements(out.dtype),
            );
        }
    }
    products
}

/// The inputs of the backward kernels.
struct Backward<'a> {
    q: CubeTensor,
    k: CubeTensor,
    v: CubeTensor,
    d: CubeTensor,
    log_sums: CubeTensor,
    products: CubeTensor,
    layout: &'a AttentionLayout,
}

impl Backward<'_> {
    fn query_gradient(&self) -> CubeTensor {
        let (q, layout) = (&self.q, self.layout);
        let prepared = on_device(layout, q);
        let dq = empty(q, q.meta.shape().dims::<2>(), q.dtype);
        let table = &prepared.queries;
        let (count, cube) = cubes(table.len * layout.heads, prepared.shape.units);
        if table.len > 0 {
            // SAFETY: the table has tokens of the batch only, and each in one tile.
            unsafe {
                kernels::query_gradient::launch_unchecked(
                    &q.client,
                    count,
                    cube,
                    address([q, &self.k]),
                    buffer(q),
                    buffer(&self.k),
                    buffer(&self.v),
                    buffer(&prepared.cos),
                    buffer(&prepared.sin),
                    buffer(&table.tiles),
                    buffer(&table.spans),
                    buffer(&self.d),
                    buffer(&self.log_sums),
                    buffer(&self.products),
                    buffer(&dq),
                    layout.heads,
                    layout.kv_heads,
                    layout.window.unwrap_or(NO_WINDOW),
                    layout.scale(),
                    prepared.shape,
                    elements(q.dtype),
                );
            }
        }
        dq
    }

    fn key_value_gradients(&self) -> (CubeTensor, CubeTensor) {
        let (k, layout) = (&self.k, self.layout);
        let prepared = on_device(layout, k);
        let [dk, dv] = [k, &self.v].map(|x| empty(x, x.meta.shape().dims::<2>(), x.dtype));
        let table = &prepared.keys;
        let (count, cube) = cubes(table.len * layout.kv_heads, prepared.shape.units);
        if table.len > 0 {
            // SAFETY: the table has tokens of the batch only, and each in one tile.
            unsafe {
                kernels::key_value_gradients::launch_unchecked(
                    &k.client,
                    count,
                    cube,
                    address([&self.q, k]),
                    buffer(&self.q),
                    buffer(k),
                    buffer(&self.v),
                    buffer(&prepared.cos),
                    buffer(&prepared.sin),
                    buffer(&table.tiles),
                    buffer(&table.spans),
                    buffer(&self.d),
                    buffer(&self.log_sums),
                    buffer(&self.products),
                    buffer(&dk),
                    buffer(&dv),
                    layout.heads,
                    layout.kv_heads,
                    layout.window.unwrap_or(NO_WINDOW),
                    layout.scale(),
                    prepared.shape,
                    elements(k.dtype),
                );
            }
        }
        (dk, dv)
    }
}

/// The kernels as PTX, for heads of 64 and 128 elements.
#[cfg(feature = "ptx")]
pub(crate) fn ptx(target: Target) -> Vec<Ptx> {
    [64, 128].into_iter().flat_map(|width| ptx_of_width(target, width)).collect()
}

#[cfg(feature = "ptx")]
fn ptx_of_width(target: Target, width: usize) -> [Ptx; 3] {
    let b = argument;
    let shape = TileShape { tile: largest_tile(width, SHARED_MEMORY), width, units: UNITS };
    let (settings, elements) = (settings(UNITS), target.elements);
    let forward = kernels::forward::Forward::new(
        settings.clone(),
        device(),
        properties(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        (),
        (),
        (),
        (),
        shape,
        elements,
    );
    let queries = kernels::query_gradient::QueryGradient::new(
        settings.clone(),
        device(),
        properties(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        (),
        (),
        (),
        (),
        shape,
        elements,
    );
    let keys = kernels::key_value_gradients::KeyValueGradients::new(
        settings,
        device(),
        properties(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        b(),
        (),
        (),
        (),
        (),
        shape,
        elements,
    );
    let name = |what: &str| format!("attention, {what}, e = {width}");
    [
        target.compile(&name("forward"), UNITS, forward),
        target.compile(&name("gradient of queries"), UNITS, queries),
        target.compile(&name("gradients of keys and values"), UNITS, keys),
    ]
}
