//! Progress of reading data, reported as phases of a run.

use std::io;
use std::sync::{Mutex, PoisonError};

use crate::data::Progress;
use crate::train::event::{Event, Observer};

/// Reports the progress of reading data to an observer, as one phase for each piece of work.
pub struct DataProgress<'a>(Mutex<Phases<'a>>);

struct Phases<'a> {
    observer: &'a mut dyn Observer,
    /// The name of the phase that is not over yet.
    current: Option<String>,
    /// The first error of the observer.
    result: io::Result<()>,
}

impl<'a> DataProgress<'a> {
    pub fn new(observer: &'a mut dyn Observer) -> Self {
        Self(Mutex::new(Phases { observer, current: None, result: Ok(()) }))
    }

    /// Ends the last phase.
    ///
    /// # Errors
    /// The first error of the observer.
    pub fn finish(self) -> io::Result<()> {
        let mut phases = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        phases.end_current();
        phases.result
    }
}

impl Phases<'_> {
    /// Sends an event to the observer, unless the observer has failed before.
    fn send(&mut self, event: Event) {
        if self.result.is_ok() {
            self.result = self.observer.on(&event);
        }
    }

    fn end_current(&mut self) {
        if let Some(name) = self.current.take() {
            self.send(Event::PhaseEnd { name: &name });
        }
    }
}

impl Progress for DataProgress<'_> {
    fn update(&self, work: &str, done: u64, total: u64) {
        let mut phases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if phases.current.as_deref() != Some(work) {
            phases.end_current();
            phases.send(Event::Phase { name: work, total, unit: "rows" });
            phases.current = Some(work.to_string());
        }
        phases.send(Event::Advance { name: work, done, message: "" });
    }
}
