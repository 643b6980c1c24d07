//! The rules that hold between values.

use super::Reader;
use crate::batch::Codec;
use crate::config::values::{self, aws};
use crate::config::{Config, Purpose};

impl Reader {
    /// Applies them, and refuses what breaks one.
    pub(super) fn judge(&mut self, mut config: Config, purpose: Purpose) -> Config {
        // With an API key and no credentials for senders, no port is opened for events.
        if !["ENV0_API_KEY_ID", "ENV0_API_KEY_ID_FILE"].iter().any(|name| self.is_given(name)) {
            self.counts_as("ENV0_S3_LOG_PULL", "none", "and nothing is pulled without an API key");
        }
        config.ingest = config.pull.is_none() || self.lets_senders_in(&config) || !config.ingest_auth_required;
        if purpose == Purpose::Daemon && config.ingest {
            self.judge_ingest(&config);
        }
        if !config.ingest {
            self.counts_as("ENV0_S3_LOG_LISTEN_ADDR", "", "and nobody may send, so no port is opened");
        }
        if !config.allow_http {
            self.refuse_tokens_in_clear(&config);
        }
        if config.endpoint_url_s3.as_deref().is_some_and(|url| aws::names_bucket(url, &config.bucket_name)) {
            let name = self.endpoint_variable("AWS_ENDPOINT_URL_S3");
            self.refuse(name, "the bucket's name would be in the host twice; expected the endpoint without it");
        }
        self.judge_paths_of_endpoints(&config);
        if config.compression != Codec::None && config.spool_max_bytes <= config.batch_max_bytes {
            let batch = values::show_size(config.batch_max_bytes);
            self.refuse(
                "ENV0_S3_LOG_SPOOL_MAX_BYTES",
                &format!(
                    "leaves no room for events: with ENV0_S3_LOG_COMPRESSION, room for the compressed copy of one batch is \
                     always kept; expected more than ENV0_S3_LOG_BATCH_MAX_BYTES={batch}"
                ),
            );
        }
        let inflight = ("ENV0_S3_LOG_MAX_INFLIGHT_BYTES", config.max_inflight_bytes);
        if inflight.1 < config.max_body_bytes {
            config.max_body_variable = inflight.0;
        }
        config.max_body_bytes = self.at_most(("ENV0_S3_LOG_MAX_BODY_BYTES", config.max_body_bytes), inflight);
        config.max_event_bytes = self.at_most(
            ("ENV0_S3_LOG_MAX_EVENT_BYTES", config.max_event_bytes),
            ("ENV0_S3_LOG_MAX_BODY_BYTES", config.max_body_bytes),
        );
        self.refuse_another_partition(&config);
        config
    }

    fn refuse_tokens_in_clear(&mut self, config: &Config) {
        let in_clear = |url: Option<&str>| url.is_some_and(values::leaves_the_host_in_clear);
        let token_url = config.oidc_token_url.as_ref().map(secrecy::ExposeSecret::expose_secret);
        for (name, url) in [
            ("ENV0_S3_LOG_OIDC_ISSUER", Some(&*config.oidc_issuer)),
            ("ENV0_S3_LOG_OIDC_TOKEN_URL", token_url),
            (self.endpoint_variable("AWS_ENDPOINT_URL_STS"), config.endpoint_url_sts.as_deref()),
            ("ENV0_S3_LOG_API_URL", config.pull.as_ref().map(|pull| &*pull.api_url)),
        ] {
            if in_clear(url) {
                self.refuse(name, "tokens would go over plain http; use https, or set ENV0_S3_LOG_ALLOW_HTTP=true");
            }
        }
    }

    /// Refuses a region in which STS can't know the role.
    fn refuse_another_partition(&mut self, config: &Config) {
        let bucket = ("ENV0_S3_LOG_AWS_REGION", &config.aws_region, "ENV0_S3_LOG_ROLE_ARN", &config.role_arn);
        let cloudwatch = config
            .cloudwatch
            .as_ref()
            .map(|of| ("ENV0_CLOUDWATCH_AWS_REGION", &of.aws_region, "ENV0_CLOUDWATCH_ROLE_ARN", &of.role_arn));
        for (region_name, region, role_name, role) in std::iter::once(bucket).chain(cloudwatch) {
            let of_role = role.split(':').nth(1).unwrap_or_default();
            let of_region = partition_of(region);
            if config.endpoint_url_sts.is_none() && !of_role.is_empty() && of_role != of_region {
                self.refuse(
                    region_name,
                    &format!(
                        "a region of {of_region}, where STS doesn't know {role_name}, a role of {of_role}; expected a region of \
                         {of_role}, or a role that was made in {of_region}"
                    ),
                );
            }
        }
    }

    /// A bucket's name behind the host of S3's endpoint is refused, and any other path warned of: few stores have one.
    fn judge_paths_of_endpoints(&mut self, config: &Config) {
        for (specific, url) in [
            ("AWS_ENDPOINT_URL_S3", config.endpoint_url_s3.as_deref()),
            ("AWS_ENDPOINT_URL_STS", config.endpoint_url_sts.as_deref()),
        ] {
            let name = self.endpoint_variable(specific);
            let path = url.and_then(|url| url.split_once("://")?.1.split_once('/')).map(|(_, path)| path);
            let Some(first) = path.and_then(|path| path.split('/').find(|part| !part.is_empty())) else { continue };
            if specific == "AWS_ENDPOINT_URL_S3" && first == config.bucket_name {
                self.refuse(name, "the bucket's name would be in the path twice; expected the endpoint without it");
                continue;
            }
            let warning = format!(
                "{name} has a path behind its host, and hardly any service has one; leave it out, unless its documentation has it"
            );
            // One variable may be that of both.
            if !self.refused.contains(name) && !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
    }

    /// Notes for `config` that not the value of `name` counts but `counts`, and why.
    fn counts_as(&mut self, name: &'static str, counts: &str, why: &str) {
        self.counts.insert(name, (counts.to_owned(), why.to_owned()));
    }

    /// The variable that the address of a service came from: its own or the common one.
    pub(super) fn endpoint_variable(&self, specific: &'static str) -> &'static str {
        if self.is_given(specific) { specific } else { "AWS_ENDPOINT_URL" }
    }

    /// The smaller of the two limits; warns where the narrower one was set above the wider one.
    fn at_most(&mut self, (name, value): (&'static str, usize), (wider_name, wider): (&'static str, usize)) -> usize {
        if value > wider {
            let [shown, wider] = [value, wider].map(|bytes| values::show_size(bytes as u64));
            self.counts_as(name, &wider, &format!("capped by {wider_name}"));
            if self.is_given(name) {
                self.warnings.push(format!(
                    "{name}={shown} is above {wider_name}={wider}, and counts as {wider}; raise {wider_name}, or lower {name}"
                ));
            }
        }
        value.min(wider)
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
