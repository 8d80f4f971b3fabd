//! `str` and `repr` of values.

use std::fmt::Write;

use serde_json::Value;

use super::number::float_text;

/// `str(value)`.
pub fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => repr(other),
    }
}

/// `repr(value)`.
pub fn repr(value: &Value) -> String {
    let mut out = String::new();
    write_repr(value, &mut out);
    out
}

fn write_repr(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(real) => out.push_str(&float_text(real)),
            None => out.push_str(&number.to_string()),
        },
        Value::String(text) => write_text(text, out),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_repr(item, out);
            }
            out.push(']');
        }
        Value::Object(fields) => {
            out.push('{');
            for (index, (key, item)) in fields.iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_text(key, out);
                out.push_str(": ");
                write_repr(item, out);
            }
            out.push('}');
        }
    }
}

fn write_text(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            // Writing to a String cannot fail.
            c if (c as u32) < 0x100 => write!(out, "\\x{:02x}", c as u32).unwrap_or_default(),
            c if (c as u32) < 0x1_0000 => write!(out, "\\u{:04x}", c as u32).unwrap_or_default(),
            c => write!(out, "\\U{:08x}", c as u32).unwrap_or_default(),
        }
    }
    out.push(quote);
}

/// Python writes other characters as escapes: controls, white space besides the blank, format
/// characters, private use.
fn is_printable(character: char) -> bool {
    let is_format = matches!(
        character as u32,
        0xad | 0x600..=0x605
            | 0x61c
            | 0x6dd
            | 0x70f
            | 0x180e
            | 0x200b..=0x200f
            | 0x202a..=0x202e
            | 0x2060..=0x206f
            | 0xfeff
            | 0xfff9..=0xfffb
            | 0xe000..=0xf8ff
            | 0xf_0000..
    );
    character == ' ' || !(character.is_control() || character.is_whitespace() || is_format)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_written_as_in_python() {
        let value = json!(["a'b", "a\"b'c", null, true, {"k": 1.0, "n": -3}, "t\t\u{0}\u{a0}é\\"]);
        let expected = r#"["a'b", 'a"b\'c', None, True, {'k': 1.0, 'n': -3}, 't\t\x00\xa0é\\']"#;
        assert_eq!(repr(&value), expected);
        assert_eq!(text_of(&json!("it's")), "it's");
        assert_eq!(text_of(&json!(7)), "7");
    }
}
