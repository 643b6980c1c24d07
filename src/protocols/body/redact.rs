//! Finds and replaces secrets in events: the string values of `oidcToken` and `vcsAccessToken` directly inside an
//! object that is the value of `customEnv0EnvironmentVariables`, at any depth, however the keys are escaped. env0's API
//! puts them there. OTLP writes an object as a list of pairs, which counts as the object that it stands for:
//!
//! ```json
//! {"key":"customEnv0EnvironmentVariables","value":{"kvlistValue":{"values":[
//!   {"key":"oidcToken","value":{"stringValue":"…"}}]}}}
//! ```
//!
//! JSON inside strings is not searched.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::LazyLock;

use memchr::memmem::Finder;

pub(super) const HOLDER: &str = "customEnv0EnvironmentVariables";
const SECRETS: [&str; 2] = ["oidcToken", "vcsAccessToken"];
/// The bytes of an escape such as `\u0063`.
const ESCAPE_BYTES: usize = 6;
const REPLACEMENT: &[u8] = br#""[redacted]""#;

/// How many containers a pair in OTLP's notation is within the object whose `key` names the list.
const PAIR_DEPTH: usize = 4;

static HOLDER_FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(HOLDER));
static ESCAPE_FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(r"\u00"));

/// False for JSON that surely has no secret. Takes a fraction of the time that reading it takes.
///
/// JSON with a secret has the holder's key, literally or with at least one of its letters escaped. (The `\u001b` and
/// `\u003e` that are frequent in logs stand for none of its letters.)
pub(super) fn may_hold_secret(json: &[u8]) -> bool {
    let is_of_holder = |escape: usize| {
        let digits = json.get(escape + 4..escape + 6).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        byte.is_some_and(|byte| HOLDER.as_bytes().contains(&byte))
    };
    HOLDER_FINDER.find(json).is_some() || ESCAPE_FINDER.find_iter(json).any(is_of_holder)
}

/// Whether a JSON string, with its quotes, is the holder's name, however it is escaped.
pub(super) fn is_holder(quoted: &[u8], has_escape: bool) -> bool {
    let text = &quoted[1..quoted.len() - 1];
    if !has_escape {
        return text == HOLDER.as_bytes();
    }
    // Most texts with an escape are told by their first letter, which is `c`. Unescaping takes memory.
    let begins_so = text.starts_with(b"c") || text.starts_with(br"\u0063");
    begins_so && text.len() <= ESCAPE_BYTES * HOLDER.len() && Key::of(quoted) == Key::Holder
}

/// The ranges of the values to be redacted in a valid JSON text, quotes included, in order. Iterative.
pub(super) fn secrets(json: &[u8]) -> Vec<Range<usize>> {
    let mut search = Search::default();
    // The last string: a key if a `:` follows.
    let mut last_string = 0..0;
    let mut key = Key::Other;
    let mut at = 0;
    while let Some(&byte) = json.get(at) {
        match byte {
            b'"' => {
                let end = at + string_len(&json[at..]);
                last_string = at..end;
                if key != Key::Other {
                    search.text(key, &json[at..end], last_string.clone());
                }
                at = end;
                continue;
            }
            b':' => key = Key::of(&json[last_string.clone()]),
            b'{' | b'[' => {
                search.open(key, byte == b'{');
                key = Key::Other;
            }
            b'}' | b']' => {
                search.close();
                key = Key::Other;
            }
            b',' => key = Key::Other,
            _ => {}
        }
        at += 1;
    }
    search.found.sort_unstable_by_key(|secret| secret.start);
    search.found
}

/// The search for secrets in one event. A container takes two bytes, because there may be
/// as many as the event has bytes.
#[derive(Default)]
struct Search {
    /// The open containers, the innermost last.
    open: Vec<Container>,
    found: Vec<Range<usize>>,
    /// The values in pairs that are still open, by the pair's depth. A pair's `key` may follow its `value`.
    in_pairs: BTreeMap<usize, Vec<Range<usize>>>,
    /// The values in pairs that name a secret, by the depth of the object whose `key` names their list.
    in_lists: BTreeMap<usize, Vec<Range<usize>>>,
}

impl Search {
    fn within(&self) -> Within {
        self.open.last().map_or(Within::Other, |container| container.within)
    }

