//! When an event happened, told from its stored line. Lines are foreign: no number and no
//! text in one may end in a panic.

#![warn(clippy::arithmetic_side_effects)]

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::value::RawValue;

use crate::protocols::body::{Elements, members, text_of};

/// Where senders put the time, the first that can be read counts.
const NAMES: [&str; 3] = ["timestamp", "time", "@timestamp"];
/// Where Splunk's and Sumo Logic's stored lines hold the event itself.
const HOLDERS: [&str; 2] = ["event", "message"];
/// The way to OTLP's record in its stored line, in both spellings of the protocol's JSON.
const OTLP: [[&str; 2]; 3] =
    [["resourceLogs", "resource_logs"], ["scopeLogs", "scope_logs"], ["logRecords", "log_records"]];
const OTLP_TIMES: [&str; 4] = ["timeUnixNano", "time_unix_nano", "observedTimeUnixNano", "observed_time_unix_nano"];

/// CloudWatch refuses events that are older.
const OLDEST: TimeDelta = TimeDelta::days(14);
/// CloudWatch refuses events that are further ahead.
const NEWEST: TimeDelta = TimeDelta::hours(2);
/// A call takes a while, and two clocks differ.
const MARGIN: TimeDelta = TimeDelta::minutes(5);

/// What CloudWatch is told of `line`, in milliseconds since 1970: the line's own time, or `opened` where it has none
/// or CloudWatch would not take it `now`. After a clock that was ahead once, batches are opened ahead of `now`, which
/// CloudWatch would not take either: `now` stands for that.
pub fn to_send(line: &[u8], opened: DateTime<Utc>, now: DateTime<Utc>) -> i64 {
    let end = |limit: Option<DateTime<Utc>>| limit.unwrap_or(now).timestamp_millis();
    let oldest = end(now.checked_sub_signed(OLDEST).and_then(|limit| limit.checked_add_signed(MARGIN)));
    let newest = end(now.checked_add_signed(NEWEST).and_then(|limit| limit.checked_sub_signed(MARGIN)));
    let own = of_line(line).filter(|millis| (oldest..=newest).contains(millis));
    let opened = opened.timestamp_millis();
    own.unwrap_or(if opened <= newest { opened } else { now.timestamp_millis() })
}

/// A stored line's own time, in milliseconds since 1970.
pub fn of_line(line: &[u8]) -> Option<i64> {
    let line = serde_json::from_slice::<&RawValue>(line).ok()?;
    let object = object(line)?;
    let inside =
        || members(object, HOLDERS).into_iter().flatten().find_map(|held| first_of(self::object(held)?, NAMES));
    first_of(object, NAMES).or_else(|| of_otlp(object)).or_else(inside)
}

fn of_otlp(line: &RawValue) -> Option<i64> {
    let mut found = line;
    for names in OTLP {
        let list = members(found, names).into_iter().flatten().next()?;
        found = object(Elements::of(list).next()?)?;
    }
    // In OTLP a zero says that the time is not known.
    members(found, OTLP_TIMES).into_iter().flatten().filter_map(of_value).find(|millis| *millis > 0)
}

fn first_of<const N: usize>(object: &RawValue, names: [&str; N]) -> Option<i64> {
    members(object, names).into_iter().flatten().find_map(of_value)
}

fn object(value: &RawValue) -> Option<&RawValue> {
    value.get().trim_start().starts_with('{').then_some(value)
}

fn of_value(value: &RawValue) -> Option<i64> {
    let json = value.get().trim();
    if json.starts_with('"') { of_text(text_of(json)?.trim()) } else { of_number(json) }
}

