//! The training results of a model card from `log_history`, as in transformers' `parse_log_history`
//! and `make_markdown_table`, but with a fixed order of columns.

use crate::train::event::LogRow;
use crate::train::state::json::float_repr;

const VALIDATION_LOSS: &str = "eval_loss";
/// The columns after the validation loss: first those of the zephyr-7b-beta card in its order, then
/// newer metrics. The order is fixed because rows that were read from a checkpoint are sorted by
/// name.
const ORDER: [&str; 11] = [
    "eval_rewards/chosen",
    "eval_rewards/rejected",
    "eval_rewards/accuracies",
    "eval_rewards/margins",
    "eval_logps/rejected",
    "eval_logps/chosen",
    "eval_logits/rejected",
    "eval_logits/chosen",
    "eval_entropy",
    "eval_num_tokens",
    "eval_mean_token_accuracy",
];
const NOT_METRICS: [&str; 4] =
    ["eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "total_flos"];

/// A metric of the last evaluation: its name on the card ("Loss", "Rewards/chosen") and its value.
pub type Metric = (String, String);

/// The list under "It achieves the following results on the evaluation set"; empty without an
/// evaluation.
pub fn last_evaluation(history: &[LogRow]) -> Vec<Metric> {
    let Some(row) = history.iter().rev().find(|row| row.get(VALIDATION_LOSS).is_some()) else {
        return Vec::new();
    };
    let columns = metric_columns([row]);
    let names = std::iter::once(VALIDATION_LOSS).chain(columns.iter().map(String::as_str));
    names.filter_map(|name| Some((title(name), rounded(row.get(name)?)))).collect()
}

/// The Markdown table of all evaluations during training, each with the last training loss before
/// it; `None` if no evaluation ran.
pub fn training_results(history: &[LogRow]) -> Option<String> {
    // Evaluations after the final row of the training are not part of it.
    let end =
        history.iter().rposition(|row| row.get("train_runtime").is_some()).unwrap_or(history.len());
    let columns =
        metric_columns(history[..end].iter().filter(|row| row.get(VALIDATION_LOSS).is_some()));
    let mut header =
        ["Training Loss", "Epoch", "Step", "Validation Loss"].map(str::to_owned).to_vec();
    header.extend(columns.iter().map(|name| title(name)));
    let mut lines = vec![header];
    let mut training_loss = "No log".to_owned();
    for row in &history[..end] {
        if let Some(loss) = row.get("loss") {
            training_loss = rounded(loss);
        }
        let Some(validation_loss) = row.get(VALIDATION_LOSS) else { continue };
        let mut line = vec![
            training_loss.clone(),
            rounded(row.epoch),
            row.step.to_string(),
            rounded(validation_loss),
        ];
        line.extend(
            columns.iter().map(|name| row.get(name).map_or_else(|| "-".to_owned(), rounded)),
        );
        lines.push(line);
    }
    (lines.len() > 1).then(|| markdown(&lines))
}

/// All metrics of the rows except the loss: first the known ones in their order, then the others by
/// name.
fn metric_columns<'a>(rows: impl IntoIterator<Item = &'a LogRow>) -> Vec<String> {
    let names = rows.into_iter().flat_map(|row| &row.values).map(|(name, _)| name.as_str());
    let mut columns: Vec<&str> =
        names.filter(|name| *name != VALIDATION_LOSS && !NOT_METRICS.contains(name)).collect();
    let rank = |name: &str| ORDER.iter().position(|known| *known == name).unwrap_or(ORDER.len());
    columns.sort_unstable_by_key(|name| (rank(name), *name));
    columns.dedup();
    columns.into_iter().map(str::to_owned).collect()
}

/// `eval_mean_token_accuracy` → `Mean Token Accuracy`, `eval_rewards/chosen` → `Rewards/chosen`.
fn title(name: &str) -> String {
    let name = name.strip_prefix("eval_").unwrap_or(name);
    name.split('_').map(capitalized).collect::<Vec<_>>().join(" ")
}

fn capitalized(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

/// Rounds to four decimals if the shortest form has more.
fn rounded(number: f64) -> String {
    let shortest = float_repr(number);
    match shortest.split_once('.') {
        Some((_, decimals)) if decimals.len() > 4 => format!("{number:.4}"),
        _ => shortest,
    }
}

fn markdown(lines: &[Vec<String>]) -> String {
    let width =
        |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let mut table = String::new();
    for (index, line) in lines.iter().enumerate() {
        for (cell, width) in line.iter().zip(&widths) {
            table.push_str(&format!("| {cell:<width$} "));
        }
        table.push_str("|\n");
        if index == 0 {
            table.extend(widths.iter().map(|width| format!("|:{}:", "-".repeat(*width))));
            table.push_str("|\n");
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: u64, values: &[(&str, f64)]) -> LogRow {
        let values = values.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        LogRow { step, epoch: step as f64 / 4.0, values }
    }

    fn history() -> Vec<LogRow> {
        vec![
            row(1, &[("eval_loss", 0.7), ("eval_rewards/margins", 0.0)]),
            row(2, &[("loss", std::f64::consts::LN_2)]),
            row(
                2,
                &[
                    ("eval_runtime", 3.0),
                    ("eval_rewards/margins", 0.037_312_5),
                    ("eval_loss", 0.674_664_97),
                ],
            ),
            row(4, &[("train_runtime", 9.0), ("total_flos", 0.0), ("train_loss", 0.68)]),
            row(
                4,
                &[
                    ("eval_loss", 0.5),
                    ("eval_rewards/margins", 1.5e-7),
                    ("eval_rewards/chosen", -4.0),
                ],
            ),
        ]
    }

    #[test]
    fn the_table_is_that_of_transformers() {
        let expected = "\
| Training Loss | Epoch | Step | Validation Loss | Rewards/margins |
|:-------------:|:-----:|:----:|:---------------:|:---------------:|
| No log        | 0.25  | 1    | 0.7             | 0.0             |
| 0.6931        | 0.5   | 2    | 0.6747          | 0.0373          |
";
        assert_eq!(training_results(&history()).unwrap(), expected);
        assert_eq!(training_results(&[row(1, &[("loss", 1.0)])]), None);
        assert_eq!(training_results(&[]), None);
    }

    #[test]
    fn the_bullets_are_the_last_evaluation() {
        let pairs = last_evaluation(&history());
        let pairs: Vec<_> =
            pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(
            pairs,
            [("Loss", "0.5"), ("Rewards/chosen", "-4.0"), ("Rewards/margins", "0.0000")]
        );
        assert!(last_evaluation(&[]).is_empty());
    }

    #[test]
    fn columns_do_not_depend_on_the_order_of_values() {
        let mut sorted = history();
        sorted.iter_mut().for_each(|row| row.values.sort_by(|a, b| a.0.cmp(&b.0)));
        assert_eq!(training_results(&sorted), training_results(&history()));
        assert_eq!(title("eval_mean_token_accuracy"), "Mean Token Accuracy");
    }
}
