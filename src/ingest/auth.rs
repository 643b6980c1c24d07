//! Who may send what: static tokens and env0 OIDC tokens; the hand-over of the latter to the credentials.

mod token_file;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderName};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use bytes::Bytes;

use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;

use crate::batch::{LogType, Sha256};
use crate::config::Config;
use crate::credentials::{Credentials, Offer};
use crate::http::listener::{Guest, Trust};
use crate::http::refusals::LastMet;
use crate::metric_table;
use crate::oidc::{OidcToken, Reason, Verifier, VerifyError, looks_like_jwt};
use crate::protocols::{BadCredentials, Head, Refusal};
use token_file::{StaticToken, TokenFile};
pub use token_file::{TokenFileError, characters_to_escape, token_file_problem, token_file_types};

/// Where an OIDC token travels beside other credentials.
pub const OIDC_TOKEN_HEADER: HeaderName = HeaderName::from_static("x-env0-oidc-token");

/// How long events wait for the hand-over beside them.
const BESIDE_PATIENCE: Duration = Duration::from_secs(1);
/// Hand-overs beside events that may go on at once, while an issuer is slow: of requests whose credentials hold, and of
/// all others.
const BESIDE_MAX: usize = 16;
const BESIDE_STRANGERS_MAX: usize = 4;
const RETRY_ISSUER_SECONDS: u64 = 5;
/// Label of `auth_failures_total`.
const WRONG_TYPE: &str = "wrong_type";

/// Who a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// `ENV0_S3_LOG_INGEST_AUTH=none`
    Anonymous,
    /// The bearer of a static token.
    Static {
        /// The only log type that a typed token writes.
        log_type: Option<LogType>,
    },
    /// A deployment, by env0's word.
    Oidc,
}

impl Identity {
    /// Whether these credentials write `log_type`: those who deploy don't write the audit trail.
    pub fn may_write(&self, log_type: LogType) -> bool {
        self.log_type().is_none_or(|own| own == log_type)
    }

    /// Whether few or many hold such credentials.
    pub fn trust(&self) -> Trust {
        if self.may_write(LogType::Audits) { Trust::Rare } else { Trust::Common }
    }

    /// The type that these credentials decide, over anything the request says.
    pub fn log_type(&self) -> Option<LogType> {
        match self {
            Identity::Anonymous => None,
            Identity::Static { log_type } => *log_type,
            Identity::Oidc => Some(LogType::Deployments),
        }
    }
}

/// Why a request isn't let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// 401: no credentials.
    #[error("no credentials")]
    Missing,
    /// 401: an `Authorization` of one word, where a scheme and a token are two.
    #[error("no scheme, or no token after it")]
    Incomplete,
    /// 401: wrong ones.
    #[error("wrong credentials")]
    Invalid,
    /// 401: an OIDC token that breaks this rule.
    #[error("the OIDC token is refused: {}", .0.words())]
    Refused(Reason),
    /// 401: they contradict each other.
    #[error("{0}")]
    Malformed(&'static str),
    /// 503: nothing can be said now.
    #[error("the OIDC token can't be verified now: {reason}")]
    Unavailable {
        /// Without anything secret.
        reason: String,
    },
    /// 503: the credentials keep no more tokens.
    #[error("the OIDC token can't be kept now: those at hand end later, and STS has not judged them yet")]
    NoRoom,
}

impl AuthError {
    /// The label `reason` of `auth_failures_total`.
    fn reason(&self) -> &'static str {
        match self {
            AuthError::Missing => "missing",
            AuthError::Invalid | AuthError::Refused(_) => "invalid",
            AuthError::Incomplete | AuthError::Malformed(_) => "malformed",
            AuthError::Unavailable { .. } | AuthError::NoRoom => "unavailable",
        }
    }

    /// What the operator is told of it.
    fn for_log(&self) -> &'static str {
        match self {
            AuthError::Missing => "there were none",
            AuthError::Incomplete => "Authorization was one word, where a scheme and a token are two (Bearer <token>)",
            AuthError::Invalid | AuthError::Refused(_) => {
                "their token is none of ENV0_S3_LOG_INGEST_TOKEN and ENV0_S3_LOG_INGEST_TOKEN_FILE (of an OIDC token \
                 another line says why)"
            }
            AuthError::Malformed(why) => why,
            AuthError::Unavailable { .. } | AuthError::NoRoom => "they can't be judged now",
        }
    }
}

