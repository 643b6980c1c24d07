//! A file system in memory that knows what is durable, and can fail or lose data at any call.
//!
//! The test decides what a crash keeps: [`Cut::Kill`] keeps everything (the kernel goes on), [`Cut::Strict`] forgets
//! whatever was not fsynced, [`Cut::Torn`] keeps a random part of that, [`Cut::Holes`] its length. Threads of a process
//! that has died may still run in the test; they write to a copy, which the next process doesn't see.
//!
//! There are two file systems: the spool's, and one that [`FaultDisk::mount_over`] puts over it. Paths lead to the one
//! that is mounted; an open file stays where it is.

mod rule;
mod tree;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use self::rule::Rule;
use self::tree::{Bytes, Change, Tree};
use crate::spool::disk::{Disk, DiskFile, FileId};

/// A call of the seam.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    CreateDir,
    Create,
    Open,
    Identify,
    Rename,
    Remove,
    SyncDir,
    List,
    /// One name of a listing. Where it fails, the listing lacks the name without an error.
    Entry,
    Write,
    Read,
    Truncate,
    BeginWriteOut,
    Sync,
}

/// What a crash leaves.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cut {
    /// `kill -9`: all that was written, durable or not.
    Kill,
    /// A power cut: only what was fsynced.
    Strict,
    /// A power cut: what was fsynced, and a random part of the rest, torn and out of order, by this seed.
    Torn(u64),
    /// A power cut: names and lengths are as they were, and what was not fsynced is a hole of zeros.
    Holes,
}

/// What becomes of a call.
pub(crate) enum Effect {
    Pass,
    /// It fails with this error. A write leaves half of its bytes; an fsync makes nothing durable.
    Fail(Errno),
    /// It is carried out, but answers this error.
    Apply(Errno),
    /// It passes, and from then on paths lead to the file system of the last [`FaultDisk::mount_over`].
    MountOver,
    /// The machine or the process ends before it.
    Die(Cut),
}

pub(crate) use rustix::io::Errno;

/// The file system. Clones share it.
#[derive(Clone)]
pub(crate) struct FaultDisk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// The spool's file system, and the one that may be mounted over it.
    trees: [Tree; 2],
    /// Where paths lead: an index of `trees`.
    mounted: usize,
    rule: Option<Rule>,
    /// The file system that the next process finds, once this one has died.
    left: Option<Tree>,
    /// The calls, in order.
    trace: Vec<(Op, PathBuf)>,
    /// Whether bytes were changed or could not be read, in this process or an earlier one.
    damaged: bool,
    /// Whether an earlier process left a file with bytes that a failed fsync gave up.
    gave_up: bool,
}

