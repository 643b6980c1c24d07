//! The one table of every variable. `--help`, the README's table and `config/example.env` are made from it.

use std::fmt::Write;

/// The prefix of this project's own variables.
pub const PREFIX: &str = "ENV0_S3_LOG_";
/// The prefix of env0's names for CloudWatch, which the daemon takes over.
const CLOUDWATCH_PREFIX: &str = "ENV0_CLOUDWATCH_";

/// How much a variable is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing starts without it.
    Required,
    /// There is a default, or nothing is done without it.
    Optional,
}

/// One environment variable.
#[derive(Debug, Clone, Copy)]
pub struct Variable {
    /// Its full name.
    pub name: &'static str,
    /// What counts when it isn't set, in the variable's own notation.
    pub default: Option<&'static str>,
    /// Whether the daemon starts without it.
    pub need: Need,
    /// Whether its value is never shown.
    pub secret: bool,
    /// A value that is accepted; the static token's is not, since everybody knows it.
    pub example: &'static str,
    /// What it does, in one sentence; Markdown.
    pub meaning: &'static str,
}

const fn required(name: &'static str, example: &'static str, meaning: &'static str) -> Variable {
    Variable { name, default: None, need: Need::Required, secret: false, example, meaning }
}

const fn defaulted(name: &'static str, default: &'static str, meaning: &'static str) -> Variable {
    Variable { name, default: Some(default), need: Need::Optional, secret: false, example: default, meaning }
}

const fn optional(name: &'static str, example: &'static str, meaning: &'static str) -> Variable {
    Variable { name, default: None, need: Need::Optional, secret: false, example, meaning }
}

const fn secret(name: &'static str, example: &'static str, meaning: &'static str) -> Variable {
    Variable { secret: true, ..optional(name, example, meaning) }
}

