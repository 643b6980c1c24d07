//! The native protocol: `POST /v1/logs/<log type>`, JSON or text, sniffed.

use axum::http::{HeaderMap, StatusCode, Uri};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde_json::json;

use crate::protocols::body::{self, BodyError, Limits};
use crate::protocols::{
    Accepted, Answer, JSON, KNOWN_PATHS, PREFIX, Part, Protocol, Refusal, SUPPORTED_ENCODINGS, answer,
};

/// The native protocol.
pub struct Native;

impl Protocol for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    /// Nothing is unpacked: lines of text are repaired one by one, and JSON that is not UTF-8 is refused.
    fn unpacked_bytes(&self, _headers: &HeaderMap, _body: &[u8]) -> usize {
        0
    }

    fn parse(
        &self,
        _uri: &Uri,
        _headers: &HeaderMap,
        body: Bytes,
        received: fn() -> DateTime<Utc>,
        limits: &Limits,
    ) -> Result<Vec<Part>, BodyError> {
        Ok(vec![Part { said: None, lines: body::scan(body, received, limits)? }])
    }

    /// `{"accepted":<n>,"object":"<key>","line":<index of the first>}`, or `{"accepted":0}`.
    fn accepted(&self, accepted: &Accepted) -> Answer {
        let records = accepted.records;
        let receipt = match &accepted.receipt {
            // Almost every request gets this answer, and joining the parts takes less time and memory than a format.
            Some((object, line)) => {
                let (mut digits, mut more_digits) = (itoa::Buffer::new(), itoa::Buffer::new());
                let (records, line) = (digits.format(records), more_digits.format(*line));
                [r#"{"accepted":"#, records, r#","object":"#, object, r#","line":"#, line, "}"].concat()
            }
            None => format!(r#"{{"accepted":{records}}}"#),
        };
        answer(StatusCode::OK, JSON, receipt)
    }

    /// `{"error":"<what happened>", …}` with the event and offset, the limit and its variable, the
    /// known paths, methods or encodings.
    fn refused(&self, refusal: &Refusal) -> Answer {
        let error = refusal.to_string();
        let details = match refusal {
            Refusal::Body(BodyError::Invalid { event, offset, .. }) => {
                json!({"error": error, "event": event, "offset": offset})
            }
            Refusal::Body(BodyError::EventTooLarge { event, limit_bytes }) => {
                let variable = "ENV0_S3_LOG_MAX_EVENT_BYTES";
                json!({"error": error, "event": event, "limit": limit_bytes, "variable": variable})
            }
            Refusal::Body(BodyError::TooLarge { limit_bytes } | BodyError::LinesTooLarge { limit_bytes }) => {
                json!({"error": error, "limit": limit_bytes, "variable": "ENV0_S3_LOG_MAX_BODY_BYTES"})
            }
            Refusal::TooLarge { limit, variable } => json!({"error": error, "limit": limit, "variable": variable}),
            Refusal::UnknownPath => json!({"error": error, "known": KNOWN_PATHS, "prefix": PREFIX}),
            Refusal::WrongMethod { allowed } => json!({"error": error, "known": allowed}),
            Refusal::UnsupportedEncoding => json!({"error": error, "supported": SUPPORTED_ENCODINGS}),
            _ => json!({"error": error}),
        };
        refusal.answer(JSON, details.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocols::tests::*;

    #[test]
    fn a_native_receipt_names_the_object_and_the_line() {
        let sent = post("/v1/logs/env0-audits", &[], "");
        let answer = sent.accepted(3);
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.text(), r#"{"accepted":3,"object":"env0-audits/2026/11/22/21:04:05_aB3dE.log","line":7}"#);
        assert_eq!(sent.accepted(0).text(), r#"{"accepted":0}"#);
    }

    #[test]
    fn a_native_refusal_says_what_to_do() {
        let sent = post("/v1/logs/env0-audits", &[], "{}\n{\"a\":tru}");
        let invalid = sent.refused_body().json();
        assert_eq!((&invalid["event"], &invalid["offset"]), (&1.into(), &11.into()));
        let limits = Limits { max_event_bytes: 1, ..LIMITS };
        let too_large = sent.refused_body_with(&limits).json();
        assert_eq!((&too_large["limit"], &too_large["variable"]), (&1.into(), &"ENV0_S3_LOG_MAX_EVENT_BYTES".into()));
        let too_large = sent.refused(&Refusal::TooLarge { limit: 9, variable: "ENV0_S3_LOG_MAX_BODY_BYTES" });
        assert!(too_large.json()["error"].as_str().unwrap().contains("ENV0_S3_LOG_MAX_BODY_BYTES"));
        let unknown = sent.refused(&Refusal::UnknownPath).json();
        assert!(unknown["known"].as_array().unwrap().contains(&"POST /v1/logs/env0-audits".into()));
        assert!(sent.refused(&busy()).json()["error"].as_str().unwrap().contains("the spool is full"));
    }
}
