//! Bytes → events: sniffing, validating, one line each. Pure, no I/O, fuzzed.

use bytes::Bytes;
use chrono::{DateTime, Utc};

/// What an event must keep to.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// `ENV0_S3_LOG_MAX_EVENT_BYTES`: one stored line, without its newline.
    pub max_event_bytes: usize,
    /// `ENV0_S3_LOG_REDACT`.
    pub redact: bool,
}

/// Events as they are stored: `records` lines of JSON objects, each ended by `\n`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lines {
    pub bytes: Bytes,
    pub records: u64,
    /// Events in which at least one value became `"[redacted]"`.
    pub redacted: u64,
}

/// Why a body is refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// `event` counts from 0; `offset` is the byte in the body.
    #[error("event {event} at byte {offset}: {reason}")]
    Invalid { event: u64, offset: usize, reason: String },
    #[error("event {event} has {bytes} bytes")]
    EventTooLarge { event: u64, bytes: usize },
}

/// The native form of contract section 3.
pub fn scan(body: Bytes, received: DateTime<Utc>, limits: &Limits) -> Result<Lines, BodyError> {
    unimplemented!()
}

/// Collects lines that a protocol made, with the same limits and redaction.
pub struct LineWriter { /* … */ }
// LineWriter::new(limits: Limits); push(&mut self, event_json: &[u8], offset: usize) -> Result<(), BodyError>; finish(self) -> Lines
