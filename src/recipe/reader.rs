//! Reads a mapping key by key: checks each value, fills in defaults, and collects all errors
//! instead of stopping at the first.
//!
//! A key is written as `"name"` or `"name|other spelling"`; the first spelling is canonical. A key
//! that no code reads is an error, so reading a key is all it takes to add one.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use super::choice::Choice;
use super::error::{KeyPlace, RecipeError};
use super::number::{AT_LEAST_1, Bounds, number, plain, whole_number};
use super::secret::{is_secret_key, masked};
use super::yaml::{Entry, Node, Place, Sources, Value};

/// A mapping that is being read, and the results so far.
pub(super) struct Reader<'a> {
    pub sources: &'a Sources,
    /// The prefix of key names in messages: `dataset_mixture.` inside that mapping.
    prefix: String,
    entries: Vec<Entry>,
    places: BTreeMap<&'static str, Place>,
    /// All spellings of the keys read so far.
    pub known: Vec<&'static str>,
    pub report: Report,
}

/// The results of reading besides the values.
#[derive(Default)]
pub(super) struct Report {
    /// Place, canonical key, text.
    pub written: Vec<(Place, String, String)>,
    pub filled: Vec<(String, String)>,
    pub notes: Vec<String>,
    pub errors: Vec<RecipeError>,
}

impl<'a> Reader<'a> {
    /// Starts on the mapping `node`. Any other kind of node is an error and is read as an empty
    /// mapping.
    pub fn new(node: Node, sources: &'a Sources, prefix: &str) -> Self {
        let mut reader = Reader {
            sources,
            prefix: prefix.to_owned(),
            entries: Vec::new(),
            places: BTreeMap::new(),
            known: Vec::new(),
            report: Report::default(),
        };
        match node.value {
            Value::Map(entries) => reader.keep_first_of_each(entries),
            _ => {
                let what = match prefix.strip_suffix('.') {
                    Some(name) => format!("`{name}` must be a mapping"),
                    None => "this must be `key: value` lines".to_owned(),
                };
                reader.error(node.at, format!("{what}, not {}", node.kind()));
            }
        }
        reader
    }

