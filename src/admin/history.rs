//! The last hour of each log type, for the page's lines. Its size is fixed.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::batch::{ByType, LogType};
use crate::status::Status;

/// A sample every 10 seconds over an hour.
const SAMPLES: usize = 361;
const INTERVAL_SECONDS: i64 = 10;

/// One moment: totals since the start, and the backlog, by log type.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: i64,
    accepted: ByType<u64>,
    uploaded: ByType<u64>,
    spooled: ByType<u64>,
}

/// The samples, oldest first.
#[derive(Default)]
pub(super) struct History(Mutex<VecDeque<Sample>>);

/// What `/status?history` says: columns of equal length.
#[derive(Debug, Serialize)]
pub(super) struct Snapshot {
    interval_seconds: i64,
    /// Unix seconds.
    at: Vec<i64>,
    types: Vec<TypeHistory>,
}

#[derive(Debug, Serialize)]
struct TypeHistory {
    #[serde(rename = "type")]
    log_type: LogType,
    /// Events acknowledged since the start.
    accepted: Vec<u64>,
    /// Events in S3 since the start.
    uploaded: Vec<u64>,
    /// Events waiting.
    spooled: Vec<u64>,
}

impl History {
    /// Takes a sample, unless the last one is younger than the interval.
    pub(super) fn sample(&self, status: &Status) {
        let at = status.now.0.timestamp();
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.back().is_some_and(|last| (0..INTERVAL_SECONDS).contains(&(at - last.at))) {
            return;
        }
        // A clock that went back starts the hour anew: lines that run backwards tell nothing.
        if samples.back().is_some_and(|last| at < last.at) {
            samples.clear();
        }
        let mut sample =
            Sample { at, accepted: ByType::default(), uploaded: ByType::default(), spooled: ByType::default() };
        for of_type in &status.types {
            let log_type = of_type.log_type;
            sample.accepted[log_type] = of_type.spooled.events_accepted;
            sample.uploaded[log_type] = of_type.delivery.events_uploaded;
            sample.spooled[log_type] = of_type.spooled.events_spooled;
        }
        if samples.len() == SAMPLES {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let column = |of: fn(&Sample) -> &ByType<u64>, log_type: LogType| {
            samples.iter().map(|sample| of(sample)[log_type]).collect()
        };
        let of_type = |log_type| TypeHistory {
            log_type,
            accepted: column(|sample| &sample.accepted, log_type),
            uploaded: column(|sample| &sample.uploaded, log_type),
            spooled: column(|sample| &sample.spooled, log_type),
        };
        Snapshot {
            interval_seconds: INTERVAL_SECONDS,
            at: samples.iter().map(|sample| sample.at).collect(),
            types: LogType::ALL.map(of_type).into(),
        }
    }
}
