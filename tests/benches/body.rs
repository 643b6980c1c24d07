//! `cargo bench --bench body`: the body scanner by form, and the hash.

use std::hint::black_box;

use bytes::Bytes;
use chrono::Utc;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use env0_s3_logs::batch::Sha256;
use env0_s3_logs::protocols::body::{Limits, scan};

const EVENTS: &str = include_str!("../fixtures/deployment-events.ndjson");
const TEXT: &str = include_str!("../fixtures/terraform-apply.ansi.txt");
const LIMITS: Limits =
    Limits { max_body_bytes: 16 << 20, max_lines_bytes: 64 << 20, max_event_bytes: 1 << 20, redact: true };

fn scanner(criterion: &mut Criterion) {
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
    let mut group = criterion.benchmark_group("scan");
    for (name, body) in bodies {
        let body = Bytes::from(body);
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter_batched(|| body.clone(), |body| scan(body, Utc::now(), &LIMITS), BatchSize::SmallInput);
        });
    }
    group.finish();
}

fn hash(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("SHA-256");
    for bytes in [440, 44_000, 440_000] {
        let data = vec![b'x'; bytes];
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(format!("{bytes} bytes"), |bencher| bencher.iter(|| Sha256::of(black_box(&data))));
    }
    group.finish();
}

criterion_group!(benches, scanner, hash);
criterion_main!(benches);
