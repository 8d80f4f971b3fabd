//! Loads a recipe's data as token ids of both splits.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Once,
};

use rayon::prelude::*;

use super::DataError;
use super::PreferencePair;
use super::Progress;
use super::SftDocument;
use super::SftRow;
use super::Tokenizer;
use super::TokenizerError;
use super::cache::{self, IN_MEMORY, Kept, Made, Stored};
use super::mixture::{self, ChosenRows};
use super::numpy_random::numpy_permutation;
use super::packing::{self, WINDOW};
use super::preference::PreferenceRules;
use super::report::{BadRow, RowReport};
use super::row::Outcome;
use super::row_list::RowList;
use super::sft::SftRules;
use super::source::{CHAT_TEMPLATE_KWARGS, Cell, RawRow, SourceFile, TEMPLATE_COLUMNS};
use super::template_values::TemplateValues;
use super::unfinished::{self, Unfinished};
use crate::files::cache_lock::CacheLock;
use crate::files::replace::temporary_folder;
use crate::hub::resolve;
use crate::recipe::{
    DataSettings, DatasetSpec, Lengths, Objective, Packing, Preprocessing, Recipe, SftSettings,
};

/// Columns in which preference data sets keep the prompt under another name than `prompt`.
const PROMPT_LIKE: [&str; 9] = [
    "question",
    "instruction",
    "conversations",
    "messages",
    "input",
    "query",
    "context",
    "history",
    "system",
];

/// Both splits of a data set as token ids.
#[derive(Debug, Clone, PartialEq)]
pub struct Splits<T: Clone> {
    pub train: RowList<T>,
    pub test: RowList<T>,
    pub train_report: RowReport,
    pub test_report: RowReport,
    /// A hash of the token ids of both splits: their content and their order.
    pub fingerprint: [u8; 32],
    /// The same hash of the training rows alone.
    pub train_fingerprint: [u8; 32],
}

/// Loads the preference pairs of a DPO, ORPO or CPO recipe. `cache` is a folder that keeps token
/// ids between runs.
///
/// # Errors
/// See [`DataError`].
///
/// # Panics
/// If the recipe is for SFT.
pub fn load_preferences(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    cache: Option<&Path>,
    progress: &dyn Progress,
) -> Result<Splits<PreferencePair>, DataError> {
    let lengths = recipe.objective.lengths().expect("an SFT recipe has no pairs");
    load_pairs(&recipe.data, lengths, tokenizer, cache, progress)
}

/// Loads the rows of an SFT recipe, packed if the recipe asks for it. `cache` is a folder that
/// keeps token ids between runs.
///
/// # Errors
/// See [`DataError`].
///
/// # Panics
/// If the recipe is not for SFT.
pub fn load_sft(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    cache: Option<&Path>,
    progress: &dyn Progress,
) -> Result<Splits<SftRow>, DataError> {
    let Objective::Sft(sft) = &recipe.objective else {
        panic!("documents are loaded for SFT recipes")
    };
    load_documents(recipe, sft, tokenizer, cache, progress)
}

fn load_pairs(
    data: &DataSettings,
    lengths: &Lengths,
    tokenizer: &Tokenizer,
    cache: Option<&Path>,
    progress: &dyn Progress,
) -> Result<Splits<PreferencePair>, DataError> {
    let rules = preference_rules(data, lengths, tokenizer);
    let settings = length_settings(lengths);
    let loader = Loader::open(data, tokenizer, cache, progress, "pairs", &settings)?;
    loader.load(|split, rows, base| {
        let columns = |set: &Set| {
            let has = |name: &str| set.columns.iter().any(|column| column == name);
            let missing: Vec<&str> =
                ["chosen", "rejected"].into_iter().filter(|name| !has(name)).collect();
            if !missing.is_empty() {
                let wanted = format!("`{}`", missing.join("` and no `"));
                return Err(set.no_column(
                    wanted,
                    "a preference data set has `chosen` and `rejected`, and may have `prompt`",
                ));
            }
            let names = ["chosen", "rejected", "prompt"].into_iter().filter(|name| has(name));
            Ok(names.map(str::to_owned).collect())
        };
        let (pairs, report) =
            loader.rows(split, rows, base, columns, |set, _, cells, values| {
                let mut cells = cells.into_iter();
                match (cells.next(), cells.next(), cells.next()) {
                    (Some(chosen), Some(rejected), prompt) => {
                        set.note_unread_prompt(&chosen, prompt.as_ref());
                        rules.pair(chosen, rejected, prompt, values)
                    }
                    _ => Ok(Outcome::Bad(BadRow::MissingField("rejected".to_owned()))),
                }
            })?;
        Ok(Made { rows: pairs.into_rows(), report })
    })
}

