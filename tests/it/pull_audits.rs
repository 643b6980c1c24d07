//! Audit events are pulled from env0's API: each once, whatever env0 doesn't publish, whatever goes wrong.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;

use crate::harness::{Daemon, Setup, never_within, wait_until};
use crate::local_aws::LocalAws;
use crate::local_aws::issuer::now_seconds;
use crate::local_env0::audits::{Event, event, event_without_id};
use crate::local_env0::deployments::Environment;
use crate::local_env0::{Fault, KEY, Key, LastKey, LocalEnv0, ORGANIZATION, Order, Shape};

pub(crate) const AUDIT_EVENTS: &str = "/audit/events";

/// A daemon that has an API key and nothing else that could bring events.
pub(crate) fn setup(aws: &LocalAws, env0: &LocalEnv0) -> Setup {
    let setup = Setup::new(aws).unset("ENV0_S3_LOG_INGEST_TOKEN").set("ENV0_S3_LOG_PULL", "env0-audits");
    env0.environment().into_iter().fold(setup, |setup, (name, value)| setup.set(name, value))
}

pub(crate) fn from(setup: Setup, from: DateTime<Utc>) -> Setup {
    setup.set("ENV0_S3_LOG_PULL_FROM", from.to_rfc3339())
}

/// Waits until every event of the trail is in the bucket; each must be there once, byte for byte.
pub(crate) fn all_arrive_once(aws: &LocalAws, env0: &LocalEnv0) {
    let expected: Vec<String> = env0.world().audits.iter().map(|event| event.json.clone()).collect();
    wait_until("as many lines as events are in the bucket", || aws.s3.line_count() >= expected.len());
    let counts = |lines: &[String]| {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        lines.iter().for_each(|line| *counts.entry(line.clone()).or_default() += 1);
        counts
    };
    let (stored, expected) = (counts(&aws.s3.lines()), counts(&expected));
    for (line, count) in &expected {
        assert_eq!(stored.get(line), Some(count), "how often {line} is stored");
    }
    assert_eq!(stored.len(), expected.len());
    assert!(aws.s3.objects().iter().all(|object| object.key.contains("env0-audits/")));
}

/// Waits until a round has begun after now and brought all there was.
pub(crate) fn a_round_later(daemon: &Daemon) {
    let rounds = || daemon.metric("pull_rounds_total{outcome=\"succeeded\"}").unwrap_or_default();
    let before = rounds();
    wait_until("two rounds have passed", || rounds() >= before + 2.0);
}

/// A trail of `days`, thinly spread, with more than a page of events in one millisecond and with some without an id.
pub(crate) fn trail(days: i64) -> (DateTime<Utc>, Vec<Event>) {
    let start = Utc::now() - TimeDelta::days(days);
    let at = |index: usize| start + TimeDelta::minutes(days * 1440 * index as i64 / 1500);
    let mut events: Vec<Event> = (0..1400).map(|index| event(index, at(index))).collect();
    events.extend((1400..1450).map(|index| event_without_id(index, at(index))));
    events.extend((2000..4300).map(|index| event(index, at(700))));
    (start - TimeDelta::seconds(1), events)
}

#[test]
fn five_variables_bring_every_audit_event_of_the_history_into_the_bucket_once() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let (start, events) = trail(90);
    env0.world().audits = events.into();
    let setup = from(setup(&aws, &env0), start);
    let daemon = setup.start();
    all_arrive_once(&aws, &env0);
    a_round_later(&daemon);
    all_arrive_once(&aws, &env0);
    let status = daemon.admin_get("/status").unwrap().text();
    assert!(status.contains(&format!("\"organization\":\"{ORGANIZATION}\"")), "{status}");
    let position = daemon.metric("pull_position_timestamp_seconds{type=\"env0-audits\"}").unwrap();
    assert!((Utc::now().timestamp() as f64 - position) < 60.0, "{position}");
    assert_eq!(daemon.metric("pulled_events_total{type=\"env0-audits\"}"), Some(3750.0));
}

