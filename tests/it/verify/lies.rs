//! Stores that lie: a verification ends, and says why.

use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use env0_s3_logs::batch::Sha256;
use hyper::header::HeaderValue;

use crate::harness::{binary, wait_for};
use crate::local_aws::http::{self, HttpRequest, HttpResponse, answer};

const BODY: &str = "{\"a\":1}\n";

fn key(number: u64) -> String {
    format!("env0-audits/2026/01/01/00:00:{number:02}_aaaaa.log")
}

/// A page with the keys of `numbers`, and what it says of the next one.
fn page(numbers: &[u64], more: &str) -> HttpResponse {
    let contents = numbers.iter().map(|number| {
        let (key, size) = (key(*number), BODY.len());
        format!(
            "<Contents><Key>{key}</Key><Size>{size}</Size><ETag>\"{number}\"</ETag>\
             <LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        )
    });
    let contents: String = contents.collect();
    answer(
        200,
        "application/xml",
        format!("<?xml version=\"1.0\"?><ListBucketResult>{more}{contents}</ListBucketResult>"),
    )
}

fn truncated(token: &str) -> String {
    format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>")
}

/// The object of this number, in a chain of three, with `body` for its own.
fn object(number: u64, body: s3s::Body) -> HttpResponse {
    let hash = Sha256::of(BODY.as_bytes());
    hyper::Response::builder()
        .header("x-amz-meta-env0-instance", "made-up")
        .header("x-amz-meta-env0-sequence", number)
        .header("x-amz-meta-env0-records", 1)
        .header("x-amz-meta-env0-sha256", hash.to_string())
        .header("x-amz-meta-env0-previous-sha256", if number == 1 { Sha256::ZERO } else { hash }.to_string())
        .body(body)
        .unwrap()
}

fn number_of(request: &HttpRequest) -> u64 {
    let path = request.uri().path().trim_end_matches("_aaaaa.log");
    path[path.len() - 2..].parse().unwrap()
}

/// Has a bucket verified that answers so.
fn verify(bucket: impl Fn(&HttpRequest) -> HttpResponse + Send + Sync + 'static) -> Output {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let bucket = Arc::new(bucket);
    let address = runtime.block_on(http::serve(move |request| {
        let bucket = bucket.clone();
        async move { Ok(bucket(&request)) }
    }));
    let mut process = Command::new(binary());
    let environment = [
        ("ENV0_S3_LOG_BUCKET_NAME", "made-up"),
        ("ENV0_S3_LOG_AWS_REGION", "eu-west-1"),
        ("ENV0_S3_LOG_FORCE_PATH_STYLE", "true"),
        ("AWS_ENDPOINT_URL_S3", &format!("http://{address}")),
        ("AWS_ACCESS_KEY_ID", "any"),
        ("AWS_SECRET_ACCESS_KEY", "any"),
    ];
    process.arg("verify").env_clear().envs(environment).stdin(Stdio::null());
    let mut process = process.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the verification ends", || process.try_wait().unwrap());
    process.wait_with_output().unwrap()
}

fn is_listing(request: &HttpRequest) -> bool {
    request.uri().query().is_some_and(|query| query.contains("list-type=2"))
}

fn is_of_audits(request: &HttpRequest) -> bool {
    request.uri().query().is_some_and(|query| query.contains("env0-audits"))
}

type Listing = Box<dyn Fn() -> HttpResponse + Send + Sync>;

#[test]
fn what_is_no_s3_is_called_so_with_its_host_and_the_bucket() {
    for (status, content_type, body) in [
        (404, "text/html", "<html>not found</html>"),
        (404, "application/json", ""),
        (200, "text/html", "<html>please log in</html>"),
        (200, "application/json", "{}"),
        (502, "text/html", "<html>bad gateway</html>"),
        (302, "text/html", ""),
    ] {
        let ended = verify(move |_| answer(status, content_type, body));
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_ne!(ended.status.code(), Some(0), "{said}");
        for words in ["ListObjectsV2 of the bucket made-up at 127.0.0.1:", "look at what answers"] {
            assert!(said.contains(words), "{status} {body}: {said}");
        }
        assert!(!said.contains("the object is gone"), "{said}");
    }
}

#[test]
fn a_listing_that_never_advances_ends_it_with_69_and_says_so() {
    let tokens = AtomicU64::new(0);
    let new_token = move || tokens.fetch_add(1, Ordering::Relaxed).to_string();
    let lies: [(&str, Listing); 4] = [
        ("don't come after", Box::new(|| page(&[1, 2], &truncated("same")))),
        ("has no key", Box::new(|| page(&[], &truncated("same")))),
        ("has no key", Box::new(move || page(&[], &truncated(&new_token())))),
        ("how to ask for the next", Box::new(|| page(&[], "<IsTruncated>true</IsTruncated>"))),
    ];
    for (words, listing) in lies {
        let ended = verify(move |request| match is_listing(request) {
            true => listing(),
            false => object(number_of(request), s3s::Body::from(Bytes::from(BODY))),
        });
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.code() == Some(69) && said.contains(words), "{words}: {ended:?}");
    }
}

#[test]
fn a_key_or_token_that_s3_never_gives_is_sent_nowhere_and_ends_it_with_69() {
    let key = format!("<Contents><Key>env0-audits/{}</Key><Size>1</Size></Contents>", "k".repeat(66_000));
    for (words, listing) in [("token of 70000 bytes", truncated(&"t".repeat(70_000))), ("key of 66012 bytes", key)] {
        let ended = verify(move |_| page(&[1], &listing));
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.code() == Some(69) && said.contains(words), "{words}: {ended:?}");
    }
}

#[test]
fn a_body_that_never_ends_and_metadata_that_are_no_text_are_altered_objects() {
    let ended = verify(|request| match (is_listing(request), is_of_audits(request)) {
        (true, true) => page(&[1, 2, 3, 4], "<IsTruncated>false</IsTruncated>"),
        (true, false) => page(&[], "<IsTruncated>false</IsTruncated>"),
        (false, _) if number_of(request) == 2 => {
            let body = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(BODY.repeat(1000))));
            object(2, s3s::Body::from(s3s::dto::StreamingBlob::wrap(body)))
        }
        (false, _) => {
            let number = number_of(request);
            let mut object = object(number, s3s::Body::from(Bytes::from(BODY)));
            if number == 3 {
                let value = HeaderValue::from_bytes(b"\xe2\x80\xae\x9b31m").unwrap();
                object.headers_mut().insert("x-amz-meta-env0-instance", value);
            }
            object
        }
    });
    let said = String::from_utf8_lossy(&ended.stdout);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    for number in [2, 3] {
        let line = said.lines().find(|line| line.contains(&key(number)) && line.contains("altered"));
        assert!(line.is_some(), "{number}: {said}");
    }
    assert_eq!(said.lines().filter(|line| line.starts_with("altered")).count(), 2, "{said}");
}
