use super::*;
use crate::batch::LogType;
use crate::status::{DeliveryStatus, DestinationStatus, Phase, SpoolStatus, SpooledStatus, TypeStatus};

fn status() -> Status {
    let spooled = SpooledStatus { events_accepted: 7, events_spooled: 3, ..SpooledStatus::default() };
    let delivery = DeliveryStatus { events_uploaded: 4, ..DeliveryStatus::default() };
    let log_type = LogType::Audits;
    Status {
        bucket: None,
        connections_refused_total: Default::default(),
        requests_refused_total: Default::default(),
        version: VERSION.to_owned(),
        instance: "i".to_owned(),
        phase: Phase::Running,
        started_at: Timestamp::now(),
        now: Timestamp::now(),
        settings: Default::default(),
        destination: DestinationStatus { bucket: "b".into(), region: "r".into(), path: String::new(), endpoint: None },
        spool: SpoolStatus {
            dir: "/s".into(),
            bytes: 1,
            limit_bytes: 2,
            disk_available_bytes: None,
            quarantine_bytes: 0,
            disk_asked_at: None,
        },
        types: vec![TypeStatus { log_type, pulled_and_sent: false, bytes_replaced: 0, spooled, delivery }],
        credentials: None,
        pull: Vec::new(),
        cloudwatch: None,
    }
}

#[test]
fn every_series_is_there_from_the_first_scrape_and_the_text_lints_clean() {
    let recorder = recorder();
    let render = |exposition| {
        metrics::with_local_recorder(&recorder, || {
            create_all();
            Exporter(recorder.handle()).render(&status(), exposition)
        })
    };
    let text = render(Exposition::Prometheus);
    for metric in METRICS {
        assert!(text.contains(&format!("# HELP {} {}\n", metric.name, metric.help)), "{}", metric.name);
        let series = text.lines().filter(|line| {
            let rest = line.strip_prefix(metric.name).unwrap_or_default();
            rest.starts_with(' ') || rest.starts_with('{') || rest.starts_with("_bucket")
        });
        let expected = match metric.kind {
            Kind::Histogram => BUCKETS_SECONDS.len() + 1,
            _ => metric.labels.iter().map(|(_, values)| values.len()).product(),
        };
        assert_eq!(series.count(), expected, "{}", metric.name);
    }
    assert!(text.contains("env0_s3_logs_events_accepted_total{type=\"env0-audits\"} 7\n"));
    assert!(text.contains("env0_s3_logs_events_spooled{type=\"env0-audits\"} 3\n"));
    assert!(text.contains("env0_s3_logs_upload_failures_total{type=\"env0-audits\",error=\"denied\"} 0\n"));

    let text = render(Exposition::OpenMetrics);
    assert!(text.contains("# TYPE env0_s3_logs_events_accepted counter\n"));
    assert!(text.contains("env0_s3_logs_events_accepted_total{type=\"env0-audits\"} 7\n"));
    assert!(text.ends_with("\n# EOF\n") && !text.contains("\n\n"));
}

#[test]
fn the_exposition_follows_the_accept_header() {
    let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
    assert_eq!(Exposition::by_accept(prometheus), Exposition::OpenMetrics);
    assert_eq!(Exposition::by_accept("*/*"), Exposition::Prometheus);
    for unwanted in [
        "application/openmetrics-text;q=0",
        "Application/OpenMetrics-Text; version=1.0.0; Q=0.0, */*",
        "application/openmetrics-text; version=1.0.0; q=0.5, text/plain; q=0.9",
    ] {
        assert_eq!(Exposition::by_accept(unwanted), Exposition::Prometheus, "{unwanted}");
    }
    assert_eq!(Exposition::by_accept("text/html, Application/OpenMetrics-Text; q=0.001"), Exposition::OpenMetrics);
}
