//! One deployment in one round: every step's log from where it was left, and the line that ends it.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot};

use crate::protocols::body::{Limits, members};
use crate::pull::api::{Api, ApiError, Endpoint, ErrorKind};
use crate::pull::deployments::memory::{EVENT_STEP_DEPLOYMENT, Following, Step, finished_id};
use crate::pull::deployments::records::{LogPage, StepRecord, last_attempts};
use crate::pull::identity::Identity;
use crate::pull::line::{Line, stored};
use crate::pull::report::Report;

/// A longer page comes into the spool in pieces of this size.
const PIECE_BYTES: usize = 512 * 1024;
/// Events at the end of a page that may come again at the beginning of the next, beside those of the last one's time.
const PAGE_END_EVENTS: usize = 128;
/// Pages of one step in one round that bring nothing new: then env0's cursor leads nowhere.
const EMPTY_PAGES_MAX: usize = 10;

/// What is to come into the spool of one deployment, and what is to be remembered with it.
pub(super) struct Piece {
    pub(super) id: String,
    pub(super) lines: Bytes,
    pub(super) records: u64,
    pub(super) state: Following,
    /// Told when all of it is durable.
    pub(super) written: oneshot::Sender<()>,
}

/// A deployment that is being read.
pub(super) struct Follow {
    pub(super) api: Api,
    pub(super) organization: String,
    pub(super) limits: Limits,
    pub(super) report: Arc<Report>,
    pub(super) pieces: mpsc::Sender<Piece>,
    pub(super) id: String,
    pub(super) state: Following,
    /// What its last line says, when it had ended before its logs were asked for.
    pub(super) outcome: Option<String>,
}

/// What became of a log whose step was tried again.
enum Retry {
    /// It is known from where to read on.
    Known,
    /// The new attempt has written nothing yet.
    Silent,
    /// The process is about to end.
    Stopped,
}

