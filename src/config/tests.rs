mod advice;
mod cloudwatch;
mod files;
mod pull;
mod table;

use std::collections::BTreeMap;

use secrecy::ExposeSecret;

use super::*;
use crate::batch::LogType;

/// The least that a daemon starts with.
const LEAST: &[(&str, &str)] = &[
    ("ENV0_S3_LOG_ROLE_ARN", "arn:aws:iam::111122223333:role/logs"),
    ("ENV0_S3_LOG_BUCKET_NAME", "logs"),
    ("ENV0_S3_LOG_AWS_REGION", "eu-central-1"),
    ("ENV0_S3_LOG_OIDC_ORGANIZATION_ID", "51d48700-4aee-5a5d-a8a5-27a5c1471ac6"),
];

fn read(vars: &[(&str, &str)]) -> Result<Loaded, ConfigErrors> {
    Config::from_vars(vars.iter().map(|(name, value)| (name.into(), value.into())), Purpose::Daemon)
}

/// `LEAST` with `changes` on top.
fn with(changes: &[(&str, &str)]) -> Result<Loaded, ConfigErrors> {
    let mut vars: BTreeMap<&str, &str> = LEAST.iter().copied().collect();
    vars.extend(changes.iter().copied());
    read(&vars.into_iter().collect::<Vec<_>>())
}

fn accepted(changes: &[(&str, &str)]) -> Config {
    with(changes).unwrap().config
}

/// The only error that `changes` bring.
fn refused(changes: &[(&str, &str)]) -> String {
    let errors = with(changes).expect_err("accepted").errors;
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.into_iter().next().unwrap()
}

#[test]
fn the_least_configuration_has_the_documented_defaults() {
    let config = accepted(&[]);
    assert_eq!(config.session_duration, Duration::from_secs(3600));
    assert_eq!(config.listen_addr.to_string(), "127.0.0.1:8080");
    assert_eq!(config.admin_addr.to_string(), "127.0.0.1:9090");
    assert_eq!(config.spool_max_bytes, 10 << 30);
    assert_eq!(config.batch_max_bytes, 16 << 20);
    assert_eq!(config.batch_max_age, Duration::from_secs(60));
    assert_eq!(
        (config.max_body_bytes, config.max_event_bytes, config.max_inflight_bytes),
        (16 << 20, 1 << 20, 32 << 20)
    );
    assert_eq!((config.max_connections, config.upload_concurrency), (1024, 4));
    assert_eq!(config.shutdown_grace, Duration::from_secs(25));
    assert_eq!((config.redact, config.allow_http, config.force_path_style), (true, false, false));
    assert_eq!(config.default_type, LogType::Deployments);
    assert_eq!(config.bucket_path, "");
}

#[test]
fn every_problem_is_reported_at_once_with_variable_value_expectation_and_example() {
    let errors = read(&[
        ("ENV0_S3_LOG_BUCKET_NAME", "s3://logs"),
        ("ENV0_S3_LOG_AWS_REGION", "eu-central-1"),
        ("ENV0_S3_LOG_OIDC_SUBJECT", "auth0|1"),
        ("ENV0_S3_LOG_BATCH_MAX_AGE", "5 minuts"),
        ("ENV0_S3_LOG_LISTEN_ADDR", "8080"),
    ])
    .expect_err("accepted");
    let text = errors.to_string();
    assert_eq!(errors.errors.len(), 4, "{text}");
    assert_eq!(text.lines().count(), 4);
    assert!(
        text.contains(
            "error: ENV0_S3_LOG_ROLE_ARN: required, and not set; example: ENV0_S3_LOG_ROLE_ARN=arn:aws:iam::"
        )
    );
    assert!(text.contains("ENV0_S3_LOG_BATCH_MAX_AGE=\"5 minuts\": expected a duration from"));
    assert!(text.contains("example: ENV0_S3_LOG_BATCH_MAX_AGE=60s"));
    assert!(text.contains("ENV0_S3_LOG_BUCKET_NAME=\"s3://logs\""));
    assert!(text.contains("ENV0_S3_LOG_LISTEN_ADDR=\"8080\""));
}

