//! The connection of a request, as those see it who serve the request.

use std::net::IpAddr;
#[cfg(test)]
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::http::{HeaderMap, Uri};

#[cfg(test)]
use super::Refusals;
use super::memory::{Layer, head_bytes};
use super::turns::{Trust, Turn};
use super::{AT_WORK, Connection, Registry, network_of};

/// The connection of a request. At the limit of connections it may be closed, until the request is let in.
#[derive(Clone)]
pub struct Guest {
    pub(in crate::http) registry: Arc<Registry>,
    pub(in crate::http) connection: Arc<Connection>,
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
