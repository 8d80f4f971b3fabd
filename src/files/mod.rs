//! Files that several processes may read or write at the same time: atomic replacement, locks,
//! hashes.

pub mod cache_lock;
pub mod folder_lock;
pub mod hash;
pub mod json_object;
pub mod names;
pub mod printable;
pub mod replace;
pub mod shards;
