//! The long run: a million acknowledged events through hundreds of kills under every fault in turn, with a
//! table of what was tried, how often, and what was lost. The spool's own long run tries what only a file system in
//! memory can.
//!
//! ```sh
//! cargo test -- --ignored --nocapture long_run
//! ```
//!
//! `LONG_RUN_KILLS` and `LONG_RUN_EVENTS` make it longer or shorter; `LONG_RUN_ONLY=disk` leaves out what hasn't that
//! in its name.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::harness::{AUDITS, Books, DEPLOYMENTS, Daemon, Setup, wait_until, wait_until_delivered};
use crate::local_aws::{Fault, LocalAws, sts::StsError};
use crate::machine::{self, Machine};
use crate::network::{Proxy, Weather};

const KILLS: usize = 220;
const EVENTS: usize = 1_050_000;
/// Clients that send at once.
const SENDERS: usize = 8;
/// Every so many rounds the end is a SIGTERM in place of a SIGKILL.
const TERMINATE_EVERY: usize = 10;
/// How long a frozen disk stays so: longer than a request waits for its turn.
const FROZEN: Duration = Duration::from_secs(7);
/// The size of a spool that is to get full: less than a round sends.
const SMALL_SPOOL: &str = "768KiB";

/// What goes wrong in a round, beside the kill.
enum Trouble {
    /// At S3, at STS or on the way there, from before the start on.
    Away(fn(&LocalAws, &Proxy)),
    /// S3 takes nothing, and the spool holds little.
    FullSpool,
    /// With the spool of a daemon that runs and has nothing to do.
    Idle(fn(&Setup)),
    /// With a loaded daemon or what it runs on.
    Loaded(fn(&Machine, &Daemon)),
    /// With the disk of a daemon that is under load and has no request in flight, until the next start: while a journal
    /// is being aborted, ext4 says yes to an fsync that stored nothing, whoever asks.
    Broken(fn(&Machine)),
    /// With the machine itself, at the daemon's end.
    PowerCut,
    /// The same; to accept new connections, the daemon may close others.
    Crowded(fn(&Daemon)),
}

use Trouble::{Away, Broken, Crowded, FullSpool, Idle, Loaded, PowerCut};

const TROUBLES: [(&str, Trouble); 39] = [
    ("nothing else", Away(|_, _| {})),
    ("lost answers after the PUT", Away(|aws, _| aws.s3.inject(Fault::lose_response().times(4)))),
    ("connections dropped before the PUT", Away(|aws, _| aws.s3.inject(Fault::drop_connection().times(4)))),
    ("500 InternalError after the PUT", Away(|aws, _| aws.s3.inject(Fault::internal_error_after_storing().times(4)))),
    ("500 InternalError", Away(|aws, _| aws.s3.inject(Fault::internal_error().times(4)))),
    ("200 of a login page", Away(|aws, _| aws.s3.inject(Fault::block_page().times(4)))),
    ("200 with another checksum", Away(|aws, _| aws.s3.inject(Fault::other_checksum().times(4)))),
    ("403 of a proxy", Away(|aws, _| aws.s3.inject(Fault::foreign(403, "blocked").times(4)))),
    ("503 SlowDown", Away(|aws, _| aws.s3.inject(Fault::slow_down()))),
    ("403 AccessDenied, one type", Away(|aws, _| aws.s3.inject(Fault::access_denied().where_key_has("env0-audits")))),
    ("404 NoSuchBucket", Away(|aws, _| aws.s3.inject(Fault::no_such_bucket().times(8)))),
    ("403 KMS denied", Away(|aws, _| aws.s3.inject(Fault::kms_denied().times(8)))),
    ("409 conflict", Away(|aws, _| aws.s3.inject(Fault::conflict().times(4)))),
    ("400 BadDigest", Away(|aws, _| aws.s3.inject(Fault::bad_digest().times(4)))),
    ("301 wrong region", Away(|aws, _| aws.s3.inject(Fault::permanent_redirect("us-west-2").times(8)))),
    ("403 RequestTimeTooSkewed", Away(|aws, _| aws.s3.inject(Fault::request_time_too_skewed().times(8)))),
    ("answers that never come", Away(|aws, _| aws.s3.inject(Fault::hang().times(2)))),
    ("answers that come late", Away(|aws, _| aws.s3.inject(Fault::delay(Duration::from_secs(1)).times(8)))),
    (
        "400 ExpiredToken, all sessions ended",
        Away(|aws, _| {
            aws.expire_all_sessions();
            aws.s3.inject(Fault::expired_token().times(2));
        }),
    ),
    ("STS throttles", Away(|aws, _| aws.sts.fail_next(3, StsError::throttling()))),
    ("STS down", Away(|aws, _| aws.sts.set_down())),
    ("network: connections refused", Away(|_, proxy| proxy.set(Weather::Refuse))),
    ("network: connections cut", Away(|_, proxy| proxy.set(Weather::CutAfter(3000)))),
    ("network: connections stall", Away(|_, proxy| proxy.set(Weather::Stall))),
    ("network: the answers are lost", Away(|_, proxy| proxy.set(Weather::NoWayBack))),
    ("network: 64 KiB a second", Away(|_, proxy| proxy.set(Weather::Slow(64 << 10)))),
    ("the spool is full", FullSpool),
    ("disk: full", Loaded(|machine, _| machine.fill_disk())),
    ("disk: fsync fails, EIO", Loaded(|machine, _| machine.fail_fsyncs(Errno::IO))),
    ("disk: over quota, EDQUOT at fsync", Loaded(|machine, _| machine.fail_fsyncs(Errno::DQUOT))),
    ("disk: turns read-only", Broken(Machine::make_read_only)),
    ("disk: frozen for 7 s", Loaded(|machine, _| machine.freeze(FROZEN))),
    ("disk: the volume goes away and comes back", Loaded(|machine, _| machine.take_volume_away())),
    ("disk: lost, and mounted anew as another device", Broken(Machine::lose_volume_and_mount_it_anew)),
    ("power cut, what was not fsynced is forgotten", PowerCut),
    ("the folders are removed", Idle(remove_folders)),
    ("a limit of 100 KiB a file", Loaded(|_, daemon| machine::limit_file_size(daemon, 100 << 10))),
    ("hardly a free file descriptor", Crowded(|daemon| machine::limit_descriptors(daemon, 4))),
    ("the clock jumps by hours", Loaded(|machine, _| machine.set_clock(rand::random_range(-4 * 3600..4 * 3600)))),
];

