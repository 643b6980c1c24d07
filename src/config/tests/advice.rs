use super::*;

/// Who names it means this machine.
const LOOPBACK: (&str, &str) = ("ENV0_S3_LOG_LISTEN_ADDR", "127.0.0.1:8080");

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
    assert_eq!(both, ["HTTPS_PROXY is set to another value than https_proxy, which counts; unset one of them"]);
}

#[test]
fn the_names_of_env0s_terraform_provider_are_told_where_the_daemons_own_are_missing() {
    let provider = [("ENV0_API_KEY", "canary-id"), ("ENV0_API_SECRET", "canary-secret")];
    let own = [("ENV0_API_KEY_ID", "an-id"), ("ENV0_API_KEY_SECRET", "a-secret")];
    let warnings = with(&provider).unwrap().warnings;
    let said = "ENV0_API_KEY (instead: ENV0_API_KEY_ID), ENV0_API_SECRET (instead: ENV0_API_KEY_SECRET)";
    assert!(warnings.len() == 1 && warnings[0].ends_with(said), "{warnings:?}");
    assert_eq!(with(&[&provider[..], &own, &[LOOPBACK]].concat()).unwrap().warnings, [""; 0]);
    // Where nobody could send either, they are the reason of the error, and stand below it.
    let said_of_all = read(&[&LEAST[..3], &provider].concat()).unwrap_err().to_string();
    assert!(said_of_all.contains("to pull, set ENV0_API_KEY_ID and ENV0_API_KEY_SECRET"), "{said_of_all}");
    assert!(said_of_all.contains(said) && !said_of_all.contains("canary"), "{said_of_all}");
}

#[test]
fn a_certificate_for_a_port_that_is_not_opened_is_warned_of() {
    let key = [("ENV0_API_KEY_ID", "an-id"), ("ENV0_API_KEY_SECRET", "a-secret")];
    let tls = [("ENV0_S3_LOG_TLS_CERT_FILE", "/c.pem"), ("ENV0_S3_LOG_TLS_KEY_FILE", "/k.pem")];
    let warnings = read(&[&LEAST[..3], &key, &tls].concat()).unwrap().warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("no port is opened"), "{warnings:?}");
    assert_eq!(with(&[&key[..], &tls, &[LOOPBACK]].concat()).unwrap().warnings, [""; 0]);
}

#[test]
fn a_pull_is_told_that_loopback_keeps_hand_overs_of_other_machines_out() {
    let organization = ("ENV0_S3_LOG_OIDC_ORGANIZATION_ID", "11111111-2222-3333-4444-555555555555");
    let pull = [organization, ("ENV0_API_KEY_ID", "an-id"), ("ENV0_API_KEY_SECRET", "a-secret")];
    let warned = |more: &[_]| with(&[&pull, more].concat()).unwrap().warnings.concat().contains("127.0.0.1:8080");
    assert!(warned(&[]));
    for settled in [
        LOOPBACK,
        ("ENV0_S3_LOG_LISTEN_ADDR", "0.0.0.0:8080"),
        ("ENV0_S3_LOG_OIDC_TOKEN_URL", "https://vault.example.com/token"),
    ] {
        assert!(!warned(&[settled]), "{settled:?}");
    }
    assert!(with(&[organization]).unwrap().warnings.is_empty(), "senders notice");
}

#[test]
fn an_environment_without_any_variable_of_the_daemons_is_told_how_exports_get_lost() {
    let said = |vars: &[(&str, &str)]| read(vars).unwrap_err().to_string();
    assert!(said(&[("HTTPS_PROXY", "proxy:1")]).contains("sudo and services don't pass on"));
    assert!(!said(&LEAST[..1]).contains("sudo"));
}

