//! `check` tries CloudWatch Logs, and names the action or the value that is missing.

use serde_json::Value;

use crate::harness::{AUDITS, DEPLOYMENTS, Finished, Setup, event, wait_until};
use crate::local_aws::{CLOUDWATCH_ROLE_ARN, LocalAws, LogsFault};

const DENIED: Option<i32> = Some(77);
const CONFIGURATION: Option<i32> = Some(78);
const UNAVAILABLE: Option<i32> = Some(69);

fn setup(aws: &LocalAws) -> Setup {
    let setup = Setup::new(aws).set("ENV0_CLOUDWATCH_LOG_GROUP_NAME_PREFIX", "team/");
    aws.cloudwatch_environment().into_iter().fold(setup, |setup, (name, value)| setup.set(name, value))
}

/// The steps of that name: verdict, and what is said.
fn steps(finished: &Finished, name: &str) -> Vec<(String, String)> {
    let report: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{finished:?}"));
    let steps = report["steps"].as_array().unwrap().iter().filter(|step| step["name"] == name);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    steps
        .map(|step| (text(&step["verdict"]), format!("{} -> {}", text(&step["detail"]), text(&step["remedy"]))))
        .collect()
}

#[track_caller]
fn assert_step(finished: &Finished, name: &str, verdict: &str, parts: &[&str]) {
    let found = steps(finished, name);
    assert!(!found.is_empty(), "no {name} in {}", finished.stdout);
    for (of_this_one, said) in found {
        assert_eq!(of_this_one, verdict, "{said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{parts:?} in {said}");
    }
}

#[test]
fn cloudwatch_is_tried_without_writing_and_with_write_by_one_event_a_group() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let looked = setup.run("check --json");
    assert_eq!(looked.code, Some(0), "{}", looked.stdout);
    assert_step(&looked, "cloudwatch", "ok", &["a session of", CLOUDWATCH_ROLE_ARN]);
    assert_step(&looked, "log-group", "ok", &["team/env0-", "is not there; it is made"]);
    assert!(aws.logs.groups().is_empty(), "a check without --write makes nothing");

    let wrote = setup.run("check --write --json");
    assert_eq!(wrote.code, Some(0), "{}", wrote.stdout);
    assert_step(&wrote, "log-write", "ok", &["wrote one event to team/env0-", "env0-s3-logs-check"]);
    for group in ["team/env0-deployments", "team/env0-audits"] {
        assert_eq!(aws.logs.messages(group), [r#"{"check":"env0-s3-logs"}"#]);
        assert_eq!(aws.logs.streams(group), ["env0-s3-logs-check"]);
    }
}

#[test]
fn without_its_variables_nobody_asks_for_cloudwatch() {
    let aws = LocalAws::start();
    let finished = Setup::new(&aws).run("check --json");
    assert!(steps(&finished, "cloudwatch").is_empty() && aws.logs.requests().is_empty(), "{}", finished.stdout);
}

#[test]
fn each_action_that_the_role_lacks_is_named() {
    for action in ["PutLogEvents", "CreateLogStream", "CreateLogGroup"] {
        let aws = LocalAws::start();
        aws.logs.deny(action);
        let finished = setup(&aws).run("check --write --json");
        assert_eq!(finished.code, DENIED, "{}", finished.stdout);
        assert_step(&finished, "log-write", "fail", &[&format!("logs:{action} on the log group team/env0-")]);
    }
    let aws = LocalAws::start();
    aws.logs.deny("DescribeLogStreams");
    let finished = setup(&aws).run("check --json");
    assert_eq!(finished.code, Some(0), "delivery needs no such action: {}", finished.stdout);
    assert_step(&finished, "log-group", "warn", &["DescribeLogStreams at 127.0.0.1", "allow logs:DescribeLogStreams"]);
}

#[test]
fn a_wrong_region_role_or_endpoint_is_named() {
    let aws = LocalAws::start();
    let elsewhere = setup(&aws).set("ENV0_CLOUDWATCH_AWS_REGION", "eu-central-1").run("check --json");
    assert_eq!(elsewhere.code, CONFIGURATION, "{}", elsewhere.stdout);
    assert_step(&elsewhere, "log-group", "fail", &["set ENV0_CLOUDWATCH_AWS_REGION, now eu-central-1"]);

    aws.sts.refuse_role(CLOUDWATCH_ROLE_ARN);
    let refused = setup(&aws).run("check --json");
    assert_eq!(refused.code, DENIED, "{}", refused.stdout);
    assert_step(&refused, "sts", "ok", &[]);
    assert_step(&refused, "cloudwatch", "fail", &["STS refuses the token", CLOUDWATCH_ROLE_ARN]);
    aws.sts.heal();

    aws.logs.inject(LogsFault::foreign(200, "<html>Please log in</html>").on("DescribeLogStreams"));
    let somebody_else = setup(&aws).run("check --json");
    assert_eq!(somebody_else.code, UNAVAILABLE, "{}", somebody_else.stdout);
    assert_step(&somebody_else, "log-group", "fail", &["AWS_ENDPOINT_URL_CLOUDWATCH_LOGS"]);
}

#[test]
fn the_buckets_role_alone_may_not_write_to_cloudwatch() {
    let aws = LocalAws::start();
    let finished = setup(&aws).set("ENV0_CLOUDWATCH_ROLE_ARN", crate::local_aws::ROLE_ARN).run("check --write --json");
    assert_eq!(finished.code, DENIED, "{}", finished.stdout);
    assert_step(&finished, "log-write", "fail", &["logs:PutLogEvents"]);
}

#[test]
fn without_a_token_of_its_own_check_tells_how_the_running_daemon_fares() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let daemon = setup.start();
    let beside = || {
        let admin = daemon.admin.to_string();
        let check = self::setup(&aws).unset("ENV0_OIDC_TOKEN").set("ENV0_S3_LOG_ADMIN_ADDR", admin);
        check.run("check --json")
    };
    let status = || daemon.admin_get("/status").unwrap().json()["cloudwatch"].clone();
    wait_until("the session", || !status()["credentials"]["session_expires_at"].is_null());
    assert_step(&beside(), "log-group", "skipped", &["has written nothing to team/env0-"]);
    assert_step(&beside(), "cloudwatch", "ok", &["the running daemon holds a session"]);

    aws.logs.deny("PutLogEvents");
    for path in [DEPLOYMENTS, AUDITS] {
        assert_eq!(daemon.post(path, event("denied")).accepted(), 1);
    }
    wait_until("the denials", || status()["types"].as_array().unwrap().iter().all(|of| !of["error"].is_null()));
    let denied = beside();
    assert_eq!(denied.code, DENIED, "{}", denied.stdout);
    assert_step(&denied, "log-group", "fail", &["can't write to team/env0-", "logs:PutLogEvents on the log group"]);

    let with_a_token = self::setup(&aws).set("ENV0_S3_LOG_ADMIN_ADDR", daemon.admin.to_string()).run("check --json");
    assert_eq!(with_a_token.code, DENIED, "{}", with_a_token.stdout);
    assert_step(
        &with_a_token,
        "log-group",
        "fail",
        &["can't write to team/env0-", "logs:PutLogEvents on the log group"],
    );

    aws.logs.heal();
    wait_until("the events", || status()["types"].as_array().unwrap().iter().all(|of| !of["last_sent"].is_null()));
    assert_step(&beside(), "log-group", "ok", &["the running daemon wrote to team/env0-"]);
}

