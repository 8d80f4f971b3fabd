//! Finds the files of a split in a folder: by the rules of `datasets` (see [`super::split_files`]).
//! If they find no such split, also in the hub's layout for any name of a split:
//! `data/<split>-00000-of-00001.parquet`, `<split>.jsonl`, `<split>/….parquet`, each optionally in
//! a folder with the name of the configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use super::split_files;

/// The data files among `names` (paths in the data set, separated by `/`) that hold `split`, in
/// their order. `readme` is the README.md of the data set.
pub(super) fn files_of_split<'a>(
    names: &'a [String],
    readme: Option<&str>,
    config: Option<&str>,
    split: &str,
) -> Vec<&'a str> {
    let splits = split_files::splits(names, readme, config);
    if let Some((_, files)) = splits.into_iter().find(|(name, _)| name == split) {
        return files;
    }
    let mut files: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| split_of(name, config).is_some_and(|of| of == split))
        .collect();
    files.sort_unstable();
    files
}

/// All splits among `names`.
pub(super) fn splits(names: &[String], readme: Option<&str>, config: Option<&str>) -> Vec<String> {
    let by_rule = split_files::splits(names, readme, config).into_iter().map(|(split, _)| split);
    let by_name = names.iter().filter_map(|name| split_of(name, config)).map(str::to_owned);
    by_rule.chain(by_name).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Whether a file has a format that can be read.
pub(super) fn is_data(name: &str) -> bool {
    name.ends_with(".parquet") || name.ends_with(".jsonl")
}

/// The split that a file name stands for.
pub(super) fn split_of_file(name: &str) -> &str {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let shard = stem
        .match_indices('-')
        .find(|(at, _)| stem[at + 1..].starts_with(|c: char| c.is_ascii_digit()));
    shard.map_or(stem, |(at, _)| &stem[..at])
}

/// For each series `NAME-00000-of-00003…` among `files` that is not complete: its name, with stars
/// for the number, and the numbers of the missing files.
pub(super) fn missing_shards(files: &[&str]) -> Vec<(String, Vec<usize>)> {
    let mut series: BTreeMap<(String, usize), BTreeSet<usize>> = BTreeMap::new();
    for (start, number, total) in files.iter().filter_map(|file| shard_of(file)) {
        let name = format!("{start}-*****-of-{total:05}");
        series.entry((name, total)).or_default().insert(number);
    }
    let missing = series.into_iter().map(|((name, total), here)| {
        let missing = (0..total).filter(|number| !here.contains(number)).collect();
        (name, missing)
    });
    missing.filter(|(_, missing): &(String, Vec<usize>)| !missing.is_empty()).collect()
}

/// The start, number and total of a name such as `data/train-00001-of-00003-abc.parquet`.
fn shard_of(file: &str) -> Option<(&str, usize, usize)> {
    let at = file.rfind("-of-")?;
    let number = file.get(at.checked_sub(5)?..at)?;
    let start = file[..at - 5].strip_suffix('-')?;
    let total = file.get(at + 4..at + 9)?;
    let digits =
        |text: &str| text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    let (number, total) = (digits(number)?, digits(total)?);
    (number < total).then_some((start, number, total))
}

fn split_of<'a>(name: &'a str, config: Option<&str>) -> Option<&'a str> {
    if !is_data(name) {
        return None;
    }
    let config = config.unwrap_or("default");
    let mut parts: Vec<&str> = name.split('/').collect();
    for folder in ["data", config, "data"] {
        if parts.len() > 1 && parts[0] == folder {
            parts.remove(0);
        }
    }
    match parts[..] {
        [file] => Some(split_of_file(file)),
        [split, _] => Some(split),
        _ => None,
    }
}

/// The paths of all data files below `root`, relative to it, at most four folders deep. Hidden
/// folders are skipped.
pub(super) fn data_files(root: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    let mut folders: Vec<(PathBuf, String)> = vec![(root.to_owned(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if name.starts_with('.') {
                continue;
            }
            // `is_dir` follows links, which the hub's cache consists of.
            if path.is_dir() {
                if prefix.matches('/').count() < 4 {
                    folders.push((path.clone(), format!("{prefix}{name}/")));
                }
            } else if is_data(name) {
                names.push(format!("{prefix}{name}"));
            }
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn shards_of_a_split_come_in_order() {
        let names = names(&[
            "README.md",
            "data/train_prefs-00001-of-00002-aa.parquet",
            "data/train_prefs-00000-of-00002-bb.parquet",
            "data/train_sft-00000-of-00001.parquet",
            "test.jsonl",
        ]);
        assert_eq!(
            files_of_split(&names, None, None, "train_prefs"),
            [
                "data/train_prefs-00000-of-00002-bb.parquet",
                "data/train_prefs-00001-of-00002-aa.parquet"
            ]
        );
        assert_eq!(splits(&names, None, None), ["test", "train_prefs", "train_sft"]);
        assert!(files_of_split(&names, None, None, "train").is_empty());
    }

    #[test]
    fn a_configuration_has_a_folder_of_its_own() {
        let names = names(&[
            "en/train-0.parquet",
            "data/de/train.jsonl",
            "default/test.parquet",
            "train/b.jsonl",
        ]);
        assert_eq!(
            files_of_split(&names, None, Some("en"), "train"),
            ["en/train-0.parquet", "train/b.jsonl"]
        );
        assert_eq!(
            files_of_split(&names, None, Some("de"), "train"),
            ["data/de/train.jsonl", "train/b.jsonl"]
        );
        assert_eq!(files_of_split(&names, None, None, "test"), ["default/test.parquet"]);
        assert_eq!(files_of_split(&names, None, None, "train"), ["train/b.jsonl"]);
    }

    #[test]
    fn missing_shards_are_found() {
        let missing = |files: &[&str]| missing_shards(files);
        let one = ["data/train-00001-of-00003-ab.parquet"];
        assert_eq!(missing(&one), [("data/train-*****-of-00003".to_owned(), vec![0, 2])]);
        assert!(missing(&["a-00000-of-00002.jsonl", "a-00001-of-00002.jsonl"]).is_empty());
        let odd =
            ["train.jsonl", "a-of-b.jsonl", "ä-00009-of-00002.jsonl", "-of-", "00000-of-00002"];
        assert!(missing(&odd).is_empty());
    }

    #[test]
    fn folders_are_searched() {
        let root = tempfile::tempdir().unwrap();
        for name in ["data/train.parquet", "x/y/z.jsonl", ".git/a.jsonl", "README.md"] {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        assert_eq!(data_files(root.path()).unwrap(), ["data/train.parquet", "x/y/z.jsonl"]);
    }
}
