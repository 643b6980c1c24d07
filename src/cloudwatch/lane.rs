//! Sends the batches that S3 has to CloudWatch and removes their copies, or tries again after a pause.
//! Each log type has a lane, which sends the oldest copy first. Nothing else waits for it: when events
//! need the room, copies are given up.

mod meters;
mod reading;

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use rustix::io::Errno;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::background::{Background, blocking};
use crate::backoff;
use crate::batch::{self, ByType, LogType, object_key};
use crate::cloudwatch::calls::Event;
use crate::cloudwatch::error::{LogsError, LogsErrorKind};
use crate::cloudwatch::lane::meters::Meters;
use crate::cloudwatch::lane::meters::UNTAKEN;
use crate::cloudwatch::lane::reading::{Reading, next_call, open};
use crate::cloudwatch::logs::Logs;
use crate::credentials::Credentials;
use crate::spool::Spool;
use crate::spool::copies::{BatchCopy, Copies, GivenUp};
use crate::status::{CloudWatchStatus, CloudWatchTypeStatus, Timestamp, Trouble};
use crate::volume;

/// CloudWatch takes no event that is older than 14 days; a call may take a while.
const TOO_OLD: TimeDelta = TimeDelta::days(13);
/// Tries to read a file that can't be read, before its batch is given up.
const READS_MAX: u32 = 3;
/// Tries of one call while the daemon ends; then what is left waits for the next start.
const LAST_ATTEMPTS: u32 = 3;
/// How often a batch that waits for a session is looked at for its age.
const LOOK_AT_AGE: Duration = Duration::from_secs(3600);
/// How long the end waits for a session when there is none.
const LAST_SESSION_WAIT: Duration = Duration::from_secs(5);

/// What both lanes need.
pub struct Copying {
    /// Where the copies are.
    pub spool: Spool,
    /// Batches that S3 has and CloudWatch doesn't.
    pub copies: Arc<Copies>,
    /// Where they go.
    pub logs: Logs,
    /// Sessions of the role for CloudWatch.
    pub credentials: Credentials,
    /// The key prefix of the objects in S3; empty for none.
    pub bucket_path: String,
}

/// The running lanes, on a thread of their own.
pub struct Lanes {
    lanes: JoinSet<()>,
    ending: watch::Sender<bool>,
    watched: Watched,
    _background: Background,
}

/// What the lanes tell of themselves. Cloning shares it.
#[derive(Clone)]
pub struct Watched {
    copying: Arc<Copying>,
    states: ByType<Arc<Mutex<State>>>,
}

/// One lane's figures since the start.
#[derive(Default)]
struct State {
    events_sent: u64,
    /// In calls that CloudWatch answered.
    events_skipped: u64,
    last_sent: Option<Timestamp>,
    error: Option<Trouble>,
}

impl Lanes {
    /// Starts a lane for each log type. Fails where no thread can be had.
    pub fn start(copying: Copying) -> io::Result<Lanes> {
        let background = Background::start("cloudwatch")?;
        let watched = Watched { copying: Arc::new(copying), states: Default::default() };
        let (ending, ending_receiver) = watch::channel(false);
        let mut lanes = JoinSet::new();
        for log_type in LogType::ALL {
            let lane = Lane {
                copying: watched.copying.clone(),
                log_type,
                ending: ending_receiver.clone(),
                logged: BTreeSet::new(),
                state: watched.states[log_type].clone(),
                meters: Meters::new(log_type),
                started: (batch::now(), Instant::now()),
            };
            lanes.spawn_on(lane.run(), background.handle());
        }
        Ok(Lanes { lanes, ending, watched, _background: background })
    }

    /// Sends what waits; returns when all is sent or when what is left fails. What is left then, or when the caller
    /// doesn't wait, is sent after the next start.
    pub async fn drain(&mut self) {
        self.ending.send_replace(true);
        while self.lanes.join_next().await.is_some() {}
    }

    /// What they tell of themselves.
    pub fn watched(&self) -> Watched {
        self.watched.clone()
    }
}

impl Watched {
    /// For `/status`.
    pub fn status(&self) -> CloudWatchStatus {
        let Copying { spool, copies, logs, credentials, .. } = &*self.copying;
        let of_type = |log_type: LogType| {
            let left = copies.left(log_type);
            let state = self.states[log_type].lock().unwrap_or_else(PoisonError::into_inner);
            CloudWatchTypeStatus {
                log_type,
                group: logs.group(log_type),
                batches: left.batches as u64,
                bytes: left.bytes,
                oldest: left.oldest.map(Timestamp),
                events_sent: state.events_sent,
                events_skipped: copies.skipped_events(log_type) + state.events_skipped,
                last_sent: state.last_sent,
                error: spool.copies_away().or_else(|| state.error.clone()),
            }
        };
        let (stream, types) = (logs.stream().to_owned(), LogType::ALL.map(of_type).into());
        CloudWatchStatus { stream, types, credentials: credentials.status() }
    }
}

