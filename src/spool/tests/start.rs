//! Tests what a start does with everything that can be in a spool's folders.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::fault_disk::{Cut, Effect, Errno, Op};
use super::world::{Fate, TYPE, World, line};
use crate::batch::{BatchName, ByType, Codec, LogType, SealedName, Sha256, SpoolName, Stage};
use crate::spool::OpenError;
use crate::spool::manifest::{Manifest, ManifestError};

/// A world whose first life has ended; then `file` is put into the type's folder.
fn with_file(name: &str, bytes: &[u8]) -> World {
    let mut world = World::opened();
    world.end();
    world.disk.put(&world.dir().join(name), bytes);
    world
}

fn open_name() -> String {
    SpoolName::Open(BatchName::open(chrono::Utc::now(), None, Codec::None)).to_string()
}

fn sealed_name(sequence: u64, bytes: &[u8]) -> String {
    let batch = BatchName::open(chrono::Utc::now(), None, Codec::None);
    let sha256 = Sha256::of(bytes);
    SealedName { batch, sequence, records: 1, sha256, previous: Sha256::ZERO, stage: Stage::Sealed }.to_string()
}

/// The one object's body after the next life has delivered everything.
fn delivered(world: &mut World) -> String {
    world.open().unwrap();
    while !world.waiting.is_empty() {
        world.upload(Fate::Stored).unwrap();
    }
    assert!(world.bucket.len() <= 1);
    world.bucket.values().map(|object| String::from_utf8(object.body.clone()).unwrap()).collect()
}

#[test]
fn a_torn_last_line_is_cut_and_the_rest_is_delivered() {
    let mut world = with_file(&open_name(), format!("{}{}{{\"id\":2,\"mess", line(0), line(1)).as_bytes());
    assert_eq!(delivered(&mut world), line(0) + &line(1));
    assert!(world.quarantine().is_empty());
    assert_eq!(world.folder().status("").events_recovered, 2);
}

#[test]
fn other_bytes_go_to_quarantine_and_the_lines_around_them_are_delivered() {
    let foreign = "\0\0\0\0\n[1]\n\"text\"\n{\"id\":}\n";
    let mut world = with_file(&open_name(), format!("{}{foreign}{}", line(0), line(1)).as_bytes());
    assert_eq!(delivered(&mut world), line(0) + &line(1));
    let aside = world.quarantine();
    assert_eq!(aside.len(), 1);
    let path = world.settings.dir.join("quarantine").join(&aside[0]);
    assert_eq!(world.disk.bytes(&path).unwrap(), foreign.as_bytes());
    let status = world.folder().status("");
    assert_eq!((status.events_recovered, status.events_quarantined, status.events_spooled), (6, 4, 0));
}

#[test]
fn zeros_at_the_end_are_no_line() {
    let mut world = with_file(&open_name(), &[line(0).as_bytes(), &[0; 100]].concat());
    assert_eq!(delivered(&mut world), line(0));
    assert!(world.quarantine().is_empty());
}

#[test]
fn an_empty_file_goes_without_a_trace() {
    for bytes in ["", "{\"id\":0"] {
        let mut world = with_file(&open_name(), bytes.as_bytes());
        assert_eq!(delivered(&mut world), "");
        assert!(world.quarantine().is_empty());
        assert_eq!(world.files().len(), 1, "the head alone: {:?}", world.files());
    }
}

#[test]
fn a_file_that_can_not_be_read_goes_to_quarantine_and_the_start_goes_on() {
    let mut world = with_file(&open_name(), line(0).as_bytes());
    world.disk.fail(Op::Read, ".open", Errno::IO);
    world.open().unwrap();
    world.disk.heal();
    assert_eq!(world.quarantine().len(), 1);
    let status = world.folder().status("");
    assert_eq!((status.events_recovered, status.events_quarantined, status.events_spooled), (1, 1, 0));
    world.append(1).unwrap();
    world.deliver_all();
}

