//! One thread for each log type makes sealed batches of closed ones.
//!
//! Usually one rename seals a batch. A batch is rewritten first where its bytes have to change (compression), or where
//! its file can't be trusted (an fsync failed, perhaps before a crash): its plain bytes are read, checked, and written
//! to a new file, which is hashed on the way.
//!
//! The order of a rewrite, and what another order would do:
//!
//! 1. The new file is fsynced, then renamed to its sealed name, and the folder is fsynced. Renamed before the fsync, it
//!    could be a sealed name with other bytes after a power cut.
//! 2. Then the `.open` file is removed. Removed earlier, a power cut could leave neither file.
//! 3. Then the flusher gets the batch. If it got it earlier, it could deliver the batch and remove its file while
//!    `.open` is still there; after a crash the events would be sealed a second time.
//!
//! So a crash leaves the `.open` file alone, or both files with the same opening; recovery removes `.open` then.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::batch::{BatchName, Codec, SealedName, Sha256, Sha256Hasher, SpoolName};
use crate::spool::answers::{self, Outcome, Reply};
use crate::spool::disk::{DiskFile, FileId, READ_BUFFER_BYTES};
use crate::spool::folder::Folder;
use crate::spool::home::is_full;
use crate::spool::terms::SealReason;

/// The pause between tries to seal a batch while the disk refuses.
const RETRY_AFTER: Duration = if cfg!(test) { Duration::from_millis(1) } else { Duration::from_secs(1) };
/// This many waiting batches keep their files open; more would take the descriptors that connections need.
const OPEN_FILES_MAX: usize = 64;
/// When this many batches wait for the sealer, the writer waits, too, which bounds the memory that they take.
const QUEUE_MAX: usize = 4096;
/// How long it waits at most.
const QUEUE_WAIT: Duration = Duration::from_secs(1);
/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;

/// A batch that nothing is appended to any more.
pub(super) struct Closed {
    pub(super) name: BatchName,
    /// How many plain bytes are the batch's; a file whose fsync failed may have more.
    pub(super) bytes: u64,
    /// How many events. Where there are none, the file is removed and no batch is sealed.
    pub(super) records: u64,
    /// The hash of the plain bytes.
    pub(super) sha256: Sha256,
    pub(super) reason: SealReason,
    /// The file, if the writer had it open and few others wait. Its bytes can be read even
    /// when somebody removes the name.
    pub(super) file: Option<Box<dyn DiskFile>>,
    /// Which file the writer made; `None` for one that a start found.
    pub(super) id: Option<FileId>,
    pub(super) refused: Refused,
    /// The rewritten file of the last try that got so far; it may have its sealed name already.
    pub(super) rewritten: Option<Box<Rewritten>>,
}

/// A file that was written anew with a batch's bytes.
#[derive(Clone, Copy)]
pub(super) struct Rewritten {
    /// The sealed name that it gets.
    name: SealedName,
    bytes: u64,
}

impl Closed {
    fn path(&self, folder: &Folder) -> PathBuf {
        folder.path(&SpoolName::Open(self.name))
    }

    /// Its bytes go to S3 as they were appended.
    fn is_plain(&self) -> bool {
        self.name.codec == Codec::None
    }

    /// Whether the disk has the bytes that the file shows. After a failed fsync the system may still show bytes that are
    /// not on the disk, to the next process too, and no later fsync of the same file writes them. Only a new file does.
    fn is_trusted(&self) -> bool {
        !matches!(self.reason, SealReason::DiskError | SealReason::Recovery)
    }

    /// Whether only the delivery of the file as it is can help after a rewrite's error: there is no room for a second
    /// file, or the limit on a file's size is lower now.
    fn may_go_as_it_is(&self, error: &io::Error) -> bool {
        self.is_plain()
            && self.reason == SealReason::Recovery
            && (is_full(error) || error.kind() == io::ErrorKind::FileTooLarge)
    }
}

