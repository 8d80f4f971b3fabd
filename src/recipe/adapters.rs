//! The keys of LoRA. They are those of TRL's `ModelConfig`, with its defaults.

use serde::Serialize;

use super::number::{AT_LEAST_1, BELOW_1, POSITIVE};
use super::outside::refuse_unless_neutral;
use super::reader::Reader;
use super::stage::Stage;

/// A new LoRA adapter (arXiv 2106.09685), if `use_peft` is true.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoraSettings {
    /// The rank.
    pub lora_r: usize,
    /// α: the adapter's output is multiplied by α / r.
    pub lora_alpha: f64,
    /// The probability with which an element of the adapter's input is dropped in training.
    pub lora_dropout: f64,
    /// Names of linear layers, or one word: `all-linear`, a name or a regular expression. Empty
    /// means q_proj and v_proj.
    pub lora_target_modules: Vec<String>,
    /// Modules that are trained whole.
    pub lora_modules_to_save: Vec<String>,
    /// Multiply by α / √r instead.
    pub use_rslora: bool,
}

/// Keys that nothing reads if `use_peft` is false.
const KEYS: [&str; 8] = [
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "lora_target_modules",
    "lora_target_parameters",
    "lora_modules_to_save",
    "use_rslora",
    "use_dora",
];

/// Reads the keys of LoRA; `None` if `use_peft` is false.
pub(super) fn read(r: &mut Reader) -> Option<LoraSettings> {
    let on = r.flag("use_peft", false);
    task_type(r, on);
    if !on {
        for key in KEYS {
            if r.take(key).is_some() {
                r.note(format!("`{key}` has no effect: it is for LoRA, and `use_peft` is false"));
            }
        }
        return None;
    }
    refuse(r, "use_dora", &["false"], "DoRA is not implemented: remove the key to train LoRA");
    refuse(r, "lora_target_parameters", &[], "write `lora_target_modules`: linear layers");
    Some(LoraSettings {
        lora_r: r.count("lora_r", 16, AT_LEAST_1),
        lora_alpha: r.float("lora_alpha", 32.0, POSITIVE),
        lora_dropout: r.float("lora_dropout", 0.05, BELOW_1),
        lora_target_modules: names(r, "lora_target_modules", "q_proj, v_proj"),
        lora_modules_to_save: names(r, "lora_modules_to_save", "null"),
        use_rslora: r.flag("use_rslora", false),
    })
}

/// Whether adapters keep their dropout. TRL's preference trainers turn all dropout off unless
/// `disable_dropout` is false.
pub(super) fn keeps_dropout(r: &mut Reader, stage: Stage) -> bool {
    stage == Stage::Sft || !r.flag("disable_dropout", true)
}

fn names(r: &mut Reader, key: &'static str, default: &str) -> Vec<String> {
    let texts = r.texts(key, default).unwrap_or_default();
    texts.into_iter().map(|(text, _)| text).collect()
}

fn refuse(r: &mut Reader, key: &'static str, neutral: &[&str], help: &str) {
    if let Some(entry) = r.take(key) {
        refuse_unless_neutral(r, key, &entry, neutral, help);
    }
}

/// The only task is causal language modeling.
fn task_type(r: &mut Reader, is_read: bool) {
    const KEY: &str = "lora_task_type";
    let Some(entry) = r.take(KEY) else { return };
    match is_read {
        true => refuse_unless_neutral(r, KEY, &entry, &["CAUSAL_LM"], "supported: CAUSAL_LM"),
        false => r.note(format!("`{KEY}` has no effect: it is for LoRA, and `use_peft` is false")),
    }
}
