//! A lane's metrics. Their handles are made once, because looking one up takes a lock.

use metrics::{Counter, Gauge, counter, gauge};

use crate::batch::LogType;
use crate::metric_table;
use crate::s3::PutErrorKind;
use crate::spool::Batch;

/// The metrics' handles of one log type.
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
            objects: counter!(metric_table::OBJECTS_UPLOADED, "type" => log_type),
            bytes: counter!(metric_table::UPLOAD_BYTES, "type" => log_type),
            last_uploaded: gauge!(metric_table::LAST_UPLOADED_TIMESTAMP_SECONDS, "type" => log_type),
            failures: PutErrorKind::ALL
                .map(|kind| counter!(metric_table::UPLOAD_FAILURES, "type" => log_type, "error" => kind.as_str())),
        }
    }

    pub(super) fn delivered(&self, batch: &Batch) {
        self.objects.increment(1);
        self.bytes.increment(batch.bytes);
        self.last_uploaded.set(crate::batch::now().timestamp_millis() as f64 / 1e3);
    }

    pub(super) fn failed(&self, kind: PutErrorKind) {
        self.failures[kind as usize].increment(1);
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::batch::{BatchName, Codec, SealedName, Sha256, Stage};

    #[test]
    fn what_is_delivered_and_what_fails_is_counted_under_its_type_and_kind() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let meters = metrics::with_local_recorder(&recorder, || UploadMeters::new(LogType::Audits));
        let batch = BatchName::open(chrono::Utc::now(), None, Codec::None);
        let (sha256, previous, stage) = (Sha256::ZERO, Sha256::ZERO, Stage::Sending);
        let name = SealedName { batch, sequence: 1, records: 3, sha256, previous, stage };
        let before = chrono::Utc::now().timestamp() as f64;
        for bytes in [40, 2] {
            meters.delivered(&Batch { log_type: LogType::Audits, name, bytes, durable: true, may_have_arrived: true });
        }
        meters.failed(PutErrorKind::Denied);
        let text = recorder.handle().render();
        let value = |series: &str| {
            let mut lines = text.lines().filter_map(|line| line.rsplit_once(' '));
            let found = lines.find(|(name, _)| name.ends_with(&format!("_s3_logs_{series}")));
            found.unwrap_or_else(|| panic!("no {series} in {text}")).1.parse::<f64>().unwrap()
        };
        assert_eq!(value("objects_uploaded_total{type=\"env0-audits\"}"), 2.0);
        assert_eq!(value("upload_bytes_total{type=\"env0-audits\"}"), 42.0);
        assert!((before..before + 3600.0).contains(&value("last_uploaded_timestamp_seconds{type=\"env0-audits\"}")));
        for kind in PutErrorKind::ALL {
            let series = format!("upload_failures_total{{type=\"env0-audits\",error=\"{}\"}}", kind.as_str());
            assert_eq!(value(&series), f64::from(u8::from(kind == PutErrorKind::Denied)), "{series}");
        }
    }
}
