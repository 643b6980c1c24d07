//! Something made of files, made anew when they change.

use std::fmt::Display;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// The files are looked at this often at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The last `T` that could be made of the files.
pub struct Watched<T> {
    /// For the log.
    name: &'static str,
    paths: Vec<PathBuf>,
    look_every: Duration,
    current: Mutex<Current<T>>,
}

struct Current<T> {
    made: T,
    versions: Vec<Option<Version>>,
    looked: Instant,
    failing: bool,
}

/// Another one for a file that was written to, or replaced by a rename.
#[derive(PartialEq, Eq)]
struct Version {
    modified: SystemTime,
    bytes: u64,
    inode: u64,
}

impl Version {
    /// `None` where there is no file to be seen.
    fn of(path: &Path) -> Option<Version> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Version { modified: metadata.modified().ok()?, bytes: metadata.len(), inode: metadata.ino() })
    }
}

impl<T: Clone> Watched<T> {
    /// Makes the first one; only here a failure is an error.
    pub fn new<E>(
        name: &'static str,
        paths: Vec<PathBuf>,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<Watched<T>, E> {
        // Versions come before contents, here and below: a change in between is seen at the next look.
        let versions = paths.iter().map(|path| Version::of(path)).collect();
        let current = Current { made: make()?, versions, looked: Instant::now(), failing: false };
        Ok(Watched { name, paths, look_every: LOOK_EVERY, current: Mutex::new(current) })
    }

    /// What the files say now; what they said before, where they can't be used any more. Blocks for
    /// a `stat` of each a second, and for the reading after a change.
    pub fn current<E: Display>(&self, make: impl FnOnce() -> Result<T, E>) -> T {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.looked.elapsed() >= self.look_every {
            current.looked = Instant::now();
            let versions: Vec<_> = self.paths.iter().map(|path| Version::of(path)).collect();
            if versions != current.versions {
                self.renew(&mut current, versions, make());
            }
        }
        current.made.clone()
    }

    fn renew<E: Display>(&self, current: &mut Current<T>, versions: Vec<Option<Version>>, made: Result<T, E>) {
        match made {
            Ok(made) => {
                tracing::info!("{} changed and was read again", self.name);
                *current = Current { made, versions, looked: current.looked, failing: false };
            }
            Err(error) if !current.failing => {
                tracing::error!(
                    "{} changed and can't be used: {error}; what was read before stays in force",
                    self.name
                );
                current.failing = true;
            }
            // Known; the next look tries again.
            Err(_) => {}
        }
    }

    #[cfg(test)]
    pub(crate) fn look_every(self, look_every: Duration) -> Self {
        Watched { look_every, ..self }
    }
}
