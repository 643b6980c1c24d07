//! Tests what the spool does when names are missing or its path leads elsewhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::fault_disk::{Effect, Errno, Op};
use super::world::{DEADLINE, Fate, TYPE, World, settings};
use crate::batch::{LogType, Stage};
use crate::spool::disk::OsDisk;
use crate::spool::manifest::{Lock, LockError};
use crate::spool::{AppendError, LeftBehind, OpenError, PULL, QUARANTINE, Receipt, Spool};

/// A world with one batch that waits for its delivery.
fn sealed() -> World {
    let mut world = World::opened();
    world.append(2).unwrap();
    world.seal();
    world
}

/// What the spool's path leads to while its volume is unmounted: an empty folder, or another spool.
fn mounted_over(world: &World) -> [Vec<PathBuf>; 2] {
    let dir = world.settings.dir.clone();
    let folders = LogType::ALL.map(LogType::as_str).into_iter().chain([QUARANTINE]).map(|folder| dir.join(folder));
    let another_spool = std::iter::once(dir.clone()).chain(folders).collect();
    [vec![dir], another_spool]
}

fn mount_over(world: &World, folders: &[PathBuf]) {
    world.disk.mount_over(&folders.iter().map(PathBuf::as_path).collect::<Vec<_>>());
}

#[test]
fn a_rename_that_is_done_and_answers_that_nothing_was_there_is_done() {
    for errno in [Errno::NOENT, Errno::IO] {
        for ending in [".sending", ".sent", ".sealed"] {
            let mut world = World::opened();
            world.append(2).unwrap();
            let mut answered = false;
            world.disk.rule(move |op, path| {
                let hit = !answered && op == Op::Rename && path.to_string_lossy().ends_with(ending);
                answered |= hit;
                if hit { Effect::Apply(errno) } else { Effect::Pass }
            });
            world.seal();
            world.upload(Fate::Stored).unwrap();
            assert_eq!((world.bucket.len(), world.quarantine()), (1, Vec::new()), "{errno} {ending}");
            world.deliver_all();
        }
    }
}

#[test]
fn a_batch_that_goes_to_quarantine_goes_there_once_whatever_its_rename_answers() {
    for errno in [Errno::NOENT, Errno::IO] {
        let mut world = sealed();
        world.disk.flip_bit(&world.file(".sealed"));
        let batch = world.waiting.remove(0);
        world.disk.rule(move |op, path| {
            let aside = op == Op::Rename && path.parent().is_some_and(|folder| folder.ends_with(QUARANTINE));
            if aside { Effect::Apply(errno) } else { Effect::Pass }
        });
        world.folder().quarantine(&batch).unwrap();
        world.disk.heal();
        assert_eq!(world.quarantine().len(), 1, "{errno}: {:?}", world.quarantine());
        assert_eq!(world.folder().quarantine_bytes(), batch.bytes);
    }
}

#[test]
fn a_batch_that_is_whole_is_put_back_from_quarantine() {
    let mut world = sealed();
    let batch = world.waiting[0].clone();
    // The disk refuses to put it back once, and the next try goes on from there.
    world.disk.rule(|op, path| {
        let back = op == Op::Rename && path.parent().is_some_and(|folder| folder.ends_with(TYPE.as_str()));
        if back { Effect::Fail(Errno::IO) } else { Effect::Pass }
    });
    assert_eq!(world.folder().quarantine(&batch).ok(), None);
    world.disk.heal();
    assert_eq!(world.folder().quarantine(&batch).ok(), Some(false));
    assert_eq!((world.quarantine(), world.folder().gaps()), (Vec::new(), Vec::new()));
    world.append(1).unwrap();
    world.seal();
    world.deliver_all();
    assert_eq!((world.missing(), world.bucket.len(), world.quarantine()), (0, 2, Vec::new()));
}

#[test]
fn a_disk_that_can_not_tell_where_the_path_leads_is_told_by_its_own_error() {
    let mut world = sealed();
    for place in ["/.", "/lock"] {
        world.disk.rule(move |op, path| {
            let fails = op == Op::Identify && path.to_string_lossy().ends_with(place);
            if fails { Effect::Fail(Errno::IO) } else { Effect::Pass }
        });
        // The lock is asked for only where the folder is another one.
        if place == "/lock" {
            mount_over(&world, &mounted_over(&world)[0]);
        }
        let refusal = world.append(1).unwrap_err().to_string();
        world.disk.heal();
        world.disk.unmount();
        let told = refusal.contains(&format!("stat {}{place}: Input/output error", world.settings.dir.display()));
        assert!(told && !refusal.contains("does not lead"), "{refusal}");
        world.wait_until("events are taken again", |world| world.append(1).is_ok());
        world.seal();
    }
    world.deliver_all();
    assert_eq!((world.missing(), world.quarantine()), (0, Vec::new()));
}

