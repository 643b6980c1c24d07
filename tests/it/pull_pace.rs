//! What is slow or has no end at env0 holds up nothing else, and takes a bounded part of the daemon.

use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use serde_json::json;

use crate::harness::{Daemon, wait_until};
use crate::local_aws::LocalAws;
use crate::local_env0::audits::event;
use crate::local_env0::deployments::{Deployment, Environment, LogShape};
use crate::local_env0::{Fault, LocalEnv0};
use crate::pull_deployments::{a_round_later, all_arrive_once, environment, setup};
use crate::pull_figures::peak_kib;

fn running(number: usize) -> Environment {
    environment(&format!("env-{number}"), vec![Deployment::running(&format!("d-{number}"), "tf:apply", 2)])
}

fn rounds(daemon: &Daemon) -> f64 {
    daemon.metric("pull_rounds_total{outcome=\"succeeded\"}").unwrap_or_default()
}

#[test]
fn a_log_that_never_comes_holds_up_no_other_deployment() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = vec![running(0), running(1)];
    let setup = setup(&aws, &env0);
    let _daemon = setup.start();
    all_arrive_once(&aws, &env0, 0);
    let hanging = "/deployments/d-0/steps/tf%3Aapply/log";
    env0.break_down(hanging, Fault::Silent);
    let asked = env0.asked(hanging);
    wait_until("the log is asked for", || env0.asked(hanging) > asked);
    // Each try takes 20 s until it is given up, and there are two.
    for lines in [3, 4] {
        env0.world().environments[1].deployments[0].steps[0].lines = lines;
        wait_until("the other's line is stored", || aws.s3.line_count() == 2 + lines);
    }
    assert!(env0.asked(hanging) <= asked + 2);
    env0.heal();
    all_arrive_once(&aws, &env0, 0);
}

#[test]
fn a_long_log_of_the_past_holds_up_no_running_deployment() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = vec![running(0)];
    env0.world().log_shape = LogShape { page_events: 100, ..LogShape::default() };
    let setup = setup(&aws, &env0);
    let _daemon = setup.start();
    all_arrive_once(&aws, &env0, 0);
    env0.world().latency = Duration::from_millis(100);
    let long = Deployment::running("long", "tf:apply", 40_000).ended_at(Utc::now() - TimeDelta::hours(1));
    env0.world().environments.push(environment("env-1", vec![long]));
    let log = "/deployments/long/steps/tf%3Aapply/log";
    let mut asked = 0;
    for lines in [3, 4] {
        wait_until("the long log is being read", || env0.asked(log) > asked + 10);
        env0.world().environments[0].deployments[0].steps[0].lines = lines;
        let new = format!("\"tf:apply-{}\"", lines - 1);
        let is_new = |line: &String| line.contains(&new) && line.contains("\"d-0\"");
        wait_until("the running one's line is stored", || aws.s3.lines().iter().any(is_new));
        asked = env0.asked(log);
        assert!(asked < 400, "the long log was read first");
    }
    env0.world().latency = Duration::ZERO;
    all_arrive_once(&aws, &env0, 1);
}

#[test]
fn hundreds_of_running_deployments_take_two_requests_each_in_a_round() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = (0..300).map(running).collect();
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 0);
    a_round_later(&daemon);
    let (listed, steps) = (env0.asked("/environments/"), env0.asked("/deployments/"));
    let before = rounds(&daemon);
    a_round_later(&daemon);
    let passed = (rounds(&daemon) - before) as usize + 1;
    // The hourly turn of some environments comes beside them.
    let (listed, steps) = (env0.asked("/environments/") - listed, env0.asked("/deployments/") - steps);
    assert!(listed <= 2 * passed && steps <= 600 * passed, "{listed} lists, {steps} steps and logs in {passed} rounds");
}

#[test]
fn no_more_than_eight_requests_run_at_once_however_much_there_is_to_ask() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = (0..60).map(running).collect();
    env0.world().other_organizations =
        ["1", "2", "3"].map(|digit| format!("{digit}f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9")).into();
    env0.world().latency = Duration::from_millis(50);
    let _daemon = setup(&aws, &env0).set("ENV0_S3_LOG_PULL", "env0-audits,env0-deployments").start();
    all_arrive_once(&aws, &env0, 0);
    let (_, most) = env0.world().running;
    assert!((7..=8).contains(&most), "{most}");
}

#[test]
fn lists_of_deployments_that_never_come_hold_up_no_audit_event() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = (0..50).map(running).collect();
    env0.break_down("/environments/", Fault::Silent);
    let setup = setup(&aws, &env0).set("ENV0_S3_LOG_PULL", "env0-audits,env0-deployments");
    let _daemon = setup.start();
    wait_until("deployments are asked for", || env0.asked("/environments/") >= 6);
    env0.world().audits = vec![event(1, Utc::now())].into();
    let asked = env0.asked("/audit/events");
    wait_until("audit events are asked for in two rounds", || env0.asked("/audit/events") >= asked + 2);
    // Six hang, and after 20 s others would take their slots.
    assert!(env0.asked("/environments/") <= 6, "{}", env0.asked("/environments/"));
    wait_until("the audit event is stored", || aws.s3.line_count() == 1);
}

