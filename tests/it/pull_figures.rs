//! How fast a history of audit events is pulled while deployments are followed, and in how much memory. Prints its
//! figures.

use std::fs;
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};

use crate::harness::{Daemon, Setup, wait_until};
use crate::local_aws::LocalAws;
use crate::local_env0::audits::{Event, event};
use crate::local_env0::deployments::{Deployment, Environment, LogShape};
use crate::local_env0::{Fault, LocalEnv0, ORGANIZATION};

/// The most that the daemon had in RAM, in KiB.
pub(crate) fn peak_kib(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.process_id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    peak.unwrap()
}

/// The most that a debug build may have in RAM that only pulls: 24 MiB of its own, and 52 MiB for what it pulls.
const PEAK_MAX_KIB: u64 = (24 + 52) * 1024;

#[test]
fn large_audit_events_and_large_pages_of_logs_take_the_pulls_share_of_memory() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let start = Utc::now() - TimeDelta::minutes(30);
    let text = "x".repeat(100_000);
    let large = |number: usize| {
        let event = event(number, start + TimeDelta::milliseconds(600 * number as i64));
        Event { json: event.json.replace("\"ratio\"", &format!("\"text\":\"{text}\",\"ratio\"")), ..event }
    };
    env0.world().audits = (0..800).map(large).collect::<Vec<_>>().into();
    env0.world().log_shape = LogShape { page_events: usize::MAX / 2, ..LogShape::default() };
    let followed = |lines: usize| Environment {
        deployments: vec![Deployment::running(&format!("d-{lines}"), "tf:apply", lines)],
        ..Environment::new(&format!("env-{lines}"))
    };
    // Pages of 29, 12 and 6 MB.
    env0.world().environments = [250_000, 100_000, 50_000].map(followed).into();
    let setup = Setup::new(&aws)
        .unset("ENV0_S3_LOG_INGEST_TOKEN")
        .set("ENV0_S3_LOG_PULL_FROM", (start - TimeDelta::seconds(1)).to_rfc3339());
    let setup = env0.environment().into_iter().fold(setup, |setup, (name, value)| setup.set(name, value));
    let daemon = setup.start();
    let pulled =
        |log_type: &str| daemon.metric(&format!("pulled_events_total{{type=\"{log_type}\"}}")).unwrap_or_default();
    wait_until("all audit events are pulled", || pulled("env0-audits") == 800.0);
    wait_until("all logs are pulled", || pulled("env0-deployments") == 400_000.0);
    let peak = peak_kib(&daemon);
    println!("{:.1} MiB at most", peak as f64 / 1024.0);
    assert!(peak <= PEAK_MAX_KIB, "{peak} KiB");
    assert_eq!(daemon.log().count("ERROR", ""), 0, "{}", daemon.log().text());
}

#[test]
fn a_record_and_events_of_many_megabytes_take_the_pulls_share_of_memory() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let start = Utc::now() - TimeDelta::minutes(30);
    let with_text = |number: usize, bytes: usize| {
        let event = event(number, start + TimeDelta::seconds(number as i64));
        let text = format!("\"text\":\"{}\",\"ratio\"", "x".repeat(bytes));
        Event { json: event.json.replace("\"ratio\"", &text), ..event }
    };
    let sizes = [10, 7 << 20, 10, 20 << 20, 10, 7 << 20, 10];
    env0.world().audits = sizes.iter().enumerate().map(|(at, bytes)| with_text(at, *bytes)).collect::<Vec<_>>().into();
    let followed = |id: &str| Environment {
        deployments: vec![Deployment::running(&format!("d-{id}"), "tf:apply", 3)],
        ..Environment::new(&format!("env-{id}"))
    };
    env0.world().environments = ["1", "2"].map(followed).into();
    env0.world().padding = 20 << 20;
    let large = |id: &str| format!(r#"{{"eventId":"{id}","message":"{}"}}"#, "x".repeat(7 << 20));
    let page = format!(r#"{{"events":[{},{{"eventId":"b"}},{}],"hasMoreLogs":false}}"#, large("a"), large("c"));
    env0.break_down("/deployments/d-2/steps/tf%3Aapply/log", Fault::Bytes(page.into_bytes().leak()));
    let setup = Setup::new(&aws)
        .unset("ENV0_S3_LOG_INGEST_TOKEN")
        .set("ENV0_S3_LOG_PULL_FROM", (start - TimeDelta::seconds(1)).to_rfc3339());
    let setup = env0.environment().into_iter().fold(setup, |setup, (name, value)| setup.set(name, value));
    let daemon = setup.start();
    wait_until("all of it is stored", || aws.s3.line_count() == sizes.len() + 3 + 3);
    let lines = aws.s3.lines();
    let cut =
        |sign: &str| lines.iter().filter(|line| line.contains("\"cutFromBytes\":") && line.contains(sign)).count();
    assert_eq!([cut("\"beginning\":\""), cut("\"sha256\":\""), cut("")], [4, 1, 5]);
    let peak = peak_kib(&daemon);
    println!("{:.1} MiB at most", peak as f64 / 1024.0);
    assert!(peak <= PEAK_MAX_KIB, "{peak} KiB");
}

#[test]
fn records_of_many_megabytes_of_short_texts_take_the_pulls_share_of_memory() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let followed = |id: &str| Environment {
        deployments: vec![Deployment::running(&format!("d-{id}"), "tf:apply", 3)],
        ..Environment::new(&format!("env-{id}"))
    };
    env0.world().environments = ["1", "2"].map(followed).into();
    let list = |element: &str| vec![element; (15 << 20) / (element.len() + 1)].join(",");
    let (variable, member) = (r#"{"name":"canary-a","value":"canary-b"}"#, r#""canary-c":"canary-d""#);
    env0.world().variables = format!("[{}],{}", list(variable), list(member));
    let setup = Setup::new(&aws).unset("ENV0_S3_LOG_INGEST_TOKEN").set("ENV0_S3_LOG_PULL", "env0-deployments");
    let setup = env0.environment().into_iter().fold(setup, |setup, (name, value)| setup.set(name, value));
    let daemon = setup.start();
    wait_until("all of it is stored", || aws.s3.line_count() == 6);
    let (rounds, asked) = (|| env0.asked("/environments?"), env0.asked("/environments?"));
    wait_until("they are listed again", || rounds() >= asked + 4);
    let peak = peak_kib(&daemon);
    println!("{:.1} MiB at most", peak as f64 / 1024.0);
    // One that is held whole makes it 64 MiB, and 32 MiB are there without any.
    assert!(peak <= 48 * 1024, "{peak} KiB");
    assert_eq!(daemon.log().count("ERROR", ""), 0, "{}", daemon.log().text());
}

fn idle_organization(env0: &LocalEnv0, aws: &LocalAws, interval: &str) -> Setup {
    env0.world().environments = (0..300).map(|number| Environment::new(&format!("env-{number}"))).collect();
    let setup = Setup::new(aws).unset("ENV0_S3_LOG_INGEST_TOKEN");
    let setup = env0.environment().into_iter().fold(setup, |setup, (name, value)| setup.set(name, value));
    setup.set("ENV0_S3_LOG_PULL_INTERVAL", interval)
}

/// How long `rounds` rounds take, from the first page of environments on, and how many requests of `paths` they make.
fn measured(env0: &LocalEnv0, rounds: usize, paths: &[&str]) -> (Duration, usize) {
    let first_page = format!("/environments?organizationId={ORGANIZATION}&includeSubEnvironments=true&offset=0&");
    let begun = || env0.asked(&first_page);
    let asked = || paths.iter().map(|path| env0.asked(path)).sum::<usize>();
    let first = begun();
    wait_until("a round begins", || begun() > first);
    let (started, before) = (Instant::now(), asked());
    for round in 1..=rounds {
        wait_until("the next round begins", || begun() > first + round);
    }
    (started.elapsed(), asked() - before)
}

#[test]
fn an_idle_round_of_300_environments_takes_four_requests_and_comes_later() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let _daemon = idle_organization(&env0, &aws, "5s").start();
    wait_until("every environment was looked at", || env0.asked("/environments/") >= 300);
    let (took, asked) = measured(&env0, 8, &["/environments?", "/audit/events"]);
    // A page behind the full last one in one round of eight, and the audits of a round that has just begun.
    assert!(asked <= 8 * 4 + 2, "{asked} requests: {:?}", env0.world().requests);
    // The hourly look at each environment is counted in `pull/deployments/sweep.rs`. An interval of 30 s becomes 37 s.
    let a_round = took.as_secs_f64() / 8.0;
    assert!(a_round >= 6.2, "{a_round}");
}

