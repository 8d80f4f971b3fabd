//! `favonius dist-check`: compares each collective operation with a serial sum and measures its
//! speed, to try out a new cluster.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use burn::tensor::{DType, Device, Tensor, TensorData};
use clap::Args;

use super::ending::Ending;
use super::launch::Launch;
use super::observers::screen_of;
use super::recipe_arguments::parse_timeout;
use crate::model::device;
use crate::parallel::Ranks;
use crate::recipe::DeviceChoice;
use crate::report::screen::Screen;

#[derive(Debug, Args)]
pub struct DistCheckArguments {
    /// Size of the vectors to measure with, in MiB
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub megabytes: usize,
    /// The device: cpu, cuda or cuda:N (the first GPU of a host)
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// How long ranks wait for each other in one collective operation
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = parse_timeout)]
    pub collective_timeout: Duration,
}

/// Lengths of the shards to check: one element, a few, more than one block.
const LENGTHS: [usize; 3] = [1, 1_000, 70_001];
/// Each operation is measured this many times; the fastest time counts.
const RUNS: usize = 5;

/// Checks and measures between all ranks, with vectors of `megabytes` MiB.
pub fn run(device_name: &str, megabytes: usize, launch: Launch) -> anyhow::Result<Ending> {
    let choice = DeviceChoice::from_name(device_name);
    let first_gpu = choice.and_then(DeviceChoice::gpu);
    launch.together(first_gpu, |ranks| {
        let of_rank = choice.map(|choice| choice.of_rank(ranks.local_rank()).to_string());
        let device = device::find(of_rank.as_deref().unwrap_or(device_name))?;
        let screen = screen_of(ranks, true);
        let check = Check { ranks, device, screen };
        ranks.guard(true);
        let checked = check.all(megabytes.max(1) << 20);
        ranks.guard(false);
        checked.map(|()| Ending::Done)
    })
}

struct Check<'a> {
    ranks: &'a Ranks,
    device: Device,
    screen: Screen,
}

