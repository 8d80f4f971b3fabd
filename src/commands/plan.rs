//! `favonius plan`: what a recipe would do, and every default that was filled in.

use std::io::Write;
use std::path::PathBuf;

use burn::tensor::DType;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::ending::Ending;
use super::hardware::HardwareArguments;
use super::recipe_arguments::{OVERRIDES_HELP, RunOptions};
use crate::files::printable::printable;
use crate::model::config::ModelConfig;
use crate::parallel::buckets::{Bucket, Layout};
use crate::parallel::environment::Place;
use crate::plan::forecast::{Forecast, Hardware, RowSize};
use crate::plan::offline::{OfflinePlan, adapter_of};
use crate::plan::{Plan, PlannedAdapter, Rows, compute_dtype};
use crate::recipe::{Recipe, Stage};
use crate::report::ReporterOptions;
use crate::report::Reporters;
use crate::report::screen::Screen;
use crate::train::steps::{Cadence, Sharing, StepSchedule};

#[derive(Debug, Args)]
#[command(after_help = OVERRIDES_HELP)]
#[command(mut_arg("quiet", |arg| arg.hide(true)))]
#[command(mut_arg("collective_timeout", |arg| arg.hide(true)))]
pub struct PlanArguments {
    /// The recipe in YAML
    #[arg(value_name = "RECIPE.yaml")]
    pub recipe: PathBuf,
    /// Values of keys of the recipe
    #[arg(value_name = "--KEY=VALUE")]
    pub overrides: Vec<String>,
    /// The subcommand that the recipe is for; by default its path and its keys decide
    #[arg(long, value_parser = stages())]
    pub stage: Option<Stage>,
    /// They have no effect, but let `plan` accept the arguments of a run.
    #[command(flatten)]
    _options: RunOptions,
    #[command(flatten)]
    pub hardware: HardwareArguments,
}

fn stages() -> impl TypedValueParser<Value = Stage> {
    let words = PossibleValuesParser::new(Stage::ALL.map(Stage::command));
    words.try_map(|word| Stage::of_command(&word).ok_or("not a stage"))
}

/// Prints the plan of a recipe, on rank 0. If its model or data are not on this machine, the plan
/// is computed from what the program knows about them.
pub fn run(arguments: &PlanArguments, place: Place) -> anyhow::Result<Ending> {
    if place.rank > 0 {
        return Ok(Ending::Done);
    }
    let hardware = arguments.hardware.hardware(place.world);
    let recipe = Recipe::load_any(&arguments.recipe, arguments.stage, &arguments.overrides)?;
    let text = match OfflinePlan::of(&recipe, hardware.rows)? {
        Some(outline) => describe_outline(&recipe, &outline, &hardware)?,
        None => describe_prepared(recipe, &hardware)?,
    };
    std::io::stdout().write_all(printable(&text).as_bytes())?;
    Ok(Ending::Done)
}

/// Plans a recipe on `ranks` ranks, for a run that does not start yet.
pub fn plan_quietly(recipe: Recipe, ranks: usize) -> anyhow::Result<Plan> {
    let screen = Screen::detect(true);
    let options = ReporterOptions::screen_only(recipe.output_dir().into(), screen);
    let mut reporters = Reporters::new(options);
    let sharing = Sharing::of(&recipe.train, ranks);
    Ok(Plan::new(recipe, sharing, &mut reporters)?)
}

fn describe_prepared(recipe: Recipe, hardware: &Hardware) -> anyhow::Result<String> {
    Ok(describe(&plan_quietly(recipe, hardware.ranks)?, hardware))
}

