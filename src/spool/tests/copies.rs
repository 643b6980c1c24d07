//! Batches that wait for CloudWatch: kept whatever happens, and in nobody's way.

use std::sync::Arc;

use super::every_call::{CODECS, DONE_ALL_THE_SAME, FAILURES, in_each_world, lose_some};
use super::fault_disk::{Cut, Effect, Errno, Op};
use super::world::{Fate, TYPE, World, line};
use crate::batch::Codec;
use crate::spool::copies::{BatchCopy, Copies, GivenUp};

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
    let mut file = world.spool().read_copy(&copies(world), &copy).unwrap();
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
        assert_eq!((copies(&world).holds(&copy), file_count(&world) as u64), (false, 2 - id));
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
    // What is not sealed yet takes room, too.
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
        assert_eq!(world.spool().failing(TYPE), None);
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
    assert!(!copies(&world).holds(&copy));
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
