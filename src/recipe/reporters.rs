//! The key `report_to`: which loggers receive the metrics of a run.

use super::reader::Reader;
use super::settings::Reporter;

/// The words of `report_to`, in the order of `all`.
const REPORTERS: [(&str, Reporter); 5] = [
    ("tensorboard", Reporter::TensorBoard),
    ("wandb", Reporter::Wandb),
    ("trackio", Reporter::Trackio),
    ("mlflow", Reporter::Mlflow),
    ("jsonl", Reporter::Jsonl),
];

/// Programs that transformers reports to but this program does not.
const OTHERS: [&str; 12] = [
    "comet_ml",
    "clearml",
    "azure_ml",
    "codecarbon",
    "dagshub",
    "dvclive",
    "flyte",
    "neptune",
    "swanlab",
    "kubeflow",
    "aim",
    "sacred",
];

/// Reads `report_to`: a word or a list of words. As in transformers, `none` and `all` stand alone.
pub(super) fn read(r: &mut Reader) -> Vec<Reporter> {
    let words = r.texts("report_to", "none").unwrap_or_default();
    if let [(word, _)] = words.as_slice() {
        match word.as_str() {
            "none" => return Vec::new(),
            "all" => return REPORTERS.map(|(_, reporter)| reporter).to_vec(),
            _ => {}
        }
    }
    let mut reporters = Vec::new();
    for (word, at) in words {
        let known = REPORTERS.iter().find(|(name, _)| *name == word);
        match (known, word.as_str()) {
            (Some((_, reporter)), _) if reporters.contains(reporter) => {}
            (Some((_, reporter)), _) => reporters.push(*reporter),
            (None, "none" | "all") => {
                r.error(at, format!("`report_to: {word}` cannot be combined with other loggers"));
                r.help(format!("write `{word}` alone, or remove it from the list"));
            }
            (None, other) if OTHERS.contains(&other) => {
                let names = REPORTERS.map(|(name, _)| name).join(", ");
                r.note(format!(
                    "`report_to: {other}`: nothing is sent there; this program writes for {names}"
                ));
            }
            (None, other) => {
                let names = REPORTERS.map(|(name, _)| name).join(", ");
                r.error(
                    at,
                    format!("`report_to` must be one of none, all, {names}, not `{other}`"),
                );
            }
        }
    }
    reporters
}
