//! A session with AWS.

use std::sync::Arc;

use aws_credential_types::Credentials as Keys;
use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};

/// The time of day; tests bring one that they move.
pub(super) type Clock = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;

/// Temporary AWS credentials. Secrets never show in `Debug`.
#[derive(Debug, Clone)]
pub struct Session {
    /// Counts from 1, to say later which session a request was signed with.
    pub id: u64,
    /// Not a secret.
    pub access_key_id: String,
    /// Signs requests.
    pub secret_access_key: SecretString,
    /// Goes with each request.
    pub session_token: SecretString,
    pub(super) obtained_at: DateTime<Utc>,
    /// The end, by our clock.
    pub expires_at: DateTime<Utc>,
    /// Seconds of the outage that it ended, if one had been told of.
    pub outage_seconds: Option<u64>,
}

impl Session {
    /// What an SDK signs with.
    pub fn keys(&self) -> Keys {
        let secret = self.secret_access_key.expose_secret();
        let token = self.session_token.expose_secret().to_owned();
        Keys::new(&self.access_key_id, secret, Some(token), None, "env0-s3-logs")
    }

    /// What an answer may repeat and nobody may read.
    pub fn secrets(&self) -> [&str; 2] {
        [self.session_token.expose_secret(), self.secret_access_key.expose_secret()]
    }
}
