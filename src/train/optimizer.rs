//! Adam, AdamW and RMSprop with torch's formulas. They compute in float32, also for a model in
//! bfloat16.

use std::borrow::Cow;

use burn::tensor::{DType, Tensor};
use safetensors::{Dtype, View};
use serde::{Deserialize, Serialize};

use super::exchange::join_pieces;
use super::gradients::GradientSum;
use crate::kernels::timed;
use crate::kernels::update::{UpdateKind, UpdateRule, UpdateState, update};
use crate::model::decoder::Decoder;
use crate::model::parameter::{Parameter, ParameterId};
use crate::parallel::Ranks;
use crate::parallel::buckets::{Bucket, Layout, Piece};
use crate::recipe::{Optim, TrainSettings};

/// torch's defaults for RMSprop. transformers passes no other values (`adam_epsilon` is for Adam
/// only).
const RMSPROP_ALPHA: f64 = 0.99;
const RMSPROP_EPSILON: f32 = 1e-8;

/// A vector of the state of a parameter. A checkpoint names it `first.<parameter>` and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum StateKind {
    /// Running mean of the gradients.
    First,
    /// Running mean of their squares.
    Second,
    /// The weights in float32.
    Master,
}

const STATE_KINDS: [StateKind; 3] = [StateKind::First, StateKind::Second, StateKind::Master];

/// Running means for the piece of a parameter that this rank owns; on one rank, for all of it. They
/// are empty until the first update, so that a run's first step does not wait until their memory is
/// cleared.
#[derive(Debug)]
struct Moments {
    piece: Piece,
    first: Tensor<1>,
    second: Tensor<1>,
    /// The weights in float32, if the model holds them in less.
    master: Option<Tensor<1>>,
}

/// An optimizer with its state for this rank's share of a model.
#[derive(Debug)]
pub struct Optimizer {
    kind: Optim,
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
    /// Updates done.
    step: i32,
    layout: Layout,
    /// For each bucket, in the order of the model.
    moments: Vec<Vec<Moments>>,
}

impl Optimizer {
    /// Fresh state for this rank's share of the trainable parameters of `model`.
    pub fn new(model: &Decoder, settings: &TrainSettings, ranks: &Ranks) -> Self {
        let layout = Layout::of(model, ranks.world());
        let parameters = model.parameters();
        let moments = |piece: Piece| {
            let weights = parameters[piece.parameter.index()].vector();
            Moments {
                piece,
                first: empty(&weights),
                second: empty(&weights),
                master: (weights.dtype() != DType::F32)
                    .then(|| cut(weights, &piece).cast(DType::F32)),
            }
        };
        let of_bucket =
            |bucket: &Bucket| bucket.pieces(ranks.rank()).into_iter().map(moments).collect();
        Self {
            kind: settings.optim,
            beta1: settings.adam_beta1,
            beta2: settings.adam_beta2,
            epsilon: settings.adam_epsilon,
            weight_decay: settings.weight_decay,
            step: 0,
            moments: layout.buckets.iter().map(of_bucket).collect(),
            layout,
        }
    }

    /// Which rank owns which part.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Updates every parameter that has a gradient. `lr` is the learning rate; `scale` multiplies
    /// the gradients (clipping).
    pub fn step(
        &mut self,
        model: &mut Decoder,
        gradients: &mut GradientSum,
        lr: f64,
        scale: f64,
        ranks: &Ranks,
    ) {
        timed!("optimizer");
        self.step += 1;
        let rules = [false, true].map(|decays| self.rule(lr, scale, decays));
        let rule = |parameter: &Parameter| rules[usize::from(parameter.decays())];
        let mut parameters = model.parameters_mut();
        if ranks.is_alone() {
            for moments in self.moments.iter_mut().flatten() {
                let id = moments.piece.parameter;
                let parameter = &mut *parameters[id.index()];
                if let Some(gradient) = gradients.take(id) {
                    let rule = rule(parameter);
                    let dtype = parameter.value.dtype();
                    let weights = parameter.value.take();
                    parameter.value.set(in_type(moments.apply(weights, gradient, rule), dtype));
                }
            }
            return;
        }
        for (index, bucket) in self.layout.buckets.iter().enumerate() {
            let Some(gradient) = gradients.take_shard(index) else { continue };
            let updated = self.moments[index].iter_mut().map(|moments| {
                let parameter = &*parameters[moments.piece.parameter.index()];
                let own = gradient.clone().narrow(0, moments.piece.at, moments.piece.len);
                let weights = cut(parameter.vector(), &moments.piece);
                in_type(moments.apply(weights, own, rule(parameter)), parameter.value.dtype())
            });
            let updated = updated.collect();
            drop(gradient);
            share_weights(bucket, updated, &mut parameters, ranks);
        }
    }

