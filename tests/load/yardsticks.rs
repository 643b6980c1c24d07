//! What the machine can do: a server that discards, the same one that keeps, and a loop that appends and fsyncs.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
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
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use crate::client::percentile_ms;
use crate::events;
use crate::plan::Point;
use crate::process;

/// First argument of this program where it is the server that discards.
pub(crate) const DISCARD: &str = "discard";
/// First argument of this program where it is the server that keeps.
pub(crate) const KEEP: &str = "keep";
/// First argument of this program where it is the loop.
pub(crate) const APPEND: &str = "append";
/// What the server says before its address.
pub(crate) const LISTENING: &str = "listening on ";

/// As long as the daemon's answer.
const ANSWER: &[u8] = br#"{"accepted":1000,"object":"env0-deployments/2026/11/22/21:00:33_abcde.log","line":1000000}"#;
/// As the daemon gathers appends, and the size of its batches.
const GATHER_BYTES: usize = 256 * 1024;
const FILE_BYTES: usize = 16 * 1024 * 1024;
/// How long the loop goes on.
const APPEND_TIME: Duration = Duration::from_secs(2);

/// hyper with nothing around it: reads each request to its end and answers 200. With a folder it first appends
/// the body to a file there and waits for an fsync.
pub(crate) fn serve(folder: Option<&Path>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let file = folder.map(keep_in);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        eprintln!("{LISTENING}{}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let file = file.clone();
            let service = service_fn(move |request| answer(request, file.clone()));
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    })
}

async fn answer(request: Request<Incoming>, file: Option<mpsc::Sender<Append>>) -> Result<Response<Full<Bytes>>> {
    let mut body = request.into_body();
    match file {
        None => while let Some(Ok(_)) = body.frame().await {},
        Some(file) => {
            let (reply, durable) = oneshot::channel();
            file.send((body.collect().await?.to_bytes(), reply))?;
            durable.await?;
        }
    }
    Ok(Response::new(Full::from(ANSWER)))
}

/// A body, and whom to tell that it is durable.
type Append = (Bytes, oneshot::Sender<()>);

/// Starts a thread that keeps bodies in files of `folder`; a task tells whoever waits, since a wake-up from within
/// the runtime costs less.
fn keep_in(folder: &Path) -> mpsc::Sender<Append> {
    let (file, appends) = mpsc::channel();
    let (durable, mut groups) = tokio::sync::mpsc::unbounded_channel::<Vec<oneshot::Sender<()>>>();
    let folder = folder.to_owned();
    std::thread::spawn(move || {
        if let Err(error) = keep(folder, &appends, &durable) {
            eprintln!("the server that keeps: {error:#}");
            std::process::exit(1);
        }
    });
    tokio::spawn(async move {
        while let Some(group) = groups.recv().await {
            for reply in group {
                // Whoever hung up doesn't wait.
                let _ = reply.send(());
            }
        }
    });
    file
}

/// Appends in one write what fits, and fsyncs; bodies that come meanwhile share the next fsync.
fn keep(
    folder: PathBuf,
    appends: &mpsc::Receiver<Append>,
    durable: &UnboundedSender<Vec<oneshot::Sender<()>>>,
) -> Result<()> {
    let new_file = || tempfile::tempfile_in(&folder).map(|file| BufWriter::with_capacity(GATHER_BYTES, file));
    let (mut file, mut bytes) = (new_file()?, 0);
    while let Ok(first) = appends.recv() {
        let mut group = Vec::new();
        let mut next = Some(first);
        while let Some((body, reply)) = next {
            file.write_all(&body)?;
            bytes += body.len();
            group.push(reply);
            // As in the daemon: who can run now may be about to append.
            next = appends.try_recv().ok().or_else(|| {
                std::thread::yield_now();
                appends.try_recv().ok()
            });
        }
        file.flush()?;
        file.get_ref().sync_data()?;
        durable.send(group)?;
        if bytes >= FILE_BYTES {
            (file, bytes) = (new_file()?, 0);
        }
    }
    Ok(())
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
