//! Requests as real clients sent them, at their default settings, byte for byte (`tests/fixtures/clients`).

use std::io::Read;

use axum::http::{HeaderName, HeaderValue};

use super::*;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/clients");
const TOKEN: &str = "golden-token-0123456789";

/// A recorded request, its body inflated as the HTTP front does it.
pub(super) fn recorded(client: &str) -> Sent {
    let bytes = std::fs::read(format!("{FIXTURES}/{client}.http")).unwrap();
    let end = memchr::memmem::find(&bytes, b"\r\n\r\n").unwrap();
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let mut body = bytes[end + 4..].to_vec();
    let mut lines = head.split("\r\n");
    let uri = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: HeaderMap = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap()))
        .collect();
    assert_eq!(header_text(&headers, "content-length"), Some(&*body.len().to_string()), "{client}");
    if header_text(&headers, "content-encoding") == Some("gzip") {
        let compressed = std::mem::take(&mut body);
        flate2::read::GzDecoder::new(&compressed[..]).read_to_end(&mut body).unwrap();
    }
    Sent { uri, headers, body: body.into() }
}

pub(super) const CLIENTS: [&str; 10] = [
    "curl",
    "logzio-nodejs",
    "opentelemetry-python",
    "opentelemetry-python-gzip",
    "winston-loki",
    "winston-loki-json",
    "winston-newrelic-logs-transport",
    "winston-newrelic-logs-transport-doubled",
    "winston-splunk-httplogger",
    "winston-sumologic-transport",
];

/// The two lines that every client was given (one at a time where it sends so).
const MESSAGES: [&str; 2] =
    [r"\u001b[1mTerraform will perform the following actions:\u001b[0m", "Apply complete! Resources: 1 added"];

#[test]
fn what_real_clients_send_is_stored_with_their_words() {
    for client in CLIENTS.into_iter().filter(|client| *client != "curl") {
        let stored = recorded(client).stored();
        for (message, (_, line)) in MESSAGES.iter().zip(&stored) {
            assert!(line.contains(message), "{client}: {line}");
        }
        let sends_one = client.contains("splunk") || client.contains("newrelic");
        assert_eq!(stored.len(), if sends_one { 1 } else { 2 }, "{client}");
    }
}

#[test]
fn what_curl_sends_without_its_newlines_is_stored_with_them() {
    let fixture = include_str!("../../../tests/fixtures/deployment-events.ndjson");
    let lines: Vec<_> = fixture.lines().take(2).collect();
    assert_eq!(recorded("curl").lines(), lines);
}

#[test]
fn what_real_clients_call_their_logs_tells_the_type() {
    for client in ["winston-splunk-httplogger", "logzio-nodejs", "opentelemetry-python", "opentelemetry-python-gzip"] {
        assert_eq!(recorded(client).stored()[0].0, DEPLOYMENTS, "{client}");
    }
    for client in ["winston-loki", "winston-sumologic-transport", "winston-newrelic-logs-transport"] {
        assert_eq!(recorded(client).stored()[0].0, None, "{client}");
    }
}

#[test]
fn tokens_are_found_where_real_clients_put_them() {
    for client in CLIENTS {
        let sent = recorded(client);
        let in_authorization = sent.headers.contains_key("authorization");
        assert_eq!(sent.token().as_deref(), (!in_authorization).then_some(TOKEN), "{client}");
    }
}

#[test]
fn winston_loki_gives_the_same_entry_in_both_encodings() {
    let line = |client| {
        let line: Value = recorded(client).lines()[0].parse().unwrap();
        (line["labels"].clone(), line["line"].clone())
    };
    assert_eq!(line("winston-loki"), line("winston-loki-json"));
}
