//! Files that a person names in a variable: secrets, keys and certificates.

use std::fs::OpenOptions;
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use secrecy::zeroize::Zeroizing;

/// What a file may hold, in bytes: above the largest list of certificates that systems ship, which has 0.7 MiB.
pub const MAX_BYTES: usize = 1024 * 1024;

/// All that a file holds.
///
/// A wrong path may name a device or a log file that never ends, or a pipe that nobody writes to. The daemon would
/// read until its memory is used up, or wait for ever.
///
/// # Errors
/// The system's, or that the file is no regular one, or has more than [`MAX_BYTES`].
pub fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    // A pipe is opened at once with it, whether somebody writes to it or not.
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(Error::new(ErrorKind::IsADirectory, "it is a directory"));
    }
    if !metadata.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "it is a device or a pipe, not a file"));
    }
    // Room for all from the start: a buffer that grows leaves copies of a secret behind.
    let room = usize::try_from(metadata.len()).unwrap_or(MAX_BYTES).min(MAX_BYTES);
    let mut bytes = Zeroizing::new(Vec::with_capacity(room + 1));
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_BYTES {
        return Err(Error::new(ErrorKind::FileTooLarge, format!("it has more than {MAX_BYTES} bytes")));
    }
    Ok(bytes)
}

/// The same where the file must be text.
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

#[cfg(test)]
mod tests;