#[test]
fn a_file_whose_end_can_not_be_read_counts_as_the_lines_before_it_and_one_more() {
    let mut world = with_file(&open_name(), format!("{}[1]\n{}", line(0), line(1)).as_bytes());
    let mut reads = 0;
    world.disk.rule(move |op, path| {
        let read = op == Op::Read && path.to_string_lossy().ends_with(".open");
        reads += u32::from(read);
        if read && reads == 2 { Effect::Fail(Errno::IO) } else { Effect::Pass }
    });
    world.open().unwrap();
    world.disk.heal();
    let status = world.folder().status("");
    assert_eq!((status.events_recovered, status.events_quarantined, status.events_spooled), (4, 4, 0));
    assert_eq!((world.quarantine().len(), status.spool_bytes, status.oldest_unsent), (1, 0, None));
}

#[test]
fn a_foreign_file_goes_to_quarantine_and_an_unfinished_one_goes() {
    let mut world = with_file("notes.txt", b"hello");
    world.disk.put(&world.dir().join("20261122T210405.678901Z_aB3dE.tmp"), b"half");
    world.disk.put(&world.dir().join("probe.tmp"), b"half");
    world.open().unwrap();
    assert_eq!(world.quarantine(), ["env0-deployments_notes.txt"]);
    assert_eq!(world.files().len(), 1, "the head alone: {:?}", world.disk.names(&world.dir()));
}

#[test]
fn a_strangers_unfinished_file_goes_to_quarantine_and_a_hidden_one_is_left_alone() {
    let mut world = with_file("notes.tmp", b"hello");
    world.disk.put(&world.dir().join(".nfs0000000000a1b2c3"), b"still open");
    world.open().unwrap();
    assert_eq!(world.quarantine(), ["env0-deployments_notes.tmp"]);
    assert_eq!(world.disk.bytes(&world.dir().join(".nfs0000000000a1b2c3")).unwrap(), b"still open");
}

#[test]
fn on_a_full_disk_a_hole_that_a_crash_left_waits_until_deliveries_make_room() {
    let mut world = World::opened();
    world.append(1).unwrap();
    world.seal();
    world.end();
    world
        .disk
        .put(&world.dir().join(open_name()), &[line(10).as_bytes(), &[0; 64], b"\n", line(11).as_bytes()].concat());
    world.disk.fail(Op::Write, "", Errno::NOSPC);
    world.open_without_settling().unwrap();
    world.upload(Fate::Stored).unwrap();
    assert_eq!(world.bucket.len(), 1, "what was sealed is delivered");
    world.disk.heal();
    world.settle();
    assert_eq!((world.waiting[0].name.records, world.quarantine().len()), (2, 1));
    world.append(1).unwrap();
    world.deliver_all();
}

#[test]
fn a_foreign_file_whose_name_quarantine_has_already_gets_a_number() {
    let mut world = with_file("notes.txt", b"second");
    let quarantine = world.settings.dir.join("quarantine");
    world.disk.put(&quarantine.join("env0-deployments_notes.txt"), b"first");
    world.open().unwrap();
    assert_eq!(world.quarantine(), ["env0-deployments_notes.txt", "env0-deployments_notes.txt.1"]);
    assert_eq!(world.disk.bytes(&quarantine.join("env0-deployments_notes.txt")).unwrap(), b"first");
    assert_eq!(world.disk.bytes(&quarantine.join("env0-deployments_notes.txt.1")).unwrap(), b"second");
}

#[test]
fn a_foreign_file_that_can_not_be_moved_stays_and_the_start_goes_on() {
    let mut world = with_file("notes.txt", b"hello");
    world.disk.fail(Op::Rename, "quarantine", Errno::NAMETOOLONG);
    world.open().unwrap();
    assert_eq!(world.disk.bytes(&world.dir().join("notes.txt")).unwrap(), b"hello");
    world.disk.heal();
    world.append(1).unwrap();
    world.deliver_all();
}

#[test]
fn a_foreign_file_that_can_not_be_opened_goes_to_quarantine_too() {
    let mut world = with_file("notes.txt", b"hello");
    world.disk.fail(Op::Open, "env0-deployments/notes.txt", Errno::ACCESS);
    world.open().unwrap();
    assert_eq!(world.quarantine(), ["env0-deployments_notes.txt"]);
}

