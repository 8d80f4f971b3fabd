//! The reference of a run: its log-probs, computed once and kept, or a model that follows the policy.

use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burn::tensor::Device;

use super::context::Context;
use super::error::RunError;
use super::load::load_model;
use crate::data::{Splits, TwoResponses};
use crate::files::cache_lock::CacheLock;
use crate::files::hash::hash_model;
use crate::hub::resolve::resolve_model;
use crate::model::decoder::Decoder;
use crate::objective::reference::{ReferenceLogps, batches};
use crate::parallel::ranks::Exact;
use crate::plan::Plan;
use crate::recipe::{Recipe, ReferenceKind};
use crate::train::checkpoint::Start;
use crate::train::event::{Event, Observer};
use crate::train::tasks::ReferenceSource;

/// Batches whose log-probs are kept together: what a signal or a kill can cost each rank. It depends on nothing, so that a
/// pass goes on from what is kept on any number of ranks.
const BATCHES_A_PART: usize = 8;
/// How often a run that waits for another's log-probs looks for them.
const LOOK: Duration = Duration::from_millis(100);

/// A reference pass that a signal ended. The log-probs that were computed are kept.
#[derive(Debug)]
pub struct Stopped {
    name: String,
    done: usize,
    total: usize,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { name, done, total } = self;
        write!(
            f,
            "stopped by a signal after {done} of {total} pairs of {name}; the same command \
             continues from there"
        )
    }
}

/// What came of the search for a reference.
pub enum Found {
    Reference(ReferenceSource),
    Stopped(Stopped),
}

/// Why the functions of this file return early.
enum Interruption {
    Stopped(Stopped),
    Failed(RunError),
}

impl<E: Into<RunError>> From<E> for Interruption {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// What log-probs of a frozen reference depend on besides the rows: runs with the same share them. `None` where a
/// recipe has no such reference.
pub fn shared_key(recipe: &Recipe) -> Option<String> {
    let ReferenceKind::Frozen(ld_alpha) = ReferenceKind::of(&recipe.objective) else { return None };
    let model = &recipe.model;
    let reference = model.ref_model_name_or_path.as_ref().unwrap_or(&model.model_name_or_path);
    let (dtype, device) = (model.dtype, recipe.train.device);
    Some(format!("{reference} {dtype:?} {} {device:?} {ld_alpha:?}", recipe.train.bf16))
}

/// The reference of a run over `rows`. Stored log-probs are used if they exist, and computed and
/// stored if not. `checkpoint` is the one that the run continues from, as `start` says.
///
/// # Errors
/// The reference's weights cannot be read, or the cache cannot be written.
pub fn find(
    plan: &Plan,
    rows: &Splits<impl TwoResponses>,
    start: &Start,
    checkpoint: Option<&Path>,
    context: &Context,
    observer: &mut dyn Observer,
) -> Result<Found, RunError> {
    let found = match ReferenceKind::of(&plan.recipe.objective) {
        ReferenceKind::None => Ok(ReferenceSource::None),
        ReferenceKind::Frozen(ld_alpha) => Frozen::new(plan, start, context, ld_alpha)
            .map_err(Interruption::Failed)
            .and_then(|mut reference| reference.splits(rows, observer)),
        ReferenceKind::Following(sync) => {
            let folder = match checkpoint {
                Some(path) => path.join(ReferenceSource::FOLDER),
                None => reference_folder(plan)?,
            };
            let model = load_model(&folder, &start.model.device(), plan.dtype, observer)?;
            let model = Box::new(RefCell::new(model));
            Ok(ReferenceSource::Following { model, sync })
        }
    };
    match found {
        Ok(reference) => Ok(Found::Reference(reference)),
        Err(Interruption::Stopped(stopped)) => Ok(Found::Stopped(stopped)),
        Err(Interruption::Failed(error)) => Err(error),
    }
}

fn reference_folder(plan: &Plan) -> Result<PathBuf, RunError> {
    Ok(match &plan.recipe.model.ref_model_name_or_path {
        Some(name) => resolve_model(name, "main")?,
        None => plan.model_folder.clone(),
    })
}

/// The frozen reference. Its weights are only read if its log-probs are not stored yet.
struct Frozen<'a> {
    plan: &'a Plan,
    context: &'a Context<'a>,
    folder: PathBuf,
    weights: [u8; 32],
    ld_alpha: Option<f64>,
    device: Device,
    model: Option<Decoder>,
}

impl<'a> Frozen<'a> {
    fn new(
        plan: &'a Plan,
        start: &Start,
        context: &'a Context,
        ld_alpha: Option<f64>,
    ) -> Result<Self, RunError> {
        let folder = reference_folder(plan)?;
        let is_policy = start.position.global_step == 0 && folder == plan.model_folder;
        Ok(Self {
            plan,
            context,
            weights: hash_model(&folder)?,
            folder,
            ld_alpha,
            device: start.model.device(),
            model: is_policy.then(|| start.model.clone()),
        })
    }

