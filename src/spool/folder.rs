//! One log type's folder: the chain's head, the stages of sealed batches, quarantine, figures.

mod quarantine;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};

use crate::batch::{BatchName, Codec, LogType, SealedName, Sha256, Sha256Hasher, SpoolName, Stage};
use crate::spool::copies::{BatchCopy, Copies};
use crate::spool::disk::{Disk, DiskFile, READ_BUFFER_BYTES};
use crate::spool::home::Home;
use crate::spool::sealed_batches::SealedSender;
use crate::spool::terms::{Batch, SealReason, Settings};
use crate::spool::usage::Usage;
use crate::status::{ChainHead, SpooledStatus, Timestamp};

/// From here on it is said that keys are ahead of the clock: clocks are set by less than that all the time.
const KEY_TIME_AHEAD_SECONDS: u64 = 3600;

/// A block, so that a full disk is found out.
const PROBE_BYTES: usize = 4096;

/// A log type's folder in the spool.
pub struct Folder {
    /// Whose.
    pub log_type: LogType,
    /// Its path.
    pub dir: PathBuf,
    codec: Codec,
    home: Arc<Home>,
    usage: Arc<Usage>,
    /// Never held over I/O: the status and the ingest ask here.
    state: Mutex<State>,
    /// Whether appends fail at the moment; every request asks, and almost always that is all.
    fails: AtomicBool,
    /// Held, I/O included, while the chain's head is delivered or set aside, so that no seal moves it on meanwhile.
    /// Taken before `state`.
    head_transition: Mutex<()>,
    sealed: SealedSender,
    figures: Figures,
    fsync_duration: metrics::Histogram,
}

#[derive(Default)]
struct State {
    head: Head,
    /// Openings of all batches that are not in S3 yet.
    unsent: BTreeSet<DateTime<Utc>>,
    /// The last opening given out, so that none repeats.
    last_opened: Option<DateTime<Utc>>,
    /// Quarantined sequence numbers that no delivered object has told of.
    gaps: BTreeSet<u64>,
    failing: Option<Arc<io::Error>>,
}

/// The chain's newest link.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    /// Its number; 0 before the first.
    pub sequence: u64,
    /// Its hash; [`Sha256::ZERO`] before the first.
    pub sha256: Sha256,
    /// The file that keeps the head when its batch is delivered.
    sent: Option<SealedName>,
}

impl Default for Head {
    fn default() -> Self {
        Head { sequence: 0, sha256: Sha256::ZERO, sent: None }
    }
}

/// Counted since the start, for status and metrics.
#[derive(Debug, Default)]
pub struct Figures {
    /// Events that an fsync covered.
    pub accepted: AtomicU64,
    /// Events found at the start.
    pub recovered: AtomicU64,
    /// Events delivered.
    pub uploaded: AtomicU64,
    /// Events set aside.
    pub quarantined: AtomicU64,
    /// Events in the spool now.
    pub spooled: AtomicU64,
    /// Batches sealed and not delivered.
    pub batches: AtomicU64,
    /// Milliseconds of the Unix epoch; 0 before the first.
    pub last_accepted_millis: AtomicI64,
    /// Poisoned files that the sealer has not brought to safety yet; while there are, appends are refused.
    pub salvages: AtomicU64,
}

