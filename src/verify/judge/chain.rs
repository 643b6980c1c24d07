//! One instance's chain of one log type: its runs while objects come in, its gaps at the end.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDateTime, NaiveTime, Utc};

use crate::batch::Sha256;
use crate::verify::ranges::{Range, Ranges, count};
use crate::verify::report::{ChainReport, Counts, Finding, Findings, Head, Kind, PENDING_FOR};

use super::rules::{Name, Rules};

/// An object's place in its chain.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) sequence: u64,
    pub(super) sha256: Sha256,
    pub(super) previous: Sha256,
    /// From the key.
    pub(super) opened: NaiveDateTime,
    pub(super) last_modified: DateTime<Utc>,
    pub(super) key: Box<str>,
}

impl Link {
    /// Why `next`, which has the number after, can't follow; none where it does.
    fn broken_before(&self, next: &Link) -> Option<String> {
        let Link { sequence, key, .. } = self;
        if next.previous != self.sha256 {
            let (named, found) = (next.previous, self.sha256);
            return Some(format!("it names {named} as the SHA-256 of number {sequence}, and {key} has {found}"));
        }
        (next.opened < self.opened)
            .then(|| format!("its key is of an earlier time than that of number {sequence}, {key}"))
    }
}

/// Objects with successive numbers, each linked to the one before.
#[derive(Debug)]
pub(super) struct Run {
    first: Link,
    last: Link,
}

/// An object that has a number, but may be no part of the chain.
#[derive(Debug)]
pub(super) struct Suspect {
    pub(super) kind: Kind,
    pub(super) sequence: u64,
    pub(super) key: String,
    pub(super) detail: String,
}

#[derive(Debug, Default)]
pub(super) struct Chain {
    pub(super) counts: Counts,
    /// By the number of their first object.
    pub(super) runs: BTreeMap<u64, Run>,
    /// Numbers whose objects are there, but not as they were written.
    pub(super) damaged: Ranges,
    /// Numbers that the chain itself says are in quarantine.
    pub(super) quarantined: Ranges,
    /// Doubtful objects, kept until the whole chain is known. Where it has the true object, they are copies.
    pub(super) suspects: Vec<Suspect>,
    /// The last object before the window.
    pub(super) before: Option<Link>,
    /// The first object after the window.
    pub(super) after: Option<Link>,
}

impl Chain {
    /// Puts an object in its place; false where the place is taken.
    pub(super) fn insert(&mut self, link: Link) -> bool {
        let number = link.sequence;
        if self.holds(number) {
            return false;
        }
        let mut run = Run { first: link.clone(), last: link };
        if let Some((&start, before)) = self.runs.range(..number).next_back()
            && before.last.sequence == number - 1
            && before.last.broken_before(&run.first).is_none()
            && let Some(before) = self.runs.remove(&start)
        {
            run.first = before.first;
        }
        if let Some(next) = number.checked_add(1)
            && let Some(after) = self.runs.remove(&next)
        {
            match run.last.broken_before(&after.first) {
                None => run.last = after.last,
                Some(_) => drop(self.runs.insert(next, after)),
            }
        }
        self.runs.insert(run.first.sequence, run);
        true
    }

    fn holds(&self, number: u64) -> bool {
        self.runs.range(..=number).next_back().is_some_and(|(_, run)| run.last.sequence >= number)
    }

    pub(super) fn keep_before(&mut self, link: Link) {
        if self.before.as_ref().is_none_or(|before| before.sequence < link.sequence) {
            self.before = Some(link);
        }
    }

    pub(super) fn keep_after(&mut self, link: Link) {
        if self.after.as_ref().is_none_or(|after| after.sequence > link.sequence) {
            self.after = Some(link);
        }
    }

    pub(super) fn report(self, (log_type, instance): Name) -> ChainReport {
        let undamaged = |run: &Run| self.damaged.outside((run.first.sequence, run.last.sequence));
        let complete = self.runs.values().flat_map(undamaged).collect();
        let head = self.runs.values().next_back().map(|Run { last, .. }| {
            let sha256 = last.sha256.to_string();
            Head { sequence: last.sequence, sha256 }
        });
        ChainReport { instance, log_type, counts: self.counts, complete, head }
    }
}

