//! Sealed batch → PUT → gone, or back off and try again. One lane a log type, oldest first; the lanes
//! share nothing, so that one type's failures never delay the other.

mod meters;
mod queue;

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::{self, Runtime};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::backoff;
use crate::batch::{LogType, Stage, object_key};
use crate::chain::{ChainEntry, Gaps, SigningKey};
use crate::credentials::{Credentials, Session};
use crate::flusher::meters::UploadMeters;
use crate::flusher::queue::{Queue, Waiting};
use crate::s3::{Put, PutError, PutErrorKind, S3};
use crate::spool::folder::Folder;
use crate::spool::{Batch, SealedBatches, Spool};
use crate::status::{DeliveryStatus, LAST_OBJECTS, ObjectStatus, Outage, Timestamp, Trouble};

/// An attempt may take this long, and its size at [`SLOWEST_BYTES_PER_SECOND`] on top (contract section 5).
const ATTEMPT_BASE: Duration = Duration::from_secs(30);
const SLOWEST_BYTES_PER_SECOND: u64 = 64 * 1024;
/// New suffixes tried at once when another writer owns the name; more is left to the next attempt.
const RENAMES_MAX: usize = 8;
/// Of the threads that upload: acknowledgements come first, and a quarter of a busy processor, which is more
/// than sending what was taken needs, is left to uploads.
const NICENESS: i32 = 5;
/// How long a shutdown waits for a session when there is none.
const DRAIN_SESSION_WAIT: Duration = Duration::from_secs(5);

/// What every attempt needs.
pub struct Shared {
    /// Where batches come from.
    pub spool: Spool,
    /// Where they go.
    pub s3: S3,
    /// Without a session nothing is tried.
    pub credentials: Credentials,
    /// The key prefix; empty for none.
    pub bucket_path: String,
    /// PUTs in flight, per log type.
    pub concurrency: usize,
    /// Signs each object's chain entry.
    pub signing_key: Option<SigningKey>,
    /// Time of each PUT that S3 confirmed.
    pub upload_duration: metrics::Histogram,
}

/// The running lanes. They have a thread of their own: who sends events shares the processor with an upload
/// as the system shares it between threads, and doesn't wait while an object is sent.
pub struct Flusher {
    runtime: Option<Runtime>,
    lanes: JoinSet<()>,
    drain: watch::Sender<Option<Instant>>,
    states: [Arc<Mutex<DeliveryStatus>>; 2],
}

impl Flusher {
    /// Starts a lane for each log type. Fails where no thread can be had.
    pub fn start(shared: Shared, sealed: [SealedBatches; 2]) -> io::Result<Flusher> {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("uploads")
            .on_thread_start(|| {
                // Where the system refuses, uploads are only less considerate.
                let _ = rustix::process::nice(NICENESS);
            })
            .enable_all()
            .build()?;
        let shared = Arc::new(shared);
        let (drain, drain_receiver) = watch::channel(None);
        let states: [Arc<Mutex<DeliveryStatus>>; 2] = Default::default();
        let mut lanes = JoinSet::new();
        for (log_type, sealed) in LogType::ALL.into_iter().zip(sealed) {
            let lane = Lane {
                shared: shared.clone(),
                log_type,
                queue: Queue::new(shared.concurrency, Instant::now()),
                in_flight: JoinSet::new(),
                failing: 0,
                told: BTreeSet::new(),
                state: states[log_type.index()].clone(),
                meters: UploadMeters::new(log_type),
            };
            lanes.spawn_on(lane.run(sealed, drain_receiver.clone()), runtime.handle());
        }
        Ok(Flusher { runtime: Some(runtime), lanes, drain, states })
    }

    /// Gives each waiting batch one more attempt; returns when all had it, or at `deadline`. What is not
    /// delivered by then stays in the spool.
    pub async fn drain(mut self, deadline: Instant) {
        self.drain.send_replace(Some(deadline));
        let _ = tokio::time::timeout_at(deadline, async { while self.lanes.join_next().await.is_some() {} }).await;
        self.lanes.abort_all();
    }

