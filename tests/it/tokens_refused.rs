//! What is refused is told to the operator; and tokens that STS refuses never push out a good one.

use std::io::Write;

use serde_json::{Value, json};

use crate::harness::{
    AUDITS, Books, DEPLOYMENTS, Daemon, Setup, Upload, event, field, wait_until, wait_until_delivered,
};
use crate::local_aws::LocalAws;
use crate::local_aws::issuer::{ORGANIZATION, now_seconds};
use crate::tokens::{DAY_SECONDS, OIDC_TOKEN, post, put, setup, tokens};

const OTHER_ORGANIZATION: &str = "11111111-2222-4333-8444-555555555555";

fn refused_tokens(daemon: &Daemon) -> Vec<Value> {
    let status = daemon.admin_get("/status").unwrap().json();
    status["credentials"]["refused_tokens"].as_array().unwrap().clone()
}

#[test]
fn tokens_of_another_organization_are_told_in_log_status_and_check() {
    let aws = LocalAws::start();
    let admin = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let setup = setup(&aws)
        .set("ENV0_S3_LOG_OIDC_ORGANIZATION_ID", OTHER_ORGANIZATION)
        .set("ENV0_S3_LOG_ADMIN_ADDR", admin.to_string());
    let daemon = setup.start();
    let token = aws.issuer.token();
    for _ in 0..3 {
        assert_eq!(put(&daemon, &token).status, 401);
    }
    let refused = refused_tokens(&daemon);
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!((&refused[0]["reason"], &refused[0]["count"]), (&json!("organization"), &json!(3)));
    assert_eq!((&refused[0]["found"], &refused[0]["configured"]), (&json!("51d48700…"), &json!("11111111…")));

    assert_eq!(daemon.log().count("WARN", "refused an OIDC token"), 1, "once, however often it comes");
    let is_it = |entry: &Value| entry["message"].as_str().is_some_and(|message| message.starts_with("refused an OIDC"));
    let line = daemon.log().entries().into_iter().find(is_it).unwrap();
    assert_eq!(field(&line, "token.found"), "51d48700…");
    assert_eq!(field(&line, "token.configured"), "11111111…");
    assert!(line.to_string().contains("ENV0_S3_LOG_OIDC_ORGANIZATION_ID"), "{line}");

    let check = setup.run("check").stdout;
    for part in ["it refused 3 tokens", "it is 51d48700…, configured is 11111111…", "ENV0_S3_LOG_OIDC_ORGANIZATION_ID"]
    {
        assert!(check.contains(part), "no {part:?} in {check}");
    }
}

#[test]
fn check_compares_a_token_at_hand_with_the_configured_organization() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_OIDC_ORGANIZATION_ID", OTHER_ORGANIZATION);
    let finished = setup.run("check");
    for part in ["[warn] token", ORGANIZATION, OTHER_ORGANIZATION] {
        assert!(finished.stdout.contains(part), "no {part:?} in {}", finished.stdout);
    }
    assert_eq!(finished.code, Some(0), "STS takes it nevertheless: {}", finished.stdout);
}

