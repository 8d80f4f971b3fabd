//! `favonius plan`: what a recipe would do, and every default that was filled in.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use super::prepare::{Prepared, Rows, Share, prepare};
use super::stage::Ending;
use crate::model::weights::parameter_shapes;
use crate::parallel::buckets::{Bucket, Layout};
use crate::recipe::{Recipe, RecipeErrors, Stage};
use crate::report::ReporterOptions;
use crate::report::Reporters;
use crate::report::progress::Screen;
use crate::train::steps::Cadence;
use crate::train::walk::{KEPT_GRAPH_BYTES, graph_bytes};

/// Prints the plan of the recipe at `path` on a number of `ranks`.
pub fn run(
    path: &Path,
    stage: Option<Stage>,
    overrides: &[String],
    ranks: usize,
) -> anyhow::Result<Ending> {
    let recipe = load(path, stage, overrides)?;
    let mut reporters = Reporters::new(ReporterOptions {
        output_dir: recipe.output_dir().into(),
        screen: Screen::detect(true),
        tensorboard: false,
        tensorboard_dir: None,
        history: Vec::new(),
    })?;
    let (prepared, rows) = prepare(recipe, Share { ranks, local_rank: 0 }, &mut reporters)?;
    let text = describe(&prepared, &rows);
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(Ending::Done)
}

/// Reads the recipe as the stage that was named, else as the one that its path names and under which
/// it has fewest errors.
fn load(path: &Path, stage: Option<Stage>, overrides: &[String]) -> Result<Recipe, RecipeErrors> {
    if let Some(stage) = stage {
        return Recipe::load(path, stage, overrides);
    }
    let name = path.to_string_lossy().to_lowercase();
    let is_named = |stage: &Stage| {
        let also = if *stage == Stage::Cpo { "simpo" } else { stage.command() };
        name.contains(stage.command()) || name.contains(also)
    };
    let mut order = Stage::ALL.to_vec();
    order.sort_by_key(|stage| !is_named(stage));
    let mut fewest: Option<RecipeErrors> = None;
    for stage in order {
        match Recipe::load(path, stage, overrides) {
            Ok(recipe) => return Ok(recipe),
            Err(errors) => {
                if fewest.as_ref().is_none_or(|least| errors.0.len() < least.0.len()) {
                    fewest = Some(errors);
                }
            }
        }
    }
    Err(fewest.expect("there is at least one stage"))
}

fn describe(prepared: &Prepared, rows: &Rows) -> String {
    let recipe = &prepared.recipe;
    let mut text = format!("{} ({})\n\n", recipe.file.display(), recipe.stage.name());
    section(&mut text, "model", &model_lines(prepared));
    section(&mut text, "data", &data_lines(rows));
    section(&mut text, "steps", &step_lines(prepared));
    let layout = layout(prepared);
    if layout.ranks > 1 {
        section(&mut text, "ranks", &rank_lines(prepared, &layout));
    }
    let title = if layout.ranks > 1 { "memory of a rank" } else { "memory" };
    section(&mut text, title, &memory_lines(prepared, rows, &layout));
    let written: Vec<_> = recipe.written.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    section(&mut text, "written in the recipe", &written);
    let filled: Vec<_> = recipe.filled.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    section(&mut text, "filled in", &filled);
    text
}

type Lines = Vec<(String, String)>;

