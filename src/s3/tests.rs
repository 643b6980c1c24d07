use axum::http::Response;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::network::retry_after;
use crate::oidc::Verifier;
use crate::testing::{
    Issuer, Seen, Server, answer, config, nobody, s3_error, s3_ok, soon, sts_session, sts_that_gives_sessions,
};

mod checksums;
mod early;
mod region;

/// An S3 at `endpoint`, with a session.
async fn s3_at(endpoint: &str) -> (S3, Server) {
    s3_with(Config { endpoint_url_s3: Some(endpoint.to_owned()), ..config("") }).await
}

async fn s3_with(config: Config) -> (S3, Server) {
    let sts = sts_that_gives_sessions().await;
    let config = Config { endpoint_url_sts: Some(sts.url()), oidc_token: Some("token".into()), ..config };
    let network = Network::new(&config.network).unwrap();
    let credentials = Credentials::start(&config, &network, "id", CancellationToken::new());
    soon(credentials.wait_session()).await;
    (S3::new(&config, &network, credentials), sts)
}

const BODY: &[u8] = b"{\"message\":\"one\"}\n{\"message\":\"two\"}\n";
const KEY: &str = "a b/env0-deployments/2026/11/22/21:04:05_aB3dE.log";

fn put(file: &tempfile::NamedTempFile) -> Put {
    Put {
        key: KEY.to_owned(),
        file: file.path().to_owned(),
        bytes: BODY.len() as u64,
        sha256: Sha256::of(BODY),
        metadata: vec![("env0-instance", "0123".to_owned()), ("env0-records", "2".to_owned())],
        timeout: Duration::from_secs(30),
    }
}

fn file() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), BODY).unwrap();
    file
}

async fn refused_by(answer: impl Fn(&Seen) -> Response<Bytes> + Send + Sync + 'static) -> PutError {
    let server = Server::start(answer).await;
    let (s3, _sts) = s3_at(&server.url()).await;
    s3.put(&put(&file())).await.unwrap_err()
}

/// Reads a request's head and does `then` with the connection.
async fn server_that(then: impl Fn(tokio::net::TcpStream) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                stream.read_buf(&mut head).await.unwrap();
            }
            then(stream);
        }
    });
    url
}

#[tokio::test]
async fn an_object_goes_out_as_one_plain_body_with_its_checksum() {
    let server = Server::start(|_| s3_ok()).await;
    let (s3, _sts) = s3_at(&server.url()).await;
    s3.put(&put(&file())).await.unwrap();

    let seen = server.seen();
    let [request] = seen.as_slice() else { panic!("{seen:?}") };
    assert_eq!(request.method, "PUT");
    let path = request.uri.split('?').next().unwrap();
    assert_eq!(path, "/logs/a%20b/env0-deployments/2026/11/22/21%3A04%3A05_aB3dE.log");
    assert_eq!(request.body, BODY);
    for (name, value) in [
        ("if-none-match", "*"),
        ("content-type", "application/x-ndjson"),
        ("content-length", &BODY.len().to_string()),
        ("x-amz-checksum-sha256", &STANDARD.encode(Sha256::of(BODY).0)),
        ("x-amz-meta-env0-instance", "0123"),
        ("x-amz-meta-env0-records", "2"),
        ("x-amz-security-token", "canary-session"),
    ] {
        assert_eq!(request.header(name), Some(value), "{name}");
    }
    for name in [
        "content-encoding",
        "transfer-encoding",
        "x-amz-acl",
        "x-amz-trailer",
        "x-amz-decoded-content-length",
        "x-amz-storage-class",
        "x-amz-server-side-encryption",
        "x-amz-tagging",
        "x-amz-expected-bucket-owner",
    ] {
        assert_eq!(request.header(name), None, "{name}");
    }
    let signature = request.header("authorization").unwrap();
    assert!(signature.contains("Credential=AKIA1/") && signature.contains("/eu-west-1/s3/"), "{signature}");
}

