//! What S3 does wrong never costs an event, and never doubles one.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{AUDITS, Books, DEPLOYMENTS, Daemon, Setup, wait_until};
use crate::local_aws::{Fault, LocalAws, Operation};

/// A daemon, the books of what was sent to it, and the AWS that misbehaves.
struct Case {
    aws: LocalAws,
    setup: Setup,
    daemon: Daemon,
    books: Books,
}

impl Case {
    /// Starts with `faults` in place.
    fn new(faults: impl IntoIterator<Item = Fault>) -> Case {
        let aws = LocalAws::start();
        faults.into_iter().for_each(|fault| aws.s3.inject(fault));
        let setup = Setup::new(&aws);
        let daemon = setup.start();
        Case { aws, setup, daemon, books: Books::default() }
    }

    /// Sends `count` events in one request, and expects the acknowledgement.
    fn send(&self, path: &str, count: usize) {
        let ids = self.books.ids(count);
        assert_eq!(self.daemon.post(path, Books::body(&ids)).accepted(), count as u64);
        self.books.acknowledge(ids);
    }

    /// Waits until S3 saw `count` PUTs.
    fn wait_for_puts(&self, count: usize) {
        wait_until(&format!("{count} PUTs arrive"), || self.aws.s3.put_count() >= count);
    }

    /// Every event that was sent is in the bucket once.
    fn balance(&self) {
        self.books.balance(&self.aws, &self.setup);
        let ours = self.aws.s3.objects().into_iter().filter(|object| object.metadata.contains_key("env0-sequence"));
        assert_eq!(ours.map(|object| object.lines).sum::<usize>(), self.books.acknowledged());
    }
}

#[test]
fn s3_answers_503_for_a_while() {
    let case = Case::new([Fault::slow_down()]);
    case.send(DEPLOYMENTS, 10);
    case.send(AUDITS, 5);
    case.wait_for_puts(4);
    assert_eq!(case.aws.s3.objects().len(), 0);
    case.send(DEPLOYMENTS, 10);
    case.aws.s3.heal();
    case.balance();
}

#[test]
fn every_refusal_is_retried_until_it_is_mended() {
    let refusals = [
        Fault::internal_error(),
        Fault::access_denied(),
        Fault::no_such_bucket(),
        Fault::kms_denied(),
        Fault::permanent_redirect("us-west-2"),
        Fault::request_time_too_skewed(),
        Fault::conflict(),
        Fault::bad_digest(),
        Fault::answer(400, "InvalidRequest", "what nobody thought of"),
    ];
    for refusal in refusals {
        let name = format!("{refusal:?}");
        let case = Case::new([refusal.times(2)]);
        case.send(DEPLOYMENTS, 3);
        case.balance();
        assert_eq!((case.aws.s3.put_count(), case.aws.s3.objects().len()), (3, 1), "{name}");
    }
}

#[test]
fn a_response_lost_after_a_put_that_succeeded_makes_no_second_object() {
    let case = Case::new([Fault::lose_response().times(1)]);
    case.send(DEPLOYMENTS, 7);
    case.balance();
    assert_eq!((case.aws.s3.put_count(), case.aws.s3.objects().len()), (2, 1));
    assert!(!case.aws.s3.objects()[0].metadata.contains_key("env0-renamed-from"));
}

#[test]
fn an_internal_error_after_a_put_that_succeeded_makes_no_second_object() {
    let case = Case::new([Fault::internal_error_after_storing().times(1)]);
    case.send(DEPLOYMENTS, 7);
    case.balance();
    assert_eq!((case.aws.s3.put_count(), case.aws.s3.objects().len()), (2, 1));
    assert!(!case.aws.s3.objects()[0].metadata.contains_key("env0-renamed-from"));
}

