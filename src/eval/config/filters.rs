//! `filter_list`: what is taken from a generated text before it is scored.

use std::sync::Arc;

use serde_json::Value as Json;

use super::keys::{Key, Keys, pattern};
use crate::eval::python::{Pattern, lower, text_of, trimmed};
use crate::recipe::RecipeError;

/// A named sequence of filters.
#[derive(Debug, Clone)]
pub struct FilterList {
    pub name: String,
    filters: Vec<Filter>,
}

#[derive(Debug, Clone)]
enum Filter {
    /// The match at place `select` of all matches; `fallback` without a match. Of a match with
    /// groups, the first group that is not empty counts.
    Regex {
        pattern: Arc<Pattern>,
        select: i64,
        fallback: String,
    },
    Lowercase,
    Uppercase,
    RemoveWhitespace,
    Map {
        texts: Vec<(String, String)>,
        default: String,
    },
}

const SUPPORTED: &str = "the filters are regex, take_first, take_first_k, majority_vote, \
                         remove_whitespace, lowercase, uppercase and map";

impl FilterList {
    /// The one that changes nothing.
    pub fn none() -> Self {
        Self { name: "none".to_owned(), filters: Vec::new() }
    }

    /// Reads an item of `filter_list`.
    ///
    /// # Errors
    /// A filter is unknown or has a wrong setting.
    pub fn read(item: &Key) -> Result<Self, RecipeError> {
        let mut keys = Keys::of_key(item)?;
        let missing = |name: &str| {
            item.error(
                format!("an item of `filter_list` has no `{name}`"),
                "write name: and filter: [{function: …}]",
            )
        };
        let name = keys.take("name").ok_or_else(|| missing("name"))?.text()?;
        let filters = keys.take("filter").ok_or_else(|| missing("filter"))?;
        refuse_rest(&keys, "`name` and `filter`")?;
        let filters: Result<Vec<_>, _> = filters.items().iter().map(filter).collect();
        Ok(Self { name, filters: filters?.into_iter().flatten().collect() })
    }

    /// Whether the texts stay as they are.
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }

    /// The text after all filters.
    pub fn apply(&self, text: &str) -> String {
        self.filters.iter().fold(text.to_owned(), |text, filter| filter.apply(&text))
    }
}

impl Filter {
    fn apply(&self, text: &str) -> String {
        match self {
            Self::Regex { pattern, select, fallback } => {
                let found = pattern.find_all(text);
                let at = match usize::try_from(*select) {
                    Ok(at) => Some(at),
                    Err(_) => found.len().checked_sub(select.unsigned_abs() as usize),
                };
                let groups = at.and_then(|at| found.get(at));
                let part = groups.and_then(|groups| match groups.as_slice() {
                    [whole] => Some(*whole),
                    groups => groups.iter().copied().find(|group| !group.is_empty()),
                });
                part.map_or_else(|| fallback.clone(), |part| trimmed(part).to_owned())
            }
            Self::Lowercase => lower(text),
            Self::Uppercase => text.to_uppercase(),
            Self::RemoveWhitespace => trimmed(text).to_owned(),
            Self::Map { texts, default } => texts
                .iter()
                .find(|(from, _)| from == text)
                .map_or_else(|| default.clone(), |(_, to)| to.clone()),
        }
    }
}

