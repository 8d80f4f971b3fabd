use std::fs;

use super::*;
use crate::report::tensorboard::TensorBoard;

fn row(step: u64, values: &[(&str, f64)]) -> LogRow {
    let values = values.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
    LogRow { step, epoch: step as f64 / 4.0, values }
}

fn write_state(folder: &Path, rows: &[LogRow]) {
    fs::create_dir_all(folder).unwrap();
    let global_step = rows.last().unwrap().step;
    let log_history = rows.to_vec();
    let state = TrainerState { global_step, max_steps: 8, log_history, ..Default::default() };
    state.write(&folder.join(STATE)).unwrap();
}

fn read(folder: &Path) -> RunRecord {
    RunRecord::read(folder, "run".into()).unwrap()
}

#[test]
fn a_finished_run_is_its_final_state() {
    let folder = tempfile::tempdir().unwrap();
    write_state(&folder.path().join("checkpoint-4"), &[row(4, &[("loss", 0.5)])]);
    write_state(folder.path(), &[row(8, &[("loss", 0.25)]), row(8, &[("train_runtime", 1.0)])]);
    let run = read(folder.path());
    assert_eq!((run.step, run.max_steps, run.last("loss")), (8, 8, Some((8, 0.25))));
    assert!(run.is_finished());
    let file = read(&folder.path().join("checkpoint-4").join(STATE));
    assert_eq!((file.step, file.is_finished()), (4, false));
    let last = folder.path().join("checkpoint-8");
    write_state(&last, &[row(8, &[("loss", 0.25)])]);
    assert!(read(&last).is_finished(), "all steps are done, with a summary or without");
}

#[test]
fn a_run_in_progress_is_its_newest_checkpoint_and_what_was_logged_since() {
    let folder = tempfile::tempdir().unwrap();
    let rows: Vec<LogRow> = (1..=6).map(|step| row(step, &[("loss", 1.0 / step as f64)])).collect();
    let mut board = TensorBoard::open(&folder.path().join("runs"), None, &[]).unwrap();
    rows.iter().for_each(|row| board.log(row).unwrap());
    board.log(&row(6, &[("eval_loss", 0.125)])).unwrap();
    assert_eq!(read(folder.path()).rows.len(), 7, "event files alone");

    write_state(&folder.path().join("checkpoint-2"), &rows[..2]);
    write_state(&folder.path().join("checkpoint-10"), &rows[..4]);
    let run = read(folder.path());
    assert_eq!((run.step, run.max_steps, run.is_finished()), (6, 8, false));
    let steps: Vec<u64> = run.rows.iter().map(|row| row.step).collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6, 6]);
    assert_eq!(run.last("eval_loss"), Some((6, 0.125)));
    assert_eq!(run.rows[4].epoch, 1.25);
}

/// Writes an event file as TRL does, in a sub-folder for its start, with these losses from step
/// 1 on.
fn write_events(folder: &Path, start: u64, losses: &[f64]) {
    let events = folder.join(format!("runs/start{start}"));
    let mut board = TensorBoard::open(&events, None, &[]).unwrap();
    for (index, loss) in losses.iter().enumerate() {
        board.log(&row(index as u64 + 1, &[("loss", *loss)])).unwrap();
    }
    fs::rename(board.path(), events.join(format!("events.out.tfevents.{start:010}.h.1.0")))
        .unwrap();
}

/// A longer run was trained into the same folder before.
#[test]
fn a_finished_run_has_no_rows_of_its_predecessor() {
    let folder = tempfile::tempdir().unwrap();
    write_events(folder.path(), 1, &[9.0; 12]);
    write_events(folder.path(), 2, &[0.5; 6]);
    let rows = [row(6, &[("loss", 0.5)]), row(6, &[("train_runtime", 1.0)])];
    write_state(folder.path(), &rows);
    let run = read(folder.path());
    assert_eq!((run.step, run.rows.len(), run.last("loss")), (6, 2, Some((6, 0.5))));
    let rows: Vec<LogRow> = (1..=8).map(|step| row(step, &[("loss", 0.5)])).collect();
    write_state(folder.path(), &rows);
    assert_eq!(read(folder.path()).rows.len(), 8, "all planned steps are done");
}

#[test]
fn a_run_in_progress_has_no_rows_of_its_predecessor() {
    let folder = tempfile::tempdir().unwrap();
    write_events(folder.path(), 1, &[9.0; 12]);
    let rows: Vec<LogRow> = (1..=2).map(|step| row(step, &[("loss", 0.5)])).collect();
    write_state(&folder.path().join("checkpoint-2"), &rows);
    let planned = read(folder.path());
    assert_eq!((planned.step, planned.rows.len()), (8, 8), "never beyond the plan");
    write_events(folder.path(), 2, &[0.5; 4]);
    let run = read(folder.path());
    assert_eq!((run.step, run.is_finished(), run.rows.len()), (4, false, 4));
    assert_eq!(run.last("loss"), Some((4, 0.5)));
}