/// The rules that turn rows of this data into pairs.
pub(super) fn preference_rules<'a>(
    data: &DataSettings,
    lengths: &'a Lengths,
    tokenizer: &'a Tokenizer,
) -> PreferenceRules<'a> {
    PreferenceRules {
        tokenizer,
        lengths,
        preprocessing: data.preprocessing,
        insert_system: data.auto_insert_empty_system_msg && names_system(tokenizer),
        warned: Once::new(),
    }
}

/// The lengths as part of the cache key.
pub(super) fn length_settings(lengths: &Lengths) -> String {
    let Lengths { max_length, max_prompt_length, max_completion_length, truncation_mode } = lengths;
    format!("{max_length:?} {max_prompt_length:?} {max_completion_length:?} {truncation_mode:?}")
}

/// The settings that rows depend on, as part of the cache key.
fn row_settings(sft: &SftSettings, seed: u64) -> String {
    let SftSettings {
        loss_type: _,
        max_length,
        packing,
        packing_strategy,
        eval_packing,
        completion_only_loss,
        assistant_only_loss,
        dataset_text_field,
        label_smoothing_factor: _,
        shuffle_dataset,
    } = sft;
    let shuffled = shuffle_dataset.then(|| format!(" shuffled by {seed}")).unwrap_or_default();
    format!(
        "SftSettings {{ max_length: {max_length:?}, packing: {packing:?}, packing_strategy: \
         {packing_strategy:?}, eval_packing: {eval_packing:?}, completion_only_loss: \
         {completion_only_loss:?}, assistant_only_loss: {assistant_only_loss:?}, \
         dataset_text_field: {dataset_text_field:?} }}{shuffled}"
    )
}

fn load_documents(
    recipe: &Recipe,
    sft: &SftSettings,
    tokenizer: &Tokenizer,
    cache: Option<&Path>,
    progress: &dyn Progress,
) -> Result<Splits<SftRow>, DataError> {
    let (data, seed) = (&recipe.data, recipe.train.seed);
    let insert_system = data.auto_insert_empty_system_msg && names_system(tokenizer);
    let settings = row_settings(sft, seed);
    let loader = Loader::open(data, tokenizer, cache, progress, "documents", &settings)?;
    loader.load(|split, rows, base| {
        let packed = match split {
            "train" => sft.packing,
            _ => sft.eval_packing,
        };
        let length = sft.max_length.filter(|_| packed);
        let rules = SftRules { tokenizer, sft, insert_system, packing: length.is_some() };
        let layout_of = |set: &Set| {
            rules.columns(&set.columns).ok_or_else(|| {
                let wanted = format!(
                    "`messages`, no `prompt` and `completion`, and no `{}`",
                    rules.text_field()
                );
                set.no_column(wanted, "name the column of plain text with dataset_text_field")
            })
        };
        let columns = |set: &Set| {
            let (layout, columns) = layout_of(set)?;
            rules.check_labels(split, layout)?;
            Ok(columns)
        };
        let (documents, report) =
            loader.rows(split, rows, base, columns, |set, columns, cells, values| {
                match rules.columns(&set.columns) {
                    Some((layout, _)) => rules.document(layout, columns, cells, values),
                    None => Ok(Outcome::Bad(BadRow::MissingField(columns.join(", ")))),
                }
            })?;
        let shuffle = sft.shuffle_dataset.then_some(seed);
        Ok(Made { rows: rows_of(documents, length, sft.packing_strategy, shuffle), report })
    })
}

