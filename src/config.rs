//! Every variable: meaning, unit, default, range. The only file that reads the environment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use crate::batch::{Codec, LogType};

/// The effective configuration (contract section 2).
#[derive(Debug, Clone)]
pub struct Config {
    pub role_arn: String,
    pub bucket_name: String,
    pub aws_region: String,
    /// Trimmed of `/`, checked; empty when not set.
    pub bucket_path: String,
    pub session_duration: Duration,
    pub oidc_token: Option<SecretString>,
    pub oidc_token_file: Option<PathBuf>,
    pub oidc_token_url: Option<SecretString>,
    pub oidc_issuer: String,
    pub oidc_subjects: Vec<String>,
    pub oidc_organization_ids: Vec<String>,
    pub allow_http: bool,
    pub listen_addr: SocketAddr,
    pub admin_addr: SocketAddr,
    pub ingest_auth_required: bool,
    /// From `ENV0_S3_LOG_INGEST_TOKEN`.
    pub ingest_token: Option<SecretString>,
    pub ingest_token_file: Option<PathBuf>,
    pub default_type: LogType,
    pub redact: bool,
    pub tls: Option<TlsFiles>,
    pub spool_dir: PathBuf,
    pub spool_max_bytes: u64,
    pub batch_max_bytes: u64,
    pub batch_max_age: Duration,
    pub max_body_bytes: usize,
    pub max_event_bytes: usize,
    pub max_inflight_bytes: usize,
    pub max_connections: usize,
    pub upload_concurrency: usize,
    pub compression: Codec,
    pub storage_class: Option<String>,
    pub sse_kms_key_id: Option<String>,
    pub expected_bucket_owner: Option<String>,
    pub object_tags: Option<String>,
    pub signing_key_file: Option<PathBuf>,
    pub shutdown_grace: Duration,
    pub log_level: String,
    pub log_format: LogFormat,
    pub endpoint_url_s3: Option<String>,
    pub endpoint_url_sts: Option<String>,
    pub force_path_style: bool,
    pub network: Network,
}

/// Proxy and private CA, for every outgoing client alike.
#[derive(Debug, Clone, Default)]
pub struct Network {
    pub https_proxy: Option<SecretString>,
    pub http_proxy: Option<SecretString>,
    /// Entries of `NO_PROXY`, without scheme and path.
    pub no_proxy: Vec<String>,
    /// From `AWS_CA_BUNDLE`, else `SSL_CERT_FILE`.
    pub ca_file: Option<PathBuf>,
}

#[derive(Debug, Clone)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub client_ca: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Text,
}
