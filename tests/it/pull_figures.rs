//! How fast a history of audit events is pulled while deployments are followed, and in how much memory. Prints its
//! figures.

use std::fs;
use std::time::Instant;

use chrono::{TimeDelta, Utc};

use crate::harness::{Daemon, Setup, wait_until};
use crate::local_aws::LocalAws;
use crate::local_env0::LocalEnv0;
use crate::local_env0::audits::{Event, event};
use crate::local_env0::deployments::{Deployment, Environment, LogShape};

/// The most that the daemon had in RAM, in KiB.
pub(crate) fn peak_kib(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.process_id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    peak.unwrap()
}

/// The most that a daemon may have in RAM that only pulls: 24 MiB of its own, and 76 MiB for what it pulls.
const PEAK_MAX_KIB: u64 = (24 + 76) * 1024;

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
    let followed = |number: usize| Environment {
        // A page of 12 MB.
        deployments: vec![Deployment::running(&format!("d-{number}"), "tf:apply", 100_000)],
        ..Environment::new(&format!("env-{number}"))
    };
    env0.world().environments = (0..4).map(followed).collect();
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
    println!(
        "{events} events in {seconds:.1} s: {:.0} a second, {} requests; with 300 deployments of 2,500 lines {:.1} MiB at most",
        events as f64 / seconds,
        env0.asked("/audit/events"),
        peak_kib(&daemon) as f64 / 1024.0
    );
}
