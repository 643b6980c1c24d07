//! From an event as env0 sent it to the line that is stored.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::protocols::body::{BodyError, Limits, LineWriter, members};

/// Room for the mark of a cut event and the members that it keeps.
const MARK_MAX_BYTES: usize = 1024;
/// A longer value is not kept beside the beginning of a cut event.
pub(super) const KEPT_MAX_BYTES: usize = 256;

/// One stored line.
pub(super) struct Line {
    /// Ends in `\n`.
    pub(super) bytes: Bytes,
    /// Events in it with a redacted value: 0 or 1.
    pub(super) redacted: u64,
    /// Bytes of the event that were not UTF-8, and are stored as U+FFFD.
    pub(super) replaced: u64,
    /// Whether it is only the beginning of an event larger than `ENV0_S3_LOG_MAX_EVENT_BYTES`.
    pub(super) cut: bool,
}

impl Line {
    /// The line without its `\n`.
    pub(super) fn json(&self) -> &[u8] {
        &self.bytes[..self.bytes.len() - 1]
    }

    /// The limits that may make another line of the same `event`: without one for its length where it was cut, which is the
    /// first then; the `former` values of `ENV0_S3_LOG_MAX_EVENT_BYTES`; and each with the other value of
    /// `ENV0_S3_LOG_REDACT`, too.
    pub(super) fn other_limits<'a>(
        &self,
        event: &RawValue,
        limits: &Limits,
        former: &'a [usize],
    ) -> impl Iterator<Item = Limits> + use<'a> {
        let (now, redact) = (*limits, (self.redacted > 0 || !limits.redact).then_some(!limits.redact));
        // Redacted or not, no line is longer than this.
        let longest = 2 * (event.get().len() + self.bytes.len());
        let former = former.iter().copied().filter(move |former| *former < longest);
        let lengths = self.cut.then_some(usize::MAX).into_iter().chain(former);
        let others = lengths.map(move |max_event_bytes| Limits { max_event_bytes, ..now });
        let redacted = std::iter::once(now).chain(others.clone());
        others.chain(redacted.filter_map(move |limits| Some(Limits { redact: redact?, ..limits })))
    }
}

/// The JSON of a stored line.
pub(super) fn json_of(line: &[u8]) -> &RawValue {
    serde_json::from_slice(line).unwrap_or(RawValue::NULL)
}

/// The members of an event as it was sent, without braces. What is not an object becomes the message of one.
pub(super) fn inner(event: &RawValue) -> Cow<'_, str> {
    let object = event.get().strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    object.map_or_else(|| format!("\"message\":{}", event.get()).into(), Cow::Borrowed)
}

