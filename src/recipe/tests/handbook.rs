//! The alignment-handbook's zephyr-7b-beta recipes: all keys and values that it used over the
//! years.

use std::path::PathBuf;

use super::*;
use crate::recipe::{
    Dtype, Every, LogitsOver, LossType, Mixture, Optim, Preprocessing, Quantization, Schedule,
    SplitSize, Truncation, Warmup,
};

/// SFT, November 2023.
const SFT_2023: &str = "\
model_name_or_path: mistralai/Mistral-7B-v0.1
model_revision: main
torch_dtype: bfloat16
use_flash_attention_2: true
dataset_mixer:
  HuggingFaceH4/ultrachat_200k: 1.0
dataset_splits:
- train_sft
- test_sft
preprocessing_num_workers: 12
bf16: true
do_eval: true
evaluation_strategy: epoch
gradient_accumulation_steps: 2
gradient_checkpointing: true
hub_model_id: zephyr-7b-sft-full
hub_strategy: every_save
learning_rate: 2.0e-05
log_level: info
logging_steps: 5  \nlogging_strategy: steps
lr_scheduler_type: cosine
max_seq_length: 2048
max_steps: -1
num_train_epochs: 1
output_dir: data/zephyr-7b-sft-full
overwrite_output_dir: true
per_device_eval_batch_size: 16
per_device_train_batch_size: 32
push_to_hub: true
remove_unused_columns: true
report_to:
- tensorboard
save_strategy: \"no\"
save_total_limit: null
seed: 42
tf32: true
";

/// The head of the DPO recipes until 2025.
const DPO_MIXER: &str = "\
model_name_or_path: alignment-handbook/zephyr-7b-sft-full
torch_dtype: null
dataset_mixer:
  HuggingFaceH4/ultrafeedback_binarized: 1.0
dataset_splits:
- train_prefs
- test_prefs
preprocessing_num_workers: 12
";

/// DPO, first version.
const DPO_2023: &str = "\
bf16: true
beta: 0.1
do_eval: true
evaluation_strategy: steps
eval_steps: 100
gradient_accumulation_steps: 1
gradient_checkpointing: true
hub_model_id: zephyr-7b-dpo-full
learning_rate: 5.0e-7
log_level: info
logging_steps: 10
lr_scheduler_type: linear
max_length: 1024
max_prompt_length: 512
num_train_epochs: 3
optim: rmsprop
output_dir: data/zephyr-7b-dpo-full
per_device_train_batch_size: 8
per_device_eval_batch_size: 4
push_to_hub: true
save_strategy: \"no\"
save_total_limit: null
seed: 42
warmup_ratio: 0.1
";

/// DPO since January 2024, after its data.
const DPO_2024: &str = "\
bf16: true
beta: 0.01
do_eval: true
eval_strategy: steps
eval_steps: 100
gradient_accumulation_steps: 2
gradient_checkpointing: true
gradient_checkpointing_kwargs:
  use_reentrant: False
hub_model_id: zephyr-7b-dpo-full
learning_rate: 5.0e-7
log_level: info
logging_steps: 10
lr_scheduler_type: cosine
max_length: 1024
max_prompt_length: 512
num_train_epochs: 1
optim: adamw_torch
output_dir: data/zephyr-7b-dpo-full
per_device_train_batch_size: 8
per_device_eval_batch_size: 8
push_to_hub: true
save_strategy: \"steps\"
save_steps: 100
save_total_limit: 1
seed: 42
warmup_ratio: 0.1
";

/// The LoRA section of the QLoRA recipes.
const QLORA: &str = "\
load_in_4bit: true
use_peft: true
lora_r: 16
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules:
- q_proj
- k_proj
- v_proj
- o_proj
- gate_proj
- up_proj
- down_proj
";

#[track_caller]
fn read(text: &str, stage: Stage) -> Recipe {
    parse(text, stage, &[]).unwrap_or_else(|errors| panic!("{errors}"))
}

