//! Bad recipes, pipelines, overrides, devices and output folders.

use super::*;

/// Appends text to sft.yaml; it becomes line 6.
macro_rules! sft {
    ($name:literal, $lines:literal, $seen:literal) => {
        case($name, "sft", |at| append(at, "sft.yaml", $lines), $seen)
    };
}

#[test]
fn the_error_of_a_bad_recipe_has_line_column_and_advice() {
    check(
        "recipe",
        USAGE,
        &[
            sft!(
                "unknown-key",
                "lerning_rate: 1e-5\n",
                "sft.yaml:6:1: `lerning_rate` is not a known key
                lerning_rate: 1e-5
                ^^^^^^^^^^^^
                help: did you mean `learning_rate`?"
            ),
            sft!(
                "wrong-type",
                "learning_rate: fast\n",
                "sft.yaml:6:16: `learning_rate` needs a number, not `fast`
                ^^^^"
            ),
            sft!(
                "impossible",
                "warmup_ratio: 1.5\n",
                "sft.yaml:6:15: `warmup_ratio` must be from 0 to 1, not `1.5`"
            ),
            sft!(
                "infinite",
                "num_train_epochs: .inf\n",
                "sft.yaml:6:19: `num_train_epochs` needs a number, not `.inf`"
            ),
            sft!(
                "twice",
                "max_steps: 3\n",
                "sft.yaml:6:1: `max_steps` is given twice
                help: keep one of the two"
            ),
            sft!(
                "both-spellings",
                "max_length: 64\nmax_seq_length: 128\n",
                "sft.yaml:7:1: `max_seq_length` is `128`, but `max_length`, another spelling of the same key, is `64`
                help: keep one of the two"
            ),
            sft!(
                "word",
                "lr_scheduler_type: cosin\n",
                "sft.yaml:6:20: `lr_scheduler_type` must be one of linear, cosine,
                help: did you mean `cosine`?"
            ),
            sft!(
                "unsupported",
                "optim: lomo\n",
                "sft.yaml:6:8: `optim: lomo` is not supported
                help: supported: adamw_torch, adam, rmsprop, adagrad, sgd, lion_32bit, adafactor"
            ),
            sft!(
                "dpo-key",
                "beta: 0.1\n",
                "sft.yaml:6:1: `beta` is a key of DPO recipes, but this recipe is read as SFT
                help: remove it, or run the recipe with `favonius dpo`"
            ),
            sft!(
                "lora",
                "use_peft: true\nuse_dora: true\n",
                "sft.yaml:7:11: `use_dora: true` is not supported
                help: DoRA is not implemented: remove the key to train LoRA"
            ),
            sft!(
                "indentation",
                " seed: 1\n",
                "sft.yaml:6:
                this is not YAML
                help: check quotes, brackets, colons and indentation here and on the line before"
            ),
            sft!(
                "bracket",
                "report_to: [none\n",
                "sft.yaml:
                this is not YAML"
            ),
            sft!("anchor", "seed: *missing\n", "sft.yaml:6:7: this is not YAML: alias references unknown anchor"),
            sft!(
                "schemas",
                "dataset_mixer: {chats.jsonl: 1.0}\n",
                "sft.yaml:2:1: `dataset_name` and `dataset_mixer` both choose the data sets
                help: keep one of the two"
            ),
            sft!(
                "template-file",
                "chat_template: zephyr.jinja\n",
                "sft.yaml:6:16: `chat_template` is neither Jinja text nor a file: `zephyr.jinja`
                help: write the template itself, the name of its file"
            ),
            case(
                "own-model",
                "sft --output_dir=./base",
                nothing,
                "`output_dir` is the folder of `model_name_or_path`: the trained model would replace that model
                help: choose another output_dir",
            ),
            case(
                "own-reference",
                "dpo --ref_model_name_or_path=out",
                |at| fs::create_dir(at.join("out")).unwrap(),
                "dpo.yaml:3:13: `output_dir` is the folder of `ref_model_name_or_path`",
            ),
            case(
                "one-folder-for-two-stages",
                "run --output_dir=both",
                nothing,
                "stages 1 and 2 have the same output_dir, both
                help: give each stage's recipe its own",
            ),
            sft!(
                "warm-up",
                "warmup_steps: 5\n",
                "sft.yaml:6:15: `warmup_steps` is 5, more than `max_steps`, which is 2
                help: lower `warmup_steps`: the learning rate would never reach its peak"
            ),
            sft!(
                "best-model",
                "load_best_model_at_end: true\n",
                "sft.yaml:6:25: `load_best_model_at_end` cannot work: nothing is evaluated
                help: every checkpoint must have been evaluated"
            ),
            sft!(
                "all-at-once",
                "learning_rat: 1\nseed: x\nadam_beta2: 1.0\n",
                "sft.yaml:6:1: `learning_rat` is not a known key
                sft.yaml:7:7: `seed` needs a whole number, not `x`
                sft.yaml:8:13: `adam_beta2` must be at least 0 and below 1, not `1.0`"
            ),
            case(
                "prompt-length",
                "dpo",
                |at| append(at, "dpo.yaml", "max_length: 64\nmax_prompt_length: 64\n"),
                "dpo.yaml:7:20: `max_prompt_length` is 64, which leaves no room for a response in `max_length` 64
                help: lower `max_prompt_length` or raise `max_length`",
            ),
            case(
                "packing-in-dpo",
                "dpo",
                |at| append(at, "dpo.yaml", "packing: true\n"),
                "dpo.yaml:6:1: `packing` is a key of SFT recipes, but this recipe is read as DPO",
            ),
            case(
                "empty",
                "sft",
                |at| write(at, "sft.yaml", ""),
                "sft.yaml: `model_name_or_path` is missing
                help: write the hub id or the folder of the model to train
                sft.yaml: no data set is named
                help: write `dataset_mixer` with `dataset_splits`, `dataset_mixture`, `datasets`, or `dataset_name`",
            ),
            case(
                "list",
                "sft",
                |at| write(at, "sft.yaml", "- a\n- b\n"),
                "sft.yaml:1:1: this must be `key: value` lines, not a list",
            ),
            case(
                "not-text",
                "sft",
                |at| write(at, "sft.yaml", b"seed: \xff\n"),
                "sft.yaml: is not a text file: byte 7 is not UTF-8",
            ),
            case("folder", "sft", |at| {
                remove(at, "sft.yaml");
                fs::create_dir(at.join("sft.yaml")).unwrap();
            }, "sft.yaml: cannot be read"),
            case("missing", "sft", |at| remove(at, "sft.yaml"), "sft.yaml: cannot be read: No such file"),
            case("missing-plan", "plan", |at| remove(at, "sft.yaml"), "sft.yaml: cannot be read: No such file"),
        ],
    );
}

