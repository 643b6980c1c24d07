//! Every row of the status table, sent exactly so over a socket. After each
//! refusal the daemon goes on serving, and the spool holds nothing of the refused request.

use serde_json::json;

use crate::harness::books::check_bucket;
use crate::harness::{
    AUDITS, Answer, Books, DEPLOYMENTS, Daemon, Raw, Setup, TOKEN, Upload, event, wait_until, wait_until_delivered,
};
use crate::local_aws::{Fault, LocalAws};

/// A text in every refused request, to look for where it must not be.
const REFUSED: &str = "refused-and-nowhere-kept";

/// A daemon with small limits.
struct Table {
    aws: LocalAws,
    setup: Setup,
    daemon: Daemon,
}

impl Table {
    fn new() -> Table {
        Table::with(|setup| setup)
    }

    fn with(change: impl FnOnce(Setup) -> Setup) -> Table {
        let aws = LocalAws::start();
        let setup =
            Setup::new(&aws).set("ENV0_S3_LOG_MAX_BODY_BYTES", "256KiB").set("ENV0_S3_LOG_MAX_EVENT_BYTES", "64KiB");
        let setup = change(setup);
        let daemon = setup.start();
        Table { aws, setup, daemon }
    }

    /// Sends a request that must be refused, and checks that it left no trace and did no harm.
    fn refused(&self, status: u16, upload: Upload) -> Answer {
        let answer = self.daemon.send(upload);
        self.check_refusal(status, &answer);
        answer
    }

    fn check_refusal(&self, status: u16, answer: &Answer) {
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(!answer.text().contains(REFUSED), "the answer repeats the body: {}", answer.text());
        assert!(!self.setup.spool_holds(REFUSED), "the spool holds what was refused");
        assert_eq!(self.daemon.post(DEPLOYMENTS, event("after")).accepted(), 1, "the daemon no longer serves");
    }

    /// Everything that was accepted arrives, and nothing that was refused.
    fn finish(self) {
        wait_until_delivered(&self.setup);
        assert!(self.aws.s3.lines().iter().all(|line| !line.contains(REFUSED)));
        assert!(!self.daemon.log().text().contains(REFUSED), "the log holds what was refused");
        check_bucket(&self.aws);
    }
}

fn authorized(path: &str) -> Upload {
    Upload::post(path).bearer(TOKEN)
}

fn refused_event() -> String {
    event(REFUSED)
}

#[test]
fn status_200_names_count_object_and_line() {
    let table = Table::new();
    let first = table.daemon.post(DEPLOYMENTS, format!("{}\n{}\n", event("a"), event("b")));
    let second = table.daemon.post(DEPLOYMENTS, "plain text\n\nand more");
    let (first_body, second_body) = (first.json(), second.json());
    assert_eq!((first.accepted(), second.accepted()), (2, 2));
    wait_until_delivered(&table.setup);
    for (body, lines) in [(first_body, [event("a"), event("b")].as_slice()), (second_body, &[])] {
        let key = body["object"].as_str().unwrap();
        let object = table.aws.s3.objects_with(key).pop().expect("the object that was named");
        let line = usize::try_from(body["line"].as_u64().unwrap()).unwrap();
        assert_eq!(object.text_lines()[line..line + lines.len()], *lines);
    }
    table.finish();
}

