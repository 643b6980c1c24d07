//! What every protocol of the ingest listener has in common: a body becomes lines, and an outcome
//! becomes that protocol's own answer. Pure: no socket, no token, no spool.

pub mod body;
pub mod logzio;
pub mod loki;
pub mod native;
pub mod newrelic;
pub mod otlp;
mod protobuf;
pub mod splunk;
pub mod sumologic;

use std::fmt;
use std::sync::Arc;

use axum::http::header::{self, CONTENT_ENCODING, HeaderName};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, Uri};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use http_body_util::Full;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::batch::LogType;
use crate::protocols::body::{BodyError, Limits};
pub use crate::protocols::body::{Lines, Part};

/// Where an accepted request's events are.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// How many events were accepted.
    pub records: u64,
    /// Key of the batch, a JSON string, and index of the first line there; `None` when there was no event.
    pub receipt: Option<(Arc<str>, u64)>,
}

/// `Content-Encoding`s that are inflated, for `Accept-Encoding` and messages.
pub const SUPPORTED_ENCODINGS: &str = "gzip, deflate, zstd";

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Not at all.
    Identity,
    /// RFC 1952, any number of members.
    Gzip,
    /// RFC 1950, or RFC 1951 without its wrapper.
    Deflate,
    /// RFC 8878.
    Zstd,
}

impl Encoding {
    /// From `Content-Encoding`; at most one.
    pub fn of(headers: &HeaderMap) -> Result<Encoding, Refusal> {
        let mut values = headers.get_all(CONTENT_ENCODING).iter();
        let (value, None) = (values.next(), values.next()) else { return Err(Refusal::UnsupportedEncoding) };
        let Some(value) = value else { return Ok(Encoding::Identity) };
        match value.as_bytes().trim_ascii().to_ascii_lowercase().as_slice() {
            b"" | b"identity" => Ok(Encoding::Identity),
            b"gzip" | b"x-gzip" => Ok(Encoding::Gzip),
            b"deflate" => Ok(Encoding::Deflate),
            b"zstd" => Ok(Encoding::Zstd),
            _ => Err(Refusal::UnsupportedEncoding),
        }
    }
}

/// Why a request is refused (contract section 3, status table). Messages are for the client; they
/// never hold a byte of the request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// 401
    #[error("{0}")]
    Unauthorized(BadCredentials),
    /// 404
    #[error("unknown path or log type")]
    UnknownPath,
    /// 405
    #[error("this path takes {allowed} only")]
    WrongMethod {
        /// For the `Allow` header.
        allowed: &'static str,
    },
    /// 400 or 413
    #[error(transparent)]
    Body(#[from] BodyError),
    /// 400: the compressed stream is broken, or the chunks are.
    #[error("the body can't be read: {reason}")]
    BrokenBody {
        /// What broke.
        reason: String,
    },
    /// 408
    #[error("the body did not arrive in time: at most 30 s without a byte, 5 minutes in all")]
    BodyTimeout,
    /// 413
    #[error("larger than {limit} bytes, the limit that {variable} sets")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
        /// The variable that sets it.
        variable: &'static str,
    },
    /// 415
    #[error("unsupported Content-Encoding; supported: {SUPPORTED_ENCODINGS}")]
    UnsupportedEncoding,
    /// 503 with `Retry-After`.
    #[error("{reason}; try again in {retry_after_seconds} s")]
    Unavailable {
        /// What has to pass.
        reason: String,
        /// For `Retry-After`.
        retry_after_seconds: u64,
    },
}

/// Why a request's credentials don't do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadCredentials {
    /// There are none.
    Missing,
    /// `Authorization` is one word, where a scheme and a token are two.
    Incomplete,
    /// Nobody's.
    Unknown,
    /// They are good, but may not write this log type.
    WrongType,
}

