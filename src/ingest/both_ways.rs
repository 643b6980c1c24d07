//! Tells where senders send a log type that is pulled, too: what comes both ways is stored twice.

use std::sync::{Arc, Once};

use crate::batch::{ByType, LogType};
use crate::config::Config;
use crate::ingest::auth::{Identity, token_file_types};
use crate::protocols::Protocol;
use crate::protocols::body::Lines;

/// The native protocol carries events of one's own, such as those of `config/env0.yml`, which hands a token over. No
/// integration of env0's speaks it.
const OF_ONES_OWN: &str = "native";

const REMEDY: &str = "what comes both ways is stored twice: send each log type one way only, by leaving the pulled one out of \
    ENV0_S3_LOG_PULL or by taking this daemon out of env0's integrations (nothing to do where the senders are not env0)";

/// A warning of static tokens that open nothing but log types that are pulled. A token of an organization is no reason:
/// it may be there for the hand-over alone. A file of tokens that can't be read is another's to tell.
pub fn opened_beside_a_pull(config: &Config) -> Option<String> {
    let of_file = config.ingest_token_file.as_deref().map(token_file_types).unwrap_or_default();
    let of_variable = config.ingest_token.as_ref().map(|_| None);
    let of_anybody = (!config.ingest_auth_required).then_some(None);
    let ways = [
        ("ENV0_S3_LOG_INGEST_TOKEN_FILE", of_file),
        ("ENV0_S3_LOG_INGEST_TOKEN", of_variable.into_iter().collect()),
        ("ENV0_S3_LOG_INGEST_AUTH=none", of_anybody.into_iter().collect()),
    ];
    let pulled_alone = |written: &Option<LogType>| match written {
        Some(log_type) => config.pulls(*log_type),
        None => LogType::ALL.into_iter().all(|log_type| config.pulls(log_type)),
    };
    ways.into_iter().find_map(|(variable, written)| {
        let opened = written.into_iter().find(pulled_alone)?;
        let types = opened.map_or(LogType::ALL.to_vec(), |log_type| vec![log_type]);
        let types = types.into_iter().map(LogType::as_str).collect::<Vec<_>>().join(" and ");
        Some(format!("{variable} lets senders write {types}, and the API key pulls that as well; {REMEDY}"))
    })
}

/// What to say where a sender has sent a log type that is pulled.
pub fn came_both_ways(log_type: LogType) -> String {
    format!("{log_type} is pulled with the API key, and a sender has sent some of it; {REMEDY}")
}

/// Tells once for each pulled log type that a sender has sent it. Cheap to clone.
#[derive(Clone)]
pub struct BothWays(Arc<ByType<Option<Once>>>);

impl BothWays {
    /// Before any sender.
    pub fn new(config: &Config) -> BothWays {
        BothWays(Arc::new(ByType::new(|log_type| config.pulls(log_type).then(Once::new))))
    }

    /// Whether a sender has sent `log_type`, which is pulled.
    pub fn has_seen(&self, log_type: LogType) -> bool {
        self.0[log_type].as_ref().is_some_and(Once::is_completed)
    }

    /// `lines` have come from a sender.
    pub(super) fn look(&self, identity: Identity, protocol: &dyn Protocol, lines: &ByType<Lines>) {
        if identity == Identity::Oidc && protocol.name() == OF_ONES_OWN {
            return;
        }
        for (log_type, told) in self.0.iter() {
            if let Some(told) = told.as_ref().filter(|_| lines[log_type].records > 0) {
                told.call_once(|| tracing::warn!("{}", came_both_ways(log_type)));
            }
        }
    }
}
