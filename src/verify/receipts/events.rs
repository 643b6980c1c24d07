//! The events that a client kept with a receipt, held against stored lines.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Take};
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;

/// The elements of a JSON array in a file, which was read once and found to be JSON.
pub(super) struct SentEvents(Take<BufReader<File>>);

impl SentEvents {
    /// `elements` is what stands between the brackets, in bytes.
    pub(super) fn open(path: &Path, elements: &Range<u64>) -> io::Result<SentEvents> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(elements.start))?;
        Ok(SentEvents(BufReader::new(file).take(elements.end - elements.start)))
    }

    /// The next element, without space around it; none after the last.
    pub(super) fn next(&mut self) -> io::Result<Option<String>> {
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
pub(super) fn stands_for(sent: &str, stored: &[u8]) -> bool {
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

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

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
