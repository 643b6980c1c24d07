//! Decodes a body of text in the character set that its `Content-Type` names.
//!
//! Many senders name a wrong one, so a body that is UTF-8 is taken as it is. Any other body has to be what its header
//! says: with U+FFFD in place of its letters nobody could read it again.

use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue};
use bytes::Bytes;
use memchr::memchr;

use super::body::{self, BodyError, Limits};
use super::head::content_type_is;

/// A character set, as far as it is told from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Charset {
    /// UTF-8, ASCII, or none is named.
    Utf8,
    /// ISO-8859-1: each byte is the character with its number.
    Latin1,
    /// ISO-8859-1, with letters and marks in place of the control characters 0x80 to 0x9f.
    Windows1252,
    /// Any other.
    Other,
}

/// The characters 0x80 to 0x9f of windows-1252. Five of them have none, and keep their number.
const WINDOWS_1252: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}', '‘', '’',
    '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

impl Charset {
    /// The one that `Content-Type` names. Protobuf has none.
    fn of(headers: &HeaderMap) -> Charset {
        let value = headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        // Most have no parameters.
        let Some(end) = memchr(b';', value) else { return Charset::Utf8 };
        let parameters = value[end + 1..].split(|&byte| byte == b';').filter_map(|parameter| {
            let at = parameter.iter().position(|&byte| byte == b'=')?;
            Some((parameter[..at].trim_ascii(), parameter[at + 1..].trim_ascii()))
        });
        let mut named = parameters.filter(|(name, _)| name.eq_ignore_ascii_case(b"charset"));
        let Some((_, name)) = named.next() else { return Charset::Utf8 };
        let name = name.strip_prefix(b"\"").and_then(|name| name.strip_suffix(b"\"")).unwrap_or(name);
        let is_one_of = |names: &[&str]| names.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()));
        if is_one_of(&["utf-8", "utf8", "us-ascii", "ascii", ""]) || content_type_is(headers, "protobuf") {
            Charset::Utf8
        } else if is_one_of(&["iso-8859-1", "iso8859-1", "iso_8859-1", "latin1", "latin-1", "l1"]) {
            Charset::Latin1
        } else if is_one_of(&["windows-1252", "cp1252", "x-cp1252"]) {
            Charset::Windows1252
        } else {
            Charset::Other
        }
    }

    fn decode(self, byte: u8) -> char {
        match (self, byte) {
            (Charset::Windows1252, 0x80..=0x9f) => WINDOWS_1252[usize::from(byte - 0x80)],
            _ => char::from(byte),
        }
    }
}

/// What a body needs that is not in UTF-8.
#[derive(Debug, Clone, Copy)]
pub struct Decoding {
    charset: Charset,
    /// How many bytes the body takes in UTF-8.
    pub(super) len: usize,
}

impl Decoding {
    /// By the character set that `Content-Type` names; `None` where `body` is taken as it was sent.
    ///
    /// # Errors
    /// The body is in a character set that isn't decoded.
    pub fn of(headers: &HeaderMap, body: &[u8]) -> Result<Option<Decoding>, BodyError> {
        match Charset::of(headers) {
            Charset::Other if is_in_another(body) || body.contains(&0) => Err(BodyError::OtherCharset),
            charset @ (Charset::Latin1 | Charset::Windows1252) if is_in_another(body) => {
                let len = body.iter().map(|&byte| charset.decode(byte).len_utf8()).sum();
                Ok(Some(Decoding { charset, len }))
            }
            _ => Ok(None),
        }
    }

    /// `body` in UTF-8.
    ///
    /// # Errors
    /// It takes more in UTF-8 than a body may.
    pub(super) fn decode(self, body: &[u8], limits: &Limits) -> Result<Bytes, BodyError> {
        if self.len > limits.max_body_bytes {
            return Err(BodyError::TooLarge { limit_bytes: limits.max_body_bytes });
        }
        let mut decoded = String::with_capacity(self.len);
        decoded.extend(body.iter().map(|&byte| self.charset.decode(byte)));
        Ok(decoded.into())
    }
}

