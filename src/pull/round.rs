//! Why a round of a pull ends early.

use crate::pull::api::ApiError;
use crate::pull::files::PlaceError;

/// The process ends before the work was done; the next start goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("shutting down")]
pub(super) struct Stopped;

/// Why a round ended early.
#[derive(Debug)]
pub(super) enum RoundError {
    /// A request failed; the next round asks again.
    Api(ApiError),
    /// What is remembered can't be read or written, or would be too much.
    Place(PlaceError),
    /// The process ends.
    Stopped,
}

impl From<ApiError> for RoundError {
    fn from(error: ApiError) -> RoundError {
        RoundError::Api(error)
    }
}

impl From<PlaceError> for RoundError {
    fn from(error: PlaceError) -> RoundError {
        RoundError::Place(error)
    }
}

impl From<Stopped> for RoundError {
    fn from(Stopped: Stopped) -> RoundError {
        RoundError::Stopped
    }
}
