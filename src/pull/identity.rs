//! Which events were taken: an event's identity, and sets of them that fit into a file.
//!
//! An event is the one with its id. Should env0 give one id to events of different bytes, each of them is stored once.

use std::collections::HashMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::batch::{Sha256, Sha256Hasher};
use crate::pull::line::{KEPT_MAX_BYTES, Line};

/// The first half of a SHA-256: two of a million million events share one with a chance of 1 to 10^14.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Identity([u8; 16]);

impl Identity {
    /// The identity of an event: from its `id`, or from its stored `line` if it has none. Ids are unique within `scope`
    /// (empty, or deployment and step).
    pub(super) fn new(scope: &[&str], id: Option<&RawValue>, line: &[u8]) -> Identity {
        let id = id.map(RawValue::get).filter(|id| is_id(id));
        let (kind, bytes) = id.map_or((b'l', line), |id| (b'i', id.as_bytes()));
        // No id contains a zero byte, so two different scopes never give the same bytes.
        let scope = scope.iter().flat_map(|part| [part.as_bytes(), b"\0"]);
        let mut hasher = Sha256Hasher::default();
        scope.chain([&[kind][..], bytes]).for_each(|bytes| hasher.update(bytes));
        let Sha256(hash) = hasher.finish();
        let mut first = [0; 16];
        first.copy_from_slice(&hash[..16]);
        Identity(first)
    }

    fn number(&self) -> usize {
        self.0[0].into()
    }

    /// A part of it that [`Taken`] can keep as a time.
    pub(super) fn short(&self) -> i64 {
        let Identity([a, b, c, d, e, f, ..]) = *self;
        i64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }
}

/// By what an event is known again: its id, and its bytes where another event has the same id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    /// From its id, or from its bytes if it has none.
    id: Identity,
    bytes: Identity,
    /// Whether its line is the event as it was sent. Another one would differ under other settings, so its bytes tell nothing.
    is_whole: bool,
    /// Of an event without an id: from the lines that other values of `ENV0_S3_LOG_REDACT` and
    /// `ENV0_S3_LOG_MAX_EVENT_BYTES` make of it.
    otherwise: Vec<Identity>,
}

impl Mark {
    /// Of an event with this `id` and stored `line`. Ids are unique within `scope`.
    pub(super) fn new(scope: &[&str], id: Option<&RawValue>, line: &[u8]) -> Mark {
        let bytes = Identity::new(scope, None, line);
        let id = id.map_or(bytes, |id| Identity::new(scope, Some(id), line));
        let is_whole = ALTERED.iter().all(|sign| memchr::memmem::find(line, sign).is_none());
        Mark { id, bytes, is_whole, otherwise: Vec::new() }
    }

    /// The same for an event, stored as `line`, that may have been stored as one of the lines `others`, too, by other
    /// settings. Only an event without an id is known by them. One that was cut is the one with its whole bytes, which
    /// the first of `others` has: its line depends on `ENV0_S3_LOG_MAX_EVENT_BYTES`.
    pub(super) fn or(mut self, scope: &[&str], line: &Line, others: impl Iterator<Item = Line>) -> Mark {
        if self.id != self.bytes {
            return self;
        }
        self.otherwise = others.map(|other| Identity::new(scope, None, other.json())).collect();
        if line.cut
            && let Some(whole) = self.otherwise.first_mut()
        {
            std::mem::swap(whole, &mut self.bytes);
            self.id = self.bytes;
        }
        self
    }

    /// The identity that an event without an id has by its bytes.
    pub(super) fn of_bytes(&self) -> Identity {
        self.bytes
    }

    /// Whether it may be that of an event without an id that was taken with this identity.
    pub(super) fn may_be(&self, bytes: Identity) -> bool {
        self.bytes == bytes || self.otherwise.contains(&bytes)
    }

    /// A part of the bytes' hash: two different events have the same with a chance of 1 to 65,535. 0 where the line is not
    /// the whole event.
    fn print(&self) -> u64 {
        let print = u16::from_be_bytes([self.bytes.0[0], self.bytes.0[1]]).max(1);
        if self.is_whole { u64::from(print) } else { 0 }
    }
}

