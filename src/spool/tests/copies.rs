//! Batches that wait for CloudWatch are kept whatever happens, and delay nothing else.

use std::sync::Arc;

use super::every_call::{CODECS, DONE_ALL_THE_SAME, FAILURES, in_each_world, lose_some};
use super::fault_disk::{Cut, Effect, Errno, Op};
use super::world::{Fate, TYPE, World, line};
use crate::batch::Codec;
use crate::spool::copies::{BatchCopy, Copies, GivenUp};
use crate::spool::disk;

fn opened() -> World {
    let mut world = World::with_copies(Codec::None);
    world.open().unwrap();
    world
}

/// Delivers one batch of an event.
fn deliver_one(world: &mut World) {
    world.append(1).unwrap();
    world.deliver_all();
}

fn copies(world: &World) -> Arc<Copies> {
    world.spool().copies().unwrap().clone()
}

/// The oldest copy, and its file's bytes.
fn oldest(world: &World) -> (BatchCopy, Vec<u8>) {
    let copy = copies(world).oldest(TYPE).unwrap();
    let mut bytes = Vec::new();
    let mut file = world.spool().read_copy(&copy).unwrap();
    std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
    (copy, bytes)
}

fn file_count(world: &World) -> usize {
    world.disk.names(&world.copies_dir()).len()
}

#[test]
fn what_s3_has_is_a_copy_and_the_chain_goes_on_whichever_call_fails() {
    for codec in CODECS {
        for effect in FAILURES.into_iter().chain(DONE_ALL_THE_SAME) {
            let tried = in_each_world(&|| World::with_copies(codec), effect, |_| {});
            assert!(tried.calls > 40);
        }
    }
}

#[test]
fn what_s3_has_is_a_copy_and_the_chain_goes_on_whichever_call_is_the_last() {
    let ends: [fn() -> Effect; 4] =
        [|| Effect::Die(Cut::Strict), || Effect::Die(Cut::Kill), lose_some, || Effect::Fail(Errno::IO)];
    for codec in CODECS {
        for effect in ends {
            let tried = in_each_world(&|| World::with_copies(codec), effect, |world| world.crash(Cut::Strict));
            assert!(tried.calls > 40);
        }
    }
}

#[test]
fn copies_are_given_out_oldest_first_across_a_restart_and_go_when_they_are_sent() {
    let mut world = opened();
    for _ in 0..3 {
        deliver_one(&mut world);
    }
    for id in 0..3 {
        let (copy, bytes) = oldest(&world);
        assert_eq!(bytes, line(id).as_bytes());
        copies(&world).delivered(&copy);
        assert_eq!((copies(&world).contains(&copy), file_count(&world) as u64), (false, 2 - id));
        world.crash(Cut::Kill);
    }
    assert_eq!(copies(&world).oldest(TYPE), None);
    assert_eq!(copies(&world).skipped_events(TYPE), 0);
}

#[test]
fn a_waiting_lane_hears_of_a_copy() {
    let mut world = opened();
    let waiting = copies(&world);
    let lane = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(waiting.next(TYPE))
    });
    deliver_one(&mut world);
    assert_eq!(lane.join().unwrap(), oldest(&world).0);
}

#[test]
fn events_push_the_oldest_copies_out_and_are_never_refused_for_them() {
    let mut world = World::with_copies(Codec::None);
    world.settings.max_bytes = 512;
    world.open().unwrap();
    let copies = copies(&world);
    let most = 512 / line(0).len();
    for delivered in 1..=40 {
        deliver_one(&mut world);
        assert!(copies.left(TYPE).batches <= most);
        assert_eq!(copies.left(TYPE).batches == delivered, delivered <= most, "none goes before its room is needed");
    }
    let (copy, _) = oldest(&world);
    assert!(world.acknowledged[&30].batch.opened >= copy.name.batch.opened, "the newest stay");
    // The open batch takes room, too.
    world.append(8).unwrap();
    assert!(copies.left(TYPE).bytes + world.spool().usage().used_bytes(TYPE) <= 512);
    world.wait_until("the files are gone and counted", |world| {
        let left = copies.left(TYPE);
        file_count(world) == left.batches && copies.skipped_events(TYPE) == 40 - left.batches as u64
    });
}

