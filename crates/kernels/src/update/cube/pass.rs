//! Launches of the kernels of updates.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::kernels;
use crate::cube::{address, buffer, contiguous, elements, elementwise, empty, owned, vector_width};
use crate::update::{UpdateKind, UpdateRule};

/// The most numbers in a vector of a kernel.
const MOST_LANES: usize = 8;

/// One pass over a parameter.
pub(super) struct Pass {
    /// Parameter and running means, changed in place.
    pub state: [CubeTensor; 3],
    g: CubeTensor,
    rule: UpdateRule,
    /// The new parameter in another type, if that is asked for.
    pub rounded: CubeTensor,
    rounds: bool,
}

impl Pass {
    /// `rounds_to` is the type of [`Self::rounded`].
    pub fn new(
        [parameter, first, second, g]: [CubeTensor; 4],
        rule: UpdateRule,
        rounds_to: Option<DType>,
    ) -> Self {
        let (parameter, g) = (owned(parameter), contiguous(g));
        let first = if rule.kind.has_first() { owned(first) } else { first };
        let second = if rule.kind.has_second() { owned(second) } else { second };
        let rounded = match rounds_to {
            Some(dtype) => empty(&parameter, [parameter.meta.num_elements()], dtype),
            // A kernel has the same arguments in any case, but does not write this one.
            None => empty(&parameter, [MOST_LANES], DType::F32),
        };
        Self { state: [parameter, first, second], g, rule, rounded, rounds: rounds_to.is_some() }
    }

    /// Launches the kernel of the rule.
    pub fn launch(&self) {
        if self.state[0].meta.num_elements() == 0 {
            return;
        }
        match self.rule.kind {
            UpdateKind::Adam { .. } => self.adam(),
            UpdateKind::RmsProp { .. } => self.rms_prop(),
            UpdateKind::Sgd { .. } if self.rule.kind.has_first() => self.sgd_with_momentum(),
            UpdateKind::Sgd { .. } => self.sgd(),
            UpdateKind::Lion { .. } => self.lion(),
        }
    }

    /// The numbers of a vector, with which each of `tensors` is a whole number of vectors, and a
    /// unit for each vector.
    fn units<const N: usize>(&self, tensors: [&CubeTensor; N]) -> (usize, CubeCount, CubeDim) {
        let lanes = vector_width(tensors);
        let lanes = if self.rounds { lanes.min(vector_width([&self.rounded])) } else { lanes };
        let p = &self.state[0];
        let (count, cube) = elementwise(&p.client, p.meta.num_elements() / lanes);
        (lanes, count, cube)
    }

    /// The types of gradients and of rounded parameters.
    fn types(&self) -> [ElemType; 2] {
        [elements(self.g.dtype), elements(self.rounded.dtype)]
    }

    fn adam(&self) {
        let [p, m, v] = &self.state;
        let g = &self.g;
        let UpdateKind::Adam { weight1, beta2, weight2, sqrt_correction2 } = self.rule.kind else {
            return;
        };
        let (lanes, count, cube) = self.units([p, m, v, g]);
        // SAFETY: a unit has one vector, within all buffers.
        unsafe {
            kernels::adam::launch_unchecked(
                &p.client,
                count,
                cube,
                address([p]),
                lanes,
                buffer(p),
                buffer(m),
                buffer(v),
                buffer(g),
                buffer(&self.rounded),
                weight1,
                beta2,
                weight2,
                sqrt_correction2,
                self.rule.gradient_scale,
                self.rule.weight_decay,
                self.rule.shrink,
                self.rule.step_size,
                self.rule.epsilon,
                self.rounds,
                self.types(),
            );
        }
    }

    fn rms_prop(&self) {
        let [p, _, v] = &self.state;
        let g = &self.g;
        let UpdateKind::RmsProp { alpha, weight } = self.rule.kind else { return };
        let (lanes, count, cube) = self.units([p, v, g]);
        // SAFETY: a unit has one vector, within all buffers.
        unsafe {
            kernels::rms_prop::launch_unchecked(
                &p.client,
                count,
                cube,
                address([p]),
                lanes,
                buffer(p),
                buffer(v),
                buffer(g),
                buffer(&self.rounded),
                alpha,
                weight,
                self.rule.gradient_scale,
                self.rule.weight_decay,
                self.rule.shrink,
                self.rule.step_size,
                self.rule.epsilon,
                self.rounds,
                self.types(),
            );
        }
    }

    fn sgd(&self) {
        let [p, ..] = &self.state;
        let g = &self.g;
        let (lanes, count, cube) = self.units([p, g]);
        // SAFETY: a unit has one vector, within both buffers.
        unsafe {
            kernels::sgd::launch_unchecked(
                &p.client,
                count,
                cube,
                address([p]),
                lanes,
                buffer(p),
                buffer(g),
                buffer(&self.rounded),
                self.rule.gradient_scale,
                self.rule.weight_decay,
                self.rule.shrink,
                self.rule.step_size,
                self.rounds,
                self.types(),
            );
        }
    }

    fn sgd_with_momentum(&self) {
        let [p, m, _] = &self.state;
        let g = &self.g;
        let UpdateKind::Sgd { momentum, weight, nesterov, is_first } = self.rule.kind else {
            return;
        };
        let (decay, weight) = if is_first { (0.0, 1.0) } else { (momentum, weight) };
        let (of_g, of_m) = if nesterov { (1.0, momentum) } else { (0.0, 1.0) };
        let (lanes, count, cube) = self.units([p, m, g]);
        // SAFETY: a unit has one vector, within all buffers.
        unsafe {
            kernels::sgd_with_momentum::launch_unchecked(
                &p.client,
                count,
                cube,
                address([p]),
                lanes,
                buffer(p),
                buffer(m),
                buffer(g),
                buffer(&self.rounded),
                decay,
                weight,
                of_g,
                of_m,
                self.rule.gradient_scale,
                self.rule.weight_decay,
                self.rule.shrink,
                self.rule.step_size,
                self.rounds,
                self.types(),
            );
        }
    }

    fn lion(&self) {
        let [p, m, _] = &self.state;
        let g = &self.g;
        let UpdateKind::Lion { beta1, weight1, beta2, weight2 } = self.rule.kind else { return };
        let (lanes, count, cube) = self.units([p, m, g]);
        // SAFETY: a unit has one vector, within all buffers.
        unsafe {
            kernels::lion::launch_unchecked(
                &p.client,
                count,
                cube,
                address([p]),
                lanes,
                buffer(p),
                buffer(m),
                buffer(g),
                buffer(&self.rounded),
                beta1,
                weight1,
                beta2,
                weight2,
                self.rule.gradient_scale,
                self.rule.weight_decay,
                self.rule.shrink,
                self.rule.step_size,
                self.rounds,
                self.types(),
            );
        }
    }
}
