//! What is told about credentials: the words for every state, and no secret.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

pub(super) const REFUSAL_CAUSES: &str = "likely causes, in this order: the role's maximum session is shorter than \
    ENV0_S3_LOG_SESSION_DURATION; the role's trust policy lacks sts:TagSession; its sub or aud condition doesn't match \
    the token; the account has no OIDC provider for the issuer; see config/README.md#no-token";
pub(super) const NO_TOKEN_REMEDY: &str = "hand one over from an env0 deployment: PUT /v1/oidc-token with ENV0_OIDC_TOKEN as bearer \
    token; or keep one in ENV0_S3_LOG_OIDC_TOKEN_FILE or behind ENV0_S3_LOG_OIDC_TOKEN_URL; see config/README.md#no-token";
pub(super) const UNREACHABLE_REMEDY: &str = "nothing to do if it passes; else look at the network, the proxy and \
    ENV0_S3_LOG_AWS_REGION; see config/README.md#no-token";

/// What `/status` and `check` say about credentials. Holds no secret.
#[derive(Debug, Clone, Serialize)]
pub struct CredentialsStatus {
    /// As configured.
    pub role_arn: String,
    /// In words.
    pub state: &'static str,
    /// RFC 3339; `None` when there is no usable session.
    pub session_expires_at: Option<String>,
    /// Seconds that sessions are asked for, after a step-down 3600.
    pub session_duration_seconds: u64,
    /// What is missing.
    pub waits_for: Option<String>,
    /// How to end that.
    pub remedy: Option<&'static str>,
    /// Until an exchange succeeds.
    pub last_error: Option<ExchangeError>,
    /// At most 16.
    pub tokens: Vec<TokenStatus>,
}

/// Why STS gave no session.
#[derive(Debug, Clone, Serialize)]
pub struct ExchangeError {
    /// The token or the role is at fault, rather than the network or STS's load.
    pub refused: bool,
    /// Passes by itself, but may not concern another token.
    #[serde(skip)]
    pub(super) of_this_token: bool,
    /// STS's own code.
    pub code: Option<String>,
    /// For AWS support.
    pub request_id: Option<String>,
    /// STS's words.
    pub message: String,
    /// RFC 3339, of the first failure in a row.
    pub since: String,
}

/// A token, told apart but not told.
#[derive(Debug, Clone, Serialize)]
pub struct TokenStatus {
    /// The beginning of its `sub`.
    pub subject: Option<String>,
    /// RFC 3339.
    pub expires_at: Option<String>,
    /// `hand-over`, `file`, `url` or `environment`.
    pub source: &'static str,
    /// STS refused it; it is tried again after all others.
    pub set_aside: bool,
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

/// To the second, in UTC.
pub(super) fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}