#[test]
fn of_two_names_of_one_value_the_one_that_does_not_count_is_named_without_either() {
    let warned = |set: &[(&str, &str)]| {
        let warnings = with(set).unwrap().warnings;
        let lines: Vec<_> = warnings.into_iter().filter(|line| line.contains("not read by this daemon")).collect();
        assert!(lines.len() < 2 && !lines.concat().contains("canary"), "{lines:?}");
        lines.concat()
    };
    let key = [("ENV0_API_KEY_ID", "canary-id"), ("ENV0_API_KEY_SECRET", "canary-secret")];
    for (first, second) in [
        (key[0], ("ENV0_API_KEY_ID_FILE", "/canary/id")),
        (key[1], ("ENV0_API_KEY_SECRET_FILE", "/canary/secret")),
        (("ENV0_S3_LOG_OIDC_TOKEN_URL", "https://canary/1"), ("ENV0_S3_LOG_OIDC_TOKEN_URL_FILE", "/canary/url")),
        (("ENV0_S3_LOG_OIDC_TOKEN_FILE", "/canary/1"), ("ENV0_OIDC_TOKEN_FILE", "/canary/2")),
    ] {
        let expected = format!("set, and not read by this daemon: {} (instead: {})", second.0, first.0);
        assert_eq!(warned(&[key[0], key[1], first, second]), expected);
        assert_eq!(warned(&[key[0], key[1], first]), "");
    }
    let same = [("ENV0_S3_LOG_OIDC_TOKEN_FILE", "/canary/1"), ("ENV0_OIDC_TOKEN_FILE", "/canary/1")];
    assert_eq!(warned(&same), "");
    // All tokens of these count.
    let tokens = [("ENV0_S3_LOG_INGEST_TOKEN", "canary-canary-canary"), ("ENV0_S3_LOG_INGEST_TOKEN_FILE", "/canary/1")];
    assert_eq!(warned(&tokens), "");
}

#[test]
fn what_is_allowed_and_can_hardly_work_is_a_warning_that_names_it() {
    for (name, value) in [
        ("ENV0_S3_LOG_MAX_EVENT_BYTES", "1"),
        ("ENV0_S3_LOG_MAX_BODY_BYTES", "16"),
        ("ENV0_S3_LOG_MAX_INFLIGHT_BYTES", "32"),
        ("ENV0_S3_LOG_SPOOL_MAX_BYTES", "10"),
        ("ENV0_S3_LOG_SPOOL_DIR", "spool"),
        ("ENV0_S3_LOG_BATCH_MAX_AGE", "901"),
        ("ENV0_S3_LOG_BATCH_MAX_AGE", "1ms"),
        ("ENV0_S3_LOG_BUCKET_PATH", "logs/team"),
        ("ENV0_S3_LOG_BUCKET_PATH", "team/%Y/%m"),
        ("ENV0_S3_LOG_BUCKET_PATH", "team/env0-audits"),
        ("ENV0_S3_LOG_BUCKET_NAME", "logs--use1-az4--x-s3"),
        ("ENV0_S3_LOG_OIDC_SUBJECT", "system:serviceaccount:env0-agent:env0-s3-logs"),
        ("RUST_LOG", "debg"),
    ] {
        let warnings = with(&[(name, value)]).unwrap().warnings;
        assert!(warnings.len() == 1 && warnings[0].starts_with(name), "{name}: {warnings:?}");
    }
    assert_eq!(accepted(&[("RUST_LOG", "debg")]).log_filter, None);
    assert_eq!(accepted(&[("RUST_LOG", "debug")]).log_filter.as_deref(), Some("debug"));
    for (name, value) in [
        ("ENV0_S3_LOG_BATCH_MAX_BYTES", "1"),
        ("ENV0_S3_LOG_BATCH_MAX_AGE", "15m"),
        ("ENV0_S3_LOG_BUCKET_PATH", "team/logs"),
        ("ENV0_S3_LOG_BUCKET_PATH", "logs-of-env0"),
    ] {
        assert_eq!(with(&[(name, value)]).unwrap().warnings, [""; 0], "{name}");
    }
}

