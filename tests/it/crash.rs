//! `kill -9` at any moment loses nothing that was acknowledged, and doubles nothing.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::{AUDITS, Books, DEPLOYMENTS, Daemon, Setup, wait_until};
use crate::local_aws::{Fault, LocalAws};
use crate::pull_figures::peak_kib;

/// How often a daemon is killed.
const ROUNDS: usize = 20;
/// Clients that send at once.
const SENDERS: usize = 6;

fn setup(aws: &LocalAws) -> Setup {
    // Small batches, so that sealing and uploading are going on whenever the kill comes.
    Setup::new(aws).set("ENV0_S3_LOG_BATCH_MAX_BYTES", "64KiB")
}

/// Sends events from several clients until `acknowledgements` more are acknowledged, then kills.
fn load_and_kill(daemon: Daemon, books: &Books, acknowledgements: usize) {
    let target = books.acknowledged() + acknowledgements;
    let gone = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (daemon, gone) = (&daemon, &gone);
        for sender in 0..SENDERS {
            scope.spawn(move || {
                let path = if sender % 3 == 0 { AUDITS } else { DEPLOYMENTS };
                while !gone.load(Ordering::SeqCst) {
                    let ids = books.ids(1 + sender * 5);
                    if let Ok(answer) = daemon.try_post(path, Books::body(&ids))
                        && answer.status == 200
                    {
                        books.acknowledge(ids);
                    }
                }
            });
        }
        wait_until("enough is acknowledged", || books.acknowledged() >= target);
        daemon.signal_kill();
        gone.store(true, Ordering::SeqCst);
    });
    daemon.kill();
}

#[test]
fn killed_twenty_times_under_load_every_acknowledged_event_arrives_once() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let books = Books::default();
    for _ in 0..ROUNDS {
        load_and_kill(setup.start(), &books, rand::random_range(1..2000));
    }
    let _daemon = setup.start();
    books.balance(&aws, &setup);
    assert!(books.acknowledged() > ROUNDS);
}

#[test]
fn killed_while_s3_loses_answers_every_acknowledged_event_arrives_once() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let books = Books::default();
    for _ in 0..ROUNDS {
        aws.s3.inject(Fault::lose_response().times(3));
        aws.s3.inject(Fault::slow_down().times(1));
        load_and_kill(setup.start(), &books, rand::random_range(1..1000));
    }
    aws.s3.heal();
    let _daemon = setup.start();
    books.balance(&aws, &setup);
}

#[test]
fn a_start_on_a_spool_that_a_crash_left_delivers_it_without_a_new_event() {
    let aws = LocalAws::start();
    aws.s3.hold_puts();
    let setup = setup(&aws).set("ENV0_S3_LOG_BATCH_MAX_AGE", "3600s");
    let books = Books::default();
    let ids = books.ids(10);
    let daemon = setup.start();
    assert_eq!(daemon.post(DEPLOYMENTS, Books::body(&ids)).accepted(), 10);
    books.acknowledge(ids);
    daemon.kill();
    aws.s3.release_puts();
    let _daemon = setup.start();
    books.balance(&aws, &setup);
    assert_eq!(aws.s3.line_count(), 10);
}

/// Leaves a batch that is still open, large enough that compressing it takes a while.
fn left_open(setup: &Setup, books: &Books) {
    let ids = books.ids(20_000);
    let daemon = setup.start();
    assert_eq!(daemon.post(DEPLOYMENTS, Books::body(&ids)).accepted(), 20_000);
    books.acknowledge(ids);
    daemon.kill();
}

#[test]
fn a_drain_of_a_batch_that_a_kill_left_open_ends_well_only_when_the_bucket_has_it() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_BATCH_MAX_AGE", "1h").set("ENV0_S3_LOG_COMPRESSION", "gzip");
    left_open(&setup, &Books::default());
    aws.sts.set_down();
    let finished = setup.run("drain --timeout 1s");
    assert_eq!(finished.code, Some(69), "{finished:?}");
    assert!(finished.stderr.contains("20000 events"), "{}", finished.stderr);
    aws.sts.heal();
    let finished = setup.run("drain");
    assert_eq!((finished.code, aws.s3.objects().len()), (Some(0), 1), "{finished:?}");
}

#[test]
fn a_drain_with_the_open_batch_still_to_be_sealed_waits_for_its_upload() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_BATCH_MAX_AGE", "1h").set("ENV0_S3_LOG_COMPRESSION", "gzip");
    left_open(&setup, &Books::default());
    let finished = setup.run("drain");
    assert_eq!((finished.code, aws.s3.objects().len()), (Some(0), 1), "{finished:?}");
}

