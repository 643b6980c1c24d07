//! All file system calls of the spool go through [`Disk`], so that tests can put faults in.
//!
//! No call makes anything durable but two: [`DiskFile::sync`] a file's bytes, [`Disk::sync_dir`] the names that were
//! created, renamed or removed in a folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::ops::DerefMut;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::batch::{Sha256, Sha256Hasher};
use crate::volume::name;

/// The mode of every file that the daemon makes: events are for its own user alone.
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;
/// Files are shortened and removed in steps of this size. Some volumes discard freed blocks at once (TRIM), and every
/// fsync then waits until the disk has discarded all that one step freed.
const CUT_STEP_BYTES: u64 = 512 * 1024;

/// Identifies a file or a folder: no two on the machine have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    /// The device number of its file system.
    pub device: u64,
    /// Its inode number there.
    pub inode: u64,
    /// Whether it is a folder. A link to a folder is not one.
    pub is_folder: bool,
}

/// A file system, as far as the spool uses one.
///
/// [`Disk::rename`] and [`Disk::remove`] look at the names after an error: on NFS a request that was sent twice is
/// applied and then answers "no such file", and a file system in user space may apply a call and answer any error.
pub trait Disk: Send + Sync {
    /// Makes a folder; no error if it exists.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes a file that must not exist yet, for writing and reading.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Opens a file that exists, for writing and reading.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Identifies the file, folder or link that has this name now; `None` when there is none.
    fn identify(&self, path: &Path) -> io::Result<Option<FileId>>;
    /// Asks for a rename. After an error it may have been done.
    fn try_rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Asks for a removal. After an error it may have been done.
    fn try_remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Calls `each` with the name and the size in bytes of each file in a folder, in no order. Links and folders are
    /// named, too: who has put one there must be told of it. No name is kept in memory, because there may be a million.
    fn visit(&self, path: &Path, each: &mut dyn FnMut(&str, u64)) -> io::Result<()>;

    /// The names and sizes in bytes of the files in a folder that has few files, in no order.
    fn list(&self, path: &Path) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        self.visit(path, &mut |name, bytes| files.push((name.to_owned(), bytes)))?;
        Ok(files)
    }

    /// Renames within the spool; a file that has the new name is replaced. No error if it was done before.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let Err(error) = self.try_rename(from, to) else { return Ok(()) };
        match (self.identify(from), self.identify(to)) {
            (Ok(None), Ok(Some(_))) => Ok(()),
            _ => Err(error),
        }
    }

    /// Removes a file; no error if it does not exist.
    fn remove(&self, path: &Path) -> io::Result<()> {
        match self.try_remove(path) {
            Err(error) if !matches!(self.identify(path), Ok(None)) => Err(error),
            _ => Ok(()),
        }
    }
}

/// An open file of the spool. One owner at a time.
pub trait DiskFile: Send {
    /// Writes all of `bytes` at `offset`. After an error any part of them may be there.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// How many bytes it has.
    fn size(&self) -> io::Result<u64>;
    /// Reads up to a buffer's length at `offset`; 0 is the end.
    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Cuts the file to `len` bytes.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
    /// Asks the system to begin writing a range to the disk, so that [`DiskFile::sync`] has less to wait for. Does not
    /// wait itself, and makes nothing durable.
    fn begin_write_out(&mut self, offset: u64, bytes: u64);
    /// Makes the bytes and the length durable. Fails when the file has no name any more,
    /// because no start would find it.
    fn sync(&mut self) -> io::Result<()>;
}

/// The operating system's file system.
pub struct OsDisk;

