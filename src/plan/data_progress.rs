//! The progress of the data room as phases of a run.

use std::io;
use std::sync::{Mutex, PoisonError};

use crate::data::Progress;
use crate::train::event::{Event, Observer};

/// Hands the data room's progress to an observer: one phase for each piece of work.
pub struct DataBars<'a>(Mutex<Bars<'a>>);

struct Bars<'a> {
    observer: &'a mut dyn Observer,
    phase: Option<String>,
    result: io::Result<()>,
}

impl<'a> DataBars<'a> {
    pub fn new(observer: &'a mut dyn Observer) -> Self {
        Self(Mutex::new(Bars { observer, phase: None, result: Ok(()) }))
    }

    /// Ends the last phase.
    ///
    /// # Errors
    /// The observer's first error.
    pub fn finish(self) -> io::Result<()> {
        let mut bars = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        bars.end();
        bars.result
    }
}

impl Bars<'_> {
    fn tell(&mut self, event: Event) {
        if self.result.is_ok() {
            self.result = self.observer.on(&event);
        }
    }

    fn end(&mut self) {
        if let Some(phase) = self.phase.take() {
            self.tell(Event::PhaseEnd { name: &phase });
        }
    }
}

impl Progress for DataBars<'_> {
    fn update(&self, work: &str, done: u64, total: u64) {
        let mut bars = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if bars.phase.as_deref() != Some(work) {
            bars.end();
            bars.tell(Event::Phase { name: work, total, unit: "rows" });
            bars.phase = Some(work.to_string());
        }
        bars.tell(Event::Advance { name: work, done, message: "" });
    }
}
