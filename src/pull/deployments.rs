//! Step logs: environments, their deployments, every step's log while it runs and once more after its end.
//!
//! A round asks first for the environments, then for the deployments of those that moved, that have a deployment under
//! way, or whose turn it is: every environment's comes within an hour, because not every deployment moves its
//! environment. A deployment's status is read before its logs, so that the logs of one that had ended are whole.
//! A deployment is in the durable place before the first of its lines is in the spool.

mod follow;
mod memory;
mod records;
mod source;
mod sweep;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use futures_util::StreamExt;
use futures_util::stream::{self, FuturesOrdered};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::mpsc;

use crate::batch::Sha256;
use crate::credentials::Credentials;
use crate::oidc::{Verifier, VerifyError};
use crate::protocols::body::Limits;
use crate::pull::api::{Answer, Api, ApiError, Endpoint, ErrorKind, List};
use crate::pull::deployments::follow::{Follow, Piece};
pub(super) use crate::pull::deployments::memory::DeploymentMemory;
use crate::pull::deployments::memory::Following;
use crate::pull::deployments::records::{DeploymentRecord, EnvironmentRecord};
use crate::pull::deployments::source::Source;
use crate::pull::deployments::sweep::Sweep;
use crate::pull::place::{Place, Stopped};
use crate::pull::report::Report;
use crate::pull::round::RoundError;

/// env0 gives no more in one page.
const PAGE_MAX: usize = 100;
/// Deployments whose logs are read at once; as many pages are in memory.
const FOLLOWED_AT_ONCE: usize = 8;
/// At most this many deployments that had ended before they were found are taken up in one round. Reading them takes
/// long, and running deployments must not wait for a long history.
const HISTORY_AT_ONCE: usize = 128;
/// Environments whose deployments are listed at once.
const LOOKS_AT_ONCE: usize = 8;
/// If the last page of environments is full, there may be another behind it. It is asked for only in every fourth round,
/// as long as it does not exist.
const PAGE_BEHIND_ROUNDS: u64 = 4;
/// Stands for the time of a deployment that has none: after all others, so that it is never forgotten as an old one.
const NO_TIME: i64 = i64::MAX;
/// After this many tokens the set of judged ones is cleared.
const JUDGED_MAX: usize = 10_000;

/// What checks a token from a record, and what uses it.
#[derive(Clone)]
pub(super) struct HandOver {
    pub(super) verifier: Verifier,
    pub(super) credentials: Credentials,
}

/// The pull of one organization's deployments.
pub(super) struct Deployments {
    api: Api,
    organization: String,
    limits: Limits,
    place: Place<DeploymentMemory>,
    report: Arc<Report>,
    hand_over: HandOver,
    /// Hashes of tokens that were accepted or refused, so that none is checked twice.
    judged: HashSet<Sha256>,
    rounds: u64,
    sweep: Sweep,
    /// Environments that the last round listed.
    listed: usize,
}

/// What a round has learned of a deployment.
struct Known {
    is_final: bool,
    /// The members of its last line.
    outcome: String,
}

/// A deployment that is still to be read.
struct Listed {
    id: String,
    kind: Option<String>,
    created: i64,
    known: Known,
}

/// What env0 lists of an environment.
#[derive(Default)]
struct Look {
    deployments: Vec<Listed>,
    tokens: Vec<SecretString>,
    /// When the newest of all was made, in milliseconds since 1970.
    newest: i64,
    /// What is missing in the first record that is not what env0 documents.
    bad: Option<ApiError>,
}

/// Follows from now on what was listed of `environment`, the oldest first. `room` is for how many more that had ended.
/// False when some are left to the next round.
fn take_up(
    environment: &EnvironmentRecord,
    listed: Vec<Listed>,
    memory: &mut DeploymentMemory,
    known: &mut BTreeMap<String, Known>,
    room: &mut usize,
) -> bool {
    let mut all = true;
    for Listed { id, kind, created, known: state } in listed.into_iter().rev() {
        if state.is_final {
            if *room == 0 && !memory.following.contains_key(&id) {
                all = false;
                continue;
            }
            *room = room.saturating_sub(1);
        }
        memory.following.entry(id.clone()).or_insert_with(|| Following {
            environment_id: environment.id.clone(),
            environment_name: environment.name.clone(),
            project_id: environment.project_id.clone(),
            kind,
            created,
            ..Following::default()
        });
        known.insert(id, state);
    }
    // A followed deployment that is no longer listed is read on until it is known to have ended.
    for id in memory.followed_of(&environment.id) {
        known.entry(id).or_insert_with(|| Known { is_final: false, outcome: String::new() });
    }
    all
}

impl Deployments {
    pub(super) fn new(
        api: Api,
        limits: Limits,
        interval: Duration,
        place: Place<DeploymentMemory>,
        report: Arc<Report>,
        hand_over: HandOver,
    ) -> Deployments {
        let organization = place.organization().to_owned();
        report.position(place.memory.reached);
        let judged = HashSet::new();
        Deployments {
            api,
            organization,
            limits,
            place,
            report,
            hand_over,
            judged,
            rounds: 0,
            sweep: Sweep::new(interval),
            listed: 0,
        }
    }

