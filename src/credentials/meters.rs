//! What is counted about credentials.

use super::candidates::Candidates;

/// The metrics of exchanges, session and tokens.
pub(super) struct Meters {
    pub(super) succeeded: metrics::Counter,
    pub(super) refused: metrics::Counter,
    pub(super) failed: metrics::Counter,
    pub(super) session_expiry: metrics::Gauge,
    token_expiry: metrics::Gauge,
}

impl Meters {
    pub(super) fn new() -> Meters {
        let exchanges = |outcome| metrics::counter!("env0_s3_logs_sts_exchanges_total", "outcome" => outcome);
        Meters {
            succeeded: exchanges("succeeded"),
            refused: exchanges("refused"),
            failed: exchanges("failed"),
            session_expiry: metrics::gauge!("env0_s3_logs_credentials_expiry_timestamp_seconds"),
            token_expiry: metrics::gauge!("env0_s3_logs_oidc_token_expiry_timestamp_seconds"),
        }
    }

    pub(super) fn show_tokens(&self, candidates: &Candidates) {
        self.token_expiry.set(candidates.last_expiry().map_or(0.0, |end| end.timestamp() as f64));
    }
}
