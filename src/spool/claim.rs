//! Decides once for each request, for both log types, whether its lines are written or were withdrawn before that.

use std::sync::atomic::{AtomicU8, Ordering};

const OPEN: u8 = 0;
const BEGUN: u8 = 1;
const WITHDRAWN: u8 = 2;

/// A request on its way to the writers, with the memory charge that is given back once its lines are written.
///
/// Either a writer begins with the request or the request is withdrawn. Whichever comes first decides for every writer
/// that has lines of it. A request of both log types shows why:
///
/// 1. The deployments' writer begins, then the request's time is up: it is too late to withdraw, so the audits' writer
///    writes its lines too, and the client waits for the answer.
/// 2. The request is withdrawn and answered `503`, then the audits' writer takes it from its channel: it skips it.
///
/// So a `503` after [`Claim::withdraw`] is true: nothing of the request is stored, now or later.
pub struct Claim<T: ?Sized> {
    /// [`OPEN`], [`BEGUN`] or [`WITHDRAWN`].
    state: AtomicU8,
    _charge: T,
}

impl<T> Claim<T> {
    /// A request that no writer has begun with. `charge` is dropped with the claim.
    pub fn new(charge: T) -> Claim<T> {
        Claim { state: AtomicU8::new(OPEN), _charge: charge }
    }
}

impl<T: ?Sized> Claim<T> {
    /// Whether the writer may write the request's lines. For the first writer that asks this is `is_awaited`: whether
    /// the request still waits for its answer. A request that another writer has begun with is always written whole.
    pub(super) fn begin(&self, is_awaited: bool) -> bool {
        self.decide(if is_awaited { BEGUN } else { WITHDRAWN }) == BEGUN
    }

    /// Withdraws the request for good. False where a writer has begun with it: then its answer will come.
    pub fn withdraw(&self) -> bool {
        self.decide(WITHDRAWN) == WITHDRAWN
    }

    /// Decides for `state`, unless another was decided before; returns what is decided.
    fn decide(&self, state: u8) -> u8 {
        match self.state.compare_exchange(OPEN, state, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => state,
            Err(decided) => decided,
        }
    }
}