#[test]
fn a_foreign_file_whose_name_is_not_utf8_stays_and_leaves_nothing_in_quarantine() {
    let mut world = World::opened();
    world.end();
    let path = world.dir().join(OsStr::from_bytes(b"notes\xff"));
    world.disk.put(&path, b"hello");
    world.open().unwrap();
    assert_eq!(world.disk.bytes(&path).unwrap(), b"hello");
    assert!(world.quarantine().is_empty());
}

#[test]
fn a_delivered_batch_that_kept_its_bytes_is_emptied() {
    let mut world = World::opened();
    world.append(1).unwrap();
    world.deliver_all();
    world.end();
    let head = world.file(".sent");
    world.disk.put(&head, line(0).as_bytes());
    world.open().unwrap();
    assert_eq!(world.disk.bytes(&head).unwrap(), b"");
    world.append(1).unwrap();
    world.deliver_all();
}

#[test]
fn an_empty_sealed_file_is_a_gap_and_its_number_is_not_given_out_again() {
    // The second name has the hash of nothing.
    for named_for in [line(0), String::new()] {
        let mut world = with_file(&sealed_name(1, named_for.as_bytes()), b"");
        world.open().unwrap();
        assert_eq!((world.waiting.len(), world.quarantine().len(), world.folder().gaps()), (0, 1, vec![1]));
        let status = world.folder().status("");
        assert_eq!(
            (status.events_recovered, status.events_quarantined, status.events_spooled, status.batches),
            (1, 1, 0, 0)
        );
        world.append(1).unwrap();
        world.seal();
        assert_eq!(world.waiting[0].name.sequence, 2);
        world.deliver_all();
    }
}

#[test]
fn a_name_with_a_number_that_no_chain_reaches_is_a_stray_file() {
    let name = sealed_name(u64::MAX, line(0).as_bytes());
    let mut world = with_file(&name, line(0).as_bytes());
    world.open().unwrap();
    assert_eq!((world.waiting.len(), world.quarantine().len()), (0, 1));
    world.append(1).unwrap();
    world.seal();
    assert_eq!(world.waiting[0].name.sequence, 1);
    world.deliver_all();
}

#[test]
fn sealed_batches_go_in_the_order_of_their_numbers() {
    let mut world = World::opened();
    world.end();
    for sequence in [10, 9, 11, 2] {
        world.disk.put(&world.dir().join(sealed_name(sequence, line(sequence).as_bytes())), line(sequence).as_bytes());
    }
    world.open().unwrap();
    assert_eq!(world.waiting.iter().map(|batch| batch.name.sequence).collect::<Vec<_>>(), [2, 9, 10, 11]);
}

#[test]
fn a_lost_head_starts_a_new_chain_of_this_type_alone() {
    let mut world = World::opened();
    world.append(1).unwrap();
    world.deliver_all();
    let chains = ByType::new(|log_type| world.spool().chain_instance(log_type).to_owned());
    world.end();
    world.disk.take(&world.file(".sent"));
    world.open().unwrap();
    assert_ne!(world.spool().chain_instance(TYPE), chains[TYPE]);
    assert_eq!(world.spool().chain_instance(LogType::Audits), chains[LogType::Audits]);
    world.append(1).unwrap();
    world.seal();
    assert_eq!((world.waiting[0].name.sequence, world.waiting[0].name.previous), (1, Sha256::ZERO));
}

#[test]
fn the_gaps_of_a_lost_chain_are_not_told_in_the_new_one() {
    let mut world = with_file(&sealed_name(1, line(0).as_bytes()), b"");
    world.open().unwrap();
    world.end();
    world.disk.take(&world.file(".sent"));
    world.open().unwrap();
    assert_eq!(world.folder().gaps(), Vec::<u64>::new());
    assert_eq!(world.quarantine().len(), 1);
}

