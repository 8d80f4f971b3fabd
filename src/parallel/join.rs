//! Connecting the ranks at the start of a run.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::communicator::Communicator;
use super::environment::{EnvironmentError, Launcher, Place};
use super::ranks::Ranks;
use super::status::{Peer, Status};
use super::watchdog;

/// Longest time of one collective, unless the user sets another.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

/// Why a process cannot join the ranks.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    #[error(
        "{world} ranks were started by an MPI launcher, but this build has no MPI; \
         build with `cargo build --release --features mpi`"
    )]
    NoMpi { world: usize },
    #[error(
        "{world} ranks were started without MPI, and the CPU needs it: use \
         `mpirun -n {world} favonius …` or `srun --mpi=pmix …`; on GPUs build with \
         `--features nccl` and train with --device=cuda"
    )]
    NoNccl { world: usize },
    #[error("MPI cannot be started: {0}")]
    Mpi(String),
    #[error("the launcher says rank {rank} of {world}, MPI says rank {mpi_rank} of {mpi_world}")]
    Mismatch { rank: usize, world: usize, mpi_rank: usize, mpi_world: usize },
    #[error("NCCL cannot be started: {0}")]
    Nccl(String),
    #[error("cannot start the watchdog: {0}")]
    Watchdog(#[from] io::Error),
    #[error(
        "cannot share a file with the ranks of this host: {0}; \
         is TMPDIR writable, and the same for all?"
    )]
    SharedFile(io::Error),
}

/// A rank that was started with another program, recipe or data than rank 0.
#[derive(Debug, thiserror::Error)]
#[error(
    "rank {rank} has another {what} than rank 0; \
     start all ranks with the same program, recipe and data"
)]
pub struct Disagreement {
    pub rank: usize,
    pub what: String,
}

/// The first message of a rank to the others.
#[derive(Serialize, Deserialize)]
struct Greeting {
    host: String,
    process: u32,
    /// The processors that it may use, in Linux's form.
    processors: String,
}

/// Joins the ranks that the launcher started. If tensors are on GPUs, NCCL sends them, not MPI; the
/// ranks of a host then use consecutive GPUs, starting at `first_gpu`.
///
/// # Errors
/// The engine is not in this build or cannot be started, or the ranks of a host cannot share a
/// file.
pub fn join(place: Place, timeout: Duration, first_gpu: Option<usize>) -> Result<Ranks, JoinError> {
    if place.world == 1 {
        share_processors(1);
        return Ok(Ranks::one());
    }
    let engine = engine(place, first_gpu)?;
    let status = Arc::new(Status::new(place.rank, place.world));
    watchdog::end_job_on_panic(status.clone(), engine.abort());
    watchdog::start(status.clone(), timeout, engine.abort())?;
    let ranks = Ranks::new(engine, status.clone(), place.local_rank);
    let own = Greeting {
        host: read("/proc/sys/kernel/hostname"),
        process: std::process::id(),
        processors: processors(),
    };
    let greetings = ranks.gather_in_turn("greetings", vec![own]);
    let own = &greetings[place.rank];
    let here = |greeting: &&Greeting| greeting.host == own.host;
    share_processors(
        greetings.iter().filter(here).filter(|g| g.processors == own.processors).count(),
    );
    let peers = greetings.iter().enumerate().filter(|(_, greeting)| here(greeting));
    let peers: Vec<Peer> =
        peers.map(|(rank, g)| Peer { rank, host: g.host.clone(), process: g.process }).collect();
    share_byte(&ranks, &status, &peers)?;
    status.set(|now| now.neighbours = peers);
    Ok(ranks)
}

/// Shares a byte between the ranks of a host, through a temporary file. It says whether one of them
/// has reported why the job ends.
fn share_byte(ranks: &Ranks, status: &Status, peers: &[Peer]) -> Result<(), JoinError> {
    let first = peers.first().map_or(0, |peer| peer.rank);
    let mut own = None;
    if first == ranks.rank() {
        let file = tempfile::NamedTempFile::new().map_err(JoinError::SharedFile)?;
        file.as_file().set_len(1).map_err(JoinError::SharedFile)?;
        own = Some(file);
    }
    let path = own.as_ref().map_or(String::new(), |file| file.path().display().to_string());
    let paths = ranks.gather_in_turn("files", vec![path]);
    status.share_byte(Path::new(&paths[first])).map_err(JoinError::SharedFile)?;
    // The file is removed when all ranks have opened it.
    ranks.barrier("the files");
    Ok(())
}

