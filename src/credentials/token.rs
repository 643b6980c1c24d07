//! env0 OIDC tokens: what they say, and whether one that somebody presents holds.
//!
//! One issuer serves every env0 customer: a signature that holds proves nothing before subject or
//! organization are a configured one (contract section 3).

use std::collections::BTreeSet;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::batch::Sha256;
use crate::config::Config;
use crate::network::{FetchError, Network, same_host};

/// Between the issuer's clock and ours.
const CLOCK_LEEWAY_SECONDS: i64 = 60;
/// env0's have 2 to 3 KiB; STS takes 20,000 characters.
const MAX_TOKEN_BYTES: usize = 20_000;
/// Keys are asked for again, at an unknown `kid`, at most this often.
const REFRESH_GAP: Duration = Duration::from_secs(60);
/// The same, as long as no answer ever came.
const FIRST_KEYS_GAP: Duration = Duration::from_secs(5);
/// Older keys are renewed behind the next request, so that a key withdrawn by the issuer goes.
const KEYS_MAX_AGE: Duration = Duration::from_secs(3600);

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
    /// A token of the operator's own: nothing of it is judged here. `None` when there is nothing
    /// but white space.
    pub fn own(text: &str, source: Source) -> Option<OidcToken> {
        #[derive(Deserialize)]
        struct Shown {
            exp: Option<f64>,
            sub: Option<String>,
        }
        let text = text.trim();
        let shown: Option<Shown> = payload(text);
        let (exp, subject) = shown.map_or((None, None), |shown| (shown.exp, shown.sub));
        (!text.is_empty()).then(|| OidcToken::new(text, exp, subject, source))
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

fn without_slash(issuer: &str) -> &str {
    issuer.strip_suffix('/').unwrap_or(issuer)
}

/// A key of the issuer that verifies RS256 or ES256 signatures.
#[derive(Clone)]
struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl Key {
    fn from_json(value: serde_json::Value) -> Option<Key> {
        let jwk: Jwk = serde_json::from_value(value).ok()?;
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(parameters) if parameters.curve == EllipticCurve::P256 => {
                Algorithm::ES256
            }
            _ => return None,
        };
        let other_use = jwk.common.public_key_use.as_ref().is_some_and(|key_use| *key_use != PublicKeyUse::Signature);
        let other_algorithm =
            jwk.common.key_algorithm.is_some_and(|named| named.to_string() != format!("{algorithm:?}"));
        if other_use || other_algorithm {
            return None;
        }
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        Some(Key { id: jwk.common.key_id, algorithm, key })
    }

    /// A token without `kid` may be of any key.
    fn may_have_signed(&self, header: &jsonwebtoken::Header) -> bool {
        self.algorithm == header.alg && (header.kid.is_none() || self.id == header.kid)
    }

    fn has_signed(&self, token: &str) -> bool {
        // The claims were judged already, by a clock that is ours.
        let mut validation = Validation::new(self.algorithm);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        jsonwebtoken::decode::<serde::de::IgnoredAny>(token, &self.key, &validation).is_ok()
    }
}

/// Verifies presented tokens against the issuer's keys, which it fetches and keeps. Cheap to clone.
#[derive(Clone)]
pub struct Verifier(Arc<Inner>);

struct Inner {
    rules: Rules,
    issuer: reqwest::Url,
    network: Network,
    known: RwLock<Known>,
    refreshing: tokio::sync::Mutex<()>,
    refresh_gap: Duration,
}

#[derive(Default)]
struct Known {
    keys: Option<Arc<[Key]>>,
    fetched: Option<Instant>,
    tried: Option<Instant>,
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
        Ok(Verifier(Arc::new(Inner {
            rules,
            issuer,
            network: network.clone(),
            known: RwLock::default(),
            refreshing: tokio::sync::Mutex::default(),
            refresh_gap: REFRESH_GAP,
        })))
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
        self.0.rules.judge(&claims, now)?;
        let keys = self.keys_for(&header).await?;
        if !keys.iter().any(|key| key.may_have_signed(&header) && key.has_signed(token)) {
            return Err(VerifyError::Invalid("its signature doesn't hold"));
        }
        Ok(OidcToken::new(token, Some(claims.exp), Some(claims.sub), Source::HandOver))
    }

    /// Keys with one that may have signed.
    async fn keys_for(&self, header: &jsonwebtoken::Header) -> Result<Arc<[Key]>, VerifyError> {
        if let Some(keys) = self.0.keys_for(header) {
            if self.0.are_old() {
                let inner = Arc::clone(&self.0);
                tokio::spawn(async move { inner.refresh().await });
            }
            return Ok(keys);
        }
        // In a task of its own: a client that hangs up must not spend the one refresh a minute.
        let inner = Arc::clone(&self.0);
        let header = header.clone();
        let refreshed = tokio::spawn(async move {
            let _one_at_a_time = inner.refreshing.lock().await;
            match inner.keys_for(&header) {
                Some(keys) => Ok(keys),
                None => {
                    inner.refresh_now().await?;
                    inner.keys_for(&header).ok_or(VerifyError::Invalid("its key is not one of the issuer's"))
                }
            }
        });
        refreshed.await.map_err(|_| VerifyError::Unavailable("the refresh was stopped".to_owned()))?
    }
}

