//! Connections of strangers, who have no token: whatever they do, they take little memory, no descriptors that the spool
//! needs, and no place of those who are let in.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use crate::harness::{AUDITS, DEPLOYMENTS, Daemon, Raw, Setup, TOKEN, Upload, event, wait_until};
use crate::laws::memory_bytes;
use crate::local_aws::LocalAws;
use crate::local_aws::issuer::ORGANIZATION;

const MIB: usize = 1024 * 1024;

fn head(path: &str, length: usize) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {length}\r\n\r\n")
}

fn refused(daemon: &Daemon, reason: &str) -> f64 {
    daemon.metric(&format!("connections_refused_total{{reason=\"{reason}\"}}")).unwrap()
}

#[test]
fn heads_that_never_end_take_a_few_mebibytes_in_all_on_both_ports() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    let before = memory_bytes(&daemon, "VmHWM");
    let large = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}", "x".repeat(16_000));
    let mut strangers = Vec::new();
    for (port, count) in [(daemon.listen, 1000), (daemon.admin, 60)] {
        for _ in 0..count {
            let mut raw = Raw::connect_from(2, port).unwrap();
            // Those that are closed for others hold nothing any more.
            let _ = raw.write(&large);
            strangers.push(raw);
        }
    }
    assert_eq!(daemon.post(DEPLOYMENTS, event("good")).accepted(), 1);
    assert!(refused(&daemon, "limit") > 0.0, "some were closed for the memory of the others");
    let grown = memory_bytes(&daemon, "VmHWM") - before;
    assert!(grown < 24 * MIB, "{} MiB more in memory", grown / MIB);
}

#[test]
fn tokens_with_rich_heads_that_wait_for_keys_take_a_few_mebibytes_in_all() {
    // Takes connections, and never answers.
    let issuer = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", issuer.local_addr().unwrap());
    let aws = LocalAws::start();
    let setup =
        Setup::new(&aws).set("ENV0_S3_LOG_OIDC_ISSUER", &url).set("ENV0_S3_LOG_OIDC_ORGANIZATION_ID", ORGANIZATION);
    let daemon = setup.start();
    let good = aws.issuer.mint(json!({ "iss": url }));
    // Nobody has signed it, and its header is of many parts.
    let header = json!({ "alg": "RS256", "kid": "stranger", "x5c": vec![""; 3000] }).to_string();
    let [_, claims, _] = good.split('.').collect::<Vec<_>>()[..] else { panic!("three parts") };
    let token = format!("{}.{claims}.AAAA", URL_SAFE_NO_PAD.encode(header));
    let request =
        format!("PUT /v1/oidc-token HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: 0\r\n\r\n");
    let before = memory_bytes(&daemon, "VmHWM");
    let mut strangers: Vec<_> = (0..900).map(|_| Raw::connect_from(2, daemon.listen).unwrap()).collect();
    for raw in &mut strangers {
        // Those that are closed for others keep nothing any more.
        let _ = raw.write(&request);
    }
    for raw in &mut strangers {
        assert!(raw.answer().is_ok_and(|answer| answer.is_none_or(|answer| answer.status == 503)));
    }
    let grown = memory_bytes(&daemon, "VmHWM") - before;
    assert!(grown < 64 * MIB, "{} MiB more in memory", grown / MIB);
}

#[test]
fn heads_of_requests_that_wait_for_their_bodies_take_a_few_mebibytes_in_all() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    let small = "a: b\r\n".repeat(90);
    let large: String = (0..90).map(|number| format!("x-{number}: {}\r\n", "x".repeat(160))).collect();
    // Kept while the body comes, since Sumo Logic's lines hold it.
    let category = format!("X-Sumo-Category: {}\r\n", "x".repeat(7000));
    let sumo = head(&format!("/receiver/v1/http/{TOKEN}"), 200_000);
    let token = "PUT /v1/oidc-token HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n\r\n";
    let piece = "x".repeat(4000);
    let requests = [
        (&*head(DEPLOYMENTS, 3000), &large, ""),
        (token, &large, ""),
        (token, &small, ""),
        (&*sumo, &category, &piece),
    ];
    for (request, headers, piece) in requests {
        let (before, closed) = (memory_bytes(&daemon, "VmRSS"), refused(&daemon, "limit"));
        let request = request.replace("\r\n\r\n", &format!("\r\n{headers}\r\n"));
        let waiting: Vec<_> = (0..1000)
            .map(|_| {
                let mut raw = Raw::connect_from(2, daemon.listen).unwrap();
                // Those that are closed for others hold nothing any more.
                let _ = raw.write(&request).and_then(|()| raw.write(piece));
                raw
            })
            .collect();
        assert_eq!(daemon.post(DEPLOYMENTS, event("good")).accepted(), 1);
        let grown = memory_bytes(&daemon, "VmRSS").saturating_sub(before);
        // 24 KiB for each connection, 4 MiB for larger heads, and 8 MiB for connections that are just being closed.
        assert!(grown < waiting.len() * 24 * 1024 + 12 * MIB, "{} MiB more in memory", grown / MIB);
        assert!(refused(&daemon, "limit") > closed, "some were closed for the memory of the others");
    }
}

