//! Every metric: one list with names, labels and meanings, and the way from it to `/metrics`.
//!
//! What the snapshots of [`Status`] hold is taken from one snapshot at each scrape, so that a scrape's books balance:
//! accepted + recovered = uploaded + spooled + quarantined. The parts count the rest, through handles that they keep.

use std::sync::OnceLock;

use metrics::{Label, counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::status::{Status, Timestamp};

/// What a metric measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// A value of now; a `timestamp_seconds` is 0 while there is none.
    Gauge,
    /// Seconds, in buckets from half a millisecond to two minutes.
    Histogram,
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// The full name.
    pub name: &'static str,
    /// What it measures.
    pub kind: Kind,
    /// Each label with all its values: every series is there, at zero, from the first scrape on.
    pub labels: &'static [(&'static str, &'static [&'static str])],
    /// What Prometheus shows as help.
    pub help: &'static str,
}

type Labels = &'static [(&'static str, &'static [&'static str])];

const TYPES: &[&str] = &["env0-deployments", "env0-audits"];
const BY_TYPE: Labels = &[("type", TYPES)];

const fn counts(name: &'static str, labels: Labels, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, labels, help }
}

const fn level(name: &'static str, labels: Labels, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, labels, help }
}

const fn seconds(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram, labels: &[], help }
}

