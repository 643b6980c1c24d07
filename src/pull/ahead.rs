//! The times in places, as `check` reads them: which are ahead of the clock, and what counts as that.

use std::path::Path;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;

use crate::pull::files::{self, FILE_MAX_BYTES, FOLDER};
use crate::spool::disk::{self, Disk, OsDisk};

/// Clocks differ by less, so a place that is further ahead was written by a clock that was wrong.
const DIFFERENCE_MAX_MILLIS: i64 = 15 * 60_000;

/// A place's file, as far as it tells times; milliseconds since 1970.
#[derive(Deserialize)]
struct File {
    memory: Times,
}

#[derive(Deserialize)]
pub(super) struct Times {
    #[serde(default)]
    pub(super) began: Option<i64>,
    from: i64,
    reached: i64,
}

/// How far a place that is at `at` is ahead of `now`, where that is more than clocks differ;
/// both in milliseconds since 1970.
pub(super) fn ahead_by(at: i64, now: i64) -> Option<TimeDelta> {
    let ahead = at.saturating_sub(now);
    (ahead > DIFFERENCE_MAX_MILLIS).then(|| TimeDelta::milliseconds(ahead))
}

/// The names of the places in a spool that are ahead of `now`, with the times that they are at.
pub fn ahead_of(spool: &Path, now: DateTime<Utc>) -> Vec<(String, DateTime<Utc>)> {
    let ahead = |(name, times): (String, Times)| {
        let at = times.from.max(times.reached);
        ahead_by(at, now.timestamp_millis())?;
        Some((name, DateTime::from_timestamp_millis(at).unwrap_or(DateTime::<Utc>::MAX_UTC)))
    };
    places(spool).filter_map(ahead).collect()
}

/// The places in a spool: names and times. A file that can't be read is none: its pull tells of that.
pub(super) fn places(spool: &Path) -> impl Iterator<Item = (String, Times)> {
    let folder = spool.join(FOLDER);
    let listed = OsDisk.list(&folder).unwrap_or_default().into_iter();
    listed.filter(|(name, _)| files::place_of(name).is_some()).filter_map(move |(name, _)| {
        let bytes = disk::read(&OsDisk, &folder.join(&name), FILE_MAX_BYTES).ok()?;
        let File { memory } = serde_json::from_slice(&bytes).ok()?;
        Some((name, memory))
    })
}
