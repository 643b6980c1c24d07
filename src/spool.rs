//! Everything accepted is here until S3 has it.
//!
//! ```text
//! <spool>/lock, manifest.json, reserve (the spare file)
//! <spool>/<log type>/<name>.open → .sealed → .sending → removed, or emptied to .sent for the chain's head
//! <spool>/quarantine/<log type>_<name>
//! <spool>/cloudwatch/<log type>/<name>.sent, with a CloudWatch lane: copies, which S3 has and CloudWatch doesn't
//! ```
//!
//! A file's bytes are the object's body and its name is the batch's state (see [`crate::batch`]); no index could disagree
//! with them. One [`writer`] thread for each log type appends and acknowledges after the fsync, one [`sealer`] thread for
//! each log type seals batches, and [`recovery`] seals at a start what a crash left open. The flusher receives sealed
//! batches in order and moves them through their stages.

mod answers;
pub mod claim;
pub mod copies;
pub mod disk;
pub mod folder;
pub mod gate;
pub mod home;
pub mod manifest;
pub mod named;
mod names;
pub mod recovery;
mod sealed_batches;
pub mod sealer;
mod survey;
mod terms;
pub mod usage;
pub mod writer;

#[cfg(test)]
pub(crate) mod tests;

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::batch::{ByType, LogType, SpoolName};
use crate::spool::claim::Claim;
use crate::spool::copies::{BatchCopy, Copies};
use crate::spool::disk::{Cursor, Disk};
use crate::spool::folder::Folder;
use crate::spool::gate::Gate;
use crate::spool::home::Home;
pub(crate) use crate::spool::manifest::LOCK;
use crate::spool::manifest::{Lock, Manifest, ManifestError};
use crate::spool::named::Named;
use crate::spool::names::{Names, visit_batches};
pub use crate::spool::sealed_batches::SealedBatches;
pub use crate::spool::terms::{
    AppendError, Batch, LeftBehind, OpenError, PULL, QUARANTINE, Receipt, Settings, exit_code_of,
};
use crate::spool::usage::{Room, Usage};
use crate::spool::writer::Writer;
use crate::status::Trouble;

/// The spool. Cloning shares it.
#[derive(Clone)]
pub struct Spool {
    inner: Arc<Inner>,
}

struct Inner {
    home: Arc<Home>,
    folders: ByType<Arc<Folder>>,
    writers: ByType<Writer>,
    usage: Arc<Usage>,
    gates: ByType<Gate>,
    dir: PathBuf,
    disk: Arc<dyn Disk>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Explicitly, because the threads of the folders may outlive the spool.
        self.home.leave();
    }
}

