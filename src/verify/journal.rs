//! What was read already, kept in a file so that a verification that was cut off goes on where it stood.
//!
//! A header, then one line an object, in the order of keys: the journal is read beside the listing, so it
//! takes no memory however long it is.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::batch::Sha256;
use crate::s3::read::Listed;

/// The longest line: an object's key and metadata have a few KB, and whatever a store answers in their place fits in.
const LINE_MAX_BYTES: u64 = 4 * 1024 * 1024;

/// A resume file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Not readable or not writable.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// It is the resume file of another bucket, or no resume file.
    #[error("{path}: not the resume file of {scope}; name another file, or remove it", path = path.display())]
    OtherScope {
        /// The file.
        path: PathBuf,
        /// What this verification reads.
        scope: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Entry {
    key: String,
    e_tag: String,
    last_modified: i64,
    size: u64,
    metadata: HashMap<String, String>,
    sha256: String,
    records: Option<u64>,
}

/// What the journal remembers of an object that hasn't changed since.
pub(super) struct Known {
    pub(super) metadata: HashMap<String, String>,
    pub(super) sha256: Sha256,
    pub(super) records: Option<u64>,
}

pub(super) struct Journal {
    path: PathBuf,
    /// None once every old entry has been read.
    old: Option<(BufReader<File>, Option<Entry>)>,
    new: BufWriter<File>,
    /// End of the last whole line.
    length: u64,
}

impl Journal {
    /// Opens or makes the file. `scope` names what is verified: bucket and prefix.
    pub(super) fn open(path: &Path, scope: &str) -> Result<Journal, JournalError> {
        let io = |source| JournalError::Io { path: path.to_owned(), source };
        let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let header = format!("env0-s3-logs verify/1 {scope}\n");
        // Looked at before it is opened: to open a device may do something.
        if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(io(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is a device, a pipe or a folder, not a file",
            )));
        }
        if path.parent().is_some_and(|folder| !folder.as_os_str().is_empty() && !folder.exists()) {
            let words = "its folder is not there; make that first, or name another file";
            return Err(io(io::Error::new(io::ErrorKind::NotFound, words)));
        }
        let (mut old, mut new) = (BufReader::new(open().map_err(io)?), BufWriter::new(open().map_err(io)?));
        let mut found = Vec::new();
        let length = old.by_ref().take(header.len() as u64).read_until(b'\n', &mut found).map_err(io)?;
        if length == 0 {
            new.write_all(header.as_bytes()).map_err(io)?;
        } else if found != header.as_bytes() {
            return Err(JournalError::OtherScope { path: path.to_owned(), scope: scope.to_owned() });
        }
        let mut journal = Journal { path: path.to_owned(), old: None, new, length: length as u64 };
        if length > 0 {
            let first = journal.next_entry(&mut old).map_err(io)?;
            journal.old = first.map(|first| (old, Some(first)));
            if journal.old.is_none() {
                journal.start_appending().map_err(io)?;
            }
        }
        Ok(journal)
    }

    /// What is known of an object. Ask for every object, in the order of keys.
    pub(super) fn known(&mut self, listed: &Listed) -> Result<Option<Known>, JournalError> {
        let path = self.path.clone();
        self.look_up(listed).map_err(|source| JournalError::Io { path, source })
    }

    fn look_up(&mut self, listed: &Listed) -> io::Result<Option<Known>> {
        let Some((mut reader, mut entry)) = self.old.take() else { return Ok(None) };
        while entry.as_ref().is_some_and(|entry| entry.key < listed.key) {
            entry = self.next_entry(&mut reader)?;
        }
        let Some(entry) = entry else {
            self.start_appending()?;
            return Ok(None);
        };
        let same = entry.key == listed.key
            && entry.e_tag == listed.e_tag
            && entry.size == listed.size
            && entry.last_modified == listed.last_modified.timestamp();
        let sha256 = entry.sha256.parse().ok().filter(|_| same);
        let known = sha256.map(|sha256| Known { metadata: entry.metadata.clone(), sha256, records: entry.records });
        self.old = Some((reader, Some(entry)));
        Ok(known)
    }

    fn next_entry(&mut self, reader: &mut BufReader<File>) -> io::Result<Option<Entry>> {
        let mut line = Vec::new();
        let length = reader.take(LINE_MAX_BYTES).read_until(b'\n', &mut line)?;
        // A torn last line is what a crash leaves; it is cut when appending starts, as one that is too long.
        let entry = line.ends_with(b"\n").then(|| serde_json::from_slice(&line).ok()).flatten();
        if entry.is_some() {
            self.length += length as u64;
        }
        Ok(entry)
    }

    fn start_appending(&mut self) -> io::Result<()> {
        self.new.get_ref().set_len(self.length)?;
        self.new.seek(SeekFrom::Start(self.length)).map(drop)
    }

    /// Remembers an object. One that lies before entries not yet read again is left out, to keep the order.
    pub(super) fn add(&mut self, listed: &Listed, known: &Known) -> Result<(), JournalError> {
        if self.old.is_some() {
            return Ok(());
        }
        let entry = Entry {
            key: listed.key.clone(),
            e_tag: listed.e_tag.clone(),
            last_modified: listed.last_modified.timestamp(),
            size: listed.size,
            metadata: known.metadata.clone(),
            sha256: known.sha256.to_string(),
            records: known.records,
        };
        let written = serde_json::to_writer(&mut self.new, &entry).map_err(io::Error::from);
        let written = written.and_then(|()| self.new.write_all(b"\n"));
        written.map_err(|source| JournalError::Io { path: self.path.clone(), source })
    }

    /// Writes out what is buffered.
    pub(super) fn flush(&mut self) -> Result<(), JournalError> {
        self.new.flush().map_err(|source| JournalError::Io { path: self.path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(key: &str) -> Listed {
        let (e_tag, key) = (format!("\"{key}\""), key.to_owned());
        Listed { key, size: 1, e_tag, last_modified: Default::default(), archived: false }
    }

    fn known(key: &str) -> Known {
        Known { metadata: HashMap::new(), sha256: Sha256::of(key.as_bytes()), records: Some(1) }
    }

    /// Goes over `keys` as a verification does; tells which were known.
    fn verify(path: &Path, keys: &[&str]) -> String {
        let mut journal = Journal::open(path, "s3://b/").unwrap();
        let mut seen = String::new();
        for key in keys {
            match journal.known(&listed(key)).unwrap() {
                Some(found) => {
                    assert_eq!(found.sha256, known(key).sha256);
                    seen.push_str(key);
                }
                None => journal.add(&listed(key), &known(key)).unwrap(),
            }
        }
        journal.flush().unwrap();
        seen
    }

    #[test]
    fn a_verification_that_was_cut_off_goes_on_where_it_stood() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resume");
        assert_eq!(verify(&path, &["b", "d"]), "");
        assert_eq!(verify(&path, &["a", "b", "c", "d", "e", "f"]), "bd");
        // A torn line, as a crash leaves it.
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 5]).unwrap();
        assert_eq!(verify(&path, &["b", "e", "f"]), "be");
        assert_eq!(verify(&path, &["b", "d", "e", "f"]), "bdef");
        assert!(matches!(Journal::open(&path, "s3://other/"), Err(JournalError::OtherScope { .. })));
    }

    #[test]
    fn an_object_that_changed_since_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resume");
        verify(&path, &["a"]);
        let mut journal = Journal::open(&path, "s3://b/").unwrap();
        let changed = Listed { e_tag: "\"new\"".into(), ..listed("a") };
        assert!(journal.known(&changed).unwrap().is_none());
    }
}
