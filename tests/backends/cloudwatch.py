"""The released binary against moto's S3, STS and CloudWatch Logs: killed again and again, every event ends once in S3 and
at least once in its log group, with its own timestamp."""

import contextlib
import datetime
import http.client
import json
import pathlib
import random
import signal
import sys
import tempfile
import threading
import time

from common import (
    AUDIT_TOKEN,
    BUCKET,
    REGION,
    Daemon,
    Issuer,
    check,
    client,
    free_port,
    process,
    request,
    wait_for,
)

# In the account of those who bring any key: moto keeps the log groups of each account apart.
CLOUDWATCH_ROLE_ARN = "arn:aws:iam::123456789012:role/env0-cloudwatch"
GROUP_PREFIX = "team/"
# Seconds from the first event of a life to its end: before, at and after the age at which a batch is sealed.
KILLED_AFTER_SECONDS = (0.05, 0.6, 1.1, 1.4, 2.2)
TINY_EVENTS = 10_000
# The most that CloudWatch takes as one event's message, and the daemon as one event.
MESSAGE_MAX_BYTES = 1_048_576 - 26
EVENT_MAX_BYTES = 1 << 20
EPOCH = datetime.datetime.fromtimestamp(0, datetime.timezone.utc)


def start(stack, folder):
    """Starts the server and makes the bucket; returns the port."""
    port = free_port()
    stack.enter_context(
        process(
            [str(pathlib.Path(sys.executable).with_name("moto_server")), "-p", str(port)],
            folder / "moto.log",
            lambda: request(port, "GET", "/moto-api/")[0] == 200,
            cwd=folder,
        )
    )
    client(port, "s3", "any", "any").create_bucket(Bucket=BUCKET)
    return port


