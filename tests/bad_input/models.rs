//! Bad model folders: config.json, weights, index.

use serde_json::json;

use super::*;

pub const CONFIG: &str = "base/config.json";
const WEIGHTS: &str = "base/model.safetensors";
const INDEX: &str = "base/model.safetensors.index.json";
const SHARD: &str = "base/model-00001-of-00002.safetensors";

/// Makes the model one with experts.
fn mixtral(at: &Path) {
    edit(at, CONFIG, |json| json["model_type"] = json!("mixtral"));
}

/// Sets a key of config.json.
macro_rules! config {
    ($name:literal, $key:literal: $value:tt, $seen:literal) => {
        case($name, "sft", |at| edit(at, CONFIG, |json| json[$key] = json!($value)), $seen)
    };
}

#[test]
fn the_error_of_a_bad_config_names_the_key() {
    check(
        "config",
        FAILED,
        &[
            case(
                "missing",
                "sft",
                |at| remove(at, CONFIG),
                "cannot read base/config.json: No such file
                a model folder needs the config.json of its weights",
            ),
            case(
                "json",
                "sft",
                |at| cut(at, CONFIG, 10),
                "base/config.json is not valid JSON: EOF while parsing",
            ),
            case(
                "key",
                "sft",
                |at| edit(at, CONFIG, |json| without(json, "hidden_size")),
                "base/config.json: `hidden_size` is missing",
            ),
            case(
                "no-type",
                "sft",
                |at| write(at, CONFIG, "[]"),
                "base/config.json: model_type `(none)` is not supported; supported are gemma, gemma2, gemma3_text, granite, llama, mistral, mixtral, olmo2, phi3, qwen2, qwen3, smollm3, starcoder2",
            ),
            config!("type", "model_type": "gpt2", "model_type `gpt2` is not supported; supported are gemma, gemma2, gemma3_text, granite, llama, mistral, mixtral, olmo2, phi3, qwen2, qwen3, smollm3, starcoder2"),
            case(
                "smoothed-soft-cap",
                "sft --label_smoothing_factor=0.1",
                |at| {
                    edit(at, CONFIG, |json| {
                        json["model_type"] = json!("gemma2");
                        json["hidden_activation"] = json!("gelu_pytorch_tanh");
                        json["final_logit_softcapping"] = json!(30.0);
                    });
                },
                "`label_smoothing_factor` cannot be used with a model whose logits have a soft cap",
            ),
            case(
                "experts-adapter",
                "sft --use_peft=true --lora_target_modules=[q_proj,w2]",
                mixtral,
                "the targets `q_proj`, `w2` match the experts or the router of the model
                q_proj, k_proj, v_proj, o_proj",
            ),
            case(
                "experts-saved",
                "sft --use_peft=true --lora_modules_to_save=[gate]",
                mixtral,
                "`gate` is to be trained whole and is a part of the experts or of the router",
            ),
            case(
                "experts-parts",
                "dpo --max_tokens_per_microbatch=512",
                mixtral,
                "`max_tokens_per_microbatch` cannot be used with the load-balancing loss
                `router_aux_loss_coef: 0`",
            ),
            case(
                "experts-adafactor",
                "sft --optim=adafactor",
                mixtral,
                "`optim: adafactor` cannot train the experts of this model",
            ),
            case(
                "no-experts",
                "sft --router_aux_loss_coef=0.1",
                |_| {},
                "`base` has no experts; remove the key",
            ),
            case(
                "long",
                "sft",
                |at| {
                    edit(at, CONFIG, |json| {
                        json["model_type"] = json!("phi3");
                        json["original_max_position_embeddings"] = json!(16);
                        json["rope_scaling"] = json!({"type": "longrope",
                            "short_factor": vec![1.0; 16], "long_factor": [2.0]});
                    });
                },
                "`long_factor` is [2.0]; expected 16 positive numbers",
            ),
            config!("text", "hidden_size": "128", "`hidden_size` is \"128\"; expected a positive whole number"),
            config!("zero", "sliding_window": 0, "`sliding_window` is 0; expected a positive whole number"),
            config!(
                "huge",
                "vocab_size": 1152921504606846976u64,
                "`vocab_size` is 1152921504606846976; expected a positive whole number"
            ),
            config!(
                "heads",
                "num_key_value_heads": 3,
                "`num_key_value_heads` is 3; expected a divisor of num_attention_heads (4)"
            ),
            config!("odd", "head_dim": 31, "`head_dim` is 31; expected an even number"),
            config!("act", "hidden_act": "gelu", "`hidden_act` is gelu; expected `silu`"),
            config!("flag", "tie_word_embeddings": "true", "`tie_word_embeddings` is \"true\"; expected true or false"),
            config!("rope-text", "rope_scaling": "linear", "`rope_scaling` is \"linear\"; expected an object"),
            config!(
                "rope-kind",
                "rope_scaling": {"rope_type": "yarn"},
                "`rope_scaling` is yarn; expected `default`, `linear` or `llama3`"
            ),
            config!(
                "rope-factor",
                "rope_scaling": {"rope_type": "linear", "factor": -2.0},
                "base/config.json: `factor` is -2.0; expected a positive number"
            ),
            config!(
                "rope-theta",
                "rope_parameters": {"rope_type": "default", "rope_theta": 0},
                "base/config.json: `rope_theta` is 0; expected a positive number"
            ),
            case(
                "float16",
                "sft --dtype=auto",
                |at| edit(at, CONFIG, |json| json["torch_dtype"] = json!("float16")),
                "float16 training needs loss scaling, which is not implemented; set dtype to bfloat16 or float32",
            ),
        ],
    );
}

