//! The reference of a run: log-probs of a frozen model, or a model that follows the policy.
//!
//! The log-probs of a frozen reference are computed once, before training, and stored in the cache.
//! The pass over the rows stores its results block by block, so that a pass that is interrupted
//! continues with the next block. Each row has two responses: chosen and rejected or, for KTO, the
//! labelled one and a mismatched one. Messages call such rows pairs.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use burn::tensor::Device;

use super::context::Context;
use super::error::RunError;
use super::reference_model::Reference;
use crate::data::{RowList, Splits, TwoResponses};
use crate::files::cache_lock::CacheLock;
use crate::model::decoder::Decoder;
use crate::objective::reference::{ReferenceLogps, batch_sizes};
use crate::parallel::ranks::Exact;
use crate::plan::Plan;
use crate::recipe::{Quantization, Recipe, ReferenceKind};
use crate::train::checkpoint::Start;
use crate::train::event::{Event, Observer};
use crate::train::tasks::ReferenceSource;

/// Batches of a block. An interruption costs each rank one block at most. The number is constant,
/// so that a pass can continue on any number of ranks.
const BATCHES_A_BLOCK: usize = 8;
/// The polling interval while another run computes the log-probs.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A reference pass that ended early because the run was asked to stop. Finished blocks are stored.
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

/// The result of [`find`].
pub enum Found {
    Reference(ReferenceSource),
    Stopped(Stopped),
}

/// Why the functions of this file return early.
enum Interruption {
    Stopped(Stopped),
    Failed(Box<RunError>),
}

impl<E: Into<RunError>> From<E> for Interruption {
    fn from(error: E) -> Self {
        Self::Failed(Box::new(error.into()))
    }
}

/// Everything besides the rows that the log-probs of a frozen reference depend on. Runs with the
/// same key share the log-probs. `None` if the recipe has no frozen reference.
pub fn shared_key(recipe: &Recipe) -> Option<String> {
    let ReferenceKind::Frozen(ld_alpha) = recipe.reference_kind() else { return None };
    let model = &recipe.model;
    let reference = model.ref_model_name_or_path.as_ref().unwrap_or(&model.model_name_or_path);
    let (dtype, device) = (model.dtype, recipe.train.device);
    let settings = format!("{dtype:?} {} {device:?} {ld_alpha:?}", recipe.train.bf16);
    let quantization = model.quantization;
    Some(format!("{reference} {} {quantization:?} {settings}", model.lora.is_some()))
}

/// The reference of a run over `rows`. Stored log-probs are used if they exist, and computed and
/// stored if not. `checkpoint` is the folder of the checkpoint that the run continues from, if any,
/// and `start` is what it holds.
///
/// # Errors
/// The reference's weights cannot be read, or an observer fails.
pub fn find(
    plan: &Plan,
    rows: &Splits<impl TwoResponses>,
    start: &Start,
    checkpoint: Option<&Path>,
    context: &Context,
    observer: &mut dyn Observer,
) -> Result<Found, RunError> {
    let in_memory = |reference: Reference, sync, observer: &mut dyn Observer| {
        let model = reference.load(&start.model.device(), plan.weight_format(), observer)?;
        let model = Box::new(RefCell::new(model));
        Ok::<_, RunError>(ReferenceSource::InMemory { model, sync })
    };
    let result = match plan.recipe.reference_kind() {
        ReferenceKind::None => Ok(ReferenceSource::None),
        ReferenceKind::Frozen(ld_alpha) => Frozen::new(plan, start, context, ld_alpha)
            .map_err(Interruption::from)
            .and_then(|mut reference| reference.splits(rows, observer)),
        ReferenceKind::Following(sync) => {
            let reference = match checkpoint {
                Some(path) => Reference::of_folder(&path.join(ReferenceSource::FOLDER))?,
                None => Reference::of(plan)?,
            };
            Ok(in_memory(reference, Some(sync), observer)?)
        }
        ReferenceKind::Resident => Ok(in_memory(Reference::of(plan)?, None, observer)?),
    };
    match result {
        Ok(reference) => Ok(Found::Reference(reference)),
        Err(Interruption::Stopped(stopped)) => Ok(Found::Stopped(stopped)),
        Err(Interruption::Failed(error)) => Err(*error),
    }
}

