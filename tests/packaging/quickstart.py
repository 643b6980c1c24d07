"""The README's first command: what it prints can be done, and it leaves nothing behind. Needs its built example."""

import contextlib
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.request

import boto3

PROGRAM = pathlib.Path(sys.argv.pop(1)).resolve()
LAST_LINE = "curl -i -d "
FIVE_VARIABLES = [
    "ENV0_S3_LOG_ROLE_ARN",
    "ENV0_S3_LOG_BUCKET_NAME",
    "ENV0_S3_LOG_AWS_REGION",
    "ENV0_API_KEY_ID",
    "ENV0_API_KEY_SECRET",
]


def run(*arguments):
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=120)


class Quickstart(unittest.TestCase):
    def test_help_is_no_mistake_and_an_unknown_word_is_one(self):
        asked = run("--help")
        self.assertEqual((asked.returncode, asked.stderr), (0, ""))
        self.assertIn("--once", asked.stdout)
        self.assertEqual(run("--onec").returncode, 64)

    def test_a_reader_that_goes_away_is_no_failure(self):
        for lines in (1, 20):
            command = f"{shlex.quote(str(PROGRAM))} | head -n {lines} >/dev/null"
            outcome = subprocess.run(
                ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=120
            )
            self.assertEqual((outcome.returncode, outcome.stderr), (0, ""))

    def test_what_it_prints_can_be_done_until_it_is_stopped(self):
        with tempfile.TemporaryDirectory() as folder:
            program = subprocess.Popen(
                [PROGRAM], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": folder}
            )
            printed = []
            try:
                for line in program.stdout:
                    printed.append(line.strip())
                    if line.strip().startswith(LAST_LINE):
                        break
                pushed_to, puller = [line for line in printed if re.fullmatch(r"http://127\.0\.0\.1:\d+/", line)]
                for page in (pushed_to, puller):
                    self.assertIn("<html", urllib.request.urlopen(page, timeout=10).read().decode())
                status = json.load(urllib.request.urlopen(f"{puller}status", timeout=10))
                self.assertEqual({pull["type"] for pull in status["pull"]}, {"env0-audits", "env0-deployments"})
                self.assertEqual(sum(pull["events_pulled"] for pull in status["pull"]), 12 + 40 + 1)

                start = printed.index("This is all that you set:") + 1
                names = [line.split("=")[0] for line in printed[start : start + 6]]
                self.assertEqual(names, [*FIVE_VARIABLES, ""])

                curl = next(line for line in printed if line.startswith("curl "))
                answer = subprocess.run(["sh", "-c", f"{curl} -sS --fail"], capture_output=True, text=True, timeout=30)
                self.assertIn('"accepted":1', answer.stdout, answer.stderr)

                words = shlex.split(next(line for line in printed if line.startswith("AWS_ACCESS_KEY_ID=")))
                aws = dict(word.split("=", 1) for word in words if word.startswith("AWS_"))
                store = boto3.client(
                    "s3",
                    endpoint_url=words[words.index("--endpoint-url") + 1],
                    region_name=aws["AWS_REGION"],
                    aws_access_key_id=aws["AWS_ACCESS_KEY_ID"],
                    aws_secret_access_key=aws["AWS_SECRET_ACCESS_KEY"],
                )
                bucket = next(word for word in words if word.startswith("s3://"))[len("s3://") :]
                holds = lambda text: any(text in body for body in bodies(store, bucket))
                wait_until(lambda: holds('{"message":"hello"}'), "the event is in the bucket")

                with daemon_of_ones_own(printed, folder) as lines:
                    script = "\n".join(f"{line} -sS" if line.startswith("curl ") else line for line in lines)
                    outcome = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, timeout=60)
                    codes = re.findall(r"^HTTP/1.1 (\d+)", outcome.stdout, re.M)
                    self.assertEqual(codes, ["204", "200"], outcome.stdout + outcome.stderr)
                    wait_until(lambda: holds('{"message":"pushed"}'), "the pushed event is in the bucket")
            finally:
                program.send_signal(signal.SIGINT)
                rest, _ = program.communicate(timeout=60)
            self.assertEqual(program.returncode, 0)
            self.assertIn("Nothing was left behind", rest)
            self.assertEqual(os.listdir(folder), [])
            with self.assertRaises(urllib.error.URLError):
                urllib.request.urlopen(page, timeout=10)


@contextlib.contextmanager
def daemon_of_ones_own(printed, folder):
    """Starts what the last `env` line starts, on free ports; the lines below it are what it yields."""
    with socket.socket() as one, socket.socket() as other:
        listen, admin = [held.bind(("127.0.0.1", 0)) or f"127.0.0.1:{held.getsockname()[1]}" for held in (one, other)]
    start = max(number for number, line in enumerate(printed) if line.startswith("env "))
    text = "\n".join(printed[start:]).replace("127.0.0.1:8080", listen).replace("127.0.0.1:9091", admin)
    command, *lines = [line for line in text.splitlines() if line.startswith(("env ", "ENV0_", "curl "))]
    with tempfile.TemporaryFile() as log:
        environment = {**os.environ, "ENV0_S3_LOG_LISTEN_ADDR": listen}
        daemon = subprocess.Popen(["sh", "-c", f"exec {command}"], env=environment, stderr=log)
        try:
            wait_until(lambda: daemon.poll() is not None or answers(f"http://{admin}/readyz"), "it is ready")
            yield lines
        finally:
            daemon.terminate()
            daemon.wait(60)
            shutil.rmtree(pathlib.Path(folder, "env0-s3-logs-trial-push"))


def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=10).status == 200
    except urllib.error.URLError:
        return False


def wait_until(holds, what):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.1)


def bodies(store, bucket):
    for item in store.list_objects_v2(Bucket=bucket).get("Contents", []):
        yield store.get_object(Bucket=bucket, Key=item["Key"])["Body"].read().decode()


if __name__ == "__main__":
    unittest.main()
