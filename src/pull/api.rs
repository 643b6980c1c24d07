//! env0's REST API as far as the daemon asks it: the requests, and answers read in pieces of bounded memory.
//!
//! A request is repeated a few times where that can help (429, 5xx, no answer), and then fails for this round.
//! No error holds a byte of an answer: records hold secrets.

mod answer;
mod body;
mod error;
mod key;
mod pace;
pub mod pages;
mod pieces;
mod sender;
mod text;
mod thin;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{ACCEPT, CONTENT_TYPE, DATE, HeaderMap, HeaderName, RETRY_AFTER};
use reqwest::{StatusCode, Url};
use secrecy::ExposeSecret;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, OwnedMutexGuard, Semaphore};

use crate::background::Background;
use crate::backoff;
use crate::config;
use crate::network::{Network, retry_after};
pub use crate::pull::api::answer::{Answer, Elements, LINES_MAX, List, RECORDS_MAX};
use crate::pull::api::body::{Amount, Body, Failed, Patience, beginning};
use crate::pull::api::error::{ANSWER_MAX_BYTES, Asked, WRONG_PATH_MESSAGE, requests};
pub use crate::pull::api::error::{ApiError, Endpoint, ErrorKind};
use crate::pull::api::key::{Key, KeyHolder};
use crate::pull::api::pace::Pace;
pub use crate::pull::api::pieces::{EVENTS_IN_REST, Pieces};
use crate::pull::api::sender::is_not_env0;
use crate::pull::api::text::Text;

/// Requests for environments, deployments and logs that may run at the same time.
const LOGS_AT_ONCE: usize = 6;
/// Other requests that may run at the same time. They have slots of their own, so that logs that env0 doesn't give hold
/// up no audit event, nor the other way round.
const OTHERS_AT_ONCE: usize = 2;
/// The client's own limit. The server has far less time ([`Patience`]); the rest is for an answer that waits for the spool.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// How long a request waits until the files of the key are read again.
const KEY_PATIENCE: Duration = Duration::from_secs(10);
/// A request that goes on failing is left to the next round, so that it doesn't hold up the others.
const ATTEMPTS_MAX: u32 = 4;
/// Each silent attempt takes 20 s, so fewer are made before the operator is told.
const SILENT_ATTEMPTS_MAX: u32 = 2;
/// Where the server asks to wait for at least this long, the operator is told.
const TOLD_WAIT: Duration = Duration::from_secs(5);
/// These characters are not encoded in a segment of a path. Others are: names of steps contain `:` and `/`.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Told of a request that is repeated later because the server asked for it, and how long that is.
type OnWait = Arc<dyn Fn(&ApiError, Duration) + Send + Sync>;

/// The API, with a key. Cheap to clone.
#[derive(Clone)]
pub struct Api(Arc<Inner>, Option<OnWait>);

struct Inner {
    web: reqwest::Client,
    /// Sends the requests, drives their connections and reads the answers, so that no sender of events waits for what env0
    /// sends: to read the largest answer takes a tenth of a second, and seconds where it is odd.
    background: Background,
    base: Url,
    keys: KeyHolder,
    /// Whether env0 has accepted the current key before.
    key_worked: AtomicBool,
    /// One permit: the files of the key are read once at a time.
    reading_key: Arc<Semaphore>,
    logs: Arc<Semaphore>,
    others: Arc<Semaphore>,
    large: Large,
    pace: Pace,
    /// env0's clock minus ours, from the last answer's `Date`.
    clock_ahead_millis: AtomicI64,
    clock_is_known: AtomicBool,
}

/// The locks of large answers.
///
/// Pages of logs have a lock of their own. A large one waits for the spool, and what writes it to the spool may itself wait
/// for a list: with one lock for both, neither would go on.
#[derive(Default)]
struct Large {
    log: Arc<Mutex<()>>,
    other: Arc<Mutex<()>>,
}

impl Large {
    fn of(&self, endpoint: Endpoint) -> &Arc<Mutex<()>> {
        match endpoint {
            Endpoint::StepLog => &self.log,
            Endpoint::Organizations
            | Endpoint::AuditEvents
            | Endpoint::Environments
            | Endpoint::Deployments
            | Endpoint::Steps
            | Endpoint::Forwarding => &self.other,
        }
    }
}