#[test]
fn a_response_lost_and_then_a_crash_makes_no_second_object() {
    let case = Case::new([Fault::lose_response().times(1), Fault::hang()]);
    case.send(DEPLOYMENTS, 7);
    case.wait_for_puts(2);
    let Case { aws, setup, daemon, books } = case;
    daemon.kill();
    aws.s3.heal();
    let _daemon = setup.start();
    books.balance(&aws, &setup);
    assert_eq!(aws.s3.objects().len(), 1);
}

#[test]
fn a_dropped_connection_that_stored_nothing_is_sent_again_under_the_same_key() {
    let case = Case::new([Fault::drop_connection().times(2)]);
    case.send(DEPLOYMENTS, 7);
    case.balance();
    let puts = case.aws.s3.requests().into_iter().filter(|request| request.operation == Operation::PutObject);
    let keys: std::collections::BTreeSet<_> = puts.map(|request| request.key).collect();
    assert_eq!((case.aws.s3.put_count(), keys.len()), (3, 1));
}

#[test]
fn a_refused_batch_is_sent_again_under_the_key_that_was_acknowledged() {
    let case = Case::new([Fault::slow_down().times(1), Fault::access_denied().times(1)]);
    let ids = case.books.ids(3);
    let acknowledged = case.daemon.post(DEPLOYMENTS, Books::body(&ids)).json();
    wait_until("it is delivered", || case.aws.s3.objects().len() == 1);
    assert_eq!(case.aws.s3.put_count(), 3);
    assert_eq!(case.aws.s3.objects()[0].key, acknowledged["object"].as_str().unwrap());
}

#[test]
fn a_taken_key_gets_a_new_suffix_and_the_object_says_so() {
    let case = Case::new([Fault::take_key().times(1)]);
    let ids = case.books.ids(4);
    let answer = case.daemon.post(DEPLOYMENTS, Books::body(&ids)).json();
    let acknowledged = answer["object"].as_str().unwrap().to_owned();
    // What the other writer stored is no event of ours.
    wait_until("both objects are there", || case.aws.s3.objects().len() == 2);
    let objects = case.aws.s3.objects();
    let (theirs, ours) = (&objects[0], &objects[1]);
    assert_eq!((theirs.key.as_str(), theirs.body.as_ref()), (acknowledged.as_str(), b"another writer's\n".as_ref()));
    assert_ne!(ours.key, acknowledged);
    let stem = acknowledged.len() - "aB3dE.log".len();
    assert_eq!(ours.key[..stem], acknowledged[..stem], "only the suffix changes");
    assert_eq!(ours.metadata["env0-renamed-from"], acknowledged[stem..stem + 5]);
    assert_eq!(ours.body, Books::body(&ids));
    case.aws.s3.remove(&acknowledged);
    case.books.acknowledge(ids);
    case.balance();
}

#[test]
fn a_key_taken_twice_still_names_the_suffix_that_was_acknowledged() {
    let case = Case::new([Fault::take_key().times(2)]);
    let acknowledged = case.daemon.post(DEPLOYMENTS, "{}").json()["object"].as_str().unwrap().to_owned();
    wait_until("all three objects are there", || case.aws.s3.objects().len() == 3);
    let stem = acknowledged.len() - "aB3dE.log".len();
    assert_eq!(case.aws.s3.objects()[2].metadata["env0-renamed-from"], acknowledged[stem..stem + 5]);
}

#[test]
fn a_store_without_conditional_puts_gets_plain_ones_and_the_log_says_so_once() {
    for refusal in [Fault::not_implemented(), Fault::answer(400, "NotImplemented", "no conditional writes here")] {
        let case = Case::new([refusal.times(1)]);
        case.send(DEPLOYMENTS, 3);
        wait_until("the object is there", || case.aws.s3.objects().len() == 1);
        case.send(DEPLOYMENTS, 3);
        wait_until("the next one too", || case.aws.s3.objects().len() == 2);
        let objects = case.aws.s3.objects();
        assert!(objects.iter().all(|object| !object.headers.contains_key("if-none-match")));
        assert_eq!(case.aws.s3.line_count(), 6);
        let said = case.daemon.log().count("WARN", "overwrit");
        assert_eq!(said, 1, "{}", case.daemon.log().text());
    }
}

