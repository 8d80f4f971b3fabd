//! Adam, AdamW and RMSprop with torch's formulas, in float32 whatever the model computes in.

use std::collections::HashMap;

use burn::tensor::{DType, Tensor};

use super::gradients::GradientSum;
use crate::model::decoder::Decoder;
use crate::model::kernels::timed;
use crate::model::kernels::vector::{UpdateKind, UpdateRule, UpdateState, update};
use crate::model::layer::Parameter;
use crate::model::weights::StoredTensor;
use crate::recipe::{Optim, TrainSettings};

/// torch's default smoothing constant for RMSprop.
const RMSPROP_ALPHA: f64 = 0.99;

/// Running means of one parameter.
#[derive(Debug)]
struct Moments {
    first: Tensor<1>,
    second: Tensor<1>,
    /// The parameter in float32, where the model holds it in less.
    master: Option<Tensor<1>>,
}

/// An optimizer with its state for every parameter of a model.
#[derive(Debug)]
pub struct Optimizer {
    kind: Optim,
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
    /// Updates done.
    step: i32,
    moments: Vec<Moments>,
}

impl Optimizer {
    /// Fresh state for `model`.
    pub fn new(model: &Decoder, settings: &TrainSettings) -> Self {
        let moments = model.parameters().into_iter().map(|parameter| Moments {
            first: zeros(parameter, settings.optim != Optim::RmsProp),
            second: zeros(parameter, true),
            master: (parameter.value.dtype() != DType::F32)
                .then(|| parameter.value.clone().cast(DType::F32)),
        });
        Self {
            kind: settings.optim,
            beta1: settings.adam_beta1,
            beta2: settings.adam_beta2,
            epsilon: settings.adam_epsilon,
            weight_decay: settings.weight_decay,
            step: 0,
            moments: moments.collect(),
        }
    }

    /// One update of every parameter with a gradient; `scale` multiplies the gradients (clipping).
    pub fn step(&mut self, model: &mut Decoder, gradients: &mut GradientSum, lr: f64, scale: f64) {
        timed!("optimizer");
        self.step += 1;
        for (index, parameter) in model.parameters_mut().into_iter().enumerate() {
            if let Some(gradient) = gradients.take(index) {
                let rule = self.rule(lr, scale, parameter.decays());
                self.moments[index].apply(parameter, gradient, rule);
            }
        }
    }

    fn rule(&self, lr: f64, scale: f64, decays: bool) -> UpdateRule {
        let kind = match self.kind {
            Optim::RmsProp => UpdateKind::RmsProp { alpha: RMSPROP_ALPHA as f32 },
            Optim::Adam | Optim::AdamW => UpdateKind::Adam {
                beta1: self.beta1 as f32,
                beta2: self.beta2 as f32,
                correction1: (1.0 - self.beta1.powi(self.step)) as f32,
                sqrt_correction2: (1.0 - self.beta2.powi(self.step)).sqrt() as f32,
                decoupled: self.kind == Optim::AdamW,
            },
        };
        UpdateRule {
            kind,
            lr: lr as f32,
            gradient_scale: scale as f32,
            weight_decay: if decays { self.weight_decay as f32 } else { 0.0 },
            epsilon: self.epsilon as f32,
        }
    }

    /// The state as named tensors: `first.<parameter>`, `second.<parameter>`, `master.<parameter>`.
    pub fn tensors(&self, model: &Decoder) -> Vec<StoredTensor> {
        let mut tensors = Vec::new();
        for (parameter, moments) in model.parameters().into_iter().zip(&self.moments) {
            let vectors = [("first", &moments.first), ("second", &moments.second)];
            let master = moments.master.iter().map(|master| ("master", master));
            for (part, vector) in vectors.into_iter().chain(master) {
                if vector.dims()[0] > 0 {
                    let name = format!("{part}.{}", parameter.name);
                    tensors.push(StoredTensor::vector(name, vector.clone()));
                }
            }
        }
        tensors
    }

    /// Updates done so far.
    pub fn updates(&self) -> i32 {
        self.step
    }

    /// Takes state that [`Self::tensors`] gave, by name, after `updates` updates. Fails with the name of
    /// the first vector that is not there or has another length.
    pub fn restore(
        &mut self,
        model: &mut Decoder,
        updates: i32,
        tensors: &mut HashMap<String, Tensor<1>>,
    ) -> Result<(), String> {
        self.step = updates;
        for (parameter, moments) in model.parameters_mut().into_iter().zip(&mut self.moments) {
            let mut take = |part: &str, slot: &mut Tensor<1>| -> Result<(), String> {
                let name = format!("{part}.{}", parameter.name);
                if slot.dims()[0] == 0 {
                    return Ok(());
                }
                let vector = tensors.remove(&name).filter(|v| v.dims() == slot.dims());
                *slot = vector.ok_or(name)?;
                Ok(())
            };
            take("first", &mut moments.first)?;
            take("second", &mut moments.second)?;
            if let Some(master) = &mut moments.master {
                take("master", master)?;
            }
            if let Some(master) = &moments.master {
                parameter.value = master.clone().cast(parameter.value.dtype());
            }
        }
        Ok(())
    }
}

impl Moments {
    fn apply(&mut self, parameter: &mut Parameter, gradient: Tensor<1>, rule: UpdateRule) {
        let dtype = parameter.value.dtype();
        let empty = || Tensor::zeros([0], (&gradient.device(), DType::F32));
        let weights = match &mut self.master {
            Some(master) => std::mem::replace(master, empty()),
            None => std::mem::replace(&mut parameter.value, empty()),
        };
        let state = UpdateState {
            parameter: weights,
            first: std::mem::replace(&mut self.first, empty()),
            second: std::mem::replace(&mut self.second, empty()),
        };
        let updated = update(state, gradient, rule);
        self.first = updated.first;
        self.second = updated.second;
        match &mut self.master {
            Some(master) => {
                parameter.value = updated.parameter.clone().cast(dtype);
                *master = updated.parameter;
            }
            None => parameter.value = updated.parameter,
        }
    }
}

fn zeros(parameter: &Parameter, wanted: bool) -> Tensor<1> {
    let len = if wanted { parameter.len() } else { 0 };
    Tensor::zeros([len], (&parameter.value.device(), DType::F32))
}