#[test]
fn a_name_in_quarantine_that_can_not_be_looked_at_does_not_count_as_taken() {
    let mut world = sealed();
    world.disk.flip_bit(&world.file(".sealed"));
    let batch = world.waiting.remove(0);
    world.disk.fail(Op::Identify, "quarantine/env0-", Errno::IO);
    let error = world.folder().quarantine(&batch).unwrap_err().to_string();
    assert!(error.contains("stat ") && error.contains("Input/output error"), "{error}");
    world.disk.heal();
    assert_eq!(world.folder().quarantine(&batch).ok(), Some(true));
    assert_eq!(world.quarantine().len(), 1);
}

#[test]
fn while_the_path_leads_elsewhere_nothing_is_written_and_then_all_goes_on() {
    for index in 0..2 {
        let mut world = sealed();
        world.append(1).unwrap();
        let folders = mounted_over(&world)[index].clone();
        mount_over(&world, &folders);
        let mut batch = world.waiting[0].clone();
        let folder = world.folder();
        folder.set_stage(&mut batch, Stage::Sending).unwrap_err();
        folder.quarantine(&batch).unwrap_err();
        folder.delivered(&mut batch).unwrap_err();
        // The open batch is sealed, and the next one would be a new file.
        world.spool().seal();
        let refusal = world.append(1).unwrap_err();
        assert!(
            matches!(&refusal, AppendError::Disk(error) if error.to_string().contains("does not lead to the spool")),
            "{refusal}"
        );
        assert!(world.spool().failing(TYPE).is_some());
        assert_eq!((world.disk.names_over(), world.quarantine()), (Vec::new(), Vec::new()));
        world.disk.unmount();
        world.wait_until("events are taken again", |world| world.append(1).is_ok());
        world.wait_until("the status says so", |world| world.spool().failing(TYPE).is_none());
        world.deliver_all();
        assert_eq!((world.missing(), world.quarantine()), (0, Vec::new()));
    }
}

#[test]
fn no_event_is_acknowledged_in_a_file_that_was_made_after_the_volume_went_away() {
    let mut world = World::opened();
    mount_over(&world, &mounted_over(&world)[1]);
    world.disk.unmount();
    // The last of the spool's folders that is looked at.
    let quarantine = world.settings.dir.join("quarantine");
    let mut looked = false;
    world.disk.rule(move |op, path| {
        let goes = !looked && op == Op::Identify && path == quarantine;
        looked |= goes;
        if goes { Effect::MountOver } else { Effect::Pass }
    });
    assert!(matches!(world.append(1), Err(AppendError::Disk(_))));
    let trace = world.disk.trace();
    let made = trace.iter().rfind(|(op, _)| *op == Op::Create).unwrap();
    assert!(made.1.to_string_lossy().ends_with(".open"), "the path led to the spool when the file was asked for");
    assert_eq!(world.disk.names_over(), Vec::<PathBuf>::new());
    world.disk.heal();
    world.disk.unmount();
    world.wait_until("events are taken again", |world| world.append(1).is_ok());
    world.deliver_all();
}

/// A spool on a real disk with nothing in it.
fn real() -> (tempfile::TempDir, PathBuf, Spool) {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("spool");
    let (spool, _) = Spool::open(&settings(dir.clone()), Arc::new(OsDisk)).unwrap();
    (home, dir, spool)
}

fn append(spool: &Spool) -> Result<Receipt, AppendError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(spool.append(TYPE, "{}\n".into(), 1))
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

fn names(dir: &Path) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

#[test]
fn a_spool_that_is_moved_away_is_not_made_anew_and_goes_on_when_it_is_back() {
    let (home, dir, spool) = real();
    let away = home.path().join("away");
    for put_in_its_place in [false, true] {
        fs::rename(&dir, &away).unwrap();
        if put_in_its_place {
            fs::create_dir(&dir).unwrap();
        }
        assert!(matches!(append(&spool), Err(AppendError::Disk(_))));
        assert!(!dir.exists() || names(&dir).is_empty(), "{:?}", names(&dir));
        if put_in_its_place {
            fs::remove_dir(&dir).unwrap();
        }
        fs::rename(&away, &dir).unwrap();
        wait_until("events are taken again", || append(&spool).is_ok());
        spool.seal();
        let is_sealed = |name: &std::ffi::OsString| name.to_string_lossy().ends_with(".sealed");
        wait_until("the batch is sealed", || names(&dir.join(TYPE.as_str())).iter().any(is_sealed));
    }
}

#[test]
fn a_folder_that_is_moved_away_is_not_made_anew_and_goes_on_when_it_is_back() {
    let (home, dir, spool) = real();
    fs::create_dir(dir.join(PULL)).unwrap();
    let away = home.path().join("away");
    for folder in [TYPE.as_str(), QUARANTINE, PULL].map(|name| dir.join(name)) {
        // The open batch may be sealed meanwhile, and the next event begins a file.
        append(&spool).unwrap();
        spool.confirm().unwrap();
        fs::rename(&folder, &away).unwrap();
        let error = spool.confirm().unwrap_err().to_string();
        assert!(error.contains("was moved away") && error.contains(folder.to_str().unwrap()), "{error}");
        spool.seal();
        assert!(matches!(append(&spool), Err(AppendError::Disk(_))));
        assert!(!folder.exists(), "{}", folder.display());
        fs::rename(&away, &folder).unwrap();
        wait_until("events are taken again", || append(&spool).is_ok());
        spool.seal();
    }
    let is_open = |name: &std::ffi::OsString| name.to_string_lossy().ends_with(".open");
    wait_until("all is sealed", || !names(&dir.join(TYPE.as_str())).iter().any(is_open));
}

