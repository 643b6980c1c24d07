//! One attempt to store a batch in S3 and remove its file.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::batch::{Stage, object_key};
use crate::chain::{ChainEntry, Gaps, SigningKey};
use crate::credentials::Credentials;
use crate::flusher::delivery::{self, Next};
use crate::flusher::queue::Waiting;
use crate::s3::{Put, PutError, S3};
use crate::spool::folder::Folder;
use crate::spool::{Batch, Spool};

/// An attempt may take this long, and as long again as its bytes take at [`SLOWEST_BYTES_PER_SECOND`].
const ATTEMPT_BASE: Duration = Duration::from_secs(30);
const SLOWEST_BYTES_PER_SECOND: u64 = 64 * 1024;

/// What every attempt needs.
pub struct Uploads {
    /// Where batches come from.
    pub spool: Spool,
    /// Where they go.
    pub s3: S3,
    /// Their sessions; without one nothing is tried.
    pub credentials: Credentials,
    /// The key prefix; empty for none.
    pub bucket_path: String,
    /// How many PUTs of each log type may be in flight.
    pub concurrency: usize,
    /// Signs each object's chain entry.
    pub signing_key: Option<SigningKey>,
    /// How long each PUT took that S3 confirmed.
    pub upload_duration: metrics::Histogram,
}

/// How an attempt ended where the batch needs no other.
pub(super) enum Stored {
    Delivered,
    Quarantined,
}

/// How an attempt ended where the batch needs another.
pub(super) enum Failure {
    Put(PutError),
    /// The spool's disk failed, which says nothing about S3.
    Disk(io::Error),
}

/// Makes one attempt; returns the batch with what is known of it now.
pub(super) async fn attempt(uploads: Arc<Uploads>, mut waiting: Waiting) -> (Waiting, Result<Stored, Failure>) {
    let folder = uploads.spool.folder(waiting.batch.log_type);
    uploads.spool.gate(waiting.batch.log_type).pass(waiting.batch.name.batch.opened).await;
    let result = match send(&uploads, &folder, &mut waiting).await {
        Ok(Stored::Delivered) => {
            let removed = on_disk(&folder, &mut waiting.batch, Folder::delivered).await;
            removed.map(|()| Stored::Delivered).map_err(Failure::Disk)
        }
        // Somebody may have removed the file.
        Err(Failure::Disk(error)) if error.kind() == io::ErrorKind::NotFound && !waiting.stored => {
            quarantine_or(&folder, &mut waiting.batch, Failure::Disk(error)).await
        }
        result => result,
    };
    (waiting, result)
}

/// Stores the object in the bucket, as [`delivery::decide`] says.
///
/// The file is `.sending`, durably, before the PUT:
///
/// 1. `.sending` fsynced, then the PUT, then a crash: the next start knows that the object may be there. A `412` then
///    means that it is.
/// 2. The PUT, then a crash before `.sending` is durable: the next start finds `.sealed` and takes the `412` for
///    another writer's object. It gives the batch a new suffix and stores it twice.
///
/// A new suffix is durable before the next PUT for the same reason. And gaps are marked as reported only after the
/// object that names them is stored: marked before, a PUT that never arrives would leave them unreported for ever.
async fn send(uploads: &Uploads, folder: &Arc<Folder>, waiting: &mut Waiting) -> Result<Stored, Failure> {
    if waiting.stored {
        return Ok(Stored::Delivered);
    }
    let gaps = reported_gaps(folder);
    loop {
        take_new_name(folder, waiting).await?;
        let batch = &mut waiting.batch;
        // A copy of the folder in its place has the file, too. Sent from there, it would stay in the folder under its old
        // name, and the next start would send it again.
        let begun = |folder: &Folder, batch: &mut Batch| {
            folder.confirm()?;
            folder.set_stage(batch, Stage::Sending)
        };
        on_disk(folder, batch, begun).await.map_err(Failure::Disk)?;
        let started = Instant::now();
        let outcome = uploads.s3.put(&put(uploads, folder, batch, &gaps)).await;
        let ended = (&outcome).into();
        let next = delivery::decide(waiting.known, ended);
        waiting.known = waiting.known.after(ended, next);
        match (next, outcome) {
            (Next::Delivered, _) | (_, Ok(())) => {
                uploads.upload_duration.record(started.elapsed());
                waiting.stored = true;
                on_disk(folder, batch, move |folder, _| folder.mark_reported(&gaps)).await.map_err(Failure::Disk)?;
                return Ok(Stored::Delivered);
            }
            (Next::DeliveredBefore, _) => {
                tracing::info!(log_type = %batch.log_type, batch.name = %batch.name.batch, "the object is in the bucket already: an earlier attempt had arrived");
                waiting.stored = true;
                return Ok(Stored::Delivered);
            }
            (Next::NewName, _) => {
                tracing::info!(log_type = %batch.log_type, batch.name = %batch.name.batch, "another writer owns the object's name; the batch takes a new suffix");
            }
            (Next::Wait { stage, check_file }, Err(error)) => {
                // Now, and not before the next PUT: a crash until then must not forget it.
                take_new_name(folder, waiting).await?;
                let batch = &mut waiting.batch;
                on_disk(folder, batch, move |folder, batch| folder.set_stage(batch, stage))
                    .await
                    .map_err(Failure::Disk)?;
                let failure = Failure::Put(error);
                return if check_file { quarantine_or(folder, batch, failure).await } else { Err(failure) };
            }
        }
    }
}

