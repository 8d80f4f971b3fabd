//! JSON as Python's `json.dumps(sort_keys=True)` writes it: shortest floats in Python's form,
//! non-ASCII characters escaped, and the words `NaN`, `Infinity`, `-Infinity`, which are not valid
//! JSON and which serde_json does not read.

use serde_json::{Map, Value};

/// A [`Value`] holds `NaN`, `Infinity` and `-Infinity` as strings that begin with this character.
/// No other text in these files contains it.
const MARK: char = '\0';
const WORDS: [(&str, f64); 3] =
    [("NaN", f64::NAN), ("-Infinity", f64::NEG_INFINITY), ("Infinity", f64::INFINITY)];

/// A float as a value that [`to_text`] writes in Python's form. It may be NaN or infinite.
pub fn float(number: f64) -> Value {
    let word = if number.is_nan() {
        "NaN"
    } else if number == f64::INFINITY {
        "Infinity"
    } else if number == f64::NEG_INFINITY {
        "-Infinity"
    } else {
        return Value::from(number);
    };
    Value::String(format!("{MARK}{word}"))
}

/// The number in a value from [`parse`] or [`float`], whole or not, finite or not.
pub fn as_float(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => {
            let word = text.strip_prefix(MARK)?;
            WORDS.iter().find(|(name, _)| *name == word).map(|&(_, number)| number)
        }
        _ => None,
    }
}

/// Reads JSON, including Python's words for NaN and infinities.
///
/// # Errors
/// The text is not JSON; the error has line and column.
pub fn parse(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(&quote_words(text))
}

/// Turns bare `NaN`, `Infinity`, `-Infinity` into marked strings. Strings stay unchanged.
fn quote_words(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_string = false;
    while let Some(first) = rest.chars().next() {
        let word =
            WORDS.iter().map(|&(word, _)| word).find(|word| !in_string && rest.starts_with(word));
        let length = match (word, first) {
            (Some(word), _) => {
                quoted.push_str("\"\\u0000");
                quoted.push_str(word);
                quoted.push('"');
                rest = &rest[word.len()..];
                continue;
            }
            // An escape is read together with the next character, so that \" does not end the
            // string.
            (None, '\\') => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            (None, _) => first.len_utf8(),
        };
        in_string ^= first == '"';
        quoted.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    quoted
}

/// `json.dumps(value, indent=indent, sort_keys=True)`.
pub fn to_text(value: &Value, indent: usize) -> String {
    let mut text = String::new();
    write_value(&mut text, value, indent, 0);
    text
}

fn write_value(text: &mut String, value: &Value, indent: usize, depth: usize) {
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(true) => text.push_str("true"),
        Value::Bool(false) => text.push_str("false"),
        Value::Number(number) if !number.is_f64() => text.push_str(&number.to_string()),
        Value::Number(number) => text.push_str(&float_repr(number.as_f64().unwrap_or(f64::NAN))),
        Value::String(string) => match string.strip_prefix(MARK) {
            Some(word) => text.push_str(word),
            None => write_string(text, string),
        },
        Value::Array(items) => {
            let write =
                |text: &mut String, item: &Value| write_value(text, item, indent, depth + 1);
            write_list(text, ['[', ']'], items.iter(), indent, depth, write);
        }
        Value::Object(fields) => {
            let write = |text: &mut String, (name, value): (&str, &Value)| {
                write_string(text, name);
                text.push_str(": ");
                write_value(text, value, indent, depth + 1);
            };
            write_list(text, ['{', '}'], sorted(fields), indent, depth, write);
        }
    }
}

fn sorted(fields: &Map<String, Value>) -> std::vec::IntoIter<(&str, &Value)> {
    let mut fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value)).collect();
    fields.sort_unstable_by_key(|(name, _)| *name);
    fields.into_iter()
}

fn write_list<T>(
    text: &mut String,
    [open, close]: [char; 2],
    items: impl ExactSizeIterator<Item = T>,
    indent: usize,
    depth: usize,
    write: impl Fn(&mut String, T),
) {
    let empty = items.len() == 0;
    text.push(open);
    for (index, item) in items.enumerate() {
        if index > 0 {
            text.push(',');
        }
        new_line(text, indent * (depth + 1));
        write(text, item);
    }
    if !empty {
        new_line(text, indent * depth);
    }
    text.push(close);
}

fn new_line(text: &mut String, spaces: usize) {
    text.push('\n');
    text.extend(std::iter::repeat_n(' ', spaces));
}

fn write_string(text: &mut String, string: &str) {
    text.push('"');
    for character in string.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            ' '..='~' => text.push(character),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    text.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    text.push('"');
}

/// A float in the form of Python's `json`: the fewest digits that read back to the same bits, with
/// an exponent below 1e-4 and from 1e16 on (`5e-07`, `1e+16`, `1.0`), `NaN`, `Infinity`.
pub fn float_repr(number: f64) -> String {
    if let Value::String(word) = float(number) {
        return word[MARK.len_utf8()..].to_owned();
    }
    let scientific = format!("{number:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{mantissa}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{number:?}"),
    }
}
