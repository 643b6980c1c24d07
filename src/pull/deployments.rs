//! Step logs: environments, their deployments, every step's log while it runs and once more after its end.
//!
//! A round asks first for the environments, then for the deployments of those that moved, that have a deployment under
//! way, or whose turn it is: every environment's comes within an hour, because not every deployment moves its
//! environment. A deployment's status is read before its logs, so that the logs of one that had ended are whole.
//! A deployment is in the durable place before the first of its lines is in the spool.

mod follow;
mod found;
mod list;
mod memory;
mod page;
mod records;
mod source;
mod sweep;
#[cfg(test)]
pub(super) mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::batch::Sha256;
use crate::credentials::Credentials;
use crate::oidc::{self, OidcToken, Verifier, VerifyError};
use crate::protocols::body::Limits;
use crate::pull::ahead::ahead_by;
use crate::pull::api::{Api, ErrorKind};
use crate::pull::deployments::follow::{Follow, Listing, Piece};
use crate::pull::deployments::found::Found;
use crate::pull::deployments::list::Environments;
pub(super) use crate::pull::deployments::list::Lists;
pub(super) use crate::pull::deployments::memory::DeploymentMemory;
use crate::pull::deployments::memory::{Following, Steps};
pub(super) use crate::pull::deployments::records::EnvironmentRecord;
use crate::pull::deployments::source::Source;
use crate::pull::deployments::sweep::Sweep;
use crate::pull::identity::Taken;
use crate::pull::place::{Change, Place};
use crate::pull::report::Report;
use crate::pull::round::RoundError;

