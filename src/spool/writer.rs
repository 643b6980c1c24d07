//! One thread for each log type appends events to the open batch, fsyncs them, acknowledges them and closes the batch.
//!
//! Appends that arrive while an fsync runs wait in the channel and share the next one. Once the thread has begun with
//! an append, only the thread decides what becomes of it: a client that hangs up can't cancel half a write.
//!
//! Both answers wait for the disk. With a power cut in between, the other order would break a promise:
//!
//! 1. `200` before the fsync: the client forgets the events, and the disk may not have them.
//! 2. `503` before the written lines are cut off and the cut is fsynced: the client sends the events again, and the
//!    next start finds them whole and stores them, too.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::batch::{BatchName, Sha256Hasher};
use crate::spool::answers::{self, Outcome, Reply};
use crate::spool::claim::Claim;
use crate::spool::disk::{DiskFile, FileId};
use crate::spool::folder::Folder;
use crate::spool::home::is_full;
use crate::spool::sealer::{self, Closed, Refused};
use crate::spool::terms::{AppendError, Receipt, SealReason, Settings};
use crate::spool::usage::Room;
use crate::volume;

/// Appends up to this size are gathered into one write.
const GATHER_BYTES: usize = 256 * 1024;
/// The appends of a group for which memory is allocated at once; as many as usually come together.
const USUAL_GROUP: usize = 64;
/// An fsync covers at most this many bytes and one more append, so that no acknowledgement waits for all of a flood.
const GROUP_MAX_BYTES: usize = 4 * 1024 * 1024;
/// When this many bytes of a group are written, the disk begins with them while the rest is written and hashed.
const WRITE_OUT_MIN_BYTES: u64 = 1024 * 1024;
/// How often a disk that fails is tried again while no event arrives.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How often a disk is tried while no event arrives, so that a full disk is known before the next event.
const IDLE_PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// The handle of a writer's thread.
pub(super) struct Writer {
    requests: Sender<Request>,
    clock: Arc<BusyClock>,
}

enum Request {
    Append(Append),
    Seal,
    /// Refuses appends from now on; answered when all batches are sealed.
    Close(oneshot::Sender<()>),
}

struct Append {
    lines: Bytes,
    records: u64,
    room: Room,
    reply: Reply,
    claim: Arc<Claim<dyn Send + Sync>>,
}

impl Append {
    /// The refusal of this append. Its room and its memory are given back before the refusal is sent.
    fn refused(self, error: AppendError) -> (Reply, Outcome) {
        (self.reply, Err(error))
    }
}

/// Since when the thread has been busy with one piece of work; the liveness probe reads it.
struct BusyClock {
    start: Instant,
    /// Milliseconds after `start`, or [`IDLE`].
    busy_since: AtomicU64,
}

const IDLE: u64 = u64::MAX;

impl BusyClock {
    fn begin(&self) {
        let since = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(IDLE);
        self.busy_since.store(since, Ordering::Relaxed);
    }

    fn end(&self) {
        self.busy_since.store(IDLE, Ordering::Relaxed);
    }

    fn busy_for(&self) -> Duration {
        match self.busy_since.load(Ordering::Relaxed) {
            IDLE => Duration::ZERO,
            since => self.start.elapsed().saturating_sub(Duration::from_millis(since)),
        }
    }
}

impl Writer {
    /// Starts the log type's writer and sealer threads. The sealer begins with what a crash left open.
    pub(super) fn start(folder: Arc<Folder>, settings: Settings, left_open: Vec<sealer::LeftOpen>) -> Writer {
        let (requests, receiver) = mpsc::channel();
        let sealer = sealer::start(folder.clone(), left_open);
        let clock = Arc::new(BusyClock { start: Instant::now(), busy_since: AtomicU64::new(IDLE) });
        let state = State {
            folder,
            settings,
            sealer,
            open: None,
            closed: false,
            failing_since: None,
            refused_bytes: 0,
            key_time_is_ahead: false,
        };
        let busy = clock.clone();
        std::thread::spawn(move || state.run(&receiver, &busy));
        Writer { requests, clock }
    }

    /// Hands the lines to the writer at once. The returned future ends after the fsync that covers them.
    pub(super) fn append(
        &self,
        lines: Bytes,
        records: u64,
        room: Room,
        claim: Arc<Claim<dyn Send + Sync>>,
    ) -> impl Future<Output = Outcome> + use<> {
        let (reply, waiting) = Reply::channel();
        // A writer that has ended drops the reply, which answers `Closed`.
        let _ = self.requests.send(Request::Append(Append { lines, records, room, reply, claim }));
        waiting.outcome()
    }

