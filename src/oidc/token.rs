//! An OIDC token: in memory only, never shown, judged by STS.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::batch::Sha256;

/// Where a token came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Presented by a client and verified.
    HandOver,
    /// `ENV0_S3_LOG_OIDC_TOKEN_FILE`
    File,
    /// `ENV0_S3_LOG_OIDC_TOKEN_URL`
    Url,
    /// `ENV0_OIDC_TOKEN`
    Environment,
}

impl Source {
    /// As `/status` shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Source::HandOver => "hand-over",
            Source::File => "file",
            Source::Url => "url",
            Source::Environment => "environment",
        }
    }
}

/// A candidate for the exchange at STS. In memory only, zeroed on drop, never shown.
#[derive(Debug, Clone)]
pub struct OidcToken {
    secret: SecretString,
    digest: Sha256,
    /// The `exp` claim; `None` when it can't be read: STS will judge.
    pub expires_at: Option<DateTime<Utc>>,
    /// The `sub` claim, for the operator's eye.
    pub subject: Option<String>,
    /// Where it came from.
    pub source: Source,
}

impl OidcToken {
    /// A token of the operator's own: nothing of it is judged here, but `None` is what can't be one:
    /// nothing but white space, or text.
    pub fn own(text: &str, source: Source) -> Option<OidcToken> {
        #[derive(Deserialize)]
        struct Shown {
            exp: Option<f64>,
            sub: Option<String>,
        }
        let text = text.trim();
        let shown: Option<Shown> = payload(text);
        let (exp, subject) = shown.map_or((None, None), |shown| (shown.exp, shown.sub));
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()))
            .then(|| OidcToken::new(text, exp, subject, source))
    }

    pub(super) fn new(text: &str, exp: Option<f64>, subject: Option<String>, source: Source) -> OidcToken {
        let expires_at = exp.and_then(|exp| DateTime::from_timestamp(exp as i64, 0));
        OidcToken { secret: text.into(), digest: Sha256::of(text.as_bytes()), expires_at, subject, source }
    }

    /// The token itself, for STS alone.
    pub fn expose(&self) -> &str {
        self.secret.expose_secret()
    }

    /// Whether both are the same token, whatever their source.
    pub fn same(&self, other: &OidcToken) -> bool {
        self.digest == other.digest
    }

    /// Enough of the subject to tell one from another: `auth0|63021f2c…`.
    pub fn shortened_subject(&self) -> Option<String> {
        const SHOWN_CHARS: usize = 14;
        let subject = self.subject.as_ref()?;
        let shown: String = subject.chars().take(SHOWN_CHARS).collect();
        Some(if shown == *subject { shown } else { format!("{shown}…") })
    }
}

/// Whether `text` has the shape of a JWT, so that asking the issuer for keys is worth it.
pub fn looks_like_jwt(text: &str) -> bool {
    text.starts_with("eyJ") && text.bytes().filter(|byte| *byte == b'.').count() == 2
}

pub(super) fn payload<T: serde::de::DeserializeOwned>(token: &str) -> Option<T> {
    let claims = token.split('.').nth(1)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
}

/// Why a presented token isn't let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The token is at fault; the same one will never be let in, or not for now.
    #[error("the token is refused: {0}")]
    Invalid(&'static str),
    /// Nothing can be said now: the issuer's keys are out of reach.
    #[error("the issuer's keys are out of reach: {0}")]
    Unavailable(String),
}
