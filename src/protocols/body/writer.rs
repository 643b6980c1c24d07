//! Collects the lines of one request, with limits and redaction.

use std::io::{self, Write};

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use super::error::BodyError;
use super::redact;
use super::terms::{Limits, Lines, Part};
use super::text::{is_one_line, is_utf16_or_32, is_white_space, other_file, repaired, text_lines};
use crate::batch::LogType;

/// The memory that a change of the log type from one line to the next takes until the lines are in the spool. It counts
/// as bytes of lines, because the shortest events that name their type are only half as long.
const RUN_BYTES: usize = 160;
/// Memory for lines is doubled up to this size, then reserved for the most that is allowed.
const DOUBLED_MAX_BYTES: usize = 512 * 1024;

/// Collects the lines of one request. They split into one part for each run of events whose sender names the same log
/// type.
pub struct LineWriter {
    limits: Limits,
    bytes: Vec<u8>,
    records: u64,
    runs: Vec<Run>,
    /// Bytes of the body that were not UTF-8; counted with the next line.
    replaced: u64,
}

/// Consecutive lines whose sender names the same log type. They begin where the run before them ends.
struct Run {
    said: Option<LogType>,
    end: usize,
    records: u64,
    redacted: u64,
    replaced: u64,
}

impl LineWriter {
    /// A writer without lines. `capacity` is a guess at how many bytes will come.
    pub fn with_capacity(limits: &Limits, capacity: usize) -> Self {
        // From more than half of it to all of it, growing would take more than all of it while the bytes are copied.
        let most = limits.max_lines_bytes.saturating_add(1);
        let bytes = Vec::with_capacity(if capacity > most / 2 { most } else { capacity });
        LineWriter { limits: *limits, bytes, records: 0, runs: Vec::new(), replaced: 0 }
    }

    /// A writer that begins with `records` lines that need no change.
    pub(super) fn resume(limits: &Limits, stored: &[u8], records: u64, capacity: usize) -> Self {
        let mut writer = Self::with_capacity(limits, capacity);
        writer.bytes.extend_from_slice(stored);
        if records > 0 {
            writer.records = records;
            writer.runs.push(Run { said: None, end: stored.len(), records, redacted: 0, replaced: 0 });
        }
        writer
    }

    /// `body` with U+FFFD in place of bytes that are not UTF-8, which are counted. Refuses a result that is larger than
    /// a body may be.
    pub fn repair(&mut self, body: Bytes) -> Result<Bytes, BodyError> {
        let (body, replaced) = repaired(body, self.limits.max_body_bytes)?;
        self.replaced += replaced;
        Ok(body)
    }

    /// Calls `each` with every line of `body` that has more than white space, without its line ending (`\n` or `\r\n`).
    /// Bytes that are not UTF-8 become U+FFFD and are counted. Refuses UTF-16, UTF-32 and files of other kinds, which
    /// would become unreadable.
    pub fn text_lines(
        &mut self,
        body: &[u8],
        mut each: impl FnMut(&mut LineWriter, &str) -> Result<(), BodyError>,
    ) -> Result<(), BodyError> {
        if is_utf16_or_32(body) {
            return Err(BodyError::invalid(body, body, self.records, "UTF-16 or UTF-32; send UTF-8"));
        }
        if let Some(what) = other_file(body) {
            let reason = format!("{what}; send lines of JSON or text, compressed, if at all, by gzip, deflate or zstd");
            return Err(BodyError::invalid(body, body, self.records, reason));
        }
        for line in text_lines(body) {
            // Checked before it is copied, because a line never gets shorter as JSON.
            self.check_len(line)?;
            let (line, replaced) = super::text::lossy(line);
            self.replaced += replaced;
            each(self, &line)?;
        }
        Ok(())
    }

    /// Adds a JSON object: byte for byte where it is on one line, otherwise without the
    /// white space outside its strings.
    pub fn push(&mut self, said: Option<LogType>, object: &RawValue) -> Result<(), BodyError> {
        let object = object.get().as_bytes();
        self.line(said, |out| if is_one_line(object) { out.write_all(object) } else { compact(object, out) })
    }

