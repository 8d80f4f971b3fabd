//! The model card: `README.md` of a trained model, in the form of the zephyr-7b-beta card.

use std::io;
use std::path::Path;

use crate::files::replace::replace_file;
use crate::train::event::LogRow;
use crate::train::state::json::float_repr;

use super::results_table::{last_evaluation, training_results};

const COMMENT: &str = "<!-- Favonius wrote this card from the record of the training run. \
Check it, add what the record does not contain, then remove this comment. -->\n";

/// A note for sections that only people can fill; the words are those of the hub's cards.
const MORE_NEEDED: &str = "\n\nMore information needed";

/// A model or a data set. On the hub, its name is its id and becomes a link. A local one has a name
/// without the machine's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub name: String,
    pub on_hub: bool,
}

/// The content of a card.
#[derive(Debug, Clone, PartialEq)]
pub struct CardFacts {
    /// The title, also the name in the model index.
    pub model_name: String,
    /// The initial model; `None` means trained from scratch.
    pub base_model: Option<Source>,
    /// Whether the model is a LoRA adapter on `base_model`.
    pub is_adapter: bool,
    pub datasets: Vec<Source>,
    /// "sft", "dpo", "orpo", "cpo", "tpo" or "kto": a tag, and the sentence that describes the
    /// model.
    pub stage: String,
    /// A license id of the hub ("mit", "apache-2.0").
    pub license: Option<String>,
    /// Tags besides `generated_from_trainer`, `favonius` and the stage.
    pub tags: Vec<String>,
    /// A sentence on architecture and size ("Mistral, 7.2 billion parameters").
    pub architecture: Option<String>,
    /// Rows for training and evaluation, after filtering.
    pub train_rows: Option<u64>,
    pub eval_rows: Option<u64>,
    /// In the order of the card; see [`Hyperparameters::pairs`].
    pub hyperparameters: Vec<(String, String)>,
    pub log_history: Vec<LogRow>,
    /// ("Favonius", "0.1.0"), ("Burn", "0.22.1"), ("Tokenizers", "0.22.2") …
    pub versions: Vec<(String, String)>,
}

/// The warm-up as given in the recipe.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CardWarmup {
    Ratio(f64),
    Steps(u64),
}

/// The length of the training as given in the recipe.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CardLength {
    Epochs(f64),
    Steps(u64),
}

/// The hyperparameters that every card lists.
#[derive(Debug, Clone, PartialEq)]
pub struct Hyperparameters {
    pub learning_rate: f64,
    /// Rows of a micro-batch on one device.
    pub train_batch_size: u64,
    pub eval_batch_size: u64,
    pub seed: u64,
    /// "multi-CPU" or "multi-GPU"; `None` on one device.
    pub distributed_type: Option<String>,
    pub num_devices: u64,
    pub gradient_accumulation_steps: u64,
    /// A phrase; for Adam see [`adam`].
    pub optimizer: String,
    pub lr_scheduler_type: String,
    pub warmup: CardWarmup,
    pub length: CardLength,
    /// For example "bf16"; `None` for float32.
    pub mixed_precision_training: Option<String>,
}

/// The phrase for Adam: `Adam with betas=(0.9,0.999) and epsilon=1e-08`.
pub fn adam(name: &str, beta1: f64, beta2: f64, epsilon: f64) -> String {
    format!(
        "{name} with betas=({},{}) and epsilon={}",
        float_repr(beta1),
        float_repr(beta2),
        float_repr(epsilon)
    )
}

