//! `check` beside a running daemon whose token was handed over: it tells what the daemon was told.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use crate::harness::{DEPLOYMENTS, Daemon, Finished, Setup, TOKEN, Upload, event, wait_for, wait_until};
use crate::local_aws::{BUCKET, Fault, LocalAws, Operation};

/// A daemon with a token, and the setup of a check that has none.
fn beside(setup: Setup) -> (Daemon, Setup) {
    let daemon = setup.start();
    let admin = daemon.admin.to_string();
    (daemon, setup.unset("ENV0_OIDC_TOKEN").set("ENV0_S3_LOG_ADMIN_ADDR", admin))
}

fn status(daemon: &Daemon) -> Value {
    daemon.admin_get("/status").unwrap().json()
}

fn line<'a>(finished: &'a Finished, start: &str) -> &'a str {
    finished.stdout.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{}", finished.stdout))
}

#[test]
fn the_daemon_asks_its_bucket_and_check_tells_the_answer() {
    let aws = LocalAws::start();
    let (daemon, check) = beside(Setup::new(&aws));
    let bucket = wait_for("the bucket answers", || status(&daemon).get("bucket").cloned());
    assert_eq!((&bucket["region"], &bucket["error"]), (&"eu-west-1".into(), &Value::Null), "{bucket}");
    let finished = check.run("check");
    let told = line(&finished, "[ok]   bucket");
    assert!(told.contains("the running daemon asked at") && told.contains(BUCKET), "{told}");
}

#[test]
fn a_bucket_that_is_missing_or_denied_to_the_daemon_fails_the_check_with_its_remedy() {
    let aws = LocalAws::start();
    let (daemon, check) = beside(Setup::new(&aws).set("ENV0_S3_LOG_BUCKET_NAME", "a-mistaken-name"));
    wait_until("the bucket is missed", || status(&daemon)["bucket"]["code"] == "NoSuchBucket");
    let finished = check.run("check");
    assert_eq!(finished.code, Some(78), "{}", finished.stdout);
    assert!(line(&finished, "[fail] bucket").contains("a-mistaken-name"), "{}", finished.stdout);
    assert!(finished.stdout.contains("make the bucket"), "{}", finished.stdout);

    aws.s3.inject(Fault::access_denied().on(Operation::GetBucketLocation));
    let (daemon, check) = beside(Setup::new(&aws));
    wait_until("the bucket is denied", || status(&daemon)["bucket"]["code"] == "AccessDenied");
    let finished = check.run("check");
    assert_eq!(finished.code, Some(77), "{}", finished.stdout);
    assert!(finished.stdout.contains("allow the role s3:GetBucketLocation"), "{}", finished.stdout);
}

#[test]
fn a_check_for_another_spool_or_bucket_than_the_daemons_says_which_differs() {
    let aws = LocalAws::start();
    let (daemon, check) = beside(Setup::new(&aws));
    let finished = check.run("check");
    assert!(!finished.stdout.contains("other settings"), "{}", finished.stdout);
    let folder = tempfile::tempdir().unwrap();
    let check = check
        .set("ENV0_S3_LOG_SPOOL_DIR", folder.path().display().to_string())
        .set("ENV0_S3_LOG_BUCKET_NAME", "another-bucket");
    let finished = check.run("check");
    let told = line(&finished, "[warn] daemon");
    for word in ["ENV0_S3_LOG_SPOOL_DIR is ", "ENV0_S3_LOG_BUCKET_NAME is ", BUCKET, "here \"another-bucket\""] {
        assert!(told.contains(word), "{word}: {told}");
    }
    assert!(!told.contains("ENV0_S3_LOG_BUCKET_PATH"), "{told}");
    assert!(finished.stdout.contains("Next: daemon: "), "{}", finished.stdout);
    drop(daemon);
}

