use super::*;

#[test]
fn two_listeners_on_one_port_are_refused_whatever_address_includes_the_other() {
    let at = |listen: &str, admin: &str| {
        with(&[("ENV0_S3_LOG_LISTEN_ADDR", listen), ("ENV0_S3_LOG_ADMIN_ADDR", admin)]).is_ok()
    };
    for (one, other) in [
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("[::]:8080", "0.0.0.0:8080"),
        ("0.0.0.0:8080", "127.0.0.1:8080"),
        ("[::]:8080", "127.0.0.1:8080"),
        ("[::ffff:127.0.0.1]:8080", "127.0.0.1:8080"),
    ] {
        assert!(!at(one, other) && !at(other, one), "{one} {other}");
    }
    for (one, other) in [
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("[::]:8080", "0.0.0.0:8081"),
        ("127.0.0.1:8080", "127.0.0.2:8080"),
        ("0.0.0.0:8080", "[::1]:8080"),
    ] {
        assert!(at(one, other) && at(other, one), "{one} {other}");
    }
}

#[test]
fn what_others_read_and_the_daemon_does_not_is_named_once_without_its_value() {
    let set = [
        ("all_proxy", "http://user:password@proxy:1"),
        ("Https_Proxy", "proxy:1"),
        ("AWS_PROFILE", "p"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_USE_FIPS_ENDPOINT", "TRUE"),
        ("REQUESTS_CA_BUNDLE", "/ca"),
    ];
    let warnings = with(&set).unwrap().warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for (name, _) in set {
        assert!(warnings[0].contains(name), "{name}: {warnings:?}");
    }
    assert!(!warnings[0].contains("password"), "{warnings:?}");
    let harmless = [
        ("HTTPS_PROXY", "proxy:1"),
        ("all_proxy", "proxy:1"),
        ("AWS_PROFILE", " "),
        ("aws_profile", "p"),
        ("AWS_DEFAULT_REGION", "eu-central-1"),
        ("AWS_USE_FIPS_ENDPOINT", "false"),
        ("AWS_CA_BUNDLE", "/ca"),
        ("REQUESTS_CA_BUNDLE", "/ca"),
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/x"),
    ];
    assert_eq!(with(&harmless).unwrap().warnings, [""; 0]);
    let both = with(&[("HTTPS_PROXY", "a:1"), ("https_proxy", "b:1")]).unwrap().warnings;
    assert_eq!(both, ["HTTPS_PROXY is set to another value than https_proxy, which counts"]);
}

#[test]
fn what_is_allowed_and_can_hardly_work_is_a_warning_that_names_it() {
    for (name, value) in [
        ("ENV0_S3_LOG_MAX_EVENT_BYTES", "1"),
        ("ENV0_S3_LOG_MAX_BODY_BYTES", "16"),
        ("ENV0_S3_LOG_MAX_INFLIGHT_BYTES", "32"),
        ("ENV0_S3_LOG_SPOOL_MAX_BYTES", "10"),
        ("ENV0_S3_LOG_SPOOL_DIR", "spool"),
        ("RUST_LOG", "debg"),
    ] {
        let warnings = with(&[(name, value)]).unwrap().warnings;
        assert!(warnings.len() == 1 && warnings[0].starts_with(name), "{name}: {warnings:?}");
    }
    assert_eq!(accepted(&[("RUST_LOG", "debg")]).log_filter, None);
    assert_eq!(accepted(&[("RUST_LOG", "debug")]).log_filter.as_deref(), Some("debug"));
    assert_eq!(with(&[("ENV0_S3_LOG_BATCH_MAX_BYTES", "1")]).unwrap().warnings, [""; 0]);
}

#[test]
fn a_zone_is_no_region_and_a_storage_class_of_aws_is_one_of_its_own() {
    for zone in ["eu-west-1a", "us-east-1-bos-1a", "us-gov-west-1b"] {
        assert!(refused(&[("ENV0_S3_LOG_AWS_REGION", zone)]).contains("zone"), "{zone}");
    }
    for region in ["us-gov-west-1", "eusc-de-east-1", "nyc3", "fr-par", "default", "us-iad-10"] {
        assert_eq!(accepted(&[("ENV0_S3_LOG_AWS_REGION", region)]).aws_region, region);
    }
    let class = ("ENV0_S3_LOG_STORAGE_CLASS", "GLACIERR");
    assert!(refused(&[class]).contains("GLACIER_IR"));
    let elsewhere = accepted(&[class, ("AWS_ENDPOINT_URL_S3", "https://store.example")]);
    assert_eq!(elsewhere.storage_class.as_deref(), Some("GLACIERR"));
}