#[test]
fn copies_that_a_start_finds_fit_beside_the_events() {
    let mut world = opened();
    for _ in 0..20 {
        deliver_one(&mut world);
    }
    world.append(2).unwrap();
    world.end();
    world.settings.max_bytes = 400;
    world.open().unwrap();
    assert!(copies(&world).left(TYPE).bytes + world.spool().usage().used_bytes(TYPE) <= 400);
    assert!(copies(&world).left(TYPE).batches > 1);
}

/// A disk that has no room until a copy's file is removed.
fn fill_until_a_copy_goes(world: &World) {
    let mut full = true;
    world.disk.rule(move |op, path| {
        full &= !(op == Op::Remove && path.to_string_lossy().contains("cloudwatch"));
        let needs_room = matches!(op, Op::Write | Op::Create | Op::Rename);
        if full && needs_room { Effect::Fail(Errno::NOSPC) } else { Effect::Pass }
    });
}

#[test]
fn on_a_full_disk_a_copy_goes_before_an_event_is_refused() {
    for open_before in [false, true] {
        let mut world = opened();
        for _ in 0..3 {
            deliver_one(&mut world);
        }
        if open_before {
            world.append(1).unwrap();
        }
        fill_until_a_copy_goes(&world);
        world.append(1).unwrap();
        assert!(world.spool().failing(TYPE).is_none());
        assert_eq!((copies(&world).left(TYPE).batches, copies(&world).skipped_events(TYPE)), (2, 1));
        world.deliver_all();
    }
}

#[test]
fn a_probe_of_a_full_disk_gives_up_a_copy_and_not_the_spare_file() {
    let mut world = opened();
    deliver_one(&mut world);
    fill_until_a_copy_goes(&world);
    world.folder().probe().unwrap();
    assert_eq!((copies(&world).left(TYPE).batches, file_count(&world)), (0, 0));
    let files = world.disk.names(&world.settings.dir);
    assert!(files.contains(&"reserve".to_owned()), "{files:?}");
}

#[test]
fn a_batch_that_can_not_be_kept_is_delivered_all_the_same_and_counted() {
    for errno in [Errno::ACCESS, Errno::IO, Errno::XDEV, Errno::NOSPC] {
        let mut world = opened();
        world.append(2).unwrap();
        world.seal();
        world.disk.fail(Op::Rename, "cloudwatch", errno);
        world.upload(Fate::Refused).unwrap();
        world.upload(Fate::Stored).unwrap();
        assert_eq!((world.waiting.len(), world.files().len()), (0, 1), "only the head is left");
        assert_eq!((copies(&world).skipped_events(TYPE), copies(&world).oldest(TYPE)), (2, None));
        world.deliver_all();
    }
}

#[test]
fn a_folder_of_copies_that_somebody_removed_is_made_again() {
    let mut world = opened();
    world.append(1).unwrap();
    world.seal();
    let mut missing = true;
    world.disk.rule(move |op, path| {
        let copies = path.to_string_lossy().contains("cloudwatch");
        missing &= !(copies && op == Op::CreateDir);
        if missing && copies && op == Op::Rename { Effect::Fail(Errno::NOENT) } else { Effect::Pass }
    });
    world.upload(Fate::Stored).unwrap();
    assert_eq!((file_count(&world), copies(&world).left(TYPE).batches), (1, 1));
}

#[test]
fn a_copy_that_is_given_up_is_removed_and_counted_however_often_the_disk_refuses() {
    let mut world = opened();
    deliver_one(&mut world);
    let (copy, _) = oldest(&world);
    let mut left = 3;
    world.disk.rule(move |op, path| {
        let refused = op == Op::Remove && path.to_string_lossy().contains("cloudwatch") && left > 0;
        left -= u32::from(refused);
        if refused { Effect::Fail(Errno::IO) } else { Effect::Pass }
    });
    copies(&world).give_up(&copy, GivenUp::Unreadable);
    assert!(!copies(&world).contains(&copy));
    world.wait_until("it is gone", |world| file_count(world) == 0 && copies(world).skipped_events(TYPE) == 1);
}

