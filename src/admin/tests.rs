use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use chrono::TimeDelta;
use http_body_util::BodyExt;

use super::*;
use crate::batch::LogType;
use crate::status::{DeliveryStatus, DestinationStatus, Phase, SpoolStatus, SpooledStatus, Timestamp, TypeStatus};

fn status_now() -> Status {
    let of_type = |log_type| {
        let spooled = SpooledStatus { events_accepted: 5, events_spooled: 2, ..SpooledStatus::default() };
        let delivery = DeliveryStatus { events_uploaded: 3, ..DeliveryStatus::default() };
        TypeStatus { log_type, pulled_and_sent: false, bytes_replaced: 0, spooled, delivery }
    };
    Status {
        bucket: None,
        connections_refused_total: Default::default(),
        requests_refused_total: Default::default(),
        version: "0".into(),
        instance: "instance".into(),
        phase: Phase::Running,
        started_at: Timestamp::now(),
        now: Timestamp::now(),
        settings: Default::default(),
        destination: DestinationStatus { bucket: "b".into(), region: "r".into(), path: String::new(), endpoint: None },
        spool: SpoolStatus {
            dir: "/s".into(),
            bytes: 0,
            limit_bytes: 1,
            disk_available_bytes: None,
            quarantine_bytes: 0,
            disk_asked_at: None,
        },
        types: LogType::ALL.map(of_type).into(),
        credentials: None,
        pull: Vec::new(),
        cloudwatch: None,
    }
}

/// A listener whose readiness and liveness fail once `broken` is set.
fn health(broken: &Arc<AtomicBool>) -> Health {
    let checks = |broken: &Arc<AtomicBool>| {
        let broken = Arc::clone(broken);
        move || {
            let failure = broken.load(Ordering::Relaxed).then(|| "stalled for 31 s".to_owned());
            vec![Check { name: "started", failure: None }, Check { name: "spool", failure }]
        }
    };
    let (live, ready) = (Box::new(checks(broken)), Box::new(checks(broken)));
    Health::new(Sources { status: Box::new(status_now), live, ready }, Exporter::install())
}

async fn send(health: &Health, method: &str, uri: &str) -> (StatusCode, axum::http::HeaderMap, String) {
    let request = Request::builder().method(method).uri(uri).body(Body::empty()).unwrap();
    let response = health.router().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status, parts.headers, String::from_utf8(body.to_vec()).unwrap())
}

async fn get(uri: &str) -> (StatusCode, String) {
    let (status, _, body) = send(&health(&Arc::default()), "GET", uri).await;
    (status, body)
}

#[tokio::test]
async fn probes_answer_in_kubernetes_words_and_give_their_reasons_on_request() {
    for path in ["/livez", "/readyz", "/healthz"] {
        assert_eq!(get(path).await, (StatusCode::OK, "ok\n".to_owned()));
        let verbose = format!("[+]started ok\n[+]spool ok\n{} check passed\n", &path[1..]);
        assert_eq!(get(&format!("{path}?verbose")).await, (StatusCode::OK, verbose));
    }
    let health = health(&Arc::new(AtomicBool::new(true)));
    let (status, _, body) = send(&health, "GET", "/readyz?verbose").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body, "[+]started ok\n[-]spool: stalled for 31 s\nreadyz check failed\n");
    let (status, _, body) = send(&health, "GET", "/livez").await;
    assert_eq!(
        (status, body.as_str()),
        (StatusCode::INTERNAL_SERVER_ERROR, "[-]spool: stalled for 31 s\nlivez check failed\n")
    );
}