    /// Reads all that is new, up to now; true when so much is old that another round should follow at once. What fails
    /// for one environment or deployment is left to the next round; the first such error is this round's.
    pub(super) async fn round(&mut self) -> Result<bool, RoundError> {
        self.rounds += 1;
        let now = self.api.now().timestamp_millis();
        let mut first_error = None;
        let mut environments = self.list_environments(&mut first_error).await?;
        environments.extend(self.unlisted(&environments));
        let mut memory = self.place.memory.clone();
        memory.forget_unlisted(&environments, now);
        let (mut known, mut tokens, mut more) = (BTreeMap::new(), Vec::new(), false);
        let mut room = HISTORY_AT_ONCE;
        let due = self.sweep.due(&environments, &self.place.memory, now);
        // Several requests run at once; their results come in the order of `due`.
        let mut looks = FuturesOrdered::new();
        for environment in due.iter().take(LOOKS_AT_ONCE) {
            looks.push_back(self.look(environment));
        }
        for (number, environment) in due.iter().enumerate() {
            let Some(look) = looks.next().await else { break };
            if let Some(next) = due.get(number + LOOKS_AT_ONCE) {
                looks.push_back(self.look(next));
            }
            match look {
                Ok(look) => {
                    tokens.extend(look.tokens);
                    let all = take_up(environment, look.deployments, &mut memory, &mut known, &mut room);
                    more |= !all;
                    match look.bad {
                        // The environment is listed again in the next round; until then its state is not remembered.
                        Some(error) => drop(first_error.get_or_insert(error)),
                        None if !all => {}
                        None => memory.listed(&environment.id, &environment.state(), look.newest, now),
                    }
                }
                Err(RoundError::Stopped) => return Err(RoundError::Stopped),
                Err(RoundError::Api(error)) if error.kind == ErrorKind::Gone => {
                    self.report.gone(&environment.id, &error);
                    // Their logs are asked for once more, and that is the end of them.
                    let outcome = "\"status\":\"GONE\"".to_owned();
                    let ids = memory.followed_of(&environment.id);
                    known.extend(ids.into_iter().map(|id| (id, Known { is_final: true, outcome: outcome.clone() })));
                }
                Err(RoundError::Api(error)) => drop(first_error.get_or_insert(error)),
            }
        }
        drop(looks);
        for token in tokens {
            self.hand_over(&token).await;
        }
        // A start tells the lines in the spool apart by the deployments in the place, so these are written first.
        self.commit(Bytes::new(), 0, memory).await?;
        if let Some(error) = self.follow_all(known).await? {
            first_error.get_or_insert(error);
        }
        match first_error {
            Some(error) => Err(error.into()),
            None if more => Ok(true),
            None => {
                let mut memory = self.place.memory.clone();
                memory.reached = memory.reached.max(now);
                self.commit(Bytes::new(), 0, memory).await?;
                self.report.position(self.place.memory.reached);
                Ok(false)
            }
        }
    }

    /// Lists each environment once. If a record can't be read, the first such error goes to `first_error`.
    async fn list_environments(
        &mut self,
        first_error: &mut Option<ApiError>,
    ) -> Result<Vec<EnvironmentRecord>, RoundError> {
        let mut environments: Vec<EnvironmentRecord> = Vec::new();
        let mut ids = HashSet::new();
        let mut listed = 0;
        loop {
            let offset = listed.to_string();
            let query = [("organizationId", &*self.organization), ("limit", "100"), ("offset", &*offset)];
            let answer = self.get(Endpoint::Environments, &["environments"], &query).await?;
            let page: List<EnvironmentRecord> = answer.list()?;
            *first_error = first_error.take().or(page.bad);
            listed += page.elements;
            let before = environments.len();
            // A new environment moves others to the next page, so one may come twice.
            environments.extend(page.records.into_iter().filter(|record| ids.insert(record.id.clone())));
            let behind = listed == self.listed && !self.rounds.is_multiple_of(PAGE_BEHIND_ROUNDS);
            // A page without a new environment means that `offset` is ignored, and there would be no end.
            if page.elements < PAGE_MAX || behind || environments.len() == before {
                self.listed = listed;
                return Ok(environments);
            }
        }
    }

    /// Environments with a followed deployment that env0 no longer lists.
    fn unlisted(&self, environments: &[EnvironmentRecord]) -> Vec<EnvironmentRecord> {
        let mut listed: BTreeSet<&str> = environments.iter().map(|environment| &*environment.id).collect();
        let followed = self.place.memory.following.values();
        let unlisted = followed.filter(|following| listed.insert(&following.environment_id));
        let record = |following: &Following| {
            let Following { environment_id, environment_name, project_id, .. } = following.clone();
            EnvironmentRecord::unlisted(environment_id, environment_name, project_id)
        };
        unlisted.map(record).collect()
    }

