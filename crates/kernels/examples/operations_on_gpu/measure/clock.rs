//! Times of work that a device does asynchronously.

use std::time::{Duration, Instant};

use burn::tensor::Device;

/// Rounds of which the median counts.
const ROUNDS: usize = 5;
/// The most repetitions of a round.
const MOST: usize = 200;

/// The time of one run of an operation, in milliseconds.
pub struct Timing {
    /// Median over the rounds.
    pub median_ms: f64,
    /// The fastest round.
    pub least_ms: f64,
    /// The first run, which compiles the kernels.
    pub first_ms: f64,
    /// Runs in a round. They are queued together, so that launches overlap with work.
    pub repeats: usize,
}

impl Timing {
    /// Times `run` in about `budget`, after two runs that do not count.
    ///
    /// # Errors
    /// The device reports an error.
    pub fn of(
        device: &Device,
        budget: Duration,
        mut run: impl FnMut(),
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let mut rounds_of = |repeats: usize| -> Result<f64, Box<dyn std::error::Error>> {
            device.sync()?;
            let started = Instant::now();
            for _ in 0..repeats {
                run();
            }
            device.sync()?;
            Ok(started.elapsed().as_secs_f64() * 1e3 / repeats as f64)
        };
        let first_ms = rounds_of(1)?;
        let once = rounds_of(1)?.max(1e-3);
        let a_round = budget.as_secs_f64() * 1e3 / ROUNDS as f64;
        let repeats = ((a_round / once) as usize).clamp(1, MOST);
        let mut times = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            times.push(rounds_of(repeats)?);
        }
        times.sort_by(f64::total_cmp);
        Ok(Self { median_ms: times[ROUNDS / 2], least_ms: times[0], first_ms, repeats })
    }
}
