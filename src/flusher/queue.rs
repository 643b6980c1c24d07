//! Decides which batch is tried next, and when. Pure: the caller gives the time and the random numbers.
//!
//! The oldest batch goes first. A batch that failed waits for a pause of its own. One slot is left to untried batches,
//! and where there is only one slot, untried and failed ones take turns. No step takes longer than the logarithm of the
//! queue's length, because a million batches may wait after a long outage.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff;
use crate::batch::{BatchName, Stage};
use crate::flusher::delivery::Known;
use crate::s3::PutErrorKind;
use crate::spool::Batch;

/// After this many failures in a row the log type is in an outage: it sends one batch at a time, with a pause before
/// each, so that a backlog of thousands doesn't make thousands of failing requests a minute.
const OUTAGE_AFTER_FAILURES: u32 = 16;
/// The pause after a failed first attempt in an outage. It is short, so that a new batch doesn't wait as
/// long as one that has failed often.
const UNTRIED_PAUSE: Duration = Duration::from_secs(1);
/// A failed batch takes three times the memory of one in the spool's list. When this many have failed, new ones are
/// tried so seldom that their number hardly grows.
const FAILED_MANY: usize = 10_000;
/// The pause after a failed first attempt when many batches have failed.
const UNTRIED_PAUSE_WITH_MANY: Duration = Duration::from_secs(60);

/// Where a batch stands in the queue: by its number, and behind that by what else tells its file from another. Two
/// batches have the same number where somebody has put the files of one spool into another.
type Turn = (u64, BatchName, Stage);

fn turn_of(batch: &Batch) -> Turn {
    (batch.name.sequence, batch.name.batch, batch.name.stage)
}

/// A batch that is not delivered.
pub(super) struct Waiting {
    pub(super) batch: Batch,
    /// How many attempts have failed.
    pub(super) attempts: u32,
    /// Whether S3 has it, so that only its file is to be removed.
    pub(super) stored: bool,
    /// What is known of its earlier attempts.
    pub(super) known: Known,
    /// How many objects of the lane were confirmed before its last 412 without a mark of the store.
    pub(super) objects_confirmed_before: u64,
}

/// The batches of one lane that are not in flight, and the pauses after its failures.
pub(super) struct Queue {
    concurrency: usize,
    /// Those not tried yet.
    untried: BTreeMap<Turn, Batch>,
    /// Those that failed. Each is in `paused` or in `due`, too.
    failed: BTreeMap<Turn, Waiting>,
    /// When a failed batch's pause ends.
    paused: BTreeSet<(Instant, Turn)>,
    /// The failed batches whose pause is over.
    due: BTreeSet<Turn>,
    in_flight: usize,
    retries_in_flight: usize,
    retry_went_last: bool,
    /// Set by a time-out until an attempt succeeds: several at once would only make a slow network slower.
    one_at_a_time: bool,
    /// How many attempts in a row failed at S3.
    failures: u32,
    /// In an outage: when the next failed batch may be tried.
    retries_not_before: Instant,
    /// In an outage, and when many batches have failed: when the next untried batch may be tried.
    untried_not_before: Instant,
    draining: bool,
    /// How many batches were looked at or moved, for the test of how much work a step takes.
    #[cfg(test)]
    looked_at: u64,
}

impl Queue {
    /// An empty queue with this many slots.
    pub(super) fn new(concurrency: usize, now: Instant) -> Queue {
        Queue {
            concurrency,
            untried: BTreeMap::new(),
            failed: BTreeMap::new(),
            paused: BTreeSet::new(),
            due: BTreeSet::new(),
            in_flight: 0,
            retries_in_flight: 0,
            retry_went_last: false,
            one_at_a_time: false,
            failures: 0,
            retries_not_before: now,
            untried_not_before: now,
            draining: false,
            #[cfg(test)]
            looked_at: 0,
        }
    }

    /// Adds a batch that was just sealed, or found at the start.
    pub(super) fn add(&mut self, batch: Batch) {
        self.untried.insert(turn_of(&batch), batch);
    }

    /// How many batches were not tried yet and are not in flight.
    pub(super) fn untried(&self) -> usize {
        self.untried.len()
    }

    /// Whether no batch waits; some may be in flight.
    pub(super) fn is_empty(&self) -> bool {
        self.untried.is_empty() && self.failed.is_empty()
    }

    /// Makes every waiting batch due. From now on a batch that fails is not tried again.
    pub(super) fn drain(&mut self) {
        self.draining = true;
        self.end_pauses();
    }

    /// Whether every batch had its last attempt.
    pub(super) fn is_drained(&self) -> bool {
        self.draining && self.in_flight == 0 && self.is_empty()
    }

