//! `--key=value` on the command line.

use super::*;
use crate::recipe::{Mixture, Warmup};

fn with(text: &str, stage: Stage, overrides: &[&str]) -> Recipe {
    match parse(&format!("{LEAST}{text}"), stage, overrides) {
        Ok(recipe) => recipe,
        Err(errors) => panic!("{errors}"),
    }
}

fn wrong(overrides: &[&str]) -> String {
    parse(LEAST, Stage::Dpo, overrides).expect_err("broken").to_string()
}

#[test]
fn an_override_replaces_or_adds() {
    let recipe =
        with("beta: 0.5\n", Stage::Dpo, &["--beta=0.01", "--learning-rate=5e-7", "--beta=0.2"]);
    assert_eq!((dpo(&recipe).beta, recipe.train.learning_rate), (0.2, 5e-7));
    let written: Vec<&str> = recipe.written.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(written, ["model_name_or_path", "dataset_name", "learning_rate", "beta"]);
}

#[test]
fn an_override_beats_another_spelling_in_the_file() {
    let recipe = with("max_seq_length: 2048\n", Stage::Sft, &["--max_length=512"]);
    assert_eq!(sft(&recipe).max_length, Some(512));
    let recipe = with("warmup_ratio: 0.1\n", Stage::Sft, &["--warmup_steps=5"]);
    assert_eq!(recipe.train.warmup, Warmup::Steps(5));
}

#[test]
fn sub_keys_and_entries_of_lists() {
    let recipe = with(
        "lr_scheduler_type: cosine_with_min_lr\n",
        Stage::Sft,
        &["--lr_scheduler_kwargs.min_lr_rate=0.1"],
    );
    assert_eq!(recipe.train.lr_scheduler_kwargs.min_lr_rate, Some(0.1));
    let text = "model_name_or_path: m\ndataset_mixture: {datasets: [{id: a}, {id: b}]}\n";
    let recipe = parse(
        text,
        Stage::Dpo,
        &["--dataset_mixture.datasets.1.id=./x.parquet", "--dataset_mixture.seed=7"],
    )
    .expect("good");
    let Mixture::Pooled { sets, seed, .. } = recipe.data.mixture else { panic!() };
    assert_eq!((sets[0].id.as_str(), sets[1].id.as_str(), seed), ("a", "./x.parquet", 7));
}

#[test]
fn data_sets_are_replaced_as_a_whole() {
    let text = "model_name_or_path: m\ndataset_mixer: {a.b: 1.0}\ndataset_splits: [train, test]\n";
    let ids =
        |overrides: &[&str]| match parse(text, Stage::Dpo, overrides).expect("good").data.mixture {
            Mixture::Mixer { train, .. } => {
                train.iter().map(|s| (s.id.clone(), s.fraction)).collect::<Vec<_>>()
            }
            Mixture::Named { train, .. } => vec![(train.id, train.fraction)],
            Mixture::Pooled { .. } | Mixture::Listed { .. } => panic!(),
        };
    assert_eq!(ids(&["--dataset_mixer={../x/y_1.0: 0.5}"]), [("../x/y_1.0".to_owned(), 0.5)]);
    assert_eq!(ids(&["--dataset_mixer.a.b=0.5"]), [("a.b".to_owned(), 0.5)]);
    assert_eq!(ids(&["--dataset_name=z"]), [("z".to_owned(), 1.0)]);
}

#[test]
fn jinja_needs_no_quotes() {
    let template = "{% for m in messages %}{{ m['content'] }}{% endfor %}";
    let recipe = with("", Stage::Sft, &[&format!("--chat_template={template}")]);
    assert_eq!(recipe.model.chat_template.as_deref(), Some(template));
}

#[test]
fn overrides_are_checked_as_the_file_is() {
    assert_eq!(
        wrong(&["--beta=-1"]),
        "command line: `beta` must be above 0, not `-1`\n    --beta=-1\n           ^^"
    );
    assert_eq!(
        wrong(&["--seed=1", "--bta=1"]),
        "command line: `bta` is not a known key\n    --bta=1\n      ^^^\n  help: did you mean `beta`?"
    );
    assert_eq!(
        wrong(&["beta=1"]),
        "command line: `beta=1` is not an override\n    beta=1\n    ^^^^^^\n  help: write --key=value, for example --learning_rate=5e-7"
    );
    assert!(wrong(&["--bf16"]).starts_with("command line: `--bf16` is not an override"));
    assert!(wrong(&["--optim=[a"]).starts_with("command line: this is not YAML: "));
    assert!(
        wrong(&["--model_name_or_path.x=1"])
            .starts_with("command line: `x` cannot be set: its parent is not a mapping")
    );
}

#[test]
fn errors_of_file_and_overrides_come_together() {
    let shown = parse(&format!("{LEAST}seed: x\n"), Stage::Dpo, &["--beta=0", "nonsense"])
        .expect_err("broken");
    let files: Vec<String> = shown.0.iter().map(|error| error.file.display().to_string()).collect();
    assert_eq!(files, ["r.yaml", "command line", "command line"]);
}
