//! Stricter HTTP/1 framing than hyper's: what two readers could take for two different requests is refused before
//! hyper sees it, and hyper sees no head before it is whole.
//!
//! The guard follows the bodies' lengths, so that it knows where the next head begins (`rules.rs`). In place of a head
//! that is refused hyper reads a request of the guard's own, [`REFUSED_METHOD`], which the listener answers with the
//! reason. A body that is malformed ends in an error.

mod rules;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::time::{Instant, Sleep, sleep_until};

use super::connections::{Connection, Layer, Member, Registry};
use super::refusals::{Fault, Refused};
pub(super) use rules::HEADERS_MAX;
use rules::{Framing, Rest};

/// From the accept of a connection, or from a later head's first byte, to the head's last.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// From a request's last byte to the next one's first. Longer than a load balancer keeps its own end open, or its next
/// request meets a closed connection and is answered 502: 600 s at Google Cloud, the longest of the usual ones (AWS 60 s,
/// at most 4,000; Azure 4 minutes; nginx 60 s).
const IDLE_TIMEOUT: Duration = Duration::from_secs(620);
/// Without a byte that the client takes of its answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// After a refusal, what the client still sends is read and forgotten for so long, and so much of it, so that it reads
/// the answer instead of a reset.
const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_MAX_BYTES: usize = 1024 * 1024;

/// The method of the request that hyper reads in place of a head that is refused; nothing comes after it.
pub(super) const REFUSED_METHOD: &str = "REFUSED";
const REFUSED_REQUEST: &[u8] = b"REFUSED / HTTP/1.1\r\nConnection: close\r\n\r\n";

/// A connection whose requests are framed without ambiguity, and whose heads come, and whose answers go, in time.
pub(super) struct FramingGuard<S> {
    stream: Take<S>,
    registry: Arc<Registry>,
    connection: Arc<Connection>,
    framing: Framing,
    /// A head that has begun and not ended.
    unfinished: Vec<u8>,
    /// Well framed bytes for which hyper's buffer had no room.
    passing: Vec<u8>,
    passed: usize,
    /// How many bytes of the current body have come.
    body_bytes: u64,
    end: Option<End>,
    /// When a head that has not come, or not wholly, ends the connection.
    due: Instant,
    /// Never after `due`. That moves with every request, the timer only when it fires.
    timer: Pin<Box<Sleep>>,
    /// Set while the client does not take what is written.
    unread_due: Option<Pin<Box<Sleep>>>,
    /// Set while it lingers.
    linger_due: Option<Pin<Box<Sleep>>>,
    lingered_bytes: usize,
}

/// Nothing more of the connection reaches hyper.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// It reads a request that says so.
    Refused,
    /// It reads an error.
    BrokenBody,
}

impl<S: AsyncRead> FramingGuard<S> {
    /// Guards a connection from its first byte on.
    pub(super) fn new(stream: S, member: &Member) -> FramingGuard<S> {
        let due = Instant::now() + HEAD_TIMEOUT;
        FramingGuard {
            stream: stream.take(0),
            registry: member.registry.clone(),
            connection: member.connection.clone(),
            framing: Framing::Head,
            unfinished: Vec::new(),
            passing: Vec::new(),
            passed: 0,
            body_bytes: 0,
            end: None,
            due,
            timer: Box::pin(sleep_until(due)),
            unread_due: None,
            linger_due: None,
            lingered_bytes: 0,
        }
    }

