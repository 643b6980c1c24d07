//! What may answer in env0's place, and what env0 may answer that is nearly JSON: nothing
//! is lost, and it is told rightly.

use chrono::{DateTime, TimeDelta, Utc};

use crate::harness::{Setup, wait_until};
use crate::local_aws::LocalAws;
use crate::local_env0::audits::{Event, event};
use crate::local_env0::deployments::Deployment;
use crate::local_env0::{Fault, LocalEnv0};
use crate::pull_audits::{self, AUDIT_EVENTS, a_round_later};
use crate::pull_deployments::{self, all_arrive_once, environment};

const LOG: &str = "/deployments/d-1/steps/tf%3Aapply/log";

fn audits(aws: &LocalAws, env0: &LocalEnv0) -> Setup {
    pull_audits::from(pull_audits::setup(aws, env0), Utc::now() - TimeDelta::hours(1))
}

#[test]
fn a_proxys_page_in_place_of_a_log_is_told_as_a_proxys_and_the_log_comes_later() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let ended = Deployment::running("d-1", "tf:apply", 3).ended();
    env0.world().environments = vec![environment("env-1", vec![ended])];
    // Four attempts, and each status would be judged in a way of its own if it came from env0.
    let empty = Fault::Status(404, "", None);
    for fault in [Fault::Page(404), Fault::Page(400), empty, Fault::Page(403)] {
        env0.inject(LOG, fault);
    }
    let setup = pull_deployments::setup(&aws, &env0);
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 1);
    assert_eq!(daemon.log().count("ERROR", "status 403, is not env0's: it is a page of HTML"), 1);
    assert_eq!(daemon.log().complaints().len(), 1, "{}", daemon.log().text());
}

#[test]
fn a_proxys_page_blames_neither_the_key_nor_its_role() {
    for status in [401, 403] {
        let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
        env0.break_down(AUDIT_EVENTS, Fault::Page(status));
        let setup = audits(&aws, &env0);
        let daemon = setup.start();
        wait_until("the log tells of a proxy", || daemon.log().count("ERROR", "so a proxy or another server") == 1);
        assert!(!daemon.log().text().contains("the API key"), "{}", daemon.log().text());
        env0.heal();
        a_round_later(&daemon);
    }
}

/// Two events at this moment, the first with bytes that no JSON has.
fn odd_events() -> &'static [u8] {
    let [first, second] = [1, 2].map(|number| event(number, Utc::now()).json);
    let page = format!("\u{feff}{{\"events\":[{first},{second}]}}");
    let (before, after) = page.split_once("auth0|1").unwrap();
    [before.as_bytes(), b"\xff\xc3\x00\x1b[0m\n\\ud800", after.as_bytes()].concat().leak()
}

#[test]
fn bytes_that_no_json_has_hold_up_no_audit_event_and_are_counted_once() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.break_down(AUDIT_EVENTS, Fault::Bytes(odd_events()));
    let setup = audits(&aws, &env0);
    let daemon = setup.start();
    wait_until("both events are stored", || aws.s3.line_count() == 2);
    a_round_later(&daemon);
    let lines = aws.s3.lines();
    let mended = "\"actorId\":\"\u{fffd}\u{fffd}\\u0000\\u001b[0m\\u000a\\ud800\"";
    assert!(lines.len() == 2 && lines[0].contains(mended), "{lines:?}");
    assert_eq!(daemon.metric("replaced_bytes_total{type=\"env0-audits\"}"), Some(2.0));
    assert_eq!(daemon.log().complaints().len(), 0, "{}", daemon.log().text());
}

#[test]
fn a_byte_of_a_step_log_that_is_not_utf8_holds_up_no_line_and_is_counted() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = vec![environment("env-1", vec![Deployment::running("d-1", "tf:apply", 3).ended()])];
    let page = b"{\"events\":[{\"eventId\":\"e1\",\"message\":\"\xff\"},{\"eventId\":\"e2\"}],\"hasMoreLogs\":false}";
    env0.break_down(LOG, Fault::Bytes(page));
    let setup = pull_deployments::setup(&aws, &env0);
    let daemon = setup.start();
    wait_until("both events and the end are stored", || aws.s3.line_count() == 3);
    assert!(aws.s3.lines()[0].starts_with("{\"eventId\":\"e1\",\"message\":\"\u{fffd}\","), "{:?}", aws.s3.lines());
    assert_eq!(daemon.metric("replaced_bytes_total{type=\"env0-deployments\"}"), Some(1.0));
}

