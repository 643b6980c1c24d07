//! Tests how a writer groups appends, when it closes a batch by itself, and what the status tells meanwhile.

use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::join_all;
use metrics_exporter_prometheus::PrometheusBuilder;

use super::fault_disk::{Effect, Errno, Op};
use super::world::{DEADLINE, TYPE, World};
use crate::batch::SpoolName;
use crate::spool::AppendError;
use crate::spool::terms::SealReason;
use crate::status::{ChainHead, Timestamp};
use crate::volume::unnamed;

/// Stops the thread at its next fsync of an open batch, until the second channel's sender is dropped.
fn stall_fsyncs(world: &World) -> (mpsc::Receiver<()>, mpsc::Sender<()>) {
    let ((stalls, is_stalled), (resume, resumes)) = (mpsc::channel(), mpsc::channel::<()>());
    world.disk.rule_that_may_not_strike(move |op, path| {
        if op == Op::Sync && path.to_string_lossy().ends_with(".open") {
            let _ = stalls.send(());
            let _ = resumes.recv();
        }
        Effect::Pass
    });
    (is_stalled, resume)
}

/// What is appended in requests of these sizes while an earlier fsync runs: the calls in the log type's folder
/// for them, and the batches.
fn append_at_once(batch_max_bytes: u64, sizes: &[usize]) -> (Vec<Op>, World) {
    let mut world = World::new();
    (world.settings.max_bytes, world.settings.batch_max_bytes) = (1 << 30, batch_max_bytes);
    world.open().unwrap();
    let (is_stalled, resume) = stall_fsyncs(&world);
    let spool = world.spool().clone();
    let append = |lines: String| Box::pin(spool.append(TYPE, lines.into(), 1));
    let mut first = append("first\n".to_owned());
    assert!((&mut first).now_or_never().is_none());
    is_stalled.recv().unwrap();
    let lines = |(index, size): (usize, &usize)| format!("{}\n", index.to_string().repeat(size - 1));
    let lines: Vec<String> = sizes.iter().enumerate().map(lines).collect();
    let mut others: Vec<_> = lines.iter().cloned().map(append).collect();
    assert!(others.iter_mut().all(|other| other.now_or_never().is_none()));
    drop(resume);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let receipts = runtime.block_on(join_all(others));
    assert!(receipts.iter().all(Result::is_ok), "{receipts:?}");
    let calls = world.disk.trace().into_iter().filter(|(_, path)| path.starts_with(world.dir()));
    let for_the_first =
        |(op, path): &(Op, PathBuf)| *op != Op::Sync || path.extension().is_none_or(|end| end != "open");
    let calls = calls.skip_while(for_the_first).skip(1).map(|(op, _)| op).collect();
    world.disk.heal();
    world.seal();
    let written = world.waiting.iter().map(|batch| world.disk.bytes(&world.folder().batch_path(batch)).unwrap());
    assert_eq!(written.collect::<Vec<_>>().concat(), format!("first\n{}", lines.concat()).as_bytes());
    (calls, world)
}

const KIB: usize = 1024;

#[test]
fn requests_that_arrive_during_an_fsync_share_the_next_one_and_small_ones_a_write() {
    let writes_for = [
        (1, vec![KIB; 10]),
        (1, vec![200 * KIB, 56 * KIB]),
        (2, vec![200 * KIB, 56 * KIB + 1]),
        (2, vec![100 * KIB; 3]),
        (2, vec![128 * KIB; 4]),
        (2, vec![10, 10, 300 * KIB]),
        (3, vec![10, 300 * KIB, 10]),
    ];
    for (writes, sizes) in writes_for {
        let expected = [vec![Op::Write; writes], vec![Op::Sync]].concat();
        assert_eq!(append_at_once(1 << 30, &sizes).0, expected, "{sizes:?}");
    }
}

#[test]
fn of_a_flood_an_fsync_covers_four_mebibytes_so_that_nobody_waits_for_all_of_it() {
    let (calls, _) = append_at_once(1 << 30, &[2048 * KIB; 5]);
    let one = [Op::Write, Op::BeginWriteOut];
    let two = [one, one].concat();
    assert_eq!(calls, [&two[..], &[Op::Sync], &two, &[Op::Sync], &one, &[Op::Sync]].concat());
}

#[test]
fn the_disk_begins_with_each_mebibyte_of_a_group_before_its_fsync() {
    let (write, begin) = (Op::Write, Op::BeginWriteOut);
    for (sizes, expected) in [
        (vec![1024 * KIB - 1], vec![write, Op::Sync]),
        (vec![1024 * KIB], vec![write, begin, Op::Sync]),
        (vec![400 * KIB; 4], vec![write, write, write, begin, write, Op::Sync]),
    ] {
        assert_eq!(append_at_once(1 << 30, &sizes).0, expected, "{sizes:?}");
    }
}

#[test]
fn a_batch_is_sealed_at_its_size_and_a_request_that_does_not_fit_begins_the_next() {
    // The first has six bytes.
    let batches_of = [
        (vec![94], vec![100]),
        (vec![95], vec![6, 95]),
        (vec![40, 54, 10], vec![100, 10]),
        (vec![40, 55, 10], vec![46, 65]),
        (vec![150, 10], vec![6, 150, 10]),
    ];
    for (sizes, expected) in batches_of {
        let (_, world) = append_at_once(100, &sizes);
        let batches: Vec<u64> = world.waiting.iter().map(|batch| batch.bytes).collect();
        assert_eq!(batches, expected, "{sizes:?}");
    }
}

