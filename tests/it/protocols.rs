//! Every protocol that env0 and common shippers speak, over a socket: what is accepted, and what is
//! refused, is answered as that protocol does, and nothing of what is refused is kept. (The native
//! protocol's answers are in `status_table`.)

mod dialects;

use dialects::{Dialect, dialects, otlp_protobuf};
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::harness::books::check_bucket;
use crate::harness::{Answer, DEPLOYMENTS, Daemon, Raw, Setup, TOKEN, Upload, wait_until_delivered};
use crate::local_aws::{Fault, LocalAws};

/// May write `env0-audits` only.
const AUDITS_TOKEN: &str = "token-for-audits-only";
const WRONG_TOKEN: &str = "wrong-token-of-some-length";
/// In every event that must be refused, to look for where it must not be.
const REFUSED: &str = "refused-and-nowhere-kept";
const MAX_EVENT_BYTES: usize = 64 * 1024;

/// A daemon that every dialect talks to.
struct Listener {
    aws: LocalAws,
    setup: Setup,
    daemon: Daemon,
}

impl Listener {
    fn new() -> Listener {
        Listener::with(|setup| setup)
    }

    fn with(change: impl FnOnce(Setup) -> Setup) -> Listener {
        let aws = LocalAws::start();
        let setup = Setup::new(&aws).set("ENV0_S3_LOG_MAX_EVENT_BYTES", MAX_EVENT_BYTES.to_string());
        let tokens = setup.folder().join("tokens");
        std::fs::write(&tokens, format!("{AUDITS_TOKEN} env0-audits\n")).unwrap();
        let setup = change(setup.set("ENV0_S3_LOG_INGEST_TOKEN_FILE", tokens.to_str().unwrap()));
        let daemon = setup.start();
        Listener { aws, setup, daemon }
    }

    fn accepted(&self, dialect: &Dialect, upload: Upload) {
        let answer = self.daemon.send(upload);
        assert!((dialect.accepted)(&answer), "{}: {} {}", dialect.name, answer.status, answer.text());
    }

    fn refused(&self, dialect: &Dialect, status: u16, upload: Upload) -> Answer {
        let answer = self.daemon.send(upload);
        let about = format!("{}: {} {:?}", dialect.name, answer.status, answer.text());
        assert_eq!(answer.status, status, "{about}");
        assert!((dialect.refused)(&answer), "{about}");
        assert!(!answer.text().contains(REFUSED), "the answer repeats the event: {about}");
        assert!(!self.setup.spool_holds(REFUSED), "the spool holds what was refused: {about}");
        answer
    }

    /// Waits until all is delivered; the log type and the stored line of the event with `text`.
    fn stored(&self, text: &str) -> (String, Value) {
        wait_until_delivered(&self.setup);
        let mut found = Vec::new();
        for object in self.aws.s3.objects() {
            let lines = object.text_lines().into_iter().filter(|line| line.contains(&format!("\"{text}\"")));
            let log_type = object.key.split('/').find(|part| part.starts_with("env0-")).unwrap();
            found.extend(lines.map(|line| (log_type.to_owned(), serde_json::from_str(&line).unwrap())));
        }
        assert_eq!(found.len(), 1, "{text} is in the bucket {} times", found.len());
        found.remove(0)
    }

    /// Everything that was accepted arrives, and nothing that was refused.
    fn finish(self) {
        wait_until_delivered(&self.setup);
        assert!(self.aws.s3.lines().iter().all(|line| !line.contains(REFUSED)));
        let log = self.daemon.log().text();
        for secret in [REFUSED, TOKEN, AUDITS_TOKEN, WRONG_TOKEN] {
            assert!(!log.contains(secret), "the log holds {secret}");
        }
        check_bucket(&self.aws);
    }
}