    /// Lists the environment's deployments, as far back as some may not be stored yet.
    async fn look(&self, environment: &EnvironmentRecord) -> Result<Look, RoundError> {
        let memory = &self.place.memory;
        let remembered = memory.environments.get(&environment.id).cloned().unwrap_or_default();
        let mut look = Look::default();
        let mut offset = 0;
        loop {
            let at = offset.to_string();
            let query = [("limit", "100"), ("offset", &*at)];
            let path = ["environments", &*environment.id, "deployments"];
            let answer = self.get(Endpoint::Deployments, &path, &query).await?;
            let page: List<DeploymentRecord<'_>> = answer.list()?;
            look.bad = look.bad.or(page.bad);
            let mut all_old = true;
            for record in page.records {
                let is_final = record.is_final();
                let followed = memory.following.contains_key(&record.id);
                let done = remembered.done.contains_key(&record.id);
                let created = match record.created_millis() {
                    Some(created) => {
                        look.newest = look.newest.max(created);
                        created
                    }
                    None if !is_final || followed || done => NO_TIME,
                    // It is not known from before, and without a time nobody could tell whether it was stored before.
                    None => {
                        look.bad.get_or_insert(answer.malformed("a deployment lacks the member createdAt"));
                        continue;
                    }
                };
                let old = created < memory.from.max(remembered.done_before);
                all_old &= old;
                if !followed && (done || (old && is_final)) {
                    continue;
                }
                look.tokens.extend(record.oidc_token());
                let known = Known { is_final, outcome: record.outcome() };
                look.deployments.push(Listed { id: record.id, kind: record.kind, created, known });
            }
            offset += page.elements;
            if page.elements < PAGE_MAX || all_old {
                return Ok(look);
            }
        }
    }

    /// Reads the logs of all deployments in `known`, several at once; the first error.
    async fn follow_all(&mut self, known: BTreeMap<String, Known>) -> Result<Option<ApiError>, Stopped> {
        let (pieces, mut received) = mpsc::channel::<Piece>(FOLLOWED_AT_ONCE);
        let parts = known.into_iter().filter_map(|(id, known)| {
            let state = self.place.memory.following.get(&id)?.clone();
            Some(Follow {
                api: self.api.clone(),
                limits: self.limits,
                report: self.report.clone(),
                pieces: pieces.clone(),
                source: Source::new(&id, &self.organization, &state),
                state,
                outcome: known.is_final.then_some(known.outcome),
            })
        });
        let mut follows: Vec<Follow> = parts.collect();
        // Running deployments come first.
        follows.sort_by_key(|follow| follow.outcome.is_some());
        drop(pieces);
        let reading = async {
            let mut results = stream::iter(follows).map(Follow::run).buffer_unordered(FOLLOWED_AT_ONCE);
            let mut first_error = None;
            while let Some(result) = results.next().await {
                if let Err(error) = result {
                    first_error.get_or_insert(error);
                }
            }
            first_error
        };
        let writing = async {
            while let Some(piece) = received.recv().await {
                let mut group = vec![piece];
                while let Ok(piece) = received.try_recv() {
                    group.push(piece);
                }
                self.write(group).await?;
            }
            Ok::<(), Stopped>(())
        };
        let (first_error, written) = tokio::join!(reading, writing);
        written.map(|()| first_error)
    }

    /// Brings what several deployments have sent into the spool, with one fsync and one place.
    async fn write(&mut self, group: Vec<Piece>) -> Result<(), Stopped> {
        let mut memory = self.place.memory.clone();
        let (mut lines, mut records) = (Vec::new(), 0);
        for piece in &group {
            lines.extend_from_slice(&piece.lines);
            records += piece.records;
            memory.following.insert(piece.id.clone(), piece.state.clone());
            if piece.state.finished {
                memory.done(&piece.id);
            }
        }
        self.commit(lines.into(), records, memory).await?;
        for piece in group {
            // The receiver is gone if reading has stopped with an error.
            let _ = piece.written.send(());
        }
        Ok(())
    }

    async fn commit(&mut self, lines: Bytes, records: u64, memory: DeploymentMemory) -> Result<(), Stopped> {
        let report = &self.report;
        self.place.commit(lines, records, memory, |reason| report.waiting(reason)).await?;
        self.report.pulled(records);
        Ok(())
    }

    async fn get(&self, endpoint: Endpoint, path: &[&str], query: &[(&str, &str)]) -> Result<Answer, RoundError> {
        tokio::select! {
            () = self.place.stopped() => Err(RoundError::Stopped),
            answer = self.api.get(endpoint, path, query) => Ok(answer?),
        }
    }

    /// Checks a token from a record as if a client had handed it over. Only its hash is kept here.
    async fn hand_over(&mut self, token: &SecretString) {
        let hash = Sha256::of(token.expose_secret().as_bytes());
        if self.judged.len() >= JUDGED_MAX {
            self.judged.clear();
        }
        if !self.judged.insert(hash) {
            return;
        }
        let HandOver { verifier, credentials } = &self.hand_over;
        match verifier.verify(token.expose_secret(), Utc::now()).await {
            Ok(token) => drop(credentials.offer(token)),
            Err(VerifyError::Refused(_)) => {}
            // The issuer's keys could not be fetched. The token is checked when the deployment is listed again.
            Err(_) => drop(self.judged.remove(&hash)),
        }
    }
}
