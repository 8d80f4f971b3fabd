//! Limits of the work, memory and stack of templates: the chat template of an untrusted model, or
//! the template of a task, must not end the program.

use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::{
    Environment, Error, ErrorKind, State, Value, escape_formatter, filters, value::ValueKind,
};

use super::template_namespace::rewrite_assignments;
use super::template_tags::check_depth;
use crate::files::caught::caught;

/// minijinja's budget for a chat, about one for each instruction and for 64 bytes of text.
/// A literal such as `[[[x]]]` nests one value in another for 1.4 of them, and the text of a value
/// takes up to 440 bytes of stack for each level. So the deepest values of an ordinary chat fit
/// the 2 MiB of any thread.
const SHORT_BUDGET: u64 = 6_000;
/// The budget of a chat for which [`SHORT_BUDGET`] does not suffice: about a tenth of a second.
const WHOLE_BUDGET: u64 = 1_500_000;
/// The stack of a thread that may use [`WHOLE_BUDGET`]. Pages that are not used take no memory.
const WHOLE_STACK: usize = 512 << 20;
/// Chats that may exceed the budget before the template itself is blamed.
const EXCUSED: usize = 10;

/// The deepest nesting of a value that is written as text.
pub(super) const DEEPEST: usize = 200;
/// The longest text of a value, in bytes.
pub(super) const LONGEST: usize = 64 << 20;

/// Why a template was stopped.
#[derive(Debug)]
pub(crate) enum Stop {
    /// One chat is refused, with the reason.
    Refused(String),
    /// This many chats exceeded the budget, so the template must be wrong.
    Endless(usize),
}

/// An environment with both budgets.
#[derive(Debug)]
pub(crate) struct LimitedEnvironments {
    short: Environment<'static>,
    whole: Environment<'static>,
    exceeded: AtomicUsize,
}

impl LimitedEnvironments {
    /// Compiles a template. `rewritten` is its text `source` after the changes of the caller.
    ///
    /// # Errors
    /// The line and the reason: the template is too long, nests too deeply, or is not Jinja.
    pub fn compile(
        mut environment: Environment<'static>,
        name: &'static str,
        source: &str,
        rewritten: &str,
    ) -> Result<Self, (usize, String)> {
        check_depth(source)?;
        let added = caught(|| environment.add_template_owned(name, rewrite_assignments(rewritten)));
        let added = added.unwrap_or_else(|panic| Err(Error::new(ErrorKind::SyntaxError, panic)));
        added.map_err(|error| (error.line().unwrap_or(1), message_of(&error)))?;
        Ok(Self::new(environment))
    }

    fn new(environment: Environment<'static>) -> Self {
        let with = |budget| {
            let mut environment = environment.clone();
            environment.set_fuel(Some(budget));
            environment
        };
        let (short, whole) = (with(SHORT_BUDGET), with(WHOLE_BUDGET));
        Self { short, whole, exceeded: AtomicUsize::new(0) }
    }

    /// Renders the template `name`: first with the short budget, then, if this does not suffice, on
    /// a thread of its own with the whole budget.
    pub fn render(&self, name: &str, context: &Value) -> Result<String, Stop> {
        let error = match render(&self.short, name, context) {
            Ok(text) => return Ok(text),
            Err(error) => error,
        };
        if error.kind() != ErrorKind::OutOfFuel {
            return Err(Stop::Refused(message_of(&error)));
        }
        let refused = |error: Error| match error.kind() {
            ErrorKind::OutOfFuel => self.stop(),
            _ => Stop::Refused(message_of(&error)),
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(WHOLE_STACK);
            let work = || render(&self.whole, name, context);
            let thread = thread.spawn_scoped(scope, work).map_err(|error| {
                Stop::Refused(format!("cannot start a thread for a long chat: {error}"))
            })?;
            let ended = thread.join().unwrap_or_else(|_| Err(too_large()));
            ended.map_err(refused)
        })
    }

    fn stop(&self) -> Stop {
        match self.exceeded.fetch_add(1, Ordering::Relaxed) + 1 {
            chats if chats > EXCUSED => Stop::Endless(chats),
            _ => Stop::Refused(
                "it does too much work for one chat, or makes too long a text".to_owned(),
            ),
        }
    }
}

