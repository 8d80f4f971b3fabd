//! The ranks of a run: collectives with names for messages, and what is built from them.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::Tensor;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::communicator::{Arriving, Communicator, Gathered, OneRank};
use super::status::Status;
use super::watchdog;

/// Items of a rank between two gathers in [`Ranks::deal`]. The gathers show a waiting rank that the
/// others make progress.
const ITEMS_A_ROUND: usize = 8;

/// The ranks of this run. On one rank, all methods are cheap.
pub struct Ranks {
    engine: Box<dyn Communicator>,
    status: Arc<Status>,
    local_rank: usize,
    traffic: Cell<Traffic>,
}

/// The data that this rank sent, and its time in collectives.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Traffic {
    /// Bytes of gradients and weights that this rank sent.
    pub bytes: u64,
    /// Bytes of rows of the embedding's gradient that it sent, and of their ids.
    pub row_bytes: u64,
    /// Time in collectives of all kinds, including the wait for other ranks.
    pub time: Duration,
}

impl Ranks {
    /// A run on this process alone.
    pub fn one() -> Self {
        Self::with_engine(Box::new(OneRank))
    }

    /// A run whose ranks are connected by `engine`, without a watchdog.
    pub fn with_engine(engine: Box<dyn Communicator>) -> Self {
        let status = Status::new(engine.rank(), engine.world());
        Self::new(engine, Arc::new(status), 0)
    }

    pub(super) fn new(
        engine: Box<dyn Communicator>,
        status: Arc<Status>,
        local_rank: usize,
    ) -> Self {
        Self { engine, status, local_rank, traffic: Cell::default() }
    }