    fn splits(
        &mut self,
        rows: &Splits<impl TwoResponses>,
        observer: &mut dyn Observer,
    ) -> Result<ReferenceSource, Interruption> {
        Ok(ReferenceSource::Stored {
            train: self.train_logps(&rows.train, observer)?,
            test: self.logps("test", &rows.test, observer)?,
        })
    }

    /// Log-probs of the pairs that the run visits. A run that visits few of them does not make those of all.
    fn train_logps<R: TwoResponses>(
        &mut self,
        pairs: &[R],
        observer: &mut dyn Observer,
    ) -> Result<ReferenceLogps, Interruption> {
        let Some(rows) = self.plan.schedule.few_rows() else {
            return self.logps("train", pairs, observer);
        };
        if let Some(stored) = self.stored(&self.key(pairs), pairs) {
            return Ok(stored);
        }
        let few: Vec<R> = rows.iter().map(|row| pairs[*row].clone()).collect();
        Ok(self.logps("train", &few, observer)?.spread(&rows, pairs.len()))
    }

    fn key(&self, pairs: &[impl TwoResponses]) -> String {
        let (dtype, device) = (self.plan.dtype, self.plan.recipe.train.device);
        let settings = match self.ld_alpha {
            None => format!("{dtype:?} {device:?}"),
            Some(alpha) => format!("{dtype:?} {device:?} ld_alpha {alpha}"),
        };
        ReferenceLogps::key(&self.weights, pairs, &settings)
    }

    /// Stored log-probs, where every rank has them: kept by some alone they are of no use, as all compute together.
    fn stored(&self, key: &str, pairs: &[impl TwoResponses]) -> Option<ReferenceLogps> {
        let ranks = self.context.ranks;
        let stored = ReferenceLogps::read(&self.plan.cache, key, pairs.len());
        let everywhere = ranks.all("stored log-probs", stored.is_some());
        stored.filter(|_| everywhere)
    }

    fn logps(
        &mut self,
        split: &str,
        pairs: &[impl TwoResponses],
        observer: &mut dyn Observer,
    ) -> Result<ReferenceLogps, Interruption> {
        if pairs.is_empty() {
            return Ok(ReferenceLogps::default());
        }
        let key = self.key(pairs);
        if let Some(stored) = self.stored(&key, pairs) {
            return Ok(stored);
        }
        // A run beside this one may be making them.
        let turn = self.turn(split, &key, pairs.len(), observer)?;
        if let Some(stored) = self.stored(&key, pairs) {
            return Ok(stored);
        }
        let model = match self.model.take() {
            Some(model) => model,
            None => load_model(&self.folder, &self.device, self.plan.dtype, observer)?,
        };
        let pass = Pass { frozen: self, model: &model, split, total: pairs.len() };
        let (logps, parts) = pass.run(pairs, observer)?;
        self.model = Some(model);
        if self.context.ranks.is_first() {
            self.store(&logps, &key)?;
            parts.iter().for_each(|part| ReferenceLogps::forget(&self.plan.cache, part));
        }
        drop(turn);
        Ok(logps)
    }

    /// Waits until no other process makes the same log-probs; rank 0 has the turn for all. Meanwhile the ranks meet, so that
    /// none is missed, and hear a signal.
    fn turn(
        &self,
        split: &str,
        key: &str,
        total: usize,
        observer: &mut dyn Observer,
    ) -> Result<Option<CacheLock>, Interruption> {
        let ranks = self.context.ranks;
        let name = format!("reference-{key}");
        let mut told = false;
        loop {
            let turn = match ranks.is_first() {
                true => CacheLock::take(&self.plan.cache, &name),
                false => None,
            };
            if ranks.any("turns", turn.is_some()) {
                return Ok(turn);
            }
            if ranks.any("signals", self.context.is_stopping()) {
                return Err(Interruption::Stopped(Stopped {
                    name: name_of(split),
                    done: 0,
                    total,
                }));
            }
            if !told {
                let text = format!("waiting for another run that makes {}", name_of(split));
                observer.on(&Event::Message(&text))?;
                told = true;
            }
            std::thread::sleep(LOOK);
        }
    }

    fn store(&self, logps: &ReferenceLogps, key: &str) -> Result<(), RunError> {
        let cache = &self.plan.cache;
        let stored = logps.store(cache, key);
        stored.map_err(|source| RunError::Cache { path: cache.clone(), source })
    }
}

/// How the user knows the pass.
fn name_of(split: &str) -> String {
    format!("reference log-probs ({split})")
}

/// One pass of the reference over pairs, part by part: what an earlier start made of it is not made again.
struct Pass<'a> {
    frozen: &'a Frozen<'a>,
    model: &'a Decoder,
    split: &'a str,
    total: usize,
}