#[tokio::test]
async fn options_go_with_each_object_when_they_are_set() {
    let server = Server::start(|_| s3_ok()).await;
    let (s3, _sts) = s3_with(Config {
        endpoint_url_s3: Some(server.url()),
        storage_class: Some("GLACIER_IR".to_owned()),
        sse_kms_key_id: Some("alias/logs".to_owned()),
        expected_bucket_owner: Some("123456789012".to_owned()),
        object_tags: Some("team=a&kind=log".to_owned()),
        ..config("")
    })
    .await;
    s3.put(&put(&file())).await.unwrap();
    for (name, value) in [
        ("x-amz-storage-class", "GLACIER_IR"),
        ("x-amz-server-side-encryption", "aws:kms"),
        ("x-amz-server-side-encryption-aws-kms-key-id", "alias/logs"),
        ("x-amz-expected-bucket-owner", "123456789012"),
        ("x-amz-tagging", "team=a&kind=log"),
    ] {
        assert_eq!(server.seen()[0].header(name), Some(value), "{name}");
    }
}

#[tokio::test]
async fn each_answer_has_its_meaning_and_tells_whether_the_object_may_be_there() {
    use PutErrorKind::*;
    for (status, code, message, kind, may_have_arrived) in [
        (412, "PreconditionFailed", "At least one", NameTaken, false),
        (409, "ConditionalRequestConflict", "Conflict", Conflict, false),
        (400, "ExpiredToken", "The provided token has expired.", SessionRejected, false),
        (403, "InvalidAccessKeyId", "does not exist in our records", SessionRejected, false),
        (403, "AccessDenied", "Access Denied", Denied, false),
        (403, "AccessDenied", "not authorized to perform: kms:GenerateDataKey on resource", KmsDenied, false),
        (400, "KMS.DisabledException", "is disabled", KmsDenied, false),
        (404, "NoSuchBucket", "The specified bucket does not exist", NoSuchBucket, false),
        (301, "PermanentRedirect", "must be addressed", WrongRegion, true),
        (307, "TemporaryRedirect", "Please re-send this request", ServerError, true),
        (400, "AuthorizationHeaderMalformed", "the region 'a' is wrong; expecting 'b'", WrongRegion, false),
        (403, "RequestTimeTooSkewed", "The difference", ClockSkew, false),
        (503, "SlowDown", "Please reduce your request rate.", Throttled, false),
        (503, "ServiceUnavailable", "Service is unable", ServerError, true),
        (500, "InternalError", "We encountered an internal error.", ServerError, true),
        (400, "BadDigest", "The SHA256 you specified did not match", ChecksumRefused, false),
        (400, "XAmzContentChecksumMismatch", "did not match", ChecksumRefused, false),
        (400, "RequestTimeout", "Your socket connection to the server was not read from", Timeout, false),
        (403, "SignatureDoesNotMatch", "The request signature we calculated", Other, false),
        (403, "AccountProblem", "There is a problem with your account", Other, false),
        (404, "NoSuchKey", "The specified key does not exist.", Other, false),
        (400, "InvalidRequest", "Something", Other, false),
    ] {
        let error = refused_by(move |_| s3_error(status, code, message)).await;
        assert_eq!((error.kind, error.may_have_arrived), (kind, may_have_arrived), "{status} {code}");
        assert_eq!((error.status, error.code.as_deref()), (Some(status), Some(code)));
        assert_eq!(error.request_id.as_deref(), Some("s3-request"));
        assert_eq!(error.session, Some(1));
        assert!(error.message.contains(message), "{error}");
    }
}

#[tokio::test]
async fn an_answer_that_is_not_s3s_own_tells_nothing_about_the_object() {
    use PutErrorKind::*;
    for (status, body, kind) in [
        (302, "", NotS3),
        (301, "", NotS3),
        (403, "<html><body>Access denied by the proxy</body></html>", NotS3),
        (403, "", NotS3),
        (400, "<html><Code>BadRequest</Code></html>", NotS3),
        (404, "not found", NotS3),
        (405, "", NotS3),
        (407, "", ProxyRefused),
        (412, "", NameTakenUnproven),
        (412, "<html>Precondition failed</html>", NotS3),
        (429, "", Throttled),
        (501, "<html>Unsupported method</html>", NotS3),
        (502, "<html>Bad gateway</html>", ServerError),
        (503, "", ServerError),
    ] {
        let error = refused_by(move |_| answer(status, body)).await;
        assert_eq!((error.kind, error.may_have_arrived, error.code), (kind, true, None), "{status} {body}");
        assert!(error.message.contains("PutObject at 127.0.0.1:"), "{}", error.message);
    }
}

