//! Reads one deployment in one round: each step's log from where the last round stopped, and at the deployment's end the
//! line that says how it ended.
//!
//! env0 may show the last lines of a log after the end of its step, so a log is read once more at least one round later.
//! It may also answer 404 for something that is back a moment later, so only a 404 that lasts means that it is gone.
//!
//! A page of a log is stored while it arrives. One that breaks off is asked for again, and what was taken of it is left out.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot};

use crate::pull::api::{Answer, Api, ApiError, EVENTS_IN_REST, Endpoint, ErrorKind, LINES_MAX, List, Pieces};
use crate::pull::deployments::memory::{Following, Step, Steps};
use crate::pull::deployments::page::Page;
use crate::pull::deployments::records::{ID_MAX_BYTES, LONG_ID, LogPage, StepRecord, last_attempts};
use crate::pull::deployments::source::Source;
use crate::pull::files::{Parts, PlaceError};
use crate::pull::identity::{Known, Mark, SAME_ID, Taken};
use crate::pull::report::Report;

/// With so many bytes of new lines a page is written to the spool as far as it was read.
const LINES_BYTES: usize = 512 * 1024;
/// After this many pages in a row without a new event, env0's cursor is taken to go in circles.
const EMPTY_PAGES_MAX: usize = 10;
/// What env0 answers 404 for counts as gone after this long; milliseconds.
const GONE_MILLIS: i64 = 15 * 60_000;
/// Lines that appear this long after an end are not waited for; milliseconds.
const LATE_LINES_MILLIS: i64 = 15 * 60_000;
/// A deployment has far fewer. What is remembered of each goes into the place.
const STEPS_MAX: usize = 1000;
/// The last line's members of a deployment that is gone, so that nobody knows how it ended.
const GONE: &str = "\"status\":\"GONE\"";

/// Lines of one deployment for the spool, and the memory that goes with them.
pub(super) struct Piece {
    pub(super) id: String,
    pub(super) lines: Bytes,
    pub(super) records: u64,
    pub(super) state: Following,
    /// Whether the deployment is stored to its end.
    pub(super) done: bool,
    /// Answered when lines and memory are durable, with the steps of `state`: they may be too large to be there twice.
    pub(super) written: oneshot::Sender<Steps>,
}

/// A deployment that is being read.
pub(super) struct Follow {
    pub(super) api: Api,
    pub(super) report: Arc<Report>,
    pub(super) pieces: mpsc::Sender<Piece>,
    pub(super) source: Source,
    pub(super) state: Following,
    /// Lines in the spool that may be this deployment's, as the place remembers them.
    pub(super) anywhere: Taken,
    /// The state that the place holds, in [`Follow::outline`].
    pub(super) durable: Following,
    pub(super) listing: Listing,
    /// The beginning of this round, in milliseconds since 1970.
    pub(super) now: i64,
    /// Readings that are closer than this to each other count as one; milliseconds.
    pub(super) apart: i64,
}

/// What the list of an environment's deployments says of one.
pub(super) enum Listing {
    Running,
    /// It had ended before its logs were asked for. Holds the members of its last line.
    Ended(String),
    /// The list doesn't hold it.
    Missing,
    /// The list was not read in this round.
    Unread,
}

impl Listing {
    pub(super) fn has_ended(&self) -> bool {
        matches!(self, Listing::Ended(_))
    }
}

/// What reading a step's log has brought.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    New,
    Nothing,
    /// The process is about to end.
    Stopped,
}

/// What the log of a retried step looks like.
enum Retry {
    /// It can be read on.
    Known,
    /// The new attempt has written nothing yet.
    Silent,
    /// The process is about to end.
    Stopped,
}

impl Follow {
    /// Takes note of how far its steps were read before.
    ///
    /// # Errors
    /// Their file can't be read.
    pub(super) async fn load(mut self, parts: Parts<Steps>) -> Result<Follow, PlaceError> {
        // Where their file could not be written, the place has them.
        if self.state.steps.is_empty()
            && let Some(steps) = parts.load(&self.source.deployment).await?
        {
            self.state.steps = steps;
        }
        self.durable = self.outline();
        Ok(self)
    }

