//! What a verification takes: a bucket of any size, made up as it is read.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use chrono::DateTime;
use env0_s3_logs::batch::{Sha256, Sha256Hasher};

use crate::harness::{binary, wait_for};
use crate::local_aws::http::{self, HttpRequest, HttpResponse, answer, percent_decode};

/// What a verification may hold in memory, whatever the bucket's size.
const MEMORY_MAX_KIB: u64 = 128 * 1024;
const PAGE: u64 = 1000;
/// When the first batch was opened; one a second follows.
const START_SECONDS: i64 = 1_700_000_000;

/// A chain of `objects` batches whose bodies are some filler and a line of their own.
struct MadeUp {
    objects: u64,
    filler: Bytes,
    filler_hash: Sha256Hasher,
    filler_lines: u64,
}

impl MadeUp {
    fn new(objects: u64, bytes: usize) -> MadeUp {
        let filler =
            b"{\"message\":\"Apply complete! Resources: 12 added, 0 changed, 3 destroyed.\",\"level\":\"info\"}\n";
        let filler = filler.repeat(bytes / filler.len());
        let mut filler_hash = Sha256Hasher::default();
        filler_hash.update(&filler);
        let filler_lines = memchr::memchr_iter(b'\n', &filler).count() as u64;
        MadeUp { objects, filler: filler.into(), filler_hash, filler_lines }
    }

    fn last_line(number: u64) -> String {
        format!("{{\"number\":{number}}}\n")
    }

    fn sha256(&self, number: u64) -> Sha256 {
        if number == 0 {
            return Sha256::ZERO;
        }
        let mut hash = self.filler_hash.clone();
        hash.update(MadeUp::last_line(number).as_bytes());
        hash.finish()
    }

    fn key(number: u64) -> String {
        let opened = DateTime::from_timestamp(START_SECONDS + number as i64, 0).unwrap();
        format!("env0-audits/{}_aaaaa.log", opened.format("%Y/%m/%d/%H:%M:%S"))
    }

    fn number(key: &str) -> u64 {
        let time = key.trim_start_matches("env0-audits/").trim_end_matches("_aaaaa.log");
        let opened = chrono::NaiveDateTime::parse_from_str(time, "%Y/%m/%d/%H:%M:%S").unwrap();
        (opened.and_utc().timestamp() - START_SECONDS) as u64
    }

    fn answer(&self, request: &HttpRequest) -> HttpResponse {
        let query = request.uri().query().unwrap_or_default();
        if query.contains("list-type=2") {
            return answer(200, "application/xml", self.page(query));
        }
        let (_, key) = request.uri().path()[1..].split_once('/').unwrap();
        let number = MadeUp::number(&percent_decode(key));
        let parts = [self.filler.clone(), MadeUp::last_line(number).into()];
        let body = futures_util::stream::iter(parts.map(Ok::<_, std::io::Error>));
        hyper::Response::builder()
            .header("content-length", self.filler.len() + MadeUp::last_line(number).len())
            .header("x-amz-meta-env0-instance", "made-up")
            .header("x-amz-meta-env0-sequence", number)
            .header("x-amz-meta-env0-records", self.filler_lines + 1)
            .header("x-amz-meta-env0-sha256", self.sha256(number).to_string())
            .header("x-amz-meta-env0-previous-sha256", self.sha256(number - 1).to_string())
            .body(s3s::Body::from(s3s::dto::StreamingBlob::wrap(body)))
            .unwrap()
    }

    /// A page of the listing; its token is the number of its first object.
    fn page(&self, query: &str) -> String {
        let token = query.split('&').find_map(|pair| pair.strip_prefix("continuation-token="));
        let first = token.map_or(1, |token| token.parse().unwrap());
        let objects = if query.contains("env0-audits") { self.objects } else { 0 };
        let last = (first + PAGE - 1).min(objects);
        let size = self.filler.len();
        let contents = (first..=last).map(|number| {
            let (key, tag) = (MadeUp::key(number), number);
            format!(
                "<Contents><Key>{key}</Key><Size>{size}</Size><ETag>\"{tag}\"</ETag>\
                 <LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            )
        });
        let contents: String = contents.collect();
        let next = last + 1;
        let more = if last < objects {
            format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{next}</NextContinuationToken>")
        } else {
            "<IsTruncated>false</IsTruncated>".to_owned()
        };
        format!("<?xml version=\"1.0\"?><ListBucketResult>{more}{contents}</ListBucketResult>")
    }
}

/// A receipt for each object, with all its events.
fn receipts(bucket: &MadeUp) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let filler = String::from_utf8(bucket.filler.to_vec()).unwrap().replace('\n', ",");
    for number in 1..=bucket.objects {
        let (key, accepted, last) = (MadeUp::key(number), bucket.filler_lines + 1, MadeUp::last_line(number));
        let head = format!("{{\"accepted\":{accepted},\"object\":\"{key}\",\"line\":0,\"events\":[");
        writeln!(file, "{head}{filler}{}]}}", last.trim_end()).unwrap();
    }
    file
}

