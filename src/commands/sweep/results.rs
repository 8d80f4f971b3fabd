//! Shows the comparison of a sweep's runs, and writes its files.

use std::path::PathBuf;

use anyhow::Context;

use super::comparison::Comparison;
use super::jobs::Outcome;
use super::run::Run;
use crate::files::replace::replace_file;
use crate::recipe::Sweep;
use crate::report::columns::csv;
use crate::report::screen::Screen;

/// Prints the comparison and writes its files into the sweep's folder.
pub fn compare(
    sweep: &Sweep,
    runs: &[Run],
    outcomes: &[Outcome],
    screen: &Screen,
) -> anyhow::Result<()> {
    let comparison = Comparison::new(runs, outcomes);
    screen.tell(&comparison.text());
    std::fs::create_dir_all(&sweep.output_dir)
        .with_context(|| format!("cannot create {}", sweep.output_dir.display()))?;
    for path in write(&comparison, sweep)? {
        screen.tell(&format!("wrote {}", path.display()));
    }
    Ok(())
}

/// Writes `runs.csv`, `means.csv` if the sweep varies seeds, and the page `sweep.html` with the
/// curves of the finished runs.
fn write(comparison: &Comparison, sweep: &Sweep) -> anyhow::Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    let mut write = |name: &str, text: &str| {
        let path = sweep.output_dir.join(name);
        replace_file(&path, text.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
        written.push(path);
        anyhow::Ok(())
    };
    write("runs.csv", &csv(&comparison.table(false)))?;
    if let Some(means) = comparison.means(false) {
        write("means.csv", &csv(&means))?;
    }
    let stem = sweep.file.file_stem().unwrap_or_default();
    write("sweep.html", &comparison.page(stem.to_string_lossy().into_owned())?)?;
    Ok(written)
}
