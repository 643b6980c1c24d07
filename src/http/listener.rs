//! The accept loop: connections, their limit, TLS. Their time-outs are in `framing.rs` and `receive.rs`.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use axum::http::{Request, Response};
use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::http::framing::FramingGuard;
use crate::http::tls::Tls;

const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Read buffer of a connection, and the most that a request's head may have.
const BUFFER_MAX_BYTES: usize = 64 * 1024;
/// What the reads of all connections may bring at once, shared by those that are open.
const READS_BYTES: usize = 3 * 1024 * 1024;
/// Of one connection, however many there are.
const READ_LEAST_BYTES: usize = 4 * 1024;
const HEADERS_MAX: usize = 100;
/// After an accept that failed, for instance for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listener's settings.
pub struct Listener {
    /// Bound.
    pub tcp: TcpListener,
    /// `None`: in clear.
    pub tls: Option<Tls>,
    /// At once.
    pub max_connections: usize,
}

impl Listener {
    /// Serves until `stop`; then no connection is accepted, requests under way are finished, and it
    /// returns when the last connection is closed.
    pub async fn serve<H, F>(self, handler: Arc<H>, stop: CancellationToken)
    where
        H: Fn(Request<Incoming>, Guest) -> F + Send + Sync + 'static,
        F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        let connections = TaskTracker::new();
        let registry = Arc::new(Registry::default());
        let mut accept_fails = false;
        loop {
            let accepted = tokio::select! {
                accepted = self.accept(&registry) => accepted,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    accept_fails = false;
                    let member = registry.enter();
                    let entered = member.connection.clone();
                    let served = connection(stream, self.tls.clone(), member, handler.clone(), stop.clone());
                    let _ = entered.task.set(connections.spawn(served).abort_handle());
                }
                Err(error) => {
                    if !std::mem::replace(&mut accept_fails, true) {
                        tracing::warn!(%error, "connections can't be accepted; trying again");
                    }
                    registry.close_longest_idle();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.tcp);
        connections.close();
        connections.wait().await;
    }

    /// The next connection; at the limit, room is made first.
    async fn accept(&self, registry: &Registry) -> io::Result<(TcpStream, SocketAddr)> {
        let accepted = self.tcp.accept().await?;
        loop {
            // Before the look, so that nobody who leaves after it is missed.
            let left = registry.left.notified();
            if registry.count() < self.max_connections {
                break;
            }
            if !registry.close_longest_idle() {
                // All are at work on a request; one of them ends.
                left.await;
            }
        }
        Ok(accepted)
    }
}

/// The connection of a request. At the limit of connections it may be closed, until the request is let in.
pub struct Guest(Arc<Connection>);

impl Guest {
    /// The request is one to be served: its connection stays until it is answered.
    pub fn let_in(&self) {
        self.0.without_request_since.store(AT_WORK, Ordering::Relaxed);
    }
}

/// All connections, and since when each has had no request that was let in.
#[derive(Default)]
struct Registry {
    open: Mutex<Open>,
    /// The next moment since which a connection has had no request: who is longest without has the least.
    moments: AtomicU64,
    left: tokio::sync::Notify,
    /// Each connection's share of [`READS_BYTES`].
    read_max_bytes: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Open {
    last_id: u64,
    connections: HashMap<u64, Arc<Connection>>,
}

struct Connection {
    /// One of [`Registry::moments`], or [`AT_WORK`].
    without_request_since: AtomicU64,
    /// Set before the next connection is accepted.
    task: OnceLock<AbortHandle>,
}

/// A request is served.
const AT_WORK: u64 = u64::MAX;

impl Registry {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) -> usize {
        self.open().connections.len()
    }

    fn enter(self: &Arc<Self>) -> Membership {
        let connection =
            Arc::new(Connection { without_request_since: AtomicU64::new(self.moment()), task: OnceLock::new() });
        let mut open = self.open();
        open.last_id += 1;
        let id = open.last_id;
        open.connections.insert(id, connection.clone());
        self.share_reads(&open);
        Membership { registry: self.clone(), id, connection }
    }

