//! From the environment to a [`Config`], with everything that is wrong gathered on the way.

mod advice;
mod cloudwatch;
mod ingest;
mod pull;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use super::effective::{Config, LogFormat, Network, Purpose, Setting, Source, TlsFiles};
use super::files::{self, quoted, shown_path};
use super::given::{OwnVariables, SharedVariables};
use super::slips;
use super::unread;
use super::values::{self, Parsed, aws};
use super::variables::{self, PREFIX, VARIABLES, Variable};

use crate::batch::{Codec, LogType};

const REDACTED: &str = "[redacted]";
/// A longer value is cut in an error: it is a mistake, and one line stays one line.
const SHOWN_VALUE_MAX_CHARS: usize = 120;
/// Variables whose values may hold a user name and password, though these are refused.
const URLS: [&str; 7] = [
    "ENV0_S3_LOG_OIDC_ISSUER",
    "ENV0_S3_LOG_API_URL",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL_STS",
    "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS",
    "NO_PROXY",
];
const PROXIES: [&str; 3] = ["HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"];

/// Text by the name of its variable; trimmed, never empty.
type Given = BTreeMap<&'static str, String>;

#[derive(Default)]
pub(super) struct Reader {
    pub(super) errors: Vec<String>,
    pub(super) warnings: Vec<String>,
    pub(super) unknown: Vec<String>,
    shown: BTreeMap<&'static str, String>,
    /// What counts in place of a value, and why.
    counts: BTreeMap<&'static str, (String, String)>,
    /// Variables that have an error already: the first one names the cause.
    refused: BTreeSet<&'static str>,
    /// Variables that were given in lower case.
    lower_case: BTreeSet<&'static str>,
}

impl Reader {
    /// The variables of the table that are set. Foreign ones are not looked at, whatever bytes they hold.
    pub(super) fn known(&mut self, vars: impl IntoIterator<Item = (OsString, OsString)>, purpose: Purpose) -> Given {
        let (mut given, mut foreign) = (Given::new(), Vec::new());
        let mut vars: Vec<_> = vars.into_iter().collect();
        // `https_proxy` wins over `HTTPS_PROXY`, as with curl: it sorts last, and so is written last.
        vars.sort();
        for (name, value) in vars {
            let name = name.to_string_lossy();
            let canonical = PROXIES.into_iter().find(|proxy| proxy.to_ascii_lowercase() == name).unwrap_or(&name);
            let Some(variable) = variables::find(canonical) else {
                let is_set = !value.to_string_lossy().trim().is_empty();
                if let Some(meant) = variables::slip(&name).filter(|_| is_set) {
                    self.unknown.push(unknown(&name, meant));
                } else if let Some(value) = value.to_str().map(str::trim)
                    && is_set
                    && unread::is_known(&name)
                {
                    foreign.push((name.into_owned(), value.to_owned()));
                }
                continue;
            };
            let Ok(value) = value.into_string() else {
                self.errors.push(format!("{name}: not UTF-8; expected text, for example {}", example(variable)));
                continue;
            };
            let value = value.trim();
            if !value.is_empty() && canonical != name {
                self.lower_case.insert(variable.name);
            }
            if !value.is_empty() && given.insert(variable.name, value.to_owned()).is_some_and(|first| first != value) {
                self.warnings
                    .push(format!("{canonical} is set to another value than {name}, which counts; unset one of them"));
            }
        }
        self.warnings.extend(unread::warning(&foreign, &given, purpose));
        self.tell_examples(&given);
        self.shown = given.iter().map(|(name, value)| (*name, shown(name, value))).collect();
        for (name, value) in &given {
            if let Some(problem) = slips::not_meant(value).or_else(|| files::not_its_path(name, value)) {
                self.refuse(name, &format!("expected {problem}"));
            }
        }
        given
    }

    /// One setting for every variable of the table.
    pub(super) fn settings(&self) -> Vec<Setting> {
        let setting = |variable: &Variable| {
            let (value, source) = match (self.shown.get(variable.name), variable.default) {
                (Some(value), _) => (value.clone(), Source::Environment),
                (None, Some(default)) => (default.to_owned(), Source::Default),
                (None, None) => (String::new(), Source::Unset),
            };
            match self.counts.get(variable.name) {
                Some((counts, why)) if *counts != value => Setting {
                    variable: variable.name,
                    value: counts.clone(),
                    source,
                    note: Some(format!("says {value}, {why}")),
                },
                _ => Setting { variable: variable.name, value, source, note: None },
            }
        };
        VARIABLES.iter().map(setting).collect()
    }

