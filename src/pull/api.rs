//! env0's REST API as far as the daemon asks it: the requests, and answers read in pieces of bounded memory.
//!
//! A request is repeated a few times where that can help (429, 5xx, no answer), and then fails for this round.
//! No error holds a byte of an answer: records hold secrets.

mod pace;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{ACCEPT, DATE, HeaderMap, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::sync::{Mutex, OwnedMutexGuard, Semaphore};

use crate::backoff;
use crate::config;
use crate::network::{Network, causes};
use crate::pull::api::pace::Pace;

/// Requests under way at once, whatever they ask for.
const AT_ONCE: usize = 8;
/// A larger answer is refused: a page of the largest kind has less.
const ANSWER_MAX_BYTES: usize = 32 * 1024 * 1024;
/// Answers above this size are held one at a time, so that all together stay below 8 MiB and one of the largest.
const LARGE_ANSWER_BYTES: usize = 1024 * 1024;
/// Of an answer that is an error, only what tells its kind is read.
const ERROR_MAX_BYTES: usize = 64 * 1024;
/// From the first byte sent to the last received; connecting has a limit of its own.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// A request that goes on failing is left to the next round, so that it doesn't hold up the others.
const ATTEMPTS_MAX: u32 = 4;
/// env0's limit is counted over 60 s, so that no honest wait is much longer.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);
/// What stays as it is in a segment of a path: steps have `:` and `/` in their names.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// What env0's gateway answers to a path that doesn't exist.
const WRONG_PATH_MESSAGE: &str = "Missing Authentication Token";

/// The kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `GET /organizations`
    Organizations,
    /// `GET /audit/events`
    AuditEvents,
    /// `GET /environments`
    Environments,
    /// `GET /environments/{id}/deployments`
    Deployments,
    /// `GET /deployments/{id}/steps`
    Steps,
    /// `GET /deployments/{id}/steps/{name}/log`
    StepLog,
    /// `GET /log-forwarding/configurations`
    Forwarding,
}

impl Endpoint {
    /// The label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Endpoint::Organizations => "organizations",
            Endpoint::AuditEvents => "audit_events",
            Endpoint::Environments => "environments",
            Endpoint::Deployments => "deployments",
            Endpoint::Steps => "steps",
            Endpoint::StepLog => "step_log",
            Endpoint::Forwarding => "log_forwarding",
        }
    }

    /// The request as messages name it.
    pub fn request(self) -> &'static str {
        match self {
            Endpoint::Organizations => "GET /organizations",
            Endpoint::AuditEvents => "GET /audit/events",
            Endpoint::Environments => "GET /environments",
            Endpoint::Deployments => "GET /environments/{id}/deployments",
            Endpoint::Steps => "GET /deployments/{id}/steps",
            Endpoint::StepLog => "GET /deployments/{id}/steps/{name}/log",
            Endpoint::Forwarding => "GET /log-forwarding/configurations",
        }
    }

    /// The permission that the key's role needs for it.
    fn permission(self) -> &'static str {
        match self {
            Endpoint::AuditEvents => "VIEW_AUDIT_LOGS",
            Endpoint::Organizations | Endpoint::Forwarding => "VIEW_ORGANIZATION",
            Endpoint::Environments | Endpoint::Deployments | Endpoint::Steps | Endpoint::StepLog => "VIEW_ENVIRONMENT",
        }
    }
}

/// Why a request brought nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ErrorKind {
    /// 401
    Unauthorized,
    /// 403: the key's role lacks a permission, or the organization doesn't let this address in.
    Forbidden,
    /// 403 with the gateway's message for a path that doesn't exist.
    WrongUrl,
    /// 404
    Gone,
    /// Another 4xx.
    Refused(u16),
    /// 429, as often as it was tried.
    Throttled,
    /// 5xx, as often as it was tried.
    Server(u16),
    /// No answer, or one that broke off or took too long; the reason in words.
    Unreachable(String),
    /// More than 32 MiB.
    TooLarge,
    /// Not what is documented; what was missing.
    Malformed(String),
}

