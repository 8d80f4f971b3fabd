//! Adam, AdamW and RMSprop with torch's formulas, in float32 whatever the model computes in.

use std::borrow::Cow;

use burn::tensor::{DType, Tensor};
use safetensors::{Dtype, View};

use super::exchange::join_pieces;
use super::gradients::GradientSum;
use crate::kernels::timed;
use crate::kernels::update::{UpdateKind, UpdateRule, UpdateState, update};
use crate::model::decoder::Decoder;
use crate::model::layer::Parameter;
use crate::parallel::Ranks;
use crate::parallel::buckets::{Bucket, Layout, Piece};
use crate::recipe::{Optim, TrainSettings};

/// torch's defaults for RMSprop; transformers hands it no other values (`adam_epsilon` is Adam's).
const RMSPROP_ALPHA: f64 = 0.99;
const RMSPROP_EPSILON: f32 = 1e-8;

/// The vectors of the state, as they are named in a checkpoint: `first.<parameter>` and so on.
const PARTS: [Part; 3] = [Part::First, Part::Second, Part::Master];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    First,
    Second,
    Master,
}

/// Running means of the part of a parameter that this rank owns: on one rank, of all of it. They are empty
/// until the first update: a run's first step does not wait until their memory is cleared.
#[derive(Debug)]
struct Moments {
    piece: Piece,
    first: Tensor<1>,
    second: Tensor<1>,
    /// The weights in float32, where the model holds them in less.
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
    /// By bucket, in the order of the model.
    moments: Vec<Vec<Moments>>,
}

impl Optimizer {
    /// Fresh state for this rank's share of `model`.
    pub fn new(model: &Decoder, settings: &TrainSettings, ranks: &Ranks) -> Self {
        let layout = Layout::of(model, ranks.world());
        let parameters = model.parameters();
        let moments = |piece: Piece| {
            let parameter = parameters[piece.parameter];
            Moments {
                piece,
                first: empty(&parameter.value),
                second: empty(&parameter.value),
                master: (parameter.value.dtype() != DType::F32)
                    .then(|| cut(&parameter.value, &piece).cast(DType::F32)),
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

    /// Who owns what.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// One update of every parameter with a gradient; `scale` multiplies the gradients (clipping).
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
                let parameter = &mut *parameters[moments.piece.parameter];
                if let Some(gradient) = gradients.take(moments.piece.parameter) {
                    let rule = rule(parameter);
                    let dtype = parameter.value.dtype();
                    let weights = std::mem::replace(&mut parameter.value, empty(&gradient));
                    parameter.value = in_type(moments.apply(weights, gradient, rule), dtype);
                }
            }
            return;
        }
        for (index, bucket) in self.layout.buckets.iter().enumerate() {
            let Some(gradient) = gradients.take(index) else { continue };
            let updated = self.moments[index].iter_mut().map(|moments| {
                let parameter = &*parameters[moments.piece.parameter];
                let own = gradient.clone().narrow(0, moments.piece.at, moments.piece.len);
                let weights = cut(&parameter.value, &moments.piece);
                in_type(moments.apply(weights, own, rule(parameter)), parameter.value.dtype())
            });
            let updated = updated.collect();
            drop(gradient);
            share_weights(bucket, updated, &mut parameters, ranks);
        }
    }

