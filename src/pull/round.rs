//! Why a round of a pull ends early.

use crate::pull::api::ApiError;
use crate::pull::place::Stopped;

/// Why a round ended early.
#[derive(Debug)]
pub(super) enum RoundError {
    /// A request failed; the next round asks again.
    Api(ApiError),
    /// The process ends.
    Stopped,
}

impl From<ApiError> for RoundError {
    fn from(error: ApiError) -> RoundError {
        RoundError::Api(error)
    }
}

impl From<Stopped> for RoundError {
    fn from(Stopped: Stopped) -> RoundError {
        RoundError::Stopped
    }
}
