//! Finds the events of a body and validates them; each becomes one line. Pure, and tested with mutated bodies.
//!
//! serde_json's `&RawValue` judges every event. It is iterative, so depth has no limit, and it checks UTF-8. An object
//! that it accepts is stored byte for byte. A body that already is NDJSON is not copied.

mod error;
mod events;
mod line;
mod members;
mod redact;
mod terms;
#[cfg(test)]
pub(crate) mod tests;
mod text;
mod writer;

use std::io::Write;

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};

pub use error::BodyError;
pub use events::{Event, Events};
pub use members::{Elements, Members, first_value, members, next_token, only_members, printable, says, text_of};
pub use terms::{Limits, Lines, Part};
use text::{BOM, is_one_line, is_white_space};
pub(super) use text::{is_utf16_or_32, other_file};
pub use text::{repaired, repaired_len};
pub use writer::{Line, LineWriter, shrunk};

/// Reads the native form: JSON objects, alone, in an array or one after the other, or lines of text, which become
/// `{"timestamp":"<received>","message":"<line>"}`.
pub fn scan(body: Bytes, received: fn() -> DateTime<Utc>, limits: &Limits) -> Result<Lines, BodyError> {
    if Events::sniff(&body) { scan_json(body, limits) } else { scan_text(&body, received, limits) }
}

/// Whether `body` has no event: it is empty, or only a BOM and white space.
pub fn is_blank(body: &[u8]) -> bool {
    body.strip_prefix(BOM).unwrap_or(body).iter().all(|&byte| is_white_space(byte))
}

fn scan_json(body: Bytes, limits: &Limits) -> Result<Lines, BodyError> {
    // The first `stored` bytes with `records` lines are stored as they were sent. Nothing is
    // copied before an event differs.
    let (mut stored, mut records) = plain_lines(&body, limits);
    // Almost always. There is nothing left to look for secrets in.
    if stored == body.len() {
        return Ok(Lines { bytes: body, records, ..Lines::default() });
    }
    let rest = &body[stored..];
    let to_redact = limits.redact && redact::may_hold_secret(rest);
    let mut copy: Option<LineWriter> = None;
    for event in Events::after(&body, stored, records) {
        let event = event?;
        let bytes = event.bytes();
        if copy.is_none() {
            let as_stored =
                event.offset == stored && body.get(event.offset + bytes.len()) == Some(&b'\n') && is_one_line(bytes);
            // Before the search for secrets, whose memory grows with the event's length.
            let is_stored = as_stored && bytes.len() <= limits.max_event_bytes;
            if is_stored && (!to_redact || redact::secrets(bytes).is_empty()) {
                stored += bytes.len() + 1;
                records += 1;
                continue;
            }
        }
        let copy = copy.get_or_insert_with(|| LineWriter::resume(limits, &body[..stored], records, body.len() + 1));
        copy.push(None, event.json)?;
    }
    match copy {
        Some(copy) => Ok(copy.finish_lines()),
        None => Ok(Lines { bytes: body.slice(..stored), records, ..Lines::default() }),
    }
}

/// The length of the part of `body` that is surely stored as it was sent, and how many lines that is.
fn plain_lines(body: &[u8], limits: &Limits) -> (usize, u64) {
    let (mut stored, mut records) = (0, 0);
    let mut rest = body;
    while let Some(len) = line::plain_object_len(rest)
        && len <= limits.max_event_bytes
        && rest.get(len) == Some(&b'\n')
    {
        rest = &rest[len + 1..];
        stored += len + 1;
        records += 1;
    }
    (stored, records)
}

fn scan_text(body: &[u8], received: fn() -> DateTime<Utc>, limits: &Limits) -> Result<Lines, BodyError> {
    let opening = format!(r#"{{"timestamp":"{}","message":"#, rfc3339(received()));
    let mut writer = LineWriter::with_capacity(limits, body.len() + opening.len());
    writer.text_lines(body, |writer, line| {
        writer.line(None, |out| {
            out.write_all(opening.as_bytes())?;
            serde_json::to_writer(&mut *out, line)?;
            out.write_all(b"}")
        })
    })?;
    Ok(writer.finish_lines())
}

/// A time as stored lines have it: RFC 3339, UTC, milliseconds.
pub fn rfc3339(moment: DateTime<Utc>) -> String {
    moment.to_rfc3339_opts(SecondsFormat::Millis, true)
}
