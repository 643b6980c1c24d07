//! One connection, and the address that it comes from: what is known of them when room is needed.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::memory::{Kept, KeptOfSource, Layer};
use super::turns::Trust;
use crate::http::refusals::Fault;

/// A stranger has so long to show who it is, and a body to show how fast it comes, before it is closed for others.
pub(super) const FRESH: Duration = Duration::from_secs(1);

/// An address that connections come from.
pub(super) struct Source {
    pub(super) connections: AtomicUsize,
    pub(super) strangers: AtomicUsize,
    pub(in crate::http) kept: KeptOfSource,
    /// One of its signatures at a time waits in the line of [`Registry::signatures`].
    pub(super) signatures: Arc<Semaphore>,
    /// One of its handshakes at a time waits in each line of [`Registry::handshake_lines`].
    pub(super) handshakes: [Arc<Semaphore>; 2],
}

/// One connection.
pub(in crate::http) struct Connection {
    /// Where it comes from.
    pub(in crate::http) client: IpAddr,
    pub(super) source: Arc<Source>,
    /// Whose credentials somebody at its address had shown lately when it came.
    pub(super) trust: Option<Trust>,
    pub(super) since: Instant,
    /// One of [`Registry::moments`], or [`AT_WORK`].
    pub(super) without_request_since: AtomicU64,
    /// What it keeps of [`Registry::memory`].
    pub(in crate::http) kept: Kept,
    /// When its ClientHello was whole.
    pub(super) greeted: OnceLock<Instant>,
    /// Whose valid credentials have come on it, by [`Trust`], be it only a token that was handed over.
    pub(super) shown: [AtomicBool; 2],
    /// Milliseconds from `since` to the begin of a body that is not whole yet; [`NO_BODY`] for none.
    pub(super) body_since: AtomicU64,
    pub(super) body_bytes: AtomicU64,
    /// What its last request is refused for, before it is one.
    pub(in crate::http) refused: OnceLock<Fault>,
    /// It ends with its next answer, for others who have just come.
    pub(in crate::http) makes_room: AtomicBool,
    /// It ends with an answer behind which more may have come: requests, or the rest of a broken body.
    pub(in crate::http) turned_away: AtomicBool,
    /// Set before the next connection is accepted.
    pub(super) task: OnceLock<AbortHandle>,
    /// It is closed for another one.
    pub(super) closing: AtomicBool,
}

/// A request is served.
pub(super) const AT_WORK: u64 = u64::MAX;
pub(super) const NO_BODY: u64 = u64::MAX;

impl Connection {
    /// No request of it has been let in yet.
    pub(in crate::http) fn is_stranger(&self) -> bool {
        !self.kept.is_senders()
    }

    pub(super) fn has_shown_any(&self) -> bool {
        self.shown.iter().any(|shown| shown.load(Ordering::Relaxed))
    }

    /// A request of it was let in, and is not answered yet.
    pub(in crate::http) fn is_at_work(&self) -> bool {
        self.without_request_since.load(Ordering::Relaxed) == AT_WORK
    }

    /// The task that serves it, for the end that it may meet.
    pub(in crate::http) fn is_served_by(&self, task: AbortHandle) {
        let _ = self.task.set(task);
        if self.closing.load(Ordering::SeqCst) {
            self.close();
        }
    }

    pub(super) fn close(&self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }

    /// Bytes of a TLS record that has not wholly come: what TLS still keeps when it has passed something on.
    pub(in crate::http) fn record_bytes(&self) -> usize {
        self.kept.record_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that it keeps in `layer`.
    pub(in crate::http) fn keeps(&self, layer: Layer) -> usize {
        self.kept.in_layer(layer)
    }

    /// It is never cut off: a request was let in, and its body has come.
    pub(super) fn has_come(&self) -> bool {
        self.is_at_work() && !self.is_in_body()
    }

    /// A body has begun of which more is to come.
    pub(in crate::http) fn is_in_body(&self) -> bool {
        self.body_since.load(Ordering::Relaxed) != NO_BODY
    }

    /// A body has begun of which more is to come, and now it has so many bytes.
    pub(in crate::http) fn body_has(&self, bytes: u64, now: Instant) {
        self.body_bytes.store(bytes, Ordering::Relaxed);
        if !self.is_in_body() {
            let since = u64::try_from(now.duration_since(self.since).as_millis()).unwrap_or_default();
            self.body_since.store(since, Ordering::Relaxed);
        }
    }

    /// Nothing more is to come of a body.
    pub(in crate::http) fn body_is_whole(&self) {
        if self.is_in_body() {
            self.body_since.store(NO_BODY, Ordering::Relaxed);
        }
    }

    /// Bytes a second of a body that has been coming for longer than [`FRESH`].
    pub(super) fn body_rate(&self, now: Instant) -> Option<u64> {
        let since = self.body_since.load(Ordering::Relaxed);
        let age = now.duration_since(self.since).checked_sub(Duration::from_millis(since))?;
        let bytes = self.body_bytes.load(Ordering::Relaxed);
        (since != NO_BODY && age >= FRESH).then(|| bytes.saturating_mul(1000) / age.as_millis().max(1) as u64)
    }
}
