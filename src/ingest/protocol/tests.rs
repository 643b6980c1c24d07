//! Every protocol from request to stored lines, and from outcome to answer.

use axum::http::HeaderName;
use http_body_util::BodyExt;
use prost::Message;
use serde_json::Value;

use super::*;

const LIMITS: Limits = Limits { max_body_bytes: 16 << 20, max_event_bytes: 1 << 20, redact: true };

fn received() -> DateTime<Utc> {
    DateTime::from_timestamp_millis(1_795_381_200_123).unwrap()
}

/// A `POST`, as the HTTP front hands it on.
struct Sent {
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

fn post(uri: &str, headers: &[(&'static str, &'static str)], body: impl Into<Bytes>) -> Sent {
    let headers = headers.iter().map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    Sent { uri: uri.parse().unwrap(), headers: headers.collect(), body: body.into() }
}

impl Sent {
    fn protocol(&self) -> &'static dyn Protocol {
        match route(&Method::POST, self.uri.path()) {
            Route::Events { protocol, .. } => protocol,
            _ => panic!("{} takes no events", self.uri),
        }
    }

    fn parse_with(&self, limits: &Limits) -> Result<Vec<Part>, BodyError> {
        self.protocol().parse(&self.uri, &self.headers, self.body.clone(), received(), limits)
    }

    /// Stored lines, each with the log type that its sender named.
    fn stored(&self) -> Vec<(Option<LogType>, String)> {
        let mut stored = Vec::new();
        for Part { said, lines } in self.parse_with(&LIMITS).unwrap() {
            let text = std::str::from_utf8(&lines.bytes).unwrap();
            assert_eq!(text.lines().count() as u64, lines.records);
            stored.extend(text.lines().map(|line| (said, line.to_owned())));
        }
        stored
    }

    /// Stored lines of a request that names no log type.
    fn lines(&self) -> Vec<String> {
        self.stored().into_iter().inspect(|(said, _)| assert_eq!(*said, None)).map(|(_, line)| line).collect()
    }

    fn token(&self) -> Option<String> {
        self.protocol().token(&self.uri, &self.headers)
    }

    fn accepted(&self, records: u64) -> Answer {
        let receipt = (records > 0).then(|| ("env0-audits/2026/11/22/21:04:05_aB3dE.log".to_owned(), 7));
        Answer::of(self.protocol().accepted(&self.uri, &self.headers, &Accepted { records, receipt }))
    }

    /// The answer to the body as it is, which must be refused.
    fn refused_body(&self) -> Answer {
        self.refused_body_with(&LIMITS)
    }

    fn refused_body_with(&self, limits: &Limits) -> Answer {
        self.refused(&Refusal::Body(self.parse_with(limits).unwrap_err()))
    }

    fn refused(&self, refusal: &Refusal) -> Answer {
        Answer::of(self.protocol().refused(&self.uri, &self.headers, refusal))
    }
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn of(answer: Response<Body>) -> Answer {
        let (head, body) = answer.into_parts();
        let body = futures_util::FutureExt::now_or_never(body.collect()).unwrap().unwrap().to_bytes();
        Answer { status: head.status.as_u16(), headers: head.headers, body }
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        header_text(&self.headers, name)
    }
}

const DEPLOYMENTS: Option<LogType> = Some(LogType::Deployments);
const AUDITS: Option<LogType> = Some(LogType::Audits);
const WRONG_CREDENTIALS: Refusal = Refusal::Unauthorized { wrong_type: false };

fn busy() -> Refusal {
    Refusal::Unavailable { reason: "the spool is full".to_owned(), retry_after_seconds: 7 }
}

