//! `x · weightᵀ` with the weight in Hugging Face's `[out, in]` layout.
//!
//! Burn's own matmul would return the weight's gradient as a transposed view, to be copied before
//! it can be used; here it comes out in the weight's own layout.

use burn::backend::{
    Autodiff, Backend, Dispatch, Flex,
    autodiff::{
        NodeId,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    backend_extension,
    tensor::FloatTensor,
};
use burn::tensor::Tensor;

use super::{is_flex, timed};

/// `[t, in]` by `[out, in]` gives `[t, out]`.
pub fn linear(x_ti: Tensor<2>, weight_oi: Tensor<2>) -> Tensor<2> {
    if !is_flex(&x_ti.device()) {
        return x_ti.matmul(weight_oi.transpose());
    }
    let out = Dispatch::linear_no_bias(x_ti.into_dispatch(), weight_oi.into_dispatch());
    Tensor::from_dispatch(out)
}

#[backend_extension(Autodiff, Flex)]
pub trait LinearNoBias: Backend {
    /// See [`linear`].
    fn linear_no_bias(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl LinearNoBias for Flex {
    fn linear_no_bias(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        timed!("linear");
        use burn::backend::ops::FloatTensorOps;
        Self::float_matmul(x, Self::float_transpose(weight))
    }
}

impl<B: LinearNoBias, C: CheckpointStrategy> LinearNoBias for Autodiff<B, C> {
    fn linear_no_bias(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct LinearBackward;

        impl<B: LinearNoBias> Backward<B, 2> for LinearBackward {
            type State = [NodeId; 2];

            /// `dx = d · weight`, `dweight = dᵀ · x`.
            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                checkpointer: &mut Checkpointer,
            ) {
                timed!("linear.backward");
                let d = grads.consume::<B>(&ops.node);
                let [x, weight] = ops.state.map(|id| checkpointer.retrieve_node_output(id));
                let [x_node, weight_node] = ops.parents;
                if let Some(node) = x_node {
                    grads.register::<B>(node.id, B::float_matmul(d.clone(), weight));
                }
                if let Some(node) = weight_node {
                    grads.register::<B>(node.id, B::float_matmul(B::float_transpose(d), x));
                }
            }
        }

        match LinearBackward.prepare::<C>([x.node(), weight.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let inputs = [prep.checkpoint(&x), prep.checkpoint(&weight)];
                prep.finish(inputs, B::linear_no_bias(x.into_primitive(), weight.into_primitive()))
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::linear_no_bias(x.into_primitive(), weight.into_primitive()))
            }
        }
    }
}