/// The rows of documents: packed if a length is given, else one row for each document. With
/// `shuffle`, documents and packed rows are shuffled with this seed, as in TRL; packed rows are then
/// all in memory at once. Leaves out packed rows without a target; TRL would make batch rows of
/// them that add nothing to the loss.
fn rows_of(
    documents: RowList<SftDocument>,
    length: Option<usize>,
    strategy: Packing,
    shuffle: Option<u64>,
) -> cache::Rows<SftRow> {
    let has_target = |row: &SftRow| row.documents.iter().any(|document| document.targets() > 0);
    let row = |document| SftRow { documents: vec![document] };
    let order = shuffle.map(|seed| numpy_permutation(documents.len(), seed));
    match (length, shuffle, order) {
        (Some(length), Some(seed), Some(order)) => {
            let rows = packed_rows(documents, order, length, strategy).collect();
            Box::new(shuffled(rows, seed).into_iter().filter(has_target))
        }
        (Some(length), ..) => {
            let order = (0..documents.len()).collect();
            Box::new(packed_rows(documents, order, length, strategy).filter(has_target))
        }
        (None, _, Some(order)) => {
            Box::new(order.into_iter().map(move |at| row(documents.get(at).into_owned())))
        }
        (None, _, None) => Box::new(documents.into_rows().map(row)),
    }
}

/// Packs documents in this order, window by window.
fn packed_rows(
    documents: RowList<SftDocument>,
    order: Vec<usize>,
    length: usize,
    strategy: Packing,
) -> impl Iterator<Item = SftRow> {
    let windows = (0..order.len()).step_by(WINDOW);
    windows.flat_map(move |start| {
        let window = &order[start..order.len().min(start + WINDOW)];
        let window: Vec<_> = window.iter().map(|row| documents.get(*row).into_owned()).collect();
        packing::pack(&window, length, strategy)
    })
}

/// The items in the order of `Dataset.shuffle(seed)` of `datasets`.
fn shuffled<T>(items: Vec<T>, seed: u64) -> Vec<T> {
    let order = numpy_permutation(items.len(), seed);
    let mut items: Vec<Option<T>> = items.into_iter().map(Some).collect();
    order.into_iter().filter_map(|at| items[at].take()).collect()
}

/// Whether the template uses a system message, by the handbook's own test.
fn names_system(tokenizer: &Tokenizer) -> bool {
    tokenizer
        .chat_template()
        .is_some_and(|template| template.contains("system") || template.contains("<|im_start|>"))
}

/// A data set with its files open.
pub(super) struct Set {
    spec: DatasetSpec,
    files: Vec<SourceFile>,
    pub columns: Vec<String>,
    /// Completed once a column was named that may hold the prompt but is not read.
    noted: Once,
}

impl Set {
    pub fn open(spec: &DatasetSpec) -> Result<Self, DataError> {
        let paths = resolve::resolve_dataset(&spec.split_name())?;
        let files: Vec<SourceFile> =
            paths.iter().map(|path| SourceFile::open(path)).collect::<Result<_, _>>()?;
        // A key may appear in the later files of a split only.
        let mut columns: Vec<String> = Vec::new();
        for column in files.iter().flat_map(|file| &file.columns) {
            if !columns.contains(column) {
                columns.push(column.clone());
            }
        }
        let mut set = Self { spec: spec.clone(), files, columns, noted: Once::new() };
        if let Some(chosen) = &spec.columns {
            if let Some(missing) = chosen.iter().find(|column| !set.columns.contains(column)) {
                return Err(
                    set.no_column(format!("`{missing}`"), "correct `columns` in the recipe")
                );
            }
            set.columns.retain(|column| chosen.contains(column));
        }
        Ok(set)
    }

    pub fn rows(&self) -> usize {
        self.files.iter().map(|file| file.rows).sum()
    }

    fn has(&self, name: &str) -> bool {
        self.columns.iter().any(|own| own == name)
    }

    /// The columns that this kind of rows gives to the chat template, as in TRL: its trainers of
    /// ORPO and CPO pass no tools, and the handbook passed nothing. Warns of the others.
    fn template_columns(&self, passed: &[&str]) -> Vec<String> {
        let there = TEMPLATE_COLUMNS.into_iter().filter(|name| self.has(name));
        let (read, missed): (Vec<&str>, Vec<&str>) = there.partition(|name| passed.contains(name));
        for name in missed {
            tracing::warn!(
                "{}: the column `{name}` is not read; as in the trainer that \
                 `preference_semantics` names, the chat template does not get it",
                self.spec.id
            );
        }
        read.into_iter().map(str::to_owned).collect()
    }

