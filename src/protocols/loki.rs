//! Grafana Loki's push API: `POST /loki/api/v1/push`, snappy-compressed protobuf or JSON.
//!
//! Specification: "Ingest logs" in Loki's "HTTP API" documentation, and `push.proto` in Loki's
//! source (`pkg/push/push.proto`). An entry is stored as
//! `{"timestamp":"<nanoseconds as sent>","labels":{…},"line":…,"structuredMetadata":{…}}`, the last
//! only where sent. A label value of env0's own tells the log type.

use std::collections::BTreeMap;

use axum::http::{HeaderMap, StatusCode, Uri};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use prost::Message;
use serde::Serialize;
use serde_json::value::{RawValue, Value};

use crate::batch::LogType;
use crate::protocols::body::{self, BodyError, Events, Limits, LineWriter};
use crate::protocols::protobuf::embedded;
use crate::protocols::{
    self, Accepted, Answer, Encoding, Part, Protocol, Refusal, TEXT, empty_answer, judge_media_type,
};

/// Loki.
pub struct Loki;

impl Protocol for Loki {
    fn name(&self) -> &'static str {
        "loki"
    }

    fn unpacked_bytes(&self, headers: &HeaderMap, body: &[u8]) -> usize {
        if protocols::is_json(headers, body) { 0 } else { snap::raw::decompress_len(body).unwrap_or_default() }
    }

    /// `snappy` names what the protocol itself does to a protobuf body; Loki takes it as identity, too.
    fn encoding(&self, headers: &HeaderMap) -> Result<Encoding, Refusal> {
        Encoding::of(headers, Some("snappy"))
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
            push_json(&body, &mut writer)?;
        } else {
            push_protobuf(&decompress(&body, limits)?, &mut writer)?;
        }
        Ok(writer.finish())
    }

    /// 204.
    fn accepted(&self, _accepted: &Accepted) -> Answer {
        empty_answer(StatusCode::NO_CONTENT)
    }

    /// A line of text, as Loki does.
    fn refused(&self, refusal: &Refusal) -> Answer {
        refusal.answer(TEXT, format!("{refusal}\n"))
    }
}

/// What an entry is stored as.
#[derive(Serialize)]
struct Stored<'a, Line: Serialize, Metadata: Serialize> {
    timestamp: Line,
    labels: &'a RawValue,
    line: Line,
    #[serde(rename = "structuredMetadata", skip_serializing_if = "Option::is_none")]
    structured_metadata: Option<Metadata>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parsed: Option<Metadata>,
}

/// `{"streams":[{"stream":{…},"values":[["<ns>","<line>",{…}],…]},…]}`
fn push_json(body: &[u8], writer: &mut LineWriter) -> Result<(), BodyError> {
    for push in Events::new(body) {
        let push = push?;
        let [streams] = body::members(push.bytes(), ["streams"]);
        let streams = streams.filter(|streams| streams.get().starts_with('['));
        let streams = streams.ok_or_else(|| invalid(body, push.json, writer, "`streams` must be an array"))?;
        for stream in Events::new(streams.get().as_bytes()) {
            let stream = stream.map_err(|error| error.within(body, streams.get().as_bytes(), writer.records()))?;
            stream_json(body, stream.json, writer)?;
        }
    }
    Ok(())
}

