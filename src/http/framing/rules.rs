//! Where requests begin and end in what a connection brings, by rules that leave no doubt.
//!
//! Refused: a head with a line that ends in a bare LF, a folded header, more than one `Content-Length` or
//! `Transfer-Encoding`, both together, any transfer coding but `chunked`, no `Host` or two, and chunks or trailers in
//! which a CR or LF stands alone (RFC 9112, sections 2.2, 3.2, 5.2, 6.1, 6.3 and 7.1).
//!
//! Refused, too, is each head that hyper would refuse: its own answers have no body, so nobody would be told the reason.

use std::sync::LazyLock;

use axum::http::Uri;
use memchr::memchr;
use memchr::memmem::Finder;

use crate::http::refusals::{Fault, Refused};

/// hyper takes no body of more, and would call such a head too large.
const LENGTH_MAX: u64 = u64::MAX - 2;

static HEAD_END: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\r\n\r\n"));

/// The most that a request's head may have. An OIDC token and a proxy's headers fit many times.
pub(super) const HEAD_MAX_BYTES: usize = 16 * 1024;

/// The most headers of a request.
pub(in crate::http) const HEADERS_MAX: usize = 100;

/// The first bytes of a TLS handshake: its content type, and the version's first byte.
const TLS_BEGINS: &[u8] = &[0x16, 3];

fn malformed(detail: &'static str) -> Fault {
    Fault { refused: Refused::Malformed, detail }
}

/// Where in the stream of requests the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// Between two requests, or in a head that has not wholly come.
    Head,
    /// In a body; bytes left.
    Length(u64),
    /// In a body.
    Chunked(Chunk),
}

/// Where in a chunked body. As strict as hyper's decoder, or stricter: both find the same end, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunk {
    /// Before the first digit of a size.
    Start,
    Size(u64),
    /// Behind a size, up to `;` or the line's end.
    Space(u64),
    Extension(u64),
    /// Before the LF of a size's line.
    SizeLf(u64),
    /// Bytes left.
    Data(u64),
    DataCr,
    DataLf,
    /// At the begin of a trailer's line, or of the empty line that ends the body.
    Line,
    Trailer,
    TrailerLf,
    EndLf,
}

/// What comes after the bytes that are known to be well framed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// Nothing.
    None,
    /// The begin of a head.
    Unfinished,
    /// What is refused instead of a request.
    Refused(Fault),
    /// A body that is no body.
    BrokenBody,
}

impl Framing {
    /// Follows `bytes`; how many of them are well framed, and what comes then. In an unfinished head, the first `seen`
    /// of them were given before.
    pub(super) fn follow(&mut self, bytes: &[u8], mut seen: usize) -> (usize, Rest) {
        let mut at = 0;
        while at < bytes.len() {
            match self {
                Framing::Length(left) => {
                    let skipped = (bytes.len() - at).min(usize::try_from(*left).unwrap_or(usize::MAX));
                    at += skipped;
                    *left -= skipped as u64;
                    if *left == 0 {
                        *self = Framing::Head;
                    }
                }
                Framing::Chunked(chunk) => match chunk.skip(&bytes[at..]) {
                    Some((skipped, Some(next))) => {
                        at += skipped;
                        *chunk = next;
                    }
                    Some((skipped, None)) => {
                        at += skipped;
                        *self = Framing::Head;
                    }
                    None => return (at, Rest::BrokenBody),
                },
                Framing::Head => match head(&bytes[at..], std::mem::take(&mut seen)) {
                    Ok(Some((length, body))) => {
                        at += length;
                        *self = body;
                    }
                    Ok(None) => return (at, Rest::Unfinished),
                    Err(fault) => return (at, Rest::Refused(fault)),
                },
            }
        }
        (at, Rest::None)
    }
}