fn of_text(text: &str) -> Option<i64> {
    of_number(text).or_else(|| {
        // `+0100`, without a colon, is not RFC 3339, but usual.
        let parsed = DateTime::parse_from_rfc3339(text)
            .or_else(|_| DateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f%z"))
            .or_else(|_| DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f%z"));
        Some(parsed.ok()?.timestamp_millis())
    })
}

/// Seconds, milliseconds, microseconds or nanoseconds since 1970; which of them shows in the size: seconds reach the
/// year 5138 before they have as many digits as milliseconds of 1973.
fn of_number(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_decimal = !whole.is_empty() && whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit());
    let (whole, thousandths) = if is_decimal {
        (whole.parse().ok()?, format!("{fraction:0<3}")[..3].parse::<i128>().ok()?)
    } else if text.starts_with(|first: char| first.is_ascii_digit()) {
        // 1.7953e9: rarely written.
        let number = text.parse::<f64>().ok().filter(|number| number.is_finite())?;
        (number.trunc() as i128, (number.fract() * 1000.0) as i128)
    } else {
        return None;
    };
    let millis = match whole {
        0..100_000_000_000 => whole.checked_mul(1000)?.checked_add(thousandths)?,
        100_000_000_000..100_000_000_000_000 => whole,
        100_000_000_000_000..100_000_000_000_000_000 => whole.checked_div(1000)?,
        _ => whole.checked_div(1_000_000)?,
    };
    i64::try_from(millis).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2026-11-22T21:04:05.678Z
    const AT: i64 = 1_795_381_445_678;

    #[test]
    fn every_usual_form_of_a_time_is_read() {
        for value in [
            r#""2026-11-22T21:04:05.678Z""#,
            r#""2026-11-22t21:04:05.678z""#,
            r#""2026-11-22 21:04:05.678Z""#,
            r#""2026-11-22T21:04:05.678901234567890Z""#,
            r#""2026-11-22T22:34:05.678+01:30""#,
            r#""2026-11-22T22:04:05.678+0100""#,
            r#""2026-11-22 16:04:05.678-0500""#,
            r#""2026-11-22T21:04:05.678\u005a""#,
            r#""2026-11-22T21:04:05.678+00:00""#,
            "1795381445.678",
            "1795381445.6789",
            r#""1795381445.678""#,
            "1795381445678",
            r#""1795381445678""#,
            "1795381445678.9",
            "1795381445678901",
            "1795381445678901234",
            r#""1795381445678901234""#,
            "1.795381445678e12",
        ] {
            for name in NAMES {
                let line = format!(r#"{{"message":"m","{name}":{value},"x":[{{}}]}}"#);
                assert_eq!(of_line(line.as_bytes()), Some(AT), "{line}");
            }
        }
        assert_eq!(of_line(br#"{"time":1795381445}"#), Some(AT - 678));
    }

    #[test]
    fn every_protocols_stored_line_gives_its_own_time() {
        for line in [
            r#"{"timestamp":"1795381445678000001","labels":{"app":"env0"},"line":"a"}"#,
            r#"{"deploymentLogId":"d1","level":"info","message":"m","timestamp":1795381445678}"#,
            r#"{"time":"1795381445.678","host":"h","event":{"timestamp":1}}"#,
            r#"{"event":{"timestamp":"2026-11-22T21:04:05.678Z"},"source":"env0"}"#,
            r#"{"message":{"time":1795381445678},"source":{"name":"env0"}}"#,
            r#"{"@timestamp":"2026-11-22T21:04:05.678Z","message":"logz.io"}"#,
            r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"timeUnixNano":"1795381445678000000"}]}]}]}"#,
            r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"timeUnixNano":"0","observedTimeUnixNano":"1795381445678000000"}]}]}]}"#,
        ] {
            assert_eq!(of_line(line.as_bytes()), Some(AT), "{line}");
        }
    }

    #[test]
    fn what_is_no_time_is_passed_over() {
        for line in [
            "",
            "text",
            "[1]",
            "1795381445678",
            r#"{"timestamp":null}"#,
            r#"{"timestamp":"yesterday"}"#,
            r#"{"timestamp":{}}"#,
            r#"{"timestamp":-5}"#,
            r#"{"timestamp":"inf"}"#,
            r#"{"timestamp":1e999}"#,
            r#"{"timestamp":99999999999999999999999999999999999999999999}"#,
            r#"{"x":{"timestamp":1795381445678}}"#,
            r#"{"resourceLogs":[]}"#,
            r#"{"timestamp":1795381445678"#,
        ] {
            assert_eq!(of_line(line.as_bytes()), None, "{line}");
        }
        assert_eq!(of_line(br#"{"timestamp":"?","time":1795381445678}"#), Some(AT));
    }

    #[test]
    fn a_line_of_any_depth_is_read_without_recursion() {
        let deep = format!("{}{}", "[".repeat(400_000), "]".repeat(400_000));
        for line in [
            format!(r#"{{"message":{deep},"timestamp":{AT}}}"#),
            format!(r#"{{"resourceLogs":{deep},"event":{{"time":{AT},"x":{deep}}}}}"#),
        ] {
            assert_eq!(of_line(line.as_bytes()), Some(AT));
        }
    }

    #[test]
    fn a_time_that_cloudwatch_refuses_becomes_the_batchs_opening() {
        let now = DateTime::from_timestamp_millis(AT).unwrap();
        let opened = now - TimeDelta::minutes(1);
        for (own, is_kept) in [
            (now, true),
            (now - TimeDelta::days(13), true),
            (now - TimeDelta::days(14), false),
            (now + TimeDelta::minutes(100), true),
            (now + TimeDelta::hours(2), false),
        ] {
            let line = format!(r#"{{"timestamp":{}}}"#, own.timestamp_millis());
            let expected = if is_kept { own } else { opened };
            assert_eq!(to_send(line.as_bytes(), opened, now), expected.timestamp_millis(), "{own}");
        }
        let (first, last) = (DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC);
        assert_eq!(to_send(b"{}", opened, first), first.timestamp_millis());
        assert_eq!(to_send(b"{}", opened, last), opened.timestamp_millis());
    }

    #[test]
    fn an_opening_that_is_ahead_of_the_clock_becomes_the_clocks_time() {
        let now = DateTime::from_timestamp_millis(AT).unwrap();
        assert_eq!(to_send(b"{}", now + TimeDelta::days(365), now), AT);
    }

    proptest! {
        #[test]
        fn no_value_of_a_time_ends_in_a_panic(text in r#"[-+0-9.eETZz: ]{0,40}"#, bytes: Vec<u8>) {
            of_line(format!(r#"{{"timestamp":"{text}"}}"#).as_bytes());
            of_line(format!(r#"{{"timestamp":{text}}}"#).as_bytes());
            of_line(&bytes);
        }

        #[test]
        fn every_millisecond_of_this_century_is_read_in_each_unit(millis in 1_000_000_000_000_i64..4_000_000_000_000) {
            let time = DateTime::from_timestamp_millis(millis).unwrap();
            for value in [
                format!("{}.{:03}", millis / 1000, millis % 1000),
                format!("{millis}"),
                format!("{millis}999"),
                format!("{millis}000001"),
                format!("\"{}\"", time.to_rfc3339()),
            ] {
                prop_assert_eq!(of_line(format!(r#"{{"timestamp":{value}}}"#).as_bytes()), Some(millis), "{}", value);
            }
        }
    }
}