/// Changes the header and the bytes of model.safetensors.
fn tensors(at: &Path, change: impl FnOnce(&mut Value, &mut Vec<u8>)) {
    let bytes = read(at, WEIGHTS);
    let (length, rest) = bytes.split_first_chunk::<8>().expect("a header");
    let (header, body) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let (mut header, mut body) = (serde_json::from_slice(header).expect("JSON"), body.to_vec());
    change(&mut header, &mut body);
    let header = header.to_string();
    write(at, WEIGHTS, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &body].concat());
}

/// Renames the weights to the first of two shards, and writes this index.
fn sharded(at: &Path, index: &str) {
    fs::rename(at.join(WEIGHTS), at.join(SHARD)).expect("weights");
    write(at, INDEX, index);
}

#[test]
fn the_error_of_bad_weights_names_the_file_or_the_tensor() {
    check(
        "weights",
        FAILED,
        &[
            case(
                "missing",
                "sft",
                |at| remove(at, WEIGHTS),
                "base: no model.safetensors and no model.safetensors.index.json here",
            ),
            case(
                "pickled",
                "sft",
                |at| fs::rename(at.join(WEIGHTS), at.join("base/pytorch_model.bin")).unwrap(),
                "convert pytorch_model.bin to safetensors first",
            ),
            case(
                "cut",
                "sft",
                |at| cut(at, WEIGHTS, 100),
                "base/model.safetensors is damaged
                fetch or copy the file again",
            ),
            case("empty", "sft", |at| write(at, WEIGHTS, ""), "base/model.safetensors is damaged: header too small"),
            case(
                "header",
                "dpo",
                |at| {
                    let mut bytes = read(at, WEIGHTS);
                    bytes[9] = b'#';
                    write(at, WEIGHTS, bytes);
                },
                "base/model.safetensors is damaged: invalid JSON in header",
            ),
            case(
                "pointer",
                "sft",
                |at| write(at, WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
                "base/model.safetensors is damaged: it is a Git LFS pointer, not the weights; fetch or copy",
            ),
            case(
                "missing-tensor",
                "sft",
                |at| edit(at, CONFIG, |json| json["num_hidden_layers"] = json!(3)),
                "base: tensor `model.layers.2.input_layernorm.weight` is missing (9 in all",
            ),
            case(
                "extra-tensor",
                "sft",
                |at| edit(at, CONFIG, |json| json["num_hidden_layers"] = json!(1)),
                "base: tensor `model.layers.1.input_layernorm.weight` belongs to no part of this Mistral model (9 such
                is config.json the one of these weights?",
            ),
            case(
                "untied",
                "sft",
                |at| edit(at, CONFIG, |json| json["tie_word_embeddings"] = json!(false)),
                "base: tensor `lm_head.weight` is missing",
            ),
            case(
                "tied",
                "sft",
                |at| {
                    tensors(at, |header, body| {
                        let mut head = header["model.embed_tokens.weight"].clone();
                        let [start, end] = [0, 1].map(|i| head["data_offsets"][i].as_u64().unwrap());
                        let new = body.len() as u64;
                        head["data_offsets"] = json!([new, new + end - start]);
                        header["lm_head.weight"] = head;
                        body.resize((new + end - start) as usize, 0);
                    });
                },
                "base: `lm_head.weight` is another matrix than `model.embed_tokens.weight`, but config.json ties them",
            ),
            case(
                "shape",
                "dpo",
                |at| edit(at, CONFIG, |json| json["vocab_size"] = json!(800)),
                "tensor `model.embed_tokens.weight` has shape [768, 128]; config.json makes it [800, 128]",
            ),
            case(
                "integers",
                "sft",
                |at| tensors(at, |header, _| header["model.norm.weight"]["dtype"] = json!("I32")),
                "tensor `model.norm.weight` has type I32; F32, BF16 and F16 can be read",
            ),
            case(
                "not-finite",
                "sft",
                |at| {
                    tensors(at, |header, body| {
                        let start = header["model.norm.weight"]["data_offsets"][0].as_u64();
                        let start = start.expect("an offset") as usize;
                        body[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
                    });
                },
                "base/model.safetensors: tensor `model.norm.weight` holds NaN or infinite values",
            ),
            case(
                "index-json",
                "sft",
                |at| sharded(at, "{\"weight_map\": "),
                "base/model.safetensors.index.json: not valid JSON: EOF while parsing
                fetch or copy the file again",
            ),
            case(
                "index-map",
                "sft",
                |at| sharded(at, "{}"),
                "base/model.safetensors.index.json: `weight_map` is missing",
            ),
            case(
                "index-entry",
                "sft",
                |at| sharded(at, "{\"weight_map\": {\"lm_head.weight\": 1}}"),
                "`weight_map` holds 1, which is not the name of a file in the model's folder",
            ),
            case(
                "index-absolute",
                "sft",
                |at| sharded(at, "{\"weight_map\": {\"x\": \"/etc/hostname\"}}"),
                "base/model.safetensors.index.json: `weight_map` holds \"/etc/hostname\", which is not the name of a file",
            ),
            case(
                "index-outside",
                "sft",
                |at| sharded(at, "{\"weight_map\": {\"x\": \"../chats.jsonl\"}}"),
                "base/model.safetensors.index.json: `weight_map` holds \"../chats.jsonl\", which is not the name of a file",
            ),
            case(
                "shard",
                "sft",
                |at| {
                    let shard = SHARD.trim_start_matches("base/");
                    let map = json!({"a": shard, "b": "model-00002-of-00002.safetensors"});
                    sharded(at, &json!({"weight_map": map}).to_string());
                },
                "base/model.safetensors.index.json names model-00002-of-00002.safetensors, which does not exist
                fetch or copy the missing file",
            ),
        ],
    );
}

#[test]
fn the_error_of_a_missing_model_names_it() {
    check(
        "model",
        FAILED,
        &[
            case(
                "folder",
                "sft --model_name_or_path=./models/base",
                nothing,
                "`./models/base`: no such model folder
                help: a local path must exist; a hub id has the form `owner/name`",
            ),
            case(
                "hub",
                "sft --model_name_or_path=nobody/nothing",
                nothing,
                "`nobody/nothing`: no such local model folder, and as a hub id (revision main) it is not in the hub's cache
                help: for a local folder, correct its path, or first run the recipe that writes it",
            ),
            case(
                "reference",
                "dpo --ref_model_name_or_path=./reference",
                nothing,
                "`./reference`: no such model folder",
            ),
        ],
    );
}
