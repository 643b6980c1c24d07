//! The open connections of a listener: who may stay when there is no more room, and for what memory.
//!
//! At the limit, the connection that is missed least is closed for a new one: first a stranger's, from the address that
//! has the most of them; then an idle one, from the address that has the most connections; then the one whose body
//! comes slowest. A TLS handshake that has begun in earnest is spared while few have. A request whose body has arrived
//! is never cut off; where such requests take most of the room, their connections end with their answers.

mod connection;
mod memory;
mod turns;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use axum::http::{HeaderMap, Uri};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::refusals::{Refusals, Refused};
pub(super) use connection::Connection;
use connection::{AT_WORK, FRESH, NO_BODY, Source};
use memory::{CROWD_PART, Kept, KeptOfSource, Memory, Party};
pub(super) use memory::{Layer, READ_MOST_BYTES, head_bytes};
pub use turns::Trust;
use turns::{Line, Standings, one_at_a_time};
pub(super) use turns::{Standing, Step, Turn};

/// Handshakes of TLS that have begun in earnest are spared while they are at most this part of all connections.
const GREETED_PART: usize = 4;
/// Connections that are closed and not gone yet: their tasks still have their descriptors. Beyond it, nobody new comes in.
const CLOSING_MAX: usize = 32;

/// All connections of a listener.
pub(super) struct Registry {
    /// At once.
    max: usize,
    open: Mutex<Open>,
    /// Counts up. A connection takes the next number when it has no request any more, so the one with the lowest number has
    /// been without a request for the longest time.
    moments: AtomicU64,
    left: Notify,
    /// Connections end with the answer that is under way.
    pub(super) is_closing: AtomicBool,
    /// What its connections keep.
    pub(super) memory: Memory,
    /// Strangers whose ClientHello has come.
    greeted: AtomicUsize,
    /// Signatures of tokens are checked one at a time, so strangers never keep more than one thread from its other work.
    signatures: Arc<Semaphore>,
    /// TLS handshakes are computed one at a time, so strangers' leave a processor for requests. They wait in a line for each
    /// [`Step`]; the first of both lines take turns.
    handshakes: Arc<Semaphore>,
    handshake_lines: [Arc<Semaphore>; 2],
    /// Before each of them, one at a time: of all addresses that are not trusted.
    untrusted_handshakes: [Line; 2],
    /// What was refused below the requests.
    pub(super) refusals: Refusals,
}

#[derive(Default)]
struct Open {
    last_id: u64,
    connections: HashMap<u64, Arc<Connection>>,
    /// How many of the connections are closed and not gone yet.
    closing: usize,
    sources: HashMap<IpAddr, Arc<Source>>,
    standings: Standings,
}

/// Who is closed first: the least of these.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Missed {
    /// A stranger that had its time, or one of a crowd: of the largest crowd, the one longest without a request.
    Stranger(Reverse<usize>, u64),
    /// The one longest without a request, at the address with the most connections.
    Idle(Reverse<usize>, u64),
    /// So many bytes a second of a body.
    Slow(u64),
    /// At the address with the most strangers, the last one that came; where each address has one, the first that came. So
    /// the first connections of a sender that opens several get their time.
    FreshStranger(Reverse<usize>, u64),
    /// As `FreshStranger`, in the middle of a TLS handshake.
    Greeted(Reverse<usize>, u64),
    /// As `FreshStranger`, from an address that has shown valid credentials lately.
    Known(Reverse<usize>, u64),
    /// As `Known`, of credentials that few hold.
    KnownAsRare(Reverse<usize>, u64),
}

