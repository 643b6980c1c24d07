//! Two fuzzers of every protocol. One makes mutations of real requests, as many as `FUZZ_EXECUTIONS` says, from seed
//! `FUZZ_SEED` on; a failure names its seed, and one execution from that seed repeats it. The other is libFuzzer, which
//! is guided by coverage (`tests/fuzz/`): [`execute`] is what it calls, and the inputs that it found are in
//! `tests/fixtures/fuzz/`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::golden::{CLIENTS, recorded};
use super::reference::assert_verdict_of_serde_json;
use super::*;
use crate::protocols::body;

const FEW_FOR_EVERY_TEST_RUN: u64 = 3_000;
const SMALL: Limits =
    Limits { max_body_bytes: 4 << 10, max_lines_bytes: 16 << 10, max_event_bytes: 1 << 10, redact: true };

/// Limits that a short input can pass.
const TINY: Limits = Limits { max_body_bytes: 512, max_lines_bytes: 1 << 10, max_event_bytes: 128, redact: true };

/// A family of the guided fuzz: its name, and the paths, each with a header, that its bodies are sent to.
type Family = (&'static str, &'static [(&'static str, (&'static str, &'static str))]);

const JSON_TYPE: (&str, &str) = ("content-type", "application/json");
const ANY_TYPE: (&str, &str) = ("accept", "*/*");
const LATIN1_TYPE: (&str, &str) = ("content-type", "text/plain; charset=iso-8859-1");

pub(crate) const FAMILIES: [Family; 9] = [
    ("native", &[("/v1/logs/env0-audits", ANY_TYPE), ("/v1/logs/env0-audits", LATIN1_TYPE)]),
    ("otlp-json", &[("/v1/logs", JSON_TYPE)]),
    ("otlp-protobuf", &[("/v1/logs", PROTOBUF_TYPE)]),
    ("loki-json", &[("/loki/api/v1/push", JSON_TYPE)]),
    ("loki-protobuf", &[("/loki/api/v1/push", PROTOBUF_TYPE)]),
    (
        "splunk",
        &[
            ("/services/collector", ANY_TYPE),
            ("/services/collector/raw", ANY_TYPE),
            ("/services/collector/event?source=s&time=1", ANY_TYPE),
            ("/services/collector/raw?source=s&host=h", ANY_TYPE),
        ],
    ),
    ("newrelic", &[("/log/v1", JSON_TYPE)]),
    ("sumologic", &[("/receiver/v1/http/s", ANY_TYPE), ("/receiver/v1/http/s", ("x-sumo-name", "n"))]),
    ("logzio", &[("/?token=t", ANY_TYPE), ("/?token=t&type=x", ANY_TYPE), ("/?token=t", LATIN1_TYPE)]),
];

const DICTIONARY: [&[u8]; 24] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\",
    b":",
    b",",
    b"\n",
    b"\r\n",
    b"\0",
    b"\x7b\x22",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\\ud800",
    b"\\u0063",
    b"1e999",
    b"{}",
    b"[]",
    b"\"\"",
    b"customEnv0EnvironmentVariables",
    b"\"oidcToken\":\"x\"",
    b"\"customEnv0EnvironmentVariables\":{",
    b"\xff\xff\xff\xff\x0f",
];

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |value| value.parse().unwrap())
}

fn mutate(bytes: &mut Vec<u8>, random: &mut StdRng) {
    for _ in 0..random.random_range(1..=4) {
        let at = random.random_range(0..=bytes.len());
        let end = (at + random.random_range(0..=32)).min(bytes.len());
        match random.random_range(0..6) {
            0 => drop(bytes.splice(at..at, DICTIONARY[random.random_range(0..DICTIONARY.len())].iter().copied())),
            1 => drop(bytes.drain(at..end)),
            2 => bytes.extend_from_within(at..end),
            3 => bytes.truncate(at),
            4 if at < end => bytes[at] ^= 1 << random.random_range(0..8),
            _ if at < end => bytes[at] = random.random(),
            _ => {}
        }
    }
}