/// A chain and where to write down what is found in it.
pub(super) struct Note<'a> {
    pub(super) name: &'a Name,
    pub(super) chain: &'a mut Chain,
    pub(super) findings: &'a mut Findings,
}

impl Note<'_> {
    /// A finding on one object.
    pub(super) fn object(&mut self, kind: Kind, sequence: u64, key: &str, detail: String) {
        self.add(kind, (sequence, sequence), Some(key), detail);
    }

    fn add(&mut self, kind: Kind, sequences: Range, key: Option<&str>, detail: String) {
        let (log_type, instance) = self.name.clone();
        let (log_type, instance, key) = (Some(log_type), Some(instance), key.map(str::to_owned));
        self.chain.counts.add(kind, count(sequences));
        self.findings.add(Finding { kind, log_type, instance, sequences: Some(sequences), key, detail });
    }

    /// Takes a doubtful object for what its metadata says, and names what is wrong with it.
    pub(super) fn condemn(&mut self, Suspect { kind, sequence, key, detail }: Suspect) {
        self.chain.damaged.insert((sequence, sequence));
        self.object(kind, sequence, &key, detail);
    }

    /// Judges what only the whole chain shows.
    pub(super) fn finish(mut self, rules: &Rules) {
        for suspect in std::mem::take(&mut self.chain.suspects) {
            if self.chain.holds(suspect.sequence) {
                let detail = format!("a copy, beside the true object: {}", suspect.detail);
                self.object(Kind::Duplicated, suspect.sequence, &suspect.key, detail);
            } else {
                self.condemn(suspect);
            }
        }
        if let (None, Some(run)) = (&self.chain.before, self.chain.runs.values().next()) {
            let first = run.first.clone();
            self.start(rules, &first);
        }
        let runs = self.chain.runs.values().map(|run| (run.first.clone(), run.last.clone()));
        let single = |link: &Option<Link>| link.clone().map(|link| (link.clone(), link));
        let parts = single(&self.chain.before).into_iter().chain(runs).chain(single(&self.chain.after));
        let parts: Vec<_> = parts.collect();
        for pair in parts.windows(2) {
            self.joint(rules, &pair[0].1, &pair[1].0);
        }
        self.tail(rules);
    }

    /// The numbers before the first object of a chain.
    fn start(&mut self, rules: &Rules, first: &Link) {
        let Some(last) = first.sequence.checked_sub(1).filter(|last| *last > 0) else { return };
        let anchors = rules.anchors.iter().filter(|anchor| anchor.is_of(self.name));
        let anchor = anchors.max_by_key(|anchor| anchor.sequence);
        if let Some(anchor) = anchor.filter(|anchor| anchor.sequence == last && anchor.sha256 != first.previous) {
            let detail = format!("it names {} as the batch before it, the anchor {}", first.previous, anchor.sha256);
            self.object(Kind::Altered, first.sequence, &first.key, detail);
        }
        let vouched = anchor.map_or(0, |anchor| anchor.sequence);
        for hole in self.chain.damaged.outside((1, last)) {
            if hole.0 > 1 {
                self.gap(rules, hole, first);
                continue;
            }
            for range in self.chain.quarantined.within(hole) {
                self.quarantined(range);
            }
            for range in self.chain.quarantined.outside(hole) {
                if range.0 <= vouched {
                    let detail = "before the anchor that was given".to_owned();
                    self.add(Kind::Explained, (range.0, range.1.min(vouched)), None, detail);
                }
                if anchor.is_none() {
                    self.unexplained_start(rules, range, first);
                } else if range.1 > vouched {
                    self.gap(rules, (range.0.max(vouched + 1), range.1), first);
                }
            }
        }
    }

    fn unexplained_start(&mut self, rules: &Rules, range: Range, first: &Link) {
        let Link { sequence, opened, key, .. } = first;
        let (kind, detail) = match rules.expired_before {
            Some(day) if *opened < day.and_time(NaiveTime::MIN) => {
                (Kind::Explained, format!("expired: opened before {day}"))
            }
            Some(day) => {
                let detail = format!("may have expired: opened before {opened}; whether before {day} can't be told");
                (Kind::Explained, detail)
            }
            None => {
                let detail = format!(
                    "the chain starts at number {sequence}, {key}: deleted, or expired (then give --expired-before or \
                     --anchor)"
                );
                (Kind::Unanchored, detail)
            }
        };
        self.add(kind, range, None, detail);
    }

    /// Where one run ends and the next begins.
    fn joint(&mut self, rules: &Rules, before: &Link, after: &Link) {
        if after.sequence <= before.sequence {
            let detail = format!("its key is of a later time than that of number {}, {}", before.sequence, before.key);
            self.object(Kind::Altered, after.sequence, &after.key, detail);
        } else if after.sequence - before.sequence > 1 {
            for range in self.chain.damaged.outside((before.sequence + 1, after.sequence - 1)) {
                self.gap(rules, range, after);
            }
        } else if let Some(detail) = before.broken_before(after) {
            self.object(
                Kind::Altered,
                after.sequence,
                &after.key,
                format!("the link to the batch before is broken: {detail}"),
            );
        }
    }

    fn gap(&mut self, rules: &Rules, range: Range, successor: &Link) {
        for range in self.chain.quarantined.within(range) {
            self.quarantined(range);
        }
        for range in self.chain.quarantined.outside(range) {
            let age = rules.now - successor.last_modified;
            let expired = rules.expired_before.filter(|day| successor.opened < day.and_time(NaiveTime::MIN));
            let Link { sequence, key, .. } = successor;
            let (kind, detail) = if age < PENDING_FOR {
                let minutes = age.num_minutes();
                (Kind::Pending, format!("number {sequence}, {key}, is {minutes} minutes old: may still be on its way"))
            } else if let Some(day) = expired {
                (Kind::Explained, format!("expired: opened before {day}"))
            } else {
                (Kind::Gap, format!("no object before number {sequence}, {key}"))
            };
            self.add(kind, range, None, detail);
        }
    }

    fn quarantined(&mut self, range: Range) {
        let detail = "in the instance's quarantine, as later objects of the chain say".to_owned();
        self.add(Kind::Explained, range, None, detail);
    }

    /// The numbers after the last object that heads know of.
    fn tail(&mut self, rules: &Rules) {
        let heads = rules.heads.iter().filter(|head| head.is_of(self.name));
        let Some(head) = heads.max_by_key(|head| head.sequence).filter(|_| self.chain.after.is_none()) else { return };
        let run = self.chain.runs.values().next_back().map(|run| run.last.sequence);
        let before = self.chain.before.as_ref().map(|before| before.sequence);
        let last = run.max(before).max(self.chain.damaged.last());
        let detail = match last {
            Some(last) => format!("the head that was given is number {}; the last object is {}", head.sequence, last),
            None => "the whole chain: a head was given, and there is no object".to_owned(),
        };
        let Some(first) = last.unwrap_or(0).checked_add(1).filter(|first| *first <= head.sequence) else { return };
        for range in self.chain.quarantined.within((first, head.sequence)) {
            self.quarantined(range);
        }
        // Batches go oldest first, so what the daemon still held when it told its head are the last ones.
        let fresh = head.taken_at.is_some_and(|taken_at| rules.now - taken_at < PENDING_FOR);
        let held_after = if fresh { head.sequence.saturating_sub(head.unsent) } else { head.sequence };
        for (first, last) in self.chain.quarantined.outside((first, head.sequence)) {
            if first <= held_after {
                self.add(Kind::Missing, (first, last.min(held_after)), None, detail.clone());
            }
            if last > held_after {
                let detail = format!("{detail}, and {} batches were still in the spool", head.unsent);
                self.add(Kind::Pending, (first.max(held_after + 1), last), None, detail);
            }
        }
    }
}
