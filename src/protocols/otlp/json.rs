//! OTLP logs in JSON. They are split into records as text, so that no value changes.

use std::io::Write;

use serde_json::value::RawValue;

use crate::batch::LogType;
use crate::protocols;
use crate::protocols::body::{self, BodyError, Elements, Events, LineWriter, Members, only_members};
use crate::protocols::otlp::line::{Heads, store};

// Each member has several names: by protobuf's JSON mapping parsers also take the original field name, and older
// versions called scopes instrumentation libraries.
const RESOURCE_LOGS: &[&str] = &["resourceLogs", "resource_logs"];
const SCOPE_LOGS: &[&str] = &["scopeLogs", "scope_logs"];
const LIBRARY_LOGS: &[&str] = &["instrumentationLibraryLogs", "instrumentation_library_logs"];
const LIBRARY: &[&str] = &["instrumentationLibrary", "instrumentation_library"];
const LOG_RECORDS: &[&str] = &["logRecords", "log_records"];
const LIBRARY_RECORDS: &[&str] = &["logRecords", "log_records", "logs"];
const SCHEMA_URL: &[&str] = &["schemaUrl", "schema_url"];
const ATTRIBUTES: &[&str] = &["attributes"];
const DROPPED: &[&str] = &["droppedAttributesCount", "dropped_attributes_count"];
/// The members of a resource, and of a scope.
const OF_RESOURCE: [&[&str]; 3] = [ATTRIBUTES, DROPPED, &["entityRefs", "entity_refs"]];
const OF_SCOPE: [&[&str]; 4] = [&["name"], &["version"], ATTRIBUTES, DROPPED];

/// What the outermost object is, and where one that isn't should have gone.
const HOLDER: &str = "the request, which is OTLP on this path (plain events go to /v1/logs/env0-deployments)";

/// Stores every record of an `ExportLogsServiceRequest`. Refuses a member that is not known in the objects that are
/// split: records in it would be answered 200 and lost.
pub(super) fn logs(body: &[u8], writer: &mut LineWriter) -> Result<(), BodyError> {
    for request in Events::new(body) {
        let [resource_logs] = only_members(body, request?.json, [RESOURCE_LOGS], writer.records(), HOLDER)?;
        each_object(body, resource_logs, RESOURCE_LOGS, writer, |resource_logs, writer| {
            logs_of_resource(body, resource_logs, writer)
        })?;
    }
    Ok(())
}

fn logs_of_resource(body: &[u8], resource_logs: &RawValue, writer: &mut LineWriter) -> Result<(), BodyError> {
    let names = [&["resource"], SCHEMA_URL, SCOPE_LOGS, LIBRARY_LOGS];
    let [resource, resource_url, scope_logs, library_logs] =
        only_members(body, resource_logs, names, writer.records(), "`resourceLogs`")?;
    let said = resource.and_then(said);
    let heads =
        Heads { resource: text(resource, writer)?, resource_url: text(resource_url, writer)?, ..Heads::default() };
    let before = writer.records();
    for (names, scope_logs, scope, records) in
        [(SCOPE_LOGS, scope_logs, &["scope"][..], LOG_RECORDS), (LIBRARY_LOGS, library_logs, LIBRARY, LIBRARY_RECORDS)]
    {
        each_object(body, scope_logs, names, writer, |scope_logs, writer| {
            let holder = format!("`{}`", names[0]);
            let [scope, scope_url, records] =
                only_members(body, scope_logs, [scope, SCHEMA_URL, records], writer.records(), &holder)?;
            let heads = Heads { scope: text(scope, writer)?, scope_url: text(scope_url, writer)?, ..heads };
            let before = writer.records();
            each_object(body, records, LOG_RECORDS, writer, |record, writer| {
                store(said, &heads, writer, |out| out.write_all(record.get().as_bytes()))
            })?;
            match writer.records() == before {
                true => holds_only(body, scope, OF_SCOPE, writer, "a `scope` without records"),
                false => Ok(()),
            }
        })?;
    }
    match writer.records() == before {
        true => holds_only(body, resource, OF_RESOURCE, writer, "a `resource` without records"),
        false => Ok(()),
    }
}

/// Refuses another member than `names` in `part`. Each record stores what stands beside it; without a record it would
/// be lost.
fn holds_only<const N: usize>(
    body: &[u8],
    part: Option<&RawValue>,
    names: [&[&str]; N],
    writer: &LineWriter,
    holder: &str,
) -> Result<(), BodyError> {
    let Some(part) = part else { return Ok(()) };
    if !part.get().starts_with('{') {
        let reason = format!("{holder} must be an object");
        return Err(BodyError::invalid(body, part.get().as_bytes(), writer.records(), reason));
    }
    only_members(body, part, names, writer.records(), holder).map(drop)
}

/// A part that every record repeats; it must be within the limit of an event.
fn text<'a>(part: Option<&'a RawValue>, writer: &LineWriter) -> Result<Option<&'a [u8]>, BodyError> {
    let text = part.map(|part| part.get().as_bytes());
    text.map(|text| writer.check_len(text)).transpose()?;
    Ok(text)
}

/// Calls `each` with every object of `array`, which is called `names`.
fn each_object<'a>(
    body: &[u8],
    array: Option<&'a RawValue>,
    names: &[&str],
    writer: &mut LineWriter,
    mut each: impl FnMut(&'a RawValue, &mut LineWriter) -> Result<(), BodyError>,
) -> Result<(), BodyError> {
    let Some(array) = array else { return Ok(()) };
    let invalid = |part: &RawValue, writer: &LineWriter, what: &str| {
        Err(BodyError::invalid(body, part.get().as_bytes(), writer.records(), format!("`{}` must be {what}", names[0])))
    };
    if !array.get().starts_with('[') {
        return invalid(array, writer, "an array");
    }
    for object in Elements::of(array) {
        if !object.get().starts_with('{') {
            return invalid(object, writer, "an array of objects");
        }
        each(object, writer)?;
    }
    Ok(())
}

/// The log type that the resource's `service.name` names, wherever it is among the attributes. Some senders write
/// attributes as an object, or a value as plain text; it is found there, too.
fn said(resource: &RawValue) -> Option<LogType> {
    let attributes = body::members(resource, ["attributes"])[0]?;
    let elements = Elements::of(attributes).map(|attribute| body::members(attribute, ["key", "value"]));
    let mut pairs = elements.filter_map(|[key, value]| Some((key?.get(), value?))).chain(Members::of(attributes));
    pairs.find_map(|(key, value)| {
        if body::text_of(key)? != "service.name" {
            return None;
        }
        let [text, text_too] = body::members(value, ["stringValue", "string_value"]);
        protocols::said_by([Some(value), text, text_too])
    })
}
