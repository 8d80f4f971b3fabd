//! The rank of this process, from the environment variables of its launcher.

/// The program that started the ranks. It determines how they find each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// mpirun, or srun with a PMI: the ranks connect through MPI.
    Mpi,
    /// torchrun and others that set `RANK`, or plain srun: the ranks connect through NCCL, at
    /// `MASTER_ADDR:MASTER_PORT`.
    Address,
    /// No launcher: one rank.
    None,
}

/// The place of this process in its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub launcher: Launcher,
    pub rank: usize,
    pub world: usize,
    /// The rank among the processes of this host. It chooses the GPU.
    pub local_rank: usize,
}

/// Why the environment variables cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EnvironmentError {
    #[error(
        "{key}={value} in the environment is not a number; \
         start the ranks with mpirun, srun or torchrun"
    )]
    NotANumber { key: String, value: String },
    #[error("the environment says rank {rank} of {world}; ranks are counted from 0")]
    OutOfRange { rank: usize, world: usize },
}

/// The names of one launcher for rank, world and local rank. The first name that is set is used.
struct Names {
    launcher: Launcher,
    rank: &'static [&'static str],
    world: &'static [&'static str],
    local: &'static [&'static str],
    /// A variable that must be set too. Without it, the others have another meaning.
    needs: Option<&'static str>,
}

const LAUNCHERS: [Names; 3] = [
    Names {
        launcher: Launcher::Mpi,
        rank: &["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"],
        world: &["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"],
        local: &["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"],
        needs: None,
    },
    Names {
        launcher: Launcher::Address,
        rank: &["RANK"],
        world: &["WORLD_SIZE"],
        local: &["LOCAL_RANK"],
        needs: None,
    },
    Names {
        launcher: Launcher::Address,
        rank: &["SLURM_PROCID"],
        world: &["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"],
        local: &["SLURM_LOCALID"],
        // A batch script has the other variables too, although srun did not start it.
        needs: Some("SLURM_STEP_ID"),
    },
];

impl Place {
    /// Reads the environment.
    ///
    /// # Errors
    /// A variable is not a number, or the rank is not below the number of ranks.
    pub fn detect() -> Result<Self, EnvironmentError> {
        Self::from_variables(|key| std::env::var(key).ok().filter(|value| !value.is_empty()))
    }

    fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Self, EnvironmentError> {
        let number = |names: &[&str]| -> Result<Option<usize>, EnvironmentError> {
            let found = names.iter().find_map(|key| Some((*key, get(key)?)));
            let Some((key, value)) = found else { return Ok(None) };
            let parsed = value.parse().map_err(|_| EnvironmentError::NotANumber {
                key: key.to_string(),
                value: value.clone(),
            });
            parsed.map(Some)
        };
        for names in &LAUNCHERS {
            if names.needs.is_some_and(|key| get(key).is_none()) {
                continue;
            }
            let (Some(rank), Some(world)) = (number(names.rank)?, number(names.world)?) else {
                continue;
            };
            if rank >= world {
                return Err(EnvironmentError::OutOfRange { rank, world });
            }
            let local_rank = number(names.local)?.unwrap_or(rank);
            return Ok(Self { launcher: names.launcher, rank, world, local_rank });
        }
        Ok(Self { launcher: Launcher::None, rank: 0, world: 1, local_rank: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(variables: &[(&str, &str)]) -> Result<Place, EnvironmentError> {
        Place::from_variables(|key| {
            variables.iter().find(|(name, _)| *name == key).map(|(_, value)| value.to_string())
        })
    }

    #[test]
    fn mpi_comes_before_torchrun_and_that_before_slurm() {
        let torchrun = [("RANK", "3"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")];
        let slurm = [("SLURM_PROCID", "5"), ("SLURM_NTASKS", "16"), ("SLURM_LOCALID", "2")];
        let step = [("SLURM_STEP_ID", "0")];
        let mpi = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "4")];
        let found = place(&[&mpi[..], &torchrun, &slurm, &step].concat()).unwrap();
        assert_eq!((found.launcher, found.rank, found.world), (Launcher::Mpi, 1, 4));
        let found = place(&[&torchrun[..], &slurm, &step].concat()).unwrap();
        assert_eq!((found.rank, found.world, found.local_rank), (3, 8, 1));
        let found = place(&[&slurm[..], &step].concat()).unwrap();
        assert_eq!((found.launcher, found.rank, found.local_rank), (Launcher::Address, 5, 2));
        let found = place(&[&slurm[..], &step, &[("PMIX_RANK", "7")]].concat()).unwrap();
        assert_eq!((found.launcher, found.rank, found.world), (Launcher::Mpi, 7, 16));
    }

    #[test]
    fn a_batch_script_is_one_rank() {
        let alone = Place { launcher: Launcher::None, rank: 0, world: 1, local_rank: 0 };
        assert_eq!(place(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "16")]), Ok(alone));
        assert_eq!(place(&[]), Ok(alone));
    }

    #[test]
    fn nonsense_is_named() {
        let error = place(&[("RANK", "x"), ("WORLD_SIZE", "2")]).unwrap_err().to_string();
        assert!(error.contains("RANK=x"), "{error}");
        let error = place(&[("RANK", "2"), ("WORLD_SIZE", "2")]).unwrap_err().to_string();
        assert!(error.contains("rank 2 of 2"), "{error}");
    }
}
