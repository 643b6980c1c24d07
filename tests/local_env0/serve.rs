//! The HTTP side: the key, the paths, the faults.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{DATE, HeaderValue, LOCATION, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;

use super::{Fault, KEY, ORGANIZATION, World, audits, deployments};

type Body = BoxBody<Bytes, std::io::Error>;

/// Serves on a free loopback port.
pub(super) async fn start(world: Arc<World>) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let world = world.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let world = world.clone();
                async move { answer(&world, &request).await }
            });
            tokio::spawn(async move { http1::Builder::new().serve_connection(TokioIo::new(stream), service).await });
        }
    });
    address
}

fn body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed()
}

fn reply(status: u16, content_type: &str, text: impl Into<Bytes>) -> Response<Body> {
    Response::builder().status(status).header("content-type", content_type).body(body(text)).unwrap()
}

fn json_reply(status: u16, json: impl Into<Bytes>) -> Response<Body> {
    reply(status, "application/json", json)
}

/// What closes the connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("dropped without an answer")]
struct Dropped;

/// Counts a request until it is answered or given up.
struct Running<'a>(&'a World);

impl Running<'_> {
    fn begin(world: &World) -> Running<'_> {
        let running = &mut world.lock().running;
        *running = (running.0 + 1, running.1.max(running.0 + 1));
        Running(world)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.lock().running.0 -= 1;
    }
}

async fn answer(world: &World, request: &Request<Incoming>) -> Result<Response<Body>, Dropped> {
    let _running = Running::begin(world);
    let latency = world.lock().latency;
    tokio::time::sleep(latency).await;
    let mut reply = answer_undated(world, request).await?;
    let now = Utc::now() - world.lock().clock_behind;
    reply.headers_mut().insert(DATE, http_date(now));
    Ok(reply)
}

fn http_date(time: DateTime<Utc>) -> HeaderValue {
    HeaderValue::from_str(&time.format("%a, %d %b %Y %H:%M:%S GMT").to_string()).unwrap()
}

async fn answer_undated(world: &World, request: &Request<Incoming>) -> Result<Response<Body>, Dropped> {
    let path = request.uri().path().to_owned();
    let fault = {
        let mut state = world.lock();
        state.requests.push(request.uri().to_string());
        let injected = state.faults.iter_mut().find(|(known, faults)| path.starts_with(&**known) && !faults.is_empty());
        let injected = injected.and_then(|(_, faults)| faults.pop_front());
        injected.or_else(|| Some(state.lasting.iter().find(|(known, _)| path.starts_with(&***known))?.1.clone()))
    };
    match fault {
        None | Some(Fault::Pass) => Ok(right_answer(world, request)),
        Some(Fault::CutAfter(bytes)) => {
            let whole = right_answer(world, request).into_body().collect().await.unwrap().to_bytes();
            let begun = Ok(Frame::data(whole.slice(..bytes.min(whole.len()))));
            Ok(Response::new(StreamBody::new(stream::iter([begun, Err(std::io::Error::other("cut"))])).boxed()))
        }
        Some(Fault::Chunked) => {
            let whole = right_answer(world, request).into_body().collect().await.unwrap().to_bytes();
            let chunks: Vec<_> =
                whole.chunks(65536).map(|chunk| Ok(Frame::data(Bytes::copy_from_slice(chunk)))).collect();
            Ok(Response::new(StreamBody::new(stream::iter(chunks)).boxed()))
        }
        Some(Fault::Silent) => std::future::pending().await,
        Some(fault) => broken(&fault),
    }
}

fn right_answer(world: &World, request: &Request<Incoming>) -> Response<Body> {
    let path = request.uri().path();
    let expected = format!("Basic {}", STANDARD.encode(format!("{}:{}", KEY.0, KEY.1)));
    if request.headers().get("authorization").and_then(|value| value.to_str().ok()) != Some(&expected) {
        return json_reply(401, r#"{"message":"Unauthorized"}"#);
    }
    let url = reqwest::Url::parse(&format!("http://env0{}", request.uri())).unwrap();
    let query = |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    let state = world.lock();
    match path {
        "/organizations" => {
            let ids = std::iter::once(ORGANIZATION).chain(state.other_organizations.iter().map(|id| &**id));
            let record = |id| json!({"id": id, "name": "acme", "role": "Admin"});
            json_reply(200, serde_json::Value::from_iter(ids.map(record)).to_string())
        }
        "/audit/events" => match audits::page(&state, &query) {
            Ok(page) => json_reply(200, page),
            Err(refusal) => json_reply(400, refusal.to_string()),
        },
        _ if path.starts_with("/environments") || path.starts_with("/deployments/") => {
            let parts: Vec<String> = url.path_segments().unwrap().map(percent_decode).collect();
            match deployments::answer(&state, &parts, &query) {
                Some((status, text)) => json_reply(status, text),
                None => json_reply(404, r#"{"message":"Not Found"}"#),
            }
        }
        // It forwards nothing by itself.
        "/log-forwarding/configurations" => json_reply(200, "[]"),
        _ => json_reply(403, r#"{"message":"Missing Authentication Token"}"#),
    }
}

fn percent_decode(part: &str) -> String {
    percent_encoding::percent_decode_str(part).decode_utf8().unwrap().into_owned()
}

fn broken(fault: &Fault) -> Result<Response<Body>, Dropped> {
    let endless = || stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(&[b' '; 65536]))));
    Ok(match fault {
        Fault::Status(status, text, retry_after) => {
            let mut reply = json_reply(*status, *text);
            if let Some(seconds) = retry_after {
                reply.headers_mut().insert(RETRY_AFTER, (*seconds).into());
            }
            reply
        }
        Fault::ThrottledUntil(seconds) => {
            let mut reply = json_reply(429, "");
            reply.headers_mut().insert(RETRY_AFTER, http_date(Utc::now() + TimeDelta::seconds(*seconds as i64)));
            reply
        }
        Fault::Redirect(location) => {
            let mut reply = json_reply(302, "");
            reply.headers_mut().insert(LOCATION, HeaderValue::from_str(location).unwrap());
            reply
        }
        Fault::Html => reply(200, "text/html", "<!DOCTYPE html><title>Blocked</title>"),
        Fault::Page(status) => reply(*status, "text/html", "<html>Not found - proxy</html>"),
        Fault::Bytes(bytes) => json_reply(200, *bytes),
        Fault::Json(json) => json_reply(200, *json),
        Fault::Endless => Response::new(StreamBody::new(endless()).boxed()),
        Fault::Cut => {
            let begun = Ok(Frame::data(Bytes::from_static(b"{\"events\":[{\"id\":")));
            Response::new(StreamBody::new(stream::iter([begun, Err(std::io::Error::other("cut"))])).boxed())
        }
        Fault::Stalls(bytes) => {
            let begun = stream::iter([Ok(Frame::data(Bytes::from(vec![b' '; *bytes])))]);
            Response::new(StreamBody::new(futures_util::StreamExt::chain(begun, stream::pending())).boxed())
        }
        Fault::Promised(bytes) => {
            let reply = Response::builder().header("content-length", *bytes);
            reply.body(StreamBody::new(endless()).boxed()).unwrap()
        }
        Fault::Dropped | Fault::Silent | Fault::Pass | Fault::Chunked | Fault::CutAfter(_) => return Err(Dropped),
    })
}
