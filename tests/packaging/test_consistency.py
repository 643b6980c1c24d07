"""What ships beside the binary agrees with the code, with the README and with itself."""

import configparser
import contextlib
import http.server
import json
import os
import pathlib
import re
import subprocess
import tempfile
import threading
import time
import unittest

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config"
METRIC = re.compile(r"env0_s3_logs_[a-z0-9_]+")
VARIABLE = re.compile(r"\b(?:ENV0_(?:S3_LOG|CLOUDWATCH)_[A-Z0-9_]+|ENV0_OIDC_TOKEN(?:_FILE)?|AWS_[A-Z0-9_]+)\b")


def read(path):
    return (ROOT / path).read_text()


def stateful_set_pod():
    """The pod of the plain manifest for pushing, which the Helm chart renders."""
    documents = yaml.safe_load_all(read("config/kubernetes/push.yaml"))
    (pod,) = (d["spec"]["template"]["spec"] for d in documents if d["kind"] == "StatefulSet")
    return pod


def code_metrics():
    """Every metric's name, as the code declares them."""
    return set(re.findall(r'(?:counts|level|seconds)\(\s*"(env0_s3_logs_[a-z0-9_]+)"', read("src/metric_table.rs")))


def used_metrics(text):
    """The metrics that a text names; a histogram's series count as the histogram."""
    return {re.sub(r"(_seconds)_(bucket|sum|count)$", r"\1", name) for name in METRIC.findall(text)}