struct Lane {
    copying: Arc<Copying>,
    log_type: LogType,
    /// Whether the daemon ends.
    ending: watch::Receiver<bool>,
    /// What this outage has logged.
    logged: BTreeSet<&'static str>,
    state: Arc<Mutex<State>>,
    meters: Meters,
    /// The lane's start, by the machine's clock and by one that does not jump.
    started: (DateTime<Utc>, Instant),
}

/// Why a copy is not being sent any further.
enum Stopped {
    /// It was given up.
    GivenUp,
    /// The daemon ends, and CloudWatch doesn't take it now.
    Ending,
}

impl Lane {
    async fn run(mut self) {
        loop {
            let copies = self.copying.copies.clone();
            let waiting = copies.oldest(self.log_type);
            if waiting.is_none() && self.is_ending() {
                return;
            }
            let copy = match waiting {
                Some(copy) => copy,
                None => tokio::select! {
                    copy = copies.next(self.log_type) => copy,
                    _ = self.ending.changed() => continue,
                },
            };
            match self.send(&copy).await {
                Ok(()) => blocking(move || copies.delivered(&copy)).await,
                Err(Stopped::GivenUp) => {}
                Err(Stopped::Ending) => return,
            }
        }
    }

    fn is_ending(&self) -> bool {
        *self.ending.borrow()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends all of a copy's lines, oldest call first. A file that can't be read is read again from its start: what was
    /// sent of it then is in CloudWatch twice.
    async fn send(&mut self, copy: &BatchCopy) -> Result<(), Stopped> {
        let (mut reads, mut failures) = (0, 0);
        loop {
            self.check_age(copy)?;
            let Err(error) = self.read_and_send(copy).await? else { return Ok(()) };
            self.check_waits(copy)?;
            // Where the path leads elsewhere, nothing is wrong with a file that is missing there.
            reads += u32::from(is_the_files(&error) && self.copying.copies.confirm().is_ok());
            if reads >= READS_MAX {
                tracing::debug!(log_type = %self.log_type, batch.name = %copy.name.batch, %error, "a batch that CloudWatch was to have can't be read");
                self.copying.copies.give_up(copy, GivenUp::Unreadable);
                return Err(Stopped::GivenUp);
            }
            if self.is_ending() {
                return Err(Stopped::Ending);
            }
            failures += 1;
            self.pause(tokio::time::sleep(backoff::full_jitter(failures, rand::random()))).await;
        }
    }

    /// The inner error is the file's.
    async fn read_and_send(&mut self, copy: &BatchCopy) -> Result<io::Result<()>, Stopped> {
        let key = object_key(&self.copying.bucket_path, self.log_type, &copy.name.batch);
        let (copying, found) = (self.copying.clone(), *copy);
        let mut reading: Reading = match blocking(move || open(&copying.spool, &found, key)).await {
            Ok(reading) => reading,
            Err(error) => return Ok(Err(error)),
        };
        loop {
            let (rest, call) = blocking(move || next_call(reading)).await;
            reading = rest;
            match call {
                Ok(Some(events)) => self.put(copy, events).await?,
                Ok(None) => {
                    // A file that is being removed ends too early.
                    self.check_waits(copy)?;
                    return Ok(Ok(()));
                }
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    /// Sends one call, however often CloudWatch refuses. Where it says that it can't take these events, they are sent
    /// by halves, and one that it can't take alone is left out.
    async fn put(&mut self, copy: &BatchCopy, events: Vec<Event>) -> Result<(), Stopped> {
        let mut parts = vec![events];
        let mut attempts = 0;
        while let Some(events) = parts.pop() {
            // What was read of a file that is being removed may be no event at all.
            self.check_waits(copy)?;
            self.check_age(copy)?;
            let error = match self.copying.logs.put(self.log_type, &events).await {
                Ok(rejected) => {
                    attempts = 0;
                    let untaken = [rejected.too_old, rejected.too_new, rejected.expired, 0];
                    self.answered(events.len(), untaken);
                    continue;
                }
                Err(error) => error,
            };
            self.meters.failed(error.kind);
            // Half of what a proxy calls too large may pass. Only CloudWatch can say that one event is too large.
            if error.kind == LogsErrorKind::Events || (error.status == Some(413) && events.len() > 1) {
                self.take_apart(&error, events, &mut parts);
                continue;
            }
            attempts += 1;
            self.report(&error);
            parts.push(events);
            if self.is_ending() && attempts >= LAST_ATTEMPTS {
                return Err(Stopped::Ending);
            }
            self.wait_after(&error, attempts).await?;
        }
        Ok(())
    }

    fn take_apart(&mut self, error: &LogsError, mut events: Vec<Event>, parts: &mut Vec<Vec<Event>>) {
        if events.len() == 1 {
            if self.logged.insert("event") {
                tracing::warn!(log_type = %self.log_type, "CloudWatch does not take an event, which is left out there and is in S3: {error}");
            }
            return self.answered(1, [0, 0, 0, 1]);
        }
        let second = events.split_off(events.len() / 2);
        parts.push(second);
        parts.push(events);
    }

    async fn wait_after(&mut self, error: &LogsError, attempts: u32) -> Result<(), Stopped> {
        if error.kind == LogsErrorKind::NoSession {
            let credentials = self.copying.credentials.clone();
            if self.is_ending() {
                let waited = tokio::time::timeout(LAST_SESSION_WAIT, credentials.wait_session()).await;
                return waited.map(drop).map_err(|_| Stopped::Ending);
            }
            // Not for ever: its batch grows too old meanwhile.
            self.pause(tokio::time::timeout(LOOK_AT_AGE, credentials.wait_session())).await;
            return Ok(());
        }
        let pause = backoff::full_jitter(attempts, rand::random()).max(error.retry_after.unwrap_or_default());
        self.pause(tokio::time::sleep(pause)).await;
        Ok(())
    }

    /// Waits. When the daemon begins to end, one wait is cut short.
    async fn pause(&mut self, wait: impl Future) {
        if self.is_ending() {
            wait.await;
            return;
        }
        tokio::select! {
            _ = wait => {}
            _ = self.ending.changed() => {}
        }
    }

    fn check_waits(&self, copy: &BatchCopy) -> Result<(), Stopped> {
        if self.copying.copies.contains(copy) { Ok(()) } else { Err(Stopped::GivenUp) }
    }

    /// The time. A clock that jumps ahead while the daemon runs makes no batch old at once.
    fn now(&self) -> DateTime<Utc> {
        let (started, clock) = self.started;
        not_ahead_of(batch::now(), started, clock.elapsed())
    }

    fn check_age(&self, copy: &BatchCopy) -> Result<(), Stopped> {
        if self.now() - copy.name.batch.opened < TOO_OLD {
            return Ok(());
        }
        self.copying.copies.give_up(copy, GivenUp::Age);
        Err(Stopped::GivenUp)
    }

    /// CloudWatch has answered for `events` events, of which it has not taken these, in the order of [`UNTAKEN`].
    fn answered(&mut self, events: usize, untaken: [usize; UNTAKEN.len()]) {
        let skipped: usize = untaken.iter().sum();
        let sent = events.saturating_sub(skipped);
        self.meters.answered(sent, untaken);
        if untaken[..3].iter().any(|untaken| *untaken > 0) && self.logged.insert("rejected") {
            let [too_old, too_new, expired, _] = untaken;
            tracing::warn!(log_type = %self.log_type, events.too_old = too_old, events.too_new = too_new, events.expired = expired, "CloudWatch has left out events: their own times are more than 14 days past, more than 2 hours ahead, or older than the log group keeps; they are in S3");
        }
        let mut state = self.state();
        state.events_sent += sent as u64;
        state.events_skipped += skipped as u64;
        // Where all events are refused, the outage is not over: somebody answers, and takes nothing.
        let ended = if sent > 0 { state.error.take() } else { None };
        state.last_sent = (sent > 0).then(Timestamp::now).or(state.last_sent);
        drop(state);
        if let Some(error) = ended {
            self.logged.clear();
            let left = self.copying.copies.left(self.log_type);
            tracing::info!(log_type = %self.log_type, outage.seconds = Timestamp::now().seconds_since(error.since), backlog.bytes = left.bytes, backlog.batches = left.batches, "CloudWatch takes events again");
        }
    }

    /// Puts a failure into the status, and into the log when this outage has had none of its kind.
    fn report(&mut self, error: &LogsError) {
        // Without a session, the credentials say it.
        if self.logged.insert(error.kind.as_str()) && error.kind != LogsErrorKind::NoSession {
            tracing::warn!(
                log_type = %self.log_type, error.kind = error.kind.as_str(), error.code = error.code, aws.request_id = error.request_id, remedy = error.remedy,
                "CloudWatch does not take events: {}; they are in S3, and are tried again; see config/README.md#cloudwatch-behind", error.message
            );
        }
        let (message, remedy) = (error.message.clone(), error.remedy.clone());
        let (code, request_id) = (error.code.clone(), error.request_id.clone());
        let mut state = self.state();
        let before = state.error.take();
        let trouble = Trouble::now(before, message, remedy, code, request_id);
        state.error = Some(Trouble { kind: Some(error.kind.as_str().to_owned()), ..trouble });
    }
}

/// `now`, but at most `started` and the time that has `passed` since.
fn not_ahead_of(now: DateTime<Utc>, started: DateTime<Utc>, passed: Duration) -> DateTime<Utc> {
    let passed = TimeDelta::from_std(passed).unwrap_or(TimeDelta::MAX);
    started.checked_add_signed(passed).map_or(now, |latest| now.min(latest))
}

/// Whether an error of reading may be the file's own. A process or a file system that lacks something for a while says
/// nothing of a file.
fn is_the_files(error: &io::Error) -> bool {
    const PASSES: [Errno; 4] = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::STALE];
    !volume::errno(error).is_some_and(|errno| PASSES.contains(&errno))
}

#[cfg(test)]
mod tests;
