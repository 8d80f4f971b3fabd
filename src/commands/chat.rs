//! `favonius chat`: a conversation in the terminal. Answers appear token by token.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{Context, bail};
use clap::Args;

use super::ending::Ending;
use super::model_options::{PlaceArguments, SamplingArguments};
use super::quantity;
use crate::files::printable::Printable;
use crate::infer::conversation::{Conversation, ConversationSettings, SayError};

/// The temperature without `--temperature`. At 1 small models drift away from the question.
const TEMPERATURE: f64 = 0.7;
const HELP: &str =
    "/clear starts a new conversation; /quit or the end of the input ends the program";

#[derive(Debug, Args)]
pub struct ChatArguments {
    /// The model: a folder or a hub id
    model: String,
    /// A system message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Tokens of an answer at most
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = quantity::count)]
    max_new_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArguments,
    #[command(flatten)]
    place: PlaceArguments,
}

impl ChatArguments {
    fn settings(&self) -> ConversationSettings {
        ConversationSettings {
            system: self.system.clone(),
            max_new_tokens: self.max_new_tokens,
            sampling: self.sampling.sampling(TEMPERATURE),
        }
    }
}

/// Answers until the input ends. If stdin is no terminal, each line of it is a message. Only
/// answers go to stdout.
pub fn run(arguments: &ChatArguments) -> anyhow::Result<Ending> {
    let model = arguments.place.load(&arguments.model)?;
    let mut conversation = Conversation::new(&model, arguments.settings());
    let (input, mut out, mut beside) = (io::stdin(), io::stdout(), io::stderr());
    match input.is_terminal() {
        true => {
            let (mut out, mut beside) = (Printable(out), Printable(beside));
            talk(&mut conversation, input.lock(), &mut out, &mut beside)?;
        }
        false => answer_lines(&mut conversation, input.lock(), &mut out, &mut beside)?,
    }
    Ok(Ending::Done)
}

/// A conversation with a person at a terminal. Everything but the answers goes to `beside`.
fn talk(
    conversation: &mut Conversation,
    input: impl BufRead,
    out: &mut impl Write,
    beside: &mut impl Write,
) -> anyhow::Result<()> {
    writeln!(beside, "{HELP}")?;
    let mut lines = input.lines();
    loop {
        write!(beside, "\n> ")?;
        beside.flush()?;
        let Some(line) = lines.next().transpose()? else { return Ok(()) };
        match line.trim() {
            "" => {}
            "/quit" => return Ok(()),
            "/clear" => conversation.clear(),
            text if text.starts_with('/') => writeln!(beside, "{HELP}")?,
            text => match conversation.say(text, out) {
                Ok(()) => writeln!(out)?,
                // The conversation continues after a message that is too long.
                Err(error) => writeln!(beside, "{error:#}")?,
            },
        }
    }
}

/// Answers each line; lines that begin with `/` are messages too. Each line has one answer in the
/// output, in order: an empty one if the line is blank, or if it cannot be answered. In that case
/// the error goes to `beside`.
///
/// # Errors
/// Input or output fails; or, after the last line, some lines could not be answered.
fn answer_lines(
    conversation: &mut Conversation,
    input: impl BufRead,
    out: &mut impl Write,
    beside: &mut impl Write,
) -> anyhow::Result<()> {
    let mut unanswered = 0;
    for (number, line) in (1_usize..).zip(input.split(b'\n')) {
        match answer_line(conversation, &line?, out) {
            Ok(()) => {}
            Err(error) if is_write_error(&error) => return Err(error),
            Err(error) => {
                writeln!(beside, "line {number}: {error:#}")?;
                unanswered += 1;
            }
        }
        writeln!(out)?;
    }
    match unanswered {
        0 => Ok(()),
        1 => bail!("1 line has no answer"),
        count => bail!("{count} lines have no answer"),
    }
}

/// Answers a line; a blank line has no answer.
fn answer_line(
    conversation: &mut Conversation,
    line: &[u8],
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let text = std::str::from_utf8(line).context("this is not UTF-8")?.trim();
    if !text.is_empty() {
        conversation.say(text, out)?;
    }
    Ok(())
}

fn is_write_error(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(SayError::Write(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toy::world;

    #[test]
    fn commands_work_only_in_a_terminal() {
        let folder = tempfile::tempdir().unwrap();
        let world = world::write(folder.path(), 42).unwrap();
        let arguments = ChatArguments {
            model: world.base_model.display().to_string(),
            system: None,
            max_new_tokens: 6,
            sampling: SamplingArguments { temperature: Some(0.0), top_k: 0, top_p: 1.0, seed: 0 },
            place: PlaceArguments::default(),
        };
        let model = arguments.place.load(&arguments.model).unwrap();
        let said = |lines: &[&str]| {
            let mut out = Vec::new();
            let mut conversation = Conversation::new(&model, arguments.settings());
            let input = lines.join("\n");
            answer_lines(&mut conversation, input.as_bytes(), &mut out, &mut io::sink()).unwrap();
            String::from_utf8(out).unwrap()
        };
        let (mut out, mut beside) = (Vec::new(), Vec::new());
        let typed = "What is a cow?\n\n/help\n/clear\nWhat is a cow?\n/quit\nWhat is coal?\n";
        let mut conversation = Conversation::new(&model, arguments.settings());
        talk(&mut conversation, typed.as_bytes(), &mut out, &mut beside).unwrap();
        let answer = said(&["What is a cow?"]);
        assert_eq!(String::from_utf8(out).unwrap(), answer.repeat(2));
        assert_eq!(String::from_utf8(beside).unwrap().matches(HELP).count(), 2);
        assert_eq!(conversation.messages().len(), 2);

        assert_eq!(said(&["", "What is a cow?"]), format!("\n{answer}"));
        let mut conversation = Conversation::new(&model, arguments.settings());
        let input = "/quit\n/clear\n".as_bytes();
        answer_lines(&mut conversation, input, &mut io::sink(), &mut io::sink()).unwrap();
        let texts: Vec<&str> =
            conversation.messages().iter().map(|message| message.content.as_str()).collect();
        assert_eq!((texts.len(), texts[0], texts[2]), (4, "/quit", "/clear"));

        // The lines after one that cannot be answered are answered.
        let mut input = b"What is a cow?\r\n\xff\xfe\n".to_vec();
        input.extend_from_slice("cow ".repeat(400).as_bytes());
        input.extend_from_slice(b"\nWhat is coal?\n");
        let (mut out, mut beside) = (Vec::new(), Vec::new());
        let mut conversation = Conversation::new(&model, arguments.settings());
        let ended = answer_lines(&mut conversation, input.as_slice(), &mut out, &mut beside);
        assert_eq!(ended.unwrap_err().to_string(), "2 lines have no answer");
        let both = said(&["What is a cow?", "What is coal?"]);
        let last = both.strip_prefix(&answer).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), format!("{answer}\n\n{last}"));
        let errors = String::from_utf8(beside).unwrap();
        assert!(errors.starts_with("line 2: this is not UTF-8: "), "{errors}");
        assert!(errors.contains("\nline 3: the prompt has "), "{errors}");
    }
}
