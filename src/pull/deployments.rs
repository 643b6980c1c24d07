//! Step logs: environments, their deployments, every step's log while it runs and once more after its end.
//!
//! A round asks first for the environments, then for the deployments of those that moved, that have a deployment under
//! way, or whose turn it is: every environment's comes within an hour, because not every deployment moves its
//! environment. A deployment's status is read before its logs, so that the logs of one that had ended are whole.
//! A deployment is in the durable place before the first of its lines is in the spool.

mod follow;
mod memory;
mod records;
mod sweep;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use futures_util::StreamExt;
use futures_util::stream;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::mpsc;

use crate::batch::Sha256;
use crate::credentials::Credentials;
use crate::oidc::{Verifier, VerifyError};
use crate::protocols::body::Limits;
use crate::pull::api::{Answer, Api, ApiError, Endpoint, ErrorKind};
use crate::pull::deployments::follow::{Follow, Piece};
pub(super) use crate::pull::deployments::memory::DeploymentMemory;
use crate::pull::deployments::memory::Following;
use crate::pull::deployments::records::{DeploymentRecord, EnvironmentRecord};
use crate::pull::deployments::sweep::Sweep;
use crate::pull::place::{Place, Stopped};
use crate::pull::report::Report;
use crate::pull::round::RoundError;

/// env0 gives no more in one page.
const PAGE_MAX: usize = 100;
/// Deployments whose logs are read at once; as many pages are in memory.
const FOLLOWED_AT_ONCE: usize = 8;
/// A page behind a last one that was full is asked for in one round of so many, while there never was one.
const PAGE_BEHIND_ROUNDS: u64 = 4;

/// Tokens that are remembered as judged.
const JUDGED_MAX: usize = 10_000;

/// Where a token goes that a record holds.
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
    /// Tokens that were handed over or refused, so that none is judged twice.
    judged: HashSet<Sha256>,
    rounds: u64,
    sweep: Sweep,
    /// Environments in the last round.
    environments: usize,
}

