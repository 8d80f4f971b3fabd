//! Adds an adapter to a decoder: two matrices beside each target, and modules that are trained
//! whole.

use std::collections::BTreeSet;
use std::sync::Arc;

use burn::tensor::DType;

use super::config::{Adapter, LoraConfig};
use super::error::AdapterError;
use super::lora::{Lora, initial_a};
use super::targets::TargetPlace;
use crate::model::config::ModelConfig;
use crate::model::decoder::{Decoder, EMBED_TOKENS, LM_HEAD};
use crate::model::parameter::{Parameter, Weight};

/// A parameter whose values an adapter brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A, `[r, in]`.
    A,
    /// B, `[out, r]`.
    B,
    /// A parameter of the base that is trained whole.
    Whole,
}

impl Decoder {
    /// Adds the adapter of `config`. Its parameters are trainable, and no other parameter is.
    /// `values(part, parameter)` gives their values: for [`Part::Whole`] the parameter has those of
    /// the base, and `None` keeps them.
    ///
    /// A head that is tied to the embedding becomes a matrix of its own if one of the two is
    /// trained whole, as in PEFT.
    ///
    /// # Errors
    /// The targets do not fit the model, or the first error of `values`.
    pub fn attach<E: From<AdapterError>>(
        &mut self,
        config: &LoraConfig,
        mut values: impl FnMut(Part, &Parameter) -> Result<Option<Vec<f32>>, E>,
    ) -> Result<(), E> {
        let places = config.selection.places(&self.config)?;
        check_modules(self, config)?;
        for parameter in self.parameters_mut() {
            parameter.trainable = false;
        }
        if unties(&self.config, config) {
            self.untie();
        }
        let device = self.device();
        for parameter in self.parameters_mut() {
            if config.selection.is_saved(&parameter.name) {
                parameter.trainable = true;
                if let Some(values) = values(Part::Whole, parameter)? {
                    let dtype = parameter.value.dtype();
                    parameter.value = Weight::from_values(values, &device, dtype);
                }
            }
        }
        for place in &places {
            let module = place.module();
            let (r, scale) = config.rank_and_scale(&module)?;
            let mut linears = self.layers[place.layer].linears.all_mut();
            let linear = &mut *linears[place.linear];
            let [out, width] = [linear.weight.shape[0], linear.weight.shape[1]];
            let id = linear.weight.id;
            let mut parameter = |part: Part, matrix: &str, shape: [usize; 2]| {
                let mut parameter = Parameter {
                    id,
                    name: format!("{module}.lora_{matrix}.weight").into(),
                    shape: shape.to_vec(),
                    value: Weight::from_values(Vec::new(), &device, DType::F32),
                    trainable: true,
                };
                let values = values(part, &parameter)?;
                let values = values.unwrap_or_else(|| vec![0.0; shape[0] * shape[1]]);
                parameter.value = Weight::from_values(values, &device, DType::F32);
                Ok::<_, E>(parameter)
            };
            let a = parameter(Part::A, "A", [r, width])?;
            let b = parameter(Part::B, "B", [out, r])?;
            linear.lora = Some(Lora::new(a, b, scale, config.dropout));
        }
        self.number();
        self.adapter = Some(Arc::new(Adapter { config: config.clone(), targets: names(&places) }));
        Ok(())
    }

    /// Adds a new adapter, which changes nothing until it is trained: B is 0.
    ///
    /// # Errors
    /// The targets do not fit the model.
    pub fn attach_new(&mut self, config: &LoraConfig, seed: u64) -> Result<(), AdapterError> {
        self.attach(config, |part, parameter| {
            let shape = || [parameter.shape[0], parameter.shape[1]];
            Ok((part == Part::A).then(|| initial_a(seed, &parameter.name, shape())))
        })
    }

    /// Gives every adapter another dropout probability.
    pub fn set_dropout(&mut self, p: f64) {
        for lora in self.layers.iter_mut().flat_map(|layer| layer.loras_mut()) {
            lora.dropout = p;
        }
    }

    /// Freezes every parameter, for a model that is not trained.
    pub fn freeze(&mut self) {
        for parameter in self.parameters_mut() {
            parameter.trainable = false;
        }
    }

    /// The model without its adapter: the base, if no module was trained whole.
    pub fn without_adapter(&self) -> Self {
        let mut base = self.clone();
        for layer in &mut base.layers {
            for linear in layer.linears.all_mut() {
                linear.lora = None;
            }
        }
        base.adapter = None;
        base.number();
        base
    }

    /// Gives the head a matrix of its own, with the values of the embedding.
    fn untie(&mut self) {
        let name = LM_HEAD.into();
        self.lm_head.get_or_insert(Parameter { name, ..self.embed_tokens.clone() });
    }
}

/// Whether the adapter of `lora` gives a tied model of `config` a head of its own.
pub fn unties(config: &ModelConfig, lora: &LoraConfig) -> bool {
    let is_saved = |name: &&str| lora.selection.is_saved(name);
    config.tie_word_embeddings && [EMBED_TOKENS, LM_HEAD].iter().any(is_saved)
}

fn check_modules(model: &Decoder, config: &LoraConfig) -> Result<(), AdapterError> {
    for module in &config.selection.modules_to_save {
        let mut alone = config.selection.clone();
        alone.modules_to_save = vec![module.clone()];
        let parameters = model.parameters();
        let mut saved = parameters.iter().filter(|parameter| alone.is_saved(&parameter.name));
        let exists = saved.clone().next().is_some();
        if saved.any(|parameter| parameter.name.contains(".block_sparse_moe.")) {
            return Err(AdapterError::SavedExperts(module.clone()));
        }
        if !exists && !alone.is_saved(LM_HEAD) {
            return Err(AdapterError::NoModule(module.clone()));
        }
    }
    Ok(())
}

/// The last components of the targets' names, sorted, each once.
fn names(places: &[TargetPlace]) -> Vec<&'static str> {
    let last = |place: &TargetPlace| place.name.rsplit('.').next().unwrap_or_default();
    places.iter().map(last).collect::<BTreeSet<_>>().into_iter().collect()
}
