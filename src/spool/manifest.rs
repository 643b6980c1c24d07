//! The spool's lock, and its manifest: format, instance ids, and the bucket that its events were accepted for.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::batch::{ByType, LogType, counted};
use crate::spool::disk::{self, Disk, OsDisk};
use crate::volume::{self, name};

/// File names in the spool's folder.
pub(crate) const LOCK: &str = "lock";
pub(super) const MANIFEST: &str = "manifest.json";

/// Far more than a manifest has: a larger file is not one.
const MANIFEST_MAX_BYTES: u64 = 64 * 1024;

/// The longest of a destination's parts. The configuration's are shorter; with longer ones a request has no URL.
const PART_MAX_BYTES: usize = 4096;

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
        // The manifest's file may have been changed: nothing in it may look like another line of ours.
        let (bucket, region) = (bucket.escape_debug(), region.escape_debug());
        write!(f, "bucket {bucket}, path {path:?}, region {region}, endpoint {endpoint:?}")
    }
}

/// `<spool>/manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format of the spool's names and files, [`FORMAT`] or older.
    pub format: u32,
    /// Names this spool in the STS session.
    pub instance: String,
    /// The instance id of each log type's chain.
    pub chains: ByType<String>,
    /// Where the objects go.
    #[serde(flatten)]
    pub destination: Destination,
}

/// Why a manifest can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Reading or writing failed.
    #[error("{path}: {reason}; {remedy}", path = path.display(), remedy = volume::remedy(path, reason))]
    Io {
        /// The manifest's file.
        path: PathBuf,
        /// The system's.
        reason: io::Error,
    },
    /// It is not the JSON that this or an older version wrote.
    #[error("{path} is not a manifest of this daemon ({reason}); move the spool away or repair it by hand", path = path.display())]
    Malformed {
        /// The manifest's file.
        path: PathBuf,
        /// The parser's reason.
        reason: String,
    },
    /// There are batches, and no manifest says where they belong.
    #[error("{path} holds {counted} and no manifest.json that says for which bucket; put it back, or move what it holds away", path = path.display(), counted = counted(*batches, "batch"))]
    Missing {
        /// The spool.
        path: PathBuf,
        /// How many it holds.
        batches: usize,
    },
    /// A newer version wrote it.
    #[error("the spool has format {found}, this version reads up to {FORMAT}; run the newer version again")]
    Newer {
        /// The format that it has.
        found: u32,
    },
}

impl Manifest {
    /// A manifest for a new spool.
    pub fn new(destination: Destination) -> Manifest {
        let instance = new_instance();
        Manifest { format: FORMAT, chains: ByType::new(|_| instance.clone()), instance, destination }
    }

    /// The instance id of a log type's chain.
    pub fn chain(&self, log_type: LogType) -> &str {
        &self.chains[log_type]
    }

    /// Reads the manifest of a spool; `None` when it has none yet.
    pub fn read(disk: &dyn Disk, spool: &Path) -> Result<Option<Manifest>, ManifestError> {
        let path = spool.join(MANIFEST);
        match disk::read(disk, &path, MANIFEST_MAX_BYTES) {
            Ok(bytes) => Self::parse(path, &bytes).map(Some),
            Err(reason) if reason.kind() == io::ErrorKind::FileTooLarge => {
                Err(ManifestError::Malformed { path, reason: reason.to_string() })
            }
            // Only a missing file means a new spool: where an unreadable one did, batches would be numbered from 1 again.
            Err(reason) => match disk.identify(&path) {
                Ok(None) => Ok(None),
                Ok(Some(_)) => Err(ManifestError::Io { path, reason }),
                Err(reason) => Err(ManifestError::Io { path, reason }),
            },
        }
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
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(malformed)?;
        let Destination { endpoint, bucket, region, path: prefix } = &manifest.destination;
        if [endpoint, bucket, region, prefix].into_iter().any(|part| part.len() > PART_MAX_BYTES) {
            let reason = format!("a part of its destination has more than {PART_MAX_BYTES} bytes");
            return Err(ManifestError::Malformed { path, reason });
        }
        Ok(manifest)
    }

