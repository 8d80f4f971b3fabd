//! Bad data sets: folders, splits, columns, files, rows.

use std::sync::Arc;

use arrow_array::types::Int64Type;
use arrow_array::{
    ArrayRef, BinaryArray, Float64Array, Int64Array, ListArray, RecordBatch, StructArray,
};
use arrow_schema::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use serde_json::json;

use super::*;

const PARQUET: &str = "chats/data/train_sft-00000-of-00001.parquet";

/// A usable chat.
pub fn chat(n: usize) -> Value {
    json!({"messages": [
        {"role": "user", "content": format!("Question {n}?")},
        {"role": "assistant", "content": format!("Answer {n}.")},
    ]})
}

/// A usable preference pair.
pub fn pair(n: usize) -> Value {
    let side = |answer: &str| {
        json!([
            {"role": "user", "content": format!("Question {n}?")},
            {"role": "assistant", "content": format!("{answer} {n}.")},
        ])
    };
    json!({"chosen": side("Good"), "rejected": side("Bad")})
}

#[test]
fn the_error_of_a_missing_data_set_names_it() {
    check(
        "set",
        FAILED,
        &[
            case(
                "folder",
                "sft --dataset_name=./no/such",
                nothing,
                "`./no/such`: no such data set
                help: a local path must exist; a hub id has the form `owner/name`",
            ),
            case("hub", "sft --dataset_name=nobody/nothing", nothing, "`nobody/nothing`: no such local data set, and as a hub id (revision main) it is not in the hub's cache"),
            case(
                "kind",
                "sft --dataset_name=rows.csv",
                |at| write(at, "rows.csv", "a,b\n"),
                "rows.csv: `rows.csv` is neither a .parquet nor a .jsonl file
                help: convert it to one of these",
            ),
            case(
                "empty-folder",
                "sft --dataset_name=rows",
                |at| fs::create_dir(at.join("rows")).unwrap(),
                "rows: no split `train`; it has no .parquet or .jsonl files",
            ),
            case(
                "split",
                "sft --dataset_name=rows --dataset_train_split=other",
                |at| {
                    fs::create_dir(at.join("rows")).unwrap();
                    fs::rename(at.join("chats.jsonl"), at.join("rows/train_sft.jsonl")).unwrap();
                },
                "rows: no split `other`; the splits are `train`, `train_sft`",
            ),
            case(
                "test-split",
                "sft --eval_strategy=epoch",
                nothing,
                "chats.jsonl: no split `test`; the splits are `train`, `chats`",
            ),
            case(
                "pool",
                "sft",
                |at| {
                    let mixture = "{datasets: [{id: chats.jsonl, split: train}], test_split_size: 8}";
                    let recipe = format!("model_name_or_path: base\ndataset_mixture: {mixture}\n");
                    write(at, "sft.yaml", recipe);
                },
                "test_split_size takes 8 rows, but the mixture has only 8: no row is left to train on",
            ),
            case(
                "column",
                "sft",
                |at| write(at, "chats.jsonl", "{\"dialog\": [], \"id\": 1}\n"),
                "chats.jsonl: no column `messages`, no `prompt` and `completion`, and no `text`; the columns are `dialog`, `id`
                help: name the column of plain text with dataset_text_field",
            ),
            case(
                "side",
                "dpo",
                |at| write(at, "pairs.jsonl", "{\"chosen\": \"a\", \"id\": 1}\n"),
                "pairs.jsonl: no column `rejected`; the columns are `chosen`, `id`
                help: a preference data set has `chosen` and `rejected`, and may have `prompt`",
            ),
            case(
                "completion",
                "sft --completion_only_loss=true",
                nothing,
                "completion_only_loss needs the columns `prompt` and `completion`, which the data set lacks
                help: leave completion_only_loss out, or use assistant_only_loss for chats",
            ),
            case(
                "empty",
                "sft",
                |at| write(at, "chats.jsonl", "\n\n"),
                "no train rows in `chats.jsonl`
                help: check the files",
            ),
            case(
                "no-room",
                "dpo --max_length=3",
                nothing,
                "none of the 8 train rows that were read is usable
                8 left out: the prompt leaves no room for a response
                help: check the rows above, or raise max_length",
            ),
        ],
    );
}

/// Writes rows.parquet, a damaged copy of the demo's parquet file of chats.
fn parquet(at: &Path, harm: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = read(world(), PARQUET);
    harm(&mut bytes);
    write(at, "rows.parquet", bytes);
}

