//! The typed settings of a recipe, with every default filled in. The rest of the program reads
//! these.
//!
//! Fields have the names of their keys (alignment-handbook, TRL, transformers). Units are steps,
//! rows or tokens, as the name says.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::adapters::LoraSettings;
use super::choice::choices;
pub use super::dtype::Dtype;
use super::evaluation::TaskEvaluation;
use super::hub::PushToHub;
use super::lr_schedule::{LrSchedulerKwargs, Schedule};
use super::objectives::{Objective, ReferenceKind};
use super::optimizers::{Optim, SgdSettings};
use super::quantization::Quantization;
pub use super::stage::Stage;
use crate::hub::resolve::SplitName;

/// A recipe with every default filled in.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recipe {
    pub stage: Stage,
    /// The file it was read from.
    pub file: PathBuf,
    pub model: ModelSettings,
    pub data: DataSettings,
    pub train: TrainSettings,
    pub objective: Objective,
    /// The evaluation of the finished model on benchmark tasks, if the recipe asks for one.
    pub evaluation: Option<TaskEvaluation>,
    /// The keys that the user wrote, after overrides: canonical key and text, in the order of the
    /// file.
    pub written: Vec<(String, String)>,
    /// The defaults that were filled in: canonical key and value.
    pub filled: Vec<(String, String)>,
    /// One line for each accepted key that has no effect.
    pub notes: Vec<String>,
}

impl Recipe {
    /// The folder of checkpoints and of the final model.
    pub fn output_dir(&self) -> &Path {
        &self.train.output_dir
    }
}

/// The model to train, and its number format.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelSettings {
    /// A hub id or a folder.
    pub model_name_or_path: String,
    /// A branch, tag or commit on the hub.
    pub model_revision: String,
    /// The folder or hub id of the tokenizer; `None` is the model's.
    pub tokenizer_name_or_path: Option<String>,
    /// DPO: the frozen reference; `None` is the policy before training.
    pub ref_model_name_or_path: Option<String>,
    /// The number format of the weights in memory.
    pub dtype: Dtype,
    /// `load_in_4bit`: how the base is quantized while it is loaded.
    pub quantization: Option<Quantization>,
    /// Jinja text (already read, if the recipe named a file); `None` is the tokenizer's own.
    pub chat_template: Option<String>,
    /// Replaces the tokenizer's end-of-sequence token.
    pub eos_token: Option<String>,
    /// A new adapter; `None` trains all weights or, if the model is an adapter, that one.
    pub lora: Option<LoraSettings>,
    /// Whether adapters drop elements of their input in training, by their own probability.
    pub keeps_dropout: bool,
    /// The weight of the load-balancing loss of sparse experts; `None` is that of `config.json`.
    pub router_aux_loss_coef: Option<f64>,
}

/// The rows to read, and how they become token ids.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DataSettings {
    pub mixture: Mixture,
    /// Read and tokenize the training rows while the run trains, in the order of the files.
    pub streaming: bool,
    /// Use only the first n training rows after mixing.
    pub max_train_samples: Option<usize>,
    /// Use only the first n test rows after mixing.
    pub max_eval_samples: Option<usize>,
    /// The share of unusable rows, 0 to 1, above which a run stops.
    pub max_bad_rows: f64,
    /// Tokenizing threads; `None` is one per core.
    pub dataset_num_proc: Option<usize>,
    /// Insert an empty system message into chats that have none (as the handbook did before
    /// 2024-08).
    pub auto_insert_empty_system_msg: bool,
    /// How a preference row becomes prompt, chosen and rejected ids.
    pub preprocessing: Preprocessing,
}

/// Key `preference_semantics`: which program's tokenization of preference pairs is reproduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preprocessing {
    /// The current TRL.
    Trl,
    /// The handbook's first version with TRL 0.7, which trained Zephyr-7B-β.
    HandbookV1,
    /// TRL's trainers of ORPO and CPO: the text of the template between BOS and EOS.
    TrlText,
}

choices!(Preprocessing {
    "trl" => Preprocessing::Trl, "handbook_v1" => Preprocessing::HandbookV1,
    "trl_text" => Preprocessing::TrlText,
} unsupported []);

/// One split of one data set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DatasetSpec {
    /// A hub id, a folder in the hub's layout, or a `.parquet` or `.jsonl` file.
    pub id: String,
    pub config: Option<String>,
    pub revision: Option<String>,
    pub split: String,
    /// The folder of the data set that holds its files; `None` is all of it.
    pub data_dir: Option<String>,
    /// The files of each split, as patterns; empty if the names of files and folders decide.
    pub data_files: Vec<(String, Vec<String>)>,
    /// The columns to keep; `None` is all.
    pub columns: Option<Vec<String>>,
    /// The share of rows to use, 0 to 1.
    pub fraction: f64,
}

impl DatasetSpec {
    /// The split in the form that `hub` takes.
    pub fn split_name(&self) -> SplitName<'_> {
        SplitName {
            id: &self.id,
            config: self.config.as_deref(),
            revision: self.revision.as_deref(),
            split: &self.split,
            data_dir: self.data_dir.as_deref(),
            data_files: &self.data_files,
        }
    }
}

