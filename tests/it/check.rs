//! `check` judges each step, and names code, request id and remedy of what fails.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection};
use serde_json::{Value, json};

use crate::disk::Mounted;
use crate::harness::{DEPLOYMENTS, Finished, Setup, event, wait_until, wait_until_delivered};
use crate::local_aws::issuer::ORGANIZATION;
use crate::local_aws::sts::StsError;
use crate::local_aws::{BUCKET, Fault, LocalAws, Operation};

pub(crate) const UNAVAILABLE: Option<i32> = Some(69);
pub(crate) const CANT_CREATE: Option<i32> = Some(73);
pub(crate) const IO: Option<i32> = Some(74);
const DENIED: Option<i32> = Some(77);
const CONFIGURATION: Option<i32> = Some(78);

pub(crate) fn setup(aws: &LocalAws) -> Setup {
    Setup::new(aws).set("ENV0_S3_LOG_ADMIN_ADDR", format!("127.0.0.1:{}", free_port()))
}

/// For listeners whose address has to be known before they start.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The step `name` of a report.
pub(crate) fn step(finished: &Finished, name: &str) -> Value {
    let report: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{finished:?}"));
    let steps = report["steps"].as_array().unwrap();
    steps.iter().find(|step| step["name"] == name).unwrap_or_else(|| panic!("no {name} in {report}")).clone()
}

/// Asserts that `name` is the first step that fails, and returns its detail and remedy.
pub(crate) fn failure(finished: &Finished, name: &str, code: Option<i32>) -> String {
    let failed = step(finished, name);
    assert_eq!((failed["verdict"].as_str(), finished.code), (Some("fail"), code), "{}", finished.stdout);
    format!("{} -> {}", failed["detail"].as_str().unwrap(), failed["remedy"].as_str().unwrap())
}

#[track_caller]
pub(crate) fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn a_good_configuration_passes_every_step_with_the_two_statement_policy() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let finished = setup.run("check --write");
    assert_eq!(finished.code, Some(0), "{}", finished.stdout);
    assert_has(
        &finished.stdout,
        &["[ok]   configuration", "[ok]   token", "[ok]   sts", "[ok]   bucket", "[ok]   write"],
    );
    assert_eq!(aws.s3.objects().iter().filter(|object| object.key.ends_with("env0-s3-logs-check")).count(), 1);
    assert!(!setup.spool().exists(), "a check makes no spool");
    let again = setup.run("check --write --json");
    assert_eq!(step(&again, "write")["verdict"], "ok", "an object that is there already doesn't hinder it");
}

#[test]
fn the_last_line_says_what_to_do_next() {
    let aws = LocalAws::start();
    let offline = setup(&aws).run("check --offline");
    assert_has(offline.stdout.lines().last().unwrap(), &["Next: run check without --offline"]);
    let ready = setup(&aws).run("check");
    assert_has(ready.stdout.lines().last().unwrap(), &["Next: start the daemon"]);
    let wrong = setup(&aws).set("ENV0_S3_LOG_AWS_REGION", "EU (Frankfurt)").run("check");
    assert_has(wrong.stdout.lines().last().unwrap(), &["Next: configuration: "]);
}

#[test]
fn offline_asks_nobody() {
    let aws = LocalAws::start();
    let finished = setup(&aws).run("check --offline --json");
    assert_eq!(finished.code, Some(0), "{}", finished.stdout);
    assert_eq!((aws.sts.exchanges().len(), aws.s3.requests().len()), (0, 0));
}

#[test]
fn every_error_and_every_unknown_variable_is_a_failure() {
    let aws = LocalAws::start();
    let finished = setup(&aws).set("ENV0_S3_LOG_BATCH_MAX_AG", "1s").run("check --offline --json");
    assert_has(&failure(&finished, "configuration", CONFIGURATION), &["ENV0_S3_LOG_BATCH_MAX_AGE"]);
    let two = setup(&aws).set("ENV0_S3_LOG_BATCH_MAX_AGE", "x").unset("ENV0_S3_LOG_ROLE_ARN").run("check");
    assert_eq!((two.code, two.stdout.matches("[fail] configuration").count()), (CONFIGURATION, 2), "{}", two.stdout);
}

