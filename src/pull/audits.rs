//! Audit events: windows of time, oldest first, each event once.
//!
//! A window is asked for a millisecond wider than it is, and what lies outside is left out here: so it doesn't matter
//! whether env0 counts its ends in. Every page is taken in any order, sorted when its window is complete, and compared
//! with what was taken before: so it doesn't matter whether a page begins with its key or behind it. The last 15
//! minutes are asked for again in every round, because events appear late.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::protocols::body::{Limits, members, text_of};
use crate::pull::ahead::ahead_by;
use crate::pull::api::pages::PageSize;
use crate::pull::api::{Answer, Api, EVENTS_IN_REST, Elements, Endpoint, ErrorKind, Pieces, RECORDS_MAX};
use crate::pull::files::PlaceError;
use crate::pull::identity::{Known, Mark, SAME_ID, Taken};
use crate::pull::line::{Line, json_of, stored};
use crate::pull::place::{Memory, Place};
use crate::pull::report::Report;
use crate::pull::round::RoundError;
use crate::pull::whose::{Owner, Whose};

/// An event may appear in env0's answers this long after its timestamp.
const LATE: TimeDelta = TimeDelta::minutes(15);
/// With more events than this at the time of the newest one, they are forgotten with all others.
const NEWEST_MAX: usize = 10_000;
/// Where nothing confirms our clock, events since the newest one are asked for again for this long.
const UNSURE: TimeDelta = TimeDelta::days(1);
/// env0 gives no more in one page.
const PAGE_MAX_EVENTS: usize = 1000;
/// If env0 begins a page with the event of its key, a page of one event would only repeat that event.
const PAGE_MIN_EVENTS: usize = 2;
/// A window with more events or more bytes than these is split into shorter ones.
const WINDOW_MAX_EVENTS: usize = 10_000;
const WINDOW_MAX_BYTES: usize = 2 * 1024 * 1024;
const FIRST_WINDOW: TimeDelta = TimeDelta::hours(1);
const LONGEST_WINDOW: TimeDelta = TimeDelta::days(30);
const SHORTEST_WINDOW: TimeDelta = TimeDelta::milliseconds(1);
/// After this many pages in a row without a new event, env0's keys are taken to go in circles.
const EMPTY_PAGES_MAX: usize = 10;
/// A pull stops with [`PlaceError::Crowded`] when it would have to remember more events than this, those of about the last
/// 15 minutes.
const TAKEN_MAX: usize = 900_000;
/// So many lines that name another organization which is pulled, too, are remembered at a start, in all places together.
const OF_OTHERS_MAX: usize = 50_000;
/// What is odd about an event that comes again, with its id and its time.
const CHANGED: &str = "an event that is stored comes with other bytes now; it stays as it was stored first";
/// The members that identify an event. An event that is cut keeps them.
const ID_AND_TIME: [&str; 2] = ["id", "timestamp"];

/// What is remembered of an organization's audit events; times are milliseconds since 1970.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct AuditMemory {
    /// Where the pull began; `None` in a place from before this was noted.
    #[serde(default)]
    pub(super) began: Option<i64>,
    /// Everything before this is stored, and is not asked for again.
    pub(super) from: i64,
    /// Everything before this is stored, except events that env0 shows late.
    pub(super) reached: i64,
    /// The events since `from` that are stored.
    taken: Taken,
    /// How many of them a start has found that name another organization.
    #[serde(skip)]
    of_others: usize,
}

impl AuditMemory {
    /// The memory of a pull that begins at `from`.
    pub(super) fn beginning(from: DateTime<Utc>) -> AuditMemory {
        let from = from.timestamp_millis();
        AuditMemory { began: Some(from), from, reached: from, ..AuditMemory::default() }
    }

