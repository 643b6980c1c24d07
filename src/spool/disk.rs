//! The one hand that touches the file system, and the seam where tests put faults in.
//!
//! Nothing here is durable by itself: a file's bytes are after [`DiskFile::sync`], a name that was
//! created, renamed or removed is after [`Disk::sync_dir`] of its folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::ops::DerefMut;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// Rights of every file that the daemon makes; the umask can only narrow them. The group's are there
/// for volumes that are shared by their group (`fsGroup`), and are taken away elsewhere.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;
/// Files are cut and removed in steps of this size: the blocks that a step gives back are discarded at once on some
/// volumes, and an fsync then waits for as long as the disk takes for that.
const CUT_STEP_BYTES: u64 = 512 * 1024;

/// What tells a file or a folder from every other one on the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    /// The file system.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// Whether it is a folder. A link to one is none.
    pub is_folder: bool,
}

/// A file system, as far as the spool uses one.
///
/// [`Disk::rename`] and [`Disk::remove`] judge by the names, not by the answer alone: on NFS a request that was sent
/// twice is applied and answers "no such file", and a file system in user space may apply one and answer any error.
pub trait Disk: Send + Sync {
    /// Makes a folder; one that exists is fine.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes a file that must not exist yet, for writing and reading.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Opens a file that exists, for writing and reading.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Which file, folder or link has this name now; `None` when none has.
    fn identify(&self, path: &Path) -> io::Result<Option<FileId>>;
    /// Asks for a rename. An error may come although it was done.
    fn try_rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Asks for a removal. An error may come although it was done.
    fn try_remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Calls `each` with the name and the size in bytes of each file in a folder, in no order. None of the names stays
    /// in memory: there may be a million.
    fn visit(&self, path: &Path, each: &mut dyn FnMut(&str, u64)) -> io::Result<()>;

    /// The names and sizes in bytes of the files in a folder that has few, in no order.
    fn list(&self, path: &Path) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        self.visit(path, &mut |name, bytes| files.push((name.to_owned(), bytes)))?;
        Ok(files)
    }

    /// Renames within the spool; a file that has the new name is replaced. Done, too, when it was done before.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let Err(error) = self.try_rename(from, to) else { return Ok(()) };
        match (self.identify(from), self.identify(to)) {
            (Ok(None), Ok(Some(_))) => Ok(()),
            _ => Err(error),
        }
    }

    /// Removes a file; one that is gone already is fine.
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
    /// Reads up to a buffer's length at `offset`; 0 is the end.
    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Cuts the file to `len` bytes.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
    /// Asks for the bytes of the range to go to the disk from now on, so that [`DiskFile::sync`] has less to wait for.
    /// Does not wait itself, and nothing is durable by it.
    fn begin_write_out(&mut self, offset: u64, bytes: u64);
    /// Makes the bytes and the length durable. An error when the file has no name any more: nobody would find it again.
    fn sync(&mut self) -> io::Result<()>;
}

/// The operating system's file system.
pub struct OsDisk;

impl Disk for OsDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)
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
        // Under another name somebody may still want the bytes.
        if let Some(file) = large.filter(|file| file.metadata().is_ok_and(|metadata| metadata.nlink() == 0)) {
            // What fails here, the system does at once when the file is closed.
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
                // It went after its name was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            if metadata.is_file() {
                each(&entry.file_name().to_string_lossy(), metadata.len());
            }
        }
        Ok(())
    }
}

impl DiskFile for File {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        cut(self, len)
    }

    #[cfg(target_os = "linux")]
    fn begin_write_out(&mut self, offset: u64, bytes: u64) {
        // "Not needed again" is for a page that is dirty a reason to write it. What is refused here, the fsync does.
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

/// Opens a regular file of the spool as `options` say. A link, a device or a pipe that has its name is no file of the
/// spool: whoever could put it there would have the daemon read, send or overwrite something else.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] when no regular file has the name.
pub fn open_regular(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    // A pipe is opened without waiting for its other end.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let irregular = || io::Error::new(io::ErrorKind::NotFound, "it is a link, a device or a pipe, not a file");
    match options.custom_flags(flags.bits().cast_signed()).open(path) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => Err(irregular()),
        opened => opened.and_then(|file| if file.metadata()?.is_file() { Ok(file) } else { Err(irregular()) }),
    }
}

/// A file that is to be removed, where that takes more than one step; `None`, too, without a descriptor to spare.
fn open_large(path: &Path) -> Option<File> {
    let metadata = fs::symlink_metadata(path).ok()?;
    (metadata.is_file() && metadata.len() > CUT_STEP_BYTES)
        .then(|| open_regular(OpenOptions::new().write(true), path).ok())?
}

/// Brings a file to `len` bytes; what goes, goes in steps.
fn cut(file: &File, len: u64) -> io::Result<()> {
    let mut end = file.metadata()?.len();
    while end > len + CUT_STEP_BYTES {
        end = (end - 1) / CUT_STEP_BYTES * CUT_STEP_BYTES;
        file.set_len(end)?;
    }
    file.set_len(len)
}

/// Reads and writes an open file from its start on.
pub struct Cursor<F> {
    file: F,
    offset: u64,
}

impl<F> Cursor<F> {
    /// At the start of a file, borrowed or owned.
    pub fn new(file: F) -> Cursor<F> {
        Cursor { file, offset: 0 }
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

/// Writes a small file as a whole: other readers see the old one or the new one, and after `Ok` the
/// new one stays. After an error no half of it takes room.
pub fn replace(disk: &dyn Disk, folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    replace_with(disk, folder, name, |file| file.write_all(bytes))
}

/// [`replace`] for bytes that are not all in memory at once.
pub fn replace_with(
    disk: &dyn Disk,
    folder: &Path,
    name: &str,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = folder.join(format!("{name}.tmp"));
    disk.remove(&temporary)?;
    let written = write_new(disk, &temporary, write).and_then(|()| disk.rename(&temporary, &folder.join(name)));
    // What can't be removed goes at the next try.
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
    let mut file = disk.open(path)?;
    let mut bytes = Vec::new();
    Cursor::new(&mut *file).take(max_bytes + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > max_bytes {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {max_bytes} bytes"))),
        false => Ok(bytes),
    }
}

/// How much of a file is read, or gathered for it, at once.
pub const READ_BUFFER_BYTES: usize = 256 * 1024;