/// Writes rows.parquet with one column.
fn column(at: &Path, name: &str, array: ArrayRef) {
    let schema = Schema::new(vec![Field::new(name, array.data_type().clone(), true)]);
    let batch = RecordBatch::try_new(Arc::new(schema), vec![array]).expect("a batch");
    let file = fs::File::create(at.join("rows.parquet")).expect("a file");
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).expect("a writer");
    writer.write(&batch).expect("rows");
    writer.close().expect("a footer");
}

#[test]
fn the_error_of_a_bad_parquet_file_names_it() {
    const COMMAND: &str = "sft --dataset_name=rows.parquet";
    check(
        "parquet",
        FAILED,
        &[
            case(
                "cut",
                COMMAND,
                |at| parquet(at, |bytes| bytes.truncate(1000)),
                "rows.parquet: not a readable parquet file: Parquet error: Invalid Parquet file. Corrupt footer
                help: if it was downloaded or copied, fetch it again; it may have been cut off",
            ),
            case("empty", COMMAND, |at| parquet(at, Vec::clear), "rows.parquet: not a readable parquet file"),
            case("text", COMMAND, |at| write(at, "rows.parquet", "Not Found"), "rows.parquet: not a readable parquet file"),
            case(
                "footer",
                COMMAND,
                |at| {
                    parquet(at, |bytes| {
                        let end = bytes.len() - 8;
                        bytes[end - 12..end].fill(0xFF);
                    });
                },
                "rows.parquet: not a readable parquet file",
            ),
            case(
                "pages",
                COMMAND,
                |at| {
                    parquet(at, |bytes| {
                        let length = bytes.len();
                        bytes[length / 2..length - 4000].fill(0xFF);
                    });
                },
                "rows.parquet: not a readable parquet file",
            ),
            case(
                "numbers",
                COMMAND,
                |at| column(at, "messages", Arc::new(Float64Array::from(vec![1.0]))),
                "rows.parquet: column `messages` holds Float64, not text or chats
                help: a chat is a list of objects with `role` and `content`",
            ),
            case(
                "list-of-numbers",
                COMMAND,
                |at| {
                    let row = vec![Some(vec![Some(1), Some(2)])];
                    column(at, "messages", Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(row)));
                },
                "rows.parquet: column `messages` holds List(
                not text or chats",
            ),
            case(
                "no-list",
                COMMAND,
                |at| {
                    let role = Arc::new(Field::new("role", DataType::Int64, true));
                    let number: ArrayRef = Arc::new(Int64Array::from(vec![1]));
                    column(at, "messages", Arc::new(StructArray::from(vec![(role, number)])));
                },
                "rows.parquet: column `messages` holds Struct(",
            ),
            case(
                "bytes",
                COMMAND,
                |at| column(at, "text", Arc::new(BinaryArray::from(vec![b"fine".as_slice(), b"\xff\xfe"]))),
                "1 of 2 train rows cannot be used: 50.00 %, and max_bad_rows allows 1 %
                1 × `text` is not UTF-8
                rows.parquet, row 1: `text` is not UTF-8",
            ),
        ],
    );
}

