//! The guard and hyper are held to each other: whatever a client sends, hyper sees the requests that the guard saw, with
//! the same bodies, or fewer because it refuses a body. What only one of them takes for a request was smuggled, and hyper's
//! own refusal of a head tells nobody the reason.

use std::convert::Infallible;
use std::sync::Mutex;

use axum::http::{Request, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;

use super::*;

/// A path and a body; no body where it did not come wholly.
type Seen = (String, Option<Vec<u8>>);

/// The requests in `stream`, by the guard's rules.
fn by_the_rules(stream: &[u8]) -> Vec<Seen> {
    let mut requests: Vec<Seen> = Vec::new();
    let mut framing = Framing::Head;
    let (mut begin, mut body) = (0, None);
    for end in 1..=stream.len() {
        let (passed, rest) = framing.follow(&stream[begin..end], 0);
        if !matches!(rest, Rest::None | Rest::Unfinished) {
            break;
        }
        if passed == 0 {
            continue;
        }
        if body.is_none() {
            let head = String::from_utf8_lossy(&stream[begin..end]);
            requests.push((head.trim_start().split(' ').nth(1).unwrap_or_default().to_owned(), None));
            body = Some((end, matches!(framing, Framing::Chunked(_))));
        }
        begin = end;
        if framing == Framing::Head
            && let Some((from, chunked)) = body.take()
        {
            let raw = &stream[from..end];
            requests.last_mut().unwrap().1 = Some(if chunked { unchunked(raw) } else { raw.to_vec() });
        }
    }
    requests
}

/// The data of a well-formed chunked body.
fn unchunked(mut raw: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    loop {
        let end = memchr::memchr(b'\n', raw).unwrap();
        let digits: String = raw.iter().map(|byte| char::from(*byte)).take_while(char::is_ascii_hexdigit).collect();
        let size = usize::from_str_radix(&digits, 16).unwrap();
        if size == 0 {
            return data;
        }
        data.extend_from_slice(&raw[end + 1..end + 1 + size]);
        raw = &raw[end + 1 + size + 2..];
    }
}

/// The requests in `stream`, sent in pieces of `step` bytes, that hyper gives to its service behind the guard.
fn by_hyper(stream: &[u8], step: usize) -> Vec<Seen> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let seen = Mutex::new(Vec::new());
    let service = service_fn(|request: Request<Incoming>| {
        let seen = &seen;
        async move {
            if request.method() != REFUSED_METHOD {
                let path = request.uri().to_string();
                let body = request.into_body().collect().await.ok().map(|body| body.to_bytes().to_vec());
                seen.lock().unwrap().push((path, body));
            }
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        }
    });
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let member = member();
        let guard = FramingGuard::new(server, &member);
        let served = http1::Builder::new().half_close(true).serve_connection(TokioIo::new(guard), service);
        let sent = async {
            for piece in stream.chunks(step) {
                if client.write_all(piece).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            let _ = client.shutdown().await;
            let _ = client.read_to_end(&mut Vec::new()).await;
        };
        let (served, ()) = futures_util::future::join(served, sent).await;
        let answers_itself = served.is_err_and(|error| error.is_parse());
        assert!(!answers_itself, "hyper refuses a head without a word: {:?}", String::from_utf8_lossy(stream));
    });
    seen.into_inner().unwrap()
}

fn line_end() -> impl Strategy<Value = &'static str> {
    prop_oneof![40 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r"), 1 => Just("\r\r\n"), 1 => Just("\n\r\n"), 1 => Just(" \r\n")]
}

/// What an attacker would like to be taken for a request, and other data.
fn data() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n".to_owned()),
        Just("0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n".to_owned()),
        Just("\r\n".to_owned()),
        "[a-z\r\n0;]{1,20}",
    ]
}

fn chunk() -> impl Strategy<Value = String> {
    let size = prop_oneof![10 => Just(0), 1 => Just(1), 1 => Just(-1)];
    let extension = prop_oneof![10 => Just(""), 1 => Just(";a=b"), 1 => Just(" "), 1 => Just(";\"\n\""), 1 => Just("\t;x"), 1 => Just("x")];
    let zeros = prop_oneof![10 => Just(""), 1 => Just("000"), 1 => Just("0x"), 1 => Just("+")];
    (data(), size, zeros, extension, line_end(), line_end()).prop_map(|(data, off, zeros, extension, first, second)| {
        let size = data.len().saturating_add_signed(off);
        format!("{zeros}{size:X}{extension}{first}{data}{second}")
    })
}

