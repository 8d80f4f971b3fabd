//! Results of runs that others have published, to compare a run of one's own with.

use super::record::RunRecord;
use crate::train::event::LogRow;

/// Name on the command line, name in a report, training results as CSV.
const TABLES: [(&str, &str, &str); 1] = [(
    "zephyr-7b-beta",
    "Zephyr-7B-β (published)",
    include_str!("../../recipes/zephyr-7b-beta/published_results.csv"),
)];

/// The published run of that name.
///
/// # Errors
/// There is none; the message names those that there are.
pub fn find(name: &str) -> Result<RunRecord, String> {
    let Some((_, title, table)) = TABLES.iter().find(|table| table.0 == name) else {
        let known: Vec<&str> = TABLES.iter().map(|table| table.0).collect();
        return Err(format!("no published run `{name}` is known; there is {}", known.join(", ")));
    };
    let rows = rows(table);
    Ok(RunRecord {
        name: (*title).to_owned(),
        is_published: true,
        step: rows.last().map_or(0, |row| row.step),
        max_steps: 5811,
        rows,
        ..RunRecord::default()
    })
}

/// Rows of a table whose columns are named as in `trainer_state.json`; lines that begin with `#` tell its source. The table
/// is part of the program and covered by its tests.
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

    /// The table is consistent in itself: what was copied wrong would show.
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
            // A reward is beta = 0.1 times the log-ratio, so the reference's log-probs are the same in every row.
            let reference = |side: &str, reward: f64| get(&format!("eval_logps/{side}")) - 10.0 * reward;
            assert!((reference("chosen", chosen) + 254.235).abs() < 2e-3);
            assert!((reference("rejected", rejected) + 256.9697).abs() < 2e-3);
            // Accuracies are means over whole batches of 64 pairs.
            let pairs = 64.0 * get("eval_rewards/accuracies");
            assert!((pairs - pairs.round()).abs() < 5e-3);
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known() {
        let error = find("zephyr").unwrap_err();
        assert!(error.contains("zephyr-7b-beta"), "{error}");
    }
}