#[test]
fn an_unknown_variable_is_named_with_the_nearest_known_one_even_beside_errors() {
    for (unknown, nearest) in [
        ("ENV0_S3_LOG_BATCH_MAX_AG", "ENV0_S3_LOG_BATCH_MAX_AGE"),
        ("ENV0_S3_LOG_BUCKET", "ENV0_S3_LOG_BUCKET_NAME"),
        ("ENV0_S3_LOGS_BUCKET_NAME", "ENV0_S3_LOG_BUCKET_NAME"),
        ("ENV0_S3_AWS_REGION", "ENV0_S3_LOG_AWS_REGION"),
        ("ENV0_S3_LOG_REGION", "ENV0_S3_LOG_AWS_REGION"),
        ("ENV0_S3_LOG_SPOOL_DIRECTORY", "ENV0_S3_LOG_SPOOL_DIR"),
        ("ENV0_S3_LOG_CONCURRENCY", "ENV0_S3_LOG_UPLOAD_CONCURRENCY"),
        ("ENV0_S3_LOG_PREFIX", "ENV0_S3_LOG_BUCKET_PATH"),
        ("ENV0_S3_LOG_API_KEY_ID", "ENV0_API_KEY_ID"),
        ("ENV0_S3_LOG_CLOUDWATCH_ROLE_ARN", "ENV0_CLOUDWATCH_ROLE_ARN"),
        ("ENV0_CLOUDWATCH_ROLE", "ENV0_CLOUDWATCH_ROLE_ARN"),
        ("ENV0_CLOUDWATCH_LOG_GROUP_PREFIX", "ENV0_CLOUDWATCH_LOG_GROUP_NAME_PREFIX"),
        ("ENV0_CLOUDWATCH_REGION", "ENV0_CLOUDWATCH_AWS_REGION"),
        ("ENV0_API_KEY_SECERT", "ENV0_API_KEY_SECRET"),
        ("ENV0_OIDC_TOKENS", "ENV0_OIDC_TOKEN"),
        ("S3_LOG_BUCKET_NAME", "ENV0_S3_LOG_BUCKET_NAME"),
        ("env0_s3_log_bucket_path", "ENV0_S3_LOG_BUCKET_PATH"),
        ("ENV0_S3_LOG_bucket_path", "ENV0_S3_LOG_BUCKET_PATH"),
        ("Env0_Oidc_Token", "ENV0_OIDC_TOKEN"),
    ] {
        let told = &with(&[(unknown, "1")]).unwrap().unknown[0];
        assert!(told.starts_with(&format!("{unknown}: unknown variable; did you mean {nearest}?")), "{told}");
    }
    let told = &with(&[("ENV0_S3_LOG_SOMETHING_ELSE_ENTIRELY", "1")]).unwrap().unknown[0];
    assert!(told.contains("did you mean ENV0_"), "{told}");
    let empty = with(&[("ENV0_S3_LOG_BUCKET", " ")]).unwrap();
    assert!(empty.unknown.is_empty(), "an empty value counts as not set");
    let errors = read(&[("ENV0_S3_LOG_BUCKET", "logs")]).expect_err("accepted");
    assert!(errors.to_string().contains("warning: ENV0_S3_LOG_BUCKET: unknown variable"));
}

#[test]
fn no_error_warning_or_description_holds_a_secret() {
    let secret = "hunter2";
    let vars = [
        ("ENV0_S3_LOG_INGEST_TOKEN", secret),
        ("ENV0_S3_LOG_OIDC_TOKEN_URL", "hunter2"),
        ("HTTPS_PROXY", "ftp://user:hunter2@proxy"),
        ("AWS_ENDPOINT_URL_S3", "http://user:hunter2@store"),
        ("AWS_ENDPOINT_URL_STS", "user:hunter2@store"),
        ("ENV0_S3_LOG_OIDC_ISSUER", "https://hunter2@issuer"),
    ];
    let errors = with(&vars).expect_err("accepted");
    assert_eq!(errors.errors.len(), vars.len(), "{errors}");
    assert!(!errors.to_string().contains(secret), "{errors}");

    let loaded = with(&[
        ("ENV0_OIDC_TOKEN", "eyJhunter2"),
        ("ENV0_S3_LOG_INGEST_TOKEN", "hunter2-hunter2-hunter2"),
        ("ENV0_S3_LOG_OIDC_TOKEN_URL", "https://tokens/hunter2"),
        ("HTTP_PROXY", "http://user:hunter2@proxy"),
    ])
    .unwrap();
    let shown = format!("{}{:?}{:?}", loaded.describe(), loaded.settings, loaded.config);
    assert!(!shown.contains(secret), "{shown}");
    assert!(shown.contains("ENV0_OIDC_TOKEN=[redacted]  # environment"));
}

