//! YAML text → a tree that records the place of every key and value.
//!
//! Scalars stay text: the reader of a key decides what `5e-7` or `no` means, not the YAML parser.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::Spanned;
use serde_yaml::options::{DuplicateKeyPolicy, NonFiniteFloatPolicy};

use super::error::{COMMAND_LINE, ErrorPlace, RecipeError, RecipeErrors};

/// A part of one line in one of the [`Sources`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    source: usize,
    line: usize,
    column: usize,
    width: usize,
}

impl Place {
    /// Whether the place is in an override.
    pub fn is_override(self) -> bool {
        self.source > 0
    }

    /// The line, from 1.
    pub fn line(self) -> usize {
        self.line
    }
}

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub value: Value,
    pub at: Place,
}

/// The content of a value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    /// `text` excludes the quotes.
    Scalar {
        text: String,
        quoted: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key with its value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub key: String,
    pub key_at: Place,
    pub value: Node,
}

impl Node {
    /// A value as messages describe it.
    pub fn kind(&self) -> String {
        match &self.value {
            Value::Null => "null".to_owned(),
            Value::Scalar { text, .. } => format!("`{}`", shortened(text)),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        }
    }

    /// The text of a scalar.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// Whether the values are equal, regardless of their places.
    pub fn same_value(&self, other: &Node) -> bool {
        self.to_string() == other.to_string()
    }
}

/// The text on one line, cut to 60 characters.
fn shortened(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match line.chars().count() > 60 {
        true => line.chars().take(60).chain("…".chars()).collect(),
        false => line,
    }
}

/// YAML's flow form on one line; parsing it gives the same value.
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Value::Null => f.write_str("null"),
            Value::Scalar { text, quoted } => write_scalar(f, text, *quoted),
            Value::List(items) => {
                f.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    let comma = if index > 0 { ", " } else { "" };
                    write!(f, "{comma}{item}")?;
                }
                f.write_str("]")
            }
            Value::Map(entries) => {
                f.write_str("{")?;
                for (index, entry) in entries.iter().enumerate() {
                    f.write_str(if index > 0 { ", " } else { "" })?;
                    write_scalar(f, &entry.key, false)?;
                    write!(f, ": {}", entry.value)?;
                }
                f.write_str("}")
            }
        }
    }
}

/// A text as a scalar in YAML's flow form; parsing it gives the same text.
pub(crate) fn text_in_yaml(text: &str) -> String {
    struct Text<'a>(&'a str);
    impl fmt::Display for Text<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write_scalar(f, self.0, true)
        }
    }
    Text(text).to_string()
}

/// Writes a scalar plainly if that is safe, else in double quotes with escapes.
fn write_scalar(f: &mut fmt::Formatter<'_>, text: &str, quoted: bool) -> fmt::Result {
    let is_word = |c: char| c.is_alphanumeric() || "_-./+".contains(c);
    let looks_null = matches!(text, "null" | "Null" | "NULL");
    // Three dots end a document.
    let is_plain =
        !text.is_empty() && !text.starts_with('-') && text != "..." && text.chars().all(is_word);
    if is_plain && !(quoted && looks_null) {
        return f.write_str(text);
    }
    if !quoted && text.parse::<f64>().is_ok() {
        return f.write_str(text);
    }
    f.write_str("\"")?;
    for c in text.chars() {
        match c {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            '\t' => f.write_str("\\t")?,
            // Line ends and marks that a parser may change.
            '\u{2028}' | '\u{2029}' | '\u{feff}' => write!(f, "\\u{:04x}", c as u32)?,
            c if c.is_control() => write!(f, "\\u{:04x}", c as u32)?,
            c => write!(f, "{c}")?,
        }
    }
    f.write_str("\"")
}

/// The texts that places point into: first the file, then the overrides.
#[derive(Debug)]
pub(crate) struct Sources(Vec<Source>);

#[derive(Debug)]
struct Source {
    name: PathBuf,
    text: String,
}

impl Sources {
    /// Starts with the file.
    pub fn new(file: &Path, text: &str) -> Self {
        Sources(vec![Source { name: file.to_owned(), text: text.to_owned() }])
    }

    /// The recipe or pipeline itself.
    pub fn file(&self) -> &Path {
        &self.0[0].name
    }

    /// The tree of the file. An empty file is an empty mapping.
    pub fn parse_file(&self) -> Result<Node, RecipeErrors> {
        let mut node = self.parse(0, 0)?;
        if node.value == Value::Null {
            node.value = Value::Map(Vec::new());
        }
        Ok(node)
    }

