//! Tokens that transformers 5 registers when it loads a tokenizer, although tokenizer.json does not
//! list them: those of `added_tokens_decoder`, the named special tokens (`eos_token`, …), and the
//! extra special tokens in tokenizer_config.json and the files beside it. A registered token is
//! found as a whole in any text.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;
use tokenizers::{AddedToken, Tokenizer};

/// The files of a tokenizer that name tokens.
pub(super) struct AddedTokens<'a> {
    /// tokenizer_config.json.
    pub config: &'a Json,
    /// special_tokens_map.json.
    pub map: &'a Json,
    /// The texts of the special tokens.
    pub special: &'a BTreeMap<String, String>,
}

impl AddedTokens<'_> {
    /// The tokens that `tokenizer` has not registered yet, in the order in which transformers
    /// registers them. `legacy` is added_tokens.json.
    ///
    /// A special token that is not in the vocabulary is left out: transformers would give it a new
    /// id, for which the model has no embedding.
    pub fn missing_in(&self, tokenizer: &Tokenizer, legacy: &Json) -> Vec<AddedToken> {
        let registered = tokenizer.get_added_tokens_decoder();
        let mut known: BTreeSet<String> =
            registered.into_values().map(|token| token.content).collect();
        let special =
            self.special.iter().map(|(name, content)| (content.clone(), self.definition(name)));
        let special = special.chain(self.extra());
        let special = special
            .filter(|(content, _)| tokenizer.token_to_id(content).is_some())
            .map(|(content, definition)| token_of(content, definition, true));
        let all = self.with_ids(legacy).into_values().chain(special);
        all.filter(|token| known.insert(token.content.clone())).collect()
    }

    /// The tokens with ids: those of `added_tokens_decoder`; without it those of added_tokens.json.
    fn with_ids(&self, legacy: &Json) -> BTreeMap<u64, AddedToken> {
        if let Some(tokens) = self.config["added_tokens_decoder"].as_object() {
            let token = |(id, definition): (&String, &Json)| {
                let content = definition["content"].as_str()?.to_owned();
                Some((id.parse().ok()?, token_of(content, definition, false)))
            };
            return tokens.iter().filter_map(token).collect();
        }
        let is_special = |content: &String| {
            self.special.values().any(|own| own == content)
                || self.extra().iter().any(|(own, _)| own == content)
        };
        let token = |(content, id): (&String, &Json)| {
            Some((id.as_u64()?, AddedToken::from(content.clone(), is_special(content))))
        };
        legacy.as_object().into_iter().flatten().filter_map(token).collect()
    }

    /// The definition of a named token, from the file that wins.
    fn definition(&self, name: &str) -> &Json {
        let has_decoder = !self.config["added_tokens_decoder"].is_null();
        match &self.map[name] {
            Json::Null => &self.config[name],
            _ if has_decoder => &self.config[name],
            definition => definition,
        }
    }

    /// The extra special tokens of both files, as `extra_special_tokens` or, before transformers 5,
    /// `additional_special_tokens`: a list, or tokens by name.
    fn extra(&self) -> Vec<(String, &Json)> {
        let map = Some(self.map).filter(|_| self.config["added_tokens_decoder"].is_null());
        let tokens = [Some(self.config), map].into_iter().flatten().flat_map(extra_of);
        let content =
            |token: &Json| token.as_str().or(token["content"].as_str()).map(str::to_owned);
        tokens.filter_map(|token| Some((content(token)?, token))).collect()
    }
}

/// Sets the properties of registered tokens to those of `added_tokens_decoder`, which win in
/// transformers. Returns whether any changed.
pub(super) fn set_flags(definition: &mut Json, config: &Json) -> bool {
    const FLAGS: [&str; 5] = ["single_word", "lstrip", "rstrip", "normalized", "special"];
    let tokens = definition.get_mut("added_tokens").and_then(Json::as_array_mut);
    let Some(tokens) = tokens else { return false };
    let mut changed = false;
    for token in tokens {
        let own = &config["added_tokens_decoder"][token["id"].to_string()];
        if own["content"].as_str().is_none() || own["content"] != token["content"] {
            continue;
        }
        for flag in FLAGS {
            if own[flag].is_boolean() && token[flag] != own[flag] {
                token[flag] = own[flag].clone();
                changed = true;
            }
        }
    }
    changed
}

fn extra_of(file: &Json) -> Vec<&Json> {
    let keys = ["extra_special_tokens", "additional_special_tokens"];
    let lists = keys.map(|key| match &file[key] {
        Json::Array(tokens) => tokens.iter().collect(),
        Json::Object(tokens) => tokens.values().collect(),
        _ => Vec::new(),
    });
    lists.into_iter().find(|tokens| !tokens.is_empty()).unwrap_or_default()
}

