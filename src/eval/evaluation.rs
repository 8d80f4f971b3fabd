//! The answers of a model to all documents of a task: the ranks share the documents, and finished
//! documents are kept.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::encoding::EncodedDocument;
use super::engine::{Engine, whole_tokens};
use super::evaluation_error::EvaluationError;
use super::kept::{Kept, KeptAnswer, KeptAnswers, hash_of};
use super::request::Answer;
use super::task::Task;
use crate::infer::chat_model::ChatModel;
use crate::parallel::Ranks;
use crate::train::event::{Event, Observer};

/// The inputs of an evaluation besides its tasks.
pub struct EvaluationContext<'a> {
    pub chat: &'a ChatModel,
    /// Tokens of a batch at most.
    pub batch_tokens: usize,
    /// The folder of the kept answers; `None` keeps none.
    pub folder: Option<&'a Path>,
    pub ranks: &'a Ranks,
    /// Set by a signal handler: the evaluation ends after the next unit of documents.
    pub stop: &'a AtomicBool,
}

/// Answers the documents of tasks.
pub struct Evaluation<'a> {
    context: &'a EvaluationContext<'a>,
    engine: Engine<'a>,
    /// The file of rank 0.
    file: Option<KeptAnswers>,
    /// All answers of the file, by the hash of the requests, on every rank.
    kept: HashMap<String, Kept>,
}

/// The answers to a task's documents.
#[derive(Debug)]
pub struct TaskAnswers {
    /// `[documents]`, each with the answers to its requests.
    pub answers: Vec<Vec<Answer>>,
    pub effort: Effort,
}

/// Time and tokens of the answers.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Effort {
    pub documents: usize,
    /// Documents whose answers an earlier start kept.
    pub kept: usize,
    /// Requests that are longer than the model's positions and were cut from the left.
    pub cut: usize,
    pub requests: usize,
    /// Tokens that the model read.
    pub tokens: usize,
    /// Tokens of generated texts, which are part of `tokens`.
    pub new_tokens: usize,
    /// Tokens that lm-eval would read: each request as a whole sequence.
    pub whole_tokens: usize,
    /// The time of this start.
    pub time: Duration,
}

/// Documents whose token ids are in memory at a time.
const DOCUMENTS_AT_ONCE: usize = 2048;

/// Consecutive documents of a task.
struct Block {
    /// The hashes of the requests of all of them.
    hashes: Vec<String>,
    /// The number of documents that an earlier start answered.
    kept: usize,
    /// Those that are not answered yet, each once, with the hashes of their requests.
    missing: Vec<EncodedDocument>,
    missing_hashes: Vec<String>,
}

impl<'a> Evaluation<'a> {
    /// Opens the kept answers.
    ///
    /// # Errors
    /// The folder cannot be written, or the model's files cannot be read.
    pub fn new(context: &'a EvaluationContext<'a>) -> Result<Self, EvaluationError> {
        let engine = Engine::new(context.chat, context.batch_tokens)?;
        let Some(folder) = context.folder else {
            return Ok(Self { context, engine, file: None, kept: HashMap::new() });
        };
        let mut file = None;
        let kept = context.ranks.decide("kept answers", || {
            let fingerprint = fingerprint(context.chat)?;
            let (opened, kept) = KeptAnswers::open(folder, &fingerprint)?;
            file = Some(opened);
            Ok::<_, EvaluationError>(kept)
        })?;
        Ok(Self { context, engine, file, kept })
    }

    /// Answers all documents of `task`. `None` if the evaluation was asked to stop; what is
    /// finished is kept.
    ///
    /// # Errors
    /// A document cannot be built, encoded or kept, or a log-likelihood is NaN or infinite.
    pub fn answers(
        &mut self,
        task: &dyn Task,
        observer: &mut dyn Observer,
    ) -> Result<Option<TaskAnswers>, EvaluationError> {
        let started = Instant::now();
        let name = format!("evaluating {}", task.name());
        let total = task.documents();
        observer.on(&Event::Phase { name: &name, total: total as u64, unit: "documents" })?;
        let mut hashes = Vec::with_capacity(total);
        let mut kept_before = 0;
        for from in (0..total).step_by(DOCUMENTS_AT_ONCE) {
            let block = self.block(task, from..total.min(from + DOCUMENTS_AT_ONCE))?;
            if !self.answer_block(task, &block, from, &name, observer)? {
                observer.on(&Event::PhaseEnd { name: &name })?;
                return Ok(None);
            }
            hashes.extend(block.hashes);
            kept_before += block.kept;
        }
        observer.on(&Event::PhaseEnd { name: &name })?;
        let kept = hashes.iter().map(|hash| &self.kept[hash]);
        let mut effort = Effort {
            documents: total,
            kept: kept_before,
            time: started.elapsed(),
            ..Effort::default()
        };
        for document in kept.clone() {
            effort.cut += document.cut;
            effort.requests += document.answers.len();
            effort.tokens += document.tokens;
            effort.new_tokens += document.new_tokens;
            effort.whole_tokens += document.whole_tokens;
        }
        let answers = kept.map(|kept| kept.answers.iter().cloned().map(Answer::from).collect());
        Ok(Some(TaskAnswers { answers: answers.collect(), effort }))
    }

