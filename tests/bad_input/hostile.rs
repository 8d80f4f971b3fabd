//! Files of untrusted models and data sets that ask for endless work or memory, lie about lengths,
//! or make libraries panic; and folders of other programs.

use std::time::{Duration, Instant};

use serde_json::json;

use super::*;

const TOKENIZER: &str = "base/tokenizer.json";
const CONFIG: &str = "base/tokenizer_config.json";
const DATA: &str = "chats/data/train_sft-00000-of-00001.parquet";

fn template(at: &Path, text: &str) {
    edit(at, CONFIG, |json| json["chat_template"] = json!(text));
}

#[test]
fn a_template_cannot_end_the_program() {
    let started = Instant::now();
    check(
        "hostile-template",
        FAILED,
        &[
            case(
                "tag",
                "plan",
                |at| template(at, "{%}"),
                "the chat template is broken at line 1
                {%}
                help: chat templates are Jinja",
            ),
            case(
                "indent",
                "plan",
                |at| template(at, "{{ messages | tojson(indent=9999999999) }}"),
                "8 × the chat template refused the row: a value is nested more than 200 deep or longer than 64 MiB as text",
            ),
            case(
                "width",
                "plan",
                |at| template(at, "{{ '{:>99999999999}'.format(1) }}"),
                "8 × the chat template refused the row: a text is padded to a million characters at most",
            ),
            case(
                "doubling",
                "plan",
                |at| {
                    template(
                        at,
                        "{% set t = namespace(x='ab') %}{% for a in range(60) %}\
                         {% set t.x = t.x ~ t.x %}{% endfor %}",
                    );
                },
                "8 × the chat template refused the row: it does too much work for one chat, or makes too long a text",
            ),
            case(
                "nesting",
                "plan",
                |at| {
                    template(
                        at,
                        "{% set t = namespace(x=[]) %}{% for a in range(20000) %}\
                         {% set t.x = [t.x] %}{% endfor %}{{ t.x }}",
                    );
                },
                "8 × the chat template refused the row: a value is nested more than 200 deep",
            ),
            case(
                "loops",
                "plan",
                |at| {
                    let rows: String = (0..20).map(|n| format!("{}\n", data::chat(n))).collect();
                    write(at, "chats.jsonl", rows);
                    template(
                        at,
                        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}\
                         {% endfor %}",
                    );
                },
                "the chat template does too much work: it was stopped for
                help: look for loops that do not end",
            ),
        ],
    );
    assert!(started.elapsed() < Duration::from_secs(120), "{:?}", started.elapsed());
}

/// Replaces a part of tokenizer.json.
fn tokenizer(at: &Path, part: &str, value: Value) {
    edit(at, TOKENIZER, |json| json[part] = value);
}

#[test]
fn a_tokenizer_cannot_end_the_program() {
    check(
        "hostile-tokenizer",
        FAILED,
        &[
            case(
                "charsmap",
                "plan",
                |at| {
                    let table = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"});
                    tokenizer(at, "normalizer", table);
                },
                "base/tokenizer.json: not a tokenizer file: Precompiled: Error(
                help: fetch the tokenizer again",
            ),
            case(
                "charsmap-empty-trie",
                "plan",
                |at| {
                    let table = json!({"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"});
                    tokenizer(at, "normalizer", table);
                },
                "base/tokenizer.json: the tokenizer failed: index out of bounds
                help: fetch the tokenizer again",
            ),
            case(
                "backtracking",
                "plan",
                |at| {
                    let split = json!({"type": "Split", "pattern": {"Regex": "(a|aa)+!"},
                        "behavior": "Isolated", "invert": false});
                    tokenizer(at, "pre_tokenizer", split);
                    let text = format!("{} x !", "a".repeat(200));
                    let row = json!({"text": text}).to_string();
                    write(at, "chats.jsonl", format!("{row}\n").repeat(8));
                },
                "base/tokenizer.json: the tokenizer failed: Onig: Regex search error: retry-limit
                help: a regular expression in it tries too many ways to match a text",
            ),
        ],
    );
}

