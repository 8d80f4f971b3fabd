//! Which files make a split: the rules of `datasets` 5.2 (`data_files.py`).
//!
//! The `configs` in the README's metadata decide first. Without them, the first group of patterns
//! that finds a file decides: shards in `data/`, folders with a split's name, files with a split's
//! name, and at last all files as `train`.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// A split with its files.
pub(super) type Splits<'a> = Vec<(String, Vec<&'a str>)>;

/// Split → words that stand for it in the names of files and folders.
const KEYWORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];
const IN_FOLDER_NAME: [&str; 4] =
    ["**/{word}/**", "**/{word}{sep}*/**", "**/*{sep}{word}/**", "**/*{sep}{word}{sep}*/**"];
const IN_FILE_NAME: [&str; 2] = ["**/{word}{sep}*", "**/*{sep}{word}{sep}*"];
/// What may stand beside a keyword.
const SEPARATOR: &str = "[-._ 0-9]";

/// The splits among `names`, the paths of all data files in a data set. `readme` is its README.md,
/// `config` the configuration.
pub(super) fn splits<'a>(
    names: &'a [String],
    readme: Option<&str>,
    config: Option<&str>,
) -> Splits<'a> {
    let mut names: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| is_seen(name)).collect();
    names.sort_unstable();
    let splits = match readme.and_then(|readme| rule_in(readme, config)) {
        Some(Rule::Patterns(patterns)) => found(&names, &patterns),
        Some(Rule::Folder(folder)) => by_name_below(&names, &folder),
        None => match config {
            Some(config) if config != "default" => Vec::new(),
            _ => by_name(&names),
        },
    };
    splits.into_iter().map(|(split, files)| (split, of_one_kind(files))).collect()
}

/// The splits that `data_files` name, or those below `data_dir` by the names of their files.
pub(super) fn splits_of<'a>(
    names: &'a [String],
    data_dir: Option<&str>,
    data_files: &[(String, Vec<String>)],
) -> Splits<'a> {
    let mut names: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| is_seen(name)).collect();
    names.sort_unstable();
    let folder = data_dir.map(as_prefix).unwrap_or_default();
    let splits = match data_files {
        [] => by_name_below(&names, &folder),
        given => {
            let below = |pattern: &String| {
                format!("{folder}{}", pattern.strip_prefix("./").unwrap_or(pattern))
            };
            let patterns: Patterns = given
                .iter()
                .map(|(split, paths)| (split.clone(), paths.iter().map(below).collect()))
                .collect();
            found(&names, &patterns)
        }
    };
    splits.into_iter().map(|(split, files)| (split, of_one_kind(files))).collect()
}

/// A folder as the start of the paths below it: empty, or with `/` at the end.
fn as_prefix(folder: &str) -> String {
    let parts = folder.split('/').filter(|part| !part.is_empty() && *part != ".");
    parts.map(|part| format!("{part}/")).collect()
}

/// The longest folder at the start of a pattern without wildcards, and the rest of the pattern.
pub(super) fn fixed_folder(pattern: &str, data_dir: Option<&str>) -> (PathBuf, String) {
    let whole = match data_dir {
        Some(folder) => Path::new(folder).join(pattern),
        None => PathBuf::from(pattern),
    };
    let text = whole.to_string_lossy().into_owned();
    let plain = text.find(['*', '?', '[']).map_or(text.as_str(), |at| &text[..at]);
    match plain.rfind('/') {
        Some(at) => (PathBuf::from(&text[..=at]), text[at + 1..].to_owned()),
        None => (PathBuf::from("."), text),
    }
}

/// Folders whose names start with two underscores are left out.
fn is_seen(name: &str) -> bool {
    !name.split('/').rev().skip(1).any(|folder| folder.starts_with("__"))
}

/// How a configuration in the README's metadata finds its files.
enum Rule {
    Patterns(Patterns),
    /// By their names, below this folder. Its name ends in `/`, or is empty.
    Folder(String),
}

/// A split with its patterns.
type Patterns = Vec<(String, Vec<String>)>;

