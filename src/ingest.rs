//! Serves the requests of the ingest listener, in the same way for every protocol: judges the head, reads the body,
//! inflates it, parses it, appends the events to the spool, answers.

mod append;
pub mod auth;
mod both_ways;
mod inflate;
pub mod memory;
mod meters;
pub mod receive;
pub mod refused;
pub mod replaced;
pub mod route;
mod token_bodies;

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING};
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode, Uri};
use futures_util::FutureExt;
use hyper::body::Incoming;
use tokio::sync::{Semaphore, SetOnce};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::batch::{BatchName, ByType, LogType, object_key};
use crate::config::Config;
use crate::http::listener::Guest;
use crate::ingest::auth::{AuthError, Authenticator, Identity, OIDC_TOKEN_HEADER};
pub use crate::ingest::both_ways::{BothWays, came_both_ways, opened_beside_a_pull};
use crate::ingest::memory::{Charge, HOLD, Memory, Share};
use crate::ingest::meters::IngestMeters;
use crate::ingest::receive::{Received, Terms};
use crate::ingest::refused::Refused;
use crate::ingest::replaced::Replaced;
use crate::ingest::route::{Route, route};
use crate::ingest::token_bodies::TokenBodies;
use crate::oidc::Reason;
use crate::protocols::body::{BodyError, Limits, Lines};
use crate::protocols::{
    self, Answer, BadCredentials, Decoding, Encoding, Head, Protocol, Refusal, by_type, empty_answer,
};
use crate::spool::{AppendError, Spool};
use crate::volume;

/// A body whose lines may become this large, so one of 1 MiB as a rule, is scanned where it can't hold up other
/// requests.
const SCAN_ASIDE_LINES_BYTES: usize = 4 * 1024 * 1024;
/// So many of those are scanned at once, and one more of audit events. More threads would not be faster, and each keeps
/// some of the memory that it has used.
const SCANS_AT_ONCE: usize = 2;
/// At most one connection in this many may wait for memory.
const MAX_WAITING_PART: usize = 4;
/// The lines of almost every request take at most this many times its body, and a bit more for small ones.
const USUAL_GROWTH: usize = 4;
const USUAL_LINES_LEAST_BYTES: usize = 16 * 1024;
/// All lines of one request may take three quarters of this many times the largest body. While they could take all of it,
/// 42 senders of the worst bodies and 900 slow ones together took 134 MiB, and 128 are promised.
const MAX_GROWTH: usize = 2;

const RETRY_FULL_SECONDS: u64 = 10;
const RETRY_DISK_SECONDS: u64 = 5;
const RETRY_STARTING_SECONDS: u64 = 5;

/// The batch whose key was made last, and the key as a JSON string.
type LastKey = Option<(BatchName, Arc<str>)>;

/// What all requests share.
pub struct Ingest {
    spool: Spool,
    authenticator: Authenticator,
    /// The memory for bodies, inflated.
    bodies: Memory,
    /// The memory for the lines that are built of them, until they are durable.
    lines: Memory,
    tokens: TokenBodies,
    /// See [`Config::takes_hand_overs`].
    takes_hand_overs: bool,
    /// See [`SCANS_AT_ONCE`].
    scans: Arc<Semaphore>,
    audit_scans: Arc<Semaphore>,
    limits: Limits,
    max_body_bytes: usize,
    /// See [`Config::max_body_variable`].
    max_body_variable: &'static str,
    default_type: LogType,
    bucket_path: String,
    last_keys: ByType<Mutex<LastKey>>,
    both_ways: BothWays,
    meters: IngestMeters,
    refused: Refused,
    replaced: Replaced,
    draining: AtomicBool,
    stop_bodies: CancellationToken,
    requests: TaskTracker,
}

