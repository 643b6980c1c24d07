//! The files in a log type's folder, as a listing finds them. A million batches may wait there, so each name is in
//! memory once and parsed: a `SealedName` takes half as much as its text.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::Path;

use crate::batch::{BatchName, SealedName, SpoolName};
use crate::spool::disk::Disk;

/// How many listings are compared before a start gives up.
const LISTINGS_MAX: usize = 5;

/// The files in a log type's folder, in no order, with their sizes in bytes.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) sealed: Vec<(SealedName, u64)>,
    pub(super) open: Vec<(BatchName, u64)>,
    /// Names that are no batch's.
    pub(super) strays: Vec<String>,
}

impl Names {
    /// Lists a folder that only this daemon changes, until two listings agree: file systems over a network have left
    /// names out. Without the name of the chain's head, its number would be given out a second time.
    ///
    /// # Errors
    /// The disk's, or [`LISTINGS_MAX`] listings were all different.
    pub(super) fn read(disk: &dyn Disk, dir: &Path) -> io::Result<Names> {
        let mut before = Seen::default();
        disk.visit(dir, &mut |name, _| before.add(name))?;
        for _ in 1..LISTINGS_MAX {
            // Made at once for all: a long list that grows is in memory twice while it is copied.
            let sealed = Vec::with_capacity(usize::try_from(before.files).unwrap_or_default());
            let mut names = Names { sealed, ..Names::default() };
            let mut seen = Seen::default();
            disk.visit(dir, &mut |name, bytes| {
                seen.add(name);
                names.add(name, bytes);
            })?;
            if before == seen {
                return Ok(names);
            }
            before = seen;
        }
        Err(io::Error::other(format!(
            "{LISTINGS_MAX} listings of the folder differ, so nobody knows what is in it; end what else changes it"
        )))
    }

    fn add(&mut self, name: &str, bytes: u64) {
        match name.parse() {
            Ok(SpoolName::Sealed(name)) => self.sealed.push((name, bytes)),
            Ok(SpoolName::Open(name)) => self.open.push((name, bytes)),
            Err(_) => self.strays.push(name.to_owned()),
        }
    }

    /// Whether there is a numbered batch, so that the chain can go on from the highest number.
    pub(super) fn has_head(&self) -> bool {
        !self.sealed.is_empty()
    }

    /// How many files have events that are not in S3.
    pub(super) fn batches(&self) -> usize {
        let sealed = self.sealed.iter().map(|(name, bytes)| (SpoolName::Sealed(*name), *bytes));
        let open = self.open.iter().map(|(name, bytes)| (SpoolName::Open(*name), *bytes));
        sealed.chain(open).filter(|(name, bytes)| is_batch(name, *bytes)).count()
    }
}

/// Calls `each` with the name of every file in a folder that has events which are not in S3.
pub(super) fn visit_batches(disk: &dyn Disk, dir: &Path, mut each: impl FnMut(SpoolName)) -> io::Result<()> {
    disk.visit(dir, &mut |name, bytes| {
        if let Ok(name) = name.parse()
            && is_batch(&name, bytes)
        {
            each(name);
        }
    })
}

fn is_batch(name: &SpoolName, bytes: u64) -> bool {
    match name {
        SpoolName::Open(_) => bytes > 0,
        SpoolName::Sealed(name) => name.stage.is_unsent(),
    }
}

/// A checksum of a listing, whatever the order of its names.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Seen {
    files: u64,
    sum_of_hashes: u64,
}

impl Seen {
    fn add(&mut self, name: &str) {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        self.files += 1;
        self.sum_of_hashes = self.sum_of_hashes.wrapping_add(hasher.finish());
    }
}