#[test]
fn a_drain_that_leaves_a_file_in_quarantine_says_so_and_fails() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let books = Books::default();
    let mut daemon = setup.start();
    let ids = books.ids(5);
    assert_eq!(daemon.post(DEPLOYMENTS, Books::body(&ids)).accepted(), 5);
    books.acknowledge(ids);
    daemon.terminate();
    std::fs::write(setup.spool().join("quarantine/env0-deployments_notes.txt"), "hello").unwrap();
    let finished = setup.run("drain");
    assert_eq!(finished.code, Some(74), "{finished:?}");
    assert!(finished.stderr.contains("quarantine has 1 file"), "{}", finished.stderr);
    books.balance(&aws, &setup);
}

#[test]
fn a_drain_goes_to_no_endpoint_that_only_the_spool_names() {
    let aws = LocalAws::start();
    aws.s3.inject(Fault::slow_down());
    let setup = setup(&aws);
    let books = Books::default();
    let daemon = setup.start();
    let ids = books.ids(5);
    assert_eq!(daemon.post(DEPLOYMENTS, Books::body(&ids)).accepted(), 5);
    books.acknowledge(ids);
    daemon.kill();
    aws.s3.heal();
    let own = setup.environment()["AWS_ENDPOINT_URL_S3"].clone();
    let setup = setup.set("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9");
    let puts = aws.s3.put_count();
    let finished = setup.run("drain");
    assert_eq!((finished.code, aws.s3.put_count()), (Some(78), puts), "{finished:?}");
    assert!(finished.stderr.contains(&own) && finished.stderr.contains("--to-manifest"), "{}", finished.stderr);
    let finished = setup.run("drain --to-manifest");
    assert_eq!((finished.code, aws.s3.line_count()), (Some(0), 5), "{finished:?}");
}

#[test]
fn events_accepted_under_a_wrong_region_are_drained_to_the_right_one() {
    let aws = LocalAws::start();
    aws.s3.inject(Fault::permanent_redirect("eu-west-1"));
    let wrong = Setup::new(&aws).set("ENV0_S3_LOG_AWS_REGION", "us-west-2");
    let books = Books::default();
    let mut daemon = wrong.start();
    let ids = books.ids(5);
    assert_eq!(daemon.post(DEPLOYMENTS, Books::body(&ids)).accepted(), 5);
    books.acknowledge(ids);
    wait_until("S3 refuses the region", || aws.s3.put_count() > 0);
    daemon.terminate();
    aws.s3.heal();
    let right = wrong.set("ENV0_S3_LOG_AWS_REGION", "eu-west-1");
    assert_eq!(right.run("run").code, Some(78));
    assert_eq!(right.run("drain").code, Some(0));
    let signed = aws.s3.objects()[0].headers["authorization"].to_str().unwrap().to_owned();
    assert!(signed.contains("/eu-west-1/s3/"), "{signed}");
    let _daemon = right.start();
    books.balance(&aws, &right);
}

#[test]
fn lines_of_many_megabytes_that_a_crash_left_take_little_memory_at_the_start() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    daemon.post(DEPLOYMENTS, "{\"id\":1}\n");
    daemon.kill();
    let folder = setup.spool().join("env0-deployments");
    let open = setup.spool_files("env0-deployments").into_iter().find(|name| name.ends_with(".open")).unwrap();
    let mut file = std::fs::File::options().append(true).open(folder.join(&open)).unwrap();
    let text = vec![b'x'; 64 << 20];
    // The first is an event, the second none.
    for [before, after] in [["{\"a\":\"", "\"}\n"], ["{\"a\":\"", "\n{\"id\":2}\n"]] {
        file.write_all(before.as_bytes()).unwrap();
        file.write_all(&text).unwrap();
        file.write_all(after.as_bytes()).unwrap();
    }
    drop(file);
    let daemon = setup.start();
    wait_until("the batch is stored", || aws.s3.line_count() == 3);
    let peak = peak_kib(&daemon);
    assert!(peak < 60 * 1024, "{peak} KiB");
    assert_eq!(aws.s3.lines().iter().map(String::len).collect::<Vec<_>>(), [8, 8 + text.len(), 8]);
    let set_aside = setup.spool_files("quarantine");
    assert_eq!(set_aside.len(), 1, "{set_aside:?}");
    let size = std::fs::metadata(setup.spool().join("quarantine").join(&set_aside[0])).unwrap().len();
    assert_eq!(size, 7 + text.len() as u64);
}
