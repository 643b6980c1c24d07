"""The Helm chart: renders in every combination, and is what the plain manifests are rendered from. What it refuses is in
helm_refusals.py.

`python tests/packaging/helm.py --write` renders config/kubernetes and the schema's list of variables again.
"""

import base64
import copy
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "config" / "helm" / "env0-s3-logs"
PLAIN = ROOT / "config" / "kubernetes"
SCHEMA = CHART / "files" / "values.schema.json"
ALERTS, ALERTS_OF_CHART = ROOT / "config" / "prometheus" / "alerts.yaml", CHART / "files" / "alerts.yaml"
BINARY = pathlib.Path(os.environ.get("BINARY", ROOT / "target" / "release" / "env0-s3-logs"))
NAMESPACE = "env0-agent"

# Not for `config`, and what the chart names in their place.
NOT_CONFIG = {
    **{f"ENV0_API_KEY_{name}": "apiKeySecret" for name in ("ID", "ID_FILE", "SECRET", "SECRET_FILE")},
    **{f"ENV0_S3_LOG_INGEST_{name}": "ingestTokensSecret" for name in ("TOKEN", "TOKEN_FILE")},
    **{f"ENV0_{name}": "podToken.enabled" for name in ("OIDC_TOKEN", "OIDC_TOKEN_FILE")},
    **{f"ENV0_S3_LOG_OIDC_TOKEN_{name}": "podToken.enabled" for name in ("FILE", "URL")},
    **{f"ENV0_S3_LOG_TLS_{name}_FILE": "tls.secretName" for name in ("CERT", "KEY")},
    **{
        f"ENV0_S3_LOG_{name}": "leave it out"
        for name in ("LISTEN_ADDR", "ADMIN_ADDR", "SPOOL_DIR", "SHUTDOWN_GRACE", "INGEST_AUTH")
    },
}
# A header is all that a plain manifest has beside what the chart renders.
HEADER = """\
# Rendered from config/helm/env0-s3-logs with {values}; don't change one without the other.
# Put your own values in place of the examples in `env`, and your registry's image in place of `image`, then:
#   kubectl -n {namespace} apply -f config/kubernetes/{name}
"""
CONFIG = {
    "ENV0_S3_LOG_ROLE_ARN": "arn:aws:iam::111122223333:role/env0-logs",
    "ENV0_S3_LOG_BUCKET_NAME": "my-env0-logs",
    "ENV0_S3_LOG_AWS_REGION": "us-east-1",
}
ORGANIZATION = {"ENV0_S3_LOG_OIDC_ORGANIZATION_ID": "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9"}
AUDITS = {"enabled": True, "host": "audits.example.com", "tlsSecretName": "audits-tls", "allowedCidrs": ["192.0.2.0/24"]}
# Of each pair of values every combination is rendered.
CHOICES = [
    ({"apiKeySecret": "key"}, {"ingestTokensSecret": "tokens"}, {"apiKeySecret": "key", "ingestTokensSecret": "tokens"}),
    ({}, {"config": ORGANIZATION}),
    ({}, {"tls": {"secretName": "tls"}}, {"tls": {"certManager": {"enabled": True, "issuer": "ca"}}}),
    ({}, {"podToken": {"enabled": True}, "drain": ["spool-env0-s3-logs-push-7"]}, {"oidcTokenSecret": "oidc"}),
    ({}, {"replicas": 3, "monitoring": {"enabled": True, "labels": {"release": "prometheus"}}}),
    (
        {},
        {
            "image": {"digest": "sha256:" + "0" * 64},
            "storage": {"size": "32Gi", "className": "gp3"},
            "networkPolicy": {"egress": {"ports": [443, 3128]}},
            "config": {"HTTPS_PROXY": "http://proxy.example.com:3128", "ENV0_S3_LOG_COMPRESSION": "zstd"},
        },
    ),
]