impl Inner {
    fn keys_for(&self, header: &jsonwebtoken::Header) -> Option<Arc<[Key]>> {
        let keys = self.known.read().unwrap_or_else(|poisoned| poisoned.into_inner()).keys.clone()?;
        keys.iter().any(|key| key.may_have_signed(header)).then_some(keys)
    }

    fn are_old(&self) -> bool {
        let known = self.known.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let old = known.fetched.is_some_and(|fetched| fetched.elapsed() > KEYS_MAX_AGE);
        old && known.tried.is_none_or(|tried| tried.elapsed() > self.refresh_gap)
    }

    async fn refresh(&self) {
        let _one_at_a_time = self.refreshing.lock().await;
        if self.are_old() {
            // A failure is logged, and the old keys stay.
            let _ = self.refresh_now().await;
        }
    }

    /// With the lock `refreshing` held.
    async fn refresh_now(&self) -> Result<(), VerifyError> {
        {
            let mut known = self.known.write().unwrap_or_else(|poisoned| poisoned.into_inner());
            let gap = if known.keys.is_some() { self.refresh_gap } else { self.refresh_gap.min(FIRST_KEYS_GAP) };
            if known.tried.is_some_and(|tried| tried.elapsed() < gap) {
                return Err(VerifyError::Unavailable("they were asked for moments ago".to_owned()));
            }
            known.tried = Some(Instant::now());
        }
        let keys = self.fetch_keys().await.map_err(|reason| {
            tracing::warn!(oidc.error = %reason, "the OIDC issuer's keys can't be fetched; keys at hand stay in use");
            VerifyError::Unavailable(reason)
        })?;
        let mut known = self.known.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        known.keys = Some(keys);
        known.fetched = Some(Instant::now());
        Ok(())
    }

    async fn fetch_keys(&self) -> Result<Arc<[Key]>, String> {
        #[derive(Deserialize)]
        struct KeySet {
            keys: Vec<serde_json::Value>,
        }
        let jwks_url = self.discover().await?;
        let body = self.network.fetch(jwks_url.as_str()).await.map_err(|error| format!("JWKS: {error}"))?;
        let set: KeySet = serde_json::from_slice(&body).map_err(|_| "JWKS: not a JSON key set".to_owned())?;
        let keys: Arc<[Key]> = set.keys.into_iter().filter_map(Key::from_json).collect();
        if keys.is_empty() { Err("JWKS: no RS256 or ES256 key in it".to_owned()) } else { Ok(keys) }
    }

    /// The address of the key set: discovery's, or the well-known one where there is no discovery.
    async fn discover(&self) -> Result<reqwest::Url, String> {
        #[derive(Deserialize)]
        struct Discovery {
            issuer: String,
            jwks_uri: String,
        }
        let base = without_slash(self.issuer.as_str());
        let well_known = |name: &str| format!("{base}/.well-known/{name}");
        let body = match self.network.fetch(&well_known("openid-configuration")).await {
            Ok(body) => body,
            Err(FetchError::Status(400..=499)) => {
                return reqwest::Url::parse(&well_known("jwks.json")).map_err(|error| error.to_string());
            }
            Err(error) => return Err(format!("discovery: {error}")),
        };
        let found: Discovery =
            serde_json::from_slice(&body).map_err(|_| "discovery: no issuer and jwks_uri in it".to_owned())?;
        if without_slash(&found.issuer) != without_slash(&self.rules.issuer) {
            return Err("discovery: it names another issuer".to_owned());
        }
        let jwks_url =
            reqwest::Url::parse(&found.jwks_uri).map_err(|_| "discovery: jwks_uri is not a URL".to_owned())?;
        if !same_host(&self.issuer, &jwks_url) {
            return Err("discovery: jwks_uri is not on the issuer's host".to_owned());
        }
        Ok(jwks_url)
    }
}

fn is_loopback(url: &reqwest::Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}
