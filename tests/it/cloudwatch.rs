//! CloudWatch Logs beside S3: every event gets there at least once, and whatever it does, S3's lane and ingest go on.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::disk::Mounted;
use crate::harness::{AUDITS, Books, DEPLOYMENTS, Daemon, Setup, event, field, wait_until, wait_until_delivered};
use crate::local_aws::{LocalAws, LogsFault};

const PUT: &str = "PutLogEvents";
const TYPES: [&str; 2] = ["env0-deployments", "env0-audits"];

fn setup(aws: &LocalAws) -> Setup {
    aws.cloudwatch_environment().into_iter().fold(Setup::new(aws), |setup, (name, value)| setup.set(name, value))
}

/// Sends `count` events of each type and enters that they are acknowledged.
fn send(daemon: &Daemon, books: &Books, count: usize) {
    for path in [DEPLOYMENTS, AUDITS] {
        let ids = books.ids(count);
        let answer = daemon.post(path, Books::body(&ids));
        assert_eq!((answer.status, answer.accepted()), (200, count as u64));
        books.acknowledge(ids);
    }
}

/// The ids of all events in a log group, each once.
fn ids(lines: &[String]) -> BTreeSet<String> {
    let id = |line: &String| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
    lines.iter().map(id).collect()
}

/// The ids of a type's events in S3.
fn in_s3(aws: &LocalAws, log_type: &str) -> BTreeSet<String> {
    let objects = aws.s3.objects_with(&format!("{log_type}/"));
    ids(&objects.iter().flat_map(|object| object.text_lines()).collect::<Vec<_>>())
}

/// Names of the files that wait for CloudWatch.
fn waiting(setup: &Setup) -> Vec<String> {
    TYPES.iter().flat_map(|log_type| setup.spool_files(&format!("cloudwatch/{log_type}"))).collect()
}

/// Waits until nothing waits, then checks that each group has what S3 has, and nothing of the other type.
fn check_cloudwatch(aws: &LocalAws, setup: &Setup) {
    wait_until_delivered(setup);
    wait_until("CloudWatch has all", || waiting(setup).is_empty());
    for log_type in TYPES {
        assert_eq!(ids(&aws.logs.messages(log_type)), in_s3(aws, log_type), "{log_type}");
    }
}

fn lane(daemon: &Daemon, log_type: &str) -> Value {
    let status: Value = serde_json::from_str(&daemon.admin_get("/status").unwrap().text()).unwrap();
    let types = status["cloudwatch"]["types"].as_array().unwrap().clone();
    types.into_iter().find(|of_type| of_type["type"] == log_type).unwrap()
}

fn skipped(daemon: &Daemon, reason: &str) -> f64 {
    let of_type = |log_type| {
        let sample = format!("cloudwatch_skipped_events_total{{type=\"{log_type}\",reason=\"{reason}\"}}");
        daemon.metric(&sample).unwrap()
    };
    TYPES.into_iter().map(of_type).sum()
}

