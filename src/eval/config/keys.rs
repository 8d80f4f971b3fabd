//! The keys of a task file with their places. `include:` adds the keys of other files; a file's own
//! keys win.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Number, Value as Json};

use crate::eval::python::{Pattern, text_of};
use crate::recipe::yaml::{Node, Place, Sources, Value, read_text};
use crate::recipe::{RecipeError, RecipeErrors};

/// The deepest chain of `include:`.
const DEEPEST: usize = 20;

/// A key with its value.
#[derive(Debug, Clone)]
pub struct Key {
    pub name: String,
    at: Place,
    value: Node,
    sources: Arc<Sources>,
}

/// The keys of a task file. Reading a key takes it out.
#[derive(Debug, Clone)]
pub struct Keys {
    /// The file whose own keys win.
    pub file: PathBuf,
    keys: Vec<Key>,
}

impl Keys {
    /// Reads a file and those that it includes.
    ///
    /// # Errors
    /// A file cannot be read or is not a YAML mapping, or files include each other in a circle.
    pub fn read(file: &Path) -> Result<Self, RecipeErrors> {
        Self::with_includes(file, &mut Vec::new())
    }

    fn with_includes(file: &Path, above: &mut Vec<PathBuf>) -> Result<Self, RecipeErrors> {
        let text = read_text(file)?;
        let mut own = Self::parse(file, &text)?;
        let Some(include) = own.take("include") else { return Ok(own) };
        above.push(file.to_owned());
        let folder = file.parent().unwrap_or_else(|| Path::new(""));
        let mut keys = Vec::new();
        for name in include.texts()? {
            let path = folder.join(&name);
            if above.contains(&path) || above.len() > DEEPEST {
                let message = format!("`{name}` includes this file again");
                return Err(include.error(message, "remove one of the two `include:`").into());
            }
            if !path.is_file() {
                let message = format!("no file {}", path.display());
                let help = "the path is relative to the folder of this file";
                return Err(include.error(message, help).into());
            }
            let mut included = Self::with_includes(&path, above)?;
            // As in lm-eval, this key is about the included file only.
            included.take("task_list");
            replace(&mut keys, included.keys);
        }
        above.pop();
        replace(&mut keys, own.keys);
        own.keys = keys;
        Ok(own)
    }

    /// The keys of a text; `file` is the name in messages.
    ///
    /// # Errors
    /// The text is not a YAML mapping, or gives a key twice.
    pub fn parse(file: &Path, text: &str) -> Result<Self, RecipeErrors> {
        let sources = Arc::new(Sources::new(file, text));
        let root = sources.parse_file()?;
        let keys = entries_of(root, &sources)?;
        Ok(Self { file: file.to_owned(), keys })
    }

    /// The keys of a mapping inside another file.
    ///
    /// # Errors
    /// The value is no mapping.
    pub fn of_key(key: &Key) -> Result<Self, RecipeError> {
        let keys = entries_of(key.value.clone(), &key.sources)?;
        Ok(Self { file: key.sources.file().to_owned(), keys })
    }

    /// Adds the keys of `others`; they replace keys of the same name.
    pub fn override_by(&mut self, others: Keys) {
        replace(&mut self.keys, others.keys);
    }

    /// Whether a key is present.
    pub fn has(&self, name: &str) -> bool {
        self.keys.iter().any(|key| key.name == name)
    }

    /// Takes a key out. A null value counts as a missing key.
    pub fn take(&mut self, name: &str) -> Option<Key> {
        let at = self.keys.iter().position(|key| key.name == name)?;
        let key = self.keys.remove(at);
        (key.value.value != Value::Null).then_some(key)
    }

    /// The first key that was not taken.
    pub fn rest(&self) -> Option<&Key> {
        self.keys.first()
    }

    /// An error about the file as a whole.
    pub fn missing(&self, message: impl Into<String>, help: impl Into<String>) -> RecipeError {
        RecipeError {
            file: self.file.clone(),
            message: message.into(),
            place: None,
            help: Some(help.into()),
        }
    }
}

fn replace(keys: &mut Vec<Key>, others: Vec<Key>) {
    for key in others {
        match keys.iter_mut().find(|known| known.name == key.name) {
            Some(known) => *known = key,
            None => keys.push(key),
        }
    }
}

fn entries_of(node: Node, sources: &Arc<Sources>) -> Result<Vec<Key>, RecipeError> {
    let Value::Map(entries) = node.value else {
        let message = format!("expected a mapping, found {}", node.kind());
        return Err(sources.error(node.at, message).with_help("write `key: value` lines"));
    };
    let mut keys: Vec<Key> = Vec::new();
    for entry in entries {
        if keys.iter().any(|key| key.name == entry.key) {
            let error = sources.error(entry.key_at, format!("`{}` is given twice", entry.key));
            return Err(error.with_help("keep one of the two"));
        }
        let (name, sources) = (entry.key, Arc::clone(sources));
        keys.push(Key { name, at: entry.key_at, value: entry.value, sources });
    }
    Ok(keys)
}

