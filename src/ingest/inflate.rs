//! Undoes `Content-Encoding`. Every byte of a body is part of what a decoder has read to its end, or is an error:
//! nothing is left behind.

use std::io::{self, BufReader, Cursor, Read};

use bytes::{Buf, Bytes};
use flate2::read::MultiGzDecoder;
use flate2::{Decompress, FlushDecompress, Status};

use crate::protocols::Encoding;

/// The largest zstd window, 8 MiB, that RFC 8878 asks a decoder to take.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// A body on its way out of its encoding.
pub(super) enum Decoder {
    Gzip(MultiGzDecoder<Cursor<Bytes>>),
    Deflate(Deflate),
    Zstd(zstd::Decoder<'static, BufReader<Cursor<Bytes>>>),
}

impl Decoder {
    /// For a body that is compressed so.
    pub(super) fn new(encoding: Encoding, bytes: Bytes) -> io::Result<Decoder> {
        Ok(match encoding {
            Encoding::Deflate => Decoder::Deflate(Deflate::new(bytes)),
            Encoding::Zstd => {
                let mut decoder = zstd::Decoder::new(Cursor::new(bytes))?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Decoder::Zstd(decoder)
            }
            Encoding::Gzip | Encoding::Identity => Decoder::Gzip(MultiGzDecoder::new(Cursor::new(bytes))),
        })
    }
}

impl Read for Decoder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::Gzip(decoder) => decoder.read(buffer),
            Decoder::Deflate(decoder) => decoder.read(buffer),
            Decoder::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// Streams of zlib or of raw deflate, one after the other. (The decoders of `flate2` for these take the end of the
/// body for the end of a stream, and leave behind what follows a stream.)
pub(super) struct Deflate {
    state: Decompress,
    is_zlib: bool,
    rest: Bytes,
    /// No stream is open.
    between: bool,
}

impl Deflate {
    fn new(bytes: Bytes) -> Deflate {
        // Some clients send `deflate` without the zlib wrapper that RFC 9110 asks for.
        let is_zlib =
            bytes.len() >= 2 && bytes[0] & 0x0f == 8 && u16::from_be_bytes([bytes[0], bytes[1]]).is_multiple_of(31);
        Deflate { state: Decompress::new(is_zlib), is_zlib, rest: bytes, between: true }
    }
}

impl Read for Deflate {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !(buffer.is_empty() || self.between && self.rest.is_empty()) {
            if self.between {
                self.state.reset(self.is_zlib);
                self.between = false;
            }
            let before = (self.state.total_in(), self.state.total_out());
            let status = self.state.decompress(&self.rest, buffer, FlushDecompress::None)?;
            let read = self.state.total_in() - before.0;
            let written = self.state.total_out() - before.1;
            self.rest.advance(usize::try_from(read).map_err(io::Error::other)?);
            self.between = status == Status::StreamEnd;
            if written > 0 {
                return usize::try_from(written).map_err(io::Error::other);
            }
            if read == 0 && !self.between {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn inflated(encoding: Encoding, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        Decoder::new(encoding, Bytes::copy_from_slice(bytes))?.read_to_end(&mut all)?;
        Ok(all)
    }

    fn deflated(text: &[u8]) -> [(Encoding, Vec<u8>); 4] {
        let level = flate2::Compression::default();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), level);
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), level);
        let mut raw = flate2::write::DeflateEncoder::new(Vec::new(), level);
        gzip.write_all(text).unwrap();
        zlib.write_all(text).unwrap();
        raw.write_all(text).unwrap();
        [
            (Encoding::Gzip, gzip.finish().unwrap()),
            (Encoding::Deflate, zlib.finish().unwrap()),
            (Encoding::Deflate, raw.finish().unwrap()),
            (Encoding::Zstd, zstd::encode_all(text, 3).unwrap()),
        ]
    }

    #[test]
    fn every_stream_of_a_body_is_read_and_nothing_may_be_left_behind_one() {
        let (one, two) = (b"{\"n\":1}\n".repeat(5000), b"{\"n\":2}\n".to_vec());
        for ((encoding, first), (_, second)) in deflated(&one).into_iter().zip(deflated(&two)) {
            assert_eq!(inflated(encoding, &first).unwrap(), one, "{encoding:?}");
            let both = inflated(encoding, &[&first[..], &second].concat()).unwrap();
            assert_eq!(both, [&one[..], &two].concat(), "{encoding:?}");
            for left_behind in [&b"x"[..], b"{\"n\":3}\n", &second[..second.len() - 1]] {
                let bytes = [&first[..], left_behind].concat();
                assert!(inflated(encoding, &bytes).is_err(), "{encoding:?} {left_behind:?}");
            }
        }
    }

    #[test]
    fn a_body_that_is_cut_anywhere_is_an_error() {
        let text: Vec<u8> = (0..500_u32).flat_map(|n| format!("{{\"n\":{}}}\n", n * n).into_bytes()).collect();
        for (encoding, whole) in deflated(&text) {
            for end in 1..whole.len() {
                assert!(inflated(encoding, &whole[..end]).is_err(), "{encoding:?} cut at {end} of {}", whole.len());
            }
        }
    }

    #[test]
    fn two_zlib_streams_are_both_read() {
        let bytes = include_bytes!("../../tests/fixtures/bodies/deflate-two-streams.bin");
        assert_eq!(inflated(Encoding::Deflate, bytes).unwrap(), b"{\"n\":1}\n{\"n\":2}\n");
    }
}
