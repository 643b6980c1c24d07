//! One test for each fsync, which fails when that fsync is left out.

use std::sync::{Arc, mpsc};

use futures_util::FutureExt;

use super::fault_disk::{Cut, Effect, Errno, Op};
use super::world::{Fate, TYPE, World};
use crate::batch::{Codec, SpoolName, Stage};
use crate::spool::claim::Claim;
use crate::spool::manifest::Manifest;

/// A world with one acknowledged event that is still open.
fn appended() -> World {
    let mut world = World::opened();
    world.append(1).unwrap();
    world
}

/// A world with one sealed batch.
fn sealed() -> World {
    let mut world = appended();
    world.seal();
    world
}

fn stages(world: &World) -> Vec<Stage> {
    world
        .files()
        .into_iter()
        .filter_map(|name| if let SpoolName::Sealed(name) = name { Some(name.stage) } else { None })
        .collect()
}

/// Cuts the power at the first call of `op` on a path that contains `part`, and opens the next life.
fn power_cut_at(world: &mut World, op: Op, part: &'static str, step: impl FnOnce(&mut World)) {
    world.disk.rule(move |asked, path| {
        if asked == op && path.to_string_lossy().contains(part) { Effect::Die(Cut::Strict) } else { Effect::Pass }
    });
    step(world);
    assert!(world.disk.died(), "no {op:?} on {part}");
    world.crash(Cut::Strict);
}

#[test]
fn the_bytes_are_fsynced_before_the_acknowledgement() {
    let mut world = appended();
    world.append(2).unwrap();
    world.crash(Cut::Strict);
    assert_eq!(world.waiting[0].name.records, 3);
    world.deliver_all();
}

#[test]
fn the_name_is_fsynced_before_the_first_acknowledgement() {
    let mut world = appended();
    world.crash(Cut::Strict);
    assert_eq!(world.waiting.len(), 1, "the open file is gone");
    world.deliver_all();
}

#[test]
fn the_sealed_name_is_fsynced_before_the_flusher_hears_of_it() {
    let world = sealed();
    assert_eq!(stages(&world.disk_after_power_cut()), [Stage::Sent, Stage::Sealed]);
}

#[test]
fn the_sending_name_is_fsynced_before_the_put() {
    let mut world = sealed();
    world.upload(Fate::AnswerLost).unwrap();
    let left = world.disk_after_power_cut();
    assert!(stages(&left).contains(&Stage::Sending), "{:?}", left.files());
    world.crash(Cut::Strict);
    world.deliver_all();
    assert_eq!(world.bucket.len(), 1);
}

#[test]
fn the_name_after_a_refusal_is_fsynced_before_the_next_put() {
    let mut world = sealed();
    world.upload(Fate::Refused).unwrap();
    assert!(stages(&world.disk_after_power_cut()).contains(&Stage::Sealed));
}

#[test]
fn the_new_suffix_is_fsynced_before_the_next_put() {
    let mut world = sealed();
    world.upload(Fate::NameTaken).unwrap();
    let renamed = world.waiting[0].name;
    assert_eq!(renamed.stage, Stage::Sealed, "nothing was tried under this name");
    assert!(world.disk_after_power_cut().files().contains(&SpoolName::Sealed(renamed)));
}

#[test]
fn the_sent_name_is_fsynced_before_its_bytes_go() {
    let mut world = sealed();
    // The truncation reaches the disk, as a file system may do at any time.
    power_cut_at(&mut world, Op::Truncate, ".sent", |world| drop(world.upload(Fate::Stored)));
    assert!(stages(&world).contains(&Stage::Sent) && world.waiting.is_empty(), "{:?}", world.files());
    world.append(1).unwrap();
    world.deliver_all();
}

