//! The durable place to go on from, so that a crash at any moment loses nothing and stores nothing twice.
//!
//! ```text
//! <spool>/pull/<log type>_<organization>.json
//! ```
//!
//! What is remembered of each deployment is a part of its own, in a file of its own ([`super::files`]), so that a place
//! with many of them stays small.
//!
//! What is pulled goes through three steps, and each is durable before the next:
//! 1. The lines are appended to the log type's batch and fsynced. Until step 2 the gate holds that batch back.
//! 2. The parts that have changed are written, and then the place: up to where everything is taken, which of the events
//!    near it were taken, and the oldest batch that may hold events which neither place nor parts know.
//! 3. The gate opens, and the batch may be sent to S3 and its file removed.
//!
//! A part whose file can't be written is kept in the place itself until it can be. A place that can't be written keeps
//! its batch back; nothing more is pulled for it until it is written, and the places of other organizations go on.
//!
//! A crash between 1 and 2: the place is old, but the batch can't have been sent, so its file is in the spool. The next
//! start reads the batches from that oldest one on, and adds the events that it finds to the place ([`super::settle`]).
//! Then it asks env0 again from the old place, and leaves out what was found. A crash in the middle of step 1 is the
//! same with fewer lines: a part of them was found, the rest is appended.
//!
//! The other order, the place first, would lose what had not been appended. Without the gate the batch could be sent
//! and its file removed between 1 and 2; nothing would be found, and all of it would be pulled and stored again.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::background::blocking;
use crate::backoff;
use crate::batch::LogType;
use crate::pull::files::{self, FILE_MAX_BYTES, FOLDER, Parts, PlaceError};
use crate::pull::round::{RoundError, Stopped};
use crate::pull::whose::Whose;
use crate::spool::{AppendError, Spool};

const FORMAT: u32 = 1;
/// A pull whose place has grown to this size goes no further. What it has begun may add some more.
const MAX_BYTES: u64 = FILE_MAX_BYTES / 4 * 3;
/// So many values of `ENV0_S3_LOG_MAX_EVENT_BYTES` are remembered.
const EVENT_LIMITS_MAX: usize = 8;
/// A line is taken to be longer than this only where `ENV0_S3_LOG_MAX_EVENT_BYTES` was: a start does not hold others in memory.
const LINE_MAX_BYTES: usize = 8 << 20;
/// A place that the disk refuses is tried so often before the turn is given up. Each round tries again.
const WRITE_TRIES: u32 = 3;