    fn poll_due(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while self.timer.as_mut().poll(context).is_ready() {
            if Instant::now() >= self.due {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(self.due);
        }
        Poll::Pending
    }

    /// Follows what a read has put into `buffer` behind `before`, and leaves there what may reach hyper now.
    fn follow(&mut self, buffer: &mut ReadBuf<'_>, before: usize) {
        let now = Instant::now();
        if self.connection.keeps(Layer::Tls) > 0 {
            self.registry.keep(&self.connection, Layer::Tls, self.connection.record_bytes());
        }
        let begun = !self.unfinished.is_empty();
        let read = buffer.filled().len() - before;
        let was_in_body = self.framing != Framing::Head;
        let rest = if begun {
            let seen = self.unfinished.len();
            // Exactly, so that what strangers leave unfinished is what it counts for.
            self.unfinished.reserve_exact(read);
            self.unfinished.extend_from_slice(&buffer.filled()[before..]);
            buffer.set_filled(before);
            let (passed, rest) = self.framing.follow(&self.unfinished, seen);
            if passed > 0 {
                let unfinished = self.unfinished.split_off(passed);
                self.passing = std::mem::replace(&mut self.unfinished, unfinished);
            }
            rest
        } else {
            let (passed, rest) = self.framing.follow(&buffer.filled()[before..], 0);
            if rest == Rest::Unfinished {
                self.unfinished.reserve_exact(read - passed);
                self.unfinished.extend_from_slice(&buffer.filled()[before + passed..]);
            }
            buffer.set_filled(before + passed);
            rest
        };
        match rest {
            Rest::None | Rest::Unfinished => {}
            Rest::Refused(fault) => self.refuse(fault),
            Rest::BrokenBody => {
                self.end = Some(End::BrokenBody);
                self.connection.turned_away.store(true, Ordering::Relaxed);
                self.registry.refusals.count(Refused::Malformed, self.connection.client, &"in a chunked body");
            }
        }
        // Empty lines alone begin no request, and prolong nothing.
        if self.unfinished.chunks(2).all(|line| line == b"\r\n") {
            let only_empty_lines = !self.unfinished.is_empty();
            self.unfinished = Vec::new();
            if !only_empty_lines {
                self.due = now + IDLE_TIMEOUT;
            }
        } else if !begun {
            self.due = self.due.min(now + HEAD_TIMEOUT);
            self.timer.as_mut().reset(self.due);
        }
        if self.connection.keeps(Layer::Head) != self.unfinished.len() {
            self.registry.keep(&self.connection, Layer::Head, self.unfinished.len());
        }
        if self.framing == Framing::Head {
            self.connection.body_is_whole();
        } else {
            self.body_bytes = if was_in_body { self.body_bytes + read as u64 } else { 0 };
            self.connection.body_has(self.body_bytes, now);
        }
    }

    /// Ends the requests of this connection with one that says why.
    fn refuse(&mut self, fault: Fault) {
        self.end = Some(End::Refused);
        self.unfinished = Vec::new();
        self.registry.refusals.count(fault.refused, self.connection.client, &fault.detail);
        let _ = self.connection.refused.set(fault);
        self.passing.extend_from_slice(REFUSED_REQUEST);
    }

    /// Gives hyper what it had no room for.
    fn pass(&mut self, buffer: &mut ReadBuf<'_>) {
        let passing = &self.passing[self.passed..];
        let length = passing.len().min(buffer.remaining());
        buffer.put_slice(&passing[..length]);
        self.passed += length;
        if self.passed == self.passing.len() {
            (self.passing, self.passed) = (Vec::new(), 0);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FramingGuard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        this.registry.memory.reads_into(&this.connection.kept, buffer.capacity());
        loop {
            if !this.passing.is_empty() {
                this.pass(buffer);
            }
            if buffer.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            match this.end {
                Some(End::Refused) => return Poll::Ready(Ok(())),
                Some(End::BrokenBody) => return Poll::Ready(Err(malformed_body())),
                None => {}
            }
            this.stream.set_limit(this.registry.memory.read_max_bytes() as u64);
            match Pin::new(&mut this.stream).poll_read(context, buffer) {
                // A body has time-outs of its own (`receive.rs`).
                Poll::Pending if this.framing == Framing::Head => {
                    ready!(this.poll_due(context));
                    if this.unfinished.is_empty() {
                        return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                    }
                    this.refuse(Refused::Slow.into());
                }
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if buffer.filled().len() == before => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => this.follow(buffer, before),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
    }
}

fn malformed_body() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "its chunks or trailers are malformed")
}

impl<S: AsyncRead + AsyncWrite + Unpin> FramingGuard<S> {
    /// Ends what has waited for the client for too long.
    fn in_time<T>(&mut self, context: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.unread_due = None;
            return outcome;
        }
        let due = self.unread_due.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_TIMEOUT)));
        ready!(due.as_mut().poll(context));
        self.registry.refusals.count(Refused::Unread, self.connection.client, &"");
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Reads what still comes after a refusal.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut scratch = [0; 4096];
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            ready!(Pin::new(self.stream.get_mut()).poll_read(context, &mut buffer))?;
            self.lingered_bytes += buffer.filled().len();
            if buffer.filled().is_empty() || self.lingered_bytes > LINGER_MAX_BYTES {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// Without vectored writes: an answer is small, and one copy of it costs less than a list of its parts.
impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for FramingGuard<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(self.stream.get_mut()).poll_write(context, bytes);
        self.in_time(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(self.stream.get_mut()).poll_flush(context);
        self.in_time(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let shut = Pin::new(this.stream.get_mut()).poll_shutdown(context);
        if shut.is_pending() {
            return this.in_time(context, shut);
        }
        let turned_away = this.connection.turned_away.load(Ordering::Relaxed);
        if this.end.is_none() && this.framing == Framing::Head && !turned_away {
            return shut;
        }
        let due = this.linger_due.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER_TIME)));
        if due.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        // An error ends it as well: the answer had its time.
        this.poll_linger(context).map(|_| Ok(()))
    }
}

#[cfg(test)]
mod tests;
