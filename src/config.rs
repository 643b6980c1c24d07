//! Every variable: meaning, unit, default, range. The only file that reads the environment.

mod reader;
mod slips;
mod unread;
mod values;
mod variables;

use std::collections::HashSet;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use secrecy::SecretString;
use serde::Deserialize;

use crate::batch::{Codec, LogType};
use reader::Reader;
pub use slips::token_not_meant;
pub use variables::{Need, PREFIX, VARIABLES, Variable, example_env, help_text, markdown_table};

/// The effective configuration (contract section 2).
#[derive(Debug, Clone)]
pub struct Config {
    /// Role assumed with the env0 OIDC token; empty for [`Purpose::Verify`] when not set.
    pub role_arn: String,
    /// Bucket that objects go to.
    pub bucket_name: String,
    /// Region of the bucket and of the STS endpoint.
    pub aws_region: String,
    /// Trimmed of `/`, checked; empty when not set.
    pub bucket_path: String,
    /// `DurationSeconds` of a session, 900 s to 43 200 s.
    pub session_duration: Duration,
    /// A token given at start.
    pub oidc_token: Option<SecretString>,
    /// A file that holds a token; read again at every exchange.
    pub oidc_token_file: Option<PathBuf>,
    /// A URL that answers with a token; may hold a secret anywhere.
    pub oidc_token_url: Option<SecretString>,
    /// Issuer of handed-over tokens, as it was written.
    pub oidc_issuer: String,
    /// `sub` values that are let in; empty when not set.
    pub oidc_subjects: Vec<String>,
    /// Organizations that are let in; empty when not set.
    pub oidc_organization_ids: Vec<String>,
    /// Whether redirects of issuer and token URL, too, may use plain http beyond loopback.
    pub allow_http: bool,
    /// Ingest listener.
    pub listen_addr: SocketAddr,
    /// Admin listener.
    pub admin_addr: SocketAddr,
    /// Whether the event endpoints ask for credentials.
    pub ingest_auth_required: bool,
    /// From `ENV0_S3_LOG_INGEST_TOKEN`.
    pub ingest_token: Option<SecretString>,
    /// A file of static tokens; read again when it changes.
    pub ingest_token_file: Option<PathBuf>,
    /// Log type where neither token, path nor sender tells one.
    pub default_type: LogType,
    /// Whether env0's own tokens inside events are replaced (contract section 1).
    pub redact: bool,
    /// TLS on the ingest listener.
    pub tls: Option<TlsFiles>,
    /// The only directory that is written to.
    pub spool_dir: PathBuf,
    /// Above it, ingest answers 503.
    pub spool_max_bytes: u64,
    /// A batch is sealed at this size; at most what one PutObject takes.
    pub batch_max_bytes: u64,
    /// A batch is sealed this long after its first event.
    pub batch_max_age: Duration,
    /// Largest body of a request, inflated; at most [`Config::max_inflight_bytes`].
    pub max_body_bytes: usize,
    /// Largest event; at most [`Config::max_body_bytes`].
    pub max_event_bytes: usize,
    /// Bodies held in memory at once, all requests together.
    pub max_inflight_bytes: usize,
    /// Connections of the ingest listener at once.
    pub max_connections: usize,
    /// PUTs in flight, per log type.
    pub upload_concurrency: usize,
    /// Encoding of new batches.
    pub compression: Codec,
    /// `x-amz-storage-class` of every PUT.
    pub storage_class: Option<String>,
    /// KMS key of every PUT.
    pub sse_kms_key_id: Option<String>,
    /// `x-amz-expected-bucket-owner` of every PUT: 12 digits.
    pub expected_bucket_owner: Option<String>,
    /// `x-amz-tagging` of every PUT, URL-encoded.
    pub object_tags: Option<String>,
    /// Ed25519 key (PKCS#8 PEM) of the chain.
    pub signing_key_file: Option<PathBuf>,
    /// From SIGTERM to exit.
    pub shutdown_grace: Duration,
    /// Whether events come in over HTTP. Not where there is an API key and nobody could send.
    pub ingest: bool,
    /// What is pulled from env0's API; `None` without an API key.
    pub pull: Option<Pull>,
    /// `off`, `error`, `warn`, `info`, `debug` or `trace`.
    pub log_level: String,
    /// `RUST_LOG`: filters that win over `log_level`.
    pub log_filter: Option<String>,
    /// Shape of a log line.
    pub log_format: LogFormat,
    /// Instead of AWS's own S3 endpoint; without a `/` at its end.
    pub endpoint_url_s3: Option<String>,
    /// Instead of AWS's own STS endpoint; without a `/` at its end.
    pub endpoint_url_sts: Option<String>,
    /// CloudWatch Logs beside S3; `None` without its role and region.
    pub cloudwatch: Option<CloudWatch>,
    /// Bucket in the path, not in the host name.
    pub force_path_style: bool,
    /// Proxy and private CA.
    pub network: Network,
}

