//! A start with a large backlog: ready at once, small in memory, one type's trouble is not the other's.

use std::path::Path;
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use env0_s3_logs::batch::{BatchName, Codec, SealedName, Sha256, SpoolName, Stage};

use crate::harness::{AUDITS, Books, DEPLOYMENTS, Daemon, Setup, event, wait_until};
use crate::local_aws::{Fault, LocalAws};

/// Batches that wait for each type.
const BATCHES: u64 = 1000;
const LINES: u64 = 100;
const MEMORY_MAX_BYTES: u64 = 64 << 20;

/// Leaves sealed batches in a log type's folder, numbered from 1, as earlier runs would have left them.
/// `body` makes one batch's file, and says how many lines and which hash it has.
fn leave_backlog(folder: &Path, batches: u64, mut body: impl FnMut(u64, &Path) -> (u64, Sha256)) {
    for entry in std::fs::read_dir(folder).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let written = folder.join("being written.tmp");
    let mut previous = Sha256::ZERO;
    let mut opened = None;
    for sequence in 1..=batches {
        let (records, sha256) = body(sequence, &written);
        let batch = BatchName::open(Utc::now() - TimeDelta::days(1), opened, Codec::None);
        opened = Some(batch.opened);
        let name = SealedName { batch, sequence, records, sha256, previous, stage: Stage::Sealed };
        std::fs::rename(&written, folder.join(name.to_string())).unwrap();
        previous = sha256;
    }
}

/// The most memory that a process has had, in bytes.
fn peak_memory(process_id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process_id}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn two_thousand_batches_drain_in_little_memory_while_one_type_is_denied() {
    let aws = LocalAws::start();
    aws.s3.inject(Fault::access_denied().where_key_has("env0-audits"));
    let setup = Setup::new(&aws);
    drop(setup.start());
    for log_type in ["env0-deployments", "env0-audits"] {
        leave_backlog(&setup.spool().join(log_type), BATCHES, |sequence, file| {
            let lines = (0..LINES).map(|line| event(&format!("{log_type}-{sequence}-{line}")) + "\n");
            let body: String = lines.collect();
            std::fs::write(file, &body).unwrap();
            (LINES, Sha256::of(body.as_bytes()))
        });
    }
    let started = Instant::now();
    let daemon = setup.start();
    println!("ready after {:?}", started.elapsed());
    let books = Books::default();
    let mut slowest = Duration::ZERO;
    wait_until("the deployments are delivered", || {
        let ids = books.ids(1);
        let sent = Instant::now();
        assert_eq!(daemon.post(DEPLOYMENTS, Books::body(&ids)).accepted(), 1);
        slowest = slowest.max(sent.elapsed());
        books.acknowledge(ids);
        aws.s3.objects_with("env0-deployments").len() as u64 >= BATCHES
    });
    println!("slowest acknowledgement while it drains: {slowest:?}");
    assert!(aws.s3.objects_with("env0-audits").is_empty());
    aws.s3.heal();
    books.balance(&aws, &setup);
    let peak = peak_memory(daemon.process_id());
    println!("peak memory: {} KiB", peak / 1024);
    assert!(peak < MEMORY_MAX_BYTES, "{peak} bytes");
    assert_eq!(aws.s3.line_count() as u64, 2 * BATCHES * LINES + books.acknowledged() as u64);
}

#[test]
#[ignore = "uploads 20 GiB, which takes minutes: cargo test --test it -- --ignored --nocapture twenty_gib"]
fn twenty_gib_in_two_thousand_batches_drain_in_little_memory() {
    const BATCH_BYTES: u64 = 10 << 20;
    let aws = LocalAws::start();
    aws.s3.measure_only();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_SPOOL_MAX_BYTES", "64GiB");
    drop(setup.start());
    // Holes: as large as any file to whoever reads them, and nothing on the disk.
    let hash = Sha256::of(&vec![0; BATCH_BYTES as usize]);
    for log_type in ["env0-deployments", "env0-audits"] {
        leave_backlog(&setup.spool().join(log_type), BATCHES, |_, file| {
            std::fs::File::create(file).unwrap().set_len(BATCH_BYTES).unwrap();
            (1, hash)
        });
    }
    let started = Instant::now();
    let daemon = setup.start();
    println!("ready after {:?}", started.elapsed());
    let (mut acknowledged, mut slowest) = (0, Duration::ZERO);
    let started = Instant::now();
    let delivered = || aws.s3.objects().iter().filter(|object| object.size as u64 == BATCH_BYTES).count() as u64;
    while delivered() < 2 * BATCHES {
        let sent = Instant::now();
        acknowledged += daemon.post(DEPLOYMENTS, "{}").accepted();
        slowest = slowest.max(sent.elapsed());
    }
    let peak = peak_memory(daemon.process_id());
    println!("drained in {:?}, peak memory {} MiB", started.elapsed(), peak >> 20);
    println!("{acknowledged} events acknowledged meanwhile, the slowest in {slowest:?}");
    assert!(peak < MEMORY_MAX_BYTES, "{peak} bytes");
}