#[test]
fn a_report_shows_the_runs_of_a_model_that_cannot_answer() {
    let at = place("hostile-report");
    let (code, out, err) = run(&at, "sft");
    assert_eq!(code, Some(0), "{out}{err}");
    edit(&at, "out/tokenizer_config.json", |json| json["chat_template"] = json!("{%}"));
    #[cfg(unix)]
    {
        fs::create_dir_all(at.join("out/runs")).unwrap();
        std::os::unix::fs::symlink(".", at.join("out/runs/a")).unwrap();
        std::os::unix::fs::symlink("..", at.join("out/runs/b")).unwrap();
    }
    edit(&at, "out/trainer_state.json", |json| {
        let row = json["log_history"][0].as_object_mut().expect("a row");
        row.extend((0..30_000).map(|n| (format!("metric/{n}"), json!(0.5))));
    });
    let started = Instant::now();
    let output = common::favonius().current_dir(&at).args(["report", "out"]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && !err.contains("panicked"), "{out}{err}");
    let shown = out + &err;
    assert!(shown.contains("out: no answers: the chat template is broken at line 1"), "{shown}");
    assert!(shown.contains("29800 metrics are left out"), "{shown}");
    let page = fs::read_to_string(at.join("report.html")).unwrap();
    assert!(page.len() < 20_000_000 && page.contains("metric"), "{}", page.len());
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}

/// Sets a key of config.json to a number that some library or product cannot take.
macro_rules! size {
    ($name:literal, $key:literal: $value:literal, $seen:literal) => {
        case($name, "plan", |at| edit(at, models::CONFIG, |json| json[$key] = json!($value)), $seen)
    };
}

#[test]
fn lengths_in_a_model_are_checked() {
    check(
        "hostile-sizes",
        FAILED,
        &[
            size!("layers", "num_hidden_layers": 1000000, "`num_hidden_layers` is 1000000; expected at most 10000"),
            size!("head", "head_dim": 1073741824, "`head_dim` is 1073741824; expected at most 65536"),
            case(
                "product",
                "plan",
                |at| {
                    edit(at, models::CONFIG, |json| {
                        for key in ["hidden_size", "intermediate_size", "vocab_size"] {
                            json[key] = json!(2147483646);
                        }
                        json["head_dim"] = json!(64);
                    });
                },
                "base/config.json: its sizes make a model of
                weights; is the file damaged?",
            ),
        ],
    );
}