/// The variables of a verification of the bucket at `url`.
fn environment(url: &str) -> [(&'static str, String); 6] {
    [
        ("ENV0_S3_LOG_BUCKET_NAME", "made-up".to_owned()),
        ("ENV0_S3_LOG_AWS_REGION", "eu-west-1".to_owned()),
        ("ENV0_S3_LOG_FORCE_PATH_STYLE", "true".to_owned()),
        ("AWS_ENDPOINT_URL_S3", url.to_owned()),
        ("AWS_ACCESS_KEY_ID", "any".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "any".to_owned()),
    ]
}

/// Has the bucket verified and tells its peak of memory; prints what it took.
fn verify(bucket: MadeUp) -> u64 {
    verify_with(&[], bucket)
}

fn verify_with(arguments: &[&str], bucket: MadeUp) -> u64 {
    let (objects, bytes) = (bucket.objects, bucket.objects * bucket.filler.len() as u64);
    let started = Instant::now();
    let (code, lines, peak_kib) = measured(arguments, Arc::new(bucket));
    let seconds = started.elapsed().as_secs_f64();
    assert_eq!(code, Some(0), "{lines:?}");
    assert!(lines[0].ends_with(&format!("complete from 1 to {objects}")), "{lines:?}");
    let megabytes_per_second = bytes as f64 / 1e6 / seconds;
    eprintln!("{objects} objects, {bytes} bytes: {seconds:.1} s, {megabytes_per_second:.0} MB/s, peak {peak_kib} KiB");
    peak_kib
}

/// Has the bucket verified; returns exit code, what was printed, and the peak of memory.
fn measured(arguments: &[&str], bucket: Arc<MadeUp>) -> (Option<i32>, Vec<String>, u64) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let address = runtime.block_on(http::serve(move |request| {
        let bucket = bucket.clone();
        async move { Ok(bucket.answer(&request)) }
    }));
    let mut process = Command::new(binary());
    process
        .arg("verify")
        .args(arguments)
        .env_clear()
        .envs(environment(&format!("http://{address}")))
        .stdout(Stdio::piped())
        .stdin(Stdio::null());
    let mut process = process.spawn().unwrap();
    // A long report fills the pipe.
    let printed = BufReader::new(process.stdout.take().unwrap());
    let printed = std::thread::spawn(|| printed.lines().map_while(Result::ok).collect());
    let status = format!("/proc/{}/status", process.id());
    let mut peak_kib = 0;
    let code = wait_for("the verification ends", || {
        let status = std::fs::read_to_string(&status).unwrap_or_default();
        let peak =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        peak_kib = peak.unwrap_or(peak_kib);
        process.try_wait().unwrap()
    });
    (code.code(), printed.join().unwrap(), peak_kib)
}

#[test]
fn memory_stays_bounded_with_many_objects_and_with_large_ones() {
    assert!(verify(MadeUp::new(5_000, 100)) < MEMORY_MAX_KIB);
    assert!(verify(MadeUp::new(40, 16 << 20)) < MEMORY_MAX_KIB);
}

#[test]
fn memory_stays_bounded_with_receipts_that_hold_all_events() {
    let bucket = MadeUp::new(40, 4 << 20);
    let receipts = receipts(&bucket);
    let peak_kib = verify_with(&["--receipts", receipts.path().to_str().unwrap()], bucket);
    assert!(peak_kib < MEMORY_MAX_KIB, "{peak_kib} KiB");
}