#[test]
fn status_200_with_nothing_accepted_for_an_empty_body() {
    let table = Table::new();
    for body in ["", "\n", " \r\n\t", "[]"] {
        let answer = table.daemon.post(DEPLOYMENTS, body);
        assert_eq!((answer.status, answer.json()), (200, json!({ "accepted": 0 })), "{body:?}");
    }
    let chunked = format!(
        "POST {DEPLOYMENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\
         Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    );
    let mut raw = Raw::connect(table.daemon.listen).unwrap();
    raw.write(chunked).unwrap();
    assert_eq!(raw.answer().unwrap().unwrap().json(), json!({ "accepted": 0 }));
    table.finish();
}

#[test]
fn status_400_names_the_event_and_the_byte() {
    let table = Table::new();
    let good = refused_event();
    let cut = format!("{good}\n{{\"a\":}}\n");
    let bodies: [(Vec<u8>, u64); 5] = [
        (cut.clone().into_bytes(), 1),
        (format!("[{good},2]").into_bytes(), 1),
        (format!("{good}\n[1]\n").into_bytes(), 1),
        (format!("{good}\n{{\"a\":\"").into_bytes(), 1),
        ([good.as_bytes(), b"\n{\"a\":\"\xff\"}\n"].concat(), 1),
    ];
    for (body, event) in bodies {
        let answer = table.refused(400, authorized(DEPLOYMENTS).body(&body)).json();
        assert!(answer["error"].is_string(), "{answer}");
        assert_eq!(answer["event"], event, "{answer} for {:?}", String::from_utf8_lossy(&body));
        assert!(answer["offset"].as_u64().is_some_and(|offset| offset <= body.len() as u64), "{answer}");
    }
    let offset = table.refused(400, authorized(DEPLOYMENTS).body(&cut)).json()["offset"].as_u64().unwrap();
    let second = good.len() as u64 + 1;
    assert!((second..second + 6).contains(&offset), "{offset} is not in the second event, at {second}");
    table.finish();
}

#[test]
fn status_401_without_or_with_wrong_credentials() {
    let table = Table::new();
    let upload = || Upload::post(DEPLOYMENTS).body(refused_event());
    let almost = &TOKEN[..TOKEN.len() - 1];
    let requests = [
        upload(),
        upload().bearer("wrong-token-of-some-length"),
        upload().bearer(almost),
        upload().bearer(&format!("{TOKEN}x")),
        upload().bearer(""),
        upload().header("Authorization", TOKEN),
        upload().bearer(&table.aws.issuer.token()),
        Upload::post(&format!("{DEPLOYMENTS}?token={TOKEN}")).body(refused_event()),
    ];
    for request in requests {
        let answer = table.refused(401, request.clone());
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{request:?}");
    }
    table.finish();
}

#[test]
fn status_401_for_a_token_that_may_not_write_this_type() {
    let table = Table::with(|setup| {
        let file = setup.folder().join("tokens");
        std::fs::write(&file, "token-for-audits-only env0-audits\n").unwrap();
        let organization = crate::local_aws::issuer::ORGANIZATION;
        setup
            .set("ENV0_S3_LOG_INGEST_TOKEN_FILE", file.to_str().unwrap())
            .set("ENV0_S3_LOG_OIDC_ORGANIZATION_ID", organization)
    });
    let upload = |path: &str| Upload::post(path).body(refused_event());
    table.refused(401, upload(DEPLOYMENTS).bearer("token-for-audits-only"));
    table.refused(401, upload(AUDITS).bearer(&table.aws.issuer.token()));
    let good = |path: &str, token: &str| table.daemon.send(Upload::post(path).bearer(token).body(event("good")));
    assert_eq!(good(AUDITS, "token-for-audits-only").accepted(), 1);
    assert_eq!(good(DEPLOYMENTS, &table.aws.issuer.token()).accepted(), 1);
    table.finish();
}

#[test]
fn status_404_and_405_name_what_is_known() {
    let table = Table::new();
    for path in ["/nope", "/v1/logs/env0-other", "/v1/logs/env0-deployments/x", "/V1/logs/env0-deployments"] {
        let answer = table.refused(404, authorized(path).body(refused_event()));
        assert!(answer.text().contains(DEPLOYMENTS) || answer.text().contains("env0-deployments"), "{}", answer.text());
    }
    for method in ["GET", "PUT", "DELETE", "PATCH"] {
        let answer = table.refused(405, Upload::new(method, DEPLOYMENTS).bearer(TOKEN).body(refused_event()));
        assert_eq!(answer.header("allow"), Some("POST"), "{method}");
    }
    table.finish();
}

#[test]
fn status_408_when_the_body_stops_coming() {
    let table = Table::new();
    let mut raw = Raw::connect(table.daemon.listen).unwrap();
    let head = format!("POST {DEPLOYMENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n");
    raw.write(format!("{head}Content-Length: 1000\r\n\r\n{}\n", refused_event())).unwrap();
    let answer = raw.answer().unwrap().unwrap();
    table.check_refusal(408, &answer);
    assert!(raw.is_closed());
    table.finish();
}

#[test]
fn status_413_names_the_limit_and_its_variable() {
    let table = Table::new();
    let long_event = format!("{{\"id\":\"{REFUSED}\",\"message\":\"{}\"}}", "x".repeat(65 * 1024));
    let answer = table.refused(413, authorized(DEPLOYMENTS).body(&long_event)).text();
    assert!(answer.contains("65536") && answer.contains("ENV0_S3_LOG_MAX_EVENT_BYTES"), "{answer}");
    let long_line = format!("{REFUSED}{}", "x".repeat(65 * 1024));
    table.refused(413, authorized(DEPLOYMENTS).body(&long_line));

    let long_body = format!("{}\n", refused_event()).repeat(4096);
    let answer = table.refused(413, authorized(DEPLOYMENTS).body(&long_body)).text();
    assert!(answer.contains("262144") && answer.contains("ENV0_S3_LOG_MAX_BODY_BYTES"), "{answer}");

    let mut raw = Raw::connect(table.daemon.listen).unwrap();
    let head = format!("POST {DEPLOYMENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n");
    raw.write(format!("{head}Transfer-Encoding: chunked\r\n\r\n")).unwrap();
    let chunk = format!("{:x}\r\n{long_body}\r\n", long_body.len());
    // Refused in the middle of the chunk: the rest may find the connection closed.
    let _ = raw.write(chunk);
    table.check_refusal(413, &raw.answer().unwrap().unwrap());
    table.finish();
}

#[test]
fn status_413_names_the_memory_for_requests_where_that_is_less() {
    let table = Table::with(|setup| setup.set("ENV0_S3_LOG_MAX_INFLIGHT_BYTES", "128KiB"));
    let text = "{\"id\":\"".to_owned() + REFUSED + &"\u{e9}".repeat(80_000);
    let latin1: Vec<u8> = text.chars().map(|c| u8::try_from(c).unwrap()).collect();
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut zlib, text.as_bytes()).unwrap();
    for upload in [
        authorized(DEPLOYMENTS).body(&text),
        authorized(DEPLOYMENTS).header("Content-Encoding", "deflate").body(zlib.finish().unwrap()),
        authorized(DEPLOYMENTS).header("Content-Type", "text/plain; charset=latin1").body(latin1),
    ] {
        let answer = table.refused(413, upload).text();
        assert!(answer.contains("131072") && answer.contains("\"ENV0_S3_LOG_MAX_INFLIGHT_BYTES\""), "{answer}");
    }
    table.finish();
}

