//! `kill -9` at every phase of a pull: each event is in the bucket once.

use std::time::Duration;

use chrono::{TimeDelta, Utc};

use crate::harness::{Setup, wait_until};
use crate::local_aws::{self, LocalAws};
use crate::local_env0::audits::{Event, event, event_without_id};
use crate::local_env0::deployments::Deployment;
use crate::local_env0::{Fault, LocalEnv0};
use crate::pull_audits::{AUDIT_EVENTS, a_round_later, all_arrive_once, from, setup, trail};
use crate::pull_deployments::environment;

#[test]
fn killed_again_and_again_while_it_pulls_every_event_arrives_once() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let (start, events) = trail(300);
    env0.world().audits = events.into();
    let setup = from(setup(&aws, &env0), start)
        .set("ENV0_S3_LOG_BATCH_MAX_BYTES", "64KiB")
        .set("ENV0_S3_LOG_COMPRESSION", "gzip");
    let mut number = 10_000;
    for round in 0..25 {
        let asked = env0.asked(AUDIT_EVENTS);
        let late = (0..200).map(|late| event(number + late, Utc::now() - TimeDelta::seconds(4 * late as i64)));
        env0.world().audits.extend(late);
        number += 200;
        let daemon = setup.spawn();
        // At first there is a history of many pages, and one page for each round when that is over.
        let pages = if round < 8 { rand::random_range(1..6) } else { 1 };
        wait_until("some pages were asked for", || env0.asked(AUDIT_EVENTS) >= asked + pages);
        // Not a wait for anything: it spreads the moments of the kills.
        std::thread::park_timeout(Duration::from_micros(rand::random_range(0..200_000)));
        daemon.kill();
    }
    let daemon = setup.start();
    a_round_later(&daemon);
    wait_until("the spool is empty", || daemon.metric("events_spooled{type=\"env0-audits\"}") == Some(0.0));
    let lines: Vec<String> = aws.s3.objects().iter().flat_map(|object| gunzipped(&object.body)).collect();
    let mut distinct = lines.clone();
    distinct.sort();
    distinct.dedup();
    let events = env0.world().audits.len();
    assert_eq!((lines.len(), distinct.len()), (events, events));
}

#[test]
fn a_batch_that_the_place_does_not_know_yet_is_sent_only_after_a_kill_and_once() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let setup = from(setup(&aws, &env0), Utc::now() - TimeDelta::hours(1));
    let daemon = setup.start();
    a_round_later(&daemon);
    // The place can't be written from here on; the batch can.
    let (folder, aside) = (setup.spool().join("pull"), setup.folder().join("aside"));
    std::fs::rename(&folder, &aside).unwrap();
    std::fs::write(&folder, "").unwrap();
    let at = Utc::now() - TimeDelta::seconds(1);
    // An event may name another organization than the one that was asked for.
    let naming = |event: Event| {
        let json = event.json.replace("\"actorId\"", "\"organizationId\":\"another\",\"actorId\"");
        Event { json, ..event }
    };
    let events = vec![event(1, at), naming(event(2, at)), naming(event_without_id(3, at)), event_without_id(4, at)];
    env0.world().audits = events.into();
    wait_until("the batch is sealed", || setup.spool_files("env0-audits").iter().any(|name| name.ends_with(".sealed")));
    wait_until("the log says why nothing is sent", || daemon.log().text().contains("the pull from env0 waits"));
    assert_eq!(aws.s3.put_count(), 0);
    daemon.kill();
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&aside, &folder).unwrap();
    let daemon = setup.start();
    all_arrive_once(&aws, &env0);
    a_round_later(&daemon);
    all_arrive_once(&aws, &env0);
}

#[test]
fn killed_at_each_step_of_a_pull_each_event_comes_once() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let setup = from(setup(&aws, &env0), Utc::now() - TimeDelta::hours(1));
    let happens = |number: usize| env0.world().audits.push(event(number, Utc::now() - TimeDelta::seconds(1)));

    env0.break_down(AUDIT_EVENTS, Fault::Silent);
    happens(1);
    let daemon = setup.start();
    wait_until("env0 is asked", || env0.asked(AUDIT_EVENTS) >= 1);
    daemon.kill();
    env0.heal();
    let daemon = setup.start();
    all_arrive_once(&aws, &env0);

    aws.s3.hold_puts();
    happens(2);
    wait_until("S3 is sent the batch", || aws.s3.put_count() == 2);
    daemon.kill();
    aws.s3.release_puts();
    let daemon = setup.start();
    all_arrive_once(&aws, &env0);

    aws.s3.inject(local_aws::Fault::lose_response());
    happens(3);
    wait_until("S3 has it, and nobody knows", || aws.s3.line_count() == 3);
    daemon.kill();
    aws.s3.heal();
    let daemon = setup.start();
    a_round_later(&daemon);
    wait_until("the spool is empty", || daemon.metric("events_spooled{type=\"env0-audits\"}") == Some(0.0));
    all_arrive_once(&aws, &env0);
}

