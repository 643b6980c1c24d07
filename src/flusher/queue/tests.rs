use chrono::{TimeDelta, Utc};

use super::*;
use crate::batch::{BatchName, Codec, LogType, SealedName, Sha256, Stage};

const SLOTS: usize = 4;
const SECOND: Duration = Duration::from_secs(1);

fn batch(sequence: u64) -> Batch {
    let opened = Utc::now() + TimeDelta::seconds(sequence.try_into().unwrap());
    let batch = BatchName::open(opened, None, Codec::None);
    let (sha256, previous, stage) = (Sha256::ZERO, Sha256::ZERO, Stage::Sealed);
    let name = SealedName { batch, sequence, records: 1, sha256, previous, stage };
    Batch { log_type: LogType::Audits, name, bytes: 1, durable: true, may_have_arrived: false }
}

/// A queue with a clock that only the test moves, and dice that always fall on the middle.
struct Lane {
    queue: Queue,
    now: Instant,
}

impl Lane {
    fn with(slots: usize, sequences: impl IntoIterator<Item = u64>) -> Lane {
        let now = Instant::now();
        let mut lane = Lane { queue: Queue::new(slots, now), now };
        lane.add(sequences);
        lane
    }

    fn add(&mut self, sequences: impl IntoIterator<Item = u64>) {
        sequences.into_iter().for_each(|sequence| self.queue.add(batch(sequence)));
    }

    /// Takes all that may go now.
    fn go(&mut self) -> Vec<Waiting> {
        std::iter::from_fn(|| self.queue.next(self.now)).collect()
    }

    fn fail(&mut self, waiting: Waiting, kind: PutErrorKind) {
        let pause = backoff::full_jitter(waiting.attempts + 1, 0.5);
        self.queue.failed(waiting, Some(kind), pause, self.now, 0.5);
    }

    /// Lets every attempt fail until the type is in an outage with nothing in flight.
    fn enter_outage(&mut self) {
        for _ in 0..OUTAGE_AFTER_FAILURES {
            let waiting = loop {
                match self.queue.next(self.now) {
                    Some(waiting) => break waiting,
                    None => self.now = self.queue.next_wake(self.now).unwrap(),
                }
            };
            self.fail(waiting, PutErrorKind::Denied);
        }
    }
}

fn sequences(waiting: &[Waiting]) -> Vec<u64> {
    waiting.iter().map(|waiting| waiting.batch.name.sequence).collect()
}

#[test]
fn the_oldest_go_first_as_many_as_there_are_slots() {
    let mut lane = Lane::with(SLOTS, [5, 3, 9, 1, 7, 2]);
    let mut gone = lane.go();
    assert_eq!(sequences(&gone), [1, 2, 3, 5]);
    assert_eq!(lane.queue.next_wake(lane.now), None);
    lane.queue.succeeded(&gone.remove(0));
    assert_eq!(sequences(&lane.go()), [7]);
}

#[test]
fn each_of_several_batches_with_one_number_has_its_turn_and_its_pause() {
    let mut lane = Lane::with(SLOTS, [1, 1, 2, 2]);
    let gone = lane.go();
    assert_eq!(sequences(&gone), [1, 1, 2, 2]);
    gone.into_iter().for_each(|waiting| lane.fail(waiting, PutErrorKind::Denied));
    lane.now += 5 * SECOND;
    assert_eq!(sequences(&lane.go()), [1, 1, 2], "one slot is left to batches not tried yet");
}

#[test]
fn a_failed_batch_waits_for_its_pause_and_the_others_do_not() {
    let mut lane = Lane::with(SLOTS, [1]);
    let first = lane.go().remove(0);
    lane.queue.failed(first, Some(PutErrorKind::Denied), 5 * SECOND, lane.now, 0.5);
    lane.add([2]);
    assert_eq!(sequences(&lane.go()), [2]);
    assert_eq!(lane.queue.next_wake(lane.now), Some(lane.now + 5 * SECOND));
    lane.now += 5 * SECOND;
    assert_eq!(sequences(&lane.go()), [1]);
}

#[test]
fn one_slot_is_left_to_batches_not_tried_yet() {
    let mut lane = Lane::with(SLOTS, 1..=6);
    for _ in 0..6 {
        let waiting = lane.queue.next(lane.now).unwrap();
        lane.fail(waiting, PutErrorKind::Denied);
    }
    lane.now += 5 * SECOND;
    assert_eq!(sequences(&lane.go()), [1, 2, 3]);
    lane.add([7, 8]);
    assert_eq!(sequences(&lane.go()), [7]);
}

