//! One request's body: read within time, memory and size, and inflated.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::ingest::inflate::Inflater;
use crate::ingest::memory::{Charge, Memory, Share, in_use};
use crate::network::chain;
use crate::protocols::body::shrunk;
use crate::protocols::{Encoding, Refusal};

/// The longest time without a byte of the body.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest time for all of the body.
const BODY_TIMEOUT: Duration = Duration::from_secs(300);
/// The least average rate of a body that has a turn in memory for which others wait, and how long it has before that
/// counts.
const LEAST_BYTES_PER_SECOND: u64 = 64 * 1024;
const FIRST_TIME: Duration = Duration::from_secs(10);
/// How long a body may keep a turn in memory for which audit events wait.
const AUDITS_PATIENCE: Duration = Duration::from_secs(2);
/// How often a body that has a turn is looked at.
const DEMAND_INTERVAL: Duration = Duration::from_millis(250);
/// A smaller body is not charged: a connection is counted as if it always had one.
pub const UNCHARGED_BYTES: usize = 4 * 1024;
/// A body that nobody wants is read and forgotten up to here, so that its sender reads the answer
/// instead of a reset.
const LINGER_MAX_BYTES: usize = 64 * 1024 * 1024;
/// Why a stream is broken that has begun and not ended when the body ends.
const NOT_WHOLE: &str = "it ends early, or something is left behind its end";
const LINGER_TIME: Duration = Duration::from_secs(30);
/// Most bodies inflate to at most this many times their size.
const USUAL_INFLATION: usize = 16;

/// The limits on a body.
pub struct Terms<'a> {
    /// The most bytes, as sent and inflated.
    pub limit: usize,
    /// The variable that sets the limit.
    pub variable: &'static str,
    /// The memory that it is charged to.
    pub memory: &'a Memory,
    /// The share that it is charged to.
    pub share: Share,
    /// Ends the reading of a body that is still arriving.
    pub stop: &'a CancellationToken,
}

impl Terms<'_> {
    fn too_large(&self) -> Refusal {
        Refusal::TooLarge { limit: self.limit, variable: self.variable }
    }
}

/// A body in memory, charged for as long as it is held.
pub struct Received {
    /// The body.
    pub bytes: Bytes,
    charge: Charge,
}

impl Received {
    /// For how long it has waited for memory.
    pub fn waited(&self) -> Duration {
        self.charge.waited
    }

    /// Without one more layer of compression; an error where it isn't whole.
    pub async fn inflate(self, encoding: Encoding, terms: &Terms<'_>) -> Result<Received, Refusal> {
        let Some(mut inflater) = Inflater::new(encoding) else { return Ok(self) };
        let mut buffer = Buffer::new(terms.limit.saturating_add(1));
        buffer.charge = if self.charge.has_turn() {
            // A request that has a turn never waits for another.
            let may_need = buffer.most.saturating_add(inflater.bytes_beside(buffer.most));
            let (charge, bytes) = terms.memory.second_turn(&self.charge, self.bytes.len(), may_need)?;
            buffer.most = inflater.output_within(bytes);
            charge
        } else {
            Charge::after(self.waited())
        };
        Box::pin(inflate(&mut inflater, &self.bytes, &mut buffer, terms)).await?;
        if inflater.is_whole() { Ok(buffer.finish()) } else { Err(broken(NOT_WHOLE)) }
    }
}

