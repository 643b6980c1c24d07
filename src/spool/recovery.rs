//! Recovery: what a start does with the files that a crash left.
//!
//! Only `.open` files are read. Every whole valid line stays. A torn last line is cut off, because it was never
//! acknowledged. Any other bytes are moved to quarantine. The rest is sealed with the SHA-256 of the bytes that were
//! read. Sealed batches are taken as their names say; S3 checks their bytes.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use chrono::{DateTime, Utc};

use crate::batch::{BatchName, OPEN_EXTENSION, SealedName, Sha256, SpoolName, Stage};
use crate::spool::disk::{self, Disk};
use crate::spool::folder::Folder;
use crate::spool::home::is_full;
use crate::spool::names::Names;
use crate::spool::sealer::{Closed, LeftOpen, Refused};
use crate::spool::survey::{Line, Survey, copy};
use crate::spool::terms::SealReason;

/// Ending of files that were never finished. The files that they were made from are still there.
const TEMPORARY: &str = ".tmp";

/// Ends the chain of a folder without batches: removes its head, so that no number
/// follows it under the old instance id.
pub(super) fn end_chain(disk: &dyn Disk, dir: &Path, names: &Names) -> io::Result<()> {
    for (name, _) in &names.sealed {
        disk.remove(&dir.join(name.to_string()))?;
    }
    disk.sync_dir(dir)
}

/// Gives a folder without batches a head with number 0. A folder without any head has then
/// lost it, which a start notices.
pub(super) fn restart_chain(disk: &dyn Disk, dir: &Path, names: &mut Names) -> io::Result<()> {
    let last = names.sealed.iter().map(|(name, _)| name.batch.opened).max();
    let batch = BatchName::open(crate::batch::now(), last, crate::batch::Codec::None);
    let name =
        SealedName { batch, sequence: 0, records: 0, sha256: Sha256::ZERO, previous: Sha256::ZERO, stage: Stage::Sent };
    disk.create(&dir.join(name.to_string()))?.sync()?;
    disk.sync_dir(dir)?;
    names.sealed = vec![(name, 0)];
    Ok(())
}

/// What is in a folder once it is in order.
pub(super) struct Recovered {
    /// For the flusher, in the order of the chain, with the files' sizes in bytes.
    pub(super) sealed: Vec<(SealedName, u64)>,
    /// For the sealer, oldest first. The start doesn't wait for it, because the disk may be full.
    pub(super) open: Vec<LeftOpen>,
}

/// Brings a folder with a head into order, as its names and bytes say.
pub(super) fn recover(folder: &Folder, names: Names) -> io::Result<Recovered> {
    // The process may have been killed between a rename and its fsync. Without this fsync the listing above would show
    // `.sending`, a power cut could bring `.sealed` back, and a batch that S3 has would be taken for one never sent.
    folder.disk().sync_dir(&folder.dir)?;
    folder.read_gaps()?;
    let Names { mut sealed, mut open, strays } = names;
    strays.iter().try_for_each(|file_name| clear_away(folder, file_name))?;
    // A crash may leave two files of the head. The empty `.sent` is the head then, and the other one is sent again.
    sealed.sort_unstable_by_key(|(name, _)| (name.sequence, name.batch, name.stage));
    finish_renames(folder, &mut sealed)?;
    open.sort_unstable_by_key(|(name, _)| name.opened);

    if let Some((name, _)) = sealed.last() {
        folder.set_head(name);
    }
    let head_sequence = folder.head().sequence;
    // Gaps above the head's number belong to an earlier chain.
    let foreign: Vec<u64> = folder.gaps().into_iter().filter(|gap| *gap > head_sequence).collect();
    folder.mark_reported(&foreign)?;
    let still_open: BTreeSet<DateTime<Utc>> = open.iter().map(|(name, _)| name.opened).collect();
    let openings = sealed.iter().map(|(name, _)| name.batch.opened);
    let also_sealed: BTreeSet<DateTime<Utc>> = openings.filter(|opened| still_open.contains(opened)).collect();
    for (name, bytes) in &sealed {
        take_sealed(folder, name, *bytes, head_sequence)?;
    }
    sealed.retain(|(name, bytes)| name.stage.is_unsent() && *bytes > 0);
    let mut left_open = Vec::new();
    for (name, bytes) in open {
        if also_sealed.contains(&name.opened) {
            // The batch was rewritten and sealed, and the crash came before its `.open` file was removed.
            remove(folder, &SpoolName::Open(name).to_string())?;
            folder.disk().sync_dir(&folder.dir)?;
        } else {
            left_open.extend(take_open(folder, name, bytes)?);
        }
    }
    Ok(Recovered { sealed, open: left_open })
}