/// Appends to be refused once no file has their lines any more.
#[derive(Default)]
pub(super) struct Refused {
    pub(super) refusals: Vec<(Reply, Outcome)>,
    /// Their lines were cut off, though a power cut may bring them back.
    pub(super) is_cut: bool,
}

impl Refused {
    fn answer(&mut self) {
        answers::give(std::mem::take(&mut self.refusals));
    }
}

/// Reads a batch that a crash left open, and brings it into order.
type Recover = Box<dyn FnMut(&Folder) -> io::Result<Option<Closed>> + Send>;

/// A batch that a crash left open.
pub(super) enum LeftOpen {
    Read(Closed),
    /// The disk had no room to bring it into order: this is tried until it has.
    Unread(Recover),
}

enum Request {
    Seal(Closed),
    /// Brings a batch into order, then seals it.
    Recover(Recover),
    /// Answered when all earlier requests are done.
    Drained(oneshot::Sender<()>),
}

/// The queue of batches that wait for the sealer.
pub(super) struct Queue {
    requests: Sender<Request>,
    waiting: Arc<Backlog>,
}

/// How many batches wait, the one being sealed included.
#[derive(Default)]
struct Backlog {
    batches: Mutex<usize>,
    sealed: Condvar,
}

impl Backlog {
    fn batches(&self) -> MutexGuard<'_, usize> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn one_less(&self) {
        *self.batches() -= 1;
        self.sealed.notify_one();
    }
}

impl Queue {
    /// Hands a batch to the sealer. Where too many wait already, waits for at most [`QUEUE_WAIT`], so that events
    /// aren't taken faster than they are compressed. A sealer that is stuck delays the writer no longer than that.
    pub(super) fn seal(&self, mut closed: Closed) {
        let Backlog { sealed, .. } = &*self.waiting;
        let (mut batches, _) = sealed
            .wait_timeout_while(self.waiting.batches(), QUEUE_WAIT, |batches| *batches >= QUEUE_MAX)
            .unwrap_or_else(PoisonError::into_inner);
        if *batches >= OPEN_FILES_MAX && closed.reason != SealReason::DiskError {
            closed.file = None;
        }
        *batches += 1;
        drop(batches);
        // This never fails: the sealer ends after the writer.
        let _ = self.requests.send(Request::Seal(closed));
    }

    /// Sends `reply` when all batches that were handed over before are sealed.
    pub(super) fn when_drained(&self, reply: oneshot::Sender<()>) {
        let _ = self.requests.send(Request::Drained(reply));
    }
}

/// Starts the log type's sealer thread, with what a crash left open; it ends when its queue is dropped.
pub(super) fn start(folder: Arc<Folder>, left_open: Vec<LeftOpen>) -> Queue {
    let (requests, receiver) = mpsc::channel();
    let waiting = Arc::new(Backlog { batches: Mutex::new(left_open.len()), ..Backlog::default() });
    for left in left_open {
        let request = match left {
            LeftOpen::Read(closed) => Request::Seal(closed),
            LeftOpen::Unread(recover) => Request::Recover(recover),
        };
        // This never fails: the receiver is above.
        let _ = requests.send(request);
    }
    let backlog = waiting.clone();
    std::thread::spawn(move || run(&folder, &receiver, &backlog));
    Queue { requests, waiting }
}

/// Does the requests, until the writer has ended.
fn run(folder: &Folder, requests: &Receiver<Request>, backlog: &Backlog) {
    for request in requests {
        match request {
            Request::Drained(reply) => drop(reply.send(())),
            Request::Seal(closed) => seal_in_the_end(folder, closed, backlog),
            Request::Recover(mut recover) => {
                let closed = loop {
                    match recover(folder) {
                        Ok(closed) => break closed,
                        Err(_) => std::thread::sleep(RETRY_AFTER),
                    }
                };
                match closed {
                    Some(closed) => seal_in_the_end(folder, closed, backlog),
                    None => backlog.one_less(),
                }
            }
        }
    }
}