fn by_name<'a>(names: &[&'a str]) -> Splits<'a> {
    let shards = shards(names);
    if !shards.is_empty() {
        return shards;
    }
    for forms in [&IN_FOLDER_NAME[..], &IN_FILE_NAME] {
        let patterns = KEYWORDS.map(|(split, words)| {
            let patterns = words.iter().flat_map(|word| {
                forms
                    .iter()
                    .map(move |form| form.replace("{word}", word).replace("{sep}", SEPARATOR))
            });
            (split.to_owned(), patterns.collect())
        });
        let splits = found(names, &patterns);
        if !splits.is_empty() {
            return splits;
        }
    }
    match names.is_empty() {
        true => Vec::new(),
        false => vec![("train".to_owned(), names.to_vec())],
    }
}

/// [`by_name`] for the files below `folder`, with their paths from there.
fn by_name_below<'a>(names: &[&'a str], folder: &str) -> Splits<'a> {
    let below: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix(folder)).collect();
    let whole =
        |part: &str| names.iter().copied().find(|name| name.strip_prefix(folder) == Some(part));
    let splits = by_name(&below).into_iter();
    splits.map(|(split, files)| (split, files.into_iter().filter_map(whole).collect())).collect()
}

/// The splits of `data/SPLIT-00000-of-00001….parquet`.
fn shards<'a>(names: &[&'a str]) -> Splits<'a> {
    let mut splits: Splits = Vec::new();
    for name in names {
        let split = name.strip_prefix("data/").and_then(split_of_shard);
        if let Some(split) = split {
            match splits.iter_mut().find(|(other, _)| other == split) {
                Some((_, files)) => files.push(name),
                None => splits.push((split.to_owned(), vec![name])),
            }
        }
    }
    splits
}

fn split_of_shard(file: &str) -> Option<&str> {
    let (split, _) = file.rmatch_indices("-of-").find_map(|(at, _)| {
        let split = file[..at].len().checked_sub(6).and_then(|end| file.get(..end))?;
        let is_number = |text: Option<&str>| {
            text.is_some_and(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        };
        let (first, rest) = (file.get(split.len() + 1..at), &file[at + 4..]);
        let is_shard = file[split.len()..].starts_with('-')
            && is_number(first)
            && is_number(rest.get(..5))
            && rest.get(5..).is_some_and(|rest| rest.contains('.'));
        is_shard.then_some((split, ()))
    })?;
    (!split.is_empty() && !file.contains('/')).then_some(split)
}

fn found<'a>(names: &[&'a str], patterns: &[(String, Vec<String>)]) -> Splits<'a> {
    let files = |patterns: &Vec<String>| {
        let mut files: Vec<&str> = Vec::new();
        for pattern in patterns {
            let parts: Vec<&str> = pattern.split('/').filter(|part| *part != ".").collect();
            for name in names {
                let path: Vec<&str> = name.split('/').collect();
                if matches(&parts, &path) && !files.contains(name) {
                    files.push(name);
                }
            }
        }
        files
    };
    let splits = patterns.iter().map(|(split, patterns)| (split.clone(), files(patterns)));
    splits.filter(|(_, files)| !files.is_empty()).collect()
}

/// Whether a path matches a pattern of folders and a file. `**` stands for any number of folders,
/// and at the end for everything below.
fn matches(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern, path) {
        ([], []) => true,
        (["**"], path) => !path.is_empty(),
        (["**", rest @ ..], path) => (0..path.len()).any(|skip| matches(rest, &path[skip..])),
        ([part, rest @ ..], [name, names @ ..]) => {
            let (part, name): (Vec<char>, Vec<char>) =
                (part.chars().collect(), name.chars().collect());
            name_matches(&part, &name) && matches(rest, names)
        }
        _ => false,
    }
}

/// Whether a name matches a pattern with `*`, `?` and `[…]`.
fn name_matches(pattern: &[char], name: &[char]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        (['*', rest @ ..], name) => (0..=name.len()).any(|skip| name_matches(rest, &name[skip..])),
        (['?', rest @ ..], [_, name @ ..]) => name_matches(rest, name),
        (['[', set @ ..], [first, name @ ..]) => {
            // A `]` at the start of a set belongs to it.
            let Some(end) = set.iter().skip(1).position(|c| *c == ']').map(|end| end + 1) else {
                return *first == '[' && name_matches(set, name);
            };
            in_set(&set[..end], *first) && name_matches(&set[end + 1..], name)
        }
        ([own, rest @ ..], [first, name @ ..]) => own == first && name_matches(rest, name),
        _ => false,
    }
}