impl fmt::Display for BadCredentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            BadCredentials::WrongType => "these credentials may not write this log type",
            BadCredentials::Missing | BadCredentials::Incomplete | BadCredentials::Unknown => {
                "no valid credentials: send an ingest token (ENV0_S3_LOG_INGEST_TOKEN) or an env0 OIDC token, \
                 for instance as Authorization: Bearer <token>"
            }
        })
    }
}

impl Refusal {
    /// The status of the contract's table, the same in every protocol.
    pub fn status(&self) -> StatusCode {
        match self {
            Refusal::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Refusal::UnknownPath => StatusCode::NOT_FOUND,
            Refusal::WrongMethod { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Refusal::Body(BodyError::Invalid { .. }) | Refusal::BrokenBody { .. } => StatusCode::BAD_REQUEST,
            Refusal::Body(_) | Refusal::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Refusal::UnsupportedEncoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Refusal::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// An answer with the status and headers of the contract's table and a protocol's own body.
    pub fn answer(&self, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
        let mut answer = answer(self.status(), content_type, body);
        let (name, value): (HeaderName, HeaderValue) = match self {
            Refusal::Unauthorized(_) => (header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
            Refusal::WrongMethod { allowed } => (header::ALLOW, HeaderValue::from_static(allowed)),
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
pub fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// An answer without a body.
pub fn empty_answer(status: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    answer
}

/// Media type of JSON answers.
pub const JSON: &str = "application/json";
/// Media type of text answers.
pub const TEXT: &str = "text/plain; charset=utf-8";

/// One protocol. Pure: the HTTP front (`ingest.rs`) does authentication, limits, reading, inflating
/// and appending, in the same way for all.
pub trait Protocol: Send + Sync + 'static {
    /// The label in metrics and logs.
    fn name(&self) -> &'static str;

    /// A token that is carried elsewhere than in `Authorization` (query, path, `Api-Key`).
    fn token(&self, _uri: &Uri, _headers: &HeaderMap) -> Option<String> {
        None
    }

    /// The bytes that [`Protocol::parse`] unpacks `body` to before it makes lines of them: 0 where it
    /// reads `body` itself.
    fn unpacked_bytes(&self, _headers: &HeaderMap, _body: &[u8]) -> usize {
        0
    }

    /// How the body is compressed by HTTP.
    fn encoding(&self, headers: &HeaderMap) -> Result<Encoding, Refusal> {
        Encoding::of(headers)
    }

    /// The request's events; `body` is already inflated (HTTP `Content-Encoding`).
    fn parse(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        body: Bytes,
        received: DateTime<Utc>,
        limits: &Limits,
    ) -> Result<Vec<Part>, BodyError>;

    /// The answer to accepted events.
    fn accepted(&self, accepted: &Accepted) -> Answer;

    /// The answer to a refusal; status, `Retry-After` and `WWW-Authenticate` as the contract says.
    fn refused(&self, refusal: &Refusal) -> Answer;

    /// The answer to a client that asks, without credentials, whether anyone is there.
    fn alive(&self) -> Answer {
        empty_answer(StatusCode::OK)
    }
}

/// The paths of the ingest listener. All but the first three may stand behind `/<log type>`.
pub const KNOWN_PATHS: [&str; 12] = [
    "POST /v1/logs/env0-deployments",
    "POST /v1/logs/env0-audits",
    "PUT /v1/oidc-token",
    "POST /v1/logs",
    "POST /loki/api/v1/push",
    "POST /services/collector",
    "POST /services/collector/event",
    "POST /services/collector/raw",
    "GET /services/collector/health",
    "POST /receiver/v1/http/<secret>",
    "POST /log/v1",
    "POST /",
];

/// The log type that a source, label, service, name or index of env0's own integrations tells.
pub fn log_type_of(word: &str) -> Option<LogType> {
    match word.strip_suffix("-source").or_else(|| word.strip_suffix("-index")).unwrap_or(word) {
        "env0-deployments" | "env0-deployment-logs" => Some(LogType::Deployments),
        "env0-audits" | "env0-audit-logs" => Some(LogType::Audits),
        _ => None,
    }
}

/// The log type that the first telling one of a JSON object's members names.
pub fn said_by<'a>(members: impl IntoIterator<Item = Option<&'a RawValue>>) -> Option<LogType> {
    // None of the words needs an escape, so borrowing is enough.
    let words = members.into_iter().flatten().filter_map(|value| serde_json::from_str(value.get()).ok());
    words.into_iter().find_map(log_type_of)
}

/// An event within a line: a JSON object stays one, so that it is searched for secrets.
#[derive(Serialize)]
#[serde(untagged)]
pub enum ObjectOrText<'a> {
    /// As sent.
    Object(&'a RawValue),
    /// Anything else.
    Text(&'a str),
}

impl<'a> ObjectOrText<'a> {
    /// What `line` is.
    pub fn of(line: &'a str) -> Self {
        let value: Option<&RawValue> = line.starts_with('{').then(|| serde_json::from_str(line).ok()).flatten();
        value.map_or(ObjectOrText::Text(line), ObjectOrText::Object)
    }
}

/// A parameter of the query, percent-decoded; the first of its name.
pub fn query_parameter(uri: &Uri, name: &str) -> Option<String> {
    let pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.into_iter().find(|(key, _)| *key == name).and_then(|(_, value)| percent_decode(&value.replace('+', " ")))
}

/// `text` with `%XX` decoded; `None` where an escape is broken or the outcome is not UTF-8.
pub fn percent_decode(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?].map(|digit| char::from(digit).to_digit(16));
                let [Some(high), Some(low)] = digits else { return None };
                (high * 16 + low) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

/// A header's value as text.
pub fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Whether `Content-Type` names `format` (`json`, `protobuf`) in whatever variant.
pub fn content_type_is(headers: &HeaderMap, format: &str) -> bool {
    header_text(headers, "content-type").is_some_and(|value| value.to_ascii_lowercase().contains(format))
}

/// Whether a body that may be protobuf or JSON is JSON: as `Content-Type` says; where that says
/// neither, by the first bytes. (A protobuf message may begin with a byte that is white space.)
pub fn is_json(headers: &HeaderMap, body: &[u8]) -> bool {
    if content_type_is(headers, "protobuf") {
        return false;
    }
    let begins_as_json = || {
        let rest = body.trim_ascii_start().strip_prefix(b"{").map(<[u8]>::trim_ascii_start);
        rest.is_some_and(|rest| rest.starts_with(b"\"") || rest.starts_with(b"}"))
    };
    content_type_is(headers, "json") || begins_as_json()
}

/// `path` without the log type that it may begin with.
pub fn split_log_type(path: &str) -> (&str, Option<LogType>) {
    let prefixed = LogType::ALL.into_iter().find_map(|log_type| {
        let rest = path.strip_prefix('/')?.strip_prefix(log_type.as_str())?;
        (rest.is_empty() || rest.starts_with('/')).then_some((rest, Some(log_type)))
    });
    prefixed.unwrap_or((path, None))
}

/// The lines for each log type (by [`LogType::index`]), where `decide` turns what the sender said
/// into the type. Order is kept; nothing is copied where a type has one part.
pub fn by_type(parts: Vec<Part>, decide: impl Fn(Option<LogType>) -> LogType) -> [Lines; 2] {
    let mut sorted: [Vec<Lines>; 2] = Default::default();
    for part in parts {
        sorted[decide(part.said).index()].push(part.lines);
    }
    sorted.map(|mut lines| match lines.len() {
        0 | 1 => lines.pop().unwrap_or_default(),
        _ => Lines {
            records: lines.iter().map(|lines| lines.records).sum(),
            redacted: lines.iter().map(|lines| lines.redacted).sum(),
            bytes: lines.iter().map(|lines| &lines.bytes[..]).collect::<Vec<_>>().concat().into(),
        },
    })
}

#[cfg(test)]
pub(crate) mod tests;
