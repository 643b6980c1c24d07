//! Splunk's HTTP Event Collector (HEC): `/services/collector[/event|/raw|/health]`.
//!
//! Specification: "Format events for HTTP Event Collector" and "HTTP Event Collector REST API
//! endpoints" in Splunk's "Getting Data In"; error codes as in its "Troubleshoot HTTP Event
//! Collector". An event's stored line is its envelope as sent; a raw line becomes an envelope with
//! what the query says of it. env0 names the log type in `source` or `index`.

use axum::http::header::ALLOW;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::batch::LogType;
use crate::protocols::body::{self, BodyError, Events, Limits, LineWriter};
use crate::protocols::head::tidy;
use crate::protocols::{
    self, Accepted, Answer, BadCredentials, JSON, ObjectOrText, Part, Protocol, Refusal, answer, empty_answer,
    objects_or_lines, query_token, query_values,
};

/// Splunk HEC.
pub struct Splunk;

/// HEC's texts for bodies that are refused.
const NO_DATA: &str = "No data";
const EVENT_REQUIRED: &str = "Event field is required";
const EVENT_BLANK: &str = "Event field cannot be blank";

impl Protocol for Splunk {
    fn name(&self) -> &'static str {
        "splunk"
    }

    fn token(&self, uri: &Uri, _headers: &HeaderMap) -> Option<String> {
        query_token(uri, &["token"])
    }

    fn parse(
        &self,
        uri: &Uri,
        _headers: &HeaderMap,
        body: Bytes,
        received: fn() -> DateTime<Utc>,
        limits: &Limits,
    ) -> Result<Vec<Part>, BodyError> {
        if body::is_blank(&body) {
            return Err(BodyError::Invalid { event: 0, offset: 0, reason: NO_DATA.to_owned() });
        }
        let metadata = Metadata(query_values(uri, METADATA)?);
        if is_raw(uri) {
            return raw(&metadata, &body, received, limits);
        }
        let mut writer = LineWriter::with_capacity(limits, body.len() + 1);
        envelopes(&metadata, &writer.repair(body)?, &mut writer)?;
        Ok(writer.finish())
    }

    fn accepted(&self, _accepted: &Accepted) -> Answer {
        answer(StatusCode::OK, JSON, r#"{"text":"Success","code":0}"#)
    }

    /// `{"text":…,"code":…}`, with `invalid-event-number` where one event is at fault.
    fn refused(&self, refusal: &Refusal) -> Answer {
        let (text, code) = match refusal {
            Refusal::Unauthorized(BadCredentials::Missing) => ("Token is required", 2),
            Refusal::Unauthorized(BadCredentials::Incomplete) => ("Invalid authorization", 3),
            Refusal::Unauthorized(_) => ("Invalid token", 4),
            Refusal::Body(BodyError::Invalid { reason, .. }) => match reason.as_str() {
                NO_DATA => (NO_DATA, 5),
                EVENT_REQUIRED => (EVENT_REQUIRED, 12),
                EVENT_BLANK => (EVENT_BLANK, 13),
                _ => ("Invalid data format", 6),
            },
            Refusal::LengthRequired => (NO_DATA, 5),
            Refusal::BrokenBody { .. }
            | Refusal::UnsupportedEncoding
            | Refusal::UnsupportedMediaType { .. }
            | Refusal::Body(BodyError::OtherCharset) => ("Invalid data format", 6),
            Refusal::Body(_) | Refusal::TooLarge { .. } => ("Request entity too large", 27),
            Refusal::BodyTimeout | Refusal::Unavailable { .. } => ("Server is busy", 9),
            Refusal::UnknownPath | Refusal::WrongMethod { .. } => {
                ("The requested URL was not found on this server.", 404)
            }
        };
        let mut reply = json!({"text": text, "code": code});
        if let Refusal::Body(BodyError::Invalid { event, .. } | BodyError::EventTooLarge { event, .. }) = refusal
            && code != 5
        {
            reply["invalid-event-number"] = json!(event);
        }
        // Splunk's texts are fixed, so the exact reason has a field of its own.
        reply["detail"] = json!(refusal.to_string());
        refusal.answer(JSON, reply.to_string())
    }

    fn alive(&self) -> Answer {
        answer(StatusCode::OK, JSON, r#"{"text":"HEC is healthy","code":17}"#)
    }
}

/// What Splunk answers to `OPTIONS`: `methods` in `Allow`, no body.
pub fn options(methods: &'static str) -> Answer {
    let mut answer = empty_answer(StatusCode::OK);
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    answer
}

/// What Splunk answers to a request for acknowledgements where they are off.
pub fn acks_are_disabled() -> Answer {
    answer(StatusCode::BAD_REQUEST, JSON, r#"{"text":"ACK is disabled","code":14}"#)
}

/// Whether a path that leads here ends in `/raw`. Where a client has appended one path to another, the last one counts.
fn is_raw(uri: &Uri) -> bool {
    let path = tidy(uri.path());
    path.strip_suffix("/1.0").unwrap_or(&path).ends_with("/raw")
}

/// The members of an envelope that the query may give for all events of a request.
const METADATA: [&str; 5] = ["time", "host", "source", "sourcetype", "index"];
/// Where the query's value is kept beside another one of the envelope's own, which is the one that counts at Splunk.
const OVERRULED: [&str; 5] = ["queryTime", "queryHost", "querySource", "querySourcetype", "queryIndex"];

/// The values in the query, in the order of [`METADATA`].
struct Metadata([Option<String>; METADATA.len()]);

impl Metadata {
    /// What an envelope with these members of its own lacks of the query.
    fn beside(&self, own: [Option<&RawValue>; METADATA.len()]) -> Vec<(&'static str, &str)> {
        let names = METADATA.into_iter().zip(OVERRULED);
        let said =
            names.zip(&self.0).zip(own).filter_map(|((names, value), own)| Some((names, value.as_deref()?, own)));
        said.filter_map(|((name, overruled), value, own)| match own {
            None => Some((name, value)),
            Some(own) => (!body::says(own, value)).then_some((overruled, value)),
        })
        .collect()
    }

    fn log_type(&self) -> Option<LogType> {
        let [_, _, source, sourcetype, index] = &self.0;
        [source, sourcetype, index].into_iter().flatten().find_map(|word| protocols::log_type_of(word))
    }
}

/// Envelopes, one after the other: `{"time":…,"source":…,"sourcetype":…,"index":…,"event":…}`. A value
/// that the query has and an envelope doesn't is added to it; one that differs from the envelope's own, as `query…`.
fn envelopes(metadata: &Metadata, body: &[u8], writer: &mut LineWriter) -> Result<(), BodyError> {
    for envelope in Events::new(body) {
        let envelope = envelope?;
        let names = ["time", "host", "source", "sourcetype", "index", "event", "fields"];
        let [time, host, source, sourcetype, index, event, fields] = body::members(envelope.json, names);
        let complaint = match event.map(RawValue::get) {
            None if fields.is_none() => Some(EVENT_REQUIRED),
            Some(r#""""#) => Some(EVENT_BLANK),
            _ => None,
        };
        if let Some(reason) = complaint {
            return Err(BodyError::invalid(body, envelope.bytes(), writer.records(), reason));
        }
        let said = protocols::said_by([source, sourcetype, index]).or_else(|| metadata.log_type());
        match &metadata.beside([time, host, source, sourcetype, index])[..] {
            [] => writer.push(said, envelope.json)?,
            members => writer.push_with(said, envelope.json, members)?,
        }
    }
    Ok(())
}

/// Each line or JSON object becomes an envelope with the query's values and the time it was received.
fn raw(
    metadata: &Metadata,
    body: &Bytes,
    received: fn() -> DateTime<Utc>,
    limits: &Limits,
) -> Result<Vec<Part>, BodyError> {
    #[derive(Serialize)]
    struct Envelope<'a> {
        timestamp: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        time: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        host: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        source: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        sourcetype: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        index: Option<&'a str>,
        event: ObjectOrText<'a>,
    }
    let [time, host, source, sourcetype, index] = metadata.0.each_ref().map(Option::as_deref);
    let (said, timestamp) = (metadata.log_type(), &*body::rfc3339(received()));
    objects_or_lines(body, limits, |writer, event| {
        writer.serialize(said, &Envelope { timestamp, time, host, source, sourcetype, index, event })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use crate::protocols::{BadCredentials, Refusal, tests::*};

    #[test]
    fn splunk_envelopes_are_stored_as_sent_and_their_source_tells_the_type() {
        let deployment =
            r#"{"source":"env0-deployment-logs-source","sourcetype":"env0-sourcetype","event":{"message":"a"}}"#;
        let audit = r#"{ "source":"env0-audit-logs-source", "event":"b" }"#;
        let index = r#"{"index":"env0-audit-logs-index","time":"1795382237.825","event":1}"#;
        let other = r#"{"fields":{"a":1},"source":5}"#;
        let sent = post("/services/collector/event/1.0", &[], [deployment, audit, index, other].concat());
        let expected = [(DEPLOYMENTS, deployment), (AUDITS, audit), (AUDITS, index), (None, other)];
        assert_eq!(sent.stored(), expected.map(|(said, line)| (said, line.to_owned())));
        assert_eq!((sent.accepted(4).status, sent.accepted(4).text()), (200, r#"{"text":"Success","code":0}"#));
    }

    #[test]
    fn splunk_raw_lines_are_stored_with_what_the_query_says() {
        let uri = "/services/collector/raw?source=env0-audit-logs-source&host=a%20b&token=never";
        let sent = post(uri, &[], "one \"1\"\r\n{\"customEnv0EnvironmentVariables\":{\"oidcToken\":\"x\"}}\n{broken");
        let line = |event: &str| {
            let about = r#""timestamp":"2026-11-22T21:00:00.123Z","host":"a b","source":"env0-audit-logs-source""#;
            (AUDITS, format!(r#"{{{about},"event":{event}}}"#))
        };
        let redacted = r#"{"customEnv0EnvironmentVariables":{"oidcToken":"[redacted]"}}"#;
        assert_eq!(sent.stored(), [line(r#""one \"1\"""#), line(redacted), line(r#""{broken""#)]);
        assert_eq!(sent.token().as_deref(), Some("never"));
    }

    #[test]
    fn splunk_raw_json_is_an_event_however_it_is_written_and_holds_no_secret() {
        let object = r#"{"customEnv0EnvironmentVariables":{"oidcToken":"x"}}"#;
        let pretty = "{\n  \"customEnv0EnvironmentVariables\": {\n    \"oidcToken\": \"x\"\n  }\n}";
        let stored = concat!(
            r#"{"timestamp":"2026-11-22T21:00:00.123Z","event":"#,
            r#"{"customEnv0EnvironmentVariables":{"oidcToken":"[redacted]"}}}"#
        );
        let text = r#"{"timestamp":"2026-11-22T21:00:00.123Z","event":"text"}"#;
        for (body, lines) in [
            (format!(" {object}"), &[stored][..]),
            (format!("\u{feff}{object}"), &[stored]),
            (pretty.to_owned(), &[stored]),
            (format!("[{object},{object}]"), &[stored, stored]),
            (format!("{object}{object}\n{object}"), &[stored, stored, stored]),
            (format!("text\n {object}\n[{object}]\n{object}{object}"), &[text, stored, stored, stored, stored]),
        ] {
            assert_eq!(post("/services/collector/raw", &[], body.clone()).lines(), lines, "{body}");
        }
    }

    #[test]
    fn splunk_raw_is_told_by_the_last_segment_of_the_path_whatever_stands_before_it() {
        for path in [
            "/services/collector//raw",
            "//services/collector/raw/",
            "/services/collector/raw//1.0",
            "/env0-audits/services/collector/event/services/collector/raw",
        ] {
            assert!(post(path, &[], "text").lines()[0].ends_with(r#""event":"text"}"#), "{path}");
        }
        let appended = post("/services/collector/raw/services/collector/event", &[], r#"{"event":1}"#);
        assert_eq!(appended.lines(), [r#"{"event":1}"#]);
    }

    #[test]
    fn splunk_envelopes_get_what_the_query_says_and_they_do_not() {
        let uri = "/services/collector/event?source=env0-audit-logs-source&host=h&token=never";
        let sent = post(uri, &[], r#"{"event":1}{"host":"own","source":"s","event":2}"#);
        let first = r#"{"event":1,"host":"h","source":"env0-audit-logs-source"}"#;
        let second = concat!(
            r#"{"host":"own","source":"s","event":2,"#,
            r#""queryHost":"h","querySource":"env0-audit-logs-source"}"#
        );
        assert_eq!(sent.stored(), [(AUDITS, first.to_owned()), (AUDITS, second.to_owned())]);
        for query in ["source=a&source=b", "source=a&Source=b", "source=%ff", "time=1&time=2"] {
            for path in ["event", "raw"] {
                let answer = post(&format!("/services/collector/{path}?{query}"), &[], r#"{"event":1}"#).refused_body();
                assert_eq!((answer.status, &answer.json()["code"]), (400, &6.into()), "{path} {query}");
            }
        }
    }

    #[test]
    fn splunk_envelopes_that_say_the_same_as_the_query_are_stored_as_sent() {
        let same = r#"{"time":1795382237.5,"host":"\u0068","event":2}"#;
        let sent = post("/services/collector/event?host=h&time=1795382237.5", &[], same);
        assert_eq!(sent.lines(), [same]);
    }

    #[test]
    fn splunk_s_query_names_count_in_any_letter_case() {
        let query = "Source=env0-audit-logs-source&HOST=h&Token=t";
        let event = post(&format!("/services/collector?{query}"), &[], r#"{"event":1}"#);
        assert_eq!(
            event.stored(),
            [(AUDITS, r#"{"event":1,"host":"h","source":"env0-audit-logs-source"}"#.to_owned())]
        );
        assert_eq!(event.token().as_deref(), Some("t"));
        let raw = post(&format!("/services/collector/raw?{query}"), &[], "1").stored();
        assert_eq!(raw[0].0, AUDITS);
        assert!(raw[0].1.contains(r#""host":"h","source":"env0-audit-logs-source","event":"1""#), "{raw:?}");
    }

    #[test]
    fn splunk_events_that_are_not_utf8_are_stored_with_replacements() {
        let sent = post("/services/collector", &[], b"{\"event\":\"ca\xf1on\"}{\"event\":2}".to_vec());
        assert_eq!(sent.lines(), ["{\"event\":\"ca\u{fffd}on\"}", "{\"event\":2}"]);
        assert_eq!(sent.replaced(), 1);
    }

    #[test]
    fn splunk_is_refused_with_its_own_codes() {
        for (body, code, event) in [
            (" ", 5, Value::Null),
            (r#"{"event":1}{"event":tru}"#, 6, 1.into()),
            ("text", 6, 0.into()),
            (r#"{"event":1}{"source":"x"}"#, 12, 1.into()),
            (r#"{"event":""}"#, 13, 0.into()),
        ] {
            let answer = post("/services/collector", &[], body).refused_body();
            assert_eq!(answer.status, 400);
            let answer = answer.json();
            assert_eq!((&answer["code"], &answer["invalid-event-number"]), (&code.into(), &event), "{body}");
        }
        let post = post("/services/collector", &[], "");
        for (fault, code) in [
            (BadCredentials::Missing, 2),
            (BadCredentials::Incomplete, 3),
            (BadCredentials::Unknown, 4),
            (BadCredentials::WrongType { may_write: crate::batch::LogType::Audits }, 4),
        ] {
            assert_eq!(post.refused(&Refusal::Unauthorized(fault)).json()["code"], code);
        }
        assert_eq!(post.refused(&busy()).json()["code"], 9);
    }
}
