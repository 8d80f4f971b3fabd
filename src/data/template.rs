//! Chat templates: Jinja with the options and functions of transformers.
//!
//! `{% generation %}…{% endgeneration %}` marks the assistant's text. minijinja has no custom tags,
//! so the tags are rewritten to a filter block before compiling. The filter puts a marker before
//! and after its text; the markers are removed from the rendered text, and their positions become
//! spans.

use std::collections::BTreeMap;

use minijinja::{
    Environment, Error, ErrorKind, Value,
    syntax::SyntaxConfig,
    value::{Serde, ValueKind},
};
use time::OffsetDateTime;

use super::Message;
use super::assistant_spans::{Family, Rendered};
use super::template_json::to_json;
use super::template_limits::{LimitedEnvironments, Stop, limit_texts};
use super::template_message::message_value;
use super::template_methods::call_method;
use super::template_namespace::add_namespaces;
use super::template_percent;
use super::template_tags::{rewrite_tags, without_control};
use super::template_values::TemplateValues;

const NAME: &str = "chat template";
// Noncharacters of Unicode around a word. Ordinary text never contains them.
const SPAN_START: &str = "\u{FDD0}generation\u{FDD1}";
const SPAN_END: &str = "\u{FDD0}endgeneration\u{FDD1}";
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// A chat template that is invalid, or a chat that it refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error(
        "the chat template is broken at line {line}: {message}\n  {text}\nhelp: chat templates are \
         Jinja with the functions of transformers"
    )]
    Syntax { line: usize, message: String, text: String },
    #[error("the tokenizer in {0} has no chat template\nhelp: set `chat_template` in the recipe")]
    Missing(String),
    #[error("{0}")]
    Refused(String),
    #[error(
        "the chat template does too much work: it was stopped for {0} chats\nhelp: look for loops \
         that do not end, and texts that double, in the template; if the chats are this long, \
         shorten them"
    )]
    Endless(usize),
}

/// A compiled chat template with the special tokens that it may use.
#[derive(Debug)]
pub(super) struct ChatTemplate {
    environments: LimitedEnvironments,
    source: String,
    special_tokens: BTreeMap<String, Value>,
    marks_generation: bool,
    /// The family of a template that does not mark the assistant's text.
    family: Option<&'static Family>,
}

impl ChatTemplate {
    /// Compiles `source`. `special_tokens` are pairs such as (`eos_token`, `</s>`).
    pub fn new(
        source: &str,
        special_tokens: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, TemplateError> {
        let (rewritten, marks_generation) = rewrite_generation(source);
        let rewritten = template_percent::rewrite(&rewritten);
        let compiled = LimitedEnvironments::compile(environment(), NAME, source, &rewritten);
        let environments = compiled.map_err(|(line, message)| {
            let text = source.lines().nth(line.saturating_sub(1)).unwrap_or_default();
            let text = text.trim().chars().take(120).collect();
            TemplateError::Syntax { line, message, text }
        })?;
        let special_tokens =
            special_tokens.into_iter().map(|(name, token)| (name, Value::from(token))).collect();
        let family = Family::of(source).filter(|_| !marks_generation);
        let source = source.to_owned();
        Ok(Self { environments, source, special_tokens, marks_generation, family })
    }

    /// The text of the template.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether [`Self::render_answers`] can find the assistant's text.
    pub fn finds_answers(&self) -> bool {
        self.marks_generation || self.family.is_some()
    }

    /// Whether the template handles this role: a standard role, or one that its text contains.
    pub fn knows_role(&self, role: &str) -> bool {
        ROLES.contains(&role)
            || ["'", "\""]
                .iter()
                .any(|quote| self.source.contains(&format!("{quote}{role}{quote}")))
    }

    /// Renders a chat. The variables of `values` replace special tokens of the same name.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        values: &TemplateValues,
    ) -> Result<Rendered, TemplateError> {
        let mut context = self.special_tokens.clone();
        let messages: Vec<Value> = messages.iter().map(message_value).collect();
        context.insert("messages".to_owned(), Value::from(messages));
        context.insert("add_generation_prompt".to_owned(), Value::from(add_generation_prompt));
        let tools =
            values.tools.as_ref().map_or(Value::from(()), |tools| Value::from(Serde(tools)));
        context.insert("tools".to_owned(), tools);
        context.insert("documents".to_owned(), Value::from(()));
        for (name, value) in &values.variables {
            context.insert(name.clone(), Value::from(Serde(value)));
        }
        let text =
            self.environments.render(NAME, &Value::from(context)).map_err(|stop| match stop {
                Stop::Endless(chats) => TemplateError::Endless(chats),
                Stop::Refused(message) => TemplateError::Refused(message + &self.unset_tokens()),
            })?;
        Ok(if self.marks_generation {
            take_markers_out(&text)
        } else {
            Rendered { text, generated: Vec::new() }
        })
    }

