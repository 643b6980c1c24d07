//! At every start, before anything is sent: finds the pulled events that a crash left in the spool and that the places
//! don't know yet, and adds them to the places.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::SetOnce;

use crate::batch::{ByType, Codec, LogType, SpoolName};
use crate::pull::audits::AuditMemory;
use crate::pull::deployments::DeploymentMemory;
use crate::pull::files::PlaceError;
use crate::pull::place::{self, Memory, Unsettled};
use crate::spool::Spool;
use crate::spool::disk::{self, Cursor, READ_BUFFER_BYTES};

const RETRY_AFTER: Duration = if cfg!(test) { Duration::from_millis(10) } else { Duration::from_secs(1) };
/// What the disk refuses to give is asked for so often, [`RETRY_AFTER`] apart, and then passed over. Tries are counted,
/// not time: a disk that is only slow gets everything read.
const TRIES: u32 = 10;
const LIST_AGAIN_AFTER: Duration = Duration::from_millis(1);
/// A list that lacks a batch is asked for again for this long, and a few times at least.
const LISTS_MIN: u32 = 10;
const LISTS_FOR: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(10) };

/// Under this name the gate holds what the start has to read first. No organization's id is empty.
const START: &str = "";

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
        std::thread::spawn(move || settle(&spool, log_type, &settled[log_type]));
    }
    settled
}

/// Whether there is a place of the log type; if so, its batches are held from now on.
fn hold(spool: &Spool, log_type: LogType) -> bool {
    match unsettled(spool, log_type, false) {
        Ok(places) if places.is_empty() => false,
        Ok(places) => {
            spool.gate(log_type).hold(START, first_batch(&places));
            true
        }
        Err(_) => {
            spool.gate(log_type).hold(START, None);
            true
        }
    }
}

/// The places of the log type. One that can't be read is an error; in the last try it is left out.
fn unsettled(spool: &Spool, log_type: LogType, is_last_try: bool) -> Result<Vec<Box<dyn AnyPlace>>, PlaceError> {
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
            Err(_) if is_last_try => {}
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
    fn organization(&self) -> &str;
    fn batches_from(&self) -> Option<DateTime<Utc>>;
    fn longest_line(&self) -> usize;
    fn found(&mut self, line: &[u8], organizations: &[String], is_last_try: bool) -> Result<(), PlaceError>;
    fn write(&mut self, spool: &Spool, last: Option<DateTime<Utc>>) -> Result<(), PlaceError>;
}

impl<M: Memory> AnyPlace for Unsettled<M> {
    fn organization(&self) -> &str {
        Unsettled::organization(self)
    }

    fn batches_from(&self) -> Option<DateTime<Utc>> {
        Unsettled::batches_from(self)
    }

    fn longest_line(&self) -> usize {
        Unsettled::longest_line(self)
    }

    fn found(&mut self, line: &[u8], organizations: &[String], is_last_try: bool) -> Result<(), PlaceError> {
        Unsettled::found(self, line, organizations, is_last_try)
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

/// Says once that the disk refuses something, and waits before it is asked again.
struct Retry {
    log_type: LogType,
    told: bool,
}

impl Retry {
    fn wait(&mut self, error: &dyn fmt::Display) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::error!(log_type = %self.log_type, "what was pulled before the last end can't be told yet, so its batches are not sent: {error}; tried again every second");
        }
        std::thread::sleep(RETRY_AFTER);
    }

    /// Does `work` until it succeeds. It gets the number of the try, from 1.
    fn until_done<T, E: fmt::Display>(&mut self, mut work: impl FnMut(u32) -> Result<T, E>) -> T {
        let mut tries = 1;
        loop {
            match work(tries) {
                Ok(done) => return done,
                Err(error) => self.wait(&error),
            }
            tries = tries.saturating_add(1);
        }
    }
}