/// Not while they hold a batch: what was sealed is gone with its folder.
fn remove_folders(setup: &Setup) {
    wait_until_delivered(setup);
    for log_type in ["env0-deployments", "env0-audits"] {
        std::fs::remove_dir_all(setup.spool().join(log_type)).unwrap();
    }
}

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

/// A daemon's life under load.
struct Round<'a> {
    senders: &'a [Sender],
    books: &'a Books,
    /// How many events of it are to be acknowledged.
    events: usize,
    /// By SIGKILL; by SIGTERM otherwise.
    kill: bool,
    /// Whether connections may break while the daemon runs.
    breaks: bool,
    /// Whether trouble waits until no request is in flight.
    between_requests: bool,
}

impl Round<'_> {
    /// Loads a daemon from all clients. Trouble `strikes` at half of the events; it goes on until all of them are
    /// acknowledged or as many requests as there are clients were refused; where it `passes` then, until all are
    /// acknowledged. Then ends the daemon; the clients go on until it is gone.
    fn run(&self, mut daemon: Daemon, strikes: impl FnOnce(&Daemon), passes: Option<impl FnOnce()>) -> Misses {
        let before = self.books.acknowledged();
        let acknowledged = |events| self.books.acknowledged() >= before + events;
        let (ending, misses) = (AtomicBool::new(false), Misses::default());
        let in_flight = RwLock::new(());
        std::thread::scope(|scope| {
            for sender in self.senders {
                let (daemon, ending, misses, in_flight) = (&daemon, &ending, &misses, &in_flight);
                scope.spawn(move || {
                    loop {
                        let request = in_flight.read().unwrap();
                        let sent = sender.send(daemon, self.books, misses);
                        drop(request);
                        match sent {
                            Ok(true) => {}
                            Err(_) if ending.load(Ordering::SeqCst) => return,
                            Err(error) if !self.breaks => panic!("broken off while the daemon runs: {error}"),
                            // A shipper backs off.
                            Ok(false) | Err(_) => std::thread::park_timeout(Duration::from_millis(50)),
                        }
                    }
                });
            }
            wait_until("half is acknowledged", || acknowledged(self.events / 2) || self.refuses(&misses));
            let none = self.between_requests.then(|| in_flight.write().unwrap());
            strikes(&daemon);
            drop(none);
            wait_until("all is acknowledged or enough refused", || acknowledged(self.events) || self.refuses(&misses));
            if let Some(passes) = passes {
                passes();
                wait_until("all is acknowledged", || acknowledged(self.events));
            }
            ending.store(true, Ordering::SeqCst);
            if self.kill { daemon.signal_kill() } else { daemon.signal_terminate() }
        });
        daemon.wait();
        misses
    }

    fn refuses(&self, misses: &Misses) -> bool {
        misses.refused.load(Ordering::SeqCst) >= self.senders.len()
    }
}

/// Once at rest, per type: accepted + recovered = uploaded + spooled + quarantined.
fn check_law(daemon: &Daemon) {
    for log_type in ["env0-deployments", "env0-audits"] {
        let count = |name: &str| {
            let sample = format!("{name}{{type=\"{log_type}\"}}");
            daemon.metric(&sample).unwrap_or_else(|| panic!("no {sample}"))
        };
        // It is counted just after its file is out of the way.
        wait_until("all of it is counted as delivered", || count("events_spooled") == 0.0);
        let came = count("events_accepted_total") + count("events_recovered_total");
        assert_eq!(came, count("events_uploaded_total"), "{log_type}");
        assert_eq!(count("events_quarantined_total"), 0.0, "{log_type}");
    }
}

