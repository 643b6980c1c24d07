//! One TLS handshake: in time, within memory that strangers share, and in turns by address.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use rustls::InvalidMessage;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, LazyConfigAcceptor};

use super::{Tls, expiry};
use crate::http::connections::{Connection, Layer, Member, Registry, Standing, Step, Turn};
use crate::http::refusals::Refused;

/// From the accept to the handshake's end.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// What TLS keeps of an answer that the client does not read.
const UNREAD_MAX_BYTES: usize = 16 * 1024;
/// A client's part behind its hello comes in one or two pieces, with certificates in a few more. Who sends it in crumbs has
/// each further step computed behind those of all others.
const LATER_STEPS_MAX: usize = 4;
/// Less than a read of rustls's brings.
const LARGE_RECORD_BYTES: usize = 4000;
const CLIENT_HAS_ENDED: &str = "its certificate has ended since its last whole handshake";
const NO_TLS: &str = "what came is no TLS, but plain HTTP perhaps: use https://";

impl Tls {
    /// Does the handshake; a failure is counted and said.
    pub(in crate::http) async fn accept(&self, stream: TcpStream, member: &Member) -> Option<TlsStream<Counted>> {
        let Member { registry, connection, .. } = member;
        let record = Record::default();
        let stream =
            Counted { stream: stream.take(0), record, registry: registry.clone(), connection: connection.clone() };
        let refused = match tokio::time::timeout(HANDSHAKE_TIMEOUT, self.handshake(stream, member)).await {
            Ok(Ok(stream)) if client_has_ended(&stream) => (Refused::ClientCertificate, CLIENT_HAS_ENDED.to_owned()),
            Ok(Ok(stream)) => {
                registry.keep(connection, Layer::Tls, connection.record_bytes());
                return Some(stream);
            }
            // Left without a word of TLS, as a load balancer's probe does.
            Ok(Err(error)) if is_gone(&error) => return None,
            Ok(Err(error)) if lacks_certificate(&error) => (Refused::ClientCertificate, error.to_string()),
            Ok(Err(error)) if is_no_tls(&error) => (Refused::Tls, NO_TLS.to_owned()),
            Ok(Err(error)) => (Refused::Tls, error.to_string()),
            Err(_) => (Refused::Slow, String::new()),
        };
        registry.refusals.count(refused.0, connection.client, &refused.1);
        None
    }

    async fn handshake(&self, stream: Counted, member: &Member) -> io::Result<TlsStream<Counted>> {
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let mut standing = member.has_greeted();
        let turn = tokio::select! {
            turn = member.handshake_turn(Step::First, standing) => turn,
            // So that others don't wait for an answer that nobody takes.
            () = hello.io.is_gone() => return Err(io::ErrorKind::ConnectionReset.into()),
        };
        let settings = self.settings();
        let woken = Arc::new(Woken(Notify::new()));
        // The server signs here already: with an RSA key of 4,096 bits that takes milliseconds.
        let rest = || Box::pin(hello.into_stream_with(settings, |tls| tls.set_buffer_limit(Some(UNREAD_MAX_BYTES))));
        let (mut rest, mut outcome) = computed(turn, rest, &woken).await?;
        let mut later_steps = 0;
        loop {
            match outcome {
                Poll::Ready(outcome) => return outcome,
                Poll::Pending => woken.0.notified().await,
            }
            later_steps += 1;
            if later_steps > LATER_STEPS_MAX {
                standing = Standing::Suspect;
            }
            let turn = member.handshake_turn(Step::Later, standing).await;
            (rest, outcome) = computed(turn, || rest, &woken).await?;
        }
    }
}

type Rest = Pin<Box<Accept<Counted>>>;

/// Computes as much of a handshake as can be now, beside the runtime, so that requests go on.
async fn computed(
    turn: Turn,
    rest: impl FnOnce() -> Rest + Send + 'static,
    woken: &Arc<Woken>,
) -> io::Result<(Rest, Poll<io::Result<TlsStream<Counted>>>)> {
    let waker = Waker::from(woken.clone());
    let step = tokio::task::spawn_blocking(move || {
        let mut rest = rest();
        let outcome = rest.as_mut().poll(&mut Context::from_waker(&waker));
        // The turn ends here, because the computation goes on when the connection is closed for another one.
        drop(turn);
        (rest, outcome)
    });
    step.await.map_err(io::Error::other)
}

/// The client has sent more of its handshake, or has taken more.
struct Woken(Notify);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}

