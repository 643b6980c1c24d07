mod refreshes;
mod token;

use std::cell::Cell;
use std::sync::{Arc, RwLock};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::Utc;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use super::*;
use crate::config::Config;
use crate::network::Network;
use crate::testing::{Issuer, Server, answer, config, jwks, nobody};

/// An issuer that serves its key, and a verifier for organization `org-1`.
struct Case {
    server: Server,
    issuer: Issuer,
    config: Config,
}

impl Case {
    async fn new() -> Case {
        Case::with(Issuer::rs256("", "key-1")).await
    }

    async fn with(mut issuer: Issuer) -> Case {
        let server = Server::start(jwks(&[issuer.jwk()])).await;
        issuer.url = format!("{}/", server.url());
        let config = config(&issuer.url);
        Case { server, issuer, config }
    }

    fn verifier(&self) -> Verifier {
        Verifier::new(&self.config, &Network::new(&self.config.network).unwrap()).unwrap()
    }

    async fn verify(&self, token: &str) -> Result<OidcToken, VerifyError> {
        self.verifier().verify(token, Utc::now()).await
    }

    /// A good token but for one claim; `null` takes the claim away.
    fn token_with(&self, name: &str, value: Value) -> String {
        let mut claims = self.issuer.claims(Utc::now() + chrono::TimeDelta::hours(1));
        match value {
            Value::Null => claims.as_object_mut().unwrap().remove(name),
            value => claims.as_object_mut().unwrap().insert(name.to_owned(), value),
        };
        self.issuer.sign(&claims)
    }

    fn asked_for_keys(&self) -> usize {
        self.server.seen().iter().filter(|request| request.uri.ends_with("jwks.json")).count()
    }
}