#[test]
fn bad_overrides_are_refused_like_bad_recipes() {
    check(
        "override",
        USAGE,
        &[
            case(
                "unknown",
                "dpo --bta=0.2",
                nothing,
                "command line: `bta` is not a known key
                --bta=0.2
                ^^^
                help: did you mean `beta`?",
            ),
            case(
                "none",
                "sft seed=1 --bf16",
                nothing,
                "command line: `seed=1` is not an override
                help: write --key=value, for example --learning_rate=5e-7
                command line: `--bf16` is not an override",
            ),
            case(
                "yaml",
                "sft --report_to=[none",
                nothing,
                "command line: this is not YAML: unclosed bracket",
            ),
            case(
                "no-mapping",
                "sft --model_name_or_path.x=1",
                nothing,
                "command line: `x` cannot be set: its parent is not a mapping",
            ),
            case(
                "negative",
                "sft --seed=-1",
                nothing,
                "command line: `seed` must be 0 or above, not `-1`",
            ),
            case(
                "device",
                "sft --device=tpu",
                nothing,
                "command line: `device` must be one of cpu, tch, tch:cuda:N, cuda, cuda:N, cube-cpu, not `tpu`",
            ),
            case(
                "with-file",
                "sft --seed=-1",
                |at| append(at, "sft.yaml", "lr: 1\n"),
                "sft.yaml:6:1: `lr` is not a known key
                command line: `seed` must be 0 or above",
            ),
        ],
    );
}

