//! Ranks over MPI: the same bits on any number of them, and a clean end when one fails.
//!
//! Real `mpirun` jobs of the program; they need Open MPI and `cargo test --features mpi`, and are skipped
//! with a message where one is missing.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::*;
use favonius::parallel::buckets::Layout;
use serde_json::{Value, json};

/// How soon a job must be over after one rank failed.
const SOON: Duration = Duration::from_secs(10);

fn finish(job: &mut Command) -> Output {
    job.stdin(Stdio::null()).output().expect("the job starts")
}

fn text(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// A world with rows of very unequal length: 4 to 250 tokens.
fn unequal_world(name: &str) -> PathBuf {
    let world = world(name);
    let words = |seed: u64, longest: u64| {
        let count = 1 + splitmix64(seed) % longest;
        let word = |i| {
            ["the", "cat", "sees", "a", "red", "ball", "today"]
                [(splitmix64(seed * 977 + i) % 7) as usize]
        };
        (0..count).map(word).collect::<Vec<_>>().join(" ")
    };
    let message = |role: &str, content: String| json!({"role": role, "content": content});
    let lines = |rows: &mut dyn Iterator<Item = Value>| {
        rows.map(|row| format!("{row}\n")).collect::<String>()
    };
    let longest = |i: u64| if i.is_multiple_of(5) { 40 } else { 4 };
    let chats = &mut (0..43).map(|i| {
        let turns =
            [message("user", words(2 * i, 6)), message("assistant", words(2 * i + 1, longest(i)))];
        json!({"messages": turns})
    });
    std::fs::write(world.join("chats.jsonl"), lines(chats)).unwrap();
    let pairs = &mut (0..43).map(|i| {
        let prompt = message("user", words(900 + 3 * i, longest(i + 2)));
        let side =
            |k: u64| json!([prompt, message("assistant", words(900 + 3 * i + k, longest(i + k)))]);
        json!({"chosen": side(1), "rejected": side(2)})
    });
    std::fs::write(world.join("pairs.jsonl"), lines(pairs)).unwrap();
    for (stage, data) in [("sft", "chats"), ("dpo", "pairs")] {
        let recipe = format!(
            "model_name_or_path: {0}/base\ndataset_name: {0}/{data}.jsonl\nmax_length: 128\n\
             learning_rate: 3.0e-3\nwarmup_ratio: 0.1\nreport_to: [none]\n",
            world.display()
        );
        std::fs::write(world.join(format!("{stage}-unequal.yaml")), recipe).unwrap();
    }
    world
}

/// A run that takes `micro_batches` of `rows` rows a step, however many ranks share them.
struct Run<'a> {
    recipe: &'a Path,
    stage: &'a str,
    rows: usize,
    micro_batches: usize,
    more: Vec<String>,
}

impl Run<'_> {
    fn arguments(&self, ranks: usize, out: &Path) -> Vec<String> {
        let mut arguments = vec![
            self.stage.to_string(),
            self.recipe.display().to_string(),
            format!("--output_dir={}", out.display()),
            format!("--per_device_train_batch_size={}", self.rows),
            format!("--gradient_accumulation_steps={}", self.micro_batches / ranks),
            "--quiet".into(),
        ];
        arguments.extend(self.more.iter().cloned());
        arguments
    }

    fn start(&self, ranks: usize, out: &Path) -> Command {
        let mut job = job(ranks);
        job.args(self.arguments(ranks, out));
        job
    }

    /// Trains on `ranks` ranks, and returns what was printed.
    fn train(&self, ranks: usize, out: &Path) -> String {
        let output = finish(&mut self.start(ranks, out));
        assert!(output.status.success(), "{ranks} rank(s): {}", text(&output));
        text(&output)
    }

    /// Trains on each number of ranks, and fails where the bits differ.
    fn assert_same_bits(&self, world: &Path, ranks: &[usize]) {
        let outs: Vec<PathBuf> =
            ranks.iter().map(|n| world.join(format!("{}-on-{n}", self.stage))).collect();
        for (ranks, out) in ranks.iter().zip(&outs) {
            self.train(*ranks, out);
        }
        for (ranks, out) in ranks.iter().zip(&outs).skip(1) {
            assert_same(&outs[0], out, &format!("{} on {ranks} ranks", self.stage));
        }
    }
}