#[test]
fn status_413_for_a_body_that_inflates_over_the_limit() {
    let table = Table::new();
    let long_body = format!("{}\n", refused_event()).repeat(100_000);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut encoder, long_body.as_bytes()).unwrap();
    let gzip = encoder.finish().unwrap();
    assert!(gzip.len() < 128 * 1024, "{} bytes pass the limit before inflation", gzip.len());
    let answer = table.refused(413, authorized(DEPLOYMENTS).header("Content-Encoding", "gzip").body(gzip)).text();
    assert!(answer.contains("ENV0_S3_LOG_MAX_BODY_BYTES"), "{answer}");
    table.finish();
}

#[test]
fn a_refusal_on_the_headers_comes_before_100_continue_and_says_that_it_closes() {
    let table = Table::new();
    let head = |authorization: &str, length: usize| {
        format!(
            "POST {DEPLOYMENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {authorization}\r\n\
             Content-Length: {length}\r\nExpect: 100-continue\r\n\r\n"
        )
    };
    for (status, head) in [(401, head("wrong-token-of-some-length", 10)), (413, head(TOKEN, 10_000_000))] {
        let mut raw = Raw::connect(table.daemon.listen).unwrap();
        raw.write(head).unwrap();
        let answer = raw.answer().unwrap().unwrap();
        table.check_refusal(status, &answer);
        assert_eq!(answer.header("connection"), Some("close"), "{status}");
        assert!(raw.is_closed(), "{status}");
    }
    let body = event("continued");
    let mut raw = Raw::connect(table.daemon.listen).unwrap();
    for _ in 0..2 {
        raw.write(head(TOKEN, body.len())).unwrap();
        assert_eq!(raw.answer().unwrap().unwrap().status, 100);
        raw.write(&body).unwrap();
        let answer = raw.answer().unwrap().unwrap();
        assert_eq!((answer.accepted(), answer.header("connection")), (1, None), "the connection stays");
    }
    table.finish();
}

#[test]
fn status_415_names_the_supported_encodings() {
    let table = Table::new();
    for encoding in ["br", "compress", "gzip, br"] {
        let request = authorized(DEPLOYMENTS).header("Content-Encoding", encoding).body(refused_event());
        let answer = table.refused(415, request).text();
        assert!(["gzip", "deflate", "zstd"].iter().all(|known| answer.contains(known)), "{answer}");
    }
    table.finish();
}

#[test]
fn status_503_while_the_spool_is_full_and_200_once_it_is_not() {
    let table = Table::with(|setup| {
        setup.set("ENV0_S3_LOG_SPOOL_MAX_BYTES", "2MiB").set("ENV0_S3_LOG_BATCH_MAX_BYTES", "256KiB")
    });
    let books = Books::default();
    table.aws.s3.inject(Fault::slow_down());
    let full = loop {
        let ids = books.ids(200);
        let answer = table.daemon.post(DEPLOYMENTS, Books::body(&ids));
        if answer.status != 200 {
            break answer;
        }
        books.acknowledge(ids);
        assert!(books.acknowledged() < 100_000, "the spool never gets full");
    };
    assert_eq!(full.status, 503, "{}", full.text());
    assert!(full.header("retry-after").is_some_and(|seconds| seconds.parse::<u64>().is_ok_and(|s| s > 0)));
    assert!(full.text().contains("spool"), "{}", full.text());
    // A tenth is kept for each type, so the other one still gets in.
    assert_eq!(table.daemon.post(AUDITS, event("audit")).accepted(), 1);
    assert!(table.daemon.admin_get("/readyz").unwrap().status == 200, "a full spool does not count");

    table.aws.s3.heal();
    let ids = books.ids(200);
    wait_until("the spool takes events again", || table.daemon.post(DEPLOYMENTS, Books::body(&ids)).status == 200);
    books.acknowledge(ids);
    books.balance(&table.aws, &table.setup);
}

