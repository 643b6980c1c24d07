//! The HTTP front: routes, limits, credentials, status codes. One way for every protocol:
//! head judged → body read → inflated → parsed → appended → answered.

pub mod auth;
pub mod body;
pub mod framing;
pub mod listener;
mod meters;
pub mod protocol;
pub mod receive;
pub mod tls;
mod watched;

pub mod logzio;
pub mod loki;
pub mod native;
pub mod newrelic;
pub mod otlp;
mod protobuf;
pub mod splunk;
pub mod sumologic;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::header::{CONNECTION, CONTENT_LENGTH, EXPECT};
use axum::http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use bytes::Bytes;
use chrono::Utc;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::batch::{BatchName, LogType, object_key};
use crate::config::Config;
use crate::ingest::auth::{AuthError, Authenticator, Identity, OIDC_TOKEN_HEADER};
use crate::ingest::body::{Limits, Lines};
use crate::ingest::meters::IngestMeters;
use crate::ingest::native::Native;
use crate::ingest::protocol::{Accepted, Part, Protocol, Refusal, Route, by_type, empty_answer, route};
use crate::ingest::receive::{Budget, Encoding, HOLD, Received};
use crate::spool::{AppendError, Spool};

/// A body from this size on is scanned where it can't hold up other requests.
const SCAN_ASIDE_BYTES: usize = 1024 * 1024;
/// A body that nobody wants is read and forgotten up to here, so that its sender reads the answer
/// instead of a reset.
const LINGER_MAX_BYTES: usize = 64 * 1024 * 1024;
const LINGER_TIME: Duration = Duration::from_secs(30);
/// Of a body that is a token.
const TOKEN_BODY_MAX_BYTES: usize = 64 * 1024;

const RETRY_FULL_SECONDS: u64 = 10;
const RETRY_DISK_SECONDS: u64 = 5;
const RETRY_ISSUER_SECONDS: u64 = 5;

/// The front's shared state.
pub struct Ingest {
    spool: Spool,
    authenticator: Authenticator,
    budget: Budget,
    limits: Limits,
    max_body_bytes: usize,
    default_type: LogType,
    bucket_path: String,
    last_keys: [Mutex<Option<(BatchName, Arc<str>)>>; 2],
    meters: IngestMeters,
    draining: AtomicBool,
    stop_bodies: CancellationToken,
    requests: TaskTracker,
}

impl Ingest {
    /// The front before the first request.
    pub fn new(config: &Config, spool: Spool, authenticator: Authenticator) -> Arc<Ingest> {
        Arc::new(Ingest {
            spool,
            authenticator,
            budget: Budget::new(config.max_inflight_bytes),
            limits: Limits {
                max_event_bytes: config.max_event_bytes,
                max_body_bytes: config.max_body_bytes,
                redact: config.redact,
            },
            max_body_bytes: config.max_body_bytes,
            default_type: config.default_type,
            bucket_path: config.bucket_path.clone(),
            last_keys: Default::default(),
            meters: IngestMeters::new(),
            draining: AtomicBool::new(false),
            stop_bodies: CancellationToken::new(),
            requests: TaskTracker::new(),
        })
    }

