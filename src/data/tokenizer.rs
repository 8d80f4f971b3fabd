//! A Hugging Face tokenizer folder: tokenizer.json, special tokens, chat template.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Once,
};

use serde_json::Value as Json;
use tokenizers::{
    AddedToken, Encoding, ModelWrapper, SplitDelimiterBehavior,
    pre_tokenizers::split::{Split, SplitPattern},
};

use super::Message;
use super::added_tokens::{AddedTokens, set_flags};
use super::assistant_spans::Rendered;
use super::template::{ChatTemplate, TemplateError};
use super::template_values::TemplateValues;
use super::words::{Words, words_are_independent};
use crate::files::caught::caught;
use crate::files::hash::PartsHasher;

const CONFIG: &str = "tokenizer_config.json";
const SPECIAL: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";
const TEMPLATE: &str = "chat_template.jinja";
/// The tries of one search of a regular expression: some tenths of a second of work. A search of a
/// real tokenizer makes at most a few for each character of a word or of a run of blanks.
/// Oniguruma's own limit is the same number, but for each place at which a search tries to match.
const MOST_TRIES: std::ffi::c_ulong = 10_000_000;
/// The files of a tokenizer, as transformers names them.
const FILES: [&str; 9] = [
    "tokenizer.json",
    CONFIG,
    SPECIAL,
    "tokenizer.model",
    ADDED,
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    TEMPLATE,
];

/// A tokenizer that cannot be loaded, or a text that it cannot encode.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("{}: tokenizer.json is missing{}", dir.display(), slow_help(*.slow))]
    Missing { dir: PathBuf, slow: bool },
    #[error("{}: cannot be read: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: not a tokenizer file: {message}\nhelp: fetch the tokenizer again", path.display())]
    Broken { path: PathBuf, message: String },
    #[error(
        "{}: {name} is `{token}`, which is not in the vocabulary\nhelp: set `eos_token` in the \
         recipe to a token of the vocabulary, or fetch the tokenizer again",
        path.display()
    )]
    NotInVocabulary { path: PathBuf, name: String, token: String },
    #[error("the tokenizer in {} has no eos_token\nhelp: set `eos_token` in the \
             recipe", .0.display())]
    NoEos(PathBuf),
    #[error("{}: the tokenizer failed: {}", path.display(), reason_of(message))]
    Failed { path: PathBuf, message: String },
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// The reason of a failure in words, with a way on.
fn reason_of(message: &str) -> String {
    match message.contains("retry-limit") {
        true => format!(
            "{message}\nhelp: a regular expression in it tries too many ways to match a text; use \
             a tokenizer with a simpler one"
        ),
        false => format!("{message}\nhelp: fetch the tokenizer again, or use another one"),
    }
}

fn slow_help(slow: bool) -> &'static str {
    if slow {
        "\nhelp: convert the slow tokenizer: AutoTokenizer.from_pretrained(…).save_pretrained(…) \
         in transformers writes a tokenizer.json"
    } else {
        "\nhelp: tokenizer_name_or_path must name a folder or hub id with a tokenizer.json"
    }
}

/// Turns text and chats into token ids. tokenizer.json determines the ids, with the tokens that
/// transformers registers on loading (see [`super::added_tokens`]); the class in
/// tokenizer_config.json is ignored.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    words: Option<Words>,
    dir: PathBuf,
    special: BTreeMap<String, String>,
    template: Option<ChatTemplate>,
    template_is_ours: bool,
    class_means_other_ids: bool,
    eos_is_ours: bool,
    fingerprint: [u8; 32],
}

