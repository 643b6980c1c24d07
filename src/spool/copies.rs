//! Copies: the batches that S3 has and CloudWatch doesn't. They are there only while the CloudWatch lane is on.
//!
//! Once S3 has a batch, its file is renamed to `<spool>/cloudwatch/<log type>/<name>.sent`; without the lane it would
//! be removed. So no byte is written twice, and a copy that is given up is always in S3. A crash before the rename
//! leaves `.sending`: its PUT is repeated, meets our own object, and the file is renamed then.
//!
//! Copies take only the room that events don't need. The oldest are given up when both log types' events and the copies
//! together exceed the spool's limit, and before anything else when the disk is full.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::Notify;

use crate::batch::{ByType, LogType, SealedName, SpoolName, Stage};
use crate::metric_table;
use crate::spool::disk::Disk;
use crate::spool::terms::Batch;
pub use crate::spool::terms::GivenUp;

/// The copies' folder in the spool, with one for each log type in it.
const FOLDER: &str = "cloudwatch";
/// The pause between tries to remove a file that the disk refuses to remove.
const RETRY_AFTER: Duration = if cfg!(test) { Duration::from_millis(1) } else { Duration::from_secs(1) };

/// When a full disk has refused to remove this many files, no more copies are given up: it may refuse all of them.
const REFUSED_MAX: usize = 8;
/// The room that the smallest file takes on most disks.
const BLOCK_BYTES: u64 = 4096;

/// A batch that S3 has and CloudWatch doesn't.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchCopy {
    /// The log type of its events.
    pub log_type: LogType,
    /// The batch's name at its delivery, as [`Stage::Sent`].
    pub name: SealedName,
    /// Size of the file, which is the object's body.
    pub bytes: u64,
}

impl BatchCopy {
    /// The copy that a batch becomes once S3 has it.
    pub(super) fn of(batch: &Batch) -> BatchCopy {
        let name = SealedName { stage: Stage::Sent, ..batch.name };
        BatchCopy { log_type: batch.log_type, name, bytes: batch.bytes }
    }
}

/// What waits for CloudWatch in one log type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// How many batches.
    pub batches: usize,
    /// Their files' bytes.
    pub bytes: u64,
    /// When the oldest was opened.
    pub oldest: Option<DateTime<Utc>>,
}

/// The copies, and a thread that removes the files of those that were given up.
pub struct Copies {
    shared: Arc<Shared>,
    /// Tells the lane of a log type that a copy came.
    arrived: ByType<Notify>,
}

/// Fails where the path of the spool or the copies' folder leads elsewhere.
type Confirm = dyn Fn() -> io::Result<()> + Send + Sync;

struct Shared {
    disk: Arc<dyn Disk>,
    spool: PathBuf,
    /// Set once the spool's home is there, which has the copies itself.
    confirm: OnceLock<Box<Confirm>>,
    /// All copies' bytes; every append reads it.
    bytes: AtomicU64,
    state: Mutex<State>,
    /// Wakes the thread that removes files: one is to be removed, or the thread is to end.
    doomed: Condvar,
}

#[derive(Default)]
struct State {
    /// The copies by log type and opening.
    waiting: ByType<BTreeMap<DateTime<Utc>, BatchCopy>>,
    /// The sum of the waiting copies' bytes, which would take too long to add up for every request.
    bytes: ByType<u64>,
    /// Copies that don't count any more, and whose files are still to be removed.
    doomed: VecDeque<Doomed>,
    /// The reasons that were logged since a log type's copies were last all sent.
    logged: ByType<[bool; GivenUp::ALL.len()]>,
    /// Events given up since the start, by log type.
    skipped: ByType<u64>,
    ended: bool,
}

#[derive(Clone, Copy)]
struct Doomed {
    copy: BatchCopy,
    /// Why it is given up; `None` where CloudWatch has it.
    reason: Option<GivenUp>,
}

impl fmt::Debug for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Copies").field("bytes", &self.shared.bytes).finish_non_exhaustive()
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        self.shared.state().ended = true;
        self.shared.doomed.notify_all();
    }
}

impl Copies {
    /// Finds the copies that an earlier process left, where their folder is usable. An error of the disk here costs copies,
    /// but never keeps the daemon from starting.
    pub(super) fn open(disk: Arc<dyn Disk>, spool: &Path, is_usable: bool) -> Copies {
        let state = Mutex::default();
        let (confirm, bytes, doomed) = (OnceLock::new(), AtomicU64::new(0), Condvar::new());
        let shared = Arc::new(Shared { disk, spool: spool.to_owned(), confirm, bytes, state, doomed });
        if is_usable {
            shared.find();
        }
        let removing = shared.clone();
        std::thread::spawn(move || removing.remove_doomed());
        Copies { shared, arrived: Default::default() }
    }

