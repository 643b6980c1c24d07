//! Reads a copy's file as calls of CloudWatch. All of it blocks.

use std::io::{self, BufRead, BufReader, Read};

use crate::batch::{self, Codec};
use crate::cloudwatch::calls::{Calls, Event};
use crate::spool::Spool;
use crate::spool::copies::BatchCopy;

/// The largest zstd window, as a power of two, 8 MiB; what the sealer writes needs less.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// A copy that is being read.
pub(super) type Reading = Calls<Box<dyn BufRead + Send>>;

/// Opens a copy, whose object in S3 has this key.
pub(super) fn open(spool: &Spool, copy: &BatchCopy, key: String) -> io::Result<Reading> {
    let batch = copy.name.batch;
    let lines = plain(spool.read_copy(copy)?, batch.codec)?;
    Ok(Calls::new(lines, key, batch.opened))
}

/// The next call, and what is to be read after it.
pub(super) fn next_call(mut reading: Reading) -> (Reading, io::Result<Option<Vec<Event>>>) {
    let call = reading.next_call(batch::now());
    (reading, call)
}

fn plain(file: impl Read + Send + 'static, codec: Codec) -> io::Result<Box<dyn BufRead + Send>> {
    let file = BufReader::new(file);
    Ok(match codec {
        Codec::None => Box::new(file),
        Codec::Gzip => Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(file))),
        Codec::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(file)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(BufReader::new(decoder))
        }
    })
}
