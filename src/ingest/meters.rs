//! The metrics of ingest. Every handle is made once, and every label comes from a closed set.

use std::time::Duration;

use axum::http::StatusCode;
use metrics::{Counter, Histogram, counter, histogram};

use crate::batch::{ByType, LogType};
use crate::metric_table;
use crate::protocols::body::Lines;

/// Statuses that ingest answers with; any other is counted as the last.
pub(super) const CODES: [u16; 14] = [200, 202, 204, 400, 401, 403, 404, 405, 408, 411, 413, 415, 503, 500];
/// The label of a request whose events' type never became known.
const NO_TYPE: &str = "none";

/// Handles.
pub(super) struct IngestMeters {
    /// By code.
    requests: ByType<[Counter; CODES.len()]>,
    /// The same for requests whose events' log type never became known.
    typeless: [Counter; CODES.len()],
    bytes: ByType<Counter>,
    redacted: ByType<Counter>,
    replaced: ByType<Counter>,
    duration: Histogram,
}

impl IngestMeters {
    /// Makes every handle, so that each starts at zero.
    pub(super) fn new() -> IngestMeters {
        let by_code = |log_type: &'static str| {
            CODES.map(|code| counter!(metric_table::INGEST_REQUESTS, "type" => log_type, "code" => code.to_string()))
        };
        IngestMeters {
            requests: ByType::new(|log_type| by_code(log_type.as_str())),
            typeless: by_code(NO_TYPE),
            bytes: ByType::new(|log_type| counter!(metric_table::INGEST_BYTES, "type" => log_type.as_str())),
            redacted: ByType::new(|log_type| counter!(metric_table::EVENTS_REDACTED, "type" => log_type.as_str())),
            replaced: ByType::new(|log_type| counter!(metric_table::REPLACED_BYTES, "type" => log_type.as_str())),
            duration: histogram!(metric_table::INGEST_DURATION_SECONDS),
        }
    }

    /// Counts durable events.
    pub(super) fn accepted(&self, log_type: LogType, lines: &Lines) {
        self.bytes[log_type].increment(lines.bytes.len() as u64);
        // Few requests have any, and each count takes two atomic operations.
        for (counters, count) in [(&self.redacted, lines.redacted), (&self.replaced, lines.replaced)] {
            if count > 0 {
                counters[log_type].increment(count);
            }
        }
    }

    /// Counts an answer.
    pub(super) fn answered(&self, log_type: Option<LogType>, status: StatusCode, duration: Duration) {
        let code = CODES.iter().position(|code| *code == status.as_u16()).unwrap_or(CODES.len() - 1);
        let requests = log_type.map_or(&self.typeless, |log_type| &self.requests[log_type]);
        requests[code].increment(1);
        self.duration.record(duration);
    }
}
