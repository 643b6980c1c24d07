//! The configuration as the daemon uses it: every value judged, every unit in its type.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};
use secrecy::SecretString;

use crate::batch::{Codec, LogType};

/// The effective configuration.
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
    /// A file that holds a token, beside the variable that names it; read again at every exchange.
    pub oidc_token_file: Option<(&'static str, PathBuf)>,
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
    /// Whether env0's own tokens inside events are replaced.
    pub redact: bool,
    /// TLS on the ingest listener.
    pub tls: Option<TlsFiles>,
    /// The only folder that is written to.
    pub spool_dir: PathBuf,
    /// Above it, ingest answers 503.
    pub spool_max_bytes: u64,
    /// A batch is sealed at this size; at most what one PutObject takes.
    pub batch_max_bytes: u64,
    /// A batch is sealed this long after its first event.
    pub batch_max_age: Duration,
    /// Largest body of a request, inflated; at most [`Config::max_inflight_bytes`].
    pub max_body_bytes: usize,
    /// The variable that sets [`Config::max_body_bytes`].
    pub max_body_variable: &'static str,
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
    /// `x-amz-expected-bucket-owner` of every PUT: 12 digits at AWS.
    pub expected_bucket_owner: Option<String>,
    /// `x-amz-tagging` of every PUT, URL-encoded.
    pub object_tags: Option<String>,
    /// Ed25519 key (PKCS#8 PEM) of the chain.
    pub signing_key_file: Option<PathBuf>,
    /// From SIGTERM to exit.
    pub shutdown_grace: Duration,
    /// Whether the ingest listener runs. False where an API key is set and no sender could be let in.
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

impl Config {
    /// Whether a token that a client hands over can be let in: one that no configured subject or organization fits is refused.
    pub fn takes_hand_overs(&self) -> bool {
        !self.oidc_subjects.is_empty() || !self.oidc_organization_ids.is_empty()
    }

    /// Whether `log_type` is pulled.
    pub fn pulls(&self, log_type: LogType) -> bool {
        self.pull.as_ref().is_some_and(|pull| pull.types.contains(&log_type))
    }
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
    /// The file of `AWS_CA_BUNDLE`, else of `SSL_CERT_FILE`, beside the variable's name.
    pub ca_file: Option<(&'static str, PathBuf)>,
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

/// The command that the configuration is read for: some rules hold only for some commands.
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
pub enum SettingSource {
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
    /// The value that counts, in the words in which it was given; `[redacted]` for a secret, empty when not set.
    pub value: String,
    /// Where it came from.
    pub source: SettingSource,
    /// Where another value counts than was given: what was given, and why it does not count.
    pub note: Option<String>,
}
