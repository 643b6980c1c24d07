//! Appends a request's lines to the spool: all of them or none. A request is refused only
//! once none of it can be stored.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{OptionFuture, join};

use crate::batch::{ByType, LogType};
use crate::http::listener::Guest;
use crate::ingest::memory::HOLD;
use crate::ingest::{Held, Ingest, not_taken};
use crate::protocols::body::Lines;
use crate::protocols::{Accepted, Protocol, Refusal};
use crate::spool::claim::Claim;
use crate::spool::{AppendError, Receipt, Spool};

/// The pause between tries to store the second half of a request.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl Ingest {
    /// Appends to each log type's batch at the same time; refused as a whole, before anything is
    /// written, when one of them is full or its disk fails.
    ///
    /// A request that no writer has begun with within 5 s, what it waited for memory included, is withdrawn and
    /// refused. One that is being written waits for the disk, however long that takes: nobody knows yet whether it is
    /// stored, and a sender that is refused sends again.
    pub(super) async fn append(
        &self,
        lines: ByType<Lines>,
        held: Held,
        protocol: &dyn Protocol,
        guest: &Guest,
    ) -> Result<Accepted, Refusal> {
        let records = lines.values().map(|lines| lines.records).sum();
        let mut rooms = ByType::default();
        for (log_type, lines) in lines.iter().filter(|(_, lines)| lines.records > 0) {
            if let Some(error) = self.spool.failing(log_type) {
                return Err(not_taken(AppendError::Disk(error)));
            }
            rooms[log_type] = Some(self.spool.take_room(log_type, lines.bytes.len() as u64).map_err(not_taken)?);
        }
        let hold = HOLD.saturating_sub(held.lines.waited);
        let claim: Arc<Claim<dyn Send + Sync>> = Arc::new(Claim::new(held));
        let both = rooms.map(|log_type, room| {
            let lines = &lines[log_type];
            let append = |room| self.spool.append_claimed(room, lines.bytes.clone(), lines.records, claim.clone());
            OptionFuture::from(room.map(append))
        });
        let [deployments, audits] = both.into_array();
        // Polled together, because one answer may carry those of requests that wait for the other log type alone.
        let mut both = pin!(join(deployments, audits));
        let (deployments, audits) = match tokio::time::timeout(hold, &mut both).await {
            Ok(outcomes) => outcomes,
            Err(_) if claim.withdraw() => {
                let reason = format!("an earlier write takes longer than {} s", hold.as_secs());
                let error = io::Error::new(io::ErrorKind::TimedOut, reason);
                return Err(not_taken(AppendError::Disk(Arc::new(error))));
            }
            Err(_) => both.await,
        };
        let outcomes = [deployments, audits];
        let is_stored_in_part = outcomes.iter().flatten().any(Result::is_ok);
        let mut receipt = None;
        for (log_type, outcome) in LogType::ALL.into_iter().zip(outcomes) {
            let lines = &lines[log_type];
            let stored = match outcome {
                None => continue,
                Some(Ok(stored)) => stored,
                Some(Err(error)) if !is_stored_in_part => return Err(not_taken(error)),
                Some(Err(_)) => {
                    // In a task of its own, so that a client that hangs up does not leave half a request stored.
                    let rest = tokio::spawn(store_rest(self.spool.clone(), log_type, lines.clone(), claim.clone()));
                    rest.await.map_err(|error| not_taken(AppendError::Disk(Arc::new(io::Error::other(error)))))?
                }
            };
            self.meters.accepted(log_type, lines);
            if lines.replaced > 0 {
                self.replaced.count(log_type, lines.replaced, protocol.name(), guest);
            }
            receipt.get_or_insert_with(|| (self.key(log_type, &stored.batch), stored.line));
        }
        Ok(Accepted { records, receipt })
    }
}

/// Stores the lines of a request whose other log type has stored its own, as soon as there is room and a disk that
/// works. When the daemon ends before that, the answer never comes.
async fn store_rest(spool: Spool, log_type: LogType, lines: Lines, claim: Arc<Claim<dyn Send + Sync>>) -> Receipt {
    loop {
        tokio::time::sleep(RETRY_AFTER).await;
        let Ok(room) = spool.take_room(log_type, lines.bytes.len() as u64) else { continue };
        match spool.append_claimed(room, lines.bytes.clone(), lines.records, claim.clone()).await {
            Ok(receipt) => return receipt,
            Err(AppendError::Closed) => std::future::pending().await,
            Err(AppendError::Full { .. } | AppendError::TooLarge { .. } | AppendError::Disk(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests;