#[test]
fn a_spool_that_can_not_be_made_is_a_failure() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let file = setup.folder().join("file");
    std::fs::write(&file, "").unwrap();
    let finished =
        setup.set("ENV0_S3_LOG_SPOOL_DIR", file.join("spool").to_str().unwrap()).run("check --offline --json");
    assert_has(&failure(&finished, "spool", CANT_CREATE), &["not a directory"]);
}

#[test]
fn a_spool_of_another_bucket_is_a_failure_while_it_holds_a_batch() {
    let aws = LocalAws::start();
    aws.sts.set_down();
    let setup = setup(&aws);
    let daemon = setup.start();
    daemon.post(DEPLOYMENTS, event("kept"));
    daemon.kill();
    let setup = setup.set("ENV0_S3_LOG_BUCKET_NAME", "another-bucket");
    let finished = setup.run("check --offline --json");
    assert_has(&failure(&finished, "manifest", CONFIGURATION), &[BUCKET, "another-bucket", "drain"]);
}

#[test]
fn a_bucket_s_name_that_the_store_does_not_take_is_a_mistake_in_the_configuration() {
    let aws = LocalAws::start();
    let setup = setup(&aws).set("ENV0_S3_LOG_BUCKET_NAME", "My_Bucket");
    for message in ["The specified bucket is not valid.", ""] {
        aws.s3.inject(Fault::answer(400, "InvalidBucketName", message).on(Operation::GetBucketLocation));
        let refused = setup.run("check --json");
        let parts = [
            "InvalidBucketName",
            "ENV0_S3_LOG_BUCKET_NAME is My_Bucket",
            "3 to 63 of a-z",
            "set ENV0_S3_LOG_BUCKET_NAME right",
        ];
        assert_has(&failure(&refused, "bucket", CONFIGURATION), &parts);
        aws.s3.heal();
    }
}

#[test]
fn a_server_that_is_no_store_is_not_taken_for_the_bucket() {
    let aws = LocalAws::start();
    aws.s3.inject(Fault::foreign(200, "It works!").on(Operation::GetBucketLocation));
    let finished = setup(&aws).set("ENV0_S3_LOG_AWS_REGION", "us-east-1").run("check --json");
    assert_has(&failure(&finished, "bucket", UNAVAILABLE), &["HTTP 200", "AWS_ENDPOINT_URL_S3"]);
}

#[test]
fn a_region_that_the_store_does_not_know_is_named_by_its_variable() {
    let aws = LocalAws::start();
    let message = "invalid credential region \"Ireland\"";
    aws.s3.inject(Fault::answer(400, "AuthorizationHeaderMalformed", message).on(Operation::GetBucketLocation));
    let refused = setup(&aws).run("check --json");
    assert_has(&failure(&refused, "bucket", CONFIGURATION), &[message, "set ENV0_S3_LOG_AWS_REGION, which is"]);
}

#[test]
fn what_answers_and_is_no_issuer_is_told_so_and_its_variable_named() {
    let aws = LocalAws::start();
    let store = setup(&aws).environment()["AWS_ENDPOINT_URL_S3"].clone();
    let setup = setup(&aws).unset("ENV0_OIDC_TOKEN").set("ENV0_S3_LOG_OIDC_ORGANIZATION_ID", ORGANIZATION);
    let checked = setup.set("ENV0_S3_LOG_OIDC_ISSUER", store).run("check --json");
    let said = failure(&checked, "issuer", UNAVAILABLE);
    assert_has(&said, &["is no OIDC issuer", "set ENV0_S3_LOG_OIDC_ISSUER", "unset it"]);
    assert!(!said.contains("nothing answers"), "{said}");
}