    /// Builds the documents `ids`, and encodes those that are not answered yet.
    fn block(&self, task: &dyn Task, ids: Range<usize>) -> Result<Block, EvaluationError> {
        let (engine, kept) = (&self.engine, &self.kept);
        let documents =
            ids.into_par_iter().map(|id| {
                let document = task.document(id)?;
                let hash = hash_of(&document);
                if kept.contains_key(&hash) {
                    return Ok((hash, None));
                }
                let encoded = engine.encode(&document).map_err(|source| {
                    EvaluationError::Document { task: task.name().to_owned(), document: id, source }
                })?;
                Ok((hash, Some(encoded)))
            });
        let documents = documents.collect::<Result<Vec<_>, EvaluationError>>()?;
        let mut block =
            Block { hashes: Vec::new(), kept: 0, missing: Vec::new(), missing_hashes: Vec::new() };
        let mut seen = HashSet::new();
        for (hash, encoded) in documents {
            block.kept += usize::from(encoded.is_none());
            if let Some(encoded) = encoded.filter(|_| seen.insert(hash.clone())) {
                block.missing.push(encoded);
                block.missing_hashes.push(hash.clone());
            }
            block.hashes.push(hash);
        }
        Ok(block)
    }

    /// Answers and keeps the missing documents of a block. `before` is the number of documents
    /// before it. Returns false if the evaluation was asked to stop.
    fn answer_block(
        &mut self,
        task: &dyn Task,
        block: &Block,
        before: usize,
        name: &str,
        observer: &mut dyn Observer,
    ) -> Result<bool, EvaluationError> {
        let ranks = self.context.ranks;
        let units = self.engine.units(&block.missing);
        let mut done = before + block.hashes.len() - block.missing.len();
        observer.on(&Event::Advance { name, done: done as u64, message: "" })?;
        let mut hashes = block.missing_hashes.as_slice();
        // A round has a unit for each rank.
        for round in units.chunks(ranks.world()) {
            if ranks.any("signals", self.context.stop.load(Ordering::Relaxed)) {
                return Ok(false);
            }
            let mut own = None;
            for (rank, unit) in round.iter().enumerate() {
                let (of_unit, rest) = hashes.split_at(unit.len());
                hashes = rest;
                if rank == ranks.rank() {
                    own = Some(self.answer_unit(task, unit, of_unit)?);
                }
                done += unit.len();
            }
            let computed = ranks.gather_in_turn("answers", own.into_iter().collect());
            let computed: Vec<Kept> = computed.into_iter().flatten().collect();
            if let Some(file) = &mut self.file {
                file.add(&computed)?;
            }
            self.kept.extend(computed.into_iter().map(|kept| (kept.requests.clone(), kept)));
            observer.on(&Event::Advance { name, done: done as u64, message: "" })?;
        }
        Ok(true)
    }

    fn answer_unit(
        &self,
        task: &dyn Task,
        unit: &[EncodedDocument],
        hashes: &[String],
    ) -> Result<Vec<Kept>, EvaluationError> {
        let answers = self.engine.answer(unit)?;
        let mut tokens = answers.tokens;
        let mut new_tokens = answers.new_tokens;
        let mut all = Vec::with_capacity(unit.len());
        for ((document, hash), answers) in unit.iter().zip(hashes).zip(answers.answers) {
            let is_no_number = |answer: &Answer| matches!(answer, Answer::Loglikelihood { logp, .. } if !logp.is_finite());
            if answers.iter().any(is_no_number) {
                let (task, document) = (task.name().to_owned(), document.id);
                return Err(EvaluationError::NotANumber { task, document });
            }
            all.push(Kept {
                requests: hash.clone(),
                answers: answers.into_iter().map(KeptAnswer::from).collect(),
                tokens: std::mem::take(&mut tokens),
                new_tokens: std::mem::take(&mut new_tokens),
                whole_tokens: whole_tokens(document),
                cut: document.requests.iter().filter(|request| request.cut > 0).count(),
            });
        }
        Ok(all)
    }
}

/// A hash of all that the answers depend on besides the requests. The batch size is left out: an
/// evaluation that lacked memory may continue with a smaller one.
fn fingerprint(chat: &ChatModel) -> Result<String, EvaluationError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"answers 1");
    hasher.update(&chat.fingerprint()?);
    let (device, dtype) = (chat.model.device(), chat.model.dtype());
    hasher.update(format!("{device:?} {dtype:?}").as_bytes());
    Ok(hasher.finalize().to_hex()[..16].to_owned())
}
