//! The sweep as a SLURM job array: one task a run, with the runs' own command lines.

use std::path::Path;

use anyhow::Context;

use super::{Run, SweepOptions};
use crate::commands::ending::Ending;
use crate::files::replace::replace_file;
use crate::recipe::Sweep;
use crate::report::screen::Screen;
use crate::run::shell::quoted;

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
        crate::commands::sweep::StartRecord::begin(run)?;
    }
    let path = sweep.output_dir.join("sweep.slurm");
    let here = std::env::current_dir().context("cannot tell the current folder")?;
    let program = std::env::current_exe().context("cannot tell the program's path")?;
    let text = script(sweep, &missing, options, &here, &program);
    replace_file(&path, text.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    screen.line(&hint(sweep, options, &path))?;
    if missing.iter().any(|run| run.token.is_some()) {
        screen.line(
            "the hub's token is not in it: set HF_TOKEN where the tasks run, or log in there",
        )?;
    }
    Ok(Ending::Done)
}

/// What to do with the script at `path`, as commands that a shell reads as they are meant.
fn hint(sweep: &Sweep, options: &SweepOptions, path: &Path) -> String {
    let file = sweep.file.display().to_string();
    let words = ["favonius".into(), "sweep".into(), file, "--compare-only".into()];
    let mut overrides = options.overrides.clone();
    crate::commands::sweep::take_token(&mut overrides);
    let words = words.iter().chain(&overrides).map(|word| quoted(word));
    let compare = words.collect::<Vec<_>>().join(" ");
    format!(
        "wrote {}: submit it with `sbatch {}`; when its tasks are done, `{compare}` compares them and trains nothing",
        path.display(),
        quoted(&path.display().to_string()),
    )
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
    let stem = sweep.file.file_stem().unwrap_or_default().to_string_lossy();
    // `%` begins a symbol that SLURM replaces. The job may be submitted from any folder.
    let for_slurm = |path: &Path| here.join(path).display().to_string().replace('%', "%%");
    let folder = for_slurm(&sweep.output_dir);
    let mut text = format!(
        "#!/usr/bin/env bash\n\
         # {} runs of {}. Add what your cluster needs: partition, account, GPUs, time.\n\
         #SBATCH --job-name={}\n\
         #SBATCH --array=0-{}{most}\n\
         #SBATCH --ntasks={ranks}\n\
         #SBATCH --output={}\n\
         # Before the time is up a run saves and ends; submitted again, it goes on.\n\
         #SBATCH --signal=TERM@120\n\
         set -euo pipefail\n\
         cd {}\n\
         case \"$SLURM_ARRAY_TASK_ID\" in\n",
        runs.len(),
        sweep.recipe.display(),
        job_name(&stem),
        runs.len() - 1,
        quoted(&format!("{folder}/slurm-%A_%a.out")),
        quoted(&here.display().to_string()),
    );
    for (index, run) in runs.iter().enumerate() {
        let words: Vec<String> = run.arguments.iter().map(|word| quoted(word)).collect();
        let program = quoted(&program.display().to_string());
        let log = quoted(&format!("--output={}", for_slurm(&run.log())));
        text.push_str(&format!(
            "{index}) exec srun {log} --open-mode=append {program} {} ;;\n",
            words.join(" ")
        ));
    }
    text.push_str("esac\n");
    text
}

/// SLURM's tools show and match job names as one plain word.
fn job_name(stem: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    stem.chars().map(|c| if is_plain(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths_with_blanks_hold_together() {
        let sweep = Sweep {
            file: "my scans/a scan.yaml".into(),
            recipe: "dpo.yaml".into(),
            kind: None,
            output_dir: "out/50% of it".into(),
            overrides: Vec::new(),
            runs: Vec::new(),
        };
        let overrides = vec!["--loss_type=[sigmoid, sft]".into(), "--beta=0.2".into()];
        let options = SweepOptions { overrides, ..SweepOptions::default() };
        let hint = hint(&sweep, &options, Path::new("out/50% of it/sweep.slurm"));
        let compare = "`favonius sweep 'my scans/a scan.yaml' --compare-only '--loss_type=[sigmoid, sft]' --beta=0.2`";
        assert!(hint.contains(compare), "{hint}");
        assert!(hint.contains("`sbatch 'out/50% of it/sweep.slurm'`"), "{hint}");
        assert_eq!(job_name("a scan; rm"), "a_scan__rm");
    }
}
