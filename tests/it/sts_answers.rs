//! Whatever answers in STS's place: who it was and what to do is told, and the daemon goes on.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::harness::{DEPLOYMENTS, Finished, Setup, event, wait_for, wait_until, wait_until_delivered};
use crate::local_aws::sts::StsError;
use crate::local_aws::{LocalAws, ROLE_ARN};
use crate::tokens::{put, setup};

const BLOCK_PAGE: &str =
    "<html><head><title>Blocked</title></head><body>This page was blocked by policy.</body></html>";
const UNAVAILABLE: Option<i32> = Some(69);
const DENIED: Option<i32> = Some(77);

fn sts_step(finished: &Finished) -> Value {
    let report: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{finished:?}"));
    report["steps"].as_array().unwrap().iter().find(|step| step["name"] == "sts").unwrap().clone()
}

/// Runs `check`; its exit code, and the words of its step `sts`.
fn check(setup: &Setup) -> (Option<i32>, String) {
    let finished = setup.run("check --json");
    let step = sts_step(&finished);
    (finished.code, format!("{} -> {}", step["detail"].as_str().unwrap(), step["remedy"].as_str().unwrap()))
}

#[track_caller]
fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert!(!text.contains("nhandled") && !text.contains("null"), "a library's words: {text}");
}

#[test]
fn who_answers_in_the_place_of_sts_is_told() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let server = aws.sts.url().replace("http://", "");
    let endpoint: &[&str] = &[&server, "is not STS", "AWS_ENDPOINT_URL_STS"];
    let other_service = "<ErrorResponse><Error><Code>InvalidAction</Code><Message>no</Message></Error></ErrorResponse>";
    let s3 = "<Error><Code>MethodNotAllowed</Code><Message>not allowed</Message></Error>";
    for (status, kind, body, expected) in [
        (403, "text/html", BLOCK_PAGE, [endpoint, &["HTTP 403, text/html"]].concat()),
        (200, "text/html", BLOCK_PAGE, [endpoint, &["HTTP 200, text/html"]].concat()),
        (404, "text/plain", "not found", endpoint.to_vec()),
        (400, "text/xml", other_service, endpoint.to_vec()),
        (405, "application/xml", s3, endpoint.to_vec()),
        (502, "text/html", "", endpoint.to_vec()),
        (407, "text/html", BLOCK_PAGE, vec![&server, "the proxy", "HTTP 407", "HTTPS_PROXY"]),
    ] {
        aws.sts.answer_in_its_place(status, kind, body);
        let (code, words) = check(&setup);
        assert_eq!(code, UNAVAILABLE, "{words}");
        assert_has(&words, &expected);
        assert!(!words.contains("nothing answers"), "{words}");
    }
}

#[test]
fn what_answers_where_a_proxy_is_set_may_be_the_proxy_which_is_named() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    // A server, but no proxy.
    let other = setup.environment()["AWS_ENDPOINT_URL_S3"].clone();
    let (_, words) = check(
        &setup
            .set("HTTP_PROXY", &other)
            .set("AWS_ENDPOINT_URL_STS", "http://sts.example.com")
            .set("ENV0_S3_LOG_ALLOW_HTTP", "true"),
    );
    let proxy = format!("leads through a proxy (HTTP_PROXY is {})", other.replace("http://", ""));
    assert_has(&words, &["sts.example.com:80 is not STS", &proxy, "NO_PROXY"]);
}

#[test]
fn a_connection_that_fails_names_host_and_port() {
    let aws = LocalAws::start();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (code, words) = check(&Setup::new(&aws).set("AWS_ENDPOINT_URL_STS", format!("http://{nobody}")));
    assert_eq!(code, UNAVAILABLE, "{words}");
    assert_has(&words, &[&nobody, "nothing answers"]);
    aws.sts.set_down();
    let (_, words) = check(&Setup::new(&aws));
    assert_has(&words, &[&aws.sts.url().replace("http://", "")]);
}