    /// Adds the override `argument`, whose value starts at byte `value_at`. Returns its source
    /// number and its value, parsed as YAML.
    pub fn parse_override(
        &mut self,
        argument: &str,
        value_at: usize,
    ) -> Result<(usize, Node), RecipeErrors> {
        let source = self.add_override(argument);
        Ok((source, self.parse(source, value_at)?))
    }

    /// Like [`Sources::parse_override`], but the value is taken literally.
    pub fn text_override(&mut self, argument: &str, value_at: usize) -> (usize, Node) {
        let source = self.add_override(argument);
        let value = Value::Scalar { text: argument[value_at..].to_owned(), quoted: true };
        let at = self.override_place(source, value_at, argument.len());
        (source, Node { value, at })
    }

    /// Adds `argument` to the texts that places can point into.
    pub fn add_override(&mut self, argument: &str) -> usize {
        self.0.push(Source { name: PathBuf::from(COMMAND_LINE), text: argument.to_owned() });
        self.0.len() - 1
    }

    /// The place of bytes `from..to` of an override.
    pub fn override_place(&self, source: usize, from: usize, to: usize) -> Place {
        let text = &self.0[source].text;
        Place {
            source,
            line: 1,
            column: text[..from].chars().count() + 1,
            width: text[from..to].chars().count().max(1),
        }
    }

    /// Parses a source from byte `from` on.
    fn parse(&self, source: usize, from: usize) -> Result<Node, RecipeErrors> {
        let text = &self.0[source].text;
        let shift = text[..from].chars().count();
        let reading = Reading { source, text: &text[from..], shift };
        let options = serde_yaml::options! {
            duplicate_keys: DuplicateKeyPolicy::PassThrough,
            non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
            with_snippet: false,
        };
        let parsed: Result<Spanned<RawValue>, _> =
            serde_yaml::from_str_with_options(reading.text, options);
        match parsed {
            Ok(raw) => Ok(reading.node(raw)),
            Err(error) => Err(RecipeErrors(vec![self.syntax_error(&error, &reading)])),
        }
    }

    fn syntax_error(&self, error: &serde_yaml::Error, reading: &Reading) -> RecipeError {
        let problem = error.without_snippet().to_string();
        // The parser repeats the place at the end of its message.
        let problem = problem.split(" at line ").next().unwrap_or(&problem).to_owned();
        let message = format!("this is not YAML: {problem}");
        let help = "check quotes, brackets, colons and indentation here and on the line before";
        match error.location().filter(|location| location.line() > 0) {
            Some(location) => self.error(reading.place(location), message).with_help(help),
            None => self.whole_file_error(message).with_help(help),
        }
    }

    /// An error at a place.
    pub fn error(&self, at: Place, message: String) -> RecipeError {
        let source = &self.0[at.source];
        let text = source.text.lines().nth(at.line - 1).unwrap_or_default();
        let room = text.chars().count().saturating_sub(at.column - 1);
        RecipeError {
            file: source.name.clone(),
            message,
            place: Some(ErrorPlace {
                line: if at.source == 0 { at.line } else { at.source },
                column: at.column,
                width: at.width.clamp(1, room.max(1)),
                text: text.to_owned(),
            }),
            help: None,
        }
    }

    /// An error that concerns the whole file.
    pub fn whole_file_error(&self, message: String) -> RecipeError {
        file_error(self.file(), message)
    }
}

impl RecipeError {
    /// Adds advice to the error.
    pub(crate) fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// Reads the text of a recipe or pipeline file.
pub(crate) fn read_text(path: &Path) -> Result<String, RecipeErrors> {
    let failed = |message: String| RecipeErrors(vec![file_error(path, message)]);
    let bytes = std::fs::read(path).map_err(|error| failed(format!("cannot be read: {error}")))?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        failed(format!("is not a text file: byte {} is not UTF-8", at + 1))
    })
}

fn file_error(file: &Path, message: String) -> RecipeError {
    RecipeError { file: file.to_owned(), message, place: None, help: None }
}

/// The state of one parse: maps positions in the parsed text to places in its source.
struct Reading<'a> {
    source: usize,
    text: &'a str,
    /// The number of characters before the text on its first line.
    shift: usize,
}

