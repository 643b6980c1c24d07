//! OTLP logs in protobuf: the messages as published, written in OTLP's JSON encoding (protobuf's own, with ids in hex
//! and enumerations as numbers).

use prost::Message;

use crate::batch::LogType;
use crate::protocols;
use crate::protocols::body::{BodyError, LineWriter};
use crate::protocols::otlp::line::{Heads, store};
use crate::protocols::protobuf::{
    Fault, Field, Kind, NOT_KNOWN, OF_ANOTHER_TYPE, Schema, TWICE, Wire, fields, often, once,
};

/// `google.rpc.Status`, without details.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Status {
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
    #[prost(string, tag = "2")]
    pub(super) message: String,
}

const REQUEST_RESOURCE_LOGS: u32 = 1;
/// The number of `resource` in `ResourceLogs`, and of `scope` in `ScopeLogs`.
const LOGS_HEAD: u32 = 1;
/// The number of `scope_logs` in `ResourceLogs`, and of `log_records` in `ScopeLogs`.
const LOGS_PARTS: u32 = 2;
/// The number of `schema_url` in both.
const LOGS_SCHEMA_URL: u32 = 3;
/// `instrumentation_library_logs` of `ResourceLogs` in versions 0.15 to 0.18. (Before those it was number 2.) It is
/// the same on the wire as `scope_logs`, which replaced it.
const RESOURCE_LOGS_OLDER_PARTS: u32 = 1000;

pub(super) static RESOURCE: Schema = Schema {
    name: "Resource",
    fields: &[
        often(1, "attributes", Kind::Message(&KEY_VALUE)),
        once(2, "droppedAttributesCount", Kind::Uint32),
        often(3, "entityRefs", Kind::Message(&ENTITY_REF)),
    ],
    is_one_of: false,
};

static ENTITY_REF: Schema = Schema {
    name: "EntityRef",
    fields: &[
        once(1, "schemaUrl", Kind::Text),
        once(2, "type", Kind::Text),
        often(3, "idKeys", Kind::Text),
        often(4, "descriptionKeys", Kind::Text),
    ],
    is_one_of: false,
};

pub(super) static SCOPE: Schema = Schema {
    name: "InstrumentationScope",
    fields: &[
        once(1, "name", Kind::Text),
        once(2, "version", Kind::Text),
        often(3, "attributes", Kind::Message(&KEY_VALUE)),
        once(4, "droppedAttributesCount", Kind::Uint32),
    ],
    is_one_of: false,
};

static LOG_RECORD: Schema = Schema {
    name: "LogRecord",
    fields: &[
        once(1, "timeUnixNano", Kind::Fixed64),
        once(11, "observedTimeUnixNano", Kind::Fixed64),
        once(2, "severityNumber", Kind::Int32),
        once(3, "severityText", Kind::Text),
        // Before version 0.13.
        once(4, "name", Kind::Text),
        once(5, "body", Kind::Message(&ANY_VALUE)),
        often(6, "attributes", Kind::Message(&KEY_VALUE)),
        once(7, "droppedAttributesCount", Kind::Uint32),
        once(8, "flags", Kind::Fixed32),
        once(9, "traceId", Kind::Hex),
        once(10, "spanId", Kind::Hex),
        once(12, "eventName", Kind::Text),
    ],
    is_one_of: false,
};

static KEY_VALUE: Schema = Schema {
    name: "KeyValue",
    fields: &[once(1, "key", Kind::Text), once(2, "value", Kind::Message(&ANY_VALUE))],
    is_one_of: false,
};

static ANY_VALUE: Schema = Schema {
    name: "AnyValue",
    fields: &[
        once(1, "stringValue", Kind::Text),
        once(2, "boolValue", Kind::Bool),
        once(3, "intValue", Kind::Int64),
        once(4, "doubleValue", Kind::Double),
        once(5, "arrayValue", Kind::Message(&ARRAY_VALUE)),
        once(6, "kvlistValue", Kind::Message(&KEY_VALUE_LIST)),
        once(7, "bytesValue", Kind::Base64),
    ],
    is_one_of: true,
};

