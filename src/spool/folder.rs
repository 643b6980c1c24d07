//! One log type's folder in the spool: it opens batches, seals them, moves them through their stages and keeps the
//! chain's head.

mod figures;
mod quarantine;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};

use crate::batch::{BatchName, Codec, LogType, SealedName, Sha256, SpoolName, Stage};
use crate::metric_table;
use crate::spool::copies::{BatchCopy, Copies};
use crate::spool::disk::{self, Disk, DiskFile, FileId};
use crate::spool::home::Home;
use crate::spool::sealed_batches::SealedSender;
use crate::spool::terms::{Batch, Settings};
use crate::spool::usage::Usage;

/// The probe writes a whole block, because a full disk may still have room for a few bytes.
const PROBE_BYTES: usize = 4096;

/// A log type's folder in the spool.
pub struct Folder {
    /// The log type whose batches are here.
    pub log_type: LogType,
    /// Its path.
    pub dir: PathBuf,
    codec: Codec,
    home: Arc<Home>,
    usage: Arc<Usage>,
    /// Never locked during I/O, because the status page and every request read it.
    state: Mutex<State>,
    /// Whether `state.failing` is set. Every request reads this, and takes the lock on `state` only where it is true.
    fails: AtomicBool,
    /// Locked while the chain's head is delivered or moved to quarantine, during the I/O too, so that no seal replaces
    /// the head meanwhile. Locked before `state`.
    head_transition: Mutex<()>,
    sealed: SealedSender,
    figures: Figures,
    fsync_duration: metrics::Histogram,
}

#[derive(Default)]
struct State {
    head: Head,
    /// When each batch that is not in S3 yet was opened.
    unsent: BTreeSet<DateTime<Utc>>,
    /// When the newest batch was opened: the next one is opened later, whatever the clock says.
    last_opened: Option<DateTime<Utc>>,
    /// Numbers of quarantined batches that no delivered object names in its metadata yet.
    gaps: BTreeSet<u64>,
    /// Why appends fail at the moment.
    failing: Option<Arc<io::Error>>,
}

/// The chain's newest link.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    /// The newest batch's number; 0 before the first.
    pub sequence: u64,
    /// The hash of the newest batch's bytes; [`Sha256::ZERO`] before the first.
    pub sha256: Sha256,
    /// Once the newest batch is delivered: the empty `.sent` file that keeps its number and hash.
    sent: Option<SealedName>,
}

impl Default for Head {
    fn default() -> Self {
        Head { sequence: 0, sha256: Sha256::ZERO, sent: None }
    }
}

/// Counted since the start, for status and metrics, but for `salvages`.
#[derive(Debug, Default)]
pub struct Figures {
    /// Events that an fsync covered.
    pub accepted: AtomicU64,
    /// Events found at the start.
    pub recovered: AtomicU64,
    /// Events moved to quarantine.
    pub quarantined: AtomicU64,
    /// Events in the spool now.
    pub spooled: AtomicU64,
    /// Batches sealed and not delivered.
    pub batches: AtomicU64,
    /// When events were accepted last, in milliseconds since 1970; 0 before the first.
    pub last_accepted_millis: AtomicI64,
    /// Files whose fsync failed and whose events the sealer has not brought to safety yet. While there are any, the
    /// writer refuses events.
    pub salvages: AtomicU64,
}

impl Folder {
    /// A folder that counts no batch yet; [`crate::spool::recovery`] adds those that it finds.
    pub(super) fn new(
        log_type: LogType,
        settings: &Settings,
        home: Arc<Home>,
        usage: Arc<Usage>,
        sealed: SealedSender,
    ) -> Folder {
        Folder {
            log_type,
            dir: settings.dir.join(log_type.as_str()),
            codec: settings.codec,
            home,
            usage,
            state: Mutex::default(),
            fails: AtomicBool::new(false),
            head_transition: Mutex::default(),
            sealed,
            figures: Figures::default(),
            fsync_duration: metrics::histogram!(metric_table::FSYNC_DURATION_SECONDS),
        }
    }

    /// The file system that the folder is on.
    pub(super) fn disk(&self) -> &dyn Disk {
        &*self.home.disk
    }

