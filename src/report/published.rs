//! Published results of other people's runs, for comparison.

use super::record::RunRecord;
use super::run_facts::{Facts, RunFacts};
use super::scores;
use crate::train::event::LogRow;

/// A published run.
struct Published {
    /// The name on the command line.
    key: &'static str,
    /// The name in a report.
    name: &'static str,
    /// The results as CSV.
    table: &'static str,
    max_steps: u64,
    facts: &'static [(&'static str, &'static str)],
    hyperparameters: &'static [(&'static str, &'static str)],
    versions: &'static [(&'static str, &'static str)],
}

const RUNS: [Published; 1] = [Published {
    key: "zephyr-7b-beta",
    name: "Zephyr-7B-β (published)",
    table: include_str!("../../recipes/zephyr-7b-beta/published_results.csv"),
    max_steps: 5811,
    facts: &[
        ("source", "model card of HuggingFaceH4/zephyr-7b-beta"),
        ("model", "HuggingFaceH4/mistral-7b-sft-beta"),
        ("rows a step", "32"),
        (
            "held-out values after the last step",
            "loss 0.7496, rewards/chosen −4.5221, rewards/rejected −8.3184, \
             rewards/accuracies 0.7812, \
             rewards/margins 3.7963",
        ),
        // All accuracies are multiples of 1/64, and all log-probs are from the same set of rows.
        (
            "held-out rewards, log-probs and logits",
            "means over the 64 pairs of the first of 16 ranks",
        ),
        ("mean logits", "over all positions, including prompt and padding"),
    ],
    hyperparameters: &[
        ("learning_rate", "5e-07"),
        ("train_batch_size", "2"),
        ("eval_batch_size", "4"),
        ("seed", "42"),
        ("distributed_type", "multi-GPU"),
        ("num_devices", "16"),
        ("total_train_batch_size", "32"),
        ("total_eval_batch_size", "64"),
        ("optimizer", "Adam with betas=(0.9,0.999) and epsilon=1e-08"),
        ("lr_scheduler_type", "linear"),
        ("lr_scheduler_warmup_ratio", "0.1"),
        ("num_epochs", "3.0"),
    ],
    versions: &[
        ("Transformers", "4.35.0.dev0"),
        ("Pytorch", "2.0.1+cu118"),
        ("Datasets", "2.12.0"),
        ("Tokenizers", "0.14.0"),
    ],
}];

/// The published run with this name.
///
/// # Errors
/// No such run; the message lists the known names.
pub fn find(name: &str) -> Result<RunRecord, String> {
    let Some(published) = RUNS.iter().find(|run| run.key == name) else {
        let known: Vec<&str> = RUNS.iter().map(|run| run.key).collect();
        return Err(format!(
            "no published run is named `{name}`; the known runs are: {}",
            known.join(", ")
        ));
    };
    let facts = |pairs: &[(&str, &str)]| -> Facts {
        pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    let rows = rows(published.table);
    Ok(RunRecord {
        name: published.name.to_owned(),
        is_published: true,
        step: rows.last().map_or(0, |row| row.step),
        max_steps: published.max_steps,
        rows,
        facts: Some(RunFacts {
            stage: "dpo".into(),
            facts: facts(published.facts),
            ..RunFacts::default()
        }),
        hyperparameters: facts(published.hyperparameters),
        versions: facts(published.versions),
        scores: scores::published(published.key),
        ..RunRecord::default()
    })
}

/// The rows of a table whose columns are named as in `trainer_state.json`. Lines that start with
/// `#` name the source. The tables are part of the program and tested.
fn rows(table: &str) -> Vec<LogRow> {
    let mut lines = table.lines().filter(|line| !line.starts_with('#'));
    let names: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let row = |line: &str| {
        let mut row = LogRow { step: 0, epoch: 0.0, values: Vec::new() };
        for (name, cell) in names.iter().zip(line.split(',')) {
            let value: f64 = cell.parse().unwrap_or(f64::NAN);
            match *name {
                "step" => row.step = value as u64,
                "epoch" => row.epoch = value,
                _ => row.values.push(((*name).to_owned(), value)),
            }
        }
        row
    };
    lines.map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Copying mistakes would break these relations.
    #[test]
    fn the_published_table_is_whole() {
        let run = find("zephyr-7b-beta").unwrap();
        assert_eq!(run.rows.len(), 58);
        for (index, row) in run.rows.iter().enumerate() {
            let get = |name: &str| row.get(name).unwrap();
            assert_eq!(row.step, 100 * (index as u64 + 1));
            assert_eq!(row.values.len(), 10);
            assert!(row.values.iter().all(|(_, value)| value.is_finite()));
            assert!((row.epoch - row.step as f64 / 1937.0).abs() < 0.0051);
            let [chosen, rejected] =
                ["chosen", "rejected"].map(|side| get(&format!("eval_rewards/{side}")));
            assert!((chosen - rejected - get("eval_rewards/margins")).abs() < 1.5e-4);
            // A reward is beta = 0.1 times the log-ratio, so the log-prob of the reference is the
            // same in every row.
            let reference =
                |side: &str, reward: f64| get(&format!("eval_logps/{side}")) - 10.0 * reward;
            assert!((reference("chosen", chosen) + 254.235).abs() < 2e-3);
            assert!((reference("rejected", rejected) + 256.9697).abs() < 2e-3);
            // Accuracies are means over whole batches of 64 pairs.
            let pairs = 64.0 * get("eval_rewards/accuracies");
            assert!((pairs - pairs.round()).abs() < 5e-3);
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = find("zephyr").unwrap_err();
        assert!(error.contains("zephyr-7b-beta"), "{error}");
    }
}