static ARRAY_VALUE: Schema =
    Schema { name: "ArrayValue", fields: &[often(1, "values", Kind::Message(&ANY_VALUE))], is_one_of: false };

static KEY_VALUE_LIST: Schema =
    Schema { name: "KeyValueList", fields: &[often(1, "values", Kind::Message(&KEY_VALUE))], is_one_of: false };

/// Stores every record of an `ExportLogsServiceRequest`.
pub(super) fn logs(body: &[u8], writer: &mut LineWriter) -> Result<(), BodyError> {
    for field in fields(body) {
        let within = |fault: Fault<'_>| fault.within(body, writer.records());
        let field = field.map_err(within)?;
        if field.number != REQUEST_RESOURCE_LOGS {
            return Err(within(Fault::of_field(&field, NOT_KNOWN, "ExportLogsServiceRequest")));
        }
        let resource_logs = message(&field, "ExportLogsServiceRequest").map_err(within)?;
        logs_of_resource(body, resource_logs, writer)?;
    }
    Ok(())
}

fn logs_of_resource(body: &[u8], resource_logs: &[u8], writer: &mut LineWriter) -> Result<(), BodyError> {
    let older = Some(RESOURCE_LOGS_OLDER_PARTS);
    let head = head(resource_logs, older, "ResourceLogs").map_err(|fault| fault.within(body, writer.records()))?;
    let said = head.of.and_then(said);
    let (resource, resource_url) = to_json(body, &head, &RESOURCE, writer)?;
    let heads = Heads { resource: resource.as_deref(), resource_url: resource_url.as_deref(), ..Heads::default() };
    let before = writer.records();
    for scope_logs in parts(resource_logs, older) {
        logs_of_scope(body, scope_logs, said, &heads, writer)?;
    }
    match writer.records() == before {
        true => judge_without_records(body, head.of, &RESOURCE, writer),
        false => Ok(()),
    }
}

fn logs_of_scope(
    body: &[u8],
    scope_logs: &[u8],
    said: Option<LogType>,
    heads: &Heads<'_>,
    writer: &mut LineWriter,
) -> Result<(), BodyError> {
    let head = head(scope_logs, None, "ScopeLogs").map_err(|fault| fault.within(body, writer.records()))?;
    let (scope, scope_url) = to_json(body, &head, &SCOPE, writer)?;
    let heads = Heads { scope: scope.as_deref(), scope_url: scope_url.as_deref(), ..*heads };
    let before = writer.records();
    for record in parts(scope_logs, None) {
        writer.check_len(record)?;
        LOG_RECORD.judge(record).map_err(|fault| fault.within(body, writer.records()))?;
        store(said, &heads, writer, |out| LOG_RECORD.write(record, out))?;
    }
    match writer.records() == before {
        true => judge_without_records(body, head.of, &SCOPE, writer),
        false => Ok(()),
    }
}

fn judge_without_records(
    body: &[u8],
    part: Option<&[u8]>,
    schema: &Schema,
    writer: &LineWriter,
) -> Result<(), BodyError> {
    let judged = part.map_or(Ok(()), |part| schema.judge_whole(part));
    judged.map_err(|fault| fault.without_records().within(body, writer.records()))
}

/// What the records of a `ResourceLogs` or `ScopeLogs` have in common.
#[derive(Default)]
struct Head<'a> {
    /// The resource or scope.
    of: Option<&'a [u8]>,
    schema_url: Option<&'a [u8]>,
}

