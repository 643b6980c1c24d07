//! What connections keep in memory beside the bodies of their requests.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use axum::http::{HeaderMap, Uri};

/// An address with more than this part of all connections, or of what a party may keep, is a crowd: its strangers, and what
/// it keeps, go first, however fresh they are.
pub(super) const CROWD_PART: usize = 8;
/// The most bytes that one read of every open connection may bring together.
const READS_BYTES: usize = 4 * 1024 * 1024;
/// The least that one connection's read may bring, however many there are.
pub(super) const READ_LEAST_BYTES: usize = 4 * 1024;
/// The most that one connection's read may bring, however few there are.
pub(in crate::http) const READ_MOST_BYTES: usize = 64 * 1024;
/// What hyper gives each connection to read into, and what all connections together may have beyond it while they are
/// idle. It keeps what large bodies made of it: with more, connections that sent some end with their answer.
const USUAL_BUFFER_BYTES: usize = 8 * 1024;
const LARGE_BUFFERS_MAX_BYTES: usize = 8 * 1024 * 1024;
/// Heads and pieces of TLS that are larger than usual ([`Layer::usual_bytes`]), all connections of a [`Party`] together.
/// Senders have more, because each piece of TLS of a large body counts until it is whole.
pub(super) const HEADS_MAX_BYTES: [usize; 2] = [2 * 1024 * 1024, 4 * 1024 * 1024];

/// Neither takes the memory of the other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Party {
    /// Connections of which no request has been let in yet.
    Strangers,
    /// All others.
    Senders,
}

/// What keeps bytes that are no body's.
#[derive(Clone, Copy)]
pub(in crate::http) enum Layer {
    /// What TLS has read since there was something to pass on: a handshake, or pieces of a record.
    Tls,
    /// A head that has not wholly come.
    Head,
    /// The head of the request that is served.
    Request,
    /// What is left of that head while a body comes slowly.
    Waiting,
}

impl Layer {
    pub(super) const ALL: [Layer; 4] = [Layer::Tls, Layer::Head, Layer::Request, Layer::Waiting];

    /// So many bytes count for nothing: each connection may have them. So no stranger, whatever others keep, is closed for
    /// a hello, a head or an audit event of 1 KB.
    fn usual_bytes(self) -> usize {
        match self {
            // rustls reads into 4 KiB, whatever comes.
            Layer::Tls | Layer::Head => 4 * 1024,
            // An OIDC token and a proxy's headers take 6 KiB.
            Layer::Request => 8 * 1024,
            // What a protocol reads with the body is short, as a rule.
            Layer::Waiting => 1024,
        }
    }

    /// How many of `bytes` count.
    fn counted(self, bytes: usize) -> usize {
        if bytes > self.usual_bytes() { bytes } else { 0 }
    }
}

/// What all connections of a listener keep.
pub(in crate::http) struct Memory {
    /// Each connection's share of [`READS_BYTES`].
    read_max_bytes: AtomicUsize,
    /// See [`LARGE_BUFFERS_MAX_BYTES`].
    large_buffers_bytes: AtomicUsize,
    /// By [`Party`]; see [`HEADS_MAX_BYTES`]. What [`Kept`] and [`KeptOfSource`] count changes under its lock.
    heads_bytes: Mutex<[usize; 2]>,
}

/// What one connection keeps.
#[derive(Default)]
pub(in crate::http) struct Kept {
    /// The most that hyper has given it to read into, beyond [`USUAL_BUFFER_BYTES`].
    large_buffer_bytes: AtomicUsize,
    /// Bytes by [`Layer`].
    heads_bytes: [AtomicUsize; 4],
    /// Bytes of a TLS record that has not wholly come.
    pub(in crate::http) record_bytes: AtomicUsize,
    /// The moment from which on it has kept some of them.
    heads_since: AtomicU64,
    /// See [`Memory::is_senders`].
    is_senders: AtomicBool,
}

/// What the connections of one address keep: bytes of heads, by [`Party`].
#[derive(Default)]
pub(super) struct KeptOfSource([AtomicUsize; 2]);

/// Who goes first where a party keeps too much: the least of these. Of a crowd, and then of all, whoever has kept something
/// for the longest time. So a piece that passes within moments stays, unless megabytes come in those moments.
pub(super) type Oldest = (Reverse<usize>, u64);

impl Kept {
    /// Bytes in `layer`.
    pub(super) fn in_layer(&self, layer: Layer) -> usize {
        self.heads_bytes[layer as usize].load(Ordering::Relaxed)
    }

    /// What counts in all layers.
    fn counted(&self) -> usize {
        Layer::ALL.into_iter().map(|layer| layer.counted(self.in_layer(layer))).sum()
    }

    fn party(&self) -> Party {
        if self.is_senders() { Party::Senders } else { Party::Strangers }
    }

    /// A request of the connection was let in.
    pub(super) fn is_senders(&self) -> bool {
        self.is_senders.load(Ordering::Relaxed)
    }

    /// When it goes, of those of `party`; `None` where it is none of them, or keeps nothing.
    pub(super) fn age(&self, party: Party, of_source: &KeptOfSource) -> Option<Oldest> {
        let of_source = of_source.0[party as usize].load(Ordering::Relaxed);
        let crowd = if of_source > HEADS_MAX_BYTES[party as usize] / CROWD_PART { of_source } else { 0 };
        let goes = self.party() == party && self.counted() > 0;
        goes.then(|| (Reverse(crowd), self.heads_since.load(Ordering::Relaxed)))
    }
}

