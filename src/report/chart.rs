//! A chart: the curves of one metric over the runs. The page and the figures both draw it.

use super::record::{RunRecord, TOKENS_PER_SECOND};
use super::ticks::Ticks;

/// The quantity on the horizontal axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    Steps,
    Epochs,
    /// The share of the planned steps, for comparing runs of different lengths.
    Share,
}

impl Axis {
    pub const ALL: [Axis; 3] = [Axis::Steps, Axis::Epochs, Axis::Share];

    /// The index in [`Point::at`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// The label of the axis.
    pub fn title(self) -> &'static str {
        match self {
            Axis::Steps => "optimizer step",
            Axis::Epochs => "epoch",
            Axis::Share => "share of the run, %",
        }
    }
}

/// Whether a value was measured in training or on held-out rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    Train,
    HeldOut,
}

/// A value with its position on each axis: step, epoch, percent of the run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    pub at: [f64; 3],
    pub value: f64,
}

/// The style of a run's curves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// The index of the color. Each single run has its own; runs of a sweep that only differ in
    /// their seeds share one.
    pub color: usize,
    /// The index among the runs with the same color; later ones are paler.
    pub repeat: usize,
    pub is_published: bool,
}

impl Look {
    /// The style of the run at `index` of a report.
    pub fn of(index: usize, run: &RunRecord) -> Self {
        let of_setting = run.setting.as_ref().map(|setting| (setting.index, setting.repeat));
        let (color, repeat) = of_setting.unwrap_or((index, 0));
        Look { color, repeat, is_published: run.is_published }
    }
}

/// One metric of one run and one split. Values that are not finite are left out.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Index into the report's runs.
    pub run: usize,
    pub look: Look,
    pub split: Split,
    /// The run's name and the split.
    pub label: String,
    /// Points by ascending step.
    pub points: Vec<Point>,
}

/// One metric of all runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// As in `trainer_state.json`: "rewards/chosen".
    pub metric: String,
    pub title: String,
    /// What the value is, and its unit.
    pub unit: String,
    pub curves: Vec<Curve>,
}

/// Keeps the first and the last point; of each of equal parts between them, keeps the lowest and
/// the highest point. So no peak is lost.
fn thinned(points: &[Point], most: usize) -> Vec<Point> {
    let parts = most.saturating_sub(2) / 2;
    let [first, between @ .., last] = points else { return points.to_vec() };
    if points.len() <= most || parts == 0 {
        return points.to_vec();
    }
    let mut kept = vec![*first];
    for part in between.chunks(between.len().div_ceil(parts)) {
        let (mut lowest, mut highest) = (0, 0);
        for (index, point) in part.iter().enumerate() {
            if point.value < part[lowest].value {
                lowest = index;
            }
            if point.value > part[highest].value {
                highest = index;
            }
        }
        kept.push(part[lowest.min(highest)]);
        if lowest != highest {
            kept.push(part[lowest.max(highest)]);
        }
    }
    kept.push(*last);
    kept
}

/// The largest absolute value on an axis, so that its length stays finite. Larger values are drawn
/// at the end.
const FURTHEST: f64 = 1e307;

/// A range of values with its ticks.
#[derive(Debug, Clone, PartialEq)]
pub struct Scale {
    pub low: f64,
    pub high: f64,
    pub ticks: Ticks,
}

impl Scale {
    /// The position of a value: 0 at `low`, 1 at `high`. Values outside are clamped.
    pub fn place(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }
}

impl Chart {
    /// Whether one of the user's own runs has the metric; a published run alone compares nothing.
    pub fn is_worth_drawing(&self) -> bool {
        self.curves.iter().any(|curve| !curve.look.is_published)
    }

    fn points(&self) -> impl Iterator<Item = &Point> {
        self.curves.iter().flat_map(|curve| &curve.points)
    }

    /// The chart with at most `most` points per curve, for drawing.
    pub fn thinned(&self, most: usize) -> Chart {
        let curves = self.curves.iter().map(|curve| {
            let points = thinned(&curve.points, most);
            Curve { points, label: curve.label.clone(), ..*curve }
        });
        let (metric, title) = (self.metric.clone(), self.title.clone());
        Chart { metric, title, unit: self.unit.clone(), curves: curves.collect() }
    }

    /// The horizontal range: from 0 to the end of the longest curve.
    pub fn across(&self, axis: Axis) -> Scale {
        let last = self.points().map(|point| point.at[axis.index()]).fold(0.0, f64::max);
        let high = if axis == Axis::Share {
            100.0
        } else if last > 0.0 {
            last
        } else {
            1.0
        };
        let ticks = Ticks::within(0.0, high, 6, axis == Axis::Steps);
        Scale { low: 0.0, high, ticks }
    }

    /// The vertical range: all values with a small margin; 0 to 1 for accuracies.
    pub fn upwards(&self) -> Scale {
        let values = || self.points().map(|point| point.value);
        let (mut low, mut high) =
            (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
        let starts_at_zero = ["learning_rate", "grad_norm", TOKENS_PER_SECOND];
        if self.metric == "rewards/accuracies" {
            (low, high) = (0.0, 1.0);
        } else if starts_at_zero.contains(&self.metric.as_str()) {
            low = low.min(0.0);
        }
        (low, high) = (low.clamp(-FURTHEST, FURTHEST), high.clamp(-FURTHEST, FURTHEST));
        let room = match high - low {
            range if range > 0.0 => 0.06 * range,
            _ => 0.5 * high.abs().max(1e-3),
        };
        if low != 0.0 {
            low -= room;
        }
        high += room;
        Scale { low, high, ticks: Ticks::within(low, high, 6, false) }
    }
}