/// What a line holds in which `ENV0_S3_LOG_REDACT` or `ENV0_S3_LOG_MAX_EVENT_BYTES` has changed something.
const ALTERED: [&[u8]; 2] = [b"\"[redacted]\"", b"\"cutFromBytes\":"];

/// What is odd about [`Known::Other`].
pub(super) const SAME_ID: &str = "two events have one id and different bytes; both are stored";

/// Whether an event was taken before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    No,
    Yes,
    /// One with the same id and other bytes was.
    Other,
}

/// Whether the value can identify an event: a string that is not empty, or a number; and no longer than what the line of
/// an event that is cut keeps.
fn is_id(json: &str) -> bool {
    let is_kept = json.len() <= KEPT_MAX_BYTES;
    is_kept
        && ((json.starts_with('"') && json.len() > 2)
            || json.starts_with(|first: char| first.is_ascii_digit() || first == '-'))
}

/// Events that were taken. Of each its identity, its time in milliseconds since 1970 (up to 48 bits) and a print of its
/// bytes (16 bits; 0 is unknown, as in a file of an earlier version, and fits all). As JSON it is one string of base64, 24 bytes an event.
///
/// In several maps, by the first bits of the identity: while one grows, it is in memory twice, and only that one is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Taken([HashMap<Identity, u64>; MAPS]);

const MAPS: usize = 16;

const TIME_BITS: u32 = 48;
const TIME_MAX: u64 = (1 << TIME_BITS) - 1;
const ENTRY_BYTES: usize = 24;
/// In base64, without a rest: pieces of the text can be put together.
const ENTRY_TEXT_BYTES: usize = ENTRY_BYTES / 3 * 4;
/// Events that are written or read at once.
const PIECE_ENTRIES: usize = 1024;

fn time_of(entry: u64) -> i64 {
    (entry & TIME_MAX).cast_signed()
}

impl Taken {
    /// Takes note of an event and its time: by its id, or by its bytes where another one has that id. Tells whether it was
    /// known.
    pub(super) fn insert(&mut self, mark: &Mark, at_millis: i64) -> Known {
        let known = self.knows(mark);
        let identity = match known {
            Known::No => mark.id,
            Known::Other => mark.bytes,
            Known::Yes if self.get(&mark.bytes).is_some() => mark.bytes,
            Known::Yes => mark.id,
        };
        let time = u64::try_from(at_millis).unwrap_or_default().min(TIME_MAX);
        self.map_of(&identity).insert(identity, mark.print() << TIME_BITS | time);
        known
    }

    fn get(&self, identity: &Identity) -> Option<u64> {
        self.0[identity.number() % MAPS].get(identity).copied()
    }

    fn map_of(&mut self, identity: &Identity) -> &mut HashMap<Identity, u64> {
        &mut self.0[identity.number() % MAPS]
    }

    pub(super) fn knows(&self, mark: &Mark) -> Known {
        match self.get(&mark.id).map(|entry| entry >> TIME_BITS) {
            Some(print) if print == 0 || mark.print() == 0 || print == mark.print() => Known::Yes,
            _ if self.get(&mark.bytes).is_some() => Known::Yes,
            _ if mark.otherwise.iter().any(|otherwise| self.get(otherwise).is_some()) => Known::Yes,
            Some(_) => Known::Other,
            None => Known::No,
        }
    }

    /// The time of the event with this id, in milliseconds since 1970.
    pub(super) fn time_of(&self, mark: &Mark) -> Option<i64> {
        self.get(&mark.id).map(time_of)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(HashMap::is_empty)
    }

    pub(super) fn len(&self) -> usize {
        self.0.iter().map(HashMap::len).sum()
    }

    /// The time of the newest event that is not later than `millis`.
    pub(super) fn newest_until(&self, millis: i64) -> Option<i64> {
        self.0.iter().flat_map(HashMap::values).map(|entry| time_of(*entry)).filter(|at| *at <= millis).max()
    }

