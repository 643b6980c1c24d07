//! Sumo Logic's HTTP source: `POST /receiver/v1/http/<secret>`, text or NDJSON.
//!
//! Specification: "Upload data to an HTTP Source" in Sumo Logic's documentation. Events are taken as in the native
//! protocol. The values of the `X-Sumo-…` headers are kept under Sumo Logic's names (`_sourceName`, `_sourceHost`,
//! `_sourceCategory`, `_fields`, `_dimensions`, `_metadata`) beside the event, which then is `message`. `X-Sumo-Client`
//! only tells the client's version.

use axum::http::{HeaderMap, StatusCode, Uri};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::batch::LogType;
use crate::protocols::body::{self, BodyError, Events, Limits, LineWriter};
use crate::protocols::head::tidy;
use crate::protocols::{
    self, Accepted, Answer, JSON, ObjectOrText, Part, Protocol, Refusal, empty_answer, header_values, objects_or_lines,
    split_log_type,
};

/// Sumo Logic.
pub struct SumoLogic;

/// The token at the end of an HTTP source's path; `path` has no log type.
pub fn secret(path: &str) -> Option<&str> {
    path.strip_prefix("/receiver/v1/http/").filter(|secret| !secret.is_empty() && !secret.contains('/'))
}

/// An event whose sender described it in headers.
#[derive(Serialize)]
struct Described<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<&'a str>,
    message: ObjectOrText<'a>,
    #[serde(flatten)]
    source: Source<'a>,
}

/// The headers' values, which are for all events of a request.
#[derive(Clone, Copy, Default, PartialEq, Serialize)]
struct Source<'a> {
    #[serde(rename = "_sourceName", skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(rename = "_sourceHost", skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    #[serde(rename = "_sourceCategory", skip_serializing_if = "Option::is_none")]
    category: Option<&'a str>,
    #[serde(rename = "_fields", skip_serializing_if = "Option::is_none")]
    fields: Option<&'a str>,
    #[serde(rename = "_dimensions", skip_serializing_if = "Option::is_none")]
    dimensions: Option<&'a str>,
    #[serde(rename = "_metadata", skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a str>,
}

impl<'a> Source<'a> {
    fn of(headers: &'a HeaderMap) -> Result<Self, BodyError> {
        let names =
            ["x-sumo-name", "x-sumo-host", "x-sumo-category", "x-sumo-fields", "x-sumo-dimensions", "x-sumo-metadata"];
        let [name, host, category, fields, dimensions, metadata] = header_values(headers, names)?;
        Ok(Source { name, host, category, fields, dimensions, metadata })
    }

    /// The log type that the category, the name or one of the lists of `<key>=<value>` names.
    fn log_type(&self) -> Option<LogType> {
        let lists = [self.fields, self.dimensions, self.metadata].into_iter().flatten();
        let values = lists.flat_map(|list| list.split(',')).filter_map(|pair| Some(pair.split_once('=')?.1.trim()));
        [self.category, self.name].into_iter().flatten().chain(values).find_map(protocols::log_type_of)
    }

    /// Stores a JSON object as it was sent, or as `message` beside the headers' values.
    fn push(self, said: Option<LogType>, object: &RawValue, writer: &mut LineWriter) -> Result<(), BodyError> {
        if self == Source::default() {
            return writer.push(said, object);
        }
        writer.serialize(said, &Described { timestamp: None, message: ObjectOrText::Object(object), source: self })
    }
}

impl Protocol for SumoLogic {
    fn name(&self) -> &'static str {
        "sumologic"
    }

    fn token(&self, uri: &Uri, _headers: &HeaderMap) -> Option<String> {
        protocols::percent_decode(secret(split_log_type(&tidy(uri.path())).0)?)
    }

    fn parse(
        &self,
        _uri: &Uri,
        headers: &HeaderMap,
        body: Bytes,
        received: fn() -> DateTime<Utc>,
        limits: &Limits,
    ) -> Result<Vec<Part>, BodyError> {
        let source = Source::of(headers)?;
        let said = source.log_type();
        let is_utf8_json = || Events::sniff(&body) && body::repaired_len(&body).is_none();
        if source == Source::default() && is_utf8_json() {
            match body::scan(body.clone(), received, limits) {
                // Not all of it is JSON, so each line is read on its own.
                Err(BodyError::Invalid { .. }) => {}
                lines => return Ok(vec![Part { said, lines: lines? }]),
            }
        }
        let timestamp = &*body::rfc3339(received());
        objects_or_lines(&body, limits, |writer, event| match event {
            ObjectOrText::Object(object) => source.push(said, object, writer),
            message => writer.serialize(said, &Described { timestamp: Some(timestamp), message, source }),
        })
    }

    /// 200 without a body.
    fn accepted(&self, _accepted: &Accepted) -> Answer {
        empty_answer(StatusCode::OK)
    }

    /// Sumo Logic documents statuses only; the body is for people.
    fn refused(&self, refusal: &Refusal) -> Answer {
        refusal.answer(JSON, json!({"message": refusal.to_string()}).to_string())
    }
}