/// A HEC event that says which type it is.
fn said(source: &str, id: &str) -> String {
    json!({ "event": { "id": id }, "source": source }).to_string()
}

#[test]
fn a_full_type_keeps_out_no_event_whose_sender_says_the_other_one() {
    let table = Table::with(|setup| {
        setup.set("ENV0_S3_LOG_SPOOL_MAX_BYTES", "2MiB").set("ENV0_S3_LOG_BATCH_MAX_BYTES", "256KiB")
    });
    let books = Books::default();
    table.aws.s3.inject(Fault::slow_down());
    for count in [500, 20, 1] {
        wait_until("deployments are full", || {
            let ids = books.ids(count);
            table.daemon.post(DEPLOYMENTS, Books::body(&ids)).status == 503
        });
    }
    let hec = |body: String| table.daemon.send(authorized("/services/collector/event").body(body)).status;
    assert_eq!(hec(said("env0-audits", "audit")), 200, "a tenth is kept for audits");
    assert_eq!(hec(said("elsewhere", REFUSED)), 503);
    let both = said("env0-audits", REFUSED) + &said("env0-deployments", REFUSED);
    assert_eq!(hec(both), 503, "one that is full refuses the events of both");
    assert!(!table.setup.spool_holds(REFUSED));
    table.aws.s3.heal();
    wait_until_delivered(&table.setup);
    assert_eq!(table.aws.s3.objects_with("env0-audits/").len(), 1);
}

#[test]
fn a_request_with_both_types_is_taken_whole_or_not_at_all_while_the_spool_fills() {
    let table = Table::with(|setup| {
        setup.set("ENV0_S3_LOG_SPOOL_MAX_BYTES", "2MiB").set("ENV0_S3_LOG_BATCH_MAX_BYTES", "256KiB")
    });
    table.aws.s3.inject(Fault::slow_down());
    let long = "x".repeat(10 * 1024);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                // Audits, which come second, are larger: at the limit only deployments would fit.
                let both = said("env0-audits", &long) + &said("env0-deployments", "a");
                wait_until("the spool is full", || {
                    table.daemon.send(authorized("/services/collector/event").body(&both)).status == 503
                });
            });
        }
    });
    let accepted = |log_type: &str| table.daemon.metric(&format!("events_accepted_total{{type=\"{log_type}\"}}"));
    assert!(accepted("env0-audits") > Some(0.0));
    assert_eq!(accepted("env0-audits"), accepted("env0-deployments"));
    table.aws.s3.heal();
    wait_until_delivered(&table.setup);
}

#[test]
fn status_503_while_the_issuers_keys_are_out_of_reach() {
    let organization = crate::local_aws::issuer::ORGANIZATION;
    let aws = LocalAws::start();
    aws.issuer.set_down(true);
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_OIDC_ORGANIZATION_ID", organization);
    let daemon = setup.start();
    let table = Table { aws, setup, daemon };
    let answer = table.refused(503, Upload::post(DEPLOYMENTS).bearer(&table.aws.issuer.token()).body(refused_event()));
    assert!(answer.header("retry-after").is_some());
    table.aws.issuer.set_down(false);
    let token = table.aws.issuer.token();
    wait_until("the issuer's keys are fetched", || {
        table.daemon.send(Upload::post(DEPLOYMENTS).bearer(&token).body(event("good"))).status == 200
    });
    table.finish();
}

#[test]
fn an_s3_or_sts_failure_never_shows_at_ingest() {
    let table = Table::new();
    table.aws.s3.inject(Fault::access_denied());
    table.aws.sts.set_down();
    let books = Books::default();
    for _ in 0..20 {
        let ids = books.ids(5);
        assert_eq!(table.daemon.post(DEPLOYMENTS, Books::body(&ids)).accepted(), 5);
        books.acknowledge(ids);
    }
    assert_eq!(table.daemon.admin_get("/readyz").unwrap().status, 200);
    assert_eq!(table.daemon.admin_get("/livez").unwrap().status, 200);
    table.aws.s3.heal();
    table.aws.sts.heal();
    books.balance(&table.aws, &table.setup);
}
