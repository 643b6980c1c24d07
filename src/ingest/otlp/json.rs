//! OTLP logs in JSON: taken apart and put together again as text, so that nothing changes.

use serde_json::value::RawValue;

use crate::batch::LogType;
use crate::ingest::body::{self, BodyError, Event, Events, LineWriter};
use crate::ingest::otlp::{Request, ResourceLogs, ScopeLogs};
use crate::ingest::protocol;

/// Stores every record of an `ExportLogsServiceRequest`.
pub(super) fn logs(body: &[u8], writer: &mut LineWriter) -> Result<(), BodyError> {
    for request in Events::new(body) {
        each_object(body, request?.json, "resourceLogs", writer, |resource_logs, writer| {
            resource(body, resource_logs.json, writer)
        })?;
    }
    Ok(())
}

fn resource(body: &[u8], resource_logs: &RawValue, writer: &mut LineWriter) -> Result<(), BodyError> {
    let [resource, resource_url] = body::members(resource_logs.get().as_bytes(), ["resource", "schemaUrl"]);
    let said = resource.and_then(said);
    each_object(body, resource_logs, "scopeLogs", writer, |scope_logs, writer| {
        let [scope, scope_url] = body::members(scope_logs.bytes(), ["scope", "schemaUrl"]);
        each_object(body, scope_logs.json, "logRecords", writer, |record, writer| {
            let scope_logs = [ScopeLogs { scope, log_records: [record.json], schema_url: scope_url }];
            let resource_logs = [ResourceLogs { resource, scope_logs, schema_url: resource_url }];
            writer.serialize(said, &Request { resource_logs })
        })
    })
}

/// Calls `each` with every object of the array `name` of `parent`, which may lack it.
fn each_object<'a>(
    body: &[u8],
    parent: &'a RawValue,
    name: &str,
    writer: &mut LineWriter,
    mut each: impl FnMut(Event<'a>, &mut LineWriter) -> Result<(), BodyError>,
) -> Result<(), BodyError> {
    let [array] = body::members(parent.get().as_bytes(), [name]);
    let Some(array) = array.filter(|array| array.get() != "null") else { return Ok(()) };
    let bytes = array.get().as_bytes();
    if !bytes.starts_with(b"[") {
        return Err(BodyError::invalid(body, bytes, writer.records(), format!("`{name}` must be an array")));
    }
    for object in Events::new(bytes) {
        let object = object.map_err(|error| error.within(body, bytes, writer.records()))?;
        each(object, writer)?;
    }
    Ok(())
}

/// The log type that the resource's `service.name` names.
fn said(resource: &RawValue) -> Option<LogType> {
    let [attributes] = body::members(resource.get().as_bytes(), ["attributes"]);
    Events::new(attributes?.get().as_bytes()).map_while(Result::ok).find_map(|attribute| {
        let [key, value] = body::members(attribute.bytes(), ["key", "value"]);
        if key?.get() != r#""service.name""# {
            return None;
        }
        protocol::said_by(body::members(value?.get().as_bytes(), ["stringValue"]))
    })
}
