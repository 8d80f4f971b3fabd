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

fn run(screen: Screen, output_dir: &Path, tensorboard: bool) {
    let options = ReporterOptions {
        output_dir: output_dir.to_path_buf(),
        screen,
        tensorboard,
        tensorboard_dir: None,
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
    run(Screen::new(false, false, Box::new(paper.clone())), folder.path(), true);
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
        run(Screen::new(is_terminal, true, Box::new(paper.clone())), folder.path(), false);
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
