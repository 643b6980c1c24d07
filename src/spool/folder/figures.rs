//! What is counted of a log type's batches and events, and what its status tells.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::batch::SealedName;
use crate::metric_table;
use crate::spool::folder::{Figures, Folder};
use crate::spool::terms::{Batch, SealReason};
use crate::status::{ChainHead, SpooledStatus, Timestamp};

/// Keys that are less ahead of the clock are not reported: clocks are corrected by so much all the time.
const KEY_TIME_AHEAD_SECONDS: u64 = 3600;

impl Folder {
    /// What was counted since the start.
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// This log type's part of `/status`.
    pub fn status(&self, chain_instance: &str) -> SpooledStatus {
        let figures = &self.figures;
        let count = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let state = self.state();
        let last_accepted = DateTime::from_timestamp_millis(figures.last_accepted_millis.load(Ordering::Relaxed));
        SpooledStatus {
            events_accepted: count(&figures.accepted),
            events_recovered: count(&figures.recovered),
            events_quarantined: count(&figures.quarantined),
            events_spooled: count(&figures.spooled),
            spool_bytes: self.usage.used_bytes(self.log_type),
            batches: count(&figures.batches),
            oldest_unsent: state.unsent.first().copied().map(Timestamp),
            last_accepted: last_accepted.filter(|at| at.timestamp_millis() > 0).map(Timestamp),
            write_error: state.failing.as_ref().map(ToString::to_string),
            full_since: self.usage.full_since(self.log_type),
            share_bytes: self.usage.share_bytes(self.log_type),
            key_time_ahead_seconds: key_time_ahead_seconds(state.last_opened),
            chain_instance: chain_instance.to_owned(),
            head: (state.head.sequence > 0)
                .then(|| ChainHead { sequence: state.head.sequence, sha256: state.head.sha256.to_string() }),
        }
    }

    /// See [`SpooledStatus::key_time_ahead_seconds`].
    pub(in crate::spool) fn key_time_ahead_seconds(&self) -> u64 {
        key_time_ahead_seconds(self.state().last_opened)
    }

    /// Counts a sealed batch under the reason it was sealed for.
    pub(in crate::spool) fn count_sealed(&self, reason: SealReason) {
        let (log_type, reason) = (self.log_type.as_str(), reason.as_str());
        metrics::counter!(metric_table::BATCHES_SEALED, "type" => log_type, "reason" => reason).increment(1);
    }

    /// Counts a sealed batch as one that waits for S3.
    pub(in crate::spool) fn count_in(&self, name: SealedName, bytes: u64) -> Batch {
        self.figures.batches.fetch_add(1, Ordering::Relaxed);
        Batch::new(self.log_type, name, bytes)
    }

    /// Counts out a sealed batch that was delivered or moved to quarantine.
    pub(super) fn count_out(&self, batch: &Batch) {
        self.usage.remove(self.log_type, batch.bytes);
        self.figures.batches.fetch_sub(1, Ordering::Relaxed);
        self.figures.spooled.fetch_sub(batch.name.records, Ordering::Relaxed);
    }

    /// Counts events that are durable now.
    pub(in crate::spool) fn count_accepted(&self, records: u64) {
        self.figures.accepted.fetch_add(records, Ordering::Relaxed);
        self.figures.last_accepted_millis.store(crate::batch::now().timestamp_millis(), Ordering::Relaxed);
        self.figures.spooled.fetch_add(records, Ordering::Relaxed);
    }

    /// Records how long one group's fsync took.
    pub(in crate::spool) fn record_fsync(&self, time: Duration) {
        self.fsync_duration.record(time);
    }
}

fn key_time_ahead_seconds(last_opened: Option<DateTime<Utc>>) -> u64 {
    let ahead = last_opened.map(|opened| (opened - crate::batch::now()).num_seconds());
    ahead.and_then(|seconds| u64::try_from(seconds).ok()).filter(|ahead| *ahead >= KEY_TIME_AHEAD_SECONDS).unwrap_or(0)
}
