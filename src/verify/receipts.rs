//! Acknowledgements that a client kept, held against the objects that they name.
//!
//! One JSON object a line: what the daemon answered (`accepted`, `object`, `line`), and where the client
//! kept them the `events` that it had sent, in their order: objects, or text lines as strings.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Take};
use std::ops::Range;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::report::{PENDING_FOR, ReceiptCounts};

/// A line is held in memory while it is read. A request of the default limit, 16 MiB, fits with all its events, though
/// quotes and line ends in text take a byte more here.
const LINE_MAX_BYTES: u64 = 32 << 20;
/// No key of S3's is longer.
const KEY_MAX_BYTES: usize = 1024;
/// How much of the reason why a line is no receipt is told: it may repeat the line.
const REASON_MAX_CHARS: usize = 200;

/// A receipts file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ReceiptsError {
    /// Not readable.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// A line that is no receipt.
    #[error("{path}, line {line}: {reason}; expected {{\"accepted\":1,\"object\":\"<key>\",\"line\":0}}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
}

/// The numbers are read later: an error about a text in their place would repeat all of it.
#[derive(Deserialize)]
struct ReceiptLine<'a> {
    #[serde(borrow)]
    accepted: &'a RawValue,
    #[serde(default, borrow)]
    object: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    line: Option<&'a RawValue>,
    #[serde(default, borrow)]
    events: Option<&'a RawValue>,
}

/// One acknowledgement. Its events stay in the file, and are read from there beside its object, one at a time: many
/// objects are read at once, and each may have megabytes of them.
#[derive(Debug, Clone)]
struct Receipt {
    file: usize,
    first: u64,
    accepted: u64,
    /// Where in the file the elements of its `events` are, in bytes.
    events: Option<Range<u64>>,
}

/// All receipts, by the key that they name.
#[derive(Debug, Default)]
pub(super) struct Receipts {
    files: Vec<PathBuf>,
    receipts: Vec<Receipt>,
    by_key: HashMap<String, Vec<usize>>,
}

impl Receipts {
    pub(super) fn read(files: &[PathBuf]) -> Result<Receipts, ReceiptsError> {
        let mut receipts = Receipts { files: files.to_vec(), ..Receipts::default() };
        for (index, path) in files.iter().enumerate() {
            receipts.read_file(index, path)?;
        }
        Ok(receipts)
    }

    fn read_file(&mut self, file: usize, path: &Path) -> Result<(), ReceiptsError> {
        let io = |source| ReceiptsError::Io { path: path.to_owned(), source };
        let mut reader = BufReader::new(File::open(path).map_err(io)?);
        let (mut text, mut offset) = (Vec::new(), 0);
        for line in 1.. {
            text.clear();
            let length = reader.by_ref().take(LINE_MAX_BYTES + 1).read_until(b'\n', &mut text).map_err(io)?;
            if length == 0 {
                break;
            }
            let wrong = |reason: String| {
                let reason = reason.chars().take(REASON_MAX_CHARS).collect();
                ReceiptsError::Line { path: path.to_owned(), line, reason }
            };
            if length as u64 > LINE_MAX_BYTES {
                let reason = format!(
                    "it is longer than {LINE_MAX_BYTES} bytes, the most that a line may have: keep one receipt a line, \
                     and leave out the `events` of one with too many"
                );
                return Err(wrong(reason));
            }
            if !text.trim_ascii().is_empty() {
                if text.trim_ascii_start()[0] != b'{' {
                    return Err(wrong("not a JSON object".to_owned()));
                }
                let parsed: ReceiptLine<'_> =
                    serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
                let events = parsed.events.map(|events| {
                    let start = offset + (events.get().as_ptr() as usize - text.as_ptr() as usize) as u64;
                    let elements = start + 1..start + events.get().len() as u64 - 1;
                    events.get().starts_with('[').then_some(elements).ok_or("`events` is not an array")
                });
                let added = events.transpose().and_then(|events| self.add(file, &parsed, events));
                added.map_err(|reason| wrong(reason.to_owned()))?;
            }
            offset += length as u64;
        }
        Ok(())
    }

