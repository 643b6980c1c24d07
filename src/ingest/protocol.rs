//! What every protocol of the ingest listener has in common: a request becomes lines, an outcome
//! becomes that protocol's own answer.

use axum::body::Body;
use axum::http::{HeaderMap, Response, Uri};
use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::batch::LogType;
use crate::ingest::body::{BodyError, Limits, Lines};

/// The lines of one request that go to one log type.
#[derive(Debug)]
pub struct Part {
    /// The log type that the sender's own words name (source, label, service, name), if they do.
    pub said: Option<LogType>,
    pub lines: Lines,
}

/// Where an accepted request's events are.
#[derive(Debug, Clone)]
pub struct Accepted {
    pub records: u64,
    /// Key of the batch and index of the first line there; `None` when there was no event.
    pub receipt: Option<(String, u64)>,
}

/// Why a request is refused (contract section 3, status table).
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    /// 401. `wrong_type`: good credentials that may not write this log type.
    #[error("…")]
    Unauthorized { wrong_type: bool },
    /// 404
    #[error("…")]
    UnknownPath,
    /// 405; `allowed` for the `Allow` header.
    #[error("…")]
    WrongMethod { allowed: &'static str },
    /// 400 or 413
    #[error(transparent)]
    Body(#[from] BodyError),
    /// 400: the compressed stream is broken, or the chunks are.
    #[error("…")]
    BrokenBody { reason: String },
    /// 408
    #[error("…")]
    BodyTimeout,
    /// 413: `limit` bytes, set by `variable`.
    #[error("…")]
    TooLarge { limit: usize, variable: &'static str },
    /// 415
    #[error("…")]
    UnsupportedEncoding,
    /// 503 with `Retry-After`.
    #[error("…")]
    Unavailable { reason: String, retry_after_seconds: u64 },
}

/// One protocol. Pure: the HTTP front (`ingest.rs`) does authentication, limits, reading, inflating
/// and appending, in the same way for all.
pub trait Protocol: Send + Sync + 'static {
    /// The label in metrics and logs.
    fn name(&self) -> &'static str;

    /// A token that is carried elsewhere than in `Authorization` (query, path, `Api-Key`).
    fn token(&self, _uri: &Uri, _headers: &HeaderMap) -> Option<String> {
        None
    }

    /// The request's events; `body` is already inflated (HTTP `Content-Encoding`).
    fn parse(&self, uri: &Uri, headers: &HeaderMap, body: Bytes, received: DateTime<Utc>, limits: &Limits) -> Result<Vec<Part>, BodyError>;

    /// The answer to accepted events.
    fn accepted(&self, uri: &Uri, headers: &HeaderMap, accepted: &Accepted) -> Response<Body>;

    /// The answer to a refusal; status, `Retry-After` and `WWW-Authenticate` as the contract says.
    fn refused(&self, uri: &Uri, headers: &HeaderMap, refusal: &Refusal) -> Response<Body>;
}