    fn moment(&self) -> u64 {
        self.moments.fetch_add(1, Ordering::Relaxed)
    }

    /// As the last one, for now.
    fn may_close(&self, connection: &Connection) {
        connection.without_request_since.store(self.moment(), Ordering::Relaxed);
    }

    fn share_reads(&self, open: &Open) {
        let share = READS_BYTES / open.connections.len().max(1);
        self.read_max_bytes.store(share.clamp(READ_LEAST_BYTES, BUFFER_MAX_BYTES), Ordering::Relaxed);
    }

    /// Closes the connection that has been longest without a request; false when all are at work.
    fn close_longest_idle(&self) -> bool {
        let mut open = self.open();
        let since = |connection: &Connection| connection.without_request_since.load(Ordering::Relaxed);
        let idle = open.connections.iter().map(|(id, connection)| (since(connection), *id));
        let Some((_, id)) = idle.min().filter(|(since, _)| *since != AT_WORK) else { return false };
        if let Some(task) = open.connections.remove(&id).as_deref().and_then(|connection| connection.task.get()) {
            task.abort();
        }
        true
    }
}

/// A connection's place in the registry, given back on drop.
struct Membership {
    registry: Arc<Registry>,
    id: u64,
    connection: Arc<Connection>,
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut open = self.registry.open();
        open.connections.remove(&self.id);
        self.registry.share_reads(&open);
        drop(open);
        self.registry.left.notify_waiters();
    }
}

async fn connection<H, F>(
    stream: TcpStream,
    tls: Option<Tls>,
    membership: Membership,
    handler: Arc<H>,
    stop: CancellationToken,
) where
    H: Fn(Request<Incoming>, Guest) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    // Answers are small and whole; waiting for more to send only costs time.
    let _ = stream.set_nodelay(true);
    match tls {
        None => serve(stream, &membership, handler, stop).await,
        Some(tls) => {
            let handshake = tokio::time::timeout(TLS_HANDSHAKE_TIMEOUT, tls.acceptor().accept(stream));
            match handshake.await {
                Ok(Ok(stream)) => serve(stream, &membership, handler, stop).await,
                Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                Err(_) => tracing::debug!("a TLS handshake took too long"),
            }
        }
    }
}

async fn serve<S, H, F>(stream: S, membership: &Membership, handler: Arc<H>, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Fn(Request<Incoming>, Guest) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let Membership { connection, registry, .. } = membership;
    let stream = FramingGuard::new(stream, registry.read_max_bytes.clone());
    let service = service_fn(|request| {
        registry.may_close(connection);
        let answer = handler(request, Guest(connection.clone()));
        answer.map(move |answer| {
            registry.may_close(connection);
            Ok::<_, std::convert::Infallible>(answer)
        })
    });
    let mut served = std::pin::pin!(
        http1::Builder::new()
            // Who has nothing more to send still waits for the answer; and a read that waits for the end holds a buffer.
            .half_close(true)
            .max_buf_size(BUFFER_MAX_BYTES)
            .max_headers(HEADERS_MAX)
            .serve_connection(TokioIo::new(stream), service)
    );
    let outcome = tokio::select! {
        biased;
        outcome = served.as_mut() => outcome,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_share_what_their_reads_may_bring_and_each_has_a_least_and_a_most() {
        let registry = Arc::new(Registry::default());
        let share = || registry.read_max_bytes.load(Ordering::Relaxed);
        let mut members = vec![registry.enter()];
        assert_eq!(share(), BUFFER_MAX_BYTES);
        members.resize_with(256, || registry.enter());
        assert_eq!(share(), READS_BYTES / 256);
        members.resize_with(4096, || registry.enter());
        assert_eq!(share(), READ_LEAST_BYTES);
        members.truncate(1);
        assert_eq!(share(), BUFFER_MAX_BYTES);
    }
}
