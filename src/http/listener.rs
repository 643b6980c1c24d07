//! The accept loop, and one connection from its first byte to its last. Time-outs of heads and answers are in
//! `framing.rs`, those of bodies with who reads them.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::header::{CONNECTION, CONTENT_TYPE, EXPECT};
use axum::http::{HeaderValue, Method, Request, Response, StatusCode};
use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use super::connections::{Guest, Trust};
use super::connections::{Layer, Member, READ_MOST_BYTES, Registry, head_bytes};
use super::framing::{FramingGuard, HEADERS_MAX, REFUSED_METHOD};
use super::refusals::{Fault, Refusals, Refused};
use super::site::Site;
use super::tls::Tls;
use crate::batch::clock_problem;

/// Says that nobody can listen on the address of `variable`, and what to do about it.
pub fn cannot_listen(variable: &str, address: SocketAddr, error: &io::Error) -> (String, &'static str) {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "end the program that listens there (`ss -ltnp` names it), or choose another address"
        }
        io::ErrorKind::PermissionDenied => "choose a port of 1024 or above, because this user may not have a lower one",
        io::ErrorKind::AddrNotAvailable => {
            "choose an address that this machine has (`ip address` lists them), or 0.0.0.0 for all of them"
        }
        _ => "choose another address",
    };
    (format!("{variable}: can't listen on {address}: {error}"), remedy)
}

/// A connection that has had so many 401s, and no request of which was let in, ends with the last of them: whoever
/// guesses or forges tokens pays for a new connection each time. A sender that mistook its token comes back.
const UNAUTHORIZED_MAX: usize = 8;
/// After an accept that failed, for instance for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listener's settings.
pub struct Listener {
    /// For the log.
    pub name: &'static str,
    /// Bound.
    pub tcp: TcpListener,
    /// `None`: in clear.
    pub tls: Option<Tls>,
    /// At once.
    pub max_connections: usize,
    /// Which browsers are refused.
    pub site: Site,
}

impl Listener {
    /// Serves until `stop`; then no connection is accepted, requests under way are finished, and it
    /// returns when the last connection is closed.
    pub async fn serve<H, F, B>(self, handler: Arc<H>, stop: CancellationToken)
    where
        H: Fn(Request<Incoming>, Guest) -> F + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body + From<Bytes> + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let connections = TaskTracker::new();
        let registry = Registry::new(self.max_connections, Refusals::new(self.name));
        let site = Arc::new(self.site);
        let closing = CancellationToken::new();
        let mut accept_fails = false;
        loop {
            let accepted = tokio::select! {
                accepted = accept(&self.tcp, &registry) => accepted,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, client)) => {
                    accept_fails = false;
                    let member = registry.enter(client.ip());
                    let entered = member.connection.clone();
                    let (handler, closing) = (handler.clone(), closing.clone());
                    let served = connection(stream, self.tls.clone(), member, handler, site.clone(), closing);
                    entered.is_served_by(connections.spawn(served).abort_handle());
                }
                // The client has left the queue; the next one is there at once.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if !std::mem::replace(&mut accept_fails, true) {
                        tracing::warn!(%error, listener = self.name, "connections can't be accepted; trying again");
                    }
                    registry.close_one();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.tcp);
        registry.is_closing.store(true, Ordering::Release);
        closing.cancel();
        connections.close();
        connections.wait().await;
    }
}

/// The next connection; at the limit, room is made first.
async fn accept(tcp: &TcpListener, registry: &Registry) -> io::Result<(TcpStream, SocketAddr)> {
    let accepted = tcp.accept().await?;
    registry.make_room().await;
    Ok(accepted)
}

async fn connection<H, F, B>(
    stream: TcpStream,
    tls: Option<Tls>,
    member: Member,
    handler: Arc<H>,
    site: Arc<Site>,
    closing: CancellationToken,
) where
    H: Fn(Request<Incoming>, Guest) -> F + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body + From<Bytes> + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    // Answers are small and whole; waiting for more to send only costs time.
    let _ = stream.set_nodelay(true);
    match tls {
        None => serve(stream, &member, handler, &site, closing).await,
        Some(tls) => {
            if let Some(stream) = tls.accept(stream, &member).await {
                serve(stream, &member, handler, &site, closing).await;
            }
        }
    }
}

