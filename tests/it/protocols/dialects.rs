//! How the clients of each protocol send, and what they expect to be told.

use serde_json::{Value, json};

use super::REFUSED;
use crate::harness::{Answer, Upload};

/// How a client of one protocol sends, and what it expects to be told.
pub(super) struct Dialect {
    pub(super) name: &'static str,
    pub(super) path: fn(token: &str) -> String,
    /// The header that carries the token, where one does.
    pub(super) credentials: fn(token: &str) -> Option<(&'static str, String)>,
    pub(super) content_type: &'static str,
    /// A body of one event with this text, whose source is called so. Bodies can be put end to end.
    pub(super) body: fn(text: &str, source: &str) -> Vec<u8>,
    /// What is done to a body at the end.
    pub(super) packed: fn(body: &[u8]) -> Vec<u8>,
    /// Where the text is in the stored line, as a JSON pointer.
    pub(super) text_at: &'static str,
    /// Status and body of an acknowledgement.
    pub(super) accepted: fn(&Answer) -> bool,
    /// Whether a refusal is worded as the protocol does.
    pub(super) refused: fn(&Answer) -> bool,
}

pub(super) fn dialects() -> [Dialect; 9] {
    [
        Dialect {
            name: "splunk",
            path: |_| "/services/collector/event/1.0".into(),
            credentials: |token| Some(("Authorization", format!("Splunk {token}"))),
            content_type: "application/x-www-form-urlencoded",
            body: |text, source| json_bytes(&json!({ "source": source, "event": { "message": text } })),
            packed: <[u8]>::to_vec,
            text_at: "/event/message",
            accepted: |answer| answer.status == 200 && answer.json() == json!({"text": "Success", "code": 0}),
            refused: splunk_refused,
        },
        Dialect {
            name: "splunk raw",
            path: |token| format!("/services/collector/raw?token={token}&source=env0-audits"),
            credentials: |_| None,
            content_type: "text/plain",
            // The query names the source.
            body: |text, _| format!("{text}\n").into_bytes(),
            packed: <[u8]>::to_vec,
            text_at: "/event",
            accepted: |answer| answer.status == 200 && answer.json() == json!({"text": "Success", "code": 0}),
            refused: splunk_refused,
        },
        Dialect {
            name: "loki protobuf",
            path: |_| "/loki/api/v1/push".into(),
            credentials: |token| Some(("Authorization", format!("Basic {}", base64(&format!("env0:{token}"))))),
            content_type: "application/x-protobuf",
            body: loki_protobuf,
            packed: |body| snap::raw::Encoder::new().compress_vec(body).unwrap(),
            text_at: "/line",
            accepted: |answer| answer.status == 204 && answer.body.is_empty(),
            refused: |answer| answer.text().ends_with('\n'),
        },
        Dialect {
            name: "loki json",
            path: |_| "/loki/api/v1/push".into(),
            credentials: |token| Some(("Authorization", format!("Basic {}", base64(&format!("env0:{token}"))))),
            content_type: "application/json",
            body: |text, source| {
                let stream = json!({ "stream": { "app": source }, "values": [["1795382237825000000", text]] });
                json_bytes(&json!({ "streams": [stream] }))
            },
            packed: <[u8]>::to_vec,
            text_at: "/line",
            accepted: |answer| answer.status == 204 && answer.body.is_empty(),
            refused: |answer| answer.text().ends_with('\n'),
        },
        Dialect {
            name: "otlp protobuf",
            path: |_| "/v1/logs".into(),
            credentials: |token| Some(("Authorization", format!("Bearer {token}"))),
            content_type: "application/x-protobuf",
            body: otlp_protobuf,
            packed: <[u8]>::to_vec,
            text_at: "/resourceLogs/0/scopeLogs/0/logRecords/0/body/stringValue",
            // An `ExportLogsServiceResponse` without members has no bytes.
            accepted: |answer| answer.status == 200 && answer.body.is_empty() && media_type(answer) == "x-protobuf",
            // `google.rpc.Status`: field 1, a varint, is the code; field 2 the message.
            refused: |answer| {
                answer.body.starts_with(&[0x08, rpc_code(answer.status), 0x12]) && media_type(answer) == "x-protobuf"
            },
        },
        Dialect {
            name: "otlp json",
            path: |_| "/v1/logs".into(),
            credentials: |token| Some(("Authorization", format!("Bearer {token}"))),
            content_type: "application/json",
            body: |text, source| {
                let resource = json!({ "attributes": [{ "key": "service.name", "value": { "stringValue": source } }] });
                let records = json!([{ "logRecords": [{ "body": { "stringValue": text } }] }]);
                json_bytes(&json!({ "resourceLogs": [{ "resource": resource, "scopeLogs": records }] }))
            },
            packed: <[u8]>::to_vec,
            text_at: "/resourceLogs/0/scopeLogs/0/logRecords/0/body/stringValue",
            accepted: |answer| answer.status == 200 && answer.json() == json!({}),
            refused: |answer| answer.json()["code"] == rpc_code(answer.status) && answer.json()["message"].is_string(),
        },
        Dialect {
            name: "logz.io",
            path: |token| format!("/?token={token}"),
            credentials: |_| None,
            content_type: "text/plain",
            body: |text, source| [json_bytes(&json!({ "message": text, "name": source })), b"\n".into()].concat(),
            packed: <[u8]>::to_vec,
            text_at: "/message",
            accepted: |answer| answer.status == 200 && answer.body.is_empty(),
            // Counts, where it's about events; else words.
            refused: |answer| match (media_type(answer), answer.status) {
                ("json", 400) => answer.json()["malformedLines"] == 1 && answer.json()["successfulLines"] == 0,
                ("json", 413) => answer.json()["oversizedLines"] == 1 && answer.json()["successfulLines"] == 0,
                (kind, _) => kind == "plain",
            },
        },
        Dialect {
            name: "sumo logic",
            path: |token| format!("/receiver/v1/http/{token}"),
            credentials: |_| None,
            content_type: "text/plain",
            body: |text, _| [json_bytes(&json!({ "level": "info", "message": text })), b"\n".into()].concat(),
            packed: <[u8]>::to_vec,
            // What the headers say stands beside the event.
            text_at: "/message/message",
            accepted: |answer| answer.status == 200 && answer.body.is_empty(),
            refused: |answer| answer.json()["message"].is_string(),
        },
        Dialect {
            name: "new relic",
            path: |_| "/log/v1/log/v1".into(),
            credentials: |token| Some(("Api-Key", token.into())),
            content_type: "application/json",
            body: |text, source| json_bytes(&json!({ "message": text, "service": source })),
            packed: <[u8]>::to_vec,
            text_at: "/message",
            accepted: |answer| answer.status == 202 && answer.json()["requestId"].is_string(),
            refused: |answer| answer.json()["requestId"].is_string(),
        },
    ]
}

impl Dialect {
    /// A request with this token and body, to the path behind `prefix`.
    pub(super) fn upload(&self, prefix: &str, token: &str, body: &[u8], source: &str) -> Upload {
        let upload = Upload::post(&format!("{prefix}{}", (self.path)(token)))
            .header("Content-Type", self.content_type)
            .header("X-Sumo-Category", source)
            .body((self.packed)(body));
        match (self.credentials)(token) {
            Some((name, value)) => upload.header(name, &value),
            None => upload,
        }
    }