/// What is pulled from env0's API, and with which key.
#[derive(Debug, Clone)]
pub struct Pull {
    /// The API key's id.
    pub key_id: String,
    /// The API key's secret.
    pub key_secret: SecretString,
    /// Where the key came from files: they are read again.
    pub key_files: KeyFiles,
    /// Which log types; never empty.
    pub types: Vec<LogType>,
    /// How far back the first pull reaches; `None` for the first start.
    pub from: Option<DateTime<Utc>>,
    /// From the start of one round to the start of the next; 5 s to 1 h.
    pub interval: Duration,
    /// Organizations to pull; empty for those that the key sees.
    pub organization_ids: Vec<String>,
    /// env0's API, without a `/` at its end.
    pub api_url: String,
}

/// The files of an API key, as far as it came from files.
#[derive(Debug, Clone, Default)]
pub struct KeyFiles {
    /// `ENV0_API_KEY_ID_FILE`
    pub id: Option<PathBuf>,
    /// `ENV0_API_KEY_SECRET_FILE`
    pub secret: Option<PathBuf>,
}

/// CloudWatch Logs, where events go beside S3.
#[derive(Debug, Clone)]
pub struct CloudWatch {
    /// Role assumed with the same tokens as the bucket's.
    pub role_arn: String,
    /// Region of the log groups, and of the STS endpoint for their role.
    pub aws_region: String,
    /// `DurationSeconds` of a session, 900 s to 43 200 s.
    pub session_duration: Duration,
    /// In front of a log group's name; empty when not set.
    pub group_prefix: String,
    /// Instead of AWS's own endpoint; without a `/` at its end.
    pub endpoint_url: Option<String>,
}

/// Proxy and private CA, for every outgoing client alike.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// Proxy for https; may hold a password.
    pub https_proxy: Option<SecretString>,
    /// Proxy for http; may hold a password.
    pub http_proxy: Option<SecretString>,
    /// Entries of `NO_PROXY`, without scheme, port and path; `*` is every host.
    pub no_proxy: Vec<String>,
    /// From `AWS_CA_BUNDLE`, else `SSL_CERT_FILE`.
    pub ca_file: Option<PathBuf>,
}

/// TLS on the ingest listener; all PEM.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// Certificate chain.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// CA that clients' certificates must come from.
    pub client_ca: Option<PathBuf>,
}

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// One line of text.
    Text,
}

/// What the configuration is read for: some rules hold only for some commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// `run`, `check`, `config`: every rule.
    Daemon,
    /// `drain`: nothing listens, so nobody needs to be let in.
    Drain,
    /// `verify`: an auditor's own credentials, so no role either.
    Verify,
}

/// Where an effective value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The environment.
    Environment,
    /// The table.
    Default,
    /// Nowhere: there is no value.
    Unset,
}

/// One effective value, for people.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Setting {
    /// The variable.
    pub variable: &'static str,
    /// Its value as it was given; `[redacted]` for a secret, empty when not set.
    pub value: String,
    /// Where it came from.
    pub source: Source,
}

