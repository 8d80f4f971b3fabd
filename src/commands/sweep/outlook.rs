//! The plan of a sweep: how many runs and steps, what the runs share, how long they take.

use anyhow::Context;

use super::arguments::SweepArguments;
use super::record::StartRecord;
use super::run::Run;
use crate::commands::plan::plan_quietly;
use crate::model::adapter::LoraConfig;
use crate::model::config::ModelConfig;
use crate::plan::compute_dtype;
use crate::plan::forecast::{Forecast, Hardware, RowSize, in_flop, in_hours};
use crate::plan::offline::{OfflinePlan, adapter_of};
use crate::recipe::{Objective, Sweep};
use crate::run::reference_pass;
use crate::train::steps::StepSchedule;

/// Runs that read the same rows with the same tokenizer.
struct Data {
    /// Everything that the token ids depend on.
    key: String,
    runs: usize,
    rows: [usize; 2],
    /// The model of the group's first run.
    model: ModelAndRows,
}

/// The model and the size of its rows.
struct ModelAndRows {
    config: ModelConfig,
    width: usize,
    row_size: RowSize,
}

/// The plan as text. Data on this machine is tokenized for it, and the runs use the same token ids.
pub fn describe(sweep: &Sweep, runs: &[Run], arguments: &SweepArguments) -> anyhow::Result<String> {
    let hardware = arguments.hardware();
    let data = groups_of_data(runs, arguments)?;
    let stage = runs.first().map_or("", |run| run.recipe.stage.name());
    let mut lines = settings(runs);
    let mut steps = Vec::new();
    let mut flops = 0.0;
    // The different reference passes: what each depends on, with its rows if a run visits few.
    let mut references = Vec::new();
    for run in runs {
        let group = data.iter().find(|group| group.key == data_key(run));
        let group = group.context("the run's data is in no group")?;
        let adapter = adapter_of(&run.recipe)?;
        let forecast = forecast(run, group, adapter.as_ref(), &hardware);
        steps.push(forecast.schedule.total);
        flops += forecast.training_flops();
        if let Some(key) = reference_pass::shared_key(&run.recipe) {
            let key = (format!("{} {key}", group.key), forecast.schedule.few_rows());
            if !references.contains(&key) {
                flops += forecast.reference_flops();
                references.push(key);
            }
        }
    }
    let all: u64 = steps.iter().sum();
    lines.push(("steps".into(), format!("{}, {all} in all", range(&steps))));
    lines.push(("token ids".into(), token_line(&data)));
    lines.push(("reference".into(), reference_line(runs, references.len())));
    lines.push(("work".into(), format!("{} (expected)", in_flop(flops))));
    let finished = runs.iter().filter(|run| run.is_finished()).count();
    let missing = runs.len() - finished;
    lines.push(("state".into(), format!("{finished} finished, {missing} to run")));
    if let Some(time) = time(runs, missing, flops, arguments) {
        lines.push(("time".into(), time));
    }
    let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let recipe = sweep.recipe.display();
    let mut text = format!("{}: {} runs of {recipe} ({stage})\n", sweep.file.display(), runs.len());
    for (name, value) in lines {
        text.push_str(&format!("  {name:<width$}  {value}\n"));
    }
    Ok(text)
}

/// Each key that the runs set, with its values.
fn settings(runs: &[Run]) -> Vec<(String, String)> {
    let mut keys: Vec<(String, Vec<&str>)> = Vec::new();
    for (key, value) in runs.iter().flat_map(|run| &run.settings) {
        match keys.iter_mut().find(|(other, _)| other == key) {
            Some((_, values)) if values.contains(&value.as_str()) => {}
            Some((_, values)) => values.push(value),
            None => keys.push((key.clone(), vec![value])),
        }
    }
    keys.into_iter().map(|(key, values)| (key, values.join(", "))).collect()
}

fn data_key(run: &Run) -> String {
    let recipe = &run.recipe;
    let lengths = match &recipe.objective {
        Objective::Sft(sft) => format!("{sft:?}"),
        other => format!("{:?} {:?}", recipe.stage, other.lengths()),
    };
    let model = &recipe.model;
    let tokenizer = model.tokenizer_name_or_path.as_ref().unwrap_or(&model.model_name_or_path);
    format!(
        "{:?} {lengths} {tokenizer} {:?} {:?}",
        recipe.data, model.chat_template, model.eos_token
    )
}

