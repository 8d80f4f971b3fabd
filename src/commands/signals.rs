//! SIGINT and SIGTERM: the first asks the loop to finish its step and save, the second ends at once.
//! SIGUSR1 asks too: mpirun hands it on to all ranks, and batch systems can send it before the time is up. So, on
//! Linux, does SIGHUP, when the terminal goes, unless the program was started with `nohup`.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
#[cfg(target_os = "linux")]
use signal_hook::consts::SIGHUP;
#[cfg(unix)]
use signal_hook::consts::SIGUSR1;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// Names the process that started this one and must not be outlived, by its number.
pub const PARENT: &str = "FAVONIUS_PARENT";

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
    #[cfg(target_os = "linux")]
    if !hangups_are_ignored() {
        flag::register(SIGHUP, stop.clone()).context("cannot listen for signals")?;
    }
    #[cfg(target_os = "linux")]
    end_with_parent(&stop).context("cannot follow the process that started this one")?;
    Ok(stop)
}

/// Whether the program was started to outlive its terminal, as by `nohup`.
#[cfg(target_os = "linux")]
fn hangups_are_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (SIGHUP - 1)) != 0
}

/// A run of a sweep hears SIGUSR1 when the sweep ends, however that ends: left alone it would train on beside the same
/// run of the sweep's next start. It may come several times, once for each of the sweep's threads as they end, so it cannot
/// be a signal of which the second ends the run at once.
#[cfg(target_os = "linux")]
fn end_with_parent(stop: &AtomicBool) -> std::io::Result<()> {
    use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

    let Some(parent) = std::env::var(PARENT).ok().and_then(|number| number.parse().ok()) else {
        return Ok(());
    };
    set_parent_process_death_signal(Some(Signal::USR1))?;
    // It may have ended before it was asked for its end.
    if getppid() != Pid::from_raw(parent) {
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    }
    Ok(())
}