    /// Like [`LineWriter::push`], with `members` added after the object's own.
    pub fn push_with(
        &mut self,
        said: Option<LogType>,
        object: &RawValue,
        members: &[(&str, &str)],
    ) -> Result<(), BodyError> {
        let open = object.get().strip_suffix('}').unwrap_or(object.get());
        let mut is_empty = open.strip_prefix('{').is_some_and(|members| members.trim_ascii().is_empty());
        self.line(said, |out| {
            out.write_all(open.as_bytes())?;
            for (name, value) in members {
                out.write_all(if is_empty { b"" } else { b"," })?;
                is_empty = false;
                serde_json::to_writer(&mut *out, name)?;
                out.write_all(b":")?;
                serde_json::to_writer(&mut *out, value)?;
            }
            out.write_all(b"}")
        })
    }

    /// Adds `object` as JSON, which must be a JSON object. A `RawValue` in it may span lines.
    pub fn serialize(&mut self, said: Option<LogType>, object: &impl Serialize) -> Result<(), BodyError> {
        self.line(said, |out| serde_json::to_writer(out, object).map_err(io::Error::from))
    }

    /// Adds the JSON object that `write` writes; it may span lines. `write` must fail only where `Line` does.
    pub fn line(
        &mut self,
        said: Option<LogType>,
        write: impl FnOnce(&mut Line<'_>) -> io::Result<()>,
    ) -> Result<(), BodyError> {
        let start = self.bytes.len();
        let Limits { max_event_bytes, max_lines_bytes, .. } = self.limits;
        let left = max_lines_bytes.saturating_sub(start);
        // One more for the `\n`; saturating, because the limit may be the largest number.
        let with_end = max_lines_bytes.saturating_add(1);
        let limit_bytes = max_event_bytes.min(left);
        // Writing to memory fails only at the limit.
        let too_large = |_| match limit_bytes < max_event_bytes {
            true => BodyError::LinesTooLarge { limit_bytes: max_lines_bytes },
            false => BodyError::EventTooLarge { event: self.records, limit_bytes },
        };
        let mut line = Line::new(&mut self.bytes, limit_bytes, with_end);
        write(&mut line).map_err(too_large)?;
        let replaced = line.replaced + std::mem::take(&mut self.replaced);
        if !is_one_line(&self.bytes[start..]) {
            let line = self.bytes.split_off(start);
            compact(&line, &mut self.bytes).map_err(too_large)?;
        }
        let redacted = self.limits.redact && redact::may_hold_secret(&self.bytes[start..]) && {
            let line = self.bytes.split_off(start);
            let secrets = redact::secrets(&line);
            redact::write_without(&line, &secrets, &mut Line::new(&mut self.bytes, limit_bytes, with_end))
                .map_err(too_large)?;
            !secrets.is_empty()
        };
        self.bytes.push(b'\n');
        self.count(said, u64::from(redacted), replaced);
        if self.bytes.len() + (self.runs.len() - 1) * RUN_BYTES > self.limits.max_lines_bytes {
            return Err(BodyError::LinesTooLarge { limit_bytes: self.limits.max_lines_bytes });
        }
        Ok(())
    }

    /// Counts the line that was added last, in its run.
    fn count(&mut self, said: Option<LogType>, redacted: u64, replaced: u64) {
        self.records += 1;
        let end = self.bytes.len();
        match self.runs.last_mut().filter(|run| run.said == said) {
            Some(run) => {
                run.end = end;
                run.records += 1;
                run.redacted += redacted;
                run.replaced += replaced;
            }
            None => self.runs.push(Run { said, end, records: 1, redacted, replaced }),
        }
    }

    /// How many events were added, which is the index of the next one.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Refuses the next event before it is decoded, where its encoded form, or that of a part of it, is over the limit.
    pub fn check_len(&self, encoded: &[u8]) -> Result<(), BodyError> {
        let limit_bytes = self.limits.max_event_bytes;
        if encoded.len() > limit_bytes {
            return Err(BodyError::EventTooLarge { event: self.records, limit_bytes });
        }
        Ok(())
    }

    /// Writes a part that many lines have in common; it may be at most as long as a line.
    pub fn part(&mut self, write: impl FnOnce(&mut Line<'_>) -> io::Result<()>) -> Result<Vec<u8>, BodyError> {
        let limit_bytes = self.limits.max_event_bytes;
        let mut part = Vec::new();
        let mut line = Line::new(&mut part, limit_bytes, limit_bytes);
        write(&mut line).map_err(|_| BodyError::EventTooLarge { event: self.records, limit_bytes })?;
        self.replaced += line.replaced;
        Ok(part)
    }

    /// The parts, in the order sent; none when there was no event.
    pub fn finish(self) -> Vec<Part> {
        let bytes = Bytes::from(shrunk(self.bytes));
        let mut start = 0;
        let part = |Run { said, end, records, redacted, replaced }| {
            let lines = Lines { bytes: bytes.slice(start..end), records, redacted, replaced };
            start = end;
            Part { said, lines }
        };
        self.runs.into_iter().map(part).collect()
    }

    pub(super) fn finish_lines(self) -> Lines {
        let redacted = self.runs.iter().map(|run| run.redacted).sum();
        let replaced = self.runs.iter().map(|run| run.replaced).sum();
        Lines { bytes: shrunk(self.bytes).into(), records: self.records, redacted, replaced }
    }
}

/// What is kept of a request until the disk has it takes at most twice its length.
pub fn shrunk(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.capacity() / 2 > bytes.len() {
        bytes.shrink_to_fit();
    }
    bytes
}

/// Writes a line to memory, and fails at its limit, so that no event is built larger than it may be stored.
pub struct Line<'a> {
    bytes: &'a mut Vec<u8>,
    end: usize,
    /// The most bytes that `bytes` will ever have.
    most: usize,
    replaced: u64,
}

impl<'a> Line<'a> {
    fn new(bytes: &'a mut Vec<u8>, limit_bytes: usize, most: usize) -> Self {
        let end = bytes.len() + limit_bytes;
        Line { bytes, end, most, replaced: 0 }
    }

