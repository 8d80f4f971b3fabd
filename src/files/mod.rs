//! Files that several processes may read or write at the same time: atomic replacement, locks,
//! hashes. [`caught`] turns panics of libraries that read files into errors.

pub mod cache_lock;
pub mod caught;
pub mod folder_lock;
pub mod hash;
pub mod json_object;
pub mod names;
pub mod printable;
pub mod replace;
pub mod shards;
pub mod tensor_file;
