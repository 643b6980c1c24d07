//! SIGTERM: sealed, uploaded, exit 0; what can't be uploaded stays in the spool.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use env0_s3_logs::batch::{BatchName, Codec, SpoolName};

use crate::harness::{AUDITS, Books, DEPLOYMENTS, Raw, Setup, TOKEN, Upload, wait_until};
use crate::local_aws::issuer::ORGANIZATION;
use crate::local_aws::{Fault, LocalAws};

/// A batch that only a shutdown seals.
fn setup(aws: &LocalAws) -> Setup {
    Setup::new(aws).set("ENV0_S3_LOG_BATCH_MAX_AGE", "3600s")
}

#[test]
fn open_batches_of_both_types_are_sealed_and_uploaded() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let (mut daemon, books) = (setup.start(), Books::default());
    for path in [DEPLOYMENTS, AUDITS] {
        let ids = books.ids(5);
        assert_eq!(daemon.post(path, Books::body(&ids)).accepted(), 5);
        books.acknowledge(ids);
    }
    assert_eq!(aws.s3.put_count(), 0);
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_eq!(aws.s3.objects().len(), 2);
    books.balance(&aws, &setup);
}

#[test]
fn what_s3_does_not_take_stays_in_the_spool_and_goes_with_the_next_start() {
    let aws = LocalAws::start();
    aws.s3.inject(Fault::slow_down());
    let setup = setup(&aws).set("ENV0_S3_LOG_SHUTDOWN_GRACE", "5s");
    let (mut daemon, books) = (setup.start(), Books::default());
    let ids = books.ids(5);
    assert_eq!(daemon.post(DEPLOYMENTS, Books::body(&ids)).accepted(), 5);
    books.acknowledge(ids);
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_eq!(aws.s3.put_count(), 1, "each waiting batch gets one attempt");
    assert!(setup.spool_files("env0-deployments").iter().any(|name| name.ends_with(".sealed")));
    aws.s3.heal();
    let _daemon = setup.start();
    books.balance(&aws, &setup);
}

#[test]
fn readiness_fails_at_once_and_soon_requests_are_refused_with_503_and_close() {
    let aws = LocalAws::start();
    aws.s3.hold_puts();
    let setup = setup(&aws);
    let (mut daemon, books) = (setup.start(), Books::default());
    let ids = books.ids(5);
    assert_eq!(daemon.post(DEPLOYMENTS, Books::body(&ids)).accepted(), 5);
    books.acknowledge(ids);
    daemon.signal_terminate();
    wait_until("/readyz answers 503", || daemon.admin_get("/readyz").is_some_and(|answer| answer.status == 503));
    let mut refused = None;
    wait_until("a request is refused", || {
        let ids = books.ids(1);
        let request = Upload::post(DEPLOYMENTS).bearer(TOKEN).body(Books::body(&ids));
        let answer = daemon.send(request);
        if answer.status == 200 {
            books.acknowledge(ids);
            return false;
        }
        refused = Some(answer);
        true
    });
    let refused = refused.unwrap();
    assert_eq!((refused.status, refused.header("connection")), (503, Some("close")));
    assert!(refused.header("retry-after").is_some());
    aws.s3.release_puts();
    assert_eq!(daemon.wait().code(), Some(0));
    books.balance(&aws, &setup);
}

#[test]
fn a_body_that_still_arrives_does_not_hold_up_the_end() {
    let aws = LocalAws::start();
    let setup = setup(&aws).set("ENV0_S3_LOG_SHUTDOWN_GRACE", "6s");
    let mut daemon = setup.start();
    let mut raw = Raw::connect(daemon.listen).unwrap();
    let head = format!("POST {DEPLOYMENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n");
    raw.write(format!("{head}Content-Length: 1000\r\n\r\n{{\"id\":\"half\"")).unwrap();
    // The request is under way once another one, sent after it, is answered.
    assert_eq!(daemon.post(DEPLOYMENTS, "").accepted(), 0);
    daemon.signal_terminate();
    let answer = raw.answer().unwrap().expect("an answer before the connection closes");
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!setup.spool_holds("half"));
    assert_eq!(aws.s3.objects().len(), 0);
}

#[test]
fn a_second_signal_ends_at_once_and_loses_nothing() {
    let aws = LocalAws::start();
    aws.s3.hold_puts();
    let setup = setup(&aws).set("ENV0_S3_LOG_SHUTDOWN_GRACE", "3600s");
    let (mut daemon, books) = (setup.start(), Books::default());
    let ids = books.ids(5);
    assert_eq!(daemon.post(DEPLOYMENTS, Books::body(&ids)).accepted(), 5);
    books.acknowledge(ids);
    daemon.signal_terminate();
    wait_until("the upload hangs", || aws.s3.put_count() == 1);
    daemon.signal_terminate();
    daemon.wait();
    aws.s3.release_puts();
    let _daemon = setup.start();
    books.balance(&aws, &setup);
}