#[test]
fn the_error_of_a_bad_jsonl_file_names_its_line() {
    check(
        "jsonl",
        FAILED,
        &[
            case(
                "line",
                "sft",
                |at| append(at, "chats.jsonl", "{\"messages\": [{\"role\": \"user\"\n"),
                "chats.jsonl:9: not a JSON object: EOF while parsing an object
                {\"messages\": [{\"role\": \"user\"
                help: a .jsonl file has one JSON object per line",
            ),
            case(
                "late-line",
                "sft",
                |at| {
                    let rows: String = (0..150).map(|n| format!("{}\n", chat(n))).collect();
                    write(at, "chats.jsonl", rows + "oops\n");
                },
                "chats.jsonl:151: not a JSON object
                oops",
            ),
            case(
                "array",
                "dpo",
                |at| write(at, "pairs.jsonl", "[\n{\"chosen\": \"a\", \"rejected\": \"b\"}\n]\n"),
                "pairs.jsonl:1: not a JSON object: the file holds one JSON array
                help: a .jsonl file has one JSON object per line; convert it: python3 -c",
            ),
            case(
                "compressed",
                "sft",
                |at| write(at, "chats.jsonl", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"),
                "chats.jsonl:1: not a JSON object: the line is not UTF-8
                is the file compressed?",
            ),
            case(
                "deep",
                "sft",
                |at| {
                    write(
                        at,
                        "chats.jsonl",
                        format!("{{\"messages\": {}{}}}\n", "[".repeat(300), "]".repeat(300)),
                    )
                },
                "chats.jsonl:1: not a JSON object: recursion limit exceeded",
            ),
        ],
    );
}

/// One bad row after eight good ones, which is more than `max_bad_rows` allows.
macro_rules! row {
    ($name:literal, $row:tt, $reason:literal) => {
        case(
            $name,
            "sft",
            |at| append(at, "chats.jsonl", &format!("{}\n", json!($row))),
            concat!(
                "1 of 9 train rows cannot be used: 11.11 %, and max_bad_rows allows 1 %\n1 × ",
                $reason,
                "\nthe first of these (rows counted from 0):\nchats.jsonl, row 8: ",
                $reason,
                "\nhelp: correct or remove these rows, or set max_bad_rows"
            ),
        )
    };
}

#[test]
fn unusable_chats_are_counted_and_listed() {
    check(
        "row",
        FAILED,
        &[
            row!("missing", {"id": 9}, "`messages` is missing"),
            row!("null", {"messages": null}, "`messages` is null or contains null"),
            row!("no-messages", {"messages": []}, "`messages` has no messages"),
            row!("number", {"messages": 9}, "`messages` is neither text nor a list of messages"),
            row!("texts", {"messages": ["Hi"]}, "`messages` is neither text nor a list of messages"),
            row!("content", {"messages": [{"role": "user"}]}, "`messages.content` is missing"),
            row!(
                "null-content",
                {"messages": [{"role": "user", "content": null}]},
                "`messages.content` is null or contains null"
            ),
            row!(
                "role",
                {"messages": [{"role": "usr", "content": "a"}, {"role": "assistant", "content": "b"}]},
                "a message has the unknown role `usr`"
            ),
            row!("no-answer", {"messages": [{"role": "user", "content": "a"}]}, "the chat has no assistant turn"),
            row!(
                "empty-answer",
                {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]},
                "`messages` is empty"
            ),
            case(
                "utf8",
                "sft",
                |at| {
                    let line = b"{\"messages\": \"\xff\"}\n";
                    write(at, "chats.jsonl", [&read(at, "chats.jsonl"), line.as_slice()].concat());
                },
                "1 × `messages` is not UTF-8
                chats.jsonl, row 8: `messages` is not UTF-8",
            ),
        ],
    );
}

/// Appends one changed pair for each of `changes`, after the good pairs.
fn pairs(at: &Path, changes: &[fn(&mut Value)]) {
    for change in changes {
        let mut row = pair(8);
        change(&mut row);
        append(at, "pairs.jsonl", &format!("{row}\n"));
    }
}

#[test]
fn unusable_pairs_are_counted_and_listed() {
    const CHANGES: [fn(&mut Value); 5] = [
        |row| row["rejected"] = row["chosen"].clone(),
        |row| row["rejected"][1]["content"] = json!(""),
        |row| row["rejected"][0]["content"] = json!("Another question?"),
        |row| without(row, "rejected"),
        |row| row["chosen"] = json!("text"),
    ];
    check(
        "pair",
        FAILED,
        &[
            case(
                "all-kinds",
                "dpo",
                |at| pairs(at, &CHANGES),
                "5 of 13 train rows cannot be used: 38.46 %, and max_bad_rows allows 1 %
                pairs.jsonl, row 8: `chosen` and `rejected` are the same
                pairs.jsonl, row 9: `rejected` is empty
                pairs.jsonl, row 10: `chosen` and `rejected` have no prompt in common
                pairs.jsonl, row 11: `rejected` is missing
                pairs.jsonl, row 12: `rejected` is neither text nor a list of messages
                help: correct or remove these rows",
            ),
            case(
                "first-ten",
                "dpo",
                |at| pairs(at, &[CHANGES[0]; 12]),
                "12 of 20 train rows cannot be used
                12 × `chosen` and `rejected` are the same
                pairs.jsonl, row 8:
                pairs.jsonl, row 17:
                help:",
            ),
            case(
                "none-left",
                "dpo --max_bad_rows=1",
                |at| {
                    write(at, "pairs.jsonl", "");
                    pairs(at, &CHANGES[..1]);
                },
                "none of the 1 train rows that were read is usable
                1 left out: `chosen` and `rejected` are the same (first: pairs.jsonl, row 0)",
            ),
        ],
    );
}
