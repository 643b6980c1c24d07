//! What every protocol of the ingest listener does: it makes lines of a body, and puts the outcome into an answer of
//! its own form. Pure: no socket, no token, no spool.

pub mod body;
mod charset;
mod foreign;
mod head;
pub mod logzio;
pub mod loki;
pub mod native;
pub mod newrelic;
pub mod otlp;
pub mod paths;
mod protobuf;
mod refusal;
pub mod splunk;
pub mod sumologic;

use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode, Uri};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::batch::{ByType, LogType};
use crate::protocols::body::{BodyError, Events, Limits, LineWriter};
pub use crate::protocols::body::{Lines, Part};
pub use crate::protocols::charset::Decoding;
pub use crate::protocols::head::{Encoding, Head, has_rare};
use crate::protocols::head::{
    KNOWN_PATHS, PREFIX, header_text, header_values, is_json, judge_media_type, percent_decode, query_token,
    query_values, split_log_type,
};
pub use crate::protocols::refusal::{Answer, BadCredentials, Refusal, empty_answer};
use crate::protocols::refusal::{JSON, SUPPORTED_ENCODINGS, TEXT, answer};

/// Where an accepted request's events are.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// How many events were accepted.
    pub records: u64,
    /// Key of the batch, a JSON string, and index of the first line there; `None` when there was no event.
    pub receipt: Option<(Arc<str>, u64)>,
}

/// One protocol. Pure: `ingest.rs` does authentication, limits, reading, inflating and appending in the same way for all
/// protocols.
pub trait Protocol: Send + Sync + 'static {
    /// Tells protocols apart; two encodings of one have the same.
    fn name(&self) -> &'static str;

    /// The token, where the protocol puts it elsewhere than in `Authorization`: query, path, `Api-Key`.
    fn token(&self, _uri: &Uri, _headers: &HeaderMap) -> Option<String> {
        None
    }

    /// How many bytes [`Protocol::parse`] unpacks `body` to before it makes lines of them; 0 where it reads `body` itself, as
    /// it does with text and JSON that is UTF-8. See the function [`unpacked_bytes`].
    fn unpacked_bytes(&self, _headers: &HeaderMap, body: &[u8]) -> usize {
        body::repaired_len(body).unwrap_or_default()
    }

    /// How the body is compressed, by its `Content-Encoding`.
    fn encoding(&self, headers: &HeaderMap) -> Result<Encoding, Refusal> {
        Encoding::of(headers, None)
    }

    /// Refuses a `Content-Type` that this protocol's events can't have.
    fn judge_media_type(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        judge_media_type(headers, false)
    }

    /// Whether `body` is JSON or text. Where it is protobuf, nothing but [`Protocol::parse`] reads it.
    fn reads_json(&self, _headers: &HeaderMap, _body: &[u8]) -> bool {
        true
    }

    /// The request's events, as [`Protocol::parse`] finds them once `decoding` has brought the body to UTF-8. Refuses a body
    /// that is another protocol's request. The native protocol takes such a body: its path names the log type, and stored
    /// lines of any protocol may be sent again there. `received` is the clock: only lines of text need the time.
    fn events(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        body: Bytes,
        decoding: Option<Decoding>,
        received: fn() -> DateTime<Utc>,
        limits: &Limits,
    ) -> Result<Vec<Part>, BodyError> {
        let body = match decoding {
            Some(decoding) => decoding.decode(&body, limits)?,
            None => body,
        };
        if self.reads_json(headers, &body) {
            foreign::refuse(self.name(), &body, limits)?;
        }
        self.parse(uri, headers, body, received, limits)
    }

    /// The request's events; `body` is already inflated (HTTP `Content-Encoding`).
    fn parse(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        body: Bytes,
        received: fn() -> DateTime<Utc>,
        limits: &Limits,
    ) -> Result<Vec<Part>, BodyError>;

    /// The answer to accepted events.
    fn accepted(&self, accepted: &Accepted) -> Answer;

    /// The answer to a refusal; status, `Retry-After` and `WWW-Authenticate` by one table for all protocols; see
    /// [`Refusal::status`].
    fn refused(&self, refusal: &Refusal) -> Answer;

    /// The answer to a client that asks, without credentials, whether the listener is up.
    fn alive(&self) -> Answer {
        empty_answer(StatusCode::OK)
    }
}

/// How many bytes [`Protocol::events`] unpacks `body` to before lines are made of it; 0 where it reads `body` itself.
pub fn unpacked_bytes(protocol: &dyn Protocol, headers: &HeaderMap, body: &[u8], decoding: Option<Decoding>) -> usize {
    decoding.map_or_else(|| protocol.unpacked_bytes(headers, body), |decoding| decoding.len)
}