/// Renders a template. A panic of the library is an error too.
fn render(environment: &Environment, name: &str, context: &Value) -> Result<String, Error> {
    let rendered = caught(|| environment.get_template(name)?.render(context));
    rendered.unwrap_or_else(|panic| Err(Error::new(ErrorKind::InvalidOperation, panic)))
}

/// Makes the environment refuse to write values that are nested too deeply or are too long.
pub(super) fn limit_texts(environment: &mut Environment) {
    environment.set_formatter(|out, state, value| {
        check_size(value)?;
        escape_formatter(out, state, value)
    });
    environment.add_filter("string", |state: &State, value: &Value| {
        check_size(value)?;
        filters::string(state, value)
    });
    environment.add_filter("pprint", |value: &Value| {
        check_size(value)?;
        Ok::<_, Error>(filters::pprint(value))
    });
}

/// Fails if the text of a list or mapping would be nested too deeply or be too long.
pub(crate) fn check_size(value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Seq | ValueKind::Map => check_below(value, 0, &mut 0),
        _ => Ok(()),
    }
}

fn check_below(value: &Value, depth: usize, bytes: &mut usize) -> Result<(), Error> {
    // Each value takes at least a byte and a comma.
    *bytes += 2 + value.as_str().map_or(0, str::len);
    if depth > DEEPEST || *bytes > LONGEST {
        return Err(too_large());
    }
    let is_map = match value.kind() {
        ValueKind::Map => true,
        ValueKind::Seq => false,
        _ => return Ok(()),
    };
    for item in value.try_iter()? {
        if is_map {
            check_below(&value.get_item(&item)?, depth + 1, bytes)?;
        }
        check_below(&item, depth + 1, bytes)?;
    }
    Ok(())
}

/// The error of a value that is too large to be written.
pub(super) fn too_large() -> Error {
    let message = format!(
        "a value is nested more than {DEEPEST} deep or longer than {} MiB as text",
        LONGEST >> 20
    );
    Error::new(ErrorKind::InvalidOperation, message)
}

