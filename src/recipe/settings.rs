//! The typed settings of a recipe: what the rest of the program reads. Every default is filled in.
//!
//! Field names are the keys' own (alignment-handbook, TRL, transformers); units are steps, rows or tokens as the name says.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::choice::{Choice, choices};
use super::hub::PushToHub;
use super::objectives::Objective;
use crate::hub::resolve::SplitName;

/// A recipe with every default filled in.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recipe {
    pub stage: Stage,
    /// The file it came from.
    pub file: PathBuf,
    pub model: ModelSettings,
    pub data: DataSettings,
    pub train: TrainSettings,
    pub objective: Objective,
    /// The keys that the user wrote, after overrides: canonical key and its text, in the order of the file.
    pub written: Vec<(String, String)>,
    /// Every default that was filled in: canonical key and value.
    pub filled: Vec<(String, String)>,
    /// One line for each accepted key that has no meaning here.
    pub notes: Vec<String>,
}

impl Recipe {
    /// Where checkpoints and the final model go.
    pub fn output_dir(&self) -> &Path {
        &self.train.output_dir
    }
}

/// What a recipe trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Supervised fine-tuning on chats.
    Sft,
    /// Direct preference optimization on pairs, and every loss of its family.
    Dpo,
    /// Odds-ratio preference optimization: pairs, no reference.
    Orpo,
    /// Contrastive preference optimization and SimPO: pairs, no reference.
    Cpo,
    /// Kahneman-Tversky optimization: single responses with a label.
    Kto,
}

choices!(Stage {
    "sft" => Stage::Sft, "dpo" => Stage::Dpo, "orpo" => Stage::Orpo, "cpo" => Stage::Cpo, "kto" => Stage::Kto,
} unsupported ["simpo", "reward", "rm", "grpo", "rloo", "ppo"]);

impl Stage {
    /// All stages, the usual ones first.
    pub const ALL: [Stage; 5] = [Stage::Sft, Stage::Dpo, Stage::Orpo, Stage::Cpo, Stage::Kto];

    /// Its subcommand.
    pub fn command(self) -> &'static str {
        self.word()
    }

    /// Its name in prose.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Sft => "SFT",
            Stage::Dpo => "DPO",
            Stage::Orpo => "ORPO",
            Stage::Cpo => "CPO",
            Stage::Kto => "KTO",
        }
    }

    /// The stage of a subcommand.
    pub fn of_command(word: &str) -> Option<Stage> {
        Stage::from_word(word)
    }
}

/// Which model is trained, and in what number format.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelSettings {
    /// A hub id or a folder.
    pub model_name_or_path: String,
    /// Branch, tag or commit on the hub.
    pub model_revision: String,
    /// Where the tokenizer is, if not beside the model.
    pub tokenizer_name_or_path: Option<String>,
    /// DPO: the frozen reference; `None` is the policy as it starts.
    pub ref_model_name_or_path: Option<String>,
    /// The format in which weights are held.
    pub dtype: Dtype,
    /// Jinja text (already read where the recipe named a file); `None` is the tokenizer's own.
    pub chat_template: Option<String>,
    /// Replaces the tokenizer's end-of-sequence token.
    pub eos_token: Option<String>,
}

/// A number format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// As the weights are stored.
    Auto,
    Float32,
    Bfloat16,
    Float16,
}

choices!(Dtype {
    "float32" => Dtype::Float32, "bfloat16" => Dtype::Bfloat16, "float16" => Dtype::Float16, "auto" => Dtype::Auto,
    also "fp32" => Dtype::Float32, also "bf16" => Dtype::Bfloat16, also "fp16" => Dtype::Float16,
} unsupported ["float64", "int8", "float8"]);

/// Which rows are read, and how they become token ids.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DataSettings {
    pub mixture: Mixture,
    /// The first n training rows after mixing.
    pub max_train_samples: Option<usize>,
    /// The first n test rows after mixing.
    pub max_eval_samples: Option<usize>,
    /// The share of unusable rows, 0 to 1, above which a run stops.
    pub max_bad_rows: f64,
    /// Threads that tokenize; `None` is one for each core.
    pub dataset_num_proc: Option<usize>,
    /// Puts an empty system message before a chat that has none (the handbook before 2024-08).
    pub auto_insert_empty_system_msg: bool,
    /// How a preference row becomes prompt, chosen and rejected ids.
    pub preprocessing: Preprocessing,
}

/// Key `preference_semantics`: whose tokenization of preference pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preprocessing {
    /// TRL as it is today.
    Trl,
    /// The handbook's first version with TRL 0.7, which made Zephyr-7B-β.
    HandbookV1,
    /// TRL's trainers of ORPO and CPO: the template's text, BOS before it, EOS behind it.
    TrlText,
}

choices!(Preprocessing {
    "trl" => Preprocessing::Trl, "handbook_v1" => Preprocessing::HandbookV1, "trl_text" => Preprocessing::TrlText,
} unsupported []);

