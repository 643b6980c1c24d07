"""What the Helm chart refuses, in which words, and that the daemon would refuse the same."""

import json
import re
import subprocess
import unittest

from helm import AUDITS, BINARY, CHART, CONFIG, NOT_CONFIG, ORGANIZATION, helm, merged, variables

# What the daemon needs beside the variable that is tried.
KEY = {"ENV0_API_KEY_ID": "an-id", "ENV0_API_KEY_SECRET": "a-secret", "ENV0_S3_LOG_INGEST_TOKEN": "5f0c1d6f0b1e4d0c8a2b"}


def daemon(config):
    """What the daemon says of a configuration."""
    return subprocess.run([BINARY, "config"], env={**config, **KEY}, capture_output=True, text=True, timeout=60)


def told(variable):
    """Each word, or a text at and beyond each bound, that the daemon tells where it refuses the variable's value."""
    refused = daemon(CONFIG | {variable: "?"})
    expected = re.search(rf"{variable}=\S+: expected ([^;:]*)", refused.stderr)
    expected = expected[1] if expected else ""
    if words := re.fullmatch("one of (.*)", expected):
        return words[1].split(", ")
    if bounds := re.fullmatch(r"a whole number from (\d+) to (\d+)", expected):
        least, most = map(int, bounds.groups())
        return [str(number) for number in (least - 1, least, most, most + 1)]
    if bounds := re.match(r"a duration from (\d+)(ms|s) to (\d+)s", expected):
        least = int(bounds[1]) * (1000 if bounds[2] == "s" else 1)
        most = int(bounds[3]) * 1000
        return [f"{time}ms" for time in (least - 1, least, most, most + 1)]
    if bounds := re.fullmatch(r"a size of at most (\d+)GiB", expected):
        return [str((int(bounds[1]) << 30) + more) for more in (0, 1)]
    return []


