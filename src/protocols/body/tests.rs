use bytes::Bytes;
use chrono::{DateTime, Utc};
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::batch::LogType;
use crate::protocols::tests::reference::assert_verdict_of_serde_json;

const LIMITS: Limits =
    Limits { max_body_bytes: 16 << 20, max_lines_bytes: 64 << 20, max_event_bytes: 1 << 20, redact: true };
const DEPLOYMENTS: &[u8] = include_bytes!("../../../tests/fixtures/deployment-events.ndjson");
const AUDITS: &[u8] = include_bytes!("../../../tests/fixtures/audit-events.ndjson");

fn received() -> DateTime<Utc> {
    DateTime::from_timestamp_millis(1_795_381_200_123).unwrap()
}

fn scan_bytes(body: impl AsRef<[u8]>) -> Result<Lines, BodyError> {
    scan(Bytes::copy_from_slice(body.as_ref()), received, &LIMITS)
}

/// The stored lines of a body that is accepted, without the last newline.
fn stored(body: impl AsRef<[u8]>) -> String {
    let lines = scan_bytes(body).unwrap();
    let text = String::from_utf8(lines.bytes.to_vec()).unwrap();
    assert_eq!(text.matches('\n').count() as u64, lines.records, "{text}");
    text.strip_suffix('\n').unwrap_or(&text).to_owned()
}

