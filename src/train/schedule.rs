//! Learning-rate schedules: plain functions of the number of updates done.

use std::f64::consts::PI;

use super::steps::StepSchedule;
use crate::recipe::{LrSchedulerKwargs, Schedule, TrainSettings};

/// The learning-rate schedule of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct LearningRate {
    pub peak: f64,
    pub schedule: Schedule,
    /// Steps of linear warm-up from 0, `W`.
    pub warmup: u64,
    /// Steps of the whole run, `T`.
    pub total: u64,
    pub kwargs: LrSchedulerKwargs,
}

impl LearningRate {
    /// The learning rates of a run of `schedule`.
    pub fn new(settings: &TrainSettings, schedule: &StepSchedule) -> Self {
        Self {
            peak: settings.learning_rate,
            schedule: settings.lr_scheduler_type,
            warmup: schedule.warmup,
            total: schedule.total,
            kwargs: settings.lr_scheduler_kwargs,
        }
    }

    /// The learning rate of the update after `done` updates (`k` in transformers' formulas). The
    /// first update of a run with warm-up has rate 0.
    pub fn at(&self, done: u64) -> f64 {
        self.peak * self.factor(done)
    }

    fn factor(&self, done: u64) -> f64 {
        let (k, warmup) = (done as f64, self.warmup as f64);
        if self.schedule == Schedule::Constant {
            return 1.0;
        }
        if done < self.warmup {
            return k / warmup.max(1.0);
        }
        let span = (self.total.saturating_sub(self.warmup)).max(1) as f64;
        let progress = (k - warmup) / span;
        let cycles = self.kwargs.num_cycles.unwrap_or(0.5);
        let cosine = 0.5 * (1.0 + (PI * cycles * 2.0 * progress).cos());
        match self.schedule {
            Schedule::Constant | Schedule::ConstantWithWarmup => 1.0,
            Schedule::Linear => ((self.total as f64 - k) / span).max(0.0),
            Schedule::Cosine => cosine.max(0.0),
            Schedule::CosineWithMinLr => {
                let floor = self.floor();
                (cosine * (1.0 - floor) + floor).max(0.0)
            }
            Schedule::InverseSqrt => {
                let timescale = self.kwargs.timescale.unwrap_or(match self.warmup {
                    0 => 10_000.0,
                    warmup => warmup as f64,
                });
                let shift = timescale - warmup;
                1.0 / ((k + shift) / timescale).sqrt()
            }
        }
    }

    /// The lowest factor of `cosine_with_min_lr`.
    fn floor(&self) -> f64 {
        match (self.kwargs.min_lr, self.kwargs.min_lr_rate) {
            (Some(rate), _) => rate / self.peak,
            (None, Some(share)) => share,
            (None, None) => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(schedule: Schedule) -> LearningRate {
        LearningRate { peak: 1.0, schedule, warmup: 10, total: 110, kwargs: Default::default() }
    }

    #[test]
    fn all_warm_up_from_zero_but_the_constant_one() {
        for schedule in [Schedule::Linear, Schedule::Cosine, Schedule::ConstantWithWarmup] {
            assert_eq!(rate(schedule).at(0), 0.0);
            assert_eq!(rate(schedule).at(5), 0.5);
            assert_eq!(rate(schedule).at(10), 1.0);
        }
        assert_eq!(rate(Schedule::Constant).at(0), 1.0);
    }

    #[test]
    fn values_after_the_warm_up() {
        assert_eq!(rate(Schedule::Linear).at(60), 0.5);
        assert_eq!(rate(Schedule::Linear).at(110), 0.0);
        assert!((rate(Schedule::Cosine).at(60) - 0.5).abs() < 1e-12);
        assert!(rate(Schedule::Cosine).at(110) < 1e-12);
        assert_eq!(rate(Schedule::ConstantWithWarmup).at(109), 1.0);
        assert_eq!(rate(Schedule::InverseSqrt).at(40), 0.5);
        let mut with_floor = rate(Schedule::CosineWithMinLr);
        with_floor.kwargs.min_lr_rate = Some(0.1);
        assert!((with_floor.at(110) - 0.1).abs() < 1e-12);
        assert!((with_floor.at(60) - 0.55).abs() < 1e-12);
    }
}
