//! Holds batches back from S3 until the place to go on pulling from is durable.
//!
//! Pulled events share their batches with events that clients push. The order matters:
//!
//! 1. Events appended, place written, batch delivered: after a crash the place says that they were taken.
//! 2. Events appended, batch delivered and its file removed, then a crash before the place is written: neither the
//!    spool nor the place has them, so they are pulled and stored a second time.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use tokio::sync::watch;

/// The gate of one log type.
///
/// Several may hold batches back at the same time, each under a name of its own: the pulls of several organizations
/// share a log type. A batch passes when nobody holds it.
#[derive(Debug, Default)]
pub struct Gate(watch::Sender<BTreeMap<String, HeldBack>>);

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
    /// Holds back every batch that was opened at `since` or later; `None` all. Replaces what `who` held before.
    pub fn hold(&self, who: &str, since: Option<DateTime<Utc>>) {
        self.set(who, HeldBack { since, until: None });
    }

    /// Holds back the batches that were opened from `since` (`None` is the first) to `until`. Replaces what `who` held
    /// before.
    pub fn hold_until(&self, who: &str, since: Option<DateTime<Utc>>, until: DateTime<Utc>) {
        self.set(who, HeldBack { since, until: Some(until) });
    }

    fn set(&self, who: &str, held: HeldBack) {
        self.0.send_modify(|all| {
            all.insert(who.to_owned(), held);
        });
    }

    /// Holds back nothing for `who` any more.
    pub fn release(&self, who: &str) {
        self.0.send_modify(|all| {
            all.remove(who);
        });
    }

    /// Whether `who` holds something back.
    pub fn is_held_by(&self, who: &str) -> bool {
        self.0.borrow().contains_key(who)
    }

    /// Returns when the batch opened at `opened` may be sent; almost always at once.
    pub async fn pass(&self, opened: DateTime<Utc>) {
        // The wait never fails, because the sender lives as long as `self`.
        let may_pass = |all: &BTreeMap<String, HeldBack>| !all.values().any(|held| held.contains(opened));
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
        gate.hold("a", Some(at(2)));
        assert!(passes(1) && !passes(2) && !passes(3));
        gate.hold_until("a", Some(at(2)), at(2));
        assert!(passes(1) && !passes(2) && passes(3));
        gate.hold("a", None);
        assert!(!passes(1) && !passes(3));
        gate.release("a");
        assert!(passes(2));
    }

    #[test]
    fn a_batch_passes_when_nobody_holds_it_any_more() {
        let gate = Gate::default();
        let passes = |second| gate.pass(at(second)).now_or_never().is_some();
        gate.hold_until("a", Some(at(2)), at(3));
        gate.hold_until("b", None, at(2));
        assert!(!passes(1) && !passes(2) && !passes(3) && passes(4));
        gate.release("b");
        assert!(passes(1) && !passes(2) && gate.is_held_by("a") && !gate.is_held_by("b"));
        gate.release("a");
        assert!(passes(2) && passes(3));
    }
}