    /// A request with one good event.
    pub(super) fn event(&self, prefix: &str, token: &str, text: &str, source: &str) -> Upload {
        self.upload(prefix, token, &(self.body)(text, source), source)
    }

    /// A body that is good up to its last event; none where each line is taken as what it is.
    pub(super) fn malformed(&self) -> Option<Vec<u8>> {
        let good = (self.body)(REFUSED, "env0-deployments");
        let takes_any_line = ["splunk raw", "sumo logic", "logz.io"].contains(&self.name);
        (!takes_any_line).then(|| [&good[..], &good[..good.len() - 3]].concat())
    }
}

fn json_bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn base64(text: &str) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text)
}

/// The media type without `application/` or `text/` and parameters.
fn media_type(answer: &Answer) -> &str {
    let value = answer.header("content-type").unwrap_or_default();
    value.split(';').next().unwrap_or_default().rsplit('/').next().unwrap_or_default()
}

fn splunk_refused(answer: &Answer) -> bool {
    let code = match answer.status {
        400 | 415 => 6,
        401 => 4,
        413 => 27,
        _ => 9,
    };
    answer.json()["code"] == code && answer.json()["text"].is_string()
}

/// `google.rpc.Code` for a status.
fn rpc_code(status: u16) -> u8 {
    match status {
        400 | 415 => 3,
        401 => 16,
        413 => 8,
        _ => 14,
    }
}

/// A length-delimited protobuf field.
fn field(tag: u32, parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::bytes::encode(tag, &parts.concat(), &mut bytes);
    bytes
}

/// `logproto.PushRequest`: one stream, one entry.
fn loki_protobuf(text: &str, source: &str) -> Vec<u8> {
    let labels = field(1, &[format!("{{app={source:?}}}").as_bytes()]);
    let entry = field(2, &[&field(1, &[]), &field(2, &[text.as_bytes()])]);
    field(1, &[&labels, &entry])
}

/// `ExportLogsServiceRequest`: one resource, one scope, one record.
pub(super) fn otlp_protobuf(text: &str, source: &str) -> Vec<u8> {
    let any = |tag, text: &str| field(tag, &[&field(1, &[text.as_bytes()])]);
    let resource = field(1, &[&field(1, &[&field(1, &[b"service.name"]), &any(2, source)])]);
    let scope = field(2, &[&field(2, &[&any(5, text)])]);
    field(1, &[&resource, &scope])
}