#[test]
fn another_folder_in_the_place_of_the_pulls_is_told() {
    let (home, dir, spool) = real();
    let folder = dir.join(PULL);
    let [away, other] = ["away", "other"].map(|name| home.path().join(name));
    fs::create_dir(&folder).unwrap();
    spool.confirm().unwrap();
    fs::create_dir(&other).unwrap();
    fs::rename(&folder, &away).unwrap();
    fs::rename(&other, &folder).unwrap();
    let error = spool.confirm().unwrap_err().to_string();
    assert!(error.contains("another folder than before"), "{error}");
    assert!(append(&spool).is_err());
    fs::remove_dir(&folder).unwrap();
    fs::rename(&away, &folder).unwrap();
    wait_until("events are taken again", || append(&spool).is_ok());
    // Removed and made again is no other folder.
    fs::remove_dir(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    spool.confirm().unwrap();
}

#[test]
fn a_lock_that_is_removed_lets_no_second_daemon_in_and_is_made_again() {
    let (_home, dir, spool) = real();
    fs::remove_file(dir.join("lock")).unwrap();
    let refusal = Lock::take(&dir).unwrap_err();
    assert!(matches!(refusal, LockError::Held { .. }), "{refusal}");
    assert!(!dir.join("lock").exists(), "who is refused leaves nothing behind");
    append(&spool).unwrap();
    assert_eq!(Lock::holder(&dir).unwrap(), Some(std::process::id().to_string()));
}

#[test]
fn a_lock_that_another_daemon_may_have_held_is_not_taken_back() {
    let (_home, dir, spool) = real();
    fs::remove_file(dir.join("lock")).unwrap();
    fs::write(dir.join("lock"), "1\n").unwrap();
    let refusal = append(&spool).unwrap_err();
    assert!(refusal.to_string().contains("another daemon"), "{refusal}");
}

#[test]
fn what_is_no_file_in_a_log_types_folder_is_quarantined_and_stops_no_start() {
    let home = tempfile::tempdir().unwrap();
    let (dir, elsewhere) = (home.path().join("spool"), home.path().join("elsewhere"));
    let settings = settings(dir.clone());
    drop(Spool::open(&settings, Arc::new(OsDisk)).unwrap());
    fs::write(&elsewhere, "{}\n").unwrap();
    let folder = dir.join(TYPE.as_str());
    let head = folder.join(names(&folder).remove(0));
    fs::remove_file(&head).unwrap();
    let opened = "20261122T210405.678901Z_aB3dE.open";
    for link in [head.as_path(), &folder.join(opened), &folder.join("notes")] {
        std::os::unix::fs::symlink(&elsewhere, link).unwrap();
    }
    for name in ["old", "probe.tmp"] {
        fs::create_dir(folder.join(name)).unwrap();
    }
    let (spool, _) = Spool::open(&settings, Arc::new(OsDisk)).unwrap();
    let aside = names(&dir.join(QUARANTINE));
    assert_eq!((aside.len(), names(&folder)), (5, vec![head.file_name().unwrap().to_owned()]), "{aside:?}");
    assert!(fs::symlink_metadata(&head).unwrap().is_file(), "the head has a file of its own again");
    assert_eq!(fs::read(&elsewhere).unwrap(), b"{}\n", "no link is followed");
    assert_eq!(spool.left_behind().unwrap(), LeftBehind { batches: 0, quarantined: 5 });
    append(&spool).unwrap();
}

#[test]
fn a_folder_that_is_a_link_or_a_file_is_refused_and_nothing_is_written_first() {
    for folder in [LogType::ALL[0].as_str(), LogType::ALL[1].as_str(), QUARANTINE, PULL] {
        for is_link in [true, false] {
            let home = tempfile::tempdir().unwrap();
            let (dir, elsewhere) = (home.path().join("spool"), home.path().join("elsewhere"));
            fs::create_dir(&dir).unwrap();
            fs::create_dir(&elsewhere).unwrap();
            match is_link {
                true => std::os::unix::fs::symlink(&elsewhere, dir.join(folder)).unwrap(),
                false => fs::write(dir.join(folder), "").unwrap(),
            }
            let refusal = Spool::open(&settings(dir.clone()), Arc::new(OsDisk)).err().unwrap();
            assert!(matches!(&refusal, OpenError::Create { .. }), "{refusal}");
            assert!(refusal.to_string().contains(&format!("{folder} is a link or no folder")), "{refusal}");
            assert_eq!(
                (names(&elsewhere).len(), names(&dir).len()),
                (0, 2),
                "only the lock is made: {:?}",
                names(&dir)
            );
        }
    }
}