impl Key {
    /// An error at the value.
    pub fn error(&self, message: impl Into<String>, help: impl Into<String>) -> RecipeError {
        self.sources.error(self.value.at, message.into()).with_help(help)
    }

    /// An error at the name of the key.
    pub fn error_at_name(&self, message: String, help: impl Into<String>) -> RecipeError {
        self.sources.error(self.at, message).with_help(help)
    }

    /// The folder of the file that has the key.
    pub fn folder(&self) -> PathBuf {
        self.sources.file().parent().unwrap_or_else(|| Path::new("")).to_owned()
    }

    /// The name after `!function`, if the value is a Python function.
    pub fn function(&self) -> Option<String> {
        function_at(&self.value, &self.sources)
    }

    /// The items of a list; any other value is a list of one.
    pub fn items(&self) -> Vec<Key> {
        let item = |value: Node| Key { value, ..self.clone() };
        match self.value.value.clone() {
            Value::List(items) => items.into_iter().map(item).collect(),
            _ => vec![self.clone()],
        }
    }

    /// Whether the value is a list.
    pub fn is_list(&self) -> bool {
        matches!(self.value.value, Value::List(_))
    }

    /// Whether the value is a mapping.
    pub fn is_mapping(&self) -> bool {
        matches!(self.value.value, Value::Map(_))
    }

    /// The value as PyYAML reads it.
    ///
    /// # Errors
    /// The value is or contains a Python function.
    pub fn json(&self) -> Result<Json, RecipeError> {
        json_of(&self.value, &self.sources)
    }

    /// A text. Numbers and booleans count as texts.
    ///
    /// # Errors
    /// The value is something else.
    pub fn text(&self) -> Result<String, RecipeError> {
        self.refuse_function()?;
        match self.value.text() {
            Some(text) => Ok(text.to_owned()),
            None => Err(self.wrong("a text")),
        }
    }

    /// A list of texts; a single text is a list of one.
    ///
    /// # Errors
    /// The value is something else.
    pub fn texts(&self) -> Result<Vec<String>, RecipeError> {
        self.items().iter().map(Key::text).collect()
    }

    /// A whole number from 0 on.
    ///
    /// # Errors
    /// The value is something else.
    pub fn count(&self) -> Result<usize, RecipeError> {
        let number = self.json()?.as_u64().and_then(|number| usize::try_from(number).ok());
        number.ok_or_else(|| self.wrong("a whole number"))
    }

    /// A whole number.
    ///
    /// # Errors
    /// The value is something else.
    pub fn whole(&self) -> Result<i64, RecipeError> {
        self.json()?.as_i64().ok_or_else(|| self.wrong("a whole number"))
    }

    /// A number.
    ///
    /// # Errors
    /// The value is something else.
    pub fn number(&self) -> Result<f64, RecipeError> {
        let json = self.json()?;
        let text = json.as_str().and_then(|text| text.parse().ok());
        json.as_f64().or(text).ok_or_else(|| self.wrong("a number"))
    }

    /// True or false.
    ///
    /// # Errors
    /// The value is something else.
    pub fn flag(&self) -> Result<bool, RecipeError> {
        self.json()?.as_bool().ok_or_else(|| self.wrong("true or false"))
    }

    fn wrong(&self, wanted: &str) -> RecipeError {
        let message = format!("`{}` must be {wanted}, not {}", self.name, self.value.kind());
        self.error(message, format!("write {wanted} here"))
    }

    fn refuse_function(&self) -> Result<(), RecipeError> {
        self.json().map(|_| ())
    }
}

/// The name after the tag `!function`. The parser drops tags, so the line itself is searched.
fn function_at(node: &Node, sources: &Sources) -> Option<String> {
    const TAG: &str = "!function";
    let name = node.text()?;
    let place = sources.error(node.at, String::new()).place?;
    let split = place.text.char_indices().nth(place.column - 1).map_or(place.text.len(), |c| c.0);
    let (before, from) = place.text.split_at(split);
    let is_tagged = from.starts_with(TAG) || before.trim_end().ends_with(TAG);
    is_tagged.then(|| name.trim_start_matches(TAG).trim().to_owned())
}

fn json_of(node: &Node, sources: &Sources) -> Result<Json, RecipeError> {
    if let Some(function) = function_at(node, sources) {
        let message = format!("`!function {function}` is Python, which is not run here");
        return Err(sources
            .error(node.at, message)
            .with_help("write the prompt as a Jinja template, or convert the data beforehand"));
    }
    Ok(match &node.value {
        Value::Null => Json::Null,
        Value::Scalar { text, quoted: true } => Json::from(text.as_str()),
        Value::Scalar { text, quoted: false } => plain(text),
        Value::List(items) => {
            Json::Array(items.iter().map(|item| json_of(item, sources)).collect::<Result<_, _>>()?)
        }
        Value::Map(entries) => {
            let field = |entry: &crate::recipe::yaml::Entry| {
                json_of(&entry.value, sources).map(|value| (entry.key.clone(), value))
            };
            Json::Object(entries.iter().map(field).collect::<Result<Map<_, _>, _>>()?)
        }
    })
}

