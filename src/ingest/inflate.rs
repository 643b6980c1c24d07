//! Undoes `Content-Encoding` while a body arrives, piece by piece, into memory that was charged for before. Every byte
//! of a body is part of what a decoder has read to its end, or is an error: nothing is left behind.

use std::io;

use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Decoder as ZstdDecoder, InBuffer, Operation, OutBuffer};

use crate::protocols::Encoding;

/// The largest zstd window, 8 MiB, that RFC 8878 asks a decoder to take.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
const ZSTD_WINDOW_MAX_BYTES: usize = 1 << ZSTD_WINDOW_LOG_MAX;
/// What the window of RFC 1951, and what belongs to it, takes.
const DEFLATE_BYTES: usize = 64 * 1024;
/// What zstd takes beside its window, which keeps the end of the output a second time.
pub(super) const ZSTD_BYTES: usize = 256 * 1024;
/// The most that inflating takes beside its output.
pub(super) const MAX_BYTES_BESIDE: usize = ZSTD_BYTES + ZSTD_WINDOW_MAX_BYTES;

/// A body may have a stream every few bytes, and a decoder takes some microseconds to make. After so many
/// streams other tasks get their turn.
const STREAMS_AT_ONCE: usize = 64;

/// What inflating a body of `bytes` takes, its output included: memory for the output is doubled as it grows.
pub(super) fn bytes_for(bytes: usize) -> usize {
    let output = bytes.saturating_mul(2);
    output.saturating_add(ZSTD_BYTES + output.min(ZSTD_WINDOW_MAX_BYTES))
}

/// Inflates one body.
pub(super) struct Inflater {
    encoding: Encoding,
    /// Of the stream that is being read, or was read last; a body may have several streams, one after the other.
    decoder: Option<Decoder>,
    /// Before the first stream, or behind the end of one.
    is_between: bool,
}

enum Decoder {
    Deflate(Decompress),
    Zstd(ZstdDecoder<'static>),
}

impl Inflater {
    /// For a body that is encoded; `None` for one that is not.
    pub(super) fn new(encoding: Encoding) -> Option<Box<Inflater>> {
        (encoding != Encoding::Identity).then(|| Box::new(Inflater { encoding, decoder: None, is_between: true }))
    }

    /// The memory that inflating takes beside an output of `output` bytes.
    pub(super) fn bytes_beside(&self, output: usize) -> usize {
        match self.encoding {
            Encoding::Zstd => ZSTD_BYTES + output.min(ZSTD_WINDOW_MAX_BYTES),
            _ => DEFLATE_BYTES,
        }
    }

    /// The largest output that, with what inflating takes beside it, stays within `bytes`.
    pub(super) fn output_within(&self, bytes: usize) -> usize {
        match self.encoding {
            Encoding::Zstd => {
                let bytes = bytes.saturating_sub(ZSTD_BYTES);
                (bytes / 2).max(bytes.saturating_sub(ZSTD_WINDOW_MAX_BYTES))
            }
            _ => bytes.saturating_sub(DEFLATE_BYTES),
        }
    }

    /// Appends to `output`, within its capacity, what `input` inflates to, up to the end of [`STREAMS_AT_ONCE`]
    /// streams; how much of `input` was used. All that this much gives has been written where capacity is left.
    pub(super) fn write(&mut self, input: &[u8], output: &mut Vec<u8>) -> io::Result<usize> {
        let (mut used, mut streams) = (0, 0);
        while output.len() < output.capacity() && streams < STREAMS_AT_ONCE {
            let rest = &input[used..];
            let decoder = match (&mut self.decoder, rest.first()) {
                (_, None) if self.is_between => break,
                // It goes on with the next frame by itself.
                (Some(decoder @ Decoder::Zstd(_)), _) => decoder,
                (place, Some(first)) if self.is_between => place.insert(Decoder::new(self.encoding, *first)?),
                (Some(decoder), _) => decoder,
                (None, _) => break,
            };
            let written = output.len();
            let (read, ended) = decoder.step(rest, output)?;
            used += read;
            self.is_between = ended;
            streams += usize::from(ended);
            if !ended && read == 0 && output.len() == written {
                break;
            }
        }
        Ok(used)
    }

