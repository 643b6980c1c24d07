# One line per stored line of any sender: its time (UTC, microseconds; empty where it has none), a tab, its message.
# As in duckdb.sql.

def record: (.resourceLogs[0].scopeLogs[0].logRecords[0])?;

def time:
  .timestamp // .time // ."@timestamp" // .message.timestamp? // (.logs[0].timestamp)? // .common.timestamp?
  // record.timeUnixNano? // record.observedTimeUnixNano? // .finishedAt;

def message:
  .message.message? // .message // .line // .event.message? // .event // (.logs[0].message)?
  // (record.body.stringValue)? // .actionName // .action
  // (select(.eventId? | tostring | endswith("-finished")) | .status) // .;

# Seconds, milliseconds, microseconds or nanoseconds since 1970 to microseconds: their sizes tell which.
def from_number:
  if . < 0 then null elif . < 1e11 then . * 1e6 elif . < 1e14 then . * 1e3 elif . < 1e17 then . elif . < 1e20 then . / 1e3
  else null end;

# RFC 3339 to microseconds since 1970.
def from_text:
  capture("^(?<date>[0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ](?<time>[0-9:]{8})(?<fraction>[.][0-9]+)?(?<zone>[Zz]|[+-][0-9:]{5})$")
  | (if .zone | test("^[Zz]$") then 0
     else (.zone[0:1] + "1" | tonumber) * ((.zone[1:3] | tonumber) * 3600 + (.zone[4:6] | tonumber) * 60) end) as $east
  | ((.date + "T" + .time + "Z" | fromdate) - $east) * 1e6 + ("0" + (.fraction // "") | tonumber) * 1e6;

# A number has 53 bits, too few for nanoseconds: their last three digits are cut off as text.
def micros: (select(type == "string" and test("^[0-9]{18,19}$")) | .[:-3] | tonumber) // (tonumber? | from_number) // (from_text? // null);

def text: (. / 1e6 | floor | strftime("%Y-%m-%dT%H:%M:%S")) + "." + ("00000" + (. % 1e6 | tostring))[-6:] + "Z";

[(time | if . == null then "" else micros | if . == null then "" else round | text end end), (message | tostring)] | @tsv