/// A request that brought nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.message())]
pub struct ApiError {
    /// Which request.
    pub endpoint: Endpoint,
    /// Why.
    pub kind: ErrorKind,
    host: String,
    key_id: String,
}

impl ApiError {
    /// One word for metrics and for telling a change of state.
    pub fn as_str(&self) -> &'static str {
        match self.kind {
            ErrorKind::Unauthorized => "unauthorized",
            ErrorKind::Forbidden => "forbidden",
            ErrorKind::WrongUrl => "wrong_url",
            ErrorKind::Gone => "gone",
            ErrorKind::Refused(_) => "refused",
            ErrorKind::Throttled => "throttled",
            ErrorKind::Server(_) => "server_error",
            ErrorKind::Unreachable(_) => "unreachable",
            ErrorKind::TooLarge => "too_large",
            ErrorKind::Malformed(_) => "malformed",
        }
    }

    fn message(&self) -> String {
        let ApiError { endpoint, kind, host, key_id } = self;
        let request = format!("{} at {host}", endpoint.request());
        match kind {
            ErrorKind::Unauthorized => {
                format!("{request}: 401, the API key {key_id} is not known, or its secret is wrong")
            }
            ErrorKind::Forbidden => {
                format!("{request}: 403, the API key {key_id} may not do this; it takes {}", endpoint.permission())
            }
            ErrorKind::WrongUrl => {
                format!("{request}: 403 \"{WRONG_PATH_MESSAGE}\", which means that the path doesn't exist there")
            }
            ErrorKind::Gone => format!("{request}: 404, there is no such thing any more"),
            ErrorKind::Refused(status) => format!("{request}: {status}"),
            ErrorKind::Throttled => format!("{request}: 429, too many requests"),
            ErrorKind::Server(status) => format!("{request}: {status}"),
            ErrorKind::Unreachable(reason) => format!("{request}: {reason}"),
            ErrorKind::TooLarge => format!("{request}: the answer has more than {ANSWER_MAX_BYTES} bytes"),
            ErrorKind::Malformed(missing) => format!("{request}: the answer is not what env0 documents: {missing}"),
        }
    }

    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self.kind {
            ErrorKind::Unauthorized => {
                "look whether the key still exists in env0 (Organization Settings, API Keys), and set ENV0_API_KEY_ID and ENV0_API_KEY_SECRET"
            }
            ErrorKind::Forbidden => {
                "give the key's role that permission, see that ENV0_S3_LOG_PULL_ORGANIZATION_ID is the key's organization, and that the organization's allow-list has this daemon's address; audit events need env0's Enterprise plan"
            }
            ErrorKind::WrongUrl => "see that ENV0_S3_LOG_API_URL is the API's address, without a path behind it",
            ErrorKind::Gone => "none is needed",
            ErrorKind::Throttled => {
                "another client asks env0 from this address or with this key; raise ENV0_S3_LOG_PULL_INTERVAL"
            }
            ErrorKind::Server(_) | ErrorKind::Refused(_) => {
                "env0's status page tells of outages; it is tried again every interval"
            }
            ErrorKind::Unreachable(_) => {
                "see that the daemon reaches this host, through HTTPS_PROXY where there is one, and trusts its certificate (AWS_CA_BUNDLE)"
            }
            ErrorKind::TooLarge | ErrorKind::Malformed(_) => {
                "see that ENV0_S3_LOG_API_URL is env0's API and that no proxy answers in its place; else tell this project"
            }
        }
    }
}

/// An answer, whole.
pub struct Answer {
    bytes: Bytes,
    endpoint: Endpoint,
    api: Arc<Inner>,
    /// While it is large, no other large one is read.
    _alone: Option<OwnedMutexGuard<()>>,
}

