//! One request's body: read within time, memory and size, and inflated.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::ingest::inflate::Decoder;
use crate::protocols::{Encoding, Refusal};

/// Without a byte of the body.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// For all of the body.
const BODY_TIMEOUT: Duration = Duration::from_secs(300);
/// How long memory, an fsync or a start may hold a request before it becomes a 503.
pub const HOLD: Duration = Duration::from_secs(5);
/// Room made at once for a body that declares its length.
const PREALLOCATE_MAX_BYTES: u64 = 1024 * 1024;
/// Steps in which an inflated body is charged.
const INFLATE_STEP_BYTES: usize = 256 * 1024;

/// Sets the limit of a body.
pub const BODY_VARIABLE: &str = "ENV0_S3_LOG_MAX_BODY_BYTES";

/// Memory that requests share. Beyond it, they wait.
#[derive(Clone)]
pub struct Budget {
    free: Arc<Semaphore>,
    bytes: u32,
}

/// What a request has of a [`Budget`]; given back on drop.
#[derive(Default)]
pub struct Charge(Option<OwnedSemaphorePermit>);

impl Charge {
    fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// Gives back what goes beyond `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        let surplus = self.bytes().saturating_sub(bytes);
        drop(self.0.as_mut().and_then(|permit| permit.split(surplus)));
    }
}

impl Budget {
    /// For `bytes` in all, 4 GiB at most.
    pub fn new(bytes: usize) -> Budget {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        Budget { free: Arc::new(Semaphore::new(bytes as usize)), bytes }
    }

    /// Charges `bytes` more; no request is charged more than all there is, so that any one fits alone.
    pub async fn charge(&self, held: &mut Charge, bytes: usize) -> Result<(), Refusal> {
        let left = (self.bytes as usize).saturating_sub(held.bytes());
        let bytes = u32::try_from(bytes.min(left)).unwrap_or(u32::MAX);
        let permit = match Arc::clone(&self.free).try_acquire_many_owned(bytes) {
            Ok(permit) => permit,
            Err(_) => {
                let acquire = Arc::clone(&self.free).acquire_many_owned(bytes);
                let Ok(Ok(permit)) = tokio::time::timeout(HOLD, acquire).await else {
                    let reason = "the memory for requests is in use (ENV0_S3_LOG_MAX_INFLIGHT_BYTES)".to_owned();
                    return Err(Refusal::Unavailable { reason, retry_after_seconds: 1 });
                };
                permit
            }
        };
        match &mut held.0 {
            Some(held) => held.merge(permit),
            None => held.0 = Some(permit),
        }
        Ok(())
    }
}

/// A body in memory, charged for as long as it is held.
pub struct Received {
    /// The body.
    pub bytes: Bytes,
    charge: Charge,
}

/// Reads all of a body of at most `limit` bytes; `stop` ends the reading of one that is still arriving.
pub async fn read(
    body: &mut Incoming,
    limit: usize,
    budget: &Budget,
    stop: &CancellationToken,
) -> Result<Received, Refusal> {
    let too_large = Refusal::TooLarge { limit, variable: BODY_VARIABLE };
    let mut end = None;
    let declared = body.size_hint().lower();
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    let mut charge = Charge::default();
    loop {
        // What is here already needs no clock.
        let frame = match body.frame().now_or_never() {
            Some(frame) => frame,
            None => {
                let now = Instant::now();
                let deadline = (now + STALL_TIMEOUT).min(*end.get_or_insert(now + BODY_TIMEOUT));
                tokio::select! {
                    biased;
                    frame = timeout_at(deadline, body.frame()) => frame.map_err(|_| Refusal::BodyTimeout)?,
                    () = stop.cancelled() => return Err(draining()),
                }
            }
        };
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| Refusal::BrokenBody { reason: error.to_string() })?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + all.len() + data.len() > limit {
            return Err(too_large);
        }
        budget.charge(&mut charge, data.len()).await?;
        if first.is_empty() && all.is_empty() {
            first = data;
            continue;
        }
        if all.is_empty() {
            all.reserve(usize::try_from(declared.clamp(first.len() as u64, PREALLOCATE_MAX_BYTES)).unwrap_or_default());
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&data);
    }
    let bytes = if all.is_empty() { first } else { all.freeze() };
    Ok(Received { bytes, charge })
}

/// The refusal of everything that comes too late.
pub fn draining() -> Refusal {
    Refusal::Unavailable { reason: "shutting down".to_owned(), retry_after_seconds: 5 }
}

impl Received {
    /// The inflated body, of at most `limit` bytes; the compressed one goes.
    pub async fn inflate(self, encoding: Encoding, limit: usize, budget: &Budget) -> Result<Received, Refusal> {
        if encoding == Encoding::Identity || self.bytes.is_empty() {
            return Ok(self);
        }
        let mut charge = self.charge;
        let mut decoder = Decoder::new(encoding, self.bytes).map_err(broken)?;
        let mut inflated = BytesMut::new();
        let step_bytes = INFLATE_STEP_BYTES.min(limit);
        loop {
            budget.charge(&mut charge, step_bytes).await?;
            let step;
            (decoder, step) = tokio::task::spawn_blocking(move || {
                let mut step = Vec::with_capacity(step_bytes);
                let read = decoder.by_ref().take(step_bytes as u64).read_to_end(&mut step);
                (decoder, read.map(|_| step))
            })
            .await
            .map_err(|error| broken(std::io::Error::other(error)))?;
            let step = step.map_err(broken)?;
            if inflated.len() + step.len() > limit {
                return Err(Refusal::TooLarge { limit, variable: BODY_VARIABLE });
            }
            inflated.extend_from_slice(&step);
            if step.len() < step_bytes {
                drop(decoder);
                charge.shrink_to(inflated.len());
                return Ok(Received { bytes: inflated.freeze(), charge });
            }
        }
    }
}

fn broken(error: std::io::Error) -> Refusal {
    Refusal::BrokenBody { reason: format!("its Content-Encoding is broken: {error}") }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::http::{Request, Response};
    use http_body_util::Full;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::AsyncWriteExt;
    use tokio::sync::mpsc;

    use super::*;

    /// Seconds until a body is given up of which a byte comes every `pause`.
    async fn given_up_after(pause: Duration) -> u64 {
        let (mut client, server) = tokio::io::duplex(1024);
        let (ended, mut end) = mpsc::unbounded_channel();
        let service = service_fn(move |request: Request<Incoming>| {
            let ended = ended.clone();
            async move {
                let (budget, stop) = (Budget::new(1000), CancellationToken::new());
                let outcome = read(&mut request.into_body(), 1000, &budget, &stop).await;
                ended.send(outcome.map(|received| received.bytes)).unwrap();
                Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
            }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(server), service));
        client.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n").await.unwrap();
        let started = Instant::now();
        let trickle = async {
            loop {
                client.write_all(b"x").await.unwrap();
                tokio::time::sleep(pause).await;
            }
        };
        tokio::select! {
            outcome = end.recv() => assert_eq!(outcome.unwrap(), Err(Refusal::BodyTimeout)),
            () = trickle => {}
        }
        started.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_given_up_30_s_after_its_last_byte_and_5_minutes_after_its_first() {
        assert_eq!(given_up_after(Duration::from_secs(3600)).await, 30);
        assert_eq!(given_up_after(Duration::from_secs(29)).await, 300);
    }
}
