//! End-to-end tests on small data sets, from files to token ids or a message.

use std::{
    path::{Path, PathBuf},
    sync::Mutex,
};

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::data::{TwoResponses, UnpairedRow, load_triples};
use crate::recipe::Stage;

const TEMPLATE: &str = "{% for m in messages %}{% if m.role == 'assistant' %}A {% generation %}{{ m.content }} {{ eos_token }}{% endgeneration %} {% else %}{{ raise_exception('stop') if m.content == 'raise' }}U {{ m.content }} {% endif %}{% endfor %}{% if add_generation_prompt %}A {% endif %}";

/// A folder with a word-level tokenizer (`U`=0, `A`=1, `</s>`=2, `a`=3, `b`=4, `c`=5) and a data
/// file.
struct World(TempDir);

impl World {
    fn new(name: &str, rows: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let definition = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "added_tokens": [],
            "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
            "model": {
                "type": "WordLevel", "unk_token": "U",
                "vocab": {"U": 0, "A": 1, "</s>": 2, "a": 3, "b": 4, "c": 5},
            },
        });
        let config = json!({"eos_token": "</s>", "chat_template": TEMPLATE});
        std::fs::write(dir.path().join("tokenizer.json"), definition.to_string()).unwrap();
        std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        std::fs::write(dir.path().join(name), rows).unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn recipe(&self, stage: Stage, more: &str) -> Recipe {
        let text = format!(
            "model_name_or_path: none\noutput_dir: none\ndataset_name: {}\n{more}",
            self.path().display()
        );
        Recipe::parse(&text, Path::new("recipe.yaml"), stage, &[]).unwrap_or_else(|e| panic!("{e}"))
    }

    fn tokenizer(&self) -> Tokenizer {
        Tokenizer::load(self.path(), None, None).unwrap()
    }

    fn pairs(&self, more: &str) -> Result<Splits<PreferencePair>, DataError> {
        load_preferences(&self.recipe(Stage::Dpo, more), &self.tokenizer(), None, &())
    }

    fn documents(&self, more: &str) -> Result<Splits<SftRow>, DataError> {
        load_sft(&self.recipe(Stage::Sft, more), &self.tokenizer(), None, &())
    }
}

fn pair(question: &str, chosen: &str, rejected: &str) -> String {
    let side = |answer| json!([{"role": "user", "content": question}, {"role": "assistant", "content": answer}]);
    json!({"chosen": side(chosen), "rejected": side(rejected)}).to_string() + "\n"
}

fn ids(row: &impl TwoResponses) -> [&[u32]; 3] {
    let [first, second] = row.responses();
    [row.prompt(), first, second]
}

fn labelled(rows: &RowList<SftRow>) -> Vec<(Vec<u32>, Vec<u8>)> {
    let flags =
        |document: &SftDocument| document.labels.iter().map(|label| u8::from(*label)).collect();
    rows.to_vec()
        .iter()
        .flat_map(|row| &row.documents)
        .map(|document| (document.ids.clone(), flags(document)))
        .collect()
}

#[test]
fn pairs_come_in_the_order_of_the_rows() {
    let world = World::new("train.jsonl", &(pair("a", "b b", "c") + &pair("b", "c", "a a")));
    let splits = world.pairs("").unwrap();
    let rows = splits.train.to_vec();
    let found: Vec<_> = rows.iter().map(ids).collect();
    assert_eq!(found, [[&[0, 3, 1][..], &[4, 4, 2], &[5, 2]], [&[0, 4, 1], &[5, 2], &[3, 3, 2]]]);
    assert!(splits.test.is_empty());
}

#[test]
fn the_handbooks_first_semantics_add_a_system_turn_and_a_second_eos() {
    let world = World::new("train.jsonl", &pair("a", "b", "c"));
    let splits = world.pairs("preference_semantics: handbook_v1").unwrap();
    // Only Zephyr's `<|assistant|>\n` is removed from a response, so this template's `A` stays.
    assert_eq!(ids(&*splits.train.get(0)), [&[0, 0, 3, 1][..], &[1, 4, 2, 2], &[1, 5, 2, 2]]);
}