#[test]
fn a_signal_while_the_spool_is_recovered_ends_the_start_at_once_and_changes_nothing() {
    // Many small lines, which a start takes longer to read than a test may take.
    const LINES: usize = 64 << 20;
    let aws = LocalAws::start();
    let setup = setup(&aws);
    drop(setup.start());
    let name = SpoolName::Open(BatchName::open(chrono::Utc::now(), None, Codec::None)).to_string();
    let left_open = setup.spool().join("env0-deployments").join(&name);
    std::fs::write(&left_open, "{}\n".repeat(LINES)).unwrap();
    let admin = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut daemon = setup.spawn_starting(admin);
    daemon.signal_terminate();
    assert_eq!(daemon.wait().code(), Some(0));
    let log = daemon.log().text();
    assert!(log.contains("stopped by a signal while the spool was being recovered"), "{log}");
    assert!(!log.contains("\"listening\""), "{log}");
    assert_eq!(std::fs::metadata(&left_open).unwrap().len(), 3 * LINES as u64);
}

#[test]
fn one_type_that_can_not_be_sealed_keeps_no_other_batch_from_its_attempt() {
    let aws = LocalAws::start();
    // Only the end makes it due again.
    aws.s3.inject(Fault::slow_down().header("retry-after", "3600").where_key_has("env0-audits").times(1));
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_SHUTDOWN_GRACE", "8s");
    let mut daemon = setup.start();
    assert_eq!(daemon.post(AUDITS, "{}").accepted(), 1);
    wait_until("its first attempt is refused", || aws.s3.put_count() == 1);
    assert_eq!(daemon.post(DEPLOYMENTS, "{}").accepted(), 1);
    // Where the folder is a file, no name can be given.
    let folder = setup.spool().join("env0-deployments");
    std::fs::rename(&folder, setup.folder().join("moved away")).unwrap();
    std::fs::write(&folder, "").unwrap();
    wait_until("the seal fails", || daemon.log().count("ERROR", "can't be sealed") == 1);
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_eq!(aws.s3.objects_with("env0-audits").len(), 1, "{}", daemon.log().text());
}

#[test]
fn a_shutdown_under_load_answers_everyone_until_the_end_and_loses_nothing() {
    const SENDERS: usize = 6;
    const REFUSALS: usize = 200;
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_BATCH_MAX_BYTES", "64KiB").set("ENV0_S3_LOG_SHUTDOWN_GRACE", "60s");
    let (mut daemon, books) = (setup.start(), Books::default());
    let (refused, released) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (daemon, books, refused, released) = (&daemon, &books, &refused, &released);
        for sender in 0..SENDERS {
            scope.spawn(move || {
                let path = if sender % 3 == 0 { AUDITS } else { DEPLOYMENTS };
                loop {
                    let ids = books.ids(1 + sender * 20);
                    let may_end = released.load(Ordering::SeqCst);
                    match daemon.try_post(path, Books::body(&ids)) {
                        Ok(answer) if answer.status == 200 => books.acknowledge(ids),
                        Ok(answer) => {
                            assert_eq!(answer.status, 503, "{}", answer.text());
                            assert!(answer.header("retry-after").is_some());
                            refused.fetch_add(1, Ordering::SeqCst);
                        }
                        // The end of the process, and nothing before it.
                        Err(error) => {
                            assert!(may_end || released.load(Ordering::SeqCst), "{error}");
                            return;
                        }
                    }
                }
            });
        }
        wait_until("enough is acknowledged", || books.acknowledged() > 5000);
        // The uploads hang, so that the shutdown lasts as long as the test wants.
        aws.s3.hold_puts();
        daemon.signal_terminate();
        wait_until("many are refused", || refused.load(Ordering::SeqCst) > REFUSALS);
        released.store(true, Ordering::SeqCst);
        aws.s3.release_puts();
    });
    assert_eq!(daemon.wait().code(), Some(0));
    let _daemon = setup.start();
    books.balance(&aws, &setup);
}

#[test]
fn while_draining_every_new_request_is_refused_but_a_good_token_is_taken() {
    let aws = LocalAws::start();
    aws.s3.hold_puts();
    let setup = setup(&aws).set("ENV0_S3_LOG_OIDC_ORGANIZATION_ID", ORGANIZATION);
    let mut daemon = setup.start();
    assert_eq!(daemon.post(DEPLOYMENTS, "{}").accepted(), 1);
    daemon.signal_terminate();
    wait_until("requests are refused", || daemon.post(DEPLOYMENTS, "").status == 503);
    let token = aws.issuer.mint(serde_json::json!({ "sub": "auth0|while-draining" }));
    let requests = [
        Upload::new("GET", "/"),
        Upload::new("GET", "/services/collector/health"),
        Upload::post("/nowhere"),
        Upload::new("DELETE", DEPLOYMENTS),
        Upload::post(DEPLOYMENTS).bearer("wrong-token-of-some-length").body("{}"),
        Upload::post(DEPLOYMENTS).body("{}"),
        Upload::post("/loki/api/v1/push").bearer(TOKEN).body("not its protocol"),
        Upload::new("PUT", "/v1/oidc-token").bearer("not.a.token"),
        Upload::new("PUT", "/v1/oidc-token").bearer(&token),
    ];
    for request in requests {
        let answer = daemon.send(request.clone());
        assert_eq!((answer.status, answer.header("connection")), (503, Some("close")), "{request:?}");
        assert!(answer.header("retry-after").is_some(), "{request:?}");
    }
    let status = daemon.admin_get("/status").unwrap().json();
    let tokens = status["credentials"]["tokens"].as_array().unwrap();
    assert!(tokens.iter().any(|token| token["source"] == "hand-over"), "{tokens:?}");
    aws.s3.release_puts();
    assert_eq!(daemon.wait().code(), Some(0));
}
