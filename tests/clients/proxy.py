"""A recording proxy: hands every request on, and keeps the books of which events were acknowledged."""

import contextlib
import gzip
import http.client
import http.server
import re
import socket
import threading
import time

# Each event carries the name of its client and a number.
EVENT = re.compile(rb"event ([a-z-]+) (\d{6})")


class Proxy:
    """Between clients and the daemon. A request that the daemon doesn't answer gets no answer here either."""

    def __init__(self, daemon_port):
        self.lock = threading.Lock()
        self.acknowledged = set()
        self.last_acknowledgement = {}
        self.unanswered = 0
        self.refused = {}
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def handle_one_request(self):
                with contextlib.suppress(ConnectionError):
                    super().handle_one_request()

            def do_POST(self):
                body = read_body(self)
                answer = forward(daemon_port, self.path, self.headers, body)
                if answer is None:
                    with proxy.lock:
                        proxy.unanswered += 1
                    self.close_connection = True
                    with contextlib.suppress(OSError):
                        self.connection.shutdown(socket.SHUT_RDWR)
                    return
                status, headers, answer_body = answer
                proxy.record(status, plain(self.path, self.headers, body))
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                        self.send_header(name, value)
                if status != 204:
                    self.send_header("Content-Length", str(len(answer_body)))
                self.end_headers()
                self.wfile.write(answer_body)

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def record(self, status, body):
        with self.lock:
            if 200 <= status < 300:
                acknowledged = events(body)
                self.acknowledged |= acknowledged
                self.last_acknowledgement |= dict.fromkeys((name for name, _ in acknowledged), time.monotonic())
            else:
                self.refused[status] = self.refused.get(status, 0) + 1

    def acknowledged_of(self, client):
        with self.lock:
            return {number for name, number in self.acknowledged if name == client}


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024


def events(data):
    """The events in a text: (client, number)."""
    return {(name.decode(), int(number)) for name, number in EVENT.findall(data)}


def read_body(request):
    if request.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length", 0)))
    chunks = []
    while size := int(request.rfile.readline().split(b";")[0], 16):
        chunks.append(request.rfile.read(size))
        request.rfile.readline()
    request.rfile.readline()
    return b"".join(chunks)


def forward(port, path, headers, body):
    """The daemon's answer, or None where it doesn't give one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.putrequest("POST", path, skip_accept_encoding=True)
        for name, value in headers.items():
            if name.lower() not in ("host", "content-length", "transfer-encoding", "connection", "expect"):
                connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def plain(path, headers, body):
    """A body without its compression."""
    is_loki = path.endswith("/loki/api/v1/push")
    if headers.get("Content-Encoding") == "gzip":
        return gzip.decompress(body)
    return unsnap(body) if is_loki and headers.get("Content-Type") == "application/x-protobuf" else body


def unsnap(block):
    """Decompresses a snappy block: https://github.com/google/snappy/blob/main/format_description.txt"""
    at = 0
    while block[at] & 0x80:
        at += 1
    at += 1
    out = bytearray()
    while at < len(block):
        tag = block[at]
        at += 1
        if tag & 3 == 0:
            length = tag >> 2
            if length >= 60:
                width = length - 59
                length = int.from_bytes(block[at : at + width], "little")
                at += width
            out += block[at : at + length + 1]
            at += length + 1
            continue
        if tag & 3 == 1:
            length, offset = 4 + (tag >> 2 & 7), (tag >> 5) << 8 | block[at]
            at += 1
        else:
            width = 2 if tag & 3 == 2 else 4
            length, offset = 1 + (tag >> 2), int.from_bytes(block[at : at + width], "little")
            at += width
        for _ in range(length):
            out.append(out[-offset])
    return bytes(out)