/// Some batches whose log-probs are kept together.
struct PassPart<'a, R> {
    batches: &'a [&'a [R]],
    /// Under which they are kept; a pass of one part keeps no part.
    key: Option<String>,
    /// What an earlier start kept.
    kept: Option<ReferenceLogps>,
}

impl<R> PassPart<'_, R> {
    fn pairs(&self) -> usize {
        self.batches.iter().map(|batch| batch.len()).sum()
    }
}

impl Pass<'_> {
    /// All log-probs, and the keys under which parts of them are kept.
    fn run(
        &self,
        pairs: &[impl TwoResponses],
        observer: &mut dyn Observer,
    ) -> Result<(ReferenceLogps, Vec<String>), Interruption> {
        let ranks = self.frozen.context.ranks;
        let started = Instant::now();
        let name = name_of(self.split);
        observer.on(&Event::Phase { name: &name, total: self.total as u64, unit: "pairs" })?;
        let batches = batches(pairs);
        let parts: Vec<_> = batches.chunks(BATCHES_A_PART).collect();
        let (mut all, mut keys, mut made) = (ReferenceLogps::default(), Vec::new(), 0);
        // As many parts at a time as there are ranks: each has the work of one.
        for round in parts.chunks(ranks.world()) {
            let done = all.first.len();
            let round = self.look_up(round, &pairs[done..], parts.len() > 1);
            let Some(sums) = self.missing(&round, done, observer)? else {
                observer.on(&Event::PhaseEnd { name: &name })?;
                return Err(Interruption::Stopped(Stopped { name, done, total: self.total }));
            };
            made += round.iter().filter(|p| p.kept.is_none()).map(PassPart::pairs).sum::<usize>();
            let mut sums = sums.into_iter();
            for part in round {
                let logps = match part.kept {
                    Some(kept) => kept,
                    None => {
                        let logps = ReferenceLogps::join(sums.by_ref().take(part.batches.len()));
                        if let (Some(key), true) = (&part.key, ranks.is_first()) {
                            self.frozen.store(&logps, key)?;
                        }
                        logps
                    }
                };
                all.extend(logps);
                keys.extend(part.key);
            }
        }
        observer.on(&Event::PhaseEnd { name: &name })?;
        let seconds = started.elapsed().as_secs_f64();
        let mut text = format!("{name}: {made} pairs in {seconds:.2} s");
        if made < self.total {
            text.push_str(&format!(", {} kept from an earlier start", self.total - made));
        }
        observer.on(&Event::Message(&text))?;
        Ok((all, keys))
    }

    /// What is kept of some parts, whose pairs are the first of `pairs`.
    fn look_up<'a, R: TwoResponses>(
        &self,
        parts: &[&'a [&'a [R]]],
        mut pairs: &[R],
        are_kept: bool,
    ) -> Vec<PassPart<'a, R>> {
        let look_up = |batches: &&'a [&'a [R]]| {
            let mut part = PassPart { batches, key: None, kept: None };
            let (own, rest) = pairs.split_at(part.pairs());
            pairs = rest;
            if are_kept {
                let key = self.frozen.key(own);
                part.kept = self.frozen.stored(&key, own);
                part.key = Some(key);
            }
            part
        };
        parts.iter().map(look_up).collect()
    }

    /// Log-probs of the batches that are not kept, in their order; the ranks share them. `None` where a signal came.
    /// `done` pairs lie before these parts.
    fn missing<R: TwoResponses>(
        &self,
        parts: &[PassPart<R>],
        done: usize,
        observer: &mut dyn Observer,
    ) -> Result<Option<Vec<Vec<f64>>>, Interruption> {
        let name = name_of(self.split);
        let kept = parts.iter().filter(|part| part.kept.is_some());
        let mut done = done + kept.map(PassPart::pairs).sum::<usize>();
        let missing = parts.iter().filter(|part| part.kept.is_none());
        let batches: Vec<&[R]> = missing.flat_map(|part| part.batches).copied().collect();
        let context = self.frozen.context;
        let ranks = context.ranks;
        let mut told = Ok(());
        let sums = ranks.deal(&name, &batches, |batch| {
            // What is made after a signal is thrown away.
            if context.is_stopping() {
                return Vec::new();
            }
            let sums = ReferenceLogps::of_batch(self.model, batch, self.frozen.ld_alpha);
            // The other ranks do as much meanwhile.
            done = (done + batch.len() * ranks.world()).min(self.total);
            if told.is_ok() {
                told = observer.on(&Event::Advance { name: &name, done: done as u64, message: "" });
            }
            sums.into_iter().map(Exact).collect::<Vec<_>>()
        });
        told?;
        if ranks.any("signals", self.frozen.context.is_stopping()) {
            return Ok(None);
        }
        let numbers = |sums: Vec<Exact>| sums.into_iter().map(|sum| sum.0).collect();
        Ok(Some(sums.into_iter().map(numbers).collect()))
    }
}
