//! A client as cheap as can be: whole requests from memory, answers looked at only for what counts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// What is sent.
pub(crate) struct Load {
    pub(crate) address: SocketAddr,
    /// Whole requests, sent in turns.
    pub(crate) requests: Arc<Vec<Vec<u8>>>,
    /// How many in all.
    pub(crate) count: usize,
    pub(crate) connections: usize,
    /// Requests a second, all connections together; none is as fast as answers come.
    pub(crate) pace: Option<f64>,
}

/// What came of it.
#[derive(Default)]
pub(crate) struct Outcome {
    /// Events, by the answers' own count.
    pub(crate) acknowledged: usize,
    /// Answers other than 200.
    pub(crate) refused: usize,
    pub(crate) elapsed: Duration,
    /// Each request's latency in microseconds, rising.
    pub(crate) latencies: Vec<u32>,
}

impl Outcome {
    /// The latency that `share` of the requests stayed within, in milliseconds.
    pub(crate) fn latency_ms(&self, share: f64) -> f64 {
        percentile_ms(&self.latencies, share)
    }
}

/// The value in a rising list that `share` of them stay within, from microseconds to milliseconds.
pub(crate) fn percentile_ms(rising: &[u32], share: f64) -> f64 {
    let index = (rising.len() as f64 * share).ceil() as usize;
    rising.get(index.saturating_sub(1)).map_or(0.0, |micros| f64::from(*micros) / 1000.0)
}

/// Sends all of it; returns when every answer is there.
pub(crate) async fn send(load: Load) -> Result<Outcome> {
    let mut streams = Vec::new();
    for _ in 0..load.connections {
        let stream = TcpStream::connect(load.address).await?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }
    let load = Arc::new(load);
    let next = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let mut connections = JoinSet::new();
    for stream in streams {
        connections.spawn(connection(stream, load.clone(), next.clone(), started));
    }
    let mut all = Outcome::default();
    while let Some(one) = connections.join_next().await {
        let one = one??;
        all.acknowledged += one.acknowledged;
        all.refused += one.refused;
        all.latencies.extend(one.latencies);
    }
    all.elapsed = started.elapsed();
    all.latencies.sort_unstable();
    Ok(all)
}

async fn connection(
    mut stream: TcpStream,
    load: Arc<Load>,
    next: Arc<AtomicUsize>,
    started: Instant,
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut answer = Vec::with_capacity(4096);
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= load.count {
            return Ok(outcome);
        }
        let mut begin = Instant::now();
        if let Some(pace) = load.pace {
            // Who is late because of the answer before has waited since it was due.
            let due = started + Duration::from_secs_f64(number as f64 / pace);
            if due > begin {
                tokio::time::sleep_until(due.into()).await;
                begin = Instant::now();
            } else {
                begin = due;
            }
        }
        stream.write_all(&load.requests[number % load.requests.len()]).await?;
        let accepted = read_answer(&mut stream, &mut answer).await?;
        outcome.latencies.push(u32::try_from(begin.elapsed().as_micros()).unwrap_or(u32::MAX));
        match accepted {
            Some(events) => outcome.acknowledged += events,
            None => outcome.refused += 1,
        }
    }
}

/// Reads one answer; the events that it acknowledges, if it is a 200.
async fn read_answer(stream: &mut TcpStream, answer: &mut Vec<u8>) -> Result<Option<usize>> {
    answer.clear();
    let body = loop {
        if stream.read_buf(answer).await? == 0 {
            bail!("the server closed a connection; it had said: {}", String::from_utf8_lossy(answer));
        }
        let Some(end) = memmem::find(answer, b"\r\n\r\n") else { continue };
        let length =
            number_after(&answer[..end], b"ontent-length: ").or(number_after(&answer[..end], b"ontent-Length: "));
        let body = end + 4;
        if answer.len() >= body + length.context("an answer without a length")? {
            break body;
        }
    };
    if !answer.starts_with(b"HTTP/1.1 200") {
        return Ok(None);
    }
    Ok(Some(number_after(&answer[body..], b"\"accepted\":").unwrap_or(0)))
}

fn number_after(text: &[u8], words: &[u8]) -> Option<usize> {
    let digits = &text[memmem::find(text, words)? + words.len()..];
    let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0')))
}
