//! One TLS handshake: in time, within memory that strangers share, and in turns by address.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::InvalidMessage;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
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
                registry.unfinished(connection, Layer::Tls, 0);
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
        let mut rest = pin!(hello.into_stream_with(settings, |tls| tls.set_buffer_limit(Some(UNREAD_MAX_BYTES))));
        let turn = member.handshake_turn().await;
        // Nearly all of the work is done here, before the client is waited for.
        let outcome = poll_fn(|context| Poll::Ready(rest.as_mut().poll(context))).await;
        drop(turn);
        match outcome {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => rest.await,
        }
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
            let bytes = self.connection.unfinished(Layer::Tls) + read;
            self.registry.unfinished(&self.connection, Layer::Tls, bytes);
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