/// A configuration that can be used.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// One for every variable, in the table's order.
    pub settings: Vec<Setting>,
    /// Unknown `ENV0_S3_LOG_*` and `ENV0_CLOUDWATCH_*` variables: each a warning at `run`, a failure at `check`.
    pub unknown: Vec<String>,
    /// What is allowed, and still worth a line at every start.
    pub warnings: Vec<String>,
}

impl Loaded {
    /// `VARIABLE=value  # source`, one a line: what the command `config` prints.
    pub fn describe(&self) -> String {
        let line = |setting: &Setting| {
            let source = match setting.source {
                Source::Environment => "environment",
                Source::Default => "default",
                Source::Unset => "not set",
            };
            format!("{}={}  # {source}\n", setting.variable, setting.value)
        };
        self.settings.iter().map(line).collect()
    }
}

/// Everything that is wrong with a configuration; displays as one line each.
#[derive(Debug, Clone, thiserror::Error)]
pub struct ConfigErrors {
    /// What must be mended, one line each.
    pub errors: Vec<String>,
    /// Unknown variables: a typo is often the reason why another one is missing.
    pub unknown: Vec<String>,
    /// The values that are good, and defaults for the others: to say at once what is wrong with the
    /// files, too.
    pub so_far: Option<Box<Config>>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errors = self.errors.iter().map(|error| format!("error: {error}"));
        let unknown = self.unknown.iter().map(|unknown| format!("warning: {unknown}"));
        f.write_str(&errors.chain(unknown).collect::<Vec<_>>().join("\n"))
    }
}

impl Config {
    /// The configuration in this process's environment.
    pub fn from_env(purpose: Purpose) -> Result<Loaded, ConfigErrors> {
        Config::from_vars(std::env::vars_os(), purpose)
    }

    /// The configuration in `vars`. All that is wrong is reported at once; nothing but
    /// `ENV0_S3_LOG_OIDC_TOKEN_URL_FILE` is read from disk, and nothing from the network.
    pub fn from_vars(
        vars: impl IntoIterator<Item = (OsString, OsString)>,
        purpose: Purpose,
    ) -> Result<Loaded, ConfigErrors> {
        let mut read = Reader::default();
        let given = read.known(vars);
        let config = read.config(given, purpose);
        if read.errors.is_empty() {
            Ok(Loaded { config, settings: read.settings(), unknown: read.unknown, warnings: read.warnings })
        } else {
            Err(ConfigErrors { errors: read.errors, unknown: read.unknown, so_far: Some(Box::new(config)) })
        }
    }
}

/// A duration as the variables take it: `90s`, `5m`, `2h`; a bare number is seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    values::duration(Duration::ZERO, Duration::from_secs(366 * 86_400))(text)
}

/// Whether `id` can be an id of env0's: it becomes part of file names and of addresses.
pub fn is_env0_id(id: &str) -> bool {
    let allowed = |byte| matches!(byte, b'-' | b'_') || u8::is_ascii_alphanumeric(&byte);
    (1..=64).contains(&id.len()) && id.bytes().all(allowed)
}

/// Each of `ids` once, in the order of the first of each: one that is named twice would be pulled twice.
pub fn distinct(mut ids: Vec<String>) -> Vec<String> {
    let mut named = HashSet::new();
    ids.retain(|id| named.insert(id.clone()));
    ids
}

/// The secret that a file holds, without the space around it.
///
/// # Errors
/// What is wrong with the file; never what it holds.
pub fn secret_of_file(path: &Path) -> Result<SecretString, String> {
    let content = std::fs::read_to_string(path)
        .map_err(|error| format!("can't be read ({error}); expected a file that this user may read"))?;
    match content.trim() {
        "" => Err("holds nothing".to_owned()),
        text => {
            values::text(text).map(SecretString::from).map_err(|expected| format!("expected {expected} in that file"))
        }
    }
}

