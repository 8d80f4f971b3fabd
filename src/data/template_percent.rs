//! Python's `text % values` in chat templates. minijinja computes `%` for numbers only and has no
//! hook for other values. So before a template is compiled, `a % b` becomes a filter, `a |
//! favonius_percent(b)`, unless it is obvious that `a` is a number.

use minijinja::{Environment, Error, State, Value};

use super::template_tags::{Kind, Token, rewrite_tags};

/// The name of the filter.
pub(super) const FILTER: &str = "favonius_percent";

/// Words of Jinja that are not names of values, so that no operand ends with them.
const KEYWORDS: [&str; 22] = [
    "and",
    "block",
    "call",
    "do",
    "elif",
    "else",
    "filter",
    "for",
    "from",
    "if",
    "import",
    "in",
    "include",
    "is",
    "macro",
    "not",
    "or",
    "print",
    "recursive",
    "return",
    "set",
    "with",
];

/// The filter: a text is formatted as in Python, by the items of a tuple, by the fields of a
/// mapping, or by one value. Anything else is a remainder.
pub(super) fn percent(state: &mut State, left: Value, right: Value) -> Result<Value, Error> {
    if let (Ok(left), Ok(right)) = (i64::try_from(left.clone()), i64::try_from(right.clone()))
        && right > 0
    {
        return Ok(Value::from(left.rem_euclid(right)));
    }
    if left.as_str().is_none() {
        let environment = Environment::empty();
        let remainder = environment.compile_expression("left % right")?;
        return remainder.eval(minijinja::context! { left, right });
    }
    let mut arguments = vec![left];
    match right.is_tuple() {
        true => arguments.extend(right.try_iter()?),
        false => arguments.push(right),
    }
    state.apply_filter("format", &arguments)
}

/// The template with the filter for every `%` that may format a text.
pub(super) fn rewrite(source: &str) -> String {
    rewrite_tags(source, |_, inside| rewrite_expression(inside))
}

/// Rewrites one `%` after the other, the first one first, as `%` associates to the left.
fn rewrite_expression(expression: &str) -> String {
    let mut text = expression.to_owned();
    let mut from = 0;
    while let Some((operator, left, right)) = Tokens::of(&text).next_operator(from) {
        let operand = text[operator + 1..right].trim();
        let new = format!("{}|{FILTER}({operand})", text[left..operator].trim_end());
        from = left + new.len() - operand.len() - 1;
        text.replace_range(left..right, &new);
    }
    text
}

/// The tokens of an expression without white space.
struct Tokens<'a> {
    text: &'a str,
    tokens: Vec<Token>,
}

impl<'a> Tokens<'a> {
    fn of(text: &'a str) -> Self {
        let mut tokens = Vec::new();
        let mut at = 0;
        while at < text.len() {
            let token = Token::at(text, at);
            at = token.end;
            if token.kind != Kind::Space {
                tokens.push(token);
            }
        }
        Self { text, tokens }
    }

