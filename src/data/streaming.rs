//! The rows of a recipe with `streaming: true`: training rows are read and tokenized by a thread
//! while the run trains, held-out rows before it.

use std::io;
use std::path::Path;

use super::DataError;
use super::PreferencePair;
use super::Progress;
use super::SftDocument;
use super::SftRow;
use super::Splits;
use super::Tokenizer;
use super::load::{
    documents, has_target, inserts_system, length_settings, load_preferences, load_sft, pairs,
    preference_rules, row_settings,
};
use super::loader::{Failure, Loader, check_bad_rows};
use super::packing::{self, WINDOW};
use super::report::RowReport;
use super::row_list::RowList;
use super::sft::SftRules;
use super::stored::Stored;
use super::stream::{RowStream, Sender};
use super::triples::{self, load_triples, triples};
use super::unfinished::Hold;
use crate::recipe::{DataSettings, DatasetSpec, Mixture, Objective, Recipe, SftSettings};

/// What a streamed run needs besides its recipe.
pub struct Streaming<'a, T> {
    /// The run's tokenizer, for the thread.
    pub tokenizer: Tokenizer,
    /// The number of training rows that the run visits.
    pub rows: usize,
    /// Refuses a row that the model cannot compute.
    pub check: fn(&T, &Limits) -> Result<(), String>,
    pub limits: Limits,
    /// The folder that keeps the token ids of held-out rows between runs.
    pub cache: &'a Path,
    pub progress: &'a dyn Progress,
}

/// What the model and the recipe allow for a row.
#[derive(Debug, Clone)]
pub struct Limits {
    pub model: String,
    pub vocab_size: usize,
    /// Tokens of a row.
    pub tokens: Option<usize>,
}

/// Streams the rows of an SFT recipe; `tokenizer` is the run's tokenizer.
///
/// # Errors
/// See [`DataError`]. Errors of training rows come when the rows are needed.
///
/// # Panics
/// If the recipe is not for SFT.
pub fn stream_sft(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    streaming: Streaming<SftRow>,
) -> Result<Splits<SftRow>, DataError> {
    let Objective::Sft(sft) = &recipe.objective else {
        panic!("documents are streamed for SFT recipes")
    };
    let settings = row_settings(sft, recipe.train.seed);
    let Streaming { cache, progress, .. } = streaming;
    let test = held_out(recipe, |recipe| load_sft(recipe, tokenizer, Some(cache), progress))?;
    let sft = sft.clone();
    streamed(recipe, streaming, ["documents", &settings], test, move |loader, tokenizer, send| {
        let insert_system = inserts_system(loader.data(), tokenizer);
        let length = sft.max_length.filter(|_| sft.packing);
        let rules = SftRules { tokenizer, sft: &sft, insert_system, packing: length.is_some() };
        let mut packer = Packer { waiting: Vec::new(), length, sft: &sft };
        let mut sink =
            |batch: Vec<SftDocument>, report: &RowReport| send(packer.rows(batch, false), report);
        let rows = loader.train_rows();
        let (_, report) = documents(loader, &rules, "train", rows, Hold::Sent(&mut sink))?;
        send(packer.rows(Vec::new(), true), &report).map_err(Failure::Cache)
    })
}

/// Streams the pairs of a DPO, ORPO, CPO or TPO recipe; `tokenizer` is the run's tokenizer.
///
/// # Errors
/// See [`DataError`]. Errors of training rows come when the rows are needed.
///
/// # Panics
/// If the objective has no pairs.
pub fn stream_pairs(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    streaming: Streaming<PreferencePair>,
) -> Result<Splits<PreferencePair>, DataError> {
    let lengths = recipe.objective.lengths().expect("an SFT recipe has no pairs").clone();
    let Streaming { cache, progress, .. } = streaming;
    let gold = match &recipe.objective {
        Objective::Tpo(tpo) => Some(tpo.clone()),
        _ => None,
    };
    let test = held_out(recipe, |recipe| match &gold {
        Some(_) => load_triples(recipe, tokenizer, Some(cache), progress),
        None => load_preferences(recipe, tokenizer, Some(cache), progress),
    })?;
    let (what, settings) = match &gold {
        Some(tpo) => ("triples", triples::settings(tpo)),
        None => ("pairs", length_settings(&lengths)),
    };
    streamed(recipe, streaming, [what, &settings], test, move |loader, tokenizer, send| {
        let rules = preference_rules(loader.data(), &lengths, tokenizer);
        let (rows, hold) = (loader.train_rows(), Hold::Sent(send));
        match &gold {
            Some(tpo) => triples(loader, &rules, tpo.has_nll(), "train", rows, hold),
            None => pairs(loader, &rules, "train", rows, hold),
        }?;
        Ok(())
    })
}

/// Packs documents as they come.
struct Packer<'a> {
    /// Documents of a window that is not full yet.
    waiting: Vec<SftDocument>,
    /// Tokens of a packed row; `None` if each document is a row.
    length: Option<usize>,
    sft: &'a SftSettings,
}

