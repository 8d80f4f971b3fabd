//! What this machine's environment says about the hub: server, cache, token, network.
//!
//! The environment means what it means to the Python libraries: `HF_ENDPOINT` names another server, `HF_HOME` and
//! `HF_HUB_CACHE` say where the cache is, `HF_TOKEN` (or `HF_TOKEN_PATH`, or what `hf auth login` left in `HF_HOME`) says
//! who asks, and `HF_HUB_OFFLINE=1` keeps off the network. Their older names `HUGGING_FACE_HUB_TOKEN` and
//! `TRANSFORMERS_OFFLINE` are heard too.

use std::error::Error;
use std::path::PathBuf;

use hf_hub::{HFClient, HFError, HFResult};

/// Whether the environment forbids the network.
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

/// The library's client, as the environment says, for `token`.
///
/// # Errors
/// `HF_ENDPOINT` is no URL, or TLS cannot be set up.
pub fn client(token: Option<&str>) -> HFResult<HFClient> {
    let mut builder = HFClient::builder().cache_dir(cache_dir()).retry_max_attempts(3);
    if let Some(token) = token {
        builder = builder.token(token);
    }
    builder.build()
}

/// The HTTP status of a refusal; `None` where no answer came.
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

/// An error with its innermost cause, which for a connection is the part that says something.
pub fn with_cause(error: &dyn Error) -> String {
    let text = error.to_string();
    let innermost = std::iter::successors(error.source(), |&error| error.source()).last();
    match innermost.map(ToString::to_string).filter(|cause| !text.contains(cause)) {
        Some(cause) => format!("{text}: {cause}"),
        None => text,
    }
}
