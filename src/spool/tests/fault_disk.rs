//! A file system in memory that knows what is durable, and can fail, die and tear at any call.
//!
//! What a crash keeps is decided by the one who asks: [`Cut::Kill`] keeps everything (the kernel lives
//! on), [`Cut::Strict`] forgets whatever was not fsynced, [`Cut::Torn`] keeps some of it by the dice.
//! After a death the old process goes on in a world of its own, as a ghost: nothing that it does is
//! seen by the life after.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::spool::disk::{Disk, DiskFile};

/// A call of the seam.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    CreateDir,
    Create,
    Open,
    Rename,
    Remove,
    SyncDir,
    List,
    Write,
    Read,
    Truncate,
    BeginWriteOut,
    Sync,
}

/// What a crash leaves.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cut {
    /// `kill -9`: all that was written, durable or not.
    Kill,
    /// A power cut: only what was fsynced.
    Strict,
    /// A power cut: what was fsynced, and by these dice some of the rest, torn and out of order.
    Torn(u64),
}

/// What becomes of a call.
pub(super) enum Effect {
    Pass,
    /// It fails with this error; a write leaves half of its bytes, an fsync nothing.
    Fail(Errno),
    /// The machine or the process ends before it.
    Die(Cut),
}

pub(super) use rustix::io::Errno;

type Rule = Box<dyn FnMut(Op, &Path) -> Effect + Send>;

/// The file system. Clones share it.
#[derive(Clone)]
pub(super) struct FaultDisk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    tree: Tree,
    rule: Option<Rule>,
    /// What the life after finds, once this one has ended.
    left: Option<Tree>,
    /// What was asked for, in order.
    trace: Vec<(Op, PathBuf)>,
    /// Whether bytes were changed or could not be read, in this life or one before.
    damaged: bool,
    /// Whether a life before left a file with bytes that a failed fsync gave up.
    gave_up: bool,
}

#[derive(Default, Clone)]
struct Tree {
    names: BTreeMap<PathBuf, usize>,
    /// Names as they are on the disk itself.
    durable_names: BTreeMap<PathBuf, usize>,
    /// Changes of names since, oldest first.
    pending: Vec<Change>,
    files: Vec<Bytes>,
}

#[derive(Clone)]
enum Change {
    Create(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

#[derive(Default, Clone)]
struct Bytes {
    durable: Vec<u8>,
    /// What the file was after each change since its last fsync; the last is what a reader sees.
    versions: Vec<Vec<u8>>,
    /// An fsync failed: the kernel took the pages for written, and no later one writes them.
    given_up: bool,
}

impl Bytes {
    fn now(&self) -> &Vec<u8> {
        self.versions.last().unwrap_or(&self.durable)
    }

    fn change(&mut self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut next = self.now().clone();
        change(&mut next);
        self.versions.push(next);
    }
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Change::Create(path, file) => drop(names.insert(path.clone(), *file)),
            Change::Rename(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            Change::Remove(path) => drop(names.remove(path)),
        }
    }

    fn touches(&self, folder: &Path) -> bool {
        let inside = |path: &Path| path.parent() == Some(folder);
        match self {
            Change::Create(path, _) | Change::Remove(path) => inside(path),
            Change::Rename(from, to) => inside(from) || inside(to),
        }
    }
}

impl Tree {
    fn note(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.pending.push(change);
    }

    fn sync_dir(&mut self, folder: &Path) {
        let (synced, pending) =
            std::mem::take(&mut self.pending).into_iter().partition(|change| change.touches(folder));
        self.pending = pending;
        let synced: Vec<Change> = synced;
        synced.iter().for_each(|change| change.apply(&mut self.durable_names));
    }

