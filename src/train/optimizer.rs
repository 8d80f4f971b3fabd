//! Adam, AdamW, RMSprop, Adagrad and SGD with torch's formulas, Lion with those of bitsandbytes and
//! Adafactor with those of transformers. They compute in float32, also for a model in bfloat16.

mod state;

use burn::tensor::{DType, Tensor};

use super::exchange::join_pieces;
use super::gradients::GradientSum;
use crate::kernels::update::{
    FactoredMeans, FactoredRule, UpdateKind, UpdateRule, UpdateState, update_rounded,
};
use crate::kernels::{in_type, timed};
use crate::model::decoder::Decoder;
use crate::model::parameter::Parameter;
use crate::parallel::Ranks;
use crate::parallel::buckets::{Bucket, Layout, Piece, reduce_dtype};
use crate::recipe::{Optim, SgdSettings, TrainSettings};
pub use state::StateVector;

/// torch's defaults for RMSprop. transformers passes no other values (`adam_epsilon` is for Adam
/// only).
const RMSPROP_ALPHA: f64 = 0.99;
const RMSPROP_EPSILON: f32 = 1e-8;

/// torch's default for Adagrad.
const ADAGRAD_EPSILON: f32 = 1e-10;

/// The defaults of Adafactor in transformers, which passes no other values.
const ADAFACTOR_EPSILON: f64 = 1e-30;
const ADAFACTOR_DECAY: f64 = -0.8;
const ADAFACTOR_CLIP_THRESHOLD: f64 = 1.0;

/// Running means for the piece of a parameter that this rank owns; on one rank, for all of it. They
/// are empty until the first update, so that a run's first step does not wait until their memory is
/// cleared. Adafactor has no such means.
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
    sgd: SgdSettings,
    /// Updates done.
    step: i32,
    layout: Layout,
    /// For each bucket, in the order of the model.
    moments: Vec<Vec<Moments>>,
    /// Adafactor's means for each parameter of the model, `None` for a frozen one. They are small:
    /// each rank has them all, and updates them from whole gradients. Empty for other optimizers.
    factored: Vec<Option<FactoredMeans>>,
}