/// Event and offset of a body that is refused as not valid.
fn refused_at(body: impl AsRef<[u8]>) -> (u64, usize) {
    match scan_bytes(body) {
        Err(BodyError::Invalid { event, offset, reason }) => {
            assert!(!reason.is_empty());
            (event, offset)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_way_to_string_objects_together_gives_the_same_lines() {
    let expected = "{\"a\":1}\n{\"b\":\"x y\"}";
    for body in [
        "{\"a\":1}\n{\"b\":\"x y\"}\n",
        "{\"a\":1}\n{\"b\":\"x y\"}",
        "{\"a\":1}\r\n{\"b\":\"x y\"}\r\n",
        "{\"a\":1}{\"b\":\"x y\"}",
        "{\"a\":1} {\"b\":\"x y\"} ",
        "\n\n{\"a\":1}\n\n{\"b\":\"x y\"}\n\n",
        "[{\"a\":1},{\"b\":\"x y\"}]",
        " [ {\"a\":1} ,\n{\"b\":\"x y\"}\n] \n",
        "\u{feff}{\"a\":1}\n{\"b\":\"x y\"}\n",
        "\u{feff} [{\"a\":1},{\"b\":\"x y\"}]",
        "{\n  \"a\": 1\n}\n{\r\n\t\"b\": \"x y\"\r\n}",
    ] {
        assert_eq!(stored(body), expected, "{body:?}");
    }
}

#[test]
fn a_body_without_events_has_no_lines() {
    for body in ["", " ", "\n", "\r\n \t\n", "\u{feff}", "\u{feff}\n", "[]", " [ ] ", "\u{feff}[\n]\n"] {
        assert_eq!(scan_bytes(body), Ok(Lines::default()), "{body:?}");
    }
}

#[test]
fn ndjson_is_stored_without_a_copy() {
    for body in [DEPLOYMENTS, AUDITS] {
        let body = Bytes::from_static(body);
        let lines = scan(body.clone(), received, &LIMITS).unwrap();
        assert_eq!(lines.bytes.as_ptr(), body.as_ptr());
        assert_eq!(lines.bytes, body);
        assert_eq!(lines.records, body.iter().filter(|&&byte| byte == b'\n').count() as u64);
    }
}

#[test]
fn an_event_on_one_line_is_stored_byte_for_byte() {
    for event in [
        r#"{ "a" : 1.0e+05 , "a" : -0 , "b":[ ] }"#,
        r#"{"n":11234567890123678901234567890.00000000000000000000000000001,"e":1e999}"#,
        r#"{"escapes":"\u0041\/\ud83d\ude80","lone":"\ud800","nul":"\u0000","del":""}"#,
        "{\"tab\":\t\"🚀 \u{2028} é\"}",
    ] {
        for body in [event.to_owned(), format!("{event}\n"), format!("[{event}]"), format!("  {event}\r\n")] {
            assert_eq!(stored(&body), event, "{body:?}");
        }
    }
}

#[test]
fn json_that_spans_lines_loses_its_white_space_and_nothing_else() {
    let body = "{\r\n  \"a b\" : \"x \\\" { \\\\\" ,\n\t\"a b\": [ 1.0 , 2E5, \"  \\n\" ],\n \"c\": { }\n}";
    assert_eq!(stored(body), r#"{"a b":"x \" { \\","a b":[1.0,2E5,"  \n"],"c":{}}"#);
}

#[test]
fn text_becomes_one_event_a_line() {
    let line = |message: &str| format!(r#"{{"timestamp":"{}","message":"{message}"}}"#, rfc3339(received()));
    assert_eq!(rfc3339(received()), "2026-11-22T21:00:00.123Z");
    for (body, messages) in [
        ("hello", vec!["hello"]),
        ("one\r\ntwo\n\n \nthree", vec!["one", "two", "three"]),
        ("\u{feff}  indented\n", vec!["  indented"]),
        ("[INFO] [1]\n{\"not\":\"first\"}", vec!["[INFO] [1]", r#"{\"not\":\"first\"}"#]),
        ("[1,2]", vec!["[1,2]"]),
        ("\u{1b}[1mbold\u{1b}[0m \"q\" \\ \0\t10%\r20%", vec![r#"\u001b[1mbold\u001b[0m \"q\" \\ \u0000\t10%\r20%"#]),
        ("42", vec!["42"]),
    ] {
        let expected: Vec<_> = messages.into_iter().map(line).collect();
        assert_eq!(stored(body), expected.join("\n"), "{body:?}");
    }
}

#[test]
fn utf16_and_utf32_are_refused_with_what_to_send() {
    let cyrillic = b"\xff\xfe\x3f\x04\x40\x04\n\0\x30\x04";
    let utf16 = [&b"\xff\xfe{\0}\0"[..], b"\xfe\xff\0{\0}", b"h\0i\0", b"\0h\0i", cyrillic];
    let utf32 = [&b"\xff\xfe\0\0h\0\0\0"[..], b"\0\0\xfe\xff\0\0\x04\x3f", b"h\0\0\0i\0\0\0", b"\0\0\0h\0\0\0i"];
    for body in utf16.into_iter().chain(utf32) {
        assert_eq!(scan_bytes(body).unwrap_err().to_string(), "event 0, byte 0: UTF-16 or UTF-32; send UTF-8");
    }
    assert_eq!(scan_bytes(b"\xff\xfe text").unwrap().replaced, 2);
}

#[test]
fn a_file_of_another_kind_is_refused_by_its_beginning_unless_it_is_text() {
    for (beginning, what) in [
        (&b"PK\x03\x04"[..], "a zip file"),
        (b"BZh91AY", "a bzip2 file"),
        (b"%PDF-1.7", "a PDF file"),
        (b"\x04\x22\x4d\x18", "an lz4 file"),
        (b"PAR1", "a parquet file"),
    ] {
        let refusal = scan_bytes([beginning, b"\n\xff\xfe\n"].concat()).unwrap_err().to_string();
        assert!(refusal.contains(what) && refusal.contains("gzip"), "{refusal}");
        assert_eq!(scan_bytes([beginning, b" is text"].concat()).unwrap().records, 1, "{what}");
    }
}

#[test]
fn text_that_is_not_utf8_is_stored_with_replacements_which_are_counted() {
    let body = include_bytes!("../../../tests/fixtures/bodies/latin1-in-one-of-three.txt");
    let lines = scan_bytes(body).unwrap();
    assert_eq!((lines.records, lines.replaced), (3, 1));
    let stored = stored(body);
    let messages = stored.lines().map(|line| line.parse::<Value>().unwrap()["message"].clone());
    assert_eq!(messages.collect::<Vec<_>>(), ["first line", "ca\u{fffd}on applied", "third line"]);
    assert_eq!(scan_bytes(b"a\xe2\x82 \xff\xff").unwrap().replaced, 4);
}

#[test]
fn a_refusal_names_the_event_and_the_byte() {
    for (body, at) in [
        (&b"{\"a\":1}\n{bad}\n"[..], (1, 9)),
        (b"{\"a\":1}\nhello", (1, 8)),
        (b"{\"a\":1}\n[{}]", (1, 8)),
        (b"{\"a\":1} 5", (1, 8)),
        (b"{\"a\":1},{\"a\":1}", (1, 7)),
        (b"[{\"a\":1},5]", (1, 9)),
        (b"[{\"a\":1},]", (1, 9)),
        (b"[{\"a\":1} {\"b\":2}]", (1, 9)),
        (b"[{\"a\":1}", (1, 8)),
        (b"[{\"a\":1},", (1, 9)),
        (b"[{}]{}", (1, 4)),
        (b"[] x", (0, 3)),
        (b"{\"a\":", (0, 5)),
        (b"{\"a\":1", (0, 6)),
        (b"{\"a\":01}", (0, 6)),
        (b"{\"a\":1,}", (0, 7)),
        (b"{\n\"a\":tru\n}", (0, 9)),
        (b"{\"a\":\"\n\"}", (0, 5)),
        (b"{\"a\":\"\0\"}", (0, 5)),
        (b"{\"a\":\"\\x\"}", (0, 7)),
        (b"{}{}{\"a\":\"\xff\"}{}", (2, 10)),
        (b"{\"a\":\xff}", (0, 5)),
        (b"\xef\xbb\xbf{\"a\"}", (0, 7)),
    ] {
        assert_eq!(refused_at(body), at, "{:?}", String::from_utf8_lossy(body));
    }
}

#[test]
fn any_byte_at_any_place_of_a_string_is_judged_in_one_pass_as_serde_json_judges_it() {
    for length in 1..=40 {
        let line = format!("{{\"k\":\"{}\"}}", "a".repeat(length));
        for (place, byte) in (0..length).flat_map(|place| (0..=u8::MAX).map(move |byte| (place, byte))) {
            let mut line = line.clone().into_bytes();
            line["{\"k\":\"".len() + place] = byte;
            let valid = serde_json::from_slice::<&serde_json::value::RawValue>(&line).is_ok();
            // More lines behind it, so that what is looked at together reaches beyond the string, or none.
            for rest in ["", "\n{\"a\":\"0123456789abcdef\"}\n"] {
                let judged = line::plain_object_len(&[&line, rest.as_bytes()].concat());
                assert_eq!(judged, valid.then_some(line.len()), "byte {byte:#x} at {place} of {length}");
            }
        }
    }
}

#[test]
fn a_plain_line_that_is_not_utf8_is_refused_at_its_byte() {
    assert_eq!(refused_at(b"{}\n{\"a\":\"\xff\"}\n{}\n"), (1, 9));
    assert_eq!(refused_at(b"{}\n{\"\xc3\":1}\n"), (1, 5));
}

#[test]
fn depth_has_no_limit() {
    let depth = 1_000_000;
    for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("{\"customEnv0EnvironmentVariables\":", "}")] {
        let event = format!("{{\"a\":{}1{}}}", open.repeat(depth), close.repeat(depth));
        let limits = Limits { max_event_bytes: event.len(), max_body_bytes: 64 << 20, ..LIMITS };
        let spread = event.replacen(':', ":\n", 1);
        assert_eq!(scan(event.clone().into(), received, &limits).unwrap().bytes, event.clone() + "\n");
        assert_eq!(scan(spread.into(), received, &limits).unwrap().bytes, event + "\n");
    }
    assert_eq!(refused_at("{\"a\":".repeat(depth)).0, 0);
}

#[test]
fn a_number_of_a_mebibyte_is_kept_as_it_is_written() {
    let event = format!("{{\"n\":{}}}", "7".repeat((1 << 20) - 6));
    assert_eq!(stored(&event), event);
}

#[test]
fn the_size_of_an_event_is_that_of_its_stored_line() {
    let limits = Limits { max_event_bytes: 20, ..LIMITS };
    let scan = |body: &str| scan(body.to_owned().into(), received, &limits).map(|lines| lines.records);
    let too_large = |event| Err(BodyError::EventTooLarge { event, limit_bytes: 20 });
    assert_eq!(scan("{\"a\":\"123456789012\"}\n"), Ok(1), "exactly 20 bytes");
    for body in ["{\"a\":\"1234567890123\"}\n", "[{\"a\":\"1234567890123\"}]"] {
        assert_eq!(scan(body), too_large(0));
    }
    assert_eq!(scan("{}{\"a\":\"1234567890123\"}"), too_large(1));
    assert_eq!(scan("{}\n{\"a\":\"1234567890123\"}\n"), too_large(1));
    assert_eq!(scan("{\n            \"a\"  :            1\n}"), Ok(1), "white space that is not stored does not count");
    assert_eq!(scan("text"), too_large(0), "the line of JSON counts, not the text");
}

#[test]
fn an_array_on_a_line_of_its_own_is_its_events_or_none() {
    assert_eq!(stored("[{\"a\":1},{\"b\":2}]\n"), "{\"a\":1}\n{\"b\":2}");
    for line in ["[1]", "[]", "[{\"a\":1}]", "1", "\"text\""] {
        assert_eq!(refused_at(format!("{{\"a\":1}}\n{line}\n")).0, 1, "{line}");
    }
}

#[test]
fn the_lines_of_a_request_have_a_limit_together() {
    let limits = Limits { max_lines_bytes: 100, ..LIMITS };
    let refused = Err(BodyError::LinesTooLarge { limit_bytes: 100 });
    for body in ["a\nb\nc\nd\n".to_owned(), "{}".repeat(34)] {
        assert_eq!(scan(body.clone().into(), received, &limits), refused, "{body:?}");
    }
    assert!(scan("{}".repeat(33).into(), received, &limits).is_ok());
    assert!(scan("{}\n".repeat(34).into(), received, &limits).is_ok(), "what is stored as sent is not built");
}

#[test]
fn secrets_of_env0_are_redacted_and_no_other_byte_changes() {
    for (event, expected) in [
        (
            r#"{"customEnv0EnvironmentVariables":{"oidcToken":"s1","a":"b","vcsAccessToken" : "s2" }}"#,
            r#"{"customEnv0EnvironmentVariables":{"oidcToken":"[redacted]","a":"b","vcsAccessToken" : "[redacted]" }}"#,
        ),
        (
            r#"{"x":[{"customEnv0EnvironmentVariables":{"oidcToken":""}}, 1]}"#,
            r#"{"x":[{"customEnv0EnvironmentVariables":{"oidcToken":"[redacted]"}}, 1]}"#,
        ),
        (
            r#"{"customE\u006Ev0EnvironmentVariables":{"oidc\u0054oken":"a\"b\\"}}"#,
            r#"{"customE\u006Ev0EnvironmentVariables":{"oidc\u0054oken":"[redacted]"}}"#,
        ),
        (
            r#"{"customEnv0EnvironmentVariables":{"oidcToken":"1","oidcToken":"2","z":{},"vcsAccessToken":"3"}}"#,
            r#"{"customEnv0EnvironmentVariables":{"oidcToken":"[redacted]","oidcToken":"[redacted]","z":{},"vcsAccessToken":"[redacted]"}}"#,
        ),
        (
            r#"{"customEnv0EnvironmentVariables":{"customEnv0EnvironmentVariables":{"oidcToken":"s"}}}"#,
            r#"{"customEnv0EnvironmentVariables":{"customEnv0EnvironmentVariables":{"oidcToken":"[redacted]"}}}"#,
        ),
    ] {
        for body in [event.to_owned(), format!("{event}\n"), format!("[{event}]")] {
            assert_eq!(stored(&body), expected);
        }
        let both = scan_bytes(format!("{{}}\n{event}\n{{}}\n")).unwrap();
        assert_eq!(both.bytes, format!("{{}}\n{expected}\n{{}}\n"));
        assert_eq!((both.records, both.redacted), (3, 1));
        let off = Limits { redact: false, ..LIMITS };
        assert_eq!(scan(event.into(), received, &off).unwrap().bytes, format!("{event}\n"));
    }
}

/// An OTLP attribute, whose value is a list of these pairs.
fn list(name: &str, pairs: &str) -> String {
    format!(r#"{{"attributes":[{{"key":"{name}","value":{{"kvlistValue":{{"values":[{pairs}]}}}}}}]}}"#)
}

const HOLDER: &str = "customEnv0EnvironmentVariables";

#[test]
fn secrets_in_otlp_s_notation_of_an_object_are_redacted_as_in_json() {
    let pair = |name: &str, value: &str| format!(r#"{{"key":"{name}","value":{{"stringValue":"{value}"}}}}"#);
    let pairs = |[first, second]: [&str; 2]| {
        [pair("oidcToken", first), pair("a", "stays"), pair("vcsAccessToken", second)].join(", ")
    };
    let nested = |secret: &str| {
        let inner = list(HOLDER, &pair("oidcToken", secret));
        let inner = inner.strip_prefix(r#"{"attributes":["#).unwrap().strip_suffix("]}").unwrap().to_owned();
        list("outer", &format!("{inner},{}", pair("oidcToken", "stays")))
    };
    let reversed = |secret: &str| {
        let pair = format!(r#"{{"value":{{"stringValue":"{secret}"}},"key":"oidcToken"}}"#);
        format!(r#"{{"body":{{"value":{{"kvlistValue":{{"values":[{pair}]}}}},"key":"{HOLDER}"}}}}"#)
    };
    let in_protobuf_s_names = |secret: &str| {
        let pair = format!(r#"{{"k\u0065y":"oidc\u0054oken","value":{{"string_value":"{secret}"}}}}"#);
        format!(
            r#"{{"a":{{"key":"c\u0075stomEnv0EnvironmentVariables","value":{{"kvlist_value":{{"values":[{pair}]}}}}}}}}"#
        )
    };
    let plain = |secret: &str| list(HOLDER, &format!(r#"{{"key":"oidcToken","value":"{secret}"}}"#));
    for (sent, stored) in [
        (list(HOLDER, &pairs(["s\\\"1", ""])), list(HOLDER, &pairs(["[redacted]"; 2]))),
        (nested("s"), nested("[redacted]")),
        (reversed("s"), reversed("[redacted]")),
        (in_protobuf_s_names("s"), in_protobuf_s_names("[redacted]")),
        (plain("s"), plain("[redacted]")),
    ] {
        for body in [sent.clone(), format!("{sent}\n"), format!("[{sent}]")] {
            let lines = scan_bytes(body).unwrap();
            assert_eq!((lines.bytes, lines.redacted), (Bytes::from(format!("{stored}\n")), 1), "{sent}");
        }
    }
}

#[test]
fn what_only_looks_like_otlp_s_notation_of_a_secret_stays() {
    let secret = r#"{"key":"oidcToken","value":{"stringValue":"s"}}"#;
    for event in [
        list("anotherName", secret),
        list(HOLDER, &format!(r#"{{"key":"a","value":{{"kvlistValue":{{"values":[{secret}]}}}}}}"#)),
        list(HOLDER, r#"{"key":"oidcToken","value":{"intValue":"5"}}"#),
        list(HOLDER, r#"{"key":"oidcToken","value":{"arrayValue":{"values":[{"stringValue":"s"}]}}}"#),
        list(HOLDER, r#"{"key":"oidcToken","value":{"stringValue":"[redacted]"}}"#),
        list(HOLDER, secret).replace("kvlistValue", "arrayValue"),
        format!(r#"{{"key":"{HOLDER}","value":{{"stringValue":"oidcToken"}}}}"#),
        format!(r#"{{"key":"{HOLDER}","other":[{secret}]}}"#),
    ] {
        let lines = scan_bytes(&event).unwrap();
        assert_eq!((lines.bytes, lines.redacted), (Bytes::from(format!("{event}\n")), 0));
    }
}

#[test]
fn what_only_looks_like_a_secret_stays() {
    for event in [
        r#"{"oidcToken":"s"}"#,
        r#"{"customEnv0EnvironmentVariables":"oidcToken","oidcToken":"s"}"#,
        r#"{"customEnv0EnvironmentVariables":[{"oidcToken":"s"}]}"#,
        r#"{"customEnv0EnvironmentVariables":{"a":{"oidcToken":"s"},"b":[{"oidcToken":"s"},"oidcToken","s"]}}"#,
        r#"{"customEnv0EnvironmentVariables":{"oidcToken":null,"vcsAccessToken":12}}"#,
        r#"{"customEnv0EnvironmentVariables":{"oidcToken":{"oidcToken":"s"},"vcsAccessToken":["s"]}}"#,
        r#"{"customEnv0EnvironmentVariables":{"oidctoken":"s","oidcToken\ud800":"s"}}"#,
        r#"{"message":"{\"customEnv0EnvironmentVariables\":{\"oidcToken\":\"s\"}}"}"#,
        r#"{"x":["customEnv0EnvironmentVariables",{"oidcToken":"s"}]}"#,
        r#"{"customEnv0EnvironmentVariables":{"oidcToken":"[redacted]"}}"#,
    ] {
        let lines = scan_bytes(event).unwrap();
        assert_eq!(lines.bytes, format!("{event}\n"));
        assert_eq!(lines.redacted, 0);
    }
}

#[test]
fn parts_follow_what_the_sender_says_in_order() {
    let mut writer = LineWriter::with_capacity(&LIMITS, 0);
    let audits = Some(LogType::Audits);
    for (said, event) in [(None, "{\"n\":0}"), (audits, "{\"n\":1}"), (audits, "{\"n\":\n2}"), (None, "{\"n\":3}")] {
        writer.push(said, serde_json::from_str(event).unwrap()).unwrap();
    }
    let parts: Vec<_> = writer.finish().into_iter().map(|part| (part.said, part.lines.bytes)).collect();
    let expected = [(None, "{\"n\":0}\n"), (audits, "{\"n\":1}\n{\"n\":2}\n"), (None, "{\"n\":3}\n")];
    assert_eq!(parts, expected.map(|(said, lines)| (said, Bytes::from(lines))));
}

/// JSON text with every liberty that the grammar gives: white space, escapes, number forms.
fn json_text(depth: u32) -> impl Strategy<Value = String> {
    let space = || prop_oneof![8 => Just(""), 1 => Just(" "), 1 => Just("\n"), 1 => Just("\r\n\t")];
    let string = || {
        prop_oneof![
            Just(r#""customEnv0EnvironmentVariables""#.to_owned()),
            Just(r#""customEnv\u0030EnvironmentVariables""#.to_owned()),
            Just(r#""oidcToken""#.to_owned()),
            Just(r#""vcs\u0041ccessToken""#.to_owned()),
            Just(r#""\"\\\/\b\f\n\r\t\u001b""#.to_owned()),
            any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        ]
    };
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        any::<f64>().prop_filter("finite", |n| n.is_finite()).prop_map(|n| format!("{n:e}")),
        any::<i64>().prop_map(|n| n.to_string()),
        string(),
    ];
    leaf.prop_recursive(depth, 64, 6, move |inner| {
        let spaced = (space(), inner, space()).prop_map(|(before, value, after)| format!("{before}{value}{after}"));
        let member =
            (space(), string(), space(), spaced.clone()).prop_map(|(a, key, b, value)| format!("{a}{key}{b}:{value}"));
        prop_oneof![
            prop::collection::vec(spaced, 0..6).prop_map(|items| format!("[{}]", items.join(","))),
            prop::collection::vec(member, 0..6).prop_map(|members| format!("{{{}}}", members.join(","))),
        ]
    })
}

fn object_text() -> impl Strategy<Value = String> {
    json_text(5).prop_filter("objects only", |text| text.starts_with('{'))
}

/// Redaction as one would write it over a parsed value.
fn redact_value(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(redact_value),
        Value::Object(members) => {
            for (key, member) in members {
                if let ("customEnv0EnvironmentVariables", Value::Object(holder)) = (key.as_str(), &mut *member) {
                    for secret in ["oidcToken", "vcsAccessToken"] {
                        if let Some(text @ Value::String(_)) = holder.get_mut(secret) {
                            *text = "[redacted]".into();
                        }
                    }
                }
                redact_value(member);
            }
        }
        _ => {}
    }
}

proptest! {
    #[test]
    fn any_objects_come_out_as_lines_of_the_same_values(events in prop::collection::vec(object_text(), 1..5), form in 0..3) {
        let body = match form {
            0 => events.join("\n"),
            1 => events.concat(),
            _ => format!("[{}]", events.join(",")),
        };
        let lines = scan_bytes(&body).unwrap();
        let stored: Vec<&str> = std::str::from_utf8(&lines.bytes).unwrap().lines().collect();
        prop_assert_eq!(stored.len(), events.len());
        prop_assert_eq!(lines.records, events.len() as u64);
        for (event, line) in events.iter().zip(stored) {
            let mut expected: Value = serde_json::from_str(event).unwrap();
            redact_value(&mut expected);
            prop_assert_eq!(serde_json::from_str::<Value>(line).unwrap(), expected);
        }
        let again = scan(lines.bytes.clone(), received, &LIMITS).unwrap();
        prop_assert_eq!(again.bytes.as_ptr(), lines.bytes.as_ptr(), "stored lines are stored again as they are");
        prop_assert_eq!(again.redacted, 0);
    }

    #[test]
    fn any_bytes_get_the_verdict_of_serde_json(body in prop_oneof![
        prop::collection::vec(prop::sample::select(&b"{}[]\",:\\u0 \n\re1-.t\xff\xef"[..]), 0..24),
        (object_text(), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(text, at, byte)| {
            let mut bytes = text.into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes
        }),
    ]) {
        assert_verdict_of_serde_json(&body);
    }

    #[test]
    fn any_text_keeps_its_lines(lines in prop::collection::vec("[^\r\n\u{feff}]*", 0..6)) {
        let body = lines.join("\n");
        prop_assume!(!Events::sniff(body.as_bytes()) && !super::is_utf16_or_32(body.as_bytes()));
        let expected: Vec<_> = lines.iter().filter(|line| line.contains(|c| !matches!(c, ' ' | '\t'))).collect();
        let stored = stored(&body);
        prop_assert_eq!(stored.lines().count(), expected.len());
        for (line, expected) in stored.lines().zip(expected) {
            prop_assert_eq!(&serde_json::from_str::<Value>(line).unwrap()["message"], expected);
        }
    }
}