impl Tokenizer {
    /// Loads the tokenizer in `dir`. `chat_template` and `eos_override` (the text of a token)
    /// replace the folder's own.
    pub fn load(
        dir: &Path,
        chat_template: Option<&str>,
        eos_override: Option<&str>,
    ) -> Result<Self, TokenizerError> {
        let path = dir.join("tokenizer.json");
        if !path.is_file() {
            let slow =
                ["tokenizer.model", "vocab.json"].iter().any(|name| dir.join(name).is_file());
            return Err(TokenizerError::Missing { dir: dir.to_owned(), slow });
        }
        let bytes = std::fs::read(&path)
            .map_err(|source| TokenizerError::Io { path: path.clone(), source })?;
        let broken = |message: String| TokenizerError::Broken { path: path.clone(), message };
        let mut definition: Json =
            serde_json::from_slice(&bytes).map_err(|error| broken(error.to_string()))?;
        let config = read_json(&dir.join(CONFIG))?;
        let bytes = match set_flags(&mut definition, &config) {
            true => definition.to_string().into_bytes(),
            false => bytes,
        };
        limit_backtracking();
        let read = caught(|| tokenizers::Tokenizer::from_bytes(&bytes)).map_err(broken)?;
        let mut inner = read.map_err(|error| broken(error.to_string()))?;
        // Sequences are truncated by the data rules, and never padded.
        inner.with_truncation(None).map_err(|error| broken(error.to_string()))?.with_padding(None);
        let map = read_json(&dir.join(SPECIAL))?;
        let mut special = special_tokens(&config, &map);
        let unregistered = AddedTokens { config: &config, map: &map, special: &special }
            .missing_in(&inner, &read_json(&dir.join(ADDED))?);
        caught(|| inner.add_tokens(&unregistered)).map_err(broken)?;
        switch_dropout_off(&mut inner, &path);
        let words = caught(|| Words::of(&inner, &definition)).map_err(broken)?;
        if words_are_independent(&definition) {
            let before_blanks = Split::new(
                SplitPattern::Regex("\u{2581}+".to_owned()),
                SplitDelimiterBehavior::MergedWithNext,
                false,
            )
            .map_err(|error| broken(error.to_string()))?;
            inner.with_pre_tokenizer(Some(before_blanks));
        }
        if let Some(eos) = eos_override {
            special.insert("eos_token".to_owned(), eos.to_owned());
        }
        for name in ["eos_token", "bos_token"] {
            if let Some(token) =
                special.get(name).filter(|token| inner.token_to_id(token).is_none())
            {
                let (path, name) = match eos_override {
                    Some(_) if name == "eos_token" => (dir, "the recipe's eos_token"),
                    _ => (&*dir.join(CONFIG), name),
                };
                let (path, name, token) = (path.to_owned(), name.to_owned(), token.clone());
                return Err(TokenizerError::NotInVocabulary { path, name, token });
            }
        }
        let own_template = own_template(dir, &config)?;
        // As in Python, which reads text files so, and in Jinja, each line ends in \n.
        let source = chat_template.map(str::to_owned).or(own_template);
        let source = source.map(|text| text.replace("\r\n", "\n").replace('\r', "\n"));
        let fingerprint = fingerprint(&bytes, &unregistered, &special, source.as_deref());
        let template =
            source.map(|source| ChatTemplate::new(&source, special.clone())).transpose()?;
        Ok(Self {
            inner,
            words,
            dir: dir.to_owned(),
            special,
            template,
            template_is_ours: chat_template.is_some(),
            class_means_other_ids: class_means_other_ids(dir, &config)?,
            eos_is_ours: eos_override.is_some(),
            fingerprint,
        })
    }