/// Whether `body` is neither UTF-8 nor what is refused whatever its header says.
fn is_in_another(body: &[u8]) -> bool {
    std::str::from_utf8(body).is_err() && !body::is_utf16_or_32(body) && body::other_file(body).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocols::tests::*;

    const TEXT_PATHS: [&str; 4] = ["/v1/logs/env0-audits", "/services/collector/raw", "/receiver/v1/http/s", "/"];

    fn latin1() -> &'static [u8] {
        include_bytes!("../../tests/fixtures/bodies/latin1-in-one-of-three.txt")
    }

    #[test]
    fn text_in_latin1_is_decoded_where_its_header_says_so() {
        for header in [
            "text/plain; charset=ISO-8859-1",
            "text/plain;charset=\"latin1\"",
            "Text/Plain ; a=b ; Charset = windows-1252",
        ] {
            for path in TEXT_PATHS {
                let sent = post(path, &[("content-type", header)], latin1());
                assert!(sent.lines()[1].contains("cañon applied"), "{path} {header}: {:?}", sent.lines());
                assert_eq!((sent.lines().len(), sent.replaced()), (3, 0), "{path} {header}");
            }
        }
    }

    #[test]
    fn json_in_latin1_is_decoded_where_its_header_says_so() {
        let header = [("content-type", "application/json; charset=iso-8859-1")];
        for (path, body) in [
            ("/v1/logs/env0-audits", &b"{\"event\":\"ca\xf1on\"}"[..]),
            ("/services/collector", b"{\"event\":\"ca\xf1on\"}"),
            ("/", b"{\"event\":\"ca\xf1on\"}"),
            ("/log/v1", b"[{\"event\":\"ca\xf1on\"}]"),
            ("/loki/api/v1/push", b"{\"streams\":[{\"stream\":{},\"values\":[[\"1\",\"ca\xf1on\"]]}]}"),
            ("/v1/logs", b"{\"resourceLogs\":[{\"scopeLogs\":[{\"logRecords\":[{\"eventName\":\"ca\xf1on\"}]}]}]}"),
        ] {
            let sent = post(path, &header, body);
            assert!(sent.lines()[0].contains("\"cañon\""), "{path}: {:?}", sent.lines());
            assert_eq!(sent.replaced(), 0, "{path}");
        }
    }

    #[test]
    fn the_marks_of_windows_1252_are_its_own() {
        let decoded = |charset| {
            let header = [("content-type", charset)];
            post("/v1/logs/env0-audits", &header, &b"\x80 \x93a\x94 \x81 \xff"[..]).lines()[0].clone()
        };
        assert!(decoded("text/plain; charset=windows-1252").contains("\"€ “a” \u{81} ÿ\""));
        assert!(decoded("text/plain; charset=iso-8859-1").contains("\"\u{80} \u{93}a\u{94} \u{81} ÿ\""));
    }

    #[test]
    fn text_in_a_charset_that_is_not_decoded_is_refused_as_a_media_type() {
        for (charset, body) in [
            ("text/plain; charset=UTF-16LE", &b"h\0i\0\n\0"[..]),
            ("text/plain; charset=utf-16", b"\xff\xfeh\0i\0"),
            ("text/plain; charset=utf-16", b"\x1f\x04\n\0"),
            ("text/plain; charset=utf-32", b"h\0\0\0"),
            ("application/json; charset=iso-8859-15", b"{\"event\":\"\xa4\"}"),
            ("text/plain; charset=Shift_JIS", b"\x83\x65"),
            ("text/plain; charset=koi8-r", latin1()),
        ] {
            for path in TEXT_PATHS.into_iter().chain(["/services/collector", "/log/v1", "/v1/logs"]) {
                let answer = post(path, &[("content-type", charset)], body).refused_body();
                assert_eq!(answer.status, 415, "{path} {charset}");
                let text = String::from_utf8_lossy(&answer.body);
                assert!(text.contains("UTF-8"), "{path} {charset}: {text}");
            }
        }
    }

    #[test]
    fn a_body_that_is_utf8_is_taken_as_it_is_whatever_its_header_says() {
        for charset in ["utf-8", "UTF8", "\"utf-8\"", "", "us-ascii", "iso-8859-1", "windows-1252", "utf-16", "koi8-r"]
        {
            let header: &'static str = format!("application/json; charset={charset}").leak();
            let line = r#"{"event":"cañon"}"#;
            for path in ["/v1/logs/env0-audits", "/services/collector", "/", "/log/v1"] {
                assert_eq!(post(path, &[("content-type", header)], line).lines(), [line], "{path} {charset}");
            }
        }
    }

    #[test]
    fn no_charset_makes_utf16_or_a_file_of_another_kind_lines_of_text() {
        for body in [&b"\xff\xfeh\0i\0"[..], b"PK\x03\x04\xff"] {
            let header = [("content-type", "text/plain; charset=iso-8859-1")];
            assert_eq!(post("/v1/logs/env0-audits", &header, body).refused_body().status, 400);
        }
    }

    #[test]
    fn a_decoded_body_is_charged_and_has_the_limit_of_a_body() {
        let header = [("content-type", "text/plain; charset=iso-8859-1")];
        let body = vec![0xf1; 600];
        let limits = Limits { max_body_bytes: 1000, ..LIMITS };
        assert_eq!(
            post("/", &header, body.clone()).parse_with(&limits),
            Err(BodyError::TooLarge { limit_bytes: limits.max_body_bytes })
        );
        assert_eq!(post("/", &header, body).unpacked_bytes(), 1200);
        assert_eq!(post("/", &header, "plain").unpacked_bytes(), 0);
    }
}
