//! What env0 keeps, fetched with an API key: audit events and the step logs of deployments.
//!
//! ```text
//! env0's API ─► api ─► audits, deployments ─► place ─► spool ─► flusher …
//! ```
//!
//! [`api`] asks, `audits` and `deployments` decide what is new, `place` brings it into the spool and remembers durably how far that
//! came. A start first compares the places with what a crash left in the spool ([`settle`]).

mod ahead;
mod alone;
pub mod api;
mod audits;
mod begun;
mod deployments;
mod files;
mod identity;
mod line;
mod place;
mod report;
mod round;
pub mod settle;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::batch::{ByType, LogType};
use crate::config::{self, Config};
use crate::credentials::Credentials;
use crate::network::Network;
use crate::oidc::Verifier;
use crate::protocols::body::Limits;
pub use crate::pull::ahead::ahead_of;
pub use crate::pull::alone::is_pulled_by_another;
use crate::pull::api::{Answer, Api, ApiError, Endpoint, ErrorKind, List};
use crate::pull::audits::{AuditMemory, Audits};
pub use crate::pull::begun::begun_too_late;
use crate::pull::deployments::{DeploymentMemory, Deployments, EnvironmentRecord, HandOver, Lists};
use crate::pull::files::PlaceError;
use crate::pull::place::{Place, Shared};
use crate::pull::report::Report;
use crate::pull::round::{RoundError, Stopped};
use crate::pull::settle::Settled;
use crate::spool::Spool;
use crate::status::PullStatus;

/// How long a stop waits for what is being written.
const STOP_WAIT: Duration = Duration::from_secs(3);

/// At most this many of the organizations that the key sees are pulled: each takes memory, requests and a socket.
const ORGANIZATIONS_MAX: usize = 100;
/// How often the organizations that the key sees are listed again.
const ORGANIZATIONS_EVERY: Duration = Duration::from_secs(3600);
/// A start that has to read the spool for longer than this says so.
const SETTLED_SOON: Duration = Duration::from_secs(10);

/// The running pulls.
#[derive(Clone)]
pub struct Puller {
    api: Api,
    reloaded: Arc<Notify>,
    reports: Arc<Mutex<Vec<Arc<Report>>>>,
    stop: CancellationToken,
    tasks: Arc<tokio::sync::Mutex<JoinSet<()>>>,
}

/// What every pull needs.
#[derive(Clone)]
struct Parts {
    api: Api,
    /// Told of every [`Puller::reload`].
    reloaded: Arc<Notify>,
    pull: config::Pull,
    limits: Limits,
    spool: Spool,
    settled: Settled,
    reports: Arc<Mutex<Vec<Arc<Report>>>>,
    shared: ByType<Shared>,
    stop: CancellationToken,
    started_at: DateTime<Utc>,
    config: Config,
    network: Network,
    hand_over: HandOver,
}

