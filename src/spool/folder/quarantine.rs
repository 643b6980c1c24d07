//! Quarantine: where files go that can't be read or are not what their name says, and the gaps in the
//! chain that this makes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::Folder;
use crate::batch::{BatchName, SealedName, SpoolName, Stage};
use crate::spool::terms::Batch;

/// Added to a quarantined batch's name when a delivered object has told of the gap.
const TOLD: &str = ".told";
/// Files of one name that quarantine takes.
const TAKEN_NAMES_MAX: u32 = 1000;

impl Folder {
    /// Sets a batch aside that is not what its name says. Its number becomes a gap that the objects
    /// after it tell of.
    ///
    /// The chain's head leaves an empty `.sent` behind, so that its number is not given out again.
    /// Repeated after an error it does what is left to do.
    ///
    /// # Errors
    /// The disk refuses, or the spool's path leads elsewhere: nothing is wrong with a file that is missing there.
    pub fn quarantine(&self, batch: &Batch) -> io::Result<()> {
        self.home.confirm()?;
        {
            let _transition = self.head_transition();
            if self.head().sequence == batch.name.sequence {
                self.keep_head(SealedName { stage: Stage::Sent, ..batch.name })?;
            }
        }
        self.move_to_quarantine(&self.batch_path(batch), &batch.name.to_string())?;
        let mut state = self.state();
        state.unsent.remove(&batch.name.batch.opened);
        state.gaps.insert(batch.name.sequence);
        drop(state);
        self.gone(batch);
        self.figures.quarantined.fetch_add(batch.name.records, Ordering::Relaxed);
        Ok(())
    }

    /// The chain's head without its bytes; the caller holds the head's transition.
    pub(super) fn keep_head(&self, head: SealedName) -> io::Result<()> {
        self.with_remedy(|| self.create_head(head))?;
        self.state().head.sent = Some(head);
        Ok(())
    }

    fn quarantine_path(&self, name: &str) -> PathBuf {
        self.home.quarantine_dir().join(format!("{}_{name}", self.log_type))
    }

    /// Moves a file to quarantine under the log type's and its own name, durably; a name that is taken gets a
    /// number. For a file that somebody removed an empty one stands there, so that a gap is told after a crash too.
    pub(in crate::spool) fn move_to_quarantine(&self, from: &Path, name: &str) -> io::Result<()> {
        let first = self.quarantine_path(name);
        let numbered = (1..TAKEN_NAMES_MAX).map(|number| self.quarantine_path(&format!("{name}.{number}")));
        let is_free = |path: &PathBuf| matches!(self.home.disk.identify(path), Ok(None));
        let to = std::iter::once(first.clone()).chain(numbered).find(is_free).ok_or(io::ErrorKind::AlreadyExists)?;
        self.with_remedy(|| {
            match self.home.disk.rename(from, &to) {
                // An earlier try may have got as far as the rename.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if is_free(&first) {
                        self.home.disk.create(&first)?;
                    }
                }
                other => other?,
            }
            self.home.disk.sync_dir(&self.home.quarantine_dir())?;
            self.home.disk.sync_dir(&self.dir)
        })
    }

    /// Size in bytes of all that is in quarantine, both log types.
    pub fn quarantine_bytes(&self) -> u64 {
        self.home.disk.list(&self.home.quarantine_dir()).map_or(0, |files| files.iter().map(|(_, bytes)| bytes).sum())
    }

    /// Reads the gaps that quarantine holds and no object has told of.
    pub(in crate::spool) fn read_gaps(&self) -> io::Result<()> {
        let prefix = format!("{}_", self.log_type);
        let files = self.home.disk.list(&self.home.quarantine_dir())?;
        let untold = files.iter().filter_map(|(name, _)| match name.strip_prefix(&prefix)?.parse() {
            Ok(SpoolName::Sealed(name)) => Some(name.sequence),
            _ => None,
        });
        self.state().gaps.extend(untold);
        Ok(())
    }

    /// The quarantined sequence numbers that a PUT has to tell of, rising.
    pub fn gaps(&self) -> Vec<u64> {
        self.state().gaps.iter().copied().collect()
    }

    /// An object that was stored with certainty has told of these gaps.
    pub fn gaps_told(&self, told: &[u64]) -> io::Result<()> {
        if told.is_empty() {
            return Ok(());
        }
        self.home.confirm()?;
        let folder = self.home.quarantine_dir();
        let prefix = format!("{}_", self.log_type);
        for (file, _) in self.with_remedy(|| self.home.disk.list(&folder))? {
            let name = file.strip_prefix(&prefix).and_then(|name| name.parse().ok());
            if let Some(SpoolName::Sealed(name)) = name
                && told.contains(&name.sequence)
            {
                let told = folder.join(format!("{file}{TOLD}"));
                self.home.with_room(|| self.home.disk.rename(&folder.join(&file), &told))?;
            }
        }
        self.home.disk.sync_dir(&folder)?;
        self.state().gaps.retain(|gap| !told.contains(gap));
        Ok(())
    }

    /// Sets a batch aside that has no number yet; so it leaves no gap.
    pub(in crate::spool) fn quarantine_unsealed(&self, name: BatchName, bytes: u64, records: u64) -> io::Result<()> {
        self.home.confirm()?;
        let open = SpoolName::Open(name);
        self.move_to_quarantine(&self.path(&open), &open.to_string())?;
        self.forget(name, bytes);
        self.figures.spooled.fetch_sub(records, Ordering::Relaxed);
        self.figures.quarantined.fetch_add(records, Ordering::Relaxed);
        Ok(())
    }
}