    fn after(&self, cut: Cut) -> Tree {
        let mut dice = match cut {
            Cut::Kill => return self.clone(),
            Cut::Strict => None,
            Cut::Torn(seed) => Some(Dice(seed)),
        };
        let mut names = self.durable_names.clone();
        // A journal keeps changes of names in their order: any number of them, from the oldest on.
        let kept = dice.as_mut().map_or(0, |dice| dice.below(self.pending.len() + 1));
        self.pending[..kept].iter().for_each(|change| change.apply(&mut names));
        let files =
            self.files.iter().map(|bytes| Bytes { durable: bytes.after(dice.as_mut()), ..Bytes::default() }).collect();
        Tree { durable_names: names.clone(), names, pending: Vec::new(), files }
    }
}

impl Bytes {
    fn after(&self, dice: Option<&mut Dice>) -> Vec<u8> {
        /// Written as a whole or not at all; small, as the tests' files are.
        const SECTOR_BYTES: usize = 16;
        let Some(dice) = dice else { return self.durable.clone() };
        let version = |index: usize| if index == 0 { &self.durable } else { &self.versions[index - 1] };
        let length = version(dice.below(self.versions.len() + 1)).len();
        let mut bytes = vec![0; length];
        for (sector, chunk) in bytes.chunks_mut(SECTOR_BYTES).enumerate() {
            let source = version(dice.below(self.versions.len() + 1));
            let start = sector * SECTOR_BYTES;
            for (index, byte) in chunk.iter_mut().enumerate() {
                *byte = source.get(start + index).copied().unwrap_or_default();
            }
        }
        bytes
    }
}

/// Numbers that only look random: the same seed gives the same ones.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, bound: usize) -> usize {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap()
    }
}