impl Memory {
    pub(super) fn new() -> Memory {
        Memory {
            read_max_bytes: AtomicUsize::new(READ_MOST_BYTES),
            large_buffers_bytes: AtomicUsize::new(0),
            heads_bytes: Mutex::default(),
        }
    }

    /// So many connections are open now.
    pub(super) fn share_reads(&self, connections: usize) {
        let share = (READS_BYTES / connections.max(1)).clamp(READ_LEAST_BYTES, READ_MOST_BYTES);
        // hyper keeps a buffer for twice as much after a read that fills it, or brings a power of two. One byte less
        // than 64 KiB makes it at most 112 KiB large, so 64 honest senders of large bodies keep their connections.
        self.read_max_bytes.store((1 << share.ilog2()) - 1, Ordering::Relaxed);
    }

    /// No read takes more at the time: hyper's buffer of a connection grows with what its reads bring.
    pub(in crate::http) fn read_max_bytes(&self) -> usize {
        self.read_max_bytes.load(Ordering::Relaxed)
    }

    /// There are so many connections that each one's reads are shorter than they could be.
    pub(in crate::http) fn has_short_reads(&self) -> bool {
        self.read_max_bytes() + 1 < READ_MOST_BYTES
    }

    /// A connection reads into a buffer of so many bytes.
    pub(in crate::http) fn reads_into(&self, kept: &Kept, bytes: usize) {
        let large = bytes.saturating_sub(USUAL_BUFFER_BYTES);
        let before = kept.large_buffer_bytes.load(Ordering::Relaxed);
        if large > before {
            kept.large_buffer_bytes.store(large, Ordering::Relaxed);
            self.large_buffers_bytes.fetch_add(large - before, Ordering::Relaxed);
        }
    }

    /// Whether a connection should end with its answer, because the buffers of too many have become large.
    pub(in crate::http) fn has_too_large_a_buffer(&self, kept: &Kept) -> bool {
        kept.large_buffer_bytes.load(Ordering::Relaxed) > 0
            && self.large_buffers_bytes.load(Ordering::Relaxed) > LARGE_BUFFERS_MAX_BYTES
    }

    /// A connection of an address that keeps `of_source` has `bytes` in `layer` from this `moment` on. The party that has
    /// more than it may by now.
    pub(super) fn keep(
        &self,
        kept: &Kept,
        of_source: &KeptOfSource,
        layer: Layer,
        bytes: usize,
        moment: impl FnOnce() -> u64,
    ) -> Option<Party> {
        let place = &kept.heads_bytes[layer as usize];
        let counted = layer.counted(bytes);
        // As of almost every request, without a lock that all share.
        if counted == 0 && layer.counted(place.load(Ordering::Relaxed)) == 0 {
            place.store(bytes, Ordering::Relaxed);
            return None;
        }
        let mut all = self.heads_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let party = kept.party();
        if kept.counted() == 0 {
            kept.heads_since.store(moment(), Ordering::Relaxed);
        }
        let before = layer.counted(place.swap(bytes, Ordering::Relaxed));
        add(party, counted, &mut all, of_source);
        subtract(party, before, &mut all, of_source);
        too_much(party, counted.saturating_sub(before), &all)
    }

    /// A request of a connection was let in: what it keeps is a sender's from now on. The party that has more than it may
    /// by that.
    pub(super) fn is_senders(&self, kept: &Kept, of_source: &KeptOfSource) -> Option<Party> {
        let mut all = self.heads_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        kept.is_senders.store(true, Ordering::Relaxed);
        let bytes = kept.counted();
        subtract(Party::Strangers, bytes, &mut all, of_source);
        add(Party::Senders, bytes, &mut all, of_source);
        too_much(Party::Senders, bytes, &all)
    }

    #[cfg(test)]
    pub(super) fn heads_bytes(&self, party: Party) -> usize {
        self.heads_bytes.lock().unwrap()[party as usize]
    }

    /// A connection that keeps no heads any more is gone.
    pub(super) fn leave(&self, kept: &Kept) {
        let large_buffer_bytes = kept.large_buffer_bytes.load(Ordering::Relaxed);
        self.large_buffers_bytes.fetch_sub(large_buffer_bytes, Ordering::Relaxed);
    }
}

/// About what a request's head takes in memory: the table of its headers, which has room for a third more of them, and a
/// power of two; their names, which are kept twice; their values, and the target.
pub(in crate::http) fn head_bytes(uri: &Uri, headers: &HeaderMap) -> usize {
    const PLACE_BYTES: usize = 82;
    let places = (headers.len() + headers.len() / 3).next_power_of_two();
    let texts = headers.iter().map(|(name, value)| 2 * name.as_str().len() + value.len());
    let target = uri.path_and_query().map_or(0, |target| target.as_str().len());
    PLACE_BYTES * places + texts.sum::<usize>() + target
}

fn too_much(party: Party, more: usize, all: &[usize; 2]) -> Option<Party> {
    (more > 0 && all[party as usize] > HEADS_MAX_BYTES[party as usize]).then_some(party)
}

fn add(party: Party, bytes: usize, all: &mut [usize; 2], of_source: &KeptOfSource) {
    all[party as usize] += bytes;
    of_source.0[party as usize].fetch_add(bytes, Ordering::Relaxed);
}

fn subtract(party: Party, bytes: usize, all: &mut [usize; 2], of_source: &KeptOfSource) {
    all[party as usize] -= bytes;
    of_source.0[party as usize].fetch_sub(bytes, Ordering::Relaxed);
}