#[test]
fn whose_tokens_and_logs_are_meant_is_judged_by_the_form_of_an_id() {
    const ORGANIZATION: &str = "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f8";
    let pull = |id: &str| {
        let key = [("ENV0_API_KEY_ID", "an-id"), ("ENV0_API_KEY_SECRET", "a-secret")];
        with(&[key[0], key[1], LOOPBACK, ("ENV0_S3_LOG_PULL_ORGANIZATION_ID", id)]).unwrap().warnings
    };
    assert_eq!(pull(ORGANIZATION), [""; 0]);
    let [name] = &pull(&format!("{ORGANIZATION},acme"))[..] else { panic!() };
    assert!(name.contains("has acme: ids of env0's organizations are UUIDs"), "{name}");
    let subject = refused(&[("ENV0_S3_LOG_OIDC_SUBJECT", ORGANIZATION)]);
    assert!(subject.contains("an organization's id goes into ENV0_S3_LOG_OIDC_ORGANIZATION_ID"), "{subject}");
    let of_a_cluster = [
        ("ENV0_S3_LOG_OIDC_SUBJECT", "system:serviceaccount:a:b"),
        ("ENV0_S3_LOG_OIDC_ISSUER", "https://oidc.example.com/cluster"),
    ];
    assert_eq!(with(&of_a_cluster).unwrap().warnings, [""; 0]);
}

#[test]
fn a_zone_is_no_region_and_a_storage_class_of_aws_is_one_of_its_own() {
    for zone in ["eu-west-1a", "us-east-1-bos-1a", "us-gov-west-1b"] {
        assert!(refused(&[("ENV0_S3_LOG_AWS_REGION", zone)]).contains("zone"), "{zone}");
    }
    for region in ["us-gov-west-1", "eusc-de-east-1", "nyc3", "fr-par", "default", "us-iad-10"] {
        let partition = match region {
            "us-gov-west-1" => "aws-us-gov",
            "eusc-de-east-1" => "aws-eusc",
            _ => "aws",
        };
        let role = format!("arn:{partition}:iam::111122223333:role/x");
        let given = [("ENV0_S3_LOG_AWS_REGION", region), ("ENV0_S3_LOG_ROLE_ARN", &*role)];
        assert_eq!(accepted(&given).aws_region, region);
    }
    let class = ("ENV0_S3_LOG_STORAGE_CLASS", "GLACIERR");
    assert!(refused(&[class]).contains("GLACIER_IR"));
    let elsewhere = accepted(&[class, ("AWS_ENDPOINT_URL_S3", "https://store.example")]);
    assert_eq!(elsewhere.storage_class.as_deref(), Some("GLACIERR"));
}

#[test]
fn regions_and_storage_classes_of_other_stores_have_names_of_their_own() {
    let [s3, sts] = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_STS"].map(|name| (name, "https://store.example"));
    for region in ["RegionOne", "GRA", "dc3-a", "1"] {
        let region = ("ENV0_S3_LOG_AWS_REGION", region);
        assert_eq!(accepted(&[region, s3, sts]).aws_region, region.1);
        assert_eq!(accepted(&[region, ("AWS_ENDPOINT_URL", "https://store.example")]).aws_region, region.1);
        for at_aws in [&[region][..], &[region, s3], &[region, sts]] {
            let is_awss_form = region.1 == "dc3-a";
            assert_eq!(with(at_aws).is_ok(), is_awss_form, "{at_aws:?}");
        }
    }
    for slip in ["EU-WEST-1", "eu-west-1a", "EU (Frankfurt)", "eu_west_1", "-a"] {
        let refused = refused(&[("ENV0_S3_LOG_AWS_REGION", slip), s3, sts]);
        assert!(refused.contains("ENV0_S3_LOG_AWS_REGION"), "{slip}: {refused}");
    }
    let class = ("ENV0_S3_LOG_STORAGE_CLASS", "cold-1");
    assert_eq!(accepted(&[class, s3]).storage_class.as_deref(), Some("cold-1"));
    assert!(refused(&[class]).contains("ENV0_S3_LOG_STORAGE_CLASS"));
}

