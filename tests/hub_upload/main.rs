//! `push_to_hub` and `favonius push`, with a local stand-in for the hub.

#[path = "../common/mod.rs"]
mod common;
mod stand_in;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use common::*;
use sha2::{Digest, Sha256};
use stand_in::{Commit, SHA, Sent, StandIn, TEAM, TOKEN, USER};

/// Settings of a short run without evaluation.
const SHORT: [&str; 5] = [
    "--max_steps=2",
    "--eval_strategy=no",
    "--do_eval=false",
    "--logging_steps=1",
    "--report_to=none",
];

/// The demo's world, the stand-in hub, and an empty `HF_HOME`.
struct Scene {
    world: PathBuf,
    hub: StandIn,
}

/// The exit code and the output of a program.
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Scene {
    fn new(name: &str) -> Self {
        Scene { world: world(name), hub: StandIn::start() }
    }

    fn path(&self, name: &str) -> String {
        self.world.join(name).display().to_string()
    }

    /// Runs the program with the user's token and the environment variables `settings`.
    fn run_with(&self, arguments: &[&str], settings: &[(&str, &str)]) -> Ended {
        self.end(favonius().args(arguments), settings)
    }

    /// Like `run_with`, for any command that starts the program, such as mpirun.
    fn end(&self, program: &mut Command, settings: &[(&str, &str)]) -> Ended {
        let output = program
            .env_remove("HF_HUB_OFFLINE")
            .env_remove("HF_TOKEN_PATH")
            .env_remove("HF_HUB_CACHE")
            .env("NO_PROXY", "127.0.0.1")
            .env("HF_ENDPOINT", &self.hub.endpoint)
            .env("HF_HOME", self.world.join("home"))
            .env("HF_TOKEN", TOKEN)
            .env("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "1")
            .env("HF_XET_CLIENT_RETRY_BASE_DELAY", "10ms")
            .envs(settings.iter().copied())
            .output()
            .expect("the program starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ended { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        self.run_with(arguments, &[])
    }

    /// Runs `favonius sft` with the output folder `sft` and the overrides `more`.
    fn sft(&self, more: &[&str], settings: &[(&str, &str)]) -> Ended {
        let recipe = self.path("sft.yaml");
        let arguments: Vec<&str> =
            ["sft", &recipe].into_iter().chain(SHORT).chain(more.iter().copied()).collect();
        self.run_with(&arguments, settings)
    }
}

impl Ended {
    #[track_caller]
    fn well(&self) -> &Self {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        self
    }

    #[track_caller]
    fn says(&self, parts: &[&str]) {
        for part in parts {
            assert!(
                self.out.contains(part) || self.err.contains(part),
                "`{part}` is not in:\n{}{}",
                self.out,
                self.err
            );
        }
    }
}

/// Compares each file of a commit with the file in the run's folder.
#[track_caller]
fn assert_same_files(commit: &Commit, folder: &Path) {
    for (path, sent) in &commit.files {
        let here =
            std::fs::read(folder.join(path)).unwrap_or_else(|_| panic!("{path} is not here"));
        match sent {
            Sent::Whole(base64) => {
                let there = base64::engine::general_purpose::STANDARD.decode(base64).unwrap();
                assert!(there == here, "{path} differs from the uploaded file");
            }
            Sent::ByHash { oid, size } => {
                assert_eq!(
                    (oid, *size),
                    (&hex(&Sha256::digest(&here)), here.len() as u64),
                    "{path}"
                );
            }
        }
    }
}

/// Whether a shard describes the file with this SHA-256. A shard stores a hash as four
/// little-endian words.
fn names_file(shard: &[u8], sha256: &[u8]) -> bool {
    let words: Vec<u8> = sha256.chunks(8).flat_map(|word| word.iter().rev().copied()).collect();
    shard.windows(words.len()).any(|window| window == words)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_finished_model_is_uploaded_with_its_card() {
    let scene = Scene::new("hub-upload");
    let own = [
        "--push_to_hub=true",
        "--hub_model_id=chat-model",
        "--hub_private_repo=true",
        "--hub_strategy=every_save",
        &format!("--hub_token={TOKEN}"),
        "--report_to=tensorboard",
        "--save_strategy=steps",
        "--save_steps=1",
    ];
    let ended = scene.sft(&own, &[("HF_TOKEN", "")]);
    ended.well().says(&[
        "`hub_strategy: every_save`: the model is uploaded once, at the end",
        "/tester/chat-model",
        "the model is on the hub",
    ]);
    let folder = scene.world.join("sft");
    assert!(folder.join("checkpoint-2/optimizer.safetensors").is_file());
    let plan = std::fs::read_to_string(folder.join("plan.json")).unwrap();
    assert!(plan.contains("hub_token") && !plan.contains(TOKEN), "the token is in plan.json");
    {
        let state = scene.hub.state();
        let wanted = serde_json::json!({"type": "model", "name": "chat-model", "organization": USER,
            "private": true});
        assert_eq!(state.created, [wanted]);
        let [commit] = state.commits.as_slice() else { panic!("{:?}", state.commits) };
        assert_eq!(commit.repository, "tester/chat-model");
        assert_eq!(
            (commit.revision.as_str(), commit.summary.as_str()),
            ("main", "End of training")
        );
        let (events, files): (Vec<&str>, Vec<&str>) =
            commit.files.keys().map(String::as_str).partition(|path| path.starts_with("runs/"));
        assert!(!events.is_empty(), "TensorBoard files are missing");
        assert_eq!(
            files,
            [
                "README.md",
                "all_results.json",
                "config.json",
                "generation_config.json",
                "model.safetensors",
                "special_tokens_map.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "train_results.json",
                "trainer_state.json"
            ]
        );
        assert_same_files(commit, &folder);
        assert!(matches!(commit.files["model.safetensors"], Sent::ByHash { .. }));
        assert!(matches!(commit.files["README.md"], Sent::Whole(_)));
        let card = std::fs::read_to_string(folder.join("README.md")).unwrap();
        assert!(
            card.starts_with("---\n") && card.contains("model-index:\n- name: chat-model"),
            "{card}"
        );
        let digest = Sha256::digest(std::fs::read(folder.join("model.safetensors")).unwrap());
        assert!(state.xorb_bytes > 0, "no weights were uploaded");
        assert!(
            state.shards.iter().any(|shard| names_file(shard, &digest)),
            "no shard has the weights"
        );
    }
    let again = scene.sft(&own, &[("HF_TOKEN", "")]);
    again.well().says(&["holds a finished run; nothing to do"]);
    assert_eq!(scene.hub.state().commits.len(), 1);
}

#[test]
fn each_stage_of_a_pipeline_is_uploaded_to_its_own_repository() {
    let scene = Scene::new("hub-pipeline");
    let pipeline = scene.path("pipeline.yaml");
    let arguments: Vec<&str> =
        ["run", &pipeline, "--push_to_hub=true"].into_iter().chain(SHORT).collect();
    scene.run(&arguments).well();
    let state = scene.hub.state();
    let commits: Vec<&str> = state.commits.iter().map(|c| c.repository.as_str()).collect();
    assert_eq!(commits, ["tester/sft", "tester/dpo"]);
    assert_same_files(&state.commits[1], &scene.world.join("dpo"));
    let asked: Vec<&str> = state.requests.iter().map(String::as_str).collect();
    let place = |what: &str| asked.iter().position(|request| request.contains(what)).unwrap();
    let created = asked.iter().filter(|request| request.contains("repos/create")).count();
    assert!(created >= 2 && place("/api/models/tester/dpo/auth-check") < place("commit"));
}

#[test]
fn without_access_the_run_does_not_start() {
    let scene = Scene::new("hub-refused");
    let push = "--push_to_hub=true";
    let foreign = "--hub_model_id=someone/model";
    let bad = "--hub_model_id=my model";
    type Case<'a> = (&'a str, &'a [&'a str], &'a [(&'a str, &'a str)], &'a [&'a str]);
    let cases: [Case; 6] = [
        (
            "",
            &[push],
            &[("HF_TOKEN", "")],
            &[
                "command line: `push_to_hub`: an upload needs a hub token, and none is set\n    --push_to_hub=true\n",
                "help: set HF_TOKEN or run `hf auth login`; `push_to_hub: false` trains without it",
            ],
        ),
        (
            "",
            &[push],
            &[("HF_TOKEN", "hf_old")],
            &["the hub refuses the token: Invalid user token."],
        ),
        (
            "read",
            &[push],
            &[],
            &["the token of `tester` has only read access", "with write access"],
        ),
        (
            "",
            &[push, foreign],
            &[],
            &[
                "`tester` may not write to `someone/model` on the hub: You may not create a model under \"someone\"",
            ],
        ),
        (
            "",
            &[push],
            &[("HF_HUB_OFFLINE", "1")],
            &["HF_HUB_OFFLINE is set, so nothing can be uploaded"],
        ),
        ("", &[push, bad], &[], &["`my model` is not a valid repository name"]),
    ];
    for (role, arguments, settings, said) in cases {
        scene.hub.state().role = role.to_owned();
        let ended = scene.sft(arguments, settings);
        assert_eq!(ended.code, Some(2), "{}{}", ended.out, ended.err);
        ended.says(said);
        assert_eq!(ended.out, "", "the program printed something before the error");
        assert!(!scene.world.join("sft").exists(), "{said:?}: a run was started");
    }
    let state = scene.hub.state();
    assert!(state.created.is_empty() && state.commits.is_empty());
}

#[test]
fn the_error_names_the_line_of_the_recipe() {
    let scene = Scene::new("hub-line");
    let recipe = scene.world.join("sft.yaml");
    let text = std::fs::read_to_string(&recipe).unwrap();
    let line = text.lines().count() + 1;
    std::fs::write(&recipe, format!("{text}push_to_hub: true\n")).unwrap();
    let ended = scene.sft(&[], &[("HF_TOKEN", "")]);
    assert_eq!(ended.code, Some(2));
    ended.says(&[&format!("sft.yaml:{line}:14: `push_to_hub`: an upload needs a hub token")]);
    scene.run_with(&["plan", &recipe.display().to_string()], &[("HF_TOKEN", "")]).well();
}

#[test]
fn a_failed_upload_loses_nothing() {
    let scene = Scene::new("hub-dies");
    std::fs::create_dir_all(scene.world.join("home")).unwrap();
    std::fs::write(scene.world.join("home/token"), format!("{TOKEN}\n")).unwrap();
    let nothing = [("HF_TOKEN", "")];
    let own = ["--push_to_hub=true", "--hub_revision=v1"];
    scene.hub.state().dies_at_weights = true;
    let folder = scene.path("sft");
    let ended = scene.sft(&own, &nothing);
    assert_eq!(ended.code, Some(1), "{}{}", ended.out, ended.err);
    ended.says(&[
        &format!("the model is in {folder}, but it could not be uploaded to tester/sft: "),
        &format!("help: `favonius push {folder} --to tester/sft --revision v1` uploads it"),
    ]);
    assert!(!ended.err.contains("WARN") && !ended.err.contains("ERROR"), "{}", ended.err);
    assert!(scene.world.join("sft/model.safetensors").is_file());
    assert!(scene.hub.state().commits.is_empty());

    // The same command uploads the model and does not train again.
    scene.hub.state().dies_at_weights = false;
    let weights = std::fs::metadata(scene.world.join("sft/model.safetensors")).unwrap();
    let ended = scene.sft(&own, &nothing);
    ended.well().says(&["the model is on the hub"]);
    let now = std::fs::metadata(scene.world.join("sft/model.safetensors")).unwrap();
    assert_eq!(weights.modified().unwrap(), now.modified().unwrap(), "it was trained again");

    // So does `favonius push`, to the repository of the recipe or to another one.
    scene.run_with(&["push", &folder], &nothing).well().says(&["the model is on the hub"]);
    let there = format!("{TEAM}/other");
    let ended = scene.run(&["push", &folder, "--to", &there, "--private", "--revision=v2"]);
    ended.well().says(&["the model is on the hub"]);
    let state = scene.hub.state();
    let commits: Vec<(&str, &str)> =
        state.commits.iter().map(|c| (c.repository.as_str(), c.revision.as_str())).collect();
    assert_eq!(commits, [("tester/sft", "v1"), ("tester/sft", "v1"), ("team/other", "v2")]);
    for commit in &state.commits {
        assert_same_files(commit, &scene.world.join("sft"));
    }
    assert_eq!(state.created.last().unwrap()["private"], true);
    assert!(state.branches.contains("v1") && state.branches.contains("v2"));
}

#[test]
fn only_one_of_several_ranks_uploads() {
    if !can_run_ranks() {
        return;
    }
    let scene = Scene::new("hub-ranks");
    let recipe = scene.path("sft.yaml");
    let run = || {
        let mut job = job(2);
        job.args(["sft", &recipe, "--push_to_hub=true"]).args(SHORT).stdin(Stdio::null());
        scene.end(&mut job, &[])
    };
    scene.hub.state().dies_at_weights = true;
    let ended = run();
    assert_eq!(ended.code, Some(1), "{}{}", ended.out, ended.err);
    assert_eq!(ended.err.matches("` uploads it").count(), 1, "{}", ended.err);
    scene.hub.state().dies_at_weights = false;
    run().well().says(&["the model is on the hub"]);
    let state = scene.hub.state();
    assert_eq!(state.commits.len(), 1);
    assert_same_files(&state.commits[0], &scene.world.join("sft"));
    let asked = state.requests.iter().filter(|request| request.contains("whoami")).count();
    assert_eq!(asked, 2, "one rank checks access, once per run");
}

#[test]
fn only_finished_runs_are_pushed() {
    let scene = Scene::new("hub-unfinished");
    let ended = scene.run(&["push", &scene.path("base")]);
    assert_eq!(ended.code, Some(1));
    ended.says(&["holds no finished run"]);
    let ended = scene.run_with(&["push", &scene.path("none")], &[("HF_TOKEN", "")]);
    assert_eq!(ended.code, Some(1));
    assert!(scene.hub.state().requests.is_empty());
}

#[test]
fn models_and_data_are_downloaded_into_the_hubs_cache() {
    let scene = Scene::new("hub-fetch");
    let shelf = scene.world.join("shelf");
    std::fs::create_dir_all(&shelf).unwrap();
    let rows = "{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}, {\"role\": \"assistant\", \"content\": \"Hi\"}]}\n";
    std::fs::write(shelf.join("train.jsonl"), rows.repeat(32)).unwrap();
    {
        let mut state = scene.hub.state();
        state.shelves.insert("models/team/base".into(), scene.world.join("base"));
        state.shelves.insert("datasets/team/chats".into(), shelf);
    }
    let recipe = scene.world.join("fetched.yaml");
    std::fs::write(&recipe, "model_name_or_path: team/base\ndataset_name: team/chats\n").unwrap();
    let (recipe, out) =
        (recipe.display().to_string(), format!("--output_dir={}", scene.path("out")));
    let arguments: Vec<&str> = ["sft", &recipe, &out].into_iter().chain(SHORT).collect();
    scene.run(&arguments).well();
    let cache = scene.world.join("home/hub");
    for (repository, file) in
        [("models--team--base", "model.safetensors"), ("datasets--team--chats", "train.jsonl")]
    {
        let folder = cache.join(repository);
        assert_eq!(std::fs::read_to_string(folder.join("refs/main")).unwrap(), SHA);
        let link = folder.join("snapshots").join(SHA).join(file);
        assert!(link.is_symlink() && link.is_file(), "{}", link.display());
        assert!(folder.join("blobs").join(format!("etag-of-{file}")).is_file());
    }
    let fresh = ["--resume_from_checkpoint=false", "--overwrite_output_dir=true"];
    let again: Vec<&str> = arguments.iter().copied().chain(fresh).collect();
    let before = scene.hub.state().requests.len();
    scene.run_with(&again, &[("HF_HUB_OFFLINE", "1")]).well();
    assert_eq!(
        scene.hub.state().requests.len(),
        before,
        "a request was sent although HF_HUB_OFFLINE is set"
    );

    let missing = format!("--model_name_or_path={TEAM}/nothing");
    let ended = scene.run(&["sft", &recipe, &out, &missing, fresh[0], fresh[1]]);
    assert_eq!(ended.code, Some(1));
    ended.says(&[
        "`team/nothing`: no such local model folder",
        "as a hub id (revision main) it cannot be fetched",
        "correct the id or the revision",
    ]);
}

#[test]
fn a_chat_template_may_be_that_of_a_repository() {
    let scene = Scene::new("hub-template");
    scene.hub.state().shelves.insert("models/team/base".into(), scene.world.join("base"));
    let ended = scene.sft(&["--chat_template_path=team/base"], &[]);
    ended.well().says(&["no tokens of `team/base` are added to the vocabulary"]);
    let folder = scene.world.join("home/hub/models--team--base/snapshots").join(SHA);
    let fetched = std::fs::read_dir(folder).unwrap().flatten();
    let fetched: Vec<_> = fetched.map(|entry| entry.file_name()).collect();
    assert!(!fetched.is_empty());
    let may_be_fetched = ["tokenizer_config.json", "chat_template.jinja"];
    assert!(fetched.iter().all(|name| may_be_fetched.iter().any(|own| name == own)), "{fetched:?}");
    let ended = scene.sft(&["--chat_template_path=team/nothing"], &[]);
    assert_eq!(ended.code, Some(2), "{}{}", ended.out, ended.err);
    ended.says(&["`chat_template_path`: `team/nothing`: no such local model folder"]);
}

#[test]
fn an_index_plants_no_file_outside_of_the_cache() {
    let scene = Scene::new("hub-plant");
    let (shelf, planted) = (scene.world.join("shelf"), scene.world.join("planted"));
    std::fs::create_dir_all(&shelf).unwrap();
    for entry in std::fs::read_dir(scene.world.join("base")).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "model.safetensors" {
            std::fs::copy(entry.path(), shelf.join(entry.file_name())).unwrap();
        }
    }
    let absolute = planted.join(".profile").display().to_string();
    for shard in [absolute.as_str(), "../../../../../planted/.profile"] {
        let index = serde_json::json!({"weight_map": {"x": shard}}).to_string();
        std::fs::write(shelf.join("model.safetensors.index.json"), index).unwrap();
        scene.hub.state().shelves.insert("models/team/base".into(), shelf.clone());
        let ended = scene.sft(&["--model_name_or_path=team/base"], &[]);
        assert_eq!(ended.code, Some(1), "{}{}", ended.out, ended.err);
        ended.says(&["which is not the name of a file in the model's folder"]);
        assert!(!planted.exists(), "{shard}");
        std::fs::remove_dir_all(scene.world.join("home")).unwrap();
    }
}
