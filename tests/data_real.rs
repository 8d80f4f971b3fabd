//! Real rows: the chat text equals that of transformers byte for byte, the token ids equal those of
//! Python's `tokenizers`, and the number of usable rows is as expected.
//! `scripts/golden/template_and_ids.py` makes the golden file. The tests need the assets folder
//! (`FAVONIUS_ASSETS`, else `../shared/assets`). Without it they print that they are skipped.

mod common;

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use arrow_array::{Array, ListArray, cast::AsArray};
use common::asset;
use favonius::{
    data::{Message, Tokenizer, load_preferences, load_sft},
    recipe::{Recipe, Stage},
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// The data folder and the tokenizer of the assets.
fn assets() -> Option<(PathBuf, Tokenizer)> {
    let (data, tokenizer) = (asset("data")?, asset("tokenizers/mistral-7b-v0.1")?);
    Some((data, Tokenizer::load(&tokenizer, None, None).unwrap()))
}

/// The hash that the golden script uses, FNV-1a.
fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
    })
}

fn hashes(tokenizer: &Tokenizer, messages: &[Message], add_generation_prompt: bool) -> String {
    let text = tokenizer.apply_chat_template(messages, add_generation_prompt).unwrap();
    let ids = tokenizer.encode(&text, false).unwrap();
    format!(
        "{:016x}{:016x}",
        fnv1a(text.bytes()),
        fnv1a(ids.into_iter().flat_map(u32::to_le_bytes))
    )
}

/// The first `count` chats of a column.
fn chats(data: &Path, set: &str, split: &str, column: &str, count: usize) -> Vec<Vec<Message>> {
    let folder = data.join(set).join("data");
    let path = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.file_name().unwrap().to_str().unwrap().starts_with(split))
        .unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let mut chats = Vec::new();
    for batch in reader.build().unwrap() {
        let batch = batch.unwrap();
        let lists: &ListArray = batch.column_by_name(column).unwrap().as_list();
        for row in 0..lists.len() {
            let messages = lists.value(row);
            let texts = |name: &str| {
                let texts =
                    messages.as_struct().column_by_name(name).unwrap().as_string::<i32>().clone();
                (0..texts.len()).map(|at| texts.value(at).to_owned()).collect::<Vec<_>>()
            };
            let pairs = texts("role").into_iter().zip(texts("content"));
            chats.push(pairs.map(|(role, content)| Message::new(role, content)).collect());
        }
    }
    chats.truncate(count);
    chats
}

#[test]
fn text_and_ids_equal_those_of_transformers_and_tokenizers() {
    let Some((data, tokenizer)) = assets() else { return };
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("golden/template_and_ids.json")).unwrap();
    let golden =
        |key: &str| -> Vec<String> { serde_json::from_value(golden[key].clone()).unwrap() };
    let ours: Vec<String> = chats(&data, "ultrachat_200k_like", "train_sft", "messages", 300)
        .iter()
        .map(|chat| hashes(&tokenizer, chat, false))
        .collect();
    assert_eq!(ours, golden("chats"));
    let side =
        |column: &str| chats(&data, "ultrafeedback_binarized_like", "train_prefs", column, 200);
    let ours: Vec<String> = side("chosen")
        .iter()
        .zip(side("rejected"))
        .map(|(chosen, rejected)| {
            let prompt = &chosen[..chosen.len() - 1];
            hashes(&tokenizer, chosen, false)
                + &hashes(&tokenizer, prompt, true)
                + &hashes(&tokenizer, &rejected, false)
        })
        .collect();
    assert_eq!(ours, golden("pairs"));
}

fn recipe(data: &Path, stage: Stage, set: &str, splits: &str, more: &str) -> Recipe {
    let text = format!(
        "model_name_or_path: none\noutput_dir: none\nmax_length: 1024\ndataset_splits: {splits}\n\
         dataset_mixer:\n  {}: 1.0\n{more}",
        data.join(set).display(),
    );
    Recipe::parse(&text, Path::new("recipe.yaml"), stage, &[])
        .unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn the_real_pairs_load_and_the_cache_returns_the_same() {
    let Some((data, tokenizer)) = assets() else { return };
    let set = "ultrafeedback_binarized_like";
    let recipe = recipe(&data, Stage::Dpo, set, "[train_prefs, test_prefs]", "");
    let cache = tempfile::tempdir().unwrap();
    let pairs = load_preferences(&recipe, &tokenizer, Some(cache.path()), &()).unwrap();
    assert_eq!((pairs.train_report.read, pairs.test_report.read), (1424, 160));
    assert!(pairs.train_report.bad.is_empty(), "{}", pairs.train_report);
    let longest = pairs
        .train
        .iter()
        .map(|pair| pair.prompt.len() + pair.chosen.len().max(pair.rejected.len()))
        .max();
    assert_eq!(longest, Some(1024));
    assert_eq!(load_preferences(&recipe, &tokenizer, Some(cache.path()), &()).unwrap(), pairs);
    for entry in std::fs::read_dir(cache.path()).unwrap() {
        std::fs::write(entry.unwrap().path(), "damaged").unwrap();
    }
    assert_eq!(load_preferences(&recipe, &tokenizer, Some(cache.path()), &()).unwrap(), pairs);
}

#[test]
fn the_real_chats_load_packed_and_unpacked() {
    let Some((data, tokenizer)) = assets() else { return };
    let load = |more: &str| {
        let recipe =
            recipe(&data, Stage::Sft, "ultrachat_200k_like", "[train_sft, test_sft]", more);
        load_sft(&recipe, &tokenizer, None, &()).unwrap()
    };
    let unpacked = load("");
    assert_eq!((unpacked.train_report.read, unpacked.test_report.read), (1137, 130));
    let packed = load("packing: true");
    assert!(packed.train.len() * 2 < unpacked.train.len());
    assert!(packed.train.iter().all(|row| row.tokens() <= 1024));
    let tokens =
        |rows: &[favonius::data::SftRow]| rows.iter().map(|row| row.tokens()).sum::<usize>();
    assert_eq!(tokens(&packed.train), tokens(&unpacked.train));
    assert_ne!(packed.fingerprint, unpacked.fingerprint);
}
