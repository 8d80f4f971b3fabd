//! transformers loads the models that a run writes, and computes the same token ids, logits and
//! greedy continuations, for every weight type and for sharded weights. PEFT loads the adapters.
//! The chat templates of many families give the text that transformers gives.
//!
//! Runs only if `FAVONIUS_PYTHON` names a Python with torch, transformers and peft.

mod common;

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use burn::tensor::{DType, Device};
use common::*;
use favonius::data::ragged::RaggedBatch;
use favonius::data::{Message, TemplateValues, Tokenizer};
use favonius::model::decoder::Decoder;
use serde_json::{Value, json};

const QUESTIONS: [&str; 3] =
    ["What is a cow?", "Tell me the day after Tuesday.", "Put 3 and 6 in order, largest first."];

/// Trains the demo's SFT stage for a few steps.
fn trained(world: &Path, save_dtype: &str) {
    let recipe = world.join("sft.yaml").display().to_string();
    let base = format!("--model_name_or_path={}", world.join("base").display());
    let dtype = format!("--save_dtype={save_dtype}");
    let arguments = ["sft", &recipe, &base, &dtype, "--max_steps=12", "--eval_strategy=no"];
    let (code, out, err) = run_program(&arguments);
    assert_eq!(code, Some(0), "{out}{err}");
}

/// Our token ids, logits and greedy ids of the model in `folder`, in the format that
/// `scripts/check_checkpoint.py` compares.
fn said(folder: &Path) -> Value {
    let model = Decoder::load(folder, &Device::flex(), DType::F32, |_, _| ()).unwrap();
    let tokenizer = Tokenizer::load(folder, None, None).unwrap();
    let eos = [tokenizer.eos_id().unwrap()];
    let prompts = QUESTIONS.map(|question| {
        let chat = [Message::new("user", question)];
        let text = tokenizer.apply_chat_template(&chat, true).unwrap();
        let ids = tokenizer.encode(&text, false).unwrap();
        let hidden = model.hidden(&RaggedBatch::whole(&ids));
        let last_logits = values(model.logits(hidden, &[ids.len() - 1]));
        let greedy_ids = model.generate_greedy(&ids, 24, &eos);
        json!({"text": text, "ids": ids, "greedy_ids": greedy_ids, "last_logits": last_logits})
    });
    json!({"prompts": prompts})
}

fn agrees_with_transformers(python: &OsString, folder: &Path) {
    let file = folder.join("said.json");
    std::fs::write(&file, said(folder).to_string()).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/check_checkpoint.py");
    let mut check = Command::new(python);
    check.arg(script).arg(folder).arg("--against").arg(&file).args(["--tolerance", "1e-4"]);
    let output = check.env("HF_HUB_OFFLINE", "1").output().expect("FAVONIUS_PYTHON starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", folder.display());
}

#[test]
fn peft_reads_the_adapters_that_a_run_writes() {
    let Some(python) = std::env::var_os("FAVONIUS_PYTHON") else {
        eprintln!("skipped: FAVONIUS_PYTHON names no Python with torch, transformers and peft");
        return;
    };
    let world = world("transformers-adapters");
    let base = format!("--model_name_or_path={}", world.join("base").display());
    let recipe = world.join("sft.yaml").display().to_string();
    for (name, more) in [
        ("plain", &["--lora_target_modules=[q_proj, down_proj]"][..]),
        ("saved", &["--use_rslora=true", "--lora_modules_to_save=[lm_head, embed_tokens, norm]"]),
    ] {
        let out = world.join(name);
        let folder = format!("--output_dir={}", out.display());
        let fixed = ["sft", &recipe, &base, &folder, "--use_peft=true", "--max_steps=12"];
        let arguments = [&fixed[..], &["--eval_strategy=no"], more].concat();
        let (code, text, err) = run_program(&arguments);
        assert_eq!(code, Some(0), "{text}{err}");
        agrees_with_transformers(&python, &out);
    }
}

#[test]
fn transformers_reads_the_models_that_a_run_writes() {
    let Some(python) = std::env::var_os("FAVONIUS_PYTHON") else {
        eprintln!("skipped: FAVONIUS_PYTHON names no Python with torch and transformers");
        return;
    };
    for save_dtype in ["float32", "bfloat16"] {
        let world = world(&format!("transformers-{save_dtype}"));
        trained(&world, save_dtype);
        agrees_with_transformers(&python, &world.join("sft"));
    }
    // The same weights as shards with an index.
    let folder = scratch("transformers-shards");
    let whole = Path::new(env!("CARGO_TARGET_TMPDIR")).join("transformers-float32/sft");
    for entry in std::fs::read_dir(&whole).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
    }
    let model = Decoder::load(&whole, &Device::flex(), DType::F32, |_, _| ()).unwrap();
    model.save_weights(&folder, DType::F32, 1 << 20).unwrap();
    assert!(folder.join("model.safetensors.index.json").is_file());
    agrees_with_transformers(&python, &folder);
}

fn messages(chat: &Value) -> Vec<Message> {
    let message = |message: &Value| {
        let text = |key: &str| message[key].as_str().unwrap_or_default();
        let fields = message.as_object().unwrap().clone();
        Message::with_fields(text("role"), text("content"), fields)
    };
    chat["messages"].as_array().unwrap().iter().map(message).collect()
}

