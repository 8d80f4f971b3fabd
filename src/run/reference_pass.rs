//! The reference of a run: its log-probs, computed once and kept, or a model that follows the policy.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use burn::tensor::Device;

use super::stage::{Start, load_model};
use crate::data::{PreferencePair, Splits};
use crate::files::cache_lock::CacheLock;
use crate::files::hash::hash_model;
use crate::model::decoder::Decoder;
use crate::objective::reference::{ReferenceLogps, batches};
use crate::parallel::Ranks;
use crate::parallel::ranks::Exact;
use crate::plan::prepare::Prepared;
use crate::recipe::{Recipe, Wanted};
use crate::train::event::{Event, Observer};
use crate::train::task::ReferenceSource;

/// Batches whose log-probs are kept together: what a signal or a kill can cost each rank. It depends on nothing, so that a
/// pass goes on from what is kept on any number of ranks.
const BATCHES_A_PART: usize = 8;
/// How often a run that waits for another's log-probs looks for them.
const LOOK: Duration = Duration::from_millis(100);

/// A signal came while log-probs were made. Those that are made are kept.
#[derive(Debug, thiserror::Error)]
#[error(
    "stopped by a signal after {done} of {total} pairs of {name}; the same command goes on from there"
)]
pub struct Stopped {
    name: String,
    done: usize,
    total: usize,
}

/// What log-probs of a frozen reference depend on besides the rows: runs with the same share them. `None` where a
/// recipe has no such reference.
pub fn shared_key(recipe: &Recipe) -> Option<String> {
    let Wanted::Logps(ld_alpha) = Wanted::of(&recipe.objective) else { return None };
    let model = &recipe.model;
    let reference = model.ref_model_name_or_path.as_ref().unwrap_or(&model.model_name_or_path);
    let (dtype, device) = (model.dtype, recipe.train.device);
    Some(format!("{reference} {dtype:?} {} {device:?} {ld_alpha:?}", recipe.train.bf16))
}

/// The reference for these pairs: stored log-probs are taken where there are any, and made where not.
///
/// # Errors
/// [`Stopped`] where `stop` was set meanwhile; the model's and the cache's.
pub fn source(
    prepared: &Prepared,
    pairs: &Splits<PreferencePair>,
    start: &Start,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
    ranks: &Ranks,
) -> anyhow::Result<ReferenceSource> {
    match Wanted::of(&prepared.recipe.objective) {
        Wanted::Nothing => Ok(ReferenceSource::None),
        Wanted::Logps(ld_alpha) => {
            let mut reference = Frozen::new(prepared, start, stop, ld_alpha)?;
            Ok(ReferenceSource::Stored {
                train: reference.train_logps(&pairs.train, observer, ranks)?,
                test: reference.logps("test", &pairs.test, observer, ranks)?,
            })
        }
        Wanted::Following(sync) => {
            let saved = start.checkpoint.as_ref().map(|path| path.join(ReferenceSource::FOLDER));
            let folder = match saved {
                Some(folder) => folder,
                None => reference_folder(prepared)?,
            };
            let model = load_model(&folder, &start.model.device(), prepared.dtype, observer)?;
            let model = Box::new(RefCell::new(model));
            Ok(ReferenceSource::Following { model, sync })
        }
    }
}

fn reference_folder(prepared: &Prepared) -> anyhow::Result<PathBuf> {
    Ok(match &prepared.recipe.model.ref_model_name_or_path {
        Some(name) => crate::hub::resolve::resolve_model(name, "main")?,
        None => prepared.model_folder.clone(),
    })
}

/// The frozen reference: its weights are read only where its log-probs are not stored yet.
struct Frozen<'a> {
    prepared: &'a Prepared,
    folder: PathBuf,
    weights: [u8; 32],
    ld_alpha: Option<f64>,
    stop: &'a AtomicBool,
    device: Device,
    model: Option<Decoder>,
}

