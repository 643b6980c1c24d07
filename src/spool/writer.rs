//! One thread a log type: append, group commit, acknowledge, close.
//!
//! Appends that arrive while an fsync runs wait in the channel and share the next one. An append
//! belongs to this thread from the moment it is begun: a client that hangs up cannot cancel half a write, and
//! nobody is told that it is not stored before that is so for good.

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
use crate::spool::disk::DiskFile;
use crate::spool::folder::Folder;
use crate::spool::home::is_full;
use crate::spool::sealer::{self, Closed, Refused};
use crate::spool::terms::{AppendError, Receipt, SealReason, Settings};
use crate::spool::usage::Room;

/// Appends up to this size are gathered into one write.
const GATHER_BYTES: usize = 256 * 1024;
/// Room for the group of a usual flood of small appends, made at once.
const USUAL_GROUP: usize = 64;
/// An fsync covers at most this many bytes and a bit, so that no acknowledgement waits for all of a flood.
const GROUP_MAX_BYTES: usize = 4 * 1024 * 1024;
/// The disk begins with each piece of a group that is at least so large, while the rest is written and hashed.
const WRITE_OUT_MIN_BYTES: u64 = 1024 * 1024;
/// How often a disk that fails is tried again while nobody appends.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How often a disk is tried while nobody appends, so that a full one is known before an event meets it.
const IDLE_PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// The handle of a writer's thread.
pub(super) struct Writer {
    requests: Sender<Request>,
    clock: Arc<BusyClock>,
}

enum Request {
    Append(Append),
    Seal,
    /// Closes for good; answered when all is sealed.
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
    /// What to answer when none of it stays. Its room and memory are free before that is sent.
    fn refused(self, error: AppendError) -> (Reply, Outcome) {
        (self.reply, Err(error))
    }
}

/// Since when the thread has been at one piece of work; read by the liveness probe.
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
    /// Starts the log type's writer and sealer threads; what a crash left open is sealed first.
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
            key_time_is_ahead: false,
        };
        let busy = clock.clone();
        std::thread::spawn(move || state.run(&receiver, &busy));
        Writer { requests, clock }
    }

    /// Begins at once; the future it returns is done after the fsync that covers the lines.
    pub(super) fn append(
        &self,
        lines: Bytes,
        records: u64,
        room: Room,
        claim: Arc<Claim<dyn Send + Sync>>,
    ) -> impl Future<Output = Outcome> + use<> {
        let (reply, waiting) = Reply::channel();
        // A writer that is gone drops the reply.
        let _ = self.requests.send(Request::Append(Append { lines, records, room, reply, claim }));
        waiting.outcome()
    }

    pub(super) fn seal(&self) {
        // A writer that is gone has sealed already.
        let _ = self.requests.send(Request::Seal);
    }

    /// Asks at once; the future it returns is done when all is sealed.
    pub(super) fn close(&self) -> impl Future<Output = ()> + use<> {
        let (reply, closed) = oneshot::channel();
        let _ = self.requests.send(Request::Close(reply));
        async { drop(closed.await) }
    }

    pub(super) fn busy_for(&self) -> Duration {
        self.clock.busy_for()
    }
}

/// The batch that is appended to.
struct Open {
    name: BatchName,
    file: Box<dyn DiskFile>,
    since: Instant,
    /// What was fsynced and acknowledged.
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

    /// Takes what is in the channel, and what is about to come, as one group.
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
                // Small appends are about to come where others can run now; where the processor has
                // nothing else to do, asking costs no time.
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
        let mut staged: Vec<Append> = Vec::with_capacity(group.len());
        let mut staged_bytes = 0;
        for append in group {
            // Whoever sent it was refused already, or is gone, before it was begun.
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
            let held = self.open.as_ref().map_or(0, |open| open.bytes) + staged_bytes;
            if held > 0 && held + len > self.settings.batch_max_bytes {
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
            let (name, file) = self.folder.open_batch()?;
            self.tell_key_time();
            let hasher = Sha256Hasher::default();
            self.open = Some(Open { name, file, since: Instant::now(), bytes: 0, records: 0, hasher });
        }
        Ok(())
    }

