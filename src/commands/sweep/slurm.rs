//! The sweep as a SLURM job array: each run is a task with the run's own command line.

use std::path::Path;

use anyhow::Context;

use super::arguments::SweepArguments;
use super::load::take_token;
use super::record::StartRecord;
use super::run::Run;
use crate::commands::ending::Ending;
use crate::commands::error_file::VARIABLE;
use crate::commands::errors::usage;
use crate::files::replace::replace_file;
use crate::recipe::Sweep;
use crate::report::screen::Screen;
use crate::run::shell::quoted;

/// Writes `sweep.slurm` into the sweep's folder. The runs share the cache in it: the first run
/// computes token ids and reference log-probs, the others wait for them.
pub fn write(
    sweep: &Sweep,
    runs: &[Run],
    arguments: &SweepArguments,
    screen: &Screen,
) -> anyhow::Result<Ending> {
    let missing: Vec<&Run> = runs.iter().filter(|run| !run.is_finished()).collect();
    if missing.is_empty() {
        screen.line("all runs are finished; nothing is left to submit")?;
        return Ok(Ending::Done);
    }
    let here = std::env::current_dir().context("cannot find the current folder")?;
    check_folder(&here.join(&sweep.output_dir))?;
    for run in &missing {
        StartRecord::begin(run)?;
    }
    let path = sweep.output_dir.join("sweep.slurm");
    let program = std::env::current_exe().context("cannot find the program's path")?;
    let text = script(sweep, &missing, arguments, &here, &program);
    replace_file(&path, text.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    screen.line(&hint(sweep, arguments, &path))?;
    if missing.iter().any(|run| run.token.is_some()) {
        screen.line(
            "the script does not hold the hub's token: set HF_TOKEN for the tasks, or log in on \
             their machines",
        )?;
    }
    Ok(Ending::Done)
}

/// Fails if the folder's name has a line end: the script's `#SBATCH` lines cannot hold it, and the
/// shell would run what follows.
fn check_folder(folder: &Path) -> anyhow::Result<()> {
    match folder.display().to_string().contains(char::is_control) {
        true => usage(format!(
            "the script of a job array cannot write into {folder:?}: its name has a line end or \
             another control character\nhelp: choose another output_dir"
        )),
        false => Ok(()),
    }
}

/// What to do with the script at `path`, as commands that are quoted for a shell.
fn hint(sweep: &Sweep, arguments: &SweepArguments, path: &Path) -> String {
    let file = sweep.file.display().to_string();
    let words = ["favonius".into(), "sweep".into(), file, "--compare-only".into()];
    let mut overrides = arguments.overrides.clone();
    take_token(&mut overrides);
    let words = words.iter().chain(&overrides).map(|word| quoted(word));
    let compare = words.collect::<Vec<_>>().join(" ");
    format!(
        "wrote {}: submit it with `sbatch {}`; when its tasks are done, `{compare}` compares them \
         and trains nothing",
        path.display(),
        quoted(&path.display().to_string()),
    )
}

fn script(
    sweep: &Sweep,
    runs: &[&Run],
    arguments: &SweepArguments,
    here: &Path,
    program: &Path,
) -> String {
    let ranks = arguments.hardware().ranks;
    let most = arguments.jobs.map_or(String::new(), |jobs| format!("%{jobs}"));
    let stem = sweep.file.file_stem().unwrap_or_default().to_string_lossy();
    // SLURM replaces symbols that begin with `%`. The job may be submitted from any folder.
    let for_slurm = |path: &Path| here.join(path).display().to_string().replace('%', "%%");
    let folder = for_slurm(&sweep.output_dir);
    let mut text = format!(
        "#!/usr/bin/env bash\n\
         # {} runs of {}. Add what your cluster needs: partition, account, GPUs, time.\n\
         #SBATCH --job-name={}\n\
         #SBATCH --array=0-{}{most}\n\
         #SBATCH --ntasks={ranks}\n\
         #SBATCH --output={}\n\
         # A run saves and ends before its time is up; submit the script again to continue.\n\
         #SBATCH --signal=TERM@120\n\
         set -euo pipefail\n\
         cd {}\n\
         case \"$SLURM_ARRAY_TASK_ID\" in\n",
        runs.len(),
        one_line(&sweep.recipe.display().to_string()),
        job_name(&stem),
        runs.len() - 1,
        quoted(&format!("{folder}/slurm-%A_%a.out")),
        quoted(&here.display().to_string()),
    );
    for (index, run) in runs.iter().enumerate() {
        let words: Vec<String> = run.arguments.iter().map(|word| quoted(word)).collect();
        let program = quoted(&program.display().to_string());
        let log = quoted(&format!("--output={}", for_slurm(&run.log())));
        let error = quoted(&here.join(run.error_file()).display().to_string());
        text.push_str(&format!(
            "{index}) export {VARIABLE}={error}\n\
             exec srun {log} --open-mode=append {program} {} ;;\n",
            words.join(" ")
        ));
    }
    text.push_str("esac\n");
    text
}

/// A name for a comment of the script, which ends with its line.
fn one_line(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A job name for SLURM, whose tools expect a single plain word.
fn job_name(stem: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    stem.chars().map(|c| if is_plain(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::recipe::{Recipe, Stage};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: SweepArguments,
    }

    #[test]
    fn names_and_paths_with_blanks_are_quoted() {
        let sweep = Sweep {
            file: "my scans/a scan.yaml".into(),
            recipe: "dpo.yaml".into(),
            kind: None,
            output_dir: "out/50% of it".into(),
            overrides: Vec::new(),
            runs: Vec::new(),
        };
        let words = ["sweep", "s.yaml", "--", "--loss_type=[sigmoid, sft]", "--beta=0.2"];
        let arguments = Line::try_parse_from(words).unwrap().arguments;
        let hint = hint(&sweep, &arguments, Path::new("out/50% of it/sweep.slurm"));
        let compare = "`favonius sweep 'my scans/a scan.yaml' --compare-only \
         '--loss_type=[sigmoid, sft]' --beta=0.2`";
        assert!(hint.contains(compare), "{hint}");
        assert!(hint.contains("`sbatch 'out/50% of it/sweep.slurm'`"), "{hint}");
        assert_eq!(job_name("a scan; rm"), "a_scan__rm");
    }

    #[test]
    fn a_line_end_in_a_name_is_not_run_by_the_shell() {
        let sweep = Sweep {
            file: "scan\nrm -r x.yaml".into(),
            recipe: "dpo\ntouch planted\n#.yaml".into(),
            kind: None,
            output_dir: "out".into(),
            overrides: Vec::new(),
            runs: Vec::new(),
        };
        let text = "model_name_or_path: m\ndataset_name: d\n";
        let recipe = Recipe::parse(text, Path::new("r.yaml"), Stage::Dpo, &[]).unwrap();
        let run = Run {
            name: "beta-1".into(),
            settings: Vec::new(),
            recipe,
            arguments: vec!["dpo".into(), "dpo\ntouch planted\n#.yaml".into()],
            token: None,
        };
        let arguments = Line::try_parse_from(["sweep", "s.yaml"]).unwrap().arguments;
        let text = script(&sweep, &[&run], &arguments, Path::new("/here"), Path::new("/favonius"));
        let head = text.split("set -euo pipefail").next().unwrap();
        assert!(head.lines().all(|line| line.starts_with('#')), "{head}");
        assert!(text.contains("'dpo\ntouch planted\n#.yaml'"), "in quotes: {text}");
        assert!(check_folder(Path::new("/here/out\nrm -r x")).is_err());
        assert!(check_folder(Path::new("/here/50% of it")).is_ok());
    }
}
