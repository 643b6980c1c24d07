//! Who is let in by an env0 OIDC token, how tokens are handed over, and what becomes of them.

use serde_json::{Value, json};

use crate::harness::{
    AUDITS, Answer, Books, DEPLOYMENTS, Daemon, Raw, Setup, TOKEN, Upload, event, wait_until, wait_until_delivered,
};
use crate::local_aws::LocalAws;
use crate::local_aws::issuer::{ORGANIZATION, SUBJECT, Signing, now_seconds};
use crate::pull_figures::peak_kib;

/// Where a token is handed over without events.
pub(crate) const OIDC_TOKEN: &str = "/v1/oidc-token";
/// A text in every refused request, to look for where it must not be.
const REFUSED: &str = "refused-and-nowhere-kept";
pub(crate) const DAY_SECONDS: u64 = 24 * 3600;

/// A daemon that has no OIDC token and lets in those of the organization.
pub(crate) fn setup(aws: &LocalAws) -> Setup {
    Setup::new(aws).unset("ENV0_OIDC_TOKEN").set("ENV0_S3_LOG_OIDC_ORGANIZATION_ID", ORGANIZATION)
}

pub(crate) fn post(daemon: &Daemon, path: &str, token: &str, body: impl AsRef<[u8]>) -> Answer {
    daemon.send(Upload::post(path).bearer(token).body(body))
}

pub(crate) fn put(daemon: &Daemon, token: &str) -> Answer {
    daemon.send(Upload::new("PUT", OIDC_TOKEN).bearer(token))
}

/// What `/status` tells of the tokens at hand.
pub(crate) fn tokens(daemon: &Daemon) -> Vec<Value> {
    let status = daemon.admin_get("/status").unwrap().json();
    status["credentials"]["tokens"].as_array().unwrap().clone()
}

#[test]
fn each_way_of_handing_over_delivers() {
    type Way = fn(&str) -> Upload;
    let ways: [(&str, Way, u16); 6] = [
        ("bearer", |token| Upload::post(DEPLOYMENTS).bearer(token).body(event("by bearer")), 200),
        ("header", |token| Upload::post(AUDITS).bearer(TOKEN).header("X-Env0-Oidc-Token", token).body(event("x")), 200),
        ("PUT, Authorization", |token| Upload::new("PUT", OIDC_TOKEN).bearer(token), 204),
        ("PUT, body", |token| Upload::new("PUT", OIDC_TOKEN).body(format!("{token}\n")), 204),
        ("PUT, body of a file", |token| Upload::new("PUT", OIDC_TOKEN).body(format!("\u{feff}{token}\r\n")), 204),
        ("PUT, body beside a static token", |token| Upload::new("PUT", OIDC_TOKEN).bearer(TOKEN).body(token), 204),
    ];
    for (name, way, status) in ways {
        let aws = LocalAws::start();
        let setup = setup(&aws);
        let (daemon, books) = (setup.start(), Books::default());
        assert!(tokens(&daemon).is_empty(), "{name}");
        let token = aws.issuer.token();
        let answer = daemon.send(way(&token));
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
        let ids = books.ids(3);
        assert_eq!(daemon.post(DEPLOYMENTS, Books::body(&ids)).accepted(), 3);
        books.acknowledge(ids);
        books.balance(&aws, &setup);
        assert_eq!(aws.sts.exchanges()[0].token, token, "{name}");
        let tokens = tokens(&daemon);
        assert_eq!((tokens.len(), &tokens[0]["source"]), (1, &json!("hand-over")), "{name}");
        assert_eq!(daemon.metric("token_handovers_total{outcome=\"accepted\"}"), Some(1.0), "{name}");
        assert!(!setup.spool_holds(&token), "{name}: tokens are kept in memory only");
    }
}

/// The head of a hand-over by body.
fn put_head(length: usize, headers: &str) -> String {
    format!("PUT {OIDC_TOKEN} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{headers}\r\n")
}

#[test]
fn a_token_in_the_head_is_judged_without_waiting_for_a_body() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let daemon = setup.start();
    for (token, status) in [(aws.issuer.token(), 204), (aws.issuer.expired_token(120), 401)] {
        let mut raw = Raw::connect(daemon.listen).unwrap();
        raw.write(put_head(1000, &format!("Authorization: Bearer {token}\r\n"))).unwrap();
        assert_eq!(raw.answer().unwrap().unwrap().status, status);
    }
}

