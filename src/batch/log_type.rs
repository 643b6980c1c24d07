//! The log types.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::parse_error::ParseError;

/// The closed set of log types. Each has its own spool folder, key prefix and chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LogType {
    /// Output of deployments.
    #[serde(rename = "env0-deployments")]
    Deployments,
    /// The audit trail.
    #[serde(rename = "env0-audits")]
    Audits,
}

impl LogType {
    /// Every log type.
    pub const ALL: [LogType; 2] = [LogType::Deployments, LogType::Audits];

    /// The name in paths, keys, labels and folders.
    pub const fn as_str(self) -> &'static str {
        match self {
            LogType::Deployments => "env0-deployments",
            LogType::Audits => "env0-audits",
        }
    }
}

impl fmt::Display for LogType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for LogType {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        LogType::ALL.into_iter().find(|log_type| log_type.as_str() == text).ok_or(ParseError("log type"))
    }
}