    fn add(&mut self, file: usize, line: &ReceiptLine<'_>, events: Option<Range<u64>>) -> Result<(), &'static str> {
        let accepted = line.accepted.get().parse().map_err(|_| "`accepted` is not a whole number")?;
        if accepted == 0 {
            return Ok(());
        }
        let key = line.object.as_ref().ok_or("`object` is missing")?;
        if key.len() > KEY_MAX_BYTES {
            return Err("`object` is longer than a key can be");
        }
        let first = line.line.ok_or("`line` is missing")?.get();
        let first = first.parse().map_err(|_| "`line` is not a whole number")?;
        let receipt = Receipt { file, first, accepted, events };
        self.by_key.entry(key.clone().into_owned()).or_default().push(self.receipts.len());
        self.receipts.push(receipt);
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.receipts.is_empty()
    }

    /// Whether judging an object takes its lines, not only their number.
    pub(super) fn want_lines_of(&self, keys: &[String]) -> bool {
        self.indexes(keys).any(|index| self.receipts[index].events.is_some())
    }

    /// The checks for an object that stands at the first of `keys` and was acknowledged under any of them.
    pub(super) fn checks(&self, keys: &[String]) -> Vec<Check> {
        let check = |index: usize| {
            let receipt = self.receipts[index].clone();
            Check { index, path: self.files[receipt.file].clone(), receipt, events: None, wrong: None }
        };
        self.indexes(keys).map(check).collect()
    }

    fn indexes<'a>(&'a self, keys: &'a [String]) -> impl Iterator<Item = usize> + 'a {
        keys.iter().filter_map(|key| self.by_key.get(key)).flatten().copied()
    }
}

/// One receipt, held against the lines of an object as they go by.
pub(super) struct Check {
    index: usize,
    receipt: Receipt,
    path: PathBuf,
    /// Opened when its first line comes, closed after its last.
    events: Option<SentEvents>,
    wrong: Option<String>,
}

/// What became of a receipt at one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) index: usize,
    /// Why it does not hold there; none where it does.
    pub(super) wrong: Option<String>,
}

impl Check {
    /// How long the line with this index, from 0, can be, in bytes, where it is one of the receipt's events.
    pub(super) fn wants(&self, line: u64) -> Option<u64> {
        let Receipt { first, accepted, ref events, .. } = self.receipt;
        let events = events.as_ref().filter(|_| self.wrong.is_none() && line >= first && line - first < accepted)?;
        Some(events.end - events.start)
    }

    /// Takes in a line, without its `\n`; none where it is longer than any event that was sent.
    pub(super) fn line(&mut self, line: u64, stored: Option<&[u8]>) {
        if self.wants(line).is_none() {
            return;
        }
        let position = line - self.receipt.first;
        self.wrong = match stored {
            None => Some(format!("line {line} is longer than any event of the receipt")),
            Some(stored) => self
                .compare(position, stored)
                .unwrap_or_else(|error| Some(format!("its events can't be read again: {error}"))),
        };
        if position + 1 == self.receipt.accepted || self.wrong.is_some() {
            self.events = None;
        }
    }

    /// Why a stored line is not the event at this position; none where it is.
    fn compare(&mut self, position: u64, stored: &[u8]) -> io::Result<Option<String>> {
        let Receipt { first, accepted, ref events, .. } = self.receipt;
        if let (0, Some(range)) = (position, events) {
            self.events = Some(SentEvents::open(&self.path, range)?);
        }
        let Some(events) = &mut self.events else { return Ok(None) };
        let Some(sent) = events.next()? else {
            return Ok(Some(format!("it holds {position} events and says accepted {accepted}")));
        };
        if !stands_for(&sent, stored) {
            return Ok(Some(format!("line {} is not event {position} as it was sent", first + position)));
        }
        if position + 1 == accepted && events.next()?.is_some() {
            return Ok(Some(format!("it holds more events than the {accepted} that it says were accepted")));
        }
        Ok(None)
    }

