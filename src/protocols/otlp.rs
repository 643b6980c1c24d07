//! OpenTelemetry's OTLP/HTTP for logs: `POST /v1/logs`, protobuf or JSON.
//!
//! Specification: <https://opentelemetry.io/docs/specs/otlp/> and the published definitions
//! (`opentelemetry-proto`, package `opentelemetry.proto.logs.v1`). Each log record is stored as a
//! request of its own in OTLP's JSON encoding, `{"resourceLogs":[{"resource":…,"scopeLogs":[{"scope":…,
//! "logRecords":[{…}]}]}]}`: the line format of OpenTelemetry's file exporter, which any collector
//! reads back. JSON is kept as sent; protobuf is translated as the specification maps it. The
//! resource's `service.name` tells the log type.

mod json;
mod proto;

use axum::http::{HeaderMap, StatusCode, Uri};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use prost::Message;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::protocols::body::{BodyError, Limits, LineWriter};
use crate::protocols::{self, Accepted, Answer, JSON, Part, Protocol, Refusal, answer, judge_media_type};

/// OTLP/HTTP, by the encoding of its answers.
pub enum Otlp {
    /// For any other request.
    Json,
    /// For a request whose `Content-Type` says protobuf.
    Protobuf,
}

const PROTOBUF: &str = "application/x-protobuf";

impl Protocol for Otlp {
    fn name(&self) -> &'static str {
        "otlp"
    }

    fn judge_media_type(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        judge_media_type(headers, true)
    }

    fn parse(
        &self,
        _uri: &Uri,
        headers: &HeaderMap,
        body: Bytes,
        _received: DateTime<Utc>,
        limits: &Limits,
    ) -> Result<Vec<Part>, BodyError> {
        let mut writer = LineWriter::with_capacity(limits, 2 * body.len());
        if protocols::is_json(headers, &body) {
            json::logs(&body, &mut writer)?;
        } else {
            proto::logs(&body, &mut writer)?;
        }
        Ok(writer.finish())
    }

    /// An `ExportLogsServiceResponse` without `partial_success`, in the request's encoding.
    fn accepted(&self, _accepted: &Accepted) -> Answer {
        match self {
            Otlp::Json => answer(StatusCode::OK, JSON, "{}"),
            Otlp::Protobuf => answer(StatusCode::OK, PROTOBUF, Bytes::new()),
        }
    }

    /// A `google.rpc.Status`, in the request's encoding.
    fn refused(&self, refusal: &Refusal) -> Answer {
        let status = proto::Status { code: code(refusal), message: refusal.to_string() };
        match self {
            Otlp::Json => {
                let status = serde_json::json!({"code": status.code, "message": status.message});
                refusal.answer(JSON, status.to_string())
            }
            Otlp::Protobuf => refusal.answer(PROTOBUF, status.encode_to_vec()),
        }
    }
}

/// A request with one log record: what is stored.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a, Record> {
    resource_logs: [ResourceLogs<'a, Record>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourceLogs<'a, Record> {
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<&'a RawValue>,
    scope_logs: [ScopeLogs<'a, Record>; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    schema_url: Option<&'a RawValue>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ScopeLogs<'a, Record> {
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'a RawValue>,
    log_records: [Record; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    schema_url: Option<&'a RawValue>,
}

/// The `google.rpc.Code` of a refusal. Clients go by the HTTP status.
fn code(refusal: &Refusal) -> i32 {
    match refusal {
        Refusal::Body(BodyError::Invalid { .. }) | Refusal::BrokenBody { .. } => 3,
        Refusal::UnsupportedEncoding | Refusal::UnsupportedMediaType { .. } => 3,
        Refusal::BodyTimeout => 4,
        Refusal::UnknownPath => 5,
        Refusal::Body(_) | Refusal::TooLarge { .. } => 8,
        Refusal::WrongMethod { .. } => 12,
        Refusal::Unavailable { .. } => 14,
        Refusal::Unauthorized(_) => 16,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::protocols::tests::*;

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

    #[test]
    fn otlp_json_may_name_its_members_as_protobuf_does() {
        let body = r#"{"resource_logs":[{"schema_url":"r","scope_logs":[{"log_records":[{"severity_text":"INFO"}]}],
            "resource":{"attributes":[{"key":"service.name","value":{"string_value":"env0-audits"}}]}}]}"#;
        let stored = r#"{"resourceLogs":[{"resource":{"attributes":[{"key":"service.name","value":{"string_value":"env0-audits"}}]},"scopeLogs":[{"logRecords":[{"severity_text":"INFO"}]}],"schemaUrl":"r"}]}"#;
        assert_eq!(post("/v1/logs", &[], body).stored(), [(AUDITS, stored.to_owned())]);
    }

    #[test]
    fn otlp_json_without_resource_logs_is_refused_unless_it_is_empty() {
        let json = [("content-type", "application/json")];
        for body in ["{}", "[{ }]", r#"{"resourceLogs":null}"#, r#"{"resourceLogs":[],"x":1}"#] {
            assert_eq!(post("/v1/logs", &json, body).lines(), [""; 0], "{body}");
        }
        for body in [r#"{"message":"x"}"#, r#"{} {"resourcelogs":[]}"#] {
            let answer = post("/v1/logs", &json, body).refused_body();
            assert_eq!((answer.status, &answer.json()["code"]), (400, &3.into()), "{body}");
            assert!(answer.json()["message"].as_str().unwrap().contains("`resourceLogs` is missing"));
        }
    }

    /// A resource with a service name.
    fn otlp_resource(service: &str) -> Vec<u8> {
        field(1, &otlp_attributes(service))
    }

    /// The attributes of a resource with a service name.
    fn otlp_attributes(service: &str) -> Vec<u8> {
        let name = field(2, &field(1, service.as_bytes()));
        field(1, &[field(1, b"service.name"), name].concat())
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
        let scope =
            [field(1, &field(1, b"scope")), field(2, &record.concat()), field(2, b""), field(3, b"url")].concat();
        let entity = [field(1, b"u"), field(2, b"service"), field(3, b"service.name"), field(4, b"d")].concat();
        let resource = field(1, &[otlp_attributes("env0-deployments"), field(3, &entity)].concat());
        let body = field(1, &[field(2, &scope), resource].concat());
        let sent = post("/v1/logs", &[PROTOBUF_TYPE], body);
        let stored = sent.stored();
        assert_eq!(stored.len(), 2);
        assert_eq!(stored[0].0, DEPLOYMENTS);
        let expected = r#"{"resourceLogs":[{
            "resource":{"attributes":[{"key":"service.name","value":{"stringValue":"env0-deployments"}}],
                "entityRefs":[{"schemaUrl":"u","type":"service","idKeys":["service.name"],"descriptionKeys":["d"]}]},
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
            let answer = post("/v1/logs", &[PROTOBUF_TYPE], body).refused_body();
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
        let sent = post("/v1/logs", &[PROTOBUF_TYPE], body.clone());
        assert_eq!(sent.parse_with(&LIMITS), Err(BodyError::LinesTooLarge { limit_bytes: LIMITS.max_lines_bytes }));
        let limits = Limits { max_event_bytes: 100_000, ..LIMITS };
        assert_eq!(sent.parse_with(&limits), Err(BodyError::EventTooLarge { event: 0, limit_bytes: 100_000 }));
    }
}
