//! Turns at what costs processor time before anybody is known: by addresses, and those last that only ever cost.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

/// An address is suspect for so long after its last connection that began TLS and showed no valid credentials.
const SUSPECT_TIME: Duration = Duration::from_secs(60);
/// An address is trusted for so long after its last valid credentials.
const TRUST_TIME: Duration = Duration::from_secs(3600);
/// The most addresses in one table.
const SEEN_MAX: usize = 4096;
/// How often a full table is searched for addresses whose trust is over.
const SEARCH_INTERVAL: Duration = Duration::from_secs(1);

/// A step of a TLS handshake.
#[derive(Clone, Copy)]
pub(in crate::http) enum Step {
    /// The answer to the client's hello, with the server's signature.
    First,
    /// All that comes behind it: cheap, but for a client that says hello twice.
    Later,
}

/// The turn of one address; it ends on drop.
#[derive(Default)]
pub struct Turn {
    permits: Vec<OwnedSemaphorePermit>,
    place: Option<Place>,
}

impl Turn {
    /// Waits in one line more.
    pub(super) async fn wait_in(&mut self, line: &Arc<Semaphore>) {
        self.permits.extend(line.clone().acquire_owned().await);
    }

    /// Waits in the line of those that are not trusted.
    pub(super) async fn wait_for_place(&mut self, line: &Line, standing: Standing) {
        self.place = Some(line.place(standing).await);
    }
}

pub(super) fn one_at_a_time() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(1))
}

/// A line with one place at its head, which alternately the one that came last and the one that came first is given. So
/// where many came at once, who comes behind them does not wait for them all, and the last of them does not wait for ever.
/// Suspects are given it every third time, where others wait.
#[derive(Default)]
pub(super) struct Line(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    is_taken: bool,
    /// How often the place was given to one who waited.
    given: usize,
    others: VecDeque<oneshot::Sender<Place>>,
    suspects: VecDeque<oneshot::Sender<Place>>,
}

/// The place at the head of a [`Line`]; on drop it is the next one's.
struct Place(Arc<Mutex<Waiting>>);

impl Line {
    async fn place(&self, standing: Standing) -> Place {
        loop {
            let (gives, place) = oneshot::channel();
            {
                let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                if !std::mem::replace(&mut waiting.is_taken, true) {
                    return Place(self.0.clone());
                }
                let Waiting { others, suspects, .. } = &mut *waiting;
                let line = if standing == Standing::Suspect { suspects } else { others };
                // Before it grows, those go that wait no more.
                if line.len() == line.capacity() {
                    line.retain(|gives| !gives.is_closed());
                }
                line.push_back(gives);
            }
            if let Ok(place) = place.await {
                return place;
            }
        }
    }
}

impl Waiting {
    /// Who is next, of those that still wait.
    fn next(&mut self) -> Option<oneshot::Sender<Place>> {
        self.given = self.given.wrapping_add(1);
        let (the_last, of_suspects) = (self.given.is_multiple_of(2), self.given.is_multiple_of(3));
        let mut lines = [&mut self.others, &mut self.suspects];
        if of_suspects {
            lines.reverse();
        }
        lines.into_iter().find_map(|line| {
            let mut all = std::iter::from_fn(|| if the_last { line.pop_back() } else { line.pop_front() });
            all.find(|gives| !gives.is_closed())
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let next = {
            let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let next = waiting.next();
            waiting.is_taken = next.is_some();
            next
        };
        // One that has just given up waiting drops it, which gives it to the next.
        next.map(|gives| gives.send(Place(self.0.clone())));
    }
}

/// What is known of an address: whose handshakes go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum Standing {
    /// It has shown valid credentials lately.
    Trusted,
    Unknown,
    /// It has begun TLS lately, and shown none.
    Suspect,
}

/// Whose credentials they are. Each has a table of addresses of its own, so whoever comes from thousands of them with common
/// credentials doesn't have those forgotten that have shown rare ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Many hold them, as every deployment does.
    Common,
    /// Few hold them.
    Rare,
}

/// The standing of addresses: when each was last seen so.
#[derive(Default)]
pub(super) struct Standings {
    /// By [`Trust`].
    trusted: [HashMap<IpAddr, Instant>; 2],
    /// When each was last searched.
    searched: [Option<Instant>; 2],
    suspects: HashMap<IpAddr, Instant>,
}

impl Standings {
    /// A connection from `address` has ended, and nobody showed valid credentials on it. Where others did lately, that is
    /// what counts: a load balancer may look whether the port answers.
    pub(super) fn suspect(&mut self, address: IpAddr) {
        if self.of(address) != Standing::Trusted {
            // All are forgotten at once, so that most ends of connections cost nothing.
            if self.suspects.len() >= SEEN_MAX {
                self.suspects.clear();
            }
            self.suspects.insert(address, Instant::now());
        }
    }

    /// Somebody at `address` has shown valid credentials of `trust`. A full table takes nobody new before the time of another
    /// is over, so whoever comes from thousands of addresses doesn't have those forgotten that came before.
    pub(super) fn trust(&mut self, address: IpAddr, trust: Trust) {
        let (seen, searched) = (&mut self.trusted[trust as usize], &mut self.searched[trust as usize]);
        if seen.len() >= SEEN_MAX && searched.is_none_or(|at| at.elapsed() >= SEARCH_INTERVAL) {
            seen.retain(|_, at| at.elapsed() < TRUST_TIME);
            *searched = Some(Instant::now());
        }
        if seen.len() < SEEN_MAX || seen.contains_key(&address) {
            seen.insert(address, Instant::now());
        }
    }

    /// The rarest credentials that somebody at `address` has shown lately.
    pub(super) fn trust_of(&self, address: IpAddr) -> Option<Trust> {
        [Trust::Rare, Trust::Common]
            .into_iter()
            .find(|trust| within(&self.trusted[*trust as usize], address, TRUST_TIME))
    }

    pub(super) fn of(&self, address: IpAddr) -> Standing {
        if self.trust_of(address).is_some() {
            Standing::Trusted
        } else if within(&self.suspects, address, SUSPECT_TIME) {
            Standing::Suspect
        } else {
            Standing::Unknown
        }
    }
}

fn within(seen: &HashMap<IpAddr, Instant>, address: IpAddr, time: Duration) -> bool {
    seen.get(&address).is_some_and(|at| at.elapsed() < time)
}