    /// Whether the input may end here.
    pub(super) fn is_whole(&self) -> bool {
        self.is_between
    }
}

impl Decoder {
    /// For the stream that begins with `first`.
    fn new(encoding: Encoding, first: u8) -> io::Result<Decoder> {
        // Some clients send `deflate` without the zlib wrapper that RFC 9110 asks for. That begins with its method, 8,
        // and the size of its window, 7 or less; no block of RFC 1951 that an encoder writes does.
        let zlib = first & 0x0f == 8 && first >> 4 <= 7;
        Ok(match encoding {
            Encoding::Deflate => Decoder::Deflate(Decompress::new(zlib)),
            Encoding::Zstd => {
                let mut decoder = ZstdDecoder::new()?;
                decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))?;
                Decoder::Zstd(decoder)
            }
            Encoding::Gzip | Encoding::Identity => Decoder::Deflate(Decompress::new_gzip(15)),
        })
    }

    /// How much of `input` was used, and whether the stream ended.
    fn step(&mut self, input: &[u8], output: &mut Vec<u8>) -> io::Result<(usize, bool)> {
        match self {
            Decoder::Deflate(decoder) => {
                let before = decoder.total_in();
                let status = decoder.decompress_vec(input, output, FlushDecompress::None);
                let status = status.map_err(|_| io::Error::other("it is no whole stream of gzip or deflate"))?;
                let used = usize::try_from(decoder.total_in() - before).unwrap_or_default();
                Ok((used, status == Status::StreamEnd))
            }
            Decoder::Zstd(decoder) => {
                let end = output.len();
                let (mut input, mut output) = (InBuffer::around(input), OutBuffer::around_pos(output, end));
                let left = decoder.run(&mut input, &mut output).map_err(|error| {
                    // zstd has no code for it that the library hands on.
                    let is_window = error.to_string().contains("too much memory");
                    let window = "its zstd window is larger than the 8 MiB that RFC 9659 allows";
                    io::Error::other(if is_window { window } else { "it is no whole stream of zstd" })
                })?;
                Ok((input.pos(), left == 0))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const MIB: usize = 1024 * 1024;
    const TEXT: &[u8] = b"What goes in comes out, whatever the pieces are: one, two, three, one, two, three.\n";

    fn encoded(encoding: &str) -> Vec<u8> {
        let text = TEXT.repeat(50);
        let level = flate2::Compression::default();
        macro_rules! deflate {
            ($encoder:ident) => {{
                let mut encoder = flate2::write::$encoder::new(Vec::new(), level);
                encoder.write_all(&text).unwrap();
                encoder.finish().unwrap()
            }};
        }
        match encoding {
            "gzip" => deflate!(GzEncoder),
            "zlib" => deflate!(ZlibEncoder),
            "deflate" => deflate!(DeflateEncoder),
            _ => zstd::encode_all(&text[..], 3).unwrap(),
        }
    }

    /// What comes of `input` in pieces of `step` bytes, with room for as many at a time.
    fn inflate(encoding: Encoding, input: &[u8], step: usize) -> Result<Vec<u8>, String> {
        let mut inflater = Inflater::new(encoding).unwrap();
        let mut all = Vec::new();
        for mut piece in input.chunks(step) {
            loop {
                let mut output = Vec::with_capacity(step);
                let used = inflater.write(piece, &mut output).map_err(|error| error.to_string())?;
                let room_left = output.len() < output.capacity();
                all.extend(output);
                piece = &piece[used..];
                if room_left {
                    assert!(piece.is_empty(), "{encoding:?}: input is left where there is room");
                    break;
                }
            }
        }
        if inflater.is_whole() { Ok(all) } else { Err("ends early".to_owned()) }
    }

    const ALL: [(Encoding, &str); 4] = [
        (Encoding::Gzip, "gzip"),
        (Encoding::Deflate, "zlib"),
        (Encoding::Deflate, "deflate"),
        (Encoding::Zstd, "zstd"),
    ];

    #[test]
    fn every_encoding_is_inflated_whatever_pieces_it_comes_in() {
        for (encoding, name) in ALL {
            for step in [1, 2, 7, 100, 64 * 1024] {
                assert_eq!(inflate(encoding, &encoded(name), step), Ok(TEXT.repeat(50)), "{name} in steps of {step}");
            }
        }
    }

    #[test]
    fn only_so_many_streams_are_read_at_once() {
        for (encoding, name) in ALL {
            let whole = encoded(name);
            let (mut inflater, mut output) = (Inflater::new(encoding).unwrap(), Vec::with_capacity(MIB));
            let many = whole.repeat(STREAMS_AT_ONCE + 1);
            assert_eq!(inflater.write(&many, &mut output).unwrap(), many.len() - whole.len(), "{name}");
            assert_eq!(inflater.write(&whole, &mut output).unwrap(), whole.len(), "{name}");
            assert!(inflater.is_whole() && output == TEXT.repeat(50 * (STREAMS_AT_ONCE + 1)), "{name}");
        }
    }

    #[test]
    fn streams_one_behind_the_other_are_all_inflated() {
        for (encoding, name) in ALL {
            for step in [1, 7, 64 * 1024] {
                let twice = encoded(name).repeat(2);
                assert_eq!(inflate(encoding, &twice, step), Ok(TEXT.repeat(100)), "{name} in steps of {step}");
            }
        }
    }

    #[test]
    fn zstd_that_begins_with_a_skippable_frame_is_recognised_and_inflated() {
        for first in [0x50, 0x5f] {
            let skippable = [first, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, b'a', b'b', b'c', b'd'];
            let body = [&skippable[..], &encoded("zstd")].concat();
            assert_eq!(Encoding::by_magic(&body), Encoding::Zstd);
            for step in [1, 7, 64 * 1024] {
                assert_eq!(inflate(Encoding::Zstd, &body, step), Ok(TEXT.repeat(50)), "in steps of {step}");
            }
        }
    }

    #[test]
    fn what_is_cut_short_changed_or_followed_by_something_else_is_refused() {
        for (encoding, name) in ALL {
            let whole = encoded(name);
            for cut in 1..whole.len() {
                assert!(inflate(encoding, &whole[..cut], 64).is_err(), "{name} cut to {cut} bytes");
            }
            for left_behind in [&b"x"[..], b"{\"n\":3}\n", b"\x07\x07\x07", &whole[..whole.len() - 1]] {
                let both = [&whole[..], left_behind].concat();
                assert!(inflate(encoding, &both, 64).is_err(), "{name} and {left_behind:?}");
            }
        }
        for name in ["gzip", "zlib"] {
            let encoding = if name == "gzip" { Encoding::Gzip } else { Encoding::Deflate };
            let mut changed = encoded(name);
            let checksum = changed.len() - if name == "gzip" { 8 } else { 4 };
            changed[checksum] ^= 1;
            assert!(inflate(encoding, &changed, 64).is_err(), "{name} with another checksum");
        }
    }

    #[test]
    fn what_output_and_inflating_take_together_is_told_both_ways() {
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let inflater = Inflater::new(encoding).unwrap();
            for bytes in [MIB, 8 * MIB, 16 * MIB, 17 * MIB, 24 * MIB + ZSTD_BYTES] {
                let output = inflater.output_within(bytes);
                let takes = |output| output + inflater.bytes_beside(output);
                assert!(takes(output) <= bytes && takes(output + 1) > bytes, "{encoding:?} {bytes}");
            }
            assert_eq!(inflater.output_within(0), 0);
        }
    }

    #[test]
    fn two_zlib_streams_are_both_read() {
        let bytes = include_bytes!("../../tests/fixtures/bodies/deflate-two-streams.bin");
        assert_eq!(inflate(Encoding::Deflate, bytes, 64), Ok(b"{\"n\":1}\n{\"n\":2}\n".to_vec()));
    }
}
