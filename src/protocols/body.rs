//! Bytes → events: sniffing, validating, one line each. Pure, no I/O, fuzzed.
//!
//! Contract sections 1 and 3. Every event is judged by serde_json's `&RawValue`, which is iterative
//! (depth has no limit) and checks UTF-8; what it calls an object is stored byte for byte. A body
//! that already is NDJSON is not copied.

mod events;
mod line;
mod redact;
#[cfg(test)]
pub(crate) mod tests;

use std::io::{self, Write};

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

use crate::batch::LogType;
pub use events::{Event, Events, members};

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
         ENV0_S3_LOG_MAX_INFLIGHT_BYTES and four times ENV0_S3_LOG_MAX_BODY_BYTES; send fewer in one request"
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
            let with_secret = to_redact && !redact::secrets(bytes).is_empty();
            if as_stored && !with_secret && bytes.len() <= limits.max_event_bytes {
                stored += bytes.len() + 1;
                records += 1;
                continue;
            }
        }
        let copy = copy.get_or_insert_with(|| LineWriter::resume(limits, &body[..stored], records, body.len() + 1));
        copy.push(None, bytes)?;
    }
    match copy {
        Some(copy) => Ok(copy.finish_lines()),
        None => Ok(Lines { bytes: body.slice(..stored), records, redacted: 0 }),
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
    for_each_text_line(body, |line, _| {
        writer.line(None, |out| {
            out.write_all(opening.as_bytes())?;
            serde_json::to_writer(&mut *out, line)?;
            out.write_all(b"}")
        })
    })?;
    Ok(writer.finish_lines())
}

