//! Slow, greedy and broken clients: each is refused or waited for, and none keeps a good one waiting.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::harness::{
    AUDITS, Answer, Books, DEPLOYMENTS, Daemon, Raw, Setup, TOKEN, Upload, event, wait_for, wait_until,
};
use crate::laws::memory_bytes;
use crate::local_aws::LocalAws;

/// A text in requests that must leave nothing behind.
const REFUSED: &str = "refused-and-nowhere-kept";
const MIB: usize = 1024 * 1024;

fn head(length: usize) -> String {
    format!(
        "POST {DEPLOYMENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {length}\r\n\r\n"
    )
}

fn connect(daemon: &Daemon) -> Raw {
    Raw::connect(daemon.listen).unwrap()
}

fn answer(raw: &mut Raw) -> Answer {
    raw.answer().unwrap().expect("an answer before the connection closes")
}

/// The most memory that the daemon has had in RAM so far, in bytes.
fn peak_memory_bytes(daemon: &Daemon) -> usize {
    memory_bytes(daemon, "VmHWM")
}

fn gzip(bytes: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    bytes.for_each(|bytes| encoder.write_all(&bytes).unwrap());
    encoder.finish().unwrap()
}

#[test]
fn trickling_and_silent_connections_at_twice_the_limit_starve_no_good_client() {
    const LIMIT: usize = 16;
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_MAX_CONNECTIONS", LIMIT.to_string());
    let (daemon, books) = (setup.start(), Books::default());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let hostile = scope.spawn(|| {
            // Those that the daemon closes come back at once.
            let mut silent: Vec<Raw> = (0..LIMIT).map(|_| connect(&daemon)).collect();
            let mut trickling: Vec<Raw> = (0..LIMIT).map(|_| connect(&daemon)).collect();
            let mut closed = 0;
            for byte in head(5).bytes().cycle() {
                if done.load(Ordering::SeqCst) {
                    break;
                }
                for raw in &mut trickling {
                    if raw.write([byte]).is_err() {
                        closed += 1;
                        *raw = connect(&daemon);
                    }
                }
                silent.rotate_left(1);
                silent[0] = connect(&daemon);
                // Not a wait for anything: it paces the flood.
                std::thread::park_timeout(Duration::from_millis(5));
            }
            closed
        });
        for _ in 0..50 {
            let ids = books.ids(2);
            let started = Instant::now();
            let answer = daemon.try_post(DEPLOYMENTS, Books::body(&ids));
            // At the limit a good client's connection, too, may be the oldest before its head is there.
            if let Ok(answer) = answer {
                assert_eq!(answer.accepted(), 2);
                books.acknowledge(ids);
            }
            assert!(started.elapsed() < Duration::from_secs(10), "a good client waited {:?}", started.elapsed());
        }
        done.store(true, Ordering::SeqCst);
        assert!(hostile.join().unwrap() > 0, "no trickling connection was ever closed");
    });
    assert!(books.acknowledged() >= 90, "only {} of 100 events of the good client got in", books.acknowledged());
    books.balance(&aws, &setup);
}

#[test]
fn a_silent_crowd_that_came_first_is_closed_for_those_who_send() {
    const LIMIT: usize = 16;
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_MAX_CONNECTIONS", LIMIT.to_string());
    let daemon = setup.start();
    let mut crowd: Vec<Raw> = (0..2 * LIMIT).map(|_| connect(&daemon)).collect();
    for raw in crowd.iter_mut().skip(LIMIT) {
        raw.write("POST /v1/logs/env0-depl").unwrap();
    }
    for _ in 0..LIMIT {
        assert_eq!(daemon.post(DEPLOYMENTS, event("good")).accepted(), 1);
    }
    assert!(crowd[0].is_closed(), "the connection longest without a request is closed");
}

