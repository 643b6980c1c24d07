//! Whether an env0 OIDC token that somebody presents holds.
//!
//! One issuer serves every env0 customer: a signature that holds proves nothing before subject or
//! organization are a configured one (contract section 3).

use std::collections::BTreeSet;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use jsonwebtoken::Algorithm;
use serde::Deserialize;

use super::keys::{KeyRing, without_slash};
use super::token::{OidcToken, Source, VerifyError, payload};
use crate::config::Config;
use crate::network::Network;

/// Between the issuer's clock and ours.
const CLOCK_LEEWAY_SECONDS: i64 = 60;
/// env0's have 2 to 3 KiB; STS takes 20,000 characters.
const MAX_TOKEN_BYTES: usize = 20_000;

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

    #[cfg(test)]
    pub(super) fn refresh_gap(self, gap: std::time::Duration) -> Verifier {
        Verifier { keys: self.keys.refresh_gap(gap), ..self }
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
