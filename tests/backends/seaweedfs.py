"""The released binary against SeaweedFS: a real object store, and an STS that verifies the token's signature."""

import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile

from common import (
    AUDIENCE,
    AUDIT_TOKEN,
    BUCKET,
    POD_AUDIENCE,
    POD_ROLE_ARN,
    POD_SUBJECT,
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


def provider(name, issuer, audience):
    config = {"issuer": issuer.url, "clientId": audience, "jwksUri": issuer.jwks_url}
    return {"name": name, "type": "oidc", "enabled": True, "config": config}


def role(arn, trust):
    # SeaweedFS refuses a trust policy that names sts:TagSession.
    trust["Statement"][0]["Action"] = ["sts:AssumeRoleWithWebIdentity"]
    name = arn.rsplit("/", 1)[1]
    return {"roleName": name, "roleArn": arn, "trustPolicy": trust, "attachedPolicies": ["env0-logs"]}


def start(stack, folder, issuer, cluster):
    """Starts the server with a role for env0's tokens and one for a pod's, and returns its S3 port."""
    trust, policy = policies("env0", "oidc:")
    pod_trust, _ = policies("cluster", "oidc:", POD_AUDIENCE, POD_SUBJECT)
    # A pod's token has a list of audiences. SeaweedFS holds it against the provider's clientId, and matches no condition.
    del pod_trust["Statement"][0]["Condition"]["StringEquals"]["oidc:aud"]
    iam = {
        "sts": {"tokenDuration": "1h", "maxSessionLength": "12h", "issuer": "local", "signingKey": "bG9jYWwtc2lnbmluZy1rZXktb2YtMzItYnl0ZXMhIQ=="},
        "providers": [provider("env0", issuer, AUDIENCE), provider("cluster", cluster, POD_AUDIENCE)],
        "policy": {"defaultEffect": "Deny", "storeType": "memory"},
        "policies": [{"name": "env0-logs", "document": policy}],
        "roles": [role(ROLE_ARN, trust), role(POD_ROLE_ARN, pod_trust)],
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


def project(volume, version, token):
    """Writes a token as the kubelet does: into a folder of its own, to which `..data` then points."""
    (volume / version).mkdir(parents=True)
    (volume / version / "token").write_text(token)
    (volume / "..data_tmp").symlink_to(version)
    (volume / "..data_tmp").rename(volume / "..data")


def pods_token(stack, folder, cluster, port, s3, ledger):
    """A pod's own token, of an issuer that isn't env0's, is all that the daemon has; then the kubelet replaces it, and the
    daemon is started anew."""
    volume, home = folder / "token-volume", folder / "pod"
    home.mkdir()
    tokens = [cluster.pod_token("env0-s3-logs-pull-0"), cluster.pod_token("env0-s3-logs-pull-0-later")]
    front = StsFront(stack, port)
    for number, token in enumerate(tokens):
        project(volume, f"..{number}", token)
        daemon = Daemon(
            stack,
            home,
            # Whoever hands tokens over would have to be of env0's issuer. Nobody does.
            Issuer(stack),
            f"http://127.0.0.1:{port}",
            front.url,
            ENV0_S3_LOG_ROLE_ARN=POD_ROLE_ARN,
            ENV0_S3_LOG_OIDC_TOKEN_FILE=str(volume / "..data" / "token"),
        )
        line = json.dumps({"pod": number}).encode()
        ledger.record(daemon.send("env0-audits", line, AUDIT_TOKEN), [line])
        ledger.settle(daemon, s3)
        daemon.stop()
    used = [asked["WebIdentityToken"] for asked in front.accepted()]
    check(set(used) == set(tokens) and not front.refused(), f"{len(front.accepted())} accepted, {front.refused()}")
    print(f"  a pod's service-account token, of an issuer that isn't env0's, was enough ({POD_SUBJECT})")


def main():
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="env0-s3-logs-seaweedfs-")))
        issuer, cluster = Issuer(stack), Issuer(stack)
        port = start(stack, folder, issuer, cluster)
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
        pods_token(stack, folder, cluster, port, s3, ledger)
        version = subprocess.run(
            [str(pathlib.Path(sys.executable).with_name("weed")), "version"], capture_output=True, text=True, check=True
        ).stdout.strip()
        print(f"  {ledger.events()} events in {len(ledger.expected)} objects, every line as sent ({version})")


main()
