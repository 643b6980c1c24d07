//! OIDC token → session: one exchange at a time, ahead of the session's end (contract section 4).
//!
//! The only file that names `aws_sdk_sts`. Uses the identity configured here and no other.

mod candidates;
pub mod token;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use aws_sdk_sts::error::SdkError;
use aws_sdk_sts::operation::RequestId;
use aws_sdk_sts::operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityError;
use aws_smithy_runtime_api::client::behavior_version::BehaviorVersion;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_smithy_types::retry::RetryConfig;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::backoff::full_jitter;
use crate::config::Config;
use crate::network::{Network, causes};
use candidates::{Candidates, refresh_at};
use token::{OidcToken, Source};

/// What every role allows at least, and so what a too long session is stepped down to.
const STEP_DOWN: Duration = Duration::from_secs(3600);
/// A whole exchange, beside the connect time-out.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(30);
/// A 403 that isn't about the session may be: tried out on sessions this old, this often.
const SUSPECT_AGE: TimeDelta = TimeDelta::minutes(5);
/// A session that S3 refuses sooner than this was no better than the one before it: back off.
const YOUNG_SESSION: TimeDelta = TimeDelta::minutes(1);
/// The clock may jump: the plan is made anew at least this often.
const LONGEST_NAP: Duration = Duration::from_secs(30);

const REFUSAL_CAUSES: &str = "likely causes, in this order: the role's maximum session is shorter than \
    ENV0_S3_LOG_SESSION_DURATION; the role's trust policy lacks sts:TagSession; its sub or aud condition doesn't match \
    the token; the account has no OIDC provider for the issuer";
const NO_TOKEN_REMEDY: &str = "hand one over from an env0 deployment: PUT /v1/oidc-token with ENV0_OIDC_TOKEN as bearer \
    token; or keep one in ENV0_S3_LOG_OIDC_TOKEN_FILE or behind ENV0_S3_LOG_OIDC_TOKEN_URL";
const UNREACHABLE_REMEDY: &str = "nothing to do if it passes; else look at the network, the proxy and \
    ENV0_S3_LOG_AWS_REGION";

/// The way to sessions. Cheap to clone.
#[derive(Clone)]
pub struct Credentials(Arc<Inner>);

struct Inner {
    sts: aws_sdk_sts::Client,
    network: Network,
    role_arn: String,
    session_name: String,
    asked: Duration,
    token_file: Option<PathBuf>,
    token_url: Option<SecretString>,
    state: Mutex<State>,
    session: watch::Sender<Option<Arc<Session>>>,
    wake: Notify,
    metrics: Metrics,
}

/// Temporary AWS credentials. Secrets never show in `Debug`.
#[derive(Debug, Clone)]
pub struct Session {
    /// Counts from 1, to say later which session a request was signed with.
    pub id: u64,
    /// Not a secret.
    pub access_key_id: String,
    /// Signs requests.
    pub secret_access_key: SecretString,
    /// Goes with each request.
    pub session_token: SecretString,
    obtained_at: DateTime<Utc>,
    /// The end, by our clock.
    pub expires_at: DateTime<Utc>,
}

struct State {
    candidates: Candidates,
    phase: Phase,
    last_error: Option<ExchangeError>,
    source_problems: Vec<String>,
    duration: Duration,
    sessions: u64,
    failures: u32,
    young_refusals: u32,
    not_before: Instant,
    /// A token came since the last round began.
    offered: bool,
    /// The session may be the reason for a 403.
    suspect: bool,
    last_suspicion: Option<DateTime<Utc>>,
}

/// How the last attempt to get a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Starting,
    Holding,
    NoToken,
    Refused,
    Unreachable,
}

/// What `/status` and `check` say about credentials. Holds no secret.
#[derive(Debug, Clone, Serialize)]
pub struct CredentialsStatus {
    /// As configured.
    pub role_arn: String,
    /// In words.
    pub state: &'static str,
    /// RFC 3339; `None` when there is no usable session.
    pub session_expires_at: Option<String>,
    /// Seconds that sessions are asked for, after a step-down 3600.
    pub session_duration_seconds: u64,
    /// What is missing.
    pub waits_for: Option<String>,
    /// How to end that.
    pub remedy: Option<&'static str>,
    /// Until an exchange succeeds.
    pub last_error: Option<ExchangeError>,
    /// At most 16.
    pub tokens: Vec<TokenStatus>,
}

