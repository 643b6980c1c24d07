//! One TLS handshake: in time, within memory that strangers share, and in turns by address.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use rustls::InvalidMessage;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::Tls;
use crate::http::connections::{Connection, Layer, Member, Registry};
use crate::http::refusals::Refused;

/// From the accept to the handshake's end.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// What TLS keeps of an answer that the client does not read.
const UNREAD_MAX_BYTES: usize = 16 * 1024;
const NO_TLS: &str = "what came is no TLS, but plain HTTP perhaps: use https://";

impl Tls {
    /// Does the handshake; a failure is counted and said.
    pub(in crate::http) async fn accept(&self, stream: TcpStream, member: &Member) -> Option<TlsStream<Counted>> {
        let Member { registry, connection, .. } = member;
        let stream = Counted { stream, registry: registry.clone(), connection: connection.clone() };
        let refused = match tokio::time::timeout(HANDSHAKE_TIMEOUT, self.handshake(stream, member)).await {
            Ok(Ok(stream)) => {
                registry.keep(connection, Layer::Tls, 0);
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
        member.has_greeted();
        let settings = self.settings();
        let rest = hello.into_stream_with(settings, |tls| tls.set_buffer_limit(Some(UNREAD_MAX_BYTES)));
        let mut rest = Box::pin(rest);
        let woken = Arc::new(Woken(Notify::new()));
        loop {
            let turn = member.handshake_turn().await;
            // This runs beside the runtime: with an RSA key of 4,096 bits it takes milliseconds, and requests go on.
            let waker = Waker::from(woken.clone());
            let step = tokio::task::spawn_blocking(move || {
                let outcome = rest.as_mut().poll(&mut Context::from_waker(&waker));
                // The turn ends here, because the computation goes on when the connection is closed for another one.
                drop(turn);
                (rest, outcome)
            });
            let outcome;
            (rest, outcome) = step.await.map_err(io::Error::other)?;
            match outcome {
                Poll::Ready(outcome) => return outcome,
                Poll::Pending => woken.0.notified().await,
            }
        }
    }
}

/// The client has sent more of its handshake, or has taken more.
struct Woken(Notify);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
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

/// A stream whose bytes count as unfinished until they have become a piece of TLS, which the framing guard sees.
pub(in crate::http) struct Counted {
    stream: TcpStream,
    registry: Arc<Registry>,
    connection: Arc<Connection>,
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
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        let read = buffer.filled().len() - before;
        if read > 0 {
            let bytes = self.connection.keeps(Layer::Tls) + read;
            self.registry.keep(&self.connection, Layer::Tls, bytes);
        }
        outcome
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
