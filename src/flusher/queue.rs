//! Which batch is tried next, and when. Pure: the clock and the dice are the caller's.
//!
//! Oldest first. A batch that failed waits for a pause of its own; one slot is left to batches not tried
//! yet, and where there is only one slot the two kinds take turns.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff;
use crate::s3::PutErrorKind;
use crate::spool::Batch;

/// After this many failures in a row the type sends one batch at a time, with a pause before each,
/// so that a backlog of thousands doesn't knock on a closed door thousands of times a minute.
const OUTAGE_AFTER_FAILURES: u32 = 16;
/// In an outage, from one failed first attempt to the next: a new batch waits for no failing one's pause.
const UNTRIED_PAUSE: Duration = Duration::from_secs(1);

/// A batch that is not delivered.
pub(super) struct Waiting {
    pub(super) batch: Batch,
    /// Failed ones.
    pub(super) attempts: u32,
    not_before: Instant,
    /// S3 has it; only its file is left to go.
    pub(super) stored: bool,
}

/// The batches of one lane that are not in flight, and what its failures so far ask for.
pub(super) struct Queue {
    concurrency: usize,
    /// By sequence.
    waiting: BTreeMap<u64, Waiting>,
    in_flight: usize,
    retries_in_flight: usize,
    retry_went_last: bool,
    /// After a time-out, until an attempt succeeds.
    one_at_a_time: bool,
    /// S3's, in a row.
    failures: u32,
    /// In an outage: when the next retry may be.
    retries_not_before: Instant,
    /// In an outage: when the next first attempt may be.
    untried_not_before: Instant,
    draining: bool,
}

impl Queue {
    /// An empty queue with this many slots.
    pub(super) fn new(concurrency: usize, now: Instant) -> Queue {
        Queue {
            concurrency,
            waiting: BTreeMap::new(),
            in_flight: 0,
            retries_in_flight: 0,
            retry_went_last: false,
            one_at_a_time: false,
            failures: 0,
            retries_not_before: now,
            untried_not_before: now,
            draining: false,
        }
    }

    /// A batch that was just sealed, or found at the start.
    pub(super) fn add(&mut self, batch: Batch, now: Instant) {
        self.waiting.insert(batch.name.sequence, Waiting { batch, attempts: 0, not_before: now, stored: false });
    }

    /// The batches that are not in flight.
    pub(super) fn waiting(&self) -> impl ExactSizeIterator<Item = &Waiting> {
        self.waiting.values()
    }

    /// Every waiting batch becomes due, and is tried once more and no more.
    pub(super) fn drain(&mut self, now: Instant) {
        self.draining = true;
        self.waiting.values_mut().for_each(|waiting| waiting.not_before = now);
    }

    /// Whether every batch had its last attempt.
    pub(super) fn is_drained(&self) -> bool {
        self.draining && self.in_flight == 0 && self.waiting.is_empty()
    }

    /// Takes the batch that is to be tried now, if one is.
    pub(super) fn next(&mut self, now: Instant) -> Option<Waiting> {
        let slots = self.slots();
        if self.in_flight >= slots {
            return None;
        }
        let oldest = |is_retry: bool| {
            let due = |waiting: &&Waiting| (waiting.attempts > 0) == is_retry && self.due(waiting) <= now;
            self.waiting.values().find(due).map(|waiting| waiting.batch.name.sequence)
        };
        let retry_may_go = slots == 1 || self.retries_in_flight + 1 < slots || self.draining;
        let sequence = match (oldest(false), retry_may_go.then(|| oldest(true)).flatten()) {
            (Some(untried), Some(retry)) if slots > 1 => untried.min(retry),
            (Some(untried), Some(_)) if self.retry_went_last => untried,
            (Some(_), Some(retry)) => retry,
            (untried, retry) => untried.or(retry)?,
        };
        let waiting = self.waiting.remove(&sequence)?;
        self.in_flight += 1;
        self.retry_went_last = waiting.attempts > 0;
        self.retries_in_flight += usize::from(self.retry_went_last);
        Some(waiting)
    }

    /// When something becomes due by time alone, if anything does.
    pub(super) fn next_wake(&self, now: Instant) -> Option<Instant> {
        if self.in_flight >= self.slots() {
            return None;
        }
        self.waiting.values().map(|waiting| self.due(waiting)).filter(|due| *due > now).min()
    }

    /// An attempt ended well.
    pub(super) fn succeeded(&mut self, waiting: &Waiting, now: Instant) {
        self.landed(waiting);
        if self.in_outage() || self.one_at_a_time {
            // The door is open again: nobody waits for a pause that the outage set.
            self.waiting.values_mut().for_each(|waiting| waiting.not_before = waiting.not_before.min(now));
        }
        self.failures = 0;
        self.one_at_a_time = false;
    }

    /// An attempt failed, at S3 with `kind` or on the spool's disk; the batch waits for `pause`.
    /// `random` is in `0.0..1.0`.
    pub(super) fn failed(
        &mut self,
        mut waiting: Waiting,
        kind: Option<PutErrorKind>,
        pause: Duration,
        now: Instant,
        random: f64,
    ) {
        self.landed(&waiting);
        if kind.is_some() {
            self.failures = self.failures.saturating_add(1);
            self.one_at_a_time |= kind == Some(PutErrorKind::Timeout);
            if waiting.attempts == 0 {
                self.untried_not_before = now + UNTRIED_PAUSE;
            } else if self.in_outage() {
                let in_outage = self.failures - OUTAGE_AFTER_FAILURES + 1;
                self.retries_not_before = now + backoff::full_jitter(in_outage, random);
            }
        }
        waiting.attempts += 1;
        waiting.not_before = now + pause;
        if !self.draining || waiting.stored {
            self.waiting.insert(waiting.batch.name.sequence, waiting);
        }
    }

    fn landed(&mut self, waiting: &Waiting) {
        self.in_flight -= 1;
        self.retries_in_flight -= usize::from(waiting.attempts > 0);
    }

    fn in_outage(&self) -> bool {
        self.failures >= OUTAGE_AFTER_FAILURES && !self.draining
    }

    fn slots(&self) -> usize {
        if self.one_at_a_time || self.in_outage() { 1 } else { self.concurrency }
    }

    fn due(&self, waiting: &Waiting) -> Instant {
        match (self.in_outage(), waiting.attempts) {
            (false, _) => waiting.not_before,
            (true, 0) => waiting.not_before.max(self.untried_not_before),
            (true, _) => waiting.not_before.max(self.retries_not_before),
        }
    }
}

#[cfg(test)]
mod tests;