impl Api {
    /// Makes the client; no request is sent yet.
    ///
    /// # Errors
    /// `ENV0_S3_LOG_API_URL` is not a URL (the configuration was checked for that, so it doesn't happen), or no thread can
    /// be had.
    pub fn new(pull: &config::Pull, network: &Network) -> Result<Api, String> {
        let base = Url::parse(&pull.api_url).map_err(|error| format!("ENV0_S3_LOG_API_URL: {error}"))?;
        let inner = Inner {
            web: network.web().clone(),
            background: Background::start("pull").map_err(|error| format!("no thread can be had: {error}"))?,
            base,
            keys: KeyHolder::new(pull),
            key_worked: AtomicBool::new(false),
            reading_key: Arc::new(Semaphore::new(1)),
            logs: Arc::new(Semaphore::new(LOGS_AT_ONCE)),
            others: Arc::new(Semaphore::new(OTHERS_AT_ONCE)),
            large: Large::default(),
            pace: Pace::default(),
            clock_ahead_millis: AtomicI64::new(0),
            clock_is_known: AtomicBool::new(false),
        };
        Ok(Api(Arc::new(inner), None))
    }

    /// The thread of lower priority that whatever reads answers has to run on.
    pub fn thread(&self) -> &Handle {
        self.0.background.handle()
    }

    /// The same API, which tells `on_wait` of long waits that the server asks for.
    pub fn telling(&self, on_wait: impl Fn(&ApiError, Duration) + Send + Sync + 'static) -> Api {
        Api(self.0.clone(), Some(Arc::new(on_wait)))
    }

    /// An error of what env0 has answered.
    pub fn error(&self, endpoint: Endpoint, kind: ErrorKind) -> ApiError {
        ApiError { endpoint, kind, asked: self.asked(&self.0.keys.key()) }
    }

    /// The present time by env0's clock or ours, whichever is earlier. If ours is ahead, an event that env0 makes in a
    /// moment must not count as one that was missed long ago.
    pub fn now(&self) -> DateTime<Utc> {
        let ahead = self.0.clock_ahead_millis.load(Ordering::Relaxed).min(0);
        crate::batch::now() + TimeDelta::milliseconds(ahead)
    }

    /// The present time by env0's clock or ours, whichever is later.
    pub fn latest_now(&self) -> DateTime<Utc> {
        let ahead = self.0.clock_ahead_millis.load(Ordering::Relaxed).max(0);
        crate::batch::now() + TimeDelta::milliseconds(ahead)
    }

    /// Whether an answer has told env0's clock, and ours differs from it by no more than `by`.
    pub fn clocks_agree(&self, by: TimeDelta) -> bool {
        let ahead = self.0.clock_ahead_millis.load(Ordering::Relaxed);
        self.0.clock_is_known.load(Ordering::Relaxed) && TimeDelta::milliseconds(ahead).abs() <= by
    }

    /// Reads the files of the key again. Waits for the disk.
    pub fn reload_key(&self) {
        if self.0.keys.reload() {
            self.0.key_worked.store(false, Ordering::Relaxed);
        }
    }

    /// Reads the files of the key again, on a thread that may wait for the disk. A disk that does not answer is not waited
    /// for longer than [`KEY_PATIENCE`], and only one thread waits for it; the key stays what it was meanwhile.
    async fn reload_key_aside(&self) {
        let Ok(only_one) = self.0.reading_key.clone().try_acquire_owned() else { return };
        let api = self.clone();
        let reading = tokio::task::spawn_blocking(move || {
            api.reload_key();
            drop(only_one);
        });
        let _ = tokio::time::timeout(KEY_PATIENCE, reading).await;
    }

    /// Requests a page of events, to be read in pieces. Repeats the request where that can help, as long as no piece was read.
    /// `max_event_bytes`: events up to this size are stored whole.
    pub async fn pieces(
        &self,
        endpoint: Endpoint,
        path: &[&str],
        query: &[(&str, &str)],
        max_event_bytes: usize,
    ) -> Result<Pieces, ApiError> {
        self.pieces_up_to(ANSWER_MAX_BYTES, endpoint, path, query, max_event_bytes).await
    }

