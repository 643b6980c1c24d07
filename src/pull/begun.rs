//! Where a pull begins, and what is said of that. `ENV0_S3_LOG_PULL_FROM` counts where a pull begins: somebody who sets
//! it later to an earlier time is told that it brings nothing.

use std::path::Path;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::pull::ahead::{Times, places};
use crate::pull::files::{self, PlaceError};
use crate::spool::Spool;
use crate::status::Timestamp;

/// What is said at each start of a pull that fetches everything since `from`. Without it nobody knows whether "nothing
/// yet" is a fault. `is_set`: whether `ENV0_S3_LOG_PULL_FROM` is.
pub(super) fn begins(began_before: bool, is_set: bool, from: DateTime<Utc>) -> String {
    let from = Timestamp(from);
    match (began_before, is_set) {
        (true, _) => format!("the pull from env0 goes on: what happens from {from} on is fetched"),
        (false, true) => {
            format!("the pull from env0 begins: what is there since {from} is fetched, as ENV0_S3_LOG_PULL_FROM says")
        }
        (false, false) => format!(
            "the pull from env0 begins: what happens from {from} on is fetched. What is older is not, because ENV0_S3_LOG_PULL_FROM is not set"
        ),
    }
}

/// What to say of a pull that `began` (milliseconds since 1970) after the time from which it is `wanted` now, and what
/// to do; `None` where it has all that is wanted. `place` is the name of its file, without its ending.
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

/// When a daemon with this spool pulled first, as far as that is known. Durable before this returns; blocks.
pub(super) fn first_start(spool: &Spool, now: DateTime<Utc>) -> Result<DateTime<Utc>, PlaceError> {
    const NAME: &str = "first-start.json";
    let known: Option<FirstStart> = files::read(spool, NAME)?;
    if let Some(at) = known.and_then(|known| DateTime::from_timestamp_millis(known.at_millis)) {
        return Ok(at);
    }
    files::make_folder(spool)?;
    files::write(spool, NAME, &FirstStart { at_millis: now.timestamp_millis() }, u64::MAX)?;
    Ok(now)
}

#[derive(Serialize, Deserialize)]
struct FirstStart {
    at_millis: i64,
}
