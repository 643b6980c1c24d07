//! The variables as they are given, each a text beside its name.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Text by the name of its variable; trimmed, never empty.
pub(super) type Texts = BTreeMap<&'static str, String>;

/// A variable, and its text where it is set.
pub(super) struct Given {
    pub(super) name: &'static str,
    pub(super) text: Option<String>,
}

/// Declares a set of variables: a field is its variable's name in lower case, without the set's prefix.
macro_rules! variables {
    ($(#[$about:meta])* $set:ident with $prefix:literal: $($field:ident = $name:literal,)*) => {
        $(#[$about])*
        pub(super) struct $set {
            $(pub(super) $field: Given,)*
        }

        impl $set {
            /// The set's variables among `texts`.
            pub(super) fn among(texts: &Texts) -> $set {
                #[derive(Deserialize)]
                struct Fields {
                    $($field: Option<String>,)*
                }
                let texts = texts.iter().map(|(name, text)| ((*name).to_owned(), text.clone()));
                let fields: Fields = envy::prefixed($prefix)
                    .from_iter(texts)
                    .expect("every field is an optional string, and no name is given twice");
                $set { $($field: Given { name: $name, text: fields.$field },)* }
            }
        }

        $(const _: () = assert!(concat!($prefix, stringify!($field)).eq_ignore_ascii_case($name));)*
    };
}

variables! {
    /// Variables with the project's prefix.
    OwnVariables with "ENV0_S3_LOG_":
    role_arn = "ENV0_S3_LOG_ROLE_ARN",
    bucket_name = "ENV0_S3_LOG_BUCKET_NAME",
    aws_region = "ENV0_S3_LOG_AWS_REGION",
    bucket_path = "ENV0_S3_LOG_BUCKET_PATH",
    session_duration = "ENV0_S3_LOG_SESSION_DURATION",
    oidc_token_file = "ENV0_S3_LOG_OIDC_TOKEN_FILE",
    oidc_token_url = "ENV0_S3_LOG_OIDC_TOKEN_URL",
    oidc_token_url_file = "ENV0_S3_LOG_OIDC_TOKEN_URL_FILE",
    oidc_issuer = "ENV0_S3_LOG_OIDC_ISSUER",
    oidc_subject = "ENV0_S3_LOG_OIDC_SUBJECT",
    oidc_organization_id = "ENV0_S3_LOG_OIDC_ORGANIZATION_ID",
    allow_http = "ENV0_S3_LOG_ALLOW_HTTP",
    listen_addr = "ENV0_S3_LOG_LISTEN_ADDR",
    admin_addr = "ENV0_S3_LOG_ADMIN_ADDR",
    ingest_auth = "ENV0_S3_LOG_INGEST_AUTH",
    ingest_token = "ENV0_S3_LOG_INGEST_TOKEN",
    ingest_token_file = "ENV0_S3_LOG_INGEST_TOKEN_FILE",
    default_type = "ENV0_S3_LOG_DEFAULT_TYPE",
    redact = "ENV0_S3_LOG_REDACT",
    tls_cert_file = "ENV0_S3_LOG_TLS_CERT_FILE",
    tls_key_file = "ENV0_S3_LOG_TLS_KEY_FILE",
    tls_client_ca_file = "ENV0_S3_LOG_TLS_CLIENT_CA_FILE",
    spool_dir = "ENV0_S3_LOG_SPOOL_DIR",
    spool_max_bytes = "ENV0_S3_LOG_SPOOL_MAX_BYTES",
    batch_max_bytes = "ENV0_S3_LOG_BATCH_MAX_BYTES",
    batch_max_age = "ENV0_S3_LOG_BATCH_MAX_AGE",
    max_body_bytes = "ENV0_S3_LOG_MAX_BODY_BYTES",
    max_event_bytes = "ENV0_S3_LOG_MAX_EVENT_BYTES",
    max_inflight_bytes = "ENV0_S3_LOG_MAX_INFLIGHT_BYTES",
    max_connections = "ENV0_S3_LOG_MAX_CONNECTIONS",
    upload_concurrency = "ENV0_S3_LOG_UPLOAD_CONCURRENCY",
    compression = "ENV0_S3_LOG_COMPRESSION",
    storage_class = "ENV0_S3_LOG_STORAGE_CLASS",
    sse_kms_key_id = "ENV0_S3_LOG_SSE_KMS_KEY_ID",
    expected_bucket_owner = "ENV0_S3_LOG_EXPECTED_BUCKET_OWNER",
    object_tags = "ENV0_S3_LOG_OBJECT_TAGS",
    signing_key_file = "ENV0_S3_LOG_SIGNING_KEY_FILE",
    shutdown_grace = "ENV0_S3_LOG_SHUTDOWN_GRACE",
    log_level = "ENV0_S3_LOG_LOG_LEVEL",
    log_format = "ENV0_S3_LOG_LOG_FORMAT",
    force_path_style = "ENV0_S3_LOG_FORCE_PATH_STYLE",
    pull = "ENV0_S3_LOG_PULL",
    pull_from = "ENV0_S3_LOG_PULL_FROM",
    pull_interval = "ENV0_S3_LOG_PULL_INTERVAL",
    pull_organization_id = "ENV0_S3_LOG_PULL_ORGANIZATION_ID",
    api_url = "ENV0_S3_LOG_API_URL",
}

variables! {
    /// Variables whose names others chose.
    SharedVariables with "":
    env0_oidc_token = "ENV0_OIDC_TOKEN",
    env0_oidc_token_file = "ENV0_OIDC_TOKEN_FILE",
    env0_cloudwatch_role_arn = "ENV0_CLOUDWATCH_ROLE_ARN",
    env0_cloudwatch_aws_region = "ENV0_CLOUDWATCH_AWS_REGION",
    env0_cloudwatch_session_duration = "ENV0_CLOUDWATCH_SESSION_DURATION",
    env0_cloudwatch_log_group_name_prefix = "ENV0_CLOUDWATCH_LOG_GROUP_NAME_PREFIX",
    env0_api_key_id = "ENV0_API_KEY_ID",
    env0_api_key_id_file = "ENV0_API_KEY_ID_FILE",
    env0_api_key_secret = "ENV0_API_KEY_SECRET",
    env0_api_key_secret_file = "ENV0_API_KEY_SECRET_FILE",
    rust_log = "RUST_LOG",
    aws_endpoint_url = "AWS_ENDPOINT_URL",
    aws_endpoint_url_s3 = "AWS_ENDPOINT_URL_S3",
    aws_endpoint_url_sts = "AWS_ENDPOINT_URL_STS",
    aws_endpoint_url_cloudwatch_logs = "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS",
    https_proxy = "HTTPS_PROXY",
    http_proxy = "HTTP_PROXY",
    no_proxy = "NO_PROXY",
    aws_ca_bundle = "AWS_CA_BUNDLE",
    ssl_cert_file = "SSL_CERT_FILE",
}