def anchors_of(page):
    """The anchors that a reader of a page can jump to."""
    text = read(page)
    slugs = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.M):
        slugs.add(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-"))
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(s|m)?", text).groups()
    return int(number) * (60 if unit == "m" else 1)


def default(variable):
    """A variable's default, from the generated example."""
    return re.search(rf"^#?{variable}=(.*)$", read("config/example.env"), re.M)[1]


class Metrics(unittest.TestCase):
    def test_dashboard_and_alerts_use_only_metrics_that_exist(self):
        for path in ("config/grafana-dashboard.json", "config/prometheus/alerts.yaml", "config/prometheus/alerts.test.yaml"):
            self.assertEqual(used_metrics(read(path)) - code_metrics(), set(), path)

    def test_the_dashboard_shows_every_metric(self):
        self.assertEqual(code_metrics() - used_metrics(read("config/grafana-dashboard.json")), set())

    def test_the_documents_list_every_metric_and_no_other(self):
        # It leaves the prefix out.
        table = re.search(r"<!-- metrics:begin -->(.*)<!-- metrics:end -->", read("config/README.md"), re.S)[1]
        listed = {f"env0_s3_logs_{name}" for name in re.findall(r"^\| `([a-z0-9_]+)", table, re.M)}
        self.assertEqual(listed, code_metrics())


class Alerts(unittest.TestCase):
    def test_each_has_a_runbook_and_a_test(self):
        anchors, tests = anchors_of("config/README.md"), read("config/prometheus/alerts.test.yaml")
        for rule in yaml.safe_load(read("config/prometheus/alerts.yaml"))["groups"][0]["rules"]:
            page, anchor = rule["annotations"]["runbook_url"].split("#")
            self.assertEqual(page, "config/README.md")
            self.assertIn(anchor, anchors, rule["alert"])
            self.assertIn(f"alertname: {rule['alert']}\n", tests)


class Variables(unittest.TestCase):
    def test_every_manifest_sets_only_variables_that_exist(self):
        known = set(re.findall(r"^#?([A-Z][A-Z0-9_]+)=", read("config/example.env"), re.M))
        paths = [*CONFIG.rglob("*.yaml"), *CONFIG.rglob("*.env"), CONFIG / "env0-s3-logs.service", ROOT / "Dockerfile"]
        for path in paths:
            self.assertEqual(set(VARIABLE.findall(path.read_text())) - known, set(), path)

    def test_a_daemon_has_longer_to_stop_than_it_takes(self):
        grace = seconds(default("ENV0_S3_LOG_SHUTDOWN_GRACE"))
        compose = yaml.safe_load(read("config/compose.yaml"))["services"]["daemon"]
        unit = re.search(r"^TimeoutStopSec=(.+)$", read("config/env0-s3-logs.service"), re.M)[1]
        for allowed in (stateful_set_pod()["terminationGracePeriodSeconds"], seconds(unit), seconds(compose["stop_grace_period"])):
            self.assertGreater(allowed, grace)

    def test_the_systemd_unit_waits_for_the_volume_of_its_spool(self):
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str
        unit.read_string(read("config/env0-s3-logs.service"))
        (spool,) = re.findall(r"^Environment=ENV0_S3_LOG_SPOOL_DIR=(.+)$", read("config/env0-s3-logs.service"), re.M)
        self.assertEqual(spool, f"/var/lib/{unit['Service']['StateDirectory']}")
        self.assertEqual(unit["Unit"].get("RequiresMountsFor"), spool)

    def test_ports_and_spool_are_the_images(self):
        image = read("Dockerfile")
        ingest, admin = (
            int(re.search(rf"ENV0_S3_LOG_{name}_ADDR=0\.0\.0\.0:(\d+)", image)[1]) for name in ("LISTEN", "ADMIN")
        )
        self.assertIn(f"EXPOSE {ingest} {admin}\n", image)
        spool = re.search(r'VOLUME \["(.+)"\]', image)[1]
        self.assertEqual(spool, default("ENV0_S3_LOG_SPOOL_DIR"))
        (container,) = stateful_set_pod()["containers"]
        self.assertEqual({p["name"]: p["containerPort"] for p in container["ports"]}, {"ingest": ingest, "admin": admin})
        self.assertIn({"name": "spool", "mountPath": spool}, container["volumeMounts"])
        self.assertIn(f"spool:{spool}", yaml.safe_load(read("config/compose.yaml"))["services"]["daemon"]["volumes"])


class Revision(unittest.TestCase):
    """Every way of building knows it: by git, by a source tarball, by REVISION (the image)."""

    def test_a_build_knows_its_commit(self):
        git = lambda *words, **options: subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@example.com", *words],
            check=True, capture_output=True, timeout=60, **options,
        ).stdout
        with tempfile.TemporaryDirectory() as name:
            checkout, archive, copy = (pathlib.Path(name, part) for part in ("checkout", "archive", "copy"))
            for folder in (checkout, archive, copy):
                folder.mkdir()
            for path in ("build.rs", ".gitattributes", "Cargo.toml", "Cargo.lock"):
                (checkout / path).write_text(read(path))
            (copy / "build.rs").write_text(read("build.rs"))
            git("init", "-q", cwd=checkout)
            git("add", ".", cwd=checkout)
            git("commit", "-qm", "all", cwd=checkout)
            commit = git("rev-parse", "HEAD", cwd=checkout).decode().strip()
            subprocess.run(["tar", "-x"], input=git("archive", "HEAD", cwd=checkout), cwd=archive, check=True)

            def told(folder, **variables):
                program = pathlib.Path(name, "program")
                subprocess.run(
                    ["rustc", "--edition", "2024", "-o", program, folder / "build.rs"], check=True, capture_output=True
                )
                environment = {"PATH": os.environ["PATH"], "GIT_CEILING_DIRECTORIES": name, **variables}
                out = subprocess.run([program], cwd=folder, env=environment, capture_output=True, text=True, check=True)
                return re.search(r"^cargo::rustc-env=REVISION=(.+)$", out.stdout, re.M)[1]

            self.assertEqual(told(checkout), commit)
            self.assertEqual(told(archive), commit)
            self.assertEqual(told(copy), "unknown")
            self.assertEqual(told(copy, REVISION="abc"), "abc")
            (checkout / "Cargo.toml").write_text("changed")
            self.assertEqual(told(checkout), f"{commit}-modified")