#[test]
fn an_empty_value_counts_as_not_set_and_space_around_one_is_trimmed() {
    let config = accepted(&[
        ("ENV0_S3_LOG_SPOOL_MAX_BYTES", "  "),
        ("ENV0_S3_LOG_BATCH_MAX_BYTES", " 64MiB\n"),
        ("ENV0_OIDC_TOKEN", " token\n"),
    ]);
    assert_eq!(config.spool_max_bytes, 10 << 30);
    assert_eq!(config.batch_max_bytes, 64 << 20);
    assert_eq!(config.oidc_token.unwrap().expose_secret(), "token");
}

#[test]
fn only_a_variable_of_our_own_has_to_be_utf8() {
    use std::os::unix::ffi::OsStringExt;
    let bad = || OsString::from_vec(vec![b'a', 0xff]);
    let least = || LEAST.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let foreign = least().chain([("LESSOPEN".into(), bad()), (bad(), bad())]);
    assert!(Config::from_vars(foreign, Purpose::Daemon).is_ok());
    let own = least().chain([("ENV0_S3_LOG_BUCKET_PATH".into(), bad())]);
    let errors = Config::from_vars(own, Purpose::Daemon).expect_err("accepted");
    assert!(errors.errors[0].starts_with("ENV0_S3_LOG_BUCKET_PATH: not UTF-8"), "{errors}");
}

#[test]
fn sizes_durations_and_booleans_take_their_documented_notations() {
    for (text, bytes) in
        [("500000", 500_000), ("64MiB", 64 << 20), ("10 gib", 10 << 30), ("1KB", 1000), ("2TiB", 2 << 40)]
    {
        assert_eq!(accepted(&[("ENV0_S3_LOG_SPOOL_MAX_BYTES", text)]).spool_max_bytes, bytes, "{text}");
    }
    for text in ["0", "-1", "1.5MiB", "MiB", "10 parsecs", "18446744073709551616", "99999999TiB", "0x10", "+5"] {
        assert!(refused(&[("ENV0_S3_LOG_SPOOL_MAX_BYTES", text)]).contains("expected a size"), "{text}");
    }
    for (text, millis) in [("90s", 90_000), ("5m", 300_000), ("3600", 3_600_000), ("2h", 7_200_000), ("500ms", 500)] {
        let age = accepted(&[("ENV0_S3_LOG_BATCH_MAX_AGE", text)]).batch_max_age;
        assert_eq!(age, Duration::from_millis(millis), "{text}");
    }
    for text in ["0", "1.5s", "5 minuts", "-3s", "9999999999999999999h", "s"] {
        assert!(refused(&[("ENV0_S3_LOG_BATCH_MAX_AGE", text)]).contains("expected a duration"), "{text}");
    }
    for (text, value) in
        [("1", true), ("TRUE", true), ("yes", true), ("on", true), ("0", false), ("no", false), ("Off", false)]
    {
        assert_eq!(accepted(&[("ENV0_S3_LOG_REDACT", text)]).redact, value, "{text}");
    }
    assert!(refused(&[("ENV0_S3_LOG_REDACT", "maybe")]).contains("true or false"));
}

