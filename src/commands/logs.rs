//! The program's logs and the measurement of its operations.

use std::io::IsTerminal;

use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, fmt};

use super::profile::{self, Profile};

/// What is logged if `RUST_LOG` is not set. The hub's libraries log every attempt, and the final
/// error is printed anyway.
const DEFAULT: &str =
    "warn,hf_hub=off,xet=off,xet_client=off,xet_data=off,xet_runtime=off,xet_core_structures=off";

/// Sends logs to standard error, filtered by `RUST_LOG`, from rank 0 only. The returned profile
/// measures operations if the user asked for it.
pub fn start(is_first: bool) -> Profile {
    let filter = match is_first {
        true => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT)),
        false => EnvFilter::new("off"),
    };
    let lines = fmt::layer().with_writer(std::io::stderr);
    // Without a terminal, color codes would end up in a file.
    let lines = if std::io::stderr().is_terminal() { lines } else { lines.with_ansi(false) };
    let lines = lines.with_filter(filter);
    let profile = Profile::default();
    let wanted = Profile::is_wanted();
    let measured = profile
        .clone()
        .with_filter(filter_fn(move |metadata| wanted && metadata.target() == profile::TARGET));
    tracing_subscriber::registry().with(lines).with(measured).init();
    profile
}
