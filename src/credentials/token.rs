//! env0 OIDC tokens: what they say, and whether one that somebody presents holds.
//!
//! One issuer serves every env0 customer: a signature that holds proves nothing before subject or
//! organization are a configured one (contract section 3).

use std::collections::BTreeSet;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use jsonwebtoken::Algorithm;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::keys::{KeyRing, without_slash};
use crate::batch::Sha256;
use crate::config::Config;
use crate::network::Network;

/// Between the issuer's clock and ours.
const CLOCK_LEEWAY_SECONDS: i64 = 60;
/// env0's have 2 to 3 KiB; STS takes 20,000 characters.
const MAX_TOKEN_BYTES: usize = 20_000;

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

    fn new(text: &str, exp: Option<f64>, subject: Option<String>, source: Source) -> OidcToken {
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

fn payload<T: serde::de::DeserializeOwned>(token: &str) -> Option<T> {
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

/// The issuer can't be used as configured.
#[derive(Debug, thiserror::Error)]
#[error("ENV0_S3_LOG_OIDC_ISSUER: {0}; expected for example https://login.app.env0.com/")]
pub struct IssuerError(String);

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    exp: f64,
    nbf: Option<f64>,
    #[serde(rename = "organizationId")]
    organization: Option<String>,
    #[serde(rename = "https://env0.com/organizationId")]
    prefixed_organization: Option<String>,
    #[serde(rename = "apiKeyType")]
    key_type: Option<String>,
    #[serde(rename = "https://env0.com/apiKeyType")]
    prefixed_key_type: Option<String>,
}

/// Whose tokens are let in.
struct Rules {
    issuer: String,
    subjects: BTreeSet<String>,
    organizations: BTreeSet<String>,
}

impl Rules {
    fn judge(&self, claims: &Claims, now: DateTime<Utc>) -> Result<(), VerifyError> {
        let now = now.timestamp() as f64;
        let leeway = CLOCK_LEEWAY_SECONDS as f64;
        let refuse = |reason| Err(VerifyError::Invalid(reason));
        if without_slash(&claims.iss) != without_slash(&self.issuer) {
            return refuse("it has another issuer");
        }
        if claims.exp + leeway < now {
            return refuse("it has expired");
        }
        if claims.nbf.is_some_and(|nbf| nbf - leeway > now) {
            return refuse("it is not valid yet");
        }
        if self.subjects.is_empty() && self.organizations.is_empty() {
            return refuse("neither ENV0_S3_LOG_OIDC_SUBJECT nor ENV0_S3_LOG_OIDC_ORGANIZATION_ID lets any in");
        }
        if !self.subjects.is_empty() && !self.subjects.contains(&claims.sub) {
            return refuse("its subject is not a configured one");
        }
        let mut organizations = claims.organization.iter().chain(&claims.prefixed_organization).peekable();
        let ours = organizations.peek().is_some() && organizations.all(|id| self.organizations.contains(id));
        if !self.organizations.is_empty() && !ours {
            return refuse("its organization is not a configured one");
        }
        if claims.key_type.iter().chain(&claims.prefixed_key_type).any(|key_type| key_type != "oidc") {
            return refuse("it is a user's, not a deployment's");
        }
        Ok(())
    }
}

/// Verifies presented tokens against the issuer's keys. Cheap to clone.
#[derive(Clone)]
pub struct Verifier {
    rules: Arc<Rules>,
    keys: KeyRing,
}

impl Verifier {
    /// Fetches nothing yet. An issuer over plain http has to be a loopback address, or to be allowed
    /// by `ENV0_S3_LOG_ALLOW_HTTP`.
    pub fn new(config: &Config, network: &Network) -> Result<Verifier, IssuerError> {
        let issuer = reqwest::Url::parse(&config.oidc_issuer).map_err(|_| IssuerError("not a URL".to_owned()))?;
        match issuer.scheme() {
            "https" => {}
            "http" if config.allow_http || is_loopback(&issuer) => {}
            "http" => return Err(IssuerError("plain http; allowed by ENV0_S3_LOG_ALLOW_HTTP=true".to_owned())),
            _ => return Err(IssuerError("neither https nor http".to_owned())),
        }
        let rules = Rules {
            issuer: config.oidc_issuer.clone(),
            subjects: config.oidc_subjects.iter().cloned().collect(),
            organizations: config.oidc_organization_ids.iter().cloned().collect(),
        };
        let keys = KeyRing::new(issuer, &config.oidc_issuer, network);
        Ok(Verifier { rules: Arc::new(rules), keys })
    }

    /// Judges a token that somebody presents, at the time `now`.
    pub async fn verify(&self, token: &str, now: DateTime<Utc>) -> Result<OidcToken, VerifyError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(VerifyError::Invalid("it is longer than any token"));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| VerifyError::Invalid("it is not a signed JWT"))?;
        if !matches!(header.alg, Algorithm::RS256 | Algorithm::ES256) {
            return Err(VerifyError::Invalid("it is not signed by RS256 or ES256"));
        }
        if header.crit.is_some() {
            return Err(VerifyError::Invalid("it has a critical extension"));
        }
        // Before the signature, so that a stranger's token never makes us ask the issuer for keys.
        let claims: Claims = payload(token).ok_or(VerifyError::Invalid("its claims can't be read"))?;
        self.rules.judge(&claims, now)?;
        let keys = self.keys.find(&header).await?;
        if !keys.iter().any(|key| key.may_have_signed(&header) && key.has_signed(token)) {
            return Err(VerifyError::Invalid("its signature doesn't hold"));
        }
        Ok(OidcToken::new(token, Some(claims.exp), Some(claims.sub), Source::HandOver))
    }
}

fn is_loopback(url: &reqwest::Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests;