#[tokio::test]
async fn a_2xx_that_the_store_does_not_sign_confirms_nothing() {
    use PutErrorKind::*;
    const PAGE: &str = "<html><head><title>Blocked</title></head><body>This page was blocked by policy.</body></html>";
    let with = |status: u16, name: &'static str, value: &'static str, body: &'static str| {
        let mut response = answer(status, body);
        response.headers_mut().insert(name, value.parse().unwrap());
        response
    };
    let other = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    for (response, kind) in [
        (answer(200, PAGE), NotS3),
        (answer(200, ""), NotS3),
        (answer(202, ""), NotS3),
        (with(204, "x-amz-request-id", "s3-request", ""), NotS3),
        (with(200, "etag", "\"abc\"", PAGE), NotS3),
        (with(200, "x-amz-checksum-sha256", other, ""), ChecksumRefused),
        (answer(200, "<Error><Code>InternalError</Code></Error>"), Other),
        (answer(200, vec![b' '; 100_000]), NotS3),
    ] {
        let status = response.status();
        let error = refused_by(move |_| response.clone()).await;
        assert_eq!((error.kind, error.may_have_arrived), (kind, true), "{}", error.message);
        assert_eq!(error.status, Some(status.as_u16()));
    }
    let ours: &'static str = STANDARD.encode(Sha256::of(BODY).0).leak();
    for (name, value) in [("etag", "\"abc\""), ("x-amz-request-id", "1"), ("x-amz-checksum-sha256", ours)] {
        let server = Server::start(move |_| with(200, name, value, "")).await;
        s3_at(&server.url()).await.0.put(&put(&file())).await.unwrap();
    }
}

#[tokio::test]
async fn what_an_answer_says_is_cut_and_shows_no_secret() {
    let echo = "got canary-session and\ncanary-secret-key\u{202e}!";
    let error = refused_by(move |_| s3_error(403, "AccessDenied", echo)).await;
    assert!(error.message.ends_with("got [removed] and [removed]!"), "{}", error.message);
    let error = refused_by(|_| s3_error(400, &"C".repeat(60_000), &"m ".repeat(1_000))).await;
    assert!(error.code.unwrap().len() <= 128 && error.message.len() < 800);
    let endless = refused_by(|_| s3_error(400, &"C".repeat(3_000_000), "m")).await;
    assert_eq!((endless.code, endless.may_have_arrived), (None, true), "{}", endless.message);
    let error = refused_by(|_| s3_error(404, "NoSuchBucket", "The specified bucket does not exist")).await;
    assert!(error.message.contains("ENV0_S3_LOG_BUCKET_NAME is logs"), "{}", error.message);
}