#[test]
#[ignore = "makes a million files: cargo test --test it -- --ignored --nocapture a_million_batches"]
fn a_million_batches_start_in_the_memory_that_a_pod_has() {
    const A_MILLION: u64 = 1_000_000;
    /// A file system takes some 65,000 names of one file.
    const NAMES_OF_ONE_FILE: u64 = 50_000;
    /// The memory of the pod in `config/kubernetes`.
    const POD_BYTES: u64 = 256 << 20;
    let aws = LocalAws::start();
    aws.s3.inject(Fault::access_denied());
    let setup = Setup::new(&aws);
    drop(setup.start());
    let folder = setup.folder().to_owned();
    let line = "{}\n";
    leave_backlog(&setup.spool().join("env0-audits"), A_MILLION, |sequence, file| {
        let body = folder.join(format!("body{}", sequence / NAMES_OF_ONE_FILE));
        if !body.exists() {
            std::fs::write(&body, line).unwrap();
        }
        std::fs::hard_link(&body, file).unwrap();
        (1, Sha256::of(line.as_bytes()))
    });
    let started = Instant::now();
    let daemon = setup.spawn_starting(free_address().parse().unwrap());
    while daemon.admin_get("/readyz").is_none_or(|answer| answer.status != 200) {
        assert!(started.elapsed() < Duration::from_secs(600), "it is not ready");
        std::thread::yield_now();
    }
    println!("ready after {:?}", started.elapsed());
    assert_eq!(spooled(&daemon, "env0-audits")["batches"], A_MILLION);
    let peak = peak_memory(daemon.process_id());
    println!("peak memory {} MiB", peak >> 20);
    assert!(peak < POD_BYTES, "{peak} bytes");
}

#[test]
fn a_large_batch_that_a_crash_left_open_is_recovered_in_little_memory() {
    const LINE_BYTES: usize = 1 << 20;
    const LARGE_LINES: usize = 160;
    let aws = LocalAws::start();
    aws.s3.measure_only();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_BATCH_MAX_BYTES", "1GiB");
    drop(setup.start());
    let name = SpoolName::Open(BatchName::open(Utc::now(), None, Codec::None)).to_string();
    let line = format!("{{\"id\":\"large\",\"message\":\"{}\"}}\n", "x".repeat(LINE_BYTES));
    let mut file = std::fs::File::create(setup.spool().join("env0-deployments").join(name)).unwrap();
    for index in 0..LARGE_LINES {
        // One line that is no event, so that the file has to be parted in two.
        let line = if index == 7 { "not JSON\n" } else { &line };
        std::io::Write::write_all(&mut file, line.as_bytes()).unwrap();
    }
    let daemon = setup.start();
    let peak = peak_memory(daemon.process_id());
    assert!(peak < MEMORY_MAX_BYTES, "{peak} bytes");
    assert_eq!(daemon.metric("events_recovered_total{type=\"env0-deployments\"}"), Some(LARGE_LINES as f64));
    assert_eq!(daemon.metric("events_quarantined_total{type=\"env0-deployments\"}"), Some(1.0));
    wait_until("it is delivered", || aws.s3.line_count() == LARGE_LINES - 1);
}

#[test]
fn a_hole_that_a_crash_left_in_a_batch_is_never_in_memory_as_a_whole() {
    const HOLE_BYTES: u64 = 300 << 20;
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_BATCH_MAX_BYTES", "1GiB");
    drop(setup.start());
    let name = SpoolName::Open(BatchName::open(Utc::now(), None, Codec::None)).to_string();
    let mut file = std::fs::File::create(setup.spool().join("env0-audits").join(name)).unwrap();
    // The hole begins within a line, as it does where an append's last pages were not written.
    std::io::Write::write_all(&mut file, b"{\"id\":1}\n{\"id\":2,\"mess").unwrap();
    file.set_len(HOLE_BYTES).unwrap();
    let daemon = setup.start();
    let peak = peak_memory(daemon.process_id());
    assert!(peak < MEMORY_MAX_BYTES, "{peak} bytes");
    wait_until("the whole line is delivered", || aws.s3.line_count() == 1);
}