impl FaultDisk {
    pub(crate) fn new() -> FaultDisk {
        FaultDisk(Arc::default())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Puts another file system over the spool's, or takes the spool's own away: paths lead to one that has these
    /// folders and no file.
    pub(crate) fn mount_over(&self, folders: &[&Path]) {
        let state = &mut *self.state();
        state.trees[1] = Tree::default();
        state.trees[1].folders.extend(folders.iter().map(|folder| folder.to_path_buf()));
        state.mounted = 1;
    }

    /// Paths lead to the spool's file system again.
    pub(crate) fn unmount(&self) {
        self.state().mounted = 0;
    }

    /// Names of the files on the file system that was mounted over the spool's.
    pub(crate) fn names_over(&self) -> Vec<PathBuf> {
        self.state().trees[1].names.keys().cloned().collect()
    }

    /// Whether this life has ended.
    pub(crate) fn died(&self) -> bool {
        self.state().left.is_some()
    }

    /// The file system that the next life finds: after the death that a rule brought, else after `cut` now.
    pub(crate) fn after(&self, cut: Cut) -> FaultDisk {
        let state = self.state();
        let tree = state.left.clone().unwrap_or_else(|| state.trees[0].after(cut));
        let gave_up = state.gave_up || tree.names.values().any(|file| tree.files[*file].given_up);
        let trees = [tree, Tree::default()];
        FaultDisk(Arc::new(Mutex::new(State { trees, damaged: state.damaged, gave_up, ..State::default() })))
    }

    /// The calls so far.
    pub(crate) fn trace(&self) -> Vec<(Op, PathBuf)> {
        self.state().trace.clone()
    }

    /// Names in a folder, without asking the disk.
    pub(crate) fn names(&self, folder: &Path) -> Vec<String> {
        let state = self.state();
        let inside = state.trees[0].names.keys().filter(|path| path.parent() == Some(folder));
        inside.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    /// A file's bytes, without asking the disk.
    pub(crate) fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state();
        state.trees[0].names.get(path).map(|file| state.trees[0].files[*file].now().clone())
    }

    /// Whether acknowledged events may be in quarantine.
    pub(crate) fn is_damaged(&self) -> bool {
        self.state().damaged
    }

    /// Puts a file there, durably, as somebody else would.
    pub(crate) fn put(&self, path: &Path, bytes: &[u8]) {
        let tree = &mut self.state().trees[0];
        tree.folders.extend(path.ancestors().skip(1).map(Path::to_owned));
        tree.files.push(Bytes { durable: bytes.to_vec(), ..Bytes::default() });
        let file = tree.files.len() - 1;
        tree.names.insert(path.to_owned(), file);
        tree.durable_names.insert(path.to_owned(), file);
    }

    /// Takes a file away, durably.
    pub(crate) fn take(&self, path: &Path) {
        let state = &mut *self.state();
        state.damaged = true;
        let tree = &mut state.trees[0];
        tree.names.remove(path);
        tree.durable_names.remove(path);
    }

    /// Flips one bit of a file, on the disk itself.
    pub(crate) fn flip_bit(&self, path: &Path) {
        let state = &mut *self.state();
        state.damaged = true;
        let tree = &mut state.trees[0];
        let file = tree.names[path];
        let bytes = &mut tree.files[file];
        let middle = bytes.now().len() / 2;
        bytes.durable = bytes.now().clone();
        bytes.durable[middle] ^= 1;
        bytes.versions.clear();
    }

    /// Notes a call and applies the rule; runs `operation` when it passes, `failed` when it does not.
    fn call<T>(
        &self,
        op: Op,
        path: &Path,
        failed: impl FnOnce(&mut Tree),
        operation: impl FnOnce(&mut Tree) -> io::Result<T>,
    ) -> io::Result<T> {
        let mounted = self.state().mounted;
        self.call_in(mounted, op, path, failed, operation)
    }

    fn call_in<T>(
        &self,
        tree: usize,
        op: Op,
        path: &Path,
        failed: impl FnOnce(&mut Tree),
        operation: impl FnOnce(&mut Tree) -> io::Result<T>,
    ) -> io::Result<T> {
        let state = &mut *self.state();
        state.trace.push((op, path.to_owned()));
        let effect = state.rule.as_mut().map_or(Effect::Pass, |rule| rule.judge(op, path));
        match effect {
            Effect::Apply(errno) => {
                state.damaged |= matches!(op, Op::Open | Op::Read);
                operation(&mut state.trees[tree])?;
                return Err(errno.into());
            }
            Effect::Fail(errno) => {
                state.damaged |= matches!(op, Op::Open | Op::Read);
                // Without room for a second file, nothing can surely save the bytes of a failed fsync before a kill.
                state.damaged |= state.gave_up && matches!(errno, Errno::NOSPC | Errno::DQUOT | Errno::FBIG);
                // A disk that is read-only takes no half.
                if errno != Errno::ROFS {
                    failed(&mut state.trees[tree]);
                }
                return Err(errno.into());
            }
            Effect::Die(cut) if state.left.is_none() => state.left = Some(state.trees[0].after(cut)),
            Effect::MountOver => state.mounted = 1,
            Effect::Die(_) | Effect::Pass => {}
        }
        operation(&mut state.trees[tree])
    }
}

fn missing() -> io::Error {
    Errno::NOENT.into()
}

impl Disk for FaultDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.call(
            Op::CreateDir,
            path,
            |_| {},
            |tree| {
                tree.folders.extend(path.ancestors().map(Path::to_owned));
                Ok(())
            },
        )
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let tree = self.state().mounted;
        let make = |tree: &mut Tree| {
            if tree.names.contains_key(path) {
                return Err(Errno::EXIST.into());
            }
            if !tree.holds(path) {
                return Err(missing());
            }
            tree.files.push(Bytes::default());
            let file = tree.files.len() - 1;
            tree.note(Change::Create(path.to_owned(), file));
            Ok(file)
        };
        let file = self.call_in(tree, Op::Create, path, |_| {}, make)?;
        Ok(Box::new(FaultFile { disk: self.clone(), tree, path: path.to_owned(), file }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let tree = self.state().mounted;
        let find = |tree: &mut Tree| tree.names.get(path).copied().ok_or_else(missing);
        let file = self.call_in(tree, Op::Open, path, |_| {}, find)?;
        Ok(Box::new(FaultFile { disk: self.clone(), tree, path: path.to_owned(), file }))
    }

    fn identify(&self, path: &Path) -> io::Result<Option<FileId>> {
        let device = self.state().mounted;
        let find = |tree: &mut Tree| {
            let file = tree.names.get(path).map(|file| *file as u64 + 1);
            // For a folder only the file system matters.
            let folder = tree.folders.contains(path).then_some(0);
            Ok(file.or(folder).map(|inode| FileId { device: device as u64, inode, is_folder: inode == 0 }))
        };
        self.call_in(device, Op::Identify, path, |_| {}, find)
    }

    fn try_rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        // A rule sees the new name, which tells the rename's purpose.
        self.call(
            Op::Rename,
            to,
            |_| {},
            |tree| {
                if !tree.names.contains_key(from) || !tree.holds(to) {
                    return Err(missing());
                }
                tree.note(Change::Rename(from.to_owned(), to.to_owned()));
                Ok(())
            },
        )
    }

