//! Tells `check` of places that are ahead of the clock, from their files alone.

use std::path::Path;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;

use crate::pull::files::{FILE_MAX_BYTES, FOLDER};
use crate::spool::disk::{self, Disk, OsDisk};

/// Clocks differ by less.
const DIFFERENCE_MAX: TimeDelta = TimeDelta::minutes(15);

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

/// The names of the places in a spool that are ahead of `now`, with the times that they are at. A file that can't be read
/// is none: its pull tells of that.
pub fn ahead_of(spool: &Path, now: DateTime<Utc>) -> Vec<(String, DateTime<Utc>)> {
    let folder = spool.join(FOLDER);
    let ahead = |(name, _): (String, u64)| {
        let bytes = disk::read(&OsDisk, &folder.join(&name), FILE_MAX_BYTES).ok()?;
        let File { memory: Times { from, reached } } = serde_json::from_slice(&bytes).ok()?;
        let at = DateTime::from_timestamp_millis(from.max(reached)).unwrap_or(DateTime::<Utc>::MAX_UTC);
        (at - now > DIFFERENCE_MAX).then_some((name, at))
    };
    OsDisk.list(&folder).unwrap_or_default().into_iter().filter(|(name, _)| is_place(name)).filter_map(ahead).collect()
}

/// A part's name has a dot and a hash behind the organization's.
fn is_place(name: &str) -> bool {
    name.strip_suffix(".json").is_some_and(|rest| rest.contains('_') && !rest.contains('.'))
}