    /// From now on a file is kept or removed only while `confirm` finds that the path leads to the copies' folder.
    pub(super) fn confirm_by(&self, confirm: impl Fn() -> io::Result<()> + Send + Sync + 'static) {
        // This never fails, because it is set once, at the start.
        let _ = self.shared.confirm.set(Box::new(confirm));
    }

    /// Makes sure that the path leads to the copies' folder, and says so at each change. Blocks.
    ///
    /// # Errors
    /// It doesn't: a file that is missing there means nothing.
    pub fn confirm(&self) -> io::Result<()> {
        self.shared.confirm()
    }

    /// The oldest copy of a log type; waits until there is one. It stays the oldest until it is sent or given up.
    pub async fn next(&self, log_type: LogType) -> BatchCopy {
        loop {
            if let Some(copy) = self.oldest(log_type) {
                return copy;
            }
            self.arrived[log_type].notified().await;
        }
    }

    /// The oldest copy of a log type, if there is one now.
    pub fn oldest(&self, log_type: LogType) -> Option<BatchCopy> {
        self.shared.state().waiting[log_type].first_key_value().map(|(_, copy)| *copy)
    }

    /// Whether a copy still waits: it was neither sent nor given up. Bytes that were read from its file are good only
    /// if this is true after the read, because a file is shortened step by step while it is removed.
    pub fn contains(&self, copy: &BatchCopy) -> bool {
        self.shared.state().waiting[copy.log_type].get(&copy.name.batch.opened) == Some(copy)
    }

    /// What waits in a log type.
    pub fn left(&self, log_type: LogType) -> Left {
        let state = self.shared.state();
        let waiting = &state.waiting[log_type];
        let bytes = state.bytes[log_type];
        Left { batches: waiting.len(), bytes, oldest: waiting.first_key_value().map(|(opened, _)| *opened) }
    }

    /// Events of a log type that were given up since the start.
    pub fn skipped_events(&self, log_type: LogType) -> u64 {
        self.shared.state().skipped[log_type]
    }

    /// Where a copy's file is.
    pub(super) fn path(&self, copy: &BatchCopy) -> PathBuf {
        self.shared.path(copy)
    }

    /// Removes the file of a copy that CloudWatch has. Blocks.
    pub fn delivered(&self, copy: &BatchCopy) {
        let mut state = self.shared.state();
        let was_waiting = self.shared.forget(&mut state, copy);
        let log_type = copy.log_type;
        let has_caught_up = state.waiting[log_type].is_empty() && state.logged[log_type].contains(&true);
        if has_caught_up {
            state.logged[log_type] = Default::default();
        }
        drop(state);
        let doomed = Doomed { copy: *copy, reason: None };
        if was_waiting && self.shared.remove(doomed).is_err() {
            self.shared.doom(&mut self.shared.state(), doomed);
        }
        if has_caught_up {
            tracing::info!(log_type = %copy.log_type, "CloudWatch has all that was not given up");
        }
    }

    /// Gives a copy up. The copies' own thread removes its file, then counts and logs it.
    pub fn give_up(&self, copy: &BatchCopy, reason: GivenUp) {
        let mut state = self.shared.state();
        if self.shared.forget(&mut state, copy) {
            self.shared.doom(&mut state, Doomed { copy: *copy, reason: Some(reason) });
        }
    }

