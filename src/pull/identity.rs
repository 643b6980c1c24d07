//! Which events were taken: an event's identity, and sets of them that fit into a file.

use std::collections::HashMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::batch::Sha256;

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
        let scope = scope.iter().flat_map(|part| [part.as_bytes(), b"\0"]).collect::<Vec<_>>().concat();
        let Sha256(hash) = Sha256::of(&[&scope, &[kind][..], bytes].concat());
        let mut first = [0; 16];
        first.copy_from_slice(&hash[..16]);
        Identity(first)
    }
}

/// Whether the value can identify an event: a string that is not empty, or a number.
pub(super) fn is_id(json: &str) -> bool {
    (json.starts_with('"') && json.len() > 2) || json.starts_with(|first: char| first.is_ascii_digit() || first == '-')
}

/// Identities, each with the time of its event, in milliseconds since 1970. As JSON it is one string of base64, 24
/// bytes an event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Taken(HashMap<Identity, i64>);

const ENTRY_BYTES: usize = 24;
/// In base64, without a rest: pieces of the text can be put together.
const ENTRY_TEXT_BYTES: usize = ENTRY_BYTES / 3 * 4;
/// Events that are written or read at once.
const PIECE_ENTRIES: usize = 1024;

impl Taken {
    /// False if it was already in the set.
    pub(super) fn insert(&mut self, identity: Identity, at_millis: i64) -> bool {
        self.0.insert(identity, at_millis).is_none()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn contains(&self, identity: &Identity) -> bool {
        self.0.contains_key(identity)
    }

    /// Forgets the events before `millis`: they are not asked for again.
    pub(super) fn forget_before(&mut self, millis: i64) {
        self.0.retain(|_, at| *at >= millis);
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
        let mut entries = self.0.iter();
        let mut bytes = Vec::with_capacity(PIECE_ENTRIES * ENTRY_BYTES);
        loop {
            bytes.clear();
            for (identity, at) in entries.by_ref().take(PIECE_ENTRIES) {
                bytes.extend_from_slice(&at.to_be_bytes());
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
                let mut taken = Taken(HashMap::with_capacity(text.len() / ENTRY_TEXT_BYTES));
                for piece in text.as_bytes().chunks(PIECE_ENTRIES * ENTRY_TEXT_BYTES) {
                    let bytes = STANDARD_NO_PAD.decode(piece).map_err(E::custom)?;
                    let (entries, rest) = bytes.as_chunks::<ENTRY_BYTES>();
                    if !rest.is_empty() {
                        return Err(E::custom("events of another length"));
                    }
                    for entry in entries {
                        let (mut at, mut identity) = ([0; 8], [0; 16]);
                        at.copy_from_slice(&entry[..8]);
                        identity.copy_from_slice(&entry[8..]);
                        taken.insert(Identity(identity), i64::from_be_bytes(at));
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
        let ids = [-5, 0, 1_700_000_000_000].map(|at| {
            let identity = Identity::new(&[], None, &at.to_string().into_bytes());
            assert!(taken.insert(identity, at) && !taken.insert(identity, at));
            identity
        });
        let text = serde_json::to_string(&taken).unwrap();
        assert_eq!(serde_json::from_str::<Taken>(&text).unwrap(), taken);
        taken.forget_before(0);
        assert_eq!(ids.map(|id| taken.contains(&id)), [false, true, true]);
        assert!(serde_json::from_str::<Taken>("\"AAAA\"").is_err());
    }
}