#[test]
fn event_files_are_read_where_the_plan_puts_them() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("out/dpo");
    let fact = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let written = vec![fact("output_dir", "out/dpo"), fact("logging_dir", "logs")];
    RunFacts { stage: "dpo".into(), written, ..RunFacts::default() }.write(&folder).unwrap();
    let error = RunRecord::read(&folder, "a".into()).unwrap_err().to_string();
    assert!(error.contains("holds no run") && error.ends_with("runs"), "{error}");
    let logs = place.path().join("logs");
    for (run, step) in [("another", 4), (&run_id(&folder), 3)] {
        let mut board = TensorBoard::open(&logs, Some(run), &[]).unwrap();
        board.log(&row(step, &[("loss", 0.5)])).unwrap();
    }
    assert_eq!(read(&folder).last("loss"), Some((3, 0.5)));
}

/// The final record of an earlier run in the same folder does not belong to the run in
/// progress.
#[test]
fn a_run_that_began_anew_is_not_its_predecessor() {
    let folder = tempfile::tempdir().unwrap();
    write_state(folder.path(), &[row(8, &[("loss", 0.1), ("train_runtime", 1.0)])]);
    RunFacts { stage: "dpo".into(), ..RunFacts::default() }.write(folder.path()).unwrap();
    write_state(&folder.path().join("checkpoint-2"), &[row(2, &[("loss", 0.5)])]);
    assert_eq!(read(folder.path()).step, 2);
    for (mark, step) in [("", 2), ("{}", 2), ("[]", 2), ("{\"stage\": \"DPO\"}", 8)] {
        fs::write(folder.path().join("favonius.json"), mark).unwrap();
        assert_eq!(read(folder.path()).step, step, "{mark}");
    }
}

#[test]
fn speeds_leave_evaluations_out() {
    let logged: Vec<Logged> = [(1, 100.0), (2, 102.0), (3, 110.0)]
        .map(|(step, wall_time)| Logged { step, name: "loss".into(), value: 1.0, wall_time })
        .to_vec();
    let mut rows = vec![
        row(1, &[("loss", 1.0), ("num_tokens", 10.0)]),
        row(2, &[("loss", 1.0), ("num_tokens", 30.0)]),
        row(2, &[("eval_loss", 1.0), ("eval_runtime", 5.0)]),
        row(3, &[("loss", 1.0), ("num_tokens", 60.0)]),
    ];
    add_speeds(&mut rows, &Logs { scalars: logged, starts: vec![99.0] });
    let speeds: Vec<_> = rows.iter().map(|row| row.get(TOKENS_PER_SECOND)).collect();
    assert_eq!(speeds, [None, Some(10.0), None, Some(10.0)]);
}

#[test]
fn speeds_leave_the_time_between_two_starts_out() {
    let scalars: Vec<Logged> = [(1, 100.0), (2, 102.0), (3, 9000.0), (4, 9002.0)]
        .map(|(step, wall_time)| Logged { step, name: "loss".into(), value: 1.0, wall_time })
        .to_vec();
    let mut rows: Vec<LogRow> = (1..=4)
        .map(|step| row(step, &[("loss", 1.0), ("num_tokens", 20.0 * step as f64)]))
        .collect();
    add_speeds(&mut rows, &Logs { scalars, starts: vec![99.0, 8990.0] });
    let speeds: Vec<_> = rows.iter().map(|row| row.get(TOKENS_PER_SECOND)).collect();
    assert_eq!(speeds, [None, Some(10.0), None, Some(10.0)]);
}

#[test]
fn log_ratios_are_rewards_without_their_beta() {
    let rows = vec![row(2, &[("rewards/chosen", -0.5), ("eval_rewards/margins", 1.0)])];
    let mut run = RunRecord { rows, ..RunRecord::default() };
    run.add_log_ratios(0.25);
    assert_eq!(run.last("log_ratios/chosen"), Some((2, -2.0)));
    assert_eq!(run.last("eval_log_ratios/margins"), Some((2, 4.0)));
    assert_eq!(run.last("rewards/chosen"), Some((2, -0.5)));
}

#[test]
fn lists_of_a_card_are_read() {
    let card = "# x\n\n### Training hyperparameters\n\nThe following:\n- seed: 42\n- optimizer: Adam with betas=(0.9)\n\n\
                ### Framework versions\n\n- Transformers 4.35.0\n- TRL: 1.16.0\n";
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(
        bullets(card, "### Training hyperparameters"),
        [pair("seed", "42"), pair("optimizer", "Adam with betas=(0.9)")]
    );
    assert_eq!(
        bullets(card, "### Framework versions"),
        [pair("Transformers", "4.35.0"), pair("TRL", "1.16.0")]
    );
    assert!(bullets(card, "### Other").is_empty());
}

#[test]
fn what_is_no_run_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = RunRecord::read(folder.path(), "a".into()).unwrap_err().to_string();
    assert!(error.contains("holds no run"), "{error}");
    let missing = folder.path().join("missing");
    let error = RunRecord::read(&missing, "a".into()).unwrap_err().to_string();
    assert!(error.contains("missing is neither"), "{error}");
}
