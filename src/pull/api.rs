//! env0's REST API as far as the daemon asks it: the requests, and answers read in pieces of bounded memory.
//!
//! A request is repeated a few times where that can help (429, 5xx, no answer), and then fails for this round.
//! No error holds a byte of an answer: records hold secrets.

mod answer;
mod error;
mod key;
mod pace;

use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{ACCEPT, DATE, HeaderMap, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};
use secrecy::ExposeSecret;
use tokio::sync::{Mutex, OwnedMutexGuard, Semaphore};

use crate::backoff;
use crate::config;
use crate::network::{Network, causes};
pub use crate::pull::api::answer::{Answer, List};
use crate::pull::api::error::{ANSWER_MAX_BYTES, Asked, WRONG_PATH_MESSAGE};
pub use crate::pull::api::error::{ApiError, Endpoint, ErrorKind};
use crate::pull::api::key::{Key, KeyHolder};
use crate::pull::api::pace::Pace;

/// Requests under way at once, whatever they ask for.
const AT_ONCE: usize = 8;
/// Answers above this size are held one at a time, so that all together stay below 8 MiB and one of the largest.
const LARGE_ANSWER_BYTES: usize = 1024 * 1024;
/// Of an answer that is an error, only what tells its kind is read.
const ERROR_MAX_BYTES: usize = 64 * 1024;
/// From the first byte sent to the last received; connecting has a limit of its own.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// So long nothing may come, before an answer or within it.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// A request that goes on failing is left to the next round, so that it doesn't hold up the others.
const ATTEMPTS_MAX: u32 = 4;
/// Who waits in vain has waited long enough, and an operator is told.
const SILENT_ATTEMPTS_MAX: u32 = 2;
/// env0 counts its limit over 60 s. A wait may be longer where env0 itself is down, but one wrong header must not stop the
/// pull for hours.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(15 * 60);
/// What stays as it is in a segment of a path: steps have `:` and `/` in their names.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The API, with a key. Cheap to clone.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

struct Inner {
    web: reqwest::Client,
    base: Url,
    keys: KeyHolder,
    /// Whether env0 has taken the key in use.
    key_worked: AtomicBool,
    at_once: Semaphore,
    large: Arc<Mutex<()>>,
    pace: Pace,
    /// env0's clock less ours, as the last answer told.
    clock_ahead_millis: AtomicI64,
}

/// An attempt that failed.
struct Failed {
    kind: ErrorKind,
    /// For how long the server doesn't want to be asked.
    wait: Duration,
    /// Whether nothing came for too long.
    silent: bool,
}

impl From<ErrorKind> for Failed {
    fn from(kind: ErrorKind) -> Failed {
        Failed { kind, wait: Duration::ZERO, silent: false }
    }
}

impl From<reqwest::Error> for Failed {
    fn from(error: reqwest::Error) -> Failed {
        let silent = error.is_timeout();
        Failed { silent, ..ErrorKind::Unreachable(causes(&error.without_url())).into() }
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
            keys: KeyHolder::new(pull),
            key_worked: AtomicBool::new(false),
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

    /// Reads the files of the key again.
    pub fn reload_key(&self) {
        if self.0.keys.reload() {
            self.0.key_worked.store(false, Ordering::Relaxed);
        }
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
            let key = inner.keys.key();
            let Failed { kind, wait, silent } = match self.attempt(endpoint, url.clone(), &key).await {
                Ok(answer) => {
                    inner.key_worked.store(true, Ordering::Relaxed);
                    requests(endpoint, "succeeded").increment(1);
                    return Ok(answer);
                }
                Err(failed) => failed,
            };
            let error = ApiError { endpoint, kind, asked: self.asked(&key) };
            requests(endpoint, error.as_str()).increment(1);
            let may_pass = match error.kind {
                ErrorKind::Throttled | ErrorKind::Server(_) | ErrorKind::Unreachable(_) => {
                    attempt < if silent { SILENT_ATTEMPTS_MAX } else { ATTEMPTS_MAX }
                }
                // Who replaces a key deletes the old one when the new one is in its file.
                ErrorKind::Unauthorized | ErrorKind::Revoked => {
                    self.reload_key();
                    attempt < ATTEMPTS_MAX && !Arc::ptr_eq(&key, &inner.keys.key())
                }
                _ => false,
            };
            if !may_pass {
                return Err(error);
            }
            tokio::time::sleep(backoff::full_jitter(attempt, rand::random()).max(wait)).await;
            attempt += 1;
        }
    }