/// Every variable, in the order of the documentation.
pub const VARIABLES: &[Variable] = &[
    required(
        "ENV0_S3_LOG_ROLE_ARN",
        "arn:aws:iam::111122223333:role/env0-logs",
        "IAM role that is assumed with the env0 OIDC token",
    ),
    required("ENV0_S3_LOG_BUCKET_NAME", "my-env0-logs", "Bucket"),
    required("ENV0_S3_LOG_AWS_REGION", "us-east-1", "Region of the bucket and of the STS endpoint"),
    optional("ENV0_S3_LOG_BUCKET_PATH", "env0/logs", "Key prefix; `/` at its ends is trimmed"),
    defaulted("ENV0_S3_LOG_SESSION_DURATION", "3600", "Length of an STS session, seconds, 900 to 43200"),
    secret("ENV0_OIDC_TOKEN", "eyJhbGciOi...", "An env0 OIDC token given at start"),
    optional(
        "ENV0_S3_LOG_OIDC_TOKEN_FILE",
        "/run/secrets/env0-oidc-token",
        "A file that holds one; read again at every exchange",
    ),
    optional("ENV0_OIDC_TOKEN_FILE", "/run/secrets/env0-oidc-token", "The same as `ENV0_S3_LOG_OIDC_TOKEN_FILE`"),
    secret(
        "ENV0_S3_LOG_OIDC_TOKEN_URL",
        "https://tokens.example.com/env0",
        "A URL that answers GET with one: raw, or JSON with `token`, `value`, `access_token` or `id_token`",
    ),
    optional(
        "ENV0_S3_LOG_OIDC_TOKEN_URL_FILE",
        "/run/secrets/env0-token-url",
        "A file that holds that URL; read at start",
    ),
    defaulted(
        "ENV0_S3_LOG_OIDC_ISSUER",
        "https://login.app.env0.com/",
        "Issuer whose published keys verify tokens that clients hand over",
    ),
    optional(
        "ENV0_S3_LOG_OIDC_SUBJECT",
        "auth0|0123456789abcdef",
        "Comma-separated `sub` values whose tokens are let in",
    ),
    optional(
        "ENV0_S3_LOG_OIDC_ORGANIZATION_ID",
        "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9",
        "Comma-separated ids of the env0 organizations whose tokens are let in",
    ),
    defaulted(
        "ENV0_S3_LOG_ALLOW_HTTP",
        "false",
        "Allows an issuer, token URL, STS endpoint or API URL over plain http that isn't loopback",
    ),
    defaulted("ENV0_S3_LOG_LISTEN_ADDR", "127.0.0.1:8080", "Address that takes events (image: `0.0.0.0:8080`)"),
    defaulted(
        "ENV0_S3_LOG_ADMIN_ADDR",
        "127.0.0.1:9090",
        "Address of health, status and metrics (image: `0.0.0.0:9090`)",
    ),
    defaulted(
        "ENV0_S3_LOG_INGEST_AUTH",
        "required",
        "`required` or `none`; `none` frees the event endpoints only, and is for loopback and private networks",
    ),
    secret(
        "ENV0_S3_LOG_INGEST_TOKEN",
        "change-me-0123456789abcdef",
        "A static token that clients send, 16 characters or more",
    ),
    optional(
        "ENV0_S3_LOG_INGEST_TOKEN_FILE",
        "/run/secrets/ingest-tokens",
        "A file of static tokens, one a line, read again when it changes: `<token>`, or `<token> <logType>` for one that \
         decides the type and can write no other",
    ),
    defaulted(
        "ENV0_S3_LOG_DEFAULT_TYPE",
        "env0-deployments",
        "Log type where neither token, path nor sender tells one",
    ),
    defaulted(
        "ENV0_S3_LOG_REDACT",
        "on",
        "Replaces `oidcToken` and `vcsAccessToken` in `customEnv0EnvironmentVariables` by `[redacted]`",
    ),
    optional(
        "ENV0_S3_LOG_TLS_CERT_FILE",
        "/run/secrets/tls.crt",
        "Certificate chain (PEM) of the ingest listener; read again when it changes",
    ),
    optional("ENV0_S3_LOG_TLS_KEY_FILE", "/run/secrets/tls.key", "Its private key (PEM)"),
    optional(
        "ENV0_S3_LOG_TLS_CLIENT_CA_FILE",
        "/run/secrets/clients-ca.crt",
        "CA (PEM) that clients' certificates must come from",
    ),
    defaulted("ENV0_S3_LOG_SPOOL_DIR", "/var/lib/env0-s3-logs", "The only directory that is written to"),
    defaulted(
        "ENV0_S3_LOG_SPOOL_MAX_BYTES",
        "10GiB",
        "Size of the spool; above it requests are answered `503`; a tenth is kept for each log type",
    ),
    defaulted("ENV0_S3_LOG_BATCH_MAX_BYTES", "16MiB", "A batch is sealed at this size"),
    defaulted("ENV0_S3_LOG_BATCH_MAX_AGE", "60s", "A batch is sealed this long after its first event"),
    defaulted("ENV0_S3_LOG_MAX_BODY_BYTES", "16MiB", "Largest body of a request, after decompression"),
    defaulted("ENV0_S3_LOG_MAX_EVENT_BYTES", "1MiB", "Largest event"),
    defaulted(
        "ENV0_S3_LOG_MAX_INFLIGHT_BYTES",
        "32MiB",
        "Bodies held in memory at once, all requests together; beyond it bodies wait unread",
    ),
    defaulted(
        "ENV0_S3_LOG_MAX_CONNECTIONS",
        "1024",
        "Connections at once; at the limit the one longest without a request's header is closed",
    ),
    defaulted("ENV0_S3_LOG_UPLOAD_CONCURRENCY", "4", "PUTs in flight, per log type"),
    defaulted("ENV0_S3_LOG_COMPRESSION", "none", "`none`, `gzip` (`.log.gz`) or `zstd` (`.log.zst`)"),
    optional("ENV0_S3_LOG_STORAGE_CLASS", "STANDARD_IA", "Storage class of every object"),
    optional(
        "ENV0_S3_LOG_SSE_KMS_KEY_ID",
        "alias/env0-logs",
        "KMS key that encrypts every object; the role needs `kms:GenerateDataKey` on it",
    ),
    optional("ENV0_S3_LOG_EXPECTED_BUCKET_OWNER", "111122223333", "Account that the bucket must belong to"),
    optional(
        "ENV0_S3_LOG_OBJECT_TAGS",
        "team=platform&source=env0",
        "Tags of every object, URL-encoded; the role needs `s3:PutObjectTagging`",
    ),
    optional(
        "ENV0_S3_LOG_SIGNING_KEY_FILE",
        "/run/secrets/signing-key.pem",
        "Ed25519 key (PKCS#8 PEM) that signs each object's chain entry",
    ),
    defaulted(
        "ENV0_S3_LOG_SHUTDOWN_GRACE",
        "25s",
        "From SIGTERM to exit; keep it below the container's own grace period",
    ),
    optional(
        "ENV0_API_KEY_ID",
        "abcdefgh12345678",
        "Id of an env0 API key; with its secret, the daemon pulls from env0's API",
    ),
    optional(
        "ENV0_API_KEY_ID_FILE",
        "/run/secrets/env0-api-key-id",
        "A file that holds that id; read again on SIGHUP and after a 401",
    ),
    secret("ENV0_API_KEY_SECRET", "the-secret-that-env0-showed-once", "Secret of that API key"),
    optional(
        "ENV0_API_KEY_SECRET_FILE",
        "/run/secrets/env0-api-key-secret",
        "A file that holds that secret; read again on SIGHUP and after a 401",
    ),
    defaulted(
        "ENV0_S3_LOG_PULL",
        "env0-audits,env0-deployments",
        "Which log types are pulled with the API key, comma-separated; `none`",
    ),
    optional(
        "ENV0_S3_LOG_PULL_FROM",
        "2026-01-01T00:00:00Z",
        "How far back the first pull reaches: an RFC 3339 time, or a date (UTC); without it, to the first start. Later starts go on from where the last one was",
    ),
    defaulted("ENV0_S3_LOG_PULL_INTERVAL", "30s", "How often env0 is asked for what is new, `5s` to `1h`"),
    optional(
        "ENV0_S3_LOG_PULL_ORGANIZATION_ID",
        "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9",
        "Comma-separated ids of the env0 organizations to pull; without it, those that the key sees",
    ),
    defaulted("ENV0_S3_LOG_API_URL", "https://api.env0.com", "env0's API"),
    optional(
        "ENV0_CLOUDWATCH_ROLE_ARN",
        "arn:aws:iam::111122223333:role/env0-cloudwatch",
        "IAM role for CloudWatch Logs; with its region, every event goes there, too",
    ),
    optional("ENV0_CLOUDWATCH_AWS_REGION", "us-east-1", "Region of the log groups"),
    defaulted("ENV0_CLOUDWATCH_SESSION_DURATION", "3600", "Session of that role, seconds, 900 to 43200"),
    optional(
        "ENV0_CLOUDWATCH_LOG_GROUP_NAME_PREFIX",
        "my-team/",
        "In front of the log groups' names, `env0-deployments` and `env0-audits`",
    ),
    defaulted("ENV0_S3_LOG_LOG_LEVEL", "info", "`error`, `warn`, `info`, `debug`, `trace` or `off`"),
    defaulted("ENV0_S3_LOG_LOG_FORMAT", "json", "`json` or `text`, on standard error"),
    optional("RUST_LOG", "env0_s3_logs::flusher=debug", "Log filters; they win over `ENV0_S3_LOG_LOG_LEVEL`"),
    optional(
        "AWS_ENDPOINT_URL",
        "http://127.0.0.1:9000",
        "S3, STS and CloudWatch Logs alike instead of AWS, where the next three aren't set",
    ),
    optional("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9000", "An S3-compatible store instead of AWS"),
    optional("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:9001", "An STS-compatible service instead of AWS"),
    optional(
        "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS",
        "http://127.0.0.1:9002",
        "A service like CloudWatch Logs instead of AWS",
    ),
    defaulted(
        "ENV0_S3_LOG_FORCE_PATH_STYLE",
        "false",
        "Bucket in the path, not in the host name: for S3-compatible stores",
    ),
    secret("HTTPS_PROXY", "http://proxy.example.com:3128", "Proxy for https (either case)"),
    secret("HTTP_PROXY", "http://proxy.example.com:3128", "Proxy for http (either case)"),
    optional(
        "NO_PROXY",
        "localhost,127.0.0.1,.svc",
        "Hosts that are reached without the proxy, whatever port stands behind them (either case)",
    ),
    optional("AWS_CA_BUNDLE", "/etc/ssl/private-ca.pem", "Private CA (PEM) for S3, STS, issuer and token URL alike"),
    optional("SSL_CERT_FILE", "/etc/ssl/private-ca.pem", "The same, where `AWS_CA_BUNDLE` is not set"),
];