#[test]
fn every_event_comes_once_whichever_way_env0_orders_keys_and_ends_its_pages() {
    let orders = [Order::NewestFirst, Order::OldestFirst, Order::None];
    let keys = [Key::Next, Key::LastAndBehind, Key::LastAndAt];
    let last_keys = [LastKey::Absent, LastKey::Null, LastKey::Empty, LastKey::Unchanged];
    // Each pair of two of the four meets at least once.
    let check = |index: usize| {
        let (order, key) = (orders[index % 3], keys[(index / 3 + index) % 3]);
        let shape =
            Shape { order, key, last_key: last_keys[index % 4], ends_count: (index / 4 + index).is_multiple_of(2) };
        let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
        let (start, events) = trail(3);
        env0.world().shape = shape;
        env0.world().audits = events.into();
        let setup = from(setup(&aws, &env0), start);
        let daemon = setup.start();
        all_arrive_once(&aws, &env0);
        a_round_later(&daemon);
        all_arrive_once(&aws, &env0);
    };
    std::thread::scope(|scope| {
        let checks: Vec<_> = (0..12).map(|index| scope.spawn(move || check(index))).collect();
        checks.into_iter().for_each(|check| check.join().unwrap());
    });
}

#[test]
fn a_history_of_many_pages_and_windows_is_stored_in_the_order_of_its_times() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let start = Utc::now() - TimeDelta::days(2);
    // More than is held at once, and then long enough a time for several windows. env0 gives the newest first.
    let at = |number: i64| match number {
        ..12_000 => TimeDelta::milliseconds(100 * number),
        _ => TimeDelta::hours(number - 11_990),
    };
    let events = (0..12_020).map(|number| event(number as usize, start + at(number)));
    env0.world().audits = events.collect::<Vec<_>>().into();
    let mut daemon = from(setup(&aws, &env0), start).set("ENV0_S3_LOG_BATCH_MAX_AGE", "10m").start();
    let pulled = || daemon.metric("pulled_events_total{type=\"env0-audits\"}");
    wait_until("all are pulled", || pulled() == Some(12_020.0));
    assert_eq!(daemon.terminate().code(), Some(0));
    let expected: Vec<String> = env0.world().audits.iter().map(|event| event.json.clone()).collect();
    assert!(aws.s3.lines() == expected, "{} objects", aws.s3.objects().len());
}

#[test]
fn an_event_that_appears_ten_minutes_late_behind_newer_ones_is_stored_once() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let setup = from(setup(&aws, &env0), Utc::now() - TimeDelta::hours(1));
    env0.world().audits = vec![event(1, Utc::now() - TimeDelta::seconds(1))].into();
    let daemon = setup.start();
    all_arrive_once(&aws, &env0);
    env0.world().audits.push(event(2, Utc::now() - TimeDelta::minutes(10)));
    all_arrive_once(&aws, &env0);
    a_round_later(&daemon);
    all_arrive_once(&aws, &env0);
}

#[test]
fn without_a_time_to_begin_from_the_first_start_is_where_every_later_one_begins() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let setup = setup(&aws, &env0);
    let before = event(1, Utc::now() - TimeDelta::seconds(5));
    env0.world().audits = vec![before].into();
    let daemon = setup.start();
    a_round_later(&daemon);
    daemon.kill();
    // Of the time in which no daemon ran.
    env0.world().audits.push(event(2, Utc::now()));
    let daemon = setup.start();
    wait_until("the event after the first start is stored", || aws.s3.line_count() == 1);
    a_round_later(&daemon);
    assert!(aws.s3.lines()[0].contains("audit-2") && aws.s3.line_count() == 1);
}

#[test]
fn a_deployments_secret_in_a_payload_is_redacted_and_no_other_byte_changes() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let at = Utc::now() - TimeDelta::minutes(1);
    let secret = r#""customEnv0EnvironmentVariables":{"oidcToken":"canary","x":1.0}"#;
    let json = event(1, at).json.replace("\"number\":1", secret);
    env0.world().audits = vec![Event { json: json.clone(), ..event(1, at) }].into();
    let setup = from(setup(&aws, &env0), at);
    let daemon = setup.start();
    wait_until("the event is stored", || aws.s3.line_count() == 1);
    assert_eq!(aws.s3.lines()[0], json.replace("canary", "[redacted]"));
    wait_until("it is counted", || daemon.metric("events_redacted_total{type=\"env0-audits\"}") == Some(1.0));
    assert!(!setup.spool_holds("canary") && !daemon.log().text().contains("canary"));
}