#[test]
fn of_two_tokens_that_are_configured_the_one_that_counts_is_told() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let file = setup.folder().join("token");
    std::fs::write(&file, aws.issuer.token()).unwrap();
    let words = "which ends last of those that are configured";
    assert!(!setup.run("check").stdout.contains(words));
    let checked = setup.set("ENV0_S3_LOG_OIDC_TOKEN_FILE", file.to_str().unwrap()).run("check");
    assert_has(&checked.stdout, &["[ok]   token ", words]);
}

#[test]
fn a_missing_an_expired_and_a_foreign_token_are_told_apart() {
    let aws = LocalAws::start();
    // Before the first hand-over nothing is wrong.
    let lets_in = setup(&aws).set("ENV0_S3_LOG_OIDC_ORGANIZATION_ID", ORGANIZATION);
    let missing = lets_in.unset("ENV0_OIDC_TOKEN").run("check");
    assert_eq!(missing.code, Some(0), "{}", missing.stdout);
    assert_has(&missing.stdout, &["[skip] token ", "none is configured"]);
    assert_has(missing.stdout.lines().last().unwrap(), &["Next: token: start the daemon", "/v1/oidc-token"]);
    let expired = setup(&aws).set("ENV0_OIDC_TOKEN", aws.issuer.expired_token(60)).run("check --json");
    assert_has(&failure(&expired, "token", DENIED), &["ended at"]);
    // STS takes it, and whoever hands one over is held to the issuer.
    let foreign = setup(&aws).set("ENV0_S3_LOG_OIDC_ISSUER", "https://login.example.com/").run("check --json");
    let warned = step(&foreign, "token");
    assert_eq!((warned["verdict"].as_str(), foreign.code), (Some("warn"), Some(0)), "{warned}");
    assert_has(
        &warned.to_string(),
        &["foreign", "login.example.com", &aws.issuer.url(), "set ENV0_S3_LOG_OIDC_ISSUER"],
    );
    let no_token = setup(&aws).set("ENV0_OIDC_TOKEN", "not-a-token").run("check --json");
    assert_has(&failure(&no_token, "token", DENIED), &["not an OIDC token"]);
    assert_eq!(step(&no_token, "sts")["verdict"], "skipped", "nobody is asked with what is no token");
    for finished in [missing, expired, foreign] {
        assert!(!finished.stdout.contains("eyJ"), "a token is shown: {}", finished.stdout);
    }
}

#[test]
fn a_refusal_of_sts_names_its_code_and_the_causes_with_the_trust_policys_lines() {
    let aws = LocalAws::start();
    aws.sts.fail_all(StsError::not_authorized());
    let finished = setup(&aws).run("check --json");
    let text = failure(&finished, "sts", DENIED);
    assert_has(
        &text,
        &["there is no role", "sts:TagSession", ":sub\": \"", ":aud\": \"hoMiq9PdkRh9LUvVpH4wIErWg50VSG1b\""],
    );
    let failed = step(&finished, "sts");
    assert_eq!(failed["code"], "AccessDenied");
    assert!(failed["request_id"].is_string(), "{failed}");
    assert_eq!(step(&finished, "bucket")["verdict"], "skipped");

    let refusals = [
        (
            "InvalidIdentityToken",
            "No OpenIDConnect provider found in your account for https://x",
            "has no OIDC provider",
        ),
        ("InvalidIdentityToken", "Incorrect token audience", "add the audience"),
        ("AccessDenied", "Not authorized to perform sts:TagSession", "allow sts:TagSession"),
        (
            "AccessDenied",
            "not authorized, with an explicit deny in a service control policy",
            "ask who keeps that policy",
        ),
        ("ExpiredTokenException", "Token expired", "the token has ended"),
    ];
    for (code, message, remedy) in refusals {
        aws.sts.heal();
        aws.sts.fail_all(StsError::new(400, code, message));
        let finished = setup(&aws).run("check --json");
        assert_has(&failure(&finished, "sts", DENIED), &[message, remedy]);
    }
}