/// The spool's side of a log type in `/status`.
fn spooled(daemon: &Daemon, log_type: &str) -> serde_json::Value {
    let status = daemon.admin_get("/status").unwrap().json();
    let types = status["types"].as_array().unwrap();
    types.iter().find(|of_type| of_type["type"] == log_type).unwrap().clone()
}

#[test]
fn a_spool_that_is_full_for_one_type_says_so_once_and_once_that_it_has_room_again() {
    let aws = LocalAws::start();
    aws.s3.hold_puts();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_SPOOL_MAX_BYTES", "1MiB");
    let setup = setup.set("ENV0_S3_LOG_BATCH_MAX_BYTES", "64KiB").set("ENV0_S3_LOG_ADMIN_ADDR", free_address());
    let (daemon, books) = (setup.start(), Books::default());
    let mut refusals = Vec::new();
    while refusals.len() < 3 {
        let ids = books.ids(200);
        match daemon.post(DEPLOYMENTS, Books::body(&ids)) {
            answer if answer.status == 200 => books.acknowledge(ids),
            answer => refusals.push((answer.status, answer.text())),
        }
    }
    let of = spooled(&daemon, "env0-deployments");
    let said =
        format!("env0-deployments holds {} of the {} bytes that it may take", of["spool_bytes"], of["share_bytes"]);
    assert!(refusals.iter().all(|(status, text)| *status == 503 && text.contains(&said)), "{said}: {refusals:?}");
    assert_eq!(of["share_bytes"], (1 << 20) - (1 << 20) / 10);
    assert!(of["full_since"].is_string(), "{of}");
    assert!(spooled(&daemon, "env0-audits")["full_since"].is_null());
    wait_until("it is said", || daemon.log().count("WARN", "the spool is full for this log type") > 0);
    assert_eq!(daemon.log().count("WARN", "the spool is full for this log type"), 1);
    let check = setup.run("check --offline").stdout;
    assert!(check.contains("the spool has been full for env0-deployments since"), "{check}");
    aws.s3.release_puts();
    wait_until("there is room again", || spooled(&daemon, "env0-deployments")["full_since"].is_null());
    books.balance(&aws, &setup);
    // The line comes a moment after the status.
    wait_until("it is said", || daemon.log().count("INFO", "the spool has room again") > 0);
    assert_eq!(daemon.log().count("INFO", "the spool has room again"), 1);
}

#[test]
fn an_event_that_the_spool_could_never_take_is_refused_for_good() {
    let aws = LocalAws::start();
    let daemon = Setup::new(&aws).set("ENV0_S3_LOG_SPOOL_MAX_BYTES", "64KiB").start();
    let answer = daemon.post(DEPLOYMENTS, event(&"x".repeat(64 << 10)));
    assert_eq!(answer.status, 413, "{}", answer.text());
    assert!(answer.text().contains("ENV0_S3_LOG_SPOOL_MAX_BYTES"), "{}", answer.text());
}

#[test]
fn keys_that_are_ahead_of_the_clock_are_said_once() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_ADMIN_ADDR", free_address());
    drop(setup.start());
    // Opened while the clock was ahead.
    let ahead = Utc::now() + TimeDelta::days(3650);
    let name = SpoolName::Open(BatchName::open(ahead, None, Codec::None)).to_string();
    std::fs::write(setup.spool().join("env0-audits").join(name), event("ahead") + "\n").unwrap();
    let (daemon, books) = (setup.start(), Books::default());
    for batches in 1..=2 {
        let ids = books.ids(1);
        assert_eq!(daemon.post(AUDITS, Books::body(&ids)).accepted(), 1);
        books.acknowledge(ids);
        wait_until("its batch is delivered", || aws.s3.objects_with("env0-audits").len() == 1 + batches);
    }
    wait_until("it is said", || daemon.log().count("WARN", "the time in keys is ahead of the clock") > 0);
    assert_eq!(daemon.log().count("WARN", "the time in keys is ahead of the clock"), 1);
    let seconds = |log_type| spooled(&daemon, log_type)["key_time_ahead_seconds"].as_u64().unwrap();
    assert!((3649 * 86400..=3650 * 86400).contains(&seconds("env0-audits")), "{}", seconds("env0-audits"));
    assert_eq!(seconds("env0-deployments"), 0);
    let check = setup.run("check --offline").stdout;
    assert!(check.contains("the time in keys of env0-audits is"), "{check}");
}

fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}
