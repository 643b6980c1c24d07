//! Every metric: its name, labels and meaning. Dashboard, alerts and documentation are held to this list.
//!
//! The name of each metric is a constant, which is private to the crate. The compiler warns of a metric that is in the
//! list and that no part feeds.

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

/// Declares the metrics. The list has the names as literals, so that a constant is used only where its metric is fed.
macro_rules! metrics {
    ($($constant:ident: $kind:ident($name:literal, $($rest:tt)*);)*) => {
        $(pub(crate) const $constant: &str = $name;)*

        /// Every metric, in the order of the documentation.
        pub const METRICS: &[Metric] = &[$($kind($name, $($rest)*)),*];
    };
}

/// Declares an enum whose variants are all values of a metric's label, each beside its value. `ALL` has them in this
/// order, so `kind as usize` is an index of it. The compiler refuses an enum that differs from the metric's entry here.
macro_rules! label_values {
    ($metric:literal, $label:literal: $(#[$about:meta])* $vis:vis enum $name:ident {
        $($(#[$meaning:meta])* $variant:ident = $value:literal,)*
    }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        $vis enum $name {
            $($(#[$meaning])* $variant,)*
        }

        impl $name {
            /// Every one.
            #[allow(dead_code)] // Not every part needs the list.
            $vis const ALL: [$name; [$($value),*].len()] = [$($name::$variant),*];

            /// The label's value.
            $vis const fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $value,)*
                }
            }
        }

        const _: () = assert!(
            crate::metric_table::has_values($metric, $label, &[$($value),*]),
            concat!($metric, " in metric_table.rs has other values of ", $label, ", or in another order")
        );
    };
}
pub(crate) use label_values;

/// Whether the metric's label has these values, in this order.
pub(crate) const fn has_values(metric: &str, label: &str, values: &[&str]) -> bool {
    let mut at = 0;
    while at < METRICS.len() {
        let mut labels = METRICS[at].labels;
        while let [(name, known), rest @ ..] = labels {
            if is_same(METRICS[at].name, metric) && is_same(name, label) {
                return are_same(known, values);
            }
            labels = rest;
        }
        at += 1;
    }
    false
}

const fn are_same(mut these: &[&str], mut those: &[&str]) -> bool {
    while let ([this, rest_of_these @ ..], [that, rest_of_those @ ..]) = (these, those) {
        if !is_same(this, that) {
            return false;
        }
        (these, those) = (rest_of_these, rest_of_those);
    }
    these.is_empty() && those.is_empty()
}

/// `==` of two texts, which the compiler can't do yet.
const fn is_same(this: &str, that: &str) -> bool {
    let (mut these, mut those) = (this.as_bytes(), that.as_bytes());
    while let ([this, rest_of_these @ ..], [that, rest_of_those @ ..]) = (these, those) {
        if *this != *that {
            return false;
        }
        (these, those) = (rest_of_these, rest_of_those);
    }
    these.is_empty() && those.is_empty()
}

metrics! {
    EVENTS_ACCEPTED: counts("env0_s3_logs_events_accepted_total", BY_TYPE, "Events acknowledged: durable in the spool");
    EVENTS_RECOVERED: counts("env0_s3_logs_events_recovered_total", BY_TYPE, "Events found in the spool at the start");
    EVENTS_UPLOADED: counts("env0_s3_logs_events_uploaded_total", BY_TYPE, "Events that S3 confirmed");
    EVENTS_SPOOLED: level("env0_s3_logs_events_spooled", BY_TYPE, "Events in the spool, not in S3 yet");
    EVENTS_QUARANTINED: counts(
        "env0_s3_logs_events_quarantined_total",
        BY_TYPE,
        "Events set aside because they could not be read back",
    );
    EVENTS_REDACTED: counts(
        "env0_s3_logs_events_redacted_total",
        BY_TYPE,
        "Events in which a token of env0 was replaced by [redacted]",
    );
    REPLACED_BYTES: counts(
        "env0_s3_logs_replaced_bytes_total",
        BY_TYPE,
        "Bytes of text that were not UTF-8 and became U+FFFD",
    );
    LAST_ACCEPTED_TIMESTAMP_SECONDS: level(
        "env0_s3_logs_last_accepted_timestamp_seconds",
        BY_TYPE,
        "When events were last acknowledged",
    );
    LAST_UPLOADED_TIMESTAMP_SECONDS: level(
        "env0_s3_logs_last_uploaded_timestamp_seconds",
        BY_TYPE,
        "When S3 last confirmed an object",
    );
    INGEST_REQUESTS: counts(
        "env0_s3_logs_ingest_requests_total",
        &[
            ("type", &["env0-deployments", "env0-audits", "none"]),
            (
                "code",
                &["200", "202", "204", "400", "401", "403", "404", "405", "408", "411", "413", "415", "500", "503"],
            ),
        ],
        "Requests answered on the ingest listener; type none is a request that came to no log type",
    );
    INGEST_BYTES: counts("env0_s3_logs_ingest_bytes_total", BY_TYPE, "Bytes of the events acknowledged, as stored");
    INGEST_DURATION_SECONDS: seconds("env0_s3_logs_ingest_duration_seconds", "From a request's headers to its answer");
    FSYNC_DURATION_SECONDS: seconds("env0_s3_logs_fsync_duration_seconds", "Duration of an fsync of a batch");
    AUTH_FAILURES: counts(
        "env0_s3_logs_auth_failures_total",
        &[("reason", &["missing", "invalid", "malformed", "unavailable", "wrong_type"])],
        "Requests whose credentials were refused or could not be judged",
    );
    CONNECTIONS_REFUSED: counts(
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
    );
    TOKEN_HANDOVERS: counts(
        "env0_s3_logs_token_handovers_total",
        &[("outcome", &["accepted", "known", "set_aside", "no_room", "refused", "unavailable"])],
        "OIDC tokens handed over by clients",
    );
    SPOOL_BYTES: level("env0_s3_logs_spool_bytes", BY_TYPE, "Size of the spool");
    SPOOL_LIMIT_BYTES: level(
        "env0_s3_logs_spool_limit_bytes",
        &[],
        "Size of the spool above which requests are answered 503",
    );
    QUARANTINE_BYTES: level("env0_s3_logs_quarantine_bytes", &[], "Size of the files that were set aside");
    OLDEST_UNSENT_TIMESTAMP_SECONDS: level(
        "env0_s3_logs_oldest_unsent_timestamp_seconds",
        BY_TYPE,
        "When the oldest batch not in S3 was opened; 0 for none",
    );
    BATCHES_SEALED: counts(
        "env0_s3_logs_batches_sealed_total",
        &[("type", TYPES), ("reason", &["size", "age", "shutdown", "recovery", "disk_error"])],
        "Batches closed for appending",
    );
    OBJECTS_UPLOADED: counts("env0_s3_logs_objects_uploaded_total", BY_TYPE, "Objects that S3 confirmed");
    UPLOAD_BYTES: counts("env0_s3_logs_upload_bytes_total", BY_TYPE, "Size of the objects that S3 confirmed");
    UPLOAD_DURATION_SECONDS: seconds("env0_s3_logs_upload_duration_seconds", "Duration of a PUT that S3 confirmed");
    UPLOAD_FAILURES: counts(
        "env0_s3_logs_upload_failures_total",
        &[
            ("type", TYPES),
            (
                "error",
                &[
                    "no_session",
                    "name_taken",
                    "name_taken_unproven",
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
                    "proxy_refused",
                    "not_s3",
                    "other",
                ],
            ),
        ],
        "Attempts to write an object that failed; each batch is tried again",
    );
    STS_EXCHANGES: counts(
        "env0_s3_logs_sts_exchanges_total",
        &[("outcome", &["succeeded", "refused", "failed"])],
        "Exchanges of an OIDC token at STS",
    );
    PULLED_EVENTS: counts(
        "env0_s3_logs_pulled_events_total",
        BY_TYPE,
        "Events that were pulled from env0's API: durable in the spool",
    );
    PULL_REQUESTS: counts(
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
                    "revoked",
                    "forbidden",
                    "wrong_url",
                    "gone",
                    "refused",
                    "throttled",
                    "server_error",
                    "not_env0",
                    "unreachable",
                    "too_large",
                    "malformed",
                ],
            ),
        ],
        "Requests to env0's API",
    );
    PULL_POSITION_TIMESTAMP_SECONDS: level(
        "env0_s3_logs_pull_position_timestamp_seconds",
        BY_TYPE,
        "Everything that env0 has from before it is in the spool; 0 where nothing is pulled. Deployments that don't move their environment are found within the hour",
    );
    PULL_ROUNDS: counts(
        "env0_s3_logs_pull_rounds_total",
        &[("outcome", &["succeeded", "failed"])],
        "Rounds of asking env0 for what is new, of each log type and organization",
    );
    CREDENTIALS_EXPIRY_TIMESTAMP_SECONDS: level(
        "env0_s3_logs_credentials_expiry_timestamp_seconds",
        &[],
        "When the AWS session ends; 0 for none",
    );
    CLOUDWATCH_STS_EXCHANGES: counts(
        "env0_s3_logs_cloudwatch_sts_exchanges_total",
        &[("outcome", &["succeeded", "refused", "failed"])],
        "Exchanges of an OIDC token at STS for the role of CloudWatch Logs",
    );
    CLOUDWATCH_CREDENTIALS_EXPIRY_TIMESTAMP_SECONDS: level(
        "env0_s3_logs_cloudwatch_credentials_expiry_timestamp_seconds",
        &[],
        "When the AWS session for CloudWatch Logs ends; 0 for none",
    );
    CLOUDWATCH_EVENTS: counts("env0_s3_logs_cloudwatch_events_total", BY_TYPE, "Events that CloudWatch Logs took");
    CLOUDWATCH_SKIPPED_EVENTS: counts(
        "env0_s3_logs_cloudwatch_skipped_events_total",
        &[
            ("type", TYPES),
            ("reason", &["room", "age", "unreadable", "disk", "off", "too_old", "too_new", "expired", "refused"]),
        ],
        "Events that CloudWatch Logs does not have and will not get; they are in S3",
    );
    CLOUDWATCH_ERRORS: counts(
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
    );
    CLOUDWATCH_COPIES_BYTES: level(
        "env0_s3_logs_cloudwatch_copies_bytes",
        BY_TYPE,
        "Size of the batches that S3 has and CloudWatch Logs does not; no share of spool_bytes",
    );
    CLOUDWATCH_OLDEST_COPY_TIMESTAMP_SECONDS: level(
        "env0_s3_logs_cloudwatch_oldest_copy_timestamp_seconds",
        BY_TYPE,
        "When the oldest batch that S3 has and CloudWatch Logs does not was opened; 0 for none",
    );
    OIDC_TOKEN_EXPIRY_TIMESTAMP_SECONDS: level(
        "env0_s3_logs_oidc_token_expiry_timestamp_seconds",
        &[("source", &["hand-over", "deployment-record", "file", "url", "environment"])],
        "When the last OIDC token from there ends; 0 for none",
    );
    TLS_EXPIRY_TIMESTAMP_SECONDS: level(
        "env0_s3_logs_tls_expiry_timestamp_seconds",
        &[],
        "When the ingest listener's certificate ends; 0 without TLS",
    );
    BUILD_INFO: level("env0_s3_logs_build_info", &[], "1, with the version and the source revision as labels");
}