/// Seals a batch; tries until the disk allows it.
fn seal_in_the_end(folder: &Folder, mut closed: Closed, backlog: &Backlog) {
    let mut is_logged = false;
    while let Err(error) = seal(folder, &mut closed) {
        if !is_logged {
            tracing::error!(log_type = %folder.log_type, batch.name = %closed.name, %error, "a batch can't be sealed; trying again every second");
            is_logged = true;
        }
        // Their senders need not wait until the disk works: the lines are cut off in the page cache, and a disk that
        // takes nothing does not write them either.
        if closed.refused.is_cut {
            closed.refused.answer();
        }
        std::thread::sleep(RETRY_AFTER);
    }
    if is_logged {
        tracing::info!(log_type = %folder.log_type, batch.name = %closed.name, "the batch is sealed now");
    }
    if closed.reason == SealReason::DiskError {
        folder.figures().salvages.fetch_sub(1, Ordering::Release);
    }
    closed.refused.answer();
    backlog.one_less();
    folder.home().take_spare_file();
}

/// Seals one batch and hands it to the flusher. Repeated after an error, it does what is left to do.
fn seal(folder: &Folder, closed: &mut Closed) -> io::Result<()> {
    // Makes sure that the path leads to the spool before anything is written there.
    folder.restore()?;
    if closed.records == 0 {
        return folder.remove_empty(closed.name);
    }
    if closed.is_plain() && closed.is_trusted() && seal_in_place(folder, closed)? {
        return Ok(());
    }
    if let Some(rewritten) = renamed_by_an_earlier_try(folder, closed)? {
        folder.finish_seal(&rewritten.name)?;
        return hand_over_rewritten(folder, closed, rewritten);
    }
    let new = folder.dir.join(format!("{}.tmp", closed.name));
    match rewrite(folder, closed, &new) {
        Ok(Some((sha256, bytes))) => {
            let name = folder.next_name(closed.name, closed.records, sha256);
            let rewritten = Rewritten { name, bytes };
            closed.rewritten = Some(Box::new(rewritten));
            folder.seal(&new, &name)?;
            hand_over_rewritten(folder, closed, rewritten)
        }
        Ok(None) => {
            tracing::error!(log_type = %folder.log_type, batch.name = %closed.name, events = closed.records, "a batch's file is gone or its bytes are not those that were written; what is left of it is in quarantine, see config/README.md#quarantined");
            folder.quarantine_unsealed(closed.name, closed.bytes, closed.records)
        }
        Err(error) if closed.may_go_as_it_is(&error) => match seal_in_place(folder, closed)? {
            true => Ok(()),
            false => Err(error),
        },
        Err(error) => Err(error),
    }
}

/// Renames the batch's own file to its sealed name and hands it to the flusher. False when somebody removed the
/// file, or put another one in its place, as a copy of the folder does: then the batch has to be rewritten from the
/// file that the writer has open.
fn seal_in_place(folder: &Folder, closed: &Closed) -> io::Result<bool> {
    let open = closed.path(folder);
    let found = folder.disk().identify(&open)?;
    if closed.id.is_some() && found.is_some() && found != closed.id {
        return Ok(false);
    }
    let name = folder.next_name(closed.name, closed.records, closed.sha256);
    match folder.seal(&open, &name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        sealed => {
            sealed?;
            folder.count_sealed(closed.reason);
            folder.announce(folder.count_in(name, closed.bytes));
            Ok(true)
        }
    }
}

/// The rewritten file, if an earlier try gave it its sealed name before it failed.
fn renamed_by_an_earlier_try(folder: &Folder, closed: &Closed) -> io::Result<Option<Rewritten>> {
    let Some(rewritten) = closed.rewritten.as_deref() else { return Ok(None) };
    let found = folder.disk().identify(&folder.path(&SpoolName::Sealed(rewritten.name)))?;
    Ok(found.map(|_| *rewritten))
}

