use tensorboard_rs::masked_crc32c::masked_crc32c;

use super::*;
use crate::report::event_files::{FOOTER, HEADER, Logs, read_folder, split_record};

const RUN: Option<&str> = Some("0123abcd");

fn row(step: u64, values: &[(&str, f64)]) -> LogRow {
    let values = values.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
    LogRow { step, epoch: step as f64 / 4.0, values }
}

/// Tag, step, value and time of all scalars in the folder's only event file.
fn scalars(folder: &Path) -> Vec<(String, i64, f32, f64)> {
    let files = files_of(folder, RUN).unwrap();
    assert_eq!(files.len(), 1, "{files:?}");
    let bytes = fs::read(&files[0]).unwrap();
    let mut all = Vec::new();
    for event in read_events(&bytes) {
        if let Some(Event_oneof_what::summary(summary)) = &event.what {
            let value = &summary.get_value()[0];
            all.push((
                value.get_tag().to_owned(),
                event.get_step(),
                value.get_simple_value(),
                event.get_wall_time(),
            ));
        }
    }
    all
}

fn without_times(all: &[(String, i64, f32, f64)]) -> Vec<(&str, i64, f32)> {
    all.iter().map(|(tag, step, value, _)| (tag.as_str(), *step, *value)).collect()
}

#[test]
fn the_framing_is_tensorboards() {
    // The CRC-32C of 32 zero bytes is 0x8a9136aa (RFC 3720); TensorBoard rotates it and adds a
    // constant.
    assert_eq!(masked_crc32c(&[0; 32]), 0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8));
    let folder = tempfile::tempdir().unwrap();
    let board = TensorBoard::open(folder.path(), RUN, &[]).unwrap();
    let bytes = fs::read(board.path()).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let (data, rest) = split_record(&bytes).unwrap();
    assert_eq!(
        (data.len() as u64, bytes.len() - rest.len()),
        (length, HEADER + data.len() + FOOTER)
    );
    assert!(data.ends_with(b"brain.Event:2"));
    let events = read_events(&bytes);
    assert_eq!(events.len(), 2);
    assert_eq!(events[1].get_session_log().get_status(), SessionLog_SessionStatus::START);
}

#[test]
fn values_and_steps_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut board = TensorBoard::open(folder.path(), RUN, &[]).unwrap();
    board.log(&row(2, &[("loss", 0.5), ("grad_norm", f64::INFINITY)])).unwrap();
    board.log(&row(2, &[("eval_rewards/chosen", -0.25)])).unwrap();
    let expected = [
        ("train/loss", 2, 0.5),
        ("train/grad_norm", 2, f32::INFINITY),
        ("train/epoch", 2, 0.5),
        ("eval/rewards/chosen", 2, -0.25),
    ];
    assert_eq!(without_times(&scalars(folder.path())), expected);
}

#[test]
fn a_resumed_run_supersedes_what_came_after_its_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let foreign = folder.path().join("events.out.tfevents.0000000001.other.1.0");
    fs::write(&foreign, b"not ours").unwrap();
    let rows: Vec<LogRow> = (1..=3).map(|step| row(step, &[("loss", step as f64)])).collect();
    let mut board = TensorBoard::open(folder.path(), RUN, &[]).unwrap();
    rows.iter().for_each(|row| board.log(row).unwrap());
    let before = scalars(folder.path());
    // A kill during a write; the first start had another clock.
    let first = folder.path().join("events.out.tfevents.0000000002.7.0123abcd.favonius");
    let mut bytes = fs::read(board.path()).unwrap();
    bytes.truncate(bytes.len() - 5);
    fs::write(&first, bytes).unwrap();
    fs::remove_file(board.path()).unwrap();
    fs::write(
        folder.path().join(".events.out.tfevents.0000000003.8.0123abcd.favonius.tmp"),
        b"half",
    )
    .unwrap();

    let mut resumed = TensorBoard::open(folder.path(), RUN, &rows[..2]).unwrap();
    resumed.log(&row(3, &[("loss", 30.0)])).unwrap();
    let after = scalars(folder.path());
    assert_eq!(after[..4], before[..4], "the rows of the checkpoint keep values and times");
    assert_eq!(without_times(&after[4..]), [("train/loss", 3, 30.0), ("train/epoch", 3, 0.75)]);
    assert!(foreign.exists());
}

