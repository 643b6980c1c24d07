use std::net::Ipv4Addr;

use tokio::io::{AsyncWriteExt, DuplexStream};

use super::*;
use crate::http::refusals::Refusals;

mod differential;

fn member() -> Member {
    Registry::new(10, Refusals::new("test")).enter(Ipv4Addr::LOCALHOST.into())
}

/// A guard, its member and the client's end.
fn guarded() -> (DuplexStream, FramingGuard<DuplexStream>, Member) {
    let (client, server) = tokio::io::duplex(256 * 1024);
    let member = member();
    let guard = FramingGuard::new(server, &member);
    (client, guard, member)
}

/// What hyper gets of `stream`, sent in pieces of `step` bytes, and what is refused.
async fn passed(stream: &[u8], step: usize) -> (Vec<u8>, Option<Refused>) {
    let (mut client, mut guard, member) = guarded();
    let mut passed = Vec::new();
    for piece in stream.chunks(step) {
        client.write_all(piece).await.unwrap();
        // The runtime lets a task that never waits read only so often.
        tokio::task::yield_now().await;
        let mut buffer = [0; 1024];
        // All that this piece brings.
        while let Some(Ok(read)) = futures_util::FutureExt::now_or_never(guard.read(&mut buffer)) {
            if read == 0 {
                break;
            }
            passed.extend_from_slice(&buffer[..read]);
        }
    }
    (passed, member.connection.refused.get().map(|fault| fault.refused))
}

const STEPS: [usize; 6] = [1, 2, 3, 7, 64, 4096];

#[tokio::test]
async fn well_formed_requests_pass_one_after_the_other() {
    let plain = "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n{\"a\":\"\n\n\"}\n";
    let chunked = "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n4;x=y\r\n\n\n\n\n\r\n0A\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n";
    let bare = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    let old = "GET / HTTP/1.0\r\n\r\n";
    let stream = [plain, chunked, bare, old, plain, chunked].concat();
    for step in STEPS {
        let (passed, refused) = passed(stream.as_bytes(), step).await;
        assert_eq!((passed.as_slice(), refused), (stream.as_bytes(), None), "in steps of {step}");
    }
}

async fn refuses(stream: &str, expected: Refused) {
    for step in STEPS {
        let (passed, refused) = passed(stream.as_bytes(), step).await;
        assert_eq!(refused, Some(expected), "{stream:?} in steps of {step}");
        assert!(passed.ends_with(REFUSED_REQUEST), "{stream:?} in steps of {step}");
    }
}

#[tokio::test]
async fn ambiguous_heads_never_pass_wherever_they_stand() {
    use Refused::{Host, Malformed, Version};
    let ambiguous = [
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", Malformed),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Malformed),
        ("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n", Malformed),
        ("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", Malformed),
        ("POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Malformed),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\nx", Malformed),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 1\r\n\r\nx", Malformed),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551615\r\n\r\nx", Malformed),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551614\r\n\r\nx", Malformed),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551616\r\n\r\nx", Malformed),
        ("POST / HTTP/1.1\nHost: x\r\n\r\n", Malformed),
        ("POST / HTTP/1.1\r\nHost: x\n\r\n\r\n", Malformed),
        ("POST / HTTP/1.1\r\nHost: x\n\nGET / HTTP/1.1\r\n\r\n", Malformed),
        ("POST / HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n", Malformed),
        ("\nPOST / HTTP/1.1\r\nHost: x\r\n\r\n", Malformed),
        ("GET /\r\n\r\n", Malformed),
        ("POST / HTTP/1.1\r\n\r\n", Host),
        ("POST / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", Host),
        ("POST / HTTP/1.0\r\nHost: x\r\nhost: y\r\n\r\n", Host),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Version),
    ];
    let good = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}";
    for (stream, expected) in ambiguous {
        refuses(stream, expected).await;
        refuses(&format!("{good}{stream}"), expected).await;
    }
}

#[tokio::test]
async fn a_head_of_more_than_its_share_is_refused_before_it_ends() {
    let largest = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(rules::HEAD_MAX_BYTES - 32));
    assert_eq!(largest.len(), rules::HEAD_MAX_BYTES);
    assert_eq!(passed(largest.as_bytes(), 1000).await.1, None);
    refuses(&largest.replace("X: ", "X: y"), Refused::HeadTooLarge).await;
    refuses(&largest.replace("\r\n\r\n", "xxxxx"), Refused::HeadTooLarge).await;
}