    /// What a log type's lane tells of itself.
    pub fn states(&self) -> [Arc<Mutex<DeliveryStatus>>; 2] {
        self.states.clone()
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        // An attempt that is under way, or hangs in the file system, must not hold up the exit.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Lane {
    shared: Arc<Shared>,
    log_type: LogType,
    queue: Queue,
    in_flight: JoinSet<(Waiting, Result<Stored, Failure>)>,
    /// Batches that failed and are not delivered yet.
    failing: usize,
    /// Kinds of failures that this outage has logged.
    told: BTreeSet<&'static str>,
    state: Arc<Mutex<DeliveryStatus>>,
    meters: UploadMeters,
}

/// How an attempt ended well.
enum Stored {
    Delivered,
    Quarantined,
}

/// How an attempt ended otherwise.
enum Failure {
    Put(PutError),
    /// The spool's disk failed; says nothing about S3.
    Disk(io::Error),
}

impl Failure {
    /// Whether the file may not be there any more, or not be what it was.
    fn doubts_the_file(&self) -> bool {
        match self {
            Failure::Put(error) => matches!(error.kind, PutErrorKind::ChecksumRefused | PutErrorKind::FileUnreadable),
            Failure::Disk(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }
}

impl Lane {
    async fn run(mut self, mut sealed: SealedBatches, mut drain: watch::Receiver<Option<Instant>>) {
        loop {
            let session = self.shared.credentials.session().is_some();
            // One moment for both: what becomes due between two would neither go nor wake.
            let now = Instant::now();
            if session {
                while let Some(waiting) = self.queue.next(now) {
                    self.in_flight.spawn(attempt(self.shared.clone(), waiting));
                }
            }
            if self.queue.is_drained() {
                return;
            }
            let wake = self.queue.next_wake(now);
            let needs_session = !session && self.queue.waiting().len() > 0;
            tokio::select! {
                Some(batch) = sealed.recv() => self.queue.add(batch, Instant::now()),
                Some(ended) = self.in_flight.join_next() => match ended {
                    Ok((waiting, result)) => self.settle(waiting, result),
                    // A panic ends the process; nothing else ends a task early.
                    Err(_) => return,
                },
                () = sleep_until(wake), if !needs_session => {}
                session = self.shared.credentials.wait_session(), if needs_session => self.session_came(&session),
                Ok(()) = drain.changed() => {
                    while let Ok(batch) = sealed.try_recv() {
                        self.queue.add(batch, Instant::now());
                    }
                    let deadline = *drain.borrow_and_update();
                    if let Some(deadline) = deadline && !self.begin_drain(deadline).await {
                        return;
                    }
                }
            }
        }
    }

    /// The end of an outage that no PUT has met.
    fn session_came(&self, session: &Session) {
        if let Some(outage) = session.outage_seconds
            && self.state().error.is_none()
        {
            tracing::info!(log_type = %self.log_type, outage.seconds = outage, backlog.bytes = self.backlog_bytes(), backlog.batches = self.queue.waiting().len(), "there is a session again, and uploads go on");
        }
    }

    fn backlog_bytes(&self) -> u64 {
        self.queue.waiting().map(|waiting| waiting.batch.bytes).sum()
    }

    /// Every waiting batch becomes due, once. False when there is no session to send them with.
    async fn begin_drain(&mut self, deadline: Instant) -> bool {
        let now = Instant::now();
        self.queue.drain(now);
        let patience = deadline.min(now + DRAIN_SESSION_WAIT);
        self.queue.waiting().len() == 0
            || tokio::time::timeout_at(patience, self.shared.credentials.wait_session()).await.is_ok()
    }

    fn settle(&mut self, waiting: Waiting, result: Result<Stored, Failure>) {
        let failure = match result {
            Ok(stored) => return self.succeeded(&waiting, &stored),
            Err(failure) => failure,
        };
        self.failing += usize::from(waiting.attempts == 0);
        let pause = backoff::full_jitter(waiting.attempts + 1, rand::random());
        let (kind, pause) = match &failure {
            Failure::Disk(_) => (None, pause),
            Failure::Put(error) => {
                self.meters.failed(error.kind);
                (Some(error.kind), pause_after(error, &waiting, pause))
            }
        };
        self.note_trouble(&failure);
        self.queue.failed(waiting, kind, pause, Instant::now(), rand::random());
    }

    fn succeeded(&mut self, waiting: &Waiting, stored: &Stored) {
        let batch = &waiting.batch;
        let key = object_key(&self.shared.bucket_path, self.log_type, &batch.name.batch);
        if matches!(stored, Stored::Delivered) {
            self.meters.delivered(batch);
            tracing::debug!(log_type = %self.log_type, s3.key = %key, batch.bytes = batch.bytes, batch.events = batch.name.records, "an object is in the bucket");
            let mut state = self.state();
            state.events_uploaded += batch.name.records;
            state.objects_uploaded += 1;
            state.last_objects.insert(
                0,
                ObjectStatus { key, bytes: batch.bytes, records: batch.name.records, uploaded_at: Timestamp::now() },
            );
            state.last_objects.truncate(LAST_OBJECTS);
        }
        self.queue.succeeded(waiting, Instant::now());
        if waiting.attempts > 0 {
            self.failing -= 1;
        }
        if self.failing == 0 {
            self.outage_ended();
        }
    }

    fn state(&self) -> MutexGuard<'_, DeliveryStatus> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outage_ended(&mut self) {
        self.told.clear();
        let mut state = self.state();
        let Some(Trouble { since, message, .. }) = state.error.take() else { return };
        let until = Timestamp::now();
        state.last_outage = Some(Outage { since, until, message });
        tracing::info!(log_type = %self.log_type, outage.seconds = until.seconds_since(since), backlog.bytes = self.backlog_bytes(), backlog.batches = self.queue.waiting().len(), "uploads work again");
    }

    /// Puts a failure into the status, and into the log when this outage has had none of its kind.
    fn note_trouble(&mut self, failure: &Failure) {
        let (kind, message, remedy) = match failure {
            Failure::Put(error) => (error.kind.as_str(), error.message.clone(), error.kind.remedy()),
            Failure::Disk(error) => {
                ("disk", format!("the spool's disk: {error}"), PutErrorKind::FileUnreadable.remedy())
            }
        };
        let (code, request_id) = match failure {
            Failure::Put(error) => (error.code.clone(), error.request_id.clone()),
            Failure::Disk(_) => (None, None),
        };
        // Without a session, the credentials say it.
        if self.told.insert(kind) && kind != PutErrorKind::NoSession.as_str() {
            tracing::warn!(
                log_type = %self.log_type, error.kind = kind, error.code = code, aws.request_id = request_id, remedy,
                "uploads fail: {message}; events stay in the spool and are tried again"
            );
        }
        let now = Timestamp::now();
        let mut state = self.state();
        let before = state.error.take();
        state.error = Some(Trouble {
            since: before.as_ref().map_or(now, |before| before.since),
            latest: now,
            attempts: before.map_or(0, |before| before.attempts) + 1,
            message,
            remedy: Some(remedy.to_owned()),
            code,
            request_id,
        });
    }
}

/// The pause that the error asks for, `backoff` at least; none the first time that a session is the reason: a new
/// one is on its way.
fn pause_after(error: &PutError, waiting: &Waiting, backoff: Duration) -> Duration {
    match error.kind {
        PutErrorKind::SessionRejected | PutErrorKind::NoSession if waiting.attempts == 0 => Duration::ZERO,
        _ => error.retry_after.unwrap_or_default().max(backoff),
    }
}

/// Never ends without a moment.
async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

/// One attempt to bring a batch to S3 and its file out of the way.
async fn attempt(shared: Arc<Shared>, mut waiting: Waiting) -> (Waiting, Result<Stored, Failure>) {
    let result = try_attempt(&shared, &mut waiting).await;
    (waiting, result)
}

async fn try_attempt(shared: &Shared, waiting: &mut Waiting) -> Result<Stored, Failure> {
    let folder = shared.spool.folder(waiting.batch.log_type);
    let batch = &mut waiting.batch;
    if !waiting.stored {
        let gaps: Vec<u64> = told_gaps(&folder);
        match send(shared, &folder, batch, &gaps).await {
            Ok(Sent::Now) => {
                waiting.stored = true;
                on_disk(&folder, batch, move |folder, _| folder.gaps_told(&gaps)).await.map_err(Failure::Disk)?;
            }
            Ok(Sent::Before) => waiting.stored = true,
            Err(failure) if failure.doubts_the_file() => {
                return match on_disk(&folder, batch, quarantine_if_changed).await {
                    Ok(true) => Ok(Stored::Quarantined),
                    Ok(false) => Err(failure),
                    Err(error) => Err(Failure::Disk(error)),
                };
            }
            Err(failure) => return Err(failure),
        }
    }
    on_disk(&folder, batch, Folder::delivered).await.map_err(Failure::Disk)?;
    Ok(Stored::Delivered)
}

/// How an object came to be in the bucket.
enum Sent {
    /// This attempt's own PUT was confirmed.
    Now,
    /// An earlier attempt, whose answer was lost, had stored it.
    Before,
}

/// One PUT, and what a 412 makes of it: our own object where an earlier attempt may have arrived,
/// another writer's otherwise, and then the batch takes a new suffix.
async fn send(shared: &Shared, folder: &Arc<Folder>, batch: &mut Batch, gaps: &[u64]) -> Result<Sent, Failure> {
    let mut renames = 0;
    loop {
        let first = !batch.may_have_arrived;
        on_disk(folder, batch, |folder, batch| folder.set_stage(batch, Stage::Sending)).await.map_err(Failure::Disk)?;
        batch.may_have_arrived = true;
        let started = Instant::now();
        let Err(error) = shared.s3.put(&put(shared, folder, batch, gaps)).await else {
            shared.upload_duration.record(started.elapsed());
            return Ok(Sent::Now);
        };
        // Without S3's document or request id, anything in between may have said so: nothing is delivered on its
        // word, and the batch is kept and tried again.
        if error.kind == PutErrorKind::NameTaken && !first && (error.code.is_some() || error.request_id.is_some()) {
            tracing::info!(log_type = %batch.log_type, batch.name = %batch.name.batch, "the object is in the bucket already: an earlier attempt had arrived");
            return Ok(Sent::Before);
        }
        // Whoever says so of a first attempt: a new name can only help.
        if error.kind == PutErrorKind::NameTaken && first && renames < RENAMES_MAX {
            renames += 1;
            batch.may_have_arrived = false;
            tracing::info!(log_type = %batch.log_type, batch.name = %batch.name.batch, "another writer owns the object's name; the batch takes a new suffix");
            on_disk(folder, batch, Folder::rename).await.map_err(Failure::Disk)?;
            continue;
        }
        if first && !error.may_have_arrived {
            batch.may_have_arrived = false;
            on_disk(folder, batch, |folder, batch| folder.set_stage(batch, Stage::Sealed))
                .await
                .map_err(Failure::Disk)?;
        }
        return Err(Failure::Put(error));
    }
}

/// The gaps that one object's metadata can tell of.
fn told_gaps(folder: &Folder) -> Vec<u64> {
    let mut gaps = folder.gaps();
    let fit = Gaps::that_fit(&gaps);
    gaps.retain(|gap| fit.contains(*gap));
    gaps
}

fn put(shared: &Shared, folder: &Folder, batch: &Batch, gaps: &[u64]) -> Put {
    let name = &batch.name;
    let entry = ChainEntry {
        key: object_key(&shared.bucket_path, batch.log_type, &name.batch),
        renamed_from: name.batch.renamed_from,
        instance: shared.spool.chain_instance(batch.log_type).to_owned(),
        log_type: batch.log_type,
        sequence: name.sequence,
        records: name.records,
        sha256: name.sha256,
        previous: name.previous,
        gaps: Gaps::that_fit(gaps),
    };
    Put {
        metadata: entry.metadata(shared.signing_key.as_ref()),
        key: entry.key,
        file: folder.batch_path(batch),
        bytes: batch.bytes,
        sha256: name.sha256,
        timeout: ATTEMPT_BASE + Duration::from_secs(batch.bytes / SLOWEST_BYTES_PER_SECOND),
    }
}

/// Two readings, so that one bad read doesn't condemn a good file. One that somebody removed is beyond reading.
fn quarantine_if_changed(folder: &Folder, batch: &mut Batch) -> io::Result<bool> {
    for _ in 0..2 {
        match folder.rehash(batch) {
            Ok(sha256) if sha256 == batch.name.sha256 => return Ok(false),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    folder.quarantine(batch)?;
    tracing::error!(log_type = %batch.log_type, batch.name = %batch.name.batch, batch.sequence = batch.name.sequence, batch.events = batch.name.records, "a sealed batch's file is gone or its bytes have changed on disk; what is left of it is in quarantine, see config/README.md#quarantined");
    Ok(true)
}

/// Runs a file system operation on a thread that may block; the batch keeps the name that its file has,
/// whatever the outcome.
async fn on_disk<T: Send + 'static>(
    folder: &Arc<Folder>,
    batch: &mut Batch,
    operation: impl FnOnce(&Folder, &mut Batch) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let folder = folder.clone();
    let mut moved = batch.clone();
    let run = move || {
        let result = operation(&folder, &mut moved);
        (moved, result)
    };
    let (moved, result) = tokio::task::spawn_blocking(run).await.map_err(io::Error::other)?;
    *batch = moved;
    result
}

#[cfg(test)]
mod tests;
