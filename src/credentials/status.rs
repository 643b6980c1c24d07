//! The words for every state of the credentials.

use std::time::Duration;

use super::role::{Role, STEP_DOWN};
use crate::batch::LogType;
use crate::config::Config;

/// Why STS may refuse a token for `role`, asked for a session of `asked`.
pub(super) fn refusal_causes(role: &Role, asked: Duration) -> String {
    // Each role allows sessions of an hour.
    let duration = match asked > STEP_DOWN {
        true => format!("the role's maximum session is shorter than {}; ", role.service.duration_variable()),
        false => String::new(),
    };
    format!(
        "likely causes, in this order: {duration}the role's trust policy lacks sts:TagSession; its sub or aud condition \
         doesn't let this token in, or there is no role {}; the account has no OIDC provider for the issuer; see \
         config/README.md#no-token",
        role.arn
    )
}

/// What to do where there is no token: the ways that lead to one with this configuration.
pub fn ways_to_a_token(config: &Config) -> String {
    let by_record = match config.pull {
        Some(_) if !config.pulls(LogType::Deployments) => {
            "; or add env0-deployments to ENV0_S3_LOG_PULL, since a deployment's record can hold one, and no record is read now"
        }
        _ => "",
    };
    let who_may = match config.takes_hand_overs() {
        true => "",
        // Else the hand-over is answered 401.
        false => "set ENV0_S3_LOG_OIDC_ORGANIZATION_ID, which lets deployments in, and ",
    };
    format!(
        "keep one in ENV0_S3_LOG_OIDC_TOKEN_FILE (in Kubernetes the pod's own) or behind ENV0_S3_LOG_OIDC_TOKEN_URL{by_record}; \
         or {who_may}hand one over from an env0 deployment: PUT /v1/oidc-token with ENV0_OIDC_TOKEN as bearer token; see \
         config/README.md#no-token"
    )
}

/// What to do while there is no token. Where deployments are pulled, one of them may bring it.
pub fn without_a_token(config: &Config) -> String {
    let ways = ways_to_a_token(config);
    match config.pulls(LogType::Deployments) {
        true => format!(
            "the pull takes one from the record of each deployment that it lists, where env0 has filled that in \
             (`env0-s3-logs check` says whether it has); else {ways}"
        ),
        false => ways,
    }
}

/// How the last attempt to get a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Starting,
    Holding,
    NoToken,
    Refused,
    Unreachable,
}

impl Phase {
    /// In words, beside whether there is a session still.
    pub(super) fn describe(self, holds_session: bool) -> &'static str {
        match (self, holds_session) {
            (Phase::Holding, true) => "holds a session",
            (Phase::Starting | Phase::Holding, _) => "fetches a session",
            (Phase::NoToken, true) => "holds a session, and no token for the next one",
            (Phase::NoToken, false) => "waits for an OIDC token",
            (Phase::Refused, true) => "holds a session, and STS refuses the next one",
            (Phase::Refused, false) => "STS refuses every token at hand",
            (Phase::Unreachable, true) => "holds a session, and STS is out of reach for the next one",
            (Phase::Unreachable, false) => "STS is out of reach",
        }
    }
}
