//! The durable place to go on from, so that a crash at any moment loses nothing and stores nothing twice.
//!
//! ```text
//! <spool>/pull/<log type>_<organization>.json
//! ```
//!
//! What is pulled goes through three steps, and each is durable before the next:
//! 1. The lines are appended to the log type's batch and fsynced. Until step 2 the gate holds that batch back.
//! 2. The place is written: up to where everything is taken, which of the events near it were taken, and the oldest
//!    batch that may hold events which the place doesn't know.
//! 3. The gate opens, and the batch may be sent to S3 and its file removed.
//!
//! A crash between 1 and 2: the place is old, but the batch can't have been sent, so its file is in the spool. The next
//! start reads the batches from that oldest one on, and adds the events that it finds to the place ([`super::settle`]).
//! Then it asks env0 again from the old place, and leaves out what was found. A crash in the middle of step 1 is the
//! same with fewer lines: a part of them was found, the rest is appended.
//!
//! The other order, the place first, would lose what had not been appended. Without the gate the batch could be sent
//! and its file removed between 1 and 2; nothing would be found, and all of it would be pulled and stored again.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::backoff;
use crate::batch::LogType;
use crate::spool::{AppendError, Spool, disk};

/// A place is far smaller. A larger file is not one, and is not read into memory.
const FILE_MAX_BYTES: u64 = 64 << 20;
const FOLDER: &str = "pull";
const FORMAT: u32 = 1;

/// What a log type has to remember of an organization.
pub(super) trait Memory: Serialize + DeserializeOwned + Default + Clone + Send + Sync + 'static {
    /// A line that is in the spool and that this memory may not know yet.
    fn found(&mut self, line: &[u8], whose: &Whose<'_>);
}

/// Whose place a line that was found may belong to.
pub(super) struct Whose<'a> {
    organization: &'a str,
    /// Whether no other organization of the log type has a place.
    pub(super) is_alone: bool,
}

impl Whose<'_> {
    /// Whether a line with this `organizationId` is another organization's.
    pub(super) fn is_anothers(&self, organization: Option<&RawValue>) -> bool {
        let id = organization.and_then(|id| serde_json::from_str::<String>(id.get()).ok());
        id.is_some_and(|id| id != self.organization)
    }
}

/// The file, as it is written.
#[derive(Serialize, Deserialize)]
struct File<M> {
    format: u32,
    log_type: LogType,
    organization: String,
    /// The opening, in microseconds since 1970, of the oldest batch that may hold events which `memory` doesn't know.
    batches_from_micros: Option<i64>,
    #[serde(bound = "M: Memory")]
    memory: M,
}

/// Why a place can't be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlaceError {
    /// The disk refuses; that may pass.
    #[error("{path}: {source}", path = path.display())]
    Disk { path: PathBuf, source: io::Error },
    /// Not a place. It is never begun anew by itself: that would store everything twice, or skip some.
    #[error("{path}: {reason}; put it back from a copy, or remove it to pull anew from ENV0_S3_LOG_PULL_FROM", path = path.display())]
    Unusable { path: PathBuf, reason: String },
}

/// The process ends before the work was done; the next start goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("shutting down")]
pub(super) struct Stopped;

/// What all places of a log type share.
#[derive(Clone)]
pub(super) struct Shared {
    /// Held by the one place that is appending and writing. They take turns because the log type has a single gate.
    pub(super) one_at_a_time: Arc<Mutex<()>>,
    /// Cancelled when the process ends; every wait then returns [`Stopped`].
    pub(super) stop: CancellationToken,
}

/// The place of one log type in one organization. Everything that is pulled goes into the spool through it.
pub(super) struct Place<M> {
    spool: Spool,
    log_type: LogType,
    organization: String,
    shared: Shared,
    batches_from: Option<DateTime<Utc>>,
    /// The same as on the disk, except while a change is being written.
    pub(super) memory: M,
}

impl<M: Memory> Place<M> {
    /// Reads the place; a new one, with `first` as its memory, is durable before this returns.
    pub(super) async fn open(
        spool: &Spool,
        log_type: LogType,
        organization: &str,
        shared: Shared,
        first: M,
    ) -> Result<Place<M>, PlaceError> {
        let mut place = Place {
            spool: spool.clone(),
            log_type,
            organization: organization.to_owned(),
            shared,
            batches_from: None,
            memory: first,
        };
        let found = blocking({
            let (spool, name) = (spool.clone(), place.file_name());
            move || read_file::<M>(&spool, &name)
        });
        match found.await? {
            Some(file) => {
                place.batches_from = file.batches_from_micros.and_then(DateTime::from_timestamp_micros);
                place.memory = file.memory;
            }
            None => {
                place.batches_from = spool.folder(log_type).last_opened();
                place.write().await?;
            }
        }
        Ok(place)
    }

    /// Brings `lines` into the spool and then `memory` to the disk. Waits while the spool is full or its disk fails,
    /// and tells `waiting` why.
    pub(super) async fn commit(
        &mut self,
        lines: Bytes,
        records: u64,
        memory: M,
        mut waiting: impl FnMut(&str),
    ) -> Result<(), Stopped> {
        let Shared { one_at_a_time, stop } = self.shared.clone();
        let _turn = one_at_a_time.lock().await;
        if records > 0 {
            self.append(lines, records, &mut waiting).await?;
        } else {
            // The memory knows every event of this pull that is in a batch, so a start need not read older batches.
            self.batches_from = self.spool.folder(self.log_type).last_opened().or(self.batches_from);
        }
        self.memory = memory;
        let mut attempt = 1;
        while let Err(error) = self.write().await {
            waiting(&error.to_string());
            // The gate stays shut: the next start finds the events in their batch.
            pause(&mut attempt, &stop).await?;
        }
        if records > 0 {
            self.spool.gate(self.log_type).release();
        }
        Ok(())
    }

