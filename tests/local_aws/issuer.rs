//! An OIDC issuer as env0's: discovery, a JWKS, and tokens with any claims.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::http::{self, Drop, HttpRequest, HttpResponse, answer};

/// `sub` of a token unless a test says otherwise: env0's form, one user an organization.
pub(crate) const SUBJECT: &str = "auth0|63021f2c9d3f4a6b8c1e2d3f";
/// Organization of a token unless a test says otherwise.
pub(crate) const ORGANIZATION: &str = "51d48700-4aee-5a5d-a8a5-27a5c1471ac6";
/// `aud` of a token unless a test says otherwise: env0's.
const ENV0_AUDIENCE: &str = "https://prod.env0.com";
/// The client id in `azp`, which the role's trust policy names: AWS compares its `:aud` with `azp`.
pub(crate) const CLIENT_ID: &str = "hoMiq9PdkRh9LUvVpH4wIErWg50VSG1b";
/// Lifetime of env0's tokens.
const TOKEN_LIFETIME_SECONDS: u64 = 24 * 3600;

/// How a token is signed.
pub(crate) enum Signing {
    /// RS256 by the issuer's current key.
    Rs256,
    /// ES256 by the issuer's P-256 key.
    Es256,
    /// RS256 by a key that the issuer never published, under the current key's id.
    Forged,
    /// HS256 with the public modulus as the secret: the classic confusion attack.
    Hs256,
    /// `alg: none`, no signature.
    None,
}

/// The issuer. Its keys' ids are `key-1`, `key-2`, … in the order of rotation; `key-ec` is the P-256 key.
pub(crate) struct Issuer {
    url: Mutex<String>,
    keys: Mutex<Keys>,
    /// What `/token` answers.
    served_token: Mutex<String>,
    /// So many members of the key set are no keys.
    odd_keys: AtomicUsize,
    down: AtomicBool,
    discovery_fetches: AtomicUsize,
    jwks_fetches: AtomicUsize,
}

struct Keys {
    rsa: RsaKeyPair,
    rotation: usize,
    ec: EcdsaKeyPair,
}

impl Keys {
    fn id(&self) -> String {
        format!("key-{}", self.rotation)
    }
}

impl Issuer {
    pub(crate) async fn start() -> Arc<Issuer> {
        let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let issuer = Arc::new(Issuer {
            url: Mutex::new(String::new()),
            keys: Mutex::new(Keys { rsa: new_rsa_key(), rotation: 1, ec }),
            served_token: Mutex::default(),
            odd_keys: AtomicUsize::new(0),
            down: AtomicBool::new(false),
            discovery_fetches: AtomicUsize::new(0),
            jwks_fetches: AtomicUsize::new(0),
        });
        let handler = issuer.clone();
        let address = http::serve(move |request| handler.clone().handle(request)).await;
        *issuer.url.lock().unwrap() = format!("http://{address}/");
        issuer
    }

    /// The issuer's URL and `iss` claim, ending in a slash as env0's does.
    pub(crate) fn url(&self) -> String {
        self.url.lock().unwrap().clone()
    }

    /// A token as env0 mints it for a deployment, valid for a day.
    pub(crate) fn token(&self) -> String {
        self.mint(json!({}))
    }

    /// [`Issuer::token`] with some claims replaced, added or (with `null`) left out.
    pub(crate) fn mint(&self, claims: Value) -> String {
        self.mint_signed(claims, Signing::Rs256)
    }

    /// A token that expired `seconds` ago.
    pub(crate) fn expired_token(&self, seconds: u64) -> String {
        self.mint(json!({ "iat": now_seconds() - seconds - 60, "exp": now_seconds() - seconds }))
    }