/// What a log type has to remember of an organization.
pub(super) trait Memory: Serialize + DeserializeOwned + Default + Clone + Send + Sync + 'static {
    /// What is remembered of one part, in a file of its own.
    type Part: Serialize + DeserializeOwned + Default + Clone + PartialEq + Send + Sync + 'static;

    /// The id of the part that knows of a line, if one does.
    fn part_of(&self, line: &[u8], whose: &Whose<'_>) -> Option<String>;

    /// Where a part is kept as long as its file can't be written; else it is the default. `None` where there is no such
    /// part any more.
    fn kept(&mut self, id: &str) -> Option<&mut Self::Part>;

    /// A line that is in the spool and that this memory, or its `part`, may not know yet.
    fn found(&mut self, line: &[u8], whose: &Whose<'_>, part: Option<&mut Self::Part>);

    /// The ids of all parts.
    fn parts(&self) -> impl Iterator<Item = &String>;
}

/// The file, as it is written.
#[derive(Serialize, Deserialize)]
struct File<M> {
    format: u32,
    log_type: LogType,
    organization: String,
    /// The opening, in microseconds since 1970, of the oldest batch that may hold events which `memory` doesn't know.
    batches_from_micros: Option<i64>,
    /// The values of `ENV0_S3_LOG_MAX_EVENT_BYTES` under which lines may have been pulled, the last one last.
    #[serde(default)]
    event_limits: Vec<usize>,
    #[serde(bound = "M: Memory")]
    memory: M,
}

/// What all places of a log type share.
#[derive(Clone)]
pub(super) struct Shared {
    /// Held by the one place that is appending and writing. They take turns because what
    /// waits for the spool is in memory.
    pub(super) one_at_a_time: Arc<Mutex<()>>,
    /// Cancelled when the process ends; every wait then returns [`Stopped`].
    pub(super) stop: CancellationToken,
    /// `ENV0_S3_LOG_MAX_EVENT_BYTES`
    pub(super) max_event_bytes: usize,
}

/// The place of one log type in one organization. Everything that is pulled goes into the spool through it.
pub(super) struct Place<M: Memory> {
    spool: Spool,
    log_type: LogType,
    organization: String,
    shared: Shared,
    /// Whether it was there before this process opened it.
    pub(super) began_before: bool,
    batches_from: Option<DateTime<Utc>>,
    /// `batches_from` as it was last written to the file.
    written_from: Option<DateTime<Utc>>,
    /// As in [`File`], the present one last.
    event_limits: Vec<usize>,
    parts: Parts<M::Part>,
    /// The same as on the disk, except while a change is being written or where `behind` is set.
    pub(super) memory: M,
    /// Where the disk has refused the last change of the place: how large the place may be.
    behind: Option<u64>,
    /// Parts that the place's file has, because their own files could not be written.
    kept: BTreeSet<String>,
}

/// What a commit changes.
pub(super) struct Change<M: Memory> {
    /// Where more than parts have changed.
    pub(super) memory: Option<M>,
    /// The changed parts; `None` for one that is not needed any more.
    pub(super) parts: Vec<(String, Option<M::Part>)>,
}

impl<M: Memory> From<M> for Change<M> {
    fn from(memory: M) -> Change<M> {
        Change { memory: Some(memory), parts: Vec::new() }
    }
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
            began_before: false,
            batches_from: None,
            written_from: None,
            event_limits: Vec::new(),
            parts: Parts::of(spool, format!("{log_type}_{organization}")),
            memory: first,
            behind: None,
            kept: BTreeSet::new(),
        };
        if spool.gate(log_type).is_held_by(organization) {
            return Err(PlaceError::Unsettled { path: spool.dir().join(FOLDER).join(place.file_name()) });
        }
        let found = blocking({
            let (spool, name) = (spool.clone(), place.file_name());
            move || files::make_folder(&spool).and_then(|()| read_file::<M>(&spool, &name))
        });
        match found.await? {
            Some(file) => {
                place.batches_from = file.batches_from_micros.and_then(DateTime::from_timestamp_micros);
                place.memory = file.memory;
                place.event_limits = file.event_limits;
                place.began_before = true;
            }
            None => place.batches_from = spool.folder(log_type).last_opened(),
        }
        let limit = place.shared.max_event_bytes;
        if place.event_limits.last() != Some(&limit) {
            // It must be durable before a line is cut to this limit: a start can't tell it from the line.
            place.event_limits.retain(|former| *former != limit);
            place.event_limits.push(limit);
            place.event_limits =
                place.event_limits.split_off(place.event_limits.len().saturating_sub(EVENT_LIMITS_MAX));
            place.write(FILE_MAX_BYTES).await?;
        }
        place.written_from = place.batches_from;
        place.parts.keep_only(place.memory.parts());
        let ids: Vec<String> = place.memory.parts().cloned().collect();
        place.kept = ids.into_iter().filter(|id| place.kept_part(id).is_some()).collect();
        Ok(place)
    }

    /// The part that is kept in the place, if it is.
    fn kept_part(&mut self, id: &str) -> Option<&mut M::Part> {
        self.memory.kept(id).filter(|part| **part != M::Part::default())
    }

    /// Tries once more to write what the disk has refused. Returns why, where the place still has to keep a part.
    ///
    /// # Errors
    /// The disk still refuses the place itself. Nothing may be committed before this has succeeded.
    pub(super) async fn catch_up(&mut self) -> Result<Option<PlaceError>, PlaceError> {
        if let Some(max_bytes) = self.behind {
            self.write(max_bytes).await?;
        }
        let mut kept = Vec::new();
        for id in self.kept.clone() {
            kept.extend(self.kept_part(&id).cloned().map(|part| (id, part)));
        }
        let tried = kept.len();
        let (_, refused) = self.write_parts(kept).await;
        if refused.len() < tried {
            self.write(FILE_MAX_BYTES).await?;
        }
        Ok(refused.into_iter().next())
    }

    /// The files of its parts.
    pub(super) fn parts(&self) -> Parts<M::Part> {
        self.parts.clone()
    }

    /// Brings `lines` into the spool and then the change to the disk. Waits while the spool is full or its disk fails,
    /// and tells `waiting` why. Gives back the changed parts with their ids: they may be too large to be there twice.
    ///
    /// # Errors
    /// The process ends, or the disk refuses the place again and again. The lines are in the spool then and their batch
    /// is held back; [`Place::catch_up`] has to succeed before the next commit. That the disk refuses a part is no
    /// error: the place keeps it, and `catch_up` tells of it.
    pub(super) async fn commit(
        &mut self,
        lines: Bytes,
        records: u64,
        change: impl Into<Change<M>>,
        mut waiting: impl FnMut(&str),
    ) -> Result<Vec<(String, M::Part)>, RoundError> {
        let Change { memory, parts } = change.into();
        let Shared { one_at_a_time, stop, .. } = self.shared.clone();
        let _turn = one_at_a_time.lock().await;
        if records > 0 {
            self.append(lines, records, &mut waiting).await?;
        } else {
            // The memory knows every event of this pull that is in a batch, so a start need not read older batches.
            self.batches_from = self.spool.folder(self.log_type).last_opened().or(self.batches_from);
        }
        // Without events a place that is too large stops here, where no batch is held for it.
        let max_bytes = if records > 0 { FILE_MAX_BYTES } else { MAX_BYTES };
        let mut has_changed = memory.is_some();
        self.memory = memory.unwrap_or_else(|| std::mem::take(&mut self.memory));
        let (mut ended, mut changed) = (Vec::new(), Vec::new());
        for (id, part) in parts {
            // A part that the place's file has would count for newer than its own file.
            has_changed |= self.kept.contains(&id);
            match part {
                Some(part) => changed.push((id, part)),
                None => ended.push(id),
            }
        }
        let (changed, refused) = self.write_parts(changed).await;
        has_changed |= !refused.is_empty();
        // While only parts have changed, the place has to name no older batch than it does.
        if has_changed || self.written_from != self.batches_from {
            let mut attempt = 1;
            while let Err(error) = self.write(max_bytes).await {
                if attempt == WRITE_TRIES {
                    return Err(error.into());
                }
                waiting(&error.to_string());
                pause(&mut attempt, &stop).await?;
            }
        }
        self.spool.gate(self.log_type).release(&self.organization);
        ended.iter().for_each(|id| self.parts.remove(id));
        Ok(changed)
    }

    /// Writes the files of parts, and gives them back. One that the disk refuses is kept in the place instead, so the
    /// place has to be written next. Also returns why each of these was refused.
    async fn write_parts(&mut self, parts: Vec<(String, M::Part)>) -> (Vec<(String, M::Part)>, Vec<PlaceError>) {
        let (mut tried, mut refused) = (Vec::new(), Vec::new());
        if parts.is_empty() {
            return (tried, refused);
        }
        let files = self.parts.clone();
        let write = move |(id, part): (String, M::Part)| {
            let written = files.write(&id, &part);
            (id, part, written)
        };
        for (id, part, written) in blocking(move || parts.into_iter().map(write).collect::<Vec<_>>()).await {
            if let Some(kept) = self.memory.kept(&id) {
                *kept = match written {
                    Ok(()) => M::Part::default(),
                    Err(error) => {
                        self.kept.insert(id.clone());
                        refused.push(error);
                        part.clone()
                    }
                };
            }
            tried.push((id, part));
        }
        (tried, refused)
    }

    /// Appends `lines`, as often as it takes, and leaves the gate shut for the batch that took them.
    async fn append(&mut self, lines: Bytes, records: u64, waiting: &mut impl FnMut(&str)) -> Result<(), Stopped> {
        let spool = self.spool.clone();
        let (gate, folder) = (spool.gate(self.log_type), spool.folder(self.log_type));
        let mut attempt = 1;
        loop {
            gate.hold(&self.organization, folder.last_opened());
            let error = match spool.append(self.log_type, lines.clone(), records).await {
                Ok(receipt) => {
                    gate.hold_until(&self.organization, Some(receipt.batch.opened), receipt.batch.opened);
                    self.batches_from = Some(receipt.batch.opened);
                    return Ok(());
                }
                Err(error) => error,
            };
            // None of the lines was stored. A full spool gets room only when batches are
            // sent, so none may be held back.
            gate.release(&self.organization);
            match error {
                AppendError::Closed => return Err(Stopped),
                AppendError::Full { .. } | AppendError::TooLarge { .. } | AppendError::Disk(_) => {
                    waiting(&error.to_string());
                }
            }
            pause(&mut attempt, &self.shared.stop).await?;
        }
    }

    /// Other values of `ENV0_S3_LOG_MAX_EVENT_BYTES` under which events of this pull may have been stored.
    pub(super) fn former_limits(&self) -> Vec<usize> {
        self.event_limits.split_last().map_or_else(Vec::new, |(_, former)| former.to_vec())
    }

    /// The id of the organization that is pulled.
    pub(super) fn organization(&self) -> &str {
        &self.organization
    }

    /// Returns when the process is to end.
    pub(super) async fn stopped(&self) {
        self.shared.stop.cancelled().await;
    }

    /// Writes the place; then its batches need not be held back any more.
    async fn write(&mut self, max_bytes: u64) -> Result<(), PlaceError> {
        // Until it is written. The gate stays shut: the next start finds the events in their batch.
        self.behind = Some(max_bytes);
        let file = File {
            format: FORMAT,
            log_type: self.log_type,
            organization: self.organization.clone(),
            batches_from_micros: self.batches_from.map(|opened| opened.timestamp_micros()),
            event_limits: self.event_limits.clone(),
            memory: std::mem::take(&mut self.memory),
        };
        let (spool, name) = (self.spool.clone(), self.file_name());
        // It goes to the thread that writes, and comes back: it may be too large to be there twice.
        let (written, memory) = blocking(move || (files::write(&spool, &name, &file, max_bytes), file.memory)).await;
        self.memory = memory;
        written?;
        self.written_from = self.batches_from;
        self.behind = None;
        for id in std::mem::take(&mut self.kept) {
            if self.kept_part(&id).is_some() {
                self.kept.insert(id);
            }
        }
        self.spool.gate(self.log_type).release(&self.organization);
        Ok(())
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

/// The names of all places, with their log types.
pub(super) fn all(spool: &Spool) -> Result<Vec<(String, LogType)>, PlaceError> {
    let path = spool.dir().join(FOLDER);
    let names = match spool.disk().list(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(|source| PlaceError::Disk { path, source })?,
    };
    let place = |(name, _): (String, u64)| {
        let (log_type, _) = files::place_of(&name)?;
        let log_type = log_type.parse().ok()?;
        Some((name, log_type))
    };
    Ok(names.into_iter().filter_map(place).collect())
}

fn read_file<M: Memory>(spool: &Spool, name: &str) -> Result<Option<File<M>>, PlaceError> {
    let file: Option<File<M>> = files::read(spool, name)?;
    match file {
        Some(File { format, .. }) if format != FORMAT => Err(PlaceError::Unusable {
            path: spool.dir().join(FOLDER).join(name),
            reason: format!("written by another version (format {format}, this one knows {FORMAT})"),
        }),
        file => Ok(file),
    }
}

/// A place as a start finds it.
pub(super) struct Unsettled<M: Memory> {
    name: String,
    file: File<M>,
    parts: Parts<M::Part>,
    /// Those that know of lines that were found; `None` for one that can't be read. Its own reading tells of that.
    found: HashMap<String, Option<M::Part>>,
}

impl<M: Memory> Unsettled<M> {
    pub(super) fn read(spool: &Spool, name: &str) -> Result<Option<Unsettled<M>>, PlaceError> {
        let Some(file) = read_file(spool, name)? else { return Ok(None) };
        let parts = Parts::of(spool, name.trim_end_matches(".json").to_owned());
        Ok(Some(Unsettled { name: name.to_owned(), file, parts, found: HashMap::new() }))
    }

    pub(super) fn organization(&self) -> &str {
        &self.file.organization
    }

    /// Batches opened before it hold nothing that the place doesn't know; `None` is all of them.
    pub(super) fn batches_from(&self) -> Option<DateTime<Utc>> {
        self.file.batches_from_micros.and_then(DateTime::from_timestamp_micros)
    }

    /// No pulled line is longer.
    pub(super) fn longest_line(&self) -> usize {
        self.file.event_limits.iter().copied().fold(LINE_MAX_BYTES, usize::max)
    }

    /// Takes note of a line. `organizations` are all that have a place of the log type.
    ///
    /// # Errors
    /// The disk refuses the part that knows of the line. Where `is_last_try`, the line is passed over instead.
    pub(super) fn found(&mut self, line: &[u8], organizations: &[String], is_last_try: bool) -> Result<(), PlaceError> {
        let File { memory, organization, .. } = &mut self.file;
        let whose = Whose { organization, organizations };
        let Some(id) = memory.part_of(line, &whose) else {
            memory.found(line, &whose, None);
            return Ok(());
        };
        if !self.found.contains_key(&id) {
            let kept = memory.kept(&id).filter(|part| **part != M::Part::default()).cloned();
            let part = match kept.map_or_else(|| self.parts.read(&id), |part| Ok(Some(part))) {
                Ok(part) => Some(part.unwrap_or_default()),
                Err(error @ PlaceError::Disk { .. }) if !is_last_try => return Err(error),
                Err(_) => None,
            };
            self.found.insert(id.clone(), part);
        }
        memory.found(line, &whose, self.found.get_mut(&id).and_then(Option::as_mut));
        Ok(())
    }

    /// Writes the place after every batch up to `last` was read.
    pub(super) fn write(&mut self, spool: &Spool, last: Option<DateTime<Utc>>) -> Result<(), PlaceError> {
        for (id, part) in &self.found {
            let (Some(part), Some(kept)) = (part, self.file.memory.kept(id)) else { continue };
            // Where its file can't be written, the place keeps the part.
            *kept = match self.parts.write(id, part) {
                Ok(()) => M::Part::default(),
                Err(_) => part.clone(),
            };
        }
        self.file.batches_from_micros = last.map(|opened| opened.timestamp_micros()).or(self.file.batches_from_micros);
        files::write(spool, &self.name, &self.file, FILE_MAX_BYTES)
    }
}
