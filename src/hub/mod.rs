//! The Hugging Face hub: server, cache, token, user access, resolving names to folders, uploads.

mod access;
mod bar;
mod environment;
mod error;
pub mod layout;
pub mod resolve;
mod snapshot;
mod split_files;
mod upload;

pub use access::{AccessError, Destination, open};
pub use bar::Bar;
pub use environment::{cache_dir, client, is_offline, status, token, with_cause};
pub use error::HubError;
pub use upload::{UploadError, files_to_upload, upload};
