//! Grafana Loki's push API: `POST /loki/api/v1/push`, snappy-compressed protobuf or JSON.
//!
//! Specification: "Ingest logs" in Loki's "HTTP API" documentation, and `push.proto` in Loki's source
//! (`pkg/push/push.proto`). An entry is stored as
//! `{"timestamp":"<nanoseconds as sent>","labels":{…},"line":…,"structuredMetadata":{…}}`, the last only where sent, as
//! is `tenant`, which the header `X-Scope-OrgID` names. In protobuf labels are one text; where a part of it is no
//! label, `labelsText` has the whole text. A label with one of env0's names as its value names the log type.

mod json;
mod labels;
mod line;
mod proto;

use axum::http::{HeaderMap, StatusCode, Uri};
use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::protocols::body::{self, BodyError, Events, Limits, LineWriter};
use crate::protocols::{
    self, Accepted, Answer, Encoding, Part, Protocol, Refusal, TEXT, empty_answer, header_values, judge_media_type,
};

/// Loki.
pub struct Loki;

impl Protocol for Loki {
    fn name(&self) -> &'static str {
        "loki"
    }

    fn unpacked_bytes(&self, headers: &HeaderMap, body: &[u8]) -> usize {
        if self.reads_json(headers, body) {
            body::repaired_len(body).unwrap_or_default()
        } else {
            snap::raw::decompress_len(body).unwrap_or_default()
        }
    }

    /// `snappy` names what the protocol itself does to a protobuf body. Loki ignores it, too.
    fn encoding(&self, headers: &HeaderMap) -> Result<Encoding, Refusal> {
        Encoding::of(headers, Some("snappy"))
    }

    fn reads_json(&self, headers: &HeaderMap, body: &[u8]) -> bool {
        protocols::is_json(headers, body)
    }

    fn judge_media_type(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        judge_media_type(headers, true)
    }

    fn parse(
        &self,
        _uri: &Uri,
        headers: &HeaderMap,
        body: Bytes,
        _received: fn() -> DateTime<Utc>,
        limits: &Limits,
    ) -> Result<Vec<Part>, BodyError> {
        let [tenant] = header_values(headers, ["x-scope-orgid"])?;
        let mut writer = LineWriter::with_capacity(limits, 2 * body.len());
        if self.reads_json(headers, &body) {
            json::push(&writer.repair(body)?, tenant, &mut writer)?;
        } else if !body.is_empty() {
            proto::push(&decompress(&body, limits)?, tenant, &mut writer)?;
        }
        Ok(writer.finish())
    }

    /// 204.
    fn accepted(&self, _accepted: &Accepted) -> Answer {
        empty_answer(StatusCode::NO_CONTENT)
    }

    /// A line of text, as Loki does.
    fn refused(&self, refusal: &Refusal) -> Answer {
        refusal.answer(TEXT, format!("{refusal}\n"))
    }
}

