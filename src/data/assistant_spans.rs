//! The assistant's text in chats whose template does not mark it.
//!
//! `assistant_only_loss` needs to know which characters the assistant wrote. A template can mark
//! them with `{% generation %}`, but the templates of most models do not. In the chats of the
//! families below, fixed texts begin and end an answer. So the spans are found in the text that the
//! model's own template gives, and nothing is rendered in another way than the model expects. The
//! spans are those of TRL's training templates for the same families.

use super::Message;

/// The text of a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    /// The assistant's text, if it was asked for or is marked: first character, and one past the
    /// last, counted in characters.
    pub generated: Vec<(usize, usize)>,
}

/// How the answers of a family of chats begin and end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Family {
    pub name: &'static str,
    /// Texts that a template of this family contains.
    signs: &'static [&'static str],
    /// An answer follows each of these texts.
    starts: &'static [&'static str],
    /// The first of these texts ends an answer. It is a part of the answer, so that the model
    /// learns to stop.
    ends: &'static [&'static str],
    /// Whether EOS after the last answer is a part of it.
    takes_eos: bool,
}

/// In the order in which they are tried.
const FAMILIES: [Family; 7] = [
    Family {
        name: "Llama 3",
        signs: &["<|start_header_id|>", "<|eot_id|>"],
        starts: &["<|start_header_id|>assistant<|end_header_id|>\n\n"],
        ends: &["<|eot_id|>", "<|eom_id|>"],
        takes_eos: false,
    },
    Family {
        name: "Gemma",
        signs: &["<start_of_turn>", "<end_of_turn>"],
        starts: &["<start_of_turn>model\n"],
        ends: &["<end_of_turn>\n"],
        takes_eos: false,
    },
    // As in TRL, the line break after the role belongs to the answer.
    Family {
        name: "Qwen 2.5",
        signs: &["<|im_start|>", "<|im_end|>", "Alibaba Cloud"],
        starts: &["<|im_start|>assistant"],
        ends: &["<|im_end|>\n"],
        takes_eos: false,
    },
    // ChatML: Qwen 3, SmolLM 2 and 3, and many others.
    Family {
        name: "ChatML",
        signs: &["<|im_start|>", "<|im_end|>"],
        starts: &["<|im_start|>assistant\n"],
        ends: &["<|im_end|>\n", "<|im_end|>"],
        takes_eos: false,
    },
    Family {
        name: "Phi 3",
        signs: &["<|assistant|>", "<|end|>"],
        starts: &["<|assistant|>\n", "<|assistant|>"],
        ends: &["<|end|>\n", "<|end|>"],
        takes_eos: true,
    },
    Family {
        name: "Zephyr",
        signs: &["<|assistant|>"],
        starts: &["<|assistant|>\n"],
        ends: &["</s>", "<|endoftext|>"],
        takes_eos: false,
    },
    Family {
        name: "Mistral",
        signs: &["[INST]", "[/INST]"],
        starts: &["[/INST]", "[/TOOL_RESULTS]"],
        ends: &["</s>"],
        takes_eos: false,
    },
];

impl Family {
    /// The family of a template, by the texts that it contains.
    pub fn of(template: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.signs.iter().all(|sign| template.contains(sign)))
    }

    /// The names of all families.
    pub fn names() -> String {
        FAMILIES.map(|family| family.name).join(", ")
    }

    /// Adds the spans of the assistant's text to the text of `chat`.
    ///
    /// # Errors
    /// The text has another number of answers than the chat, for example if a message contains the
    /// text that begins an answer.
    pub fn mark(
        &self,
        rendered: Rendered,
        chat: &[Message],
        eos: Option<&str>,
    ) -> Result<Rendered, String> {
        let text = &rendered.text;
        let mut spans = Vec::new();
        let mut at = 0;
        while let Some((place, start)) = first_of(&text[at..], self.starts) {
            let from = at + place + start.len();
            let Some((place, end)) = first_of(&text[from..], self.ends) else { break };
            at = from + place + end.len();
            spans.push((from, at));
        }
        let answers = chat.iter().filter(|message| message.role == "assistant").count();
        if spans.len() != answers {
            return Err(format!(
                "its text has {} answers in the form of {}, but the chat has {answers} assistant \
                 messages",
                spans.len(),
                self.name
            ));
        }
        let ends_with_answer = chat.last().is_some_and(|message| message.role == "assistant");
        if let (true, true, Some(eos)) = (self.takes_eos, ends_with_answer, eos)
            && let Some((_, end)) = spans.last_mut()
            && text[*end..] == *eos
        {
            *end = text.len();
        }
        let generated = in_characters(text, &spans);
        Ok(Rendered { generated, ..rendered })
    }
}