/// The pulls that were begun. Ended when dropped.
#[derive(Default)]
struct Begun {
    organizations: BTreeSet<String>,
    signs: Vec<alone::Sign>,
    pulls: JoinSet<()>,
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
        (verifier, credentials): (&Verifier, &Credentials),
    ) -> Result<Puller, String> {
        let stop = CancellationToken::new();
        let shared = || Shared { one_at_a_time: Arc::default(), stop: stop.clone() };
        let parts = Parts {
            api: Api::new(pull, network)?,
            reloaded: Arc::default(),
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
            shared: ByType::new(|_| shared()),
            stop: stop.clone(),
            started_at: crate::batch::now(),
            config: config.clone(),
            network: network.clone(),
            hand_over: HandOver { verifier: verifier.clone(), credentials: credentials.clone() },
        };
        let (api, reloaded, reports) = (parts.api.clone(), parts.reloaded.clone(), parts.reports.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(parts.run());
        Ok(Puller { api, reloaded, reports, stop, tasks: Arc::new(tokio::sync::Mutex::new(tasks)) })
    }

    /// What each pull tells of itself.
    pub fn status(&self) -> Vec<PullStatus> {
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.iter().map(|report| report.status()).collect()
    }

    /// Reads the files of the API key again, and lists the organizations that it sees.
    pub fn reload(&self) {
        self.api.reload_key();
        self.reloaded.notify_one();
    }

    /// Ends the pulls. Waits up to 3 s for what is being written; if that is not enough, the next start finds it in the
    /// spool.
    pub async fn stop(&self) {
        self.stop.cancel();
        let ended = async { while self.tasks.lock().await.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(STOP_WAIT, ended).await;
    }
}

impl Parts {
    async fn run(mut self) {
        if self.find_beginning().await.is_err() {
            return;
        }
        let mut begun = Begun::default();
        match &self.pull.organization_ids[..] {
            [] => self.begin_seen(&mut begun).await,
            configured => configured.iter().for_each(|organization| self.begin(&mut begun, organization)),
        }
        while begun.pulls.join_next().await.is_some() {}
    }

    /// Without `ENV0_S3_LOG_PULL_FROM` a pull begins at the first start ever, also where env0 names the organization only
    /// days later.
    async fn find_beginning(&mut self) -> Result<(), Stopped> {
        let reports: Vec<_> = self.pull.types.iter().map(|log_type| self.report(*log_type, "")).collect();
        while self.pull.from.is_none() {
            let (spool, now) = (self.spool.clone(), self.started_at);
            match files::blocking(move || first_start(&spool, now)).await {
                Ok(first) => self.pull.from = Some(first),
                Err(error) => {
                    self.reports().clone_from(&reports);
                    reports.iter().for_each(|report| report.unusable(&error));
                    tokio::select! {
                        () = self.stop.cancelled() => return Err(Stopped),
                        () = tokio::time::sleep(self.pull.interval) => {}
                    }
                }
            }
        }
        reports.iter().for_each(|report| report.works_again());
        self.reports().clear();
        Ok(())
    }

    /// Begins to pull from `organization`, if that was not done before.
    fn begin(&self, begun: &mut Begun, organization: &str) {
        if !begun.organizations.insert(organization.to_owned()) {
            return;
        }
        begun.signs.push(alone::show_sign(&self.config, &self.pull, organization));
        for log_type in &self.pull.types {
            let report = self.report(*log_type, organization);
            self.reports().push(report.clone());
            begun.pulls.spawn(self.clone().pull(*log_type, organization.to_owned(), report));
        }
    }

    /// Begins to pull from each organization that the key sees. Asks every interval until env0's answer is what it
    /// documents, and then every hour: a key may be given more. Returns when the process ends.
    async fn begin_seen(&self, begun: &mut Begun) {
        let reports: Vec<_> = self.pull.types.iter().map(|log_type| self.report(*log_type, "")).collect();
        self.reports().extend(reports.iter().cloned());
        let mut is_complete = false;
        loop {
            let seen = tokio::select! {
                () = self.stop.cancelled() => return,
                seen = organizations(&self.api) => seen,
            };
            let (organizations, error) = seen.unwrap_or_else(|error| (Vec::new(), Some(error)));
            let (organizations, too_many) = followed(&self.api, organizations, &begun.organizations);
            organizations.iter().for_each(|organization| self.begin(begun, organization));
            match error.or(too_many) {
                None => {
                    is_complete = true;
                    reports.iter().for_each(|report| report.works_again());
                    self.reports().retain(|report| reports.iter().all(|done| !Arc::ptr_eq(report, done)));
                }
                Some(error) if !is_complete => {
                    reports.iter().take(1).for_each(|report| report.failed(&error));
                    // One line in the log is enough.
                    reports.iter().skip(1).for_each(|report| report.failed_beside(&error));
                }
                // The pulls that go on tell of what fails.
                Some(_) => {}
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.reloaded.notified() => {}
                () = tokio::time::sleep(if is_complete { ORGANIZATIONS_EVERY } else { self.pull.interval }) => {}
            }
        }
    }

    fn reports(&self) -> MutexGuard<'_, Vec<Arc<Report>>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A report whose position is where the pull is to begin: until it has begun, nothing behind that is stored.
    fn report(&self, log_type: LogType, organization: &str) -> Arc<Report> {
        let report = Report::new(log_type, organization);
        report.position(self.pull.from.unwrap_or(self.started_at).timestamp_millis());
        report
    }

    /// Waits until the places of the log type know what the spool holds.
    async fn settled(&self, log_type: LogType, report: &Report) -> Result<(), Stopped> {
        let late = async {
            tokio::time::sleep(SETTLED_SOON).await;
            report.waiting("what the spool holds from before the start is still being read");
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = self.stop.cancelled() => return Err(Stopped),
            () = late => {}
            _ = self.settled[log_type].wait() => {}
        }
        report.works_again();
        Ok(())
    }

    /// Pulls one log type from one organization until the process ends.
    async fn pull(self, log_type: LogType, organization: String, report: Arc<Report>) {
        if self.settled(log_type, &report).await.is_err() {
            return;
        }
        let mut ticks = ticks(self.pull.interval);
        let mut pull: Option<Pull> = None;
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let pull = match &mut pull {
                Some(pull) => pull,
                None => match self.open(log_type, &organization, &report).await {
                    Ok(opened) => pull.insert(opened),
                    Err(error) => {
                        report.unusable(&error);
                        continue;
                    }
                },
            };
            let started = Instant::now();
            let ended = match pull {
                Pull::Audits(audits) => audits.round().await.map(|()| false),
                Pull::Deployments(deployments) => deployments.round().await,
            };
            match ended {
                Ok(more) => {
                    report.succeeded(started.elapsed());
                    if more {
                        ticks.reset_immediately();
                    }
                }
                Err(RoundError::Api(error)) => report.failed(&explained(&self.api, &organization, error).await),
                Err(RoundError::Place(error)) => report.unusable(&error),
                Err(RoundError::Stopped) => return,
            }
        }
    }

    async fn open(&self, log_type: LogType, organization: &str, report: &Arc<Report>) -> Result<Pull, PlaceError> {
        // Our clock may have been ahead at the first start.
        let from = self.pull.from.unwrap_or(self.started_at).min(self.api.now());
        let shared = self.shared[log_type].clone();
        let (limits, report) = (self.limits, report.clone());
        let waiting = report.clone();
        let api = self.api.telling(move |error, wait| waiting.asked_to_wait(error, wait));
        match log_type {
            LogType::Audits => {
                let first = AuditMemory::beginning(from);
                let place = Place::open(&self.spool, log_type, organization, shared, first).await?;
                report.begun(place.memory.began, self.pull.from);
                Ok(Pull::Audits(Box::new(Audits::new(api, limits, place, report))))
            }
            LogType::Deployments => {
                let first = DeploymentMemory::beginning(from);
                let place = Place::open(&self.spool, log_type, organization, shared, first).await?;
                report.begun(place.memory.began, self.pull.from);
                let hand_over = self.hand_over(organization);
                Ok(Pull::Deployments(Box::new(Deployments::new(
                    api,
                    limits,
                    self.pull.interval,
                    place,
                    report,
                    hand_over,
                ))))
            }
        }
    }

    /// Judges tokens in the records. Without a configured subject or organization, tokens of the pulled organization are
    /// accepted.
    fn hand_over(&self, organization: &str) -> HandOver {
        if !self.config.oidc_subjects.is_empty() || !self.config.oidc_organization_ids.is_empty() {
            return self.hand_over.clone();
        }
        let config = Config { oidc_organization_ids: vec![organization.to_owned()], ..self.config.clone() };
        match Verifier::new(&config, &self.network) {
            Ok(verifier) => HandOver { verifier, ..self.hand_over.clone() },
            // This can't happen: the daemon's own verifier was made from the same settings.
            Err(_) => self.hand_over.clone(),
        }
    }
}

