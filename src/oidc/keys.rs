//! The issuer's keys: fetched through discovery, kept, asked for again when a token names an unknown one.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use reqwest::Url;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio::time::Instant;

use super::refusal::{Reason, VerifyError};
use crate::batch::Sha256;
use crate::config::Config;
use crate::network::{FetchError, Network, same_host};

/// Keys are asked for again, at an unknown `kid`, at most this often.
const REFRESH_GAP: Duration = Duration::from_secs(60);
/// The same, as long as no keys ever came.
const FIRST_KEYS_GAP: Duration = Duration::from_secs(5);
/// How long a token waits for keys; the fetch itself goes on.
const PATIENCE: Duration = Duration::from_secs(5);
/// Older keys are renewed behind the next request, so that one withdrawn by the issuer goes.
const KEYS_MAX_AGE: Duration = Duration::from_secs(3600);
/// Unknown `kid`s that are remembered between two refreshes: their tokens are refused (401). Tokens with any other unknown
/// `kid` get 503.
const MAX_LACKING: usize = 256;
/// env0's issuer publishes two. A token that names none is tried with each.
const MAX_KEYS: usize = 64;
/// A longer key is left out. One of RSA with 8,192 bits and its certificates has some 10 KB.
const KEY_MAX_BYTES: usize = 32 * 1024;
/// So many tokens of a key are known again without computing its signature anew. Beyond it all are forgotten.
const MAX_SIGNED: usize = 1024;
/// Largest answer that is read, of discovery and of the key set alike.
const ANSWER_MAX_BYTES: usize = 1024 * 1024;

/// A key of the issuer that verifies RS256 or ES256 signatures.
#[derive(Clone)]
pub(super) struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
    /// Digests of tokens that it has signed. The next answer's keys begin without any, so none outlives its key.
    signed: Arc<Mutex<HashSet<Sha256>>>,
}

impl Key {
    fn from_json(json: &str) -> Option<Key> {
        let jwk: Jwk = serde_json::from_str(Some(json).filter(|json| json.len() <= KEY_MAX_BYTES)?).ok()?;
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
        Some(Key { id: jwk.common.key_id, algorithm, key, signed: Arc::default() })
    }

    /// A token without `kid` may be of any key.
    pub(super) fn may_have_signed(&self, header: &jsonwebtoken::Header) -> bool {
        header.kid.is_none() || self.id == header.kid
    }

    /// Whether the token with this digest was found to be signed by it before.
    pub(super) fn is_known_to_have_signed(&self, digest: &Sha256) -> bool {
        self.signed().contains(digest)
    }

    /// Whether it has signed the token with this digest. A good one is known from then on.
    pub(super) fn has_signed(&self, token: &str, digest: Sha256) -> bool {
        // The claims were judged already, by a clock that is ours.
        let mut validation = Validation::new(self.algorithm);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        let holds = jsonwebtoken::decode::<serde::de::IgnoredAny>(token, &self.key, &validation).is_ok();
        if holds {
            let mut signed = self.signed();
            if signed.len() == MAX_SIGNED {
                signed.clear();
            }
            signed.insert(digest);
        }
        holds
    }

    fn signed(&self) -> MutexGuard<'_, HashSet<Sha256>> {
        self.signed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct KeyRing(Arc<Inner>);

struct Inner {
    issuer: Url,
    issuer_name: String,
    network: Network,
    state: Mutex<State>,
    /// Rises at the end of each refresh.
    finished: watch::Sender<u64>,
}

/// What is known of the issuer's keys. Bounded, whatever tokens name.
#[derive(Default)]
struct State {
    /// The last answer's keys, and when they were asked for.
    known: Option<(Arc<[Key]>, Instant)>,
    /// When the last refresh began; the first one that brought keys doesn't count.
    refreshed: Option<Instant>,
    /// A refresh is under way; everybody waits for the same one.
    refreshing: bool,
    /// Why the last refresh failed.
    failure: Option<String>,
    /// Digests of `kid`s that the last answer lacked, at most [`MAX_LACKING`]: a `kid` itself has no bound.
    lacking: HashSet<Sha256>,
}

impl State {
    fn keys_for(&self, header: &Header) -> Option<(Arc<[Key]>, Instant)> {
        let (keys, asked) = self.known.as_ref()?;
        keys.iter().any(|key| key.may_have_signed(header)).then(|| (Arc::clone(keys), *asked))
    }

    fn may_refresh(&self) -> bool {
        let gap = if self.known.is_some() { REFRESH_GAP } else { FIRST_KEYS_GAP };
        !self.refreshing && self.refreshed.is_none_or(|refreshed| refreshed.elapsed() >= gap)
    }

    /// Why a token with an unknown key gets no answer from the issuer at the moment.
    fn throttled(&self, kid: Sha256) -> VerifyError {
        match &self.failure {
            Some(reason) => VerifyError::Unavailable(reason.clone()),
            None if self.lacking.contains(&kid) => VerifyError::Refused(Reason::UnknownKey.into()),
            None => VerifyError::Unavailable("they were asked for moments ago".to_owned()),
        }
    }