impl From<AuthError> for Refusal {
    fn from(error: AuthError) -> Refusal {
        match error {
            AuthError::Missing => Refusal::Unauthorized(BadCredentials::Missing),
            AuthError::Incomplete => Refusal::Unauthorized(BadCredentials::Incomplete),
            AuthError::Invalid | AuthError::Refused(_) | AuthError::Malformed(_) => {
                Refusal::Unauthorized(BadCredentials::Unknown)
            }
            AuthError::Unavailable { .. } | AuthError::NoRoom => {
                Refusal::Unavailable { reason: error.to_string(), retry_after_seconds: RETRY_ISSUER_SECONDS }
            }
        }
    }
}

impl From<VerifyError> for AuthError {
    fn from(error: VerifyError) -> AuthError {
        match error {
            VerifyError::Refused(refusal) => AuthError::Refused(refusal.reason),
            VerifyError::Unavailable(reason) => AuthError::Unavailable { reason },
        }
    }
}

/// Judges credentials. Cheap to clone.
#[derive(Clone)]
pub struct Authenticator(Arc<Inner>);

struct Inner {
    required: bool,
    own: Option<StaticToken>,
    file: Option<TokenFile>,
    verifier: Verifier,
    credentials: Credentials,
    beside: Arc<Semaphore>,
    beside_strangers: Arc<Semaphore>,
    told: Told,
}

