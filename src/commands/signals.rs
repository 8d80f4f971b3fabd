//! Signals that stop a run. The first SIGINT or SIGTERM lets the training loop finish its step and
//! save; the second one ends the program at once. SIGUSR1 acts like a first signal: mpirun passes
//! it on to all ranks, and batch systems can send it before the time is up. So does SIGHUP on Linux
//! when the terminal closes, unless the program was started with `nohup`.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
#[cfg(target_os = "linux")]
use signal_hook::consts::SIGHUP;
#[cfg(unix)]
use signal_hook::consts::SIGUSR1;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// The environment variable with the id of the sweep's process, which a run must not outlive.
pub const PARENT: &str = "FAVONIUS_PARENT";

/// A flag that a signal sets from now on.
pub fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // Registered first, because it must see the flag unset at the first signal.
        flag::register_conditional_shutdown(signal, 128 + signal, stop.clone())
            .and_then(|_| flag::register(signal, stop.clone()))
            .context("cannot register for signals")?;
    }
    #[cfg(unix)]
    flag::register(SIGUSR1, stop.clone()).context("cannot register for signals")?;
    #[cfg(target_os = "linux")]
    if !hangups_are_ignored() {
        flag::register(SIGHUP, stop.clone()).context("cannot register for signals")?;
    }
    #[cfg(target_os = "linux")]
    end_with_parent(&stop).context("cannot watch the process that started this one")?;
    Ok(stop)
}

/// Whether the program ignores the end of its terminal, as `nohup` makes it do.
#[cfg(target_os = "linux")]
fn hangups_are_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (SIGHUP - 1)) != 0
}

/// Lets the kernel send SIGUSR1 to a run when its sweep ends for any reason. Otherwise the run
/// would go on training into its folder when the sweep starts it again. The signal may arrive
/// several times, once for each thread of the sweep that ends, so a second one must not end the run
/// at once.
#[cfg(target_os = "linux")]
fn end_with_parent(stop: &AtomicBool) -> std::io::Result<()> {
    use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

    let Some(parent) = std::env::var(PARENT).ok().and_then(|number| number.parse().ok()) else {
        return Ok(());
    };
    set_parent_process_death_signal(Some(Signal::USR1))?;
    // The sweep may have ended before the line above.
    if getppid() != Pid::from_raw(parent) {
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    }
    Ok(())
}
