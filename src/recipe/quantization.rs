//! The keys of 4-bit weights. They are those of TRL's `ModelConfig`, with its defaults.

use serde::Serialize;

use super::choice::choices;
use super::dtype::Dtype;
use super::reader::Reader;

/// How the linear layers of a base model are quantized to 4 bits while it is loaded (NF4, QLoRA,
/// arXiv 2305.14314).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Quantization {
    /// Whether the scales of the blocks are quantized too.
    #[serde(rename = "use_bnb_nested_quant")]
    pub nested: bool,
}

/// Key `bnb_4bit_quant_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum QuantType {
    Nf4,
}

choices!(QuantType { "nf4" => QuantType::Nf4 } unsupported ["fp4"]);

/// Reads the keys of quantization; `None` without `load_in_4bit`. `dtype` is the value of that key.
pub(super) fn read(r: &mut Reader, dtype: Dtype) -> Option<Quantization> {
    if r.flag("load_in_8bit", false) {
        r.error_on("load_in_8bit", "`load_in_8bit: true` is not supported".to_owned());
        r.help("supported: `load_in_4bit: true`, or neither");
    }
    let on = r.flag("load_in_4bit", false);
    for key in ["bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_compute_dtype"] {
        if !on && r.take(key).is_some() {
            r.note(format!("`{key}` has no effect: it is for `load_in_4bit: true`"));
        }
    }
    if r.take("bnb_4bit_quant_storage").is_some() {
        let text = "`bnb_4bit_quant_storage` has no effect: two weights are in a byte in memory";
        r.note(text.to_owned());
    }
    if !on {
        return None;
    }
    r.choice("bnb_4bit_quant_type", QuantType::Nf4);
    let compute: Option<Dtype> = r.optional_choice("bnb_4bit_compute_dtype");
    if compute.is_some_and(|compute| compute != dtype) {
        let text = "`bnb_4bit_compute_dtype` differs from `dtype`".to_owned();
        r.error_on("bnb_4bit_compute_dtype", text);
        r.help("remove it: as in TRL, `dtype` is the type in which quantized layers compute");
    }
    Some(Quantization { nested: r.flag("use_bnb_nested_quant", false) })
}
