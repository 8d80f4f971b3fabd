//! Command lines for a shell to read.

/// A word as the shell reads it back.
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
    fn words_are_quoted_for_the_shell() {
        assert_eq!(quoted("--beta=0.1"), "--beta=0.1");
        assert_eq!(quoted("--loss_type=[sigmoid, sft]"), "'--loss_type=[sigmoid, sft]'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
    }
}
