//! Makes JSON of an answer that nearly is: one byte in one message must not hold up all that stands beside it.

use bytes::Bytes;

const BOM: &[u8] = b"\xef\xbb\xbf";
const REPLACEMENT: &str = "\u{fffd}";

/// An answer's body as text.
pub(super) struct Text {
    pub(super) bytes: Bytes,
    /// Where U+FFFD stands for bytes that were not UTF-8, and for how many; in order.
    pub(super) replaced: Vec<(usize, u64)>,
}

impl Text {
    /// `body` without a byte order mark, with U+FFFD in place of bytes that are not UTF-8, and with control characters
    /// within strings escaped. Everything else stays byte for byte, and it is copied only where something changes.
    /// `None` where the copy would have more than `max_bytes`.
    pub(super) fn of(mut body: Bytes, max_bytes: usize) -> Option<Text> {
        if body.starts_with(BOM) {
            body = body.slice(BOM.len()..);
        }
        let is_text = std::str::from_utf8(&body).is_ok();
        if is_text && !body.iter().any(u8::is_ascii_control) {
            return Some(Text { bytes: body, replaced: Vec::new() });
        }
        let mut len = 0;
        mend(&body, |piece, _| len += piece.len());
        if is_text && len == body.len() {
            return Some(Text { bytes: body, replaced: Vec::new() });
        }
        if len > max_bytes {
            return None;
        }
        let (mut mended, mut replaced) = (String::with_capacity(len), Vec::new());
        mend(&body, |piece, bytes| {
            if bytes > 0 {
                replaced.push((mended.len(), bytes));
            }
            mended.push_str(piece);
        });
        Some(Text { bytes: mended.into(), replaced })
    }
}

/// Gives `put` the pieces of the mended text, each with the number of bytes that were not UTF-8 in its place.
fn mend(body: &[u8], mut put: impl FnMut(&str, u64)) {
    let (mut in_string, mut is_escaped) = (false, false);
    for chunk in body.utf8_chunks() {
        let valid = chunk.valid();
        let mut begin = 0;
        for (at, byte) in valid.bytes().enumerate() {
            match byte {
                0..0x20 if in_string => {
                    put(&valid[begin..at], 0);
                    put(&format!("\\u{byte:04x}"), 0);
                    begin = at + 1;
                }
                b'"' if !is_escaped => in_string = !in_string,
                _ => {}
            }
            is_escaped = in_string && byte == b'\\' && !is_escaped;
        }
        put(&valid[begin..], 0);
        if !chunk.invalid().is_empty() {
            put(REPLACEMENT, chunk.invalid().len() as u64);
            is_escaped = false;
        }
    }
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
    fn control_characters_are_escaped_within_strings_and_kept_outside_them() {
        let body = b"\xef\xbb\xbf{\n\t\"a\": \"\\\"\x00\x1b[32m\r\n\\\\\",\n \"b\":\"\\ud800\"}";
        let expected = "{\n\t\"a\": \"\\\"\\u0000\\u001b[32m\\u000d\\u000a\\\\\",\n \"b\":\"\\ud800\"}";
        assert_eq!(text(body), (expected.to_owned(), vec![]));
        for same in [&b"{\n\"a\": \"\\\\\",\n\"b\":1.50}"[..], b"", b"nothing \\ of \x01 JSON"] {
            assert_eq!(text(same).0.as_bytes(), same);
        }
    }
}