impl FaultDisk {
    pub(super) fn new() -> FaultDisk {
        FaultDisk(Arc::default())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Judges every call from now on.
    pub(super) fn rule(&self, rule: impl FnMut(Op, &Path) -> Effect + Send + 'static) {
        self.state().rule = Some(Box::new(rule));
    }

    /// The call after `calls` more has this effect; the others pass.
    pub(super) fn at_call(&self, calls: u64, effect: impl Fn() -> Effect + Send + 'static) {
        let mut left = calls;
        self.rule(move |_, _| {
            left = left.wrapping_sub(1);
            if left == u64::MAX { effect() } else { Effect::Pass }
        });
    }

    /// Every call of `op` on a path that contains `part` fails with `errno` until [`FaultDisk::heal`].
    pub(super) fn fail(&self, op: Op, part: &'static str, errno: Errno) {
        self.rule(move |asked, path| {
            if asked == op && path.to_string_lossy().contains(part) { Effect::Fail(errno) } else { Effect::Pass }
        });
    }

    /// The next call of `op` on a path that contains `part` fails with `errno`.
    pub(super) fn fail_once(&self, op: Op, part: &'static str, errno: Errno) {
        let mut done = false;
        self.rule(move |asked, path| {
            let hit = !done && asked == op && path.to_string_lossy().contains(part);
            done |= hit;
            if hit { Effect::Fail(errno) } else { Effect::Pass }
        });
    }

    /// From now on every call passes.
    pub(super) fn heal(&self) {
        self.state().rule = None;
    }

    /// Whether this life has ended.
    pub(super) fn died(&self) -> bool {
        self.state().left.is_some()
    }

    /// The file system that the next life finds: after the death that a rule brought, else after `cut` now.
    pub(super) fn after(&self, cut: Cut) -> FaultDisk {
        let state = self.state();
        let tree = state.left.clone().unwrap_or_else(|| state.tree.after(cut));
        let gave_up = state.gave_up || tree.names.values().any(|file| tree.files[*file].given_up);
        FaultDisk(Arc::new(Mutex::new(State { tree, damaged: state.damaged, gave_up, ..State::default() })))
    }

    /// The calls so far.
    pub(super) fn trace(&self) -> Vec<(Op, PathBuf)> {
        self.state().trace.clone()
    }

    /// Names in a folder, without asking the disk.
    pub(super) fn names(&self, folder: &Path) -> Vec<String> {
        let state = self.state();
        let inside = state.tree.names.keys().filter(|path| path.parent() == Some(folder));
        inside.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    /// A file's bytes, without asking the disk.
    pub(super) fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state();
        state.tree.names.get(path).map(|file| state.tree.files[*file].now().clone())
    }

    /// Whether acknowledged events may be in quarantine.
    pub(super) fn is_damaged(&self) -> bool {
        self.state().damaged
    }

    /// Puts a file there, durably, as somebody else would.
    pub(super) fn put(&self, path: &Path, bytes: &[u8]) {
        let tree = &mut self.state().tree;
        tree.files.push(Bytes { durable: bytes.to_vec(), ..Bytes::default() });
        let file = tree.files.len() - 1;
        tree.names.insert(path.to_owned(), file);
        tree.durable_names.insert(path.to_owned(), file);
    }

    /// Takes a file away, durably.
    pub(super) fn take(&self, path: &Path) {
        let state = &mut *self.state();
        state.damaged = true;
        let tree = &mut state.tree;
        tree.names.remove(path);
        tree.durable_names.remove(path);
    }

    /// Flips one bit of a file, on the disk itself.
    pub(super) fn flip_bit(&self, path: &Path) {
        let state = &mut *self.state();
        state.damaged = true;
        let tree = &mut state.tree;
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
        let mut state = self.state();
        state.trace.push((op, path.to_owned()));
        let effect = state.rule.as_mut().map_or(Effect::Pass, |rule| rule(op, path));
        match effect {
            Effect::Fail(errno) => {
                state.damaged |= matches!(op, Op::Open | Op::Read);
                // Without room for a copy, only luck saves what a failed fsync and then a kill left.
                state.damaged |= state.gave_up && matches!(errno, Errno::NOSPC | Errno::DQUOT | Errno::FBIG);
                failed(&mut state.tree);
                return Err(errno.into());
            }
            Effect::Die(cut) if state.left.is_none() => state.left = Some(state.tree.after(cut)),
            Effect::Die(_) | Effect::Pass => {}
        }
        operation(&mut state.tree)
    }
}

fn missing() -> io::Error {
    Errno::NOENT.into()
}

impl Disk for FaultDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.call(Op::CreateDir, path, |_| {}, |_| Ok(()))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = self.call(
            Op::Create,
            path,
            |_| {},
            |tree| {
                if tree.names.contains_key(path) {
                    return Err(Errno::EXIST.into());
                }
                tree.files.push(Bytes::default());
                let file = tree.files.len() - 1;
                tree.note(Change::Create(path.to_owned(), file));
                Ok(file)
            },
        )?;
        Ok(Box::new(FaultFile { disk: self.clone(), path: path.to_owned(), file }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = self.call(Op::Open, path, |_| {}, |tree| tree.names.get(path).copied().ok_or_else(missing))?;
        Ok(Box::new(FaultFile { disk: self.clone(), path: path.to_owned(), file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        // A rule sees the new name: it says what the rename is for.
        self.call(
            Op::Rename,
            to,
            |_| {},
            |tree| {
                if !tree.names.contains_key(from) {
                    return Err(missing());
                }
                tree.note(Change::Rename(from.to_owned(), to.to_owned()));
                Ok(())
            },
        )
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.call(
            Op::Remove,
            path,
            |_| {},
            |tree| {
                if tree.names.contains_key(path) {
                    tree.note(Change::Remove(path.to_owned()));
                }
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
                tree.sync_dir(path);
                Ok(())
            },
        )
    }

    fn list(&self, path: &Path) -> io::Result<Vec<(String, u64)>> {
        self.call(
            Op::List,
            path,
            |_| {},
            |tree| {
                let inside = tree.names.iter().filter(|(name, _)| name.parent() == Some(path));
                let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
                Ok(inside.map(|(path, file)| (name(path), tree.files[*file].now().len() as u64)).collect())
            },
        )
    }
}

/// Stays open whatever becomes of its name.
struct FaultFile {
    disk: FaultDisk,
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
        self.disk.call(Op::Write, &self.path, half, |tree| {
            put(tree, bytes);
            Ok(())
        })
    }

    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.call(
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
        self.disk.call(
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
        let _ = self.disk.call(Op::BeginWriteOut, &self.path, |_| {}, |_| Ok(()));
    }

    fn sync(&mut self) -> io::Result<()> {
        let file = self.file;
        self.disk.call(
            Op::Sync,
            &self.path,
            |tree| tree.files[file].given_up = true,
            |tree| {
                let bytes = &mut tree.files[file];
                if bytes.given_up {
                    // Of its pages none is written any more; its length is.
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