impl Recipe {
    /// The reference model that the run needs.
    pub fn reference_kind(&self) -> ReferenceKind {
        match ReferenceKind::of(&self.objective) {
            ReferenceKind::Frozen(_) if self.data.streaming => ReferenceKind::Resident,
            other => other,
        }
    }
}

/// The source of the rows, in one of four schemas.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "a run has only one")]
pub enum Mixture {
    /// `dataset_mixer` + `dataset_splits` (handbook until 2025): the first int(fraction·n) rows of
    /// each train split are concatenated and shuffled with seed 42. Test splits are used whole and
    /// shuffled with seed 42.
    Mixer { train: Vec<DatasetSpec>, test: Vec<DatasetSpec>, shuffle: bool },
    /// `dataset_mixture` (handbook since 2025): each set is shuffled with the seed and cut to
    /// int(fraction·n) rows; all are concatenated and shuffled; then `test_split_size` rows are
    /// split off.
    Pooled { sets: Vec<DatasetSpec>, seed: u64, test_split_size: Option<SplitSize> },
    /// `datasets` (TRL's scripts): the sets one after the other, in file order. With `fractions`,
    /// one for each set, they are the shares of the sets in the mixture, which is as large as it
    /// can be without repeating a row; the first rows of each set are taken. Then `test_split_size`
    /// rows are split off at random with the seed of the run.
    Listed {
        sets: Vec<DatasetSpec>,
        fractions: Option<Vec<f64>>,
        seed: u64,
        test_split_size: Option<SplitSize>,
    },
    /// `dataset_name` (TRL's scripts): rows in file order. `test` is set only if the run evaluates.
    Named { train: DatasetSpec, test: Option<DatasetSpec> },
}

/// The size of the test set that is split off a pooled mixture.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitSize {
    /// A share, above 0 and below 1.
    Share(f64),
    Rows(usize),
}

/// Settings of the training loop, named as in `transformers.TrainingArguments`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainSettings {
    pub output_dir: PathBuf,
    pub overwrite_output_dir: bool,
    pub seed: u64,
    /// The seed of the sampler; `None` is `seed`.
    pub data_seed: Option<u64>,
    pub do_train: bool,
    /// Evaluate once more at the end of training.
    pub do_eval: bool,
    pub num_train_epochs: f64,
    /// Optimizer steps; if set, it replaces `num_train_epochs`.
    pub max_steps: Option<u64>,
    /// Rows per rank and micro-batch.
    pub per_device_train_batch_size: usize,
    /// The most tokens that are computed at once in training and evaluation. A larger batch is
    /// computed in parts, with the same update and the same metrics. `None` means no limit.
    pub max_tokens_per_microbatch: Option<usize>,
    /// Rows per rank and evaluation batch.
    pub per_device_eval_batch_size: usize,
    /// Micro-batches per optimizer step.
    pub gradient_accumulation_steps: usize,
    pub gradient_checkpointing: bool,
    pub bf16: bool,
    /// The type in which ranks exchange the gradients of a micro-batch. `Auto` is bfloat16 for
    /// bfloat16 weights on GPUs, else float32.
    pub gradient_reduce_dtype: Dtype,
    pub optim: Optim,
    /// The arguments of `optim: sgd`.
    pub sgd: SgdSettings,
    /// The peak learning rate.
    pub learning_rate: f64,
    pub adam_beta1: f64,
    pub adam_beta2: f64,
    pub adam_epsilon: f64,
    pub weight_decay: f64,
    /// NEFTune (arXiv 2310.05914): α of the noise on the embeddings in training; `None` or 0 adds
    /// none.
    pub neftune_noise_alpha: Option<f64>,
    /// The largest global norm of the gradient; 0 disables clipping.
    pub max_grad_norm: f64,
    pub lr_scheduler_type: Schedule,
    pub lr_scheduler_kwargs: LrSchedulerKwargs,
    pub warmup: Warmup,
    pub logging: Every,
    pub logging_first_step: bool,
    pub eval: Every,
    /// Steps, or epochs if evaluations are by epoch, before the first evaluation.
    pub eval_delay: f64,
    pub eval_on_start: bool,
    pub save: Every,
    /// The number of checkpoints to keep; `None` keeps all.
    pub save_total_limit: Option<usize>,
    /// Save no optimizer state in checkpoints; they cannot be resumed then.
    pub save_only_model: bool,
    /// The format of saved weights; `None` is the format in memory.
    pub save_dtype: Option<Dtype>,
    pub load_best_model_at_end: bool,
    /// Without the prefix `eval_`, which the recipe may write or omit; `loss` if
    /// `load_best_model_at_end` needs a metric and none is set.
    pub metric_for_best_model: Option<String>,
    pub greater_is_better: Option<bool>,
    pub train_sampling_strategy: Sampling,
    /// Leave out the last micro-batch of an epoch, and the last batch of an evaluation, if it is
    /// short.
    pub dataloader_drop_last: bool,
    pub resume_from_checkpoint: Resume,
    /// Receivers of the metrics besides the console and `trainer_state.json`.
    pub report_to: Vec<Reporter>,
    /// The folder of the loggers' files; `None` is each logger's own place.
    pub logging_dir: Option<PathBuf>,
    /// The name of the run in loggers; `None` is the name of `output_dir`.
    pub run_name: Option<String>,
    /// The project (mlflow: experiment) of the run in loggers; `None` is each logger's default.
    pub project: Option<String>,
    /// The name of the model in its card and on the hub, `owner/name` or `name`; `None` is the name
    /// of `output_dir`.
    pub hub_model_id: Option<String>,
    /// The upload of the finished model, if one is asked for.
    pub push_to_hub: Option<PushToHub>,
    pub device: DeviceChoice,
    pub disable_tqdm: bool,
}

