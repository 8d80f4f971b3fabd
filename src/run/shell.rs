//! Quoting for command lines that are shown to the user or written into scripts.

/// Quotes `word` for a POSIX shell, if it needs quotes.
pub fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_string(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_if_they_need_quotes() {
        assert_eq!(quoted("--beta=0.1"), "--beta=0.1");
        assert_eq!(quoted("--loss_type=[sigmoid, sft]"), "'--loss_type=[sigmoid, sft]'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
    }
}