fn gunzipped(body: &[u8]) -> Vec<String> {
    let text = std::io::read_to_string(flate2::read::MultiGzDecoder::new(body)).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Ends a daemon when what came after the answer to the first request for `path` is in the spool, and in no place.
pub(crate) fn killed_before_the_place(
    setup: Setup,
    aws: &LocalAws,
    env0: &LocalEnv0,
    log_type: &str,
    path: &str,
) -> Setup {
    let setup = setup.set("ENV0_S3_LOG_PULL_INTERVAL", "30s");
    // The place is written before that request, and can't be when its answer has come.
    env0.world().latency = Duration::from_secs(3);
    let (asked, puts) = (env0.asked(path), aws.s3.put_count());
    let daemon = setup.start();
    wait_until("env0 is asked", || env0.asked(path) > asked);
    let (folder, aside) = (setup.spool().join("pull"), setup.folder().join("aside"));
    std::fs::rename(&folder, &aside).unwrap();
    std::fs::write(&folder, "").unwrap();
    let is_sealed = || setup.spool_files(log_type).iter().any(|name| name.ends_with(".sealed"));
    wait_until("its batch is sealed", is_sealed);
    assert_eq!(aws.s3.put_count(), puts);
    daemon.kill();
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&aside, &folder).unwrap();
    env0.world().latency = Duration::ZERO;
    setup.set("ENV0_S3_LOG_PULL_INTERVAL", "5s")
}

#[test]
fn events_that_name_another_origin_come_once_although_their_place_is_lost() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let long = format!("\"stepName\":\"mine\",\"text\":\"{}\"", "x".repeat(100_000));
    let own = [
        "\"stepName\":\"mine\"",
        "\"eventId\":\"e-1\",\"stepName\":\"mine\"",
        "\"stepName\":7",
        "\"deploymentLogId\":\"another\"",
        "\"eventId\":\"e-2\",\"deploymentLogId\":null",
        "\"eventId\":\"e-3\",\"deploymentLogId\":\"d-2\",\"stepName\":\"tf:apply\"",
        "\"organizationId\":\"another\"",
        "\"stepName\":\"tf:apply\",\"environmentId\":5",
        &long,
        "\"eventId\":\"e-4\"",
    ];
    let events = own.iter().enumerate().map(|(number, own)| format!("{{\"mark\":\"log-{number}\",{own}}}"));
    let page = format!("{{\"events\":[{}],\"hasMoreLogs\":false}}", events.collect::<Vec<_>>().join(","));
    let log = "/deployments/d-1/steps/tf%3Aapply/log";
    env0.break_down(log, Fault::Json(page.leak()));
    let deployment = Deployment::running("d-1", "tf:apply", 0);
    env0.world().environments = vec![environment("env-1", vec![deployment])];
    let setup = from(setup(&aws, &env0), Utc::now() - TimeDelta::hours(1));
    let setup = setup.set("ENV0_S3_LOG_PULL", "env0-deployments");
    let setup = setup.set("ENV0_S3_LOG_MAX_EVENT_BYTES", "64KiB");
    let setup = killed_before_the_place(setup, &aws, &env0, "env0-deployments", "/deployments/d-1/steps");

    for _ in 0..2 {
        let daemon = setup.start();
        a_round_later(&daemon);
        wait_until("the spool is empty", || daemon.metric("events_spooled{type=\"env0-deployments\"}") == Some(0.0));
        let lines = aws.s3.lines();
        for (number, own) in own.iter().enumerate() {
            let mark = format!("log-{number}\"");
            // Within the beginning of an event that is cut, its quotes are escaped.
            let count = lines.iter().filter(|line| line.replace('\\', "").contains(&mark)).count();
            assert_eq!(count, 1, "{}", own.chars().take(80).collect::<String>());
        }
        daemon.kill();
    }
}

#[test]
fn an_event_that_names_another_step_comes_once_though_its_log_was_gone_for_a_while() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let log = "/deployments/d-1/steps/tf%3Aapply/log";
    let page = Fault::Json(r#"{"events":[{"mark":"log-1","stepName":"mine"},{"mark":"log-2"}],"hasMoreLogs":false}"#);
    env0.break_down(log, page.clone());
    env0.world().environments = vec![environment("env-1", vec![Deployment::running("d-1", "tf:apply", 0)])];
    let setup = from(setup(&aws, &env0), Utc::now() - TimeDelta::hours(1));
    let setup = setup.set("ENV0_S3_LOG_PULL", "env0-deployments");
    let setup = killed_before_the_place(setup, &aws, &env0, "env0-deployments", "/deployments/d-1/steps");

    env0.break_down(log, Fault::Status(404, "{}", None));
    let daemon = setup.start();
    a_round_later(&daemon);
    env0.break_down(log, page);
    a_round_later(&daemon);
    wait_until("the spool is empty", || daemon.metric("events_spooled{type=\"env0-deployments\"}") == Some(0.0));
    assert_eq!(aws.s3.lines().len(), 2, "{:?}", aws.s3.lines());
}