/// When evaluation, logging or saving happens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Every {
    No,
    Epoch,
    /// Every n optimizer steps; a number x below 1 is a share of all T steps: every ceil(T·x)
    /// steps.
    Steps(f64),
    /// Saving only: after each evaluation that is better than all before it.
    Best,
}

/// The values of the `…_strategy` keys, before their step counts are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Strategy {
    No,
    Epoch,
    Steps,
    Best,
}

// PyYAML reads an unquoted `no` as false, so `false` is how it arrives in Python.
choices!(Strategy {
    "no" => Strategy::No, "steps" => Strategy::Steps, "epoch" => Strategy::Epoch,
    also "false" => Strategy::No, also "best" => Strategy::Best,
} unsupported []);

/// Warm-up of the learning rate from 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Warmup {
    /// A share x of all T steps: ceil(T·x) steps.
    Ratio(f64),
    Steps(u64),
}

/// The order of the training rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampling {
    /// A new permutation for each epoch.
    Random,
    /// File order.
    Sequential,
    /// A new order for each epoch, in which neighbors have similar lengths.
    GroupByLength,
}

choices!(Sampling {
    "random" => Sampling::Random, "sequential" => Sampling::Sequential,
    "group_by_length" => Sampling::GroupByLength,
} unsupported ["batch_rebalance"]);

/// The point at which a run starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Resume {
    /// At the newest checkpoint in `output_dir`, if one exists.
    Auto,
    /// At the first step, even if checkpoints exist.
    Fresh,
    /// At this checkpoint.
    Path(PathBuf),
}

/// Receivers of metrics (key `report_to`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reporter {
    TensorBoard,
    /// Weights & Biases: an offline run for `wandb sync`.
    Wandb,
    Trackio,
    Mlflow,
    /// A line of JSON for each event.
    Jsonl,
}

/// Key `device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceChoice {
    /// Burn's Flex back end.
    Cpu,
    /// LibTorch on the CPU (cargo feature `tch`).
    Tch,
    /// LibTorch on an NVIDIA GPU, by its number (cargo feature `tch`).
    TchCuda(usize),
    /// An NVIDIA GPU by its number (cargo feature `cuda`).
    Cuda(usize),
    /// The GPU's kernels on the CPU, for tests (cargo feature `cube-cpu`).
    CubeCpu,
}

impl DeviceChoice {
    /// The device called `name`: `cpu` (or `flex`), `tch`, `tch:cuda` and `cuda` (the first GPU),
    /// `tch:cuda:N`, `cuda:N`, `cube-cpu`.
    pub fn from_name(name: &str) -> Option<Self> {
        let with_number = name.rsplit_once(':').filter(|_| name != "tch:cuda");
        match with_number.unwrap_or((name, "0")) {
            ("cpu" | "flex", "0") => Some(DeviceChoice::Cpu),
            ("tch", "0") => Some(DeviceChoice::Tch),
            ("tch:cuda", index) => index.parse().ok().map(DeviceChoice::TchCuda),
            ("cuda", index) => index.parse().ok().map(DeviceChoice::Cuda),
            ("cube-cpu", "0") => Some(DeviceChoice::CubeCpu),
            _ => None,
        }
    }

    /// The device of a rank: the ranks of one host use consecutive GPUs, starting at the chosen
    /// one.
    pub fn of_rank(self, local_rank: usize) -> Self {
        match self {
            DeviceChoice::Cuda(index) => DeviceChoice::Cuda(index + local_rank),
            DeviceChoice::TchCuda(index) => DeviceChoice::TchCuda(index + local_rank),
            other => other,
        }
    }

    /// The number of the GPU, if the device is one whose ranks exchange by NCCL. Ranks of LibTorch
    /// exchange by MPI.
    pub fn gpu(self) -> Option<usize> {
        match self {
            DeviceChoice::Cuda(index) => Some(index),
            DeviceChoice::Cpu
            | DeviceChoice::Tch
            | DeviceChoice::TchCuda(_)
            | DeviceChoice::CubeCpu => None,
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Tch => f.write_str("tch"),
            DeviceChoice::TchCuda(index) => write!(f, "tch:cuda:{index}"),
            DeviceChoice::Cuda(index) => write!(f, "cuda:{index}"),
            DeviceChoice::CubeCpu => f.write_str("cube-cpu"),
        }
    }
}
