//! Settings that change from one start to the next: all of it is stored once.

use std::collections::BTreeMap;

use chrono::{TimeDelta, Utc};

use crate::harness::{Daemon, wait_until};
use crate::local_aws::LocalAws;
use crate::local_env0::audits::{Event, event, event_without_id};
use crate::local_env0::deployments::Deployment;
use crate::local_env0::{Fault, LocalEnv0, ORGANIZATION};
use crate::pull_audits::from;
use crate::pull_deployments::{environment, setup};
use crate::pull_kills::killed_before_the_place;

/// How often each event is in the bucket, by its id.
fn stored(aws: &LocalAws) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for line in aws.s3.lines() {
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let id = line["id"].as_str().or(line["eventId"].as_str()).unwrap();
        *counts.entry(id.to_owned()).or_default() += 1;
    }
    counts
}

/// Waits until a round of each of `types` has begun after now and brought all there was.
fn a_round_later(daemon: &Daemon, types: usize) {
    let rounds = || daemon.metric("pull_rounds_total{outcome=\"succeeded\"}").unwrap_or_default();
    let before = rounds();
    wait_until("each log type has had two rounds", || rounds() >= before + 2.0 * types as f64);
}

#[test]
fn no_setting_that_changes_between_two_starts_doubles_an_event_or_leaves_one_out() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let at = Utc::now() - TimeDelta::minutes(1);
    let with = |number: usize, member: &str| {
        let json = event(number, at).json.replace("\"ratio\"", &format!("{member},\"ratio\""));
        Event { json, ..event(number, at) }
    };
    let secret = with(1, "\"customEnv0EnvironmentVariables\":{\"oidcToken\":\"canary\"}");
    let long = with(2, &format!("\"text\":\"{}\"", "x".repeat(100_000)));
    env0.world().audits = vec![secret, long, event(3, at)].into();
    env0.world().environments = vec![environment("env-1", vec![Deployment::running("d-1", "s", 3)])];
    let setup = from(setup(&aws, &env0), at - TimeDelta::minutes(1)).unset("ENV0_S3_LOG_PULL");
    let once = |audits: usize, lines: usize| {
        let audits = (1..=audits).map(|number| (format!("audit-{number}"), 1));
        audits.chain((0..lines).map(|number| (format!("s-{number}"), 1))).collect::<BTreeMap<_, _>>()
    };

    let setup = setup.set("ENV0_S3_LOG_MAX_EVENT_BYTES", "64KiB");
    let daemon = setup.start();
    wait_until("all of it is stored", || aws.s3.line_count() == 6);
    daemon.kill();

    let setup = setup.set("ENV0_S3_LOG_REDACT", "off").unset("ENV0_S3_LOG_MAX_EVENT_BYTES");
    let setup = setup.set("ENV0_S3_LOG_PULL_FROM", (at - TimeDelta::days(1)).to_rfc3339());
    let daemon = setup.start();
    a_round_later(&daemon, 2);
    assert_eq!(stored(&aws), once(3, 3));
    daemon.kill();

    // One type is switched off, and what happens in it meanwhile comes when it is on again.
    let setup = setup.unset("ENV0_S3_LOG_REDACT").set("ENV0_S3_LOG_PULL", "env0-audits");
    let daemon = setup.start();
    env0.world().audits.push(event(4, Utc::now()));
    env0.world().environments[0].deployments[0].steps[0].lines = 7;
    a_round_later(&daemon, 1);
    wait_until("the new event is stored", || stored(&aws) == once(4, 3));
    daemon.kill();
    let setup = setup.set("ENV0_S3_LOG_PULL", "env0-deployments");
    env0.world().audits.push(event(5, Utc::now()));
    let daemon = setup.start();
    wait_until("the new lines are stored", || stored(&aws) == once(4, 7));
    daemon.kill();
    let setup = setup.unset("ENV0_S3_LOG_PULL");
    let daemon = setup.start();
    wait_until("the event from between is stored", || stored(&aws).len() == 12);
    a_round_later(&daemon, 2);
    assert_eq!(stored(&aws), once(5, 7));
}

