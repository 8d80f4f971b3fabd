//! The tags and tokens of templates, for changes and checks of a template's text before it is
//! compiled.

/// The most operators and brackets in a tag: minijinja compiles each with a recursion of its own,
/// and 4000 of them fit the 2 MiB of any thread's stack.
const MOST_OPERATORS: usize = 2000;
/// The most tags `elif` of a template, which minijinja nests as well.
const MOST_ELIFS: usize = 500;
/// The longest template, in bytes. Those of models have some ten thousand.
const LONGEST_TEMPLATE: usize = 1 << 20;
/// The operators that are words.
const WORDS: [&str; 7] = ["and", "or", "not", "in", "is", "if", "else"];

/// A tag `{{ … }}` or `{% … %}`.
struct Tag<'a> {
    /// `{{` or `{%`.
    opening: &'a str,
    /// The inside with its white-space control, and its place in the template.
    inside: &'a str,
    start: usize,
}

/// The tags of a template, without comments and raw blocks.
fn tags(source: &str) -> Vec<Tag<'_>> {
    let mut tags = Vec::new();
    let mut from = 0;
    while let Some(at) = source.as_bytes()[from..]
        .windows(2)
        .position(|pair| pair[0] == b'{' && matches!(pair[1], b'{' | b'%' | b'#'))
    {
        let start = from + at + 2;
        let (opening, inside) = (&source[start - 2..start], &source[start..]);
        let length = match opening {
            "{#" => inside.find("#}").unwrap_or(inside.len()),
            _ => expression_length(inside, if opening == "{{" { "}}" } else { "%}" }),
        };
        let inside = &inside[..length];
        from = start + length;
        if opening == "{%" && without_control(inside) == "raw" {
            from = source[from..].find("endraw").map_or(source.len(), |end| from + end);
        }
        if opening != "{#" {
            tags.push(Tag { opening, inside, start });
        }
    }
    tags
}

/// Rewrites the inside of each `{{ … }}` and `{% … %}`. Text, comments and raw blocks are copied.
/// `rewrite_inside` gets the opening, `{{` or `{%`, and the inside with its white-space control.
pub(super) fn rewrite_tags(
    source: &str,
    mut rewrite_inside: impl FnMut(&str, &str) -> String,
) -> String {
    let mut rewritten = String::with_capacity(source.len());
    let mut copied = 0;
    for Tag { opening, inside, start } in tags(source) {
        rewritten.push_str(&source[copied..start]);
        rewritten.push_str(&rewrite_inside(opening, inside));
        copied = start + inside.len();
    }
    rewritten + &source[copied..]
}

/// Fails if the template is too long, or if the compiler would nest too deeply: the line of the
/// tag, and the reason.
pub(super) fn check_depth(source: &str) -> Result<(), (usize, String)> {
    if source.len() > LONGEST_TEMPLATE {
        return Err((1, format!("it is longer than {} MiB", LONGEST_TEMPLATE >> 20)));
    }
    let line = |at: usize| source[..at].matches('\n').count() + 1;
    let mut elifs = 0;
    for Tag { inside, start, .. } in tags(source) {
        if operators(inside) > MOST_OPERATORS {
            let reason = format!("a tag has more than {MOST_OPERATORS} operators and brackets");
            return Err((line(start), reason));
        }
        let word = inside.trim_start_matches(['-', '+']).trim_start();
        elifs += usize::from(word.starts_with("elif"));
        if elifs > MOST_ELIFS {
            return Err((line(start), format!("it has more than {MOST_ELIFS} tags `elif`")));
        }
    }
    Ok(())
}

/// The operators and opening brackets of the inside of a tag.
fn operators(inside: &str) -> usize {
    let (mut operators, mut at) = (0, 0);
    while at < inside.len() {
        let token = Token::at(inside, at);
        let text = &inside[at..token.end];
        operators += usize::from(match token.kind {
            Kind::Operator => ![",", ":"].contains(&text),
            Kind::Name => WORDS.contains(&text),
            Kind::Open => true,
            Kind::Space | Kind::Number | Kind::Text | Kind::Close => false,
        });
        at = token.end;
    }
    operators
}

/// The inside of a tag without white-space control and the blanks around it.
pub(super) fn without_control(inside: &str) -> &str {
    inside.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace())
}

/// The length of the expression at the start of `text`, up to the end of its tag.
fn expression_length(text: &str, end: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with(end) && (depth == 0 || end == "%}") {
            return at;
        }
        let token = Token::at(text, at);
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close => depth -= i32::from(depth > 0),
            _ => {}
        }
        at = token.end;
    }
    text.len()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Space,
    Name,
    Number,
    Text,
    Open,
    Close,
    Operator,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Token {
    pub kind: Kind,
    pub start: usize,
    pub end: usize,
}

