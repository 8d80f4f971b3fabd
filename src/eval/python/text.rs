//! Python's methods of texts.

use crate::data::is_space;

/// `text.strip()`.
pub fn trimmed(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `text.lower()`.
pub fn lower(text: &str) -> String {
    text.to_lowercase()
}

/// `text.capitalize()`: the first character in title case, all others in lower case.
pub fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    let Some(first) = characters.next() else { return String::new() };
    // Only the first letter of an expansion such as `SS` stays in upper case.
    let mut out = String::new();
    for character in first.to_uppercase() {
        match out.chars().any(char::is_uppercase) {
            true => out.extend(character.to_lowercase()),
            false => out.push(character),
        }
    }
    // The lower case of a sigma depends on the characters before it.
    let lower = text.to_lowercase();
    let of_first = first.to_string().to_lowercase();
    out.push_str(lower.strip_prefix(of_first.as_str()).unwrap_or_default());
    out
}

/// `text.isdigit()` for ASCII digits: such a text is read as a number.
pub fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The text without the characters of `string.punctuation`.
pub fn without_punctuation(text: &str) -> String {
    text.chars().filter(|character| !character.is_ascii_punctuation()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_capitalized_as_in_python() {
        for (text, expected) in
            [("", ""), ("he SAYS", "He says"), ("ßA", "Ssa"), ("ŉx", "ʼNx"), ("éÉ", "Éé")]
        {
            assert_eq!(capitalized(text), expected);
        }
    }
}
