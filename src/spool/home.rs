//! What the log types' folders share: the spool's folder with its lock and manifest, and the spare file.
//!
//! The spool's path may lead elsewhere while the daemon runs: its volume is unmounted, or another one is mounted over
//! it. Renames then answer "no such file", and new files go to another disk. Each folder in it may lead elsewhere, too.
//! So the daemon remembers the folders and the lock by device and inode. It compares them (`Home::confirm`) before it
//! concludes anything from a missing name, and before an event in a new file counts as safe. The copies' folders are
//! looked at for copies alone (`Home::confirm_copies`): whatever becomes of them, events are taken and sent to S3.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::batch::LogType;
use crate::spool::copies::{self, Copies};
use crate::spool::disk::{Disk, FileId, identify_folder, judge_folder};
use crate::spool::manifest::{LOCK, Lock, MANIFEST, Manifest};
use crate::spool::terms::{PULL, QUARANTINE};
use crate::status::Trouble;

/// Removed when the disk is full, so that a rename gets the blocks that it may need.
const SPARE_FILE: &str = "reserve";
/// On small volumes btrfs keeps data and metadata together, and reserves 700 to 900 KiB for a rename.
const SPARE_FILE_BYTES: u64 = if cfg!(test) { 64 * 1024 } else { 2 * 1024 * 1024 };
const SPARE_PIECE_BYTES: usize = 64 * 1024;
/// The first try on a full disk frees at least this much, each further one twice as much: the error doesn't tell how
/// much is missing.
const FIRST_ROOM_BYTES: u64 = 4096;
/// How long an operation goes on giving up copies: senders wait for it, and another program may fill what it frees.
const GIVING_UP_MAX: Duration = Duration::from_secs(5);

/// What to do about it; the error tells more.
const COPIES_AWAY: &str = "put the folder for CloudWatch's batches back; see config/README.md#cloudwatch-behind";

/// What makes a folder this daemon's spool, for as long as it is open.
pub(super) struct Home {
    /// The spool's folder.
    pub(super) dir: PathBuf,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) manifest: Manifest,
    /// Where there is a CloudWatch lane.
    copies: Option<Arc<Copies>>,
    identity: Mutex<Identity>,
    /// Whether the last [`Home::confirm`] failed; every append reads it.
    is_away: AtomicBool,
    /// Why the last [`Home::confirm_copies`] failed.
    copies_away: Mutex<Option<Trouble>>,
    /// See [`Home::mounts`].
    mounts: AtomicU64,
}

/// How the spool's folder is told from any other that its path may lead to.
struct Identity {
    folder: FileId,
    /// Those that events need.
    inner: Vec<Inner>,
    /// The copies'; none where there is no lane for them.
    of_copies: Vec<Inner>,
    /// None once the spool is closed.
    lock: Option<Lock>,
}

impl Identity {
    /// Of all folders in it; the next look knows them anew.
    fn forget(&mut self) {
        let folders = self.inner.iter_mut().chain(&mut self.of_copies);
        folders.for_each(|folder| (folder.own, folder.held) = (None, None));
    }
}

/// A folder in the spool, as it was when the daemon made it or found it.
struct Inner {
    path: PathBuf,
    /// `None` for one that is missing, or that this daemon has just made: [`Home::confirm`] knows it then.
    own: Option<FileId>,
    /// The folder itself: it tells whether a folder that is missing was removed.
    held: Option<File>,
    /// Whether others than [`Home::make_again`] make it, where it was removed.
    is_remade: bool,
}

impl Inner {
    /// The folders in a spool that events need, of which none is known yet.
    fn of_events(dir: &Path) -> Vec<Inner> {
        let unknown = |is_remade| move |path| Inner { path, own: None, held: None, is_remade };
        folders(dir).into_iter().map(unknown(false)).chain([dir.join(PULL)].map(unknown(true))).collect()
    }

    /// Those that its copies need.
    fn of_copies(dir: &Path) -> Vec<Inner> {
        copies::folders(dir).map(|path| Inner { path, own: None, held: None, is_remade: true }).into()
    }

