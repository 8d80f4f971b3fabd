//! The GPU form of attention: one launch a batch forward and three backward, with sums in float32.
//! Scores are never in memory; the log-sum-exp of each row is kept for the backward pass.

mod heads;
mod launches;
mod mma;
mod plain;
pub(super) mod prepared;
mod products;
mod tables;

use std::sync::Arc;

use burn::backend::{Cube, tensor::FloatTensor};
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::{AttentionLayout, SegmentAttention, SegmentAttentionGrad};
#[cfg(feature = "ptx")]
use crate::cube::elements;
#[cfg(feature = "ptx")]
use crate::cube::ptx::{Ptx, Target};
use crate::cube::{aligned, empty};
use crate::timed;
use heads::HeadShape;
use prepared::{Inputs, Kernels, Prepared};
use products::products_of_heads;

/// The window of a layer without one: more than any sequence has tokens.
const NO_WINDOW: usize = 1 << 30;

/// What the kernels read besides the inputs, on the device of `like`.
fn on_device(layout: &AttentionLayout, like: &CubeTensor) -> Arc<Prepared> {
    let AttentionLayout { segments, cos, sin, .. } = layout;
    let heads = HeadShape {
        width: layout.head_dim,
        angles: layout.angles,
        is_capped: layout.softcap.is_some(),
    };
    layout.on_device.get(Inputs { segments, heads, cos, sin }, like)
}

/// What the forward kernel reads and writes.
struct Forward<'a> {
    q: CubeTensor,
    k: CubeTensor,
    v: CubeTensor,
    out: CubeTensor,
    log_sums: CubeTensor,
    prepared: &'a Prepared,
    layout: &'a AttentionLayout,
}

/// What the backward kernels read.
struct Backward<'a> {
    q: CubeTensor,
    k: CubeTensor,
    v: CubeTensor,
    d: CubeTensor,
    log_sums: CubeTensor,
    products: CubeTensor,
    prepared: &'a Prepared,
    layout: &'a AttentionLayout,
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
        let [q, k, v] = [q_t, k_t, v_t].map(aligned);
        let prepared = on_device(layout, &q);
        let tokens = layout.segments.tokens();
        let out = empty(&q, [tokens, layout.heads * layout.head_dim], q.dtype);
        let log_sums = empty(&q, [tokens, layout.heads], DType::F32);
        let call = Forward { q, k, v, out, log_sums, prepared: &prepared, layout };
        if prepared.queries.len > 0 {
            match prepared.kernels {
                Kernels::Mma(shape) => mma::forward(&call, shape),
                Kernels::Plain(shape) => plain::forward(&call, shape),
            }
        }
        let Forward { out, log_sums, .. } = call;
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
        let [q, k, v] = inputs.map(aligned);
        let d = aligned(d_t);
        let products = products_of_heads(&out, &d, layout);
        let prepared = on_device(layout, &q);
        let call = Backward { q, k, v, d, log_sums, products, prepared: &prepared, layout };
        let dq = q_wanted.then(|| call.query_gradient());
        let (dk, dv) = match k_wanted || v_wanted {
            true => {
                let (dk, dv) = call.key_value_gradients();
                (k_wanted.then_some(dk), v_wanted.then_some(dv))
            }
            false => (None, None),
        };
        [dq, dk, dv]
    }
}

impl Backward<'_> {
    fn query_gradient(&self) -> CubeTensor {
        let dq = empty(&self.q, self.q.meta.shape().dims::<2>(), self.q.dtype);
        if self.prepared.queries.len > 0 {
            match self.prepared.kernels {
                Kernels::Mma(shape) => mma::query_gradient(self, &dq, shape),
                Kernels::Plain(shape) => plain::query_gradient(self, &dq, shape),
            }
        }
        dq
    }

    fn key_value_gradients(&self) -> (CubeTensor, CubeTensor) {
        let like = |x: &CubeTensor| empty(x, x.meta.shape().dims::<2>(), x.dtype);
        let (dk, dv) = (like(&self.k), like(&self.v));
        if self.prepared.keys.len > 0 {
            match self.prepared.kernels {
                Kernels::Mma(shape) => mma::key_value_gradients(self, &dk, &dv, shape),
                Kernels::Plain(shape) => plain::key_value_gradients(self, &dk, &dv, shape),
            }
        }
        (dk, dv)
    }
}

/// The kernels as PTX, for heads of 64 and 128 elements. For elements of 16 bits, these are the
/// kernels on tensor cores.
#[cfg(feature = "ptx")]
pub(crate) fn ptx(target: Target) -> Vec<Ptx> {
    match target.elements == elements(DType::F32) {
        true => plain::ptx(target),
        false => mma::ptx(target),
    }
}