/// The length of the head that `bytes` begin with, and how its body is framed; `None` where more has to come.
fn head(bytes: &[u8], seen: usize) -> Result<Option<(usize, Framing)>, Fault> {
    // Empty lines before a head are skipped by hyper, too.
    let empty = 2 * bytes.chunks(2).take_while(|line| line == b"\r\n").count();
    let Some(first) = bytes.get(empty) else { return Ok(None) };
    if !first.is_ascii_alphabetic() && bytes[empty..] != *b"\r" {
        return Err(no_request(&bytes[empty..]));
    }
    let from = empty.max(seen.saturating_sub(3));
    let Some(end) = HEAD_END.find(&bytes[from..]).map(|end| from + end) else {
        return match bytes.len() > HEAD_MAX_BYTES {
            true => Err(Refused::HeadTooLarge.into()),
            false if has_bare_lf(bytes, from.saturating_sub(1).max(empty)) => Err(malformed(BARE_LF)),
            false => Ok(None),
        };
    };
    if end + 4 > HEAD_MAX_BYTES {
        return Err(Refused::HeadTooLarge.into());
    }
    Ok(Some((end + 4, body_framing(&bytes[empty..end + 2])?)))
}

const BARE_LF: &str = "a line of the head ends in LF without CR";

/// Why what begins with `bytes` is no request.
fn no_request(bytes: &[u8]) -> Fault {
    // A byte may still be all that has come.
    match bytes.len().min(TLS_BEGINS.len()) {
        known if bytes[..known] == TLS_BEGINS[..known] => malformed(
            "a TLS handshake came, and plain HTTP is spoken here: use http://, or, on the port for events, turn TLS on \
             with ENV0_S3_LOG_TLS_CERT_FILE",
        ),
        _ => malformed("no method comes first"),
    }
}

/// Whether there is an LF without its CR in `bytes` from `from` on.
fn has_bare_lf(bytes: &[u8], from: usize) -> bool {
    memchr::memchr_iter(b'\n', &bytes[from..]).any(|at| from + at == 0 || bytes[from + at - 1] != b'\r')
}

/// How the body after a head (all its lines, up to the last one's CRLF) is framed.
fn body_framing(head: &[u8]) -> Result<Framing, Fault> {
    let mut length = None;
    let mut chunked = false;
    let mut hosts = 0;
    let mut lines = Lines(head);
    let needs_host = needs_host(lines.next().transpose()?.unwrap_or_default())?;
    for (index, line) in lines.enumerate() {
        let line = line?;
        if index == HEADERS_MAX {
            return Err(Refused::HeadTooLarge.into());
        }
        if matches!(line.first(), Some(b' ' | b'\t')) {
            return Err(malformed("a header is folded over two lines"));
        }
        let colon = memchr(b':', line).ok_or(malformed("a header has no colon"))?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if !is_token(name) {
            return Err(malformed("a header's name has a character that none may have"));
        }
        if has_control(value) {
            return Err(malformed("a header's value has a control character"));
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            let digits = std::str::from_utf8(value.trim_ascii()).ok();
            let digits = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
            let digits = digits
                .and_then(|digits| digits.parse().ok())
                .filter(|length| *length <= LENGTH_MAX)
                .ok_or(malformed("Content-Length is no number of bytes"))?;
            if length.replace(digits).is_some() {
                return Err(malformed("there is more than one Content-Length"));
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if chunked || !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                return Err(malformed("Transfer-Encoding is something else than chunked, once"));
            }
            chunked = true;
        } else if name.eq_ignore_ascii_case(b"host") {
            hosts += 1;
        }
    }
    if hosts > 1 || (hosts == 0 && needs_host) {
        return Err(Refused::Host.into());
    }
    match (length, chunked) {
        (Some(_), true) => Err(malformed("there is a Content-Length beside Transfer-Encoding")),
        (None, true) if !needs_host => Err(malformed("there were no chunks in HTTP/1.0")),
        (None, true) => Ok(Framing::Chunked(Chunk::Start)),
        (None | Some(0), false) => Ok(Framing::Head),
        (Some(length), false) => Ok(Framing::Length(length)),
    }
}

/// Whether a head with this first line needs a `Host`: HTTP/1.1 does, HTTP/1.0 does not.
fn needs_host(line: &[u8]) -> Result<bool, Fault> {
    let Some(last_space) = memchr::memrchr(b' ', line) else {
        return Err(malformed("the first line is no method, target and version"));
    };
    let needs_host = match &line[last_space + 1..] {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        version if version.starts_with(b"HTTP/") => return Err(Refused::Version.into()),
        _ => return Err(malformed("the first line is no method, target and version")),
    };
    let (method, target) = line[..last_space].split_at(memchr(b' ', line).unwrap_or_default());
    match is_token(method) && is_target(target.get(1..).unwrap_or_default()) {
        true => Ok(needs_host),
        false => Err(malformed("the method, or the target of the request, has a character that none may have")),
    }
}

