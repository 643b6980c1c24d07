//! The spool's lock, and its manifest: format, instances, and the bucket that its events were
//! accepted for.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::batch::LogType;
use crate::spool::disk::{self, Disk};

/// File names in the spool's folder.
const LOCK: &str = "lock";
const MANIFEST: &str = "manifest.json";

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

/// Where a spool's objects go. A spool never changes it while it holds a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// `AWS_ENDPOINT_URL_S3`, empty for AWS itself.
    pub endpoint: String,
    /// Bucket name.
    pub bucket: String,
    /// Its region.
    pub region: String,
    /// The key prefix, empty for none.
    pub path: String,
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Destination { endpoint, bucket, region, path } = self;
        write!(f, "bucket {bucket}, path {path:?}, region {region}, endpoint {endpoint:?}")
    }
}

/// `<spool>/manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Of the spool's names and files, [`FORMAT`] or older.
    pub format: u32,
    /// Names this spool in the STS session.
    pub instance: String,
    /// Whose chain each log type's batches are numbered in; by [`LogType::index`].
    pub chains: [String; 2],
    /// Where the objects go.
    #[serde(flatten)]
    pub destination: Destination,
}

/// Why a manifest can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Reading or writing failed.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The manifest's file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Not the JSON that this or an older version wrote.
    #[error("{path} is not a manifest of this daemon ({reason}); move the spool away or repair it by hand", path = path.display())]
    Malformed {
        /// The manifest's file.
        path: PathBuf,
        /// The parser's reason.
        reason: String,
    },
    /// There are batches, and nothing says where they belong.
    #[error("{path} holds {batches} batches and no manifest.json that says for which bucket; put it back, or move the batches away", path = path.display())]
    Missing {
        /// The spool.
        path: PathBuf,
        /// How many it holds.
        batches: usize,
    },
    /// Written by a newer version.
    #[error("the spool has format {found}, this version reads up to {FORMAT}; run the newer version again")]
    Newer {
        /// Its format.
        found: u32,
    },
}

impl Manifest {
    /// A manifest for a spool that has held nothing yet.
    pub fn new(destination: Destination) -> Manifest {
        let instance = new_instance();
        Manifest { format: FORMAT, chains: [instance.clone(), instance.clone()], instance, destination }
    }

    /// Whose chain a log type's batches belong to.
    pub fn chain(&self, log_type: LogType) -> &str {
        &self.chains[log_type.index()]
    }

    /// Reads the manifest of a spool; `None` when it has none yet.
    pub fn read(disk: &dyn Disk, spool: &Path) -> Result<Option<Manifest>, ManifestError> {
        let path = spool.join(MANIFEST);
        let bytes = match disk::read(disk, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ManifestError::Io { path, source }),
            Ok(bytes) => bytes,
        };
        Self::parse(path, &bytes).map(Some)
    }

    fn parse(path: PathBuf, bytes: &[u8]) -> Result<Manifest, ManifestError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let malformed =
            |error: serde_json::Error| ManifestError::Malformed { path: path.clone(), reason: error.to_string() };
        let Format { format } = serde_json::from_slice(bytes).map_err(malformed)?;
        if format > FORMAT {
            return Err(ManifestError::Newer { found: format });
        }
        serde_json::from_slice(bytes).map_err(malformed)
    }

    /// Writes the manifest durably.
    pub fn write(&self, disk: &dyn Disk, spool: &Path) -> Result<(), ManifestError> {
        let io = |source| ManifestError::Io { path: spool.join(MANIFEST), source };
        let mut bytes = serde_json::to_vec_pretty(self).map_err(io::Error::from).map_err(io)?;
        bytes.push(b'\n');
        disk::replace(disk, spool, MANIFEST, &bytes).map_err(io)
    }
}

/// 32 hex digits; a chain's name for ever.
pub fn new_instance() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// The process id in a lock's file, or `unknown`.
fn holder_in(file: &mut File) -> String {
    let mut holder = String::new();
    let known = file.read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
    if known { holder.trim().to_owned() } else { "unknown".to_owned() }
}

/// Held for as long as the daemon uses a spool; the kernel gives it back when the process ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

/// What makes a folder this daemon's spool, for as long as it is open.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) manifest: Manifest,
    pub(super) lock: Mutex<Lock>,
}

impl Home {
    /// Takes the lock and writes the manifest again where somebody removed them.
    ///
    /// # Errors
    /// Another daemon has the spool by now, or the disk refuses.
    pub(super) fn restore(&self, disk: &dyn Disk, spool: &Path) -> io::Result<()> {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if !lock.is_in_place(spool) {
            *lock = Lock::take(spool).map_err(io::Error::other)?;
        }
        match Manifest::read(disk, spool).map_err(io::Error::other)? {
            Some(_) => Ok(()),
            None => self.manifest.write(disk, spool).map_err(io::Error::other),
        }
    }
}

/// Why a spool can't be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon uses it.
    #[error("the spool {spool} is in use by process {holder}; two daemons never share a spool", spool = spool.display())]
    Held {
        /// The spool's folder.
        spool: PathBuf,
        /// The holder's process id, or `unknown`.
        holder: String,
    },
    /// The lock's file can't be made.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The lock's file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl Lock {
    /// The process that holds the lock of a spool, if one does; changes nothing.
    pub fn holder(spool: &Path) -> io::Result<Option<String>> {
        let mut file = match File::open(spool.join(LOCK)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => Ok(Some(holder_in(&mut file))),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Whether the file that is locked is the one that others find: theirs may have taken its place.
    fn is_in_place(&self, spool: &Path) -> bool {
        let found = [self.file.metadata(), fs::metadata(spool.join(LOCK))];
        let [locked, there] = found.map(|found| found.ok().map(|file| (file.dev(), file.ino())));
        locked == there
    }

    /// Takes the lock of a spool, without waiting.
    pub fn take(spool: &Path) -> Result<Lock, LockError> {
        let path = spool.join(LOCK);
        let io = |source| LockError::Io { path: path.clone(), source };
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).clone();
        let mut file = options.open(&path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LockError::Held { spool: spool.to_owned(), holder: holder_in(&mut file) });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        // The process id only helps people; a full disk must not keep the daemon from starting.
        let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Lock { file })
    }
}