impl Folder {
    /// A folder of which nothing is known yet; [`crate::spool::recovery`] fills it.
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
            fsync_duration: metrics::histogram!("env0_s3_logs_fsync_duration_seconds"),
        }
    }

    /// The file system that the folder is on.
    pub(super) fn disk(&self) -> &dyn Disk {
        &*self.home.disk
    }

    /// Counts since the start.
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// The spool's bytes.
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

    /// Refuses events while the spool's path leads elsewhere.
    pub(super) fn in_place(&self) -> io::Result<()> {
        match self.home.is_away() {
            true => Err(io::Error::other(format!("{} does not lead to the spool", self.home.dir.display()))),
            false => Ok(()),
        }
    }

    /// For `/status`.
    pub fn status(&self, chain_instance: &str) -> SpooledStatus {
        let figures = &self.figures;
        let count = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let state = self.state();
        let last_accepted = DateTime::from_timestamp_millis(figures.last_accepted_millis.load(Ordering::Relaxed));
        SpooledStatus {
            events_accepted: count(&figures.accepted),
            events_recovered: count(&figures.recovered),
            events_quarantined: count(&figures.quarantined),
            events_spooled: count(&figures.spooled),
            spool_bytes: self.usage.used_bytes(self.log_type),
            batches: count(&figures.batches),
            oldest_unsent: state.unsent.first().copied().map(Timestamp),
            last_accepted: last_accepted.filter(|at| at.timestamp_millis() > 0).map(Timestamp),
            write_error: state.failing.as_ref().map(ToString::to_string),
            full_since: self.usage.full_since(self.log_type),
            share_bytes: self.usage.share_bytes(self.log_type),
            key_time_ahead_seconds: key_time_ahead_seconds(state.last_opened),
            chain_instance: chain_instance.to_owned(),
            head: (state.head.sequence > 0)
                .then(|| ChainHead { sequence: state.head.sequence, sha256: state.head.sha256.to_string() }),
        }
    }

    /// See [`SpooledStatus::key_time_ahead_seconds`].
    pub(super) fn key_time_ahead_seconds(&self) -> u64 {
        key_time_ahead_seconds(self.state().last_opened)
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
    pub(super) fn open_batch(&self) -> io::Result<(BatchName, Box<dyn DiskFile>)> {
        let name = BatchName::open(crate::batch::now(), self.state().last_opened, self.codec);
        // Given out, whatever becomes of it: a file that can't be removed again keeps its name for itself.
        self.state().last_opened = Some(name.opened);
        let path = self.path(&SpoolName::Open(name));
        self.home.confirm()?;
        let file = self.with_remedy(|| {
            let created = self.home.disk.create(&path).and_then(|file| {
                self.home.disk.sync_dir(&self.dir)?;
                // Only now is it known that the path led to the spool: the volume may have gone since it was looked at.
                self.home.confirm()?;
                Ok(file)
            });
            // A file that was made may still answer an error, and nobody would look for it before the next start.
            created.inspect_err(|_| drop(self.home.disk.remove(&path)))
        })?;
        self.note_opened(name.opened);
        Ok((name, file))
    }

    /// When the newest batch was opened; those to come are opened later.
    pub fn last_opened(&self) -> Option<DateTime<Utc>> {
        self.state().last_opened
    }

    /// Takes note of a batch that is not in S3 yet.
    pub(super) fn note_opened(&self, opened: DateTime<Utc>) {
        let mut state = self.state();
        state.unsent.insert(opened);
        state.last_opened = state.last_opened.max(Some(opened));
    }

    /// A batch that never held an event goes without a trace.
    pub(super) fn remove_empty(&self, name: BatchName) -> io::Result<()> {
        self.home.disk.remove(&self.path(&SpoolName::Open(name)))?;
        self.state().unsent.remove(&name.opened);
        Ok(())
    }

    /// Takes over the chain's head as found at the start.
    pub(super) fn set_head(&self, name: &SealedName) {
        let mut state = self.state();
        let sent = (name.stage == Stage::Sent).then_some(*name);
        state.head = Head { sequence: name.sequence, sha256: name.sha256, sent };
        state.last_opened = state.last_opened.max(Some(name.batch.opened));
    }

    /// The sealed name of the batch that is sealed next: the chain's next number.
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

    /// Makes a sealed name durable and the chain's head; the head before it goes.
    ///
    /// Repeated after an error it does what is left to do.
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
            // A head that stays too long is removed at the next start.
            let _ = self.home.disk.remove(&self.path(&SpoolName::Sealed(sent)));
        }
        Ok(())
    }

    /// Counts a sealed batch.
    pub(super) fn count_sealed(&self, reason: SealReason) {
        let (log_type, reason) = (self.log_type.as_str(), reason.as_str());
        metrics::counter!("env0_s3_logs_batches_sealed_total", "type" => log_type, "reason" => reason).increment(1);
    }

    /// Counts a sealed batch in.
    pub(super) fn hold(&self, name: SealedName, bytes: u64) -> Batch {
        self.figures.batches.fetch_add(1, Ordering::Relaxed);
        Batch::new(self.log_type, name, bytes)
    }

    /// Hands a sealed batch to the flusher; from here on its file is touched only through the stages.
    pub(super) fn announce(&self, batch: Batch) {
        // The flusher is gone only when the process ends; the batch is found again at the next start.
        let _ = self.sealed.send(batch);
    }

    /// Brings a batch's file to a stage, durably. Repeated after an error it does what is left to do.
    pub fn set_stage(&self, batch: &mut Batch, stage: Stage) -> io::Result<()> {
        self.rename_to(batch, SealedName { stage, ..batch.name })
    }

    /// Gives a batch, of which no attempt can have arrived, a new suffix, durably.
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

    /// S3 has the batch: its file goes, or stays empty as the chain's head when it has the highest number.
    ///
    /// A file that comes back after a power cut is `.sending`, and its repeated PUT meets our own object.
    pub fn delivered(&self, batch: &mut Batch) -> io::Result<()> {
        // Where the path leads elsewhere, a file that is missing there was not removed.
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
                    // Somebody removed the file; its bytes are in the bucket.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => self.keep_head(sent)?,
                    emptied => emptied?,
                }
                self.state().head.sent = Some(sent);
            } else {
                self.home.with_room(|| self.home.disk.remove(&self.batch_path(batch)))?;
            }
        }
        self.state().unsent.remove(&batch.name.batch.opened);
        self.gone(batch);
        if let Some(copy) = copy {
            self.usage.add_copy(copy);
        }
        self.figures.uploaded.fetch_add(batch.name.records, Ordering::Relaxed);
        Ok(())
    }

    /// Keeps a delivered batch's file for CloudWatch. One that can't be kept goes: nothing waits for CloudWatch.
    fn make_copy(&self, copies: &Copies, batch: &Batch) -> io::Result<Option<BatchCopy>> {
        let (path, copy) = (self.batch_path(batch), BatchCopy::of(batch));
        // A full disk costs this copy, and not the spare file or another copy.
        let Err(error) = copies.take_over(&path, &copy) else { return Ok(Some(copy)) };
        self.home.with_room(|| self.home.disk.remove(&path))?;
        copies.missed(&copy, &error);
        Ok(None)
    }

    fn gone(&self, batch: &Batch) {
        self.usage.remove(self.log_type, batch.bytes);
        self.figures.batches.fetch_sub(1, Ordering::Relaxed);
        self.figures.spooled.fetch_sub(batch.name.records, Ordering::Relaxed);
    }

    /// A batch that has no number is not in the spool any more.
    pub(super) fn forget(&self, name: BatchName, bytes: u64) {
        self.state().unsent.remove(&name.opened);
        self.usage.remove(self.log_type, bytes);
    }

    /// Counts events that are durable now.
    pub(super) fn accepted(&self, records: u64) {
        self.figures.accepted.fetch_add(records, Ordering::Relaxed);
        self.figures.last_accepted_millis.store(crate::batch::now().timestamp_millis(), Ordering::Relaxed);
        self.figures.spooled.fetch_add(records, Ordering::Relaxed);
    }

    /// Notes the time of one group's fsync.
    pub(super) fn fsync_took(&self, time: std::time::Duration) {
        self.fsync_duration.record(time);
    }

    /// Writes, fsyncs and removes a small file, to find out whether the disk works.
    pub(super) fn probe(&self) -> io::Result<()> {
        self.restore()?;
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

    /// Hashes a batch's file again, for when S3 says that its bytes are not what its name says.
    pub fn rehash(&self, batch: &Batch) -> io::Result<Sha256> {
        let mut file = self.home.disk.open(&self.batch_path(batch))?;
        let mut hasher = Sha256Hasher::default();
        let mut buffer = vec![0; READ_BUFFER_BYTES];
        let mut offset = 0;
        loop {
            match file.read_at(&mut buffer, offset)? {
                0 => return Ok(hasher.finish()),
                read => {
                    hasher.update(&buffer[..read]);
                    offset += read as u64;
                }
            }
        }
    }

    /// Runs `operation`, and once more after what can be mended: a full disk by giving up the spare file, a
    /// folder that was removed by making it again.
    pub(super) fn with_remedy<T>(&self, mut operation: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        match self.home.with_room(&mut operation) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.restore()? => operation(),
            result => result,
        }
    }

    /// Makes the folders again that somebody removed under the daemon, with the chain's head in them; whether
    /// one was missing.
    ///
    /// # Errors
    /// The path leads elsewhere, see [`Home::confirm`]: what is missing there was not removed.
    pub(super) fn restore(&self) -> io::Result<bool> {
        let mut restored = self.home.confirm()?;
        let (disk, quarantine) = (&self.home.disk, self.home.quarantine_dir());
        let mut missing = false;
        for folder in [&self.dir, &quarantine] {
            missing |= disk.identify(folder)?.is_none();
        }
        if missing {
            disk.create_dir(&self.dir)?;
            disk.create_dir(&quarantine)?;
            disk.sync_dir(&self.home.dir)?;
            if let Some(sent) = self.head().sent {
                self.create_head(sent)?;
            }
            tracing::error!(log_type = %self.log_type, spool.dir = %self.home.dir.display(), "a folder of the spool was removed while the daemon runs; it is made again; what was uploaded or is still open is safe, see config/README.md#quarantined");
            restored = true;
        }
        Ok(restored)
    }

    /// Makes the empty file that keeps a head, durably; it may be there.
    fn create_head(&self, head: SealedName) -> io::Result<()> {
        match self.home.disk.create(&self.path(&SpoolName::Sealed(head))) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => drop(created?),
        }
        self.home.disk.sync_dir(&self.dir)
    }
}

fn key_time_ahead_seconds(last_opened: Option<DateTime<Utc>>) -> u64 {
    let ahead = last_opened.map(|opened| (opened - crate::batch::now()).num_seconds());
    ahead.and_then(|seconds| u64::try_from(seconds).ok()).filter(|ahead| *ahead >= KEY_TIME_AHEAD_SECONDS).unwrap_or(0)
}
