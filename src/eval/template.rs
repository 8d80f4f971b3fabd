//! Jinja templates of tasks, as lm-eval renders them: jinja2 with strict names, Python's texts of
//! values, and the filter `regex_replace`. Work and memory are limited as for chat templates.

use minijinja::{
    Environment, Error, ErrorKind, UndefinedBehavior, Value,
    syntax::SyntaxConfig,
    value::{Kwargs, Rest, Serde, ValueKind},
};
use serde_json::{Map, Value as Json};

use super::python::{Pattern, float_text, repr};
use crate::data::{LimitedEnvironments, Stop, add_namespaces, call_method, check_size, to_json};

const NAME: &str = "template";

/// A compiled template.
#[derive(Debug)]
pub struct Template {
    environments: LimitedEnvironments,
    source: String,
}

impl Template {
    /// # Errors
    /// The template is not Jinja; the text says why, and on which of its lines.
    pub fn new(source: &str) -> Result<Self, String> {
        let compiled = LimitedEnvironments::compile(environment(), NAME, source, source);
        let environments = compiled.map_err(|(line, reason)| {
            format!("the template is broken at its line {line}: {reason}")
        })?;
        Ok(Self { environments, source: source.to_owned() })
    }

    /// The text of the template.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text for a row.
    ///
    /// # Errors
    /// The template uses a column that the row lacks, or an operation fails.
    pub fn render(&self, row: &Map<String, Json>) -> Result<String, String> {
        self.environments.render(NAME, &Value::from(Serde(row))).map_err(|stop| {
            let columns: Vec<String> = row.keys().map(|name| format!("`{name}`")).collect();
            let columns = columns.join(", ");
            match stop {
                Stop::Refused(reason) => format!("template: {reason} (the row has {columns})"),
                Stop::Endless(rows) => {
                    format!("template: it does too much work: it was stopped for {rows} rows")
                }
            }
        })
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
    environment.set_syntax(syntax.expect("the default delimiters are valid"));
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(call_method);
    add_namespaces(&mut environment);
    environment.set_formatter(|out, _, value| out.write_str(&text_of(value)?).map_err(Error::from));
    environment.add_filter("regex_replace", regex_replace);
    environment.add_filter("tojson", html_safe_json);
    environment.add_filter("string", |value: Value| text_of(&value));
    environment.add_filter("pprint", |value: &Value| {
        check_size(value)?;
        Ok::<_, Error>(minijinja::filters::pprint(value))
    });
    environment
}

/// Python's `str(value)`.
fn text_of(value: &Value) -> Result<String, Error> {
    Ok(match value.kind() {
        ValueKind::String => value.as_str().unwrap_or_default().to_owned(),
        ValueKind::None => "None".to_owned(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.to_owned(),
        ValueKind::Number if value.is_integer() => value.to_string(),
        ValueKind::Number => match f64::try_from(value.clone()) {
            Ok(number) => float_text(number),
            Err(_) => value.to_string(),
        },
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => {
            check_size(value)?;
            let json = serde_json::to_value(value)
                .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
            repr(&json)
        }
        _ => value.to_string(),
    })
}

/// `re.sub(pattern, repl, string, count)`. In `repl`, `\1`, `\g<1>` and `\n` have Python's meaning.
fn regex_replace(string: String, by_place: Rest<Value>, by_name: Kwargs) -> Result<String, Error> {
    let argument = |place: usize, name: &str| match by_place.get(place) {
        Some(value) => Ok(value.clone()),
        None => by_name.get::<Value>(name),
    };
    let text = |place: usize, name: &str| {
        let value: Value = argument(place, name)?;
        value.as_str().map(str::to_owned).ok_or_else(|| {
            let message = format!("regex_replace: `{name}` is no text");
            Error::new(ErrorKind::InvalidOperation, message)
        })
    };
    let (pattern, repl) = (text(0, "pattern")?, text(1, "repl")?);
    let count = argument(2, "count").ok().map(usize::try_from).transpose()?;
    by_name.assert_all_used()?;
    let pattern = Pattern::new(&pattern).map_err(|message| {
        let message = format!("regex_replace: {message}");
        Error::new(ErrorKind::InvalidOperation, message)
    })?;
    let most = count.filter(|count| *count > 0).unwrap_or(usize::MAX);
    Ok(pattern.replace_with(&string, most, |groups| expanded(&repl, groups)))
}

/// A replacement with its references to groups filled in.
fn expanded(replacement: &str, groups: &[Option<&str>]) -> String {
    let group = |number: &str| {
        let number: usize = number.parse().unwrap_or(usize::MAX);
        groups.get(number).copied().flatten().unwrap_or_default()
    };
    let mut out = String::new();
    let mut rest = replacement;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some((number, after)) = rest.strip_prefix("g<").and_then(|rest| rest.split_once('>'))
        {
            out.push_str(group(number));
            rest = after;
            continue;
        }
        let digits = rest.bytes().take(2).take_while(u8::is_ascii_digit).count();
        if digits > 0 {
            out.push_str(group(&rest[..digits]));
            rest = &rest[digits..];
            continue;
        }
        let Some(character) = rest.chars().next() else { break };
        match character {
            'n' => out.push('\n'),
            't' => out.push('\t'),
            'r' => out.push('\r'),
            '\\' => out.push('\\'),
            other => out.extend(['\\', other]),
        }
        rest = &rest[character.len_utf8()..];
    }
    out.push_str(rest);
    out
}

/// jinja2's own `tojson`: sorted keys, ASCII, and escapes for HTML.
fn html_safe_json(value: Value, by_place: Rest<Value>, by_name: Kwargs) -> Result<String, Error> {
    let indent = by_place.first().cloned().or_else(|| by_name.get::<Value>("indent").ok());
    by_name.assert_all_used()?;
    let mut arguments = vec![("sort_keys", Value::from(true)), ("ensure_ascii", Value::from(true))];
    arguments.extend(indent.map(|indent| ("indent", indent)));
    let text = to_json(value, Kwargs::from_iter(arguments))?;
    let escapes = [('<', "\\u003c"), ('>', "\\u003e"), ('&', "\\u0026"), ('\'', "\\u0027")];
    Ok(escapes.into_iter().fold(text, |text, (character, escape)| text.replace(character, escape)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(source: &str, row: Json) -> Result<String, String> {
        let Json::Object(row) = row else { unreachable!() };
        Template::new(source)?.render(&row)
    }

    /// The texts are those of jinja2 3.1 with lm-eval's environment.
    #[test]
    fn texts_are_those_of_jinja2() {
        let row = json!({
            "q": " a b ", "c": ["x", "it's"], "d": {"b": 1, "a": 2.0}, "n": null, "t": true,
        });
        for (source, expected) in [
            ("{{q.strip()}}\nA:\n", "a b\nA:\n"),
            ("{{c}} {{d}} {{n}} {{t}} {{d.a}}", "['x', \"it's\"] {'b': 1, 'a': 2.0} None True 2.0"),
            ("{{c.index('x')}}{{c[1]}}{{c|length}}", "0it's2"),
            ("{{d|join(',')}}", "b,a"),
            ("{{c|join(', ')}}", "x, it's"),
            ("{% for x in c %}{{loop.index}}{{x}} {% endfor %}\n", "1x 2it's \n"),
            ("{% set p = 'a\n' %}\n{{p + q}}", "\na\n a b "),
            ("{{q|regex_replace('(a) (b)', '\\\\2-\\\\g<1>')}}", " b-a "),
            ("{{q | regex_replace(pattern='\\\\s', repl='', count=1)}}|", "a b |"),
            ("{{'<a>'|tojson}}", "\"\\u003ca\\u003e\""),
            ("{{d|tojson(indent=1)}}", "{\n \"a\": 2.0,\n \"b\": 1\n}"),
            ("{{['A','B'][1]}}{{q[1:2]}}{{q.split()[-1]}}", "Bab"),
            ("{{c|string}}{{3 / 2}}{{4 // 2}}", "['x', \"it's\"]1.52"),
        ] {
            assert_eq!(render(source, row.clone()).as_deref(), Ok(expected), "{source}");
        }
    }

    #[test]
    fn missing_columns_are_errors() {
        let error = render("{{question}}", json!({"q": 1})).unwrap_err();
        assert!(error.ends_with("(the row has `q`)"), "{error}");
        assert!(render("{{q.x.y}}", json!({"q": {}})).is_err());
        let error = render("a\n{{q", json!({})).unwrap_err();
        assert!(error.starts_with("the template is broken at its line 2"), "{error}");
    }

    #[test]
    fn work_and_memory_are_limited() {
        let deep = format!("{{% set x = [] %}}{}{{{{x}}}}", "{% set x = [x] %}".repeat(300));
        for (source, reason) in [
            (
                "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
                "too much work",
            ),
            (&deep, "nested more than 200 deep"),
            ("{{'x' * 99999999999}}", "too much work"),
        ] {
            let message = render(source, json!({"q": 1})).unwrap_err();
            assert!(message.contains(reason), "{message}");
        }
        let cycle = "{% set n = namespace(a=1) %}{% set n.x = [n] %}{{n.x[0].a}}{{n}}{{n ~ ''}}";
        let text = "<Namespace {'a': 1, 'x': [<Namespace {...}>]}>".repeat(2);
        assert_eq!(render(cycle, json!({})), Ok("1".to_owned() + &text));
    }
}
