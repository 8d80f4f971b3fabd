//! A sweep before it runs: how many runs and steps, what they share, how long they take.

use anyhow::Context;

use super::record::StartRecord;
use super::{Run, SweepOptions};
use crate::commands::plan::plan_quietly;
use crate::plan::compute_dtype;
use crate::plan::forecast::{Forecast, RowSize, in_flop, in_hours};
use crate::plan::offline::OfflinePlan;
use crate::recipe::{Objective, Sweep};
use crate::run::reference_pass;
use crate::train::steps::StepSchedule;

/// What a group of runs reads: the same rows by the same tokenizer.
struct Data {
    /// Everything that token ids depend on.
    key: String,
    runs: usize,
    rows: [usize; 2],
    /// Model and size of the rows, as the group's first run has them.
    known: Known,
}

struct Known {
    config: crate::model::config::ModelConfig,
    width: usize,
    size: RowSize,
}

/// The plan as text. Data that is here is tokenized on the way, and kept for the runs.
pub fn describe(sweep: &Sweep, runs: &[Run], options: &SweepOptions) -> anyhow::Result<String> {
    let data = groups_of_data(runs, options)?;
    let stage = runs.first().map_or("", |run| run.recipe.stage.name());
    let mut lines = settings(runs);
    let mut steps = Vec::new();
    let mut flops = 0.0;
    // Reference passes: what they depend on, and the rows where they are few.
    let mut references = Vec::new();
    for run in runs {
        let group = data.iter().find(|group| group.key == data_key(run));
        let group = group.context("every run's data is in a group")?;
        let forecast = forecast(run, group, options);
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
    if let Some(time) = time(runs, missing, flops, options) {
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

fn groups_of_data(runs: &[Run], options: &SweepOptions) -> anyhow::Result<Vec<Data>> {
    let mut groups: Vec<Data> = Vec::new();
    for run in runs {
        let key = data_key(run);
        match groups.iter_mut().find(|group| group.key == key) {
            Some(group) => group.runs += 1,
            None => {
                let (rows, known) = read(run, options).with_context(|| run.name.clone())?;
                groups.push(Data { key, runs: 1, rows, known });
            }
        }
    }
    Ok(groups)
}

/// Rows and sizes of a run's data: counted where it is here, else what is known of it.
fn read(run: &Run, options: &SweepOptions) -> anyhow::Result<([usize; 2], Known)> {
    let recipe = &run.recipe;
    // Runs that are not started here need not have their files here.
    let trains_here = !options.plan && !options.slurm;
    let outline = if trains_here { None } else { OfflinePlan::of(recipe, options.hardware.rows)? };
    if let Some(outline) = outline {
        let width = compute_dtype(recipe, &outline.config)?.size();
        let size = RowSize::upper_bound(recipe, &outline.config, outline.tokens);
        return Ok((outline.rows, Known { config: outline.config, width, size }));
    }
    let plan = plan_quietly(recipe.clone(), 1)?;
    let size = RowSize::counted(&plan.recipe, &plan.config, &plan.rows, &plan.schedule);
    let width = plan.dtype.size();
    Ok((plan.rows.counts(), Known { config: plan.config, width, size }))
}

fn forecast<'a>(run: &'a Run, group: &'a Data, options: &'a SweepOptions) -> Forecast<'a> {
    Forecast {
        recipe: &run.recipe,
        config: &group.known.config,
        dtype_bytes: group.known.width,
        rows: group.rows,
        size: group.known.size.clone(),
        schedule: StepSchedule::new(&run.recipe.train, group.rows[0], options.hardware.ranks),
        hardware: &options.hardware,
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
        format!("made once for {} runs ({train} training rows, {test} held out)", group.runs)
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

/// From the hardware's rates where they are given, else from runs that are finished.
fn time(runs: &[Run], missing: usize, flops: f64, options: &SweepOptions) -> Option<String> {
    let at_once = options.jobs.unwrap_or(1).clamp(1, missing.max(1)) as f64;
    if let Some(rate) = options.hardware.useful_rate() {
        let share = missing as f64 / runs.len().max(1) as f64;
        let ranks = options.hardware.ranks as f64;
        let seconds = flops * share / (rate * ranks) / at_once;
        let text = format!("{} of computing at the given rate", in_hours(seconds));
        return Some(format!("{text} ({ranks} ranks a run, {at_once} runs at a time)"));
    }
    let finished = runs.iter().filter(|run| run.is_finished());
    let times = finished.filter_map(StartRecord::read).map(|record| record.seconds);
    // Nobody timed the tasks of a job array.
    let times: Vec<f64> = times.filter(|seconds| *seconds > 0.0).collect();
    if times.is_empty() {
        return Some("told once a run is finished, or with --flops".into());
    }
    let mean = times.iter().sum::<f64>() / times.len() as f64;
    let seconds = mean * missing as f64 / at_once;
    Some(format!("{} at {mean:.1} s a run, {at_once} at a time", in_hours(seconds)))
}
