//! `favonius report`: runs of Favonius or TRL as one HTML page, and as figures.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use super::ending::Ending;
use super::errors::{UsageError, usage};
use super::model_options::PlaceArguments;
use super::out_file;
use super::quantity;
use crate::data::{Message, TemplateValues};
use crate::files::replace::replace_file;
use crate::infer::prompts::{self, Question};
use crate::model::adapter::ModelSource;
use crate::model::adapter::source::Outermost;
use crate::model::weights::WeightsError;
use crate::report::charts::{MOST_OTHERS, charts, left_out};
use crate::report::figures;
use crate::report::page::{Answers, Page};
use crate::report::published;
use crate::report::record::RunRecord;
use crate::report::screen::Screen;
use crate::train::checkpoint;

#[derive(Debug, Args)]
pub struct ReportArguments {
    /// Folders of runs of Favonius or TRL, finished or not, or their trainer_state.json. NAME=RUN
    /// names a run. The others are compared with the first
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<String>,
    /// A published run to draw in the background: zephyr-7b-beta
    #[arg(long, value_name = "NAME")]
    against: Option<String>,
    /// The file of the page
    #[arg(long, default_value = "report.html", value_name = "FILE.html")]
    out: PathBuf,
    /// Also write every chart as SVG and PNG into this folder
    #[arg(long, value_name = "FOLDER")]
    figures: Option<PathBuf>,
    /// Prompts that the models answer on the page, in the formats of `generate`; by default a few
    /// common ones
    #[arg(long, value_name = "PROMPTS.jsonl", conflicts_with = "no_answers")]
    prompts: Option<PathBuf>,
    /// Show no answers of the models
    #[arg(long)]
    no_answers: bool,
    /// Tokens of an answer at most
    #[arg(long, default_value_t = 96, value_name = "N", value_parser = quantity::count)]
    max_new_tokens: usize,
    /// The page's title
    #[arg(long)]
    title: Option<String>,
}

/// The default prompts.
const PROMPTS: [&str; 3] = [
    "What is the capital of France?",
    "Give me three tips for staying healthy.",
    "Write a short story about a dog who finds a key.",
];
/// Larger models answer only if `--prompts` is given, because the answers may take an hour.
const ASKED_PARAMETERS: usize = 1_000_000_000;

/// Reads the runs and writes the page.
pub fn run(arguments: &ReportArguments) -> anyhow::Result<Ending> {
    let screen = Screen::detect(true);
    let mut runs = read(&arguments.runs)?;
    if let Some(name) = &arguments.against {
        runs.push(published::find(name).map_err(UsageError)?);
    }
    let chats = chats(arguments)?;
    let left_out = left_out(&runs);
    if left_out > 0 {
        screen.line(&format!(
            "{left_out} metrics are left out: of those that no trainer of this program logs, the \
             first {MOST_OTHERS} by name are shown"
        ))?;
    }
    // Answers may take long, so paths are checked before.
    out_file::check_file(&arguments.out)?;
    check_page(&arguments.out)?;
    if let Some(folder) = &arguments.figures {
        let made = std::fs::create_dir_all(folder);
        made.with_context(|| format!("cannot create the folder {}", folder.display()))?;
        out_file::check_folder("--figures", folder)?;
    }
    let answers = match arguments.no_answers {
        true => Vec::new(),
        false => answers(arguments, &runs, &chats, &screen)?,
    };
    let page = Page {
        title: arguments.title.clone().unwrap_or_else(|| title(&runs)),
        runs: &runs,
        prompts: &chats.iter().map(|(chat, _)| as_text(chat)).collect::<Vec<_>>(),
        answers: &answers,
        answers_note: format!(
            "The most likely token each time, at most {} tokens.",
            arguments.max_new_tokens
        ),
        sweep: None,
    };
    let html = page.to_html().context("cannot make the page")?;
    replace_file(&arguments.out, html.as_bytes())?;
    screen.line(&format!("wrote {}", arguments.out.display()))?;
    if let Some(folder) = &arguments.figures {
        let written = figures::write(folder, &charts(&runs), page.first_axis())?;
        screen.line(&format!("wrote {} figures into {}", written.len(), folder.display()))?;
    }
    Ok(Ending::Done)
}

