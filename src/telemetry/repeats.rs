//! Repeats are counted, not printed: a storm of one warning must not fill a disk or hide the others.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// What this project's own log lines have as the beginning of their target.
pub(super) const OWN_TARGET: &str = "env0_s3_logs";

/// A warning or error is printed once within this time.
const WINDOW: Duration = Duration::from_secs(10);
/// How many different lines one place in the code may print within [`WINDOW`]. More are a storm as well.
const LINES_PER_WINDOW: usize = 200;

/// Bounded by the number of call sites that log.
static CALLSITES: LazyLock<Mutex<HashMap<Identifier, Callsite>>> = LazyLock::new(Mutex::default);

struct Callsite {
    since: Instant,
    /// Hashes of the lines printed since then.
    printed: HashSet<u64>,
    suppressed: u64,
    metadata: &'static Metadata<'static>,
}

impl Callsite {
    /// Whether the line with this hash may be printed at `now`.
    fn admit(&mut self, line: u64, now: Instant) -> bool {
        if now.duration_since(self.since) >= WINDOW {
            self.since = now;
            self.printed.clear();
        }
        let admitted = self.printed.len() < LINES_PER_WINDOW && self.printed.insert(line);
        self.suppressed += u64::from(!admitted);
        admitted
    }
}

/// Message and fields, as printed.
struct LineHash(DefaultHasher);

impl LineHash {
    fn of(event: &Event<'_>) -> u64 {
        let mut hash = LineHash(DefaultHasher::new());
        event.record(&mut hash);
        hash.0.finish()
    }
}

impl Visit for LineHash {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        (field.name(), format!("{value:?}")).hash(&mut self.0);
    }
}

/// Holds back what was printed often enough, and what other crates say below INFO.
pub(super) struct Repeats;

impl<S: Subscriber> Layer<S> for Repeats {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.target().starts_with(OWN_TARGET) || *metadata.level() <= Level::INFO
    }

    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::WARN {
            return true;
        }
        let (line, now) = (LineHash::of(event), Instant::now());
        let mut callsites = CALLSITES.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Callsite { since: now, printed: HashSet::new(), suppressed: 0, metadata };
        callsites.entry(metadata.callsite()).or_insert_with(new).admit(line, now)
    }
}

/// Says how many lines were held back since the last call; to be called every few seconds.
pub fn report_suppressed() {
    let mut callsites = CALLSITES.lock().unwrap_or_else(PoisonError::into_inner);
    let counts = callsites.values_mut().map(|callsite| (callsite.metadata, std::mem::take(&mut callsite.suppressed)));
    let counts: Vec<_> = counts.filter(|(_, suppressed)| *suppressed > 0).collect();
    drop(callsites);
    for (metadata, suppressed) in counts {
        let (file, line) = (metadata.file().unwrap_or_default(), metadata.line().unwrap_or_default());
        tracing::info!(
            log.suppressed = suppressed,
            log.place = format!("{file}:{line}"),
            "repeated log lines were not printed"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_prints_each_of_its_lines_once_in_a_window_and_no_storm_of_different_ones() {
        let start = Instant::now();
        let metadata = tracing::callsite::Callsite::metadata(place_of_this_test());
        let mut callsite = Callsite { since: start, printed: HashSet::new(), suppressed: 0, metadata };
        let admitted = (0..100).filter(|repeat| callsite.admit(repeat % 7, start)).count();
        assert_eq!((admitted, callsite.suppressed), (7, 93));
        assert!(callsite.admit(0, start + WINDOW));
        let admitted = (0..1000).filter(|line| callsite.admit(*line, start + WINDOW)).count();
        assert_eq!(admitted, LINES_PER_WINDOW - 1);
    }

    fn place_of_this_test() -> &'static dyn tracing::callsite::Callsite {
        tracing::callsite!(name: "test", kind: tracing::metadata::Kind::EVENT, fields:)
    }
}