/// The frozen reference. Its weights are read only if its log-probs are not stored yet.
struct Frozen<'a> {
    plan: &'a Plan,
    context: &'a Context<'a>,
    reference: Reference,
    /// The hash of the weights.
    weights: [u8; 32],
    /// The α of LD-DPO.
    ld_alpha: Option<f64>,
    device: Device,
    /// The weights, once they are read.
    model: Option<Decoder>,
    /// Whether the cache could not be written.
    is_unwritable: Cell<bool>,
}

impl<'a> Frozen<'a> {
    fn new(
        plan: &'a Plan,
        start: &Start,
        context: &'a Context,
        ld_alpha: Option<f64>,
    ) -> Result<Self, RunError> {
        let reference = Reference::of(plan)?;
        Ok(Self {
            plan,
            context,
            weights: reference.hash()?,
            ld_alpha,
            device: start.model.device(),
            model: reference.of_start(plan, start),
            reference,
            is_unwritable: Cell::new(false),
        })
    }

    /// Log-probs of the training and the held-out rows.
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

    /// Log-probs of the pairs that the run visits. If the run visits few pairs, only theirs are
    /// computed.
    fn train_logps<R: TwoResponses>(
        &mut self,
        pairs: &RowList<R>,
        observer: &mut dyn Observer,
    ) -> Result<ReferenceLogps, Interruption> {
        let Some(rows) = self.plan.schedule.few_rows() else {
            return self.logps("train", pairs, observer);
        };
        if let Some(stored) = self.stored(&self.key(pairs.iter()), pairs.len()) {
            return Ok(stored);
        }
        let few: RowList<R> = rows.iter().map(|row| pairs.get(*row).into_owned()).collect();
        Ok(self.logps("train", &few, observer)?.spread(&rows, pairs.len()))
    }

    /// The key under which the log-probs of `pairs` are stored.
    fn key<'r, R: TwoResponses + 'r>(&self, pairs: impl Iterator<Item = Cow<'r, R>>) -> String {
        let (dtype, device) = (self.plan.dtype, self.plan.recipe.train.device);
        let mut settings = format!("{dtype:?} {device:?}");
        if let Some(alpha) = self.ld_alpha {
            settings += &format!(" ld_alpha {alpha}");
        }
        if let Some(Quantization { nested }) = self.plan.recipe.model.quantization {
            settings += &format!(" nf4 {nested}");
        }
        ReferenceLogps::key(&self.weights, pairs, &settings)
    }

    /// Stored log-probs of `pairs` pairs, if every rank has them. If one rank lacks them, all ranks
    /// compute them together.
    fn stored(&self, key: &str, pairs: usize) -> Option<ReferenceLogps> {
        let ranks = self.context.ranks;
        let stored = ReferenceLogps::read(&self.plan.cache, key, pairs);
        let everywhere = ranks.all("stored log-probs", stored.is_some());
        stored.filter(|_| everywhere)
    }

    /// Log-probs of `pairs`: read if they are stored, else computed and stored.
    fn logps(
        &mut self,
        split: &str,
        pairs: &RowList<impl TwoResponses>,
        observer: &mut dyn Observer,
    ) -> Result<ReferenceLogps, Interruption> {
        if pairs.is_empty() {
            return Ok(ReferenceLogps::default());
        }
        let key = self.key(pairs.iter());
        if let Some(stored) = self.stored(&key, pairs.len()) {
            return Ok(stored);
        }
        // Another run may be computing them.
        let lock = self.lock(split, &key, pairs.len(), observer)?;
        if let Some(stored) = self.stored(&key, pairs.len()) {
            return Ok(stored);
        }
        let model = match self.model.take() {
            Some(model) => model,
            None => self.reference.load(&self.device, self.plan.weight_format(), observer)?,
        };
        let pass = Pass { frozen: self, model: &model, split, total: pairs.len() };
        let (logps, block_keys) = pass.run(pairs, observer)?;
        self.model = Some(model);
        if self.context.ranks.is_first() && self.store(&logps, &key, observer)? {
            block_keys.iter().for_each(|key| ReferenceLogps::forget(&self.plan.cache, key));
        }
        drop(lock);
        Ok(logps)
    }