    /// Reads everything new. False where env0 didn't give what it may give later.
    pub(super) async fn run(mut self) -> Result<bool, ApiError> {
        let path = ["deployments", &self.source.deployment, "steps"];
        let mut failed = None;
        let steps: Option<Vec<StepRecord>> = match self.api.get(Endpoint::Steps, &path, &[]).await {
            Ok(answer) => {
                let list: List<StepRecord> = answer.list()?;
                let too_many = (list.elements > STEPS_MAX).then(|| answer.malformed("there are more than 1,000 steps"));
                let (steps, long): (Vec<_>, Vec<_>) =
                    list.records.into_iter().take(STEPS_MAX).partition(|step| step.name.len() <= ID_MAX_BYTES);
                let long = long.first().map(|_| answer.malformed(LONG_ID));
                failed = list.bad.or(too_many).or(long);
                Some(last_attempts(steps))
            }
            Err(error) if error.kind == ErrorKind::Gone => {
                self.report.gone(&self.source.deployment, &error);
                None
            }
            Err(error) => return Err(error),
        };
        let mut new = false;
        for step in steps.iter().flatten() {
            match self.follow_step(step).await {
                Ok(Reading::Stopped) => return Ok(false),
                Ok(reading) => new |= reading == Reading::New,
                // The other steps are read all the same, and the deployment stays open.
                Err(error) if concerns_one_step(&error.kind) => drop(failed.get_or_insert(error)),
                Err(error) => return Err(error),
            }
        }
        let (outcome, now) = (self.end(steps.as_deref(), failed.is_none(), new), self.now);
        let is_missing = |since: Option<i64>| since.is_some_and(|since| !is_gone(since, now));
        let steps_are_there = self.state.steps.values().all(|step| !is_missing(step.gone_since));
        let all_is_there = steps_are_there && !is_missing(self.state.gone_since);
        match outcome {
            Some(outcome) => {
                // It is in the spool already where a crash came after it was written, or where a deployment came back.
                let missing = !std::mem::replace(&mut self.state.finished, true);
                let line = if missing { self.source.last_line(&outcome) } else { Bytes::new() };
                let done = self.state.given_up_at.is_none();
                self.send(line, missing.into(), done).await;
            }
            None if self.outline() != self.durable => drop(self.send_piece(Bytes::new(), 0, false).await),
            None => {}
        }
        failed.map_or(Ok(all_is_there), Err)
    }

    /// Takes note of what this round has found. Returns the members of the last line when the deployment is at its end
    /// and everything of it is stored. `steps` is `None` where env0 answered 404, `whole` is false where something could
    /// not be read, and `new` is true where there were new lines.
    fn end(&mut self, steps: Option<&[StepRecord]>, whole: bool, new: bool) -> Option<String> {
        let now = self.now;
        // What a clock has noted that was ahead says nothing.
        self.state.gone_since = self.state.gone_since.map(|since| since.min(now));
        self.state.steps_ended = steps.is_some_and(|steps| steps.iter().all(StepRecord::has_ended));
        let state = &mut self.state;
        state.gone_since = match (steps, &self.listing) {
            (None, _) => state.gone_since.or(Some(now)),
            // Nothing more comes of it, and nobody tells how it ended.
            (Some(steps), Listing::Missing) if !steps.iter().any(StepRecord::is_running) => {
                state.gone_since.or(Some(now))
            }
            (Some(_), Listing::Unread) => state.gone_since,
            (Some(_), _) => None,
        };
        if state.gone_since.is_none() {
            // It may have come back.
            state.given_up_at = None;
        }
        let whole = whole && state.steps.values().all(|step| step.gone_since.is_none_or(|since| is_gone(since, now)));
        let gone = state.gone_since.is_some_and(|since| is_gone(since, now))
            && (steps.is_none() || matches!(self.listing, Listing::Missing));
        if !whole || (steps.is_none() && !gone) || state.given_up_at.is_some() {
            return None;
        }
        if gone {
            state.given_up_at = Some(now);
        }
        let outcome = match &self.listing {
            Listing::Ended(outcome) => outcome.clone(),
            _ if gone => GONE.to_owned(),
            _ => return None,
        };
        (gone || is_settled(&mut state.read_after_end, new, now, self.apart)).then_some(outcome)
    }