#[test]
fn a_body_that_is_longer_than_any_token_is_refused_by_its_head() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let daemon = setup.start();
    let mut raw = Raw::connect(daemon.listen).unwrap();
    raw.write(put_head(10_000_000, "Expect: 100-continue\r\n")).unwrap();
    assert_eq!(raw.answer().unwrap().unwrap().status, 401);
    let mut raw = Raw::connect(daemon.listen).unwrap();
    raw.write(put_head(0, "Transfer-Encoding: chunked\r\n").replace("Content-Length: 0\r\n", "")).unwrap();
    // Refused in the middle of the chunk: the rest may find the connection closed.
    let _ = raw.write(format!("{:x}\r\n{}\r\n", 100_000, "x".repeat(100_000)));
    assert_eq!(raw.answer().unwrap().unwrap().status, 401);
}

#[test]
fn strangers_who_send_half_a_token_take_neither_memory_nor_connections_from_others() {
    const STRANGERS: usize = 24;
    const GUESTS: usize = 5;
    let aws = LocalAws::start();
    let setup = setup(&aws)
        .set("ENV0_S3_LOG_MAX_CONNECTIONS", STRANGERS.to_string())
        .set("ENV0_S3_LOG_MAX_BODY_BYTES", "256KiB")
        .set("ENV0_S3_LOG_MAX_INFLIGHT_BYTES", "256KiB");
    let daemon = setup.start();
    let mut strangers: Vec<Raw> = (0..STRANGERS).map(|_| Raw::connect(daemon.listen).unwrap()).collect();
    for raw in &mut strangers {
        raw.write(put_head(20_000, "Expect: 100-continue\r\n")).unwrap();
        // So that all of them have come before the first guest does, on a slow machine, too.
        assert_eq!(raw.answer().unwrap().unwrap().status, 100);
        raw.write("x".repeat(15_000)).unwrap();
    }
    let body = event(&"y".repeat(40_000));
    let head = format!(
        "POST {DEPLOYMENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut guests: Vec<Raw> = (0..GUESTS).map(|_| Raw::connect(daemon.listen).unwrap()).collect();
    for raw in &mut guests {
        raw.write(format!("{head}{}", &body[..100])).unwrap();
    }
    for raw in &mut guests {
        raw.write(&body[100..]).unwrap();
        // Who has to wait for memory is refused after 5 s, and the strangers' time is over after 10.
        assert_eq!(raw.answer().unwrap().unwrap().accepted(), 1);
    }
    let answers: Vec<_> =
        strangers.iter_mut().filter_map(|raw| raw.answer().ok()?).map(|answer| answer.status).collect();
    assert!(answers.iter().all(|status| *status == 503) && answers.len() >= STRANGERS - GUESTS, "{answers:?}");
}

#[test]
fn a_token_by_es256_is_let_in_too() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let daemon = setup.start();
    assert_eq!(put(&daemon, &aws.issuer.mint_signed(json!({}), Signing::Es256)).status, 204);
}

/// Sends `token` every way in; each must be refused without a trace.
fn is_refused(name: &str, setup: &Setup, daemon: &Daemon, token: &str) {
    let answers = [
        post(daemon, DEPLOYMENTS, token, event(REFUSED)),
        post(daemon, AUDITS, token, event(REFUSED)),
        post(daemon, "/services/collector/event", token, event(REFUSED)),
        put(daemon, token),
        daemon.send(Upload::new("PUT", OIDC_TOKEN).body(token)),
    ];
    // Longer than any head may be is HTTP itself broken.
    let allowed: &[u16] = if token.len() > 16_000 { &[401, 431] } else { &[401] };
    for (way, answer) in answers.iter().enumerate() {
        assert!(allowed.contains(&answer.status), "{name}, way {way}: {} {}", answer.status, answer.text());
        assert!(!answer.text().contains(token), "{name}: the answer repeats the token");
        if answer.status == 401 && !answer.text().contains("code") {
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{name}, way {way}");
        }
    }
    assert_eq!(tokens(daemon), [] as [Value; 0], "{name} is among the credentials");
    assert!(!setup.spool_holds(REFUSED), "{name}: the spool holds what was refused");
}