/// One input of the guided fuzz: a byte that chooses path and limits, and a body, which is
/// Loki's protobuf without snappy.
pub(crate) fn execute(family: &str, input: &[u8]) {
    let (_, heads) = FAMILIES.into_iter().find(|(name, _)| *name == family).expect("the name of a family");
    let Some((&choice, body)) = input.split_first() else { return };
    let (uri, header) = heads[usize::from(choice >> 1) % heads.len()];
    let sent = post(uri, &[header], if family == "loki-protobuf" { snappy(body) } else { body.to_vec() });
    assert_refused_or_stored(&sent, if choice & 1 == 0 { &LIMITS } else { &TINY });
    if family == "native" {
        assert_verdict_of_serde_json(&sent.body);
    }
}

/// What any request must come to.
fn assert_refused_or_stored(sent: &Sent, limits: &Limits) {
    match sent.parse_with(limits) {
        Ok(parts) => {
            // What was redacted is not what the reference finds.
            if parts.iter().all(|part| part.lines.redacted == 0) {
                reference::assert_holds_all(sent, &parts);
            }
            assert_stored_well(parts, limits);
        }
        Err(error) => assert!((400..=415).contains(&sent.refused(&error.into()).status)),
    }
}

/// Stored lines are lines of JSON objects within the limits, and are stored again as they are.
fn assert_stored_well(parts: Vec<Part>, limits: &Limits) {
    for Part { lines, .. } in parts {
        assert!(lines.redacted <= lines.records);
        let again = body::scan(lines.bytes.clone(), received, limits).unwrap();
        assert_eq!((again.records, again.redacted), (lines.records, 0));
        assert_eq!(again.bytes, lines.bytes);
        assert!(lines.bytes.is_empty() || again.bytes.as_ptr() == lines.bytes.as_ptr());
    }
}