/// One good request of each protocol.
fn one_of_each() -> Vec<Sent> {
    vec![
        post("/v1/logs/env0-audits", &[], "{}"),
        post("/services/collector/event", &[], r#"{"event":"x"}"#),
        post("/services/collector/raw", &[], "x"),
        post("/loki/api/v1/push", &[("content-type", "application/json")], r#"{"streams":[]}"#),
        post("/v1/logs", &[("content-type", "application/json")], "{}"),
        post("/v1/logs", &[("content-type", "application/x-protobuf")], ""),
        post("/?token=t", &[], "{}"),
        post("/receiver/v1/http/secret", &[], "{}"),
        post("/log/v1", &[], "{}"),
    ]
}

#[test]
fn the_status_and_headers_of_a_refusal_are_the_same_in_every_protocol() {
    let invalid = BodyError::Invalid { event: 3, offset: 99, reason: "expected value".to_owned() };
    for (refusal, status, header) in [
        (WRONG_CREDENTIALS, 401, Some(("www-authenticate", "Bearer"))),
        (Refusal::Unauthorized { wrong_type: true }, 401, Some(("www-authenticate", "Bearer"))),
        (Refusal::UnknownPath, 404, None),
        (Refusal::WrongMethod { allowed: "POST" }, 405, Some(("allow", "POST"))),
        (Refusal::Body(invalid), 400, None),
        (Refusal::Body(BodyError::EventTooLarge { event: 3, limit_bytes: 5 }), 413, None),
        (Refusal::Body(BodyError::LinesTooLarge { limit_bytes: 5 }), 413, None),
        (Refusal::Body(BodyError::TooLarge { limit_bytes: 5 }), 413, None),
        (Refusal::BrokenBody { reason: "gzip: corrupt".to_owned() }, 400, None),
        (Refusal::BodyTimeout, 408, None),
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
fn paths_lead_to_protocols_and_may_begin_with_a_log_type() {
    let events = |path: &str| match route(&Method::POST, path) {
        Route::Events { protocol, log_type } => Some((protocol.name(), log_type)),
        _ => None,
    };
    assert_eq!(events("/v1/logs/env0-audits"), Some(("native", AUDITS)));
    assert_eq!(events("/v1/logs/env0-deployments"), Some(("native", DEPLOYMENTS)));
    for (path, name) in [
        ("/", "logzio"),
        ("/services/collector", "splunk"),
        ("/services/collector/event", "splunk"),
        ("/services/collector/event/1.0", "splunk"),
        ("/services/collector/raw", "splunk"),
        ("/services/collector/raw/1.0", "splunk"),
        ("/loki/api/v1/push", "loki"),
        ("/v1/logs", "otlp"),
        ("/receiver/v1/http/ZaVnC4dhaV1", "sumologic"),
        ("/log/v1", "newrelic"),
        ("/log/v1/log/v1", "newrelic"),
    ] {
        assert_eq!(events(path), Some((name, None)), "{path}");
        assert_eq!(events(&format!("/env0-audits{path}")), Some((name, AUDITS)), "{path}");
    }
    assert_eq!(events("/env0-deployments"), Some(("logzio", DEPLOYMENTS)));
    for path in [
        "/v1/logs/",
        "/v1/logs/env0-audit",
        "/v1/logs/env0-audits/",
        "/env0-audits/v1/logs/env0-deployments",
        "/env0-auditsx/v1/logs",
        "/receiver/v1/http/",
        "/receiver/v1/http/a/b",
        "/services",
        "//",
    ] {
        let Route::Refused { refusal, protocol } = route(&Method::POST, path) else { panic!("{path} is known") };
        assert_eq!((refusal, protocol.name()), (Refusal::UnknownPath, "native"), "{path}");
    }
}

#[test]
fn a_wrong_method_is_told_the_right_ones() {
    for (method, path, right) in [
        (Method::GET, "/v1/logs/env0-audits", "POST"),
        (Method::PUT, "/", "GET, HEAD, POST"),
        (Method::POST, "/services/collector/health", "GET, HEAD"),
        (Method::POST, "/v1/oidc-token", "PUT"),
        (Method::DELETE, "/loki/api/v1/push", "POST"),
    ] {
        let Route::Refused { refusal, .. } = route(&method, path) else { panic!("{method} {path} is taken") };
        assert_eq!(refusal, Refusal::WrongMethod { allowed: right });
    }
}

#[test]
fn whoever_asks_is_told_that_the_daemon_is_there() {
    for (method, path, body) in [
        (Method::GET, "/", ""),
        (Method::HEAD, "/", ""),
        (Method::GET, "/env0-audits/", ""),
        (Method::GET, "/services/collector/health", r#"{"text":"HEC is healthy","code":17}"#),
        (Method::GET, "/services/collector/health/1.0", r#"{"text":"HEC is healthy","code":17}"#),
    ] {
        let Route::Alive { protocol } = route(&method, path) else { panic!("{method} {path}") };
        let answer = Answer::of(protocol.alive());
        assert_eq!((answer.status, answer.text()), (200, body));
    }
    assert!(matches!(route(&Method::PUT, "/v1/oidc-token"), Route::OidcToken));
}

#[test]
fn lines_are_sorted_by_type_in_the_order_sent() {
    let part = |said, text: &'static str, records, redacted| Part {
        said,
        lines: Lines { bytes: Bytes::from_static(text.as_bytes()), records, redacted },
    };
    let parts = vec![part(None, "1\n", 1, 0), part(AUDITS, "2\n", 1, 1), part(None, "3\n4\n", 2, 1)];
    let by_said = by_type(parts.clone(), |said| said.unwrap_or(LogType::Deployments));
    assert_eq!(
        by_said.map(|lines| (lines.bytes, lines.records, lines.redacted)),
        [("1\n3\n4\n".into(), 3, 1), ("2\n".into(), 1, 1)]
    );
    let [deployments, audits] = by_type(parts, |_| LogType::Audits);
    assert_eq!((deployments, audits.bytes), (Lines::default(), "1\n2\n3\n4\n".into()));
}

#[test]
fn a_native_receipt_names_the_object_and_the_line() {
    let sent = post("/v1/logs/env0-audits", &[], "");
    let answer = sent.accepted(3);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.text(), r#"{"accepted":3,"object":"env0-audits/2026/11/22/21:04:05_aB3dE.log","line":7}"#);
    assert_eq!(sent.accepted(0).text(), r#"{"accepted":0}"#);
}

#[test]
fn a_native_refusal_says_what_to_do() {
    let sent = post("/v1/logs/env0-audits", &[], "{}\n{\"a\":tru}");
    let invalid = sent.refused_body().json();
    assert_eq!((&invalid["event"], &invalid["offset"]), (&1.into(), &11.into()));
    let limits = Limits { max_event_bytes: 1, ..LIMITS };
    let too_large = sent.refused_body_with(&limits).json();
    assert_eq!((&too_large["limit"], &too_large["variable"]), (&1.into(), &"ENV0_S3_LOG_MAX_EVENT_BYTES".into()));
    let too_large = sent.refused(&Refusal::TooLarge { limit: 9, variable: "ENV0_S3_LOG_MAX_BODY_BYTES" });
    assert!(too_large.json()["error"].as_str().unwrap().contains("ENV0_S3_LOG_MAX_BODY_BYTES"));
    let unknown = sent.refused(&Refusal::UnknownPath).json();
    assert!(unknown["known"].as_array().unwrap().contains(&"POST /v1/logs/env0-audits".into()));
    assert!(sent.refused(&busy()).json()["error"].as_str().unwrap().contains("the spool is full"));
}

#[test]
fn splunk_envelopes_are_stored_as_sent_and_their_source_tells_the_type() {
    let deployment =
        r#"{"source":"env0-deployment-logs-source","sourcetype":"env0-sourcetype","event":{"message":"a"}}"#;
    let audit = r#"{ "source":"env0-audit-logs-source", "event":"b" }"#;
    let index = r#"{"index":"env0-audit-logs-index","time":"1795382237.825","event":1}"#;
    let other = r#"{"fields":{"a":1},"source":5}"#;
    let sent = post("/services/collector/event/1.0", &[], [deployment, audit, index, other].concat());
    let expected = [(DEPLOYMENTS, deployment), (AUDITS, audit), (AUDITS, index), (None, other)];
    assert_eq!(sent.stored(), expected.map(|(said, line)| (said, line.to_owned())));
    assert_eq!((sent.accepted(4).status, sent.accepted(4).text()), (200, r#"{"text":"Success","code":0}"#));
}

#[test]
fn splunk_raw_lines_are_stored_with_what_the_query_says() {
    let uri = "/services/collector/raw?source=env0-audit-logs-source&host=a%20b&token=never";
    let sent = post(uri, &[], "one \"1\"\r\n{\"customEnv0EnvironmentVariables\":{\"oidcToken\":\"x\"}}\n{broken");
    let line = |event: &str| {
        let about = r#""timestamp":"2026-11-22T21:00:00.123Z","host":"a b","source":"env0-audit-logs-source""#;
        (AUDITS, format!(r#"{{{about},"event":{event}}}"#))
    };
    let redacted = r#"{"customEnv0EnvironmentVariables":{"oidcToken":"[redacted]"}}"#;
    assert_eq!(sent.stored(), [line(r#""one \"1\"""#), line(redacted), line(r#""{broken""#)]);
    assert_eq!(sent.token().as_deref(), Some("never"));
}

#[test]
fn splunk_is_refused_with_its_own_codes() {
    for (body, code, event) in [
        (" ", 5, Value::Null),
        (r#"{"event":1}{"event":tru}"#, 6, 1.into()),
        ("text", 6, 0.into()),
        (r#"{"event":1}{"source":"x"}"#, 12, 1.into()),
        (r#"{"event":""}"#, 13, 0.into()),
    ] {
        let answer = post("/services/collector", &[], body).refused_body();
        assert_eq!(answer.status, 400);
        let answer = answer.json();
        assert_eq!((&answer["code"], &answer["invalid-event-number"]), (&code.into(), &event), "{body}");
    }
    let code = |uri, headers: &[_]| post(uri, headers, "").refused(&WRONG_CREDENTIALS).json()["code"].clone();
    assert_eq!(code("/services/collector", &[]), 2);
    assert_eq!(code("/services/collector", &[("authorization", "justatoken")]), 3);
    assert_eq!(code("/services/collector", &[("authorization", "Splunk wrong")]), 4);
    assert_eq!(code("/services/collector?token=wrong", &[]), 4);
    assert_eq!(post("/services/collector", &[], "").refused(&busy()).json()["code"], 9);
}

#[test]
fn loki_json_entries_keep_their_text_labels_and_metadata() {
    let body = r#"{"streams":[
        {"stream":{"app":"env0", "x":"\u0041"},"values":[["1795382237933000001","a\u001b[1m"],["2","b",{"trace":"t"}]]},
        {"values":[["3","c"]],"stream":{"job":"env0-audits"}}]}"#;
    for content_type in ["application/json; charset=utf-8", "application/x-www-form-urlencoded"] {
        let sent = post("/loki/api/v1/push", &[("content-type", content_type)], body);
        assert_eq!(sent.stored(), [
            (None, r#"{"timestamp":"1795382237933000001","labels":{"app":"env0", "x":"\u0041"},"line":"a\u001b[1m"}"#.to_owned()),
            (None, r#"{"timestamp":"2","labels":{"app":"env0", "x":"\u0041"},"line":"b","structuredMetadata":{"trace":"t"}}"#.to_owned()),
            (AUDITS, r#"{"timestamp":"3","labels":{"job":"env0-audits"},"line":"c"}"#.to_owned()),
        ]);
        assert_eq!(sent.accepted(3).status, 204);
    }
}

#[test]
fn loki_refuses_json_of_another_shape() {
    for (body, event, at) in [
        (r#"{"streams":1}"#, 0, 0),
        (r#"{"streams":[{"stream":{"a":"b"}}]}"#, 0, 12),
        (r#"{"streams":[{"stream":"a","values":[]}]}"#, 0, 22),
        (r#"{"streams":[{"stream":{},"values":[["1","x"],["2"]]}]}"#, 1, 45),
        (r#"{"streams":[{"stream":{},"values":[[1,"x"]]}]}"#, 0, 35),
        (r#"{"streams":[5]}"#, 0, 12),
        ("[1]", 0, 1),
    ] {
        let sent = post("/loki/api/v1/push", &[("content-type", "application/json")], body);
        let Err(BodyError::Invalid { event: found, offset, .. }) = sent.parse_with(&LIMITS) else { panic!("{body}") };
        assert_eq!((found, offset), (event, at), "{body}");
        assert_eq!(sent.refused_body().status, 400);
    }
}

/// A length-delimited protobuf field.
fn field(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut field = vec![tag << 3 | 2];
    prost::encode_length_delimiter(content.len(), &mut field).unwrap();
    field.extend_from_slice(content);
    field
}

fn snappy(message: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(message).unwrap()
}

const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");

#[test]
fn loki_protobuf_gives_the_same_lines_as_json() {
    let timestamp = field(1, &[0x08, 0x01, 0x10, 0x05]); // 1 s, 5 ns
    let metadata = field(3, &[field(1, b"trace"), field(2, b"t")].concat());
    let entry = field(2, &[timestamp, field(2, b"a\x1b \"b\""), metadata].concat());
    let push = |labels: &str| snappy(&field(1, &[entry.clone(), field(1, labels.as_bytes())].concat()));
    let line = |labels| {
        format!(
            r#"{{"timestamp":"1000000005","labels":{labels},"line":"a\u001b \"b\"","structuredMetadata":{{"trace":"t"}}}}"#
        )
    };
    for (labels, stored, said) in [
        (r#"{level="info",app="env0"}"#, r#"{"app":"env0","level":"info"}"#, None),
        (r#"{ a = "1,\"}" , job="env0-deployments", }"#, r#"{"a":"1,\"}","job":"env0-deployments"}"#, DEPLOYMENTS),
        ("{}", "{}", None),
        (r#"{a="un"quoted"}"#, r#""{a=\"un\"quoted\"}""#, None),
    ] {
        let sent = post("/loki/api/v1/push", &[PROTOBUF], push(labels));
        assert_eq!(sent.stored(), [(said, line(stored))]);
    }
    let without_type = post("/loki/api/v1/push", &[], push("{}"));
    assert_eq!(without_type.lines(), [line("{}")]);
}

#[test]
fn loki_judges_what_a_snappy_block_declares_before_it_takes_memory() {
    let four_gib = [0xff, 0xff, 0xff, 0xff, 0x0f, 0x00];
    let five_gib = [0xff, 0xff, 0xff, 0xff, 0x1f, 0x00];
    let too_much = snappy(&vec![0; LIMITS.max_body_bytes + 1]);
    for body in [&four_gib[..], &five_gib, &too_much] {
        let sent = post("/loki/api/v1/push", &[PROTOBUF], body.to_vec());
        assert_eq!(sent.parse_with(&LIMITS), Err(BodyError::TooLarge { limit_bytes: LIMITS.max_body_bytes }));
        assert_eq!(sent.refused_body().status, 413);
    }
    for body in [&b"\x05abc"[..], b"{\"streams\":[]}", &snappy(b"\x0a\xff"), &snappy(&field(1, &field(2, &[0x0a, 9])))]
    {
        assert_eq!(post("/loki/api/v1/push", &[PROTOBUF], body.to_vec()).refused_body().status, 400);
    }
}

#[test]
fn otlp_json_records_are_stored_one_a_line_as_requests_of_their_own() {
    let resource = r#"{"attributes":[{"key":"a","value":{"intValue":"1"}},{"key":"service.name","value":{"stringValue":"env0-audits"}}]}"#;
    let body = format!(
        r#"{{"resourceLogs":[{{"resource":{resource},"schemaUrl":"r","scopeLogs":[
            {{"scope":{{"name":"s"}},"logRecords":[{{"body":{{"stringValue":"1"}}, "traceId":"0A"}},{{}}]}}]}},
            {{"scopeLogs":[{{"logRecords":[{{"n":1e0}}],"schemaUrl":"s"}}]}},{{"scopeLogs":null}}]}}"#
    );
    let sent = post("/v1/logs", &[("content-type", "application/json")], body);
    let first = |record| {
        format!(
            r#"{{"resourceLogs":[{{"resource":{resource},"scopeLogs":[{{"scope":{{"name":"s"}},"logRecords":[{record}]}}],"schemaUrl":"r"}}]}}"#
        )
    };
    assert_eq!(
        sent.stored(),
        [
            (AUDITS, first(r#"{"body":{"stringValue":"1"}, "traceId":"0A"}"#)),
            (AUDITS, first("{}")),
            (None, r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"n":1e0}],"schemaUrl":"s"}]}]}"#.to_owned()),
        ]
    );
    let accepted = sent.accepted(3);
    assert_eq!(
        (accepted.status, accepted.text(), accepted.header("content-type")),
        (200, "{}", Some("application/json"))
    );
    let refused = sent.refused(&busy()).json();
    assert_eq!(refused["code"], 14);
    assert!(refused["message"].as_str().unwrap().contains("full"));
}

/// A resource with a service name.
fn otlp_resource(service: &str) -> Vec<u8> {
    let name = field(2, &field(1, service.as_bytes()));
    field(1, &field(1, &[field(1, b"service.name"), name].concat()))
}

#[test]
fn otlp_protobuf_records_are_stored_in_its_json_encoding() {
    let attribute = |key: &[u8], value: Vec<u8>| field(6, &[field(1, key), field(2, &value)].concat());
    let record = [
        [&[0x09][..], &1_795_382_237_933_000_001_u64.to_le_bytes()].concat(),
        vec![0x10, 9], // severity_number
        field(3, b"INFO"),
        field(5, &field(1, "é\n".as_bytes())),
        attribute(b"bool", vec![0x10, 1]),
        attribute(b"int", vec![0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
        attribute(b"double", [&[0x21][..], &f64::NAN.to_le_bytes()].concat()),
        attribute(b"list", field(5, &field(1, &field(7, b"\x00\xff")))),
        attribute(b"map", field(6, &field(1, &field(1, b"k")))),
        attribute(b"none", vec![]),
        field(9, &[0xab; 16]),
        vec![0x45, 1, 0, 0, 0], // flags
    ];
    let scope = [field(1, &field(1, b"scope")), field(2, &record.concat()), field(2, b""), field(3, b"url")].concat();
    let body = field(1, &[field(2, &scope), otlp_resource("env0-deployments")].concat());
    let sent = post("/v1/logs", &[PROTOBUF], body);
    let stored = sent.stored();
    assert_eq!(stored.len(), 2);
    assert_eq!(stored[0].0, DEPLOYMENTS);
    let expected = r#"{"resourceLogs":[{
        "resource":{"attributes":[{"key":"service.name","value":{"stringValue":"env0-deployments"}}]},
        "scopeLogs":[{"scope":{"name":"scope"},"logRecords":[{
            "timeUnixNano":"1795382237933000001","severityNumber":9,"severityText":"INFO","body":{"stringValue":"é\n"},
            "attributes":[
                {"key":"bool","value":{"boolValue":true}},
                {"key":"int","value":{"intValue":"-1"}},
                {"key":"double","value":{"doubleValue":"NaN"}},
                {"key":"list","value":{"arrayValue":{"values":[{"bytesValue":"AP8="}]}}},
                {"key":"map","value":{"kvlistValue":{"values":[{"key":"k"}]}}},
                {"key":"none","value":{}}],
            "flags":1,"traceId":"abababababababababababababababab"}],"schemaUrl":"url"}]}]}"#;
    assert_eq!(stored[0].1.parse::<Value>().unwrap(), expected.parse::<Value>().unwrap());
    assert!(stored[1].1.contains(r#""logRecords":[{}]"#));
    let accepted = sent.accepted(2);
    assert_eq!((accepted.status, accepted.body.len()), (200, 0));
    assert_eq!(accepted.header("content-type"), Some("application/x-protobuf"));
}

#[test]
fn otlp_protobuf_is_refused_with_a_status_message() {
    #[derive(Clone, PartialEq, Message)]
    struct Status {
        #[prost(int32, tag = "1")]
        code: i32,
        #[prost(string, tag = "2")]
        message: String,
    }
    let not_utf8 = field(1, &field(2, &field(2, &field(3, b"\xff"))));
    for body in [vec![0x0a, 0x05, 1], vec![0x0b], not_utf8, b"{}".to_vec()] {
        let answer = post("/v1/logs", &[PROTOBUF], body).refused_body();
        assert_eq!((answer.status, answer.header("content-type")), (400, Some("application/x-protobuf")));
        let status = Status::decode(answer.body).unwrap();
        assert_eq!(status.code, 3);
        assert!(!status.message.is_empty());
    }
}

#[test]
fn a_large_resource_is_not_multiplied_without_limit() {
    let record = field(2, b"");
    let body = field(1, &[otlp_resource(&"x".repeat(100_000)), field(2, &record.repeat(1000))].concat());
    let sent = post("/v1/logs", &[PROTOBUF], body.clone());
    assert_eq!(sent.parse_with(&LIMITS), Err(BodyError::LinesTooLarge { limit_bytes: 4 * LIMITS.max_body_bytes }));
    let limits = Limits { max_event_bytes: 100_000, ..LIMITS };
    assert_eq!(sent.parse_with(&limits), Err(BodyError::EventTooLarge { event: 0, limit_bytes: 100_000 }));
}

#[test]
fn logzio_events_are_stored_as_sent_and_their_type_or_name_tells_the_log_type() {
    let lines = [
        r#"{"message":"a","name":"env0-deployment-logs","type":"x"}"#,
        r#"{"message":"b","type":"env0-audit-logs"}"#,
        r#"{"message":"c"}"#,
    ];
    let sent = post("/?token=t%2B1&type=env0-audits", &[], lines.join("\n"));
    let said = [DEPLOYMENTS, AUDITS, AUDITS];
    assert_eq!(sent.stored(), [0, 1, 2].map(|n| (said[n], lines[n].to_owned())));
    assert_eq!(sent.token().as_deref(), Some("t+1"));
    assert_eq!((sent.accepted(3).status, sent.accepted(3).text()), (200, ""));
}

#[test]
fn logzio_gives_events_without_a_type_that_of_the_query() {
    let sent = post("/?type=my%20type", &[], r#"{"message":"a"}{"type":5}{ }"#);
    assert_eq!(sent.lines(), [r#"{"message":"a","type":"my type"}"#, r#"{"type":5}"#, r#"{ "type":"my type"}"#]);
}

#[test]
fn logzio_is_refused_with_counts() {
    let malformed = post("/?token=t", &[], "{\"a\":1}\n{").refused_body();
    assert_eq!(malformed.status, 400);
    assert_eq!((&malformed.json()["malformedLines"], &malformed.json()["successfulLines"]), (&1.into(), &0.into()));
    let oversized = post("/?token=t", &[], "{\"a\":1}").refused_body_with(&Limits { max_event_bytes: 3, ..LIMITS });
    assert_eq!((oversized.status, &oversized.json()["oversizedLines"]), (413, &1.into()));
}

#[test]
fn sumologic_events_are_stored_as_sent_or_with_what_the_headers_say() {
    let uri = "/receiver/v1/http/ZaVnC4dhaV1";
    let json = r#"{ "level":"info" }"#;
    let plain = post(uri, &[], json);
    assert_eq!(plain.lines(), [json]);
    assert_eq!(plain.token().as_deref(), Some("ZaVnC4dhaV1"));
    assert_eq!(plain.accepted(1).status, 200);
    let audits = post(uri, &[("x-sumo-category", "env0-audits")], json);
    assert_eq!(audits.stored(), [(AUDITS, json.to_owned())]);
    let described = [("x-sumo-name", "n"), ("x-sumo-host", "h"), ("x-sumo-category", "c/d"), ("x-sumo-fields", "a=b")];
    let source = r#""_sourceName":"n","_sourceHost":"h","_sourceCategory":"c/d","_fields":"a=b""#;
    assert_eq!(post(uri, &described, json).lines(), [format!(r#"{{"message":{json},{source}}}"#)]);
    let text = format!(r#"{{"timestamp":"2026-11-22T21:00:00.123Z","message":"a line",{source}}}"#);
    assert_eq!(post(uri, &described, "a line\n").lines(), [text]);
    assert_eq!(post(uri, &[], "{\"a\":").refused_body().status, 400);
}

#[test]
fn newrelic_takes_both_forms() {
    let simple = r#"{"deploymentLogId":"d1","level":"info","message":"m","timestamp":1795382237933}"#;
    for body in [simple.to_owned(), format!("[{simple}]")] {
        assert_eq!(post("/log/v1/log/v1", &[], body).lines(), [simple]);
    }
    let detailed = r#"[{"common":{"attributes":{"service":"env0-audits"}},
        "logs":[{"message":"a"},{"message":"b","attributes":{"logtype":"env0-deployments"}}]},{"logs":[{"message":"c"}]}]"#;
    let sent = post("/log/v1", &[("api-key", "k")], detailed);
    let common = r#""common":{"attributes":{"service":"env0-audits"}}"#;
    assert_eq!(
        sent.stored(),
        [
            (AUDITS, format!(r#"{{{common},"logs":[{{"message":"a"}}]}}"#)),
            (
                DEPLOYMENTS,
                format!(r#"{{{common},"logs":[{{"message":"b","attributes":{{"logtype":"env0-deployments"}}}}]}}"#)
            ),
            (None, r#"{"logs":[{"message":"c"}]}"#.to_owned()),
        ]
    );
    assert_eq!(sent.token().as_deref(), Some("k"));
    assert_eq!(post("/log/v1", &[("x-license-key", "l")], "").token().as_deref(), Some("l"));
    let accepted = sent.accepted(3);
    assert_eq!(accepted.status, 202);
    let id = accepted.json()["requestId"].as_str().unwrap().to_owned();
    assert_eq!((id.len(), id.as_bytes()[14], id.matches('-').count()), (36, b'4', 4));
    for body in ["text", r#"{"logs":[1]}"#, r#"[{"message":1},"#] {
        assert_eq!(post("/log/v1", &[], body).refused_body().status, 400, "{body}");
    }
}

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
        post("/loki/api/v1/push", &[PROTOBUF], snappy(&push)),
        post("/v1/logs", &[], format!(r#"{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{{"a":"{long}"}}]}}]}}]}}"#)),
        post("/v1/logs", &[PROTOBUF], export),
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