/// Fails if `--out` names a file that is no page, such as the record of a run.
fn check_page(out: &Path) -> anyhow::Result<()> {
    let has_extension = |extension: &OsStr| {
        ["html", "htm"].iter().any(|known| extension.eq_ignore_ascii_case(known))
    };
    let is_page = |text: String| text.starts_with("<!doctype html>");
    if out.exists()
        && !out.extension().is_some_and(has_extension)
        && !std::fs::read_to_string(out).is_ok_and(is_page)
    {
        let out = out.display();
        return usage(format!(
            "{out} is not a page: --out would replace it\nhelp: name a file that ends in .html"
        ));
    }
    Ok(())
}

/// A chat that the models answer, with the values of its row for the chat template.
type Asked = (Vec<Message>, TemplateValues);

fn chats(arguments: &ReportArguments) -> anyhow::Result<Vec<Asked>> {
    let one_turn = |text: &str| vec![Message::new("user", text)];
    let Some(path) = &arguments.prompts else {
        return Ok(PROMPTS.map(|text| (one_turn(text), TemplateValues::default())).to_vec());
    };
    let rows = prompts::read(path)?;
    let chats = rows.into_iter().map(|row| match row.question {
        Question::Chat(chat) => (chat, row.values),
        Question::Turns(turns) => (one_turn(&turns[0]), row.values),
    });
    Ok(chats.collect())
}

fn as_text(chat: &[Message]) -> String {
    match chat {
        [one] => one.content.clone(),
        all => all
            .iter()
            .map(|message| format!("{}: {}", message.role, message.content))
            .collect::<Vec<_>>()
            .join("\n"),
    }
}

/// The answers of all runs with a model that can answer. A line on the screen names the other runs.
fn answers(
    arguments: &ReportArguments,
    runs: &[RunRecord],
    chats: &[Asked],
    screen: &Screen,
) -> anyhow::Result<Vec<Answers>> {
    let mut answers = Vec::new();
    for run in runs.iter().filter(|run| !run.is_published) {
        let Some(folder) = model_folder(&run.folder) else {
            let text = "no answers: neither its folder nor a checkpoint holds weights";
            screen.line(&format!("{}: {text}", run.name))?;
            continue;
        };
        if let Some(reason) = reason_not_to_ask(&folder, arguments.prompts.is_some()) {
            screen.line(&format!("{}: no answers: {reason}", run.name))?;
            continue;
        }
        let asked = || -> anyhow::Result<Vec<String>> {
            let folder = folder.display().to_string();
            let model = PlaceArguments::default().load(&folder)?;
            let ids = chats.iter().map(|(chat, values)| model.chat_ids_with(chat, values));
            let ids = ids.collect::<Result<Vec<_>, _>>()?;
            let texts = model.answer_greedily(&ids, arguments.max_new_tokens)?;
            Ok(texts.into_iter().map(|text| text.trim().to_owned()).collect())
        };
        match asked() {
            Ok(texts) => answers.push(Answers { model: run.name.clone(), texts }),
            // The page shows the records even if a model cannot be loaded.
            Err(error) => screen.line(&format!("{}: no answers: {error:#}", run.name))?,
        }
    }
    Ok(answers)
}

/// The folder with the weights of a run: its own or, before the run is finished, that of the newest
/// checkpoint with weights.
fn model_folder(run: &Path) -> Option<PathBuf> {
    let names = ["model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"];
    let has_weights = |folder: &Path| names.iter().any(|name| folder.join(name).is_file());
    let checkpoints = checkpoint::list(run).into_iter().map(|(_, folder)| folder);
    std::iter::once(run.to_path_buf()).chain(checkpoints).find(|folder| has_weights(folder))
}

/// Why a model is not asked; `is_wanted` if the user gave prompts.
fn reason_not_to_ask(folder: &Path, is_wanted: bool) -> Option<String> {
    let source = ModelSource::of(folder).map_err(WeightsError::from);
    let config = source.and_then(|source| Ok(source.config(Outermost::Merged)?));
    let config = match config {
        Ok(config) => config,
        Err(error) => return Some(error.to_string()),
    };
    let is_large = config.parameters() > ASKED_PARAMETERS;
    (is_large && !is_wanted).then(|| "the model is large; with --prompts it answers".into())
}