/// Brings the places of a log type up to what the spool holds, opens the gate and sets `settled`. Returns when all that
/// is done, however long the disk refuses.
fn settle(spool: &Spool, log_type: LogType, settled: &SetOnce<()>) {
    let mut retry = Retry { log_type, told: false };
    let mut places = retry.until_done(|tries| unsettled(spool, log_type, tries >= TRIES));
    let from = first_batch(&places);
    let last = read_batches(spool, &mut places, from, &mut retry);
    let open = || {
        spool.gate(log_type).release(START);
        // It may be set already.
        let _ = settled.set(());
    };
    write_places(spool, places, (from, last), &mut retry, open);
    open();
}

/// Adds what the batches from `from` on hold to the places. Returns when the last of these batches was opened.
fn read_batches(
    spool: &Spool,
    places: &mut [Box<dyn AnyPlace>],
    from: Option<DateTime<Utc>>,
    retry: &mut Retry,
) -> Option<DateTime<Utc>> {
    let log_type = retry.log_type;
    let mut last = from.filter(|from| *from < DateTime::<Utc>::MAX_UTC);
    let (mut read, mut renamed) = (BTreeSet::new(), BTreeSet::new());
    let mut tries = 1;
    loop {
        let (mut refused, mut list_again) = (None, false);
        for name in retry.until_done(|_| batches(spool, log_type, from)) {
            let opened = name.batch().opened;
            if read.contains(&opened) {
                continue;
            }
            match take(spool, log_type, &name, places, tries >= TRIES) {
                Ok(()) => {}
                // It was sealed or compressed, and so renamed, while this read. The next list has its new name.
                Err(error) if error.is_missing() && renamed.insert(name.to_string()) => {
                    list_again = true;
                    continue;
                }
                Err(FileError::Damaged) => tell_passed_over(spool, log_type, &name, &FileError::Damaged),
                Err(error) if tries < TRIES => {
                    refused.get_or_insert(error);
                    continue;
                }
                Err(error) => tell_passed_over(spool, log_type, &name, &error),
            }
            read.insert(opened);
            last = last.max(Some(opened));
        }
        match refused {
            Some(error) => retry.wait(&error),
            None if list_again => continue,
            None => return last,
        }
        tries += 1;
    }
}

/// Writes the places, which know every batch up to `last` by now, and opens the gate of each. Where the disk goes on
/// refusing one, its batches from `from` on stay held back, and `open` lets the other pulls begin.
fn write_places(
    spool: &Spool,
    mut places: Vec<Box<dyn AnyPlace>>,
    (from, last): (Option<DateTime<Utc>>, Option<DateTime<Utc>>),
    retry: &mut Retry,
    open: impl Fn(),
) {
    let gate = spool.gate(retry.log_type);
    for tries in 1.. {
        let mut refused = None;
        places.retain_mut(|place| match place.write(spool, last) {
            Ok(()) => {
                gate.release(place.organization());
                false
            }
            Err(error) => {
                refused.get_or_insert(error);
                true
            }
        });
        let Some(error) = refused else { break };
        if tries == TRIES {
            // A place that can't be written still keeps back the batches that may be its own, and its pull doesn't
            // begin. The others need not wait for that.
            for (place, last) in places.iter().zip(last.iter().cycle()) {
                gate.hold_until(place.organization(), from, *last);
            }
            open();
        }
        retry.wait(&error);
    }
}

/// Adds what is in a batch to the places. It can be done again after an error.
fn take(
    spool: &Spool,
    log_type: LogType,
    name: &SpoolName,
    places: &mut [Box<dyn AnyPlace>],
    is_last_try: bool,
) -> Result<(), FileError> {
    let organizations: Vec<String> = places.iter().map(|place| place.organization().to_owned()).collect();
    let line_max_bytes = places.iter().map(|place| place.longest_line()).max().unwrap_or_default();
    let path = spool.folder(log_type).dir.join(name.to_string());
    let mut refused = None;
    let mut found = |line: &[u8]| {
        for place in &mut *places {
            if let Err(error) = place.found(line, &organizations, is_last_try) {
                refused.get_or_insert(error);
            }
        }
    };
    // Nothing is taken from a file before all of it was read: what can't be sent must be pulled again.
    verify(spool, &path, name)?;
    // A batch is compressed when it is sealed.
    let codec = if let SpoolName::Sealed(sealed) = name { sealed.batch.codec } else { Codec::None };
    read_lines(spool, &path, codec, line_max_bytes, &mut found)?;
    refused.map_or(Ok(()), |error| Err(error.into()))
}