#[test]
fn every_protocol_is_acknowledged_in_its_own_words_and_stored_under_its_own_names() {
    let listener = Listener::new();
    for (index, dialect) in dialects().iter().enumerate() {
        listener.accepted(dialect, dialect.event("", TOKEN, &format!("said-{index}"), "env0-audits"));
    }
    for (index, dialect) in dialects().iter().enumerate() {
        let text = format!("said-{index}");
        let (log_type, line) = listener.stored(&text);
        assert_eq!(line.pointer(dialect.text_at), Some(&json!(text)), "{}: {line}", dialect.name);
        assert_eq!(log_type, "env0-audits", "{}: what the sender says decides", dialect.name);
    }
    listener.finish();
}

#[test]
fn a_path_prefix_names_the_log_type_for_a_sender_and_a_typed_token_for_all() {
    let listener = Listener::new();
    for (index, dialect) in dialects().iter().enumerate() {
        let other = "env0-audits";
        listener.accepted(dialect, dialect.event("/env0-deployments", TOKEN, &format!("path-{index}"), other));
        let other = "env0-deployments";
        listener.accepted(dialect, dialect.event("", AUDITS_TOKEN, &format!("token-{index}"), other));
    }
    for index in 0..dialects().len() {
        assert_eq!(listener.stored(&format!("path-{index}")).0, "env0-deployments");
        assert_eq!(listener.stored(&format!("token-{index}")).0, "env0-audits");
    }
    listener.finish();
}

#[test]
fn every_protocol_is_refused_in_its_own_words_and_nothing_of_it_is_kept() {
    let listener = Listener::new();
    for dialect in &dialects() {
        let (own, event) =
            ("env0-deployments", |prefix: &str, token: &str| dialect.event(prefix, token, REFUSED, "env0-deployments"));
        if let Some(malformed) = dialect.malformed() {
            listener.refused(dialect, 400, dialect.upload("", TOKEN, &malformed, own));
        }

        let wrong = listener.refused(dialect, 401, event("", WRONG_TOKEN));
        assert_eq!(wrong.header("www-authenticate"), Some("Bearer"), "{}", dialect.name);
        listener.refused(dialect, 401, event("/env0-deployments", AUDITS_TOKEN));

        let long = [(dialect.body)(REFUSED, own), (dialect.body)(&"x".repeat(MAX_EVENT_BYTES + 1), own)].concat();
        listener.refused(dialect, 413, dialect.upload("", TOKEN, &long, own));

        // Loki's clients name their protocol's own compression so.
        let unsupported =
            ["br", "snappy"].into_iter().filter(|name| *name == "br" || !dialect.name.starts_with("loki"));
        for encoding in unsupported {
            let unknown = listener.refused(dialect, 415, event("", TOKEN).header("Content-Encoding", encoding));
            assert_eq!(unknown.header("accept-encoding"), Some("gzip, deflate, zstd"), "{}", dialect.name);
        }
        let not_gzip = event("", TOKEN).header("Content-Encoding", "gzip");
        listener.refused(dialect, 400, not_gzip);

        let form = dialect.upload("", TOKEN, REFUSED.as_bytes(), own);
        let headers = form.headers.replace(dialect.content_type, "multipart/form-data; boundary=x");
        let form = listener.daemon.send(Upload { headers, ..form });
        assert_eq!(form.status, 415, "{}", dialect.name);
        assert!(form.text().contains("--data-binary"), "{}", dialect.name);
    }
    listener.finish();
}

#[test]
fn splunk_tells_no_token_from_one_without_its_scheme_and_from_a_wrong_one() {
    let listener = Listener::new();
    for (query, authorization, code) in [
        ("", None, 2),
        ("", Some(TOKEN), 3),
        ("", Some("Splunk"), 3),
        ("", Some("Splunk wrong"), 4),
        ("?token=wrong", None, 4),
        ("?token=wrong", Some(TOKEN), 4),
    ] {
        let upload = Upload::post(&format!("/services/collector{query}")).body(r#"{"event":"x"}"#);
        let upload = authorization.into_iter().fold(upload, |upload, value| upload.header("Authorization", value));
        let answer = listener.daemon.send(upload);
        assert_eq!((answer.status, &answer.json()["code"]), (401, &json!(code)), "{query} {authorization:?}");
    }
    listener.finish();
}

#[test]
fn every_protocol_may_be_compressed_by_gzip() {
    let listener = Listener::new();
    for (index, dialect) in dialects().iter().enumerate() {
        let event = (dialect.packed)(&(dialect.body)(&format!("gzip-{index}"), "env0-audits"));
        let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut gzip, &event).unwrap();
        let upload = dialect.event("", TOKEN, "", "env0-audits").body(gzip.finish().unwrap());
        listener.accepted(dialect, upload.header("Content-Encoding", "gzip"));
    }
    for index in 0..dialects().len() {
        listener.stored(&format!("gzip-{index}"));
    }
    listener.finish();
}