#[test]
fn every_event_is_in_its_group_with_its_own_time_after_s3_has_it() {
    let aws = LocalAws::start();
    for compression in ["none", "zstd"] {
        let setup = setup(&aws).set("ENV0_S3_LOG_COMPRESSION", compression);
        let daemon = setup.start();
        aws.s3.hold_puts();
        let before = aws.logs.count(PUT);
        let line = format!(r#"{{"id":"{compression}","timestamp":"{}"}}"#, "2026-11-28T10:11:12.345Z");
        assert_eq!(daemon.post(AUDITS, &line).status, 200);
        wait_until("the PUT is under way", || {
            setup.spool_files("env0-audits").iter().any(|name| name.ends_with(".sending"))
        });
        assert_eq!(aws.logs.count(PUT), before, "nothing goes to CloudWatch before S3 has it");
        aws.s3.release_puts();
        wait_until("CloudWatch has it", || aws.logs.messages("env0-audits").contains(&line));
        wait_until("its file is gone", || waiting(&setup).is_empty());
        wait_until("it is counted", || daemon.metric("cloudwatch_events_total{type=\"env0-audits\"}") == Some(1.0));
        assert_eq!(lane(&daemon, "env0-audits")["events_sent"], 1);
        assert!(daemon.log().complaints().is_empty(), "{}", daemon.log().text());
    }
    let events = aws.logs.events("env0-audits");
    assert_eq!(events.len(), 2);
}

#[test]
fn s3_and_ingest_go_on_while_cloudwatch_denies_throttles_and_hangs() {
    let aws = LocalAws::start();
    let setup = setup(&aws).set("ENV0_S3_LOG_BATCH_MAX_BYTES", "64KiB");
    let daemon = setup.start();
    let books = Books::default();
    type Begin = fn(&LocalAws);
    let troubles: [(&str, Begin); 4] = [
        ("denied", |aws| aws.logs.deny(PUT)),
        ("throttled", |aws| aws.logs.inject(LogsFault::throttling())),
        ("server_error", |aws| aws.logs.inject(LogsFault::internal_failure())),
        ("hangs", |aws| aws.logs.hold()),
    ];
    for (kind, begin) in troubles {
        begin(&aws);
        let asked = aws.logs.count(PUT);
        for _ in 0..20 {
            send(&daemon, &books, 200);
        }
        books.balance(&aws, &setup);
        if kind != "hangs" {
            wait_until("CloudWatch has refused", || aws.logs.count(PUT) > asked);
            let sample = format!("cloudwatch_errors_total{{type=\"env0-audits\",error=\"{kind}\"}}");
            wait_until("it is counted", || daemon.metric(&sample).unwrap() > 0.0);
        }
        assert!(!waiting(&setup).is_empty(), "{kind}");
        assert_eq!(daemon.admin_get("/readyz").unwrap().status, 200);
        aws.logs.heal();
        check_cloudwatch(&aws, &setup);
    }
    assert_eq!(daemon.metric("ingest_requests_total{type=\"env0-audits\",code=\"503\"}"), Some(0.0));
    assert!(lane(&daemon, "env0-audits")["error"].is_null());
    let complaints = daemon.log().complaints();
    let refused = complaints.iter().filter(|entry| field(entry, "error.kind") == "denied").count();
    assert_eq!(refused, 2, "one line a type: {complaints:?}");
    assert!(daemon.log().text().contains("logs:PutLogEvents"));
}

#[test]
fn killed_while_sending_all_is_in_cloudwatch_at_least_once_and_in_s3_once() {
    let aws = LocalAws::start();
    let setup = setup(&aws).set("ENV0_S3_LOG_BATCH_MAX_BYTES", "64KiB");
    let books = Books::default();
    for round in 0..8 {
        let daemon = setup.start();
        aws.logs.inject(LogsFault::lose_response().times(2));
        let asked = aws.logs.count(PUT);
        send(&daemon, &books, 500);
        wait_until("calls are made", || aws.logs.count(PUT) > asked + round % 3);
        daemon.kill();
    }
    aws.logs.heal();
    let _daemon = setup.start();
    books.balance(&aws, &setup);
    check_cloudwatch(&aws, &setup);
}

#[test]
fn a_kill_between_the_call_and_the_removal_sends_the_batch_again_and_loses_nothing() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let books = Books::default();
    let daemon = setup.start();
    send(&daemon, &books, 1);
    wait_until("both groups are made", || TYPES.iter().all(|group| aws.logs.messages(group).len() == 1));
    // CloudWatch has it, and the daemon does not know.
    aws.logs.inject(LogsFault::lose_response());
    send(&daemon, &books, 3);
    wait_until("CloudWatch has both batches", || TYPES.iter().all(|group| aws.logs.messages(group).len() >= 4));
    daemon.kill();
    assert_eq!(waiting(&setup).len(), 2);
    aws.logs.heal();
    let before = aws.logs.messages("env0-audits").len();
    let _daemon = setup.start();
    check_cloudwatch(&aws, &setup);
    assert_eq!(aws.logs.messages("env0-audits").len(), before + 3, "again, once");
    books.balance(&aws, &setup);
}

