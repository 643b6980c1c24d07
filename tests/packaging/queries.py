"""Reading the logs: every sender's event is found once, at its time, by the commands of config/README.md.

The daemon fills a bucket in moto, plain and compressed. Athena itself can't run here: its statements are parsed, and the
location template is compared with the keys.
"""

import base64
import datetime
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import urllib.request
import warnings

import sqlglot

from aws import BUCKET, REGION, aws_client, daemon, moto, wait_for
from live import ROOT, TOKEN, get

PREFIX = "team/logs"
COMPRESSIONS = {"none": "log", "gzip": "log.gz", "zstd": "log.zst"}
# 2026-11-22T21:00:00Z in seconds since 1970.
START = 1795381200
BEARER = {"Authorization": f"Bearer {TOKEN}"}
NANOSECONDS = {"timeUnixNano": f"{START + 9}500000000", "body": {"stringValue": "otlp"}}

# path, headers, body, and the second after START at which the event happened; None where it has no time of its own.
EVENTS = {
    "otlp": ("/v1/logs", BEARER, {"resourceLogs": [{"scopeLogs": [{"logRecords": [NANOSECONDS]}]}]}, 9.5),
    "native": ("/v1/logs/env0-deployments", BEARER, {"timestamp": "2026-11-22T22:00:01+01:00", "message": "native"}, 1),
    "odd": (
        "/v1/logs/env0-deployments",
        BEARER,
        {"timestamp": "infinity", "logs": "x", "common": 1, "resourceLogs": {}, "event": [], "message": "odd"},
        None,
    ),
    "text": ("/v1/logs/env0-deployments", BEARER, "text", None),
    "loki": (
        "/loki/api/v1/push",
        {"Authorization": "Basic " + base64.b64encode(f"env0:{TOKEN}".encode()).decode()},
        {"streams": [{"stream": {"app": "env0"}, "values": [[f"{START + 2}000001789", "loki"]]}]},
        2.000001,
    ),
    "splunk": (
        "/services/collector/event",
        {"Authorization": f"Splunk {TOKEN}"},
        {"time": START + 3.25, "event": {"message": "splunk"}},
        3.25,
    ),
    "logz.io": (f"/?token={TOKEN}", {}, {"@timestamp": "2026-11-22T21:00:04.5Z", "message": "logz.io"}, 4.5),
    "sumo": (f"/receiver/v1/http/{TOKEN}", {}, {"timestamp": START + 5, "message": "sumo"}, 5),
    "sumo with headers": (
        f"/receiver/v1/http/{TOKEN}",
        {"X-Sumo-Name": "env0"},
        {"timestamp": (START + 6) * 1000, "message": "sumo with headers"},
        6,
    ),
    "sumo without a time": (f"/receiver/v1/http/{TOKEN}", {}, {"level": "info", "message": "sumo without a time"}, None),
    "new relic": ("/log/v1", {"Api-Key": TOKEN}, {"message": "new relic", "timestamp": START * 1000 + 7125}, 7.125),
    "new relic, detailed": (
        "/log/v1",
        {"Api-Key": TOKEN},
        [{"common": {"timestamp": START * 1000 + 8000}, "logs": [{"message": "new relic, detailed"}]}],
        8,
    ),
    # The end of a pulled deployment.
    "SUCCESS": (
        "/v1/logs/env0-deployments",
        BEARER,
        {"eventId": "d-1-finished", "status": "SUCCESS", "finishedAt": "2026-11-22T21:00:10.75Z"},
        10.75,
    ),
    "audit": ("/v1/logs/env0-audits", BEARER, {"timestamp": "2026-11-22T21:00:00Z", "actionName": "audit"}, 0),
    "template.update": ("/v1/logs/env0-audits", BEARER, {"timestamp": "2026-11-22T21:00:11Z", "action": "template.update"}, 11),
}

# Text without times, in one request: all lines have the same time, and only their order in the object tells them apart.
PLAN = [f"plan line {number:03}" for number in reversed(range(200))]


