//! `favonius generate`: a file of prompts answered, in the forms that AlpacaEval and MT-Bench judge.
//!
//! Everything that can be known to be wrong is said before the first answer. Answers are kept in a file beside theirs as they
//! come; the same command goes on from there.

mod partial;
mod talk;

use std::path::PathBuf;
use std::time::{Instant, SystemTime};

use anyhow::bail;
use clap::Args;
use serde_json::{Map, Value, json};

use super::out_file;
use super::{parse_count, usage};
use crate::commands::ending::Ending;
use crate::commands::model_options::{PlaceArguments, SamplingArguments};
use crate::files::replace::replace_file;
use crate::infer::chat_model::ChatModel;
use crate::infer::prompts::{self, PromptRow, Question};
use crate::report::screen::Screen;
use partial::{Answer, Partial};
use talk::{answer_batch, encode, is_too_long, opening};

/// So many of the prompts that are too long are named.
const NAMED: usize = 10;

#[derive(Debug, Args)]
pub struct GenerateArguments {
    /// The model: a folder or a hub id
    model: String,
    /// Rows with `prompt`, `messages`, `instruction` (AlpacaEval) or `turns` (MT-Bench): .jsonl, or a
    /// .json list
    prompts: PathBuf,
    /// The answers: .jsonl, or .json for a list (which alpaca_eval reads). FILE.partial keeps those that
    /// are finished until all are: the same command goes on from there
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// What the answers call the model; its own name where not given
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// A system message for every chat that has none
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Continue each prompt as it stands, without the chat template
    #[arg(long)]
    raw: bool,
    #[arg(long, default_value_t = 512, value_parser = parse_count)]
    max_new_tokens: usize,
    /// Prompts that are answered at a time
    #[arg(long, default_value_t = 8, value_parser = parse_count)]
    batch_size: usize,
    #[command(flatten)]
    sampling: SamplingArguments,
    #[command(flatten)]
    place: PlaceArguments,
    /// No progress bar
    #[arg(long)]
    quiet: bool,
}

/// Answers all rows and writes the file, whole or not at all.
pub fn run(arguments: &GenerateArguments) -> anyhow::Result<Ending> {
    if out_file::is_same(&arguments.out, &arguments.prompts) {
        return usage(format!(
            "--out {}: this file holds the prompts, and the answers would replace it\nhelp: choose another --out",
            arguments.out.display()
        ));
    }
    let rows = prompts::read(&arguments.prompts)?;
    check_raw(arguments, &rows)?;
    out_file::check_file(&arguments.out)?;
    let speaker = arguments.place.load(&arguments.model)?;
    check_prompts(&speaker, arguments, &rows)?;
    let screen = Screen::detect(arguments.quiet);
    let started = Instant::now();
    let (fingerprint, total) = (fingerprint(&speaker, arguments, &rows)?, rows.len());
    let batch = arguments.batch_size;
    let mut partial = Partial::open(&arguments.out, &fingerprint, total, batch)?;
    if let Some(text) = partial.found(total) {
        screen.line(&text)?;
    }
    while partial.answers.len() < total {
        let first = partial.answers.len();
        screen.update("answering", first as u64, total as u64);
        let next = &rows[first..total.min(first.saturating_add(batch))];
        partial.add(answer_batch(&speaker, arguments, next, first)?)?;
    }
    screen.update("answering", total as u64, total as u64);
    write_answers(arguments, &rows, &partial.answers)?;
    let unanswered = tell_unanswered(&rows, &partial.answers);
    partial.remove()?;
    screen.line(&format!(
        "{total} answers in {}, {:.1} s{unanswered}",
        arguments.out.display(),
        started.elapsed().as_secs_f64()
    ))?;
    Ok(Ending::Done)
}

/// Refuses what cannot be continued without the chat template.
fn check_raw(arguments: &GenerateArguments, rows: &[PromptRow]) -> anyhow::Result<()> {
    if !arguments.raw {
        return Ok(());
    }
    if arguments.system.is_some() {
        return usage(
            "--system gives a system message, which needs the chat template; --raw goes without it\nhelp: leave out one of the two",
        );
    }
    let is_one_text = |row: &PromptRow| match &row.question {
        Question::Chat(chat) => chat.len() == 1,
        Question::Turns(turns) => turns.len() == 1,
    };
    if let Some(row) = rows.iter().find(|row| !is_one_text(row)) {
        bail!(
            "{}: --raw continues one text; this row has several messages or turns, which need the chat template\nhelp: leave out --raw",
            row.place
        );
    }
    Ok(())
}