#[test]
fn values_out_of_range_or_shape_are_refused() {
    let long_path = "a".repeat(974);
    for (name, value) in [
        ("ENV0_S3_LOG_SESSION_DURATION", "899"),
        ("ENV0_S3_LOG_SESSION_DURATION", "43201"),
        ("ENV0_S3_LOG_BATCH_MAX_BYTES", "6GiB"),
        ("ENV0_S3_LOG_UPLOAD_CONCURRENCY", "0"),
        ("ENV0_S3_LOG_MAX_CONNECTIONS", "0"),
        ("ENV0_S3_LOG_BUCKET_PATH", long_path.as_str()),
        ("ENV0_S3_LOG_BUCKET_PATH", "a//b"),
        ("ENV0_S3_LOG_BUCKET_PATH", "a/../b"),
        ("ENV0_S3_LOG_BUCKET_PATH", "./a"),
        ("ENV0_S3_LOG_BUCKET_PATH", "a\u{7}b"),
        ("ENV0_S3_LOG_ROLE_ARN", "env0-logs"),
        ("ENV0_S3_LOG_ROLE_ARN", "arn:aws:iam::111122223333:user/somebody"),
        ("ENV0_S3_LOG_ROLE_ARN", "arn:aws:iam::1111:role/short-account"),
        ("ENV0_S3_LOG_BUCKET_NAME", "Logs"),
        ("ENV0_S3_LOG_BUCKET_NAME", "lo"),
        ("ENV0_S3_LOG_BUCKET_NAME", "a..b"),
        ("ENV0_S3_LOG_BUCKET_NAME", "acme-env0-logs.s3.eu-west-1.amazonaws.com"),
        ("ENV0_S3_LOG_AWS_REGION", "EU (Frankfurt)"),
        ("ENV0_S3_LOG_INGEST_TOKEN", "short"),
        ("ENV0_S3_LOG_INGEST_TOKEN", "with a space in it"),
        ("ENV0_S3_LOG_INGEST_AUTH", "maybe"),
        ("ENV0_S3_LOG_DEFAULT_TYPE", "audits"),
        ("ENV0_S3_LOG_COMPRESSION", "lz4"),
        ("ENV0_S3_LOG_EXPECTED_BUCKET_OWNER", "1234"),
        ("ENV0_S3_LOG_OBJECT_TAGS", "a=1&b"),
        ("ENV0_S3_LOG_OBJECT_TAGS", "a=1&aws:x=y"),
        ("ENV0_S3_LOG_OBJECT_TAGS", "AWS%3Ax=y"),
        ("ENV0_S3_LOG_SPOOL_DIR", "/"),
        ("ENV0_S3_LOG_SPOOL_DIR", "~/spool"),
        ("ENV0_S3_LOG_INGEST_TOKEN_FILE", "$HOME/tokens"),
        ("ENV0_S3_LOG_OIDC_SUBJECT", "*"),
        ("ENV0_S3_LOG_OIDC_SUBJECT", "auth0|5f,auth0|"),
        ("ENV0_OIDC_TOKEN", "Bearer eyJhbGciOi.eyJzdWIi.c2ln"),
        ("ENV0_S3_LOG_OIDC_ISSUER", "login.app.env0.com"),
        ("ENV0_S3_LOG_LOG_LEVEL", "loud"),
        ("ENV0_S3_LOG_LOG_FORMAT", "xml"),
        ("ENV0_S3_LOG_SHUTDOWN_GRACE", "0"),
        ("ENV0_S3_LOG_TLS_CERT_FILE", "/tls.crt"),
        ("ENV0_S3_LOG_TLS_KEY_FILE", "/tls.key"),
        ("ENV0_S3_LOG_TLS_CLIENT_CA_FILE", "/ca.crt"),
        ("ENV0_S3_LOG_ADMIN_ADDR", "127.0.0.1:8080"),
        ("AWS_ENDPOINT_URL_S3", "s3.example.com"),
    ] {
        assert!(refused(&[(name, value)]).contains(name.rsplit('_').next().unwrap()), "{name}={value}");
    }
}

#[test]
fn a_value_that_nobody_can_have_meant_is_refused_for_every_variable() {
    for variable in VARIABLES {
        let example = variable.example;
        for value in [
            format!("\"{example}\""),
            format!("'{example}'"),
            format!("\u{feff}{example}"),
            format!("“{example}”"),
            format!("{example}${{NAME}}"),
            "${NAME:-default}".to_owned(),
            "$(NAME)".to_owned(),
            "{{ .Values.name }}".to_owned(),
            "$NAME_of_the_value".to_owned(),
            "%NAME%".to_owned(),
            format!("%NAME%{example}"),
            format!("`{example}`"),
            format!("{example}\""),
            format!("'{example}"),
            "<your-value-goes-here>".to_owned(),
            format!(r"{example}\n"),
            format!("{example}  # of the team"),
            "# of the team".to_owned(),
            "[redacted][REDACTED]".to_owned(),
            "****************".to_owned(),
            r#"{"value":"0123456789abcdef"}"#.to_owned(),
            format!("ENV0_S3_LOG_SOMETHING={example}"),
        ] {
            let errors = with(&[(variable.name, &value)]).expect_err(variable.name).errors;
            let of_it: Vec<_> =
                errors.iter().filter(|error| error.starts_with(&format!("{}=", variable.name))).collect();
            assert_eq!(of_it.len(), 1, "{value}: {errors:?}");
            assert!(of_it[0].contains("expected a value"), "{of_it:?}");
            assert!(!variable.secret || !of_it[0].contains(&format!("{value:?}")), "{of_it:?}");
        }
    }
}

