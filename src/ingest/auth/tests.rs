use std::convert::Infallible;

use axum::http::HeaderValue;
use axum::http::header::HeaderName;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::network::Network;
use crate::testing::{Issuer, Server, config, jwks, nobody, until};

const TOKEN: &str = "0123456789abcdef-plain";
const AUDIT_TOKEN: &str = "0123456789abcdef-audits";

fn guest() -> Guest {
    Guest::anybody()
}

fn head(headers: &HeaderMap) -> Head {
    Head { uri: axum::http::Uri::default(), headers: headers.clone() }
}

struct Case {
    server: Server,
    issuer: Issuer,
    config: Config,
    credentials: Credentials,
    auth: Authenticator,
}

impl Case {
    async fn new() -> Case {
        Case::with(|config| config.ingest_token = Some(TOKEN.into())).await
    }

    /// An issuer out of the token's reach, but for its keys; STS is nobody.
    async fn with(change: impl FnOnce(&mut Config)) -> Case {
        let issuer = Issuer::es256("", "key-1");
        let server = Server::start(jwks(&[issuer.jwk()])).await;
        let issuer = issuer.at(&server.url());
        let mut config = config(&nobody().await);
        config.oidc_issuer = server.url();
        change(&mut config);
        let network = Network::new(&config.network).unwrap();
        let credentials = Credentials::start(&config, &network, "id", CancellationToken::new());
        let verifier = Verifier::new(&config, &network).unwrap();
        let auth = Authenticator::new(&config, verifier, credentials.clone()).unwrap();
        Case { server, issuer, config, credentials, auth }
    }

    async fn judge(&self, authorization: &str) -> Result<Identity, AuthError> {
        self.auth.authenticate(&guest(), &headers(&[("authorization", authorization)]), None, None).await
    }

    fn tokens(&self) -> usize {
        self.credentials.status().tokens.len()
    }
}

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let pair =
        |(name, value): &(&str, &str)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
    let mut headers = HeaderMap::new();
    for (name, value) in pairs.iter().map(pair) {
        headers.append(name, value);
    }
    headers
}

fn basic(pair: &str) -> String {
    format!("Basic {}", STANDARD.encode(pair))
}

const PLAIN: Result<Identity, AuthError> = Ok(Identity::Static { log_type: None });

#[tokio::test]
async fn a_static_token_is_let_in_by_every_scheme() {
    let case = Case::new().await;
    for authorization in [
        format!("Bearer {TOKEN}"),
        format!("bearer   {TOKEN} "),
        format!("BEARER {TOKEN}"),
        format!("Splunk {TOKEN}"),
        basic(&format!("anybody:{TOKEN}")),
        basic(&format!(":{TOKEN}")),
        basic(&format!("anybody:{TOKEN}")).replace('=', ""),
    ] {
        assert_eq!(case.judge(&authorization).await, PLAIN, "{authorization}");
    }
    assert_eq!(
        case.auth.authenticate(&guest(), &HeaderMap::new(), Some(TOKEN), None).await,
        PLAIN,
        "carried by the protocol"
    );
    let foreign = headers(&[("authorization", "ApiKey something")]);
    assert_eq!(case.auth.authenticate(&guest(), &foreign, Some(TOKEN), None).await, PLAIN);
    let incomplete = headers(&[("authorization", "something")]);
    assert_eq!(case.auth.authenticate(&guest(), &incomplete, Some(TOKEN), None).await, PLAIN);
}

#[tokio::test]
async fn anything_else_stays_out() {
    let case = Case::new().await;
    for authorization in ["Bearer", "Bearer ", TOKEN] {
        assert_eq!(case.judge(authorization).await, Err(AuthError::Incomplete), "{authorization}");
    }
    for authorization in [
        format!("Bearer {}", &TOKEN[..20]),
        format!("Bearer {TOKEN}x"),
        format!("Bearer {}", TOKEN.to_uppercase()),
        format!("Token {TOKEN}"),
        basic(TOKEN),
        basic(&format!("{TOKEN}:")),
        "Basic !!!".to_owned(),
        "Bearer a.b.c".to_owned(),
    ] {
        assert_eq!(case.judge(&authorization).await, Err(AuthError::Invalid), "{authorization}");
    }
    assert_eq!(case.auth.authenticate(&guest(), &HeaderMap::new(), None, None).await, Err(AuthError::Missing));
    assert_eq!(case.auth.authenticate(&guest(), &HeaderMap::new(), Some("wrong"), None).await, Err(AuthError::Invalid));
    let bearer = format!("Bearer {TOKEN}");
    let twice = headers(&[("authorization", &bearer), ("authorization", &bearer)]);
    assert!(matches!(case.auth.authenticate(&guest(), &twice, None, None).await, Err(AuthError::Malformed(_))));
    assert!(case.server.seen().is_empty(), "none of these is worth asking the issuer");
}