/// Chats of a real data set, with system messages, tools, thoughts and generation prompts. The
/// assistant's text is that of TRL's training templates.
#[test]
fn chats_of_other_families_are_rendered_as_in_transformers() {
    let Some(python) = std::env::var_os("FAVONIUS_PYTHON") else {
        eprintln!("skipped: FAVONIUS_PYTHON names no Python with transformers and TRL");
        return;
    };
    let Some(data) = asset("data/ultrachat_200k_like/data") else { return };
    let chats = std::fs::read_dir(data).unwrap().map(|entry| entry.unwrap().path());
    let chats = chats.filter(|path| path.display().to_string().contains("/train")).min().unwrap();
    let world = world("transformers-templates");
    let out = world.join("templates.jsonl");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/check_templates.py");
    let made = Command::new(python).arg(script).args([&chats, &out]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let (mut texts, mut marked) = (0, 0);
    for line in std::fs::read_to_string(&out).unwrap().lines() {
        let golden: Value = serde_json::from_str(line).unwrap();
        let (name, template) = (&golden["name"], golden["template"].as_str());
        let tokenizer = Tokenizer::load(&world.join("base"), template, None).unwrap();
        for (number, chat) in golden["cases"].as_array().unwrap().iter().enumerate() {
            let mut fields = serde_json::Map::new();
            fields.insert("tools".into(), chat["tools"].clone());
            fields.insert("chat_template_kwargs".into(), chat["variables"].clone());
            let values = TemplateValues::of_fields(&fields).unwrap();
            let prompt = chat["add_generation_prompt"].as_bool().unwrap();
            let ours = tokenizer.render_with(&messages(chat), prompt, &values).ok();
            let ours = ours.map(|rendered| rendered.text);
            assert_eq!(ours.as_deref(), chat["text"].as_str(), "{name}, chat {number}");
            texts += 1;
            if !chat["spans"].is_null() && !prompt {
                let ours = tokenizer.render_answers(&messages(chat), &values).unwrap();
                assert_eq!(json!(ours.generated), chat["spans"], "{name}, chat {number}");
                marked += 1;
            }
        }
    }
    assert!(texts > 4000 && marked > 2500, "{texts} texts, {marked} with spans");
}

/// Sequences of more than `original` tokens have the factors for long ones.
fn phi3(original: usize) -> Value {
    json!({"model_type": "phi3", "architectures": ["Phi3ForCausalLM"],
        "num_attention_heads": 3, "num_key_value_heads": 1, "partial_rotary_factor": 0.5,
        "sliding_window": null, "original_max_position_embeddings": original,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0, 2.0],
            "long_factor": [1.0, 3.0]}})
}

#[test]
fn transformers_reads_the_families_that_store_other_tensors() {
    let Some(python) = std::env::var_os("FAVONIUS_PYTHON") else {
        eprintln!("skipped: FAVONIUS_PYTHON names no Python with torch and transformers");
        return;
    };
    let world = world("transformers-families");
    let gemma2 = json!({"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"],
        "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0, "sliding_window": 5});
    let starcoder2 = json!({"model_type": "starcoder2", "sliding_window": 9,
        "architectures": ["Starcoder2ForCausalLM"], "hidden_act": "gelu_pytorch_tanh"});
    let mixtral = json!({"model_type": "mixtral", "architectures": ["MixtralForCausalLM"],
        "num_local_experts": 4, "num_experts_per_tok": 2});
    for changes in [gemma2, phi3(256), starcoder2, mixtral] {
        agrees_with_transformers(&python, &family_folder(&world, changes));
    }
    let world = self::world("transformers-long");
    agrees_with_transformers(&python, &family_folder(&world, phi3(20)));
}

/// Fused projections are single modules for PEFT.
#[test]
fn peft_reads_an_adapter_on_fused_projections() {
    let Some(python) = std::env::var_os("FAVONIUS_PYTHON") else {
        eprintln!("skipped: FAVONIUS_PYTHON names no Python with torch, transformers and peft");
        return;
    };
    let world = world("transformers-fused-adapter");
    let base = format!("--model_name_or_path={}", family_folder(&world, phi3(256)).display());
    let recipe = world.join("sft.yaml").display().to_string();
    let out = world.join("adapter");
    let folder = format!("--output_dir={}", out.display());
    let fixed = ["sft", &recipe, &base, &folder, "--use_peft=true", "--max_steps=6"];
    let more = ["--lora_target_modules=[qkv_proj, gate_up_proj]", "--eval_strategy=no"];
    let (code, text, err) = run_program(&[&fixed[..], &more].concat());
    assert_eq!(code, Some(0), "{text}{err}");
    agrees_with_transformers(&python, &out);
    // PEFT has no default targets for this family.
    let other = format!("--output_dir={}", world.join("other").display());
    let (code, _, err) = run_program(&["sft", &recipe, &base, &other, "--use_peft=true"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("qkv_proj, o_proj, gate_up_proj, down_proj"), "{err}");
}
