//! Names and bytes as they are seen and as they are durable, and what a cut leaves of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::Cut;

#[derive(Default, Clone)]
pub(super) struct Tree {
    pub(super) names: BTreeMap<PathBuf, usize>,
    /// Names as they are on the disk itself.
    pub(super) durable_names: BTreeMap<PathBuf, usize>,
    /// Changes of names since, oldest first.
    pending: Vec<Change>,
    pub(super) files: Vec<Bytes>,
    /// Durable at once.
    pub(super) folders: BTreeSet<PathBuf>,
}

#[derive(Clone)]
pub(super) enum Change {
    Create(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

#[derive(Default, Clone)]
pub(super) struct Bytes {
    pub(super) durable: Vec<u8>,
    /// What the file was after each change since its last fsync; the last is what a reader sees.
    pub(super) versions: Vec<Vec<u8>>,
    /// An fsync failed: the kernel took the pages for written, and no later one writes them.
    pub(super) given_up: bool,
}

impl Bytes {
    pub(super) fn now(&self) -> &Vec<u8> {
        self.versions.last().unwrap_or(&self.durable)
    }

    pub(super) fn change(&mut self, change: impl FnOnce(&mut Vec<u8>)) {
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
    pub(super) fn note(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.pending.push(change);
    }

    /// Whether a path's folder is there to hold it.
    pub(super) fn holds(&self, path: &Path) -> bool {
        path.parent().is_some_and(|folder| self.folders.contains(folder))
    }

    pub(super) fn sync_dir(&mut self, folder: &Path) {
        let (synced, pending) =
            std::mem::take(&mut self.pending).into_iter().partition(|change| change.touches(folder));
        self.pending = pending;
        let synced: Vec<Change> = synced;
        synced.iter().for_each(|change| change.apply(&mut self.durable_names));
    }

    pub(super) fn after(&self, cut: Cut) -> Tree {
        let mut dice = match cut {
            Cut::Kill => return self.clone(),
            Cut::Strict => None,
            Cut::Torn(seed) => Some(Dice(seed)),
            Cut::Holes => {
                let files = self.files.iter().map(|bytes| Bytes { durable: bytes.with_holes(), ..Bytes::default() });
                let (files, names) = (files.collect(), self.names.clone());
                return Tree { durable_names: names.clone(), names, files, pending: Vec::new(), ..self.clone() };
            }
        };
        let mut names = self.durable_names.clone();
        // A journal keeps changes of names in their order: any number of them, from the oldest on.
        let kept = dice.as_mut().map_or(0, |dice| dice.below(self.pending.len() + 1));
        self.pending[..kept].iter().for_each(|change| change.apply(&mut names));
        let files =
            self.files.iter().map(|bytes| Bytes { durable: bytes.after(dice.as_mut()), ..Bytes::default() }).collect();
        Tree { durable_names: names.clone(), names, pending: Vec::new(), files, folders: self.folders.clone() }
    }
}

impl Bytes {
    /// As long as a reader sees the file, with nothing but zeros behind what was fsynced.
    fn with_holes(&self) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        bytes.resize(self.now().len(), 0);
        bytes
    }

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
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap()
    }
}