#[test]
fn an_event_over_the_limit_is_stored_as_far_as_that_goes_and_the_others_come() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let at = Utc::now() - TimeDelta::minutes(1);
    let large = event(1, at).json.replace("\"ratio\"", &format!("\"text\":\"{}\",\"ratio\"", "x".repeat(100_000)));
    env0.world().audits = vec![Event { json: large, ..event(1, at) }, event(2, at)].into();
    let setup = from(setup(&aws, &env0), at).set("ENV0_S3_LOG_MAX_EVENT_BYTES", "64KiB");
    let daemon = setup.start();
    a_round_later(&daemon);
    wait_until("both are stored", || aws.s3.line_count() == 2);
    let lines = aws.s3.lines();
    let cut = lines.iter().find(|line| line.contains("cutFromBytes")).unwrap();
    assert!(cut.starts_with("{\"id\":\"audit-1\",") && cut.len() <= 65536 && cut.len() > 30_000, "{}", cut.len());
    assert!(daemon.log().text().contains("ENV0_S3_LOG_MAX_EVENT_BYTES"));
    assert!(daemon.admin_get("/status").unwrap().text().contains("\"events_cut\":1"));
}

/// The daemon says `said`, goes on, and brings everything once `env0` is well again.
fn says_and_goes_on(fault: Fault, said: &[&str]) {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().audits = vec![event(1, Utc::now() - TimeDelta::minutes(1))].into();
    env0.break_down(AUDIT_EVENTS, fault.clone());
    let setup = from(setup(&aws, &env0), Utc::now() - TimeDelta::hours(1));
    let daemon = setup.start();
    for said in said {
        wait_until(&format!("the log says {said} of {fault:?}"), || daemon.log().text().contains(said));
    }
    wait_until("the status says it", || daemon.admin_get("/status").unwrap().text().contains(said[0]));
    env0.heal();
    all_arrive_once(&aws, &env0);
    wait_until("the log says that it is over", || daemon.log().text().contains("the pull from env0 works again"));
    let log = daemon.log().text();
    assert_eq!(log.matches("the pull from env0 fails").count(), 1, "once per change of state:\n{log}");
    assert!(!log.contains(KEY.1) && !log.contains("canary"), "{log}");
}

#[test]
fn a_key_without_the_permission_is_told_which_key_and_which_permission() {
    let forbidden = Fault::Status(403, r#"{"message":"canary: Forbidden"}"#, None);
    says_and_goes_on(forbidden, &["VIEW_AUDIT_LOGS", KEY.0, "allow-list"]);
}

#[test]
fn a_key_that_env0_does_not_know_is_told_which_key_it_is() {
    says_and_goes_on(Fault::Status(401, "{}", None), &["401", KEY.0]);
}

#[test]
fn a_key_that_worked_and_is_revoked_is_told_apart_from_one_that_never_did() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let setup = from(setup(&aws, &env0), Utc::now() - TimeDelta::hours(1));
    let daemon = setup.start();
    a_round_later(&daemon);
    env0.break_down(AUDIT_EVENTS, Fault::Status(401, "{}", None));
    wait_until("the log says it", || daemon.log().text().contains("worked before"));
    env0.heal();
    env0.world().audits = vec![event(1, Utc::now())].into();
    all_arrive_once(&aws, &env0);
}

#[test]
fn a_key_of_another_organization_is_told_which_one_it_sees() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.break_down(AUDIT_EVENTS, Fault::Status(403, "{}", None));
    let setup = setup(&aws, &env0).set("ENV0_S3_LOG_PULL_ORGANIZATION_ID", "another-one");
    let daemon = setup.start();
    let said = format!("is of another organization: it sees {ORGANIZATION}");
    wait_until("the log says it", || daemon.log().text().contains(&said));
    let finished = setup.set("ENV0_S3_LOG_ADMIN_ADDR", daemon.admin.to_string()).run("check");
    assert!(finished.code == Some(77) && finished.stdout.contains(&said), "{finished:?}");
}

#[test]
fn a_daemon_whose_address_may_ask_for_nothing_is_told_of_the_allow_list() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.break_down("/", Fault::Status(403, "{}", None));
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    for said in [
        "may not even list its organizations from this address; that takes VIEW_ORGANIZATION",
        "allow-list of addresses",
    ] {
        wait_until("the log says it", || daemon.log().text().contains(said));
    }
    env0.heal();
    a_round_later(&daemon);
}