    /// The outcome at an object with this many lines.
    pub(super) fn finish(self, records: u64) -> Outcome {
        let Receipt { first, accepted, .. } = self.receipt;
        let short = first.checked_add(accepted).is_none_or(|end| end > records);
        let short = short.then(|| {
            format!("lines {first} to {} are not there: it has {records}", first.saturating_add(accepted) - 1)
        });
        Outcome { index: self.index, wrong: short.or(self.wrong) }
    }
}

/// The elements of a JSON array in a file, which was read once and found to be JSON.
struct SentEvents(Take<BufReader<File>>);

impl SentEvents {
    /// `elements` is what stands between the brackets, in bytes.
    fn open(path: &Path, elements: &Range<u64>) -> io::Result<SentEvents> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(elements.start))?;
        Ok(SentEvents(BufReader::new(file).take(elements.end - elements.start)))
    }

    /// The next element, without space around it; none after the last.
    fn next(&mut self) -> io::Result<Option<String>> {
        let mut element = Vec::new();
        let (mut depth, mut in_string, mut escaped) = (0_u64, false, false);
        for byte in self.0.by_ref().bytes() {
            let byte = byte?;
            match byte {
                b',' if depth == 0 && !in_string => break,
                b'{' | b'[' if !in_string => depth += 1,
                b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
                b'"' if !escaped => in_string = !in_string,
                _ => {}
            }
            escaped = in_string && !escaped && byte == b'\\';
            element.push(byte);
        }
        let element = String::from_utf8(element).map_err(io::Error::other)?;
        Ok(Some(element.trim().to_owned()).filter(|element| !element.is_empty()))
    }
}

/// Whether a stored line is the event that was sent: the same JSON text but for the space between its
/// tokens and redacted values, or a text line in its envelope.
fn stands_for(sent: &str, stored: &[u8]) -> bool {
    let Ok(stored) = std::str::from_utf8(stored) else { return false };
    if !sent.starts_with('"') {
        return same_json(sent, stored);
    }
    #[derive(Deserialize)]
    struct Envelope {
        message: String,
    }
    let Ok(text) = serde_json::from_str::<String>(sent) else { return false };
    let message = serde_json::from_str::<Envelope>(stored).map(|envelope| envelope.message);
    same_json(&text, stored) || message.is_ok_and(|message| message == text)
}

fn same_json(sent: &str, stored: &str) -> bool {
    const REDACTED: &str = "\"[redacted]\"";
    let (sent, stored) = (without_space(sent), without_space(stored));
    let mut rest = sent.as_str();
    for (index, part) in stored.split(REDACTED).enumerate() {
        if index > 0 {
            let Some(length) = string_length(rest) else { return false };
            rest = &rest[length..];
        }
        let Some(after) = rest.strip_prefix(part) else { return false };
        rest = after;
    }
    rest.is_empty()
}

/// JSON text without the space between tokens.
fn without_space(text: &str) -> String {
    let mut compact = String::with_capacity(text.len());
    let (mut in_string, mut escaped) = (false, false);
    for character in text.chars() {
        if in_string || !matches!(character, ' ' | '\t' | '\n' | '\r') {
            compact.push(character);
        }
        if !escaped && character == '"' {
            in_string = !in_string;
        }
        escaped = in_string && !escaped && character == '\\';
    }
    compact
}

/// Length of the JSON string that `text` starts with, quotes included, in bytes.
fn string_length(text: &str) -> Option<usize> {
    let mut escaped = false;
    let end = text.strip_prefix('"')?.bytes().position(|byte| {
        let closing = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closing
    });
    end.map(|end| end + 2)
}

/// What became of every receipt, over all objects: one that holds at any of its objects holds.
pub(super) struct Ledger {
    held: Vec<bool>,
    wrong: HashMap<usize, String>,
}

/// How a receipt ended that does not hold.
pub(super) enum Failure<'a> {
    /// Its object isn't there.
    Missing,
    /// Its object isn't there, and may still be in the spool.
    Pending,
    /// The object is there, the events are not.
    Wrong(&'a str),
}