impl Registry {
    /// For at most `max` connections.
    pub(super) fn new(max: usize, refusals: Refusals) -> Arc<Registry> {
        Arc::new(Registry {
            max,
            open: Mutex::default(),
            moments: AtomicU64::new(0),
            left: Notify::new(),
            is_closing: AtomicBool::new(false),
            memory: Memory::new(),
            greeted: AtomicUsize::new(0),
            signatures: one_at_a_time(),
            handshakes: one_at_a_time(),
            handshake_lines: [one_at_a_time(), one_at_a_time()],
            untrusted_handshakes: Default::default(),
            refusals,
        })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is room for one more, and makes it.
    pub(super) async fn make_room(&self) {
        let mut waits_for_answers = true;
        loop {
            // Before the look, so that nobody who leaves after it is missed.
            let left = self.left.notified();
            let (staying, closing) = {
                let open = self.open();
                (open.connections.len() - open.closing, open.closing)
            };
            if staying < self.max && closing < CLOSING_MAX {
                return;
            }
            // None can be closed where all are at work on a request whose body has come, or has only begun to come:
            // one of them ends, or has had its time.
            if staying < self.max || (waits_for_answers && self.some_end_with_their_answers()) || !self.close_one() {
                waits_for_answers = tokio::time::timeout(FRESH / 4, left).await.is_ok();
            }
        }
    }

    /// Has some connections end with their answers, where requests whose body has come take more than half of the room and
    /// no stranger has had its time: those of the address with the most connections, and those of rare credentials last.
    /// Else a sender that never pauses would have each new connection closed for the next one.
    fn some_end_with_their_answers(&self) -> bool {
        let (now, open) = (Instant::now(), self.open());
        let staying = || open.connections.values().filter(|connection| !connection.closing.load(Ordering::Relaxed));
        let mut at_work: Vec<_> = staying().filter(|connection| connection.has_come()).collect();
        let goes_first = |connection| matches!(self.missed(connection, now), Some(Missed::Stranger(..)));
        if at_work.len() <= self.max / 2 || staying().any(|connection| goes_first(connection)) {
            return false;
        }
        at_work.sort_unstable_by_key(|connection| {
            let is_rare = connection.shown[Trust::Rare as usize].load(Ordering::Relaxed);
            (is_rare, Reverse(connection.source.connections.load(Ordering::Relaxed)))
        });
        for connection in at_work.into_iter().take(CLOSING_MAX) {
            connection.makes_room.store(true, Ordering::Relaxed);
        }
        true
    }

    /// Adds a connection.
    pub(super) fn enter(self: &Arc<Self>, client: IpAddr) -> Member {
        let mut open = self.open();
        let new = || {
            Arc::new(Source {
                connections: AtomicUsize::new(0),
                strangers: AtomicUsize::new(0),
                kept: KeptOfSource::default(),
                signatures: one_at_a_time(),
                handshakes: [one_at_a_time(), one_at_a_time()],
            })
        };
        let source = open.sources.entry(network_of(client)).or_insert_with(new).clone();
        source.connections.fetch_add(1, Ordering::Relaxed);
        source.strangers.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(Connection {
            client,
            source,
            trust: open.standings.trust_of(network_of(client)),
            since: Instant::now(),
            without_request_since: AtomicU64::new(self.moment()),
            kept: Kept::default(),
            greeted: OnceLock::new(),
            shown: Default::default(),
            body_since: AtomicU64::new(NO_BODY),
            body_bytes: AtomicU64::new(0),
            refused: OnceLock::new(),
            makes_room: AtomicBool::new(false),
            turned_away: AtomicBool::new(false),
            task: OnceLock::new(),
            closing: AtomicBool::new(false),
        });
        open.last_id += 1;
        let id = open.last_id;
        open.connections.insert(id, connection.clone());
        self.memory.share_reads(open.connections.len());
        Member { registry: self.clone(), id, connection }
    }

    /// A stranger that is not closed yet is let in, closed or gone; the lock is held.
    fn one_stranger_less(&self, connection: &Connection) {
        connection.source.strangers.fetch_sub(1, Ordering::Relaxed);
        if connection.greeted.get().is_some() {
            self.greeted.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn moment(&self) -> u64 {
        self.moments.fetch_add(1, Ordering::Relaxed)
    }

    /// Closes the connection that is missed least; false when all are at work on a request whose body has come.
    pub(super) fn close_one(&self) -> bool {
        let now = Instant::now();
        self.close_least(|connection| self.missed(connection, now))
    }

    /// How much a connection is missed; `None` where it is never closed.
    fn missed(&self, connection: &Connection, now: Instant) -> Option<Missed> {
        let moment = connection.without_request_since.load(Ordering::Relaxed);
        let source = &connection.source;
        if moment == AT_WORK {
            return connection.body_rate(now).map(Missed::Slow);
        }
        if !connection.is_stranger() {
            return Some(Missed::Idle(Reverse(source.connections.load(Ordering::Relaxed)), moment));
        }
        let strangers = source.strangers.load(Ordering::Relaxed);
        let greeted = connection.greeted.get();
        let had_its_time = now.duration_since(*greeted.unwrap_or(&connection.since)) >= FRESH;
        if had_its_time || strangers > self.max / CROWD_PART {
            return Some(Missed::Stranger(Reverse(strangers), moment));
        }
        let few_greeted = self.greeted.load(Ordering::Relaxed) <= self.max / GREETED_PART;
        let missed = match greeted.is_some() && few_greeted {
            _ if connection.trust == Some(Trust::Rare) => Missed::KnownAsRare,
            _ if connection.trust == Some(Trust::Common) => Missed::Known,
            true => Missed::Greeted,
            false => Missed::FreshStranger,
        };
        Some(missed(Reverse(strangers), if strangers > 1 { u64::MAX - moment } else { moment }))
    }

    /// Closes the connection for which `missed` is least, of those for which it is something.
    fn close_least<M: Ord>(&self, missed: impl Fn(&Connection) -> Option<M>) -> bool {
        let mut open = self.open();
        let stays = |connection: &&Arc<Connection>| !connection.closing.load(Ordering::Relaxed);
        let candidates = open.connections.values().filter(stays);
        let candidates = candidates.filter_map(|connection| Some((missed(connection)?, connection)));
        let least = candidates.min_by(|(one, _), (other, _)| one.cmp(other));
        let Some(connection) = least.map(|(_, connection)| connection.clone()) else { return false };
        connection.closing.store(true, Ordering::SeqCst);
        open.closing += 1;
        // Its address has one less at once: or of the first burst all would go that a sender has.
        if connection.is_stranger() {
            self.one_stranger_less(&connection);
        }
        drop(open);
        self.refusals.count(Refused::Limit, connection.client, &"");
        connection.close();
        self.keeps_no_heads(&connection);
        true
    }

    /// What `connection` keeps in `layer` has grown or ended: it is `bytes` now. Where that is too much for all of its party,
    /// strangers or senders, the one of them is closed that has kept something for the longest time, one of a crowd first;
    /// but none with a request that was let in and whose body has come.
    pub(super) fn keep(&self, connection: &Connection, layer: Layer, bytes: usize) {
        let of_source = &connection.source.kept;
        let too_much = self.memory.keep(&connection.kept, of_source, layer, bytes, || self.moment());
        self.close_oldest(too_much);
    }

    /// Closes the oldest of a party that keeps too much.
    fn close_oldest(&self, too_much: Option<Party>) {
        if let Some(party) = too_much {
            self.close_least(|connection| {
                connection.kept.age(party, &connection.source.kept).filter(|_| !connection.has_come())
            });
        }
    }

    fn keeps_no_heads(&self, connection: &Connection) {
        for layer in Layer::ALL {
            self.keep(connection, layer, 0);
        }
    }
}

/// What counts as one address: all of a customer's addresses of IPv6, as a rule.
pub(super) fn network_of(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

/// A connection's place in the registry, given back on drop.
pub(super) struct Member {
    /// The registry of the connection's listener.
    pub(super) registry: Arc<Registry>,
    id: u64,
    /// The connection.
    pub(super) connection: Arc<Connection>,
}

impl Member {
    /// Its ClientHello is whole. What is known of its address.
    pub(super) fn has_greeted(&self) -> Standing {
        // Not while it is closed for another one, which ends its part of the count.
        let open = self.registry.open();
        let counts = self.connection.is_stranger() && !self.connection.closing.load(Ordering::Relaxed);
        if counts && self.connection.greeted.set(Instant::now()).is_ok() {
            self.registry.greeted.fetch_add(1, Ordering::Relaxed);
        }
        open.standings.of(network_of(self.connection.client))
    }

    /// Waits until it is the turn of this connection's address to have this step of its TLS handshake computed: behind all
    /// addresses that have a better `standing`, but for the one of each standing that is first.
    pub(super) async fn handshake_turn(&self, step: Step, standing: Standing) -> Turn {
        let Registry { handshake_lines, untrusted_handshakes, handshakes, .. } = &*self.registry;
        let mut turn = Turn::default();
        // First in the line of its address: so an address waits for one of each other address, however many that one has.
        turn.wait_in(&self.connection.source.handshakes[step as usize]).await;
        if standing != Standing::Trusted {
            turn.wait_for_place(&untrusted_handshakes[step as usize], standing).await;
        }
        turn.wait_in(&handshake_lines[step as usize]).await;
        turn.wait_in(handshakes).await;
        turn
    }

    /// It has no request that is let in, so it may be closed for others, after all that have been without one for longer.
    pub(super) fn may_close(&self) {
        self.connection.without_request_since.store(self.registry.moment(), Ordering::Relaxed);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let connection = &self.connection;
        self.registry.keeps_no_heads(connection);
        self.registry.memory.leave(&connection.kept);
        let mut open = self.registry.open();
        let is_closing = connection.closing.load(Ordering::Relaxed);
        if connection.is_stranger() && !is_closing {
            self.registry.one_stranger_less(connection);
            if connection.greeted.get().is_some() && !connection.has_shown_any() {
                open.standings.suspect(network_of(connection.client));
            }
        }
        if connection.source.connections.fetch_sub(1, Ordering::Relaxed) == 1 {
            open.sources.remove(&network_of(connection.client));
        }
        open.connections.remove(&self.id);
        open.closing -= usize::from(is_closing);
        self.registry.memory.share_reads(open.connections.len());
        drop(open);
        self.registry.left.notify_waiters();
    }
}

/// The connection of a request. At the limit of connections it may be closed, until the request is let in.
#[derive(Clone)]
pub struct Guest {
    pub(super) registry: Arc<Registry>,
    pub(super) connection: Arc<Connection>,
}

impl Guest {
    /// Where it comes from: what counts as one address.
    pub fn network(&self) -> IpAddr {
        network_of(self.connection.client)
    }

    /// The request, with credentials of `trust`, is one to be served: its connection stays until it is answered, unless its
    /// body comes slowest of all.
    pub fn let_in(&self, trust: Trust) {
        let connection = &self.connection;
        connection.without_request_since.store(AT_WORK, Ordering::Relaxed);
        if connection.is_stranger() {
            let open = self.registry.open();
            if connection.closing.load(Ordering::Relaxed) {
                return;
            }
            self.registry.one_stranger_less(connection);
            let too_much = self.registry.memory.is_senders(&connection.kept, &connection.source.kept);
            drop(open);
            self.registry.close_oldest(too_much);
        }
        self.has_shown(trust);
    }

    /// Valid credentials of `trust` have come on it: its address is no suspect.
    pub fn has_shown(&self, trust: Trust) {
        let shown = &self.connection.shown[trust as usize];
        if !shown.load(Ordering::Relaxed) && !shown.swap(true, Ordering::Relaxed) {
            self.registry.open().standings.trust(network_of(self.connection.client), trust);
        }
    }

    /// Its body comes slowly, and no more than this is left of its head.
    pub fn waits_with(&self, uri: &Uri, headers: &HeaderMap) {
        self.registry.keep(&self.connection, Layer::Waiting, head_bytes(uri, headers));
    }

    /// Waits until it is the turn of this connection's address to have the signature of a token checked.
    pub async fn signature_turn(&self) -> Turn {
        let mut turn = Turn::default();
        turn.wait_in(&self.connection.source.signatures).await;
        turn.wait_in(&self.registry.signatures).await;
        turn
    }

    /// A connection for tests of what takes one.
    #[cfg(test)]
    pub(crate) fn anybody() -> Guest {
        let registry = Registry::new(1, Refusals::new("test"));
        let connection = registry.enter(Ipv6Addr::LOCALHOST.into()).connection.clone();
        Guest { registry, connection }
    }
}

#[cfg(test)]
mod tests;
