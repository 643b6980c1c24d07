//! Splits bytes into lines of text, and replaces bytes that are not UTF-8.

use std::borrow::Cow;

use bytes::Bytes;

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

/// Whether `body` begins with the byte order mark of UTF-16, as files do that PowerShell writes, and has a zero byte, as every
/// space and line ending has in UTF-16; or begins with two Latin characters without the mark.
pub(crate) fn is_utf16(body: &[u8]) -> bool {
    match body {
        [0xff, 0xfe, rest @ ..] | [0xfe, 0xff, rest @ ..] => memchr::memchr(0, rest).is_some(),
        [a, 0, b, 0, ..] | [0, a, 0, b, ..] => [a, b].iter().all(|byte| (b' '..=b'~').contains(byte)),
        _ => false,
    }
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
    let (_, what) = BEGINNINGS.into_iter().find(|(beginning, _)| body.starts_with(beginning))?;
    std::str::from_utf8(body).is_err().then_some(what)
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

/// `body` with U+FFFD in place of bytes that are not UTF-8, and how many bytes those were. It is copied only where there
/// are any, and refused first where the copy would take more than `max_bytes`.
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
