//! At every start, before anything is sent: finds the pulled events that a crash left in the spool and that the places
//! don't know yet, and adds them to the places.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::SetOnce;

use crate::batch::{Codec, LogType, SpoolName, Stage};
use crate::pull::audits::AuditMemory;
use crate::pull::deployments::DeploymentMemory;
use crate::pull::place::{self, Memory, PlaceError, Unsettled};
use crate::spool::Spool;
use crate::spool::disk::{Cursor, READ_BUFFER_BYTES};

const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Done when every place knows what the spool holds.
pub type Settled = Arc<SetOnce<()>>;

/// Holds back the batches that may hold events which no place knows, and reads them in threads of its own. Has to be
/// called before the flusher starts, whether or not this process pulls: a drain sends batches, too.
pub fn begin(spool: &Spool) -> Settled {
    let settled = Settled::default();
    let types: Vec<LogType> = LogType::ALL.into_iter().filter(|log_type| hold(spool, *log_type)).collect();
    if types.is_empty() {
        // It was made above, so it is not set yet.
        let _ = settled.set(());
        return settled;
    }
    // A thread for each log type: one that can't be settled must not hold back the other.
    let left = Arc::new(AtomicUsize::new(types.len()));
    for log_type in types {
        let (spool, done, left) = (spool.clone(), settled.clone(), left.clone());
        std::thread::spawn(move || {
            let mut told = false;
            while let Err(error) = settle(&spool, log_type) {
                if !told {
                    tracing::error!(log_type = %log_type, "what was pulled before the last end can't be told yet, so its batches are not sent: {error}; tried again every second");
                    told = true;
                }
                std::thread::sleep(RETRY_AFTER);
            }
            spool.gate(log_type).release();
            if left.fetch_sub(1, Ordering::AcqRel) == 1 {
                let _ = done.set(());
            }
        });
    }
    settled
}

/// Whether there is a place of the log type; if so, its batches are held from now on.
fn hold(spool: &Spool, log_type: LogType) -> bool {
    match unsettled(spool, log_type) {
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

fn unsettled(spool: &Spool, log_type: LogType) -> Result<Vec<Box<dyn AnyPlace>>, PlaceError> {
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
    fn found(&mut self, line: &[u8]);
    fn write(&mut self, spool: &Spool, last: Option<DateTime<Utc>>) -> Result<(), PlaceError>;
}

impl<M: Memory> AnyPlace for Unsettled<M> {
    fn batches_from(&self) -> Option<DateTime<Utc>> {
        Unsettled::batches_from(self)
    }

    fn found(&mut self, line: &[u8]) {
        Unsettled::found(self, line);
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

/// Brings the places of a log type up to what the spool holds.
fn settle(spool: &Spool, log_type: LogType) -> Result<(), SettleError> {
    let mut places = unsettled(spool, log_type)?;
    let from = first_batch(&places);
    let folder = spool.folder(log_type);
    let mut last = from.filter(|from| *from < DateTime::<Utc>::MAX_UTC);
    // A file may be sealed or compressed, and so renamed, while this reads. Then all files are listed and read again;
    // finding an event twice does no harm.
    let mut files = batches(spool, log_type, from)?;
    let mut index = 0;
    while let Some(name) = files.get(index) {
        let (batch, codec) = match name {
            SpoolName::Open(batch) => (batch, Codec::None),
            SpoolName::Sealed(sealed) => (&sealed.batch, sealed.batch.codec),
        };
        let mut found = |line: &[u8]| places.iter_mut().for_each(|place| place.found(line));
        match read_lines(spool, &folder.dir.join(name.to_string()), codec, &mut found) {
            Ok(()) => {
                last = last.max(Some(batch.opened));
                index += 1;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                files = batches(spool, log_type, from)?;
                index = 0;
            }
            Err(error) => return Err(error.into()),
        }
    }
    places.iter_mut().try_for_each(|place| place.write(spool, last)).map_err(SettleError::from)
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
fn batches(spool: &Spool, log_type: LogType, from: Option<DateTime<Utc>>) -> io::Result<Vec<SpoolName>> {
    let mut names = Vec::new();
    spool.disk().visit(&spool.folder(log_type).dir, &mut |file, _| {
        let Ok(name) = file.parse() else { return };
        let opened = match &name {
            SpoolName::Sealed(sealed) if sealed.stage == Stage::Sent => return,
            SpoolName::Sealed(sealed) => sealed.batch.opened,
            SpoolName::Open(batch) => batch.opened,
        };
        if from.is_none_or(|from| from <= opened) {
            names.push(name);
        }
    })?;
    Ok(names)
}

fn read_lines(spool: &Spool, path: &std::path::Path, codec: Codec, found: &mut impl FnMut(&[u8])) -> io::Result<()> {
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