/// Reads and inflates all of a body.
pub async fn read(body: &mut Incoming, encoding: Encoding, terms: &Terms<'_>) -> Result<Received, Refusal> {
    let mut inflater = Inflater::new(encoding);
    let declared = body.size_hint().exact().filter(|_| inflater.is_none());
    // A byte over the limit tells that there is more.
    let most = declared.map_or(usize::MAX, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    let mut buffer = Buffer::new(most.min(terms.limit.saturating_add(1)));
    let mut clock = Clock::default();
    let mut first = Bytes::new();
    let mut sent = 0;
    while !body.is_end_stream() {
        // Bytes that have arrived already are taken without a timer.
        let frame = match body.frame().now_or_never() {
            Some(frame) => frame,
            None => clock.next_frame(body, sent, buffer.charge.has_turn(), terms).await?,
        };
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| Refusal::BrokenBody { reason: cause(&error) })?;
        let Ok(data) = frame.into_data() else { continue };
        sent += data.len();
        if sent > terms.limit {
            return Err(terms.too_large());
        }
        if sent == data.len() && inflater.is_none() {
            // Some senders compress and don't say so.
            inflater = Inflater::new(Encoding::by_magic(&data));
            if inflater.is_some() {
                buffer.most = terms.limit.saturating_add(1);
            }
        }
        match &mut inflater {
            // Most bodies come in one piece, and stay where they were read.
            None if sent == data.len() => {
                buffer.charge(data.len(), buffer.most, terms).await?;
                first = data;
            }
            None => {
                let first = std::mem::take(&mut first);
                buffer.make_room(first.len() + data.len(), None, terms).await?;
                buffer.bytes.extend_from_slice(&first);
                buffer.bytes.extend_from_slice(&data);
            }
            // Boxed, here and above: each request's future would be larger, also where nothing is compressed.
            Some(inflater) => Box::pin(inflate(inflater, &data, &mut buffer, terms)).await?,
        }
    }
    if sent > 0 && inflater.is_some_and(|inflater| !inflater.is_whole()) {
        return Err(broken(NOT_WHOLE));
    }
    Ok(if first.is_empty() { buffer.finish() } else { Received { bytes: first, charge: buffer.charge } })
}

/// Appends to `buffer` what a piece of the body inflates to.
async fn inflate(inflater: &mut Inflater, piece: &[u8], buffer: &mut Buffer, terms: &Terms<'_>) -> Result<(), Refusal> {
    let mut rest = piece;
    buffer.make_room(USUAL_INFLATION.saturating_mul(piece.len()), Some(inflater), terms).await?;
    loop {
        let used = inflater.write(rest, &mut buffer.bytes).map_err(broken)?;
        rest = &rest[used..];
        if buffer.bytes.len() >= buffer.most {
            return Err(buffer.too_large(terms));
        }
        match buffer.bytes.len() < buffer.bytes.capacity() {
            true if rest.is_empty() => return Ok(()),
            true if used == 0 => return Err(broken("it can't be read on")),
            true => {}
            false => buffer.make_room(1, Some(inflater), terms).await?,
        }
        // A few bytes can inflate to many or be many streams, so other tasks may run in between.
        tokio::task::yield_now().await;
    }
}

/// What there is of a body, charged before it grows.
struct Buffer {
    bytes: Vec<u8>,
    charge: Charge,
    /// All that was asked to be charged.
    charged: usize,
    /// The largest size of a body.
    most: usize,
}

impl Buffer {
    fn new(most: usize) -> Buffer {
        Buffer { bytes: Vec::new(), charge: Charge::default(), charged: 0, most }
    }

    /// Makes room for `more` bytes, or for all that there can be.
    async fn make_room(&mut self, more: usize, inflater: Option<&Inflater>, terms: &Terms<'_>) -> Result<(), Refusal> {
        let needed = self.bytes.len().saturating_add(more).min(self.most);
        if needed <= self.bytes.capacity() {
            return Ok(());
        }
        let capacity = needed.max(2 * self.bytes.capacity()).max(UNCHARGED_BYTES).min(self.most);
        let with = |bytes| bytes + inflater.map_or(0, |inflater| inflater.bytes_beside(bytes));
        self.charge(with(capacity), with(self.most), terms).await?;
        // A request that has a turn is charged for all of it.
        let capacity = if self.charge.has_turn() { self.most } else { capacity };
        self.bytes.reserve_exact(capacity - self.bytes.len());
        Ok(())
    }

    /// Why it may not be larger: for the limit of all bodies, or for want of memory beside what it was inflated from.
    fn too_large(&self, terms: &Terms<'_>) -> Refusal {
        match self.most > terms.limit {
            true => terms.too_large(),
            false => Refusal::TooLarge { limit: self.most, variable: "ENV0_S3_LOG_MAX_INFLIGHT_BYTES" },
        }
    }

    /// Charges `bytes` in all, of the `most` that the body may come to need.
    async fn charge(&mut self, bytes: usize, most: usize, terms: &Terms<'_>) -> Result<(), Refusal> {
        if bytes <= UNCHARGED_BYTES || bytes <= self.charged {
            return Ok(());
        }
        let (more, may_need) = (bytes - self.charged, most - self.charged);
        terms.memory.charge(terms.share, &mut self.charge, more, may_need).await?;
        self.charged = bytes;
        Ok(())
    }

    fn finish(mut self) -> Received {
        let body = shrunk(self.bytes);
        let bytes = body.capacity();
        self.charge.shrink_to(if bytes <= UNCHARGED_BYTES { 0 } else { bytes });
        Received { bytes: body.into(), charge: self.charge }
    }
}

