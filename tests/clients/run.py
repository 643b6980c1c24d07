"""Real clients at their default settings send through a recording proxy to a daemon that is killed in between.

Usage: run.py <local-aws> <daemon> <folder with the installed clients>
Ends with 1 where an event that the proxy saw acknowledged is not in the bucket.
"""

import contextlib
import http.client
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time

from proxy import Proxy, events

SENDERS = pathlib.Path(__file__).resolve().parent / "senders"
TOKEN = "static-token-of-real-clients"
EVENTS = 1200
# When the daemon is killed, as the share of all events that is acknowledged, and for how long it's gone.
KILL_AFTER_SHARE = 0.2
DOWN_SECONDS = 3
# How long a client may go on trying without an acknowledgement, once all is sent. syslog-ng waits a minute (time-reopen) for a server.
PATIENCE_SECONDS = 15
SYSLOG_NG_PATIENCE_SECONDS = 75
DEADLINE_SECONDS = 60


def wait_for(what, condition, seconds=DEADLINE_SECONDS):
    """Polls until `condition` holds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if condition():
                return
        time.sleep(0.05)
    raise SystemExit(f"not within {seconds} s: {what}")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class LocalAws:
    """The local AWS of the tests, as a process."""

    def __init__(self, program):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        lines = iter(self.process.stdout.readline, b"\n")
        self.environment = dict(line.decode().rstrip("\n").split("=", 1) for line in lines)

    def bucket(self):
        """Ends it; everything that is in the bucket."""
        return self.process.communicate()[0]


class Daemon:
    """A spool, on which daemons are started one after the other."""

    def __init__(self, program, folder, aws):
        self.program, self.port, self.admin_port = program, free_port(), free_port()
        self.log = open(folder / "daemon.log", "ab")
        self.environment = aws.environment | {
            "ENV0_S3_LOG_SPOOL_DIR": str(folder / "spool"),
            "ENV0_S3_LOG_INGEST_TOKEN": TOKEN,
            "ENV0_S3_LOG_LISTEN_ADDR": f"127.0.0.1:{self.port}",
            "ENV0_S3_LOG_ADMIN_ADDR": f"127.0.0.1:{self.admin_port}",
            "ENV0_S3_LOG_BATCH_MAX_AGE": "2s",
        }
        self.start()

    def start(self):
        self.process = subprocess.Popen([self.program], env=self.environment, stdout=self.log, stderr=self.log)
        wait_for("the daemon is ready (see daemon.log)", lambda: self.admin("/readyz")[0] == 200)

    def kill(self):
        """kill -9"""
        self.process.kill()
        self.process.wait()

    def admin(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def spooled(self):
        """Events that are not yet in the bucket."""
        samples = re.findall(r"^env0_s3_logs_events_spooled\{[^}]*\} (\S+)$", self.admin("/metrics")[1], re.M)
        return sum(float(sample) for sample in samples)


class Client:
    """A process that sends EVENTS events, says so, and closes its client when its standard input ends."""

    def __init__(self, name, command, patience_seconds=PATIENCE_SECONDS):
        self.name, self.command, self.patience_seconds = name, command, patience_seconds

    def start(self, proxy, folder, environment):
        arguments = [f"http://127.0.0.1:{proxy.port}", TOKEN, str(EVENTS), str(folder)]
        log = open(folder / f"{self.name}.log", "wb")
        self.process = subprocess.Popen(
            self.command + arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment
        )
        self.sent, self.sent_at = False, None
        os.set_blocking(self.process.stdout.fileno(), False)

    def is_done(self, proxy):
        """Whether everything is acknowledged, or nothing more is to be expected."""
        if self.sent_at is None:
            self.sent = b"sent" in (self.process.stdout.read() or b"")
            if self.sent or self.process.poll() is not None:
                self.sent_at = time.monotonic()
            return False
        waited = time.monotonic() - max(self.sent_at, proxy.last_acknowledgement.get(self.name, 0))
        return waited > self.patience_seconds or len(proxy.acknowledged_of(self.name)) >= EVENTS

    def close(self):
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def installed(folder):
    """The clients that could be installed, and the names of those that could not."""
    node, python = shutil.which("node"), folder / "venv" / "bin" / "python"
    candidates = [
        (node and (folder / "node_modules" / name).is_dir(), Client(name, [node, str(SENDERS / f"{name}.cjs")]))
        for name in ("winston-loki", "winston-splunk-httplogger", "logzio-nodejs")
    ]
    has_exporter = any((folder / "venv").glob("lib/*/site-packages/opentelemetry/exporter/otlp/proto/http"))
    candidates += [
        (has_exporter, Client("opentelemetry", [str(python), str(SENDERS / "otlp.py")])),
        (
            shutil.which("syslog-ng"),
            Client("syslog-ng", [str(SENDERS / "syslog-ng.sh")], SYSLOG_NG_PATIENCE_SECONDS),
        ),
        (shutil.which("curl"), Client("curl", [str(SENDERS / "curl.sh")])),
    ]
    return [client for there, client in candidates if there], [client.name for there, client in candidates if not there]


def main(local_aws, daemon_program, folder):
    folder = pathlib.Path(folder)
    clients, skipped = installed(folder)
    aws = LocalAws(local_aws)
    daemon = Daemon(daemon_program, folder, aws)
    proxy = Proxy(daemon.port)
    environment = os.environ | {"NODE_PATH": str(folder / "node_modules")}
    try:
        for client in clients:
            client.start(proxy, folder, environment)
        kill_after = KILL_AFTER_SHARE * EVENTS * len(clients)
        wait_for("enough is acknowledged to kill the daemon", lambda: len(proxy.acknowledged) >= kill_after)
        daemon.kill()
        print(f"  killed the daemon after {len(proxy.acknowledged)} events were acknowledged")
        time.sleep(DOWN_SECONDS)
        daemon.start()
        open_clients = list(clients)
        while open_clients:
            for client in [client for client in open_clients if client.is_done(proxy)]:
                client.close()
                open_clients.remove(client)
            time.sleep(0.1)
        wait_for("the spool is empty", lambda: daemon.spooled() == 0)
    finally:
        for client in clients:
            client.close()
        daemon.kill()
    in_bucket = events(aws.bucket())
    print(f"  {proxy.unanswered} requests met no daemon; refused by status: {proxy.refused or 'none'}\n")
    return report(clients, skipped, proxy, in_bucket)


def report(clients, skipped, proxy, in_bucket):
    """Prints the table; the exit code."""
    line = "{:<28} {:>6} {:>13} {:>14} {:>31}"
    print(line.format("client", "sent", "acknowledged", "in the bucket", "dropped by it while refused"))
    lost = set()
    for client in clients:
        acknowledged = proxy.acknowledged_of(client.name)
        stored = {number for name, number in in_bucket if name == client.name}
        lost |= {(client.name, number) for number in acknowledged - stored}
        sent, dropped = (EVENTS, EVENTS - len(acknowledged)) if client.sent else ("?", "? (it ended early)")
        print(line.format(client.name, sent, len(acknowledged), len(stored), dropped))
    for name in skipped:
        print(f"{name:<28} SKIPPED: it could not be installed")
    silent = [client.name for client in clients if not proxy.acknowledged_of(client.name)]
    if silent:
        print(f"\nnothing of these was ever acknowledged: {', '.join(silent)}")
    if lost:
        print(f"\nLOST: acknowledged, but not in the bucket: {sorted(lost)[:20]}")
    return 1 if lost or silent else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
