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
use super::cache::{self, Kept, Stored};
use super::mixture::{self, ChosenRows};
use super::numpy_random::numpy_permutation;
use super::packing;
use super::preference::PreferenceRules;
use super::report::{BadRow, RowReport};
use super::row::Outcome;
use super::sft::SftRules;
use super::source::{CHAT_TEMPLATE_KWARGS, Cell, RawRow, SourceFile, TEMPLATE_COLUMNS};
use super::template_values::TemplateValues;
use crate::hub::resolve;
use crate::recipe::{
    DataSettings, DatasetSpec, Lengths, Objective, Preprocessing, Recipe, SftSettings,
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
pub struct Splits<T> {
    pub train: Vec<T>,
    pub test: Vec<T>,
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
    loader.load(|split, rows| {
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
        loader.rows(split, rows, columns, |set, _, cells, values| {
            let mut cells = cells.into_iter();
            match (cells.next(), cells.next(), cells.next()) {
                (Some(chosen), Some(rejected), prompt) => {
                    set.note_unread_prompt(&chosen, prompt.as_ref());
                    rules.pair(chosen, rejected, prompt, values)
                }
                _ => Ok(Outcome::Bad(BadRow::MissingField("rejected".to_owned()))),
            }
        })
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
    loader.load(|split, rows| {
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
            loader.rows(split, rows, columns, |set, columns, cells, values| {
                match rules.columns(&set.columns) {
                    Some((layout, _)) => rules.document(layout, columns, cells, values),
                    None => Ok(Outcome::Bad(BadRow::MissingField(columns.join(", ")))),
                }
            })?;
        Ok((pack_into_rows(documents, length, sft, seed), report))
    })
}

/// Packs documents if a length is given, and shuffles them with `seed` if `shuffle_dataset` says so.
/// Leaves out packed rows without a target; TRL would make
/// batch rows of them that add nothing to the loss.
fn pack_into_rows(
    documents: Vec<SftDocument>,
    length: Option<usize>,
    sft: &SftSettings,
    seed: u64,
) -> Vec<SftRow> {
    let shuffle = sft.shuffle_dataset.then_some(seed);
    match length {
        Some(length) => {
            let documents = shuffled(documents, shuffle);
            let rows = packing::pack(&documents, length, sft.packing_strategy);
            let mut rows = shuffled(rows, shuffle);
            rows.retain(|row| row.documents.iter().any(|document| document.targets() > 0));
            rows
        }
        None => {
            let row = |document| SftRow { documents: vec![document] };
            shuffled(documents.into_iter().map(row).collect(), shuffle)
        }
    }
}

/// The items in the order of `Dataset.shuffle(seed)` of `datasets`; unchanged without a seed.
fn shuffled<T>(items: Vec<T>, seed: Option<u64>) -> Vec<T> {
    let Some(seed) = seed else { return items };
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

    /// Loads both splits from the cache, or makes and stores them.
    pub fn load<T: Stored>(
        &self,
        make: impl Fn(&'static str, &[mixture::RowRef]) -> Result<(Vec<T>, RowReport), DataError>,
    ) -> Result<Splits<T>, DataError> {
        let kept = match self.kept_at.as_deref().and_then(cache::load) {
            Some(kept) => kept,
            None => {
                let (train, train_report) = make("train", &self.chosen.train)?;
                let (test, test_report) = make("test", &self.chosen.test)?;
                let kept = Kept { train, test, train_report, test_report };
                if let Some(path) = &self.kept_at
                    && let Err(error) = cache::store(path, &kept)
                {
                    tracing::warn!("{}: cannot store the token ids: {error}", path.display());
                }
                kept
            }
        };
        let fingerprint = cache::fingerprint(&kept.train, &kept.test);
        let train_fingerprint = cache::fingerprint(&kept.train, &[]);
        let Kept { train, test, train_report, test_report } = kept;
        self.judge("train", train.is_empty(), &train_report)?;
        self.judge("test", test.is_empty(), &test_report)?;
        Ok(Splits { train, test, train_report, test_report, fingerprint, train_fingerprint })
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
    /// and the values for the chat template.
    pub fn rows<T: Send>(
        &self,
        split: &'static str,
        rows: &[mixture::RowRef],
        columns_of: impl Fn(&Set) -> Result<Vec<String>, DataError>,
        convert: impl Fn(
            &Set,
            &[String],
            Vec<Cell>,
            &TemplateValues,
        ) -> Result<Outcome<T>, TokenizerError>
        + Sync,
    ) -> Result<(Vec<T>, RowReport), DataError> {
        let work = format!("tokenizing {split}");
        let mut slots: Vec<Option<T>> = Vec::new();
        slots.resize_with(rows.len(), || None);
        let mut report = RowReport { read: rows.len(), ..RowReport::default() };
        let mut done = 0;
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
                let (here, later) =
                    rest.split_at(rest.partition_point(|(row, _)| *row < first + file.rows));
                let numbers: Vec<usize> = here.iter().map(|(row, _)| row - first).collect();
                let mut places = here.iter().map(|(_, slot)| *slot);
                file.read(&read, &numbers, &mut |batch: Vec<RawRow>| {
                    let made = self.in_parallel(batch, convert)?;
                    for ((row, outcome), slot) in made.into_iter().zip(&mut places) {
                        match outcome {
                            Outcome::Kept(kept) => slots[slot] = Some(kept),
                            Outcome::NoRoom => report.no_room += 1,
                            Outcome::NoLabel => report.no_label += 1,
                            Outcome::Bad(reason) => report.add_bad(&file.path, row, reason),
                        }
                        done += 1;
                    }
                    self.progress.update(&work, done, rows.len() as u64);
                    Ok(())
                })?;
                first += file.rows;
                rest = later;
            }
        }
        let kept: Vec<T> = slots.into_iter().flatten().collect();
        report.kept = kept.len();
        Ok((kept, report))
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
