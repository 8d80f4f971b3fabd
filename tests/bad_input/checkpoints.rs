//! Resuming from a checkpoint that is damaged, belongs to another run, or does not exist.

use super::*;

const LAST: &str = "out/checkpoint-2";

/// Trains two steps with a checkpoint after each, then removes the mark of a finished run.
fn stopped(at: &Path, more: &str) {
    append(at, "sft.yaml", "save_strategy: steps\nsave_steps: 1\n");
    let (code, out, err) = run(at, &format!("sft {more}"));
    assert_eq!(code, Some(0), "{out}{err}");
    remove(at, "out/favonius.json");
}

fn of_checkpoint(at: &Path, harm: impl FnOnce(&Path)) {
    stopped(at, "");
    harm(&at.join(LAST));
}

#[test]
fn the_error_of_a_bad_checkpoint_names_it() {
    check(
        "checkpoint",
        FAILED,
        &[
            case(
                "cut",
                "sft --resume_from_checkpoint=out/checkpoint-2",
                |at| of_checkpoint(at, |at| cut(at, "model.safetensors", 100)),
                "checkpoint out/checkpoint-2 is damaged: model.safetensors has
                bytes where",
            ),
            case(
                "changed",
                "sft --resume_from_checkpoint=out/checkpoint-2",
                |at| of_checkpoint(at, |at| write(at, "config.json", read(at, "config.json").to_ascii_uppercase())),
                "checkpoint out/checkpoint-2 is damaged: config.json is not what was written
                help: name another one, or leave resume_from_checkpoint out",
            ),
            case(
                "no-manifest",
                "sft --resume_from_checkpoint=out/checkpoint-2",
                |at| of_checkpoint(at, |at| remove(at, "checkpoint.json")),
                "checkpoint out/checkpoint-2 is damaged: checkpoint.json cannot be read (No such file",
            ),
            case(
                "manifest",
                "sft --resume_from_checkpoint=out/checkpoint-2",
                |at| of_checkpoint(at, |at| cut(at, "checkpoint.json", 9)),
                "checkpoint out/checkpoint-2 is damaged: checkpoint.json cannot be read (EOF",
            ),
            case(
                "missing-file",
                "sft --resume_from_checkpoint=out/checkpoint-2",
                |at| of_checkpoint(at, |at| remove(at, "optimizer.safetensors")),
                "checkpoint out/checkpoint-2 is damaged: optimizer.safetensors cannot be read (No such file",
            ),
            case(
                "not-there",
                "sft --resume_from_checkpoint=out/checkpoint-9",
                |at| stopped(at, ""),
                "no checkpoint at out/checkpoint-9
                help: name another one",
            ),
            case(
                "other-recipe",
                "sft --learning_rate=0.5",
                |at| stopped(at, ""),
                "checkpoint out/checkpoint-2 belongs to another run: `learning_rate` was 0.00002 there and is 0.5 now
                continue it with the old value, train into another output_dir, or set resume_from_checkpoint: false",
            ),
            case(
                "other-data",
                "sft",
                |at| {
                    stopped(at, "");
                    append(at, "chats.jsonl", &format!("{}\n", data::chat(9)));
                },
                "checkpoint out/checkpoint-2 belongs to another run: its training rows are not those of this run",
            ),
            case(
                "weights-only",
                "sft",
                |at| stopped(at, "--save_only_model=true"),
                "checkpoint out/checkpoint-2 holds weights only (save_only_model); it cannot be resumed",
            ),
            case(
                "in-the-way",
                "sft --resume_from_checkpoint=false",
                |at| stopped(at, ""),
                "out holds 2 checkpoint(s) of an earlier run
                set overwrite_output_dir: true to remove them, or train into another output_dir",
            ),
        ],
    );
}

