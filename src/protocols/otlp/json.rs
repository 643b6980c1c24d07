//! OTLP logs in JSON. They are split into records as text, so that no value changes.

use std::io::Write;

use serde_json::value::RawValue;

use crate::batch::LogType;
use crate::protocols;
use crate::protocols::body::{self, BodyError, Elements, Events, LineWriter, Members, only_members};
use crate::protocols::otlp::line::{Heads, store};
use crate::protocols::otlp::proto::{RESOURCE, SCOPE};
use crate::protocols::protobuf::{Fault, Schema};

// Each member has several names: by protobuf's JSON mapping parsers also take the original field name, and older
// versions called scopes instrumentation libraries.
const RESOURCE_LOGS: &[&str] = &["resourceLogs", "resource_logs"];
const SCOPE_LOGS: &[&str] = &["scopeLogs", "scope_logs"];
const LIBRARY_LOGS: &[&str] = &["instrumentationLibraryLogs", "instrumentation_library_logs"];
const LIBRARY: &[&str] = &["instrumentationLibrary", "instrumentation_library"];
const LOG_RECORDS: &[&str] = &["logRecords", "log_records"];
const LIBRARY_RECORDS: &[&str] = &["logRecords", "log_records", "logs"];
const SCHEMA_URL: &[&str] = &["schemaUrl", "schema_url"];

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
                true => judge_without_records(body, (scope, &SCOPE), scope_url, writer),
                false => Ok(()),
            }
        })?;
    }
    match writer.records() == before {
        true => judge_without_records(body, (resource, &RESOURCE), resource_url, writer),
        false => Ok(()),
    }
}