#[tokio::test]
async fn a_failure_says_what_the_answer_was() {
    let with = |status: u16, headers: &[(&'static str, &'static str)], body: &'static str| {
        let mut response = answer(status, body);
        for (name, value) in headers {
            response.headers_mut().append(*name, value.parse().unwrap());
        }
        response
    };
    const ID: (&str, &str) = ("x-amz-request-id", "1");
    const OTHER: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let ours: &'static str = STANDARD.encode(Sha256::of(BODY).0).leak();
    let checksums = [ID, ("x-amz-checksum-sha256", ours), ("x-amz-checksum-sha256", OTHER)];
    let tags = "<Error><Code>NotImplemented</Code><Message>A header</Message><Header>x-amz-tagging</Header></Error>";
    let class = "<Error><Code>InvalidArgument</Code><ArgumentName>x-amz-storage-class</ArgumentName></Error>";
    for (response, kind, said) in [
        (with(200, &[ID], "{\"error\":\"not stored\"}"), PutErrorKind::NotS3, "with a body, where S3 sends none"),
        (with(204, &[ID], ""), PutErrorKind::NotS3, "HTTP 204 where S3 says 200"),
        (with(200, &checksums, ""), PutErrorKind::ChecksumRefused, "with the checksum of other bytes"),
        (with(307, &[ID], ""), PutErrorKind::NotS3, "HTTP 307 "),
        (with(400, &[ID], tags), PutErrorKind::Other, "refuses x-amz-tagging, which ENV0_S3_LOG_OBJECT_TAGS sets"),
        (with(400, &[ID], class), PutErrorKind::Other, "x-amz-storage-class, which ENV0_S3_LOG_STORAGE_CLASS sets"),
        (
            with(200, &[ID], "<s:Error xmlns:s='a'><Code>InternalError</Code></s:Error>"),
            PutErrorKind::Other,
            "InternalError, HTTP 200",
        ),
    ] {
        let error = refused_by(move |_| response.clone()).await;
        assert_eq!(error.kind, kind, "{}", error.message);
        assert!(error.message.contains(said), "{}", error.message);
    }
}

#[tokio::test]
async fn a_setting_that_the_store_refuses_is_what_the_remedy_names() {
    for (code, way) in [
        ("InvalidStorageClass", "set ENV0_S3_LOG_STORAGE_CLASS to"),
        ("InvalidTag", "correct the tags in ENV0_S3_LOG_OBJECT_TAGS"),
        ("AccountProblem", "ask the owner"),
        ("SomethingElse", "look at the code and the message"),
    ] {
        let error = refused_by(move |_| s3_error(400, code, "no")).await;
        let remedy = error.kind.remedy(error.code.as_deref());
        assert!(remedy.starts_with(way) && remedy.ends_with("see config/README.md#not-uploading"), "{code}: {remedy}");
    }
}

#[tokio::test]
async fn a_412_without_a_document_is_the_stores_where_it_has_a_request_id() {
    for (request_id, kind) in [(None, PutErrorKind::NameTakenUnproven), (Some("id"), PutErrorKind::NameTaken)] {
        let error = refused_by(move |_| {
            let mut response = answer(412, "");
            if let Some(id) = request_id {
                response.headers_mut().insert("x-amz-request-id", id.parse().unwrap());
            }
            response
        })
        .await;
        assert_eq!((error.kind, error.may_have_arrived, error.code), (kind, request_id.is_none(), None));
        assert_eq!(error.request_id.as_deref(), request_id);
    }
}

#[tokio::test]
async fn a_412_about_another_object_or_condition_does_not_show_that_ours_is_there() {
    let encoded = format!("<Condition>If-None-Match</Condition><Key>store/{}</Key>", KEY.replace('/', "%2F"));
    for (detail, kind) in [
        ("<Condition>If-None-Match</Condition>".to_owned(), PutErrorKind::NameTaken),
        (format!("<Key>{KEY}</Key>"), PutErrorKind::NameTaken),
        (encoded, PutErrorKind::NameTaken),
        ("<Condition>If-Match</Condition>".to_owned(), PutErrorKind::Other),
        ("<Condition>If-None-Match</Condition><Key>other/21:04:05_aaaaa.log</Key>".to_owned(), PutErrorKind::Other),
    ] {
        let body: &'static str = format!("<Error><Code>PreconditionFailed</Code>{detail}</Error>").leak();
        let error = refused_by(move |_| answer(412, body)).await;
        assert_eq!((error.kind, error.may_have_arrived), (kind, false), "{body}: {error}");
    }
}