#[test]
fn one_types_failures_do_not_delay_the_other() {
    let case = Case::new([Fault::access_denied().where_key_has("env0-audits")]);
    case.send(AUDITS, 3);
    case.send(DEPLOYMENTS, 3);
    wait_until("the deployments arrive", || case.aws.s3.objects_with("env0-deployments").len() == 1);
    assert!(case.aws.s3.objects_with("env0-audits").is_empty());
    case.aws.s3.heal();
    case.balance();
}

#[test]
fn retry_after_is_honoured() {
    let pause = Duration::from_secs(4);
    let case = Case::new([Fault::slow_down().header("retry-after", "4").times(1)]);
    case.send(DEPLOYMENTS, 1);
    case.wait_for_puts(1);
    let first = Instant::now();
    case.wait_for_puts(2);
    // The first PUT was seen a poll late at most, so that a little less passes between them.
    assert!(first.elapsed() > pause - Duration::from_millis(500), "{:?}", first.elapsed());
    case.balance();
}

#[test]
fn a_failing_store_is_logged_once_a_change_of_state_and_without_the_events() {
    let case = Case::new([Fault::access_denied()]);
    case.send(DEPLOYMENTS, 3);
    case.wait_for_puts(4);
    let log = case.daemon.log();
    let told = log.complaints().len();
    assert_eq!(told, 1, "{}", log.text());
    assert!(log.text().contains("AccessDenied"));
    case.aws.s3.heal();
    case.balance();
    assert!(!case.daemon.log().text().contains("event-0000"), "{}", case.daemon.log().text());
}

#[test]
fn answers_that_come_late_cost_no_event_and_double_none() {
    let case = Case::new([Fault::delay(Duration::from_secs(2)).times(2)]);
    case.send(DEPLOYMENTS, 7);
    case.send(AUDITS, 7);
    case.balance();
    assert_eq!((case.aws.s3.put_count(), case.aws.s3.objects().len()), (2, 2));
}

#[test]
fn a_412_with_a_request_id_alone_is_the_stores() {
    let bare = || Fault::bare_answer(412);
    // Another writer's name.
    let case = Case::new([bare().times(1)]);
    case.send(DEPLOYMENTS, 3);
    case.balance();
    assert!(case.aws.s3.objects()[0].metadata.contains_key("env0-renamed-from"));
    // Our own.
    let case = Case::new([Fault::lose_response().times(1), bare().times(1)]);
    case.send(DEPLOYMENTS, 3);
    case.balance();
    assert_eq!((case.aws.s3.put_count(), case.aws.s3.objects().len()), (2, 1));
}

#[test]
fn what_s3_did_not_answer_delivers_nothing_and_renames_nothing() {
    const PAGE: &str = "<html><body>Please log in</body></html>";
    for foreign in [
        Fault::block_page(),
        Fault::block_page().header("etag", "\"abc\""),
        Fault::foreign(200, ""),
        Fault::foreign(202, ""),
        Fault::foreign(204, "").header("x-amz-request-id", "LOCALFAULT"),
        Fault::foreign(302, "").header("location", "http://127.0.0.1:9/login"),
        Fault::foreign(403, PAGE),
        Fault::foreign(407, ""),
        Fault::foreign(412, ""),
        Fault::foreign(412, PAGE),
        Fault::foreign(200, &" ".repeat(1_000_000)),
        Fault::huge_code(),
    ] {
        let name = format!("{:.200}", format!("{foreign:?}"));
        let case = Case::new([foreign.times(1)]);
        case.send(DEPLOYMENTS, 3);
        case.balance();
        let objects = case.aws.s3.objects();
        assert_eq!((case.aws.s3.put_count(), objects.len()), (2, 1), "{name}");
        assert!(!objects[0].metadata.contains_key("env0-renamed-from"), "{name}");
        assert!(case.daemon.log().text().len() < 100_000, "{name}");
    }
}