#[test]
fn a_token_that_everybody_knows_or_that_holds_a_log_type_is_refused() {
    let long = "x".repeat(12_289);
    for token in [
        "change-me-0123456789abcdef",
        "0123456789abcdef,env0-audits",
        "env0-deployments",
        &long,
        "vault:secret/data/logs#token",
        "op://vault/item/field",
        "arn:aws:secretsmanager:us-east-1:111122223333:secret:x",
    ] {
        let error = refused(&[("ENV0_S3_LOG_INGEST_TOKEN", token)]);
        assert!(error.contains("expected a value") || error.contains("expected the secret itself"), "{error}");
    }
    assert!(with(&[("ENV0_S3_LOG_INGEST_TOKEN", &long[..12_288])]).is_ok());
}

#[test]
fn what_looks_odd_but_can_be_meant_is_accepted() {
    for (name, value) in [
        ("ENV0_S3_LOG_INGEST_TOKEN", "pa$$word%with'all\"of`it<>"),
        ("ENV0_S3_LOG_INGEST_TOKEN", "$2b$12$abcdefghijklmnop"),
        ("ENV0_S3_LOG_INGEST_TOKEN", "ends-with-a-star-*-and-%-$"),
        ("ENV0_S3_LOG_INGEST_TOKEN", "{abcdefghijklmnop}"),
        ("ENV0_S3_LOG_INGEST_TOKEN", "team-of-env0-audits"),
        ("ENV0_S3_LOG_OBJECT_TAGS", "team=%C3%A4%DEAD%20"),
        ("ENV0_S3_LOG_BUCKET_PATH", "50%/of%20it"),
        ("NO_PROXY", "*"),
    ] {
        assert!(with(&[(name, value)]).is_ok(), "{name}={value}");
    }
}

#[test]
fn an_organization_that_is_no_id_of_env0s_is_refused() {
    for placeholder in ["acme", "00000000-0000-0000-0000-000000000000", "51d48700-4aee-5a5d-a8a5-27a5c1471ac"] {
        let error = refused(&[("ENV0_S3_LOG_OIDC_ORGANIZATION_ID", placeholder)]);
        assert!(error.contains("Organization Settings"), "{error}");
    }
}

#[test]
fn a_refused_urls_query_is_not_shown() {
    let error = refused(&[("ENV0_S3_LOG_OIDC_ISSUER", "https://issuer.example.com/?key=s3cr3t")]);
    assert!(error.contains("https://issuer.example.com/?[redacted]") && !error.contains("s3cr3t"), "{error}");
}

#[test]
fn the_bucket_path_is_trimmed_and_takes_973_bytes() {
    let longest = "a".repeat(973);
    assert_eq!(accepted(&[("ENV0_S3_LOG_BUCKET_PATH", &longest)]).bucket_path, longest);
    assert_eq!(accepted(&[("ENV0_S3_LOG_BUCKET_PATH", "//env0/logs/")]).bucket_path, "env0/logs");
    assert_eq!(accepted(&[("ENV0_S3_LOG_BUCKET_PATH", "/")]).bucket_path, "");
}

#[test]
fn required_authentication_that_nobody_could_pass_says_where_the_id_is() {
    let error = refused(&[("ENV0_S3_LOG_OIDC_ORGANIZATION_ID", "")]);
    assert!(error.contains("env0's Organization Settings"), "{error}");
    for way_in in [
        ("ENV0_S3_LOG_INGEST_AUTH", "none"),
        ("ENV0_S3_LOG_INGEST_TOKEN", "0123456789abcdef"),
        ("ENV0_S3_LOG_INGEST_TOKEN_FILE", "/run/tokens"),
        ("ENV0_S3_LOG_OIDC_SUBJECT", "auth0|1"),
    ] {
        assert!(with(&[("ENV0_S3_LOG_OIDC_ORGANIZATION_ID", ""), way_in]).is_ok(), "{way_in:?}");
    }
}

