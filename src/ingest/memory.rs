//! The memory that requests share, and why they can't block each other:
//!
//! 1. Bodies and the lines that are built of them have a memory each. A request takes of the first, then of the second,
//!    then waits for the disk; never the other way.
//! 2. Every kind of sender ([`Lane`]) has a share that no other can take. A small part is free for all. The rest is for
//!    turns.
//! 3. Memory is charged before it is allocated: of the lane's share, else of what is free for all.
//! 4. Where neither has room, a request takes a turn: all that it may still need, at once, in the order in which
//!    requests came to ask. Until then its body stays unread.
//! 5. Who waits for a turn has none of the memory for turns, and who has a turn waits for no more of it: so every turn
//!    ends, and the next one begins.
//! 6. Who has a turn for which others wait has to hurry (`receive.rs`).
//! 7. A turn that doesn't come within [`HOLD`] is a 503.
//! 8. What a request turns out not to need is given back at once, the rest when the disk has its events.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::batch::LogType;
use crate::ingest::auth::Identity;
use crate::protocols::Refusal;

/// How long memory, an fsync or a start may hold a request before it becomes a 503.
pub const HOLD: Duration = Duration::from_secs(5);
/// Each lane's part of a memory.
const SHARE: usize = 32;

/// Kinds of senders that can't take each other's share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Audit events.
    Audits,
    /// Deployment events of those who have a static token.
    Deployments,
    /// Deployment events of those who have an OIDC token: any deployment has one.
    Oidc,
    /// Events that tell their type themselves.
    Untold,
}

const LANES: usize = 4;

impl Lane {
    /// Of a request whose log type is `decided` by its credentials or its path.
    pub fn of(identity: Identity, decided: Option<LogType>) -> Lane {
        match (identity, decided) {
            (_, Some(LogType::Audits)) => Lane::Audits,
            (Identity::Oidc, _) => Lane::Oidc,
            (_, Some(LogType::Deployments)) => Lane::Deployments,
            (_, None) => Lane::Untold,
        }
    }
}

/// Memory that requests share.
pub struct Memory {
    /// By lane.
    shares: [Arc<Semaphore>; LANES],
    free: Arc<Semaphore>,
    turns: Arc<Semaphore>,
    turns_bytes: u32,
    waiting: AtomicUsize,
}

/// What a request has of a [`Memory`]; given back on drop.
#[derive(Default)]
pub struct Charge {
    /// Of the lane's share, and of what is free for all.
    small: [Option<OwnedSemaphorePermit>; 2],
    turn: Option<OwnedSemaphorePermit>,
}

impl Charge {
    /// Whether all is charged that the request may need.
    pub fn has_turn(&self) -> bool {
        self.turn.is_some()
    }

    /// Gives back what goes beyond `bytes`, the turn first.
    pub fn shrink_to(&mut self, bytes: usize) {
        let [share, free] = &mut self.small;
        let mut surplus = [&*share, &*free, &self.turn].into_iter().map(permits).sum::<usize>().saturating_sub(bytes);
        for permit in [&mut self.turn, free, share] {
            let part = surplus.min(permits(permit));
            surplus -= part;
            drop(permit.as_mut().and_then(|permit| permit.split(part)));
            permit.take_if(|permit| permit.num_permits() == 0);
        }
    }
}

fn permits(permit: &Option<OwnedSemaphorePermit>) -> usize {
    permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
}

impl Memory {
    /// For `bytes` in all, 4 GiB at most, of which one request may need `largest_bytes`. One that needs more than there
    /// is for turns gets all of that: any one is served alone.
    pub fn new(bytes: usize, largest_bytes: usize) -> Memory {
        let bytes = bytes.min(u32::MAX as usize);
        let common = bytes - LANES * (bytes / SHARE);
        let turns = (common / 2).max(largest_bytes).min(common);
        let semaphore = |bytes| Arc::new(Semaphore::new(bytes));
        Memory {
            shares: std::array::from_fn(|_| semaphore(bytes / SHARE)),
            free: semaphore(common - turns),
            turns: semaphore(turns),
            turns_bytes: u32::try_from(turns).unwrap_or(u32::MAX),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Charges `bytes` more. `may_need` is all that the request may still need of this memory, `bytes` included.
    pub async fn charge(&self, lane: Lane, held: &mut Charge, bytes: usize, may_need: usize) -> Result<(), Refusal> {
        if held.has_turn() {
            return Ok(());
        }
        let small = u32::try_from(bytes).unwrap_or(u32::MAX);
        for (place, part) in held.small.iter_mut().zip([&self.shares[lane as usize], &self.free]) {
            if let Ok(permit) = Arc::clone(part).try_acquire_many_owned(small) {
                match place {
                    Some(place) => place.merge(permit),
                    None => *place = Some(permit),
                }
                return Ok(());
            }
        }
        let all = u32::try_from(may_need).unwrap_or(u32::MAX).min(self.turns_bytes);
        held.turn = Some(match Arc::clone(&self.turns).try_acquire_many_owned(all) {
            Ok(permit) => permit,
            Err(_) => self.wait_for_turn(all).await?,
        });
        Ok(())
    }

    /// A turn for `may_need` bytes beside the one that the request has, without waiting.
    pub fn second_turn(&self, first: &Charge, may_need: usize) -> Result<Charge, Refusal> {
        let most = (self.turns_bytes as usize).saturating_sub(permits(&first.turn));
        let bytes = u32::try_from(may_need.min(most)).unwrap_or(u32::MAX);
        let turn = Arc::clone(&self.turns).try_acquire_many_owned(bytes).map_err(|_| in_use())?;
        Ok(Charge { turn: Some(turn), ..Charge::default() })
    }

    async fn wait_for_turn(&self, bytes: u32) -> Result<OwnedSemaphorePermit, Refusal> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // Also where the client is gone, and this is dropped.
        let _waits = Waits(&self.waiting);
        match tokio::time::timeout(HOLD, Arc::clone(&self.turns).acquire_many_owned(bytes)).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(in_use()),
        }
    }

    /// Whether a request waits for its turn.
    pub fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

fn in_use() -> Refusal {
    let reason = "the memory for requests is in use (ENV0_S3_LOG_MAX_INFLIGHT_BYTES)".to_owned();
    Refusal::Unavailable { reason, retry_after_seconds: 1 }
}

struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