#[test]
fn events_without_an_id_come_once_although_their_secret_is_no_longer_redacted() {
    const HOLDER: &str = "\"customEnv0EnvironmentVariables\":{\"oidcToken\":\"canary\"}";
    for (before, after) in [("on", "off"), ("off", "on")] {
        let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
        let happens = |number: usize, text: &str| {
            let event = event_without_id(number, Utc::now() - TimeDelta::seconds(1));
            let json = event.json.replace("\"ratio\"", &format!("{HOLDER},\"text\":\"{text}\",\"ratio\""));
            env0.world().audits.push(Event { json, ..event });
        };
        // The second one is cut.
        ["short", &"x".repeat(100_000)].iter().enumerate().for_each(|(number, text)| happens(number, text));
        let page = format!("{{\"events\":[{{\"message\":\"a\",{HOLDER}}}],\"hasMoreLogs\":false}}");
        env0.break_down("/deployments/d-1/steps/tf%3Aapply/log", Fault::Json(page.leak()));
        env0.world().environments = vec![environment("env-1", vec![Deployment::running("d-1", "tf:apply", 1)])];
        let setup = from(setup(&aws, &env0), Utc::now() - TimeDelta::hours(1)).unset("ENV0_S3_LOG_PULL");
        let setup = setup.set("ENV0_S3_LOG_REDACT", before).set("ENV0_S3_LOG_MAX_EVENT_BYTES", "64KiB");
        let daemon = setup.start();
        wait_until("what there is is stored", || aws.s3.line_count() == 3);
        a_round_later(&daemon, 2);
        // One more is in the spool alone when the process ends: its place can't be written.
        let (folder, aside) = (setup.spool().join("pull"), setup.folder().join("aside"));
        std::fs::rename(&folder, &aside).unwrap();
        std::fs::write(&folder, "").unwrap();
        happens(2, "in the spool");
        let is_sealed = || setup.spool_files("env0-audits").iter().any(|name| name.ends_with(".sealed"));
        wait_until("its batch is sealed", is_sealed);
        daemon.kill();
        std::fs::remove_file(&folder).unwrap();
        std::fs::rename(&aside, &folder).unwrap();

        // Another attempt at the step goes on in the same log.
        env0.world().environments[0].deployments[0].steps[0].retries = 1;
        let setup = setup.set("ENV0_S3_LOG_REDACT", after);
        let daemon = setup.start();
        a_round_later(&daemon, 2);
        wait_until("the last one is stored", || aws.s3.line_count() >= 4);
        a_round_later(&daemon, 2);
        assert_eq!(aws.s3.line_count(), 4, "{before}");
    }
}

#[test]
fn events_without_an_id_come_once_whatever_length_they_are_cut_to() {
    const HOLDER: &str = "\"customEnv0EnvironmentVariables\":{\"oidcToken\":\"canary\"}";
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let long = "x".repeat(100_000);
    let event = event_without_id(1, Utc::now() - TimeDelta::seconds(1));
    let json = event.json.replace("\"ratio\"", &format!("{HOLDER},\"text\":\"{long}\",\"ratio\""));
    env0.world().audits = vec![Event { json, ..event }].into();
    // By its first event a step's log is known again after a retry.
    let page = format!("{{\"events\":[{{\"message\":\"{long}\"}},{{\"message\":\"b\"}}],\"hasMoreLogs\":false}}");
    env0.break_down("/deployments/d-1/steps/tf%3Aapply/log", Fault::Json(page.leak()));
    env0.world().environments = vec![environment("env-1", vec![Deployment::running("d-1", "tf:apply", 1)])];
    let mut setup = from(setup(&aws, &env0), Utc::now() - TimeDelta::hours(1)).unset("ENV0_S3_LOG_PULL");
    for (start, (limit, redact)) in
        [("64KiB", "on"), ("1MiB", "on"), ("16KiB", "off"), ("1MiB", "on")].into_iter().enumerate()
    {
        setup = setup.set("ENV0_S3_LOG_MAX_EVENT_BYTES", limit).set("ENV0_S3_LOG_REDACT", redact);
        env0.world().environments[0].deployments[0].steps[0].retries = start;
        let daemon = setup.start();
        wait_until("what there is is stored", || aws.s3.line_count() >= 3);
        a_round_later(&daemon, 2);
        assert_eq!(aws.s3.line_count(), 3, "{limit}, {redact}");
        daemon.kill();
    }
}