/// Calls `each` with every line of `body` that holds more than white space, without its line ending
/// (`\n` or `\r\n`), and the line's offset. Refuses what is not UTF-8.
pub fn for_each_text_line(
    body: &[u8],
    mut each: impl FnMut(&str, usize) -> Result<(), BodyError>,
) -> Result<(), BodyError> {
    let mut offset = if body.starts_with(BOM) { BOM.len() } else { 0 };
    let mut event = 0;
    for line in body[offset..].split(|&byte| byte == b'\n') {
        let start = offset;
        offset += line.len() + 1;
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.iter().all(|&byte| is_white_space(byte)) {
            continue;
        }
        let text = std::str::from_utf8(line).map_err(|error| {
            let offset = start + error.valid_up_to();
            BodyError::Invalid { event, offset, reason: NOT_UTF8.to_owned() }
        })?;
        each(text, start)?;
        event += 1;
    }
    Ok(())
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

/// Collects the lines of one request, with limits and redaction. The lines split into one part for
/// each run of events whose sender names the same log type.
pub struct LineWriter {
    limits: Limits,
    bytes: Vec<u8>,
    records: u64,
    runs: Vec<Run>,
}

/// Consecutive lines of one log type; they begin where the run before ends.
struct Run {
    said: Option<LogType>,
    end: usize,
    records: u64,
    redacted: u64,
}

impl LineWriter {
    /// `capacity` is a guess at the bytes to come.
    pub fn with_capacity(limits: &Limits, capacity: usize) -> Self {
        let bytes = Vec::with_capacity(capacity.min(limits.max_lines_bytes));
        LineWriter { limits: *limits, bytes, records: 0, runs: Vec::new() }
    }

    /// Goes on after `records` lines that need no change.
    fn resume(limits: &Limits, stored: &[u8], records: u64, capacity: usize) -> Self {
        let mut writer = Self::with_capacity(limits, capacity);
        writer.bytes.extend_from_slice(stored);
        if records > 0 {
            writer.records = records;
            writer.runs.push(Run { said: None, end: stored.len(), records, redacted: 0 });
        }
        writer
    }

    /// Adds an event that was judged a JSON object: byte for byte where it is one line, else without
    /// the white space outside its strings.
    pub fn push(&mut self, said: Option<LogType>, object: &[u8]) -> Result<(), BodyError> {
        self.line(said, |out| if is_one_line(object) { out.write_all(object) } else { compact(object, out) })
    }

    /// Adds what `object` serializes to, which must be a JSON object; a `RawValue` in it may span lines.
    pub fn serialize(&mut self, said: Option<LogType>, object: &impl Serialize) -> Result<(), BodyError> {
        self.line(said, |out| serde_json::to_writer(out, object).map_err(io::Error::from))
    }

    fn line(
        &mut self,
        said: Option<LogType>,
        write: impl FnOnce(&mut CappedWriter<'_>) -> io::Result<()>,
    ) -> Result<(), BodyError> {
        let start = self.bytes.len();
        let limit_bytes = self.limits.max_event_bytes;
        // Nothing but the cap makes writing to memory fail.
        let too_large = |_| BodyError::EventTooLarge { event: self.records, limit_bytes };
        write(&mut CappedWriter { bytes: &mut self.bytes, end: start + limit_bytes }).map_err(too_large)?;
        if !is_one_line(&self.bytes[start..]) {
            let line = self.bytes.split_off(start);
            compact(&line, &mut self.bytes).map_err(too_large)?;
        }
        let redacted = self.limits.redact && redact::may_hold_secret(&self.bytes[start..]) && {
            let line = self.bytes.split_off(start);
            let secrets = redact::secrets(&line);
            let mut out = CappedWriter { bytes: &mut self.bytes, end: start + limit_bytes };
            redact::write_without(&line, &secrets, &mut out).map_err(too_large)?;
            !secrets.is_empty()
        };
        self.bytes.push(b'\n');
        if self.bytes.len() > self.limits.max_lines_bytes {
            return Err(BodyError::LinesTooLarge { limit_bytes: self.limits.max_lines_bytes });
        }
        self.records += 1;
        let end = self.bytes.len();
        match self.runs.last_mut().filter(|run| run.said == said) {
            Some(run) => {
                run.end = end;
                run.records += 1;
                run.redacted += u64::from(redacted);
            }
            None => self.runs.push(Run { said, end, records: 1, redacted: u64::from(redacted) }),
        }
        Ok(())
    }

    /// Events so far: the index of the next one.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Refuses the next event early, where its encoded form alone is over the limit.
    pub fn check_len(&self, encoded: &[u8]) -> Result<(), BodyError> {
        let limit_bytes = self.limits.max_event_bytes;
        if encoded.len() > limit_bytes {
            return Err(BodyError::EventTooLarge { event: self.records, limit_bytes });
        }
        Ok(())
    }

    /// The parts, in the order sent; none when there was no event.
    pub fn finish(self) -> Vec<Part> {
        let bytes = Bytes::from(self.bytes);
        let mut start = 0;
        let part = |Run { said, end, records, redacted }| {
            let lines = Lines { bytes: bytes.slice(start..end), records, redacted };
            start = end;
            Part { said, lines }
        };
        self.runs.into_iter().map(part).collect()
    }

    fn finish_lines(self) -> Lines {
        let redacted = self.runs.iter().map(|run| run.redacted).sum();
        Lines { bytes: Bytes::from(self.bytes), records: self.records, redacted }
    }
}

/// Writes to memory up to an end, then fails: an event is never built larger than it may be stored.
struct CappedWriter<'a> {
    bytes: &'a mut Vec<u8>,
    end: usize,
}

impl Write for CappedWriter<'_> {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        self.write_all(chunk).map(|()| chunk.len())
    }

    fn write_all(&mut self, chunk: &[u8]) -> io::Result<()> {
        if chunk.len() > self.end - self.bytes.len() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Valid JSON without the white space outside its strings.
fn compact(json: &[u8], out: &mut impl Write) -> io::Result<()> {
    let mut rest = json;
    while !rest.is_empty() {
        let quote = memchr::memchr(b'"', rest).unwrap_or(rest.len());
        let (outside, string) = rest.split_at(quote);
        for token in outside.split(|&byte| is_white_space(byte)) {
            out.write_all(token)?;
        }
        let (string, after) = string.split_at(redact::string_len(string));
        out.write_all(string)?;
        rest = after;
    }
    Ok(())
}