impl Disk for OsDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        match fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path) {
            // Also where the folder that has the name can't be looked at.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match fs::metadata(path) {
                Ok(found) if found.is_dir() => Ok(()),
                Err(looked) if looked.kind() != io::ErrorKind::NotFound => Err(name("stat", path)(looked)),
                _ => Err(error),
            },
            made => made,
        }
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(FILE_MODE).open(path)?;
        Ok(Box::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(open_regular(OpenOptions::new().read(true).write(true), path)?))
    }

    fn identify(&self, path: &Path) -> io::Result<Option<FileId>> {
        match fs::symlink_metadata(path) {
            Ok(found) => Ok(Some(FileId { device: found.dev(), inode: found.ino(), is_folder: found.is_dir() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn try_rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn try_remove(&self, path: &Path) -> io::Result<()> {
        let large = open_large(path);
        fs::remove_file(path)?;
        // A file that has another name (a hard link) keeps its bytes.
        if let Some(file) = large.filter(|file| file.metadata().is_ok_and(|metadata| metadata.nlink() == 0)) {
            // If this fails, the system frees the rest in one step when the file is closed.
            let _ = cut(&file, 0);
        }
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn visit(&self, path: &Path, each: &mut dyn FnMut(&str, u64)) -> io::Result<()> {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                // It was removed after its name was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            each(&entry.file_name().to_string_lossy(), metadata.len());
        }
        Ok(())
    }
}

impl DiskFile for File {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.metadata().map(|metadata| metadata.len())
    }

    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        cut(self, len)
    }

    #[cfg(target_os = "linux")]
    fn begin_write_out(&mut self, offset: u64, bytes: u64) {
        // For a dirty page DONTNEED makes Linux write it. If this fails, the fsync writes it.
        let bytes = std::num::NonZeroU64::new(bytes);
        let _ = rustix::fs::fadvise(self, offset, bytes, rustix::fs::Advice::DontNeed);
    }

    /// Other systems have no such call, and the fsync waits longer.
    #[cfg(not(target_os = "linux"))]
    fn begin_write_out(&mut self, _: u64, _: u64) {}

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()?;
        match self.metadata()?.nlink() {
            0 => Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the file was removed from its folder while it was written",
            )),
            _ => Ok(()),
        }
    }
}

/// Opens a regular file of the spool as `options` say. A link, a device or a pipe under the file's name is refused: who
/// could put one there would make the daemon read, send or overwrite another file.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] when no regular file has the name.
pub fn open_regular(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    // NONBLOCK, because opening a pipe would wait for its other end.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let irregular = || io::Error::new(io::ErrorKind::NotFound, "it is a link, a device or a pipe, not a file");
    match options.custom_flags(flags.bits().cast_signed()).open(path) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => Err(irregular()),
        opened => opened.and_then(|file| if file.metadata()?.is_file() { Ok(file) } else { Err(irregular()) }),
    }
}

/// Opens a file that is to be removed and is larger than one step; `None` also where no descriptor is free.
fn open_large(path: &Path) -> Option<File> {
    let metadata = fs::symlink_metadata(path).ok()?;
    (metadata.is_file() && metadata.len() > CUT_STEP_BYTES)
        .then(|| open_regular(OpenOptions::new().write(true), path).ok())?
}

/// Shortens or extends a file to `len` bytes; shortens it in steps.
fn cut(file: &File, len: u64) -> io::Result<()> {
    let mut end = file.metadata()?.len();
    while end > len + CUT_STEP_BYTES {
        end = (end - 1) / CUT_STEP_BYTES * CUT_STEP_BYTES;
        file.set_len(end)?;
    }
    file.set_len(len)
}

/// Reads and writes an open file from its start on, or from another place.
pub struct Cursor<F> {
    file: F,
    offset: u64,
}

impl<F> Cursor<F> {
    /// At the start of a file, borrowed or owned.
    pub fn new(file: F) -> Cursor<F> {
        Cursor::at(file, 0)
    }

    /// At this offset of it.
    pub fn at(file: F, offset: u64) -> Cursor<F> {
        Cursor { file, offset }
    }
}

impl<F: DerefMut<Target: DiskFile>> Read for Cursor<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