#[test]
fn check_beside_a_daemon_judges_its_failure_as_it_would_its_own() {
    for (code, message, exit_code) in [
        ("UnrecognizedClientException", "The security token included in the request is invalid.", DENIED),
        ("InvalidSignatureException", "Signature expired: 20261129T100000Z is now earlier than", DENIED),
        ("InvalidSignatureException", "Credential should be scoped to a valid region.", CONFIGURATION),
        ("AccessDeniedByNobodyException", "The name alone says nothing.", UNAVAILABLE),
    ] {
        let aws = LocalAws::start();
        let setup = setup(&aws);
        let daemon = setup.start();
        aws.logs.inject(LogsFault::error(400, code, message));
        for path in [DEPLOYMENTS, AUDITS] {
            assert_eq!(daemon.post(path, event("refused")).accepted(), 1);
        }
        let types = || daemon.admin_get("/status").unwrap().json()["cloudwatch"]["types"].clone();
        let is_told = || types().as_array().unwrap().iter().all(|of| of["error"]["code"] == code);
        wait_until("the daemon tells it", is_told);
        let admin = daemon.admin.to_string();
        let beside = self::setup(&aws).unset("ENV0_OIDC_TOKEN").set("ENV0_S3_LOG_ADMIN_ADDR", admin);
        let mut finished = beside.run("check --json");
        // After a refused session the daemon tells for a moment that it has none.
        wait_until("check tells it, too", || {
            let tells = !finished.stdout.contains("there is no session");
            if !tells {
                finished = beside.run("check --json");
            }
            tells
        });
        assert_eq!(finished.code, exit_code, "{code}: {}", finished.stdout);
        assert_step(&finished, "log-group", "fail", &[code]);
    }
}
