//! Stricter HTTP/1 framing than hyper's: what two readers could take for two different requests is
//! refused before hyper sees it.
//!
//! Refused with 400 and a close: a line of the head that ends in a bare LF, a folded header, more than
//! one `Content-Length` or `Transfer-Encoding`, both together, any transfer coding but `chunked`
//! (RFC 9112, sections 2.2, 5.2, 6.1 and 6.3). The guard follows the bodies' lengths so that it knows
//! where the next head begins; in place of a refused head hyper reads a NUL, which it answers with 400.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use memchr::memchr;
use memchr::memmem::Finder;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::time::{Instant, Sleep, sleep_until};

static HEAD_END: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\r\n\r\n"));

/// From a head's first byte to its last.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// From a request's last byte to the next one's first.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// A connection whose requests are framed without ambiguity, and whose heads come in time.
pub struct FramingGuard<S> {
    stream: Take<S>,
    read_max_bytes: Arc<AtomicUsize>,
    framing: Framing,
    /// When a head that has not come, or not wholly, ends the connection.
    due: Instant,
    /// Never after `due`. That moves with every request, the timer only when it fires.
    timer: Pin<Box<Sleep>>,
}

impl<S: AsyncRead> FramingGuard<S> {
    /// Guards a connection from its first byte on. No read of it takes more than `read_max_bytes`, at least 1, has at
    /// the time: hyper's buffer of a connection grows with what its reads bring.
    pub fn new(stream: S, read_max_bytes: Arc<AtomicUsize>) -> FramingGuard<S> {
        let due = Instant::now() + IDLE_TIMEOUT;
        let timer = Box::pin(sleep_until(due));
        FramingGuard { stream: stream.take(0), read_max_bytes, framing: Framing::default(), due, timer }
    }

    fn poll_due(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while self.timer.as_mut().poll(context).is_ready() {
            if Instant::now() >= self.due {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(self.due);
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FramingGuard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let was_inside_head = this.framing.inside_head();
        this.stream.set_limit(this.read_max_bytes.load(Ordering::Relaxed) as u64);
        match Pin::new(&mut this.stream).poll_read(context, buffer) {
            // A body has time-outs of its own (`receive.rs`).
            Poll::Pending if matches!(this.framing, Framing::Head(_)) => {
                this.poll_due(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
            }
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => {
                if let Some(kept) = this.framing.check(&buffer.filled()[before..]) {
                    buffer.set_filled(before + kept);
                    if buffer.remaining() > 0 {
                        buffer.put_slice(b"\0");
                    }
                }
                if !this.framing.inside_head() {
                    this.due = Instant::now() + IDLE_TIMEOUT;
                } else if !was_inside_head {
                    this.due = Instant::now() + HEAD_TIMEOUT;
                    this.timer.as_mut().reset(this.due);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        }
    }
}

/// Without vectored writes: an answer is small, and one copy of it costs less than a list of its parts.
impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for FramingGuard<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.stream.get_mut()).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_shutdown(context)
    }
}

/// Where in the stream of requests the connection is.
#[derive(Debug, PartialEq, Eq)]
enum Framing {
    /// In a head; what came of it in earlier reads.
    Head(Vec<u8>),
    /// In a body; bytes left.
    Length(u64),
    Chunked(Chunk),
    /// hyper has been given, or will find, a reason to close.
    Broken,
}

impl Default for Framing {
    fn default() -> Self {
        Framing::Head(Vec::new())
    }
}

/// Where in a chunked body (RFC 9112, section 7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    Size(u64),
    /// Up to the line's LF; the chunk's size.
    Extension(u64),
    /// Bytes left, the CRLF after them included.
    Data(u64),
    /// In the trailers; whether the line so far is empty.
    Trailer {
        empty: bool,
    },
}

impl Framing {
    /// Whether a head has begun and not ended.
    fn inside_head(&self) -> bool {
        matches!(self, Framing::Head(head) if !head.is_empty())
    }