/// One request of each foreign protocol with all that it may say.
fn rich_requests() -> Vec<Sent> {
    let any = [field(1, b"text"), vec![0x10, 1], vec![0x18, 5], field(5, &field(1, &field(7, b"\x00\xff")))];
    let attributes = any.map(|value| field(6, &[field(1, b"k"), field(2, &value)].concat())).concat();
    let record =
        [&[0x09, 1, 2, 3, 4, 5, 6, 7, 8, 0x10, 9][..], &field(3, b"INFO"), &attributes, &field(9, &[7; 16])].concat();
    let resource = field(1, &field(1, &[field(1, b"service.name"), field(2, &field(1, b"env0-audits"))].concat()));
    let scope = field(2, &[field(1, &field(1, b"s")), field(2, &record), field(2, &record), field(3, b"u")].concat());
    let pair = |name: &[u8]| field(3, &[field(1, name), field(2, b"v")].concat());
    let entry = [field(1, &[0x08, 1, 0x10, 5]), field(2, b"line"), pair(b"a"), pair(b"b")].concat();
    let stream = [field(1, b"{app=\"env0-audits\",x=\"\\x1b\"}"), field(2, &entry), field(2, &entry)].concat();
    let json = &[("content-type", "application/json")];
    let otlp = r#"{"resourceLogs":[{"resource":{"attributes":[]},"scopeLogs":[{"scope":{"name":"s"},"logRecords":[{"body":{"stringValue":"a"}},{"traceId":"0a"}],"schemaUrl":"u"}]},{"scope_logs":[{"log_records":[{"severityNumber":9}]}]}]}"#;
    let loki = r#"{"streams":[{"stream":{"app":"env0"},"values":[["1","a"],["2","b",{"trace":"t"}]]},{"values":[["3","c"]],"stream":{}}]}"#;
    vec![
        post("/v1/logs", &[PROTOBUF_TYPE], field(1, &[resource, scope].concat())),
        post("/v1/logs", json, otlp),
        post("/v1/logs", json, include_str!("../../../tests/fixtures/bodies/otlp-older-member.json")),
        post("/loki/api/v1/push", &[PROTOBUF_TYPE], snappy(&field(1, &stream))),
        post("/loki/api/v1/push", json, loki),
        post("/services/collector", &[], r#"{"event":"a","source":"s"}{"event":{"b":1},"fields":{"c":2}}"#),
        post("/services/collector/raw", &[], "one\r\n{\"two\":2}\n\nca\u{f1}on\n{cut"),
        post(
            "/log/v1",
            &[],
            r#"[{"common":{"attributes":{"a":1}},"logs":[{"message":"a"},{"message":"b"}]},{"message":"c"}]"#,
        ),
        post("/receiver/v1/http/s", &[], include_str!("../../../tests/fixtures/bodies/sumo-json-then-text.txt")),
    ]
}

#[test]
fn any_mutation_of_a_real_request_is_refused_or_stored_with_all_its_reference_finds() {
    let executions = number("FUZZ_EXECUTIONS", FEW_FOR_EVERY_TEST_RUN);
    let first = number("FUZZ_SEED", 0);
    let mut corpus: Vec<Sent> = CLIENTS.map(recorded).into();
    for fixture in
        ["deployment-events.ndjson", "audit-events.ndjson", "terraform-apply.ansi.txt", "terraform-apply.jsonl"]
    {
        let text = std::fs::read(format!("{}/tests/fixtures/{fixture}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let lines = text.split_inclusive(|&byte| byte == b'\n').take(3).collect::<Vec<_>>().concat();
        corpus.push(post("/v1/logs/env0-deployments", &[], lines.clone()));
        corpus.push(post("/services/collector/raw?source=s", &[], lines));
    }
    let secret = r#"[{"a":{"customEnv0EnvironmentVariables":{"oidcToken":"x\"y","b":[{}],"vcsAccessToken":""}}},{}]"#;
    corpus.push(post("/v1/logs/env0-audits", &[], secret));
    corpus.extend(rich_requests());
    for seed in first..first + executions {
        let mut random = StdRng::seed_from_u64(seed);
        let sent = &corpus[random.random_range(0..corpus.len())];
        let is_loki = sent.protocol().name() == "loki" && !is_json(&sent.headers, &sent.body);
        // Below snappy, where a mutation goes further than to a broken block.
        let mut bytes =
            if is_loki { snap::raw::Decoder::new().decompress_vec(&sent.body).unwrap() } else { sent.body.to_vec() };
        mutate(&mut bytes, &mut random);
        let body = Bytes::from(if is_loki { snappy(&bytes) } else { bytes });
        let mutant = Sent { uri: sent.uri.clone(), headers: sent.headers.clone(), body };
        let run = || {
            assert_refused_or_stored(&mutant, &LIMITS);
            assert_refused_or_stored(&mutant, &SMALL);
            assert_verdict_of_serde_json(&mutant.body);
        };
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
            panic!("FUZZ_SEED={seed} FUZZ_EXECUTIONS=1 repeats this: {} {:?}", mutant.uri, mutant.body);
        }
    }
    println!("{executions} executions from seed {first}, no failure");
}

#[test]
fn what_the_guided_fuzz_has_found_is_refused_or_stored_with_all_its_reference_finds() {
    for (family, _) in FAMILIES {
        let path = format!("{}/tests/fixtures/fuzz/{family}.txt", env!("CARGO_MANIFEST_DIR"));
        let inputs = std::fs::read_to_string(&path).unwrap();
        assert!(inputs.lines().count() > 100, "{path} is the fuzz's corpus");
        for input in inputs.lines() {
            let bytes = STANDARD.decode(input).unwrap();
            let run = || execute(family, &bytes);
            assert!(std::panic::catch_unwind(run).is_ok(), "{family} {input}");
        }
    }
}
