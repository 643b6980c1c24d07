//! Bytes → events: sniffing, validating, one line each. Pure, no I/O, fuzzed.
//!
//! Contract sections 1 and 3. Every event is judged by serde_json's `&RawValue`, which is iterative
//! (depth has no limit) and checks UTF-8; what it calls an object is stored byte for byte. A body
//! that already is NDJSON is not copied.

mod events;
mod line;
mod members;
mod redact;
#[cfg(test)]
pub(crate) mod tests;
mod text;
mod writer;

use std::io::Write;

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};

use crate::batch::LogType;
pub use events::{Event, Events};
pub use members::{Elements, Members, members, only_members, text_of};
pub use text::{repaired, repaired_len};
pub use writer::{Line, LineWriter};

/// What the events of one request must keep to.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// `ENV0_S3_LOG_MAX_BODY_BYTES`: the body without its `Content-Encoding` and, in Loki's
    /// protocol, without snappy.
    pub max_body_bytes: usize,
    /// All lines together that have to be built, because they aren't stored as they were sent. Text
    /// and foreign protocols grow on their way to JSON: 16 MiB of empty OTLP records would be gigabytes.
    pub max_lines_bytes: usize,
    /// `ENV0_S3_LOG_MAX_EVENT_BYTES`: one stored line, without its newline.
    pub max_event_bytes: usize,
    /// `ENV0_S3_LOG_REDACT`.
    pub redact: bool,
}

/// Events as they are stored: `records` lines of JSON objects, each ended by `\n`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lines {
    /// The lines.
    pub bytes: Bytes,
    /// How many lines.
    pub records: u64,
    /// Events in which at least one value became `"[redacted]"`.
    pub redacted: u64,
    /// Bytes that were not UTF-8 and became U+FFFD.
    pub replaced: u64,
}

/// The lines of one request that go to one log type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The log type that the sender's own words name (source, label, service, name), if they do.
    pub said: Option<LogType>,
    /// The lines, in the order sent.
    pub lines: Lines,
}

/// Why a body is refused as a whole. Never holds a byte of the body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// 400
    #[error("event {event}, byte {offset}: {reason}")]
    Invalid {
        /// Which event, from 0.
        event: u64,
        /// Which byte of the inflated body.
        offset: usize,
        /// What is wrong there.
        reason: String,
    },
    /// 413
    #[error("event {event} is larger than {limit_bytes} bytes, the limit that ENV0_S3_LOG_MAX_EVENT_BYTES sets")]
    EventTooLarge {
        /// Which event, from 0.
        event: u64,
        /// [`Limits::max_event_bytes`].
        limit_bytes: usize,
    },
    /// 413
    #[error(
        "the body takes more than {limit_bytes} bytes without compression, the limit that ENV0_S3_LOG_MAX_BODY_BYTES sets"
    )]
    TooLarge {
        /// [`Limits::max_body_bytes`].
        limit_bytes: usize,
    },
    /// 413
    #[error(
        "the events take more than {limit_bytes} bytes as lines of JSON, the larger of \
         ENV0_S3_LOG_MAX_INFLIGHT_BYTES and twice ENV0_S3_LOG_MAX_BODY_BYTES; send fewer in one request"
    )]
    LinesTooLarge {
        /// [`Limits::max_lines_bytes`].
        limit_bytes: usize,
    },
}

impl BodyError {
    /// What is wrong with `part`, a slice of `body`, which is to become event number `event`.
    pub fn invalid(body: &[u8], part: &[u8], event: u64, reason: impl ToString) -> Self {
        let offset = (part.as_ptr() as usize).saturating_sub(body.as_ptr() as usize);
        BodyError::Invalid { event, offset, reason: reason.to_string() }
    }

