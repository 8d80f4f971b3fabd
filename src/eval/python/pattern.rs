//! Regular expressions with the meaning of Python's `re`, by Oniguruma.

use onig::{MatchParam, Regex, RegexOptions, Region, SearchOptions, Syntax};

/// A compiled pattern.
#[derive(Debug)]
pub struct Pattern {
    regex: Regex,
    source: String,
}

/// The places of a match: the whole first, then the groups.
type Places = Vec<Option<(usize, usize)>>;

impl Pattern {
    /// # Errors
    /// The pattern is invalid; the text says why.
    pub fn new(source: &str) -> Result<Self, String> {
        let regex = Regex::with_options(source, RegexOptions::REGEX_OPTION_NONE, Syntax::python())
            .map_err(|error| error.description().to_owned())?;
        Ok(Self { regex, source: source.to_owned() })
    }

    /// The number of groups.
    pub fn groups(&self) -> usize {
        self.regex.captures_len()
    }

    /// `findall`: for each match its groups, or the whole match if the pattern has no groups. A
    /// group without a match is empty.
    pub fn find_all<'t>(&self, text: &'t str) -> Vec<Vec<&'t str>> {
        let part = |place: &Option<(usize, usize)>| match place {
            Some((start, end)) => &text[*start..*end],
            None => "",
        };
        let first = usize::from(self.groups() > 0);
        self.matches(text)
            .into_iter()
            .map(|places| places[first..].iter().map(part).collect())
            .collect()
    }

    /// The first match: the whole first, then the groups.
    pub fn search<'t>(&self, text: &'t str) -> Option<Vec<Option<&'t str>>> {
        let places = self.search_from(text, 0)?;
        Some(places.into_iter().map(|place| place.map(|(start, end)| &text[start..end])).collect())
    }

    /// `sub` with a replacement for each match, made of its places. `most` limits the number of
    /// replaced matches.
    pub fn replace_with(
        &self,
        text: &str,
        most: usize,
        mut replacement: impl FnMut(&[Option<&str>]) -> String,
    ) -> String {
        let mut out = String::with_capacity(text.len());
        let mut copied = 0;
        for places in self.matches(text).into_iter().take(most) {
            let Some((start, end)) = places[0] else { continue };
            let groups: Vec<Option<&str>> =
                places.iter().map(|place| place.map(|(start, end)| &text[start..end])).collect();
            out.push_str(&text[copied..start]);
            out.push_str(&replacement(&groups));
            copied = end;
        }
        out.push_str(&text[copied..]);
        out
    }

    /// `sub(pattern, "", text)`.
    pub fn removed_from(&self, text: &str) -> String {
        self.replace_with(text, usize::MAX, |_| String::new())
    }

    /// All matches from left to right. After an empty match the search goes on one character
    /// later; an empty match may follow a longer one directly.
    fn matches(&self, text: &str) -> Vec<Places> {
        let mut found = Vec::new();
        let mut from = 0;
        while from <= text.len()
            && let Some(places) = self.search_from(text, from)
        {
            let Some((start, end)) = places[0] else { break };
            from = match start == end {
                true => end + text[end..].chars().next().map_or(1, char::len_utf8),
                false => end,
            };
            found.push(places);
        }
        found
    }

    fn search_from(&self, text: &str, from: usize) -> Option<Places> {
        let mut region = Region::new();
        let outcome = self.regex.search_with_param(
            text,
            from,
            text.len(),
            SearchOptions::SEARCH_OPTION_NONE,
            Some(&mut region),
            MatchParam::default(),
        );
        match outcome {
            Ok(found) => found.map(|_| (0..region.len()).map(|group| region.pos(group)).collect()),
            Err(error) => {
                tracing::warn!(pattern = self.source, "no match: {}", error.description());
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find_all(pattern: &str, text: &str) -> Vec<String> {
        let pattern = Pattern::new(pattern).unwrap();
        pattern.find_all(text).into_iter().map(|groups| groups.join("|")).collect()
    }

    /// The results are those of `re.findall` and `re.sub` in Python 3.11.
    #[test]
    fn matches_are_pythons() {
        assert_eq!(find_all("(-?[$0-9.,]{2,})|(-?[0-9]+)", "is $18.00, 7"), ["$18.00,|", "|7"]);
        assert_eq!(find_all(r"#### (\-?[0-9\.\,]+)", "x\n#### -1,000.\n"), ["-1,000."]);
        assert_eq!(find_all("x*", "axb"), ["", "x", "", ""]);
        assert_eq!(find_all("^.$", "a\nb"), Vec::<String>::new());
        assert_eq!(find_all("(?m)^.$", "a\nb"), ["a", "b"]);
        assert_eq!(find_all(r"(?P<w>\w+) (?=\d)", "ä 1 b"), ["ä"]);
        assert_eq!(find_all(r"b\Z", "b\nb"), ["b"]);
        assert_eq!(find_all(r"b\Z", "b\n"), Vec::<String>::new());
        assert_eq!(find_all("b$", "b\nb\n"), ["b"]);
        assert_eq!(find_all(r"(?i)(?P<w>A)(?P=w)", "aAb"), ["a"]);
        let removed = |pattern: &str, text: &str| Pattern::new(pattern).unwrap().removed_from(text);
        assert_eq!(removed(r"\.$", "18.\n"), "18\n");
        assert_eq!(removed("(?s).*#### ", "a\n#### b #### 3"), "3");
        assert_eq!(removed(r"\$", "$1$"), "1");
        assert_eq!(removed(r"\[.*?\]", "a [b] c [d\n] []"), "a  c [d\n] ");
    }

    #[test]
    fn invalid_patterns_are_refused() {
        assert!(Pattern::new("(").is_err());
        assert!(Pattern::new("[a").is_err());
    }
}