    /// The window that ended at `end` is complete; it was asked for at `asked_at`.
    ///
    /// Where no answer of env0's confirms our clock, what is asked for again begins no later than at the newest event, or a
    /// day ago. A clock that is wrong may say that a window reaches years ahead, and that nothing happened in it; an event's
    /// time is env0's word.
    fn complete(&mut self, end: i64, asked_at: DateTime<Utc>, clock_is_sure: bool) {
        self.reached = self.reached.max(end);
        let late = end.min((asked_at - LATE).timestamp_millis());
        let from = match self.taken.newest_until(late) {
            Some(newest) if !clock_is_sure => newest.max(late - UNSURE.num_milliseconds()),
            _ => late,
        };
        self.from = self.from.max(from);
        // The newest event stays known: a place that turns out to be ahead of the clock is set back to it.
        let newest = self.taken.newest_until(i64::MAX).unwrap_or(self.from);
        self.taken.forget_before(self.from.min(newest));
        if self.taken.len() > NEWEST_MAX {
            self.taken.forget_before(self.from);
        }
    }

    /// How far it is ahead of `now`, where that is more than clocks differ.
    fn ahead_of(&self, now: DateTime<Utc>) -> Option<TimeDelta> {
        ahead_by(self.from.max(self.reached), now.timestamp_millis())
    }

    /// Goes back to the newest event that was taken until `now`: that is as far as env0's own times go. Where none is
    /// known, to the time that is asked for in every round.
    fn set_back(&mut self, now: DateTime<Utc>) {
        let newest = self.taken.newest_until(now.timestamp_millis());
        self.from = self.from.min(newest.unwrap_or((now - LATE).timestamp_millis()));
        self.reached = self.from;
    }
}

impl Memory for AuditMemory {
    type Part = ();

    fn part_of(&self, _: &[u8], _: &Whose<'_>) -> Option<String> {
        None
    }

    fn kept(&mut self, _: &str) -> Option<&mut ()> {
        None
    }

    fn parts(&self) -> impl Iterator<Item = &String> {
        std::iter::empty()
    }

    fn found(&mut self, line: &[u8], whose: &Whose<'_>, _: Option<&mut ()>) {
        let [id, timestamp, organization] = members(json_of(line), [ID_AND_TIME[0], ID_AND_TIME[1], "organizationId"]);
        let owner = whose.owner(organization);
        if owner == Owner::Another {
            // Nearly all of these are that one's own events, but env0 may have named it in one of this organization's.
            if self.of_others >= OF_OTHERS_MAX / whose.organizations.len() {
                return;
            }
            self.of_others += 1;
        }
        // An event without a time can only be unknown if it is recent, so now is close enough.
        let at = timestamp.and_then(millis).unwrap_or_else(|| crate::batch::now().timestamp_millis());
        if at >= self.from {
            // Ids of two organizations may be the same. Where the line doesn't say that it is this one's, its bytes identify it.
            let id = id.filter(|_| owner == Owner::This && (organization.is_some() || whose.is_alone()));
            self.taken.insert(&Mark::new(&[], id, line), at);
        }
    }
}

/// A time in milliseconds since 1970, as env0 is asked with it.
fn rfc3339(millis: i64) -> String {
    let time = DateTime::from_timestamp_millis(millis).unwrap_or_default();
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Milliseconds since 1970, from a time in RFC 3339 or a number of milliseconds.
fn millis(timestamp: &RawValue) -> Option<i64> {
    match text_of(timestamp.get()) {
        Some(text) => Some(DateTime::parse_from_rfc3339(&text).ok()?.timestamp_millis()),
        None => timestamp.get().parse().ok(),
    }
}

/// What a page says beside its events.
#[derive(Deserialize)]
struct Page<'a> {
    /// They were read before; the list has to be there all the same.
    events: Vec<IgnoredAny>,
    #[serde(borrow, rename = "nextPageKey")]
    next_page_key: Option<&'a RawValue>,
}

/// An event of a window.
struct New {
    at: i64,
    mark: Mark,
    line: Line,
    /// What is not as documented of it.
    oddity: Option<&'static str>,
}