#[test]
fn a_check_with_a_setting_that_the_running_daemon_lacks_names_it_and_no_secret() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_BATCH_MAX_AGE", "1h").set("ENV0_S3_LOG_COMPRESSION", "gzip");
    let (_daemon, check) = beside(setup);
    assert!(!check.run("check --offline").stdout.contains("other settings"));
    // The same as not to set it.
    let check =
        check.set("ENV0_S3_LOG_SPOOL_MAX_BYTES", "10GiB").set("ENV0_S3_LOG_INGEST_TOKEN", "another-token-0123456789");
    assert!(!check.run("check --offline").stdout.contains("other settings"));
    let check = check.set("ENV0_S3_LOG_BATCH_MAX_AGE", "5s").set("ENV0_S3_LOG_OBJECT_TAGS", "team=logs");
    let finished = check.unset("ENV0_S3_LOG_COMPRESSION").run("check --offline");
    let told = line(&finished, "[warn] daemon");
    for words in [
        "ENV0_S3_LOG_BATCH_MAX_AGE has another value, here \"5s\"",
        "ENV0_S3_LOG_OBJECT_TAGS isn't set, here \"team=logs\"",
        "ENV0_S3_LOG_COMPRESSION is set, and not here",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert!(!told.contains("SPOOL_MAX") && !told.contains("TOKEN"), "{told}");
    assert!(finished.stdout.contains("restart the daemon where these are the new settings"), "{}", finished.stdout);
}

#[test]
fn bytes_of_senders_that_are_no_text_are_told_by_log_status_and_check() {
    let aws = LocalAws::start();
    let (daemon, check) = beside(Setup::new(&aws));
    let told = "bytes that are not UTF-8 were stored as U+FFFD";
    assert_eq!(daemon.post(DEPLOYMENTS, "caf\u{e9}").status, 200);
    assert_eq!((daemon.log().count("WARN", told), status(&daemon)["types"][0].get("bytes_replaced")), (0, None));
    // Lines that are the same would be held back anyway.
    for bytes in 1..4 {
        assert_eq!(daemon.post(DEPLOYMENTS, [&b"caf"[..], &b"\xe9".repeat(bytes)].concat()).status, 200);
    }
    assert_eq!(status(&daemon)["types"][0]["bytes_replaced"], 6);
    let log = daemon.log().text();
    let lines: Vec<_> = log.lines().filter(|line| line.contains(told)).collect();
    assert_eq!(lines.len(), 1, "{log}");
    for words in [
        "\"WARN\"",
        "\"client.address\":\"127.0.0.1\"",
        "\"protocol\":\"native\"",
        "\"log_type\":\"env0-deployments\"",
        "_replaced_bytes_total",
    ] {
        assert!(lines[0].contains(words), "{words}: {}", lines[0]);
    }
    let finished = check.run("check --offline");
    let warned = line(&finished, "[warn] daemon");
    assert!(warned.contains("6 bytes of env0-deployments from senders were no UTF-8"), "{warned}");
    assert!(finished.stdout.contains("Next: daemon: look up in its log"), "{}", finished.stdout);
}

#[test]
fn refused_connections_are_in_the_status_and_check_warns_of_them() {
    let aws = LocalAws::start();
    let (daemon, check) = beside(Setup::new(&aws));
    assert_eq!(status(&daemon).get("connections_refused_total"), None);
    let mut stranger = TcpStream::connect(daemon.listen).unwrap();
    stranger.write_all(b"no HTTP at all\r\n\r\n").unwrap();
    stranger.read_to_end(&mut Vec::new()).unwrap();
    wait_until("it is counted", || status(&daemon)["connections_refused_total"]["malformed"] == 1);
    let finished = check.run("check");
    assert!(line(&finished, "[warn] daemon").contains("malformed 1"), "{}", finished.stdout);
}

