//! What `PutLogEvents` takes, as CloudWatch's API reference says it.

use serde_json::{Value, json};

use super::{LoggedEvent, LogsError};

const CALL_MAX_BYTES: usize = 1_048_576;
const EVENT_BYTES: usize = 26;
const CALL_MAX_EVENTS: usize = 10_000;
const DAY_MILLIS: i64 = 24 * 60 * 60 * 1000;
/// Older events are too old.
const OLDEST_DAYS: i64 = 14;
/// Events further in the future are too new.
const NEWEST_MILLIS: i64 = 2 * 60 * 60 * 1000;

/// The events that are kept, and the answer; an error where the call as a whole is refused.
pub(super) fn judge(events: &Value, retention_days: Option<i64>) -> Result<(Vec<LoggedEvent>, Value), LogsError> {
    let refused = |message: String| Err(LogsError(400, "InvalidParameterException".into(), message));
    let events = events.as_array().into_iter().flatten().map(|event| {
        let (timestamp, message) = (event["timestamp"].as_i64()?, event["message"].as_str()?.to_owned());
        Some(LoggedEvent { timestamp, message })
    });
    let Some(events) = events.collect::<Option<Vec<_>>>() else {
        return refused("an event without timestamp or message".into());
    };
    let bytes: usize = events.iter().map(|event| event.message.len() + EVENT_BYTES).sum();
    if !(1..=CALL_MAX_EVENTS).contains(&events.len()) {
        return refused(format!("Member must have length between 1 and 10000, not {}", events.len()));
    }
    if bytes > CALL_MAX_BYTES {
        return refused(format!("Upload too large: {bytes} bytes exceeds limit of {CALL_MAX_BYTES}"));
    }
    if events.iter().any(|event| event.message.is_empty() || event.timestamp < 0) {
        return refused("Member must have length greater than or equal to 1, and a timestamp of 0 or more".into());
    }
    if !events.is_sorted_by_key(|event| event.timestamp) {
        return refused("Log events in a single PutLogEvents request must be in chronological order.".into());
    }
    if events[events.len() - 1].timestamp - events[0].timestamp > DAY_MILLIS {
        let message = "The batch of log events in a single PutLogEvents request cannot span more than 24 hours.";
        return refused(message.into());
    }
    let now = chrono::Utc::now().timestamp_millis();
    let before = |days: i64| events.partition_point(|event| event.timestamp < now - days * DAY_MILLIS);
    let (too_old, expired) = (before(OLDEST_DAYS), retention_days.map_or(0, before));
    let too_new = events.partition_point(|event| event.timestamp <= now + NEWEST_MILLIS);
    let mut info = json!({});
    if too_old > 0 {
        info["tooOldLogEventEndIndex"] = too_old.into();
    }
    if expired > 0 {
        info["expiredLogEventEndIndex"] = expired.into();
    }
    if too_new < events.len() {
        info["tooNewLogEventStartIndex"] = too_new.into();
    }
    let mut answer = json!({"nextSequenceToken": "49590302640184345345"});
    if info != json!({}) {
        answer["rejectedLogEventsInfo"] = info;
    }
    let gone = too_old.max(expired);
    Ok((events.into_iter().take(too_new).skip(gone).collect(), answer))
}
