//! Failures of an operation. CubeCL compiles and launches kernels on a thread of its own; if that
//! fails there, the caller gets no error, and the time would be that of nothing.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::sync::{Arc, Mutex};

/// The message of the first panic since it was last taken, of any thread.
pub struct Failures(Arc<Mutex<Option<String>>>);

impl Failures {
    /// Panics of all threads are kept from now on, and not printed.
    pub fn begin() -> Self {
        let kept = Arc::new(Mutex::new(None));
        let first = kept.clone();
        set_hook(Box::new(move |panic| {
            let mut first = first.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            first.get_or_insert_with(|| panic.to_string());
        }));
        Self(kept)
    }

    /// Runs `f`. Its error, or the first panic of any thread meanwhile, is an error in one line
    /// that can be a text in JSON.
    pub fn watch<T>(&self, f: impl FnOnce() -> Result<T, Box<dyn Error>>) -> Result<T, String> {
        self.take();
        let result = catch_unwind(AssertUnwindSafe(f));
        let error = match (self.take(), result) {
            (Some(panic), _) => panic,
            (None, Ok(Ok(value))) => return Ok(value),
            (None, Ok(Err(error))) => error.to_string(),
            (None, Err(_)) => "a panic without a message".into(),
        };
        let plain: String = error.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        Err(plain.replace('\\', "/").replace('"', "'"))
    }

    fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take()
    }
}
