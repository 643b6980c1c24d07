//! Tests the operating system's file system: its calls do what [`Disk`](crate::spool::disk::Disk) says,
//! and the lock names its process.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::world::{TYPE, settings};
use crate::batch::{Sha256, SpoolName, Stage};
use crate::spool::disk::{self, Disk, OsDisk};
use crate::spool::manifest::{Lock, LockError, Manifest};
use crate::spool::{AppendError, QUARANTINE, Receipt, Settings, Spool};

/// A spool on a real disk, whose first batch was delivered in an earlier life: nothing is at work in it.
fn delivered_once() -> (tempfile::TempDir, PathBuf, Spool) {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("spool");
    let open = || Spool::open(&settings(dir.clone()), Arc::new(OsDisk)).unwrap();
    let (spool, mut sealed) = open();
    append(&spool).unwrap();
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(spool.close());
    let mut batch = sealed[TYPE].try_recv().unwrap();
    spool.folder(TYPE).set_stage(&mut batch, Stage::Sending).unwrap();
    spool.folder(TYPE).delivered(&mut batch).unwrap();
    drop(spool);
    let (spool, _) = open();
    (home, dir, spool)
}

fn append(spool: &Spool) -> Result<Receipt, AppendError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(spool.append(TYPE, "{}\n".into(), 1))
}

/// Whether the log type's folder holds the open batch and, empty, the head of its chain.
fn has_head_and_batch(dir: &Path, batch: &Receipt) -> bool {
    let files = OsDisk.list(&dir.join(TYPE.as_str())).unwrap();
    let names: Vec<(SpoolName, u64)> = files.iter().map(|(name, bytes)| (name.parse().unwrap(), *bytes)).collect();
    let is_head = |(name, bytes): &(SpoolName, u64)| match name {
        SpoolName::Sealed(name) => (name.stage, name.sequence, *bytes) == (Stage::Sent, 1, 0),
        SpoolName::Open(_) => false,
    };
    names.len() == 2 && names.iter().any(is_head) && names.contains(&(SpoolName::Open(batch.batch), 3))
}

#[test]
fn a_log_types_folder_that_is_removed_is_made_again_with_the_chains_head() {
    let (_home, dir, spool) = delivered_once();
    fs::remove_dir_all(dir.join(TYPE.as_str())).unwrap();
    let receipt = append(&spool).unwrap();
    assert!(has_head_and_batch(&dir, &receipt));
}

#[test]
fn a_quarantine_that_is_removed_is_made_again_by_what_has_to_go_there() {
    let (_home, dir, spool) = delivered_once();
    let quarantine = dir.join(QUARANTINE);
    fs::remove_dir_all(&quarantine).unwrap();
    let stray = dir.join(TYPE.as_str()).join("notes.txt");
    fs::write(&stray, "hello").unwrap();
    spool.folder(TYPE).move_to_quarantine(&stray, "notes.txt").unwrap();
    assert_eq!(OsDisk.list(&quarantine).unwrap(), [("env0-deployments_notes.txt".to_owned(), 5)]);
}

#[test]
fn a_spool_that_is_removed_as_a_whole_is_the_same_one_again() {
    let (_home, dir, spool) = delivered_once();
    fs::remove_dir_all(&dir).unwrap();
    let receipt = append(&spool).unwrap();
    assert!(has_head_and_batch(&dir, &receipt));
    assert!(dir.join(QUARANTINE).is_dir());
    assert_eq!(Lock::holder(&dir).unwrap(), Some(std::process::id().to_string()));
    assert_eq!(Manifest::read(&OsDisk, &dir).unwrap().unwrap().instance, spool.instance());
}

#[test]
fn nothing_is_written_into_a_spool_that_another_daemon_has_taken_meanwhile() {
    let (_home, dir, spool) = delivered_once();
    fs::remove_dir_all(&dir).unwrap();
    fs::create_dir(&dir).unwrap();
    let _theirs = Lock::take(&dir).unwrap();
    assert!(matches!(append(&spool), Err(AppendError::Disk(_))));
    let names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["lock"]);
}

#[test]
fn files_and_folders_are_the_users_alone() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("above/spool");
    OsDisk.create_dir(&folder).unwrap();
    OsDisk.create_dir(&folder).unwrap();
    OsDisk.create(&folder.join("batch")).unwrap();
    let _lock = Lock::take(&folder).unwrap();
    let mode = |path: &str| fs::metadata(home.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        ["above", "above/spool", "above/spool/batch", "above/spool/lock"].map(mode),
        [0o700, 0o700, 0o600, 0o600]
    );
}

