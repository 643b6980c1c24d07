//! One attempt to bring a batch to S3 and its file out of the way.

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

/// An attempt may take this long, and its size at [`SLOWEST_BYTES_PER_SECOND`] on top.
const ATTEMPT_BASE: Duration = Duration::from_secs(30);
const SLOWEST_BYTES_PER_SECOND: u64 = 64 * 1024;

/// What every attempt needs.
pub struct Shared {
    /// Where batches come from.
    pub spool: Spool,
    /// Where they go.
    pub s3: S3,
    /// Without a session nothing is tried.
    pub credentials: Credentials,
    /// The key prefix; empty for none.
    pub bucket_path: String,
    /// PUTs in flight, per log type.
    pub concurrency: usize,
    /// Signs each object's chain entry.
    pub signing_key: Option<SigningKey>,
    /// Time of each PUT that S3 confirmed.
    pub upload_duration: metrics::Histogram,
}

/// How an attempt ended well.
pub(super) enum Stored {
    Delivered,
    Quarantined,
}

/// How an attempt ended otherwise.
pub(super) enum Failure {
    Put(PutError),
    /// The spool's disk failed; says nothing about S3.
    Disk(io::Error),
}

/// One attempt; the batch comes back with what is known of it now.
pub(super) async fn attempt(shared: Arc<Shared>, mut waiting: Waiting) -> (Waiting, Result<Stored, Failure>) {
    let folder = shared.spool.folder(waiting.batch.log_type);
    shared.spool.gate(waiting.batch.log_type).pass(waiting.batch.name.batch.opened).await;
    let result = match send(&shared, &folder, &mut waiting).await {
        Ok(Stored::Delivered) => {
            let removed = on_disk(&folder, &mut waiting.batch, Folder::delivered).await;
            removed.map(|()| Stored::Delivered).map_err(Failure::Disk)
        }
        // The file may not be there any more.
        Err(Failure::Disk(error)) if error.kind() == io::ErrorKind::NotFound && !waiting.stored => {
            quarantine_or(&folder, &mut waiting.batch, Failure::Disk(error)).await
        }
        result => result,
    };
    (waiting, result)
}

/// Brings the object to the bucket, as [`delivery::decide`] says.
async fn send(shared: &Shared, folder: &Arc<Folder>, waiting: &mut Waiting) -> Result<Stored, Failure> {
    if waiting.stored {
        return Ok(Stored::Delivered);
    }
    let gaps = reported_gaps(folder);
    loop {
        let batch = &mut waiting.batch;
        if waiting.known.needs_new_name {
            on_disk(folder, batch, Folder::rename).await.map_err(Failure::Disk)?;
            waiting.known.needs_new_name = false;
        }
        on_disk(folder, batch, |folder, batch| folder.set_stage(batch, Stage::Sending)).await.map_err(Failure::Disk)?;
        let started = Instant::now();
        let outcome = shared.s3.put(&put(shared, folder, batch, &gaps)).await;
        let ended = (&outcome).into();
        let next = delivery::decide(waiting.known, ended);
        waiting.known = waiting.known.after(ended, next);
        match (next, outcome) {
            (Next::Delivered, _) | (_, Ok(())) => {
                shared.upload_duration.record(started.elapsed());
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
                on_disk(folder, batch, move |folder, batch| folder.set_stage(batch, stage))
                    .await
                    .map_err(Failure::Disk)?;
                let failure = Failure::Put(error);
                return if check_file { quarantine_or(folder, batch, failure).await } else { Err(failure) };
            }
        }
    }
}

/// Sets the batch aside where its file is gone or changed; else the failure stays what it was.
async fn quarantine_or(folder: &Arc<Folder>, batch: &mut Batch, failure: Failure) -> Result<Stored, Failure> {
    match on_disk(folder, batch, quarantine_if_changed).await {
        Ok(true) => Ok(Stored::Quarantined),
        Ok(false) => Err(failure),
        Err(error) => Err(Failure::Disk(error)),
    }
}

/// The gaps that one object's metadata can tell of.
fn reported_gaps(folder: &Folder) -> Vec<u64> {
    let mut gaps = folder.gaps();
    let fit = Gaps::that_fit(&gaps);
    gaps.retain(|gap| fit.contains(*gap));
    gaps
}

pub(super) fn put(shared: &Shared, folder: &Folder, batch: &Batch, gaps: &[u64]) -> Put {
    let name = &batch.name;
    let entry = ChainEntry {
        key: object_key(&shared.bucket_path, batch.log_type, &name.batch),
        renamed_from: name.batch.renamed_from,
        instance: shared.spool.chain_instance(batch.log_type).to_owned(),
        log_type: batch.log_type,
        sequence: name.sequence,
        records: name.records,
        sha256: name.sha256,
        previous: name.previous,
        gaps: Gaps::that_fit(gaps),
    };
    Put {
        metadata: entry.metadata(shared.signing_key.as_ref()),
        key: entry.key,
        file: folder.batch_path(batch),
        bytes: batch.bytes,
        sha256: name.sha256,
        timeout: ATTEMPT_BASE + Duration::from_secs(batch.bytes / SLOWEST_BYTES_PER_SECOND),
    }
}

/// Two readings, so that one bad read doesn't condemn a good file. One that somebody removed is beyond reading.
fn quarantine_if_changed(folder: &Folder, batch: &mut Batch) -> io::Result<bool> {
    for _ in 0..2 {
        match folder.rehash(batch) {
            Ok(sha256) if sha256 == batch.name.sha256 => return Ok(false),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    folder.quarantine(batch)?;
    tracing::error!(log_type = %batch.log_type, batch.name = %batch.name.batch, batch.sequence = batch.name.sequence, batch.events = batch.name.records, "a sealed batch's file is gone or its bytes have changed on disk; what is left of it is in quarantine, see config/README.md#quarantined");
    Ok(true)
}

/// Runs a file system operation on a thread that may block; the batch keeps the name that its file has,
/// whatever the outcome.
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
