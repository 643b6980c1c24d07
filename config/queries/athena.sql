-- The stored lines of all senders in one view, `events`: event_time (UTC), log_type, message, line (the stored JSON), key.
-- Put your bucket, and ENV0_S3_LOG_BUCKET_PATH if you set it, in both places of my-env0-logs. Run the statements one by one.
-- Years outside projection.year.range are not read.
-- `event_time` is the event's own time. An event without one, or with one that can't be read, has its object's time instead:
-- when the batch's first event was received.

CREATE EXTERNAL TABLE env0_lines (line string)
PARTITIONED BY (log_type string, year int, month int, day int)
ROW FORMAT SERDE 'org.apache.hadoop.hive.serde2.RegexSerDe'
WITH SERDEPROPERTIES ('input.regex' = '^(.*)$')
LOCATION 's3://my-env0-logs/'
TBLPROPERTIES (
    'projection.enabled' = 'true',
    'projection.log_type.type' = 'enum',
    'projection.log_type.values' = 'env0-deployments,env0-audits',
    'projection.year.type' = 'integer',
    'projection.year.range' = '2026,2036',
    'projection.year.digits' = '4',
    'projection.month.type' = 'integer',
    'projection.month.range' = '1,12',
    'projection.month.digits' = '2',
    'projection.day.type' = 'integer',
    'projection.day.range' = '1,31',
    'projection.day.digits' = '2',
    'storage.location.template' = 's3://my-env0-logs/${log_type}/${year}/${month}/${day}/'
);

CREATE OR REPLACE VIEW events AS
WITH said AS (
    SELECT
        "$path" AS key, log_type, year, month, day, line,
        coalesce(
            json_extract_scalar(line, '$.timestamp'),
            json_extract_scalar(line, '$.time'),
            json_extract_scalar(line, '$["@timestamp"]'),
            json_extract_scalar(line, '$.message.timestamp'),
            json_extract_scalar(line, '$.logs[0].timestamp'),
            json_extract_scalar(line, '$.common.timestamp'),
            json_extract_scalar(line, '$.resourceLogs[0].scopeLogs[0].logRecords[0].timeUnixNano'),
            json_extract_scalar(line, '$.resourceLogs[0].scopeLogs[0].logRecords[0].observedTimeUnixNano'),
            json_extract_scalar(line, '$.finishedAt')
        ) AS time
    FROM env0_lines
),
counted AS (
    SELECT *, try_cast(time AS double) AS number FROM said
)
SELECT
    coalesce(
        -- Seconds, milliseconds, microseconds or nanoseconds since 1970: their sizes tell which.
        CASE
            WHEN number < 0 THEN NULL
            WHEN number < 1e11 THEN CAST(from_unixtime(number) AS timestamp(3))
            WHEN number < 1e14 THEN CAST(from_unixtime(number / 1e3) AS timestamp(3))
            WHEN number < 1e17 THEN CAST(from_unixtime(number / 1e6) AS timestamp(3))
            WHEN number < 1e20 THEN CAST(from_unixtime(number / 1e9) AS timestamp(3))
        END,
        CAST(try(from_iso8601_timestamp(time)) AT TIME ZONE 'UTC' AS timestamp(3)),
        date_parse(regexp_extract(key, '([0-9]{4}/[0-9]{2}/[0-9]{2}/[0-9]{2}:[0-9]{2}:[0-9]{2})_[^/]*$', 1), '%Y/%m/%d/%H:%i:%s')
    ) AS event_time,
    log_type,
    coalesce(
        json_extract_scalar(line, '$.message.message'),
        json_extract_scalar(line, '$.message'),
        json_extract_scalar(line, '$.line'),
        json_extract_scalar(line, '$.event.message'),
        json_extract_scalar(line, '$.event'),
        json_extract_scalar(line, '$.logs[0].message'),
        json_extract_scalar(line, '$.resourceLogs[0].scopeLogs[0].logRecords[0].body.stringValue'),
        json_extract_scalar(line, '$.actionName'),
        json_extract_scalar(line, '$.action'),
        CASE WHEN json_extract_scalar(line, '$.eventId') LIKE '%-finished' THEN json_extract_scalar(line, '$.status') END,
        line
    ) AS message,
    line, key, year, month, day
FROM counted;
