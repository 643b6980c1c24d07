//! Holds batches back from S3 until the place to go on pulling from is durable.
//!
//! Pulled events share their batches with events that clients push. The order matters:
//!
//! 1. Events appended, place written, batch delivered: after a crash the place says that they were taken.
//! 2. Events appended, batch delivered and its file removed, then a crash before the place is written: neither the spool
//!    nor the place has them, so they are pulled and stored a second time.

use chrono::{DateTime, Utc};
use tokio::sync::watch;

/// The gate of one log type.
#[derive(Debug, Default)]
pub struct Gate(watch::Sender<Option<HeldBack>>);

/// Which batches are held back, by their openings, which never repeat or go back.
#[derive(Debug, Clone, Copy)]
struct HeldBack {
    /// The first one's opening; `None` for all older ones, too.
    since: Option<DateTime<Utc>>,
    /// The last one's opening; `None` for all newer ones, too.
    until: Option<DateTime<Utc>>,
}

impl HeldBack {
    fn contains(&self, opened: DateTime<Utc>) -> bool {
        self.since.is_none_or(|since| since <= opened) && self.until.is_none_or(|until| opened <= until)
    }
}

impl Gate {
    /// Holds back every batch that was opened at `since` or later; `None` all.
    pub fn hold(&self, since: Option<DateTime<Utc>>) {
        self.0.send_replace(Some(HeldBack { since, until: None }));
    }

    /// Holds back only the batch that was opened at `opened`.
    pub fn hold_only(&self, opened: DateTime<Utc>) {
        self.0.send_replace(Some(HeldBack { since: Some(opened), until: Some(opened) }));
    }

    /// Holds back none.
    pub fn release(&self) {
        self.0.send_replace(None);
    }

    /// Returns when the batch opened at `opened` may be sent; almost always at once.
    pub async fn pass(&self, opened: DateTime<Utc>) {
        // The wait never fails, because the sender lives as long as `self`.
        let may_pass = |held: &Option<HeldBack>| held.is_none_or(|held| !held.contains(opened));
        let _ = self.0.subscribe().wait_for(may_pass).await;
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
