//! The spool's limit: how many bytes each log type holds, and whether more fit.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::batch::{Codec, LogType};
use crate::spool::{AppendError, Settings};

/// Each log type's share that the other can never take.
const OTHERS_SHARE: u64 = 10;

/// Bytes in the spool by log type, in files and promised to appends under way.
#[derive(Debug)]
pub struct Usage {
    limit_bytes: u64,
    used: Mutex<[u64; 2]>,
}

impl Usage {
    /// With compression, room for the compressed copy of one batch is always kept.
    pub fn new(settings: &Settings) -> Usage {
        let copy = if settings.codec == Codec::None { 0 } else { settings.batch_max_bytes };
        Usage { limit_bytes: settings.max_bytes.saturating_sub(copy), used: Mutex::new([0; 2]) }
    }

    /// What all files together may hold.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// What a log type holds.
    pub fn used_bytes(&self, log_type: LogType) -> u64 {
        self.lock()[log_type.index()]
    }

    /// Says whether `bytes` more fit.
    pub fn check_room(&self, log_type: LogType, bytes: u64) -> Result<(), AppendError> {
        self.judge(&self.lock(), log_type, bytes)
    }

    /// Takes room for `bytes`; given back when it is dropped without [`Room::keep`].
    pub fn take_room(self: Arc<Self>, log_type: LogType, bytes: u64) -> Result<Room, AppendError> {
        {
            let mut used = self.lock();
            self.judge(&used, log_type, bytes)?;
            used[log_type.index()] += bytes;
        }
        Ok(Room { usage: self, log_type, bytes })
    }

    /// Counts a file that is there, whatever the limit.
    pub fn add(&self, log_type: LogType, bytes: u64) {
        self.lock()[log_type.index()] += bytes;
    }

    /// Counts a file that went, or the part that it shrank by.
    pub fn remove(&self, log_type: LogType, bytes: u64) {
        let mut used = self.lock();
        let used = &mut used[log_type.index()];
        *used = used.saturating_sub(bytes);
    }

    fn judge(&self, used: &[u64; 2], log_type: LogType, bytes: u64) -> Result<(), AppendError> {
        let others_share = self.limit_bytes / OTHERS_SHARE;
        let others = LogType::ALL.into_iter().filter(|other| *other != log_type);
        let kept_for_others: u64 = others.map(|other| used[other.index()].max(others_share)).sum();
        let mine = used[log_type.index()].saturating_add(bytes);
        if mine.saturating_add(kept_for_others) > self.limit_bytes {
            return Err(AppendError::Full { used_bytes: used.iter().sum(), limit_bytes: self.limit_bytes });
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, [u64; 2]> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room that an append has taken.
#[derive(Debug)]
pub struct Room {
    usage: Arc<Usage>,
    log_type: LogType,
    bytes: u64,
}

impl Room {
    /// Whose room it is.
    pub fn log_type(&self) -> LogType {
        self.log_type
    }

    /// The bytes are in a file now and count until that goes.
    pub fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.usage.remove(self.log_type, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::spool::manifest::Destination;

    const MINE: LogType = LogType::Deployments;
    const OTHER: LogType = LogType::Audits;

    /// Of a spool that may hold 100 bytes in batches of 16.
    fn usage(codec: Codec) -> Arc<Usage> {
        let [endpoint, bucket, region, path] = [const { String::new() }; 4];
        let destination = Destination { endpoint, bucket, region, path };
        let (dir, batch_max_age) = ("spool".into(), Duration::MAX);
        Arc::new(Usage::new(&Settings { dir, max_bytes: 100, batch_max_bytes: 16, batch_max_age, codec, destination }))
    }

    #[test]
    fn a_tenth_is_kept_for_the_other_type_whatever_that_holds() {
        let usage = usage(Codec::None);
        assert_eq!(usage.check_room(MINE, 90), Ok(()));
        assert_eq!(usage.check_room(MINE, 91), Err(AppendError::Full { used_bytes: 0, limit_bytes: 100 }));
        usage.add(OTHER, 10);
        assert_eq!(usage.check_room(MINE, 90), Ok(()));
        usage.add(OTHER, 1);
        assert_eq!(usage.check_room(MINE, 89), Ok(()));
        assert_eq!(usage.check_room(MINE, 90), Err(AppendError::Full { used_bytes: 11, limit_bytes: 100 }));
    }

    #[test]
    fn room_that_is_asked_for_is_not_taken_by_asking() {
        let usage = usage(Codec::None);
        usage.check_room(MINE, 90).unwrap();
        assert_eq!(usage.used_bytes(MINE), 0);
    }

    #[test]
    fn room_that_was_taken_is_given_back_when_it_is_not_kept() {
        let usage = usage(Codec::None);
        let kept = usage.clone().take_room(MINE, 30).unwrap();
        let dropped = usage.clone().take_room(MINE, 20).unwrap();
        assert_eq!(
            usage.clone().take_room(MINE, 41).unwrap_err(),
            AppendError::Full { used_bytes: 50, limit_bytes: 100 }
        );
        assert_eq!((usage.used_bytes(MINE), usage.used_bytes(OTHER)), (50, 0));
        kept.keep();
        drop(dropped);
        assert_eq!(usage.used_bytes(MINE), 30);
        usage.remove(MINE, 30);
        assert_eq!(usage.used_bytes(MINE), 0);
    }

    #[test]
    fn with_compression_room_for_the_copy_of_one_batch_is_kept() {
        let limits = [Codec::None, Codec::Gzip, Codec::Zstd].map(|codec| usage(codec).limit_bytes());
        assert_eq!(limits, [100, 84, 84]);
    }
}
