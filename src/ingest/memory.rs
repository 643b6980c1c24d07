//! The memory that requests share, and why they can't block each other:
//!
//! 1. Bodies and the lines that are built of them have a memory each. A request takes of the first, then of the second,
//!    then waits for the disk; never the other way.
//! 2. Every kind of sender has a share ([`Share`]) that no other can take; that of audit events has room for the
//!    largest one. A small part is free for all. The rest is for turns.
//! 3. Memory is charged before it is allocated: of the sender's share, else of what is free for all.
//! 4. Where neither has room, a request takes a turn: all that it may still need, at once, in the order in which
//!    requests came to ask. Until then its body stays unread.
//! 5. A request that waits for a turn has none of the memory for turns, and one that has a turn waits for no more of
//!    it. So every turn ends, and the next one begins.
//! 6. Audit events get the next turn, whichever other requests wait.
//! 7. While others wait, a body with a turn must arrive faster, and faster still while
//!    audit events wait (`receive.rs`).
//! 8. A request waits for at most [`HOLD`] in all; then it is a 503. So, at once, is one for which too many others
//!    wait: a connection stays open for each of them, even where the client is gone.
//! 9. What a request turns out not to need is given back at once, the rest when the disk has its events.
//! 10. A request that may need more than there is for turns takes all turns, so it is the only one at a time. In all,
//!     requests take at most the memory, and what the largest request needs beyond the memory for turns.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::batch::LogType;
use crate::ingest::auth::Identity;
use crate::protocols::Refusal;

/// How long memory and an fsync together, or a start, may hold a request before it becomes a 503.
pub const HOLD: Duration = Duration::from_secs(5);
/// Each share but that of audit events is so much: the memory divided by this.
const SHARE_DIVISOR: usize = 32;
/// The share of audit events is at most the memory divided by this.
const AUDITS_SHARE_DIVISOR: usize = 4;

/// The kinds of senders, none of which can take another's share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// Audit events.
    Audits,
    /// Deployment events of those who have a static token.
    Deployments,
    /// Deployment events of those who have an OIDC token: any deployment has one.
    Oidc,
    /// Events that tell their type themselves.
    Untold,
}

const SHARES: usize = 4;

impl Share {
    /// The share of a request. `decided` is the log type that its credentials or its path give.
    pub fn of(identity: Identity, decided: Option<LogType>) -> Share {
        match (identity, decided) {
            (_, Some(LogType::Audits)) => Share::Audits,
            (Identity::Oidc, _) => Share::Oidc,
            (_, Some(LogType::Deployments)) => Share::Deployments,
            (_, None) => Share::Untold,
        }
    }
}

/// Memory that requests share.
pub struct Memory {
    /// By [`Share`].
    shares: [Arc<Semaphore>; SHARES],
    free: Arc<Semaphore>,
    turns: Arc<Semaphore>,
    turns_bytes: u32,
    /// What a request may take that has all of the turns.
    largest_bytes: usize,
    /// Lets one request without audit events at a time into the line for a turn. When audit events come,
    /// it lines up again behind them.
    others: Semaphore,
    audit_came: Notify,
    waiting: AtomicUsize,
    audits_waiting: AtomicUsize,
    max_waiting: usize,
}

/// What a request has of a [`Memory`]; given back on drop.
#[derive(Default)]
pub struct Charge {
    /// What it has of its sender's share, and of the part that is free for all.
    small: [Option<OwnedSemaphorePermit>; 2],
    turn: Option<OwnedSemaphorePermit>,
    /// For how long its request has waited by now.
    pub waited: Duration,
}

impl Charge {
    /// Nothing yet, for a request that has already waited for so long, for another memory perhaps.
    pub fn after(waited: Duration) -> Charge {
        Charge { waited, ..Charge::default() }
    }

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
            if part == permits(permit) {
                *permit = None;
            } else {
                drop(permit.as_mut().and_then(|permit| permit.split(part)));
            }
        }
    }
}

fn permits(permit: &Option<OwnedSemaphorePermit>) -> usize {
    permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
}

impl Memory {
    /// For `bytes` in all, 4 GiB at most, of which one request may need `largest_bytes`. The largest audit event needs
    /// `audit_bytes`. At most `max_waiting` requests wait for a turn, and as many of audit events.
    pub fn new(bytes: usize, largest_bytes: usize, audit_bytes: usize, max_waiting: usize) -> Memory {
        let bytes = bytes.min(u32::MAX as usize);
        let mut shares = [bytes / SHARE_DIVISOR; SHARES];
        shares[Share::Audits as usize] = audit_bytes.clamp(bytes / SHARE_DIVISOR, bytes / AUDITS_SHARE_DIVISOR);
        let common = bytes - shares.iter().sum::<usize>();
        let turns = (common / 2).max(largest_bytes).min(common);
        let semaphore = |bytes| Arc::new(Semaphore::new(bytes));
        Memory {
            shares: shares.map(semaphore),
            free: semaphore(common - turns),
            turns: semaphore(turns),
            turns_bytes: u32::try_from(turns).unwrap_or(u32::MAX),
            largest_bytes: largest_bytes.max(turns),
            others: Semaphore::new(1),
            audit_came: Notify::new(),
            waiting: AtomicUsize::new(0),
            audits_waiting: AtomicUsize::new(0),
            max_waiting,
        }
    }