/// When a daemon with this spool pulled first, as far as that is known. Durable before this returns; blocks.
fn first_start(spool: &Spool, now: DateTime<Utc>) -> Result<DateTime<Utc>, PlaceError> {
    const NAME: &str = "first-start.json";
    let known: Option<FirstStart> = files::read(spool, NAME)?;
    if let Some(at) = known.and_then(|known| DateTime::from_timestamp_millis(known.at_millis)) {
        return Ok(at);
    }
    files::make_folder(spool)?;
    files::write(spool, NAME, &FirstStart { at_millis: now.timestamp_millis() }, u64::MAX)?;
    Ok(now)
}

#[derive(Serialize, Deserialize)]
struct FirstStart {
    at_millis: i64,
}

/// A 403 has three possible causes, and env0's answer is the same for all. The list of organizations that the key sees
/// tells which one it is, so that list is asked for once more.
pub async fn explained(api: &Api, organization: &str, error: ApiError) -> ApiError {
    if error.kind != ErrorKind::Forbidden {
        return error;
    }
    let kind = match organizations(api).await {
        Ok((seen, _)) if !seen.iter().any(|id| id == organization) => ErrorKind::OtherOrganization(seen.join(", ")),
        Err(ApiError { kind: ErrorKind::AllForbidden, .. }) => ErrorKind::AllForbidden,
        _ => ErrorKind::Forbidden,
    };
    error.because(kind)
}