    /// Follows the bytes of one read; `Some(n)` when all after the first `n` must not reach hyper.
    fn check(&mut self, mut bytes: &[u8]) -> Option<usize> {
        let length = bytes.len();
        while !bytes.is_empty() {
            let position = length - bytes.len();
            match self {
                Framing::Broken => return Some(position),
                Framing::Length(left) => {
                    let skipped = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    bytes = &bytes[skipped..];
                    *left -= skipped as u64;
                    if *left == 0 {
                        *self = Framing::default();
                    }
                }
                Framing::Chunked(chunk) => match chunk.skip(&mut bytes) {
                    Next::More => {}
                    Next::End => *self = Framing::default(),
                    // hyper reads the same bytes and refuses them itself.
                    Next::Malformed => *self = Framing::Broken,
                },
                Framing::Head(earlier) => {
                    // Empty lines before a head are skipped by hyper, too.
                    if earlier.is_empty() && matches!(bytes[0], b'\r' | b'\n') {
                        bytes = &bytes[1..];
                        continue;
                    }
                    match take_head(earlier, &mut bytes) {
                        HeadRead::Partial => return None,
                        HeadRead::Whole(next) => *self = next,
                        HeadRead::Ambiguous => {
                            *self = Framing::Broken;
                            return Some(position);
                        }
                    }
                }
            }
        }
        None
    }
}

enum HeadRead {
    Partial,
    Whole(Framing),
    Ambiguous,
}

/// Takes the rest of a head from `bytes`.
fn take_head(earlier: &mut Vec<u8>, bytes: &mut &[u8]) -> HeadRead {
    let whole;
    let head = if earlier.is_empty() {
        let Some(end) = HEAD_END.find(bytes) else {
            if has_bare_lf(bytes) {
                return HeadRead::Ambiguous;
            }
            earlier.extend_from_slice(bytes);
            return HeadRead::Partial;
        };
        let head = &bytes[..end + 2];
        *bytes = &bytes[end + 4..];
        head
    } else {
        let seen = earlier.len().saturating_sub(3);
        earlier.extend_from_slice(bytes);
        let Some(end) = HEAD_END.find(&earlier[seen..]).map(|end| seen + end) else {
            return if has_bare_lf(earlier) { HeadRead::Ambiguous } else { HeadRead::Partial };
        };
        *bytes = &bytes[bytes.len() - (earlier.len() - (end + 4))..];
        whole = std::mem::take(earlier);
        &whole[..end + 2]
    };
    body_framing(head).map_or(HeadRead::Ambiguous, HeadRead::Whole)
}

fn has_bare_lf(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    let mut previous = None;
    while let Some(at) = memchr(b'\n', rest) {
        let before = if at == 0 { previous } else { Some(rest[at - 1]) };
        if before != Some(b'\r') {
            return true;
        }
        previous = Some(b'\n');
        rest = &rest[at + 1..];
    }
    false
}

/// How the body after a head (all its lines, up to the last one's CRLF) is framed; `None` when that is ambiguous.
fn body_framing(head: &[u8]) -> Option<Framing> {
    let mut length = None;
    let mut chunked = false;
    let mut rest = head;
    let mut request_line = true;
    while let Some(at) = memchr(b'\n', rest) {
        let line = rest[..at].strip_suffix(b"\r")?;
        rest = &rest[at + 1..];
        if std::mem::take(&mut request_line) {
            continue;
        }
        if matches!(line.first(), Some(b' ' | b'\t')) {
            return None;
        }
        let colon = memchr(b':', line)?;
        let value = line[colon + 1..].trim_ascii();
        if line[..colon].eq_ignore_ascii_case(b"content-length") {
            let digits =
                std::str::from_utf8(value).ok().filter(|value| value.bytes().all(|byte| byte.is_ascii_digit()))?;
            if length.replace(digits.parse().ok()?).is_some() {
                return None;
            }
        } else if line[..colon].eq_ignore_ascii_case(b"transfer-encoding") {
            if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return None;
            }
            chunked = true;
        }
    }
    match (length, chunked) {
        (Some(_), true) => None,
        (None, true) => Some(Framing::Chunked(Chunk::Size(0))),
        (None | Some(0), false) => Some(Framing::default()),
        (Some(length), false) => Some(Framing::Length(length)),
    }
}

enum Next {
    More,
    End,
    Malformed,
}

impl Chunk {
    /// Goes on by at least one byte.
    fn skip(&mut self, bytes: &mut &[u8]) -> Next {
        if let Chunk::Data(left) = self {
            let skipped = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
            *bytes = &bytes[skipped..];
            *left -= skipped as u64;
            if *left == 0 {
                *self = Chunk::Size(0);
            }
            return Next::More;
        }
        let byte = bytes[0];
        *bytes = &bytes[1..];
        *self = match (*self, byte) {
            (Chunk::Size(size), byte) if byte.is_ascii_hexdigit() => {
                let digit = u64::from((byte as char).to_digit(16).unwrap_or_default());
                match size.checked_mul(16).and_then(|size| size.checked_add(digit)) {
                    Some(size) => Chunk::Size(size),
                    None => return Next::Malformed,
                }
            }
            (Chunk::Size(size) | Chunk::Extension(size), b'\n') if size > 0 => match size.checked_add(2) {
                Some(data) => Chunk::Data(data),
                None => return Next::Malformed,
            },
            (Chunk::Size(_) | Chunk::Extension(_), b'\n') => Chunk::Trailer { empty: true },
            (Chunk::Size(size) | Chunk::Extension(size), _) => Chunk::Extension(size),
            (Chunk::Trailer { empty: true }, b'\n') => return Next::End,
            (Chunk::Trailer { .. }, b'\n') => Chunk::Trailer { empty: true },
            (Chunk::Trailer { empty }, byte) => Chunk::Trailer { empty: empty && byte == b'\r' },
            (Chunk::Data(_), _) => return Next::Malformed,
        };
        Next::More
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, DuplexStream};

