//! The spool's limit: how many bytes each log type has in it, and whether more fit.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::batch::{ByType, Codec, LogType};
use crate::spool::copies::{BatchCopy, Copies};
use crate::spool::terms::{AppendError, Settings};
use crate::status::Timestamp;

/// One part in this many of the limit is always left to the other log type.
const OTHERS_SHARE: u64 = 10;

/// A full spool counts as full until what was refused fits, and at least one part in this many of the limit is free.
/// Otherwise a spool at its limit would log at every upload that it has room again.
const ROOM_AGAIN_SHARE: u64 = 20;

/// Bytes in the spool by log type: in files, and taken by appends that are not written yet.
#[derive(Debug)]
pub struct Usage {
    limit_bytes: u64,
    /// With a CloudWatch lane: copies may take what events leave of the limit.
    copies: Option<Arc<Copies>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: ByType<u64>,
    full: ByType<Option<Full>>,
}

/// A log type whose events were refused because the spool is full.
#[derive(Debug, Clone, Copy)]
struct Full {
    since: Timestamp,
    /// The size of the last append that had no room.
    bytes: u64,
}

impl Usage {
    /// With compression the limit is lower by one batch, so that there is always room to write its compressed file.
    pub(super) fn new(settings: &Settings, copies: Option<Arc<Copies>>) -> Usage {
        let copy = if settings.codec == Codec::None { 0 } else { settings.batch_max_bytes };
        Usage { limit_bytes: settings.max_bytes.saturating_sub(copy), copies, state: Mutex::default() }
    }

    /// What both log types' files together may take, in bytes.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// What a log type takes, in bytes.
    pub fn used_bytes(&self, log_type: LogType) -> u64 {
        self.lock().used[log_type]
    }

    /// What a log type may take now, in bytes: the limit less what the other type uses, or less the tenth that is kept
    /// for it, whichever is more.
    pub fn share_bytes(&self, log_type: LogType) -> u64 {
        self.share(&self.lock(), log_type)
    }

    /// Since when a log type has had no room for what was sent.
    pub fn full_since(&self, log_type: LogType) -> Option<Timestamp> {
        self.lock().full[log_type].map(|full| full.since)
    }

    /// Fails where `bytes` more don't fit now; takes no room.
    pub fn check_room(&self, log_type: LogType, bytes: u64) -> Result<(), AppendError> {
        self.take(log_type, bytes, 0)
    }

    /// Takes room for `bytes`. It is given back when it is dropped without [`Room::keep`].
    pub fn take_room(self: Arc<Self>, log_type: LogType, bytes: u64) -> Result<Room, AppendError> {
        self.take(log_type, bytes, bytes)?;
        Ok(Room { usage: self, log_type, bytes })
    }

    /// Counts a file that exists, whatever the limit.
    pub fn add(&self, log_type: LogType, bytes: u64) {
        let mut state = self.lock();
        state.used[log_type] += bytes;
        self.fit_copies(&state);
    }

    /// Adds a copy, then gives up the oldest ones that don't fit beside the events.
    pub(super) fn add_copy(&self, copy: BatchCopy) {
        if let Some(copies) = &self.copies {
            copies.add(copy);
            self.fit_copies(&self.lock());
        }
    }

    fn fit_copies(&self, state: &State) {
        if let Some(copies) = &self.copies {
            copies.fit(self.limit_bytes.saturating_sub(state.used.values().sum()));
        }
    }

    /// Counts out a file that was removed, or the part by which it got shorter.
    pub fn remove(&self, log_type: LogType, bytes: u64) {
        let mut state = self.lock();
        let used = &mut state.used[log_type];
        *used = used.saturating_sub(bytes);
        if state.full.values().all(Option::is_none) {
            return;
        }
        // For both log types, because what one gives back the other may take.
        let again = ByType::new(|log_type| {
            let (used, share) = (state.used[log_type], self.share(&state, log_type));
            let wanted = |full: &Full| full.bytes.max(self.limit_bytes / ROOM_AGAIN_SHARE).min(share);
            let full = &mut state.full[log_type];
            full.take_if(|full| used.saturating_add(wanted(full)) <= share).map(|_| (used, share))
        });
        drop(state);
        for (log_type, (used, share)) in again.into_iter().filter_map(|(log_type, again)| Some((log_type, again?))) {
            tracing::info!(%log_type, spool.bytes = used, spool.share_bytes = share, "the spool has room again for this log type");
        }
    }

    /// Takes room for `bytes` if there is room for `wanted`.
    fn take(&self, log_type: LogType, wanted: u64, bytes: u64) -> Result<(), AppendError> {
        let mut state = self.lock();
        let share = self.share(&state, log_type);
        let used = state.used[log_type];
        if used.saturating_add(wanted) <= share {
            state.used[log_type] += bytes;
            self.fit_copies(&state);
            return Ok(());
        }
        let most = self.limit_bytes - self.others_share();
        if wanted > most {
            return Err(AppendError::TooLarge { limit_bytes: most });
        }
        let full = &mut state.full[log_type];
        let was_full = full.replace(Full { since: full.map_or_else(Timestamp::now, |full| full.since), bytes: wanted });
        drop(state);
        if was_full.is_none() {
            tracing::warn!(%log_type, spool.bytes = used, spool.share_bytes = share, spool.limit_bytes = self.limit_bytes, "the spool is full for this log type; its events are answered 503 until uploads make room; see config/README.md#spool-high");
        }
        Err(AppendError::Full { log_type, used_bytes: used, share_bytes: share })
    }