impl Check<'_> {
    fn all(&self, bytes: usize) -> anyhow::Result<()> {
        self.screen.line(&format!("{} rank(s)", self.ranks.world()))?;
        self.bytes()?;
        self.screen.line("broadcast, gather, exchange, barrier: correct")?;
        for len in LENGTHS {
            self.exchange_elements(len)?;
            for dtype in [DType::F32, DType::BF16] {
                self.reduce_scatter(len, dtype)?;
                self.all_gather(len, dtype)?;
            }
        }
        self.screen.line(
            "exchange of tensors (float32), reduce-scatter and all-gather (float32, bfloat16): \
             agree with the serial result to the bit",
        )?;
        self.measure(bytes)
    }

    fn bytes(&self) -> anyhow::Result<()> {
        let text = |rank: usize| "rank ".repeat(rank + 1);
        let own = text(self.ranks.rank());
        let all: Vec<Vec<u8>> = (0..self.ranks.world()).map(|r| text(r).into_bytes()).collect();
        if self.ranks.gather("texts", own.as_bytes()) != all {
            bail!("gather gave other bytes than were sent");
        }
        let at_first = self.ranks.gather_to_first("texts", own.as_bytes());
        if self.ranks.is_first() && at_first != all {
            bail!("gather to rank 0 gave other bytes than were sent");
        }
        let received = self.ranks.decide("a text", || anyhow::Ok(own.clone()))?;
        if received != text(0) {
            bail!("broadcast gave other bytes than rank 0 sent");
        }
        let to = |from: usize, to: usize| vec![from as u8; 3 * to];
        let (rank, world) = (self.ranks.rank(), self.ranks.world());
        let parts = (0..world).map(|other| to(rank, other)).collect();
        let received = self.ranks.exchange_row_ids(parts);
        if received != (0..world).map(|other| to(other, rank)).collect::<Vec<_>>() {
            bail!("exchange gave other bytes than were sent");
        }
        self.ranks.barrier("the texts");
        Ok(())
    }

    /// The numbers of a rank depend on its rank only, so every rank can compute the sum by itself.
    /// Sums are float32, whatever is sent.
    fn reduce_scatter(&self, shard: usize, dtype: DType) -> anyhow::Result<()> {
        let (rank, world) = (self.ranks.rank(), self.ranks.world());
        let of_rank = |rank| self.tensor(numbers(rank, shard * world), dtype);
        let sent = self.ranks.reduce_scatter("numbers", of_rank(rank));
        let received = self.ranks.finish("numbers", sent).into_iter();
        let received = received.map(|part| part.cast(DType::F32));
        let sum = received.reduce(|sum, part| sum + part).context("nothing was received")?;
        let mut expected = values(of_rank(0));
        for other in 1..world {
            for (sum, number) in expected.iter_mut().zip(values(of_rank(other))) {
                *sum += number;
            }
        }
        let name = format!("reduce-scatter in {dtype:?}");
        compare(&name, &values(sum), &expected[rank * shard..][..shard])
    }

    /// Rank `r` sends `shard + r + s` numbers to rank `s`.
    fn exchange_elements(&self, shard: usize) -> anyhow::Result<()> {
        let (rank, world) = (self.ranks.rank(), self.ranks.world());
        let length = |from: usize, to: usize| shard + from + to;
        let start = |from, to: usize| (0..to).map(|before| length(from, before)).sum::<usize>();
        let own = self.tensor(numbers(rank, start(rank, world)), DType::F32);
        let sent: Vec<usize> = (0..world).map(|to| length(rank, to)).collect();
        let received: Vec<usize> = (0..world).map(|from| length(from, rank)).collect();
        let all = self.ranks.exchange_rows(own, &sent, &received);
        let expected = (0..world).flat_map(|from| {
            let of_rank = numbers(from, start(from, world));
            of_rank[start(from, rank)..][..length(from, rank)].to_vec()
        });
        compare("exchange of tensors", &values(all), &expected.collect::<Vec<_>>())
    }

    fn all_gather(&self, shard: usize, dtype: DType) -> anyhow::Result<()> {
        let own = self.tensor(numbers(self.ranks.rank(), shard), dtype);
        let all = self.ranks.all_gather("numbers", own).wait();
        let expected = (0..self.ranks.world()).flat_map(|rank| numbers(rank, shard)).collect();
        let expected = self.tensor(expected, dtype);
        compare(&format!("all-gather in {dtype:?}"), &values(all), &values(expected))
    }

    fn measure(&self, bytes: usize) -> anyhow::Result<()> {
        let world = self.ranks.world();
        let shard = (bytes / 4 / world).max(1);
        let whole = self.tensor(numbers(self.ranks.rank(), shard * world), DType::F32);
        let part = self.tensor(numbers(self.ranks.rank(), shard), DType::F32);
        // The bytes that a rank sends: one shard to each of the others.
        let sent = (4 * shard * (world - 1)) as f64;
        self.report("reduce-scatter", sent, || {
            let sent = self.ranks.reduce_scatter("numbers", whole.clone());
            self.ranks
                .finish("numbers", sent)
                .into_iter()
                .reduce(|sum, part| sum + part)
                .map(values);
        })?;
        self.report("all-gather", sent, || {
            drop(values(self.ranks.all_gather("numbers", part.clone()).wait()))
        })
    }

    fn report(&self, name: &str, sent: f64, mut run: impl FnMut()) -> anyhow::Result<()> {
        let mut best = f64::INFINITY;
        for _ in 0..RUNS {
            self.ranks.barrier("the run before");
            let started = Instant::now();
            run();
            best = best.min(started.elapsed().as_secs_f64());
        }
        let rate = sent / best / 1e9;
        Ok(self.screen.line(&format!(
            "{name}: {:.1} ms, {:.1} MB sent a rank, {rate:.2} GB/s",
            best * 1e3,
            sent / 1e6
        ))?)
    }

    fn tensor(&self, numbers: Vec<f32>, dtype: DType) -> Tensor<1> {
        let len = numbers.len();
        Tensor::from_data(TensorData::new(numbers, [len]), (&self.device, dtype))
    }
}

/// Numbers of very different sizes: adding them in another order gives other bits.
fn numbers(rank: usize, len: usize) -> Vec<f32> {
    let number = |index: usize| {
        let bits =
            (index as u64 * 2 + rank as u64 * 1_000_003 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let fraction = (bits >> 40) as f32 / (1 << 24) as f32 - 0.5;
        fraction * 10f32.powi((bits >> 8) as i32 & 7)
    };
    (0..len).map(number).collect()
}

fn values(tensor: Tensor<1>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_into_vec().expect("converted to float32")
}

fn compare(what: &str, found: &[f32], expected: &[f32]) -> anyhow::Result<()> {
    if found.len() != expected.len() {
        bail!("{what} gave {} numbers instead of {}", found.len(), expected.len());
    }
    let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
    if let Some(at) = found.iter().zip(expected).position(differs) {
        bail!(
            "{what} of {} numbers a rank: number {at} is {} instead of {}",
            found.len(),
            found[at],
            expected[at]
        );
    }
    Ok(())
}
