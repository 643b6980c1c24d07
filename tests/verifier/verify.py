"""A second verifier, written from the format's page (src/verify/README.md) alone, to hold the first one to it.

Same options, same variables, same exit codes as `env0-s3-logs verify --json`; keeps everything in memory.
"""

import argparse
import base64
import datetime
import gzip
import hashlib
import itertools
import json
import os
import re
import sys

import boto3
import botocore.config
import botocore.exceptions
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from receipts import holds

TYPES = ("env0-deployments", "env0-audits")
REQUIRED = ("env0-instance", "env0-sequence", "env0-records", "env0-sha256", "env0-previous-sha256")
FORMS = {
    "env0-instance": r"[A-Za-z0-9._-]{1,64}",
    "env0-sequence": r"[1-9][0-9]*",
    "env0-records": r"[1-9][0-9]*",
    "env0-sha256": r"[0-9a-f]{64}",
    "env0-previous-sha256": r"[0-9a-f]{64}",
    "env0-renamed-from": r"[A-Za-z0-9]{5}",
    "env0-gaps": r"[1-9][0-9]*(-[1-9][0-9]*)?(,[1-9][0-9]*(-[1-9][0-9]*)?)*",
}
KEY = r"(\d{4}/\d\d/\d\d/\d\d:\d\d:\d\d)_[A-Za-z0-9]{5}\.log(\.gz|\.zst)?"
HOUR = datetime.timedelta(hours=1)
COUNTED = ("gap", "missing", "explained", "pending", "unanchored")


class Entry:
    """One object's place in its chain."""

    def __init__(self, key, log_type, metadata, last_modified):
        self.key, self.log_type, self.metadata, self.last_modified = key, log_type, metadata, last_modified
        self.instance = metadata["env0-instance"]
        self.number = int(metadata["env0-sequence"])
        self.records = int(metadata["env0-records"])
        self.sha256 = metadata["env0-sha256"]
        self.previous = metadata["env0-previous-sha256"]
        self.gaps = parse_gaps(metadata.get("env0-gaps", ""))
        self.opened = None

    def signed_text(self):
        fields = ("env0-sequence", "env0-records", "env0-sha256", "env0-previous-sha256")
        lines = ["env0-s3-logs/1", self.key, self.metadata.get("env0-renamed-from", ""), self.instance, self.log_type]
        lines += [self.metadata[name] for name in fields] + [self.metadata.get("env0-gaps", "")]
        return "".join(line + "\n" for line in lines).encode()


class Malformed(Exception):
    """Metadata in another form than the daemon writes."""


def parse_gaps(text):
    ranges = []
    for field in filter(None, text.split(",")):
        first, _, last = field.partition("-")
        first, last = int(first), int(last or first)
        if ("-" in field) != (last > first) or (ranges and first <= ranges[-1][1] + 1) or last >= 2**64:
            raise Malformed("env0-gaps")
        ranges.append((first, last))
    return ranges


def check_form(metadata):
    for name in REQUIRED:
        if name not in metadata:
            raise Malformed(name)
    for name, form in FORMS.items():
        if name in metadata and not re.fullmatch(form, metadata[name]):
            raise Malformed(name)
    for name in ("env0-sequence", "env0-records"):
        if int(metadata[name]) >= 2**64:
            raise Malformed(name)
    if "env0-signature" in metadata:
        try:
            signature = base64.b64decode(metadata["env0-signature"], validate=True)
        except ValueError:
            signature = b""
        if len(signature) != 64:
            raise Malformed("env0-signature")


class Chain:
    def __init__(self):
        self.certain, self.doubtful, self.damaged = {}, [], set()
        self.before = self.after = None
        self.gaps = []
        self.counts = dict.fromkeys(
            ("objects", "events", "gaps", "altered", "missing", "duplicated", "unsigned", "unread", "explained", "pending",
             "unanchored"), 0)


