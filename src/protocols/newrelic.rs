//! New Relic's Log API: `POST /log/v1`, which a client that was given the whole URL doubles.
//!
//! Specification: "Introduction to the Log API" in New Relic's documentation. The simple form (an object, or an array
//! of them) is stored as sent. Of the detailed form (`[{"common":{…},"logs":[{…},…]}]`) each log becomes a line of the
//! same form, with this log alone and all that stands beside `logs`, so that nothing is lost or renamed. Neither New
//! Relic nor env0 documents how env0 names the log type, so `logtype`, `service`, `service.name`, `name`, `source` and
//! `type` are read, of the log and common to all.

use std::io::Write;

use axum::http::{HeaderMap, StatusCode, Uri};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde_json::json;
use serde_json::value::RawValue;

use crate::batch::LogType;
use crate::protocols::body::{self, BodyError, Elements, Events, Limits, LineWriter, Members};
use crate::protocols::{self, Accepted, Answer, JSON, Part, Protocol, Refusal, answer, header_text, query_token};

/// New Relic.
pub struct NewRelic;

/// Members and attributes that may name the log type.
const NAMING_MEMBERS: [&str; 6] = ["logtype", "service", "service.name", "name", "source", "type"];

/// The members that only an object of the detailed form has.
struct Form<'a> {
    common: Option<&'a RawValue>,
    logs: Option<&'a RawValue>,
    has_others: bool,
}

impl<'a> Form<'a> {
    /// Reads `object`, a part of `body` in event number `event`. Refuses a member of the form that is there twice.
    fn of(body: &[u8], object: &'a RawValue, event: u64) -> Result<Self, BodyError> {
        let mut form = Form { common: None, logs: None, has_others: false };
        for (key, value) in Members::of(object) {
            let (found, twice) = match body::text_of(key).as_deref() {
                Some("common") => (&mut form.common, "`common` is there twice"),
                Some("logs") => (&mut form.logs, "`logs` is there twice"),
                _ => {
                    form.has_others = true;
                    continue;
                }
            };
            if found.replace(value).is_some() {
                return Err(BodyError::invalid(body, key.as_bytes(), event, twice));
            }
        }
        Ok(form)
    }