/// What is wrong with the file that `variable` names, in the words of every error of a configuration.
pub fn file_error(variable: &str, path: &Path, problem: impl fmt::Display) -> String {
    let example = variables::find(variable).map_or("/path", |variable| variable.example);
    format!("{variable}={path:?}: {problem}; example: {variable}={example}")
}

/// systemd's socket for `Type=notify` (`sd_notify(3)`); its own variable, not an operator's.
pub fn notify_socket() -> Option<OsString> {
    std::env::var_os("NOTIFY_SOCKET")
}

/// Where the admin listener of a daemon with this environment can be asked. For `healthcheck`, which needs nothing else.
pub fn admin_addr_from_env() -> Result<SocketAddr, ConfigErrors> {
    const NAME: &str = "ENV0_S3_LOG_ADMIN_ADDR";
    let mut read = Reader::default();
    let mut given = read.known(std::env::vars_os().filter(|(name, _)| name == NAME));
    let mut address = read.value(NAME, given.remove(NAME), values::socket_address);
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    if !read.errors.is_empty() {
        return Err(ConfigErrors { errors: read.errors, unknown: Vec::new(), so_far: None });
    }
    Ok(address)
}

/// Variables with the project's prefix, as text; the fields are their names without it.
#[derive(Deserialize)]
struct OwnVariables {
    role_arn: Option<String>,
    bucket_name: Option<String>,
    aws_region: Option<String>,
    bucket_path: Option<String>,
    session_duration: Option<String>,
    oidc_token_file: Option<String>,
    oidc_token_url: Option<String>,
    oidc_token_url_file: Option<String>,
    oidc_issuer: Option<String>,
    oidc_subject: Option<String>,
    oidc_organization_id: Option<String>,
    allow_http: Option<String>,
    listen_addr: Option<String>,
    admin_addr: Option<String>,
    ingest_auth: Option<String>,
    ingest_token: Option<String>,
    ingest_token_file: Option<String>,
    default_type: Option<String>,
    redact: Option<String>,
    tls_cert_file: Option<String>,
    tls_key_file: Option<String>,
    tls_client_ca_file: Option<String>,
    spool_dir: Option<String>,
    spool_max_bytes: Option<String>,
    batch_max_bytes: Option<String>,
    batch_max_age: Option<String>,
    max_body_bytes: Option<String>,
    max_event_bytes: Option<String>,
    max_inflight_bytes: Option<String>,
    max_connections: Option<String>,
    upload_concurrency: Option<String>,
    compression: Option<String>,
    storage_class: Option<String>,
    sse_kms_key_id: Option<String>,
    expected_bucket_owner: Option<String>,
    object_tags: Option<String>,
    signing_key_file: Option<String>,
    shutdown_grace: Option<String>,
    log_level: Option<String>,
    log_format: Option<String>,
    force_path_style: Option<String>,
    pull: Option<String>,
    pull_from: Option<String>,
    pull_interval: Option<String>,
    pull_organization_id: Option<String>,
    api_url: Option<String>,
}

/// Variables whose names others chose.
#[derive(Deserialize)]
struct SharedVariables {
    env0_oidc_token: Option<String>,
    env0_oidc_token_file: Option<String>,
    env0_cloudwatch_role_arn: Option<String>,
    env0_cloudwatch_aws_region: Option<String>,
    env0_cloudwatch_session_duration: Option<String>,
    env0_cloudwatch_log_group_name_prefix: Option<String>,
    env0_api_key_id: Option<String>,
    env0_api_key_id_file: Option<String>,
    env0_api_key_secret: Option<String>,
    env0_api_key_secret_file: Option<String>,
    rust_log: Option<String>,
    aws_endpoint_url: Option<String>,
    aws_endpoint_url_s3: Option<String>,
    aws_endpoint_url_sts: Option<String>,
    aws_endpoint_url_cloudwatch_logs: Option<String>,
    https_proxy: Option<String>,
    http_proxy: Option<String>,
    no_proxy: Option<String>,
    aws_ca_bundle: Option<String>,
    ssl_cert_file: Option<String>,
}

#[cfg(test)]
mod tests;