async fn serve<S, H, F, B>(stream: S, member: &Member, handler: Arc<H>, site: &Site, closing: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Fn(Request<Incoming>, Guest) -> F + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body + From<Bytes> + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let Member { connection, registry, .. } = member;
    let stream = FramingGuard::new(stream, member);
    let requests = &Requests { member, site, turn_is_over: AtomicBool::new(false), unauthorized: AtomicUsize::new(0) };
    let service = service_fn(|request: Request<Incoming>| {
        member.may_close();
        let refused = requests.fault_of(&request);
        registry.keep(connection, Layer::Request, head_bytes(request.uri(), request.headers()));
        let asks_first = connection.is_in_body() && request.headers().contains_key(EXPECT);
        let handler = &handler;
        // The handler's future is made where it stays: it is large, and each move of it is a copy.
        async move {
            if requests.turn_is_over.load(Ordering::Relaxed) {
                tokio::task::yield_now().await;
            }
            let mut answer = match refused {
                Some(fault) => refusal(fault),
                None => handler(request, Guest { registry: registry.clone(), connection: connection.clone() }).await,
            };
            requests.finish(&mut answer, asks_first);
            Ok::<_, Infallible>(answer)
        }
    });
    let mut served = pin!(
        http1::Builder::new()
            // A client that has closed its sending half still waits for the answer. Without this, a read that waits for
            // the end of the stream would also hold a buffer.
            .half_close(true)
            .max_buf_size(READ_MOST_BYTES)
            .max_headers(HEADERS_MAX)
            .serve_connection(TokioIo::new(stream), service)
    );
    let outcome = match or_closing(served.as_mut(), &closing, registry).await {
        Some(outcome) => outcome,
        None => {
            served.as_mut().graceful_shutdown();
            poll_fn(|context| poll_dated(served.as_mut(), context)).await
        }
    };
    if let Some(Err(error)) = outcome {
        tracing::debug!(%error, "a connection ended early");
        // hyper has answered it.
        if error.is_parse_too_large() {
            registry.refusals.count(Refused::HeadTooLarge, connection.client, &"");
        } else if error.is_parse() {
            registry.refusals.count(Refused::Malformed, connection.client, &error);
        }
    }
}

/// What the requests of one connection share.
struct Requests<'a> {
    member: &'a Member,
    site: &'a Site,
    /// A client may send hundreds of requests at once. Those that are let in wait for the disk; after each other one, it
    /// is everybody else's turn.
    turn_is_over: AtomicBool,
    /// How many were answered 401.
    unauthorized: AtomicUsize,
}

impl Requests<'_> {
    /// What a request is refused for before its handler sees it.
    fn fault_of(&self, request: &Request<Incoming>) -> Option<Fault> {
        let Member { connection, registry, .. } = self.member;
        match connection.refused.get() {
            Some(fault) if is_guards_own(request.method()) => Some(*fault),
            _ => self.site.refusal(request.method(), request.uri(), request.headers()).map(|refused| {
                registry.refusals.count(refused, connection.client, &"");
                refused.into()
            }),
        }
    }

    /// Completes an answer, and decides whether the connection ends with it. `asks_first`: the request waits to be asked
    /// for its body.
    fn finish<B>(&self, answer: &mut Response<B>, asks_first: bool) {
        let Member { connection, registry, .. } = self.member;
        let guesses = answer.status() == StatusCode::UNAUTHORIZED
            && connection.is_stranger()
            && self.unauthorized.fetch_add(1, Ordering::Relaxed) + 1 >= UNAUTHORIZED_MAX;
        // hyper ends the connection behind a body that is broken, and where nobody has told the client to send one.
        let is_broken = answer.status().is_client_error() && connection.turned_away.load(Ordering::Relaxed);
        let is_not_asked_for = asks_first && connection.is_in_body();
        let makes_room =
            connection.makes_room.load(Ordering::Relaxed) || registry.memory.has_too_large_a_buffer(&connection.kept);
        if guesses || is_broken || is_not_asked_for || makes_room {
            connection.turned_away.store(true, Ordering::Relaxed);
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        self.turn_is_over.store(!connection.is_at_work(), Ordering::Relaxed);
        self.member.may_close();
        [Layer::Request, Layer::Waiting].into_iter().for_each(|layer| registry.keep(connection, layer, 0));
    }
}

