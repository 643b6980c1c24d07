//! At every start, before anything is sent: finds the pulled events that a crash left in the spool and that the places
//! don't know yet, and adds them to the places.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::SetOnce;

use crate::batch::{ByType, Codec, LogType, Sha256Hasher, SpoolName, Stage};
use crate::pull::audits::AuditMemory;
use crate::pull::deployments::DeploymentMemory;
use crate::pull::files::PlaceError;
use crate::pull::place::{self, Memory, Unsettled};
use crate::spool::Spool;
use crate::spool::disk::{Cursor, READ_BUFFER_BYTES};

const RETRY_AFTER: Duration = if cfg!(test) { Duration::from_millis(10) } else { Duration::from_secs(1) };
const LIST_AGAIN_AFTER: Duration = Duration::from_millis(1);
/// A file that can't be read for this long is passed over, and so is every further one.
const PATIENCE: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(10) };

/// Done, for each log type, when its places know what the spool holds.
pub type Settled = Arc<ByType<SetOnce<()>>>;

/// Holds back the batches that may hold events which no place knows, and reads them in threads of its own. Has to be
/// called before the flusher starts, whether or not this process pulls: a drain sends batches, too.
///
/// A batch that is damaged or can't be read is passed over, so that it holds up nothing for ever. Its events count as
/// not taken: S3 never gets a damaged batch, so env0 is asked for them again, and they are stored once. Where the disk
/// gives a batch back after it was passed over, its events are stored twice.
pub fn begin(spool: &Spool) -> Settled {
    let settled = Settled::new(ByType::new(|_| SetOnce::new()));
    for log_type in LogType::ALL {
        if !hold(spool, log_type) {
            // It was made above, so it is not set yet.
            let _ = settled[log_type].set(());
            continue;
        }
        // A thread for each log type: one that can't be settled must not hold back the other.
        let (spool, settled) = (spool.clone(), settled.clone());
        std::thread::spawn(move || {
            let (begun, mut told) = (Instant::now(), false);
            while let Err(error) = settle(&spool, log_type, begun) {
                if !told {
                    tracing::error!(log_type = %log_type, "what was pulled before the last end can't be told yet, so its batches are not sent: {error}; tried again every second");
                    told = true;
                }
                std::thread::sleep(RETRY_AFTER);
            }
            spool.gate(log_type).release();
            let _ = settled[log_type].set(());
        });
    }
    settled
}

/// Whether there is a place of the log type; if so, its batches are held from now on.
fn hold(spool: &Spool, log_type: LogType) -> bool {
    match unsettled(spool, log_type, Instant::now()) {
        Ok(places) if places.is_empty() => false,
        Ok(places) => {
            spool.gate(log_type).hold(first_batch(&places));
            true
        }
        Err(_) => {
            spool.gate(log_type).hold(None);
            true
        }
    }
}

/// The places of the log type that can be read. `begun` is when reading was begun.
fn unsettled(spool: &Spool, log_type: LogType, begun: Instant) -> Result<Vec<Box<dyn AnyPlace>>, PlaceError> {
    let mut places: Vec<Box<dyn AnyPlace>> = Vec::new();
    for (name, _) in place::all(spool)?.into_iter().filter(|(_, of)| *of == log_type) {
        let read: Result<Option<Box<dyn AnyPlace>>, PlaceError> = match log_type {
            LogType::Audits => Unsettled::<AuditMemory>::read(spool, &name).map(boxed),
            LogType::Deployments => Unsettled::<DeploymentMemory>::read(spool, &name).map(boxed),
        };
        match read {
            Ok(place) => places.extend(place),
            // The pull of this place reports the error and doesn't begin. The other places go on.
            Err(PlaceError::Unusable { .. }) => {}
            Err(_) if begun.elapsed() > PATIENCE => {}
            Err(error) => return Err(error),
        }
    }
    Ok(places)
}

fn boxed<M: Memory>(place: Option<Unsettled<M>>) -> Option<Box<dyn AnyPlace>> {
    place.map(|place| Box::new(place) as Box<dyn AnyPlace>)
}

/// A place of either log type.
trait AnyPlace {
    fn batches_from(&self) -> Option<DateTime<Utc>>;
    fn found(&mut self, line: &[u8], is_alone: bool, is_last_try: bool) -> Result<(), PlaceError>;
    fn write(&mut self, spool: &Spool, last: Option<DateTime<Utc>>) -> Result<(), PlaceError>;
}

impl<M: Memory> AnyPlace for Unsettled<M> {
    fn batches_from(&self) -> Option<DateTime<Utc>> {
        Unsettled::batches_from(self)
    }

    fn found(&mut self, line: &[u8], is_alone: bool, is_last_try: bool) -> Result<(), PlaceError> {
        Unsettled::found(self, line, is_alone, is_last_try)
    }

    fn write(&mut self, spool: &Spool, last: Option<DateTime<Utc>>) -> Result<(), PlaceError> {
        Unsettled::write(self, spool, last)
    }
}

/// The oldest batch to be read for any of the places; `None` is the very first.
fn first_batch(places: &[Box<dyn AnyPlace>]) -> Option<DateTime<Utc>> {
    let mut froms = places.iter().map(|place| place.batches_from());
    froms.try_fold(DateTime::<Utc>::MAX_UTC, |first, from| Some(first.min(from?)))
}