impl Ingest {
    /// Ingest before its first request.
    pub fn new(config: &Config, spool: Spool, authenticator: Authenticator) -> Arc<Ingest> {
        let max_lines_bytes = config.max_inflight_bytes.max(config.max_body_bytes.saturating_mul(MAX_GROWTH)) / 4 * 3;
        // So connections are left for requests that need little memory.
        let max_waiting = (config.max_connections / MAX_WAITING_PART).max(1);
        let largest_event = config.max_event_bytes;
        let largest_body = config.max_body_bytes.saturating_add(inflate::MAX_BYTES_BESIDE);
        Arc::new(Ingest {
            spool,
            authenticator,
            bodies: Memory::new(
                config.max_inflight_bytes,
                largest_body,
                inflate::bytes_for(largest_event),
                max_waiting,
            ),
            lines: Memory::new(
                config.max_inflight_bytes,
                max_lines_bytes.saturating_add(copies_bytes(largest_event)),
                usual_lines_bytes(largest_event).saturating_add(copies_bytes(largest_event)),
                max_waiting,
            ),
            tokens: TokenBodies::default(),
            takes_hand_overs: config.takes_hand_overs(),
            scans: Arc::new(Semaphore::new(SCANS_AT_ONCE)),
            audit_scans: Arc::new(Semaphore::new(1)),
            limits: Limits {
                max_event_bytes: config.max_event_bytes,
                max_body_bytes: config.max_body_bytes,
                max_lines_bytes,
                redact: config.redact,
            },
            max_body_bytes: config.max_body_bytes,
            max_body_variable: config.max_body_variable,
            default_type: config.default_type,
            bucket_path: config.bucket_path.clone(),
            last_keys: Default::default(),
            both_ways: BothWays::new(config),
            meters: IngestMeters::new(),
            refused: Refused::default(),
            replaced: Replaced::default(),
            draining: AtomicBool::new(false),
            stop_bodies: CancellationToken::new(),
            requests: TaskTracker::new(),
        })
    }