#[test]
fn without_a_lane_the_next_start_removes_what_was_kept_and_nothing_else() {
    let mut world = opened();
    for _ in 0..3 {
        deliver_one(&mut world);
    }
    world.append(1).unwrap();
    world.end();
    let theirs = world.copies_dir().join("notes.txt");
    world.disk.put(&theirs, b"hello");
    world.settings.copies = false;
    world.open().unwrap();
    assert!(world.spool().copies().is_none());
    assert_eq!(world.disk.names(&world.copies_dir()), ["notes.txt"]);
    deliver_one(&mut world);
    assert_eq!(world.disk.names(&world.copies_dir()), ["notes.txt"]);
}

#[test]
fn copies_of_one_place_stay_when_the_spool_takes_on_another() {
    let mut world = opened();
    deliver_one(&mut world);
    world.end();
    world.settings.destination.bucket = "other".to_owned();
    world.open().unwrap();
    world.append(1).unwrap();
    world.seal();
    world.upload(Fate::Stored).unwrap();
    assert_eq!(copies(&world).left(TYPE).batches, 2);
    assert_eq!(oldest(&world).1, line(0).as_bytes());
}

/// A disk that has no room for a file of this ending until a copy's file is removed.
fn fill_for_until_a_copy_goes(world: &World, ending: &'static str) {
    let mut full = true;
    world.disk.rule(move |op, path| {
        let name = path.to_string_lossy();
        full &= !(op == Op::Remove && name.contains("cloudwatch"));
        if full && op == Op::Write && name.ends_with(ending) { Effect::Fail(Errno::NOSPC) } else { Effect::Pass }
    });
}

#[test]
fn a_full_disk_gets_the_room_of_as_many_copies_as_an_event_needs_and_waits_seldom() {
    let mut world = opened();
    for _ in 0..300 {
        world.append(1).unwrap();
        world.seal();
    }
    world.deliver_all();
    let mut needed = 100;
    world.disk.rule(move |op, path| {
        let is_removal = op == Op::Remove && path.to_string_lossy().contains("cloudwatch");
        needed -= u32::from(is_removal && needed > 0);
        if needed > 0 && op == Op::Write { Effect::Fail(Errno::NOSPC) } else { Effect::Pass }
    });
    let before = world.disk.trace().len();
    world.append(1).unwrap();
    assert_eq!((copies(&world).left(TYPE).batches, file_count(&world)), (300 - 127, 300 - 127));
    let calls = world.disk.trace().split_off(before);
    let waits = calls.iter().filter(|(op, path)| *op == Op::SyncDir && *path == world.copies_dir()).count();
    assert!(waits < 10, "{waits}");
    world.deliver_all();
}

#[test]
fn a_batch_that_is_compressed_on_a_full_disk_has_the_room_of_copies() {
    for (codec, ending) in [(Codec::Gzip, ".gz.tmp"), (Codec::Zstd, ".zst.tmp")] {
        let mut world = World::with_copies(codec);
        world.open().unwrap();
        for _ in 0..3 {
            deliver_one(&mut world);
        }
        world.append(1).unwrap();
        fill_for_until_a_copy_goes(&world, ending);
        world.seal();
        assert_eq!(copies(&world).left(TYPE).batches, 2);
        world.deliver_all();
    }
}

#[test]
fn what_a_failed_fsync_spoiled_has_the_room_of_copies_for_its_rescue() {
    let mut world = opened();
    for _ in 0..3 {
        deliver_one(&mut world);
    }
    world.append(1).unwrap();
    let (mut spoilt, mut full) = (false, true);
    world.disk.rule(move |op, path| {
        let name = path.to_string_lossy();
        full &= !(op == Op::Remove && name.contains("cloudwatch"));
        let spoils = !spoilt && op == Op::Sync && name.ends_with(".open");
        spoilt |= spoils;
        match (spoils, full && op == Op::Write && name.ends_with(".tmp")) {
            (true, _) => Effect::Fail(Errno::IO),
            (_, true) => Effect::Fail(Errno::NOSPC),
            _ => Effect::Pass,
        }
    });
    world.append(1).unwrap_err();
    world.seal();
    assert_eq!((copies(&world).left(TYPE).batches, world.waiting.len()), (2, 1));
    world.deliver_all();
}