    /// Renders a chat with the spans of the assistant's text: the `{% generation %}` blocks, or in
    /// a template without them the answers in the form of its family.
    pub fn render_answers(
        &self,
        messages: &[Message],
        values: &TemplateValues,
    ) -> Result<Rendered, TemplateError> {
        let rendered = self.render(messages, false, values)?;
        let Some(family) = self.family else { return Ok(rendered) };
        let eos = self.special_tokens.get("eos_token").and_then(|eos| eos.as_str());
        family.mark(rendered, messages, eos).map_err(TemplateError::Refused)
    }
}

impl ChatTemplate {
    /// A note on special tokens that the template uses but the tokenizer lacks, since errors about
    /// undefined names say little about the cause.
    fn unset_tokens(&self) -> String {
        let unset = ["bos_token", "eos_token", "pad_token", "unk_token"]
            .into_iter()
            .filter(|name| self.source.contains(name) && !self.special_tokens.contains_key(*name));
        unset.map(|name| format!("; it uses `{name}`, which the tokenizer lacks")).collect()
    }
}

/// The environment of transformers' `_compile_jinja_template`.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the default delimiters are valid"));
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(call_method);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| {
        strftime(&format, OffsetDateTime::now_utc())
    });
    // As in jinja2, none is not iterable, and texts and mappings are sequences.
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    environment.add_filter("tojson", to_json);
    environment.add_filter(template_percent::FILTER, template_percent::percent);
    add_namespaces(&mut environment);
    limit_texts(&mut environment);
    environment
        .add_filter("favonius_generation", |text: String| format!("{SPAN_START}{text}{SPAN_END}"));
    environment
}

/// Replaces the tags of generation blocks by those of a filter block, including white-space
/// control. The boolean says whether any were found.
fn rewrite_generation(source: &str) -> (String, bool) {
    let mut found = false;
    let rewritten = rewrite_tags(source, |opening, inside| {
        let word = without_control(inside);
        let replacement = match (opening, word) {
            ("{%", "generation") => "filter favonius_generation",
            ("{%", "endgeneration") => "endfilter",
            _ => return inside.to_owned(),
        };
        found = true;
        inside.replace(word, replacement)
    });
    (rewritten, found)
}

fn take_markers_out(marked: &str) -> Rendered {
    let mut text = String::with_capacity(marked.len());
    let mut generated: Vec<(usize, usize)> = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    let mut characters = 0;
    let mut rest = marked;
    loop {
        let next = [SPAN_START, SPAN_END]
            .into_iter()
            .filter_map(|marker| rest.find(marker).map(|at| (at, marker)))
            .min();
        let Some((at, marker)) = next else { break };
        text.push_str(&rest[..at]);
        characters += rest[..at].chars().count();
        if marker == SPAN_START {
            open.push(characters);
        } else if let Some(start) = open.pop() {
            generated.push((start, characters));
        }
        rest = &rest[at + marker.len()..];
    }
    text.push_str(rest);
    Rendered { text, generated }
}