    /// One try.
    async fn attempt(&self, endpoint: Endpoint, url: Url, key: &Key) -> Result<Answer, Failed> {
        let inner = &self.0;
        // Nobody closes it.
        let _permit = inner.at_once.acquire().await;
        let request = inner.web.get(url).timeout(REQUEST_TIMEOUT).header(ACCEPT, "application/json");
        let request = request.basic_auth(&key.id, Some(key.secret.expose_secret()));
        let mut response = unless_silent(request.send()).await??;
        self.note_clock(response.headers());
        let wait = retry_after(response.headers());
        let kind = match response.status() {
            status if status.is_success() => {
                let (bytes, alone) = self.read(&mut response).await?;
                return Ok(Answer { bytes, endpoint, asked: self.asked(key), _alone: alone });
            }
            StatusCode::UNAUTHORIZED if inner.key_worked.load(Ordering::Relaxed) => ErrorKind::Revoked,
            StatusCode::UNAUTHORIZED => ErrorKind::Unauthorized,
            StatusCode::FORBIDDEN if says_wrong_path(&mut response).await => ErrorKind::WrongUrl,
            StatusCode::FORBIDDEN => ErrorKind::Forbidden,
            StatusCode::NOT_FOUND => ErrorKind::Gone,
            StatusCode::TOO_MANY_REQUESTS => ErrorKind::Throttled,
            status if status.is_server_error() => ErrorKind::Server(status.as_u16()),
            status => ErrorKind::Refused(status.as_u16()),
        };
        Err(Failed { wait, ..kind.into() })
    }

    /// The body; where it is large, with the right to hold a large one.
    async fn read(&self, response: &mut Response) -> Result<(Bytes, Option<OwnedMutexGuard<()>>), Failed> {
        if response.content_length().is_some_and(|bytes| bytes > ANSWER_MAX_BYTES as u64) {
            return Err(ErrorKind::TooLarge.into());
        }
        let mut body = Vec::new();
        let mut alone = None;
        while let Some(chunk) = unless_silent(response.chunk()).await?? {
            let bytes = body.len() + chunk.len();
            if bytes > ANSWER_MAX_BYTES {
                return Err(ErrorKind::TooLarge.into());
            }
            if bytes > LARGE_ANSWER_BYTES && alone.is_none() {
                alone = Some(self.0.large.clone().lock_owned().await);
            }
            body.extend_from_slice(&chunk);
        }
        Ok((body.into(), alone))
    }

    fn asked(&self, key: &Key) -> Asked {
        Asked { host: self.0.base.host_str().unwrap_or_default().to_owned(), key_id: key.id.clone() }
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

/// Ends a wait in which nothing comes.
async fn unless_silent<T>(wait: impl Future<Output = T>) -> Result<T, Failed> {
    let silent = |_| Failed {
        silent: true,
        ..ErrorKind::Unreachable(format!("nothing came for {} s, so it was given up", SILENCE_MAX.as_secs())).into()
    };
    tokio::time::timeout(SILENCE_MAX, wait).await.map_err(silent)
}

/// What `Retry-After` asks for, in seconds or as a date, as far as it is believed.
fn retry_after(headers: &HeaderMap) -> Duration {
    let Some(value) = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()) else { return Duration::ZERO };
    let seconds = value.trim().parse().ok().map(Duration::from_secs);
    let until = || (DateTime::parse_from_rfc2822(value.trim()).ok()?.to_utc() - Utc::now()).to_std().ok();
    seconds.or_else(until).unwrap_or_default().min(RETRY_AFTER_MAX)
}

/// Whether a 403 is the gateway's answer to a path that doesn't exist.
async fn says_wrong_path(response: &mut Response) -> bool {
    let mut body = Vec::new();
    while let Ok(Ok(Some(chunk))) = unless_silent(response.chunk()).await {
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
