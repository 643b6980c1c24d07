//! Tests every protocol from request to stored lines, and from outcome to answer.

use axum::http::{HeaderName, HeaderValue};
use http_body_util::BodyExt;
use serde_json::Value;

use super::*;
use crate::protocols::paths::{endpoint, tidy};

pub(crate) const LIMITS: Limits =
    Limits { max_body_bytes: 16 << 20, max_lines_bytes: 64 << 20, max_event_bytes: 1 << 20, redact: true };

fn received() -> DateTime<Utc> {
    DateTime::from_timestamp_millis(1_795_381_200_123).unwrap()
}

/// A `POST`, as the HTTP front hands it on.
pub(crate) struct Sent {
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

pub(crate) fn post(uri: &str, headers: &[(&'static str, &'static str)], body: impl Into<Bytes>) -> Sent {
    let headers = headers.iter().map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    Sent { uri: uri.parse().unwrap(), headers: headers.collect(), body: body.into() }
}

impl Sent {
    fn protocol(&self) -> &'static dyn Protocol {
        endpoint(&tidy(self.uri.path()), &self.headers)
            .unwrap_or_else(|| panic!("{} takes no events", self.uri))
            .protocol
    }

    pub(crate) fn parse_with(&self, limits: &Limits) -> Result<Vec<Part>, BodyError> {
        let decoding = Decoding::of(&self.headers, &self.body)?;
        self.protocol().events(&self.uri, &self.headers, self.body.clone(), decoding, received, limits)
    }

    /// Stored lines, each with the log type that its sender named.
    pub(crate) fn stored(&self) -> Vec<(Option<LogType>, String)> {
        let mut stored = Vec::new();
        for Part { said, lines } in self.parse_with(&LIMITS).unwrap() {
            let text = std::str::from_utf8(&lines.bytes).unwrap();
            assert_eq!(text.lines().count() as u64, lines.records);
            stored.extend(text.lines().map(|line| (said, line.to_owned())));
        }
        stored
    }

