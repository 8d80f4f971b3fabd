//! The settings of the hub from the environment: server, cache, token, network.
//!
//! The variables have the same meaning as in the Python libraries. `HF_ENDPOINT` is the server.
//! `HF_HOME` and `HF_HUB_CACHE` set the cache folder. `HF_TOKEN`, or the file `HF_TOKEN_PATH`, or
//! the file that `hf auth login` wrote into `HF_HOME`, is the token. `HF_HUB_OFFLINE=1` disables
//! the network. The older names `HUGGING_FACE_HUB_TOKEN` and `TRANSFORMERS_OFFLINE` work too.

use std::error::Error;
use std::path::PathBuf;

use hf_hub::{HFClient, HFError, HFResult};

/// Whether the environment disables the network.
pub fn is_offline() -> bool {
    let is_set = |name| {
        std::env::var(name)
            .is_ok_and(|value| ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str()))
    };
    is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE")
}

/// The hub's cache, shared with the Python libraries.
pub fn cache_dir() -> PathBuf {
    hf_hub::resolve_cache_dir()
}

/// The user's own token.
pub fn token() -> Option<String> {
    let set = |text: String| Some(text.trim().to_owned()).filter(|token| !token.is_empty());
    let file = std::env::var_os("HF_TOKEN_PATH")
        .map_or_else(|| hf_hub::hf_home().join("token"), PathBuf::from);
    let in_file = || std::fs::read_to_string(file).ok().and_then(set);
    let named = |name| std::env::var(name).ok().and_then(set);
    named("HF_TOKEN").or_else(|| named("HUGGING_FACE_HUB_TOKEN")).or_else(in_file)
}

/// A client of the hf-hub library with the settings of the environment and this `token`.
///
/// # Errors
/// `HF_ENDPOINT` is not a URL, or TLS cannot be set up.
pub fn client(token: Option<&str>) -> HFResult<HFClient> {
    let mut builder = HFClient::builder().cache_dir(cache_dir()).retry_max_attempts(3);
    if let Some(token) = token {
        builder = builder.token(token);
    }
    builder.build()
}

/// The HTTP status of an error; `None` if the server did not answer.
pub fn status(error: &HFError) -> Option<u16> {
    match error {
        HFError::Http { context }
        | HFError::AuthRequired { context }
        | HFError::Forbidden { context }
        | HFError::Conflict { context }
        | HFError::RateLimited { context, .. } => Some(context.status.as_u16()),
        HFError::RepoNotFound { .. }
        | HFError::RevisionNotFound { .. }
        | HFError::EntryNotFound { .. } => Some(404),
        _ => None,
    }
}

/// An error with its innermost cause, which is the informative part of a connection error.
pub fn with_cause(error: &dyn Error) -> String {
    let text = error.to_string();
    let innermost = std::iter::successors(error.source(), |&error| error.source()).last();
    match innermost.map(ToString::to_string).filter(|cause| !text.contains(cause)) {
        Some(cause) => format!("{text}: {cause}"),
        None => text,
    }
}
