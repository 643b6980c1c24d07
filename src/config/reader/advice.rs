//! Warnings of values that are allowed, and that hardly anybody can have meant.

use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::{Reader, Texts, shown};
use crate::batch::LogType;
use crate::config::values::aws;
use crate::config::{Config, values, variables};

/// Most events are longer.
const SMALL_EVENT_BYTES: usize = 1024;
/// From this age of an event on the alert NotUploading fires, though nothing fails.
const LONG_AGE: Duration = Duration::from_secs(900);
/// A batch that is open for less is rather a number of seconds that was written with another unit.
const SHORT_AGE: Duration = Duration::from_secs(1);
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

    /// Warns of values that hardly anybody can have meant, and drops a log filter that would silence all lines.
    /// `config` has been judged.
    pub(super) fn advise(&mut self, config: &mut Config) {
        let advice = [
            self.small_size("ENV0_S3_LOG_MAX_EVENT_BYTES", config.max_event_bytes),
            self.small_size("ENV0_S3_LOG_MAX_BODY_BYTES", config.max_body_bytes),
            self.small_size("ENV0_S3_LOG_MAX_INFLIGHT_BYTES", config.max_inflight_bytes),
            self.memory_smaller_than_a_body(config),
            self.spool_smaller_than_an_event(config),
            long_age(config),
            short_age(config),
            path_that_repeats_the_bucket(config),
            path_with_a_log_type(config),
            path_with_a_template(config),
            directory_bucket(config),
            pulled_id_that_is_none(config),
            self.subject_of_a_pod(config),
            certificate_without_a_port(config),
            self.nobody_else_hands_over(config),
            key_in_another_region(config),
            self.endpoint_in_another_region(config),
            self.unknown_storage_class(config),
            self.owner_that_is_no_account(config),
            slow_storage_class(config),
            proxy_exception_for_no_host(config),
            relative_spool(config),
            drop_silent_filter(config),
        ];
        self.warnings.extend(advice.into_iter().flatten());
    }

    /// The address is the default's, so nobody has meant that deployments run on this machine. A pull has no sender that
    /// would notice.
    fn nobody_else_hands_over(&self, config: &Config) -> Option<String> {
        let has_another =
            config.oidc_token.is_some() || config.oidc_token_file.is_some() || config.oidc_token_url.is_some();
        let waits = config.pull.is_some() && config.takes_hand_overs() && !has_another;
        let address = config.listen_addr;
        (waits && address.ip().is_loopback() && !self.is_given("ENV0_S3_LOG_LISTEN_ADDR")).then(|| {
            format!(
                "ENV0_S3_LOG_LISTEN_ADDR is {address}, which no deployment on another machine reaches to hand a token over: \
                 set ENV0_S3_LOG_LISTEN_ADDR=0.0.0.0:{}, or keep a token in ENV0_S3_LOG_OIDC_TOKEN_FILE",
                address.port()
            )
        })
    }

    fn small_size(&self, name: &str, bytes: usize) -> Option<String> {
        (bytes < SMALL_EVENT_BYTES && self.is_given(name)).then(|| {
            let bytes = values::show_size(bytes as u64);
            format!("{name}={bytes}: most events are longer, and will be refused; a size may have a unit, such as 1MiB")
        })
    }

    fn spool_smaller_than_an_event(&self, config: &Config) -> Option<String> {
        let event = config.max_event_bytes as u64;
        (config.spool_max_bytes < event && self.is_given("ENV0_S3_LOG_SPOOL_MAX_BYTES")).then(|| {
            let [spool, event] = [config.spool_max_bytes, event].map(values::show_size);
            format!(
                "ENV0_S3_LOG_SPOOL_MAX_BYTES={spool} is less than one event may take \
                 (ENV0_S3_LOG_MAX_EVENT_BYTES={event}): longer ones will be refused; a size may have a unit, such as 10GiB"
            )
        })
    }

    fn memory_smaller_than_a_body(&self, config: &Config) -> Option<String> {
        let is_the_limit = config.max_body_variable == "ENV0_S3_LOG_MAX_INFLIGHT_BYTES"
            && config.max_inflight_bytes >= SMALL_EVENT_BYTES
            && !self.is_given("ENV0_S3_LOG_MAX_BODY_BYTES");
        is_the_limit.then(|| {
            let inflight = values::show_size(config.max_inflight_bytes as u64);
            format!(
                "ENV0_S3_LOG_MAX_INFLIGHT_BYTES={inflight} is less than a body may have by default, so larger ones are refused; \
                 raise it, or set ENV0_S3_LOG_MAX_BODY_BYTES={inflight} if you mean that"
            )
        })
    }

    /// Only env0's tokens are let in, unless another issuer is named.
    fn subject_of_a_pod(&self, config: &Config) -> Option<String> {
        let subject = config.oidc_subjects.iter().find(|subject| subject.starts_with("system:serviceaccount:"))?;
        (!self.is_given("ENV0_S3_LOG_OIDC_ISSUER")).then(|| {
            format!(
                "ENV0_S3_LOG_OIDC_SUBJECT={subject} is a pod's, and tokens that are handed over have to be env0's, whose \
                 subjects are such as auth0|0123456789abcdef01234567; a pod's own token is named by \
                 ENV0_S3_LOG_OIDC_TOKEN_FILE, and needs no subject here"
            )
        })
    }

    /// AWS would refuse the class; another store may have it.
    fn unknown_storage_class(&self, config: &Config) -> Option<String> {
        let class = config.storage_class.as_deref().filter(|class| aws::storage_class(class).is_err())?;
        let (store, nearest) = (self.other_store(config)?, aws::nearest_storage_class(class));
        Some(format!(
            "ENV0_S3_LOG_STORAGE_CLASS={class} is no class of S3's (nearest is {nearest}): right only if the store of \
             {store} has a class of that name; see its documentation"
        ))
    }

    /// AWS would refuse the owner; another store may have it.
    fn owner_that_is_no_account(&self, config: &Config) -> Option<String> {
        let owner = config.expected_bucket_owner.as_deref()?;
        let (store, digits) = (self.other_store(config)?, aws::digits_of_account(owner)?);
        Some(format!(
            "ENV0_S3_LOG_EXPECTED_BUCKET_OWNER={owner} is no account of AWS's, which would be {digits}: right only if \
             the store of {store} writes it so; see its documentation"
        ))
    }

    fn endpoint_in_another_region(&self, config: &Config) -> Option<String> {
        let region = aws::region_of_endpoint(config.endpoint_url_s3.as_deref()?)?;
        (region != config.aws_region).then(|| {
            format!(
                "{} is the endpoint of {region}, and ENV0_S3_LOG_AWS_REGION is {}: S3 refuses what is signed for another \
                 region; at AWS leave the endpoint out",
                self.endpoint_variable("AWS_ENDPOINT_URL_S3"),
                config.aws_region
            )
        })
    }

    /// The variable that names a store which may not be AWS.
    fn other_store(&self, config: &Config) -> Option<&'static str> {
        config.endpoint_url_s3.as_ref().map(|_| self.endpoint_variable("AWS_ENDPOINT_URL_S3"))
    }
}