    /// Renames the file of a batch that S3 has into the copies' folder. The copy counts from [`Copies::add`] on.
    pub(super) fn take_over(&self, from: &Path, copy: &BatchCopy) -> io::Result<()> {
        let Shared { disk, spool, .. } = &*self.shared;
        let to = self.path(copy);
        self.shared.confirm()?;
        match disk.rename(from, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.shared.confirm()?;
                self.shared.make_folders()?;
                disk.rename(from, &to)?;
            }
            renamed => renamed?,
        }
        // A file system without a journal may make the removal of the old name durable before the new one, and a power
        // cut in between loses the copy. An error here is ignored, because the batch is in S3.
        let _ = disk.sync_dir(&folder(spool, copy.log_type));
        Ok(())
    }

    /// Counts a copy, and wakes its lane.
    pub(super) fn add(&self, copy: BatchCopy) {
        self.shared.add(copy);
        self.arrived[copy.log_type].notify_one();
    }

    /// Counts as given up a batch whose file could not be kept and was removed.
    pub(super) fn count_missed(&self, copy: &BatchCopy, error: &io::Error) {
        tracing::debug!(log_type = %copy.log_type, batch.name = %copy.name.batch, %error, "a batch can't be kept for CloudWatch");
        self.shared.count(copy, GivenUp::Disk);
    }

    /// Gives up the oldest copies until the others fit into `room_bytes`.
    pub(super) fn fit(&self, room_bytes: u64) {
        if self.shared.bytes.load(Ordering::Relaxed) <= room_bytes {
            return;
        }
        let mut state = self.shared.state();
        while self.shared.bytes.load(Ordering::Relaxed) > room_bytes
            && let Some(doomed) = self.shared.give_up_oldest(&mut state)
        {
            self.shared.doom(&mut state, doomed);
        }
    }

    /// Removes the files of the oldest copies because the disk is full, until `room_bytes` are freed or it is `until`.
    /// False where none was removed. Blocks.
    pub(super) fn make_way(&self, room_bytes: u64, until: Instant) -> bool {
        let mut freed_bytes = 0;
        let mut refused = Vec::new();
        let mut is_shorter = ByType::<bool>::default();
        while freed_bytes < room_bytes && refused.len() < REFUSED_MAX && Instant::now() < until {
            let doomed = {
                let mut state = self.shared.state();
                state.doomed.pop_front().or_else(|| self.shared.give_up_oldest(&mut state))
            };
            let Some(doomed) = doomed else { break };
            if self.shared.remove(doomed).is_err() {
                refused.push(doomed);
                continue;
            }
            freed_bytes += doomed.copy.bytes.next_multiple_of(BLOCK_BYTES);
            is_shorter[doomed.copy.log_type] = true;
        }
        if !refused.is_empty() {
            let mut state = self.shared.state();
            refused.into_iter().for_each(|doomed| self.shared.doom(&mut state, doomed));
        }
        for log_type in LogType::ALL.into_iter().filter(|log_type| is_shorter[*log_type]) {
            // Some file systems free a removed file's blocks only once the removal is durable.
            let _ = self.shared.disk.sync_dir(&folder(&self.shared.spool, log_type));
        }
        freed_bytes > 0
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, copy: &BatchCopy) -> PathBuf {
        path(&self.spool, copy)
    }

    fn confirm(&self) -> io::Result<()> {
        self.confirm.get().map_or(Ok(()), |confirm| confirm())
    }

    fn find(&self) {
        if let Err(error) = self.make_folders() {
            tracing::warn!(folder = %self.spool.join(FOLDER).display(), %error, "the folder for batches that CloudWatch does not have yet can't be made");
        }
        for log_type in LogType::ALL {
            let folder = folder(&self.spool, log_type);
            if let Err(error) = visit(&*self.disk, &folder, log_type, |copy| self.add(copy)) {
                tracing::warn!(folder = %folder.display(), %error, "the batches that CloudWatch does not have yet can't all be listed; the others are sent after a start that can");
            }
        }
    }

    fn make_folders(&self) -> io::Result<()> {
        for folder in &folders(&self.spool) {
            self.disk.create_dir(folder)?;
        }
        self.disk.sync_dir(&self.spool.join(FOLDER))?;
        self.disk.sync_dir(&self.spool)
    }

    fn add(&self, copy: BatchCopy) {
        let mut state = self.state();
        // After a power cut the batch's file may be back as `.sending` beside the copy, and is delivered again.
        self.forget(&mut state, &copy);
        state.waiting[copy.log_type].insert(copy.name.batch.opened, copy);
        state.bytes[copy.log_type] += copy.bytes;
        self.bytes.fetch_add(copy.bytes, Ordering::Relaxed);
    }

    /// Counts a copy out; false where it didn't count.
    fn forget(&self, state: &mut State, copy: &BatchCopy) -> bool {
        let removed = state.waiting[copy.log_type].remove(&copy.name.batch.opened);
        let bytes = removed.map_or(0, |removed| removed.bytes);
        state.bytes[copy.log_type] -= bytes;
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        removed.is_some()
    }

    fn give_up_oldest(&self, state: &mut State) -> Option<Doomed> {
        let oldest = state.waiting.values().filter_map(|waiting| waiting.first_key_value());
        let copy = *oldest.min_by_key(|(opened, _)| **opened)?.1;
        self.forget(state, &copy);
        Some(Doomed { copy, reason: Some(GivenUp::Room) })
    }

    fn doom(&self, state: &mut State, doomed: Doomed) {
        state.doomed.push_back(doomed);
        self.doomed.notify_one();
    }

    /// Removes the files of doomed copies until the end. A file that is left then is a copy again after the next start.
    fn remove_doomed(&self) {
        let mut is_logged = false;
        loop {
            let mut state = self.state();
            let doomed = loop {
                if state.ended {
                    return;
                }
                if let Some(doomed) = state.doomed.pop_front() {
                    break doomed;
                }
                is_logged = false;
                state = self.doomed.wait(state).unwrap_or_else(PoisonError::into_inner);
            };
            drop(state);
            if let Err(error) = self.remove(doomed) {
                if !is_logged {
                    tracing::error!(log_type = %doomed.copy.log_type, batch.name = %doomed.copy.name.batch, %error, "the file of a batch that CloudWatch was to have can't be removed; trying again every second");
                }
                is_logged = true;
                // To the end of the queue: the disk may refuse this file alone.
                self.state().doomed.push_back(doomed);
                std::thread::sleep(RETRY_AFTER);
            }
        }
    }

    fn remove(&self, doomed: Doomed) -> io::Result<()> {
        // While the path leads elsewhere, a file that is missing there would look as if it were removed. It may be back
        // by the second look, or go away after the first.
        self.confirm()?;
        self.disk.remove(&self.path(&doomed.copy))?;
        self.confirm()?;
        if let Some(reason) = doomed.reason {
            self.count(&doomed.copy, reason);
        }
        Ok(())
    }

    fn count(&self, copy: &BatchCopy, reason: GivenUp) {
        count(copy.log_type, copy.name.records, reason);
        let mut state = self.state();
        let was_logged = std::mem::replace(&mut state.logged[copy.log_type][reason as usize], true);
        state.skipped[copy.log_type] += copy.name.records;
        drop(state);
        if !was_logged {
            tracing::warn!(log_type = %copy.log_type, reason = reason.as_str(), batch.opened = %copy.name.batch.opened, "batches are given up before CloudWatch has them: {}; their events are in S3", reason.why());
        }
    }
}

