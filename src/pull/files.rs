//! The files of the pull: JSON, each of a bounded size and replaced as a whole.
//!
//! ```text
//! <spool>/pull/<log type>_<organization>.json
//! <spool>/pull/<log type>_<organization>.<hash of the part's id>.json
//! ```

use std::collections::HashSet;
use std::io::{self, Write};
use std::marker::PhantomData;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::background::blocking;
use crate::batch::Sha256;
use crate::spool::{PULL, Spool, disk};

pub(super) const FOLDER: &str = PULL;
/// A larger file is not written, so that every start can read what the last one has written.
pub(super) const FILE_MAX_BYTES: u64 = 64 << 20;

/// Why a place can't be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlaceError {
    /// The disk refuses; that may pass.
    #[error("{path}: {source}", path = path.display())]
    Disk { path: PathBuf, source: io::Error },
    /// Not a place. It is never begun anew by itself: that would store everything twice, or skip some.
    #[error("{path}: {reason}; put it back from a copy, or remove it to pull anew from ENV0_S3_LOG_PULL_FROM", path = path.display())]
    Unusable { path: PathBuf, reason: String },
    /// The start has found events for it and can't write it.
    #[error("{path}: what the last process has pulled can't be written into it yet", path = path.display())]
    Unsettled { path: PathBuf },
    /// More deployments run at the same time than are followed.
    #[error("{following} deployments are followed already; others are taken up as these end")]
    Full { following: usize },
    /// More would have to be remembered than memory holds.
    #[error("env0 has more than {events} audit events of the last 15 minutes; the rest is pulled as these get older")]
    Crowded { events: usize },
}

/// The log type and the organization of the place in a file with this name, as the name has them; `None` for other
/// files. A part's name has a dot and a hash behind the organization's.
pub(super) fn place_of(name: &str) -> Option<(&str, &str)> {
    let (log_type, organization) = name.strip_suffix(".json")?.split_once('_')?;
    (!organization.contains('.')).then_some((log_type, organization))
}

/// Reads a file of [`FOLDER`]; `None` when there is none.
pub(super) fn read<T: DeserializeOwned>(spool: &Spool, name: &str) -> Result<Option<T>, PlaceError> {
    let path = spool.dir().join(FOLDER).join(name);
    judge_folder(spool)?;
    let bytes = match disk::read(&**spool.disk(), &path, FILE_MAX_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            return Err(PlaceError::Unusable { path, reason: format!("not a place of the pull: {error}") });
        }
        Err(source) => return Err(PlaceError::Disk { path, source }),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        let reason = format!("not a place of the pull (line {}, column {})", error.line(), error.column());
        PlaceError::Unusable { path, reason }
    })
}

/// Replaces a file of [`FOLDER`], durably. Makes its folder when it is missing.
///
/// # Errors
/// The disk's, or the file would be larger than `max_bytes`. The old file is there then.
pub(super) fn write<T: Serialize>(spool: &Spool, name: &str, value: &T, max_bytes: u64) -> Result<(), PlaceError> {
    let path = spool.dir().join(FOLDER).join(name);
    let folder = spool.dir().join(FOLDER);
    judge_folder(spool)?;
    let write =
        |out: &mut dyn Write| serde_json::to_writer(Bounded { out, left: max_bytes }, value).map_err(Into::into);
    match spool.with_room(|| disk::replace_with(&**spool.disk(), &folder, name, write)) {
        // Another folder may have come meanwhile. What is in that one is lost once the folder is back.
        Ok(()) => judge_folder(spool),
        Err(error) => {
            if error.kind() == io::ErrorKind::NotFound {
                // Somebody has removed the folder. It is there at the next try.
                make_folder(spool)?;
            }
            Err(PlaceError::Disk { path, source: error })
        }
    }
}

