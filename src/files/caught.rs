//! Panics of libraries as errors. Libraries that read files of untrusted models can panic on
//! damaged content; a caller that catches the panic can name the file.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Counts the calls of [`caught`] that are running on this thread.
struct Running;

impl Running {
    fn begin() -> Self {
        DEPTH.set(DEPTH.get() + 1);
        Self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

/// Runs `work`, which must not leave shared data half changed when it panics.
///
/// # Errors
/// The message of the panic, if `work` panics.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let _running = Running::begin();
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| message_of(&*panic))
}

/// Whether this thread is inside [`caught`]: a panic hook then has nothing to report, because the
/// caller turns the panic into an error.
pub fn is_catching() -> bool {
    DEPTH.get() > 0
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_with_its_message() {
        assert_eq!(caught(|| 3), Ok(3));
        let message = caught(|| -> usize { panic!("at {}", 7) });
        assert_eq!(message, Err("at 7".to_owned()));
        assert!(caught(is_catching).unwrap() && !is_catching());
    }
}
