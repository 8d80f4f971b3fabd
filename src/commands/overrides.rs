//! Finds the overrides of a recipe on the command line, before clap reads its options.
//!
//! A subcommand takes overrides if it declares the positional argument [`OVERRIDES`]. In such a
//! subcommand every word that is neither a declared option, nor the value of one, nor the recipe's
//! path is an override. Words may stand in any order.

use std::ffi::{OsStr, OsString};

use clap::{Arg, Command};

/// The positional argument that collects the overrides.
pub const OVERRIDES: &str = "overrides";

/// Moves the overrides in `words` (the program's name first) to the end, behind a `--`, so that
/// clap reads them as they are. A `--` that the user wrote has no meaning and is dropped. Without a
/// path no overrides are passed on: clap says that the path is missing.
pub fn overrides_last(words: Vec<OsString>, program: &Command) -> Vec<OsString> {
    let name = words.get(1).and_then(|word| word.to_str());
    let command = name.and_then(|name| program.find_subcommand(name)).filter(takes_overrides);
    let Some(command) = command else { return words };
    let (start, words) = words.split_at(2);
    let mut own = start.to_vec();
    let mut overrides = Vec::new();
    let mut has_path = false;
    let mut words = words.iter().filter(|word| *word != "--").cloned();
    while let Some(word) = words.next() {
        if let Some(option) = option_of(&word, command) {
            let value_follows = option.get_action().takes_values() && !holds_value(&word);
            own.push(word);
            own.extend(value_follows.then(|| words.next()).flatten());
        } else if has_path || is_hyphenated(&word) {
            overrides.push(word);
        } else {
            own.push(word);
            has_path = true;
        }
    }
    if has_path && !overrides.is_empty() {
        own.push("--".into());
        own.append(&mut overrides);
    }
    own
}

fn takes_overrides(command: &&Command) -> bool {
    command.get_positionals().any(|argument| argument.get_id() == OVERRIDES)
}

/// The declared option that `word` names: `--long`, `--long=value` or `-s`.
fn option_of<'c>(word: &OsStr, command: &'c Command) -> Option<&'c Arg> {
    let word = word.to_str()?;
    let is_named = |option: &&Arg| match word.strip_prefix("--") {
        Some(long) => {
            let name = long.split_once('=').map_or(long, |(name, _)| name);
            option.get_long() == Some(name)
                || option.get_all_aliases().is_some_and(|aliases| aliases.contains(&name))
        }
        None => option.get_short().is_some_and(|short| word == format!("-{short}")),
    };
    command.get_arguments().find(is_named)
}

fn holds_value(option: &OsStr) -> bool {
    option.to_str().is_some_and(|option| option.contains('='))
}

fn is_hyphenated(word: &OsStr) -> bool {
    word.to_str().is_some_and(|word| word.len() > 1 && word.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ArgAction;

    fn program() -> Command {
        let train = Command::new("train")
            .arg(Arg::new("recipe").required(true))
            .arg(Arg::new(OVERRIDES).num_args(0..))
            .arg(Arg::new("quiet").long("quiet").short('q').action(ArgAction::SetTrue))
            .arg(Arg::new("ranks").long("ranks").alias("world"));
        let report = Command::new("report").arg(Arg::new("runs").num_args(1..));
        let mut program = Command::new("p").subcommand(train).subcommand(report);
        program.build();
        program
    }

    fn moved(line: &str) -> String {
        let words = line.split_whitespace().map(OsString::from).collect();
        let words = overrides_last(words, &program()).into_iter();
        words.map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn options_and_overrides_may_stand_in_any_order() {
        let expected = "p train -q --ranks 16 r.yaml -- --beta=0.1 --a.b=2";
        assert_eq!(moved("p train --beta=0.1 -q --ranks 16 --a.b=2 r.yaml"), expected);
        assert_eq!(moved("p train -q --ranks 16 r.yaml -- --beta=0.1 --a.b=2"), expected);
        let behind = "p train r.yaml --ranks=16 --quiet -- --beta=0.1";
        assert_eq!(moved("p train r.yaml --beta=0.1 --ranks=16 --quiet"), behind);
        assert_eq!(moved("p train r.yaml --world 2 --help"), "p train r.yaml --world 2 --help");
    }

    #[test]
    fn words_that_are_no_override_reach_the_recipes_reader() {
        let words = "p train r.yaml -- seed=1 --bf16 -x --output-dir= --ranks-x=1";
        assert_eq!(moved(words), words);
        assert_eq!(moved("p train r.yaml --beta 0.1"), "p train r.yaml -- --beta 0.1");
    }

    #[test]
    fn an_option_takes_the_word_behind_it_and_a_path_is_needed() {
        assert_eq!(moved("p train --ranks --beta=1 r.yaml"), "p train --ranks --beta=1 r.yaml");
        assert_eq!(moved("p train r.yaml --ranks"), "p train r.yaml --ranks");
        assert_eq!(moved("p train --beta=1"), "p train");
    }

    #[test]
    fn other_commands_are_left_alone() {
        for line in ["p", "p --help", "p report a -- --b=1", "p fly --beta=1"] {
            assert_eq!(moved(line), line);
        }
    }
}
