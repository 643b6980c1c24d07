//! Warnings of values that are allowed, and that hardly anybody can have meant.

use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::{Reader, Texts};
use crate::config::values::aws;
use crate::config::{Config, values, variables};

/// Most events are longer.
const SMALL_EVENT_BYTES: usize = 1024;
/// A batch that is open for longer is rather a number of milliseconds that was taken as seconds.
const LONG_AGE: Duration = Duration::from_secs(3600);
/// The targets of this project's own log lines begin with it.
const OWN_TARGET: &str = "env0_s3_logs";
/// Variables of which nobody's own value is the example that the documents show.
const NEVER_THE_EXAMPLE: [&str; 9] = [
    "ENV0_S3_LOG_ROLE_ARN",
    "ENV0_S3_LOG_BUCKET_NAME",
    "ENV0_S3_LOG_OIDC_SUBJECT",
    "ENV0_S3_LOG_OIDC_ORGANIZATION_ID",
    "ENV0_S3_LOG_EXPECTED_BUCKET_OWNER",
    "ENV0_API_KEY_ID",
    "ENV0_API_KEY_SECRET",
    "ENV0_S3_LOG_PULL_ORGANIZATION_ID",
    "ENV0_CLOUDWATCH_ROLE_ARN",
];

impl Reader {
    /// Warns of variables that still have the example of the documents, by their names.
    pub(super) fn tell_examples(&mut self, given: &Texts) {
        let is_example = |name: &str| {
            let example = variables::find(name).map(|variable| variable.example);
            example.is_some() && example == given.get(name).map(String::as_str)
        };
        let left: Vec<_> = NEVER_THE_EXAMPLE.into_iter().filter(|name| is_example(name)).collect();
        if !left.is_empty() {
            self.warnings.push(format!(
                "{}: still the example that the documents show; put your own value in its place",
                left.join(", ")
            ));
        }
    }

    /// Warns of values that can hardly work, refuses a region where the role can't be, and drops a log filter that would silence all
    /// lines. `config` has been judged.
    pub(super) fn advise(&mut self, config: &mut Config) {
        let sizes = [
            ("ENV0_S3_LOG_MAX_EVENT_BYTES", config.max_event_bytes),
            ("ENV0_S3_LOG_MAX_BODY_BYTES", config.max_body_bytes),
            ("ENV0_S3_LOG_MAX_INFLIGHT_BYTES", config.max_inflight_bytes),
        ];
        for (name, bytes) in sizes {
            if bytes < SMALL_EVENT_BYTES && self.is_given(name) {
                let bytes = values::show_size(bytes as u64);
                self.warnings.push(format!(
                    "{name}={bytes}: most events are longer, and will be refused; a size may have a unit, such as 1MiB"
                ));
            }
        }
        let event = config.max_event_bytes as u64;
        if config.spool_max_bytes < event && self.is_given("ENV0_S3_LOG_SPOOL_MAX_BYTES") {
            let [spool, event] = [config.spool_max_bytes, event].map(values::show_size);
            self.warnings.push(format!(
                "ENV0_S3_LOG_SPOOL_MAX_BYTES={spool} is less than one event may take \
                 (ENV0_S3_LOG_MAX_EVENT_BYTES={event}): longer ones will be refused; a size may have a unit, such as 10GiB"
            ));
        }
        if config.batch_max_age > LONG_AGE {
            self.warnings.push(format!(
                "ENV0_S3_LOG_BATCH_MAX_AGE is {:?}: an event can be so old before it is in S3, and the alert NotUploading \
                 fires after 15 minutes; a number without a unit is seconds",
                config.batch_max_age
            ));
        }
        if !config.bucket_name.is_empty() && config.bucket_path.split('/').next() == Some(&*config.bucket_name) {
            self.warnings.push(format!(
                "ENV0_S3_LOG_BUCKET_PATH={:?} begins with the bucket's name, and every key in the bucket will, \
                 too; leave it out, unless you mean that",
                config.bucket_path
            ));
        }
        if config.tls.is_some() && !config.ingest {
            self.warnings.push(
                "ENV0_S3_LOG_TLS_CERT_FILE has no effect: nobody may send events, so no port is opened for them; to open \
                 it, set ENV0_S3_LOG_OIDC_ORGANIZATION_ID or ENV0_S3_LOG_INGEST_TOKEN_FILE"
                    .to_owned(),
            );
        }
        let role_partition = config.role_arn.split(':').nth(1).unwrap_or_default();
        let partition = partition_of(&config.aws_region);
        if config.endpoint_url_sts.is_none() && !role_partition.is_empty() && role_partition != partition {
            self.refuse(
                "ENV0_S3_LOG_AWS_REGION",
                &format!(
                    "a region of {partition}, where STS doesn't know ENV0_S3_LOG_ROLE_ARN, a role of {role_partition}; expected \
                     a region of {role_partition}, or a role that was made in {partition}"
                ),
            );
        }
        // `arn:aws:kms:<region>:…`
        let key_region = config.sse_kms_key_id.as_deref().and_then(|key| key.strip_prefix("arn:")?.split(':').nth(2));
        if let Some(region) = key_region.filter(|region| *region != config.aws_region)
            && config.endpoint_url_s3.is_none()
        {
            self.warnings.push(format!(
                "ENV0_S3_LOG_SSE_KMS_KEY_ID is a key in {region}, and ENV0_S3_LOG_AWS_REGION is {}: S3 takes keys of the \
                 bucket's region only; name a key of that region",
                config.aws_region
            ));
        }
        if config.endpoint_url_s3.is_some() {
            self.advise_of_a_store_elsewhere(config);
        }
        if let Some(class @ ("GLACIER" | "DEEP_ARCHIVE")) = config.storage_class.as_deref()
            && config.endpoint_url_s3.is_none()
        {
            self.warnings.push(format!(
                "ENV0_S3_LOG_STORAGE_CLASS={class}: each object must be restored, in hours, before anybody can read it (queries, \
                 verify with bodies); choose GLACIER_IR, or a lifecycle rule that moves objects later, unless you mean that"
            ));
        }
        let is_pattern = |entry: &&String| *entry != "*" && entry.contains(['*', ';', '?', '|']);
        if let Some(entry) = config.network.no_proxy.iter().find(is_pattern) {
            self.warnings.push(format!(
                "NO_PROXY has {entry:?}, which matches no host; expected hosts, domains as .example.com or *.example.com, \
                 addresses, networks as 10.0.0.0/8, or *, with commas between"
            ));
        }
        if !config.spool_dir.is_absolute() {
            self.warnings.push(format!(
                "ENV0_S3_LOG_SPOOL_DIR={:?} is not a path in full: the spool is wherever the daemon is started, and \
                 events that wait in another one stay there; write the path from / on",
                config.spool_dir
            ));
        }
        if config.log_filter.take_if(|filter| !tells_our_level(filter)).is_some() {
            self.warnings.push(
                "RUST_LOG sets no level for this daemon's own lines, and is ignored; expected error, warn, info, debug, \
                 trace or off, or a list of filters such as warn,env0_s3_logs=debug"
                    .to_owned(),
            );
        }
    }