#[test]
fn connections_at_work_on_a_body_are_not_closed_for_new_ones() {
    const LIMIT: usize = 4;
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_MAX_CONNECTIONS", LIMIT.to_string());
    let daemon = setup.start();
    let body = event("slowly sent");
    let mut at_work: Vec<Raw> = (1..LIMIT).map(|_| connect(&daemon)).collect();
    for raw in &mut at_work {
        raw.write(format!("{}{}", head(body.len()), &body[..5])).unwrap();
    }
    // Those above are at work once one that was sent after them is answered.
    assert_eq!(daemon.post(AUDITS, event("beside")).accepted(), 1);
    let _silent: Vec<Raw> = (0..2 * LIMIT).map(|_| connect(&daemon)).collect();
    for _ in 0..2 * LIMIT {
        assert_eq!(daemon.post(AUDITS, event("beside")).accepted(), 1);
    }
    for mut raw in at_work {
        raw.write(&body[5..]).unwrap();
        assert_eq!(answer(&mut raw).accepted(), 1);
    }
}

#[test]
fn gzip_bombs_are_refused_with_413_in_bounded_memory() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    // 256 MiB of text in little more than one, and the same as one endless JSON string.
    let text = gzip((0..256).map(|_| vec![b'x'; MIB]));
    let json = gzip(std::iter::once(b"{\"a\":\"".to_vec()).chain((0..256).map(|_| vec![b'x'; MIB])));
    assert!(text.len() < 4 * MIB && json.len() < 4 * MIB);
    let before = peak_memory_bytes(&daemon);
    std::thread::scope(|scope| {
        for bomb in [&text, &json, &text, &json] {
            let daemon = &daemon;
            scope.spawn(move || {
                let upload = Upload::post(DEPLOYMENTS).bearer(TOKEN).header("Content-Encoding", "gzip").body(bomb);
                let answer = daemon.send(upload);
                // Memory that is taken for longer than a moment is a 503.
                assert!([413, 503].contains(&answer.status), "{}", answer.status);
                assert!(answer.status == 503 || answer.text().contains("ENV0_S3_LOG_MAX_BODY_BYTES"));
            });
        }
    });
    let upload = Upload::post(DEPLOYMENTS).bearer(TOKEN).header("Content-Encoding", "gzip").body(&text);
    assert_eq!(daemon.send(upload).status, 413);
    let grown = peak_memory_bytes(&daemon) - before;
    assert!(grown < 128 * MIB, "{} MiB more in memory, at a limit of 32 MiB", grown / MIB);
    assert_eq!(daemon.post(DEPLOYMENTS, event("after")).accepted(), 1);
}

#[test]
fn the_windows_of_zstd_are_given_back_to_the_system() {
    const SENDERS: usize = 24;
    let aws = LocalAws::start();
    aws.s3.measure_only();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_SPOOL_MAX_BYTES", "64GiB");
    let daemon = setup.start();
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(23).unwrap();
    encoder.write_all(&event(&"x".repeat(1000)).repeat(15 * MIB / 1024).into_bytes()).unwrap();
    let body = encoder.finish().unwrap();
    let before = memory_bytes(&daemon, "VmRSS");
    std::thread::scope(|scope| {
        for _ in 0..SENDERS {
            scope.spawn(|| {
                for _ in 0..6 {
                    let upload = Upload::post(DEPLOYMENTS).bearer(TOKEN).header("Content-Encoding", "zstd").body(&body);
                    // Most find the memory for bodies in use.
                    let _ = upload.send(daemon.listen);
                }
            });
        }
    });
    let mut least = usize::MAX;
    wait_until("the memory is given back", || {
        assert_eq!(daemon.post(DEPLOYMENTS, event("after")).accepted(), 1);
        least = least.min(memory_bytes(&daemon, "VmRSS").saturating_sub(before));
        least < 14 * MIB
    });
}

#[test]
fn text_that_grows_many_times_over_as_lines_of_json_stays_within_bounded_memory() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_MAX_INFLIGHT_BYTES", "8MiB");
    let daemon = setup.start();
    // A quarter of a MiB becomes seven.
    let text = "a\n".repeat(MIB / 8);
    let before = peak_memory_bytes(&daemon);
    let accepted = std::thread::scope(|scope| {
        let send = || {
            (0..3)
                .filter(|_| match daemon.post(DEPLOYMENTS, &text).status {
                    200 => true,
                    status => {
                        assert_eq!(status, 503);
                        false
                    }
                })
                .count()
        };
        let senders: Vec<_> = (0..16).map(|_| scope.spawn(send)).collect();
        senders.into_iter().map(|sender| sender.join().unwrap()).sum::<usize>()
    });
    assert!(accepted > 0);
    let grown = peak_memory_bytes(&daemon) - before;
    assert!(grown < 96 * MIB, "{} MiB more in memory, at a limit of 8 MiB", grown / MIB);
    assert_eq!(daemon.post(DEPLOYMENTS, event("after")).accepted(), 1);
}

