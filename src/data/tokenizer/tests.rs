use serde_json::json;

use super::folder::TEMPLATE;
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
    std::fs::write(dir.path().join(TEMPLATE), "a\r\n{% if true %}\r\nb\rc{% endif %}\r\n").unwrap();
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
    let qwen = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
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
    assert!(message(dir.path()).contains("eos_token is `<end>`, which is not in the vocabulary"));
    for broken in ["{", "-0", "[]", "null", "\"a\"", "{}", r#"{"added_tokens": [1, null]}"#] {
        std::fs::write(dir.path().join("tokenizer.json"), broken).unwrap();
        assert!(message(dir.path()).contains("not a tokenizer file"), "{broken}");
    }
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    assert!(message(dir.path()).contains("tokenizer.json is missing"));
}
