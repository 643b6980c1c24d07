use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::http::listener::Listener;
use crate::http::site::Site;

#[tokio::test]
async fn while_the_daemon_starts_a_request_is_held_then_refused_in_its_protocols_words() {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let ingest = Arc::new(SetOnce::new());
    let handler = Arc::new(move |request, guest| answer_once_started(ingest.clone(), request, guest));
    let listener = Listener { name: "ingest", tcp, tls: None, max_connections: 8, site: Site::default() };
    tokio::spawn(listener.serve(handler, CancellationToken::new()));
    let ask = async |head: &str| {
        let sent = Instant::now();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(sent.elapsed() >= HOLD, "{head}: {answer}");
        answer
    };
    let heads =
        ["POST /v1/logs/env0-audits", "POST /services/collector", "PUT /v1/oidc-token", "GET /", "GET /nowhere"];
    let answers = join_all(heads.map(ask)).await;
    for answer in &answers {
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: 5"), "{answer}");
    }
    assert!(answers[0].contains("starting"), "{}", answers[0]);
    assert!(answers[1].contains("\"code\":9"), "as a busy HEC says it: {}", answers[1]);
}