#[cfg(test)]
mod tests {
    use crate::protocols::tests::*;

    #[test]
    fn sumologic_events_are_stored_as_sent_or_with_what_the_headers_say() {
        let uri = "/receiver/v1/http/ZaVnC4dhaV1";
        let json = r#"{ "level":"info" }"#;
        let plain = post(uri, &[], json);
        assert_eq!(plain.lines(), [json]);
        assert_eq!(plain.token().as_deref(), Some("ZaVnC4dhaV1"));
        assert_eq!(post("/receiver/v1/http/a%2Fb+c==", &[], "").token().as_deref(), Some("a/b+c=="));
        assert_eq!(plain.accepted(1).status, 200);
        let audits = post(uri, &[("x-sumo-category", "env0-audits")], json);
        let line = format!(r#"{{"message":{json},"_sourceCategory":"env0-audits"}}"#);
        assert_eq!(audits.stored(), [(AUDITS, line)]);
        let described =
            [("x-sumo-name", "n"), ("x-sumo-host", "h"), ("x-sumo-category", "c/d"), ("x-sumo-fields", "a=b")];
        let source = r#""_sourceName":"n","_sourceHost":"h","_sourceCategory":"c/d","_fields":"a=b""#;
        assert_eq!(post(uri, &described, json).lines(), [format!(r#"{{"message":{json},{source}}}"#)]);
        let text = format!(r#"{{"timestamp":"2026-11-22T21:00:00.123Z","message":"a line",{source}}}"#);
        assert_eq!(post(uri, &described, "a line\n").lines(), [text]);
    }

    #[test]
    fn sumologic_headers_that_list_pairs_are_kept_and_tell_the_type() {
        for (header, member) in
            [("x-sumo-fields", "_fields"), ("x-sumo-dimensions", "_dimensions"), ("x-sumo-metadata", "_metadata")]
        {
            let sent = post("/receiver/v1/http/s", &[(header, "a=b, service = env0-audits")], "{}");
            let line = format!(r#"{{"message":{{}},"{member}":"a=b, service = env0-audits"}}"#);
            assert_eq!(sent.stored(), [(AUDITS, line)]);
        }
        assert_eq!(post("/receiver/v1/http/s", &[("x-sumo-client", "env0-audits")], "{}").lines(), ["{}"]);
    }

    #[test]
    fn sumologic_takes_each_line_as_what_it_is() {
        let uri = "/receiver/v1/http/s";
        let body = include_str!("../../tests/fixtures/bodies/sumo-json-then-text.txt");
        let objects: Vec<_> = body.lines().collect();
        let text = |text: &str| format!(r#"{{"timestamp":"2026-11-22T21:00:00.123Z","message":"{text}"}}"#);
        assert_eq!(post(uri, &[], body).lines(), [objects[0].to_owned(), text(objects[1]), objects[2].to_owned()]);
        assert_eq!(
            post(uri, &[], "{\"a\":\n[]\n{}{}\n").lines(),
            [text(r#"{\"a\":"#), text("[]"), "{}".into(), "{}".into()]
        );
        let described = post(uri, &[("x-sumo-name", "env0-audits")], "{\"a\":1}\ncut {").stored();
        assert_eq!(described[0], (AUDITS, r#"{"message":{"a":1},"_sourceName":"env0-audits"}"#.to_owned()));
        assert!(described[1].1.contains(r#""message":"cut {","_sourceName":"env0-audits""#));
    }

    #[test]
    fn sumologic_lines_that_are_not_utf8_are_stored_with_replacements() {
        for body in [&b"{\"a\":\"ca\xf1on\"}\n{\"b\":1}"[..], b"{\"a\":\"ca\xf1on\"}\n{\"b\":1}\ntext \xff\xff"] {
            let sent = post("/receiver/v1/http/s", &[], body);
            assert_eq!(sent.lines()[..2], ["{\"a\":\"ca\u{fffd}on\"}", "{\"b\":1}"]);
            assert_eq!(sent.replaced(), if sent.lines().len() == 3 { 3 } else { 1 });
        }
    }
}