/// Refuses what is not understood of a resource or scope and of the `schemaUrl` beside it, at any depth.
fn judge_without_records(
    body: &[u8],
    (part, schema): (Option<&RawValue>, &Schema),
    url: Option<&RawValue>,
    writer: &LineWriter,
) -> Result<(), BodyError> {
    let of_url = match url.filter(|url| !url.get().starts_with('"')) {
        Some(url) => Err(Fault::new(url.get().as_bytes(), "`schemaUrl` must be a text")),
        None => Ok(()),
    };
    let judged = part.map_or(Ok(()), |part| schema.judge_json(part)).and(of_url);
    judged.map_err(|fault| fault.without_records().within(body, writer.records()))
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

#[cfg(test)]
mod tests {
    use crate::protocols::tests::*;

    #[test]
    fn otlp_heads_not_understood_are_refused_without_records_and_kept_beside_them() {
        // In a resource, and what is said of it.
        let lost = r#"[{"body":{"stringValue":"LOST"}}]"#;
        let of_resource = [
            (format!(r#"{{"scopeLogs":{lost}}}"#), "`scopeLogs` is not a known member of Resource"),
            (lost.to_owned(), "Resource must be an object"),
            ("5".to_owned(), "Resource must be an object"),
            (format!(r#"{{"attributes":{{"logRecords":{lost}}}}}"#), "`attributes` must be an array"),
            (r#"{"attributes":["LOST"]}"#.to_owned(), "KeyValue must be an object"),
            (
                format!(r#"{{"attributes":[{{"key":"a","logRecords":{lost}}}]}}"#),
                "`logRecords` is not a known member of KeyValue",
            ),
            (
                format!(r#"{{"attributes":[{{"value":{{"logRecords":{lost}}}}}]}}"#),
                "`logRecords` is not a known member of AnyValue",
            ),
            (r#"{"attributes":[{"value":"LOST"}]}"#.to_owned(), "AnyValue must be an object"),
            (r#"{"attributes":[{"key":{"a":"LOST"}}]}"#.to_owned(), "`key` must be a text"),
            (r#"{"attributes":[{"value":{"stringValue":["LOST"]}}]}"#.to_owned(), "`stringValue` must be a text"),
            (r#"{"attributes":[{"value":{"boolValue":"LOST"}}]}"#.to_owned(), "`boolValue` must be true or false"),
            (r#"{"attributes":[{"value":{"intValue":"LOST"}}]}"#.to_owned(), "`intValue` must be a whole number"),
            (r#"{"attributes":[{"value":{"int_value":1.5}}]}"#.to_owned(), "`intValue` must be a whole number"),
            (r#"{"attributes":[{"value":{"doubleValue":{}}}]}"#.to_owned(), "`doubleValue` must be a number"),
            (
                r#"{"attributes":[{"value":{"stringValue":"a","intValue":1}}]}"#.to_owned(),
                "`intValue` is there twice in AnyValue",
            ),
            (
                format!(
                    r#"{{"attributes":[{{"value":{{"kvlistValue":{{"values":[{{"value":{{"arrayValue":{{"values":[{{}},{{"x":{lost}}}]}}}}}}]}}}}}}]}}"#
                ),
                "`x` is not a known member of AnyValue",
            ),
            (r#"{"attributes":[],"attributes":[]}"#.to_owned(), "`attributes` is there twice in Resource"),
            (
                format!(r#"{{"entityRefs":[{{"logRecords":{lost}}}]}}"#),
                "`logRecords` is not a known member of EntityRef",
            ),
            (r#"{"entityRefs":[{"idKeys":[["LOST"]]}]}"#.to_owned(), "`idKeys` must be a text"),
            (
                format!(r#"{{"droppedAttributesCount":{{"logRecords":{lost}}}}}"#),
                "`droppedAttributesCount` must be a whole number",
            ),
            (r#"{"droppedAttributesCount":-1}"#.to_owned(), "`droppedAttributesCount` must be a whole number"),
            (r#"{"LOST LOST":1}"#.to_owned(), "a member is not a known member of Resource"),
        ];
        let of_scope = [
            (format!(r#"{{"logRecords":{lost}}}"#), "`logRecords` is not a known member of InstrumentationScope"),
            (r#"{"name":{"a":"LOST"}}"#.to_owned(), "`name` must be a text"),
            (r#"{"version":["LOST"]}"#.to_owned(), "`version` must be a text"),
            (format!(r#"{{"attributes":[{{"x":{lost}}}]}}"#), "`x` is not a known member of KeyValue"),
        ];
        let of_url = [
            (format!(r#"{{"a":{lost}}}"#), "`schemaUrl` must be a text"),
            (lost.to_owned(), "`schemaUrl` must be a text"),
        ];
        let with_record = r#"{"scopeLogs":[{"logRecords":[{}]}]}"#;
        let json = [("content-type", "application/json")];
        let records = r#","logRecords":[{}]"#;
        let scope =
            |member: &str, part: &str, records: &str| format!(r#"{{"scopeLogs":[{{"{member}":{part}{records}}}]}}"#);
        let resource = |member: &str, part: &str, records: &str| match records {
            "" => format!(r#"{{"{member}":{part},"scopeLogs":[{{"scope":{{"name":"s"}}}},{{}}]}}"#),
            _ => format!(r#"{{"{member}":{part},"scopeLogs":[{{"logRecords":[{{}}]}}]}}"#),
        };
        type Of<'a> = &'a dyn Fn(&str, &str, &str) -> String;
        let all = of_resource.iter().map(|case| ("resource", case, &resource as Of<'_>));
        let all = all.chain(of_scope.iter().map(|case| ("scope", case, &scope as Of<'_>)));
        let all = all.chain(of_url.iter().map(|case| ("schemaUrl", case, &resource as Of<'_>)));
        for (member, (part, message), of) in all.chain(of_url.iter().map(|case| ("schemaUrl", case, &scope as Of<'_>)))
        {
            let body = format!(r#"{{"resourceLogs":[{with_record},{}]}}"#, of(member, part, ""));
            let answer = post("/v1/logs", &json, body.clone()).refused_body();
            let said = answer.json()["message"].as_str().unwrap().to_owned();
            assert_eq!(answer.status, 400, "{body}");
            assert!(said.starts_with("event 1, byte ") && said.contains(message), "{body}: {said}");
            assert!(said.contains("no record is there to be stored with it") && !said.contains("LOST"), "{said}");
            // The place is that of the member or value, not of the head.
            let at: usize = said["event 1, byte ".len()..].split(':').next().unwrap().parse().unwrap();
            let start = body.rfind(&format!(r#""{member}":"#)).unwrap() + member.len() + 3;
            assert!((start..start + part.len()).contains(&at), "{at} {body}");
            // Beside a record all of it is in the line.
            let body = format!(r#"{{"resourceLogs":[{}]}}"#, of(member, part, records));
            assert!(post("/v1/logs", &json, body.clone()).lines()[0].contains(part), "{body}");
        }
    }

    #[test]
    fn otlp_heads_that_are_understood_and_have_no_records_store_nothing() {
        for head in [
            r#"{"resource":{}}"#,
            r#"{"resource":null,"schemaUrl":null,"scopeLogs":null}"#,
            r#"{"resource":{"attributes":null,"droppedAttributesCount":null},"schemaUrl":"u","scopeLogs":[]}"#,
            r#"{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"env0-audits"}},{"key":"none"}]}}"#,
            r#"{"resource":{"attributes":[{"key":"a","value":{"intValue":"-5"}},{"key":"b","value":{"int_value":7}}]}}"#,
            r#"{"resource":{"attributes":[{"value":{"doubleValue":"NaN"}},{"value":{"doubleValue":1e3}},{"value":{}}]}}"#,
            r#"{"resource":{"attributes":[{"value":{"boolValue":true}},{"value":{"bytesValue":"AP8="}},{"value":null}]}}"#,
            r#"{"resource":{"attributes":[{"value":{"arrayValue":{"values":[{"stringValue":"}]"},{}]}}}]}}"#,
            r#"{"resource":{"attributes":[{"value":{"kvlist_value":{"values":[{"key":"\ud800","value":{}}]}}}]}}"#,
            r#"{"resource":{"dropped_attributes_count":3,"entity_refs":[{"type":"s","id_keys":["a","b"],"schema_url":""}]}}"#,
            r#"{"scopeLogs":[{"scope":{"name":"n","version":"v","attributes":[],"droppedAttributesCount":"4"},"schemaUrl":""}]}"#,
            r#"{ "resource" : { "attributes" : [ { "key" : "a" , "value" : { "stringValue" : "b" } } ] } , "scopeLogs" : [ { } ] }"#,
        ] {
            let sent =
                post("/v1/logs", &[("content-type", "application/json")], format!(r#"{{"resourceLogs":[{head}]}}"#));
            assert_eq!(sent.lines(), [""; 0], "{head}");
        }
    }
}
