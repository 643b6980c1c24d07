"""What both runs share: an OIDC issuer, a recording STS front, the daemon under test, and the check of what landed."""

import base64
import contextlib
import http.client
import http.server
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.parse

import boto3
import jwt
from botocore.config import Config
from cryptography.hazmat.primitives.asymmetric import rsa

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
DAEMON = ROOT / "target" / "release" / "env0-s3-logs"

REGION = "us-east-1"
BUCKET = "my-env0-logs"
PREFIX = "backends/run"
ROLE_ARN = "arn:aws:iam::000000000000:role/env0-s3-logs"
AUDIENCE = "hoMiq9PdkRh9LUvVpH4wIErWg50VSG1b"
SUBJECT = "auth0|0123456789abcdef01234567"
POD_ROLE_ARN = "arn:aws:iam::000000000000:role/env0-s3-logs-pod"
POD_AUDIENCE = "sts.amazonaws.com"
POD_SUBJECT = "system:serviceaccount:env0-agent:env0-s3-logs"
ORGANIZATION = "11111111-2222-3333-4444-555555555555"
AUDIT_TOKEN = "audit-token-for-the-local-run"
SESSION_SECONDS = 900
DEADLINE_SECONDS = 60

KEY = re.compile(
    rf"{PREFIX}/(env0-deployments|env0-audits)/\d{{4}}/\d\d/\d\d/\d\d:\d\d:\d\d_[A-Za-z0-9]{{5}}\.log"
)


def free_port():
    """A loopback port that nothing uses, nor the one 10000 above it (SeaweedFS takes both)."""
    while True:
        with socket.socket() as low, socket.socket() as high:
            low.bind(("127.0.0.1", 0))
            port = low.getsockname()[1]
            if port > 50000:
                continue
            with contextlib.suppress(OSError):
                high.bind(("127.0.0.1", port + 10000))
                return port


def wait_for(what, condition, seconds=DEADLINE_SECONDS):
    """Polls until `condition` returns something true, and returns that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if value := condition():
                return value
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")


def check(fact, message):
    if not fact:
        raise AssertionError(message)


def request(port, method, path, body=b"", headers=None):
    """One request on its own connection: (status, body)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@contextlib.contextmanager
def server(handler):
    """An HTTP server on a free loopback port, in a thread."""
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield running.server_port
    finally:
        running.shutdown()
        running.server_close()


class QuietHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body, content_type):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Issuer:
    """A local OIDC issuer with discovery, a JWKS and one RSA key."""

    def __init__(self, stack):
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        numbers = self.key.public_key().public_numbers()

        def number(value):
            raw = value.to_bytes((value.bit_length() + 7) // 8, "big")
            return base64.urlsafe_b64encode(raw).decode().rstrip("=")

        jwk = {"kty": "RSA", "kid": "run", "alg": "RS256", "use": "sig", "n": number(numbers.n), "e": number(numbers.e)}
        issuer = self

        class Handler(QuietHandler):
            def do_GET(self):
                documents = {
                    "/.well-known/openid-configuration": {"issuer": issuer.url, "jwks_uri": issuer.jwks_url},
                    "/.well-known/jwks.json": {"keys": [jwk]},
                }
                document = documents.get(self.path)
                self.answer(200 if document else 404, json.dumps(document).encode(), "application/json")

        self.url = f"http://127.0.0.1:{stack.enter_context(server(Handler))}/"
        self.jwks_url = f"{self.url}.well-known/jwks.json"

    def token(self, subject=SUBJECT, lifetime_seconds=86400):
        """A token as env0 mints them."""
        return self.mint(
            {"sub": subject, "aud": AUDIENCE, "apiKeyType": "oidc", "organizationId": ORGANIZATION}, lifetime_seconds
        )

    def pod_token(self, pod):
        """A projected service-account token, as a Kubernetes API server mints them for STS."""
        namespace, account = POD_SUBJECT.split(":")[2:]
        identity = {"namespace": namespace, "pod": {"name": pod}, "serviceaccount": {"name": account}}
        return self.mint({"sub": POD_SUBJECT, "aud": [POD_AUDIENCE], "kubernetes.io": identity}, 3600)

    def mint(self, claims, lifetime_seconds):
        now = int(time.time())
        claims = {"iss": self.url, "iat": now, "exp": now + lifetime_seconds, **claims}
        return jwt.encode(claims, self.key, algorithm="RS256", headers={"kid": "run"})


class StsFront:
    """Stands before STS: records each exchange as it was received, and may shorten the session that is asked for."""

    def __init__(self, stack, backend_port, session_seconds=None):
        self.exchanges = []
        front = self

        class Handler(QuietHandler):
            def do_POST(self):
                form = dict(urllib.parse.parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
                asked = dict(form)
                if session_seconds:
                    form["DurationSeconds"] = str(session_seconds)
                status, body = request(
                    backend_port,
                    "POST",
                    "/",
                    urllib.parse.urlencode(form).encode(),
                    {"Content-Type": "application/x-www-form-urlencoded"},
                )
                front.exchanges.append((asked, status))
                self.answer(status, body, "text/xml")

        self.url = f"http://127.0.0.1:{stack.enter_context(server(Handler))}"

    def accepted(self):
        return [asked for asked, status in self.exchanges if status == 200]

    def refused(self):
        return [asked for asked, status in self.exchanges if status != 200]


@contextlib.contextmanager
def process(command, log, ready, **options):
    """Runs a command until the block ends; `ready` says when it can be used."""
    with open(log, "wb") as output:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **options)
    try:
        wait_for(f"{command[0]} to answer, or to end (see {log})", lambda: child.poll() is not None or ready())
        check(child.poll() is None, f"{command[0]} ended at once:\n{pathlib.Path(log).read_text()}")
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(timeout=30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


class Daemon:
    """The released binary, configured by its environment alone."""

    def __init__(self, stack, folder, issuer, s3_url, sts_url, **variables):
        self.ingest_port, self.admin_port = free_port(), free_port()
        tokens = folder / "ingest-tokens"
        tokens.write_text(f"{AUDIT_TOKEN} env0-audits\n")
        environment = {
            "PATH": os.environ["PATH"],
            "ENV0_S3_LOG_ROLE_ARN": ROLE_ARN,
            "ENV0_S3_LOG_BUCKET_NAME": BUCKET,
            "ENV0_S3_LOG_AWS_REGION": REGION,
            "ENV0_S3_LOG_BUCKET_PATH": PREFIX,
            "ENV0_S3_LOG_SESSION_DURATION": str(SESSION_SECONDS),
            "ENV0_S3_LOG_OIDC_ISSUER": issuer.url,
            "ENV0_S3_LOG_OIDC_ORGANIZATION_ID": ORGANIZATION,
            "ENV0_S3_LOG_INGEST_TOKEN_FILE": str(tokens),
            "ENV0_S3_LOG_LISTEN_ADDR": f"127.0.0.1:{self.ingest_port}",
            "ENV0_S3_LOG_ADMIN_ADDR": f"127.0.0.1:{self.admin_port}",
            "ENV0_S3_LOG_SPOOL_DIR": str(folder / "spool"),
            "ENV0_S3_LOG_BATCH_MAX_AGE": "1s",
            "ENV0_S3_LOG_FORCE_PATH_STYLE": "true",
            "AWS_ENDPOINT_URL_S3": s3_url,
            "AWS_ENDPOINT_URL_STS": sts_url,
            **variables,
        }
        # Credentials that must not be used, ever.
        environment |= {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nobody"}
        self.process = stack.enter_context(
            process(
                [str(DAEMON)],
                folder / "daemon.log",
                lambda: request(self.admin_port, "GET", "/readyz")[0] == 200,
                env=environment,
                cwd=folder,
            )
        )

    def hand_over(self, token):
        status, body = request(self.ingest_port, "PUT", "/v1/oidc-token", token.encode())
        check(status == 204, f"the hand-over was answered {status}: {body!r}")

    def send(self, log_type, body, token):
        """Sends one body and returns its acknowledgement."""
        status, answer = request(
            self.ingest_port, "POST", f"/v1/logs/{log_type}", body, {"Authorization": f"Bearer {token}"}
        )
        check(status == 200, f"{log_type} was answered {status}: {answer!r}")
        return json.loads(answer)

    def spooled(self):
        """Events in the spool, over both types."""
        return self.metric("events_spooled")

    def metric(self, name):
        """A metric, over all its labels."""
        status, body = request(self.admin_port, "GET", "/metrics")
        check(status == 200, f"/metrics answered {status}")
        lines = re.findall(rf"^env0_s3_logs_{name}(?:\{{[^}}]*\}})? (\S+)$", body.decode(), re.M)
        check(lines, f"there is no metric {name}")
        return sum(float(value) for value in lines)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        check(self.process.wait(timeout=30) == 0, f"SIGTERM ended the daemon with {self.process.returncode}")


class Ledger:
    """What was acknowledged: for each object, the lines that must be in it and where."""

    def __init__(self):
        self.expected = {}

    def record(self, acknowledgement, lines):
        check(acknowledgement["accepted"] == len(lines), f"{len(lines)} events sent, acknowledged: {acknowledgement}")
        held = self.expected.setdefault(acknowledgement["object"], {})
        for index, line in enumerate(lines, acknowledgement["line"]):
            check(index not in held, f"line {index} of {acknowledgement['object']} acknowledged twice")
            held[index] = line

    def events(self):
        return sum(len(lines) for lines in self.expected.values())

    def settle(self, daemon, s3):
        """Waits for the spool to empty, then holds every object in the bucket against what was acknowledged."""
        wait_for("the spool to empty", lambda: daemon.spooled() == 0)
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        keys = {item["Key"] for page in pages for item in page.get("Contents", [])}
        check(not keys - set(self.expected), f"in the bucket but not acknowledged: {keys - set(self.expected)}")
        check(not set(self.expected) - keys, f"acknowledged but not in the bucket: {set(self.expected) - keys}")
        for key in keys:
            check(KEY.fullmatch(key), f"not a key of this daemon: {key}")
            body = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            check(body.endswith(b"\n"), f"{key} does not end its last line")
            lines = body[:-1].split(b"\n")
            held = self.expected[key]
            check(sorted(held) == list(range(len(lines))), f"{key} has {len(lines)} lines, {len(held)} acknowledged")
            for index, line in enumerate(lines):
                want = held[index]
                got = json.loads(line)["message"] if isinstance(want, str) else line
                check(got == want, f"{key} line {index} differs:\n sent {want!r}\n read {got!r}")


def client(port, service, access_key, secret_key):
    return boto3.client(
        service,
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name=REGION,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
    )


def send_fixtures(daemon, ledger, deployment_token):
    """Real logs in every native form: NDJSON, an array, single objects without newlines, plain text."""
    deployments = (FIXTURES / "deployment-events.ndjson").read_bytes()
    lines = deployments.splitlines()
    ledger.record(daemon.send("env0-deployments", deployments, deployment_token), lines)
    ledger.record(daemon.send("env0-deployments", b"[" + b",".join(lines) + b"]", deployment_token), lines)
    ledger.record(daemon.send("env0-deployments", b"".join(lines), deployment_token), lines)
    for name in ("terraform-apply.ansi.txt", "ansible-playbook.ansi.txt"):
        text = (FIXTURES / name).read_bytes()
        messages = [line.decode() for line in text.split(b"\n") if line.strip()]
        ledger.record(daemon.send("env0-deployments", text, deployment_token), messages)
    audits = (FIXTURES / "audit-events.ndjson").read_bytes()
    ledger.record(daemon.send("env0-audits", audits, AUDIT_TOKEN), audits.splitlines())


def check_exchanges(front, s3):
    """The duration and the session name, as STS received them."""
    check(front.accepted(), "STS accepted no exchange")
    key = s3.list_objects_v2(Bucket=BUCKET, MaxKeys=1)["Contents"][0]["Key"]
    instance = s3.head_object(Bucket=BUCKET, Key=key)["Metadata"]["env0-instance"]
    for asked in front.accepted():
        check(asked["RoleArn"] == ROLE_ARN, f"another role was asked for: {asked['RoleArn']}")
        check(asked["DurationSeconds"] == str(SESSION_SECONDS), f"DurationSeconds was {asked['DurationSeconds']}")
        check(asked["RoleSessionName"] == f"env0-s3-logs-{instance}", f"session name was {asked['RoleSessionName']}")
    print(f"  STS received DurationSeconds={SESSION_SECONDS}, RoleSessionName=env0-s3-logs-{instance}")


def policies(federated, condition_prefix, audience=AUDIENCE, subject=SUBJECT):
    """The role's two documents: config/'s own, with this run's provider and subject in the trust policy."""
    trust = json.loads((ROOT / "config" / "trust-policy.json").read_text())
    statement = trust["Statement"][0]
    statement["Principal"]["Federated"] = federated
    statement["Condition"]["StringEquals"] = {f"{condition_prefix}aud": audience, f"{condition_prefix}sub": subject}
    return trust, json.loads((ROOT / "config" / "iam-policy.json").read_text())