/// This damage does not end the run: it starts from an older checkpoint, or from the beginning.
#[test]
fn damaged_checkpoints_are_skipped_unless_one_is_named() {
    let folder = place("checkpoint-all");
    stopped(&folder, "");
    for step in [1, 2] {
        cut(&folder, &format!("out/checkpoint-{step}/model.safetensors"), 100);
    }
    let (code, out, err) = run(&folder, "sft");
    assert_eq!(code, Some(0), "{out}{err}");
    for step in [1, 2] {
        let line = format!("checkpoint out/checkpoint-{step} is damaged: model.safetensors has");
        assert!(out.contains(&line), "{out}");
    }
    assert!(out.contains("it is not used") && !out.contains("resuming"), "{out}");
}

#[test]
fn a_model_that_diverged_is_not_saved() {
    for (name, more) in [("end", ""), ("step", "--save_strategy=steps --save_steps=1")] {
        let at = place(&format!("diverged-{name}"));
        let command = format!("sft --learning_rate=1e38 --max_steps=1 {more}");
        let (code, out, err) = run(&at, &command);
        assert_eq!(code, Some(FAILED), "{out}{err}");
        let message = "holds NaN or infinite values after training, so the model is not saved";
        assert!(err.contains(message), "{err}");
        for left in ["favonius.json", "model.safetensors", "checkpoint-1"] {
            assert!(!at.join("out").join(left).exists(), "{name}: {left}");
        }
    }
}

#[test]
fn a_damaged_mark_is_no_finished_run() {
    let at = place("mark");
    append(&at, "sft.yaml", "save_strategy: steps\nsave_steps: 1\n");
    let train = || {
        let (code, out, err) = run(&at, "sft");
        assert_eq!(code, Some(0), "{out}{err}");
        out
    };
    train();
    assert!(train().contains("out holds a finished run; nothing to do"));
    for mark in ["", "null", "{}", "[]"] {
        write(&at, "out/favonius.json", mark);
        let out = train();
        assert!(out.contains("out holds no finished run: favonius.json is damaged"), "{out}");
        assert!(out.contains("resuming at step 2"), "{out}");
    }
    remove(&at, "out/model.safetensors");
    let out = train();
    assert!(out.contains("favonius.json is there without its model"), "{out}");
    assert!(at.join("out/model.safetensors").is_file());
    assert!(train().contains("nothing to do"));
}

/// Settings that train anew in a folder that holds a run.
const ANEW: &str = "--resume_from_checkpoint=false --overwrite_output_dir=true";

#[test]
fn nothing_is_removed_before_everything_is_checked() {
    let at = place("overwrite");
    stopped(&at, "");
    let train = |more: &str| run(&at, &format!("sft {ANEW} {more}"));
    fs::create_dir(at.join("broken")).unwrap();
    fs::copy(at.join(models::CONFIG), at.join("broken/config.json")).unwrap();
    let inside = "--model_name_or_path=out/checkpoint-1";
    for (more, message) in [
        ("--dataset_name=no.jsonl", "`no.jsonl`: no such"),
        ("--model_name_or_path=./nothing", "`./nothing`: no such model folder"),
        ("--model_name_or_path=broken", "tokenizer.json is missing"),
        (
            "--model_name_or_path=broken --tokenizer_name_or_path=base",
            "broken: no model.safetensors",
        ),
        (
            inside,
            "`model_name_or_path: out/checkpoint-1` is in out/checkpoint-1, which overwrite_output_dir removes",
        ),
    ] {
        let (code, out, err) = train(more);
        assert_eq!(code, Some(FAILED), "{more}: {out}{err}");
        assert!(err.contains(message), "{more}: {err}");
        for step in [1, 2] {
            assert!(
                at.join(format!("out/checkpoint-{step}/model.safetensors")).is_file(),
                "{more}"
            );
        }
    }
    write(&at, "out/model_ema.safetensors", "the user's");
    fs::create_dir(at.join("out/checkpoint-7")).unwrap();
    write(&at, "out/checkpoint-7/trainer_state.json", "of another program");
    let (code, out, err) = train("--max_steps=1");
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(!at.join(LAST).exists() && at.join("out/checkpoint-1").is_dir());
    assert!(at.join("out/model_ema.safetensors").is_file());
    assert!(at.join("out/checkpoint-7/trainer_state.json").is_file());
}
