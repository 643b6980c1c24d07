//! Acknowledgements that a client kept, held against the objects that they name.
//!
//! One JSON object a line: what the daemon answered (`accepted`, `object`, `line`), and where the client
//! kept them the `events` that it had sent, in their order: objects, or text lines as strings.

mod events;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;

use self::events::{SentEvents, stands_for};
use super::report::{FINDINGS_MAX_PER_KIND, PENDING_FOR, ReceiptCounts};
use crate::batch::Sha256;
use crate::small_file::BOM;

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

/// One acknowledgement. There may be millions, so only what judges it is kept. Its key and its events stay in the file:
/// events are read from there beside its object, one at a time, and the keys again at the end.
#[derive(Debug, Clone, Copy)]
struct Receipt {
    key: Fingerprint,
    first: u64,
    accepted: u64,
    /// Where in the file the elements of its `events` begin, in bytes; 0 without `events`.
    events_at: u64,
    events_bytes: u32,
    /// From 0, over all files.
    number: u32,
}

/// The beginning of a key's SHA-256: no two keys have the same one.
type Fingerprint = [u8; 16];

fn fingerprint(key: &str) -> Fingerprint {
    let mut fingerprint = Fingerprint::default();
    fingerprint.copy_from_slice(&Sha256::of(key.as_bytes()).0[..16]);
    fingerprint
}

impl Receipt {
    fn of(line: &ReceiptLine<'_>, number: u32, text: &[u8], offset: u64) -> Result<Option<Receipt>, &'static str> {
        let accepted = line.accepted.get().parse().map_err(|_| "`accepted` is not a whole number")?;
        let (events_at, events_bytes) = match line.events.map(RawValue::get) {
            None => (0, 0),
            Some(events) if events.starts_with('[') => {
                let at = offset + (events.as_ptr() as usize - text.as_ptr() as usize) as u64 + 1;
                (at, u32::try_from(events.len() - 2).unwrap_or(u32::MAX))
            }
            Some(_) => return Err("`events` is not an array"),
        };
        if accepted == 0 {
            return Ok(None);
        }
        let key = line.object.as_ref().ok_or("`object` is missing")?;
        if key.len() > KEY_MAX_BYTES {
            return Err("`object` is longer than a key can be");
        }
        let first = line.line.ok_or("`line` is missing")?.get();
        let first = first.parse().map_err(|_| "`line` is not a whole number")?;
        Ok(Some(Receipt { key: fingerprint(key), first, accepted, events_at, events_bytes, number }))
    }

    /// Where in the file the elements of its `events` are, in bytes.
    fn events(&self) -> Option<Range<u64>> {
        (self.events_at > 0).then(|| self.events_at..self.events_at + u64::from(self.events_bytes))
    }
}

/// Hands each receipt of a file to `take`, with its key, until that returns false. `first` is the first one's number.
fn read_file(path: &Path, first: u32, mut take: impl FnMut(Receipt, &str) -> bool) -> Result<(), ReceiptsError> {
    let io = |source| ReceiptsError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        return Err(io(io::Error::other("no file that can be read twice; save the receipts in a file")));
    }
    let mut reader = BufReader::new(file);
    let (mut text, mut offset, mut number) = (Vec::new(), 0, first);
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
        let json = text.strip_prefix(BOM).filter(|_| line == 1).unwrap_or(&text);
        if !json.trim_ascii().is_empty() {
            if json.trim_ascii_start()[0] != b'{' {
                return Err(wrong("not a JSON object".to_owned()));
            }
            let parsed: ReceiptLine<'_> = serde_json::from_slice(json).map_err(|error| wrong(error.to_string()))?;
            let receipt = Receipt::of(&parsed, number, &text, offset).map_err(|reason| wrong(reason.to_owned()))?;
            if let (Some(receipt), Some(key)) = (receipt, &parsed.object) {
                if !take(receipt, key) {
                    break;
                }
                number =
                    number.checked_add(1).ok_or_else(|| wrong("one receipt more than can be judged".to_owned()))?;
            }
        }
        offset += length as u64;
    }
    Ok(())
}

/// All receipts.
#[derive(Debug, Default)]
pub(super) struct Receipts {
    /// With the number of its first receipt.
    files: Vec<(Arc<Path>, u32)>,
    /// By the fingerprints of their keys.
    receipts: Vec<Receipt>,
}

impl Receipts {
    pub(super) fn read(files: &[PathBuf]) -> Result<Receipts, ReceiptsError> {
        let mut all = Receipts::default();
        for path in files {
            let first = u32::try_from(all.receipts.len()).unwrap_or(u32::MAX);
            all.files.push((path.as_path().into(), first));
            read_file(path, first, |receipt, _| {
                all.receipts.push(receipt);
                true
            })?;
        }
        all.receipts.sort_unstable_by_key(|receipt| (receipt.key, receipt.number));
        Ok(all)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.receipts.is_empty()
    }

    /// Whether judging an object takes its lines, not only their number.
    pub(super) fn want_lines_of(&self, keys: &[String]) -> bool {
        self.of(keys).any(|receipt| receipt.events().is_some())
    }