    /// The coefficients of this step, each rounded to float32 once.
    fn rule(&self, lr: f64, scale: f64, decays: bool) -> UpdateRule {
        let correction = |beta: f64| 1.0 - beta.powi(self.step);
        let (kind, step_size) = match self.kind {
            Optim::RmsProp => {
                let (alpha, weight) = (RMSPROP_ALPHA as f32, (1.0 - RMSPROP_ALPHA) as f32);
                (UpdateKind::RmsProp { alpha, weight }, lr)
            }
            Optim::Adam | Optim::AdamW => {
                let kind = UpdateKind::Adam {
                    weight1: (1.0 - self.beta1) as f32,
                    beta2: self.beta2 as f32,
                    weight2: (1.0 - self.beta2) as f32,
                    sqrt_correction2: correction(self.beta2).sqrt() as f32,
                };
                (kind, lr / correction(self.beta1))
            }
        };
        let decay = if decays { self.weight_decay } else { 0.0 };
        let (weight_decay, shrink) = match self.kind {
            Optim::AdamW => (0.0, (1.0 - lr * decay) as f32),
            Optim::Adam | Optim::RmsProp => (decay as f32, 1.0),
        };
        UpdateRule {
            kind,
            gradient_scale: scale as f32,
            weight_decay,
            shrink,
            step_size: step_size as f32,
            epsilon: match self.kind {
                Optim::Adam | Optim::AdamW => self.epsilon as f32,
                Optim::RmsProp => RMSPROP_EPSILON,
            },
        }
    }

    /// The state as named vectors of whole parameters, `first.<parameter>`, `second.<parameter>`,
    /// `master.<parameter>`, for rank 0 to write. Each is gathered when it is written, so that rank
    /// 0 holds at most one of them beyond its own share. Meanwhile the other ranks are in
    /// [`Self::hand_over`].
    pub fn vectors<'a>(
        &'a self,
        model: &'a Decoder,
        ranks: &'a Ranks,
    ) -> Vec<(String, StateVector<'a>)> {
        let mut vectors = Vec::new();
        for parameter in model.parameters().into_iter().filter(|p| p.trainable) {
            for kind in kinds(self.kind, parameter) {
                let key = VectorKey { parameter: parameter.id, kind };
                let shape = [parameter.len()];
                let state = StateVector { optimizer: self, ranks, key, shape };
                vectors.push((kind.name_of(parameter), state));
            }
        }
        vectors
    }

    /// Sends rank 0 the vectors that it requests, until it has them all.
    pub fn hand_over(&self, ranks: &Ranks) {
        while let Some(key) = requested(ranks, None) {
            self.gather(key, ranks);
        }
    }

    /// Lets the other ranks leave [`Self::hand_over`].
    pub fn all_written(&self, ranks: &Ranks) {
        if !ranks.is_alone() {
            requested(ranks, None);
        }
    }

    fn gather(&self, key: VectorKey, ranks: &Ranks) -> Vec<u8> {
        let mut own = Vec::new();
        for moments in self.moments.iter().flatten() {
            if moments.piece.parameter == key.parameter
                && let Some(vector) = moments.vector(key.kind)
            {
                match vector.dims()[0] {
                    0 => own.resize(own.len() + moments.piece.len * size_of::<f32>(), 0),
                    _ => own.extend_from_slice(vector.clone().into_data().as_bytes()),
                }
            }
        }
        if ranks.is_alone() { own } else { ranks.gather_to_first("optimizer state", &own).concat() }
    }

    /// Updates done so far.
    pub fn updates(&self) -> i32 {
        self.step
    }

    /// Restores this rank's share of the state that [`Self::vectors`] named, after `updates`
    /// updates. `read(name, piece, whole)` gives the piece of a vector of `whole` elements.
    ///
    /// # Errors
    /// The name of the first vector that is missing or has another length.
    pub fn restore(
        &mut self,
        model: &Decoder,
        updates: i32,
        read: impl Fn(&str, Piece, usize) -> Option<Tensor<1>>,
    ) -> Result<(), String> {
        self.step = updates;
        let parameters = model.parameters();
        for moments in self.moments.iter_mut().flatten() {
            let piece = moments.piece;
            let parameter = parameters[piece.parameter.index()];
            for kind in kinds(self.kind, parameter) {
                if let Some(slot) = moments.vector_mut(kind) {
                    let name = kind.name_of(parameter);
                    *slot = read(&name, piece, parameter.len()).ok_or(name)?;
                }
            }
        }
        Ok(())
    }
}

/// The kinds of vectors that the state of a parameter has, before the first update too.
fn kinds(optim: Optim, parameter: &Parameter) -> Vec<StateKind> {
    let has = |kind: &StateKind| match kind {
        StateKind::First => optim != Optim::RmsProp,
        StateKind::Second => true,
        StateKind::Master => parameter.value.dtype() != DType::F32,
    };
    STATE_KINDS.into_iter().filter(has).collect()
}

/// The name of a vector of the state: its parameter and its kind.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct VectorKey {
    parameter: ParameterId,
    kind: StateKind,
}

/// A vector of the state that rank 0 writes.
pub struct StateVector<'a> {
    optimizer: &'a Optimizer,
    ranks: &'a Ranks,
    key: VectorKey,
    shape: [usize; 1],
}

impl View for StateVector<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if !self.ranks.is_alone() {
            requested(self.ranks, Some(self.key));
        }
        Cow::Owned(self.optimizer.gather(self.key, self.ranks))
    }

    fn data_len(&self) -> usize {
        self.shape[0] * 4
    }
}