/// In the words of what stands below the HTTP library.
fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    chain(error).last().map(ToString::to_string).unwrap_or_default()
}

fn broken(reason: impl ToString) -> Refusal {
    Refusal::BrokenBody { reason: format!("its Content-Encoding is broken: {}", reason.to_string()) }
}

/// When a body of which `bytes` came since `since` is too slow for those who wait for its memory.
fn due(since: Instant, bytes: usize) -> Instant {
    since + FIRST_TIME + Duration::from_millis(bytes as u64 * 1000 / LEAST_BYTES_PER_SECOND)
}

/// Watches over the time that a body takes.
#[derive(Default)]
struct Clock {
    /// Since it was waited for.
    begun: Option<Instant>,
    /// Since it was waited for with a turn, and what had come by then.
    turn: Option<(Instant, usize)>,
}

type NextFrame = Option<Result<Frame<Bytes>, hyper::Error>>;

impl Clock {
    /// The next frame of a body of which `sent` bytes are here.
    async fn next_frame(
        &mut self,
        body: &mut Incoming,
        sent: usize,
        has_turn: bool,
        terms: &Terms<'_>,
    ) -> Result<NextFrame, Refusal> {
        let now = Instant::now();
        let begun = *self.begun.get_or_insert(now);
        let end = (now + STALL_TIMEOUT).min(begun + BODY_TIMEOUT);
        let (mut look, mut due, mut due_for_audits) = (end, end, end);
        if has_turn {
            let (since, before) = *self.turn.get_or_insert((now, sent));
            due = self::due(since, sent - before);
            due_for_audits = if terms.share == Share::Audits { due } else { since + AUDITS_PATIENCE };
            look = end.min(due.min(due_for_audits).max(now + DEMAND_INTERVAL));
        }
        loop {
            let frame = tokio::select! {
                biased;
                frame = timeout_at(look, body.frame()) => frame,
                () = terms.stop.cancelled() => return Err(draining()),
            };
            match frame {
                Ok(frame) => return Ok(frame),
                Err(_) if look >= end => return Err(Refusal::BodyTimeout),
                Err(_) if look >= due_for_audits && terms.memory.audits_are_waiting() => return Err(in_use()),
                Err(_) if look >= due && terms.memory.is_awaited() => return Err(Refusal::BodyTimeout),
                Err(_) => look = end.min(look + DEMAND_INTERVAL),
            }
        }
    }
}

/// The refusal of requests that come while the daemon ends.
pub fn draining() -> Refusal {
    Refusal::Unavailable { reason: "shutting down".to_owned(), retry_after_seconds: 5 }
}