impl<F: DerefMut<Target: DiskFile>> Write for Cursor<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_at(bytes, self.offset)?;
        self.offset += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a file as a whole: readers see the old one or the new one, and after `Ok` the new one is durable. After an
/// error no part of the new one takes room.
///
/// The temporary file is fsynced before it takes the name:
///
/// 1. Fsynced, then renamed, then a power cut: the name leads to the old bytes or to the new ones.
/// 2. Renamed, then a power cut before the fsync: the name may lead to an empty file, and the old bytes are lost.
pub fn replace(disk: &dyn Disk, folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    replace_with(disk, folder, name, |file| file.write_all(bytes))
}

/// [`replace`] for bytes that need not be in memory at once.
pub fn replace_with(
    disk: &dyn Disk,
    folder: &Path,
    name: &str,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = folder.join(format!("{name}.tmp"));
    disk.remove(&temporary)?;
    let written = write_new(disk, &temporary, write).and_then(|()| disk.rename(&temporary, &folder.join(name)));
    // If this fails, the next try removes it.
    written.inspect_err(|_| drop(disk.remove(&temporary)))?;
    disk.sync_dir(folder)
}

fn write_new(disk: &dyn Disk, path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut file = disk.create(path)?;
    let mut buffered = BufWriter::with_capacity(READ_BUFFER_BYTES, Cursor::new(&mut *file));
    write(&mut buffered)?;
    buffered.flush()?;
    drop(buffered);
    file.sync()
}

/// All bytes of a file.
///
/// # Errors
/// [`io::ErrorKind::FileTooLarge`] when there are more than `max_bytes`.
pub fn read(disk: &dyn Disk, path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let too_large = || Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {max_bytes} bytes")));
    let mut file = disk.open(path)?;
    // Before any of it is in memory.
    let len = file.size()?;
    if len > max_bytes {
        return too_large();
    }
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or_default() + 1);
    // It may grow meanwhile.
    Cursor::new(&mut *file).take(max_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes { too_large() } else { Ok(bytes) }
}

/// The hash of a file's bytes, all of which are read.
pub fn hash(disk: &dyn Disk, path: &Path) -> io::Result<Sha256> {
    let mut file = disk.open(path)?;
    let mut hasher = Sha256Hasher::default();
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    let mut offset = 0;
    loop {
        match file.read_at(&mut buffer, offset)? {
            0 => return Ok(hasher.finish()),
            read => {
                hasher.update(&buffer[..read]);
                offset += read as u64;
            }
        }
    }
}

/// Checks `folders` within the spool `dir`, before anything is written into them. A missing one is fine: the start makes it.
///
/// # Errors
/// One of them is a link, no folder, or on another file system than the spool.
pub fn judge_folders(disk: &dyn Disk, dir: &Path, folders: impl IntoIterator<Item = PathBuf>) -> io::Result<()> {
    let device = identify_folder(disk, dir)?.device;
    folders.into_iter().try_for_each(|path| judge_folder(disk, &path, device).map(drop))
}

/// Checks one of the folders within a spool that is on `device`; returns what it is, `None` where it is missing.
pub(super) fn judge_folder(disk: &dyn Disk, path: &Path, device: u64) -> io::Result<Option<FileId>> {
    let found = disk.identify(path)?;
    let wrong = match found {
        None => return Ok(None),
        Some(id) if id.is_folder && id.device == device => return Ok(found),
        Some(id) if id.is_folder => "is on another file system than the spool",
        Some(_) => "is a link or no folder",
    };
    let path = path.display();
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{path} {wrong}; a spool is one folder on one file system, and no link in it is followed"),
    ))
}

/// Identifies the folder that a path leads to: the spool's own path may be a link, as under systemd.
pub(super) fn identify_folder(disk: &dyn Disk, dir: &Path) -> io::Result<FileId> {
    disk.identify(&dir.join("."))?.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// How much of a file is read, or gathered for it, at once.
pub const READ_BUFFER_BYTES: usize = 256 * 1024;