    /// [`Api::pieces`] of a page that is too large above `max_bytes`.
    async fn pieces_up_to(
        &self,
        max_bytes: usize,
        endpoint: Endpoint,
        path: &[&str],
        query: &[(&str, &str)],
        max_event_bytes: usize,
    ) -> Result<Pieces, ApiError> {
        let (body, asked) = self.ask(Amount::Beginning(max_bytes), endpoint, path, query).await?;
        Ok(Pieces::of(body, endpoint, asked, max_event_bytes))
    }

    /// Requests `path`, whose segments are encoded here. Repeats the request where that can help. What nobody reads of the
    /// answer's records is left out (`thin.rs`).
    pub async fn get(&self, endpoint: Endpoint, path: &[&str], query: &[(&str, &str)]) -> Result<Answer, ApiError> {
        let (answer, _) = self.get_up_to(ANSWER_MAX_BYTES, endpoint, path, query).await?;
        Ok(answer)
    }

    /// [`Api::get`] of an answer that is too large above `max_bytes`, with its size.
    async fn get_up_to(
        &self,
        max_bytes: usize,
        endpoint: Endpoint,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<(Answer, usize), ApiError> {
        let (Body { bytes, read, alone, .. }, asked) =
            self.ask(Amount::Whole(max_bytes), endpoint, path, query).await?;
        match Text::of(bytes.into(), max_bytes) {
            Some(text) => Ok((Answer { text, endpoint, asked, left_out: false, _alone: alone }, read)),
            None => Err(ApiError { endpoint, kind: ErrorKind::TooLarge, asked }),
        }
    }

    async fn ask(
        &self,
        amount: Amount,
        endpoint: Endpoint,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<(Body, Asked), ApiError> {
        let inner = &self.0;
        let large = inner.large.of(endpoint);
        let mut alone = None;
        let (path, url) = self.address(path, query);
        let mut attempt = 1;
        loop {
            inner.pace.take(&path).await;
            let key = inner.keys.key();
            let tried = self.attempt(amount, endpoint, url.clone(), &key, (alone.take(), large)).await;
            let Failed { kind, wait, silent } = match tried {
                Ok(Some(body)) => {
                    inner.key_worked.store(true, Ordering::Relaxed);
                    if body.unread.is_none() {
                        requests(endpoint, "succeeded").increment(1);
                    }
                    return Ok((body, self.asked(&key)));
                }
                Ok(None) => {
                    requests(endpoint, "too_large").increment(1);
                    alone = Some(large.clone().lock_owned().await);
                    continue;
                }
                Err(failed) => failed,
            };
            let error = ApiError { endpoint, kind, asked: self.asked(&key) };
            requests(endpoint, error.as_str()).increment(1);
            let attempts_max = if silent { SILENT_ATTEMPTS_MAX } else { ATTEMPTS_MAX };
            if !self.may_pass(&error.kind, &key).await || attempt >= attempts_max {
                return Err(error);
            }
            if wait >= TOLD_WAIT
                && let Some(on_wait) = &self.1
            {
                on_wait(&error, wait);
            }
            tokio::time::sleep(backoff::full_jitter(attempt, rand::random()).max(wait)).await;
            attempt += 1;
        }
    }

    /// The path whose segments these are, encoded, and the URL with it.
    fn address(&self, path: &[&str], query: &[(&str, &str)]) -> (String, Url) {
        let mut url = self.0.base.clone();
        let encoded = path.iter().flat_map(|segment| ["/".into(), utf8_percent_encode(segment, SEGMENT).into()]);
        let path = encoded.fold(url.path().trim_end_matches('/').to_owned(), |path, part: Cow<'_, str>| path + &part);
        url.set_path(&path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        (path, url)
    }

    /// Whether a request that failed with `key` may succeed when it is repeated.
    async fn may_pass(&self, kind: &ErrorKind, key: &Arc<Key>) -> bool {
        match kind {
            ErrorKind::Throttled | ErrorKind::Server(_) | ErrorKind::Unreachable(_) | ErrorKind::NotEnv0 { .. } => true,
            // The key may have been replaced: the new one is then in its file, and the old one is deleted.
            ErrorKind::Unauthorized | ErrorKind::Revoked => {
                self.reload_key_aside().await;
                !Arc::ptr_eq(key, &self.0.keys.key())
            }
            _ => false,
        }
    }

    /// One try. `None` where the answer is large and another one is in memory: the lock `large` has to be waited for first.
    async fn attempt(
        &self,
        amount: Amount,
        endpoint: Endpoint,
        url: Url,
        key: &Key,
        (alone, large): (Option<OwnedMutexGuard<()>>, &Arc<Mutex<()>>),
    ) -> Result<Option<Body>, Failed> {
        let inner = &self.0;
        let slots = if endpoint.is_of_logs() { &inner.logs } else { &inner.others };
        let slot = slots.clone().acquire_owned().await;
        // It is never closed.
        let slot = slot.map_err(|error| ErrorKind::Unreachable(error.to_string()))?;
        let request = inner.web.get(url).timeout(REQUEST_TIMEOUT).header(ACCEPT, "application/json");
        let request = request.basic_auth(&key.id, Some(key.secret.expose_secret()));
        let mut patience = Patience::default();
        let mut response = patience.wait(inner.background.run(async { request.send().await })).await?;
        self.note_clock(response.headers());
        let header = |name: HeaderName| response.headers().get(name)?.to_str().ok();
        let wait = header(RETRY_AFTER).and_then(|value| retry_after(value, crate::batch::now())).unwrap_or_default();
        let content_type = header(CONTENT_TYPE).unwrap_or_default().to_owned();
        let status = response.status();
        let failed = |kind: ErrorKind| Failed { wait, ..kind.into() };
        let not_env0 = |found| failed(ErrorKind::NotEnv0 { status: status.as_u16(), found });
        match status {
            StatusCode::TOO_MANY_REQUESTS => return Err(failed(ErrorKind::Throttled)),
            _ if status.is_server_error() => return Err(failed(ErrorKind::Server(status.as_u16()))),
            _ => {}
        }
        if !status.is_success() {
            let body = beginning(&mut response, &mut patience).await;
            let found = is_not_env0(status, &content_type, &body);
            return Err(found.map_or_else(|| failed(self.refusal(endpoint, status, &body)), not_env0));
        }
        let body = Body::read(response, amount, (slot, patience), (alone, large)).await?;
        // Nothing but space tells nothing as long as there is more.
        let tells = |body: &&Body| body.unread.is_none() || !body.bytes.trim_ascii().is_empty();
        match body.as_ref().filter(tells).and_then(|body| is_not_env0(status, &content_type, &body.bytes)) {
            Some(found) => Err(not_env0(found)),
            None => Ok(body),
        }
    }

    /// What it means that env0 answers with this 4xx.
    fn refusal(&self, endpoint: Endpoint, status: StatusCode, body: &[u8]) -> ErrorKind {
        let says_wrong_path = || memchr::memmem::find(body, WRONG_PATH_MESSAGE.as_bytes()).is_some();
        match status {
            StatusCode::UNAUTHORIZED if self.0.key_worked.load(Ordering::Relaxed) => ErrorKind::Revoked,
            StatusCode::UNAUTHORIZED => ErrorKind::Unauthorized,
            StatusCode::FORBIDDEN if says_wrong_path() => ErrorKind::WrongUrl(403),
            StatusCode::FORBIDDEN => ErrorKind::Forbidden,
            StatusCode::NOT_FOUND if endpoint.names_a_thing() => ErrorKind::Gone,
            StatusCode::NOT_FOUND => ErrorKind::WrongUrl(404),
            _ => ErrorKind::Refused(status.as_u16()),
        }
    }

    fn asked(&self, key: &Key) -> Asked {
        let host = self.0.base.host_str().unwrap_or_default();
        let host = self.0.base.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        Asked { host, key_id: key.id.clone() }
    }

    fn note_clock(&self, headers: &HeaderMap) {
        let date = headers.get(DATE).and_then(|date| DateTime::parse_from_rfc2822(date.to_str().ok()?).ok());
        if let Some(date) = date {
            let ahead = (date.to_utc() - crate::batch::now()).num_milliseconds();
            // The header has whole seconds and the answer took some time, so less than 2 s is no difference.
            let ahead = if ahead.abs() < 2_000 { 0 } else { ahead };
            self.0.clock_ahead_millis.store(ahead, Ordering::Relaxed);
            self.0.clock_is_known.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