    /// The token ids of a text. `add_special_tokens` runs the post-processor of tokenizer.json,
    /// which may add BOS.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        self.tried(|| match &self.words {
            Some(words) => words.encode(&self.inner, text, add_special_tokens),
            None => self
                .inner
                .encode_fast(text, add_special_tokens)
                .map(|encoding| encoding.get_ids().to_vec()),
        })
    }

    /// Runs a part of the tokenizer. If it panics, as on a damaged table, that is an error too.
    fn tried<T>(&self, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, TokenizerError> {
        let path = || self.dir.join("tokenizer.json");
        let failed = |message: String| TokenizerError::Failed { path: path(), message };
        caught(work).map_err(failed)?.map_err(|error| failed(error.to_string()))
    }

    /// The tokens of a text with their positions in characters.
    pub(super) fn encode_with_places(&self, text: &str) -> Result<Encoding, TokenizerError> {
        self.tried(|| self.inner.encode_char_offsets(text, false))
    }

    /// The text of token ids.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        self.tried(|| self.inner.decode(ids, skip_special))
    }

    /// The number of tokens, including added ones. A model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of the end-of-sequence token.
    pub fn eos_id(&self) -> Option<u32> {
        self.special_id("eos_token")
    }

    /// The id of the beginning-of-sequence token.
    pub fn bos_id(&self) -> Option<u32> {
        self.special_id("bos_token")
    }

    /// The id of the padding token; as in TRL, EOS if the tokenizer has none.
    pub fn pad_id(&self) -> Option<u32> {
        self.special_id("pad_token").or_else(|| self.eos_id())
    }

    /// The text of the end-of-sequence token.
    pub(super) fn eos_token(&self) -> Result<&str, TokenizerError> {
        self.special
            .get("eos_token")
            .map(String::as_str)
            .ok_or_else(|| TokenizerError::NoEos(self.dir.clone()))
    }

    fn special_id(&self, name: &str) -> Option<u32> {
        self.special.get(name).and_then(|token| self.inner.token_to_id(token))
    }

    /// The text of a chat, byte for byte as in transformers.
    pub fn apply_chat_template(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        self.render(messages, add_generation_prompt).map(|rendered| rendered.text)
    }

    /// The text of a chat, with the spans of its `{% generation %}` blocks.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Rendered, TemplateError> {
        self.render_with(messages, add_generation_prompt, &TemplateValues::default())
    }

    /// As [`Self::render`], with the values that a row gives to the template.
    pub fn render_with(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        values: &TemplateValues,
    ) -> Result<Rendered, TemplateError> {
        self.template()?.render(messages, add_generation_prompt, values)
    }

    /// The text of a chat with the spans of the assistant's text. They are the `{% generation %}`
    /// blocks of the template, or, if it has none, the answers in the form of its family.
    pub fn render_answers(
        &self,
        messages: &[Message],
        values: &TemplateValues,
    ) -> Result<Rendered, TemplateError> {
        self.template()?.render_answers(messages, values)
    }

    pub(super) fn template(&self) -> Result<&ChatTemplate, TemplateError> {
        self.template.as_ref().ok_or_else(|| TemplateError::Missing(self.dir.display().to_string()))
    }

    /// The text of the chat template, if the tokenizer has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.template.as_ref().map(ChatTemplate::source)
    }

    /// A hash of all that determines the ids of a text or chat.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// The paths of the tokenizer's files.
    pub fn files(&self) -> Vec<PathBuf> {
        FILES.iter().map(|name| self.dir.join(name)).filter(|path| path.is_file()).collect()
    }

    /// Writes the tokenizer's files into `out`. They are copied, with these changes: a chat
    /// template or EOS token of the recipe is written into tokenizer_config.json (and
    /// chat_template.jinja, which transformers would prefer, is left out). As in TRL, a tokenizer
    /// without PAD gets EOS as PAD. A class for which transformers would give other ids than
    /// tokenizer.json is replaced by one that reads tokenizer.json.
    pub fn save(&self, out: &Path) -> io::Result<()> {
        std::fs::create_dir_all(out)?;
        for path in self.files() {
            let Some(name) = path.file_name() else { continue };
            if name == TEMPLATE && self.template_is_ours {
                continue;
            }
            // Write a new file instead of copying, so that a read-only original gives a writable
            // file.
            std::fs::write(out.join(name), std::fs::read(&path)?)?;
        }
        let stale = out.join(TEMPLATE);
        if self.template_is_ours && stale.is_file() {
            std::fs::remove_file(stale)?;
        }
        let mut changes = Vec::new();
        if let (true, Some(template)) = (self.template_is_ours, self.chat_template()) {
            changes.push((CONFIG, "chat_template", template));
        }
        let files = match out.join(SPECIAL).is_file() {
            true => &[CONFIG, SPECIAL][..],
            false => &[CONFIG],
        };
        let lacks_pad = !self.special.contains_key("pad_token");
        for (key, is_changed) in [("eos_token", self.eos_is_ours), ("pad_token", lacks_pad)] {
            if let Some(eos) = self.special.get("eos_token").filter(|_| is_changed) {
                changes.extend(files.iter().map(|file| (*file, key, eos.as_str())));
            }
        }
        if !out.join(CONFIG).is_file() || self.class_means_other_ids {
            changes.push((CONFIG, "tokenizer_class", "PreTrainedTokenizerFast"));
        }
        changes.into_iter().try_for_each(|(file, key, value)| set_key(&out.join(file), key, value))
    }
}

/// Limits the tries of one search of a regular expression. Without it, a pattern whose tries grow
/// with a power of the text's length would run for hours.
fn limit_backtracking() {
    static LIMITED: Once = Once::new();
    // SAFETY: the function only sets a number that later searches read, before the first search.
    LIMITED.call_once(|| {
        unsafe { onig_sys::onig_set_retry_limit_in_search(MOST_TRIES) };
    });
}