#[test]
fn gzip_and_zstd_are_recognised_without_their_header_and_in_a_list_of_codings() {
    let listener = Listener::new();
    for (index, dialect) in dialects().iter().enumerate() {
        let event = |text: &str| (dialect.packed)(&(dialect.body)(text, "env0-audits"));
        let gzip = |bytes: &[u8]| {
            let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::default());
            std::io::Write::write_all(&mut gzip, bytes).unwrap();
            gzip.finish().unwrap()
        };
        let upload = || dialect.event("", TOKEN, "", "env0-audits");
        listener.accepted(dialect, upload().body(gzip(&event(&format!("magic-gzip-{index}")))));
        let zstd = zstd::encode_all(&event(&format!("magic-zstd-{index}"))[..], 3).unwrap();
        listener.accepted(dialect, upload().body(zstd));
        let listed =
            upload().body(gzip(&event(&format!("listed-{index}")))).header("Content-Encoding", "identity, GZip,");
        listener.accepted(dialect, listed);
        let thrice = gzip(&gzip(&gzip(&event(REFUSED))));
        listener.refused(dialect, 400, upload().body(thrice));
    }
    for index in 0..dialects().len() {
        for way in ["magic-gzip", "magic-zstd", "listed"] {
            listener.stored(&format!("{way}-{index}"));
        }
    }
    listener.finish();
}

#[test]
fn a_deflate_body_of_two_streams_is_stored_whole() {
    let listener = Listener::new();
    let upload = Upload::post(DEPLOYMENTS).bearer(TOKEN).header("Content-Encoding", "deflate");
    let bytes = include_bytes!("../fixtures/bodies/deflate-two-streams.bin");
    assert_eq!(listener.daemon.send(upload.clone().body(bytes)).accepted(), 2);
    let cut = listener.daemon.send(upload.body(&bytes[..bytes.len() - 1]));
    assert_eq!(cut.status, 400, "{}", cut.text());
    for path in [DEPLOYMENTS, "/", "/receiver/v1/http/x", "/services/collector/raw"] {
        let unsaid = listener.daemon.send(Upload::post(path).bearer(TOKEN).body(bytes));
        assert_eq!(unsaid.status, 400, "{path}: {}", unsaid.text());
        assert!(unsaid.text().contains("without its Content-Encoding"), "{path}: {}", unsaid.text());
    }
    listener.finish();
}