/// The table's row of `name`.
pub(super) fn find(name: &str) -> Option<&'static Variable> {
    VARIABLES.iter().find(|variable| variable.name == name)
}

/// The prefix that makes `name` a variable of the daemon's: one with it that isn't in the table is a slip, such as
/// `ENV0_S3_LOGS_BUCKET_NAME`.
pub(super) fn own_prefix(name: &str) -> Option<&'static str> {
    const PREFIXES: [&str; 5] = [PREFIX, CLOUDWATCH_PREFIX, "ENV0_S3_", "ENV0_API_KEY_", "ENV0_OIDC_TOKEN"];
    PREFIXES.into_iter().find(|prefix| name.starts_with(prefix))
}

/// The known variable that somebody who set `name` most likely meant, where `name` is a slip: one of the daemon's
/// prefixes and an unknown end, or a known name in other letter case or without its `ENV0_`.
pub(super) fn slip(name: &str) -> Option<&'static str> {
    let upper = name.to_ascii_uppercase();
    let without_env0 = VARIABLES.iter().find(|known| known.name.strip_prefix("ENV0_") == Some(&upper));
    without_env0.map(|known| known.name).or_else(|| own_prefix(&upper).map(|_| nearest(&upper)))
}

/// The known variable that somebody who set `name` most likely meant. A name that was cut short comes
/// first, then one of the same prefix with the same words in its name or in its meaning, then one of
/// another prefix; else letters decide.
fn nearest(name: &str) -> &'static str {
    let prefix = own_prefix(name);
    let words = &name[prefix.map_or(0, str::len)..];
    let spoken = words.replace('_', " ").to_lowercase();
    let likelihood = |known: &&Variable| {
        let same_prefix = own_prefix(known.name) == prefix;
        let kind = match known.name.contains(words) {
            _ if known.name.starts_with(name) => 0,
            true if same_prefix => 1,
            false if same_prefix && known.meaning.to_lowercase().contains(&spoken) => 2,
            true => 3,
            false => 4,
        };
        (kind, strsim::levenshtein(name, known.name))
    };
    let own = VARIABLES.iter().filter(|known| known.name.starts_with("ENV0_"));
    own.min_by_key(likelihood).map(|known| known.name).unwrap_or_default()
}

