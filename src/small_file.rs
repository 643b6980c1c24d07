//! Files that a person names in a variable: secrets, keys and certificates.

use std::fs::OpenOptions;
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use secrecy::zeroize::Zeroizing;

/// What a file of secrets or a key may hold, in bytes.
pub const MAX_BYTES: usize = 1024 * 1024;
/// The byte order mark of UTF-8. At the beginning of a file or a document it is an editor's, and no part of what is said.
pub const BOM: &[u8] = b"\xef\xbb\xbf";
/// How long a pipe is waited for.
const PIPE_PATIENCE: Duration = Duration::from_secs(5);

/// All that a file of at most [`MAX_BYTES`] holds, without a byte order mark at its beginning.
///
/// A wrong path may name a device or a log file that never ends, or a pipe that nobody writes to. Without the bounds
/// the daemon would read until its memory is used up, or wait for ever.
///
/// # Errors
/// The system's, or that it is a device, that nobody writes to a pipe for 5 s, or that there is more.
pub fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    read_up_to(path, MAX_BYTES)
}

/// As [`read`], for a file of at most `max_bytes`.
///
/// # Errors
/// As for [`read`].
pub fn read_up_to(path: &Path, max_bytes: usize) -> Result<Zeroizing<Vec<u8>>> {
    // A pipe is opened at once with it, whether somebody writes to it or not.
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        // Docker's doing, as a rule.
        return Err(Error::new(
            ErrorKind::IsADirectory,
            "it is a folder, as Docker makes one where the file to mount is missing",
        ));
    }
    let is_pipe = metadata.file_type().is_fifo();
    if !metadata.is_file() && !is_pipe {
        return Err(Error::new(ErrorKind::InvalidInput, "it is a device, not a file"));
    }
    // Room for all from the start: a buffer that grows leaves copies of a secret behind.
    let room = if is_pipe { max_bytes } else { usize::try_from(metadata.len()).unwrap_or(max_bytes).min(max_bytes) };
    let mut bytes = Zeroizing::new(Vec::with_capacity(room + 1));
    let mut part = file.take(max_bytes as u64 + 1);
    if is_pipe {
        read_pipe(&mut part, &mut bytes)?;
    } else {
        part.read_to_end(&mut bytes)?;
    }
    if bytes.len() > max_bytes {
        return Err(Error::new(ErrorKind::FileTooLarge, format!("it has more than {max_bytes} bytes")));
    }
    if bytes.starts_with(BOM) {
        bytes.drain(..BOM.len());
    }
    Ok(bytes)
}

/// As [`read`], for a file that must be text.
///
/// # Errors
/// As for [`read`], or that it is not UTF-8.
pub fn read_text(path: &Path) -> Result<Zeroizing<String>> {
    let bytes = read(path)?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(_) => Err(Error::new(ErrorKind::InvalidData, "it is not UTF-8")),
    }
}

/// What somebody writes to a pipe, as in `--public-key <(vault read …)`. Nothing has come where its writer isn't there
/// yet.
fn read_pipe(pipe: &mut impl Read, bytes: &mut Vec<u8>) -> Result<()> {
    let until = Instant::now() + PIPE_PATIENCE;
    loop {
        match pipe.read_to_end(bytes) {
            Ok(_) if !bytes.is_empty() => return Ok(()),
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
            _ if Instant::now() > until => {
                return Err(Error::new(
                    ErrorKind::TimedOut,
                    format!("nobody writes to the pipe for {PIPE_PATIENCE:?}"),
                ));
            }
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

#[cfg(test)]
mod tests;