impl Optimizer {
    /// Fresh state for this rank's share of the trainable parameters of `model`.
    pub fn new(model: &Decoder, settings: &TrainSettings, ranks: &Ranks) -> Self {
        let reduce = |weights| reduce_dtype(settings, weights);
        let layout = Layout::of(model, ranks.world()).reduced_in(model, reduce);
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
        let means = |parameter: &&Parameter| {
            parameter.trainable.then(|| FactoredMeans::zeros(&parameter.shape))
        };
        let factored = match settings.optim {
            Optim::Adafactor => parameters.iter().map(means).collect(),
            _ => Vec::new(),
        };
        Self {
            kind: settings.optim,
            beta1: settings.adam_beta1,
            beta2: settings.adam_beta2,
            epsilon: settings.adam_epsilon,
            weight_decay: settings.weight_decay,
            sgd: settings.sgd,
            step: 0,
            moments: layout.buckets.iter().map(of_bucket).collect(),
            factored,
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
        if self.kind == Optim::Adafactor {
            return self.factored_step(model, gradients, lr, scale, ranks);
        }
        let rules = [false, true].map(|decays| self.rule(lr, scale, decays));
        let rule = |parameter: &Parameter| rules[usize::from(parameter.decays())];
        let mut parameters = model.parameters_mut();
        if ranks.is_alone() {
            for moments in self.moments.iter_mut().flatten() {
                let id = moments.piece.parameter;
                let parameter = &mut *parameters[id.index()];
                if let Some(gradient) = gradients.take(id) {
                    let rule = rule(parameter);
                    let weights = parameter.value.take();
                    parameter.value.set(moments.apply(weights, gradient, rule));
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
                moments.apply(weights, own, rule(parameter))
            });
            let updated = updated.collect();
            drop(gradient);
            share_weights(bucket, updated, &mut parameters, ranks);
        }
    }

    /// [`Self::step`] of Adafactor. The means of rows and columns need whole gradients: on several
    /// ranks each rank gathers the gradient of a bucket, computes the step of each whole parameter,
    /// and updates its own pieces. So the numbers are those of one rank.
    fn factored_step(
        &mut self,
        model: &mut Decoder,
        gradients: &mut GradientSum,
        lr: f64,
        scale: f64,
        ranks: &Ranks,
    ) {
        let rule = self.factored_rule(lr, scale);
        let shrink = |parameter: &Parameter| match parameter.decays() {
            true => (lr * self.weight_decay) as f32,
            false => 0.0,
        };
        let mut parameters = model.parameters_mut();
        for (index, bucket) in self.layout.buckets.iter().enumerate() {
            let whole: Vec<Option<Tensor<1>>> = match ranks.is_alone() {
                true => bucket.parameters.iter().map(|id| gradients.take(*id)).collect(),
                false => match gradients.take_shard(index) {
                    Some(shard) => gathered(bucket, shard, ranks),
                    None => continue,
                },
            };
            let mut steps = Vec::with_capacity(whole.len());
            for (id, gradient) in bucket.parameters.iter().zip(whole) {
                let means = self.factored[id.index()].as_mut();
                let step = |(means, gradient): (&mut FactoredMeans, _)| means.step(gradient, rule);
                steps.push(means.zip(gradient).map(step));
            }
            let mut updated = Vec::new();
            for moments in &mut self.moments[index] {
                let id = moments.piece.parameter;
                let place = bucket.parameters.iter().position(|own| *own == id);
                let Some(step) = place.and_then(|place| steps[place].clone()) else { continue };
                let parameter = &mut *parameters[id.index()];
                let dtype = parameter.value.dtype();
                let weights = cut(parameter.vector(), &moments.piece);
                let step = cut(step, &moments.piece);
                let new = in_type(moments.subtract(weights, step, shrink(parameter)), dtype);
                match ranks.is_alone() {
                    true => parameter.value.set(new),
                    false => updated.push(new),
                }
            }
            if !ranks.is_alone() {
                share_weights(bucket, updated, &mut parameters, ranks);
            }
        }
    }

    fn factored_rule(&self, lr: f64, scale: f64) -> FactoredRule {
        FactoredRule {
            gradient_scale: scale as f32,
            decay: 1.0 - f64::from(self.step).powf(ADAFACTOR_DECAY),
            epsilon: ADAFACTOR_EPSILON,
            clip_threshold: ADAFACTOR_CLIP_THRESHOLD,
            step_size: lr,
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
            Optim::Adagrad => (UpdateKind::RmsProp { alpha: 1.0, weight: 1.0 }, lr),
            Optim::Sgd => {
                let SgdSettings { momentum, dampening, nesterov } = self.sgd;
                let kind = UpdateKind::Sgd {
                    momentum: momentum as f32,
                    weight: (1.0 - dampening) as f32,
                    nesterov,
                    is_first: self.step == 1,
                };
                (kind, lr)
            }
            Optim::Lion => {
                let kind = UpdateKind::Lion {
                    beta1: self.beta1 as f32,
                    weight1: (1.0 - self.beta1) as f32,
                    beta2: self.beta2 as f32,
                    weight2: (1.0 - self.beta2) as f32,
                };
                (kind, lr)
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
            Optim::Adafactor => unreachable!("Adafactor has steps of its own"),
        };
        let decay = if decays { self.weight_decay } else { 0.0 };
        let (weight_decay, shrink) = match self.kind {
            Optim::AdamW | Optim::Lion => (0.0, (1.0 - lr * decay) as f32),
            _ => (decay as f32, 1.0),
        };
        UpdateRule {
            kind,
            gradient_scale: scale as f32,
            weight_decay,
            shrink,
            step_size: step_size as f32,
            epsilon: match self.kind {
                Optim::RmsProp => RMSPROP_EPSILON,
                Optim::Adagrad => ADAGRAD_EPSILON,
                _ => self.epsilon as f32,
            },
        }
    }
}

/// The gradient of each parameter of a bucket, from the shards of all ranks.
fn gathered(bucket: &Bucket, shard: Tensor<1>, ranks: &Ranks) -> Vec<Option<Tensor<1>>> {
    let all = ranks.all_gather(&bucket.name, shard).wait();
    let places = bucket.starts.iter().zip(&bucket.lengths);
    places.map(|(start, len)| Some(all.clone().narrow(0, *start, *len))).collect()
}

/// Joins the new weights of all ranks into the bucket's parameters. They do not leave the device:
/// on a GPU the parameters become parts of one vector, and the forward pass waits for a layer's
/// weights when it reaches the layer.
fn share_weights(
    bucket: &Bucket,
    updated: Vec<Tensor<1>>,
    parameters: &mut [&mut Parameter],
    ranks: &Ranks,
) {
    let pieces = bucket.pieces(ranks.rank());
    let first = &parameters[bucket.parameters[0].index()].value;
    let (device, dtype) = (first.device(), first.dtype());
    let shard = join_pieces(&pieces, updated, bucket)
        .unwrap_or_else(|| Tensor::zeros([bucket.shard], (&device, dtype)));
    let all = ranks.all_gather(&bucket.name, shard);
    for ((id, start), len) in bucket.parameters.iter().zip(&bucket.starts).zip(&bucket.lengths) {
        parameters[id.index()].value = all.weight(*start, *len);
    }
}

impl Moments {
    /// Updates the piece and returns its new weights, in the type of `weights`. These are the
    /// model's; their numbers are only used if no float32 master exists.
    fn apply(&mut self, weights: Tensor<1>, gradient: Tensor<1>, rule: UpdateRule) -> Tensor<1> {
        let zeros = || Tensor::zeros([self.piece.len], (&gradient.device(), DType::F32));
        if rule.kind.has_first() && self.first.dims()[0] == 0 {
            self.first = zeros();
        }
        if rule.kind.has_second() && self.second.dims()[0] == 0 {
            self.second = zeros();
        }
        let dtype = weights.dtype();
        let mut take = |slot: &mut Tensor<1>| std::mem::replace(slot, empty(&gradient));
        let state = UpdateState {
            parameter: self.master.as_mut().map_or(weights, &mut take),
            first: take(&mut self.first),
            second: take(&mut self.second),
        };
        let (updated, new) = update_rounded(state, gradient, rule, dtype);
        self.first = updated.first;
        self.second = updated.second;
        if let Some(master) = &mut self.master {
            *master = updated.parameter;
        }
        new
    }

    /// `p − shrink · p − step` in float32, rounded by the caller.
    fn subtract(&mut self, weights: Tensor<1>, step: Tensor<1>, shrink: f32) -> Tensor<1> {
        let old = self.master.clone().unwrap_or(weights);
        let kept = if shrink == 0.0 { old } else { old.clone() - old.mul_scalar(shrink) };
        let new = kept - step;
        if let Some(master) = &mut self.master {
            *master = new.clone();
        }
        new
    }
}

fn empty(like: &Tensor<1>) -> Tensor<1> {
    Tensor::zeros([0], (&like.device(), DType::F32))
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
        let optimizer = Optimizer {
            kind,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.1,
            sgd: SgdSettings { momentum: 0.9, dampening: 0.2, nesterov: false },
            step: 3,
            layout: Layout::new([], 1, false),
            moments: Vec::new(),
            factored: Vec::new(),
        };
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

    #[test]
    fn decay_is_decoupled_for_lion_and_coupled_for_sgd_and_adagrad() {
        let of = |kind| [rule(kind).shrink, rule(kind).weight_decay];
        assert_eq!(of(Optim::Lion), [0.9999, 0.0]);
        assert_eq!(of(Optim::Sgd), [1.0, 0.1]);
        assert_eq!(of(Optim::Adagrad), [1.0, 0.1]);
        let UpdateKind::Sgd { weight, is_first, .. } = rule(Optim::Sgd).kind else {
            panic!("SGD has a kind of its own")
        };
        assert_eq!((weight, is_first), (0.8, false));
    }
}