/// When the log was last told of each reason, so that it says it once in a while.
#[derive(Default)]
struct Told(Mutex<BTreeMap<&'static str, LastMet>>);

impl Told {
    fn tell(&self, reason: &'static str, words: &str, guest: &Guest) {
        let is_news = self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default().is_news();
        if is_news {
            tracing::warn!(
                client.address = %guest.network(),
                reason,
                "refused the credentials of a request for events: {words}; more of them are only counted, in {}",
                metric_table::AUTH_FAILURES
            );
        }
    }
}

impl Authenticator {
    /// Reads the token file a first time.
    pub fn new(config: &Config, verifier: Verifier, credentials: Credentials) -> Result<Authenticator, TokenFileError> {
        let own = config.ingest_token.as_ref().map(|token| StaticToken::new(token.expose_secret(), None));
        let file = config.ingest_token_file.as_deref().map(TokenFile::new).transpose()?;
        for reason in ["missing", "invalid", "malformed", "unavailable", WRONG_TYPE] {
            auth_failures(reason).increment(0);
        }
        for outcome in ["accepted", "known", "set_aside", "no_room", "refused", "unavailable"] {
            hand_overs(outcome).increment(0);
        }
        Ok(Authenticator(Arc::new(Inner {
            required: config.ingest_auth_required,
            own,
            file,
            verifier,
            credentials,
            beside: Arc::new(Semaphore::new(BESIDE_MAX)),
            beside_strangers: Arc::new(Semaphore::new(BESIDE_STRANGERS_MAX)),
            told: Told::default(),
        })))
    }

    /// Counts good credentials that may not write the log type of their request, and tells of them.
    pub fn refuse_wrong_type(&self, guest: &Guest) {
        auth_failures(WRONG_TYPE).increment(1);
        self.0.told.tell(WRONG_TYPE, "they are good, and may not write the log type that the request names", guest);
    }

    /// Looks whether the token file changed, and reads it then. Waits for the disk.
    pub fn look(&self) {
        if let Some(file) = &self.0.file {
            file.look();
        }
    }

    /// Reads the token file now, whether it changed or not. Waits for the disk.
    pub fn reload(&self) {
        if let Some(file) = &self.0.file {
            file.reload();
        }
    }

    /// Judges the credentials of a request for events: the token in `Authorization` (`Bearer`,
    /// `Splunk`, or `Basic`, whose password is the token), or `carried`, the one that the request's
    /// protocol carries elsewhere. An OIDC token that holds is handed over too, unless the request is
    /// for the log type `named`, which it may not write.
    pub async fn authenticate(
        &self,
        guest: &Guest,
        headers: &HeaderMap,
        carried: Option<&str>,
        named: Option<LogType>,
    ) -> Result<Identity, AuthError> {
        let identity = self.judge_all(guest, headers, carried, named).await;
        let identity = match identity {
            judged @ (Ok(Identity::Static { .. }) | Err(AuthError::Malformed(_))) => judged,
            _ if !self.0.required => Ok(Identity::Anonymous),
            judged => judged,
        };
        identity.inspect_err(|error| {
            count_failure(error);
            // The issuer's failures have their own line.
            if !matches!(error, AuthError::Unavailable { .. } | AuthError::NoRoom) {
                self.0.told.tell(error.reason(), error.for_log(), guest);
            }
        })
    }

    async fn judge_all(
        &self,
        guest: &Guest,
        headers: &HeaderMap,
        carried: Option<&str>,
        named: Option<LogType>,
    ) -> Result<Identity, AuthError> {
        let presented = match token_of(headers) {
            Err(AuthError::Incomplete | AuthError::Invalid) if carried.is_some() => None,
            presented => presented?,
        };
        let mut outcome = Err(AuthError::Missing);
        for token in presented.as_deref().into_iter().chain(carried) {
            match self.judge(guest, token, named).await {
                Err(AuthError::Invalid | AuthError::Refused(_))
                    if matches!(outcome, Err(AuthError::Unavailable { .. })) => {}
                judged => outcome = judged,
            }
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    /// Hands over the OIDC token that travels in [`OIDC_TOKEN_HEADER`] beside other credentials. A bad
    /// one is counted, and changes nothing for the events, which don't wait for a slow issuer either. `is_known` says
    /// whether the other credentials hold: strangers take no place from those whose do.
    pub async fn hand_over_beside(&self, guest: &Guest, headers: &HeaderMap, is_known: bool) {
        let Some(token) = headers.get(OIDC_TOKEN_HEADER).and_then(|value| value.to_str().ok()) else { return };
        let places = if is_known { &self.0.beside } else { &self.0.beside_strangers };
        let Ok(permit) = Arc::clone(places).try_acquire_owned() else {
            return hand_overs("unavailable").increment(1);
        };
        let (this, guest, token) = (self.clone(), guest.clone(), SecretString::from(token));
        let hand_over = tokio::spawn(async move {
            let _permit = permit;
            let _ = this.hand_over(&guest, token.expose_secret()).await;
        });
        let _ = tokio::time::timeout(BESIDE_PATIENCE, hand_over).await;
    }

    /// Verifies an OIDC token and gives it to the credentials. Needed whatever
    /// `ENV0_S3_LOG_INGEST_AUTH` says.
    pub async fn hand_over(&self, guest: &Guest, token: &str) -> Result<(), AuthError> {
        let verified = self.verify(guest, token).await?;
        match self.offer(verified) {
            // With a session, nothing is missed: the token that gave it stays.
            Offer::NoRoom if self.0.credentials.session().is_none() => Err(AuthError::NoRoom),
            Offer::NoRoom | Offer::Accepted | Offer::Known | Offer::SetAside => Ok(()),
        }
    }

    async fn verify(&self, guest: &Guest, token: &str) -> Result<OidcToken, AuthError> {
        // A body may be a file with a byte order mark.
        let token = token.trim_start_matches('\u{feff}').trim();
        let (now, turn) = (crate::batch::now(), guest.signature_turn());
        let mut verified = self.0.verifier.verify_in_turn(token, now, turn).await.map_err(AuthError::from);
        let outcome = match &mut verified {
            Ok(token) => {
                guest.has_shown(Trust::Common);
                token.client = Some(guest.network());
                None
            }
            Err(AuthError::Unavailable { .. }) => Some("unavailable"),
            Err(_) => Some("refused"),
        };
        if let Some(outcome) = outcome {
            hand_overs(outcome).increment(1);
        }
        verified
    }

    fn offer(&self, token: OidcToken) -> Offer {
        let offer = self.0.credentials.offer(token);
        let outcome = match offer {
            Offer::Accepted => "accepted",
            Offer::Known => "known",
            Offer::SetAside => "set_aside",
            Offer::NoRoom => "no_room",
        };
        hand_overs(outcome).increment(1);
        offer
    }

    /// Hands over the token of a `PUT /v1/oidc-token`: a JWT in `Authorization`, which needs no body;
    /// else `body`, which is read only then. `None` is one that is too long for a token. `E` is why a body can't be read.
    pub async fn hand_over_request<E>(
        &self,
        guest: &Guest,
        head: Head,
        body: impl Future<Output = Result<Option<Bytes>, E>>,
    ) -> Result<Result<(), AuthError>, E> {
        let presented = token_of(&head.headers).map(|token| token.map(|token| SecretString::from(token.as_ref())));
        // A thousand strangers whose tokens come slowly would keep 20 MiB of heads.
        drop(head);
        let outcome = match &presented {
            Err(error @ AuthError::Malformed(_)) => Err(error.clone()),
            Ok(Some(token)) if looks_like_jwt(token.expose_secret()) => {
                self.hand_over(guest, token.expose_secret()).await
            }
            _ => match body.await? {
                None => {
                    self.0.verifier.refused(Reason::TooLong);
                    Err(AuthError::Refused(Reason::TooLong))
                }
                Some(body) if body.trim_ascii().is_empty() => {
                    self.0.verifier.refused(Reason::Empty);
                    let has_none = matches!(presented, Ok(None));
                    Err(if has_none { AuthError::Missing } else { AuthError::Refused(Reason::Empty) })
                }
                // A token is ASCII: anything else is none.
                Some(body) => self.hand_over(guest, std::str::from_utf8(&body).unwrap_or_default()).await,
            },
        };
        Ok(outcome.inspect_err(count_failure))
    }

    async fn judge(&self, guest: &Guest, token: &str, named: Option<LogType>) -> Result<Identity, AuthError> {
        if let Some(log_type) = self.static_token(token) {
            return Ok(Identity::Static { log_type });
        }
        if !looks_like_jwt(token) {
            return Err(AuthError::Invalid);
        }
        // Most tokens are static ones, whose requests need no room for this.
        let verified = Box::pin(self.verify(guest, token)).await?;
        if !self.0.required || named.is_none_or(|named| Identity::Oidc.may_write(named)) {
            self.offer(verified);
        }
        Ok(Identity::Oidc)
    }

    /// The type of the static token that this is, if it is one. A query in which nobody escaped the `+` of a token in
    /// base64 brings a space in its place; no static token has one.
    fn static_token(&self, token: &str) -> Option<Option<LogType>> {
        let found = self.same_token(token);
        if found.is_none() && token.contains(' ') { self.same_token(&token.replace(' ', "+")) } else { found }
    }

    /// Compares with every token, by digests: neither which one nor how much of it fits shows in
    /// the time that it takes.
    fn same_token(&self, token: &str) -> Option<Option<LogType>> {
        let digest = Sha256::of(token.as_bytes());
        let from_file = self.0.file.as_ref().map(TokenFile::current);
        let tokens = self.0.own.iter().chain(from_file.iter().flat_map(|tokens| tokens.iter()));
        tokens.fold(None, |found, token| {
            let fits = verify_slices_are_equal(&token.digest.0, &digest.0).is_ok();
            if fits { found.or(Some(token.log_type)) } else { found }
        })
    }
}

fn count_failure(error: &AuthError) {
    auth_failures(error.reason()).increment(1);
}

fn auth_failures(reason: &'static str) -> metrics::Counter {
    metrics::counter!(metric_table::AUTH_FAILURES, "reason" => reason)
}

fn hand_overs(outcome: &'static str) -> metrics::Counter {
    metrics::counter!(metric_table::TOKEN_HANDOVERS, "outcome" => outcome)
}

/// The token in `Authorization`; `None` without that header.
fn token_of(headers: &HeaderMap) -> Result<Option<Cow<'_, str>>, AuthError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(AuthError::Malformed("more than one Authorization header"));
    }
    let value = value.to_str().map_err(|_| AuthError::Invalid)?.trim_ascii();
    // The scheme is so short that a search by characters takes longer.
    let space = value.bytes().position(|byte| byte == b' ').ok_or(AuthError::Incomplete)?;
    let (scheme, token) = value.split_at(space);
    let token = token.trim_ascii();
    if scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("splunk") {
        return Ok(Some(token.into()));
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let decoded = STANDARD.decode(token).or_else(|_| STANDARD_NO_PAD.decode(token));
        let pair = decoded.ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or(AuthError::Invalid)?;
        let (_user, password) = pair.split_once(':').ok_or(AuthError::Invalid)?;
        return Ok(Some(password.to_owned().into()));
    }
    Err(AuthError::Invalid)
}

#[cfg(test)]
mod tests;
