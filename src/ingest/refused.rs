//! What ingest refuses for good: counted by status for `/status`, and told in the log once in a while. Without the log line
//! a sender whose events are too large would lose them for as long as nobody looks at the metrics.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use axum::http::StatusCode;

use crate::batch::LogType;
use crate::http::listener::Guest;
use crate::http::refusals::LastMet;
use crate::metric_table;

/// The statuses, and what the log says of each. It has no word of the request's own: a body is nobody's business. Of a 401
/// the log says more where credentials are judged (`auth.rs`, `oidc/verifier.rs`).
const STATUSES: [(StatusCode, Option<&str>); 8] = [
    (StatusCode::BAD_REQUEST, Some("its body is broken, or an event in it is not what the protocol takes")),
    (StatusCode::UNAUTHORIZED, None),
    (StatusCode::NOT_FOUND, Some("its path is none that events are taken at")),
    (StatusCode::METHOD_NOT_ALLOWED, Some("its method is not taken at its path")),
    (StatusCode::REQUEST_TIMEOUT, Some("its body did not come in time")),
    (StatusCode::LENGTH_REQUIRED, Some("it has neither a length nor chunks")),
    (
        StatusCode::PAYLOAD_TOO_LARGE,
        Some("it or an event in it is over a limit, which the answer names with its variable"),
    ),
    (StatusCode::UNSUPPORTED_MEDIA_TYPE, Some("its encoding or its media type is not taken")),
];

/// How many there were since the process began.
static TOTALS: [AtomicU64; STATUSES.len()] = [const { AtomicU64::new(0) }; STATUSES.len()];

/// How many requests were refused, by status; statuses that were never answered are left out.
pub fn totals() -> BTreeMap<String, u64> {
    let totals =
        STATUSES.iter().zip(&TOTALS).map(|((status, _), total)| (status.as_str().to_owned(), total.load(Relaxed)));
    totals.filter(|(_, total)| *total > 0).collect()
}

/// When each status was answered last.
#[derive(Default)]
pub(super) struct Refused([LastMet; STATUSES.len()]);

impl Refused {
    /// Counts a refusal; the first one of its status after a while is told.
    pub(super) fn count(&self, status: StatusCode, protocol: &str, log_type: Option<LogType>, guest: &Guest) {
        let Some(index) = STATUSES.iter().position(|(known, _)| *known == status) else { return };
        TOTALS[index].fetch_add(1, Relaxed);
        if let Some(words) = STATUSES[index].1
            && self.0[index].is_news()
        {
            tracing::warn!(
                client.address = %guest.network(),
                code = status.as_u16(),
                protocol,
                log_type = log_type.map(LogType::as_str),
                "a request was refused, and nothing of it is stored: {words}; more of them are only counted, in {}",
                metric_table::INGEST_REQUESTS
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::STATUSES;
    use crate::ingest::meters::CODES;

    #[test]
    fn a_final_refusal_that_is_counted_is_told_too() {
        // A 403 is made, counted and told in `http/refusals.rs`.
        for code in CODES.into_iter().filter(|code| (400..500).contains(code) && *code != 403) {
            assert!(STATUSES.iter().any(|(status, _)| *status == code), "{code} is counted, and no log line tells it");
        }
    }
}
