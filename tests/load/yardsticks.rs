//! What the machine can do: a server that discards, and a loop that appends and fsyncs.

use std::convert::Infallible;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::client::percentile_ms;
use crate::events;
use crate::plan::Point;
use crate::process;

/// First argument of this program where it is the server.
pub(crate) const DISCARD: &str = "discard";
/// First argument of this program where it is the loop.
pub(crate) const APPEND: &str = "append";
/// What the server says before its address.
pub(crate) const LISTENING: &str = "listening on ";

/// As long as the daemon's answer.
const ANSWER: &[u8] = br#"{"accepted":1000,"object":"env0-deployments/2026/11/22/21:00:33_abcde.log","line":1000000}"#;
/// How long the loop goes on.
const APPEND_TIME: Duration = Duration::from_secs(2);

/// hyper with nothing around it: reads each request to its end and answers 200.
pub(crate) fn discard() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        eprintln!("{LISTENING}{}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
            tokio::spawn(connection);
        }
    })
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut body = request.into_body();
    while let Some(Ok(_)) = body.frame().await {}
    Ok(Response::new(Full::from(ANSWER)))
}

/// What the loop reached.
#[derive(Serialize, Deserialize)]
pub(crate) struct Appended {
    pub(crate) bytes_per_second: f64,
    pub(crate) p99_ms: f64,
}

/// Appends and fsyncs the bytes of one body after the other, as a child on the measured core.
pub(crate) fn run_append(core: usize, folder: &Path, point: &Point) -> Result<Appended> {
    let body_bytes = point.events_per_request * events::EVENT_BYTES;
    let output = Command::new(std::env::current_exe()?)
        .args([process::PINNED, &core.to_string()])
        .arg(std::env::current_exe()?)
        .arg(APPEND)
        .arg(folder)
        .arg(body_bytes.to_string())
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "the loop that appends failed");
    serde_json::from_slice(&output.stdout).context("the loop that appends said nothing")
}

/// The loop itself.
pub(crate) fn append(folder: &Path, body_bytes: &str) -> Result<()> {
    let body = vec![b'x'; body_bytes.parse()?];
    let mut file = tempfile::tempfile_in(folder)?;
    let started = Instant::now();
    let mut latencies = Vec::new();
    while started.elapsed() < APPEND_TIME {
        let begin = Instant::now();
        file.write_all(&body)?;
        file.sync_data()?;
        latencies.push(u32::try_from(begin.elapsed().as_micros())?);
    }
    let bytes_per_second = (latencies.len() * body.len()) as f64 / started.elapsed().as_secs_f64();
    latencies.sort_unstable();
    println!("{}", serde_json::to_string(&Appended { bytes_per_second, p99_ms: percentile_ms(&latencies, 0.99) })?);
    Ok(())
}
