//! Keys of transformers, TRL and the handbook that have no effect in this program.
//!
//! A key that cannot change results is accepted with a note. A key that would change results is
//! accepted at the value that changes nothing; any other value is an error.

use super::number::number;
use super::reader::Reader;
use super::stage::Stage;
use super::yaml::{Entry, Value};

/// For every stage: the keys (separated by spaces), and why they have no effect.
const NO_MEANING: [(&str, &str); 24] = [
    (
        "push_to_hub_revision",
        "`push_to_hub` decides about the upload, `hub_revision` about its branch",
    ),
    (
        "attn_implementation use_flash_attention_2",
        "attention has only one implementation, without padding",
    ),
    ("use_liger_kernel liger_kernel_config", "the full logits are never stored"),
    ("trust_remote_code model_code_revision", "no code is loaded with a model"),
    ("base_model_revision", "an adapter names the revision of its base"),
    (
        "gradient_checkpointing_kwargs activation_checkpointing_kwargs",
        "layers are always recomputed whole",
    ),
    ("activation_offloading torch_empty_cache_steps", "activations are freed layer by layer"),
    ("tf32", "precision is set by `bf16` and `dtype`"),
    ("fp16_opt_level fp16_backend half_precision_backend", "float16 training is not supported"),
    (
        "torch_compile torch_compile_backend torch_compile_mode torchdynamo jit_mode_eval use_ipex \
         use_cache past_index",
        "PyTorch is not used",
    ),
    (
        "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers \
         dataloader_prefetch_factor \
         dataloader_multiprocessing_context dataloader_in_order dispatch_batches \
         remove_unused_columns label_names \
         length_column_name group_by_length_column dataset_batch_size",
        "rows are tokenized once, before training",
    ),
    (
        "padding_free pad_to_multiple_of pad_token padding_value label_pad_token_id",
        "nothing is padded",
    ),
    (
        "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph \
         ddp_backend ddp_timeout \
         local_rank fsdp fsdp_config fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap \
         deepspeed accelerator_config \
         parallelism_config ignore_bias_buffers tpu_num_cores tpu_metrics_debug mp_parameters \
         ray_scope xpu_backend",
        "ranks are started by mpirun or srun",
    ),
    ("use_cpu no_cuda use_mps_device", "`device` chooses the device"),
    (
        "log_level log_level_replica log_on_each_node logging_nan_inf_filter debug \
         skip_memory_metrics",
        "this program has its own logging",
    ),
    (
        "include_num_input_tokens_seen include_tokens_per_second include_inputs_for_metrics \
         include_for_metrics \
         batch_eval_metrics eval_do_concat_batches eval_use_gather_object eval_accumulation_steps",
        "the set of metrics is fixed",
    ),
    (
        "trackio_space_id trackio_bucket_id trackio_static_space_id",
        "`report_to: trackio` writes the local store; `trackio sync` sends it to a Space",
    ),
    ("hub_always_push", "the model is uploaded once, at the end"),
    ("save_safetensors", "weights are always safetensors"),
    (
        "save_on_each_node enable_jit_checkpoint restore_callback_states_from_checkpoint",
        "this program has its own checkpoint format",
    ),
    ("prediction_loss_only", "TRL's trainers log their metrics with it too"),
    ("full_determinism", "every run is deterministic"),
    ("auto_find_batch_size", "nothing is padded, so memory only depends on the number of tokens"),
    ("do_predict", "prediction is not supported"),
];

/// Like [`NO_MEANING`], for SFT only.
const NO_MEANING_SFT: [(&str, &str); 1] =
    [("num_of_sequences chars_per_token", "packing knows the exact lengths")];

/// Like [`NO_MEANING`], for the preference stages.
const NO_MEANING_PREFERENCES: [(&str, &str); 5] = [
    ("label_smoothing_factor", "as in TRL, only SFT reads it; DPO and CPO have `label_smoothing`"),
    ("precompute_ref_batch_size", "the reference pass batches by tokens"),
    (
        "use_logits_to_keep use_num_logits_to_keep base_model_attribute_name",
        "logits are only computed at response positions",
    ),
    ("generate_during_eval", "evaluation generates nothing"),
    (
        "force_use_ref_model model_adapter_name ref_adapter_name tools",
        "a model has one adapter at most, and tools are not supported",
    ),
];