/// Why STS gave no session.
#[derive(Debug, Clone, Serialize)]
pub struct ExchangeError {
    /// The token or the role is at fault, rather than the network or STS's load.
    pub refused: bool,
    /// STS's own code.
    pub code: Option<String>,
    /// For AWS support.
    pub request_id: Option<String>,
    /// STS's words.
    pub message: String,
    /// RFC 3339, of the first failure in a row.
    pub since: String,
}

/// A token, told apart but not told.
#[derive(Debug, Clone, Serialize)]
pub struct TokenStatus {
    /// The beginning of its `sub`.
    pub subject: Option<String>,
    /// RFC 3339.
    pub expires_at: Option<String>,
    /// `hand-over`, `file`, `url` or `environment`.
    pub source: &'static str,
    /// STS refused it; it is tried again after all others.
    pub set_aside: bool,
}

struct Metrics {
    succeeded: metrics::Counter,
    refused: metrics::Counter,
    failed: metrics::Counter,
    session_expiry: metrics::Gauge,
    token_expiry: metrics::Gauge,
}

impl Metrics {
    fn new() -> Metrics {
        let exchanges = |outcome| metrics::counter!("env0_s3_logs_sts_exchanges_total", "outcome" => outcome);
        Metrics {
            succeeded: exchanges("succeeded"),
            refused: exchanges("refused"),
            failed: exchanges("failed"),
            session_expiry: metrics::gauge!("env0_s3_logs_credentials_expiry_timestamp_seconds"),
            token_expiry: metrics::gauge!("env0_s3_logs_oidc_token_expiry_timestamp_seconds"),
        }
    }
}

impl Credentials {
    /// Starts the background exchange, which ends with `shutdown`. Needs a Tokio runtime.
    pub fn start(config: &Config, network: &Network, instance_id: &str, shutdown: CancellationToken) -> Credentials {
        let endpoint = config.endpoint_url_sts.as_deref();
        let mut sts = aws_sdk_sts::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(aws_sdk_sts::config::Region::new(config.aws_region.clone()))
            .http_client(network.aws(endpoint))
            .retry_config(RetryConfig::disabled());
        sts.set_endpoint_url(endpoint.map(str::to_owned));
        let mut candidates = Candidates::default();
        if let Some(token) = &config.oidc_token {
            let token = OidcToken::own(token.expose_secret(), Source::Environment);
            token.map(|token| candidates.add(token, Utc::now()));
        }
        let credentials = Credentials(Arc::new(Inner {
            sts: aws_sdk_sts::Client::from_conf(sts.build()),
            network: network.clone(),
            role_arn: config.role_arn.clone(),
            session_name: format!("env0-s3-logs-{instance_id}"),
            asked: config.session_duration,
            token_file: config.oidc_token_file.clone(),
            token_url: config.oidc_token_url.clone(),
            state: Mutex::new(State {
                candidates,
                phase: Phase::Starting,
                last_error: None,
                source_problems: Vec::new(),
                duration: config.session_duration,
                sessions: 0,
                failures: 0,
                young_refusals: 0,
                not_before: Instant::now(),
                offered: false,
                suspect: false,
                last_suspicion: None,
            }),
            session: watch::Sender::new(None),
            wake: Notify::new(),
            metrics: Metrics::new(),
        }));
        let inner = Arc::clone(&credentials.0);
        tokio::spawn(async move {
            shutdown.run_until_cancelled(inner.keep_a_session()).await;
        });
        credentials
    }

