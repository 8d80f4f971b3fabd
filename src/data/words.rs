//! Fast encoding for tokenizers of the Llama family: word by word, with a memory of words seen
//! before.
//!
//! These tokenizers have no pre-tokenizer. A text between two special tokens is normalized (`▁` is
//! put in front, each space becomes `▁`) and merged as a whole. If no token of the vocabulary has a
//! `▁` after another character, no merge crosses the boundary before a `▁`, so the ids of a text
//! are those of its words. [`Words::of`] accepts a tokenizer only if all of this holds, and if the
//! ids of a few test texts equal the tokenizer's own.

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
};

use serde_json::Value as Json;
use tokenizers::{AddedToken, Model, Tokenizer};

const BLANK: char = '\u{2581}';
/// The number of words that a thread remembers.
const REMEMBERED: usize = 1 << 17;
const PROBES: [&str; 6] = [
    "a",
    " Two  words,\tand\n\nlines. ",
    "\u{2581}x \u{2581} <0x0A> größer 東京😀\u{200d}🔥",
    "<|user|>\nHi</s>\n<|assistant|>\n",
    "</s></s><s> a<unk>b </s> <s>",
    "x</s",
];

/// The words that this thread has seen, with their ids, for one tokenizer.
struct Seen {
    tokenizer: u64,
    ids: HashMap<Box<str>, Box<[u32]>>,
}

thread_local! {
    static SEEN: RefCell<Seen> = RefCell::new(Seen { tokenizer: 0, ids: HashMap::new() });
}

/// Everything besides the model that encoding word by word needs.
#[derive(Debug)]
pub(super) struct Words {
    /// Identifies this tokenizer within the process.
    number: u64,
    special: Vec<(String, u32)>,
    /// The ids that the post-processor puts before and after the text.
    before: Vec<u32>,
    after: Vec<u32>,
}

impl Words {
    /// `None` if the tokenizer cannot be used in this way. `definition` is its tokenizer.json.
    pub fn of(tokenizer: &Tokenizer, definition: &Json) -> Option<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        if !words_are_independent(definition) || !has_llama_normalizer(definition) {
            return None;
        }
        let mut added: Vec<_> = tokenizer.get_added_tokens_decoder().into_iter().collect();
        added.sort_unstable_by_key(|(id, _)| *id);
        let special = added
            .into_iter()
            .map(|(id, token)| {
                let AddedToken { content, single_word, lstrip, rstrip, normalized, special: _ } =
                    token;
                let plain = !(single_word || lstrip || rstrip || normalized);
                (plain && !content.is_empty()).then_some((content, id))
            })
            .collect::<Option<Vec<_>>>()?;
        let (bare, whole) =
            (tokenizer.encode_fast("a", false).ok()?, tokenizer.encode_fast("a", true).ok()?);
        let (bare, whole) = (bare.get_ids(), whole.get_ids());
        if bare.is_empty() {
            return None;
        }
        let start = whole.windows(bare.len()).position(|window| window == bare)?;
        let words = Self {
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            special,
            before: whole[..start].to_vec(),
            after: whole[start + bare.len()..].to_vec(),
        };
        let agrees = |text: &str| {
            let theirs = tokenizer.encode_fast(text, true).ok();
            theirs.is_some_and(|theirs| {
                words.encode(tokenizer, text, true).is_ok_and(|ids| ids == theirs.get_ids())
            })
        };
        PROBES.into_iter().all(agrees).then_some(words)
    }

    /// The token ids of a text; equal to those of [`Tokenizer::encode`].
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        add_special_tokens: bool,
    ) -> tokenizers::Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 4);
        if add_special_tokens {
            ids.extend_from_slice(&self.before);
        }
        SEEN.with_borrow_mut(|seen| {
            if seen.tokenizer != self.number {
                *seen = Seen { tokenizer: self.number, ids: HashMap::new() };
            }
            let mut start = 0;
            let mut next: Vec<Option<usize>> =
                self.special.iter().map(|(content, _)| text.find(content)).collect();
            while let Some((at, which)) = self.first_special(&next) {
                let (content, id) = &self.special[which];
                seen.section(tokenizer, &text[start..at], &mut ids)?;
                ids.push(*id);
                start = at + content.len();
                for (place, (content, _)) in next.iter_mut().zip(&self.special) {
                    if place.is_some_and(|place| place < start) {
                        *place = text[start..].find(content).map(|at| start + at);
                    }
                }
            }
            seen.section(tokenizer, &text[start..], &mut ids)
        })?;
        if add_special_tokens {
            ids.extend_from_slice(&self.after);
        }
        Ok(ids)
    }

    /// The position and index of the next special token; of several at one position the longest.
    fn first_special(&self, next: &[Option<usize>]) -> Option<(usize, usize)> {
        let found =
            next.iter().enumerate().filter_map(|(which, place)| place.map(|at| (at, which)));
        found.min_by_key(|(at, which)| (*at, std::cmp::Reverse(self.special[*which].0.len())))
    }
}