/// A link or another folder in the folder's place would lead what is written, and what is read, elsewhere.
fn judge_folder(spool: &Spool) -> Result<(), PlaceError> {
    let path = spool.dir().join(FOLDER);
    let source = match spool.disk().identify(&path) {
        Ok(Some(found)) if !found.is_folder => io::Error::new(
            io::ErrorKind::NotADirectory,
            "it is a link or no folder, and no link in the spool is followed",
        ),
        Ok(_) => match spool.confirm() {
            Ok(()) => return Ok(()),
            Err(error) => error,
        },
        Err(error) => error,
    };
    Err(PlaceError::Disk { path, source })
}

/// Makes the folder of the pull, durably.
pub(super) fn make_folder(spool: &Spool) -> Result<(), PlaceError> {
    judge_folder(spool)?;
    let (disk, path) = (spool.disk(), spool.dir().join(FOLDER));
    let made = spool.with_room(|| disk.create_dir(&path)).and_then(|()| disk.sync_dir(spool.dir()));
    made.map_err(|source| PlaceError::Disk { path, source })
}

/// Refuses what is more than `left` bytes.
struct Bounded<'a> {
    out: &'a mut dyn Write,
    left: u64,
}

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.left = self.left.checked_sub(written as u64).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::FileTooLarge,
                "what the pull has to remember is too large to be read again at a start",
            )
        })?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The parts of a place, each in a file of its own: what is kept of one deployment.
pub(super) struct Parts<P> {
    spool: Spool,
    /// The place's own name, without its ending.
    place: String,
    part: PhantomData<fn() -> P>,
}

impl<P> Clone for Parts<P> {
    fn clone(&self) -> Parts<P> {
        Parts { spool: self.spool.clone(), place: self.place.clone(), part: PhantomData }
    }
}

/// A part as it is written.
#[derive(Serialize, Deserialize)]
struct PartFile<P> {
    id: String,
    part: P,
}

impl<P: Serialize + DeserializeOwned + Send + 'static> Parts<P> {
    /// The parts of the place in the file `<place>.json`.
    pub(super) fn of(spool: &Spool, place: String) -> Parts<P> {
        Parts { spool: spool.clone(), place, part: PhantomData }
    }

    /// Ids come from env0 and may be no file names.
    fn name(&self, id: &str) -> String {
        format!("{}.{}.json", self.place, Sha256::of(id.as_bytes()))
    }

    /// Reads a part; blocks. `None` when it was never written.
    pub(super) fn read(&self, id: &str) -> Result<Option<P>, PlaceError> {
        Ok(read(&self.spool, &self.name(id))?.map(|file: PartFile<P>| file.part))
    }

    /// [`Parts::read`] on a thread for it.
    pub(super) async fn load(&self, id: &str) -> Result<Option<P>, PlaceError> {
        let (parts, id) = (self.clone(), id.to_owned());
        blocking(move || parts.read(&id)).await
    }

    /// Writes a part, durably; blocks.
    pub(super) fn write(&self, id: &str, part: &P) -> Result<(), PlaceError> {
        #[derive(Serialize)]
        struct Written<'a, P> {
            id: &'a str,
            part: &'a P,
        }
        write(&self.spool, &self.name(id), &Written { id, part }, FILE_MAX_BYTES)
    }

    /// Removes every part but those of `ids`, and what a crash has left half-written. What can't be removed goes at the
    /// next start.
    pub(super) fn keep_only<'i>(&self, ids: impl Iterator<Item = &'i String>) {
        let (disk, path) = (self.spool.disk(), self.spool.dir().join(FOLDER));
        let kept: HashSet<String> = ids.map(|id| self.name(id)).collect();
        let prefix = format!("{}.", self.place);
        let is_left = |name: &String| {
            let is_part = |rest: &str| rest != "json" && rest.ends_with(".json") && !kept.contains(name);
            name.strip_prefix(&prefix).is_some_and(|rest| is_part(rest) || rest.ends_with("json.tmp"))
        };
        for (name, _) in disk.list(&path).unwrap_or_default() {
            if is_left(&name) {
                let _ = disk.remove(&path.join(name));
            }
        }
    }

    /// Removes a part that its place doesn't name any more.
    pub(super) fn remove(&self, id: &str) {
        let _ = self.spool.disk().remove(&self.spool.dir().join(FOLDER).join(self.name(id)));
    }
}