    /// Warns of values that AWS would refuse, and that another store may have.
    fn advise_of_a_store_elsewhere(&mut self, config: &Config) {
        let store = self.endpoint_variable("AWS_ENDPOINT_URL_S3");
        if let Some(class) = config.storage_class.as_deref().filter(|class| aws::storage_class(class).is_err()) {
            let nearest = aws::nearest_storage_class(class);
            self.warnings.push(format!(
                "ENV0_S3_LOG_STORAGE_CLASS={class} is no class of S3's (nearest is {nearest}): right only if the store of \
                 {store} has a class of that name; see its documentation"
            ));
        }
        if let Some((owner, digits)) =
            config.expected_bucket_owner.as_deref().and_then(|owner| Some((owner, aws::digits_of_account(owner)?)))
        {
            self.warnings.push(format!(
                "ENV0_S3_LOG_EXPECTED_BUCKET_OWNER={owner} is no account of AWS's, which would be {digits}: right only if \
                 the store of {store} writes it so; see its documentation"
            ));
        }
    }
}

/// The part of AWS that a region is in, by the beginning of its name; roles of one are unknown in the others.
fn partition_of(region: &str) -> &'static str {
    const PARTITIONS: [(&str, &str); 5] = [
        ("cn-", "aws-cn"),
        ("us-gov-", "aws-us-gov"),
        ("us-iso-", "aws-iso"),
        ("us-isob-", "aws-iso-b"),
        ("eusc-", "aws-eusc"),
    ];
    PARTITIONS.into_iter().find(|(beginning, _)| region.starts_with(beginning)).map_or("aws", |(_, name)| name)
}

/// Whether a list of filters can be read and sets a level for this project's lines. A word that is no level (`Warning`)
/// counts as the name of another crate, and would silence every line, errors included.
fn tells_our_level(filter: &str) -> bool {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |word: &str| {
        LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word)) || matches!(word, "0" | "1" | "2" | "3" | "4" | "5")
    };
    let target = |directive: &str| directive.split(['=', '[']).next().unwrap_or_default().to_owned();
    let directives = || filter.split(',').map(str::trim);
    // `env0-s3-logs` is the program's name; the target is its crate's, with underscores.
    let is_slip = |directive| {
        let target: String = target(directive);
        !target.starts_with(OWN_TARGET) && target.replace('-', "_").starts_with(OWN_TARGET)
    };
    EnvFilter::try_new(filter).is_ok()
        && !directives().any(is_slip)
        && directives().any(|directive| {
            is_level(directive) || target(directive).starts_with(OWN_TARGET) || directive.starts_with('[')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_would_silence_errors_by_a_slip_is_not_taken() {
        for taken in ["info", "WARN", "off", "hyper=debug,warn", "env0_s3_logs=trace", "[request]=debug", "2"] {
            assert!(tells_our_level(taken), "{taken}");
        }
        for not_taken in [
            "Warning",
            "debg",
            "7",
            "info;debug",
            "info,foo=bar=baz",
            "hyper=debug",
            "",
            "env0-s3-logs=debug",
            "info,env0-s3-logs=debug",
        ] {
            assert!(!tells_our_level(not_taken), "{not_taken}");
        }
    }
}