    fn try_remove(&self, path: &Path) -> io::Result<()> {
        self.call(
            Op::Remove,
            path,
            |_| {},
            |tree| {
                if !tree.names.contains_key(path) {
                    return Err(missing());
                }
                tree.note(Change::Remove(path.to_owned()));
                Ok(())
            },
        )
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.call(
            Op::SyncDir,
            path,
            |_| {},
            |tree| {
                if !tree.folders.contains(path) {
                    return Err(missing());
                }
                tree.sync_dir(path);
                Ok(())
            },
        )
    }

    fn visit(&self, path: &Path, each: &mut dyn FnMut(&str, u64)) -> io::Result<()> {
        let tree = self.state().mounted;
        let list = |tree: &mut Tree| {
            if !tree.folders.contains(path) {
                return Err(missing());
            }
            let inside = tree.names.iter().filter(|(name, _)| name.parent() == Some(path));
            Ok(inside.map(|(path, file)| (path.clone(), tree.files[*file].now().len() as u64)).collect::<Vec<_>>())
        };
        for (path, bytes) in self.call_in(tree, Op::List, path, |_| {}, list)? {
            if self.call_in(tree, Op::Entry, &path, |_| {}, |_| Ok(())).is_ok() {
                each(&path.file_name().unwrap().to_string_lossy(), bytes);
            }
        }
        Ok(())
    }
}

/// An open file, which can be used whatever becomes of its name.
struct FaultFile {
    disk: FaultDisk,
    /// An index of the disk's file systems.
    tree: usize,
    path: PathBuf,
    file: usize,
}

impl DiskFile for FaultFile {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        let put = |tree: &mut Tree, bytes: &[u8]| {
            tree.files[self.file].change(|all| {
                all.resize(all.len().max(offset + bytes.len()), 0);
                all[offset..offset + bytes.len()].copy_from_slice(bytes);
            });
        };
        let half = |tree: &mut Tree| put(tree, &bytes[..bytes.len() / 2]);
        self.disk.call_in(self.tree, Op::Write, &self.path, half, |tree| {
            put(tree, bytes);
            Ok(())
        })
    }

    /// No call that can fail: a file that is open has a length.
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.state().trees[self.tree].files[self.file].now().len() as u64)
    }

    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.call_in(
            self.tree,
            Op::Read,
            &self.path,
            |_| {},
            |tree| {
                let rest = tree.files[self.file].now().get(usize::try_from(offset).unwrap()..).unwrap_or_default();
                let length = rest.len().min(buffer.len());
                buffer[..length].copy_from_slice(&rest[..length]);
                Ok(length)
            },
        )
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.disk.call_in(
            self.tree,
            Op::Truncate,
            &self.path,
            |_| {},
            |tree| {
                tree.files[self.file].change(|all| all.resize(usize::try_from(len).unwrap(), 0));
                Ok(())
            },
        )
    }

    fn begin_write_out(&mut self, _offset: u64, _bytes: u64) {
        let _ = self.disk.call_in(self.tree, Op::BeginWriteOut, &self.path, |_| {}, |_| Ok(()));
    }

    fn sync(&mut self) -> io::Result<()> {
        let file = self.file;
        self.disk.call_in(
            self.tree,
            Op::Sync,
            &self.path,
            |tree| tree.files[file].given_up = true,
            |tree| {
                let bytes = &mut tree.files[file];
                if bytes.given_up {
                    // Its pages are never written any more, but its length is.
                    let len = bytes.now().len();
                    bytes.versions.iter_mut().chain([&mut bytes.durable]).for_each(|version| version.truncate(len));
                } else {
                    bytes.durable = bytes.now().clone();
                    bytes.versions.clear();
                }
                Ok(())
            },
        )
    }
}
