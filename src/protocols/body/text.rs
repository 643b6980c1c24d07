//! Splits bytes into lines of text, and replaces bytes that are not UTF-8.

use std::borrow::Cow;

use bytes::Bytes;
use flate2::{Decompress, FlushDecompress, Status};

use super::error::BodyError;

pub(super) const BOM: &[u8] = b"\xef\xbb\xbf";
pub(super) const NOT_UTF8: &str = "not UTF-8";

/// JSON's white space (RFC 8259 section 2).
pub(super) fn is_white_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Whether valid JSON is on one line. Its strings can't have a raw line ending.
pub(super) fn is_one_line(json: &[u8]) -> bool {
    memchr::memchr2(b'\n', b'\r', json).is_none()
}

const REPLACEMENT: &str = "\u{fffd}";

/// The lines of `body` that have more than white space, without their ending (`\n` or `\r\n`).
pub(super) fn text_lines(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = body.strip_prefix(BOM).unwrap_or(body).split(|&byte| byte == b'\n');
    let lines = lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    lines.filter(|line| !line.iter().all(|&byte| is_white_space(byte)))
}

/// Whether `body` is in UTF-16 or UTF-32. It begins with the byte order mark, as files do that PowerShell writes, and
/// has a zero byte, as every space and line ending has there; or it begins with two Latin characters without the mark.
pub(crate) fn is_utf16_or_32(body: &[u8]) -> bool {
    match body {
        [0, 0, 0xfe, 0xff, ..] => true,
        [0xff, 0xfe, rest @ ..] | [0xfe, 0xff, rest @ ..] => memchr::memchr(0, rest).is_some(),
        [a, 0, b, 0, ..] | [0, a, 0, b, ..] if [a, b].iter().all(|byte| is_latin(**byte)) => true,
        [a, 0, 0, 0, b, 0, 0, 0, ..] | [0, 0, 0, a, 0, 0, 0, b, ..] => [a, b].iter().all(|byte| is_latin(**byte)),
        _ => false,
    }
}

fn is_latin(byte: u8) -> bool {
    (b' '..=b'~').contains(&byte)
}

/// The kind of file that `body` is, where it begins as a well-known one does and isn't text. Stored as lines with
/// replacements, it could never be made a file again.
pub(crate) fn other_file(body: &[u8]) -> Option<&'static str> {
    const BEGINNINGS: [(&[u8], &str); 9] = [
        (b"PK\x03\x04", "a zip file"),
        (b"BZh", "a bzip2 file"),
        (b"\xfd7zXZ\0", "an xz file"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z file"),
        (b"\x04\x22\x4d\x18", "an lz4 file"),
        (b"\xff\x06\0\0sNaPpY", "a snappy file"),
        (b"%PDF-", "a PDF file"),
        (b"PAR1", "a parquet file"),
        (b"Obj\x01", "an Avro file"),
    ];
    if std::str::from_utf8(body).is_ok() {
        return None;
    }
    let known = BEGINNINGS.into_iter().find(|(beginning, _)| body.starts_with(beginning));
    known.map(|(_, what)| what).or_else(|| is_deflated(body).then_some("a deflate stream without its Content-Encoding"))
}

/// How much of a body's text is inflated to find out whether it is deflated.
const DEFLATE_TRIED_BYTES: usize = 64 * 1024;
/// Some words of a few letters are raw deflate of even fewer.
const DEFLATE_LEAST_BYTES: usize = 8;

/// Whether `body` is text in zlib or raw deflate. Text can begin as these do, so it is tried: it has to inflate to text
/// up to the stream's end, or to the first [`DEFLATE_TRIED_BYTES`] of it.
fn is_deflated(body: &[u8]) -> bool {
    let mut text = Vec::with_capacity(DEFLATE_TRIED_BYTES);
    [true, false].into_iter().any(|has_zlib_header| {
        text.clear();
        let mut decoder = Decompress::new(has_zlib_header);
        let inflates = match decoder.decompress_vec(body, &mut text, FlushDecompress::None) {
            // zlib has a checksum at its end, raw deflate has none.
            Ok(Status::StreamEnd) if has_zlib_header => !text.is_empty(),
            Ok(Status::StreamEnd) => decoder.total_in() == body.len() as u64 && text.len() >= DEFLATE_LEAST_BYTES,
            Ok(_) => text.len() == text.capacity(),
            Err(_) => false,
        };
        // A character may be cut off at the end.
        let is_text = || std::str::from_utf8(&text).map_or_else(|error| error.error_len().is_none(), |_| true);
        inflates && is_text()
    })
}

/// `bytes` as text, with U+FFFD in place of bytes that are not UTF-8, and how many bytes those were.
pub(super) fn lossy(bytes: &[u8]) -> (Cow<'_, str>, u64) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Cow::Borrowed(text), 0),
        Err(_) => {
            let replaced = bytes.utf8_chunks().map(|chunk| chunk.invalid().len() as u64).sum();
            (String::from_utf8_lossy(bytes), replaced)
        }
    }
}

/// The length of `body` with U+FFFD in place of bytes that are not UTF-8; `None` where all of it is UTF-8.
pub fn repaired_len(body: &[u8]) -> Option<usize> {
    std::str::from_utf8(body).is_err().then(|| {
        let chunks = body.utf8_chunks();
        chunks.map(|chunk| chunk.valid().len() + replacement(chunk.invalid()).len()).sum()
    })
}

/// `body` with U+FFFD in place of bytes that are not UTF-8, and how many bytes those were. It is copied only where
/// there are any, and refused first where the copy would take more than `max_bytes`.
pub fn repaired(body: Bytes, max_bytes: usize) -> Result<(Bytes, u64), BodyError> {
    let Some(len) = repaired_len(&body) else { return Ok((body, 0)) };
    if len > max_bytes {
        return Err(BodyError::TooLarge { limit_bytes: max_bytes });
    }
    let mut repaired = String::with_capacity(len);
    let mut replaced = 0;
    for chunk in body.utf8_chunks() {
        repaired.push_str(chunk.valid());
        repaired.push_str(replacement(chunk.invalid()));
        replaced += chunk.invalid().len() as u64;
    }
    Ok((repaired.into(), replaced))
}

fn replacement(invalid: &[u8]) -> &'static str {
    if invalid.is_empty() { "" } else { REPLACEMENT }
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};

    use super::*;

    fn deflated(text: &str, level: u32, has_zlib_header: bool) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(2 * text.len() + 1000);
        let mut encoder = Compress::new(Compression::new(level), has_zlib_header);
        encoder.compress_vec(text.as_bytes(), &mut bytes, FlushCompress::Finish).unwrap();
        bytes
    }

    #[test]
    fn text_that_is_deflated_is_no_text_however_it_is_deflated() {
        let line = "{\"message\":\"what deflate makes of a ca\u{f1}on is not UTF-8\"}\n";
        for text in [line.to_owned(), line.repeat(9), line.repeat(3000)] {
            for (level, has_zlib_header) in (0..10).flat_map(|level| [(level, true), (level, false)]) {
                let deflated = deflated(&text, level, has_zlib_header);
                let what = other_file(&deflated);
                assert!(what.is_some_and(|what| what.contains("deflate")), "{} {level} {has_zlib_header}", text.len());
            }
        }
    }

    #[test]
    fn text_that_begins_as_a_deflate_stream_is_text() {
        for text in [&b"x\x9c and x\xda"[..], b"x^2 \xb1 1", b"K\xf6ln", b"s\xed", b"{\r\xf0", b"\xe30}\t ", b"\xff"] {
            assert_eq!(other_file(text), None, "{text:?}");
        }
    }
}