    pub(super) fn seal(&self) {
        // A writer that has ended has sealed its batch already.
        let _ = self.requests.send(Request::Seal);
    }

    /// Asks the writer to close at once. The returned future ends when all batches are sealed.
    pub(super) fn close(&self) -> impl Future<Output = ()> + use<> {
        let (reply, closed) = oneshot::channel();
        let _ = self.requests.send(Request::Close(reply));
        async { drop(closed.await) }
    }

    pub(super) fn busy_for(&self) -> Duration {
        self.clock.busy_for()
    }
}

/// The batch that events are appended to.
struct Open {
    name: BatchName,
    file: Box<dyn DiskFile>,
    id: Option<FileId>,
    /// [`crate::spool::home::Home::mounts`] when it was opened.
    mounts: u64,
    since: Instant,
    /// The bytes that were fsynced and acknowledged, not those that a group is writing.
    bytes: u64,
    records: u64,
    hasher: Sha256Hasher,
}

struct State {
    folder: Arc<Folder>,
    settings: Settings,
    sealer: sealer::Queue,
    open: Option<Open>,
    closed: bool,
    failing_since: Option<Instant>,
    /// The longest append that the failing disk refused.
    refused_bytes: u64,
    key_time_is_ahead: bool,
}

impl State {
    fn run(mut self, requests: &Receiver<Request>, clock: &BusyClock) {
        loop {
            let request = requests.recv_timeout(self.wait());
            clock.begin();
            let idle = matches!(request, Err(RecvTimeoutError::Timeout));
            match request {
                Ok(first) => self.serve(first, requests),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let old = self.open.as_ref().is_some_and(|open| open.since.elapsed() >= self.settings.batch_max_age);
            if old {
                self.close(SealReason::Age);
            }
            if (idle && !old) || self.failing_since.is_some() {
                self.probe();
            }
            clock.end();
        }
    }

    /// How long to wait for a request.
    fn wait(&self) -> Duration {
        let probe = if self.failing_since.is_some() { PROBE_INTERVAL } else { IDLE_PROBE_INTERVAL };
        let age = self.open.as_ref().map(|open| self.settings.batch_max_age.saturating_sub(open.since.elapsed()));
        age.map_or(probe, |age| age.min(probe))
    }

    /// Takes the requests that are in the channel, and those that are about to come, as one group.
    fn serve(&mut self, first: Request, requests: &Receiver<Request>) {
        let mut group = Vec::with_capacity(USUAL_GROUP);
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                Request::Append(append) => {
                    bytes += append.lines.len();
                    group.push(append);
                }
                Request::Seal => {
                    self.commit(std::mem::take(&mut group));
                    self.close(SealReason::Shutdown);
                }
                Request::Close(reply) => {
                    self.commit(std::mem::take(&mut group));
                    self.close(SealReason::Shutdown);
                    self.closed = true;
                    self.sealer.when_drained(reply);
                }
            }
            next = match bytes {
                GROUP_MAX_BYTES.. => None,
                GATHER_BYTES.. => requests.try_recv().ok(),
                // Giving up the processor lets other threads send their small appends. Where no thread
                // waits for it, this takes no time.
                _ => requests.try_recv().ok().or_else(|| {
                    std::thread::yield_now();
                    requests.try_recv().ok()
                }),
            };
        }
        self.commit(group);
    }

    /// Writes a group with as few writes as its sizes allow and one fsync a batch, then acknowledges.
    fn commit(&mut self, group: Vec<Append>) {
        if self.open.as_ref().is_some_and(|open| open.mounts != self.folder.home().mounts()) {
            self.close(SealReason::DiskError);
        }
        let mut staged: Vec<Append> = Vec::with_capacity(group.len());
        let mut staged_bytes = 0;
        for append in group {
            // The request was withdrawn, or its client hung up, before a writer began with it.
            if !append.claim.begin(append.reply.is_awaited()) {
                continue;
            }
            if let Err(refusal) = self.ready() {
                answers::give([append.refused(refusal)]);
                continue;
            }
            if let Err(error) = self.folder.in_place() {
                self.refuse([append], error);
                continue;
            }
            let len = append.lines.len() as u64;
            let open_bytes = self.open.as_ref().map_or(0, |open| open.bytes) + staged_bytes;
            if open_bytes > 0 && open_bytes + len > self.settings.batch_max_bytes {
                self.flush(std::mem::take(&mut staged));
                staged_bytes = 0;
                self.close(SealReason::Size);
            }
            if let Err(error) = self.ensure_open() {
                self.refuse([append], error);
                continue;
            }
            staged_bytes += len;
            staged.push(append);
        }
        self.flush(staged);
        if self.open.as_ref().is_some_and(|open| open.bytes >= self.settings.batch_max_bytes) {
            self.close(SealReason::Size);
        }
    }

    fn ready(&self) -> Result<(), AppendError> {
        if self.closed {
            return Err(AppendError::Closed);
        }
        if self.folder.figures().salvages.load(Ordering::Acquire) > 0 {
            return Err(AppendError::Disk(Arc::new(io::Error::other(
                "a batch whose fsync failed is being brought to safety",
            ))));
        }
        Ok(())
    }

    fn ensure_open(&mut self) -> io::Result<()> {
        if self.open.is_none() {
            let (name, file, id) = self.folder.open_batch()?;
            self.log_key_time();
            let (mounts, hasher) = (self.folder.home().mounts(), Sha256Hasher::default());
            self.open = Some(Open { name, file, id, mounts, since: Instant::now(), bytes: 0, records: 0, hasher });
        }
        Ok(())
    }

    /// Logs once that keys have a wrong time, and once that they have the right one again.
    fn log_key_time(&mut self) {
        let ahead = self.folder.key_time_ahead_seconds();
        if (ahead > 0) == self.key_time_is_ahead {
            return;
        }
        self.key_time_is_ahead = ahead > 0;
        let log_type = self.folder.log_type;
        match ahead {
            0 => tracing::info!(%log_type, "the time in keys is the clock's again"),
            ahead => {
                tracing::warn!(%log_type, keys.ahead_seconds = ahead, "the time in keys is ahead of the clock, since a batch was opened while the clock was wrong, and it never goes back within a log type; nothing is lost; see config/README.md#keys-ahead-of-the-clock");
            }
        }
    }

    /// Writes and fsyncs the staged appends to the open batch and acknowledges them. On an error cuts off what was
    /// written and refuses them.
    fn flush(&mut self, staged: Vec<Append>) {
        let Some(open) = &mut self.open else { return };
        if staged.is_empty() {
            return;
        }
        let written = self.folder.home().without_copies(|| {
            let mut hasher = open.hasher.clone();
            Ok((write(&mut *open.file, open.bytes, &staged, &mut hasher)?, hasher))
        });
        let (bytes, hasher) = match written {
            Ok(written) => written,
            Err(error) => return self.take_back(staged, error, Spoiled::No),
        };
        let started = Instant::now();
        if let Err(error) = open.file.sync() {
            // NFS and quotas may report only now that there is no room. The sealer needs room to rewrite the batch, and
            // so do the events when they are sent again.
            if is_full(&error) {
                self.folder.home().make_way(bytes);
            }
            return self.take_back(staged, error, Spoiled::ByAFailedFsync);
        }
        self.folder.record_fsync(started.elapsed());
        open.hasher = hasher;
        open.bytes += bytes;
        // Before the answers, so that a client that has one finds its events in the figures.
        self.folder.count_accepted(staged.iter().map(|append| append.records).sum());
        let mut line = open.records;
        let outcomes = staged.into_iter().map(|append| {
            append.room.keep();
            let receipt = Receipt { batch: open.name, line };
            line += append.records;
            (append.reply, Ok(receipt))
        });
        answers::give(outcomes);
        open.records = line;
        self.disk_works();
    }

    /// Cuts off what was written after the last good fsync, and refuses the appends whose lines that was. They are
    /// refused at once if the disk made the cut durable, otherwise when the sealer has written the rest of the batch to
    /// a new file: until then a start would find their lines whole and take them for acknowledged ones.
    fn take_back(&mut self, appends: Vec<Append>, error: io::Error, spoiled: Spoiled) {
        let Some(open) = &mut self.open else { return };
        // A disk that takes nothing has none of it: there is nothing to cut off, and a cut would fail.
        let has_none = matches!(open.file.read_at(&mut [0], open.bytes), Ok(0));
        let is_cut = has_none || open.file.truncate(open.bytes).is_ok();
        let cut_is_durable = has_none || (is_cut && open.file.sync().is_ok());
        let is_too_large = error.kind() == io::ErrorKind::FileTooLarge;
        let mut refusals = self.refusals(appends, error);
        if cut_is_durable {
            answers::give(std::mem::take(&mut refusals));
        }
        if !cut_is_durable || matches!(spoiled, Spoiled::ByAFailedFsync) {
            self.hand_over(SealReason::DiskError, Refused { refusals, is_cut });
        } else if is_too_large {
            // Without this, every append would be refused until the batch is old enough to be sealed.
            self.close(SealReason::Size);
        }
    }

    fn close(&mut self, reason: SealReason) {
        self.hand_over(reason, Refused::default());
    }

    /// Hands the open batch to the sealer, with the appends that it has to refuse once their lines are gone.
    fn hand_over(&mut self, reason: SealReason, refused: Refused) {
        let Some(open) = self.open.take() else { return };
        let Open { name, bytes, records, hasher, file, id, .. } = open;
        if reason == SealReason::DiskError {
            self.folder.figures().salvages.fetch_add(1, Ordering::Release);
        }
        let (sha256, file) = (hasher.finish(), Some(file));
        self.sealer.seal(Closed { name, bytes, records, sha256, reason, file, id, refused, rewritten: None });
    }

    fn refuse(&mut self, appends: impl IntoIterator<Item = Append>, error: io::Error) {
        let refusals = self.refusals(appends, error);
        answers::give(refusals);
    }

    /// Logs that the disk fails, if it did not before, and returns the appends' refusals.
    /// Gives their room and memory back.
    fn refusals(&mut self, appends: impl IntoIterator<Item = Append>, error: io::Error) -> Vec<(Reply, Outcome)> {
        if self.failing_since.is_none() {
            self.failing_since = Some(Instant::now());
            tracing::error!(log_type = %self.folder.log_type, %error, "the spool's disk refuses writes; events are answered 503 until it takes them again; see config/README.md#disk-refuses-writes");
        }
        let error = Arc::new(error);
        self.folder.set_failing(Some(error.clone()));
        let refuse = |append: Append| {
            self.refused_bytes = self.refused_bytes.max(append.lines.len() as u64);
            append.refused(AppendError::Disk(error.clone()))
        };
        appends.into_iter().map(refuse).collect()
    }

    /// Logs that the disk works again, if it failed. Where it has no room for what it refused, it works for small writes alone.
    fn disk_works(&mut self) {
        if let Some(since) = self.failing_since.take() {
            self.folder.set_failing(None);
            let refused = std::mem::take(&mut self.refused_bytes);
            if volume::available_bytes(&self.folder.dir).is_some_and(|available| available < refused) {
                tracing::warn!(log_type = %self.folder.log_type, "the spool's disk is nearly full: it takes small writes, and has refused a larger one; free or enlarge it; see config/README.md#disk-refuses-writes");
                return;
            }
            let outage = since.elapsed().as_secs();
            tracing::info!(log_type = %self.folder.log_type, outage.seconds = outage, "the spool's disk takes writes again");
        }
    }

    /// Finds out whether the disk works, without writing an event.
    fn probe(&mut self) {
        if self.ready().is_err() {
            return;
        }
        match self.folder.probe() {
            Ok(()) => self.disk_works(),
            Err(error) => self.refuse([], error),
        }
    }
}