#[test]
fn an_event_in_the_spool_alone_comes_once_whatever_limits_the_next_starts_have() {
    const LOG: &str = "/deployments/d-1/steps/tf%3Aapply/log";
    let own = |id: &str| {
        let [long, middle, long_id] = [100_000, 40_000, 300].map(|length| "x".repeat(length));
        [
            "\"text\":\"short\"".to_owned(),
            format!("\"text\":\"{middle}\""),
            format!("\"text\":\"{long}\""),
            format!("\"customEnv0EnvironmentVariables\":{{\"oidcToken\":\"canary\"}},\"text\":\"{long}\""),
            format!("\"{id}\":\"e-1\",\"text\":\"{long}\""),
            format!("\"{id}\":\"{long_id}\",\"text\":\"{long}\""),
            format!("\"{id}\":\"{long}\""),
        ]
    };
    let check = |log_type: &str, limits: [&str; 3]| {
        let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
        let (path, id) = if log_type == "env0-audits" { ("/audit/events", "id") } else { (LOG, "eventId") };
        let events = own(id);
        for (number, own) in events.iter().enumerate() {
            let event = event_without_id(number, Utc::now() - TimeDelta::seconds(1));
            let json = event.json.replacen('{', &format!("{{\"mark\":\"event-{number}\",{own},"), 1);
            env0.world().audits.push(Event { json, ..event });
        }
        let page = events.iter().enumerate().map(|(number, own)| format!("{{\"mark\":\"event-{number}\",{own}}}"));
        let page = format!("{{\"events\":[{}],\"hasMoreLogs\":false}}", page.collect::<Vec<_>>().join(","));
        let page = Fault::Json(page.leak());
        env0.break_down(LOG, page.clone());
        env0.world().environments = vec![environment("env-1", vec![Deployment::running("d-1", "tf:apply", 1)])];
        let setup = from(setup(&aws, &env0), Utc::now() - TimeDelta::hours(1)).set("ENV0_S3_LOG_PULL", log_type);
        let setup = setup.set("ENV0_S3_LOG_PULL_ORGANIZATION_ID", ORGANIZATION);
        let setup = setup.set("ENV0_S3_LOG_MAX_EVENT_BYTES", limits[0]);
        let setup = killed_before_the_place(setup, &aws, &env0, log_type, path);

        // The second start gets nothing of env0.
        env0.break_down("/", Fault::Status(400, "{}", None));
        let setup = setup.set("ENV0_S3_LOG_MAX_EVENT_BYTES", limits[1]);
        let daemon = setup.start();
        wait_until("a round fails", || daemon.metric("pull_rounds_total{outcome=\"failed\"}") >= Some(1.0));
        daemon.kill();
        env0.heal();
        env0.break_down(LOG, page);
        let setup = setup.set("ENV0_S3_LOG_MAX_EVENT_BYTES", limits[2]).set("ENV0_S3_LOG_REDACT", "off");
        let daemon = setup.start();
        a_round_later(&daemon, 1);
        wait_until("the spool is empty", || {
            daemon.metric(&format!("events_spooled{{type=\"{log_type}\"}}")) == Some(0.0)
        });
        for number in 0..events.len() {
            let mark = format!("event-{number}\"");
            let lines = aws.s3.lines();
            // Within the beginning of an event that is cut, its quotes are escaped.
            let count = lines.iter().filter(|line| line.replace('\\', "").contains(&mark)).count();
            assert_eq!(count, 1, "{log_type} {limits:?}: {mark}");
        }
    };
    std::thread::scope(|scope| {
        for limits in [["64KiB", "1MiB", "16KiB"], ["1MiB", "16KiB", "64KiB"], ["16KiB", "16KiB", "1MiB"]] {
            for log_type in ["env0-audits", "env0-deployments"] {
                scope.spawn(move || check(log_type, limits));
            }
        }
    });
}

#[test]
fn a_pull_asks_env0_through_the_configured_proxy() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().audits = vec![event(1, Utc::now() - TimeDelta::minutes(1))].into();
    // A name that nothing answers to. The local env0 stands in for the proxy: it sees the whole address in each request.
    let setup = from(crate::pull_audits::setup(&aws, &env0), Utc::now() - TimeDelta::hours(1))
        .set("ENV0_S3_LOG_API_URL", "http://api.env0.invalid")
        .set("ENV0_S3_LOG_ALLOW_HTTP", "true")
        .set("HTTP_PROXY", env0.url())
        .set("NO_PROXY", "127.0.0.1,localhost");
    let _daemon = setup.start();
    wait_until("the event is stored", || aws.s3.line_count() == 1);
    assert!(env0.asked("http://api.env0.invalid/audit/events?") >= 1, "{:?}", env0.world().requests);
}