#[test]
fn orpos_text_semantics_add_bos_and_eos_where_they_are_not() {
    let world = World::new("train.jsonl", &pair("a", "b", "c"));
    let recipe = world.recipe(Stage::Orpo, "");
    let splits = load_preferences(&recipe, &world.tokenizer(), None, &()).unwrap();
    // This tokenizer has no BOS, and the template already ends with EOS.
    assert_eq!(ids(&*splits.train.get(0)), [&[0, 3, 1][..], &[4, 2], &[5, 2]]);
}

#[test]
fn triples_have_a_gold_response_for_tpo() {
    let load = |rows: &str, more: &str| {
        let world = World::new("train.jsonl", rows);
        load_triples(&world.recipe(Stage::Tpo, more), &world.tokenizer(), None, &())
    };
    let parts = |rows: &Splits<PreferencePair>, row: usize| {
        rows.train.get(row).parts().map(<[u32]>::to_vec)
    };
    let chat = |question: &str, answer: &str| json!([{"role": "user", "content": question}, {"role": "assistant", "content": answer}]);
    let whole = json!({
        "chosen": chat("a", "b b"), "rejected": chat("a", "c"), "reference": chat("a", "a c a"),
    });
    let turn = |role: &str, content: &str| json!([{"role": role, "content": content}]);
    let apart = json!({
        "prompt": turn("user", "a"), "chosen": turn("assistant", "b b"),
        "rejected": turn("assistant", "c"), "reference": turn("assistant", "a c a"),
    });
    let ids = [vec![0, 3, 1], vec![4, 4, 2], vec![5, 2], vec![3, 5, 3, 2]];
    for row in [&whole, &apart] {
        assert_eq!(parts(&load(&format!("{row}\n"), "").unwrap(), 0), ids);
    }
    // Without the NLL, the gold response is not computed.
    let without = load(&format!("{whole}\n"), "tpo_alpha: 0").unwrap();
    let [prompt, chosen, rejected, _] = ids.clone();
    assert_eq!(parts(&without, 0), [prompt, chosen, rejected, vec![]]);
    let cut = load(&format!("{whole}\n"), "max_length: 5").unwrap();
    assert_eq!(parts(&cut, 0), [vec![0, 3, 1], vec![4, 4], vec![5, 2], vec![3, 5]]);
    // Texts end with EOS; the prompt is what the pair begins with.
    let text = json!({"chosen": "a b", "rejected": "a c", "reference": "a a a"});
    let rows = load(&format!("{text}\n"), "").unwrap();
    assert_eq!(parts(&rows, 0), [vec![3], vec![4, 2], vec![5, 2], vec![3, 3, 2]]);

    let message = |row: &serde_json::Value| load(&format!("{row}\n"), "").unwrap_err().to_string();
    let mut other = whole.clone();
    other["reference"] = chat("b", "a");
    let error = message(&other);
    assert!(error.contains("`reference` does not begin with the prompt"), "{error}");
    other["reference"] = json!(null);
    let error = message(&other);
    assert!(error.contains("`reference`"), "{error}");
    let error = message(&json!({"chosen": "a b", "rejected": "a c"}));
    assert!(error.contains("`reference`") && error.contains("a third response"), "{error}");
}

#[test]
fn labelled_completions_and_pairs_give_rows_for_kto() {
    let labelled = |prompt: &str, completion: &str, label: bool| {
        let turn = |role, content| json!([{"role": role, "content": content}]);
        let row = json!({
            "prompt": turn("user", prompt), "completion": turn("assistant", completion), "label": label,
        });
        row.to_string() + "\n"
    };
    let load = |rows: &str| {
        let world = World::new("train.jsonl", rows);
        let recipe = world.recipe(Stage::Kto, "per_device_train_batch_size: 2");
        crate::data::load_unpaired(&recipe, &world.tokenizer(), None, &())
    };
    let labels =
        |rows: &Splits<UnpairedRow>| rows.train.iter().map(|row| row.label).collect::<Vec<_>>();
    let rows = load(&(labelled("a", "b b", true) + &labelled("b", "c", false))).unwrap();
    assert_eq!(labels(&rows), [true, false]);
    // The mismatched completion is that of the other row.
    assert_eq!(ids(&*rows.train.get(0)), [&[0, 3, 1][..], &[4, 4, 2], &[5, 2]]);
    assert_eq!(ids(&*rows.train.get(1)), [&[0, 4, 1][..], &[5, 2], &[4, 4, 2]]);
    let rows = load(&(pair("a", "b b", "c") + &pair("b", "c", "a a"))).unwrap();
    assert_eq!(labels(&rows), [true, true, false, false]);
    assert_eq!(ids(&*rows.train.get(2)), [&[0, 3, 1][..], &[5, 2], &[3, 3, 2]]);

    let broken = labelled("a", "b", true).replace("true", "\"yes\"");
    let error = load(&broken).unwrap_err().to_string();
    assert!(error.contains("`label` is neither true nor false"), "{error}");
    let error = load("{\"prompt\": \"a\", \"completion\": \"b\"}\n").unwrap_err().to_string();
    assert!(error.contains("`label`, and no `chosen` and `rejected`"), "{error}");
}