    /// Reads what is new of a step's log, if there can be something.
    async fn follow_step(&mut self, step: &StepRecord) -> Result<Reading, ApiError> {
        if step.has_not_started() {
            return Ok(Reading::Nothing);
        }
        let read = self.state.steps.get(&step.name);
        let attempt = read.and_then(|read| read.attempt.as_ref());
        if attempt.is_some_and(|attempt| *attempt != step.attempt()) {
            match self.take_up_retry(step).await {
                Ok(Retry::Known) => {}
                Ok(Retry::Silent) => return Ok(Reading::Nothing),
                Ok(Retry::Stopped) => return Ok(Reading::Stopped),
                Err(error) if is_missing(&error.kind) => return Ok(self.missing(step, &error)),
                Err(error) => return Err(error),
            }
        }
        let is_read = self.state.steps.get(&step.name).is_some_and(|read| read.ended);
        // When the deployment has ended, a step that was read to its end is read again, for late lines.
        if is_read && step.has_ended() && !self.listing.has_ended() {
            return Ok(Reading::Nothing);
        }
        match self.read(step).await {
            Ok(Reading::Stopped) => Ok(Reading::Stopped),
            Ok(reading) => {
                let (now, apart) = (self.now, self.apart);
                let read = self.state.step(&step.name);
                let new = reading == Reading::New;
                read.ended = step.has_ended() && is_settled(&mut read.read_after_end, new, now, apart);
                Ok(reading)
            }
            // Where something of it was read, a 400 means that env0 refuses to go on, and what is left must not count as
            // read.
            Err(error) if error.kind == ErrorKind::Refused(400) && self.has_read(step) => Err(error),
            Err(error) if is_missing(&error.kind) => Ok(self.missing(step, &error)),
            Err(error) => Err(error),
        }
    }

    /// Takes note of a 404 or 400 for a step's log.
    fn missing(&mut self, step: &StepRecord, error: &ApiError) -> Reading {
        // A step that has never run has no log, and one that is about to begin may be refused with 400.
        let is_early = error.kind != ErrorKind::Gone && !step.has_ended();
        if self.has_read(step) || !(step.was_left_out() || is_early) {
            self.report.gone(&format!("{} {}", self.source.deployment, step.name), error);
            let read = self.state.step(&step.name);
            read.gone_since.get_or_insert(self.now);
        }
        Reading::Nothing
    }

    fn has_read(&self, step: &StepRecord) -> bool {
        self.state.steps.get(&step.name).is_some_and(|read| read.first.is_some())
    }

    /// A retried step may go on in the same log, or begin it anew. The log's first event tells which.
    async fn take_up_retry(&mut self, step: &StepRecord) -> Result<Retry, ApiError> {
        let Some(piece) = self.page(step, None).await?.next().await? else { return Ok(Retry::Silent) };
        let events: Vec<&RawValue> = piece.parse()?;
        let Some(first) = events.first() else { return Ok(Retry::Silent) };
        let event = self.source.event(first, &step.name);
        let others = self.source.other_lines(first, &step.name, &event.line);
        let first = Mark::new(&[], None, event.line.json()).or(&[], &event.line, others);
        let read = self.state.step(&step.name);
        if read.first.is_some_and(|known| !first.may_be(known)) {
            *read = Step::restarted();
        }
        (read.ended, read.read_after_end) = (false, None);
        read.attempt = Some(step.attempt());
        // This must be durable before the first line: a start has to tell that line from those of the earlier attempt.
        Ok(if self.send(Bytes::new(), 0, false).await { Retry::Known } else { Retry::Stopped })
    }