def split(numbers, inside):
    """Ranges of the sorted `numbers`, parted where `inside` changes: (first, last, inside)."""
    ranges = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1 and ranges[-1][2] == inside(number):
            ranges[-1][1] = number
        else:
            ranges.append([number, number, inside(number)])
    return ranges


class Verifier:
    def __init__(self, options):
        self.options = options
        self.bucket = os.environ["ENV0_S3_LOG_BUCKET_NAME"]
        self.path = os.environ.get("ENV0_S3_LOG_BUCKET_PATH", "").strip("/")
        style = "path" if os.environ.get("ENV0_S3_LOG_FORCE_PATH_STYLE") == "true" else "auto"
        config = botocore.config.Config(s3={"addressing_style": style}, response_checksum_validation="when_required")
        self.s3 = boto3.client("s3", region_name=os.environ["ENV0_S3_LOG_AWS_REGION"], config=config)
        self.keys = [load_pem_public_key(open(name, "rb").read()) for name in options.public_key]
        self.heads = list(itertools.chain.from_iterable(map(read_heads, options.heads)))
        self.anchors = list(itertools.chain.from_iterable(map(read_heads, options.anchor)))
        self.now = datetime.datetime.now(datetime.timezone.utc)
        self.chains = {(head["type"], head["instance"]): Chain() for head in self.heads if self.judges(head["instance"])}
        self.findings, self.foreign = [], dict.fromkeys(TYPES, 0)
        self.archived = 0
        self.bodies = {}

    def judges(self, instance):
        return not self.options.instance or instance in self.options.instance

    def find(self, kind, log_type, instance=None, sequences=None, key=None):
        chain = self.chains.get((log_type, instance))
        if chain and sequences:
            size = sequences[1] - sequences[0] + 1 if kind in COUNTED else 1
            chain.counts[{"gap": "gaps"}.get(kind, kind)] += size
        self.findings.append({"kind": kind, "log_type": log_type, "instance": instance, "sequences": sequences, "key": key})

    def folder(self, log_type):
        return (self.path + "/" if self.path else "") + log_type + "/"

    def opened(self, log_type, key):
        folder = self.folder(log_type)
        match = re.fullmatch(KEY, key[len(folder):], re.ASCII) if key.startswith(folder) else None
        try:
            return match and datetime.datetime.strptime(match[1] + "+0000", "%Y/%m/%d/%H:%M:%S%z")
        except ValueError:
            return None

    # --- reading ---

    def run(self):
        for log_type in TYPES:
            pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.folder(log_type))
            listed = [item for page in pages for item in page.get("Contents", [])]
            first = self.options.from_ and self.options.from_.isoformat().replace("-", "/")
            after = self.options.to and (self.options.to + datetime.timedelta(1)).isoformat().replace("-", "/")
            start = first and self.folder(log_type) + first + "/"
            end = after and self.folder(log_type) + after + "/"
            for item in listed:
                if (not start or item["Key"] > start) and (not end or item["Key"] < end):
                    self.inside(log_type, item)
            if start:
                self.neighbours(log_type, [item for item in listed if item["Key"] < start], before=True)
            if end:
                self.neighbours(log_type, [item for item in listed if item["Key"] >= end], before=False)

    def neighbours(self, log_type, listed, before):
        days = {}
        for item in listed:
            if opened := self.opened(log_type, item["Key"]):
                days.setdefault(opened.date(), []).append(item)
        for index, day in enumerate(sorted(days, reverse=before)):
            chains = [chain for (chain_type, _), chain in self.chains.items() if chain_type == log_type]
            wanting = [chain for chain in chains if not chain.before and min(chain.certain, default=2) > 1]
            if not before:
                wanting = [chain for chain in chains if not chain.after and chain.certain]
            if index and not wanting:
                return
            for item in days[day]:
                head = self.s3.head_object(Bucket=self.bucket, Key=item["Key"])
                self.neighbour(log_type, item, head["Metadata"], before)

    def neighbour(self, log_type, item, metadata, before):
        try:
            check_form(metadata)
            entry = Entry(item["Key"], log_type, metadata, item["LastModified"])
        except Malformed:
            return
        if not self.judges(entry.instance):
            return
        chain = self.chains.setdefault((log_type, entry.instance), Chain())
        entry.opened = self.opened(log_type, entry.key)
        doubt = self.doubt(entry)
        if not doubt:
            chain.gaps += entry.gaps
        if before and (not chain.before or chain.before.number < entry.number):
            chain.before = entry
        if not before and not doubt and (not chain.after or chain.after.number > entry.number):
            chain.after = entry

    def inside(self, log_type, item):
        key = item["Key"]
        archived, body, checksum = False, b"", None
        try:
            answer = self.s3.get_object(Bucket=self.bucket, Key=key)
            body = answer["Body"].read()
        except botocore.exceptions.ClientError as error:
            if error.response["Error"]["Code"] == "NoSuchKey":
                return
            if error.response["Error"]["Code"] != "InvalidObjectState":
                raise
            archived = True
            answer = self.s3.head_object(Bucket=self.bucket, Key=key, ChecksumMode="ENABLED")
            checksum = answer.get("ChecksumSHA256")
        metadata = answer["Metadata"]
        if not any(name in metadata for name in REQUIRED):
            self.foreign[log_type] += 1
            return self.find("foreign", log_type, key=key)
        try:
            check_form(metadata)
            entry = Entry(key, log_type, metadata, item["LastModified"])
        except Malformed:
            return self.find("altered", log_type, metadata.get("env0-instance"), key=key)
        digest = base64.b64decode(checksum).hex() if checksum else None
        lines = None
        if not archived:
            digest, lines = hashlib.sha256(body).hexdigest(), decompress(key, body)
        self.bodies[key] = (entry, lines, archived)
        if not self.judges(entry.instance):
            return
        self.archived += archived
        chain = self.chains.setdefault((log_type, entry.instance), Chain())
        chain.counts["objects"] += 1
        chain.counts["events"] += entry.records if archived else len(lines or [])
        entry.opened = self.opened(log_type, key)
        wrong = self.damage(entry, digest, lines, archived)
        doubt = self.doubt(entry)
        if doubt:
            chain.doubtful.append((wrong or doubt, entry))
            return
        chain.gaps += entry.gaps
        if wrong:
            chain.damaged.add(entry.number)
            self.find(wrong, log_type, entry.instance, (entry.number, entry.number), key)
        if entry.number in chain.certain:
            self.find("duplicated", log_type, entry.instance, (entry.number, entry.number), key)
        else:
            chain.certain[entry.number] = entry

    # --- judging ---

    def doubt(self, entry):
        if not entry.opened:
            return "altered"
        if not self.keys:
            return None
        if "env0-signature" not in entry.metadata:
            before = self.options.unsigned_before
            return None if before and entry.opened.date() < before else "unsigned"
        for key in self.keys:
            try:
                key.verify(base64.b64decode(entry.metadata["env0-signature"]), entry.signed_text())
                return None
            except InvalidSignature:
                pass
        return "altered"

    def damage(self, entry, digest, lines, archived):
        if archived and digest is None:
            return "unread"
        if digest != entry.sha256 or (not archived and (lines is None or len(lines) != entry.records)):
            return "altered"
        if entry.number == 1 and entry.previous != "0" * 64:
            return "altered"
        name = (entry.log_type, entry.instance, entry.number)
        for head in self.heads + self.anchors:
            if (head["type"], head["instance"], head["sequence"]) == name and head["sha256"] != entry.sha256:
                return "altered"
        return None

    def finish(self):
        whole = not self.options.from_ and not self.options.to
        for instance in self.options.instance if whole else []:
            if not any(name == instance for _, name in self.chains):
                self.find("missing", None, instance)
        reports = []
        for (log_type, instance), chain in sorted(self.chains.items()):
            self.finish_chain(log_type, instance, chain)
            if any(chain.counts.values()):
                last = chain.certain.get(max(chain.certain, default=0))
                head = {"sequence": last.number, "sha256": last.sha256} if last else None
                reports.append({"instance": instance, "log_type": log_type, **chain.counts,
                                "complete": complete(chain), "head": head})
        self.receipts()
        kinds = {finding["kind"] for finding in self.findings}
        harmless = {"pending", "explained"} | (set() if self.options.strict else {"foreign"})
        empty = not any(chain["objects"] for chain in reports) and not self.options.allow_empty
        code = 1 if kinds - harmless else 2 if "pending" in kinds else 1 if empty else 0
        return {"exit_code": code, "authenticated": bool(self.keys), "chains": reports, "foreign": self.foreign,
                "archived": self.archived, "findings": self.findings}

    def finish_chain(self, log_type, instance, chain):
        name = (log_type, instance)
        held = set(chain.certain)
        for kind, entry in chain.doubtful:
            number = (entry.number, entry.number)
            if entry.number in chain.certain:
                self.find("duplicated", *name, number, entry.key)
            else:
                held.add(entry.number)
                self.find(kind, *name, number, entry.key)
        objects = [chain.certain[number] for number in sorted(chain.certain)]
        if objects and not chain.before:
            self.start(name, chain, objects[0], held)
        objects = [entry for entry in [chain.before, *objects, chain.after] if entry]
        for left, right in zip(objects, objects[1:]):
            linked = right.previous == left.sha256 and right.opened >= left.opened
            if right.number <= left.number or (right.number == left.number + 1 and not linked):
                self.find("altered", *name, (right.number, right.number), right.key)
            else:
                self.gap(name, chain, range(left.number + 1, right.number), held, right)
        self.tail(name, chain, held)

    def explained(self, chain):
        return lambda number: any(first <= number <= last for first, last in chain.gaps)

    def parts(self, name, chain, numbers, held):
        """Ranges of `numbers` that nothing holds and no gap names; those that one names are explained."""
        parts = split([number for number in numbers if number not in held], self.explained(chain))
        for first, last, explained in parts:
            if explained:
                self.find("explained", *name, (first, last))
        return [(first, last) for first, last, explained in parts if not explained]

    def gap(self, name, chain, numbers, held, successor):
        for part in self.parts(name, chain, numbers, held):
            self.find(self.gap_kind(successor), *name, part)

    def gap_kind(self, successor):
        expired = self.options.expired_before
        if self.now - successor.last_modified < HOUR:
            return "pending"
        return "explained" if expired and successor.opened.date() < expired else "gap"

    def start(self, name, chain, first, held):
        anchors = [anchor for anchor in self.anchors if (anchor["type"], anchor["instance"]) == name]
        anchor = max(anchors, key=lambda anchor: anchor["sequence"], default=None)
        if anchor and first.number > 1 and anchor["sequence"] == first.number - 1 and anchor["sha256"] != first.previous:
            self.find("altered", *name, (first.number, first.number), first.key)
        first_held = min(held)
        for low, high in self.parts(name, chain, range(1, first_held), held):
            vouched = min(high, anchor["sequence"]) if anchor else low - 1
            if vouched >= low:
                self.find("explained", *name, (low, vouched))
            if not anchor:
                self.find("explained" if self.options.expired_before else "unanchored", *name, (low, high))
            elif vouched < high:
                self.find(self.gap_kind(first), *name, (max(low, vouched + 1), high))
        self.gap(name, chain, range(first_held + 1, first.number), held, first)

    def tail(self, name, chain, held):
        heads = [head for head in self.heads if (head["type"], head["instance"]) == name]
        head = max(heads, key=lambda head: head["sequence"], default=None)
        if not head or chain.after:
            return
        last = max(held | ({chain.before.number} if chain.before else set()), default=0)
        fresh = head["now"] and self.now - head["now"] < HOUR
        delivered = head["sequence"] - head["batches"] if fresh else head["sequence"]
        for low, high in self.parts(name, chain, range(last + 1, head["sequence"] + 1), held):
            if low <= delivered:
                self.find("missing", *name, (low, min(high, delivered)))
            if high > delivered:
                self.find("pending", *name, (max(low, delivered + 1), high))

    def receipts(self):
        named = {}
        for key, (entry, lines, archived) in self.bodies.items():
            named.setdefault(key, []).append((entry, lines, archived))
            if "env0-renamed-from" in entry.metadata:
                first = re.sub(r"_[A-Za-z0-9]{5}\.log", f"_{entry.metadata['env0-renamed-from']}.log", key)
                named.setdefault(first, []).append((entry, lines, archived))
        for line in itertools.chain.from_iterable(open(name, encoding="utf-8-sig") for name in self.options.receipts):
            receipt = json.loads(line) if line.strip() else {"accepted": 0}
            if receipt["accepted"]:
                self.receipt(receipt, line, named.get(receipt["object"], []))

    def receipt(self, receipt, text, objects):
        key = receipt["object"]
        log_type = next((log_type for log_type in TYPES if key.startswith(self.folder(log_type))), None)
        opened = log_type and self.opened(log_type, key)
        if any(holds(receipt, text, *place) for place in objects):
            return
        if opened and ((self.options.from_ and opened.date() < self.options.from_)
                       or (self.options.to and opened.date() > self.options.to)):
            return
        young = opened and self.now - opened < HOUR
        kind = "altered" if objects else "pending" if young else "missing"
        self.find(kind, log_type, key=key)