    fn others_share(&self) -> u64 {
        self.limit_bytes / OTHERS_SHARE
    }

    fn share(&self, state: &State, log_type: LogType) -> u64 {
        let others = LogType::ALL.into_iter().filter(|other| *other != log_type);
        let kept_for_others: u64 = others.map(|other| state.used[other].max(self.others_share())).sum();
        self.limit_bytes.saturating_sub(kept_for_others)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// The log type that has the room.
    pub fn log_type(&self) -> LogType {
        self.log_type
    }

    /// Keeps the room taken, because the bytes are in a file now; they count until that is removed.
    pub fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // Almost all room is kept; then the lock isn't taken.
        if self.bytes > 0 {
            self.usage.remove(self.log_type, self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::spool::manifest::Destination;

    const MINE: LogType = LogType::Deployments;
    const OTHER: LogType = LogType::Audits;

    /// The usage of a spool of 100 bytes with batches of 16.
    fn usage(codec: Codec) -> Arc<Usage> {
        let [endpoint, bucket, region, path] = [const { String::new() }; 4];
        let destination = Destination { endpoint, bucket, region, path };
        let (dir, batch_max_age) = ("spool".into(), Duration::MAX);
        let (max_bytes, batch_max_bytes, copies) = (100, 16, false);
        let settings = Settings { dir, max_bytes, batch_max_bytes, batch_max_age, codec, destination, copies };
        Arc::new(Usage::new(&settings, None))
    }

    fn full(used_bytes: u64, share_bytes: u64) -> Result<(), String> {
        Err(AppendError::Full { log_type: MINE, used_bytes, share_bytes }.to_string())
    }

    fn too_large(limit_bytes: u64) -> Result<(), String> {
        Err(AppendError::TooLarge { limit_bytes }.to_string())
    }

    fn check(usage: &Usage, bytes: u64) -> Result<(), String> {
        usage.check_room(MINE, bytes).map_err(|error| error.to_string())
    }

    #[test]
    fn a_tenth_is_kept_for_the_other_type_whatever_that_holds() {
        let usage = usage(Codec::None);
        assert_eq!(check(&usage, 90), Ok(()));
        assert_eq!(check(&usage, 91), too_large(90));
        usage.add(OTHER, 10);
        assert_eq!(check(&usage, 90), Ok(()));
        usage.add(OTHER, 1);
        assert_eq!(check(&usage, 89), Ok(()));
        assert_eq!(check(&usage, 90), full(0, 89));
    }

    #[test]
    fn a_type_is_full_from_its_first_refusal_until_what_was_refused_and_a_bit_more_fits() {
        let usage = usage(Codec::None);
        usage.add(MINE, 85);
        assert_eq!(usage.full_since(MINE), None);
        assert_eq!(check(&usage, 6), full(85, 90));
        let since = usage.full_since(MINE);
        assert!(since.is_some());
        assert_eq!(check(&usage, 7), full(85, 90));
        assert_eq!((usage.full_since(MINE), usage.full_since(OTHER)), (since, None), "one state, of one type");
        usage.remove(MINE, 1);
        assert_eq!(usage.full_since(MINE), since);
        usage.remove(MINE, 1);
        assert_eq!(usage.full_since(MINE), None);
        // What the other type gives back is room, too.
        usage.add(OTHER, 30);
        assert_eq!(check(&usage, 1), full(83, 70));
        usage.remove(OTHER, 20);
        assert_eq!(usage.full_since(MINE), None);
    }

    #[test]
    fn room_that_is_asked_for_is_not_taken_by_asking() {
        let usage = usage(Codec::None);
        check(&usage, 90).unwrap();
        assert_eq!(usage.used_bytes(MINE), 0);
    }

    #[test]
    fn room_that_was_taken_is_given_back_when_it_is_not_kept() {
        let usage = usage(Codec::None);
        let kept = usage.clone().take_room(MINE, 30).unwrap();
        let dropped = usage.clone().take_room(MINE, 20).unwrap();
        let third = usage.clone().take_room(MINE, 41).map(drop);
        assert_eq!(third.map_err(|error| error.to_string()), full(50, 90));
        assert_eq!((usage.used_bytes(MINE), usage.used_bytes(OTHER)), (50, 0));
        kept.keep();
        drop(dropped);
        assert_eq!(usage.used_bytes(MINE), 30);
        usage.remove(MINE, 30);
        assert_eq!(usage.used_bytes(MINE), 0);
    }

    #[test]
    fn with_compression_room_for_the_copy_of_one_batch_is_kept() {
        let limits = Codec::ALL.map(|codec| usage(codec).limit_bytes());
        assert_eq!(limits, [100, 84, 84]);
    }
}
