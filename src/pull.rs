//! What env0 keeps, fetched with an API key: audit events and the step logs of deployments.
//!
//! ```text
//! env0's API ─► api ─► audits, deployments ─► place ─► spool ─► flusher …
//! ```
//!
//! [`api`] asks, `audits` and `deployments` decide what is new, `place` brings it into the spool and remembers durably
//! how far that came. A start first compares the places with what a crash left in the spool ([`settle`]).

mod ahead;
mod alone;
pub mod api;
mod audits;
mod begun;
mod deployments;
mod files;
mod identity;
mod line;
mod organizations;
mod place;
mod report;
mod round;
pub mod settle;
mod whose;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::background::blocking;
use crate::batch::{ByType, LogType};
use crate::config::{self, Config};
use crate::credentials::Credentials;
use crate::network::Network;
use crate::oidc::{IssuerError, Verifier};
use crate::protocols::body::Limits;
pub use crate::pull::ahead::ahead_of;
pub use crate::pull::alone::pulled_by_another;
use crate::pull::api::Api;
use crate::pull::audits::{AuditMemory, Audits};
pub use crate::pull::begun::begun_too_late;
use crate::pull::begun::{begins, first_start};
use crate::pull::deployments::{DeploymentMemory, Deployments, HandOver};
use crate::pull::files::PlaceError;
pub use crate::pull::organizations::{Environment, environments, explained, followed, foreign, organizations};
use crate::pull::place::{Place, Shared};
use crate::pull::report::Report;
use crate::pull::round::{RoundError, Stopped};
use crate::pull::settle::Settled;
use crate::spool::Spool;
use crate::status::PullStatus;

/// How long a stop waits for what is being written.
const STOP_WAIT: Duration = Duration::from_secs(3);