    /// The current session, unless it has ended by our clock.
    pub fn session(&self) -> Option<Arc<Session>> {
        self.0.session.borrow().clone().filter(|session| Utc::now() < session.expires_at)
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

    /// S3 refused a request signed with the session `session_id`: `explicit`ly as expired or invalid,
    /// or by any other 403. A session that was replaced meanwhile is left alone.
    pub fn refused(&self, session_id: u64, explicit: bool) {
        let now = Utc::now();
        let Some(session) = self.0.session.borrow().clone().filter(|session| session.id == session_id) else { return };
        let age = now - session.obtained_at;
        let mut state = self.0.lock();
        if explicit {
            tracing::warn!(session.id = session_id, "S3 refused the session as expired or invalid; fetching a new one");
            state.young_refusals = if age < YOUNG_SESSION { state.young_refusals.saturating_add(1) } else { 0 };
            let wait = match state.young_refusals {
                0 => Duration::ZERO,
                refusals => full_jitter(refusals, rand::random()),
            };
            state.not_before = Instant::now() + wait;
            self.0.session.send_replace(None);
            self.0.metrics.session_expiry.set(0.0);
        } else {
            let lately = state.last_suspicion.is_some_and(|last| now - last < SUSPECT_AGE);
            if age < SUSPECT_AGE || lately || state.suspect {
                return;
            }
            state.suspect = true;
            state.last_suspicion = Some(now);
        }
        drop(state);
        self.0.wake.notify_one();
    }

    /// Takes in a token that was handed over and verified. False when it is at hand already.
    pub fn offer(&self, token: OidcToken) -> bool {
        let mut state = self.0.lock();
        if !state.candidates.add(token, Utc::now()) {
            return false;
        }
        self.0.metrics.show_tokens(&state);
        state.offered = true;
        if state.failures > 0 {
            state.not_before = Instant::now();
        }
        drop(state);
        self.0.wake.notify_one();
        true
    }

    /// A snapshot for people.
    pub fn status(&self) -> CredentialsStatus {
        let session = self.session();
        let state = self.0.lock();
        let (waits_for, remedy) = match state.phase {
            Phase::Starting | Phase::Holding => (None, None),
            Phase::NoToken => (Some(no_token(&state)), Some(NO_TOKEN_REMEDY)),
            Phase::Refused => (Some("a token or a trust policy that STS accepts".to_owned()), Some(REFUSAL_CAUSES)),
            Phase::Unreachable => (Some("STS to answer".to_owned()), Some(UNREACHABLE_REMEDY)),
        };
        CredentialsStatus {
            role_arn: self.0.role_arn.clone(),
            state: describe(state.phase, session.is_some()),
            session_expires_at: session.map(|session| rfc3339(session.expires_at)),
            session_duration_seconds: state.duration.as_secs(),
            waits_for,
            remedy,
            last_error: state.last_error.clone(),
            tokens: state
                .candidates
                .all()
                .map(|(token, set_aside)| TokenStatus {
                    subject: token.shortened_subject(),
                    expires_at: token.expires_at.map(rfc3339),
                    source: token.source.as_str(),
                    set_aside,
                })
                .collect(),
        }
    }
}

fn describe(phase: Phase, holds_session: bool) -> &'static str {
    match (phase, holds_session) {
        (Phase::Holding, true) => "holds a session",
        (Phase::Starting | Phase::Holding, _) => "fetches a session",
        (Phase::NoToken, true) => "holds a session, and no token for the next one",
        (Phase::NoToken, false) => "waits for an OIDC token",
        (Phase::Refused, true) => "holds a session, and STS refuses the next one",
        (Phase::Refused, false) => "STS refuses every token at hand",
        (Phase::Unreachable, true) => "holds a session, and STS is out of reach for the next one",
        (Phase::Unreachable, false) => "STS is out of reach",
    }
}

fn no_token(state: &State) -> String {
    let expired = if state.candidates.all().next().is_some() { " (every one at hand has expired)" } else { "" };
    let problems = state.source_problems.iter().map(|problem| format!("; {problem}")).collect::<String>();
    format!("an OIDC token{expired}{problems}")
}

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

impl Metrics {
    fn show_tokens(&self, state: &State) {
        self.token_expiry.set(state.candidates.last_expiry().map_or(0.0, |end| end.timestamp() as f64));
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
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
        let backoff = state.not_before.saturating_duration_since(Instant::now());
        let session = self.session.borrow();
        let refresh = match session.as_ref().filter(|_| !state.suspect) {
            Some(session) => refresh_at(session.obtained_at, session.expires_at, state.candidates.last_expiry()),
            None => return backoff,
        };
        backoff.max((refresh - Utc::now()).to_std().unwrap_or_default())
    }

    /// Asks STS about each token in turn, until one is taken or STS can't be asked.
    async fn exchange_any(&self) {
        self.read_sources().await;
        let tokens = {
            let mut state = self.lock();
            state.offered = false;
            state.candidates.in_order(Utc::now())
        };
        let mut phase = Phase::NoToken;
        for token in tokens {
            match self.exchange(&token).await {
                Ok(session) => return self.hold(session, &token),
                Err(error) => {
                    phase = if error.refused { Phase::Refused } else { Phase::Unreachable };
                    self.note(&token, error);
                    if phase == Phase::Unreachable {
                        break;
                    }
                }
            }
        }
        let mut state = self.lock();
        state.failures = state.failures.saturating_add(1);
        if !state.offered {
            state.not_before = Instant::now() + full_jitter(state.failures, rand::random());
        }
        self.metrics.show_tokens(&state);
        if state.phase != phase {
            state.phase = phase;
            self.log(&state);
        }
    }