#[tokio::test]
async fn a_typed_token_decides_the_type_and_an_oidc_token_writes_deployments_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokens");
    std::fs::write(&path, format!("# tokens\n\n{TOKEN}\r\n  {AUDIT_TOKEN}   env0-audits\n")).unwrap();
    let case = Case::with(|config| config.ingest_token_file = Some(path)).await;
    let plain = case.judge(&format!("Bearer {TOKEN}")).await.unwrap();
    let audits = case.judge(&format!("Bearer {AUDIT_TOKEN}")).await.unwrap();
    let oidc = case.judge(&format!("Bearer {}", case.issuer.token())).await.unwrap();
    assert_eq!((plain.log_type(), audits.log_type()), (None, Some(LogType::Audits)));
    assert_eq!((oidc, oidc.log_type()), (Identity::Oidc, Some(LogType::Deployments)));
    let writes = |identity: Identity| LogType::ALL.map(|log_type| identity.may_write(log_type));
    assert_eq!(writes(plain), [true, true]);
    assert_eq!(writes(Identity::Anonymous), [true, true]);
    assert_eq!(writes(audits), [false, true]);
    assert_eq!(writes(oidc), [true, false]);
}

#[tokio::test]
async fn a_token_in_base64_is_known_by_its_form_in_a_query_that_nobody_escaped() {
    let case = Case::with(|config| config.ingest_token = Some("abc+def/ghi+jkl/mno==".into())).await;
    for carried in ["abc+def/ghi+jkl/mno==", "abc def/ghi jkl/mno=="] {
        assert_eq!(case.auth.authenticate(&guest(), &HeaderMap::new(), Some(carried), None).await, PLAIN, "{carried}");
    }
    let wrong = case.auth.authenticate(&guest(), &HeaderMap::new(), Some("abc-def/ghi jkl/mno=="), None).await;
    assert_eq!(wrong, Err(AuthError::Invalid));
}

#[tokio::test]
async fn an_oidc_token_that_is_let_in_is_handed_over_and_one_that_is_not_leaves_no_trace() {
    let case = Case::new().await;
    let mut claims = case.issuer.claims(chrono::Utc::now() + chrono::TimeDelta::hours(1));
    claims["organizationId"] = "org-2".into();
    let foreign = case.issuer.sign(&claims);
    let refused = AuthError::Refused(Reason::Organization);
    assert_eq!(case.judge(&format!("Bearer {foreign}")).await, Err(refused.clone()));
    assert_eq!(case.auth.hand_over(&guest(), &foreign).await, Err(refused));
    case.auth.hand_over_beside(&guest(), &headers(&[("x-env0-oidc-token", &foreign)]), true).await;
    assert_eq!(case.tokens(), 0);

    assert_eq!(case.judge(&format!("Bearer {}", case.issuer.token())).await, Ok(Identity::Oidc));
    assert_eq!(case.tokens(), 1);
    let beside = case.issuer.sign(&case.issuer.claims(chrono::Utc::now() + chrono::TimeDelta::hours(2)));
    case.auth.hand_over_beside(&guest(), &headers(&[("x-env0-oidc-token", &beside)]), true).await;
    assert_eq!(case.tokens(), 2);
    let basic = case.judge(&basic(&format!("oidc:{beside}"))).await;
    assert_eq!((basic, case.tokens()), (Ok(Identity::Oidc), 2), "the same one again");
}

