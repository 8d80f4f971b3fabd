//! Runs a target on random changes of its seeds, without coverage. It needs no instrumented build,
//! so that it checks the library as the program has it.
//!
//! usage: mutate TARGET SECONDS [SEED]
//!
//! It prints the number of inputs and the slowest one. An input that panics is left in
//! `crash-TARGET`, one that takes more than five seconds in `slow-TARGET`, and one that ends the
//! process, as an overflow of the stack does, in `input-TARGET`.

use std::error::Error;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use favonius_fuzz::{TARGETS, begin};

const SLOW: Duration = Duration::from_secs(5);

/// xorshift64*, which is enough to choose changes.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % end.max(1)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, seconds, rest @ ..] = arguments.as_slice() else {
        return Err("usage: mutate TARGET SECONDS [SEED]".into());
    };
    let (_, target) = TARGETS.into_iter().find(|(known, _)| known == name).ok_or_else(|| {
        let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
        format!("`{name}` is no target; the targets are {}", names.join(", "))
    })?;
    let seeds = seeds(&Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name))?;
    let mut random = Random(rest.first().map_or(Ok(1), |seed| seed.parse::<u64>())?.max(1));
    begin();
    let (start, length) = (Instant::now(), Duration::from_secs(seconds.parse()?));
    let (mut inputs, mut crashes, mut slowest) = (0_u64, 0_u64, Duration::ZERO);
    while start.elapsed() < length {
        let input = changed(&seeds, &mut random);
        fs::write(format!("input-{name}"), &input)?;
        let began = Instant::now();
        if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
            crashes += 1;
            fs::write(format!("crash-{name}"), &input)?;
        }
        let took = began.elapsed();
        if took > slowest && took > SLOW {
            fs::write(format!("slow-{name}"), &input)?;
        }
        slowest = slowest.max(took);
        inputs += 1;
    }
    fs::remove_file(format!("input-{name}"))?;
    println!("{name}: {inputs} inputs, {crashes} crashes, slowest {slowest:.2?}");
    if crashes > 0 { Err("an input crashed".into()) } else { Ok(()) }
}

fn seeds(folder: &Path) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    let mut paths: Vec<_> =
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    paths.sort();
    Ok(paths.into_iter().map(fs::read).collect::<std::io::Result<_>>()?)
}

/// A seed with a few random changes.
fn changed(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    const PIECES: [&[u8]; 14] = [
        b"\xff",
        b"\0\0\0\0",
        b"9999999999",
        b"-1",
        b"{",
        b"[",
        b"]}",
        b"\"",
        b"null",
        b"1e999",
        b"{%",
        b"%}",
        b"\n",
        b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    ];
    let mut input = seeds[random.below(seeds.len())].clone();
    for _ in 0..1 + random.below(6) {
        let at = random.below(input.len() + 1);
        let to = (at + random.below(16)).min(input.len());
        match random.below(6) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = random.below(256) as u8,
            2 => drop(input.splice(at..at, PIECES[random.below(PIECES.len())].iter().copied())),
            3 => drop(input.drain(at..to)),
            4 => {
                let copy = input[at..to].repeat(1 + random.below(4));
                drop(input.splice(at..at, copy));
            }
            _ => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
    }
    input
}
