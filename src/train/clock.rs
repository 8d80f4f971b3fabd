//! The time of training over all starts of a run.

use std::time::Instant;

use super::checkpoint::{Position, Timed};

/// Measures the time of training over all starts of a run.
#[derive(Clone, Copy)]
pub struct Clock {
    pub started: Instant,
    /// Steps that were done when this start began.
    first: u64,
    before: Timed,
}

impl Clock {
    pub fn start(position: &Position) -> Self {
        Self { started: Instant::now(), first: position.global_step, before: position.timed }
    }

    /// Steps of this start.
    pub fn steps(self, done: u64) -> u64 {
        done - self.first
    }

    /// The time of all starts so far; `done` steps are done.
    pub fn timed(self, done: u64) -> Timed {
        Timed {
            seconds: self.before.seconds + self.started.elapsed().as_secs_f64(),
            steps: self.before.steps + self.steps(done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_where_the_checkpoint_ended() {
        let timed = Timed { seconds: 40.0, steps: 10 };
        let clock = Clock::start(&Position { global_step: 10, timed, ..Position::default() });
        let whole = clock.timed(14);
        assert!((40.0..100.0).contains(&whole.seconds), "{whole:?}");
        assert_eq!((whole.steps, clock.steps(14)), (14, 4));
        // A checkpoint without a time counts the steps since.
        let clock = Clock::start(&Position { global_step: 10, ..Position::default() });
        assert_eq!(clock.timed(14).steps, 4);
    }
}