#[test]
fn a_new_key_in_the_files_is_taken_when_the_old_one_is_refused_and_on_sighup() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let setup = setup(&aws, &env0).unset("ENV0_API_KEY_ID").unset("ENV0_API_KEY_SECRET");
    let (id, secret) = (setup.folder().join("id"), setup.folder().join("secret"));
    std::fs::write(&id, "old-key-id\n").unwrap();
    std::fs::write(&secret, "old-secret-canary\n").unwrap();
    let setup = setup
        .set("ENV0_API_KEY_ID_FILE", id.to_str().unwrap())
        .set("ENV0_API_KEY_SECRET_FILE", secret.to_str().unwrap());
    let daemon = setup.start();
    wait_until("the old key is refused", || daemon.log().text().contains("401, the API key old… is not known"));
    std::fs::write(&id, KEY.0).unwrap();
    std::fs::write(&secret, KEY.1).unwrap();
    a_round_later(&daemon);
    let read = || daemon.log().count("INFO", "another API key was read");
    let before = read();
    assert!(before > 0, "{}", daemon.log().text());
    std::fs::write(&id, "swapped-secret-canary").unwrap();
    daemon.signal_hang_up();
    wait_until("SIGHUP has it read, too", || read() > before);
    assert!(!daemon.log().text().contains("canary"), "{}", daemon.log().text());
}

#[test]
fn an_answer_that_never_comes_is_given_up_and_told() {
    says_and_goes_on(Fault::Silent, &["nothing came for 20 s"]);
}

#[test]
fn an_answer_of_a_gibibyte_is_refused_by_its_header_and_told() {
    says_and_goes_on(Fault::Promised(1 << 30), &["more than 33554432 bytes"]);
}

#[test]
fn while_the_spool_is_full_nothing_is_asked_and_it_goes_on_by_itself() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let start = Utc::now() - TimeDelta::days(3);
    let text = "x".repeat(50_000);
    let large = |index: usize| {
        let event = event(index, start + TimeDelta::minutes(index as i64));
        Event { json: event.json.replace("\"ratio\"", &format!("\"text\":\"{text}\",\"ratio\"")), ..event }
    };
    env0.world().audits = (0..1000).map(large).collect::<Vec<_>>().into();
    aws.s3.hold_puts();
    let setup = from(setup(&aws, &env0), start - TimeDelta::hours(1))
        .set("ENV0_S3_LOG_SPOOL_MAX_BYTES", "32MiB")
        .set("ENV0_S3_LOG_BATCH_MAX_BYTES", "1MiB")
        .set("ENV0_S3_LOG_MAX_BODY_BYTES", "1MiB");
    let daemon = setup.start();
    wait_until("the log says that it waits", || daemon.log().text().contains("the pull from env0 waits"));
    let asked = env0.asked("/");
    // Longer than the interval between two rounds.
    never_within(Duration::from_secs(8), "env0 is asked", || env0.asked("/") != asked);
    aws.s3.release_puts();
    all_arrive_once(&aws, &env0);
}