    /// Charges `bytes` more. `may_need` is all that the request may still need of this memory, `bytes` included.
    pub async fn charge(&self, share: Share, held: &mut Charge, bytes: usize, may_need: usize) -> Result<(), Refusal> {
        if held.has_turn() {
            return Ok(());
        }
        let small = u32::try_from(bytes).unwrap_or(u32::MAX);
        for (place, part) in held.small.iter_mut().zip([&self.shares[share as usize], &self.free]) {
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
            // Few wait, and every request's future would be larger.
            Err(_) => Box::pin(self.wait_for_turn(share, all, &mut held.waited)).await?,
        });
        Ok(())
    }

    /// A turn beside the one in which the request has `has` bytes, without waiting: for `may_need` bytes, or for as
    /// many as one request may have in all. How many it is for.
    pub fn second_turn(&self, first: &Charge, has: usize, may_need: usize) -> Result<(Charge, usize), Refusal> {
        let may_have = may_need.min(self.largest_bytes.saturating_sub(has));
        let bytes = may_have.min((self.turns_bytes as usize).saturating_sub(permits(&first.turn)));
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let turn = Arc::clone(&self.turns).try_acquire_many_owned(bytes).map_err(|_| in_use())?;
        Ok((Charge { turn: Some(turn), ..Charge::after(first.waited) }, may_have))
    }

    async fn wait_for_turn(
        &self,
        share: Share,
        bytes: u32,
        waited: &mut Duration,
    ) -> Result<OwnedSemaphorePermit, Refusal> {
        let waiting = if share == Share::Audits { &self.audits_waiting } else { &self.waiting };
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        // Also where the connection is closed, and this is dropped.
        let _waits = Waits(waiting);
        if before >= self.max_waiting {
            return Err(in_use());
        }
        let since = Instant::now();
        let turn = tokio::time::timeout(HOLD.saturating_sub(*waited), self.turn(share, bytes)).await;
        *waited += since.elapsed();
        turn.ok().flatten().ok_or_else(in_use)
    }

    /// `None` never comes: no semaphore is closed.
    async fn turn(&self, share: Share, bytes: u32) -> Option<OwnedSemaphorePermit> {
        let in_line = || Arc::clone(&self.turns).acquire_many_owned(bytes);
        if share == Share::Audits {
            let mut turn = pin!(in_line());
            if let Some(turn) = turn.as_mut().now_or_never() {
                return turn.ok();
            }
            // It is in the line by now.
            self.audit_came.notify_waiters();
            return turn.await.ok();
        }
        let _first = self.others.acquire().await.ok()?;
        loop {
            let audit_came = self.audit_came.notified();
            tokio::select! {
                biased;
                turn = in_line() => return turn.ok(),
                // To the end of the line.
                () = audit_came => {}
            }
        }
    }

    /// Whether a request waits for its turn.
    pub fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0 || self.audits_are_waiting()
    }

    /// Whether audit events wait for their turn.
    pub fn audits_are_waiting(&self) -> bool {
        self.audits_waiting.load(Ordering::Relaxed) > 0
    }
}

