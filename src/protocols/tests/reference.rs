//! What the reference decoder of each protocol finds in a body, and whether the stored lines have it: the published
//! protobuf definitions and protobuf's mapping to JSON for OTLP, Loki's push, HEC's and New Relic's documents. A
//! reference that refuses a body finds nothing.

use std::collections::BTreeMap;

use prost::Message;
use serde_json::{Map, json};

use super::*;

/// What of a stored line is compared with a record.
type InLine = fn(&Value) -> Value;

/// Panics unless each record that the reference finds is in a line, in the order sent.
pub(super) fn assert_holds_all(sent: &Sent, parts: &[Part]) {
    let Ok(decoding) = Decoding::of(&sent.headers, &sent.body) else { return };
    let decoded = decoding.map(|decoding| decoding.decode(&sent.body, &LIMITS));
    let Ok(body) = decoded.unwrap_or(Ok(sent.body.clone())) else { return };
    let lines = parts.iter().flat_map(|part| std::str::from_utf8(&part.lines.bytes).unwrap().lines());
    let lines: Vec<Value> = lines.filter_map(|line| serde_json::from_str(line).ok()).collect();
    let (expected, in_line): (Option<Vec<Value>>, InLine) = match sent.protocol().name() {
        "otlp" if is_json(&sent.headers, &body) => (otlp_json(&body), |line| otlp_record(line, 0, 0, 0)),
        "otlp" => (otlp_protobuf(&body), |line| otlp_record(line, 0, 0, 0)),
        "loki" if is_json(&sent.headers, &body) => (loki_json(&body), loki_entry),
        "loki" => (loki_protobuf(&body), loki_entry),
        "splunk" if sent.uri.path().contains("raw") => (Some(each_line(&body)), |line| line["event"].clone()),
        "splunk" if sent.uri.query().is_none() => (values(objects(&body, false)), Value::clone),
        "newrelic" => (newrelic(&body), Value::clone),
        "logzio" if !sent.uri.query().unwrap_or_default().contains("type=") => (Some(each_line(&body)), as_sent),
        "sumologic" if !sent.headers.contains_key("x-sumo-name") => (Some(each_line(&body)), as_sent),
        _ => return,
    };
    let mut stored = lines.iter().map(in_line);
    for record in expected.into_iter().flatten() {
        assert!(stored.any(|stored| stored == record), "{record} is not stored, or not in its order");
    }
}

/// Objects one after the other, or in an array; `None` where there is anything else.
fn objects(body: &[u8], may_be_array: bool) -> Option<Vec<&RawValue>> {
    let json = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let is_array = json.iter().find(|byte| !b" \t\r\n".contains(byte)) == Some(&b'[');
    let events: Result<Vec<&RawValue>, _> = match is_array && may_be_array {
        true => serde_json::from_slice(json),
        false => serde_json::Deserializer::from_slice(json).into_iter().collect(),
    };
    events.ok().filter(|events| events.iter().all(|event| event.get().starts_with('{')))
}

/// The values of objects, without those that are stored and no value to compare: half a surrogate pair, 1e999.
fn values(objects: Option<Vec<&RawValue>>) -> Option<Vec<Value>> {
    Some(objects?.into_iter().filter_map(|object| serde_json::from_str(object.get()).ok()).collect())
}

/// Verdict and values of a native body against serde_json reading the whole of it.
pub(crate) fn assert_verdict_of_serde_json(body: &[u8]) {
    let scan = |redact| body::scan(Bytes::copy_from_slice(body), received, &Limits { redact, ..LIMITS });
    if !body::Events::sniff(body) {
        let is_utf16 =
            matches!(body, [0xff, 0xfe, _, 0, ..] | [0xfe, 0xff, 0, _, ..] | [_, 0, _, 0, ..] | [0, _, 0, _, ..]);
        let is_text = std::str::from_utf8(body).is_ok();
        return assert!(scan(true).is_ok() || is_utf16 || !is_text, "{body:?}");
    }
    let (judged, lines) = (objects(body, true), scan(false));
    assert_eq!(lines.is_ok(), judged.is_some(), "{:?}", String::from_utf8_lossy(body));
    let (Ok(lines), Some(judged)) = (lines, judged) else { return };
    let stored: Vec<&str> = std::str::from_utf8(&lines.bytes).unwrap().lines().collect();
    assert_eq!(stored.len(), judged.len());
    for (line, event) in stored.into_iter().zip(judged) {
        if event.get().contains(['\n', '\r']) {
            assert_eq!(serde_json::from_str::<Value>(line).ok(), serde_json::from_str(event.get()).ok());
        } else {
            assert_eq!(line, event.get());
        }
    }
}