/// Events that are to be stored.
#[derive(Default)]
struct NewEvents {
    events: Vec<New>,
    /// Of their lines.
    bytes: usize,
}

impl NewEvents {
    fn push(&mut self, event: New) {
        self.bytes += event.line.bytes.len();
        self.events.push(event);
    }

    /// Whether they are more than fit into memory at once.
    fn are_too_many(&self) -> bool {
        self.events.len() > WINDOW_MAX_EVENTS || self.bytes > WINDOW_MAX_BYTES
    }
}

/// What a window has brought so far.
#[derive(Default)]
struct Found {
    new: NewEvents,
    /// New or not.
    seen: Taken,
}

/// How asking for a window ended.
enum Window {
    /// The new events, sorted by time.
    Complete(NewEvents),
    /// It holds more than fits into memory at once.
    TooMany,
}

/// The pull of one organization's audit events.
pub(super) struct Audits {
    api: Api,
    organization: String,
    limits: Limits,
    /// [`Place::former_limits`]
    former_limits: Vec<usize>,
    place: Place<AuditMemory>,
    report: Arc<Report>,
    /// How wide the next window is.
    width: TimeDelta,
    page_size: PageSize,
}

impl Audits {
    pub(super) fn new(api: Api, limits: Limits, place: Place<AuditMemory>, report: Arc<Report>) -> Audits {
        let organization = place.organization().to_owned();
        report.position(place.memory.reached);
        let page_size = PageSize::between(PAGE_MIN_EVENTS, PAGE_MAX_EVENTS);
        let former_limits = place.former_limits();
        Audits { api, organization, limits, former_limits, place, report, width: FIRST_WINDOW, page_size }
    }

    /// Fetches and stores every new event, up to now.
    pub(super) async fn round(&mut self) -> Result<(), RoundError> {
        self.place.catch_up().await?;
        let mut now = self.api.now();
        let AuditMemory { from, .. } = self.place.memory;
        if from >= now.timestamp_millis() || self.place.memory.ahead_of(now).is_some() {
            // By a clock that was wrong once there may be nothing to ask for. Only an answer tells what env0's says now.
            self.page(from, from.saturating_add(1), None).await?;
            now = self.api.now();
            self.judge_place(now).await?;
        }
        let mut start = self.place.memory.from;
        while start < now.timestamp_millis() {
            let end = start.saturating_add(self.width.num_milliseconds()).min(now.timestamp_millis());
            let new = match self.window(start, end).await? {
                Window::TooMany => {
                    self.narrow();
                    continue;
                }
                Window::Complete(new) => new,
            };
            if let Err(error) = self.check_room(new.events.len()) {
                // In a shorter one there are fewer, and what lies before it is soon old enough to be forgotten.
                if end - start <= SHORTEST_WINDOW.num_milliseconds() {
                    return Err(error.into());
                }
                self.narrow();
                continue;
            }
            if new.events.len() < WINDOW_MAX_EVENTS / 4 && new.bytes < WINDOW_MAX_BYTES / 4 {
                self.width = (self.width * 2).min(LONGEST_WINDOW);
            }
            // The answers told env0's clock. Where ours had jumped ahead since the round began, what is to happen until
            // `end` has not been asked for: a window counts up to env0's present only.
            now = now.min(self.api.now());
            let end = end.min(now.timestamp_millis()).max(start);
            start = end;
            let sure = self.api.clocks_agree(LATE);
            self.commit(new, |memory| memory.complete(end, now, sure)).await?;
            self.report.position(self.place.memory.reached);
        }
        Ok(())
    }

    fn narrow(&mut self) {
        self.width = (self.width / 8).max(SHORTEST_WINDOW);
    }

