//! Why a request is refused, and the answer that follows from it.

use std::fmt;

use axum::http::header::{self, HeaderName};
use axum::http::{HeaderValue, Response, StatusCode};
use bytes::Bytes;
use http_body_util::Full;

use super::body::BodyError;
use crate::batch::LogType;

/// `Content-Encoding`s that are inflated, for `Accept-Encoding` and messages.
pub(super) const SUPPORTED_ENCODINGS: &str = "gzip, deflate, zstd";

/// Why a request is refused. Messages are for the client and never have a byte of the request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// 401
    #[error("{0}")]
    Unauthorized(BadCredentials),
    /// 404
    #[error("unknown path or log type; status and metrics are at ENV0_S3_LOG_ADMIN_ADDR")]
    UnknownPath,
    /// 405
    #[error("this path takes {allowed} only")]
    WrongMethod {
        /// The value of the `Allow` header.
        allowed: &'static str,
    },
    /// 400, 413 or 415
    #[error(transparent)]
    Body(#[from] BodyError),
    /// 400: the compressed stream is broken, or the chunks are.
    #[error("the body can't be read: {reason}")]
    BrokenBody {
        /// What broke.
        reason: String,
    },
    /// 408
    #[error(
        "the body did not arrive in time: at most 30 s without a byte, 5 minutes in all, and at least 64 KiB a second after \
         10 s while others wait for memory"
    )]
    BodyTimeout,
    /// 411: neither a length nor chunks, so that nothing says where a body ends.
    #[error("a POST without Content-Length and without chunks has no body: send one of them")]
    LengthRequired,
    /// 413
    #[error("larger than {limit} bytes, the limit that {variable} sets")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
        /// The variable that sets it.
        variable: &'static str,
    },
    /// 415
    #[error("unsupported Content-Encoding; supported: one of {SUPPORTED_ENCODINGS}")]
    UnsupportedEncoding,
    /// 415
    #[error("Content-Type says {declared}, which this path does not take: {instead}")]
    UnsupportedMediaType {
        /// What the header declares, in our words.
        declared: &'static str,
        /// What to send, or where.
        instead: &'static str,
    },
    /// 503 with `Retry-After`.
    #[error("{reason}; try again in {retry_after_seconds} s")]
    Unavailable {
        /// What the client has to wait for.
        reason: String,
        /// The value of `Retry-After`.
        retry_after_seconds: u64,
    },
}

/// Why a request's credentials are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadCredentials {
    /// There are none.
    Missing,
    /// `Authorization` is one word, where a scheme and a token are two.
    Incomplete,
    /// They are not known.
    Unknown,
    /// They are known, but may not write this log type.
    WrongType {
        /// The one that they may write.
        may_write: LogType,
    },
    /// What was handed over is no OIDC token that is let in.
    NoOidcToken,
    /// Nothing was handed over.
    EmptyHandOver,
    /// What was handed over has not the form of a token.
    NoTokenInHandOver,
    /// No OIDC token is let in, whatever it is.
    NoHandOvers,
}

impl fmt::Display for BadCredentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            BadCredentials::WrongType { may_write } => {
                return write!(
                    formatter,
                    "these credentials may write {may_write} alone (the type of an ingest token stands behind it in \
                     ENV0_S3_LOG_INGEST_TOKEN_FILE; an OIDC token writes {})",
                    LogType::Deployments
                );
            }
            BadCredentials::NoOidcToken => {
                "no OIDC token that is let in: send the ENV0_OIDC_TOKEN of a deployment, as the body or as Authorization: \
                 Bearer <token>; the daemon's log and /status say why one was refused"
            }
            BadCredentials::EmptyHandOver => {
                "no OIDC token: the body is empty; see that ENV0_OIDC_TOKEN is set where it is sent from: in env0, turn on \
                 \"Enable OIDC during deployments\""
            }
            BadCredentials::NoTokenInHandOver => {
                "no OIDC token: it is three parts with two dots between, and begins with eyJ; send the ENV0_OIDC_TOKEN of a \
                 deployment as the body, without Bearer, quotes or JSON around it, or as Authorization: Bearer <token>"
            }
            BadCredentials::NoHandOvers => {
                "this daemon lets no OIDC token in, because neither ENV0_S3_LOG_OIDC_ORGANIZATION_ID nor \
                 ENV0_S3_LOG_OIDC_SUBJECT is set for it: set the first to the id of your env0 organization"
            }
            BadCredentials::Missing | BadCredentials::Incomplete | BadCredentials::Unknown => {
                "no valid credentials: send an ingest token (the value of ENV0_S3_LOG_INGEST_TOKEN, or a line of \
                 ENV0_S3_LOG_INGEST_TOKEN_FILE) or an env0 OIDC token, for instance as Authorization: Bearer <token>; \
                 the daemon's log and /status say why an OIDC token was refused"
            }
        })
    }
}

impl Refusal {
    /// The HTTP status, the same in every protocol.
    pub fn status(&self) -> StatusCode {
        match self {
            Refusal::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Refusal::UnknownPath => StatusCode::NOT_FOUND,
            Refusal::WrongMethod { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Refusal::Body(BodyError::Invalid { .. }) | Refusal::BrokenBody { .. } => StatusCode::BAD_REQUEST,
            Refusal::UnsupportedEncoding
            | Refusal::UnsupportedMediaType { .. }
            | Refusal::Body(BodyError::OtherCharset) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Refusal::Body(_) | Refusal::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Refusal::LengthRequired => StatusCode::LENGTH_REQUIRED,
            Refusal::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// An answer with the refusal's status and headers and a protocol's own body.
    pub fn answer(&self, content_type: HeaderValue, body: impl Into<Bytes>) -> Answer {
        let mut answer = answer(self.status(), content_type, body);
        let (name, value): (HeaderName, HeaderValue) = match self {
            Refusal::Unauthorized(_) => (header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
            Refusal::WrongMethod { allowed } => (header::ALLOW, HeaderValue::from_static(allowed)),
            // The bytes that follow were meant as the body, and must not be read as a request.
            Refusal::LengthRequired => (header::CONNECTION, HeaderValue::from_static("close")),
            Refusal::UnsupportedEncoding => (header::ACCEPT_ENCODING, HeaderValue::from_static(SUPPORTED_ENCODINGS)),
            Refusal::Unavailable { retry_after_seconds, .. } => (header::RETRY_AFTER, (*retry_after_seconds).into()),
            _ => return answer,
        };
        answer.headers_mut().insert(name, value);
        answer
    }
}

/// What a request is answered with; its body is small and in memory.
pub type Answer = Response<Full<Bytes>>;

/// An answer with a body of a known type.
pub(super) fn answer(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, content_type);
    answer
}

/// An answer without a body.
pub fn empty_answer(status: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    answer
}

/// Media type of JSON answers. A constant, because a text is judged byte for byte each time that it becomes a value.
pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Media type of text answers.
pub(super) const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