fn invalid(outcome: Result<OidcToken, VerifyError>) -> &'static str {
    match outcome {
        Err(VerifyError::Refused(refusal)) => refusal.reason.words(),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_token_of_the_organization_is_let_in_whatever_the_algorithm() {
    for issuer in [Issuer::rs256("", "r"), Issuer::es256("", "e")] {
        let case = Case::with(issuer).await;
        let token = case.verify(&case.issuer.token()).await.unwrap();
        assert_eq!(token.claims().subject.as_deref(), Some("auth0|63021f2c0000"));
        assert_eq!(token.source, Source::HandOver);
        assert!(token.expires_at.unwrap() > Utc::now());
    }
}

#[tokio::test]
async fn each_claim_that_does_not_hold_keeps_the_token_out() {
    let case = Case::new().await;
    let now = Utc::now().timestamp();
    let wrong = [
        ("iss", json!("https://login.example.com/"), "it has another issuer"),
        ("exp", json!(now - 61), "it has expired"),
        ("nbf", json!(now + 90), "it is not valid yet"),
        ("organizationId", json!("org-2"), "its organization is not a configured one"),
        ("https://env0.com/organizationId", json!("org-2"), "its organization is not a configured one"),
        ("apiKeyType", json!("personal"), "it is a user's, not a deployment's"),
        ("https://env0.com/apiKeyType", json!("user"), "it is a user's, not a deployment's"),
        ("exp", Value::Null, "its claims can't be read"),
        ("sub", Value::Null, "its claims can't be read"),
        ("iss", json!(["a"]), "its claims can't be read"),
    ];
    for (name, value, reason) in wrong {
        let token = case.token_with(name, value.clone());
        assert_eq!(invalid(case.verify(&token).await), reason, "{name}: {value}");
    }
    assert_eq!(case.asked_for_keys(), 0, "a stranger's token never makes us ask the issuer");
}

#[tokio::test]
async fn the_clocks_may_differ_by_a_minute() {
    let case = Case::new().await;
    let end = Utc::now();
    let token = case.issuer.sign(&case.issuer.claims(end));
    let verifier = case.verifier();
    assert!(verifier.verify(&token, end + chrono::TimeDelta::seconds(60)).await.is_ok());
    assert_eq!(invalid(verifier.verify(&token, end + chrono::TimeDelta::seconds(61)).await), "it has expired");
    let early = case.token_with("nbf", json!((end + chrono::TimeDelta::seconds(60)).timestamp()));
    assert!(verifier.verify(&early, end).await.is_ok());
}

#[tokio::test]
async fn aud_is_not_judged_and_the_prefixed_organization_counts() {
    let case = Case::new().await;
    for aud in [json!("https://app.env0.com"), json!(["a", "b"]), json!(7), Value::Null] {
        assert!(case.verify(&case.token_with("aud", aud)).await.is_ok());
    }
    assert!(case.verify(&case.token_with("organizationId", Value::Null)).await.is_ok());
    assert!(case.verify(&case.token_with("https://env0.com/organizationId", Value::Null)).await.is_ok());
    assert!(case.verify(&case.token_with("apiKeyType", Value::Null)).await.is_ok());
}

#[tokio::test]
async fn subject_and_organization_both_have_to_hold_where_both_are_configured() {
    let mut case = Case::new().await;
    let token = case.issuer.token();
    case.config.oidc_subjects = vec!["auth0|other".to_owned()];
    assert_eq!(invalid(case.verify(&token).await), "its subject is not a configured one");
    case.config.oidc_subjects.push("auth0|63021f2c0000".to_owned());
    assert!(case.verify(&token).await.is_ok());
    case.config.oidc_organization_ids = vec!["org-2".to_owned()];
    assert_eq!(invalid(case.verify(&token).await), "its organization is not a configured one");
    case.config.oidc_organization_ids.clear();
    assert!(case.verify(&token).await.is_ok());
    case.config.oidc_subjects.clear();
    let reason = invalid(case.verify(&token).await);
    assert!(reason.starts_with("neither ENV0_S3_LOG_OIDC_SUBJECT"), "{reason}");
}

#[tokio::test]
async fn a_signature_by_another_key_or_none_or_a_shared_secret_does_not_hold() {
    let case = Case::new().await;
    let claims = case.issuer.claims(Utc::now() + chrono::TimeDelta::hours(1));
    let forger = Issuer::rs256(&case.issuer.url, "key-1");
    assert_eq!(invalid(case.verify(&forger.sign(&claims)).await), "its signature doesn't hold");

    let modulus = case.issuer.jwk()["n"].as_str().unwrap().to_owned();
    let public_key_as_secret = EncodingKey::from_base64_secret(&modulus.replace('-', "+").replace('_', "/"))
        .unwrap_or_else(|_| EncodingKey::from_secret(modulus.as_bytes()));
    let header = Header { kid: Some("key-1".to_owned()), ..Header::default() };
    let hmac = jsonwebtoken::encode(&header, &claims, &public_key_as_secret).unwrap();
    assert_eq!(invalid(case.verify(&hmac).await), "it is not signed by RS256 or ES256");

    let parts = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let none = format!("{}.{}.", parts(r#"{"alg":"none","kid":"key-1"}"#), parts(&claims.to_string()));
    assert_eq!(invalid(case.verify(&none).await), "it is not a signed JWT");

    let good = case.issuer.sign(&claims);
    for cut in [good.len() - 1, good.len() - 40, good.rfind('.').unwrap(), 30, 0] {
        assert!(matches!(case.verify(&good[..cut]).await, Err(VerifyError::Refused(_))), "cut at {cut}");
    }
    let (message, signature) = good.rsplit_once('.').unwrap();
    let (header, _) = message.split_once('.').unwrap();
    let mut richer = claims.clone();
    richer["exp"] = json!(claims["exp"].as_i64().unwrap() + 1000);
    let altered = format!("{header}.{}.{signature}", parts(&richer.to_string()));
    assert_eq!(invalid(case.verify(&altered).await), "its signature doesn't hold");
    let long = format!("{good}{}", "A".repeat(64 * 1024));
    assert_eq!(invalid(case.verify(&long).await), "it is longer than any token");
}

#[tokio::test]
async fn a_token_that_names_no_key_is_tried_with_each() {
    let case = Case::new().await;
    let claims = case.issuer.claims(Utc::now() + chrono::TimeDelta::hours(1));
    let header = Header::new(Algorithm::RS256);
    assert!(case.verify(&case.issuer.sign_as(&header, &claims)).await.is_ok());
}

#[tokio::test]
async fn a_header_that_asks_for_what_is_not_understood_or_another_algorithm_is_refused() {
    let case = Case::new().await;
    let claims = case.issuer.claims(Utc::now() + chrono::TimeDelta::hours(1));
    let kid = Some("key-1".to_owned());
    let critical = Header { kid: kid.clone(), crit: Some(vec!["b64".to_owned()]), ..Header::new(Algorithm::RS256) };
    let critical = case.issuer.sign_as(&critical, &claims);
    assert_eq!(invalid(case.verify(&critical).await), "it has a critical extension");
    let other_algorithm = Issuer::es256(&case.issuer.url, "key-1").sign(&claims);
    assert_eq!(invalid(case.verify(&other_algorithm).await), "its signature doesn't hold");
}

#[tokio::test]
async fn an_issuer_out_of_reach_is_no_fault_of_the_token() {
    let url = nobody().await;
    let config = config(&url);
    let verifier = Verifier::new(&config, &Network::new(&config.network).unwrap()).unwrap();
    let outcome = verifier.verify(&Issuer::rs256(&url, "key-1").token(), Utc::now()).await;
    assert!(matches!(outcome, Err(VerifyError::Unavailable(_))), "{outcome:?}");
}

/// An issuer whose discovery document is made of its address and of that of another host, which has
/// the same keys.
async fn discovered(discovery: impl Fn(&str, &str) -> Value) -> Result<OidcToken, VerifyError> {
    let issuer = Issuer::rs256("", "key-1");
    let keys = json!({ "keys": [issuer.jwk()] }).to_string();
    let other_keys = keys.clone();
    let other = Server::start(move |_| answer(200, other_keys.clone())).await;
    let document = Arc::new(RwLock::new(String::new()));
    let (served, elsewhere) = (Arc::clone(&document), other.url());
    let moved = |address: &str| {
        let mut response = answer(302, "");
        response.headers_mut().insert("location", address.parse().unwrap());
        response
    };
    let server = Server::start(move |request| match request.uri.as_str() {
        "/.well-known/openid-configuration" => answer(200, served.read().unwrap().clone()),
        "/keys" => answer(200, keys.clone()),
        "/moved" => moved("/keys"),
        "/moved-away" => moved(&elsewhere),
        "/moved-for-ever" => moved("/moved-for-ever"),
        _ => answer(404, ""),
    })
    .await;
    *document.write().unwrap() = discovery(&server.url(), &other.url()).to_string();
    let issuer = issuer.at(&format!("{}/", server.url()));
    let config = config(&issuer.url);
    let verifier = Verifier::new(&config, &Network::new(&config.network).unwrap()).unwrap();
    verifier.verify(&issuer.token(), Utc::now()).await
}

#[tokio::test]
async fn discovery_names_the_keys_and_a_trailing_slash_makes_no_difference() {
    for path in ["keys", "moved"] {
        let outcome = discovered(|url, _| json!({ "issuer": url, "jwks_uri": format!("{url}/{path}") })).await;
        assert!(outcome.is_ok(), "{path}: {outcome:?}");
    }
}

#[tokio::test]
async fn discovery_that_leads_elsewhere_is_not_followed() {
    for (issuer, keys) in [
        ("https://login.example.com", "{url}/keys"),
        ("{url}", "{other}/keys"),
        ("{url}", "{url}/moved-away"),
        ("{url}", "{url}/moved-for-ever"),
        ("{url}", "keys"),
    ] {
        let fill = |text: &str, url: &str, other: &str| text.replace("{url}", url).replace("{other}", other);
        let outcome =
            discovered(|url, other| json!({ "issuer": fill(issuer, url, other), "jwks_uri": fill(keys, url, other) }))
                .await;
        assert!(matches!(outcome, Err(VerifyError::Unavailable(_))), "{issuer} {keys}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_key_set_beyond_the_limit_is_not_read() {
    let server = Server::start(|_| answer(200, vec![b' '; 1024 * 1024 + 1])).await;
    let config = config(&server.url());
    let verifier = Verifier::new(&config, &Network::new(&config.network).unwrap()).unwrap();
    let outcome = verifier.verify(&Issuer::rs256(&server.url(), "key-1").token(), Utc::now()).await;
    assert_eq!(
        outcome.unwrap_err(),
        VerifyError::Unavailable(format!("discovery: {} answers with more than 1048576 bytes", server.address))
    );
}

#[test]
fn an_issuer_over_plain_http_has_to_be_loopback_or_allowed() {
    let network = Network::new(&crate::config::Network::default()).unwrap();
    for (issuer, allow_http, good) in [
        ("https://login.app.env0.com/", false, true),
        ("http://127.0.0.1:8000", false, true),
        ("http://[::1]:8000", false, true),
        ("http://localhost:8000", false, true),
        ("http://login.example.com/", false, false),
        ("http://login.example.com/", true, true),
        ("http://127.0.0.1.example.com/", false, false),
        ("ftp://login.example.com/", true, false),
        ("login.app.env0.com", true, false),
    ] {
        let config = Config { allow_http, ..config(issuer) };
        assert_eq!(Verifier::new(&config, &network).is_ok(), good, "{issuer} {allow_http}");
    }
}

#[tokio::test]
async fn tokens_of_another_organization_are_counted_and_shown_by_the_start_of_their_ids() {
    let mut case = Case::new().await;
    case.config.oidc_organization_ids = vec!["00000000-0000-0000-0000-000000000000".to_owned()];
    let verifier = case.verifier();
    let foreign = case.token_with("https://env0.com/organizationId", json!("12345678-aaaa\n"));
    for _ in 0..3 {
        assert!(verifier.verify(&foreign, Utc::now()).await.is_err());
    }
    assert!(verifier.verify("eyJ.no.token", Utc::now()).await.is_err());
    let refused = verifier.refusals();
    let shown: Vec<_> = refused.iter().map(|refused| (refused.reason.as_str(), refused.count)).collect();
    assert_eq!(shown, [("not_a_jwt", 1), ("organization", 3)]);
    let (found, configured) = (refused[1].found.as_deref(), refused[1].configured.as_deref());
    assert_eq!((found, configured), (Some("org-1"), Some("00000000…")));
    assert!(refused[1].remedy.contains("ENV0_S3_LOG_OIDC_ORGANIZATION_ID"));
}

#[tokio::test]
async fn a_token_that_comes_again_waits_for_no_turn_and_costs_no_signature() {
    let case = Case::new().await;
    let verifier = case.verifier();
    let verify = async |token: &str| {
        let waited = Cell::new(false);
        let outcome = verifier.verify_in_turn(token, Utc::now(), async { waited.set(true) }).await;
        (outcome.is_ok(), waited.get())
    };
    let (token, another) = (case.issuer.token(), case.token_with("sub", json!("auth0|another")));
    assert_eq!(verify(&token).await, (true, true));
    assert_eq!(verify(&token).await, (true, false));
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let (other_claims, _) = another.rsplit_once('.').unwrap();
    for forged in [format!("{other_claims}.{signature}"), format!("{signed}.{}", "A".repeat(signature.len()))] {
        for _ in 0..2 {
            assert_eq!(verify(&forged).await, (false, true));
        }
    }
    assert_eq!(verify(&another).await, (true, true));
}