    /// Stored lines of a request that names no log type.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.stored().into_iter().inspect(|(said, _)| assert_eq!(*said, None)).map(|(_, line)| line).collect()
    }

    pub(crate) fn unpacked_bytes(&self) -> usize {
        let decoding = Decoding::of(&self.headers, &self.body).unwrap();
        unpacked_bytes(self.protocol(), &self.headers, &self.body, decoding)
    }

    /// How many bytes were not UTF-8.
    pub(crate) fn replaced(&self) -> u64 {
        self.parse_with(&LIMITS).unwrap().iter().map(|part| part.lines.replaced).sum()
    }

    pub(crate) fn token(&self) -> Option<String> {
        self.protocol().token(&self.uri, &self.headers)
    }

    pub(crate) fn accepted(&self, records: u64) -> Answered {
        let receipt = (records > 0).then(|| (r#""env0-audits/2026/11/22/21:04:05_aB3dE.log""#.into(), 7));
        Answered::of(self.protocol().accepted(&Accepted { records, receipt }))
    }

    /// The answer to a body that must be refused.
    pub(crate) fn refused_body(&self) -> Answered {
        self.refused_body_with(&LIMITS)
    }

    pub(crate) fn refused_body_with(&self, limits: &Limits) -> Answered {
        self.refused(&Refusal::Body(self.parse_with(limits).unwrap_err()))
    }

    pub(crate) fn refused(&self, refusal: &Refusal) -> Answered {
        Answered::of(self.protocol().refused(refusal))
    }
}

pub(crate) struct Answered {
    pub(crate) status: u16,
    headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answered {
    fn of(answer: Answer) -> Answered {
        let (head, body) = answer.into_parts();
        let body = futures_util::FutureExt::now_or_never(body.collect()).unwrap().unwrap().to_bytes();
        Answered { status: head.status.as_u16(), headers: head.headers, body }
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header_text(&self.headers, name)
    }
}

pub(crate) const DEPLOYMENTS: Option<LogType> = Some(LogType::Deployments);
pub(crate) const AUDITS: Option<LogType> = Some(LogType::Audits);
pub(crate) const WRONG_CREDENTIALS: Refusal = Refusal::Unauthorized(BadCredentials::Unknown);

pub(crate) fn busy() -> Refusal {
    Refusal::Unavailable { reason: "the spool is full".to_owned(), retry_after_seconds: 7 }
}

/// One good request of each protocol.
fn one_of_each() -> Vec<Sent> {
    vec![
        post("/v1/logs/env0-audits", &[], "{}"),
        post("/services/collector/event", &[], r#"{"event":"x"}"#),
        post("/services/collector/raw", &[], "x"),
        post("/loki/api/v1/push", &[("content-type", "application/json")], r#"{"streams":[]}"#),
        post("/loki/api/v1/push", &[PROTOBUF_TYPE], ""),
        post("/v1/logs", &[("content-type", "application/json")], "{}"),
        post("/v1/logs", &[("content-type", "application/x-protobuf")], ""),
        post("/?token=t", &[], "{}"),
        post("/receiver/v1/http/secret", &[], "{}"),
        post("/log/v1", &[], "{}"),
    ]
}

pub(crate) mod fuzz;
mod golden;
mod published;
pub(crate) mod reference;

#[test]
fn the_status_and_headers_of_a_refusal_are_the_same_in_every_protocol() {
    let invalid = BodyError::Invalid { event: 3, offset: 99, reason: "expected value".to_owned() };
    for (refusal, status, header) in [
        (WRONG_CREDENTIALS, 401, Some(("www-authenticate", "Bearer"))),
        (
            Refusal::Unauthorized(BadCredentials::WrongType { may_write: LogType::Audits }),
            401,
            Some(("www-authenticate", "Bearer")),
        ),
        (Refusal::UnknownPath, 404, None),
        (Refusal::WrongMethod { allowed: "POST" }, 405, Some(("allow", "POST"))),
        (Refusal::Body(invalid), 400, None),
        (Refusal::Body(BodyError::EventTooLarge { event: 3, limit_bytes: 5 }), 413, None),
        (Refusal::Body(BodyError::LinesTooLarge { limit_bytes: 5 }), 413, None),
        (Refusal::Body(BodyError::TooLarge { limit_bytes: 5 }), 413, None),
        (Refusal::BrokenBody { reason: "gzip: corrupt".to_owned() }, 400, None),
        (Refusal::BodyTimeout, 408, None),
        (Refusal::LengthRequired, 411, Some(("connection", "close"))),
        (Refusal::TooLarge { limit: 5, variable: "ENV0_S3_LOG_MAX_BODY_BYTES" }, 413, None),
        (Refusal::UnsupportedEncoding, 415, Some(("accept-encoding", "gzip, deflate, zstd"))),
        (busy(), 503, Some(("retry-after", "7"))),
    ] {
        for sent in one_of_each() {
            let answer = sent.refused(&refusal);
            assert_eq!(answer.status, status, "{refusal:?} on {}", sent.uri);
            if let Some((name, value)) = header {
                assert_eq!(answer.header(name), Some(value), "{refusal:?} on {}", sent.uri);
            }
            assert!(!answer.body.is_empty(), "{refusal:?} on {}: people want to know why", sent.uri);
        }
    }
}

#[test]
fn every_protocol_takes_a_body_without_events_but_splunk() {
    for sent in one_of_each() {
        let empty = Sent { body: Bytes::new(), ..sent };
        match empty.protocol().name() {
            "splunk" => assert_eq!(empty.refused_body().json()["code"], 5),
            _ => assert_eq!(empty.lines(), Vec::<String>::new(), "{}", empty.uri),
        }
    }
}

#[test]
fn lines_are_sorted_by_type_in_the_order_sent() {
    let part = |said, text: &'static str, records, redacted| Part {
        said,
        lines: Lines { bytes: Bytes::from_static(text.as_bytes()), records, redacted, replaced: 0 },
    };
    let parts = vec![part(None, "1\n", 1, 0), part(AUDITS, "2\n", 1, 1), part(None, "3\n4\n", 2, 1)];
    let by_said = by_type(parts.clone(), &LIMITS, |said| said.unwrap_or(LogType::Deployments));
    assert_eq!(
        by_said.unwrap().into_array().map(|lines| (lines.bytes, lines.records, lines.redacted)),
        [("1\n3\n4\n".into(), 3, 1), ("2\n".into(), 1, 1)]
    );
    let [deployments, audits] = by_type(parts.clone(), &LIMITS, |_| LogType::Audits).unwrap().into_array();
    assert_eq!((deployments, audits.bytes), (Lines::default(), "1\n2\n3\n4\n".into()));
    // Eight bytes in parts, and as many in one piece.
    let limits = |max_lines_bytes| Limits { max_lines_bytes, ..LIMITS };
    assert!(by_type(parts.clone(), &limits(16), |_| LogType::Audits).is_ok());
    let refused = by_type(parts, &limits(15), |_| LogType::Audits);
    assert_eq!(refused, Err(BodyError::LinesTooLarge { limit_bytes: 15 }));
}

/// A length-delimited protobuf field.
pub(crate) fn field(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut field = vec![tag << 3 | 2];
    prost::encode_length_delimiter(content.len(), &mut field).unwrap();
    field.extend_from_slice(content);
    field
}

pub(crate) fn snappy(message: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(message).unwrap()
}

pub(crate) const PROTOBUF_TYPE: (&str, &str) = ("content-type", "application/x-protobuf");

#[test]
fn every_protocol_redacts() {
    let holder = r#"{"customEnv0EnvironmentVariables":{"vcsAccessToken":"hunter2"}}"#;
    for (uri, body) in [
        ("/v1/logs/env0-audits", holder.to_owned()),
        ("/services/collector", format!(r#"{{"event":{holder}}}"#)),
        ("/services/collector/raw", holder.to_owned()),
        ("/loki/api/v1/push", format!(r#"{{"streams":[{{"stream":{{}},"values":[["1","x",{holder}]]}}]}}"#)),
        ("/v1/logs", format!(r#"{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{holder}]}}]}}]}}"#)),
        ("/?type=x", holder.to_owned()),
        ("/receiver/v1/http/s", holder.to_owned()),
        ("/log/v1", format!(r#"{{"common":{holder},"logs":[{{}}]}}"#)),
    ] {
        let parts = post(uri, &[], body).parse_with(&LIMITS).unwrap();
        assert_eq!(parts.iter().map(|part| part.lines.redacted).sum::<u64>(), 1, "{uri}");
        let line = std::str::from_utf8(&parts[0].lines.bytes).unwrap();
        assert!(line.contains(r#""vcsAccessToken":"[redacted]""#) && !line.contains("hunter2"), "{line}");
    }
}

#[test]
fn json_that_spans_lines_is_stored_on_one_by_every_protocol() {
    let pretty = "{\r\n  \"a\" : \"b c\"\n}";
    for (uri, headers, body) in [
        ("/v1/logs/env0-audits", &[][..], pretty.to_owned()),
        ("/services/collector", &[], format!("{{\n\"event\":\n{pretty}}}")),
        ("/loki/api/v1/push", &[], format!(r#"{{"streams":[{{"stream":{pretty},"values":[["1","x",{pretty}]]}}]}}"#)),
        (
            "/v1/logs",
            &[],
            format!(r#"{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{pretty}]}}],"resource":{pretty}}}]}}"#),
        ),
        ("/?type=x", &[], pretty.to_owned()),
        ("/receiver/v1/http/s", &[("x-sumo-name", "n")], pretty.to_owned()),
        ("/log/v1", &[], format!(r#"[{{"common":{pretty},"logs":[{pretty}]}}]"#)),
    ] {
        let lines = post(uri, headers, body).lines();
        assert_eq!(lines.len(), 1, "{uri}");
        assert!(lines[0].contains(r#"{"a":"b c""#), "{}", lines[0]);
    }
}

#[test]
fn no_protocol_stores_an_event_that_is_too_long() {
    let limits = Limits { max_event_bytes: 2000, ..LIMITS };
    let long = "x".repeat(2000);
    let push = field(1, &[field(1, b"{}"), field(2, &field(2, long.as_bytes()))].concat());
    let export = field(1, &field(2, &field(2, &field(3, long.as_bytes()))));
    for sent in [
        post("/v1/logs/env0-audits", &[], long.clone()),
        post("/services/collector", &[], format!(r#"{{"event":"{long}"}}"#)),
        post("/services/collector/raw", &[], long.clone()),
        post("/loki/api/v1/push", &[], format!(r#"{{"streams":[{{"stream":{{}},"values":[["1","{long}"]]}}]}}"#)),
        post("/loki/api/v1/push", &[PROTOBUF_TYPE], snappy(&push)),
        post("/v1/logs", &[], format!(r#"{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{{"a":"{long}"}}]}}]}}]}}"#)),
        post("/v1/logs", &[PROTOBUF_TYPE], export),
        post("/?token=t", &[], format!(r#"{{"a":"{long}"}}"#)),
        post("/receiver/v1/http/s", &[], long.clone()),
        post("/log/v1", &[], format!(r#"[{{"a":"{long}"}}]"#)),
    ] {
        assert_eq!(
            sent.parse_with(&limits),
            Err(BodyError::EventTooLarge { event: 0, limit_bytes: 2000 }),
            "{}",
            sent.uri
        );
        assert_eq!(sent.refused_body_with(&limits).status, 413);
    }
}

#[test]
fn the_documents_show_events_as_they_are_stored() {
    const TEXT: &str = "Apply complete!";
    let secret = "/receiver/v1/http/secret";
    let loki = format!(r#"{{"streams":[{{"stream":{{"app":"env0"}},"values":[["1795381200123000000","{TEXT}"]]}}]}}"#);
    let splunk =
        r#"{"time":1795381200.123,"source":"env0-deployment-logs-source","event":{"message":"Apply complete!"}}"#;
    let sumo = r#"{"level":"info","message":"Apply complete!"}"#;
    let detailed = r#"[{"common":{"attributes":{"service":"env0"}},"logs":[{"message":"Apply complete!"}]}]"#;
    let record = r#"{"logRecords":[{"body":{"stringValue":"Apply complete!"}}]}"#;
    let readme = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/config/README.md"));
    for sent in [
        post("/loki/api/v1/push", &[], loki),
        post("/services/collector", &[], splunk),
        post("/services/collector/raw?source=env0", &[], TEXT),
        post(secret, &[], sumo),
        post(secret, &[], TEXT),
        post(secret, &[("x-sumo-name", "env0"), ("x-sumo-category", "prod/env0")], sumo),
        post("/", &[], r#"{"message":"Apply complete!","name":"env0-deployment-logs"}"#),
        post("/?type=env0", &[], r#"{"message":"Apply complete!"}"#),
        post("/log/v1", &[], r#"{"message":"Apply complete!","timestamp":1795381200123}"#),
        post("/log/v1", &[], detailed),
        post("/v1/logs", &[], format!(r#"{{"resourceLogs":[{{"scopeLogs":[{record}]}}]}}"#)),
    ] {
        let [(_, line)] = &sent.stored()[..] else { panic!("one line") };
        assert!(readme.contains(&format!("`{line}`")), "config/README.md does not show {line}");
    }
}

#[test]
fn json_over_several_lines_is_one_event_if_all_of_it_is_json_else_lines_are() {
    for uri in ["/services/collector/raw", "/receiver/v1/http/s", "/?token=t"] {
        for (body, events) in [
            ("{\"a\":\n1}", &["{\"a\":1}"][..]),
            ("[{\"a\":\n1},\n{\"b\":2}]", &["{\"a\":1}", "{\"b\":2}"]),
            ("{\"a\":\n1}\ntext\n{\"b\":2}", &["\"{\\\"a\\\":\"", "\"1}\"", "\"text\"", "{\"b\":2}"]),
        ] {
            let lines = post(uri, &[], body).lines();
            assert_eq!(lines.len(), events.len(), "{uri} {body}: {lines:?}");
            assert!(lines.iter().zip(events).all(|(line, event)| line.contains(event)), "{uri} {body}: {lines:?}");
        }
    }
    let broken = "{\"a\":\n1}\ntext";
    assert_eq!(post("/?token=t", &[], broken).refused_body().status, 400, "Logz.io has no line that is an object");
    for uri in ["/services/collector/raw", "/receiver/v1/http/s"] {
        assert_eq!(post(uri, &[], broken).lines().len(), 3, "{uri}");
    }
}