/// Gives the batch a new suffix, durably, where it needs one.
async fn take_new_name(folder: &Arc<Folder>, waiting: &mut Waiting) -> Result<(), Failure> {
    if waiting.known.needs_new_name {
        on_disk(folder, &mut waiting.batch, Folder::rename).await.map_err(Failure::Disk)?;
        waiting.known.needs_new_name = false;
    }
    Ok(())
}

/// Moves the batch to quarantine where its file is missing or changed; otherwise returns the failure.
async fn quarantine_or(folder: &Arc<Folder>, batch: &mut Batch, failure: Failure) -> Result<Stored, Failure> {
    match on_disk(folder, batch, quarantine_if_changed).await {
        Ok(true) => Ok(Stored::Quarantined),
        Ok(false) => Err(failure),
        Err(error) => Err(Failure::Disk(error)),
    }
}

/// The gaps that fit into one object's metadata.
fn reported_gaps(folder: &Folder) -> Vec<u64> {
    let mut gaps = folder.gaps();
    let fit = Gaps::that_fit(&gaps);
    gaps.retain(|gap| fit.contains(*gap));
    gaps
}

pub(super) fn put(uploads: &Uploads, folder: &Folder, batch: &Batch, gaps: &[u64]) -> Put {
    let name = &batch.name;
    let entry = ChainEntry {
        key: object_key(&uploads.bucket_path, batch.log_type, &name.batch),
        renamed_from: name.batch.renamed_from,
        instance: uploads.spool.chain_instance(batch.log_type).to_owned(),
        log_type: batch.log_type,
        sequence: name.sequence,
        records: name.records,
        sha256: name.sha256,
        previous: name.previous,
        gaps: Gaps::that_fit(gaps),
    };
    Put {
        metadata: entry.metadata(uploads.signing_key.as_ref()),
        key: entry.key,
        file: folder.batch_path(batch),
        bytes: batch.bytes,
        sha256: name.sha256,
        timeout: ATTEMPT_BASE + Duration::from_secs(batch.bytes / SLOWEST_BYTES_PER_SECOND),
    }
}

/// Moves the batch to quarantine where its file is missing, or two readings give another hash than its name: one bad
/// read must not condemn a good file.
fn quarantine_if_changed(folder: &Folder, batch: &mut Batch) -> io::Result<bool> {
    for _ in 0..2 {
        match folder.rehash(batch) {
            Ok(sha256) if sha256 == batch.name.sha256 => return Ok(false),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    if !folder.quarantine(batch)? {
        return Ok(false);
    }
    tracing::error!(log_type = %batch.log_type, batch.name = %batch.name.batch, batch.sequence = batch.name.sequence, batch.events = batch.name.records, "a sealed batch's file is gone or its bytes have changed on disk; what is left of it is in quarantine, see config/README.md#quarantined");
    Ok(true)
}

/// Runs a file system operation on a thread that may block. Whatever the outcome, `batch` then
/// has the name that its file has.
async fn on_disk<T: Send + 'static>(
    folder: &Arc<Folder>,
    batch: &mut Batch,
    operation: impl FnOnce(&Folder, &mut Batch) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let folder = folder.clone();
    let mut moved = batch.clone();
    let run = move || {
        let result = operation(&folder, &mut moved);
        (moved, result)
    };
    let (moved, result) = tokio::task::spawn_blocking(run).await.map_err(io::Error::other)?;
    *batch = moved;
    result
}