/// The line of `event`, byte for byte as it was sent where it is an object on one line and holds nothing to redact. Of one
/// that is too large the beginning is kept, with a mark and the members `kept`.
pub(super) fn stored<const N: usize>(event: &RawValue, kept: [&'static str; N], limits: &Limits) -> Line {
    if let Cow::Owned(inner) = inner(event)
        && let Ok(object) = RawValue::from_string(format!("{{{inner}}}"))
    {
        return stored(&object, kept, limits);
    }
    written(event, limits).unwrap_or_else(|_| beginning(event, kept, limits))
}

fn written(event: &RawValue, limits: &Limits) -> Result<Line, BodyError> {
    // As much memory is reserved where a long line is redacted. `"[redacted]"` makes no event twice as long.
    let max_lines_bytes = limits.max_event_bytes.saturating_add(1).min(2 * event.get().len() + 64);
    let limits = Limits { max_lines_bytes, ..*limits };
    let mut writer = LineWriter::with_capacity(&limits, event.get().len() + 1);
    writer.push(None, event)?;
    let lines = writer.finish().into_iter().map(|part| part.lines).next().unwrap_or_default();
    Ok(Line { bytes: lines.bytes, redacted: lines.redacted, replaced: 0, cut: false })
}

/// `{"id":…,"timestamp":…,"cutFromBytes":<size>,"beginning":"<the event's first bytes>"}`
fn beginning<const N: usize>(event: &RawValue, kept: [&'static str; N], limits: &Limits) -> Line {
    // Redacted before it is cut, because half a secret would not be recognized any more.
    let whole = Limits { max_event_bytes: event.get().len().saturating_mul(2), ..*limits };
    let whole = written(event, &whole);
    let text = whole.as_ref().map_or("", |line| std::str::from_utf8(line.json()).unwrap_or_default());
    // Quotes and backslashes take two bytes within a string.
    let mut end = limits.max_event_bytes.saturating_sub(MARK_MAX_BYTES) / 2;
    while !text.is_char_boundary(end.min(text.len())) {
        end -= 1;
    }
    let mut line = String::from("{");
    for (name, value) in kept.into_iter().zip(members(event, kept)) {
        if let Some(value) = value.filter(|value| value.get().len() <= KEPT_MAX_BYTES) {
            line += &format!("\"{name}\":{value},");
        }
    }
    let beginning = serde_json::Value::from(&text[..end.min(text.len())]);
    line += &format!("\"cutFromBytes\":{},\"beginning\":{beginning}}}\n", event.get().len());
    let redacted = whole.map_or(0, |line| line.redacted);
    Line { bytes: line.into(), redacted, replaced: 0, cut: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(max_event_bytes: usize) -> Limits {
        Limits { max_body_bytes: usize::MAX, max_lines_bytes: usize::MAX, max_event_bytes, redact: true }
    }

    fn line(event: &str, max_event_bytes: usize) -> Line {
        stored(serde_json::from_str(event).unwrap(), ["id", "timestamp"], &limits(max_event_bytes))
    }

    #[test]
    fn an_event_is_stored_byte_for_byte_and_what_is_no_object_as_a_message() {
        let event = r#"{"b" : 1.50,"a":"\u00e9", "a":[ ]}"#;
        let line_of = line(event, 1000);
        assert_eq!((line_of.json(), line_of.cut), (event.as_bytes(), false));
        assert_eq!(line("{\"a\":\n 1}", 1000).json(), br#"{"a":1}"#);
        for other in ["[]", "null", "\"{}\"", "7"] {
            assert_eq!(line(other, 1000).json(), format!("{{\"message\":{other}}}").as_bytes());
        }
    }

    #[test]
    fn a_secret_behind_a_long_text_is_redacted_whatever_the_limit_is() {
        for len in [500_000, 600_000, 3_000_000] {
            let text = "y".repeat(len);
            let event = format!(r#"{{"x":"{text}","customEnv0EnvironmentVariables":{{"oidcToken":""}}}}"#);
            for max_event_bytes in [1 << 20, 16 << 20, usize::MAX] {
                let line = line(&event, max_event_bytes);
                assert_eq!((line.redacted, line.cut), (1, len > max_event_bytes), "{len} {max_event_bytes}");
            }
        }
    }

    #[test]
    fn an_event_over_the_limit_keeps_its_id_its_beginning_and_a_mark_and_no_secret() {
        let secret = r#""customEnv0EnvironmentVariables":{"oidcToken":"canary"}"#;
        let event = format!(r#"{{"id":"e-1",{secret},"text":"{}é"}}"#, r#"\"é"#.repeat(2000));
        let line = line(&event, 4096);
        assert!(line.cut && line.bytes.len() <= 4096 && line.bytes.len() > 2048, "{}", line.bytes.len());
        let json: serde_json::Value = serde_json::from_slice(line.json()).unwrap();
        assert_eq!((json["id"].as_str(), json["cutFromBytes"].as_u64()), (Some("e-1"), Some(event.len() as u64)));
        let beginning = json["beginning"].as_str().unwrap();
        assert!(beginning.starts_with(r#"{"id":"e-1","customEnv0"#) && !beginning.contains("canary"), "{beginning}");
        assert_eq!(line.redacted, 1);
    }
}
