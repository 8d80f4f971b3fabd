//! `favonius generate`: a file of prompts answered, in the forms that AlpacaEval and MT-Bench judge.

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use anyhow::Context;
use clap::Args;
use serde_json::{Map, Value, json};

use super::prompts::{self, PromptRow, Question};
use super::speaker::{PlaceArguments, SamplingArguments, Speaker};
use super::stage::Ending;
use crate::data::Message;
use crate::model::sampling::Sampler;
use crate::report::progress::Screen;
use crate::train::state::file::replace_file;

#[derive(Debug, Args)]
pub struct GenerateArguments {
    /// The model: a folder or a hub id
    model: String,
    /// Rows with `prompt`, `messages`, `instruction` (AlpacaEval) or `turns` (MT-Bench): .jsonl, or a
    /// .json list
    prompts: PathBuf,
    /// The answers: .jsonl, or .json for a list (which alpaca_eval reads)
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
    #[arg(long, default_value_t = 512)]
    max_new_tokens: usize,
    /// Prompts that are answered at a time
    #[arg(long, default_value_t = 8)]
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
    let rows = prompts::read(&arguments.prompts)?;
    let speaker = Speaker::load(&arguments.model, &arguments.place)?;
    let screen = Screen::detect(arguments.quiet);
    let started = Instant::now();
    let mut answers = Vec::new();
    for (index, batch) in rows.chunks(arguments.batch_size.max(1)).enumerate() {
        screen.update("answering", answers.len() as u64, rows.len() as u64);
        let first = index * arguments.batch_size.max(1);
        answers.extend(answer_batch(&speaker, arguments, batch, first)?);
    }
    screen.update("answering", rows.len() as u64, rows.len() as u64);
    let name = arguments.name.clone().unwrap_or_else(|| model_name(&arguments.model));
    let written: Vec<Value> =
        rows.iter().zip(answers).map(|(row, turns)| answer_row(row, turns, &name)).collect();
    write(&arguments.out, &written)?;
    screen.line(&format!(
        "{} answers in {}, {:.1} s",
        written.len(),
        arguments.out.display(),
        started.elapsed().as_secs_f64()
    ))?;
    Ok(Ending::Done)
}

/// One answer a turn of each row, turn by turn over the whole batch. `first` is the number of the batch's first row.
fn answer_batch(
    speaker: &Speaker,
    arguments: &GenerateArguments,
    rows: &[PromptRow],
    first: usize,
) -> anyhow::Result<Vec<Vec<String>>> {
    let mut chats: Vec<Vec<Message>> = rows.iter().map(|row| opening(row, arguments)).collect();
    let mut answers: Vec<Vec<String>> = vec![Vec::new(); rows.len()];
    let turns = |row: &PromptRow| match &row.question {
        Question::Chat(_) => 1,
        Question::Turns(turns) => turns.len(),
    };
    for turn in 0..rows.iter().map(turns).max().unwrap_or(0) {
        let asked: Vec<usize> = (0..rows.len()).filter(|row| turn < turns(&rows[*row])).collect();
        let mut ids = Vec::new();
        for &row in &asked {
            if let Question::Turns(turns) = &rows[row].question {
                chats[row].push(Message::new("user", &turns[turn]));
            }
            let encoded = encode(speaker, arguments.raw, &chats[row]);
            ids.push(encoded.with_context(|| format!("row {} of the prompts", first + row + 1))?);
        }
        let prompts = asked.iter().zip(&ids).map(|(row, prompt)| {
            let sampling = arguments.sampling.sampling(temperature(&rows[*row]));
            // Each turn draws anew.
            let number = ((first + row) as u64) << 16 | turn as u64;
            (prompt.as_slice(), Sampler::new(sampling, number))
        });
        let texts = speaker.answer(prompts.collect(), arguments.max_new_tokens)?;
        for (row, text) in asked.into_iter().zip(texts) {
            let text = if arguments.raw { text } else { text.trim().to_owned() };
            chats[row].push(Message::new("assistant", &text));
            answers[row].push(text);
        }
    }
    Ok(answers)
}

fn opening(row: &PromptRow, arguments: &GenerateArguments) -> Vec<Message> {
    let mut chat = match &row.question {
        Question::Chat(messages) => messages.clone(),
        Question::Turns(_) => Vec::new(),
    };
    if let Some(system) = &arguments.system
        && chat.first().is_none_or(|message| message.role != "system")
    {
        chat.insert(0, Message::new("system", system));
    }
    chat
}

fn encode(speaker: &Speaker, raw: bool, chat: &[Message]) -> anyhow::Result<Vec<u32>> {
    match (raw, chat) {
        (true, [one]) => speaker.text_ids(&one.content),
        (true, _) => anyhow::bail!("--raw continues one text; this row is a chat"),
        (false, chat) => speaker.chat_ids(chat),
    }
}

/// FastChat's temperature of an MT-Bench category; greedy for every other row.
fn temperature(row: &PromptRow) -> f64 {
    match (&row.question, row.fields.get("category").and_then(Value::as_str)) {
        (Question::Chat(_), _) => 0.0,
        (_, Some("extraction" | "math" | "coding" | "reasoning")) => 0.0,
        (_, Some("stem" | "humanities")) => 0.1,
        _ => 0.7,
    }
}

/// The row that a judge reads: FastChat's form for turns; for all else the row itself with `output` and `generator`.
fn answer_row(row: &PromptRow, turns: Vec<String>, name: &str) -> Value {
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

fn write(path: &Path, rows: &[Value]) -> anyhow::Result<()> {
    let is_list = path.extension().is_some_and(|extension| extension == "json");
    let text = match is_list {
        true => format!("{:#}\n", Value::from(rows.to_vec())),
        false => rows.iter().map(|row| format!("{row}\n")).collect(),
    };
    Ok(replace_file(path, text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: Value) -> PromptRow {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, value.to_string()).unwrap();
        prompts::read(&path).unwrap().remove(0)
    }

    #[test]
    fn answers_have_the_judges_forms() {
        let alpaca = row(json!({"instruction": "a", "dataset": "koala"}));
        assert_eq!(
            answer_row(&alpaca, vec!["b".into()], "m"),
            json!({"instruction": "a", "dataset": "koala", "output": "b", "generator": "m"})
        );
        let bench = row(json!({"question_id": 81, "category": "stem", "turns": ["a", "b"]}));
        let answer = answer_row(&bench, vec!["c".into(), "d".into()], "m");
        assert_eq!(answer["question_id"], 81);
        assert_eq!(answer["model_id"], "m");
        assert_eq!(answer["choices"], json!([{"index": 0, "turns": ["c", "d"]}]));
        assert_eq!(answer["answer_id"].as_str().unwrap().len(), 22);
        assert!(answer["tstamp"].as_f64().unwrap() > 1e9);
    }

    #[test]
    fn temperatures_are_fastchats() {
        let category = |name: &str| temperature(&row(json!({"category": name, "turns": ["a"]})));
        assert_eq!(category("math"), 0.0);
        assert_eq!(category("humanities"), 0.1);
        assert_eq!(category("writing"), 0.7);
        assert_eq!(temperature(&row(json!({"prompt": "a", "category": "writing"}))), 0.0);
    }
}
