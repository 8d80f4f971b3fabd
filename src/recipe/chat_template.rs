//! The keys `chat_template` and `chat_template_path`.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::reader::Reader;

/// The values of the two keys.
#[derive(Default)]
pub(super) struct ChatTemplateKey {
    pub text: Option<String>,
    /// The `eos_token` of the tokenizer folder that the template is from.
    pub eos_token: Option<String>,
}

impl ChatTemplateKey {
    /// Reads Jinja text, or the name of a file or tokenizer folder with it, relative to the current
    /// folder or to the recipe's folder.
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
            match of_folder(folder) {
                Some(found) => {
                    r.note(format!(
                        "`{key}`: no tokens of `{text}` are added to the vocabulary; the model's \
                         tokenizer must have all special tokens of the template"
                    ));
                    return found;
                }
                None => {
                    r.error_on(key, format!("`{key}`: the folder `{text}` has no chat template"));
                }
            }
        } else {
            r.error_on(key, format!("`{key}` is neither Jinja text nor a file: `{text}`"));
            r.help(
                "write the template itself or the name of its file (tokenizers use \
                 chat_template.jinja)",
            );
        }
        Self::default()
    }
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