#[test]
fn bad_tokens_are_refused_and_leave_no_trace() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let daemon = setup.start();
    let mint = |claims| aws.issuer.mint(claims);
    let now = now_seconds();
    let good = mint(json!({}));
    let [header, claims, _] = good.split('.').collect::<Vec<_>>()[..] else { panic!("three parts") };
    // Another issuer's key under an id that ours never published.
    let stranger = LocalAws::start();
    stranger.issuer.rotate();
    let foreign_organization = "00000000-1111-2222-3333-444444444444";
    let bad = [
        ("expired", aws.issuer.expired_token(120)),
        ("not yet valid", mint(json!({ "nbf": now + 3600 }))),
        ("wrong issuer", mint(json!({ "iss": "https://login.example.com/" }))),
        ("issuer with a suffix", mint(json!({ "iss": format!("{}x", aws.issuer.url()) }))),
        (
            "another organization",
            mint(
                json!({ "organizationId": foreign_organization, "https://env0.com/organizationId": foreign_organization }),
            ),
        ),
        ("two organizations", mint(json!({ "organizationId": foreign_organization }))),
        ("no organization", mint(json!({ "organizationId": null, "https://env0.com/organizationId": null }))),
        ("user login", mint(json!({ "apiKeyType": "user", "https://env0.com/apiKeyType": null }))),
        ("user login, prefixed", mint(json!({ "apiKeyType": null, "https://env0.com/apiKeyType": "personal" }))),
        ("no expiry", mint(json!({ "exp": null }))),
        ("no subject", mint(json!({ "sub": null }))),
        ("wrong key", aws.issuer.mint_signed(json!({}), Signing::Forged)),
        ("alg none", aws.issuer.mint_signed(json!({}), Signing::None)),
        ("HS256 by the public key", aws.issuer.mint_signed(json!({}), Signing::Hs256)),
        ("without signature", format!("{header}.{claims}.")),
        ("truncated", good[..good.len() - 10].to_owned()),
        ("cut in the claims", good[..good.len() / 2].to_owned()),
        ("no dots", "eyJhbGciOiJSUzI1NiJ9".to_owned()),
        ("64 KiB", format!("{header}.{}.x", "A".repeat(64 * 1024))),
        ("longer than any token", format!("{header}.{}.x", "A".repeat(30 * 1024))),
        // Last: it makes the daemon ask for the keys again, which it does at most once a minute.
        ("unknown kid", stranger.issuer.mint(json!({ "iss": aws.issuer.url() }))),
    ];
    for (name, token) in &bad {
        is_refused(name, &setup, &daemon, token);
    }
    assert!(daemon.metric("auth_failures_total{reason=\"invalid\"}") >= Some(bad.len() as f64));

    let beside = Upload::post(AUDITS).bearer(TOKEN).header("X-Env0-Oidc-Token", &bad[0].1).body(event("beside"));
    assert_eq!(daemon.send(beside).accepted(), 1, "a bad token beside good credentials refuses no events");
    assert!(tokens(&daemon).is_empty());
    assert_eq!(put(&daemon, &good).status, 204);
    wait_until_delivered(&setup);
    assert_eq!(aws.s3.lines(), [event("beside")]);
    assert!(aws.sts.exchanges().iter().all(|exchange| exchange.token == good), "STS saw a token that was refused");
    assert!(bad.iter().all(|(_, token)| !daemon.log().text().contains(token)), "a token is in the log");
}

#[test]
fn a_wrong_subject_is_refused_and_both_must_fit_where_both_are_configured() {
    let aws = LocalAws::start();
    let setup = setup(&aws).set("ENV0_S3_LOG_OIDC_SUBJECT", format!("auth0|another,{SUBJECT}"));
    let daemon = setup.start();
    is_refused("wrong subject", &setup, &daemon, &aws.issuer.mint(json!({ "sub": "auth0|stranger" })));
    let elsewhere = json!({ "organizationId": "elsewhere", "https://env0.com/organizationId": "elsewhere" });
    is_refused("wrong organization", &setup, &daemon, &aws.issuer.mint(elsewhere));
    assert_eq!(put(&daemon, &aws.issuer.token()).status, 204);
}

#[test]
fn two_authorization_headers_are_refused_even_where_both_are_good() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let daemon = setup.start();
    let token = aws.issuer.token();
    for request in [Upload::post(DEPLOYMENTS).body(event(REFUSED)), Upload::new("PUT", OIDC_TOKEN).body(&token)] {
        assert_eq!(daemon.send(request.clone().bearer(&token).bearer(TOKEN)).status, 401);
        assert_eq!(daemon.send(request.bearer(&token).bearer(&token)).status, 401);
    }
    assert!(tokens(&daemon).is_empty());
    assert!(!setup.spool_holds(REFUSED));
}

