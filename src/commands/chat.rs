//! `favonius chat`: a conversation in the terminal, answers as they come.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{Context, bail};
use clap::Args;

use super::ending::Ending;
use super::model_options::{PlaceArguments, SamplingArguments};
use super::quantity;
use crate::data::{Message, Tokenizer};
use crate::infer::chat_model::ChatModel;
use crate::infer::kv_cache::KeyValueCache;
use crate::infer::sampling::Sampler;

/// Where `--temperature` is not given: small models wander at 1.
const TEMPERATURE: f64 = 0.7;
const HELP: &str = "/clear begins anew, /quit or the end of the input leaves";

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

/// Talks until the input ends. Without a terminal each line of stdin is a message. Only answers go to stdout.
pub fn run(arguments: &ChatArguments) -> anyhow::Result<Ending> {
    let speaker = arguments.place.load(&arguments.model)?;
    let mut conversation = Conversation::new(&speaker, arguments);
    let (input, mut out, mut beside) = (io::stdin(), io::stdout(), io::stderr());
    match input.is_terminal() {
        true => talk(&mut conversation, input.lock(), &mut out, &mut beside)?,
        false => answer_lines(&mut conversation, input.lock(), &mut out, &mut beside)?,
    }
    Ok(Ending::Done)
}

/// A conversation with somebody who types. What is no answer goes to `beside`.
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
                // A message that is too long is no reason to lose the conversation.
                Err(error) => writeln!(beside, "{error:#}")?,
            },
        }
    }
}

/// Answers each line, whatever it begins with. The answer to a blank one is blank, as is that to one that cannot be asked,
/// which `beside` is told: the order stays that of the lines.
///
/// # Errors
/// What cannot be read or written, at once; lines without an answer, in the end.
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
            Err(error) if error.is::<io::Error>() => return Err(error),
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

/// Answers a line, a blank one with nothing.
fn answer_line(
    conversation: &mut Conversation,
    line: &[u8],
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let text = std::str::from_utf8(line).context("this is not UTF-8")?.trim();
    if text.is_empty() { Ok(()) } else { conversation.say(text, out) }
}

/// Messages so far, and what the model has read of them.
struct Conversation<'a> {
    speaker: &'a ChatModel,
    arguments: &'a ChatArguments,
    chat: Vec<Message>,
    cache: KeyValueCache,
    /// The tokens in the cache.
    read: Vec<u32>,
    sampler: Sampler,
}

impl<'a> Conversation<'a> {
    fn new(speaker: &'a ChatModel, arguments: &'a ChatArguments) -> Self {
        Self {
            speaker,
            arguments,
            chat: opening(arguments),
            cache: KeyValueCache::new(&speaker.model.config, 1),
            read: Vec::new(),
            sampler: Sampler::new(arguments.sampling.sampling(TEMPERATURE), 0),
        }
    }

    fn clear(&mut self) {
        self.chat = opening(self.arguments);
    }

    /// Answers `text`, writing as it goes.
    fn say(&mut self, text: &str, out: &mut impl Write) -> anyhow::Result<()> {
        self.chat.push(Message::new("user", text));
        match self.answer(out) {
            Ok(answer) => {
                self.chat.push(Message::new("assistant", answer));
                Ok(())
            }
            Err(error) => {
                self.chat.pop();
                Err(error)
            }
        }
    }

    fn answer(&mut self, out: &mut impl Write) -> anyhow::Result<String> {
        let prompt = self.speaker.chat_ids(&self.chat)?;
        let mut unread = self.unread(&prompt);
        self.speaker.prepare(&mut self.sampler, &prompt);
        let mut answer = Answer::default();
        for _ in 0..self.speaker.room(prompt.len(), self.arguments.max_new_tokens) {
            let samplers = std::slice::from_mut(&mut self.sampler);
            let next = self.speaker.model.next_tokens(&mut self.cache, &[(0, &unread)], samplers);
            self.read.append(&mut unread);
            let id = next[0];
            if self.speaker.eos.contains(&id) {
                break;
            }
            unread.push(id);
            out.write_all(answer.push(id, &self.speaker.tokenizer)?.as_bytes())?;
            out.flush()?;
        }
        out.write_all(answer.rest().as_bytes())?;
        out.flush()?;
        Ok(answer.text.trim().to_owned())
    }