def variables():
    return set(re.findall(r"^#?([A-Z][A-Z0-9_]+)=", (ROOT / "config" / "example.env").read_text(), re.M))


def merged(*parts):
    whole = {}
    for part in parts:
        for key, value in part.items():
            old = whole.get(key)
            whole[key] = merged(old, value) if isinstance(value, dict) and isinstance(old, dict) else copy.deepcopy(value)
    return whole


def helm(*arguments, values=None):
    values = merged({"image": {"repository": "env0-s3-logs"}}, values) if values is not None else None
    return subprocess.run(
        ["helm", *map(str, arguments), *(["-f", "-"] if values is not None else [])],
        input=json.dumps(values) if values is not None else None,
        capture_output=True,
        text=True,
        timeout=60,
    )


def template(values, *arguments):
    outcome = helm("template", "env0-s3-logs", CHART, "-n", NAMESPACE, *arguments, values=values)
    if outcome.returncode:
        raise AssertionError(outcome.stderr)
    return outcome.stdout


def plain(name):
    """A plain manifest, as the chart renders it."""
    values = yaml.safe_load((PLAIN / f"{name}.values.yaml").read_text())
    only = ["--show-only", "templates/drain.yaml"] if name == "drain" else ["--skip-tests"]
    lines = [line for line in template(values, *only).splitlines() if not line.startswith("# Source: ") and line.strip()]
    text = "\n".join(lines).removeprefix("---\n")
    text = re.sub(r"(?m)^---\n(?=(#[^\n]*\n)*---$)", "", text)
    return HEADER.format(values=f"{name}.values.yaml", namespace=NAMESPACE, name=f"{name}.yaml") + text + "\n"


PLAIN_NAMES = sorted(path.name.removesuffix(".values.yaml") for path in PLAIN.glob("*.values.yaml"))


def write():
    schema = json.loads(SCHEMA.read_text())
    schema["properties"]["config"]["propertyNames"]["enum"] = sorted(variables())
    SCHEMA.write_text(json.dumps(schema, indent=2) + "\n")
    ALERTS_OF_CHART.write_bytes(ALERTS.read_bytes())
    for name in PLAIN_NAMES:
        (PLAIN / f"{name}.yaml").write_text(plain(name))


def pods(documents):
    for document in documents:
        if document["kind"] in ("StatefulSet", "Job"):
            yield document["metadata"]["name"], document["spec"]["template"]["spec"]
        elif document["kind"] == "Pod":
            yield document["metadata"]["name"], document["spec"]


def kinds(documents, kind):
    return {document["metadata"]["name"]: document for document in documents if document["kind"] == kind}