#[test]
fn bad_rows_are_counted_and_too_many_stop_the_run() {
    let rows = [
        pair("a", "b", "c"),
        pair("a", "b", "b"),
        pair("a", "", "c"),
        "{\"chosen\": null, \"rejected\": []}\n".to_owned(),
        "{\"rejected\": []}\n".to_owned(),
        json!({"chosen": [{"role": "alien", "content": "a"}], "rejected": [{"role": "user", "content": "a"}]}).to_string(),
        "\n".to_owned() + &pair("raise", "b", "c"),
        pair("a a a a a a a a", "b", "c"),
    ]
    .concat();
    let world = World::new("train.jsonl", &rows);
    let splits = world.pairs("max_bad_rows: 0.9\nmax_length: 8").unwrap();
    let report = &splits.train_report;
    assert_eq!(
        (report.read, report.kept, report.no_room, report.bad.values().sum::<usize>()),
        (8, 1, 1, 6)
    );
    let reasons: Vec<String> =
        report.first_bad.iter().map(|at| format!("{} {}", at.row, at.reason)).collect();
    assert_eq!(
        reasons,
        [
            "1 `chosen` and `rejected` are the same",
            "2 `chosen` is empty",
            "3 `chosen` is null or contains null",
            "4 `chosen` is missing",
            "5 a message has the unknown role `alien`",
            "6 the chat template refused the row: stop",
        ]
    );
    let message = world.pairs("max_length: 8").unwrap_err().to_string();
    assert!(
        message
            .starts_with("6 of 8 train rows cannot be used: 75.00 %, and max_bad_rows allows 1 %"),
        "{message}"
    );
    assert!(
        message.contains("train.jsonl, row 5: a message has the unknown role `alien`"),
        "{message}"
    );
}

#[test]
fn missing_columns_splits_and_rows_are_named() {
    let world = World::new("train.jsonl", "{\"question\": \"a\", \"chosen\": \"b\"}\n");
    let message = world.pairs("").unwrap_err().to_string();
    assert!(
        message.contains("no column `rejected`; the columns are `question`, `chosen`"),
        "{message}"
    );
    let message = world.documents("").unwrap_err().to_string();
    assert!(
        message.contains("no column `messages`, no `prompt` and `completion`, and no `text`"),
        "{message}"
    );
    let message = world.documents("dataset_train_split: other").unwrap_err().to_string();
    assert!(message.contains("no split `other`; the splits are `train`"), "{message}");
    let message = World::new("train.jsonl", "").pairs("").unwrap_err().to_string();
    assert!(message.contains("no train rows in"), "{message}");
    let world = World::new("train.jsonl", &pair("a a a a", "b", "c"));
    let message = world.pairs("max_length: 4").unwrap_err().to_string();
    assert!(message.starts_with("none of the 1 train rows that were read is usable"), "{message}");
}