#[tokio::test]
async fn chunks_and_trailers_with_a_lone_cr_or_lf_end_in_an_error() {
    let head = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in [
        "1\nx\r\n0\r\n\r\n",
        "1\r\nx\n0\r\n\r\n",
        "1\r\nx\r\n0\n\r\n",
        "1;a\nb\r\nx\r\n0\r\n\r\n",
        "0\r\nX: a\n\r\n",
        "0\r\nX: a\n\r\n\r\n",
        "0\r\nX: a\rb\r\n\r\n",
        "0\r\n\n",
        "0\r\n\r\r\n",
        "1 1\r\nx\r\n0\r\n\r\n",
        "\r\n0\r\n\r\n",
        "10000000000000000\r\nx\r\n0\r\n\r\n",
    ] {
        for step in STEPS {
            let (mut client, mut guard, _member) = guarded();
            for piece in format!("{head}{body}").as_bytes().chunks(step) {
                client.write_all(piece).await.unwrap();
            }
            let error = guard.read_to_end(&mut Vec::new()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{body:?} in steps of {step}");
        }
    }
}

async fn pass(client: &mut DuplexStream, guard: &mut FramingGuard<DuplexStream>, bytes: &[u8]) {
    client.write_all(bytes).await.unwrap();
    guard.read_exact(&mut vec![0; bytes.len()]).await.unwrap();
}

/// How long a read of what never comes lasts, in whole seconds, and what comes of it.
async fn seconds_to_the_end(guard: &mut FramingGuard<DuplexStream>) -> (u64, io::Result<usize>) {
    let since = Instant::now();
    let outcome = guard.read(&mut [0; 1024]).await;
    (since.elapsed().as_secs(), outcome)
}

const REQUEST: &[u8] = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx";

#[tokio::test(start_paused = true)]
async fn a_connection_ends_when_no_request_comes_and_each_one_begins_the_time_anew() {
    let (mut client, mut guard, _member) = guarded();
    pass(&mut client, &mut guard, REQUEST).await;
    for _ in 0..3 {
        let wait = IDLE_TIMEOUT - Duration::from_secs(1);
        assert!(tokio::time::timeout(wait, guard.read(&mut [0; 1024])).await.is_err());
        pass(&mut client, &mut guard, REQUEST).await;
    }
    let (seconds, outcome) = seconds_to_the_end(&mut guard).await;
    assert_eq!((seconds, outcome.unwrap_err().kind()), (620, io::ErrorKind::TimedOut));
}

#[tokio::test(start_paused = true)]
async fn the_first_head_has_its_time_from_the_accept_on() {
    let (_silent, mut guard, _member) = guarded();
    assert_eq!(seconds_to_the_end(&mut guard).await.0, 10);
    let (mut client, mut guard, _member) = guarded();
    assert!(tokio::time::timeout(Duration::from_secs(6), guard.read(&mut [0; 1024])).await.is_err());
    client.write_all(b"\r\n\r\nG").await.unwrap();
    assert_eq!(seconds_to_the_end(&mut guard).await.0, 4);
}

#[tokio::test(start_paused = true)]
async fn a_head_has_its_time_from_its_first_byte_on_however_it_trickles() {
    let (mut client, mut guard, member) = guarded();
    pass(&mut client, &mut guard, REQUEST).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    for _ in 0..4 {
        client.write_all(b"G").await.unwrap();
        assert!(tokio::time::timeout(Duration::from_secs(2), guard.read(&mut [0; 1024])).await.is_err());
    }
    let (seconds, outcome) = seconds_to_the_end(&mut guard).await;
    assert_eq!((seconds, outcome.unwrap()), (2, REFUSED_REQUEST.len()));
    assert_eq!(member.connection.refused.get(), Some(&Refused::Slow.into()));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_left_to_who_reads_it() {
    let (mut client, mut guard, _member) = guarded();
    pass(&mut client, &mut guard, &REQUEST[..REQUEST.len() - 1]).await;
    assert!(tokio::time::timeout(2 * IDLE_TIMEOUT, guard.read(&mut [0; 1024])).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_its_answer_is_given_up() {
    let (client, server) = tokio::io::duplex(16);
    let member = member();
    let mut guard = FramingGuard::new(server, &member);
    let since = Instant::now();
    assert_eq!(guard.write_all(&[b'x'; 17]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!(since.elapsed().as_secs(), WRITE_TIMEOUT.as_secs());
    drop(client);
}

#[tokio::test]
async fn what_is_unfinished_is_counted_until_it_is_whole_or_gone() {
    let (mut client, mut guard, member) = guarded();
    let held = || member.connection.keeps(Layer::Head);
    client.write_all(b"POST / HTTP/1.1\r\n").await.unwrap();
    assert!(futures_util::FutureExt::now_or_never(guard.read(&mut [0; 1024])).is_none());
    assert_eq!(held(), 17);
    client.write_all(b"Host: x\r\n\r\nGET").await.unwrap();
    let mut buffer = [0; 1024];
    assert_eq!(guard.read(&mut buffer).await.unwrap(), 28);
    assert_eq!(held(), 3);
}
