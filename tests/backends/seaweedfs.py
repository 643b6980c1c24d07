"""The released binary against SeaweedFS: a real object store, and an STS that verifies the token's signature."""

import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile

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


def start(stack, folder, issuer):
    """Starts the server with env0's role, and returns its S3 port."""
    trust, policy = policies("env0", "oidc:")
    # SeaweedFS refuses a trust policy that names sts:TagSession.
    trust["Statement"][0]["Action"] = ["sts:AssumeRoleWithWebIdentity"]
    iam = {
        "sts": {"tokenDuration": "1h", "maxSessionLength": "12h", "issuer": "local", "signingKey": "bG9jYWwtc2lnbmluZy1rZXktb2YtMzItYnl0ZXMhIQ=="},
        "providers": [
            {
                "name": "env0",
                "type": "oidc",
                "enabled": True,
                "config": {"issuer": issuer.url, "clientId": AUDIENCE, "jwksUri": issuer.jwks_url},
            }
        ],
        "policy": {"defaultEffect": "Deny", "storeType": "memory"},
        "policies": [{"name": "env0-logs", "document": policy}],
        "roles": [
            {"roleName": "env0-s3-logs", "roleArn": ROLE_ARN, "trustPolicy": trust, "attachedPolicies": ["env0-logs"]}
        ],
    }
    admin = {
        "name": "admin",
        "credentials": [{"accessKey": "admin", "secretKey": "admin-secret"}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "iam.json").write_text(json.dumps(iam))
    (folder / "s3.json").write_text(json.dumps({"identities": [admin]}))
    (folder / "data").mkdir()
    port = free_port()
    stack.enter_context(
        process(
            [
                str(pathlib.Path(sys.executable).with_name("weed")),
                "-logtostderr",
                "mini",
                f"-dir={folder / 'data'}",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-master.telemetry=false",
                "-webdav=false",
                "-admin.ui=false",
                f"-master.port={free_port()}",
                f"-volume.port={free_port()}",
                f"-filer.port={free_port()}",
                f"-admin.port={free_port()}",
                f"-s3.port={port}",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                f"-s3.config={folder / 's3.json'}",
                f"-s3.iam.config={folder / 'iam.json'}",
                f"-bucket={BUCKET}",
            ],
            folder / "seaweedfs.log",
            lambda: request(port, "GET", "/")[0],
            cwd=folder,
        )
    )
    return port


def main():
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="env0-s3-logs-seaweedfs-")))
        issuer = Issuer(stack)
        port = start(stack, folder, issuer)
        s3 = client(port, "s3", "admin", "admin-secret")
        wait_for("the bucket", lambda: BUCKET in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]])
        front = StsFront(stack, port)
        daemon = Daemon(stack, folder, issuer, f"http://127.0.0.1:{port}", front.url)
        ledger = Ledger()

        # The organization's, so that it is let in here; not the role's subject, so that STS refuses it.
        foreign = issuer.token(subject="auth0|ffffffffffffffffffffffff", lifetime_seconds=86400)
        daemon.hand_over(foreign)
        send_fixtures(daemon, ledger, foreign)
        wait_for("STS to refuse the foreign token", front.refused)
        check(not s3.list_objects_v2(Bucket=BUCKET).get("Contents"), "a foreign token delivered")
        print(f"  {ledger.events()} events accepted and kept while STS refused a foreign token")

        daemon.hand_over(issuer.token(lifetime_seconds=43200))
        ledger.settle(daemon, s3)
        check_exchanges(front, s3)
        daemon.stop()
        version = subprocess.run(
            [str(pathlib.Path(sys.executable).with_name("weed")), "version"], capture_output=True, text=True, check=True
        ).stdout.strip()
        print(f"  {ledger.events()} events in {len(ledger.expected)} objects, every line as sent ({version})")


main()