    use super::*;

    /// What reaches hyper of `stream`, read in pieces of `step` bytes.
    fn kept(stream: &[u8], step: usize) -> usize {
        let mut framing = Framing::default();
        let mut passed = 0;
        for piece in stream.chunks(step) {
            match framing.check(piece) {
                None => passed += piece.len(),
                Some(kept) => return passed + kept,
            }
        }
        passed
    }

    fn passes(stream: &str) {
        for step in [1, 2, 3, 7, 64, 4096] {
            assert_eq!(kept(stream.as_bytes(), step), stream.len(), "{stream:?} in steps of {step}");
        }
    }

    fn refuses(stream: &str) {
        for step in [1, 2, 3, 7, 64, 4096] {
            assert!(kept(stream.as_bytes(), step) < stream.len(), "{stream:?} in steps of {step}");
        }
    }

    #[tokio::test]
    async fn a_read_takes_no_more_than_its_share_at_the_time() {
        let (mut client, server) = tokio::io::duplex(1024);
        client.write_all(&[b'x'; 100]).await.unwrap();
        let share = Arc::new(AtomicUsize::new(10));
        let mut guard = FramingGuard::new(server, share.clone());
        let mut buffer = [0; 64];
        assert_eq!(guard.read(&mut buffer).await.unwrap(), 10);
        share.store(30, Ordering::Relaxed);
        assert_eq!(guard.read(&mut buffer).await.unwrap(), 30);
        share.store(1000, Ordering::Relaxed);
        assert_eq!(guard.read(&mut buffer).await.unwrap(), 60);
    }

    fn guarded() -> (DuplexStream, FramingGuard<DuplexStream>) {
        let (client, server) = tokio::io::duplex(1024);
        (client, FramingGuard::new(server, Arc::new(AtomicUsize::new(1024))))
    }

    async fn pass(client: &mut DuplexStream, guard: &mut FramingGuard<DuplexStream>, bytes: &[u8]) {
        client.write_all(bytes).await.unwrap();
        guard.read_exact(&mut vec![0; bytes.len()]).await.unwrap();
    }

    /// How long a read of what never comes lasts, in whole seconds.
    async fn seconds_to_the_end(guard: &mut FramingGuard<DuplexStream>) -> u64 {
        let since = Instant::now();
        assert_eq!(guard.read(&mut [0; 1024]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        since.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_when_no_request_comes_and_each_one_begins_the_time_anew() {
        let (mut client, mut guard) = guarded();
        for _ in 0..3 {
            let wait = IDLE_TIMEOUT - Duration::from_secs(1);
            assert!(tokio::time::timeout(wait, guard.read(&mut [0; 1024])).await.is_err());
            pass(&mut client, &mut guard, b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx").await;
        }
        assert_eq!(seconds_to_the_end(&mut guard).await, IDLE_TIMEOUT.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_its_time_from_its_first_byte_on_however_it_trickles() {
        let (mut client, mut guard) = guarded();
        for _ in 0..4 {
            pass(&mut client, &mut guard, b"G").await;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        assert_eq!(seconds_to_the_end(&mut guard).await, HEAD_TIMEOUT.as_secs() - 8);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_is_left_to_who_reads_it() {
        let (mut client, mut guard) = guarded();
        pass(&mut client, &mut guard, b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n").await;
        assert!(tokio::time::timeout(2 * IDLE_TIMEOUT, guard.read(&mut [0; 1024])).await.is_err());
    }

    #[test]
    fn well_formed_requests_pass_one_after_the_other() {
        let plain = "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n{\"a\":\"\n\n\"}\n";
        let chunked = "POST /a HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n4;x=y\r\n\n\n\n\n\r\n0A\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n";
        let bare = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        passes(&[plain, chunked, bare, "\r\n", plain, chunked].concat());
    }

    #[test]
    fn ambiguous_heads_never_pass_wherever_they_stand() {
        let ambiguous = [
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\nx",
            "POST / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\nx",
            "POST / HTTP/1.1\nHost: x\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: x\n\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: x\n\nGET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nX: a\r\n b\r\n\r\n",
        ];
        let good = "POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}";
        for stream in ambiguous {
            refuses(stream);
            refuses(&format!("{good}{stream}"));
        }
    }
}