#[test]
fn a_class_an_owner_and_a_key_that_aws_refuses_are_told_what_was_near() {
    let [s3, common] = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"].map(|name| (name, "https://store.example"));
    let dashes = ("ENV0_S3_LOG_EXPECTED_BUCKET_OWNER", "1111-2222-3333");
    for (given, near) in [
        (("ENV0_S3_LOG_STORAGE_CLASS", "glacier"), "nearest is GLACIER"),
        (("ENV0_S3_LOG_STORAGE_CLASS", "STANDARD-IA"), "nearest is STANDARD_IA"),
        (dashes, "111122223333"),
    ] {
        assert!(refused(&[given]).contains(near), "{given:?}");
        for elsewhere in [s3, common] {
            let warnings = with(&[given, elsewhere]).unwrap().warnings;
            let said = warnings.len() == 1 && warnings[0].starts_with(given.0) && warnings[0].contains(near);
            assert!(said && warnings[0].contains(&format!("the store of {} ", elsewhere.0)), "{warnings:?}");
        }
    }
    assert!(refused(&[("ENV0_S3_LOG_SSE_KMS_KEY_ID", "mykey")]).contains("such as alias/mykey"));
    for given in [("ENV0_S3_LOG_STORAGE_CLASS", "GLACIER"), ("ENV0_S3_LOG_EXPECTED_BUCKET_OWNER", "tenant-1$user")] {
        assert_eq!(with(&[given, s3]).unwrap().warnings, [""; 0], "{given:?}");
    }
}

#[test]
fn names_of_roles_and_buckets_are_held_to_awss_rules_at_aws_alone() {
    let ceph = ("ENV0_S3_LOG_ROLE_ARN", "arn:aws:iam::tenant1:role/S3Access");
    let minio = ("ENV0_S3_LOG_ROLE_ARN", "arn:minio:iam:::role/idmp-env0");
    let ecs = ("ENV0_S3_LOG_ROLE_ARN", "urn:ecs:iam::namespace1:role/env0");
    let owner = ("ENV0_S3_LOG_EXPECTED_BUCKET_OWNER", "tenant1$user");
    let bucket = ("ENV0_S3_LOG_BUCKET_NAME", "my_bucket");
    let [s3, sts] = [("AWS_ENDPOINT_URL_S3", "https://store"), ("AWS_ENDPOINT_URL_STS", "https://store")];
    for role in [ceph, minio, ecs] {
        assert_eq!(accepted(&[role, bucket, s3, sts]).role_arn, role.1);
        assert!(accepted(&[role, bucket, ("AWS_ENDPOINT_URL", "https://store")]).bucket_name == "my_bucket");
        assert!(refused(&[role, s3]).contains("ENV0_S3_LOG_ROLE_ARN"));
    }
    assert!(refused(&[bucket]).contains("ENV0_S3_LOG_BUCKET_NAME"));
    assert!(refused(&[bucket, sts]).contains("ENV0_S3_LOG_BUCKET_NAME"));
    assert_eq!(accepted(&[owner, s3]).expected_bucket_owner.as_deref(), Some("tenant1$user"));
    assert!(refused(&[owner, sts]).contains("ENV0_S3_LOG_EXPECTED_BUCKET_OWNER"));
    for wrong in ["s3://my_bucket", "my/bucket", "ab", "my bucket"] {
        assert!(refused(&[("ENV0_S3_LOG_BUCKET_NAME", wrong), s3]).contains("ENV0_S3_LOG_BUCKET_NAME"), "{wrong}");
    }
    assert!(refused(&[("ENV0_S3_LOG_ROLE_ARN", "arn:aws:iam::1:user/x"), sts]).contains("ENV0_S3_LOG_ROLE_ARN"));
}

