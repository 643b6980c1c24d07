//! A lane's metrics; every handle is made once.

use metrics::{Counter, counter};

use crate::batch::LogType;
use crate::cloudwatch::error::LogsErrorKind;
use crate::metric_table;

/// Why CloudWatch doesn't take events of a call that it answers.
pub(super) const UNTAKEN: [&str; 4] = ["too_old", "too_new", "expired", "refused"];

/// Handles of one log type.
pub(super) struct Meters {
    events: Counter,
    skipped: [Counter; UNTAKEN.len()],
    errors: [Counter; LogsErrorKind::ALL.len()],
}

impl Meters {
    pub(super) fn new(log_type: LogType) -> Meters {
        let log_type = log_type.as_str();
        Meters {
            events: counter!(metric_table::CLOUDWATCH_EVENTS, "type" => log_type),
            skipped: UNTAKEN.map(
                |reason| counter!(metric_table::CLOUDWATCH_SKIPPED_EVENTS, "type" => log_type, "reason" => reason),
            ),
            errors: LogsErrorKind::ALL
                .map(|kind| counter!(metric_table::CLOUDWATCH_ERRORS, "type" => log_type, "error" => kind.as_str())),
        }
    }

    /// CloudWatch took `sent` events, and not these, in the order of [`UNTAKEN`].
    pub(super) fn answered(&self, sent: usize, untaken: [usize; UNTAKEN.len()]) {
        self.events.increment(sent as u64);
        for (counter, untaken) in self.skipped.iter().zip(untaken) {
            counter.increment(untaken as u64);
        }
    }

    pub(super) fn failed(&self, kind: LogsErrorKind) {
        self.errors[kind as usize].increment(1);
    }
}
