//! Python's methods of strings and lists in chat templates, for those that `minijinja-contrib`
//! lacks or implements differently.

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Kwargs, Tuple, ValueKind, from_args},
};
use minijinja_contrib::pycompat;

use super::template_limits::check_size;

/// The widest text that a method may pad to, in characters.
const WIDEST: usize = 1 << 20;
const TOO_WIDE: &str = "a text is padded to a million characters at most";

/// Calls a method of a value that minijinja does not have itself.
pub(crate) fn call_method(
    state: &mut State,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    if method == "format" {
        arguments.iter().try_for_each(check_size)?;
    }
    let own = match value.as_str() {
        Some(text) if method == "format" && widest_in(text) > WIDEST => {
            return Err(invalid(TOO_WIDE));
        }
        Some(text) => text_method(text, method, arguments)?,
        None if value.kind() == ValueKind::Seq && method == "index" => {
            let (wanted,): (&Value,) = from_args(arguments)?;
            let place = value.try_iter()?.position(|item| item == *wanted);
            Some(Value::from(place.ok_or_else(|| invalid("index: the value is not in the list"))?))
        }
        None => None,
    };
    match own {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, method, arguments),
    }
}

/// `None` if the method is not one of these.
fn text_method(text: &str, method: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    let arguments = || Arguments::of(method, arguments);
    let result = match method {
        "split" | "rsplit" => {
            let arguments = arguments()?;
            let separator = arguments.text(0, "sep")?;
            let most = arguments.number(1, "maxsplit")?.and_then(|most| usize::try_from(most).ok());
            arguments.done()?;
            let most = most.unwrap_or(usize::MAX);
            list(match (separator.as_deref(), method) {
                (Some(""), _) => return Err(invalid("split: the separator is empty")),
                (Some(separator), "split") => {
                    text.splitn(most.saturating_add(1), separator).collect()
                }
                (Some(separator), _) => {
                    reversed(text.rsplitn(most.saturating_add(1), separator).collect())
                }
                (None, "split") => split_at_spaces(text, most),
                (None, _) => rsplit_at_spaces(text, most),
            })
        }
        "splitlines" => {
            let arguments = arguments()?;
            let keep = arguments.get(0, "keepends").is_some_and(|keep| keep.is_true());
            arguments.done()?;
            list(lines(text, keep))
        }
        "removeprefix" | "removesuffix" => {
            let arguments = arguments()?;
            let affix = arguments.required(0, "affix")?;
            arguments.done()?;
            let rest = match method {
                "removeprefix" => text.strip_prefix(&*affix),
                _ => text.strip_suffix(&*affix),
            };
            Value::from(rest.unwrap_or(text))
        }
        "partition" | "rpartition" => {
            let arguments = arguments()?;
            let separator = arguments.required(0, "sep")?;
            arguments.done()?;
            let (found, otherwise) = match method {
                "partition" => (text.split_once(&*separator), [text, "", ""]),
                _ => (text.rsplit_once(&*separator), ["", "", text]),
            };
            let parts = found.map_or(otherwise, |(before, after)| [before, &separator, after]);
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "find" | "rfind" | "index" | "rindex" => {
            let arguments = arguments()?;
            let wanted = arguments.required(0, "sub")?;
            let range = [arguments.number(1, "start")?, arguments.number(2, "end")?];
            arguments.done()?;
            match place_of(text, &wanted, range, method.starts_with('r')) {
                Some(place) => Value::from(place),
                None if method.ends_with("find") => Value::from(-1),
                None => return Err(invalid("index: the text is not found")),
            }
        }
        "zfill" | "ljust" | "rjust" | "center" => {
            let arguments = arguments()?;
            let width = arguments.number(0, "width")?.unwrap_or(0);
            let filler = arguments.text(1, "fillchar")?.unwrap_or_else(|| " ".to_owned());
            arguments.done()?;
            let width = usize::try_from(width).unwrap_or(0);
            if width > WIDEST {
                return Err(invalid(TOO_WIDE));
            }
            Value::from(padded(text, method, width, &filler))
        }
        "swapcase" => {
            arguments()?.done()?;
            let swapped = text.chars().map(|character| match character.is_uppercase() {
                true => character.to_lowercase().to_string(),
                false => character.to_uppercase().to_string(),
            });
            Value::from(swapped.collect::<String>())
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

/// The largest number in the text: no width or precision of a format is larger.
fn widest_in(format: &str) -> usize {
    let numbers = format.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    numbers.map(|digits| digits.parse().unwrap_or(usize::MAX)).max().unwrap_or(0)
}

fn invalid(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

fn list(texts: Vec<&str>) -> Value {
    texts.into_iter().map(Value::from).collect()
}

fn reversed<T>(mut items: Vec<T>) -> Vec<T> {
    items.reverse();
    items
}

/// The arguments of a method, each by place or by name.
struct Arguments<'a> {
    method: &'a str,
    by_place: &'a [Value],
    by_name: Kwargs,
}

impl<'a> Arguments<'a> {
    fn of(method: &'a str, arguments: &'a [Value]) -> Result<Self, Error> {
        let (by_place, by_name): (&[Value], Kwargs) = from_args(arguments)?;
        Ok(Self { method, by_place, by_name })
    }

    /// `None` if the argument is missing or none.
    fn get(&self, place: usize, name: &str) -> Option<Value> {
        let by_name = || self.by_name.get::<Value>(name).ok();
        let value = self.by_place.get(place).cloned().or_else(by_name)?;
        (!value.is_none() && !value.is_undefined()).then_some(value)
    }

    fn text(&self, place: usize, name: &str) -> Result<Option<String>, Error> {
        let Some(value) = self.get(place, name) else { return Ok(None) };
        value.as_str().map(|text| Some(text.to_owned())).ok_or_else(|| {
            let message = format!("{}: `{name}` is {}, not a text", self.method, value.kind());
            Error::new(ErrorKind::InvalidOperation, message)
        })
    }

    fn required(&self, place: usize, name: &str) -> Result<String, Error> {
        self.text(place, name)?.ok_or_else(|| Error::from(ErrorKind::MissingArgument))
    }

    fn number(&self, place: usize, name: &str) -> Result<Option<i64>, Error> {
        self.get(place, name).map(i64::try_from).transpose()
    }

    fn done(&self) -> Result<(), Error> {
        self.by_name.assert_all_used()
    }
}

/// Python's white space.
pub(crate) fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

fn split_at_spaces(text: &str, most: usize) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let end = match words.len() < most {
            true => rest.find(is_space).unwrap_or(rest.len()),
            false => rest.len(),
        };
        words.push(&rest[..end]);
        rest = rest[end..].trim_start_matches(is_space);
    }
    words
}

fn rsplit_at_spaces(text: &str, most: usize) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_end_matches(is_space);
    while !rest.is_empty() {
        let space = rest.char_indices().rfind(|(_, character)| is_space(*character));
        let start = match (space, words.len() < most) {
            (Some((at, character)), true) => at + character.len_utf8(),
            _ => 0,
        };
        words.push(&rest[start..]);
        rest = rest[..start].trim_end_matches(is_space);
    }
    reversed(words)
}

/// Python's lines: besides `\n` and `\r`, eight further characters end a line.
fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let is_end = |character: char| {
        matches!(
            character,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(is_end).unwrap_or(rest.len());
        let width = match rest[end..].starts_with("\r\n") {
            true => 2,
            false => rest[end..].chars().next().map_or(0, char::len_utf8),
        };
        lines.push(&rest[..if keep_ends { end + width } else { end }]);
        rest = &rest[end + width..];
    }
    lines
}

/// The place of `wanted` in characters, between the ends of `range`. Negative ends count from the
/// end of the text.
fn place_of(text: &str, wanted: &str, range: [Option<i64>; 2], last: bool) -> Option<usize> {
    let length = text.chars().count();
    let at = |end: i64| match usize::try_from(end) {
        Ok(end) => end.min(length),
        Err(_) => length.saturating_sub(end.unsigned_abs() as usize),
    };
    let [start, end] = [range[0].map_or(0, at), range[1].map_or(length, at)];
    if start > end || range[0].is_some_and(|start| start > length as i64) {
        return None;
    }
    let byte = |place: usize| text.char_indices().nth(place).map_or(text.len(), |(at, _)| at);
    let part = &text[byte(start)..byte(end)];
    let found = if last { part.rfind(wanted) } else { part.find(wanted) };
    found.map(|found| start + part[..found].chars().count())
}

fn padded(text: &str, method: &str, width: usize, filler: &str) -> String {
    let missing = width.saturating_sub(text.chars().count());
    match method {
        "zfill" => {
            let digits = text.trim_start_matches(['+', '-']);
            let sign = if text.len() - digits.len() == 1 { &text[..1] } else { "" };
            format!("{sign}{}{}", "0".repeat(missing), &text[sign.len()..])
        }
        "ljust" => format!("{text}{}", filler.repeat(missing)),
        "rjust" => format!("{}{text}", filler.repeat(missing)),
        _ => {
            let left = missing / 2 + (missing & width & 1);
            format!("{}{text}{}", filler.repeat(left), filler.repeat(missing - left))
        }
    }
}

#[cfg(test)]
mod tests {
    use minijinja::Environment;

    use super::*;

    fn render(expression: &str) -> Result<String, Error> {
        let mut environment = Environment::new();
        environment.set_unknown_method_callback(call_method);
        environment.render_str(&format!("{{{{ ({expression}) | list | join('|') }}}}"), ())
    }

    /// The results are those of Python 3.
    #[test]
    fn methods_give_what_python_gives() {
        for (expression, expected) in [
            (
                "'a\\nb\\r\\nc\\u000bd\\u000ce\\u001cf\\u0085g\\u2028h\\n'.splitlines()",
                "a|b|c|d|e|f|g|h",
            ),
            ("'a\\nb\\r\\n'.splitlines(true)", "a\n|b\r\n"),
            ("'a\\nb'.splitlines(keepends=true)", "a\n|b"),
            ("''.splitlines()", ""),
            ("'a,b,c'.rsplit(',', 1)", "a,b|c"),
            ("' a  b '.rsplit()", "a|b"),
            ("' a  b c '.rsplit(none, 1)", " a  b|c"),
            ("'a b'.rsplit(sep=' ')", "a|b"),
            ("'a-b-c'.split(sep='-', maxsplit=1)", "a|b-c"),
            ("'a-b-c'.split('-', maxsplit=1)", "a|b-c"),
            ("' a  b c '.split(none, 1)", "a|b c "),
            ("' a  b c '.split(maxsplit=1)", "a|b c "),
            ("'a  b'.split(' ')", "a||b"),
            ("'a b c'.split(' ', 1)", "a|b c"),
            (
                "['xabc'.removeprefix('x'), 'abcx'.removesuffix('x'), 'ab'.removesuffix('')]",
                "abc|abc|ab",
            ),
            ("'a=b=c'.partition('=')", "a|=|b=c"),
            ("'a=b=c'.rpartition('=')", "a=b|=|c"),
            ("'abc'.partition('=')", "abc||"),
            ("'abc'.rpartition('=')", "||abc"),
            (
                "['abcb'.index('b'), 'abcb'.rindex('b'), 'äbc'.index('c'), 'abcb'.index('b', 2)]",
                "1|3|2|3",
            ),
            ("['abcb'.find('z'), 'abcb'.rfind('b', 0, 3), [1, 2, 3].index(2)]", "-1|1|1"),
            ("['5'.zfill(3), '-5'.zfill(4), '+5'.zfill(4), ''.zfill(2)]", "005|-005|+005|00"),
            (
                "['a'.ljust(3, '*'), 'a'.rjust(3), 'ab'.center(5, '*'), 'aBc'.swapcase()]",
                "a**|  a|**ab*|AbC",
            ),
        ] {
            assert_eq!(render(expression).unwrap(), expected, "{expression}");
        }
        for refused in [
            "'abc'.index('z')",
            "'a'.split('')",
            "[1].index(2)",
            "'a'.ljust(9999999999)",
            "'{:>99999999999}'.format(1)",
            "'{:.99999999999f}'.format(1.0)",
        ] {
            assert!(render(refused).is_err(), "{refused}");
        }
    }
}
