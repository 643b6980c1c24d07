//! `kill -9` at every phase of a pull: each event is in the bucket once.

use std::time::Duration;

use chrono::{TimeDelta, Utc};

use crate::harness::wait_until;
use crate::local_aws::{self, LocalAws};
use crate::local_env0::audits::event;
use crate::local_env0::{Fault, LocalEnv0};
use crate::pull_audits::{AUDIT_EVENTS, a_round_later, all_arrive_once, from, setup, trail};

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
    env0.world().audits = vec![event(1, Utc::now() - TimeDelta::seconds(1))].into();
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
