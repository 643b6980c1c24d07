"""Whether an acknowledgement that a client kept holds at an object."""

import json


def holds(receipt, text, entry, lines, archived):
    """`text` is the receipt's own line; `lines` are the object's, none where it was not read."""
    count = entry.records if archived else len(lines or [])
    if receipt["line"] + receipt["accepted"] > count:
        return False
    if archived or "events" not in receipt:
        return True
    sent, stored = dict(exactly(text))["events"], lines[receipt["line"]:receipt["line"] + receipt["accepted"]]
    return len(sent) == len(stored) and all(map(stands_for, sent, stored))


class Number(str):
    """A number's own text."""


def exactly(text):
    """JSON with objects as pairs and numbers as their text: what differs in the text differs here."""
    return json.loads(text, parse_float=Number, parse_int=Number, object_pairs_hook=list)


def stands_for(sent, stored):
    """Whether a stored line is the event that was sent."""
    try:
        line = exactly(stored)
    except ValueError:
        return False
    if not isinstance(sent, str):
        return same(sent, line)
    try:
        if same(exactly(sent), line):
            return True
    except ValueError:
        pass
    return dict(line).get("message") == sent


def same(sent, stored):
    if stored == "[redacted]":
        return type(sent) is str
    if isinstance(sent, (list, tuple)) and type(sent) is type(stored):
        return len(sent) == len(stored) and all(map(same, sent, stored))
    return type(sent) is type(stored) and sent == stored
