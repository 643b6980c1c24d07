//! The long run: a million acknowledged events through hundreds of kills under every fault in turn, with a
//! table of what was tried, how often, and what was lost.
//!
//! ```sh
//! cargo test --test it -- --ignored --nocapture long_run
//! ```
//!
//! `LONG_RUN_KILLS` and `LONG_RUN_EVENTS` make it longer or shorter.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{AUDITS, Books, DEPLOYMENTS, Daemon, wait_until, wait_until_delivered};
use crate::local_aws::{Fault, LocalAws, sts::StsError};
use crate::network::{Proxy, Weather};

const KILLS: usize = 220;
const EVENTS: usize = 1_050_000;
/// Clients that send at once.
const SENDERS: usize = 8;
/// Every so many rounds the end is a SIGTERM in place of a SIGKILL.
const TERMINATE_EVERY: usize = 10;

type Plan = fn(&LocalAws, &Proxy);

/// What goes wrong in a round, beside the kill.
const FAULTS: [(&str, Plan); 21] = [
    ("nothing else", |_, _| {}),
    ("lost answers after the PUT", |aws, _| aws.s3.inject(Fault::lose_response().times(4))),
    ("connections dropped before the PUT", |aws, _| aws.s3.inject(Fault::drop_connection().times(4))),
    ("500 InternalError after the PUT", |aws, _| aws.s3.inject(Fault::internal_error_after_storing().times(4))),
    ("500 InternalError", |aws, _| aws.s3.inject(Fault::internal_error().times(4))),
    ("503 SlowDown", |aws, _| aws.s3.inject(Fault::slow_down())),
    ("403 AccessDenied, one type", |aws, _| aws.s3.inject(Fault::access_denied().where_key_has("env0-audits"))),
    ("404 NoSuchBucket", |aws, _| aws.s3.inject(Fault::no_such_bucket().times(8))),
    ("403 KMS denied", |aws, _| aws.s3.inject(Fault::kms_denied().times(8))),
    ("409 conflict", |aws, _| aws.s3.inject(Fault::conflict().times(4))),
    ("400 BadDigest", |aws, _| aws.s3.inject(Fault::bad_digest().times(4))),
    ("301 wrong region", |aws, _| aws.s3.inject(Fault::permanent_redirect("us-west-2").times(8))),
    ("403 RequestTimeTooSkewed", |aws, _| aws.s3.inject(Fault::request_time_too_skewed().times(8))),
    ("answers that never come", |aws, _| aws.s3.inject(Fault::hang().times(2))),
    ("answers that come late", |aws, _| aws.s3.inject(Fault::delay(Duration::from_secs(1)).times(8))),
    ("400 ExpiredToken, all sessions ended", |aws, _| {
        aws.expire_all_sessions();
        aws.s3.inject(Fault::expired_token().times(2));
    }),
    ("STS throttles", |aws, _| aws.sts.fail_next(3, StsError::throttling())),
    ("STS down", |aws, _| aws.sts.set_down()),
    ("proxy: connections reset", |_, proxy| proxy.set(Weather::CutAfter(3000))),
    ("proxy: connections stall", |_, proxy| proxy.set(Weather::Stall)),
    ("proxy: the answers are lost", |_, proxy| proxy.set(Weather::NoWayBack)),
];

fn number(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).map_or(otherwise, |value| value.parse().unwrap())
}

/// A client that keeps what it sends until it is acknowledged, as a shipper does.
struct Sender {
    path: &'static str,
    unanswered: Mutex<Vec<String>>,
}

/// How requests ended that were not acknowledged.
#[derive(Default)]
struct Misses {
    /// By a 503.
    refused: AtomicUsize,
    /// By a connection that was refused or broke, as a kill does.
    broken_off: AtomicUsize,
}

impl Sender {
    /// Sends what is kept, or new events; whether they were acknowledged, or refused with a 503.
    fn send(&self, daemon: &Daemon, books: &Books, misses: &Misses) -> std::io::Result<bool> {
        let mut unanswered = self.unanswered.lock().unwrap();
        if unanswered.is_empty() {
            *unanswered = books.ids(rand::random_range(1..400));
        }
        let answer = daemon.try_post(self.path, Books::body(&unanswered)).inspect_err(|_| {
            books.repeat(&unanswered);
            misses.broken_off.fetch_add(1, Ordering::SeqCst);
        })?;
        if answer.status == 200 {
            books.acknowledge(std::mem::take(&mut unanswered));
        } else {
            assert_eq!(answer.status, 503, "{}", answer.text());
            misses.refused.fetch_add(1, Ordering::SeqCst);
        }
        Ok(answer.status == 200)
    }
}