    /// Forgets the events before `millis`: they are not asked for again.
    pub(super) fn forget_before(&mut self, millis: i64) {
        self.0.iter_mut().for_each(|map| map.retain(|_, entry| time_of(*entry) >= millis));
    }

    /// Forgets all events but those of the time `millis`.
    pub(super) fn keep_only(&mut self, millis: i64) {
        for map in &mut self.0 {
            map.retain(|_, entry| time_of(*entry) == millis);
            map.shrink_to_fit();
        }
    }
}

impl Serialize for Taken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Taken {
    /// In pieces: the whole of it may be large.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut entries = self.0.iter().flatten();
        let mut bytes = Vec::with_capacity(PIECE_ENTRIES * ENTRY_BYTES);
        loop {
            bytes.clear();
            for (identity, entry) in entries.by_ref().take(PIECE_ENTRIES) {
                bytes.extend_from_slice(&entry.to_be_bytes());
                bytes.extend_from_slice(&identity.0);
            }
            if bytes.is_empty() {
                return Ok(());
            }
            f.write_str(&STANDARD_NO_PAD.encode(&bytes))?;
        }
    }
}

impl<'de> Deserialize<'de> for Taken {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Taken, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Taken;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("events in base64")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Taken, E> {
                let mut taken = Taken::default();
                for piece in text.as_bytes().chunks(PIECE_ENTRIES * ENTRY_TEXT_BYTES) {
                    let bytes = STANDARD_NO_PAD.decode(piece).map_err(E::custom)?;
                    let (entries, rest) = bytes.as_chunks::<ENTRY_BYTES>();
                    if !rest.is_empty() {
                        return Err(E::custom("events of another length"));
                    }
                    for bytes in entries {
                        let (mut entry, mut identity) = ([0; 8], [0; 16]);
                        entry.copy_from_slice(&bytes[..8]);
                        identity.copy_from_slice(&bytes[8..]);
                        let identity = Identity(identity);
                        taken.map_of(&identity).insert(identity, u64::from_be_bytes(entry));
                    }
                }
                Ok(taken)
            }
        }

        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> &RawValue {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn an_id_decides_where_there_is_one_and_the_bytes_where_there_is_none() {
        let of = |id: Option<&str>, line: &str| Identity::new(&[], id.map(raw), line.as_bytes());
        assert_eq!(of(Some("\"a\""), "one"), of(Some("\"a\""), "two"));
        assert_ne!(of(Some("\"a\""), "one"), of(Some("\"b\""), "one"));
        assert_eq!(of(Some("7"), "one"), of(Some("7"), "two"));
        for none in [None, Some("null"), Some("\"\""), Some("{}"), Some("[1]"), Some("true")] {
            assert_ne!(of(none, "one"), of(none, "two"), "{none:?}");
            assert_eq!(of(none, "one"), of(None, "one"), "{none:?}");
        }
        assert_ne!(of(Some("7"), ""), of(None, "7"));
        let within = |scope: &[&str]| Identity::new(scope, Some(raw("1")), b"");
        assert_ne!(within(&["a", "bc"]), within(&["ab", "c"]));
    }

    #[test]
    fn a_set_reads_back_as_it_was_written_and_forgets_what_is_old() {
        let mut taken = Taken::default();
        let marks = [-5, 0, 7, 1_700_000_000_000].map(|at| {
            let mark = Mark::new(&[], None, &at.to_string().into_bytes());
            assert_eq!([taken.insert(&mark, at), taken.insert(&mark, at)], [Known::No, Known::Yes]);
            mark
        });
        let text = serde_json::to_string(&taken).unwrap();
        assert_eq!(serde_json::from_str::<Taken>(&text).unwrap(), taken);
        assert_eq!([taken.newest_until(100), taken.newest_until(-1)], [Some(7), None]);
        taken.forget_before(1);
        let known = marks.map(|mark| taken.knows(&mark) == Known::Yes);
        assert_eq!(known, [false, false, true, true]);
        assert!(serde_json::from_str::<Taken>("\"AAAA\"").is_err());
    }

    #[test]
    fn of_events_with_one_id_and_other_bytes_each_is_taken_once_in_any_order() {
        let id = Some(raw("\"a\""));
        let [one, two, three] = ["one", "two", "three"].map(|line| Mark::new(&["d"], id, line.as_bytes()));
        let mut taken = Taken::default();
        assert_eq!([&one, &two, &three].map(|mark| taken.insert(mark, 1)), [Known::No, Known::Other, Known::Other]);
        assert_eq!([&three, &two, &one].map(|mark| taken.insert(mark, 1)), [Known::Yes; 3]);
        // A start may know an event by its bytes alone.
        let mut found = Taken::default();
        assert_eq!(found.insert(&Mark::new(&["d"], None, b"two"), 1), Known::No);
        assert_eq!([&two, &one].map(|mark| found.insert(mark, 1)), [Known::Yes, Known::No]);
    }

    #[test]
    fn a_redacted_or_cut_event_is_known_by_its_id_whatever_the_settings_are() {
        let id = Some(raw("\"a\""));
        let whole = r#"{"id":"a","customEnv0EnvironmentVariables":{"oidcToken":"t"},"text":"long"}"#;
        for altered in
            [whole.replace("\"t\"", "\"[redacted]\""), r#"{"id":"a","cutFromBytes":80,"beginning":""}"#.into()]
        {
            let marks = [whole, &altered].map(|line| Mark::new(&["d"], id, line.as_bytes()));
            for [before, after] in [[&marks[0], &marks[1]], [&marks[1], &marks[0]]] {
                let mut taken = Taken::default();
                assert_eq!([taken.insert(before, 1), taken.insert(after, 1)], [Known::No, Known::Yes]);
            }
        }
    }

    #[test]
    fn an_event_without_an_id_is_known_by_either_line_and_one_with_an_id_by_that_alone() {
        let line =
            |json: &str| Line { bytes: format!("{json}\n").into_bytes().into(), redacted: 0, replaced: 0, cut: false };
        let [redacted, sent, another] = [r#"{"a":"[redacted]"}"#, r#"{"a":"secret"}"#, r#"{"a":"other"}"#];
        for (before, now) in [(redacted, sent), (sent, redacted)] {
            // As an earlier version has written it, and as a start finds it in the spool.
            let mut taken = Taken::default();
            taken.insert(&Mark::new(&["d"], None, before.as_bytes()), 1);
            let mark = Mark::new(&["d"], None, now.as_bytes()).or(&["d"], &line(now), std::iter::once(line(before)));
            let [other, elsewhere] = [(&["d"], another), (&["e"], before)].map(|(scope, before)| {
                Mark::new(scope, None, now.as_bytes()).or(scope, &line(now), std::iter::once(line(before)))
            });
            assert_eq!([&mark, &other, &elsewhere].map(|mark| taken.knows(mark)), [Known::Yes, Known::No, Known::No]);
            let first = Identity::new(&["d"], None, before.as_bytes());
            assert!(mark.may_be(first) && !other.may_be(first));
        }
        let none = std::iter::from_fn(|| panic!("no other line is made of it"));
        Mark::new(&[], Some(raw("7")), b"").or(&[], &line(sent), none);
    }

    #[test]
    fn an_event_that_an_earlier_version_took_is_known_whatever_its_bytes() {
        let id = Some(raw("\"a\""));
        let Mark { id: identity, .. } = Mark::new(&[], id, b"one");
        let entry = [&1_700_000_000_000_i64.to_be_bytes()[..], &identity.0].concat();
        let text = format!("\"{}\"", STANDARD_NO_PAD.encode(entry));
        let taken: Taken = serde_json::from_str(&text).unwrap();
        assert_eq!(taken.knows(&Mark::new(&[], id, b"two")), Known::Yes);
        assert_eq!(taken.newest_until(i64::MAX), Some(1_700_000_000_000));
    }
}