#[test]
fn a_compressed_body_may_take_all_of_the_memory_for_bodies() {
    let aws = LocalAws::start();
    let setup = small_memory(&aws);
    let daemon = setup.start();
    // 256 KiB exactly, of lines that don't compress well.
    let mut lines: String = (0..20_000).map(|n| format!("{{\"n\":\"{:x}\"}}\n", 0x9e37_79b9_u64 * n)).collect();
    lines.truncate(lines[..255 * 1024].rfind('\n').unwrap() + 1);
    lines += &" ".repeat(256 * 1024 - lines.len());
    let upload = Upload::post(DEPLOYMENTS).bearer(TOKEN).header("Content-Encoding", "gzip");
    let upload = upload.body(gzip(std::iter::once(lines.clone().into_bytes())));
    assert_eq!(daemon.send(upload).accepted(), lines.lines().count() as u64 - 1);
}

#[test]
fn zstd_and_deflate_bombs_are_refused_too() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_MAX_BODY_BYTES", "2MiB");
    let daemon = setup.start();
    let zeros = vec![b'x'; 64 * MIB];
    let zstd = zstd::encode_all(&zeros[..], 3).unwrap();
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    zlib.write_all(&zeros).unwrap();
    for (encoding, bomb) in [("zstd", zstd), ("deflate", zlib.finish().unwrap())] {
        let upload = Upload::post(DEPLOYMENTS).bearer(TOKEN).header("Content-Encoding", encoding).body(bomb);
        assert_eq!(daemon.send(upload).status, 413, "{encoding}");
    }
}

/// A daemon whose memory for bodies is taken by a request that stopped sending.
fn exhausted(setup: &Setup) -> (Daemon, Raw, String) {
    let daemon = setup.start();
    let body = format!("{{\"id\":\"holds\",\"message\":\"{}\"}}", "x".repeat(240 * 1024));
    let mut raw = connect(&daemon);
    raw.write(format!("{}{}", head(body.len()), &body[..body.len() - 2])).unwrap();
    (daemon, raw, body)
}

fn small_memory(aws: &LocalAws) -> Setup {
    Setup::new(aws)
        .set("ENV0_S3_LOG_MAX_INFLIGHT_BYTES", "256KiB")
        .set("ENV0_S3_LOG_MAX_BODY_BYTES", "256KiB")
        .set("ENV0_S3_LOG_MAX_EVENT_BYTES", "256KiB")
}

/// A request that needs more memory than is left, by so little that the holder of the rest never waits for it.
fn needs_memory() -> Upload {
    Upload::post(DEPLOYMENTS)
        .bearer(TOKEN)
        .body(format!("{{\"id\":\"waits\",\"message\":\"{}\"}}", "y".repeat(18 * 1024)))
}

#[test]
fn beyond_the_memory_for_bodies_a_request_is_held_and_then_refused_with_503() {
    let aws = LocalAws::start();
    let setup = small_memory(&aws);
    let (daemon, mut holder, body) = exhausted(&setup);
    // The first ones may come before the holder's body is read.
    let (refused, held) = wait_for("a request is refused", || {
        let started = Instant::now();
        let answer = daemon.send(needs_memory());
        (answer.status != 200).then(|| (answer, started.elapsed()))
    });
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(held >= Duration::from_secs(4), "refused after {held:?}, without being held");
    assert!(refused.header("retry-after").is_some_and(|seconds| seconds.parse::<u64>().is_ok_and(|s| s > 0)));
    assert!(refused.text().contains("ENV0_S3_LOG_MAX_INFLIGHT_BYTES"), "{}", refused.text());
    // What takes no memory is answered meanwhile.
    assert_eq!(daemon.send(Upload::post(AUDITS).bearer("wrong-token-of-some-length").body("{}")).status, 401);
    assert_eq!(daemon.admin_get("/readyz").unwrap().status, 200);
    holder.write(&body[body.len() - 2..]).unwrap();
    assert_eq!(answer(&mut holder).accepted(), 1);
    assert_eq!(daemon.send(needs_memory()).accepted(), 1);
}