/// Whoever comes again by a ticket shows no certificate anew, and rustls takes the one of before as it was then.
fn client_has_ended(stream: &TlsStream<Counted>) -> bool {
    let own = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    own.and_then(|own| expiry::not_after(own)).is_some_and(|ends| ends < crate::batch::now())
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

/// Whether what came is no piece of TLS at all.
fn is_no_tls(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    matches!(error, Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)))
}

fn lacks_certificate(error: &io::Error) -> bool {
    use rustls::Error::{InvalidCertificate, NoCertificatesPresented, Other};
    let error = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    // `Other` is what `clients.rs` refuses.
    matches!(error, Some(NoCertificatesPresented | InvalidCertificate(_) | Other(_)))
}

/// A TLS record that has not wholly come (RFC 8446, 5.1: five bytes, the last two of which are the length of the rest).
#[derive(Default)]
struct Record {
    bytes: usize,
    length: [u8; 2],
}

impl Record {
    const HEADER_BYTES: usize = 5;

    /// Goes on by what was read.
    fn follow(&mut self, mut read: &[u8]) {
        while let Some((first, others)) = read.split_first() {
            if self.bytes < Self::HEADER_BYTES {
                self.length = [self.length[1], *first];
                self.bytes += 1;
                read = others;
            } else {
                let more = self.left().min(read.len());
                self.bytes += more;
                read = &read[more..];
            }
            if self.bytes >= Self::HEADER_BYTES && self.left() == 0 {
                self.bytes = 0;
            }
        }
    }

    /// So much may be read at once that rustls lets go of the buffer for a large record: it does so when it reads with
    /// nothing left of what came before.
    fn read_most(&self) -> u64 {
        if self.bytes > LARGE_RECORD_BYTES { self.left() as u64 } else { u64::MAX }
    }

    /// How many bytes are to come, once the header has.
    fn left(&self) -> usize {
        Self::HEADER_BYTES + usize::from(u16::from_be_bytes(self.length)) - self.bytes
    }
}

/// A stream whose bytes count as unfinished until TLS has passed something on, which the framing guard sees.
pub(in crate::http) struct Counted {
    stream: Take<TcpStream>,
    record: Record,
    registry: Arc<Registry>,
    connection: Arc<Connection>,
}

impl Counted {
    /// Waits until the client is gone; for ever where it has sent something that nobody has read.
    async fn is_gone(&self) {
        match self.stream.get_ref().peek(&mut [0]).await {
            Ok(0) | Err(_) => {}
            Ok(_) => std::future::pending().await,
        }
    }
}

/// A handshake may go on for a moment when its connection is gone.
impl Drop for Counted {
    fn drop(&mut self) {
        self.registry.keep(&self.connection, Layer::Tls, 0);
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let limit = if self.registry.memory.has_short_reads() { self.record.read_most() } else { u64::MAX };
        self.stream.set_limit(limit);
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        let read = buffer.filled().len() - before;
        if read > 0 {
            self.record.follow(&buffer.filled()[before..]);
            self.connection.kept.record_bytes.store(self.record.bytes, Ordering::Relaxed);
            let bytes = self.connection.keeps(Layer::Tls) + read;
            self.registry.keep(&self.connection, Layer::Tls, bytes);
        }
        outcome
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.stream.get_mut()).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.stream.get_mut()).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.get_ref().is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behind_the_end_of_a_large_record_nothing_is_read_with_it() {
        let begun = |length: [u8; 2], bytes| {
            let mut record = Record::default();
            record.follow(&[&[0x17, 3, 3, length[0], length[1]][..], &vec![7; bytes]].concat());
            record.read_most()
        };
        assert_eq!(begun([0x40, 0], 4091), 0x4000 - 4091);
        assert_eq!(begun([0x40, 0], 0x3fff), 1);
        assert_eq!(begun([0x40, 0], 0x4000), u64::MAX, "it is whole");
        assert_eq!(begun([0x02, 0], 100), u64::MAX, "small ones come many at once");
    }

    #[test]
    fn of_records_only_the_one_that_has_not_wholly_come_is_counted_however_they_are_cut() {
        let records = [&[0x17, 3, 3, 0, 0][..], &[0x17, 3, 3, 1, 2], &[7; 258], &[0x16, 3, 1, 0, 9, 1, 2]].concat();
        for piece in 1..records.len() {
            let mut record = Record::default();
            records.chunks(piece).for_each(|piece| record.follow(piece));
            assert_eq!(record.bytes, 7, "in pieces of {piece}");
        }
    }
}
