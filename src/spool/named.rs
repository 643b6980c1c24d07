//! Errors that name the call and the path that failed: the system's own words name neither.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::spool::disk::{Disk, DiskFile, FileId};
use crate::volume::name;

/// A file system whose errors name call and path. Their kinds are the system's.
pub struct Named(pub Arc<dyn Disk>);

impl Named {
    fn file(
        &self,
        call: &'static str,
        path: &Path,
        file: io::Result<Box<dyn DiskFile>>,
    ) -> io::Result<Box<dyn DiskFile>> {
        let file = file.map_err(name(call, path))?;
        Ok(Box::new(NamedFile { path: path.to_owned(), file }))
    }
}

impl Disk for Named {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir(path).map_err(name("mkdir", path))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.file("create", path, self.0.create(path))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.file("open", path, self.0.open(path))
    }

    fn identify(&self, path: &Path) -> io::Result<Option<FileId>> {
        self.0.identify(path).map_err(name("stat", path))
    }

    fn try_rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.try_rename(from, to).map_err(name("rename to", to))
    }

    fn try_remove(&self, path: &Path) -> io::Result<()> {
        self.0.try_remove(path).map_err(name("remove", path))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.sync_dir(path).map_err(name("fsync", path))
    }

    fn visit(&self, path: &Path, each: &mut dyn FnMut(&str, u64)) -> io::Result<()> {
        self.0.visit(path, each).map_err(name("list", path))
    }
}

struct NamedFile {
    path: PathBuf,
    file: Box<dyn DiskFile>,
}

impl DiskFile for NamedFile {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(bytes, offset).map_err(name("write", &self.path))
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size().map_err(name("stat", &self.path))
    }

    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset).map_err(name("read", &self.path))
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.file.truncate(len).map_err(name("truncate", &self.path))
    }

    fn begin_write_out(&mut self, offset: u64, bytes: u64) {
        self.file.begin_write_out(offset, bytes);
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync().map_err(name("fsync", &self.path))
    }
}