    /// Waits until no other process computes the same log-probs. Rank 0 takes the lock for all
    /// ranks. The ranks exchange their state in each round of waiting, so that a signal on one rank
    /// stops all.
    fn lock(
        &self,
        split: &str,
        key: &str,
        total: usize,
        observer: &mut dyn Observer,
    ) -> Result<Option<CacheLock>, Interruption> {
        let ranks = self.context.ranks;
        let name = format!("reference-{key}");
        let mut is_announced = false;
        loop {
            let lock = match ranks.is_first() {
                true => CacheLock::take(&self.plan.cache, &name),
                false => None,
            };
            if ranks.any("cache locks", lock.is_some()) {
                return Ok(lock);
            }
            if ranks.any("signals", self.context.is_stopping()) {
                return Err(Interruption::Stopped(Stopped {
                    name: phase_name(split),
                    done: 0,
                    total,
                }));
            }
            if !is_announced {
                let text = format!("waiting for another run that computes {}", phase_name(split));
                observer.on(&Event::Message(&text))?;
                is_announced = true;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Stores log-probs in the cache. Returns whether they are stored: if the cache cannot be
    /// written, the run goes on with those in memory.
    fn store(
        &self,
        logps: &ReferenceLogps,
        key: &str,
        observer: &mut dyn Observer,
    ) -> Result<bool, RunError> {
        let Err(error) = logps.store(&self.plan.cache, key) else { return Ok(true) };
        if !self.is_unwritable.replace(true) {
            let text = format!(
                "the reference log-probs are kept in memory only, so a run that is started again \
                 computes them again: {error}; FAVONIUS_CACHE names another folder for them"
            );
            observer.on(&Event::Message(&text))?;
        }
        Ok(false)
    }
}

/// The name of the pass over a split, for messages and progress bars.
fn phase_name(split: &str) -> String {
    format!("reference log-probs ({split})")
}

/// One pass of the reference over pairs, block by block. Blocks that an earlier start stored are
/// read.
struct Pass<'a> {
    frozen: &'a Frozen<'a>,
    model: &'a Decoder,
    split: &'a str,
    /// The number of pairs.
    total: usize,
}

/// Consecutive batches whose log-probs are stored together.
struct Block<'a, R> {
    batches: Vec<&'a [R]>,
    /// The key under which the block is stored. A pass of a single block does not store it.
    key: Option<String>,
    /// The block's log-probs, if an earlier start stored them.
    stored: Option<ReferenceLogps>,
}

impl<R> Block<'_, R> {
    /// The number of pairs.
    fn pairs(&self) -> usize {
        self.batches.iter().map(|batch| batch.len()).sum()
    }
}