/// Rank 0's next request, on every rank: the vector that it wants, or none if it needs no more.
/// `own` is rank 0's request; the other ranks' is not read.
fn requested(ranks: &Ranks, own: Option<VectorKey>) -> Option<VectorKey> {
    let request: Result<_, std::convert::Infallible> = ranks.decide("the next vector", || Ok(own));
    let Ok(request) = request;
    request
}

/// Joins the new weights of all ranks into the bucket's parameters.
fn share_weights(
    bucket: &Bucket,
    updated: Vec<Tensor<1>>,
    parameters: &mut [&mut Parameter],
    ranks: &Ranks,
) {
    let pieces = bucket.pieces(ranks.rank());
    let first = &parameters[bucket.parameters[0].index()].value;
    let (device, dtype) = (first.device(), first.dtype());
    let target = (&device, dtype);
    let shard = join_pieces(&pieces, updated, bucket)
        .unwrap_or_else(|| Tensor::zeros([bucket.shard], target));
    let all = ranks.all_gather(&bucket.name, shard);
    for ((id, start), len) in bucket.parameters.iter().zip(&bucket.starts).zip(&bucket.lengths) {
        // Memory of its own: a view would make every matrix product begin with a copy.
        let data = all.clone().narrow(0, *start, *len).into_data();
        parameters[id.index()].value.set(Tensor::from_data(data, target));
    }
}

impl StateKind {
    fn name_of(self, parameter: &Parameter) -> String {
        let kind = match self {
            Self::First => "first",
            Self::Second => "second",
            Self::Master => "master",
        };
        format!("{kind}.{}", parameter.name)
    }
}

impl Moments {
    fn vector(&self, kind: StateKind) -> Option<&Tensor<1>> {
        match kind {
            StateKind::First => Some(&self.first),
            StateKind::Second => Some(&self.second),
            StateKind::Master => self.master.as_ref(),
        }
    }

    fn vector_mut(&mut self, kind: StateKind) -> Option<&mut Tensor<1>> {
        match kind {
            StateKind::First => Some(&mut self.first),
            StateKind::Second => Some(&mut self.second),
            StateKind::Master => self.master.as_mut(),
        }
    }

    /// Updates the piece and returns its new weights in float32. `weights` are the model's, in the
    /// model's type; they are only used if no float32 master exists.
    fn apply(&mut self, weights: Tensor<1>, gradient: Tensor<1>, rule: UpdateRule) -> Tensor<1> {
        let zeros = || Tensor::zeros([self.piece.len], (&gradient.device(), DType::F32));
        if self.second.dims()[0] == 0 {
            self.second = zeros();
            if matches!(rule.kind, UpdateKind::Adam { .. }) {
                self.first = zeros();
            }
        }
        let mut take = |slot: &mut Tensor<1>| std::mem::replace(slot, empty(&gradient));
        let state = UpdateState {
            parameter: self.master.as_mut().map_or(weights, &mut take),
            first: take(&mut self.first),
            second: take(&mut self.second),
        };
        let updated = update(state, gradient, rule);
        self.first = updated.first;
        self.second = updated.second;
        if let Some(master) = &mut self.master {
            *master = updated.parameter.clone();
        }
        updated.parameter
    }
}

fn empty(like: &Tensor<1>) -> Tensor<1> {
    Tensor::zeros([0], (&like.device(), DType::F32))
}

fn in_type(vector: Tensor<1>, dtype: DType) -> Tensor<1> {
    if vector.dtype() == dtype { vector } else { vector.cast(dtype) }
}

/// The piece of a parameter's vector.
fn cut(vector: Tensor<1>, piece: &Piece) -> Tensor<1> {
    if piece.len == vector.dims()[0] {
        return vector;
    }
    vector.narrow(0, piece.start, piece.len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(kind: Optim) -> UpdateRule {
        let layout = Layout::new([], 1, false);
        let (beta1, beta2, epsilon, weight_decay) = (0.9, 0.999, 1e-8, 0.1);
        let moments = Vec::new();
        let optimizer =
            Optimizer { kind, beta1, beta2, epsilon, weight_decay, step: 3, layout, moments };
        optimizer.rule(1e-3, 1.0, true)
    }

    #[test]
    fn numbers_of_a_step_are_rounded_once() {
        let adam = rule(Optim::AdamW);
        let UpdateKind::Adam { weight1, weight2, .. } = adam.kind else { panic!("AdamW is Adam") };
        assert_eq!([weight1, weight2], [0.1, 0.001]);
        assert_eq!(adam.step_size, (1e-3 / (1.0 - 0.9f64.powi(3))) as f32);
        assert_eq!([adam.shrink, adam.weight_decay], [0.9999, 0.0]);
        let coupled = rule(Optim::Adam);
        assert_eq!([coupled.shrink, coupled.weight_decay], [1.0, 0.1]);
        let UpdateKind::RmsProp { weight, .. } = rule(Optim::RmsProp).kind else {
            panic!("RMSprop is not Adam")
        };
        assert_eq!(weight, 0.01);
    }
}