    /// Whether pulled log types come from senders, too.
    pub fn both_ways(&self) -> BothWays {
        self.both_ways.clone()
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
    pub async fn handle(&self, request: Request<Incoming>, guest: Guest) -> Answer {
        let _under_way = self.requests.token();
        let started = Instant::now();
        let came_too_late = self.draining.load(Ordering::Relaxed);
        let mut log_type = None;
        let route = route(request.method(), request.uri().path(), request.headers());
        let protocol = route.protocol();
        let outcome = match self.take(request, route, &guest, &mut log_type).await {
            Ok(Taken::Events(lines, held)) => {
                self.append(lines, held, protocol, &guest).await.map(|accepted| protocol.accepted(&accepted))
            }
            Ok(Taken::Answered(answer)) => Ok(answer),
            Err(refusal) => Err(refusal),
        };
        // Whatever the request was; only the token that it may have carried was taken.
        let outcome = if came_too_late { Err(receive::draining()) } else { outcome };
        let mut answer = outcome.unwrap_or_else(|refusal| {
            self.refused.count(refusal.status(), protocol.name(), log_type, &guest);
            protocol.refused(&refusal)
        });
        if self.draining.load(Ordering::Relaxed) {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        self.meters.answered(log_type, answer.status(), started.elapsed());
        answer
    }

    /// Does all of a request up to its events. Head and body are dropped at the end: while the disk works, the next
    /// request can have their memory, which is still in the processor's cache.
    async fn take(
        &self,
        request: Request<Incoming>,
        route: Route,
        guest: &Guest,
        log_type: &mut Option<LogType>,
    ) -> Result<Taken, Refusal> {
        let (head, mut body) = request.into_parts();
        let mut head = Head { uri: head.uri, headers: head.headers };
        let expects = protocols::has_rare(&head.headers, &EXPECT);
        let taken = match route {
            Route::Question { answer, .. } => Ok(Taken::Answered(answer)),
            Route::Refused { refusal, .. } => Err(refusal),
            Route::OidcToken => {
                // Few requests are one, and its future is larger than that of all others.
                let taken = Box::pin(self.take_token(head, &mut body, guest)).await;
                taken.map(|()| Taken::Answered(empty_answer(StatusCode::NO_CONTENT)))
            }
            Route::Events { protocol, log_type: named } => {
                *log_type = named;
                self.take_events(protocol, &mut head, &mut body, guest, log_type).await
            }
        };
        receive::linger(body, expects);
        taken
    }

    /// `PUT /v1/oidc-token`. Never depends on the spool.
    async fn take_token(&self, head: Head, body: &mut Incoming, guest: &Guest) -> Result<(), Refusal> {
        let seat = self.tokens.seat(guest.network());
        let body = seat.read(body, &self.stop_bodies);
        let judged = tokio::select! {
            biased;
            judged = self.authenticator.hand_over_request(guest, head, body) => judged,
            refusal = seat.given_up() => Err(refusal),
        };
        judged?.map_err(|error| match error {
            AuthError::Unavailable { .. } | AuthError::NoRoom => error.into(),
            _ if !self.takes_hand_overs => Refusal::Unauthorized(BadCredentials::NoHandOvers),
            AuthError::Missing => Refusal::Unauthorized(BadCredentials::EmptyHandOver),
            AuthError::Refused(Reason::NotAJwt) => Refusal::Unauthorized(BadCredentials::NoTokenInHandOver),
            AuthError::Refused(_) | AuthError::Invalid | AuthError::Incomplete | AuthError::Malformed(_) => {
                Refusal::Unauthorized(BadCredentials::NoOidcToken)
            }
        })
    }

    /// `log_type` tells the meters what the events are, as soon as that is known.
    async fn take_events(
        &self,
        protocol: &'static dyn Protocol,
        head: &mut Head,
        body: &mut Incoming,
        guest: &Guest,
        log_type: &mut Option<LogType>,
    ) -> Result<Taken, Refusal> {
        let (named, headers) = (*log_type, &head.headers);
        let carried = protocol.token(&head.uri, headers);
        let identity = self.authenticator.authenticate(guest, headers, carried.as_deref(), named).await;
        if protocols::has_rare(headers, &OIDC_TOKEN_HEADER) {
            self.authenticator.hand_over_beside(guest, headers, identity.is_ok()).await;
        }
        let identity = identity?;
        let decided = identity.log_type().or(named);
        *log_type = decided;
        let encoding = self.judge_head(guest, &identity, named, &Sender { protocol, decided, head })?;
        guest.let_in(identity.trust());

        let share = Share::of(identity, decided);
        let (limit, variable) = (self.max_body_bytes, self.max_body_variable);
        let terms = Terms { limit, variable, memory: &self.bodies, share, stop: &self.stop_bodies };
        let mut reading = pin!(receive::read(body, encoding, &terms));
        let mut received = match reading.as_mut().now_or_never() {
            Some(received) => received?,
            // A thousand bodies that come slowly would keep 20 MiB of heads.
            None => {
                head.shrink();
                guest.waits_with(&head.uri, &head.headers);
                reading.await?
            }
        };
        // Some senders compress twice and say so once.
        let encoding = Encoding::by_magic(&received.bytes);
        if encoding != Encoding::Identity {
            received = Box::pin(received.inflate(encoding, &terms)).await?;
            if Encoding::by_magic(&received.bytes) != Encoding::Identity {
                return Err(Refusal::BrokenBody { reason: "it is compressed more than twice".to_owned() });
            }
        }
        let (lines, held) = self.parse(&Sender { protocol, decided, head }, share, received).await?;
        *log_type = Some(main_type(&lines));
        self.both_ways.look(identity, protocol, &lines);
        Ok(Taken::Events(lines, held))
    }

    /// What the head alone can be refused for, before any memory is taken. Where it doesn't tell the
    /// log type, a spool that would take one of them is no reason.
    fn judge_head(
        &self,
        guest: &Guest,
        identity: &Identity,
        named: Option<LogType>,
        sender: &Sender<'_>,
    ) -> Result<Encoding, Refusal> {
        let headers = &sender.head.headers;
        if let (Some(named), Some(may_write)) = (named, identity.log_type())
            && named != may_write
        {
            self.authenticator.refuse_wrong_type(guest);
            return Err(Refusal::Unauthorized(BadCredentials::WrongType { may_write }));
        }
        if self.draining.load(Ordering::Relaxed) {
            return Err(receive::draining());
        }
        let length = headers.get(CONTENT_LENGTH);
        if length.is_none() && !headers.contains_key(TRANSFER_ENCODING) {
            return Err(Refusal::LengthRequired);
        }
        sender.protocol.judge_media_type(headers)?;
        let encoding = sender.protocol.encoding(headers)?;
        let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > self.max_body_bytes as u64) {
            return Err(Refusal::TooLarge { limit: self.max_body_bytes, variable: self.max_body_variable });
        }
        // Every event has at least a byte; how many a compressed body has is not known yet.
        let least = if encoding == Encoding::Identity { length.unwrap_or(1) } else { 1 };
        let takes = |log_type| match self.spool.failing(log_type) {
            Some(error) => Err(AppendError::Disk(error)),
            None => self.spool.check_room(log_type, least),
        };
        match sender.decided {
            None if LogType::ALL.into_iter().any(|log_type| takes(log_type).is_ok()) => {}
            decided => takes(decided.unwrap_or(self.default_type)).map_err(not_taken)?,
        }
        Ok(encoding)
    }

    /// The request's events. All that is built of its body is charged first. Few grow more than usual on their way to
    /// lines; those are parsed again, with room for the most that is allowed.
    async fn parse(&self, sender: &Sender<'_>, share: Share, body: Received) -> Result<(ByType<Lines>, Held), Refusal> {
        let headers = &sender.head.headers;
        let decoding = Decoding::of(headers, &body.bytes)?;
        let unpacked = protocols::unpacked_bytes(sender.protocol, headers, &body.bytes, decoding);
        let unpacked = unpacked.min(self.max_body_bytes);
        let length = body.bytes.len().max(unpacked);
        let most = self.limits.max_lines_bytes.saturating_sub(unpacked);
        let usual = usual_lines_bytes(length).min(most);
        let mut charge = Charge::after(body.waited());
        let body = Arc::new(body);
        let beside_lines = unpacked + copies_bytes(length.min(self.limits.max_event_bytes));
        for max_lines_bytes in [usual, most] {
            let needs = beside_lines + max_lines_bytes;
            self.lines.charge(share, &mut charge, needs, needs).await?;
            let waited = charge.waited;
            let limits = Limits { max_lines_bytes, ..self.limits };
            match self.scan(limits, sender, decoding, share, &body, charge).await {
                Err(Refusal::Body(BodyError::LinesTooLarge { .. })) if max_lines_bytes < most => {}
                // The parsers don't know which variable sets their limit.
                Err(Refusal::Body(BodyError::TooLarge { limit_bytes })) => {
                    return Err(Refusal::TooLarge { limit: limit_bytes, variable: self.max_body_variable });
                }
                outcome => return outcome,
            }
            charge = Charge::after(waited);
        }
        Err(Refusal::Body(BodyError::LinesTooLarge { limit_bytes: most }))
    }

    /// The request's events, where all that is built of its body stays within `limits`. What it turns out not to need
    /// of `charge` is given back.
    async fn scan(
        &self,
        limits: Limits,
        sender: &Sender<'_>,
        decoding: Option<Decoding>,
        share: Share,
        body: &Arc<Received>,
        mut charge: Charge,
    ) -> Result<(ByType<Lines>, Held), Refusal> {
        let Sender { protocol, decided, head: Head { uri, headers } } = *sender;
        let (body, default_type) = (Arc::clone(body), self.default_type);
        let scan = move |uri: &Uri, headers: &HeaderMap| {
            let parts = protocol.events(uri, headers, body.bytes.clone(), decoding, crate::batch::now, &limits)?;
            let lines = by_type(parts, &limits, |said| decided.or(said).unwrap_or(default_type))?;
            let as_sent = |lines: &Lines| body.bytes.as_ptr_range().contains(&lines.bytes.as_ptr());
            charge.shrink_to(lines.values().filter(|lines| !as_sent(lines)).map(|lines| lines.bytes.len()).sum());
            let body = lines.values().any(as_sent).then_some(body);
            Ok((lines, Held { _body: body, lines: charge }))
        };
        if limits.max_lines_bytes < SCAN_ASIDE_LINES_BYTES {
            return scan(uri, headers);
        }
        let scans = if share == Share::Audits { &self.audit_scans } else { &self.scans };
        // Each one ends by itself, so this comes soon.
        let turn = Arc::clone(scans).acquire_owned().await;
        let (uri, headers) = (uri.clone(), headers.clone());
        let scan = move || {
            let _turn = turn;
            scan(&uri, &headers)
        };
        let parts = tokio::task::spawn_blocking(scan).await;
        parts.map_err(|error| Refusal::Unavailable { reason: error.to_string(), retry_after_seconds: 1 })?
    }

    /// The batch's object key; made once for all the requests that a batch takes.
    fn key(&self, log_type: LogType, batch: &BatchName) -> Arc<str> {
        let mut last = self.last_keys[log_type].lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((name, key)) if name == batch => key.clone(),
            _ => {
                let key = serde_json::Value::from(object_key(&self.bucket_path, log_type, batch)).to_string();
                let key: Arc<str> = key.into();
                *last = Some((*batch, key.clone()));
                key
            }
        }
    }
}

