//! Holds batches back from S3 until the place to go on pulling from is durable.
//!
//! What is pulled shares its batches with what clients push. Were a batch sent, and its file gone, before the
//! puller's place covers its events, then after a crash nobody could tell that they were taken, and they would be
//! pulled and stored again.

use chrono::{DateTime, Utc};
use tokio::sync::watch;

/// The gate of one log type.
#[derive(Debug, Default)]
pub struct Gate(watch::Sender<Option<Held>>);

/// Which batches wait, by their openings, which never repeat or go back.
#[derive(Debug, Clone, Copy)]
struct Held {
    /// `None`: from the first.
    since: Option<DateTime<Utc>>,
    /// `None`: to the newest.
    until: Option<DateTime<Utc>>,
}

impl Held {
    fn holds(&self, opened: DateTime<Utc>) -> bool {
        self.since.is_none_or(|since| since <= opened) && self.until.is_none_or(|until| opened <= until)
    }
}

impl Gate {
    /// Holds every batch that was opened at `since` or later; `None` holds all.
    pub fn hold(&self, since: Option<DateTime<Utc>>) {
        self.0.send_replace(Some(Held { since, until: None }));
    }

    /// Holds no batch but the one opened at `opened`.
    pub fn hold_only(&self, opened: DateTime<Utc>) {
        self.0.send_replace(Some(Held { since: Some(opened), until: Some(opened) }));
    }

    /// Holds none.
    pub fn release(&self) {
        self.0.send_replace(None);
    }

    /// Returns when the batch opened at `opened` may be sent; almost always at once.
    pub async fn pass(&self, opened: DateTime<Utc>) {
        // The sender is here, so the wait never fails.
        let _ = self.0.subscribe().wait_for(|held| held.is_none_or(|held| !held.holds(opened))).await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    #[test]
    fn the_gate_holds_what_was_opened_since_then_only_one_batch_then_none() {
        let gate = Gate::default();
        let passes = |second| gate.pass(at(second)).now_or_never().is_some();
        assert!(passes(1));
        gate.hold(Some(at(2)));
        assert!(passes(1) && !passes(2) && !passes(3));
        gate.hold_only(at(2));
        assert!(passes(1) && !passes(2) && passes(3));
        gate.hold(None);
        assert!(!passes(1) && !passes(3));
        gate.release();
        assert!(passes(2));
    }
}