/// How often the organizations that the key sees are listed again.
const ORGANIZATIONS_EVERY: Duration = Duration::from_secs(3600);
/// How much longer than an interval it takes from an idle round to the next one at most. The requests and the upload
/// need the other three of ten seconds.
const IDLE_MAX: Duration = Duration::from_secs(7);
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
        let max_event_bytes = config.max_event_bytes;
        let shared = || Shared { one_at_a_time: Arc::default(), stop: stop.clone(), max_event_bytes };
        let parts = Parts {
            api: Api::new(pull, network)?,
            reloaded: Arc::default(),
            pull: pull.clone(),
            limits: Limits {
                max_body_bytes: usize::MAX,
                max_lines_bytes: usize::MAX,
                max_event_bytes,
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
        tasks.spawn_on(parts.run(), api.thread());
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
            configured => {
                configured.iter().for_each(|organization| self.begin(&mut begun, organization));
                self.tell_foreign(configured).await;
            }
        }
        while begun.pulls.join_next().await.is_some() {}
    }

    /// Without `ENV0_S3_LOG_PULL_FROM` a pull begins at the first start ever, also where env0 names
    /// the organization only days later.
    async fn find_beginning(&mut self) -> Result<(), Stopped> {
        let reports: Vec<_> = self.pull.types.iter().map(|log_type| self.report(*log_type, "")).collect();
        while self.pull.from.is_none() {
            let (spool, now) = (self.spool.clone(), self.started_at);
            match blocking(move || first_start(&spool, now)).await {
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

    /// Tells of configured organizations that the key doesn't see. env0 may answer their requests as if nothing
    /// happened in them, and then no request fails.
    async fn tell_foreign(&self, configured: &[String]) {
        let seen = loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                seen = organizations(&self.api) => if let Ok((seen, _)) = seen { break seen },
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(ORGANIZATIONS_EVERY) => {}
            }
        };
        for organization in configured {
            let Some(foreign) = foreign(&self.pull, organization, &seen) else { continue };
            let reports = self.reports();
            for (index, report) in reports.iter().filter(|report| report.is_of(organization)).enumerate() {
                // One line in the log is enough.
                report.notice(&foreign, index == 0);
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
        let mut next_round = Instant::now();
        let mut pull: Option<Pull> = None;
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep_until(next_round) => {}
            }
            let started = Instant::now();
            next_round = started + self.pull.interval;
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
            let events = report.status().events_pulled;
            let ended = match pull {
                Pull::Audits(audits) => audits.round().await.map(|()| false),
                Pull::Deployments(deployments) => deployments.round().await,
            };
            match ended {
                Ok(more) => {
                    report.succeeded(started.elapsed());
                    let is_idle = report.status().events_pulled == events && !pull.follows();
                    next_round = match more {
                        true => Instant::now(),
                        false => started + until_next_round(self.pull.interval, is_idle),
                    };
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
        let tell = |began, began_before, reached| {
            report.begun(began, self.pull.from);
            self.tell_beginning(log_type, organization, began_before, reached);
        };
        match log_type {
            LogType::Audits => {
                let first = AuditMemory::beginning(from);
                let place = Place::open(&self.spool, log_type, organization, shared, first).await?;
                tell(place.memory.began, place.began_before, place.memory.reached);
                Ok(Pull::Audits(Box::new(Audits::new(api, limits, place, report))))
            }
            LogType::Deployments => {
                let first = DeploymentMemory::beginning(from);
                let place = Place::open(&self.spool, log_type, organization, shared, first).await?;
                tell(place.memory.began, place.began_before, place.memory.reached);
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

    /// Tells from when on events are fetched; `reached` is in milliseconds since 1970. Without that, nobody knows
    /// whether "nothing yet" is a fault.
    fn tell_beginning(&self, log_type: LogType, organization: &str, began_before: bool, reached: i64) {
        // Where it isn't set, `self.pull` has the time of the first start in its place.
        let is_set = self.config.pull.as_ref().is_some_and(|pull| pull.from.is_some());
        let from = DateTime::from_timestamp_millis(reached).unwrap_or_default();
        let what = begins(began_before, is_set, from);
        tracing::info!(log_type = %log_type, organization, "{what}");
    }

    /// Judges tokens in the records, and tells of those that it refuses where the daemon's own verifier does.
    fn hand_over(&self, organization: &str) -> HandOver {
        if self.config.takes_hand_overs() {
            return self.hand_over.clone();
        }
        match verifier_of_records(&self.config, &self.network, organization) {
            Ok(verifier) => HandOver { verifier, ..self.hand_over.clone() },
            // This can't happen: the daemon's own verifier was made from the same settings.
            Err(_) => self.hand_over.clone(),
        }
    }
}

/// Judges the tokens in the records of `organization`. Without a configured subject or organization, those of the
/// pulled organization are accepted.
///
/// # Errors
/// The issuer's address can't be used.
pub fn verifier_of_records(config: &Config, network: &Network, organization: &str) -> Result<Verifier, IssuerError> {
    if config.takes_hand_overs() {
        return Verifier::new(config, network);
    }
    Verifier::new(&Config { oidc_organization_ids: vec![organization.to_owned()], ..config.clone() }, network)
}

/// A pull of either log type.
enum Pull {
    Audits(Box<Audits>),
    Deployments(Box<Deployments>),
}

impl Pull {
    /// Whether something is under way that may bring events at any time.
    fn follows(&self) -> bool {
        match self {
            Pull::Audits(_) => false,
            Pull::Deployments(deployments) => deployments.follows(),
        }
    }
}

/// The time from one round's beginning to the next one's. After an idle round it is a little longer: an organization of
/// 300 idle environments then takes fewer than 12 requests a minute, and what appears meanwhile is still in the bucket
/// within an interval, a batch's age and ten seconds.
fn until_next_round(interval: Duration, is_idle: bool) -> Duration {
    if is_idle { interval + (interval / 4).min(IDLE_MAX) } else { interval }
}
