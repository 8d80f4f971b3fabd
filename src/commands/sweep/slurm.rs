//! The sweep as a SLURM job array: one task a run, with the runs' own command lines.

use std::path::Path;

use anyhow::Context;

use super::{Run, SweepOptions};
use crate::commands::shell::quoted;
use crate::commands::stage::Ending;
use crate::recipe::Sweep;
use crate::report::progress::Screen;
use crate::train::state::file::replace_file;

/// Writes `sweep.slurm` into the sweep's folder. Runs share the cache there: whoever comes first makes token ids
/// and reference log-probs, the others wait for them.
pub fn write(
    sweep: &Sweep,
    runs: &[Run],
    options: &SweepOptions,
    screen: &Screen,
) -> anyhow::Result<Ending> {
    let missing: Vec<&Run> = runs.iter().filter(|run| !run.is_finished()).collect();
    if missing.is_empty() {
        screen.line("all runs are finished: there is nothing to submit")?;
        return Ok(Ending::Done);
    }
    for run in &missing {
        super::RunRecord::begin(run)?;
    }
    let path = sweep.output_dir.join("sweep.slurm");
    let here = std::env::current_dir().context("cannot tell the current folder")?;
    let program = std::env::current_exe().context("cannot tell the program's path")?;
    let text = script(sweep, &missing, options, &here, &program);
    replace_file(&path, text.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    screen.line(&format!(
        "wrote {}: submit it with `sbatch {}`; when all tasks are done, `favonius sweep {}` compares them",
        path.display(),
        path.display(),
        sweep.file.display()
    ))?;
    Ok(Ending::Done)
}

fn script(
    sweep: &Sweep,
    runs: &[&Run],
    options: &SweepOptions,
    here: &Path,
    program: &Path,
) -> String {
    let ranks = options.hardware.ranks;
    let most = options.jobs.map_or(String::new(), |jobs| format!("%{jobs}"));
    let name = sweep.file.file_stem().unwrap_or_default().to_string_lossy();
    let mut text = format!(
        "#!/usr/bin/env bash\n\
         # {} runs of {}. Add what your cluster needs: partition, account, GPUs, time.\n\
         #SBATCH --job-name={name}\n\
         #SBATCH --array=0-{}{most}\n\
         #SBATCH --ntasks={ranks}\n\
         #SBATCH --output={}/slurm-%A_%a.out\n\
         # Before the time is up a run saves and ends; submitted again, it goes on.\n\
         #SBATCH --signal=TERM@120\n\
         set -euo pipefail\n\
         cd {}\n\
         case \"$SLURM_ARRAY_TASK_ID\" in\n",
        runs.len(),
        sweep.recipe.display(),
        runs.len() - 1,
        quoted(&sweep.output_dir.display().to_string()),
        quoted(&here.display().to_string()),
    );
    for (index, run) in runs.iter().enumerate() {
        let words: Vec<String> = run.arguments.iter().map(|word| quoted(word)).collect();
        let program = quoted(&program.display().to_string());
        text.push_str(&format!("{index}) exec srun {program} {} ;;\n", words.join(" ")));
    }
    text.push_str("esac\n");
    text
}