#[test]
fn what_is_not_utf8_is_stored_with_replacements_and_counted() {
    let listener = Listener::new();
    let text = include_bytes!("../fixtures/bodies/latin1-in-one-of-three.txt");
    for path in ["/v1/logs/env0-deployments", "/services/collector/raw", "/receiver/v1/http/not-needed", "/"] {
        let answer = listener.daemon.send(Upload::post(path).bearer(TOKEN).body(text));
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
    let json = listener.daemon.send(Upload::post(DEPLOYMENTS).bearer(TOKEN).body(b"{\"a\":\"ca\xf1on\"}"));
    assert_eq!(json.status, 400, "native JSON is UTF-8");
    wait_until_delivered(&listener.setup);
    let lines = listener.aws.s3.lines();
    assert_eq!(lines.iter().filter(|line| line.contains("ca\u{fffd}on applied")).count(), 4);
    let replaced = listener.daemon.metric("replaced_bytes_total{type=\"env0-deployments\"}");
    assert_eq!(replaced, Some(4.0));
    listener.finish();
}

#[test]
fn text_in_a_declared_charset_is_decoded_or_refused_and_nothing_is_replaced() {
    let listener = Listener::new();
    let text = include_bytes!("../fixtures/bodies/latin1-in-one-of-three.txt");
    let send = |path: &str, content_type: &str| {
        let upload = Upload::post(path).bearer(TOKEN).header("Content-Type", content_type);
        listener.daemon.send(upload.body(text))
    };
    for path in ["/v1/logs/env0-deployments", "/services/collector/raw", "/receiver/v1/http/not-needed", "/"] {
        assert_eq!(send(path, "text/plain; charset=ISO-8859-1").status, 200, "{path}");
        let refused = send(path, "text/plain; charset=Shift_JIS");
        assert_eq!(refused.status, 415, "{path}");
        assert!(refused.text().contains("send UTF-8"), "{path}: {}", refused.text());
    }
    wait_until_delivered(&listener.setup);
    let lines = listener.aws.s3.lines();
    assert_eq!(lines.len(), 12, "{lines:?}");
    assert_eq!(lines.iter().filter(|line| line.contains("cañon applied")).count(), 4, "{lines:?}");
    let replaced = listener.daemon.metric("replaced_bytes_total{type=\"env0-deployments\"}");
    assert_eq!(replaced.unwrap_or_default(), 0.0);
    listener.finish();
}

#[test]
fn what_a_head_says_of_events_holds_however_late_their_body_comes() {
    let listener = Listener::new();
    let sumo = "X-Sumo-Name: n\r\nX-Sumo-Host: h\r\nX-Sumo-Category: c\r\nX-Sumo-Fields: f=1\r\n\
                X-Sumo-Dimensions: d=1\r\nX-Sumo-Metadata: m=1\r\nContent-Type: text/plain; charset=ISO-8859-1\r\n";
    let loki = "X-Scope-OrgID: tenant\r\nContent-Type: application/json\r\n";
    let lines = r#"{"streams":[{"stream":{"a":"b"},"values":[["1700000000000000000","in loki"]]}]}"#;
    let requests: [(&str, &str, &[u8]); 3] = [
        ("/receiver/v1/http/not-needed", sumo, b"ca\xf1on"),
        ("/loki/api/v1/push", loki, lines.as_bytes()),
        ("/services/collector/raw?source=s&sourcetype=t%20u", "", b"in splunk"),
    ];
    for (path, headers, body) in requests {
        let mut raw = Raw::connect(listener.daemon.listen).unwrap();
        let length = body.len();
        raw.write(format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nExpect: 100-continue\r\n\
             Content-Length: {length}\r\n{headers}\r\n"
        ))
        .unwrap();
        // The daemon waits for the body from here on.
        assert_eq!(raw.answer().unwrap().unwrap().status, 100, "{path}");
        raw.write(body).unwrap();
        let answer = raw.answer().unwrap().unwrap();
        assert!(matches!(answer.status, 200 | 204), "{path}: {} {}", answer.status, answer.text());
    }
    let sumo = listener.stored("ca\u{f1}on").1;
    for (name, value) in [
        ("_sourceName", "n"),
        ("_sourceHost", "h"),
        ("_sourceCategory", "c"),
        ("_fields", "f=1"),
        ("_dimensions", "d=1"),
        ("_metadata", "m=1"),
    ] {
        assert_eq!(sumo[name], value, "{sumo}");
    }
    assert!(listener.stored("in loki").1.to_string().contains("tenant"));
    let splunk = listener.stored("in splunk").1;
    assert_eq!((&splunk["source"], &splunk["sourcetype"]), (&json!("s"), &json!("t u")), "{splunk}");
    listener.finish();
}

#[test]
fn a_broken_line_at_logzio_costs_none_of_the_others() {
    let listener = Listener::new();
    let path = format!("/?token={TOKEN}");
    let lines = "{\"message\":\"one\"}\n{broken\n{\"message\":\"three\"}\n";
    assert_eq!(listener.daemon.send(Upload::post(&path).body(lines)).status, 200);
    let nothing_else = listener.daemon.send(Upload::post(&path).body(format!("{{\"message\":\"{REFUSED}\"")));
    assert_eq!((nothing_else.status, &nothing_else.json()["malformedLines"]), (400, &json!(1)));
    for text in ["one", "{broken", "three"] {
        assert_eq!(listener.stored(text).1["message"], text);
    }
    listener.finish();
}