/// The characters of methods and of headers' names (RFC 9110, section 5.6.2).
static TOKEN: [bool; 256] = alphanumeric_and(b"-!#$%&'*+.^_`|~");
/// The characters of the usual targets.
static TARGET: [bool; 256] = alphanumeric_and(b"/-_.~?=&%+:,@");

const fn alphanumeric_and(others: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < table.len() {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut index = 0;
    while index < others.len() {
        table[others[index] as usize] = true;
        index += 1;
    }
    table
}

fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && are_all(bytes, &TOKEN)
}

fn is_target(bytes: &[u8]) -> bool {
    // As hyper judges it; that takes memory, which the usual target doesn't need.
    (bytes.first() == Some(&b'/') && are_all(bytes, &TARGET)) || Uri::try_from(bytes).is_ok()
}

/// Looks at every byte, without a way out in between, which takes a third of the instructions.
fn are_all(bytes: &[u8], allowed: &[bool; 256]) -> bool {
    bytes.iter().fold(true, |all, &byte| all & allowed[usize::from(byte)])
}

/// Looks at every byte, without a way out in between: so the compiler looks at many together.
fn has_control(value: &[u8]) -> bool {
    value.iter().fold(false, |found, &byte| found | (byte < b' ' && byte != b'\t') | (byte == 0x7f))
}

/// Lines that end in CRLF, without it; an error for one that ends otherwise.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = Result<&'a [u8], Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = memchr(b'\n', self.0)?;
        let line = self.0[..at].strip_suffix(b"\r").ok_or(malformed(BARE_LF));
        self.0 = &self.0[at + 1..];
        Some(line)
    }
}

impl Chunk {
    /// What follows after at least one of `bytes`, and after how many; nothing follows the end of the body. `None`
    /// where the body is malformed.
    fn skip(self, bytes: &[u8]) -> Option<(usize, Option<Chunk>)> {
        let next = match (self, bytes[0]) {
            (Chunk::Data(left), _) => {
                let skipped = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let left = left - skipped as u64;
                return Some((skipped, Some(if left == 0 { Chunk::DataCr } else { Chunk::Data(left) })));
            }
            (Chunk::Start, byte) if byte.is_ascii_hexdigit() => Chunk::Size(digit(byte)),
            (Chunk::Size(size), byte) if byte.is_ascii_hexdigit() => {
                Chunk::Size(size.checked_mul(16)?.checked_add(digit(byte))?)
            }
            (Chunk::Size(size) | Chunk::Space(size), b' ' | b'\t') => Chunk::Space(size),
            (Chunk::Size(size) | Chunk::Space(size), b';') => Chunk::Extension(size),
            (Chunk::Size(size) | Chunk::Space(size) | Chunk::Extension(size), b'\r') => Chunk::SizeLf(size),
            (Chunk::Extension(size), byte) if byte != b'\n' => Chunk::Extension(size),
            (Chunk::SizeLf(0), b'\n') => Chunk::Line,
            (Chunk::SizeLf(size), b'\n') => Chunk::Data(size),
            (Chunk::DataCr, b'\r') => Chunk::DataLf,
            (Chunk::DataLf, b'\n') => Chunk::Start,
            (Chunk::Line, b'\r') => Chunk::EndLf,
            (Chunk::Trailer, b'\r') => Chunk::TrailerLf,
            (Chunk::Line | Chunk::Trailer, byte) if byte != b'\n' => Chunk::Trailer,
            (Chunk::TrailerLf, b'\n') => Chunk::Line,
            (Chunk::EndLf, b'\n') => return Some((1, None)),
            _ => return None,
        };
        Some((1, Some(next)))
    }
}

fn digit(byte: u8) -> u64 {
    char::from(byte).to_digit(16).map_or(0, u64::from)
}