#[test]
fn a_file_is_created_only_where_there_is_none_and_opened_only_where_there_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("batch");
    assert_eq!(OsDisk.open(&path).err().unwrap().kind(), ErrorKind::NotFound);
    OsDisk.create(&path).unwrap().write_at(b"{}\n", 0).unwrap();
    assert_eq!(OsDisk.create(&path).err().unwrap().kind(), ErrorKind::AlreadyExists);
    assert_eq!(disk::read(&OsDisk, &path, 3).unwrap(), b"{}\n");
}

#[test]
fn a_file_is_written_read_and_cut_at_any_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("batch");
    let mut file = OsDisk.create(&path).unwrap();
    file.write_at(b"one two", 0).unwrap();
    file.write_at(b"six", 4).unwrap();
    file.sync().unwrap();
    let mut buffer = [0; 16];
    assert_eq!(file.read_at(&mut buffer, 4).unwrap(), 3);
    assert_eq!(&buffer[..3], b"six");
    file.truncate(3).unwrap();
    assert_eq!(file.read_at(&mut buffer, 3).unwrap(), 0);
    assert_eq!(fs::read(&path).unwrap(), b"one");
}

#[test]
fn a_file_that_was_removed_while_it_is_open_fails_its_fsync() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("batch");
    let mut file = OsDisk.create(&path).unwrap();
    file.write_at(b"{}\n", 0).unwrap();
    file.sync().unwrap();
    OsDisk.remove(&path).unwrap();
    assert_eq!(file.sync().unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_rename_replaces_and_a_removal_is_done_where_the_file_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let [old, new] = ["old", "new"].map(|name| folder.path().join(name));
    fs::write(&old, "old").unwrap();
    fs::write(&new, "new").unwrap();
    OsDisk.rename(&old, &new).unwrap();
    assert_eq!(fs::read_to_string(&new).unwrap(), "old");
    for _ in 0..2 {
        OsDisk.remove(&new).unwrap();
        assert!(!new.exists());
    }
    assert!(OsDisk.remove(folder.path()).is_err(), "a folder is no file");
}

#[test]
fn a_list_holds_sizes_and_names_links_and_folders_too() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("batch"), "{}\n").unwrap();
    fs::create_dir(folder.path().join("folder")).unwrap();
    symlink("nowhere", folder.path().join("link")).unwrap();
    let mut list = OsDisk.list(folder.path()).unwrap();
    list.sort();
    assert_eq!(list[0], ("batch".to_owned(), 3));
    assert_eq!([&list[1].0, &list[2].0], ["folder", "link"]);
}

/// Seals batches number 2 and 3 in a spool whose first batch was delivered, and ends it; the sealed files, in order.
fn two_sealed() -> (tempfile::TempDir, PathBuf, Vec<PathBuf>) {
    let (home, dir, spool) = delivered_once();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    append(&spool).unwrap();
    spool.seal();
    append(&spool).unwrap();
    runtime.block_on(spool.close());
    drop(spool);
    let folder = dir.join(TYPE.as_str());
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "sealed"));
    files.sort();
    assert_eq!(files.len(), 2);
    (home, dir, files)
}

#[test]
fn a_rename_of_which_a_crash_left_both_names_is_finished_by_the_next_start() {
    for index in [0, 1] {
        let (_home, dir, files) = two_sealed();
        fs::hard_link(&files[index], files[index].with_extension("sending")).unwrap();
        let (_spool, mut sealed) = Spool::open(&settings(dir), Arc::new(OsDisk)).unwrap();
        let mut found = std::iter::from_fn(|| sealed[TYPE].try_recv());
        let stages: Vec<_> = found.by_ref().map(|batch| (batch.name.sequence, batch.name.stage)).collect();
        let mut expected = [(2, Stage::Sealed), (3, Stage::Sealed)];
        expected[index].1 = Stage::Sending;
        assert_eq!((&stages[..], files[index].exists()), (&expected[..], false));
    }
}

#[test]
fn a_folder_that_is_gone_is_found_out_by_its_fsync() {
    let folder = tempfile::tempdir().unwrap();
    OsDisk.sync_dir(folder.path()).unwrap();
    let gone = OsDisk.sync_dir(&folder.path().join("gone")).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
}