#[test]
fn labels_are_on_all_tokens_the_completion_or_the_assistant() {
    let chat = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]});
    let world = World::new("train.jsonl", &chat.to_string());
    let whole = vec![0, 3, 1, 4, 2];
    assert_eq!(labelled(&world.documents("").unwrap().train), [(whole.clone(), vec![1; 5])]);
    let assistant = world.documents("assistant_only_loss: true").unwrap();
    assert_eq!(labelled(&assistant.train), [(whole.clone(), vec![0, 0, 0, 1, 1])]);
    let message = world.documents("completion_only_loss: true").unwrap_err().to_string();
    assert!(
        message.contains("completion_only_loss needs the columns `prompt` and `completion`"),
        "{message}"
    );

    let text = json!({"prompt": "a", "completion": " b </s>"});
    let world = World::new("train.jsonl", &text.to_string());
    let labels = |more: &str| labelled(&world.documents(more).unwrap().train);
    assert_eq!(labels(""), [(vec![3, 4, 2], vec![0, 1, 1])]);
    assert_eq!(labels("completion_only_loss: false"), [(vec![3, 4, 2], vec![1, 1, 1])]);
}

#[test]
fn rows_without_a_label_are_left_out() {
    let chat = |content: &str| {
        json!({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "b"}]}).to_string() + "\n"
    };
    let world = World::new("train.jsonl", &(chat("a") + &chat("a a a a a")));
    let splits = world.documents("assistant_only_loss: true\nmax_length: 5").unwrap();
    assert_eq!((splits.train_report.no_label, splits.train.len()), (1, 1));
}

#[test]
fn packed_rows_hold_several_documents() {
    let rows: String = (0..4).map(|_| json!({"text": "a b </s>"}).to_string() + "\n").collect();
    let world = World::new("train.jsonl", &rows);
    let packed = world.documents("packing: true\nmax_length: 7").unwrap();
    let lengths: Vec<usize> = packed.train.iter().map(|row| row.documents.len()).collect();
    assert_eq!(lengths, [2, 2]);
    assert_eq!(packed.train_report.kept, 4);
    let wrapped =
        world.documents("packing: true\npacking_strategy: wrapped\nmax_length: 7").unwrap();
    assert_eq!(wrapped.train.iter().map(|row| row.tokens()).collect::<Vec<_>>(), [7, 5]);
}

#[derive(Default)]
struct Heard(Mutex<Vec<(String, u64, u64)>>);

impl Progress for Heard {
    fn update(&self, work: &str, done: u64, total: u64) {
        self.0.lock().unwrap().push((work.to_owned(), done, total));
    }
}

#[test]
fn a_second_run_takes_the_ids_from_the_cache_unless_something_changed() {
    let world = World::new("train.jsonl", &pair("a", "b", "c"));
    let cache: PathBuf = world.path().join("cache");
    let run = |more: &str| {
        let heard = Heard::default();
        let recipe = world.recipe(Stage::Dpo, more);
        let splits = load_preferences(&recipe, &world.tokenizer(), Some(&cache), &heard).unwrap();
        (splits, !heard.0.into_inner().unwrap().is_empty())
    };
    let (first, worked) = run("");
    assert!(worked);
    assert_eq!(run(""), (first.clone(), false));
    assert_eq!(
        run("beta: 0.3\ndataset_num_proc: 2"),
        (first.clone(), false),
        "nothing that changes an id"
    );
    assert!(run("max_length: 4").1);
    for entry in std::fs::read_dir(&cache).unwrap() {
        std::fs::write(entry.unwrap().path(), "damaged").unwrap();
    }
    assert_eq!(run(""), (first.clone(), true));
    std::fs::write(world.path().join("train.jsonl"), pair("a", "b b", "c")).unwrap();
    let (changed, worked) = run("");
    assert!(worked && changed.fingerprint != first.fingerprint);
}

/// Panics when more than `rows` rows are done, as a process that is killed there.
struct KilledAfter(u64);

impl Progress for KilledAfter {
    fn update(&self, _: &str, done: u64, _: u64) {
        assert!(done <= self.0, "killed");
    }
}