#[test]
fn a_line_of_a_receipts_file_has_a_bound_whatever_is_in_it() {
    const MIB: usize = 1 << 20;
    let line = |before: &str, filler: u8, bytes: usize, after: &str| {
        let filler = vec![filler; bytes - before.len() - after.len()];
        [before.as_bytes(), &filler, after.as_bytes()].concat()
    };
    let endless = "line 2: it is longer than 33554432 bytes";
    for (line, said) in [
        (line("", b'a', 300 * MIB, ""), endless),
        (line("{\"accepted\":1,\"object\":\"", 0, 100 * MIB, "\"}"), endless),
        (line("{\"accepted\":\"", b'a', 32 * MIB, "\"}"), "`accepted` is not a whole number"),
        (line("\"", b'a', 32 * MIB, "\""), "line 2: not a JSON object"),
        (line("{\"accepted\":1,\"line\":0,\"object\":\"\\n", b'a', 32 * MIB, "\"}"), "longer than a key can be"),
        (line("{\"accepted\":1,\"object\":\"a\",\"events\":", b'[', 32 * MIB, ""), "line 2: "),
    ] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"{\"accepted\":0}\n").unwrap();
        file.write_all(&line).unwrap();
        let (told, peak_kib) = refused_receipts(file.path().to_str().unwrap());
        assert!(told.contains(said) && told.len() < 1_000, "{told:.1000}");
        assert!(peak_kib < MEMORY_MAX_KIB, "{said}: {peak_kib} KiB");
    }
}

#[test]
fn memory_stays_bounded_with_receipts_by_the_million() {
    const RECEIPTS: u64 = 1_000_000;
    let mut file = std::io::BufWriter::new(tempfile::NamedTempFile::new().unwrap());
    for number in 1..=RECEIPTS {
        // Half of them name an object that has no such line, the others one that is missing.
        let (object, line) = if number % 2 == 0 { (number % 1000 + 1, 5) } else { (number + 1000, 0) };
        writeln!(file, "{{\"accepted\":1,\"object\":\"{}\",\"line\":{line}}}", MadeUp::key(object)).unwrap();
    }
    let file = file.into_inner().unwrap();
    let (code, lines, peak_kib) =
        measured(&["--receipts", file.path().to_str().unwrap()], Arc::new(MadeUp::new(1000, 0)));
    let counted = format!("receipts: 0 held, {RECEIPTS} failed, 0 pending, 0 outside the window");
    assert!(code == Some(1) && lines.contains(&counted), "{code:?} {lines:?}");
    let told = |part: &str| lines.iter().any(|line| line.contains(part));
    assert!(told("lines 5 to 5 are not there: it has 1") && told("neither it nor an object renamed"), "{lines:?}");
    eprintln!("{RECEIPTS} receipts: peak {peak_kib} KiB");
    assert!(peak_kib < MEMORY_MAX_KIB, "{peak_kib} KiB");
}

/// What is said of a receipts file that can't be used, and the peak of memory.
fn refused_receipts(file: &str) -> (String, u64) {
    // Its parent is told the peak. /proc tells it only while the process runs, which is not long here.
    const MEASURE: &str = "import os, sys\n\
        process = os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:])\n\
        _, status, used = os.wait4(process, 0)\n\
        print(os.waitstatus_to_exitcode(status), used.ru_maxrss)";
    let mut command = Command::new("python3");
    command.args(["-c", MEASURE]).arg(binary()).args(["verify", "--receipts", file]);
    let output = command.env_clear().envs(environment("http://127.0.0.1:9")).output().unwrap();
    let measured = String::from_utf8(output.stdout).unwrap();
    let peak_kib = measured.trim().strip_prefix("64 ").unwrap_or_else(|| panic!("{measured}"));
    (String::from_utf8_lossy(&output.stderr).into_owned(), peak_kib.parse().unwrap())
}

/// `DAEMON_BINARY=target/release/env0-s3-logs cargo test --test it -- --ignored --nocapture figures`
/// on a quiet machine.
#[test]
#[ignore = "measures; for a quiet machine and a release build"]
fn figures() {
    assert!(verify(MadeUp::new(100_000, 100)) < MEMORY_MAX_KIB);
    assert!(verify(MadeUp::new(300, 16 << 20)) < MEMORY_MAX_KIB);
}
