//! Optimizer rules: the numbers of one step and the state of one parameter.

use burn::tensor::Tensor;

/// One optimizer update of a parameter; all numbers of this step are filled in. Each was computed in double
/// precision and rounded once, as torch does: `1 − 0.999` in float32 would be off by a hundred-thousandth.
#[derive(Debug, Clone, Copy)]
pub struct UpdateRule {
    pub kind: UpdateKind,
    /// Factor on the gradient: clipping.
    pub gradient_scale: f32,
    /// Factor on the parameter that is added to the gradient: weight decay of all but AdamW.
    pub weight_decay: f32,
    /// Factor on the parameter itself: weight decay of AdamW.
    pub shrink: f32,
    /// The learning rate; for Adam divided by `1 − β₁ᵗ`.
    pub step_size: f32,
    pub epsilon: f32,
}

/// The formulas of torch's optimizers, with `s` for the step size.
#[derive(Debug, Clone, Copy)]
pub enum UpdateKind {
    /// `m ← m + w₁(g − m)`, `v ← β₂v + w₂g²`, `p ← p − s · m / (√v/√c₂ + ε)` with `wᵢ = 1 − βᵢ` and
    /// `c₂ = 1 − β₂ᵗ`.
    Adam { weight1: f32, beta2: f32, weight2: f32, sqrt_correction2: f32 },
    /// `v ← αv + wg²`, `p ← p − s · g / (√v + ε)` with `w = 1 − α`.
    RmsProp { alpha: f32, weight: f32 },
}

/// Parameter with the optimizer's running means, all of one length. RMSprop leaves `first` empty.
#[derive(Debug)]
pub struct UpdateState {
    pub parameter: Tensor<1>,
    pub first: Tensor<1>,
    pub second: Tensor<1>,
}
