-- The stored lines of all senders in one table: FROM events('logs/**/*.log*').
-- Columns: event_time (TIMESTAMP, UTC), log_type, message, line (the stored JSON), key (the file), position (where the line stood
-- among those that were read: lines of one time keep their order by it). Plain, gzip and zstd.
-- `event_time` is the event's own time. An event without one, or with one that can't be read, has its object's time instead:
-- when the batch's first event was received.

SET TimeZone = 'UTC';

CREATE OR REPLACE MACRO events(files) AS TABLE
WITH stored AS (
    SELECT
        filename AS key,
        regexp_extract(
            filename,
            '(env0-deployments|env0-audits)/(\d{4}/\d\d/\d\d)/(\d\d:\d\d:\d\d)_[^/]*$',
            ['log_type', 'day', 'time']
        ) AS named,
        json AS line,
        row_number() OVER () AS position
    FROM read_ndjson_objects(files, filename = true)
),
said AS (
    SELECT
        *,
        coalesce(
            line ->> '$.timestamp', -- Loki, New Relic, audit events, text
            line ->> '$.time', -- Splunk
            line ->> '$."@timestamp"', -- Logz.io
            line ->> '$.message.timestamp', -- Sumo Logic with X-Sumo headers
            line ->> '$.logs[0].timestamp', -- New Relic, detailed
            line ->> '$.common.timestamp',
            line ->> '$.resourceLogs[0].scopeLogs[0].logRecords[0].timeUnixNano', -- OTLP
            line ->> '$.resourceLogs[0].scopeLogs[0].logRecords[0].observedTimeUnixNano',
            line ->> '$.finishedAt' -- a deployment's last line, when pulled
        ) AS time
    FROM stored
),
counted AS (
    SELECT *, try_cast(time AS DOUBLE) AS number FROM said
)
SELECT
    coalesce(
        -- Seconds, milliseconds, microseconds or nanoseconds since 1970: their sizes tell which.
        CASE
            WHEN number < 0 THEN NULL
            WHEN number < 1e11 THEN make_timestamp(round(number * 1e6)::BIGINT)
            WHEN number < 1e14 THEN make_timestamp(round(number * 1e3)::BIGINT)
            WHEN number < 1e17 THEN make_timestamp(round(number)::BIGINT)
            WHEN number < 1e20 THEN make_timestamp((time::HUGEINT // 1000)::BIGINT)
        END,
        -- Only dates: DuckDB knows words such as 'infinity', too.
        try_cast(regexp_extract(time, '^\d{4}-.*') AS TIMESTAMPTZ) AT TIME ZONE 'UTC',
        try_strptime(named.day || ' ' || named.time, '%Y/%m/%d %H:%M:%S')
    ) AS event_time,
    named.log_type AS log_type,
    coalesce(
        line ->> '$.message.message', -- Sumo Logic with X-Sumo headers
        line ->> '$.message',
        line ->> '$.line', -- Loki
        line ->> '$.event.message', -- Splunk
        line ->> '$.event',
        line ->> '$.logs[0].message', -- New Relic, detailed
        line ->> '$.resourceLogs[0].scopeLogs[0].logRecords[0].body.stringValue', -- OTLP
        line ->> '$.actionName', -- audit events
        line ->> '$.action', -- audit events of other senders
        CASE WHEN line ->> '$.eventId' LIKE '%-finished' THEN line ->> '$.status' END, -- a deployment's last line, when pulled
        line::VARCHAR
    ) AS message,
    line,
    key,
    position
FROM counted;