#[test]
fn where_there_is_one_slot_retries_and_untried_batches_take_turns() {
    let mut lane = Lane::with(1, [1, 2]);
    for _ in 0..2 {
        let waiting = lane.queue.next(lane.now).unwrap();
        lane.fail(waiting, PutErrorKind::Denied);
    }
    lane.add([3, 4]);
    lane.now += 5 * SECOND;
    let mut order = Vec::new();
    for _ in 0..4 {
        let [waiting] = lane.go().try_into().ok().unwrap();
        order.push(waiting.batch.name.sequence);
        lane.queue.succeeded(&waiting);
    }
    assert_eq!(order, [1, 3, 2, 4]);
}

#[test]
fn after_a_time_out_one_batch_goes_at_a_time_until_one_arrives() {
    let mut lane = Lane::with(SLOTS, 1..=9);
    let [first, second, third, fourth] = lane.go().try_into().ok().unwrap();
    lane.fail(first, PutErrorKind::Timeout);
    for waiting in [second, third] {
        lane.fail(waiting, PutErrorKind::Denied);
        assert!(lane.go().is_empty());
    }
    lane.fail(fourth, PutErrorKind::Denied);
    let [fifth] = lane.go().try_into().ok().unwrap();
    lane.queue.succeeded(&fifth);
    assert_eq!(lane.go().len(), SLOTS);
}

#[test]
fn in_an_outage_a_new_batch_waits_for_no_failing_one() {
    let mut lane = Lane::with(SLOTS, 1..=20);
    lane.enter_outage();
    lane.add([21]);
    let mut tried = Vec::new();
    let started = lane.now;
    while !tried.contains(&21) {
        match lane.queue.next(lane.now) {
            Some(waiting) => {
                tried.push(waiting.batch.name.sequence);
                lane.fail(waiting, PutErrorKind::Denied);
            }
            None => lane.now = lane.queue.next_wake(lane.now).unwrap(),
        }
    }
    // Four that were not tried yet were older.
    assert!(lane.now - started <= 5 * SECOND, "{:?}: {tried:?}", lane.now - started);
}

#[test]
fn in_an_outage_the_retries_of_all_batches_share_one_growing_pause() {
    let mut lane = Lane::with(SLOTS, 1..=16);
    lane.enter_outage();
    let mut pauses = Vec::new();
    for _ in 0..9 {
        lane.now = lane.queue.next_wake(lane.now).unwrap_or(lane.now);
        let began = lane.now;
        let [waiting] = lane.go().try_into().ok().unwrap();
        lane.fail(waiting, PutErrorKind::Denied);
        assert!(lane.go().is_empty());
        pauses.push((lane.queue.retries_not_before - began).as_secs_f64());
    }
    assert_eq!(pauses, [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0]);
}

#[test]
fn two_thousand_untried_batches_and_a_dead_s3_make_few_attempts_and_all_get_one() {
    let mut lane = Lane::with(SLOTS, 1..=2000);
    let started = lane.now;
    let (mut in_first_minute, mut untried, mut retries) = (0, 2000, 0);
    while untried > 0 {
        let Some(waiting) = lane.queue.next(lane.now) else {
            lane.now = lane.queue.next_wake(lane.now).unwrap();
            continue;
        };
        if waiting.attempts == 0 {
            untried -= 1;
        } else {
            retries += 1;
        }
        in_first_minute += usize::from(lane.now < started + 60 * SECOND);
        lane.fail(waiting, PutErrorKind::Unreachable);
    }
    assert!(in_first_minute < 100, "{in_first_minute} attempts in the first minute");
    assert!(lane.now < started + 2100 * SECOND && retries > 10, "{retries} retries");
}

#[test]
fn an_object_that_arrives_ends_the_outage_and_every_pause() {
    let mut lane = Lane::with(SLOTS, 1..=20);
    lane.enter_outage();
    let paused = std::mem::take(&mut lane.queue.paused);
    lane.queue.paused = paused.into_iter().map(|(ends, sequence)| (ends + 600 * SECOND, sequence)).collect();
    let due = std::mem::take(&mut lane.queue.due);
    lane.queue.paused.extend(due.into_iter().map(|sequence| (lane.now + 600 * SECOND, sequence)));
    lane.now += UNTRIED_PAUSE;
    let [waiting] = lane.go().try_into().ok().unwrap();
    lane.queue.succeeded(&waiting);
    // Three slots for those that failed, one for those not tried.
    let gone = lane.go();
    assert_eq!(gone.iter().filter(|waiting| waiting.attempts > 0).count(), SLOTS - 1);
    assert_eq!(gone.len(), SLOTS);
}

#[test]
fn an_object_that_arrives_after_a_time_out_ends_every_pause() {
    let mut lane = Lane::with(SLOTS, [1, 2]);
    let [first, second] = lane.go().try_into().ok().unwrap();
    lane.queue.failed(first, Some(PutErrorKind::Timeout), 60 * SECOND, lane.now, 0.5);
    assert!(lane.go().is_empty());
    lane.queue.succeeded(&second);
    assert_eq!(sequences(&lane.go()), [1]);
}