/// Lines of text with more than white space in them.
fn lines_of_text(body: &[u8]) -> Vec<String> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let lines = body.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let lines = lines.filter(|line| line.iter().any(|byte| !b" \t\r\n".contains(byte)));
    lines.map(|line| String::from_utf8_lossy(line).into_owned()).collect()
}

/// A line of text's message, and an object as it is.
fn as_sent(line: &Value) -> Value {
    let is_text = line["timestamp"] == body::rfc3339(received());
    if is_text { line["message"].clone() } else { line.clone() }
}

/// Objects as they are; where not all of the body is objects, each line has them or is text.
fn each_line(body: &[u8]) -> Vec<Value> {
    let text = String::from_utf8_lossy(body);
    if let Some(values) = values(objects(text.as_bytes(), true).filter(|_| body::Events::sniff(body))) {
        return values;
    }
    let events = |line: String| match objects(line.as_bytes(), true).filter(|_| body::Events::sniff(line.as_bytes())) {
        Some(objects) if !objects.is_empty() => values(Some(objects)).unwrap_or_default(),
        _ => vec![Value::from(line)],
    };
    lines_of_text(body).into_iter().flat_map(events).collect()
}

/// Objects as they are, but each of several logs in one of them by itself.
fn newrelic(body: &[u8]) -> Option<Vec<Value>> {
    let text = String::from_utf8_lossy(body);
    let mut found = Vec::new();
    for object in values(objects(text.as_bytes(), true))? {
        let is_detailed = |logs: &Vec<Value>| {
            let is_common = |(key, value): (&String, &Value)| {
                key == "logs" || key == "common" && (!logs.is_empty() || value.as_object().is_some_and(Map::is_empty))
            };
            object.as_object().unwrap().iter().all(is_common) || !logs.is_empty() && logs.iter().all(Value::is_object)
        };
        match object["logs"].as_array().cloned().filter(is_detailed) {
            Some(logs) => found.extend(logs.into_iter().map(|log| {
                let mut with_one = object.clone();
                with_one["logs"] = json!([log]);
                with_one
            })),
            None => found.push(object),
        }
    }
    Some(found)
}

/// A stored entry, its metadata as sorted pairs.
fn loki_entry(line: &Value) -> Value {
    let pairs = |object: &Value| {
        let pairs = object.as_object().into_iter().flatten().map(|(name, value)| json!([name, value]));
        Value::from(pairs.collect::<Vec<_>>())
    };
    let metadata = match line["structuredMetadataPairs"].as_array() {
        Some(array) => {
            let mut pairs: Vec<_> = array.iter().map(|pair| json!([pair["name"], pair["value"]])).collect();
            pairs.sort_by_key(Value::to_string);
            pairs.into()
        }
        None => pairs(&line["structuredMetadata"]),
    };
    json!({"timestamp": line["timestamp"], "line": line["line"], "metadata": metadata})
}

/// `push.proto`'s `PushRequest`, and what it holds.
#[derive(Clone, PartialEq, Message)]
struct PushRequest {
    #[prost(message, repeated, tag = "1")]
    streams: Vec<Stream>,
}

#[derive(Clone, PartialEq, Message)]
struct Stream {
    #[prost(string, tag = "1")]
    labels: String,
    #[prost(message, repeated, tag = "2")]
    entries: Vec<Entry>,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(message, optional, tag = "1")]
    timestamp: Option<Timestamp>,
    #[prost(string, tag = "2")]
    line: String,
    #[prost(message, repeated, tag = "3")]
    structured_metadata: Vec<Pair>,
}