/// `cargo test --test it -- --ignored --nocapture requests_of_an_idle_organization`
#[test]
#[ignore = "a measurement of ten minutes"]
fn the_requests_of_an_idle_organization_are_fewer_than_twelve_a_minute() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let _daemon = idle_organization(&env0, &aws, "30s").start();
    wait_until("every environment was looked at", || env0.asked("/environments/") >= 300);
    let (took, asked) = measured(&env0, 16, &["/"]);
    let a_minute = asked as f64 / (took.as_secs_f64() / 60.0);
    println!("{asked} requests in {took:?}: {a_minute:.1} a minute");
    assert!(a_minute < 12.0, "{a_minute}");
}

/// `EVENTS=1000000 cargo test --release --test it -- --ignored --nocapture history_of_audits`
#[test]
#[ignore = "a measurement"]
fn a_history_of_audits_is_measured() {
    let events: usize = std::env::var("EVENTS").map_or(100_000, |events| events.parse().unwrap());
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let start = Utc::now() - TimeDelta::days(90);
    let step = TimeDelta::days(90).num_milliseconds() / events as i64;
    let at = |number: usize| start + TimeDelta::milliseconds(step * number as i64);
    env0.world().audits.extend((0..events).map(|number| event(number, at(number))));
    let followed = |number: usize| Environment {
        deployments: vec![Deployment::running(&format!("d-{number}"), "tf:apply", 2500)],
        ..Environment::new(&format!("env-{number}"))
    };
    env0.world().environments = (0..300).map(followed).collect();
    let setup = Setup::new(&aws)
        .unset("ENV0_S3_LOG_INGEST_TOKEN")
        .set("ENV0_S3_LOG_PULL_FROM", (start - TimeDelta::seconds(1)).to_rfc3339());
    let setup = env0.environment().into_iter().fold(setup, |setup, (name, value)| setup.set(name, value));
    let started = Instant::now();
    let daemon = setup.start();
    let pulled = || daemon.metric("pulled_events_total{type=\"env0-audits\"}").unwrap_or_default();
    for tenth in 1..=10 {
        wait_until("another tenth of the history is pulled", || pulled() >= (events * tenth / 10) as f64);
    }
    let seconds = started.elapsed().as_secs_f64();
    let lines = || daemon.metric("pulled_events_total{type=\"env0-deployments\"}").unwrap_or_default();
    wait_until("the deployments are followed", || lines() >= 300.0 * 2500.0);
    let (a_second, peak) = (events as f64 / seconds, peak_kib(&daemon) as f64 / 1024.0);
    println!(
        "{events} events in {seconds:.1} s: {a_second:.0} a second, {} requests; with 300 deployments of 2,500 lines {peak:.1} MiB at most",
        env0.asked("/audit/events"),
    );
    assert!(a_second >= 5000.0 && peak <= 64.0);
}
