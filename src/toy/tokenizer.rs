//! A byte-level BPE tokenizer, trained on the corpus.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use serde_json::json;
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, NormalizerWrapper, PostProcessorWrapper, TokenizerBuilder};

use super::corpus::{Chat, Corpus};
use super::error::ToyError;

/// The number of tokens, including the 256 bytes and the three special tokens.
pub const VOCAB_SIZE: usize = 768;
/// The largest number of tokens in a sequence, for model and tokenizer.
pub const MAX_LENGTH: usize = 256;
/// The tokens with the ids 0, 1 and 2.
const SPECIAL_TOKENS: [&str; 3] = ["<unk>", "<s>", "</s>"];
pub const BOS_ID: u32 = 1;
pub const EOS_ID: u32 = 2;

/// Zephyr's chat template, with `generation` marks around the assistant's text, so that SFT can
/// compute its loss on that text only (`assistant_only_loss`).
const CHAT_TEMPLATE: &str = "{% for message in messages %}\n{% if message['role'] == 'user' %}\n\
{{ '<|user|>\\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n\
{{ '<|system|>\\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n\
{{ '<|assistant|>\\n' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}\
{{ '\\n' }}{% endif %}\n\
{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}";

/// Trains the tokenizer on the training rows and writes tokenizer.json, tokenizer_config.json and
/// special_tokens_map.json to `folder`.
///
/// The same rows give the same files: the trainer sums counts and breaks ties by token id, so that
/// the order of its hash maps does not matter.
///
/// # Errors
/// The files cannot be written.
pub fn write(folder: &Path, corpus: &Corpus) -> Result<(), ToyError> {
    let tokenizer = train(corpus).map_err(ToyError::Tokenizer)?;
    write_file(folder, "tokenizer.json", &tokenizer)?;
    write_file(folder, "tokenizer_config.json", &pretty(&config()))?;
    write_file(folder, "special_tokens_map.json", &pretty(&special_tokens_map()))
}

fn train(corpus: &Corpus) -> tokenizers::Result<String> {
    let alphabet: HashSet<char> = ByteLevel::alphabet().into_iter().collect();
    let special = SPECIAL_TOKENS.map(|token| AddedToken::from(token, true)).to_vec();
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(VOCAB_SIZE)
        .initial_alphabet(alphabet)
        .special_tokens(special)
        .show_progress(false)
        .build();
    let byte_level = ByteLevel::new(false, true, true);
    let mut tokenizer = TokenizerBuilder::<
        BPE,
        NormalizerWrapper,
        ByteLevel,
        PostProcessorWrapper,
        ByteLevelDecoder,
    >::new()
    .with_model(BPE::default())
    .with_pre_tokenizer(Some(byte_level))
    .with_decoder(Some(byte_level))
    .build()?;
    tokenizer.train(&mut trainer, training_texts(corpus).into_iter())?;
    tokenizer.to_string(true)
}

/// The texts between special tokens in the training rows, as the chat template renders them.
fn training_texts(corpus: &Corpus) -> Vec<String> {
    let sides = corpus.train_pairs.iter().flat_map(|pair| [&pair.chosen, &pair.rejected]);
    let chats: Vec<&Chat> = corpus.train_chats.iter().chain(sides).collect();
    let messages = chats.into_iter().flatten();
    messages.map(|message| format!("<|{}|>\n{}", message.role, message.content)).collect()
}

fn config() -> serde_json::Value {
    let special = |content: &str| {
        json!({
            "content": content, "lstrip": false, "normalized": false, "rstrip": false,
            "single_word": false, "special": true
        })
    };
    json!({
        "added_tokens_decoder": {
            "0": special(SPECIAL_TOKENS[0]),
            "1": special(SPECIAL_TOKENS[1]),
            "2": special(SPECIAL_TOKENS[2])
        },
        "bos_token": SPECIAL_TOKENS[1],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": false,
        "eos_token": SPECIAL_TOKENS[2],
        "model_max_length": MAX_LENGTH,
        "pad_token": SPECIAL_TOKENS[2],
        "padding_side": "left",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": SPECIAL_TOKENS[0]
    })
}

fn special_tokens_map() -> serde_json::Value {
    json!({
        "bos_token": SPECIAL_TOKENS[1],
        "eos_token": SPECIAL_TOKENS[2],
        "pad_token": SPECIAL_TOKENS[2],
        "unk_token": SPECIAL_TOKENS[0]
    })
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

fn write_file(folder: &Path, name: &str, text: &str) -> Result<(), ToyError> {
    let path = folder.join(name);
    fs::write(&path, text).map_err(ToyError::write(&path))
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use tokenizers::Tokenizer;

    use super::*;
    use crate::toy::corpus;

    #[test]
    fn training_twice_gives_the_same_file() {
        let corpus = corpus::generate(5);
        let first = train(&corpus).unwrap();
        assert_eq!(first, train(&corpus).unwrap());
        let tokenizer = Tokenizer::from_str(&first).unwrap();
        assert_eq!(tokenizer.get_vocab_size(true), VOCAB_SIZE);
        assert_eq!(tokenizer.token_to_id("<s>"), Some(BOS_ID));
        assert_eq!(tokenizer.token_to_id("</s>"), Some(EOS_ID));
    }

    #[test]
    fn any_text_survives_encoding_and_rows_are_short() {
        let corpus = corpus::generate(5);
        let tokenizer = Tokenizer::from_str(&train(&corpus).unwrap()).unwrap();
        let text = "Grüße, naïve 日本 🙂 \u{0}\n";
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(ids.get_ids(), true).unwrap(), text);
        for text in training_texts(&corpus) {
            assert!(tokenizer.encode(text, false).unwrap().len() < MAX_LENGTH / 3);
        }
    }
}
