//! A configuration or spool that can't be used ends the start with its own message and exit code.

use crate::harness::{DEPLOYMENTS, Finished, Setup, TOKEN, event, wait_until, wait_until_delivered};
use crate::local_aws::{Fault, LocalAws};

/// Wrong usage of a variable.
const CONFIGURATION: Option<i32> = Some(78);
/// The spool is locked, or can't be created.
const SPOOL: Option<i32> = Some(73);

fn setup() -> Setup {
    Setup::new(&LocalAws::start())
}

/// The lines of standard error that name `variable`.
fn about<'a>(finished: &'a Finished, variable: &str) -> Vec<&'a str> {
    finished.stderr.lines().filter(|line| line.contains(variable)).collect()
}

#[test]
fn a_malformed_variable_is_named_with_its_value() {
    let finished = setup().set("ENV0_S3_LOG_BATCH_MAX_AGE", "5 minuts").run("run");
    assert_eq!(finished.code, CONFIGURATION, "{}", finished.stderr);
    let lines = about(&finished, "ENV0_S3_LOG_BATCH_MAX_AGE");
    assert!(lines.len() == 1 && lines[0].contains("5 minuts") && lines[0].contains("60s"), "{}", finished.stderr);
}

#[test]
fn two_malformed_variables_are_named_at_once() {
    let setup = setup().set("ENV0_S3_LOG_BATCH_MAX_AGE", "5 minuts").set("ENV0_S3_LOG_SESSION_DURATION", "10");
    let finished = setup.run("run");
    assert_eq!(finished.code, CONFIGURATION);
    for variable in ["ENV0_S3_LOG_BATCH_MAX_AGE", "ENV0_S3_LOG_SESSION_DURATION"] {
        assert_eq!(about(&finished, variable).len(), 1, "{}", finished.stderr);
    }
}

#[test]
fn missing_variables_are_named_at_once_and_an_empty_one_is_missing() {
    let setup = setup().unset("ENV0_S3_LOG_ROLE_ARN").set("ENV0_S3_LOG_BUCKET_NAME", " ");
    let finished = setup.run("run");
    assert_eq!(finished.code, CONFIGURATION);
    for variable in ["ENV0_S3_LOG_ROLE_ARN", "ENV0_S3_LOG_BUCKET_NAME"] {
        assert_eq!(about(&finished, variable).len(), 1, "{}", finished.stderr);
    }
}

#[test]
fn files_that_can_not_be_used_are_named_together_with_the_variables() {
    let setup = setup();
    let file = |name: &str, content: &str| {
        let path = setup.folder().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (tokens, key, ca) = (file("tokens", "shortsecret\n"), file("key.pem", ""), file("ca.pem", "no certificate"));
    let files = [
        ("ENV0_S3_LOG_INGEST_TOKEN_FILE", tokens),
        ("ENV0_S3_LOG_TLS_CERT_FILE", "/nowhere/cert.pem".to_owned()),
        ("ENV0_S3_LOG_TLS_KEY_FILE", key.clone()),
        ("ENV0_S3_LOG_TLS_CLIENT_CA_FILE", ca.clone()),
        ("ENV0_S3_LOG_SIGNING_KEY_FILE", key),
        ("AWS_CA_BUNDLE", ca),
    ];
    let setup = files.iter().fold(setup, |setup, (variable, path)| setup.set(variable, path));
    let mut setup = setup;
    for (max_age, errors) in [("1s", 6), ("5 minuts", 7)] {
        setup = setup.set("ENV0_S3_LOG_BATCH_MAX_AGE", max_age);
        let (started, checked) = (setup.run("run"), setup.run("check --offline"));
        assert_eq!((started.code, checked.code), (CONFIGURATION, CONFIGURATION), "{}", started.stderr);
        let lines = started.stderr.lines().filter(|line| line.starts_with("error: ")).count();
        assert_eq!(lines, errors, "{}", started.stderr);
        assert_eq!(checked.stdout.matches("[fail] files").count(), 6, "{}", checked.stdout);
        for (variable, path) in &files {
            let line = about(&started, variable)[0];
            assert!(line.contains(&format!("{path:?}")) && line.contains("expected"), "{line}");
            assert!(line.contains(&format!("example: {variable}=")), "{line}");
            assert!(checked.stdout.contains(line.trim_start_matches("error: ")), "{}", checked.stdout);
        }
        assert!(!(started.stderr + &checked.stdout).contains("shortsecret"));
    }
}

#[test]
fn a_secret_is_never_shown() {
    let setup = setup().set("ENV0_S3_LOG_INGEST_TOKEN", "shortsecret").set("ENV0_S3_LOG_BATCH_MAX_AGE", "x");
    let finished = setup.run("run");
    assert_eq!(finished.code, CONFIGURATION);
    assert_eq!(about(&finished, "ENV0_S3_LOG_INGEST_TOKEN").len(), 1, "{}", finished.stderr);
    assert!(!(finished.stderr + &finished.stdout).contains("shortsecret"));
}

#[test]
fn ingest_that_nobody_could_use_is_refused_and_says_where_to_find_the_id() {
    let finished = setup().unset("ENV0_S3_LOG_INGEST_TOKEN").run("run");
    assert_eq!(finished.code, CONFIGURATION);
    assert!(finished.stderr.contains("ENV0_S3_LOG_OIDC_ORGANIZATION_ID"), "{}", finished.stderr);
}

#[test]
fn an_unknown_variable_is_a_warning_that_names_the_nearest() {
    let setup = setup().set("ENV0_S3_LOG_BATCH_MAX_BYTE", "1MiB");
    let daemon = setup.start();
    wait_until("the warning is logged", || {
        let text = daemon.log().text();
        text.contains("ENV0_S3_LOG_BATCH_MAX_BYTE") && text.contains("ENV0_S3_LOG_BATCH_MAX_BYTES")
    });
}

#[test]
fn a_spool_under_a_regular_file_can_not_be_created() {
    let setup = setup();
    let file = setup.folder().join("file");
    std::fs::write(&file, "not a folder").unwrap();
    let spool = file.join("spool").to_str().unwrap().to_owned();
    let finished = setup.set("ENV0_S3_LOG_SPOOL_DIR", spool.clone()).run("run");
    assert_eq!(finished.code, SPOOL, "{}", finished.stderr);
    assert!(finished.stderr.contains(&spool), "{}", finished.stderr);
}

#[test]
fn a_spool_in_use_is_refused_and_its_daemon_goes_on() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    let finished = setup.run("run");
    assert_eq!(finished.code, SPOOL, "{}", finished.stderr);
    assert!(finished.stderr.contains(setup.spool().to_str().unwrap()), "{}", finished.stderr);
    assert_eq!(daemon.post(DEPLOYMENTS, event("after")).accepted(), 1);
    wait_until_delivered(&setup);
    assert_eq!(aws.s3.lines(), [event("after")]);
}