#[test]
fn a_head_of_more_than_16_kib_is_answered_431_wherever_it_is_cut() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    for port in [daemon.listen, daemon.admin] {
        let answer = Upload::new("GET", "/").header("X-Large", &"x".repeat(17_000)).send(port).unwrap();
        assert_eq!(answer.status, 431);
        let mut endless = Raw::connect(port).unwrap();
        endless.write(format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(17_000))).unwrap();
        assert_eq!(endless.answer().unwrap().unwrap().status, 431);
        assert!(endless.is_closed());
    }
    assert_eq!(refused(&daemon, "head_too_large"), 4.0);
    wait_until("it is said once for each port", || daemon.log().count("WARN", "head is too large") == 2);
    let fits = Upload::post(DEPLOYMENTS).bearer(TOKEN).header("X-Large", &"x".repeat(15_000));
    assert_eq!(daemon.send(fits.body(event("good"))).accepted(), 1);
}

#[test]
fn http_2_and_a_head_that_takes_too_long_are_answered_with_the_reason() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    let mut preface = Raw::connect(daemon.listen).unwrap();
    preface.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    let answer = preface.answer().unwrap().unwrap();
    assert_eq!(answer.status, 505);
    assert!(answer.text().contains("HTTP/1.1"), "{}", answer.text());
    assert!(preface.is_closed());
    let mut slow = Raw::connect(daemon.listen).unwrap();
    slow.write("GET / HT").unwrap();
    assert_eq!(slow.answer().unwrap().unwrap().status, 408);
    assert!(slow.is_closed());
    let mut silent = Raw::connect(daemon.admin).unwrap();
    assert!(silent.is_closed(), "who says nothing is closed without a word");
    assert_eq!((refused(&daemon, "version"), refused(&daemon, "slow")), (1.0, 1.0));
}

#[test]
fn two_or_no_hosts_are_refused_and_none_is_needed_in_http_1_0() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    for port in [daemon.listen, daemon.admin] {
        for (request, status) in [
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
            ("GET / HTTP/1.0\r\n\r\n", 200),
        ] {
            let mut raw = Raw::connect(port).unwrap();
            raw.write(request).unwrap();
            assert_eq!(raw.answer().unwrap().unwrap().status, status, "{request:?}");
        }
    }
    assert_eq!(refused(&daemon, "host"), 4.0);
}

#[test]
fn a_post_without_a_length_is_411_on_every_protocol_and_closes() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    let good = head(DEPLOYMENTS, event("smuggled").len()) + &event("smuggled");
    for path in [DEPLOYMENTS, AUDITS, "/services/collector/event", "/loki/api/v1/push", "/v1/logs", "/log/v1", "/"] {
        for version in ["HTTP/1.1", "HTTP/1.0"] {
            let mut raw = Raw::connect(daemon.listen).unwrap();
            let request = format!("POST {path} {version}\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n{good}");
            raw.write(request).unwrap();
            assert_eq!(raw.answer().unwrap().unwrap().status, 411, "{path} {version}");
            assert!(raw.is_closed(), "{path} {version}");
        }
    }
    assert!(!setup.spool_holds("smuggled"));
}

#[test]
fn a_sender_at_another_address_gets_in_while_one_floods_the_connections() {
    const LIMIT: usize = 32;
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_MAX_CONNECTIONS", LIMIT.to_string());
    let daemon = setup.start();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for flood in 0..2 {
            let (daemon, done) = (&daemon, &done);
            scope.spawn(move || {
                let mut held = std::collections::VecDeque::new();
                while !done.load(Ordering::SeqCst) {
                    held.extend(Raw::connect_from(2 + flood, daemon.listen));
                    if held.len() > 4 * LIMIT {
                        held.pop_front();
                    }
                }
            });
        }
        let mut early = Raw::connect_from(9, daemon.listen).unwrap();
        wait_until("the flood has taken every place many times", || refused(&daemon, "limit") > 10.0 * LIMIT as f64);
        let body = event("patient");
        early.write(head(AUDITS, body.len()) + &body).unwrap();
        let outcome = early.answer().ok().flatten().map(|answer| answer.status);
        done.store(true, Ordering::SeqCst);
        assert_eq!(outcome, Some(200), "its connection was closed for the crowd's");
    });
    assert!(refused(&daemon, "limit") > 0.0);
}

