//! OTLP logs in JSON: taken apart and put together again as text, so that nothing changes.

use serde_json::value::RawValue;

use crate::batch::LogType;
use crate::protocols;
use crate::protocols::body::{self, BodyError, Event, Events, LineWriter};
use crate::protocols::otlp::{Request, ResourceLogs, ScopeLogs};

// Each member by its two names: protobuf's JSON mapping has parsers take the original one, too.
const RESOURCE_LOGS: [&str; 2] = ["resourceLogs", "resource_logs"];
const SCOPE_LOGS: [&str; 2] = ["scopeLogs", "scope_logs"];
const LOG_RECORDS: [&str; 2] = ["logRecords", "log_records"];

/// Stores every record of an `ExportLogsServiceRequest`.
pub(super) fn logs(body: &[u8], writer: &mut LineWriter) -> Result<(), BodyError> {
    for request in Events::new(body) {
        let request = request?;
        let is_empty = request.bytes()[1..].trim_ascii_start() == b"}";
        // Unknown members are to be ignored; a request of nothing else would be answered 200 and lost.
        if !is_empty && body::members(request.bytes(), RESOURCE_LOGS).iter().all(Option::is_none) {
            return Err(BodyError::invalid(body, request.bytes(), writer.records(), "`resourceLogs` is missing"));
        }
        each_object(body, request.json, RESOURCE_LOGS, writer, |resource_logs, writer| {
            resource(body, resource_logs.json, writer)
        })?;
    }
    Ok(())
}

fn resource(body: &[u8], resource_logs: &RawValue, writer: &mut LineWriter) -> Result<(), BodyError> {
    let (resource, resource_url) = head(resource_logs, "resource");
    let said = resource.and_then(said);
    each_object(body, resource_logs, SCOPE_LOGS, writer, |scope_logs, writer| {
        let (scope, scope_url) = head(scope_logs.json, "scope");
        each_object(body, scope_logs.json, LOG_RECORDS, writer, |record, writer| {
            let scope_logs = [ScopeLogs { scope, log_records: [record.json], schema_url: scope_url }];
            let resource_logs = [ResourceLogs { resource, scope_logs, schema_url: resource_url }];
            writer.serialize(said, &Request { resource_logs })
        })
    })
}

/// The resource or scope that `logs` are of, and the schema's URL.
fn head<'a>(logs: &'a RawValue, name: &str) -> (Option<&'a RawValue>, Option<&'a RawValue>) {
    let [head, url, url_by_original_name] = body::members(logs.get().as_bytes(), [name, "schemaUrl", "schema_url"]);
    (head, url.or(url_by_original_name))
}

/// Calls `each` with every object of the array by any of `names` of `parent`, which may lack it.
fn each_object<'a>(
    body: &[u8],
    parent: &'a RawValue,
    names: [&str; 2],
    writer: &mut LineWriter,
    mut each: impl FnMut(Event<'a>, &mut LineWriter) -> Result<(), BodyError>,
) -> Result<(), BodyError> {
    let arrays = body::members(parent.get().as_bytes(), names).into_iter().flatten();
    for array in arrays.filter(|array| array.get() != "null") {
        let bytes = array.get().as_bytes();
        if !bytes.starts_with(b"[") {
            return Err(BodyError::invalid(body, bytes, writer.records(), format!("`{}` must be an array", names[0])));
        }
        for object in Events::new(bytes) {
            let object = object.map_err(|error| error.within(body, bytes, writer.records()))?;
            each(object, writer)?;
        }
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
        protocols::said_by(body::members(value?.get().as_bytes(), ["stringValue", "string_value"]))
    })
}
