//! Something made of files, made anew when they change. Whoever serves requests asks for what was made last; only those
//! who look at the files wait for the disk.

use std::fmt::Display;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// How often somebody should look at the files.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The last `T` that could be made of the files.
pub struct Watched<T> {
    /// For the log.
    name: &'static str,
    paths: Vec<PathBuf>,
    rests_after: Duration,
    made: Mutex<T>,
    /// Locked while the files are looked at and read.
    seen: Mutex<Seen>,
}

struct Seen {
    versions: Vec<Option<Version>>,
    /// Seen at the last look, where they are not the ones in force.
    changing: Option<Vec<Option<Version>>>,
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

/// Differs from the one before once the file was written to, or replaced by a rename.
#[derive(PartialEq, Eq)]
struct Version {
    modified: SystemTime,
    /// Seconds and nanoseconds. It moves, too, where a writer sets `modified` back, as `cp -p` does.
    changed: (i64, i64),
    bytes: u64,
    inode: u64,
}

impl Version {
    /// `None` where there is no file to be seen.
    fn of(path: &Path) -> Option<Version> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Version {
            modified: metadata.modified().ok()?,
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            bytes: metadata.len(),
            inode: metadata.ino(),
        })
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
        let made = Mutex::new(make()?);
        let seen = Mutex::new(Seen { versions, changing: None, failure: None });
        Ok(Watched { name, paths, rests_after: LOOK_EVERY * 2, made, seen })
    }

    /// What was made last. Never waits for the disk.
    pub fn current(&self) -> T {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at the files, and reads them where they have changed; where they can't be used, what was made before
    /// stays. Waits for the disk.
    ///
    /// A change counts once two looks in a row have found the same, or where nothing was written for twice
    /// [`LOOK_EVERY`]: half a file is not read, unless its writer pauses.
    pub fn look<E: Display>(&self, make: impl FnOnce(Change) -> Result<T, E>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let versions: Vec<_> = self.paths.iter().map(|path| Version::of(path)).collect();
        if versions == seen.versions {
            seen.changing = None;
        } else if seen.changing.as_ref() == Some(&versions) || self.have_rested(&versions) {
            let change = change(&seen.versions, &versions);
            self.renew(&mut seen, versions, make(change));
        } else {
            seen.changing = Some(versions);
        }
    }

    fn have_rested(&self, versions: &[Option<Version>]) -> bool {
        let now = SystemTime::now();
        let age = |version: &Version| now.duration_since(version.modified).unwrap_or_default();
        versions.iter().flatten().all(|version| age(version) >= self.rests_after)
    }

    /// Reads the files at once, whether they changed or not: whoever asks for it has written all of them. Waits for the
    /// disk.
    pub fn reload<E: Display>(&self, make: impl FnOnce(Change) -> Result<T, E>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let versions = self.paths.iter().map(|path| Version::of(path)).collect();
        self.renew(&mut seen, versions, make(Change::Replaced));
    }

    fn renew<E: Display>(&self, seen: &mut Seen, versions: Vec<Option<Version>>, made: Result<T, E>) {
        match made {
            Ok(made) => {
                let changed = if versions == seen.versions { "is as it was" } else { "changed" };
                tracing::info!("{} {changed} and was read again", self.name);
                *self.made.lock().unwrap_or_else(PoisonError::into_inner) = made;
                *seen = Seen { versions, changing: None, failure: None };
            }
            // The next look tries again.
            Err(error) => {
                let failure = error.to_string();
                if seen.failure.as_ref() != Some(&failure) {
                    tracing::error!(
                        "{} changed and can't be used: {failure}; what was read before stays in force",
                        self.name
                    );
                }
                seen.failure = Some(failure);
                seen.changing = Some(versions);
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn rests_after(self, rests_after: Duration) -> Self {
        Watched { rests_after, ..self }
    }
}

fn change(before: &[Option<Version>], now: &[Option<Version>]) -> Change {
    let same_file = |(before, now): (&Option<Version>, &Option<Version>)| match (before, now) {
        (Some(before), Some(now)) => before != now && before.inode == now.inode,
        _ => false,
    };
    if before.iter().zip(now).any(same_file) { Change::WrittenTo } else { Change::Replaced }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn what_was_made_last_is_there_while_the_disk_hangs() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let made = Watched::new("a file", vec![file.path().to_owned()], || Ok::<_, Infallible>("old"));
        let watched = made.unwrap().rests_after(Duration::ZERO);
        std::fs::write(file.path(), "changed").unwrap();
        let (hangs, is_read) = mpsc::channel();
        let (go_on, goes_on) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let looking = scope.spawn(|| {
                watched.look(move |_| {
                    hangs.send(()).unwrap();
                    // Ends, too, where the test fails.
                    let _ = goes_on.recv();
                    Ok::<_, Infallible>("new")
                });
            });
            is_read.recv().unwrap();
            let (tell, told) = mpsc::channel();
            let watched = &watched;
            scope.spawn(move || tell.send(watched.current()));
            let current = told.recv_timeout(Duration::from_secs(30));
            drop(go_on);
            looking.join().unwrap();
            assert_eq!(current, Ok("old"));
        });
        assert_eq!(watched.current(), "new");
    }

    #[test]
    fn a_file_that_is_written_in_place_with_its_old_length_and_time_is_read_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "old").unwrap();
        let text = || std::fs::read_to_string(file.path());
        let watched = Watched::new("a file", vec![file.path().to_owned()], text).unwrap().rests_after(Duration::ZERO);
        let modified = file.as_file().metadata().unwrap().modified().unwrap();
        let changed = || {
            let metadata = file.as_file().metadata().unwrap();
            (metadata.ctime(), metadata.ctime_nsec())
        };
        let before = changed();
        // The clock of a file system moves every few milliseconds.
        while changed() == before {
            std::fs::write(file.path(), "new").unwrap();
            file.as_file().set_modified(modified).unwrap();
        }
        watched.look(|_| text());
        assert_eq!(watched.current(), "new");
    }
}
