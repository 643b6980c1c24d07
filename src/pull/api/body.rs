//! Reads the body of an answer: in bounded time, and with no more than one large answer in memory.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Response;
use tokio::sync::{Mutex, OwnedMutexGuard, OwnedSemaphorePermit};
use tokio::time::Instant;

use crate::network::causes;
use crate::pull::api::error::ErrorKind;
use crate::pull::api::thin::Thin;

/// Answers above this size are large: of these, one page of a log is held at a time, and one of all others.
pub(super) const LARGE_ANSWER_BYTES: usize = 1024 * 1024;
/// At most this much of an error's body is read, to tell what kind of error it is.
const ERROR_MAX_BYTES: usize = 64 * 1024;
/// The server may keep a request waiting this long in all.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// A request is given up when nothing has arrived for this long, before the answer or within it.
const SILENCE_MAX: Duration = Duration::from_secs(20);

/// An attempt that failed.
pub(super) struct Failed {
    pub(super) kind: ErrorKind,
    /// How long the server asked us to wait.
    pub(super) wait: Duration,
    /// Whether nothing came for too long.
    pub(super) silent: bool,
}

impl From<ErrorKind> for Failed {
    fn from(kind: ErrorKind) -> Failed {
        Failed { kind, wait: Duration::ZERO, silent: false }
    }
}

impl From<reqwest::Error> for Failed {
    fn from(error: reqwest::Error) -> Failed {
        let silent = error.is_timeout();
        Failed { silent, ..ErrorKind::Unreachable(causes(&error.without_url())).into() }
    }
}

/// How long the server may still keep a request waiting. The time in which we work on a part of the answer doesn't count.
pub(super) struct Patience(Duration);

impl Default for Patience {
    fn default() -> Patience {
        Patience(WAIT_MAX)
    }
}

impl Patience {
    /// Waits for the server.
    pub(super) async fn wait<T>(&mut self, arrival: impl Future<Output = reqwest::Result<T>>) -> Result<T, Failed> {
        let begun = Instant::now();
        let arrived = tokio::time::timeout(self.0.min(SILENCE_MAX), arrival).await;
        let Ok(arrived) = arrived else {
            let what = match self.0 > SILENCE_MAX {
                true => format!("nothing came for {} s", SILENCE_MAX.as_secs()),
                false => format!("it took more than {} s", WAIT_MAX.as_secs()),
            };
            return Err(Failed { silent: true, ..ErrorKind::Unreachable(what + ", so it was given up").into() });
        };
        self.0 = self.0.saturating_sub(begun.elapsed());
        Ok(arrived?)
    }
}

/// How much of an answer is read at once.
#[derive(Clone, Copy)]
pub(super) enum Amount {
    /// All of it, without what nobody reads (`api/thin.rs`); more bytes than these are too large.
    Whole(usize),
    /// What makes it a large one. The rest is [`Body::unread`]; more bytes than these in all are too large.
    Beginning(usize),
}

/// The body of an answer, or the beginning of it.
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    /// How many bytes were read for it.
    pub(super) read: usize,
    pub(super) unread: Option<Unread>,
    /// Held by a large answer, so that no second one of its kind is in memory at the same time.
    pub(super) alone: Option<OwnedMutexGuard<()>>,
}

/// What has not been read of an answer.
pub(super) struct Unread {
    response: Response,
    patience: Patience,
    bytes_before: usize,
    max_bytes: usize,
    /// As long as the answer is read, its request counts as running.
    _slot: OwnedSemaphorePermit,
}

impl Unread {
    /// The next bytes; `None` at the end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Failed> {
        let chunk = self.patience.wait(self.response.chunk()).await?;
        self.bytes_before += chunk.as_ref().map_or(0, Bytes::len);
        if self.bytes_before > self.max_bytes {
            return Err(ErrorKind::TooLarge.into());
        }
        Ok(chunk)
    }
}

impl Body {
    /// Reads `amount` of the body. `None` where it is large, `alone` is none, and another one holds the lock `large`: it
    /// has to be asked for again with that lock. It must not be waited for here. Whoever holds the lock may itself wait
    /// for what needs the `slot` that this request has.
    pub(super) async fn read(
        mut response: Response,
        amount: Amount,
        (slot, mut patience): (OwnedSemaphorePermit, Patience),
        (mut alone, large): (Option<OwnedMutexGuard<()>>, &Arc<Mutex<()>>),
    ) -> Result<Option<Body>, Failed> {
        let (Amount::Whole(max_bytes) | Amount::Beginning(max_bytes)) = amount;
        let announced = response.content_length().map_or(0, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        if announced > max_bytes {
            return Err(ErrorKind::TooLarge.into());
        }
        let at_once = if matches!(amount, Amount::Whole(_)) { announced } else { announced.min(LARGE_ANSWER_BYTES) };
        // A buffer that grows is there twice, and the smaller ones stay in memory for a while.
        let (mut bytes, mut read, mut thin) = (Vec::with_capacity(at_once), 0, Thin::default());
        while let Some(chunk) = patience.wait(response.chunk()).await? {
            read += chunk.len();
            if read > max_bytes {
                return Err(ErrorKind::TooLarge.into());
            }
            match amount {
                Amount::Whole(_) => thin.append(&chunk, &mut bytes),
                Amount::Beginning(_) => bytes.extend_from_slice(&chunk),
            }
            if bytes.len() <= LARGE_ANSWER_BYTES {
                continue;
            }
            if alone.is_none() {
                let Ok(guard) = large.clone().try_lock_owned() else { return Ok(None) };
                alone = Some(guard);
            }
            if matches!(amount, Amount::Beginning(_)) {
                let unread = Unread { response, patience, bytes_before: read, max_bytes, _slot: slot };
                return Ok(Some(Body { bytes, read, unread: Some(unread), alone }));
            }
        }
        // A small one need not keep others out.
        let alone = alone.filter(|_| bytes.len() > LARGE_ANSWER_BYTES);
        Ok(Some(Body { bytes, read, unread: None, alone }))
    }
}

/// The beginning of a refusal's body, or what came of it.
pub(super) async fn beginning(response: &mut Response, patience: &mut Patience) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = patience.wait(response.chunk()).await {
        body.extend_from_slice(&chunk);
        if body.len() > ERROR_MAX_BYTES {
            break;
        }
    }
    body
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use hyper::body::{Frame, SizeHint};
    use tokio::sync::Semaphore;

    use super::*;

    /// A body that promises so many bytes, and that nobody may begin to read.
    struct Promised(u64);

    impl hyper::body::Body for Promised {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            panic!("it was read");
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.0)
        }
    }

    #[tokio::test]
    async fn an_answer_that_promises_more_than_is_taken_is_refused_before_it_is_read() {
        let large = Arc::default();
        for amount in [Amount::Whole(1 << 20), Amount::Beginning(1 << 20)] {
            for promised in [(1 << 20) + 1, 1 << 30, u64::MAX] {
                let response = axum::http::Response::new(reqwest::Body::wrap(Promised(promised)));
                let slot = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
                let read = Body::read(response.into(), amount, (slot, Patience::default()), (None, &large));
                assert!(matches!(read.await, Err(Failed { kind: ErrorKind::TooLarge, .. })), "{promised}");
            }
        }
    }
}
