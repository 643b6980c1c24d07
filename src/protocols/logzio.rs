//! Logz.io's bulk listener: `POST /?token=<token>[&type=<type>]`, NDJSON.
//!
//! Specification: "Ship logs over HTTP" in Logz.io's documentation
//! (<https://docs.logz.io/docs/shipping/Code/HTTP>). The stored line is the event as sent, or a line
//! of text as in the native protocol. As at Logz.io, a `type` in the query is the type of events that have
//! none, and is added to them; to those with another one as `queryType`. env0 names the log type in `name` or `type`.

use axum::http::{HeaderMap, StatusCode, Uri};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::batch::LogType;
use crate::protocols::body::{self, BodyError, Events, Limits, LineWriter};
use crate::protocols::{
    self, Accepted, Answer, JSON, Part, Protocol, Refusal, TEXT, empty_answer, query_token, query_values,
};

/// Logz.io.
pub struct Logzio;

/// Members that may name the log type. env0's Logz.io integration names it in the first two; shippers that post here
/// (Fluent Bit, Vector, and those that write for Datadog) in the others.
const NAMING_MEMBERS: [&str; 5] = ["type", "name", "source", "service", "ddsource"];

/// A line of text, with the query's type.
#[derive(Serialize)]
struct TextLine<'a> {
    timestamp: &'a str,
    message: &'a str,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
}

/// The `type` in the query, and the log type that it names.
struct DefaultType {
    text: Option<String>,
    said: Option<LogType>,
}

impl DefaultType {
    /// Stores a JSON object, with the query's type if that is not its own.
    fn push(&self, event: &RawValue, writer: &mut LineWriter) -> Result<(), BodyError> {
        let [own_type, others @ ..] = body::members(event, NAMING_MEMBERS);
        let said = protocols::said_by([own_type]).or_else(|| protocols::said_by(others)).or(self.said);
        match (&self.text, own_type) {
            (Some(text), None) => writer.push_with(said, event, &[("type", text)]),
            (Some(text), Some(own)) if !body::says(own, text) => writer.push_with(said, event, &[("queryType", text)]),
            _ => writer.push(said, event),
        }
    }

    /// The events of a body that is JSON from its beginning to its end.
    fn objects(&self, body: Bytes, limits: &Limits) -> Result<Vec<Part>, BodyError> {
        let mut writer = LineWriter::with_capacity(limits, body.len() + 1);
        let body = writer.repair(body)?;
        Events::new(&body).try_for_each(|event| self.push(event?.json, &mut writer))?;
        Ok(writer.finish())
    }

    /// The events of a body of lines, each a JSON object or text, and whether one is an object.
    fn lines(
        &self,
        body: &[u8],
        received: fn() -> DateTime<Utc>,
        limits: &Limits,
    ) -> Result<(Vec<Part>, bool), BodyError> {
        let mut writer = LineWriter::with_capacity(limits, body.len() + 1);
        let (timestamp, kind) = (&*body::rfc3339(received()), self.text.as_deref());
        let mut has_object = false;
        writer.text_lines(body, |writer, message| match Events::of_line(message) {
            Some(mut objects) => {
                has_object = true;
                objects.try_for_each(|object| self.push(object, writer))
            }
            None => writer.serialize(self.said, &TextLine { timestamp, message, kind }),
        })?;
        Ok((writer.finish(), has_object))
    }
}

