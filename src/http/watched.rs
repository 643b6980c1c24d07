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
    /// Seen at the last look, where they are not the ones in force.
    changing: Option<Vec<Option<Version>>>,
    looked: Instant,
    /// Why they can't be used, as the log was told.
    failure: Option<String>,
}

/// How the files came to differ from those in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Each is another file, put in place by a rename: as whole as it will be. Also what a start finds.
    Replaced,
    /// One of them was written to: somebody may have more to write.
    WrittenTo,
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
        let current = Current { made: make()?, versions, changing: None, looked: Instant::now(), failure: None };
        Ok(Watched { name, paths, look_every: LOOK_EVERY, current: Mutex::new(current) })
    }

    /// What the files say now; what they said before, where they can't be used any more. Blocks for
    /// a `stat` of each a second, and for the reading after a change.
    ///
    /// A change counts once two looks in a row have found the same, or where nothing was written for twice the time
    /// between looks: half a file is not read, unless its writer pauses.
    pub fn current<E: Display>(&self, make: impl FnOnce(Change) -> Result<T, E>) -> T {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.looked.elapsed() >= self.look_every {
            current.looked = Instant::now();
            let versions: Vec<_> = self.paths.iter().map(|path| Version::of(path)).collect();
            if versions == current.versions {
                current.changing = None;
            } else if current.changing.as_ref() == Some(&versions) || self.have_rested(&versions) {
                let change = change(&current.versions, &versions);
                self.renew(&mut current, versions, make(change));
            } else {
                current.changing = Some(versions);
            }
        }
        current.made.clone()
    }

    fn have_rested(&self, versions: &[Option<Version>]) -> bool {
        let now = SystemTime::now();
        let age = |version: &Version| now.duration_since(version.modified).unwrap_or_default();
        versions.iter().flatten().all(|version| age(version) >= self.look_every * 2)
    }

    /// What was made last, without a look at the files.
    pub fn last(&self) -> T {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).made.clone()
    }

    /// Reads the files at once, whether they changed or not: whoever asks for it has written all of them.
    pub fn reload<E: Display>(&self, make: impl FnOnce(Change) -> Result<T, E>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.looked = Instant::now();
        let versions = self.paths.iter().map(|path| Version::of(path)).collect();
        self.renew(&mut current, versions, make(Change::Replaced));
    }

    fn renew<E: Display>(&self, current: &mut Current<T>, versions: Vec<Option<Version>>, made: Result<T, E>) {
        match made {
            Ok(made) => {
                tracing::info!("{} changed and was read again", self.name);
                *current = Current { made, versions, changing: None, looked: current.looked, failure: None };
            }
            // The next look tries again.
            Err(error) => {
                let failure = error.to_string();
                if current.failure.as_ref() != Some(&failure) {
                    tracing::error!(
                        "{} changed and can't be used: {failure}; what was read before stays in force",
                        self.name
                    );
                }
                current.failure = Some(failure);
                current.changing = Some(versions);
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn look_every(self, look_every: Duration) -> Self {
        Watched { look_every, ..self }
    }
}

fn change(before: &[Option<Version>], now: &[Option<Version>]) -> Change {
    let same_file = |(before, now): (&Option<Version>, &Option<Version>)| match (before, now) {
        (Some(before), Some(now)) => before != now && before.inode == now.inode,
        _ => false,
    };
    if before.iter().zip(now).any(same_file) { Change::WrittenTo } else { Change::Replaced }
}