/// The cause of an error in words.
fn message_of(error: &Error) -> String {
    error.detail().map_or_else(|| error.kind().to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Message;
    use crate::data::template::{ChatTemplate, TemplateError};
    use crate::data::template_values::TemplateValues;

    fn render(source: &str) -> Result<String, TemplateError> {
        let template = ChatTemplate::new(source, [])?;
        let chat = [Message::new("user", "Hi"), Message::new("assistant", "Ho")];
        template.render(&chat, false, &TemplateValues::default()).map(|rendered| rendered.text)
    }

    /// Runs the work on a thread like those of the pool that renders rows: 2 MiB of stack.
    fn on_a_small_stack<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(2 << 20);
            thread.spawn_scoped(scope, work).unwrap().join().unwrap()
        })
    }

    fn refusal(source: &str) -> String {
        on_a_small_stack(|| render(source).expect_err(source).to_string())
    }

    #[test]
    fn work_without_end_is_stopped() {
        let twice = "{% set t.x = t.x ~ t.x %}";
        let doubled = "{% set x = [x, x] %}".repeat(40);
        for source in [
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            &format!(
                "{{% set t = namespace(x='ab') %}}{{% for a in range(99) %}}{twice}{{% endfor %}}"
            ),
            "{% for a in range(99999) %}{{ 'x'.ljust(1000000) }}{% endfor %}",
            "{{ messages | tojson(indent=9999999999) }}",
            "{{ '{:>99999999999}'.format(1) }}",
            "{{ '%99999999999d' | format(1) }}",
            "{{ 'x' * 99999999999 }}",
            "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
            &format!("{{% set x = 1 %}}{doubled}{{{{ x }}}}"),
            &format!("{{% set x = 1 %}}{doubled}{{{{ x | string }}}}"),
            &format!("{{% set x = 1 %}}{doubled}{{{{ x | tojson }}}}"),
        ] {
            let message = refusal(source);
            let reasons = ["too much work", "too large", "MiB", "million", "recursion", "fuel"];
            assert!(reasons.iter().any(|reason| message.contains(reason)), "{source}: {message}");
        }
    }

    #[test]
    fn deep_values_are_refused_and_freed() {
        let nested = "{% set x = [x] %}".repeat(20_000);
        let in_loop = "{% set t = namespace(x=[]) %}{% for a in range(60000) %}\
            {% set t.x = [t.x] %}{% endfor %}";
        for write in ["{{ x }}", "{{ x | string }}", "{{ x | tojson }}", "{{ x | pprint }}"] {
            let message = refusal(&format!("{{% set x = [] %}}{nested}{write}"));
            assert!(message.contains("nested more than 200 deep"), "{message}");
            let message = refusal(&format!("{in_loop}{{% set x = t.x %}}{write}"));
            assert!(message.contains("nested more than 200 deep"), "{message}");
        }
        assert!(render(in_loop).is_ok());
        let literal = format!("{{{{ {}{} }}}}", "[".repeat(20_000), "]".repeat(20_000));
        assert!(refusal(&literal).contains("more than 2000"), "{}", refusal(&literal));
        let literal = format!("{{{{ {}{} }}}}", "[".repeat(1000), "]".repeat(1000));
        assert!(refusal(&literal).contains("recursion"), "{}", refusal(&literal));
    }

    /// A literal that nests 60 values takes the least budget for each of them. Sources that exceed
    /// the short budget are rendered on the large stack.
    #[test]
    fn the_deepest_values_of_a_budget_fit_its_stack() {
        let literals = [("[", "]"), ("{1:", "}"), ("(", ",)"), ("[{1:(", ",)}]")];
        for (open, close) in literals {
            let levels = if open.len() > 3 { 20 } else { 60 };
            let (start, end) = (open.repeat(levels), close.repeat(levels));
            let nested = |name: &str| format!("{{% set {name} = {start}{name}{end} %}}");
            // The budget ends at 17 to 72 repetitions.
            for times in (17..=77).step_by(4) {
                for use_it in [
                    "{{ x ~ '' }}",
                    "{{ x == y }}",
                    "{{ {x: 1} | length }}",
                    "{{ '%s' % [x] }}",
                    "{{ x | upper }}",
                ] {
                    let y = if use_it.contains('y') { nested("y") } else { String::new() };
                    let sets = (nested("x") + &y).repeat(times);
                    let source = format!("{{% set x = [] %}}{{% set y = [] %}}{sets}{use_it}");
                    let rendered = on_a_small_stack(|| render(&source));
                    assert!(rendered.is_ok(), "{open} {times} {use_it}: {rendered:?}");
                }
            }
        }
        let in_loop = "{% set t = namespace(x=1) %}{% for i in range(99999) %}\
            {% set t.x = [[[[[[[[t.x]]]]]]]] %}{% endfor %}{{ t.x ~ '' }}";
        assert!(refusal(in_loop).contains("too much work"));
    }

    #[test]
    fn odd_tags_are_syntax_errors() {
        for source in
            ["{%}", "{% %}", "{%", "{{", "{%-}", "{% generation", "{#", "{% set x = '%}' %}"]
        {
            let _ = render(source);
        }
        assert!(matches!(render("{%}"), Err(TemplateError::Syntax { line: 1, .. })));
    }

    /// 80,000 characters in 40 messages need no thread of their own.
    #[test]
    fn an_ordinary_chat_keeps_the_short_budget() {
        let source = "{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>' + m.content + \
                      eos_token }}{% elif m.role == 'assistant' %}{{ '<|assistant|>' + m.content + \
                      eos_token }}{% endif %}{% endfor %}";
        let mut environment = Environment::new();
        environment.add_template("t", source).unwrap();
        let limited = LimitedEnvironments::new(environment);
        let message = |role| minijinja::context! { role, content => "word ".repeat(400) };
        let turns: Vec<Value> = (0..20).flat_map(|_| ["user", "assistant"].map(message)).collect();
        let context = minijinja::context! { messages => turns, eos_token => "</s>" };
        let text = super::render(&limited.short, "t", &context).unwrap();
        assert!(text.len() > 80_000);
    }

    #[test]
    fn a_long_chat_gets_the_whole_budget() {
        let source =
            "{% for a in range(300) %}{% for b in range(300) %}{{ 'x' }}{% endfor %}{% endfor %}";
        assert_eq!(render(source).unwrap().len(), 90_000);
    }

    #[test]
    fn a_template_that_never_ends_is_blamed_after_some_chats() {
        let source =
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
        let template = ChatTemplate::new(source, []).unwrap();
        let render = || template.render(&[], false, &TemplateValues::default()).unwrap_err();
        for _ in 0..EXCUSED {
            assert!(matches!(render(), TemplateError::Refused(_)));
        }
        assert_eq!(render(), TemplateError::Endless(EXCUSED + 1));
    }
}