#[test]
fn outside_of_an_outage_an_object_that_arrives_ends_no_pause() {
    let mut lane = Lane::with(SLOTS, [1, 2]);
    let [first, second] = lane.go().try_into().ok().unwrap();
    lane.queue.failed(first, Some(PutErrorKind::Denied), 60 * SECOND, lane.now, 0.5);
    lane.queue.succeeded(&second);
    assert!(lane.go().is_empty());
}

#[test]
fn a_retry_that_is_due_and_waits_for_a_slot_is_no_reason_to_wake() {
    let mut lane = Lane::with(SLOTS, 1..=4);
    for waiting in lane.go() {
        lane.queue.failed(waiting, Some(PutErrorKind::Denied), SECOND, lane.now, 0.5);
    }
    lane.now += SECOND;
    // The fourth slot is left to a batch not tried yet.
    assert_eq!(sequences(&lane.go()), [1, 2, 3]);
    assert_eq!(lane.queue.next_wake(lane.now), None);
}

#[test]
fn a_failing_disk_is_no_outage_of_s3s() {
    let mut lane = Lane::with(SLOTS, 1..=100);
    for _ in 0..100 {
        let waiting = lane.queue.next(lane.now).unwrap();
        lane.queue.failed(waiting, None, SECOND, lane.now, 0.5);
    }
    lane.add(101..=104);
    assert_eq!(lane.go().len(), SLOTS);
}

#[test]
fn where_many_batches_have_failed_new_ones_are_tried_once_a_minute() {
    for kind in [Some(PutErrorKind::Denied), None] {
        let mut lane = Lane::with(SLOTS, 1..=2 * FAILED_MANY as u64);
        let mut first_attempts = Vec::new();
        while first_attempts.len() < FAILED_MANY + SLOTS + 10 {
            let Some(waiting) = lane.queue.next(lane.now) else {
                lane.now = lane.queue.next_wake(lane.now).unwrap();
                continue;
            };
            if waiting.attempts == 0 {
                first_attempts.push(lane.now);
            }
            lane.queue.failed(waiting, kind, 30 * SECOND, lane.now, 0.5);
        }
        let took = first_attempts[FAILED_MANY + SLOTS + 9] - first_attempts[FAILED_MANY + SLOTS];
        assert!(took >= 9 * UNTRIED_PAUSE_WITH_MANY, "{kind:?}: ten in {took:?}");
        lane.queue.drain();
        assert!(lane.go().len() == SLOTS, "{kind:?}: a drain waits for nothing");
    }
}

#[test]
fn a_drain_tries_every_batch_once_more_whatever_its_pause_and_no_more() {
    let mut lane = Lane::with(SLOTS, 1..=20);
    lane.enter_outage();
    lane.queue.drain();
    assert!(!lane.queue.is_drained());
    let mut tried = Vec::new();
    while let Some(waiting) = lane.queue.next(lane.now) {
        tried.push(waiting.batch.name.sequence);
        lane.fail(waiting, PutErrorKind::Denied);
    }
    assert_eq!(tried, (1..=20).collect::<Vec<_>>());
    assert!(lane.queue.is_drained());
}

#[test]
fn a_drain_keeps_at_a_file_whose_object_is_stored() {
    let mut lane = Lane::with(SLOTS, [1]);
    let mut waiting = lane.go().remove(0);
    lane.queue.drain();
    waiting.stored = true;
    lane.queue.failed(waiting, None, SECOND, lane.now, 0.5);
    assert!(!lane.queue.is_drained());
    lane.now += SECOND;
    assert_eq!(sequences(&lane.go()), [1]);
}

#[test]
fn a_step_takes_as_long_with_many_batches_as_with_few() {
    let looks = |batches: u64| {
        let mut lane = Lane::with(SLOTS, 1..=batches);
        // An outage in which each batch fails twice, an object that arrives, and all go.
        let mut failed = 0;
        while failed < 2 * batches {
            match lane.queue.next(lane.now) {
                Some(waiting) => {
                    failed += 1;
                    lane.fail(waiting, PutErrorKind::Denied);
                }
                None => lane.now = lane.queue.next_wake(lane.now).unwrap(),
            }
        }
        let mut arrived = 0;
        while arrived < batches {
            match lane.queue.next(lane.now) {
                Some(waiting) => {
                    arrived += 1;
                    lane.queue.succeeded(&waiting);
                }
                None => lane.now = lane.queue.next_wake(lane.now).unwrap(),
            }
        }
        assert!(lane.queue.is_empty());
        lane.queue.looked_at / batches
    };
    let [few, many] = [100, 100_000].map(looks);
    assert!(few <= 8 && many <= few, "{few} looks a batch with a hundred, {many} with a hundred thousand");
}