    /// Looks at what the path leads to, in a spool on `device`.
    fn look(&mut self, disk: &dyn Disk, device: u64) -> io::Result<()> {
        let found = judge_folder(disk, &self.path, device)?;
        self.judge(found)
    }

    /// Checks that a folder which was found under the path is the daemon's own. One that was removed may come back or be
    /// made again. One that was moved away is not: its files would be given up, and come back with it.
    fn judge(&mut self, found: Option<FileId>) -> io::Result<()> {
        let path = self.path.display();
        match (found, self.own) {
            (Some(found), None) => self.know(found),
            (Some(found), Some(own)) if found == own => Ok(()),
            (Some(found), Some(_)) if self.is_remade && self.is_removed() => self.know(found),
            (Some(_), Some(_)) => Err(io::Error::other(format!(
                "{path} is another folder than before: something is mounted over it, or was put in its place; take that \
                 away, and all goes on by itself (where the old folder is lost, remove the new one, too)"
            ))),
            (None, Some(_)) if !self.is_removed() => Err(io::Error::other(format!(
                "{path} was moved away; put it back, and all goes on by itself (where it is not wanted any more, remove \
                 it where it is now)"
            ))),
            (None, _) => Ok(()),
        }
    }

    fn know(&mut self, found: FileId) -> io::Result<()> {
        let is_it =
            |file: &File| file.metadata().is_ok_and(|file| (file.dev(), file.ino()) == (found.device, found.inode));
        self.held = File::open(&self.path).ok().filter(is_it);
        self.own = Some(found);
        Ok(())
    }

    /// Whether the folder was removed, as far as the system can tell.
    fn is_removed(&self) -> bool {
        !self.held.as_ref().is_some_and(|held| held.metadata().is_ok_and(|folder| folder.nlink() > 0))
    }
}

impl Home {
    /// The home of a spool whose folders are made and whose lock is taken.
    ///
    /// # Errors
    /// The folder can't be looked at.
    pub(super) fn new(
        dir: PathBuf,
        disk: Arc<dyn Disk>,
        manifest: Manifest,
        lock: Lock,
        copies: Option<Arc<Copies>>,
    ) -> io::Result<Home> {
        let folder = identify_folder(&*disk, &dir)?;
        let mut inner = Inner::of_events(&dir);
        let mut of_copies = if copies.is_some() { Inner::of_copies(&dir) } else { Vec::new() };
        for folder in &mut inner {
            let found = disk.identify(&folder.path)?;
            folder.judge(found)?;
        }
        // A wrong one keeps back nothing but copies, and [`Home::confirm_copies`] tells of it.
        of_copies.iter_mut().for_each(|own| drop(own.look(&*disk, folder.device)));
        let identity = Mutex::new(Identity { folder, inner, of_copies, lock: Some(lock) });
        let (is_away, copies_away, mounts) = (AtomicBool::new(false), Mutex::default(), AtomicU64::new(0));
        Ok(Home { dir, disk, manifest, copies, identity, is_away, copies_away, mounts })
    }

    /// The batches that S3 has and CloudWatch doesn't; `None` without a CloudWatch lane.
    pub(super) fn copies(&self) -> Option<&Arc<Copies>> {
        self.copies.as_ref()
    }

    /// The folder of files that can't be read or aren't what their name says.
    pub(super) fn quarantine_dir(&self) -> PathBuf {
        self.dir.join(QUARANTINE)
    }

    fn identity(&self) -> MutexGuard<'_, Identity> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the lock back. Threads that still work finish in the same folder.
    pub(super) fn leave(&self) {
        self.identity().lock = None;
    }

    /// Whether the last [`Home::confirm`] found that the spool's path leads elsewhere.
    pub(super) fn is_away(&self) -> bool {
        self.is_away.load(Ordering::Relaxed)
    }