#[test]
fn a_sent_name_whose_fsync_failed_is_fsynced_at_the_next_try() {
    let mut world = sealed();
    world.upload(Fate::AnswerLost).unwrap();
    world.disk.fail_once(Op::SyncDir, TYPE.as_str(), Errno::IO);
    world.upload(Fate::Stored).unwrap_err();
    world.disk.heal();
    power_cut_at(&mut world, Op::Truncate, ".sent", |world| drop(world.upload(Fate::Stored)));
    assert!(world.waiting.is_empty(), "{:?}", world.files());
}

#[test]
fn a_rollback_is_fsynced_before_the_batch_is_sealed() {
    for seed in 0..64 {
        let mut world = appended();
        world.disk.fail_once(Op::Write, ".open", Errno::NOSPC);
        world.append(3).unwrap_err();
        world.seal();
        // The half that was written reaches the disk, as it may.
        world.crash(Cut::Torn(seed));
        world.deliver_all();
        assert_eq!((world.missing(), world.quarantine().len()), (0, 0), "seed {seed}");
    }
}

#[test]
fn a_compressed_copy_is_fsynced_before_the_plain_file_goes() {
    for codec in [Codec::Gzip, Codec::Zstd] {
        let mut world = World::with_codec(codec);
        world.open().unwrap();
        world.append(5).unwrap();
        world.seal();
        world.crash(Cut::Strict);
        world.deliver_all();
        assert_eq!((world.missing(), world.quarantine().len()), (0, 0));
    }
}

#[test]
fn the_plain_files_end_is_fsynced_before_the_flusher_hears_of_the_compressed_copy() {
    let mut world = World::with_codec(Codec::Gzip);
    world.open().unwrap();
    world.append(5).unwrap();
    world.seal();
    let left = world.disk_after_power_cut();
    assert!(left.files().iter().all(|name| matches!(name, SpoolName::Sealed(_))), "{:?}", left.files());
}

#[test]
fn a_salvaged_copy_is_fsynced_before_the_poisoned_file_goes() {
    let mut world = appended();
    world.disk.fail_once(Op::Sync, ".open", Errno::IO);
    world.append(1).unwrap_err();
    world.settle();
    world.crash(Cut::Strict);
    world.deliver_all();
    assert_eq!((world.missing(), world.quarantine().len()), (0, 0));
}

#[test]
fn what_a_kill_left_open_is_fsynced_before_it_is_sealed() {
    let mut world = appended();
    // The event is written, and the kill comes before the fsync.
    world.disk.rule(|op, path| {
        if op == Op::Sync && path.to_string_lossy().ends_with(".open") { Effect::Die(Cut::Kill) } else { Effect::Pass }
    });
    world.append(2).unwrap();
    world.crash(Cut::Kill);
    assert_eq!(world.waiting[0].name.records, 3);
    world.crash(Cut::Strict);
    world.deliver_all();
    assert_eq!((world.missing(), world.quarantine().len()), (0, 0));
}

#[test]
fn names_that_a_kill_left_are_fsynced_at_the_start() {
    let mut world = sealed();
    // The seal of a second batch gets as far as the rename.
    world.append(1).unwrap();
    let mut renamed = false;
    world.disk.rule(move |op, _| {
        let die = renamed && op == Op::SyncDir;
        renamed |= op == Op::Rename;
        if die { Effect::Die(Cut::Kill) } else { Effect::Pass }
    });
    world.seal();
    world.crash(Cut::Kill);
    let names = world.files();
    assert_eq!(world.disk_after_power_cut().files(), names);
    world.deliver_all();
}