    /// A string that is the value of a member.
    fn text(&mut self, key: Key, text: &[u8], range: Range<usize>) {
        let depth = self.open.len();
        let is_in_pair = || depth >= 2 && self.open[depth - 2].within == Within::Pair;
        match (key, self.within()) {
            (Key::Secret, Within::Holder) if text != REPLACEMENT => self.found.push(range),
            (Key::StringValue, Within::Value) if text != REPLACEMENT && is_in_pair() => {
                self.in_pairs.entry(depth - 1).or_default().push(range);
            }
            // Some senders write a value as plain text.
            (Key::Value, Within::Pair) if text != REPLACEMENT => self.in_pairs.entry(depth).or_default().push(range),
            (Key::Name, _) => {
                if let (Some(container), named @ (Key::Holder | Key::Secret)) = (self.open.last_mut(), Key::of(text)) {
                    container.named = named;
                }
            }
            _ => {}
        }
    }

    fn open(&mut self, key: Key, is_object: bool) {
        let within = match (key, self.within(), is_object) {
            (Key::Holder, _, true) => Within::Holder,
            (Key::Value, _, true) => Within::Value,
            (Key::KvList, Within::Value, true) => Within::KvList,
            (Key::Values, Within::KvList, false) => Within::Pairs,
            (_, Within::Pairs, true) => Within::Pair,
            _ => Within::Other,
        };
        self.open.push(Container { within, named: Key::Other });
    }

    fn close(&mut self) {
        let depth = self.open.len();
        let Some(Container { named, .. }) = self.open.pop() else { return };
        if let Some(secrets) = self.in_lists.remove(&depth)
            && named == Key::Holder
        {
            self.found.extend(secrets);
        }
        if let Some(secrets) = self.in_pairs.remove(&depth)
            && named == Key::Secret
        {
            self.in_lists.entry(depth.saturating_sub(PAIR_DEPTH)).or_default().extend(secrets);
        }
    }
}

/// An open object or array.
#[derive(Clone, Copy)]
struct Container {
    within: Within,
    /// What its member `key` names.
    named: Key,
}

/// What a container is for the search, and so where its members are.
#[derive(Clone, Copy, PartialEq)]
enum Within {
    /// The object that is the value of the holder's key.
    Holder,
    /// The object in a member `value`.
    Value,
    /// The object in a value's member `kvlistValue`.
    KvList,
    /// The array in its member `values`.
    Pairs,
    /// An element of that array.
    Pair,
    Other,
}

/// Writes `json` with `"[redacted]"` in place of each of `secrets`.
pub(super) fn write_without(json: &[u8], secrets: &[Range<usize>], out: &mut impl Write) -> io::Result<()> {
    let mut from = 0;
    for secret in secrets {
        out.write_all(&json[from..secret.start])?;
        out.write_all(REPLACEMENT)?;
        from = secret.end;
    }
    out.write_all(&json[from..])
}

/// Length of the JSON string that `json` begins with, quotes included; 0 where there is nothing.
pub(super) fn string_len(json: &[u8]) -> usize {
    let mut at = 1;
    while let Some(next) = json.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += next;
        if json[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    json.len()
}

/// What the key before the current value is; `Other` also where there is no key.
#[derive(Clone, Copy, PartialEq)]
enum Key {
    Holder,
    Secret,
    /// `key`, whose value is the name of a pair.
    Name,
    Value,
    KvList,
    Values,
    StringValue,
    Other,
}

impl Key {
    fn of(quoted: &[u8]) -> Key {
        let unescaped: String;
        let key = if memchr::memchr(b'\\', quoted).is_none() {
            quoted.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(quoted)
        } else {
            // A key with half a surrogate pair can't be unescaped, and is none of the names.
            unescaped = serde_json::from_slice(quoted).unwrap_or_default();
            unescaped.as_bytes()
        };
        match key {
            _ if key == HOLDER.as_bytes() => Key::Holder,
            _ if SECRETS.iter().any(|secret| key == secret.as_bytes()) => Key::Secret,
            b"key" => Key::Name,
            b"value" => Key::Value,
            b"kvlistValue" | b"kvlist_value" => Key::KvList,
            b"values" => Key::Values,
            b"stringValue" | b"string_value" => Key::StringValue,
            _ => Key::Other,
        }
    }
}
