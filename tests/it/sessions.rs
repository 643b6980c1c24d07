//! Sessions end, tokens are missing, STS refuses: events wait, and then arrive.

use std::time::Duration;

use serde_json::json;

use crate::harness::{Books, DEPLOYMENTS, Daemon, Setup, wait_until};
use crate::local_aws::issuer::now_seconds;
use crate::local_aws::sts::StsError;
use crate::local_aws::{Fault, LocalAws};

fn send(daemon: &Daemon, books: &Books) {
    let ids = books.ids(3);
    assert_eq!(daemon.post(DEPLOYMENTS, Books::body(&ids)).accepted(), 3);
    books.acknowledge(ids);
}

#[test]
fn a_session_that_ends_before_its_time_is_replaced_and_the_batch_sent_again() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let (daemon, books) = (setup.start(), Books::default());
    send(&daemon, &books);
    books.balance(&aws, &setup);
    assert_eq!(aws.sts.sessions_issued(), 1);
    aws.expire_all_sessions();
    send(&daemon, &books);
    books.balance(&aws, &setup);
    assert_eq!((aws.sts.sessions_issued(), aws.s3.put_count(), aws.s3.objects().len()), (2, 3, 2));
}

#[test]
fn a_session_that_the_store_no_longer_knows_is_replaced_too() {
    let aws = LocalAws::start();
    aws.s3.inject(Fault::invalid_access_key().times(1));
    let setup = Setup::new(&aws);
    let (daemon, books) = (setup.start(), Books::default());
    send(&daemon, &books);
    books.balance(&aws, &setup);
    assert_eq!((aws.sts.sessions_issued(), aws.s3.put_count()), (2, 2));
}

#[test]
fn sessions_of_seconds_are_refreshed_ahead_while_events_flow() {
    let aws = LocalAws::start();
    aws.sts.set_session_lifetime(Duration::from_secs(3));
    let setup = Setup::new(&aws);
    let (daemon, books) = (setup.start(), Books::default());
    wait_until("the third session is handed out", || {
        send(&daemon, &books);
        aws.sts.sessions_issued() >= 3
    });
    books.balance(&aws, &setup);
}

#[test]
fn a_token_that_comes_shortly_before_its_end_is_exchanged_once_more_before_it() {
    let aws = LocalAws::start();
    let end = now_seconds() + 20;
    let _daemon = Setup::new(&aws).set("ENV0_OIDC_TOKEN", aws.issuer.mint(json!({ "exp": end }))).start();
    wait_until("it is exchanged twice", || aws.sts.sessions_issued() == 2);
    assert!(now_seconds() <= end, "not in time");
}

#[test]
fn without_a_token_events_wait_and_the_log_says_what_for() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).unset("ENV0_OIDC_TOKEN");
    let file = setup.folder().join("token");
    let setup = setup.set("ENV0_S3_LOG_OIDC_TOKEN_FILE", file.to_str().unwrap());
    let (daemon, books) = (setup.start(), Books::default());
    send(&daemon, &books);
    wait_until("the log names the file", || daemon.log().text().contains("ENV0_S3_LOG_OIDC_TOKEN_FILE"));
    std::fs::write(&file, aws.issuer.token()).unwrap();
    books.balance(&aws, &setup);
}

#[test]
fn an_sts_that_fails_for_a_while_delays_and_loses_nothing() {
    let aws = LocalAws::start();
    aws.sts.fail_next(1, StsError::idp_communication());
    aws.sts.fail_next(1, StsError::throttling());
    let setup = Setup::new(&aws);
    let (daemon, books) = (setup.start(), Books::default());
    send(&daemon, &books);
    books.balance(&aws, &setup);
    assert!(aws.sts.exchanges().len() >= 3);
}

#[test]
fn a_refusal_names_the_likely_causes() {
    let aws = LocalAws::start();
    aws.sts.set_tag_session_allowed(false);
    let setup = Setup::new(&aws);
    let (daemon, books) = (setup.start(), Books::default());
    send(&daemon, &books);
    wait_until("the log names sts:TagSession", || daemon.log().text().contains("sts:TagSession"));
    aws.sts.set_tag_session_allowed(true);
    books.balance(&aws, &setup);
}

#[test]
fn a_duration_over_the_roles_maximum_steps_down_to_an_hour() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_SESSION_DURATION", "43200");
    let (daemon, books) = (setup.start(), Books::default());
    send(&daemon, &books);
    books.balance(&aws, &setup);
    let asked: Vec<_> = aws.sts.exchanges().iter().map(|exchange| exchange.duration_seconds).collect();
    assert_eq!(asked, [Some(43_200), Some(3600)]);
    assert!(daemon.log().text().contains("43200"), "{}", daemon.log().text());
    let instance = &aws.s3.objects()[0].metadata["env0-instance"];
    assert_eq!(aws.sts.exchanges()[0].role_session_name, format!("env0-s3-logs-{instance}"));
}