#[test]
fn a_role_of_another_part_of_aws_than_the_region_is_refused() {
    let role = |partition: &str| format!("arn:{partition}:iam::111122223333:role/x");
    let is_refused = |partition: &str, region: &str, more: &[(&str, &str)]| {
        let role = role(partition);
        let changes = [&[("ENV0_S3_LOG_ROLE_ARN", &*role), ("ENV0_S3_LOG_AWS_REGION", region)], more].concat();
        let errors = with(&changes).err().map(|errors| errors.errors).unwrap_or_default();
        assert!(errors.len() < 2, "{errors:?}");
        errors.iter().any(|error| error.contains("where STS doesn't know ENV0_S3_LOG_ROLE_ARN, a role of"))
    };
    for (partition, region) in [("aws", "cn-north-1"), ("aws", "us-gov-west-1"), ("aws-cn", "eu-west-1")] {
        assert!(is_refused(partition, region, &[]), "{partition} {region}");
        assert!(
            !is_refused(partition, region, &[("AWS_ENDPOINT_URL_STS", "https://sts.example")]),
            "{partition} {region}"
        );
    }
    for (partition, region) in [("aws", "eu-west-1"), ("aws-cn", "cn-north-1"), ("aws-us-gov", "us-gov-west-1")] {
        assert!(!is_refused(partition, region, &[]), "{partition} {region}");
    }
}

#[test]
fn a_path_behind_an_endpoints_host_is_warned_of_and_the_buckets_name_there_refused() {
    let bucket = ("ENV0_S3_LOG_BUCKET_NAME", "my-logs");
    for name in ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"] {
        let error = refused(&[bucket, (name, "http://127.0.0.1:9000/my-logs/")]);
        assert!(error.starts_with(name) && error.contains("in the path twice"), "{error}");
        let warnings = with(&[bucket, (name, "http://127.0.0.1:9000/store")]).unwrap().warnings;
        assert!(warnings.len() == 1 && warnings[0].contains("has a path behind its host"), "{warnings:?}");
        assert_eq!(with(&[bucket, (name, "http://127.0.0.1:9000/")]).unwrap().warnings, [""; 0]);
    }
}

#[test]
fn an_archive_as_storage_class_is_warned_of_at_aws() {
    for class in ["GLACIER", "DEEP_ARCHIVE"] {
        let class = ("ENV0_S3_LOG_STORAGE_CLASS", class);
        let warnings = with(&[class]).unwrap().warnings;
        assert!(warnings.len() == 1 && warnings[0].contains("must be restored"), "{warnings:?}");
    }
    assert_eq!(with(&[("ENV0_S3_LOG_STORAGE_CLASS", "GLACIER_IR")]).unwrap().warnings, [""; 0]);
}

#[test]
fn a_size_in_another_units_words_is_told_in_its_own() {
    for (given, here) in
        [("10G", "here 10GiB"), ("10Gi", "here 10GiB"), ("1.5GiB", "here 1536MiB"), ("64m", "here 64MiB")]
    {
        let error = refused(&[("ENV0_S3_LOG_SPOOL_MAX_BYTES", given)]);
        assert!(error.contains(here), "{given}: {error}");
    }
    for given in ["10 apples", "1.2345GiB", ".G", "-1GiB", "0G", "G"] {
        assert!(!refused(&[("ENV0_S3_LOG_SPOOL_MAX_BYTES", given)]).contains("; here "), "{given}");
    }
}

#[test]
fn tags_that_s3_refuses_are_refused_at_the_start() {
    let long = |length| "n".repeat(length);
    for tags in
        ["a=1&a=2", "a=1&%61=2", "a=b!", "a=%00", "aws%3Ax=1", &format!("{}=1", long(129)), &format!("a={}", long(257))]
    {
        refused(&[("ENV0_S3_LOG_OBJECT_TAGS", tags)]);
    }
    for tags in ["a=1&A=2", "team=a+b%2Fc&empty=", "%C3%A9=x", &format!("{}={}", long(128), long(256))] {
        assert_eq!(accepted(&[("ENV0_S3_LOG_OBJECT_TAGS", tags)]).object_tags.as_deref(), Some(tags));
    }
}

#[test]
fn no_proxy_may_be_separated_by_white_space_too() {
    let hosts = accepted(&[("NO_PROXY", "localhost 10.0.0.0/8,\t.svc , *.example.com:443")]).network.no_proxy;
    assert_eq!(hosts, ["localhost", "10.0.0.0/8", ".svc", ".example.com"]);
}