#[test]
fn an_fsync_that_finds_the_disk_full_makes_way_for_the_rescue() {
    let mut world = opened();
    for _ in 0..3 {
        deliver_one(&mut world);
    }
    world.append(1).unwrap();
    world.disk.fail_once(Op::Sync, ".open", Errno::DQUOT);
    world.append(1).unwrap_err();
    assert_eq!(copies(&world).left(TYPE).batches, 2);
    world.deliver_all();
}

#[test]
fn what_a_crash_left_open_has_the_room_of_copies_to_be_brought_into_order() {
    let mut world = opened();
    for _ in 0..3 {
        deliver_one(&mut world);
    }
    world.append(1).unwrap();
    let open = world.file(".open");
    let lines = [b"no event\n", world.disk.bytes(&open).unwrap().as_slice()].concat();
    world.crash_without_opening(Cut::Kill);
    world.disk.put(&open, &lines);
    fill_for_until_a_copy_goes(&world, ".tmp");
    world.open().unwrap();
    assert_eq!((copies(&world).left(TYPE).batches, world.quarantine().len()), (2, 1));
    world.deliver_all();
}

#[test]
fn half_a_file_that_a_full_disk_did_not_take_goes() {
    let world = opened();
    world.disk.fail(Op::Write, ".tmp", Errno::NOSPC);
    disk::replace(&world.disk, &world.dir(), "place", b"{}").unwrap_err();
    assert!(world.disk.names(&world.dir()).iter().all(|name| !name.ends_with(".tmp")));
}

#[test]
fn a_file_that_can_not_be_removed_holds_no_other_up() {
    let mut world = opened();
    for _ in 0..3 {
        deliver_one(&mut world);
    }
    let (stuck, _) = oldest(&world);
    let path = copies(&world).path(&stuck);
    world.disk.rule(move |op, asked| match op == Op::Remove && asked == path {
        true => Effect::Fail(Errno::IO),
        false => Effect::Pass,
    });
    while let Some(copy) = copies(&world).oldest(TYPE) {
        copies(&world).give_up(&copy, GivenUp::Age);
    }
    world.wait_until("the others are gone", |world| file_count(world) == 1 && copies(world).skipped_events(TYPE) == 2);
}

#[test]
fn a_copy_that_has_no_room_costs_neither_the_spare_file_nor_another_copy() {
    let mut world = opened();
    deliver_one(&mut world);
    world.append(1).unwrap();
    world.seal();
    world.disk.fail(Op::Rename, "cloudwatch", Errno::NOSPC);
    world.upload(Fate::Stored).unwrap();
    assert_eq!((copies(&world).left(TYPE).batches, copies(&world).skipped_events(TYPE)), (1, 1));
    let files = world.disk.names(&world.settings.dir);
    assert!(files.contains(&"reserve".to_owned()), "{files:?}");
}

#[test]
fn while_the_path_leads_elsewhere_no_copy_counts_as_removed() {
    let mut world = opened();
    for _ in 0..2 {
        deliver_one(&mut world);
    }
    let sent = copies(&world).oldest(TYPE).unwrap();
    world.disk.mount_over(&[&world.settings.dir, &world.copies_dir()]);
    copies(&world).delivered(&sent);
    let given_up = copies(&world).oldest(TYPE).unwrap();
    copies(&world).give_up(&given_up, GivenUp::Age);
    let asked = (Op::Identify, world.settings.dir.join("."));
    let looks = |world: &World| world.disk.trace().iter().filter(|call| **call == asked).count();
    let before = looks(&world);
    world.wait_until("the path was looked at for both", |world| looks(world) > before + 2);
    let removed = [sent, given_up].map(|copy| (Op::Remove, copies(&world).path(&copy)));
    assert!(
        !world.disk.trace().iter().any(|call| removed.contains(call)),
        "it may be back before the removal is judged"
    );
    assert_eq!((copies(&world).skipped_events(TYPE), file_count(&world)), (0, 2));
    world.disk.unmount();
    world.wait_until("both are gone", |world| file_count(world) == 0 && copies(world).skipped_events(TYPE) == 1);
}