/// Every metric, in the order of the documentation.
pub const METRICS: &[Metric] = &[
    counts("env0_s3_logs_events_accepted_total", BY_TYPE, "Events acknowledged: durable in the spool"),
    counts("env0_s3_logs_events_recovered_total", BY_TYPE, "Events found in the spool at the start"),
    counts("env0_s3_logs_events_uploaded_total", BY_TYPE, "Events that S3 confirmed"),
    level("env0_s3_logs_events_spooled", BY_TYPE, "Events in the spool, not in S3 yet"),
    counts("env0_s3_logs_events_quarantined_total", BY_TYPE, "Events set aside because they could not be read back"),
    counts("env0_s3_logs_events_redacted_total", BY_TYPE, "Events in which a token of env0 was replaced by [redacted]"),
    counts("env0_s3_logs_replaced_bytes_total", BY_TYPE, "Bytes of text that were not UTF-8 and became U+FFFD"),
    level("env0_s3_logs_last_accepted_timestamp_seconds", BY_TYPE, "When events were last acknowledged"),
    level("env0_s3_logs_last_uploaded_timestamp_seconds", BY_TYPE, "When S3 last confirmed an object"),
    counts(
        "env0_s3_logs_ingest_requests_total",
        &[
            ("type", &["env0-deployments", "env0-audits", "none"]),
            (
                "code",
                &["200", "202", "204", "400", "401", "403", "404", "405", "408", "411", "413", "415", "500", "503"],
            ),
        ],
        "Requests answered on the ingest listener; type none is a request that came to no log type",
    ),
    counts("env0_s3_logs_ingest_bytes_total", BY_TYPE, "Bytes of the events acknowledged, as stored"),
    seconds("env0_s3_logs_ingest_duration_seconds", "From a request's headers to its answer"),
    seconds("env0_s3_logs_fsync_duration_seconds", "Duration of an fsync of a batch"),
    counts(
        "env0_s3_logs_auth_failures_total",
        &[("reason", &["missing", "invalid", "malformed", "unavailable", "wrong_type"])],
        "Requests whose credentials were refused or could not be judged",
    ),
    counts(
        "env0_s3_logs_connections_refused_total",
        &[(
            "reason",
            &[
                "malformed",
                "host",
                "version",
                "head_too_large",
                "slow",
                "unread",
                "tls",
                "client_certificate",
                "limit",
                "cross_site",
                "foreign_host",
            ],
        )],
        "Connections refused or closed below the requests, of both listeners",
    ),
    counts(
        "env0_s3_logs_token_handovers_total",
        &[("outcome", &["accepted", "known", "set_aside", "no_room", "refused", "unavailable"])],
        "OIDC tokens handed over by clients",
    ),
    level("env0_s3_logs_spool_bytes", BY_TYPE, "Size of the spool"),
    level("env0_s3_logs_spool_limit_bytes", &[], "Size of the spool above which requests are answered 503"),
    level("env0_s3_logs_quarantine_bytes", &[], "Size of the files that were set aside"),
    level(
        "env0_s3_logs_oldest_unsent_timestamp_seconds",
        BY_TYPE,
        "When the oldest batch not in S3 was opened; 0 for none",
    ),
    counts(
        "env0_s3_logs_batches_sealed_total",
        &[("type", TYPES), ("reason", &["size", "age", "shutdown", "recovery", "disk_error"])],
        "Batches closed for appending",
    ),
    counts("env0_s3_logs_objects_uploaded_total", BY_TYPE, "Objects that S3 confirmed"),
    counts("env0_s3_logs_upload_bytes_total", BY_TYPE, "Size of the objects that S3 confirmed"),
    seconds("env0_s3_logs_upload_duration_seconds", "Duration of a PUT that S3 confirmed"),
    counts(
        "env0_s3_logs_upload_failures_total",
        &[
            ("type", TYPES),
            (
                "error",
                &[
                    "no_session",
                    "name_taken",
                    "conflict",
                    "timeout",
                    "unreachable",
                    "session_rejected",
                    "denied",
                    "kms_denied",
                    "no_such_bucket",
                    "wrong_region",
                    "clock_skew",
                    "throttled",
                    "checksum_refused",
                    "file_unreadable",
                    "server_error",
                    "other",
                ],
            ),
        ],
        "Attempts to write an object that failed; each batch is tried again",
    ),
    counts(
        "env0_s3_logs_sts_exchanges_total",
        &[("outcome", &["succeeded", "refused", "failed"])],
        "Exchanges of an OIDC token at STS",
    ),
    counts(
        "env0_s3_logs_pulled_events_total",
        BY_TYPE,
        "Events that were pulled from env0's API: durable in the spool",
    ),
    counts(
        "env0_s3_logs_pull_requests_total",
        &[
            (
                "endpoint",
                &[
                    "organizations",
                    "audit_events",
                    "environments",
                    "deployments",
                    "steps",
                    "step_log",
                    "log_forwarding",
                ],
            ),
            (
                "outcome",
                &[
                    "succeeded",
                    "unauthorized",
                    "forbidden",
                    "wrong_url",
                    "gone",
                    "refused",
                    "throttled",
                    "server_error",
                    "unreachable",
                    "too_large",
                    "malformed",
                ],
            ),
        ],
        "Requests to env0's API",
    ),
    level(
        "env0_s3_logs_pull_position_timestamp_seconds",
        BY_TYPE,
        "Everything that env0 has from before it is in the spool; 0 where nothing is pulled",
    ),
    counts(
        "env0_s3_logs_pull_rounds_total",
        &[("outcome", &["succeeded", "failed"])],
        "Rounds of asking env0 for what is new, of each log type and organization",
    ),
    level("env0_s3_logs_credentials_expiry_timestamp_seconds", &[], "When the AWS session ends; 0 for none"),
    counts(
        "env0_s3_logs_cloudwatch_sts_exchanges_total",
        &[("outcome", &["succeeded", "refused", "failed"])],
        "Exchanges of an OIDC token at STS for the role of CloudWatch Logs",
    ),
    level(
        "env0_s3_logs_cloudwatch_credentials_expiry_timestamp_seconds",
        &[],
        "When the AWS session for CloudWatch Logs ends; 0 for none",
    ),
    counts("env0_s3_logs_cloudwatch_events_total", BY_TYPE, "Events that CloudWatch Logs took"),
    counts(
        "env0_s3_logs_cloudwatch_skipped_events_total",
        &[
            ("type", TYPES),
            ("reason", &["room", "age", "unreadable", "disk", "off", "too_old", "too_new", "expired", "refused"]),
        ],
        "Events that CloudWatch Logs does not have and will not get; they are in S3",
    ),
    counts(
        "env0_s3_logs_cloudwatch_errors_total",
        &[
            ("type", TYPES),
            (
                "error",
                &[
                    "no_session",
                    "session_rejected",
                    "denied",
                    "missing",
                    "wrong_region",
                    "clock_skew",
                    "events",
                    "throttled",
                    "timeout",
                    "unreachable",
                    "server_error",
                    "proxy_refused",
                    "not_cloudwatch",
                    "other",
                ],
            ),
        ],
        "Calls of CloudWatch Logs that failed; each is tried again",
    ),
    level(
        "env0_s3_logs_cloudwatch_copies_bytes",
        BY_TYPE,
        "Size of the batches that S3 has and CloudWatch Logs does not; no share of spool_bytes",
    ),
    level(
        "env0_s3_logs_cloudwatch_oldest_copy_timestamp_seconds",
        BY_TYPE,
        "When the oldest batch that S3 has and CloudWatch Logs does not was opened; 0 for none",
    ),
    level("env0_s3_logs_oidc_token_expiry_timestamp_seconds", &[], "When the last OIDC token at hand ends; 0 for none"),
    level(
        "env0_s3_logs_tls_expiry_timestamp_seconds",
        &[],
        "When the ingest listener's certificate ends; 0 without TLS",
    ),
    level("env0_s3_logs_build_info", &[], "1, with the version and the source revision as labels"),
];

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The source revision of this build: a commit, with `-modified` where the sources differ from it, or `unknown`.
pub const REVISION: &str = env!("REVISION");

