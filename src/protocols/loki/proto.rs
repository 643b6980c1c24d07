//! Loki's pushes in protobuf, below snappy.

use std::borrow::Cow;
use std::io::{self, Write};

use super::labels::Labels;
use super::line::write_tenant;
use crate::batch::LogType;
use crate::protocols;
use crate::protocols::body::{BodyError, Line, LineWriter};
use crate::protocols::protobuf::{
    Fault, Field, NOT_KNOWN, OF_ANOTHER_TYPE, TWICE, UNKNOWN_FIELDS, Wire, fields, write_unknown,
};

const PUSH_REQUEST_STREAMS: u32 = 1;
const STREAM_LABELS: u32 = 1;
const STREAM_ENTRIES: u32 = 2;
/// A hash of the labels, which Loki's own components pass on to each other.
const STREAM_HASH: u32 = 3;
const ENTRY_TIMESTAMP: u32 = 1;
const ENTRY_LINE: u32 = 2;
const ENTRY_STRUCTURED_METADATA: u32 = 3;
const ENTRY_PARSED: u32 = 4;
const PAIR_NAME: u32 = 1;
const PAIR_VALUE: u32 = 2;

/// How many labels of a stream, or pairs of an entry, are compared to find a name that is there twice: more than Loki
/// takes. More are stored in the form that a name which is there twice takes, so that the search is bounded.
const NAMES_MAX: usize = 1024;

/// Stores every entry of a `PushRequest`.
pub(super) fn push(push: &[u8], tenant: Option<&str>, writer: &mut LineWriter) -> Result<(), BodyError> {
    for stream in fields(push) {
        let within = |fault: Fault<'_>| fault.within(push, writer.records());
        let stream = stream.map_err(within)?;
        if stream.number != PUSH_REQUEST_STREAMS {
            return Err(within(Fault::of_field(&stream, NOT_KNOWN, "PushRequest")));
        }
        let stream = bytes(&stream, "PushRequest").map_err(within)?;
        let head = stream_head(stream).map_err(within)?;
        let labels = read_labels(head.labels, writer)?;
        let said = labels.said.or_else(|| protocols::log_type_of(tenant?));
        let entries = || fields(stream).flatten().filter(|field| field.number == STREAM_ENTRIES);
        // Each entry stores the text. Without one it would be lost.
        if labels.are_odd && entries().next().is_none() {
            let reason = "protobuf: a part of the labels is no label, in a stream without entries";
            return Err(Fault::new(head.labels, reason).within(push, writer.records()));
        }
        for entry in entries() {
            let within = |fault: Fault<'_>| fault.within(push, writer.records());
            let entry = bytes(&entry, "StreamAdapter").map_err(within)?;
            writer.check_len(entry)?;
            let judged = Entry::judge(entry).map_err(within)?;
            writer.line(said, |out| {
                judged.write(&labels.json, head.hash, out)?;
                write_tenant(tenant, out)
            })?;
        }
    }
    Ok(())
}

struct StreamHead<'a> {
    labels: &'a [u8],
    hash: Option<u64>,
}

fn stream_head(stream: &[u8]) -> Result<StreamHead<'_>, Fault<'_>> {
    let (mut labels, mut hash) = (None, None);
    for field in fields(stream) {
        let field = field?;
        let is_twice = match (field.number, field.value) {
            (STREAM_ENTRIES, Wire::Bytes(_)) => false,
            (STREAM_LABELS, Wire::Bytes(text)) => labels.replace(text).is_some(),
            (STREAM_HASH, Wire::Varint(value)) => hash.replace(value).is_some(),
            (STREAM_LABELS..=STREAM_HASH, _) => return Err(Fault::of_field(&field, OF_ANOTHER_TYPE, "StreamAdapter")),
            _ => return Err(Fault::of_field(&field, NOT_KNOWN, "StreamAdapter")),
        };
        if is_twice {
            return Err(Fault::of_field(&field, TWICE, "StreamAdapter"));
        }
    }
    Ok(StreamHead { labels: labels.unwrap_or_default(), hash })
}

/// A stream's labels as members of a line, and the log type that one of them names.
struct StoredLabels {
    json: Vec<u8>,
    said: Option<LogType>,
    /// Whether a part of the text is no label.
    are_odd: bool,
}

