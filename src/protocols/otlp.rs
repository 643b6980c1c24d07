//! OpenTelemetry's OTLP/HTTP for logs: `POST /v1/logs`, protobuf or JSON.
//!
//! Specification: <https://opentelemetry.io/docs/specs/otlp/> and the published definitions
//! (`opentelemetry-proto`, package `opentelemetry.proto.logs.v1`). Each log record is stored as a
//! request of its own in OTLP's JSON encoding, `{"resourceLogs":[{"resource":…,"scopeLogs":[{"scope":…,
//! "logRecords":[{…}]}]}]}`: the line format of OpenTelemetry's file exporter, which any collector
//! reads back. JSON is kept as sent; protobuf is translated as the specification maps it. The
//! resource's `service.name` tells the log type.

mod json;
mod line;
mod proto;

use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use prost::Message;

use crate::protocols::body::{self, BodyError, Limits, LineWriter};
use crate::protocols::head::content_type_is;
use crate::protocols::{self, Accepted, Answer, JSON, Part, Protocol, Refusal, answer, judge_media_type};

/// OTLP/HTTP, by the encoding of its answers.
pub enum Otlp {
    /// JSON, and the answers to a request whose encoding is unknown.
    Json,
    /// Protobuf, by the request's `Content-Type`.
    Protobuf,
}

const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");
const OTHER_EVENTS: &str =
    "this path takes OTLP; any other events go to POST /v1/logs/env0-deployments or /v1/logs/env0-audits";

