//! What `/status` says about the spool's disk. A thread of its own asks for it, so that a disk that hangs holds up that
//! thread and no answer of a listener.

use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::spool::folder::Folder;
use crate::status::Timestamp;
use crate::volume;

/// How often the disk is asked.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// What the disk said last.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct DiskFacts {
    /// When it answered; `None` before its first answer.
    pub(super) asked_at: Option<Timestamp>,
    /// See [`volume::available_bytes`].
    pub(super) available_bytes: Option<u64>,
    /// What is in quarantine, of both log types.
    pub(super) quarantine_bytes: u64,
}

/// Keeps the facts new until it is dropped.
pub(super) struct DiskWatch {
    latest: Arc<Mutex<DiskFacts>>,
    _stop: mpsc::Sender<()>,
}

impl DiskWatch {
    /// Asks the file system of `dir`, and `folder` for the quarantine of its spool.
    pub(super) fn start(dir: PathBuf, folder: Arc<Folder>) -> DiskWatch {
        let latest = Arc::new(Mutex::new(DiskFacts::default()));
        let (stop, stopped) = mpsc::channel();
        let facts = latest.clone();
        std::thread::spawn(move || {
            loop {
                let available_bytes = volume::available_bytes(&dir);
                let quarantine_bytes = folder.quarantine_bytes();
                let asked_at = Some(Timestamp::now());
                let answered = DiskFacts { asked_at, available_bytes, quarantine_bytes };
                *facts.lock().unwrap_or_else(PoisonError::into_inner) = answered;
                if stopped.recv_timeout(ASK_EVERY) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        DiskWatch { latest, _stop: stop }
    }

    /// The latest facts; never waits for the disk.
    pub(super) fn latest(&self) -> DiskFacts {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