fn count(log_type: LogType, events: u64, reason: GivenUp) {
    metrics::counter!(metric_table::CLOUDWATCH_SKIPPED_EVENTS, "type" => log_type.as_str(), "reason" => reason.as_str())
        .increment(events);
}

/// The folders of copies within a spool, the outer one first.
pub fn folders(spool: &Path) -> [PathBuf; 3] {
    let [deployments, audits] = LogType::ALL.map(|log_type| folder(spool, log_type));
    [spool.join(FOLDER), deployments, audits]
}

/// Where a copy's file is in a spool.
pub(super) fn path(spool: &Path, copy: &BatchCopy) -> PathBuf {
    folder(spool, copy.log_type).join(copy.name.to_string())
}

fn folder(spool: &Path, log_type: LogType) -> PathBuf {
    spool.join(FOLDER).join(log_type.as_str())
}

/// Calls `each` with every copy in a log type's folder. Other files there are left alone.
fn visit(disk: &dyn Disk, folder: &Path, log_type: LogType, mut each: impl FnMut(BatchCopy)) -> io::Result<()> {
    disk.visit(folder, &mut |name, bytes| {
        if let Ok(SpoolName::Sealed(name)) = name.parse()
            && name.stage == Stage::Sent
        {
            each(BatchCopy { log_type, name, bytes });
        }
    })
}

/// Removes the copies that a daemon with a CloudWatch lane left: without one nobody sends them, and they fill the disk.
pub(super) fn discard(disk: &dyn Disk, spool: &Path) {
    for log_type in LogType::ALL {
        let folder = folder(spool, log_type);
        if matches!(disk.identify(&folder), Ok(None)) {
            continue;
        }
        let mut copies = Vec::new();
        let removed = visit(disk, &folder, log_type, |copy| copies.push(copy)).and_then(|()| {
            let events = copies.iter().map(|copy| copy.name.records).sum();
            copies.iter().try_for_each(|copy| disk.remove(&folder.join(copy.name.to_string())))?;
            Ok((copies.len(), events))
        });
        match removed {
            Ok((0, _)) => {}
            Ok((batches, events)) => {
                count(log_type, events, GivenUp::Off);
                tracing::warn!(%log_type, batches, events, "batches that CloudWatch does not have were removed: {}; they are in S3", GivenUp::Off.why());
            }
            Err(error) => {
                tracing::warn!(%log_type, folder = %folder.display(), %error, "batches that were kept for CloudWatch can't be removed; they take room on the disk, and are in S3");
            }
        }
    }
}