    /// Takes the batch that is to be tried now, if there is one.
    pub(super) fn next(&mut self, now: Instant) -> Option<Waiting> {
        self.end_pauses_until(now);
        let slots = self.slots();
        if self.in_flight >= slots {
            return None;
        }
        let untried = self.untried.first_key_value().map(|(turn, _)| *turn);
        let untried = untried.filter(|_| !self.spares_untried() || self.untried_not_before <= now);
        let retry_may_go = slots == 1 || self.retries_in_flight + 1 < slots || self.draining;
        let retry = self.due.first().copied().filter(|_| retry_may_go);
        let retry = retry.filter(|_| !self.in_outage() || self.retries_not_before <= now);
        let turn = match (untried, retry) {
            (Some(untried), Some(retry)) if slots > 1 => untried.min(retry),
            (Some(untried), Some(_)) if self.retry_went_last => untried,
            (Some(_), Some(retry)) => retry,
            (untried, retry) => untried.or(retry)?,
        };
        #[cfg(test)]
        {
            self.looked_at += 1;
        }
        let waiting = match self.untried.remove(&turn) {
            Some(batch) => {
                let known = Known::found(batch.may_have_arrived);
                Waiting { batch, attempts: 0, stored: false, known, objects_confirmed_before: 0 }
            }
            None => {
                self.due.remove(&turn);
                self.failed.remove(&turn)?
            }
        };
        self.in_flight += 1;
        self.retry_went_last = waiting.attempts > 0;
        self.retries_in_flight += usize::from(self.retry_went_last);
        Some(waiting)
    }

    /// When the next batch becomes due without another event, if one does.
    pub(super) fn next_wake(&self, now: Instant) -> Option<Instant> {
        if self.in_flight >= self.slots() {
            return None;
        }
        let pause_ends = self.paused.first().map(|(ends, _)| *ends);
        let retry = if self.due.is_empty() { pause_ends } else { Some(now) };
        let untried = (!self.untried.is_empty()).then_some(now);
        let retry = if self.in_outage() { retry.map(|due| due.max(self.retries_not_before)) } else { retry };
        let untried = if self.spares_untried() { untried.map(|due| due.max(self.untried_not_before)) } else { untried };
        // A batch that is due already waits for a slot. The next pause may end before one is free.
        let pause_ends = pause_ends.filter(|_| !self.in_outage());
        [retry, untried, pause_ends].into_iter().flatten().filter(|due| *due > now).min()
    }

    /// An attempt succeeded.
    pub(super) fn succeeded(&mut self, waiting: &Waiting) {
        self.landed(waiting);
        if self.in_outage() || self.one_at_a_time {
            // S3 works again, so no batch need wait for the pause that the outage gave it.
            self.end_pauses();
        }
        self.failures = 0;
        self.one_at_a_time = false;
    }

    /// An attempt failed: at S3 with `kind`, or on the spool's disk with `None`. The batch waits for
    /// `pause`. `random` is in `0.0..1.0`.
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
            if waiting.attempts > 0 && self.in_outage() {
                let in_outage = self.failures - OUTAGE_AFTER_FAILURES + 1;
                self.retries_not_before = now + backoff::full_jitter(in_outage, random);
            }
        }
        if waiting.attempts == 0 {
            let many = self.failed.len() >= FAILED_MANY;
            self.untried_not_before = now + if many { UNTRIED_PAUSE_WITH_MANY } else { UNTRIED_PAUSE };
        }
        waiting.attempts += 1;
        if !self.draining || waiting.stored {
            let turn = turn_of(&waiting.batch);
            self.paused.insert((now + pause, turn));
            self.failed.insert(turn, waiting);
        }
    }

    /// Ends every pause. Takes a step for each batch that failed, which is no more than its failure took.
    fn end_pauses(&mut self) {
        #[cfg(test)]
        {
            self.looked_at += self.paused.len() as u64;
        }
        self.due.extend(std::mem::take(&mut self.paused).into_iter().map(|(_, turn)| turn));
    }

    fn end_pauses_until(&mut self, now: Instant) {
        while let Some((ends, turn)) = self.paused.first().copied()
            && ends <= now
        {
            #[cfg(test)]
            {
                self.looked_at += 1;
            }
            self.paused.pop_first();
            self.due.insert(turn);
        }
    }

    fn landed(&mut self, waiting: &Waiting) {
        self.in_flight -= 1;
        self.retries_in_flight -= usize::from(waiting.attempts > 0);
    }

    fn in_outage(&self) -> bool {
        self.failures >= OUTAGE_AFTER_FAILURES && !self.draining
    }

    /// Whether untried batches wait for `untried_not_before`.
    fn spares_untried(&self) -> bool {
        self.in_outage() || (self.failed.len() >= FAILED_MANY && !self.draining)
    }

    fn slots(&self) -> usize {
        if self.one_at_a_time || self.in_outage() { 1 } else { self.concurrency }
    }
}

#[cfg(test)]
mod tests;
