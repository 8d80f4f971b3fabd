//! If a rank fails, is killed or hangs, the job ends soon and the message names the rank. The job
//! then resumes from its checkpoint and ends with the same bits.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::common::*;
use super::*;

/// The time within which a job must end after one rank failed.
const SOON: Duration = Duration::from_secs(10);

/// Starts a job and returns it when it has written a checkpoint of `step` or later.
fn start_until(mut job: Command, out: &Path, step: u64) -> Child {
    let job = job.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut job = job.spawn().expect("the job starts");
    while favonius::train::checkpoint::list(out).first().is_none_or(|(at, _)| *at < step) {
        if job.try_wait().unwrap().is_some() {
            panic!("the job ended too early: {}", text(&job.wait_with_output().unwrap()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    job
}

/// The process id of a rank, a child process of the job's mpirun.
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
    panic!("no process of rank {rank} was found");
}

fn signal(name: &str, process: &str) {
    assert!(Command::new("kill").args([name, process]).status().unwrap().success());
}

/// Waits until a job ends, at most `limit`. Returns its exit code and its output.
fn end_of(mut job: Child, limit: Duration) -> (Option<i32>, String) {
    let started = Instant::now();
    while job.try_wait().unwrap().is_none() {
        if started.elapsed() > limit {
            job.kill().unwrap();
            panic!(
                "the job did not end within {limit:?}: {}",
                text(&job.wait_with_output().unwrap())
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = job.wait_with_output().unwrap();
    eprintln!("the job ended after {:.1} s, {}", started.elapsed().as_secs_f64(), output.status);
    (output.status.code(), text(&output))
}

#[test]
fn a_run_killed_on_4_ranks_and_resumed_on_2_and_on_1_ends_with_the_same_bits() {
    if !can_run_ranks() {
        return;
    }
    let world = world("ranks-resume");
    let recipe = world.join("dpo.yaml");
    let run = long_run(&world, &recipe);
    let [whole, broken] = ["whole", "broken"].map(|name| world.join(name));
    run.train(4, &whole);
    // The recipe is always the one for 4 ranks. The program divides the rows of a step among the
    // ranks of each start.
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

/// Starts a run on 4 ranks, applies `harm` to the job after a checkpoint, and waits until the job
/// ends. Then checks that the resumed run ends with the same bits.
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
fn a_killed_rank_ends_the_job_and_the_message_names_it() {
    if !can_run_ranks() {
        return;
    }
    let (code, said) = harmed("killed", &[], SOON, |job| signal("-KILL", &process_of(job, 1)));
    assert!(code.is_none_or(|code| code != 0), "{said}");
    assert!(said.contains("rank 1 (process ") && said.contains("is gone"), "{said}");
    assert!(said.contains(", step "), "{said}");
}

#[test]
fn a_stopped_rank_ends_the_job_after_the_timeout_and_the_message_names_it() {
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
fn after_sigterm_to_one_rank_all_ranks_finish_the_step_and_save() {
    if !can_run_ranks() {
        return;
    }
    let (code, said) = harmed("sigterm", &[], SOON, |job| signal("-TERM", &process_of(job, 3)));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("stopped by a signal after step "), "{said}");
}

#[test]
fn after_a_panic_an_error_or_a_stall_the_message_has_rank_step_and_operation() {
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