    /// Makes sure that the spool's path leads to the folder that this daemon has locked. Where somebody removed the
    /// lock's file or the whole folder, makes it again with its manifest, and returns true.
    ///
    /// # Errors
    /// The path, or that of a folder in it, leads elsewhere: nothing may be concluded from the files there, and nothing
    /// written. The caller tries again until the path leads to the spool, because a volume may be mounted again.
    pub(super) fn confirm(&self) -> io::Result<bool> {
        let confirmed = self.find_or_restore();
        self.is_away.store(confirmed.is_err(), Ordering::Relaxed);
        confirmed
    }

    /// Like [`Home::confirm`], and of the copies' folders, too. Says so when they go away, and when they are back.
    ///
    /// # Errors
    /// Those of [`Home::confirm`], or the path of one of them leads elsewhere: copies are neither made nor removed then.
    pub(super) fn confirm_copies(&self) -> io::Result<()> {
        self.confirm()?;
        let judged = {
            let Identity { folder, of_copies, .. } = &mut *self.identity();
            of_copies.iter_mut().try_for_each(|own| own.look(&*self.disk, folder.device))
        };
        let mut away = self.copies_away.lock().unwrap_or_else(PoisonError::into_inner);
        match (&judged, away.take()) {
            (Ok(()), None) => {}
            (Ok(()), Some(_)) => tracing::info!("the folder for CloudWatch's batches is back, and all goes on"),
            (Err(error), before) => {
                if before.is_none() {
                    tracing::warn!(%error, "CloudWatch gets nothing while the folder for its batches is away, and those that S3 takes meanwhile are left out there; S3 has every event; see config/README.md#cloudwatch-behind");
                }
                *away = Some(Trouble::now(before, error.to_string(), COPIES_AWAY.to_owned(), None, None));
            }
        }
        judged
    }

