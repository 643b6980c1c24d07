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

use super::effective::{Config, LogFormat, Network, Purpose, Setting, SettingSource, TlsFiles};
use super::files::{self, quoted, shown_path};
use super::given::{Given, OwnVariables, SharedVariables, Texts};
use super::slips;
use super::unread;
use super::values::{self, Parsed, aws};
use super::variables::{self, VARIABLES, Variable};

use crate::batch::{Codec, LogType};

pub(super) const REDACTED: &str = "[redacted]";
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
const LOG_LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
const LOG_FORMATS: [(&str, LogFormat); 2] = [("json", LogFormat::Json), ("text", LogFormat::Text)];
const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const PROXIES: [&str; 3] = ["HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"];

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
    pub(super) fn known(&mut self, vars: impl IntoIterator<Item = (OsString, OsString)>, purpose: Purpose) -> Texts {
        let (mut given, mut foreign) = (Texts::new(), Vec::new());
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
                (Some(value), _) => (value.clone(), SettingSource::Environment),
                (None, Some(default)) => (default.to_owned(), SettingSource::Default),
                (None, None) => (String::new(), SettingSource::Unset),
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
    fn optional<T>(&mut self, Given { name, text }: Given, parse: impl Fn(&str) -> Parsed<T>) -> Option<T> {
        let text = text?;
        // `known` has refused these already, and the value counts for nothing.
        let parsed = slips::not_meant(&text).map_or_else(|| parse(&text), Err);
        match parsed {
            Ok(value) => Some(value),
            Err(expected) => {
                self.refuse(name, &format!("expected {expected}"));
                None
            }
        }
    }

    /// The value of a variable that has a default; the default, too, where the given one is refused.
    pub(super) fn value<T>(&mut self, given: Given, parse: impl Fn(&str) -> Parsed<T>) -> T {
        let name = given.name;
        let default = || {
            let default = variables::find(name).and_then(|variable| variable.default);
            default
                .and_then(|default| parse(default).ok())
                .expect("every default parses: a test reads an empty environment")
        };
        self.optional(given, &parse).unwrap_or_else(default)
    }

    /// A variable that must be set; empty where it isn't, or is refused.
    fn required(&mut self, given: Given, parse: impl Fn(&str) -> Parsed<String>) -> String {
        if given.text.is_none() {
            self.refuse(given.name, "required, and not set");
        }
        self.optional(given, parse).unwrap_or_default()
    }

    fn path(&mut self, given: Given) -> Option<PathBuf> {
        self.optional(given, values::path).map(PathBuf::from)
    }

    fn secret(&mut self, given: Given, parse: impl Fn(&str) -> Parsed<String>) -> Option<SecretString> {
        self.optional(given, parse).map(SecretString::from)
    }

    /// All values, and the rules that hold between them.
    pub(super) fn config(&mut self, texts: &Texts, purpose: Purpose) -> Config {
        let config = self.values(OwnVariables::among(texts), SharedVariables::among(texts), purpose);
        let mut config = self.judge(config, purpose);
        self.advise(&mut config);
        config
    }

    /// All values, each judged by itself.
    fn values(&mut self, own: OwnVariables, shared: SharedVariables, purpose: Purpose) -> Config {
        let is_elsewhere = |specific: &Given| specific.text.is_some() || shared.aws_endpoint_url.text.is_some();
        let s3_is_elsewhere = is_elsewhere(&shared.aws_endpoint_url_s3);
        let rules = aws::Rules::of(s3_is_elsewhere, is_elsewhere(&shared.aws_endpoint_url_sts));
        let role_arn = match purpose {
            Purpose::Verify => self.optional(own.role_arn, rules.role_arn).unwrap_or_default(),
            _ => self.required(own.role_arn, rules.role_arn),
        };
        let pull = self.pull(
            [
                (shared.env0_api_key_id, shared.env0_api_key_id_file),
                (shared.env0_api_key_secret, shared.env0_api_key_secret_file),
            ],
            [own.pull, own.pull_from, own.pull_interval, own.pull_organization_id, own.api_url],
        );
        let common_endpoint = self.optional(shared.aws_endpoint_url, values::endpoint_url);
        let cloudwatch = self.cloudwatch(
            [
                shared.env0_cloudwatch_role_arn,
                shared.env0_cloudwatch_aws_region,
                shared.env0_cloudwatch_session_duration,
                shared.env0_cloudwatch_log_group_name_prefix,
                shared.aws_endpoint_url_cloudwatch_logs,
            ],
            rules.role_arn,
            common_endpoint.clone(),
        );
        let endpoint =
            |read: &mut Self, own| read.optional(own, values::endpoint_url).or_else(|| common_endpoint.clone());
        let max_body_variable = own.max_body_bytes.name;
        Config {
            role_arn,
            cloudwatch,
            bucket_name: self.required(own.bucket_name, rules.bucket_name),
            aws_region: self.required(own.aws_region, rules.region),
            bucket_path: self.optional(own.bucket_path, aws::bucket_path).unwrap_or_default(),
            session_duration: self.value(own.session_duration, aws::session_duration),
            oidc_token: self.secret(shared.env0_oidc_token, values::oidc_token),
            oidc_token_file: self.first_path(own.oidc_token_file, shared.env0_oidc_token_file),
            oidc_token_url: self.token_url(own.oidc_token_url, own.oidc_token_url_file),
            oidc_issuer: self.value(own.oidc_issuer, values::issuer_url),
            oidc_subjects: self.optional(own.oidc_subject, values::subjects).unwrap_or_default(),
            oidc_organization_ids: self
                .optional(own.oidc_organization_id, values::organization_ids)
                .unwrap_or_default(),
            allow_http: self.value(own.allow_http, values::boolean),
            listen_addr: self.value(own.listen_addr, values::socket_address),
            admin_addr: self.value(own.admin_addr, values::socket_address),
            ingest_auth_required: self.value(own.ingest_auth, values::one_of(&[("required", true), ("none", false)])),
            ingest_token: self.secret(own.ingest_token, values::ingest_token),
            ingest_token_file: self.path(own.ingest_token_file),
            default_type: self.value(own.default_type, values::one_of(&LogType::ALL.map(|of| (of.as_str(), of)))),
            redact: self.value(own.redact, values::boolean),
            tls: self.tls(own.tls_cert_file, own.tls_key_file, own.tls_client_ca_file),
            spool_dir: self.value(own.spool_dir, values::own_folder).into(),
            spool_max_bytes: self.value(own.spool_max_bytes, values::size(u64::MAX)),
            batch_max_bytes: self.value(own.batch_max_bytes, values::size(aws::OBJECT_MAX_BYTES)),
            batch_max_age: self.value(own.batch_max_age, values::duration(MILLISECOND, DAY)),
            max_body_bytes: self.memory(own.max_body_bytes),
            max_body_variable,
            max_event_bytes: self.memory(own.max_event_bytes),
            max_inflight_bytes: self.memory(own.max_inflight_bytes),
            max_connections: self.value(own.max_connections, values::count(1, 1_000_000)),
            upload_concurrency: self.value(own.upload_concurrency, values::count(1, 64)),
            compression: self.value(own.compression, values::one_of(&Codec::ALL.map(|codec| (codec.as_str(), codec)))),
            storage_class: self.optional(own.storage_class, rules.storage_class),
            sse_kms_key_id: self.optional(own.sse_kms_key_id, rules.kms_key_id),
            expected_bucket_owner: self.optional(own.expected_bucket_owner, rules.account_id),
            object_tags: self.optional(own.object_tags, aws::object_tags),
            signing_key_file: self.path(own.signing_key_file),
            shutdown_grace: self.value(own.shutdown_grace, values::duration(SECOND, HOUR)),
            ingest: true,
            pull,
            log_level: self.value(own.log_level, values::one_of(&LOG_LEVELS.map(|level| (level, level)))).to_owned(),
            log_filter: self.optional(shared.rust_log, values::text),
            log_format: self.value(own.log_format, values::one_of(&LOG_FORMATS)),
            endpoint_url_s3: endpoint(self, shared.aws_endpoint_url_s3),
            endpoint_url_sts: endpoint(self, shared.aws_endpoint_url_sts),
            force_path_style: self.value(own.force_path_style, values::boolean),
            network: Network {
                https_proxy: self.secret(shared.https_proxy, values::proxy_url),
                http_proxy: self.secret(shared.http_proxy, values::proxy_url),
                no_proxy: self.optional(shared.no_proxy, values::no_proxy).unwrap_or_default(),
                ca_file: self.first_path(shared.aws_ca_bundle, shared.ssl_cert_file),
            },
        }
    }

    /// A limit on memory.
    fn memory(&mut self, given: Given) -> usize {
        let bytes = self.value(given, values::size(aws::OBJECT_MAX_BYTES));
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// The path of the first of two variables for one file, with the name of the variable that it came from.
    fn first_path(&mut self, first: Given, second: Given) -> Option<(&'static str, PathBuf)> {
        let [first, second] = [first, second].map(|given| (given.name, self.path(given)));
        let found = if first.1.is_some() { first } else { second };
        found.1.map(|path| (found.0, path))
    }

    fn token_url(&mut self, url: Given, file: Given) -> Option<SecretString> {
        self.secret(url, values::secret_url).or_else(|| self.secret_of_file(file, values::secret_url))
    }

    /// The secret in the file that a variable names.
    fn secret_of_file(&mut self, file: Given, parse: impl Fn(&str) -> Parsed<String>) -> Option<SecretString> {
        let name = file.name;
        let path = self.path(file)?;
        files::value_of_file(&path, parse).map_err(|problem| self.refuse(name, &problem)).ok()
    }

    fn tls(&mut self, cert: Given, key: Given, client_ca: Given) -> Option<TlsFiles> {
        let (cert_name, key_name, client_ca_name) = (cert.name, key.name, client_ca.name);
        match [cert, key, client_ca].map(|given| self.path(given)) {
            [Some(cert), Some(key), client_ca] => return Some(TlsFiles { cert, key, client_ca }),
            [Some(_), None, _] => self.refuse(key_name, &format!("not set, and needed beside {cert_name}")),
            [None, Some(_), _] => self.refuse(cert_name, &format!("not set, and needed beside {key_name}")),
            [None, None, Some(_)] => {
                self.refuse(
                    client_ca_name,
                    &format!("works only with {cert_name} and {key_name}; set these, too, or leave it out"),
                );
            }
            [None, None, None] => {}
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