/// For every stage: a key, the values that change nothing, and the alternative.
const NEUTRAL: [(&str, &[&str], &str); 12] = [
    ("fp16", &["false"], "supported: `bf16: true`, or neither for float32"),
    ("bf16_full_eval", &["false"], "evaluation computes as training does"),
    ("fp16_full_eval", &["false"], "evaluation computes as training does"),
    ("optim_target_modules", &[], "all weights are trained by one optimizer"),
    ("average_tokens_across_devices", &["true"], "supported: true, all ranks share one divisor"),
    ("split_batches", &["false"], "supported: false, batch sizes are per rank"),
    ("ignore_data_skip", &["false"], "supported: false, a resumed run continues with the next row"),
    ("per_gpu_train_batch_size", &[], "write `per_device_train_batch_size`"),
    ("per_gpu_eval_batch_size", &[], "write `per_device_eval_batch_size`"),
    (
        "model_init_kwargs",
        &[],
        "write its entries as keys of the recipe: `dtype`, `model_revision`",
    ),
    (
        "truncation_side",
        &["right"],
        "supported: right; DPO has `truncation_mode` and `max_prompt_length`",
    ),
    ("push_to_hub_organization", &[], "write `hub_model_id: organization/name`"),
];

/// Like [`NEUTRAL`], for SFT only.
const NEUTRAL_SFT: [(&str, &[&str], &str); 1] =
    [("truncation_mode", &["keep_start"], "supported: keep_start")];

/// Like [`NEUTRAL`], for the preference stages.
const NEUTRAL_PREFERENCES: [(&str, &[&str], &str); 2] = [
    ("is_encoder_decoder", &["false"], "supported: false, models are decoders"),
    (
        "match_underlying_distribution",
        &["false"],
        "supported: false; BCO weighs its rows by `desirable_weight` and `undesirable_weight`",
    ),
];

/// Reads all keys of these tables.
pub(super) fn read(r: &mut Reader, stage: Stage) {
    let (notes, neutral): (&[_], &[_]) = match stage {
        Stage::Sft => (&NO_MEANING_SFT, &NEUTRAL_SFT),
        _ => (&NO_MEANING_PREFERENCES, &NEUTRAL_PREFERENCES),
    };
    for (keys, why) in NO_MEANING.iter().chain(notes) {
        for key in keys.split_whitespace() {
            if r.take(key).is_some() {
                r.note(format!("`{key}` has no effect: {why}"));
            }
        }
    }
    for (key, values, help) in NEUTRAL.iter().chain(neutral) {
        if let Some(entry) = r.take(key) {
            refuse_unless_neutral(r, key, &entry, values, help);
        }
    }
    if stage == Stage::Sft {
        dataset_kwargs(r);
    }
}

pub(super) fn refuse_unless_neutral(
    r: &mut Reader,
    key: &str,
    entry: &Entry,
    values: &[&str],
    help: &str,
) {
    let is_neutral = match &entry.value.value {
        Value::Null => true,
        Value::Scalar { text, .. } => values.iter().any(|value| same(text, value)),
        Value::List(items) => match items.as_slice() {
            [] => true,
            [only] => only.text().is_some_and(|text| values.iter().any(|value| same(text, value))),
            _ => false,
        },
        Value::Map(entries) => entries.is_empty(),
    };
    if !is_neutral {
        let shown = match &entry.value.value {
            Value::Scalar { text, .. } => format!("`{key}: {text}`"),
            _ => format!("`{key}`"),
        };
        r.error(entry.value.at, format!("{shown} is not supported"));
        r.help(help);
    }
}

/// Whether two spellings mean the same value: as numbers, as booleans, or ignoring case.
fn same(text: &str, value: &str) -> bool {
    let truth = |text: &str| match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Some(true),
        "false" | "no" | "off" => Some(false),
        _ => None,
    };
    text == value
        || (truth(text).is_some() && truth(text) == truth(value))
        || (number(text).is_some() && number(text) == number(value))
}

/// The handbook's SFT recipes disable, key by key, features that are always off here.
fn dataset_kwargs(r: &mut Reader) {
    let Some(entry) = r.take("dataset_kwargs") else {
        return;
    };
    r.within("dataset_kwargs", entry.value, |r| {
        for key in ["add_special_tokens", "append_concat_token", "skip_prepare_dataset"] {
            if let Some(entry) = r.take(key) {
                let full = r.full(key);
                refuse_unless_neutral(
                    r,
                    &full,
                    &entry,
                    &["false"],
                    "supported: false; the chat template writes the special tokens",
                );
            }
        }
    });
}
