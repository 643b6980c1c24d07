//! Bodies that are tokens. Anyone may send one, so only few large ones are read at a time, and who comes new gets the
//! place of the one that has been coming longest: a token that is sent whole is there before that happens.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::ingest::receive::{UNCHARGED_BYTES, draining};
use crate::protocols::Refusal;

const MAX_BYTES: usize = 64 * 1024;
/// From the head to the last byte.
const TIME: Duration = Duration::from_secs(10);
/// So many are read at a time of those that are longer than [`UNCHARGED_BYTES`]; 1 MiB in all.
const PLACES: usize = 16;

/// The large ones that are being read, the oldest first: whose sender is dropped has lost its place.
#[derive(Default)]
pub(super) struct TokenBodies(Mutex<VecDeque<oneshot::Sender<()>>>);

impl TokenBodies {
    /// Reads one; `None` where it is too long for a token.
    ///
    /// # Errors
    /// The request is to be refused: the body broke off, took too long, lost its place, or `stop` ends all that are coming.
    pub(super) async fn read(&self, body: &mut Incoming, stop: &CancellationToken) -> Result<Option<Bytes>, Refusal> {
        if body.size_hint().lower() > MAX_BYTES as u64 {
            return Ok(None);
        }
        let is_small = body.size_hint().exact().is_some_and(|bytes| bytes <= UNCHARGED_BYTES as u64);
        let place = (!is_small).then(|| self.take_place());
        let lost = async {
            match place {
                Some(place) => drop(place.await),
                None => std::future::pending().await,
            }
        };
        let unavailable = |reason: String| Refusal::Unavailable { reason, retry_after_seconds: 1 };
        tokio::select! {
            biased;
            token = tokio::time::timeout(TIME, whole(body)) => {
                token.unwrap_or_else(|_| Err(unavailable(format!("the token did not arrive within {} s", TIME.as_secs()))))
            }
            () = lost => Err(unavailable(format!("{PLACES} newer tokens came before all of this one did"))),
            () = stop.cancelled() => Err(draining()),
        }
    }

    fn take_place(&self) -> oneshot::Receiver<()> {
        let (place, lost) = oneshot::channel();
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|other| !other.is_closed());
        if places.len() >= PLACES {
            places.pop_front();
        }
        places.push_back(place);
        lost
    }
}

/// Copied together: each piece may keep a larger buffer alive.
async fn whole(body: &mut Incoming) -> Result<Option<Bytes>, Refusal> {
    let mut token = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Refusal::BrokenBody { reason: error.to_string() })?;
        let data = frame.data_ref().map_or(&[][..], |data| data);
        if token.len() + data.len() > MAX_BYTES {
            return Ok(None);
        }
        token.extend_from_slice(data);
    }
    Ok(Some(token.into()))
}