#[test]
fn a_role_whose_sessions_are_shorter_than_asked_is_a_warning() {
    let aws = LocalAws::start();
    let finished = setup(&aws).set("ENV0_S3_LOG_SESSION_DURATION", "7200").run("check --json");
    let warned = step(&finished, "sts");
    assert_eq!((warned["verdict"].as_str(), finished.code), (Some("warn"), Some(0)), "{warned}");
    assert_has(warned["remedy"].as_str().unwrap(), &["ENV0_S3_LOG_SESSION_DURATION"]);
}

#[test]
fn the_wrong_region_names_the_right_one() {
    let aws = LocalAws::start();
    aws.s3.set_region(Some("ap-southeast-2"));
    let finished = setup(&aws).run("check --json");
    assert_has(&failure(&finished, "bucket", CONFIGURATION), &["ENV0_S3_LOG_AWS_REGION=ap-southeast-2"]);
}

#[test]
fn a_region_that_is_not_told_or_told_in_the_old_way_is_read_as_aws_means_it() {
    let aws = LocalAws::start();
    aws.s3.set_region(Some("EU"));
    let told = step(&setup(&aws).run("check --json"), "bucket");
    assert_eq!(
        (told["verdict"].as_str(), told["detail"].as_str()),
        (Some("ok"), Some("acme-env0-logs is in eu-west-1"))
    );
    for nothing in [None, Some("")] {
        aws.s3.set_region(nothing);
        let finished = setup(&aws).run("check --json");
        let warned = step(&finished, "bucket");
        assert_eq!((warned["verdict"].as_str(), finished.code), (Some("warn"), Some(0)), "{warned}");
        assert_has(warned["detail"].as_str().unwrap(), &["us-east-1", "ENV0_S3_LOG_AWS_REGION is eu-west-1"]);
        let fits = step(&setup(&aws).set("ENV0_S3_LOG_AWS_REGION", "us-east-1").run("check --json"), "bucket");
        assert_eq!(fits["verdict"], "ok", "{fits}");
        assert_has(fits["detail"].as_str().unwrap(), &["us-east-1"]);
    }
}

#[test]
fn a_missing_bucket_and_a_wrong_clock_are_told_apart() {
    let aws = LocalAws::start();
    let missing = setup(&aws).set("ENV0_S3_LOG_BUCKET_NAME", "no-such-bucket").run("check --json");
    assert_has(&failure(&missing, "bucket", CONFIGURATION), &["ENV0_S3_LOG_BUCKET_NAME", "make the bucket"]);
    assert_eq!(step(&missing, "bucket")["code"], "NoSuchBucket");
    let skewed =
        Fault::answer(403, "RequestTimeTooSkewed", "The difference between the request time and ours is too large");
    aws.s3.inject(skewed.clone().on(Operation::GetBucketLocation));
    let finished = setup(&aws).run("check --json");
    assert_has(&failure(&finished, "bucket", DENIED), &["set this machine's clock right"]);
    assert_eq!(step(&finished, "bucket")["code"], "RequestTimeTooSkewed");
    aws.s3.heal();
    aws.s3.inject(skewed);
    let finished = setup(&aws).run("check --write --json");
    assert_has(&failure(&finished, "write", DENIED), &["set this machine's clock right"]);
}

#[test]
#[cfg_attr(not(may_mount), ignore = "mounts a file system, which takes root")]
fn a_disk_with_little_room_is_a_failure_even_where_it_forgets() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let folder = setup.folder().join("small");
    let _tmpfs = Mounted::tmpfs(&folder, "3m");
    let setup = setup.set("ENV0_S3_LOG_SPOOL_DIR", folder.to_str().unwrap());
    assert_has(&failure(&setup.run("check --offline --json"), "disk", IO), &["MiB are free", "enlarge the disk"]);
    // Its spool never needs more than there is.
    let setup = setup.set("ENV0_S3_LOG_SPOOL_MAX_BYTES", "1MiB").set("ENV0_S3_LOG_MAX_EVENT_BYTES", "512KiB");
    assert_eq!(setup.run("check --offline").code, Some(0));
}