fn settings(settings: &[&str]) -> Vec<String> {
    settings.iter().map(|setting| format!("--{setting}")).collect()
}

/// Fails unless final weights, the last checkpoint's optimizer state and the record are the same.
fn assert_same(a: &Path, b: &Path, what: &str) {
    let last = |out: &Path| favonius::train::checkpoint::list(out)[0].1.clone();
    let read = |path: PathBuf| std::fs::read(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    let same = |file: &str, a: &Path, b: &Path| {
        assert!(read(a.join(file)) == read(b.join(file)), "{what}: {file} differs");
    };
    same("model.safetensors", a, b);
    same("optimizer.safetensors", &last(a), &last(b));
    same("model.safetensors", &last(a), &last(b));
    let record = |out: &Path| {
        let own = out.display().to_string();
        record_without_times(out).to_string().replace(&own, "")
    };
    assert_eq!(record(a), record(b), "{what}");
}

const TWENTY_STEPS: [&str; 7] = [
    "max_steps=20",
    "logging_steps=1",
    "save_strategy=steps",
    "save_steps=20",
    "eval_strategy=steps",
    "eval_steps=8",
    "per_device_eval_batch_size=4",
];

#[test]
fn sft_gives_the_same_bits_on_1_2_4_and_16_ranks() {
    if !can_run_ranks() {
        return;
    }
    let world = world("ranks-sft");
    let recipe = world.join("sft.yaml");
    let base = format!("model_name_or_path={}", world.join("base").display());
    let mut more = settings(&TWENTY_STEPS);
    // 100 rows: the seventh step of an epoch has 4 micro-batches, and 12 of 16 ranks none.
    more.extend(settings(&[
        &base,
        "max_train_samples=100",
        "max_eval_samples=30",
        "packing=false",
    ]));
    let run = Run { recipe: &recipe, stage: "sft", rows: 1, micro_batches: 16, more };
    run.assert_same_bits(&world, &[1, 2, 4, 16]);
}

#[test]
fn dpo_gives_the_same_bits_on_1_2_4_and_16_ranks() {
    if !can_run_ranks() {
        return;
    }
    let world = world("ranks-dpo");
    let recipe = world.join("dpo.yaml");
    let base = format!("model_name_or_path={}", world.join("base").display());
    let mut more = settings(&TWENTY_STEPS);
    more.extend(settings(&[&base, "max_train_samples=100", "max_eval_samples=30"]));
    let run = Run { recipe: &recipe, stage: "dpo", rows: 1, micro_batches: 16, more };
    run.assert_same_bits(&world, &[1, 2, 4, 16]);
}

#[test]
fn unequal_lengths_short_micro_batches_and_any_optimizer_give_the_same_bits() {
    if !can_run_ranks() {
        return;
    }
    // 43 rows in micro-batches of 3: the last micro-batch has one row, the last step 3 of 12.
    for (stage, optimizer) in [("sft", "rmsprop"), ("dpo", "adamw_torch")] {
        let world = unequal_world(&format!("ranks-unequal-{stage}"));
        let recipe = world.join(format!("{stage}-unequal.yaml"));
        let optimizer = format!("optim={optimizer}");
        let more = [
            "max_steps=6",
            "logging_steps=2",
            "save_strategy=steps",
            "save_steps=3",
            "weight_decay=0.1",
        ];
        let mut more = settings(&more);
        more.extend(settings(&[&optimizer, "gradient_checkpointing=true", "max_grad_norm=0.5"]));
        // Two or three parts of a micro-batch, which go to other ranks.
        more.extend(settings(&["max_tokens_per_microbatch=300"]));
        let run = Run { recipe: &recipe, stage, rows: 3, micro_batches: 12, more };
        // 3 divides no bucket.
        run.assert_same_bits(&world, &[1, 3, 4, 12]);
    }
}

#[test]
fn bfloat16_with_its_sharded_master_gives_the_same_bits() {
    if !can_run_ranks() {
        return;
    }
    let world = world("ranks-bf16");
    let recipe = world.join("sft.yaml");
    let base = format!("model_name_or_path={}", world.join("base").display());
    let more = [
        &base,
        "bf16=true",
        "max_steps=4",
        "save_strategy=steps",
        "save_steps=2",
        "eval_strategy=no",
    ];
    let run =
        Run { recipe: &recipe, stage: "sft", rows: 2, micro_batches: 4, more: settings(&more) };
    run.assert_same_bits(&world, &[1, 2, 4]);
}

#[test]
fn a_real_model_gives_the_same_bits() {
    if !can_run_ranks() {
        return;
    }
    let (Some(model), Some(chats), Some(pairs)) = (
        asset("models/stories260k"),
        asset("data/ultrachat_200k_like"),
        asset("data/ultrafeedback_binarized_like"),
    ) else {
        return;
    };
    let world = scratch("ranks-stories260k");
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/stories260k");
    let mut more = settings(&TWENTY_STEPS);
    more.extend(settings(&[
        "max_eval_samples=16",
        "max_length=128",
        "max_train_samples=200",
        "report_to=none",
    ]));
    let data = |folder: &Path| format!("--dataset_mixer={{\"{}\": 1.0}}", folder.display());
    let mut sft = Run {
        recipe: &recipes.join("sft.yaml"),
        stage: "sft",
        rows: 1,
        micro_batches: 16,
        more: more.clone(),
    };
    sft.more.extend([data(&chats), format!("--model_name_or_path={}", model.display())]);
    sft.assert_same_bits(&world, &[1, 2, 4, 16]);
    let mut dpo =
        Run { recipe: &recipes.join("dpo.yaml"), stage: "dpo", rows: 1, micro_batches: 16, more };
    let policy = world.join("sft-on-1");
    dpo.more.extend([data(&pairs), format!("--model_name_or_path={}", policy.display())]);
    dpo.assert_same_bits(&world, &[1, 2, 4, 16]);
}

/// A DPO run with a checkpoint every second step.
fn long_run<'a>(world: &Path, recipe: &'a Path) -> Run<'a> {
    let base = format!("model_name_or_path={}", world.join("base").display());
    let more = [
        &base,
        "max_steps=60",
        "logging_steps=3",
        "save_strategy=steps",
        "save_steps=2",
        "eval_strategy=no",
        "max_train_samples=100",
    ];
    Run { recipe, stage: "dpo", rows: 2, micro_batches: 8, more: settings(&more) }
}