    /// The logs of the detailed form. A plain log may have an attribute `logs`, too, whose elements are no objects. Where
    /// there is no log, what `common` says is stored with the whole object alone.
    fn logs(&self) -> Option<&'a RawValue> {
        let logs = self.logs.filter(|logs| logs.get().starts_with('['))?;
        let is_of_the_form = match Elements::of(logs).next() {
            Some(_) => !self.has_others || Elements::of(logs).all(|log| log.get().starts_with('{')),
            None => !self.has_others && self.common.is_none_or(is_empty),
        };
        is_of_the_form.then_some(logs)
    }
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
        _received: fn() -> DateTime<Utc>,
        limits: &Limits,
    ) -> Result<Vec<Part>, BodyError> {
        let mut writer = LineWriter::with_capacity(limits, body.len() + 1);
        let body = writer.repair(body)?;
        for object in Events::new(&body) {
            let object = object?.json;
            let form = Form::of(&body, object, writer.records())?;
            let said_by_all = || said(object).or_else(|| form.common.and_then(said));
            match form.logs() {
                Some(logs) => detailed(&body, object, logs, said_by_all(), &mut writer)?,
                None => writer.push(said_by_all(), object)?,
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

/// Stores each of `logs`, a member of `object`, with the object's other members.
fn detailed(
    body: &[u8],
    object: &RawValue,
    logs: &RawValue,
    said_by_all: Option<LogType>,
    writer: &mut LineWriter,
) -> Result<(), BodyError> {
    let (object, logs) = (object.get().as_bytes(), logs.get().as_bytes());
    let start = logs.as_ptr() as usize - object.as_ptr() as usize;
    let (before, behind) = (&object[..start], &object[start + logs.len()..]);
    for log in Events::new(logs) {
        let log = log.map_err(|error| error.within(body, logs, writer.records()))?;
        writer.line(said(log.json).or(said_by_all), |out| {
            [before, b"[", log.bytes(), b"]", behind].into_iter().try_for_each(|part| out.write_all(part))
        })?;
    }
    Ok(())
}

/// Whether a `common` is an object without members.
fn is_empty(common: &RawValue) -> bool {
    common.get().starts_with('{') && Members::of(common).next().is_none()
}

/// The log type that a log or a `common` names, itself or in its attributes.
fn said(object: &RawValue) -> Option<LogType> {
    let said_directly = |object| protocols::said_by(body::members(object, NAMING_MEMBERS));
    said_directly(object).or_else(|| said_directly(body::members(object, ["attributes"])[0]?))
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
    fn newrelic_logs_are_lines_of_their_own_whatever_is_beside_them() {
        let common = r#""common":{"attributes":{"service":"env0-audits"}}"#;
        for (before, behind, said) in [
            (format!("{{{common},"), r#","extra":1}"#, AUDITS),
            (r#"{"a":null,"#.to_owned(), &*format!(",{common}}}"), AUDITS),
            (r#"{"logtype":"env0-audits","#.to_owned(), "}", AUDITS),
            (r#"{"attributes":{"service.name":"env0-audits"},"#.to_owned(), "}", AUDITS),
            (r#"{"message":"m","#.to_owned(), "}", None),
        ] {
            let line = |logs| format!(r#"{before}"logs":[{logs}]{behind}"#);
            let stored = post("/log/v1", &[], line(r#"{"x":1},{"logtype":"env0-deployments"}"#)).stored();
            assert_eq!(stored, [(said, line(r#"{"x":1}"#)), (DEPLOYMENTS, line(r#"{"logtype":"env0-deployments"}"#))]);
        }
    }

    #[test]
    fn a_newrelic_log_that_has_logs_of_other_things_is_stored_as_sent() {
        for body in [
            r#"{"message":"m","logs":[]}"#,
            r#"{"message":"m","logs":[{"x":1},"y"]}"#,
            r#"{"logs":"l"}"#,
            r#"{"common":1}"#,
            r#"{"common":{"logs":[{"message":"m"}]},"logs":[]}"#,
            r#"{"common":[{"message":"m"}],"logs":[]}"#,
            r#"{"common":{"attributes":[{"message":"m"}]},"logs":[]}"#,
            r#"{"common":{"attributes":{"logs":[{"message":"m"}]}},"logs":[]}"#,
            r#"{"common":{"attributes":{"a":{"message":"m"}}},"logs":[]}"#,
            r#"{"common":{"timestamp":{"message":"m"}},"logs":[]}"#,
            r#"{"common":{"attributes":"m"},"logs":[]}"#,
            r#"{"common":{"attributes":{"a":1}},"logs":[]}"#,
            r#"{"common":{"timestamp":1},"logs":[]}"#,
        ] {
            assert_eq!(post("/log/v1", &[], body).lines(), [body]);
        }
        for nothing in [r#"{"common":{ },"logs":[]}"#, r#"[{"logs":[ ]}]"#] {
            assert_eq!(post("/log/v1", &[], nothing).lines(), [""; 0]);
        }
        let named = r#"{"common":{"service":"env0-audits"},"logs":{}}"#;
        assert_eq!(post("/log/v1", &[], named).stored(), [(AUDITS, named.to_owned())]);
    }

    #[test]
    fn newrelic_members_that_are_there_twice_are_refused_by_name() {
        for (body, name) in [
            (r#"[{"common":{"attributes":{"service":"env0-audits"}},"common":{},"logs":[{"x":1}]}]"#, "`common`"),
            (r#"{"logs":[{"x":1}],"logs":[{"y":2}]}"#, "`logs`"),
        ] {
            let answer = post("/log/v1", &[], body).refused_body();
            assert_eq!(answer.status, 400);
            assert!(answer.text().contains(&format!("{name} is there twice")), "{}", answer.text());
        }
    }
}