#[test]
fn a_small_file_is_replaced_as_a_whole_whatever_an_earlier_try_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("manifest.json");
    fs::write(&path, "the older and longer one").unwrap();
    fs::write(folder.path().join("manifest.json.tmp"), "half of one").unwrap();
    disk::replace(&OsDisk, folder.path(), "manifest.json", b"new").unwrap();
    assert_eq!(OsDisk.list(folder.path()).unwrap(), [("manifest.json".to_owned(), 3)]);
    assert_eq!(fs::read(&path).unwrap(), b"new");
}

#[test]
fn a_file_that_is_replaced_by_more_than_is_gathered_at_once_has_all_of_it_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let parts = [b'a', b'b', b'c'].map(|byte| vec![byte; disk::READ_BUFFER_BYTES / 2 + 1]);
    disk::replace_with(&OsDisk, folder.path(), "batch", |file| parts.iter().try_for_each(|part| file.write_all(part)))
        .unwrap();
    assert_eq!(fs::read(folder.path().join("batch")).unwrap(), parts.concat());
}

#[test]
fn who_has_a_spool_is_told_without_taking_it() {
    let spool = tempfile::tempdir().unwrap();
    assert_eq!(Lock::holder(spool.path()).unwrap(), None);
    let lock = Lock::take(spool.path()).unwrap();
    let process = Some(std::process::id().to_string());
    assert_eq!(Lock::holder(spool.path()).unwrap(), process);
    let refusal = Lock::take(spool.path()).unwrap_err();
    assert!(matches!(&refusal, LockError::Held { holder, .. } if Some(holder) == process.as_ref()), "{refusal}");
    drop(lock);
    assert_eq!(Lock::holder(spool.path()).unwrap(), None);
    Lock::take(spool.path()).unwrap();
}

#[test]
fn a_holder_that_could_not_write_its_number_is_unknown() {
    let spool = tempfile::tempdir().unwrap();
    let file = File::create(spool.path().join("lock")).unwrap();
    file.lock().unwrap();
    assert_eq!(Lock::holder(spool.path()).unwrap().as_deref(), Some("unknown"));
}

#[test]
fn a_lock_that_can_not_be_asked_for_is_an_error_not_a_free_spool() {
    let spool = tempfile::tempdir().unwrap();
    let file = spool.path().join("file");
    fs::write(&file, "").unwrap();
    assert_eq!(Lock::holder(&file).unwrap_err().kind(), ErrorKind::NotADirectory);
}

#[test]
fn a_large_file_is_cut_to_the_byte() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("file");
    let bytes: Vec<u8> = (0..3_000_001_u32).map(|index| (index % 251) as u8).collect();
    for len in [2_999_999, 1_048_576, 524_289, 1, 0] {
        fs::write(&path, &bytes).unwrap();
        OsDisk.open(&path).unwrap().truncate(len).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes[..len as usize], "cut to {len}");
    }
}

#[test]
fn a_large_file_that_is_removed_keeps_its_bytes_under_another_name() {
    let home = tempfile::tempdir().unwrap();
    let (path, backup, link) = (home.path().join("file"), home.path().join("backup"), home.path().join("link"));
    let bytes = vec![b'x'; 3_000_001];
    fs::write(&path, &bytes).unwrap();
    fs::hard_link(&path, &backup).unwrap();
    symlink(&backup, &link).unwrap();
    OsDisk.remove(&path).unwrap();
    OsDisk.remove(&link).unwrap();
    assert!(!path.exists() && fs::symlink_metadata(&link).is_err());
    assert_eq!(fs::read(&backup).unwrap(), bytes);
    OsDisk.remove(&backup).unwrap();
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
}

#[test]
fn a_batch_of_small_and_large_appends_has_all_their_bytes_and_the_hash_of_those() {
    let home = tempfile::tempdir().unwrap();
    let large = Settings { max_bytes: 1 << 30, batch_max_bytes: 1 << 28, ..settings(home.path().join("spool")) };
    let (spool, mut sealed) = Spool::open(&large, Arc::new(OsDisk)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut all = String::new();
    for (fill, bytes) in ["a", "b", "c", "d", "e"].into_iter().zip([10, 3 << 20, 100, (1 << 20) - 1, 1 << 20]) {
        let line = fill.repeat(bytes - 1) + "\n";
        all += &line;
        runtime.block_on(spool.append(TYPE, line.into(), 1)).unwrap();
    }
    runtime.block_on(spool.close());
    let batch = sealed[TYPE].try_recv().unwrap();
    let stored = fs::read(spool.folder(TYPE).batch_path(&batch)).unwrap();
    assert!(stored == all.as_bytes(), "{} bytes are not the {} that were appended", stored.len(), all.len());
    assert_eq!(batch.name.sha256, Sha256::of(all.as_bytes()));
}