#[tokio::test]
async fn a_hand_over_takes_the_token_from_the_header_or_the_body() {
    let case = Case::new().await;
    let token = case.issuer.token();
    let bearer = headers(&[("authorization", &format!("Bearer {token}"))]);
    let own = headers(&[("authorization", &format!("Bearer {TOKEN}"))]);
    let none = HeaderMap::new();
    let with_body = async |headers: &HeaderMap, body: &str| {
        let body = Bytes::copy_from_slice(body.as_bytes());
        case.auth.hand_over_request(&guest(), head(headers), async { Ok::<_, Infallible>(Some(body)) }).await.unwrap()
    };
    let never = std::future::pending::<Result<Option<Bytes>, Infallible>>();
    assert_eq!(case.auth.hand_over_request(&guest(), head(&bearer), never).await, Ok(Ok(())), "no body is waited for");
    assert_eq!(with_body(&none, &format!("{token}\n")).await, Ok(()));
    assert_eq!(with_body(&own, &token).await, Ok(()));
    assert_eq!(with_body(&none, " ").await, Err(AuthError::Missing));
    assert_eq!(with_body(&none, "\u{fffd}").await, Err(AuthError::Refused(Reason::NotAJwt)));
    assert_eq!(
        with_body(&own, "").await,
        Err(AuthError::Refused(Reason::Empty)),
        "a static token is none to hand over"
    );
    let too_long = async { Ok::<_, Infallible>(None) };
    assert_eq!(
        case.auth.hand_over_request(&guest(), head(&none), too_long).await,
        Ok(Err(AuthError::Refused(Reason::TooLong)))
    );
    assert_eq!(case.tokens(), 1);
}

#[tokio::test]
async fn an_issuer_out_of_reach_is_told_apart_from_a_wrong_token() {
    let url = nobody().await;
    let case = Case::with(|config| {
        config.oidc_issuer = url.clone();
        config.ingest_token = Some(TOKEN.into());
    })
    .await;
    let token = Issuer::es256(&url, "key-1").token();
    assert!(matches!(case.judge(&format!("Bearer {token}")).await, Err(AuthError::Unavailable { .. })));
    assert!(matches!(case.auth.hand_over(&guest(), &token).await, Err(AuthError::Unavailable { .. })));
    assert_eq!(case.judge(&format!("Bearer {TOKEN}")).await, PLAIN, "static tokens don't need the issuer");
    let beside = headers(&[("authorization", &format!("Bearer {token}"))]);
    assert_eq!(case.auth.authenticate(&guest(), &beside, Some(TOKEN), None).await, PLAIN);
    assert!(matches!(
        case.auth.authenticate(&guest(), &beside, Some("wrong"), None).await,
        Err(AuthError::Unavailable { .. })
    ));
}

#[tokio::test]
async fn events_do_not_wait_for_an_issuer_that_does_not_answer() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let case = Case::with(|config| config.oidc_issuer = url.clone()).await;
    let beside = headers(&[("x-env0-oidc-token", &Issuer::es256(&url, "key-1").token())]);
    let guest = guest();
    for (is_known, left) in [(false, BESIDE_MAX), (true, 0)] {
        let many = (0..2 * BESIDE_MAX).map(|_| case.auth.hand_over_beside(&guest, &beside, is_known));
        futures_util::future::join_all(many).await;
        assert_eq!(case.auth.0.beside.available_permits(), left, "the hand-overs go on behind");
    }
    assert_eq!(case.auth.0.beside_strangers.available_permits(), 0);
}

#[tokio::test]
async fn without_required_credentials_everybody_is_let_in_but_hand_overs_are_judged() {
    let case = Case::with(|config| config.ingest_auth_required = false).await;
    assert!(!case.config.ingest_auth_required);
    assert_eq!(case.auth.authenticate(&guest(), &HeaderMap::new(), None, None).await, Ok(Identity::Anonymous));
    assert_eq!(case.judge("Bearer wrong").await, Ok(Identity::Anonymous));
    assert_eq!(case.judge(&format!("Bearer {}", case.issuer.token())).await, Ok(Identity::Anonymous));
    until("the hand-over", || case.tokens() == 1).await;
    assert_eq!(case.auth.hand_over(&guest(), "wrong").await, Err(AuthError::Refused(Reason::NotAJwt)));
}
