//! The lines of a batch as calls of `PutLogEvents`. Holds one call's lines in memory, however large the batch is: each
//! call is sorted, the calls among each other are not.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read};
use std::mem;

use chrono::{DateTime, Utc};

use super::timestamp;

/// The most that a call may have: the bytes of its messages, and [`EVENT_BYTES`] for each.
pub const CALL_MAX_BYTES: usize = 1_048_576;
/// What CloudWatch adds to a message's length.
pub const EVENT_BYTES: usize = 26;
/// The most events that a call may have.
pub const CALL_MAX_EVENTS: usize = 10_000;
/// The longest time between a call's first and last event.
pub const CALL_MAX_MILLIS: i64 = 24 * 60 * 60 * 1000;

const MESSAGE_MAX_BYTES: usize = CALL_MAX_BYTES - EVENT_BYTES;
/// The most of one line that is read into memory. A longer line is cut in any case, and
/// has its batch's opening as time.
const LINE_MAX_BYTES: usize = 4 * 1024 * 1024;

/// One event as CloudWatch takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Milliseconds since 1970.
    pub timestamp: i64,
    /// The stored line, without its newline; never empty.
    pub message: String,
}

impl Event {
    fn bytes(&self) -> usize {
        self.message.len() + EVENT_BYTES
    }
}

/// Reads a batch and gives its calls.
pub struct Calls<R> {
    lines: R,
    /// Key of the batch's object, for those who miss the rest of a line.
    object: String,
    opened: DateTime<Utc>,
    /// Lines that were read.
    read: u64,
    /// The line that didn't fit the call before.
    next: Option<Event>,
    ready: VecDeque<Vec<Event>>,
}

impl<R: BufRead> Calls<R> {
    /// `lines` is the batch's NDJSON, not compressed; `object` its key in S3; `opened` when it was opened.
    pub fn new(lines: R, object: String, opened: DateTime<Utc>) -> Calls<R> {
        Calls { lines, object, opened, read: 0, next: None, ready: VecDeque::new() }
    }

    /// The next call, 1 event or more, by the clock's `now`; `None` after the last.
    ///
    /// # Errors
    /// What `lines` fails with.
    pub fn next_call(&mut self, now: DateTime<Utc>) -> io::Result<Option<Vec<Event>>> {
        if self.ready.is_empty() {
            let mut events = self.gather(now)?;
            events.sort_by_key(|event| event.timestamp);
            self.ready = days(events);
        }
        Ok(self.ready.pop_front())
    }

    /// As many of the next lines as one call can hold.
    fn gather(&mut self, now: DateTime<Utc>) -> io::Result<Vec<Event>> {
        let mut events: Vec<Event> = Vec::new();
        let mut bytes = 0;
        loop {
            let event = match self.next.take() {
                Some(event) => event,
                None => match self.read_event(now)? {
                    Some(event) => event,
                    None => return Ok(events),
                },
            };
            bytes += event.bytes();
            if bytes > CALL_MAX_BYTES || events.len() == CALL_MAX_EVENTS {
                self.next = Some(event);
                return Ok(events);
            }
            events.push(event);
        }
    }

    /// The next line that isn't empty.
    fn read_event(&mut self, now: DateTime<Utc>) -> io::Result<Option<Event>> {
        loop {
            let mut line = Vec::new();
            let length = read_line(&mut self.lines, &mut line)?;
            let Some(length) = length else { return Ok(None) };
            let number = self.read;
            self.read += 1;
            if length == 0 {
                continue;
            }
            let timestamp = timestamp::to_send(&line, self.opened, now);
            let message = String::from_utf8(line);
            let mut message = message.unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into_owned());
            if length.max(message.len()) > MESSAGE_MAX_BYTES {
                let marker = format!(
                    " [cut by env0-s3-logs: all {length} bytes are in line {number}, counted from 0, of {}]",
                    self.object
                );
                message.truncate(message.floor_char_boundary(MESSAGE_MAX_BYTES - marker.len()));
                message.push_str(&marker);
                // What was cut off would stay in memory until the call is answered.
                message.shrink_to_fit();
            }
            return Ok(Some(Event { timestamp, message }));
        }
    }
}

