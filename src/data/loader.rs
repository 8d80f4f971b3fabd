//! The way of every kind of rows from the files of a recipe's sets to both splits: read, convert in
//! parallel, store, or read back what an earlier start has stored.

use std::{
    io,
    path::{Path, PathBuf},
};

use rayon::prelude::*;

use super::DataError;
use super::Progress;
use super::Tokenizer;
use super::TokenizerError;
use super::cache::{self, IN_MEMORY};
use super::mixture::{self, ChosenRows};
use super::report::RowReport;
use super::row::Outcome;
use super::row_list::RowList;
use super::set::Set;
use super::source::{CHAT_TEMPLATE_KWARGS, Cell, RawRow, TEMPLATE_COLUMNS};
use super::splits::{Made, Splits, in_memory};
use super::stored::Stored;
use super::template_values::TemplateValues;
use super::unfinished::{self, Hold, Unfinished};
use crate::files::cache_lock::CacheLock;
use crate::files::replace::temporary_folder;
use crate::recipe::{DataSettings, Preprocessing};

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
            (Some(splits), _) => Some(splits),
            (None, None) => None,
            (None, Some(path)) => match self.prepare(path, &make) {
                Ok(splits) => Some(splits),
                Err(Failure::Data(error)) => return Err(*error),
                Err(Failure::Cache(error)) => {
                    let path = path.display();
                    tracing::warn!("{path}: cannot store the token ids: {error}");
                    None
                }
            },
        };
        let splits = match stored {
            Some(splits) => splits,
            None => {
                let train = make("train", &self.chosen.train, None)?;
                let test = make("test", &self.chosen.test, None)?;
                in_memory(train, test)
            }
        };
        self.judge("train", splits.train.is_empty(), &splits.train_report)?;
        self.judge("test", splits.test.is_empty(), &splits.test_report)?;
        Ok(splits)
    }

    /// Makes both splits in files, and stores them at `path`. A start after a kill continues with
    /// the files that the killed process left.
    fn prepare<T: Stored + Clone>(
        &self,
        path: &Path,
        make: &impl Fn(&'static str, &[mixture::RowRef], Option<&Path>) -> Result<Made<T>, Failure>,
    ) -> Result<Splits<T>, Failure> {
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

    /// The settings of the data.
    pub fn data(&self) -> &DataSettings {
        self.data
    }

    /// The training rows.
    pub fn train_rows(&self) -> &[mixture::RowRef] {
        &self.chosen.train
    }

    /// A hash of the settings of the training rows and of the names and sizes of their files, whose
    /// content is not read.
    ///
    /// # Errors
    /// A file is gone.
    pub fn outline(
        &self,
        tokenizer: &Tokenizer,
        what: &str,
        settings: &str,
    ) -> Result<[u8; 32], DataError> {
        let mut key = settings_key(self.data, tokenizer, what, settings);
        for file in self.sets.iter().flat_map(|set| &set.files) {
            let failed = |source: io::Error| DataError::Io { path: file.path.clone(), source };
            let bytes = std::fs::metadata(&file.path).map_err(failed)?.len();
            key.part(file.path.file_name().unwrap_or_default().as_encoded_bytes());
            key.part(&bytes.to_le_bytes());
            key.part(&(file.rows as u64).to_le_bytes());
        }
        Ok(key.bytes())
    }

    fn judge(&self, split: &'static str, empty: bool, report: &RowReport) -> Result<(), DataError> {
        check_bad_rows(split, report, self.data.max_bad_rows)?;
        if split == "train" && report.read == 0 && !self.data.streaming {
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
    pub fn rows<T: Stored + Clone + Send>(
        &self,
        split: &'static str,
        rows: &[mixture::RowRef],
        hold: Hold<T>,
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
        let mut made = Unfinished::held(hold, rows.len()).map_err(Failure::Cache)?;
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

/// Checks the share of bad rows in a report.
///
/// # Errors
/// More than `allowed` of the rows are bad.
pub(super) fn check_bad_rows(
    split: &'static str,
    report: &RowReport,
    allowed: f64,
) -> Result<(), DataError> {
    match report.bad_share() > allowed {
        true => Err(DataError::TooManyBadRows { split, report: Box::new(report.clone()), allowed }),
        false => Ok(()),
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
    let mut key = settings_key(data, tokenizer, what, settings);
    for file in sets.iter().flat_map(|set| &set.files) {
        let failed = |source: io::Error| DataError::Io { path: file.path.clone(), source };
        key.file(&file.path).map_err(failed)?;
    }
    Ok(key)
}

/// The settings that token ids depend on, as the beginning of a key.
fn settings_key(
    data: &DataSettings,
    tokenizer: &Tokenizer,
    what: &str,
    settings: &str,
) -> cache::Key {
    let mut key = cache::Key::new(what);
    key.part(&tokenizer.fingerprint());
    key.part(settings.as_bytes());
    // Threads and the tolerance for bad rows do not affect ids.
    let DataSettings {
        mixture,
        streaming: _,
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
    key
}
