use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::*;

/// A writer whose content the test can read.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Paper {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn events() -> Vec<LogRow> {
    let row =
        |name: &str, value| LogRow { step: 2, epoch: 0.5, values: vec![(name.to_owned(), value)] };
    vec![row("loss", 0.5), row("eval_loss", 0.25)]
}

fn run(screen: Screen, output_dir: &Path, report_to: &[Reporter]) {
    let options = ReporterOptions {
        report_to: report_to.to_vec(),
        ..ReporterOptions::screen_only(output_dir.to_path_buf(), screen)
    };
    let mut reporters = Reporters::new(options);
    let rows = events();
    let events = [
        Event::Start { history: &[] },
        Event::Message("2 layers"),
        Event::Phase { name: "reference log-probs", total: 12, unit: "pairs" },
        Event::Advance { name: "reference log-probs", done: 12, message: "" },
        Event::PhaseEnd { name: "reference log-probs" },
        Event::Phase { name: TRAINING, total: 4, unit: "steps" },
        Event::Step {
            step: 2,
            max_steps: 4,
            epoch: 0.5,
            loss: 0.5,
            margin: None,
            tokens_per_second: 10.0,
        },
        Event::Log(&rows[0]),
        Event::Log(&rows[1]),
        Event::PhaseEnd { name: TRAINING },
        Event::PhaseEnd { name: "never begun" },
        Event::Saved { path: Path::new("out/checkpoint-2") },
    ];
    for event in &events {
        reporters.on(event).unwrap();
    }
}

#[test]
fn without_a_terminal_there_are_plain_lines() {
    let folder = tempfile::tempdir().unwrap();
    let paper = Paper::default();
    run(
        Screen::new(false, false, Box::new(paper.clone())),
        folder.path(),
        &[Reporter::TensorBoard],
    );
    let expected = "2 layers\nreference log-probs: 12 pairs\ntraining: 4 steps\nstep 2/4 | epoch 0.5 | loss 0.5\n\
                    step 2/4 | epoch 0.5 | eval_loss 0.25\nsaved out/checkpoint-2\n";
    assert_eq!(paper.text(), expected);
    assert_eq!(std::fs::read_dir(folder.path().join("runs")).unwrap().count(), 1);
}

#[test]
fn quiet_tells_no_phases() {
    let folder = tempfile::tempdir().unwrap();
    for is_terminal in [false, true] {
        let paper = Paper::default();
        run(Screen::new(is_terminal, true, Box::new(paper.clone())), folder.path(), &[]);
        let expected = "2 layers\nstep 2/4 | epoch 0.5 | loss 0.5\nstep 2/4 | epoch 0.5 | eval_loss 0.25\n\
                        saved out/checkpoint-2\n";
        assert_eq!(paper.text(), expected);
    }
    assert!(!folder.path().join("runs").exists());
}

#[test]
fn work_that_only_knows_numbers_begins_and_ends_by_itself() {
    let paper = Paper::default();
    let screen = Screen::new(false, false, Box::new(paper.clone()));
    for done in [0, 5, 10, 10] {
        screen.update("tokenizing train", done, 10);
    }
    assert_eq!(paper.text(), "tokenizing train: 10 rows\n");
}

/// The loggers that write into the run's folder. One of them cannot; the others have every row.
#[test]
fn a_logger_that_fails_does_not_end_the_run() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("runs"), "a file").unwrap();
    let paper = Paper::default();
    let options = ReporterOptions {
        report_to: vec![Reporter::TensorBoard, Reporter::Jsonl],
        ..ReporterOptions::screen_only(
            folder.path().to_path_buf(),
            Screen::new(false, true, Box::new(paper.clone())),
        )
    };
    let mut reporters = Reporters::new(options);
    let rows = events();
    reporters.on(&Event::Start { history: &[] }).unwrap();
    reporters.on(&Event::Log(&rows[0])).unwrap();
    reporters.on(&Event::Log(&rows[1])).unwrap();
    reporters.on(&Event::Saved { path: folder.path() }).unwrap();
    let log = folder.path().join("metrics.jsonl");
    let text = std::fs::read_to_string(&log).unwrap();
    let kinds: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["event"].clone())
        .collect();
    assert_eq!(kinds, ["start", "log", "log", "saved", "end"]);
    assert!(paper.text().ends_with(&format!("jsonl: {}\n", log.display())), "{}", paper.text());
}