    /// From now on every new request is refused with 503 and its connection closed.
    pub fn refuse_new_requests(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// From now on a body that is still arriving is refused, too.
    pub fn refuse_bodies(&self) {
        self.stop_bodies.cancel();
    }

    /// Resolves when no request is under way.
    pub async fn idle(&self) {
        self.requests.close();
        self.requests.wait().await;
    }

    /// Answers one request of the ingest listener.
    pub async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let _under_way = self.requests.token();
        let started = Instant::now();
        let (head, mut body) = request.into_parts();
        let (uri, headers) = (head.uri, head.headers);
        let mut log_type = None;
        let mut answer = match route(&head.method, uri.path()) {
            Route::Alive { protocol } => protocol.alive(),
            Route::Refused { protocol, refusal } => protocol.refused(&uri, &headers, &refusal),
            Route::OidcToken => match self.take_token(&headers, &mut body).await {
                Ok(()) => empty_answer(StatusCode::NO_CONTENT),
                Err(refusal) => Native.refused(&uri, &headers, &refusal),
            },
            Route::Events { protocol, log_type: named } => {
                let sender = Sender { protocol, named, uri: &uri, headers: &headers };
                match self.take_events(&sender, &mut body, &mut log_type).await {
                    Ok(accepted) => protocol.accepted(&uri, &headers, &accepted),
                    Err(refusal) => protocol.refused(&uri, &headers, &refusal),
                }
            }
        };
        if !answer.status().is_success() {
            linger(body, &headers);
        }
        if self.draining.load(Ordering::Relaxed) {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        self.meters.answered(log_type, answer.status(), started.elapsed());
        answer
    }

    /// `PUT /v1/oidc-token`. Never depends on the spool.
    async fn take_token(&self, headers: &HeaderMap, body: &mut Incoming) -> Result<(), Refusal> {
        let body = receive::read(body, TOKEN_BODY_MAX_BYTES, &self.budget, &self.stop_bodies).await?;
        self.authenticator.hand_over_request(headers, &body.bytes).await.map_err(unauthorized)
    }

    /// `log_type` tells the meters what the events are, as soon as that is known.
    async fn take_events(
        &self,
        sender: &Sender<'_>,
        body: &mut Incoming,
        log_type: &mut Option<LogType>,
    ) -> Result<Accepted, Refusal> {
        let Sender { protocol, named, uri, headers } = *sender;
        *log_type = named;
        if headers.contains_key(OIDC_TOKEN_HEADER) {
            self.authenticator.hand_over_beside(headers).await;
        }
        let carried = protocol.token(uri, headers);
        let identity = self.authenticator.authenticate(headers, carried.as_deref()).await.map_err(unauthorized)?;
        *log_type = identity.log_type().or(named);
        let encoding = self.judge_head(&identity, sender, log_type.unwrap_or(self.default_type))?;

        let received = receive::read(body, self.max_body_bytes, &self.budget, &self.stop_bodies).await?;
        let received = received.inflate(encoding, self.max_body_bytes, &self.budget).await?;
        let parts = self.parse(sender, &received).await?;
        let decided = identity.log_type().or(named);
        let lines = by_type(parts, |said| decided.or(said).unwrap_or(self.default_type));
        *log_type = Some(main_type(&lines));
        self.append(lines).await
    }

    /// What the head alone can be refused for, before any memory is taken.
    fn judge_head(&self, identity: &Identity, sender: &Sender<'_>, log_type: LogType) -> Result<Encoding, Refusal> {
        if sender.named.is_some_and(|named| !identity.may_write(named)) {
            return Err(Refusal::Unauthorized { wrong_type: true });
        }
        if self.draining.load(Ordering::Relaxed) {
            return Err(receive::draining());
        }
        let encoding = Encoding::of(sender.headers)?;
        let length = sender.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > self.max_body_bytes as u64) {
            return Err(Refusal::TooLarge { limit: self.max_body_bytes, variable: receive::BODY_VARIABLE });
        }
        // Any event has bytes; how many a compressed body has is not known yet.
        let least = if encoding == Encoding::Identity { length.unwrap_or(1) } else { 1 };
        self.spool.check_room(log_type, least).map_err(not_taken)?;
        if let Some(reason) = self.spool.failing(log_type) {
            return Err(not_taken(AppendError::Disk(reason)));
        }
        Ok(encoding)
    }