#[test]
fn a_backlog_is_sent_after_a_restart_oldest_first() {
    let aws = LocalAws::start();
    let setup = setup(&aws).set("ENV0_S3_LOG_BATCH_MAX_BYTES", "16KiB");
    let books = Books::default();
    let mut daemon = setup.start();
    aws.logs.deny(PUT);
    for _ in 0..10 {
        send(&daemon, &books, 100);
    }
    books.balance(&aws, &setup);
    wait_until("the denial is told", || lane(&daemon, "env0-audits")["error"]["code"] == "AccessDeniedException");
    assert!(daemon.terminate().success());
    let left = waiting(&setup);
    assert!(left.len() > 10, "{left:?}");
    aws.logs.heal();
    let daemon = setup.start();
    check_cloudwatch(&aws, &setup);
    let messages = aws.logs.messages("env0-audits");
    assert!(messages.is_sorted(), "oldest first");
    assert_eq!((messages.len(), skipped(&daemon, "room")), (1000, 0.0));
}

#[test]
fn copies_are_given_up_when_events_need_the_room_and_no_event_is_refused() {
    let aws = LocalAws::start();
    let setup = setup(&aws)
        .set("ENV0_S3_LOG_BATCH_MAX_BYTES", "64KiB")
        .set("ENV0_S3_LOG_SPOOL_MAX_BYTES", "1MiB")
        .set("ENV0_S3_LOG_MAX_EVENT_BYTES", "64KiB");
    let daemon = setup.start();
    let books = Books::default();
    aws.logs.inject(LogsFault::throttling());
    for _ in 0..40 {
        send(&daemon, &books, 200);
        wait_until_delivered(&setup);
        let bytes: u64 = TYPES.iter().map(|log_type| lane(&daemon, log_type)["bytes"].as_u64().unwrap()).sum();
        assert!(bytes <= 1 << 20, "{bytes}");
    }
    wait_until("the oldest are given up", || skipped(&daemon, "room") > 0.0);
    let told = daemon.log().count("WARN", "batches are given up before CloudWatch has them");
    assert!((1..=2).contains(&told), "once a type: {told}");
    aws.logs.heal();
    wait_until("CloudWatch has the rest", || waiting(&setup).is_empty());
    books.balance(&aws, &setup);
    for log_type in TYPES {
        let (sent, stored) = (ids(&aws.logs.messages(log_type)), in_s3(&aws, log_type));
        assert!(sent.is_subset(&stored) && sent.len() < stored.len());
        assert!(sent.contains(stored.last().unwrap()), "the newest stay");
    }
    let sent: usize = TYPES.iter().map(|log_type| ids(&aws.logs.messages(log_type)).len()).sum();
    assert_eq!(sent as f64 + skipped(&daemon, "room"), 40.0 * 400.0);
}

#[test]
#[cfg_attr(not(may_mount), ignore = "mounts a file system, which takes root")]
fn a_disk_that_copies_fill_refuses_no_event() {
    let aws = LocalAws::start();
    let setup = setup(&aws).set("ENV0_S3_LOG_BATCH_MAX_BYTES", "256KiB");
    let folder = setup.folder().join("small");
    let _tmpfs = Mounted::tmpfs(&folder, "6m");
    let setup = setup.set("ENV0_S3_LOG_SPOOL_DIR", folder.join("spool").to_str().unwrap());
    let daemon = setup.start();
    let books = Books::default();
    aws.logs.inject(LogsFault::throttling());
    for _ in 0..40 {
        send(&daemon, &books, 1000);
        wait_until_delivered(&setup);
    }
    wait_until("the oldest are given up", || skipped(&daemon, "room") > 0.0);
    assert_eq!(daemon.admin_get("/readyz").unwrap().status, 200);
    assert!(daemon.log().entries().iter().all(|entry| entry["level"] != "ERROR"), "{}", daemon.log().text());
    books.balance(&aws, &setup);
}