fn trailers() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        Just("X: a"),
        Just("X"),
        Just(""),
        Just("Content-Length: 5"),
        Just("GET /smuggled HTTP/1.1"),
        Just("Host: x")
    ];
    let lines = prop::collection::vec((name, line_end()), 0..3);
    (lines, line_end())
        .prop_map(|(lines, end)| lines.into_iter().map(|(name, end)| format!("{name}{end}")).collect::<String>() + end)
}

fn request() -> impl Strategy<Value = String> {
    let version =
        prop_oneof![20 => Just("HTTP/1.1"), 2 => Just("HTTP/1.0"), 1 => Just("HTTP/1.2"), 1 => Just("http/1.1")];
    let host = prop_oneof![20 => Just("Host: x\r\n"), 1 => Just(""), 1 => Just("Host: x\r\nHost: y\r\n")];
    let odd = prop_oneof![
        20 => Just(""),
        1 => Just("X: a\r\n b\r\n"),
        1 => Just("X : a\r\n"),
        1 => Just("Transfer-Encoding: chunked\r\n"),
        1 => Just("Transfer-Encoding: x\r\n"),
        1 => Just("Content-Length: 3\r\n"),
        1 => Just("Expect: 100-continue\r\n"),
        1 => Just("Upgrade: h2c\r\nConnection: upgrade\r\n"),
        1 => Just("X: \u{b}chunked\r\n"),
    ];
    let method = prop_oneof![10 => Just("POST"), 2 => Just("GET"), 1 => Just("CONNECT"), 1 => Just("HEAD")];
    let body = prop_oneof![
        Just("\r\n".to_owned()),
        (data(), line_end()).prop_map(|(data, end)| format!("Content-Length: {}{end}\r\n{data}", data.len())),
        (prop::collection::vec(chunk(), 0..3), line_end(), trailers()).prop_map(|(chunks, end, trailers)| {
            format!("Transfer-Encoding: chunked\r\n\r\n{}0{end}{trailers}", chunks.concat())
        }),
    ];
    (method, version, host, odd, body, line_end()).prop_map(|(method, version, host, odd, body, end)| {
        let path = if method == "CONNECT" { "a:1" } else { "/sent" };
        format!("{method} {path} {version}{end}{host}{odd}{body}")
    })
}

/// A byte of the stream, by its place, that becomes another one, or goes.
fn mutation() -> impl Strategy<Value = Option<(prop::sample::Index, Option<u8>)>> {
    let odd = prop::sample::select(b"\r\n :;0\t\0aG\xff".to_vec());
    prop::option::weighted(0.3, (any::<prop::sample::Index>(), prop::option::weighted(0.8, odd)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hyper_sees_the_requests_that_the_guard_saw_or_refuses(
        requests in prop::collection::vec(request(), 1..4),
        mutation in mutation(),
        step in prop_oneof![Just(1_usize), Just(7), Just(4096)],
    ) {
        let mut stream = requests.concat().into_bytes();
        match mutation {
            Some((at, Some(byte))) => { let at = at.index(stream.len()); stream[at] = byte; }
            Some((at, None)) => { stream.remove(at.index(stream.len())); }
            None => {}
        }
        let (ruled, seen) = (by_the_rules(&stream), by_hyper(&stream, step));
        prop_assert!(seen.len() <= ruled.len(), "{:?}: {seen:?}, but {ruled:?}", String::from_utf8_lossy(&stream));
        for (seen, ruled) in seen.iter().zip(&ruled) {
            prop_assert_eq!(&seen.0, &ruled.0, "{:?}", String::from_utf8_lossy(&stream));
            // hyper may refuse a body for its trailers or extensions.
            prop_assert!(seen.1.is_none() || seen.1 == ruled.1, "{:?}: {seen:?}, but {ruled:?}", String::from_utf8_lossy(&stream));
        }
    }
}

#[test]
fn the_property_sees_requests_at_all() {
    let stream = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\nhi\r\n0\r\nX: y\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n";
    let expected: Vec<Seen> = vec![("/a".to_owned(), Some(b"hi".to_vec())), ("/b".to_owned(), Some(Vec::new()))];
    assert_eq!(by_the_rules(stream), expected);
    assert_eq!(by_hyper(stream, 5), expected);
}