/// Removes a file that was never finished, and moves any other that is no batch to quarantine.
fn clear_away(folder: &Folder, file_name: &str) -> io::Result<()> {
    // NFS keeps a removed file that is still open under such a name, and editors keep such files, too.
    if file_name.starts_with('.') {
        return Ok(());
    }
    let found = folder.disk().identify(&folder.dir.join(file_name));
    let is_folder = matches!(found, Ok(Some(found)) if found.is_folder);
    if is_own_temporary(file_name) && !is_folder {
        return remove(folder, file_name);
    }
    set_aside(folder, file_name, "it is not a batch that this daemon wrote");
    Ok(())
}

/// Counts a batch that is not in S3; of those that are, keeps one empty file, the head's.
fn take_sealed(folder: &Folder, name: &SealedName, bytes: u64, head_sequence: u64) -> io::Result<()> {
    if name.stage.is_unsent() {
        folder.recover_sealed(name, bytes)
    } else if name.sequence < head_sequence {
        remove(folder, &name.to_string())
    } else if bytes > 0 {
        folder.empty_head(name)
    } else {
        Ok(())
    }
}

/// Counts a batch that a crash left open, and brings it into order; where the disk has no room for that, the sealer does.
fn take_open(folder: &Folder, name: BatchName, bytes: u64) -> io::Result<Option<LeftOpen>> {
    folder.add_unsent(name.opened);
    folder.usage().add(folder.log_type, bytes);
    match recover_open(folder, name, bytes) {
        Err(error) if is_full(&error) => {
            tracing::error!(log_type = %folder.log_type, batch.name = %name, %error, "there is no room to work through a batch that a crash left open; it is tried again every second, while deliveries make room");
            Ok(Some(LeftOpen::Unread(Box::new(move |folder| recover_open(folder, name, bytes)))))
        }
        recovered => Ok(recovered?.map(LeftOpen::Read)),
    }
}

/// Removes the old name of each file that has two: a crash leaves both names of a rename where the file system has no
/// journal. A rename from one name to the other does nothing then, so the batch would keep the old name when it is
/// delivered, and the next start would store it a second time.
fn finish_renames(folder: &Folder, sealed: &mut Vec<(SealedName, u64)>) -> io::Result<()> {
    let identify = |name: &SealedName| folder.disk().identify(&folder.path(&SpoolName::Sealed(*name)));
    let mut old_names = BTreeSet::new();
    for (index, pair) in sealed.windows(2).enumerate() {
        let (old, new) = (&pair[0].0, &pair[1].0);
        if (old.sequence, old.batch) == (new.sequence, new.batch) && identify(old)? == identify(new)? {
            remove(folder, &old.to_string())?;
            old_names.insert(index);
        }
    }
    let mut index = 0..;
    sealed.retain(|_| index.next().is_none_or(|index| !old_names.contains(&index)));
    Ok(())
}

/// Whether a file has the name of an unfinished file that this daemon makes.
fn is_own_temporary(file_name: &str) -> bool {
    let Some(stem) = file_name.strip_suffix(TEMPORARY) else { return false };
    let is_name = |name: &str| name.parse::<SpoolName>().is_ok();
    stem == "probe" || is_name(stem) || is_name(&format!("{stem}.{OPEN_EXTENSION}"))
}

fn remove(folder: &Folder, file_name: &str) -> io::Result<()> {
    folder.home().with_room(|| folder.disk().remove(&folder.dir.join(file_name)))
}

impl Folder {
    fn recover_sealed(&self, name: &SealedName, bytes: u64) -> io::Result<()> {
        self.add_unsent(name.batch.opened);
        self.usage().add(self.log_type, bytes);
        self.count_recovered(name.records);
        let batch = self.count_in(*name, bytes);
        if bytes == 0 {
            tracing::error!(log_type = %self.log_type, batch.name = %name.batch, batch.sequence = name.sequence, events = name.records, "a sealed batch is empty; it is in quarantine, see config/README.md#quarantined");
            self.quarantine(&batch)?;
        }
        Ok(())
    }

