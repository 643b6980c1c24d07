//! The issuer's keys: fetched through discovery, kept, asked for again when a token names an unknown one.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use reqwest::Url;
use serde::Deserialize;
use tokio::sync::Mutex;

use super::token::VerifyError;
use crate::network::{FetchError, Network, same_host};

/// Keys are asked for again, at an unknown `kid`, at most this often.
const REFRESH_GAP: Duration = Duration::from_secs(60);
/// The same, as long as no keys ever came.
const FIRST_KEYS_GAP: Duration = Duration::from_secs(5);
/// How long a token waits for keys; the fetch itself goes on.
const PATIENCE: Duration = Duration::from_secs(5);
/// Older keys are renewed behind the next request, so that one withdrawn by the issuer goes.
const KEYS_MAX_AGE: Duration = Duration::from_secs(3600);

/// A key of the issuer that verifies RS256 or ES256 signatures.
#[derive(Clone)]
pub(super) struct Key {
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
    pub(super) fn may_have_signed(&self, header: &jsonwebtoken::Header) -> bool {
        header.kid.is_none() || self.id == header.kid
    }

    pub(super) fn has_signed(&self, token: &str) -> bool {
        // The claims were judged already, by a clock that is ours.
        let mut validation = Validation::new(self.algorithm);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        jsonwebtoken::decode::<serde::de::IgnoredAny>(token, &self.key, &validation).is_ok()
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct KeyRing(Arc<Inner>);

struct Inner {
    issuer: Url,
    issuer_name: String,
    network: Network,
    known: RwLock<Option<Known>>,
    /// Held during a refresh: one at a time.
    history: Mutex<History>,
    refresh_gap: Duration,
}

#[derive(Clone)]
struct Known {
    keys: Arc<[Key]>,
    asked: Instant,
}

#[derive(Default)]
struct History {
    /// The last refresh; the first fetch that brought keys doesn't count.
    refreshed: Option<Instant>,
    /// Which `kid`s the last answer lacked; empty where the last refresh failed.
    lacking: BTreeSet<Option<String>>,
    failing: bool,
}

impl KeyRing {
    pub(super) fn new(issuer: Url, issuer_name: &str, network: &Network) -> KeyRing {
        KeyRing(Arc::new(Inner {
            issuer,
            issuer_name: issuer_name.to_owned(),
            network: network.clone(),
            known: RwLock::default(),
            history: Mutex::default(),
            refresh_gap: REFRESH_GAP,
        }))
    }

    /// The keys, with one among them that may have signed what has this `header`.
    pub(super) async fn find(&self, header: &Header) -> Result<Arc<[Key]>, VerifyError> {
        let inner = Arc::clone(&self.0);
        if let Some(known) = self.0.known_for(header) {
            if known.asked.elapsed() > KEYS_MAX_AGE {
                tokio::spawn(async move { inner.renew().await });
            }
            return Ok(known.keys);
        }
        // In a task of its own: a client that hangs up must not spend the one refresh a minute.
        let header = header.clone();
        let search = tokio::spawn(async move { inner.search(&header).await });
        match tokio::time::timeout(PATIENCE, search).await {
            Ok(Ok(found)) => found,
            _ => Err(VerifyError::Unavailable("they take too long".to_owned())),
        }
    }

    #[cfg(test)]
    pub(super) fn refresh_gap(self, refresh_gap: Duration) -> KeyRing {
        let inner = Arc::into_inner(self.0).expect("not cloned yet");
        KeyRing(Arc::new(Inner { refresh_gap, ..inner }))
    }
}

impl Inner {
    fn known(&self) -> Option<Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn known_for(&self, header: &Header) -> Option<Known> {
        self.known().filter(|known| known.keys.iter().any(|key| key.may_have_signed(header)))
    }

    async fn search(&self, header: &Header) -> Result<Arc<[Key]>, VerifyError> {
        const LACKING: VerifyError = VerifyError::Invalid("its key is not one of the issuer's");
        let came = Instant::now();
        let mut history = self.history.lock().await;
        if let Some(known) = self.known_for(header) {
            return Ok(known.keys);
        }
        if self.known().is_some_and(|known| known.asked > came) {
            history.lacking.insert(header.kid.clone());
            return Err(LACKING);
        }
        if self.is_throttled(&history) {
            return Err(match history.lacking.contains(&header.kid) {
                true => LACKING,
                false => VerifyError::Unavailable("they were asked for moments ago".to_owned()),
            });
        }
        self.refresh(&mut history).await.map_err(VerifyError::Unavailable)?;
        self.known_for(header).map(|known| known.keys).ok_or_else(|| {
            history.lacking.insert(header.kid.clone());
            LACKING
        })
    }

    /// Old keys stay in use meanwhile, and longer where that fails.
    async fn renew(&self) {
        let mut history = self.history.lock().await;
        let old = self.known().is_some_and(|known| known.asked.elapsed() > KEYS_MAX_AGE);
        if old && !self.is_throttled(&history) {
            // Logged there.
            let _ = self.refresh(&mut history).await;
        }
    }

    fn is_throttled(&self, history: &History) -> bool {
        let gap = if self.known().is_some() { self.refresh_gap } else { self.refresh_gap.min(FIRST_KEYS_GAP) };
        history.refreshed.is_some_and(|refreshed| refreshed.elapsed() < gap)
    }

    async fn refresh(&self, history: &mut History) -> Result<(), String> {
        let asked = Instant::now();
        history.refreshed = Some(asked);
        match self.fetch().await {
            Ok(keys) => {
                if history.failing {
                    tracing::info!("the OIDC issuer's keys are within reach again");
                }
                let before = self.known.write().unwrap_or_else(PoisonError::into_inner).replace(Known { keys, asked });
                *history = History { refreshed: before.map(|_| asked), ..History::default() };
                Ok(())
            }
            Err(reason) => {
                if !history.failing {
                    tracing::warn!("the OIDC issuer's keys are out of reach, those at hand stay in use: {reason}");
                }
                history.failing = true;
                history.lacking.clear();
                Err(reason)
            }
        }
    }

    async fn fetch(&self) -> Result<Arc<[Key]>, String> {
        #[derive(Deserialize)]
        struct KeySet {
            keys: Vec<serde_json::Value>,
        }
        let address = self.discover().await?;
        let body = self.network.fetch(address.as_str()).await.map_err(|error| format!("JWKS: {error}"))?;
        let set: KeySet = serde_json::from_slice(&body).map_err(|_| "JWKS: not a JSON key set".to_owned())?;
        let keys: Arc<[Key]> = set.keys.into_iter().filter_map(Key::from_json).collect();
        if keys.is_empty() { Err("JWKS: no RS256 or ES256 key in it".to_owned()) } else { Ok(keys) }
    }

    /// The address of the key set: discovery's, or the well-known one where there is no discovery.
    async fn discover(&self) -> Result<Url, String> {
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
                return Url::parse(&well_known("jwks.json")).map_err(|error| error.to_string());
            }
            Err(error) => return Err(format!("discovery: {error}")),
        };
        let found: Discovery =
            serde_json::from_slice(&body).map_err(|_| "discovery: no issuer and jwks_uri in it".to_owned())?;
        if without_slash(&found.issuer) != without_slash(&self.issuer_name) {
            return Err("discovery: it names another issuer".to_owned());
        }
        let address = Url::parse(&found.jwks_uri).map_err(|_| "discovery: jwks_uri is not a URL".to_owned())?;
        if !same_host(&self.issuer, &address) {
            return Err("discovery: jwks_uri is not on the issuer's host".to_owned());
        }
        Ok(address)
    }
}

/// Issuers are the same with and without one trailing slash.
pub(super) fn without_slash(issuer: &str) -> &str {
    issuer.strip_suffix('/').unwrap_or(issuer)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::Issuer;

    #[test]
    fn keys_for_other_uses_and_algorithms_are_left_out() {
        let jwk = Issuer::rs256("", "key-1").jwk();
        assert!(Key::from_json(jwk.clone()).is_some());
        let changed = |name: &str, value: &str| {
            let mut jwk = jwk.clone();
            jwk[name] = json!(value);
            Key::from_json(jwk)
        };
        assert!(changed("use", "sig").is_some());
        assert!(changed("use", "enc").is_none());
        assert!(changed("alg", "RS512").is_none());
        assert!(changed("kty", "oct").is_none());
        let mut without_alg = jwk.clone();
        without_alg.as_object_mut().unwrap().remove("alg");
        assert!(Key::from_json(without_alg).is_some());
    }
}
