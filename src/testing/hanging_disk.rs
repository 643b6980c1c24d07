//! The system's file system with calls that hang until they are let go, as those of a network volume can.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use crate::spool::disk::{Disk, DiskFile, FileId, OsDisk};

/// A call that can hang.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Sync,
    List,
}

/// Clones share it.
#[derive(Clone, Default)]
pub(crate) struct HangingDisk(Arc<(Mutex<Hangs>, Condvar)>);

#[derive(Default)]
struct Hangs {
    /// Which calls hang, by a part of their path.
    told: Vec<(Op, &'static str)>,
    /// Calls that hang now.
    paths: Vec<PathBuf>,
    open_files: usize,
}

impl HangingDisk {
    /// Every call of `op` on a path that contains `part` hangs from now on.
    pub(crate) fn hang(&self, op: Op, part: &'static str) {
        self.0.0.lock().unwrap().told.push((op, part));
    }

    /// Calls on paths that contain `part` go on.
    pub(crate) fn let_go(&self, part: &'static str) {
        self.0.0.lock().unwrap().told.retain(|(_, told)| *told != part);
        self.0.1.notify_all();
    }

    /// Whether a call on a path that contains `part` hangs now.
    pub(crate) fn hangs_at(&self, part: &str) -> bool {
        self.0.0.lock().unwrap().paths.iter().any(|path| path.to_string_lossy().contains(part))
    }

    /// How many files are open now.
    pub(crate) fn open_files(&self) -> usize {
        self.0.0.lock().unwrap().open_files
    }

    fn pass(&self, op: Op, path: &Path) {
        let mut hangs = self.0.0.lock().unwrap();
        let text = path.to_string_lossy();
        let is_told = |hangs: &Hangs| hangs.told.iter().any(|(told, part)| *told == op && text.contains(part));
        if !is_told(&hangs) {
            return;
        }
        hangs.paths.push(path.to_owned());
        hangs = self.0.1.wait_while(hangs, |hangs| is_told(hangs)).unwrap();
        let index = hangs.paths.iter().position(|hanging| hanging == path).unwrap();
        hangs.paths.remove(index);
    }

    fn file(&self, path: &Path, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        self.0.0.lock().unwrap().open_files += 1;
        Box::new(HangingFile { file, path: path.to_owned(), disk: self.clone() })
    }
}

impl Disk for HangingDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        OsDisk.create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        OsDisk.create(path).map(|file| self.file(path, file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        OsDisk.open(path).map(|file| self.file(path, file))
    }

    fn identify(&self, path: &Path) -> io::Result<Option<FileId>> {
        OsDisk.identify(path)
    }

    fn try_rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsDisk.try_rename(from, to)
    }

    fn try_remove(&self, path: &Path) -> io::Result<()> {
        OsDisk.try_remove(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        OsDisk.sync_dir(path)
    }

    fn visit(&self, path: &Path, each: &mut dyn FnMut(&str, u64)) -> io::Result<()> {
        self.pass(Op::List, path);
        OsDisk.visit(path, each)
    }
}

struct HangingFile {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    disk: HangingDisk,
}

impl DiskFile for HangingFile {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(bytes, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.file.truncate(len)
    }

    fn begin_write_out(&mut self, offset: u64, bytes: u64) {
        self.file.begin_write_out(offset, bytes);
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.pass(Op::Sync, &self.path);
        self.file.sync()
    }
}

impl Drop for HangingFile {
    fn drop(&mut self) {
        self.disk.0.0.lock().unwrap().open_files -= 1;
    }
}