#[test]
fn a_head_whose_new_manifest_was_not_written_gives_no_number_under_the_old_id() {
    let mut world = World::opened();
    world.append(1).unwrap();
    world.deliver_all();
    let chain = world.spool().chain_instance(TYPE).to_owned();
    world.end();
    world.disk.take(&world.file(".sent"));
    world.disk.fail(Op::Rename, "manifest.json", Errno::IO);
    assert!(world.open().is_err());
    world.disk.heal();
    world.open().unwrap();
    assert_ne!(world.spool().chain_instance(TYPE), chain);
}

#[test]
fn batches_without_a_manifest_are_kept_and_the_start_is_refused() {
    let mut world = World::opened();
    world.append(1).unwrap();
    world.seal();
    let files = world.files();
    world.end();
    world.disk.take(&world.settings.dir.join("manifest.json"));
    let refusal = world.open().unwrap_err();
    assert!(matches!(&refusal, OpenError::Manifest(ManifestError::Missing { batches: 1, .. })), "{refusal}");
    assert_eq!(world.files(), files);
}

#[test]
fn batches_for_another_bucket_are_kept_and_the_start_is_refused() {
    let mut world = World::opened();
    world.append(1).unwrap();
    world.end();
    world.settings.destination.bucket = "other".to_owned();
    let refusal = world.open().unwrap_err();
    assert!(matches!(&refusal, OpenError::OtherDestination { batches: 1, .. }), "{refusal}");
    assert!(
        refusal.to_string().contains("acme")
            && refusal.to_string().contains("other")
            && refusal.to_string().contains("drain")
    );
    world.settings.destination.bucket = "acme".to_owned();
    world.open().unwrap();
    world.deliver_all();
}

#[test]
fn an_empty_spool_takes_on_another_bucket_with_new_chains() {
    let mut world = World::opened();
    world.append(1).unwrap();
    world.deliver_all();
    let chain = world.spool().chain_instance(TYPE).to_owned();
    world.end();
    world.settings.destination.bucket = "other".to_owned();
    world.open().unwrap();
    assert_ne!(world.spool().chain_instance(TYPE), chain);
    world.append(1).unwrap();
    world.seal();
    assert_eq!(world.waiting[0].name.sequence, 1);
}

#[test]
fn a_bucket_that_is_changed_and_changed_back_gives_no_number_out_twice() {
    let reached = Arc::new(AtomicBool::new(true));
    for call in 0.. {
        if !reached.swap(false, Ordering::SeqCst) {
            assert!(call > 10, "only {call} calls were tried");
            break;
        }
        let mut world = World::opened();
        world.append(1).unwrap();
        world.deliver_all();
        let given_out = (world.spool().chain_instance(TYPE).to_owned(), world.folder().head().sequence);
        world.end();
        world.settings.destination.bucket = "other".to_owned();
        let sign = reached.clone();
        world.disk.at_call(call, move || {
            sign.store(true, Ordering::SeqCst);
            Effect::Fail(Errno::IO)
        });
        // It may be refused: a call in the middle of it has failed.
        drop(world.open_without_settling());
        world.disk.heal();
        world.end();
        world.settings.destination.bucket = "acme".to_owned();
        world.open().unwrap();
        world.append(1).unwrap();
        world.seal();
        let (instance, number) = given_out;
        let next = world.waiting[0].name.sequence;
        assert!(world.spool().chain_instance(TYPE) != instance || next > number, "call {call}: {next} again");
    }
}

#[test]
fn an_open_file_without_an_event_ties_no_spool_to_its_bucket() {
    let mut world = with_file(&open_name(), b"");
    world.settings.destination.bucket = "other".to_owned();
    world.open().unwrap();
    world.append(1).unwrap();
    world.deliver_all();
}

#[test]
fn the_time_in_a_key_does_not_go_back_when_a_spool_takes_on_another_bucket() {
    let mut world = World::opened();
    world.append(1).unwrap();
    world.deliver_all();
    world.end();
    let [SpoolName::Sealed(head)] = world.files()[..] else { panic!("{:?}", world.files()) };
    // The clock goes back by an hour.
    let opened = head.batch.opened + chrono::TimeDelta::hours(1);
    let later = SealedName { batch: BatchName { opened, ..head.batch }, ..head };
    world.disk.take(&world.dir().join(head.to_string()));
    world.disk.put(&world.dir().join(later.to_string()), b"");
    world.settings.destination.bucket = "other".to_owned();
    world.open().unwrap();
    assert!(world.append(1).unwrap().batch.opened > opened);
}