#[test]
fn a_preparation_that_was_killed_goes_on() {
    let rows: String = (0..3000)
        .map(|n| match n % 100 {
            7 => pair("a", "b", "b"),
            n => pair(&"a ".repeat(n % 5 + 1), "b", &"c ".repeat(n % 3 + 1)),
        })
        .collect();
    for more in ["max_bad_rows: 0.5", "max_bad_rows: 0.5\nmax_train_samples: 2500"] {
        let world = World::new("train.jsonl", &rows);
        let expected = world.pairs(more).unwrap();
        assert!(expected.train_report.bad_share() > 0.0);
        let cache = world.path().join("cache");
        let recipe = world.recipe(Stage::Dpo, more);
        let prepare = |progress: &(dyn Progress + std::panic::RefUnwindSafe)| {
            let load = || load_preferences(&recipe, &world.tokenizer(), Some(&cache), progress);
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(load))
        };
        assert!(prepare(&KilledAfter(1024)).is_err());
        assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 2, "rows and journal");
        let heard = Heard::default();
        assert_eq!(prepare(&heard).unwrap().unwrap(), expected);
        let first = heard.0.into_inner().unwrap()[0].1;
        assert!(first > 1536, "rows were made again: {first}");
        assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 1, "the stored ids alone");
    }
}

/// Rows of KTO and packed documents go through files too.
#[test]
fn rows_that_were_held_in_files_are_those_held_in_memory() {
    let chats: String = (0..2300).map(|n| pair(&"a ".repeat(n % 9 + 1), "b", "c")).collect();
    let world = World::new("train.jsonl", &chats);
    let recipe = world.recipe(Stage::Kto, "per_device_train_batch_size: 3");
    let cache = world.path().join("cache");
    let kto = |cache| crate::data::load_unpaired(&recipe, &world.tokenizer(), cache, &()).unwrap();
    assert_eq!(kto(Some(&cache)), kto(None));
    let texts: String =
        (0..2300).map(|n| json!({"text": "a ".repeat(n % 9 + 1)}).to_string() + "\n").collect();
    let world = World::new("train.jsonl", &texts);
    for more in ["", "packing: true\nmax_length: 20", "packing: true\npacking_strategy: wrapped"] {
        let recipe = world.recipe(Stage::Sft, more);
        let sft = |cache| load_sft(&recipe, &world.tokenizer(), cache, &()).unwrap();
        assert_eq!(sft(Some(&cache)), sft(None), "{more}");
    }
}

impl World {
    /// The texts of the training documents, written with this chat template.
    fn texts(&self, template: &str) -> Result<Vec<String>, DataError> {
        let tokenizer = Tokenizer::load(self.path(), Some(template), None).unwrap();
        let splits =
            load_sft(&self.recipe(Stage::Sft, "max_bad_rows: 0.5"), &tokenizer, None, &())?;
        let rows = splits.train.to_vec();
        let documents = rows.iter().flat_map(|row| &row.documents);
        Ok(documents.map(|document| tokenizer.decode(&document.ids, false).unwrap()).collect())
    }
}

#[test]
fn all_fields_of_a_message_and_the_tools_reach_the_template() {
    const TEMPLATE: &str = "{% for m in messages %}{{ m.reasoning_content }} {{ m.content }} {{ m.tool_calls[0].name if m.tool_calls }} {% endfor %}{% for tool in tools or [] %}{{ tool.name }} {% endfor %}{{ 'c' if enable_thinking }}";
    let row = |fields: serde_json::Value, more: serde_json::Value| {
        let mut row = json!({"messages": [{"role": "user", "content": "U"}, fields]});
        row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        row.to_string() + "\n"
    };
    let reasoning = json!({"content": "b", "role": "assistant", "reasoning": "a"});
    let call = json!({"role": "assistant", "content": null, "tool_calls": [{"name": "b"}]});
    let plain = json!({"role": "assistant", "content": "c"});
    let tools = json!([{"name": "a"}, {"name": "b"}]);
    let rows = [
        row(reasoning, json!({})),
        row(call, json!({"tools": null, "chat_template_kwargs": null})),
        row(plain.clone(), json!({"tools": tools})),
        row(plain.clone(), json!({"tools": tools.to_string()})),
        row(plain.clone(), json!({"chat_template_kwargs": {"enable_thinking": true}})),
        row(plain, json!({"tools": "a"})),
    ];
    let texts = World::new("train.jsonl", &rows.concat()).texts(TEMPLATE).unwrap();
    assert_eq!(texts, ["U a b", "U b", "U c a b", "U c a b", "U c c"]);
}

