//! OIDC token → session: one exchange at a time, ahead of the session's end.

mod candidates;
mod failure;
mod meters;
mod role;
mod session;
mod sources;
mod status;
mod sts;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use secrecy::ExposeSecret;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::full_jitter;
use crate::batch::Sha256;
use crate::config::Config;
use crate::network::Network;
use crate::oidc::{OidcToken, Source};
use crate::status::{CredentialsStatus, ExchangeTrouble, Timestamp, TokenStatus};
pub use candidates::Offer;
use candidates::{Candidates, MAX_TOKENS, refresh_at};
use failure::{Cause, Failure};
use meters::Meters;
use role::STEP_DOWN;
pub use role::{Role, Service};
use session::Clock;
pub use session::Session;
use sources::Sources;
pub use sources::{SourceProblem, own_tokens, token_file_problem};
use status::{Phase, refusal_causes};
pub use status::{ways_to_a_token, without_a_token};
use sts::Sts;

/// A 403 without a reason may still mean a bad session: one that is this old is replaced to find out, at most once in this
/// time.
const SUSPECT_AGE: TimeDelta = TimeDelta::minutes(5);
/// Where S3 refuses a session sooner than this, a new one may not help: the next exchange waits longer.
const YOUNG_SESSION: TimeDelta = TimeDelta::minutes(1);
/// Between the begins of two rounds, however short STS makes its sessions and however many tokens are handed over.
const LEAST_BETWEEN_ROUNDS: Duration = Duration::from_secs(1);
/// The clock may jump: the plan is made anew at least this often.
const LONGEST_NAP: Duration = Duration::from_secs(30);

/// The way to sessions. Cheap to clone.
#[derive(Clone)]
pub struct Credentials(Arc<Inner>);

struct Inner {
    clock: Clock,
    role: Role,
    sts: Sts,
    sources: Sources,
    /// See [`without_a_token`].
    without_a_token: String,
    state: Mutex<State>,
    session: watch::Sender<Option<Arc<Session>>>,
    wake: Notify,
    meters: Meters,
    /// Takes every token that is handed over here, too.
    beside: OnceLock<Credentials>,
}

struct State {
    candidates: Candidates,
    phase: Phase,
    /// Since when no session can be had.
    outage_since: Option<DateTime<Utc>>,
    last_error: Option<ExchangeTrouble>,
    source_problems: Vec<SourceProblem>,
    duration: Duration,
    sessions: u64,
    failures: u32,
    young_refusals: u32,
    not_before: Instant,
    last_round: Instant,
    /// A token came since the last round began.
    offered: bool,
    /// The session may be the reason for a 403.
    suspect: bool,
    last_suspicion: Option<DateTime<Utc>>,
}

impl Credentials {
    /// Starts the background exchange for the bucket's role, which ends with `shutdown`. Needs a Tokio runtime.
    pub fn start(config: &Config, network: &Network, instance_id: &str, shutdown: CancellationToken) -> Credentials {
        Credentials::start_for(Role::of_bucket(config), config, network, instance_id, shutdown)
    }

    /// The same for another role.
    pub fn start_for(
        role: Role,
        config: &Config,
        network: &Network,
        instance_id: &str,
        shutdown: CancellationToken,
    ) -> Credentials {
        Credentials::start_by(Arc::new(crate::batch::now), role, config, network, instance_id, shutdown)
    }

    /// Starts another role's beside these: each token that is handed over to `self` from now on is
    /// handed over there, too. Asked for once, before anybody hands over.
    pub fn start_beside(
        &self,
        role: Role,
        config: &Config,
        network: &Network,
        instance_id: &str,
        shutdown: CancellationToken,
    ) -> Credentials {
        let beside = Credentials::start_by(self.0.clock.clone(), role, config, network, instance_id, shutdown);
        self.0.beside.get_or_init(|| beside).clone()
    }

    fn start_by(
        clock: Clock,
        role: Role,
        config: &Config,
        network: &Network,
        instance_id: &str,
        shutdown: CancellationToken,
    ) -> Credentials {
        let mut candidates = Candidates::default();
        if let Some(token) = &config.oidc_token {
            let token = OidcToken::own(token.expose_secret(), Source::Environment);
            token.map(|token| candidates.add(token, clock()));
        }
        let credentials = Credentials(Arc::new(Inner {
            sts: Sts::new(clock.clone(), role.clone(), config, network, instance_id),
            clock,
            sources: Sources::new(config, network),
            without_a_token: without_a_token(config),
            state: Mutex::new(State {
                candidates,
                phase: Phase::Starting,
                outage_since: None,
                last_error: None,
                source_problems: Vec::new(),
                duration: role.duration,
                sessions: 0,
                failures: 0,
                young_refusals: 0,
                not_before: Instant::now(),
                last_round: Instant::now(),
                offered: false,
                suspect: false,
                last_suspicion: None,
            }),
            session: watch::Sender::new(None),
            wake: Notify::new(),
            meters: Meters::new(role.service),
            role,
            beside: OnceLock::new(),
        }));
        let inner = Arc::clone(&credentials.0);
        tokio::spawn(async move {
            shutdown.run_until_cancelled(inner.keep_a_session()).await;
        });
        credentials
    }

