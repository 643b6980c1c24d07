//! What env0 keeps, fetched with an API key: audit events and the step logs of deployments.
//!
//! ```text
//! env0's API ─► api ─► audits ─► place ─► spool ─► flusher …
//! ```
//!
//! [`api`] asks, `audits` decides what is new, `place` brings it into the spool and remembers durably how far that
//! came. A start first compares the places with what a crash left in the spool ([`settle`]).

pub mod api;
mod audits;
mod identity;
mod line;
mod place;
mod report;
pub mod settle;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::batch::LogType;
use crate::config::{self, Config};
use crate::network::Network;
use crate::protocols::body::Limits;
use crate::pull::api::{Answer, Api, ApiError, Endpoint};
use crate::pull::audits::{AuditMemory, Audits, RoundError};
use crate::pull::place::{Place, Shared, Stopped};
use crate::pull::report::Report;
use crate::pull::settle::Settled;
use crate::spool::Spool;
use crate::status::PullStatus;

/// How long a stop waits for what is being written.
const STOP_WAIT: Duration = Duration::from_secs(3);

/// The running pulls.
#[derive(Clone)]
pub struct Puller {
    reports: Arc<Mutex<Vec<Arc<Report>>>>,
    stop: CancellationToken,
    tasks: Arc<tokio::sync::Mutex<JoinSet<()>>>,
}

/// What every pull needs.
#[derive(Clone)]
struct Parts {
    api: Api,
    pull: config::Pull,
    limits: Limits,
    spool: Spool,
    settled: Settled,
    reports: Arc<Mutex<Vec<Arc<Report>>>>,
    shared: [Shared; 2],
    stop: CancellationToken,
    started_at: DateTime<Utc>,
}

impl Puller {
    /// Starts to pull; returns at once.
    ///
    /// # Errors
    /// The API's address can't be used.
    pub fn start(
        config: &Config,
        pull: &config::Pull,
        network: &Network,
        spool: &Spool,
        settled: Settled,
    ) -> Result<Puller, String> {
        let stop = CancellationToken::new();
        let shared = || Shared { one_at_a_time: Arc::default(), stop: stop.clone() };
        let parts = Parts {
            api: Api::new(pull, network)?,
            pull: pull.clone(),
            limits: Limits {
                max_body_bytes: usize::MAX,
                max_lines_bytes: usize::MAX,
                max_event_bytes: config.max_event_bytes,
                redact: config.redact,
            },
            spool: spool.clone(),
            settled,
            reports: Arc::default(),
            shared: [shared(), shared()],
            stop: stop.clone(),
            started_at: Utc::now(),
        };
        let reports = parts.reports.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(parts.run());
        Ok(Puller { reports, stop, tasks: Arc::new(tokio::sync::Mutex::new(tasks)) })
    }

    /// What each pull tells of itself.
    pub fn status(&self) -> Vec<PullStatus> {
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.iter().map(|report| report.status()).collect()
    }

    /// Ends the pulls; what is being appended is first written to the end, or else found by the next start.
    pub async fn stop(&self) {
        self.stop.cancel();
        let ended = async { while self.tasks.lock().await.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(STOP_WAIT, ended).await;
    }
}

impl Parts {
    async fn run(self) {
        let Ok(organizations) = self.organizations().await else { return };
        self.settled.wait().await;
        let mut pulls = JoinSet::new();
        for organization in &organizations {
            for log_type in &self.pull.types {
                let report = Report::new(*log_type, organization);
                self.reports.lock().unwrap_or_else(PoisonError::into_inner).push(report.clone());
                if *log_type == LogType::Audits {
                    pulls.spawn(self.clone().audits(organization.clone(), report));
                }
            }
        }
        while pulls.join_next().await.is_some() {}
    }

    /// The configured organizations, or those that the key sees.
    async fn organizations(&self) -> Result<Vec<String>, Stopped> {
        if !self.pull.organization_ids.is_empty() {
            return Ok(self.pull.organization_ids.clone());
        }
        let reports: Vec<_> = self.pull.types.iter().map(|log_type| Report::new(*log_type, "")).collect();
        *self.reports.lock().unwrap_or_else(PoisonError::into_inner) = reports.clone();
        let mut ticks = ticks(self.pull.interval);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return Err(Stopped),
                _ = ticks.tick() => {}
            }
            let organizations = tokio::select! {
                () = self.stop.cancelled() => return Err(Stopped),
                organizations = organizations(&self.api) => organizations,
            };
            match organizations {
                Ok(organizations) => {
                    reports.iter().for_each(|report| report.succeeded(Duration::ZERO));
                    self.reports.lock().unwrap_or_else(PoisonError::into_inner).clear();
                    return Ok(organizations);
                }
                Err(error) => reports.iter().for_each(|report| report.failed(&error)),
            }
        }
    }

    async fn audits(self, organization: String, report: Arc<Report>) {
        let from = self.pull.from.unwrap_or(self.started_at.min(self.api.now()));
        let shared = self.shared[LogType::Audits.index()].clone();
        let first = AuditMemory::beginning(from);
        let mut ticks = ticks(self.pull.interval);
        let place = loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            match Place::open(&self.spool, LogType::Audits, &organization, shared.clone(), first.clone()).await {
                Ok(place) => break place,
                Err(error) => report.unusable(&error),
            }
        };
        let mut audits = Audits::new(self.api.clone(), self.limits, place, report.clone());
        ticks.reset_immediately();
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let started = Instant::now();
            match audits.round().await {
                Ok(()) => report.succeeded(started.elapsed()),
                Err(RoundError::Api(error)) => report.failed(&error),
                Err(RoundError::Stopped) => return,
            }
        }
    }
}

fn ticks(interval: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

#[derive(Deserialize)]
struct Organization {
    id: String,
}

/// The organizations that the key sees.
///
/// # Errors
/// The request's; an answer with none, or with an id that can't be one.
pub async fn organizations(api: &Api) -> Result<Vec<String>, ApiError> {
    let answer: Answer = api.get(Endpoint::Organizations, &["organizations"], &[]).await?;
    let organizations: Vec<Organization> = answer.parse()?;
    if organizations.is_empty() {
        return Err(answer.malformed("it holds no organization, so the key sees none"));
    }
    let ids: Vec<String> = organizations.into_iter().map(|organization| organization.id).collect();
    let is_id = |id: &String| {
        !id.is_empty()
            && id.len() <= 64
            && id.bytes().all(|byte| byte == b'-' || byte == b'_' || byte.is_ascii_alphanumeric())
    };
    match ids.iter().all(is_id) {
        true => Ok(ids),
        false => Err(answer.malformed("the id of an organization is none")),
    }
}