    /// The page of a step's log that begins at `start`.
    async fn page(&self, step: &StepRecord, start: Option<&str>) -> Result<Pieces, ApiError> {
        let path = ["deployments", &self.source.deployment, "steps", &step.name, "log"];
        let query = start.map(|start| ("startTime", start));
        self.api.pieces(Endpoint::StepLog, &path, query.as_slice(), self.source.limits.max_event_bytes).await
    }

    /// Reads a step's log from where it was left.
    async fn read(&mut self, step: &StepRecord) -> Result<Reading, ApiError> {
        let (mut empty_pages, mut any_new) = (0, false);
        loop {
            let start = self.state.steps.get(&step.name).and_then(|read| read.next.clone());
            let mut pieces = self.page(step, start.as_deref()).await?;
            let mut page = Page::default();
            let read = self.state.step(&step.name);
            read.attempt.get_or_insert_with(|| step.attempt());
            let rest = self.take_all(step, &mut pieces, &mut page).await;
            let Page { lines, records, new, found, end, last_time, .. } = page;
            let (next, has_more_logs) = match rest {
                Ok(Some(rest)) => rest,
                Ok(None) => return Ok(Reading::Stopped),
                Err(error) => {
                    // What came of the page counts as taken, so it has to be in the spool.
                    let is_durable = self.send_piece(lines.into(), records, false).await;
                    return if is_durable { Err(error) } else { Ok(Reading::Stopped) };
                }
            };
            let read = self.state.step(&step.name);
            let moved = read.go_on(next, end, last_time.as_deref());
            if (records > 0 || moved || found) && !self.send(lines.into(), records, false).await {
                return Ok(Reading::Stopped);
            }
            any_new |= new;
            empty_pages = if new { 0 } else { empty_pages + 1 };
            if has_more_logs && (moved || new) && empty_pages < EMPTY_PAGES_MAX {
                continue;
            }
            let now = self.now;
            let gone_since = &mut self.state.step(&step.name).gone_since;
            if has_more_logs && step.has_ended() {
                // The step doesn't count as read. The next round goes on from the last page that was named.
                if moved {
                    let missing = "page after page of an ended step's log is empty and names a next one";
                    return Err(pieces.malformed(missing));
                }
                if !is_gone(*gone_since.get_or_insert(now), now) {
                    let missing = "an ended step's log has hasMoreLogs, but no nextStartTime that leads on";
                    return Err(pieces.malformed(missing));
                }
            } else {
                *gone_since = None;
            }
            return Ok(if any_new { Reading::New } else { Reading::Nothing });
        }
    }

    /// Takes the events of a page, and returns what the next one is asked with, and whether there is more already. `None`
    /// when the process is about to end.
    async fn take_all(
        &mut self,
        step: &StepRecord,
        pieces: &mut Pieces,
        page: &mut Page,
    ) -> Result<Option<(Option<String>, bool)>, ApiError> {
        while let Some(piece) = pieces.next().await? {
            if self.state.is_full() {
                let missing = "more events than can be remembered have come without a nextStartTime that leads on";
                return Err(pieces.malformed(missing));
            }
            if !self.take(step, &piece, page).await? {
                return Ok(None);
            }
        }
        let rest = pieces.rest()?;
        let LogPage { events, next_start_time, has_more_logs } = rest.parse()?;
        if !events.is_empty() {
            return Err(rest.malformed(EVENTS_IN_REST));
        }
        Ok(Some((rest.cursor(next_start_time)?, has_more_logs)))
    }