    /// Counts lines that were found and are no events.
    fn count_set_aside(&self, lines: u64) {
        self.figures().recovered.fetch_add(lines, Ordering::Relaxed);
        self.figures().quarantined.fetch_add(lines, Ordering::Relaxed);
    }

    fn count_recovered(&self, records: u64) {
        self.figures().recovered.fetch_add(records, Ordering::Relaxed);
        self.figures().spooled.fetch_add(records, Ordering::Relaxed);
    }
}

/// Moves a file that is no batch to quarantine. One that can't be moved stays, because it disturbs nothing.
fn set_aside(folder: &Folder, file_name: &str, why: &str) {
    let path = folder.dir.join(file_name);
    let moved = match folder.disk().identify(&path) {
        // The name is not UTF-8, so `file_name` is not exactly it.
        Ok(None) => Err(io::ErrorKind::NotFound.into()),
        _ => folder.move_to_quarantine(&path, file_name).map(drop),
    };
    match moved {
        Ok(()) => {
            tracing::error!(log_type = %folder.log_type, file = file_name, "a file is set aside in quarantine: {why}; see config/README.md#quarantined");
        }
        Err(error) => {
            tracing::error!(log_type = %folder.log_type, file = file_name, %error, "a file can't be moved to quarantine and is left where it is: {why}; see config/README.md#quarantined");
        }
    }
}

/// Brings an `.open` file into order, durably; `None` when it can't be read.
fn recover_open(folder: &Folder, name: BatchName, found_bytes: u64) -> io::Result<Option<Closed>> {
    let path = folder.path(&SpoolName::Open(name));
    let mut survey = Survey::default();
    let read = folder.disk().open(&path).and_then(|mut file| {
        survey.read(&mut *file, u64::MAX, |_, _, _| Ok(()))?;
        Ok(file)
    });
    let mut file = match read {
        Ok(file) => file,
        Err(error) => {
            // How many lines follow the place that can't be read is unknown.
            let lines = survey.records + survey.foreign + 1;
            tracing::error!(log_type = %folder.log_type, batch.name = %name, %error, events = lines, "a batch left by a crash can't be read; it is in quarantine. Counted: the readable lines plus one; see config/README.md#quarantined");
            folder.move_to_quarantine(&path, &SpoolName::Open(name).to_string())?;
            folder.count_out_unsealed(name, found_bytes);
            folder.count_set_aside(lines);
            return Ok(None);
        }
    };
    if survey.foreign > 0 {
        let (foreign, end) = (survey.foreign, survey.whole_lines);
        let (quarantine, aside_name) = (folder.home().quarantine_dir(), format!("{}_{name}.bytes", folder.log_type));
        let mut replace = |dir: &Path, file_name: &str, wanted: Line| {
            folder.home().without_copies(|| {
                let mut survey = Survey::default();
                disk::replace_with(folder.disk(), dir, file_name, |out| {
                    survey.read(
                        &mut *file,
                        end,
                        |file, line, range| {
                            if line == wanted { copy(file, range, out) } else { Ok(()) }
                        },
                    )
                })?;
                Ok(survey)
            })
        };
        replace(&quarantine, &aside_name, Line::Foreign)?;
        survey = replace(&folder.dir, &SpoolName::Open(name).to_string(), Line::Event)?;
        tracing::error!(log_type = %folder.log_type, batch.name = %name, events = foreign, "a batch left by a crash holds lines that are no events; they are in quarantine, see config/README.md#quarantined");
        folder.count_set_aside(foreign);
    } else {
        if survey.whole_lines < survey.read {
            file.truncate(survey.bytes)?;
        }
        file.sync()?;
    }
    let Survey { bytes, records, hasher, .. } = survey;
    folder.usage().remove(folder.log_type, found_bytes.saturating_sub(bytes));
    folder.count_recovered(records);
    let (sha256, reason, refused) = (hasher.finish(), SealReason::Recovery, Refused::default());
    Ok(Some(Closed { name, bytes, records, sha256, reason, file: None, id: None, refused, rewritten: None }))
}
