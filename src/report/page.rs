//! The report as one self-contained HTML page: no network, no fonts, and a script only for the
//! read-out under the pointer.

mod parts;
mod scores;
mod svg;
mod sweep;
mod tables;

use minijinja::Environment;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use serde::Serialize;

use super::chart::{Axis, Chart, Look};
use super::charts::charts;
use super::record::RunRecord;
use super::run_facts::Facts;
use parts::{Details, LegendEntry, details};
use scores::{ScoreTask, score_tasks};
pub use sweep::{SweepRow, SweepTable, SweepTables};
use tables::{Agreement, FinalRow};

const TEMPLATE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");
const NAME: &str = "page.html";
/// Longer curves are thinned to this many points, which keeps pages small; a screen shows no more.
const MOST_POINTS: usize = 2000;
/// If planned lengths differ by more than this factor, the page opens with the axis in shares of
/// the run, because by steps a short run would be a dot.
const SAME_LENGTH: f64 = 3.0;

/// One model's answers to the report's prompts.
#[derive(Debug, Clone, Serialize)]
pub struct Answers {
    /// The name of the run.
    pub model: String,
    /// One answer per prompt.
    pub texts: Vec<String>,
}

/// The content of a page.
pub struct Page<'a> {
    pub title: String,
    /// The runs; the others are compared with the first.
    pub runs: &'a [RunRecord],
    pub prompts: &'a [String],
    pub answers: &'a [Answers],
    /// A sentence on how the answers were generated.
    pub answers_note: String,
    /// The tables of a sweep, if the runs form one. They come first, and no run is compared with
    /// the first run.
    pub sweep: Option<SweepTables>,
}

/// The values that the template reads.
#[derive(Serialize)]
struct Facing<'a> {
    style: &'static str,
    script: &'static str,
    title: &'a str,
    version: &'static str,
    tables: Vec<sweep::Table>,
    /// Facts that all runs of a sweep share.
    common: Facts,
    cards: Vec<RunCard>,
    /// The runs' names.
    names: Vec<&'a str>,
    legend: Vec<LegendEntry>,
    /// Whether some curves are paler than in the legend.
    has_paler: bool,
    /// The initial axis, an index into [`Axis::ALL`].
    axis: usize,
    figures: Vec<Figure>,
    score_tasks: Vec<ScoreTask>,
    has_published_scores: bool,
    final_rows: Vec<FinalRow>,
    /// Whether the table of final values shows differences to the first run.
    has_differences: bool,
    agreements: Vec<Agreement>,
    prompts: &'a [String],
    answers: &'a [Answers],
    answers_note: &'a str,
    details: Vec<Details>,
}

#[derive(Serialize)]
struct RunCard {
    name: String,
    class: String,
    facts: Facts,
    /// Percent of the planned steps, for a run in progress.
    progress: Option<u64>,
}

#[derive(Serialize)]
struct Figure {
    title: String,
    unit: String,
    plots: Vec<String>,
    data: String,
}

impl Page<'_> {
    /// Renders the page.
    ///
    /// # Errors
    /// Errors in the template itself.
    pub fn to_html(&self) -> Result<String, minijinja::Error> {
        let mut environment = Environment::new();
        environment
            .set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.add_template(NAME, TEMPLATE)?;
        environment.get_template(NAME)?.render(Value::from(Serde(self.facing())))
    }

    fn facing(&self) -> Facing<'_> {
        let runs = self.runs;
        let score_tasks = score_tasks(runs);
        let common = Facing {
            style: STYLE,
            script: SCRIPT,
            title: &self.title,
            version: env!("CARGO_PKG_VERSION"),
            tables: Vec::new(),
            common: Facts::new(),
            cards: Vec::new(),
            names: runs.iter().map(|run| run.name.as_str()).collect(),
            legend: Vec::new(),
            has_paler: false,
            axis: self.first_axis().index(),
            figures: charts(runs).iter().map(figure).collect(),
            has_published_scores: score_tasks.iter().any(|task| task.published.is_some()),
            score_tasks,
            final_rows: tables::final_values(runs),
            has_differences: false,
            agreements: Vec::new(),
            prompts: self.prompts,
            answers: self.answers,
            answers_note: &self.answers_note,
            details: Vec::new(),
        };
        match &self.sweep {
            None => Facing {
                cards: runs.iter().enumerate().map(card).collect(),
                legend: runs.iter().enumerate().map(legend_entry).collect(),
                has_differences: true,
                agreements: tables::agreements(runs),
                details: runs.iter().flat_map(details).collect(),
                ..common
            },
            Some(tables) => Facing {
                tables: tables.faced(),
                common: sweep::common_facts(&runs.iter().map(facts).collect::<Vec<_>>()),
                legend: sweep::legend(runs),
                has_paler: runs.iter().enumerate().any(|(i, run)| Look::of(i, run).repeat > 0),
                details: sweep::common_details(runs),
                ..common
            },
        }
    }

    /// The axis that the page opens with.
    pub fn first_axis(&self) -> Axis {
        let lengths = || self.runs.iter().map(|run| run.step.max(run.max_steps).max(1) as f64);
        let (shortest, longest) =
            (lengths().fold(f64::INFINITY, f64::min), lengths().fold(0.0, f64::max));
        if longest > SAME_LENGTH * shortest { Axis::Share } else { Axis::Steps }
    }
}