#[test]
fn after_the_checksum_of_other_bytes_the_batch_is_stored_once_under_a_new_suffix() {
    for other in [
        Fault::other_checksum(),
        Fault::bare_answer(200).header("x-amz-checksum-crc32", "AAAAAA=="),
        Fault::bare_answer(200).header("x-amz-checksum-crc64nvme", "AAAAAAAAAAA="),
    ] {
        let case = Case::new([other.times(1)]);
        case.send(DEPLOYMENTS, 3);
        case.balance();
        let objects = case.aws.s3.objects();
        assert_eq!((case.aws.s3.put_count(), objects.len()), (2, 1));
        assert!(objects[0].metadata.contains_key("env0-renamed-from"));
    }
}

#[test]
fn what_a_store_keeps_with_other_bytes_passes_for_the_batch_after_no_crash() {
    let case = Case::new([Fault::keep_other_bytes().times(1), Fault::hang().times(1)]);
    let ids = case.books.ids(3);
    let key = case.daemon.post(DEPLOYMENTS, Books::body(&ids)).json()["object"].as_str().unwrap().to_owned();
    case.books.acknowledge(ids);
    // The PUT after the store's answer about other bytes has no answer, and the process dies.
    case.wait_for_puts(2);
    let Case { aws, setup, daemon, books } = case;
    daemon.kill();
    let _daemon = setup.start();
    wait_until("the events are stored", || aws.s3.line_count() > 3);
    assert_eq!(aws.s3.objects()[0].body.as_ref(), b"other bytes\n");
    assert!(aws.s3.remove(&key));
    books.balance(&aws, &setup);
}

#[test]
fn a_session_token_that_s3_repeats_is_in_no_log_and_no_status() {
    let case = Case::new([Fault::echo_of_secrets()]);
    case.send(DEPLOYMENTS, 3);
    case.wait_for_puts(2);
    let token = |request: crate::local_aws::Request| request.headers.get("x-amz-security-token").cloned();
    let token = case.aws.s3.requests().into_iter().find_map(token).unwrap();
    let token = token.to_str().unwrap();
    let status = || case.daemon.admin_get("/status").unwrap().text();
    wait_until("the status tells of it", || status().contains("[removed]"));
    for told in [case.daemon.log().text(), status()] {
        assert!(told.contains("AccessDenied"), "{told}");
        for piece in token.as_bytes().windows(12).map(|piece| std::str::from_utf8(piece).unwrap()) {
            assert!(!told.contains(piece), "{piece} in {told}");
        }
    }
    case.aws.s3.heal();
    case.balance();
}

#[test]
fn a_refusal_of_another_header_does_not_cost_the_condition() {
    let case = Case::new([Fault::not_implemented_header("x-amz-tagging").times(2)]);
    case.send(DEPLOYMENTS, 3);
    case.balance();
    let conditions = |request: crate::local_aws::Request| request.headers.contains_key("if-none-match");
    assert!(case.aws.s3.requests().into_iter().filter(|request| !request.key.is_empty()).all(conditions));
    assert_eq!(case.daemon.log().count("WARN", "If-None-Match"), 0);
}

#[test]
fn a_retry_after_beyond_all_measure_ends_no_lane() {
    let case = Case::new([Fault::slow_down().header("retry-after", &u64::MAX.to_string()).times(1)]);
    case.send(DEPLOYMENTS, 1);
    case.wait_for_puts(1);
    case.send(DEPLOYMENTS, 1);
    wait_until("the next batch arrives", || case.aws.s3.objects().len() == 1);
}