#[test]
fn refused_requests_are_in_log_and_status_and_check_warns_of_them() {
    let aws = LocalAws::start();
    let (daemon, check) = beside(Setup::new(&aws));
    assert_eq!(status(&daemon).get("requests_refused_total"), None);
    for _ in 0..3 {
        assert_eq!(daemon.post(DEPLOYMENTS, "{\"canary\":").status, 400);
        assert_eq!(daemon.send(Upload::post("/no/such/path").bearer(TOKEN).body("x")).status, 404);
        assert_eq!(daemon.send(Upload::post(DEPLOYMENTS).bearer("another-canary").body(event("1"))).status, 401);
    }
    let expected = serde_json::json!({"400": 3, "401": 3, "404": 3});
    wait_until("they are counted", || status(&daemon)["requests_refused_total"] == expected);
    for words in ["its body is broken", "its path is none", "their token is none of ENV0_S3_LOG_INGEST_TOKEN"] {
        assert_eq!(daemon.log().count("WARN", words), 1, "{words}: {}", daemon.log().text());
    }
    assert!(!daemon.log().text().contains("canary"), "{}", daemon.log().text());
    let finished = check.run("check");
    assert!(line(&finished, "[warn] daemon").contains("400 3, 401 3, 404 3"), "{}", finished.stdout);
}

#[test]
fn a_bucket_that_is_elsewhere_or_missing_is_in_the_log_before_any_upload() {
    let aws = LocalAws::start();
    aws.s3.set_region(Some("ap-southeast-2"));
    let elsewhere = Setup::new(&aws).start();
    let told = "is in ap-southeast-2, not in eu-west-1; set ENV0_S3_LOG_AWS_REGION=ap-southeast-2";
    wait_until("the region is told", || elsewhere.log().count("WARN", told) == 1);
    aws.s3.set_region(Some("eu-west-1"));
    let missing = Setup::new(&aws).set("ENV0_S3_LOG_BUCKET_NAME", "a-mistaken-name").start();
    wait_until("the name is told", || missing.log().count("WARN", "the bucket a-mistaken-name can't be asked") == 1);
    assert_eq!(missing.log().count("WARN", "make the bucket"), 1, "{}", missing.log().text());
    let right = Setup::new(&aws).start();
    wait_until("the bucket answers", || status(&right).get("bucket").is_some());
    assert_eq!((right.log().complaints().len(), aws.s3.put_count()), (0, 0), "{}", right.log().text());
}

#[test]
fn a_check_that_is_to_write_and_has_no_token_tells_the_daemons_last_put() {
    let aws = LocalAws::start();
    let (daemon, check) = beside(Setup::new(&aws));
    let nothing_yet = check.run("check --write");
    assert!(
        line(&nothing_yet, "[skip] write").contains("this check has no token of its own"),
        "{}",
        nothing_yet.stdout
    );
    assert_eq!(daemon.post(DEPLOYMENTS, event("1")).status, 200);
    let wrote = || line_of(&check.run("check --write"), "[ok]   write");
    wait_until("its object is named", || wrote().is_some_and(|line| line.contains("the running daemon wrote")));
}

#[test]
fn an_answer_that_the_daemon_was_given_ends_a_check_as_one_of_its_own_would() {
    let aws = LocalAws::start();
    for (fault, code) in [
        (Fault::request_time_too_skewed(), 77),
        (Fault::kms_denied(), 77),
        (Fault::no_such_bucket(), 78),
        (Fault::permanent_redirect("ap-southeast-2"), 78),
        (Fault::bad_digest(), 69),
    ] {
        aws.s3.inject(fault.clone().on(Operation::PutObject));
        let own = Setup::new(&aws).run("check --write --json");
        assert_eq!(own.code, Some(code), "{}", own.stdout);
        let (daemon, check) = beside(Setup::new(&aws));
        aws.s3.inject(fault.on(Operation::PutObject).times(1_000));
        assert_eq!(daemon.post(DEPLOYMENTS, event("1")).status, 200);
        let failed = |of: &Value| !of["error"].is_null();
        wait_until("the upload fails", || status(&daemon)["types"].as_array().unwrap().iter().any(failed));
        let told = check.run("check --json");
        assert_eq!(told.code, Some(code), "{}", told.stdout);
        daemon.kill();
        aws.s3.heal();
    }
}

/// The line of a step that may not be so yet.
fn line_of(finished: &Finished, start: &str) -> Option<String> {
    finished.stdout.lines().find(|line| line.starts_with(start)).map(str::to_owned)
}