#[tokio::test]
async fn retry_after_is_passed_on() {
    let error = refused_by(|_| {
        let mut response = s3_error(503, "SlowDown", "Please reduce your request rate.");
        response.headers_mut().insert("retry-after", "7".parse().unwrap());
        response
    })
    .await;
    assert_eq!(error.retry_after, Some(Duration::from_secs(7)));
    let now = DateTime::parse_from_rfc2822("Sun, 22 Nov 2026 21:00:00 GMT").unwrap().to_utc();
    assert_eq!(retry_after("Sun, 22 Nov 2026 21:00:30 GMT", now), Some(Duration::from_secs(30)));
    assert_eq!(retry_after("soon", now), None);
    for far in [u64::MAX.to_string(), "86400".to_owned(), "Sun, 22 Nov 2099 21:00:00 GMT".to_owned()] {
        assert_eq!(retry_after(&far, now), Some(Duration::from_secs(60)), "{far}");
    }
}

#[tokio::test]
async fn nothing_arrives_where_no_connection_is_made() {
    for endpoint in [nobody().await, "http://no-such-host.invalid".to_owned()] {
        let (s3, _sts) = s3_at(&endpoint).await;
        let error = s3.put(&put(&file())).await.unwrap_err();
        assert_eq!((error.kind, error.may_have_arrived), (PutErrorKind::Unreachable, false), "{endpoint}: {error}");
    }
}