    /// The checks for an object that stands at the first of `keys` and was acknowledged under any of them.
    pub(super) fn checks(&self, keys: &[String]) -> Vec<Check> {
        let check = |receipt: &Receipt| {
            let file = self.files.partition_point(|(_, first)| *first <= receipt.number) - 1;
            Check { receipt: *receipt, path: self.files[file].0.clone(), events: None, wrong: None }
        };
        self.of(keys).map(check).collect()
    }

    fn of<'a>(&'a self, keys: &'a [String]) -> impl Iterator<Item = &'a Receipt> {
        keys.iter().flat_map(|key| {
            let key = fingerprint(key);
            let start = self.receipts.partition_point(|receipt| receipt.key < key);
            self.receipts[start..].iter().take_while(move |receipt| receipt.key == key)
        })
    }
}

/// One receipt, held against the lines of an object as they go by.
pub(super) struct Check {
    receipt: Receipt,
    path: Arc<Path>,
    /// Opened when its first line comes, closed after its last.
    events: Option<Box<SentEvents>>,
    wrong: Option<String>,
}

/// What became of a receipt at one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    /// The receipt's.
    pub(super) number: u32,
    /// Why it does not hold there; none where it does.
    pub(super) wrong: Option<String>,
}

impl Check {
    /// How long the line with this index, from 0, can be, in bytes, where it is one of the receipt's events.
    pub(super) fn wants(&self, line: u64) -> Option<u64> {
        let Receipt { first, accepted, .. } = self.receipt;
        let events =
            self.receipt.events().filter(|_| self.wrong.is_none() && line >= first && line - first < accepted)?;
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
        let Receipt { first, accepted, .. } = self.receipt;
        if let (0, Some(range)) = (position, self.receipt.events()) {
            self.events = Some(Box::new(SentEvents::open(&self.path, &range)?));
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
        Outcome { number: self.receipt.number, wrong: short.or(self.wrong) }
    }
}

/// What became of a receipt at the objects so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// None had its key.
    Missing,
    Wrong,
    Held,
}

/// What became of every receipt, over all objects: one that holds at any of its objects holds.
pub(super) struct Ledger {
    /// By number.
    standings: Vec<Standing>,
    /// Why receipts don't hold, by number: of the first ones, because no report tells of more.
    wrong: BTreeMap<u32, String>,
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
        Ledger { standings: vec![Standing::Missing; receipts.receipts.len()], wrong: BTreeMap::new() }
    }

    pub(super) fn note(&mut self, Outcome { number, wrong }: Outcome) {
        let standing = &mut self.standings[number as usize];
        match wrong {
            None => *standing = Standing::Held,
            Some(_) if *standing == Standing::Held => {}
            Some(wrong) => {
                *standing = Standing::Wrong;
                self.wrong.insert(number, wrong);
                if self.wrong.len() > FINDINGS_MAX_PER_KIND as usize {
                    self.wrong.pop_last();
                }
            }
        }
    }

    /// Counts every receipt and hands each that does not hold to `fail`, with its key. Reads the files again for the
    /// keys.
    ///
    /// `opened` tells when the batch of a key was opened, none for a key outside of what was judged.
    pub(super) fn finish(
        &self,
        receipts: &Receipts,
        now: DateTime<Utc>,
        opened: impl Fn(&str) -> Option<DateTime<Utc>>,
        mut fail: impl FnMut(&str, Failure<'_>),
    ) -> Result<ReceiptCounts, ReceiptsError> {
        let mut counts = ReceiptCounts::default();
        let ends = receipts.files.iter().skip(1).map(|(_, first)| *first as usize).chain([self.standings.len()]);
        for ((path, first), end) in receipts.files.iter().zip(ends) {
            let all = &self.standings[*first as usize..end];
            if all.iter().all(|standing| *standing == Standing::Held) {
                counts.held += all.len() as u64;
                continue;
            }
            let mut left = all.iter();
            read_file(path, *first, |receipt, key| {
                // A client may have kept more meanwhile.
                let Some(standing) = left.next() else { return false };
                match (standing, opened(key)) {
                    (Standing::Held, _) => counts.held += 1,
                    (_, None) => counts.not_judged += 1,
                    (Standing::Missing, Some(opened)) if now - opened < PENDING_FOR => {
                        counts.pending += 1;
                        fail(key, Failure::Pending);
                    }
                    (Standing::Missing, Some(_)) => {
                        counts.failed += 1;
                        fail(key, Failure::Missing);
                    }
                    (Standing::Wrong, Some(_)) => {
                        counts.failed += 1;
                        let wrong = self.wrong.get(&receipt.number).map_or("its lines are others", String::as_str);
                        fail(key, Failure::Wrong(wrong));
                    }
                }
                true
            })?;
            if left.next().is_some() {
                let source = io::Error::other("it has fewer receipts than when it was read first");
                return Err(ReceiptsError::Io { path: path.to_path_buf(), source });
            }
        }
        Ok(counts)
    }
}
