//! Walks the members of objects and the elements of arrays in JSON that was validated before. Does not collect them,
//! because two bytes of JSON would take sixteen in memory.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::error::BodyError;
use super::redact;

/// The longest member name that a refusal repeats.
const NAME_MAX_BYTES: usize = 40;

/// The members of a JSON object, in order; any other value has none.
pub struct Members<'a>(&'a str);

impl<'a> Members<'a> {
    /// Those of `value`.
    pub fn of(value: &'a RawValue) -> Self {
        Members(value.get().strip_prefix('{').unwrap_or_default())
    }
}

impl<'a> Iterator for Members<'a> {
    /// The key as it is written, with its quotes, and the value.
    type Item = (&'a str, &'a RawValue);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = next_token(self.0);
        if !rest.starts_with('"') {
            return None;
        }
        let (key, rest) = rest.split_at(redact::string_len(rest.as_bytes()));
        let (value, rest) = first_value(next_token(rest).strip_prefix(':')?)?;
        self.0 = rest;
        Some((key, value))
    }
}

/// The elements of a JSON array, in order; any other value has none.
pub struct Elements<'a>(&'a str);

impl<'a> Elements<'a> {
    /// Those of `value`.
    pub fn of(value: &'a RawValue) -> Self {
        Elements(value.get().strip_prefix('[').unwrap_or_default())
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a RawValue;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = next_token(self.0);
        if rest.is_empty() || rest.starts_with(']') {
            return None;
        }
        let (value, rest) = first_value(rest)?;
        self.0 = rest;
        Some(value)
    }
}

/// The rest after the white space and the comma before a member or element.
pub fn next_token(rest: &str) -> &str {
    rest.trim_start_matches([' ', '\t', '\n', '\r', ','])
}

/// The value that `rest` begins with, and the rest after it.
pub fn first_value(rest: &str) -> Option<(&RawValue, &str)> {
    let mut values = serde_json::Deserializer::from_str(rest).into_iter();
    let value = values.next()?.ok()?;
    Some((value, &rest[values.byte_offset()..]))
}

/// The text of a JSON string; `None` for any other value, and for a string with half a
/// surrogate pair, which is no text.
pub fn text_of(value: &str) -> Option<Cow<'_, str>> {
    if value.contains('\\') {
        return serde_json::from_str(value).ok().map(Cow::Owned);
    }
    value.strip_prefix('"')?.strip_suffix('"').map(Cow::Borrowed)
}

/// Whether a value is `text`: a string, or a number or word that is written so.
pub fn says(value: &RawValue, text: &str) -> bool {
    value.get() == text || text_of(value.get()).as_deref() == Some(text)
}

/// The values of `names` among the members of `object`; of duplicates the last.
pub fn members<'a, const N: usize>(object: &'a RawValue, names: [&str; N]) -> [Option<&'a RawValue>; N] {
    let mut found = [None; N];
    for (key, value) in Members::of(object) {
        let key = text_of(key);
        if let Some(index) = names.iter().position(|name| key.as_deref() == Some(name)) {
            found[index] = Some(value);
        }
    }
    found
}

/// The values of `names`, each in all its spellings, among the members of `object`, which is a part of `body` in event
/// number `event`. `null` counts as missing. Refuses any other member, and one that is there twice, because a value
/// that is not read would be lost. `holder` says in errors what the object is.
pub fn only_members<'a, const N: usize>(
    body: &[u8],
    object: &'a RawValue,
    names: [&[&str]; N],
    event: u64,
    holder: &str,
) -> Result<[Option<&'a RawValue>; N], BodyError> {
    let mut found = [None; N];
    for (key, value) in Members::of(object) {
        let name = text_of(key);
        let invalid = |complaint: &str| {
            let reason = format!("{} {complaint} {holder}", printable(name.as_deref()));
            BodyError::invalid(body, key.as_bytes(), event, reason)
        };
        let known = names.iter().position(|spellings| spellings.iter().any(|known| name.as_deref() == Some(known)));
        let index = known.ok_or_else(|| invalid("is not a known member of"))?;
        if found[index].replace(value).is_some() {
            return Err(invalid("is there twice in"));
        }
    }
    Ok(found.map(|value| value.filter(|value| value.get() != "null")))
}

/// A member's name for a refusal. Only short words are repeated: anything else may be a value of the sender's.
pub fn printable(name: Option<&str>) -> Cow<'static, str> {
    let is_plain = |name: &&str| {
        name.len() <= NAME_MAX_BYTES && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
    };
    match name.filter(is_plain) {
        Some(name) => format!("`{name}`").into(),
        None => "a member".into(),
    }
}