/// Refuses prompts that the model cannot take. Later turns depend on its answers.
fn check_prompts(
    speaker: &ChatModel,
    arguments: &GenerateArguments,
    rows: &[PromptRow],
) -> anyhow::Result<()> {
    let mut too_long = Vec::new();
    for row in rows {
        match encode(speaker, arguments.raw, &opening(row, arguments)) {
            Ok(_) => {}
            Err(error) if is_too_long(&error) => {
                too_long.push(format!("{}: {error}", row.place));
            }
            Err(error) => return Err(error.context(row.place.clone())),
        }
    }
    if too_long.is_empty() {
        return Ok(());
    }
    let more = too_long.len().saturating_sub(NAMED);
    too_long.truncate(NAMED);
    if more > 0 {
        too_long.push(format!("and {more} more"));
    }
    bail!("{}\nhelp: shorten these prompts, or leave them out", too_long.join("\n"))
}

/// A hash of all that decides the answers. The batch size does not: a run that lacked memory may go on with a smaller one.
fn fingerprint(
    speaker: &ChatModel,
    arguments: &GenerateArguments,
    rows: &[PromptRow],
) -> anyhow::Result<String> {
    let GenerateArguments { system, raw, max_new_tokens, sampling, place, .. } = arguments;
    let version = env!("CARGO_PKG_VERSION");
    let settings = format!("{version} {system:?} {raw} {max_new_tokens} {sampling:?} {place:?}\n");
    let mut hasher = blake3::Hasher::new();
    hasher.update(&speaker.fingerprint()?);
    hasher.update(settings.as_bytes());
    for row in rows {
        hasher.update(serde_json::to_string(&row.fields)?.as_bytes());
        hasher.update(b"\n");
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// The row that a judge reads: FastChat's form for turns; for all else the row itself with `output` and `generator`.
fn answer_row(row: &PromptRow, turns: &[String], name: &str) -> Value {
    match &row.question {
        Question::Turns(_) => {
            let question = row.fields.get("question_id").cloned().unwrap_or(Value::Null);
            let id = blake3::hash(format!("{name} {question} {turns:?}").as_bytes());
            let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            json!({
                "question_id": question,
                "answer_id": id.to_hex()[..22],
                "model_id": name,
                "choices": [{"index": 0, "turns": turns}],
                "tstamp": seconds.map_or(0.0, |seconds| seconds.as_secs_f64()),
            })
        }
        Question::Chat(_) => {
            let mut fields: Map<String, Value> = row.fields.clone();
            fields.insert("output".into(), turns.concat().into());
            fields.insert("generator".into(), name.into());
            Value::Object(fields)
        }
    }
}

/// The last part of a folder or hub id.
fn model_name(model: &str) -> String {
    let path = std::path::absolute(model).unwrap_or_else(|_| model.into());
    path.file_name().map_or_else(|| model.to_owned(), |name| name.to_string_lossy().into_owned())
}

fn write_answers(
    arguments: &GenerateArguments,
    rows: &[PromptRow],
    answers: &[Answer],
) -> anyhow::Result<()> {
    let name = arguments.name.clone().unwrap_or_else(|| model_name(&arguments.model));
    let rows = rows.iter().zip(answers).map(|(row, answer)| answer_row(row, &answer.turns, &name));
    let is_list = arguments.out.extension().is_some_and(|extension| extension == "json");
    let text = match is_list {
        true => format!("{:#}\n", Value::from(rows.collect::<Vec<_>>())),
        false => rows.map(|row| format!("{row}\n")).collect(),
    };
    if let Err(error) = replace_file(&arguments.out, text.as_bytes()) {
        bail!(
            "{error}\nhelp: the answers are kept in {}.partial; when that is mended, the same command writes them",
            arguments.out.display()
        );
    }
    Ok(())
}

/// Warns of each row whose last turns were not asked. Returns what the last line says of them.
fn tell_unanswered(rows: &[PromptRow], answers: &[Answer]) -> String {
    let mut count = 0;
    for (row, answer) in rows.iter().zip(answers) {
        if let Some(reason) = &answer.unanswered {
            tracing::warn!("{}: {reason}", row.place);
            count += 1;
        }
    }
    match count {
        0 => String::new(),
        _ => format!("; in {count} of them the last turns had no room and are empty"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file's only row.
    pub(super) fn row(value: Value) -> PromptRow {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, value.to_string()).unwrap();
        prompts::read(&path).unwrap().remove(0)
    }

    #[test]
    fn answers_have_the_judges_forms() {
        let alpaca = row(json!({"instruction": "a", "dataset": "koala"}));
        assert_eq!(
            answer_row(&alpaca, &["b".into()], "m"),
            json!({"instruction": "a", "dataset": "koala", "output": "b", "generator": "m"})
        );
        let bench = row(json!({"question_id": 81, "category": "stem", "turns": ["a", "b"]}));
        let answer = answer_row(&bench, &["c".into(), "d".into()], "m");
        assert_eq!(answer["question_id"], 81);
        assert_eq!(answer["model_id"], "m");
        assert_eq!(answer["choices"], json!([{"index": 0, "turns": ["c", "d"]}]));
        assert_eq!(answer["answer_id"].as_str().unwrap().len(), 22);
        assert!(answer["tstamp"].as_f64().unwrap() > 1e9);
    }
}
