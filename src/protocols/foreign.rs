//! Recognises a body that is another protocol's request. A protocol that takes any JSON object as an event would store
//! the whole body as one event, and under the wrong log type.

use bytes::Bytes;
use memchr::memmem;
use serde_json::value::RawValue;

use crate::protocols::body::{self, BodyError, Elements, Events, Limits};

const NATIVE: &str = "native";
const OTLP: &str = "otlp";
const LOKI: &str = "loki";
const NEW_RELIC: &str = "newrelic";

/// A protocol, and a member that its requests begin with.
const DECLARATIONS: [(&str, &str); 8] = [
    (OTLP, "resourceLogs"),
    (OTLP, "resource_logs"),
    (OTLP, "resourceSpans"),
    (OTLP, "resource_spans"),
    (OTLP, "resourceMetrics"),
    (OTLP, "resource_metrics"),
    (LOKI, "streams"),
    (NEW_RELIC, "common"),
];

/// Refuses `body`, which was sent to the protocol `own`, where one of its events is a request of another protocol. The
/// refusal names that protocol's path.
pub(super) fn refuse(own: &str, body: &Bytes, limits: &Limits) -> Result<(), BodyError> {
    let may_declare =
        |(protocol, member): (&str, &str)| protocol != own && memmem::find(body, member.as_bytes()).is_some();
    if own == NATIVE || !Events::sniff(body) || !DECLARATIONS.into_iter().any(may_declare) {
        return Ok(());
    }
    // A body that is no JSON or too large is left to the protocol's own parser.
    let Ok((body, _)) = body::repaired(body.clone(), limits.max_body_bytes) else { return Ok(()) };
    for (number, event) in (0..).zip(Events::new(&body).map_while(Result::ok)) {
        if let Some((_, reason)) = declared(event.json).filter(|&(protocol, _)| protocol != own) {
            return Err(BodyError::invalid(&body, event.bytes(), number, reason));
        }
    }
    Ok(())
}

/// The protocol whose request `event` is, and where such a request goes.
fn declared(event: &RawValue) -> Option<(&'static str, &'static str)> {
    let names = DECLARATIONS.map(|(_, member)| member);
    let [logs, logs_too, spans, spans_too, metrics, metrics_too, streams, common] =
        body::members(event, names).map(|value| value.filter(|value| value.get().starts_with(['[', '{'])));
    let is_stream = |stream: &RawValue| {
        let [labels, values, older_labels, older_values] =
            body::members(stream, ["stream", "values", "labels", "entries"]);
        labels.and(values).or(older_labels.and(older_values)).is_some()
    };
    let has_logs = || body::members(event, ["logs"])[0].is_some_and(|logs| logs.get().starts_with('['));
    if logs.or(logs_too).is_some() {
        Some((OTLP, "`resourceLogs`: OTLP goes to POST /v1/logs"))
    } else if spans.or(spans_too).or(metrics).or(metrics_too).is_some() {
        Some((OTLP, "OTLP's spans and metrics are not taken; its logs go to POST /v1/logs"))
    } else if streams.and_then(|streams| Elements::of(streams).next()).is_some_and(is_stream) {
        Some((LOKI, "`streams`: a push to Loki goes to POST /loki/api/v1/push"))
    } else if common.is_some() && has_logs() {
        Some((NEW_RELIC, "`common` and `logs`: New Relic's logs go to POST /log/v1"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use crate::protocols::tests::*;

    /// Where any JSON object is an event.
    const TAKE_ANY_OBJECT: [&str; 4] = ["/", "/log/v1", "/receiver/v1/http/s", "/services/collector/raw"];

    #[test]
    fn a_body_of_another_protocol_is_told_where_to_go_by_every_path() {
        let otlp = include_str!("../../tests/fixtures/bodies/otlp-at-the-root.json").as_bytes();
        let not_utf8 =
            b"{\"resourceLogs\":[{\"scopeLogs\":[{\"logRecords\":[{\"body\":{\"stringValue\":\"\xf1\"}}]}]}]}";
        for (body, own, place) in [
            (otlp, "", "POST /v1/logs"),
            (not_utf8, "", "POST /v1/logs"),
            (br#"{"a":1}{"resource_logs":[]}"#, "", "POST /v1/logs"),
            (br#"{"resourceSpans":[]}"#, "", "spans"),
            (br#"{"resource_metrics":[]}"#, "", "metrics"),
            (br#"{"streams":[{"stream":{},"values":[]}]}"#, "/loki/api/v1/push", "POST /loki/api/v1/push"),
            (br#"{"streams":[{"labels":"{}","entries":[]}]}"#, "/loki/api/v1/push", "POST /loki/api/v1/push"),
            (br#"[{"common":{},"logs":[{}]}]"#, "/log/v1", "POST /log/v1"),
        ] {
            let others = ["/services/collector", "/loki/api/v1/push"];
            for uri in TAKE_ANY_OBJECT.into_iter().chain(others).filter(|&uri| uri != own) {
                let answer = post(uri, &[], body).refused_body();
                assert_eq!(answer.status, 400, "{uri} {place}");
                assert!(answer.text().contains(place), "{uri} {place}: {}", answer.text());
            }
        }
    }

    #[test]
    fn a_body_of_protobuf_is_not_read_as_json_whatever_bytes_it_has() {
        for (uri, body) in [
            ("/v1/logs", r#"{"streams":[{"stream":{},"values":[]}]}"#),
            ("/loki/api/v1/push", r#"{"resourceLogs":[]}"#),
        ] {
            let error = post(uri, &[PROTOBUF_TYPE], body).parse_with(&LIMITS).unwrap_err().to_string();
            assert!(!error.contains("POST"), "{uri}: {error}");
        }
    }

    #[test]
    fn an_event_with_a_member_of_another_protocol_s_name_is_stored() {
        for event in [r#"{"resourceLogs":5}"#, r#"{"streams":["a"]}"#, r#"{"logs":"a"}"#, r#"{"common":{},"logs":1}"#] {
            for uri in TAKE_ANY_OBJECT {
                assert!(post(uri, &[], event).lines()[0].contains(event), "{uri} {event}");
            }
        }
    }

    #[test]
    fn a_stored_line_of_otlp_may_be_sent_again_to_a_native_path() {
        let line = r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{}]}]}]}"#;
        assert_eq!(post("/v1/logs/env0-audits", &[], line).lines(), [line]);
    }
}
