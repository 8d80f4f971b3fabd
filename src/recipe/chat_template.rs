//! The keys `chat_template` and `chat_template_path`.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::reader::Reader;
use crate::hub::resolve::resolve_chat_template;

/// The values of the two keys.
#[derive(Default)]
pub(super) struct ChatTemplateKey {
    pub text: Option<String>,
    /// The `eos_token` of the tokenizer folder that the template is from.
    pub eos_token: Option<String>,
}

impl ChatTemplateKey {
    /// Reads Jinja text, or the name of a file or tokenizer folder with it, relative to the current
    /// folder or to the recipe's folder, or the hub id of a tokenizer.
    pub fn read(r: &mut Reader) -> Self {
        let from_text = r.optional_text("chat_template");
        let from_path = r.optional_text("chat_template_path");
        let key = if from_text.is_some() { "chat_template" } else { "chat_template_path" };
        let Some(text) = from_text.or(from_path) else { return Self::default() };
        if text.contains(['{', '\n']) {
            return Self { text: Some(text), eos_token: None };
        }
        let beside = r.sources.file().parent().unwrap_or(Path::new("")).join(&text);
        let candidates = [PathBuf::from(&text), beside];
        if let Some(file) = candidates.iter().find(|path| path.is_file()) {
            match std::fs::read_to_string(file) {
                Ok(template) => return Self { text: Some(template), eos_token: None },
                Err(error) => {
                    r.error_on(key, format!("`{key}`: {} cannot be read: {error}", file.display()));
                }
            }
        } else if let Some(folder) = candidates.iter().find(|path| path.is_dir()) {
            return Self::of_tokenizer(r, key, &text, folder);
        } else if is_hub_id(&text) {
            match resolve_chat_template(&text, "main") {
                Ok(folder) => return Self::of_tokenizer(r, key, &text, &folder),
                Err(error) => {
                    let error = error.to_string();
                    let (error, help) = error.split_once("\nhelp: ").unwrap_or((&error, ""));
                    r.error_on(key, format!("`{key}`: {error}"));
                    r.help(help);
                }
            }
        } else {
            r.error_on(key, format!("`{key}` is neither Jinja text nor a file: `{text}`"));
            r.help(
                "write the template itself, the name of its file (tokenizers use \
                 chat_template.jinja), or the folder or hub id of a tokenizer",
            );
        }
        Self::default()
    }
}

impl ChatTemplateKey {
    /// The template in the folder of the tokenizer `name`.
    fn of_tokenizer(r: &mut Reader, key: &'static str, name: &str, folder: &Path) -> Self {
        let Some(found) = of_folder(folder) else {
            r.error_on(key, format!("`{key}`: the tokenizer `{name}` has no chat template"));
            return Self::default();
        };
        r.note(format!(
            "`{key}`: no tokens of `{name}` are added to the vocabulary; the model's tokenizer \
             must have all special tokens of the template"
        ));
        found
    }
}

/// Whether a text has the form of a hub id, `owner/name`, and not that of a template's file.
fn is_hub_id(text: &str) -> bool {
    let is_file =
        [".jinja", ".jinja2", ".j2", ".txt", ".json"].iter().any(|end| text.ends_with(end));
    !is_file && !text.starts_with(['.', '/', '~']) && text.split('/').count() == 2
}

/// The template and EOS token of a tokenizer folder, as in TRL.
fn of_folder(folder: &Path) -> Option<ChatTemplateKey> {
    let config = std::fs::read(folder.join("tokenizer_config.json")).ok();
    let config: Json = config.and_then(|bytes| serde_json::from_slice(&bytes).ok())?;
    let template = &config["chat_template"];
    let named = || {
        let named = template.as_array()?.iter().find(|template| template["name"] == "default")?;
        named["template"].as_str()
    };
    let text = std::fs::read_to_string(folder.join("chat_template.jinja"))
        .ok()
        .or_else(|| template.as_str().or_else(named).map(str::to_owned))?;
    let eos = &config["eos_token"];
    let eos_token = eos.as_str().or_else(|| eos["content"].as_str()).map(str::to_owned);
    Some(ChatTemplateKey { text: Some(text), eos_token })
}
