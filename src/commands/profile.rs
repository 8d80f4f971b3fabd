//! The time of each operation of a run. With `FAVONIUS_PROFILE=1` the program ends with a table of
//! the operations that `timed!` marks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::span::{Attributes, Id};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// The target of the spans to measure; `timed!` uses it.
pub const TARGET: &str = "profile";

#[derive(Debug, Clone, Copy, Default)]
struct Total {
    calls: u64,
    /// Including the marked operations inside.
    whole: Duration,
    /// Excluding the marked operations inside.
    own: Duration,
}

/// The total time of each operation, by name. Clones share the totals.
#[derive(Debug, Clone, Default)]
pub struct Profile(Arc<Mutex<BTreeMap<&'static str, Total>>>);

/// An operation that has started.
struct Running {
    since: Instant,
    inside: Duration,
}

impl Profile {
    /// Whether the user asked for a profile.
    pub fn is_wanted() -> bool {
        std::env::var("FAVONIUS_PROFILE").is_ok_and(|value| !value.is_empty() && value != "0")
    }

    /// The table, sorted by own time, longest first; empty if nothing was measured.
    pub fn table(&self) -> String {
        let totals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Duration = totals.values().map(|total| total.own).sum();
        let mut rows: Vec<_> = totals.iter().collect();
        rows.sort_by_key(|(_, total)| std::cmp::Reverse(total.own));
        let mut text = String::new();
        if !rows.is_empty() {
            text += "operation                  calls    own s  share   with parts s\n";
        }
        for (name, total) in rows {
            let (own, whole) = (total.own.as_secs_f64(), total.whole.as_secs_f64());
            let share = 100.0 * own / all.as_secs_f64().max(f64::MIN_POSITIVE);
            text +=
                &format!("{name:<24} {:>7} {own:>8.3} {share:>5.1}% {whole:>10.3}\n", total.calls);
        }
        text
    }
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Profile {
    fn on_new_span(&self, _: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(Running { since: Instant::now(), inside: Duration::ZERO });
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let Some(running) = span.extensions_mut().remove::<Running>() else { return };
        let whole = running.since.elapsed();
        if let Some(parent) = span.parent()
            && let Some(outer) = parent.extensions_mut().get_mut::<Running>()
        {
            outer.inside += whole;
        }
        let mut totals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let total = totals.entry(span.name()).or_default();
        total.calls += 1;
        total.whole += whole;
        total.own += whole.saturating_sub(running.inside);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::prelude::*;

    #[test]
    fn time_belongs_to_the_innermost_operation() {
        let profile = Profile::default();
        let subscriber = tracing_subscriber::registry().with(profile.clone());
        tracing::subscriber::with_default(subscriber, || {
            let outer = tracing::trace_span!(target: TARGET, "outer").entered();
            let inner = tracing::trace_span!(target: TARGET, "inner").entered();
            std::thread::sleep(Duration::from_millis(20));
            drop(inner);
            drop(outer);
        });
        let totals = profile.0.lock().unwrap();
        let (outer, inner) = (totals["outer"], totals["inner"]);
        assert!(inner.own >= Duration::from_millis(20) && outer.whole >= inner.whole);
        assert!(outer.own < inner.own);
        drop(totals);
        assert!(profile.table().lines().nth(1).unwrap().starts_with("inner"));
    }
}