#[test]
fn a_good_token_writes_deployments_only_whatever_the_path_or_the_sender_says() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let daemon = setup.start();
    let token = aws.issuer.token();
    for path in [AUDITS, "/env0-audits/services/collector/raw", "/env0-audits/loki/api/v1/push"] {
        let answer = post(&daemon, path, &token, event(REFUSED));
        assert_eq!(answer.status, 401, "{path}: {}", answer.text());
    }
    assert!(!setup.spool_holds(REFUSED));
    assert!(tokens(&daemon).is_empty(), "what is refused is not handed over either");
    assert_eq!(daemon.metric("auth_failures_total{reason=\"wrong_type\"}"), Some(3.0));
    let claims_audits = json!({ "event": { "id": "hec" }, "source": "env0-audits", "sourcetype": "env0-audits" });
    let answer = post(&daemon, "/services/collector/event", &token, claims_audits.to_string());
    assert_eq!(answer.status, 200, "{}", answer.text());
    wait_until_delivered(&setup);
    assert_eq!((aws.s3.objects_with("env0-audits/").len(), aws.s3.objects_with("env0-deployments/").len()), (0, 1));
}

#[test]
fn a_token_that_sts_refuses_never_stops_delivery_by_the_next_one() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let (daemon, books) = (setup.start(), Books::default());
    // Good by its signature and organization, so it is let in; and the newest, so it is tried first.
    let foreign = aws.issuer.mint(json!({ "sub": "auth0|another-user", "exp": now_seconds() + 2 * DAY_SECONDS }));
    let wrong_audience = aws.issuer.mint(json!({ "azp": "another", "exp": now_seconds() + 3 * DAY_SECONDS }));
    for token in [&foreign, &wrong_audience] {
        let ids = books.ids(2);
        assert_eq!(post(&daemon, DEPLOYMENTS, token, Books::body(&ids)).accepted(), 2);
        books.acknowledge(ids);
    }
    wait_until("STS refused both", || tokens(&daemon).iter().filter(|token| token["set_aside"] == true).count() == 2);
    assert_eq!(aws.s3.objects().len(), 0);
    let good = aws.issuer.token();
    assert_eq!(put(&daemon, &good).status, 204);
    books.balance(&aws, &setup);
    assert_eq!(aws.sts.exchanges().last().unwrap().token, good);

    // Nor does one that comes later, when the session is fetched anew.
    assert_eq!(
        put(&daemon, &aws.issuer.mint(json!({ "azp": "x", "exp": now_seconds() + 4 * DAY_SECONDS }))).status,
        204
    );
    aws.expire_all_sessions();
    let ids = books.ids(2);
    assert_eq!(daemon.post(DEPLOYMENTS, Books::body(&ids)).accepted(), 2);
    books.acknowledge(ids);
    books.balance(&aws, &setup);
}

#[test]
fn a_token_is_handed_over_while_the_spool_is_full() {
    for in_request_for_events in [true, false] {
        let aws = LocalAws::start();
        let setup = setup(&aws).set("ENV0_S3_LOG_SPOOL_MAX_BYTES", "2MiB").set("ENV0_S3_LOG_BATCH_MAX_BYTES", "256KiB");
        let (daemon, books) = (setup.start(), Books::default());
        for count in [500, 20, 1] {
            wait_until("the spool is full", || {
                let ids = books.ids(count);
                let answer = daemon.post(DEPLOYMENTS, Books::body(&ids));
                if answer.status == 200 {
                    books.acknowledge(ids);
                }
                answer.status == 503
            });
        }
        let token = aws.issuer.token();
        let one = event("no room for it");
        let answer = if in_request_for_events { post(&daemon, DEPLOYMENTS, &token, one) } else { put(&daemon, &token) };
        assert_eq!(answer.status, if in_request_for_events { 503 } else { 204 }, "{}", answer.text());
        books.balance(&aws, &setup);
        wait_until("there is room again", || daemon.post(DEPLOYMENTS, "").status == 200);
    }
}

#[test]
fn a_restarted_daemon_with_a_backlog_and_no_token_says_once_what_it_waits_for() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let (daemon, books) = (setup.start(), Books::default());
    let ids = books.ids(7);
    assert_eq!(daemon.post(DEPLOYMENTS, Books::body(&ids)).accepted(), 7);
    books.acknowledge(ids);
    daemon.kill();
    let daemon = setup.start();
    wait_until("the log says it", || daemon.log().count("WARN", "waiting for an OIDC token") > 0);
    let complaints = daemon.log().complaints();
    assert_eq!(complaints.len(), 1, "{complaints:#?}");
    let text = complaints[0].to_string();
    assert!(text.contains("PUT /v1/oidc-token"), "it says how to end it: {text}");
    let credentials = daemon.admin_get("/status").unwrap().json()["credentials"].clone();
    assert!(credentials["waits_for"].as_str().is_some_and(|what| what.contains("OIDC token")), "{credentials}");
    assert!(credentials["remedy"].is_string(), "{credentials}");
    assert_eq!(put(&daemon, &aws.issuer.token()).status, 204);
    books.balance(&aws, &setup);
    assert_eq!(daemon.log().count("WARN", "waiting for an OIDC token"), 1, "once per change of state");
}

