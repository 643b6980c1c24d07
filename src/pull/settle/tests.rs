//! What a start makes of batches that it can't read, on a disk with faults.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use chrono::DateTime;
use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::pull::deployments::tests::{beginning, is_finished};
use crate::pull::place::{Place, Shared};
use crate::spool::tests::fault_disk::{Cut, Effect, Errno, Op};
use crate::spool::tests::world::{TYPE, World};

/// Far more than any of these starts takes.
const LONG: Duration = Duration::from_secs(60);

async fn place(spool: &Spool, log_type: LogType) -> Place<DeploymentMemory> {
    let shared = Shared { one_at_a_time: Arc::default(), stop: CancellationToken::new(), max_event_bytes: 1 << 20 };
    Place::open(spool, log_type, "o", shared, beginning()).await.unwrap()
}

/// A world after a crash between a batch and its place: the batch has the last line of the deployment `d`.
async fn crashed() -> World {
    let mut world = World::opened();
    drop(place(world.spool(), TYPE).await);
    // The second line is the longer one: a bit in the middle of the file is one of its bits.
    let another = format!("{{\"eventId\":\"{}\"}}\n", "x".repeat(100));
    let lines = "{\"eventId\":\"d-finished\",\"deploymentLogId\":\"d\"}\n".to_owned() + &another;
    world.spool().append(TYPE, Bytes::from(lines), 2).await.unwrap();
    world.seal();
    world.crash(Cut::Kill);
    world
}

/// Settles. Whether the place then knows the line; the gate has to be open.
async fn knows_after_settling(world: &World) -> bool {
    let spool = world.spool().clone();
    let settled = begin(&spool);
    tokio::time::timeout(LONG, settled[TYPE].wait()).await.expect("settled");
    assert!(spool.gate(TYPE).pass(DateTime::<Utc>::MAX_UTC).now_or_never().is_some(), "the gate is shut");
    is_finished(&place(&spool, TYPE).await.memory)
}

#[tokio::test]
async fn what_a_crash_left_in_a_whole_batch_is_known_after_the_start() {
    assert!(knows_after_settling(&crashed().await).await);
}

#[tokio::test]
async fn a_batch_that_is_to_be_compressed_is_read_as_the_plain_lines_that_it_still_has() {
    for codec in [Codec::Gzip, Codec::Zstd] {
        let mut world = World::with_codec(codec);
        world.open().unwrap();
        drop(place(world.spool(), TYPE).await);
        let line = Bytes::from("{\"eventId\":\"d-finished\",\"deploymentLogId\":\"d\"}\n");
        world.spool().append(TYPE, line, 1).await.unwrap();
        assert!(knows_after_settling(&world).await, "{codec:?}");
    }
}

#[tokio::test]
async fn a_batch_that_is_renamed_while_the_folder_is_listed_is_not_missed() {
    let world = crashed().await;
    let mut missed = 0;
    world.disk.rule(move |op, path| {
        let misses = op == Op::Entry && path.to_string_lossy().ends_with(".sealed") && missed < 3;
        missed += u32::from(misses);
        if misses { Effect::Fail(Errno::NOENT) } else { Effect::Pass }
    });
    assert!(knows_after_settling(&world).await);
}

#[tokio::test]
async fn a_batch_that_is_read_slowly_and_refused_once_is_read_again() {
    let world = crashed().await;
    let mut refused = false;
    world.disk.rule(move |op, path| {
        let refuses = !refused && op == Op::Read && path.to_string_lossy().ends_with(".sealed");
        refused |= refuses;
        if refuses {
            // The time is what is tested: it is longer than all tries of a file that is refused at once.
            std::thread::sleep(RETRY_AFTER * (TRIES + 10));
            return Effect::Fail(Errno::IO);
        }
        Effect::Pass
    });
    assert!(knows_after_settling(&world).await);
}

#[tokio::test]
async fn a_batch_that_is_renamed_after_a_long_reading_is_looked_for_under_its_new_name() {
    let world = crashed().await;
    let mut opened = 0;
    world.disk.rule(move |op, path| {
        if opened == 2 || op != Op::Open || !path.to_string_lossy().ends_with(".sealed") {
            return Effect::Pass;
        }
        opened += 1;
        // As above: that it takes longer than all tries is what is tested.
        std::thread::sleep(RETRY_AFTER * (TRIES + 10));
        if opened == 1 { Effect::Fail(Errno::NOENT) } else { Effect::Pass }
    });
    assert!(knows_after_settling(&world).await);
}