    fn keep_first_of_each(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            if self.entries.iter().any(|kept| kept.key == entry.key) {
                let key = self.full(&entry.key);
                self.error(entry.key_at, format!("`{key}` is given twice"));
                self.help("keep one of the two");
            } else {
                self.entries.push(entry);
            }
        }
    }

    /// The key with its prefix.
    pub fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Adds an error at a place.
    pub fn error(&mut self, at: Place, message: String) {
        self.report.errors.push(self.sources.error(at, message));
    }

    /// Adds an error at the value of `key`, or about the whole file if the user did not write the
    /// key.
    pub fn error_on(&mut self, key: &'static str, message: String) {
        let error = match self.places.get(key) {
            Some(at) => self.sources.error(*at, message),
            None => self.sources.whole_file_error(message),
        };
        self.report.errors.push(error);
    }

    /// Adds advice to the last error.
    pub fn help(&mut self, help: impl Into<String>) {
        if let Some(last) = self.report.errors.last_mut() {
            last.help = Some(help.into());
        }
    }

    /// Adds a note for the user.
    pub fn note(&mut self, note: String) {
        self.report.notes.push(note);
    }

    /// Whether the user wrote `key` (its canonical spelling).
    pub fn is_written(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }

    /// Removes the entry of a key from the mapping, in any spelling.
    pub fn take(&mut self, keys: &'static str) -> Option<Entry> {
        let spellings: Vec<&'static str> = keys.split('|').collect();
        self.known.extend(&spellings);
        let (found, rest) = std::mem::take(&mut self.entries)
            .into_iter()
            .partition(|entry| spellings.contains(&entry.key.as_str()));
        self.entries = rest;
        let entry = self.one_of(found)?;
        self.places.insert(spellings[0], entry.value.at);
        let text = match entry.value.text() {
            Some(text) => masked(text),
            None => masked(&entry.value.to_string()),
        };
        let key = self.full(spellings[0]);
        self.report.written.push((entry.key_at, key, text));
        Some(entry)
    }

    /// Chooses one entry of several spellings: an override wins over the file, the last override
    /// over earlier ones, and entries in the file must agree.
    fn one_of(&mut self, mut found: Vec<Entry>) -> Option<Entry> {
        found.sort_by_key(|entry| entry.key_at);
        let last = found.pop()?;
        if !last.key_at.is_override()
            && let Some(other) = found.iter().find(|e| !e.value.same_value(&last.value))
        {
            let (new, old) = (self.full(&last.key), self.full(&other.key));
            let hidden = is_secret_key(&new);
            let kind = |node: &Node| if hidden { "(hidden)".to_owned() } else { node.kind() };
            let (is, was) = (kind(&last.value), kind(&other.value));
            self.error(
                last.key_at,
                format!("`{new}` is {is}, but `{old}`, another spelling of the same key, is {was}"),
            );
            self.help("keep one of the two");
        }
        Some(last)
    }

    /// Removes the value of a key. Null means not written; then `default` is reported as filled in.
    fn value(&mut self, keys: &'static str, default: &dyn Display) -> Option<Node> {
        match self.take(keys) {
            Some(entry) if entry.value.value != Value::Null => Some(entry.value),
            _ => {
                self.fill(keys, default);
                None
            }
        }
    }

    /// Reports a default value as filled in.
    pub fn fill(&mut self, keys: &'static str, default: &dyn Display) {
        let key = self.full(canonical(keys));
        self.report.filled.push((key, default.to_string()));
    }

    /// Forgets that the user wrote `key`, because an override replaces it.
    pub fn forget(&mut self, key: &'static str) {
        let full = self.full(key);
        self.places.remove(key);
        self.report.written.retain(|(_, written, _)| *written != full);
    }

    /// The place of `key`, or the whole file if the user did not write it.
    pub fn place_of(&self, key: &str) -> KeyPlace {
        let error = match self.places.get(key) {
            Some(at) => self.sources.error(*at, String::new()),
            None => self.sources.whole_file_error(String::new()),
        };
        error.into()
    }

    /// Hides the user's value of `key` from all reports.
    pub fn hide(&mut self, key: &'static str) {
        let full = self.full(key);
        let of_key = self.report.written.iter_mut().filter(|(_, written, _)| *written == full);
        of_key.for_each(|(_, _, text)| *text = "(hidden)".to_owned());
    }

    /// Reads a number.
    pub fn float(&mut self, keys: &'static str, default: f64, bounds: Bounds) -> f64 {
        match self.value(keys, &plain(default)) {
            Some(node) => self.as_float(canonical(keys), &node, bounds).unwrap_or(default),
            None => default,
        }
    }

    /// Reads a number that may be absent.
    pub fn optional_float(&mut self, keys: &'static str, bounds: Bounds) -> Option<f64> {
        let node = self.value(keys, &"null")?;
        self.as_float(canonical(keys), &node, bounds)
    }

    /// Reads a whole number.
    pub fn count(&mut self, keys: &'static str, default: usize, bounds: Bounds) -> usize {
        match self.value(keys, &default) {
            Some(node) => self.as_count(canonical(keys), &node, bounds).unwrap_or(default),
            None => default,
        }
    }

    /// Reads a whole number that may be absent.
    pub fn optional_count(&mut self, keys: &'static str, bounds: Bounds) -> Option<usize> {
        let node = self.value(keys, &"null")?;
        self.as_count(canonical(keys), &node, bounds)
    }

    /// Reads a limit with a default; null means no limit.
    pub fn limit(&mut self, keys: &'static str, default: usize) -> Option<usize> {
        match self.take(keys) {
            None => {
                self.fill(keys, &default);
                Some(default)
            }
            Some(entry) if entry.value.value == Value::Null => None,
            Some(entry) => self.as_count(canonical(keys), &entry.value, AT_LEAST_1),
        }
    }

    /// Reads the limit of steps; -1 means no limit, as in transformers.
    pub fn steps_limit(&mut self, keys: &'static str) -> Option<u64> {
        let node = self.value(keys, &-1)?;
        match node.text().and_then(whole_number) {
            Some(-1) => None,
            Some(steps) if steps >= 1 => u64::try_from(steps).ok(),
            _ => {
                let message = format!(
                    "`{keys}` needs a whole number of at least 1, or -1 for no limit, not {}",
                    node.kind()
                );
                self.error(node.at, message);
                None
            }
        }
    }

    /// Reads true or false.
    pub fn flag(&mut self, keys: &'static str, default: bool) -> bool {
        match self.value(keys, &default) {
            Some(node) => self.as_flag(canonical(keys), &node).unwrap_or(default),
            None => default,
        }
    }

    /// Reads true or false, or absent.
    pub fn optional_flag(&mut self, keys: &'static str) -> Option<bool> {
        let node = self.value(keys, &"null")?;
        self.as_flag(canonical(keys), &node)
    }

    /// Reads a text.
    pub fn text(&mut self, keys: &'static str, default: &str) -> String {
        match self.value(keys, &default) {
            Some(node) => self.as_text(canonical(keys), &node).unwrap_or_default(),
            None => default.to_owned(),
        }
    }

    /// Reads a text that may be absent.
    pub fn optional_text(&mut self, keys: &'static str) -> Option<String> {
        let node = self.value(keys, &"null")?;
        self.as_text(canonical(keys), &node)
    }

    /// Reads a text that must be present.
    pub fn required_text(&mut self, keys: &'static str, help: &str) -> String {
        match self.take(keys) {
            Some(entry) => self.as_text(canonical(keys), &entry.value).unwrap_or_default(),
            None => {
                let key = self.full(canonical(keys));
                let error = self.sources.whole_file_error(format!("`{key}` is missing"));
                self.report.errors.push(error);
                self.help(help);
                String::new()
            }
        }
    }

    /// Reads one word of an enum's table.
    pub fn choice<T: Choice>(&mut self, keys: &'static str, default: T) -> T {
        match self.value(keys, &default.word()) {
            Some(node) => self.as_choice(canonical(keys), &node).unwrap_or(default),
            None => default,
        }
    }

    /// Reads one word of an enum's table that may be absent.
    pub fn optional_choice<T: Choice>(&mut self, keys: &'static str) -> Option<T> {
        let node = self.value(keys, &"null")?;
        self.as_choice(canonical(keys), &node)
    }

    /// Reads a list of texts; a single text is a list of one. `default` is the value to report if
    /// the key is absent.
    pub fn texts(&mut self, keys: &'static str, default: &str) -> Option<Vec<(String, Place)>> {
        let node = self.value(keys, &default)?;
        let items = match node.value {
            Value::List(items) => items,
            _ => vec![node],
        };
        let key = canonical(keys);
        let text = |item: Node| Some((self.as_text(key, &item)?, item.at));
        Some(items.into_iter().filter_map(text).collect())
    }

    /// Reads the mapping `node` with `read`. Keys that `read` does not read are errors. An empty
    /// value is an empty mapping.
    pub fn within<T>(
        &mut self,
        name: &str,
        mut node: Node,
        read: impl FnOnce(&mut Reader) -> T,
    ) -> T {
        if node.value == Value::Null {
            node.value = Value::Map(Vec::new());
        }
        let mut inner = Reader::new(node, self.sources, &format!("{}{name}.", self.prefix));
        let value = read(&mut inner);
        inner.refuse_leftovers();
        self.report.filled.append(&mut inner.report.filled);
        self.report.notes.append(&mut inner.report.notes);
        self.report.errors.append(&mut inner.report.errors);
        value
    }

    /// The entries that no code has read yet.
    pub fn leftovers(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.entries)
    }

    /// Reports each unread key as an error.
    pub fn refuse_leftovers(&mut self) {
        for entry in self.leftovers() {
            self.unknown(&entry);
        }
    }

    /// Reports a key that does not exist.
    pub fn unknown(&mut self, entry: &Entry) {
        let message = format!("`{}` is not a known key", self.full(&entry.key));
        self.error(entry.key_at, message);
        if let Some((distance, nearest)) = nearest(&entry.key, self.known.iter().copied()) {
            self.help(match distance <= 2.max(entry.key.len() / 3) {
                true => format!("did you mean `{nearest}`?"),
                false => format!("the nearest known key is `{nearest}`"),
            });
        }
    }

    /// Converts a node to a number in `bounds`.
    pub fn as_float(&mut self, key: &str, node: &Node, bounds: Bounds) -> Option<f64> {
        let number = node.text().and_then(number);
        self.in_bounds(key, node, "a number", number, bounds)
    }

    /// Converts a node to a whole number in `bounds`.
    pub fn as_count(&mut self, key: &str, node: &Node, bounds: Bounds) -> Option<usize> {
        let whole = node.text().and_then(whole_number);
        let number = whole.map(|n| n as f64);
        self.in_bounds(key, node, "a whole number", number, bounds)?;
        whole.and_then(|n| usize::try_from(n).ok())
    }

    fn in_bounds(
        &mut self,
        key: &str,
        node: &Node,
        what: &str,
        number: Option<f64>,
        bounds: Bounds,
    ) -> Option<f64> {
        let key = self.full(key);
        match number {
            Some(x) if bounds.contain(x) => return Some(x),
            Some(x) => {
                let words = bounds.words_for(x);
                self.error(node.at, format!("`{key}` must be {words}, not {}", node.kind()));
            }
            None => self.error(node.at, format!("`{key}` needs {what}, not {}", node.kind())),
        }
        None
    }

    /// Converts a node to true or false, in the spellings of YAML 1.1, which Python's parser
    /// accepts.
    pub fn as_flag(&mut self, key: &str, node: &Node) -> Option<bool> {
        let word = node.text().map(str::to_ascii_lowercase);
        match word.as_deref() {
            Some("true" | "yes" | "on") => Some(true),
            Some("false" | "no" | "off") => Some(false),
            _ => {
                let key = self.full(key);
                self.error(node.at, format!("`{key}` needs true or false, not {}", node.kind()));
                None
            }
        }
    }

    /// Converts a node to the path of a recipe, relative to this file's folder. The file must
    /// exist.
    pub fn recipe_path(&mut self, node: &Node) -> PathBuf {
        let Some(path) = self.as_text("recipe", node) else { return PathBuf::new() };
        let path = self.sources.file().parent().unwrap_or(Path::new("")).join(path);
        if !path.is_file() {
            self.error(node.at, format!("no recipe at {}", path.display()));
            self.help("the path is taken from this file's folder");
        }
        path
    }

    /// Converts a node to the entries of a mapping; null is an empty mapping.
    pub fn mapping(&mut self, what: &str, node: Node) -> Vec<Entry> {
        let (at, kind) = (node.at, node.kind());
        match node.value {
            Value::Null => Vec::new(),
            Value::Map(entries) => entries,
            _ => {
                self.error(at, format!("`{what}` must be a mapping of keys to values, not {kind}"));
                Vec::new()
            }
        }
    }

    /// Converts a node to a text that is not empty.
    pub fn as_text(&mut self, key: &str, node: &Node) -> Option<String> {
        match node.text() {
            Some(text) if !text.trim().is_empty() => Some(text.to_owned()),
            Some(_) => {
                let key = self.full(key);
                self.error(node.at, format!("`{key}` is empty"));
                None
            }
            None => {
                let key = self.full(key);
                self.error(node.at, format!("`{key}` needs a text, not {}", node.kind()));
                None
            }
        }
    }

    /// Converts a node to one word of an enum's table.
    pub fn as_choice<T: Choice>(&mut self, key: &str, node: &Node) -> Option<T> {
        let key = self.full(key);
        let Some(word) = node.text() else {
            self.error(
                node.at,
                format!("`{key}` needs one of {}, not {}", T::listed(), node.kind()),
            );
            return None;
        };
        if let Some(value) = T::from_word(word) {
            return Some(value);
        }
        if T::UNSUPPORTED.contains(&word.to_ascii_lowercase().as_str()) {
            self.error(node.at, format!("`{key}: {word}` is not supported"));
            self.help(format!("supported: {}", T::listed()));
            return None;
        }
        self.error(node.at, format!("`{key}` must be one of {}, not {}", T::listed(), node.kind()));
        let offered = T::WORDS.iter().filter(|known| known.2).map(|known| known.0);
        if let Some((1..=3, nearest)) = nearest(word, offered) {
            self.help(format!("did you mean `{nearest}`?"));
        }
        None
    }
}

/// The first spelling of `"name|other spelling"`.
pub(super) fn canonical(keys: &'static str) -> &'static str {
    keys.split('|').next().unwrap_or(keys)
}

/// The nearest of `known` by edit distance (swapping neighbors is one edit).
pub(super) fn nearest<'k>(
    word: &str,
    known: impl Iterator<Item = &'k str>,
) -> Option<(usize, &'k str)> {
    known
        .map(|key| (strsim::damerau_levenshtein(word, key), key))
        .min_by_key(|(distance, _)| *distance)
}
