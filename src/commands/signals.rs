//! SIGINT and SIGTERM: the first asks the loop to finish its step and save, the second ends at once.
//! SIGUSR1 asks too: mpirun hands it on to all ranks, and batch systems can send it before the time is up.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
#[cfg(unix)]
use signal_hook::consts::SIGUSR1;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// A flag that a signal sets.
pub fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // Registered first, so that it sees the flag still unset at the first signal.
        flag::register_conditional_shutdown(signal, 128 + signal, stop.clone())
            .and_then(|_| flag::register(signal, stop.clone()))
            .context("cannot listen for signals")?;
    }
    #[cfg(unix)]
    flag::register(SIGUSR1, stop.clone()).context("cannot listen for signals")?;
    Ok(stop)
}
