//! The charts of a report: one per metric that a run logged.

use super::chart::{Chart, Curve, Look, Point, Split};
use super::loss_charts;
use super::record::{LOG_RATIOS, RunRecord, TOKENS_PER_SECOND};

type Metric = (&'static str, &'static str, &'static str);

/// Metric, title, unit. The order fills rows of three charts, for SFT and for preferences.
const METRICS: &[Metric] = &[
    ("loss", "Loss", "what is minimized"),
    ("rewards/accuracies", "Reward accuracy", "share of pairs with a margin above 0"),
    ("rewards/margins", "Reward margin", "chosen − rejected"),
    ("rewards/chosen", "Reward, chosen", "β × log-ratio to the reference"),
    ("rewards/rejected", "Reward, rejected", "β × log-ratio to the reference"),
    (LOG_RATIOS[0].1, "Log-ratio margin", "chosen − rejected, nats"),
    (LOG_RATIOS[1].1, "Log-ratio, chosen", "to the reference, nats per response"),
    (LOG_RATIOS[2].1, "Log-ratio, rejected", "to the reference, nats per response"),
    ("mean_token_accuracy", "Token accuracy", "share of tokens ranked first"),
    ("logps/chosen", "Log-prob, chosen", "nats per response"),
    ("logps/rejected", "Log-prob, rejected", "nats per response"),
    ("entropy", "Entropy", "nats per token"),
    ("logits/chosen", "Mean logit, chosen", "over tokens and vocabulary"),
    ("logits/rejected", "Mean logit, rejected", "over tokens and vocabulary"),
    ("grad_norm", "Gradient norm", "before clipping"),
    ("learning_rate", "Learning rate", "at each step"),
    (TOKENS_PER_SECOND, "Speed", "tokens/s, without evaluations"),
];

/// The most metrics besides the known ones that a page or a folder of figures shows. A run of this
/// program logs a few; a foreign record may hold any number.
pub const MOST_OTHERS: usize = 200;

/// The metrics of `runs`: first the known ones in their order, then other logged values (terms of
/// other objectives) by name, at most [`MOST_OTHERS`].
pub fn metrics(runs: &[RunRecord]) -> Vec<String> {
    let known = METRICS.iter().map(|metric| metric.0);
    known.chain(other_names(runs).into_iter().take(MOST_OTHERS)).map(str::to_owned).collect()
}

/// The number of metrics that [`metrics`] leaves out.
pub fn left_out(runs: &[RunRecord]) -> usize {
    other_names(runs).len().saturating_sub(MOST_OTHERS)
}

/// The names of logged values that are neither known metrics nor bookkeeping, sorted.
fn other_names(runs: &[RunRecord]) -> Vec<&str> {
    let logged = runs.iter().flat_map(|run| &run.rows).flat_map(|row| &row.values);
    let mut others: Vec<&str> = logged
        .map(|(name, _)| name.strip_prefix("eval_").unwrap_or(name))
        .filter(|name| !is_bookkeeping(name) && !METRICS.iter().any(|metric| metric.0 == *name))
        .collect();
    others.sort_unstable();
    others.dedup();
    others
}

/// Counts and times, which do not describe the training.
fn is_bookkeeping(name: &str) -> bool {
    let ends = ["_runtime", "_per_second", "_samples"];
    ["num_tokens", "total_flos", "train_loss", "runtime"].contains(&name)
        || name.ends_with("_tokens_seen")
        || ends.iter().any(|end| name.ends_with(end))
}

/// The charts of `runs`. Metrics that no run has are left out, and so are rewards if every run also
/// has log-ratios. Curves of published runs come first, so that they are drawn behind the others.
pub fn charts(runs: &[RunRecord]) -> Vec<Chart> {
    let charts = metrics(runs).into_iter().map(|metric| chart(runs, metric));
    let charts: Vec<Chart> = charts.filter(Chart::is_worth_drawing).collect();
    let curves =
        |name: &str| charts.iter().find(|c| c.metric == name).map_or(0, |c| c.curves.len());
    let stands_for =
        |reward: &str, ratio: &str| curves(ratio) > 0 && curves(ratio) == curves(reward);
    let replaced: Vec<&str> = LOG_RATIOS
        .iter()
        .filter(|(reward, ratio)| stands_for(reward, ratio))
        .map(|(reward, _)| *reward)
        .collect();
    let charts = charts.into_iter().filter(|chart| !replaced.contains(&chart.metric.as_str()));
    charts.flat_map(|chart| loss_charts::by_loss(chart, runs)).collect()
}

fn chart(runs: &[RunRecord], metric: String) -> Chart {
    let mut curves = Vec::new();
    for split in [Split::Train, Split::HeldOut] {
        for (index, run) in runs.iter().enumerate() {
            curves.extend(curve(index, run, &metric, split));
        }
    }
    curves.sort_by_key(|curve| !curve.look.is_published);
    let known = METRICS.iter().find(|known| known.0 == metric);
    let (title, unit) = known.map_or((metric.as_str(), ""), |&(_, title, unit)| (title, unit));
    Chart { title: title.to_owned(), unit: unit.to_owned(), metric, curves }
}

fn curve(index: usize, run: &RunRecord, metric: &str, split: Split) -> Option<Curve> {
    let (name, words) = match split {
        Split::Train => (metric.to_owned(), "train"),
        Split::HeldOut => (format!("eval_{metric}"), "held out"),
    };
    let points: Vec<Point> = run
        .rows
        .iter()
        .filter_map(|row| {
            let value = row.get(&name).filter(|value| value.is_finite())?;
            let at = [row.step as f64, row.epoch, 100.0 * run.share(row.step)];
            Some(Point { at, value })
        })
        .collect();
    let label = format!("{}, {words}", run.name);
    let look = Look::of(index, run);
    (!points.is_empty()).then_some(Curve { run: index, look, split, label, points })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::chart::Axis;
    use crate::report::published;
    use crate::train::event::LogRow;

    fn run(name: &str, rows: &[(u64, &str, f64)]) -> RunRecord {
        let row = |&(step, metric, value): &(u64, &str, f64)| LogRow {
            step,
            epoch: step as f64 / 10.0,
            values: vec![(metric.to_owned(), value)],
        };
        let rows: Vec<LogRow> = rows.iter().map(row).collect();
        RunRecord { name: name.into(), step: 20, max_steps: 40, rows, ..RunRecord::default() }
    }

    #[test]
    fn metrics_become_charts_with_the_published_run_behind() {
        let ours =
            run("ours", &[(10, "loss", 0.7), (20, "eval_loss", 0.6), (20, "loss", f64::NAN)]);
        let charts = charts(&[ours, published::find("zephyr-7b-beta").unwrap()]);
        let loss = &charts[0];
        let labels: Vec<&str> = loss.curves.iter().map(|curve| curve.label.as_str()).collect();
        assert_eq!(
            labels,
            [
                "Zephyr-7B-β (published), train",
                "Zephyr-7B-β (published), held out",
                "ours, train",
                "ours, held out"
            ]
        );
        assert_eq!(loss.curves[2].points, [Point { at: [10.0, 1.0, 25.0], value: 0.7 }]);
        assert_eq!(loss.across(Axis::Steps).high, 5800.0);
        assert_eq!(loss.across(Axis::Share).high, 100.0);
    }

    #[test]
    fn what_other_objectives_log_is_shown_and_counts_are_not() {
        let kto = run("kto", &[(1, "kl", 0.5), (1, "num_tokens", 9.0), (2, "eval_runtime", 1.0)]);
        let charts = charts(&[kto]);
        let titles: Vec<&str> = charts.iter().map(|chart| chart.title.as_str()).collect();
        assert_eq!(titles, ["kl"]);
    }

    #[test]
    fn log_ratios_stand_for_rewards_where_all_runs_have_them() {
        let rows = [(1, "rewards/chosen", 0.5), (2, "rewards/chosen", 1.0)];
        let mut with = run("a", &rows);
        with.add_log_ratios(0.1);
        let titles = |runs: &[RunRecord]| -> Vec<String> {
            charts(runs).into_iter().map(|chart| chart.title).collect()
        };
        assert_eq!(titles(std::slice::from_ref(&with)), ["Log-ratio, chosen"]);
        let both = titles(&[with, run("b", &rows)]);
        assert_eq!(both, ["Reward, chosen", "Log-ratio, chosen"]);
    }

    #[test]
    fn long_curves_are_thinned_and_keep_their_peaks() {
        let value = |step: u64| match step {
            31_234 => 90.0,
            31_235 => -7.0,
            step => f64::from((step % 10) as u32),
        };
        let rows: Vec<(u64, &str, f64)> =
            (1..=50_000).map(|step| (step, "loss", value(step))).collect();
        let whole = chart(&[run("long", &rows), run("short", &rows[..100])], "loss".into());
        let drawn = whole.thinned(2000);
        let points = &drawn.curves[0].points;
        assert!((1000..=2000).contains(&points.len()), "{}", points.len());
        assert!(points.windows(2).all(|pair| pair[0].at[0] < pair[1].at[0]));
        let all = &whole.curves[0].points;
        assert_eq!((points[0], points.last()), (all[0], all.last()));
        assert!(points.contains(&all[31_233]) && points.contains(&all[31_234]));
        assert_eq!(
            (drawn.across(Axis::Steps), drawn.upwards()),
            (whole.across(Axis::Steps), whole.upwards())
        );
        assert_eq!(drawn.curves[1], whole.curves[1]);
        assert_eq!(whole.thinned(50_000), whole);
    }

    #[test]
    fn scales_hold_all_values() {
        let flat = run("flat", &[(1, "learning_rate", 0.0), (2, "learning_rate", 0.0)]);
        let scale = charts(&[flat])[0].upwards();
        assert!(scale.low <= 0.0 && scale.high > 0.0 && scale.place(0.0).is_finite());
        let chart = chart(&[run("a", &[(1, "loss", 2.0), (9, "loss", 4.0)])], "loss".into());
        let scale = chart.upwards();
        assert!(scale.low < 2.0 && scale.high > 4.0);
        assert!(scale.ticks.values.iter().all(|v| (scale.low..=scale.high).contains(v)));
    }

    #[test]
    fn scales_are_finite_whatever_was_logged() {
        for losses in [[1e308, -1e308], [f64::MAX, f64::MAX], [f64::MIN, 0.0]] {
            let rows = [(1, "loss", losses[0]), (2, "loss", losses[1])];
            let chart = chart(&[run("a", &rows)], "loss".into());
            let scale = chart.upwards();
            assert!((scale.high - scale.low).is_finite() && scale.high > scale.low, "{losses:?}");
            let places = losses.map(|loss| scale.place(loss));
            assert!(places.iter().all(|place| (0.0..=1.0).contains(place)), "{places:?}");
            assert!((1..=8).contains(&scale.ticks.values.len()), "{:?}", scale.ticks);
        }
    }
}
