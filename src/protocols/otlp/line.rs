//! The line of one log record.

use std::io::{self, Write};

use crate::batch::LogType;
use crate::protocols::body::{BodyError, Line, LineWriter};

/// What a record has in common with other records, in JSON.
#[derive(Clone, Copy, Default)]
pub(super) struct Heads<'a> {
    pub(super) resource: Option<&'a [u8]>,
    pub(super) resource_url: Option<&'a [u8]>,
    pub(super) scope: Option<&'a [u8]>,
    pub(super) scope_url: Option<&'a [u8]>,
}

/// Adds a line: an OTLP request with one log record, which `record` writes.
pub(super) fn store(
    said: Option<LogType>,
    heads: &Heads<'_>,
    writer: &mut LineWriter,
    record: impl FnOnce(&mut Line<'_>) -> io::Result<()>,
) -> Result<(), BodyError> {
    let member = |out: &mut Line<'_>, [before, behind]: [&str; 2], json: Option<&[u8]>| {
        let Some(json) = json else { return Ok(()) };
        [before.as_bytes(), json, behind.as_bytes()].into_iter().try_for_each(|part| out.write_all(part))
    };
    writer.line(said, |out| {
        out.write_all(br#"{"resourceLogs":[{"#)?;
        member(out, [r#""resource":"#, ","], heads.resource)?;
        out.write_all(br#""scopeLogs":[{"#)?;
        member(out, [r#""scope":"#, ","], heads.scope)?;
        out.write_all(br#""logRecords":["#)?;
        record(out)?;
        out.write_all(b"]")?;
        member(out, [r#","schemaUrl":"#, ""], heads.scope_url)?;
        out.write_all(b"}]")?;
        member(out, [r#","schemaUrl":"#, ""], heads.resource_url)?;
        out.write_all(b"}]}")
    })
}
