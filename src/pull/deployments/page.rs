//! A page of a step's log while it is read.

use std::collections::VecDeque;

use crate::pull::identity::Mark;

/// The next page may repeat the end of this one: this many events, and all with the time of the last one.
const PAGE_END_EVENTS: usize = 128;

/// What came of a page of a step's log, as far as it was read.
#[derive(Default)]
pub(super) struct Page {
    /// New lines that are not in the spool yet, and their number.
    pub(super) lines: Vec<u8>,
    pub(super) records: u64,
    /// How many events were read.
    pub(super) events: usize,
    /// Whether any of them were new.
    pub(super) new: bool,
    /// Whether a start has found one of them in the spool, and the step didn't know it yet.
    pub(super) found: bool,
    /// The last events, at most [`PAGE_END_EVENTS`].
    pub(super) end: VecDeque<Mark>,
    /// The time of the last one.
    pub(super) last_time: Option<String>,
}

impl Page {
    /// The last event so far is this one.
    pub(super) fn ends_with(&mut self, mark: Mark, time: Option<&str>) {
        if self.end.len() == PAGE_END_EVENTS {
            self.end.pop_front();
        }
        self.end.push_back(mark);
        if self.last_time.as_deref() != time {
            self.last_time = time.map(str::to_owned);
        }
    }
}