/// A recipe of this project.
fn ours(name: &str, stage: Stage) -> Recipe {
    let name =
        if name.starts_with("zephyr") { name.into() } else { format!("zephyr-7b-beta/{name}") };
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("recipes").join(name);
    Recipe::load(&path, stage, &[]).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn the_first_sft_recipe() {
    let recipe = read(SFT_2023, Stage::Sft);
    assert_eq!((recipe.model.dtype, recipe.data.dataset_num_proc), (Dtype::Bfloat16, Some(12)));
    assert_eq!(
        (recipe.train.eval, recipe.train.save, recipe.train.logging),
        (Every::Epoch, Every::No, Every::Steps(5.0))
    );
    assert_eq!(
        (sft(&recipe).max_length, recipe.train.max_steps, recipe.train.save_total_limit),
        (Some(2048), None, None)
    );
    let Mixture::Mixer { train, test, .. } = &recipe.data.mixture else { panic!() };
    assert_eq!((train[0].split.as_str(), test[0].split.as_str()), ("train_sft", "test_sft"));
    let noted: Vec<&str> = recipe.notes.iter().filter_map(|note| note.split('`').nth(1)).collect();
    assert_eq!(
        noted,
        [
            "hub_strategy: every_save",
            "use_flash_attention_2",
            "tf32",
            "remove_unused_columns",
            "log_level"
        ]
    );
}

#[test]
fn the_dpo_recipes() {
    let first = read(&format!("{DPO_MIXER}{DPO_2023}"), Stage::Dpo);
    assert_eq!(
        (dpo(&first).beta, first.train.optim, first.train.lr_scheduler_type),
        (0.1, Optim::RmsProp, Schedule::Linear)
    );
    assert_eq!(first.model.dtype, Dtype::Float32);
    let second = read(&format!("{DPO_MIXER}{DPO_2024}"), Stage::Dpo);
    assert_eq!(
        (dpo(&second).beta, second.train.optim, second.train.lr_scheduler_type),
        (0.01, Optim::AdamW, Schedule::Cosine)
    );
}

#[test]
fn the_qlora_recipes() {
    let text = format!("{DPO_MIXER}{QLORA}{DPO_2024}").replace("adamw_torch", "paged_adamw_32bit");
    let recipe = read(&text, Stage::Dpo);
    assert_eq!(recipe.model.quantization, Some(Quantization { nested: false }));
    let lora = recipe.model.lora.as_ref().expect("an adapter");
    assert_eq!((lora.lora_r, lora.lora_alpha, lora.lora_dropout), (16, 16.0, 0.05));
    assert_eq!(lora.lora_target_modules.len(), 7);
    assert!(!recipe.model.keeps_dropout, "DPO turns dropout off");
    let note = "`optim: paged_adamw_32bit` is AdamW with 32-bit state in ordinary memory here";
    assert!(recipe.notes.iter().any(|line| line == note), "{:?}", recipe.notes);
    let recipe = read(&SFT_2023.replace("use_flash_attention_2: true\n", QLORA), Stage::Sft);
    assert!(recipe.model.keeps_dropout && recipe.model.lora.is_some());
    assert_eq!(recipe.model.quantization, Some(Quantization { nested: false }));
}

#[test]
fn the_handbook_s_recipes_as_they_are_now() {
    let recipe = ours("dpo/handbook.yaml", Stage::Dpo);
    let Mixture::Pooled { sets, seed, test_split_size } = &recipe.data.mixture else { panic!() };
    assert_eq!((sets.len(), *seed, *test_split_size), (2, 0, Some(SplitSize::Rows(2000))));
    assert_eq!(sets[1].split, "test_prefs");
    assert_eq!((dpo(&recipe).beta, recipe.train.gradient_accumulation_steps), (0.01, 2));
    assert_eq!(recipe.data.preprocessing, Preprocessing::Trl);
    let recipe = ours("sft/handbook.yaml", Stage::Sft);
    assert_eq!((sft(&recipe).max_length, sft(&recipe).packing), (Some(2048), false));
    assert_eq!((recipe.train.warmup, recipe.train.learning_rate), (Warmup::Ratio(0.1), 2e-5));
}

#[test]
fn zephyr_141b() {
    let recipe = ours("zephyr-141b-A35b/orpo/handbook.yaml", Stage::Orpo);
    let Objective::Orpo(orpo) = &recipe.objective else { panic!() };
    assert_eq!((orpo.beta, orpo.lengths.max_prompt_length), (0.05, Some(1792)));
    let train = &recipe.train;
    assert_eq!(
        (train.lr_scheduler_type, train.warmup),
        (Schedule::InverseSqrt, Warmup::Steps(100))
    );
    assert_eq!((train.optim, train.bf16), (Optim::AdamW, true));
    assert_eq!(recipe.model.router_aux_loss_coef, None);
}

#[test]
fn zephyr_7b_beta_as_published() {
    let recipe = ours("dpo/published.yaml", Stage::Dpo);
    let (train, dpo) = (&recipe.train, dpo(&recipe));
    assert_eq!(
        (dpo.beta, dpo.losses[0].loss_type, dpo.label_smoothing),
        (0.1, LossType::Sigmoid, 0.0)
    );
    assert_eq!(
        (dpo.lengths.max_length, dpo.lengths.max_prompt_length, dpo.lengths.truncation_mode),
        (Some(1024), Some(512), Truncation::KeepEnd)
    );
    assert_eq!(dpo.logits_over, LogitsOver::All);
    assert_eq!(
        (recipe.data.preprocessing, recipe.data.auto_insert_empty_system_msg),
        (Preprocessing::HandbookV1, true)
    );
    assert_eq!(
        (train.learning_rate, train.lr_scheduler_type, train.warmup),
        (5e-7, Schedule::Linear, Warmup::Ratio(0.1))
    );
    assert_eq!(
        (train.optim, train.adam_beta1, train.adam_beta2, train.adam_epsilon),
        (Optim::Adam, 0.9, 0.999, 1e-8)
    );
    assert_eq!(
        (
            train.per_device_train_batch_size,
            train.per_device_eval_batch_size,
            train.gradient_accumulation_steps
        ),
        (2, 4, 1)
    );
    assert_eq!((train.num_train_epochs, train.seed, train.bf16), (3.0, 42, true));
    assert_eq!(recipe.notes, [] as [String; 0]);

    let recipe = ours("sft/published.yaml", Stage::Sft);
    assert_eq!(
        (recipe.train.learning_rate, recipe.train.num_train_epochs, recipe.train.warmup),
        (2e-5, 1.0, Warmup::Ratio(0.0))
    );
    let rows =
        recipe.train.per_device_train_batch_size * recipe.train.gradient_accumulation_steps * 16;
    assert_eq!((rows, sft(&recipe).packing), (512, true));
    assert!(recipe.model.chat_template.is_some());
}