    /// The number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.engine.rank()
    }

    /// Number of ranks.
    pub fn world(&self) -> usize {
        self.engine.world()
    }

    /// The rank among the processes of this host.
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// Whether this is rank 0, which prints and writes.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Whether the run has no other rank.
    pub fn is_alone(&self) -> bool {
        self.world() == 1
    }

    /// See [`Communicator::reduce_scatter`]. `name` is the bucket's.
    pub fn reduce_scatter(&self, name: &str, bucket: Tensor<1>) -> Box<dyn Arriving> {
        self.sends(bucket.dims()[0] / self.world() * bucket.dtype().size());
        self.collective(|| format!("reduce-scatter of {name}"), |e| e.reduce_scatter(bucket))
    }

    /// See [`Arriving::nudge`]. Its time counts as time in a collective.
    pub fn nudge(&self, arriving: &mut dyn Arriving) {
        let started = Instant::now();
        arriving.nudge();
        self.spent(started);
    }

    /// See [`Arriving::finish`].
    pub fn finish(&self, name: &str, arriving: Box<dyn Arriving>) -> Vec<Tensor<1>> {
        self.collective(|| format!("reduce-scatter of {name}"), |_| arriving.finish())
    }

    /// See [`Communicator::exchange`], for ids of rows of the embedding's gradient.
    pub fn exchange_row_ids(&self, parts: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        self.sends_rows(parts.iter().map(Vec::len), 1);
        self.collective(|| "exchange of embedding ids".into(), |e| e.exchange(parts))
    }

    /// See [`Communicator::exchange_elements`], for rows of the embedding's gradient.
    pub fn exchange_rows(&self, rows: Tensor<1>, sent: &[usize], received: &[usize]) -> Tensor<1> {
        self.sends_rows(sent.iter().copied(), rows.dtype().size());
        self.collective(
            || "exchange of embedding rows".into(),
            |e| e.exchange_elements(rows, sent, received),
        )
    }

    /// See [`Communicator::all_gather`].
    pub fn all_gather(&self, name: &str, shard: Tensor<1>) -> Gathered {
        self.sends(shard.dims()[0] * shard.dtype().size());
        self.collective(|| format!("all-gather of {name}"), |e| e.all_gather(shard))
    }

    /// See [`Communicator::gather`].
    pub fn gather(&self, what: &str, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.collective(|| format!("gather of {what}"), |e| e.gather(bytes))
    }

    /// See [`Communicator::gather_to_first`].
    pub fn gather_to_first(&self, what: &str, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.collective(|| format!("gather of {what}"), |e| e.gather_to_first(bytes))
    }

    /// See [`Communicator::barrier`].
    pub fn barrier(&self, what: &str) {
        self.collective(|| format!("barrier after {what}"), |e| e.barrier());
    }

    /// The result of rank 0's `decide`, on every rank. The other ranks do not call it.
    ///
    /// # Errors
    /// Those of `decide`, on rank 0. The other ranks end with the job.
    pub fn decide<T, E>(&self, what: &str, decide: impl FnOnce() -> Result<T, E>) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
    {
        if self.is_alone() {
            return decide();
        }
        let own = if self.is_first() { Some(decide()?) } else { None };
        let bytes = own.as_ref().map_or_else(Vec::new, encode);
        let bytes = self.collective(|| format!("broadcast of {what}"), |e| e.broadcast(bytes));
        Ok(own.unwrap_or_else(|| decode(&bytes)))
    }

    /// Runs `work` on rank 0, then on the other ranks, which find its results in the cache.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn first_before_others<T, E>(
        &self,
        what: &str,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        if self.is_first() {
            let result = work()?;
            self.barrier(what);
            return Ok(result);
        }
        self.barrier(what);
        work()
    }

    /// Deals `items` to the ranks in turn. Returns all results, in the order of the items, on every
    /// rank.
    pub fn deal<I, T>(&self, what: &str, items: &[I], mut work: impl FnMut(&I) -> T) -> Vec<T>
    where
        T: Serialize + DeserializeOwned,
    {
        if self.is_alone() {
            return items.iter().map(work).collect();
        }
        let mut all = Vec::with_capacity(items.len());
        for round in items.chunks(self.world() * ITEMS_A_ROUND) {
            let own = round.iter().skip(self.rank()).step_by(self.world());
            let own: Vec<T> = own.map(&mut work).collect();
            all.extend(self.gather_in_turn(what, own));
        }
        all
    }

    /// The items of all ranks: the first item of each rank in the order of the ranks, then the
    /// second item of each, and so on.
    pub fn gather_in_turn<T>(&self, what: &str, own: Vec<T>) -> Vec<T>
    where
        T: Serialize + DeserializeOwned,
    {
        if self.is_alone() {
            return own;
        }
        let parts = self.gather(what, &encode(&own));
        let mut parts: Vec<std::vec::IntoIter<T>> =
            parts.iter().map(|bytes| decode::<Vec<T>>(bytes).into_iter()).collect();
        let mut all = Vec::new();
        loop {
            let before = all.len();
            all.extend(parts.iter_mut().filter_map(Iterator::next));
            if all.len() == before {
                return all;
            }
        }
    }

    /// Whether `own` is true on every rank.
    pub fn all(&self, what: &str, own: bool) -> bool {
        if self.is_alone() {
            return own;
        }
        self.gather(what, &[u8::from(own)]).iter().all(|bytes| bytes == &[1])
    }

    /// Whether `own` is true on at least one rank.
    pub fn any(&self, what: &str, own: bool) -> bool {
        !self.all(what, !own)
    }

    /// Sets the current step for messages.
    pub fn at_step(&self, step: u64) {
        self.status.set(|now| {
            now.step = Some(step);
            now.work = "at the beginning".into();
        });
    }

    /// Sets the current work for messages.
    pub fn at_work(&self, work: impl FnOnce() -> String) {
        if !self.is_alone() {
            let work = work();
            self.status.set(|now| now.work = work);
        }
    }

    /// Sets whether a collective that takes longer than the timeout ends the job.
    pub fn guard(&self, guarded: bool) {
        self.status.set(|now| now.guarded = guarded);
    }

    /// The last collective of a run. After it, ranks may end at any time.
    pub fn leave(&self) {
        self.status.set(|now| now.done = true);
        self.engine.barrier();
    }

    /// "rank 2 of 4, step 7, …"; empty on one rank.
    pub fn describe(&self) -> String {
        if self.is_alone() { String::new() } else { self.status.to_string() }
    }

    /// Ends the whole job. Prints `why`, unless another rank of this host has printed a message.
    pub fn end_job(&self, why: impl std::fmt::Display, code: i32) -> ! {
        watchdog::end_job(&self.status, why, code, self.engine.abort())
    }

    /// The data that was sent so far.
    pub fn traffic(&self) -> Traffic {
        self.traffic.get()
    }

    /// Counts `bytes` sent to each of the other ranks.
    fn sends(&self, bytes: usize) {
        let mut traffic = self.traffic.get();
        traffic.bytes += (bytes * (self.world() - 1)) as u64;
        self.traffic.set(traffic);
    }

    /// Counts `lengths[s]` elements of `size` bytes sent to rank `s`.
    fn sends_rows(&self, lengths: impl Iterator<Item = usize>, size: usize) {
        let others = lengths.enumerate().filter(|(rank, _)| *rank != self.rank());
        let elements: usize = others.map(|(_, length)| length).sum();
        let mut traffic = self.traffic.get();
        traffic.row_bytes += (elements * size) as u64;
        self.traffic.set(traffic);
    }

    fn collective<T>(
        &self,
        name: impl FnOnce() -> String,
        run: impl FnOnce(&dyn Communicator) -> T,
    ) -> T {
        if self.is_alone() {
            return run(&*self.engine);
        }
        let name = name();
        self.status.set(|now| now.collective = Some(name));
        let started = Instant::now();
        let result = run(&*self.engine);
        self.spent(started);
        self.status.set(|now| now.collective = None);
        result
    }

    fn spent(&self, started: Instant) {
        let mut traffic = self.traffic.get();
        traffic.time += started.elapsed();
        self.traffic.set(traffic);
    }
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain numbers, texts and lists become JSON")
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> T {
    serde_json::from_slice(bytes).expect("it was written by the same program")
}

/// A number that keeps all its bits in a message between ranks, also NaN and infinity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Exact(pub f64);

impl Serialize for Exact {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.to_bits().serialize(serializer)
    }
}

impl<'de> serde::Deserialize<'de> for Exact {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u64::deserialize(deserializer).map(|bits| Self(f64::from_bits(bits)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_between_ranks_keep_their_bits() {
        for number in [f64::NAN, f64::NEG_INFINITY, -0.0, 0.1, 5e-324] {
            let back: Exact = decode(&encode(&Exact(number)));
            assert_eq!(back.0.to_bits(), number.to_bits());
        }
    }

    #[test]
    fn one_rank_does_all_the_work_in_order() {
        let ranks = Ranks::one();
        assert_eq!(ranks.deal("squares", &[1, 2, 3], |x| x * x), [1, 4, 9]);
        assert_eq!(
            ranks.gather_in_turn("items", vec!["a", "b"].into_iter().map(String::from).collect()),
            ["a", "b"]
        );
        assert!(ranks.any("flags", true) && !ranks.all("flags", false));
        assert_eq!(ranks.traffic(), Traffic::default());
    }
}
