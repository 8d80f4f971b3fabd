//! The tags and tokens of chat templates, for changes of a template's text before it is compiled.

/// Rewrites the inside of each `{{ … }}` and `{% … %}`. Text, comments and raw blocks are copied.
/// `rewrite_inside` gets the opening, `{{` or `{%`, and the inside with its white-space control.
pub(super) fn rewrite_tags(
    source: &str,
    mut rewrite_inside: impl FnMut(&str, &str) -> String,
) -> String {
    let mut rewritten = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = ["{{", "{%", "{#"].iter().filter_map(|open| rest.find(open)).min() {
        let (text, tag) = rest.split_at(start);
        rewritten.push_str(text);
        let (opening, inside) = tag.split_at(2);
        let length = match opening {
            "{#" => inside.find("#}").unwrap_or(inside.len()),
            _ => expression_length(inside, if opening == "{{" { "}}" } else { "%}" }),
        };
        let (inside, after) = inside.split_at(length);
        rewritten.push_str(opening);
        match opening {
            "{#" => rewritten.push_str(inside),
            _ => rewritten.push_str(&rewrite_inside(opening, inside)),
        }
        rest = after;
        if opening == "{%" && without_control(inside) == "raw" {
            let end = rest.find("endraw").unwrap_or(rest.len());
            rewritten.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    rewritten + rest
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
