//! Object keys read back: which moment and suffix a key names, and where a window of days starts and ends.

use chrono::{NaiveDate, NaiveDateTime, Timelike};

use crate::batch::{Codec, LogType, Suffix};

/// What a key tells beside its prefix and type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyParts {
    /// When the batch was opened, UTC, whole seconds.
    pub(super) opened: NaiveDateTime,
    /// The key's five characters.
    pub(super) suffix: Suffix,
    /// How the body is encoded.
    pub(super) codec: Codec,
}

const TIME_FORMAT: &str = "%Y/%m/%d/%H:%M:%S";
const TIME_BYTES: usize = "2026/11/22/21:04:05".len();

/// The folder of a log type, with its closing `/`.
pub(super) fn folder(bucket_path: &str, log_type: LogType) -> String {
    let separator = if bucket_path.is_empty() { "" } else { "/" };
    format!("{bucket_path}{separator}{log_type}/")
}

/// The start of every key of a day, in [`folder`].
pub(super) fn day(folder: &str, day: NaiveDate) -> String {
    format!("{folder}{}/", day.format("%Y/%m/%d"))
}

/// Reads a key in `folder`. Strict: none for any key that the daemon doesn't make.
pub(super) fn parse(folder: &str, key: &str) -> Option<KeyParts> {
    let (time, rest) = key.strip_prefix(folder)?.split_at_checked(TIME_BYTES)?;
    let opened = NaiveDateTime::parse_from_str(time, TIME_FORMAT).ok()?;
    let (suffix, ending) = rest.strip_prefix('_')?.split_at_checked(5)?;
    let codec = Codec::ALL.into_iter().find(|codec| ending.strip_prefix(".log") == Some(codec.extension()))?;
    // chrono reads a second 60, as a leap second; no clock here writes one.
    let exact = opened.nanosecond() == 0 && opened.format(TIME_FORMAT).to_string() == time;
    exact.then_some(KeyParts { opened, suffix: suffix.parse().ok()?, codec })
}

/// The key that the batch of `key` was acknowledged with, when it was renamed from `first`.
pub(super) fn acknowledged(folder: &str, key: &str, first: Suffix) -> Option<String> {
    let KeyParts { opened, codec, .. } = parse(folder, key)?;
    Some(format!("{folder}{}_{first}.log{}", opened.format(TIME_FORMAT), codec.extension()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_that_the_daemon_makes_are_read() {
        let folder = folder("a/b", LogType::Audits);
        let key = "a/b/env0-audits/2026/11/22/21:04:05_aB3dE.log.gz";
        let parts = parse(&folder, key).unwrap();
        assert_eq!((parts.opened.to_string().as_str(), parts.codec), ("2026-11-22 21:04:05", Codec::Gzip));
        let first = "zzzzz".parse().unwrap();
        assert_eq!(acknowledged(&folder, key, first).unwrap(), key.replace("aB3dE", "zzzzz"));
        for other in [
            key.replace("a/b/", ""),
            key.replace("audits", "deployments"),
            key.replace("21:04:05", "21:04:60"),
            key.replace("21:04:05", "1:04:05"),
            key.replace("2026/11/22", "2026/02/30"),
            key.replace("aB3dE", "aB3d"),
            key.replace("aB3dE", "aB3d-"),
            key.replace(".log", ".txt"),
            format!("{key}.zst"),
            format!("{key}/é"),
        ] {
            assert_eq!(parse(&folder, &other), None, "{other}");
        }
    }
}