    /// Writes the manifest durably.
    pub fn write(&self, disk: &dyn Disk, spool: &Path) -> Result<(), ManifestError> {
        let io = |reason| ManifestError::Io { path: spool.join(MANIFEST), reason };
        let mut bytes = serde_json::to_vec_pretty(self).map_err(io::Error::from).map_err(io)?;
        bytes.push(b'\n');
        disk::replace(disk, spool, MANIFEST, &bytes).map_err(io)
    }
}

/// A new instance id: 32 random hex digits.
pub fn new_instance() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Stands for the process id of a lock's holder that its file doesn't tell.
const UNKNOWN: &str = "unknown";

/// The process id in a lock's file, or [`UNKNOWN`].
fn holder_in(file: &mut File) -> String {
    let mut holder = String::new();
    let known = file.read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
    if known { holder.trim().to_owned() } else { UNKNOWN.to_owned() }
}

/// The lock that keeps a second daemon out of a spool. The kernel releases it when the process ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
    /// When the file was written to as the lock was taken. Whoever takes the lock later writes to it.
    written_at: Option<SystemTime>,
    /// The spool's folder, locked as well where the file system can. This lock stays when somebody removes the file.
    folder: File,
}

/// Why a spool can't be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon uses it.
    #[error("the spool {spool} is in use by process {holder}; two daemons never share a spool: stop that one first, or give this one an ENV0_S3_LOG_SPOOL_DIR of its own", spool = spool.display())]
    Held {
        /// The spool's folder.
        spool: PathBuf,
        /// The process id of the other daemon, or `unknown`.
        holder: String,
    },
    /// The lock's file, or the spool's folder, can't be opened.
    #[error("open {path}: {reason}; {remedy}", path = path.display(), remedy = volume::remedy(path, reason))]
    Io {
        /// The file or the folder.
        path: PathBuf,
        /// The system's.
        reason: io::Error,
    },
    /// The file system has no locks.
    #[error("{path}: the file system can't lock a file (flock: {reason}), so nothing would keep two daemons apart; choose an ENV0_S3_LOG_SPOOL_DIR on one that can (NFS: with its lock service)", path = path.display())]
    Unsupported {
        /// The lock's file.
        path: PathBuf,
        /// The system's.
        reason: io::Error,
    },
}

fn written_at(file: &File) -> Option<SystemTime> {
    file.metadata().and_then(|metadata| metadata.modified()).ok()
}

impl Lock {
    /// The lock's file in a spool. Whoever takes the lock writes to it.
    pub fn path(spool: &Path) -> PathBuf {
        spool.join(LOCK)
    }

    /// The process that has locked a spool, if one has. Changes nothing.
    pub fn holder(spool: &Path) -> io::Result<Option<String>> {
        let path = Self::path(spool);
        let mut file = match disk::open_regular(OpenOptions::new().read(true), &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => match OsDisk.identify(&path) {
                Ok(None) => return Ok(None),
                Ok(Some(_)) => return Err(name("open", &path)(error)),
                Err(error) => return Err(name("stat", &path)(error)),
            },
            opened => opened.map_err(name("open", &path))?,
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => Ok(Some(holder_in(&mut file))),
            Err(TryLockError::Error(error)) => Err(name("flock", &path)(error)),
        }
    }

