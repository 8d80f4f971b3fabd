//! Sizes of a few models and data sets of the hub, built into the program.
//!
//! With them a recipe can be planned without a download.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::error::PlanError;
use crate::model::config::ModelConfig;
use crate::recipe::{DatasetSpec, Preprocessing};

const FACTS: &str = include_str!("hub_facts.json");

#[derive(Deserialize)]
struct Facts {
    /// `config.json` by the id of the model.
    models: BTreeMap<String, Value>,
    /// Fine-tuned models, and the model in `models` whose shape they have.
    same_shape: BTreeMap<String, String>,
    /// Facts by the id of the data set and the name of the split.
    datasets: BTreeMap<String, BTreeMap<String, SplitFacts>>,
}

/// The size of a split.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
struct SplitFacts {
    /// Rows today.
    now: usize,
    /// Rows in October 2023, when Zephyr-7B-β was trained.
    handbook_v1: usize,
    /// Tokens of a chat, or of a prompt with one response, on average.
    tokens: Option<f64>,
}

/// The number of rows of a split, and its source.
#[derive(Debug, Clone, PartialEq)]
pub struct RowCount {
    pub rows: usize,
    /// Tokens of a chat, or of a prompt with one response, on average.
    pub tokens: Option<f64>,
    /// A line for the user: data set, split, date and number.
    pub source: String,
}

fn facts() -> Facts {
    serde_json::from_str(FACTS).expect("the file is part of the program, and a test reads it")
}

/// The configuration of a model of the hub; `None` if the program has no facts about it.
///
/// # Errors
/// [`PlanError::BuiltInConfig`].
pub fn model(name: &str) -> Result<Option<ModelConfig>, PlanError> {
    let facts = facts();
    let name = facts.same_shape.get(name).map_or(name, String::as_str);
    let Some(config) = facts.models.get(name) else { return Ok(None) };
    let config = ModelConfig::from_json(config.clone(), Path::new(name));
    config.map(Some).map_err(PlanError::BuiltInConfig)
}

/// Rows of a data set of the hub; `None` if the program has no facts about it. With the handbook's
/// first tokenization they are the rows of October 2023.
pub fn rows(spec: &DatasetSpec, preprocessing: Preprocessing) -> Option<RowCount> {
    let split = *facts().datasets.get(&spec.id)?.get(&spec.split)?;
    let (rows, when) = match preprocessing {
        Preprocessing::HandbookV1 => (split.handbook_v1, "as it was in October 2023"),
        Preprocessing::Trl | Preprocessing::TrlText => (split.now, "as it is now"),
    };
    let source = format!("{} {} {when}: {rows}", spec.id, spec.split);
    Some(RowCount { rows, tokens: split.tokens, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_facts_can_be_read() {
        let config = model("HuggingFaceH4/mistral-7b-sft-beta").unwrap().unwrap();
        assert_eq!(config.parameters(), 7_241_732_096);
        for (name, parameters) in [
            ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
            ("HuggingFaceTB/SmolLM2-1.7B", 1_711_376_384),
            ("HuggingFaceTB/SmolLM3-3B-checkpoints", 3_075_098_624),
            ("google/gemma-7b", 8_537_680_896),
            ("mistralai/Mixtral-8x7B-Instruct-v0.1", 46_702_792_704),
            ("HuggingFaceH4/zephyr-orpo-141b-A35b-v0.1", 140_620_634_112),
        ] {
            assert_eq!(model(name).unwrap().unwrap().parameters(), parameters, "{name}");
        }
        let names = facts().same_shape;
        assert!(names.values().all(|name| model(name).unwrap().is_some()));
        assert!(model("nobody/knows").unwrap().is_none());
        let spec = DatasetSpec {
            id: "HuggingFaceH4/ultrafeedback_binarized".into(),
            config: None,
            revision: None,
            split: "train_prefs".into(),
            data_dir: None,
            data_files: Vec::new(),
            columns: None,
            fraction: 1.0,
        };
        assert_eq!(rows(&spec, Preprocessing::HandbookV1).unwrap().rows, 61_966);
        assert_eq!(rows(&spec, Preprocessing::Trl).unwrap().rows, 61_135);
    }
}
