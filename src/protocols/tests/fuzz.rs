//! Mutations of real requests, as many as `FUZZ_EXECUTIONS` says, from seed `FUZZ_SEED` on. A failure
//! names its seed; one execution from that seed repeats it.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::golden::{CLIENTS, recorded};
use super::*;
use crate::protocols::body::{self, tests::assert_verdict_of_serde_json};

const FEW_FOR_EVERY_TEST_RUN: u64 = 3_000;
const SMALL: Limits =
    Limits { max_body_bytes: 4 << 10, max_lines_bytes: 16 << 10, max_event_bytes: 1 << 10, redact: true };

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

/// Stored lines are lines of JSON objects within the limits, and are stored again as they are.
fn assert_stored_well(parts: Vec<Part>, limits: &Limits) {
    for Part { lines, .. } in parts {
        assert!(lines.redacted <= lines.records);
        let again = body::scan(lines.bytes.clone(), received(), limits).unwrap();
        assert_eq!((again.records, again.redacted), (lines.records, 0));
        assert_eq!(again.bytes, lines.bytes);
        assert!(lines.bytes.is_empty() || again.bytes.as_ptr() == lines.bytes.as_ptr());
    }
}

#[test]
fn any_mutation_of_a_real_request_is_refused_or_stored_as_lines_of_objects() {
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
            for limits in [&LIMITS, &SMALL] {
                match mutant.parse_with(limits) {
                    Ok(parts) => assert_stored_well(parts, limits),
                    Err(error) => assert!((400..=413).contains(&mutant.refused(&error.into()).status)),
                }
            }
            assert_verdict_of_serde_json(&mutant.body);
        };
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
            panic!("FUZZ_SEED={seed} FUZZ_EXECUTIONS=1 repeats this: {} {:?}", mutant.uri, mutant.body);
        }
    }
    println!("{executions} executions from seed {first}, no failure");
}
