//! The file of `favonius run`.

use std::path::PathBuf;

use super::*;
use crate::recipe::Pipeline;

/// The errors of a pipeline in a folder with `sft.yaml`.
fn wrong(text: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("sft.yaml"), LEAST).expect("a file");
    let shown =
        Pipeline::parse(text, &folder.path().join("p.yaml")).expect_err("broken").to_string();
    shown.replace(&format!("{}/", folder.path().display()), "")
}

#[test]
fn stages_with_overrides() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["sft.yaml", "dpo.yaml", "p.yaml"] {
        std::fs::write(folder.path().join(name), LEAST).expect("a file");
    }
    let path = folder.path().join("p.yaml");
    std::fs::write(&path, "stages:\n- kind: sft\n  recipe: sft.yaml\n- kind: dpo\n  recipe: dpo.yaml\n  overrides:\n    beta: 0.2\n    loss_type: [ipo]\n    run_name: \"a: b\"\n").expect("a file");
    let pipeline = Pipeline::load(&path).expect("a pipeline");
    let shown: Vec<_> =
        pipeline.stages.iter().map(|s| (s.kind, s.recipe.clone(), s.line)).collect();
    assert_eq!(
        shown,
        [
            (Stage::Sft, folder.path().join("sft.yaml"), 2),
            (Stage::Dpo, folder.path().join("dpo.yaml"), 4)
        ]
    );
    assert_eq!(
        pipeline.stages[1].overrides,
        ["--beta=0.2", "--loss_type=[ipo]", "--run_name=\"a: b\""]
    );
    let recipe =
        Recipe::load(&pipeline.stages[1].recipe, Stage::Dpo, &pipeline.stages[1].overrides)
            .expect("a recipe");
    assert_eq!((dpo(&recipe).beta, recipe.train.run_name.as_deref()), (0.2, Some("a: b")));
}

#[test]
fn what_can_be_wrong() {
    assert_eq!(
        wrong("stage: 1\n"),
        "p.yaml: `stages` is missing\n  help: write stages: [{kind: sft, recipe: sft.yaml}, {kind: dpo, recipe: dpo.yaml}]\n\
        p.yaml:1:1: `stage` is not a known key\n    stage: 1\n    ^^^^^\n  help: did you mean `stages`?"
    );
    assert_eq!(
        wrong("stages: []\n").lines().next(),
        Some("p.yaml:1:9: `stages` needs a list of stages, not a list")
    );
    let heads = |text: &str| {
        wrong(text)
            .lines()
            .filter(|line| line.starts_with("p.yaml"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        heads(
            "stages:\n- {recipe: sft.yaml}\n- {kind: sft}\n- {kind: grpo, recipe: sft.yaml}\n- {kind: sft, recipe: no.yaml, x: 1}\n- {kind: sft, recipe: sft.yaml, overrides: [1]}\n"
        ),
        [
            "p.yaml:2:3: this stage has no `kind`",
            "p.yaml:3:3: this stage has no `recipe`",
            "p.yaml:4:10: `stages.2.kind: grpo` is not supported",
            "p.yaml:5:23: no recipe at no.yaml",
            "p.yaml:5:32: `stages.3.x` is not a known key",
            "p.yaml:6:44: `overrides` must be a mapping of keys to values, not a list",
        ]
    );
}

#[test]
fn the_pipelines_of_this_project() {
    let recipes = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("recipes");
    for name in [
        "zephyr-7b-beta/pipeline-published",
        "zephyr-7b-beta/pipeline-handbook",
        "stories260k/pipeline",
        "smollm2-135m/pipeline",
    ] {
        let pipeline = Pipeline::load(&recipes.join(format!("{name}.yaml")))
            .unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(pipeline.stages.len(), 2, "{name}");
        for stage in &pipeline.stages {
            Recipe::load(&stage.recipe, stage.kind, &stage.overrides)
                .unwrap_or_else(|errors| panic!("{errors}"));
        }
    }
}
