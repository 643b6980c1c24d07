//! `cargo bench --bench body`: the body scanner by form, and the hash.

mod measure;

use std::hint::black_box;

use bytes::Bytes;
use chrono::Utc;
use env0_s3_logs::batch::Sha256;
use env0_s3_logs::protocols::body::{Limits, scan};
use measure::{measure, timed};

const EVENTS: &str = include_str!("../fixtures/deployment-events.ndjson");
const TEXT: &str = include_str!("../fixtures/terraform-apply.ansi.txt");
const LIMITS: Limits =
    Limits { max_body_bytes: 16 << 20, max_lines_bytes: 64 << 20, max_event_bytes: 1 << 20, redact: true };

fn main() {
    let lines: Vec<&str> = EVENTS.lines().collect();
    let first = lines.first().copied().unwrap_or_default();
    let spread = first.replace("\",\"", "\",\n  \"").replace("\":\"", "\": \"");
    let bodies = [
        ("one event", format!("{first}\n")),
        ("NDJSON", EVENTS.to_owned()),
        ("array", format!("[{}]", lines.join(","))),
        ("concatenated", lines.concat()),
        ("spread over lines", format!("{spread}\n").repeat(lines.len())),
        ("text", TEXT.to_owned()),
    ];
    for (name, body) in bodies {
        let body = Bytes::from(body);
        measure(&format!("scan {name}"), body.len(), || {
            let body = body.clone();
            timed(|| scan(body, Utc::now, &LIMITS))
        });
    }
    for bytes in [440, 44_000, 440_000] {
        let data = vec![b'x'; bytes];
        measure(&format!("SHA-256 of {bytes} bytes"), bytes, || timed(|| Sha256::of(black_box(&data))));
    }
}
