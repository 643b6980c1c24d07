//! Finds and replaces secrets in events: the string values of `oidcToken` and `vcsAccessToken` directly inside an object
//! that is the value of `customEnv0EnvironmentVariables`, at any depth, however the keys are escaped. env0's API puts them
//! there. JSON inside strings is not searched.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::LazyLock;

use memchr::memmem::Finder;

pub(super) const HOLDER: &str = "customEnv0EnvironmentVariables";
const SECRETS: [&str; 2] = ["oidcToken", "vcsAccessToken"];
const REPLACEMENT: &[u8] = br#""[redacted]""#;

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

/// The ranges of the values to be redacted in a valid JSON text, quotes included, in order. Iterative.
pub(super) fn secrets(json: &[u8]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut open = Vec::new();
    let mut scope = Scope::Other;
    // The last string: a key if a `:` follows.
    let mut last_string = 0..0;
    let mut key = Key::Other;
    let mut at = 0;
    while let Some(&byte) = json.get(at) {
        match byte {
            b'"' => {
                let end = at + string_len(&json[at..]);
                last_string = at..end;
                let is_secret = scope == Scope::Holder && key == Key::Secret;
                if is_secret && &json[last_string.clone()] != REPLACEMENT {
                    found.push(last_string.clone());
                }
                at = end;
                continue;
            }
            b':' => key = Key::of(&json[last_string.clone()]),
            b'{' | b'[' => {
                open.push(scope);
                scope = if byte == b'{' && key == Key::Holder { Scope::Holder } else { Scope::Other };
                key = Key::Other;
            }
            b'}' | b']' => {
                scope = open.pop().unwrap_or(Scope::Other);
                key = Key::Other;
            }
            b',' => key = Key::Other,
            _ => {}
        }
        at += 1;
    }
    found
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

/// Whether the innermost open object is the value of the holder's key.
#[derive(Clone, Copy, PartialEq)]
enum Scope {
    Holder,
    Other,
}

/// What the key before the current value is; `Other` also where there is no key.
#[derive(Clone, Copy, PartialEq)]
enum Key {
    Holder,
    Secret,
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
        if key == HOLDER.as_bytes() {
            Key::Holder
        } else if SECRETS.iter().any(|secret| key == secret.as_bytes()) {
            Key::Secret
        } else {
            Key::Other
        }
    }
}