impl<'a> Frozen<'a> {
    fn new(
        prepared: &'a Prepared,
        start: &Start,
        stop: &'a AtomicBool,
        ld_alpha: Option<f64>,
    ) -> anyhow::Result<Self> {
        let folder = reference_folder(prepared)?;
        let is_policy = start.progress.global_step == 0 && folder == prepared.model_folder;
        Ok(Self {
            prepared,
            weights: hash_model(&folder)?,
            folder,
            ld_alpha,
            stop,
            device: start.model.device(),
            model: is_policy.then(|| start.model.clone()),
        })
    }

    /// Log-probs of the pairs that the run visits. A run that visits few of them does not make those of all.
    fn train_logps(
        &mut self,
        pairs: &[PreferencePair],
        observer: &mut dyn Observer,
        ranks: &Ranks,
    ) -> anyhow::Result<ReferenceLogps> {
        let Some(rows) = self.prepared.plan.few_rows() else {
            return self.logps("train", pairs, observer, ranks);
        };
        if let Some(stored) = self.stored(&self.key(pairs), pairs, ranks) {
            return Ok(stored);
        }
        let few: Vec<PreferencePair> = rows.iter().map(|row| pairs[*row].clone()).collect();
        Ok(self.logps("train", &few, observer, ranks)?.spread(&rows, pairs.len()))
    }

    fn key(&self, pairs: &[PreferencePair]) -> String {
        let (dtype, device) = (self.prepared.dtype, self.prepared.recipe.train.device);
        let settings = match self.ld_alpha {
            None => format!("{dtype:?} {device:?}"),
            Some(alpha) => format!("{dtype:?} {device:?} ld_alpha {alpha}"),
        };
        ReferenceLogps::key(&self.weights, pairs, &settings)
    }

    /// Stored log-probs, where every rank has them: kept by some alone they are of no use, as all compute together.
    fn stored(&self, key: &str, pairs: &[PreferencePair], ranks: &Ranks) -> Option<ReferenceLogps> {
        let stored = ReferenceLogps::read(&self.prepared.cache, key, pairs.len());
        let everywhere = ranks.all("stored log-probs", stored.is_some());
        stored.filter(|_| everywhere)
    }

    fn logps(
        &mut self,
        split: &str,
        pairs: &[PreferencePair],
        observer: &mut dyn Observer,
        ranks: &Ranks,
    ) -> anyhow::Result<ReferenceLogps> {
        if pairs.is_empty() {
            return Ok(ReferenceLogps::default());
        }
        let key = self.key(pairs);
        if let Some(stored) = self.stored(&key, pairs, ranks) {
            return Ok(stored);
        }
        // A run beside this one may be making them.
        let turn = self.turn(split, &key, pairs.len(), observer, ranks)?;
        if let Some(stored) = self.stored(&key, pairs, ranks) {
            return Ok(stored);
        }
        let model = match self.model.take() {
            Some(model) => model,
            None => load_model(&self.folder, &self.device, self.prepared.dtype, observer)?,
        };
        let pass = Pass { frozen: self, model: &model, split, total: pairs.len() };
        let (logps, parts) = pass.run(pairs, observer, ranks)?;
        self.model = Some(model);
        if ranks.is_first() {
            self.store(&logps, &key)?;
            parts.iter().for_each(|part| ReferenceLogps::forget(&self.prepared.cache, part));
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
        ranks: &Ranks,
    ) -> anyhow::Result<Option<CacheLock>> {
        let name = format!("reference-{key}");
        let mut told = false;
        loop {
            let turn = match ranks.is_first() {
                true => CacheLock::take(&self.prepared.cache, &name),
                false => None,
            };
            if ranks.any("turns", turn.is_some()) {
                return Ok(turn);
            }
            if ranks.any("signals", self.stop.load(Ordering::Relaxed)) {
                return Err(Stopped { name: name_of(split), done: 0, total }.into());
            }
            if !told {
                let text = format!("waiting for another run that makes {}", name_of(split));
                observer.on(&Event::Message(&text))?;
                told = true;
            }
            std::thread::sleep(LOOK);
        }
    }

    fn store(&self, logps: &ReferenceLogps, key: &str) -> anyhow::Result<()> {
        let cache = &self.prepared.cache;
        let stored = logps.store(cache, key);
        stored.with_context(|| format!("cannot write into {}", cache.display()))
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
struct PassPart<'a> {
    batches: &'a [&'a [PreferencePair]],
    /// Under which they are kept; a pass of one part keeps no part.
    key: Option<String>,
    /// What an earlier start kept.
    kept: Option<ReferenceLogps>,
}

impl PassPart<'_> {
    fn pairs(&self) -> usize {
        self.batches.iter().map(|batch| batch.len()).sum()
    }
}