    /// Why the last [`Home::confirm_copies`] failed.
    pub(super) fn copies_away(&self) -> Option<Trouble> {
        self.copies_away.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn find_or_restore(&self) -> io::Result<bool> {
        let identity = &mut *self.identity();
        let Some(lock) = &identity.lock else { return Ok(false) };
        let found = identify_folder(&*self.disk, &self.dir);
        if found.as_ref().is_ok_and(|found| *found == identity.folder) && lock.is_in_place(&self.dir) {
            self.judge_inner(identity)?;
            return Ok(false);
        }
        if lock.is_mounted_anew(&self.dir) && self.is_ours_by_its_manifest() {
            self.follow_to_new_mount(identity)?;
            return Ok(true);
        }
        if !lock.is_removed()? {
            // Where the disk can't even tell what is there, nothing says that the path leads elsewhere.
            found
                .map(drop)
                .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
            self.disk.identify(&Lock::path(&self.dir))?;
            return Err(io::Error::other(format!(
                "{} does not lead to the spool any more: its volume is away, or something else was put in its place; \
                 all goes on by itself once it is back (where a copy of the volume is mounted in its place, restart \
                 the daemon)",
                self.dir.display()
            )));
        }
        self.restore(identity)?;
        Ok(true)
    }

    /// Something may be mounted over one of the folders in the spool's, or put in its place.
    fn judge_inner(&self, Identity { folder, inner, .. }: &mut Identity) -> io::Result<()> {
        inner.iter_mut().try_for_each(|own| {
            own.look(&*self.disk, folder.device).or_else(|elsewhere| {
                match identify_folder(&*self.disk, &own.path) {
                    // A file in a folder's place stops that log type, not the other.
                    Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(()),
                    _ => Err(elsewhere),
                }
            })
        })
    }

    /// Goes on with the same spool, whose volume was lost and is mounted as another device.
    fn follow_to_new_mount(&self, identity: &mut Identity) -> io::Result<()> {
        // Nobody else has it, or this fails.
        let lock = Lock::take(&self.dir).map_err(io::Error::other)?;
        identity.folder = identify_folder(&*self.disk, &self.dir)?;
        identity.lock = Some(lock);
        identity.forget();
        self.mounts.fetch_add(1, Ordering::Release);
        tracing::warn!(spool.dir = %self.dir.display(), "the spool's volume was lost and is mounted anew; the daemon goes on with what is there");
        Ok(())
    }

    /// Takes the lock again whose file was removed, alone or with the whole folder, and writes the manifest again.
    fn restore(&self, identity: &mut Identity) -> io::Result<()> {
        self.disk.create_dir(&self.dir)?;
        match &mut identity.lock {
            Some(lock) if lock.is_folder(&self.dir) => {
                if lock.is_replaced(&self.dir) {
                    return Err(self.another_daemons());
                }
                lock.take_again(&self.dir).map_err(io::Error::other)?;
            }
            lock => {
                let taken = Lock::take(&self.dir).map_err(io::Error::other)?;
                match Manifest::read(&*self.disk, &self.dir).map_err(io::Error::other)? {
                    Some(manifest) if manifest.instance != self.manifest.instance => return Err(self.another_daemons()),
                    _ => *lock = Some(taken),
                }
                identity.forget();
            }
        }
        if Manifest::read(&*self.disk, &self.dir).map_err(io::Error::other)?.is_none() {
            self.manifest.write(&*self.disk, &self.dir).map_err(io::Error::other)?;
        }
        sync_above(&*self.disk, &self.dir);
        self.disk.sync_dir(&self.dir)?;
        identity.folder = identify_folder(&*self.disk, &self.dir)?;
        tracing::error!(spool.dir = %self.dir.display(), "the spool's lock was removed while the daemon runs; it is taken again");
        Ok(())
    }

    /// Makes those of `paths`, which are among [`folders`], that are missing, durably. True where one was missing.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn make_again(&self, paths: [&Path; 2]) -> io::Result<bool> {
        // No other thread takes a folder that is half made for a stranger's.
        let inner = &mut self.identity().inner;
        let mut is_missing = false;
        for folder in inner.iter_mut().filter(|folder| paths.contains(&&*folder.path)) {
            if self.disk.identify(&folder.path)?.is_none() {
                folder.judge(None)?;
                folder.own = None;
                is_missing = true;
                self.disk.create_dir(&folder.path)?;
            }
        }
        if is_missing {
            self.disk.sync_dir(&self.dir)?;
        }
        Ok(is_missing)
    }

    fn is_ours_by_its_manifest(&self) -> bool {
        let found = Manifest::read(&*self.disk, &self.dir);
        found.is_ok_and(|found| found.is_some_and(|found| found == self.manifest))
    }

    /// How often the spool's volume was mounted anew. A file that was opened before is on a file system that is gone.
    pub(super) fn mounts(&self) -> u64 {
        self.mounts.load(Ordering::Acquire)
    }

    fn another_daemons(&self) -> io::Error {
        let dir = self.dir.display();
        io::Error::other(format!(
            "{dir} was removed and is another daemon's now; end one of the two, and restart this one"
        ))
    }

    /// Makes the spare file where it is missing. On a full disk that fails, and is tried again later.
    pub(super) fn take_spare_file(&self) {
        let path = self.dir.join(SPARE_FILE);
        if self.confirm().is_err() {
            return;
        }
        let Ok(mut file) = self.disk.create(&path) else { return };
        // Random bytes: a file with holes or equal bytes takes no room on a file system that compresses.
        let mut piece = vec![0; SPARE_PIECE_BYTES];
        let mut pieces = (0..SPARE_FILE_BYTES).step_by(SPARE_PIECE_BYTES);
        let written = pieces.try_for_each(|offset| {
            rand::fill(&mut piece[..]);
            file.write_at(&piece, offset)
        });
        if written.and_then(|()| file.sync()).is_err() {
            let _ = self.disk.remove(&path);
        }
    }

