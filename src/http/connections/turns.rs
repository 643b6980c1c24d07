//! Turns at what costs processor time before anybody is known: by addresses, and those last that only ever cost.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// An address is suspect for so long after its last connection that began TLS and showed no valid credentials.
const SUSPECT_TIME: Duration = Duration::from_secs(60);
/// An address is trusted for so long after its last valid credentials.
const TRUST_TIME: Duration = Duration::from_secs(3600);
/// Of more addresses all suspects are forgotten.
const SEEN_MAX: usize = 4096;

/// A step of a TLS handshake.
#[derive(Clone, Copy)]
pub(in crate::http) enum Step {
    /// The answer to the client's hello, with the server's signature.
    First,
    /// All that comes behind it: cheap, but for a client that says hello twice.
    Later,
}

/// The turn of one address; it ends on drop.
pub struct Turn(#[expect(dead_code, reason = "given back on drop")] Vec<OwnedSemaphorePermit>);

pub(super) fn one_at_a_time() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(1))
}

/// Waits for the turn, first in the line of the address, then in those of all. So an address waits for one of each other
/// address at most, however many that one has waiting.
pub(super) async fn turn(lines: &[&Arc<Semaphore>]) -> Turn {
    let mut permits = Vec::with_capacity(lines.len());
    for line in lines {
        permits.extend((*line).clone().acquire_owned().await);
    }
    Turn(permits)
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

/// The standing of addresses.
#[derive(Default)]
pub(super) struct Standings(HashMap<IpAddr, Seen>);

#[derive(Clone, Copy)]
struct Seen {
    at: Instant,
    standing: Standing,
}

impl Seen {
    fn standing(&self) -> Standing {
        let time = if self.standing == Standing::Trusted { TRUST_TIME } else { SUSPECT_TIME };
        if self.at.elapsed() < time { self.standing } else { Standing::Unknown }
    }
}

impl Standings {
    /// A connection from `address` has ended, and nobody showed valid credentials on it. Where others did lately, that is
    /// what counts: a load balancer may look whether the port answers.
    pub(super) fn suspect(&mut self, address: IpAddr) {
        if self.of(address) == Standing::Trusted {
            return;
        }
        if self.0.len() >= SEEN_MAX {
            self.0.retain(|_, seen| seen.standing() == Standing::Trusted);
        }
        self.0.insert(address, Seen { at: Instant::now(), standing: Standing::Suspect });
    }

    /// Somebody at `address` has shown valid credentials.
    pub(super) fn trust(&mut self, address: IpAddr) {
        if self.0.len() >= SEEN_MAX {
            self.0.clear();
        }
        self.0.insert(address, Seen { at: Instant::now(), standing: Standing::Trusted });
    }

    pub(super) fn of(&self, address: IpAddr) -> Standing {
        self.0.get(&address).map_or(Standing::Unknown, Seen::standing)
    }
}