/// One split of one data set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DatasetSpec {
    /// A hub id, a folder in the hub's layout, or a `.parquet` or `.jsonl` file.
    pub id: String,
    pub config: Option<String>,
    pub revision: Option<String>,
    pub split: String,
    /// The columns to keep; `None` is all.
    pub columns: Option<Vec<String>>,
    /// The share of rows that is used, 0 to 1.
    pub fraction: f64,
}

impl DatasetSpec {
    /// The split as the hub is asked for it.
    pub fn split_name(&self) -> SplitName<'_> {
        SplitName {
            id: &self.id,
            config: self.config.as_deref(),
            revision: self.revision.as_deref(),
            split: &self.split,
        }
    }
}

/// Where the rows come from, in one of three schemas.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "there is one in a run")]
pub enum Mixture {
    /// `dataset_mixer` + `dataset_splits` (handbook until 2025): the first int(fraction·n) rows of each train split,
    /// concatenated, shuffled with seed 42; test splits whole, shuffled with seed 42.
    Mixer { train: Vec<DatasetSpec>, test: Vec<DatasetSpec>, shuffle: bool },
    /// `dataset_mixture` (handbook since 2025): every set is shuffled with the seed and cut to int(fraction·n) rows, all are
    /// concatenated and shuffled, then `test_split_size` rows are split off.
    Pooled { sets: Vec<DatasetSpec>, seed: u64, test_split_size: Option<SplitSize> },
    /// `dataset_name` (TRL's scripts): rows as they lie, nothing shuffled. `test` only where the run evaluates.
    Named { train: DatasetSpec, test: Option<DatasetSpec> },
}

/// How much of a pooled mixture becomes the test set.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitSize {
    /// A share, above 0 and below 1.
    Share(f64),
    Rows(usize),
}

/// The training loop. Names are those of `transformers.TrainingArguments`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainSettings {
    pub output_dir: PathBuf,
    pub overwrite_output_dir: bool,
    pub seed: u64,
    /// The sampler's own seed; `None` is `seed`.
    pub data_seed: Option<u64>,
    pub do_train: bool,
    /// Evaluate once more at the end of training.
    pub do_eval: bool,
    pub num_train_epochs: f64,
    /// Optimizer steps; where set it replaces `num_train_epochs`.
    pub max_steps: Option<u64>,
    /// Rows a rank and micro-batch.
    pub per_device_train_batch_size: usize,
    /// Tokens that are computed at once in training and evaluation: a batch of more is computed in parts, with the
    /// same update and the same metrics. `None` is no limit.
    pub max_tokens_per_microbatch: Option<usize>,
    /// Rows a rank and evaluation batch.
    pub per_device_eval_batch_size: usize,
    /// Micro-batches an optimizer step.
    pub gradient_accumulation_steps: usize,
    pub gradient_checkpointing: bool,
    pub bf16: bool,
    pub optim: Optim,
    /// The peak learning rate.
    pub learning_rate: f64,
    pub adam_beta1: f64,
    pub adam_beta2: f64,
    pub adam_epsilon: f64,
    pub weight_decay: f64,
    /// The gradient's largest global norm; 0 is no clipping.
    pub max_grad_norm: f64,
    pub lr_scheduler_type: Schedule,
    pub lr_scheduler_kwargs: LrSchedulerKwargs,
    pub warmup: Warmup,
    pub logging: Every,
    pub logging_first_step: bool,
    pub eval: Every,
    pub eval_on_start: bool,
    pub save: Every,
    /// How many checkpoints are kept; `None` is all.
    pub save_total_limit: Option<usize>,
    /// Keep no optimizer state in checkpoints: they cannot be resumed.
    pub save_only_model: bool,
    /// The format of written weights; `None` is the format in which they are held.
    pub save_dtype: Option<Dtype>,
    pub load_best_model_at_end: bool,
    /// Without the prefix `eval_`, which may be written or not; `loss` where `load_best_model_at_end` needs one.
    pub metric_for_best_model: Option<String>,
    pub greater_is_better: Option<bool>,
    pub train_sampling_strategy: Sampling,
    pub resume_from_checkpoint: Resume,
    /// Where the metrics go besides console and `trainer_state.json`.
    pub report_to: Vec<Reporter>,
    /// TensorBoard's folder; `None` is one in `output_dir`.
    pub logging_dir: Option<PathBuf>,
    pub run_name: Option<String>,
    /// The name of the model in its card and on the hub, `owner/name` or `name`; `None` is that of `output_dir`.
    pub hub_model_id: Option<String>,
    /// The upload of the finished model, where there is one.
    pub push_to_hub: Option<PushToHub>,
    pub device: DeviceChoice,
    pub disable_tqdm: bool,
}

/// When something happens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Every {
    No,
    Epoch,
    /// Every n optimizer steps; below 1 a share x of all T steps: every ceil(T·x).
    Steps(f64),
}