    /// An error from reading `part`, a slice of `body`, as an error of the whole, where event number
    /// `event` was due.
    pub fn within(self, body: &[u8], part: &[u8], event: u64) -> Self {
        match self {
            BodyError::Invalid { offset, reason, .. } => Self::invalid(body, &part[offset..], event, reason),
            other => other,
        }
    }
}

/// The native form of contract section 3: JSON objects however they are strung together, or lines
/// of text, which become `{"timestamp":"<received>","message":"<line>"}`.
pub fn scan(body: Bytes, received: DateTime<Utc>, limits: &Limits) -> Result<Lines, BodyError> {
    if Events::sniff(&body) { scan_json(body, limits) } else { scan_text(&body, received, limits) }
}

/// Whether `body` has no event at all: nothing, or a BOM and white space only.
pub fn is_blank(body: &[u8]) -> bool {
    body.strip_prefix(BOM).unwrap_or(body).iter().all(|&byte| is_white_space(byte))
}

fn scan_json(body: Bytes, limits: &Limits) -> Result<Lines, BodyError> {
    // As long as the body is what is to be stored, nothing is copied: `stored` bytes, `records` lines.
    let (mut stored, mut records) = plain_lines(&body, limits);
    let rest = &body[stored..];
    let to_redact = limits.redact && redact::may_hold_secret(rest);
    let mut copy: Option<LineWriter> = None;
    for event in Events::after(&body, stored, records) {
        let event = event?;
        let bytes = event.bytes();
        if copy.is_none() {
            let as_stored =
                event.offset == stored && body.get(event.offset + bytes.len()) == Some(&b'\n') && is_one_line(bytes);
            // Looking for secrets takes memory by the event's length, which is judged before.
            let is_stored = as_stored && bytes.len() <= limits.max_event_bytes;
            if is_stored && (!to_redact || redact::secrets(bytes).is_empty()) {
                stored += bytes.len() + 1;
                records += 1;
                continue;
            }
        }
        let copy = copy.get_or_insert_with(|| LineWriter::resume(limits, &body[..stored], records, body.len() + 1));
        copy.push(None, event.json)?;
    }
    match copy {
        Some(copy) => Ok(copy.finish_lines()),
        None => Ok(Lines { bytes: body.slice(..stored), records, ..Lines::default() }),
    }
}

/// How far `body` is stored as it came, and how many lines that is; what is left needs a closer look.
fn plain_lines(body: &[u8], limits: &Limits) -> (usize, u64) {
    let (mut stored, mut records) = (0, 0);
    let mut rest = body;
    while let Some(len) = line::plain_object_len(rest)
        && len <= limits.max_event_bytes
        && rest.get(len) == Some(&b'\n')
    {
        rest = &rest[len + 1..];
        stored += len + 1;
        records += 1;
    }
    (stored, records)
}

fn scan_text(body: &[u8], received: DateTime<Utc>, limits: &Limits) -> Result<Lines, BodyError> {
    let opening = format!(r#"{{"timestamp":"{}","message":"#, rfc3339(received));
    let mut writer = LineWriter::with_capacity(limits, body.len() + opening.len());
    writer.text_lines(body, |writer, line| {
        writer.line(None, |out| {
            out.write_all(opening.as_bytes())?;
            serde_json::to_writer(&mut *out, line)?;
            out.write_all(b"}")
        })
    })?;
    Ok(writer.finish_lines())
}

/// A moment as stored lines give it: RFC 3339, UTC, milliseconds.
pub fn rfc3339(moment: DateTime<Utc>) -> String {
    moment.to_rfc3339_opts(SecondsFormat::Millis, true)
}

const BOM: &[u8] = b"\xef\xbb\xbf";
const NOT_UTF8: &str = "not UTF-8";

/// JSON's white space (RFC 8259 section 2).
fn is_white_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Whether valid JSON stands on one line. Its strings can't hold a raw line ending.
fn is_one_line(json: &[u8]) -> bool {
    memchr::memchr2(b'\n', b'\r', json).is_none()
}