    async fn parse(&self, sender: &Sender<'_>, received: &Received) -> Result<Vec<Part>, Refusal> {
        let Sender { protocol, uri, headers, .. } = *sender;
        let (body, limits) = (received.bytes.clone(), self.limits);
        if body.len() < SCAN_ASIDE_BYTES {
            return Ok(protocol.parse(uri, headers, body, Utc::now(), &limits)?);
        }
        let (uri, headers) = (uri.clone(), headers.clone());
        let scan = move || protocol.parse(&uri, &headers, body, Utc::now(), &limits);
        let parts = tokio::task::spawn_blocking(scan).await;
        Ok(parts.map_err(|error| Refusal::Unavailable { reason: error.to_string(), retry_after_seconds: 1 })??)
    }

    /// Appends to each log type's batch; refused as a whole when one of them is full. (Where a request
    /// has events of both types and the disk fails between the two, its sender repeats both.)
    async fn append(&self, lines: [Lines; 2]) -> Result<Accepted, Refusal> {
        let mut accepted = Accepted { records: 0, receipt: None };
        let filled = || LogType::ALL.into_iter().zip(&lines).filter(|(_, lines)| lines.records > 0);
        for (log_type, lines) in filled() {
            self.spool.check_room(log_type, lines.bytes.len() as u64).map_err(not_taken)?;
        }
        for (log_type, lines) in filled() {
            let append = self.spool.append(log_type, lines.bytes.clone(), lines.records);
            let receipt = match tokio::time::timeout(HOLD, append).await {
                Ok(outcome) => outcome.map_err(not_taken)?,
                Err(_) => return Err(not_taken(AppendError::Disk("it takes longer than 5 s to write".to_owned()))),
            };
            self.meters.accepted(log_type, lines);
            accepted.records += lines.records;
            accepted.receipt.get_or_insert_with(|| (self.key(log_type, &receipt.batch), receipt.line));
        }
        Ok(accepted)
    }

    /// The batch's object key; made once for all the requests that a batch takes.
    fn key(&self, log_type: LogType, batch: &BatchName) -> Arc<str> {
        let mut last = self.last_keys[log_type.index()].lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((name, key)) if name == batch => key.clone(),
            _ => {
                let key: Arc<str> = object_key(&self.bucket_path, log_type, batch).into();
                *last = Some((*batch, key.clone()));
                key
            }
        }
    }
}

/// Who sends events, and by which way.
#[derive(Clone, Copy)]
struct Sender<'a> {
    protocol: &'static dyn Protocol,
    /// The log type in the path.
    named: Option<LogType>,
    uri: &'a Uri,
    headers: &'a HeaderMap,
}

fn main_type(lines: &[Lines; 2]) -> LogType {
    let most = LogType::ALL.into_iter().max_by_key(|log_type| lines[log_type.index()].records);
    most.unwrap_or(LogType::Deployments)
}

fn unauthorized(error: AuthError) -> Refusal {
    match error {
        AuthError::Missing | AuthError::Invalid => Refusal::Unauthorized { wrong_type: false },
        AuthError::Malformed(reason) => Refusal::BrokenBody { reason: reason.to_owned() },
        AuthError::Unavailable { .. } => {
            Refusal::Unavailable { reason: error.to_string(), retry_after_seconds: RETRY_ISSUER_SECONDS }
        }
    }
}

fn not_taken(error: AppendError) -> Refusal {
    let retry_after_seconds = match error {
        AppendError::Full { .. } => RETRY_FULL_SECONDS,
        AppendError::Disk(_) | AppendError::Closed => RETRY_DISK_SECONDS,
    };
    Refusal::Unavailable { reason: error.to_string(), retry_after_seconds }
}

/// Reads what is left of a refused body, in the background. A client that waits for `100 Continue`
/// sends none.
fn linger(mut body: Incoming, headers: &HeaderMap) {
    if hyper::body::Body::is_end_stream(&body) || headers.contains_key(EXPECT) {
        return;
    }
    tokio::spawn(tokio::time::timeout(LINGER_TIME, async move {
        let mut left = LINGER_MAX_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    }));
}