#[test]
fn a_path_that_does_not_exist_is_told_as_a_wrong_url() {
    let gateway = Fault::Status(403, r#"{"message":"Missing Authentication Token"}"#, None);
    says_and_goes_on(gateway, &["ENV0_S3_LOG_API_URL", "the path doesn't exist"]);
}

#[test]
fn a_page_of_html_is_told_as_a_proxys() {
    says_and_goes_on(Fault::Html, &["it is a page of HTML", "GET /audit/events"]);
}

#[test]
fn an_answer_without_a_documented_member_is_told_with_request_and_member() {
    says_and_goes_on(Fault::Json(r#"{"items":["canary"]}"#), &["it lacks the member events", "GET /audit/events"]);
}

#[test]
fn an_answer_without_an_end_is_given_up_and_told() {
    says_and_goes_on(Fault::Endless, &["more than 33554432 bytes"]);
}

#[test]
fn answers_that_break_off_and_servers_that_fail_for_a_while_are_asked_again() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().audits = vec![event(1, Utc::now() - TimeDelta::minutes(1))].into();
    let setup = from(setup(&aws, &env0), Utc::now() - TimeDelta::hours(1));
    for fault in [Fault::Cut, Fault::Dropped, Fault::Status(429, "", None)] {
        env0.inject(AUDIT_EVENTS, fault);
    }
    let daemon = setup.start();
    all_arrive_once(&aws, &env0);
    assert!(!daemon.log().text().contains("the pull from env0 fails"), "{}", daemon.log().text());
}

#[test]
fn a_429_is_waited_out_for_as_long_as_it_asks() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().audits = vec![event(1, Utc::now() - TimeDelta::minutes(1))].into();
    env0.inject(AUDIT_EVENTS, Fault::Status(429, "", Some(2)));
    let setup = from(setup(&aws, &env0), Utc::now() - TimeDelta::hours(1));
    let daemon = setup.start();
    wait_until("the 429 came", || {
        daemon.metric("pull_requests_total{endpoint=\"audit_events\",outcome=\"throttled\"}") == Some(1.0)
    });
    let throttled = Instant::now();
    all_arrive_once(&aws, &env0);
    // The metric is read a little after the answer came.
    assert!(throttled.elapsed() >= Duration::from_millis(1500), "{:?}", throttled.elapsed());
}

#[test]
fn a_429_that_names_a_date_is_waited_out_until_then() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.inject(AUDIT_EVENTS, Fault::ThrottledUntil(8));
    let setup = from(setup(&aws, &env0), Utc::now() - TimeDelta::hours(1));
    let _daemon = setup.start();
    wait_until("the 429 came", || env0.asked(AUDIT_EVENTS) >= 1);
    let throttled = Instant::now();
    wait_until("it is asked again", || env0.asked(AUDIT_EVENTS) >= 2);
    // A date has whole seconds, and the first request is noticed a little late.
    assert!(throttled.elapsed() >= Duration::from_secs(6), "{:?}", throttled.elapsed());
}

#[test]
fn an_organization_that_is_configured_or_listed_twice_is_pulled_once() {
    let listed = r#"[{"id":"51d48700-4aee-5a5d-a8a5-27a5c1471ac6"},{"id":"51d48700-4aee-5a5d-a8a5-27a5c1471ac6"}]"#;
    assert!(listed.contains(ORGANIZATION));
    for configured in [None, Some(format!("{ORGANIZATION}, {ORGANIZATION}"))] {
        let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
        env0.break_down("/organizations", Fault::Json(listed));
        env0.world().audits = vec![event(1, Utc::now() - TimeDelta::minutes(1))].into();
        let setup = from(setup(&aws, &env0), Utc::now() - TimeDelta::hours(1));
        let setup = configured.into_iter().fold(setup, |setup, ids| setup.set("ENV0_S3_LOG_PULL_ORGANIZATION_ID", ids));
        let daemon = setup.start();
        all_arrive_once(&aws, &env0);
        a_round_later(&daemon);
        all_arrive_once(&aws, &env0);
        let status = daemon.admin_get("/status").unwrap().text();
        assert_eq!(status.matches(&format!("\"organization\":\"{ORGANIZATION}\"")).count(), 1, "{status}");
    }
}

#[test]
fn a_place_that_cannot_be_read_is_never_begun_anew() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().audits = vec![event(1, Utc::now() - TimeDelta::minutes(1))].into();
    let setup = from(setup(&aws, &env0), Utc::now() - TimeDelta::hours(1));
    let daemon = setup.start();
    all_arrive_once(&aws, &env0);
    daemon.kill();
    let place = setup.spool().join("pull").join(format!("env0-audits_{ORGANIZATION}.json"));
    let good = std::fs::read(&place).unwrap();
    std::fs::write(&place, "{").unwrap();
    let daemon = setup.start();
    wait_until("the log names the file", || daemon.log().text().contains("not a place of the pull"));
    std::fs::write(&place, good).unwrap();
    a_round_later(&daemon);
    all_arrive_once(&aws, &env0);
}