/// A token with the properties of its definition. If they are missing, the defaults of `AddedToken`
/// in Python. `special` holds if the definition does not say it.
fn token_of(content: String, definition: &Json, special: bool) -> AddedToken {
    let flag = |key: &str| definition[key].as_bool();
    let special = special || flag("special").unwrap_or(false);
    AddedToken::from(content, special)
        .single_word(flag("single_word").unwrap_or(false))
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false))
        .normalized(flag("normalized").unwrap_or(!special))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use crate::data::Tokenizer;

    use super::*;

    /// The ids of `a<|end|>b <x> </s>` for a tokenizer of single characters whose vocabulary also
    /// has `</s>` (2), `<|end|>` (3) and `<x>` (13).
    fn ids(files: &[(&str, Json)]) -> Vec<u32> {
        let dir = tempfile::tempdir().unwrap();
        let definition = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "added_tokens": [], "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": {
                "type": "BPE", "merges": [], "unk_token": "a", "dropout": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
                "byte_fallback": false,
                "vocab": {
                    "a": 0, "b": 1, "</s>": 2, "<|end|>": 3, "<": 4, ">": 5, "|": 6, "e": 7, "n": 8,
                    "d": 9, "s": 10, "/": 11, " ": 12, "<x>": 13, "x": 14,
                },
            },
        });
        let write = |name: &str, json: &Json| {
            std::fs::write(dir.path().join(Path::new(name)), json.to_string()).unwrap();
        };
        write("tokenizer.json", &definition);
        files.iter().for_each(|(name, json)| write(name, json));
        let tokenizer = Tokenizer::load(dir.path(), None, None).unwrap();
        tokenizer.encode("a<|end|>b <x> </s>", false).unwrap()
    }

    /// In transformers 5.24, `a <|end|> b` has the ids 0, 3, 1 with this config.
    #[test]
    fn the_config_decides_what_a_registered_token_strips() {
        let token = |strip: bool| {
            json!({"id": 3, "content": "<|end|>", "lstrip": strip, "rstrip": strip,
                "normalized": false, "single_word": false, "special": true})
        };
        let mut definition = json!({"added_tokens": [token(false)]});
        let config = json!({"added_tokens_decoder": {"3": token(true)}});
        assert!(set_flags(&mut definition, &config));
        assert_eq!(definition, json!({"added_tokens": [token(true)]}));
        assert!(!set_flags(&mut definition, &config));
        assert!(!set_flags(&mut definition, &json!({"added_tokens_decoder": {"4": token(false)}})));
    }

    /// The ids are those of transformers 5.24.
    #[test]
    fn tokens_of_the_config_are_found_in_a_text() {
        const CONFIG: &str = "tokenizer_config.json";
        const MAP: &str = "special_tokens_map.json";
        let token = |content: &str, strip: bool, special: bool| {
            json!({
                "content": content, "lstrip": strip, "rstrip": strip, "normalized": false,
                "single_word": false, "special": special,
            })
        };
        let config = |json: Json| ids(&[(CONFIG, json)]);
        let pieces = [0, 4, 6, 7, 8, 9, 6, 5, 1, 12, 4, 14, 5, 12, 4, 11, 10, 5];
        assert_eq!(config(json!({})), pieces);
        let end = [0, 3, 1, 12, 4, 14, 5, 12, 4, 11, 10, 5];
        assert_eq!(config(json!({"eos_token": "<|end|>"})), end);
        assert_eq!(config(json!({"eos_token": token("<|end|>", false, true)})), end);
        let both = [0, 3, 1, 12, 13, 12, 4, 11, 10, 5];
        assert_eq!(config(json!({"additional_special_tokens": ["<|end|>", "<x>"]})), both);
        let x = [0, 4, 6, 7, 8, 9, 6, 5, 1, 12, 13, 12, 4, 11, 10, 5];
        assert_eq!(config(json!({"extra_special_tokens": ["<x>"]})), x);
        assert_eq!(config(json!({"extra_special_tokens": {"image_token": "<x>"}})), x);
        assert_eq!(config(json!({"image_token": "<x>"})), x);
        let decoder = json!({"3": token("<|end|>", false, true)});
        let with_decoder = json!({"eos_token": "</s>", "added_tokens_decoder": decoder});
        assert_eq!(config(with_decoder), [0, 3, 1, 12, 4, 14, 5, 12, 2]);
        let stripping = json!({"added_tokens_decoder": {"13": token("<x>", true, false)}});
        assert_eq!(config(stripping), [0, 4, 6, 7, 8, 9, 6, 5, 1, 13, 4, 11, 10, 5]);
        let new = json!({"added_tokens_decoder": {"15": token("b <x>", false, true)}});
        assert_eq!(config(new), [0, 4, 6, 7, 8, 9, 6, 5, 15, 12, 4, 11, 10, 5]);
        let map = json!({"eos_token": "<|end|>", "additional_special_tokens": ["<x>"]});
        assert_eq!(ids(&[(MAP, map.clone())]), both);
        let ignored = json!({"added_tokens_decoder": {}});
        assert_eq!(ids(&[(CONFIG, ignored), (MAP, map)]), pieces);
        let legacy = json!({"<|end|>": 3, "b <x>": 15});
        assert_eq!(ids(&[("added_tokens.json", legacy)]), [0, 3, 15, 12, 4, 11, 10, 5]);
    }
}
