//! `quantization_config` in `config.json`: which quantized models can be read.

use std::path::Path;

use serde_json::Value;

use super::ConfigError;
use crate::recipe::Quantization;

/// The key in `config.json`.
pub const KEY: &str = "quantization_config";

/// The quantization of the weights beside a parsed `config.json`; `None` if they are numbers.
///
/// # Errors
/// The weights are quantized by another method than NF4 of bitsandbytes.
pub fn stored(raw: &Value, path: &Path) -> Result<Option<Quantization>, ConfigError> {
    let Some(settings) = raw.get(KEY).filter(|settings| !settings.is_null()) else {
        return Ok(None);
    };
    let flag = |key: &str| settings.get(key).and_then(Value::as_bool).unwrap_or(false);
    let (in_4bit, in_8bit) = (flag("load_in_4bit"), flag("load_in_8bit"));
    let method = match settings.get("quant_method").and_then(Value::as_str) {
        None if in_4bit || in_8bit => "bitsandbytes",
        method => method.unwrap_or("an unknown method"),
    };
    // transformers' default of a missing type is fp4.
    let kind = settings.get("bnb_4bit_quant_type").and_then(Value::as_str).unwrap_or("fp4");
    let found = match method {
        "bitsandbytes" if in_4bit && kind == "nf4" => {
            return Ok(Some(Quantization { nested: flag("bnb_4bit_use_double_quant") }));
        }
        "bitsandbytes" if in_4bit => format!("bitsandbytes ({kind})"),
        "bitsandbytes" => "bitsandbytes (8 bits)".to_owned(),
        other => other.to_owned(),
    };
    Err(ConfigError::Quantized { path: path.into(), found })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(settings: Value) -> Result<Option<Quantization>, String> {
        let raw = json!({KEY: settings});
        stored(&raw, Path::new("config.json")).map_err(|error| error.to_string())
    }

    #[test]
    fn nf4_is_read_and_nothing_is_not_quantized() {
        assert_eq!(of(Value::Null), Ok(None));
        assert_eq!(stored(&json!({}), Path::new("config.json")).unwrap(), None);
        for nested in [false, true] {
            let settings = json!({"quant_method": "bitsandbytes", "load_in_4bit": true,
                "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": nested});
            assert_eq!(of(settings), Ok(Some(Quantization { nested })));
        }
        let old = json!({"load_in_4bit": true, "bnb_4bit_quant_type": "nf4"});
        assert_eq!(of(old), Ok(Some(Quantization { nested: false })));
    }

    #[test]
    fn other_methods_are_named() {
        for (settings, name) in [
            (json!({"quant_method": "gptq", "bits": 4}), "gptq"),
            (json!({"quant_method": "awq"}), "awq"),
            (json!({"quant_method": "fp8"}), "fp8"),
            (
                json!({"quant_method": "bitsandbytes", "load_in_8bit": true}),
                "bitsandbytes (8 bits)",
            ),
            (json!({"load_in_4bit": true, "bnb_4bit_quant_type": "fp4"}), "bitsandbytes (fp4)"),
            (json!({"load_in_4bit": true}), "bitsandbytes (fp4)"),
            (json!({"bits": 4}), "an unknown method"),
        ] {
            let error = of(settings).unwrap_err();
            let start = format!("config.json: the weights are quantized with {name}, ");
            assert!(error.starts_with(&start), "{error}");
            assert!(error.contains("`load_in_4bit: true`"), "{error}");
        }
    }
}