#[test]
fn a_request_that_is_held_for_memory_is_served_once_there_is_some() {
    let aws = LocalAws::start();
    let setup = small_memory(&aws);
    let (daemon, holder, _) = exhausted(&setup);
    std::thread::scope(|scope| {
        // A request that comes before the holder's body is read is answered at once. Only time shows that one is not.
        let waiting = wait_for("a request gets no answer yet", || {
            let (sent, answered) = mpsc::channel();
            let daemon = &daemon;
            scope.spawn(move || sent.send(daemon.send(needs_memory())));
            answered.recv_timeout(Duration::from_millis(500)).is_err().then_some(answered)
        });
        drop(holder);
        assert_eq!(waiting.recv().unwrap().accepted(), 1);
    });
}

#[test]
fn memory_is_given_back_by_clients_that_hang_up() {
    let aws = LocalAws::start();
    let setup = small_memory(&aws);
    let daemon = setup.start();
    for _ in 0..8 {
        let mut raw = connect(&daemon);
        raw.write(format!("{}{{\"id\":\"{REFUSED}\"{}", head(250 * 1024), " ".repeat(200 * 1024))).unwrap();
    }
    wait_until("memory is free again", || daemon.send(needs_memory()).status == 200);
    assert!(!setup.spool_holds(REFUSED));
}

#[test]
fn a_head_that_is_too_large_or_has_too_many_headers_is_refused_with_431() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    let requests = [
        Upload::post(DEPLOYMENTS).bearer(TOKEN).header("X-Large", &"x".repeat(140 * 1024)),
        Upload::post(DEPLOYMENTS).bearer(&"x".repeat(140 * 1024)),
        (0..101).fold(Upload::post(DEPLOYMENTS).bearer(TOKEN), |upload, n| upload.header(&format!("X-{n}"), "x")),
    ];
    for request in requests {
        let answer = daemon.send(request.body(event(REFUSED)));
        assert_eq!(answer.status, 431);
        assert!(answer.json()["error"].as_str().unwrap().contains("100 headers"), "{}", answer.text());
    }
    let many = (0..90).fold(Upload::post(DEPLOYMENTS).bearer(TOKEN), |upload, n| upload.header(&format!("X-{n}"), "x"));
    assert_eq!(daemon.send(many.body(event("good"))).accepted(), 1);
}

#[test]
fn a_head_that_never_ends_is_closed_within_a_quarter_of_a_minute() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    let started = Instant::now();
    let mut raw = connect(&daemon);
    raw.write("POST /v1/logs/env0-deployments HTTP/1.1\r\nHost: x\r\nX-Slow: ").unwrap();
    wait_until("the connection is closed", || raw.write("x").is_err());
    assert!(started.elapsed() < Duration::from_secs(20), "closed after {:?} only", started.elapsed());
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let (daemon, books) = (setup.start(), Books::default());
    let ids: Vec<_> = (1..=20).map(|count| books.ids(count)).collect();
    let mut raw = connect(&daemon);
    let requests: String = ids.iter().map(|ids| head(Books::body(ids).len()) + &Books::body(ids)).collect();
    raw.write(requests).unwrap();
    for ids in ids {
        assert_eq!(answer(&mut raw).accepted(), ids.len() as u64);
        books.acknowledge(ids);
    }
    books.balance(&aws, &setup);
}

#[test]
fn honest_senders_of_large_bodies_keep_their_connections() {
    let aws = LocalAws::start();
    let daemon = Setup::new(&aws).start();
    let body = format!("{}\n", event(&"x".repeat(1000))).repeat(400);
    let mut senders: Vec<_> = (0..64).map(|_| connect(&daemon)).collect();
    for round in 0..4 {
        std::thread::scope(|scope| {
            for sender in &mut senders {
                scope.spawn(|| {
                    sender.write(head(body.len()) + &body).unwrap();
                    let answer = answer(sender);
                    assert_eq!((answer.status, answer.header("connection")), (200, None), "round {round}");
                });
            }
        });
    }
}