fn in_set(set: &[char], character: char) -> bool {
    match set {
        [] => false,
        ['!' | '^', rest @ ..] if !rest.is_empty() => !in_set(rest, character),
        [first, '-', last, rest @ ..] => {
            (*first..=*last).contains(&character) || in_set(rest, character)
        }
        [first, rest @ ..] => *first == character || in_set(rest, character),
    }
}

/// The files of the kind that most of them have; parquet if both are equally many. A data set that
/// keeps the same rows in both kinds has them once.
fn of_one_kind(files: Vec<&str>) -> Vec<&str> {
    let is_parquet = |file: &&str| file.ends_with(".parquet");
    let parquet = files.iter().copied().filter(|file| is_parquet(file)).count();
    let keep = 2 * parquet >= files.len();
    files.into_iter().filter(|file| is_parquet(file) == keep).collect()
}

#[derive(Deserialize)]
struct Card {
    #[serde(default)]
    configs: Vec<CardConfig>,
}

#[derive(Deserialize)]
struct CardConfig {
    #[serde(default = "default_name")]
    config_name: String,
    #[serde(default)]
    default: bool,
    data_files: Option<DataFiles>,
    data_dir: Option<String>,
}

fn default_name() -> String {
    "default".to_owned()
}

#[derive(Deserialize)]
#[serde(untagged)]
enum DataFiles {
    Splits(Vec<SplitPaths>),
    Paths(Paths),
}

