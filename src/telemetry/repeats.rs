//! Repeats are counted, not printed: a storm of one warning must not fill a disk or hide the others.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use super::OWN_TARGET;

/// Warnings and errors that one place in the code prints within [`WINDOW`]; one for each log type, and some to spare.
const PRINTED_PER_WINDOW: u32 = 4;
const WINDOW: Duration = Duration::from_secs(10);

/// Bounded by the number of places in the code that log.
static PLACES: LazyLock<Mutex<HashMap<Identifier, Place>>> = LazyLock::new(Mutex::default);

struct Place {
    since: Instant,
    printed: u32,
    suppressed: u64,
    metadata: &'static Metadata<'static>,
}

impl Place {
    /// Whether one more line may be printed at `now`.
    fn admit(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= WINDOW {
            (self.since, self.printed) = (now, 0);
        }
        let admitted = self.printed < PRINTED_PER_WINDOW;
        self.printed += u32::from(admitted);
        self.suppressed += u64::from(!admitted);
        admitted
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
        let now = Instant::now();
        let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
        let new = Place { since: now, printed: 0, suppressed: 0, metadata };
        places.entry(metadata.callsite()).or_insert(new).admit(now)
    }
}

/// Says how many lines were held back since the last call; to be called every few seconds.
pub fn report_suppressed() {
    let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
    let counts = places.values_mut().map(|place| (place.metadata, std::mem::take(&mut place.suppressed)));
    let counts: Vec<_> = counts.filter(|(_, suppressed)| *suppressed > 0).collect();
    drop(places);
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
    fn a_place_that_repeats_itself_is_held_back_until_the_window_ends() {
        let start = Instant::now();
        let metadata = tracing::callsite::Callsite::metadata(place_of_this_test());
        let mut place = Place { since: start, printed: 0, suppressed: 0, metadata };
        let admitted = (0..100).filter(|_| place.admit(start)).count();
        assert_eq!((admitted, place.suppressed), (4, 96));
        assert!(place.admit(start + WINDOW));
    }

    fn place_of_this_test() -> &'static dyn tracing::callsite::Callsite {
        tracing::callsite!(name: "test", kind: tracing::metadata::Kind::EVENT, fields:)
    }
}