/// Removes the `.open` file of a batch whose rewritten file is sealed, then hands the batch to the flusher.
fn hand_over_rewritten(folder: &Folder, closed: &Closed, rewritten: Rewritten) -> io::Result<()> {
    folder.disk().remove(&closed.path(folder))?;
    folder.disk().sync_dir(&folder.dir)?;
    folder.usage().remove(folder.log_type, closed.bytes);
    folder.usage().add(folder.log_type, rewritten.bytes);
    folder.count_sealed(closed.reason);
    folder.announce(folder.count_in(rewritten.name, rewritten.bytes));
    Ok(())
}

/// Writes the batch's plain bytes to the new file `to` through its codec, durably, and returns the hash and the size of
/// what is written. `None` when the bytes are gone, or their hash is not the one of the bytes that were appended. After
/// an error, no part of the new file is left.
fn rewrite(folder: &Folder, closed: &mut Closed, to: &Path) -> io::Result<Option<(Sha256, u64)>> {
    let written = folder.home().without_copies(|| write_anew(folder, closed, to));
    if written.is_err() {
        // The part that was written takes the room that events need.
        folder.disk().remove(to)?;
    }
    written
}

fn write_anew(folder: &Folder, closed: &mut Closed, to: &Path) -> io::Result<Option<(Sha256, u64)>> {
    let (disk, from) = (folder.disk(), closed.path(folder));
    disk.remove(to)?;
    if closed.file.is_none() {
        match disk.open(&from) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => closed.file = Some(opened?),
        }
    }
    let Some(source) = &mut closed.file else { return Ok(None) };
    let mut encoder =
        Encoder::new(closed.name.codec, Target { file: disk.create(to)?, bytes: 0, hasher: Sha256Hasher::default() })?;
    let mut plain = Sha256Hasher::default();
    let mut buffer = vec![0; READ_BUFFER_BYTES.min(usize::try_from(closed.bytes).unwrap_or(usize::MAX))];
    let mut offset = 0;
    while offset < closed.bytes {
        let wanted = buffer.len().min(usize::try_from(closed.bytes - offset).unwrap_or(usize::MAX));
        let read = match source.read_at(&mut buffer[..wanted], offset) {
            Err(error) => {
                // The file system that it was opened on may be gone, and the file be there under its name.
                if matches!(disk.identify(&from), Ok(Some(_))) {
                    closed.file = None;
                }
                return Err(error);
            }
            read => read?,
        };
        if read == 0 {
            break;
        }
        plain.update(&buffer[..read]);
        encoder.write_all(&buffer[..read])?;
        offset += read as u64;
    }
    let mut target = encoder.finish()?;
    if plain.finish() != closed.sha256 {
        disk.remove(to)?;
        return Ok(None);
    }
    target.file.sync()?;
    Ok(Some((target.hasher.finish(), target.bytes)))
}

/// A new file whose bytes are hashed as they are written.
struct Target {
    file: Box<dyn DiskFile>,
    bytes: u64,
    hasher: Sha256Hasher,
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_at(bytes, self.bytes)?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Encoder {
    Plain(Target),
    Gzip(flate2::write::GzEncoder<Target>),
    Zstd(zstd::Encoder<'static, Target>),
}

impl Encoder {
    fn new(codec: Codec, target: Target) -> io::Result<Encoder> {
        Ok(match codec {
            Codec::None => Encoder::Plain(target),
            Codec::Gzip => Encoder::Gzip(flate2::write::GzEncoder::new(target, flate2::Compression::default())),
            Codec::Zstd => Encoder::Zstd(zstd::Encoder::new(target, ZSTD_LEVEL)?),
        })
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Encoder::Plain(target) => target.write_all(bytes),
            Encoder::Gzip(encoder) => encoder.write_all(bytes),
            Encoder::Zstd(encoder) => encoder.write_all(bytes),
        }
    }

    fn finish(self) -> io::Result<Target> {
        match self {
            Encoder::Plain(target) => Ok(target),
            Encoder::Gzip(encoder) => encoder.finish(),
            Encoder::Zstd(encoder) => encoder.finish(),
        }
    }
}