    /// Says once that keys have a wrong time, and once that they have the right one again.
    fn tell_key_time(&mut self) {
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

    /// Writes and fsyncs the staged appends to the open batch and acknowledges them; on an error
    /// nothing of them stays.
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
            // NFS and quotas may say only now that there is no room: the rescue needs it, and what is sent again does.
            if is_full(&error) {
                self.folder.home().make_way(bytes);
            }
            return self.take_back(staged, error, Spoiled::ByAFailedFsync);
        }
        self.folder.fsync_took(started.elapsed());
        open.hasher = hasher;
        open.bytes += bytes;
        // Before the answers: whoever has one finds its events in the figures.
        self.folder.accepted(staged.iter().map(|append| append.records).sum());
        let mut line = open.records;
        let outcomes = staged.into_iter().map(|append| {
            append.room.keep();
            let receipt = Receipt { batch: open.name, line };
            line += append.records;
            (append.reply, Ok(receipt))
        });
        answers::give(outcomes);
        open.records = line;
        self.recovered();
    }

    /// Cuts off what was written behind the last good fsync and refuses the appends that it was written for: at
    /// once where the disk has made the cut durable, otherwise when the sealer has brought the rest of the file to
    /// safety. A start would take whole lines that it finds for acknowledged ones.
    fn take_back(&mut self, appends: Vec<Append>, error: io::Error, spoiled: Spoiled) {
        let Some(open) = &mut self.open else { return };
        let is_cut = open.file.truncate(open.bytes).is_ok();
        let is_gone = is_cut && open.file.sync().is_ok();
        let is_too_large = error.kind() == io::ErrorKind::FileTooLarge;
        let mut refusals = self.refusals(appends, error);
        if is_gone {
            answers::give(std::mem::take(&mut refusals));
        }
        if !is_gone || matches!(spoiled, Spoiled::ByAFailedFsync) {
            self.hand_over(SealReason::DiskError, Refused { refusals, is_cut });
        } else if is_too_large {
            // It would be so until the batch is old enough.
            self.close(SealReason::Size);
        }
    }

    fn close(&mut self, reason: SealReason) {
        self.hand_over(reason, Refused::default());
    }

    /// Hands the open batch to the sealer, which then answers those whose lines it still holds and should not.
    fn hand_over(&mut self, reason: SealReason, refused: Refused) {
        let Some(open) = self.open.take() else { return };
        let Open { name, bytes, records, hasher, file, .. } = open;
        if reason == SealReason::DiskError {
            self.folder.figures().salvages.fetch_add(1, Ordering::Release);
        }
        let sha256 = hasher.finish();
        self.sealer.seal(Closed { name, bytes, records, sha256, reason, file: Some(file), refused, copy: None });
    }

    fn refuse(&mut self, appends: impl IntoIterator<Item = Append>, error: io::Error) {
        let refusals = self.refusals(appends, error);
        answers::give(refusals);
    }

    /// Tells the operator that the disk fails, and what to answer the appends; their room and memory are free.
    fn refusals(&mut self, appends: impl IntoIterator<Item = Append>, error: io::Error) -> Vec<(Reply, Outcome)> {
        if self.failing_since.is_none() {
            self.failing_since = Some(Instant::now());
            tracing::error!(log_type = %self.folder.log_type, %error, "the spool's disk refuses writes; events are answered 503 until it takes them again; see config/README.md#disk-refuses-writes");
        }
        let error = Arc::new(error);
        self.folder.set_failing(Some(error.clone()));
        appends.into_iter().map(|append| append.refused(AppendError::Disk(error.clone()))).collect()
    }

    fn recovered(&mut self) {
        if let Some(since) = self.failing_since.take() {
            self.folder.set_failing(None);
            let outage = since.elapsed().as_secs();
            tracing::info!(log_type = %self.folder.log_type, outage.seconds = outage, "the spool's disk takes writes again");
        }
    }

    /// Finds out whether the disk works, without an event at stake.
    fn probe(&mut self) {
        if self.ready().is_err() {
            return;
        }
        match self.folder.probe() {
            Ok(()) => self.recovered(),
            Err(error) => self.refuse([], error),
        }
    }
}

/// Whether a file can be appended to after an error.
#[derive(Clone, Copy)]
enum Spoiled {
    No,
    /// The system takes the pages of a failed fsync for written: no later fsync of the file says what is on the disk.
    ByAFailedFsync,
}

/// Writes the appends one after the other at `offset`, hashing what it writes; the bytes written.
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
