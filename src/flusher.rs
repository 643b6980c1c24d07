//! Sealed batch → PUT → gone, or back off and try again. One lane a log type, oldest first; the lanes
//! share nothing, so that one type's failures never delay the other.

mod meters;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::backoff;
use crate::batch::{LogType, Stage, object_key};
use crate::chain::{ChainEntry, Gaps, SigningKey};
use crate::credentials::{Credentials, Session};
use crate::flusher::meters::UploadMeters;
use crate::s3::{Put, PutError, PutErrorKind, S3};
use crate::spool::folder::Folder;
use crate::spool::{Batch, SealedBatches, Spool};
use crate::status::{DeliveryStatus, LAST_OBJECTS, ObjectStatus, Outage, Timestamp, Trouble};

/// An attempt may take this long, and its size at [`SLOWEST_BYTES_PER_SECOND`] on top (contract section 5).
const ATTEMPT_BASE: Duration = Duration::from_secs(30);
const SLOWEST_BYTES_PER_SECOND: u64 = 64 * 1024;
/// After this many failures in a row the type sends one batch at a time, with a pause before each,
/// so that a backlog of thousands doesn't knock on a closed door thousands of times a minute.
const OUTAGE_AFTER_FAILURES: u32 = 16;
/// New suffixes tried at once when another writer owns the name; more is left to the next attempt.
const RENAMES_MAX: usize = 8;
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
    /// Time of each PUT, failed ones included.
    pub upload_duration: metrics::Histogram,
}

/// The running lanes.
pub struct Flusher {
    lanes: JoinSet<()>,
    drain: watch::Sender<Option<Instant>>,
    states: [Arc<Mutex<DeliveryStatus>>; 2],
}

