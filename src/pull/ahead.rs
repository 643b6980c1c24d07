//! Places that are ahead of the clock: what counts as one, and which of a spool's files are one, for `check`.

use std::path::Path;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;

use crate::pull::files::{FILE_MAX_BYTES, FOLDER};
use crate::spool::disk::{self, Disk, OsDisk};

/// Clocks differ by less, so a place that is further ahead was written by a clock that was wrong.
const DIFFERENCE_MAX_MILLIS: i64 = 15 * 60_000;

/// A place's file, as far as it tells times; milliseconds since 1970.
#[derive(Deserialize)]
struct File {
    memory: Times,
}

#[derive(Deserialize)]
struct Times {
    from: i64,
    reached: i64,
}

/// How far a place that is at `at` is ahead of `now`, where that is more than clocks differ; both in milliseconds since 1970.
pub(super) fn ahead_by(at: i64, now: i64) -> Option<TimeDelta> {
    let ahead = at.saturating_sub(now);
    (ahead > DIFFERENCE_MAX_MILLIS).then(|| TimeDelta::milliseconds(ahead))
}

/// The names of the places in a spool that are ahead of `now`, with the times that they are at. A file that can't be read
/// is none: its pull tells of that.
pub fn ahead_of(spool: &Path, now: DateTime<Utc>) -> Vec<(String, DateTime<Utc>)> {
    let folder = spool.join(FOLDER);
    let ahead = |(name, _): (String, u64)| {
        let bytes = disk::read(&OsDisk, &folder.join(&name), FILE_MAX_BYTES).ok()?;
        let File { memory: Times { from, reached } } = serde_json::from_slice(&bytes).ok()?;
        ahead_by(from.max(reached), now.timestamp_millis())?;
        Some((name, DateTime::from_timestamp_millis(from.max(reached)).unwrap_or(DateTime::<Utc>::MAX_UTC)))
    };
    OsDisk.list(&folder).unwrap_or_default().into_iter().filter(|(name, _)| is_place(name)).filter_map(ahead).collect()
}

/// A part's name has a dot and a hash behind the organization's.
fn is_place(name: &str) -> bool {
    name.strip_suffix(".json").is_some_and(|rest| rest.contains('_') && !rest.contains('.'))
}
