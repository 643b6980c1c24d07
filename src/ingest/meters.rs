//! The front's metrics; every handle is made once, every label comes from a closed set.

use std::time::Duration;

use axum::http::StatusCode;
use metrics::{Counter, Histogram, counter, histogram};

use crate::batch::LogType;
use crate::protocols::body::Lines;

/// Statuses that the front answers with; any other is counted as the last.
const CODES: [u16; 14] = [200, 202, 204, 400, 401, 403, 404, 405, 408, 411, 413, 415, 503, 500];
/// The label of a request whose events' type never became known.
const NO_TYPE: &str = "none";

/// Handles, arrays by [`LogType::index`].
pub(super) struct IngestMeters {
    /// By type (the last is none) and code.
    requests: [[Counter; CODES.len()]; 3],
    bytes: [Counter; 2],
    redacted: [Counter; 2],
    replaced: [Counter; 2],
    duration: Histogram,
}

impl IngestMeters {
    /// Makes every handle, so that each starts at zero.
    pub(super) fn new() -> IngestMeters {
        let types = LogType::ALL.map(LogType::as_str);
        let by_code = |log_type: &'static str| {
            CODES.map(
                |code| counter!("env0_s3_logs_ingest_requests_total", "type" => log_type, "code" => code.to_string()),
            )
        };
        IngestMeters {
            requests: [by_code(types[0]), by_code(types[1]), by_code(NO_TYPE)],
            bytes: types.map(|log_type| counter!("env0_s3_logs_ingest_bytes_total", "type" => log_type)),
            redacted: types.map(|log_type| counter!("env0_s3_logs_events_redacted_total", "type" => log_type)),
            replaced: types.map(|log_type| counter!("env0_s3_logs_replaced_bytes_total", "type" => log_type)),
            duration: histogram!("env0_s3_logs_ingest_duration_seconds"),
        }
    }

    /// Counts durable events.
    pub(super) fn accepted(&self, log_type: LogType, lines: &Lines) {
        let index = log_type.index();
        self.bytes[index].increment(lines.bytes.len() as u64);
        self.redacted[index].increment(lines.redacted);
        self.replaced[index].increment(lines.replaced);
    }

    /// Counts an answer.
    pub(super) fn answered(&self, log_type: Option<LogType>, status: StatusCode, duration: Duration) {
        let code = CODES.iter().position(|code| *code == status.as_u16()).unwrap_or(CODES.len() - 1);
        self.requests[log_type.map_or(2, LogType::index)][code].increment(1);
        self.duration.record(duration);
    }
}