impl Ledger {
    pub(super) fn new(receipts: &Receipts) -> Ledger {
        Ledger { held: vec![false; receipts.receipts.len()], wrong: HashMap::new() }
    }

    pub(super) fn note(&mut self, Outcome { index, wrong }: Outcome) {
        match wrong {
            None => self.held[index] = true,
            Some(wrong) => drop(self.wrong.insert(index, wrong)),
        }
    }

    /// Counts every receipt and hands each that does not hold to `fail`, with its key.
    ///
    /// `opened` tells when the batch of a key was opened, none for a key outside of what was judged.
    pub(super) fn finish(
        &self,
        receipts: &Receipts,
        now: DateTime<Utc>,
        opened: impl Fn(&str) -> Option<DateTime<Utc>>,
        mut fail: impl FnMut(&str, Failure<'_>),
    ) -> ReceiptCounts {
        let mut counts = ReceiptCounts::default();
        let mut keys: Vec<_> = receipts.by_key.iter().collect();
        keys.sort();
        for (key, indexes) in keys {
            let opened = opened(key);
            for index in indexes {
                let wrong = self.wrong.get(index);
                match opened {
                    _ if self.held[*index] => counts.held += 1,
                    None => counts.not_judged += 1,
                    Some(opened) if wrong.is_none() && now - opened < PENDING_FOR => {
                        counts.pending += 1;
                        fail(key, Failure::Pending);
                    }
                    Some(_) => {
                        counts.failed += 1;
                        fail(key, wrong.map_or(Failure::Missing, |wrong| Failure::Wrong(wrong)));
                    }
                }
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sent_events_are_read_one_at_a_time() {
        let array = r#"[ {"a":"x, \"]} \\","b":[1,{"c":2}]} , "text, \"t\\" ,[],{}]"#;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("before{array}after")).unwrap();
        let elements = 7..5 + array.len() as u64;
        let mut events = SentEvents::open(file.path(), &elements).unwrap();
        let elements: Vec<String> = std::iter::from_fn(|| events.next().unwrap()).collect();
        let expected: Vec<Box<RawValue>> = serde_json::from_str(array).unwrap();
        assert_eq!(elements, expected.iter().map(|element| element.get()).collect::<Vec<_>>());
    }

    #[test]
    fn an_event_stands_for_itself_whatever_the_space_between_its_tokens() {
        assert!(stands_for(r#"{ "a" : "b \" c" }"#, br#"{"a":"b \" c"}"#));
        assert!(stands_for(r#"{"a":1.0,"a":2}"#, br#"{"a":1.0,"a":2}"#));
        for other in [r#"{"a":1.00,"a":2}"#, r#"{"a":1.0}"#, r#"{"a":1.0,"a":2,"b":3}"#, "{}", ""] {
            assert!(!stands_for(r#"{"a":1.0,"a":2}"#, other.as_bytes()), "{other}");
        }
        assert!(!stands_for(r#"{"a":"b c"}"#, br#"{"a":"bc"}"#));
    }

    #[test]
    fn a_redacted_value_stands_for_any_string_and_nothing_else() {
        let sent = r#"{"customEnv0EnvironmentVariables":{"oidcToken":"e\"y","x":1},"b":2}"#;
        let stored = sent.replace(r#""e\"y""#, r#""[redacted]""#);
        assert!(stands_for(sent, stored.as_bytes()));
        assert!(!stands_for(sent, stored.replace("\"b\":2", "\"b\":3").as_bytes()));
        assert!(!stands_for(&sent.replace(r#""e\"y""#, "7"), stored.as_bytes()));
    }

    #[test]
    fn a_text_line_stands_in_its_envelope() {
        let stored = br#"{"timestamp":"2026-11-22T21:04:05.000Z","message":"two \"words\""}"#;
        assert!(stands_for(r#""two \"words\"""#, stored));
        assert!(!stands_for(r#""two words""#, stored));
        assert!(stands_for(r#""{\"a\":1}""#, br#"{"a":1}"#));
    }
}
