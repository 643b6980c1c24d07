//! Those who send what does harm: half bodies, bombs, and of every protocol what grows most on its way to lines.

use std::io::Write;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{Daemon, Raw, event};

pub(super) const MIB: usize = 1024 * 1024;

/// Whose token a sender has, and where it sends events in the native form.
#[derive(Clone, Copy)]
pub(super) struct Bearer<'a> {
    pub(super) token: &'a str,
    pub(super) path: &'static str,
}

/// What a sender does once.
pub(super) enum Act {
    /// A body of this length, of which so much comes.
    Half(usize, usize),
    /// A body of 4 MiB, of which one comes before the connection is closed.
    Left,
    /// The head of a stranger, without an end.
    Head,
    /// Tokens that are handed over from many addresses at once, in chunks or not, without an end.
    Tokens,
    /// Connections that have each sent a large body, and stay.
    Stay,
    /// Tokens with a wrong signature, as many as one write takes, one behind the other.
    Forged,
    /// Questions for the metrics, likewise.
    Metrics,
    /// A whole request: path and query, headers, body. `{native}` and `{token}` stand for the bearer's own.
    Post(String, &'static str, Vec<u8>),
}

const NATIVE: &str = "{native}";
const GZIP: &str = "Content-Encoding: gzip\r\n";
const PROTOBUF: &str = "Content-Type: application/x-protobuf\r\n";
const PROTOBUF_GZIP: &str = "Content-Type: application/x-protobuf\r\nContent-Encoding: gzip\r\n";

/// By name. Made once: they are to load the daemon, not the test.
pub(super) static SENDERS: LazyLock<Vec<(&str, Act)>> = LazyLock::new(|| {
    let lines = format!("{}\n", event(&"x".repeat(4000)));
    let empty_values = |count| {
        format!(r#"{{"streams":[{{"stream":{{"a":"b"}},"values":[{}["1",""]]}}]}}"#, r#"["1",""],"#.repeat(count))
    };
    let large_resource = format!(
        r#"{{"resourceLogs":[{{"resource":{{"attributes":[{{"key":"k","value":{{"stringValue":"{}"}}}}]}},"scopeLogs":[{{"logRecords":[{}{{}}]}}]}}]}}"#,
        "r".repeat(100_000),
        "{},".repeat(MIB),
    );
    let attributes = format!(
        r#"[{{"common":{{"attributes":{{"a":"{}"}}}},"logs":[{}{{}}]}}]"#,
        "c".repeat(100_000),
        "{},".repeat(MIB),
    );
    let alternating = r#"{"source":"env0-audits","event":1}{"source":"env0-deployments","event":1}"#.repeat(MIB / 8);
    let metadata = field(3, &field(1, b"n")).repeat(100_000);
    let stream = |labels: &[u8], entries: &[u8]| field(1, &[field(1, labels), entries.to_vec()].concat());
    let words = "h".repeat(7000);
    let post = |path: &str, headers, body| Act::Post(path.to_owned(), headers, body);
    vec![
        ("halves of the largest body", Act::Half(16 * MIB, 8 * MIB)),
        ("halves of bodies of 1 MiB", Act::Half(MIB, MIB / 2)),
        ("bodies that are left", Act::Left),
        ("heads that never end", Act::Head),
        ("tokens that never end", Act::Tokens),
        ("connections that stay", Act::Stay),
        ("tokens with a wrong signature", Act::Forged),
        ("questions for the metrics", Act::Metrics),
        ("bodies of 4 MiB", post(NATIVE, "", lines.repeat(4 * MIB / lines.len()).into())),
        ("text that grows", post(NATIVE, "", "a\n".repeat(MIB / 8).into())),
        ("text that isn't UTF-8", post(NATIVE, GZIP, gzip(&b"\xff\n".repeat(MIB)))),
        ("an array that is copied", post(NATIVE, "", format!("[{}]", vec![event("y"); MIB / 64].join(",")).into())),
        ("objects over many lines", post(NATIVE, GZIP, gzip(b"{\n\"a\"\n:\n1}".repeat(MIB).as_slice()))),
        ("bombs of gzip", post(NATIVE, GZIP, gzip(&vec![b' '; 32 * MIB]))),
        ("bombs of zstd", post(NATIVE, "Content-Encoding: zstd\r\n", zstd(&vec![b' '; 15 * MIB]))),
        ("bombs in bombs", post(NATIVE, GZIP, gzip(&gzip(&b"{}".repeat(7 * MIB))))),
        ("empty objects", post(NATIVE, GZIP, gzip(&b"{}".repeat(7 * MIB)))),
        ("Splunk envelopes", post("/services/collector/event", GZIP, gzip(&br#"{"event":1}"#.repeat(1_400_000)))),
        ("Splunk envelopes of both types", post("/services/collector/event", GZIP, gzip(alternating.as_bytes()))),
        (
            "Splunk lines with a long query",
            post(&format!("/services/collector/raw?host={words}"), GZIP, gzip(&b"a\n".repeat(4600))),
        ),
        (
            "Loki values in JSON",
            post(
                "/loki/api/v1/push",
                "Content-Type: application/json\r\nContent-Encoding: gzip\r\n",
                gzip(empty_values(1_400_000).as_bytes()),
            ),
        ),
        (
            "Loki label of commas",
            post(
                "/loki/api/v1/push",
                PROTOBUF,
                snappy(&stream(format!("{{{}}}", ",".repeat(9_000_000)).as_bytes(), &field(2, &field(2, b"x")))),
            ),
        ),
        (
            "Loki metadata",
            post(
                "/loki/api/v1/push",
                PROTOBUF,
                snappy(&stream(b"{}", &field(2, &[field(2, b"x"), metadata].concat()).repeat(3))),
            ),
        ),
        (
            "Loki entries that are empty",
            post("/loki/api/v1/push", PROTOBUF, snappy(&stream(b"{a=\"b\"}", &field(2, b"").repeat(4 * MIB)))),
        ),
        (
            "OTLP records in JSON",
            post(
                "/v1/logs",
                "Content-Type: application/json\r\nContent-Encoding: gzip\r\n",
                gzip(large_resource.as_bytes()),
            ),
        ),
        (
            "OTLP records in protobuf",
            post("/v1/logs", PROTOBUF_GZIP, gzip(&field(1, &field(2, &field(2, b"").repeat(4 * MIB))))),
        ),
        ("New Relic's logs", post("/log/v1", GZIP, gzip(attributes.as_bytes()))),
        ("Logz.io's lines", post("/?type=x", GZIP, gzip(&b"{\"a\":1}\n".repeat(MIB)))),
        (
            "Sumo Logic's lines",
            post(
                "/receiver/v1/http/{token}",
                "X-Sumo-Name: long\r\nContent-Encoding: gzip\r\n",
                gzip(&b"a\n".repeat(MIB)),
            ),
        ),
    ]
});

/// A member of a protobuf message that has a length.
pub(super) fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut encoded = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        encoded.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    encoded.push(length as u8);
    encoded.extend_from_slice(bytes);
    encoded
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

pub(super) fn snappy(bytes: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(bytes).unwrap()
}

impl Act {
    /// Whatever it is answered.
    pub(super) fn run(&self, daemon: &Daemon, bearer: Bearer<'_>, done: &AtomicBool) {
        let Ok(mut raw) = Raw::connect(daemon.listen) else { return };
        let Bearer { token, path: native } = bearer;
        let head = |length| head(native, token, "", length);
        match self {
            Act::Half(length, sent) => {
                let _ = raw.write(head(*length));
                // While the daemon doesn't read, this waits; in pieces, so that the end of the test is seen.
                for _ in 0..sent / (64 * 1024) {
                    if done.load(Ordering::SeqCst) || raw.write([b' '; 64 * 1024]).is_err() {
                        return;
                    }
                }
                wait(done, Duration::from_secs(8));
            }
            Act::Left => {
                let _ = raw.write(head(4 * MIB)).and_then(|()| raw.write(vec![b' '; MIB]));
                drop(raw);
                // Left as fast as can be, they are a flood of connections, which is another matter.
                wait(done, Duration::from_millis(50));
            }
            Act::Head => {
                let _ = raw.write(format!("POST {native} HTTP/1.1\r\nHost: x\r\nX: {}", "x".repeat(15_000)));
                wait(done, Duration::from_secs(2));
            }
            Act::Tokens => {
                static LAST: AtomicU16 = AtomicU16::new(0);
                let unfinished = (0..100).filter_map(|_| {
                    let number = LAST.fetch_add(1, Ordering::Relaxed);
                    let mut raw = Raw::connect_from(2 + number % 500, daemon.listen).ok()?;
                    let (length, before) = match number % 2 {
                        0 => ("Content-Length: 20000", ""),
                        _ => ("Transfer-Encoding: chunked", "4e20\r\n"),
                    };
                    let part = "e".repeat(if number.is_multiple_of(3) { 5_000 } else { 19_000 });
                    let request = format!("PUT /v1/oidc-token HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n{before}{part}");
                    let _ = raw.write(request);
                    Some(raw)
                });
                let _unfinished: Vec<_> = unfinished.collect();
                wait(done, Duration::from_millis(500));
            }
            Act::Stay => {
                let body = event(&"x".repeat(300_000));
                let staying = (0..25).map_while(|_| {
                    let mut raw = Raw::connect(daemon.listen).ok()?;
                    raw.write(head(body.len()) + &body).ok()?;
                    let _ = raw.answer();
                    Some(raw)
                });
                let _staying: Vec<_> = staying.take_while(|_| !done.load(Ordering::SeqCst)).collect();
                wait(done, Duration::from_secs(8));
            }
            Act::Forged => {
                let token = format!("{}AAAAAA", &token[..token.len().saturating_sub(6)]);
                let request = format!(
                    "PUT /v1/oidc-token HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: 0\r\n\r\n"
                );
                ask_at_once(&mut raw, &request);
            }
            Act::Metrics => {
                if let Ok(mut raw) = Raw::connect(daemon.admin) {
                    ask_at_once(&mut raw, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
                }
            }
            Act::Post(path, headers, body) => {
                let path = path.replace(NATIVE, native).replace("{token}", token);
                if raw.write(self::head(&path, token, headers, body.len())).and_then(|()| raw.write(body)).is_ok() {
                    let _ = raw.answer();
                }
            }
        }
    }
}

/// Sends `request` many times, and then reads the answers.
fn ask_at_once(raw: &mut Raw, request: &str) {
    const TIMES: usize = 50;
    if raw.write(request.repeat(TIMES)).is_ok() {
        for _ in 0..TIMES {
            if !matches!(raw.answer(), Ok(Some(_))) {
                return;
            }
        }
    }
}

/// The head of a request with a body of `length` bytes.
pub(super) fn head(path: &str, token: &str, headers: &str, length: usize) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{headers}Content-Length: {length}\r\n\r\n"
    )
}

fn wait(done: &AtomicBool, time: Duration) {
    let since = Instant::now();
    while !done.load(Ordering::SeqCst) && since.elapsed() < time {
        std::thread::park_timeout(Duration::from_millis(20));
    }
}