fn long_age(config: &Config) -> Option<String> {
    (config.batch_max_age > LONG_AGE).then(|| {
        format!(
            "ENV0_S3_LOG_BATCH_MAX_AGE is {:?}: an event can be so old before it is in S3, and the alert NotUploading \
             fires after 15 minutes; a number without a unit is seconds",
            config.batch_max_age
        )
    })
}

fn short_age(config: &Config) -> Option<String> {
    (config.batch_max_age < SHORT_AGE && config.endpoint_url_s3.is_none()).then(|| {
        format!(
            "ENV0_S3_LOG_BATCH_MAX_AGE is {:?}: nearly every event becomes an object of its own, and AWS bills each PUT; a \
             duration may have a unit, such as 60s",
            config.batch_max_age
        )
    })
}

fn path_with_a_log_type(config: &Config) -> Option<String> {
    let path = &config.bucket_path;
    path.split('/').any(|part| LogType::ALL.iter().any(|log_type| log_type.as_str() == part)).then(|| {
        format!(
            "ENV0_S3_LOG_BUCKET_PATH={path:?} has a log type in it, and each key has its log type behind the path anyway; \
             leave it out, unless you mean that"
        )
    })
}

fn path_with_a_template(config: &Config) -> Option<String> {
    let path = &config.bucket_path;
    ["%Y", "%m", "%d", "{", "yyyy", "YYYY"].iter().any(|template| path.contains(template)).then(|| {
        format!(
            "ENV0_S3_LOG_BUCKET_PATH={path:?} is taken as it is written: nothing in it is replaced, and each key has year, \
             month and day behind the path anyway; leave them out, unless you mean that"
        )
    })
}