#[derive(Clone, PartialEq, Message)]
struct Timestamp {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Pair {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

fn loki_protobuf(body: &[u8]) -> Option<Vec<Value>> {
    let push = PushRequest::decode(&*snap::raw::Decoder::new().decompress_vec(body).ok()?).ok()?;
    let entries = push.streams.into_iter().flat_map(|stream| stream.entries);
    let found = entries.map(|entry| {
        let Timestamp { seconds, nanos } = entry.timestamp.unwrap_or_default();
        let timestamp = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        let mut metadata: Vec<_> =
            entry.structured_metadata.iter().map(|pair| json!([pair.name, pair.value])).collect();
        metadata.sort_by_key(Value::to_string);
        let sorted: BTreeMap<_, _> = entry.structured_metadata.iter().map(|pair| (&pair.name, &pair.value)).collect();
        if sorted.len() == metadata.len() {
            metadata = sorted.into_iter().map(|(name, value)| json!([name, value])).collect();
        }
        json!({"timestamp": timestamp.to_string(), "line": entry.line, "metadata": metadata})
    });
    Some(found.collect())
}

fn loki_json(body: &[u8]) -> Option<Vec<Value>> {
    let push: Value = serde_json::from_slice(body).ok()?;
    let mut found = Vec::new();
    for stream in push["streams"].as_array()? {
        for entry in stream["values"].as_array()? {
            let metadata = entry[2].as_object().into_iter().flatten().map(|(name, value)| json!([name, value]));
            let metadata: Vec<_> = metadata.collect();
            found.push(json!({"timestamp": entry[0], "line": entry[1], "metadata": metadata}));
        }
    }
    Some(found)
}

/// A record and what it has in common with others, in today's names and without what says nothing.
fn otlp_record(request: &Value, resource: usize, scope: usize, record: usize) -> Value {
    let member = |object: &Value, names: [&str; 2]| match &object[names[0]] {
        Value::Null => object[names[1]].clone(),
        found => found.clone(),
    };
    let resource_logs = &member(request, ["resourceLogs", "resource_logs"])[resource];
    let scope_logs = &member(resource_logs, ["scopeLogs", "scope_logs"])[scope];
    let found = json!({
        "resource": resource_logs["resource"],
        "resourceUrl": member(resource_logs, ["schemaUrl", "schema_url"]),
        "scope": scope_logs["scope"],
        "scopeUrl": member(scope_logs, ["schemaUrl", "schema_url"]),
        "record": member(scope_logs, ["logRecords", "log_records"])[record],
    });
    without_defaults(found)
}

/// Protobuf tells what is not there from its default in none of these.
fn without_defaults(value: Value) -> Value {
    let is_default = |value: &Value| [json!(0), json!("0"), json!(""), json!([]), Value::Null].contains(value);
    match value {
        Value::Array(values) => values.into_iter().map(without_defaults).collect(),
        Value::Object(members) => {
            let members = members.into_iter().filter(|(name, _)| !["_unknownFields", "name"].contains(&&**name));
            let members = members.map(|(name, value)| (name, without_defaults(value)));
            members.filter(|(_, value)| !is_default(value)).collect()
        }
        other => other,
    }
}

fn otlp_json(body: &[u8]) -> Option<Vec<Value>> {
    let request: Value = serde_json::from_slice(body).ok()?;
    let len =
        |object: &Value, names: [&str; 2]| names.iter().find_map(|name| object[name].as_array()).map_or(0, Vec::len);
    let mut found = Vec::new();
    for resource in 0..len(&request, ["resourceLogs", "resource_logs"]) {
        let member = |object: &Value, names: [&str; 2], index: usize| {
            names.iter().find_map(|name| object[name].get(index)).cloned().unwrap_or_default()
        };
        let resource_logs = member(&request, ["resourceLogs", "resource_logs"], resource);
        for scope in 0..len(&resource_logs, ["scopeLogs", "scope_logs"]) {
            let scope_logs = member(&resource_logs, ["scopeLogs", "scope_logs"], scope);
            let records = 0..len(&scope_logs, ["logRecords", "log_records"]);
            found.extend(records.map(|record| otlp_record(&request, resource, scope, record)));
        }
    }
    Some(found)
}

fn otlp_protobuf(body: &[u8]) -> Option<Vec<Value>> {
    otlp_json(&serde_json::to_vec(&super::published::Request::decode(body).ok()?).unwrap())
}
