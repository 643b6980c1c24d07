"""Looks at the released binary from outside: its figures, its metrics by promtool, its HTTP by schemathesis.

Only the binary's size can fail of the figures: the others depend on the machine.
"""

import contextlib
import http.client
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("BINARY", ROOT / "target" / "release" / "env0-s3-logs"))
MAX_BINARY_BYTES = 20 * 1024 * 1024
DEADLINE_SECONDS = 30
TOKEN = "a-token-for-this-check"
# What the description promises: no other status, no other type, no other shape.
CHECKS = "status_code_conformance,content_type_conformance,response_schema_conformance,response_headers_conformance"
EXAMPLES = "50"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def wait_until_ready(daemon, log, port):
    started = time.monotonic()
    while time.monotonic() - started < DEADLINE_SECONDS and daemon.poll() is None:
        with contextlib.suppress(OSError):
            if get(port, "/readyz")[0] == 200:
                return (time.monotonic() - started) * 1000
        time.sleep(0.002)
    sys.exit(f"the daemon did not become ready:\n{log.read_text()}")


def main():
    size = BINARY.stat().st_size
    print(f"  binary: {size / 1048576:.1f} MiB (at most {MAX_BINARY_BYTES // 1048576})")
    if size > MAX_BINARY_BYTES:
        sys.exit("the binary is too large")
    with tempfile.TemporaryDirectory() as folder:
        ingest, admin = free_port(), free_port()
        log = pathlib.Path(folder) / "daemon.log"
        environment = {
            "PATH": os.environ["PATH"],
            "ENV0_S3_LOG_ROLE_ARN": "arn:aws:iam::000000000000:role/env0-logs",
            "ENV0_S3_LOG_BUCKET_NAME": "my-env0-logs",
            "ENV0_S3_LOG_AWS_REGION": "us-east-1",
            "ENV0_S3_LOG_INGEST_TOKEN": TOKEN,
            "ENV0_S3_LOG_LISTEN_ADDR": f"127.0.0.1:{ingest}",
            "ENV0_S3_LOG_ADMIN_ADDR": f"127.0.0.1:{admin}",
            "ENV0_S3_LOG_SPOOL_DIR": str(pathlib.Path(folder) / "spool"),
            # Nothing is delivered here; loopback addresses that refuse keep the run off the network.
            "ENV0_S3_LOG_OIDC_ISSUER": "http://127.0.0.1:9/",
            "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
            "AWS_ENDPOINT_URL_STS": "http://127.0.0.1:9",
        }
        with log.open("wb") as output:
            daemon = subprocess.Popen([str(BINARY)], env=environment, stderr=output, stdin=subprocess.DEVNULL)
        try:
            print(f"  start to /readyz: {wait_until_ready(daemon, log, admin):.0f} ms (aim: under 100)")
            status = pathlib.Path(f"/proc/{daemon.pid}/status").read_text()
            resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
            print(f"  resident, idle: {resident / 1024:.1f} MiB (aim: at most 16)")
            started = time.monotonic()
            subprocess.run([str(BINARY), "healthcheck"], env=environment, check=True)
            print(f"  healthcheck: {(time.monotonic() - started) * 1000:.0f} ms (aim: under 100)")

            subprocess.run(["promtool", "check", "metrics"], input=get(admin, "/metrics")[1], check=True)
            for tag, port in (("ingest", ingest), ("admin", admin)):
                print(f"  schemathesis: the {tag} listener against config/openapi.yaml", flush=True)
                subprocess.run(
                    [
                        "schemathesis",
                        "run",
                        str(ROOT / "config" / "openapi.yaml"),
                        f"--url=http://127.0.0.1:{port}",
                        f"--include-tag={tag}",
                        f"--header=Authorization: Bearer {TOKEN}",
                        f"--checks={CHECKS}",
                        f"--max-examples={EXAMPLES}",
                        "--phases=coverage,fuzzing",
                        "--generation-deterministic",
                        "--no-color",
                    ],
                    cwd=folder,
                    check=True,
                )
            if daemon.poll() is not None:
                sys.exit(f"the daemon ended:\n{log.read_text()}")
        finally:
            daemon.terminate()
            code = daemon.wait(timeout=DEADLINE_SECONDS)
        if code != 0:
            sys.exit(f"SIGTERM ended the daemon with {code}:\n{log.read_text()}")


if __name__ == "__main__":
    main()