/// Starts a job and returns it when it has written a checkpoint of `step` or later.
fn start_until(mut job: Command, out: &Path, step: u64) -> Child {
    let job = job.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut job = job.spawn().expect("the job starts");
    while favonius::train::checkpoint::list(out).first().is_none_or(|(at, _)| *at < step) {
        if job.try_wait().unwrap().is_some() {
            panic!("it ended too soon: {}", text(&job.wait_with_output().unwrap()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    job
}

/// The process of a rank of a job, by mpirun's process.
fn process_of(job: &Child, rank: usize) -> String {
    for entry in std::fs::read_dir("/proc").expect("Linux").flatten() {
        let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let stat = String::from_utf8_lossy(&read("stat")).into_owned();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1));
        let variable = format!("OMPI_COMM_WORLD_RANK={rank}");
        let is_rank = || read("environ").split(|b| *b == 0).any(|v| v == variable.as_bytes());
        if parent == Some(&job.id().to_string()) && is_rank() {
            return entry.file_name().to_string_lossy().into_owned();
        }
    }
    panic!("rank {rank} is not among the processes");
}

fn signal(name: &str, process: &str) {
    assert!(Command::new("kill").args([name, process]).status().unwrap().success());
}

/// The end of a job after something was done to it: within `limit`, with an exit code, and in words.
fn end_of(mut job: Child, limit: Duration) -> (Option<i32>, String) {
    let started = Instant::now();
    while job.try_wait().unwrap().is_none() {
        if started.elapsed() > limit {
            job.kill().unwrap();
            panic!("not over after {limit:?}: {}", text(&job.wait_with_output().unwrap()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = job.wait_with_output().unwrap();
    eprintln!("over after {:.1} s, {}", started.elapsed().as_secs_f64(), output.status);
    (output.status.code(), text(&output))
}

#[test]
fn killed_on_4_ranks_resumed_on_2_and_on_1_it_ends_with_the_same_bits() {
    if !can_run_ranks() {
        return;
    }
    let world = world("ranks-resume");
    let recipe = world.join("dpo.yaml");
    let run = long_run(&world, &recipe);
    let [whole, broken] = ["whole", "broken"].map(|name| world.join(name));
    run.train(4, &whole);
    // The same recipe each time, written for 4 ranks: the program shares the rows of a step anew.
    let command = |ranks: usize| {
        let mut job = job(ranks);
        job.args(run.arguments(4, &broken));
        job
    };
    for (ranks, step) in [(4, 10), (2, 30)] {
        let mut killed = start_until(command(ranks), &broken, step);
        let processes: Vec<String> = (0..ranks).map(|rank| process_of(&killed, rank)).collect();
        killed.kill().unwrap();
        for process in processes {
            let _ = Command::new("kill").args(["-9", &process]).status();
        }
        killed.wait().unwrap();
    }
    let output = finish(&mut command(1));
    assert!(output.status.success(), "{}", text(&output));
    let said = text(&output);
    assert!(
        said.contains("gradient_accumulation_steps becomes 8 to keep 16 rows a step"),
        "{said}"
    );
    assert_same(&whole, &broken, "killed twice");
    std::fs::remove_file(broken.join("favonius.json")).unwrap();
    let refused = finish(&mut command(3));
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused);
    assert!(said.contains("3 ranks cannot share them evenly; start 1, 2, 4, 8 ranks"), "{said}");
}

/// Runs on 4 ranks, lets `harm` loose on the job after a checkpoint, checks the end, and that the run goes on to
/// the same bits.
fn harmed(
    name: &str,
    options: &[&str],
    limit: Duration,
    harm: impl FnOnce(&Child),
) -> (Option<i32>, String) {
    let world = world(&format!("ranks-{name}"));
    let recipe = world.join("dpo.yaml");
    let mut run = long_run(&world, &recipe);
    let [whole, broken] = ["whole", "broken"].map(|name| world.join(name));
    run.train(1, &whole);
    let more = run.more.clone();
    run.more.extend(options.iter().map(|option| option.to_string()));
    let job = start_until(run.start(4, &broken), &broken, 6);
    harm(&job);
    let end = end_of(job, limit);
    run.more = more;
    run.train(2, &broken);
    assert_same(&whole, &broken, name);
    end
}

#[test]
fn a_killed_rank_ends_the_job_and_is_named() {
    if !can_run_ranks() {
        return;
    }
    let (code, said) = harmed("killed", &[], SOON, |job| signal("-KILL", &process_of(job, 1)));
    assert!(code.is_none_or(|code| code != 0), "{said}");
    assert!(said.contains("rank 1 (process ") && said.contains("is gone"), "{said}");
    assert!(said.contains(", step "), "{said}");
}

#[test]
fn a_stopped_rank_ends_the_job_after_the_timeout_and_is_named() {
    if !can_run_ranks() {
        return;
    }
    let limit = Duration::from_secs(5 + 5);
    let (code, said) = harmed("stopped", &["--collective-timeout=5"], limit, |job| {
        signal("-STOP", &process_of(job, 2));
    });
    assert!(code.is_some_and(|code| code != 0), "{said}");
    assert!(said.contains("rank 2 (process ") && said.contains("is stopped"), "{said}");
    assert!(said.contains(", step "), "{said}");
}

#[test]
fn sigterm_to_one_rank_lets_all_finish_the_step_and_save() {
    if !can_run_ranks() {
        return;
    }
    let (code, said) = harmed("sigterm", &[], SOON, |job| signal("-TERM", &process_of(job, 3)));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("stopped by a signal after step "), "{said}");
}

#[test]
fn panics_errors_and_stalls_end_the_job_with_rank_step_and_work() {
    if !can_run_ranks() {
        return;
    }
    let world = world("ranks-drills");
    let recipe = world.join("dpo.yaml");
    let mut run = long_run(&world, &recipe);
    run.more.push("--collective-timeout=4".into());
    let cases = [
        ("panic:1:5", 101, "rank 1 of 4, step 5, ", "panicked"),
        ("error:2:5", 1, "rank 2 of 4, step 5, ", "a drill"),
        ("stall:3:5", 110, "rank 3 of 4, step 5, ", "has reached no collective for 4 s"),
    ];
    for (drill, code, place, what) in cases {
        let out = world.join(drill.replace(':', "-"));
        let mut job = run.start(4, &out);
        job.env("FAVONIUS_DRILL", drill);
        let (found, said) = end_of(start_until(job, &out, 4), SOON);
        assert_eq!(found, Some(code), "{drill}: {said}");
        let line = said.lines().find(|line| line.contains(place) && line.contains(what));
        assert!(line.is_some(), "{drill}: {said}");
        let messages = said.lines().filter(|line| line.starts_with("error: rank ")).count();
        assert_eq!(messages, 1, "{drill}: {said}");
        assert!(
            favonius::train::checkpoint::newest(&out)
                .0
                .is_some_and(|p| p.ends_with("checkpoint-4"))
        );
    }
}

#[test]
fn what_is_sent_is_what_the_formula_says() {
    if !can_run_ranks() {
        return;
    }
    let world = world("ranks-bytes");
    let recipe = world.join("sft.yaml");
    let base = world.join("base");
    let model = format!("model_name_or_path={}", base.display());
    let more = [&model, "max_steps=3", "max_train_samples=64", "packing=false", "eval_strategy=no"];
    let run =
        Run { recipe: &recipe, stage: "sft", rows: 2, micro_batches: 8, more: settings(&more) };
    let device = burn::tensor::Device::flex();
    let dtype = burn::tensor::DType::F32;
    let model = favonius::model::decoder::Decoder::load(&base, &device, dtype, |_, _| ()).unwrap();
    for ranks in [2, 4] {
        let said = run.train(ranks, &world.join(format!("on-{ranks}")));
        let sent = Layout::of(&model, ranks).bytes_sent(8 / ranks, 4);
        let line = format!("rank 0 sent {sent} bytes of gradients and weights a step");
        assert!(said.contains(&line), "{ranks} ranks: not `{line}` in {said}");
        // But for padding it is the formula with the number of weights.
        let weights: usize = model.parameters().iter().map(|p| p.len()).sum();
        // The embedding's gradient goes row by row, unless it is the head's too.
        let gradients =
            weights - if model.lm_head.is_some() { model.embed_tokens.len() } else { 0 };
        let bare = (4 * gradients * (8 / ranks) + 4 * weights) * (ranks - 1) / ranks;
        let padding = sent as f64 / bare as f64;
        assert!((1.0..1.3).contains(&padding), "{sent} bytes sent, {bare} without padding");
    }
}

#[test]
fn collectives_agree_with_their_serial_oracle() {
    if !can_run_ranks() {
        return;
    }
    for ranks in [1, 3, 4] {
        let output = finish(job(ranks).args(["dist-check", "--megabytes", "1"]));
        let said = text(&output);
        assert!(output.status.success(), "{said}");
        assert!(said.contains("agree with the serial result to the bit"), "{said}");
        assert!(said.contains("all-gather: ") && said.contains("GB/s"), "{said}");
        assert_eq!(said.matches("rank(s)").count(), 1, "only rank 0 prints: {said}");
    }
}

#[test]
fn ranks_that_were_started_differently_are_refused_together() {
    if !can_run_ranks() {
        return;
    }
    let world = world("ranks-differ");
    let recipe = world.join("dpo.yaml");
    let run = long_run(&world, &recipe);
    let arguments = run.arguments(2, &world.join("out"));
    let mut mixed = job(2);
    mixed.args(&arguments).arg(":");
    mixed.args(["-n", "1"]).arg(favonius().get_program()).args(&arguments).arg("--beta=0.7");
    let output = finish(&mut mixed);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output);
    assert!(said.contains("rank 2 has another recipe or overrides than rank 0"), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{said}");
}

#[test]
fn a_plan_tells_buckets_and_shards_and_refuses_idle_ranks() {
    let world = world("ranks-plan");
    let recipe = world.join("dpo.yaml").display().to_string();
    let model = format!("--model_name_or_path={}", world.join("base").display());
    let plan = |more: &[&str]| run_program(&[&["plan", &recipe, &model][..], more].concat());
    let (code, out, err) = plan(&["--ranks=4", "--per_device_train_batch_size=2"]);
    assert_eq!(code, Some(0), "{err}");
    for line in ["buckets model.layers.0 … model.layers.", "shards of", "sent by a rank a step"] {
        assert!(out.contains(line), "{out}");
    }
    assert!(
        out.lines().any(|line| line.split_whitespace().eq(["rows", "a", "step", "8"])),
        "{out}"
    );
    let (code, _, err) =
        plan(&["--ranks=16", "--per_device_train_batch_size=2", "--max_train_samples=20"]);
    assert_eq!(code, Some(1));
    assert!(
        err.contains(
            "too few for 16 ranks: start at most 10, or set per_device_train_batch_size to 1"
        ),
        "{err}"
    );
}