    /// The current session, unless it has ended by our clock.
    pub fn session(&self) -> Option<Arc<Session>> {
        self.0.session.borrow().clone().filter(|session| (self.0.clock)() < session.expires_at)
    }

    /// Resolves as soon as there is a session.
    pub async fn wait_session(&self) -> Arc<Session> {
        let mut changes = self.0.session.subscribe();
        loop {
            changes.mark_unchanged();
            if let Some(session) = self.session() {
                return session;
            }
            // The sender lives as long as `self`.
            let _ = changes.changed().await;
        }
    }

    /// The service refused a request because the session `session_id` has expired or is invalid, as it says: another one
    /// is fetched. A session that was replaced meanwhile is left alone.
    pub fn session_is_refused(&self, session_id: u64) {
        let Some(session) = self.0.current(session_id) else { return };
        let service = self.0.role.service.name();
        tracing::warn!(
            session.id = session_id,
            "{service} refused the session as expired or invalid; fetching a new one"
        );
        let (mut state, age) = (self.0.lock(), (self.0.clock)() - session.obtained_at);
        let young = age < YOUNG_SESSION.min((session.expires_at - session.obtained_at) / 2);
        state.young_refusals = if young { state.young_refusals.saturating_add(1) } else { 0 };
        let wait = match state.young_refusals {
            0 | 1 => Duration::ZERO,
            in_a_row => full_jitter(in_a_row - 1, rand::random()),
        };
        state.not_before = Instant::now() + wait;
        self.0.session.send_replace(None);
        self.0.meters.session_expiry.set(0.0);
        drop(state);
        self.0.wake.notify_one();
    }

    /// The service refused a request signed with the session `session_id` by a 403 that may have another reason. An old
    /// session is replaced to find out, and stays in use until then.
    pub fn session_is_suspect(&self, session_id: u64) {
        let Some(session) = self.0.current(session_id) else { return };
        let now = (self.0.clock)();
        let mut state = self.0.lock();
        let lately = state.last_suspicion.is_some_and(|last| now - last < SUSPECT_AGE);
        if now - session.obtained_at < SUSPECT_AGE || lately || state.suspect {
            return;
        }
        state.suspect = true;
        state.last_suspicion = Some(now);
        drop(state);
        self.0.wake.notify_one();
    }

    /// Takes in a token that was handed over and verified.
    pub fn offer(&self, token: OidcToken) -> Offer {
        if let Some(beside) = self.0.beside.get() {
            beside.offer(token.clone());
        }
        let mut state = self.0.lock();
        let offer = state.candidates.add(token, (self.0.clock)());
        if offer == Offer::Accepted {
            self.0.meters.show_tokens(&state.candidates);
            state.offered = true;
            drop(state);
            self.0.wake.notify_one();
        }
        offer
    }

    /// A snapshot for people.
    pub fn status(&self) -> CredentialsStatus {
        let session = self.session();
        let state = self.0.lock();
        let told = || state.last_error.as_ref().map(|error| error.remedy.clone());
        let now = (self.0.clock)();
        let is_usable = |token: &OidcToken| token.expires_at.is_none_or(|end| end > now);
        let is_asking = state.candidates.all().any(|(token, set_aside)| !set_aside && is_usable(token));
        let phase = match state.phase {
            // A token has come, and STS has not answered yet.
            Phase::NoToken if is_asking => Phase::Starting,
            phase => phase,
        };
        let (waits_for, remedy) = match phase {
            Phase::Starting | Phase::Holding => (None, None),
            Phase::NoToken => (Some(awaited_token(&state, now)), Some(self.0.without_a_token.clone())),
            Phase::Refused => (
                Some("a token or a trust policy that STS accepts".to_owned()),
                Some(refusal_causes(&self.0.role, state.duration)),
            ),
            Phase::Unreachable => (Some("STS to answer".to_owned()), told()),
        };
        CredentialsStatus {
            role_arn: self.0.role.arn.clone(),
            state: phase.describe(session.is_some()).to_owned(),
            session_expires_at: session.map(|session| Timestamp(session.expires_at)),
            session_duration_seconds: state.duration.as_secs(),
            waits_for,
            remedy,
            last_error: state.last_error.clone(),
            tokens: state
                .candidates
                .all()
                .map(|(token, set_aside)| TokenStatus {
                    subject: token.shortened_subject(),
                    expires_at: token.expires_at.map(Timestamp),
                    source: token.source.as_str().to_owned(),
                    set_aside,
                })
                .collect(),
            refused_tokens: Vec::new(),
        }
    }
}

