//! NF4 as bitsandbytes has it: codes and scales byte for byte, models that transformers saved, and
//! models that are quantized while they are loaded. `scripts/golden/nf4.py` made the golden files.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{DType, Device};
use common::*;
use favonius::data::ragged::RaggedBatch;
use favonius::kernels::nf4::{Packed, Scales};
use favonius::model::adapter::ModelSource;
use favonius::model::adapter::source::Outermost;
use favonius::model::config::ModelConfig;
use favonius::model::decoder::Decoder;
use favonius::model::parameter::Weight;
use favonius::model::weights::{SHARD_BYTES, WeightFiles, WeightFormat};
use favonius::recipe::Quantization;
use favonius::train::layerwise::{Keep, LayerwisePass};
use half::bf16;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

fn golden_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(golden_folder().join("nf4.json")).unwrap()).unwrap()
}

/// The first digits of the hash of some bytes.
fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256_of(numbers: &[f32]) -> String {
    sha256(&numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
}

/// The values of a tensor of the golden file.
fn made(kind: &str, place: u64, [rows, columns]: [usize; 2]) -> Vec<f32> {
    let mut values = uniforms(place, rows * columns);
    match kind {
        "cubed" => values.iter_mut().for_each(|x| *x = *x * *x * *x),
        "bfloat16" => values.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
        "zeros" => values.chunks_mut(columns).skip(1).step_by(3).for_each(|row| row.fill(0.0)),
        "equal" => {
            let first = values[..columns].to_vec();
            values.chunks_mut(columns).for_each(|row| row.copy_from_slice(&first));
        }
        other => assert_eq!(other, "uniform"),
    }
    values
}

#[track_caller]
fn assert_is(values: &[f32], golden: &Value, what: &str) {
    let packed = Packed::quantize(values, golden["nested"].as_bool().unwrap());
    let mut ours = json!({"codes": sha256(packed.codes())});
    match packed.scales() {
        Scales::Float(absmax) => ours["absmax"] = json!(sha256_of(absmax)),
        Scales::Nested(nested) => {
            ours["nested_codes"] = json!(sha256(&nested.codes));
            ours["nested_absmax"] = json!(sha256_of(&nested.absmax));
            ours["map"] = json!(sha256_of(&nested.map));
            ours["offset"] = json!(f64::from(nested.offset));
        }
    }
    let mut dequantized = packed.dequantize();
    if golden["kind"] == "bfloat16" {
        // bitsandbytes dequantizes to the type of the tensor.
        dequantized.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
    }
    ours["dequantized"] = json!(sha256_of(&dequantized));
    for (part, ours) in ours.as_object().unwrap() {
        assert_eq!(ours, &golden[part], "{what}: {part}");
    }
}

#[test]
fn tensors_of_a_formula_have_bitsandbytes_bytes() {
    let golden = golden();
    let tensors = golden["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 20);
    for tensor in tensors {
        let kind = tensor["kind"].as_str().unwrap();
        let shape = [0, 1].map(|axis| tensor["shape"][axis].as_u64().unwrap() as usize);
        let values = made(kind, tensor["place"].as_u64().unwrap(), shape);
        assert_is(&values, tensor, &format!("{kind} {shape:?}"));
    }
}

#[test]
fn real_weights_have_bitsandbytes_bytes() {
    let Some(folder) = asset("models/stories260k") else { return };
    let files = WeightFiles::open(&folder).unwrap();
    let golden = golden();
    let layers = golden["real"].as_object().unwrap();
    assert_eq!(layers.len(), 35);
    for (name, both) in layers {
        let values = files.read(name, &files.shape(name).unwrap()).unwrap();
        both.as_array().unwrap().iter().for_each(|golden| assert_is(&values, golden, name));
    }
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn logps(model: &Decoder, golden: &Value) -> Vec<f32> {
    let ids: Vec<u32> = numbers(&golden["ids"]).iter().map(|id| *id as u32).collect();
    LayerwisePass::forward(model, &RaggedBatch::whole(&ids), Keep::Nothing).scores.logp
}

fn is_quantized(model: &Decoder) -> Vec<&str> {
    let quantized = model.parameters().into_iter().filter(|p| p.value.is_quantized());
    quantized.map(|p| &*p.name).collect()
}

/// A folder that transformers saved, and the same model quantized while it is loaded, compute what
/// transformers computes.
#[test]
fn quantized_models_agree_with_transformers() {
    for (name, golden) in golden()["models"].as_object().unwrap() {
        let stored =
            Decoder::load(&golden_folder().join(name), &Device::flex(), DType::F32, |_, _| ());
        let stored = stored.unwrap();
        let folder = scratch(&format!("quantized-{name}"));
        let config = ModelConfig::from_json(golden["config"].clone(), Path::new("c.json")).unwrap();
        let scale = golden["scale"].as_f64().unwrap() as f32;
        let plain = random_model(Arc::new(config), scale);
        plain.save_weights(&folder, DType::F32, SHARD_BYTES).unwrap();
        std::fs::write(folder.join("config.json"), golden["config"].to_string()).unwrap();
        let nested = golden["nested"].as_bool().unwrap();
        let quantization = Some(Quantization { nested });
        let format = WeightFormat { dtype: DType::F32, quantization, dequantizes: false };
        let loaded = Decoder::load(&folder, &Device::flex(), format, |_, _| ()).unwrap();
        let theirs = numbers(&golden["logps"]);
        let ours = logps(&stored, golden);
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!(
                (ours - theirs).abs() < 1e-4 * theirs.abs().max(1.0),
                "{name}: {ours} {theirs}"
            );
        }
        assert_eq!(logps(&loaded, golden), ours, "{name}");
        assert!(relative_difference(&logps(&plain, golden), &ours) > 1e-3, "{name} is not rounded");
        let linear = is_quantized(&stored);
        assert_eq!((linear.len(), is_quantized(&loaded)), (14, linear.clone()));
        assert!(linear.iter().all(|name| name.ends_with("_proj.weight")));
        assert!(stored.parameters().iter().all(|p| p.trainable != p.value.is_quantized()));
    }
}

/// An adapter that is merged into a 4-bit base as in PEFT: dequantized, added, quantized again.
#[test]
fn merging_into_a_quantized_base_agrees_with_peft() {
    let Some(base) = asset("models/stories260k") else { return };
    let (from, folder) = (golden_folder().join("adapter"), scratch("quantized-merge"));
    let weights = "adapter_model.safetensors";
    std::fs::copy(from.join(weights), folder.join(weights)).unwrap();
    let text = std::fs::read(from.join("adapter_config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    config["base_model_name_or_path"] = json!(base);
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    let source = ModelSource::of(&folder).unwrap();
    let golden = golden();
    for golden in golden["merged"].as_array().unwrap() {
        let quantization = Some(Quantization { nested: golden["nested"].as_bool().unwrap() });
        let format = WeightFormat { dtype: DType::F32, quantization, dequantizes: false };
        let load = |outermost| source.load(outermost, &Device::flex(), format, |_, _| ()).unwrap();
        let (merged, attached) = (load(Outermost::Merged), load(Outermost::Attached));
        assert_eq!((is_quantized(&merged).len(), is_quantized(&attached).len()), (35, 35));
        let (theirs, ours) = (numbers(&golden["logps"]), logps(&merged, golden));
        let difference = relative_difference(&ours, &theirs);
        assert!(difference < 1e-4, "{difference}");
        // The sum is quantized a second time.
        assert!(relative_difference(&logps(&attached, golden), &ours) > 1e-3);
    }
}

/// With the weights of a quantized model as plain numbers, everything has the same bits.
#[test]
fn gradients_have_the_bits_of_dequantized_weights() {
    let folder = golden_folder().join("nf4_qwen2_nested");
    let quantized = Decoder::load(&folder, &Device::flex(), DType::F32, |_, _| ()).unwrap();
    let mut plain = quantized.clone();
    for parameter in plain.parameters_mut() {
        parameter.value = Weight::Float(parameter.vector());
    }
    let batch = RaggedBatch::whole(&(0..50u32).map(|i| i * i % 64).collect::<Vec<_>>());
    let gradients = |model: &Decoder, keep| {
        let mut sum = favonius::train::gradients::GradientSum::default();
        let pass = LayerwisePass::forward(model, &batch, keep);
        let upstream: Vec<f32> = pass.scores.logp.iter().map(|x| x * 0.01).collect();
        pass.backward(&upstream, &mut sum);
        let trained = model.parameters().into_iter().filter(|p| p.trainable);
        trained.map(|p| (p.name.to_string(), values(sum.get(p.id).unwrap().clone()))).collect()
    };
    let of_plain: Vec<(String, Vec<f32>)> = gradients(&plain, Keep::Graphs);
    for keep in [Keep::Inputs, Keep::Graphs] {
        let of_quantized: Vec<(String, Vec<f32>)> = gradients(&quantized, keep);
        assert_eq!(of_quantized, of_plain);
        assert!(of_quantized.iter().any(|(name, _)| name == "model.embed_tokens.weight"));
    }
}

#[test]
fn a_quantized_folder_answers() {
    let folder = golden_folder().join("nf4_llama");
    let model = Decoder::load(&folder, &Device::flex(), DType::F32, |_, _| ()).unwrap();
    let ids = model.generate_greedy(&[1, 5, 9], 12, &[]);
    // The next token of the whole text is that of the text so far: one row at a time and all rows
    // at once agree.
    let whole: Vec<u32> = [1, 5, 9].into_iter().chain(ids.iter().copied()).collect();
    let last = whole.len() - 1;
    for end in 3..=last {
        let batch = RaggedBatch::whole(&whole[..end]);
        let logits = values(model.logits(model.hidden(&batch), &[end - 1]));
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
        assert_eq!(best as u32, whole[end]);
    }
}

/// Copies a golden model and lets `change` change the tensors of its file.
fn damaged(name: &str, change: impl Fn(&str, Vec<u8>) -> Option<Vec<u8>>) -> String {
    let (from, to) =
        (golden_folder().join("nf4_qwen2_nested"), scratch(&format!("damaged-{name}")));
    std::fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let changed: Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .filter_map(|(name, view)| {
            let (old, new) = (view.data().len(), change(name, view.data().to_vec())?);
            let mut shape = view.shape().to_vec();
            shape[0] = shape[0] * new.len() / old;
            Some((name.to_owned(), view.dtype(), shape, new))
        })
        .collect();
    let views = changed.iter().map(|(name, dtype, shape, bytes)| {
        (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    std::fs::write(to.join("model.safetensors"), safetensors::serialize(views, None).unwrap())
        .unwrap();
    let loaded = Decoder::load(&to, &Device::flex(), DType::F32, |_, _| ());
    loaded.expect_err("damaged").to_string()
}

#[test]
fn damaged_parts_are_named() {
    const NAME: &str = "model.layers.1.mlp.up_proj.weight";
    let part = |suffix: &'static str| move |name: &str| name == format!("{NAME}{suffix}");
    let without = |suffix: &'static str| {
        damaged(suffix, move |name, bytes| (!part(suffix)(name)).then_some(bytes))
    };
    let start = format!("model.safetensors: tensor `{NAME}` is quantized, but it cannot be read: ");
    let error = without(".nested_absmax");
    assert!(error.contains(&format!("{start}`{NAME}.nested_absmax` is missing")), "{error}");
    let error = damaged("short", |name, mut bytes| {
        bytes.truncate(if part("")(name) { bytes.len() - 8 } else { bytes.len() });
        Some(bytes)
    });
    assert!(
        error.contains(&format!("{start}`codes` has 1152 elements instead of 1160")),
        "{error}"
    );
    let error = damaged("map", |name, mut bytes| {
        bytes[0] ^= u8::from(part(".quant_map")(name));
        Some(bytes)
    });
    assert!(error.contains("`quant_map` is not the code book of nf4"), "{error}");
    let error = damaged("nan", |name, mut bytes| {
        if part(".nested_absmax")(name) {
            bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        }
        Some(bytes)
    });
    assert!(error.contains("`.nested_absmax` does not hold finite float32 numbers"), "{error}");
}

/// Quantized weights cannot be trained without an adapter: the run ends before a weight is read.
#[test]
fn four_bits_without_an_adapter_are_an_error() {
    let (Some(model), Some(data)) =
        (asset("models/stories260k"), asset("data/ultrafeedback_binarized_like"))
    else {
        return;
    };
    let work = scratch("quantized-alone");
    let recipe = json!({"model_name_or_path": model, "dataset_name": data, "max_steps": 1,
        "dataset_train_split": "train_prefs", "load_in_4bit": true,
        "output_dir": work.join("out")});
    let file = work.join("recipe.yaml");
    std::fs::write(&file, recipe.to_string()).unwrap();
    let (code, _, text) = run_program(&["dpo", file.to_str().unwrap()]);
    assert_ne!(code, Some(0));
    assert!(text.contains("are quantized to 4 bits, so they cannot be trained"), "{text}");
    assert!(text.contains("set `use_peft: true`"), "{text}");
}

/// Formats that cannot be read are refused by name before a weight is read.
#[test]
fn other_quantizations_are_refused() {
    let folder = scratch("quantized-otherwise");
    let mut config = golden()["models"]["nf4_llama"]["config"].clone();
    config["quantization_config"] = json!({"quant_method": "gptq", "bits": 4, "group_size": 128});
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let error = Decoder::load(&folder, &Device::flex(), DType::F32, |_, _| ()).unwrap_err();
    let expected = "config.json: the weights are quantized with gptq, which cannot be read; use \
                    the 16-bit or 32-bit model that they were made from";
    assert!(error.to_string().contains(expected), "{error}");
}