    /// Reserves all memory at once where there is much already: doubling it would need half as much again while it is
    /// copied, and pages that are reserved and not written to take no memory yet.
    #[cold]
    fn grow(&mut self) {
        let len = self.bytes.len();
        if len >= DOUBLED_MAX_BYTES {
            self.bytes.reserve_exact(self.most.saturating_sub(len));
        }
    }

    /// Writes a JSON string. Bytes that are not UTF-8 become U+FFFD and are counted.
    pub fn text(&mut self, text: &[u8]) -> io::Result<()> {
        if text.len() > self.end - self.bytes.len() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let (text, replaced) = super::text::lossy(text);
        self.replaced += replaced;
        Ok(serde_json::to_writer(self, &*text)?)
    }
}

impl Write for Line<'_> {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        self.write_all(chunk).map(|()| chunk.len())
    }

    fn write_all(&mut self, chunk: &[u8]) -> io::Result<()> {
        if chunk.len() > self.end - self.bytes.len() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if chunk.len() > self.bytes.capacity() - self.bytes.len() {
            self.grow();
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes valid JSON without the white space outside its strings.
fn compact(json: &[u8], out: &mut impl Write) -> io::Result<()> {
    let mut rest = json;
    while !rest.is_empty() {
        let quote = memchr::memchr(b'"', rest).unwrap_or(rest.len());
        let (outside, string) = rest.split_at(quote);
        for token in outside.split(|&byte| is_white_space(byte)) {
            out.write_all(token)?;
        }
        let (string, after) = string.split_at(redact::string_len(string));
        out.write_all(string)?;
        rest = after;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_outgrow_their_guess_never_take_more_than_all_of_them_may() {
        let limits =
            Limits { max_body_bytes: 1 << 20, max_lines_bytes: 3_000_000, max_event_bytes: 100_000, redact: false };
        for guess in [0, 1_000_000, 1_400_000, 1_600_000, 2_999_999, 3_000_000, 10_000_000] {
            let mut writer = LineWriter::with_capacity(&limits, guess);
            let mut before = writer.bytes.capacity();
            while writer.line(None, |out| out.write_all(&[b'x'; 1000])).is_ok() {
                let (len, capacity) = (writer.bytes.len(), writer.bytes.capacity());
                assert!(capacity == before || 2 * len <= limits.max_lines_bytes, "{guess}: {before}, then {capacity}");
                before = capacity;
            }
        }
    }

    #[test]
    fn memory_for_lines_is_doubled_while_it_is_small_and_then_reserved_once() {
        let limits =
            Limits { max_body_bytes: 1 << 20, max_lines_bytes: 3_000_000, max_event_bytes: 100_000, redact: false };
        let mut writer = LineWriter::with_capacity(&limits, 0);
        let mut capacities = Vec::new();
        while writer.bytes.len() < 2_900_000 {
            writer.line(None, |out| out.write_all(&[b'x'; 1000])).unwrap();
            if capacities.last() != Some(&writer.bytes.capacity()) {
                capacities.push(writer.bytes.capacity());
            }
        }
        let [.., before, last] = capacities[..] else { panic!("{capacities:?}") };
        assert!(before < 2 * DOUBLED_MAX_BYTES && last == limits.max_lines_bytes + 1, "{capacities:?}");
    }
}
