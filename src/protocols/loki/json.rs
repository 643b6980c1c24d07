//! Loki's pushes in JSON: `{"streams":[{"stream":{…},"values":[["<ns>","<line>",{…}],…]},…]}`.

use std::io::Write;

use serde_json::value::RawValue;

use super::line::write_tenant;
use crate::protocols;
use crate::protocols::body::{BodyError, Elements, Events, LineWriter, Members, only_members};

/// What the outermost object is, and where one that isn't should have gone.
const HOLDER: &str = "a push, which is Loki's on this path (plain events go to /v1/logs/env0-deployments)";

/// Stores every entry of a push.
pub(super) fn push(body: &[u8], tenant: Option<&str>, writer: &mut LineWriter) -> Result<(), BodyError> {
    for push in Events::new(body) {
        let push = push?.json;
        let [streams] = only_members(body, push, [&["streams"]], writer.records(), HOLDER)?;
        let streams = streams.filter(|streams| streams.get().starts_with('['));
        let streams = streams.ok_or_else(|| invalid(body, push, writer, "`streams` must be an array"))?;
        for stream in Elements::of(streams) {
            push_stream(body, stream, tenant, writer)?;
        }
    }
    Ok(())
}

fn push_stream(body: &[u8], stream: &RawValue, tenant: Option<&str>, writer: &mut LineWriter) -> Result<(), BodyError> {
    let members = only_members(body, stream, [&["stream"], &["values"]], writer.records(), "a stream")?;
    let [Some(labels), Some(values)] = members else {
        return Err(invalid(body, stream, writer, "a stream needs `stream` and `values`"));
    };
    if !labels.get().starts_with('{') {
        return Err(invalid(body, labels, writer, "`stream` must be an object of labels"));
    }
    writer.check_len(labels.get().as_bytes())?;
    let said_by_label = protocols::said_by(Members::of(labels).map(|(_, value)| Some(value)));
    let said = said_by_label.or_else(|| protocols::log_type_of(tenant?));
    if !values.get().starts_with('[') {
        return Err(invalid(body, values, writer, "`values` must be an array"));
    }
    // Each entry stores the labels. Without one, what is no label would be lost.
    if Elements::of(values).next().is_none()
        && let Some((_, odd)) = Members::of(labels).find(|(_, value)| !is_text(value))
    {
        return Err(invalid(body, odd, writer, "a label must be a text in a stream without entries"));
    }
    for entry in Elements::of(values) {
        let mut fields = Elements::of(entry);
        let (timestamp, line) = (fields.next().filter(is_text), fields.next().filter(is_text));
        let metadata = fields.next();
        let is_object = metadata.is_none_or(|metadata| metadata.get().starts_with('{'));
        let (Some(timestamp), Some(line), true, None) = (timestamp, line, is_object, fields.next()) else {
            return Err(invalid(body, entry, writer, r#"an entry is ["<ns>","<line>"] or ["<ns>","<line>",{…}]"#));
        };
        writer.line(said, |out| {
            out.write_all(br#"{"timestamp":"#)?;
            out.write_all(timestamp.get().as_bytes())?;
            out.write_all(br#","labels":"#)?;
            out.write_all(labels.get().as_bytes())?;
            out.write_all(br#","line":"#)?;
            out.write_all(line.get().as_bytes())?;
            if let Some(metadata) = metadata {
                out.write_all(br#","structuredMetadata":"#)?;
                out.write_all(metadata.get().as_bytes())?;
            }
            write_tenant(tenant, out)
        })?;
    }
    Ok(())
}

fn is_text(value: &&RawValue) -> bool {
    value.get().starts_with('"')
}

fn invalid(body: &[u8], part: &RawValue, writer: &LineWriter, reason: &str) -> BodyError {
    BodyError::invalid(body, part.get().as_bytes(), writer.records(), reason)
}