fn describe(plan: &Plan, hardware: &Hardware) -> String {
    let Plan { recipe, config, rows, schedule, .. } = plan;
    let forecast = Forecast {
        recipe,
        config,
        adapter: plan.adapter.as_ref().map(|adapter| &adapter.config),
        dtype_bytes: plan.dtype.size(),
        rows: rows.counts(),
        size: RowSize::counted(recipe, config, rows, schedule),
        schedule: schedule.clone(),
        hardware,
    };
    let mut text = title(recipe);
    let mut model = model_lines(recipe, config, plan.dtype);
    if let Some(adapter) = &plan.adapter {
        model.extend(adapter_lines(adapter, config));
    }
    section(&mut text, "model", &model);
    section(&mut text, "data", &data_lines(rows));
    forecast_sections(&mut text, &forecast);
    text
}

fn describe_outline(
    recipe: &Recipe,
    outline: &OfflinePlan,
    hardware: &Hardware,
) -> anyhow::Result<String> {
    let config = &outline.config;
    let dtype = compute_dtype(recipe, config)?;
    let adapter = adapter_of(recipe)?;
    let forecast = Forecast {
        recipe,
        config,
        adapter: adapter.as_ref(),
        dtype_bytes: dtype.size(),
        rows: outline.rows,
        size: RowSize::upper_bound(recipe, config, outline.tokens),
        schedule: StepSchedule::new(&recipe.train, outline.rows[0], hardware.ranks),
        hardware,
    };
    let mut text = title(recipe);
    let mut model = model_lines(recipe, config, dtype);
    if let Some(adapter) = &adapter {
        let planned = PlannedAdapter::outline(adapter, config)?;
        model.extend(adapter_lines(&planned, config));
    }
    model.push(line("config.json", &outline.config_source));
    section(&mut text, "model", &model);
    section(&mut text, "data (not read)", &outline_lines(outline, &forecast.size));
    forecast_sections(&mut text, &forecast);
    Ok(text)
}

fn title(recipe: &Recipe) -> String {
    format!("{} ({})\n\n", recipe.file.display(), recipe.stage.name())
}

fn forecast_sections(text: &mut String, forecast: &Forecast) {
    let recipe = forecast.recipe;
    section(text, "steps", &step_lines(&forecast.schedule));
    let is_shared = forecast.schedule.ranks > 1;
    if is_shared {
        section(text, "ranks", &rank_lines(&forecast.layout()));
    }
    let memory = if is_shared { "memory of a rank" } else { "memory" };
    section(text, memory, &forecast.memory_lines());
    section(text, "work", &forecast.work_lines());
    if let Some(verdict) = forecast.verdict() {
        text.push_str(&format!("{verdict}\n\n"));
    }
    section(text, "written in the recipe", &recipe.written);
    section(text, "filled in", &recipe.filled);
}

type Lines = Vec<(String, String)>;

fn section(text: &mut String, title: &str, lines: &[(String, String)]) {
    let width = lines.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    text.push_str(&format!("{title}\n"));
    for (key, value) in lines {
        text.push_str(&format!("  {key:<width$}  {value}\n"));
    }
    text.push('\n');
}

fn line(key: &str, value: impl std::fmt::Display) -> (String, String) {
    (key.to_string(), value.to_string())
}

fn model_lines(recipe: &Recipe, config: &ModelConfig, dtype: DType) -> Lines {
    let mut lines = vec![
        line("name", &recipe.model.model_name_or_path),
        line("architecture", format!("{:?}", config.family.architecture)),
        line("parameters", thousands(config.parameters())),
    ];
    if let Some(experts) = &config.family.experts {
        let active = thousands(config.active_parameters());
        lines.push(line("… active", format!("{active} for each token")));
        lines.push(line("experts", format!("{}, {} a token", experts.count, experts.per_token)));
    }
    lines.extend([
        line("layers", config.num_hidden_layers),
        line("width", config.hidden_size),
        line("vocabulary", config.vocab_size),
        line("computes in", format!("{dtype:?}")),
    ]);
    lines
}