class Refusals(unittest.TestCase):
    def test_what_is_wrong_is_refused_with_the_name_of_the_value(self):
        good = {"config": CONFIG, "ingestTokensSecret": "tokens"}
        audits = lambda **more: merged(good, {"audits": AUDITS}, {"audits": more})
        for values, word in (
            (merged(good, {"replica": 2}), "did you mean replicas?"),
            (merged(good, {"config": {"ENV0_S3_LOG_INGEST_TOKEN": "a-secret-0123456789"}}), "ENV0_S3_LOG_INGEST_TOKEN"),
            (merged(good, {"config": {"ENV0_S3_LOG_UPLOAD_CONCURRENCY": 4.5}}), "ENV0_S3_LOG_UPLOAD_CONCURRENCY"),
            (
                merged(good, {"image": {"repository": "registry.example.com:5000/env0-s3-logs:0.1.0"}}),
                "expected image.repository=registry.example.com:5000/env0-s3-logs and image.tag=0.1.0",
            ),
            (merged(good, {"image": {"repository": "env0-s3-logs@sha256:1"}}), "image.digest=sha256:1"),
            (merged(good, {"image": {"repository": "https://registry.example.com/x"}}), "without https://"),
            (merged(good, {"image": {"tag": 1.10}}), "--set-string image.tag"),
            (
                merged(good, {"config": {"ENV0_S3_LOG_MAX_INFLIGHT_BYTES": "128MiB"}}),
                "resources.limits.memory=256Mi: the daemon may need 313 MiB",
            ),
            (merged(good, {"resources": {"limits": {"memory": "64Mi"}}}), "resources.limits.memory=64Mi"),
            ({"config": CONFIG, "apiKeySecret": "key", "resources": {"limits": {"memory": "64Mi"}}}, "may need 77 MiB"),
            ({"ingestTokensSecret": "tokens", "config": {"ENV0_S3_LOG_AWS_REGION": "x"}}, "ENV0_S3_LOG_ROLE_ARN"),
            ({"config": CONFIG}, "apiKeySecret"),
            (merged(good, {"image": {"repository": ""}}), "image.repository: needed"),
            (merged(good, {"config": {"ENV0_S3_LOG_AWS_REGION": "Ireland"}}), "ENV0_S3_LOG_AWS_REGION=Ireland: expected a region's code"),
            (merged(good, {"config": {"ENV0_S3_LOG_AWS_REGION": "eu-west-1a"}}), "ENV0_S3_LOG_AWS_REGION=eu-west-1a"),
            (merged(good, {"config": {"ENV0_S3_LOG_BUCKET_NAME": "s3://logs"}}), "ENV0_S3_LOG_BUCKET_NAME=s3://logs"),
            (merged(good, {"config": {"ENV0_S3_LOG_ROLE_ARN": "env0-logs"}}), "ENV0_S3_LOG_ROLE_ARN=env0-logs"),
            (
                {"config": CONFIG | {"ENV0_S3_LOG_PULL": "none"}, "apiKeySecret": "key"},
                "apiKeySecret and config.ENV0_S3_LOG_PULL=none",
            ),
            (merged(good, {"podToken": {"enabled": True}, "oidcTokenSecret": "oidc"}), "podToken.enabled and oidcTokenSecret"),
            (
                merged(good, {"tls": {"secretName": "tls", "certManager": {"enabled": True, "issuer": "ca"}}}),
                "tls.secretName and tls.certManager.enabled: a port has one certificate",
            ),
            (
                merged(good, {"config": {"HTTPS_PROXY": "http://user:CANARY@proxy.example.com:3128/"}}),
                "--set 'networkPolicy.egress.ports={443,3128}'",
            ),
            (merged(good, {"networkPolicy": {"egress": {"ports": [80]}}}), "--set 'networkPolicy.egress.ports={80,443}'"),
            (merged(good, {"config": {"HTTP_PROXY": "proxy"}}), "port 80, which config.HTTP_PROXY names"),
            (merged(good, {"config": {"AWS_ENDPOINT_URL_S3": "https://store.example.com:9000"}}), "port 9000, which config.AWS_ENDPOINT"),
            (
                merged(good, {"serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": CONFIG["ENV0_S3_LOG_ROLE_ARN"]}}}),
                "the daemon doesn't use IRSA",
            ),
            (merged(good, {"extraVolumes": [{"name": "spool", "emptyDir": {}}]}), "a volume spool of its own"),
            (merged(good, {"extraVolumeMounts": [{"name": "ca", "mountPath": "/ca"}]}), "extraVolumes has no volume ca"),
            (merged(good, {"storage": {"size": "10Gi"}}), "storage.size=10Gi"),
            (merged(good, {"storage": {"size": "10G"}}), "ENV0_S3_LOG_SPOOL_MAX_BYTES=10GiB"),
            (merged(good, {"config": {"ENV0_S3_LOG_SPOOL_MAX_BYTES": "17gib"}}), "storage.size=16Gi"),
            (merged(good, {"config": {"ENV0_S3_LOG_SPOOL_MAX_BYTES": "20000000000"}}), "storage.size=16Gi"),
            (merged(good, {"drain": ["spool-env0-s3-logs-push-1"]}), "podToken"),
            (
                merged(good, {"replicas": 2, "oidcTokenSecret": "oidc", "drain": ["spool-env0-s3-logs-push-1"]}),
                "drain: spool-env0-s3-logs-push-1 is the volume of a pod that this release runs",
            ),
            (
                {"config": CONFIG, "apiKeySecret": "key", "oidcTokenSecret": "oidc", "drain": ["spool-env0-s3-logs-pull-0"]},
                "drain: spool-env0-s3-logs-pull-0 is the volume of a pod that this release runs",
            ),
            (merged(good, {"resources": {"requests": {"memory": "1Gi"}}}), "resources.requests.memory=1Gi: above resources.limits.memory=256Mi"),
            (
                merged(good, {"config": {
                    "ENV0_CLOUDWATCH_ROLE_ARN": CONFIG["ENV0_S3_LOG_ROLE_ARN"], "ENV0_CLOUDWATCH_AWS_REGION": "cn-north-1",
                }}),
                "config.ENV0_CLOUDWATCH_AWS_REGION=cn-north-1: expected a region of aws, where config.ENV0_CLOUDWATCH_ROLE_ARN is from",
            ),
            (merged(good, {"image": {"tag": 20261130}}), "image.tag=20261130: a number"),
            (audits(allowedCidrs=["0.0.0.0/0"]), "nearly everybody"),
            (audits(allowedCidrs=["0.0.0.0/1", "128.0.0.0/1"]), "audits.allowedCidrs: 128.0.0.0/1; expected a network"),
            (audits(allowedCidrs=["192.0.2.0/33"]), "audits.allowedCidrs: 192.0.2.0/33"),
            (audits(allowedCidrs=["999.0.2.1/32"]), "audits.allowedCidrs: 999.0.2.1/32"),
            (audits(allowedCidrs=["2001:db8::/129"]), "audits.allowedCidrs: 2001:db8::/129"),
            (audits(controller="aws-load-balancer-controller"), "audits.className=nginx with aws-load-balancer-controller"),
            (audits(className="alb"), "audits.className=alb with ingress-nginx"),
            (
                audits(annotations={"nginx.ingress.kubernetes.io/whitelist-source-range": "0.0.0.0/0"}),
                "whitelist-source-range is made from audits.allowedCidrs",
            ),
            (
                merged(good, {"networkPolicy": {"senders": [{"ipBlock": {"cidr": "10.0.0.1"}}]}}),
                "networkPolicy.senders: ipBlock.cidr 10.0.0.1 is an address; expected a network, which for one address is 10.0.0.1/32",
            ),
            (
                merged(good, {"resources": {"limits": {"memory": "256m"}}}),
                "resources.limits.memory=256m: m is a thousandth of a byte to Kubernetes; expected 256Mi",
            ),
            (
                merged(good, {"config": {"ENV0_S3_LOG_BUCKET_NAME": "acme.s3.amazonaws.com"}}),
                "ENV0_S3_LOG_BUCKET_NAME=acme.s3.amazonaws.com: expected a bucket's name alone",
            ),
            (
                merged(good, {"config": {"ENV0_S3_LOG_BUCKET_PATH": "prod # the prefix"}}),
                "config.ENV0_S3_LOG_BUCKET_PATH: expected a value without a comment behind it",
            ),
            (audits(allowedCidrs=["192.0.2.7"]), "for one address is 192.0.2.7/32"),
            (audits(allowedCidrs=["2001:db8::1"]), "2001:db8::1/128"),
            (audits(controller="traefik"), "controller"),
            (audits(controller="aws-load-balancer-controller"), "audits.from"),
            (audits(host=""), "host"),
            (audits(tlsSecretName=""), "tlsSecretName"),
            (merged(audits(), {"ingestTokensSecret": "", "apiKeySecret": "key"}), "ingestTokensSecret"),
        ):
            outcome = helm("template", "env0-s3-logs", CHART, values=values)
            self.assertNotEqual(outcome.returncode, 0, values)
            self.assertIn(word, outcome.stderr)
            self.assertNotIn("CANARY", outcome.stderr)

    def test_a_release_whose_name_no_service_can_have_is_refused_before_anything_is_made(self):
        good = {"config": CONFIG, "ingestTokensSecret": "tokens"}
        for name, code in (("2nd-org", 1), ("env0.s3-logs", 1), ("env0-2nd-org", 0)):
            outcome = helm("template", name, CHART, values=good)
            self.assertEqual(outcome.returncode, code, outcome.stderr)
            self.assertIs(f"release {name}: its Service has this name" in outcome.stderr, code == 1, outcome.stderr)

    def test_a_port_is_not_asked_for_where_nothing_goes_there(self):
        good = {"config": CONFIG, "ingestTokensSecret": "tokens"}
        store = {"AWS_ENDPOINT_URL": "http://store.example.com:9000"}
        proxy = {"HTTPS_PROXY": "http://proxy.example.com:3128"}
        for config, ports in ((store, [9000]), (proxy, [3128])):
            values = merged(good, {"config": config, "networkPolicy": {"egress": {"ports": ports}}})
            outcome = helm("template", "env0-s3-logs", CHART, values=values)
            self.assertEqual(outcome.returncode, 0, outcome.stderr)

    def test_all_that_is_wrong_is_told_at_once_and_not_as_if_a_test_had_failed(self):
        forms = {"foo": 1, "replicas": 1.5, "resources": {"limits": {"memory": "256MB"}}}
        meanings = {"config": {"ENV0_S3_LOG_AWS_REGION": "Ireland"}, "storage": {"size": "1Gi"}, "image": {"repository": ""}}
        for wrong, words in (
            (forms, ("foo: no such value", "replicas=1.5: expected", "resources.limits.memory=256MB: expected a quantity")),
            (meanings, ("ENV0_S3_LOG_AWS_REGION=Ireland", "storage.size=1Gi", "image.repository: needed", "_ROLE_ARN: needed")),
        ):
            outcome = helm("template", "env0-s3-logs", CHART, values=merged({"ingestTokensSecret": "tokens"}, wrong))
            self.assertNotEqual(outcome.returncode, 0, wrong)
            for said in words:
                self.assertIn(said, outcome.stderr)
            self.assertIn("templates/values/judged.yaml", outcome.stderr)

    def test_a_value_of_another_form_is_refused_in_a_sentence_that_says_the_form(self):
        good = {"config": CONFIG, "ingestTokensSecret": "tokens"}
        config = lambda **more: {"config": more}
        for change, said in (
            ({"apikeySecret": "k"}, "apikeySecret: no such value; did you mean apiKeySecret?"),
            ({"drian": []}, "drian: no such value; did you mean drain?"),
            ({"tls": {"secretnam": "k"}}, "tls.secretnam: no such value; did you mean tls.secretName?"),
            ({"storage": {"class": "gp3"}}, "storage.class: no such value; did you mean storage.className?"),
            ({"foo": "x"}, "foo: no such value; expected one of affinity, apiKeySecret, "),
            ({"ENV0_S3_LOG_BUCKET_NAME": "x"}, "expected config.ENV0_S3_LOG_BUCKET_NAME"),
            (config(ENV0_S3_LOG_BATCH_MAX_AEG="1m"), "did you mean ENV0_S3_LOG_BATCH_MAX_AGE?"),
            (config(BUCKET_PATH="x"), "config.BUCKET_PATH: the daemon has no such variable; did you mean ENV0_S3_LOG_BUCKET_PATH?"),
            (config(FOO="x"), "config.FOO: the daemon has no such variable; README.md#variables lists them"),
            (config(ENV0_API_KEY_SECRT="x"), "If ENV0_API_KEY_SECRET was meant: the API key is a Secret."),
            (
                config(ENV0_S3_LOG_PULL=["x"]),
                "config.ENV0_S3_LOG_PULL: expected text, a whole number, or true or false; of several one text with commas, such as env0-audits",
            ),
            (
                {"variables": {"sensitive": False, "type": ["object", {}], "value": CONFIG}},
                "variables: an output of Terraform's; make the file of values by: terraform -chdir=config/aws/terraform output -json variables",
            ),
            ({"auditor_policy_arn": {"sensitive": False, "type": "string", "value": None}}, "auditor_policy_arn: an output of Terraform's"),
            (
                {"networkPolicy": {"senders": [{"podSelector": {"app": "x"}}]}},
                "networkPolicy.senders[0].podSelector.app: no such value; expected one of matchExpressions, matchLabels",
            ),
            ({"audits": {"from": [{"ipBlock": {"cdir": "10.0.0.0/8"}}]}}, "audits.from[0].ipBlock.cdir: no such value; did you mean"),
            ({"storage": {"className": "-"}}, "storage.className=-: expected the name of a StorageClass"),
            ({"storage": {"className": "GP3"}}, "storage.className=GP3: expected the name of a StorageClass"),
            ({"monitoring": {"runbooks": "example.com"}}, "monitoring.runbooks=example.com: expected a URL that ends in /"),
            ({"config": "x"}, "config=x: expected a map of the daemon's variables"),
            ({"storage": {"size": "10GB"}}, "storage.size=10GB: expected a size as Kubernetes writes it, such as 16Gi"),
            ({"resources": {"requests": {"memory": "64MiB"}}}, "resources.requests.memory=64MiB: expected a quantity as Kubernetes"),
            ({"affinity": {"podAntiaffinity": {}}}, "affinity.podAntiaffinity: no such value; did you mean affinity.podAntiAffinity?"),
            ({"tolerations": [{"key": "a", "op": "Exists"}]}, "tolerations[0].op: no such value"),
            ({"tolerations": [{"key": "a", "operator": "exists"}]}, "tolerations[0].operator=exists: expected Exists or Equal"),
            ({"extraVolumes": ["ca"]}, "extraVolumes[0]=ca: expected a map with a name"),
            ({"priorityClassName": True}, "expected text: in quotes, or with --set-string priorityClassName=true"),
            ({"drain": "claim-0"}, "drain=claim-0: expected a list: drain: [claim-0] in a file, --set 'drain={claim-0}'"),
            ({"podToken": True}, "podToken=true: expected podToken.enabled=true"),
            ({"podToken": {"enabled": "true"}}, "podToken.enabled=true: expected true or false, without quotes around it"),
            ({"podToken": {"expirationSeconds": 60}}, "podToken.expirationSeconds=60: expected a whole number of seconds, 600"),
            ({"image": "registry.example.com/x"}, "expected a map of digest, pullPolicy, repository, tag"),
            ({"image": {"digest": "abc"}}, "image.digest=abc: expected sha256: and 64 digits"),
            ({"image": {"pullPolicy": "always"}}, "image.pullPolicy=always: expected Always or IfNotPresent or Never"),
            ({"imagePullSecrets": ["registry"]}, "imagePullSecrets[0]=registry: expected a map, such as {name: my-registry}"),
            ({"networkPolicy": {"egress": {"ports": [0]}}}, "networkPolicy.egress.ports[0]=0: expected a port from 1 to 65535"),
            ({"replicas": 1.5}, "replicas=1.5: expected a whole number of pods"),
            ({"apiKeySecret": "a-secret-0123456789-CANARY"}, "apiKeySecret: expected the name of a Secret"),
            (merged({"audits": AUDITS}, {"audits": {"allowedCidrs": []}}), "env0's are on https://docs.envzero.com/"),
            ({"tls": {"certManager": {"enabled": True}}}, "tls.certManager.issuer: needed with tls.certManager.enabled=true"),
            ({"ingestTokensSecret": "", "apiKeySecret": "key", "tls": {"secretName": "foo"}}, "tls.secretName: no pod takes events"),
        ):
            # As a file of values has it: `image` as text would be filled in else.
            values = merged({"image": {"repository": "env0-s3-logs"}}, good, {k: v for k, v in change.items() if isinstance(v, dict)})
            values |= {key: value for key, value in change.items() if not isinstance(value, dict)}
            outcome = subprocess.run(
                ["helm", "template", "env0-s3-logs", CHART, "-f", "-"],
                input=json.dumps(values), capture_output=True, text=True, timeout=60,
            )
            with self.subTest(said):
                self.assertNotEqual(outcome.returncode, 0)
                self.assertIn(said, outcome.stderr)
                self.assertNotIn("CANARY", outcome.stderr)
                self.assertNotIn("error calling include", outcome.stderr)

    def test_a_key_with_nothing_behind_it_is_refused_where_nothing_would_open_a_door_or_stop_the_chart(self):
        good = {"image": {"repository": "env0-s3-logs"}, "config": CONFIG, "ingestTokensSecret": "tokens", "audits": AUDITS}
        peers = "expected a list of one or more peers, each a podSelector, namespaceSelector or ipBlock (an empty one lets everybody in)"
        pods = lambda peer: {"networkPolicy": {"senders": [peer]}}
        for change, said in (
            ({"networkPolicy": {"senders": None}}, f"networkPolicy.senders: empty: {peers}; leave the key out, too, for the chart's default"),
            ({"networkPolicy": {"senders": []}}, f"networkPolicy.senders: {peers}"),
            ({"networkPolicy": {"scrapers": None}}, f"networkPolicy.scrapers: empty: {peers}"),
            ({"audits": {"from": None}}, f"audits.from: empty: {peers}"),
            ({"networkPolicy": {"egress": {"ports": None}}}, "networkPolicy.egress.ports: empty: expected a list of one or more ports"),
            ({"networkPolicy": {"enabled": None}}, "networkPolicy.enabled: empty: expected true or false"),
            ({"networkPolicy": {"egress": {"enabled": None}}}, "networkPolicy.egress.enabled: empty: expected true or false"),
            (pods({}), "networkPolicy.senders[0]: expected a map with a podSelector, namespaceSelector or ipBlock"),
            (pods(None), "networkPolicy.senders[0]: empty: expected a map with a podSelector"),
            (pods({"podSelector": None}), "networkPolicy.senders[0].podSelector: empty: expected a map of matchExpressions, matchLabels"),
            (pods({"podSelector": {"matchLabels": None}}), "senders[0].podSelector.matchLabels: empty: expected a map; leave the key out"),
            ({"resources": None}, "resources: empty: expected a map of limits, requests; leave the key out, too, for the chart's default"),
            ({"storage": {"size": None}}, "storage.size: empty: expected a size as Kubernetes writes it"),
            ({"image": {"pullPolicy": None}}, "image.pullPolicy: empty: expected Always or IfNotPresent or Never"),
            *(({key: None}, f"{key}: empty: expected a map of ") for key in ("image", "tls", "podToken", "serviceAccount", "networkPolicy")),
        ):
            outcome = subprocess.run(
                ["helm", "template", "env0-s3-logs", CHART, "-f", "-"],
                input=json.dumps(merged(good, change)), capture_output=True, text=True, timeout=60,
            )
            with self.subTest(change):
                self.assertNotEqual(outcome.returncode, 0)
                self.assertIn(said, outcome.stderr)
                self.assertNotIn("nil pointer", outcome.stderr)
        for empty in (
            {"affinity": None}, {"nodeSelector": None}, {"tolerations": None}, {"serviceAccount": {"annotations": None}},
            {"image": {"tag": None}}, {"monitoring": {"enabled": True, "runbooks": None}}, {"resources": {"limits": None}},
            {"podAnnotations": None}, {"drain": None}, {"extraVolumes": None},
        ):
            outcome = helm("template", "env0-s3-logs", CHART, values=merged(good, empty))
            with self.subTest(empty):
                self.assertEqual(outcome.returncode, 0, outcome.stderr)

    def test_a_value_is_refused_here_where_the_daemon_refuses_it_and_taken_where_it_takes_it(self):
        sizes = ("500000", "64MiB", "64 mib", "10GB", "64Mi", "1.5GiB", "0", "-1", "6GiB", "lots")
        organization = ORGANIZATION["ENV0_S3_LOG_OIDC_ORGANIZATION_ID"]
        texts = {
            "ENV0_S3_LOG_BATCH_MAX_AGE": ("1d", "24h", "2d", "500ms", "60", "60 s", "0s", "1w", "a minute", "1.5h"),
            "ENV0_S3_LOG_PULL_INTERVAL": ("5s", "1h", "61m"),
            "ENV0_S3_LOG_SESSION_DURATION": ("12h", "43200", "2d", "15m", "14m", "0"),
            "ENV0_S3_LOG_COMPRESSION": ("GZIP", "gz", "zst", "true"),
            "ENV0_S3_LOG_REDACT": ("true", "off", "1", "yes", "maybe", "disabled"),
            "ENV0_S3_LOG_ALLOW_HTTP": ("false", "never"),
            "ENV0_S3_LOG_DEFAULT_TYPE": ("env0-audits", "audits"),
            "ENV0_S3_LOG_LOG_FORMAT": ("text", "logfmt"),
            "ENV0_S3_LOG_LOG_LEVEL": ("debug", "WARN", "warning"),
            "ENV0_S3_LOG_PULL": ("env0-audits", "env0-audits, env0-deployments", "ENV0-AUDITS,", "audits", "all", "env0-audits env0-deployments"),
            "ENV0_S3_LOG_PULL_FROM": (
                "2026-01-01", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00.5+02:00", "01.01.2026", "2026-1-1",
                "2026-01-01T00:00:00", "2099-01-01", "2099-01-01T00:00:00Z", "yesterday", "30d", "2026-13-01", "1767225600",
            ),
            "ENV0_S3_LOG_OIDC_ORGANIZATION_ID": (organization, f"{organization}, {organization}", "acme", organization[:-1]),
            "ENV0_S3_LOG_MAX_CONNECTIONS": ("1024", "many", "1k"),
            "ENV0_S3_LOG_STORAGE_CLASS": ("STANDARD_IA", "standard", "GLACIER"),
            "ENV0_S3_LOG_EXPECTED_BUCKET_OWNER": ("111122223333", "11112222333"),
            "ENV0_S3_LOG_SSE_KMS_KEY_ID": ("alias/logs", "1234abcd-12ab-34cd-56ef-1234567890ab", "logs"),
            "ENV0_S3_LOG_AWS_REGION": ("eu-west-1", "us-gov-east-1", "eu-west-1a", "Ireland", "eu_west_1"),
            "ENV0_S3_LOG_BUCKET_NAME": ("my-env0-logs", "s3://my-env0-logs", "My-Logs", "my-env0-logs/path", "my.env0.logs", "my..logs", "my.-logs", "192.168.0.1"),
            **{f"ENV0_S3_LOG_{name}_BYTES": sizes for name in ("SPOOL_MAX", "BATCH_MAX", "MAX_BODY", "MAX_EVENT", "MAX_INFLIGHT")},
        }
        bounded = {variable: told(variable) for variable in variables() - NOT_CONFIG.keys()}
        self.assertGreater(sum(map(len, bounded.values())), 40, "the daemon's bounds were found")
        # A limit that leaves room for any of them, so that only their form is judged; 6GiB is none for a spool.
        room = {"resources": {"limits": {"memory": "64Gi"}}, "storage": {"size": "1Ti"}, "ingestTokensSecret": "tokens"}
        for variable in texts.keys() | bounded.keys():
            for text in (*texts.get(variable, ()), *bounded[variable]):
                config = CONFIG | {variable: text}
                outcome = daemon(config)
                chart = helm("template", "env0-s3-logs", CHART, values=merged(room, {"apiKeySecret": "key", "config": config}))
                with self.subTest(f"{variable}={text}"):
                    self.assertEqual(chart.returncode == 0, outcome.returncode == 0, chart.stderr + outcome.stderr)
                    self.assertEqual(f"config.{variable}={text}: expected " in chart.stderr, chart.returncode != 0)


if __name__ == "__main__":
    unittest.main()
