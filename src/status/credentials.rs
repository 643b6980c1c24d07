//! What `/status` says of credentials. Holds no token, and of a subject only the beginning.

use serde::{Deserialize, Serialize};

use super::timestamp::Timestamp;

/// The way from a token to a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialsStatus {
    /// As configured.
    pub role_arn: String,
    /// In words.
    pub state: String,
    /// `None` when there is no usable session.
    pub session_expires_at: Option<Timestamp>,
    /// Seconds that sessions are asked for, after a step-down 3600.
    pub session_duration_seconds: u64,
    /// What is missing.
    pub waits_for: Option<String>,
    /// How to end that.
    pub remedy: Option<String>,
    /// Until an exchange succeeds.
    pub last_error: Option<ExchangeTrouble>,
    /// At most 16.
    pub tokens: Vec<TokenStatus>,
    /// Tokens that were presented and not let in, since the start: at most one line a reason.
    #[serde(default)]
    pub refused_tokens: Vec<RefusedTokens>,
}

/// Why there is no session, or no new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExchangeTrouble {
    /// The token or the role is at fault, rather than the network or STS's load.
    pub refused: bool,
    /// STS's own code.
    pub code: Option<String>,
    /// For AWS support.
    pub request_id: Option<String>,
    /// Who answered, and what.
    pub message: String,
    /// What to do.
    #[serde(default)]
    pub remedy: String,
    /// The first failure in a row.
    pub since: Timestamp,
}

/// What of a token may be shown: enough to tell it from another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenStatus {
    /// The beginning of its `sub`.
    pub subject: Option<String>,
    /// Its `exp`.
    pub expires_at: Option<Timestamp>,
    /// `hand-over`, `file`, `url` or `environment`.
    pub source: String,
    /// STS refused it; it is tried again after all others.
    pub set_aside: bool,
}

/// Presented tokens that broke the same rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedTokens {
    /// The rule, one of a closed set: `organization`, `subject`, `issuer`, `expired`, …
    pub reason: String,
    /// The reason in words.
    pub message: String,
    /// How many, since the start.
    pub count: u64,
    /// What the latest had; the beginning of an id, or a time.
    pub found: Option<String>,
    /// What the configuration wants.
    pub configured: Option<String>,
    /// What to do.
    pub remedy: String,
    /// When the latest came.
    pub last: Timestamp,
}