def complete(chain):
    ranges, last = [], None
    for number in sorted(chain.certain):
        entry = chain.certain[number]
        if number in chain.damaged:
            # It is not complete itself, but still links its neighbours.
            last = entry
            continue
        follows = (ranges and last and last.number == number - 1 == ranges[-1][1] and last.sha256 == entry.previous
                   and last.opened <= entry.opened)
        if follows:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
        last = entry
    return ranges


def decompress(key, body):
    """The lines of a body; none where it does not decompress."""
    try:
        if key.endswith(".gz"):
            body = gzip.decompress(body)
        elif key.endswith(".zst"):
            import zstandard

            body = zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True).read()
    except Exception:  # whatever the codec raises, the body is not what was written
        return None
    return body.split(b"\n")[:-1]


def read_heads(name):
    """Heads in `/status` documents and `verify --json` reports, one after the other."""
    text, decoder, heads = open(name, encoding="utf-8-sig").read().strip(), json.JSONDecoder(), []
    while text:
        document, end = decoder.raw_decode(text)
        text = text[end:].strip()
        now = document.get("now")
        now = datetime.datetime.fromisoformat(now) if now else None
        for chain in document.get("types", []) + document.get("chains", []):
            if chain.get("head"):
                instance = chain.get("chain_instance") or chain["instance"]
                heads.append({"instance": instance, "type": chain.get("type") or chain["log_type"], "now": now,
                              "batches": chain.get("batches", 0), **chain["head"]})
    return heads


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    day = datetime.date.fromisoformat
    parser.add_argument("--from", dest="from_", type=day)
    parser.add_argument("--to", type=day)
    parser.add_argument("--expired-before", type=day)
    parser.add_argument("--unsigned-before", type=day)
    for name in ("--instance", "--public-key", "--heads", "--receipts", "--anchor"):
        parser.add_argument(name, action="append", default=[])
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--allow-empty", action="store_true")
    parser.add_argument("--json", action="store_true")
    verifier = Verifier(parser.parse_args())
    verifier.run()
    report = verifier.finish()
    json.dump(report, sys.stdout, indent=1)
    sys.exit(report["exit_code"])


if __name__ == "__main__":
    main()
