//! What one pull reports: its status, its metrics, and a log line once per change of state.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::batch::LogType;
use crate::metric_table;
use crate::pull::api::ApiError;
use crate::pull::begun::too_late;
use crate::pull::line::Line;
use crate::status::{PullStatus, Timestamp, Trouble};

/// After this many things that are gone no other is logged, and they are only counted.
const GONE_TOLD_MAX: usize = 1000;

/// The report of one log type's pull from one organization.
pub(super) struct Report {
    log_type: LogType,
    organization: String,
    state: Mutex<State>,
    pulled: metrics::Counter,
    redacted: metrics::Counter,
    replaced: metrics::Counter,
}

struct State {
    status: PullStatus,
    /// The kind of trouble that was logged last, so that it is logged once.
    told: Option<&'static str>,
    /// What was logged as gone, up to [`GONE_TOLD_MAX`].
    gone: BTreeSet<String>,
}

impl Report {
    pub(super) fn new(log_type: LogType, organization: &str) -> Arc<Report> {
        let status = PullStatus {
            log_type,
            organization: organization.to_owned(),
            position: None,
            looked_at_all_since: None,
            events_pulled: 0,
            events_cut: 0,
            events_odd: 0,
            notice: None,
            gone: 0,
            last_round: None,
            last_round_millis: 0,
            error: None,
        };
        let label = log_type.as_str();
        Arc::new(Report {
            log_type,
            organization: organization.to_owned(),
            state: Mutex::new(State { status, told: None, gone: BTreeSet::new() }),
            pulled: metrics::counter!(metric_table::PULLED_EVENTS, "type" => label),
            redacted: metrics::counter!(metric_table::EVENTS_REDACTED, "type" => label),
            replaced: metrics::counter!(metric_table::REPLACED_BYTES, "type" => label),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn status(&self) -> PullStatus {
        self.state().status.clone()
    }

    /// Everything before `millis` since 1970 is in the spool.
    pub(super) fn position(&self, millis: i64) {
        self.state().status.position = DateTime::from_timestamp_millis(millis).map(Timestamp);
    }

    /// Since `millis` every environment's deployments were listed.
    pub(super) fn looked_at_all(&self, millis: i64) {
        self.state().status.looked_at_all_since = DateTime::from_timestamp_millis(millis).map(Timestamp);
    }

    /// `events` more are in the spool.
    pub(super) fn pulled(&self, events: u64) {
        self.pulled.increment(events);
        self.state().status.events_pulled += events;
    }

    /// Takes note of a line that is about to be stored.
    pub(super) fn line(&self, line: &Line) {
        self.redacted.increment(line.redacted);
        self.replaced.increment(line.replaced);
        if line.cut && count(&mut self.state().status.events_cut) {
            tracing::error!(log_type = %self.log_type, organization = self.organization, "an event of env0's is larger than ENV0_S3_LOG_MAX_EVENT_BYTES: its beginning is stored, with its size as cutFromBytes; further ones are counted in /status (events_cut)");
        }
    }

    /// An event that is stored although it is not what env0 documents.
    pub(super) fn odd_event(&self, error: &ApiError) {
        if count(&mut self.state().status.events_odd) {
            tracing::error!(log_type = %self.log_type, organization = self.organization, "{error}; further ones are counted in /status (events_odd)");
        }
    }

    /// The pull began at `began`, in milliseconds since 1970. Told where it is `wanted` from an earlier time now.
    pub(super) fn begun(&self, began: Option<i64>, wanted: Option<DateTime<Utc>>) {
        let place = format!("{}_{}", self.log_type, self.organization);
        if let Some((told, remedy)) = wanted.and_then(|wanted| too_late(&place, began, wanted)) {
            tracing::warn!(log_type = %self.log_type, organization = self.organization, remedy, "{told}");
        }
    }

    /// Whether it is the report of a pull from `organization`.
    pub(super) fn is_of(&self, organization: &str) -> bool {
        self.organization == organization
    }

    /// The place is ahead of the clock, or was. Told once in the log.
    pub(super) fn ahead(&self, what: &str) {
        let is_new = self.state().status.notice.is_none();
        self.notice(
            &format!("the place of the pull was ahead of the clock: {what}; see config/README.md#pull-behind"),
            is_new,
        );
    }

    /// What a person should know although rounds succeed. It stays in the status until the process ends.
    pub(super) fn notice(&self, what: &str, is_logged: bool) {
        if is_logged {
            tracing::error!(log_type = %self.log_type, organization = self.organization, "{what}");
        }
        self.state().status.notice = Some(what.to_owned());
    }

    /// env0 answers 404 for an environment, a deployment or a step.
    pub(super) fn gone(&self, id: &str, error: &ApiError) {
        let mut state = self.state();
        if state.gone.contains(id) || state.gone.len() >= GONE_TOLD_MAX {
            return;
        }
        state.gone.insert(id.to_owned());
        state.status.gone += 1;
        let last = if state.gone.len() == GONE_TOLD_MAX { "; no other is told from here on" } else { "" };
        tracing::warn!(log_type = %self.log_type, organization = self.organization, env0.id = id, "{error}; it is asked for again for 15 minutes before it counts as gone, and the rest goes on{last}");
    }

    /// The spool doesn't take what was pulled, for now.
    pub(super) fn waiting(&self, reason: &str) {
        self.trouble(
            "spool",
            reason.to_owned(),
            "see config/README.md#spool-high and config/README.md#disk-refuses-writes",
            false,
        );
    }

    /// The server asks that a request be repeated later. What is in trouble already was told of.
    pub(super) fn asked_to_wait(&self, error: &ApiError, wait: Duration) {
        if self.state().status.error.is_none() {
            let message = format!("{error}; the next request goes out after the {} s that it asks for", wait.as_secs());
            self.trouble("asked_to_wait", message, error.remedy(), false);
        }
    }

    /// A round has failed.
    pub(super) fn failed(&self, error: &ApiError) {
        rounds("failed").increment(1);
        self.trouble(error.as_str(), error.to_string(), error.remedy(), true);
    }

    /// A round has failed with an error that another report has logged.
    pub(super) fn failed_beside(&self, error: &ApiError) {
        self.state().told = Some(error.as_str());
        self.failed(error);
    }

    /// The pull can't begin, or its place can't be written.
    pub(super) fn unusable(&self, error: &impl ToString) {
        rounds("failed").increment(1);
        self.trouble("place", error.to_string(), "see config/README.md#pull-behind", true);
    }

    fn trouble(&self, kind: &'static str, message: String, remedy: &str, needs_a_person: bool) {
        let mut state = self.state();
        if state.told != Some(kind) {
            state.told = Some(kind);
            let (log_type, organization) = (self.log_type, &self.organization);
            match needs_a_person {
                true => {
                    tracing::error!(log_type = %log_type, organization, error.kind = kind, remedy, "the pull from env0 fails: {message}; it is tried again every interval, and nothing is skipped")
                }
                false => {
                    tracing::warn!(log_type = %log_type, organization, remedy, "the pull from env0 waits: {message}; nothing is skipped")
                }
            }
        }
        let before = state.status.error.take();
        state.status.error = Some(Trouble::now(before, message, remedy.to_owned(), Some(kind.to_owned()), None));
    }

    /// A round has brought all there was.
    pub(super) fn succeeded(&self, took: Duration) {
        rounds("succeeded").increment(1);
        let mut state = self.state();
        let first = state.status.last_round.replace(Timestamp::now()).is_none();
        let events = state.status.events_pulled;
        state.status.last_round_millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        drop(state);
        if first {
            let brought = match events {
                0 => "env0 has nothing new yet".to_owned(),
                events => format!("events stored: {events}"),
            };
            tracing::info!(log_type = %self.log_type, organization = self.organization, "the first round of the pull from env0 has succeeded: {brought}; what follows is fetched as it comes");
        }
        self.works_again();
    }

    /// Ends the trouble, if there was one.
    pub(super) fn works_again(&self) {
        let (mut state, now) = (self.state(), Timestamp::now());
        let Some(trouble) = state.status.error.take() else { return };
        state.told = None;
        tracing::info!(log_type = %self.log_type, organization = self.organization, outage.seconds = now.seconds_since(trouble.since), "the pull from env0 works again");
    }
}

/// Counts one more. True for the first: a history may hold many, and the log must not be full of them.
fn count(events: &mut u64) -> bool {
    *events += 1;
    *events == 1
}

fn rounds(outcome: &'static str) -> metrics::Counter {
    metrics::counter!(metric_table::PULL_ROUNDS, "outcome" => outcome)
}