    /// Takes the events of a piece, and waits until they are durable as often as they are many. False when the process is
    /// about to end.
    async fn take(&mut self, step: &StepRecord, piece: &Answer, page: &mut Page) -> Result<bool, ApiError> {
        let mut read = self.state.step(&step.name);
        let events: Vec<&RawValue> = piece.parse()?;
        page.events += events.len();
        if page.events > LINES_MAX {
            return Err(piece.too_many(LINES_MAX));
        }
        for sent in events {
            let mut event = self.source.event(sent, &step.name);
            event.line.replaced = piece.replaced_in(sent);
            let line = &event.line;
            let others = || self.source.other_lines(sent, &step.name, line);
            let alone = || Mark::new(&[], None, line.json()).or(&[], line, others());
            read.first.get_or_insert_with(|| alone().of_bytes());
            let scope = [&*self.source.deployment, &*step.name];
            let mark = read.mark(scope, event.id, line.json()).or(&scope, line, others());
            let time = event.timestamp.map(RawValue::get);
            let known = read.take(&mark, time);
            page.ends_with(mark, time);
            let oddity = match known {
                Known::Yes => continue,
                _ if event.names_origin && self.anywhere.knows(&alone()) == Known::Yes => {
                    page.found = true;
                    continue;
                }
                Known::No => piece.oddity_of(sent),
                Known::Other => Some(SAME_ID),
            };
            if let Some(oddity) = oddity {
                self.report.odd_event(&piece.malformed(oddity));
            }
            self.report.line(line);
            page.lines.extend_from_slice(&line.bytes);
            page.records += 1;
            page.new = true;
            if page.lines.len() >= LINES_BYTES {
                let lines = std::mem::take(&mut page.lines).into();
                if !self.send_piece(lines, std::mem::take(&mut page.records), false).await {
                    return Ok(false);
                }
                read = self.state.step(&step.name);
            }
        }
        Ok(true)
    }

    /// Waits until all of it is durable. False when the process is about to end.
    async fn send(&mut self, lines: Bytes, records: u64, done: bool) -> bool {
        self.durable = self.outline();
        self.send_piece(lines, records, done).await
    }

    /// The state without the events that were taken. These may be too large to be there twice, and each is sent with its
    /// line in any case.
    fn outline(&mut self) -> Following {
        let steps = std::mem::take(&mut self.state.steps);
        let mut outline = self.state.clone();
        outline.steps = steps.iter().map(|(name, step)| (name.clone(), step.outline())).collect();
        self.state.steps = steps;
        outline
    }

    /// [`Follow::send`] of a part of a page.
    async fn send_piece(&mut self, lines: Bytes, records: u64, done: bool) -> bool {
        let (written, durable) = oneshot::channel();
        let steps = std::mem::take(&mut self.state.steps);
        let state = Following { steps, ..self.state.clone() };
        let piece = Piece { id: self.source.deployment.clone(), lines, records, state, done, written };
        if self.pieces.send(piece).await.is_err() {
            return false;
        }
        let Ok(steps) = durable.await else { return false };
        self.state.steps = steps;
        true
    }
}

/// Whether env0 says that there is no log.
fn is_missing(kind: &ErrorKind) -> bool {
    matches!(kind, ErrorKind::Gone | ErrorKind::Refused(400))
}

/// Whether a 404 since `since` has lasted long enough.
fn is_gone(since: i64, now: i64) -> bool {
    now - since >= GONE_MILLIS
}

/// Whether a log that has ended is read whole: a reading a round after the last that brought something has brought
/// nothing. `read_at` is the time of that last one, or of the first reading after the end.
fn is_settled(read_at: &mut Option<i64>, new: bool, now: i64, apart: i64) -> bool {
    // The clock may have been set back.
    let since = read_at.map(|at| (now - at).abs());
    let settled = since.is_some_and(|since| since >= apart && (!new || since >= LATE_LINES_MILLIS));
    if !settled && (new || read_at.is_none()) {
        *read_at = Some(now);
    }
    settled
}

/// Whether the request may succeed for another step of the same deployment.
fn concerns_one_step(kind: &ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Refused(_)
            | ErrorKind::Server(_)
            | ErrorKind::NotEnv0 { .. }
            | ErrorKind::TooLarge
            | ErrorKind::Malformed(_)
    )
}