#[test]
fn what_sts_says_leads_to_the_remedy_for_it() {
    let aws = LocalAws::start();
    let issuer = aws.issuer.url();
    let refusals: [(StsError, Option<i32>, &[&str]); 4] = [
        (StsError::idp_communication(), UNAVAILABLE, &["let AWS fetch the keys of", &issuer]),
        (
            StsError::new(
                400,
                "InvalidIdentityToken",
                "Couldn't retrieve verification key from your identity provider",
            ),
            UNAVAILABLE,
            &["let AWS fetch the keys of", &issuer],
        ),
        (
            StsError::not_authorized(),
            DENIED,
            &[
                "in this order: the role's trust policy lacks sts:TagSession; ",
                ROLE_ARN,
                "aud hoMiq9PdkRh9LUvVpH4wIErWg50VSG1b",
            ],
        ),
        (StsError::new(404, "NoSuchEntity", "no"), DENIED, &["there is no role", ROLE_ARN, "ENV0_S3_LOG_ROLE_ARN"]),
    ];
    for (error, code, expected) in refusals {
        aws.sts.fail_all(error);
        let (found, words) = check(&Setup::new(&aws));
        assert_eq!(found, code, "{words}");
        assert_has(&words, expected);
        assert!(!words.contains("let this machine reach STS"), "{words}");
    }
    aws.sts.heal();
    let of_pod = |issuer: &str, audience: &str| {
        let claims =
            json!({"iss": issuer, "sub": "system:serviceaccount:a:b", "aud": [audience], "exp": 4_102_444_800_i64});
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
    };
    let provider = "No OpenIDConnect provider found in your account for https://x";
    for (issuer, audience, remedy) in [
        (
            "https://oidc.example.com/c",
            "https://kubernetes.default.svc",
            "mount one with the audience sts.amazonaws.com",
        ),
        ("https://kubernetes.default.svc.cluster.local", "sts.amazonaws.com", "known inside the cluster alone"),
    ] {
        let setup = Setup::new(&aws).set("ENV0_OIDC_TOKEN", of_pod(issuer, audience));
        for error in [StsError::new(400, "InvalidIdentityToken", provider), StsError::idp_communication()] {
            aws.sts.fail_all(error);
            let (_, words) = check(&setup);
            assert_has(&words, &[remedy, "config/README.md#the-token"]);
        }
    }
}

#[test]
fn the_length_of_a_session_is_named_first_and_only_where_it_can_be_the_cause() {
    let aws = LocalAws::start();
    aws.sts.fail_all(StsError::not_authorized());
    let longer = "the role's maximum session is shorter than ENV0_S3_LOG_SESSION_DURATION; ";
    for (seconds, is_named) in [("900", false), ("3600", false), ("3601", true)] {
        let (_, words) = check(&Setup::new(&aws).set("ENV0_S3_LOG_SESSION_DURATION", seconds));
        let first = if is_named { longer } else { "" };
        let begin =
            format!("in this order: {first}the role's trust policy lacks sts:TagSession; its sub or aud condition");
        assert_has(&words, &[&begin, ROLE_ARN, "config/README.md#no-token"]);
        assert_eq!(words.contains(longer), is_named, "{seconds}: {words}");
    }
}

#[test]
fn a_token_that_sts_repeats_shows_nowhere() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let mut daemon = setup.start();
    let token = aws.issuer.token();
    let parts: Vec<&str> = token.split('.').collect();
    let message = format!("Value '{token}' or {} or\n{}\u{7f}[31m, {}", parts[1], &parts[2][..40], "x".repeat(30_000));
    aws.sts.fail_all(StsError::new(400, format!("Code{}", &parts[2][20..60]), message));
    assert_eq!(put(&daemon, &token).status, 204);
    let status = || daemon.admin_get("/status").unwrap();
    wait_until("STS has refused it", || !status().json()["credentials"]["last_error"].is_null());
    wait_until("the log says it", || daemon.log().count("ERROR", "STS refuses every token") > 0);
    let check = setup.run("check");
    let outputs = [status().text(), daemon.admin_get("/metrics").unwrap().text(), check.stdout, daemon.log().text()];
    daemon.terminate();
    for output in outputs {
        let piece = parts.iter().flat_map(|part| part.as_bytes().windows(16)).find_map(|piece| {
            let piece = std::str::from_utf8(piece).unwrap();
            output.contains(piece).then_some(piece)
        });
        assert_eq!(piece, None, "a piece of the token in {output}");
        assert!(!output.contains('\u{7f}') && output.lines().all(|line| line.len() < 10_000), "{output}");
    }
}