fn section(text: &mut String, title: &str, lines: &Lines) {
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

fn model_lines(prepared: &Prepared) -> Lines {
    let config = &prepared.config;
    vec![
        line("name", &prepared.recipe.model.model_name_or_path),
        line("architecture", format!("{:?}", config.architecture)),
        line("parameters", thousands(config.parameters())),
        line("layers", config.num_hidden_layers),
        line("width", config.hidden_size),
        line("vocabulary", config.vocab_size),
        line("computes in", format!("{:?}", prepared.dtype)),
    ]
}

fn data_lines(rows: &Rows) -> Lines {
    let [train, test] = rows.counts();
    let [computed, counted] = rows.train_tokens();
    let reports = rows.reports();
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

fn step_lines(prepared: &Prepared) -> Lines {
    let plan = &prepared.plan;
    let cadence = |cadence: Cadence| match cadence {
        Cadence::Never => "never".to_string(),
        Cadence::EpochEnd => "each epoch".to_string(),
        Cadence::Steps(steps) => format!("every {steps} steps"),
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

fn layout(prepared: &Prepared) -> Layout {
    let config = Arc::new(prepared.config.clone());
    let shapes = parameter_shapes(&config);
    let named = shapes.iter().map(|(name, shape)| (name.as_str(), shape.iter().product()));
    Layout::new(named, prepared.plan.ranks, config.tie_word_embeddings)
}

/// Buckets of one size are one line.
fn rank_lines(prepared: &Prepared, layout: &Layout) -> Lines {
    let mut lines: Vec<(String, String)> = Vec::new();
    let same = |a: &Bucket, b: &Bucket| a.lengths == b.lengths;
    for group in layout.buckets.chunk_by(same) {
        let (first, last) = (&group[0], &group[group.len() - 1]);
        let name = match group.len() {
            1 => format!("bucket {}", first.name),
            _ => format!("buckets {} … {}", first.name, last.name),
        };
        let elements = thousands(first.lengths.iter().sum());
        lines.push((name, format!("{elements} weights, shards of {}", thousands(first.shard))));
    }
    let width = prepared.dtype.size();
    let sent = layout.bytes_sent(prepared.plan.accumulation, width);
    lines.push(line("sent by a rank a step", megabytes(sent as f64)));
    lines
}

/// The parts that can be told without running: what is resident, and what a micro-batch of mean
/// length keeps for the way back.
fn memory_lines(prepared: &Prepared, rows: &Rows, layout: &Layout) -> Lines {
    let config = &prepared.config;
    let parameters = config.parameters() as f64;
    let width = if prepared.dtype == burn::tensor::DType::F32 { 4.0 } else { 2.0 };
    let (own, buffers) = match layout.ranks {
        1 => (parameters, 0.0),
        ranks => {
            let largest = layout.buckets.iter().map(|bucket| bucket.shard).max().unwrap_or(0);
            // A bucket on its way out, and one that came in.
            (layout.shard_elements() as f64, (2 * 4 * largest * ranks) as f64)
        }
    };
    let master = if width < 4.0 { 4.0 * own } else { 0.0 };
    let moments = match prepared.recipe.train.optim {
        crate::recipe::Optim::RmsProp => 4.0 * own,
        _ => 8.0 * own,
    };
    let tokens = rows.train_tokens()[0] as f64 / rows.counts()[0].max(1) as f64
        * prepared.plan.micro_batch as f64;
    let layer_inputs = tokens * config.hidden_size as f64 * width;
    let layer_graph = graph_bytes(config, tokens as usize, width as usize) as f64;
    let layers = config.num_hidden_layers as f64;
    let kept = match prepared.recipe.train.gradient_checkpointing {
        true => {
            let graphs = (layers * layer_graph).min(KEPT_GRAPH_BYTES as f64).max(layer_graph);
            layers * layer_inputs + graphs
        }
        false => layers * layer_graph,
    };
    let parts = [
        ("weights", width * parameters + master),
        ("gradients", 4.0 * own + buffers),
        ("optimizer", moments),
        ("activations (mean micro-batch)", kept),
        ("log-prob chunks (at most)", (320 << 20) as f64),
    ];
    let total: f64 = parts.iter().map(|(_, bytes)| bytes).sum();
    let lines = parts.into_iter().chain([("together", total)]);
    lines.map(|(name, bytes)| line(name, megabytes(bytes))).collect()
}

fn megabytes(bytes: f64) -> String {
    if bytes < 1e9 { format!("{:.1} MB", bytes / 1e6) } else { format!("{:.2} GB", bytes / 1e9) }
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
        assert_eq!(megabytes(2.5e9), "2.50 GB");
    }
}