    fn text(&self, index: usize) -> &'a str {
        self.tokens.get(index).map_or("", |token| &self.text[token.start..token.end])
    }

    fn is_operator(&self, index: usize, operator: &str) -> bool {
        self.text(index) == operator && self.tokens[index].kind == Kind::Operator
    }

    /// The first `%` at or after byte `from` that is rewritten: its place, the start of its left
    /// operand and the end of its right one.
    fn next_operator(&self, from: usize) -> Option<(usize, usize, usize)> {
        let places = (0..self.tokens.len()).filter(|index| self.is_operator(*index, "%"));
        let places = places.filter(|index| self.tokens[*index].start >= from);
        let mut found = places.filter_map(|index| {
            let left = self.left_start(index)?;
            let right = self.right_end(index + 1)?;
            let by_number = right == index + 2 && self.tokens[index + 1].kind == Kind::Number;
            let may_be_text = match self.tokens[left].kind {
                Kind::Text => true,
                Kind::Name => self.text(left) != "loop",
                Kind::Open => !by_number,
                _ => false,
            };
            let is_rewritten = may_be_text && !self.binds_before(left);
            let (operator, left) = (self.tokens[index].start, self.tokens[left].start);
            is_rewritten.then(|| (operator, left, self.tokens[right - 1].end))
        });
        found.next()
    }

    /// Whether an operator before the operand at `left` takes it first: a product or a sign. The
    /// left side of `%` is then a number.
    fn binds_before(&self, left: usize) -> bool {
        let Some(before) = left.checked_sub(1) else { return false };
        let is_any = |all: &[&str]| all.iter().any(|operator| self.is_operator(before, operator));
        let has_left = || before.checked_sub(1).is_some_and(|index| self.ends_operand(index));
        is_any(&["*", "/", "//", "**", "%"]) || (is_any(&["-", "+"]) && !has_left())
    }

    /// Whether an operand can end with this token.
    fn ends_operand(&self, index: usize) -> bool {
        match self.tokens[index].kind {
            Kind::Name => !KEYWORDS.contains(&self.text(index)),
            Kind::Number | Kind::Text | Kind::Close => true,
            Kind::Space | Kind::Open | Kind::Operator => false,
        }
    }

    /// The first token of the operand that ends before `end`: a value with its attributes, calls
    /// and filters.
    fn left_start(&self, end: usize) -> Option<usize> {
        let mut at = end.checked_sub(1).filter(|at| self.ends_operand(*at))?;
        loop {
            let is_close = self.tokens[at].kind == Kind::Close;
            if is_close {
                at = self.opening(at)?;
            }
            let Some(before) = at.checked_sub(1) else { return Some(at) };
            let is_trailer = is_close && self.text(at) != "{" && self.ends_operand(before);
            let joins = self.is_operator(before, ".") || self.is_operator(before, "|");
            at = match (is_trailer, joins && !is_close) {
                (true, _) => before,
                (_, true) => before.checked_sub(1).filter(|at| self.ends_operand(*at))?,
                _ => return Some(at),
            };
        }
    }

    /// One past the last token of the operand that starts at `start`.
    fn right_end(&self, start: usize) -> Option<usize> {
        let mut at = start;
        while ["-", "+"].iter().any(|sign| self.is_operator(at, sign)) {
            at += 1;
        }
        let first = self.tokens.get(at)?;
        at = match first.kind {
            Kind::Open => self.closing(at)? + 1,
            Kind::Name | Kind::Number | Kind::Text => at + 1,
            Kind::Space | Kind::Close | Kind::Operator => return None,
        };
        loop {
            let is_name = self.tokens.get(at + 1).is_some_and(|token| token.kind == Kind::Name);
            at = match self.text(at) {
                "." | "|" if is_name => at + 2,
                "(" | "[" => self.closing(at)? + 1,
                _ => return Some(at),
            };
        }
    }

    /// The bracket that closes the one at `open`.
    fn closing(&self, open: usize) -> Option<usize> {
        let mut depth = 0;
        (open..self.tokens.len()).find(|index| {
            match self.tokens[*index].kind {
                Kind::Open => depth += 1,
                Kind::Close => depth -= 1,
                _ => {}
            }
            depth == 0
        })
    }

    /// The bracket that the one at `close` closes.
    fn opening(&self, close: usize) -> Option<usize> {
        let mut depth = 0;
        (0..=close).rev().find(|index| {
            match self.tokens[*index].kind {
                Kind::Close => depth += 1,
                Kind::Open => depth -= 1,
                _ => {}
            }
            depth == 0
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_format_a_text_is_rewritten() {
        for (source, expected) in [
            ("{{ '%s: %s' % (a, b.c[0]) }}", "{{ '%s: %s'|favonius_percent((a, b.c[0])) }}"),
            (
                "{{ 'x' + \"%s\" % m.role|upper ~ '!' }}",
                "{{ 'x' + \"%s\"|favonius_percent(m.role|upper) ~ '!' }}",
            ),
            ("{% if f(a)['%'] % n == 0 %}", "{% if f(a)['%']|favonius_percent(n) == 0 %}"),
            ("{%- set x = '%d' % 3 -%}", "{%- set x = '%d'|favonius_percent(3) -%}"),
            ("{{ '%s' % ('%s' % a) }}", "{{ '%s'|favonius_percent(('%s'|favonius_percent(a))) }}"),
            ("{{ '%%%s' % a % b }}", "{{ '%%%s'|favonius_percent(a)|favonius_percent(b) }}"),
            ("{{ '%(a)s' % {'a': {'b': 1}} }}", "{{ '%(a)s'|favonius_percent({'a': {'b': 1}}) }}"),
            ("{{ a|join('%') % b }}", "{{ a|join('%')|favonius_percent(b) }}"),
            ("{% if (a) % b %}", "{% if (a)|favonius_percent(b) %}"),
            ("{{ f % 7 }}", "{{ f|favonius_percent(7) }}"),
        ] {
            assert_eq!(rewrite(source), expected, "{source}");
        }
        for unchanged in [
            "{% if (loop.index0 + 1) % 2 == 0 %}50 % of {{ 'all %' }}{% endif %}",
            "{{ -a % b }}{{ 2 * a % b }}{{ 7 % a }}{% if loop.index0 % 2 %}",
            "{# 'a' % b #}{% raw %}{{ 'a' % b }}{% endraw %}",
            "{{ 'it\\'s % ' ~ x }}",
            "{% broken 'a % b",
            "{{ % }}{{ a % }}{{ ( % b }}",
        ] {
            assert_eq!(rewrite(unchanged), unchanged);
        }
    }

    /// The results are those of Python 3.
    #[test]
    fn texts_are_formatted_as_in_python() {
        let mut environment = Environment::new();
        environment.add_filter(FILTER, percent);
        for (expression, expected) in [
            ("'%s and %s' % ('a', 1)", "a and 1"),
            ("'%5.2f|%-4d|%04d|%x' % (3.14159, 7, 42, 255)", " 3.14|7   |0042|ff"),
            ("'%(a)s-%(b)d %%' % {'a': 'x', 'b': 2}", "x-2 %"),
            ("'<%s>' % 'a'", "<a>"),
            ("'%s %s' % ('a', '%s' % 'b')", "a b"),
            ("7 % n", "1"),
            ("(n + 5) % n * 2", "4"),
            ("n % 2 ~ (n - 10) % n ~ (n + 0.5) % n", "120.5"),
            ("('n=%d' ~ '') % n", "n=3"),
            ("none is none and 7 % n == 1", "True"),
        ] {
            let source = rewrite(&format!("{{{{ {expression} }}}}"));
            let text = environment.render_str(&source, minijinja::context! { n => 3 });
            assert_eq!(text.unwrap(), expected, "{expression}");
        }
    }
}
