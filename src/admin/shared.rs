//! An answer that takes work to make. One is made at a time, for all who wait for it, on a thread that takes no events.
//! Whoever asks gets an answer whose making began after the question, so its figures are not older than the question.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// From the end of one making to the beginning of the next. It keeps the work small, however many ask.
const PAUSE: Duration = Duration::from_millis(25);

#[derive(Default)]
pub(super) struct SharedAnswer {
    /// How many have asked.
    asked: AtomicU64,
    /// Locked while one is made.
    last: Arc<Mutex<Last>>,
}

#[derive(Default)]
struct Last {
    bytes: Bytes,
    /// How many questions it answers, from the first on.
    answers: u64,
    ended: Option<Instant>,
}

impl SharedAnswer {
    /// What `make` gives, or another call's `make` that begins after this call. May wait for [`PAUSE`] and two makings.
    pub(super) async fn get<T, E>(&self, make: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<Bytes, String>
    where
        T: Into<Bytes>,
        E: Display,
    {
        let place = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut last = Arc::clone(&self.last).lock_owned().await;
        if last.answers >= place {
            return Ok(last.bytes.clone());
        }
        if let Some(ended) = last.ended {
            tokio::time::sleep_until(ended + PAUSE).await;
        }
        let answers = self.asked.load(Ordering::SeqCst);
        // The lock goes with the work: where the question is dropped, the next making still
        // waits for the end of this one.
        let made = tokio::task::spawn_blocking(move || {
            let bytes = make().map_err(|error| error.to_string());
            last.ended = Some(Instant::now());
            last.bytes = bytes?.into();
            last.answers = answers;
            Ok(last.bytes.clone())
        });
        made.await.map_err(|error| error.to_string())?
    }
}