#[test]
fn new_batches_wait_for_no_failing_one_however_many_fail() {
    let case = Case::new([]);
    let refusals = || case.aws.s3.requests().into_iter().filter(|request| request.status == Some(403)).count();
    for _ in 0..5 {
        let ids = case.books.ids(1);
        let answer = case.daemon.post(DEPLOYMENTS, Books::body(&ids)).json();
        case.books.acknowledge(ids);
        let before = refusals();
        // For ever, whatever its suffix.
        let key = answer["object"].as_str().unwrap();
        case.aws.s3.inject(Fault::access_denied().where_key_has(&key[..key.len() - "aB3dE.log".len()]));
        wait_until("it is refused", || refusals() > before);
    }
    wait_until("the failures are an outage", || refusals() >= 20);
    let outage = refusals();
    case.send(DEPLOYMENTS, 1);
    wait_until("the new batch arrives", || case.aws.s3.objects().len() == 1);
    assert!(refusals() - outage < 20, "{outage} refusals, then {}", refusals());
    case.aws.s3.heal();
    case.balance();
}

#[test]
fn an_outage_with_changing_errors_is_logged_once_a_kind() {
    let case = Case::new([]);
    for _ in 0..2 {
        case.aws.s3.inject(Fault::slow_down().times(1));
        case.aws.s3.inject(Fault::internal_error().times(1));
    }
    case.send(DEPLOYMENTS, 1);
    case.balance();
    assert_eq!(case.aws.s3.put_count(), 5);
    assert_eq!(case.daemon.log().count("WARN", "uploads fail"), 2, "{}", case.daemon.log().text());
    let count = "upload_duration_seconds_count";
    let objects = case.aws.s3.objects().len();
    assert_eq!(case.daemon.metric(count), Some(objects as f64), "confirmed PUTs alone are timed");
}

#[test]
fn sealed_batches_that_somebody_removes_count_as_quarantined_and_hold_nothing_up() {
    let case = Case::new([Fault::access_denied()]);
    case.send(DEPLOYMENTS, 3);
    case.wait_for_puts(1);
    // The daemon renames the file meanwhile, so one try may find another name than it has listed.
    let folder = case.setup.spool().join("env0-deployments");
    wait_until("the folder is removed", || std::fs::remove_dir_all(&folder).is_ok());
    let quarantined = "events_quarantined_total{type=\"env0-deployments\"}";
    wait_until("they are given up", || case.daemon.metric(quarantined) == Some(3.0));
    case.aws.s3.heal();
    let ids = case.books.ids(2);
    wait_until("the events are taken", || case.daemon.post(DEPLOYMENTS, Books::body(&ids)).status == 200);
    wait_until("they are delivered", || case.aws.s3.line_count() == 2);
    assert_eq!(case.aws.s3.objects()[0].metadata["env0-gaps"], "1");
}

#[test]
fn an_answer_that_is_no_http_is_told_once_and_in_no_words_of_a_library() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (url, asked) = (format!("http://{}", listener.local_addr().unwrap()), Arc::new(AtomicUsize::new(0)));
    let answered = Arc::clone(&asked);
    // Ends with the process: there is no way to stop it that is worth its lines.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 65_536]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx-a: \x01\r\ncontent-length: 0\r\n\r\n");
            answered.fetch_add(1, Ordering::SeqCst);
        }
    });
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("AWS_ENDPOINT_URL_S3", url);
    let (daemon, before) = (setup.start(), asked.load(Ordering::SeqCst));
    assert_eq!(daemon.post(AUDITS, "kept").accepted(), 1);
    // One of them may be a question for the bucket's region.
    wait_until("it is tried again and again", || asked.load(Ordering::SeqCst) >= before + 4);
    let told: Vec<_> = daemon.log().complaints();
    let of_the_put = |entry: &&serde_json::Value| entry.to_string().contains("PutObject");
    assert_eq!(told.iter().filter(of_the_put).count(), 1, "{told:?}");
    for words in ["hyper::Error", "unrecognized error", "aws_smithy"] {
        assert!(!daemon.log().text().contains(words), "{words}: {}", daemon.log().text());
    }
}