#[test]
fn no_proxy_takes_a_dot_at_the_end_and_patterns_that_match_nothing_are_warned_of() {
    assert_eq!(accepted(&[("NO_PROXY", "localhost.,*.svc.")]).network.no_proxy, ["localhost", ".svc"]);
    for value in ["127.*", "local*", "*host", "a.example;b.example", "a.example|b.example"] {
        let warnings = with(&[("NO_PROXY", value)]).unwrap().warnings;
        assert!(warnings.len() == 1 && warnings[0].contains("matches no host"), "{value}: {warnings:?}");
    }
    for value in
        ["https://a.example?key=s3cr3t", "a.example/?s3cr3t", "https://user:s3cr3t@a.example:443?", "*#?s3cr3t"]
    {
        let warnings = with(&[("NO_PROXY", value)]).unwrap().warnings;
        assert!(warnings.len() == 1 && warnings[0].contains("[redacted]"), "{value}: {warnings:?}");
        assert!(!warnings[0].contains("s3cr3t"), "{value}: {warnings:?}");
    }
}

#[test]
fn a_url_of_more_than_4096_bytes_is_refused_wherever_one_is_given() {
    let url = |bytes: usize| format!("https://a.example/{}", "x".repeat(bytes - "https://a.example/".len()));
    for name in [
        "ENV0_S3_LOG_OIDC_ISSUER",
        "ENV0_S3_LOG_OIDC_TOKEN_URL",
        "ENV0_S3_LOG_API_URL",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_ENDPOINT_URL_STS",
        "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS",
        "HTTPS_PROXY",
        "HTTP_PROXY",
    ] {
        assert!(with(&[(name, &url(4096))]).is_ok(), "{name}");
        for bytes in [4097, 70_000] {
            let error = refused(&[(name, &url(bytes))]);
            assert!(
                error.starts_with(name) && error.contains(&format!("at most 4096 bytes; this one has {bytes}")),
                "{error}"
            );
            assert!(error.len() < 500, "{error}");
        }
    }
}

#[test]
fn an_endpoint_that_has_the_bucket_in_its_host_already_is_refused() {
    for name in ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"] {
        let given = [("ENV0_S3_LOG_BUCKET_NAME", "my-logs"), (name, "https://my-logs.s3.eu-west-1.amazonaws.com")];
        let error = refused(&given);
        assert!(error.starts_with(name) && error.contains("twice"), "{error}");
    }
    for host in ["logs.example.com", "logs.s3.internal"] {
        let url = format!("https://{host}");
        assert!(with(&[("ENV0_S3_LOG_BUCKET_NAME", "logs"), ("AWS_ENDPOINT_URL_S3", &url)]).is_ok(), "{host}");
    }
}

#[test]
fn an_endpoint_of_another_region_than_the_configured_one_is_warned_of() {
    let told = |url: &str| {
        with(&[("AWS_ENDPOINT_URL_S3", url), ("ENV0_S3_LOG_AWS_REGION", "eu-west-1")]).unwrap().warnings.join("\n")
    };
    for host in ["s3.eu-central-1", "s3-eu-central-1", "vpce-1-2.s3.eu-central-1.vpce", "s3.dualstack.eu-central-1"] {
        let warned = told(&format!("https://{host}.amazonaws.com"));
        assert!(
            warned.contains("is the endpoint of eu-central-1, and ENV0_S3_LOG_AWS_REGION is eu-west-1"),
            "{host}: {warned}"
        );
    }
    for url in ["https://s3.eu-west-1.amazonaws.com", "https://s3.amazonaws.com", "https://s3.eu-central-1.example.com"]
    {
        assert!(!told(url).contains("is the endpoint of"), "{url}: {}", told(url));
    }
}