#[test]
fn a_denied_write_names_code_and_permission() {
    let aws = LocalAws::start();
    aws.s3.inject(Fault::access_denied());
    let finished = setup(&aws).run("check --write --json");
    assert_has(&failure(&finished, "write", DENIED), &["s3:PutObject"]);
    assert_eq!(step(&finished, "write")["code"], "AccessDenied");
    aws.s3.heal();
    aws.s3.inject(Fault::kms_denied());
    assert_has(&failure(&setup(&aws).run("check --write --json"), "write", DENIED), &["kms:GenerateDataKey"]);
}

#[test]
fn services_that_can_not_be_reached_are_told_apart_from_refusals() {
    let aws = LocalAws::start();
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let finished = setup(&aws).set("AWS_ENDPOINT_URL_STS", nobody).run("check --json");
    assert_has(&failure(&finished, "sts", UNAVAILABLE), &["firewall"]);
    let unknown = setup(&aws).set("AWS_ENDPOINT_URL_STS", "https://sts.invalid").run("check --json");
    assert_has(&failure(&unknown, "sts", UNAVAILABLE), &["DNS"]);
    let untrusted = format!("https://{}", serve(tls_of_nobody()));
    let finished = setup(&aws).set("AWS_ENDPOINT_URL_STS", untrusted).run("check --json");
    assert_has(&failure(&finished, "sts", UNAVAILABLE), &["TLS to STS fails", "AWS_CA_BUNDLE"]);
}

#[test]
fn a_proxy_in_the_way_is_named_in_place_of_what_is_behind_it() {
    let aws = LocalAws::start();
    let refusing = format!("http://{}", serve(refuse_to_proxy));
    let nobody = format!("http://127.0.0.1:{}", free_port());
    for proxy in [&refusing, &nobody, "http://proxy.invalid:3128"] {
        let setup = setup(&aws).set("HTTPS_PROXY", proxy).set("AWS_ENDPOINT_URL_STS", "https://sts.example.com");
        let text = failure(&setup.run("check --json"), "sts", UNAVAILABLE);
        assert_has(&text, &["HTTPS_PROXY", "the proxy"]);
        assert!(!text.contains("address for STS:"), "{text}");
    }
    let plain = setup(&aws).set("HTTP_PROXY", "http://proxy.invalid:3128").run("check --json");
    assert_has(&failure(&plain, "sts", UNAVAILABLE), &["HTTP_PROXY", "the proxy"]);
}

/// A server that handles each connection by `handle`; ends with the process.
fn serve(handle: impl Fn(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.incoming().map_while(Result::ok).for_each(handle));
    address
}

fn refuse_to_proxy(mut stream: TcpStream) {
    // Whoever hangs up early has failed to connect as well.
    let _ = stream.read(&mut [0; 1024]);
    let _ = stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
}

/// TLS with a certificate that no authority issued.
fn tls_of_nobody() -> impl Fn(TcpStream) + Send + 'static {
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![own.cert.der().clone()], key).unwrap();
    let config = Arc::new(config);
    move |mut stream| {
        let mut connection = ServerConnection::new(config.clone()).unwrap();
        // The client breaks it off.
        let _ = connection.complete_io(&mut stream);
    }
}