#[test]
fn check_tries_the_key_and_each_permission_and_says_what_env0_forwards_by_itself() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = vec![Environment::new("env-1")];
    env0.break_down("/log-forwarding", Fault::Json(r#"[{"type":"S3","auditLogForwarding":true}]"#));
    let setup = setup(&aws, &env0).unset("ENV0_S3_LOG_PULL");
    let finished = setup.run("check");
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let env0_forwards = "env0 forwards by itself, too: S3";
    for said in
        [KEY.0, "readable, and still empty", "1 environment in 1 request of", "(1 request a minute)", env0_forwards]
    {
        assert!(finished.stdout.contains(said), "{said}: {finished:?}");
    }
    env0.break_down(AUDIT_EVENTS, Fault::Status(403, "{}", None));
    let finished = setup.run("check");
    assert_eq!(finished.code, Some(77), "{finished:?}");
    assert!(finished.stdout.contains("VIEW_AUDIT_LOGS") && !finished.stdout.contains(KEY.1), "{finished:?}");
}

#[test]
fn two_daemons_of_one_host_that_pull_the_same_into_one_bucket_are_noticed() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let (first, second) = (setup(&aws, &env0), setup(&aws, &env0));
    let (daemon, said) = (first.start(), "another daemon on this host pulls");
    a_round_later(&daemon);
    // `check` tells it from the daemon that runs with the same configuration.
    let first = first.set("ENV0_S3_LOG_ADMIN_ADDR", daemon.admin.to_string());
    let (of_first, of_second) = (first.run("check"), second.run("check"));
    assert!(of_second.stdout.contains(said) && !of_first.stdout.contains(said), "{of_first:?} {of_second:?}");
    let second = second.start();
    wait_until("the second one says it", || second.log().text().contains(said));
    assert!(!daemon.log().text().contains(said));
    let who = format!("(process {}, spool {})", daemon.process_id(), first.spool().display());
    assert!(second.log().text().contains(&who) && of_second.stdout.contains(&who), "{who}: {}", second.log().text());
}

/// The kubelet's way to write a token: a folder of its own, to which `..data` points from one moment to the next.
fn project(volume: &std::path::Path, version: &str, token: &str) {
    std::fs::create_dir(volume.join(version)).unwrap();
    std::fs::write(volume.join(version).join("token"), token).unwrap();
    std::os::unix::fs::symlink(version, volume.join("..data_tmp")).unwrap();
    std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
}

#[test]
fn a_pods_service_account_token_is_enough_and_its_replacement_is_used() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let subject = "system:serviceaccount:logs:env0-s3-logs";
    aws.sts.trust_subject(subject);
    aws.sts.set_session_lifetime(Duration::from_secs(3));
    let token = |hours: u64| {
        aws.issuer.mint(json!({
            "aud": ["sts.amazonaws.com"], "azp": null, "sub": subject, "exp": now_seconds() + hours * 3600,
            "kubernetes.io": {"namespace": "logs", "pod": {"name": "env0-s3-logs-pull-0"}},
        }))
    };
    // env0's issuer, as it is without a setting.
    let setup = setup(&aws, &env0).unset("ENV0_OIDC_TOKEN").unset("ENV0_S3_LOG_OIDC_ISSUER");
    let volume = setup.folder().join("volume");
    std::fs::create_dir(&volume).unwrap();
    let (first, second) = (token(1), token(2));
    project(&volume, "..2026_11_29_1", &first);
    std::os::unix::fs::symlink("..data/token", volume.join("token")).unwrap();
    let setup = setup.set("ENV0_S3_LOG_OIDC_TOKEN_FILE", volume.join("token").to_str().unwrap());
    let finished = setup.run("check");
    let lines = format!("/:sub\": \"{subject}\"");
    assert!(finished.stdout.contains(&lines) && finished.stdout.contains("sts.amazonaws.com"), "{finished:?}");
    let daemon = setup.start();
    env0.world().audits = vec![event(1, Utc::now())].into();
    all_arrive_once(&aws, &env0);
    assert!(aws.sts.exchanges().iter().any(|exchange| exchange.token == first && exchange.error.is_none()));
    project(&volume, "..2026_11_29_2", &second);
    std::fs::remove_dir_all(volume.join("..2026_11_29_1")).unwrap();
    wait_until("the second token is exchanged", || aws.sts.exchanges().iter().any(|exchange| exchange.token == second));
    env0.world().audits.push(event(2, Utc::now()));
    all_arrive_once(&aws, &env0);
    assert_eq!(daemon.log().count("ERROR", ""), 0, "{}", daemon.log().text());
}
