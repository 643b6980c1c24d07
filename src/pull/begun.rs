//! `ENV0_S3_LOG_PULL_FROM` counts where a pull begins. Somebody who sets it later to an earlier time is told that it brings
//! nothing.

use std::path::Path;

use chrono::{DateTime, Utc};

use crate::pull::ahead::{Times, places};
use crate::status::Timestamp;

/// What to say of a pull that `began` (milliseconds since 1970) after the time from which it is `wanted` now, and what to
/// do; `None` where it has all that is wanted. `place` is the name of its file, without its ending.
pub(super) fn too_late(place: &str, began: Option<i64>, wanted: DateTime<Utc>) -> Option<(String, String)> {
    let began = DateTime::from_timestamp_millis(began?).filter(|began| wanted < *began)?;
    let (wanted, began) = (Timestamp(wanted), Timestamp(began));
    let told = format!(
        "ENV0_S3_LOG_PULL_FROM is {wanted}, and the pull of {place} has begun at {began}: what env0 has from between is not fetched"
    );
    let remedy = format!(
        "nothing, where that is not wanted; else stop the daemon, remove pull/{place}*.json from its spool, and start it again: \
         everything since {wanted} is fetched then, and what had been fetched is stored a second time"
    );
    Some((told, remedy))
}

/// The same for each place in a spool.
pub fn begun_too_late(spool: &Path, wanted: DateTime<Utc>) -> Vec<(String, String)> {
    let judged =
        |(name, times): (String, Times)| too_late(name.strip_suffix(".json").unwrap_or(&name), times.began, wanted);
    places(spool).filter_map(judged).collect()
}