#[test]
fn a_folder_is_read_with_its_sub_folders() {
    let folder = tempfile::tempdir().unwrap();
    let mut board = TensorBoard::open(&folder.path().join("runs/Nov01"), RUN, &[]).unwrap();
    board.log(&row(2, &[("loss", 0.5)])).unwrap();
    board.log(&row(4, &[("eval_rewards/chosen", 0.25)])).unwrap();
    let logged = read_folder(folder.path(), None).scalars;
    let plain: Vec<_> = logged.iter().map(|l| (l.step, l.name.as_str(), l.value)).collect();
    let expected =
        [(2, "loss", 0.5), (2, "epoch", 0.5), (4, "eval_rewards/chosen", 0.25), (4, "epoch", 1.0)];
    assert_eq!(plain, expected);
    assert!(logged.iter().all(|logged| logged.wall_time > 1e9));
    assert_eq!(read_folder(&folder.path().join("no-such"), None), Logs::default());
}

#[cfg(unix)]
#[test]
fn links_in_a_circle_are_followed_once() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("runs");
    let mut board = TensorBoard::open(&folder, None, &[]).unwrap();
    board.log(&row(1, &[("loss", 0.5)])).unwrap();
    for name in ["a", "b", "c"] {
        std::os::unix::fs::symlink(".", folder.join(name)).unwrap();
        std::os::unix::fs::symlink("..", folder.join(format!("{name}-up"))).unwrap();
    }
    let logged = read_folder(&folder, None).scalars;
    let losses = logged.iter().filter(|value| value.name == "loss").count();
    assert_eq!(losses, 1);
}

#[test]
fn every_start_of_a_run_is_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let rows: Vec<LogRow> = (1..=3).map(|step| row(step, &[("loss", step as f64)])).collect();
    for (done, next) in rows.iter().enumerate() {
        let mut board = TensorBoard::open(folder.path(), RUN, &rows[..done]).unwrap();
        board.log(next).unwrap();
    }
    let Logs { scalars, starts } = read_folder(folder.path(), None);
    let losses = scalars.iter().filter(|logged| logged.name == "loss");
    let times: Vec<f64> = losses.map(|logged| logged.wall_time).collect();
    assert_eq!((starts.len(), times.len()), (3, 3));
    assert!(starts.iter().zip(&times).all(|(start, time)| start < time));
    assert!(times.iter().zip(&starts[1..]).all(|(time, next)| time < next));
    TensorBoard::open(folder.path(), RUN, &[]).unwrap();
    assert_eq!(read_folder(folder.path(), None).starts.len(), 1, "the run began anew");
}

/// Rows whose times are unknown (the older files are gone) get the time of the start.
#[test]
fn rows_without_times_have_that_of_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let rows = [row(1, &[("loss", 1.0)]), row(2, &[("loss", 0.5)])];
    TensorBoard::open(folder.path(), RUN, &rows).unwrap();
    let Logs { scalars, starts } = read_folder(folder.path(), None);
    assert_eq!((scalars.len(), starts.len()), (4, 1));
    assert!(scalars.iter().all(|logged| logged.wall_time == starts[0]));
}

#[test]
fn a_damaged_record_ends_the_reading() {
    let folder = tempfile::tempdir().unwrap();
    let mut board = TensorBoard::open(folder.path(), RUN, &[]).unwrap();
    board.log(&row(1, &[("loss", 1.0)])).unwrap();
    let mut bytes = fs::read(board.path()).unwrap();
    let last = bytes.len() - 20;
    bytes[last] ^= 1;
    assert_eq!(read_events(&bytes).len(), 3);
    assert!(read_events(&[0xff; 64]).is_empty());
    assert!(split_record(&u64::MAX.to_le_bytes()).is_none());
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("runs"), b"a file").unwrap();
    let error = TensorBoard::open(&folder.path().join("runs"), RUN, &[]).err().unwrap().to_string();
    assert!(
        error.contains("TensorBoard: cannot create the folder") && error.contains("runs"),
        "{error}"
    );
}
