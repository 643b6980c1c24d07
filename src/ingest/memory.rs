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
//! 7. A turn that doesn't come within [`HOLD`] is a 503; so, at once, is one for which too many others wait: a
//!    connection stays open for each of them, even where the client is gone.
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
    max_waiting: usize,
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
    /// is for turns gets all of that: any one is served alone. At most `max_waiting` requests wait for a turn.
    pub fn new(bytes: usize, largest_bytes: usize, max_waiting: usize) -> Memory {
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
            max_waiting,
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
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
        // Also where the connection is closed, and this is dropped.
        let _waits = Waits(&self.waiting);
        if waiting >= self.max_waiting {
            return Err(in_use());
        }
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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Of 3200 bytes: 100 for each lane, 400 free for all, 2400 for turns.
    fn memory(max_waiting: usize) -> Memory {
        Memory::new(3200, 2400, max_waiting)
    }

    /// A charge that is there at once.
    fn at_once(memory: &Memory, lane: Lane, bytes: usize, may_need: usize) -> Option<Charge> {
        let mut charge = Charge::default();
        memory.charge(lane, &mut charge, bytes, may_need).now_or_never()?.ok()?;
        Some(charge)
    }

    #[tokio::test]
    async fn a_lane_has_its_share_whatever_the_others_take() {
        let memory = memory(8);
        let all: Vec<_> = [(100, 100), (400, 400), (1, 2400)]
            .map(|(bytes, may_need)| at_once(&memory, Lane::Oidc, bytes, may_need).unwrap())
            .into();
        assert!(at_once(&memory, Lane::Oidc, 1, 1).is_none());
        for lane in [Lane::Audits, Lane::Deployments, Lane::Untold] {
            assert!(at_once(&memory, lane, 100, 100).is_some(), "{lane:?}");
            assert!(at_once(&memory, lane, 101, 101).is_none(), "{lane:?}");
        }
        drop(all);
        assert!(at_once(&memory, Lane::Oidc, 2400, 2400).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn however_many_need_more_each_gets_its_turn_and_all_end() {
        let memory = Arc::new(memory(64));
        let senders: Vec<_> = (0..64)
            .map(|_| {
                let memory = memory.clone();
                tokio::spawn(async move {
                    let mut charge = Charge::default();
                    for left in (1..=10).rev() {
                        memory.charge(Lane::Oidc, &mut charge, 100, left * 100).await?;
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    Ok::<_, Refusal>(())
                })
            })
            .collect();
        for sender in senders {
            assert_eq!(sender.await.unwrap(), Ok(()));
        }
        assert!(at_once(&memory, Lane::Oidc, 2400, 2400).is_some(), "all of it was given back");
        assert!(!memory.is_awaited());
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_does_not_come_is_refused_after_5_s_and_at_once_where_too_many_wait() {
        let memory = memory(1);
        let _all = at_once(&memory, Lane::Oidc, 2400, 2400).unwrap();
        let since = tokio::time::Instant::now();
        let (mut first, mut second) = (Charge::default(), Charge::default());
        let mut waits = std::pin::pin!(memory.charge(Lane::Oidc, &mut first, 1000, 1000));
        assert!(waits.as_mut().now_or_never().is_none());
        assert!(memory.is_awaited());
        assert!(memory.charge(Lane::Oidc, &mut second, 1000, 1000).await.is_err());
        assert_eq!(since.elapsed(), Duration::ZERO);
        assert!(waits.await.is_err());
        assert_eq!(since.elapsed(), HOLD);
    }

    #[tokio::test]
    async fn what_is_not_needed_is_given_back_the_turn_first() {
        let memory = memory(8);
        let mut charge = at_once(&memory, Lane::Audits, 50, 1000).unwrap();
        memory.charge(Lane::Audits, &mut charge, 900, 900).now_or_never().unwrap().unwrap();
        assert!(charge.has_turn());
        charge.shrink_to(60);
        assert!(charge.has_turn(), "10 bytes of it");
        charge.shrink_to(50);
        assert!(!charge.has_turn());
        assert!(at_once(&memory, Lane::Oidc, 2400, 2400).is_some());
    }
}
