//! Errors of the disk while the daemon runs lead to refusals, never to a loss, and pass by themselves.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::fault_disk::{Cut, Effect, Errno, Op};
use super::property::ERRORS;
use super::world::{Fate, TYPE, World, line};
use crate::batch::{Codec, LogType, Stage};
use crate::spool::AppendError;
use crate::spool::disk::READ_BUFFER_BYTES;
use crate::volume::unnamed;

fn sealed() -> World {
    let mut world = World::opened();
    world.append(2).unwrap();
    world.seal();
    world
}

/// Sends until an append is taken; the sealer may still be bringing a file to safety.
fn append_again(world: &mut World) {
    world.wait_until("appends are taken again", |world| world.append(1).is_ok());
}

#[test]
#[should_panic(expected = "no call came")]
fn a_fault_that_no_call_meets_fails_its_test() {
    let world = World::opened();
    world.disk.fail_once(Op::Sync, "no such name", Errno::IO);
    world.disk.heal();
}

#[test]
fn a_write_that_fails_leaves_nothing_and_the_next_one_is_taken() {
    for errno in ERRORS {
        let mut world = World::opened();
        world.append(2).unwrap();
        let file = world.file(".open");
        world.disk.fail_once(Op::Write, ".open", errno);
        let refusal = world.append(3).unwrap_err();
        let cause = std::error::Error::source(&refusal).and_then(|cause| cause.downcast_ref::<Arc<io::Error>>());
        assert_eq!(cause.and_then(|cause| unnamed(cause).raw_os_error()), Some(errno.raw_os_error()), "{refusal}");
        let open = world.disk.bytes(&file);
        assert!(errno == Errno::FBIG || open == Some((line(0) + &line(1)).into_bytes()), "{errno}: {open:?}");
        append_again(&mut world);
        world.deliver_all();
    }
}

#[test]
fn a_disk_that_fails_for_long_is_told_and_uploads_go_on() {
    let mut world = sealed();
    world.disk.fail(Op::Write, "", Errno::NOSPC);
    world.append(1).unwrap_err();
    assert!(world.spool().failing(TYPE).is_some());
    world.upload(Fate::Stored).unwrap();
    assert_eq!(world.bucket.len(), 1);
    world.disk.heal();
    append_again(&mut world);
    // The acknowledgement doesn't wait for the status.
    world.wait_until("the status says so", |world| world.spool().failing(TYPE).is_none());
    world.deliver_all();
}

#[test]
fn after_a_failed_fsync_nothing_is_appended_and_what_was_acknowledged_is_salvaged() {
    for errno in ERRORS {
        let mut world = World::opened();
        world.append(2).unwrap();
        let poisoned = world.file(".open");
        world.disk.fail_once(Op::Sync, ".open", errno);
        world.append(3).unwrap_err();
        append_again(&mut world);
        world.seal();
        assert_eq!(world.disk.bytes(&poisoned), None, "the poisoned file goes");
        assert_eq!(world.waiting[0].name.records, 2, "only what was acknowledged is salvaged");
        world.crash(Cut::Strict);
        world.deliver_all();
        assert_eq!((world.missing(), world.quarantine().len()), (0, 0));
    }
}

#[test]
fn what_a_failed_fsync_spoiled_outlives_a_kill_before_salvage_and_a_power_cut_after() {
    let mut world = World::opened();
    world.append(2).unwrap();
    world.disk.rule(|op, path| {
        let fails = (op == Op::Sync && path.extension().is_some_and(|ending| ending == "open"))
            || (op == Op::Create && path.extension().is_some_and(|ending| ending == "tmp"));
        if fails { Effect::Fail(Errno::IO) } else { Effect::Pass }
    });
    world.append(1).unwrap_err();
    world.crash(Cut::Kill);
    world.crash(Cut::Strict);
    world.deliver_all();
    assert_eq!((world.missing(), world.quarantine()), (0, Vec::new()));
}

