//! Bad tokenizer files, special tokens and chat templates.

use serde_json::json;

use super::*;

const TOKENIZER: &str = "base/tokenizer.json";
const CONFIG: &str = "base/tokenizer_config.json";

#[test]
fn the_error_of_a_bad_tokenizer_file_names_it() {
    check(
        "tokenizer",
        FAILED,
        &[
            case(
                "missing",
                "sft",
                |at| remove(at, TOKENIZER),
                "base: tokenizer.json is missing
                help: tokenizer_name_or_path must name a folder or hub id with a tokenizer.json",
            ),
            case(
                "slow",
                "sft",
                |at| fs::rename(at.join(TOKENIZER), at.join("base/tokenizer.model")).unwrap(),
                "base: tokenizer.json is missing
                help: convert the slow tokenizer",
            ),
            case(
                "cut",
                "dpo",
                |at| cut(at, TOKENIZER, 20),
                "base/tokenizer.json: not a tokenizer file: EOF while parsing
                help: fetch the tokenizer again",
            ),
            case(
                "other-json",
                "sft",
                |at| write(at, TOKENIZER, "{\"hello\": 1}"),
                "base/tokenizer.json: not a tokenizer file",
            ),
            case(
                "merge",
                "sft",
                |at| edit(at, TOKENIZER, |json| json["model"]["merges"][0] = json!(["zzz", "qqq"])),
                "base/tokenizer.json: not a tokenizer file: Token `zzz` out of vocabulary",
            ),
            case(
                "config-json",
                "sft",
                |at| cut(at, CONFIG, 5),
                "base/tokenizer_config.json: not a tokenizer file: EOF while parsing",
            ),
            case(
                "config-list",
                "sft",
                |at| write(at, CONFIG, "[]"),
                "base/tokenizer_config.json: not a tokenizer file: invalid type: sequence, expected a map",
            ),
            case(
                "eos",
                "sft",
                |at| edit(at, CONFIG, |json| json["eos_token"] = json!("<eos>")),
                "base/tokenizer_config.json: eos_token is `<eos>`, which is not in the vocabulary
                help: set `eos_token` in the recipe to a token of the vocabulary",
            ),
            case(
                "eos-of-recipe",
                "sft --eos_token=<|im_end|>",
                nothing,
                "base: the recipe's eos_token is `<|im_end|>`, which is not in the vocabulary",
            ),
            case(
                "no-eos",
                "sft",
                |at| {
                    no_eos(at);
                    write(at, "chats.jsonl", "{\"text\": \"Hello\"}\n".repeat(8));
                },
                "the tokenizer in base has no eos_token
                help: set `eos_token` in the recipe",
            ),
            case(
                "beyond-the-model",
                "sft",
                |at| {
                    edit(at, TOKENIZER, |json| {
                        let token = json!({"id": 768, "content": "<|user|>", "single_word": false, "lstrip": false,
                            "rstrip": false, "normalized": false, "special": true});
                        json["added_tokens"].as_array_mut().expect("tokens").push(token);
                    });
                },
                "the tokenizer gives id 768, but the model `base` has a vocabulary of 768 only; is it the model's own tokenizer?",
            ),
        ],
    );
}

fn no_eos(at: &Path) {
    for file in [CONFIG, "base/special_tokens_map.json"] {
        edit(at, file, |json| without(json, "eos_token"));
    }
}

fn template(at: &Path, text: &str) {
    edit(at, CONFIG, |json| json["chat_template"] = json!(text));
}

#[test]
fn the_error_of_a_bad_chat_template_names_its_line_or_the_rows() {
    check(
        "template",
        FAILED,
        &[
            case(
                "none",
                "sft",
                |at| edit(at, CONFIG, |json| without(json, "chat_template")),
                "the tokenizer in base has no chat template
                help: set `chat_template` in the recipe",
            ),
            case(
                "none-in-dpo",
                "dpo",
                |at| edit(at, CONFIG, |json| without(json, "chat_template")),
                "the tokenizer in base has no chat template",
            ),
            case(
                "syntax",
                "sft",
                |at| template(at, "{% for m in messages %}\n{{ m.content\n{% endfor %}"),
                "the chat template is broken at line 3
                {% endfor %}
                help: chat templates are Jinja with the functions of transformers",
            ),
            case(
                "of-recipe",
                "sft --chat_template={%if%}",
                nothing,
                "the chat template is broken at line 1: unexpected end of block
                {%if%}",
            ),
            case(
                "refuses",
                "sft",
                |at| template(at, "{{ raise_exception('Conversation roles must alternate') }}"),
                "8 of 8 train rows cannot be used: 100.00 %, and max_bad_rows allows 1 %
                8 × the chat template refused the row: Conversation roles must alternate
                chats.jsonl, row 0: the chat template refused the row",
            ),
            case(
                "function",
                "dpo",
                |at| template(at, "{{ no_such_function() }}"),
                "8 × the chat template refused the row: no_such_function is unknown
                pairs.jsonl, row 0",
            ),
            case(
                "names-no-token",
                "sft",
                no_eos,
                "8 × the chat template refused the row
                it uses `eos_token`, which the tokenizer lacks",
            ),
            case(
                "writes-nothing",
                "sft",
                |at| template(at, "{# nothing #}"),
                "none of the 8 train rows that were read is usable
                8 left out: no target token is left",
            ),
            case(
                "same-for-all",
                "dpo",
                |at| template(at, "Hello"),
                "8 × `chosen` is empty",
            ),
            case(
                "no-generation",
                "sft --assistant_only_loss=true",
                |at| template(at, "{% for m in messages %}{{ m.content }}{% endfor %}"),
                "assistant_only_loss needs a chat template that marks the assistant's text with {% generation %}
                help: copy the model's template, add these two tags",
            ),
            case(
                "file-not-text",
                "sft",
                |at| write(at, "base/chat_template.jinja", b"\xff\xfe"),
                "base/chat_template.jinja: cannot be read: stream did not contain valid UTF-8",
            ),
        ],
    );
}
