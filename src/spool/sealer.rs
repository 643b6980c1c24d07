//! One thread a log type: closed batch → sealed batch.
//!
//! A batch is sealed by one rename. Where its bytes have to change first (compression) or its file
//! can't be trusted any more (a failed fsync, maybe in a life before), they are copied to a new file, which is
//! hashed as it is written, made durable and takes the sealed name; then the old file goes, and only then does
//! the flusher hear of the batch. So a crash leaves either the old file, or both with the same opening.

use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::batch::{BatchName, Codec, SealedName, Sha256, Sha256Hasher, SpoolName};
use crate::spool::answers::{self, Outcome, Reply};
use crate::spool::disk::{DiskFile, READ_BUFFER_BYTES};
use crate::spool::folder::Folder;
use crate::spool::home::is_full;
use crate::spool::terms::SealReason;

/// The pause between tries to seal a batch that the disk refuses.
const RETRY_AFTER: Duration = if cfg!(test) { Duration::from_millis(1) } else { Duration::from_secs(1) };
/// Batches that wait with their files open; more would take the descriptors that connections need.
const OPEN_FILES_MAX: usize = 64;
/// Batches that wait for the sealer before the writer waits, too: what they take in memory is bounded.
const QUEUE_MAX: usize = 4096;
const QUEUE_WAIT: Duration = Duration::from_secs(1);
/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;

/// A batch that nothing is appended to any more.
pub(super) struct Closed {
    pub(super) name: BatchName,
    /// The plain bytes that count; the file may hold more when it is salvaged.
    pub(super) bytes: u64,
    /// 0: the file goes without a trace.
    pub(super) records: u64,
    /// Of the plain bytes.
    pub(super) sha256: Sha256,
    pub(super) reason: SealReason,
    /// Where the writer had it open, and few others wait: the bytes are there even when somebody removes the name.
    pub(super) file: Option<Box<dyn DiskFile>>,
    pub(super) refused: Refused,
    /// The name and the bytes of the copy that an earlier try may have sealed.
    pub(super) copy: Option<Box<(SealedName, u64)>>,
}

/// Who is to be told that their lines are not stored, once the file that may hold them is gone.
#[derive(Default)]
pub(super) struct Refused {
    pub(super) refusals: Vec<(Reply, Outcome)>,
    /// Their lines were cut off, though that may not outlive a power cut.
    pub(super) is_cut: bool,
}

impl Refused {
    fn answer(&mut self) {
        answers::give(std::mem::take(&mut self.refusals));
    }
}

/// Reads what a crash left open, and brings it into order.
type Recover = Box<dyn FnMut(&Folder) -> io::Result<Option<Closed>> + Send>;

/// What a crash left open.
pub(super) enum LeftOpen {
    Read(Closed),
    /// There was no room to bring it into order: to be tried until there is.
    Unread(Recover),
}

enum Request {
    Seal(Closed),
    /// Seals what comes of it.
    Recover(Recover),
    /// Answered when all that was asked before is done.
    Drained(oneshot::Sender<()>),
}

/// The writer's end of the batches that wait for the sealer.
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
    /// Hands a batch to the sealer. Waits for it for at most [`QUEUE_WAIT`] where too many wait already, so that what
    /// is taken and what is compressed keep pace; a sealer that is stuck holds nothing up for longer.
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
        // The sealer ends after the writer.
        let _ = self.requests.send(Request::Seal(closed));
    }

    /// `reply` is sent when all that was handed over before is sealed.
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
        // Its receiver is here.
        let _ = requests.send(request);
    }
    let backlog = waiting.clone();
    std::thread::spawn(move || run(&folder, &receiver, &backlog));
    Queue { requests, waiting }
}

/// Works off the requests until the writer is gone.
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

/// Seals a batch, however often the disk refuses.
fn seal_in_the_end(folder: &Folder, mut closed: Closed, backlog: &Backlog) {
    let mut told = false;
    while let Err(error) = seal(folder, &mut closed) {
        if !told {
            tracing::error!(log_type = %folder.log_type, batch.name = %closed.name, %error, "a batch can't be sealed; trying again every second");
            told = true;
        }
        // A disk that takes nothing at all writes no copy of the cut lines either: no reason to let their
        // senders wait until it is mended.
        if closed.refused.is_cut {
            closed.refused.answer();
        }
        std::thread::sleep(RETRY_AFTER);
    }
    if told {
        tracing::info!(log_type = %folder.log_type, batch.name = %closed.name, "the batch is sealed now");
    }
    if closed.reason == SealReason::DiskError {
        folder.figures().salvages.fetch_sub(1, Ordering::Release);
    }
    closed.refused.answer();
    backlog.one_less();
    folder.home().take_spare_file();
}

