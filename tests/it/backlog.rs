//! A start with a large backlog: ready at once, small in memory, one type's trouble is not the other's.

use std::path::Path;
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use env0_s3_logs::batch::{BatchName, Codec, SealedName, Sha256, SpoolName, Stage};

use crate::harness::{Books, DEPLOYMENTS, Setup, event, wait_until};
use crate::local_aws::{Fault, LocalAws};

/// Batches that wait for each type.
const BATCHES: u64 = 1000;
const LINES: u64 = 100;
const MEMORY_MAX_BYTES: u64 = 64 << 20;

/// Leaves sealed batches in a log type's folder, numbered from 1, as earlier runs would have left them.
/// `body` writes one batch's file, and says how many lines and which hash it has.
fn leave_backlog(folder: &Path, mut body: impl FnMut(u64, &Path) -> (u64, Sha256)) {
    for entry in std::fs::read_dir(folder).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let written = folder.join("being written.tmp");
    let mut previous = Sha256::ZERO;
    let mut opened = None;
    for sequence in 1..=BATCHES {
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
        leave_backlog(&setup.spool().join(log_type), |sequence, file| {
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
        leave_backlog(&setup.spool().join(log_type), |_, file| {
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