impl Spool {
    /// Takes the lock, checks the manifest, recovers what a crash left and starts the threads.
    /// Blocks while it lists the folders and reads the `.open` files.
    pub fn open(settings: &Settings, disk: Arc<dyn Disk>) -> Result<(Spool, ByType<SealedBatches>), OpenError> {
        let dir = &settings.dir;
        let disk: Arc<dyn Disk> = Arc::new(Named(disk));
        let create = |reason| OpenError::Create { path: dir.clone(), reason };
        disk.create_dir(dir).map_err(create)?;
        let lock = Lock::take(dir)?;
        disk::judge_folders(&*disk, dir, home::needed_folders(dir)).map_err(create)?;
        for folder in home::folders(dir) {
            home::with_room(&*disk, dir, || disk.create_dir(&folder)).map_err(create)?;
        }
        disk.sync_dir(dir).map_err(create)?;

        let (mut manifest, mut names) = adopt_manifest(settings, &*disk)?;
        for (log_type, names) in names.iter_mut().filter(|(_, names)| !names.has_head()) {
            begin_new_chain(&*disk, dir, &mut manifest, log_type, names)?;
        }

        // S3 doesn't need it, so it keeps nobody from starting.
        let judged = disk::judge_folders(&*disk, dir, copies::folders(dir)).inspect_err(|error| {
            tracing::warn!(%error, "the folder for CloudWatch's batches can't be used, and is left as it is; S3 gets every event; see config/README.md#cloudwatch-behind");
        });
        let copies = if settings.copies {
            Some(Arc::new(Copies::open(disk.clone(), dir, judged.is_ok())))
        } else {
            if judged.is_ok() {
                copies::discard(&*disk, dir);
            }
            None
        };
        let home = Home::new(dir.clone(), disk.clone(), manifest, lock, copies.clone()).map_err(create)?;
        let home = Arc::new(home);
        if let Some(copies) = &copies {
            let home = Arc::downgrade(&home);
            copies.confirm_by(move || home.upgrade().map_or(Ok(()), |home| home.confirm_copies()));
        }
        let usage = Arc::new(Usage::new(settings, copies));
        let opened = names.try_map(|log_type, names| {
            let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
            let folder = Folder::new(log_type, settings, home.clone(), usage.clone(), sender);
            let recovery = |reason| OpenError::Recovery { path: folder.dir.clone(), reason };
            let recovered = recovery::recover(&folder, names).map_err(recovery)?;
            let sealed = SealedBatches::new(log_type, recovered.sealed, receiver);
            Ok::<_, OpenError>((Arc::new(folder), (sealed, recovered.open)))
        })?;
        let (folders, rest) = opened.unzip();
        let (sealed, left_open) = rest.unzip();
        home.drop_small_spare_file();
        home.take_spare_file();
        let writers = left_open.map(|log_type, open| Writer::start(folders[log_type].clone(), settings.clone(), open));
        let (gates, dir) = (Default::default(), settings.dir.clone());
        Ok((Spool { inner: Arc::new(Inner { home, folders, writers, usage, gates, dir, disk }) }, sealed))
    }

    /// The instance id of this spool, which the STS session's name tells.
    pub fn instance(&self) -> &str {
        &self.inner.home.manifest.instance
    }

    /// The instance id of a log type's chain.
    pub fn chain_instance(&self, log_type: LogType) -> &str {
        self.inner.home.manifest.chain(log_type)
    }

    /// Fails where `bytes` more would be refused now. Takes no room.
    pub fn check_room(&self, log_type: LogType, bytes: u64) -> Result<(), AppendError> {
        self.inner.usage.check_room(log_type, bytes)
    }

    /// Takes room for `bytes` of events, for [`Spool::append_claimed`].
    pub fn take_room(&self, log_type: LogType, bytes: u64) -> Result<Room, AppendError> {
        self.inner.usage.clone().take_room(log_type, bytes)
    }

    /// Appends whole lines to the log type's batch; returns after the fsync that covers them.
    ///
    /// Once the writer has begun with the lines, they are written even if the caller stops waiting.
    pub async fn append(&self, log_type: LogType, lines: Bytes, records: u64) -> Result<Receipt, AppendError> {
        let room = self.take_room(log_type, lines.len() as u64)?;
        self.append_claimed(room, lines, records, Arc::new(Claim::new(()))).await
    }

    /// Like [`Spool::append`], into room that was taken before. Hands the lines to the writer at once, before the future is
    /// polled. The claim is dropped with the lines, however long the disk takes and whether or not the caller still waits.
    ///
    /// Both log types' appends of one request share a claim, and their futures must be polled together: one that isn't
    /// polled delays the answers of other requests; see `answers`.
    pub fn append_claimed(
        &self,
        room: Room,
        lines: Bytes,
        records: u64,
        claim: Arc<Claim<dyn Send + Sync>>,
    ) -> impl Future<Output = Result<Receipt, AppendError>> + use<> {
        let writer = &self.inner.writers[room.log_type()];
        writer.append(lines, records, room, claim)
    }

    /// Refuses events from now on and seals the open batches; returns when both are sealed.
    pub async fn close(&self) {
        // Both are asked before either is waited for, so that they work at the same time.
        let [deployments, audits] = self.inner.writers.each_ref().map(|_, writer| writer.close()).into_array();
        tokio::join!(deployments, audits);
    }