#[derive(Deserialize)]
struct SplitPaths {
    split: String,
    path: Paths,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Paths {
    One(String),
    Many(Vec<String>),
}

impl Paths {
    fn all(self) -> Vec<String> {
        match self {
            Self::One(path) => vec![path],
            Self::Many(paths) => paths,
        }
    }
}

/// The rule of a configuration in the README's metadata; without a name, of the default or the only
/// one.
fn rule_in(readme: &str, config: Option<&str>) -> Option<Rule> {
    let rest = readme.trim_start_matches('\u{feff}').strip_prefix("---")?;
    let (metadata, _) = rest.split_once("\n---")?;
    let card: Card = serde_yaml::from_str(metadata).ok()?;
    let mut configs = card.configs;
    let is_wanted = |one: &CardConfig| match config {
        Some(config) => one.config_name == config,
        None => one.default || one.config_name == "default",
    };
    let place = match configs.iter().position(is_wanted) {
        None if config.is_none() && configs.len() == 1 => 0,
        place => place?,
    };
    let CardConfig { data_files, data_dir, .. } = configs.swap_remove(place);
    let folder = data_dir.as_deref().map(as_prefix).unwrap_or_default();
    let below = |path: String| format!("{folder}{path}");
    let Some(data_files) = data_files else { return Some(Rule::Folder(folder)) };
    Some(Rule::Patterns(match data_files {
        DataFiles::Splits(splits) => splits
            .into_iter()
            .map(|SplitPaths { split, path }| (split, path.all().into_iter().map(below).collect()))
            .collect(),
        DataFiles::Paths(paths) => {
            vec![("train".to_owned(), paths.all().into_iter().map(below).collect())]
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn splits_of(names: &[&str], readme: Option<&str>, config: Option<&str>) -> String {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let splits = splits(&names, readme, config);
        let splits = splits.iter().map(|(split, files)| format!("{split}: {}", files.join(" ")));
        splits.collect::<Vec<_>>().join("; ")
    }

    /// The splits are those of datasets 5.2.
    #[test]
    fn names_of_files_and_folders_decide() {
        for (names, expected) in [
            (&["train.jsonl", "train_extra.jsonl"][..], "train: train.jsonl train_extra.jsonl"),
            (&["train_1.jsonl", "test-x.jsonl"], "train: train_1.jsonl; test: test-x.jsonl"),
            (&["train.jsonl", "train.parquet"], "train: train.parquet"),
            (&["rows.jsonl", "x/more.jsonl"], "train: rows.jsonl x/more.jsonl"),
            (
                &["my_train.jsonl", "train.jsonl", "trains.jsonl", "dev.jsonl"],
                "train: train.jsonl my_train.jsonl; validation: dev.jsonl",
            ),
            (
                &["en/train/a.jsonl", "train/b.jsonl", "test.jsonl"],
                "train: en/train/a.jsonl train/b.jsonl",
            ),
            (
                &[
                    "data/a-00000-of-00001.parquet",
                    "data/b-00000-of-00001-ff.parquet",
                    "train.jsonl",
                ],
                "a: data/a-00000-of-00001.parquet; b: data/b-00000-of-00001-ff.parquet",
            ),
            (&["__x/train.jsonl"], ""),
        ] {
            assert_eq!(splits_of(names, None, None), expected, "{names:?}");
        }
    }

    #[test]
    fn the_metadata_of_the_readme_decides_first() {
        let names = ["a/x.jsonl", "b/y.jsonl", "b/z.jsonl", "train.jsonl"];
        let readme = "---\nconfigs:\n- config_name: one\n  data_files: a/*.jsonl\n\
            - config_name: two\n  default: true\n  data_files:\n  - split: train\n    path: b/y.jsonl\n  \
            - split: extra\n    path: [b/z.jsonl, \"a/*\"]\n---\n# Rows\n";
        assert_eq!(splits_of(&names, Some(readme), Some("one")), "train: a/x.jsonl");
        let two = "train: b/y.jsonl; extra: b/z.jsonl a/x.jsonl";
        assert_eq!(splits_of(&names, Some(readme), None), two);
        assert_eq!(splits_of(&names, Some("# Rows"), None), "train: train.jsonl");
    }

    /// The splits are those of datasets 5.2.
    #[test]
    fn a_folder_without_files_is_searched_by_name() {
        let names = ["a/train.jsonl", "a/test.jsonl", "b/more.jsonl", "train.jsonl"];
        let readme = "---\nconfigs:\n- config_name: one\n  data_dir: ./a/\n\
            - config_name: two\n  data_dir: b\n- config_name: three\n---\n";
        let split = |config| splits_of(&names, Some(readme), Some(config));
        assert_eq!(split("one"), "train: a/train.jsonl; test: a/test.jsonl");
        assert_eq!(split("two"), "train: b/more.jsonl");
        assert_eq!(split("three"), "train: a/train.jsonl train.jsonl; test: a/test.jsonl");
        assert_eq!(split("four"), "");
        let one = "---\nconfigs:\n- config_name: own\n  data_dir: a\n---\n";
        let expected = "train: a/train.jsonl; test: a/test.jsonl";
        assert_eq!(splits_of(&names, Some(one), None), expected);
    }

    #[test]
    fn given_files_and_folders_decide_before_all_names() {
        let names = ["a/train.jsonl", "a/test.jsonl", "b/more.jsonl", "b/rest.parquet"];
        let names = names.map(str::to_owned);
        let shown = |data_dir: Option<&str>, files: &[(&str, &str)]| {
            let files: Vec<(String, Vec<String>)> = files
                .iter()
                .map(|(split, pattern)| ((*split).to_owned(), vec![(*pattern).to_owned()]))
                .collect();
            let splits = super::splits_of(&names, data_dir, &files);
            let splits =
                splits.iter().map(|(split, files)| format!("{split}: {}", files.join(" ")));
            splits.collect::<Vec<_>>().join("; ")
        };
        assert_eq!(shown(Some("a"), &[]), "train: a/train.jsonl; test: a/test.jsonl");
        assert_eq!(shown(Some("./b/"), &[("train", "*.jsonl")]), "train: b/more.jsonl");
        let two = [("train", "./b/*.parquet"), ("extra", "**/t*.jsonl")];
        let expected = "train: b/rest.parquet; extra: a/test.jsonl a/train.jsonl";
        assert_eq!(shown(None, &two), expected);
        assert_eq!(shown(Some("c"), &[]), "");
        let fixed = |pattern: &str| fixed_folder(pattern, None);
        assert_eq!(fixed("/x/y/*.jsonl"), ("/x/y/".into(), "*.jsonl".to_owned()));
        assert_eq!(fixed("rows.jsonl"), (".".into(), "rows.jsonl".to_owned()));
    }

    #[test]
    fn patterns_match_as_in_a_shell() {
        let matches = |pattern: &str, path: &str| {
            let parts = |text: &'static str| text.split('/').collect::<Vec<_>>();
            let (pattern, path) = (pattern.to_owned().leak(), path.to_owned().leak());
            super::matches(&parts(pattern), &parts(path))
        };
        assert!(matches("**/*.jsonl", "a/b/c.jsonl") && matches("**/*.jsonl", "c.jsonl"));
        assert!(matches("a/**", "a/b/c") && !matches("a/**", "a"));
        assert!(matches("t[!a-c]?", "tdx") && !matches("t[!a-c]?", "tax"));
        assert!(!matches("*.jsonl", "a/c.jsonl"));
    }
}