    /// What of `prompt` the model has not read yet, at least its last token.
    fn unread(&mut self, prompt: &[u32]) -> Vec<u32> {
        let same = self.read.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let known = self.cache.truncate(0, same.min(prompt.len() - 1));
        self.read.truncate(known);
        prompt[known..].to_vec()
    }
}

fn opening(arguments: &ChatArguments) -> Vec<Message> {
    arguments.system.iter().map(|text| Message::new("system", text)).collect()
}

/// An answer that grows by tokens. A token may be part of a character: its text waits for the rest.
#[derive(Default)]
struct Answer {
    ids: Vec<u32>,
    text: String,
    /// Bytes of `text` that were handed out.
    told: usize,
}

impl Answer {
    /// The text that this token completes.
    fn push(&mut self, id: u32, tokenizer: &Tokenizer) -> anyhow::Result<&str> {
        self.ids.push(id);
        self.text = tokenizer.decode(&self.ids, true)?;
        let whole = self.text.trim_end_matches('\u{fffd}').len();
        Ok(self.tell(whole))
    }

    /// What was held back.
    fn rest(&mut self) -> &str {
        self.tell(self.text.len())
    }

    fn tell(&mut self, end: usize) -> &str {
        let from = self.told;
        self.told = end.max(from);
        self.text.get(from..end).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toy::world;

    #[test]
    fn commands_are_a_terminals_only() {
        let folder = tempfile::tempdir().unwrap();
        let world = world::write(folder.path(), 42).unwrap();
        let arguments = ChatArguments {
            model: world.base_model.display().to_string(),
            system: None,
            max_new_tokens: 6,
            sampling: SamplingArguments { temperature: Some(0.0), top_k: 0, top_p: 1.0, seed: 0 },
            place: PlaceArguments::default(),
        };
        let speaker = arguments.place.load(&arguments.model).unwrap();
        let said = |lines: &[&str]| {
            let mut out = Vec::new();
            let mut conversation = Conversation::new(&speaker, &arguments);
            let input = lines.join("\n");
            answer_lines(&mut conversation, input.as_bytes(), &mut out, &mut io::sink()).unwrap();
            String::from_utf8(out).unwrap()
        };
        let (mut out, mut beside) = (Vec::new(), Vec::new());
        let typed = "What is a cow?\n\n/help\n/clear\nWhat is a cow?\n/quit\nWhat is coal?\n";
        let mut conversation = Conversation::new(&speaker, &arguments);
        talk(&mut conversation, typed.as_bytes(), &mut out, &mut beside).unwrap();
        let answer = said(&["What is a cow?"]);
        assert_eq!(String::from_utf8(out).unwrap(), answer.repeat(2));
        assert_eq!(String::from_utf8(beside).unwrap().matches(HELP).count(), 2);
        assert_eq!(conversation.chat.len(), 2);

        assert_eq!(said(&["", "What is a cow?"]), format!("\n{answer}"));
        let mut conversation = Conversation::new(&speaker, &arguments);
        let input = "/quit\n/clear\n".as_bytes();
        answer_lines(&mut conversation, input, &mut io::sink(), &mut io::sink()).unwrap();
        let texts: Vec<&str> =
            conversation.chat.iter().map(|message| message.content.as_str()).collect();
        assert_eq!((texts.len(), texts[0], texts[2]), (4, "/quit", "/clear"));

        // A line that cannot be asked costs its own answer only.
        let mut input = b"What is a cow?\r\n\xff\xfe\n".to_vec();
        input.extend_from_slice("cow ".repeat(400).as_bytes());
        input.extend_from_slice(b"\nWhat is coal?\n");
        let (mut out, mut beside) = (Vec::new(), Vec::new());
        let mut conversation = Conversation::new(&speaker, &arguments);
        let ended = answer_lines(&mut conversation, input.as_slice(), &mut out, &mut beside);
        assert_eq!(ended.unwrap_err().to_string(), "2 lines have no answer");
        let both = said(&["What is a cow?", "What is coal?"]);
        let last = both.strip_prefix(&answer).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), format!("{answer}\n\n{last}"));
        let told = String::from_utf8(beside).unwrap();
        assert!(told.starts_with("line 2: this is not UTF-8: "), "{told}");
        assert!(told.contains("\nline 3: the prompt has "), "{told}");
    }
}
