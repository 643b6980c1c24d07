//! An HTTP/1.1 client of plain sockets: what is sent is exactly what a test says.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// How long a read may wait. Longer than the daemon's longest hold.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; panics where it is not.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.text()))
    }

    /// How many events a 200 acknowledges.
    pub(crate) fn accepted(&self) -> u64 {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()["accepted"].as_u64().unwrap()
    }
}

/// A request in the making. `Host`, `Content-Length` and `Connection: close` are added on sending.
#[derive(Debug, Clone)]
pub(crate) struct Upload {
    pub(crate) method: String,
    pub(crate) path: String,
    /// Lines.
    pub(crate) headers: String,
    pub(crate) body: Vec<u8>,
}

impl Upload {
    pub(crate) fn new(method: &str, path: &str) -> Upload {
        Upload { method: method.into(), path: path.into(), headers: String::new(), body: Vec::new() }
    }

    pub(crate) fn post(path: &str) -> Upload {
        Upload::new("POST", path)
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Upload {
        self.headers += &format!("{name}: {value}\r\n");
        self
    }

    pub(crate) fn bearer(self, token: &str) -> Upload {
        self.header("Authorization", &format!("Bearer {token}"))
    }

    pub(crate) fn body(mut self, body: impl AsRef<[u8]>) -> Upload {
        self.body = body.as_ref().to_vec();
        self
    }

    /// Sends it on a connection of its own and reads the answer. An early answer to a body that is
    /// still being sent is an answer too.
    pub(crate) fn send(&self, to: SocketAddr) -> std::io::Result<Answer> {
        let mut raw = Raw::connect(to)?;
        let Upload { method, path, headers, body } = self;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {to}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n",
            body.len()
        );
        // A server that has refused the request may close before all of it is sent.
        let sent = raw.write(head).and_then(|()| raw.write(body));
        raw.answer().and_then(|answer| answer.ok_or_else(|| sent.err().unwrap_or(ErrorKind::UnexpectedEof.into())))
    }
}

/// A connection on which a test writes bytes as it likes.
pub(crate) struct Raw {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Raw {
    pub(crate) fn connect(to: SocketAddr) -> std::io::Result<Raw> {
        Raw::new(TcpStream::connect(to)?)
    }

    /// Connects from another address of this machine, `127.0.0.<host>` or one behind it, as another sender.
    pub(crate) fn connect_from(host: u16, to: SocketAddr) -> std::io::Result<Raw> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
        // Daemons that other tests start meanwhile must not inherit it.
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let [high, low] = host.to_be_bytes();
        bind(&socket, &SocketAddr::from(([127, 0, high, low], 0)))?;
        connect(&socket, &to)?;
        Raw::new(socket.into())
    }

    fn new(stream: TcpStream) -> std::io::Result<Raw> {
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
        stream.set_nodelay(true)?;
        Ok(Raw { stream, unread: Vec::new() })
    }

    pub(crate) fn write(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Writes what the socket takes at once; none of it is no error.
    pub(crate) fn write_some(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.set_nonblocking(true)?;
        let written = self.stream.write(bytes.as_ref());
        self.stream.set_nonblocking(false)?;
        match written {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    /// Says that nothing more will be sent.
    pub(crate) fn finish_writing(&self) -> std::io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// The next answer, `100 Continue` included; none when the server closed without one.
    pub(crate) fn answer(&mut self) -> std::io::Result<Option<Answer>> {
        let head_end = loop {
            if let Some(at) = memchr::memmem::find(&self.unread, b"\r\n\r\n") {
                break at + 4;
            }
            if !self.read_more()? {
                return Ok(None);
            }
        };
        let head: Vec<u8> = self.unread.drain(..head_end).collect();
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut lines = head.lines();
        let status =
            lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).ok_or(ErrorKind::InvalidData)?;
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
        let mut answer = Answer { status, headers, body: Vec::new() };
        if answer.header("transfer-encoding").is_some() {
            answer.body = self.chunks()?;
        } else if let Some(length) = answer.header("content-length") {
            let length = length.parse().map_err(|_| ErrorKind::InvalidData)?;
            answer.body = self.take(length)?;
        }
        Ok(Some(answer))
    }

    /// All that the server sends until it closes.
    pub(crate) fn rest(&mut self) -> std::io::Result<String> {
        while self.read_more()? {}
        Ok(String::from_utf8_lossy(&std::mem::take(&mut self.unread)).into_owned())
    }

    /// Whether the server closes the connection, and sends nothing before it does.
    pub(crate) fn is_closed(&mut self) -> bool {
        self.unread.is_empty() && !self.read_more().unwrap_or(false)
    }

    fn chunks(&mut self) -> std::io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = loop {
                if let Some(at) = memchr::memmem::find(&self.unread, b"\r\n") {
                    break self.take(at + 2)?;
                }
                if !self.read_more()? {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
            };
            let size = String::from_utf8_lossy(&line);
            let size = usize::from_str_radix(size.trim(), 16).map_err(|_| ErrorKind::InvalidData)?;
            let chunk = self.take(size + 2)?;
            if size == 0 {
                return Ok(body);
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }

    fn take(&mut self, length: usize) -> std::io::Result<Vec<u8>> {
        while self.unread.len() < length {
            if !self.read_more()? {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.unread.drain(..length).collect())
    }

    /// Reads what is there; false at the end.
    fn read_more(&mut self) -> std::io::Result<bool> {
        let mut buffer = [0; 16 * 1024];
        let length = self.stream.read(&mut buffer)?;
        self.unread.extend_from_slice(&buffer[..length]);
        Ok(length > 0)
    }
}