/// Reads in the background what is left of a body that was refused, so that its sender reads the answer. A client that
/// waits for `100 Continue` sends no body: it `expects`.
pub(super) fn linger(mut body: Incoming, expects: bool) {
    if body.is_end_stream() || expects {
        return;
    }
    tokio::spawn(tokio::time::timeout(LINGER_TIME, async move {
        let mut left = LINGER_MAX_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    }));
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;

    use axum::http::{Request, Response};
    use http_body_util::Full;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::AsyncWriteExt;
    use tokio::sync::mpsc;

    use super::*;
    use crate::ingest::inflate::ZSTD_BYTES;

    const BYTES: usize = 1024 * 1024;

    /// Seconds until a body is given up of which `piece` comes every `pause`.
    async fn given_up_after(piece: &'static [u8], pause: Duration) -> u64 {
        let memory = Arc::new(Memory::new(BYTES, BYTES, 0, 1));
        let (outcome, seconds) = given_up(memory, Share::Audits, piece, pause).await;
        assert_eq!(outcome, Refusal::BodyTimeout);
        seconds
    }

    /// Why a body of `share` is given up of which `piece` comes every `pause`, and after how many seconds.
    async fn given_up(memory: Arc<Memory>, share: Share, piece: &'static [u8], pause: Duration) -> (Refusal, u64) {
        let (mut client, server) = tokio::io::duplex(1024);
        let (ended, mut end) = mpsc::unbounded_channel();
        let service = service_fn(move |request: Request<Incoming>| {
            let (ended, memory) = (ended.clone(), Arc::clone(&memory));
            async move {
                let stop = CancellationToken::new();
                let terms = Terms { limit: BYTES, variable: "", memory: &memory, share, stop: &stop };
                let outcome = read(&mut request.into_body(), Encoding::Identity, &terms).await;
                ended.send(outcome.map(|received| received.bytes)).unwrap();
                Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
            }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(server), service));
        let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {BYTES}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        let started = Instant::now();
        let trickle = async {
            loop {
                client.write_all(piece).await.unwrap();
                tokio::time::sleep(pause).await;
            }
        };
        let outcome = tokio::select! {
            outcome = end.recv() => outcome.unwrap(),
            () = trickle => unreachable!("it never ends"),
        };
        (outcome.unwrap_err(), started.elapsed().as_secs())
    }

    #[tokio::test]
    async fn a_body_that_is_compressed_twice_stays_within_the_memory_of_one_request() {
        let (limit, stop) = (BYTES, CancellationToken::new());
        // All that one request may have.
        let largest = 3 * BYTES + ZSTD_BYTES;
        for (first_bytes, is_taken) in [(BYTES - 1000, true), (2 * BYTES, false)] {
            // Several streams, of which only the last one is not empty.
            let mut first = zstd::encode_all(&[][..], 1).unwrap().repeat(first_bytes / 9);
            first.extend(zstd::encode_all(&vec![b' '; BYTES][..], 1).unwrap());
            let memory = Memory::new(BYTES, largest, 0, 8);
            let mut charge = Charge::default();
            memory.charge(Share::Oidc, &mut charge, first.len(), largest).await.unwrap();
            let first = Received { bytes: first.into(), charge };
            let terms = Terms { limit, variable: "", memory: &memory, share: Share::Oidc, stop: &stop };
            match first.inflate(Encoding::Zstd, &terms).await {
                Ok(second) => assert!(is_taken && second.bytes.len() == BYTES),
                Err(Refusal::TooLarge { variable: "ENV0_S3_LOG_MAX_INFLIGHT_BYTES", .. }) => assert!(!is_taken),
                Err(refusal) => panic!("{refusal}"),
            }
        }
    }

    #[tokio::test]
    async fn a_body_of_many_empty_streams_lets_other_tasks_run_in_between() {
        let (memory, stop) = (Memory::new(BYTES, BYTES, 0, 1), CancellationToken::new());
        let terms = Terms { limit: BYTES, variable: "", memory: &memory, share: Share::Oidc, stop: &stop };
        let empty = zstd::encode_all(&[][..], 1).unwrap();
        let body = Received { bytes: empty.repeat(10_000).into(), charge: Charge::default() };
        let mut inflated = std::pin::pin!(body.inflate(Encoding::Zstd, &terms));
        let mut turns = 1;
        let outcome = loop {
            match inflated.as_mut().now_or_never() {
                Some(outcome) => break outcome,
                None => turns += 1,
            }
        };
        assert!(outcome.is_ok_and(|inflated| inflated.bytes.is_empty()));
        assert!(turns > 100, "{turns}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_given_up_30_s_after_its_last_byte_and_5_minutes_after_its_first() {
        assert_eq!(given_up_after(b"x", Duration::from_secs(3600)).await, 30);
        assert_eq!(given_up_after(&[b'x'; 40_000], Duration::from_secs(29)).await, 300);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_keeps_a_turn_for_2_s_while_audit_events_wait_and_for_10_s_else() {
        const PIECE: &[u8] = &[b'x'; 40_000];
        for (holder, waits, expected) in [
            (Share::Oidc, Share::Audits, (in_use(), 2)),
            (Share::Deployments, Share::Audits, (in_use(), 2)),
            (Share::Audits, Share::Audits, (in_use(), 10)),
            (Share::Oidc, Share::Deployments, (Refusal::BodyTimeout, 10)),
        ] {
            let memory = Arc::new(Memory::new(BYTES, BYTES, 0, 8));
            let others = Arc::clone(&memory);
            let waiter = tokio::spawn(async move {
                // The holder has its turn by then; who waits is refused after 5 s, and the next one comes.
                tokio::time::sleep(Duration::from_millis(500)).await;
                while others.charge(waits, &mut Charge::default(), BYTES, BYTES).await.is_err() {}
            });
            let outcome = given_up(memory, holder, PIECE, Duration::from_secs(3600)).await;
            assert_eq!(outcome, expected, "{holder:?} {waits:?}");
            waiter.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_is_given_up_after_5_minutes() {
        assert_eq!(given_up_after(b"x", Duration::from_secs(25)).await, 300);
    }
}