fn read(arguments: &[String]) -> anyhow::Result<Vec<RunRecord>> {
    let named: Vec<(Option<&str>, &Path)> = arguments.iter().map(|text| split_name(text)).collect();
    let paths: Vec<&Path> = named.iter().map(|(_, path)| *path).collect();
    let runs = named.iter().map(|(name, path)| {
        let name = name.map_or_else(|| name_among(path, &paths), str::to_owned);
        Ok(RunRecord::read(path, name)?)
    });
    runs.collect()
}

/// Splits `NAME=RUN`. An existing path that contains `=` has no name.
fn split_name(argument: &str) -> (Option<&str>, &Path) {
    match argument.split_once('=') {
        Some((name, path)) if !name.is_empty() && !Path::new(argument).exists() => {
            (Some(name), Path::new(path))
        }
        _ => (None, Path::new(argument)),
    }
}

/// The shortest end of a run's path that differs from the ends of the other paths.
fn name_among(path: &Path, all: &[&Path]) -> String {
    let parts = |path: &Path| -> Vec<String> {
        let folder = match path.file_name() {
            Some(name) if name == "trainer_state.json" => path.parent().unwrap_or(path),
            _ => path,
        };
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.into());
        let names = folder.components().filter_map(|part| match part {
            std::path::Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
            _ => None,
        });
        names.collect()
    };
    let own = parts(path);
    let tail =
        |parts: &[String], count: usize| parts[parts.len().saturating_sub(count)..].join("/");
    let others: Vec<Vec<String>> =
        all.iter().filter(|other| **other != path).map(|other| parts(other)).collect();
    let enough = (1..own.len().max(1)).find(|count| {
        let name = tail(&own, *count);
        others.iter().all(|other| tail(other, *count) != name)
    });
    tail(&own, enough.unwrap_or(own.len()))
}

fn title(runs: &[RunRecord]) -> String {
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    match names.as_slice() {
        [one] => (*one).to_owned(),
        [one, two] => format!("{one} and {two}"),
        [one, rest @ ..] => format!("{one} and {} other runs", rest.len()),
        [] => "No runs".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_runs_are_short_and_different() {
        let paths = ["/a/x/dpo", "/a/y/dpo/", "/a/sft/trainer_state.json"].map(Path::new);
        let names = paths.map(|path| name_among(path, &paths));
        assert_eq!(names, ["x/dpo", "y/dpo", "sft"]);
    }

    #[test]
    fn an_unfinished_run_answers_with_its_newest_checkpoint_with_weights() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!(model_folder(run.path()), None);
        let folder = |name: &str| run.path().join(name);
        for (name, file) in [
            ("checkpoint-9", "model.safetensors"),
            ("checkpoint-10", "model.safetensors.index.json"),
            ("checkpoint-11", "trainer_state.json"),
        ] {
            std::fs::create_dir(folder(name)).unwrap();
            std::fs::write(folder(name).join(file), "").unwrap();
        }
        assert_eq!(model_folder(run.path()), Some(folder("checkpoint-10")));
        std::fs::write(folder("model.safetensors"), "").unwrap();
        assert_eq!(model_folder(run.path()), Some(run.path().to_path_buf()));
    }

    #[test]
    fn only_a_page_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["trainer_state.json", "html"] {
            let path = folder.path().join(name);
            check_page(&path).unwrap();
            std::fs::write(&path, "{}").unwrap();
            let error = check_page(&path).unwrap_err();
            assert!(error.is::<UsageError>() && error.to_string().contains("is not a page"));
        }
        for name in ["page.html", "page.HTM", "page"] {
            std::fs::write(folder.path().join(name), "<!doctype html>\n").unwrap();
            check_page(&folder.path().join(name)).unwrap();
        }
    }

    #[test]
    fn a_run_may_have_a_name_before_it() {
        assert_eq!(split_name("TRL=runs/a"), (Some("TRL"), Path::new("runs/a")));
        assert_eq!(split_name("runs/a"), (None, Path::new("runs/a")));
    }
}