/// A scalar without quotes, by the rules of YAML 1.1 as PyYAML has them.
fn plain(text: &str) -> Json {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Json::Null,
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Json::Bool(true);
        }
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Json::Bool(false);
        }
        _ => {}
    }
    let digits = text.trim_start_matches(['+', '-']);
    let starts_with_digit = digits.starts_with(|c: char| c.is_ascii_digit());
    let is_octal = digits.len() > 1 && digits.starts_with('0');
    if starts_with_digit
        && !is_octal
        && let Ok(whole) = text.replace('_', "").parse::<i64>()
    {
        return Json::from(whole);
    }
    // A number with an exponent needs a point and a sign.
    let is_real = (starts_with_digit || digits.starts_with('.')) && digits.contains('.');
    let real = is_real.then(|| text.replace('_', "").parse::<f64>().ok()).flatten();
    match real.and_then(Number::from_f64) {
        Some(number) => Json::Number(number),
        None => Json::from(text),
    }
}

/// The value of a key that may be missing.
///
/// # Errors
/// Those of `read`.
pub fn optional<T>(
    keys: &mut Keys,
    name: &str,
    read: impl FnOnce(&Key) -> Result<T, RecipeError>,
) -> Result<Option<T>, RecipeError> {
    keys.take(name).as_ref().map(read).transpose()
}

/// `metadata: {version: …}` as text.
///
/// # Errors
/// `metadata` is not a value of YAML.
pub fn version(keys: &mut Keys) -> Result<String, RecipeError> {
    let metadata = optional(keys, "metadata", Key::json)?.unwrap_or_default();
    Ok(match &metadata["version"] {
        Json::Null => "Yaml".to_owned(),
        version => text_of(version),
    })
}

/// A text as a regular expression.
///
/// # Errors
/// The value is no text, or no regular expression of Python.
pub fn pattern(key: &Key) -> Result<Arc<Pattern>, RecipeError> {
    Pattern::new(&key.text()?).map(Arc::new).map_err(|message| {
        key.error(format!("not a regular expression: {message}"), "the syntax is Python's")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn keys(text: &str) -> Keys {
        Keys::parse(Path::new("t.yaml"), text).unwrap()
    }

    #[test]
    fn values_are_those_of_pyyaml() {
        let text = "a: [1, 1.5, yes, 'yes', ~, 1e3, x y, -7, 010]\nb: {k: \"1\", l: }\n";
        let mut keys = keys(text);
        let expected = json!([1, 1.5, true, "yes", null, "1e3", "x y", -7, "010"]);
        assert_eq!(keys.take("a").unwrap().json().unwrap(), expected);
        assert_eq!(keys.take("b").unwrap().json().unwrap(), json!({"k": "1", "l": null}));
        assert!(keys.take("c").is_none());
    }

    #[test]
    fn functions_are_refused_with_their_line() {
        let text = "task: t\nprocess_docs: !function utils.f\nlist:\n  - a: !function u.g\n\
                    text: \"use !function here\"\n";
        let mut keys = keys(text);
        let process = keys.take("process_docs").unwrap();
        assert_eq!(process.function().as_deref(), Some("utils.f"));
        let error = process.text().unwrap_err().to_string();
        assert!(error.starts_with("t.yaml:2:"), "{error}");
        assert!(error.contains("`!function utils.f` is Python, which is not run here"), "{error}");
        let error = keys.take("list").unwrap().json().unwrap_err().to_string();
        assert!(error.starts_with("t.yaml:4:"), "{error}");
        assert_eq!(keys.take("text").unwrap().text().unwrap(), "use !function here");
    }

    #[test]
    fn own_keys_win_over_included_ones() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("base.yaml", "task: base\na: 1\nb: 2\ntask_list: [x]\n");
        write("middle_yaml", "include: base.yaml\nb: 3\n");
        write("own.yaml", "include: middle_yaml\ntask: own\n");
        let mut keys = Keys::read(&dir.path().join("own.yaml")).unwrap();
        let mut number = |name: &str| keys.take(name).unwrap().count().unwrap();
        assert_eq!((number("a"), number("b")), (1, 3));
        assert_eq!(keys.take("task").unwrap().text().unwrap(), "own");
        assert!(keys.rest().is_none());
        write("base.yaml", "include: own.yaml\n");
        let error = Keys::read(&dir.path().join("own.yaml")).unwrap_err().to_string();
        assert!(error.contains("base.yaml:1:10: `own.yaml` includes this file again"), "{error}");
        write("base.yaml", "include: gone.yaml\n");
        let error = Keys::read(&dir.path().join("own.yaml")).unwrap_err().to_string();
        assert!(error.contains("gone.yaml"), "{error}");
    }
}
