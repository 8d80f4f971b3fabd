//! The running mean of rewards in BCO (arXiv 2404.04656), over all training rows so far.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// A sum of rewards, and the count of rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct RewardSum {
    pub sum: f64,
    pub rows: f64,
}

impl RewardSum {
    /// The file of the state in a checkpoint.
    pub const FILE: &str = "running_mean.json";

    /// The sum over these rewards.
    pub fn of(rewards: impl Iterator<Item = f64>) -> Self {
        rewards.fold(Self::default(), |sum, reward| sum.plus(Self { sum: reward, rows: 1.0 }))
    }

    /// The sum over the rows of both.
    pub fn plus(self, other: Self) -> Self {
        Self { sum: self.sum + other.sum, rows: self.rows + other.rows }
    }

    /// The mean reward; 0 without rows.
    pub fn mean(self) -> f64 {
        if self.rows == 0.0 { 0.0 } else { self.sum / self.rows }
    }

    /// Writes the state into a checkpoint.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(self, checkpoint: &Path) -> io::Result<()> {
        let text = serde_json::to_string(&self).map_err(io::Error::from)?;
        std::fs::write(checkpoint.join(Self::FILE), text + "\n")
    }

    /// Reads the state in a checkpoint.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn load(checkpoint: &Path) -> io::Result<Self> {
        let text = std::fs::read_to_string(checkpoint.join(Self::FILE))?;
        serde_json::from_str(&text).map_err(io::Error::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_mean_comes_back_with_its_bits() {
        let folder = tempfile::tempdir().unwrap();
        let sum = RewardSum::of([0.1, 0.2, -0.7].into_iter());
        assert_eq!((sum.rows, sum.mean()), (3.0, (0.1 + 0.2 - 0.7) / 3.0));
        sum.save(folder.path()).unwrap();
        assert_eq!(RewardSum::load(folder.path()).unwrap(), sum);
        assert_eq!(RewardSum::default().mean(), 0.0);
    }
}
