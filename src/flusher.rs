//! Uploads sealed batches to S3, oldest first, and tries again with growing pauses where that fails. Each log type has
//! a lane with a queue, slots and pauses of its own, so that one type's failures never delay the other. The lanes share
//! the session, the S3 client and one thread.

mod attempt;
pub(crate) mod delivery;
mod meters;
mod queue;

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::background::Background;
use crate::backoff;
use crate::batch::{ByType, LogType, object_key};
use crate::credentials::Session;
pub use crate::flusher::attempt::Uploads;
use crate::flusher::attempt::{Failure, Stored, attempt};
use crate::flusher::meters::UploadMeters;
use crate::flusher::queue::{Queue, Waiting};
use crate::s3::{PutError, PutErrorKind};
use crate::spool::SealedBatches;
use crate::status::{DeliveryStatus, LAST_OBJECTS, ObjectStatus, Outage, SpooledStatus, Timestamp, Trouble};

/// How many untried batches a lane takes into its queue. The others stay in the spool's list, which takes less memory.
const UNTRIED_MAX: usize = 1024;
/// How long a shutdown waits for a session when there is none.
const DRAIN_SESSION_WAIT: Duration = Duration::from_secs(5);

/// The running lanes, on a thread of their own.
pub struct Flusher {
    lanes: JoinSet<()>,
    drain: watch::Sender<Option<Instant>>,
    states: ByType<Arc<Mutex<DeliveryStatus>>>,
    _background: Background,
}

impl Flusher {
    /// Starts a lane for each log type. Fails where no thread can be started.
    pub fn start(uploads: Uploads, sealed: ByType<SealedBatches>) -> io::Result<Flusher> {
        let background = Background::start("uploads")?;
        let uploads = Arc::new(uploads);
        let (drain, drain_receiver) = watch::channel(None);
        let states: ByType<Arc<Mutex<DeliveryStatus>>> = Default::default();
        let mut lanes = JoinSet::new();
        for (log_type, sealed) in sealed {
            let lane = Lane {
                uploads: uploads.clone(),
                log_type,
                queue: Queue::new(uploads.concurrency, Instant::now()),
                in_flight: JoinSet::new(),
                failing: 0,
                objects_confirmed: 0,
                logged: HashSet::new(),
                state: states[log_type].clone(),
                meters: UploadMeters::new(log_type),
            };
            lanes.spawn_on(lane.run(sealed, drain_receiver.clone()), background.handle());
        }
        Ok(Flusher { lanes, drain, states, _background: background })
    }

    /// Gives each waiting batch one more attempt; returns when all had theirs, or at `deadline`. Batches that are not
    /// delivered by then stay in the spool.
    pub async fn drain(mut self, deadline: Instant) {
        self.drain.send_replace(Some(deadline));
        let _ = tokio::time::timeout_at(deadline, async { while self.lanes.join_next().await.is_some() {} }).await;
        self.lanes.abort_all();
    }

    /// The delivery status of each log type's lane, which the lane keeps up to date.
    pub fn states(&self) -> ByType<Arc<Mutex<DeliveryStatus>>> {
        self.states.clone()
    }
}

struct Lane {
    uploads: Arc<Uploads>,
    log_type: LogType,
    queue: Queue,
    in_flight: JoinSet<(Waiting, Result<Stored, Failure>)>,
    /// Batches that failed and are not delivered yet.
    failing: usize,
    /// Objects that the store has confirmed since the start.
    objects_confirmed: u64,
    /// Kinds of failures that were logged in this outage.
    logged: HashSet<PutErrorKind>,
    state: Arc<Mutex<DeliveryStatus>>,
    meters: UploadMeters,
}

impl Lane {
    async fn run(mut self, mut sealed: SealedBatches, mut drain: watch::Receiver<Option<Instant>>) {
        loop {
            self.fill_queue(&mut sealed);
            let session = self.uploads.credentials.session().is_some();
            // The clock is read once for both `next` and `next_wake`. Were it read twice, a batch that became due
            // between the two readings would be neither sent nor waited for.
            let now = Instant::now();
            if session {
                while let Some(mut waiting) = self.queue.next(now) {
                    waiting.known.object_since = self.objects_confirmed > waiting.objects_confirmed_before;
                    self.in_flight.spawn(attempt(self.uploads.clone(), waiting));
                    self.fill_queue(&mut sealed);
                }
            }
            if self.queue.is_drained() {
                return;
            }
            let wake = self.queue.next_wake(now);
            let needs_session = !session && !self.queue.is_empty();
            let takes_more = self.queue.untried() < UNTRIED_MAX;
            tokio::select! {
                Some(batch) = sealed.recv(), if takes_more => self.queue.add(batch),
                Some(ended) = self.in_flight.join_next() => match ended {
                    Ok((waiting, result)) => self.settle(waiting, result),
                    // Never reached: a panic ends the process, and nothing cancels the task.
                    Err(_) => return,
                },
                () = sleep_until(wake), if !needs_session => {}
                session = self.uploads.credentials.wait_session(), if needs_session => self.session_came(&session),
                Ok(()) = drain.changed() => {
                    self.fill_queue(&mut sealed);
                    let deadline = *drain.borrow_and_update();
                    if let Some(deadline) = deadline && !self.begin_drain(deadline).await {
                        return;
                    }
                }
            }
        }
    }

