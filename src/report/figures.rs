//! Charts as SVG and PNG files, for papers and slides. Text uses DejaVu Sans, which is embedded in
//! the program, so that no font needs to be installed.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Once;

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};

use super::chart::{Axis, Chart, Curve, Point, Split};

/// The size in pixels with one legend row; PNG files have [`PNG_SCALE`] times as many.
const SIZE: (u32, u32) = (640, 416);
const MARGIN: u32 = 16;
const PNG_SCALE: u32 = 2;
/// The light colors of the page.
const COLORS: [RGBColor; 8] = [
    RGBColor(0x1f, 0x5f, 0xd0),
    RGBColor(0xd4, 0x54, 0x0b),
    RGBColor(0x0b, 0x8a, 0x5c),
    RGBColor(0x8b, 0x3f, 0xc8),
    RGBColor(0xc2, 0x18, 0x5b),
    RGBColor(0x0e, 0x87, 0xa8),
    RGBColor(0x8a, 0x65, 0x00),
    RGBColor(0x54, 0x61, 0x6f),
];
const PUBLISHED: RGBColor = RGBColor(0x98, 0xa3, 0xb0);
const INK: RGBColor = RGBColor(0x1b, 0x24, 0x30);
const SOFT: RGBColor = RGBColor(0x5d, 0x6b, 0x7c);
const FAINT: RGBColor = RGBColor(0xe3, 0xe7, 0xec);
const FRAME: RGBColor = RGBColor(0x88, 0x96, 0xa5);
/// The longest name of a figure in bytes, without its ending.
const LONGEST_STEM: usize = 150;
const FONT: &str = "DejaVu Sans";

/// Writes `METRIC.svg` and `METRIC.png` of every chart into `folder`; `/` in a metric's name
/// becomes `_`. Metrics come from files, so other characters that file names do not allow become
/// `_` too.
///
/// # Errors
/// The folder or a file cannot be written.
pub fn write(folder: &Path, charts: &[Chart], axis: Axis) -> io::Result<Vec<PathBuf>> {
    register_fonts();
    fs::create_dir_all(folder)?;
    let mut written = Vec::new();
    let mut stems = HashSet::new();
    for chart in charts {
        let stem = free_stem(&chart.metric, &mut stems);
        let [svg, png] = ["svg", "png"].map(|ending| folder.join(format!("{stem}.{ending}")));
        draw_svg(&svg, chart, axis).map_err(|error| failed(&svg, &error))?;
        draw_png(&png, chart, axis).map_err(|error| failed(&png, &error))?;
        written.extend([svg, png]);
    }
    Ok(written)
}

/// A file name for a metric, without its ending, that is not among `taken`.
fn free_stem(metric: &str, taken: &mut HashSet<String>) -> String {
    let is_plain = |c: char| !c.is_control() && !"/\\:".contains(c);
    let plain: String = metric.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    let end = plain.floor_char_boundary(LONGEST_STEM);
    // A name that begins with a dot is hidden, or a folder.
    let stem = match plain[..end].strip_prefix('.') {
        Some(rest) => format!("_{rest}"),
        None if plain.is_empty() => "_".to_owned(),
        None => plain[..end].to_owned(),
    };
    let numbered = (2..).map(|number| format!("{stem}-{number}"));
    let mut names = std::iter::once(stem.clone()).chain(numbered);
    let free = names.find(|name| taken.insert(name.clone()));
    free.unwrap_or(stem)
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn failed(path: &Path, error: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("cannot draw {}: {error}", path.display()))
}

fn register_fonts() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for (style, bytes) in
            [(FontStyle::Normal, dejavu::sans::regular()), (FontStyle::Bold, dejavu::sans::bold())]
        {
            // The embedded bytes are a valid font; if not, drawing reports it.
            let _ = register_font(FONT, style, bytes);
        }
    });
}

fn draw_svg(path: &Path, chart: &Chart, axis: Axis) -> Drawn {
    let mut text = String::new();
    draw(SVGBackend::with_string(&mut text, size(chart)).into_drawing_area(), chart, axis, 1)?;
    fs::write(path, text)?;
    Ok(())
}

fn draw_png(path: &Path, chart: &Chart, axis: Axis) -> Drawn {
    let (width, height) = size(chart);
    let size = (width * PNG_SCALE, height * PNG_SCALE);
    draw(BitMapBackend::new(path, size).into_drawing_area(), chart, axis, PNG_SCALE)
}

/// The size in pixels. A longer legend makes the figure taller, and the plot keeps its size.
fn size(chart: &Chart) -> (u32, u32) {
    let rows = Legend::new(&labels(chart)).rows;
    (SIZE.0, SIZE.1 + LEGEND_ROW * (rows - 1))
}

