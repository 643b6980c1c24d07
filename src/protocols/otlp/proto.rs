//! OTLP logs in protobuf: the messages as published, and how they serialize to OTLP's JSON encoding
//! (protobuf's own, with ids in hex and enumerations as numbers).

use prost::Message;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::batch::LogType;
use crate::protocols;
use crate::protocols::body::{BodyError, LineWriter};
use crate::protocols::otlp::{Request, ResourceLogs, ScopeLogs};
use crate::protocols::protobuf::embedded;

/// `google.rpc.Status`, without details.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Status {
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
    #[prost(string, tag = "2")]
    pub(super) message: String,
}

const REQUEST_RESOURCE_LOGS: u32 = 1;
/// `resource` of `ResourceLogs`, `scope` of `ScopeLogs`.
const LOGS_HEAD: u32 = 1;
/// `schema_url` of `ResourceLogs` and of `ScopeLogs`.
const LOGS_SCHEMA_URL: u32 = 3;
const RESOURCE_LOGS_SCOPE_LOGS: u32 = 2;
const SCOPE_LOGS_LOG_RECORDS: u32 = 2;

#[derive(Clone, PartialEq, Message, Serialize)]
#[serde(rename_all = "camelCase")]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attributes: Vec<KeyValue>,
    #[prost(uint32, tag = "2")]
    #[serde(skip_serializing_if = "is_default")]
    dropped_attributes_count: u32,
    #[prost(message, repeated, tag = "3")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    entity_refs: Vec<EntityRef>,
}

#[derive(Clone, PartialEq, Message, Serialize)]
#[serde(rename_all = "camelCase")]
struct EntityRef {
    #[prost(string, tag = "1")]
    #[serde(skip_serializing_if = "String::is_empty")]
    schema_url: String,
    #[prost(string, tag = "2")]
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    kind: String,
    #[prost(string, repeated, tag = "3")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    id_keys: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    description_keys: Vec<String>,
}

#[derive(Clone, PartialEq, Message, Serialize)]
#[serde(rename_all = "camelCase")]
struct InstrumentationScope {
    #[prost(string, tag = "1")]
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[prost(string, tag = "2")]
    #[serde(skip_serializing_if = "String::is_empty")]
    version: String,
    #[prost(message, repeated, tag = "3")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attributes: Vec<KeyValue>,
    #[prost(uint32, tag = "4")]
    #[serde(skip_serializing_if = "is_default")]
    dropped_attributes_count: u32,
}

#[derive(Clone, PartialEq, Message, Serialize)]
#[serde(rename_all = "camelCase")]
struct LogRecord {
    #[prost(fixed64, tag = "1")]
    #[serde(skip_serializing_if = "is_default", serialize_with = "as_text")]
    time_unix_nano: u64,
    #[prost(fixed64, tag = "11")]
    #[serde(skip_serializing_if = "is_default", serialize_with = "as_text")]
    observed_time_unix_nano: u64,
    #[prost(int32, tag = "2")]
    #[serde(skip_serializing_if = "is_default")]
    severity_number: i32,
    #[prost(string, tag = "3")]
    #[serde(skip_serializing_if = "String::is_empty")]
    severity_text: String,
    #[prost(message, optional, tag = "5")]
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<AnyValue>,
    #[prost(message, repeated, tag = "6")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attributes: Vec<KeyValue>,
    #[prost(uint32, tag = "7")]
    #[serde(skip_serializing_if = "is_default")]
    dropped_attributes_count: u32,
    #[prost(fixed32, tag = "8")]
    #[serde(skip_serializing_if = "is_default")]
    flags: u32,
    #[prost(bytes = "vec", tag = "9")]
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_hex")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "10")]
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_hex")]
    span_id: Vec<u8>,
    #[prost(string, tag = "12")]
    #[serde(skip_serializing_if = "String::is_empty")]
    event_name: String,
}