#[tokio::test]
async fn anything_may_have_arrived_where_the_connection_breaks_or_the_answer_stays_out() {
    let endpoint = server_that(drop).await;
    let (s3, _sts) = s3_at(&endpoint).await;
    let error = s3.put(&put(&file())).await.unwrap_err();
    assert_eq!((error.kind, error.may_have_arrived), (PutErrorKind::Unreachable, true), "{error}");

    let endpoint = server_that(std::mem::forget).await;
    let (s3, _sts) = s3_at(&endpoint).await;
    let error = s3.put(&Put { timeout: Duration::from_millis(200), ..put(&file()) }).await.unwrap_err();
    assert_eq!((error.kind, error.may_have_arrived), (PutErrorKind::Timeout, true), "{error}");

    let endpoint = server_that(|mut stream| {
        tokio::spawn(async move { stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n").await });
    })
    .await;
    let (s3, _sts) = s3_at(&endpoint).await;
    if let Err(error) = s3.put(&put(&file())).await {
        assert!(error.may_have_arrived, "{error}");
    }
}

#[tokio::test]
async fn a_file_that_is_not_as_it_should_be_is_not_sent() {
    let server = Server::start(|_| s3_ok()).await;
    let (s3, _sts) = s3_at(&server.url()).await;
    let file = file();
    for put in [Put { bytes: 3, ..put(&file) }, Put { file: file.path().with_extension("gone"), ..put(&file) }] {
        let error = s3.put(&put).await.unwrap_err();
        assert_eq!((error.kind, error.may_have_arrived), (PutErrorKind::FileUnreadable, false), "{error}");
    }
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn without_a_session_no_attempt_is_made() {
    let config = config(&nobody().await);
    let network = Network::new(&config.network).unwrap();
    let credentials = Credentials::start(&config, &network, "id", CancellationToken::new());
    let error = S3::new(&config, &network, credentials).put(&put(&file())).await.unwrap_err();
    assert_eq!((error.kind, error.may_have_arrived, error.session), (PutErrorKind::NoSession, false, None));
}

#[tokio::test]
async fn a_store_that_does_not_know_the_condition_is_asked_without_it_from_then_on() {
    for (status, code) in [(501, "NotImplemented"), (400, "NotImplemented")] {
        let server = Server::start(move |request| match request.header("if-none-match") {
            Some(_) => s3_error(status, code, "A header you provided implies functionality that is not implemented"),
            None => s3_ok(),
        })
        .await;
        let (s3, _sts) = s3_at(&server.url()).await;
        s3.put(&put(&file())).await.unwrap();
        s3.put(&put(&file())).await.unwrap();
        assert_eq!(conditions(&server), [true, false, false]);
        assert_eq!(server.seen()[1].body, BODY);
    }
}

/// Which PUTs carried `If-None-Match`.
fn conditions(server: &Server) -> Vec<bool> {
    server.seen().iter().map(|seen| seen.header("if-none-match").is_some()).collect()
}

#[tokio::test]
async fn the_condition_is_kept_where_a_refusal_has_another_reason() {
    let not_implemented =
        |more: &str| answer(501, format!("<Error><Code>NotImplemented</Code><Message>no</Message>{more}</Error>"));
    let named = not_implemented("<Header>x-amz-tagging</Header>");
    for (refusal, sent) in [
        (named, &[true, true][..]),
        (answer(501, "<html>not implemented</html>"), &[true, true]),
        // May be the condition: tried without, and kept, as that is refused as well.
        (not_implemented(""), &[true, false, true, false]),
    ] {
        let server = Server::start(move |_| refusal.clone()).await;
        let (s3, _sts) = s3_at(&server.url()).await;
        for _ in 0..2 {
            let error = s3.put(&put(&file())).await.unwrap_err();
            assert_eq!((error.status, error.may_have_arrived), (Some(501), true), "{}", error.message);
        }
        assert_eq!(conditions(&server), sent);
    }
}

#[tokio::test]
async fn an_expired_session_is_replaced_and_the_next_attempt_is_signed_by_the_new_one() {
    let server = Server::start(|request| match request.header("authorization").unwrap().contains("AKIA1/") {
        true => s3_error(400, "ExpiredToken", "The provided token has expired."),
        false => s3_ok(),
    })
    .await;
    let (s3, _sts) = s3_at(&server.url()).await;
    let error = s3.put(&put(&file())).await.unwrap_err();
    assert_eq!((error.kind, error.session), (PutErrorKind::SessionRejected, Some(1)));
    let session = soon(s3.0.credentials.wait_session()).await;
    assert_eq!(session.id, 2);
    s3.put(&put(&file())).await.unwrap();
}

#[tokio::test]
async fn bucket_sts_issuer_and_token_url_are_all_reached_through_the_proxy() {
    let issuer = Issuer::es256("http://issuer.example.com", "key-1");
    let keys = json!({ "keys": [issuer.jwk()] }).to_string();
    let token = issuer.token();
    let proxy = Server::start(move |request| match request.uri.as_str() {
        "http://token.example.com/env0" => answer(200, "the.url.token"),
        "http://sts.example.com/" => sts_session("AKIA1", TimeDelta::hours(1)),
        "http://issuer.example.com/.well-known/jwks.json" => answer(200, keys.clone()),
        uri if uri.starts_with("http://s3.example.com/logs/") => s3_ok(),
        _ => answer(404, ""),
    })
    .await;
    let config = Config {
        endpoint_url_s3: Some("http://s3.example.com".to_owned()),
        endpoint_url_sts: Some("http://sts.example.com".to_owned()),
        oidc_token_url: Some("http://token.example.com/env0".into()),
        allow_http: true,
        network: crate::config::Network { http_proxy: Some(proxy.url().into()), ..Default::default() },
        ..config("http://issuer.example.com")
    };
    let network = Network::new(&config.network).unwrap();
    let credentials = Credentials::start(&config, &network, "id", CancellationToken::new());
    soon(credentials.wait_session()).await;
    S3::new(&config, &network, credentials).put(&put(&file())).await.unwrap();
    Verifier::new(&config, &network).unwrap().verify(&token, Utc::now()).await.unwrap();
}

#[tokio::test]
async fn a_bucket_of_aws_is_written_to_in_its_region_and_never_through_a_refusing_proxy() {
    let proxy = Server::start(|_| answer(403, "")).await;
    let network = crate::config::Network { https_proxy: Some(proxy.url().into()), ..Default::default() };
    let (s3, _sts) = s3_with(Config { network, force_path_style: false, ..config("") }).await;
    let error = s3.put(&put(&file())).await.unwrap_err();
    assert_eq!((error.kind, error.may_have_arrived), (PutErrorKind::Unreachable, false), "{error}");
    assert_eq!(proxy.seen()[0].uri, "logs.s3.eu-west-1.amazonaws.com:443");
}

#[test]
fn every_kind_has_its_own_label() {
    let labels: std::collections::BTreeSet<_> = PutErrorKind::ALL.iter().map(|kind| kind.as_str()).collect();
    assert_eq!(labels.len(), PutErrorKind::ALL.len());
}
