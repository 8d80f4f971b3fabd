//! Number formats.

use serde::{Deserialize, Serialize};

use super::choice::choices;

/// A number format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// The format in which the weights are stored.
    Auto,
    Float32,
    Bfloat16,
    Float16,
}

choices!(Dtype {
    "float32" => Dtype::Float32, "bfloat16" => Dtype::Bfloat16, "float16" => Dtype::Float16,
    "auto" => Dtype::Auto,
    also "fp32" => Dtype::Float32, also "bf16" => Dtype::Bfloat16, also "fp16" => Dtype::Float16,
} unsupported ["float64", "int8", "float8"]);