    /// Tells of a place that is ahead of the clock. Where it is ahead of env0's clock and of ours, it is set back.
    async fn judge_place(&mut self, now: DateTime<Utc>) -> Result<(), RoundError> {
        let memory = &self.place.memory;
        let Some(ahead) = memory.ahead_of(now) else { return Ok(()) };
        let place = rfc3339(memory.from.max(memory.reached));
        let latest = self.api.latest_now();
        if memory.ahead_of(latest).is_none() {
            self.report.ahead(&format!("it says that everything before {place} is stored, and env0's clock or this machine's is {} minutes behind that; where that clock is right in the end, nothing is skipped", ahead.num_minutes()));
            return Ok(());
        }
        self.commit(NewEvents::default(), |memory| memory.set_back(latest)).await?;
        let from = rfc3339(self.place.memory.from);
        self.report.ahead(&format!("it said that everything before {place} is stored, which is {} minutes ahead of the clock, so a clock was wrong; it is set back to {from}, and everything since then is fetched", ahead.num_minutes()));
        self.report.position(self.place.memory.reached);
        Ok(())
    }

    /// Asks for all events from `start` to before `end`, in milliseconds since 1970.
    async fn window(&mut self, start: i64, end: i64) -> Result<Window, RoundError> {
        let mut found = Found::default();
        let mut keys = HashSet::new();
        let mut key = None;
        let mut empty_pages = 0;
        loop {
            let before = found.seen.len();
            let (mut pieces, asked) = self.page(start, end, key.as_deref()).await?;
            let rest = match self.take(&mut pieces, start..end, &mut found).await {
                // It is asked for again with fewer events, and those that came are known.
                Err(RoundError::Api(error))
                    if error.kind == ErrorKind::TooLarge && self.page_size.was_too_large(asked) =>
                {
                    continue;
                }
                taken => taken?,
            };
            let Some(rest) = rest else { return Ok(Window::TooMany) };
            self.page_size.was_read(asked, &pieces);
            // Only one large answer is there at a time, for all pulls: it must not wait for the spool.
            drop(pieces);
            let page: Page<'_> = rest.parse()?;
            if !page.events.is_empty() {
                return Err(rest.malformed(EVENTS_IN_REST).into());
            }
            let next = rest.cursor(page.next_page_key)?.filter(|next| keys.insert(next.clone()));
            empty_pages = if found.seen.len() == before { empty_pages + 1 } else { 0 };
            if next.is_some() && empty_pages > EMPTY_PAGES_MAX {
                return Err(rest.malformed("its nextPageKey leads to no end").into());
            }
            let Some(next) = next else { break };
            key = Some(next);
            if found.new.are_too_many() {
                // The window is one millisecond, which can't be split. Its events all have the same time, so any order is
                // sorted, and this part can be stored before the rest is fetched.
                self.check_room(found.new.events.len())?;
                self.commit(std::mem::take(&mut found.new), |_| {}).await?;
            }
        }
        found.new.events.sort_by_key(|event| event.at);
        Ok(Window::Complete(found.new))
    }

    /// Takes the events of a page, and returns what it says beside them. `None` where the window holds more than fits into
    /// memory, and can be split.
    async fn take(
        &self,
        pieces: &mut Pieces,
        window: Range<i64>,
        found: &mut Found,
    ) -> Result<Option<Answer>, RoundError> {
        let can_be_split = window.end - window.start > SHORTEST_WINDOW.num_milliseconds();
        let mut elements = 0;
        loop {
            let piece = tokio::select! {
                () = self.place.stopped() => return Err(RoundError::Stopped),
                piece = pieces.next() => piece?,
            };
            let Some(piece) = piece else { return Ok(Some(pieces.rest()?)) };
            let Elements::<'_, RECORDS_MAX>(events) = piece.parse()?;
            elements += events.len();
            if elements > RECORDS_MAX {
                return Err(piece.too_many(RECORDS_MAX).into());
            }
            for event in events {
                let Some(event) = self.event(event, &piece, &window) else { continue };
                let known = (found.seen.insert(&event.mark, event.at), self.place.memory.taken.knows(&event.mark));
                let (oddity, is_new) = match known {
                    (Known::Yes, _) | (_, Known::Yes) => continue,
                    (Known::No, Known::No) => (event.oddity, true),
                    (_, Known::Other) if self.place.memory.taken.time_of(&event.mark) == Some(event.at) => {
                        (Some(CHANGED), false)
                    }
                    _ => (Some(SAME_ID), true),
                };
                if let Some(oddity) = oddity {
                    self.report.odd_event(&piece.malformed(oddity));
                }
                if !is_new {
                    continue;
                }
                found.new.push(event);
            }
            if can_be_split && found.new.are_too_many() {
                return Ok(None);
            }
        }
    }