#[test]
fn what_is_no_token_at_all_is_told_in_log_status_and_answer() {
    let aws = LocalAws::start();
    let daemon = setup(&aws).start();
    let quoted = format!("\"{}\"", aws.issuer.token());
    for (body, reason, answer) in [
        ("", "empty", "the body is empty"),
        ("\n", "empty", "Enable OIDC during deployments"),
        ("ENV0_OIDC_TOKEN", "not_a_jwt", "three parts with two dots between"),
        (r#"{"token":"eyJ"}"#, "not_a_jwt", "without Bearer, quotes or JSON around it"),
        (&quoted, "not_a_jwt", "send the ENV0_OIDC_TOKEN of a deployment"),
        (&"x".repeat(21 * 1024), "too_long", "no OIDC token that is let in"),
    ] {
        let refused = daemon.send(Upload::new("PUT", OIDC_TOKEN).body(body));
        assert_eq!(refused.status, 401, "{reason}");
        assert!(refused.text().contains(answer), "{body:.20}: {}", refused.text());
        assert!(refused_tokens(&daemon).iter().any(|told| told["reason"] == reason), "{body:.20}: {reason}");
    }
    let counts: Vec<_> = refused_tokens(&daemon).iter().map(|told| told["count"].clone()).collect();
    assert_eq!(counts, [json!(2), json!(1), json!(3)], "empty, too long, no JWT");
    assert_eq!(daemon.log().count("WARN", "refused an OIDC token"), 3, "once a reason");
}

#[test]
fn refusals_for_different_reasons_are_counted_apart() {
    let aws = LocalAws::start();
    let daemon = setup(&aws).start();
    let stranger = LocalAws::start();
    let refused = [
        ("expired", aws.issuer.expired_token(120)),
        ("issuer", stranger.issuer.token()),
        ("not_a_deployment", aws.issuer.mint(json!({ "apiKeyType": "user" }))),
        ("not_yet_valid", aws.issuer.mint(json!({ "nbf": now_seconds() + 3600 }))),
    ];
    for (_, token) in &refused {
        assert_eq!(put(&daemon, token).status, 401);
    }
    let told = refused_tokens(&daemon);
    for (reason, token) in &refused {
        let of_reason: Vec<_> = told.iter().filter(|told| told["reason"] == *reason).collect();
        assert_eq!(of_reason.len(), 1, "{reason}: {told:?}");
        assert_eq!(of_reason[0]["count"], 1, "{reason}");
        assert!(of_reason[0]["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "{reason}");
        assert!(!daemon.log().text().contains(&token[..40]), "{reason}");
    }
    assert_eq!(daemon.log().count("WARN", "refused an OIDC token"), refused.len());
}

#[test]
fn refused_credentials_of_events_are_told_once_for_each_reason() {
    let aws = LocalAws::start();
    let daemon = setup(&aws).set("ENV0_S3_LOG_INGEST_TOKEN", "a-token-that-is-known").start();
    let post = |upload: Upload| daemon.send(upload.body(event("refused"))).status;
    for _ in 0..3 {
        assert_eq!(post(Upload::post(DEPLOYMENTS)), 401);
        assert_eq!(post(Upload::post(DEPLOYMENTS).bearer("a-token-of-nobody-at-all")), 401);
        assert_eq!(post(Upload::post(AUDITS).bearer(&aws.issuer.token())), 401);
    }
    let log = daemon.log();
    assert_eq!(log.count("WARN", "refused the credentials of a request for events"), 3, "{}", log.text());
    for words in ["there were none", "is none of ENV0_S3_LOG_INGEST_TOKEN", "may not write the log type"] {
        assert_eq!(log.count("WARN", words), 1, "{words}");
    }
    assert!(!log.text().contains("a-token-of-nobody"), "no token is in a log");
}

#[test]
fn tokens_that_sts_refuses_never_push_out_the_one_that_gave_a_session() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let (daemon, books) = (setup.start(), Books::default());
    assert_eq!(put(&daemon, &aws.issuer.token()).status, 204);
    wait_until("the first session", || aws.sts.sessions_issued() == 1);
    for days in 2..22 {
        let claims = json!({ "sub": format!("auth0|stranger-{days}"), "exp": now_seconds() + days * DAY_SECONDS });
        assert_eq!(put(&daemon, &aws.issuer.mint(claims)).status, 204);
    }
    assert_eq!(tokens(&daemon).len(), 16);
    aws.expire_all_sessions();
    let ids = books.ids(2);
    assert_eq!(daemon.post(DEPLOYMENTS, Books::body(&ids)).accepted(), 2);
    books.acknowledge(ids);
    books.balance(&aws, &setup);
}

#[test]
fn tokens_that_sts_refuses_never_push_out_a_good_one_while_sts_is_away() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    aws.sts.set_down();
    let daemon = setup.start();
    assert_eq!(put(&daemon, &aws.issuer.token()).status, 204);
    for days in 2..32 {
        let claims = json!({ "sub": "auth0|stranger", "exp": now_seconds() + days * DAY_SECONDS });
        assert_eq!(put(&daemon, &aws.issuer.mint(claims)).status, 204);
    }
    aws.sts.heal();
    assert_eq!(daemon.post(DEPLOYMENTS, event("waits")).accepted(), 1);
    wait_until_delivered(&setup);
}

#[test]
fn a_token_that_is_not_kept_is_not_said_to_be_accepted() {
    let aws = LocalAws::start();
    aws.sts.set_down();
    let daemon = setup(&aws).start();
    for days in 2..18 {
        assert_eq!(put(&daemon, &aws.issuer.mint(json!({ "exp": now_seconds() + days * DAY_SECONDS }))).status, 204);
    }
    let ends_first = aws.issuer.token();
    for _ in 0..2 {
        let answer = put(&daemon, &ends_first);
        assert_eq!((answer.status, answer.header("retry-after").is_some()), (503, true), "{}", answer.text());
    }
    assert_eq!(daemon.metric("token_handovers_total{outcome=\"no_room\"}"), Some(2.0));
    assert_eq!(daemon.metric("token_handovers_total{outcome=\"accepted\"}"), Some(16.0));
    assert_eq!(post(&daemon, DEPLOYMENTS, &ends_first, event("let in all the same")).accepted(), 1);
}

#[test]
fn with_a_session_a_token_that_ends_before_those_at_hand_is_no_error() {
    let aws = LocalAws::start();
    let daemon = setup(&aws).start();
    assert_eq!(put(&daemon, &aws.issuer.token()).status, 204);
    wait_until("the first session", || aws.sts.sessions_issued() == 1);
    for days in 2..22 {
        assert_eq!(put(&daemon, &aws.issuer.mint(json!({ "exp": now_seconds() + days * DAY_SECONDS }))).status, 204);
    }
    let ends_first = aws.issuer.mint(json!({ "exp": now_seconds() + 600 }));
    let answer = put(&daemon, &ends_first);
    assert_eq!(answer.status, 204, "{}", answer.text());
    assert_eq!(daemon.metric("token_handovers_total{outcome=\"no_room\"}"), Some(1.0));
}

#[test]
fn a_token_file_that_is_being_written_opens_no_other_type() {
    let typed = "a-typed-token-of-deployments";
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let path = setup.folder().join("tokens");
    std::fs::write(&path, format!("{typed} env0-deployments\n")).unwrap();
    let setup = setup.set("ENV0_S3_LOG_INGEST_TOKEN_FILE", path.to_str().unwrap());
    let daemon = setup.start();
    let audits = || post(&daemon, AUDITS, typed, event("must not come in")).status;
    assert_eq!(audits(), 401);
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(typed.as_bytes()).unwrap();
    wait_until("the log says that the file is not whole", || {
        assert_eq!(audits(), 401);
        daemon.log().count("ERROR", "its last line has no line break") > 0
    });
    file.write_all(b" env0-deployments\nanother-token-for-anything\n").unwrap();
    drop(file);
    wait_until("the new token counts", || {
        assert_eq!(audits(), 401);
        post(&daemon, AUDITS, "another-token-for-anything", event("comes in")).status == 200
    });
    assert_eq!(daemon.log().count("ERROR", "its last line has no line break"), 1, "once per change");
    assert_eq!(post(&daemon, DEPLOYMENTS, typed, event("its own type")).status, 200);
}