#[test]
fn paths_lead_to_the_same_place_however_a_client_puts_them_together() {
    let listener = Listener::new();
    for dialect in dialects().iter().filter(|dialect| !dialect.name.contains("raw") && dialect.name != "sumo logic") {
        let path = (dialect.path)(TOKEN);
        for spelt in [format!("/{path}"), format!("{path}/"), format!("{path}{path}"), path.replace('/', "//")] {
            if !spelt.contains('?') {
                let upload = Upload { path: spelt, ..dialect.event("", TOKEN, "spelt", "env0") };
                listener.accepted(dialect, upload);
            }
        }
    }
    listener.finish();
}

#[test]
fn dockers_driver_for_splunk_finds_what_it_asks_for() {
    let listener = Listener::new();
    for path in ["/services/collector/event/1.0", "/services/collector", "/env0-audits/services/collector/raw"] {
        let answer = listener.daemon.send(Upload::new("OPTIONS", path));
        assert_eq!((answer.status, answer.header("allow")), (200, Some("POST, OPTIONS")), "{path}");
    }
    let ack = Upload::post("/services/collector/ack?channel=c").header("Authorization", &format!("Splunk {TOKEN}"));
    let answer = listener.daemon.send(ack.body(r#"{"acks":[0]}"#));
    assert_eq!((answer.status, answer.json()["code"].clone()), (400, json!(14)));
    listener.finish();
}

#[test]
fn a_token_in_base64_is_taken_from_a_query_that_does_not_escape_it() {
    const BASE64_TOKEN: &str = "q7+T/aVx0zE8mB3nYw+Kd2==";
    let listener = Listener::with(|setup| setup.set("ENV0_S3_LOG_INGEST_TOKEN", BASE64_TOKEN));
    for query in [BASE64_TOKEN.to_owned(), BASE64_TOKEN.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D")] {
        let answer = listener.daemon.send(Upload::post(&format!("/?token={query}")).body("{}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    listener.finish();
}

#[test]
fn what_is_not_understood_is_refused_and_nothing_of_it_kept() {
    let listener = Listener::new();
    let send = |path: &str, body: &[u8]| listener.daemon.send(Upload::post(path).bearer(TOKEN).body(body));
    let protobuf = |path: &str| {
        let upload = Upload::post(path).bearer(TOKEN).header("Content-Type", "application/x-protobuf");
        listener.daemon.send(upload.body(otlp_protobuf(REFUSED, "env0-audits")))
    };
    let one_of_two = send("/v1/logs", include_bytes!("../fixtures/bodies/otlp-one-of-two.json"));
    assert_eq!(one_of_two.status, 400);
    let text = one_of_two.text();
    assert!(text.contains("`logs`") && text.contains("`scopeLogs`") && text.contains("byte 85"), "{text}");
    assert_eq!(send("/v1/logs", include_bytes!("../fixtures/bodies/otlp-older-member.json")).status, 200);
    let at_the_root = send("/", include_bytes!("../fixtures/bodies/otlp-at-the-root.json"));
    assert_eq!(at_the_root.status, 400);
    assert!(at_the_root.text().contains("POST /v1/logs"), "{}", at_the_root.text());
    for path in ["/", "/v1/logs/env0-audits", "/services/collector", "/log/v1", "/receiver/v1/http/x"] {
        let answer = protobuf(path);
        assert_eq!(answer.status, 415, "{path}");
        assert!(answer.text().contains("POST /v1/logs"), "{path}: {}", answer.text());
    }
    let sumo = send("/receiver/v1/http/x", include_bytes!("../fixtures/bodies/sumo-json-then-text.txt"));
    assert_eq!(sumo.status, 200, "each line is what it is");
    wait_until_delivered(&listener.setup);
    assert_eq!(listener.aws.s3.lines().len(), 4, "one of OTLP, three of Sumo Logic");
    listener.finish();
}

#[test]
fn loki_takes_snappy_as_its_content_encoding() {
    let listener = Listener::new();
    let [_, _, protobuf, json, ..] = dialects();
    for (dialect, encoding) in [(&protobuf, "snappy"), (&protobuf, " Snappy"), (&json, "snappy")] {
        let text = format!("{}{encoding}", dialect.name);
        listener.accepted(dialect, dialect.event("", TOKEN, &text, "env0").header("Content-Encoding", encoding));
        listener.stored(&text);
    }
    listener.finish();
}

#[test]
fn a_snappy_block_that_declares_4_gib_is_refused_before_any_of_it_is_made() {
    let listener = Listener::new();
    let [_, _, loki, ..] = dialects();
    // The declared length is a varint before the block.
    let bombs: [(&[u8], u16); 3] = [
        (b"\xff\xff\xff\xff\x0f", 413),
        (b"\x80\x80\x80\x80\x10", 413),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 400),
    ];
    for (declared, status) in bombs {
        let block = [declared, b"\x00", REFUSED.as_bytes()].concat();
        listener.refused(&loki, status, loki.event("", TOKEN, "", "env0").body(block));
    }
    listener.accepted(&loki, loki.event("", TOKEN, "after", "env0"));
    listener.stored("after");
    listener.finish();
}

#[test]
fn while_the_spool_is_full_every_protocol_is_told_to_come_back() {
    let listener = Listener::with(|setup| {
        setup.set("ENV0_S3_LOG_SPOOL_MAX_BYTES", "2MiB").set("ENV0_S3_LOG_BATCH_MAX_BYTES", "256KiB")
    });
    listener.aws.s3.inject(Fault::slow_down());
    for event_bytes in [32_000, 1_000, 10] {
        let event = json!({ "m": "x".repeat(event_bytes) }).to_string();
        let full = (0..10_000).any(|_| listener.daemon.post(DEPLOYMENTS, &event).status == 503);
        assert!(full, "the spool never gets full");
    }
    let events = |dialect: &Dialect, text: &str| dialect.event("/env0-deployments", TOKEN, text, "env0-deployments");
    for dialect in &dialects() {
        let answer = listener.refused(dialect, 503, events(dialect, REFUSED));
        let seconds = answer.header("retry-after").and_then(|seconds| seconds.parse::<u64>().ok());
        assert!(seconds.is_some_and(|seconds| seconds > 0), "{}", dialect.name);
    }
    listener.aws.s3.heal();
    wait_until_delivered(&listener.setup);
    for dialect in &dialects() {
        listener.accepted(dialect, events(dialect, "afterwards"));
    }
    listener.finish();
}

#[test]
fn a_client_that_asks_whether_anyone_is_there_needs_no_token() {
    let listener = Listener::new();
    for (method, path) in [("GET", "/"), ("HEAD", "/"), ("GET", "/env0-audits/"), ("HEAD", "/env0-audits")] {
        let answer = listener.daemon.send(Upload::new(method, path));
        assert_eq!((answer.status, answer.text()), (200, String::new()), "{method} {path}");
    }
    for path in
        ["/services/collector/health", "/services/collector/health/1.0", "/env0-audits/services/collector/health"]
    {
        let answer = listener.daemon.send(Upload::new("GET", path));
        assert_eq!((answer.status, answer.json()["code"].clone()), (200, json!(17)), "{path}");
    }
    for (path, allowed) in [("/loki/api/v1/push", "POST"), ("/", "GET, HEAD, POST")] {
        let answer = listener.daemon.send(Upload::new("DELETE", path));
        assert_eq!((answer.status, answer.header("allow")), (405, Some(allowed)), "{path}");
    }
    listener.finish();
}

#[test]
fn an_empty_logzio_body_as_its_client_sends_when_it_closes_is_fine() {
    let listener = Listener::new();
    let answer = listener.daemon.send(Upload::post(&format!("/?token={TOKEN}")));
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    listener.finish();
}