    /// Takes batches that the spool announced into the queue, up to [`UNTRIED_MAX`].
    fn fill_queue(&mut self, sealed: &mut SealedBatches) {
        while self.queue.untried() < UNTRIED_MAX
            && let Some(batch) = sealed.try_recv()
        {
            self.queue.add(batch);
        }
    }

    /// Logs the end of an outage of sessions, where no PUT failed meanwhile and so none will report it.
    fn session_came(&self, session: &Session) {
        if let Some(outage) = session.outage_seconds
            && self.state().error.is_none()
        {
            let backlog = self.backlog();
            tracing::info!(log_type = %self.log_type, outage.seconds = outage, backlog.bytes = backlog.spool_bytes, backlog.batches = backlog.batches, "there is a session again, and uploads go on");
        }
    }

    fn backlog(&self) -> SpooledStatus {
        self.uploads.spool.folder(self.log_type).status("")
    }

    /// Makes every waiting batch due once more. False when no session comes to send them with.
    async fn begin_drain(&mut self, deadline: Instant) -> bool {
        let now = Instant::now();
        self.queue.drain();
        let patience = deadline.min(now + DRAIN_SESSION_WAIT);
        self.queue.is_empty()
            || tokio::time::timeout_at(patience, self.uploads.credentials.wait_session()).await.is_ok()
    }

    fn settle(&mut self, mut waiting: Waiting, result: Result<Stored, Failure>) {
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
                if error.kind == PutErrorKind::NameTakenUnproven {
                    waiting.objects_confirmed_before = self.objects_confirmed;
                }
                (Some(error.kind), pause_after(error, &waiting, pause))
            }
        };
        self.report(&failure);
        self.queue.failed(waiting, kind, pause, Instant::now(), rand::random());
    }

    fn succeeded(&mut self, waiting: &Waiting, stored: &Stored) {
        let batch = &waiting.batch;
        let key = object_key(&self.uploads.bucket_path, self.log_type, &batch.name.batch);
        if matches!(stored, Stored::Delivered) {
            self.objects_confirmed += 1;
            self.meters.delivered(batch);
            if self.objects_confirmed == 1 {
                tracing::info!(log_type = %self.log_type, s3.key = %key, batch.events = batch.name.records, "the first object since the start is in the bucket");
            } else {
                tracing::debug!(log_type = %self.log_type, s3.key = %key, batch.bytes = batch.bytes, batch.events = batch.name.records, "an object is in the bucket");
            }
            let mut state = self.state();
            state.events_uploaded += batch.name.records;
            state.objects_uploaded += 1;
            state.last_objects.insert(
                0,
                ObjectStatus { key, bytes: batch.bytes, records: batch.name.records, uploaded_at: Timestamp::now() },
            );
            state.last_objects.truncate(LAST_OBJECTS);
        }
        self.queue.succeeded(waiting);
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
        self.logged.clear();
        let mut state = self.state();
        let Some(Trouble { since, message, .. }) = state.error.take() else { return };
        let until = Timestamp::now();
        state.last_outage = Some(Outage { since, until, message });
        drop(state);
        let backlog = self.backlog();
        tracing::info!(log_type = %self.log_type, outage.seconds = until.seconds_since(since), backlog.bytes = backlog.spool_bytes, backlog.batches = backlog.batches, "uploads work again");
    }

    /// Puts a failure into the status, and logs it if it is the first of its kind in this outage.
    fn report(&mut self, failure: &Failure) {
        let (kind, message) = match failure {
            Failure::Put(error) => (error.kind, error.message.clone()),
            Failure::Disk(error) => (PutErrorKind::FileUnreadable, format!("the spool's disk: {error}")),
        };
        let (code, request_id) = match failure {
            Failure::Put(error) => (error.code.clone(), error.request_id.clone()),
            Failure::Disk(_) => (None, None),
        };
        let remedy = kind.remedy(code.as_deref());
        // A missing session is logged by the credentials.
        if self.logged.insert(kind) && kind != PutErrorKind::NoSession {
            tracing::warn!(
                log_type = %self.log_type, error.kind = kind.as_str(), error.code = code, aws.request_id = request_id, remedy,
                "uploads fail: {message}; events stay in the spool and are tried again"
            );
        }
        let mut state = self.state();
        let before = state.error.take();
        let trouble = Trouble::now(before, message, remedy, code, request_id);
        state.error = Some(Trouble { kind: Some(kind.as_str().to_owned()), ..trouble });
    }
}

/// The pause that the error asks for, at least `backoff`. There is none the first time that the session is the reason,
/// because a new one has been asked for already.
fn pause_after(error: &PutError, waiting: &Waiting, backoff: Duration) -> Duration {
    match error.kind {
        PutErrorKind::SessionRejected | PutErrorKind::NoSession if waiting.attempts == 0 => Duration::ZERO,
        _ => error.retry_after.unwrap_or_default().max(backoff),
    }
}

/// Sleeps until `wake`; for ever without one.
async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