    /// Warns once if the responses are texts without a prompt, and another column may hold it.
    pub fn note_unread_prompt(&self, chosen: &Cell, prompt: Option<&Cell>) {
        let (Cell::Text(_), None) = (chosen, prompt) else { return };
        let Some(column) = PROMPT_LIKE.into_iter().find(|name| self.has(name)) else { return };
        self.noted.call_once(|| {
            tracing::warn!(
                "{}: no column `prompt`; the prompt of a row is the start that `chosen` and \
                 `rejected` share, and the column `{column}` is not read; if it holds the prompt, \
                 rename it to `prompt`",
                self.spec.id
            );
        });
    }

    pub fn no_column(&self, wanted: String, help: &str) -> DataError {
        DataError::Column {
            path: self
                .files
                .first()
                .map_or_else(|| PathBuf::from(&self.spec.id), |file| file.path.clone()),
            wanted,
            columns: self.columns.clone(),
            help: help.to_owned(),
        }
    }
}

/// Why rows cannot be made: the data, or the cache that should hold them.
pub(super) enum Failure {
    Data(Box<DataError>),
    Cache(io::Error),
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        Self::Data(Box::new(error))
    }
}

/// Without files for the rows, only the data can fail.
impl From<Failure> for DataError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Data(error) => *error,
            Failure::Cache(source) => Self::Io { path: PathBuf::new(), source },
        }
    }
}

/// The parts that all ways of loading share: the sets, the chosen rows, the cache.
pub(super) struct Loader<'a> {
    data: &'a DataSettings,
    sets: Vec<Set>,
    /// For each set, the columns that go to the chat template.
    template_columns: Vec<Vec<String>>,
    chosen: ChosenRows,
    kept_at: Option<PathBuf>,
    threads: Option<rayon::ThreadPool>,
    progress: &'a dyn Progress,
}

impl<'a> Loader<'a> {
    pub fn open(
        data: &'a DataSettings,
        tokenizer: &Tokenizer,
        cache: Option<&Path>,
        progress: &'a dyn Progress,
        what: &str,
        settings: &str,
    ) -> Result<Self, DataError> {
        let sets: Vec<Set> =
            mixture::specs(&data.mixture).into_iter().map(Set::open).collect::<Result<_, _>>()?;
        let passed: &[&str] = match data.preprocessing {
            _ if what == "documents" => &TEMPLATE_COLUMNS,
            Preprocessing::Trl => &TEMPLATE_COLUMNS,
            Preprocessing::TrlText => &[CHAT_TEMPLATE_KWARGS],
            Preprocessing::HandbookV1 => &[],
        };
        let template_columns = sets.iter().map(|set| set.template_columns(passed)).collect();
        let counts: Vec<usize> = sets.iter().map(Set::rows).collect();
        let chosen = mixture::choose_rows(data, &counts)?;
        let threads = data.dataset_num_proc.map(thread_pool).transpose()?;
        let kept_at = match cache {
            Some(folder) => Some(cache_key(data, &sets, tokenizer, what, settings)?.path(folder)),
            None => None,
        };
        Ok(Self { data, sets, template_columns, chosen, kept_at, threads, progress })
    }

