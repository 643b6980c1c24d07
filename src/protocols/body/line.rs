//! Validates the usual event, a JSON object on a line of its own, in one pass, which is faster than serde_json.
//!
//! A line that is not accepted here is not refused: serde_json judges it then. So this code must only be right where it
//! accepts.

use wide::u8x16;

use super::redact::{self, HOLDER};

/// How deep objects and arrays are followed: one bit for each.
const DEPTH_MAX: u32 = u64::BITS;
/// How many bytes of a string are looked at together.
const BLOCK_BYTES: usize = 16;
/// The last byte of those that must be escaped in a string (RFC 8259 section 7).
const LAST_CONTROL: u8 = 0x1f;

/// Length of the JSON object that `json` begins with; `None` unless it is valid, UTF-8, on one line, at most
/// 64 deep and surely without a secret that is to be redacted.
pub(super) fn plain_object_len(json: &[u8]) -> Option<usize> {
    if json.first() != Some(&b'{') {
        return None;
    }
    let mut at = 0;
    let mut depth = 0;
    // One bit for each container, set for an object. The lowest bit is the innermost one.
    let mut objects = 0_u64;
    loop {
        // A value must come next.
        let opened = *json.get(at)?;
        at = match opened {
            b'{' | b'[' => {
                if depth == DEPTH_MAX {
                    return None;
                }
                depth += 1;
                objects = (objects << 1) | u64::from(opened == b'{');
                let first = skip_blanks(json, at + 1);
                match (opened, json.get(first)?) {
                    (b'{', b'}') | (b'[', b']') => first,
                    (b'{', _) => {
                        at = key_end(json, first)?;
                        continue;
                    }
                    _ => {
                        at = first;
                        continue;
                    }
                }
            }
            b'"' => {
                let (end, has_escape) = string_end(json, at + 1)?;
                if redact::is_holder(&json[at..end], has_escape) {
                    return None;
                }
                end
            }
            b't' => literal_end(json, at, b"true")?,
            b'f' => literal_end(json, at, b"false")?,
            b'n' => literal_end(json, at, b"null")?,
            _ => number_end(json, at)?,
        };
        // A value has ended. The ends of containers may come next.
        loop {
            at = skip_blanks(json, at);
            let in_object = objects & 1 == 1;
            match (json.get(at)?, in_object) {
                (b',', true) => {
                    at = key_end(json, skip_blanks(json, at + 1))?;
                    break;
                }
                (b',', false) => {
                    at = skip_blanks(json, at + 1);
                    break;
                }
                (b'}', true) | (b']', false) => {
                    at += 1;
                    depth -= 1;
                    objects >>= 1;
                    if depth == 0 {
                        return std::str::from_utf8(&json[..at]).is_ok().then_some(at);
                    }
                }
                _ => return None,
            }
        }
    }
}

fn skip_blanks(json: &[u8], mut at: usize) -> usize {
    while matches!(json.get(at), Some(b' ' | b'\t')) {
        at += 1;
    }
    at
}

/// Where the value of the key at `at` begins.
fn key_end(json: &[u8], at: usize) -> Option<usize> {
    if *json.get(at)? != b'"' {
        return None;
    }
    let (end, has_escape) = string_end(json, at + 1)?;
    let key = &json[at + 1..end - 1];
    if has_escape || key == HOLDER.as_bytes() {
        return None;
    }
    let colon = skip_blanks(json, end);
    (*json.get(colon)? == b':').then(|| skip_blanks(json, colon + 1))
}

/// The offset after the closing quote of the string whose first character is at `at`, and whether it has an escape.
fn string_end(json: &[u8], mut at: usize) -> Option<(usize, bool)> {
    let mut has_escape = false;
    loop {
        at = plain_end(json, at);
        match *json.get(at)? {
            b'"' => return Some((at + 1, has_escape)),
            b'\\' => {
                has_escape = true;
                at += match *json.get(at + 1)? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => 2,
                    b'u' if json.get(at + 2..at + 6)?.iter().all(u8::is_ascii_hexdigit) => 6,
                    _ => return None,
                };
            }
            _ => return None,
        }
    }
}

/// The offset of the first byte from `at` on that is no plain character: quote, backslash, control character.
fn plain_end(json: &[u8], mut at: usize) -> usize {
    while let Some(block) = json.get(at..).and_then(|rest| rest.first_chunk::<BLOCK_BYTES>()) {
        let block = u8x16::new(*block);
        let is_control = block.simd_eq(block.min(u8x16::splat(LAST_CONTROL)));
        let is_special = block.simd_eq(u8x16::splat(b'"')) | block.simd_eq(u8x16::splat(b'\\')) | is_control;
        match is_special.to_bitmask() {
            0 => at += BLOCK_BYTES,
            special => return at + special.trailing_zeros() as usize,
        }
    }
    let is_special = |byte: &u8| matches!(byte, b'"' | b'\\' | ..=LAST_CONTROL);
    json[at..].iter().position(is_special).map_or(json.len(), |further| at + further)
}

fn literal_end(json: &[u8], at: usize, literal: &[u8]) -> Option<usize> {
    json[at..].starts_with(literal).then_some(at + literal.len())
}

/// The offset after the number at `at`, if it is one by RFC 8259 section 6.
fn number_end(json: &[u8], mut at: usize) -> Option<usize> {
    let digits_end = |from: usize| {
        let digits = json.get(from..)?.iter().take_while(|byte| byte.is_ascii_digit()).count();
        (digits > 0).then_some(from + digits)
    };
    if json[at] == b'-' {
        at += 1;
    }
    at = if *json.get(at)? == b'0' { at + 1 } else { digits_end(at)? };
    if json.get(at) == Some(&b'.') {
        at = digits_end(at + 1)?;
    }
    if matches!(json.get(at), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(json.get(at + 1), Some(b'+' | b'-')));
        at = digits_end(at + 1 + sign)?;
    }
    Some(at)
}