/// What is waited for where no token is at hand, and why the last one and the sources are of no use.
fn awaited_token(state: &State, now: DateTime<Utc>) -> String {
    let newest = state.candidates.all().max_by_key(|(token, _)| token.expires_at);
    let ended = newest.and_then(|(token, _)| {
        let (source, end) = (token.source.as_str(), token.expires_at.filter(|end| *end <= now)?);
        Some(format!(" (the last one at hand, from the {source}, ended at {})", Timestamp(end)))
    });
    let problems = state.source_problems.iter().map(|problem| format!("; {}", problem.words)).collect::<String>();
    format!("an OIDC token{}{problems}", ended.unwrap_or_default())
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The session with this id, unless another one has taken its place.
    fn current(&self, session_id: u64) -> Option<Arc<Session>> {
        self.session.borrow().clone().filter(|session| session.id == session_id)
    }

    async fn keep_a_session(&self) {
        loop {
            let wait = self.until_next_exchange();
            if wait.is_zero() {
                self.exchange_any().await;
            } else {
                tokio::select! {
                    () = tokio::time::sleep(wait.min(LONGEST_NAP)) => {}
                    () = self.wake.notified() => {}
                }
            }
        }
    }

    fn until_next_exchange(&self) -> Duration {
        let state = self.lock();
        // A token that was never tried need not wait until those that failed are tried again.
        let not_before = match state.offered && state.failures > 0 {
            true => state.not_before.min(state.last_round + LEAST_BETWEEN_ROUNDS),
            false => state.not_before,
        };
        let backoff = not_before.saturating_duration_since(Instant::now());
        let session = self.session.borrow();
        let refresh = match session.as_ref().filter(|_| !state.suspect) {
            Some(session) => refresh_at(session.obtained_at, session.expires_at, state.candidates.last_exchange()),
            None => return backoff,
        };
        backoff.max((refresh - (self.clock)()).to_std().unwrap_or_default())
    }

    /// Asks STS about each token in turn, until one is taken or STS can't be asked.
    async fn exchange_any(&self) {
        self.read_sources().await;
        // A round that begins early, because a token was handed over, leaves out those that STS has refused.
        let with_refused = {
            let mut state = self.lock();
            let now = Instant::now();
            (state.offered, state.last_round) = (false, now);
            now >= state.not_before
        };
        let (mut phase, mut asked) = (Phase::NoToken, Vec::new());
        while let Some(token) = self.next(with_refused, &asked) {
            asked.push(token.digest());
            match self.exchange(&token).await {
                Ok(session) => return self.session_came(session, &token),
                Err(failure) => {
                    // A token that may be good is at hand as soon as one was not refused.
                    let all_refused = failure.cause == Cause::Refused && phase != Phase::Unreachable;
                    phase = if all_refused { Phase::Refused } else { Phase::Unreachable };
                    let out_of_reach = failure.cause == Cause::OutOfReach;
                    self.exchange_failed(&token, failure);
                    if out_of_reach {
                        break;
                    }
                }
            }
        }
        if asked.is_empty() && !with_refused {
            return;
        }
        let mut state = self.lock();
        if with_refused {
            state.failures = state.failures.saturating_add(1);
            state.not_before = Instant::now() + full_jitter(state.failures, rand::random());
        }
        self.meters.show_tokens(&state.candidates);
        state.outage_since.get_or_insert_with(|| (self.clock)());
        if state.phase != phase {
            state.phase = phase;
            self.log_phase(&state);
        }
    }

    /// The token to ask about in a round behind those that it has `asked` about. Looked for anew each time: one that came
    /// meanwhile, and may be good, need not wait for all that STS has refused before.
    fn next(&self, with_refused: bool, asked: &[Sha256]) -> Option<OidcToken> {
        let state = self.lock();
        let mut tokens = state.candidates.in_order((self.clock)(), with_refused).into_iter();
        tokens.find(|token| !asked.contains(&token.digest())).filter(|_| asked.len() < MAX_TOKENS).cloned()
    }

    /// What fails is told with the state, and once in the log.
    async fn read_sources(&self) {
        let (tokens, problems) = self.sources.read().await;
        let mut state = self.lock();
        for token in tokens {
            state.candidates.add(token, (self.clock)());
        }
        // The bucket's credentials read the same sources, and say it.
        let says_it = self.role.service == Service::S3;
        if says_it && state.source_problems != problems && !problems.is_empty() {
            let now = (self.clock)();
            let kept = match state.candidates.in_order(now, true).is_empty() {
                true => "it is read again at each exchange",
                false => "the tokens at hand stay in use, and it is read again at the next exchange",
            };
            let words: Vec<_> = problems.iter().map(|problem| problem.words.as_str()).collect();
            tracing::warn!("a configured source gives no OIDC token: {}; {kept}", words.join("; "));
        }
        state.source_problems = problems;
    }

    async fn exchange(&self, token: &OidcToken) -> Result<Session, Failure> {
        let duration = self.lock().duration;
        let error = match self.sts.ask(token, duration).await {
            Err(error) if duration > STEP_DOWN && error.may_be_the_duration() => error,
            other => return other,
        };
        let session = self.sts.ask(token, STEP_DOWN).await.map_err(|_| error)?;
        self.lock().duration = STEP_DOWN;
        tracing::warn!(
            session.asked_seconds = self.role.duration.as_secs(),
            session.duration_seconds = STEP_DOWN.as_secs(),
            "{}the role's maximum session is shorter than {}: sessions of 3600 s from now on; raise the role's maximum \
             session duration, or lower the variable",
            self.role.service.prefix(),
            self.role.service.duration_variable()
        );
        Ok(session)
    }

    fn session_came(&self, mut session: Session, token: &OidcToken) {
        self.meters.succeeded.increment(1);
        self.meters.session_expiry.set(session.expires_at.timestamp() as f64);
        let mut state = self.lock();
        state.candidates.gave_a_session(token);
        self.meters.show_tokens(&state.candidates);
        state.sessions += 1;
        session.id = state.sessions;
        let outage = state.outage_since.take().map(|since| session.obtained_at - since);
        session.outage_seconds = outage.map(|outage| u64::try_from(outage.num_seconds()).unwrap_or_default());
        let outage_seconds = session.outage_seconds;
        state.last_error = None;
        state.failures = 0;
        state.suspect = false;
        state.not_before = Instant::now() + LEAST_BETWEEN_ROUNDS;
        let expires_at = Timestamp(session.expires_at);
        self.session.send_replace(Some(Arc::new(session)));
        if state.phase == Phase::Holding {
            tracing::debug!(session.id = state.sessions, session.expires_at = %expires_at, "replaced the session");
        } else {
            state.phase = Phase::Holding;
            let (source, prefix) = (token.source.as_str(), self.role.service.prefix());
            tracing::info!(session.expires_at = %expires_at, token.source = source, outage.seconds = outage_seconds, "{prefix}STS gave a session for the role");
        }
    }

    fn exchange_failed(&self, token: &OidcToken, Failure { cause, mut told }: Failure) {
        let refused = cause == Cause::Refused;
        if refused { &self.meters.refused } else { &self.meters.failed }.increment(1);
        let mut state = self.lock();
        if refused {
            state.candidates.refused(token, (self.clock)());
        }
        if let Some(earlier) = &state.last_error {
            told.since = earlier.since;
        }
        state.last_error = Some(told);
    }

    /// Logs what has changed: what is waited for, or what STS says.
    fn log_phase(&self, state: &State) {
        let until = self.session.borrow().as_ref().map(|session| Timestamp(session.expires_at).to_string());
        let until = until.as_deref().unwrap_or("none");
        let (prefix, meanwhile) = (self.role.service.prefix(), self.role.service.meanwhile());
        match (state.phase, &state.last_error) {
            (Phase::NoToken, _) => tracing::warn!(
                session.expires_at = until,
                "{prefix}waiting for {}; {meanwhile}; {}",
                awaited_token(state, (self.clock)()),
                self.without_a_token
            ),
            (Phase::Refused, Some(error)) => tracing::error!(
                session.expires_at = until,
                sts.code = error.code.as_deref().unwrap_or("none"),
                sts.request_id = error.request_id.as_deref().unwrap_or("none"),
                "{prefix}STS refuses every token at hand: {}; {}",
                error.message,
                error.remedy
            ),
            (Phase::Unreachable, Some(error)) => tracing::warn!(
                session.expires_at = until,
                sts.code = error.code.as_deref().unwrap_or("none"),
                "{prefix}no session from STS for now, trying again: {}; {}",
                error.message,
                error.remedy
            ),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
