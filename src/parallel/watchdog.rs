//! Ends the whole job, with a message, if a rank panics, dies or stalls.
//!
//! MPI waits forever for a rank that does not answer. So a panic ends the job from the panic hook
//! (unwinding would wait in `MPI_Finalize`). And ten times a second, a thread checks how long the
//! current collective has lasted, and whether the other ranks of this host are alive.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::communicator::Abort;
use super::status::{Now, Peer, Status};
use crate::files::caught::is_catching;

/// Exit codes of a job that the watchdog or the panic hook ends.
const PANICKED: i32 = 101;
const STALLED: i32 = 110;
const GONE: i32 = 111;

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A dead rank is only reported after a collective has lasted this long, because a process that
/// ends normally is dead too.
const MISSED_AFTER: Duration = Duration::from_millis(300);
/// A rank that waits for others reports this much later than a rank that is late itself. The ranks
/// after the first waiting one report later still. So the rank with the most useful message prints
/// it.
const HOLD_BACK: Duration = Duration::from_secs(1);
/// The longest time that a launcher needs to end the other ranks.
const LAST_WAY: Duration = Duration::from_secs(5);

/// Makes a panic on any thread end the whole job, unless a caller turns it into an error.
pub fn end_job_on_panic(status: Arc<Status>, abort: Abort) {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if is_catching() {
            return;
        }
        default(panic);
        let why = format!("{status}: panicked (see above); the job ends here");
        end_job(&status, why, PANICKED, abort);
    }));
}

/// Starts the thread. `timeout` is the longest time of one collective, and of the work between two.
///
/// # Errors
/// The thread cannot be started.
pub fn start(status: Arc<Status>, timeout: Duration, abort: Abort) -> std::io::Result<()> {
    let watch = move || {
        let mut missed: Option<Instant> = None;
        loop {
            std::thread::sleep(LOOK_EVERY);
            let now = status.now();
            if now.done {
                return;
            }
            if let Some(text) = gone(&status, &now) {
                let since = *missed.get_or_insert_with(Instant::now);
                if is_speaker(&status, &now) || since.elapsed() > HOLD_BACK {
                    end(&status, &text, abort, GONE);
                }
            } else if let Some(text) = stalled(&status, &now, timeout) {
                end(&status, &text, abort, STALLED);
            }
        }
    };
    std::thread::Builder::new().name("watchdog".into()).spawn(watch).map(|_| ())
}

/// Ends the job with a message. If another rank of this host has printed one, waits for the
/// launcher to end this process.
pub fn end_job(status: &Status, why: impl std::fmt::Display, code: i32, abort: Abort) -> ! {
    if !status.say(why) {
        std::thread::sleep(LAST_WAY);
    }
    abort(code)
}

fn end(status: &Status, text: &str, abort: Abort, code: i32) {
    // The rank may have finished in the meantime.
    if !status.now().done {
        end_job(status, format!("{status}: {text}; the job ends here"), code, abort);
    }
}

/// The message if a rank of this host that this one waits for has died.
fn gone(status: &Status, now: &Now) -> Option<String> {
    if now.collective.is_none() || now.waiting() < MISSED_AFTER {
        return None;
    }
    let dead = others(status, now).find(|peer| state_of(peer.process).is_none_or(is_dead))?;
    Some(format!("rank {} (process {} on {}) is gone", dead.rank, dead.process, dead.host))
}

/// The message if this rank, or one that it waits for, has made no progress for too long.
fn stalled(status: &Status, now: &Now, timeout: Duration) -> Option<String> {
    let limit = match now.collective {
        None => timeout,
        Some(_) if is_speaker(status, now) => timeout + HOLD_BACK,
        Some(_) => timeout + 2 * HOLD_BACK,
    };
    if !now.guarded || now.waiting() < limit {
        return None;
    }
    let seconds = timeout.as_secs_f64();
    let still = others(status, now).find(|peer| state_of(peer.process).is_some_and(is_stopped));
    Some(match (&now.collective, still) {
        (None, _) => format!("has reached no collective for {seconds} s (--collective-timeout)"),
        (Some(_), Some(peer)) => format!(
            "rank {} (process {} on {}) is stopped; \
             waited {seconds} s for it (--collective-timeout)",
            peer.rank, peer.process, peer.host
        ),
        (Some(_), None) => {
            format!("waited {seconds} s for the other ranks (--collective-timeout)")
        }
    })
}

/// Whether this rank is the first running one of its host, which reports for the others.
fn is_speaker(status: &Status, now: &Now) -> bool {
    let runs = |peer: &&Peer| {
        peer.rank == status.rank
            || state_of(peer.process).is_some_and(|state| !is_dead(state) && !is_stopped(state))
    };
    let first = now.neighbours.iter().filter(runs).map(|peer| peer.rank).min();
    first.is_none_or(|first| first == status.rank)
}

fn others<'a>(status: &'a Status, now: &'a Now) -> impl Iterator<Item = &'a Peer> {
    now.neighbours.iter().filter(|peer| peer.rank != status.rank)
}

/// The letter of a process's state on Linux; `None` if the process does not exist. Without /proc,
/// every process counts as running.
fn state_of(process: u32) -> Option<char> {
    if !std::path::Path::new("/proc/self/stat").exists() {
        return Some('R');
    }
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The process name is in brackets and may contain any character.
    text.rsplit_once(')')?.1.trim_start().chars().next()
}

fn is_dead(state: char) -> bool {
    matches!(state, 'Z' | 'X')
}

fn is_stopped(state: char) -> bool {
    matches!(state, 'T' | 't')
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    fn waiting_for(process: u32) -> (Status, Now) {
        let status = Status::new(0, 2);
        let peer = |rank, process| Peer { rank, host: "here".into(), process };
        status.set(|now| {
            now.collective = Some("barrier".into());
            now.guarded = true;
            now.neighbours = vec![peer(0, std::process::id()), peer(1, process)];
        });
        std::thread::sleep(MISSED_AFTER);
        let now = status.now();
        (status, now)
    }

    #[test]
    fn a_rank_that_ended_is_gone_and_named() {
        let mut child = std::process::Command::new("sleep").arg("20").spawn().unwrap();
        let (status, now) = waiting_for(child.id());
        assert_eq!(gone(&status, &now), None);
        child.kill().unwrap();
        // The child is a zombie, because nobody waited for it. A zombie counts as dead.
        std::thread::sleep(Duration::from_millis(100));
        assert!(gone(&status, &now).unwrap().starts_with("rank 1 (process "));
        child.wait().unwrap();
        assert!(gone(&status, &now).is_some());
    }

    #[test]
    fn a_stalled_rank_is_named_after_the_timeout() {
        let (status, now) = waiting_for(std::process::id());
        assert_eq!(stalled(&status, &now, Duration::from_secs(60)), None);
        assert!(is_speaker(&status, &now));
        status.set(|now| now.collective = None);
        std::thread::sleep(Duration::from_millis(20));
        let text = stalled(&status, &status.now(), Duration::from_millis(10)).unwrap();
        assert!(text.contains("has reached no collective for 0.01 s"), "{text}");
        status.set(|now| now.guarded = false);
        assert_eq!(stalled(&status, &status.now(), Duration::from_millis(10)), None);
    }
}