impl Follow {
    /// Reads all that is new.
    pub(super) async fn run(mut self) -> Result<(), ApiError> {
        let path = ["deployments", &*self.id.clone(), "steps"].map(str::to_owned);
        let path = path.each_ref().map(|part| &**part);
        let steps: Vec<StepRecord> = match self.api.get(Endpoint::Steps, &path, &[]).await {
            Ok(answer) => last_attempts(answer.parse()?),
            Err(error) if error.kind == ErrorKind::Gone => {
                self.report.gone(&self.id, &error);
                self.outcome.get_or_insert_with(|| "\"status\":\"GONE\"".to_owned());
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        for step in &steps {
            let retried = self
                .state
                .steps
                .get(&step.name)
                .is_some_and(|read| read.attempt.as_ref().is_some_and(|attempt| *attempt != step.attempt()));
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
            // Once more when the deployment has ended, for what came behind the step's own end.
            if step.has_not_started() || (is_read && ended && self.outcome.is_none()) {
                continue;
            }
            match self.read(step, ended).await {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                // It has not started, whatever its status says.
                Err(error) if error.kind == ErrorKind::Refused(400) => {}
                Err(error) if error.kind == ErrorKind::Gone => self.report.gone(&self.id, &error),
                Err(error) => return Err(error),
            }
        }
        let Some(outcome) = self.outcome.take() else { return Ok(()) };
        let (line, records) = match self.state.finished {
            // A crash left it in the spool.
            true => (Bytes::new(), 0),
            false => (self.last_line(&outcome), 1),
        };
        self.state.finished = true;
        self.send(line, records).await;
        Ok(())
    }

    /// Another attempt at a step may go on in its log, or begin it anew: its first event tells.
    async fn take_up_retry(&mut self, step: &StepRecord) -> Result<Retry, ApiError> {
        let id = self.id.clone();
        let path = ["deployments", &*id, "steps", &*step.name, "log"];
        let answer = self.api.get(Endpoint::StepLog, &path, &[]).await?;
        let page: LogPage<'_> = answer.parse()?;
        let first = page.events.first().and_then(|event| self.line(event, &step.name));
        let Some(first) = first.map(|line| Identity::new(&[], None, line.json())) else { return Ok(Retry::Silent) };
        let read = self.state.steps.entry(step.name.clone()).or_default();
        if read.first.is_some_and(|known| known != first) {
            *read = Step::restarted();
        }
        read.ended = false;
        read.attempt = Some(step.attempt());
        // Durable before the first line, which a start has to tell from those of the attempt before.
        Ok(if self.send(Bytes::new(), 0).await { Retry::Known } else { Retry::Stopped })
    }

    /// Reads a step's log from where it was left. False when the process is about to end.
    async fn read(&mut self, step: &StepRecord, ended: bool) -> Result<bool, ApiError> {
        let mut empty_pages = 0;
        loop {
            let start = self.state.steps.get(&step.name).and_then(|read| read.next.clone());
            let id = self.id.clone();
            let path = ["deployments", &*id, "steps", &*step.name, "log"];
            let query: Vec<(&str, &str)> = start.iter().map(|start| ("startTime", &**start)).collect();
            let answer = self.api.get(Endpoint::StepLog, &path, &query).await?;
            let page: LogPage<'_> = answer.parse()?;
            let (mut lines, mut records, mut new) = (Vec::new(), 0, false);
            let read = self.state.steps.entry(step.name.clone()).or_default();
            read.attempt.get_or_insert_with(|| step.attempt());
            let mut identities = Vec::with_capacity(page.events.len());
            for event in &page.events {
                let Some(line) = self.line(event, &step.name) else {
                    self.report.refused_event(&answer.malformed("an event of a log is not an object"));
                    continue;
                };
                let read = self.state.steps.entry(step.name.clone()).or_default();
                read.first.get_or_insert_with(|| Identity::new(&[], None, line.json()));
                let identity = read.identity(&self.id, &step.name, line.json());
                let [time] = members(event, ["timestamp"]);
                identities.push((identity, time.map(RawValue::get)));
                if !read.take(identity) {
                    continue;
                }
                self.report.line(&line);
                lines.extend_from_slice(&line.bytes);
                records += 1;
                new = true;
                if lines.len() >= PIECE_BYTES {
                    let piece = std::mem::take(&mut lines);
                    if !self.send(piece.into(), std::mem::take(&mut records)).await {
                        return Ok(false);
                    }
                }
            }
            let read = self.state.steps.entry(step.name.clone()).or_default();
            let moved = read.go_on(page.next(), &page_end(&identities));
            empty_pages = if new { 0 } else { empty_pages + 1 };
            let more = page.has_more_logs && (moved || new) && empty_pages < EMPTY_PAGES_MAX;
            let first_end = !more && ended && !std::mem::replace(&mut read.ended, ended);
            if (records > 0 || moved || first_end) && !self.send(lines.into(), records).await {
                return Ok(false);
            }
            if !more {
                return Ok(true);
            }
        }
    }

    /// The event's own members as they were sent, then those of ours that it lacks.
    fn line(&self, event: &RawValue, step: &str) -> Option<Line> {
        let inner = event.get().strip_prefix('{')?.strip_suffix('}')?;
        let own = [
            ("deploymentLogId", Some(&*self.id)),
            ("stepName", Some(step)),
            ("environmentId", Some(&*self.state.environment_id)),
            ("environmentName", self.state.environment_name.as_deref()),
            ("projectId", self.state.project_id.as_deref()),
            ("organizationId", Some(&*self.organization)),
            ("deploymentType", self.state.kind.as_deref()),
        ];
        let has = members(event, own.map(|(name, _)| name));
        let mut line = format!("{{{inner}");
        let mut empty = inner.trim_ascii().is_empty();
        for ((name, value), _) in own.into_iter().zip(has).filter(|(_, has)| has.is_none()) {
            let Some(value) = value else { continue };
            line += &format!("{}\"{name}\":{}", if empty { "" } else { "," }, Value::from(value));
            empty = false;
        }
        line.push('}');
        let line = RawValue::from_string(line).ok()?;
        stored(&line, EVENT_STEP_DEPLOYMENT, &self.limits)
    }

    /// How the deployment ended.
    fn last_line(&self, outcome: &str) -> Bytes {
        let mut line = format!("{{\"eventId\":{}", Value::from(finished_id(&self.id)));
        for (name, value) in [
            ("deploymentLogId", Some(&*self.id)),
            ("environmentId", Some(&*self.state.environment_id)),
            ("environmentName", self.state.environment_name.as_deref()),
            ("projectId", self.state.project_id.as_deref()),
            ("organizationId", Some(&*self.organization)),
            ("deploymentType", self.state.kind.as_deref()),
        ] {
            if let Some(value) = value {
                line += &format!(",\"{name}\":{}", Value::from(value));
            }
        }
        line += &format!(",{outcome}}}\n");
        line.into()
    }

    /// Waits until all of it is durable. False when the process is about to end.
    async fn send(&self, lines: Bytes, records: u64) -> bool {
        let (written, durable) = oneshot::channel();
        let piece = Piece { id: self.id.clone(), lines, records, state: self.state.clone(), written };
        self.pieces.send(piece).await.is_ok() && durable.await.is_ok()
    }
}

/// Of a page's events, with their times, those that the next page may begin with.
fn page_end(events: &[(Identity, Option<&str>)]) -> Vec<Identity> {
    let last_time = events.last().and_then(|(_, time)| *time);
    let near = events.len().saturating_sub(PAGE_END_EVENTS);
    let is_end = |(index, (_, time)): &(usize, &(Identity, Option<&str>))| {
        *index >= near || (last_time.is_some() && *time == last_time)
    };
    events.iter().enumerate().filter(is_end).map(|(_, (identity, _))| *identity).collect()
}