#[test]
fn a_value_that_is_another_thing_than_was_asked_for_is_refused() {
    for (name, value) in [
        ("ENV0_S3_LOG_ROLE_ARN", "arn:aws:iam::111122223333:role/<name>"),
        ("ENV0_S3_LOG_ROLE_ARN", "arn:aws:iam::111122223333:role/x*"),
        ("ENV0_S3_LOG_BUCKET_NAME", "192.168.1.1"),
        ("ENV0_S3_LOG_BUCKET_NAME", "a.b-.c"),
        ("ENV0_S3_LOG_OIDC_ISSUER", "https://login.app.env0.com/.well-known/jwks.json"),
        ("ENV0_S3_LOG_OIDC_SUBJECT", "auth0|1 auth0|2"),
        ("ENV0_S3_LOG_SPOOL_DIR", "file:///var/lib/x"),
        ("ENV0_S3_LOG_OIDC_TOKEN_FILE", "https://host/token"),
        ("ENV0_S3_LOG_SSE_KMS_KEY_ID", "true"),
        ("ENV0_S3_LOG_SSE_KMS_KEY_ID", "aws/s3"),
        ("HTTPS_PROXY", "None"),
        ("HTTP_PROXY", "direct"),
        ("AWS_ENDPOINT_URL_S3", "http://localhost:9000#x"),
    ] {
        assert!(refused(&[(name, value)]).starts_with(name), "{name}={value}");
    }
    for (name, value) in [
        ("ENV0_S3_LOG_ROLE_ARN", "arn:aws:iam::111122223333:role/a/path/x+=,.@_-"),
        ("ENV0_S3_LOG_BUCKET_NAME", "10.logs"),
        ("ENV0_S3_LOG_SSE_KMS_KEY_ID", "1234abcd-12ab-34cd-56ef-1234567890ab"),
        ("ENV0_S3_LOG_SSE_KMS_KEY_ID", "alias/aws/s3"),
        ("HTTPS_PROXY", "proxy"),
    ] {
        assert_eq!(with(&[(name, value)]).unwrap().warnings, [""; 0], "{name}={value}");
    }
    let key = ("ENV0_S3_LOG_SSE_KMS_KEY_ID", "arn:aws:kms:us-east-1:111122223333:key/1");
    let warnings = with(&[key]).unwrap().warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("key in us-east-1"), "{warnings:?}");
    let elsewhere = accepted(&[("ENV0_S3_LOG_SSE_KMS_KEY_ID", "my-key"), ("AWS_ENDPOINT_URL", "https://store")]);
    assert_eq!(elsewhere.sse_kms_key_id.as_deref(), Some("my-key"));
}

#[test]
fn each_token_that_the_documents_print_is_refused() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let documents = ["README.md", "config/README.md", "config/example.env"]
        .map(|path| std::fs::read_to_string(folder.join(path)).unwrap());
    let lines = documents.iter().flat_map(|text| text.lines());
    let of_files =
        lines.clone().filter_map(|line| line.strip_suffix(" env0-audits").or(line.strip_suffix(" env0-deployments")));
    let of_variables = lines.filter_map(|line| line.split_once("ENV0_S3_LOG_INGEST_TOKEN=")).map(|(_, value)| value);
    let tokens: Vec<_> = of_files.chain(of_variables).filter(|token| !token.contains([' ', '$', '<', '`'])).collect();
    assert!(tokens.len() >= 3, "{tokens:?}");
    for token in tokens {
        assert!(with(&[("ENV0_S3_LOG_INGEST_TOKEN", token)]).is_err(), "{token}");
    }
}

#[test]
fn an_example_of_the_readme_that_was_left_in_is_warned_of_by_name() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let section = |heading: &str| readme.split_once(heading).unwrap().1.split("\n### Push").next().unwrap();
    let exports = section("\n## Your bucket").lines().filter_map(|line| line.trim().strip_prefix("export "));
    let left: Vec<_> = exports.filter_map(|line| line.split_once('=')).collect();
    assert_eq!(left.len(), 5, "{left:?}");
    let warnings = read(&left).unwrap().warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for (name, value) in left {
        // The region may well be one's own.
        assert_eq!(warnings[0].contains(name), name != "ENV0_S3_LOG_AWS_REGION", "{warnings:?}");
        assert!(!warnings[0].contains(value), "{warnings:?}");
    }
}
