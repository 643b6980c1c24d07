//! What connections keep in memory beside the bodies of their requests.

use std::sync::atomic::{AtomicUsize, Ordering};

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
/// Heads and pieces of TLS, all connections together. Almost every honest one comes whole, in one read, and is no larger
/// than usual: it counts for nothing.
pub(super) const HEADS_MAX_BYTES: usize = 4 * 1024 * 1024;

/// What keeps bytes that are no body's.
#[derive(Clone, Copy)]
pub(in crate::http) enum Layer {
    /// A piece of TLS that has not wholly come.
    Tls,
    /// A head that has not wholly come.
    Head,
    /// The head of the request that is served.
    Request,
}

/// What all connections of a listener keep.
pub(in crate::http) struct Memory {
    /// Each connection's share of [`READS_BYTES`].
    read_max_bytes: AtomicUsize,
    /// See [`LARGE_BUFFERS_MAX_BYTES`].
    large_buffers_bytes: AtomicUsize,
    /// See [`HEADS_MAX_BYTES`].
    pub(super) heads_bytes: AtomicUsize,
}

/// What one connection keeps.
#[derive(Default)]
pub(in crate::http) struct Kept {
    /// The most that hyper has given it to read into, beyond [`USUAL_BUFFER_BYTES`].
    large_buffer_bytes: AtomicUsize,
    /// Bytes by [`Layer`].
    heads_bytes: [AtomicUsize; 3],
}

impl Kept {
    /// Bytes in `layer`.
    pub(super) fn in_layer(&self, layer: Layer) -> usize {
        self.heads_bytes[layer as usize].load(Ordering::Relaxed)
    }

    /// Bytes in all layers.
    pub(super) fn of_heads(&self) -> usize {
        self.heads_bytes.iter().map(|bytes| bytes.load(Ordering::Relaxed)).sum()
    }
}

impl Memory {
    pub(super) fn new() -> Memory {
        Memory {
            read_max_bytes: AtomicUsize::new(READ_MOST_BYTES),
            large_buffers_bytes: AtomicUsize::new(0),
            heads_bytes: AtomicUsize::new(0),
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

    /// A connection of an address that keeps `of_source` has `bytes` in `layer` now; false where all have more than they
    /// may.
    pub(super) fn keep(&self, kept: &Kept, of_source: &AtomicUsize, layer: Layer, bytes: usize) -> bool {
        let before = kept.heads_bytes[layer as usize].swap(bytes, Ordering::Relaxed);
        if before == bytes {
            return true;
        }
        let total = self.heads_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.heads_bytes.fetch_sub(before, Ordering::Relaxed);
        of_source.fetch_add(bytes, Ordering::Relaxed);
        of_source.fetch_sub(before, Ordering::Relaxed);
        bytes <= before || total - before <= HEADS_MAX_BYTES
    }

    /// A connection that keeps no heads any more is gone.
    pub(super) fn leave(&self, kept: &Kept) {
        let large_buffer_bytes = kept.large_buffer_bytes.load(Ordering::Relaxed);
        self.large_buffers_bytes.fetch_sub(large_buffer_bytes, Ordering::Relaxed);
    }
}