fn stream_json(body: &[u8], stream: &RawValue, writer: &mut LineWriter) -> Result<(), BodyError> {
    let (Some(labels), Some(values)) = ({
        let [labels, values] = body::members(stream.get().as_bytes(), ["stream", "values"]);
        (labels, values)
    }) else {
        return Err(invalid(body, stream, writer, "a stream needs `stream` and `values`"));
    };
    let Ok(members) = serde_json::from_str::<BTreeMap<String, &RawValue>>(labels.get()) else {
        return Err(invalid(body, labels, writer, "`stream` must be an object of labels"));
    };
    let said = protocols::said_by(members.into_values().map(Some));
    let Ok(entries) = serde_json::from_str::<Vec<&RawValue>>(values.get()) else {
        return Err(invalid(body, values, writer, "`values` must be an array"));
    };
    for entry in entries {
        let entry_fields = serde_json::from_str::<Vec<&RawValue>>(entry.get()).unwrap_or_default();
        let (timestamp, line, structured_metadata) = match entry_fields[..] {
            [timestamp, line] if is_text(timestamp) && is_text(line) => (timestamp, line, None),
            [timestamp, line, metadata] if is_text(timestamp) && is_text(line) && metadata.get().starts_with('{') => {
                (timestamp, line, Some(metadata))
            }
            _ => return Err(invalid(body, entry, writer, r#"an entry is ["<ns>","<line>"] or ["<ns>","<line>",{…}]"#)),
        };
        writer.serialize(said, &Stored { timestamp, labels, line, structured_metadata, parsed: None })?;
    }
    Ok(())
}

fn is_text(value: &RawValue) -> bool {
    value.get().starts_with('"')
}

fn invalid(body: &[u8], part: &RawValue, writer: &LineWriter, reason: &str) -> BodyError {
    BodyError::invalid(body, part.get().as_bytes(), writer.records(), reason)
}

/// The snappy block, but for one that declares more than a body may have.
fn decompress(body: &[u8], limits: &Limits) -> Result<Vec<u8>, BodyError> {
    let invalid = |error| BodyError::invalid(body, body, 0, error);
    match snap::raw::decompress_len(body) {
        Ok(len) if len <= limits.max_body_bytes => snap::raw::Decoder::new().decompress_vec(body).map_err(invalid),
        Ok(_) | Err(snap::Error::TooBig { .. }) => Err(BodyError::TooLarge { limit_bytes: limits.max_body_bytes }),
        Err(error) => Err(invalid(error)),
    }
}

/// `StreamAdapter` without its entries.
#[derive(Clone, PartialEq, Message)]
struct StreamAdapter {
    #[prost(string, tag = "1")]
    labels: String,
}

#[derive(Clone, PartialEq, Message)]
struct EntryAdapter {
    #[prost(message, optional, tag = "1")]
    timestamp: Option<Timestamp>,
    #[prost(string, tag = "2")]
    line: String,
    #[prost(message, repeated, tag = "3")]
    structured_metadata: Vec<LabelPairAdapter>,
    #[prost(message, repeated, tag = "4")]
    parsed: Vec<LabelPairAdapter>,
}

/// `google.protobuf.Timestamp`
#[derive(Clone, PartialEq, Message)]
struct Timestamp {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
struct LabelPairAdapter {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

const PUSH_REQUEST_STREAMS: u32 = 1;
const STREAM_ADAPTER_ENTRIES: u32 = 2;

fn push_protobuf(push: &[u8], writer: &mut LineWriter) -> Result<(), BodyError> {
    for stream in embedded(push, PUSH_REQUEST_STREAMS) {
        let stream = stream.map_err(|error| BodyError::invalid(push, push, writer.records(), error))?;
        let invalid = |part, event, error: String| BodyError::invalid(push, part, event, error);
        let StreamAdapter { labels } =
            StreamAdapter::decode(stream).map_err(|error| invalid(stream, writer.records(), error.to_string()))?;
        let (labels, said) = read_labels(labels);
        let labels = serde_json::value::to_raw_value(&labels)
            .map_err(|error| invalid(stream, writer.records(), error.to_string()))?;
        for entry in embedded(stream, STREAM_ADAPTER_ENTRIES) {
            let entry = entry.map_err(|error| invalid(stream, writer.records(), error))?;
            writer.check_len(entry)?;
            let entry =
                EntryAdapter::decode(entry).map_err(|error| invalid(entry, writer.records(), error.to_string()))?;
            let Timestamp { seconds, nanos } = entry.timestamp.unwrap_or_default();
            let timestamp = (i128::from(seconds) * 1_000_000_000 + i128::from(nanos)).to_string();
            let stored = Stored {
                timestamp: &*timestamp,
                labels: &labels,
                line: &*entry.line,
                structured_metadata: as_object(&entry.structured_metadata),
                parsed: as_object(&entry.parsed),
            };
            writer.serialize(said, &stored)?;
        }
    }
    Ok(())
}

fn as_object(pairs: &[LabelPairAdapter]) -> Option<BTreeMap<&str, &str>> {
    let pairs = pairs.iter().map(|pair| (&*pair.name, &*pair.value));
    Some(pairs.collect()).filter(|object: &BTreeMap<_, _>| !object.is_empty())
}

/// Labels in Prometheus' notation, `{app="env0",level="info"}`, as an object, and the log type that
/// one names. What is not in that notation stays as sent: no event is refused for it.
fn read_labels(text: String) -> (Value, Option<LogType>) {
    match parse_labels(&text) {
        Some(labels) => {
            let said = labels.values().find_map(|value| protocols::log_type_of(value));
            (labels.into_iter().map(|(name, value)| (name, Value::String(value))).collect(), said)
        }
        None => (Value::String(text), None),
    }
}

fn parse_labels(text: &str) -> Option<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let mut values = serde_json::Deserializer::from_str(after).into_iter::<String>();
        let value = values.next()?.ok()?;
        labels.insert(name.trim().to_owned(), value);
        let after = after[values.byte_offset()..].trim_start();
        rest = if after.is_empty() { after } else { after.strip_prefix(',')?.trim_start() };
    }
    Some(labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocols::tests::*;

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
            let Err(BodyError::Invalid { event: found, offset, .. }) = sent.parse_with(&LIMITS) else {
                panic!("{body}")
            };
            assert_eq!((found, offset), (event, at), "{body}");
            assert_eq!(sent.refused_body().status, 400);
        }
    }

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
            let sent = post("/loki/api/v1/push", &[PROTOBUF_TYPE], push(labels));
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
            let sent = post("/loki/api/v1/push", &[PROTOBUF_TYPE], body.to_vec());
            assert_eq!(sent.parse_with(&LIMITS), Err(BodyError::TooLarge { limit_bytes: LIMITS.max_body_bytes }));
            assert_eq!(sent.refused_body().status, 413);
        }
        for body in
            [&b"\x05abc"[..], b"{\"streams\":[]}", &snappy(b"\x0a\xff"), &snappy(&field(1, &field(2, &[0x0a, 9])))]
        {
            assert_eq!(post("/loki/api/v1/push", &[PROTOBUF_TYPE], body.to_vec()).refused_body().status, 400);
        }
    }
}
