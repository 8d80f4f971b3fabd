//! The filter `tojson` of chat templates.

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, ValueKind},
};

use super::template_limits::{DEEPEST, LONGEST, too_large};

/// Python's `json.dumps` with `ensure_ascii=False` and the given `indent`.
pub(crate) fn to_json(value: Value, arguments: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    let sort_keys = arguments.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let ensure_ascii = arguments.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let separators: Option<Vec<String>> = arguments.get("separators")?;
    arguments.assert_all_used()?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(_) => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "tojson: `separators` must be two texts",
            ));
        }
        None => (if indent.is_some() { "," } else { ", " }, ": "),
    };
    let mut out = String::new();
    JsonWriter { item, key, indent, sort_keys, ensure_ascii }.write(&value, 0, &mut out)?;
    Ok(out)
}

struct JsonWriter<'a> {
    item: &'a str,
    key: &'a str,
    indent: Option<usize>,
    sort_keys: bool,
    ensure_ascii: bool,
}

impl JsonWriter<'_> {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > DEEPEST || out.len() > LONGEST {
            return Err(too_large());
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&value.to_string()),
            ValueKind::String => self.write_text(value.as_str().unwrap_or_default(), out),
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                let write_pair = |key: &Value, out: &mut String| {
                    self.write_text(&key.to_string(), out);
                    out.push_str(self.key);
                    self.write(&value.get_item(key)?, depth + 1, out)
                };
                self.write_items(&keys, ['{', '}'], depth, out, write_pair)?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                let write_item = |item: &Value, out: &mut String| self.write(item, depth + 1, out);
                self.write_items(&items, ['[', ']'], depth, out, write_item)?;
            }
            kind => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("tojson: {kind} cannot be written as JSON"),
                ));
            }
        }
        Ok(())
    }

    fn write_items(
        &self,
        items: &[Value],
        [open, close]: [char; 2],
        depth: usize,
        out: &mut String,
        write: impl Fn(&Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push_str(self.item);
            }
            self.new_line(depth + 1, out)?;
            write(item, out)?;
        }
        if !items.is_empty() {
            self.new_line(depth, out)?;
        }
        out.push(close);
        Ok(())
    }

    fn new_line(&self, depth: usize, out: &mut String) -> Result<(), Error> {
        if let Some(indent) = self.indent {
            let blanks = indent.saturating_mul(depth);
            if blanks > LONGEST - LONGEST.min(out.len()) {
                return Err(too_large());
            }
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', blanks));
        }
        Ok(())
    }

    fn write_text(&self, text: &str, out: &mut String) {
        out.push('"');
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && !c.is_ascii()) => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}