#[derive(Clone, PartialEq, Message, Serialize)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message, Serialize)]
struct AnyValue {
    #[prost(oneof = "Value", tags = "1, 2, 3, 4, 5, 6, 7")]
    #[serde(flatten)]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Oneof, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(clippy::enum_variant_names, reason = "the published names")]
enum Value {
    #[prost(string, tag = "1")]
    StringValue(String),
    #[prost(bool, tag = "2")]
    BoolValue(bool),
    #[prost(int64, tag = "3")]
    IntValue(#[serde(serialize_with = "as_text")] i64),
    #[prost(double, tag = "4")]
    DoubleValue(#[serde(serialize_with = "as_double")] f64),
    #[prost(message, tag = "5")]
    ArrayValue(ArrayValue),
    #[prost(message, tag = "6")]
    KvlistValue(KeyValueList),
    #[prost(bytes = "vec", tag = "7")]
    BytesValue(#[serde(serialize_with = "as_base64")] Vec<u8>),
}

#[derive(Clone, PartialEq, Message, Serialize)]
struct ArrayValue {
    #[prost(message, repeated, tag = "1")]
    values: Vec<AnyValue>,
}

#[derive(Clone, PartialEq, Message, Serialize)]
struct KeyValueList {
    #[prost(message, repeated, tag = "1")]
    values: Vec<KeyValue>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn as_text<S: Serializer>(value: &impl ToString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

fn as_hex<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    serializer.serialize_str(&digits)
}

fn as_base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    use base64::Engine;
    serializer.serialize_str(&base64::engine::general_purpose::STANDARD.encode(bytes))
}

/// JSON has no words for what is not a number; protobuf's mapping does.
fn as_double<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    match *value {
        value if value.is_nan() => serializer.serialize_str("NaN"),
        f64::INFINITY => serializer.serialize_str("Infinity"),
        f64::NEG_INFINITY => serializer.serialize_str("-Infinity"),
        value => serializer.serialize_f64(value),
    }
}

/// Stores every record of an `ExportLogsServiceRequest`.
pub(super) fn logs(body: &[u8], writer: &mut LineWriter) -> Result<(), BodyError> {
    for resource_logs in embedded(body, REQUEST_RESOURCE_LOGS) {
        let resource_logs = resource_logs.map_err(|error| BodyError::invalid(body, body, writer.records(), error))?;
        logs_of_resource(body, resource_logs, writer)?;
    }
    Ok(())
}

fn logs_of_resource(body: &[u8], resource_logs: &[u8], writer: &mut LineWriter) -> Result<(), BodyError> {
    let resource: Option<Resource> = head(body, resource_logs, writer)?;
    let said = resource.as_ref().and_then(said);
    let resource = resource.as_ref().map(to_json);
    let resource_url = schema_url(body, resource_logs, writer)?;
    for scope_logs in embedded(resource_logs, RESOURCE_LOGS_SCOPE_LOGS) {
        let invalid = |error: String| BodyError::invalid(body, resource_logs, writer.records(), error);
        let scope_logs = scope_logs.map_err(invalid)?;
        let scope = head::<InstrumentationScope>(body, scope_logs, writer)?.as_ref().map(to_json);
        let scope_url = schema_url(body, scope_logs, writer)?;
        for record in embedded(scope_logs, SCOPE_LOGS_LOG_RECORDS) {
            let invalid = |error: String| BodyError::invalid(body, scope_logs, writer.records(), error);
            let record: LogRecord = decode(body, record.map_err(invalid)?, writer)?;
            let scope_logs =
                [ScopeLogs { scope: scope.as_deref(), log_records: [record], schema_url: scope_url.as_deref() }];
            let resource_logs =
                [ResourceLogs { resource: resource.as_deref(), scope_logs, schema_url: resource_url.as_deref() }];
            writer.serialize(said, &Request { resource_logs })?;
        }
    }
    Ok(())
}

/// The resource of `ResourceLogs`, the scope of `ScopeLogs`.
fn head<M: Message + Default>(body: &[u8], logs: &[u8], writer: &LineWriter) -> Result<Option<M>, BodyError> {
    let head = embedded(logs, LOGS_HEAD).last().transpose();
    let head = head.map_err(|error| BodyError::invalid(body, logs, writer.records(), error))?;
    head.map(|head| decode(body, head, writer)).transpose()
}

/// The `schema_url` of `ResourceLogs` or `ScopeLogs`, as JSON.
fn schema_url(body: &[u8], logs: &[u8], writer: &LineWriter) -> Result<Option<Box<RawValue>>, BodyError> {
    let invalid = |error: String| BodyError::invalid(body, logs, writer.records(), error);
    let url = embedded(logs, LOGS_SCHEMA_URL).last().transpose().map_err(invalid)?;
    let url = url.map(std::str::from_utf8).transpose().map_err(|error| invalid(error.to_string()))?;
    Ok(url.filter(|url| !url.is_empty()).map(to_json))
}

fn decode<M: Message + Default>(body: &[u8], message: &[u8], writer: &LineWriter) -> Result<M, BodyError> {
    writer.check_len(message)?;
    M::decode(message).map_err(|error| BodyError::invalid(body, message, writer.records(), error))
}

fn to_json(value: &(impl Serialize + ?Sized)) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("no map with keys that are not text, no serializer that fails")
}

/// The log type that the resource's `service.name` names.
fn said(resource: &Resource) -> Option<LogType> {
    let service = resource.attributes.iter().find(|attribute| attribute.key == "service.name")?;
    match service.value.as_ref()?.value.as_ref()? {
        Value::StringValue(name) => protocols::log_type_of(name),
        _ => None,
    }
}