#[test]
fn the_json_text_of_a_chat_is_a_chat() {
    let text = |turns: serde_json::Value| json!(turns.to_string());
    let user = json!([{"role": "user", "content": "a"}]);
    let side = |answer| json!([{"from": "human", "value": "a"}, {"from": "gpt", "value": answer}]);
    let answer = |answer| json!([{"role": "assistant", "content": answer}]);
    let whole = json!({"chosen": text(side("b")), "rejected": text(side("c"))});
    let apart = json!({
        "prompt": text(user.clone()), "chosen": text(answer("b")), "rejected": text(answer("c")),
    });
    for row in [whole, apart] {
        let splits = World::new("train.jsonl", &row.to_string()).pairs("").unwrap();
        assert_eq!(ids(&*splits.train.get(0)), [&[0, 3, 1][..], &[4, 2], &[5, 2]]);
    }
    // A list of other things is a text.
    let list = json!({"prompt": "[1]", "chosen": " b </s>", "rejected": " c </s>"});
    let splits = World::new("train.jsonl", &list.to_string()).pairs("").unwrap();
    assert_eq!(ids(&*splits.train.get(0)), [&[0][..], &[4, 2], &[5, 2]]);
}

#[test]
fn a_text_beside_a_chat_is_a_turn() {
    let prompt = json!([{"role": "user", "content": "a"}]);
    let pair = json!({"prompt": prompt, "chosen": "b", "rejected": "c"});
    let splits = World::new("train.jsonl", &pair.to_string()).pairs("").unwrap();
    assert_eq!(ids(&*splits.train.get(0)), [&[0, 3, 1][..], &[4, 2], &[5, 2]]);
    let completion = json!([{"role": "assistant", "content": "b"}]);
    for row in [
        json!({"prompt": prompt, "completion": "b"}),
        json!({"prompt": "a", "completion": completion}),
    ] {
        let splits = World::new("train.jsonl", &row.to_string()).documents("").unwrap();
        let expected = (vec![0, 3, 1, 4, 2], vec![0, 0, 0, 1, 1]);
        assert_eq!(labelled(&splits.train), [expected]);
    }
}

#[test]
fn a_response_without_an_assistant_turn_is_left_out() {
    let turns = |roles: &[&str], last: &str| {
        let turn = |role: &&str| json!({"role": role, "content": "a"});
        let mut turns: Vec<_> = roles.iter().map(turn).collect();
        turns.last_mut().unwrap()["content"] = json!(last);
        json!(turns)
    };
    for roles in [&["user", "assistant", "user"][..], &["user", "system"], &["user", "tool"]] {
        let row = json!({"chosen": turns(roles, "b"), "rejected": turns(roles, "c")});
        let error = World::new("train.jsonl", &row.to_string()).pairs("").unwrap_err().to_string();
        assert!(error.contains("1 × `chosen` does not end in an assistant turn"), "{error}");
    }
    let user = turns(&["user"], "a");
    let row = json!({"prompt": user, "completion": user, "label": true}).to_string();
    let world = World::new("train.jsonl", &row);
    let error = world.documents("").unwrap_err().to_string();
    assert!(error.contains("1 × the chat has no assistant turn"), "{error}");
    let recipe = world.recipe(Stage::Kto, "per_device_train_batch_size: 2");
    let error = crate::data::load_unpaired(&recipe, &world.tokenizer(), None, &()).unwrap_err();
    assert!(error.to_string().contains("1 × `completion` does not end in an assistant turn"));
}

#[test]
fn a_key_that_first_appears_late_is_a_column() {
    let row = |more: serde_json::Value| {
        let mut row = json!({"chosen": " a b </s>", "rejected": " a c </s>"});
        row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        row.to_string() + "\n"
    };
    let mut rows = row(json!({"score": "@"})).replace("\"@\"", "NaN").repeat(100);
    rows += &row(json!({"prompt": "b"})).repeat(100);
    let world = World::new("train.jsonl", &rows);
    let splits = world.pairs("max_bad_rows: 0.5").unwrap();
    assert_eq!(splits.train_report.kept, 100);
    assert!(splits.train_report.bad.contains_key(&BadRow::MissingField("prompt".to_owned())));
    assert_eq!(ids(&*splits.train.get(0)), [&[4][..], &[3, 4, 2], &[3, 5, 2]]);
}
