//! Secrets in recipes: how they are recognized, by their key and by their form, and masked in
//! everything that is shown or written.

/// The keys whose values are secrets, with `-` or `_` between their words.
const KEYS: [&str; 4] = ["hub_token", "push_to_hub_token", "hf_token", "use_auth_token"];
/// How a token of the hub begins.
const TOKEN_START: &str = "hf_";
/// The fewest letters and digits behind [`TOKEN_START`]. Tokens have 34.
const TOKEN_LETTERS: usize = 16;

/// Whether the value of this key is a secret.
pub fn is_secret_key(key: &str) -> bool {
    let key = key.rsplit('.').next().unwrap_or(key);
    KEYS.contains(&plain_key(key).as_str())
}

/// Whether a text contains a token of the hub, by its form.
pub fn holds_token(text: &str) -> bool {
    let chars: Vec<char> = text.chars().collect();
    (0..chars.len()).any(|at| token_at(&chars, at).is_some())
}

/// The text with every secret replaced by as many `*`: tokens by their form, and the values of
/// secret keys.
pub fn masked(text: &str) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    let mut at = 0;
    while at < chars.len() {
        let value = token_at(&chars, at).or_else(|| value_of_key_at(&chars, at));
        let Some(value) = value else {
            at += 1;
            continue;
        };
        at = value.end;
        chars[value].iter_mut().filter(|c| !c.is_whitespace()).for_each(|c| *c = '*');
    }
    chars.into_iter().collect()
}

/// The token that begins at `at`.
fn token_at(chars: &[char], at: usize) -> Option<std::ops::Range<usize>> {
    let start = TOKEN_START.len();
    let begins = chars[at..].iter().take(start).copied().eq(TOKEN_START.chars());
    if !begins || at > 0 && chars[at - 1].is_ascii_alphanumeric() {
        return None;
    }
    let letters = chars[at + start..].iter().take_while(|c| c.is_ascii_alphanumeric()).count();
    (letters >= TOKEN_LETTERS).then_some(at..at + start + letters)
}

/// The value of the secret key that begins at `at`: the text behind `:` or `=`.
fn value_of_key_at(chars: &[char], at: usize) -> Option<std::ops::Range<usize>> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    // `--key` is an override.
    let is_inside = |before: &char| is_word(*before) && *before != '-';
    if at > 0 && is_inside(&chars[at - 1]) {
        return None;
    }
    let word = chars[at..].iter().take_while(|c| is_word(**c)).count();
    let key: String = chars[at..at + word].iter().collect();
    if !is_secret_key(key.trim_start_matches('-')) {
        return None;
    }
    let skip = |from: usize, is_skipped: fn(char) -> bool| {
        from + chars[from..].iter().take_while(|c| is_skipped(**c)).count()
    };
    let mut from = skip(at + word, |c| "\"'` ".contains(c));
    if !matches!(chars.get(from), Some(':' | '=')) {
        return None;
    }
    from = skip(from + 1, |c| c == ' ');
    let end = |is_end: &dyn Fn(char) -> bool, from: usize| {
        chars[from..].iter().position(|c| is_end(*c)).map_or(chars.len(), |len| from + len)
    };
    let to = match chars.get(from)? {
        quote @ ('"' | '\'') => end(&|c| c == *quote || c == '\n', from + 1),
        '[' => end(&|c| c == ']' || c == '\n', from),
        _ => end(&|c| ",}]`\n".contains(c), from),
    };
    Some(from..to)
}

fn plain_key(key: &str) -> String {
    key.replace('-', "_").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_by_key_and_by_form() {
        let token = "hf_abcdefghijklmnopqrstuvwxyz01234567";
        let stars = "*".repeat(token.len());
        for (text, expected) in [
            (format!("run_name: {token}"), format!("run_name: {stars}")),
            (format!("not `{token}`"), format!("not `{stars}`")),
            ("hub_token: abc".into(), "hub_token: ***".into()),
            ("{hub_token: abc, beta: x}".into(), "{hub_token: ***, beta: x}".into()),
            ("--hub-token=abc".into(), "--hub-token=***".into()),
            ("--push_to_hub_token=abc".into(), "--push_to_hub_token=***".into()),
            ("`hub_token=abc` is".into(), "`hub_token=***` is".into()),
            ("hub_token: \"a, b\" # c".into(), "hub_token: *** *\" # c".into()),
            ("\"hub_token\": 'abc'".into(), "\"hub_token\": ****'".into()),
            ("hub_token: [abc, def]".into(), "hub_token: ***** ***]".into()),
        ] {
            assert_eq!(masked(&text), expected);
        }
        for text in [
            "eos_token: abc",
            "hub_token_x: abc",
            "my_hub_token: abc",
            "model_name_or_path: hf_internal_testing/tiny",
            "`hub_token` is given twice",
            "max_new_tokens=3",
        ] {
            assert_eq!(masked(text), text);
        }
        assert!(holds_token(token) && !holds_token("hf_internal_testing"));
        assert!(is_secret_key("overrides.hub-token") && !is_secret_key("eos_token"));
    }
}