/// Draws on any back end; `scale` is its pixels per pixel of the figure.
fn draw<B: DrawingBackend>(
    area: DrawingArea<B, Shift>,
    chart: &Chart,
    axis: Axis,
    scale: u32,
) -> Drawn
where
    B::ErrorType: 'static,
{
    let size = |pixels: u32| pixels * scale;
    let small = TextStyle::from((FONT, f64::from(size(12)))).color(&SOFT);
    area.fill(&WHITE)?;
    let at = |x: i32, y: i32| (x * scale as i32, y * scale as i32);
    let title = TextStyle::from((FONT, f64::from(size(17)), FontStyle::Bold)).color(&INK);
    let left = MARGIN as i32;
    area.draw(&Text::new(chart.title.as_str(), at(left, 12), title))?;
    area.draw(&Text::new(chart.unit.as_str(), at(left, 35), small.clone()))?;
    let legend = Legend::new(&labels(chart));

    let (across, upwards) = (chart.across(axis), chart.upwards());
    let mut context = ChartBuilder::on(&area)
        .margin_top(size(LEGEND_TOP + LEGEND_ROW * legend.rows))
        .margin_right(size(18))
        .margin_bottom(size(6))
        .margin_left(size(10))
        .x_label_area_size(size(40))
        .y_label_area_size(size(58))
        .build_cartesian_2d(across.low..across.high, upwards.low..upwards.high)?;
    let place = |x: f64, y: f64| context.backend_coord(&(x, y));

    // Ticks are drawn by hand, as on the page, because plotters' mesh would choose others.
    let line = |from: (i32, i32), to: (i32, i32), color: &RGBColor| {
        PathElement::new(vec![from, to], color.stroke_width(scale))
    };
    for (value, label) in upwards.ticks.values.iter().zip(&upwards.ticks.labels) {
        let (left, right) = (place(across.low, *value), place(across.high, *value));
        area.draw(&line(left, right, if *value == 0.0 { &FRAME } else { &FAINT }))?;
        let style = small.pos(Pos::new(HPos::Right, VPos::Center));
        area.draw(&Text::new(label.clone(), (left.0 - size(7) as i32, left.1), style))?;
    }
    let bottom = upwards.low;
    area.draw(&line(place(across.low, bottom), place(across.high, bottom), &FRAME))?;
    for (value, label) in across.ticks.values.iter().zip(&across.ticks.labels) {
        let (x, y) = place(*value, bottom);
        area.draw(&line((x, y), (x, y + size(4) as i32), &FRAME))?;
        let style = small.pos(Pos::new(HPos::Center, VPos::Top));
        area.draw(&Text::new(label.clone(), (x, y + size(7) as i32), style))?;
    }
    let middle = place((across.low + across.high) / 2.0, bottom);
    let style = small.pos(Pos::new(HPos::Center, VPos::Top));
    area.draw(&Text::new(axis.title(), (middle.0, middle.1 + size(24) as i32), style))?;

    for curve in &chart.curves {
        draw_curve(&mut context, curve, axis, scale)?;
    }
    draw_legend(&area, chart, scale)?;
    area.present()?;
    Ok(())
}

type Context<'a, B> = ChartContext<'a, B, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

fn draw_curve<B: DrawingBackend>(
    context: &mut Context<B>,
    curve: &Curve,
    axis: Axis,
    scale: u32,
) -> Drawn
where
    B::ErrorType: 'static,
{
    let place = |point: &Point| (point.at[axis.index()], point.value);
    context.draw_series(LineSeries::new(curve.points.iter().map(place), style(curve, scale)))?;
    if has_dots(curve) {
        let dots = curve.points.iter().map(place);
        let filled = style(curve, scale).filled();
        context.draw_series(dots.map(|at| Circle::new(at, 3 * scale as i32, filled)))?;
    }
    Ok(())
}

fn has_dots(curve: &Curve) -> bool {
    let few = curve.points.len() <= 60;
    few && !curve.look.is_published && (curve.split == Split::HeldOut || curve.points.len() == 1)
}

/// Training is thin and pale, held-out rows are strong, a published run is gray.
fn style(curve: &Curve, scale: u32) -> ShapeStyle {
    let color = match curve.look.is_published {
        true => PUBLISHED,
        false => COLORS[curve.look.color % COLORS.len()],
    };
    match curve.split {
        Split::Train => color.mix(0.55).stroke_width(scale),
        Split::HeldOut => color.mix(1.0).stroke_width(2 * scale),
    }
}

/// The layout of the legend: the left end and the row of each entry, and the number of rows.
struct Legend {
    /// x in pixels of the figure, and the row; one per curve.
    places: Vec<(u32, u32)>,
    rows: u32,
}

const LEGEND_TOP: u32 = 60;
const LEGEND_ROW: u32 = 17;
/// The width of an entry's line, and the space after its text.
const LEGEND_LINE: u32 = 26;
const LEGEND_GAP: u32 = 20;
/// Longer names are cut.
const LEGEND_LETTERS: usize = 72;