#[test]
#[ignore = "takes minutes, and root"]
fn long_run() {
    let (kills, events) = (number("LONG_RUN_KILLS", KILLS), number("LONG_RUN_EVENTS", EVENTS));
    let only = std::env::var("LONG_RUN_ONLY").unwrap_or_default();
    assert!(TROUBLES.iter().any(|(name, _)| name.contains(&only)), "LONG_RUN_ONLY={only} names no trouble");
    run("ext4", kills, events, |name, _| name.contains(&only));
    for kind in ["xfs", "btrfs"] {
        run(kind, kills / 4, events / 4, |name, trouble| name.contains(&only) && is_of_the_machine(kind, trouble));
    }
}

/// What can go wrong with a machine whose file system is of this kind. Only ext4 can be told to break in each way, and
/// btrfs to forget.
fn is_of_the_machine(kind: &str, trouble: &Trouble) -> bool {
    match trouble {
        Away(_) => false,
        Broken(_) => kind == "ext4",
        PowerCut => kind != "btrfs",
        FullSpool | Idle(_) | Loaded(_) | Crowded(_) => true,
    }
}

#[test]
#[cfg_attr(not(may_mount_images), ignore = "mounts a file system in a file, which takes root and a loop device")]
fn each_trouble_of_the_machine_and_a_kill_lose_nothing() {
    let each = TROUBLES.iter().filter(|(_, trouble)| is_of_the_machine("ext4", trouble)).count();
    // The first round ends by a SIGTERM: its trouble has another one.
    run("ext4", each, each * 1000, |_, trouble| is_of_the_machine("ext4", trouble));
}

/// On a file system of this kind. Panics where an event is lost, doubled or changed.
fn run(kind: &str, kills: usize, events: usize, chosen: impl Fn(&str, &Trouble) -> bool) {
    let troubles: Vec<_> = TROUBLES.iter().filter(|(name, trouble)| chosen(name, trouble)).collect();
    if troubles.is_empty() {
        return;
    }
    let started = Instant::now();
    let folder = tempfile::tempdir().unwrap();
    let machine = Machine::start(folder.path(), kind);
    let aws = LocalAws::start();
    let proxy = Proxy::start(&aws, Weather::Fair);
    let setup = || {
        let setup = proxy.setup(&aws).set("ENV0_S3_LOG_BATCH_MAX_BYTES", "256KiB");
        machine.setup(setup.set("ENV0_S3_LOG_SHUTDOWN_GRACE", "4s"))
    };
    let (setup, small) = (setup(), setup().set("ENV0_S3_LOG_SPOOL_MAX_BYTES", SMALL_SPOOL));
    let books = Books::default();
    let path = |sender: usize| if sender.is_multiple_of(3) { AUDITS } else { DEPLOYMENTS };
    let senders: Vec<_> =
        (0..SENDERS).map(|sender| Sender { path: path(sender), unanswered: Mutex::default() }).collect();
    let mut table = BTreeMap::<&str, [usize; 4]>::new();
    let mut killed = 0;
    let mut rounds = 0;
    while killed < kills || books.acknowledged() < events {
        let (name, trouble) = troubles[rounds % troubles.len()];
        match trouble {
            Away(plan) => plan(&aws, &proxy),
            FullSpool => aws.s3.hold_puts(),
            _ => {}
        }
        let daemon = if matches!(trouble, FullSpool) { small.start() } else { setup.start() };
        if let Idle(plan) = trouble {
            plan(&setup);
        }
        let strikes = |daemon: &Daemon| match trouble {
            Loaded(plan) => plan(&machine, daemon),
            Broken(plan) => plan(&machine),
            Crowded(plan) => plan(daemon),
            Away(_) | FullSpool | Idle(_) | PowerCut => {}
        };
        let heal = || {
            aws.s3.heal();
            aws.sts.heal();
            proxy.set(Weather::Fair);
            machine.heal();
        };
        let before = books.acknowledged();
        let round = Round {
            senders: &senders,
            books: &books,
            events: rand::random_range(1..2 * events / kills),
            kill: !rounds.is_multiple_of(TERMINATE_EVERY),
            breaks: matches!(trouble, Crowded(_)),
            between_requests: matches!(trouble, Broken(_)),
        };
        let passes = (!matches!(trouble, Broken(_)) && rand::random()).then_some(heal);
        let misses = round.run(daemon, strikes, passes);
        if matches!(trouble, PowerCut) {
            machine.cut_power();
        }
        heal();
        machine.remount();
        rounds += 1;
        killed += usize::from(round.kill);
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
        "\n| beside the kill, on {kind} | rounds | events acknowledged | requests refused (503) | requests broken off | lost | doubled |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    for (name, [rounds, acknowledged, refused, broken_off]) in table {
        println!("| {name} | {rounds} | {acknowledged} | {refused} | {broken_off} | 0 | 0 |");
    }
    let (acknowledged, objects, puts) = (books.acknowledged(), aws.s3.objects().len(), aws.s3.put_count());
    println!("| all on {kind}: {killed} kills | {rounds} | {acknowledged} | | | 0 | 0 |");
    println!("\n{objects} objects by {puts} PUTs, {} lines, in {} s", aws.s3.line_count(), started.elapsed().as_secs());
}
