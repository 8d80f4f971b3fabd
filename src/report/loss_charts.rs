//! Charts of a sweep over losses. Different losses have different magnitudes (2500 and 0.6, for
//! example), so each loss has its own chart. A loss whose settings have different magnitudes (IPO's
//! β) has several.

use super::chart::Chart;
use super::record::{RunRecord, Setting};

/// Metrics whose magnitude depends on the loss.
const METRICS: [&str; 2] = ["loss", "grad_norm"];
/// Settings whose largest values differ by more than this factor do not share a chart.
const SAME_SIZE: f64 = 20.0;
/// The most settings that a chart names.
const MOST_NAMES: usize = 3;

/// Splits the chart by loss and magnitude. It stays whole if all runs have the same loss and
/// magnitude, if the runs are not from a sweep, or if the metric does not depend on the loss.
pub fn by_loss(chart: Chart, runs: &[RunRecord]) -> Vec<Chart> {
    let settings = settings(&chart, runs);
    if !METRICS.contains(&chart.metric.as_str()) || settings.is_empty() {
        return vec![chart];
    }
    let mut losses: Vec<&str> = Vec::new();
    for (setting, _) in &settings {
        if !losses.contains(&setting.loss.as_str()) {
            losses.push(&setting.loss);
        }
    }
    let mut parts = Vec::new();
    for loss in &losses {
        let of_loss = settings.iter().filter(|(setting, _)| setting.loss == *loss);
        let sizes = by_size(of_loss.copied().collect());
        for members in &sizes {
            let mut part = part(&chart, runs, members);
            if losses.len() > 1 {
                part.title = format!("{}, {loss}", chart.title);
            }
            if sizes.len() > 1 {
                part.unit = names(members);
            }
            parts.push(part);
        }
    }
    parts
}

/// Each setting in the chart with its largest value. Empty if a run has no setting.
fn settings<'a>(chart: &Chart, runs: &'a [RunRecord]) -> Vec<(&'a Setting, f64)> {
    let mut settings: Vec<(&Setting, f64)> = Vec::new();
    for curve in &chart.curves {
        let Some(setting) = &runs[curve.run].setting else { return Vec::new() };
        let size = curve.points.iter().map(|point| point.value.abs()).fold(0.0, f64::max);
        match settings.iter_mut().find(|(other, _)| other.index == setting.index) {
            Some((_, largest)) => *largest = largest.max(size),
            None => settings.push((setting, size)),
        }
    }
    settings
}

/// Groups settings of similar magnitude; settings and groups are in the order of the sweep.
fn by_size(mut settings: Vec<(&Setting, f64)>) -> Vec<Vec<&Setting>> {
    settings.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut groups: Vec<(f64, Vec<&Setting>)> = Vec::new();
    for (setting, size) in settings {
        match groups.last_mut() {
            Some((smallest, members)) if size <= *smallest * SAME_SIZE => members.push(setting),
            _ => groups.push((size, vec![setting])),
        }
    }
    let mut groups: Vec<Vec<&Setting>> = groups.into_iter().map(|(_, members)| members).collect();
    groups.iter_mut().for_each(|members| members.sort_by_key(|setting| setting.index));
    groups.sort_by_key(|members| members[0].index);
    groups
}

fn part(chart: &Chart, runs: &[RunRecord], members: &[&Setting]) -> Chart {
    let is_member = |run: usize| {
        let setting = runs[run].setting.as_ref();
        setting.is_some_and(|own| members.iter().any(|member| member.index == own.index))
    };
    let curves = chart.curves.iter().filter(|curve| is_member(curve.run)).cloned().collect();
    Chart { curves, ..chart.clone() }
}

/// The names of the settings without their loss, which the title has.
fn names(members: &[&Setting]) -> String {
    if members.len() > MOST_NAMES {
        return format!("{} settings of similar magnitude", members.len());
    }
    let name = |setting: &&Setting| {
        let rest = setting.name.strip_prefix(setting.loss.as_str());
        rest.unwrap_or(&setting.name).trim_start_matches(" · ").to_owned()
    };
    members.iter().map(name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::charts::charts;
    use crate::train::event::LogRow;

    fn run(index: usize, loss: &str, beta: f64, value: f64) -> RunRecord {
        let name = format!("{loss} · beta {beta}");
        let values = vec![("loss".to_owned(), value), ("entropy".to_owned(), value)];
        let rows = vec![LogRow { step: 1, epoch: 0.1, values }];
        let setting = Setting { index, name: name.clone(), repeat: 0, loss: loss.into() };
        RunRecord { name, step: 1, rows, setting: Some(setting), ..RunRecord::default() }
    }

    fn shown(runs: &[RunRecord]) -> Vec<(String, String, usize)> {
        let shown = charts(runs).into_iter().map(|c| (c.title, c.unit, c.curves.len()));
        shown.collect()
    }

    #[test]
    fn each_loss_has_its_axis_and_ipo_one_for_each_size() {
        let runs = [
            run(0, "sigmoid", 0.1, 0.6),
            run(1, "ipo", 0.01, 2457.0),
            run(2, "ipo", 0.1, 21.0),
            run(3, "ipo", 0.2, 6.0),
        ];
        let shown = shown(&runs);
        let shown: Vec<_> = shown.iter().map(|(t, u, n)| (t.as_str(), u.as_str(), *n)).collect();
        assert_eq!(
            shown,
            [
                ("Loss, sigmoid", "what is minimized", 1),
                ("Loss, ipo", "beta 0.01", 1),
                ("Loss, ipo", "beta 0.1, beta 0.2", 2),
                ("Entropy", "nats per token", 4),
            ]
        );
    }

    #[test]
    fn what_is_of_one_size_stays_together() {
        let same = [run(0, "sigmoid", 0.1, 0.6), run(1, "sigmoid", 0.2, 0.5)];
        assert_eq!(shown(&same)[0], ("Loss".into(), "what is minimized".into(), 2));
        let mut alone = [run(0, "sigmoid", 0.1, 0.6), run(1, "ipo", 0.01, 2457.0)];
        alone.iter_mut().for_each(|run| run.setting = None);
        assert_eq!(shown(&alone)[0], ("Loss".into(), "what is minimized".into(), 2));
    }
}