impl Hyperparameters {
    /// Names and values as in transformers' `extract_hyperparameters_from_trainer`: in its order,
    /// leaving out values that are 1 or follow from the lines above.
    pub fn pairs(&self) -> Vec<(String, String)> {
        let train_total =
            self.train_batch_size * self.num_devices * self.gradient_accumulation_steps;
        let eval_total = self.eval_batch_size * self.num_devices;
        let count = |number: u64| Some(number.to_string());
        let unless = |same: bool, number: u64| (!same).then(|| number.to_string());
        let (warmup_ratio, warmup_steps) = match self.warmup {
            CardWarmup::Ratio(ratio) => ((ratio != 0.0).then(|| float_repr(ratio)), None),
            CardWarmup::Steps(steps) => (None, unless(steps == 0, steps)),
        };
        let (epochs, steps) = match self.length {
            CardLength::Epochs(epochs) => (Some(float_repr(epochs)), None),
            CardLength::Steps(steps) => (None, count(steps)),
        };
        let lines = [
            ("learning_rate", Some(float_repr(self.learning_rate))),
            ("train_batch_size", count(self.train_batch_size)),
            ("eval_batch_size", count(self.eval_batch_size)),
            ("seed", count(self.seed)),
            ("distributed_type", self.distributed_type.clone()),
            ("num_devices", unless(self.num_devices == 1, self.num_devices)),
            (
                "gradient_accumulation_steps",
                unless(self.gradient_accumulation_steps == 1, self.gradient_accumulation_steps),
            ),
            ("total_train_batch_size", unless(train_total == self.train_batch_size, train_total)),
            ("total_eval_batch_size", unless(eval_total == self.eval_batch_size, eval_total)),
            ("optimizer", Some(self.optimizer.clone())),
            ("lr_scheduler_type", Some(self.lr_scheduler_type.clone())),
            ("lr_scheduler_warmup_ratio", warmup_ratio),
            ("lr_scheduler_warmup_steps", warmup_steps),
            ("training_steps", steps),
            ("num_epochs", epochs),
            ("mixed_precision_training", self.mixed_precision_training.clone()),
        ];
        lines.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

impl CardFacts {
    /// Writes the card; the file is replaced as a whole.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        replace_file(path, self.to_markdown().as_bytes())
    }

    /// The whole card.
    pub fn to_markdown(&self) -> String {
        let sections = [
            format!("---\n{}---\n\n{COMMENT}", self.metadata()),
            format!("# {}\n\n{}", self.model_name, self.introduction()),
            format!("## Model description\n\n{}\n", self.description()),
            format!(
                "## Intended uses & limitations\n\nThe model answers in the style of its training \
                 data, which also limits its knowledge and the safety of its answers. It was not \
                 assessed for a particular use: evaluate it for yours first.{}\n",
                MORE_NEEDED
            ),
            format!("## Training and evaluation data\n\n{}\n", self.data()),
            "## Training procedure\n".to_owned(),
            format!(
                "### Training hyperparameters\n\nThe following hyperparameters were used during \
                 training:\n{}",
                bullets(&self.hyperparameters, ": ")
            ),
            training_results(&self.log_history)
                .map_or(String::new(), |table| format!("### Training results\n\n{table}\n")),
            format!("### Framework versions\n\n{}", bullets(&self.versions, " ")),
        ];
        let sections: Vec<String> =
            sections.into_iter().filter(|section| !section.is_empty()).collect();
        sections.join("\n")
    }

    fn metadata(&self) -> String {
        let mut yaml = String::new();
        if let Some(license) = &self.license {
            yaml.push_str(&format!("license: {}\n", scalar(license)));
        }
        if let Some(base) = self.base_model.as_ref().filter(|base| base.on_hub) {
            yaml.push_str(&format!("base_model: {}\n", scalar(&base.name)));
        }
        if self.is_adapter {
            yaml.push_str("library_name: peft\npipeline_tag: text-generation\n");
        }
        let mut own_tags: Vec<String> =
            ["generated_from_trainer", "favonius", &self.stage].map(String::from).to_vec();
        own_tags.extend(self.adapter_tags());
        yaml.push_str("tags:\n");
        yaml.extend(own_tags.iter().map(|tag| format!("- {}\n", scalar(tag))));
        let more = self.tags.iter().filter(|tag| !own_tags.contains(tag));
        yaml.extend(more.map(|tag| format!("- {}\n", scalar(tag))));
        let datasets: Vec<&Source> = self.datasets.iter().filter(|set| set.on_hub).collect();
        if !datasets.is_empty() {
            yaml.push_str("datasets:\n");
            yaml.extend(datasets.iter().map(|set| format!("- {}\n", scalar(&set.name))));
        }
        yaml.push_str(&format!(
            "model-index:\n- name: {}\n  results: []\n",
            scalar(&self.model_name)
        ));
        yaml
    }

    /// The tags with which the hub shows an adapter on the page of its base.
    fn adapter_tags(&self) -> Vec<String> {
        if !self.is_adapter {
            return Vec::new();
        }
        let base = self.base_model.as_ref().filter(|base| base.on_hub);
        let of_base = base.map(|base| format!("base_model:adapter:{}", base.name));
        of_base.into_iter().chain(["lora".into(), "transformers".into()]).collect()
    }

    fn introduction(&self) -> String {
        let datasets = match self.datasets.as_slice() {
            [] => "an unknown dataset".to_owned(),
            [one] => format!("the {} dataset", one.name),
            [first @ .., last] => {
                let first: Vec<String> =
                    first.iter().map(|set| format!("the {}", set.name)).collect();
                format!("{} and the {} datasets", first.join(", "), last.name)
            }
        };
        let mut text = match &self.base_model {
            Some(base) => {
                format!("This model is a fine-tuned version of {} on {datasets}.\n", link(base))
            }
            None => format!("This model was trained from scratch on {datasets}.\n"),
        };
        let results = last_evaluation(&self.log_history);
        if !results.is_empty() {
            text.push_str("It achieves the following results on the evaluation set:\n");
            text.push_str(&bullets(&results, ": "));
        }
        text
    }

    fn description(&self) -> String {
        let method = match self.stage.as_str() {
            "sft" => "supervised fine-tuning (SFT)",
            "dpo" => "[direct preference optimization](https://arxiv.org/abs/2305.18290) (DPO)",
            "orpo" => {
                "[odds ratio preference optimization](https://arxiv.org/abs/2403.07691) (ORPO)"
            }
            "cpo" => {
                "[contrastive preference optimization](https://arxiv.org/abs/2401.08417) (CPO)"
            }
            "tpo" => "[triple preference optimization](https://arxiv.org/abs/2405.16681) (TPO)",
            "kto" => "[Kahneman-Tversky optimization](https://arxiv.org/abs/2402.01306) (KTO)",
            other => other,
        };
        let architecture =
            self.architecture.as_ref().map_or(String::new(), |text| format!("{text}. "));
        format!("{architecture}Trained by {method} with Favonius.{}", MORE_NEEDED)
    }

    fn data(&self) -> String {
        if self.datasets.is_empty() {
            return MORE_NEEDED.trim_start().to_owned();
        }
        let names: Vec<String> = self
            .datasets
            .iter()
            .map(|set| match set.on_hub {
                true => format!("- [{0}](https://huggingface.co/datasets/{0})", set.name),
                false => format!("- {}", set.name),
            })
            .collect();
        let count = |rows: Option<u64>, what| rows.map(|rows| format!("{rows} rows for {what}"));
        let counts: Vec<String> =
            [count(self.train_rows, "training"), count(self.eval_rows, "evaluation")]
                .into_iter()
                .flatten()
                .collect();
        let counts =
            if counts.is_empty() { String::new() } else { format!("\n\n{}.", counts.join(", ")) };
        format!("{}{counts}", names.join("\n"))
    }
}

fn link(source: &Source) -> String {
    match source.on_hub {
        true => format!("[{0}](https://huggingface.co/{0})", source.name),
        false => source.name.clone(),
    }
}

fn bullets(pairs: &[(String, String)], between: &str) -> String {
    pairs.iter().map(|(name, value)| format!("- {name}{between}{value}\n")).collect()
}

/// The text as a YAML scalar: plain if no parser can take it for another type, else quoted.
pub(super) fn scalar(text: &str) -> String {
    let word = |letter: char| letter.is_ascii_alphanumeric() || "-_./".contains(letter);
    let is_plain = text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(word)
        && !["true", "false", "yes", "no", "on", "off", "null", "y", "n"]
            .contains(&text.to_lowercase().as_str());
    if is_plain { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(name: &str) -> Source {
        Source { name: name.to_owned(), on_hub: true }
    }

    fn zephyr() -> Hyperparameters {
        Hyperparameters {
            learning_rate: 5e-7,
            train_batch_size: 2,
            eval_batch_size: 4,
            seed: 42,
            distributed_type: Some("multi-GPU".into()),
            num_devices: 16,
            gradient_accumulation_steps: 1,
            optimizer: adam("Adam", 0.9, 0.999, 1e-8),
            lr_scheduler_type: "linear".into(),
            warmup: CardWarmup::Ratio(0.1),
            length: CardLength::Epochs(3.0),
            mixed_precision_training: None,
        }
    }

    fn facts() -> CardFacts {
        let row = |step, values: &[(&str, f64)]| LogRow {
            step,
            epoch: 0.5,
            values: values.iter().map(|&(name, value)| (name.to_owned(), value)).collect(),
        };
        CardFacts {
            model_name: "zephyr-7b-dpo".into(),
            base_model: Some(hub("mistralai/Mistral-7B-v0.1")),
            is_adapter: false,
            datasets: vec![hub("HuggingFaceH4/ultrafeedback_binarized")],
            stage: "dpo".into(),
            license: Some("mit".into()),
            tags: vec!["dpo".into(), "100% mine".into()],
            architecture: Some("Mistral, 7.2 billion parameters".into()),
            train_rows: Some(61966),
            eval_rows: Some(2000),
            hyperparameters: zephyr().pairs(),
            log_history: vec![
                row(100, &[("loss", 0.62)]),
                row(
                    100,
                    &[
                        ("eval_loss", 0.612_345),
                        ("eval_rewards/chosen", -4.522_11),
                        ("eval_runtime", 5.0),
                    ],
                ),
            ],
            versions: vec![("Favonius".into(), "0.1.0".into()), ("Burn".into(), "0.22.1".into())],
        }
    }

    #[test]
    fn the_hyperparameters_of_zephyr() {
        let lines: Vec<String> =
            zephyr().pairs().iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let expected = [
            "learning_rate: 5e-07",
            "train_batch_size: 2",
            "eval_batch_size: 4",
            "seed: 42",
            "distributed_type: multi-GPU",
            "num_devices: 16",
            "total_train_batch_size: 32",
            "total_eval_batch_size: 64",
            "optimizer: Adam with betas=(0.9,0.999) and epsilon=1e-08",
            "lr_scheduler_type: linear",
            "lr_scheduler_warmup_ratio: 0.1",
            "num_epochs: 3.0",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn steps_and_accumulation_are_listed_where_they_are() {
        let run = Hyperparameters {
            num_devices: 1,
            distributed_type: None,
            gradient_accumulation_steps: 4,
            warmup: CardWarmup::Steps(10),
            length: CardLength::Steps(200),
            ..zephyr()
        };
        let pairs = run.pairs();
        let get =
            |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        assert_eq!(get("gradient_accumulation_steps"), Some("4"));
        assert_eq!(get("total_train_batch_size"), Some("8"));
        assert_eq!(get("lr_scheduler_warmup_steps"), Some("10"));
        assert_eq!(get("training_steps"), Some("200"));
        assert_eq!(
            [get("num_devices"), get("total_eval_batch_size"), get("num_epochs")],
            [None; 3]
        );
    }

    #[test]
    fn the_card_has_the_form_of_zephyrs() {
        let card = facts().to_markdown();
        let start = "---\nlicense: mit\nbase_model: mistralai/Mistral-7B-v0.1\ntags:\n- generated_from_trainer\n\
                     - favonius\n- dpo\n- \"100% mine\"\ndatasets:\n- HuggingFaceH4/ultrafeedback_binarized\n\
                     model-index:\n- name: zephyr-7b-dpo\n  results: []\n---\n\n<!-- ";
        assert!(card.starts_with(start), "{card}");
        let parts = [
            "-->\n\n# zephyr-7b-dpo\n\nThis model is a fine-tuned version of \
             [mistralai/Mistral-7B-v0.1](https://huggingface.co/mistralai/Mistral-7B-v0.1) on the \
             HuggingFaceH4/ultrafeedback_binarized dataset.\nIt achieves the following results on the evaluation set:\n\
             - Loss: 0.6123\n- Rewards/chosen: -4.5221\n\n## Model description\n\n",
            "\n\n## Intended uses & limitations\n\n",
            "\n\n## Training and evaluation data\n\n- [Hugging",
            "61966 rows for training, 2000 rows for evaluation.\n\n## Training procedure\n\n\
             ### Training hyperparameters\n\nThe following hyperparameters were used during training:\n\
             - learning_rate: 5e-07\n",
            "- num_epochs: 3.0\n\n### Training results\n\n| Training Loss | Epoch | Step | Validation Loss | ",
            "| 0.62          | 0.5   | 100  | 0.6123          | -4.5221        |\n\n\n\
             ### Framework versions\n\n- Favonius 0.1.0\n- Burn 0.22.1\n",
        ];
        let mut rest = card.as_str();
        for part in parts {
            let at = rest.find(part).unwrap_or_else(|| panic!("no\n{part}\nin\n{rest}"));
            rest = &rest[at + part.len()..];
        }
        assert_eq!(rest, "");
    }

    #[test]
    fn local_sources_have_no_link_and_no_metadata() {
        let local = |name: &str| Source { name: name.into(), on_hub: false };
        let card = CardFacts {
            base_model: Some(local("stories260k")),
            datasets: vec![local("chats"), hub("a/b"), local("more")],
            log_history: Vec::new(),
            ..facts()
        }
        .to_markdown();
        assert!(!card.contains("base_model"), "{card}");
        assert!(card.contains("datasets:\n- a/b\nmodel-index"), "{card}");
        assert!(
            card.contains(
                "version of stories260k on the chats, the a/b and the more datasets.\n\n## Model"
            ),
            "{card}"
        );
        assert!(!card.contains("### Training results"), "{card}");
    }

    #[test]
    fn yaml_scalars_stay_text() {
        let cases = [
            ("mit", "mit"),
            ("no", "\"no\""),
            ("1e5", "\"1e5\""),
            ("a: b", "\"a: b\""),
            ("", "\"\""),
        ];
        for (text, yaml) in cases {
            assert_eq!(scalar(text), yaml);
        }
    }
}