impl Protocol for Logzio {
    fn name(&self) -> &'static str {
        "logzio"
    }

    fn token(&self, uri: &Uri, _headers: &HeaderMap) -> Option<String> {
        query_token(uri, &["token"])
    }

    /// An empty body is fine: logzio-nodejs sends one when it closes. A line that is broken JSON is kept
    /// as text, because clients drop all lines of a body that is refused. Broken JSON without a single
    /// line that is an object is refused.
    fn parse(
        &self,
        uri: &Uri,
        _headers: &HeaderMap,
        body: Bytes,
        received: fn() -> DateTime<Utc>,
        limits: &Limits,
    ) -> Result<Vec<Part>, BodyError> {
        let [text] = query_values(uri, ["type"])?;
        let default_type = DefaultType { said: text.as_deref().and_then(protocols::log_type_of), text };
        if !Events::sniff(&body) {
            return Ok(default_type.lines(&body, received, limits)?.0);
        }
        match default_type.objects(body.clone(), limits) {
            Err(broken @ BodyError::Invalid { .. }) => match default_type.lines(&body, received, limits)? {
                (parts, true) => Ok(parts),
                (_, false) => Err(broken),
            },
            outcome => outcome,
        }
    }

    /// 200 without a body.
    fn accepted(&self, _accepted: &Accepted) -> Answer {
        empty_answer(StatusCode::OK)
    }

    /// A refused body is answered with Logz.io's counts, of which none was taken.
    fn refused(&self, refusal: &Refusal) -> Answer {
        let (malformed, oversized) = match refusal {
            Refusal::Body(BodyError::Invalid { .. }) => (1, 0),
            Refusal::Body(BodyError::EventTooLarge { .. }) => (0, 1),
            _ => return refusal.answer(TEXT, refusal.to_string()),
        };
        let counts = json!({
            "malformedLines": malformed,
            "successfulLines": 0,
            "oversizedLines": oversized,
            "emptyLogLines": 0,
            "error": refusal.to_string(),
        });
        refusal.answer(JSON, counts.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocols::tests::*;

    #[test]
    fn logzio_events_are_stored_as_sent_and_their_type_or_name_tells_the_log_type() {
        let lines = [
            r#"{"message":"a","name":"env0-deployment-logs","type":"x"}"#,
            r#"{"message":"b","type":"env0-audit-logs"}"#,
            r#"{"message":"c"}"#,
        ];
        let sent = post("/?token=t%2B1", &[], lines.join("\n"));
        let said = [DEPLOYMENTS, AUDITS, None];
        assert_eq!(sent.stored(), [0, 1, 2].map(|index| (said[index], lines[index].to_owned())));
        let typed = post("/?type=env0-audits", &[], lines.join("\n")).stored();
        assert_eq!(typed.iter().map(|(said, _)| *said).collect::<Vec<_>>(), [DEPLOYMENTS, AUDITS, AUDITS]);
        assert_eq!(sent.token().as_deref(), Some("t+1"));
        assert_eq!((sent.accepted(3).status, sent.accepted(3).text()), (200, ""));
    }

    #[test]
    fn a_shipper_s_source_or_service_tells_the_type_at_the_root() {
        for event in [
            r#"{"source":"env0-audit-logs-source","event":1}"#,
            r#"{"name":"x","service":"env0-audits"}"#,
            r#"{"ddsource":"env0-audit-logs","service":"x"}"#,
        ] {
            assert_eq!(post("/", &[], event).stored(), [(AUDITS, event.to_owned())]);
        }
    }

    #[test]
    fn logzio_gives_events_the_type_of_the_query_beside_one_of_their_own() {
        let sent = post("/?type=my%20type", &[], r#"{"message":"a"}{"type":5}{ }{"type":"my type"}"#);
        let stored = [
            r#"{"message":"a","type":"my type"}"#,
            r#"{"type":5,"queryType":"my type"}"#,
            r#"{ "type":"my type"}"#,
            r#"{"type":"my type"}"#,
        ];
        assert_eq!(sent.lines(), stored);
        let text = |kind| format!(r#"{{"timestamp":"2026-11-22T21:00:00.123Z","message":"a \"line\""{kind}}}"#);
        assert_eq!(post("/?type=apache", &[], "a \"line\"\n").lines(), [text(r#","type":"apache""#)]);
        assert_eq!(
            post("/?type=env0-audits", &[], "a \"line\"").stored(),
            [(AUDITS, text(r#","type":"env0-audits""#))]
        );
        assert_eq!(post("/?type=apache", &[], "").lines(), [""; 0]);
    }

    #[test]
    fn logzio_events_that_are_not_utf8_are_stored_with_replacements() {
        let sent = post("/", &[], b"{\"message\":\"ca\xf1on\"}".to_vec());
        assert_eq!(sent.lines(), ["{\"message\":\"ca\u{fffd}on\"}"]);
        assert_eq!(sent.replaced(), 1);
    }

    #[test]
    fn a_logzio_line_that_is_broken_json_is_kept_as_text_beside_the_others() {
        let text = |message: &str, kind: &str| {
            format!(r#"{{"timestamp":"2026-11-22T21:00:00.123Z","message":"{message}"{kind}}}"#)
        };
        let body = "{\"name\":\"env0-audits\"}\n{bad\n{\"b\":1}{\"c\":2}\n{\"cut\":";
        assert_eq!(
            post("/?token=t", &[], body).stored(),
            [
                (AUDITS, r#"{"name":"env0-audits"}"#.to_owned()),
                (None, text("{bad", "")),
                (None, r#"{"b":1}"#.to_owned()),
                (None, r#"{"c":2}"#.to_owned()),
                (None, text(r#"{\"cut\":"#, "")),
            ]
        );
        let typed = post("/?type=x", &[], "{bad\n{\"b\":1}").lines();
        assert_eq!(typed, [text("{bad", r#","type":"x""#), r#"{"b":1,"type":"x"}"#.to_owned()]);
    }

    #[test]
    fn a_logzio_line_is_an_object_after_a_line_of_text_too() {
        let secret = r#"{"type":"env0-audits","customEnv0EnvironmentVariables":{"oidcToken":"s"}}"#;
        let stored = post("/", &[], format!("starting\n{secret}\n[]")).stored();
        assert_eq!(stored[1], (AUDITS, secret.replace(r#""s""#, r#""[redacted]""#)));
        assert_eq!((stored.len(), stored[0].0, stored[2].0), (3, None, None));
    }

    #[test]
    fn logzio_is_refused_with_counts() {
        let malformed = post("/?token=t", &[], "{\"a\":1").refused_body();
        assert_eq!(malformed.status, 400);
        assert_eq!((&malformed.json()["malformedLines"], &malformed.json()["successfulLines"]), (&1.into(), &0.into()));
        let oversized = post("/?token=t", &[], "{\"a\":1}").refused_body_with(&Limits { max_event_bytes: 3, ..LIMITS });
        assert_eq!((oversized.status, &oversized.json()["oversizedLines"]), (413, &1.into()));
    }
}
