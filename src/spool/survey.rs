//! Reads what a crash left open, line by line, in memory that is bounded whatever the file holds: one line may be as long
//! as the file, where a crash left a hole in it or somebody put other bytes there.

use std::io::{self, Read, Write};
use std::ops::Range;

use crate::batch::Sha256Hasher;
use crate::spool::disk::{Cursor, DiskFile, READ_BUFFER_BYTES};

/// An object within more objects and lists than these is no event. Each level takes a bit.
const DEPTH_MAX: usize = 1 << 26;

/// What a whole line is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    /// A JSON object.
    Event,
    /// Anything else.
    Foreign,
}

/// What was read of an `.open` file: its events' bytes, number and hash, and the number of foreign lines.
#[derive(Default)]
pub(super) struct Survey {
    pub(super) bytes: u64,
    pub(super) records: u64,
    pub(super) hasher: Sha256Hasher,
    pub(super) foreign: u64,
    pub(super) read: u64,
    /// The bytes up to the last newline; what follows is a torn line.
    pub(super) whole_lines: u64,
}

impl Survey {
    /// Reads the first `end` bytes of the file. Calls `each` with every run of whole lines of one kind, as the range of
    /// their bytes.
    pub(super) fn read(
        &mut self,
        file: &mut dyn DiskFile,
        end: u64,
        mut each: impl FnMut(&mut dyn DiskFile, Line, Range<u64>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; READ_BUFFER_BYTES];
        let (mut judge, mut run) = (Judge::default(), (Line::Event, 0..0));
        // What is hashed of a line before it is known to be an event is taken back where it is none.
        let mut before_line = self.hasher.clone();
        while self.read < end {
            let wanted = usize::try_from(end - self.read).unwrap_or(usize::MAX).min(buffer.len());
            let count = file.read_at(&mut buffer[..wanted], self.read)?;
            if count == 0 {
                break;
            }
            for piece in buffer[..count].split_inclusive(|byte| *byte == b'\n') {
                self.hasher.update(piece);
                self.read += piece.len() as u64;
                let Some(last) = piece.strip_suffix(b"\n") else {
                    judge.go_on(piece);
                    continue;
                };
                judge.go_on(last);
                let kind = std::mem::take(&mut judge).end();
                match kind {
                    Line::Event => {
                        self.bytes += self.read - self.whole_lines;
                        self.records += 1;
                        before_line = self.hasher.clone();
                    }
                    Line::Foreign => {
                        self.foreign += 1;
                        self.hasher = before_line.clone();
                    }
                }
                if run.0 != kind {
                    each(file, run.0, run.1)?;
                    run = (kind, self.whole_lines..self.whole_lines);
                }
                run.1.end = self.read;
                self.whole_lines = self.read;
            }
        }
        self.hasher = before_line;
        each(file, run.0, run.1)
    }
}

