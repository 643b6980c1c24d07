"""Both compose files: what they say is done, without a container engine. The daemon runs with exactly the environment that
a container would have; moto stands for the trial's stand-in of AWS."""

import base64
import contextlib
import json
import pathlib
import re
import shlex
import subprocess
import tempfile
import unittest

import boto3
import yaml

from aws import moto, wait_for
from live import BINARY, ROOT, free_port, wait_until_ready

CONFIG = ROOT / "config"


def file(name):
    text = (CONFIG / name).read_text()
    # The commands are the indented lines of the comment at the top.
    comment = re.match(r"(?:#.*\n)+", text)[0].replace("\\\n#", " ")
    commands = re.findall(r"^#   (\S.*?)(?:  +#.*)?$", comment, re.M)
    return yaml.safe_load(text), [shlex.split(command) for command in commands]


def image_environment():
    """What the image sets, with other ports: both files' may be taken here."""
    image = (ROOT / "Dockerfile").read_text()
    names = re.findall(r"\b(ENV0_S3_LOG_[A-Z_]+)=0\.0\.0\.0:\d+", image)
    assert sorted(names) == ["ENV0_S3_LOG_ADMIN_ADDR", "ENV0_S3_LOG_LISTEN_ADDR"], names
    return {name: f"127.0.0.1:{free_port()}" for name in names}


def env_file(path):
    """As compose reads one: NAME=value a line, and lines that begin with # are none."""
    lines = (line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def port(address):
    return int(address.rsplit(":", 1)[1])


@contextlib.contextmanager
def daemon(folder, environment):
    """Runs it with nothing else in its environment but a spool in `folder`."""
    image = image_environment()
    log = folder / "daemon.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [BINARY], env={**image, **environment, "ENV0_S3_LOG_SPOOL_DIR": str(folder / "spool")}, stderr=output
        )
    try:
        wait_until_ready(process, log, port(image["ENV0_S3_LOG_ADMIN_ADDR"]))
        yield port(image["ENV0_S3_LOG_LISTEN_ADDR"]), log
    finally:
        process.terminate()
        process.wait(60)


class Compose(unittest.TestCase):
    def test_both_hold_the_daemon_alike_and_keep_their_volumes_apart(self):
        (own, _), (trial, _) = file("compose.yaml"), file("compose.trial.yaml")
        differ = {"environment", "env_file", "depends_on"}
        services = [{k: v for k, v in f["services"]["daemon"].items() if k not in differ} for f in (own, trial)]
        self.assertEqual(services[0], services[1])
        self.assertNotEqual(own["name"], trial["name"])
        self.assertEqual(list(own["services"]), ["daemon"])

    def test_nothing_of_the_trial_is_in_the_file_for_ones_own_bucket(self):
        text = (CONFIG / "compose.yaml").read_text()
        own, _ = file("compose.yaml")
        # What would shut the container's ports, whatever daemon.env says.
        addresses = {"ENV0_S3_LOG_LISTEN_ADDR": "0.0.0.0:8080", "ENV0_S3_LOG_ADMIN_ADDR": "0.0.0.0:9090"}
        self.assertEqual(own["services"]["daemon"]["environment"], addresses)
        self.assertNotRegex(text, r"4566|AWS_ENDPOINT|ALLOW_HTTP|FORCE_PATH|-for-this-trial|ministack")

    def test_each_command_names_files_and_services_that_are_there(self):
        for name in ("compose.yaml", "compose.trial.yaml"):
            parsed, commands = file(name)
            self.assertTrue(commands)
            for command in commands:
                if command[:2] == ["docker", "compose"]:
                    self.assertEqual(command[2:4], ["-f", f"config/{name}"])
                    for word in ("run", "exec"):
                        if word in command:
                            service = next(w for w in command[command.index(word) + 1 :] if not w.startswith("-"))
                            self.assertIn(service, parsed["services"])
                for path in (word.lstrip("@") for word in command if re.match(r"@?(config|tests)/", word)):
                    self.assertTrue((ROOT / path).exists() or command[0] == "cp" and path == command[-1], path)

    def test_ones_own_bucket_starts_with_the_environment_that_its_commands_make(self):
        own, commands = file("compose.yaml")
        (copy,) = (command for command in commands if command[0] == "cp")
        self.assertEqual(copy[2], f"config/{own['services']['daemon']['env_file']}")
        ignored = subprocess.run(["git", "check-ignore", "-q", copy[2]], cwd=ROOT, timeout=30)
        self.assertEqual(ignored.returncode, 0, "a file with secrets could be committed")
        # One of the two ways that the file's head tells.
        environment = env_file(ROOT / copy[1]) | {"ENV0_S3_LOG_OIDC_ORGANIZATION_ID": "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9"}
        with tempfile.TemporaryDirectory() as folder:
            with daemon(pathlib.Path(folder), environment) as (_, log):
                self.assertNotIn("unknown", log.read_text())

    def test_the_trial_delivers_by_the_command_that_it_gives(self):
        trial, commands = file("compose.trial.yaml")
        services = trial["services"]
        environment = services["daemon"]["environment"]
        claims = environment["ENV0_OIDC_TOKEN"].split(".")[1]
        issuer = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["iss"]
        self.assertEqual(environment["ENV0_S3_LOG_OIDC_ISSUER"], issuer, "else check calls the token foreign")
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            with moto(folder) as aws:
                here = f"http://127.0.0.1:{aws}"
                environment = {k: str(v).replace("http://aws:4566", here) for k, v in environment.items()}
                made = services["bucket"]["command"].replace("http://aws:4566", here)
                subprocess.run(["curl", *shlex.split(made)], check=True, capture_output=True, timeout=60)
                with daemon(folder, environment) as (ingest, _):
                    (curl,) = (command for command in commands if command[0] == "curl")
                    words = [word.replace("127.0.0.1:8080", f"127.0.0.1:{ingest}") for word in curl]
                    answer = subprocess.run([*words, "-sS", "--fail"], cwd=ROOT, capture_output=True, text=True, timeout=60)
                    self.assertIn('"accepted":584', answer.stdout, answer.stderr)
                    store = boto3.client(
                        "s3", endpoint_url=here, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
                    )
                    bucket = environment["ENV0_S3_LOG_BUCKET_NAME"]
                    (item,) = wait_for("the object", lambda: store.list_objects_v2(Bucket=bucket).get("Contents"))
                    body = store.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
                    self.assertEqual(body, (ROOT / "tests/fixtures/deployment-events.ndjson").read_bytes())


if __name__ == "__main__":
    unittest.main()