/// Unpacks the snappy block; refuses one that declares more bytes than a body may have.
fn decompress(body: &[u8], limits: &Limits) -> Result<Vec<u8>, BodyError> {
    let hint = if Events::sniff(body) { "; JSON needs `Content-Type: application/json`" } else { "" };
    let invalid = |error| BodyError::invalid(body, body, 0, format!("{error}{hint}"));
    match snap::raw::decompress_len(body) {
        Ok(len) if len <= limits.max_body_bytes => snap::raw::Decoder::new().decompress_vec(body).map_err(invalid),
        Ok(_) | Err(snap::Error::TooBig { .. }) => Err(BodyError::TooLarge { limit_bytes: limits.max_body_bytes }),
        Err(error) => Err(invalid(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocols::tests::*;

    const JSON_TYPE: (&str, &str) = ("content-type", "application/json");

    #[test]
    fn loki_json_entries_keep_their_text_labels_and_metadata() {
        let body = r#"{"streams":[
            {"stream":{"app":"env0", "x":"\u0041"},"values":[["1795382237933000001","a\u001b[1m"],["2","b",{"trace":"t"}]]},
            {"values":[["3","c"]],"stream":{"job":"env0-audits"}}]}"#;
        for content_type in ["application/json; charset=utf-8", "application/x-www-form-urlencoded"] {
            let sent = post("/loki/api/v1/push", &[("content-type", content_type)], body);
            assert_eq!(sent.stored(), [
                (None, r#"{"timestamp":"1795382237933000001","labels":{"app":"env0", "x":"\u0041"},"line":"a\u001b[1m"}"#.to_owned()),
                (None, r#"{"timestamp":"2","labels":{"app":"env0", "x":"\u0041"},"line":"b","structuredMetadata":{"trace":"t"}}"#.to_owned()),
                (AUDITS, r#"{"timestamp":"3","labels":{"job":"env0-audits"},"line":"c"}"#.to_owned()),
            ]);
            assert_eq!(sent.accepted(3).status, 204);
        }
    }

    #[test]
    fn loki_keeps_the_tenant_that_the_header_names() {
        let entry = [field(1, b"{}"), field(2, &field(2, b"x"))].concat();
        let json = br#"{"streams":[{"stream":{},"values":[["0","x"]]}]}"#;
        let line = r#"{"timestamp":"0","labels":{},"line":"x","tenant":"a \"b\""}"#;
        for (content_type, body) in [(PROTOBUF_TYPE, snappy(&field(1, &entry))), (JSON_TYPE, json.to_vec())] {
            let sent = |tenant| post("/loki/api/v1/push", &[content_type, ("x-scope-orgid", tenant)], body.clone());
            assert_eq!(sent(r#"a "b""#).lines(), [line]);
            assert_eq!(sent("env0-audits").stored()[0].0, AUDITS);
        }
    }

    #[test]
    fn loki_refuses_json_of_another_shape() {
        for (body, event, at) in [
            (r#"{"streams":1}"#, 0, 0),
            (r#"{"streams":[{"stream":{"a":"b"}}]}"#, 0, 12),
            (r#"{"streams":[{"stream":"a","values":[]}]}"#, 0, 22),
            (r#"{"streams":[{"stream":{},"values":[["1","x"],["2"]]}]}"#, 1, 45),
            (r#"{"streams":[{"stream":{},"values":[[1,"x"]]}]}"#, 0, 35),
            (r#"{"streams":[5]}"#, 0, 12),
            (r#"{"streams":[{"stream":{},"values":[["1","x",{},4]]}]}"#, 0, 35),
            (r#"{"streams":[{"stream":{},"values":[["1","x",5]]}]}"#, 0, 35),
            (r#"{"streams":[{"stream":{},"values":[],"entries":[]}]}"#, 0, 37),
            (r#"{"streams":[{"stream":{},"values":[],"values":[]}]}"#, 0, 37),
            (r#"{"streams":[],"more":[]}"#, 0, 14),
            (r#"{"streams":[{"stream":{"a":"b","c":{"values":[["1","x"]]}},"values":[]}]}"#, 0, 35),
            (r#"{"streams":[{"values":[],"stream":{"a":["x"]}}]}"#, 0, 39),
            ("[1]", 0, 1),
        ] {
            let sent = post("/loki/api/v1/push", &[("content-type", "application/json")], body);
            let Err(BodyError::Invalid { event: found, offset, .. }) = sent.parse_with(&LIMITS) else {
                panic!("{body}")
            };
            assert_eq!((found, offset), (event, at), "{body}");
            assert_eq!(sent.refused_body().status, 400);
        }
    }

    #[test]
    fn loki_protobuf_gives_the_same_lines_as_json() {
        let timestamp = field(1, &[0x08, 0x01, 0x10, 0x05]); // 1 s, 5 ns
        let metadata = field(3, &[field(1, b"trace"), field(2, b"t")].concat());
        let entry = field(2, &[timestamp, field(2, b"a\x1b \"b\""), metadata].concat());
        let push = |labels: &str| snappy(&field(1, &[entry.clone(), field(1, labels.as_bytes())].concat()));
        let line = |labels| {
            format!(
                r#"{{"timestamp":"1000000005","labels":{labels},"line":"a\u001b \"b\"","structuredMetadata":{{"trace":"t"}}}}"#
            )
        };
        for (labels, stored, said) in [
            (r#"{level="info",app="env0"}"#, r#"{"level":"info","app":"env0"}"#, None),
            (r#"{ a = "1,\"}" , job="env0-deployments", }"#, r#"{"a":"1,\"}","job":"env0-deployments"}"#, DEPLOYMENTS),
            ("{}", "{}", None),
            (r#"{a="un"quoted",b="x"}"#, r#"{"b":"x"},"labelsText":"{a=\"un\"quoted\",b=\"x\"}""#, None),
            (
                r#"{a="x",a="env0-audits"}"#,
                r#"{"a":"x","a":"env0-audits"},"labelsText":"{a=\"x\",a=\"env0-audits\"}""#,
                AUDITS,
            ),
        ] {
            let sent = post("/loki/api/v1/push", &[PROTOBUF_TYPE], push(labels));
            assert_eq!(sent.stored(), [(said, line(stored))]);
        }
        let without_type = post("/loki/api/v1/push", &[], push("{}"));
        assert_eq!(without_type.lines(), [line("{}")]);
    }

    #[test]
    fn loki_labels_of_a_stream_without_entries_are_refused_where_they_are_none() {
        let push =
            |labels: &str| post("/loki/api/v1/push", &[PROTOBUF_TYPE], snappy(&field(1, &field(1, labels.as_bytes()))));
        for labels in [r#"{app="env0"}"#, "{}", "", r#"{a="x",a="y"}"#] {
            assert_eq!(push(labels).lines(), [""; 0], "{labels}");
        }
        let many = (0..2000).map(|index| format!("l{index}=\"x\",")).collect::<String>();
        assert_eq!(push(&format!("{{{many}}}")).lines(), [""; 0]);
        for labels in [r#"{app=env0}"#, "a line of text", r#"{a="x"} more"#, &format!("{{{many} more")] {
            let error = push(labels).parse_with(&LIMITS).unwrap_err().to_string();
            let place = "event 0, byte ";
            assert!(error.starts_with(place) && error.contains("a part of the labels is no label"), "{error}");
        }
        let json = r#"{"streams":[{"stream":{"app":"env0"},"values":[]}]}"#;
        assert_eq!(post("/loki/api/v1/push", &[JSON_TYPE], json).lines(), [""; 0]);
    }

    #[test]
    fn loki_labels_in_go_s_escapes_are_labels_and_tell_the_type() {
        let case: serde_json::Value = include_str!("../../tests/fixtures/bodies/loki-go-escape.json").parse().unwrap();
        let labels = case["labels"].as_str().unwrap();
        let push = field(1, &[field(1, labels.as_bytes()), field(2, &field(2, b"x"))].concat());
        let stored = r#"{"timestamp":"0","labels":{"app":"env0-audits","ws":"\u001b[1mprod"},"line":"x"}"#;
        let sent = post("/loki/api/v1/push", &[PROTOBUF_TYPE], snappy(&push));
        assert_eq!(sent.stored(), [(AUDITS, stored.to_owned())]);
    }

    #[test]
    fn loki_keeps_what_it_does_not_know_and_names_that_are_there_twice() {
        let pair = |name: &[u8], value: &[u8]| field(3, &[field(1, name), field(2, value)].concat());
        let entry = [field(2, b"x"), pair(b"a", b"1"), pair(b"b", b"2"), pair(b"a", b"3"), field(15, b"?")].concat();
        let stream = [field(2, &entry), field(1, b"{}"), vec![0x18, 7]].concat();
        let stored = concat!(
            r#"{"timestamp":"0","labels":{},"line":"x","structuredMetadataPairs":[{"name":"a","value":"1"},"#,
            r#"{"name":"b","value":"2"},{"name":"a","value":"3"}],"hash":"7","_unknownFields":"egE/"}"#
        );
        assert_eq!(post("/loki/api/v1/push", &[PROTOBUF_TYPE], snappy(&field(1, &stream))).lines(), [stored]);
        let entry = |entry: Vec<u8>| field(1, &field(2, &entry));
        for push in [
            field(2, b""),
            field(1, &field(4, b"")),
            field(1, &[field(1, b""), field(1, b"")].concat()),
            entry([field(2, b"a"), field(2, b"b")].concat()),
            entry(field(1, &field(3, b""))),
            entry(field(3, &field(3, b""))),
            entry(vec![0x10, 1]),
        ] {
            assert_eq!(post("/loki/api/v1/push", &[PROTOBUF_TYPE], snappy(&push)).refused_body().status, 400);
        }
    }

    #[test]
    fn loki_entries_that_are_not_utf8_are_stored_with_replacements() {
        let entry = |line: &[u8]| field(2, &field(2, line));
        let stream = [field(1, b"{a=\"\\xff\"}"), entry(b"first"), entry(b"ca\xf1on"), entry(b"third")].concat();
        let json = b"{\"streams\":[{\"stream\":{\"a\":\"\xff\"},\"values\":[[\"1\",\"first\"],[\"1\",\"ca\xf1on\"],[\"1\",\"x\"]]}]}";
        for sent in [
            post("/loki/api/v1/push", &[PROTOBUF_TYPE], snappy(&field(1, &stream))),
            post("/loki/api/v1/push", &[], &json[..]),
        ] {
            let lines = sent.lines();
            assert_eq!(lines.len(), 3);
            assert!(
                lines[1].contains("\"line\":\"ca\u{fffd}on\"") && lines[1].contains("{\"a\":\"\u{fffd}\"}"),
                "{lines:?}"
            );
            assert_eq!(sent.replaced(), 2);
        }
    }

    #[test]
    fn loki_judges_what_a_snappy_block_declares_before_it_takes_memory() {
        let four_gib = [0xff, 0xff, 0xff, 0xff, 0x0f, 0x00];
        let five_gib = [0xff, 0xff, 0xff, 0xff, 0x1f, 0x00];
        let too_much = snappy(&vec![0; LIMITS.max_body_bytes + 1]);
        for body in [&four_gib[..], &five_gib, &too_much] {
            let sent = post("/loki/api/v1/push", &[PROTOBUF_TYPE], body.to_vec());
            assert_eq!(sent.parse_with(&LIMITS), Err(BodyError::TooLarge { limit_bytes: LIMITS.max_body_bytes }));
            assert_eq!(sent.refused_body().status, 413);
        }
        for body in
            [&b"\x05abc"[..], b"{\"streams\":[]}", &snappy(b"\x0a\xff"), &snappy(&field(1, &field(2, &[0x0a, 9])))]
        {
            assert_eq!(post("/loki/api/v1/push", &[PROTOBUF_TYPE], body.to_vec()).refused_body().status, 400);
        }
        let wrongly_told = post("/loki/api/v1/push", &[PROTOBUF_TYPE], r#"{"streams":[]}"#).refused_body();
        assert!(wrongly_told.text().contains("JSON needs `Content-Type: application/json`"), "{}", wrongly_told.text());
    }
}