/// Switches off BPE dropout, which would make the ids random.
fn switch_dropout_off(tokenizer: &mut tokenizers::Tokenizer, path: &Path) {
    let ModelWrapper::BPE(bpe) = tokenizer.get_model() else { return };
    if bpe.dropout.is_none_or(|dropout| dropout == 0.0) {
        return;
    }
    let mut bpe = bpe.clone();
    bpe.dropout = None;
    tokenizer.with_model(bpe);
    tracing::warn!(
        "{}: `dropout` of the model makes token ids random; it is switched off",
        path.display()
    );
}

/// Whether transformers 5 gives other ids than tokenizer.json: for Llama tokenizers it only reads
/// the vocabulary, and uses the pre-tokenizer and normalizer of the class.
fn class_means_other_ids(dir: &Path, config: &Json) -> Result<bool, TokenizerError> {
    const OWN_RULES: [&str; 4] =
        ["LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer", "GPT2TokenizerFast"];
    let class = config["tokenizer_class"].as_str();
    Ok(class.is_some_and(|class| OWN_RULES.contains(&class))
        && read_json(&dir.join("config.json"))?["model_type"] == "llama")
}

/// Sets a key of a JSON file, keeping the order of the other keys; creates the file if it is
/// missing.
fn set_key(path: &Path, key: &str, value: &str) -> io::Result<()> {
    let mut object: serde_json::Map<String, Json> = match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => serde_json::Map::new(),
        Err(error) => return Err(error),
    };
    object.insert(key.to_owned(), Json::from(value));
    let mut text = serde_json::to_string_pretty(&object)?;
    text.push('\n');
    std::fs::write(path, text)
}

