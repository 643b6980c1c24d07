//! The limits on a body, and the lines that are made of it.

use bytes::Bytes;

use crate::batch::LogType;

/// The limits on the events of one request.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// `ENV0_S3_LOG_MAX_BODY_BYTES`: the body without its `Content-Encoding` and, in Loki's
    /// protocol, without snappy.
    pub max_body_bytes: usize,
    /// The most bytes that lines may take together where they aren't stored as they were sent. Text and foreign
    /// protocols grow when they become JSON: 16 MiB of empty OTLP records would be gigabytes.
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
    /// The log type that the sender names in the body or headers (source, label, service, name), if it names one.
    pub said: Option<LogType>,
    /// The lines, in the order sent.
    pub lines: Lines,
}