impl Flusher {
    /// Starts a lane for each log type.
    pub fn start(shared: Shared, sealed: [SealedBatches; 2]) -> Flusher {
        let shared = Arc::new(shared);
        let (drain, drain_receiver) = watch::channel(None);
        let states: [Arc<Mutex<DeliveryStatus>>; 2] = Default::default();
        let mut lanes = JoinSet::new();
        for (log_type, sealed) in LogType::ALL.into_iter().zip(sealed) {
            let lane = Lane {
                shared: shared.clone(),
                log_type,
                waiting: BTreeMap::new(),
                in_flight: JoinSet::new(),
                retries_in_flight: 0,
                one_at_a_time: false,
                failures: 0,
                not_before: Instant::now(),
                failing: 0,
                draining: false,
                state: states[log_type.index()].clone(),
                meters: UploadMeters::new(log_type),
            };
            lanes.spawn(lane.run(sealed, drain_receiver.clone()));
        }
        Flusher { lanes, drain, states }
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

/// A batch that is not in flight.
struct Waiting {
    batch: Batch,
    attempts: u32,
    not_before: Instant,
    /// S3 has it; only its file is left to go.
    stored: bool,
}

struct Lane {
    shared: Arc<Shared>,
    log_type: LogType,
    /// By sequence.
    waiting: BTreeMap<u64, Waiting>,
    in_flight: JoinSet<(Waiting, Result<Stored, Failure>)>,
    retries_in_flight: usize,
    /// After a time-out, until an attempt succeeds.
    one_at_a_time: bool,
    /// In a row.
    failures: u32,
    /// In an outage: when the next attempt may be.
    not_before: Instant,
    /// Batches that failed and are not delivered yet.
    failing: usize,
    draining: bool,
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
    Disk(std::io::Error),
}

impl Lane {
    async fn run(mut self, mut sealed: SealedBatches, mut drain: watch::Receiver<Option<Instant>>) {
        loop {
            self.fill_slots();
            if self.draining && self.in_flight.is_empty() && self.waiting.is_empty() {
                return;
            }
            let wake = self.next_wake();
            let needs_session = !self.waiting.is_empty() && self.shared.credentials.session().is_none();
            tokio::select! {
                Some(batch) = sealed.recv() => self.take(batch),
                Some(ended) = self.in_flight.join_next() => match ended {
                    Ok((waiting, result)) => self.settle(waiting, result),
                    // A panic ends the process; nothing else ends a task early.
                    Err(_) => return,
                },
                () = tokio::time::sleep_until(wake), if !needs_session => {}
                session = self.shared.credentials.wait_session(), if needs_session => self.session_came(&session),
                Ok(()) = drain.changed() => {
                    while let Ok(batch) = sealed.try_recv() {
                        self.take(batch);
                    }
                    let deadline = *drain.borrow_and_update();
                    if let Some(deadline) = deadline && !self.begin_drain(deadline).await {
                        return;
                    }
                }
            }
        }
    }

    fn take(&mut self, batch: Batch) {
        let waiting = Waiting { batch, attempts: 0, not_before: Instant::now(), stored: false };
        self.waiting.insert(waiting.batch.name.sequence, waiting);
    }

    /// The end of an outage that no PUT has met.
    fn session_came(&self, session: &Session) {
        if let Some(outage) = session.outage_seconds
            && self.state().error.is_none()
        {
            tracing::info!(log_type = %self.log_type, outage.seconds = outage, backlog.bytes = self.backlog_bytes(), backlog.batches = self.waiting.len(), "there is a session again, and uploads go on");
        }
    }

    fn backlog_bytes(&self) -> u64 {
        self.waiting.values().map(|waiting| waiting.batch.bytes).sum()
    }

    /// Every waiting batch becomes due, once. False when there is no session to send them with.
    async fn begin_drain(&mut self, deadline: Instant) -> bool {
        let now = Instant::now();
        self.draining = true;
        self.not_before = now;
        for waiting in self.waiting.values_mut() {
            waiting.not_before = now;
        }
        let patience = deadline.min(now + DRAIN_SESSION_WAIT);
        self.waiting.is_empty()
            || tokio::time::timeout_at(patience, self.shared.credentials.wait_session()).await.is_ok()
    }

    fn slots(&self) -> usize {
        let in_outage = self.failures >= OUTAGE_AFTER_FAILURES && !self.draining;
        if self.one_at_a_time || in_outage { 1 } else { self.shared.concurrency }
    }

    fn fill_slots(&mut self) {
        while self.in_flight.len() < self.slots() {
            let Some(sequence) = self.next_due() else { return };
            let Some(waiting) = self.waiting.remove(&sequence) else { return };
            self.retries_in_flight += usize::from(waiting.attempts > 0);
            self.in_flight.spawn(attempt(self.shared.clone(), waiting));
        }
    }

    /// The oldest batch that may be tried now. One slot is left to those not tried yet.
    fn next_due(&self) -> Option<u64> {
        let now = Instant::now();
        if self.shared.credentials.session().is_none() || (now < self.not_before && !self.draining) {
            return None;
        }
        let slots = self.slots();
        let retry_may_go = slots == 1 || self.retries_in_flight + 1 < slots || self.draining;
        let due = |waiting: &&Waiting| waiting.not_before <= now && (waiting.attempts == 0 || retry_may_go);
        self.waiting.values().find(due).map(|waiting| waiting.batch.name.sequence)
    }

    /// When something becomes due by time alone.
    fn next_wake(&self) -> Instant {
        const FAR: Duration = Duration::from_secs(3600);
        let now = Instant::now();
        if self.in_flight.len() >= self.slots() {
            return now + FAR;
        }
        let next =
            self.waiting.values().map(|waiting| waiting.not_before.max(self.not_before)).filter(|due| *due > now).min();
        next.unwrap_or(now + FAR)
    }

    fn settle(&mut self, mut waiting: Waiting, result: Result<Stored, Failure>) {
        if waiting.attempts > 0 {
            self.retries_in_flight -= 1;
        }
        match result {
            Ok(stored) => self.succeeded(&waiting, &stored),
            Err(failure) => {
                waiting.attempts += 1;
                if waiting.attempts == 1 {
                    self.failing += 1;
                }
                let mut pause = backoff::full_jitter(waiting.attempts, rand::random());
                match failure {
                    Failure::Disk(error) => {
                        tracing::warn!(log_type = %self.log_type, batch.name = %waiting.batch.name.batch, %error, "the spool's disk fails a batch on its way; trying again");
                    }
                    Failure::Put(error) => {
                        pause = self.failed(&waiting, &error).unwrap_or(pause);
                    }
                }
                waiting.not_before = Instant::now() + pause;
                if !self.draining || waiting.stored {
                    self.waiting.insert(waiting.batch.name.sequence, waiting);
                }
            }
        }
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
        if self.failures >= OUTAGE_AFTER_FAILURES || self.one_at_a_time {
            // The door is open again: nobody waits for a pause that the outage set.
            let now = Instant::now();
            self.waiting.values_mut().for_each(|waiting| waiting.not_before = waiting.not_before.min(now));
        }
        self.failures = 0;
        self.one_at_a_time = false;
        self.not_before = Instant::now();
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

    fn outage_ended(&self) {
        let mut state = self.state();
        let Some(Trouble { since, message, .. }) = state.error.take() else { return };
        let until = Timestamp::now();
        state.last_outage = Some(Outage { since, until, message });
        tracing::info!(log_type = %self.log_type, outage.seconds = until.seconds_since(since), backlog.bytes = self.backlog_bytes(), backlog.batches = self.waiting.len(), "uploads work again");
    }

    /// Takes note of a failed PUT; a pause that the error asks for.
    fn failed(&mut self, waiting: &Waiting, error: &PutError) -> Option<Duration> {
        self.meters.failed(error.kind);
        self.failures = self.failures.saturating_add(1);
        self.one_at_a_time |= error.kind == PutErrorKind::Timeout;
        if self.failures >= OUTAGE_AFTER_FAILURES {
            self.not_before =
                Instant::now() + backoff::full_jitter(self.failures - OUTAGE_AFTER_FAILURES + 1, rand::random());
        }
        if self.note_trouble(error) && error.kind != PutErrorKind::NoSession {
            tracing::warn!(
                log_type = %self.log_type, error.kind = error.kind.as_str(), error.code = error.code, aws.request_id = error.request_id,
                remedy = error.kind.remedy(), "uploads fail: {}; events stay in the spool and are tried again", error.message
            );
        }
        match error.kind {
            // A new session is on its way; the first time nothing else needs to pass.
            PutErrorKind::SessionRejected | PutErrorKind::NoSession if waiting.attempts <= 1 => Some(Duration::ZERO),
            _ => error.retry_after,
        }
    }
}

impl Lane {
    /// Puts the error into the status; whether that is a change worth a log line.
    fn note_trouble(&self, error: &PutError) -> bool {
        let now = Timestamp::now();
        let mut state = self.state();
        let before = state.error.take();
        let changed = before
            .as_ref()
            .is_none_or(|before| before.code != error.code || before.remedy.as_deref() != Some(error.kind.remedy()));
        state.error = Some(Trouble {
            since: before.as_ref().map_or(now, |before| before.since),
            latest: now,
            attempts: before.map_or(0, |before| before.attempts) + 1,
            message: error.message.clone(),
            remedy: Some(error.kind.remedy().to_owned()),
            code: error.code.clone(),
            request_id: error.request_id.clone(),
        });
        changed
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
            Err(Failure::Put(error))
                if matches!(error.kind, PutErrorKind::ChecksumRefused | PutErrorKind::FileUnreadable) =>
            {
                return match on_disk(&folder, batch, quarantine_if_changed).await {
                    Ok(true) => Ok(Stored::Quarantined),
                    Ok(false) => Err(Failure::Put(error)),
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
        let outcome = shared.s3.put(&put(shared, folder, batch, gaps)).await;
        shared.upload_duration.record(started.elapsed());
        let Err(error) = outcome else { return Ok(Sent::Now) };
        if error.kind == PutErrorKind::NameTaken && !first {
            tracing::info!(log_type = %batch.log_type, batch.name = %batch.name.batch, "the object is in the bucket already: an earlier attempt had arrived");
            return Ok(Sent::Before);
        }
        if error.kind == PutErrorKind::NameTaken && renames < RENAMES_MAX {
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

/// Two readings, so that one bad read doesn't condemn a good file.
fn quarantine_if_changed(folder: &Folder, batch: &mut Batch) -> std::io::Result<bool> {
    for _ in 0..2 {
        if !folder.is_quarantined(batch) && folder.rehash(batch)? == batch.name.sha256 {
            return Ok(false);
        }
    }
    folder.quarantine(batch)?;
    tracing::error!(log_type = %batch.log_type, batch.name = %batch.name.batch, batch.sequence = batch.name.sequence, batch.events = batch.name.records, "a sealed batch's bytes have changed on disk; it is in quarantine, see README#quarantined");
    Ok(true)
}

/// Runs a file system operation on a thread that may block; the batch keeps the name that its file has,
/// whatever the outcome.
async fn on_disk<T: Send + 'static>(
    folder: &Arc<Folder>,
    batch: &mut Batch,
    operation: impl FnOnce(&Folder, &mut Batch) -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    let folder = folder.clone();
    let mut moved = batch.clone();
    let run = move || {
        let result = operation(&folder, &mut moved);
        (moved, result)
    };
    let (moved, result) = tokio::task::spawn_blocking(run).await.map_err(std::io::Error::other)?;
    *batch = moved;
    result
}