class Policies(unittest.TestCase):
    def test_the_role_may_do_two_things(self):
        policy = json.loads(read("config/iam-policy.json"))
        self.assertEqual([s["Action"] for s in policy["Statement"]], ["s3:PutObject", "s3:GetBucketLocation"])

    def test_the_auditor_may_list_and_read_and_no_more(self):
        policy = json.loads(read("config/auditor-policy.json"))
        self.assertEqual([s["Action"] for s in policy["Statement"]], ["s3:ListBucket", "s3:GetObject"])

    def test_cloudwatchs_policy_is_env0s_five_actions_on_its_two_log_groups(self):
        (statement,) = json.loads(read("config/cloudwatch-policy.json"))["Statement"]
        actions = ["CreateLogGroup", "CreateLogStream", "DescribeLogGroups", "DescribeLogStreams", "PutLogEvents"]
        self.assertEqual(statement["Action"], [f"logs:{action}" for action in actions])
        groups = [resource.split(":log-group:")[1] for resource in statement["Resource"]]
        self.assertEqual(groups, ["env0-deployments", "env0-deployments:*", "env0-audits", "env0-audits:*"])

    def test_the_trust_policy_names_session_tags_audience_and_subject(self):
        (statement,) = json.loads(read("config/trust-policy.json"))["Statement"]
        self.assertEqual(statement["Action"], ["sts:AssumeRoleWithWebIdentity", "sts:TagSession"])
        condition = statement["Condition"]["StringEquals"]
        self.assertEqual(set(condition), {"login.app.env0.com/:aud", "login.app.env0.com/:sub"})

    def test_the_trust_policy_takes_both_forms_of_env0s_tokens(self):
        (statement,) = json.loads(read("config/trust-policy.json"))["Statement"]
        # The azp of a token by env0's first format, and the aud of its v2 format, which has no azp.
        audiences = ["hoMiq9PdkRh9LUvVpH4wIErWg50VSG1b", "sts.amazonaws.com"]
        self.assertEqual(statement["Condition"]["StringEquals"]["login.app.env0.com/:aud"], audiences)


class Image(unittest.TestCase):
    def test_it_is_built_with_the_allocators_settings(self):
        self.assertIn("JEMALLOC_SYS_WITH_MALLOC_CONF", read(".cargo/config.toml"))
        self.assertRegex(read("Dockerfile"), r"(?m)^COPY \.cargo \./\.cargo$")

    def test_nothing_that_builds_it_floats(self):
        image = read("Dockerfile")
        self.assertNotIn("syntax=", image)
        for base in re.findall(r"^FROM (\S+)", image, re.M):
            self.assertRegex(base, r"@sha256:[0-9a-f]{64}$")
        copied = {word for line in re.findall(r"^COPY (?!--)(.+) \S+$", image, re.M) for word in line.split()}
        self.assertEqual({f"!{path.removeprefix('./')}" for path in copied}, set(read(".dockerignore").split()) - {"*"})

    def test_the_label_names_the_base_that_is_used(self):
        image = read("Dockerfile")
        name, digest = re.findall(r"^FROM (\S+)@(sha256:[0-9a-f]{64})", image, re.M)[-1]
        self.assertIn(f'image.base.name="{name}"', image)
        self.assertIn(f'image.base.digest="{digest}"', image)

    def test_a_release_is_joined_signed_and_checked_by_digest_and_by_one_workflow_alone(self):
        release = read(".github/workflows/release.yml")
        (join,) = re.findall(r"imagetools create (.+)$", release, re.M)
        self.assertEqual(join, '--tag "$IMAGE:$version" "$IMAGE@$AMD64" "$IMAGE@$ARM64"')
        self.assertEqual(re.findall(r"cosign sign (.+)$", release, re.M), ['--yes "$IMAGE@$DIGEST"'])
        pages = read(".github/SECURITY.md") + read("README.md")
        checks = re.findall(r"cosign verify [^`]+", pages)
        self.assertTrue(checks)
        for check in checks:
            self.assertIn("@sha256:", check)
            self.assertIn("/.github/workflows/release.yml@refs/tags/v", check)
            self.assertNotIn("-regexp", check)