/// Brings the places of a log type up to what the spool holds. `begun` is when that was tried first.
fn settle(spool: &Spool, log_type: LogType, begun: Instant) -> Result<(), SettleError> {
    let mut places = unsettled(spool, log_type, begun)?;
    let is_alone = places.len() == 1;
    let from = first_batch(&places);
    let folder = spool.folder(log_type);
    let mut last = from.filter(|from| *from < DateTime::<Utc>::MAX_UTC);
    let mut read = BTreeSet::new();
    let mut files = batches(spool, log_type, from, begun)?;
    while let Some(name) = files.pop() {
        let opened = name.batch().opened;
        if read.contains(&opened) {
            continue;
        }
        let path = folder.dir.join(name.to_string());
        let (is_last_try, mut refused) = (begun.elapsed() > PATIENCE, None);
        let mut found = |line: &[u8]| {
            for place in &mut places {
                if let Err(error) = place.found(line, is_alone, is_last_try) {
                    refused.get_or_insert(error);
                }
            }
        };
        // Nothing is taken from a file before all of it was read: what can't be sent must be pulled again.
        let result =
            verify(spool, &path, &name).and_then(|()| Ok(read_lines(spool, &path, name.batch().codec, &mut found)?));
        if let Some(error) = refused {
            return Err(error.into());
        }
        match result {
            Ok(()) => {}
            // It was sealed or compressed, and so renamed, while this read.
            Err(FileError::Disk(error)) if error.kind() == io::ErrorKind::NotFound && begun.elapsed() <= PATIENCE => {
                files = batches(spool, log_type, from, begun)?;
                continue;
            }
            Err(FileError::Disk(error)) if begun.elapsed() <= PATIENCE => return Err(error.into()),
            Err(error) => {
                tracing::error!(log_type = %log_type, file.path = %path.display(), "a batch that may hold pulled events {error}; it is passed over, and what env0 still has of it is pulled again; see config/README.md#pull-behind");
            }
        }
        read.insert(opened);
        last = last.max(Some(opened));
    }
    places.iter_mut().try_for_each(|place| place.write(spool, last)).map_err(SettleError::from)
}

/// Why nothing is taken from a file.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("can't be read: {0}")]
    Disk(#[from] io::Error),
    #[error("is damaged: its bytes are not those that were sealed")]
    Damaged,
}

/// Reads a file to its end, and compares a sealed one with the hash in its name.
fn verify(spool: &Spool, path: &Path, name: &SpoolName) -> Result<(), FileError> {
    let mut file = spool.disk().open(path)?;
    let mut reader = BufReader::with_capacity(READ_BUFFER_BYTES, Cursor::new(&mut *file));
    let mut hasher = Sha256Hasher::default();
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            break;
        }
        hasher.update(bytes);
        let read = bytes.len();
        reader.consume(read);
    }
    match name {
        SpoolName::Sealed(sealed) if sealed.sha256 != hasher.finish() => Err(FileError::Damaged),
        _ => Ok(()),
    }
}

#[derive(Debug, thiserror::Error)]
enum SettleError {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("the spool's disk: {0}")]
    Disk(#[from] io::Error),
}

/// Every file with events that were opened from `from` on. In the parsed form, which takes half of the text: there may
/// be a million.
fn batches(
    spool: &Spool,
    log_type: LogType,
    from: Option<DateTime<Utc>>,
    begun: Instant,
) -> io::Result<Vec<SpoolName>> {
    let folder = spool.folder(log_type);
    loop {
        let mut names = Vec::new();
        spool.disk().visit(&folder.dir, &mut |file, _| {
            let Ok(name) = file.parse() else { return };
            let sent = matches!(&name, SpoolName::Sealed(sealed) if sealed.stage == Stage::Sent);
            if !sent && from.is_none_or(|from| from <= SpoolName::batch(&name).opened) {
                names.push(name);
            }
        })?;
        names.sort_unstable_by_key(|name| name.batch().opened);
        // The list may lack a file that is renamed meanwhile: a start seals what a crash left open beside this.
        let is_listed = |opened| names.binary_search_by_key(&opened, |name| name.batch().opened).is_ok();
        if folder.all_unsent_since(from, is_listed) || begun.elapsed() > PATIENCE {
            return Ok(names);
        }
        std::thread::sleep(LIST_AGAIN_AFTER);
    }
}

fn read_lines(spool: &Spool, path: &Path, codec: Codec, found: &mut impl FnMut(&[u8])) -> io::Result<()> {
    let mut file = spool.disk().open(path)?;
    let plain = Cursor::new(&mut *file);
    let reader: Box<dyn Read + '_> = match codec {
        Codec::None => Box::new(plain),
        Codec::Gzip => Box::new(flate2::read::MultiGzDecoder::new(plain)),
        Codec::Zstd => Box::new(zstd::Decoder::new(plain)?),
    };
    let mut reader = BufReader::with_capacity(READ_BUFFER_BYTES, reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        if line.pop() == Some(b'\n') {
            found(&line);
        }
        line.clear();
    }
    Ok(())
}