    /// Removes a spare file that an older version made smaller, so that the next one is large enough.
    pub(super) fn drop_small_spare_file(&self) {
        let files = self.disk.list(&self.dir).unwrap_or_default();
        if files.iter().any(|(name, bytes)| name == SPARE_FILE && *bytes < SPARE_FILE_BYTES) {
            // If this fails, the spare file is only smaller than it should be.
            let _ = self.disk.remove(&self.dir.join(SPARE_FILE));
        }
    }

    /// Like the function [`with_room`], but gives up copies before the spare file.
    pub(super) fn with_room<T>(&self, mut operation: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        with_room(&*self.disk, &self.dir, || self.without_copies(&mut operation))
    }

    /// Gives up copies to free `room_bytes`, after an error that no second try can mend.
    pub(super) fn make_way(&self, room_bytes: u64) {
        if let Some(copies) = &self.copies {
            copies.make_way(room_bytes, Instant::now() + GIVING_UP_MAX);
        }
    }

    /// Runs `operation`. On a full disk gives up copies, oldest first, and runs it again, with more given up each time,
    /// until it works, none is left or [`GIVING_UP_MAX`] is over.
    pub(super) fn without_copies<T>(&self, mut operation: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let mut result = operation();
        let Some(copies) = &self.copies else { return result };
        let mut room_bytes = FIRST_ROOM_BYTES;
        let mut until = None;
        while result.as_ref().is_err_and(is_full) {
            let until = *until.get_or_insert_with(|| Instant::now() + GIVING_UP_MAX);
            if !copies.make_way(room_bytes, until) {
                break;
            }
            room_bytes = room_bytes.saturating_mul(2);
            result = operation();
        }
        result
    }
}

/// The folders that events need in a spool; a start makes those that are missing.
pub fn needed_folders(dir: &Path) -> impl Iterator<Item = PathBuf> {
    folders(dir).into_iter().chain([dir.join(PULL)])
}

/// A sentence, where the spool's folder holds what no daemon puts there; it names two of them.
pub fn files_of_others(dir: &Path) -> Option<String> {
    let own_folders: Vec<_> = needed_folders(dir).chain(copies::folders(dir)).collect();
    let is_own = |name: &str| {
        [LOCK, MANIFEST, SPARE_FILE, "lost+found"].contains(&name)
            || name.starts_with('.')
            || name.ends_with(".tmp")
            || own_folders.iter().any(|folder| folder.starts_with(dir.join(name)))
    };
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut others: Vec<_> = names.filter(|name| !is_own(name)).collect();
    others.sort();
    let first: Vec<_> = others.iter().take(2).map(|name| name.escape_debug().to_string()).collect();
    let more = if others.len() > 2 { format!(" and {} more", others.len() - 2) } else { String::new() };
    (!others.is_empty()).then(|| {
        format!(
            "ENV0_S3_LOG_SPOOL_DIR={} also holds files that no daemon made: {}{more}; the spool should be a folder of its own",
            dir.display(),
            first.join(", ")
        )
    })
}

/// The folders that every spool has: one for each log type, and the quarantine.
pub(super) fn folders(dir: &Path) -> [PathBuf; LogType::ALL.len() + 1] {
    std::array::from_fn(|index| dir.join(LogType::ALL.get(index).map_or(QUARANTINE, |log_type| log_type.as_str())))
}

/// Makes the names of the folders above the spool durable, as far as this user may open them. Where it may not,
/// another user made the folder and its name.
pub(super) fn sync_above(disk: &dyn Disk, spool: &Path) {
    spool.ancestors().skip(1).for_each(|ancestor| drop(disk.sync_dir(ancestor)));
}

/// Runs `operation`; on a full disk removes the spare file and runs it once more.
pub(super) fn with_room<T>(
    disk: &dyn Disk,
    spool: &Path,
    mut operation: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    match operation() {
        Err(error) if is_full(&error) => {
            disk.remove(&spool.join(SPARE_FILE))?;
            // Some file systems free a removed file's blocks only once the removal is durable.
            let _ = disk.sync_dir(spool);
            operation()
        }
        result => result,
    }
}

/// Whether an error says that the disk is full or a quota is used up.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
