//! The admin listener (temporary minimum).
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::daemon::Probe;
use crate::status::Phase;

/// Serves until `stop`.
pub async fn serve(socket: TcpListener, probe: Arc<Probe>, stop: CancellationToken) {
    let ready = probe.clone();
    let status = probe.clone();
    let metrics = probe.clone();
    let router = Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route(
            "/readyz",
            get(move || async move {
                if ready.phase() == Phase::Running { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
            }),
        )
        .route("/status", get(move || async move { serde_json::to_string(&status.status()).unwrap_or_default() }))
        .route(
            "/metrics",
            get(move || async move {
                crate::telemetry::metrics::Exporter::install()
                    .render(&metrics.status(), crate::telemetry::metrics::Exposition::Prometheus)
            }),
        );
    loop {
        let accepted = tokio::select! { accepted = socket.accept() => accepted, () = stop.cancelled() => return };
        let Ok((stream, _)) = accepted else { continue };
        let service = hyper_util::service::TowerToHyperService::new(router.clone());
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

/// Asks a daemon's admin listener.
pub fn ask(address: SocketAddr) -> Result<(), String> {
    let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(500))
        .map_err(|error| error.to_string())?;
    let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err("not alive".into()) }
}