/// What the lines of almost every body of `bytes` take.
fn usual_lines_bytes(bytes: usize) -> usize {
    USUAL_LINES_LEAST_BYTES.saturating_add(USUAL_GROWTH.saturating_mul(bytes))
}

/// What a line of `bytes` takes beside itself while it is built: it is copied once more where it is changed.
fn copies_bytes(bytes: usize) -> usize {
    bytes.saturating_mul(2)
}

/// A request once all of it has been read.
enum Taken {
    /// What it is answered with.
    Answered(Answer),
    /// For each log type, to be appended.
    Events(ByType<Lines>, Held),
}

/// The memory that a request's events are charged for, until they are durable.
struct Held {
    /// The body's, where lines are stored as they were sent.
    _body: Option<Arc<Received>>,
    lines: Charge,
}

/// [`Ingest::handle`], as soon as there is one; 503 where that takes more than 5 s.
pub async fn answer_once_started(
    once_started: Arc<SetOnce<Arc<Ingest>>>,
    request: Request<Incoming>,
    guest: Guest,
) -> Answer {
    let started = match once_started.get() {
        // After the start no request needs a timer for this.
        Some(ingest) => Some(ingest),
        None => tokio::time::timeout(HOLD, once_started.wait()).await.ok(),
    };
    match started {
        Some(ingest) => ingest.handle(request, guest).await,
        None => {
            let (head, body) = request.into_parts();
            receive::linger(body, head.headers.contains_key(EXPECT));
            let protocol = route(&head.method, head.uri.path(), &head.headers).protocol();
            let reason = "starting: the spool is being recovered".to_owned();
            let refusal = Refusal::Unavailable { reason, retry_after_seconds: RETRY_STARTING_SECONDS };
            protocol.refused(&refusal)
        }
    }
}