    /// What the refresh that just ended says about the token with this `header`.
    fn outcome(&mut self, header: &Header, kid: Sha256) -> Result<Arc<[Key]>, VerifyError> {
        if let Some((keys, _)) = self.keys_for(header) {
            return Ok(keys);
        }
        if let Some(reason) = &self.failure {
            return Err(VerifyError::Unavailable(reason.clone()));
        }
        if self.lacking.len() < MAX_LACKING {
            self.lacking.insert(kid);
        }
        Err(VerifyError::Refused(Reason::UnknownKey.into()))
    }
}

/// Asks the configured issuer for its keys, once, as a daemon does before it judges a token.
///
/// # Errors
/// What it lacks, in words.
pub async fn ask_issuer(config: &Config, network: &Network) -> Result<(), String> {
    let issuer = Url::parse(&config.oidc_issuer).map_err(|error| error.to_string())?;
    KeyRing::new(issuer, &config.oidc_issuer, network).0.fetch().await.map(drop)
}

impl KeyRing {
    pub(super) fn new(issuer: Url, issuer_name: &str, network: &Network) -> KeyRing {
        KeyRing(Arc::new(Inner {
            issuer,
            issuer_name: issuer_name.to_owned(),
            network: network.clone(),
            state: Mutex::default(),
            finished: watch::Sender::default(),
        }))
    }

    /// The keys, with one among them that may have signed what has this `header`. Whoever waits for them keeps nobody else
    /// from it: a connection waits for one token at a time, and keeps little meanwhile.
    pub(super) async fn find(&self, header: &Header) -> Result<Arc<[Key]>, VerifyError> {
        let kid = || Sha256::of(header.kid.as_deref().unwrap_or_default().as_bytes());
        let mut finished = {
            let mut state = self.0.lock();
            if let Some((keys, asked)) = state.keys_for(header) {
                if asked.elapsed() > KEYS_MAX_AGE && state.may_refresh() {
                    self.begin_refresh(&mut state);
                }
                return Ok(keys);
            }
            if state.may_refresh() {
                self.begin_refresh(&mut state);
            } else if !state.refreshing {
                return Err(state.throttled(kid()));
            }
            self.0.finished.subscribe()
        };
        if tokio::time::timeout(PATIENCE, finished.changed()).await.is_err() {
            return Err(VerifyError::Unavailable("they take too long".to_owned()));
        }
        self.0.lock().outcome(header, kid())
    }

    #[cfg(test)]
    pub(super) fn ids_kept(&self) -> usize {
        self.0.lock().lacking.len()
    }

    /// In a task of its own: a client that hangs up must not spend the one refresh a minute.
    fn begin_refresh(&self, state: &mut State) {
        state.refreshing = true;
        let inner = Arc::clone(&self.0);
        tokio::spawn(async move {
            let asked = Instant::now();
            let fetched = inner.fetch().await;
            inner.lock().end_refresh(asked, fetched);
            inner.finished.send_modify(|count| *count = count.wrapping_add(1));
        });
    }
}

impl State {
    /// Known keys stay in use where the refresh failed.
    fn end_refresh(&mut self, asked: Instant, fetched: Result<Arc<[Key]>, String>) {
        self.refreshing = false;
        self.lacking.clear();
        match fetched {
            Ok(keys) => {
                if self.failure.take().is_some() {
                    tracing::info!("the OIDC issuer's keys are within reach again");
                }
                self.refreshed = self.known.replace((keys, asked)).map(|_| asked);
            }
            Err(reason) => {
                if self.failure.is_none() {
                    tracing::warn!("the OIDC issuer's keys are out of reach, those at hand stay in use: {reason}");
                }
                self.refreshed = Some(asked);
                self.failure = Some(reason);
            }
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn fetch(&self) -> Result<Arc<[Key]>, String> {
        #[derive(Deserialize)]
        struct KeySet<'a> {
            // Parsed, the shortest keys take ninety times as much as their text.
            #[serde(borrow)]
            keys: Vec<&'a RawValue>,
        }
        let address = self.discover().await?;
        let body =
            self.network.fetch(address.as_str(), ANSWER_MAX_BYTES).await.map_err(|error| format!("JWKS: {error}"))?;
        let set: KeySet<'_> = serde_json::from_slice(&body).map_err(|_| "JWKS: not a JSON key set".to_owned())?;
        let keys: Arc<[Key]> = set.keys.into_iter().filter_map(|key| Key::from_json(key.get())).collect();
        match keys.len() {
            0 => Err("JWKS: no RS256 or ES256 key in it".to_owned()),
            1..=MAX_KEYS => Ok(keys),
            count => Err(format!("JWKS: {count} keys, more than {MAX_KEYS}")),
        }
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
        let body = match self.network.fetch(&well_known("openid-configuration"), ANSWER_MAX_BYTES).await {
            Ok(body) => body,
            Err(FetchError::Status { status: 400..=499, .. }) => {
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
        assert!(Key::from_json(&jwk.to_string()).is_some());
        let changed = |name: &str, value: &str| {
            let mut jwk = jwk.clone();
            jwk[name] = json!(value);
            Key::from_json(&jwk.to_string())
        };
        assert!(changed("use", "sig").is_some());
        assert!(changed("use", "enc").is_none());
        assert!(changed("alg", "RS512").is_none());
        assert!(changed("kty", "oct").is_none());
        let mut without_alg = jwk.clone();
        without_alg.as_object_mut().unwrap().remove("alg");
        assert!(Key::from_json(&without_alg.to_string()).is_some());
    }
}