fn session_document(access_key: &str, secret: &str, token: &str) -> String {
    format!(
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{access_key}</AccessKeyId>\
         <SecretAccessKey>{secret}</SecretAccessKey><SessionToken>{token}</SessionToken>\
         <Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
         </AssumeRoleWithWebIdentityResponse>"
    )
}

#[test]
fn a_session_that_no_request_can_carry_is_refused_when_it_comes() {
    let aws = LocalAws::start();
    for (field, document) in [
        ("AccessKeyId", session_document("ASIA\nEXAMPLE", "secret", "session")),
        ("AccessKeyId", session_document("", "secret", "session")),
        ("SecretAccessKey", session_document("ASIAEXAMPLE", "sec&#10;ret", "session")),
        ("SessionToken", session_document("ASIAEXAMPLE", "secret", "ses&#127;sion")),
        ("SessionToken", session_document("ASIAEXAMPLE", "secret", "s\u{e9}ssion")),
    ] {
        aws.sts.answer_in_its_place(200, "text/xml", document);
        let setup = Setup::new(&aws);
        let daemon = setup.start();
        assert_eq!(daemon.post(DEPLOYMENTS, event("waits")).accepted(), 1);
        let error = wait_for("the refusal", || {
            let status = daemon.admin_get("/status").unwrap().json();
            Some(status["credentials"]["last_error"].clone()).filter(|error| !error.is_null())
        });
        let words = error["message"].as_str().unwrap();
        assert!(words.contains(&format!("its {field} ")), "{words}");
        assert_has(error["remedy"].as_str().unwrap(), &["AWS_ENDPOINT_URL_STS"]);
        aws.sts.heal();
        wait_until_delivered(&setup);
    }
}

#[test]
fn times_from_the_ends_of_the_calendar_end_no_process() {
    for (expiration, date) in [
        ("9999-12-31T23:59:59Z", "Fri, 31 Dec 9999 23:59:59 GMT"),
        ("1970-01-01T00:00:00Z", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ("0001-01-01T00:00:00Z", "Mon, 01 Jan 0001 00:00:00 GMT"),
        ("2001-01-01T00:00:00Z", "Sat, 01 Jan 10000 00:00:00 GMT"),
    ] {
        let aws = LocalAws::start();
        aws.sts.set_times(expiration, date);
        let setup = Setup::new(&aws);
        let daemon = setup.start();
        assert_eq!(daemon.post(DEPLOYMENTS, event("goes on")).accepted(), 1);
        wait_until_delivered(&setup);
        let end = daemon.admin_get("/status").unwrap().json()["credentials"]["session_expires_at"].clone();
        assert!(end.as_str().is_some_and(|end| end.starts_with("20")), "{expiration}: {end}");
    }
}

#[test]
fn a_token_that_ends_with_the_calendar_delivers_whichever_way_it_comes() {
    for end in
        [json!(253_402_300_799_u64), json!(8_210_266_876_799_u64), json!(i64::MAX), json!(u64::MAX), json!(1e300)]
    {
        let aws = LocalAws::start();
        let token = aws.issuer.mint(json!({ "exp": end }));
        let url = aws.issuer.serve_token(&token);
        for (variable, value) in [("ENV0_OIDC_TOKEN", token.clone()), ("ENV0_S3_LOG_OIDC_TOKEN_URL", url)] {
            let setup = setup(&aws).set(variable, value);
            let daemon = setup.start();
            let tokens = || daemon.admin_get("/status").unwrap().json()["credentials"]["tokens"].clone();
            wait_until("the token is at hand", || !tokens()[0].is_null());
            assert_eq!(tokens()[0]["expires_at"], "9999-12-31T23:59:59.000Z", "{end} {variable}");
            assert_eq!(put(&daemon, &token).status, 204);
            assert_eq!(daemon.post(DEPLOYMENTS, event("goes on")).accepted(), 1);
        }
        let setup = setup(&aws);
        let daemon = setup.start();
        assert_eq!(put(&daemon, &token).status, 204, "{end}");
        assert!(daemon.admin_get("/status").unwrap().text().contains("9999-12-31"), "{end}");
        let check = setup.set("ENV0_OIDC_TOKEN", &token).run("check");
        assert!(check.stdout.contains("until 9999-12-31"), "{}", check.stdout);
    }
}