    /// [`Issuer::mint`], signed as a test wants it.
    pub(crate) fn mint_signed(&self, claims: Value, signing: Signing) -> String {
        let keys = self.keys.lock().unwrap();
        let (algorithm, id) = match signing {
            Signing::Rs256 | Signing::Forged => ("RS256", keys.id()),
            Signing::Es256 => ("ES256", "key-ec".into()),
            Signing::Hs256 => ("HS256", keys.id()),
            Signing::None => ("none", keys.id()),
        };
        let header = json!({ "alg": algorithm, "typ": "JWT", "kid": id });
        let signed = format!("{}.{}", encode(&header.to_string()), encode(&self.claims(claims).to_string()));
        let signature = match signing {
            Signing::Rs256 => sign_rsa(&keys.rsa, &signed),
            Signing::Forged => sign_rsa(&new_rsa_key(), &signed),
            Signing::Es256 => keys.ec.sign(&SystemRandom::new(), signed.as_bytes()).unwrap().as_ref().to_vec(),
            Signing::Hs256 => {
                let secret = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, modulus(&keys.rsa));
                aws_lc_rs::hmac::sign(&secret, signed.as_bytes()).as_ref().to_vec()
            }
            Signing::None => Vec::new(),
        };
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn claims(&self, changes: Value) -> Value {
        let now = now_seconds();
        let mut claims = json!({
            "iss": self.url(),
            "sub": SUBJECT,
            "aud": ENV0_AUDIENCE,
            "azp": CLIENT_ID,
            "gty": "password",
            "iat": now,
            "exp": now + TOKEN_LIFETIME_SECONDS,
            "apiKeyType": "oidc",
            "organizationId": ORGANIZATION,
            "https://env0.com/apiKeyType": "oidc",
            "https://env0.com/organizationId": ORGANIZATION,
            "https://aws.amazon.com/tags": { "principal_tags": { "organizationId": [ORGANIZATION] } },
        });
        let all = claims.as_object_mut().unwrap();
        for (name, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => all.remove(name),
                value => all.insert(name.clone(), value.clone()),
            };
        }
        claims
    }

    /// Replaces the RSA key: tokens from before no longer verify, new ones carry a new `kid`.
    pub(crate) fn rotate(&self) {
        let mut keys = self.keys.lock().unwrap();
        keys.rsa = new_rsa_key();
        keys.rotation += 1;
    }

    /// Whether connections are dropped without an answer.
    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    pub(crate) fn is_down(&self) -> bool {
        self.down.load(Ordering::SeqCst)
    }

    /// Answers a GET with this token from now on, at the URL that is returned.
    pub(crate) fn serve_token(&self, token: &str) -> String {
        token.clone_into(&mut self.served_token.lock().unwrap());
        format!("{}token", self.url())
    }

    /// Publishes so many objects of seven bytes beside the keys.
    pub(crate) fn set_odd_keys(&self, odd_keys: usize) {
        self.odd_keys.store(odd_keys, Ordering::SeqCst);
    }

    /// How often the discovery document was asked for.
    pub(crate) fn discovery_fetches(&self) -> usize {
        self.discovery_fetches.load(Ordering::SeqCst)
    }

    /// How often the keys were asked for.
    pub(crate) fn jwks_fetches(&self) -> usize {
        self.jwks_fetches.load(Ordering::SeqCst)
    }

    /// A token's claims, when its signature is by a key that is published now. Expiry is not judged.
    pub(crate) fn verify(&self, token: &str) -> Option<Value> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
        let header: Value = serde_json::from_slice(&decode(header)?).ok()?;
        let keys = self.keys.lock().unwrap();
        if header["alg"] != "RS256" || header["kid"] != keys.id() {
            return None;
        }
        let key = UnparsedPublicKey::new(&aws_lc_rs::signature::RSA_PKCS1_2048_8192_SHA256, keys.rsa.public_key());
        key.verify(signed.as_bytes(), &decode(signature)?).ok()?;
        serde_json::from_slice(&decode(claims)?).ok()
    }

    async fn handle(self: Arc<Self>, request: HttpRequest) -> Result<HttpResponse, Drop> {
        let document = match request.uri().path() {
            "/.well-known/openid-configuration" => {
                self.discovery_fetches.fetch_add(1, Ordering::SeqCst);
                json!({ "issuer": self.url(), "jwks_uri": format!("{}.well-known/jwks.json", self.url()) })
            }
            "/.well-known/jwks.json" => {
                self.jwks_fetches.fetch_add(1, Ordering::SeqCst);
                self.jwks()
            }
            "/token" => return Ok(answer(200, "text/plain", self.served_token.lock().unwrap().clone())),
            _ => return Ok(answer(404, "text/plain", "not found")),
        };
        if self.is_down() { Err(Drop) } else { Ok(answer(200, "application/json", document.to_string())) }
    }

    fn jwks(&self) -> Value {
        let keys = self.keys.lock().unwrap();
        let modulus = URL_SAFE_NO_PAD.encode(modulus(&keys.rsa));
        // An uncompressed point: 0x04, then x and y of 32 bytes each.
        let point = keys.ec.public_key().as_ref();
        let [x, y] = [&point[1..33], &point[33..65]].map(|part| URL_SAFE_NO_PAD.encode(part));
        let mut all = vec![json!({ "": 0 }); self.odd_keys.load(Ordering::SeqCst)];
        all.push(json!({ "kty": "RSA", "use": "sig", "alg": "RS256", "kid": keys.id(), "n": modulus, "e": "AQAB" }));
        all.push(json!({ "kty": "EC", "use": "sig", "alg": "ES256", "crv": "P-256", "kid": "key-ec", "x": x, "y": y }));
        json!({ "keys": all })
    }
}

/// Seconds since 1970.
pub(crate) fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn encode(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

fn new_rsa_key() -> RsaKeyPair {
    RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap()
}

fn sign_rsa(key: &RsaKeyPair, signed: &str) -> Vec<u8> {
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).unwrap();
    signature
}

/// The 256 bytes of the modulus in RFC 8017's RSAPublicKey, whose header, for 2048 bits, has 9 bytes.
fn modulus(key: &RsaKeyPair) -> &[u8] {
    &key.public_key().as_ref()[9..265]
}