/// Serves a connection on. hyper formats the `Date` each time, and ends the process where HTTP has no form for it; then
/// this is `None`, and the connection ends without an answer.
fn poll_dated<C: Future>(served: Pin<&mut C>, context: &mut Context<'_>) -> Poll<Option<C::Output>> {
    if clock_problem().is_none() { served.poll(context).map(Some) } else { Poll::Ready(None) }
}

/// How a connection ended, as [`poll_dated`] has it; `None` once all are to close, with the connection still to be served.
async fn or_closing<C: Future>(
    mut served: Pin<&mut C>,
    closing: &CancellationToken,
    registry: &Registry,
) -> Option<Option<C::Output>> {
    // Waited for once: the task stays the same, so it is woken. Each look at the token takes locks that all connections
    // share.
    let (mut closes, mut is_awaited) = (pin!(closing.cancelled()), false);
    poll_fn(|context| {
        if let Poll::Ready(outcome) = poll_dated(served.as_mut(), context) {
            return Poll::Ready(Some(outcome));
        }
        if std::mem::replace(&mut is_awaited, true) && !registry.is_closing.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        closes.as_mut().poll(context).map(|()| None)
    })
    .await
}

fn is_guards_own(method: &Method) -> bool {
    method.as_str() == REFUSED_METHOD
}

/// The answer in place of one to a request; the connection ends with it.
fn refusal<B: From<Bytes>>(Fault { refused, detail }: Fault) -> Response<B> {
    let between = if detail.is_empty() { "" } else { ": " };
    let body = serde_json::json!({ "error": format!("{}{between}{detail}", refused.words()) }).to_string();
    let mut answer = Response::new(B::from(body.into()));
    *answer.status_mut() = refused.status();
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn who_sends_many_requests_at_once_takes_turns_with_the_others() {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let listener = Listener { name: "admin", tcp, tls: None, max_connections: 8, site: Site::default() };
        let served = Arc::new(std::sync::Mutex::new(Vec::new()));
        let paths = served.clone();
        let handler = Arc::new(move |request: Request<Incoming>, _: Guest| {
            paths.lock().unwrap().push(request.uri().path().to_owned());
            async { Response::new(Full::<Bytes>::default()) }
        });
        let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        let (mut many, mut one) =
            (TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap());
        many.write_all(request("/many").repeat(100).as_bytes()).await.unwrap();
        one.write_all(request("/one").as_bytes()).await.unwrap();
        let serving = tokio::spawn(listener.serve(handler, CancellationToken::new()));
        assert!(one.read(&mut [0; 1024]).await.unwrap() > 0);
        let before = served.lock().unwrap().iter().position(|path| path == "/one").unwrap();
        assert!(before <= 3, "{before} of another connection were served first");
        serving.abort();
    }

    #[tokio::test]
    async fn an_idle_connection_is_closed_when_the_listener_ends() {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let listener = Listener { name: "ingest", tcp, tls: None, max_connections: 8, site: Site::default() };
        let handler = Arc::new(|_: Request<Incoming>, _: Guest| async { Response::new(Full::<Bytes>::default()) });
        let stop = CancellationToken::new();
        let served = tokio::spawn(listener.serve(handler, stop.clone()));
        let (mut client, mut answer) = (TcpStream::connect(address).await.unwrap(), [0; 1024]);
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let bytes = client.read(&mut answer).await.unwrap();
        assert!(answer[..bytes].starts_with(b"HTTP/1.1 200 OK\r\n"));
        stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(30), served).await;
        ended.expect("an idle connection holds the end up").unwrap();
        assert_eq!(client.read(&mut answer).await.unwrap(), 0);
    }
}
