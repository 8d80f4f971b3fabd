//! `ast.literal_eval`: the values of Python literals.

use serde_json::{Map, Number, Value};

/// The deepest nesting of lists and dicts.
const DEEPEST: usize = 100;

/// The value of a Python literal: texts, numbers, `None`, `True`, `False`, lists, tuples (as
/// lists) and dicts with texts as keys. `None` if the text is something else.
pub fn literal_eval(text: &str) -> Option<Value> {
    let mut reader = Reader { rest: text.trim_start_matches([' ', '\t']) };
    let value = reader.value(0)?;
    reader.skip_blanks();
    reader.rest.is_empty().then_some(value)
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, token: &str) -> bool {
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn next_is(&mut self, token: &str) -> bool {
        self.skip_blanks();
        self.take(token)
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > DEEPEST {
            return None;
        }
        self.skip_blanks();
        match self.rest.chars().next()? {
            '[' => self.items("[", "]", depth).map(|(items, _)| Value::Array(items)),
            '(' => {
                let (mut items, comma) = self.items("(", ")", depth)?;
                match items.len() == 1 && !comma {
                    true => items.pop(),
                    false => Some(Value::Array(items)),
                }
            }
            '{' => self.fields(depth),
            '\'' | '"' => self.texts(),
            'N' => self.take("None").then_some(Value::Null),
            'T' => self.take("True").then_some(Value::Bool(true)),
            'F' => self.take("False").then_some(Value::Bool(false)),
            _ => self.number(),
        }
    }

    /// Items between brackets, and whether a comma follows the last one.
    fn items(&mut self, open: &str, close: &str, depth: usize) -> Option<(Vec<Value>, bool)> {
        self.take(open);
        let mut items = Vec::new();
        loop {
            if self.next_is(close) {
                return Some((items, true));
            }
            items.push(self.value(depth + 1)?);
            if !self.next_is(",") {
                return self.next_is(close).then_some((items, false));
            }
        }
    }

    fn fields(&mut self, depth: usize) -> Option<Value> {
        self.take("{");
        let mut fields = Map::new();
        loop {
            if self.next_is("}") {
                return Some(Value::Object(fields));
            }
            let Value::String(key) = self.value(depth + 1)? else { return None };
            if !self.next_is(":") {
                return None;
            }
            fields.insert(key, self.value(depth + 1)?);
            if !self.next_is(",") {
                return self.next_is("}").then_some(Value::Object(fields));
            }
        }
    }

    /// A text, or several in a row, which Python joins.
    fn texts(&mut self) -> Option<Value> {
        let mut out = String::new();
        loop {
            self.text(&mut out)?;
            self.skip_blanks();
            if !self.rest.starts_with(['\'', '"']) {
                return Some(Value::String(out));
            }
        }
    }

    fn text(&mut self, out: &mut String) -> Option<()> {
        let one = if self.rest.starts_with('\'') { "'" } else { "\"" };
        let three = one.repeat(3);
        let is_long = self.take(&three);
        let quote = if is_long { three.as_str() } else { one };
        if !is_long {
            self.take(one);
        }
        while !self.take(quote) {
            let character = self.character()?;
            match character {
                '\n' if !is_long => return None,
                '\\' => self.escape(out)?,
                other => out.push(other),
            }
        }
        Some(())
    }

    fn character(&mut self) -> Option<char> {
        let character = self.rest.chars().next()?;
        self.rest = &self.rest[character.len_utf8()..];
        Some(character)
    }

    fn escape(&mut self, out: &mut String) -> Option<()> {
        let simple = match self.character()? {
            '\n' => return Some(()),
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'v' => '\u{b}',
            'x' => self.code(2)?,
            'u' => self.code(4)?,
            'U' => self.code(8)?,
            octal @ '0'..='7' => {
                let mut code = octal.to_digit(8)?;
                for _ in 0..2 {
                    let Some(digit) = self.rest.chars().next().and_then(|c| c.to_digit(8)) else {
                        break;
                    };
                    code = code * 8 + digit;
                    self.character();
                }
                char::from_u32(code)?
            }
            quoted @ ('\\' | '\'' | '"') => quoted,
            other => {
                out.push('\\');
                other
            }
        };
        out.push(simple);
        Some(())
    }

    fn code(&mut self, digits: usize) -> Option<char> {
        let code = self.rest.get(..digits)?;
        self.rest = &self.rest[digits..];
        u32::from_str_radix(code, 16).ok().and_then(char::from_u32)
    }

    fn number(&mut self) -> Option<Value> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || "+-._".contains(c);
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (text, rest) = self.rest.split_at(end);
        self.rest = rest;
        if let Ok(whole) = text.replace('_', "").parse::<i64>() {
            return Some(Value::from(whole));
        }
        super::number::float(text).and_then(Number::from_f64).map(Value::Number)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::eval::python::repr;

    #[test]
    fn literals_have_the_values_of_python() {
        for (text, expected) in [
            (r#" ['a', "b'c", 'd\'e\n\x41\u00e9\101']"#, json!(["a", "b'c", "d'e\nAéA"])),
            ("('a', 'b',)", json!(["a", "b"])),
            ("('a')", json!("a")),
            ("('a',)", json!(["a"])),
            ("[]", json!([])),
            (
                "{'a': 1, 'b': [None, True, -2.5, 1e3]}",
                json!({"a": 1, "b": [null, true, -2.5, 1000.0]}),
            ),
            ("'a' \"b\"", json!("ab")),
            ("'''a\n'b'''", json!("a\n'b")),
            (r"'\q'", json!("\\q")),
        ] {
            assert_eq!(literal_eval(text), Some(expected), "{text}");
        }
        for text in ["", "a", "[1", "['a'] x", "__import__('os')", "'a\n'", "[a]", "{1: 2}"] {
            assert_eq!(literal_eval(text), None, "{text}");
        }
    }

    #[test]
    fn values_survive_their_writing() {
        let value = json!(["it's \"so\"", "a\\b\u{a0}\u{200b}", {"k": [1, 2.5, null, false]}]);
        assert_eq!(literal_eval(&repr(&value)), Some(value));
    }
}