impl Answer {
    /// Reads it as `T`, which may borrow from it.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, ApiError> {
        serde_json::from_slice(&self.bytes).map_err(|error| self.malformed(&what_is_missing(&error, &self.bytes)))
    }

    /// An error that says what the answer lacks.
    pub fn malformed(&self, missing: &str) -> ApiError {
        self.api.error(self.endpoint, ErrorKind::Malformed(missing.to_owned()))
    }
}

/// What serde_json missed, without a byte of the answer: of its messages, some quote what they found.
fn what_is_missing(error: &serde_json::Error, bytes: &[u8]) -> String {
    let text = error.to_string();
    if bytes.trim_ascii_start().first() == Some(&b'<') {
        return "it is a page of HTML, so a proxy or another server has answered".to_owned();
    }
    if bytes.is_empty() {
        return "it is empty".to_owned();
    }
    let place = format!("line {}, column {}", error.line(), error.column());
    match text.split_once('`') {
        Some(("missing field ", rest)) => {
            format!("it lacks the member {}", rest.split('`').next().unwrap_or_default())
        }
        _ if error.is_data() => format!("a value of another type at {place}"),
        _ if error.is_eof() => "it breaks off".to_owned(),
        _ => format!("it is not JSON at {place}"),
    }
}

/// The API, with a key. Cheap to clone.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

struct Inner {
    web: reqwest::Client,
    base: Url,
    key_id: String,
    key_secret: SecretString,
    at_once: Semaphore,
    large: Arc<Mutex<()>>,
    pace: Pace,
    /// env0's clock less ours, as the last answer told.
    clock_ahead_millis: AtomicI64,
}

impl Inner {
    fn error(&self, endpoint: Endpoint, kind: ErrorKind) -> ApiError {
        let host = self.base.host_str().unwrap_or_default().to_owned();
        ApiError { endpoint, kind, host, key_id: self.key_id.clone() }
    }
}

impl Api {
    /// Asks nothing yet.
    ///
    /// # Errors
    /// The address is not a URL; the configuration has seen to it.
    pub fn new(pull: &config::Pull, network: &Network) -> Result<Api, String> {
        let base = Url::parse(&pull.api_url).map_err(|error| format!("ENV0_S3_LOG_API_URL: {error}"))?;
        Ok(Api(Arc::new(Inner {
            web: network.web().clone(),
            base,
            key_id: pull.key_id.clone(),
            key_secret: pull.key_secret.clone(),
            at_once: Semaphore::new(AT_ONCE),
            large: Arc::default(),
            pace: Pace::default(),
            clock_ahead_millis: AtomicI64::new(0),
        })))
    }

    /// Now, by the earlier of env0's clock and ours: an event that is yet to come must never look old.
    pub fn now(&self) -> DateTime<Utc> {
        let ahead = self.0.clock_ahead_millis.load(Ordering::Relaxed).min(0);
        Utc::now() + TimeDelta::milliseconds(ahead)
    }