fn adapter_lines(adapter: &PlannedAdapter, config: &ModelConfig) -> Lines {
    let begins = match &adapter.from {
        Some(folder) => format!("that of {}, trained further", folder.display()),
        None => "a new one".into(),
    };
    let share = 100.0 * adapter.trained as f64 / config.parameters() as f64;
    let lora = &adapter.config;
    vec![
        line("adapter", begins),
        line("rank", lora.r),
        line("targets", lora.selection.targets.shown()),
        line("trained", format!("{} parameters ({share:.2} %)", thousands(adapter.trained))),
    ]
}

fn outline_lines(outline: &OfflinePlan, size: &RowSize) -> Lines {
    let [train, test] = outline.rows;
    let mut lines =
        vec![line("training rows", thousands(train)), line("held-out rows", thousands(test))];
    lines.extend(outline.row_sources.iter().map(|source| line("…", source)));
    let most = train.saturating_mul(size.sequences).saturating_mul(size.length);
    lines.push(line(
        "training tokens",
        format!("at most {} ({} × {} a row)", thousands(most), size.sequences, size.length),
    ));
    if let Some((tokens, _)) = size.mean {
        let expected = thousands((train as f64 * tokens) as usize);
        lines.push(line("… expected", format!("{expected} ({tokens:.0} a row)")));
    }
    lines
}

fn data_lines(rows: &Rows) -> Lines {
    let [train, test] = rows.counts();
    let [computed, counted] = rows.train_tokens();
    let reports = rows.reports();
    if rows.are_streamed() {
        return vec![
            line("training rows", format!("{} (read while the run trains)", thousands(train))),
            line("held-out rows", format!("{} ({})", thousands(test), reports[1])),
        ];
    }
    let mut lines = vec![
        line("training rows", format!("{} ({})", thousands(train), reports[0])),
        line("held-out rows", format!("{} ({})", thousands(test), reports[1])),
        line("training tokens", thousands(computed)),
    ];
    if counted != computed {
        let share = counted as f64 / computed.max(1) as f64;
        let text = format!("{} ({share:.2} × as many)", thousands(counted));
        lines.push(line("… prompts not shared", text));
    }
    lines.push(line("longest sequence", format!("{} tokens", rows.longest())));
    lines
}

fn step_lines(plan: &StepSchedule) -> Lines {
    let cadence = |cadence: Cadence| match cadence {
        Cadence::Never => "never".to_string(),
        Cadence::EpochEnd => "each epoch".to_string(),
        Cadence::Steps(steps) => format!("every {steps} steps"),
        Cadence::NewBest => "after each best evaluation".into(),
    };
    vec![
        line("micro-batch", format!("{} rows", plan.micro_batch)),
        line("accumulation", format!("{} micro-batches a step and rank", plan.accumulation)),
        line("ranks", plan.ranks),
        line("rows a step", plan.rows_a_step()),
        line("micro-batches an epoch", plan.micro_batches),
        line("steps an epoch", plan.steps_per_epoch),
        line("steps", plan.total),
        line("warm-up steps", plan.warmup),
        line("logging", cadence(plan.logging)),
        line("evaluation", cadence(plan.evaluation)),
        line("checkpoints", cadence(plan.saving)),
    ]
}

/// One line for each series of buckets of equal size.
fn rank_lines(layout: &Layout) -> Lines {
    let same = |a: &Bucket, b: &Bucket| a.lengths == b.lengths;
    let line_of = |group: &[Bucket]| {
        let (first, last) = (&group[0], &group[group.len() - 1]);
        let name = match group.len() {
            1 => format!("bucket {}", first.name),
            _ => format!("buckets {} … {}", first.name, last.name),
        };
        let elements = thousands(first.lengths.iter().sum());
        (name, format!("{elements} weights, shards of {}", thousands(first.shard)))
    };
    layout.buckets.chunk_by(same).map(line_of).collect()
}

fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(thousands(7_241_732_096), "7,241,732,096");
        assert_eq!(thousands(12), "12");
    }
}
