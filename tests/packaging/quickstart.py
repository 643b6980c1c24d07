"""The README's first command: what it prints can be done, and it leaves nothing behind. Needs its built example."""

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.request

import boto3

PROGRAM = pathlib.Path(sys.argv.pop(1)).resolve()
LAST_HEADING = "Read, "
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
                    if len(printed) > 1 and printed[-2].startswith(LAST_HEADING):
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

                words = shlex.split(printed[-1])
                aws = dict(word.split("=", 1) for word in words if word.startswith("AWS_"))
                store = boto3.client(
                    "s3",
                    endpoint_url=words[words.index("--endpoint-url") + 1],
                    region_name=aws["AWS_REGION"],
                    aws_access_key_id=aws["AWS_ACCESS_KEY_ID"],
                    aws_secret_access_key=aws["AWS_SECRET_ACCESS_KEY"],
                )
                bucket = next(word for word in words if word.startswith("s3://"))[len("s3://") :]
                deadline = time.monotonic() + 60
                while not any('{"message":"hello"}' in body for body in bodies(store, bucket)):
                    self.assertLess(time.monotonic(), deadline, "the event is not in the bucket")
                    time.sleep(0.1)
            finally:
                program.send_signal(signal.SIGINT)
                rest, _ = program.communicate(timeout=60)
            self.assertEqual(program.returncode, 0)
            self.assertIn("Nothing was left behind", rest)
            self.assertEqual(os.listdir(folder), [])
            with self.assertRaises(urllib.error.URLError):
                urllib.request.urlopen(page, timeout=10)


def bodies(store, bucket):
    for item in store.list_objects_v2(Bucket=bucket).get("Contents", []):
        yield store.get_object(Bucket=bucket, Key=item["Key"])["Body"].read().decode()


if __name__ == "__main__":
    unittest.main()
