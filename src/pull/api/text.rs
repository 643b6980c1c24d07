//! Makes JSON of an answer that nearly is: one byte in one message must not hold up all that stands beside it.

use std::ops::Range;

use bytes::Bytes;
use serde::de::IgnoredAny;

const BOM: &[u8] = b"\xef\xbb\xbf";
const REPLACEMENT: &str = "\u{fffd}";
/// So many places are told apart; a page of a whole log in Latin-1 has some hundred thousand. They are only for figures
/// and messages, and each takes sixteen bytes.
const PLACES_MAX: usize = 500_000;

/// An answer's body as text.
pub(super) struct Text {
    pub(super) bytes: Bytes,
    /// Where U+FFFD stands for bytes that were not UTF-8, and for how many; in order. The last of
    /// [`PLACES_MAX`] counts for all behind it.
    pub(super) replaced: Vec<(usize, u64)>,
    /// Where a word that JSON doesn't have became a string; in order, up to [`PLACES_MAX`].
    pub(super) quoted: Vec<usize>,
}

/// What became of a piece of the body.
enum Made {
    AsItCame,
    /// It stands for so many bytes that were not UTF-8.
    Replaced(u64),
    Quoted,
}

impl Text {
    /// `body` without a byte order mark, with U+FFFD in place of bytes that are not UTF-8, with control
    /// characters within strings escaped, and with words that JSON doesn't have (`NaN`, `-Infinity`) as strings.
    /// Everything else stays byte for byte, and it is copied only where something changes. `None` where the copy
    /// would have more than `max_bytes`.
    pub(super) fn of(mut body: Bytes, max_bytes: usize) -> Option<Text> {
        if body.starts_with(BOM) {
            body = body.slice(BOM.len()..);
        }
        let (mut len, mut is_same) = (0, true);
        mend(&body, |piece, made| {
            len += piece.len();
            is_same &= matches!(made, Made::AsItCame);
        });
        if is_same && len == body.len() {
            return Some(Text { bytes: body, replaced: Vec::new(), quoted: Vec::new() });
        }
        if len > max_bytes {
            return None;
        }
        let (mut mended, mut replaced, mut quoted) = (String::with_capacity(len), Vec::new(), Vec::new());
        mend(&body, |piece, made| {
            match made {
                Made::AsItCame => {}
                Made::Replaced(bytes) if replaced.len() < PLACES_MAX => replaced.push((mended.len(), bytes)),
                Made::Replaced(bytes) => replaced.last_mut().into_iter().for_each(|(_, last)| *last += bytes),
                Made::Quoted if quoted.len() < PLACES_MAX => quoted.push(mended.len()),
                Made::Quoted => {}
            }
            mended.push_str(piece);
        });
        Some(Text { bytes: mended.into(), replaced, quoted })
    }
}

/// Gives `put` the pieces of the mended text.
fn mend(body: &[u8], mut put: impl FnMut(&str, Made)) {
    // What is no object and no list is no answer of env0's, and stays what it is.
    let is_json = matches!(body.trim_ascii_start().first(), Some(b'{' | b'['));
    let (mut in_string, mut is_escaped) = (false, false);
    for chunk in body.utf8_chunks() {
        let valid = chunk.valid();
        let (mut begin, mut word) = (0, None);
        for (at, byte) in valid.bytes().enumerate() {
            let ends_word =
                matches!(byte, b'{' | b'}' | b'[' | b']' | b':' | b',' | b'"' | b' ' | b'\t' | b'\n' | b'\r');
            match word {
                None if is_json && !in_string && !ends_word => word = Some(at),
                Some(first) if ends_word => {
                    begin = put_word(valid, begin, first..at, &mut put);
                    word = None;
                }
                _ => {}
            }
            match byte {
                0..0x20 if in_string => {
                    put(&valid[begin..at], Made::AsItCame);
                    put(&format!("\\u{byte:04x}"), Made::AsItCame);
                    begin = at + 1;
                }
                b'"' if !is_escaped => in_string = !in_string,
                _ => {}
            }
            is_escaped = in_string && byte == b'\\' && !is_escaped;
        }
        put(&valid[begin..], Made::AsItCame);
        if !chunk.invalid().is_empty() {
            put(REPLACEMENT, Made::Replaced(chunk.invalid().len() as u64));
            is_escaped = false;
        }
    }
}

/// Puts what lies between `begin` and a word outside of strings, and the word as a string, if JSON doesn't have it.
/// Returns what is put up to.
fn put_word(text: &str, begin: usize, word: Range<usize>, put: &mut impl FnMut(&str, Made)) -> usize {
    if serde_json::from_str::<IgnoredAny>(&text[word.clone()]).is_ok() {
        return begin;
    }
    put(&text[begin..word.start], Made::AsItCame);
    put(&serde_json::Value::from(&text[word.clone()]).to_string(), Made::Quoted);
    word.end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(body: &'static [u8]) -> (String, Vec<(usize, u64)>) {
        let text = Text::of(Bytes::from_static(body), 100).unwrap();
        (String::from_utf8(text.bytes.to_vec()).unwrap(), text.replaced)
    }

    #[test]
    fn bytes_that_are_not_utf8_are_replaced_and_counted_where_they_stood() {
        let body = b"{\"a\":\"\xff\xfe\",\"b\":\"\xc3\xa9\xe2\x82\"}";
        let expected = "{\"a\":\"\u{fffd}\u{fffd}\",\"b\":\"é\u{fffd}\"}";
        assert_eq!(text(body), (expected.to_owned(), vec![(6, 1), (9, 1), (21, 2)]));
        assert!(Text::of(Bytes::from_static(b"\xff\xff"), 5).is_none());
    }

    #[test]
    fn of_more_places_than_are_told_apart_the_last_counts_for_all_behind_it() {
        let odd = PLACES_MAX + 10;
        let body = [b"[\"", &b"a\xff".repeat(odd)[..], b"\",", &b"x,".repeat(odd)].concat();
        let text = Text::of(body.into(), 9 * odd).unwrap();
        assert_eq!((text.replaced.len(), text.quoted.len()), (PLACES_MAX, PLACES_MAX));
        assert_eq!(text.replaced.iter().map(|(_, bytes)| *bytes).sum::<u64>(), odd as u64);
    }

    #[test]
    fn control_characters_and_words_that_json_does_not_have_become_parts_of_strings() {
        let body = b"\xef\xbb\xbf{\n\t\"a\": \"\\\"\x00\x1b[32m\r\n\\\\\",\n \"b\":\"\\ud800\"}";
        let expected = "{\n\t\"a\": \"\\\"\\u0000\\u001b[32m\\u000d\\u000a\\\\\",\n \"b\":\"\\ud800\"}";
        assert_eq!(text(body), (expected.to_owned(), vec![]));
        let words = b"{\"a\":NaN,\"b\" : [-Infinity, 1.50e+3,\ttrue,01],\"c\":\"NaN\"}";
        let quoted = Text::of(Bytes::from_static(words), 100).unwrap();
        let expected = "{\"a\":\"NaN\",\"b\" : [\"-Infinity\", 1.50e+3,\ttrue,\"01\"],\"c\":\"NaN\"}";
        assert_eq!((&*quoted.bytes, quoted.quoted), (expected.as_bytes(), vec![5, 18, 45]));
        for same in [&b"{\n\"a\": \"\\\\\",\n\"b\":1.50}"[..], b"", b"nothing \\ of \x01 JSON"] {
            assert_eq!(text(same).0.as_bytes(), same);
        }
    }
}
