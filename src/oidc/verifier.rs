//! Whether an env0 OIDC token that somebody presents holds.
//!
//! One issuer serves every env0 customer: a signature that holds proves nothing before subject or
//! organization are a configured one.

use std::collections::BTreeSet;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use jsonwebtoken::{Algorithm, Header};
use serde::Deserialize;

use super::keys::{KeyRing, without_slash};
use super::refusal::{BrokenRule, Reason, Tally, VerifyError};
use super::token::{OidcToken, SHOWN_SUBJECT_CHARS, Source, moment, payload, shortened};
use crate::batch::Sha256;
use crate::config::Config;
use crate::network::{Network, foreign_words};
use crate::status::{RefusedTokens, Timestamp};

/// Between the issuer's clock and ours.
const CLOCK_LEEWAY_SECONDS: i64 = 60;
/// env0's have 2 to 3 KiB; STS takes 20,000 characters.
const MAX_TOKEN_BYTES: usize = 20_000;
/// How much of an organization's id is shown: enough to tell one from another.
const SHOWN_ORGANIZATION_CHARS: usize = 8;
const SHOWN_HOST_CHARS: usize = 64;

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
    fn judge(&self, claims: &Claims, now: DateTime<Utc>) -> Result<(), BrokenRule> {
        let now = now.timestamp() as f64;
        let leeway = CLOCK_LEEWAY_SECONDS as f64;
        let refuse = |reason, found: Option<String>| Err(BrokenRule { reason, found });
        if without_slash(&claims.iss) != without_slash(&self.issuer) {
            let host = reqwest::Url::parse(&claims.iss).ok().and_then(|url| url.host_str().map(str::to_owned));
            return refuse(Reason::Issuer, host.map(|host| shortened(&foreign_words(&host, &[]), SHOWN_HOST_CHARS)));
        }
        if claims.exp + leeway < now {
            return refuse(Reason::Expired, Some(Timestamp(moment(claims.exp)).to_string()));
        }
        if let Some(begin) = claims.nbf.filter(|nbf| nbf - leeway > now) {
            return refuse(Reason::NotYetValid, Some(Timestamp(moment(begin)).to_string()));
        }
        if self.subjects.is_empty() && self.organizations.is_empty() {
            return refuse(Reason::NobodyConfigured, None);
        }
        if !self.subjects.is_empty() && !self.subjects.contains(&claims.sub) {
            return refuse(Reason::Subject, Some(shown_subject(&claims.sub)));
        }
        let organizations = || claims.organization.iter().chain(&claims.prefixed_organization);
        let foreign = organizations().find(|id| !self.organizations.contains(*id));
        if !self.organizations.is_empty() && (organizations().next().is_none() || foreign.is_some()) {
            return refuse(Reason::Organization, foreign.map(|id| shown_organization(id)));
        }
        if claims.key_type.iter().chain(&claims.prefixed_key_type).any(|key_type| key_type != "oidc") {
            return refuse(Reason::NotADeployment, None);
        }
        Ok(())
    }

    /// The configured value that the rule compares with, shortened, to be shown beside what the token has.
    fn configured(&self, reason: Reason) -> Option<String> {
        let list = |ids: &BTreeSet<String>, show: fn(&str) -> String| {
            Some(ids.iter().map(|id| show(id)).collect::<Vec<_>>().join(", ")).filter(|list| !list.is_empty())
        };
        match reason {
            Reason::Issuer => Some(self.issuer.clone()),
            Reason::Subject => list(&self.subjects, shown_subject),
            Reason::Organization => list(&self.organizations, shown_organization),
            _ => None,
        }
    }
}

fn shown_subject(subject: &str) -> String {
    shortened(&foreign_words(subject, &[]), SHOWN_SUBJECT_CHARS)
}

fn shown_organization(id: &str) -> String {
    shortened(&foreign_words(id, &[]), SHOWN_ORGANIZATION_CHARS)
}

/// Verifies presented tokens against the issuer's keys. Cheap to clone.
#[derive(Clone)]
pub struct Verifier {
    rules: Arc<Rules>,
    keys: KeyRing,
    refusals: Arc<Tally>,
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
        Ok(Verifier { rules: Arc::new(rules), keys, refusals: Arc::default() })
    }

    /// What was refused since the start, a line for each reason.
    pub fn refusals(&self) -> Vec<RefusedTokens> {
        self.refusals.shown()
    }

    #[cfg(test)]
    pub(super) fn key_ids_kept(&self) -> usize {
        self.keys.ids_kept()
    }

    /// Counts a token that was refused before it came here, and tells the operator.
    pub fn refused(&self, reason: Reason) {
        self.refusals.add(&reason.into(), None);
    }

    /// Judges a token that somebody presents, at the time `now`. A refusal is counted, and told to the operator.
    pub async fn verify(&self, token: &str, now: DateTime<Utc>) -> Result<OidcToken, VerifyError> {
        self.verify_in_turn(token, now, std::future::ready(())).await
    }

    /// As [`Verifier::verify`]. The signature is checked once `turn` resolves, and what that gives is dropped afterwards.
    /// A token that comes again waits for no turn, and costs no signature.
    pub async fn verify_in_turn<T>(
        &self,
        token: &str,
        now: DateTime<Utc>,
        turn: impl Future<Output = T>,
    ) -> Result<OidcToken, VerifyError> {
        let verified = self.judge(token, now, turn).await;
        if let Err(VerifyError::Refused(refusal)) = &verified {
            self.refusals.add(refusal, self.rules.configured(refusal.reason));
        }
        verified
    }

    async fn judge<T>(
        &self,
        token: &str,
        now: DateTime<Utc>,
        turn: impl Future<Output = T>,
    ) -> Result<OidcToken, VerifyError> {
        let refused = |reason: Reason| VerifyError::Refused(reason.into());
        if token.len() > MAX_TOKEN_BYTES {
            return Err(refused(Reason::TooLong));
        }
        // While keys or a turn are waited for, no more is kept of header and claims than is needed then: decoded they
        // can take ten times the token's bytes, and 950 strangers' took 160 MiB.
        let header = {
            let Header { alg, kid, crit, .. } =
                jsonwebtoken::decode_header(token).map_err(|_| refused(Reason::NotAJwt))?;
            if !matches!(alg, Algorithm::RS256 | Algorithm::ES256) {
                return Err(refused(Reason::Algorithm));
            }
            if crit.is_some() {
                return Err(refused(Reason::CriticalExtension));
            }
            Header { kid, ..Header::new(alg) }
        };
        // Before the signature, so that a stranger's token never makes us ask the issuer for keys.
        let expires_at = {
            let claims: Claims = payload(token).ok_or_else(|| refused(Reason::Claims))?;
            self.rules.judge(&claims, now).map_err(VerifyError::Refused)?;
            claims.exp
        };
        let keys = self.keys.find(&header).await?;
        let (digest, mut candidates) = (Sha256::of(token.as_bytes()), keys.iter());
        if !candidates.any(|key| key.may_have_signed(&header) && key.is_known_to_have_signed(&digest)) {
            let _turn = turn.await;
            if !keys.iter().any(|key| key.may_have_signed(&header) && key.has_signed(token, digest)) {
                return Err(refused(Reason::Signature));
            }
        }
        Ok(OidcToken::new(token, Some(expires_at), Source::HandOver))
    }
}

fn is_loopback(url: &reqwest::Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}