@contextlib.contextmanager
def stub(status):
    """A server that answers all with `status`, and the list of what it was sent: (method, path, authorization, body)."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def take(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.append((self.command, self.path, self.headers.get("Authorization"), body))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_PUT = take

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, seen
    finally:
        server.shutdown()
        server.server_close()


def scripts(node):
    """The `run` of every step of a custom flow."""
    if isinstance(node, dict):
        if "run" in node:
            yield node["name"], node["run"]
        else:
            for value in node.values():
                yield from scripts(value)
    elif isinstance(node, list):
        for value in node:
            yield from scripts(value)


class CustomFlows(unittest.TestCase):
    TOKEN = "header.payload.signature"

    def run_step(self, script, **variables):
        environment = {
            "PATH": os.environ["PATH"],
            "ENV0_OIDC_TOKEN": self.TOKEN,
            "ENV0_DEPLOYMENT_LOG_ID": "deployment-1",
            "ENV0_ORGANIZATION_ID": "organization-1",
            "ENV0_PROJECT_ID": "project-1",
            "ENV0_ENVIRONMENT_ID": "environment-1",
            "ENV0_DEPLOYMENT_TYPE": "deploy",
            **variables,
        }
        return subprocess.run(["sh", "-e", "-c", script], env=environment, capture_output=True, text=True, timeout=30)

    def test_no_step_ever_fails_a_deployment(self):
        for name, script in scripts(yaml.safe_load(read("config/env0.yml"))):
            with stub(503) as (port, _):
                pass
            for url in (f"http://127.0.0.1:{port}", "http://no-such-host.invalid", ""):
                started = time.monotonic()
                outcome = self.run_step(script, LOG_FORWARDER_URL=url)
                self.assertEqual(outcome.returncode, 0, name)
                self.assertEqual(outcome.stderr == "", url == "", outcome.stderr)
                self.assertLess(time.monotonic() - started, 15, name)
            self.assertIn("--max-time 5", script)

    def test_the_steps_hand_the_token_over_and_send_events_that_parse(self):
        messages = []
        for name, script in scripts(yaml.safe_load(read("config/env0.yml"))):
            with stub(200) as (port, seen):
                outcome = self.run_step(script, LOG_FORWARDER_URL=f"http://127.0.0.1:{port}")
            self.assertNotIn(self.TOKEN, outcome.stdout + outcome.stderr)
            ((method, path, authorization, body),) = seen
            if method == "PUT":
                self.assertEqual((path, body), ("/v1/oidc-token", self.TOKEN.encode()), name)
                continue
            self.assertEqual((path, authorization), ("/v1/logs/env0-deployments", f"Bearer {self.TOKEN}"), name)
            event = json.loads(body)
            self.assertEqual(event["environmentId"], "environment-1")
            self.assertIn("the event was answered with HTTP 200 (200 is good)\n", outcome.stdout)
            messages.append(event["message"])
        self.assertEqual(messages, ["deployment started", "deployment succeeded", "deployment failed"] * 2)

    def test_the_hand_over_tells_how_it_was_answered(self):
        for name, script in scripts(yaml.safe_load(read("config/env0.yml"))):
            if "/v1/oidc-token" not in script:
                continue
            for answer, warned in ((204, False), (401, True), (503, True)):
                with stub(answer) as (port, _):
                    outcome = self.run_step(script, LOG_FORWARDER_URL=f"http://127.0.0.1:{port}")
                self.assertIn(f"HTTP {answer}", outcome.stdout, name)
                self.assertEqual("WARNING" in outcome.stdout, warned, outcome.stdout)

    def test_a_hand_over_that_can_not_be_is_told_with_its_own_remedy(self):
        with stub(503) as (port, _):
            pass
        url = f"http://127.0.0.1:{port}"
        for variables, said in (
            ({"ENV0_OIDC_TOKEN": "", "LOG_FORWARDER_URL": url}, "turn on 'Enable OIDC during deployments'"),
            ({"LOG_FORWARDER_URL": ""}, "LOG_FORWARDER_URL is not set"),
            ({"LOG_FORWARDER_URL": url}, f"nothing answered at LOG_FORWARDER_URL={url}"),
            ({"LOG_FORWARDER_URL": "no url"}, "nothing answered at LOG_FORWARDER_URL=no url"),
        ):
            for name, script in scripts(yaml.safe_load(read("config/env0.yml"))):
                if "/v1/oidc-token" in script:
                    outcome = self.run_step(script, **variables)
                    self.assertEqual(outcome.returncode, 0, name)
                    self.assertIn(said, outcome.stdout)
                    self.assertNotIn("/status", outcome.stdout)
        ((_, courier),) = scripts(yaml.safe_load(read("config/token-courier/env0.yml")))
        for variables, said in (
            ({"ENV0_OIDC_TOKEN": ""}, "turn on 'Enable OIDC during deployments'"),
            ({"LOG_FORWARDER_HOST": "http://localhost"}, "a name or an address alone, without http://"),
            ({"LOG_FORWARDER_HOST": "127.0.0.1", "LOG_FORWARDER_PORT": str(port)}, "nothing answered at 127.0.0.1"),
        ):
            outcome = self.run_step(courier, **variables)
            self.assertEqual(outcome.returncode, 1, variables)
            self.assertIn(said, outcome.stdout)
            self.assertNotIn("/status", outcome.stdout)

    def test_a_hand_over_to_another_port_names_the_port_for_events(self):
        for path, said in (("config/env0.yml", "is not the log forwarder's port"), ("config/token-courier/env0.yml", "is not its port")):
            for name, script in scripts(yaml.safe_load(read(path))):
                if "/v1/oidc-token" in script:
                    with stub(404) as (port, _):
                        address = {"LOG_FORWARDER_HOST": "127.0.0.1", "LOG_FORWARDER_PORT": str(port)}
                        outcome = self.run_step(script, LOG_FORWARDER_URL=f"http://127.0.0.1:{port}", **address)
                    self.assertIn(said, outcome.stdout, name)
                    self.assertNotIn("/status", outcome.stdout, name)

    def test_the_token_never_stands_on_a_command_line(self):
        for path in ("config/env0.yml", "config/token-courier/env0.yml"):
            for _, script in scripts(yaml.safe_load(read(path))):
                for line in script.splitlines():
                    command = line.partition("| curl")[2] if "| curl" in line else line if "curl" in line else ""
                    self.assertNotIn("ENV0_OIDC_TOKEN", command, path)

    def test_the_courier_hands_the_token_to_each_address_and_tells_of_a_refusal(self):
        ((_, script),) = scripts(yaml.safe_load(read("config/token-courier/env0.yml")))
        for answer, code in ((204, 0), (401, 1)):
            with stub(answer) as (port, seen):
                outcome = self.run_step(script, LOG_FORWARDER_HOST="127.0.0.1", LOG_FORWARDER_PORT=str(port))
            self.assertEqual(outcome.returncode, code, outcome.stderr)
            self.assertEqual(seen, [("PUT", "/v1/oidc-token", None, self.TOKEN.encode())])
            self.assertNotIn(self.TOKEN, outcome.stdout + outcome.stderr)

    def test_the_courier_asks_each_address_by_the_name_that_the_certificate_is_for(self):
        ((_, script),) = scripts(yaml.safe_load(read("config/token-courier/env0.yml")))
        with tempfile.TemporaryDirectory() as folder:
            curl = pathlib.Path(folder, "curl")
            curl.write_text('#!/bin/sh\ncat >/dev/null; echo "$@" >>"$CALLS"; printf 204\n')
            curl.chmod(0o755)
            calls = pathlib.Path(folder, "calls")
            outcome = self.run_step(
                script,
                PATH=f"{folder}:{os.environ['PATH']}",
                CALLS=str(calls),
                LOG_FORWARDER_HOST="localhost",
                LOG_FORWARDER_SCHEME="https",
            )
            self.assertEqual(outcome.returncode, 0, outcome.stderr)
            for call in calls.read_text().splitlines():
                self.assertRegex(call, r"--connect-to localhost:8080:(127\.0\.0\.1|\[::1\]):8080 ")
                self.assertTrue(call.endswith("https://localhost:8080/v1/oidc-token"), call)

    def test_nothing_sets_the_daemons_own_variables_in_env0(self):
        for path in ("config/env0.yml", "config/token-courier/env0.yml"):
            self.assertNotIn("ENV0_S3_LOG_", json.dumps(yaml.safe_load(read(path))), path)


if __name__ == "__main__":
    unittest.main()
