//! The settings that a sweep gives a run: keys of the recipe with their values, and the run's name
//! built from them.

use serde::Serialize;

use crate::recipe::error::KeyPlace;
use crate::recipe::reader::Reader;
use crate::recipe::secret::{holds_token, is_secret_key};
use crate::recipe::yaml::{Entry, Node};

/// The longest name of a run in bytes; file systems allow 255 for a folder name.
pub(super) const LONGEST_NAME: usize = 200;

/// One run of a sweep, with the settings that distinguish it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SweepRun {
    /// The name of its folder: keys and values, such as `beta-0.1_seed-1`.
    pub name: String,
    /// In the order of the file.
    pub settings: Vec<SweepSetting>,
}

/// A key of the recipe with its value in the sweep's file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SweepSetting {
    /// In the recipe's spelling.
    pub key: String,
    pub value: String,
    #[serde(skip)]
    pub(super) key_at: KeyPlace,
    #[serde(skip)]
    pub(super) value_at: KeyPlace,
}

impl SweepSetting {
    pub(super) fn new(r: &mut Reader, entry: &Entry, value: &Node) -> Self {
        if holds_token(&value.to_string()) && !is_secret_key(&entry.key) {
            r.error(
                value.at,
                format!("the value of `{}` looks like a token of the hub", entry.key),
            );
            r.help("write it below `overrides` as `hub_token`, or set HF_TOKEN");
        }
        let place = |at| KeyPlace::from(r.sources.error(at, String::new()));
        Self {
            key: entry.key.clone(),
            value: value.to_string(),
            key_at: place(entry.key_at),
            value_at: place(value.at),
        }
    }

    /// The setting as an override of a recipe.
    pub(super) fn argument(&self) -> String {
        format!("--{}={}", self.key, self.value)
    }
}

impl SweepRun {
    pub(super) fn new(settings: Vec<SweepSetting>) -> Self {
        let part = |setting: &SweepSetting| {
            let key = setting.key.rsplit('.').next().unwrap_or(&setting.key);
            format!("{}-{}", as_file_name(key), as_file_name(&setting.value))
        };
        let name = settings.iter().map(part).collect::<Vec<_>>().join("_");
        let mut run = Self { name, settings };
        if run.name.len() > LONGEST_NAME {
            let end = run.name.floor_char_boundary(LONGEST_NAME);
            run.name.truncate(end);
            run.name_by_hash();
        }
        run
    }

    /// Appends a hash that distinguishes runs whose values look alike as file names.
    pub(super) fn name_by_hash(&mut self) {
        let settings: Vec<(&str, &str)> =
            self.settings.iter().map(|s| (s.key.as_str(), s.value.as_str())).collect();
        let settings = format!("{settings:?}");
        self.name.push_str(&format!("_{}", &blake3::hash(settings.as_bytes()).to_hex()[..6]));
    }
}

fn as_file_name(value: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-+".contains(c);
    let plain: String = value.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    plain.trim_matches('_').to_owned()
}

/// A key in the recipe's spelling; overrides may write `-` for `_`. Text after a dot is kept, since
/// it may be free text.
pub(super) fn spelled(key: &str) -> String {
    match key.split_once('.') {
        Some((first, rest)) => format!("{}.{rest}", first.replace('-', "_")),
        None => key.replace('-', "_"),
    }
}

/// The keys and values of a mapping, as texts.
pub(super) fn settings(r: &mut Reader, what: &str, node: Node) -> Vec<SweepSetting> {
    let entries = r.mapping(what, node);
    let entries = recipe_keys(r, what, entries);
    entries.iter().map(|entry| SweepSetting::new(r, entry, &entry.value)).collect()
}

/// Entries with their keys in the recipe's spelling. Duplicate keys are errors, and so are
/// `output_dir`, which belongs to the sweep itself, and secrets among the settings that name runs.
pub(super) fn recipe_keys(r: &mut Reader, what: &str, entries: Vec<Entry>) -> Vec<Entry> {
    let mut kept: Vec<Entry> = Vec::new();
    for entry in entries {
        let key = spelled(&entry.key);
        if key == "output_dir" {
            r.error(entry.key_at, "every run has its own `output_dir`".to_owned());
            r.help("write output_dir beside `recipe`: the runs' folders are created in it");
        } else if what != "overrides" && is_secret_key(&key) {
            r.error(entry.key_at, format!("`{what}.{key}` is a secret, which cannot name a run"));
            r.help("write it below `overrides`, or set HF_TOKEN");
        } else if kept.iter().any(|other| other.key == key) {
            r.error(entry.key_at, format!("`{what}.{key}` is given twice"));
            r.help("keep one of the two");
        } else {
            kept.push(Entry { key, ..entry });
        }
    }
    kept
}
