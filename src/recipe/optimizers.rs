//! The optimizer and its arguments, with the names of transformers.

use serde::{Deserialize, Serialize};

use super::choice::choices;
use super::number::{BELOW_1, SHARE};
use super::reader::Reader;
use super::yaml::{Node, Value};

/// The optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optim {
    Adam,
    AdamW,
    RmsProp,
    Adagrad,
    Sgd,
    Lion,
    /// With an external learning rate: `scale_parameter` and `relative_step` are false.
    Adafactor,
}

choices!(Optim {
    "adamw_torch" => Optim::AdamW, "adam" => Optim::Adam, "rmsprop" => Optim::RmsProp,
    "adagrad" => Optim::Adagrad, "sgd" => Optim::Sgd, "lion_32bit" => Optim::Lion,
    "adafactor" => Optim::Adafactor,
    also "adamw" => Optim::AdamW, also "adamw_torch_fused" => Optim::AdamW,
    also "adamw_hf" => Optim::AdamW,
    also "adamw_torch_xla" => Optim::AdamW, also "adamw_torch_npu_fused" => Optim::AdamW,
    also "adamw_apex_fused" => Optim::AdamW, also "paged_adamw_32bit" => Optim::AdamW,
    also "paged_adamw" => Optim::AdamW, also "paged_adamw_8bit" => Optim::AdamW,
    also "adamw_bnb_8bit" => Optim::AdamW, also "adamw_8bit" => Optim::AdamW,
    also "lion" => Optim::Lion, also "lion_8bit" => Optim::Lion,
    also "paged_lion" => Optim::Lion, also "paged_lion_32bit" => Optim::Lion,
    also "paged_lion_8bit" => Optim::Lion,
    also "rmsprop_bnb" => Optim::RmsProp, also "rmsprop_bnb_32bit" => Optim::RmsProp,
    also "rmsprop_bnb_8bit" => Optim::RmsProp,
} unsupported [
    "adamw_anyprecision", "adamw_torch_4bit", "adamw_torch_8bit", "ademamix", "ademamix_8bit",
    "paged_ademamix_32bit", "paged_ademamix_8bit", "galore_adamw",
    "galore_adamw_8bit", "galore_adafactor", "galore_adamw_layerwise",
    "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise", "lomo", "adalomo", "grokadamw",
    "schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd", "apollo_adamw",
    "apollo_adamw_layerwise", "stable_adamw",
]);

impl Optim {
    /// Whether the optimizer keeps a running mean of the gradient, and one of its square, for every
    /// weight. Those of Adafactor are for rows and columns.
    pub fn running_means(self, sgd: &SgdSettings) -> [bool; 2] {
        match self {
            Optim::Adam | Optim::AdamW => [true, true],
            Optim::RmsProp | Optim::Adagrad => [false, true],
            Optim::Sgd => [sgd.momentum != 0.0, false],
            Optim::Lion => [true, false],
            Optim::Adafactor => [false, false],
        }
    }

    /// Its name in prose.
    fn name(self) -> &'static str {
        match self {
            Optim::Adam => "Adam",
            Optim::AdamW => "AdamW",
            Optim::RmsProp => "RMSprop",
            Optim::Adagrad => "Adagrad",
            Optim::Sgd => "SGD",
            Optim::Lion => "Lion",
            Optim::Adafactor => "Adafactor",
        }
    }
}

/// The arguments of SGD, from `optim_args`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct SgdSettings {
    /// The decay μ of the running sum of gradients; 0 keeps none.
    pub momentum: f64,
    /// The share of a gradient that is not added to the running sum.
    pub dampening: f64,
    pub nesterov: bool,
}

/// Reads `optim` and `optim_args`. Names of optimizers that keep their state in 8 bits or in paged
/// memory mean the same optimizer with 32-bit state.
pub(super) fn read(r: &mut Reader) -> (Optim, SgdSettings) {
    // A key of its own in transformers 4.
    let adafactor = match r.take("adafactor") {
        Some(entry) => r.as_flag("adafactor", &entry.value) == Some(true),
        None => false,
    };
    let default = if adafactor { Optim::Adafactor } else { Optim::AdamW };
    let optim = r.choice("optim", default);
    let written = r.report.written.iter().find(|(_, key, _)| key == "optim");
    let word = written.map(|(.., word)| word.to_ascii_lowercase()).unwrap_or_default();
    if word.starts_with("paged") || word.ends_with("8bit") {
        r.note(format!(
            "`optim: {word}` is {} with 32-bit state in ordinary memory here",
            optim.name()
        ));
    }
    let mut sgd = SgdSettings::default();
    if let Some(entry) = r.take("optim_args").filter(|entry| entry.value.value != Value::Null) {
        match optim {
            Optim::Sgd => sgd = sgd_settings(r, &entry.value),
            _ => r.note("`optim_args` has no effect: only `optim: sgd` reads it".to_owned()),
        }
    }
    (optim, sgd)
}

/// `momentum=0.9,dampening=0,nesterov=true`, as in transformers.
fn sgd_settings(r: &mut Reader, node: &Node) -> SgdSettings {
    let mut sgd = SgdSettings::default();
    let Some(text) = r.as_text("optim_args", node) else { return sgd };
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let Some((name, value)) = pair.split_once('=') else {
            r.error(node.at, format!("`optim_args` needs pairs `name=value`, not `{pair}`"));
            continue;
        };
        let text = value.trim().to_owned();
        let value = Node { value: Value::Scalar { text, quoted: false }, at: node.at };
        match name.trim() {
            "momentum" => {
                let momentum = r.as_float("optim_args.momentum", &value, BELOW_1);
                sgd.momentum = momentum.unwrap_or_default();
            }
            "dampening" => {
                let dampening = r.as_float("optim_args.dampening", &value, SHARE);
                sgd.dampening = dampening.unwrap_or_default();
            }
            "nesterov" => {
                let nesterov = r.as_flag("optim_args.nesterov", &value);
                sgd.nesterov = nesterov.unwrap_or_default();
            }
            "weight_decay" => r.note(
                "`weight_decay` of `optim_args` has no effect: as in transformers, the key \
                 `weight_decay` of the recipe counts"
                    .to_owned(),
            ),
            other => {
                r.error(node.at, format!("`optim_args`: `{other}` is not an argument of sgd"));
                r.help("supported: momentum, dampening, nesterov");
            }
        }
    }
    if sgd.nesterov && (sgd.momentum == 0.0 || sgd.dampening != 0.0) {
        r.error(node.at, "`optim_args`: nesterov needs a momentum and no dampening".to_owned());
        r.help("for example optim_args: momentum=0.9,nesterov=true");
    }
    sgd
}