#[tokio::test]
async fn an_unknown_path_or_query_is_404_and_no_method_changes_anything() {
    for uri in [
        "/x",
        "/status/",
        "/Status",
        "/livez?x",
        "/livez?verbose=1",
        "/status?verbose",
        "/metrics?history",
        "/?verbose",
        "/..",
        "//",
    ] {
        assert_eq!(get(uri).await.0, StatusCode::NOT_FOUND, "{uri}");
    }
    let health = health(&Arc::default());
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
        for uri in ["/", "/livez", "/readyz", "/healthz", "/status", "/metrics"] {
            let (status, headers, _) = send(&health, method, uri).await;
            assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {uri}");
            assert_eq!(headers[header::ALLOW], "GET, HEAD");
        }
        assert_eq!(send(&health, method, "/x").await.0, StatusCode::NOT_FOUND);
    }
    let (status, _, body) = send(&health, "HEAD", "/livez").await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, ""));
}

#[tokio::test]
async fn the_status_is_json_and_reads_back() {
    let (code, body) = get("/status").await;
    assert_eq!(code, StatusCode::OK);
    let status: Status = serde_json::from_str(&body).unwrap();
    assert_eq!(status.types[1].spooled.events_spooled, 2);
}

/// Bites in a build that knows the repository's address (`SOURCE=https://…`).
#[tokio::test]
async fn a_section_in_the_status_is_named_as_the_log_names_it() {
    const WORDS: &str = "no token; see config/README.md#no-token";
    let of_trouble = || {
        let mut status = status_now();
        status.types[0].spooled.write_error = Some(WORDS.to_owned());
        status
    };
    let sources = Sources { status: Box::new(of_trouble), live: Box::new(Vec::new), ready: Box::new(Vec::new) };
    let (_, _, body) = send(&Health::new(sources, Exporter::install()), "GET", "/status").await;
    let status: Status = serde_json::from_str(&body).unwrap();
    assert_eq!(status.types[0].spooled.write_error.as_deref(), Some(&*crate::telemetry::linked(WORDS)));
}

#[tokio::test]
async fn the_metrics_come_in_the_form_that_was_accepted() {
    let health = health(&Arc::default());
    let (_, headers, body) = send(&health, "GET", "/metrics").await;
    assert_eq!(headers[header::CONTENT_TYPE], "text/plain; version=0.0.4; charset=utf-8");
    assert!(body.contains("env0_s3_logs_build_info{"));
    let request =
        Request::builder().uri("/metrics").header(header::ACCEPT, "application/openmetrics-text").body(Body::empty());
    let response = health.router().oneshot(request.unwrap()).await.unwrap();
    assert!(response.headers()[header::CONTENT_TYPE].to_str().unwrap().starts_with("application/openmetrics-text"));
}

#[tokio::test]
async fn every_answer_forbids_all_that_the_page_does_not_need() {
    let health = health(&Arc::default());
    for uri in ["/", "/status", "/nowhere"] {
        let (_, headers, _) = send(&health, "GET", uri).await;
        let policy = headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(headers[header::CACHE_CONTROL], "no-store");
    }
}

#[test]
fn the_page_needs_nothing_from_the_network_and_reads_no_value_as_markup() {
    for forbidden in [
        "http:",
        "https:",
        "//cdn",
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        " style=",
        " onclick",
        "src=",
    ] {
        assert!(!PAGE.contains(forbidden), "{forbidden}");
    }
    assert_eq!((PAGE.matches("<script").count(), PAGE.matches("<style").count()), (1, 1));
}