fn tell_passed_over(spool: &Spool, log_type: LogType, name: &SpoolName, error: &FileError) {
    let path = spool.folder(log_type).dir.join(name.to_string());
    tracing::error!(log_type = %log_type, file.path = %path.display(), "a batch that may hold pulled events {error}; it is passed over, and what env0 still has of it is pulled again; see config/README.md#pull-behind");
}

/// Why nothing is taken from a file.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("can't be read: {0}")]
    Disk(#[from] io::Error),
    #[error("is damaged: its bytes are not those that were sealed")]
    Damaged,
    #[error("can't be compared with what is remembered: {0}")]
    Place(#[from] PlaceError),
}

impl FileError {
    fn is_missing(&self) -> bool {
        matches!(self, FileError::Disk(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

/// Reads a file to its end, and compares a sealed one with the hash in its name.
fn verify(spool: &Spool, path: &Path, name: &SpoolName) -> Result<(), FileError> {
    let sha256 = disk::hash(&**spool.disk(), path)?;
    match name {
        SpoolName::Sealed(sealed) if sealed.sha256 != sha256 => Err(FileError::Damaged),
        _ => Ok(()),
    }
}

/// Every file with events that were opened from `from` on, the newest first. In the parsed form, which takes half of
/// the text: there may be a million.
fn batches(spool: &Spool, log_type: LogType, from: Option<DateTime<Utc>>) -> io::Result<Vec<SpoolName>> {
    let folder = spool.folder(log_type);
    let (begun, mut lists) = (Instant::now(), 0);
    loop {
        let mut names = Vec::new();
        spool.disk().visit(&folder.dir, &mut |file, _| {
            let Ok(name) = file.parse() else { return };
            let sent = matches!(&name, SpoolName::Sealed(sealed) if !sealed.stage.is_unsent());
            if !sent && from.is_none_or(|from| from <= SpoolName::batch(&name).opened) {
                names.push(name);
            }
        })?;
        names.sort_unstable_by_key(|name| std::cmp::Reverse(name.batch().opened));
        lists += 1;
        // The list may lack a file that is renamed meanwhile: a start seals what a crash left open beside this.
        let is_listed = |opened| {
            names
                .binary_search_by_key(&std::cmp::Reverse(opened), |name| std::cmp::Reverse(name.batch().opened))
                .is_ok()
        };
        if folder.all_unsent_since(from, is_listed) || (lists >= LISTS_MIN && begun.elapsed() > LISTS_FOR) {
            return Ok(names);
        }
        std::thread::sleep(LIST_AGAIN_AFTER);
    }
}

/// Calls `found` with each line of at most `max_bytes`; no longer one was pulled.
fn read_lines(
    spool: &Spool,
    path: &Path,
    codec: Codec,
    max_bytes: usize,
    found: &mut impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut file = spool.disk().open(path)?;
    let plain = Cursor::new(&mut *file);
    let reader: Box<dyn Read + '_> = match codec {
        Codec::None => Box::new(plain),
        Codec::Gzip => Box::new(flate2::read::MultiGzDecoder::new(plain)),
        Codec::Zstd => Box::new(zstd::Decoder::new(plain)?),
    };
    let mut reader = BufReader::with_capacity(READ_BUFFER_BYTES, reader);
    let (mut line, mut is_begin) = (Vec::new(), true);
    while reader.by_ref().take(max_bytes as u64 + 1).read_until(b'\n', &mut line)? > 0 {
        let is_end = line.pop_if(|last| *last == b'\n').is_some();
        if is_begin && is_end {
            found(&line);
        }
        is_begin = is_end;
        line.clear();
    }
    Ok(())
}
