//! The options of commands in which a model answers.

use burn::tensor::DType;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::infer::chat_model::ChatModel;
use crate::infer::sampling::Sampling;

/// The device and the number format of a model that answers.
#[derive(Debug, Clone, Args)]
pub struct PlaceArguments {
    /// The device: cpu, tch, tch:cuda:N, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// The number format of the weights
    #[arg(long, default_value = "float32", value_parser = dtypes())]
    pub dtype: DType,
}

impl PlaceArguments {
    /// Loads a model from a folder or the hub.
    pub fn load(&self, name: &str) -> anyhow::Result<ChatModel> {
        Ok(ChatModel::load(name, &self.device, self.dtype)?)
    }
}

impl Default for PlaceArguments {
    fn default() -> Self {
        Self { device: "cpu".into(), dtype: DType::F32 }
    }
}

fn dtypes() -> impl TypedValueParser<Value = DType> {
    let names = PossibleValuesParser::new(["float32", "bfloat16"]);
    names.map(|name| if name == "float32" { DType::F32 } else { DType::BF16 })
}

fn parse_temperature(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0);
    value.ok_or_else(|| "a number of at least 0 is expected".into())
}

fn parse_top_p(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value: &f64| *value > 0.0 && *value <= 1.0);
    value.ok_or_else(|| "a number above 0 and at most 1 is expected".into())
}

/// How the tokens of an answer are chosen.
#[derive(Debug, Clone, Args)]
pub struct SamplingArguments {
    /// Divide logits by this before sampling; 0 takes the most likely token
    #[arg(long, value_name = "T", value_parser = parse_temperature)]
    pub temperature: Option<f64>,
    /// Sample from the K most likely tokens only; 0 for all
    #[arg(long, value_name = "K", default_value_t = 50)]
    pub top_k: usize,
    /// Sample from the most likely tokens that together have this probability; 1 for all
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = parse_top_p)]
    pub top_p: f64,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl SamplingArguments {
    /// The settings, with `temperature` if the user gave none.
    pub fn sampling(&self, temperature: f64) -> Sampling {
        Sampling {
            temperature: self.temperature.unwrap_or(temperature),
            top_k: self.top_k,
            top_p: self.top_p,
            seed: self.seed,
        }
    }
}