/// Whether a file can be appended to after an error.
#[derive(Clone, Copy)]
enum Spoiled {
    No,
    /// After a failed fsync the system takes the file's pages for written, so no later fsync tells what is on the disk.
    ByAFailedFsync,
}

/// Writes the appends one after the other from `offset` on and hashes what it writes; returns how many bytes.
fn write(file: &mut dyn DiskFile, offset: u64, appends: &[Append], hasher: &mut Sha256Hasher) -> io::Result<u64> {
    let mut end = offset;
    let mut begun = offset;
    let mut write = |bytes: &[u8]| {
        hasher.update(bytes);
        file.write_at(bytes, end)?;
        end += bytes.len() as u64;
        if end - begun >= WRITE_OUT_MIN_BYTES {
            file.begin_write_out(begun, end - begun);
            begun = end;
        }
        io::Result::Ok(())
    };
    let mut gathered = Vec::new();
    for (index, append) in appends.iter().enumerate() {
        let alone = gathered.is_empty()
            && appends.get(index + 1).is_none_or(|next| append.lines.len() + next.lines.len() > GATHER_BYTES);
        if alone {
            write(&append.lines)?;
            continue;
        }
        if gathered.len() + append.lines.len() > GATHER_BYTES {
            write(&gathered)?;
            gathered.clear();
        }
        if gathered.is_empty() {
            let left: usize = appends[index..].iter().map(|append| append.lines.len()).sum();
            gathered.reserve(left.min(GATHER_BYTES));
        }
        gathered.extend_from_slice(&append.lines);
    }
    if !gathered.is_empty() {
        write(&gathered)?;
    }
    Ok(end - offset)
}