    /// Takes the lock of a spool, without waiting.
    pub fn take(spool: &Path) -> Result<Lock, LockError> {
        let folder = File::open(spool).map_err(|reason| LockError::Io { path: spool.to_owned(), reason })?;
        // Before the file: where somebody removed the running daemon's, a file that is made here would look to that daemon
        // like another one's, and keep it from its own spool.
        if matches!(folder.try_lock(), Err(TryLockError::WouldBlock)) {
            let holder = Self::holder(spool).ok().flatten().unwrap_or_else(|| UNKNOWN.to_owned());
            return Err(LockError::Held { spool: spool.to_owned(), holder });
        }
        // Any other error: NFS can't lock a folder, and the file's lock is enough.
        let file = Self::take_file(spool)?;
        Ok(Lock { written_at: written_at(&file), file, folder })
    }

    /// Makes the lock's file again, which somebody removed, and locks it.
    pub(super) fn take_again(&mut self, spool: &Path) -> Result<(), LockError> {
        self.file = Self::take_file(spool)?;
        self.written_at = written_at(&self.file);
        Ok(())
    }

    fn take_file(spool: &Path) -> Result<File, LockError> {
        let path = Self::path(spool);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let opened = disk::open_regular(&mut options, &path);
        let mut file = opened.map_err(|reason| LockError::Io { path: path.clone(), reason })?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LockError::Held { spool: spool.to_owned(), holder: holder_in(&mut file) });
            }
            Err(TryLockError::Error(reason)) => return Err(LockError::Unsupported { path, reason }),
        }
        // An error is ignored: only people read the process id, and a full disk must not keep the daemon from starting.
        let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        // So that a volume that comes back has the time of this, see `is_mounted_anew`.
        let _ = file.sync_all();
        Ok(file)
    }

    /// Whether the locked file is still the one under the lock's name: another may have taken its place.
    pub(super) fn is_in_place(&self, spool: &Path) -> bool {
        let found = [self.file.metadata(), fs::symlink_metadata(Self::path(spool))];
        let [locked, there] = found.map(|found| found.ok().map(|file| (file.dev(), file.ino())));
        locked.is_some() && locked == there
    }

    /// Whether the locked file was removed. While its volume is unmounted it was not, though its path finds nothing.
    pub(super) fn is_removed(&self) -> io::Result<bool> {
        let locked = self.file.metadata().map_err(name("stat", Path::new(LOCK)))?;
        Ok(locked.nlink() == 0)
    }

    /// Whether `spool` has the locked folder and file on another device, while the place that is locked takes no fsync
    /// any more: the volume was lost and is mounted anew. A copy of the volume looks the same, but then the place that
    /// is locked is alive. Nobody may have taken the lock meanwhile: another daemon or a `drain` may have delivered a
    /// batch of which this one still has events to seal, and they would be stored twice.
    pub(super) fn is_mounted_anew(&self, spool: &Path) -> bool {
        let held = [self.folder.metadata(), self.file.metadata()];
        let found = [fs::metadata(spool), fs::symlink_metadata(Self::path(spool))];
        let is_the_same = held.into_iter().zip(found).all(|(held, found)| match (held, found) {
            (Ok(held), Ok(found)) => held.ino() == found.ino() && held.dev() != found.dev(),
            // The file system that it was on is gone, so its number can't be compared.
            (Err(_), Ok(_)) => true,
            (_, Err(_)) => false,
        });
        let found = fs::symlink_metadata(Self::path(spool)).and_then(|file| file.modified()).ok();
        let is_untouched = self.written_at.is_some() && self.written_at == found;
        is_the_same && is_untouched && self.folder.sync_all().is_err()
    }

    /// Whether the path `spool` leads to the locked folder.
    pub(super) fn is_folder(&self, spool: &Path) -> bool {
        let found = [self.folder.metadata(), fs::metadata(spool)];
        let [locked, there] = found.map(|found| found.ok().map(|folder| (folder.dev(), folder.ino())));
        locked.is_some() && locked == there
    }

    /// Whether another file has the lock's name.
    pub(super) fn is_replaced(&self, spool: &Path) -> bool {
        !self.is_in_place(spool) && fs::symlink_metadata(Self::path(spool)).is_ok()
    }
}