    /// Asks for `path`, whose segments are encoded here, until there is an answer or repeating is of no use.
    pub async fn get(&self, endpoint: Endpoint, path: &[&str], query: &[(&str, &str)]) -> Result<Answer, ApiError> {
        let inner = &self.0;
        let mut url = inner.base.clone();
        let encoded = path.iter().flat_map(|segment| ["/".into(), utf8_percent_encode(segment, SEGMENT).into()]);
        let uri = encoded.fold(url.path().trim_end_matches('/').to_owned(), |uri, part: Cow<'_, str>| uri + &part);
        url.set_path(&uri);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut attempt = 1;
        loop {
            inner.pace.take(&uri).await;
            let (kind, wait) = match self.attempt(endpoint, url.clone()).await {
                Ok(answer) => {
                    requests(endpoint, "succeeded").increment(1);
                    return Ok(answer);
                }
                Err(failed) => failed,
            };
            let error = inner.error(endpoint, kind);
            requests(endpoint, error.as_str()).increment(1);
            let may_pass =
                matches!(error.kind, ErrorKind::Throttled | ErrorKind::Server(_) | ErrorKind::Unreachable(_));
            if !may_pass || attempt == ATTEMPTS_MAX {
                return Err(error);
            }
            tokio::time::sleep(backoff::full_jitter(attempt, rand::random()).max(wait)).await;
            attempt += 1;
        }
    }

    /// One try. An error comes with the wait that the server asks for.
    async fn attempt(&self, endpoint: Endpoint, url: Url) -> Result<Answer, (ErrorKind, Duration)> {
        let inner = &self.0;
        let unreachable =
            |error: reqwest::Error| (ErrorKind::Unreachable(causes(&error.without_url())), Duration::ZERO);
        // Nobody closes it.
        let _permit = inner.at_once.acquire().await;
        let request = inner.web.get(url).timeout(REQUEST_TIMEOUT).header(ACCEPT, "application/json");
        let request = request.basic_auth(&inner.key_id, Some(inner.key_secret.expose_secret()));
        let mut response = request.send().await.map_err(unreachable)?;
        self.note_clock(response.headers());
        let wait = retry_after(response.headers());
        let kind = match response.status() {
            status if status.is_success() => {
                let (bytes, alone) = self.read(&mut response).await.map_err(|kind| (kind, Duration::ZERO))?;
                return Ok(Answer { bytes, endpoint, api: inner.clone(), _alone: alone });
            }
            StatusCode::UNAUTHORIZED => ErrorKind::Unauthorized,
            StatusCode::FORBIDDEN if says_wrong_path(&mut response).await => ErrorKind::WrongUrl,
            StatusCode::FORBIDDEN => ErrorKind::Forbidden,
            StatusCode::NOT_FOUND => ErrorKind::Gone,
            StatusCode::TOO_MANY_REQUESTS => ErrorKind::Throttled,
            status if status.is_server_error() => ErrorKind::Server(status.as_u16()),
            status => ErrorKind::Refused(status.as_u16()),
        };
        Err((kind, wait))
    }

    /// The body; where it is large, with the right to hold a large one.
    async fn read(&self, response: &mut Response) -> Result<(Bytes, Option<OwnedMutexGuard<()>>), ErrorKind> {
        let mut body = Vec::new();
        let mut alone = None;
        loop {
            let chunk = response.chunk().await;
            let chunk = chunk.map_err(|error| ErrorKind::Unreachable(causes(&error.without_url())))?;
            let Some(chunk) = chunk else { return Ok((body.into(), alone)) };
            let bytes = body.len() + chunk.len();
            if bytes > ANSWER_MAX_BYTES {
                return Err(ErrorKind::TooLarge);
            }
            if bytes > LARGE_ANSWER_BYTES && alone.is_none() {
                alone = Some(self.0.large.clone().lock_owned().await);
            }
            body.extend_from_slice(&chunk);
        }
    }

    fn note_clock(&self, headers: &HeaderMap) {
        let date = headers.get(DATE).and_then(|date| DateTime::parse_from_rfc2822(date.to_str().ok()?).ok());
        if let Some(date) = date {
            let ahead = (date.to_utc() - Utc::now()).num_milliseconds();
            // The header has whole seconds, so half of one is no difference.
            let ahead = if ahead.abs() < 2_000 { 0 } else { ahead };
            self.0.clock_ahead_millis.store(ahead, Ordering::Relaxed);
        }
    }
}

/// What `Retry-After` asks for, as far as it is believed.
fn retry_after(headers: &HeaderMap) -> Duration {
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Duration::from_secs(seconds.unwrap_or_default()).min(RETRY_AFTER_MAX)
}

/// Whether a 403 is the gateway's answer to a path that doesn't exist.
async fn says_wrong_path(response: &mut Response) -> bool {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > ERROR_MAX_BYTES {
            break;
        }
    }
    memchr::memmem::find(&body, WRONG_PATH_MESSAGE.as_bytes()).is_some()
}

fn requests(endpoint: Endpoint, outcome: &'static str) -> metrics::Counter {
    metrics::counter!("env0_s3_logs_pull_requests_total", "endpoint" => endpoint.as_str(), "outcome" => outcome)
}