fn directory_bucket(config: &Config) -> Option<String> {
    let bucket = &config.bucket_name;
    (bucket.ends_with("--x-s3") && config.endpoint_url_s3.is_none()).then(|| {
        format!(
            "ENV0_S3_LOG_BUCKET_NAME={bucket} is a directory bucket's, which this daemon has not been tried with: its role \
             needs s3express:CreateSession, and GetBucketLocation is not known there; take a general-purpose bucket"
        )
    })
}

fn pulled_id_that_is_none(config: &Config) -> Option<String> {
    let ids = &config.pull.as_ref()?.organization_ids;
    let other: Vec<_> = ids.iter().filter(|id| values::organization_ids(id).is_err()).map(String::as_str).collect();
    (!other.is_empty()).then(|| {
        format!(
            "ENV0_S3_LOG_PULL_ORGANIZATION_ID has {}: ids of env0's organizations are UUIDs, as in the address of env0's \
             Organization Settings; a name is none",
            other.join(", ")
        )
    })
}

fn path_that_repeats_the_bucket(config: &Config) -> Option<String> {
    let bucket = &*config.bucket_name;
    (!bucket.is_empty() && config.bucket_path.split('/').next() == Some(bucket)).then(|| {
        format!(
            "ENV0_S3_LOG_BUCKET_PATH={:?} begins with the bucket's name, and every key in the bucket will, \
             too; leave it out, unless you mean that",
            config.bucket_path
        )
    })
}

fn certificate_without_a_port(config: &Config) -> Option<String> {
    (config.tls.is_some() && !config.ingest).then(|| {
        "ENV0_S3_LOG_TLS_CERT_FILE has no effect: nobody may send events, so no port is opened for them; to open \
         it, set ENV0_S3_LOG_OIDC_ORGANIZATION_ID or ENV0_S3_LOG_INGEST_TOKEN_FILE"
            .to_owned()
    })
}

fn key_in_another_region(config: &Config) -> Option<String> {
    // `arn:aws:kms:<region>:…`
    let region = config.sse_kms_key_id.as_deref()?.strip_prefix("arn:")?.split(':').nth(2)?;
    (region != config.aws_region && config.endpoint_url_s3.is_none()).then(|| {
        format!(
            "ENV0_S3_LOG_SSE_KMS_KEY_ID is a key in {region}, and ENV0_S3_LOG_AWS_REGION is {}: S3 takes keys of the \
             bucket's region only; name a key of that region",
            config.aws_region
        )
    })
}

fn slow_storage_class(config: &Config) -> Option<String> {
    let class = config.storage_class.as_deref()?;
    (matches!(class, "GLACIER" | "DEEP_ARCHIVE") && config.endpoint_url_s3.is_none()).then(|| {
        format!(
            "ENV0_S3_LOG_STORAGE_CLASS={class}: each object must be restored, in hours, before anybody can read it (queries, \
             verify with bodies); choose GLACIER_IR, or a lifecycle rule that moves objects later, unless you mean that"
        )
    })
}

fn proxy_exception_for_no_host(config: &Config) -> Option<String> {
    let is_pattern = |entry: &&String| *entry != "*" && entry.contains(['*', ';', '?', '|']);
    let entry = shown("NO_PROXY", config.network.no_proxy.iter().find(is_pattern)?);
    Some(format!(
        "NO_PROXY has {entry:?}, which matches no host; expected hosts, domains as .example.com or *.example.com, \
         addresses, networks as 10.0.0.0/8, or *, with commas between"
    ))
}

fn relative_spool(config: &Config) -> Option<String> {
    (!config.spool_dir.is_absolute()).then(|| {
        format!(
            "ENV0_S3_LOG_SPOOL_DIR={:?} is not a path in full: the spool is wherever the daemon is started, and \
             events that wait in another one stay there; write the path from / on",
            config.spool_dir
        )
    })
}

/// Drops a log filter that would silence all lines, errors too.
fn drop_silent_filter(config: &mut Config) -> Option<String> {
    config.log_filter.take_if(|filter| !tells_our_level(filter)).map(|_| {
        "RUST_LOG sets no level for this daemon's own lines, and is ignored; expected error, warn, info, debug, \
         trace or off, or a list of filters such as warn,env0_s3_logs=debug"
            .to_owned()
    })
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