    /// Reads the operator's own sources; what fails is told with the state, once.
    async fn read_sources(&self) {
        let mut problems = Vec::new();
        let mut found = Vec::new();
        if let Some(path) = &self.token_file {
            match read_small(path) {
                Ok(text) => match OidcToken::own(&text, Source::File) {
                    Some(token) => found.push(token),
                    None => problems.push("ENV0_S3_LOG_OIDC_TOKEN_FILE: the file is empty".to_owned()),
                },
                Err(error) => problems.push(format!("ENV0_S3_LOG_OIDC_TOKEN_FILE: {error}")),
            }
        }
        if let Some(url) = &self.token_url {
            match self.network.fetch(url.expose_secret()).await {
                Ok(body) => match token_in(&body) {
                    Some(token) => found.push(token),
                    None => problems.push("ENV0_S3_LOG_OIDC_TOKEN_URL: no token in the answer".to_owned()),
                },
                Err(error) => problems.push(format!("ENV0_S3_LOG_OIDC_TOKEN_URL: {error}")),
            }
        }
        let mut state = self.lock();
        for token in found {
            state.candidates.add(token, Utc::now());
        }
        if state.source_problems != problems && !problems.is_empty() {
            tracing::warn!("a configured source gives no OIDC token: {}", problems.join("; "));
        }
        state.source_problems = problems;
    }

    async fn exchange(&self, token: &OidcToken) -> Result<Session, ExchangeError> {
        let duration = self.lock().duration;
        let error = match self.ask(token, duration).await {
            Err(error) if duration > STEP_DOWN && error.may_be_the_duration() => error,
            other => return other,
        };
        let session = self.ask(token, STEP_DOWN).await.map_err(|_| error)?;
        self.lock().duration = STEP_DOWN;
        tracing::warn!(
            session.asked_seconds = self.asked.as_secs(),
            session.duration_seconds = STEP_DOWN.as_secs(),
            "the role's maximum session is shorter than ENV0_S3_LOG_SESSION_DURATION: sessions of 3600 s from now on; \
             raise the role's maximum session duration, or lower the variable"
        );
        Ok(session)
    }

    async fn ask(&self, token: &OidcToken, duration: Duration) -> Result<Session, ExchangeError> {
        let request = self
            .sts
            .assume_role_with_web_identity()
            .role_arn(&self.role_arn)
            .role_session_name(&self.session_name)
            .duration_seconds(i32::try_from(duration.as_secs()).unwrap_or(i32::MAX))
            .web_identity_token(token.expose());
        let answer = match tokio::time::timeout(EXCHANGE_TIMEOUT, request.send()).await {
            Ok(answer) => answer.map_err(|error| ExchangeError::new(&error, token))?,
            Err(_) => return Err(ExchangeError::unreachable("no answer from STS within 30 s".to_owned())),
        };
        let keys = answer.credentials().ok_or_else(|| ExchangeError::unreachable("STS sent no session".to_owned()))?;
        let obtained_at = Utc::now();
        let asked_end = obtained_at + duration;
        // An end that is over already means that our clock is ahead: what was asked is what counts then.
        let end = DateTime::from_timestamp(keys.expiration().secs(), 0).filter(|end| *end > obtained_at);
        Ok(Session {
            id: 0,
            access_key_id: keys.access_key_id().to_owned(),
            secret_access_key: keys.secret_access_key().into(),
            session_token: keys.session_token().into(),
            obtained_at,
            expires_at: end.map_or(asked_end, |end| end.min(asked_end)),
        })
    }

