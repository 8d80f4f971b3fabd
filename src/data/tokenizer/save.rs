//! Writing a tokenizer's files.

use std::{io, path::Path};

use serde_json::Value as Json;

use super::Tokenizer;
use super::folder::{CONFIG, SPECIAL, TEMPLATE};

impl Tokenizer {
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