impl Legend {
    fn new(labels: &[String]) -> Legend {
        let (mut x, mut row) = (MARGIN, 0);
        let mut places = Vec::new();
        for label in labels {
            // A letter of DejaVu Sans is about half as wide as its size.
            let width = LEGEND_LINE + (label.chars().count() * 56 / 10) as u32;
            if x > MARGIN && x + width > SIZE.0 - MARGIN {
                (x, row) = (MARGIN, row + 1);
            }
            places.push((x, row));
            x += width + LEGEND_GAP;
        }
        Legend { places, rows: row + 1 }
    }
}

/// The names of the curves; published runs come first, as their curves do.
fn labels(chart: &Chart) -> Vec<String> {
    let cut = |label: &String| match label.char_indices().nth(LEGEND_LETTERS) {
        Some((end, _)) => format!("{}…", &label[..end]),
        None => label.clone(),
    };
    chart.curves.iter().map(|curve| cut(&curve.label)).collect()
}

fn draw_legend<B: DrawingBackend>(area: &DrawingArea<B, Shift>, chart: &Chart, scale: u32) -> Drawn
where
    B::ErrorType: 'static,
{
    let unit = scale as i32;
    let labels = labels(chart);
    let legend = Legend::new(&labels);
    let text = TextStyle::from((FONT, f64::from(11 * scale))).color(&INK);
    for ((curve, label), (x, row)) in chart.curves.iter().zip(labels).zip(legend.places) {
        let (x, y) = (x as i32 * unit, (LEGEND_TOP + LEGEND_ROW * row) as i32 * unit);
        let end = x + 20 * unit;
        area.draw(&PathElement::new(vec![(x, y), (end, y)], style(curve, scale)))?;
        if has_dots(curve) {
            let dot = ((x + end) / 2, y);
            area.draw(&Circle::new(dot, 3 * unit, style(curve, scale).filled()))?;
        }
        let text = text.pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(label, (x + LEGEND_LINE as i32 * unit, y), text))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::charts::charts;
    use crate::report::record::RunRecord;
    use crate::train::event::LogRow;

    #[test]
    fn every_chart_becomes_two_files() {
        let row = |step: u64| LogRow {
            step,
            epoch: 0.0,
            values: vec![("loss".into(), 1.0 / step as f64), ("rewards/chosen".into(), 0.0)],
        };
        let rows = (1..=5).map(row).collect();
        let run = RunRecord { name: "a run".into(), step: 5, rows, ..RunRecord::default() };
        let folder = tempfile::tempdir().unwrap();
        let files = write(folder.path(), &charts(&[run]), Axis::Steps).unwrap();
        let names: Vec<_> =
            files.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["loss.svg", "loss.png", "rewards_chosen.svg", "rewards_chosen.png"]);
        let svg = fs::read_to_string(&files[0]).unwrap();
        assert!(svg.contains("a run, train") && svg.contains("optimizer step"), "{svg}");
        let png = fs::read(&files[1]).unwrap();
        assert!(png.starts_with(b"\x89PNG"));
        // A white image of this size has a few kilobytes; text and lines add more.
        assert!(png.len() > 10_000, "{}", png.len());
    }

    #[test]
    fn figures_stay_in_their_folder() {
        let mut taken = HashSet::new();
        let stems = [
            ".", "..", "", "/etc/x", "../x", "a/b", "a_b", "a.1", "a.2", "x\0\n", "C:\\x",
            ".bashrc",
        ]
        .map(|metric| free_stem(metric, &mut taken));
        let expected = [
            "_", "_.", "_-2", "_etc_x", "_._x", "a_b", "a_b-2", "a.1", "a.2", "x__", "C__x",
            "_bashrc",
        ];
        assert_eq!(stems, expected);
        assert_eq!(free_stem(&"é".repeat(200), &mut taken).len(), LONGEST_STEM);

        let values = [".", "..", "/planted"].map(|name| (name.to_owned(), 1.0)).to_vec();
        let rows = (1..=5).map(|step| LogRow { step, epoch: 0.0, values: values.clone() });
        let run = RunRecord { step: 5, rows: rows.collect(), ..RunRecord::default() };
        let outer = tempfile::tempdir().unwrap();
        write(&outer.path().join("figures"), &charts(&[run]), Axis::Steps).unwrap();
        let names: Vec<_> = fs::read_dir(outer.path()).unwrap().flatten().collect();
        assert_eq!(names.len(), 1, "a figure is outside of the folder");
    }

    #[test]
    fn legends_stay_within_the_figure() {
        let labels = |count: usize, letters: usize| vec!["x".repeat(letters); count];
        assert_eq!(Legend::new(&labels(2, 20)).places, [(16, 0), (174, 0)]);
        let many = Legend::new(&labels(16, 24));
        assert_eq!((many.rows, many.places[3]), (6, (16, 1)));
        assert_eq!(Legend::new(&labels(3, LEGEND_LETTERS)).rows, 3);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(write(&file, &[], Axis::Steps).is_err());
    }
}