impl Packer<'_> {
    /// The rows that are complete after `batch`. `is_last`: no further documents come.
    fn rows(&mut self, batch: Vec<SftDocument>, is_last: bool) -> Vec<SftRow> {
        let Some(length) = self.length else {
            return batch
                .into_iter()
                .map(|document| SftRow { documents: vec![document] })
                .collect();
        };
        self.waiting.extend(batch);
        let mut rows = Vec::new();
        while self.waiting.len() >= WINDOW || (is_last && !self.waiting.is_empty()) {
            let window: Vec<_> = self.waiting.drain(..WINDOW.min(self.waiting.len())).collect();
            rows.extend(packing::pack(&window, length, self.sft.packing_strategy));
        }
        rows.retain(has_target);
        rows
    }
}

/// Checks rows, and the report up to them, and sends the rows.
type Deliver<'a, T> = &'a mut dyn FnMut(Vec<T>, &RowReport) -> io::Result<()>;

/// Splits with the training rows that `make` sends from a thread of its own. `what` and `settings`
/// name the rows.
fn streamed<T: Stored + Clone + Send + 'static>(
    recipe: &Recipe,
    streaming: Streaming<T>,
    [what, settings]: [&str; 2],
    test: Option<Splits<T>>,
    make: impl FnOnce(&Loader, &Tokenizer, Deliver<T>) -> Result<(), Failure> + Send + 'static,
) -> Result<Splits<T>, DataError> {
    let Streaming { tokenizer, rows: needed, check, limits, .. } = streaming;
    let loader = Loader::open(&recipe.data, &tokenizer, None, &(), what, settings)?;
    let found = loader.train_rows().len();
    if !loader.train_rows().is_sorted_by_key(|row| (row.set, row.row)) {
        return Err(DataError::StreamOrder);
    }
    if found < needed {
        return Err(DataError::StreamEnds { rows: found, needed });
    }
    let train_fingerprint = loader.outline(&tokenizer, what, settings)?;
    let mut data = recipe.data.clone();
    // The run's pool may consist of the thread that waits for the rows.
    data.dataset_num_proc.get_or_insert(rayon::current_num_threads());
    let (what, settings) = (what.to_owned(), settings.to_owned());
    let stream = RowStream::start(needed, move |sender: &mut Sender<T>| {
        let loader = Loader::open(&data, &tokenizer, None, &(), &what, &settings)?;
        let (mut sent, mut failed) = (0, None);
        let mut send = |rows: Vec<T>, report: &RowReport| {
            failed = refused(&rows, sent, report, &data, |row| check(row, &limits));
            sent += rows.len();
            match failed {
                None => sender.send(rows),
                Some(_) => Err(io::Error::other("a row is refused")),
            }
        };
        let made = make(&loader, &tokenizer, &mut send);
        match (failed, made) {
            (Some(error), _) => Err(error),
            (None, Err(Failure::Data(error))) => Err(*error),
            // Rows that are not taken are not needed.
            (None, Ok(()) | Err(Failure::Cache(_))) => Ok(()),
        }
    });
    let (test, test_report) = match test {
        Some(splits) => (splits.test, splits.test_report),
        None => (RowList::default(), RowReport::default()),
    };
    let mut both = blake3::Hasher::new();
    both.update(&train_fingerprint);
    test.iter().for_each(|row| {
        let mut numbers = Vec::new();
        row.write(&mut numbers);
        both.update(bytemuck::cast_slice(&numbers));
    });
    Ok(Splits {
        train: RowList::streamed(stream),
        test,
        train_report: RowReport { read: found, kept: found, ..RowReport::default() },
        test_report,
        fingerprint: *both.finalize().as_bytes(),
        train_fingerprint,
    })
}

/// Why a batch of rows ends the run. `before` is the number of rows before it.
fn refused<T>(
    rows: &[T],
    before: usize,
    report: &RowReport,
    data: &DataSettings,
    check: impl Fn(&T) -> Result<(), String>,
) -> Option<DataError> {
    if let Err(error) = check_bad_rows("train", report, data.max_bad_rows) {
        return Some(error);
    }
    let mut numbered = (before..).zip(rows);
    numbered.find_map(|(row, content)| {
        let message = check(content).err()?;
        Some(DataError::StreamedRow { row, message })
    })
}

/// The held-out rows of a recipe, loaded by `load` as for a run without streaming; `None` if the
/// recipe has none.
fn held_out<T: Clone>(
    recipe: &Recipe,
    load: impl FnOnce(&Recipe) -> Result<Splits<T>, DataError>,
) -> Result<Option<Splits<T>>, DataError> {
    let Mixture::Named { test: Some(test), .. } = &recipe.data.mixture else { return Ok(None) };
    let mut recipe = recipe.clone();
    // The training split is not read: no row of it is taken.
    let train = DatasetSpec { fraction: 0.0, ..test.clone() };
    recipe.data.mixture = Mixture::Named { train, test: Some(test.clone()) };
    load(&recipe).map(Some)
}
