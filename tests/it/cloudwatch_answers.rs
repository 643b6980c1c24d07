//! What the daemon makes of CloudWatch's answers, and of the sessions of CloudWatch's role.

use serde_json::{Value, json};

use crate::harness::{DEPLOYMENTS, Daemon, Setup, event, wait_until};
use crate::local_aws::issuer::SUBJECT;
use crate::local_aws::{CLOUDWATCH_ROLE_ARN, LocalAws, LogsFault};
use crate::tokens::put;

const GROUP: &str = "env0-deployments";

fn setup(aws: &LocalAws) -> Setup {
    aws.cloudwatch_environment().into_iter().fold(Setup::new(aws), |setup, (name, value)| setup.set(name, value))
}

/// Whether the event with this id is in the log group.
fn has(aws: &LocalAws, id: &str) -> bool {
    let holds = |line: &String| serde_json::from_str::<Value>(line).unwrap()["id"] == id;
    aws.logs.messages(GROUP).iter().any(holds)
}

fn send(daemon: &Daemon, id: &str) {
    assert_eq!(daemon.post(DEPLOYMENTS, event(id)).accepted(), 1);
}

#[test]
fn a_token_handed_over_opens_both_roles_and_each_exchange_counts_for_its_own() {
    let aws = LocalAws::start();
    let setup = setup(&aws).unset("ENV0_OIDC_TOKEN").set("ENV0_S3_LOG_OIDC_SUBJECT", SUBJECT);
    let daemon = setup.start();
    send(&daemon, "handed over");
    assert_eq!(put(&daemon, &aws.issuer.token()).status, 204);
    wait_until("CloudWatch has it", || has(&aws, "handed over"));
    let succeeded = |name: &str| daemon.metric(&format!("{name}{{outcome=\"succeeded\"}}"));
    assert_eq!((succeeded("sts_exchanges_total"), succeeded("cloudwatch_sts_exchanges_total")), (Some(1.0), Some(1.0)));
    let end = |name: &str| daemon.metric(name).unwrap();
    assert!(end("credentials_expiry_timestamp_seconds") > 0.0);
    assert!(end("cloudwatch_credentials_expiry_timestamp_seconds") > 0.0);
}

#[test]
fn a_role_for_cloudwatch_that_sts_refuses_keeps_s3_from_nothing_and_is_said() {
    let aws = LocalAws::start();
    aws.sts.refuse_role(CLOUDWATCH_ROLE_ARN);
    let setup = setup(&aws);
    let daemon = setup.start();
    send(&daemon, "refused");
    wait_until("S3 has it", || aws.s3.line_count() == 1);
    wait_until("the refusal is told", || daemon.log().count("ERROR", "CloudWatch Logs: STS refuses every token") == 1);
    assert_eq!(daemon.metric("sts_exchanges_total{outcome=\"refused\"}"), Some(0.0));
    aws.sts.heal();
    wait_until("CloudWatch has it", || has(&aws, "refused"));
}

#[test]
fn a_session_that_cloudwatch_refuses_as_expired_is_replaced_and_the_event_arrives() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let daemon = setup.start();
    send(&daemon, "first");
    wait_until("CloudWatch has it", || has(&aws, "first"));
    aws.expire_all_sessions();
    send(&daemon, "second");
    wait_until("CloudWatch has that, too", || has(&aws, "second"));
    let said = daemon.log().count("WARN", "CloudWatch Logs refused the session as expired");
    assert_eq!(said, 1, "{}", daemon.log().text());
}

#[test]
fn a_lost_answer_brings_the_event_a_second_time_and_a_5xx_or_a_throttle_none() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let daemon = setup.start();
    send(&daemon, "first");
    wait_until("the group is there", || has(&aws, "first"));
    for (message, fault, copies) in [
        ("lost", LogsFault::lose_response(), 2),
        ("dropped", LogsFault::drop_connection(), 1),
        ("throttled", LogsFault::throttling(), 1),
        ("unavailable", LogsFault::unavailable(), 1),
        ("failed", LogsFault::internal_failure(), 1),
    ] {
        aws.logs.inject(fault.times(1));
        send(&daemon, message);
        wait_until("nothing waits", || {
            has(&aws, message) && daemon.metric("cloudwatch_copies_bytes{type=\"env0-deployments\"}") == Some(0.0)
        });
        let count = aws.logs.messages(GROUP).iter().filter(|line| line.contains(message)).count();
        assert_eq!(count, copies, "{message}");
    }
    assert_eq!(aws.s3.line_count(), 6, "S3 has each once");
}

#[test]
fn a_success_that_is_no_answer_of_cloudwatchs_delivers_nothing() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let daemon = setup.start();
    send(&daemon, "first");
    wait_until("the group is there", || has(&aws, "first"));
    for (id, fault) in [
        ("throttled", LogsFault::success(r#"{"__type":"ThrottlingException","message":"Rate exceeded"}"#)),
        ("foreign", LogsFault::foreign(200, "{}")),
        ("page", LogsFault::foreign(200, "<html>Please log in</html>")),
        ("accepted", LogsFault::foreign(202, r#"{"nextSequenceToken":"1"}"#)),
    ] {
        aws.logs.inject(fault.times(1));
        send(&daemon, id);
        wait_until(id, || has(&aws, id));
    }
    let told = daemon.log();
    assert!(told.text().contains("with an error document, ThrottlingException"), "{}", told.text());
}

#[test]
fn events_that_cloudwatch_takes_and_does_not_keep_are_counted_by_reason() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let daemon = setup.start();
    let skipped = |reason: &str| {
        daemon.metric(&format!("cloudwatch_skipped_events_total{{type=\"env0-deployments\",reason=\"{reason}\"}}"))
    };
    send(&daemon, "first");
    wait_until("the group is there", || has(&aws, "first"));
    for (field, index, reason) in [
        ("tooOldLogEventEndIndex", 1, "too_old"),
        ("tooNewLogEventStartIndex", 0, "too_new"),
        ("expiredLogEventEndIndex", 1, "expired"),
    ] {
        aws.logs.inject(LogsFault::reject(json!({ field: index })).times(1));
        send(&daemon, reason);
        wait_until(reason, || skipped(reason) == Some(1.0));
    }
    aws.logs.inject(LogsFault::invalid_parameter().times(1));
    send(&daemon, "refused");
    wait_until("refused", || skipped("refused") == Some(1.0));
    assert!(!has(&aws, "refused"));
}