impl Pass<'_> {
    /// All log-probs, and the keys under which parts of them are kept.
    fn run(
        &self,
        pairs: &[PreferencePair],
        observer: &mut dyn Observer,
        ranks: &Ranks,
    ) -> anyhow::Result<(ReferenceLogps, Vec<String>)> {
        let started = Instant::now();
        let name = name_of(self.split);
        observer.on(&Event::Phase { name: &name, total: self.total as u64, unit: "pairs" })?;
        let batches = batches(pairs);
        let parts: Vec<_> = batches.chunks(BATCHES_A_PART).collect();
        let (mut all, mut keys, mut made) = (ReferenceLogps::default(), Vec::new(), 0);
        // As many parts at a time as there are ranks: each has the work of one.
        for round in parts.chunks(ranks.world()) {
            let done = all.chosen.len();
            let round = self.look_up(round, &pairs[done..], parts.len() > 1, ranks);
            let Some(sums) = self.missing(&round, done, observer, ranks)? else {
                observer.on(&Event::PhaseEnd { name: &name })?;
                return Err(Stopped { name, done, total: self.total }.into());
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
    fn look_up<'a>(
        &self,
        parts: &[&'a [&'a [PreferencePair]]],
        mut pairs: &[PreferencePair],
        are_kept: bool,
        ranks: &Ranks,
    ) -> Vec<PassPart<'a>> {
        let look_up = |batches: &&'a [&'a [PreferencePair]]| {
            let mut part = PassPart { batches, key: None, kept: None };
            let (own, rest) = pairs.split_at(part.pairs());
            pairs = rest;
            if are_kept {
                let key = self.frozen.key(own);
                part.kept = self.frozen.stored(&key, own, ranks);
                part.key = Some(key);
            }
            part
        };
        parts.iter().map(look_up).collect()
    }

    /// Log-probs of the batches that are not kept, in their order; the ranks share them. `None` where a signal came.
    /// `done` pairs lie before these parts.
    fn missing(
        &self,
        parts: &[PassPart],
        done: usize,
        observer: &mut dyn Observer,
        ranks: &Ranks,
    ) -> anyhow::Result<Option<Vec<Vec<f64>>>> {
        let name = name_of(self.split);
        let kept = parts.iter().filter(|part| part.kept.is_some());
        let mut done = done + kept.map(PassPart::pairs).sum::<usize>();
        let missing = parts.iter().filter(|part| part.kept.is_none());
        let batches: Vec<&[PreferencePair]> =
            missing.flat_map(|part| part.batches).copied().collect();
        let stop = self.frozen.stop;
        let mut told = Ok(());
        let sums = ranks.deal(&name, &batches, |batch| {
            // What is made after a signal is thrown away.
            if stop.load(Ordering::Relaxed) {
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
        if ranks.any("signals", stop.load(Ordering::Relaxed)) {
            return Ok(None);
        }
        let numbers = |sums: Vec<Exact>| sums.into_iter().map(|sum| sum.0).collect();
        Ok(Some(sums.into_iter().map(numbers).collect()))
    }
}