#[test]
fn a_spool_that_still_holds_batches_for_another_bucket_is_refused() {
    let aws = LocalAws::start();
    aws.s3.inject(Fault::slow_down());
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    assert_eq!(daemon.post(DEPLOYMENTS, event("waiting")).accepted(), 1);
    daemon.kill();

    let setup = setup.set("ENV0_S3_LOG_BUCKET_NAME", "another-bucket");
    let finished = setup.run("run");
    assert_eq!(finished.code, CONFIGURATION, "{}", finished.stderr);
    for part in [crate::local_aws::BUCKET, "another-bucket", "drain"] {
        assert!(finished.stderr.contains(part), "no {part} in {}", finished.stderr);
    }

    aws.s3.heal();
    let setup = setup.set("ENV0_S3_LOG_BUCKET_NAME", crate::local_aws::BUCKET);
    let mut daemon = setup.start();
    wait_until_delivered(&setup);
    assert_eq!(aws.s3.lines(), [event("waiting")]);
    assert!(daemon.terminate().success());
    let _adopted = setup.set("ENV0_S3_LOG_BUCKET_PATH", "elsewhere").start();
}

#[test]
fn the_token_may_come_from_a_file_that_ends_in_a_newline() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).unset("ENV0_OIDC_TOKEN");
    let file = setup.folder().join("token");
    std::fs::write(&file, aws.issuer.token() + "\n").unwrap();
    let setup = setup.set("ENV0_S3_LOG_OIDC_TOKEN_FILE", file.to_str().unwrap());
    let daemon = setup.start();
    assert_eq!(daemon.post(DEPLOYMENTS, event("by file")).accepted(), 1);
    wait_until_delivered(&setup);
    assert_eq!(aws.s3.lines(), [event("by file")]);
    assert!(!daemon.log().text().contains(TOKEN));
}

#[test]
fn values_with_control_characters_and_marks_of_direction_are_written_escaped() {
    let odd = "abc\u{1b}[31m\u{7}x\u{202e}y\u{9b}1m";
    let setup = setup().set("ENV0_S3_LOG_OIDC_SUBJECT", odd).set("NO_PROXY", format!("{odd}\nFORGED=x"));
    let Finished { code, stdout, stderr } = setup.run("config");
    assert_eq!(code, Some(0), "{stderr}");
    let raw = |c: &char| (c.is_control() && *c != '\n') || *c == '\u{202e}';
    assert_eq!(stdout.chars().find(raw), None, "{stdout:?}");
    assert!(stdout.contains("abc\\u001b[31m") && !stdout.contains("\nFORGED"), "{stdout}");
}

#[test]
fn a_url_in_the_place_of_a_path_is_not_repeated() {
    for value in ["//user:SECRET@host/x", "/user:SECRET@host"] {
        let finished = setup().set("ENV0_S3_LOG_OIDC_TOKEN_URL_FILE", value).run("config");
        assert_eq!(finished.code, CONFIGURATION);
        assert!(!format!("{finished:?}").contains("SECRET"), "{finished:?}");
    }
}

#[test]
fn a_file_of_roots_that_is_a_pipe_or_a_device_ends_the_check_soon() {
    let setup = setup();
    let pipe = setup.folder().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
    let mut setup = setup;
    for (path, words) in [(pipe.to_str().unwrap(), "nobody writes to the pipe"), ("/dev/zero", "it is a device")] {
        setup = setup.set("SSL_CERT_FILE", path);
        let finished = setup.run("check --offline");
        assert!(finished.code == CONFIGURATION && finished.stdout.contains(words), "{finished:?}");
        // The other variable wins, and this one is still read by whatever reads the system's roots.
        let beside = setup.folder().join("ca.pem");
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&beside, made.cert.pem()).unwrap();
        setup = setup.set("AWS_CA_BUNDLE", beside.to_str().unwrap());
        assert!(setup.run("check --offline").stdout.contains("[ok]   configuration"), "{path}");
        setup = setup.unset("AWS_CA_BUNDLE");
    }
}
