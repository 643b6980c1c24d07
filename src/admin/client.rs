//! Asks a running daemon's admin listener: for `healthcheck` and `check`. No runtime, no TLS, no proxy.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::status::Status;

/// To connect, and for each read: the listener is on this machine.
const TIMEOUT: Duration = Duration::from_secs(2);
/// A status is a few kilobytes.
const ANSWER_MAX_BYTES: u64 = 1 << 20;

/// Why the daemon can't be asked, or is not well.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nothing listens there, or it does not answer in time.
    #[error("no answer from {address}: {source}")]
    Unreachable {
        /// The admin listener.
        address: SocketAddr,
        /// The reason.
        source: io::Error,
    },
    /// It answers, and not with 200.
    #[error("{address} answered: {answer}")]
    Refused {
        /// The admin listener.
        address: SocketAddr,
        /// Its first words.
        answer: String,
    },
    /// Another program, or another version of this one.
    #[error("{address} is no admin listener of this daemon: {source}")]
    Foreign {
        /// The address that was asked.
        address: SocketAddr,
        /// What is not as expected.
        source: serde_json::Error,
    },
}

/// Whether the daemon is alive.
pub fn healthy(address: SocketAddr) -> Result<(), AskError> {
    get(address, "/livez").map(drop)
}

/// What the daemon says of itself.
pub fn status(address: SocketAddr) -> Result<Status, AskError> {
    let body = get(address, "/status")?;
    serde_json::from_str(&body).map_err(|source| AskError::Foreign { address, source })
}

/// Why the daemon's disk keeps it from taking events; `None` where it doesn't, or where that can't be asked.
pub fn disk_trouble(address: SocketAddr) -> Option<String> {
    let answer = exchange(address, "/readyz").ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    body.lines().find_map(|line| line.strip_prefix("[-]disk: ")).map(str::to_owned)
}

/// The body of a 200.
fn get(address: SocketAddr, path: &str) -> Result<String, AskError> {
    let answer = exchange(address, path).map_err(|source| AskError::Unreachable { address, source })?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.starts_with("HTTP/1.0 200 ") || head.starts_with("HTTP/1.1 200 ") {
        return Ok(body.to_owned());
    }
    let first = [head.lines().next().unwrap_or_default(), body.trim()].join(" ");
    let shown = first.chars().map(|c| if c.is_control() { ' ' } else { c });
    Err(AskError::Refused { address, answer: shown.take(200).collect() })
}

/// HTTP/1.0, so that the answer is neither chunked nor kept open.
fn exchange(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    // In one piece: whoever answers the first may close before the next.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX_BYTES).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