#[test]
#[cfg_attr(not(may_mount), ignore = "mounts a file system, which takes root")]
fn copies_far_smaller_than_an_event_make_way_for_it_on_a_full_disk() {
    let aws = LocalAws::start();
    let setup = setup(&aws).set("ENV0_S3_LOG_BATCH_MAX_BYTES", "4KiB");
    let folder = setup.folder().join("small");
    let _tmpfs = Mounted::tmpfs(&folder, "5m");
    let setup = setup.set("ENV0_S3_LOG_SPOOL_DIR", folder.join("spool").to_str().unwrap());
    let daemon = setup.start();
    let books = Books::default();
    aws.logs.inject(LogsFault::throttling());
    // Each request is a batch of its own.
    while skipped(&daemon, "room") == 0.0 {
        send(&daemon, &books, 50);
        wait_until_delivered(&setup);
    }
    let copies = waiting(&setup).len();
    assert!(copies > 200, "{copies}");
    send(&daemon, &books, 15_000);
    assert!(daemon.log().entries().iter().all(|entry| entry["level"] != "ERROR"), "{}", daemon.log().text());
    books.balance(&aws, &setup);
}

#[test]
fn a_stream_and_a_group_that_are_deleted_while_the_daemon_runs_are_made_again() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let books = Books::default();
    let daemon = setup.start();
    for deleted in 0..3 {
        match deleted {
            0 => {}
            1 => aws.logs.delete_streams("env0-audits"),
            _ => aws.logs.delete_group("env0-audits"),
        }
        let line = event(&format!("after-{deleted}"));
        assert_eq!(daemon.post(AUDITS, &line).status, 200);
        wait_until("CloudWatch has it", || aws.logs.messages("env0-audits").contains(&line));
    }
    wait_until("its file is gone", || waiting(&setup).is_empty());
    assert!(daemon.log().complaints().is_empty(), "{}", daemon.log().text());
    assert_eq!(aws.logs.streams("env0-audits").len(), 1);
    books.balance(&aws, &setup);
}

#[test]
fn tiny_lines_arrive_whole_and_one_of_a_megabyte_names_where_all_of_it_is() {
    let aws = LocalAws::start();
    let setup = setup(&aws).set("ENV0_S3_LOG_COMPRESSION", "gzip");
    let daemon = setup.start();
    let tiny: Vec<String> = (0..10_001).map(|n| format!("{{\"n\":{n}}}")).collect();
    assert_eq!(daemon.post(DEPLOYMENTS, tiny.join("\n")).accepted(), 10_001);
    let large = format!("{{\"m\":\"{}\"}}", "x".repeat((1 << 20) - 8));
    assert_eq!(daemon.post(AUDITS, &large).accepted(), 1);
    wait_until("CloudWatch has all", || {
        (aws.logs.messages("env0-deployments").len(), aws.logs.messages("env0-audits").len()) == (10_001, 1)
    });
    assert_eq!(aws.logs.messages("env0-deployments"), tiny);
    let message = &aws.logs.messages("env0-audits")[0];
    let key = &aws.s3.objects_with("env0-audits/")[0].key;
    assert!(
        message.ends_with(&format!(" in line 0, counted from 0, of {key}]")),
        "{}",
        &message[message.len() - 200..]
    );
    assert!(large.starts_with(message.split(" [cut by").next().unwrap()) && message.len() > 1_048_500);
}

#[test]
fn what_cloudwatch_answers_200_for_and_throws_away_is_counted_and_said() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let daemon = setup.start();
    let info = serde_json::json!({"tooOldLogEventEndIndex": 1, "tooNewLogEventStartIndex": 4});
    aws.logs.inject(LogsFault::reject(info));
    assert_eq!(daemon.post(DEPLOYMENTS, ["{}"; 6].join("\n")).accepted(), 6);
    wait_until("it is counted", || (skipped(&daemon, "too_old"), skipped(&daemon, "too_new")) == (1.0, 2.0));
    wait_until("its file is gone", || waiting(&setup).is_empty());
    assert_eq!(lane(&daemon, "env0-deployments")["events_sent"], 3);
    assert_eq!(daemon.log().count("WARN", "CloudWatch has left out events"), 1);
}