impl Seen {
    /// Appends the ids of a text without special tokens.
    fn section(
        &mut self,
        tokenizer: &Tokenizer,
        text: &str,
        ids: &mut Vec<u32>,
    ) -> tokenizers::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let mut normalized = String::with_capacity(text.len() * 2);
        normalized.push(BLANK);
        for (index, part) in text.split(' ').enumerate() {
            if index > 0 {
                normalized.push(BLANK);
            }
            normalized.push_str(part);
        }
        let mut start = 0;
        for (at, _) in normalized.match_indices(BLANK).skip(1) {
            // A run of `▁` belongs to the word after it.
            if !normalized[..at].ends_with(BLANK) {
                self.word(tokenizer, &normalized[start..at], ids)?;
                start = at;
            }
        }
        self.word(tokenizer, &normalized[start..], ids)
    }

    fn word(
        &mut self,
        tokenizer: &Tokenizer,
        word: &str,
        ids: &mut Vec<u32>,
    ) -> tokenizers::Result<()> {
        if let Some(known) = self.ids.get(word) {
            ids.extend_from_slice(known);
            return Ok(());
        }
        let first = ids.len();
        ids.extend(tokenizer.get_model().tokenize(word)?.into_iter().map(|token| token.id));
        if self.ids.len() < REMEMBERED {
            self.ids.insert(word.into(), ids[first..].into());
        }
        Ok(())
    }
}

/// Whether the normalizer only puts `▁` in front and replaces spaces by `▁`.
fn has_llama_normalizer(definition: &Json) -> bool {
    let Some([prepend, replace]) =
        definition["normalizer"]["normalizers"].as_array().map(Vec::as_slice)
    else {
        return false;
    };
    prepend["type"] == "Prepend"
        && prepend["prepend"] == "\u{2581}"
        && replace["type"] == "Replace"
        && replace["pattern"]["String"] == " "
        && replace["content"] == "\u{2581}"
}

/// Whether a text may be cut before each run of `▁` without changing its ids: it needs a BPE model
/// without pre-tokenizer, and no token with a `▁` after another character.
pub(super) fn words_are_independent(definition: &Json) -> bool {
    let model = &definition["model"];
    let empty = |value: &Json| value.is_null() || value.as_str() == Some("");
    let Some(vocabulary) = model["vocab"].as_object() else { return false };
    model["type"] == "BPE"
        && definition["pre_tokenizer"].is_null()
        && model["dropout"].is_null()
        && empty(&model["continuing_subword_prefix"])
        && empty(&model["end_of_word_suffix"])
        && model["ignore_merges"] != true
        && vocabulary.contains_key("\u{2581}")
        && vocabulary.keys().all(|token| !token.trim_start_matches(BLANK).contains(BLANK))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn definition() -> Json {
        json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [
                {"id": 0, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
                {"id": 1, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
                {"id": 2, "content": "</s>a", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
            ],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ]},
            "pre_tokenizer": null,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
            },
            "decoder": null,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": false, "ignore_merges": false,
                "vocab": {"<unk>": 0, "</s>": 1, "</s>a": 2, "▁": 3, "a": 4, "b": 5, "▁▁": 6, "▁a": 7, "ab": 8, "▁ab": 9, "ba": 10, "▁▁▁▁": 11},
                "merges": [["▁", "▁"], ["b", "a"], ["▁", "a"], ["a", "b"], ["▁", "ab"], ["▁▁", "▁▁"]],
            },
        })
    }

    fn tokenizer(definition: &Json) -> Tokenizer {
        Tokenizer::from_bytes(definition.to_string().as_bytes()).unwrap()
    }

    proptest! {
        #[test]
        fn ids_are_the_tokenizers_own(text in "(a|b| |▁|é|</s>|</s|<unk>|\n){0,40}", special: bool) {
            let (definition, tokenizer) = (definition(), tokenizer(&definition()));
            let words = Words::of(&tokenizer, &definition).unwrap();
            let theirs = tokenizer.encode(text.as_str(), special).unwrap();
            prop_assert_eq!(words.encode(&tokenizer, &text, special).unwrap(), theirs.get_ids());
        }
    }

    #[test]
    fn other_tokenizers_are_left_alone() {
        let changed = |pointer: &str, value: Json| {
            let mut definition = definition();
            *definition.pointer_mut(pointer).unwrap() = value;
            Words::of(&tokenizer(&definition), &definition).is_none()
        };
        assert!(!changed("/version", json!("1.0")));
        assert!(changed("/normalizer/normalizers/0/prepend", json!("a")));
        assert!(changed("/added_tokens/1/rstrip", json!(true)));
        assert!(changed("/pre_tokenizer", json!({"type": "WhitespaceSplit"})));
        assert!(changed("/model/ignore_merges", json!(true)));
    }

    #[test]
    fn words_are_cut_only_where_no_token_reaches_over() {
        let definition = |vocabulary: Json| json!({"pre_tokenizer": null, "model": {"type": "BPE", "dropout": null, "vocab": vocabulary}});
        assert!(words_are_independent(&definition(json!({"▁": 0, "▁▁": 1, "▁a": 2}))));
        assert!(!words_are_independent(&definition(json!({"▁": 0, "a▁b": 1}))));
        assert!(!words_are_independent(&definition(json!({"a": 0}))));
    }
}
