//! Who may send events, and where they are listened to.

use super::Reader;
use crate::config::{Config, values};

impl Reader {
    /// Whether some credentials would be let in.
    pub(super) fn lets_senders_in(&self, config: &Config) -> bool {
        let names = ["ENV0_S3_LOG_INGEST_TOKEN", "ENV0_S3_LOG_OIDC_SUBJECT", "ENV0_S3_LOG_OIDC_ORGANIZATION_ID"];
        names.iter().any(|name| self.is_given(name)) || config.ingest_token_file.is_some()
    }

    /// The rules of the listener for events.
    pub(super) fn judge_ingest(&mut self, config: &Config) {
        let oidc = self.is_given("ENV0_S3_LOG_OIDC_SUBJECT") || self.is_given("ENV0_S3_LOG_OIDC_ORGANIZATION_ID");
        // Whoever has made a mistake in the API key wants to pull, and needs no sender.
        let means_to_pull = self.refused.iter().any(|name| name.starts_with("ENV0_API_KEY"));
        if config.ingest_auth_required && !self.lets_senders_in(config) && !means_to_pull {
            // With a key, it is ENV0_S3_LOG_PULL=none that turns the pull off.
            let has_key = ["ENV0_API_KEY_ID", "ENV0_API_KEY_ID_FILE"].iter().any(|name| self.is_given(name));
            let to_pull = match has_key {
                true => "unset ENV0_S3_LOG_PULL, which is none",
                false => "set ENV0_API_KEY_ID and ENV0_API_KEY_SECRET",
            };
            self.refuse(
                "ENV0_S3_LOG_OIDC_ORGANIZATION_ID",
                &format!(
                    "not set, and nothing else brings events, so nobody could send; to pull, {to_pull}; to be sent events, set \
                     ENV0_S3_LOG_OIDC_ORGANIZATION_ID (the organization's id, from env0's Organization Settings; ENV0_ORGANIZATION_ID \
                     in every deployment) or ENV0_S3_LOG_INGEST_TOKEN_FILE"
                ),
            );
        }
        if !config.ingest_auth_required && !config.listen_addr.ip().is_loopback() {
            self.warnings.push(format!(
                "ENV0_S3_LOG_INGEST_AUTH=none on {}: whoever reaches this address can write events; set \
                 ENV0_S3_LOG_INGEST_AUTH=required",
                config.listen_addr
            ));
        }
        if oidc && config.tls.is_none() && !config.listen_addr.ip().is_loopback() {
            self.warnings.push(format!(
                "OIDC tokens can be handed over in clear on {}: each opens every role that trusts the organization; set \
                 ENV0_S3_LOG_TLS_CERT_FILE and ENV0_S3_LOG_TLS_KEY_FILE, or let only a network that you trust reach it",
                config.listen_addr
            ));
        }
        if values::share_a_port(config.listen_addr, config.admin_addr) {
            self.refuse("ENV0_S3_LOG_ADMIN_ADDR", "the port of ENV0_S3_LOG_LISTEN_ADDR; expected another one");
        }
    }
}
