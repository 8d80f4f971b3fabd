//! The Hugging Face hub as this machine is set up for it: server, cache and token, who we are there, and uploads.

mod access;
mod bar;
mod environment;
pub mod layout;
pub mod resolve;
mod upload;

pub use access::{AccessError, Destination, open};
pub use bar::Bar;
pub use environment::{cache_dir, client, is_offline, status, token, with_cause};
pub use upload::{UploadError, files_to_upload, upload};
