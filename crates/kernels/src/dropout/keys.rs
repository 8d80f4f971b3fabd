//! The keys of a batch's tokens, which every dropout of the batch reads.

use std::ops::Deref;
#[cfg(feature = "cube")]
use std::sync::OnceLock;

#[cfg(feature = "cube")]
use burn_cubecl::tensor::CubeTensor;

/// A key for each token of a batch, `[t]`. A device receives them once.
#[derive(Debug)]
pub struct TokenKeys {
    keys: Vec<u64>,
    /// The keys on the first device that asked for them.
    #[cfg(feature = "cube")]
    on_device: OnceLock<CubeTensor>,
}

impl TokenKeys {
    /// The keys on the device of `like`.
    #[cfg(feature = "cube")]
    pub(super) fn on_device(&self, like: &CubeTensor) -> CubeTensor {
        let upload = || crate::cube::keys(like, &self.keys);
        let first = self.on_device.get_or_init(upload);
        if first.device == like.device { first.clone() } else { upload() }
    }
}

impl Deref for TokenKeys {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        &self.keys
    }
}

impl FromIterator<u64> for TokenKeys {
    fn from_iter<I: IntoIterator<Item = u64>>(keys: I) -> Self {
        Self {
            keys: keys.into_iter().collect(),
            #[cfg(feature = "cube")]
            on_device: OnceLock::new(),
        }
    }
}

impl From<&[u64]> for TokenKeys {
    fn from(keys: &[u64]) -> Self {
        keys.iter().copied().collect()
    }
}