/// Why a request is refused that got no memory.
pub fn in_use() -> Refusal {
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
    use super::*;

    /// A memory of 3200 bytes: 100 for each share, 400 free for all, 2400 for turns.
    fn memory(max_waiting: usize) -> Memory {
        Memory::new(3200, 2400, 0, max_waiting)
    }

    /// A charge that is there at once.
    fn at_once(memory: &Memory, share: Share, bytes: usize, may_need: usize) -> Option<Charge> {
        let mut charge = Charge::default();
        memory.charge(share, &mut charge, bytes, may_need).now_or_never()?.ok()?;
        Some(charge)
    }

    #[tokio::test]
    async fn a_lane_has_its_share_whatever_the_others_take() {
        let memory = memory(8);
        let all: Vec<_> = [(100, 100), (400, 400), (1, 2400)]
            .map(|(bytes, may_need)| at_once(&memory, Share::Oidc, bytes, may_need).unwrap())
            .into();
        assert!(at_once(&memory, Share::Oidc, 1, 1).is_none());
        for share in [Share::Audits, Share::Deployments, Share::Untold] {
            assert!(at_once(&memory, share, 100, 100).is_some(), "{share:?}");
            assert!(at_once(&memory, share, 101, 101).is_none(), "{share:?}");
        }
        drop(all);
        assert!(at_once(&memory, Share::Oidc, 2400, 2400).is_some());
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
                        memory.charge(Share::Oidc, &mut charge, 100, left * 100).await?;
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    Ok::<_, Refusal>(())
                })
            })
            .collect();
        for sender in senders {
            assert_eq!(sender.await.unwrap(), Ok(()));
        }
        assert!(at_once(&memory, Share::Oidc, 2400, 2400).is_some(), "all of it was given back");
        assert!(!memory.is_awaited());
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_does_not_come_is_refused_after_5_s_and_at_once_where_too_many_wait() {
        let memory = memory(1);
        let _all = at_once(&memory, Share::Oidc, 2400, 2400).unwrap();
        let since = Instant::now();
        let (mut first, mut second) = (Charge::default(), Charge::default());
        let mut waits = std::pin::pin!(memory.charge(Share::Oidc, &mut first, 1000, 1000));
        assert!(waits.as_mut().now_or_never().is_none());
        assert!(memory.is_awaited());
        assert!(memory.charge(Share::Oidc, &mut second, 1000, 1000).await.is_err());
        assert_eq!(since.elapsed(), Duration::ZERO);
        assert!(waits.await.is_err());
        assert_eq!(since.elapsed(), HOLD);
    }

    #[tokio::test]
    async fn the_largest_audit_event_fits_the_share_of_audit_events() {
        let memory = Memory::new(3200, 2400, 700, 8);
        let _all = [(100, 100), (1, 2400)].map(|(bytes, may_need)| at_once(&memory, Share::Oidc, bytes, may_need));
        assert!(at_once(&memory, Share::Audits, 700, 700).is_some());
        assert!(at_once(&memory, Share::Audits, 701, 701).is_none());
        assert!(at_once(&Memory::new(3200, 2400, 5000, 8), Share::Oidc, 2100, 2100).is_some(), "a quarter at most");
    }

    #[tokio::test(start_paused = true)]
    async fn audit_events_get_the_next_turn_whoever_waits() {
        let memory = Arc::new(memory(64));
        let held = at_once(&memory, Share::Oidc, 2400, 2400).unwrap();
        let order = Arc::new(std::sync::Mutex::new(Vec::new()));
        let mut senders = Vec::new();
        for share in [Share::Oidc, Share::Deployments, Share::Audits, Share::Untold, Share::Audits] {
            let (memory, order) = (memory.clone(), order.clone());
            senders.push(tokio::spawn(async move {
                let mut charge = Charge::default();
                memory.charge(share, &mut charge, 1000, 2400).await.unwrap();
                order.lock().unwrap().push(share);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(memory.audits_are_waiting());
        drop(held);
        for sender in senders {
            sender.await.unwrap();
        }
        use Share::*;
        assert_eq!(*order.lock().unwrap(), [Audits, Audits, Oidc, Deployments, Untold]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_5_s_in_all() {
        let memory = memory(8);
        let _all = at_once(&memory, Share::Oidc, 2400, 2400).unwrap();
        let since = Instant::now();
        let mut charge = Charge::after(Duration::from_secs(3));
        assert!(memory.charge(Share::Audits, &mut charge, 1000, 1000).await.is_err());
        assert_eq!(since.elapsed(), HOLD - Duration::from_secs(3));
    }

    #[tokio::test]
    async fn a_second_turn_does_not_begin_the_wait_anew() {
        let memory = memory(8);
        let mut first = Charge::after(Duration::from_secs(3));
        memory.charge(Share::Audits, &mut first, 1000, 1000).await.unwrap();
        assert!(first.has_turn());
        assert_eq!(memory.second_turn(&first, 1000, 1000).unwrap().0.waited, Duration::from_secs(3));
    }

    #[tokio::test]
    async fn a_request_that_may_need_more_than_there_is_for_turns_has_all_of_them() {
        // Turns have 2800 of it.
        let memory = Memory::new(3200, 5000, 0, 8);
        let mut first = at_once(&memory, Share::Oidc, 5000, 5000).unwrap();
        assert!(at_once(&memory, Share::Untold, 101, 101).is_none(), "it is alone");
        first.shrink_to(2000);
        let (second, bytes) = memory.second_turn(&first, 2000, 4000).unwrap();
        assert_eq!(bytes, 3000, "in all, one request has as much as the largest may need");
        assert!(at_once(&memory, Share::Untold, 101, 101).is_none(), "it is alone again");
        drop(second);
        assert_eq!(memory.second_turn(&first, 2000, 500).unwrap().1, 500);
    }

    #[tokio::test]
    async fn what_is_not_needed_is_given_back_the_turn_first() {
        let memory = memory(8);
        let mut charge = at_once(&memory, Share::Audits, 50, 1000).unwrap();
        memory.charge(Share::Audits, &mut charge, 900, 900).now_or_never().unwrap().unwrap();
        assert!(charge.has_turn());
        charge.shrink_to(60);
        assert!(charge.has_turn(), "10 bytes of it");
        charge.shrink_to(50);
        assert!(!charge.has_turn());
        assert!(at_once(&memory, Share::Oidc, 2400, 2400).is_some());
    }
}
