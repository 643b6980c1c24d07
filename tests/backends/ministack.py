"""The released binary against ministack: errors shaped as AWS's, and sessions that last two seconds."""

import contextlib
import json
import pathlib
import sys
import tempfile
import time

from common import (
    AUDIENCE,
    BUCKET,
    ROLE_ARN,
    Daemon,
    Issuer,
    Ledger,
    StsFront,
    check,
    check_exchanges,
    client,
    free_port,
    policies,
    process,
    request,
    send_fixtures,
    wait_for,
)

LOAD_SECONDS = 12
SHORT_SESSION_SECONDS = 2


def start(stack, folder, issuer):
    """Starts the server, makes bucket, provider and role, and returns its port."""
    port = free_port()
    stack.enter_context(
        process(
            [str(pathlib.Path(sys.executable).with_name("ministack"))],
            folder / "ministack.log",
            lambda: request(port, "GET", "/_ministack/health")[0] == 200,
            cwd=folder,
            env={
                "PATH": "/usr/bin:/bin",
                "HOME": str(folder),
                "TMPDIR": str(folder),
                "AUTH": "true",
                "BIND_HOST": "127.0.0.1",
                "GATEWAY_PORT": str(port),
                "SERVICES": "s3,sts,iam",
                "IOT_MTLS_ENABLED": "false",
                "SFTP_ENABLED": "false",
            },
        )
    )
    client(port, "s3", "test", "test").create_bucket(Bucket=BUCKET)
    iam = client(port, "iam", "test", "test")
    provider = iam.create_open_id_connect_provider(Url=issuer.url, ClientIDList=[AUDIENCE])["OpenIDConnectProviderArn"]
    trust, policy = policies(provider, provider.split("oidc-provider/")[1] + ":")
    role = iam.create_role(RoleName="env0-s3-logs", AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
    check(role == ROLE_ARN, f"the role is {role}")
    iam.put_role_policy(RoleName="env0-s3-logs", PolicyName="env0-logs", PolicyDocument=json.dumps(policy))
    return port


def main():
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="env0-s3-logs-ministack-")))
        issuer = Issuer(stack)
        port = start(stack, folder, issuer)
        s3 = client(port, "s3", "test", "test")
        front = StsFront(stack, port, session_seconds=SHORT_SESSION_SECONDS)
        daemon = Daemon(stack, folder, issuer, f"http://127.0.0.1:{port}", front.url)
        ledger = Ledger()

        # Newer than the good one, so that it is tried first: it must not stop delivery by the other.
        foreign = issuer.token(subject="auth0|ffffffffffffffffffffffff", lifetime_seconds=86400)
        good = issuer.token(lifetime_seconds=43200)
        daemon.hand_over(foreign)
        daemon.hand_over(good)
        send_fixtures(daemon, ledger, good)
        wait_for("STS to refuse the foreign token", front.refused)

        end = time.monotonic() + LOAD_SECONDS
        sent = 0
        while time.monotonic() < end:
            lines = [json.dumps({"message": f"line {sent}-{part}"}).encode() for part in range(10)]
            ledger.record(daemon.send("env0-deployments", b"\n".join(lines), good), lines)
            sent += 1
            time.sleep(0.1)
        ledger.settle(daemon, s3)
        sessions = len(front.accepted())
        check(sessions >= 3, f"{sessions} sessions of {SHORT_SESSION_SECONDS} s in {LOAD_SECONDS} s")
        check_exchanges(front, s3)
        daemon.stop()
        print(
            f"  {ledger.events()} events in {len(ledger.expected)} objects, every line as sent,"
            f" over {sessions} sessions of {SHORT_SESSION_SECONDS} s"
        )


main()