/// What a round has learned of a deployment.
struct Known {
    is_final: bool,
    /// The members of its last line.
    outcome: String,
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
            environments: 0,
        }
    }

    /// Reads all that is new, up to now. What fails for one environment or deployment is left to the next round; the
    /// first such error is this round's.
    pub(super) async fn round(&mut self) -> Result<(), RoundError> {
        self.rounds += 1;
        let now = self.api.now().timestamp_millis();
        let environments = self.list_environments().await?;
        self.environments = environments.len();
        let mut memory = self.place.memory.clone();
        let mut environments = environments;
        environments.extend(self.unlisted(&environments));
        let listed: BTreeSet<&str> = environments.iter().map(|environment| &*environment.id).collect();
        memory.environments.retain(|id, _| listed.contains(&**id));
        let mut known = Vec::new();
        let mut first_error = None;
        for environment in self.sweep.due(&environments, &self.place.memory, now) {
            match self.list_deployments(environment, &mut memory, now, &mut known).await {
                Ok(()) => {}
                Err(RoundError::Stopped) => return Err(RoundError::Stopped),
                Err(RoundError::Api(error)) if error.kind == ErrorKind::Gone => {
                    self.report.gone(&environment.id, &error);
                    // Their logs are asked for once more; then they are done with.
                    let outcome = "\"status\":\"GONE\"".to_owned();
                    let ids = memory.followed_of(&environment.id);
                    known.extend(ids.into_iter().map(|id| (id, Known { is_final: true, outcome: outcome.clone() })));
                }
                Err(RoundError::Api(error)) => drop(first_error.get_or_insert(error)),
            }
        }
        // What was found is durable before its first line can be in the spool.
        self.commit(Bytes::new(), 0, memory).await?;
        if let Some(error) = self.follow_all(known).await? {
            first_error.get_or_insert(error);
        }
        match first_error {
            Some(error) => Err(error.into()),
            None => {
                let mut memory = self.place.memory.clone();
                memory.reached = memory.reached.max(now);
                self.commit(Bytes::new(), 0, memory).await?;
                self.report.position(self.place.memory.reached);
                Ok(())
            }
        }
    }

    async fn list_environments(&self) -> Result<Vec<EnvironmentRecord>, RoundError> {
        let mut environments: Vec<EnvironmentRecord> = Vec::new();
        let mut ids = BTreeSet::new();
        loop {
            let offset = environments.len().to_string();
            let query = [("organizationId", &*self.organization), ("limit", "100"), ("offset", &*offset)];
            let answer = self.get(Endpoint::Environments, &["environments"], &query).await?;
            let page: Vec<EnvironmentRecord> = answer.parse()?;
            let (full, before) = (page.len() >= PAGE_MAX, ids.len());
            ids.extend(page.iter().map(|environment| environment.id.clone()));
            environments.extend(page);
            let behind = environments.len() == self.environments && !self.rounds.is_multiple_of(PAGE_BEHIND_ROUNDS);
            // A page that brings none that is new would come for ever.
            if !full || behind || ids.len() == before {
                return Ok(environments);
            }
        }
    }

    /// Environments that env0 lists no more, and of which a deployment is followed.
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

    /// Takes up the environment's deployments that are not done with, and what is new of those that are followed.
    async fn list_deployments(
        &mut self,
        environment: &EnvironmentRecord,
        memory: &mut DeploymentMemory,
        now: i64,
        known: &mut Vec<(String, Known)>,
    ) -> Result<(), RoundError> {
        let from = memory.from;
        let remembered = memory.environments.get(&environment.id).cloned().unwrap_or_default();
        let (mut newest, mut offset) = (0, 0);
        loop {
            let at = offset.to_string();
            let query = [("limit", "100"), ("offset", &*at)];
            let path = ["environments", &*environment.id, "deployments"];
            let answer = self.get(Endpoint::Deployments, &path, &query).await?;
            let page: Vec<DeploymentRecord<'_>> = answer.parse()?;
            let mut all_old = true;
            for record in &page {
                let created = record.created_millis().unwrap_or(now);
                newest = newest.max(created);
                let (is_final, followed) = (record.is_final(), memory.following.contains_key(&record.id));
                let old = created < from.max(remembered.done_before);
                all_old &= old;
                if !followed && (remembered.done.contains_key(&record.id) || (old && is_final)) {
                    continue;
                }
                if let Some(token) = record.oidc_token() {
                    self.hand_over(&token).await;
                }
                memory.following.entry(record.id.clone()).or_insert_with(|| Following {
                    environment_id: environment.id.clone(),
                    environment_name: environment.name.clone(),
                    project_id: environment.project_id.clone(),
                    kind: record.kind.clone(),
                    created,
                    ..Following::default()
                });
                known.push((record.id.clone(), Known { is_final, outcome: record.outcome() }));
            }
            offset += page.len();
            if page.len() < PAGE_MAX || all_old {
                break;
            }
        }
        // One that is not listed any more is read on until it is known to have ended.
        for id in memory.followed_of(&environment.id) {
            if !known.iter().any(|(known, _)| *known == id) {
                known.push((id, Known { is_final: false, outcome: String::new() }));
            }
        }
        let entry = memory.environments.entry(environment.id.clone()).or_default();
        (entry.state, entry.looked_at) = (environment.state(), now);
        memory.listed(&environment.id, newest);
        Ok(())
    }

    /// Reads the logs of all deployments in `known`, several at once; the first error.
    async fn follow_all(&mut self, known: Vec<(String, Known)>) -> Result<Option<ApiError>, Stopped> {
        let (pieces, mut received) = mpsc::channel::<Piece>(FOLLOWED_AT_ONCE);
        let parts = known.into_iter().filter_map(|(id, known)| {
            let state = self.place.memory.following.get(&id)?.clone();
            Some(Follow {
                api: self.api.clone(),
                organization: self.organization.clone(),
                limits: self.limits,
                report: self.report.clone(),
                pieces: pieces.clone(),
                id,
                state,
                outcome: known.is_final.then_some(known.outcome),
            })
        });
        let follows: Vec<Follow> = parts.collect();
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
            // Whoever has gone reads nothing more in this round.
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

    /// A token in a record is judged as one that a client presents; nothing of it is kept but its hash.
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
            // The issuer's keys are out of reach: judged when the deployment is listed again.
            Err(_) => drop(self.judged.remove(&hash)),
        }
    }
}