/// Writes a range of the file's bytes to `out`.
pub(super) fn copy(file: &mut dyn DiskFile, range: Range<u64>, out: &mut dyn Write) -> io::Result<()> {
    let bytes = range.end - range.start;
    let copied = io::copy(&mut Cursor::at(file, range.start).take(bytes), out)?;
    if copied == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Judges a line while it comes: whether it is a JSON object, as serde_json has it.
#[derive(Default)]
struct Judge {
    next: Next,
    /// Whether the string that is being read is a member's name.
    is_name: bool,
    /// How many objects and lists are open, and of each, innermost last, a bit: whether it is an object.
    depth: usize,
    objects: Vec<u8>,
}

/// What may come next.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Next {
    #[default]
    Begin,
    Value,
    /// A value, or the end of the list.
    FirstValue,
    Name,
    /// A name, or the end of the object.
    FirstName,
    Colon,
    /// A comma, or the end of the object or list.
    Comma,
    /// More of a string.
    Text,
    Escaped,
    /// So many hexadecimal digits.
    Hex(u8),
    /// So many more bytes of a character, the first of them within these bounds.
    Character(u8, u8, u8),
    /// The rest of a word.
    Word(&'static [u8]),
    /// The digits of a number: the first behind its sign.
    FirstDigit,
    /// None behind a zero.
    NoDigit,
    Digit,
    FirstFraction,
    Fraction,
    /// A sign, or the first digit of the exponent.
    Sign,
    FirstExponent,
    Exponent,
    /// Nothing but space: the object is complete.
    Nothing,
    /// It is no JSON object.
    Wrong,
}

impl Judge {
    fn go_on(&mut self, bytes: &[u8]) {
        for byte in bytes {
            // Most bytes are such.
            if self.next == Next::Text && matches!(byte, b' ' | b'!' | b'#'..=b'[' | b']'..=0x7f) {
                continue;
            }
            self.next = self.after(*byte);
            if self.next == Next::Wrong {
                return;
            }
        }
    }

    fn end(self) -> Line {
        if self.next == Next::Nothing { Line::Event } else { Line::Foreign }
    }

    fn after(&mut self, byte: u8) -> Next {
        match (self.next, byte) {
            (Next::Begin, b'{') => self.open(true),
            (
                space @ (Next::Value
                | Next::FirstValue
                | Next::Name
                | Next::FirstName
                | Next::Colon
                | Next::Comma
                | Next::Nothing),
                b' ' | b'\t' | b'\r',
            ) => space,
            (Next::FirstValue, b']') | (Next::FirstName, b'}') => self.close(),
            (Next::FirstName | Next::Name, b'"') => self.string(true),
            (Next::Colon, b':') => Next::Value,
            (Next::Value | Next::FirstValue, _) => match byte {
                b'{' => self.open(true),
                b'[' => self.open(false),
                b'"' => self.string(false),
                b't' => Next::Word(b"rue"),
                b'f' => Next::Word(b"alse"),
                b'n' => Next::Word(b"ull"),
                b'-' => Next::FirstDigit,
                b'0' => Next::NoDigit,
                b'1'..=b'9' => Next::Digit,
                _ => Next::Wrong,
            },
            (Next::Comma, b',') => {
                if self.is_in_object() {
                    Next::Name
                } else {
                    Next::Value
                }
            }
            (Next::Comma, b'}') if self.is_in_object() => self.close(),
            (Next::Comma, b']') if !self.is_in_object() => self.close(),
            (Next::Text, b'"') => {
                if self.is_name {
                    Next::Colon
                } else {
                    Next::Comma
                }
            }
            (Next::Text, b'\\') => Next::Escaped,
            (Next::Text, 0x20..=0x7f) => Next::Text,
            // Unicode, table 3-7: well-formed UTF-8.
            (Next::Text, 0xc2..=0xdf) => Next::Character(1, 0x80, 0xbf),
            (Next::Text, 0xe0) => Next::Character(2, 0xa0, 0xbf),
            (Next::Text, 0xed) => Next::Character(2, 0x80, 0x9f),
            (Next::Text, 0xe1..=0xef) => Next::Character(2, 0x80, 0xbf),
            (Next::Text, 0xf0) => Next::Character(3, 0x90, 0xbf),
            (Next::Text, 0xf1..=0xf3) => Next::Character(3, 0x80, 0xbf),
            (Next::Text, 0xf4) => Next::Character(3, 0x80, 0x8f),
            (Next::Character(1, least, most), _) if (least..=most).contains(&byte) => Next::Text,
            (Next::Character(more, least, most), _) if (least..=most).contains(&byte) => {
                Next::Character(more - 1, 0x80, 0xbf)
            }
            (Next::Escaped, b'u') => Next::Hex(4),
            (Next::Escaped, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Next::Text,
            (Next::Hex(1), _) if byte.is_ascii_hexdigit() => Next::Text,
            (Next::Hex(more), _) if byte.is_ascii_hexdigit() => Next::Hex(more - 1),
            (Next::Word([last]), _) if *last == byte => Next::Comma,
            (Next::Word([first, rest @ ..]), _) if *first == byte => Next::Word(rest),
            (Next::FirstDigit, b'0') => Next::NoDigit,
            (Next::FirstDigit | Next::Digit, b'0'..=b'9') => Next::Digit,
            (Next::NoDigit | Next::Digit, b'.') => Next::FirstFraction,
            (Next::FirstFraction | Next::Fraction, b'0'..=b'9') => Next::Fraction,
            (Next::NoDigit | Next::Digit | Next::Fraction, b'e' | b'E') => Next::Sign,
            (Next::Sign, b'+' | b'-') => Next::FirstExponent,
            (Next::Sign | Next::FirstExponent | Next::Exponent, b'0'..=b'9') => Next::Exponent,
            (Next::NoDigit, b'0'..=b'9') => Next::Wrong,
            // The number ended with the byte before.
            (Next::NoDigit | Next::Digit | Next::Fraction | Next::Exponent, _) => {
                self.next = Next::Comma;
                self.after(byte)
            }
            _ => Next::Wrong,
        }
    }

    fn string(&mut self, is_name: bool) -> Next {
        self.is_name = is_name;
        Next::Text
    }

    fn open(&mut self, is_object: bool) -> Next {
        if self.depth == DEPTH_MAX {
            return Next::Wrong;
        }
        let (at, bit) = (self.depth / 8, 1 << (self.depth % 8));
        if at == self.objects.len() {
            self.objects.push(0);
        }
        self.objects[at] = if is_object { self.objects[at] | bit } else { self.objects[at] & !bit };
        self.depth += 1;
        if is_object { Next::FirstName } else { Next::FirstValue }
    }

    fn is_in_object(&self) -> bool {
        self.depth.checked_sub(1).is_some_and(|last| self.objects[last / 8] & (1 << (last % 8)) != 0)
    }

    fn close(&mut self) -> Next {
        self.depth -= 1;
        if self.depth == 0 { Next::Nothing } else { Next::Comma }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;

    fn judged(line: &[u8], piece: usize) -> bool {
        let mut judge = Judge::default();
        line.chunks(piece).for_each(|piece| judge.go_on(piece));
        judge.end() == Line::Event
    }

    fn is_object(line: &[u8]) -> bool {
        line.first() == Some(&b'{') && serde_json::from_slice::<&RawValue>(line).is_ok()
    }

    #[test]
    fn a_line_is_an_event_where_serde_json_has_an_object() {
        let values = [
            "1",
            "-0",
            "01",
            "-",
            "1.",
            "1.0e",
            "1.5E+7",
            "1e-",
            "0e1",
            "0.0",
            "tru",
            "true",
            "null",
            "nul1",
            "false",
            "[",
            "[]",
            "[1,]",
            "[1 ,\t2]",
            "{}",
            "{,}",
            "[}",
            "{]",
            "\"",
            "\"\\u00e9\"",
            "\"\\ud800\"",
            "\"\\u00g0\"",
            "\"\\x\"",
            "\"é\"",
            "\"\u{7f}\u{ffff}\u{10ffff}\"",
            "\"\u{1}\"",
            "",
            "1 2",
            "{\"a\":{\"b\":[[{}]]}}",
            "\"a\" : 1",
            "NaN",
            "+1",
        ];
        for value in values {
            for line in
                [format!("{{\"a\":{value}}}"), format!("{{\"a\" :[{value}],\"\":{value} }} \r"), value.to_owned()]
            {
                for piece in [1, 3, line.len().max(1)] {
                    assert_eq!(judged(line.as_bytes(), piece), is_object(line.as_bytes()), "{line}");
                }
            }
        }
        for lead in 0x80..=0xff {
            for next in [0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0] {
                for rest in [&b""[..], b"\x80", b"\x80\x80", b"\x80\x80\x80"] {
                    let line = [&b"{\"a\":\""[..], &[lead, next], rest, b"\"}"].concat();
                    assert_eq!(judged(&line, 1), is_object(&line), "{line:x?}");
                }
            }
        }
    }

    #[test]
    fn a_bit_is_kept_of_each_level_and_beyond_the_last_nothing_is_an_event() {
        let nested = |depth: usize| {
            let mut judge = Judge::default();
            judge.go_on(b"{\"a\":");
            judge.go_on(&b"[".repeat(depth));
            judge.go_on(&b"]".repeat(depth));
            judge.go_on(b"}");
            (judge.objects.len(), judge.end() == Line::Event)
        };
        assert_eq!(nested(1_000_000), (125_001, true));
        assert_eq!(nested(DEPTH_MAX - 1), (DEPTH_MAX / 8, true));
        assert_eq!(nested(DEPTH_MAX), (DEPTH_MAX / 8, false));
    }

    proptest! {
        #[test]
        fn of_any_bytes_it_says_what_serde_json_says(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    &b"{"[..], b"}", b"[", b"]", b":", b",", b"\"a\"", b"\"", b"\\", b"\\u00e9", b" ", b"\t", b"1", b"0", b"-", b".",
                    b"e", b"true", b"null", b"\xc3\xa9", b"\xff", b"\"a\":", b"{\"a\":", b"1}", b"]}", b"\0",
                ]),
                0..12,
            ),
            piece in 1_usize..5,
        ) {
            for line in [parts.concat(), [&b"{\"a\":"[..], &parts.concat(), b"}"].concat()] {
                prop_assert_eq!(judged(&line, piece), is_object(&line), "{:?}", line);
            }
        }
    }
}