    /// How many bytes both log types take, and may take.
    pub(super) fn usage(&self) -> &Usage {
        &self.usage
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn head_transition(&self) -> MutexGuard<'_, ()> {
        self.head_transition.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What both log types' folders share.
    pub(super) fn home(&self) -> &Home {
        &self.home
    }

    /// Fails while the spool's path leads elsewhere: no event is written then.
    pub(super) fn in_place(&self) -> io::Result<()> {
        match self.home.is_away() {
            true => Err(io::Error::other(format!("{} does not lead to the spool", self.home.dir.display()))),
            false => Ok(()),
        }
    }

    /// The newest link of the chain.
    pub fn head(&self) -> Head {
        self.state().head
    }

    /// Why appends fail at the moment.
    pub fn failing(&self) -> Option<Arc<io::Error>> {
        if self.fails.load(Ordering::Acquire) { self.state().failing.clone() } else { None }
    }

    pub(super) fn set_failing(&self, reason: Option<Arc<io::Error>>) {
        let mut state = self.state();
        self.fails.store(reason.is_some(), Ordering::Release);
        state.failing = reason;
    }

    /// The path of a file in this folder.
    pub(super) fn path(&self, name: &SpoolName) -> PathBuf {
        self.dir.join(name.to_string())
    }

    /// The path of a sealed batch's file.
    pub fn batch_path(&self, batch: &Batch) -> PathBuf {
        self.dir.join(batch.name.to_string())
    }

    /// Creates the file of a new batch, durably.
    pub(super) fn open_batch(&self) -> io::Result<(BatchName, Box<dyn DiskFile>, Option<FileId>)> {
        let name = BatchName::open(crate::batch::now(), self.state().last_opened, self.codec);
        // Before the file is made: where it can be neither used nor removed, its name must not be given out again.
        self.state().last_opened = Some(name.opened);
        let path = self.path(&SpoolName::Open(name));
        self.home.confirm()?;
        let (file, id) = self.with_remedy(|| {
            let created = self.home.disk.create(&path).and_then(|file| {
                self.home.disk.sync_dir(&self.dir)?;
                // Again: the volume may have been unmounted after the first look, and the file may be on another disk.
                self.home.confirm()?;
                Ok((file, self.home.disk.identify(&path)?))
            });
            // A call that answers an error may have made the file, and nobody else would
            // remove it before the next start.
            created.inspect_err(|_| drop(self.home.disk.remove(&path)))
        })?;
        self.add_unsent(name.opened);
        Ok((name, file, id))
    }

    /// When the newest batch was opened; those to come are opened later.
    pub fn last_opened(&self) -> Option<DateTime<Utc>> {
        self.state().last_opened
    }

    /// Whether `has` holds for every batch that is not in S3 yet and was opened from `from` on.
    pub fn all_unsent_since(&self, from: Option<DateTime<Utc>>, mut has: impl FnMut(DateTime<Utc>) -> bool) -> bool {
        let state = self.state();
        state.unsent.range(from.unwrap_or(DateTime::<Utc>::MIN_UTC)..).all(|opened| has(*opened))
    }

    /// Adds a batch to those that are not in S3 yet.
    pub(super) fn add_unsent(&self, opened: DateTime<Utc>) {
        let mut state = self.state();
        state.unsent.insert(opened);
        state.last_opened = state.last_opened.max(Some(opened));
    }

    /// Removes the file of a batch that never had an event. It has no number, so the chain has no gap.
    pub(super) fn remove_empty(&self, name: BatchName) -> io::Result<()> {
        self.home.disk.remove(&self.path(&SpoolName::Open(name)))?;
        self.state().unsent.remove(&name.opened);
        Ok(())
    }

    /// Sets the chain's head to the newest batch that the start found.
    pub(super) fn set_head(&self, name: &SealedName) {
        let mut state = self.state();
        let sent = (name.stage == Stage::Sent).then_some(*name);
        state.head = Head { sequence: name.sequence, sha256: name.sha256, sent };
        state.last_opened = state.last_opened.max(Some(name.batch.opened));
    }

    /// The name under which a batch is sealed now: with the chain's next number, and the hash of the batch before it.
    pub(super) fn next_name(&self, batch: BatchName, records: u64, sha256: Sha256) -> SealedName {
        let Head { sequence, sha256: previous, .. } = self.head();
        SealedName { batch, sequence: sequence + 1, records, sha256, previous, stage: Stage::Sealed }
    }

    /// Gives the closed batch its sealed name, by one durable rename from `from`.
    pub(super) fn seal(&self, from: &Path, name: &SealedName) -> io::Result<()> {
        let to = self.path(&SpoolName::Sealed(*name));
        self.with_remedy(|| self.home.disk.rename(from, &to))?;
        self.finish_seal(name)
    }

    /// Makes a sealed name durable, then makes it the chain's head and removes the file of the head before it.
    ///
    /// The order keeps the chain whole. Batch 16 is delivered, and its empty `.sent` is all that keeps its number;
    /// batch 17 has just been renamed to `.sealed`.
    ///
    /// 1. Folder fsynced, then the `.sent` of 16 removed, then a power cut: the next start finds 17, or 16 and 17.
    /// 2. The `.sent` of 16 removed, then a power cut before the fsync: the disk may have the removal and not the
    ///    rename. The next start finds no number. It has to begin a new chain, which an auditor sees as a break.
    ///
    /// Repeated after an error, it does what is left to do.
    pub(super) fn finish_seal(&self, name: &SealedName) -> io::Result<()> {
        self.with_remedy(|| self.home.disk.sync_dir(&self.dir))?;
        let before = {
            let _transition = self.head_transition();
            let head = &mut self.state().head;
            if name.sequence <= head.sequence {
                return Ok(());
            }
            std::mem::replace(head, Head { sequence: name.sequence, sha256: name.sha256, sent: None })
        };
        if let Some(sent) = before.sent {
            // If this fails, the next start removes the file.
            let _ = self.home.disk.remove(&self.path(&SpoolName::Sealed(sent)));
        }
        Ok(())
    }

    /// Hands a sealed batch to the flusher. From here on only the flusher's calls rename or remove its file.
    pub(super) fn announce(&self, batch: Batch) {
        // This fails only where the process ends and has no flusher any more. The next start finds the batch.
        let _ = self.sealed.send(batch);
    }

    /// Makes sure that what is read and renamed here is the spool's; see `Home::confirm`.
    pub fn confirm(&self) -> io::Result<()> {
        self.home.confirm().map(drop)
    }

    /// Renames a batch's file to a stage, durably. Repeated after an error, it does what is left to do.
    pub fn set_stage(&self, batch: &mut Batch, stage: Stage) -> io::Result<()> {
        self.rename_to(batch, SealedName { stage, ..batch.name })
    }

    /// Gives a batch a new suffix, durably. Only for a batch that no attempt can have stored under its old one.
    pub fn rename(&self, batch: &mut Batch) -> io::Result<()> {
        self.rename_to(batch, SealedName { batch: batch.name.batch.renamed(), stage: Stage::Sealed, ..batch.name })
    }

    fn rename_to(&self, batch: &mut Batch, name: SealedName) -> io::Result<()> {
        self.with_remedy(|| {
            if batch.name != name {
                self.home.disk.rename(&self.batch_path(batch), &self.path(&SpoolName::Sealed(name)))?;
                batch.name = name;
                batch.durable = false;
            }
            if !batch.durable {
                self.home.disk.sync_dir(&self.dir)?;
                batch.durable = true;
            }
            Ok(())
        })
    }

    /// Removes the file of a batch that S3 has. The batch with the highest number leaves an empty `.sent`, which keeps
    /// the chain's head. With CloudWatch, the file becomes a copy in place of being removed.
    ///
    /// The removal is not fsynced, and need not be. A file that comes back after a power cut is `.sending`; its PUT is
    /// repeated, meets our own object, and the batch is delivered again.
    ///
    /// The head's file is renamed to `.sent`, durably, before it is emptied:
    ///
    /// 1. Renamed and fsynced, then emptied: a crash in between leaves a `.sent` with
    ///    bytes, which the next start empties.
    /// 2. Emptied, then renamed: a crash in between leaves an empty `.sending`. The next start takes it for a batch
    ///    whose events are lost, moves it to quarantine and alarms, though S3 has all of them.
    pub fn delivered(&self, batch: &mut Batch) -> io::Result<()> {
        // While the path leads elsewhere, a file that is missing there would look as if it were removed.
        self.home.confirm()?;
        let mut copy = None;
        {
            let _transition = self.head_transition();
            let is_head = self.head().sequence == batch.name.sequence;
            if let Some(copies) = self.home.copies() {
                if is_head {
                    self.keep_head(SealedName { stage: Stage::Sent, ..batch.name })?;
                }
                copy = self.make_copy(copies, batch)?;
            } else if is_head {
                let sent = SealedName { stage: Stage::Sent, ..batch.name };
                let emptied = self
                    .rename_to(batch, sent)
                    .and_then(|()| self.home.with_room(|| self.home.disk.open(&self.batch_path(batch))?.truncate(0)));
                match emptied {
                    // Somebody removed the file. The bucket has its bytes, but the head needs a file.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => self.keep_head(sent)?,
                    emptied => emptied?,
                }
                self.state().head.sent = Some(sent);
            } else {
                self.home.with_room(|| self.home.disk.remove(&self.batch_path(batch)))?;
            }
        }
        self.state().unsent.remove(&batch.name.batch.opened);
        self.count_out(batch);
        if let Some(copy) = copy {
            self.usage.add_copy(copy);
        }
        Ok(())
    }

    /// Keeps a delivered batch's file for CloudWatch, or removes it where it can't be kept: a delivery never waits for
    /// CloudWatch.
    fn make_copy(&self, copies: &Copies, batch: &Batch) -> io::Result<Option<BatchCopy>> {
        let (path, copy) = (self.batch_path(batch), BatchCopy::of(batch));
        // Without `with_remedy`: a full disk costs this copy, but neither the spare file nor another copy.
        let Err(error) = copies.take_over(&path, &copy) else { return Ok(Some(copy)) };
        self.home.with_room(|| self.home.disk.remove(&path))?;
        copies.count_missed(&copy, &error);
        Ok(None)
    }

    /// Counts out a batch that has no number yet.
    pub(super) fn count_out_unsealed(&self, name: BatchName, bytes: u64) {
        self.state().unsent.remove(&name.opened);
        self.usage.remove(self.log_type, bytes);
    }

    /// Writes, fsyncs and removes a small file, to find out whether the disk takes events.
    pub(super) fn probe(&self) -> io::Result<()> {
        self.restore()?;
        // Told by the look itself: CloudWatch's lane alone depends on it.
        let _ = self.home.copies().map(|copies| copies.confirm());
        let path = self.dir.join("probe.tmp");
        let written = self.home.without_copies(|| {
            self.home.disk.remove(&path)?;
            let mut file = self.home.disk.create(&path)?;
            file.write_at(&[0; PROBE_BYTES], 0)?;
            file.sync()
        });
        self.home.disk.remove(&path)?;
        written
    }

    /// Hashes a batch's file again, because S3 says that its bytes are not those that its name tells.
    pub fn rehash(&self, batch: &Batch) -> io::Result<Sha256> {
        disk::hash(self.disk(), &self.batch_path(batch))
    }

    /// Runs `operation`, and once more where the reason it failed could be removed: on a full disk copies and the spare
    /// file are given up, and a folder that somebody removed is made again.
    pub(super) fn with_remedy<T>(&self, mut operation: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        match self.home.with_room(&mut operation) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.restore()? => operation(),
            result => result,
        }
    }

    /// Makes the folders again that somebody removed while the daemon runs, with the chain's head in them. True where
    /// one was missing.
    ///
    /// # Errors
    /// The path leads elsewhere, see [`Home::confirm`]: the folders are missing there, but nobody removed them.
    pub(super) fn restore(&self) -> io::Result<bool> {
        let mut restored = self.home.confirm()?;
        if self.home.make_again([&self.dir, &self.home.quarantine_dir()])? {
            if let Some(sent) = self.head().sent {
                self.create_head(sent)?;
            }
            tracing::error!(log_type = %self.log_type, spool.dir = %self.home.dir.display(), "a folder of the spool was removed while the daemon runs; it is made again; what was uploaded or is still open is safe, see config/README.md#quarantined");
            restored = true;
        }
        Ok(restored)
    }

    /// Makes the empty file that keeps a head, durably. It may exist already.
    fn create_head(&self, head: SealedName) -> io::Result<()> {
        match self.home.disk.create(&self.path(&SpoolName::Sealed(head))) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => drop(created?),
        }
        self.home.disk.sync_dir(&self.dir)
    }
}