impl Reading<'_> {
    fn place(&self, location: serde_yaml::Location) -> Place {
        let line = location.line().max(1) as usize;
        let shift = if line == 1 { self.shift } else { 0 };
        Place {
            source: self.source,
            line,
            column: location.column().max(1) as usize + shift,
            width: location.span().len().max(1) as usize,
        }
    }

    fn node(&self, raw: Spanned<RawValue>) -> Node {
        let value = match raw.value {
            RawValue::Null => Value::Null,
            RawValue::Number => {
                Value::Scalar { text: self.written(raw.defined).trim().to_owned(), quoted: false }
            }
            RawValue::Text(text) => Value::Scalar {
                quoted: self.written(raw.defined).starts_with(['"', '\'', '|', '>']),
                text,
            },
            RawValue::List(items) => {
                Value::List(items.into_iter().map(|item| self.node(item)).collect())
            }
            RawValue::Map(entries) => {
                Value::Map(entries.into_iter().map(|(key, value)| self.entry(key, value)).collect())
            }
        };
        Node { value, at: self.place(raw.referenced) }
    }

    fn entry(&self, key: Spanned<RawValue>, value: Spanned<RawValue>) -> Entry {
        let key = self.node(key);
        Entry {
            key: key.text().map_or_else(|| key.to_string(), str::to_owned),
            key_at: key.at,
            value: self.node(value),
        }
    }

    /// The text as written in the file.
    fn written(&self, location: serde_yaml::Location) -> &str {
        let span = location.span();
        let (Some(from), Some(len)) = (span.byte_offset(), span.byte_len()) else {
            return "";
        };
        let from = from as usize;
        self.text.get(from..from + len as usize).unwrap_or("")
    }
}

/// The value that serde delivers. Numbers and booleans are read again from their text, because
/// `1.0` and `1` differ for some keys.
enum RawValue {
    Null,
    Number,
    Text(String),
    List(Vec<Spanned<RawValue>>),
    Map(Vec<(Spanned<RawValue>, Spanned<RawValue>)>),
}

impl<'de> Deserialize<'de> for RawValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = RawValue;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<RawValue, E> {
        Ok(RawValue::Null)
    }

    fn visit_none<E>(self) -> Result<RawValue, E> {
        Ok(RawValue::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<RawValue, E> {
        Ok(RawValue::Number)
    }

    fn visit_i64<E>(self, _: i64) -> Result<RawValue, E> {
        Ok(RawValue::Number)
    }

    fn visit_i128<E>(self, _: i128) -> Result<RawValue, E> {
        Ok(RawValue::Number)
    }

    fn visit_u64<E>(self, _: u64) -> Result<RawValue, E> {
        Ok(RawValue::Number)
    }

    fn visit_u128<E>(self, _: u128) -> Result<RawValue, E> {
        Ok(RawValue::Number)
    }

    fn visit_f64<E>(self, _: f64) -> Result<RawValue, E> {
        Ok(RawValue::Number)
    }

    fn visit_str<E>(self, text: &str) -> Result<RawValue, E> {
        Ok(RawValue::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RawValue, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(RawValue::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawValue, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(RawValue::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> Node {
        Sources::new(Path::new("r.yaml"), text).parse_file().expect("YAML")
    }

    fn entries(node: &Node) -> &[Entry] {
        match &node.value {
            Value::Map(entries) => entries,
            other => panic!("not a mapping: {other:?}"),
        }
    }

    #[test]
    fn scalars_keep_their_text_and_places() {
        let root = tree("a: 5.0e-7\nb: 'no'  # c\nc: [1_000, x]\n\"é d\":   true\ne:\n");
        let shown: Vec<String> =
            entries(&root).iter().map(|e| format!("{}={}", e.key, e.value)).collect();
        assert_eq!(shown, ["a=5.0e-7", "b=no", "c=[1_000, x]", "é d=true", "e=null"]);
        let d = &entries(&root)[3];
        assert_eq!((d.key_at.line, d.key_at.column), (4, 1));
        assert_eq!((d.value.at.line, d.value.at.column, d.value.at.width), (4, 10, 4));
        let Value::Scalar { quoted, .. } = &entries(&root)[1].value.value else { panic!() };
        assert!(quoted);
    }

    #[test]
    fn duplicate_keys_and_anchors_come_through() {
        let root = tree("a: &x 16\nb: *x\na: 2\n");
        let shown: Vec<String> =
            entries(&root).iter().map(|e| format!("{}={}", e.key, e.value)).collect();
        assert_eq!(shown, ["a=16", "b=16", "a=2"]);
    }

    #[test]
    fn flow_form_reads_back() {
        let text = "{a: [1, \"x y\\n\\\"\"], b/c.d: null, \"e f\": \"\", g: -1e-5, h: \"null\"}";
        assert_eq!(tree(text).to_string(), text);
    }

    #[test]
    fn syntax_errors_have_a_place() {
        let failed = Sources::new(Path::new("r.yaml"), "a: 1\nb: [1, 2\nc: 3\n").parse_file();
        let shown = failed.expect_err("broken").to_string();
        assert!(shown.starts_with("r.yaml:"), "{shown}");
        assert!(shown.contains("this is not YAML: "), "{shown}");
        assert!(shown.contains("help: "), "{shown}");
    }
}
