//! Learning-rate schedules: plain functions of the number of updates done and, for
//! `reduce_lr_on_plateau`, of the evaluations so far.

use std::f64::consts::PI;

use super::steps::StepSchedule;
use crate::recipe::{
    Better, Curve, LR_END, LrSchedulerKwargs, Schedule, ThresholdMode, TrainSettings,
};

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
    /// first update of a run with warm-up has rate 0. `evaluations` are the values of the metric
    /// after the evaluations so far; only `reduce_lr_on_plateau` reads them.
    pub fn at(&self, done: u64, evaluations: &[f64]) -> f64 {
        match self.schedule {
            Schedule::ReduceLrOnPlateau => self.after_plateaus(evaluations),
            _ => self.peak * self.factor(done),
        }
    }

    fn factor(&self, done: u64) -> f64 {
        let (k, warmup) = (done as f64, self.warmup as f64);
        if self.schedule == Schedule::Constant {
            return 1.0;
        }
        if done < self.warmup {
            return self.warming(k / warmup.max(1.0), k);
        }
        let span = (self.total.saturating_sub(self.warmup)).max(1) as f64;
        let progress = (k - warmup) / span;
        match self.schedule {
            Schedule::Constant | Schedule::ConstantWithWarmup | Schedule::ReduceLrOnPlateau => 1.0,
            Schedule::Linear => ((self.total as f64 - k) / span).max(0.0),
            Schedule::Cosine => self.cosine(progress).max(0.0),
            Schedule::CosineWithRestarts => match progress {
                progress if progress >= 1.0 => 0.0,
                progress => {
                    let cycles = self.kwargs.num_cycles.unwrap_or(1.0);
                    (0.5 * (1.0 + (PI * (cycles * progress % 1.0)).cos())).max(0.0)
                }
            },
            Schedule::Polynomial => {
                let end = self.kwargs.lr_end.unwrap_or(LR_END);
                let power = self.kwargs.power.unwrap_or(1.0);
                let left = (1.0 - progress).max(0.0);
                ((self.peak - end) * left.powf(power) + end) / self.peak
            }
            Schedule::CosineWithMinLr => raised(self.cosine(progress), self.floor()).max(0.0),
            Schedule::CosineWarmupWithMinLr => {
                let progress = (k - warmup + 1.0) / span;
                raised(self.cosine(progress), self.floor()).max(0.0)
            }
            Schedule::WarmupStableDecay => self.stable_then_decay(k),
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

    /// The factor within the warm-up. `progress` is the share of the warm-up that is done, `k` the
    /// number of updates done.
    fn warming(&self, progress: f64, k: f64) -> f64 {
        match self.schedule {
            // Its warm-up does not begin at 0.
            Schedule::CosineWarmupWithMinLr => match self.kwargs.warmup_lr_rate {
                None => (k + 1.0) / (self.warmup as f64).max(1.0),
                Some(first) => first + (1.0 - first) * k / (self.warmup as f64 - 1.0).max(1.0),
            },
            Schedule::WarmupStableDecay => {
                let risen = match self.kwargs.warmup_type.unwrap_or(Curve::Linear) {
                    Curve::Linear => progress,
                    Curve::Cosine => 0.5 * (1.0 - (PI * progress).cos()),
                    Curve::OneMinusSqrt => 1.0 - (1.0 - progress).sqrt(),
                };
                raised(risen, self.kwargs.min_lr_ratio.unwrap_or(0.0)).max(0.0)
            }
            _ => progress,
        }
    }

    /// A cosine from 1; with half a cycle it falls to 0 at the end.
    fn cosine(&self, progress: f64) -> f64 {
        let cycles = self.kwargs.num_cycles.unwrap_or(0.5);
        0.5 * (1.0 + (PI * cycles * 2.0 * progress).cos())
    }

    /// `warmup_stable_decay` after its warm-up.
    fn stable_then_decay(&self, k: f64) -> f64 {
        let (warmup, total) = (self.warmup as f64, self.total as f64);
        let decay = self.kwargs.num_decay_steps.unwrap_or(0) as f64;
        let stable =
            self.kwargs.num_stable_steps.map_or(total - warmup - decay, |steps| steps as f64);
        let floor = self.kwargs.min_lr_ratio.unwrap_or(0.0);
        if k < warmup + stable {
            return 1.0;
        }
        if k >= warmup + stable + decay {
            return floor;
        }
        let progress = (k - warmup - stable) / decay.max(1.0);
        let left = match self.kwargs.decay_type.unwrap_or(Curve::Cosine) {
            Curve::Linear => 1.0 - progress,
            Curve::Cosine => self.cosine(progress),
            Curve::OneMinusSqrt => 1.0 - progress.sqrt(),
        };
        raised(left, floor).max(0.0)
    }

    /// The lowest factor of the schedules that have one.
    fn floor(&self) -> f64 {
        match (self.kwargs.min_lr, self.kwargs.min_lr_rate) {
            (Some(rate), _) => rate / self.peak,
            (None, Some(share)) => share,
            (None, None) => 0.0,
        }
    }

    /// torch's `ReduceLROnPlateau`: after more than `patience` evaluations without improvement, the
    /// rate is multiplied by `factor`.
    fn after_plateaus(&self, evaluations: &[f64]) -> f64 {
        let kwargs = &self.kwargs;
        let mode = kwargs.mode.unwrap_or(Better::Min);
        let threshold = kwargs.threshold.unwrap_or(1e-4);
        let (patience, cooldown) = (kwargs.patience.unwrap_or(10), kwargs.cooldown.unwrap_or(0));
        let is_better = |value: f64, best: f64| {
            let relative =
                kwargs.threshold_mode.unwrap_or(ThresholdMode::Rel) == ThresholdMode::Rel;
            match (mode, relative) {
                (Better::Min, true) => value < best * (1.0 - threshold),
                (Better::Min, false) => value < best - threshold,
                (Better::Max, true) => value > best * (1.0 + threshold),
                (Better::Max, false) => value > best + threshold,
            }
        };
        let worst = if mode == Better::Min { f64::INFINITY } else { f64::NEG_INFINITY };
        let (mut rate, mut best, mut bad, mut resting) = (self.peak, worst, 0, 0);
        for &value in evaluations {
            match is_better(value, best) {
                true => (best, bad) = (value, 0),
                false => bad += 1,
            }
            if resting > 0 {
                (resting, bad) = (resting - 1, 0);
            }
            if bad > patience {
                let reduced =
                    (rate * kwargs.factor.unwrap_or(0.1)).max(kwargs.min_lr.unwrap_or(0.0));
                if rate - reduced > kwargs.eps.unwrap_or(1e-8) {
                    rate = reduced;
                }
                (resting, bad) = (cooldown, 0);
            }
        }
        rate
    }
}

/// `factor`, from 0 to 1, as a factor from `floor` to 1.
fn raised(factor: f64, floor: f64) -> f64 {
    factor * (1.0 - floor) + floor
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
            assert_eq!(rate(schedule).at(0, &[]), 0.0);
            assert_eq!(rate(schedule).at(5, &[]), 0.5);
            assert_eq!(rate(schedule).at(10, &[]), 1.0);
        }
        assert_eq!(rate(Schedule::Constant).at(0, &[]), 1.0);
    }

    #[test]
    fn values_after_the_warm_up() {
        assert_eq!(rate(Schedule::Linear).at(60, &[]), 0.5);
        assert_eq!(rate(Schedule::Linear).at(110, &[]), 0.0);
        assert!((rate(Schedule::Cosine).at(60, &[]) - 0.5).abs() < 1e-12);
        assert!(rate(Schedule::Cosine).at(110, &[]) < 1e-12);
        assert_eq!(rate(Schedule::ConstantWithWarmup).at(109, &[]), 1.0);
        assert_eq!(rate(Schedule::InverseSqrt).at(40, &[]), 0.5);
        let mut with_floor = rate(Schedule::CosineWithMinLr);
        with_floor.kwargs.min_lr_rate = Some(0.1);
        assert!((with_floor.at(110, &[]) - 0.1).abs() < 1e-12);
        assert!((with_floor.at(60, &[]) - 0.55).abs() < 1e-12);
    }
}