impl Pass<'_> {
    /// All log-probs, and the keys under which blocks of them are stored.
    fn run(
        &self,
        pairs: &RowList<impl TwoResponses>,
        observer: &mut dyn Observer,
    ) -> Result<(ReferenceLogps, Vec<String>), Interruption> {
        let ranks = self.frozen.context.ranks;
        let started = Instant::now();
        let name = phase_name(self.split);
        observer.on(&Event::Phase { name: &name, total: self.total as u64, unit: "pairs" })?;
        let tokens: Vec<usize> = pairs.iter().map(|pair| pair.tokens()).collect();
        let sizes = batch_sizes(&tokens);
        let blocks: Vec<&[usize]> = sizes.chunks(BATCHES_A_BLOCK).collect();
        let (mut all, mut keys, mut computed) = (ReferenceLogps::default(), Vec::new(), 0);
        // A round has one block for each rank.
        for round in blocks.chunks(ranks.world()) {
            let done = all.first.len();
            let here: usize = round.iter().copied().flatten().sum();
            let pairs: Vec<_> =
                (done..done + here).map(|row| pairs.get(row).into_owned()).collect();
            let round = self.look_up(round, &pairs, blocks.len() > 1);
            let Some(sums) = self.compute_missing(&round, done, observer)? else {
                observer.on(&Event::PhaseEnd { name: &name })?;
                return Err(Interruption::Stopped(Stopped { name, done, total: self.total }));
            };
            let missing = round.iter().filter(|block| block.stored.is_none());
            computed += missing.map(Block::pairs).sum::<usize>();
            let mut sums = sums.into_iter();
            for block in round {
                let logps = match block.stored {
                    Some(stored) => stored,
                    None => {
                        let logps = ReferenceLogps::join(sums.by_ref().take(block.batches.len()));
                        if let (Some(key), true) = (&block.key, ranks.is_first()) {
                            self.frozen.store(&logps, key, observer)?;
                        }
                        logps
                    }
                };
                all.extend(logps);
                keys.extend(block.key);
            }
        }
        observer.on(&Event::PhaseEnd { name: &name })?;
        let seconds = started.elapsed().as_secs_f64();
        let mut text = format!("{name}: {computed} pairs in {seconds:.2} s");
        if computed < self.total {
            let stored = self.total - computed;
            text.push_str(&format!(", {stored} kept from an earlier start"));
        }
        observer.on(&Event::Message(&text))?;
        Ok((all, keys))
    }

    /// Blocks with what is stored of them. `blocks` has the number of pairs of each of their
    /// batches, and `pairs` the pairs of all blocks.
    fn look_up<'a, R: TwoResponses>(
        &self,
        blocks: &[&[usize]],
        mut pairs: &'a [R],
        are_stored: bool,
    ) -> Vec<Block<'a, R>> {
        let look_up = |sizes: &&[usize]| {
            let (own, rest) = pairs.split_at(sizes.iter().sum());
            pairs = rest;
            let mut left = own;
            let batch = |size: &usize| {
                let (batch, later) = left.split_at(*size);
                left = later;
                batch
            };
            let batches = sizes.iter().map(batch).collect();
            let mut block = Block { batches, key: None, stored: None };
            if are_stored {
                let key = self.frozen.key(own.iter().map(Cow::Borrowed));
                block.stored = self.frozen.stored(&key, own.len());
                block.key = Some(key);
            }
            block
        };
        blocks.iter().map(look_up).collect()
    }

    /// Log-probs of the batches that are not stored, in their order; the ranks share the work.
    /// `None` if the run was asked to stop. `done` is the number of pairs before these blocks.
    fn compute_missing<R: TwoResponses>(
        &self,
        blocks: &[Block<R>],
        done: usize,
        observer: &mut dyn Observer,
    ) -> Result<Option<Vec<Vec<f64>>>, Interruption> {
        let name = phase_name(self.split);
        let stored = blocks.iter().filter(|block| block.stored.is_some());
        let mut done = done + stored.map(Block::pairs).sum::<usize>();
        let missing = blocks.iter().filter(|block| block.stored.is_none());
        let batches: Vec<&[R]> = missing.flat_map(|block| &block.batches).copied().collect();
        let context = self.frozen.context;
        let ranks = context.ranks;
        let mut observed = Ok(());
        let sums = ranks.deal(&name, &batches, |batch| {
            // After a signal the round is not used.
            if context.is_stopping() {
                return Vec::new();
            }
            let sums = ReferenceLogps::of_batch(self.model, batch, self.frozen.ld_alpha);
            // The other ranks compute as many pairs at the same time.
            done = (done + batch.len() * ranks.world()).min(self.total);
            if observed.is_ok() {
                let done = done as u64;
                observed = observer.on(&Event::Advance { name: &name, done, message: "" });
            }
            sums.into_iter().map(Exact).collect::<Vec<_>>()
        });
        observed?;
        if ranks.any("signals", context.is_stopping()) {
            return Ok(None);
        }
        let numbers = |sums: Vec<Exact>| sums.into_iter().map(|sum| sum.0).collect();
        Ok(Some(sums.into_iter().map(numbers).collect()))
    }
}