    fn is_given(&self, name: &str) -> bool {
        self.shown.contains_key(name)
    }

    /// Warns of those of `names` that are set: they do nothing without the two variables `needed`.
    fn warn_of_idle<const N: usize>(&mut self, names: [&str; N], [first, second]: [&str; 2]) {
        for name in names {
            if self.is_given(name) {
                self.warnings.push(format!("{name} does nothing without {first} and {second}; set these, or unset it"));
            }
        }
    }

    fn refuse(&mut self, name: &'static str, problem: &str) {
        if !self.refused.insert(name) {
            return;
        }
        let cut = |value: &String| value.chars().take(SHOWN_VALUE_MAX_CHARS).collect::<String>();
        let value = self.shown.get(name).map(|value| format!("={}", quoted(&cut(value)))).unwrap_or_default();
        let example = match variables::find(name) {
            Some(variable) if !problem.contains(files::IN_FILE) => format!("; example: {}", example(variable)),
            _ => String::new(),
        };
        let name = if self.lower_case.contains(name) { name.to_lowercase() } else { name.to_owned() };
        self.errors.push(format!("{name}{value}: {problem}{example}"));
    }

    /// The value of a variable that has no default.
    fn optional<T>(
        &mut self,
        name: &'static str,
        given: Option<String>,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Option<T> {
        let given = given?;
        // `known` has refused these already, and the value counts for nothing.
        let parsed = slips::not_meant(&given).map_or_else(|| parse(&given), Err);
        match parsed {
            Ok(value) => Some(value),
            Err(expected) => {
                self.refuse(name, &format!("expected {expected}"));
                None
            }
        }
    }

    /// The value of a variable that has a default; the default, too, where the given one is refused.
    pub(super) fn value<T>(
        &mut self,
        name: &'static str,
        given: Option<String>,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> T {
        let default = || {
            let default = variables::find(name).and_then(|variable| variable.default);
            default
                .and_then(|default| parse(default).ok())
                .expect("every default parses: a test reads an empty environment")
        };
        self.optional(name, given, &parse).unwrap_or_else(default)
    }

    /// A variable that must be set; empty where it isn't, or is refused.
    fn required(
        &mut self,
        name: &'static str,
        given: Option<String>,
        parse: impl Fn(&str) -> Parsed<String>,
    ) -> String {
        if given.is_none() {
            self.refuse(name, "required, and not set");
        }
        self.optional(name, given, parse).unwrap_or_default()
    }

    fn path(&mut self, name: &'static str, given: Option<String>) -> Option<PathBuf> {
        self.optional(name, given, values::path).map(PathBuf::from)
    }

    fn secret(
        &mut self,
        name: &'static str,
        given: Option<String>,
        parse: impl Fn(&str) -> Parsed<String>,
    ) -> Option<SecretString> {
        self.optional(name, given, parse).map(SecretString::from)
    }

    /// All values, and the rules that hold between them.
    pub(super) fn config(&mut self, given: Given, purpose: Purpose) -> Config {
        const ALL_STRINGS: &str = "every field is an optional string, and no name is given twice";
        let given = given.into_iter().map(|(name, value)| (name.to_owned(), value));
        let (own, shared): (Vec<_>, Vec<_>) = given.partition(|(name, _)| name.starts_with(PREFIX));
        let own: OwnVariables = envy::prefixed(PREFIX).from_iter(own).expect(ALL_STRINGS);
        let shared: SharedVariables = envy::from_iter(shared).expect(ALL_STRINGS);

        // Other stores need not keep AWS's rules for names.
        let own_endpoint = |specific: &Option<String>| specific.is_some() || shared.aws_endpoint_url.is_some();
        let sts_is_elsewhere = own_endpoint(&shared.aws_endpoint_url_sts);
        let parse_role = if sts_is_elsewhere { aws::role_arn_elsewhere } else { aws::role_arn };
        let elsewhere = own_endpoint(&shared.aws_endpoint_url_s3);
        // AWS's own STS is asked in the bucket's region.
        let parse_region = if elsewhere && sts_is_elsewhere { aws::region_elsewhere } else { aws::region };
        let parse_bucket = if elsewhere { aws::bucket_name_elsewhere } else { aws::bucket_name };
        let parse_key = if elsewhere { aws::kms_key_id_elsewhere } else { aws::kms_key_id };
        let parse_owner = if elsewhere { aws::account_id_elsewhere } else { aws::account_id };
        let parse_class = if elsewhere { aws::storage_class_elsewhere } else { aws::storage_class };
        let role_arn = match purpose {
            Purpose::Verify => self.optional("ENV0_S3_LOG_ROLE_ARN", own.role_arn, parse_role).unwrap_or_default(),
            _ => self.required("ENV0_S3_LOG_ROLE_ARN", own.role_arn, parse_role),
        };
        let pull = self.pull(
            [
                ("ENV0_API_KEY_ID", shared.env0_api_key_id, "ENV0_API_KEY_ID_FILE", shared.env0_api_key_id_file),
                (
                    "ENV0_API_KEY_SECRET",
                    shared.env0_api_key_secret,
                    "ENV0_API_KEY_SECRET_FILE",
                    shared.env0_api_key_secret_file,
                ),
            ],
            [own.pull, own.pull_from, own.pull_interval, own.pull_organization_id, own.api_url],
        );
        let common_endpoint = self.optional("AWS_ENDPOINT_URL", shared.aws_endpoint_url, values::endpoint_url);
        let cloudwatch = self.cloudwatch(
            [
                shared.env0_cloudwatch_role_arn,
                shared.env0_cloudwatch_aws_region,
                shared.env0_cloudwatch_session_duration,
                shared.env0_cloudwatch_log_group_name_prefix,
                shared.aws_endpoint_url_cloudwatch_logs,
            ],
            parse_role,
            common_endpoint.clone(),
        );
        let config = Config {
            role_arn,
            cloudwatch,
            bucket_name: self.required("ENV0_S3_LOG_BUCKET_NAME", own.bucket_name, parse_bucket),
            aws_region: self.required("ENV0_S3_LOG_AWS_REGION", own.aws_region, parse_region),
            bucket_path: self
                .optional("ENV0_S3_LOG_BUCKET_PATH", own.bucket_path, aws::bucket_path)
                .unwrap_or_default(),
            session_duration: self.value(
                "ENV0_S3_LOG_SESSION_DURATION",
                own.session_duration,
                values::duration(Duration::from_secs(900), Duration::from_secs(43_200)),
            ),
            oidc_token: self.secret("ENV0_OIDC_TOKEN", shared.env0_oidc_token, values::oidc_token),
            oidc_token_file_variable: match own.oidc_token_file {
                Some(_) => "ENV0_S3_LOG_OIDC_TOKEN_FILE",
                None => "ENV0_OIDC_TOKEN_FILE",
            },
            oidc_token_file: {
                let own_file = self.path("ENV0_S3_LOG_OIDC_TOKEN_FILE", own.oidc_token_file);
                let file = self.path("ENV0_OIDC_TOKEN_FILE", shared.env0_oidc_token_file);
                own_file.or(file)
            },
            oidc_token_url: {
                let url = self.secret("ENV0_S3_LOG_OIDC_TOKEN_URL", own.oidc_token_url, values::secret_url);
                url.or_else(|| self.token_url_of_file(own.oidc_token_url_file))
            },
            oidc_issuer: self.value("ENV0_S3_LOG_OIDC_ISSUER", own.oidc_issuer, values::issuer_url),
            oidc_subjects: self
                .optional("ENV0_S3_LOG_OIDC_SUBJECT", own.oidc_subject, values::subjects)
                .unwrap_or_default(),
            oidc_organization_ids: self
                .optional("ENV0_S3_LOG_OIDC_ORGANIZATION_ID", own.oidc_organization_id, values::organization_ids)
                .unwrap_or_default(),
            allow_http: self.value("ENV0_S3_LOG_ALLOW_HTTP", own.allow_http, values::boolean),
            listen_addr: self.value("ENV0_S3_LOG_LISTEN_ADDR", own.listen_addr, values::socket_address),
            admin_addr: self.value("ENV0_S3_LOG_ADMIN_ADDR", own.admin_addr, values::socket_address),
            ingest_auth_required: self.value(
                "ENV0_S3_LOG_INGEST_AUTH",
                own.ingest_auth,
                values::one_of(&[("required", true), ("none", false)]),
            ),
            ingest_token: self.secret("ENV0_S3_LOG_INGEST_TOKEN", own.ingest_token, values::ingest_token),
            ingest_token_file: self.path("ENV0_S3_LOG_INGEST_TOKEN_FILE", own.ingest_token_file),
            default_type: self.value(
                "ENV0_S3_LOG_DEFAULT_TYPE",
                own.default_type,
                values::one_of(&LogType::ALL.map(|log_type| (log_type.as_str(), log_type))),
            ),
            redact: self.value("ENV0_S3_LOG_REDACT", own.redact, values::boolean),
            tls: {
                let cert = self.path("ENV0_S3_LOG_TLS_CERT_FILE", own.tls_cert_file);
                let key = self.path("ENV0_S3_LOG_TLS_KEY_FILE", own.tls_key_file);
                let client_ca = self.path("ENV0_S3_LOG_TLS_CLIENT_CA_FILE", own.tls_client_ca_file);
                self.tls(cert, key, client_ca)
            },
            spool_dir: self.value("ENV0_S3_LOG_SPOOL_DIR", own.spool_dir, values::own_folder).into(),
            spool_max_bytes: self.value("ENV0_S3_LOG_SPOOL_MAX_BYTES", own.spool_max_bytes, values::size(u64::MAX)),
            batch_max_bytes: self.value(
                "ENV0_S3_LOG_BATCH_MAX_BYTES",
                own.batch_max_bytes,
                values::size(aws::OBJECT_MAX_BYTES),
            ),
            batch_max_age: self.value(
                "ENV0_S3_LOG_BATCH_MAX_AGE",
                own.batch_max_age,
                values::duration(Duration::from_millis(1), Duration::from_secs(86_400)),
            ),
            max_body_bytes: self.memory("ENV0_S3_LOG_MAX_BODY_BYTES", own.max_body_bytes),
            max_body_variable: "ENV0_S3_LOG_MAX_BODY_BYTES",
            max_event_bytes: self.memory("ENV0_S3_LOG_MAX_EVENT_BYTES", own.max_event_bytes),
            max_inflight_bytes: self.memory("ENV0_S3_LOG_MAX_INFLIGHT_BYTES", own.max_inflight_bytes),
            max_connections: self.value(
                "ENV0_S3_LOG_MAX_CONNECTIONS",
                own.max_connections,
                values::count(1, 1_000_000),
            ),
            upload_concurrency: self.value(
                "ENV0_S3_LOG_UPLOAD_CONCURRENCY",
                own.upload_concurrency,
                values::count(1, 64),
            ),
            compression: self.value(
                "ENV0_S3_LOG_COMPRESSION",
                own.compression,
                values::one_of(&[("none", Codec::None), ("gzip", Codec::Gzip), ("zstd", Codec::Zstd)]),
            ),
            storage_class: self.optional("ENV0_S3_LOG_STORAGE_CLASS", own.storage_class, parse_class),
            sse_kms_key_id: self.optional("ENV0_S3_LOG_SSE_KMS_KEY_ID", own.sse_kms_key_id, parse_key),
            expected_bucket_owner: self.optional(
                "ENV0_S3_LOG_EXPECTED_BUCKET_OWNER",
                own.expected_bucket_owner,
                parse_owner,
            ),
            object_tags: self.optional("ENV0_S3_LOG_OBJECT_TAGS", own.object_tags, aws::object_tags),
            signing_key_file: self.path("ENV0_S3_LOG_SIGNING_KEY_FILE", own.signing_key_file),
            shutdown_grace: self.value(
                "ENV0_S3_LOG_SHUTDOWN_GRACE",
                own.shutdown_grace,
                values::duration(Duration::from_secs(1), Duration::from_secs(3600)),
            ),
            ingest: true,
            pull,
            log_level: {
                let levels = ["off", "error", "warn", "info", "debug", "trace"].map(|level| (level, level));
                self.value("ENV0_S3_LOG_LOG_LEVEL", own.log_level, values::one_of(&levels)).to_owned()
            },
            log_filter: self.optional("RUST_LOG", shared.rust_log, values::text),
            log_format: self.value(
                "ENV0_S3_LOG_LOG_FORMAT",
                own.log_format,
                values::one_of(&[("json", LogFormat::Json), ("text", LogFormat::Text)]),
            ),
            endpoint_url_s3: self
                .optional("AWS_ENDPOINT_URL_S3", shared.aws_endpoint_url_s3, values::endpoint_url)
                .or_else(|| common_endpoint.clone()),
            endpoint_url_sts: self
                .optional("AWS_ENDPOINT_URL_STS", shared.aws_endpoint_url_sts, values::endpoint_url)
                .or_else(|| common_endpoint.clone()),
            force_path_style: self.value("ENV0_S3_LOG_FORCE_PATH_STYLE", own.force_path_style, values::boolean),
            network: Network {
                https_proxy: self.secret("HTTPS_PROXY", shared.https_proxy, values::proxy_url),
                http_proxy: self.secret("HTTP_PROXY", shared.http_proxy, values::proxy_url),
                no_proxy: self.optional("NO_PROXY", shared.no_proxy, values::no_proxy).unwrap_or_default(),
                ca_file: {
                    let bundle = self.path("AWS_CA_BUNDLE", shared.aws_ca_bundle);
                    let cert_file = self.path("SSL_CERT_FILE", shared.ssl_cert_file);
                    let named = |name| move |path| (name, path);
                    bundle.map(named("AWS_CA_BUNDLE")).or(cert_file.map(named("SSL_CERT_FILE")))
                },
            },
        };
        let mut config = self.judge(config, purpose);
        self.advise(&mut config);
        config
    }

    /// A limit on memory.
    fn memory(&mut self, name: &'static str, given: Option<String>) -> usize {
        let bytes = self.value(name, given, values::size(aws::OBJECT_MAX_BYTES));
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    fn token_url_of_file(&mut self, file: Option<String>) -> Option<SecretString> {
        const NAME: &str = "ENV0_S3_LOG_OIDC_TOKEN_URL_FILE";
        let file = self.path(NAME, file)?;
        files::value_of_file(&file, values::secret_url).map_err(|problem| self.refuse(NAME, &problem)).ok()
    }

    fn tls(&mut self, cert: Option<PathBuf>, key: Option<PathBuf>, client_ca: Option<PathBuf>) -> Option<TlsFiles> {
        const CERT: &str = "ENV0_S3_LOG_TLS_CERT_FILE";
        const KEY: &str = "ENV0_S3_LOG_TLS_KEY_FILE";
        match (cert, key) {
            (Some(cert), Some(key)) => return Some(TlsFiles { cert, key, client_ca }),
            (Some(_), None) => self.refuse(KEY, &format!("not set, and needed beside {CERT}")),
            (None, Some(_)) => self.refuse(CERT, &format!("not set, and needed beside {KEY}")),
            (None, None) if client_ca.is_some() => {
                self.refuse("ENV0_S3_LOG_TLS_CLIENT_CA_FILE", &format!("works only with {CERT} and {KEY}"));
            }
            (None, None) => {}
        }
        None
    }
}

fn unknown(name: &str, meant: &str) -> String {
    format!("{}: unknown variable; did you mean {meant}? --help tells all of them", name.escape_debug())
}

fn example(variable: &Variable) -> String {
    format!("{}={}", variable.name, variable.example)
}

/// A value as it may be shown: `[redacted]` for a secret or a URL with a user name, a URL without its query, and of a
/// file's variable nothing but a path.
fn shown(name: &str, value: &str) -> String {
    if name.ends_with("_FILE") {
        return shown_path(value).to_owned();
    }
    let secret = variables::find(name).is_none_or(|variable| variable.secret);
    let is_url = value.contains("://") || URLS.contains(&name);
    // An id with a colon has the key's secret behind it.
    let holds_secret = name == "ENV0_API_KEY_ID" && value.contains(':');
    if secret || holds_secret || (is_url && value.contains('@')) {
        return REDACTED.to_owned();
    }
    match value.find(['?', '#']) {
        Some(end) if is_url => format!("{}{REDACTED}", &value[..=end]),
        _ => value.to_owned(),
    }
}