    async fn page(&self, start: i64, end: i64, key: Option<&str>) -> Result<(Pieces, usize), RoundError> {
        let (from, to) = (rfc3339(start.saturating_sub(1)), rfc3339(end.saturating_add(1)));
        let mut query = vec![("organizationId", &*self.organization), ("from", &*from), ("to", &*to)];
        query.extend(key.map(|key| ("offset", key)));
        let (path, max_event_bytes) = (["audit", "events"], self.limits.max_event_bytes);
        let page = self.api.page_in_pieces(Endpoint::AuditEvents, &path, &query, &self.page_size, max_event_bytes);
        tokio::select! {
            () = self.place.stopped() => Err(RoundError::Stopped),
            page = page => Ok(page?),
        }
    }

    /// The event, if its time is in this window.
    fn event(&self, event: &RawValue, piece: &Answer, window: &Range<i64>) -> Option<New> {
        let mut line = stored(event, ID_AND_TIME, &self.limits);
        line.replaced = piece.replaced_in(event);
        let [id, timestamp] = members(json_of(line.json()), ID_AND_TIME);
        let others = line.other_limits(event, &self.limits, &self.former_limits);
        let others = others.map(|limits| stored(event, ID_AND_TIME, &limits));
        let mark = Mark::new(&[], id, line.json()).or(&[], &line, others);
        let (at, oddity) = match timestamp.and_then(millis) {
            Some(at) => (window.contains(&at).then_some(at)?, None),
            // An event without a time is remembered until its window is no longer asked for.
            None => (window.end, Some("an event has no timestamp in RFC 3339; it is stored all the same")),
        };
        let oddity = piece.oddity_of(event).or(oddity);
        Some(New { at, mark, line, oddity })
    }

    /// Whether `events` more can be remembered; else they have to wait until older ones are no longer asked for.
    fn check_room(&self, events: usize) -> Result<(), PlaceError> {
        match self.place.memory.taken.len() + events > TAKEN_MAX {
            true => Err(PlaceError::Crowded { events: TAKEN_MAX }),
            false => Ok(()),
        }
    }

    /// Stores `new`, and then the memory with them and `change`; in pieces, so that no append is larger than the spool.
    async fn commit(&mut self, new: NewEvents, change: impl FnOnce(&mut AuditMemory)) -> Result<(), RoundError> {
        let (mut lines, mut records) = (Vec::with_capacity(new.bytes.min(WINDOW_MAX_BYTES)), 0);
        // It may be too large to be there twice. Only the end of the process keeps it from coming back.
        let mut memory = std::mem::take(&mut self.place.memory);
        for event in new.events {
            if lines.len() + event.line.bytes.len() > WINDOW_MAX_BYTES && records > 0 {
                self.store(std::mem::take(&mut lines), std::mem::take(&mut records), memory).await?;
                memory = std::mem::take(&mut self.place.memory);
            }
            memory.taken.insert(&event.mark, event.at);
            lines.extend_from_slice(&event.line.bytes);
            records += 1;
            self.report.line(&event.line);
        }
        change(&mut memory);
        self.store(lines, records, memory).await
    }

    async fn store(&mut self, lines: Vec<u8>, records: u64, memory: AuditMemory) -> Result<(), RoundError> {
        let report = &self.report;
        self.place.commit(Bytes::from(lines), records, memory, |reason| report.waiting(reason)).await?;
        self.report.pulled(records);
        Ok(())
    }
}