/// Who sends events, by which protocol and path.
#[derive(Clone, Copy)]
struct Sender<'a> {
    protocol: &'static dyn Protocol,
    /// The log type that the credentials decide, or else the path.
    decided: Option<LogType>,
    head: &'a Head,
}

fn main_type(lines: &ByType<Lines>) -> LogType {
    let most = LogType::ALL.into_iter().max_by_key(|log_type| lines[*log_type].records);
    most.unwrap_or(LogType::Deployments)
}

fn not_taken(error: AppendError) -> Refusal {
    let retry_after_seconds = match error {
        AppendError::TooLarge { limit_bytes } => {
            let limit = usize::try_from(limit_bytes).unwrap_or(usize::MAX);
            return Refusal::TooLarge { limit, variable: "ENV0_S3_LOG_SPOOL_MAX_BYTES" };
        }
        AppendError::Full { .. } => RETRY_FULL_SECONDS,
        AppendError::Disk(_) | AppendError::Closed => RETRY_DISK_SECONDS,
    };
    let reason = match &error {
        // A sender need not know where the spool is.
        AppendError::Disk(error) => format!("the spool's disk: {}", volume::unnamed(error)),
        error => error.to_string(),
    };
    Refusal::Unavailable { reason, retry_after_seconds }
}

#[cfg(test)]
mod tests;