class Chart(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.rendered = []
        for choice in itertools.product(*CHOICES):
            values = merged({"config": CONFIG}, *choice)
            if "tls" in values and not ("ingestTokensSecret" in values or ORGANIZATION.keys() <= values["config"].keys()):
                continue
            cls.rendered.append((values, list(yaml.safe_load_all(template(values)))))
        values = merged({"config": CONFIG, "ingestTokensSecret": "tokens"}, {"audits": AUDITS})
        for extra in ({}, {"tls": {"secretName": "tls"}}):
            for controller in ("ingress-nginx", "aws-load-balancer-controller"):
                of_aws = {"className": "alb", "from": [{"ipBlock": {"cidr": "10.0.0.0/20"}}]}
                own = {} if controller == "ingress-nginx" else of_aws
                audits = merged(values, extra, {"audits": {"controller": controller, **own}})
                cls.rendered.append((audits, list(yaml.safe_load_all(template(audits)))))

    def test_the_plain_manifests_are_what_it_renders(self):
        for name in PLAIN_NAMES:
            written = (PLAIN / f"{name}.yaml").read_text()
            self.assertEqual(written, plain(name), "run: python tests/packaging/helm.py --write")

    def test_the_schema_knows_every_variable_and_the_chart_says_where_those_go_that_config_refuses(self):
        known = json.loads(SCHEMA.read_text())["properties"]["config"]["propertyNames"]["enum"]
        self.assertEqual(known, sorted(variables()), "run: python tests/packaging/helm.py --write")
        self.assertEqual(NOT_CONFIG.keys() - variables(), set())
        for variable, instead in NOT_CONFIG.items():
            values = {"config": CONFIG | {variable: "a-secret-0123456789"}, "ingestTokensSecret": "tokens"}
            outcome = helm("template", "env0-s3-logs", CHART, values=values)
            self.assertNotEqual(outcome.returncode, 0, variable)
            for said in (f"config.{variable}: ", instead):
                self.assertIn(said, outcome.stderr)
            self.assertNotIn("a-secret-0123456789", outcome.stderr)

    def test_helm_lint_finds_nothing(self):
        outcome = helm("lint", CHART)
        self.assertEqual(outcome.returncode, 0, outcome.stdout + outcome.stderr)
        for name in PLAIN_NAMES:
            outcome = helm("lint", "--strict", CHART, "-f", PLAIN / f"{name}.values.yaml")
            self.assertEqual(outcome.returncode, 0, outcome.stdout + outcome.stderr)
        for values, _ in self.rendered:
            outcome = helm("lint", "--strict", CHART, values=values)
            self.assertEqual(outcome.returncode, 0, f"{values}\n{outcome.stdout}{outcome.stderr}")

    def test_every_combination_fits_the_schemas_of_kubernetes(self):
        with tempfile.TemporaryDirectory() as folder:
            distinct = {}
            for _, documents in self.rendered:
                for document in documents:
                    # cert-manager's and the Prometheus operator's kinds have no schema here.
                    if document["apiVersion"].split("/")[0] not in ("cert-manager.io", "monitoring.coreos.com"):
                        distinct[json.dumps(document, sort_keys=True)] = document
            path = pathlib.Path(folder, "all.yaml")
            path.write_text(yaml.safe_dump_all(distinct.values()))
            command = ["kubernetes-validate", "--strict", "--quiet", "--no-warn", path]
            outcome = subprocess.run(command, capture_output=True, text=True, timeout=300)
            self.assertEqual(outcome.returncode, 0, outcome.stdout + outcome.stderr)

    def test_every_pod_is_locked_down_and_its_image_is_the_one_named(self):
        for values, documents in self.rendered:
            for name, pod in pods(documents):
                self.assertTrue(pod["securityContext"]["runAsNonRoot"], name)
                self.assertEqual(pod["securityContext"]["runAsUser"], 65532, name)
                self.assertEqual(pod["securityContext"]["fsGroup"], 65532, name)
                self.assertFalse(pod["automountServiceAccountToken"], name)
                (container,) = pod["containers"]
                context = container["securityContext"]
                self.assertTrue(context["readOnlyRootFilesystem"], name)
                self.assertFalse(context["allowPrivilegeEscalation"], name)
                self.assertEqual(context["capabilities"], {"drop": ["ALL"]}, name)
                digest = values.get("image", {}).get("digest")
                self.assertEqual(container["image"], f"env0-s3-logs@{digest}" if digest else "env0-s3-logs:0.1.0")
                mounts = {mount["name"] for mount in container["volumeMounts"]}
                volumes = {volume["name"] for volume in pod.get("volumes", [])} | {"spool"}
                self.assertEqual(mounts, volumes, name)

    def test_one_pod_pulls_whatever_the_number_of_replicas(self):
        for values, documents in self.rendered:
            holders = []
            for name, stateful_set in kinds(documents, "StatefulSet").items():
                (container,) = stateful_set["spec"]["template"]["spec"]["containers"]
                if any(env["name"] == "ENV0_API_KEY_ID_FILE" for env in container["env"]):
                    holders.append((name, stateful_set["spec"]["replicas"]))
                else:
                    self.assertEqual(stateful_set["spec"]["replicas"], values.get("replicas", 1))
            self.assertEqual(holders, [("env0-s3-logs-pull", 1)] if values.get("apiKeySecret") else [])

    def test_probes_ask_the_admin_port_and_the_other_is_open_only_where_senders_may_come(self):
        for values, documents in self.rendered:
            trusts = "ENV0_S3_LOG_OIDC_ORGANIZATION_ID" in values["config"]
            for name, stateful_set in kinds(documents, "StatefulSet").items():
                (container,) = stateful_set["spec"]["template"]["spec"]["containers"]
                for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                    self.assertEqual(container[probe]["httpGet"]["port"], "admin")
                ports = {port["name"]: port["containerPort"] for port in container["ports"]}
                listens = trusts or name.endswith("-push")
                self.assertEqual(ports, {"admin": 9090} | ({"ingest": 8080} if listens else {}), (name, values))

    def test_every_service_finds_its_pods_and_a_policy_holds_them(self):
        for _, documents in self.rendered:
            own = [*kinds(documents, "StatefulSet").values(), *kinds(documents, "Job").values()]
            templates = [s["spec"]["template"]["metadata"]["labels"] for s in own]
            selectors = [service["spec"]["selector"] for service in kinds(documents, "Service").values()]
            selectors += [policy["spec"]["podSelector"]["matchLabels"] for policy in kinds(documents, "NetworkPolicy").values()]
            for selector in selectors:
                self.assertTrue(any(selector.items() <= labels.items() for labels in templates), selector)
            for name, stateful_set in kinds(documents, "StatefulSet").items():
                self.assertIn(stateful_set["spec"]["serviceName"], kinds(documents, "Service"))
                self.assertIn(name, kinds(documents, "PodDisruptionBudget"))
            policy = kinds(documents, "NetworkPolicy")["env0-s3-logs"]["spec"]
            self.assertEqual(policy["policyTypes"], ["Ingress", "Egress"])
            self.assertEqual([port["port"] for port in policy["egress"][0]["ports"]], [53, 53])
            self.assertIn("169.254.0.0/16", policy["egress"][1]["to"][0]["ipBlock"]["except"])

    def test_the_audits_door_opens_one_path_to_the_allow_list_alone(self):
        doors = 0
        for values, documents in self.rendered:
            for ingress in kinds(documents, "Ingress").values():
                doors += 1
                (rule,) = ingress["spec"]["rules"]
                paths = [(path["path"], path["pathType"]) for path in rule["http"]["paths"]]
                self.assertEqual(paths, [("/env0-audits", "Prefix")])
                self.assertNotIn("defaultBackend", ingress["spec"])
                lists = [v for k, v in ingress["metadata"]["annotations"].items() if k.endswith(("source-range", "inbound-cidrs"))]
                self.assertEqual(lists, ["192.0.2.0/24"])
                policy = kinds(documents, "NetworkPolicy")["env0-s3-logs-audits"]["spec"]["ingress"]
                self.assertEqual([[port["port"] for port in rule["ports"]] for rule in policy], [[8080]])
                self.assertTrue(ingress["spec"]["tls"])
        self.assertEqual(doors, 4)

    def test_the_alerts_are_those_of_the_prometheus_folder(self):
        self.assertEqual(ALERTS_OF_CHART.read_bytes(), ALERTS.read_bytes(), "run: python tests/packaging/helm.py --write")
        alerts = yaml.safe_load(ALERTS.read_text())
        rules = [r for _, documents in self.rendered for r in kinds(documents, "PrometheusRule").values()]
        self.assertTrue(rules)
        # One release that is gone is missed while another is scraped.
        release = 'absent(env0_s3_logs_build_info{namespace="env0-agent",service="env0-s3-logs-headless"})'
        (not_scraped,) = (alert for alert in alerts["groups"][0]["rules"] if alert["alert"] == "NotScraped")
        self.assertEqual(not_scraped["expr"], "absent(env0_s3_logs_build_info)")
        not_scraped["expr"] = release
        for rule in rules:
            self.assertEqual(rule["spec"], alerts)

    def test_the_alerts_runbooks_are_where_the_values_say(self):
        where = "https://git.example.com/logs/blob/main/"
        values = {"config": CONFIG, "apiKeySecret": "key", "monitoring": {"enabled": True, "runbooks": where}}
        (rules,) = kinds(list(yaml.safe_load_all(template(values))), "PrometheusRule").values()
        for alert in rules["spec"]["groups"][0]["rules"]:
            self.assertTrue(alert["annotations"]["runbook_url"].startswith(where + "config/README.md#"), alert)

    def test_a_variable_that_is_null_counts_as_left_out(self):
        left_out = template({"config": CONFIG | ORGANIZATION}, "--set=ingestTokensSecret=tokens", "--set=config.ENV0_S3_LOG_OIDC_ORGANIZATION_ID=null")
        self.assertEqual(left_out, template({"config": CONFIG, "ingestTokensSecret": "tokens"}))
        template({"config": CONFIG, "ingestTokensSecret": "tokens"}, "--set=config.ENV0_S3_LOG_OIDC_ORGANIZATION_ID=null")

    def test_helm_test_is_given_what_all_pods_are_given(self):
        for values, documents in self.rendered:
            for _, check in kinds(documents, "Pod").items():
                (container,) = check["spec"]["containers"]
                given = {env["name"]: env["value"] for env in container["env"]}
                mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
                for stateful_set in kinds(documents, "StatefulSet").values():
                    (other,) = stateful_set["spec"]["template"]["spec"]["containers"]
                    self.assertLessEqual({(env["name"], env["value"]) for env in other["env"]}, set(given.items()), values)
                    self.assertLessEqual({mount["mountPath"] for mount in other["volumeMounts"]}, mounts, values)

    def test_a_drain_job_may_go_where_the_daemon_may_and_nobody_may_come_to_it(self):
        values = {"config": CONFIG, "oidcTokenSecret": "oidc", "drain": ["claim"], "networkPolicy": {"egress": {"ports": [443, 3128]}}}
        documents = list(yaml.safe_load_all(template(values)))
        (job,) = kinds(documents, "Job").values()
        policies = kinds(documents, "NetworkPolicy")
        of_job = policies["env0-s3-logs-drain"]["spec"]
        self.assertLessEqual(of_job["podSelector"]["matchLabels"].items(), job["spec"]["template"]["metadata"]["labels"].items())
        self.assertEqual((of_job["policyTypes"], of_job.get("ingress")), (["Ingress", "Egress"], None))
        self.assertEqual(of_job["egress"], policies["env0-s3-logs"]["spec"]["egress"])
        for service in kinds(documents, "Service").values():
            self.assertFalse(service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items())

    def test_numbers_and_booleans_become_the_text_that_was_written(self):
        typed = {"ENV0_S3_LOG_UPLOAD_CONCURRENCY": 8, "ENV0_S3_LOG_REDACT": False, "ENV0_S3_LOG_BATCH_MAX_BYTES": 10000000}
        values = {"config": CONFIG | typed, "ingestTokensSecret": "tokens"}
        as_sets = [f"--set=config.{name}={json.dumps(value)}" for name, value in typed.items()]
        for text in (template(values), template({"config": CONFIG, "ingestTokensSecret": "tokens"}, *as_sets)):
            (pod,) = [pod for name, pod in pods(list(yaml.safe_load_all(text))) if name.endswith("-push")]
            environment = {env["name"]: env["value"] for env in pod["containers"][0]["env"]}
            self.assertEqual({name: environment[name] for name in typed}, dict(zip(typed, ("8", "false", "10000000"))))

    def test_a_volume_that_is_larger_than_the_spool_may_become_is_taken_in_every_notation(self):
        for size, spool in (("11Gi", None), ("11G", "10GB"), ("1Ti", "500 GiB"), ("2M", "1MiB"), ("16Gi", "10000000000")):
            limit = {"config": {"ENV0_S3_LOG_SPOOL_MAX_BYTES": spool}} if spool else {}
            template(merged({"config": CONFIG, "ingestTokensSecret": "tokens", "storage": {"size": size}}, limit))
        # It has no pod of its own, and so no claim.
        drain = {"config": CONFIG | {"ENV0_S3_LOG_SPOOL_MAX_BYTES": "1TiB"}, "oidcTokenSecret": "oidc", "drain": ["claim"]}
        template(drain)

    def test_every_pods_environment_and_files_are_accepted_by_the_daemon(self):
        seen = set()
        for _, documents in self.rendered:
            for name, pod in pods(documents):
                (container,) = pod["containers"]
                environment = {env["name"]: env["value"] for env in container["env"]}
                if (key := json.dumps(environment, sort_keys=True)) in seen:
                    continue
                seen.add(key)
                with tempfile.TemporaryDirectory() as folder:
                    for mount in container["volumeMounts"]:
                        pathlib.Path(folder + mount["mountPath"]).mkdir(parents=True, mode=0o700, exist_ok=True)
                    fill(folder, pod, container)
                    for variable, value in environment.items():
                        if value.startswith(("/run/", "/var/")):
                            environment[variable] = folder + value
                    # An empty folder is no spool, which a drain job says once its configuration has passed.
                    words, code = (container["args"], 74) if container["name"] == "drain" else (["check", "--offline"], 0)
                    command = [BINARY, *words]
                    outcome = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
                    self.assertEqual(outcome.returncode, code, f"{name}\n{outcome.stdout}{outcome.stderr}")
                    self.assertNotIn("unknown", outcome.stdout + outcome.stderr)
        self.assertGreater(len(seen), 20)

    def test_the_terraform_outputs_are_names_that_config_takes(self):
        known = variables() - NOT_CONFIG.keys()
        outputs = set(re.findall(r"\bENV0_[A-Z0-9_]+", (ROOT / "config/aws/terraform/outputs.tf").read_text()))
        self.assertTrue(outputs)
        self.assertEqual(outputs - known, set())

    def test_a_store_elsewhere_may_have_names_that_aws_has_not(self):
        names = {"ENV0_S3_LOG_ROLE_ARN": "arn:aws:iam::tenant1:role/x", "ENV0_S3_LOG_BUCKET_NAME": "My_Bucket", "ENV0_S3_LOG_AWS_REGION": "RegionOne"}
        store = {"AWS_ENDPOINT_URL": "https://store.example.com"}
        template({"config": names | store, "ingestTokensSecret": "tokens"})

    def notes(self, values):
        outcome = helm("install", "env0-s3-logs", CHART, "-n", NAMESPACE, "--dry-run=client", values=values)
        self.assertEqual(outcome.returncode, 0, outcome.stderr)
        return re.sub(r"\s+", " ", outcome.stdout.split("\nNOTES:\n")[1])

    def test_the_notes_tell_what_has_no_effect_and_what_would_be_stored_twice(self):
        pulls, takes = {"config": CONFIG, "apiKeySecret": "key"}, {"ingestTokensSecret": "tokens"}
        self.assertIn("replicas=3 has no effect", self.notes(pulls | {"replicas": 3}))
        self.assertNotIn("has no effect", self.notes(pulls | takes | {"replicas": 3}))
        self.assertIn("This release pulls env0-audits,env0-deployments, and senders", self.notes(pulls | takes))
        self.assertNotIn("twice", self.notes(pulls))
        self.assertIn("No pod takes events from senders, because replicas=0", self.notes(pulls | takes | {"replicas": 0}))
        hands = merged(pulls, {"config": ORGANIZATION})
        self.assertIn("LOG_FORWARDER_URL=http://env0-s3-logs-headless.env0-agent.svc:8080", self.notes(hands | {"replicas": 0}))
        takes = merged({"config": CONFIG | ORGANIZATION}, takes)
        self.assertIn("LOG_FORWARDER_URL=http://env0-s3-logs.env0-agent.svc:8080", self.notes(takes))

    def test_the_notes_of_several_pods_name_the_courier_alone_which_reaches_each(self):
        courier = "LOG_FORWARDER_HOST=env0-s3-logs-headless.env0-agent.svc"
        takes = {"config": CONFIG | ORGANIZATION, "ingestTokensSecret": "tokens"}
        for values, pods in ((takes | {"replicas": 2}, 2), (takes | {"apiKeySecret": "key"}, 2)):
            notes = self.notes(values)
            self.assertIn(f"there are {pods} pods, and each needs a token", notes)
            self.assertIn(courier, notes)
            self.assertNotIn("LOG_FORWARDER_URL", notes)
            self.assertNotIn("LOG_FORWARDER_SCHEME", notes)
        notes = self.notes(takes | {"tls": {"secretName": "tls"}})
        self.assertIn(f"{courier} and LOG_FORWARDER_SCHEME=https", notes)
        self.assertIn("LOG_FORWARDER_URL=https://env0-s3-logs.env0-agent.svc:8080", notes)

    def test_the_notes_of_a_drain_speak_of_its_job_and_of_no_pod_that_is_not_there(self):
        drains = {"config": CONFIG, "oidcTokenSecret": "oidc", "drain": ["spool-env0-s3-logs-push-1"]}
        notes = self.notes(drains)
        self.assertIn("logs job/drain-spool-env0-s3-logs-push-1-1", notes)
        for pod in ("pull-0", "push-0", "port-forward"):
            self.assertNotIn(pod, notes)
        self.assertIn("env0-s3-logs-push-0", self.notes(drains | {"ingestTokensSecret": "tokens"}))

    def test_the_notes_tell_only_of_ways_by_which_a_token_can_come(self):
        by_record, by_hand = "one in the record of a deployment", "has handed its OIDC token over"
        trusting, audits_alone = {"config": ORGANIZATION}, {"config": {"ENV0_S3_LOG_PULL": "env0-audits"}}
        pulls, takes = {"config": CONFIG, "apiKeySecret": "key"}, {"config": CONFIG, "ingestTokensSecret": "tokens"}
        none, remedy = "No token for AWS comes to this release", "config.ENV0_S3_LOG_OIDC_ORGANIZATION_ID, with which"
        for values, said, unsaid in (
            (pulls, (by_record, remedy), (by_hand, none)),
            (merged(pulls, audits_alone), (none, remedy), (by_hand, by_record)),
            (takes, (none, remedy), (by_hand, by_record)),
            (merged(takes, trusting), (by_hand,), (none, by_record)),
            (merged(pulls, takes), (by_record, "None comes to the others", remedy), (by_hand, none)),
            (merged(pulls, {"podToken": {"enabled": True}}), ("The role must trust",), (by_hand, none, by_record)),
            (merged(pulls, {"oidcTokenSecret": "oidc"}), (), (by_hand, none, by_record)),
        ):
            notes = self.notes(values)
            for words in said:
                self.assertIn(words, notes, values)
            for words in unsaid:
                self.assertNotIn(words, notes, values)

    def test_the_notes_name_the_examples_that_the_daemon_would_warn_of_and_no_value_of_ones_own(self):
        examples = {
            variable: example
            for variable, example in re.findall(r"^#?([A-Z0-9_]+)=(.+)$", (ROOT / "config" / "example.env").read_text(), re.M)
            if variable in variables() - NOT_CONFIG.keys() and re.search("ROLE_ARN|BUCKET_NAME|_OWNER|_ID$|_SUBJECT", variable)
        }
        key = {"ENV0_API_KEY_ID": "an-id", "ENV0_API_KEY_SECRET": "a-secret", "ENV0_S3_LOG_AWS_REGION": "us-east-1"}
        cloudwatch = {"ENV0_CLOUDWATCH_AWS_REGION": "us-east-1"}
        command = [BINARY, "check", "--offline"]
        judged = subprocess.run(command, env=examples | key | cloudwatch, capture_output=True, text=True, timeout=60).stdout
        warned = re.search(r"((?:[A-Z0-9_]+, )*[A-Z0-9_]+): still the example", judged)[1].split(", ")
        values = {"config": examples | cloudwatch | {"ENV0_S3_LOG_AWS_REGION": "us-east-1"}, "apiKeySecret": "key"}
        told = re.search("Still the examples that the documents show: (.*?)[.] Put", self.notes(values))[1].split(", ")
        self.assertEqual(sorted(told), sorted(f"config.{variable}" for variable in warned))
        notes = self.notes(yaml.safe_load((PLAIN / "audits.values.yaml").read_text()))
        self.assertIn("config.ENV0_S3_LOG_ROLE_ARN, image.repository, audits.host, audits.allowedCidrs. Put your own", notes)
        own = {name: value.replace("1111", "2222").replace("my-", "acme-") for name, value in CONFIG.items()}
        self.assertNotIn("Still the examples", self.notes({"config": own, "apiKeySecret": "key"}))

    def test_the_notes_say_what_a_volume_lacks_where_the_storage_class_is_the_clusters_default(self):
        values = {"config": CONFIG, "apiKeySecret": "key"}
        self.assertIn("means that nothing makes the volume", self.notes(values))
        self.assertNotIn("makes the volume", self.notes(values | {"storage": {"className": "gp3"}}))

    def test_the_notes_say_the_next_command(self):
        for secrets, pods in (
            ({"apiKeySecret": "key"}, ["pull"]),
            ({"ingestTokensSecret": "tokens"}, ["push"]),
            ({"apiKeySecret": "key", "ingestTokensSecret": "tokens"}, ["push", "pull"]),
        ):
            values = {"config": CONFIG, **secrets}
            outcome = helm("install", "env0-s3-logs", CHART, "-n", NAMESPACE, "--dry-run=client", values=values)
            self.assertEqual(outcome.returncode, 0, outcome.stderr)
            asked = re.findall(r"exec env0-s3-logs-(\w+)-0 -- env0-s3-logs check$", outcome.stdout, re.M)
            self.assertEqual(asked, pods)
            self.assertIn(f"kubectl -n {NAMESPACE} describe pod env0-s3-logs-{pods[0]}-0", outcome.stdout)


def fill(folder, pod, container):
    """The files of the mounted Secrets, as the documents say to make them."""
    key, certificate = pathlib.Path(folder, "key.pem"), pathlib.Path(folder, "cert.pem")
    claims = base64.urlsafe_b64encode(b'{"iss":"https://issuer.example","sub":"x","aud":"sts.amazonaws.com","exp":4102444800}')
    contents = {
        "oidc": {"token": f"eyJhbGciOiJSUzI1NiJ9.{claims.decode().rstrip('=')}.c2lnbmF0dXJl"},
        "env0-api-key": {"id": "abcdefgh12345678", "secret": "a-secret-of-an-api-key"},
        "ingest": {"tokens": "5f0c1d6f0b1e4d0c8a2b7e9d env0-deployments\n7e1d2c3b4a59687f6e5d4c3b env0-audits\n"},
    }
    for mount in container["volumeMounts"]:
        if mount["name"] == "tls":
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "9"]
                + ["-subj", "/CN=env0-s3-logs", "-addext", "subjectAltName=DNS:env0-s3-logs"]
                + ["-keyout", key, "-out", certificate],
                check=True,
                capture_output=True,
            )
            shutil.copy(key, folder + mount["mountPath"] + "/tls.key")
            shutil.copy(certificate, folder + mount["mountPath"] + "/tls.crt")
        for name, text in contents.get(mount["name"], {}).items():
            pathlib.Path(folder + mount["mountPath"], name).write_text(text)


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        write()
    else:
        unittest.main()