/// The log type that `word` names: env0's integrations put one of these words into a source, label, service, name or
/// index.
pub fn log_type_of(word: &str) -> Option<LogType> {
    match word.strip_suffix("-source").or_else(|| word.strip_suffix("-index")).unwrap_or(word) {
        "env0-deployments" | "env0-deployment-logs" => Some(LogType::Deployments),
        "env0-audits" | "env0-audit-logs" => Some(LogType::Audits),
        _ => None,
    }
}

/// The log type that the first of these JSON values names which names one, however it is escaped.
pub fn said_by<'a>(members: impl IntoIterator<Item = Option<&'a RawValue>>) -> Option<LogType> {
    members.into_iter().flatten().find_map(|value| log_type_of(&body::text_of(value.get())?))
}

/// An event within a line. A JSON object stays one, so that secrets in it are found.
#[derive(Serialize)]
#[serde(untagged)]
pub enum ObjectOrText<'a> {
    /// A JSON object, as it was sent.
    Object(&'a RawValue),
    /// Anything else.
    Text(&'a str),
}

/// The parts of a body of lines that `each` makes of its events: of the objects where all of the body is JSON, else, line by
/// line, of the objects of a line that is nothing but objects, and of any other line as text.
pub fn objects_or_lines(
    body: &Bytes,
    limits: &Limits,
    mut each: impl FnMut(&mut LineWriter, ObjectOrText<'_>) -> Result<(), BodyError>,
) -> Result<Vec<Part>, BodyError> {
    if Events::sniff(body) {
        let mut writer = LineWriter::with_capacity(limits, body.len() + 1);
        let json = writer.repair(body.clone())?;
        let mut events = Events::new(&json);
        match events.try_for_each(|event| each(&mut writer, ObjectOrText::Object(event?.json))) {
            // Not all of it is JSON.
            Err(BodyError::Invalid { .. }) => {}
            outcome => return outcome.map(|()| writer.finish()),
        }
    }
    let mut writer = LineWriter::with_capacity(limits, body.len() + 1);
    writer.text_lines(body, |writer, line| match Events::of_line(line) {
        Some(mut objects) => objects.try_for_each(|object| each(writer, ObjectOrText::Object(object))),
        None => each(writer, ObjectOrText::Text(line)),
    })?;
    Ok(writer.finish())
}

/// The lines for each log type. `decide` gives the log type of a part by what its sender named. The order is kept. A log
/// type with one part is not copied; where parts have to be copied, parts and copies together stay within `limits`.
pub fn by_type(
    mut parts: Vec<Part>,
    limits: &Limits,
    decide: impl Fn(Option<LogType>) -> LogType,
) -> Result<ByType<Lines>, BodyError> {
    if parts.len() <= 1 {
        // Almost every request has one part, so it needs no lists.
        let mut lines = ByType::<Lines>::default();
        if let Some(part) = parts.pop() {
            lines[decide(part.said)] = part.lines;
        }
        return Ok(lines);
    }
    let bytes = |parts: &[Lines]| parts.iter().map(|lines| lines.bytes.len()).sum::<usize>();
    let mut sorted: ByType<Vec<Lines>> = ByType::default();
    for part in parts {
        sorted[decide(part.said)].push(part.lines);
    }
    let copied: usize = sorted.values().filter(|parts| parts.len() > 1).map(|parts| bytes(parts)).sum();
    let all: usize = sorted.values().map(|parts| bytes(parts)).sum();
    if copied > 0 && all + copied > limits.max_lines_bytes {
        return Err(BodyError::LinesTooLarge { limit_bytes: limits.max_lines_bytes });
    }
    Ok(sorted.map(|_, mut lines| match lines.len() {
        0 | 1 => lines.pop().unwrap_or_default(),
        _ => {
            let mut together = Vec::with_capacity(bytes(&lines));
            lines.iter().for_each(|lines| together.extend_from_slice(&lines.bytes));
            Lines {
                records: lines.iter().map(|lines| lines.records).sum(),
                redacted: lines.iter().map(|lines| lines.redacted).sum(),
                replaced: lines.iter().map(|lines| lines.replaced).sum(),
                bytes: together.into(),
            }
        }
    }))
}

#[cfg(test)]
pub(crate) mod tests;
// Its `fuzz` is what tests/fuzz runs.
#[cfg(fuzzing)]
pub(crate) mod tests;
