//! The long run: a million acknowledged events through hundreds of kills under every fault in turn, with a
//! table of what was tried, how often, and what was lost.
//!
//! ```sh
//! cargo test --test it -- --ignored --nocapture long_run
//! ```
//!
//! `LONG_RUN_KILLS` and `LONG_RUN_EVENTS` make it longer or shorter.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use crate::harness::{AUDITS, Books, DEPLOYMENTS, Daemon, Setup, wait_until};
use crate::local_aws::{Fault, LocalAws, sts::StsError};

const KILLS: usize = 220;
const EVENTS: usize = 1_050_000;
/// Clients that send at once.
const SENDERS: usize = 8;
/// Every so many rounds the end is a SIGTERM in place of a SIGKILL.
const TERMINATE_EVERY: usize = 10;

type Plan = fn(&LocalAws);

/// What goes wrong in a round, beside the kill.
const FAULTS: [(&str, Plan); 15] = [
    ("nothing else", |_| {}),
    ("lost answers after the PUT", |aws| aws.s3.inject(Fault::lose_response().times(4))),
    ("connections dropped before the PUT", |aws| aws.s3.inject(Fault::drop_connection().times(4))),
    ("500 InternalError after the PUT", |aws| aws.s3.inject(Fault::internal_error_after_storing().times(4))),
    ("500 InternalError", |aws| aws.s3.inject(Fault::internal_error().times(4))),
    ("503 SlowDown", |aws| aws.s3.inject(Fault::slow_down())),
    ("403 AccessDenied, one type", |aws| aws.s3.inject(Fault::access_denied().where_key_has("env0-audits"))),
    ("404 NoSuchBucket", |aws| aws.s3.inject(Fault::no_such_bucket().times(8))),
    ("403 KMS denied", |aws| aws.s3.inject(Fault::kms_denied().times(8))),
    ("409 conflict", |aws| aws.s3.inject(Fault::conflict().times(4))),
    ("400 BadDigest", |aws| aws.s3.inject(Fault::bad_digest().times(4))),
    ("answers that never come", |aws| aws.s3.inject(Fault::hang().times(2))),
    ("400 ExpiredToken, all sessions ended", |aws| {
        aws.expire_all_sessions();
        aws.s3.inject(Fault::expired_token().times(2));
    }),
    ("STS throttles", |aws| aws.sts.fail_next(3, StsError::throttling())),
    ("STS down", |aws| aws.sts.set_down()),
];

fn number(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).map_or(otherwise, |value| value.parse().unwrap())
}

/// Loads a daemon from several clients until `acknowledgements` more are acknowledged, then ends it; how many
/// requests were refused or broken off.
fn round(mut daemon: Daemon, books: &Books, acknowledgements: usize, kill: bool) -> usize {
    let target = books.acknowledged() + acknowledgements;
    let (ended, refused) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            let (daemon, ended, refused) = (&daemon, &ended, &refused);
            scope.spawn(move || {
                let path = if sender % 3 == 0 { AUDITS } else { DEPLOYMENTS };
                while !ended.load(Ordering::SeqCst) {
                    let ids = books.ids(rand::random_range(1..400));
                    match daemon.try_post(path, Books::body(&ids)) {
                        Ok(answer) if answer.status == 200 => books.acknowledge(ids),
                        _ => drop(refused.fetch_add(1, Ordering::SeqCst)),
                    }
                }
            });
        }
        wait_until("enough is acknowledged", || books.acknowledged() >= target);
        if kill {
            daemon.signal_kill()
        } else {
            daemon.signal_terminate()
        }
        ended.store(true, Ordering::SeqCst);
    });
    daemon.wait();
    refused.into_inner()
}

#[test]
#[ignore = "takes minutes"]
fn long_run() {
    let (kills, events) = (number("LONG_RUN_KILLS", KILLS), number("LONG_RUN_EVENTS", EVENTS));
    let started = Instant::now();
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_BATCH_MAX_BYTES", "256KiB").set("ENV0_S3_LOG_SHUTDOWN_GRACE", "4s");
    let books = Books::default();
    let mut table = BTreeMap::<&str, (usize, usize, usize)>::new();
    let mut killed = 0;
    let mut rounds = 0;
    while killed < kills || books.acknowledged() < events {
        let (name, plan) = FAULTS[rounds % FAULTS.len()];
        plan(&aws);
        let kill = !rounds.is_multiple_of(TERMINATE_EVERY);
        let before = books.acknowledged();
        let most = 2 * events / kills;
        let refused = round(setup.start(), &books, rand::random_range(1..most), kill);
        aws.s3.heal();
        aws.sts.heal();
        rounds += 1;
        killed += usize::from(kill);
        let row = table.entry(name).or_default();
        *row = (row.0 + 1, row.1 + books.acknowledged() - before, row.2 + refused);
        if rounds.is_multiple_of(TERMINATE_EVERY) {
            let acknowledged = books.acknowledged();
            println!("{:>5} s  {killed:>4} kills  {acknowledged:>8} events acknowledged", started.elapsed().as_secs());
        }
    }
    let _daemon = setup.start();
    // Panics where an event is lost, doubled or changed, or a chain has a hole.
    books.balance(&aws, &setup);
    println!("\n| beside the kill | rounds | events acknowledged | requests refused or broken off | lost | doubled |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: |");
    for (name, (rounds, acknowledged, refused)) in table {
        println!("| {name} | {rounds} | {acknowledged} | {refused} | 0 | 0 |");
    }
    let (acknowledged, objects, puts) = (books.acknowledged(), aws.s3.objects().len(), aws.s3.put_count());
    println!("| all: {killed} kills | {rounds} | {acknowledged} | | 0 | 0 |");
    println!("\n{objects} objects by {puts} PUTs, {} lines, in {} s", aws.s3.line_count(), started.elapsed().as_secs());
}
