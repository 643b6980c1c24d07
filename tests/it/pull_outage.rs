//! A daemon that was down for a day: what ran, ended and happened in env0 meanwhile is in the bucket once.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};

use crate::harness::{Daemon, Setup, wait_until};
use crate::local_aws::LocalAws;
use crate::local_env0::LocalEnv0;
use crate::local_env0::audits::event;
use crate::local_env0::deployments::{Deployment, Environment, all_lines};

fn hours_ago(hours: i64) -> DateTime<Utc> {
    Utc::now() - TimeDelta::hours(hours)
}

/// Waits until each log line, each audit event and one line for each of `ended` deployments are in the
/// bucket. Each must be there once.
fn all_is_there_once(aws: &LocalAws, env0: &LocalEnv0, ended: usize) {
    let mut expected = all_lines(&env0.world());
    expected.extend(env0.world().audits.iter().map(|event| event.json.clone()));
    wait_until("as many lines as expected are in the bucket", || aws.s3.line_count() >= expected.len() + ended);
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    aws.s3.lines().into_iter().for_each(|line| *counts.entry(line).or_default() += 1);
    let not_once: Vec<_> = expected.iter().filter(|line| counts.get(*line) != Some(&1)).collect();
    assert!(not_once.is_empty(), "not stored once: {not_once:#?}");
    let ends = counts.keys().filter(|line| line.contains("-finished\"")).count();
    assert_eq!((ends, counts.len(), aws.s3.line_count()), (ended, expected.len() + ended, counts.len()));
}

fn a_round_later(daemon: &Daemon) {
    let rounds = || daemon.metric("pull_rounds_total{outcome=\"succeeded\"}").unwrap_or_default();
    let before = rounds();
    wait_until("each log type has had two rounds", || rounds() >= before + 4.0);
}

#[test]
fn what_happened_while_no_daemon_ran_for_a_day_is_there_once_after_the_start() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let setup =
        Setup::new(&aws).unset("ENV0_S3_LOG_INGEST_TOKEN").set("ENV0_S3_LOG_PULL_FROM", hours_ago(48).to_rfc3339());
    let setup = env0.environment().into_iter().fold(setup, |setup, (name, value)| setup.set(name, value));
    let environment = |id: &str, deployments: Vec<Deployment>| Environment { deployments, ..Environment::new(id) };
    let deployment = |id: &str, hours: i64| Deployment::running(id, "tf:apply", 10).made_at(hours_ago(hours));

    // Yesterday, by env0's clock, which the daemon goes by where it is behind its own.
    env0.world().clock_behind = TimeDelta::hours(24);
    env0.world().environments = vec![
        environment("env-runs", vec![deployment("d-runs-on", 25), deployment("d-before", 30).ended()]),
        environment("env-moves", vec![]),
        environment("env-stands-still", vec![deployment("d-drift-before", 28).ended()]),
    ];
    env0.world().audits.extend((0..50).map(|number| event(number, hours_ago(26))));
    let daemon = setup.start();
    all_is_there_once(&aws, &env0, 2);
    a_round_later(&daemon);
    daemon.kill();

    {
        let mut world = env0.world();
        world.clock_behind = TimeDelta::zero();
        let [runs, moves, stands_still] = &mut world.environments[..] else { panic!() };
        runs.deployments[0].steps[0].lines = 300;
        runs.deployments[0] = runs.deployments[0].clone().ended();
        runs.moved += 1;
        // Newest first, and the newest still runs.
        let ended = [2, 9, 20].map(|hours| deployment(&format!("d-{hours}"), hours).ended());
        moves.deployments = std::iter::once(deployment("d-now", 0)).chain(ended).collect();
        moves.moved += 1;
        // A drift detection need not move its environment.
        let drift = Deployment { moves_environment: false, ..deployment("d-drift", 12).ended() };
        stands_still.deployments.insert(0, drift);
        world.audits.extend((1..24).map(|hours| event(100 + hours as usize, hours_ago(hours))));
        world.audits.extend((200..1500).map(|number| event(number, hours_ago(11))));
    }
    let daemon = setup.start();
    all_is_there_once(&aws, &env0, 7);
    a_round_later(&daemon);
    all_is_there_once(&aws, &env0, 7);
    assert_eq!(daemon.log().count("ERROR", ""), 0, "{}", daemon.log().text());
}