#[test]
fn freed_event_endpoints_beyond_loopback_are_a_warning() {
    let free = ("ENV0_S3_LOG_INGEST_AUTH", "none");
    assert!(with(&[free]).unwrap().warnings.is_empty());
    let warnings = with(&[free, ("ENV0_S3_LOG_LISTEN_ADDR", "0.0.0.0:8080")]).unwrap().warnings;
    assert!(warnings[0].starts_with("ENV0_S3_LOG_INGEST_AUTH=none on 0.0.0.0:8080"), "{warnings:?}");
}

#[test]
fn tokens_never_leave_the_host_over_plain_http_unless_allowed() {
    for name in ["ENV0_S3_LOG_OIDC_ISSUER", "ENV0_S3_LOG_OIDC_TOKEN_URL", "AWS_ENDPOINT_URL_STS"] {
        assert!(refused(&[(name, "http://example.com/")]).contains("ENV0_S3_LOG_ALLOW_HTTP=true"), "{name}");
        assert!(with(&[(name, "http://example.com/"), ("ENV0_S3_LOG_ALLOW_HTTP", "true")]).is_ok(), "{name}");
        for loopback in ["http://127.0.0.1:1/", "http://localhost:1/", "http://[::1]:1/"] {
            assert!(with(&[(name, loopback)]).is_ok(), "{name}={loopback}");
        }
    }
    assert!(with(&[("AWS_ENDPOINT_URL_S3", "http://store.internal:9000")]).is_ok());
}

#[test]
fn a_limit_above_a_wider_one_counts_as_that_one() {
    let loaded = with(&[("ENV0_S3_LOG_MAX_INFLIGHT_BYTES", "2MiB"), ("ENV0_S3_LOG_MAX_EVENT_BYTES", "4MiB")]).unwrap();
    assert_eq!((loaded.config.max_body_bytes, loaded.config.max_event_bytes), (2 << 20, 2 << 20));
    assert_eq!(loaded.config.max_body_variable, "ENV0_S3_LOG_MAX_INFLIGHT_BYTES");
    assert_eq!(accepted(&[]).max_body_variable, "ENV0_S3_LOG_MAX_BODY_BYTES");
    let [of_event, of_body] = &loaded.warnings[..] else { panic!("{:?}", loaded.warnings) };
    assert!(of_body.contains("raise it, or set ENV0_S3_LOG_MAX_BODY_BYTES=2MiB"), "{of_body}");
    assert!(of_event.starts_with("ENV0_S3_LOG_MAX_EVENT_BYTES=4MiB is above"), "{of_event}");
    let meant = [("ENV0_S3_LOG_MAX_INFLIGHT_BYTES", "2MiB"), ("ENV0_S3_LOG_MAX_BODY_BYTES", "2MiB")];
    assert_eq!(with(&meant).unwrap().warnings, [""; 0]);
}

#[test]
fn proxies_are_read_in_either_case_and_with_or_without_a_scheme() {
    let config = accepted(&[
        ("https_proxy", "proxy:3128"),
        ("HTTPS_PROXY", "http://other:1"),
        (
            "no_proxy",
            "https://a.example/x, .svc,10.0.0.0/8,b.example:8443,https://c.example:1/,[::1]:80,fd00::1,*.d.example,*",
        ),
    ]);
    assert_eq!(config.network.https_proxy.unwrap().expose_secret(), "http://proxy:3128");
    let hosts = ["a.example", ".svc", "10.0.0.0/8", "b.example", "c.example", "::1", "fd00::1", ".d.example", "*"];
    assert_eq!(config.network.no_proxy, hosts);
}

#[test]
fn the_common_endpoint_stands_for_s3_and_sts_where_theirs_are_not_set() {
    let common = ("AWS_ENDPOINT_URL", "https://store.example:9000/");
    let config = accepted(&[common]);
    assert_eq!(config.endpoint_url_s3.as_deref(), Some("https://store.example:9000"));
    assert_eq!(config.endpoint_url_sts, config.endpoint_url_s3);
    let config = accepted(&[common, ("AWS_ENDPOINT_URL_STS", "https://sts.example")]);
    assert_eq!(config.endpoint_url_sts.as_deref(), Some("https://sts.example"));
    assert_eq!(config.endpoint_url_s3.as_deref(), Some("https://store.example:9000"));
    assert!(refused(&[("AWS_ENDPOINT_URL", "store")]).contains("AWS_ENDPOINT_URL="));
    assert!(refused(&[("AWS_ENDPOINT_URL", "http://store.example")]).contains("AWS_ENDPOINT_URL="), "tokens in clear");
}