/// `None` for a filter that selects among repeated answers: a greedy answer is one.
fn filter(item: &Key) -> Result<Option<Filter>, RecipeError> {
    let mut keys = Keys::of_key(item)?;
    let Some(function) = keys.take("function") else {
        return Err(item.error("a filter has no `function`", SUPPORTED));
    };
    let filter = match function.text()?.as_str() {
        "take_first" | "majority_vote" => None,
        "take_first_k" => {
            if let Some(k) = keys.take("k")
                && k.count()? > 1
            {
                return Err(k.error("answers are greedy, so only one is given", "write k: 1"));
            }
            None
        }
        "regex" => Some(regex(&mut keys)?),
        "lowercase" => Some(Filter::Lowercase),
        "uppercase" => Some(Filter::Uppercase),
        "remove_whitespace" => Some(Filter::RemoveWhitespace),
        "map" => {
            let mapping = match keys.take("mapping_dict") {
                Some(key) => key.json()?,
                None => Json::Object(Default::default()),
            };
            let default = keys.take("default_value").map(|key| key.json()).transpose()?;
            let texts = mapping.as_object().into_iter().flatten();
            Some(Filter::Map {
                texts: texts.map(|(from, to)| (from.clone(), text_of(to))).collect(),
                default: text_of(&default.unwrap_or_default()),
            })
        }
        other => {
            return Err(function.error(format!("filter `{other}` is not supported"), SUPPORTED));
        }
    };
    refuse_rest(&keys, "the settings of this filter")?;
    Ok(filter)
}

fn regex(keys: &mut Keys) -> Result<Filter, RecipeError> {
    let pattern = match keys.take("regex_pattern") {
        Some(key) => pattern(&key)?,
        None => {
            let number = Pattern::new(r"#### (\-?[0-9\.\,]+)");
            Arc::new(number.expect("the pattern is valid"))
        }
    };
    let select = keys.take("group_select").map_or(Ok(0), |key| key.whole())?;
    let fallback = keys.take("fallback").map_or(Ok("[invalid]".to_owned()), |key| key.text())?;
    Ok(Filter::Regex { pattern, select, fallback })
}

fn refuse_rest(keys: &Keys, expected: &str) -> Result<(), RecipeError> {
    match keys.rest() {
        None => Ok(()),
        Some(key) => {
            let message = format!("`{}` is not among {expected}", key.name);
            Err(key.error_at_name(message, "remove it, or correct its spelling"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn list(text: &str) -> Result<FilterList, RecipeError> {
        let mut keys = Keys::parse(Path::new("t.yaml"), text).unwrap();
        FilterList::read(&keys.take("f").unwrap().items()[0])
    }

    #[test]
    fn the_filters_of_gsm8k_find_numbers() {
        let strict = list(
            "f: [{name: s, filter: [{function: regex, regex_pattern: '#### (\\-?[0-9\\.\\,]+)'}, \
             {function: take_first}]}]",
        );
        let strict = strict.unwrap();
        assert_eq!(strict.apply("so 18\n#### 1,800.\nQ"), "1,800.");
        assert_eq!(strict.apply("so 18"), "[invalid]");
        let flexible = list(
            "f: [{name: x, filter: [{function: regex, group_select: -1, regex_pattern: \
             '(-?[$0-9.,]{2,})|(-?[0-9]+)'}]}]",
        );
        let flexible = flexible.unwrap();
        assert_eq!(flexible.apply("18 eggs, $12.00 or 3"), "3");
        assert_eq!(flexible.apply("it costs $12.00"), "$12.00");
        assert_eq!(flexible.apply("none"), "[invalid]");
    }

    #[test]
    fn texts_are_mapped_and_changed() {
        let chain = list(
            "f: [{name: m, filter: [{function: remove_whitespace}, {function: lowercase}, \
             {function: map, mapping_dict: {yes: '1', 'a': 2}, default_value: x}]}]",
        );
        let chain = chain.unwrap();
        assert_eq!((chain.apply(" A\n"), chain.apply("b")), ("2".to_owned(), "x".to_owned()));
    }

    #[test]
    fn unknown_filters_are_refused_with_their_place() {
        let error = list("f:\n  - name: a\n    filter:\n      - function: custom\n").unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("t.yaml:4:19: filter `custom` is not supported"), "{text}");
        let error = list("f: [{name: a, filter: [{function: regex, regex: x}]}]").unwrap_err();
        assert!(error.to_string().contains("`regex` is not among"), "{error}");
        let error = list("f: [{name: a, filter: [{function: regex, regex_pattern: '('}]}]");
        assert!(error.unwrap_err().to_string().contains("not a regular expression"));
    }
}