/// The directives of `strftime` that chat templates use; others are copied. The time is UTC.
fn strftime(format: &str, now: OffsetDateTime) -> String {
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let (month, weekday) = (now.month().to_string(), now.weekday().to_string());
        let hour12 = (now.hour() + 11) % 12 + 1;
        match characters.next() {
            Some('Y') => out.push_str(&format!("{:04}", now.year())),
            Some('y') => out.push_str(&format!("{:02}", now.year().rem_euclid(100))),
            Some('m') => out.push_str(&format!("{:02}", u8::from(now.month()))),
            Some('d') => out.push_str(&format!("{:02}", now.day())),
            Some('e') => out.push_str(&format!("{:2}", now.day())),
            Some('j') => out.push_str(&format!("{:03}", now.ordinal())),
            Some('B') => out.push_str(&month),
            Some('b') => out.push_str(&month[..3]),
            Some('A') => out.push_str(&weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('H') => out.push_str(&format!("{:02}", now.hour())),
            Some('I') => out.push_str(&format!("{hour12:02}")),
            Some('p') => out.push_str(if now.hour() < 12 { "AM" } else { "PM" }),
            Some('M') => out.push_str(&format!("{:02}", now.minute())),
            Some('S') => out.push_str(&format!("{:02}", now.second())),
            // glibc's flag that omits leading zeros.
            Some('-') => {
                let number = characters.next().map(|c| strftime(&format!("%{c}"), now));
                let number = number.unwrap_or_default();
                let short = number.trim_start_matches('0');
                out.push_str(if short.is_empty() && !number.is_empty() { "0" } else { short });
            }
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ZEPHYR: &str = "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}";

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source, [("eos_token".to_owned(), "</s>".to_owned())]).unwrap()
    }

    #[test]
    fn none_is_not_iterable_and_texts_are_sequences() {
        let source = "{% for x in [none, 'a', [], {'b': 1}] %}{{ x is iterable }} {{ x is sequence }}, {% endfor %}";
        let text = template(source).render(&[], false, &TemplateValues::default()).unwrap().text;
        assert_eq!(text, "False False, True True, True True, True True, ");
    }

    fn chat() -> Vec<Message> {
        vec![Message::new("user", "<b>Hi</b> 'you'"), Message::new("assistant", "Höi")]
    }

    #[test]
    fn zephyr_writes_each_turn_and_the_generation_prompt() {
        let rendered =
            template(ZEPHYR).render(&chat()[..1], true, &TemplateValues::default()).unwrap();
        assert_eq!(rendered.text, "<|user|>\n<b>Hi</b> 'you'</s>\n<|assistant|>\n");
        let rendered = template(ZEPHYR).render(&chat(), false, &TemplateValues::default()).unwrap();
        assert_eq!(rendered.text, "<|user|>\n<b>Hi</b> 'you'</s>\n<|assistant|>\nHöi</s>\n");
    }

    #[test]
    fn generation_blocks_become_spans_in_characters() {
        let source = "{% for m in messages %}\nä{{ m.role }}:{%- if m.role == 'assistant' %}\n  {%- generation -%}\n {{ m.content }}{{ eos_token }}\n  {% endgeneration %}\n{% else %}{{ m.content }}{% endif %}\n{% endfor %}";
        let rendered = template(source).render(&chat(), false, &TemplateValues::default()).unwrap();
        assert_eq!(rendered.text, "äuser:<b>Hi</b> 'you'äassistant:Höi</s>\n");
        assert_eq!(rendered.generated, [(32, 40)]);
        assert!(template(source).finds_answers());
        assert!(template(ZEPHYR).finds_answers());
        assert!(!template("{{ messages[0].content }}").finds_answers());
    }

    #[test]
    fn raw_blocks_and_comments_mark_nothing() {
        let source = "{% raw %}{% generation %}{% endraw %}{# {% generation %} #}!";
        let rendered = template(source).render(&chat(), false, &TemplateValues::default());
        let text = "{% generation %}!".to_owned();
        assert_eq!(rendered.unwrap(), Rendered { text, generated: Vec::new() });
    }

    #[test]
    fn a_template_can_refuse_a_chat() {
        let source = "{% if messages[0].role != 'system' %}{{ raise_exception('no system turn') }}{% endif %}";
        let error =
            template(source).render(&chat(), false, &TemplateValues::default()).unwrap_err();
        assert_eq!(error, TemplateError::Refused("no system turn".to_owned()));
    }

    #[test]
    fn a_broken_template_names_its_line() {
        let error = ChatTemplate::new("ok\n{% if x %}\n{{ y ", []).unwrap_err().to_string();
        assert!(error.starts_with("the chat template is broken at line 3"), "{error}");
    }

    #[test]
    fn json_is_pythons() {
        let chat = [Message::new("user", "a\"<é\n\u{1}")];
        let render = |filter: &str| {
            template(&format!("{{{{ messages | {filter} }}}}"))
                .render(&chat, false, &TemplateValues::default())
                .unwrap()
                .text
        };
        assert_eq!(render("tojson"), "[{\"role\": \"user\", \"content\": \"a\\\"<é\\n\\u0001\"}]");
        assert_eq!(
            render("tojson(indent=2)"),
            "[\n  {\n    \"role\": \"user\",\n    \"content\": \"a\\\"<é\\n\\u0001\"\n  }\n]"
        );
        assert_eq!(
            render("tojson(sort_keys=true, ensure_ascii=true)"),
            "[{\"content\": \"a\\\"<\\u00e9\\n\\u0001\", \"role\": \"user\"}]"
        );
    }

    #[test]
    fn python_methods_loop_controls_and_undefined_names_work() {
        let source = "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.content.strip().upper() }}{{ m.get('name') }}{{ missing }}{{ tools is none }}{% endfor %}";
        assert_eq!(
            template(source).render(&chat(), false, &TemplateValues::default()).unwrap().text,
            "<B>HI</B> 'YOU'NoneTrue"
        );
    }

    #[test]
    fn dates_are_written() {
        let day = OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
        assert_eq!(strftime("%d %b %Y %H:%M:%S %p %% %q", day), "14 Nov 2023 22:13:20 PM % %q");
        let early = day - time::Duration::days(13) - time::Duration::hours(22);
        assert_eq!(strftime("%-d %-m %-H %-j %-", early), "1 11 0 305 ");
    }

    #[test]
    fn tools_and_variables_are_seen() {
        let values = TemplateValues {
            tools: Some(json!([{"type": "function", "function": {"name": "f"}}])),
            variables: [("enable_thinking".to_owned(), json!(false))].into_iter().collect(),
        };
        let source = "{{ tools | tojson }} {{ enable_thinking }} {{ enable_thinking is defined }}";
        let text = template(source).render(&[], false, &values).unwrap().text;
        let tools = r#"[{"type": "function", "function": {"name": "f"}}]"#;
        assert_eq!(text, format!("{tools} False True"));
    }
}
