//! Malformed HTTP is answered with 400, the connection is closed, and nothing after it is run.

use crate::harness::{DEPLOYMENTS, Raw, Setup, TOKEN, event, field, wait_until, wait_until_delivered};
use crate::local_aws::LocalAws;

const REFUSED: &str = "refused-and-nowhere-kept";

/// Sends `request` with a good one right behind it, and checks that neither is run.
fn is_refused(name: &str, request: &str) {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    let body = event(REFUSED);
    let good = format!(
        "POST {DEPLOYMENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut raw = Raw::connect(daemon.listen).unwrap();
    raw.write(format!("{request}{good}")).unwrap();
    let answer = raw.answer().unwrap().unwrap_or_else(|| panic!("{name}: closed without an answer"));
    assert_eq!(answer.status, 400, "{name}: {}", answer.text());
    assert!(answer.json()["error"].as_str().is_some_and(|words| words.len() > 20), "{name}: {}", answer.text());
    assert_eq!(answer.header("connection"), Some("close"), "{name}");
    assert!(!answer.text().contains("from connection"), "{name}: a library's words: {}", answer.text());
    assert!(raw.is_closed(), "{name}: the connection stays open");
    assert!(!setup.spool_holds(REFUSED), "{name}: something of it is in the spool");

    assert_eq!(daemon.post(DEPLOYMENTS, event("after")).accepted(), 1, "{name}: the daemon no longer serves");
    wait_until_delivered(&setup);
    assert_eq!(aws.s3.lines(), [event("after")], "{name}");
}

/// A request with `headers` (each ended as given) and a body that would be accepted.
fn request(headers: &str) -> String {
    let body = event(REFUSED);
    format!("POST {DEPLOYMENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n{headers}\r\n{body}")
}

fn length() -> usize {
    event(REFUSED).len()
}

#[test]
fn two_different_lengths() {
    is_refused("two lengths", &request(&format!("Content-Length: {}\r\nContent-Length: 5\r\n", length())));
    is_refused("the shorter first", &request(&format!("Content-Length: 5\r\nContent-Length: {}\r\n", length())));
    is_refused("a list of lengths", &request(&format!("Content-Length: {}, 5\r\n", length())));
}

#[test]
fn the_same_length_twice() {
    is_refused("twice", &request(&format!("Content-Length: {0}\r\nContent-Length: {0}\r\n", length())));
}

#[test]
fn a_length_that_is_no_number() {
    for length in ["-1", "+5", "5x", "0x5", "99999999999999999999999", "", "5 5"] {
        is_refused(length, &request(&format!("Content-Length: {length}\r\n")));
    }
}

#[test]
fn a_length_together_with_chunked() {
    let chunked = format!("{:x}\r\n{}\r\n0\r\n\r\n", length(), event(REFUSED));
    for headers in
        ["Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"]
    {
        let head = format!("POST {DEPLOYMENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n{headers}\r\n");
        is_refused(headers, &format!("{head}{chunked}"));
    }
}

#[test]
fn a_transfer_encoding_that_does_not_end_in_chunked() {
    for encoding in ["gzip", "chunked, gzip", "identity", "xchunked", "chunked, chunked"] {
        is_refused(encoding, &request(&format!("Transfer-Encoding: {encoding}\r\n")));
    }
}

#[test]
fn bare_line_feeds() {
    let body = event(REFUSED);
    let lines = format!(
        "POST {DEPLOYMENTS} HTTP/1.1\nHost: x\nAuthorization: Bearer {TOKEN}\nContent-Length: {}\n\n{body}",
        body.len()
    );
    is_refused("every line", &lines);
    is_refused("one header", &request(&format!("X-A: b\nContent-Length: {}\r\n", length())));
}

#[test]
fn folded_headers() {
    is_refused("space", &request(&format!("X-A: b\r\n c\r\nContent-Length: {}\r\n", length())));
    is_refused("tab", &request(&format!("X-A: b\r\n\tc\r\nContent-Length: {}\r\n", length())));
}

#[test]
fn a_space_before_the_colon() {
    is_refused("length", &request(&format!("Content-Length : {}\r\n", length())));
}

#[test]
fn a_chunk_whose_size_is_no_number() {
    let head = format!(
        "POST {DEPLOYMENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    is_refused("letters", &format!("{head}zz\r\n{}\r\n0\r\n\r\n", event(REFUSED)));
    is_refused("too long", &format!("{head}fffffffffffffffff\r\n{}\r\n0\r\n\r\n", event(REFUSED)));
}

#[test]
fn a_lone_cr_or_lf_in_chunks_or_trailers() {
    let head = format!(
        "POST {DEPLOYMENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let (size, body) = (length(), event(REFUSED));
    for (name, rest) in [
        ("a trailer's LF, and an end for one reader only", format!("{size:x}\r\n{body}\r\n0\r\nX: a\n\r\n")),
        ("a trailer's LF", format!("{size:x}\r\n{body}\r\n0\r\nX: a\n\r\n\r\n")),
        ("a trailer's CR", format!("{size:x}\r\n{body}\r\n0\r\nX: a\rb\r\n\r\n")),
        ("the last line's LF", format!("{size:x}\r\n{body}\r\n0\r\n\n")),
        ("a size's LF", format!("{size:x}\n{body}\r\n0\r\n\r\n")),
        ("an extension's LF", format!("{size:x};a\nb\r\n{body}\r\n0\r\n\r\n")),
        ("data's LF", format!("{size:x}\r\n{body}\n0\r\n\r\n")),
    ] {
        is_refused(name, &format!("{head}{rest}"));
    }
}

#[test]
fn each_odd_head_is_answered_with_what_is_wrong_with_it_on_both_ports() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    let many = "X: a\r\n".repeat(101);
    for (status, reason, head) in [
        (400, "the method, or the target", "G(T / HTTP/1.1\r\nHost: x\r\n\r\n"),
        (400, "the method, or the target", "GET /\u{7f} HTTP/1.1\r\nHost: x\r\n\r\n"),
        (400, "the method, or the target", "GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n"),
        (400, "the method, or the target", "GET  HTTP/1.1\r\nHost: x\r\n\r\n"),
        (400, "no method, target and version", "GET\r\nHost: x\r\n\r\n"),
        (400, "a header's name", "GET / HTTP/1.1\r\nHost: x\r\nX(: a\r\n\r\n"),
        (400, "a header's value", "GET / HTTP/1.1\r\nHost: x\r\nX: \u{1}\r\n\r\n"),
        (400, "a TLS handshake came", "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}"),
        (431, "at most 16384 bytes and 100 headers", &format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n")),
    ] {
        for port in [daemon.listen, daemon.admin] {
            let mut raw = Raw::connect(port).unwrap();
            raw.write(head).unwrap();
            let answer = raw.answer().unwrap().unwrap();
            let words = answer.json()["error"].as_str().unwrap().to_owned();
            assert!(answer.status == status && words.contains(reason), "{head:?}: {} {words}", answer.status);
            assert!(raw.is_closed(), "{head:?}");
        }
    }
}

#[test]
fn a_tls_handshake_on_a_plain_port_is_told_to_the_operator_as_one() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    Raw::connect(daemon.listen).unwrap().write([0x16, 3, 1, 2, 0, 1]).unwrap();
    wait_until("it is said", || {
        let entries = daemon.log().entries();
        let details = entries.iter().filter_map(|entry| field(entry, "detail").as_str());
        details.into_iter().any(|detail| detail.contains("ENV0_S3_LOG_TLS_CERT_FILE"))
    });
}