    /// Asks for the open batch of each log type to be sealed; doesn't wait.
    pub fn seal(&self) {
        self.inner.writers.values().for_each(Writer::seal);
    }

    /// How long the slowest writer has been busy with one piece of work.
    pub fn busy_for(&self) -> Duration {
        self.inner.writers.values().map(Writer::busy_for).max().unwrap_or_default()
    }

    /// Why the log type can't be written to at the moment, if it can't.
    pub fn failing(&self, log_type: LogType) -> Option<Arc<io::Error>> {
        self.inner.folders[log_type].failing()
    }

    /// The folder of a log type: stages, quarantine, figures.
    pub fn folder(&self, log_type: LogType) -> Arc<Folder> {
        self.inner.folders[log_type].clone()
    }

    /// The gate that holds back batches of a log type from S3.
    pub fn gate(&self, log_type: LogType) -> &Gate {
        &self.inner.gates[log_type]
    }

    /// The spool's folder.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// The file system that it is on.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.inner.disk
    }

    /// Counts the batches in the folders and the files in quarantine by listing them. The figures count what the daemon
    /// has done; this counts what is there.
    pub fn left_behind(&self) -> Result<LeftBehind, OpenError> {
        let (batches, _) = count_batches(&*self.inner.disk, &self.inner.dir)?;
        let path = self.inner.home.quarantine_dir();
        let files = self.inner.disk.list(&path).map_err(|reason| OpenError::Create { path, reason })?;
        let quarantined = files.iter().filter(|(name, _)| !name.starts_with('.')).count();
        Ok(LeftBehind { batches, quarantined })
    }

    /// The batches that S3 has and CloudWatch doesn't, where there is a lane for them.
    pub fn copies(&self) -> Option<&Arc<Copies>> {
        self.inner.home.copies()
    }

    /// Why their folder can't be used, where the last look at it found it elsewhere.
    pub fn copies_away(&self) -> Option<Trouble> {
        self.inner.home.copies_away()
    }

    /// Runs `operation`; on a full disk gives up batches that wait only for CloudWatch, and at last the spare file, and
    /// runs it again. Blocks.
    pub fn with_room<T>(&self, operation: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        self.inner.home.with_room(operation)
    }

    /// Makes sure that the spool's path leads to the spool, and each folder's to that folder. Where it doesn't, a missing
    /// file means nothing, and nothing may be written. Blocks.
    ///
    /// # Errors
    /// It doesn't; a volume or a folder may come back.
    pub fn confirm(&self) -> io::Result<()> {
        self.inner.home.confirm().map(drop)
    }

    /// Reads a copy from its start. Blocks, as reading does.
    ///
    /// # Errors
    /// The path of the spool or the copies' folder leads elsewhere, the disk refuses, or the file's bytes are not those that
    /// S3 has. A copy that was given up meanwhile is not found.
    pub fn read_copy(&self, copy: &BatchCopy) -> io::Result<impl Read + Send + use<>> {
        self.inner.home.confirm_copies()?;
        let (disk, path) = (&*self.inner.disk, copies::path(&self.inner.dir, copy));
        if disk::hash(disk, &path)? != copy.name.sha256 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its bytes are not those that S3 has"));
        }
        disk.open(&path).map(Cursor::new)
    }

    /// The bytes that both log types take, and the limit.
    pub fn usage(&self) -> &Usage {
        &self.inner.usage
    }
}

/// Begins the chain of a log type anew whose folder has lost the chain's head.
///
/// A number must never be given out twice under one instance id, so the manifest with the new id comes first:
///
/// 1. Manifest written, then a crash, then the new head made: the next start makes another new id.
/// 2. Head made, then a crash before the manifest: the next start finds a head, sees nothing wrong, and numbers from 1
///    under the old id.
fn begin_new_chain(
    disk: &dyn Disk,
    dir: &Path,
    manifest: &mut Manifest,
    log_type: LogType,
    names: &mut Names,
) -> Result<(), OpenError> {
    manifest.chains[log_type] = manifest::new_instance();
    manifest.write(disk, dir)?;
    tracing::error!(
        log_type = %log_type,
        instance = manifest.chain(log_type),
        "the log type's folder lost the head of its chain; numbering starts anew under a new instance id"
    );
    let path = dir.join(log_type.as_str());
    recovery::restart_chain(disk, &path, names).map_err(|reason| OpenError::Recovery { path, reason })
}