class Events:
    """Makes events, each with a number of its own and a time of its own, and remembers what was acknowledged."""

    def __init__(self):
        self.made = {}
        self.acknowledged = set()
        self.number = 0

    def make(self, log_type, moment, bytes_wanted=0):
        self.number += 1
        event = {"number": self.number, "timestamp": moment.isoformat(timespec="milliseconds"), "message": ""}
        missing = bytes_wanted - len(json.dumps(event))
        event["message"] = "x" * missing if missing > 0 else "tiny"
        line = json.dumps(event)
        self.made[self.number] = (log_type, (moment - EPOCH) // datetime.timedelta(milliseconds=1), line)
        return self.number

    def send(self, daemon, log_type, numbers):
        """True where the daemon acknowledged them. One that was killed may have stored them all the same."""
        body = b"".join(self.made[number][2].encode() + b"\n" for number in numbers)
        try:
            status, _ = request(
                daemon.ingest_port, "POST", f"/v1/logs/{log_type}", body, {"Authorization": f"Bearer {daemon.tokens[log_type]}"}
            )
        except (OSError, http.client.HTTPException):
            return False
        if status == 200:
            self.acknowledged.update(numbers)
        return status == 200


def stored_in_s3(s3):
    """How often each number is in the bucket, and its line."""
    counts, lines = {}, {}
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for item in page.get("Contents", []):
            body = s3.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read()
            for line in body.decode().splitlines():
                number = json.loads(line)["number"]
                counts[number] = counts.get(number, 0) + 1
                lines[number] = line
    return counts, lines


def in_group(logs, log_type):
    """Every (timestamp, message) of a log group, and its streams' names."""
    group = GROUP_PREFIX + log_type
    streams = [stream["logStreamName"] for stream in logs.describe_log_streams(logGroupName=group)["logStreams"]]
    events = []
    for stream in streams:
        token = None
        while True:
            more = {"nextToken": token} if token else {}
            page = logs.get_log_events(logGroupName=group, logStreamName=stream, startFromHead=True, limit=2_000, **more)
            events += [(event["timestamp"], event["message"]) for event in page["events"]]
            if not page["events"] or page["nextForwardToken"] == token:
                break
            token = page["nextForwardToken"]
    return events, streams


def compare(events, s3, logs):
    counts, lines = stored_in_s3(s3)
    twice = {number: count for number, count in counts.items() if count != 1}
    check(not twice, f"not exactly once in S3: {twice}")
    lost = events.acknowledged - set(counts)
    check(not lost, f"acknowledged and not in S3: {sorted(lost)[:10]} of {len(lost)}")
    doubled = 0
    for log_type in ("env0-deployments", "env0-audits"):
        logged, streams = in_group(logs, log_type)
        check(len(streams) == 1 and streams[0].startswith("env0-s3-logs-"), f"{log_type} has the streams {streams}")
        expected = {number for number in counts if events.made[number][0] == log_type}
        seen = {}
        for timestamp, message in logged:
            number = int(message.split('"number":', 1)[1].split(",", 1)[0])
            _, moment, _ = events.made[number]
            check(timestamp == moment, f"{log_type} {number} has the time {timestamp}, not {moment}")
            whole = lines[number]
            if len(whole) > MESSAGE_MAX_BYTES:
                kept, marker, rest = message.partition(" [cut by env0-s3-logs")
                check(marker and whole.startswith(kept), f"{log_type} {number} is cut without a marker")
                check(len(message.encode()) <= MESSAGE_MAX_BYTES, f"{log_type} {number} has {len(message)} bytes")
                check(f"/{log_type}/" in rest, f"the marker names no object: {rest}")
            else:
                check(message == whole, f"{log_type} {number} differs:\n S3  {whole[:200]}\n CW  {message[:200]}")
            seen[number] = seen.get(number, 0) + 1
        check(set(seen) == expected, f"{log_type}: in S3 and not in CloudWatch, or the reverse: {sorted(set(seen) ^ expected)[:10]}")
        doubled += sum(count - 1 for count in seen.values())
    return len(counts), doubled


def run(stack, folder):
    port = start(stack, folder)
    url = f"http://127.0.0.1:{port}"
    issuer = Issuer(stack)
    more = {
        "ENV0_OIDC_TOKEN": issuer.token(),
        "ENV0_CLOUDWATCH_ROLE_ARN": CLOUDWATCH_ROLE_ARN,
        "ENV0_CLOUDWATCH_AWS_REGION": REGION,
        "ENV0_CLOUDWATCH_LOG_GROUP_NAME_PREFIX": GROUP_PREFIX,
        "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS": url,
    }
    events = Events()
    now = datetime.datetime.now(datetime.timezone.utc)
    # Four hours on either side of two midnights.
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    minutes = [-1440 * day + minute for day in (2, 1) for minute in range(-240, 240, 3)]
    days = [midnight + datetime.timedelta(minutes=minute) for minute in minutes]
    tiny = [events.make("env0-deployments", now - datetime.timedelta(milliseconds=number)) for number in range(TINY_EVENTS)]
    parts = [("env0-deployments", tiny[at : at + 500]) for at in range(0, len(tiny), 500)]
    for size in (EVENT_MAX_BYTES, EVENT_MAX_BYTES - 1, MESSAGE_MAX_BYTES, MESSAGE_MAX_BYTES - 1):
        parts += [(log_type, [events.make(log_type, now, size)]) for log_type in ("env0-deployments", "env0-audits")]
    shuffled = random.Random(7).sample(days, len(days))
    for at in range(0, len(shuffled), 40):
        for log_type in ("env0-deployments", "env0-audits"):
            parts.append((log_type, [events.make(log_type, moment) for moment in shuffled[at : at + 40]]))
    random.Random(11).shuffle(parts)

    lives = len(KILLED_AFTER_SECONDS) + 1
    for life in range(lives):
        daemon = Daemon(stack, folder, issuer, url, url, **more)
        daemon.tokens = {"env0-deployments": issuer.token(), "env0-audits": AUDIT_TOKEN}
        share = parts[life::lives]
        sending = threading.Thread(target=lambda: [events.send(daemon, *part) for part in share])
        sending.start()
        if life < lives - 1:
            time.sleep(KILLED_AFTER_SECONDS[life])
            daemon.process.send_signal(signal.SIGKILL)
            daemon.process.wait()
        sending.join()
    check(all(number in events.acknowledged for part in share for number in part[1]), "a life without a kill refused events")
    wait_for("S3 to have it all", lambda: daemon.spooled() == 0)
    wait_for("CloudWatch to have it all", lambda: daemon.metric("cloudwatch_copies_bytes") == 0)
    check(daemon.metric("cloudwatch_skipped_events_total") == 0, "events were skipped")
    stored, doubled = compare(events, client(port, "s3", "any", "any"), client(port, "logs", "any", "any"))
    daemon.stop()
    print(f"  {lives - 1} kills, {len(events.acknowledged)} events acknowledged: {stored} once in S3, {doubled} more than once in CloudWatch")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        run(stack, pathlib.Path(name))