/// Reads one line without its newline into `line`, of which [`LINE_MAX_BYTES`] are kept; its whole length, or `None`
/// at the end.
fn read_line(lines: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<usize>> {
    if lines.by_ref().take(LINE_MAX_BYTES as u64 + 1).read_until(b'\n', line)? == 0 {
        return Ok(None);
    }
    if line.pop_if(|last| *last == b'\n').is_some() {
        return Ok(Some(line.len()));
    }
    let rest = lines.skip_until(b'\n')?;
    // The rest ends with the newline, but for a last line that has none.
    let length = line.len() + rest.saturating_sub(1);
    line.truncate(LINE_MAX_BYTES);
    Ok(Some(length))
}

/// `events`, sorted, cut wherever one is more than 24 hours behind the first of its call.
fn days(events: Vec<Event>) -> VecDeque<Vec<Event>> {
    let mut calls = VecDeque::new();
    let mut call: Vec<Event> = Vec::new();
    for event in events {
        let first = call.first().map_or(event.timestamp, |first| first.timestamp);
        if event.timestamp.saturating_sub(first) > CALL_MAX_MILLIS {
            calls.push_back(mem::take(&mut call));
        }
        call.push(event);
    }
    calls.extend((!call.is_empty()).then_some(call));
    calls
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "env0-audits/2026/11/22/21:04:05_x7Qp2.log";

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp_millis(1_795_381_445_678).unwrap()
    }

    fn calls_of(batch: &[u8]) -> Vec<Vec<Event>> {
        let mut calls = Calls::new(batch, KEY.to_owned(), now());
        std::iter::from_fn(|| calls.next_call(now()).unwrap()).collect()
    }

    /// What AWS documents of one call, in its own words and numbers.
    fn judge(call: &[Event]) {
        assert!((1..=10_000).contains(&call.len()), "{} events", call.len());
        let bytes: usize = call.iter().map(|event| event.message.len() + 26).sum();
        assert!(bytes <= 1_048_576, "{bytes} bytes");
        assert!(call.iter().all(|event| !event.message.is_empty()));
        assert!(call.is_sorted_by_key(|event| event.timestamp));
        assert!(call[call.len() - 1].timestamp - call[0].timestamp <= 86_400_000);
    }

    #[test]
    fn ten_thousand_and_one_tiny_lines_are_two_calls() {
        let calls = calls_of("{}\n".repeat(10_001).as_bytes());
        calls.iter().for_each(|call| judge(call));
        assert_eq!(calls.iter().map(Vec::len).collect::<Vec<_>>(), [10_000, 1]);
    }

    #[test]
    fn a_call_is_filled_to_its_last_byte_and_no_further() {
        let line = |bytes: usize| format!("{{\"m\":\"{}\"}}", "x".repeat(bytes - 8));
        for (second, calls) in [(524_262, 1), (524_263, 2)] {
            let batch = format!("{}\n{}\n", line(524_262), line(second));
            let found = calls_of(batch.as_bytes());
            found.iter().for_each(|call| judge(call));
            assert_eq!(found.len(), calls, "{second}");
        }
        let whole = line(1_048_550);
        assert_eq!(calls_of(whole.as_bytes())[0][0].message, whole, "the longest line is not cut");
    }

    #[test]
    fn a_line_over_the_limit_is_cut_at_a_character_and_says_where_it_is() {
        for bytes in [1_048_551, 1_048_552, 1_048_553, 3_000_000, LINE_MAX_BYTES + 1, 9_000_000] {
            let long = format!("{}{}", "x".repeat(bytes % 3), "€".repeat(bytes / 3));
            for end in ["\n", ""] {
                let calls = calls_of(format!("{{}}\n{long}{end}").as_bytes());
                calls.iter().for_each(|call| judge(call));
                let message = &calls.iter().flatten().nth(1).unwrap().message;
                let marker = format!(" in line 1, counted from 0, of {KEY}]");
                assert!(message.ends_with(&marker), "{bytes}");
                let (kept, _) = message.split_once(" [cut by").unwrap();
                assert!(long.starts_with(kept) && message.len() > 1_048_546, "{bytes}");
            }
        }
    }

    #[test]
    fn days_of_backlog_are_a_call_a_day() {
        let line = |hours: i64| format!("{{\"timestamp\":{}}}\n", (now() - TimeDelta::hours(hours)).timestamp_millis());
        let batch: String = [0, 72, 71, 24, 48, 1].into_iter().map(line).collect();
        let calls = calls_of(batch.as_bytes());
        calls.iter().for_each(|call| judge(call));
        assert_eq!(calls.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3]);
    }

    #[test]
    fn empty_lines_and_bytes_that_are_not_utf8_do_no_harm() {
        let messages: Vec<_> =
            calls_of(b"\n{}\n\n\xff\xfe\n").concat().into_iter().map(|event| event.message).collect();
        assert_eq!(messages, ["{}", "\u{fffd}\u{fffd}"]);
        assert!(calls_of(b"").is_empty() && calls_of(b"\n\n").is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_line_is_in_one_call_and_every_call_is_within_its_limits(
            lines in prop::collection::vec((0_i64..20_000, prop_oneof![9 => 0_usize..200, 1 => 0_usize..600_000]), 0..300)
        ) {
            let lines: Vec<_> = lines.into_iter().enumerate().map(|(number, (minutes, padding))| {
                let time = (now() - TimeDelta::minutes(minutes)).timestamp_millis();
                format!("{{\"n\":{number},\"timestamp\":{time},\"m\":\"{}\"}}", "x".repeat(padding))
            }).collect();
            let calls = calls_of(lines.join("\n").as_bytes());
            calls.iter().for_each(|call| judge(call));
            let mut sent: Vec<_> = calls.concat().into_iter().map(|event| event.message).collect();
            let mut lines = lines;
            sent.sort_unstable();
            lines.sort_unstable();
            prop_assert!(sent == lines);
        }
    }
}
