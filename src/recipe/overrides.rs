//! `--key=value` and `--key.sub=value` from the command line, applied to the tree of a recipe.

use super::error::RecipeError;
use super::yaml::{Entry, Node, Place, Sources, Value, text_in_yaml};

/// Mappings whose keys are free text (data set ids, which contain dots): all text after the first
/// dot is one key.
const FREE_KEYS: [&str; 1] = ["dataset_mixer"];

/// The override that sets `key` to the text `value` as it is. Overrides are YAML, so a value that
/// the program makes itself, such as a path, is quoted if YAML would read it as something else.
pub fn text_override(key: &str, value: &str) -> String {
    format!("--{key}={}", text_in_yaml(value))
}

/// Replaces or adds the values of `arguments` in `root`, in order. Values are YAML; one that starts
/// with `{{` or `{%` is Jinja text and is taken literally. Returns an error for each argument that
/// cannot be applied.
pub(super) fn apply(
    root: &mut Node,
    sources: &mut Sources,
    arguments: &[String],
) -> Vec<RecipeError> {
    let mut errors = Vec::new();
    for argument in arguments {
        if let Err(mut wrong) = apply_one(root, sources, argument) {
            errors.append(&mut wrong);
        }
    }
    errors
}

fn apply_one(
    root: &mut Node,
    sources: &mut Sources,
    argument: &str,
) -> Result<(), Vec<RecipeError>> {
    let path = argument.strip_prefix("--").and_then(|rest| rest.split_once('='));
    let Some((path, value)) = path.filter(|(path, _)| !path.is_empty()) else {
        let source = sources.add_override(argument);
        let at = sources.override_place(source, 0, argument.len());
        let error = sources.error(at, format!("`{argument}` is not an override"));
        return Err(vec![error.with_help("write --key=value, for example --learning_rate=5e-7")]);
    };
    if value.trim().is_empty() {
        // An empty value is usually an unset shell variable; taking the default silently would hide
        // that.
        let source = sources.add_override(argument);
        let at = sources.override_place(source, 2, 2 + path.len());
        let error = sources.error(at, format!("`{path}` has no value"));
        return Err(vec![error.with_help("write null for the default")]);
    }
    let value_at = argument.len() - value.len();
    let (source, value) = match value.starts_with("{{") || value.starts_with("{%") {
        true => sources.text_override(argument, value_at),
        false => sources.parse_override(argument, value_at).map_err(|errors| errors.0)?,
    };
    let key_at = sources.override_place(source, 2, 2 + path.len());
    let path = match path.split_once('.') {
        Some((first, rest)) => format!("{}.{rest}", first.replace('-', "_")),
        None => path.replace('-', "_"),
    };
    set(root, &path, Entry { key: String::new(), key_at, value }, false)
        .map_err(|message| vec![sources.error(key_at, message)])
}

/// Sets the value of `new` at `path` below `node`, creating mappings on the way.
fn set(node: &mut Node, path: &str, new: Entry, free_keys: bool) -> Result<(), String> {
    let (first, rest) = match path.split_once('.') {
        Some((first, rest)) if !free_keys => (first, Some(rest)),
        _ => (path, None),
    };
    if node.value == Value::Null {
        *node = empty_mapping(new.key_at);
    }
    let slot = match &mut node.value {
        Value::Map(entries) => slot_of_key(entries, first, new.key_at),
        Value::List(items) => slot_of_index(items, first)?,
        _ => return Err(format!("`{first}` cannot be set: its parent is not a mapping")),
    };
    match rest {
        Some(rest) => set(slot, rest, new, FREE_KEYS.contains(&first)),
        None => {
            *slot = new.value;
            Ok(())
        }
    }
}

/// The value of `key`, which is added if it is missing.
fn slot_of_key<'n>(entries: &'n mut Vec<Entry>, key: &str, key_at: Place) -> &'n mut Node {
    let index = match entries.iter().position(|entry| entry.key == key) {
        Some(index) => index,
        None => {
            entries.push(Entry { key: key.to_owned(), key_at, value: empty_mapping(key_at) });
            entries.len() - 1
        }
    };
    let entry = &mut entries[index];
    entry.key_at = key_at;
    &mut entry.value
}

fn slot_of_index<'n>(items: &'n mut [Node], index: &str) -> Result<&'n mut Node, String> {
    let count = items.len();
    let found = index.parse().ok().and_then(|index: usize| items.get_mut(index));
    found.ok_or_else(|| {
        format!("`{index}` is not the index of an entry: the list has {count}, counted from 0")
    })
}

fn empty_mapping(at: Place) -> Node {
    Node { value: Value::Map(Vec::new()), at }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn applied(argument: &str) -> (Node, Vec<RecipeError>) {
        let mut sources = Sources::new(Path::new("r.yaml"), "beta: 0.5\n");
        let mut root = sources.parse_file().unwrap();
        let errors = apply(&mut root, &mut sources, &[argument.to_owned()]);
        (root, errors)
    }

    #[test]
    fn a_text_that_the_program_makes_comes_back_as_it_is() {
        for text in [
            "sft #2",
            "a: b",
            "~",
            "null",
            "...",
            "---",
            "-x",
            "[a]",
            "{{ x }}",
            "{% x",
            "it's",
            "\"q\"",
            "a\\b",
            " a ",
            "*x",
            "&x",
            "!x",
            "%x",
            "@x",
            "é",
            "a\u{2028}b\u{feff}",
            "a\nb",
            "\u{85}\u{7f}",
            "true",
            "1e3",
            "0x1f",
            "",
            "# a",
            "a\tb",
            "runs/a-1_b",
            "..",
            ".",
            "🪁",
            "2026-01-02",
            ".nan",
            "1_000",
            "<<",
            "=",
            "a,b",
            "| x",
            "> x",
            "? x",
        ] {
            let (root, errors) = applied(&text_override("beta", text));
            assert!(errors.is_empty(), "{text:?}: {errors:?}");
            let Value::Map(entries) = root.value else { panic!("not a mapping") };
            assert_eq!(entries[0].value.text(), Some(text));
        }
    }

    #[test]
    fn an_empty_value_is_an_error() {
        for argument in ["--beta=", "--beta= "] {
            let (root, errors) = applied(argument);
            assert_eq!((root.to_string(), errors.len()), ("{beta: 0.5}".to_owned(), 1));
            let shown = errors[0].to_string();
            assert!(shown.starts_with("command line: `beta` has no value\n"), "{shown}");
            assert!(shown.ends_with("help: write null for the default"), "{shown}");
        }
        for (argument, expected) in
            [("--beta=null", "{beta: null}"), ("--beta=\"\"", "{beta: \"\"}")]
        {
            let (root, errors) = applied(argument);
            assert_eq!((root.to_string(), errors.len()), (expected.to_owned(), 0));
        }
    }
}