/// Loads a daemon from all clients until `acknowledgements` more are acknowledged, then ends it; they go on until
/// it is gone.
fn round(mut daemon: Daemon, senders: &[Sender], books: &Books, acknowledgements: usize, kill: bool) -> Misses {
    let target = books.acknowledged() + acknowledgements;
    let (ending, misses) = (AtomicBool::new(false), Misses::default());
    std::thread::scope(|scope| {
        for sender in senders {
            let (daemon, ending, misses) = (&daemon, &ending, &misses);
            scope.spawn(move || {
                loop {
                    match sender.send(daemon, books, misses) {
                        Ok(true) => {}
                        // A shipper backs off.
                        Ok(false) => std::thread::park_timeout(Duration::from_millis(50)),
                        Err(error) => {
                            assert!(ending.load(Ordering::SeqCst), "broken off while the daemon runs: {error}");
                            return;
                        }
                    }
                }
            });
        }
        wait_until("enough is acknowledged", || books.acknowledged() >= target);
        ending.store(true, Ordering::SeqCst);
        if kill { daemon.signal_kill() } else { daemon.signal_terminate() }
    });
    daemon.wait();
    misses
}

/// At rest, per type: accepted + recovered = uploaded + spooled + quarantined (contract section 7).
fn check_law(daemon: &Daemon) {
    for log_type in ["env0-deployments", "env0-audits"] {
        let count = |name: &str| {
            let sample = format!("{name}{{type=\"{log_type}\"}}");
            daemon.metric(&sample).unwrap_or_else(|| panic!("no {sample}"))
        };
        let came = count("events_accepted_total") + count("events_recovered_total");
        let went = count("events_uploaded_total") + count("events_quarantined_total");
        assert_eq!(came, went + count("events_spooled"), "{log_type}");
        assert_eq!((count("events_spooled"), count("events_quarantined_total")), (0.0, 0.0), "{log_type}");
    }
}

#[test]
#[ignore = "takes minutes"]
fn long_run() {
    let (kills, events) = (number("LONG_RUN_KILLS", KILLS), number("LONG_RUN_EVENTS", EVENTS));
    let started = Instant::now();
    let aws = LocalAws::start();
    let proxy = Proxy::start(&aws, Weather::Fair);
    let setup = proxy.setup(&aws).set("ENV0_S3_LOG_BATCH_MAX_BYTES", "256KiB").set("ENV0_S3_LOG_SHUTDOWN_GRACE", "4s");
    let books = Books::default();
    let path = |sender: usize| if sender.is_multiple_of(3) { AUDITS } else { DEPLOYMENTS };
    let senders: Vec<_> =
        (0..SENDERS).map(|sender| Sender { path: path(sender), unanswered: Mutex::default() }).collect();
    let mut table = BTreeMap::<&str, [usize; 4]>::new();
    let mut killed = 0;
    let mut rounds = 0;
    while killed < kills || books.acknowledged() < events {
        let (name, plan) = FAULTS[rounds % FAULTS.len()];
        plan(&aws, &proxy);
        let kill = !rounds.is_multiple_of(TERMINATE_EVERY);
        let before = books.acknowledged();
        let most = 2 * events / kills;
        let misses = round(setup.start(), &senders, &books, rand::random_range(1..most), kill);
        aws.s3.heal();
        aws.sts.heal();
        proxy.set(Weather::Fair);
        rounds += 1;
        killed += usize::from(kill);
        let row = table.entry(name).or_default();
        let more = [1, books.acknowledged() - before, misses.refused.into_inner(), misses.broken_off.into_inner()];
        row.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        if rounds.is_multiple_of(TERMINATE_EVERY) {
            let acknowledged = books.acknowledged();
            println!("{:>5} s  {killed:>4} kills  {acknowledged:>8} events acknowledged", started.elapsed().as_secs());
        }
    }
    let daemon = setup.start();
    let misses = Misses::default();
    for sender in senders.iter().filter(|sender| !sender.unanswered.lock().unwrap().is_empty()) {
        wait_until("what was refused is taken", || sender.send(&daemon, &books, &misses).unwrap());
    }
    wait_until_delivered(&setup);
    check_law(&daemon);
    // Panics where an event is lost, doubled or changed, or a chain has a hole.
    books.balance(&aws, &setup);
    println!(
        "\n| beside the kill | rounds | events acknowledged | requests refused (503) | requests broken off | lost | doubled |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    for (name, [rounds, acknowledged, refused, broken_off]) in table {
        println!("| {name} | {rounds} | {acknowledged} | {refused} | {broken_off} | 0 | 0 |");
    }
    let (acknowledged, objects, puts) = (books.acknowledged(), aws.s3.objects().len(), aws.s3.put_count());
    println!("| all: {killed} kills | {rounds} | {acknowledged} | | | 0 | 0 |");
    println!("\n{objects} objects by {puts} PUTs, {} lines, in {} s", aws.s3.line_count(), started.elapsed().as_secs());
}