#[test]
fn what_env0_has_right_after_a_round_is_in_the_bucket_in_time() {
    let promised = Duration::from_secs(20 + 1 + 10);
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = vec![running(0), environment("env-1", vec![])];
    let setup = setup(&aws, &env0)
        .set("ENV0_S3_LOG_PULL", "env0-audits,env0-deployments")
        .set("ENV0_S3_LOG_PULL_INTERVAL", "20s")
        .set("ENV0_S3_LOG_BATCH_MAX_AGE", "1s");
    let _daemon = setup.start();
    all_arrive_once(&aws, &env0, 0);
    let is_stored = |part: &str| aws.s3.lines().iter().any(|line| line.contains(part));
    // After a round that brought nothing, and after one that brought something. A round asks for these last.
    for number in [1, 2] {
        let asked = |of| env0.asked(of);
        let (log, audits) = ("/deployments/d-0/steps/tf%3Aapply/log", "/audit/events");
        let before = (asked(log), asked(audits));
        wait_until("all was asked for in a round", || asked(log) > before.0 && asked(audits) > before.1);
        let had = Instant::now();
        {
            let mut world = env0.world();
            world.audits.push(event(number, Utc::now()));
            world.environments[0].deployments[0].steps[0].lines += 1;
            world.environments[1].deployments.insert(0, Deployment::running(&format!("new-{number}"), "tf:apply", 1));
        }
        wait_until("the audit event is stored", || is_stored(&format!("\"audit-{number}\"")));
        let of_audits = had.elapsed();
        wait_until("the line of the running one is stored", || is_stored(&format!("\"tf:apply-{}\"", number + 1)));
        let of_running = had.elapsed();
        wait_until("the new deployment's is", || is_stored(&format!("\"new-{number}\"")));
        let all = [of_audits, of_running, had.elapsed()];
        println!("{all:?}");
        assert!(all.iter().all(|took| *took <= promised), "{all:?}");
    }
}

#[test]
fn a_list_of_environments_without_an_end_is_told_and_those_in_it_are_read() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = vec![running(0)];
    env0.world().endless = true;
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 0);
    wait_until("the log tells it", || daemon.log().text().matches("there are more than 20,000").count() == 1);
    env0.world().environments[0].deployments[0].steps[0].lines = 5;
    all_arrive_once(&aws, &env0, 0);
    assert!(peak_kib(&daemon) < 128 * 1024, "{} KiB", peak_kib(&daemon));
}

#[test]
fn texts_of_a_hundred_kilobytes_are_refused_as_ids_and_cut_as_names() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let long = "x".repeat(100_000);
    env0.world().odd_records = (0..150)
        .map(|number| json!({"id": format!("{number}{long}")}))
        .chain([json!({"id": "named", "name": format!("é{long}"), "updatedAt": long})])
        .collect();
    env0.world().environments = vec![running(0)];
    env0.world().odd_steps = vec![json!({"name": long, "status": "SUCCESS"})];
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 0);
    wait_until("the log tells it", || daemon.log().count("ERROR", "has more than 512 bytes") == 1);
    assert!(!setup.spool_holds(&long[..2000]));
}

#[test]
fn a_large_page_of_a_log_that_stalls_holds_up_no_large_list() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let long = "x".repeat(20_000);
    let named = |number: usize| json!({"id": format!("named-{number}"), "name": long, "updatedAt": "1"});
    env0.world().odd_records = (0..70).map(named).collect();
    env0.world().environments = vec![running(0), running(1)];
    let setup = setup(&aws, &env0);
    let _daemon = setup.start();
    all_arrive_once(&aws, &env0, 0);
    let stalling = "/deployments/d-0/steps/tf%3Aapply/log";
    env0.break_down(stalling, Fault::Stalls(3 << 20));
    let asked = env0.asked(stalling);
    wait_until("the log is asked for", || env0.asked(stalling) > asked);
    let lists = env0.asked("/environments?");
    wait_until("a list has come since", || env0.asked("/environments?") >= lists + 2);
    env0.world().environments[1].deployments[0].steps[0].lines = 3;
    wait_until("the other's line is stored", || aws.s3.line_count() == 5);
    // The page is given up after 20 s, and asked for once more.
    assert_eq!(env0.asked(stalling), asked + 1);
    env0.heal();
    all_arrive_once(&aws, &env0, 0);
}

#[test]
fn large_pages_of_logs_and_a_large_list_do_not_wait_for_each_other() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let long = "x".repeat(20_000);
    let named = |number: usize| json!({"id": format!("named-{number}"), "name": long, "updatedAt": "1"});
    env0.world().odd_records = (0..70).map(named).collect();
    env0.world().log_shape = LogShape { page_events: 10_000, ..LogShape::default() };
    let many = |number: usize| vec![Deployment::running(&format!("d-{number}"), "tf:apply", 10_000)];
    env0.world().environments = (0..4).map(|number| environment(&format!("env-{number}"), many(number))).collect();
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    // In each round several logs have a page that is larger than what may be in memory twice, while the list is one, too.
    all_arrive_once(&aws, &env0, 0);
    for environment in &mut env0.world().environments {
        environment.deployments[0].steps[0].lines = 20_000;
    }
    all_arrive_once(&aws, &env0, 0);
    a_round_later(&daemon);
}
