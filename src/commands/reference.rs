//! The reference of a run: its log-probs, computed once and kept, or a model that follows the policy.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Context;
use burn::tensor::Device;

use super::outputs;
use super::prepare::Prepared;
use super::stage::{Start, load_model};
use super::turn::Turn;
use crate::data::{PreferencePair, Splits};
use crate::model::decoder::Decoder;
use crate::objective::reference::{ReferenceLogps, batches};
use crate::parallel::Ranks;
use crate::parallel::ranks::Exact;
use crate::recipe::{Objective, Recipe, SyncRefModel};
use crate::train::event::{Event, Observer};
use crate::train::task::ReferenceSource;

/// Batches of a rank after which log-probs are kept and a signal is looked for: what a kill can cost.
const BATCHES_A_PART: usize = 16;

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

/// What a recipe's objective asks of its reference.
pub enum Wanted {
    Nothing,
    /// Log-probs of a frozen model, with LD-DPO's α.
    Logps(Option<f64>),
    Following(SyncRefModel),
}

impl Wanted {
    pub fn of(objective: &Objective) -> Self {
        match objective {
            Objective::Sft(_) | Objective::Orpo(_) | Objective::Cpo(_) => Self::Nothing,
            Objective::Dpo(dpo) if dpo.reference_free => Self::Nothing,
            Objective::Dpo(dpo) => match dpo.sync_ref_model {
                Some(sync) => Self::Following(sync),
                None => Self::Logps(dpo.ld_alpha),
            },
            Objective::Kto(kto) => match kto.sync_ref_model {
                Some(sync) => Self::Following(sync),
                None => Self::Logps(None),
            },
        }
    }
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
        Some(name) => crate::data::hub::resolve_model(name, "main")?,
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
            weights: outputs::hash_model(&folder)?,
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
        let cache = &self.prepared.cache;
        if let Some(stored) = self.stored(&key, pairs, ranks) {
            return Ok(stored);
        }
        // A run beside this one may be making them.
        let name = format!("reference-{key}");
        let turn = ranks.is_first().then(|| Turn::wait(cache, &name, observer)).transpose()?;
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

    fn store(&self, logps: &ReferenceLogps, key: &str) -> anyhow::Result<()> {
        let cache = &self.prepared.cache;
        let stored = logps.store(cache, key);
        stored.with_context(|| format!("cannot write into {}", cache.display()))
    }
}

/// One pass of the reference over pairs, part by part: what an earlier start made of it is not made again.
struct Pass<'a> {
    frozen: &'a Frozen<'a>,
    model: &'a Decoder,
    split: &'a str,
    total: usize,
}

impl Pass<'_> {
    /// All log-probs, and the keys under which parts of them are kept.
    fn run(
        &self,
        pairs: &[PreferencePair],
        observer: &mut dyn Observer,
        ranks: &Ranks,
    ) -> anyhow::Result<(ReferenceLogps, Vec<String>)> {
        let Self { frozen, total, .. } = *self;
        let started = Instant::now();
        let name = self.name();
        observer.on(&Event::Phase { name: &name, total: total as u64, unit: "pairs" })?;
        let batches = batches(pairs);
        let parts = batches.chunks(BATCHES_A_PART * ranks.world());
        let (mut all, mut keys, mut made) = (ReferenceLogps::default(), Vec::new(), 0);
        let is_divided = parts.len() > 1;
        for part in parts {
            let done = all.chosen.len();
            if ranks.any("a signal", frozen.stop.load(Ordering::Relaxed)) {
                observer.on(&Event::PhaseEnd { name: &name })?;
                return Err(Stopped { name, done, total }.into());
            }
            let len = part.iter().map(|batch| batch.len()).sum::<usize>();
            let of_part = &pairs[done..done + len];
            let key = frozen.key(of_part);
            let kept = if is_divided { frozen.stored(&key, of_part, ranks) } else { None };
            let logps = match kept {
                Some(kept) => kept,
                None => {
                    made += len;
                    let logps = self.part(part, done, observer, ranks)?;
                    if is_divided && ranks.is_first() {
                        frozen.store(&logps, &key)?;
                    }
                    logps
                }
            };
            all.extend(logps);
            keys.extend(is_divided.then_some(key));
        }
        observer.on(&Event::PhaseEnd { name: &name })?;
        let seconds = started.elapsed().as_secs_f64();
        let mut text = format!("{name}: {made} pairs in {seconds:.2} s");
        if made < total {
            text.push_str(&format!(", {} kept from an earlier start", total - made));
        }
        observer.on(&Event::Message(&text))?;
        Ok((all, keys))
    }

    fn name(&self) -> String {
        format!("reference log-probs ({})", self.split)
    }

    /// Log-probs of some batches, which the ranks share; `done` pairs lie before them.
    fn part(
        &self,
        batches: &[&[PreferencePair]],
        mut done: usize,
        observer: &mut dyn Observer,
        ranks: &Ranks,
    ) -> anyhow::Result<ReferenceLogps> {
        let name = self.name();
        let mut told = Ok(());
        let sums = ranks.deal(&name, batches, |batch| {
            let sums = ReferenceLogps::of_batch(self.model, batch, self.frozen.ld_alpha);
            // The other ranks do as much meanwhile.
            done = (done + batch.len() * ranks.world()).min(self.total);
            if told.is_ok() {
                told = observer.on(&Event::Advance { name: &name, done: done as u64, message: "" });
            }
            sums.into_iter().map(Exact).collect::<Vec<_>>()
        });
        told?;
        let numbers = |sums: Vec<Exact>| sums.into_iter().map(|sum| sum.0).collect();
        Ok(ReferenceLogps::join(sums.into_iter().map(numbers)))
    }
}