    /// Appends `lines`, as often as it takes, and leaves the gate shut for the batch that took them.
    async fn append(&mut self, lines: Bytes, records: u64, waiting: &mut impl FnMut(&str)) -> Result<(), Stopped> {
        let spool = self.spool.clone();
        let (gate, folder) = (spool.gate(self.log_type), spool.folder(self.log_type));
        let mut attempt = 1;
        loop {
            gate.hold(folder.last_opened());
            let error = match spool.append(self.log_type, lines.clone(), records).await {
                Ok(receipt) => {
                    gate.hold_only(receipt.batch.opened);
                    self.batches_from = Some(receipt.batch.opened);
                    return Ok(());
                }
                Err(error) => error,
            };
            // None of the lines was stored. A full spool gets room only when batches are sent, so none may be held back.
            gate.release();
            match error {
                AppendError::Closed => return Err(Stopped),
                AppendError::Full { .. } | AppendError::TooLarge { .. } | AppendError::Disk(_) => {
                    waiting(&error.to_string());
                }
            }
            pause(&mut attempt, &self.shared.stop).await?;
        }
    }

    /// The id of the organization that is pulled.
    pub(super) fn organization(&self) -> &str {
        &self.organization
    }

    /// Returns when the process is to end.
    pub(super) async fn stopped(&self) {
        self.shared.stop.cancelled().await;
    }

    async fn write(&self) -> Result<(), PlaceError> {
        let file = File {
            format: FORMAT,
            log_type: self.log_type,
            organization: self.organization.clone(),
            batches_from_micros: self.batches_from.map(|opened| opened.timestamp_micros()),
            memory: self.memory.clone(),
        };
        let (spool, name) = (self.spool.clone(), self.file_name());
        blocking(move || write_file(&spool, &name, &file)).await
    }

    fn file_name(&self) -> String {
        format!("{}_{}.json", self.log_type, self.organization)
    }
}

async fn pause(attempt: &mut u32, stop: &CancellationToken) -> Result<(), Stopped> {
    // At most 5 s: env0 is not asked while the disk fails, so the pull should notice soon that it works again.
    let wait = backoff::full_jitter(*attempt, rand::random()).min(Duration::from_secs(5));
    *attempt += 1;
    tokio::select! {
        () = stop.cancelled() => Err(Stopped),
        () = tokio::time::sleep(wait) => Ok(()),
    }
}

/// Runs blocking work on a thread for it. If the work panics, that is reported as an error of the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PlaceError> + Send + 'static,
) -> Result<T, PlaceError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(PlaceError::Disk { path: FOLDER.into(), source: io::Error::other(error) }),
    }
}

/// The names of all places, with their log types.
pub(super) fn all(spool: &Spool) -> Result<Vec<(String, LogType)>, PlaceError> {
    let path = spool.dir().join(FOLDER);
    let names = match spool.disk().list(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(|source| PlaceError::Disk { path, source })?,
    };
    let place = |(name, _): (String, u64)| {
        let log_type = name.strip_suffix(".json")?.split_once('_')?.0.parse().ok()?;
        Some((name, log_type))
    };
    Ok(names.into_iter().filter_map(place).collect())
}

fn read_file<M: Memory>(spool: &Spool, name: &str) -> Result<Option<File<M>>, PlaceError> {
    let path = spool.dir().join(FOLDER).join(name);
    let failed = |reason: String| PlaceError::Unusable { path: path.clone(), reason };
    let bytes = match disk::read(&**spool.disk(), &path, FILE_MAX_BYTES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|source| PlaceError::Disk { path: path.clone(), source })?,
    };
    let file: File<M> = serde_json::from_slice(&bytes).map_err(|error| {
        failed(format!("not a place of the pull (line {}, column {})", error.line(), error.column()))
    })?;
    if file.format != FORMAT {
        return Err(failed(format!("written by another version (format {}, this one knows {FORMAT})", file.format)));
    }
    Ok(Some(file))
}

fn write_file<M: Memory>(spool: &Spool, name: &str, file: &File<M>) -> Result<(), PlaceError> {
    let folder = spool.dir().join(FOLDER);
    let write = || {
        let disk = &**spool.disk();
        disk.create_dir(&folder)?;
        disk.sync_dir(spool.dir())?;
        disk::replace_with(disk, &folder, name, |out| serde_json::to_writer(out, file).map_err(Into::into))
    };
    spool.without_copies(write).map_err(|source| PlaceError::Disk { path: folder.join(name), source })
}

/// A place as a start finds it.
pub(super) struct Unsettled<M> {
    name: String,
    file: File<M>,
}

impl<M: Memory> Unsettled<M> {
    pub(super) fn read(spool: &Spool, name: &str) -> Result<Option<Unsettled<M>>, PlaceError> {
        Ok(read_file(spool, name)?.map(|file| Unsettled { name: name.to_owned(), file }))
    }

    /// Batches opened before it hold nothing that the place doesn't know; `None` is all of them.
    pub(super) fn batches_from(&self) -> Option<DateTime<Utc>> {
        self.file.batches_from_micros.and_then(DateTime::from_timestamp_micros)
    }

    pub(super) fn found(&mut self, line: &[u8], is_alone: bool) {
        let whose = Whose { organization: &self.file.organization, is_alone };
        self.file.memory.found(line, &whose);
    }

    /// Writes the place after every batch up to `last` was read.
    pub(super) fn write(&mut self, spool: &Spool, last: Option<DateTime<Utc>>) -> Result<(), PlaceError> {
        self.file.batches_from_micros = last.map(|opened| opened.timestamp_micros()).or(self.file.batches_from_micros);
        write_file(spool, &self.name, &self.file)
    }
}
