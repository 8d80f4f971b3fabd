//! The sweep's report page: both tables, then the curves of the finished runs. A run is named by
//! the settings that differ between runs; runs that differ only in their seeds share a color.

use anyhow::Context;

use super::comparison::{Comparison, beta, plain, setting, value};
use crate::report::chart::Look;
use crate::report::page::{Page, SweepRow, SweepTable, SweepTables};
use crate::report::record::{RunRecord, Setting};

/// Characters of a value; of longer ones the end is shown, because paths differ there.
const LONGEST: usize = 32;
/// Between the parts of a name.
const BETWEEN: &str = " · ";

/// The name of a run on the page, and its setting.
struct Naming {
    name: String,
    setting: Setting,
}

impl Comparison<'_> {
    /// The page as HTML.
    pub(super) fn page(&self, title: String) -> anyhow::Result<String> {
        let namings = self.namings();
        let betas: Vec<f64> = self.lines.iter().filter_map(|line| beta(&line.run.recipe)).collect();
        let has_betas = betas.iter().any(|beta| *beta != betas[0]);
        let mut runs = Vec::new();
        for (line, naming) in self.lines.iter().zip(&namings) {
            if !line.has_record() {
                continue;
            }
            let record = RunRecord::read(line.run.folder(), naming.name.clone());
            let mut record = match record {
                Ok(record) => record,
                Err(error) => {
                    tracing::warn!("{}: no curves: {error}", line.run.name);
                    continue;
                }
            };
            record.setting = Some(naming.setting.clone());
            // If β differs between runs, their rewards cannot be compared.
            if let Some(beta) = beta(&line.run.recipe).filter(|_| has_betas) {
                record.add_log_ratios(beta);
            }
            runs.push(record);
        }
        let page = Page {
            title,
            runs: &runs,
            prompts: &[],
            answers: &[],
            answers_note: String::new(),
            sweep: Some(self.tables(&namings)),
        };
        page.to_html().context("cannot make the page")
    }

    fn tables(&self, namings: &[Naming]) -> SweepTables {
        let look = |index: usize, repeat: usize| {
            let is_drawn = self.lines[index].has_record();
            let color = namings[index].setting.index;
            is_drawn.then_some(Look { color, repeat, is_published: false })
        };
        let mut table = self.table(true).into_iter();
        let header = table.next().unwrap_or_default();
        let rows = table.zip(&self.lines).enumerate().map(|(index, (cells, line))| {
            let look = look(index, namings[index].setting.repeat);
            let title = line.run.folder().display().to_string();
            SweepRow { look, title, cells, error: line.error() }
        });
        let runs = SweepTable { header, rows: rows.collect() };
        let means = self.means(true).map(|table| {
            let mut table = table.into_iter();
            let header = table.next().unwrap_or_default();
            let rows = table.zip(self.groups()).map(|(cells, members)| SweepRow {
                // A mean has the color of its setting if at least one of its runs is drawn.
                look: members.iter().find_map(|index| look(*index, 0)),
                title: namings[members[0]].setting.name.clone(),
                cells,
                error: None,
            });
            SweepTable { header, rows: rows.collect() }
        });
        SweepTables { runs, means }
    }

    /// One for each of [`Comparison::lines`].
    fn namings(&self) -> Vec<Naming> {
        let groups = self.groups();
        let (all, tried) = (self.differing(&self.keys), self.differing(&self.tried_keys()));
        let mut names: Vec<String> =
            (0..self.lines.len()).map(|index| self.name(index, &all)).collect();
        let is_double = |name: &String| names.iter().filter(|other| *other == name).count() > 1;
        if names.iter().any(is_double) {
            names = self.lines.iter().map(|line| line.run.name.clone()).collect();
        }
        let naming = |(index, name): (usize, String)| {
            let place = groups.iter().enumerate().find_map(|(group, members)| {
                Some((group, members.iter().position(|member| *member == index)?))
            });
            // If the sweep varies only seeds, each seed has its own color.
            let (group, repeat) = place.filter(|_| groups.len() > 1).unwrap_or((index, 0));
            let setting_name = match groups.len() > 1 {
                true => self.name(index, &tried),
                false => name.clone(),
            };
            let loss = value(self.lines[index].run, "loss_type").unwrap_or_default();
            let setting = Setting { index: group, name: setting_name, repeat, loss };
            Naming { name, setting }
        };
        names.into_iter().enumerate().map(naming).collect()
    }

    /// The keys among `keys` that have more than one value.
    fn differing<'k>(&self, keys: &[&'k str]) -> Vec<&'k str> {
        let values = |key: &str| -> Vec<String> {
            self.lines.iter().map(|line| plain(&setting(line.run, key))).collect()
        };
        let differs = |key: &&str| values(key).windows(2).any(|pair| pair[0] != pair[1]);
        keys.iter().copied().filter(differs).collect()
    }

    /// Such as "ipo · beta 0.1 · seed 1": the values of those `keys` that the sweep sets for this
    /// run, or the name of its folder if it sets none of them.
    fn name(&self, index: usize, keys: &[&str]) -> String {
        let run = self.lines[index].run;
        let is_set = |key: &&&str| run.settings.iter().any(|(set, _)| set == **key);
        let set = keys.iter().filter(is_set);
        let parts: Vec<String> = set.map(|key| part(key, &setting(run, key))).collect();
        if parts.is_empty() { run.name.clone() } else { parts.join(BETWEEN) }
    }
}

/// A word alone, such as `ipo`; a number with its key, such as `beta 0.1`.
fn part(key: &str, value: &str) -> String {
    let ending = value.char_indices().rev().nth(LONGEST - 1).filter(|(start, _)| *start > 0);
    let shown = ending.map_or(value.to_string(), |(start, _)| format!("…{}", &value[start..]));
    let is_bare = ["true", "false", "null", "yes", "no"].contains(&value);
    match value.chars().next() {
        Some(first) if !is_bare && (first.is_alphabetic() || first == '[') => shown,
        _ => format!("{} {shown}", key.rsplit('.').next().unwrap_or(key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_names_are_short() {
        assert_eq!(part("loss_type", "ipo"), "ipo");
        assert_eq!(part("loss_type", "[sigmoid, sft]"), "[sigmoid, sft]");
        assert_eq!(part("dataset_mixture.seed", "7"), "seed 7");
        assert_eq!(part("bf16", "true"), "bf16 true");
        let path = "out/a/long/way/to/the/model/of-this-run";
        let shown = part("model_name_or_path", path);
        assert!(shown.starts_with('…') && shown.ends_with("/of-this-run"), "{shown}");
        assert_eq!(shown.chars().count(), LONGEST + 1);
    }
}