const BUCKETS_SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// What a scraper asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposition {
    /// Prometheus text 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Exposition {
    /// By the request's `Accept` header: OpenMetrics where it is named, and neither unwanted (`q=0`) nor less wanted than
    /// plain text.
    pub fn by_accept(accept: &str) -> Exposition {
        let weight_of = |media_type: &str| {
            let weights = accept.split(',').filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                parts.next().filter(|name| name.eq_ignore_ascii_case(media_type))?;
                let weight = |parameter: &str| {
                    let (name, value) = parameter.split_once('=')?;
                    name.trim().eq_ignore_ascii_case("q").then(|| value.trim().parse::<f32>().ok())?
                };
                Some(parts.find_map(weight).unwrap_or(1.0))
            });
            weights.fold(0.0, f32::max)
        };
        let open_metrics = weight_of("application/openmetrics-text");
        match open_metrics > 0.0 && open_metrics >= weight_of("text/plain") {
            true => Exposition::OpenMetrics,
            false => Exposition::Prometheus,
        }
    }

    /// The answer's `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Exposition::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Exposition::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// All metrics of the process.
pub struct Exporter(PrometheusHandle);

impl Exporter {
    /// Collects the process's metrics from here on; handles made before count nothing. Later calls give the same.
    pub fn install() -> &'static Exporter {
        static EXPORTER: OnceLock<Exporter> = OnceLock::new();
        EXPORTER.get_or_init(|| {
            let recorder = recorder();
            let exporter = Exporter(recorder.handle());
            metrics::set_global_recorder(recorder).expect("nothing else in this process collects metrics");
            create_all();
            exporter
        })
    }

    /// All metrics in the text that was asked for, with the figures of one snapshot.
    pub fn render(&self, status: &Status, exposition: Exposition) -> String {
        record(status);
        let text = self.0.render();
        match exposition {
            Exposition::Prometheus => text,
            Exposition::OpenMetrics => open_metrics(&text),
        }
    }

    /// Takes in what the histograms gathered: without it, and without a scrape, memory grows. To be called every few seconds.
    pub fn upkeep(&self) {
        self.0.run_upkeep();
    }
}

fn recorder() -> PrometheusRecorder {
    let durations = Matcher::Suffix("_duration_seconds".to_owned());
    let builder = PrometheusBuilder::new().set_buckets_for_metric(durations, BUCKETS_SECONDS);
    builder.expect("there are buckets").build_recorder()
}

