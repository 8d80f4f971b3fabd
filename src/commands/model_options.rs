//! The options of commands that let a model answer.

use burn::tensor::DType;
use clap::Args;

use crate::infer::chat_model::ChatModel;
use crate::infer::sampling::Sampling;

/// Where and in which precision a model answers.
#[derive(Debug, Clone, Args)]
pub struct PlaceArguments {
    /// cpu, tch, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// float32 or bfloat16
    #[arg(long, default_value = "float32", value_parser = parse_dtype)]
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

fn parse_dtype(text: &str) -> Result<DType, String> {
    match text {
        "float32" => Ok(DType::F32),
        "bfloat16" => Ok(DType::BF16),
        _ => Err("`float32` or `bfloat16` is expected".into()),
    }
}

fn parse_temperature(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0);
    value.ok_or_else(|| "a number from 0 on is expected".into())
}

fn parse_top_p(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value: &f64| *value > 0.0 && *value <= 1.0);
    value.ok_or_else(|| "a number above 0 and at most 1 is expected".into())
}

/// How tokens are drawn.
#[derive(Debug, Clone, Args)]
pub struct SamplingArguments {
    /// 0 takes the most likely token each time
    #[arg(long, value_parser = parse_temperature)]
    pub temperature: Option<f64>,
    /// Draw from the K most likely tokens only; 0 for all
    #[arg(long, default_value_t = 50)]
    pub top_k: usize,
    /// Draw from the most likely tokens that together have this probability; 1 for all
    #[arg(long, default_value_t = 1.0, value_parser = parse_top_p)]
    pub top_p: f64,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl SamplingArguments {
    /// With `temperature` where the user gave none.
    pub fn sampling(&self, temperature: f64) -> Sampling {
        Sampling {
            temperature: self.temperature.unwrap_or(temperature),
            top_k: self.top_k,
            top_p: self.top_p,
            seed: self.seed,
        }
    }
}