#[test]
fn the_token_url_may_come_from_a_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "https://tokens/secret\n").unwrap();
    let path = file.path().to_str().unwrap();
    let config = accepted(&[("ENV0_S3_LOG_OIDC_TOKEN_URL_FILE", path)]);
    assert_eq!(config.oidc_token_url.unwrap().expose_secret(), "https://tokens/secret");
    assert!(refused(&[("ENV0_S3_LOG_OIDC_TOKEN_URL_FILE", "/nowhere")]).contains("can't be read"));
}

#[test]
fn drain_needs_no_senders_and_verify_no_role() {
    let vars = || [("ENV0_S3_LOG_BUCKET_NAME", "logs"), ("ENV0_S3_LOG_AWS_REGION", "eu-central-1")];
    let os = |(name, value): (&str, &str)| (OsString::from(name), OsString::from(value));
    assert!(Config::from_vars(vars().map(os), Purpose::Verify).is_ok());
    let errors = Config::from_vars(vars().map(os), Purpose::Drain).expect_err("accepted").errors;
    assert!(errors.len() == 1 && errors[0].contains("ROLE_ARN"), "{errors:?}");
}

#[test]
fn every_example_and_every_default_of_the_table_is_accepted() {
    let read_at_start = ["ENV0_S3_LOG_OIDC_TOKEN_URL_FILE", "ENV0_API_KEY_ID_FILE", "ENV0_API_KEY_SECRET_FILE"];
    for variable in VARIABLES.iter().filter(|variable| !read_at_start.contains(&variable.name)) {
        // Everybody knows the example of a token, so it is none.
        let example = if variable.name == "ENV0_S3_LOG_INGEST_TOKEN" { "0123456789abcdef" } else { variable.example };
        for value in [example].into_iter().chain(variable.default) {
            let mut changes = vec![("ENV0_S3_LOG_TLS_CERT_FILE", "/c"), ("ENV0_S3_LOG_TLS_KEY_FILE", "/k")];
            changes.extend(pull::KEY);
            changes.extend(cloudwatch::CLOUDWATCH);
            changes.push((variable.name, value));
            assert!(with(&changes).is_ok(), "{}={value}", variable.name);
        }
    }
}

#[test]
fn tokens_that_can_be_handed_over_in_clear_are_warned_of() {
    let everywhere = ("ENV0_S3_LOG_LISTEN_ADDR", "0.0.0.0:8080");
    let tls = [("ENV0_S3_LOG_TLS_CERT_FILE", "/c.pem"), ("ENV0_S3_LOG_TLS_KEY_FILE", "/k.pem")];
    let oidc = ("ENV0_S3_LOG_OIDC_ORGANIZATION_ID", "51d48700-4aee-5a5d-a8a5-27a5c1471ac6");
    let warnings = with(&[everywhere, oidc]).unwrap().warnings;
    assert!(warnings.iter().any(|warning| warning.contains("in clear on 0.0.0.0:8080")), "{warnings:?}");
    let in_clear = |changes: &[(&str, &str)]| with(changes).unwrap().warnings.iter().any(|w| w.contains("in clear"));
    assert!(!in_clear(&[oidc]));
    assert!(!in_clear(&[everywhere, oidc, tls[0], tls[1]]));
}

#[test]
fn a_spool_that_holds_no_more_than_the_copy_of_one_batch_is_refused() {
    let sizes = [("ENV0_S3_LOG_SPOOL_MAX_BYTES", "16MiB"), ("ENV0_S3_LOG_BATCH_MAX_BYTES", "16MiB")];
    assert!(with(&sizes).is_ok());
    let error = refused(&[sizes[0], sizes[1], ("ENV0_S3_LOG_COMPRESSION", "zstd")]);
    assert!(error.contains("ENV0_S3_LOG_SPOOL_MAX_BYTES=\"16MiB\"") && error.contains("BATCH_MAX_BYTES"), "{error}");
}
