//! The HTTP/1 server under all three services.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

pub(crate) type HttpRequest = hyper::Request<Incoming>;
pub(crate) type HttpResponse = hyper::Response<s3s::Body>;

/// What a handler returns to close the connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("connection dropped without an answer")]
pub(crate) struct Drop;

/// Serves `handler` on a free loopback port, and returns its address. A handler that returns
/// [`Drop`] closes its connection without an answer.
pub(crate) async fn serve<H, F>(handler: H) -> SocketAddr
where
    H: Fn(HttpRequest) -> F + Clone + Send + 'static,
    F: Future<Output = Result<HttpResponse, Drop>> + Send + 'static,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(handler.clone());
            tokio::spawn(async move { http1::Builder::new().serve_connection(TokioIo::new(stream), service).await });
        }
    });
    address
}

/// An answer with a body.
pub(crate) fn answer(status: u16, content_type: &str, body: impl Into<Bytes>) -> HttpResponse {
    let response = hyper::Response::builder().status(status).header("content-type", content_type);
    response.body(s3s::Body::from(body.into())).unwrap()
}

/// A request's whole body; an error when the client hangs up in the middle.
pub(crate) async fn read_body(request: HttpRequest) -> Result<Bytes, Drop> {
    use http_body_util::BodyExt;
    request.into_body().collect().await.map(|body| body.to_bytes()).map_err(|_| Drop)
}

/// `text` with the five characters that XML reserves escaped.
pub(crate) fn xml(text: &str) -> String {
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    escaped.replace('"', "&quot;").replace('\'', "&apos;")
}

/// `text` with `%XX` decoded.
pub(crate) fn percent_decode(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at(2.min(part.len()));
        bytes.extend(u8::from_str_radix(digits, 16));
        bytes.extend(rest.as_bytes());
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