#[test]
fn the_manifest_is_durable_before_the_first_acknowledgement() {
    let mut world = appended();
    let instance = world.spool().instance().to_owned();
    world.crash(Cut::Strict);
    assert_eq!(world.spool().instance(), instance);
    let bytes = world.disk.bytes(&world.settings.dir.join("manifest.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Manifest>(&bytes).unwrap().instance, instance);
}

#[test]
fn the_chains_first_head_is_durable_before_the_first_acknowledgement() {
    let mut world = World::opened();
    world.crash(Cut::Strict);
    let chain = world.spool().chain_instance(TYPE).to_owned();
    world.crash(Cut::Strict);
    assert_eq!(world.spool().chain_instance(TYPE), chain, "the chain lost its head");
}

#[test]
fn the_chains_first_head_is_durable_before_the_manifest_that_names_the_chain() {
    let mut world = World::new();
    let mut named = false;
    world.disk.rule(move |op, path| {
        let die = named && op == Op::SyncDir && path.ends_with(TYPE.as_str());
        named |= op == Op::Rename && path.ends_with("manifest.json");
        if die { Effect::Die(Cut::Strict) } else { Effect::Pass }
    });
    world.open().unwrap();
    let chain = world.spool().chain_instance(TYPE).to_owned();
    assert!(world.disk.died());
    world.crash(Cut::Strict);
    assert_eq!(world.spool().chain_instance(TYPE), chain, "the chain lost its head");
}

#[test]
fn the_spools_folders_are_fsynced_at_every_start() {
    let mut world = World::opened();
    world.crash(Cut::Kill);
    assert!(world.disk.trace().contains(&(Op::SyncDir, world.settings.dir.clone())));
}

#[test]
fn the_folders_above_a_new_spool_are_fsynced() {
    let world = World::opened();
    for folder in world.settings.dir.ancestors() {
        assert!(world.disk.trace().contains(&(Op::SyncDir, folder.to_owned())), "{}", folder.display());
    }
}

#[test]
fn a_batch_in_quarantine_is_durable_there_before_an_object_tells_of_it() {
    let mut world = sealed();
    world.disk.flip_bit(&world.file(".sealed"));
    world.upload(Fate::Stored).unwrap();
    let left = world.disk_after_power_cut();
    assert_eq!(left.quarantine().len(), 1);
    assert!(stages(&left).iter().all(|stage| *stage == Stage::Sent), "{:?}", left.files());
}

#[test]
fn the_number_that_quarantine_leaves_behind_is_durable_before_its_file_moves() {
    let mut world = sealed();
    let chain = world.spool().chain_instance(TYPE).to_owned();
    world.disk.flip_bit(&world.file(".sealed"));
    let mut moved = false;
    world.disk.rule(move |op, path| {
        let die = moved && op == Op::SyncDir && path.ends_with(TYPE.as_str());
        moved |= op == Op::Rename && path.parent().is_some_and(|folder| folder.ends_with("quarantine"));
        if die { Effect::Die(Cut::Strict) } else { Effect::Pass }
    });
    world.upload(Fate::Stored).unwrap();
    assert!(world.disk.died());
    world.crash(Cut::Strict);
    assert_eq!(world.spool().chain_instance(TYPE), chain, "the chain lost its head");
    assert_eq!((world.folder().head().sequence, world.folder().gaps()), (1, vec![1]));
}

#[test]
fn what_lines_hold_is_given_back_once_durable_however_soon_their_sender_left() {
    let mut world = appended();
    let ((stalls, is_stalled), (resume, resumes)) = (mpsc::channel(), mpsc::channel::<()>());
    world.disk.rule_that_may_not_strike(move |op, _| {
        if op == Op::Sync {
            let _ = stalls.send(());
            let _ = resumes.recv();
        }
        Effect::Pass
    });
    let held = Arc::new(());
    let claim = Arc::new(Claim::new(held.clone()));
    let spool = world.spool().clone();
    let room = spool.take_room(TYPE, 3).unwrap();
    let mut append = Box::pin(spool.append_claimed(room, "{}\n".into(), 1, claim));
    assert!((&mut append).now_or_never().is_none());
    is_stalled.recv().unwrap();
    drop(append);
    assert_eq!(Arc::strong_count(&held), 2, "the lines are in memory still");
    drop(resume);
    world.wait_until("it is given back", |_| Arc::strong_count(&held) == 1);
}