fn create_all() {
    METRICS.iter().for_each(create);
    gauge!("env0_s3_logs_build_info", "version" => VERSION, "revision" => REVISION).set(1.0);
}

/// Describes a metric, and creates each of its series at zero.
fn create(metric: &Metric) {
    match metric.kind {
        Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
        Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
        Kind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
    }
    if metric.name == "env0_s3_logs_build_info" {
        return;
    }
    let mut series: Vec<Vec<Label>> = vec![Vec::new()];
    for (label, values) in metric.labels {
        let with = |value: &&'static str, labels: &Vec<Label>| {
            [labels.clone(), vec![Label::from_static_parts(label, value)]].concat()
        };
        series = values.iter().flat_map(|value| series.iter().map(move |labels| with(value, labels))).collect();
    }
    for labels in series {
        match metric.kind {
            Kind::Counter => counter!(metric.name, labels).increment(0),
            Kind::Gauge => gauge!(metric.name, labels).set(0.0),
            Kind::Histogram => drop(histogram!(metric.name, labels)),
        }
    }
}

/// Sets all that a snapshot knows.
fn record(status: &Status) {
    let seconds = |moment: Option<Timestamp>| moment.map_or(0.0, |moment| moment.0.timestamp_micros() as f64 / 1e6);
    gauge!("env0_s3_logs_spool_limit_bytes").set(status.spool.limit_bytes as f64);
    gauge!("env0_s3_logs_quarantine_bytes").set(status.spool.quarantine_bytes as f64);
    for of_type in &status.types {
        let name = of_type.log_type.as_str();
        let pulls = status.pull.iter().filter(|pull| pull.log_type == of_type.log_type);
        // The organization that is furthest behind; one that has not begun is nowhere.
        let position = pulls.map(|pull| pull.position).min().flatten();
        gauge!("env0_s3_logs_pull_position_timestamp_seconds", "type" => name).set(seconds(position));
        let (spooled, delivery) = (&of_type.spooled, &of_type.delivery);
        for (metric, total) in [
            ("env0_s3_logs_events_accepted_total", spooled.events_accepted),
            ("env0_s3_logs_events_recovered_total", spooled.events_recovered),
            ("env0_s3_logs_events_quarantined_total", spooled.events_quarantined),
            ("env0_s3_logs_events_uploaded_total", delivery.events_uploaded),
        ] {
            counter!(metric, "type" => name).absolute(total);
        }
        for (metric, value) in [
            ("env0_s3_logs_events_spooled", spooled.events_spooled as f64),
            ("env0_s3_logs_spool_bytes", spooled.spool_bytes as f64),
            ("env0_s3_logs_oldest_unsent_timestamp_seconds", seconds(spooled.oldest_unsent)),
            ("env0_s3_logs_last_accepted_timestamp_seconds", seconds(spooled.last_accepted)),
        ] {
            gauge!(metric, "type" => name).set(value);
        }
    }
    for of_type in status.cloudwatch.iter().flat_map(|cloudwatch| &cloudwatch.types) {
        let name = of_type.log_type.as_str();
        gauge!("env0_s3_logs_cloudwatch_copies_bytes", "type" => name).set(of_type.bytes as f64);
        gauge!("env0_s3_logs_cloudwatch_oldest_copy_timestamp_seconds", "type" => name).set(seconds(of_type.oldest));
    }
}

/// From Prometheus' text to OpenMetrics': a counter's family has no `_total`, no line is empty, and the end is marked.
fn open_metrics(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for line in text.lines().filter(|line| !line.is_empty()) {
        let family = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE "));
        match family.and_then(|family| family.split_once(' ')) {
            Some((name, _)) if name.ends_with("_total") => out.push_str(&line.replacen("_total ", " ", 1)),
            _ => out.push_str(line),
        }
        out.push('\n');
    }
    out.push_str("# EOF\n");
    out
}

#[cfg(test)]
mod tests;
