//! Draws a chart as SVG inside the page. Colors come from the page's style sheet, so that they
//! follow light and dark mode.

use std::fmt::Write;

use crate::report::chart::{Axis, Chart, Curve, Look, Point, Scale, Split};

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 232.0;
const LEFT: f64 = 54.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 36.0;
/// The number of colors in the style sheet; further curves reuse them with one of [`AGAIN`] dash
/// patterns.
const COLORS: usize = 8;
const AGAIN: usize = 4;
/// The number of paler shades for later runs of a color.
const PALER: usize = 3;
/// Curves with more points are drawn without dots.
const MOST_DOTS: usize = 60;

/// The CSS classes of a run's curves; the color comes first.
pub fn class(look: Look) -> String {
    if look.is_published {
        return "published".to_owned();
    }
    let mut class = format!("run{}", look.color % COLORS);
    if let again @ 1.. = look.color / COLORS % AGAIN {
        let _ = write!(class, " again{again}");
    }
    if look.repeat > 0 {
        let _ = write!(class, " paler{}", look.repeat.min(PALER));
    }
    class
}

/// Draws the chart along one axis.
pub fn draw(chart: &Chart, axis: Axis) -> String {
    let (across, upwards) = (chart.across(axis), chart.upwards());
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\" class=\"plot {}\" \
         data-axis=\"{}\" data-high=\"{}\" data-floor=\"{}\" data-ceiling=\"{}\" \
         data-left=\"{LEFT}\" data-right=\"{}\" \
         data-top=\"{TOP}\" data-bottom=\"{}\" data-width=\"{WIDTH}\">",
        chart.title.replace(['"', '<', '&'], ""),
        ["by-step", "by-epoch", "by-share"][axis.index()],
        axis.index(),
        across.high,
        upwards.low,
        upwards.high,
        WIDTH - RIGHT,
        HEIGHT - BOTTOM,
    );
    grid(&mut svg, &across, &upwards);
    let _ = write!(
        svg,
        "<text class=\"axis\" x=\"{}\" y=\"{}\">{}</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 4.0,
        axis.title()
    );
    for curve in &chart.curves {
        line(&mut svg, curve, axis, &across, &upwards);
    }
    svg.push_str("<line class=\"cursor\" y1=\"8\" y2=\"196\" x1=\"0\" x2=\"0\"/></svg>");
    svg
}

fn x(scale: &Scale, value: f64) -> f64 {
    LEFT + scale.place(value) * (WIDTH - LEFT - RIGHT)
}

fn y(scale: &Scale, value: f64) -> f64 {
    HEIGHT - BOTTOM - scale.place(value) * (HEIGHT - TOP - BOTTOM)
}

fn grid(svg: &mut String, across: &Scale, upwards: &Scale) {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    for (value, label) in upwards.ticks.values.iter().zip(&upwards.ticks.labels) {
        let at = y(upwards, *value);
        let class = if *value == 0.0 { "zero" } else { "grid" };
        let _ = write!(
            svg,
            "<line class=\"{class}\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"tick up\" x=\"{}\" y=\"{:.1}\">{label}</text>",
            LEFT - 7.0,
            at + 3.5
        );
    }
    for (value, label) in across.ticks.values.iter().zip(&across.ticks.labels) {
        let at = x(across, *value);
        let _ = write!(
            svg,
            "<line class=\"mark\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{bottom}\" y2=\"{}\"/>\
             <text class=\"tick\" x=\"{at:.1}\" y=\"{}\">{label}</text>",
            bottom + 4.0,
            bottom + 15.0
        );
    }
    let _ = write!(
        svg,
        "<line class=\"frame\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\"/>"
    );
}

fn line(svg: &mut String, curve: &Curve, axis: Axis, across: &Scale, upwards: &Scale) {
    let place = |point: &Point| (x(across, point.at[axis.index()]), y(upwards, point.value));
    let split = match curve.split {
        Split::Train => "train",
        Split::HeldOut => "held-out",
    };
    let classes = format!("{} {split}", class(curve.look));
    let mut path = String::new();
    for (index, point) in curve.points.iter().enumerate() {
        let (x, y) = place(point);
        let _ = write!(path, "{}{x:.1} {y:.1}", if index == 0 { 'M' } else { 'L' });
    }
    let _ = write!(svg, "<path class=\"{classes}\" d=\"{path}\"/>");
    let few = curve.points.len() <= MOST_DOTS;
    if few && (curve.split == Split::HeldOut || curve.points.len() == 1) {
        for (x, y) in curve.points.iter().map(place) {
            let _ =
                write!(svg, "<circle class=\"{classes}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.7\"/>");
        }
    }
}

/// The values of the curves for the read-out under the pointer, as JSON: label, class, and `[step,
/// epoch, percent, value]` per point.
pub fn read_out(chart: &Chart) -> String {
    let curves: Vec<serde_json::Value> = chart
        .curves
        .iter()
        .map(|curve| {
            let points: Vec<[f64; 4]> = curve
                .points
                .iter()
                .map(|point| {
                    let [step, epoch, share] = point.at;
                    [step, six_digits(epoch), six_digits(share), six_digits(point.value)]
                })
                .collect();
            let class = class(curve.look);
            serde_json::json!({"label": curve.label, "class": class, "points": points})
        })
        .collect();
    serde_json::Value::from(curves).to_string()
}

fn six_digits(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}
