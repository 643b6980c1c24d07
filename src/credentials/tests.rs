mod beside;
mod calendar;
mod days;
mod refusals;

use std::sync::RwLock;

use axum::http::Response;
use bytes::Bytes;

use super::*;
use crate::testing::{Issuer, Seen, Server, answer, breaks_off, config, nobody, soon, sts_error, sts_session, until};

/// STS, as far as it matters: answers an exchange by what `judge` says of the request.
async fn sts(judge: impl Fn(&Seen) -> Response<Bytes> + Send + Sync + 'static) -> Server {
    Server::start(judge).await
}

fn start(config: &Config) -> Credentials {
    let network = Network::new(&config.network).unwrap();
    Credentials::start(config, &network, "0123456789abcdef", CancellationToken::new())
}

fn hand_over(credentials: &Credentials, issuer: &Issuer, minutes: i64) -> String {
    let text = issuer.sign(&issuer.claims(Utc::now() + TimeDelta::minutes(minutes)));
    assert_eq!(credentials.offer(OidcToken::own(&text, Source::HandOver).unwrap()), Offer::Accepted);
    text
}

fn exchanges(server: &Server, field: &str) -> Vec<String> {
    server.seen().iter().map(|request| request.field(field).unwrap()).collect()
}

fn issuer() -> Issuer {
    Issuer::es256("https://login.app.env0.com/", "key-1")
}