#[test]
fn beside_a_running_daemon_its_token_lock_and_last_put_are_judged() {
    let aws = LocalAws::start();
    let setup = setup(&aws).unset("ENV0_OIDC_TOKEN");
    let token = setup.folder().join("token");
    std::fs::write(&token, aws.issuer.token()).unwrap();
    let setup = setup.set("ENV0_S3_LOG_OIDC_TOKEN_FILE", token.to_str().unwrap());
    let daemon = setup.start();
    daemon.post(DEPLOYMENTS, event("delivered"));
    wait_until_delivered(&setup);

    let setup = setup.unset("ENV0_S3_LOG_OIDC_TOKEN_FILE");
    wait_until("the status names the object", || step(&setup.run("check --json"), "write")["verdict"] == "ok");
    let finished = setup.run("check --json");
    assert_eq!(finished.code, Some(0), "{}", finished.stdout);
    assert_has(step(&finished, "lock")["detail"].as_str().unwrap(), &[&daemon.process_id().to_string()]);
    assert_eq!(step(&finished, "token")["verdict"], "ok");
    assert_has(step(&finished, "sts")["detail"].as_str().unwrap(), &["holds a session"]);

    aws.s3.inject(Fault::access_denied());
    daemon.post(DEPLOYMENTS, event("denied"));
    wait_until("the status tells the denial", || step(&setup.run("check --json"), "write")["verdict"] == "fail");
    let finished = setup.run("check --json");
    assert_eq!((finished.code, &step(&finished, "write")["code"]), (DENIED, &json!("AccessDenied")));
    daemon.kill();
}

#[test]
fn a_token_of_its_own_that_has_ended_is_a_warning_beside_a_daemon_with_a_session() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let daemon = setup.start();
    daemon.post(DEPLOYMENTS, event("delivered"));
    wait_until_delivered(&setup);
    let setup = setup.set("ENV0_OIDC_TOKEN", aws.issuer.expired_token(60));
    wait_until("the status names the object", || step(&setup.run("check --json"), "write")["verdict"] == "ok");
    let finished = setup.run("check --json");
    assert_eq!(finished.code, Some(0), "{}", finished.stdout);
    let warned = step(&finished, "token");
    assert_eq!(warned["verdict"], "warn", "{warned}");
    assert_has(warned["detail"].as_str().unwrap(), &["the token of the environment ended at"]);
    assert_has(step(&finished, "sts")["detail"].as_str().unwrap(), &["the running daemon holds a session"]);
    daemon.kill();
    assert_has(&failure(&setup.run("check --json"), "token", DENIED), &["ended at"]);
}

#[test]
fn a_write_whose_names_are_all_there_already_passes() {
    let aws = LocalAws::start();
    aws.s3.inject(Fault::bare_answer(412));
    let finished = setup(&aws).run("check --write --json");
    let step = step(&finished, "write");
    assert_eq!((&step["verdict"], finished.code), (&json!("ok"), Some(0)), "{}", finished.stdout);
    assert_has(step["detail"].as_str().unwrap(), &["env0-s3-logs-check-", "is there already"]);
}

/// The URL of a server that answers each request so.
fn always(status: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/token", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(head.as_bytes());
        }
    });
    url
}

#[test]
fn a_token_url_that_can_not_be_had_now_is_told_from_one_that_has_no_token() {
    let aws = LocalAws::start();
    let closed = format!("http://127.0.0.1:{}/token", free_port());
    let token_is = |url: &str| setup(&aws).unset("ENV0_OIDC_TOKEN").set("ENV0_S3_LOG_OIDC_TOKEN_URL", url);
    let fails = "see why the server of ENV0_S3_LOG_OIDC_TOKEN_URL fails";
    for (url, code, part) in [
        (closed, UNAVAILABLE, "nothing answers"),
        (always("500 Internal Server Error"), UNAVAILABLE, fails),
        (always("503 Service Unavailable"), UNAVAILABLE, fails),
        (always("429 Too Many Requests"), UNAVAILABLE, fails),
        (always("404 Not Found"), CONFIGURATION, "a URL must answer with a token"),
        (always("200 OK"), CONFIGURATION, "a URL must answer with a token"),
    ] {
        assert_has(&failure(&token_is(&url).run("check --json"), "token", code), &["ENV0_S3_LOG_OIDC_TOKEN_URL", part]);
    }
    let served = format!("\u{feff}{{\"token\":\"{}\"}}", aws.issuer.token());
    let checked = token_is(&aws.issuer.serve_token(&served)).run("check --json");
    assert_eq!(step(&checked, "token")["verdict"], "ok", "{}", checked.stdout);
}
