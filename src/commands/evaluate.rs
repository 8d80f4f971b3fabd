//! `favonius evaluate`: the scores of a model on benchmark tasks, in the form of
//! lm-evaluation-harness.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use clap::builder::PossibleValuesParser;

use super::ending::Ending;
use super::errors::usage;
use super::launch::Launch;
use super::model_options::PlaceArguments;
use super::observers::screen_of;
use super::out_file::{check_folder, is_same};
use super::quantity;
use super::recipe_arguments::parse_timeout;
use super::signals::stop_flag;
use crate::eval::{BATCH_TOKENS, Definition};
use crate::infer::chat_model::ChatModel;
use crate::parallel::Ranks;
use crate::parallel::environment::Place;
use crate::recipe::DeviceChoice;
use crate::report::scores::{FILE, FOLDER};
use crate::report::{ReporterOptions, Reporters};
use crate::run::evaluation::{Target, TaskChoice, evaluate, record_scores};
use crate::run::{Context, mark};

#[derive(Debug, Args)]
pub struct EvaluateArguments {
    /// The model: a folder, a hub id, or the folder of a finished run
    model: String,
    /// Tasks and groups, separated by commas: arc_challenge, arc_easy, hellaswag, mmlu,
    /// mmlu_anatomy …, truthfulqa_mc1, truthfulqa_mc2, winogrande, gsm8k, drop, openllm
    #[arg(long, default_value = "openllm", value_name = "LIST", value_delimiter = ',')]
    tasks: Vec<String>,
    /// Evaluate only the first N documents of each task
    #[arg(long, value_name = "N", value_parser = quantity::count)]
    limit: Option<usize>,
    /// Examples before each question, instead of the task's own number
    #[arg(long = "num_fewshot", alias = "num-fewshot", value_name = "N")]
    num_fewshot: Option<usize>,
    /// Whose prompts and rules the tasks follow
    #[arg(
        long,
        default_value = "lm-eval",
        value_name = "NAME",
        value_parser = PossibleValuesParser::new(["lm-eval", "leaderboard"])
    )]
    definition: String,
    /// Tokens of a batch at most; fewer need less memory
    #[arg(long, default_value_t = BATCH_TOKENS, value_name = "N", value_parser = quantity::count)]
    batch_tokens: usize,
    /// The folder of the results; by default `eval` in the folder of a finished run, else
    /// `evaluation/MODEL`. It keeps the answers, and the same command continues from them
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The seed of the examples in the definition `lm-eval`
    #[arg(long, default_value_t = 1234, value_name = "N")]
    seed: i64,
    /// A folder that holds data sets under their hub ids; others come from the hub's cache or the
    /// hub
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// A folder with task files (.yaml) of one's own
    #[arg(long = "include_path", alias = "include-path", value_name = "DIR")]
    include_path: Option<PathBuf>,
    /// Ask in the form of the model's chat template
    #[arg(long = "apply_chat_template", alias = "apply-chat-template")]
    apply_chat_template: bool,
    /// With --apply_chat_template: each example is a turn of the conversation
    #[arg(
        long = "fewshot_as_multiturn",
        alias = "fewshot-as-multiturn",
        requires = "apply_chat_template"
    )]
    fewshot_as_multiturn: bool,
    #[command(flatten)]
    place: PlaceArguments,
    /// Print plain lines without progress bars
    #[arg(long, short)]
    quiet: bool,
    /// How long ranks wait for each other in one collective operation
    #[arg(long, default_value = "1800", value_name = "SECONDS", value_parser = parse_timeout)]
    collective_timeout: Duration,
}

impl EvaluateArguments {
    /// The folder of the results.
    fn folder(&self) -> PathBuf {
        let model = Path::new(&self.model);
        match &self.out {
            Some(out) => out.clone(),
            None if mark::is_finished(model) => model.join(FOLDER),
            None => {
                let path = std::path::absolute(model).unwrap_or_else(|_| model.into());
                let name = path.file_name().map(ToOwned::to_owned);
                Path::new("evaluation").join(name.unwrap_or_else(|| "model".into()))
            }
        }
    }

    fn choice(&self) -> TaskChoice {
        let definition = match self.definition.as_str() {
            "leaderboard" => Definition::Leaderboard,
            _ => Definition::LmEval,
        };
        TaskChoice {
            tasks: self.tasks.iter().map(|name| name.trim().to_owned()).collect(),
            definition,
            limit: self.limit,
            num_fewshot: self.num_fewshot,
            seed: self.seed,
            data: self.data.clone(),
            include_path: self.include_path.clone(),
            apply_chat_template: self.apply_chat_template,
            fewshot_as_multiturn: self.fewshot_as_multiturn,
            batch_tokens: self.batch_tokens,
        }
    }
}

/// Evaluates the model, writes the results and prints the table.
pub fn run(arguments: &EvaluateArguments, place: Place) -> anyhow::Result<Ending> {
    for (option, folder) in
        [("--data", &arguments.data), ("--include_path", &arguments.include_path)]
    {
        if let Some(folder) = folder.as_ref().filter(|folder| !folder.is_dir()) {
            return usage(format!("{option} {}: no such folder", folder.display()));
        }
    }
    let launch = Launch { place, timeout: arguments.collective_timeout };
    let first_gpu = DeviceChoice::from_name(&arguments.place.device).and_then(DeviceChoice::gpu);
    launch.together(first_gpu, |ranks| evaluate_on(arguments, ranks))
}

fn evaluate_on(arguments: &EvaluateArguments, ranks: &Ranks) -> anyhow::Result<Ending> {
    let screen = screen_of(ranks, arguments.quiet);
    let folder = arguments.folder();
    ranks.decide("the folder of the results", || {
        if let Err(error) = std::fs::create_dir_all(&folder) {
            let folder = folder.display();
            bail!("--out {folder}: the folder cannot be made: {error}\nhelp: choose another --out");
        }
        check_folder("--out", &folder)
    })?;
    let choice = arguments.choice();
    let device = DeviceChoice::from_name(&arguments.place.device);
    let device = device.map(|device| device.of_rank(ranks.local_rank()).to_string());
    let device = device.unwrap_or_else(|| arguments.place.device.clone());
    let chat = ChatModel::load(&arguments.model, &device, arguments.place.dtype)?;
    let mut observer = Reporters::new(ReporterOptions {
        output_dir: folder.clone(),
        screen: screen.clone(),
        tensorboard: false,
        tensorboard_dir: None,
    });
    let stop = stop_flag()?;
    let context = Context { ranks, stop: &stop };
    let target = Target { name: &arguments.model, chat: &chat, device: &device, folder: &folder };
    let Some(results) = evaluate(&target, &choice, &context, &mut observer)? else {
        return Ok(Ending::Interrupted);
    };
    if ranks.is_first() {
        let model = Path::new(&arguments.model);
        if mark::is_finished(model) && is_same(&folder, &model.join(FOLDER)) {
            record_scores(model)?;
        }
        screen.line(&format!("\n{}\n{}", results.table(), results.summary()))?;
        screen.line(&format!("the results are in {}", folder.join(FILE).display()))?;
    }
    Ok(Ending::Done)
}