#[test]
fn bodies_of_one_byte_on_every_connection_keep_no_audit_out() {
    const LIMIT: usize = 16;
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_MAX_CONNECTIONS", LIMIT.to_string());
    let daemon = setup.start();
    let mut slow: Vec<Raw> = (0..LIMIT).map(|_| Raw::connect(daemon.listen).unwrap()).collect();
    for raw in &mut slow {
        raw.write(head(DEPLOYMENTS, 1000).replace("Host", "Expect: 100-continue\r\nHost")).unwrap();
    }
    for raw in &mut slow {
        assert_eq!(raw.answer().unwrap().unwrap().status, 100, "it is let in");
        raw.write("{").unwrap();
    }
    for _ in 0..2 * LIMIT {
        let started = Instant::now();
        assert_eq!(daemon.post(AUDITS, event("beside")).accepted(), 1);
        assert!(started.elapsed() < Duration::from_secs(2), "after {:?}", started.elapsed());
    }
}

#[test]
fn who_never_reads_is_closed_on_both_ports() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    for (port, path) in [(daemon.listen, "/nowhere"), (daemon.admin, "/metrics")] {
        let mut raw = Raw::connect(port).unwrap();
        let requests = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").repeat(200);
        wait_until("the connection is closed", || {
            // The answers fill the socket's buffers, then the requests do.
            raw.write_some(&requests).is_err()
        });
    }
    assert_eq!(refused(&daemon, "unread"), 2.0);
}

#[test]
fn more_connections_than_descriptors_are_left_take_none_from_the_spool() {
    // At the second the limit leaves as many connections as SECURITY.md says.
    let limits = [("ulimit -Sn 64; ulimit -Hn 320", 320, 80, 400), ("ulimit -Sn 64; ulimit -Hn 1024", 1024, 752, 900)];
    for (limit, most, taken, strangers) in limits {
        let aws = LocalAws::start();
        let setup = Setup::new(&aws).limit(limit);
        let daemon = setup.start();
        let said =
            format!("ENV0_S3_LOG_MAX_CONNECTIONS=1024 is more than the limit of open files allows: {taken} are taken");
        wait_until("the cut is said", || daemon.log().count("WARN", &said) == 1);
        let connect = |count, port| (0..count).filter_map(move |_| Raw::connect_from(2, port).ok());
        let _strangers: Vec<_> = connect(strangers, daemon.listen).chain(connect(200, daemon.admin)).collect();
        for path in [DEPLOYMENTS, AUDITS].repeat(20) {
            assert_eq!(daemon.post(path, event("good")).accepted(), 1);
        }
        let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.process_id())).unwrap().count();
        assert!((64..most).contains(&open), "the soft limit was raised: {open} are open");
        assert_eq!(daemon.log().count("WARN", "connections can't be accepted"), 0);
    }
}

#[test]
fn who_guesses_tokens_is_closed_after_eight_and_a_known_sender_is_not() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    let token = aws.issuer.token();
    let forged = token[..token.len() - 8].to_owned() + "AAAAAAAA";
    let requests = [("PUT", "/v1/oidc-token", &*forged), ("POST", AUDITS, "a-wrong-token-that-is-long-enough")];
    let requests = requests.map(|(method, path, token)| {
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: 0\r\n\r\n")
    });
    for request in &requests {
        let mut raw = Raw::connect(daemon.listen).unwrap();
        raw.write(request.repeat(200)).unwrap();
        for _ in 0..8 {
            assert_eq!(raw.answer().unwrap().unwrap().status, 401);
        }
        assert!(raw.is_closed());
    }
    assert_eq!(daemon.metric("auth_failures_total{reason=\"invalid\"}"), Some(16.0), "the others weren't judged");
    let mut known = Raw::connect(daemon.listen).unwrap();
    known.write(head(AUDITS, event("good").len()) + &event("good") + &requests.concat().repeat(10)).unwrap();
    assert_eq!(known.answer().unwrap().unwrap().status, 200);
    for _ in 0..20 {
        assert_eq!(known.answer().unwrap().unwrap().status, 401);
    }
    known.write(head(AUDITS, event("good").len()) + &event("good")).unwrap();
    assert_eq!(known.answer().unwrap().unwrap().status, 200);
}