#[test]
fn a_batch_is_sealed_at_its_age() {
    let mut world = World::new();
    world.settings.batch_max_age = Duration::from_millis(20);
    world.open().unwrap();
    world.append(1).unwrap();
    world.settle();
    assert_eq!(world.waiting.len(), 1);
    world.deliver_all();
}

#[test]
fn a_writer_tells_how_long_it_has_been_at_one_piece_of_work() {
    const AT_LEAST: Duration = Duration::from_millis(20);
    let mut world = World::opened();
    world.append(1).unwrap();
    world.wait_until("it is idle", |world| world.spool().busy_for() == Duration::ZERO);
    let (is_stalled, resume) = stall_fsyncs(&world);
    let spool = world.spool().clone();
    let append = spool.append(TYPE, "{}\n".into(), 1);
    let mut append = Box::pin(append);
    assert!((&mut append).now_or_never().is_none());
    is_stalled.recv().unwrap();
    // Nobody but the writer has the disk now, to name its files in a failure.
    let since = Instant::now();
    while spool.busy_for() < AT_LEAST {
        assert!(since.elapsed() < DEADLINE, "the time stands still");
        std::thread::yield_now();
    }
    drop(resume);
    world.wait_until("it is idle again", |world| world.spool().busy_for() == Duration::ZERO);
}

#[test]
fn a_disk_is_tried_without_an_event_until_it_works_again() {
    let mut world = World::opened();
    world.disk.fail(Op::Write, "", Errno::NOSPC);
    world.append(1).unwrap_err();
    let is_probe = |(op, path): &(Op, PathBuf)| *op == Op::Write && path.ends_with("probe.tmp");
    world.wait_until("the disk is tried", |world| world.disk.trace().iter().any(is_probe));
    let error = world.spool().failing(TYPE).unwrap();
    assert_eq!(unnamed(&error).raw_os_error(), Some(Errno::NOSPC.raw_os_error()));
    world.disk.heal();
    world.wait_until("the status says so", |world| world.spool().failing(TYPE).is_none());
}

#[test]
fn a_spool_that_is_closed_seals_what_is_open_and_takes_nothing_more() {
    let mut world = World::opened();
    world.append(1).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(world.spool().close());
    let names = world.files();
    assert!(names.iter().all(|name| matches!(name, SpoolName::Sealed(_))), "{names:?}");
    assert!(matches!(world.append(1), Err(AppendError::Closed)));
    assert_eq!(world.files(), names);
}

#[test]
fn a_full_spool_says_so_before_anything_is_sent_to_it() {
    let world = World::opened();
    let spool = world.spool();
    let room = spool.usage().limit_bytes() / 10 * 9;
    spool.check_room(TYPE, room).unwrap();
    assert!(matches!(spool.check_room(TYPE, room + 10), Err(AppendError::TooLarge { .. })));
    let taken = spool.take_room(TYPE, 10).unwrap();
    assert!(matches!(spool.check_room(TYPE, room), Err(AppendError::Full { used_bytes: 10, .. })));
    drop(taken);
}

#[test]
fn a_status_tells_the_last_event_the_oldest_batch_and_the_chains_head() {
    let mut world = World::opened();
    let status = world.folder().status("");
    assert_eq!((status.last_accepted, status.oldest_unsent, status.head), (None, None, None));
    let before = chrono::Utc::now().timestamp_millis();
    let receipt = world.append(1).unwrap();
    // The acknowledgement doesn't wait for the status.
    world.wait_until("it is counted", |world| world.folder().status("").events_spooled == 1);
    let status = world.folder().status("chain");
    assert!(status.last_accepted.is_some_and(|Timestamp(at)| at.timestamp_millis() >= before));
    assert_eq!((status.oldest_unsent, status.head), (Some(Timestamp(receipt.batch.opened)), None));
    assert_eq!((status.chain_instance.as_str(), status.events_accepted, status.batches), ("chain", 1, 0));
    world.seal();
    let status = world.folder().status("");
    let head = ChainHead { sequence: 1, sha256: world.waiting[0].name.sha256.to_string() };
    assert_eq!((status.head, status.batches, status.spool_bytes), (Some(head), 1, world.waiting[0].bytes));
}

#[test]
fn every_fsync_and_every_sealed_batch_is_measured_under_a_listed_reason() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let mut world = World::new();
    metrics::with_local_recorder(&recorder, || world.open().unwrap());
    world.append(1).unwrap();
    world.append(1).unwrap();
    let folder = world.folder();
    metrics::with_local_recorder(&recorder, || {
        SealReason::ALL.into_iter().for_each(|reason| folder.count_sealed(reason));
    });
    let text = recorder.handle().render();
    assert!(text.contains("_fsync_duration_seconds_count 2\n"), "{text}");
    for reason in ["size", "age", "shutdown", "recovery", "disk_error"] {
        let series = format!("_batches_sealed_total{{type=\"env0-deployments\",reason=\"{reason}\"}} 1\n");
        assert!(text.contains(&series), "{series} is not in {text}");
    }
}