fn legend_entry((index, run): (usize, &RunRecord)) -> LegendEntry {
    LegendEntry { class: svg::class(Look::of(index, run)), name: run.name.clone() }
}

fn card((index, run): (usize, &RunRecord)) -> RunCard {
    let progress =
        (!run.is_finished()).then(|| (100.0 * run.share(run.step)).round().min(100.0) as u64);
    let class = svg::class(Look::of(index, run));
    RunCard { name: run.name.clone(), class, facts: facts(run), progress }
}

/// The facts on a run's card.
fn facts(run: &RunRecord) -> Facts {
    let mut facts = Facts::new();
    let mut fact = |name: &str, value: String| facts.push((name.to_owned(), value));
    let recorded = |name: &str| {
        let known = run.facts.as_ref()?;
        known.facts.iter().find(|(fact, _)| fact == name).map(|(_, value)| value.clone())
    };
    if let Some(known) = &run.facts {
        fact("stage", known.stage.to_uppercase());
    }
    for name in ["source", "model", "parameters", "training rows", "rows a step"] {
        if let Some(value) = recorded(name) {
            fact(name, value);
        }
    }
    let steps = match run.max_steps {
        0 => run.step.to_string(),
        steps if steps == run.step => steps.to_string(),
        steps => format!("{} of {steps}", run.step),
    };
    fact("steps", steps);
    if let Some(row) = run.rows.last() {
        fact("epochs", crate::report::console::short(row.epoch));
    }
    if let Some((_, seconds)) = run.last("train_runtime") {
        fact("training time", duration(seconds));
    }
    facts
}

/// Formats seconds: `5 h 02 min`, `8 min 14 s`, `18.1 s`.
fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

fn figure(chart: &Chart) -> Figure {
    let chart = chart.thinned(MOST_POINTS);
    Figure {
        plots: Axis::ALL.iter().map(|axis| svg::draw(&chart, *axis)).collect(),
        data: svg::read_out(&chart),
        title: chart.title,
        unit: chart.unit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::published;
    use crate::train::event::LogRow;

    fn run(name: &str, loss: f64) -> RunRecord {
        let row = |step: u64, values: &[(&str, f64)]| LogRow {
            step,
            epoch: 0.5,
            values: values.iter().map(|&(name, value)| (name.to_owned(), value)).collect(),
        };
        let rows = vec![
            row(1, &[("loss", loss), ("rewards/margins", 0.0)]),
            row(2, &[("loss", loss / 2.0), ("rewards/margins", 0.5)]),
            row(2, &[("eval_loss", loss / 3.0)]),
        ];
        RunRecord { name: name.into(), step: 2, max_steps: 4, rows, ..RunRecord::default() }
    }

    fn page(runs: &[RunRecord]) -> String {
        let prompts = ["What is <b>?".to_owned()];
        let answers = [Answers { model: "ours & co".into(), texts: vec!["a < b".into()] }];
        let note = "Greedy.".to_owned();
        let title = "A report".to_owned();
        let sweep = None;
        Page { title, runs, prompts: &prompts, answers: &answers, answers_note: note, sweep }
            .to_html()
            .unwrap()
    }

    #[test]
    fn the_page_stands_alone() {
        let html = page(&[run("ours & co", 0.7), run("theirs", 0.6)]);
        for elsewhere in ["http://", "https://", "src=", "<link", "@import", "url("] {
            assert!(!html.contains(elsewhere), "{elsewhere} in the page");
        }
        assert!(html.starts_with("<!doctype html>"));
        assert!(html.contains("prefers-color-scheme"));
        assert!(html.contains("ours &amp; co") && !html.contains("ours & co"));
        assert!(html.contains("What is &lt;b&gt;?") && html.contains("a &lt; b"));
        assert_eq!(
            html.matches("class=\"plot ").count(),
            2 * 3,
            "loss and margins, three axes each"
        );
    }

    #[test]
    fn runs_of_different_length_are_shown_by_share() {
        let short = run("a", 0.7);
        let published = published::find("zephyr-7b-beta").unwrap();
        assert!(page(std::slice::from_ref(&short)).contains("id=\"by-step\" checked"));
        assert!(page(&[short, published]).contains("id=\"by-share\" checked"));
    }

    #[test]
    fn a_long_run_has_a_page_of_bearable_size() {
        let row = |step: u64| LogRow {
            step,
            epoch: step as f64 / 1e4,
            values: vec![("loss".to_owned(), 0.5 + (step as f64).sin())],
        };
        let rows: Vec<LogRow> = (1..=50_000).map(row).collect();
        let long = RunRecord { name: "long".into(), step: 50_000, rows, ..RunRecord::default() };
        let html = page(&[long.clone(), RunRecord { name: "again".into(), ..long }]);
        assert!(html.len() < 1_000_000, "{}", html.len());
        let in_common = "<td class=\"number\">50000</td>";
        assert!(html.contains(in_common), "tables are made of all rows");
    }

    #[test]
    fn a_run_in_progress_says_so() {
        assert!(page(&[run("a", 0.7)]).contains("2 of 4"));
        assert_eq!(duration(18.09), "18.1 s");
        assert_eq!(duration(494.4), "8 min 14 s");
        assert_eq!(duration(23_865.98), "6 h 37 min");
    }
}