impl Token {
    /// The token of `text` that starts at `start`, which is before its end.
    pub fn at(text: &str, start: usize) -> Self {
        let rest = &text[start..];
        let first = rest.chars().next().unwrap_or(' ');
        let while_true = |is_part: fn(char) -> bool| {
            rest.find(|c: char| !is_part(c)).unwrap_or(rest.len()).max(first.len_utf8())
        };
        let (kind, length) = match first {
            c if c.is_whitespace() => (Kind::Space, while_true(char::is_whitespace)),
            '"' | '\'' => (Kind::Text, text_length(rest, first)),
            '(' | '[' | '{' => (Kind::Open, 1),
            ')' | ']' | '}' => (Kind::Close, 1),
            c if c.is_ascii_digit() => {
                (Kind::Number, while_true(|c| c.is_ascii_alphanumeric() || c == '.' || c == '_'))
            }
            c if c.is_alphanumeric() || c == '_' => {
                (Kind::Name, while_true(|c| c.is_alphanumeric() || c == '_'))
            }
            c => {
                let doubled = ["//", "**"].iter().any(|operator| rest.starts_with(operator));
                (Kind::Operator, if doubled { 2 } else { c.len_utf8() })
            }
        };
        Self { kind, start, end: start + length }
    }
}

/// The length of the quoted text at the start of `rest`.
fn text_length(rest: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::template::{ChatTemplate, TemplateError};

    /// Each of these ends the process if it is compiled on a stack of 2 MiB.
    #[test]
    fn templates_that_the_compiler_would_nest_too_deeply_are_refused() {
        let long = |begin: &str, middle: &str, end: &str| {
            format!("a\n{begin}{}{end}", middle.repeat(20_000))
        };
        let refused = [
            long("{{ ", "-", "1 }}"),
            long("{{ ", "not ", "1 }}"),
            long("{{ 1", "+1", " }}"),
            long("{{ 1", "**1", " }}"),
            long("{{ 1", " ~ 1", " }}"),
            long("{{ 1", " and 1", " }}"),
            long("{{ 0", " or 0", " }}"),
            long("{{ x", "|list", " }}"),
            long("{{ x", ".a", " }}"),
            long("{{ x", ".a()", " }}"),
            long("{{ x", "[0]", " }}"),
            long("{{ f", "()", " }}"),
            long("{{ x", "['}}']", " }}"),
            long("{% set a", ".b", " = 1 %}"),
            long("{%- if ", "(", ""),
            format!("a\n{{% set {}a{} = 1 %}}", "(".repeat(9000), ")".repeat(9000)),
            format!("a\n{{% for {}a{} in [1] %}}", "(".repeat(9000), ")".repeat(9000)),
            format!("a\n{{% if 1 %}}{}{{% endif %}}", "{%- elif 1 %}".repeat(20_000)),
        ];
        for source in refused {
            match ChatTemplate::new(&source, []) {
                Err(TemplateError::Syntax { line: 2, message, .. }) => {
                    assert!(message.contains("more than"), "{message}");
                }
                other => panic!("{}: {other:?}", &source[..20]),
            }
        }
        let error = ChatTemplate::new(&"a".repeat(LONGEST_TEMPLATE + 1), []).unwrap_err();
        assert!(error.to_string().contains("longer than 1 MiB"), "{error}");
        for nested in ["{% if 1 %}", "{% for a in b %}", "{% set a %}", "{% call f() %}"] {
            let error = ChatTemplate::new(&nested.repeat(20_000), []).unwrap_err().to_string();
            assert!(error.contains("recursion"), "{error}");
        }
    }

    #[test]
    fn the_largest_templates_that_are_compiled_fit_a_small_stack() {
        let begin_and_middle = [
            ("{{ ", "-"),
            ("{{ ", "not "),
            ("{{ 1", "+1"),
            ("{{ 1", "**1"),
            ("{{ 1", " and 1"),
            ("{{ x", "|list"),
            ("{{ x", "[0]"),
            ("{{ f", "(1)"),
            ("{{ x", ".a()"),
        ];
        for (begin, middle) in begin_and_middle {
            let many = MOST_OPERATORS / operators(middle).max(1);
            let end = if middle.len() < 2 || middle == "not " { "1 }}" } else { " }}" };
            let source = format!("{begin}{}{end}", middle.repeat(many));
            let elifs = format!("{{% if 1 %}}{}{{% endif %}}", "{% elif 1 %}".repeat(MOST_ELIFS));
            let compile = || [source, elifs].map(|source| ChatTemplate::new(&source, []).is_ok());
            let compiled = std::thread::scope(|scope| {
                let thread = std::thread::Builder::new().stack_size(2 << 20);
                thread.spawn_scoped(scope, compile).unwrap().join().unwrap()
            });
            assert_eq!(compiled, [true, true], "{middle}");
        }
        let list = format!("{{% set words = [{}] %}}", "'a', ".repeat(20_000));
        assert!(ChatTemplate::new(&list, []).is_ok());
    }
}
