//! A lane's metrics; every handle is made once.

use metrics::{Counter, Gauge, counter, gauge};

use crate::batch::LogType;
use crate::s3::PutErrorKind;
use crate::spool::Batch;

/// Handles of one log type.
pub(super) struct UploadMeters {
    objects: Counter,
    bytes: Counter,
    last_uploaded: Gauge,
    failures: [Counter; PutErrorKind::ALL.len()],
}

impl UploadMeters {
    pub(super) fn new(log_type: LogType) -> UploadMeters {
        let log_type = log_type.as_str();
        UploadMeters {
            objects: counter!("env0_s3_logs_objects_uploaded_total", "type" => log_type),
            bytes: counter!("env0_s3_logs_upload_bytes_total", "type" => log_type),
            last_uploaded: gauge!("env0_s3_logs_last_uploaded_timestamp_seconds", "type" => log_type),
            failures: PutErrorKind::ALL.map(
                |kind| counter!("env0_s3_logs_upload_failures_total", "type" => log_type, "error" => kind.as_str()),
            ),
        }
    }

    pub(super) fn delivered(&self, batch: &Batch) {
        self.objects.increment(1);
        self.bytes.increment(batch.bytes);
        self.last_uploaded.set(chrono::Utc::now().timestamp_millis() as f64 / 1e3);
    }

    pub(super) fn failed(&self, kind: PutErrorKind) {
        let index = PutErrorKind::ALL.iter().position(|known| *known == kind);
        if let Some(counter) = index.and_then(|index| self.failures.get(index)) {
            counter.increment(1);
        }
    }
}
