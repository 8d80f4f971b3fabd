//! Optimizer rules: the numbers of one step and the state of one parameter.

use burn::tensor::Tensor;

/// One optimizer update of a parameter, with the numbers of this step. The caller computes each
/// number in double precision and rounds it once, as torch does: `1 − 0.999` in float32 has an
/// error of 1e-5.
#[derive(Debug, Clone, Copy)]
pub struct UpdateRule {
    /// The formula.
    pub kind: UpdateKind,
    /// Factor on the gradient, from gradient clipping.
    pub gradient_scale: f32,
    /// Factor on the parameter, which is then added to the gradient: coupled weight decay.
    pub weight_decay: f32,
    /// Factor on the parameter itself: decoupled weight decay (AdamW, arXiv 1711.05101).
    pub shrink: f32,
    /// The learning rate; for Adam divided by `1 − β₁ᵗ`.
    pub step_size: f32,
    /// Term `ε` in the denominator.
    pub epsilon: f32,
}

/// The formulas of torch's optimizers, with parameter `p`, gradient `g` and step size `s`.
#[derive(Debug, Clone, Copy)]
pub enum UpdateKind {
    /// `m ← m + w₁(g − m)`, `v ← β₂v + w₂g²`, `p ← p − s · m / (√v/√c₂ + ε)` with `wᵢ = 1 − βᵢ` and
    /// `c₂ = 1 − β₂ᵗ` (arXiv 1412.6980).
    Adam {
        /// `w₁`.
        weight1: f32,
        /// `β₂`.
        beta2: f32,
        /// `w₂`.
        weight2: f32,
        /// `√c₂`.
        sqrt_correction2: f32,
    },
    /// `v ← αv + wg²`, `p ← p − s · g / (√v + ε)`; with `w = 1 − α` RMSprop, with `α = w = 1`
    /// Adagrad.
    RmsProp {
        /// `α`.
        alpha: f32,
        /// `w`.
        weight: f32,
    },
    /// SGD: `m ← μm + wg`, `p ← p − s · m`, with Nesterov momentum `p ← p − s · (g + μm)`. In the
    /// first step `m ← g`. Without momentum (`μ = 0`) no `m` exists, and `p ← p − s · g`.
    Sgd {
        /// `μ`.
        momentum: f32,
        /// `w`, which is 1 minus the dampening.
        weight: f32,
        /// Whether the momentum is Nesterov's.
        nesterov: bool,
        /// Whether this is the first step.
        is_first: bool,
    },
    /// Lion (arXiv 2302.06675): `p ← p − s · sign(β₁m + w₁g)`, then `m ← β₂m + w₂g`, with
    /// `wᵢ = 1 − βᵢ`.
    Lion {
        /// `β₁`.
        beta1: f32,
        /// `w₁`.
        weight1: f32,
        /// `β₂`.
        beta2: f32,
        /// `w₂`.
        weight2: f32,
    },
}

impl UpdateKind {
    /// Whether the formula has a running mean `m` of the gradient.
    pub fn has_first(&self) -> bool {
        match self {
            Self::Adam { .. } | Self::Lion { .. } => true,
            Self::Sgd { momentum, .. } => *momentum != 0.0,
            Self::RmsProp { .. } => false,
        }
    }

    /// Whether the formula has a running mean `v` of the squared gradient.
    pub fn has_second(&self) -> bool {
        matches!(self, Self::Adam { .. } | Self::RmsProp { .. })
    }
}

/// A parameter and the optimizer's running means, all `[n]`.
#[derive(Debug)]
pub struct UpdateState {
    /// The parameter `p`.
    pub parameter: Tensor<1>,
    /// Running mean `m` of the gradient; empty if the formula has none.
    pub first: Tensor<1>,
    /// Running mean `v` of the squared gradient; empty if the formula has none.
    pub second: Tensor<1>,
}