/// The most memory that a daemon needs to bring batches of 2 MiB to S3, and to CloudWatch where it is configured.
fn peak_memory(aws: &LocalAws, setup: &Setup) -> u64 {
    let daemon = setup.start();
    let books = Books::default();
    for _ in 0..60 {
        send(&daemon, &books, 1000);
    }
    books.balance(aws, setup);
    wait_until("CloudWatch has all", || waiting(setup).is_empty());
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.process_id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn the_lane_to_cloudwatch_takes_at_most_sixteen_mib_of_memory() {
    let (aws, beside) = (LocalAws::start(), LocalAws::start());
    let sized = |setup: Setup| setup.set("ENV0_S3_LOG_BATCH_MAX_BYTES", "2MiB");
    let without = peak_memory(&aws, &sized(Setup::new(&aws)));
    let with = peak_memory(&beside, &sized(setup(&beside)));
    println!("peak memory: {} KiB without the lane, {} KiB with it", without >> 10, with >> 10);
    assert!(with.saturating_sub(without) <= 16 << 20, "{without} and {with}");
    assert!(TYPES.iter().all(|group| beside.logs.messages(group).len() == 60_000));
}

#[test]
fn without_its_variables_the_next_start_removes_what_waits_and_says_so() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let books = Books::default();
    let mut daemon = setup.start();
    aws.logs.deny(PUT);
    send(&daemon, &books, 5);
    books.balance(&aws, &setup);
    wait_until("the batches wait", || waiting(&setup).len() == 2);
    daemon.terminate();
    let setup = setup.unset("ENV0_CLOUDWATCH_ROLE_ARN").unset("ENV0_CLOUDWATCH_AWS_REGION");
    let daemon = setup.start();
    assert!(waiting(&setup).is_empty());
    assert_eq!((skipped(&daemon, "off"), daemon.log().count("WARN", "were removed")), (10.0, 2));
    let status: Value = serde_json::from_str(&daemon.admin_get("/status").unwrap().text()).unwrap();
    assert_eq!(status.get("cloudwatch"), None);
}

#[test]
fn a_drain_sends_what_waits_for_cloudwatch_and_ends_well_where_it_takes_nothing() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let books = Books::default();
    let daemon = setup.start();
    aws.logs.deny(PUT);
    send(&daemon, &books, 5);
    books.balance(&aws, &setup);
    wait_until("the batches wait", || waiting(&setup).len() == 2);
    daemon.kill();
    let denied = setup.run("drain");
    assert_eq!((denied.code, waiting(&setup).len()), (Some(0), 2), "{denied:?}");
    assert!(format!("{denied:?}").contains("2 batches did not get to CloudWatch"), "{denied:?}");
    aws.logs.heal();
    let sent = setup.run("drain");
    assert_eq!(sent.code, Some(0), "{sent:?}");
    check_cloudwatch(&aws, &setup);
    books.balance(&aws, &setup);
}

#[test]
fn an_end_waits_for_no_cloudwatch_that_hangs_and_s3_has_all() {
    let aws = LocalAws::start();
    let setup = setup(&aws).set("ENV0_S3_LOG_SHUTDOWN_GRACE", "5m").set("ENV0_S3_LOG_BATCH_MAX_AGE", "1h");
    let books = Books::default();
    let mut daemon = setup.start();
    aws.logs.hold();
    send(&daemon, &books, 5);
    let begun = std::time::Instant::now();
    assert!(daemon.terminate().success());
    assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
    books.balance(&aws, &setup);
    assert_eq!(waiting(&setup).len(), 2);
    aws.logs.release();
    let _daemon = setup.start();
    check_cloudwatch(&aws, &setup);
}
