//! Whether a store that isn't AWS is sent `If-None-Match`. Pure but for its log lines: the clock is the caller's.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a store that doesn't know the header isn't sent it. A store may learn it by an update, and a balancer may
/// have sent one request to a server that is older than the others.
const TRIED_AGAIN_AFTER: Duration = Duration::from_secs(3600);

/// Until when the header is left out; none where the store takes it.
#[derive(Debug, Default)]
pub(super) struct Condition(Mutex<Option<Instant>>);

impl Condition {
    /// Whether the next PUT carries the header.
    pub(super) fn is_in_use(&self, now: Instant) -> bool {
        self.left_out_until().is_none_or(|until| now >= until)
    }

    /// A PUT was refused with the header, and succeeded without it.
    pub(super) fn is_unknown(&self, now: Instant) {
        let before = self.left_out_until().replace(now + TRIED_AGAIN_AFTER);
        if before.is_none() {
            tracing::warn!(
                "the store at AWS_ENDPOINT_URL_S3 doesn't know If-None-Match: nothing prevents that an object of the \
                 same key is overwritten; the header is tried again every hour"
            );
        }
    }

    /// A PUT with the header succeeded.
    pub(super) fn worked(&self) {
        if self.left_out_until().take().is_some() {
            tracing::info!("the store at AWS_ENDPOINT_URL_S3 knows If-None-Match now: overwriting is prevented again");
        }
    }

    fn left_out_until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_left_out_for_an_hour_and_then_tried_again() {
        let condition = Condition::default();
        let start = Instant::now();
        assert!(condition.is_in_use(start));
        condition.is_unknown(start);
        assert!(!condition.is_in_use(start));
        assert!(!condition.is_in_use(start + TRIED_AGAIN_AFTER - Duration::from_secs(1)));
        assert!(condition.is_in_use(start + TRIED_AGAIN_AFTER));
        condition.is_unknown(start + TRIED_AGAIN_AFTER);
        assert!(!condition.is_in_use(start + TRIED_AGAIN_AFTER));
        condition.worked();
        assert!(condition.is_in_use(start + TRIED_AGAIN_AFTER));
    }
}