impl Protocol for Otlp {
    fn name(&self) -> &'static str {
        "otlp"
    }

    /// Nothing of protobuf is unpacked: its texts are repaired one by one.
    fn unpacked_bytes(&self, headers: &HeaderMap, body: &[u8]) -> usize {
        if self.reads_json(headers, body) { body::repaired_len(body).unwrap_or_default() } else { 0 }
    }

    fn reads_json(&self, headers: &HeaderMap, body: &[u8]) -> bool {
        protocols::is_json(headers, body)
    }

    fn judge_media_type(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        judge_media_type(headers, true)
    }

    fn parse(
        &self,
        _uri: &Uri,
        headers: &HeaderMap,
        body: Bytes,
        _received: fn() -> DateTime<Utc>,
        limits: &Limits,
    ) -> Result<Vec<Part>, BodyError> {
        let mut writer = LineWriter::with_capacity(limits, 2 * body.len());
        let parsed = if self.reads_json(headers, &body) {
            writer.repair(body).and_then(|body| json::logs(&body, &mut writer))
        } else {
            proto::logs(&body, &mut writer)
        };
        match parsed {
            Ok(()) => Ok(writer.finish()),
            // What declares nothing is most often another thing than OTLP, sent without its log type.
            Err(BodyError::Invalid { event, offset, reason }) if !content_type_is(headers, "protobuf") => {
                Err(BodyError::Invalid { event, offset, reason: format!("{reason}; {OTHER_EVENTS}") })
            }
            Err(error) => Err(error),
        }
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

/// The `google.rpc.Code` of a refusal. Clients act on the HTTP status.
fn code(refusal: &Refusal) -> i32 {
    match refusal {
        Refusal::Body(BodyError::Invalid { .. } | BodyError::OtherCharset) | Refusal::BrokenBody { .. } => 3,
        Refusal::UnsupportedEncoding | Refusal::UnsupportedMediaType { .. } | Refusal::LengthRequired => 3,
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
        for body in ["{}", "[{ }]", r#"{"resourceLogs":null}"#, r#"{"resourceLogs":[]}"#] {
            assert_eq!(post("/v1/logs", &json, body).lines(), [""; 0], "{body}");
        }
    }

    #[test]
    fn otlp_json_with_a_member_that_is_not_known_is_refused_by_its_name_and_place() {
        let one_of_two = include_str!("../../tests/fixtures/bodies/otlp-one-of-two.json");
        for (body, message) in [
            (one_of_two, "event 0, byte 85: `logs` is not a known member of `scopeLogs`"),
            (r#"{"message":"x"}"#, "event 0, byte 1: `message` is not a known member of the request"),
            (r#"{} {"resourcelogs":[]}"#, "`resourcelogs` is not a known member of the request"),
            (r#"{"resourceLogs":[],"x":1}"#, "byte 19: `x` is not"),
            (r#"{"resourceLogs":[],"resource_logs":[]}"#, "`resource_logs` is there twice in the request"),
            (r#"{"resourceLogs":[{"logRecords":[]}]}"#, "`logRecords` is not a known member of `resourceLogs`"),
            (r#"{"resourceLogs":[{"scopeLogs":[{"scope":{},"scope":{}}]}]}"#, "`scope` is there twice in `scopeLogs`"),
            (r#"{"resourceLogs":[{"scopeLogs":[{"\ud800":1}]}]}"#, "a member is not a known member of `scopeLogs`"),
            (r#"{"resourceLogs":{}}"#, "`resourceLogs` must be an array"),
            (r#"{"resourceLogs":[{"scopeLogs":[5]}]}"#, "`scopeLogs` must be an array of objects"),
        ] {
            let answer = post("/v1/logs", &[("content-type", "application/json")], body).refused_body();
            assert_eq!((answer.status, &answer.json()["code"]), (400, &3.into()), "{body}");
            let said = answer.json()["message"].as_str().unwrap().to_owned();
            assert!(said.contains(message), "{body}: {said}");
        }
    }

    #[test]
    fn what_older_versions_of_otlp_send_is_stored_as_today_s_do() {
        let body = include_str!("../../tests/fixtures/bodies/otlp-older-member.json");
        let stored = r#"{"resourceLogs":[{"resource":{"attributes": []},"scopeLogs":[{"logRecords":[{"body": {"stringValue": "one"}}]}]}]}"#;
        assert_eq!(post("/v1/logs", &[], body).lines(), [stored]);
        let body = r#"{"resourceLogs":[{"instrumentation_library_logs":[{"instrumentationLibrary":{"name":"l"},"logs":[{}]}]}]}"#;
        let stored = r#"{"resourceLogs":[{"scopeLogs":[{"scope":{"name":"l"},"logRecords":[{}]}]}]}"#;
        assert_eq!(post("/v1/logs", &[], body).lines(), [stored]);
        let mut older = vec![0xc2, 0x3e]; // field 1000
        prost::encode_length_delimiter(2, &mut older).unwrap();
        older.extend(field(2, b""));
        let named = field(2, &field(2, &field(4, b"n")));
        let stored = post("/v1/logs", &[PROTOBUF_TYPE], field(1, &[older, named].concat())).lines();
        assert!(stored[0].contains(r#""logRecords":[{}]"#) && stored[1].contains(r#"[{"name":"n"}]"#), "{stored:?}");
    }

    #[test]
    fn otlp_protobuf_keeps_unknown_fields_and_refuses_them_where_records_may_be() {
        let unknown = [0xfa, 0x01, 1, b'x']; // field 31
        let record = field(2, &[&unknown[..], &field(5, &[0x10, 1]), &unknown].concat());
        let scope = field(1, &[&field(1, b"s")[..], &unknown].concat());
        let stored = post("/v1/logs", &[PROTOBUF_TYPE], field(1, &field(2, &[scope, record].concat()))).lines();
        assert!(stored[0].contains(r#""scope":{"name":"s","_unknownFields":"+gEBeA=="}"#), "{stored:?}");
        assert!(stored[0].contains(r#"[{"body":{"boolValue":true},"_unknownFields":"+gEBePoBAXg="}]"#), "{stored:?}");
        for (body, message) in [
            (unknown.to_vec(), "field 31 is not a known one of ExportLogsServiceRequest"),
            (field(1, &unknown), "event 0, byte 2: protobuf: field 31 is not a known one of ResourceLogs"),
            (field(1, &field(2, &unknown)), "field 31 is not a known one of ScopeLogs"),
            (field(1, &[field(1, b""), field(1, b"")].concat()), "field 1 is there twice in ResourceLogs"),
            (
                field(1, &field(2, &field(2, &[field(3, b""), field(3, b"")].concat()))),
                "field 3 is there twice in LogRecord",
            ),
            (
                field(1, &field(2, &field(2, &field(5, &[field(1, b""), vec![0x10, 1]].concat())))),
                "field 2 is there twice in AnyValue",
            ),
            (field(1, &field(2, &field(2, &[0x18, 1]))), "field 3 is of another type in LogRecord"),
            (vec![0x08, 1], "field 1 is of another type"),
        ] {
            let sent = post("/v1/logs", &[PROTOBUF_TYPE], body);
            let error = sent.parse_with(&LIMITS).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn otlp_records_that_are_not_utf8_are_stored_with_replacements() {
        let text = |bytes: &[u8]| field(2, &field(5, &field(1, bytes)));
        let body = field(1, &field(2, &[text(b"first"), text(b"ca\xf1on"), text(b"third")].concat()));
        let json = b"{\"resourceLogs\":[{\"scopeLogs\":[{\"logRecords\":[{},{\"body\":{\"stringValue\":\"ca\xf1on\"}},{}]}]}]}";
        for sent in [post("/v1/logs", &[PROTOBUF_TYPE], body), post("/v1/logs", &[], &json[..])] {
            assert_eq!(sent.lines().len(), 3);
            assert!(sent.lines()[1].contains("{\"stringValue\":\"ca\u{fffd}on\"}"));
            assert_eq!(sent.replaced(), 1);
        }
    }

    #[test]
    fn otlp_s_service_name_tells_the_type_however_the_attributes_beside_it_are_written() {
        let name = r#"{"key":"service\u002ename","value":{"stringValue":"env0\u002daudits"}}"#;
        for attributes in
            [name.to_owned(), format!("{{}},5,{{\"key\":1}},{{\"\\ud800\":1,\"key\":\"\\ud800\"}},{name}")]
        {
            let body = format!(
                r#"{{"resourceLogs":[{{"resource":{{"attributes":[{attributes}]}},"scopeLogs":[{{"logRecords":[{{}}]}}]}}]}}"#
            );
            assert_eq!(post("/v1/logs", &[], body).stored()[0].0, AUDITS, "{attributes}");
        }
    }

    #[test]
    fn otlp_s_service_name_tells_the_type_as_plain_text_too() {
        for attributes in [
            r#"[{"key":"service.name","value":"env0-audits"}]"#,
            r#"{"a":1,"service.name":"env0-audits"}"#,
            r#"{"service.name":{"stringValue":"env0-audits"}}"#,
        ] {
            let resource = format!(r#"{{"attributes":{attributes}}}"#);
            let line =
                format!(r#"{{"resourceLogs":[{{"resource":{resource},"scopeLogs":[{{"logRecords":[{{}}]}}]}}]}}"#);
            assert_eq!(post("/v1/logs", &[], line.clone()).stored(), [(AUDITS, line.clone())]);
            assert_eq!(post("/v1/logs", &[], format!("\u{feff}{line}")).stored(), [(AUDITS, line)]);
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
    fn a_token_in_a_list_of_pairs_is_redacted_in_both_encodings() {
        let pair = |name: &str, value: &[u8]| [field(1, name.as_bytes()), field(2, value)].concat();
        let list = field(6, &field(1, &pair("oidcToken", &field(1, b"secret"))));
        let record = field(6, &pair("customEnv0EnvironmentVariables", &list));
        let protobuf = post("/v1/logs", &[PROTOBUF_TYPE], field(1, &field(2, &field(2, &record))));
        let stored = protobuf.lines();
        assert!(stored[0].contains(r#"{"key":"oidcToken","value":{"stringValue":"[redacted]"}}"#), "{stored:?}");
        assert_eq!(protobuf.parse_with(&LIMITS).unwrap()[0].lines.redacted, 1);
        let json = stored[0].replace("[redacted]", "secret");
        assert_eq!(post("/v1/logs", &[], json).lines(), stored);
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
        let deep = (0..200).fold(vec![], |value, _| field(5, &field(1, &value)));
        let deep = field(1, &field(2, &field(2, &field(5, &deep))));
        for body in [vec![0x0a, 0x05, 1], vec![0x0b], deep, b"{}".to_vec()] {
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
