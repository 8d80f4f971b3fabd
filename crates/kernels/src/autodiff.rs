//! Registration of an operation with Burn's autodiff.
//!
//! An operation implements its forward and its backward pass ([`Differentiable`]), and [`register`]
//! adds it to the graph. The graph keeps the inputs for the backward pass, and the tensors that the
//! operation asks it to keep ([`Differentiable::forward_keeping`]). The operation recomputes
//! whatever else it needs.

use std::fmt::Debug;
use std::marker::PhantomData;

use burn::backend::{
    Autodiff, Backend,
    autodiff::{
        NodeId,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::FloatTensor,
};

/// An operation with `N` float tensors as inputs and one as output. The implementing type holds all
/// other parameters of the operation.
pub trait Differentiable<B: Backend, const N: usize>: Clone + Debug + Send + 'static {
    /// The output for these inputs.
    fn forward(&self, inputs: [FloatTensor<B>; N]) -> FloatTensor<B>;

    /// The output, and tensors that the graph keeps for [`Self::backward_from`]. Most operations
    /// keep none.
    fn forward_keeping(
        &self,
        inputs: [FloatTensor<B>; N],
    ) -> (FloatTensor<B>, Vec<FloatTensor<B>>) {
        (self.forward(inputs), Vec::new())
    }

    /// Gradients with respect to the inputs for the output gradient `d`: `Some` for each input that
    /// is `wanted`, which are the tracked ones. Gradients of the others need not be computed.
    fn backward(
        &self,
        inputs: [FloatTensor<B>; N],
        d: FloatTensor<B>,
        wanted: [bool; N],
    ) -> [Option<FloatTensor<B>>; N];

    /// [`Self::backward`], given what [`Self::forward_keeping`] kept.
    fn backward_from(
        &self,
        inputs: [FloatTensor<B>; N],
        _kept: Vec<FloatTensor<B>>,
        d: FloatTensor<B>,
        wanted: [bool; N],
    ) -> [Option<FloatTensor<B>>; N] {
        self.backward(inputs, d, wanted)
    }
}

/// Runs `operation` on `inputs` and, if an input is tracked, adds it to the autodiff graph. The
/// operation counts as compute-bound: Burn's gradient checkpointing never recomputes its output.
pub fn register<B: Backend, C: CheckpointStrategy, Op: Differentiable<B, N>, const N: usize>(
    operation: Op,
    inputs: [FloatTensor<Autodiff<B, C>>; N],
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = inputs.each_ref().map(|input| input.node());
    match Step::<Op>(PhantomData).prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let ids = inputs.each_ref().map(|input| prep.checkpoint(input));
            let inputs = inputs.map(|input| input.into_primitive());
            let (out, kept) = operation.forward_keeping(inputs);
            prep.finish((ids, operation, kept), out)
        }
        OpsKind::UnTracked(prep) => {
            prep.finish(operation.forward(inputs.map(|input| input.into_primitive())))
        }
    }
}

/// The backward step of an operation `Op` in the graph.
#[derive(Debug)]
struct Step<Op>(PhantomData<Op>);

impl<B: Backend, Op: Differentiable<B, N>, const N: usize> Backward<B, N> for Step<Op> {
    type State = ([NodeId; N], Op, Vec<FloatTensor<B>>);

    fn backward(
        self,
        ops: Ops<Self::State, N>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let d = grads.consume::<B>(&ops.node);
        let (ids, operation, kept) = ops.state;
        let inputs = ids.map(|id| checkpointer.retrieve_node_output(id));
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let gradients = operation.backward_from(inputs, kept, d, wanted);
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(node) = parent {
                let gradient = gradient.expect("every wanted gradient is computed");
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}