#[test]
fn a_token_file_that_is_replaced_is_used_from_the_next_exchange_on() {
    let aws = LocalAws::start();
    aws.sts.set_session_lifetime(std::time::Duration::from_secs(3));
    let setup = setup(&aws);
    let file = setup.folder().join("token");
    let setup = setup.set("ENV0_S3_LOG_OIDC_TOKEN_FILE", file.to_str().unwrap());
    let (first, second) = (aws.issuer.token(), aws.issuer.mint(json!({ "exp": now_seconds() + 2 * DAY_SECONDS })));
    std::fs::write(&file, format!("\n {first} \n")).unwrap();
    let daemon = setup.start();
    wait_until("the first token is exchanged", || aws.sts.exchanges().iter().any(|exchange| exchange.token == first));
    let new = setup.folder().join("token.new");
    std::fs::write(&new, &second).unwrap();
    std::fs::rename(&new, &file).unwrap();
    wait_until("the second token is exchanged", || aws.sts.exchanges().iter().any(|exchange| exchange.token == second));
    assert_eq!(daemon.post(DEPLOYMENTS, event("after")).accepted(), 1);
    wait_until_delivered(&setup);
    assert_eq!(daemon.log().count("ERROR", ""), 0);
}

#[test]
fn a_token_file_that_breaks_leaves_the_token_before_in_use_and_is_told() {
    let aws = LocalAws::start();
    aws.sts.set_session_lifetime(std::time::Duration::from_secs(3));
    let setup = setup(&aws);
    let file = setup.folder().join("token");
    let setup = setup.set("ENV0_S3_LOG_OIDC_TOKEN_FILE", file.to_str().unwrap());
    let token = aws.issuer.token();
    std::fs::write(&file, &token).unwrap();
    let daemon = setup.start();
    wait_until("the token is exchanged", || !aws.sts.exchanges().is_empty());
    std::fs::write(&file, format!("{{\"token\":\"{token}\"}}")).unwrap();
    wait_until("the log tells the file", || daemon.log().count("WARN", "not the JSON that it was delivered in") > 0);
    let told = daemon.log().text();
    for part in [file.to_str().unwrap(), "the tokens at hand stay in use", "read again at the next exchange"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(!told.contains(&token), "{told}");
    let before = aws.sts.exchanges().len();
    wait_until("two more sessions", || aws.sts.exchanges().len() > before + 1);
    assert!(aws.sts.exchanges().iter().all(|exchange| exchange.token == token), "no other text goes to STS");
    assert_eq!(daemon.post(DEPLOYMENTS, event("after")).accepted(), 1);
    wait_until_delivered(&setup);
    assert_eq!(daemon.log().count("WARN", "gives no OIDC token"), 1, "told once");
}

#[test]
fn two_daemons_behind_one_name_both_deliver_after_a_couriers_round() {
    let aws = LocalAws::start();
    let setups = [setup(&aws), setup(&aws)];
    let daemons = [setups[0].start(), setups[1].start()];
    let books = Books::default();
    for daemon in &daemons {
        let ids = books.ids(4);
        assert_eq!(daemon.post(AUDITS, Books::body(&ids)).accepted(), 4);
        books.acknowledge(ids);
    }
    // The courier asks each address of the name in turn.
    let token = aws.issuer.token();
    for daemon in &daemons {
        assert_eq!(put(daemon, &token).status, 204);
    }
    wait_until_delivered(&setups[1]);
    books.balance(&aws, &setups[0]);
    let instances: std::collections::BTreeSet<_> =
        aws.s3.objects().iter().map(|object| object.metadata["env0-instance"].clone()).collect();
    assert_eq!(instances.len(), 2, "each daemon has a chain of its own");
}

#[test]
fn a_key_set_of_many_small_things_takes_little_memory() {
    let aws = LocalAws::start();
    // Nearly the 1 MiB that is read.
    aws.issuer.set_odd_keys(120_000);
    let daemon = setup(&aws).start();
    let before = peak_kib(&daemon) / 1024;
    assert_eq!(put(&daemon, &aws.issuer.token()).status, 204);
    let grown = peak_kib(&daemon) / 1024 - before;
    assert!(grown <= 32, "{grown} MiB");
}