    fn hold(&self, mut session: Session, token: &OidcToken) {
        self.metrics.succeeded.increment(1);
        self.metrics.session_expiry.set(session.expires_at.timestamp() as f64);
        let mut state = self.lock();
        state.candidates.judged(token, false);
        self.metrics.show_tokens(&state);
        state.sessions += 1;
        session.id = state.sessions;
        state.last_error = None;
        state.failures = 0;
        state.suspect = false;
        state.not_before = Instant::now();
        let expires_at = rfc3339(session.expires_at);
        self.session.send_replace(Some(Arc::new(session)));
        if state.phase == Phase::Holding {
            tracing::debug!(session.id = state.sessions, session.expires_at = %expires_at, "replaced the session");
        } else {
            state.phase = Phase::Holding;
            let source = token.source.as_str();
            tracing::info!(session.expires_at = %expires_at, token.source = source, "STS gave a session for the role");
        }
    }

    fn note(&self, token: &OidcToken, mut error: ExchangeError) {
        if error.refused { &self.metrics.refused } else { &self.metrics.failed }.increment(1);
        let mut state = self.lock();
        if error.refused {
            state.candidates.judged(token, true);
        }
        if let Some(earlier) = &state.last_error {
            error.since.clone_from(&earlier.since);
        }
        state.last_error = Some(error);
    }

    fn log(&self, state: &State) {
        let until = self.session.borrow().as_ref().map(|session| rfc3339(session.expires_at));
        let until = until.as_deref().unwrap_or("none");
        match (state.phase, &state.last_error) {
            (Phase::NoToken, _) => tracing::warn!(
                session.expires_at = until,
                "waiting for {}; events stay in the spool meanwhile; {NO_TOKEN_REMEDY}",
                no_token(state)
            ),
            (Phase::Refused, Some(error)) => tracing::error!(
                session.expires_at = until,
                sts.code = error.code.as_deref().unwrap_or("none"),
                sts.request_id = error.request_id.as_deref().unwrap_or("none"),
                "STS refuses every token at hand: {}; {REFUSAL_CAUSES}",
                error.message
            ),
            (Phase::Unreachable, Some(error)) => tracing::warn!(
                session.expires_at = until,
                sts.code = error.code.as_deref().unwrap_or("none"),
                "no session from STS for now, trying again: {}",
                error.message
            ),
            _ => {}
        }
    }
}

/// Blocks, but for a page or two at most, and seldom.
fn read_small(path: &Path) -> std::io::Result<String> {
    const MAX_BYTES: u64 = 64 * 1024;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// Raw, or JSON with `token`, `value`, `access_token` or `id_token`.
fn token_in(body: &[u8]) -> Option<OidcToken> {
    let text = std::str::from_utf8(body).ok()?.trim();
    if let Ok(serde_json::Value::Object(fields)) = serde_json::from_str(text) {
        let named =
            ["token", "value", "access_token", "id_token"].into_iter().find_map(|name| fields.get(name)?.as_str());
        return OidcToken::own(named?, Source::Url);
    }
    let raw = serde_json::from_str::<String>(text);
    OidcToken::own(raw.as_deref().unwrap_or(text), Source::Url)
}

impl ExchangeError {
    fn unreachable(message: String) -> ExchangeError {
        ExchangeError { refused: false, code: None, request_id: None, message, since: rfc3339(Utc::now()) }
    }

    fn new(error: &SdkError<AssumeRoleWithWebIdentityError>, token: &OidcToken) -> ExchangeError {
        let Some(refusal) = error.as_service_error() else {
            return ExchangeError::unreachable(causes(error));
        };
        let status = error.raw_response().map_or(0, |response| response.status().as_u16());
        let code = refusal.code().map(str::to_owned);
        let words = refusal.message().map_or_else(|| causes(refusal), str::to_owned);
        // A validation error repeats what it was given.
        let message = words.replace(token.expose(), "[token]");
        let transient = match code.as_deref() {
            Some("IDPCommunicationError" | "IDPCommunicationErrorException" | "Throttling" | "ThrottlingException") => {
                true
            }
            Some("RequestLimitExceeded" | "TooManyRequestsException" | "RegionDisabledException") => true,
            Some("InvalidIdentityToken" | "InvalidIdentityTokenException") => message.contains("verification key"),
            None => true,
            Some(_) => status == 429 || status >= 500,
        };
        let request_id = error.request_id().map(str::to_owned);
        ExchangeError { refused: !transient, code, request_id, message, since: rfc3339(Utc::now()) }
    }

    /// The words don't always name the duration.
    fn may_be_the_duration(&self) -> bool {
        self.refused && (self.code.as_deref() == Some("AccessDenied") || self.message.contains("DurationSeconds"))
    }
}