#[test]
fn a_value_that_json_does_not_have_blocks_no_page_and_is_stored_as_a_string() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let [odd, plain] = [1, 2].map(|number| event(number, Utc::now()).json);
    let odd = odd.replace("1.50", "NaN").replace("\"number\":1", "\"number\":[-Infinity, 1]");
    let page = format!("{{\"events\":[{odd},{plain}]}}");
    env0.break_down(AUDIT_EVENTS, Fault::Bytes(page.into_bytes().leak()));
    env0.world().environments = vec![environment("env-1", vec![Deployment::running("d-1", "tf:apply", 3).ended()])];
    let log = b"{\"events\":[{\"eventId\":\"e1\",\"value\":Infinity},{\"eventId\":\"e2\"}],\"hasMoreLogs\":false}";
    env0.break_down(LOG, Fault::Bytes(log));
    let setup = audits(&aws, &env0).set("ENV0_S3_LOG_PULL", "env0-audits,env0-deployments");
    let daemon = setup.start();
    wait_until("all events and the end are stored", || aws.s3.line_count() == 5);
    a_round_later(&daemon);
    let lines = aws.s3.lines();
    let expected = odd.replace("NaN", "\"NaN\"").replace("-Infinity", "\"-Infinity\"");
    assert!(lines.contains(&expected) && lines.contains(&plain) && lines.len() == 5, "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("{\"eventId\":\"e1\",\"value\":\"Infinity\",")), "{lines:?}");
    assert_eq!(daemon.log().count("ERROR", "a value of an event is not JSON"), 2, "{}", daemon.log().text());
}

#[test]
fn what_is_not_an_object_among_events_is_stored_as_a_message_and_told() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = vec![environment("env-1", vec![Deployment::running("d-1", "tf:apply", 3).ended()])];
    let log = b"{\"events\":[\"a line\",{\"eventId\":\"e2\"},[1,2],null],\"hasMoreLogs\":false}";
    env0.break_down(LOG, Fault::Bytes(log));
    let setup = pull_deployments::setup(&aws, &env0);
    let daemon = setup.start();
    wait_until("all elements and the end are stored", || aws.s3.line_count() == 5);
    a_round_later(&daemon);
    let lines = aws.s3.lines();
    for begins in ["{\"message\":\"a line\",\"deploymentLogId\":\"d-1\",", "{\"message\":[1,2],", "{\"message\":null,"]
    {
        assert_eq!(lines.iter().filter(|line| line.starts_with(begins)).count(), 1, "{begins}: {lines:?}");
    }
    assert_eq!(lines.len(), 5);
    assert_eq!(daemon.log().count("ERROR", "an event is not an object"), 1, "{}", daemon.log().text());
    assert!(daemon.admin_get("/status").unwrap().text().contains("\"events_odd\":3"));
}

#[test]
fn two_events_with_one_id_are_both_stored_and_one_that_changes_later_is_not_again() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let at = Utc::now() - TimeDelta::seconds(1);
    let form = |number: usize, at: DateTime<Utc>| {
        let json = event(1, at).json.replace("1.50", &format!("{number}"));
        Event { json, ..event(1, at) }
    };
    env0.world().audits = vec![form(1, at), form(2, at)].into();
    let setup = audits(&aws, &env0);
    let daemon = setup.start();
    wait_until("both are stored", || aws.s3.line_count() == 2);
    // In another order, the first one in another form, and after a kill.
    env0.world().audits = vec![form(2, at), form(3, at)].into();
    a_round_later(&daemon);
    assert_eq!(daemon.log().count("ERROR", "two events have one id"), 1, "{}", daemon.log().text());
    daemon.kill();
    env0.world().audits.reverse();
    let daemon = setup.start();
    a_round_later(&daemon);
    assert_eq!(aws.s3.line_count(), 2, "{:?}", aws.s3.lines());
    assert_eq!(daemon.log().count("ERROR", "comes with other bytes now"), 1, "{}", daemon.log().text());
    // One of another time is another event.
    env0.world().audits.push(form(4, at + TimeDelta::milliseconds(1)));
    wait_until("it is stored", || aws.s3.line_count() == 3);
}

#[test]
fn a_long_retry_after_is_cut_to_a_minute_and_told_from_the_first_answer_on() {
    let years = 200 * 365 * 86_400;
    for throttled in [Fault::Status(429, "{}", Some(86_400)), Fault::ThrottledUntil(years)] {
        let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
        env0.break_down(AUDIT_EVENTS, throttled);
        let setup = audits(&aws, &env0);
        let daemon = setup.start();
        let told = "429, too many requests; the next request goes out after the 60 s that it asks for";
        wait_until("the status tells of it", || daemon.admin_get("/status").unwrap().text().contains(told));
        assert_eq!((daemon.log().count("WARN", told), env0.asked(AUDIT_EVENTS)), (1, 1));
    }
}
