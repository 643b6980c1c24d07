#!/usr/bin/env python3
"""Prints the released binary's figures. Only the size can fail: the others depend on the machine."""

import http.client
import os
import pathlib
import subprocess
import sys
import tempfile
import time

BINARY = pathlib.Path(__file__).resolve().parents[2] / "target" / "release" / "env0-s3-logs"
MAX_BINARY_BYTES = 20 * 1024 * 1024
INGEST_PORT, ADMIN_PORT = 18080, 19090
DEADLINE_SECONDS = 20


def ready():
    connection = http.client.HTTPConnection("127.0.0.1", ADMIN_PORT, timeout=1)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def main():
    size = BINARY.stat().st_size
    print(f"  binary: {size / 1048576:.1f} MiB (at most {MAX_BINARY_BYTES // 1048576})")
    if size > MAX_BINARY_BYTES:
        sys.exit("the binary is too large")
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "PATH": os.environ["PATH"],
            "ENV0_S3_LOG_ROLE_ARN": "arn:aws:iam::000000000000:role/env0-logs",
            "ENV0_S3_LOG_BUCKET_NAME": "my-env0-logs",
            "ENV0_S3_LOG_AWS_REGION": "us-east-1",
            "ENV0_S3_LOG_OIDC_ORGANIZATION_ID": "00000000-0000-0000-0000-000000000000",
            "ENV0_S3_LOG_LISTEN_ADDR": f"127.0.0.1:{INGEST_PORT}",
            "ENV0_S3_LOG_ADMIN_ADDR": f"127.0.0.1:{ADMIN_PORT}",
            "ENV0_S3_LOG_SPOOL_DIR": str(pathlib.Path(folder) / "spool"),
            # Nothing is uploaded here; a loopback address that refuses keeps the run off the network.
            "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
            "AWS_ENDPOINT_URL_STS": "http://127.0.0.1:9",
        }
        started = time.monotonic()
        daemon = subprocess.Popen([str(BINARY)], env=environment, stderr=subprocess.PIPE, text=True)
        try:
            while not ready():
                if daemon.poll() is not None or time.monotonic() - started > DEADLINE_SECONDS:
                    daemon.kill()
                    sys.exit(f"the daemon did not become ready:\n{daemon.stderr.read()}")
                time.sleep(0.002)
            print(f"  start to /readyz: {(time.monotonic() - started) * 1000:.0f} ms (aim: under 100)")
            status = pathlib.Path(f"/proc/{daemon.pid}/status").read_text()
            resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
            print(f"  resident, idle: {resident / 1024:.1f} MiB (aim: at most 16)")
            started = time.monotonic()
            code = subprocess.run([str(BINARY), "healthcheck"], env=environment, check=False).returncode
            print(f"  healthcheck: {(time.monotonic() - started) * 1000:.0f} ms, exit {code} (aim: under 100, 0)")
        finally:
            daemon.terminate()
            daemon.wait(timeout=30)


main()
