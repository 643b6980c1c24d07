//! The sealed batches of one log type, on their way to the flusher.

use std::vec;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use crate::batch::{LogType, SealedName};
use crate::spool::terms::Batch;

/// Hands sealed batches to the flusher.
pub(super) type SealedSender = UnboundedSender<Batch>;

/// The sealed batches of one log type, oldest first: those found at the start, then each as it is sealed.
#[derive(Debug)]
pub struct SealedBatches {
    log_type: LogType,
    /// Those found at the start, with the files' sizes. This is recovery's own list, not
    /// a copy: there may be a million.
    found: vec::IntoIter<(SealedName, u64)>,
    sealed: UnboundedReceiver<Batch>,
}

impl SealedBatches {
    /// `found` is in the order of the chain.
    pub(super) fn new(
        log_type: LogType,
        found: Vec<(SealedName, u64)>,
        sealed: UnboundedReceiver<Batch>,
    ) -> SealedBatches {
        SealedBatches { log_type, found: found.into_iter(), sealed }
    }

    /// The next batch; waits until there is one. `None` once the spool is dropped. Cancelling the wait loses no batch.
    pub async fn recv(&mut self) -> Option<Batch> {
        match self.next_found() {
            None => self.sealed.recv().await,
            found => found,
        }
    }

    /// The next batch, if there is one now.
    pub fn try_recv(&mut self) -> Option<Batch> {
        self.next_found().or_else(|| self.sealed.try_recv().ok())
    }

    fn next_found(&mut self) -> Option<Batch> {
        let (name, bytes) = self.found.next()?;
        if self.found.as_slice().is_empty() {
            // Gives a long list's memory back.
            self.found = Vec::new().into_iter();
        }
        Some(Batch::new(self.log_type, name, bytes))
    }
}