    /// Loads both splits from the cache, or makes and stores them. `make` gets the split's name,
    /// its rows, and the start of the names of the files for unfinished rows; without the latter,
    /// rows are held in memory.
    pub fn load<T: Stored + Clone>(
        &self,
        make: impl Fn(&'static str, &[mixture::RowRef], Option<&Path>) -> Result<Made<T>, Failure>,
    ) -> Result<Splits<T>, DataError> {
        let stored = self.kept_at.as_deref().and_then(|path| cache::load(path, IN_MEMORY));
        let stored = match (stored, &self.kept_at) {
            (Some(kept), _) => Some(kept),
            (None, None) => None,
            (None, Some(path)) => match self.prepare(path, &make) {
                Ok(kept) => Some(kept),
                Err(Failure::Data(error)) => return Err(*error),
                Err(Failure::Cache(error)) => {
                    let path = path.display();
                    tracing::warn!("{path}: cannot store the token ids: {error}");
                    None
                }
            },
        };
        let kept = match stored {
            Some(kept) => kept,
            None => {
                let train = make("train", &self.chosen.train, None)?;
                let test = make("test", &self.chosen.test, None)?;
                Kept::in_memory(train, test)
            }
        };
        let Kept { train, test, train_report, test_report, fingerprint, train_fingerprint } = kept;
        self.judge("train", train.is_empty(), &train_report)?;
        self.judge("test", test.is_empty(), &test_report)?;
        Ok(Splits { train, test, train_report, test_report, fingerprint, train_fingerprint })
    }

    /// Makes both splits in files, and stores them at `path`. A start after a kill continues with
    /// the files that the killed process left.
    fn prepare<T: Stored + Clone>(
        &self,
        path: &Path,
        make: &impl Fn(&'static str, &[mixture::RowRef], Option<&Path>) -> Result<Made<T>, Failure>,
    ) -> Result<Kept<T>, Failure> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        std::fs::create_dir_all(folder).map_err(Failure::Cache)?;
        let lock = CacheLock::take(folder, &name);
        // Another process may be making the same rows. Then this one uses files of its own.
        let own = match lock {
            Some(_) => None,
            None => Some(temporary_folder(folder, ".tokens-").map_err(Failure::Cache)?),
        };
        let place = own.as_ref().map_or(folder, |own| own.path());
        let bases = ["train", "test"].map(|split| place.join(format!("{name}-{split}")));
        let [train, test] = [&bases[0], &bases[1]].map(|base| Some(base.as_path()));
        let train = make("train", &self.chosen.train, train)?;
        let test = make("test", &self.chosen.test, test)?;
        cache::store(path, train, test).map_err(Failure::Cache)?;
        bases.iter().for_each(|base| unfinished::remove(base));
        let gone = || Failure::Cache(io::Error::other("the stored token ids cannot be read back"));
        cache::load(path, IN_MEMORY).ok_or_else(gone)
    }

    fn judge(&self, split: &'static str, empty: bool, report: &RowReport) -> Result<(), DataError> {
        let allowed = self.data.max_bad_rows;
        if report.bad_share() > allowed {
            return Err(DataError::TooManyBadRows {
                split,
                report: Box::new(report.clone()),
                allowed,
            });
        }
        if split == "train" && report.read == 0 {
            let places = self.sets.iter().map(|set| format!("`{}`", set.spec.id));
            let places: std::collections::BTreeSet<String> = places.collect();
            let places = places.into_iter().collect::<Vec<_>>().join(", ");
            return Err(DataError::NoRows { split, places });
        }
        if empty && report.read > 0 {
            return Err(DataError::NothingLeft { split, report: Box::new(report.clone()) });
        }
        Ok(())
    }

    /// Reads the rows of a split file by file, converts them in parallel, and returns the kept ones
    /// in the order of the split. `convert` gets the cells of the columns that `columns_of` names,
    /// and the values for the chat template. Rows are held in files with this `base`, or in memory.
    pub fn rows<T: Stored + Clone + Send>(
        &self,
        split: &'static str,
        rows: &[mixture::RowRef],
        base: Option<&Path>,
        columns_of: impl Fn(&Set) -> Result<Vec<String>, DataError>,
        convert: impl Fn(
            &Set,
            &[String],
            Vec<Cell>,
            &TemplateValues,
        ) -> Result<Outcome<T>, TokenizerError>
        + Sync,
    ) -> Result<(RowList<T>, RowReport), Failure> {
        let work = format!("tokenizing {split}");
        let mut made = match base {
            Some(base) => Unfinished::in_files(base, rows.len()).map_err(Failure::Cache)?,
            None => Unfinished::in_memory(rows.len()),
        };
        // Rows that an earlier start has made.
        let mut skipped = made.read;
        let mut failed = None;
        for (index, set) in self.sets.iter().enumerate() {
            let mut wanted: Vec<(usize, usize)> = (0..rows.len())
                .filter(|slot| rows[*slot].set == index)
                .map(|slot| (rows[slot].row, slot))
                .collect();
            if wanted.is_empty() {
                continue;
            }
            wanted.sort_unstable();
            let columns = columns_of(set)?;
            let template_columns = &self.template_columns[index];
            let read = [&columns[..], template_columns].concat();
            let convert = |mut row: RawRow| {
                let values = row.cells.split_off(columns.len());
                match TemplateValues::of(template_columns, values) {
                    Ok(values) => convert(set, &columns, row.cells, &values),
                    Err(reason) => Ok(Outcome::Bad(reason)),
                }
            };
            let mut rest = &wanted[..];
            let mut first = 0;
            for file in &set.files {
                let (mut here, later) =
                    rest.split_at(rest.partition_point(|(row, _)| *row < first + file.rows));
                here = &here[skipped.min(here.len())..];
                skipped -= skipped.min(rest.len() - later.len());
                let numbers: Vec<usize> = here.iter().map(|(row, _)| row - first).collect();
                let mut places = here.iter().map(|(_, slot)| *slot);
                let result = file.read(&read, &numbers, &mut |batch: Vec<RawRow>| {
                    let outcomes = self.in_parallel(batch, convert)?;
                    let mut kept = Vec::new();
                    for ((row, outcome), slot) in outcomes.into_iter().zip(&mut places) {
                        match outcome {
                            Outcome::Kept(row) => kept.push((slot, row)),
                            Outcome::NoRoom => made.report.no_room += 1,
                            Outcome::NoLabel => made.report.no_label += 1,
                            Outcome::Bad(reason) => made.report.add_bad(&file.path, row, reason),
                        }
                        made.read += 1;
                    }
                    made.add(kept).map_err(|error| {
                        failed = Some(error);
                        DataError::Io { path: file.path.clone(), source: io::Error::other("") }
                    })?;
                    self.progress.update(&work, made.read as u64, rows.len() as u64);
                    Ok(())
                });
                if let Some(error) = failed {
                    return Err(Failure::Cache(error));
                }
                result?;
                first += file.rows;
                rest = later;
            }
        }
        Ok(made.finish())
    }

    fn in_parallel<T: Send>(
        &self,
        batch: Vec<RawRow>,
        convert: impl Fn(RawRow) -> Result<Outcome<T>, TokenizerError> + Sync,
    ) -> Result<Vec<(usize, Outcome<T>)>, TokenizerError> {
        let work = || {
            batch
                .into_par_iter()
                .map(|raw| {
                    let row = raw.row;
                    convert(raw).map(|outcome| (row, outcome))
                })
                .collect()
        };
        match &self.threads {
            Some(threads) => threads.install(work),
            None => work(),
        }
    }
}

/// More threads than cores would only use memory.
fn thread_pool(threads: usize) -> Result<rayon::ThreadPool, DataError> {
    let cores = std::thread::available_parallelism().map_or(threads, usize::from);
    let threads = threads.min(cores);
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|error| DataError::Threads { threads, message: error.to_string() })
}

fn cache_key(
    data: &DataSettings,
    sets: &[Set],
    tokenizer: &Tokenizer,
    what: &str,
    settings: &str,
) -> Result<cache::Key, DataError> {
    let mut key = cache::Key::new(what);
    key.part(&tokenizer.fingerprint());
    key.part(settings.as_bytes());
    // Threads and the tolerance for bad rows do not affect ids.
    let DataSettings {
        mixture,
        max_train_samples,
        max_eval_samples,
        max_bad_rows: _,
        dataset_num_proc: _,
        auto_insert_empty_system_msg,
        preprocessing,
    } = data;
    let rest =
        (mixture, max_train_samples, max_eval_samples, auto_insert_empty_system_msg, preprocessing);
    key.part(format!("{rest:?}").as_bytes());
    for file in sets.iter().flat_map(|set| &set.files) {
        let failed = |source: io::Error| DataError::Io { path: file.path.clone(), source };
        key.file(&file.path).map_err(failed)?;
    }
    Ok(key)
}

#[cfg(test)]
mod tests;
