//! Reads one deployment in one round: each step's log from where the last round stopped, and at the deployment's end the
//! line that says how it ended.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot};

use crate::protocols::body::Limits;
use crate::pull::api::{Answer, Api, ApiError, Endpoint, ErrorKind};
use crate::pull::deployments::memory::{Following, Step};
use crate::pull::deployments::records::{LogPage, StepRecord, last_attempts};
use crate::pull::deployments::source::Source;
use crate::pull::identity::Identity;
use crate::pull::report::Report;

/// A page with more bytes is written to the spool in pieces of this size.
const PIECE_BYTES: usize = 512 * 1024;
/// The next page may repeat the end of this one: this many events, and all with the time of the last one.
const PAGE_END_EVENTS: usize = 128;
/// After this many pages in a row without a new event, env0's cursor is taken to go in circles.
const EMPTY_PAGES_MAX: usize = 10;

/// Lines of one deployment for the spool, and the memory that goes with them.
pub(super) struct Piece {
    pub(super) id: String,
    pub(super) lines: Bytes,
    pub(super) records: u64,
    pub(super) state: Following,
    /// Answered when lines and memory are durable.
    pub(super) written: oneshot::Sender<()>,
}

/// A deployment that is being read.
pub(super) struct Follow {
    pub(super) api: Api,
    pub(super) limits: Limits,
    pub(super) report: Arc<Report>,
    pub(super) pieces: mpsc::Sender<Piece>,
    pub(super) source: Source,
    pub(super) state: Following,
    /// The members of its last line, if it had ended before its logs were asked for.
    pub(super) outcome: Option<String>,
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
    /// Reads everything new.
    pub(super) async fn run(mut self) -> Result<(), ApiError> {
        let path = ["deployments", &self.source.deployment, "steps"];
        let steps: Vec<StepRecord> = match self.api.get(Endpoint::Steps, &path, &[]).await {
            Ok(answer) => last_attempts(answer.parse()?),
            Err(error) if error.kind == ErrorKind::Gone => {
                self.report.gone(&self.source.deployment, &error);
                self.outcome.get_or_insert_with(|| "\"status\":\"GONE\"".to_owned());
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        // Of a step that can't be read to its end. The others are read all the same, and the deployment stays open.
        let mut failed = None;
        for step in &steps {
            let read = self.state.steps.get(&step.name);
            let attempt = read.and_then(|read| read.attempt.as_ref());
            let retried = attempt.is_some_and(|attempt| *attempt != step.attempt());
            if retried && !step.has_not_started() {
                match self.take_up_retry(step).await {
                    Ok(Retry::Known) => {}
                    Ok(Retry::Silent) => continue,
                    Ok(Retry::Stopped) => return Ok(()),
                    Err(error) if matches!(error.kind, ErrorKind::Refused(400) | ErrorKind::Gone) => continue,
                    Err(error) => return Err(error),
                }
            }
            let is_read = self.state.steps.get(&step.name).is_some_and(|read| read.ended);
            let ended = !step.is_running();
            // When the deployment has ended, a step that was read to its end is read once more, for late lines.
            if step.has_not_started() || (is_read && ended && self.outcome.is_none()) {
                continue;
            }
            match self.read(step, ended).await {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                // A 400 means that the step has not started, even if its status says otherwise. Where something of it was
                // read, env0 refuses to go on, and what is left must not count as read.
                Err(error) if error.kind == ErrorKind::Refused(400) && !self.has_read(step) => {}
                Err(error) if error.kind == ErrorKind::Gone => self.report.gone(&self.source.deployment, &error),
                Err(error) if matches!(error.kind, ErrorKind::Refused(400) | ErrorKind::Malformed(_)) => {
                    failed.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let Some(outcome) = self.outcome.take() else { return Ok(()) };
        let (line, records) = match self.state.finished {
            // The line is in the spool already: a crash came after it was written.
            true => (Bytes::new(), 0),
            false => (self.source.last_line(&outcome), 1),
        };
        self.state.finished = true;
        self.send(line, records).await;
        Ok(())
    }

    fn has_read(&self, step: &StepRecord) -> bool {
        self.state.steps.get(&step.name).is_some_and(|read| read.first.is_some())
    }

    /// A retried step may go on in the same log, or begin it anew. The log's first event tells which.
    async fn take_up_retry(&mut self, step: &StepRecord) -> Result<Retry, ApiError> {
        let answer = self.page(step, None).await?;
        let page: LogPage<'_> = answer.parse()?;
        let first = page.events.first().and_then(|event| self.source.event(event, &step.name, &self.limits));
        let Some(first) = first else { return Ok(Retry::Silent) };
        let first = Identity::new(&[], None, first.line.json());
        let read = self.state.steps.entry(step.name.clone()).or_default();
        if read.first.is_some_and(|known| known != first) {
            *read = Step::restarted();
        }
        read.ended = false;
        read.attempt = Some(step.attempt());
        // This must be durable before the first line: a start has to tell that line from those of the earlier attempt.
        Ok(if self.send(Bytes::new(), 0).await { Retry::Known } else { Retry::Stopped })
    }

    /// The page of a step's log that begins at `start`.
    async fn page(&self, step: &StepRecord, start: Option<&str>) -> Result<Answer, ApiError> {
        let path = ["deployments", &self.source.deployment, "steps", &step.name, "log"];
        let query = start.map(|start| ("startTime", start));
        self.api.get(Endpoint::StepLog, &path, query.as_slice()).await
    }

    /// Reads a step's log from where it was left. False when the process is about to end.
    async fn read(&mut self, step: &StepRecord, ended: bool) -> Result<bool, ApiError> {
        let mut empty_pages = 0;
        loop {
            let start = self.state.steps.get(&step.name).and_then(|read| read.next.clone());
            let answer = self.page(step, start.as_deref()).await?;
            let page: LogPage<'_> = answer.parse()?;
            let (mut lines, mut records, mut new) = (Vec::new(), 0, false);
            let mut identities = Vec::with_capacity(page.events.len());
            let mut read = self.state.steps.entry(step.name.clone()).or_default();
            read.attempt.get_or_insert_with(|| step.attempt());
            for event in &page.events {
                let Some(event) = self.source.event(event, &step.name, &self.limits) else {
                    self.report.refused_event(&answer.malformed("an event of a log is not an object"));
                    continue;
                };
                let line = &event.line;
                read.first.get_or_insert_with(|| Identity::new(&[], None, line.json()));
                let identity = read.identity([&self.source.deployment, &step.name], event.id(), line.json());
                identities.push((identity, event.timestamp.map(RawValue::get)));
                if !read.take(identity) {
                    continue;
                }
                self.report.line(line);
                lines.extend_from_slice(&line.bytes);
                records += 1;
                new = true;
                if lines.len() >= PIECE_BYTES {
                    let piece = std::mem::take(&mut lines);
                    if !self.send(piece.into(), std::mem::take(&mut records)).await {
                        return Ok(false);
                    }
                    read = self.state.steps.entry(step.name.clone()).or_default();
                }
            }
            let moved = read.go_on(page.next(), &page_end(&identities));
            empty_pages = if new { 0 } else { empty_pages + 1 };
            let more = page.has_more_logs && (moved || new) && empty_pages < EMPTY_PAGES_MAX;
            // Pages that bring nothing and lead on: the next round goes on from there.
            let leads_on = !more && page.has_more_logs && moved;
            let first_end = !more && !leads_on && ended && !std::mem::replace(&mut read.ended, ended);
            if (records > 0 || moved || first_end) && !self.send(lines.into(), records).await {
                return Ok(false);
            }
            if leads_on && ended {
                return Err(answer.malformed("page after page of an ended step's log is empty and names a next one"));
            }
            if !more {
                return Ok(true);
            }
        }
    }

    /// Waits until all of it is durable. False when the process is about to end.
    async fn send(&self, lines: Bytes, records: u64) -> bool {
        let (written, durable) = oneshot::channel();
        let piece = Piece { id: self.source.deployment.clone(), lines, records, state: self.state.clone(), written };
        self.pieces.send(piece).await.is_ok() && durable.await.is_ok()
    }
}

/// The events of a page (with their times) that the next page may repeat.
fn page_end(events: &[(Identity, Option<&str>)]) -> Vec<Identity> {
    let last_time = events.last().and_then(|(_, time)| *time);
    let near = events.len().saturating_sub(PAGE_END_EVENTS);
    let is_end = |(index, (_, time)): &(usize, &(Identity, Option<&str>))| {
        *index >= near || (last_time.is_some() && *time == last_time)
    };
    events.iter().enumerate().filter(is_end).map(|(_, (identity, _))| *identity).collect()
}
