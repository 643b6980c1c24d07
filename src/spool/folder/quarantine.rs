//! Quarantine: files that can't be read, or that are not what their name says, are moved there. Each sealed batch among
//! them leaves a gap in the chain.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use crate::batch::{BatchName, SealedName, SpoolName, Stage};
use crate::spool::disk;
use crate::spool::folder::Folder;
use crate::spool::terms::Batch;

/// Ending of a quarantined batch's file once a delivered object names the gap in its metadata.
const REPORTED: &str = ".told";
/// How many files of the same name quarantine takes.
const TAKEN_NAMES_MAX: u32 = 1000;

impl Folder {
    /// Moves a batch to quarantine that is not what its name says, or that is empty. Its number becomes a gap, which
    /// the metadata of later objects names. False where its bytes turn out to be right there: the file is then put
    /// back, and nothing has changed.
    ///
    /// A volume that was away for a moment makes a good file look missing. It may be back when the file is moved, so
    /// the bytes are hashed once more in quarantine, where the volume is surely the spool's. A crash before a good file
    /// is put back leaves it in quarantine, from where an operator can bring it to S3.
    ///
    /// The chain's head first leaves an empty `.sent`. In the other order, a crash in between would leave no file with
    /// the head's number, and the next batch would get that number a second time.
    ///
    /// Repeated after an error, it does what is left to do.
    ///
    /// # Errors
    /// The disk refuses, or the spool's path leads elsewhere: a file that is missing there is not damaged.
    pub fn quarantine(&self, batch: &Batch) -> io::Result<bool> {
        self.home.confirm()?;
        {
            let _transition = self.head_transition();
            if self.head().sequence == batch.name.sequence {
                self.keep_head(SealedName { stage: Stage::Sent, ..batch.name })?;
            }
        }
        let path = self.batch_path(batch);
        let aside = self.move_to_quarantine(&path, &batch.name.to_string())?;
        self.home.confirm()?;
        if batch.bytes > 0 && disk::hash(self.disk(), &aside).is_ok_and(|sha256| sha256 == batch.name.sha256) {
            self.put_back(&aside, &path)?;
            return Ok(false);
        }
        let mut state = self.state();
        state.unsent.remove(&batch.name.batch.opened);
        state.gaps.insert(batch.name.sequence);
        drop(state);
        self.count_out(batch);
        self.figures.quarantined.fetch_add(batch.name.records, Ordering::Relaxed);
        Ok(true)
    }

    /// Moves a file from quarantine back to its folder. The folder is fsynced first, so that a power cut
    /// leaves the file in one of the two.
    fn put_back(&self, aside: &Path, path: &Path) -> io::Result<()> {
        self.with_remedy(|| self.home.disk.rename(aside, path))?;
        self.home.disk.sync_dir(&self.dir)?;
        self.home.disk.sync_dir(&self.home.quarantine_dir())
    }

    /// Makes an empty file that keeps the chain's head. The caller has locked `head_transition`.
    pub(super) fn keep_head(&self, head: SealedName) -> io::Result<()> {
        self.with_remedy(|| self.create_head(head))?;
        self.state().head.sent = Some(head);
        Ok(())
    }