/// The values of the `…_strategy` keys, before their steps are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Strategy {
    No,
    Epoch,
    Steps,
}

// PyYAML reads a bare `no` as false, so `false` is how a `no` without quotes arrives in Python.
choices!(Strategy {
    "no" => Strategy::No, "steps" => Strategy::Steps, "epoch" => Strategy::Epoch, also "false" => Strategy::No,
} unsupported ["best"]);

/// Warm-up of the learning rate from 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Warmup {
    /// A share x of all T steps: ceil(T·x).
    Ratio(f64),
    Steps(u64),
}

/// The optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optim {
    Adam,
    AdamW,
    RmsProp,
}

choices!(Optim {
    "adamw_torch" => Optim::AdamW, "adam" => Optim::Adam, "rmsprop" => Optim::RmsProp,
    also "adamw" => Optim::AdamW, also "adamw_torch_fused" => Optim::AdamW, also "adamw_hf" => Optim::AdamW,
    also "adamw_torch_xla" => Optim::AdamW, also "adamw_torch_npu_fused" => Optim::AdamW,
    also "adamw_apex_fused" => Optim::AdamW, also "paged_adamw_32bit" => Optim::AdamW, also "paged_adamw" => Optim::AdamW,
} unsupported [
    "adafactor", "adamw_anyprecision", "adamw_torch_4bit", "adamw_torch_8bit", "ademamix", "sgd", "adagrad",
    "adamw_bnb_8bit", "adamw_8bit", "ademamix_8bit", "lion_8bit", "lion_32bit", "paged_adamw_8bit",
    "paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit", "paged_lion_8bit", "rmsprop_bnb",
    "rmsprop_bnb_8bit", "rmsprop_bnb_32bit", "galore_adamw", "galore_adamw_8bit", "galore_adafactor",
    "galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise", "lomo", "adalomo",
    "grokadamw", "schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd", "apollo_adamw",
    "apollo_adamw_layerwise", "stable_adamw",
]);

/// The learning rate's course after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    Linear,
    Cosine,
    Constant,
    ConstantWithWarmup,
    CosineWithMinLr,
    InverseSqrt,
}

choices!(Schedule {
    "linear" => Schedule::Linear, "cosine" => Schedule::Cosine, "constant" => Schedule::Constant,
    "constant_with_warmup" => Schedule::ConstantWithWarmup, "cosine_with_min_lr" => Schedule::CosineWithMinLr,
    "inverse_sqrt" => Schedule::InverseSqrt,
} unsupported [
    "cosine_with_restarts", "polynomial", "reduce_lr_on_plateau", "cosine_warmup_with_min_lr",
    "warmup_stable_decay", "greedy",
]);

/// Key `lr_scheduler_kwargs`: only the entries that the chosen schedule reads may be set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct LrSchedulerKwargs {
    /// `cosine_with_min_lr`: the last learning rate.
    pub min_lr: Option<f64>,
    /// `cosine_with_min_lr`: the last learning rate as a share of the peak.
    pub min_lr_rate: Option<f64>,
    /// `cosine`, `cosine_with_min_lr`: waves; 0.5 is from the peak down to the end.
    pub num_cycles: Option<f64>,
    /// `inverse_sqrt`: steps; the warm-up's where absent.
    pub timescale: Option<f64>,
}

/// The order of training rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampling {
    /// A new permutation each epoch.
    Random,
    /// As the rows lie.
    Sequential,
}

choices!(Sampling {
    "random" => Sampling::Random, "sequential" => Sampling::Sequential,
} unsupported ["group_by_length", "batch_rebalance"]);

/// Where a run starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Resume {
    /// The newest checkpoint in `output_dir`, if there is one.
    Auto,
    /// From the first step, whatever is there.
    Fresh,
    /// This checkpoint.
    Path(PathBuf),
}

/// Who else hears of the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reporter {
    TensorBoard,
}

/// Key `device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceChoice {
    /// Burn's Flex back end.
    Cpu,
    /// LibTorch (cargo feature `tch`).
    Tch,
    /// An NVIDIA GPU by its number (cargo feature `cuda`).
    Cuda(usize),
}

impl DeviceChoice {
    /// The device called `name`: `cpu` (or `flex`), `tch`, `cuda` (the first GPU), `cuda:N`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name.split_once(':').unwrap_or((name, "0")) {
            ("cpu" | "flex", "0") => Some(DeviceChoice::Cpu),
            ("tch", "0") => Some(DeviceChoice::Tch),
            ("cuda", index) => index.parse().ok().map(DeviceChoice::Cuda),
            _ => None,
        }
    }

    /// The device of a rank: ranks on one host take its GPUs in turn, from the chosen one on.
    pub fn of_rank(self, local_rank: usize) -> Self {
        match self {
            DeviceChoice::Cuda(index) => DeviceChoice::Cuda(index + local_rank),
            other => other,
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Tch => f.write_str("tch"),
            DeviceChoice::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}