#[test]
fn a_client_that_has_no_more_to_say_after_its_request_still_gets_the_answer() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let (daemon, books) = (setup.start(), Books::default());
    for _ in 0..20 {
        let ids = books.ids(3);
        let mut raw = connect(&daemon);
        raw.write(head(Books::body(&ids).len()) + &Books::body(&ids)).unwrap();
        raw.finish_writing().unwrap();
        assert_eq!(answer(&mut raw).accepted(), 3);
        books.acknowledge(ids);
    }
    books.balance(&aws, &setup);
}

#[test]
fn a_client_that_hangs_up_in_the_middle_of_a_body_leaves_nothing() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let (daemon, books) = (setup.start(), Books::default());
    let whole = format!("{}\n", event(REFUSED)).repeat(100);
    let chunk = format!("{:x}\r\n{whole}\r\n", whole.len());
    let chunked = head(0).replace("Content-Length: 0", "Transfer-Encoding: chunked");
    for request in
        [format!("{}{whole}", head(whole.len() + 1)), format!("{chunked}{chunk}"), format!("{chunked}{chunk}0\r\n")]
    {
        let mut raw = connect(&daemon);
        raw.write(request).unwrap();
        raw.finish_writing().unwrap();
        let status = raw.answer().ok().flatten().map(|answer| answer.status);
        assert!(matches!(status, None | Some(400)), "{status:?}");
    }
    let ids = books.ids(3);
    assert_eq!(daemon.post(DEPLOYMENTS, Books::body(&ids)).accepted(), 3);
    books.acknowledge(ids);
    assert!(!setup.spool_holds(REFUSED));
    books.balance(&aws, &setup);
    assert_eq!(aws.s3.line_count(), 3);
}

#[test]
fn json_that_is_a_million_levels_deep_is_taken_or_refused_and_does_no_harm() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_MAX_EVENT_BYTES", "16MiB");
    let daemon = setup.start();
    let depth = 1_000_000;
    let arrays = format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    let objects = format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    for body in [&arrays, &objects] {
        assert_eq!(daemon.post(DEPLOYMENTS, body).accepted(), 1);
    }
    let secret = "{\"customEnv0EnvironmentVariables\":{\"oidcToken\":\"x\"}}";
    for broken in [&arrays[..depth], &objects[..depth * 5], &arrays[..arrays.len() - 1], &"[{\"a\":".repeat(depth)] {
        assert_eq!(daemon.post(DEPLOYMENTS, broken).status, 400);
    }
    let around_secret = format!("{}{secret}{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    assert_eq!(daemon.post(DEPLOYMENTS, around_secret).accepted(), 1);
    assert_eq!(daemon.post("/services/collector/event", format!("{{\"event\":{arrays}}}")).status, 200);
    crate::harness::wait_until_delivered(&setup);
    let lines = aws.s3.lines();
    assert!(lines.contains(&arrays) && lines.contains(&objects));
    assert_eq!(lines.iter().filter(|line| line.contains("[redacted]")).count(), 1);
}

#[test]
fn http_1_0_is_served_and_closed() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    let body = event("old");
    let mut raw = connect(&daemon);
    raw.write(format!(
        "POST {DEPLOYMENTS} HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ))
    .unwrap();
    assert_eq!(answer(&mut raw).accepted(), 1);
    assert!(raw.is_closed());
}

#[test]
fn head_is_answered_without_a_body() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    for (path, status) in [("/", 200), (DEPLOYMENTS, 405), ("/nowhere", 404)] {
        let mut raw = connect(&daemon);
        raw.write(format!(
            "HEAD {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
        ))
        .unwrap();
        let text = raw.rest().unwrap();
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {text}");
        assert!(text.ends_with("\r\n\r\n"), "{path} has a body: {text}");
    }
    assert_eq!(daemon.send(Upload::new("GET", "/")).status, 200);
}

#[test]
fn as_many_clients_as_there_is_room_for_may_come_at_the_same_moment() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    // What comes now, the system keeps for it.
    daemon.signal(rustix::process::Signal::STOP);
    let started = Instant::now();
    let clients: Vec<_> = (0..1000).map(|_| connect(&daemon)).collect();
    let took = started.elapsed();
    daemon.signal(rustix::process::Signal::CONT);
    // A client that finds no room tries again after a second.
    assert!(took < Duration::from_secs(1), "{} clients took {took:?}", clients.len());
}