    /// Empties the file that keeps the chain's head, which a crash has left with its bytes. What has its name and is no
    /// file is moved to quarantine, and an empty file takes its place.
    pub(in crate::spool) fn empty_head(&self, head: &SealedName) -> io::Result<()> {
        let path = self.path(&SpoolName::Sealed(*head));
        match self.home.with_room(|| self.home.disk.open(&path)?.truncate(0)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.move_to_quarantine(&path, &head.to_string())?;
                self.keep_head(*head)
            }
            emptied => emptied,
        }
    }

    fn quarantine_path(&self, name: &str) -> PathBuf {
        self.home.quarantine_dir().join(format!("{}_{name}", self.log_type))
    }

    /// Moves a file to quarantine, durably, under the log type's and its own name; a name that exists there gets a
    /// number. For a file that somebody removed an empty one is made, so that a gap is also reported after a crash.
    /// Returns where the file is now.
    ///
    /// The new name is fsynced before the old one's removal:
    ///
    /// 1. Quarantine fsynced, then the log type's folder. A power cut in between leaves the file in both places or in
    ///    quarantine alone.
    /// 2. The other way round, a power cut in between may leave the file in neither.
    pub(in crate::spool) fn move_to_quarantine(&self, from: &Path, name: &str) -> io::Result<PathBuf> {
        let first = self.quarantine_path(name);
        let numbered = (1..TAKEN_NAMES_MAX).map(|number| self.quarantine_path(&format!("{name}.{number}")));
        let mut names = std::iter::once(first.clone()).chain(numbered);
        let is_free = |path: &PathBuf| self.home.disk.identify(path).map(|found| found.is_none());
        let to = loop {
            let to = names.next().ok_or(io::ErrorKind::AlreadyExists)?;
            if is_free(&to)? {
                break to;
            }
        };
        self.with_remedy(|| {
            let aside = match self.home.disk.rename(from, &to) {
                // An earlier try may have renamed it already.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if is_free(&first)? {
                        self.home.disk.create(&first)?;
                    }
                    first.clone()
                }
                other => other.map(|()| to.clone())?,
            };
            self.home.disk.sync_dir(&self.home.quarantine_dir())?;
            self.home.disk.sync_dir(&self.dir)?;
            Ok(aside)
        })
    }

    /// Size in bytes of all that is in quarantine, both log types.
    pub fn quarantine_bytes(&self) -> u64 {
        self.home.disk.list(&self.home.quarantine_dir()).map_or(0, |files| files.iter().map(|(_, bytes)| bytes).sum())
    }

    /// Reads the gaps from quarantine that no object names yet.
    pub(in crate::spool) fn read_gaps(&self) -> io::Result<()> {
        let prefix = format!("{}_", self.log_type);
        let files = self.home.disk.list(&self.home.quarantine_dir())?;
        let unreported = files.iter().filter_map(|(name, _)| match name.strip_prefix(&prefix)?.parse() {
            Ok(SpoolName::Sealed(name)) => Some(name.sequence),
            _ => None,
        });
        self.state().gaps.extend(unreported);
        Ok(())
    }

    /// The numbers of quarantined batches that the next PUT has to name, rising.
    pub fn gaps(&self) -> Vec<u64> {
        self.state().gaps.iter().copied().collect()
    }

    /// Marks gaps as reported, because an object that was stored with certainty names them.
    pub fn mark_reported(&self, reported: &[u64]) -> io::Result<()> {
        if reported.is_empty() {
            return Ok(());
        }
        self.home.confirm()?;
        let folder = self.home.quarantine_dir();
        let prefix = format!("{}_", self.log_type);
        for (file, _) in self.with_remedy(|| self.home.disk.list(&folder))? {
            let name = file.strip_prefix(&prefix).and_then(|name| name.parse().ok());
            if let Some(SpoolName::Sealed(name)) = name
                && reported.contains(&name.sequence)
            {
                let marked = folder.join(format!("{file}{REPORTED}"));
                self.home.with_room(|| self.home.disk.rename(&folder.join(&file), &marked))?;
            }
        }
        self.home.disk.sync_dir(&folder)?;
        self.state().gaps.retain(|gap| !reported.contains(gap));
        Ok(())
    }

    /// Moves a batch to quarantine that has no number yet, so it leaves no gap.
    pub(in crate::spool) fn quarantine_unsealed(&self, name: BatchName, bytes: u64, records: u64) -> io::Result<()> {
        self.home.confirm()?;
        let open = SpoolName::Open(name);
        self.move_to_quarantine(&self.path(&open), &open.to_string())?;
        self.count_out_unsealed(name, bytes);
        self.figures.spooled.fetch_sub(records, Ordering::Relaxed);
        self.figures.quarantined.fetch_add(records, Ordering::Relaxed);
        Ok(())
    }
}