def check(holds, words):
    if not holds:
        sys.exit(f"config/queries: {words}")


def fill(port, folder, compression):
    """Sends every event to a daemon, and waits until all are in the bucket."""
    folder.mkdir()
    variables = {
        "ENV0_S3_LOG_ROLE_ARN": "arn:aws:iam::111122223333:role/env0-logs",
        "ENV0_S3_LOG_BUCKET_NAME": BUCKET,
        "ENV0_S3_LOG_BUCKET_PATH": PREFIX,
        "ENV0_S3_LOG_AWS_REGION": REGION,
        "ENV0_S3_LOG_DEFAULT_TYPE": "env0-deployments",
        "ENV0_S3_LOG_COMPRESSION": compression,
    }
    with daemon(variables, port, folder) as (ingest, admin):
        for path, headers, body, _ in EVENTS.values():
            data = (body if isinstance(body, str) else json.dumps(body)).encode()
            headers = {"Content-Type": "text/plain" if isinstance(body, str) else "application/json", **headers}
            request = urllib.request.Request(f"http://127.0.0.1:{ingest}{path}", data=data, headers=headers)
            urllib.request.urlopen(request, timeout=10).close()
        url = f"http://127.0.0.1:{ingest}/v1/logs/env0-deployments"
        request = urllib.request.Request(url, data="\n".join(PLAN).encode(), headers=BEARER | {"Content-Type": "text/plain"})
        urllib.request.urlopen(request, timeout=10).close()

        def uploaded():
            metrics = get(admin, "/metrics")[1].decode()
            counts = re.findall(r"^env0_s3_logs_events_uploaded_total\{.*\} (\d+)", metrics, re.M)
            return sum(map(int, counts)) == len(EVENTS) + len(PLAN)

        wait_for(f"every event of {compression}", uploaded)


def download(s3, folder):
    """What `aws s3 sync s3://my-env0-logs/team/logs logs` does; the keys."""
    keys = [entry["Key"] for entry in s3.list_objects_v2(Bucket=BUCKET)["Contents"]]
    for key in keys:
        path = folder / "logs" / pathlib.PurePath(key).relative_to(PREFIX)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(s3.get_object(Bucket=BUCKET, Key=key)["Body"].read())
    return keys


def section(page="config/README.md", title="Reading the logs"):
    return (ROOT / page).read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def command(program, text):
    """A section's command that runs a program, as a reader copies it; without the download, which was done."""
    blocks = [block for block in re.findall(r"```sh\n(.*?)```", text, re.S) if program in block]
    check(len(blocks) == 1, f"{len(blocks)} commands of {program} are shown")
    return re.sub(r"^aws s3 sync .*\n", "", blocks[0], flags=re.M)


