//! Collects the metrics of [`metric_table`] and writes them as `/metrics`.
//!
//! Figures that [`Status`] has too are taken from one snapshot of it at each scrape. Its counts are read one after the
//! other while the daemon works, so events that move meanwhile can be missing from accepted + recovered = uploaded +
//! spooled + quarantined. The parts count the other metrics, through handles that they keep.

use std::sync::OnceLock;

use metrics::{Label, counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::batch::LogType;
use crate::metric_table::{self, Kind, METRICS, Metric};
use crate::status::{Status, Timestamp};

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The source revision of this build: a commit, with `-modified` where the sources differ from it, or `unknown`.
pub const REVISION: &str = env!("REVISION");

const LOG_TYPES: [&str; LogType::ALL.len()] = {
    let (mut names, mut at) = ([""; LogType::ALL.len()], 0);
    while at < names.len() {
        names[at] = LogType::ALL[at].as_str();
        at += 1;
    }
    names
};
const _: () = assert!(
    metric_table::has_values("env0_s3_logs_events_accepted_total", "type", &LOG_TYPES),
    "TYPES in metric_table.rs are not the log types"
);

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
    /// By the request's `Accept` header: OpenMetrics where it is named, and neither unwanted (`q=0`)
    /// nor less wanted than plain text.
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

    /// Takes in what the histograms gathered: without it, and without a scrape, memory grows.
    /// To be called every few seconds.
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
    gauge!(metric_table::BUILD_INFO, "version" => VERSION, "revision" => REVISION).set(1.0);
}

/// Describes a metric, and creates each of its series at zero.
fn create(metric: &Metric) {
    match metric.kind {
        Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
        Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
        Kind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
    }
    if metric.name == metric_table::BUILD_INFO {
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
    gauge!(metric_table::SPOOL_LIMIT_BYTES).set(status.spool.limit_bytes as f64);
    gauge!(metric_table::QUARANTINE_BYTES).set(status.spool.quarantine_bytes as f64);
    for of_type in &status.types {
        let name = of_type.log_type.as_str();
        let pulls = status.pull.iter().filter(|pull| pull.log_type == of_type.log_type);
        // The organization that is furthest behind; one that has not begun is nowhere.
        let position = pulls.map(|pull| pull.position).min().flatten();
        gauge!(metric_table::PULL_POSITION_TIMESTAMP_SECONDS, "type" => name).set(seconds(position));
        let (spooled, delivery) = (&of_type.spooled, &of_type.delivery);
        for (metric, total) in [
            (metric_table::EVENTS_ACCEPTED, spooled.events_accepted),
            (metric_table::EVENTS_RECOVERED, spooled.events_recovered),
            (metric_table::EVENTS_QUARANTINED, spooled.events_quarantined),
            (metric_table::EVENTS_UPLOADED, delivery.events_uploaded),
        ] {
            counter!(metric, "type" => name).absolute(total);
        }
        for (metric, value) in [
            (metric_table::EVENTS_SPOOLED, spooled.events_spooled as f64),
            (metric_table::SPOOL_BYTES, spooled.spool_bytes as f64),
            (metric_table::OLDEST_UNSENT_TIMESTAMP_SECONDS, seconds(spooled.oldest_unsent)),
            (metric_table::LAST_ACCEPTED_TIMESTAMP_SECONDS, seconds(spooled.last_accepted)),
        ] {
            gauge!(metric, "type" => name).set(value);
        }
    }
    for of_type in status.cloudwatch.iter().flat_map(|cloudwatch| &cloudwatch.types) {
        let name = of_type.log_type.as_str();
        gauge!(metric_table::CLOUDWATCH_COPIES_BYTES, "type" => name).set(of_type.bytes as f64);
        gauge!(metric_table::CLOUDWATCH_OLDEST_COPY_TIMESTAMP_SECONDS, "type" => name).set(seconds(of_type.oldest));
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