/// Seals one batch and hands it to the flusher. Repeated after an error it does what is left to do.
fn seal(folder: &Folder, closed: &mut Closed) -> io::Result<()> {
    // No copy is made in a folder that is not the spool's.
    folder.restore()?;
    let open = folder.path(&SpoolName::Open(closed.name));
    if closed.records == 0 {
        return folder.remove_empty(closed.name);
    }
    // The system shows a later life what a failed fsync gave up, and no fsync of the same file brings it to the disk.
    let trusted = !matches!(closed.reason, SealReason::DiskError | SealReason::Recovery);
    let plain = closed.name.codec == Codec::None;
    if plain && trusted && seal_in_place(folder, closed, &open)? {
        return Ok(());
    }
    // Asked for by its name: a listing may lack it.
    let mut sealed_before = closed.copy.as_deref().copied();
    if let Some((name, _)) = sealed_before
        && folder.disk().identify(&folder.path(&SpoolName::Sealed(name)))?.is_none()
    {
        sealed_before = None;
    }
    let (name, bytes) = if let Some((name, bytes)) = sealed_before {
        folder.finish_seal(&name)?;
        (name, bytes)
    } else {
        let copy = folder.dir.join(format!("{}.tmp", closed.name));
        let copied = folder.home().without_copies(|| copy_checked(folder, &open, &copy, closed));
        if copied.is_err() {
            // What there is of it takes the room that events need.
            folder.disk().remove(&copy)?;
        }
        match copied {
            Ok(Some((sha256, bytes))) => {
                let name = folder.next_name(closed.name, closed.records, sha256);
                closed.copy = Some(Box::new((name, bytes)));
                folder.seal(&copy, &name)?;
                (name, bytes)
            }
            Ok(None) => {
                tracing::error!(log_type = %folder.log_type, batch.name = %closed.name, events = closed.records, "a batch's file is gone or its bytes are not those that were written; what is left of it is in quarantine, see config/README.md#quarantined");
                return folder.quarantine_unsealed(closed.name, closed.bytes, closed.records);
            }
            // It may be that nothing but its delivery makes room for a copy, or that a file may not be so large any more.
            Err(error)
                if plain
                    && closed.reason == SealReason::Recovery
                    && (is_full(&error) || error.kind() == io::ErrorKind::FileTooLarge) =>
            {
                return if seal_in_place(folder, closed, &open)? { Ok(()) } else { Err(error) };
            }
            Err(error) => return Err(error),
        }
    };
    folder.disk().remove(&open)?;
    folder.disk().sync_dir(&folder.dir)?;
    folder.usage().remove(folder.log_type, closed.bytes);
    folder.usage().add(folder.log_type, bytes);
    folder.count_sealed(closed.reason);
    folder.announce(folder.hold(name, bytes));
    Ok(())
}

/// Gives the batch's own file its sealed name and hands it to the flusher. False when somebody removed the file; what
/// the writer had open is left to copy from.
fn seal_in_place(folder: &Folder, closed: &Closed, open: &Path) -> io::Result<bool> {
    let name = folder.next_name(closed.name, closed.records, closed.sha256);
    match folder.seal(open, &name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        sealed => {
            sealed?;
            folder.count_sealed(closed.reason);
            folder.announce(folder.hold(name, closed.bytes));
            Ok(true)
        }
    }
}

/// Copies the batch's plain bytes through its codec; durable on return. `None` when they are gone, or not the
/// bytes that were hashed as they were appended.
fn copy_checked(folder: &Folder, from: &Path, to: &Path, closed: &mut Closed) -> io::Result<Option<(Sha256, u64)>> {
    let disk = folder.disk();
    disk.remove(to)?;
    if closed.file.is_none() {
        match disk.open(from) {
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
        let read = source.read_at(&mut buffer[..wanted], offset)?;
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

/// A new file, hashed as it is written.
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
