//! `favonius generate`: answers a file of prompts, in the formats that AlpacaEval and MT-Bench
//! judge.
//!
//! Inputs are checked before the first answer, if that is possible without the answers. Finished
//! answers are kept in a second file beside the final one, and the same command continues from it.

pub mod arguments;
mod judges;
mod partial;
mod talk;

use std::time::Instant;

use anyhow::bail;
use serde_json::Value;

use super::ending::Ending;
use super::errors::usage;
use super::out_file;
use crate::data::TemplateValues;
use crate::files::replace::replace_file;
use crate::infer::chat_model::ChatModel;
use crate::infer::prompts::{self, PromptRow, Question};
use crate::report::screen::Screen;
use arguments::GenerateArguments;
use judges::answer_row;
use partial::{Answer, Partial};
use talk::{answer_batch, encode, is_too_long, opening};

/// At most this many of the prompts that are too long are named.
const NAMED: usize = 10;

/// Answers all rows, then writes the file as a whole.
pub fn run(arguments: &GenerateArguments) -> anyhow::Result<Ending> {
    if out_file::is_same(&arguments.out, &arguments.prompts) {
        return usage(format!(
            "--out {}: this file holds the prompts, and the answers would replace it\n\
             help: choose another --out",
            arguments.out.display()
        ));
    }
    let rows = prompts::read(&arguments.prompts)?;
    check_raw(arguments, &rows)?;
    out_file::check_file(&arguments.out)?;
    let model = arguments.place.load(&arguments.model)?;
    check_prompts(&model, arguments, &rows)?;
    let screen = Screen::detect(arguments.quiet);
    let started = Instant::now();
    let (fingerprint, total) = (fingerprint(&model, arguments, &rows)?, rows.len());
    let batch = arguments.batch_size;
    let mut partial = Partial::open(&arguments.out, &fingerprint, total, batch)?;
    if let Some(text) = partial.found(total) {
        screen.line(&text)?;
    }
    while partial.answers.len() < total {
        let first = partial.answers.len();
        screen.update("answering", first as u64, total as u64);
        let next = &rows[first..total.min(first.saturating_add(batch))];
        partial.add(answer_batch(&model, arguments, next, first)?)?;
    }
    screen.update("answering", total as u64, total as u64);
    write_answers(arguments, &rows, &partial.answers)?;
    let unanswered = warn_of_unanswered(&rows, &partial.answers);
    partial.remove()?;
    screen.line(&format!(
        "{total} answers in {}, {:.1} s{unanswered}",
        arguments.out.display(),
        started.elapsed().as_secs_f64()
    ))?;
    Ok(Ending::Done)
}

/// Fails if `--raw` is given and a row, or `--system`, needs the chat template.
fn check_raw(arguments: &GenerateArguments, rows: &[PromptRow]) -> anyhow::Result<()> {
    if !arguments.raw {
        return Ok(());
    }
    if arguments.system.is_some() {
        return usage(
            "--system adds a system message, which needs the chat template; --raw uses none\n\
             help: leave out one of the two",
        );
    }
    let is_one_text = |row: &PromptRow| match &row.question {
        Question::Chat(chat) => chat.len() == 1,
        Question::Turns(turns) => turns.len() == 1,
    };
    if let Some(row) = rows.iter().find(|row| row.values != TemplateValues::default()) {
        bail!(
            "{}: --raw uses no chat template, which `tools` and `chat_template_kwargs` of this row \
             are for\n\
             help: leave out --raw",
            row.place
        );
    }
    if let Some(row) = rows.iter().find(|row| !is_one_text(row)) {
        bail!(
            "{}: --raw continues one text; this row has several messages or turns, which need the \
             chat template\n\
             help: leave out --raw",
            row.place
        );
    }
    Ok(())
}

/// Fails if prompts are too long for the model. Later turns are not checked, because they follow
/// its answers.
fn check_prompts(
    model: &ChatModel,
    arguments: &GenerateArguments,
    rows: &[PromptRow],
) -> anyhow::Result<()> {
    let mut too_long = Vec::new();
    for row in rows {
        match encode(model, arguments.raw, &opening(row, arguments), &row.values) {
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

/// A hash of everything that the answers depend on. The batch size is left out: a run that lacked
/// memory may continue with a smaller one.
fn fingerprint(
    model: &ChatModel,
    arguments: &GenerateArguments,
    rows: &[PromptRow],
) -> anyhow::Result<String> {
    let GenerateArguments { system, raw, max_new_tokens, sampling, place, .. } = arguments;
    let version = env!("CARGO_PKG_VERSION");
    let settings = format!("{version} {system:?} {raw} {max_new_tokens} {sampling:?} {place:?}\n");
    let mut hasher = blake3::Hasher::new();
    hasher.update(&model.fingerprint()?);
    hasher.update(settings.as_bytes());
    for row in rows {
        hasher.update(serde_json::to_string(&row.fields)?.as_bytes());
        hasher.update(b"\n");
    }
    Ok(hasher.finalize().to_hex().to_string())
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
            "{error}\n\
             help: the answers are kept in {}.partial; once the problem is fixed, the same \
             command writes them",
            arguments.out.display()
        );
    }
    Ok(())
}

/// Warns about each row whose last turns were not asked. Returns their number as text for the last
/// line.
fn warn_of_unanswered(rows: &[PromptRow], answers: &[Answer]) -> String {
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