/// What `--help` says about the variables.
pub fn help_text() -> String {
    let mut text = String::from("Environment variables:\n");
    for variable in VARIABLES {
        let default = match (variable.need, variable.default) {
            (Need::Required, _) => " (required)".to_owned(),
            (_, Some(default)) => format!(" [default: {default}]"),
            (_, None) => String::new(),
        };
        let _ = writeln!(text, "  {}{default}\n          {}", variable.name, variable.meaning.replace('`', ""));
    }
    text.push_str(
        "\nSizes: 500000, 64MiB, 10GiB. Durations: 3600 (seconds), 90s, 5m, 2h. An empty value counts as not set.\n",
    );
    text
}

/// What `config/example.env` holds.
pub fn example_env() -> String {
    let mut text = String::from(
        "# Every variable of env0-s3-logs. Those without a # in front are always needed, and so is one of these two ways:\n\
         # - To pull, set ENV0_API_KEY_ID and ENV0_API_KEY_SECRET. Nothing listens for events then.\n\
         # - To take pushed events, set ENV0_S3_LOG_OIDC_ORGANIZATION_ID or ENV0_S3_LOG_INGEST_TOKEN_FILE. Each opens the port\n\
         #   of ENV0_S3_LOG_LISTEN_ADDR and lets in whoever has such a token, also beside a pull.\n\
         # The others show their default, or an example where there is none. Sizes: 500000, 64MiB, 10GiB. Durations: 3600\n\
         # (seconds), 90s, 5m, 2h. A line is NAME=VALUE, without export, quotes, or a comment behind the value.\n",
    );
    for variable in VARIABLES {
        let comment = if variable.need == Need::Optional { "#" } else { "" };
        let _ = write!(
            text,
            "\n# {}\n{comment}{}={}\n",
            variable.meaning.replace('`', ""),
            variable.name,
            variable.example
        );
    }
    text
}

/// The README's table.
pub fn markdown_table() -> String {
    let mut text = String::from("| variable | default | meaning |\n| --- | --- | --- |\n");
    for variable in VARIABLES {
        let default = match (variable.need, variable.default) {
            (Need::Required, _) => "required".to_owned(),
            (_, Some(default)) => format!("`{default}`"),
            (_, None) => "none".to_owned(),
        };
        let _ = writeln!(text, "| `{}` | {default} | {} |", variable.name, variable.meaning);
    }
    text
}