/// How many batches are in a spool's folders, and how many of those are `.sending`.
pub fn count_batches(disk: &dyn Disk, dir: &Path) -> Result<(usize, usize), OpenError> {
    let (mut batches, mut sending) = (0, 0);
    for log_type in LogType::ALL {
        let path = dir.join(log_type.as_str());
        let (all, of_them_sending) =
            count_in_folder(disk, &path).map_err(|reason| OpenError::Create { path, reason })?;
        (batches, sending) = (batches + all, sending + of_them_sending);
    }
    Ok((batches, sending))
}

/// How many batches are in a log type's folder, and how many of those are `.sending`.
pub fn count_in_folder(disk: &dyn Disk, folder: &Path) -> io::Result<(usize, usize)> {
    let (mut batches, mut sending) = (0, 0);
    visit_batches(disk, folder, |name| {
        batches += 1;
        sending += usize::from(matches!(name, SpoolName::Sealed(name) if name.stage.is_doubtful()));
    })?;
    Ok((batches, sending))
}

/// Reads the manifest, or writes the first one. A spool without batches takes on a new destination.
fn adopt_manifest(settings: &Settings, disk: &dyn Disk) -> Result<(Manifest, ByType<Names>), OpenError> {
    let dir = &settings.dir;
    let dirs = ByType::new(|log_type| dir.join(log_type.as_str()));
    let create = |dir: &Path, reason| OpenError::Create { path: dir.to_owned(), reason };
    let read = |dir: &PathBuf| Names::read(disk, dir).map_err(|reason| create(dir, reason));
    let mut names = dirs.each_ref().try_map(|_, dir| read(dir))?;
    let batches = |names: &ByType<Names>| names.values().map(Names::batches).sum::<usize>();
    let was_elsewhere = match Manifest::read(disk, dir)? {
        Some(manifest) if manifest.destination == settings.destination => return Ok((manifest, names)),
        Some(manifest) if batches(&names) > 0 => {
            return Err(OpenError::OtherDestination {
                batches: batches(&names),
                holds: Box::new(manifest.destination),
                configured: Box::new(settings.destination.clone()),
            });
        }
        Some(manifest) => {
            tracing::info!(from = %manifest.destination, to = %settings.destination, "the spool is empty; it now belongs to another place");
            true
        }
        None if batches(&names) > 0 => {
            return Err(ManifestError::Missing { path: dir.clone(), batches: batches(&names) }.into());
        }
        None => {
            home::sync_above(disk, dir);
            false
        }
    };
    // A new destination gets new chains, so that its auditor sees them from number 1 on.
    let manifest = Manifest::new(settings.destination.clone());
    if was_elsewhere {
        // The old heads go before the manifest with the new ids is written. A crash in between leaves folders without a
        // head, and `Spool::open` gives each of them a new instance id. In the other order a crash would leave the old
        // head under the new id, and the new chain would not begin with 1.
        for (log_type, dir) in dirs.iter() {
            recovery::end_chain(disk, dir, &names[log_type]).map_err(|reason| create(dir, reason))?;
        }
        manifest.write(disk, dir)?;
    }
    for (log_type, dir) in dirs.iter() {
        recovery::restart_chain(disk, dir, &mut names[log_type]).map_err(|reason| create(dir, reason))?;
    }
    if !was_elsewhere {
        // Last here: after a crash in between, the next start finds no manifest and begins again. A manifest without heads
        // would look like chains that lost theirs, which is an alarm.
        manifest.write(disk, dir)?;
    }
    Ok((manifest, names))
}