    /// The numbers of this step, each rounded once.
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
    /// `master.<parameter>`, for rank 0 to write. Each is gathered when its turn comes, so that no rank
    /// ever holds more than one of them beyond its own; meanwhile the others are in [`Self::hand_over`].
    pub fn vectors<'a>(
        &'a self,
        model: &'a Decoder,
        ranks: &'a Ranks,
    ) -> Vec<(String, StateVector<'a>)> {
        let parts = self.parts(model);
        let mut vectors = Vec::new();
        for (index, parameter) in model.parameters().into_iter().enumerate() {
            for &part in &parts {
                let name = part.name_of(parameter);
                let shape = [parameter.len()];
                let state = StateVector { optimizer: self, ranks, parameter: index, part, shape };
                vectors.push((name, state));
            }
        }
        vectors
    }

    /// Gives rank 0 the vectors that it asks for, until it says that it has them all.
    pub fn hand_over(&self, ranks: &Ranks) {
        while let Some((parameter, part)) = asked_for(ranks, None) {
            self.gather(parameter, part, ranks);
        }
    }

    /// Lets the other ranks leave [`Self::hand_over`].
    pub fn all_written(&self, ranks: &Ranks) {
        if !ranks.is_alone() {
            asked_for(ranks, Some(None));
        }
    }

    fn gather(&self, parameter: usize, part: Part, ranks: &Ranks) -> Vec<u8> {
        let mut own = Vec::new();
        for moments in self.moments.iter().flatten() {
            if moments.piece.parameter == parameter
                && let Some(vector) = moments.part(part)
            {
                match vector.dims()[0] {
                    0 => own.resize(own.len() + moments.piece.len * size_of::<f32>(), 0),
                    _ => own.extend_from_slice(vector.clone().into_data().as_bytes()),
                }
            }
        }
        if ranks.is_alone() { own } else { ranks.gather_to_first("optimizer state", &own).concat() }
    }

    /// The vectors that this state has, whether or not an update has made them yet.
    fn parts(&self, model: &Decoder) -> Vec<Part> {
        let has = |part: &Part| match part {
            Part::First => self.kind != Optim::RmsProp,
            Part::Second => true,
            Part::Master => model.dtype() != DType::F32,
        };
        PARTS.into_iter().filter(has).collect()
    }

    /// Updates done so far.
    pub fn updates(&self) -> i32 {
        self.step
    }

    /// Takes this rank's share of the state that [`Self::vectors`] named, after `updates` updates.
    /// `read(name, start, len, whole)` gives elements of a vector that has `whole` of them; the error is
    /// the name of the first that is not there or has another length.
    pub fn restore(
        &mut self,
        model: &Decoder,
        updates: i32,
        read: impl Fn(&str, Piece, usize) -> Option<Tensor<1>>,
    ) -> Result<(), String> {
        self.step = updates;
        let parts = self.parts(model);
        let parameters = model.parameters();
        for moments in self.moments.iter_mut().flatten() {
            let piece = moments.piece;
            let parameter = parameters[piece.parameter];
            for &part in &parts {
                if let Some(slot) = moments.part_mut(part) {
                    let name = part.name_of(parameter);
                    *slot = read(&name, piece, parameter.len()).ok_or(name)?;
                }
            }
        }
        Ok(())
    }
}

/// A vector of the state that rank 0 writes.
pub struct StateVector<'a> {
    optimizer: &'a Optimizer,
    ranks: &'a Ranks,
    parameter: usize,
    part: Part,
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
            asked_for(self.ranks, Some(Some((self.parameter, self.part))));
        }
        Cow::Owned(self.optimizer.gather(self.parameter, self.part, self.ranks))
    }

    fn data_len(&self) -> usize {
        self.shape[0] * 4
    }
}

/// Rank 0's next wish, told to all: which vector it wants, or that it wants no more. `own` is rank 0's.
fn asked_for(ranks: &Ranks, own: Option<Option<(usize, Part)>>) -> Option<(usize, Part)> {
    let wish: Result<_, std::convert::Infallible> = ranks.decide("the next vector", || {
        Ok(own.flatten().map(|(parameter, part)| (parameter, part as usize)))
    });
    let Ok(wish) = wish;
    wish.map(|(parameter, part)| (parameter, PARTS[part]))
}

/// Joins the new weights of all ranks into the bucket's parameters.
fn share_weights(
    bucket: &Bucket,
    updated: Vec<Tensor<1>>,
    parameters: &mut [&mut Parameter],
    ranks: &Ranks,
) {
    let parameters = &mut parameters[bucket.parameters.clone()];
    let pieces = bucket.pieces(ranks.rank());
    let (device, dtype) = (parameters[0].value.device(), parameters[0].value.dtype());
    let target = (&device, dtype);
    let shard = join_pieces(&pieces, updated, bucket)
        .unwrap_or_else(|| Tensor::zeros([bucket.shard], target));
    let all = ranks.all_gather(&bucket.name, shard);
    for ((parameter, start), len) in parameters.iter_mut().zip(&bucket.starts).zip(&bucket.lengths)
    {
        // Memory of its own: a view would make every matrix product begin with a copy.
        let data = all.clone().narrow(0, *start, *len).into_data();
        parameter.value = Tensor::from_data(data, target);
    }
}

impl Part {
    fn name_of(self, parameter: &Parameter) -> String {
        let part = match self {
            Part::First => "first",
            Part::Second => "second",
            Part::Master => "master",
        };
        format!("{part}.{}", parameter.name)
    }
}

impl Moments {
    fn part(&self, part: Part) -> Option<&Tensor<1>> {
        match part {
            Part::First => Some(&self.first),
            Part::Second => Some(&self.second),
            Part::Master => self.master.as_ref(),
        }
    }

    fn part_mut(&mut self, part: Part) -> Option<&mut Tensor<1>> {
        match part {
            Part::First => Some(&mut self.first),
            Part::Second => Some(&mut self.second),
            Part::Master => self.master.as_mut(),
        }
    }

    /// Updates the piece and returns its new weights in float32. `weights` are the model's, in its own
    /// type; a master goes before them.
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
fn cut(vector: &Tensor<1>, piece: &Piece) -> Tensor<1> {
    if piece.len == vector.dims()[0] {
        return vector.clone();
    }
    vector.clone().narrow(0, piece.start, piece.len)
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
