//! What is counted about credentials.

use super::candidates::Candidates;
use super::role::Service;
use crate::metric_table;
use crate::oidc::Source;

/// The metrics of exchanges, session and tokens.
pub(super) struct Meters {
    pub(super) succeeded: metrics::Counter,
    pub(super) refused: metrics::Counter,
    pub(super) failed: metrics::Counter,
    pub(super) session_expiry: metrics::Gauge,
    /// The tokens are the same for every role: the bucket's credentials show them.
    token_expiry: Vec<(Source, metrics::Gauge)>,
}

impl Meters {
    pub(super) fn new(service: Service) -> Meters {
        let (exchanges, session_expiry, token_expiry) = match service {
            Service::S3 => (
                metric_table::STS_EXCHANGES,
                metric_table::CREDENTIALS_EXPIRY_TIMESTAMP_SECONDS,
                Some(metric_table::OIDC_TOKEN_EXPIRY_TIMESTAMP_SECONDS),
            ),
            Service::CloudWatch => (
                metric_table::CLOUDWATCH_STS_EXCHANGES,
                metric_table::CLOUDWATCH_CREDENTIALS_EXPIRY_TIMESTAMP_SECONDS,
                None,
            ),
        };
        let of_source =
            |name: &'static str| Source::ALL.map(|source| (source, metrics::gauge!(name, "source" => source.as_str())));
        let exchanges = |outcome| metrics::counter!(exchanges, "outcome" => outcome);
        Meters {
            succeeded: exchanges("succeeded"),
            refused: exchanges("refused"),
            failed: exchanges("failed"),
            session_expiry: metrics::gauge!(session_expiry),
            token_expiry: token_expiry.into_iter().flat_map(of_source).collect(),
        }
    }

    pub(super) fn show_tokens(&self, candidates: &Candidates) {
        for (source, gauge) in &self.token_expiry {
            gauge.set(candidates.last_expiry_of(*source).map_or(0.0, |end| end.timestamp() as f64));
        }
    }
}
