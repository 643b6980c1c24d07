//! Bodies that are tokens. Anyone may send one, so all of them together have little memory. When it is used up, the
//! largest of the address that sends the most bytes at a time is given up: so never one that has less than its part of the
//! memory, and a token that is sent whole is judged before that happens to it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::ingest::receive::draining;
use crate::protocols::Refusal;

/// A longer body is no token: the longest has 20,000 bytes, and there may be white space around it.
const MAX_BYTES: usize = 20 * 1024;
/// What all of them may have, until they are judged.
const ALL_MAX_BYTES: usize = 2 * 1024 * 1024;
/// Each grows by multiples of this: so little that each of 1,024 connections may have two of them.
const STEP_BYTES: usize = 1024;
/// From the head to the last byte.
const TIME: Duration = Duration::from_secs(10);

/// Those of which something has come, and that are not judged yet.
#[derive(Default)]
pub(super) struct TokenBodies(Mutex<Bodies>);

#[derive(Default)]
struct Bodies {
    last_number: u64,
    bytes: usize,
    /// The first that came is the first here.
    by_number: BTreeMap<u64, Body>,
}

struct Body {
    source: IpAddr,
    bytes: usize,
    given_up: Arc<Notify>,
}

impl TokenBodies {
    /// A seat for the body of a request that comes from `source`.
    pub(super) fn seat(&self, source: IpAddr) -> Seat<'_> {
        let mut bodies = self.lock();
        bodies.last_number += 1;
        Seat { all: self, number: bodies.last_number, source, given_up: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Bodies> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bodies {
    fn remove(&mut self, number: u64) {
        if let Some(body) = self.by_number.remove(&number) {
            self.bytes -= body.bytes;
        }
    }

    /// The largest of the address that has the most bytes, of equal ones the first that came.
    fn missed_least(&self) -> Option<u64> {
        let mut bytes: HashMap<IpAddr, usize> = HashMap::new();
        for body in self.by_number.values() {
            *bytes.entry(body.source).or_default() += body.bytes;
        }
        let most = |(_, body): &(&u64, &Body)| Reverse((bytes.get(&body.source).copied(), body.bytes));
        let (number, _) = self.by_number.iter().min_by_key(most)?;
        Some(*number)
    }
}

/// One body's seat among all; what it holds counts until the seat is dropped.
pub(super) struct Seat<'a> {
    all: &'a TokenBodies,
    number: u64,
    source: IpAddr,
    given_up: Arc<Notify>,
}

impl Seat<'_> {
    /// Reads the token; `None` where it is too long for one.
    ///
    /// # Errors
    /// The request is to be refused: the body broke off, took too long, or `stop` ends all that are coming.
    pub(super) async fn read(&self, body: &mut Incoming, stop: &CancellationToken) -> Result<Option<Bytes>, Refusal> {
        if body.size_hint().lower() > MAX_BYTES as u64 {
            return Ok(None);
        }
        tokio::select! {
            biased;
            token = tokio::time::timeout(TIME, self.whole(body)) => {
                token.unwrap_or_else(|_| Err(unavailable(format!("the token did not arrive within {} s", TIME.as_secs()))))
            }
            () = stop.cancelled() => Err(draining()),
        }
    }

    /// Copied together: each piece may keep a larger buffer alive.
    async fn whole(&self, body: &mut Incoming) -> Result<Option<Bytes>, Refusal> {
        let mut token = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Refusal::BrokenBody { reason: error.to_string() })?;
            let data = frame.data_ref().map_or(&[][..], |data| data);
            if token.len() + data.len() > MAX_BYTES {
                return Ok(None);
            }
            if token.len() + data.len() > token.capacity() {
                token.reserve_exact(data.len().next_multiple_of(STEP_BYTES));
                self.holds(token.capacity());
            }
            token.extend_from_slice(data);
        }
        Ok(Some(token.into()))
    }

    /// Counts what the body has by now, and gives others up where all have too much.
    fn holds(&self, bytes: usize) {
        let mut bodies = self.all.lock();
        bodies.remove(self.number);
        bodies.bytes += bytes;
        bodies.by_number.insert(self.number, Body { source: self.source, bytes, given_up: self.given_up.clone() });
        while bodies.bytes > ALL_MAX_BYTES
            && let Some(number) = bodies.missed_least()
        {
            if let Some(body) = bodies.by_number.get(&number) {
                body.given_up.notify_one();
            }
            bodies.remove(number);
        }
    }

    /// Waits until the body is given up for others.
    pub(super) async fn given_up(&self) -> Refusal {
        self.given_up.notified().await;
        unavailable("tokens that came later needed the memory of this one".to_owned())
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.all.lock().remove(self.number);
    }
}

fn unavailable(reason: String) -> Refusal {
    Refusal::Unavailable { reason, retry_after_seconds: 1 }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Seats of these addresses, `127.0.0.<number>`, each with as much as the largest token.
    fn seats<'a>(all: &'a TokenBodies, addresses: impl IntoIterator<Item = u8>) -> Vec<Seat<'a>> {
        let seat = |address| all.seat([127, 0, 0, address].into());
        addresses.into_iter().map(seat).inspect(|seat| seat.holds(MAX_BYTES)).collect()
    }

    fn given_up(seats: &[Seat<'_>]) -> Vec<usize> {
        let is_given_up = |number: &usize| seats[*number].given_up().now_or_never().is_some();
        (0..seats.len()).filter(is_given_up).collect()
    }

    #[test]
    fn beyond_the_bound_the_first_of_the_address_that_has_the_most_is_given_up() {
        let all = TokenBodies::default();
        let here = seats(&all, [1, 2, 2, 2].into_iter().chain(4..=101));
        assert_eq!(given_up(&here), [] as [usize; 0], "102 fit");
        let mut newer = Vec::new();
        // Of 2 until it has one as the others do; then of all.
        for (address, first) in [(204, 1), (205, 2), (206, 0)] {
            newer.extend(seats(&all, [address]));
            assert_eq!(given_up(&here), [first]);
        }
        assert_eq!(given_up(&newer), [] as [usize; 0]);
    }

    #[test]
    fn a_piece_of_a_token_is_not_given_up_for_those_who_hold_more() {
        let all = TokenBodies::default();
        let honest = seats(&all, [1]);
        honest[0].holds(2 * STEP_BYTES);
        let strangers = seats(&all, 2..=250);
        assert_eq!(given_up(&honest), [] as [usize; 0], "it came first, and has the least");
        assert_eq!(given_up(&strangers).len(), 249 - 102);
    }

    #[test]
    fn what_is_dropped_makes_room() {
        let all = TokenBodies::default();
        for _ in 0..3 {
            let here = seats(&all, std::iter::repeat_n(1, 102));
            assert_eq!(given_up(&here), [] as [usize; 0]);
        }
        assert_eq!(all.lock().bytes, 0);
    }
}