/// Deployments whose logs are read at once; as many pages are in memory.
const FOLLOWED_AT_ONCE: usize = 8;
/// So much is brought into the spool at once, and one piece more.
const GROUP_BYTES: usize = 2 * 1024 * 1024;
/// Environments whose deployments are listed at once.
const LOOKS_AT_ONCE: usize = 8;
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
    interval: Duration,
    place: Place<DeploymentMemory>,
    report: Arc<Report>,
    hand_over: HandOver,
    /// Hashes of tokens that were accepted or refused, so that none is checked twice.
    judged: HashSet<Sha256>,
    lists: Lists,
    sweep: Sweep,
    /// Whether no round has got the list of environments yet.
    is_first_round: bool,
    /// The ended deployment that was begun last.
    last_ended: String,
    /// What is being read. It goes on from round to round: one slow answer must not hold up the others.
    reading: JoinSet<Result<bool, RoundError>>,
    /// The deployment that each of these tasks reads.
    read_by: HashMap<tokio::task::Id, String>,
    /// Whether something that this round has read was not there, and may be back later.
    something_is_missing: bool,
    pieces: (mpsc::Sender<Piece>, mpsc::Receiver<Piece>),
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
        Deployments {
            lists: Lists::new(api.clone(), &organization),
            api,
            organization,
            limits,
            interval,
            place,
            report,
            hand_over,
            judged: HashSet::new(),
            sweep: Sweep::new(interval),
            is_first_round: true,
            last_ended: String::new(),
            reading: JoinSet::new(),
            read_by: HashMap::new(),
            something_is_missing: false,
            pieces: mpsc::channel(FOLLOWED_AT_ONCE),
        }
    }

    /// Whether a deployment is being read that has not ended.
    pub(super) fn follows(&self) -> bool {
        self.place.memory.followed().next().is_some()
    }

    /// Reads all that is new, up to now; true when so much is old that another round should follow at once. What fails
    /// for one environment or deployment is left to the next round; the first such error is this round's.
    pub(super) async fn round(&mut self) -> Result<bool, RoundError> {
        // A part that the disk still refuses is told at the round's end; all others go on.
        let kept = self.place.catch_up().await?;
        self.something_is_missing = false;
        let begun = self.api.now();
        let listed = tokio::select! {
            () = self.place.stopped() => return Err(RoundError::Stopped),
            listed = self.lists.environments() => listed,
        };
        // The answer told env0's clock; ours may be ahead.
        let now = begun.min(self.api.now()).timestamp_millis();
        let Environments { records: mut environments, bad, .. } = match listed {
            Ok(listed) => listed,
            Err(error) => {
                // What is being read holds a place among the requests until it is in the spool.
                let mut error = Some(error.into());
                self.follow_all(BTreeMap::new(), now, Instant::now() + self.interval / 2, &mut error).await?;
                return Err(error.unwrap_or(RoundError::Stopped));
            }
        };
        environments.extend(self.unlisted(&environments));
        let mut memory = self.place.memory.clone();
        let forgotten = memory.forget_unlisted(&environments, now);
        self.judge_place(&mut memory, now);
        let first_error = kept.map(RoundError::from).or(bad.map(RoundError::from));
        // Running deployments must not wait for long lists or long logs of ended ones, so each of the two has
        // half of an interval in a round.
        let until = Instant::now() + self.interval / 2;
        let due = self.due(&environments, now);
        let mut found = Found::nothing(memory, first_error);
        self.look_at(&due, &mut found, now, until).await?;
        let Found { memory, known, tokens, mut more, mut first_error, .. } = found.with_followed(&environments);
        for token in tokens {
            self.hand_over(&token).await;
        }
        // A start tells the lines in the spool apart by the deployments in the place, so these are written first.
        let parts = forgotten.into_iter().map(|id| (id, None)).collect();
        self.commit(Bytes::new(), 0, Change { memory: Some(memory), parts }).await?;
        let until = Instant::now() + self.interval / 2;
        more |= !self.follow_all(known, now, until, &mut first_error).await?;
        match first_error {
            Some(error) => Err(error),
            None if more => Ok(true),
            None => {
                let mut memory = self.place.memory.clone();
                memory.reached = now;
                if !self.something_is_missing {
                    memory.anywhere = Taken::default();
                }
                self.commit(Bytes::new(), 0, memory).await?;
                self.report.position(self.place.memory.reached);
                self.report.looked_at_all(self.place.memory.oldest_look(&environments, now));
                Ok(false)
            }
        }
    }

    /// The environments whose deployments are listed in this round.
    fn due<'e>(&mut self, environments: &'e [EnvironmentRecord], now: i64) -> Vec<&'e EnvironmentRecord> {
        let mut due = self.sweep.due(environments, &self.place.memory, now);
        if std::mem::take(&mut self.is_first_round) && self.hand_over.credentials.session().is_none() {
            // Tokens are in memory only. Without one a restart would wait for the next deployment.
            let newest = Sweep::newest(environments, &self.place.memory, &due, LOOKS_AT_ONCE);
            due.extend(newest);
        }
        due
    }

    /// Lists the deployments of those that are due, several at once; no other is begun after `until`.
    async fn look_at(
        &self,
        due: &[&EnvironmentRecord],
        found: &mut Found,
        now: i64,
        until: Instant,
    ) -> Result<(), RoundError> {
        // Results come in the order of `due`.
        let mut looks = FuturesOrdered::new();
        let mut waiting = due.iter();
        let mut looked = due.iter();
        loop {
            while looks.len() < LOOKS_AT_ONCE
                && Instant::now() < until
                && let Some(environment) = waiting.next()
            {
                looks.push_back(self.lists.deployments(&environment.id, &self.place.memory));
            }
            let look = tokio::select! {
                () = self.place.stopped() => return Err(RoundError::Stopped),
                look = looks.next() => look,
            };
            let (Some(look), Some(environment)) = (look, looked.next()) else { break };
            match look {
                Ok(look) => found.add(environment, look, now),
                Err(error) if error.kind == ErrorKind::Gone => {
                    self.report.gone(&environment.id, &error);
                    found.note_missing(&environment.id);
                }
                Err(error) => found.fails(error),
            }
        }
        found.more |= waiting.next().is_some();
        Ok(())
    }

    /// Tells of a place that is ahead of the clock, and sets it back. No environment waits for that: when one was
    /// looked at in the future says nothing.
    fn judge_place(&self, memory: &mut DeploymentMemory, now: i64) {
        if let Some(ahead) = ahead_by(memory.reached, now) {
            self.report.ahead(&format!("it said that everything is stored until {} minutes ahead of the clock, so a clock was wrong; it is set back, and every environment is looked at", ahead.num_minutes()));
            memory.reached = now;
        }
    }

    /// Environments with a followed deployment that env0 no longer lists.
    fn unlisted(&self, environments: &[EnvironmentRecord]) -> Vec<EnvironmentRecord> {
        let mut listed: BTreeSet<&str> = environments.iter().map(|environment| &*environment.id).collect();
        let followed = self.place.memory.followed().map(|(_, following)| following);
        let unlisted = followed.filter(|following| listed.insert(&following.environment_id));
        let record = |following: &Following| {
            let Following { environment_id, environment_name, project_id, .. } = following.clone();
            EnvironmentRecord::unlisted(environment_id, environment_name, project_id)
        };
        unlisted.map(record).collect()
    }

    /// Reads the logs of all deployments in `known`, several at once, until they are read or `until` has come. Until
    /// then those that had ended are begun, and the others in any case. False when some are left to the next round.
    async fn follow_all(
        &mut self,
        known: BTreeMap<String, Listing>,
        now: i64,
        until: Instant,
        first_error: &mut Option<RoundError>,
    ) -> Result<bool, RoundError> {
        let being_read: HashSet<String> = self.read_by.values().cloned().collect();
        let (ended, running): (Vec<_>, Vec<_>) =
            known.into_iter().filter(|(id, _)| !being_read.contains(id)).partition(|(_, listing)| listing.has_ended());
        let (mut running, mut ended) = (VecDeque::from(running), VecDeque::from(ended));
        // From where the last round left off: some that fail slowly each time must not
        // keep the others waiting for ever.
        let next = ended.partition_point(|(id, _)| *id <= self.last_ended);
        ended.rotate_left(next % ended.len().max(1));
        loop {
            let in_time = Instant::now() < until;
            while self.reading.len() < FOLLOWED_AT_ONCE {
                let next = running.pop_front().or_else(|| ended.pop_front().filter(|_| in_time));
                let Some((id, listing)) = next else { break };
                if listing.has_ended() {
                    self.last_ended.clone_from(&id);
                }
                self.follow(&id, listing, now);
            }
            if running.is_empty() && (self.reading.is_empty() || !in_time) {
                return Ok(self.reading.is_empty() && ended.is_empty());
            }
            tokio::select! {
                Some(piece) = self.pieces.1.recv() => self.write(piece).await?,
                Some(joined) = self.reading.join_next_with_id() => {
                    let (id, result) = match joined {
                        Ok((id, result)) => (id, result),
                        Err(error) => match error.try_into_panic() {
                            Ok(panic) => std::panic::resume_unwind(panic),
                            Err(error) => (error.id(), Ok(false)),
                        },
                    };
                    self.read_by.remove(&id);
                    match result {
                        Ok(all_is_there) => self.something_is_missing |= !all_is_there,
                        Err(error) => drop(first_error.get_or_insert(error)),
                    }
                }
                () = tokio::time::sleep_until(until), if in_time => {}
            }
        }
    }

    /// Begins to read a deployment.
    fn follow(&mut self, id: &str, listing: Listing, now: i64) {
        let Some(state) = self.place.memory.following.get(id).cloned() else { return };
        let follow = Follow {
            api: self.api.clone(),
            report: self.report.clone(),
            pieces: self.pieces.0.clone(),
            source: Source::new(id, &self.organization, &state, self.limits, self.place.former_limits()),
            anywhere: self.place.memory.anywhere.clone(),
            durable: state.clone(),
            state,
            listing,
            now,
            apart: i64::try_from(self.interval.as_millis() / 2).unwrap_or(i64::MAX),
        };
        let parts = self.place.parts();
        let task = self.reading.spawn(async move { Ok(follow.load(parts).await?.run().await?) });
        self.read_by.insert(task.id(), id.to_owned());
    }

    /// Brings `first`, and what other deployments have sent with it, into the spool, with one fsync and one place.
    async fn write(&mut self, first: Piece) -> Result<(), RoundError> {
        let (mut bytes, mut group) = (first.lines.len(), vec![first]);
        while bytes < GROUP_BYTES
            && let Ok(piece) = self.pieces.1.try_recv()
        {
            bytes += piece.lines.len();
            group.push(piece);
        }
        let (mut memory, mut parts) = (None, Vec::new());
        let (mut lines, mut records) = (Vec::with_capacity(bytes), 0);
        for piece in &mut group {
            // One after the other is given back: they are not there twice.
            lines.extend_from_slice(&std::mem::take(&mut piece.lines));
            records += piece.records;
            let steps = std::mem::take(&mut piece.state.steps);
            if piece.done || self.place.memory.following.get(&piece.id) != Some(&piece.state) {
                let memory: &mut DeploymentMemory = memory.get_or_insert_with(|| self.place.memory.clone());
                memory.following.insert(piece.id.clone(), piece.state.clone());
                if piece.done {
                    memory.done(&piece.id);
                }
            }
            parts.push((piece.id.clone(), (!piece.done).then_some(steps)));
        }
        let steps = self.commit(lines.into(), records, Change { memory, parts }).await?;
        let mut steps: HashMap<String, Steps> = steps.into_iter().collect();
        for piece in group {
            // The receiver is gone if reading has stopped with an error.
            let _ = piece.written.send(steps.remove(&piece.id).unwrap_or_default());
        }
        Ok(())
    }

    async fn commit(
        &mut self,
        lines: Bytes,
        records: u64,
        change: impl Into<Change<DeploymentMemory>>,
    ) -> Result<Vec<(String, Steps)>, RoundError> {
        let report = &self.report;
        let parts = self.place.commit(lines, records, change, |reason| report.waiting(reason)).await?;
        self.report.pulled(records);
        Ok(parts)
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
        let now = crate::batch::now();
        // Records keep the tokens of deployments that ended long ago. No operator can do anything about those.
        let unverified = OidcToken::own(token.expose_secret(), oidc::Source::Record);
        if unverified.and_then(|token| token.expires_at).is_some_and(|end| end <= now) {
            return;
        }
        match verifier.verify(token.expose_secret(), now).await {
            Ok(mut token) => {
                token.source = oidc::Source::Record;
                credentials.offer(token);
            }
            Err(VerifyError::Refused(_)) => {}
            // The issuer's keys could not be fetched. The token is checked when the deployment is listed again.
            Err(_) => drop(self.judged.remove(&hash)),
        }
    }
}