#[tokio::test]
async fn a_place_that_cannot_be_written_after_a_start_holds_up_no_other_and_begins_later() {
    let world = crashed().await;
    world.disk.fail(Op::Rename, "_o.json", Errno::ACCESS);
    let spool = world.spool().clone();
    tokio::time::timeout(LONG, begin(&spool)[TYPE].wait()).await.expect("settled");
    let passes = || spool.gate(TYPE).pass(spool.folder(TYPE).last_opened().unwrap()).now_or_never().is_some();
    assert!(!passes() && spool.gate(TYPE).pass(DateTime::<Utc>::MAX_UTC).now_or_never().is_some());
    let shared = || Shared { one_at_a_time: Arc::default(), stop: CancellationToken::new(), max_event_bytes: 1 << 20 };
    let refused = Place::open(&spool, TYPE, "o", shared(), beginning()).await;
    assert!(matches!(refused, Err(PlaceError::Unsettled { .. })));
    world.disk.heal();
    let written = async {
        while !passes() {
            tokio::time::sleep(RETRY_AFTER).await;
        }
    };
    tokio::time::timeout(LONG, written).await.expect("the place is written after all");
    assert!(is_finished(&place(&spool, TYPE).await.memory));
}

#[tokio::test]
async fn a_damaged_batch_opens_the_gate_and_its_events_count_as_not_taken() {
    let world = crashed().await;
    world.disk.flip_bit(&world.file("sealed"));
    assert!(!knows_after_settling(&world).await);
}

#[tokio::test]
async fn a_batch_that_cannot_be_read_opens_the_gate_and_its_events_count_as_not_taken() {
    let world = crashed().await;
    world.disk.fail(Op::Read, ".sealed", Errno::IO);
    assert!(!knows_after_settling(&world).await);
}

#[tokio::test]
async fn a_place_that_cannot_be_read_opens_the_gate() {
    let world = crashed().await;
    world.disk.fail(Op::Read, "_o.json", Errno::IO);
    let spool = world.spool().clone();
    tokio::time::timeout(LONG, begin(&spool)[TYPE].wait()).await.expect("settled");
    world.disk.heal();
    assert!(!is_finished(&place(&spool, TYPE).await.memory));
}

#[tokio::test]
async fn a_log_type_whose_folder_cannot_be_read_holds_up_no_other() {
    let world = crashed().await;
    let shared = Shared { one_at_a_time: Arc::default(), stop: CancellationToken::new(), max_event_bytes: 1 << 20 };
    let first = AuditMemory::beginning(DateTime::UNIX_EPOCH);
    drop(Place::open(world.spool(), LogType::Audits, "o", shared, first).await.unwrap());
    let audits = world.spool().folder(LogType::Audits).dir.clone();
    let (refuses, is_refused) = std::sync::mpsc::channel();
    world.disk.rule(move |op, path: &Path| match op == Op::List && path == audits {
        true => {
            let _ = refuses.send(());
            Effect::Fail(Errno::IO)
        }
        false => Effect::Pass,
    });
    let settled = begin(world.spool());
    tokio::time::timeout(LONG, settled[TYPE].wait()).await.expect("the other type is settled");
    is_refused.recv_timeout(LONG).expect("the folder is asked for");
    assert!(settled[LogType::Audits].get().is_none());
    world.disk.heal();
    tokio::time::timeout(LONG, settled[LogType::Audits].wait()).await.expect("settled after the disk works again");
}

#[tokio::test]
async fn a_line_that_is_longer_than_any_pulled_one_is_passed_over() {
    let mut world = World::opened();
    world
        .spool()
        .append(TYPE, Bytes::from("{\"a\":1}\n{\"a\":1234567890}\n{\"b\":1}\n{\"b\":\"12345678\"}\n"), 4)
        .await
        .unwrap();
    world.seal();
    let spool = world.spool();
    let mut lines = Vec::new();
    let mut found = |line: &[u8]| lines.push(String::from_utf8(line.to_vec()).unwrap());
    read_lines(spool, &world.file("sealed"), Codec::None, 8, &mut found).unwrap();
    assert_eq!(lines, ["{\"a\":1}", "{\"b\":1}"]);
}
