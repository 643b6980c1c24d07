//! New Relic's Log API: `POST /log/v1`, which a client that was given the whole URL doubles.
//!
//! Specification: "Introduction to the Log API" in New Relic's documentation. The simple form (an
//! object, or an array of them) is stored as sent. Of the detailed form
//! (`[{"common":{…},"logs":[{…},…]}]`, no other member) each log becomes a line of the same form with one log, so
//! that nothing is said in other words. Neither documents how env0 names the log type; `logtype`,
//! `service`, `name`, `source` and `type`, of the log or common to all, are looked at.

use axum::http::{HeaderMap, StatusCode, Uri};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use crate::batch::LogType;
use crate::protocols::body::{self, BodyError, Events, Limits, LineWriter};
use crate::protocols::{self, Accepted, Answer, JSON, Part, Protocol, Refusal, answer, header_text, query_token};

/// New Relic.
pub struct NewRelic;

/// The detailed form as it is sent.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch<'a> {
    #[serde(borrow)]
    common: Option<&'a RawValue>,
    #[serde(borrow)]
    logs: &'a RawValue,
}

/// One log in the detailed form.
#[derive(Serialize)]
struct Detailed<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    common: Option<&'a RawValue>,
    logs: [&'a RawValue; 1],
}

impl Protocol for NewRelic {
    fn name(&self) -> &'static str {
        "newrelic"
    }

    fn token(&self, uri: &Uri, headers: &HeaderMap) -> Option<String> {
        let names = ["api-key", "x-license-key", "license-key", "x-insert-key"];
        let in_header = names.into_iter().find_map(|name| header_text(headers, name)).map(str::to_owned);
        in_header.or_else(|| query_token(uri, &["Api-Key", "License-Key"]))
    }

    fn parse(
        &self,
        _uri: &Uri,
        _headers: &HeaderMap,
        body: Bytes,
        _received: DateTime<Utc>,
        limits: &Limits,
    ) -> Result<Vec<Part>, BodyError> {
        let mut writer = LineWriter::with_capacity(limits, body.len() + 1);
        let body = writer.repair(body)?;
        for object in Events::new(&body) {
            let object = object?.json;
            match serde_json::from_str::<Batch<'_>>(object.get()) {
                Ok(batch) if batch.logs.get().starts_with('[') => detailed(&body, &batch, &mut writer)?,
                _ => writer.push(said(object), object)?,
            }
        }
        Ok(writer.finish())
    }

    /// 202 with `{"requestId":"<uuid>"}`.
    fn accepted(&self, _accepted: &Accepted) -> Answer {
        answer(StatusCode::ACCEPTED, JSON, json!({"requestId": random_uuid()}).to_string())
    }

    /// New Relic documents statuses only; the body is for people.
    fn refused(&self, refusal: &Refusal) -> Answer {
        refusal.answer(JSON, json!({"requestId": random_uuid(), "error": refusal.to_string()}).to_string())
    }
}

/// Stores each of the logs with what is common to them.
fn detailed(body: &[u8], &Batch { common, logs }: &Batch<'_>, writer: &mut LineWriter) -> Result<(), BodyError> {
    let said_by_common = common.and_then(said);
    for log in Events::new(logs.get().as_bytes()) {
        let log = log.map_err(|error| error.within(body, logs.get().as_bytes(), writer.records()))?;
        writer.serialize(said(log.json).or(said_by_common), &Detailed { common, logs: [log.json] })?;
    }
    Ok(())
}

/// The log type that a log or a `common` names, itself or in its attributes.
fn said(object: &RawValue) -> Option<LogType> {
    let [logtype, service, name, source, kind, attributes] =
        body::members(object, ["logtype", "service", "name", "source", "type", "attributes"]);
    protocols::said_by([logtype, service, name, source, kind]).or_else(|| said_directly(attributes?))
}

fn said_directly(attributes: &RawValue) -> Option<LogType> {
    protocols::said_by(body::members(attributes, ["logtype", "service", "name", "source", "type"]))
}

/// A version 4 UUID (RFC 9562 section 5.4).
fn random_uuid() -> String {
    let bits = (rand::random::<u128>() & !(0xf << 76 | 0xc << 60)) | 4 << 76 | 8 << 60;
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use crate::protocols::tests::*;

    #[test]
    fn newrelic_takes_both_forms() {
        let simple = r#"{"deploymentLogId":"d1","level":"info","message":"m","timestamp":1795382237933}"#;
        for body in [simple.to_owned(), format!("[{simple}]")] {
            assert_eq!(post("/log/v1/log/v1", &[], body).lines(), [simple]);
        }
        let detailed = r#"[{"common":{"attributes":{"service":"env0-audits"}},
            "logs":[{"message":"a"},{"message":"b","attributes":{"logtype":"env0-deployments"}}]},{"logs":[{"message":"c"}]}]"#;
        let sent = post("/log/v1", &[("api-key", "k")], detailed);
        let common = r#""common":{"attributes":{"service":"env0-audits"}}"#;
        assert_eq!(
            sent.stored(),
            [
                (AUDITS, format!(r#"{{{common},"logs":[{{"message":"a"}}]}}"#)),
                (
                    DEPLOYMENTS,
                    format!(r#"{{{common},"logs":[{{"message":"b","attributes":{{"logtype":"env0-deployments"}}}}]}}"#)
                ),
                (None, r#"{"logs":[{"message":"c"}]}"#.to_owned()),
            ]
        );
        assert_eq!(sent.token().as_deref(), Some("k"));
        assert_eq!(post("/log/v1", &[("x-license-key", "l")], "").token().as_deref(), Some("l"));
        assert_eq!(post("/log/v1?Api-Key=q%2B", &[], "").token().as_deref(), Some("q+"));
        assert_eq!(post("/log/v1?a=b&License-Key=r", &[], "").token().as_deref(), Some("r"));
        let accepted = sent.accepted(3);
        assert_eq!(accepted.status, 202);
        let id = accepted.json()["requestId"].as_str().unwrap().to_owned();
        assert_eq!((id.len(), id.as_bytes()[14], id.matches('-').count()), (36, b'4', 4));
        for body in ["text", r#"{"logs":[1]}"#, r#"[{"message":1},"#] {
            assert_eq!(post("/log/v1", &[], body).refused_body().status, 400, "{body}");
        }
    }

    #[test]
    fn a_newrelic_log_that_has_logs_beside_other_members_is_stored_as_sent() {
        for body in [
            r#"{"message":"m","logs":[]}"#,
            r#"{"message":"m","logs":[{"x":1}]}"#,
            r#"{"logs":[{"x":1}],"logs":[{"y":2}]}"#,
            r#"{"logs":"l"}"#,
        ] {
            assert_eq!(post("/log/v1", &[], body).lines(), [body]);
        }
    }
}