def run(words, folder):
    environment = {**os.environ, "HOME": str(folder)}
    shell = ["bash", "-euo", "pipefail", "-c", words]
    ran = subprocess.run(shell, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    check(ran.returncode == 0, f"{words} failed")
    return ran.stdout


def utc(moment):
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def check_order(rows, started, ended, way):
    """Rows are (time or "", message); every event is there once for each compression, at its time, and they are sorted."""
    plan = [message for _, message in rows if message in PLAN]
    check(plan == PLAN * len(COMPRESSIONS), f"{way} shuffles lines of the same time: {plan}")
    rows = [row for row in rows if row[1] not in PLAN]
    found = {}
    for time, message in rows:
        found.setdefault(message, []).append(time)
    check(set(found) == set(EVENTS), f"{way} finds {sorted(found)}")
    for message, (_, _, _, second) in EVENTS.items():
        times = found[message]
        check(len(times) == len(COMPRESSIONS), f"{way} finds {message} {len(times)} times")
        if second is None:
            # Of the object's key, in whole seconds; jq has no file's name.
            right = all(time == "" if way == "jq" and message != "text" else started <= time <= ended for time in times)
        else:
            moment = datetime.datetime.fromtimestamp(START, datetime.UTC) + datetime.timedelta(seconds=second)
            right = set(times) == {utc(moment)}
        check(right, f"{way} says that {message} happened at {times}")
    check([row[0] for row in rows] == sorted(row[0] for row in rows), f"{way} does not sort: {rows}")


def duckdb_rows(folder):
    sql = ROOT / "config" / "queries" / "duckdb.sql"
    query = """SELECT strftime(event_time, '%Y-%m-%dT%H:%M:%S.%fZ') AS time, message, log_type, line::VARCHAR AS line, key
        FROM events('logs/**/*.log*') ORDER BY event_time, position"""
    rows = json.loads(run(f'duckdb -init {sql} -json -c "{query}"', folder))
    for row in rows:
        wanted = "env0-audits" if row["message"] in ("audit", "template.update") else "env0-deployments"
        check(row["log_type"] == wanted and f"/{wanted}/" in row["key"], f"the log type of {row}")
        check(row["message"] in row["line"], f"the line of {row}")
    return [(row["time"], row["message"]) for row in rows]


def check_athena(keys):
    text = (ROOT / "config" / "queries" / "athena.sql").read_text()
    table, view = (statement for statement in sqlglot.parse(text, dialect="athena") if statement)
    check((table.kind, view.kind) == ("TABLE", "VIEW"), "one table and one view are made")
    columns = view.expression.named_selects
    check(columns[:5] == ["event_time", "log_type", "message", "line", "key"], f"the view has {columns}")
    properties = dict(re.findall(r"'([a-z_.]+)' = '([^']*)'", text))
    # With the path of this bucket, as the file's head says.
    template = properties["storage.location.template"].replace("s3://my-env0-logs/", f"s3://{BUCKET}/{PREFIX}/")
    folders = {f"s3://{BUCKET}/{key.rsplit('/', 1)[0]}/" for key in keys}
    for folder in folders:
        log_type, year, month, day = folder.rstrip("/").split("/")[-4:]
        names = {"log_type": log_type, "year": year, "month": month, "day": day}
        check(folder == re.sub(r"\$\{(\w+)\}", lambda name: names[name[1]], template), f"{template} is not {folder}")
        check(log_type in properties["projection.log_type.values"].split(","), f"{log_type} is not projected")
        for name in ("year", "month", "day"):
            low, high = properties[f"projection.{name}.range"].split(",")
            check(int(low) <= int(names[name]) <= int(high), f"the {name} of {folder} is not projected")
            check(len(names[name]) == int(properties[f"projection.{name}.digits"]), f"the digits of {name}")
    check({folder.split("/")[-5] for folder in folders} == {"env0-deployments", "env0-audits"}, f"both types: {folders}")


def main():
    warnings.simplefilter("ignore")
    os.environ["PATH"] = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        with moto(folder) as port:
            s3 = aws_client("s3", port)
            s3.create_bucket(Bucket=BUCKET)
            started = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
            for compression in COMPRESSIONS:
                fill(port, folder / compression, compression)
            ended = datetime.datetime.now(datetime.UTC)
            keys = download(s3, folder)
        (folder / "config").symlink_to(ROOT / "config")
        check({key.split(".", 1)[1] for key in keys} == set(COMPRESSIONS.values()), f"the objects are {keys}")
        check_order(duckdb_rows(folder), utc(started), utc(ended), "DuckDB")
        table = run(command("duckdb", section()), folder)
        shown = re.findall(r"^│.*│$", section(), re.M)
        check(shown and all(row in table for row in shown), f"config/README.md shows another table than {table}")
        short = run(command("duckdb", section("README.md", "Read your logs")), folder)
        check("2026-11-22 21:00:02.000001 │ loki" in short, f"README.md's query prints {short}")
        rows = [line.split("\t") for line in run(command("jq", section()), folder).splitlines()]
        check_order(rows, utc(started), utc(ended), "jq")
        check_athena(keys)
    print(f"  {len(EVENTS)} kinds of events, in {len(COMPRESSIONS)} compressions, were found by DuckDB and jq")


if __name__ == "__main__":
    main()