/// Reads the head of `logs`. Refuses a field that is not known.
fn head<'a>(logs: &'a [u8], older_parts: Option<u32>, holder: &str) -> Result<Head<'a>, Fault<'a>> {
    let mut head = Head::default();
    for field in fields(logs) {
        let field = field?;
        let place = match field.number {
            LOGS_HEAD => &mut head.of,
            LOGS_SCHEMA_URL => &mut head.schema_url,
            number if number == LOGS_PARTS || Some(number) == older_parts => {
                message(&field, holder)?;
                continue;
            }
            _ => return Err(Fault::of_field(&field, NOT_KNOWN, holder)),
        };
        if place.replace(message(&field, holder)?).is_some() {
            return Err(Fault::of_field(&field, TWICE, holder));
        }
    }
    Ok(head)
}

/// The scopes of a `ResourceLogs` or the records of a `ScopeLogs`, whose [`head`] has been read.
fn parts(logs: &[u8], older_parts: Option<u32>) -> impl Iterator<Item = &[u8]> {
    let parts = fields(logs).flatten();
    let parts = parts.filter(move |field| field.number == LOGS_PARTS || Some(field.number) == older_parts);
    parts.filter_map(|field| message(&field, "").ok())
}

fn message<'a>(field: &Field<'a>, holder: &str) -> Result<&'a [u8], Fault<'a>> {
    match field.value {
        Wire::Bytes(message) => Ok(message),
        _ => Err(Fault::of_field(field, OF_ANOTHER_TYPE, holder)),
    }
}

type Json = Option<Vec<u8>>;

/// A head's two members in JSON, each within the limit of an event.
fn to_json(body: &[u8], head: &Head<'_>, schema: &Schema, writer: &mut LineWriter) -> Result<(Json, Json), BodyError> {
    let part = |message: &[u8], writer: &mut LineWriter| {
        writer.check_len(message)?;
        schema.judge(message).map_err(|fault| fault.within(body, writer.records()))?;
        writer.part(|out| schema.write(message, out))
    };
    let of = head.of.map(|message| part(message, writer)).transpose()?;
    let url = head.schema_url.filter(|url| !url.is_empty());
    let url = url.map(|url| writer.part(|out| out.text(url))).transpose()?;
    Ok((of, url))
}

/// The log type that the resource's `service.name` names.
fn said(resource: &[u8]) -> Option<LogType> {
    let text = |message, number| {
        let field = fields(message).flatten().find(|field| field.number == number)?;
        message_of(field.value)
    };
    let attributes = fields(resource).flatten().filter(|field| field.number == 1);
    attributes.filter_map(|attribute| message_of(attribute.value)).find_map(|attribute| {
        if text(attribute, 1)? != b"service.name" {
            return None;
        }
        let name = text(text(attribute, 2)?, 1)?;
        protocols::log_type_of(std::str::from_utf8(name).ok()?)
    })
}

fn message_of(value: Wire<'_>) -> Option<&[u8]> {
    match value {
        Wire::Bytes(message) => Some(message),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::protocols::tests::*;

    #[test]
    fn otlp_protobuf_heads_without_records_are_refused_at_the_field_that_is_not_known() {
        let named = [field(1, b"service.name"), field(2, &field(1, b"env0-audits"))].concat();
        let understood = field(1, &field(1, &field(1, &named)));
        assert_eq!(post("/v1/logs", &[PROTOBUF_TYPE], understood).lines(), [""; 0]);
        let unknown = [0xfa, 0x01, 1, b'x']; // field 31
        let value = field(1, &field(2, &unknown));
        for (body, at, holder) in [
            (field(1, &field(1, &unknown)), 4, "Resource"),
            (field(1, &[field(1, &field(1, &unknown)), field(2, b"")].concat()), 6, "KeyValue"),
            (field(1, &[field(2, &field(2, b"")), field(2, &field(1, &unknown))].concat()), 10, "InstrumentationScope"),
            (field(1, &field(1, &value)), 8, "AnyValue"),
        ] {
            let error = post("/v1/logs", &[PROTOBUF_TYPE], body).parse_with(&LIMITS).unwrap_err().to_string();
            let expected =
                format!("byte {at}: protobuf: field 31 is not a known one of {holder}, and no record is there");
            assert!(error.contains(&expected), "{error}");
        }
    }
}