#[tokio::test]
async fn the_exchange_names_role_session_duration_and_token() {
    let server = sts(|_| sts_session("AKIA1", TimeDelta::hours(1))).await;
    let token = issuer().token();
    let config = Config {
        oidc_token: Some(token.as_str().into()),
        session_duration: Duration::from_secs(900),
        ..config(&server.url())
    };
    let credentials = start(&config);
    let session = soon(credentials.wait_session()).await;
    assert_eq!((session.id, session.access_key_id.as_str()), (1, "AKIA1"));
    assert!(session.expires_at <= Utc::now() + TimeDelta::seconds(900), "no longer than asked for");

    let request = &server.seen()[0];
    let expected = [
        ("Action", "AssumeRoleWithWebIdentity"),
        ("RoleArn", "arn:aws:iam::123456789012:role/env0-logs"),
        ("RoleSessionName", "env0-s3-logs-0123456789abcdef"),
        ("DurationSeconds", "900"),
        ("WebIdentityToken", &token),
    ];
    for (name, value) in expected {
        assert_eq!(request.field(name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(request.header("authorization"), None, "no identity but the token's");
    assert_eq!(credentials.status().state, "holds a session");
}

#[tokio::test]
async fn aws_itself_is_asked_at_its_regional_endpoint() {
    let proxy = Server::start(|_| answer(403, "")).await;
    let network = crate::config::Network { https_proxy: Some(proxy.url().into()), ..Default::default() };
    let credentials = start(&Config { network, oidc_token: Some("token".into()), ..config("") });
    until("the state", || credentials.status().state == "STS is out of reach").await;
    let request = &proxy.seen()[0];
    assert_eq!((request.method.as_str(), request.uri.as_str()), ("CONNECT", "sts.eu-west-1.amazonaws.com:443"));
}

#[tokio::test]
async fn without_a_token_it_says_what_it_waits_for_and_a_hand_over_ends_it() {
    let server = sts(|_| sts_session("AKIA1", TimeDelta::hours(1))).await;
    let credentials = start(&config(&server.url()));
    until("the state", || credentials.status().state == "waits for an OIDC token").await;
    let status = credentials.status();
    assert_eq!(status.waits_for.as_deref(), Some("an OIDC token"));
    assert!(status.remedy.unwrap().contains("PUT /v1/oidc-token"));
    assert!(credentials.session().is_none());
    assert!(server.seen().is_empty(), "there is nothing to ask STS");

    hand_over(&credentials, &issuer(), 60);
    soon(credentials.wait_session()).await;
    let status = credentials.status();
    assert_eq!((status.waits_for, status.tokens.len(), status.tokens[0].source.as_str()), (None, 1, "hand-over"));
}

#[tokio::test]
async fn a_token_that_sts_refuses_is_set_aside_and_the_next_one_delivers() {
    let issuer = issuer();
    let useless = Arc::new(RwLock::new(String::new()));
    let refused = Arc::clone(&useless);
    let server = sts(move |request| match request.field("WebIdentityToken") {
        Some(token) if token == *refused.read().unwrap() => {
            sts_error(403, "AccessDenied", "Not authorized to perform sts")
        }
        _ => sts_session("AKIA1", TimeDelta::hours(1)),
    })
    .await;
    // The newest is tried first; it is the operator's, so that both are at hand from the start.
    *useless.write().unwrap() = issuer.sign(&issuer.claims(Utc::now() + TimeDelta::hours(5)));
    let config = Config { oidc_token: Some(useless.read().unwrap().as_str().into()), ..config(&server.url()) };
    let credentials = start(&config);
    hand_over(&credentials, &issuer, 60);
    soon(credentials.wait_session()).await;
    let tried = exchanges(&server, "WebIdentityToken");
    assert_eq!(tried[0], *useless.read().unwrap());
    let status = credentials.status();
    let set_aside: Vec<_> = status.tokens.iter().map(|token| (token.source.as_str(), token.set_aside)).collect();
    assert!(set_aside.contains(&("environment", true)) && set_aside.contains(&("hand-over", false)), "{set_aside:?}");
}

#[tokio::test]
async fn tokens_that_keep_coming_do_not_make_sts_judge_the_refused_ones_again() {
    let server = sts(|_| sts_error(403, "AccessDenied", "Not authorized")).await;
    let credentials = start(&config(&server.url()));
    // Long into an outage: the next whole round is an hour away.
    until("the first round", || credentials.0.lock().failures > 0).await;
    credentials.0.lock().not_before = Instant::now() + Duration::from_secs(3600);
    let issuer = issuer();
    for minutes in 1..=3 {
        hand_over(&credentials, &issuer, 60 * minutes);
        until("the judgement", || server.seen().len() == minutes as usize).await;
    }
    let tried = exchanges(&server, "WebIdentityToken");
    assert_eq!(tried.iter().collect::<std::collections::BTreeSet<_>>().len(), 3);
}

#[tokio::test]
async fn a_refusal_names_code_request_and_the_likely_causes_in_order() {
    let token = issuer().token();
    let echo = token.clone();
    let server = sts(move |_| sts_error(400, "InvalidIdentityToken", &format!("Value '{echo}' has no provider"))).await;
    let credentials = start(&Config { oidc_token: Some(token.as_str().into()), ..config(&server.url()) });
    until("the state", || credentials.status().state == "STS refuses every token at hand").await;
    let status = credentials.status();
    let error = status.last_error.as_ref().unwrap();
    assert_eq!(
        (error.code.as_deref(), error.request_id.as_deref()),
        (Some("InvalidIdentityToken"), Some("sts-request"))
    );
    assert_eq!(error.message, "Value '[removed]' has no provider");
    let causes = ["sts:TagSession", "sub or aud", "there is no role", "OIDC provider"];
    let places: Vec<_> = causes.iter().map(|cause| status.remedy.as_ref().unwrap().find(cause).expect(cause)).collect();
    assert!(places.is_sorted());
    let shown = serde_json::to_string(&status).unwrap();
    assert!(!shown.contains(&token[..40]), "{shown}");
}

#[tokio::test]
async fn a_refused_token_is_tried_again_once_the_trust_policy_is_mended() {
    let mended = Arc::new(RwLock::new(false));
    let is_mended = Arc::clone(&mended);
    let server = sts(move |_| match *is_mended.read().unwrap() {
        false => sts_error(403, "AccessDenied", "Not authorized"),
        true => sts_session("AKIA1", TimeDelta::hours(1)),
    })
    .await;
    let credentials = start(&Config { oidc_token: Some(issuer().token().as_str().into()), ..config(&server.url()) });
    until("a refusal", || credentials.status().last_error.is_some()).await;
    *mended.write().unwrap() = true;
    soon(credentials.wait_session()).await;
    assert!(credentials.status().last_error.is_none());
}

#[tokio::test]
async fn a_session_longer_than_the_role_allows_is_stepped_down_to_an_hour() {
    for (code, message) in [
        ("ValidationError", "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."),
        ("AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity"),
    ] {
        let server = sts(move |request| match request.field("DurationSeconds").unwrap().as_str() {
            "3600" => sts_session("AKIA1", TimeDelta::hours(1)),
            _ => sts_error(400, code, message),
        })
        .await;
        let token = issuer().token();
        let config = Config {
            oidc_token: Some(token.as_str().into()),
            session_duration: Duration::from_secs(43200),
            ..config(&server.url())
        };
        let credentials = start(&config);
        let first = soon(credentials.wait_session()).await;
        assert_eq!(exchanges(&server, "DurationSeconds"), ["43200", "3600"]);
        assert_eq!(credentials.status().session_duration_seconds, 3600);
        credentials.session_is_refused(first.id);
        soon(credentials.wait_session()).await;
        assert_eq!(exchanges(&server, "DurationSeconds"), ["43200", "3600", "3600"], "it stays so");
    }
}

#[tokio::test]
async fn what_passes_by_itself_is_no_fault_of_the_token() {
    for (status, code, message) in [
        (400, "Throttling", "Rate exceeded"),
        (400, "IDPCommunicationError", "Could not reach the identity provider"),
        (400, "InvalidIdentityToken", "Couldn't retrieve verification key from your identity provider"),
        (500, "InternalFailure", "Sorry"),
    ] {
        let server = sts(move |_| sts_error(status, code, message)).await;
        let credentials = start(&Config { oidc_token: Some("token".into()), ..config(&server.url()) });
        until(code, || credentials.status().last_error.is_some()).await;
        let told = credentials.status();
        assert!(!told.last_error.unwrap().refused, "{code}: {message}");
        assert!(!told.tokens[0].set_aside);
        until("another try", || server.seen().len() > 1).await;
    }
    let credentials = start(&Config { oidc_token: Some("token".into()), ..config(&nobody().await) });
    until("the state", || credentials.status().state == "STS is out of reach").await;
}

#[tokio::test]
async fn a_token_whose_issuer_sts_cannot_reach_does_not_keep_the_next_one_waiting() {
    for (code, message) in [
        ("IDPCommunicationError", "Could not reach the identity provider"),
        ("InvalidIdentityToken", "Couldn't retrieve verification key from your identity provider"),
    ] {
        let issuer = issuer();
        let own = issuer.sign(&issuer.claims(Utc::now() + TimeDelta::hours(5)));
        let useless = own.clone();
        let server = sts(move |request| match request.field("WebIdentityToken") {
            Some(token) if token == useless => sts_error(400, code, message),
            _ => sts_session("AKIA1", TimeDelta::hours(1)),
        })
        .await;
        let credentials = start(&Config { oidc_token: Some(own.as_str().into()), ..config(&server.url()) });
        let good = hand_over(&credentials, &issuer, 60);
        soon(credentials.wait_session()).await;
        let tried = exchanges(&server, "WebIdentityToken");
        assert_eq!((tried.first(), tried.last()), (Some(&own), Some(&good)), "{code}");
        assert!(credentials.status().tokens.iter().all(|token| !token.set_aside), "{code}: it may be good yet");
        // Well into an outage of that issuer: the next whole round, at a session's end, asks both again.
        let session = credentials.session().unwrap();
        credentials.session_is_refused(session.id);
        soon(credentials.wait_session()).await;
        assert_eq!(exchanges(&server, "WebIdentityToken").last(), Some(&good), "{code}");
    }
}

#[tokio::test]
async fn an_answer_that_is_not_sts_is_no_refusal() {
    let server = sts(|_| answer(403, "<html>Access denied by the proxy</html>")).await;
    let credentials = start(&Config { oidc_token: Some("token".into()), ..config(&server.url()) });
    until("the state", || credentials.status().state == "STS is out of reach").await;
}

#[tokio::test]
async fn an_answer_of_sts_that_breaks_off_is_told_as_one() {
    let half = "HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: 1000\r\n\r\n<AssumeRole";
    let url = breaks_off(half).await;
    let credentials = start(&Config { oidc_token: Some("token".into()), ..config(&url) });
    until("the failure", || credentials.status().last_error.is_some()).await;
    let told = credentials.status().last_error.unwrap();
    assert!(told.message.contains("HTTP 200, but the answer was cut off: "), "{}", told.message);
    assert!(told.remedy.contains("broke off"), "{}", told.remedy);
}

#[tokio::test]
async fn a_session_that_s3_refuses_is_replaced_at_once_and_only_once() {
    let server = sts(|_| sts_session("AKIA1", TimeDelta::hours(1))).await;
    let credentials = start(&Config { oidc_token: Some(issuer().token().as_str().into()), ..config(&server.url()) });
    let first = soon(credentials.wait_session()).await;
    credentials.session_is_refused(first.id);
    credentials.session_is_refused(first.id);
    let second = soon(credentials.wait_session()).await;
    assert_eq!(second.id, 2);
    credentials.session_is_refused(first.id);
    assert_eq!(credentials.session().unwrap().id, 2, "the complaint was about the one before");
    credentials.session_is_suspect(second.id);
    assert_eq!(credentials.session().unwrap().id, 2, "a young session is not the reason of a 403");
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn short_sessions_are_replaced_before_they_end() {
    let server = sts(|_| sts_session("AKIA1", TimeDelta::seconds(4))).await;
    let credentials = start(&Config { oidc_token: Some(issuer().token().as_str().into()), ..config(&server.url()) });
    soon(credentials.wait_session()).await;
    until("the third session", || {
        let session = credentials.session();
        session.expect("never without a session").id >= 3
    })
    .await;
}

#[tokio::test]
async fn the_token_file_is_read_at_each_exchange_and_trimmed() {
    let server = sts(|_| sts_session("AKIA1", TimeDelta::hours(1))).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    let issuer = issuer();
    let (old, new) = (issuer.token(), issuer.sign(&issuer.claims(Utc::now() + TimeDelta::hours(2))));
    let credentials =
        start(&Config { oidc_token_file: Some(("ENV0_OIDC_TOKEN_FILE", path.clone())), ..config(&server.url()) });
    until("the state", || credentials.status().state == "waits for an OIDC token").await;
    let waits_for = credentials.status().waits_for.unwrap();
    assert!(waits_for.contains("(No such file"), "{waits_for}");

    std::fs::write(&path, format!("  {old}\n")).unwrap();
    let session = soon(credentials.wait_session()).await;
    std::fs::write(&path, format!("{new}\n")).unwrap();
    credentials.session_is_refused(session.id);
    soon(credentials.wait_session()).await;
    assert_eq!(exchanges(&server, "WebIdentityToken"), [old, new]);
    assert_eq!(credentials.status().tokens.len(), 1, "the new one took the old one's place");
}

#[tokio::test]
async fn the_token_url_is_asked_and_never_told() {
    let server = sts(|request| match request.uri.as_str() {
        "/secret-path" => answer(200, r#"{"value": "the.url.token"}"#),
        "/broken" => answer(500, ""),
        _ => sts_session("AKIA1", TimeDelta::hours(1)),
    })
    .await;
    let url = format!("{}/secret-path", server.url());
    let credentials = start(&Config { oidc_token_url: Some(url.into()), ..config(&server.url()) });
    soon(credentials.wait_session()).await;
    let asked = server.seen();
    assert_eq!(asked[1].field("WebIdentityToken").as_deref(), Some("the.url.token"));

    let url = format!("{}/broken", server.url());
    let credentials = start(&Config { oidc_token_url: Some(url.into()), ..config(&server.url()) });
    until("the state", || credentials.status().waits_for.is_some()).await;
    let waits_for = credentials.status().waits_for.unwrap();
    let expected = format!("{} answers with HTTP status 500", server.address);
    assert_eq!(waits_for, format!("an OIDC token; ENV0_S3_LOG_OIDC_TOKEN_URL: {expected}"));
}

#[tokio::test]
async fn a_shut_down_ends_the_exchanges() {
    let server = sts(|_| sts_error(403, "AccessDenied", "Not authorized")).await;
    let config = Config { oidc_token: Some("token".into()), ..config(&server.url()) };
    let shutdown = CancellationToken::new();
    let credentials = Credentials::start(&config, &Network::new(&config.network).unwrap(), "id", shutdown.clone());
    until("a refusal", || credentials.status().last_error.is_some()).await;
    shutdown.cancel();
    until("the end of the task", || Arc::strong_count(&credentials.0) == 1).await;
}
