//! Reads a body once, in bounded memory: its SHA-256, its events, and whether receipts hold against its lines.

use std::io::{self, Write};

use flate2::write::MultiGzDecoder;

use crate::batch::{Codec, Sha256, Sha256Hasher};

use super::receipts::{Check, Outcome};

/// Largest zstd window, as a power of two: the 2 MiB that the daemon's own level has. Many objects are read at once,
/// and each window stays in memory.
const ZSTD_WINDOW_LOG_MAX: u32 = 21;

/// Takes in a body's bytes as they come.
pub(super) struct BodyReader {
    hasher: Sha256Hasher,
    lines: Decoder,
}

/// What a body holds.
pub(super) struct BodyDigest {
    /// The hash of the bytes as stored.
    pub(super) sha256: Sha256,
    /// Lines after decompression; none where it can't be decompressed.
    pub(super) records: Option<u64>,
    /// What became of each check.
    pub(super) outcomes: Vec<Outcome>,
}

enum Decoder {
    Plain(Lines),
    Gzip(Box<MultiGzDecoder<Lines>>),
    Zstd(Box<zstd::stream::write::Decoder<'static, Lines>>),
    Broken,
}

impl BodyReader {
    /// `checks` in any order.
    pub(super) fn new(codec: Codec, checks: Vec<Check>) -> BodyReader {
        let lines = Lines { checks, ..Lines::default() };
        let lines = match codec {
            Codec::None => Decoder::Plain(lines),
            Codec::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(lines))),
            Codec::Zstd => match zstd_decoder(lines) {
                Ok(decoder) => Decoder::Zstd(Box::new(decoder)),
                Err(_) => Decoder::Broken,
            },
        };
        BodyReader { hasher: Sha256Hasher::default(), lines }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        let written = match &mut self.lines {
            Decoder::Plain(lines) => lines.write_all(bytes),
            Decoder::Gzip(decoder) => decoder.write_all(bytes),
            Decoder::Zstd(decoder) => decoder.write_all(bytes),
            Decoder::Broken => Ok(()),
        };
        if written.is_err() {
            self.lines = Decoder::Broken;
        }
    }

    pub(super) fn finish(self) -> BodyDigest {
        let lines = match self.lines {
            Decoder::Plain(lines) => Ok(lines),
            Decoder::Gzip(decoder) => decoder.finish(),
            Decoder::Zstd(decoder) => decoder.finish(),
            Decoder::Broken => Err(io::ErrorKind::InvalidData.into()),
        };
        let sha256 = self.hasher.finish();
        match lines {
            Ok(lines) => {
                let records = lines.count;
                let outcomes = lines.checks.into_iter().map(|check| check.finish(records)).collect();
                BodyDigest { sha256, records: Some(records), outcomes }
            }
            Err(_) => BodyDigest { sha256, records: None, outcomes: Vec::new() },
        }
    }
}

fn zstd_decoder(lines: Lines) -> io::Result<zstd::stream::write::Decoder<'static, Lines>> {
    let mut decoder = zstd::stream::write::Decoder::new(lines)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
    Ok(decoder)
}

/// The most bytes of a line that is kept, unless the receipt's own events are longer: the daemon's default
/// for an event, and what a text line is wrapped in. Many objects are read at once, and a few KB can
/// inflate to a line of gigabytes.
const LINE_MAX_BYTES: u64 = (1024 + 4) * 1024;

/// Counts lines; gathers one only where a check wants to see it, and no further than the longest that it may be.
#[derive(Default)]
struct Lines {
    count: u64,
    line: Vec<u8>,
    /// The line is longer than is gathered.
    is_too_long: bool,
    checks: Vec<Check>,
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.checks.is_empty() {
            self.count += memchr::memchr_iter(b'\n', bytes).count() as u64;
            return Ok(bytes.len());
        }
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            // The first receipt that wants the line decides. An object may have thousands of receipts, and each line is
            // an event of only one of them.
            let longest = self.checks.iter().find_map(|check| check.wants(self.count));
            if let Some(longest) = longest.filter(|_| !self.is_too_long) {
                self.is_too_long = (self.line.len() + part.len()) as u64 > longest.max(LINE_MAX_BYTES);
                if !self.is_too_long {
                    self.line.extend_from_slice(part);
                }
            }
            if part.ends_with(b"\n") {
                let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
                let line = Some(line).filter(|_| !self.is_too_long);
                self.checks.iter_mut().for_each(|check| check.line(self.count, line));
                self.line.clear();
                self.is_too_long = false;
                self.count += 1;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(codec: Codec, body: &[u8]) -> (Sha256, Option<u64>) {
        let mut reader = BodyReader::new(codec, Vec::new());
        body.chunks(7).for_each(|chunk| reader.update(chunk));
        let digest = reader.finish();
        (digest.sha256, digest.records)
    }

    #[test]
    fn bodies_of_every_codec_are_hashed_as_stored_and_counted_as_written() {
        let plain = b"{\"a\":1}\n{\"b\":2}\n{}\n".repeat(100);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(&plain).unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::encode_all(plain.as_slice(), 3).unwrap();
        for (codec, body) in [(Codec::None, &plain), (Codec::Gzip, &gzip), (Codec::Zstd, &zstd)] {
            assert_eq!(read(codec, body), (Sha256::of(body), Some(300)), "{codec:?}");
        }
        for (codec, body) in [(Codec::Gzip, &gzip), (Codec::Zstd, &zstd)] {
            let torn = &body[..body.len() - 1];
            assert_eq!(read(codec, torn), (Sha256::of(torn), None), "{codec:?}");
            assert_eq!(read(codec, &plain), (Sha256::of(&plain), None), "{codec:?}");
        }
    }

    #[test]
    fn a_window_larger_than_the_daemons_own_is_not_made_room_for() {
        for (log, records) in [(ZSTD_WINDOW_LOG_MAX, Some(2)), (ZSTD_WINDOW_LOG_MAX + 1, None)] {
            let mut zstd = zstd::Encoder::new(Vec::new(), 3).unwrap();
            zstd.window_log(log).unwrap();
            zstd.write_all(b"{}\n{}\n").unwrap();
            let body = zstd.finish().unwrap();
            assert_eq!(self::read(Codec::Zstd, &body).1, records, "2^{log} bytes");
        }
    }

    #[test]
    fn a_body_that_inflates_to_one_endless_line_is_judged_in_bounded_memory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("receipts");
        std::fs::write(&path, r#"{"accepted":1,"object":"k","line":0,"events":[{"a":1}]}"#).unwrap();
        let receipts = super::super::receipts::Receipts::read(&[path]).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        let piece = vec![b'x'; 1 << 20];
        (0..64).for_each(|_| gzip.write_all(&piece).unwrap());
        gzip.write_all(b"\n{}\n").unwrap();
        let mut reader = BodyReader::new(Codec::Gzip, receipts.checks(&["k".to_owned()]));
        for chunk in gzip.finish().unwrap().chunks(1000) {
            reader.update(chunk);
            if let Decoder::Gzip(decoder) = &reader.lines {
                let gathered = decoder.get_ref().line.capacity() as u64;
                assert!(gathered <= 2 * LINE_MAX_BYTES, "{gathered} bytes");
            }
        }
        let digest = reader.finish();
        assert_eq!(digest.records, Some(2));
        let wrong = digest.outcomes[0].wrong.as_deref().unwrap();
        assert!(wrong.contains("line 0 is longer than any event of the receipt"), "{wrong}");
    }
}