fn groups_of_data(runs: &[Run], arguments: &SweepArguments) -> anyhow::Result<Vec<Data>> {
    let mut groups: Vec<Data> = Vec::new();
    for run in runs {
        let key = data_key(run);
        match groups.iter_mut().find(|group| group.key == key) {
            Some(group) => group.runs += 1,
            None => {
                let (rows, model) = read(run, arguments).with_context(|| run.name.clone())?;
                groups.push(Data { key, runs: 1, rows, model });
            }
        }
    }
    Ok(groups)
}

/// The rows and sizes of a run's data: counted if the data is on this machine, else estimated.
fn read(run: &Run, arguments: &SweepArguments) -> anyhow::Result<([usize; 2], ModelAndRows)> {
    let recipe = &run.recipe;
    // Runs that start elsewhere need no files on this machine.
    let trains_here = !arguments.plan && !arguments.slurm;
    let outline =
        if trains_here { None } else { OfflinePlan::of(recipe, arguments.hardware().rows)? };
    if let Some(outline) = outline {
        let width = compute_dtype(recipe, &outline.config)?.size();
        let row_size = RowSize::upper_bound(recipe, &outline.config, outline.tokens);
        return Ok((outline.rows, ModelAndRows { config: outline.config, width, row_size }));
    }
    let plan = plan_quietly(recipe.clone(), 1)?;
    let row_size = RowSize::counted(&plan.recipe, &plan.config, &plan.rows, &plan.schedule);
    let width = plan.dtype.size();
    Ok((plan.rows.counts(), ModelAndRows { config: plan.config, width, row_size }))
}

fn forecast<'a>(
    run: &'a Run,
    group: &'a Data,
    adapter: Option<&'a LoraConfig>,
    hardware: &'a Hardware,
) -> Forecast<'a> {
    Forecast {
        recipe: &run.recipe,
        config: &group.model.config,
        adapter,
        dtype_bytes: group.model.width,
        rows: group.rows,
        size: group.model.row_size.clone(),
        schedule: StepSchedule::new(&run.recipe.train, group.rows[0], hardware.ranks),
        hardware,
    }
}

fn range(steps: &[u64]) -> String {
    match (steps.iter().min(), steps.iter().max()) {
        (Some(least), Some(most)) if least < most => format!("{least} to {most} a run"),
        (_, most) => format!("{} a run", most.unwrap_or(&0)),
    }
}

fn token_line(data: &[Data]) -> String {
    let set = |group: &Data| {
        let [train, test] = group.rows;
        format!("computed once for {} runs ({train} training rows, {test} held out)", group.runs)
    };
    data.iter().map(set).collect::<Vec<_>>().join("; ")
}

fn reference_line(runs: &[Run], passes: usize) -> String {
    let users = runs.iter().filter(|run| reference_pass::shared_key(&run.recipe).is_some()).count();
    match (users, passes) {
        (0, _) => "none is needed".into(),
        (users, 1) => format!("log-probs computed once for {users} runs"),
        (users, passes) => format!("log-probs computed {passes} times for {users} runs"),
    }
}

/// The time that the sweep still takes, from the hardware's rate if given, else from finished runs.
fn time(runs: &[Run], missing: usize, flops: f64, arguments: &SweepArguments) -> Option<String> {
    let hardware = arguments.hardware();
    let at_once = arguments.jobs.unwrap_or(1).clamp(1, missing.max(1)) as f64;
    if let Some(rate) = hardware.useful_rate() {
        let share = missing as f64 / runs.len().max(1) as f64;
        let ranks = hardware.ranks as f64;
        let seconds = flops * share / (rate * ranks) / at_once;
        let text = format!("{} of computing at the given rate", in_hours(seconds));
        return Some(format!("{text} ({ranks} ranks a run, {at_once} runs at a time)"));
    }
    let finished = runs.iter().filter(|run| run.is_finished());
    let times = finished.filter_map(StartRecord::read).map(|record| record.seconds);
    // The tasks of a job array have no time.
    let times: Vec<f64> = times.filter(|seconds| *seconds > 0.0).collect();
    if times.is_empty() {
        return Some("available once a run is finished, or with --flops".into());
    }
    let mean = times.iter().sum::<f64>() / times.len() as f64;
    let seconds = mean * missing as f64 / at_once;
    Some(format!("{} at {mean:.1} s a run, {at_once} at a time", in_hours(seconds)))
}