#[test]
fn pipelines_are_refused_before_their_first_stage() {
    check(
        "pipeline",
        USAGE,
        &[
            case(
                "no-stages",
                "run",
                |at| write(at, "pipeline.yaml", "stage: []\n"),
                "pipeline.yaml: `stages` is missing
                help: write stages: [{kind: sft, recipe: sft.yaml}, {kind: dpo, recipe: dpo.yaml}]
                pipeline.yaml:1:1: `stage` is not a known key",
            ),
            case(
                "no-recipe",
                "run",
                |at| remove(at, "dpo.yaml"),
                "pipeline.yaml:5:11: no recipe at dpo.yaml
                help: the path is taken from this file's folder",
            ),
            case(
                "kind",
                "run",
                |at| write(at, "pipeline.yaml", "stages:\n- {kind: grpo, recipe: sft.yaml}\n"),
                "pipeline.yaml:2:10: `stages.0.kind: grpo` is not supported",
            ),
            case(
                "second-recipe",
                "run",
                |at| append(at, "dpo.yaml", "beta: 0\n"),
                "dpo.yaml:6:7: `beta` must be above 0, not `0`",
            ),
        ],
    );
}

#[test]
#[cfg(not(any(feature = "cuda", feature = "tch")))]
fn the_error_of_a_device_outside_the_build_names_it() {
    check(
        "device",
        FAILED,
        &[
            case(
                "cuda",
                "sft --device=cuda:1",
                nothing,
                "device `cuda:1` is not in this build; build with `cargo build --release --features cuda`",
            ),
            case(
                "tch",
                "sft --device=tch",
                nothing,
                "device `tch` is not in this build; build with `cargo build --release --features tch`",
            ),
        ],
    );
}

#[test]
fn an_impossible_output_folder_is_refused_before_training() {
    let cases = [
        case(
            "file",
            "sft",
            |at| write(at, "out", ""),
            "output_dir out cannot be used: out is not a folder",
        ),
        case(
            "below-a-file",
            "sft --output_dir=notes/run",
            |at| write(at, "notes", ""),
            "output_dir notes/run cannot be used: notes is not a folder",
        ),
        #[cfg(target_os = "linux")]
        case(
            "not-writable",
            "sft --output_dir=/proc/favonius",
            nothing,
            "output_dir /proc/favonius cannot be used: /proc cannot be written",
        ),
    ];
    check("output", FAILED, &cases);
    let folder = place("output-help");
    write(&folder, "out", "");
    let (_, out, err) = run(&folder, "sft");
    assert!(err.contains("choose another output_dir") && !out.contains("training"), "{out}{err}");
}

#[test]
fn secrets_and_escape_sequences_are_not_shown() {
    let at = place("recipe-secret");
    let token = "hf_abcdefghijklmnopqrstuvwxyz01234567";
    for (command, hidden) in [
        (format!("sft --learning_rate={token}"), token),
        (format!("sft --hub_token={token} --hub_tokens=1"), token),
        ("sft --hub_token=[secret]".to_owned(), "secret"),
        ("sft --push_to_hub_token=secret --hub_token={a:secret}".to_owned(), "secret"),
        ("sft hub_token=secret".to_owned(), "secret"),
    ] {
        let (code, out, err) = run(&at, &command);
        assert_eq!(code, Some(USAGE), "{command}: {out}{err}");
        assert!(!err.contains(hidden) && !out.contains(hidden), "{command}: {err}");
    }
    let (code, _, err) = run(&at, r#"sft --dataset_name="./\e[2Jx.jsonl""#);
    assert_eq!(code, Some(FAILED), "{err}");
    assert!(err.contains(r"`./\u{1b}[2Jx.jsonl`: no such") && !err.contains('\u{1b}'), "{err}");
}