#[test]
fn while_a_salvage_fails_the_type_answers_503_and_the_other_goes_on() {
    let mut world = World::opened();
    world.append(2).unwrap();
    let mut first = true;
    world.disk.rule(move |op, path| {
        let name = path.to_string_lossy();
        let poison = first && op == Op::Sync && name.ends_with(".open");
        first &= !poison;
        if poison || name.ends_with(".tmp") && op == Op::Create { Effect::Fail(Errno::IO) } else { Effect::Pass }
    });
    world.append(1).unwrap_err();
    for _ in 0..3 {
        assert!(matches!(world.append(1), Err(AppendError::Disk(_))));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(world.spool().append(LogType::Audits, "{}\n".into(), 1)).unwrap();
    world.disk.heal();
    append_again(&mut world);
    world.deliver_all();
    assert_eq!(world.missing(), 0);
}

#[test]
fn a_truncation_that_fails_leads_to_a_new_file_too() {
    let mut world = World::opened();
    world.append(2).unwrap();
    world.disk.rule(|op, path| {
        let open = path.to_string_lossy().ends_with(".open");
        if open && matches!(op, Op::Write | Op::Truncate) { Effect::Fail(Errno::IO) } else { Effect::Pass }
    });
    world.append(3).unwrap_err();
    world.disk.heal();
    append_again(&mut world);
    world.seal();
    assert_eq!(world.waiting[0].name.records, 2);
    world.crash(Cut::Strict);
    world.deliver_all();
    assert_eq!((world.missing(), world.quarantine().len()), (0, 0));
}

#[test]
fn bytes_that_changed_before_a_salvage_go_to_quarantine_never_to_the_bucket() {
    let mut world = World::opened();
    world.append(2).unwrap();
    let file = world.file(".open");
    world.disk.flip_bit(&file);
    world.disk.fail_once(Op::Sync, ".open", Errno::IO);
    world.append(1).unwrap_err();
    world.wait_until("it is in quarantine", |world| !world.quarantine().is_empty());
    append_again(&mut world);
    world.deliver_all();
    assert_eq!(world.missing(), 2);
    assert_eq!(world.folder().status("").events_quarantined, 2);
}

#[test]
fn a_rename_that_meets_a_full_disk_gets_the_room_of_the_spare_file() {
    for errno in [Errno::NOSPC, Errno::DQUOT] {
        let mut world = sealed();
        let spare_file = world.settings.dir.join("reserve");
        assert_eq!(world.disk.bytes(&spare_file).map(|bytes| bytes.len()), Some(64 * 1024));
        // The disk is full until a file is removed.
        let mut full = true;
        world.disk.rule(move |op, path| {
            full &= !(op == Op::Remove && path.ends_with("reserve"));
            if full && matches!(op, Op::Rename | Op::Write | Op::Create) { Effect::Fail(errno) } else { Effect::Pass }
        });
        world.upload(Fate::AnswerLost).unwrap();
        assert_eq!(world.disk.bytes(&spare_file), None);
        world.disk.heal();
        world.append(1).unwrap();
        world.seal();
        world.wait_until("the spare file is made again", |world| world.disk.bytes(&spare_file).is_some());
        world.deliver_all();
    }
}

#[test]
fn a_delivery_goes_on_when_its_own_rename_meets_a_full_disk() {
    let mut world = sealed();
    let mut full = true;
    world.disk.rule(move |op, path| {
        full &= !(op == Op::Remove && path.ends_with("reserve"));
        let sent = op == Op::Rename && path.to_string_lossy().ends_with(".sent");
        if full && sent { Effect::Fail(Errno::NOSPC) } else { Effect::Pass }
    });
    world.upload(Fate::Stored).unwrap();
    world.deliver_all();
}

#[test]
fn a_seal_that_fails_is_repeated_and_gives_no_number_twice() {
    for codec in Codec::ALL {
        for op in [Op::Rename, Op::SyncDir, Op::Remove] {
            let mut world = World::with_codec(codec);
            world.open().unwrap();
            world.append(2).unwrap();
            world.disk.fail_once(op, TYPE.as_str(), Errno::IO);
            world.seal();
            world.append(2).unwrap();
            world.seal();
            assert_eq!(
                world.waiting.iter().map(|batch| batch.name.sequence).collect::<Vec<_>>(),
                [1, 2],
                "{codec:?} {op:?}"
            );
            world.deliver_all();
        }
    }
}

#[test]
fn an_attempt_that_was_never_made_is_not_taken_for_one_that_may_have_arrived() {
    let mut world = sealed();
    world.disk.fail_once(Op::SyncDir, TYPE.as_str(), Errno::IO);
    world.upload(Fate::Stored).unwrap_err();
    world.disk.heal();
    // Another writer owns the name: the batch must take a new one, not vanish as delivered.
    world.upload(Fate::NameTaken).unwrap();
    world.deliver_all();
    assert_eq!(world.missing(), 0);
}

#[test]
fn an_attempt_that_may_have_arrived_stays_sending() {
    for fate in [Fate::AnswerLost, Fate::LostOnTheWay] {
        let mut world = sealed();
        world.upload(fate).unwrap();
        world.upload(Fate::Refused).unwrap();
        assert_eq!(world.waiting[0].name.stage, Stage::Sending);
        world.crash(Cut::Kill);
        assert_eq!(world.waiting[0].name.stage, Stage::Sending);
        world.deliver_all();
        assert_eq!(world.bucket.len(), 1);
    }
}

#[test]
fn a_removal_that_fails_is_repeated_without_another_put() {
    let mut world = sealed();
    world.append(1).unwrap();
    world.seal();
    let mut batch = world.waiting.remove(0);
    let folder = world.folder();
    folder.set_stage(&mut batch, Stage::Sending).unwrap();
    world.disk.fail(Op::Remove, ".sending", Errno::IO);
    folder.delivered(&mut batch).unwrap_err();
    world.disk.heal();
    world.delivered(&mut batch).unwrap();
    assert_eq!(world.files().len(), 1, "{:?}", world.files());
}

#[test]
fn a_quarantine_that_fails_half_way_is_finished_by_the_next_try() {
    let mut world = sealed();
    world.disk.flip_bit(&world.file(".sealed"));
    let batch = world.waiting.remove(0);
    let folder = world.folder();
    world.disk.fail_once(Op::SyncDir, "quarantine", Errno::IO);
    folder.quarantine(&batch).unwrap_err();
    world.disk.heal();
    folder.quarantine(&batch).unwrap();
    assert_eq!((world.quarantine().len(), folder.gaps()), (1, vec![1]));
}

#[test]
fn a_head_whose_file_can_not_be_made_keeps_its_batch_out_of_quarantine_until_it_can() {
    let mut world = sealed();
    world.disk.flip_bit(&world.file(".sealed"));
    let batch = world.waiting.remove(0);
    let folder = world.folder();
    world.disk.fail_once(Op::Create, ".sent", Errno::IO);
    folder.quarantine(&batch).unwrap_err();
    assert!(world.quarantine().is_empty());
    folder.quarantine(&batch).unwrap();
    assert_eq!(world.quarantine().len(), 1);
    assert_eq!(folder.quarantine_bytes(), batch.bytes);
    world.crash(Cut::Strict);
    assert_eq!(world.folder().head().sequence, 1);
}

#[test]
fn a_batch_that_can_not_be_moved_to_quarantine_leaves_nothing_there_until_it_can() {
    let mut world = sealed();
    world.disk.flip_bit(&world.file(".sealed"));
    let batch = world.waiting.remove(0);
    let folder = world.folder();
    world.disk.fail_once(Op::Rename, "quarantine", Errno::IO);
    folder.quarantine(&batch).unwrap_err();
    assert!(world.quarantine().is_empty());
    folder.quarantine(&batch).unwrap();
    assert_eq!((world.quarantine().len(), folder.quarantine_bytes()), (1, batch.bytes));
}

#[test]
fn a_delivery_that_the_disk_refuses_is_told_and_one_whose_file_is_gone_is_done() {
    let mut world = sealed();
    let mut batch = world.waiting.remove(0);
    let folder = world.folder();
    folder.set_stage(&mut batch, Stage::Sending).unwrap();
    world.disk.fail_once(Op::Rename, ".sent", Errno::IO);
    folder.delivered(&mut batch).unwrap_err();
    world.disk.take(&world.file(".sending"));
    world.delivered(&mut batch).unwrap();
    world.crash(Cut::Strict);
    assert_eq!((world.folder().head().sequence, world.waiting.len()), (1, 0));
}

#[test]
fn a_rename_that_fails_at_sealing_is_repeated_and_nothing_is_copied() {
    let mut world = World::opened();
    world.append(2).unwrap();
    world.disk.fail_once(Op::Rename, ".sealed", Errno::IO);
    world.seal();
    let trace = world.disk.trace();
    assert_eq!(trace.iter().filter(|(op, path)| *op == Op::Rename && path.starts_with(world.dir())).count(), 2);
    let copies = trace.iter().filter(|(_, path)| path.starts_with(world.dir()) && !path.ends_with("probe.tmp"));
    assert_eq!(copies.filter(|(_, path)| path.to_string_lossy().ends_with(".tmp")).count(), 0);
    world.deliver_all();
}

#[test]
fn a_crashs_batch_that_can_not_be_opened_to_be_compressed_is_tried_again() {
    let mut world = World::with_codec(Codec::Gzip);
    world.open().unwrap();
    world.append(2).unwrap();
    world.end();
    // The start reads it, then the sealer.
    let mut opens = 0;
    world.disk.rule(move |op, path| {
        let open = op == Op::Open && path.to_string_lossy().ends_with(".open");
        opens += u32::from(open);
        if open && opens == 2 { Effect::Fail(Errno::IO) } else { Effect::Pass }
    });
    world.open().unwrap();
    assert_eq!((world.waiting.len(), world.quarantine().len()), (1, 0));
    world.deliver_all();
    assert_eq!(world.missing(), 0);
}

#[test]
fn of_a_large_batch_a_salvage_takes_what_was_acknowledged_and_no_byte_more() {
    let mut world = World::new();
    world.settings.batch_max_bytes = 1 << 20;
    world.open().unwrap();
    for _ in 0..10 {
        world.append(1000).unwrap();
    }
    let open = world.disk.bytes(&world.file(".open")).unwrap();
    assert!(open.len() > READ_BUFFER_BYTES, "{} bytes are read at once", open.len());
    let acknowledged = world.acknowledged.len() as u64;
    world.disk.fail_once(Op::Sync, ".open", Errno::IO);
    world.append(3).unwrap_err();
    append_again(&mut world);
    world.seal();
    assert_eq!(world.waiting[0].name.records, acknowledged);
    world.deliver_all();
    assert_eq!((world.missing(), world.quarantine().len()), (0, 0));
}

#[test]
fn a_batch_in_quarantine_keeps_its_number_and_the_next_object_tells_of_it() {
    let mut world = sealed();
    world.disk.flip_bit(&world.file(".sealed"));
    world.upload(Fate::Stored).unwrap();
    world.crash(Cut::Strict);
    world.append(1).unwrap();
    world.seal();
    assert_eq!(world.waiting[0].name.sequence, 2);
    world.upload(Fate::Stored).unwrap();
    let told: Vec<_> = world.bucket.values().map(|object| object.gaps.clone()).collect();
    assert_eq!(told, [vec![1]]);
    assert!(world.quarantine()[0].ends_with(".told"));
    world.crash(Cut::Strict);
    assert_eq!(world.folder().gaps(), Vec::<u64>::new());
    world.deliver_all();
}

#[test]
fn after_the_file_size_limit_a_new_file_is_begun() {
    let mut world = World::opened();
    world.append(2).unwrap();
    world.disk.fail_once(Op::Write, ".open", Errno::FBIG);
    world.append(1).unwrap_err();
    world.append(1).unwrap();
    world.deliver_all();
    assert_eq!(world.bucket.len(), 2);
}

#[test]
fn an_open_batch_whose_file_is_removed_or_replaced_is_sealed_from_the_writers_own() {
    let codecs = Codec::ALL;
    for (codec, is_replaced) in codecs.into_iter().flat_map(|codec| [(codec, false), (codec, true)]) {
        let mut world = World::with_codec(codec);
        world.open().unwrap();
        world.append(2).unwrap();
        let file = world.file(".open");
        world.disk.take(&file);
        if is_replaced {
            world.disk.put(&file, line(0).as_bytes());
        }
        world.spool().seal();
        let is_sealed = |world: &mut World| world.disk.names(&world.dir()).iter().any(|name| name.ends_with(".sealed"));
        world.wait_until("it is sealed", is_sealed);
        world.append(1).unwrap();
        world.crash(Cut::Strict);
        world.deliver_all();
        let lost_and_odd = (world.missing(), world.bucket.len(), world.quarantine().len());
        assert_eq!(lost_and_odd, (0, 2, 0), "{codec:?}, replaced: {is_replaced}");
    }
}

#[test]
fn a_batch_of_which_nothing_is_left_is_counted_as_quarantined_and_holds_nothing_up() {
    let mut world = World::with_codec(Codec::Gzip);
    world.open().unwrap();
    world.append(2).unwrap();
    world.end();
    let is_opened = |(op, path): &&(Op, PathBuf)| *op == Op::Open && path.to_string_lossy().ends_with(".open");
    let opened = move |world: &World| world.disk.trace().iter().filter(is_opened).count();
    let before = opened(&world);
    // The start reads it, and the sealer can't.
    let mut read = false;
    world.disk.rule(move |op, path| {
        let opens = op == Op::Open && path.to_string_lossy().ends_with(".open");
        let again = opens && read;
        read |= opens;
        if again { Effect::Fail(Errno::IO) } else { Effect::Pass }
    });
    world.open_without_settling().unwrap();
    let open = world.file(".open");
    world.wait_until("the sealer has tried", |world| opened(world) > before + 1);
    world.disk.take(&open);
    world.disk.heal();
    world.wait_until("it is given up", |world| world.folder().status("").events_quarantined == 2);
    assert_eq!(world.quarantine().len(), 1, "an empty file tells of it");
    world.append(1).unwrap();
    world.deliver_all();
    let status = world.folder().status("");
    assert_eq!((status.events_spooled, status.oldest_unsent, world.bucket.len()), (0, None, 1));
}

#[test]
fn while_a_delivery_waits_for_the_disk_the_status_is_told() {
    let mut world = sealed();
    let mut batch = world.waiting.remove(0);
    let folder = world.folder();
    folder.set_stage(&mut batch, Stage::Sending).unwrap();
    let (reached, at_the_rename) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel();
    world.disk.rule_that_may_not_strike(move |op, path| {
        if op == Op::Rename && path.to_string_lossy().ends_with(".sent") {
            reached.send(()).unwrap();
            let _ = may_go_on.recv();
        }
        Effect::Pass
    });
    let delivering = folder.clone();
    let delivery = std::thread::spawn(move || delivering.delivered(&mut batch));
    at_the_rename.recv().unwrap();
    let (answer, answered) = mpsc::channel();
    std::thread::spawn(move || answer.send((folder.failing().is_some(), folder.status("").batches)));
    let answer = answered.recv_timeout(Duration::from_secs(20));
    go_on.send(()).unwrap();
    assert_eq!(answer, Ok((false, 1)));
    delivery.join().unwrap().unwrap();
    world.disk.heal();
    world.append(1).unwrap();
}

#[test]
fn a_start_that_the_disk_fails_names_the_call_and_the_path() {
    let log_type = TYPE.as_str();
    for (op, place, call) in [
        (Op::CreateDir, "quarantine", "mkdir"),
        (Op::Identify, "quarantine", "stat"),
        (Op::SyncDir, log_type, "fsync"),
        (Op::List, log_type, "list"),
        (Op::Open, "manifest.json", "open"),
        (Op::Read, "manifest.json", "read"),
        (Op::Sync, ".open", "fsync"),
    ] {
        let mut world = World::opened();
        world.append(1).unwrap();
        world.crash_without_opening(Cut::Kill);
        world.disk.fail(op, place, Errno::IO);
        let refusal = world.open().unwrap_err().to_string();
        let named = refusal.split(&format!("{call} {}", world.settings.dir.display())).nth(1);
        assert!(named.is_some_and(|rest| rest.contains(&format!("{place}: Input/output error"))), "{call}: {refusal}");
        assert!(refusal.contains("the disk failed"), "{refusal}");
    }
}