/// Reads a JSON file; `null` if it is missing.
fn read_json(path: &Path) -> Result<Json, TokenizerError> {
    let object = serde_json::from_slice::<serde_json::Map<String, Json>>;
    match std::fs::read(path) {
        Ok(bytes) => object(&bytes).map(Json::from).map_err(|error| TokenizerError::Broken {
            path: path.to_owned(),
            message: error.to_string(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Json::Null),
        Err(source) => Err(TokenizerError::Io { path: path.to_owned(), source }),
    }
}

/// Special tokens such as `eos_token`, each a text or an object with a `content`. As in
/// transformers, special_tokens_map.json wins over tokenizer_config.json, but is ignored if the
/// latter has `added_tokens_decoder`.
fn special_tokens(config: &Json, map: &Json) -> BTreeMap<String, String> {
    let mut tokens = BTreeMap::new();
    let map = map.as_object().filter(|_| config["added_tokens_decoder"].is_null());
    for object in [config.as_object(), map].into_iter().flatten() {
        for (key, value) in object.iter().filter(|(key, _)| key.ends_with("_token")) {
            if let Some(token) = value.as_str().or_else(|| value["content"].as_str()) {
                tokens.insert(key.clone(), token.to_owned());
            }
        }
    }
    tokens
}

/// chat_template.jinja, else `chat_template` of tokenizer_config.json; of several named templates
/// the `default`.
fn own_template(dir: &Path, config: &Json) -> Result<Option<String>, TokenizerError> {
    let path = dir.join(TEMPLATE);
    if path.is_file() {
        return std::fs::read_to_string(&path)
            .map(Some)
            .map_err(|source| TokenizerError::Io { path, source });
    }
    let template = &config["chat_template"];
    let named = template.as_array().and_then(|templates| {
        templates
            .iter()
            .find(|template| template["name"] == "default")
            .and_then(|template| template["template"].as_str())
    });
    Ok(template.as_str().or(named).map(str::to_owned))
}

fn fingerprint(
    definition: &[u8],
    added: &[AddedToken],
    special: &BTreeMap<String, String>,
    template: Option<&str>,
) -> [u8; 32] {
    let mut hasher = PartsHasher::default();
    hasher.part(definition);
    for AddedToken { content, single_word, lstrip, rstrip, normalized, special } in added {
        hasher.part(content.as_bytes());
        let flags = [single_word, lstrip, rstrip, normalized, special];
        hasher.part(&flags.map(|flag| u8::from(*flag)));
    }
    for (name, token) in special {
        hasher.part(name.as_bytes());
        hasher.part(token.as_bytes());
    }
    hasher.part(template.unwrap_or_default().as_bytes());
    *hasher.finish().as_bytes()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A word-level tokenizer with the vocabulary `a b </s> <s>`.
    fn folder(config: Json) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let definition = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "</s>": 2, "<s>": 3}, "unk_token": "a"},
        });
        std::fs::write(dir.path().join("tokenizer.json"), definition.to_string()).unwrap();
        std::fs::write(dir.path().join(CONFIG), config.to_string()).unwrap();
        dir
    }

    #[test]
    fn the_recipe_goes_before_the_folder() {
        let dir = folder(json!({"eos_token": {"content": "</s>"}, "chat_template": "own"}));
        let own = Tokenizer::load(dir.path(), None, None).unwrap();
        assert_eq!((own.eos_id(), own.bos_id(), own.vocab_size()), (Some(2), None, 4));
        assert_eq!(own.apply_chat_template(&[], false).unwrap(), "own");
        let ours = Tokenizer::load(dir.path(), Some("{{ eos_token }}"), Some("b")).unwrap();
        assert_eq!(ours.eos_id(), Some(1));
        assert_eq!(ours.apply_chat_template(&[], false).unwrap(), "b");
        assert_ne!(own.fingerprint(), ours.fingerprint());
    }

    #[test]
    fn lines_of_a_template_end_as_in_python() {
        let dir = folder(json!({"eos_token": "</s>"}));
        std::fs::write(dir.path().join(TEMPLATE), "a\r\n{% if true %}\r\nb\rc{% endif %}\r\n")
            .unwrap();
        let own = Tokenizer::load(dir.path(), None, None).unwrap();
        assert_eq!(own.apply_chat_template(&[], false).unwrap(), "a\nb\nc");
        let ours = Tokenizer::load(dir.path(), Some("a\r\nb"), None).unwrap();
        assert_eq!(ours.apply_chat_template(&[], false).unwrap(), "a\nb");
        let in_config = folder(json!({"eos_token": "</s>", "chat_template": "a\r\nb"}));
        let in_config = Tokenizer::load(in_config.path(), None, None).unwrap();
        assert_eq!(in_config.apply_chat_template(&[], false).unwrap(), "a\nb");
    }

    #[test]
    fn dropout_is_switched_off() {
        let dir = tempfile::tempdir().unwrap();
        let definition = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "added_tokens": [], "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": {"type": "BPE", "vocab": {"a": 0, "aa": 1, "aaaa": 2}, "dropout": 0.5,
                "merges": [["a", "a"], ["aa", "aa"]], "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "byte_fallback": false},
        });
        std::fs::write(dir.path().join("tokenizer.json"), definition.to_string()).unwrap();
        let tokenizer = Tokenizer::load(dir.path(), None, None).unwrap();
        assert_eq!(tokenizer.encode(&"a".repeat(400), false).unwrap(), [2; 100]);
    }

    #[test]
    fn saving_puts_the_recipes_template_where_transformers_reads_it() {
        let with = |eos: &str, template: &str| json!({"eos_token": eos, "pad_token": "</s>", "chat_template": template, "legacy": true});
        let dir = folder(with("</s>", "own"));
        std::fs::write(dir.path().join(TEMPLATE), "own jinja").unwrap();
        let out = tempfile::tempdir().unwrap();
        Tokenizer::load(dir.path(), None, None).unwrap().save(out.path()).unwrap();
        for name in ["tokenizer.json", CONFIG, TEMPLATE] {
            let read = |dir: &Path| std::fs::read(dir.join(name)).unwrap();
            assert_eq!(read(dir.path()), read(out.path()));
        }
        Tokenizer::load(dir.path(), Some("new"), Some("b")).unwrap().save(out.path()).unwrap();
        assert!(!out.path().join(TEMPLATE).exists());
        let config: Json =
            serde_json::from_slice(&std::fs::read(out.path().join(CONFIG)).unwrap()).unwrap();
        assert_eq!(config, with("b", "new"));
        assert!(!out.path().join(SPECIAL).exists());
        let again = Tokenizer::load(out.path(), None, None).unwrap();
        assert_eq!((again.chat_template(), again.eos_id()), (Some("new"), Some(1)));
    }

    #[test]
    fn a_class_with_rules_of_its_own_is_not_saved_beside_a_llama() {
        let class = |model_type: &str| {
            let dir = folder(
                json!({"eos_token": "</s>", "pad_token": "</s>", "tokenizer_class": "GPT2Tokenizer"}),
            );
            let config = json!({"model_type": model_type}).to_string();
            std::fs::write(dir.path().join("config.json"), config).unwrap();
            let out = tempfile::tempdir().unwrap();
            Tokenizer::load(dir.path(), None, None).unwrap().save(out.path()).unwrap();
            read_json(&out.path().join(CONFIG)).unwrap()["tokenizer_class"].clone()
        };
        assert_eq!(class("llama"), "PreTrainedTokenizerFast");
        assert_eq!(class("mistral"), "GPT2Tokenizer");
    }

    #[test]
    fn a_map_of_special_tokens_counts_as_in_transformers() {
        let pad = |more: Json| {
            let mut config = json!({"eos_token": "</s>", "pad_token": "</s>"});
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            special_tokens(&config, &json!({"pad_token": {"content": "a"}}))["pad_token"].clone()
        };
        assert_eq!(pad(json!({})), "a");
        assert_eq!(pad(json!({"added_tokens_decoder": {}})), "</s>");
    }

    #[test]
    fn a_tokenizer_without_pad_is_saved_with_its_eos_for_it() {
        let dir = folder(json!({"eos_token": "</s>"}));
        std::fs::write(dir.path().join(SPECIAL), r#"{"eos_token": "</s>"}"#).unwrap();
        let out = tempfile::tempdir().unwrap();
        Tokenizer::load(dir.path(), None, None).unwrap().save(out.path()).unwrap();
        for name in [CONFIG, SPECIAL] {
            let saved = read_json(&out.path().join(name)).unwrap();
            assert_eq!(saved, json!({"eos_token": "</s>", "pad_token": "</s>"}));
        }
        assert_eq!(Tokenizer::load(out.path(), None, None).unwrap().pad_id(), Some(2));
    }

    /// Files of a read-only folder can be read, and the saved copies are writable.
    #[cfg(unix)]
    #[test]
    fn saved_files_are_writable_whatever_the_original_allows() {
        use std::os::unix::fs::PermissionsExt;
        let dir = folder(json!({"eos_token": "</s>", "pad_token": "</s>"}));
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode();
        for file in [CONFIG, "tokenizer.json"].map(|name| dir.path().join(name)) {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o444)).unwrap();
        }
        let out = tempfile::tempdir().unwrap();
        Tokenizer::load(dir.path(), Some("new"), None).unwrap().save(out.path()).unwrap();
        for file in [CONFIG, "tokenizer.json"].map(|name| out.path().join(name)) {
            assert_eq!(mode(&file) & 0o200, 0o200, "{}", file.display());
        }
    }

    /// A pattern of cubic time is refused. The patterns of GPT-2 and Qwen match long runs.
    #[test]
    fn regular_expressions_are_limited() {
        let encode = |pattern: &str, text: &str| {
            let dir = folder(json!({"eos_token": "</s>"}));
            let path = dir.path().join("tokenizer.json");
            let mut definition = read_json(&path).unwrap();
            definition["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": pattern},
                "behavior": "Isolated", "invert": false});
            std::fs::write(&path, definition.to_string()).unwrap();
            Tokenizer::load(dir.path(), None, None).unwrap().encode(text, false)
        };
        let text = format!("{} x !", "ab".repeat(400));
        let cubic = encode("(a|b)*(a|b)*(a|b)*!", &text).unwrap_err().to_string();
        assert!(cubic.contains("tries too many ways to match a text"), "{cubic}");
        let gpt2 = r"'s|'t| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
        let qwen =
            r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        for (pattern, run) in
            [gpt2, qwen].into_iter().flat_map(|p| [" ", "\n", "a", "!"].map(|r| (p, r)))
        {
            assert_eq!(encode(pattern, &run.repeat(100_000)).unwrap().len(), 1, "{run:?}");
        }
    }

    #[test]
    fn broken_folders_say_what_is_wrong() {
        let dir = folder(json!({"eos_token": "<end>"}));
        let message = |dir: &Path| Tokenizer::load(dir, None, None).unwrap_err().to_string();
        assert!(
            message(dir.path()).contains("eos_token is `<end>`, which is not in the vocabulary")
        );
        std::fs::write(dir.path().join("tokenizer.json"), "{").unwrap();
        assert!(message(dir.path()).contains("not a tokenizer file"));
        std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
        assert!(message(dir.path()).contains("tokenizer.json is missing"));
    }
}