#[test]
fn a_newer_format_and_a_manifest_that_is_none_are_refused_and_stay() {
    let mut world = World::opened();
    world.end();
    let path = world.settings.dir.join("manifest.json");
    let newer = serde_json::json!({ "format": 2, "anything": [] }).to_string();
    for bytes in [newer.as_str(), "", "{", "[]"] {
        world.disk.put(&path, bytes.as_bytes());
        let refusal = world.open().unwrap_err();
        let expected = match &refusal {
            OpenError::Manifest(ManifestError::Newer { found }) => *found == 2 && bytes == newer,
            OpenError::Manifest(ManifestError::Malformed { .. }) => bytes != newer,
            _ => false,
        };
        assert!(expected, "{bytes}: {refusal}");
        assert_eq!(world.disk.bytes(&path).unwrap(), bytes.as_bytes());
    }
}

#[test]
fn a_manifest_that_can_not_be_read_is_not_taken_for_a_missing_one() {
    let mut world = World::opened();
    world.end();
    let path = world.settings.dir.join("manifest.json");
    let manifest = world.disk.bytes(&path);
    for op in [Op::Open, Op::Read] {
        world.disk.fail(op, "manifest.json", Errno::IO);
        let refusal = world.open().unwrap_err();
        assert!(matches!(&refusal, OpenError::Manifest(ManifestError::Io { .. })), "{refusal}");
        assert_eq!(world.disk.bytes(&path), manifest);
    }
}

#[test]
fn a_copy_and_its_original_are_one_batch() {
    let mut world = World::opened();
    world.append(1).unwrap();
    let open = world.file(".open");
    let bytes = world.disk.bytes(&open).unwrap();
    world.seal();
    world.end();
    world.disk.put(&open, &bytes);
    world.open().unwrap();
    assert_eq!(world.waiting.len(), 1);
    // Once the compressed file is delivered, the plain one would pass for another batch.
    let left = world.disk_after_power_cut().files();
    assert!(left.iter().all(|name| matches!(name, SpoolName::Sealed(_))), "{left:?}");
    world.crash(Cut::Strict);
    world.deliver_all();
    assert_eq!(world.bucket.len(), 1);
}

#[test]
fn a_disk_that_is_full_at_the_start_keeps_nothing_from_running() {
    let mut world = World::with_codec(Codec::Gzip);
    world.open().unwrap();
    world.append(2).unwrap();
    world.end();
    world.disk.fail(Op::Write, "", Errno::NOSPC);
    world.open_without_settling().unwrap();
    world.append(1).unwrap_err();
    world.deliver_all();
    assert_eq!(world.missing(), 0);
}

#[test]
fn without_room_for_a_copy_what_a_crash_left_is_sealed_as_it_is_and_sent() {
    for errno in [Errno::NOSPC, Errno::DQUOT, Errno::FBIG] {
        let mut world = World::opened();
        world.append(2).unwrap();
        world.end();
        world.disk.fail(Op::Write, ".tmp", errno);
        world.open().unwrap();
        world.upload(Fate::Stored).unwrap();
        assert_eq!((world.missing(), world.disk.names(&world.dir()).len()), (0, 1), "only the head is left");
        world.deliver_all();
    }
}

#[test]
fn two_spools_never_share_a_folder() {
    let world = World::opened();
    let second = crate::spool::Spool::open(&world.settings, std::sync::Arc::new(world.disk.clone()));
    let refusal = second.err().unwrap().to_string();
    assert!(refusal.contains(&std::process::id().to_string()), "{refusal}");
}

#[test]
fn a_manifest_says_what_was_configured() {
    let world = World::opened();
    let bytes = world.disk.bytes(&world.settings.dir.join("manifest.json")).unwrap();
    let manifest: Manifest = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(manifest.destination, world.settings.destination);
    assert_eq!((manifest.format, manifest.instance.len()), (1, 32));
}