fn engine(place: Place, first_gpu: Option<usize>) -> Result<Box<dyn Communicator>, JoinError> {
    match (first_gpu, place.launcher) {
        (Some(first), Launcher::Mpi | Launcher::Address) => nccl_engine(place, first),
        (None, Launcher::Mpi) => mpi_engine(place),
        (None, Launcher::Address) | (_, Launcher::None) => {
            Err(JoinError::NoNccl { world: place.world })
        }
    }
}

#[cfg(feature = "mpi")]
fn mpi_engine(place: Place) -> Result<Box<dyn Communicator>, JoinError> {
    let engine = crate::parallel::mpi::Mpi::start().map_err(JoinError::Mpi)?;
    let Place { rank, world, .. } = place;
    let (mpi_rank, mpi_world) = (engine.rank(), engine.world());
    if (mpi_rank, mpi_world) != (rank, world) {
        return Err(JoinError::Mismatch { rank, world, mpi_rank, mpi_world });
    }
    Ok(Box::new(engine))
}

#[cfg(not(feature = "mpi"))]
fn mpi_engine(place: Place) -> Result<Box<dyn Communicator>, JoinError> {
    Err(JoinError::NoMpi { world: place.world })
}

#[cfg(feature = "nccl")]
fn nccl_engine(place: Place, first_gpu: usize) -> Result<Box<dyn Communicator>, JoinError> {
    use crate::parallel::nccl::Nccl;
    let gpu = first_gpu + place.local_rank;
    Ok(Box::new(Nccl::start(place, gpu).map_err(JoinError::Nccl)?))
}

#[cfg(not(feature = "nccl"))]
fn nccl_engine(place: Place, _: usize) -> Result<Box<dyn Communicator>, JoinError> {
    Err(JoinError::Nccl(format!(
        "{} ranks on GPUs need it, and this build does not have it; \
         build with `cargo build --release --features nccl`",
        place.world
    )))
}

/// Compares `facts` (name → hash) of all ranks.
///
/// # Errors
/// A rank has another hash than rank 0. All ranks return the same error.
pub fn agree(ranks: &Ranks, facts: &[(&str, [u8; 32])]) -> Result<(), Disagreement> {
    if ranks.is_alone() {
        return Ok(());
    }
    let own: BTreeMap<String, String> = facts
        .iter()
        .map(|(what, hash)| (what.to_string(), blake3::Hash::from(*hash).to_hex().to_string()))
        .collect();
    let all = ranks.gather_in_turn("hashes", vec![own]);
    for (rank, own) in all.iter().enumerate().skip(1) {
        let differs = |(what, hash): &(&String, &String)| all[0].get(*what) != Some(hash);
        if let Some((what, _)) = own.iter().find(differs) {
            return Err(Disagreement { rank, what: what.clone() });
        }
    }
    Ok(())
}

/// BLAKE3 hash of the program file.
///
/// # Errors
/// The program file cannot be read.
pub fn program_hash() -> io::Result<[u8; 32]> {
    let mut hash = blake3::Hasher::new();
    hash.update_mmap_rayon(std::env::current_exe()?)?;
    Ok(*hash.finalize().as_bytes())
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_string()
}

fn processors() -> String {
    let status = read("/proc/self/status");
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.unwrap_or_default().trim().to_string()
}

/// Sets the number of threads: the processors divided by the number of ranks that may use the same
/// ones, unless `RAYON_NUM_THREADS` is set. The training thread is one of the threads. Otherwise it
/// would sleep and wake up again for every operation, which takes longer than many operations.
fn share_processors(sharers: usize) {
    let mut pool = rayon::ThreadPoolBuilder::new().use_current_thread();
    if std::env::var_os("RAYON_NUM_THREADS").is_none() {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        pool = pool.num_threads((processors / sharers.max(1)).max(1));
    }
    // This fails only if a pool exists already, which then remains.
    let _ = pool.build_global();
}