#[test]
fn the_history_holds_an_hour_and_no_more() {
    let history = History::default();
    let mut status = status_now();
    for tick in 0..1000 {
        status.now = Timestamp(status.started_at.0 + TimeDelta::seconds(5 * tick));
        history.sample(&status);
    }
    let snapshot = serde_json::to_value(history.snapshot()).unwrap();
    let at: Vec<i64> = serde_json::from_value(snapshot["at"].clone()).unwrap();
    assert_eq!((at.len(), at[360] - at[0]), (361, 3600));
    assert_eq!(snapshot["types"][1]["type"], "env0-audits");
    assert_eq!(snapshot["types"][1]["accepted"].as_array().unwrap().len(), 361);
    status.now = Timestamp(status.started_at.0 - TimeDelta::hours(1));
    history.sample(&status);
    assert_eq!(
        serde_json::to_value(history.snapshot()).unwrap()["at"].as_array().unwrap().len(),
        1,
        "the clock went back"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_served_daemon_can_be_asked_for_its_health_and_its_status_until_it_stops() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (broken, stop) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
    let serving = tokio::spawn(health(&broken).serve(listener, Vec::new(), stop.clone()));
    let ask = move || {
        tokio::task::spawn_blocking(move || {
            (crate::admin::client::healthy(address), crate::admin::client::status(address))
        })
    };

    let (healthy, status) = ask().await.unwrap();
    assert!(healthy.is_ok(), "{healthy:?}");
    assert_eq!(status.unwrap().instance, "instance");
    broken.store(true, Ordering::Relaxed);
    let reason = ask().await.unwrap().0.expect_err("healthy").to_string();
    assert!(reason.contains("500 Internal Server Error [-]spool: stalled for 31 s"), "{reason}");
    stop.cancel();
    serving.await.unwrap();
    assert!(matches!(ask().await.unwrap().0, Err(crate::admin::client::AskError::Unreachable { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_never_keep_a_probe_waiting_and_the_oldest_is_closed_for_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(health(&Arc::default()).serve(listener, Vec::new(), stop.clone()));
    let mut idle: Vec<_> = (0..CONNECTIONS_MAX).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
    let asked = tokio::task::spawn_blocking(move || {
        crate::admin::client::healthy(address).unwrap();
        let mut oldest = idle.remove(0);
        // Sooner than it would be closed for its silence.
        oldest.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        std::io::Read::read(&mut oldest, &mut [0])
    });
    assert_eq!(asked.await.unwrap().unwrap(), 0, "it was closed");
    stop.cancel();
    serving.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_with_a_late_request_is_answered_though_a_hundred_connect_meanwhile() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(health(&Arc::default()).serve(listener, Vec::new(), stop.clone()));
    let answered = tokio::task::spawn_blocking(move || {
        use std::io::{Read, Write};
        let mut probe = std::net::TcpStream::connect(address).unwrap();
        let _strangers: Vec<_> = (0..100).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        // All of them have been taken when one that came behind them is answered.
        crate::admin::client::healthy(address).unwrap();
        probe.write_all(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        probe.read_to_string(&mut answer).unwrap();
        answer
    });
    let answer = answered.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    stop.cancel();
    serving.await.unwrap();
}

/// Who asks while an answer is made gets the next one, and so do all others who ask meanwhile.
#[tokio::test]
async fn many_who_ask_at_once_share_an_answer_that_is_made_beside_the_probes() {
    const MANY: usize = 50;
    for path in ["/metrics", "/status"] {
        let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
        let (finish, finished) = std::sync::mpsc::channel();
        let finished = std::sync::Mutex::new(finished);
        let status = move || {
            begun.send(()).unwrap();
            Status { instance: finished.lock().unwrap().recv_timeout(Duration::from_secs(60)).unwrap(), ..status_now() }
        };
        let checks = || Box::new(Vec::new);
        let sources = Sources { status: Box::new(status), live: checks(), ready: checks() };
        let health = Health::new(sources, Exporter::install());
        let ask = || {
            let health = health.clone();
            tokio::spawn(async move { send(&health, "GET", path).await.2 })
        };
        let first = ask();
        begins.recv().await.unwrap();
        let others: Vec<_> = (0..MANY).map(|_| ask()).collect();
        for _ in 0..MANY {
            tokio::task::yield_now().await;
        }
        assert_eq!(send(&health, "GET", "/livez").await.0, StatusCode::OK, "beside the first");
        finish.send("before".to_owned()).unwrap();
        first.await.unwrap();
        begins.recv().await.unwrap();
        finish.send("after".to_owned()).unwrap();
        for other in others {
            let text = other.await.unwrap();
            assert!(path == "/metrics" || text.contains("\"instance\":\"after\""), "{text}");
        }
        assert!(begins.try_recv().is_err(), "{path}: made once more");
    }
}
