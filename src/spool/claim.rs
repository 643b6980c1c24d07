//! Whether a request's lines are being written or were withdrawn before that: decided once, for both log types.

use std::sync::atomic::{AtomicU8, Ordering};

const OPEN: u8 = 0;
const BEGUN: u8 = 1;
const WITHDRAWN: u8 = 2;

/// A request on its way to the writers, with what it holds until its lines no longer need memory.
///
/// A writer begins with a request, or the request is withdrawn; whichever comes first is so for every writer that
/// the request goes to. So a refusal after [`Claim::withdraw`] is true: nothing of it is stored, now or later.
pub struct Claim<T: ?Sized> {
    /// [`OPEN`], [`BEGUN`] or [`WITHDRAWN`].
    state: AtomicU8,
    _held: T,
}

impl<T> Claim<T> {
    /// A request that no writer has begun with.
    pub fn new(held: T) -> Claim<T> {
        Claim { state: AtomicU8::new(OPEN), _held: held }
    }
}

impl<T: ?Sized> Claim<T> {
    /// Whether the writer may write the request's lines. The first to ask decides by whether somebody still
    /// `is_awaited`; a request that another writer has begun with is written whole.
    pub(super) fn begin(&self, is_awaited: bool) -> bool {
        self.decide(if is_awaited { BEGUN } else { WITHDRAWN }) == BEGUN
    }

    /// Takes the request back for good. False where a writer has begun with it: then its answer is on the way.
    pub fn withdraw(&self) -> bool {
        self.decide(WITHDRAWN) == WITHDRAWN
    }

    /// What is so from now on: `state`, unless another was decided before.
    fn decide(&self, state: u8) -> u8 {
        match self.state.compare_exchange(OPEN, state, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => state,
            Err(decided) => decided,
        }
    }
}