/// The place of the text among `wanted` that comes first; of those at one place, the first in the
/// list.
fn first_of<'w>(text: &str, wanted: &[&'w str]) -> Option<(usize, &'w str)> {
    let found = wanted.iter().filter_map(|wanted| Some((text.find(wanted)?, *wanted)));
    // `min_by_key` gives the first of equal ones.
    found.min_by_key(|(place, _)| *place)
}

/// Converts ascending spans in bytes to spans in characters.
fn in_characters(text: &str, spans: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let (mut bytes, mut characters) = (0, 0);
    let mut place = |byte: usize| {
        characters += text[bytes..byte].chars().count();
        bytes = byte;
        characters
    };
    spans.iter().map(|(from, to)| (place(*from), place(*to))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(roles: &str) -> Vec<Message> {
        let role = |letter| match letter {
            'u' => "user",
            'a' => "assistant",
            _ => "system",
        };
        roles.chars().map(|letter| Message::new(role(letter), "x")).collect()
    }

    /// The marked parts of a text.
    fn marked(name: &str, text: &str, roles: &str) -> Result<Vec<String>, String> {
        let family = FAMILIES.iter().find(|family| family.name == name).unwrap();
        let rendered = Rendered { text: text.to_owned(), generated: Vec::new() };
        let rendered = family.mark(rendered, &chat(roles), Some("<|endoftext|>"))?;
        let characters: Vec<char> = rendered.text.chars().collect();
        let part = |(from, to): &(usize, usize)| characters[*from..*to].iter().collect();
        Ok(rendered.generated.iter().map(part).collect())
    }

    #[test]
    fn the_answers_of_each_family_are_found() {
        let chatml = "<|im_start|>user\nÜé<|im_end|>\n<|im_start|>assistant\nä b<|im_end|>\n\
                      <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nd<|im_end|>\n";
        assert_eq!(marked("ChatML", chatml, "uaua").unwrap(), ["ä b<|im_end|>\n", "d<|im_end|>\n"]);
        let qwen = marked("Qwen 2.5", chatml, "uaua").unwrap();
        assert_eq!(qwen, ["\nä b<|im_end|>\n", "\nd<|im_end|>\n"]);
        let mistral = "<s> [INST] a [/INST] b</s> [INST] c [/INST] d</s> [INST] e [/INST]";
        assert_eq!(marked("Mistral", mistral, "uauau").unwrap(), [" b</s>", " d</s>"]);
        let phi = "<|user|>\na<|end|>\n<|assistant|>\nb<|end|>\n<|endoftext|>";
        assert_eq!(marked("Phi 3", phi, "ua").unwrap(), ["b<|end|>\n<|endoftext|>"]);
        let llama = "<|start_header_id|>assistant<|end_header_id|>\n\nb<|eot_id|>";
        assert_eq!(marked("Llama 3", llama, "a").unwrap(), ["b<|eot_id|>"]);
        let gemma = "<start_of_turn>model\nb<end_of_turn>\n";
        assert_eq!(marked("Gemma", gemma, "a").unwrap(), ["b<end_of_turn>\n"]);
    }

    #[test]
    fn an_answer_of_zephyr_ends_with_eos() {
        let zephyr = "<|system|>\n</s>\n<|user|>\na</s>\n<|assistant|>\nb</s>\n";
        assert_eq!(marked("Zephyr", zephyr, "sua").unwrap(), ["b</s>"]);
    }

    #[test]
    fn a_message_that_imitates_an_answer_is_refused() {
        let text = "<|im_start|>user\nsay <|im_start|>assistant\nhi<|im_end|>\n\
                    <|im_start|>assistant\nno<|im_end|>\n";
        let error = marked("ChatML", text, "ua").unwrap_err();
        assert!(error.contains("has 2 answers") && error.contains("has 1 assistant"), "{error}");
    }

    #[test]
    fn templates_belong_to_families_by_their_texts() {
        let name = |template: &str| Family::of(template).map(|family| family.name);
        assert_eq!(name("{{ '<|im_start|>' }}{{ '<|im_end|>' }}"), Some("ChatML"));
        assert_eq!(name("<|im_start|> <|im_end|> by Alibaba Cloud"), Some("Qwen 2.5"));
        assert_eq!(name("{{ '[INST]' + content + '[/INST]' }}"), Some("Mistral"));
        assert_eq!(name("{{ content }}"), None);
    }
}