/// Writes `"labels":{…}`. Where a part of the text is no label, a name is there twice, or there are more than
/// [`NAMES_MAX`], `labelsText` has the text as it was sent beside them.
fn read_labels(text: &[u8], writer: &mut LineWriter) -> Result<StoredLabels, BodyError> {
    writer.check_len(text)?;
    let (mut said, mut are_odd) = (None, false);
    let json = writer.part(|out| {
        let as_text = String::from_utf8_lossy(text);
        let mut labels = Labels::of(&as_text);
        let mut names = Vec::new();
        out.write_all(br#""labels":{"#)?;
        for (name, value) in labels.by_ref().take(NAMES_MAX) {
            out.write_all(if names.is_empty() { b"" } else { b"," })?;
            out.text(&name)?;
            out.write_all(b":")?;
            out.text(&value)?;
            said = said.or_else(|| protocols::log_type_of(std::str::from_utf8(&value).ok()?));
            names.push(name);
        }
        out.write_all(b"}")?;
        let has_more = labels.next().is_some();
        labels.by_ref().for_each(drop);
        are_odd = labels.is_odd;
        if has_more || are_odd || has_twice(&mut names) {
            out.write_all(br#","labelsText":"#)?;
            out.text(text)?;
        }
        Ok(())
    })?;
    Ok(StoredLabels { json, said, are_odd })
}

fn has_twice(names: &mut [Cow<'_, [u8]>]) -> bool {
    names.sort_unstable();
    names.windows(2).any(|pair| pair[0] == pair[1])
}

/// An entry in which every field has been read.
struct Entry<'a> {
    bytes: &'a [u8],
    /// Nanoseconds since 1970.
    timestamp: i128,
    line: &'a [u8],
}

impl<'a> Entry<'a> {
    fn judge(entry: &'a [u8]) -> Result<Self, Fault<'a>> {
        let (mut timestamp, mut line) = (None, None);
        for field in fields(entry) {
            let field = field?;
            let is_twice = match (field.number, field.value) {
                (ENTRY_TIMESTAMP, Wire::Bytes(message)) => timestamp.replace(nanoseconds(message)?).is_some(),
                (ENTRY_LINE, Wire::Bytes(text)) => line.replace(text).is_some(),
                (ENTRY_STRUCTURED_METADATA | ENTRY_PARSED, Wire::Bytes(message)) => pair(message).map(|_| false)?,
                (ENTRY_TIMESTAMP..=ENTRY_PARSED, _) => {
                    return Err(Fault::of_field(&field, OF_ANOTHER_TYPE, "EntryAdapter"));
                }
                _ => false,
            };
            if is_twice {
                return Err(Fault::of_field(&field, TWICE, "EntryAdapter"));
            }
        }
        Ok(Entry { bytes: entry, timestamp: timestamp.unwrap_or_default(), line: line.unwrap_or_default() })
    }

    /// Writes all members but the tenant.
    fn write(&self, labels: &[u8], hash: Option<u64>, out: &mut Line<'_>) -> io::Result<()> {
        write!(out, r#"{{"timestamp":"{}","#, self.timestamp)?;
        out.write_all(labels)?;
        out.write_all(br#","line":"#)?;
        out.text(self.line)?;
        self.write_pairs(ENTRY_STRUCTURED_METADATA, "structuredMetadata", out)?;
        self.write_pairs(ENTRY_PARSED, "parsed", out)?;
        if let Some(hash) = hash.filter(|hash| *hash != 0) {
            write!(out, r#","hash":"{hash}""#)?;
        }
        let is_unknown = |field: &Field<'_>| !(ENTRY_TIMESTAMP..=ENTRY_PARSED).contains(&field.number);
        if fields(self.bytes).flatten().any(|field| is_unknown(&field)) {
            write!(out, ",\"{UNKNOWN_FIELDS}\":")?;
            write_unknown(self.bytes, is_unknown, out)?;
        }
        Ok(())
    }

    /// Writes the pairs of field `number` as an object called `name`; where a name is there twice, or there are more
    /// than [`NAMES_MAX`], as an array called `<name>Pairs`.
    fn write_pairs(&self, number: u32, name: &str, out: &mut Line<'_>) -> io::Result<()> {
        let messages = || fields(self.bytes).flatten().filter(move |field| field.number == number);
        let pairs = || messages().filter_map(|field| pair(bytes(&field, "").ok()?).ok());
        let mut names: Vec<_> = pairs().map(|(name, _)| Cow::Borrowed(name)).take(NAMES_MAX + 1).collect();
        if names.is_empty() {
            return Ok(());
        }
        let is_object = names.len() <= NAMES_MAX && !has_twice(&mut names);
        write!(out, ",\"{name}{}\":", if is_object { "" } else { "Pairs" })?;
        let mut before: &[u8] = if is_object { b"{" } else { b"[" };
        for (name, value) in pairs() {
            out.write_all(std::mem::replace(&mut before, b","))?;
            if !is_object {
                out.write_all(br#"{"name":"#)?;
            }
            out.text(name)?;
            out.write_all(if is_object { b":" } else { br#","value":"# })?;
            out.text(value)?;
            if !is_object {
                out.write_all(b"}")?;
            }
        }
        out.write_all(if is_object { b"}" } else { b"]" })
    }
}

/// `google.protobuf.Timestamp`
fn nanoseconds(timestamp: &[u8]) -> Result<i128, Fault<'_>> {
    let (mut seconds, mut nanos) = (None, None);
    for field in fields(timestamp) {
        let field = field?;
        let is_twice = match (field.number, field.value) {
            (1, Wire::Varint(value)) => seconds.replace(value as i64).is_some(),
            // A negative number is sent in ten bytes, of which the lowest 32 bits count.
            (2, Wire::Varint(value)) => nanos.replace(value as i32).is_some(),
            _ => return Err(Fault::of_field(&field, NOT_KNOWN, "Timestamp")),
        };
        if is_twice {
            return Err(Fault::of_field(&field, TWICE, "Timestamp"));
        }
    }
    Ok(i128::from(seconds.unwrap_or_default()) * 1_000_000_000 + i128::from(nanos.unwrap_or_default()))
}

/// Name and value of a `LabelPairAdapter`.
fn pair(message: &[u8]) -> Result<(&[u8], &[u8]), Fault<'_>> {
    let (mut name, mut value) = (None, None);
    for field in fields(message) {
        let field = field?;
        let is_twice = match (field.number, field.value) {
            (PAIR_NAME, Wire::Bytes(text)) => name.replace(text).is_some(),
            (PAIR_VALUE, Wire::Bytes(text)) => value.replace(text).is_some(),
            _ => return Err(Fault::of_field(&field, NOT_KNOWN, "LabelPairAdapter")),
        };
        if is_twice {
            return Err(Fault::of_field(&field, TWICE, "LabelPairAdapter"));
        }
    }
    Ok((name.unwrap_or_default(), value.unwrap_or_default()))
}

fn bytes<'a>(field: &Field<'a>, holder: &str) -> Result<&'a [u8], Fault<'a>> {
    match field.value {
        Wire::Bytes(bytes) => Ok(bytes),
        _ => Err(Fault::of_field(field, OF_ANOTHER_TYPE, holder)),
    }
}