/// A pull of either log type.
enum Pull {
    Audits(Box<Audits>),
    Deployments(Box<Deployments>),
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

/// The organizations that the key sees, and what is missing in the first record that is not an organization's.
///
/// # Errors
/// The request failed, or the key sees no organization.
pub async fn organizations(api: &Api) -> Result<(Vec<String>, Option<ApiError>), ApiError> {
    let answer = api.get(Endpoint::Organizations, &["organizations"], &[]).await;
    let answer: Answer = answer.map_err(|error| match error.kind {
        // Every role may ask for this.
        ErrorKind::Forbidden => error.because(ErrorKind::AllForbidden),
        _ => error,
    })?;
    let list: List<Organization> = answer.list()?;
    if list.elements == 0 {
        return Err(answer.malformed("it holds no organization, so the key sees none"));
    }
    let ids = config::distinct(list.records.into_iter().map(|organization| organization.id).collect());
    let (ids, odd): (Vec<String>, Vec<String>) = ids.into_iter().partition(|id| config::is_env0_id(id));
    let odd = odd.first().map(|_| answer.malformed("the id of an organization is none"));
    Ok((ids, list.bad.or(odd)))
}

/// An environment, as far as `check` looks at it.
pub struct Environment {
    /// Its id.
    pub id: String,
    /// Whether there is a deployment of it.
    pub is_deployed: bool,
}

/// The environments of an organization, as a round lists them, and how many requests that takes.
///
/// # Errors
/// A request failed, or a record is not what env0 documents.
pub async fn environments(api: &Api, organization: &str) -> Result<(Vec<Environment>, usize), ApiError> {
    let listed = Lists::new(api.clone(), organization).environments().await?;
    let environment = |record: EnvironmentRecord| Environment {
        is_deployed: record.latest_deployment_log_id.is_some(),
        id: record.id,
    };
    let all = listed.records.into_iter().map(environment).collect();
    listed.bad.map_or(Ok((all, listed.requests)), Err)
}

/// Those of the organizations that the key sees which are pulled: no more than a hundred, together with those
/// that were `begun`. The error tells of the others.
pub fn followed(api: &Api, seen: Vec<String>, begun: &BTreeSet<String>) -> (Vec<String>, Option<ApiError>) {
    let mut new: Vec<String> = seen.into_iter().filter(|id| !begun.contains(id)).collect();
    let room = ORGANIZATIONS_MAX.saturating_sub(begun.len());
    let left_out = new.len().saturating_sub(room);
    // env0 may list them in another order next time, and a start is to take the same ones.
    new.sort();
    new.truncate(room);
    let kind = ErrorKind::TooManyOrganizations(left_out, begun.len() + new.len());
    (new, (left_out > 0).then(|| api.error(Endpoint::Organizations, kind)))
}