#[test]
fn lengths_in_a_recipe_are_checked() {
    check(
        "hostile-counts",
        USAGE,
        &[
            case(
                "accumulation",
                "plan --gradient_accumulation_steps=4611686018427387904",
                nothing,
                "`gradient_accumulation_steps` must be at most a million, not `4611686018427387904`",
            ),
            case(
                "batch",
                "plan --per_device_train_batch_size=4611686018427387904",
                nothing,
                "`per_device_train_batch_size` must be at most a million",
            ),
            case(
                "length",
                "plan --max_length=9223372036854775807",
                nothing,
                "`max_length` must be at most a billion",
            ),
            case(
                "ranks",
                "plan --ranks=4611686018427387904",
                nothing,
                "'--ranks <N>': a whole number of at least 1 and at most a million is expected",
            ),
        ],
    );
    let at = place("hostile-steps");
    let started = Instant::now();
    let (code, out, err) = run(&at, "plan --max_steps=100000000");
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

/// Writes rows.parquet, with another number of rows in its footer.
fn footer(at: &Path, rows: i64) {
    let bytes = read(world(), DATA);
    let (body, end) = bytes.split_at(bytes.len() - 8);
    let length = u32::from_le_bytes(end[..4].try_into().unwrap()) as usize;
    let (body, footer) = body.split_at(body.len() - length);
    // Field 3 of the footer is the number of rows, and field 4 the list of row groups.
    let field = |rows: i64| [&[0x16][..], &zigzag(rows), &[0x19]].concat();
    let before = field(4000);
    let place = footer.windows(before.len()).position(|bytes| bytes == before);
    let (start, rest) = footer.split_at(place.expect("the demo has 4000 chats"));
    let footer = [start, &field(rows), &rest[before.len()..]].concat();
    let end = [&(footer.len() as u32).to_le_bytes()[..], b"PAR1"].concat();
    write(at, "rows.parquet", [body, &footer, &end].concat());
}

/// A number of Thrift's compact protocol.
fn zigzag(number: i64) -> Vec<u8> {
    let mut rest = ((number << 1) ^ (number >> 63)) as u64;
    let mut bytes = Vec::new();
    while rest >= 0x80 {
        bytes.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
    bytes
}

#[test]
fn lengths_in_a_parquet_file_are_checked() {
    const COMMAND: &str = "plan --dataset_name=rows.parquet";
    check(
        "hostile-parquet",
        FAILED,
        &[
            case(
                "billion",
                COMMAND,
                |at| footer(at, 1_000_000_000),
                "rows.parquet: not a readable parquet file: its footer says 1000000000 rows, but its row groups have 4000",
            ),
            case(
                "most",
                COMMAND,
                |at| footer(at, i64::MAX),
                "its footer says 9223372036854775807 rows, but",
            ),
            case("negative", COMMAND, |at| footer(at, -5), "its footer says -5 rows, but"),
            case(
                "fewer",
                COMMAND,
                |at| footer(at, 3999),
                "its footer says 3999 rows, but its row groups have 4000",
            ),
        ],
    );
}

#[test]
fn a_changed_page_of_a_parquet_file_is_found() {
    // Written by pyarrow 26 with `write_page_checksum=True` and without compression: the column
    // `text` holds `row 0` to `row 19`.
    const ROWS: &[u8] = include_bytes!("../golden/checksums.parquet");
    let at = place("hostile-checksum");
    let plan = || run(&at, "plan --dataset_name=rows.parquet");
    write(&at, "rows.parquet", ROWS);
    let (code, out, err) = plan();
    assert_eq!(code, Some(0), "{out}{err}");
    let mut changed = ROWS.to_vec();
    let place = changed.windows(5).position(|bytes| bytes == b"row 7").expect("row 7");
    changed[place] = b'R';
    write(&at, "rows.parquet", changed);
    let (code, out, err) = plan();
    assert_eq!(code, Some(FAILED), "{out}{err}");
    assert!(err.contains("rows.parquet: not a readable parquet file"), "{err}");
    assert!(err.to_lowercase().contains("crc"), "{err}");
}

#[test]
fn a_split_with_missing_shards_is_named() {
    let at = place("hostile-shards");
    fs::create_dir_all(at.join("rows/data")).unwrap();
    fs::rename(at.join("chats.jsonl"), at.join("rows/data/train-00000-of-00003.jsonl")).unwrap();
    let (code, out, err) = run(&at, "plan --dataset_name=rows");
    assert_eq!(code, Some(0), "{out}{err}");
    let note = "rows: of the files data/train-*****-of-00003, 2 are missing: 00001, 00002";
    assert!((out.clone() + &err).contains(note), "{out}{err}");
}

#[test]
fn folders_of_other_programs_are_named() {
    check(
        "other-programs",
        FAILED,
        &[
            case(
                "saved-to-disk",
                "sft --dataset_name=rows",
                |at| {
                    fs::create_dir_all(at.join("rows/train")).unwrap();
                    write(at, "rows/dataset_dict.json", "{}");
                    write(at, "rows/train/data-00000-of-00001.arrow", "");
                },
                "rows: written by `save_to_disk` of datasets, whose .arrow files are not read
                help: write .parquet files in Python: datasets.load_from_disk(\"rows\")[\"train\"].to_parquet(\"train.parquet\")",
            ),
            case(
                "one-split-saved-to-disk",
                "sft --dataset_name=rows",
                |at| {
                    fs::create_dir_all(at.join("rows")).unwrap();
                    write(at, "rows/state.json", "{}");
                    write(at, "rows/dataset_info.json", "{}");
                },
                "datasets.load_from_disk(\"rows\").to_parquet(\"train.parquet\")",
            ),
            case(
                "csv",
                "sft --dataset_name=rows",
                |at| {
                    fs::create_dir_all(at.join("rows")).unwrap();
                    write(at, "rows/train.csv", "a,b\n");
                },
                "rows: no split `train`: its data files are .csv, and only .parquet and .jsonl files are read
                help: convert them in Python: datasets.load_dataset(\"rows\", split=\"train\")",
            ),
            case(
                "indented-json",
                "sft",
                |at| {
                    let rows = json!([data::chat(0), data::chat(1)]);
                    write(at, "chats.jsonl", format!("{rows:#}"));
                },
                "chats.jsonl:1: not a JSON object: the file holds one JSON array",
            ),
            case(
                "no-head",
                "sft",
                |at| edit(at, models::CONFIG, |json| json["tie_word_embeddings"] = json!(false)),
                "base: tensor `lm_head.weight` is missing
                set tie_word_embeddings: true in config.json",
            ),
        ],
    );
}
