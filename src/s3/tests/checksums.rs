//! An answer's checksums of other algorithms than SHA-256.

use super::*;

/// Longer than the file is read at once.
const LINE: &str = "{\"a\":1}\n";
const LINES: usize = 50_000;
/// Of [`LINES`] times [`LINE`], computed by Python's zlib and hashlib and by the polynomials of CRC-32C and CRC-64/NVME.
const OURS: [(&str, &str); 4] = [
    ("x-amz-checksum-crc32", "grMcnQ=="),
    ("x-amz-checksum-crc32c", "3rWJQQ=="),
    ("x-amz-checksum-crc64nvme", "2xjSx0jEW+o="),
    ("x-amz-checksum-sha1", "+TrJn96iZNXzF27ikTrgPW1ZZDg="),
];

/// What becomes of a PUT of [`LINES`] that is answered 200 with these headers.
async fn put_answered(headers: &[(&'static str, String)]) -> Result<(), PutError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), LINE.repeat(LINES)).unwrap();
    let bytes = LINE.repeat(LINES).into_bytes();
    let headers = headers.to_vec();
    let server = Server::start(move |_| {
        let mut response = answer(200, "");
        response.headers_mut().insert("etag", "\"abc\"".parse().unwrap());
        for (name, value) in &headers {
            response.headers_mut().append(*name, value.parse().unwrap());
        }
        response
    })
    .await;
    let (s3, _sts) = s3_at(&server.url()).await;
    s3.put(&Put { bytes: bytes.len() as u64, sha256: Sha256::of(&bytes), ..put(&file) }).await
}

async fn assert_refused(headers: &[(&'static str, String)]) {
    let error = put_answered(headers).await.unwrap_err();
    assert_eq!((error.kind, error.may_have_arrived), (PutErrorKind::ChecksumRefused, true), "{headers:?}");
    assert!(error.message.contains("with the checksum of other bytes"), "{}", error.message);
}

#[tokio::test]
async fn an_answer_with_the_checksum_of_other_bytes_confirms_nothing_in_any_algorithm() {
    for (name, ours) in OURS {
        put_answered(&[(name, ours.to_owned())]).await.unwrap();
        put_answered(&[(name, ours.to_owned()), ("x-amz-checksum-type", "FULL_OBJECT".to_owned())]).await.unwrap();
        let other = STANDARD.encode(vec![7; STANDARD.decode(ours).unwrap().len()]);
        for wrong in [other.clone(), format!("{ours}-1"), format!("{ours}-2"), "?".to_owned()] {
            assert_refused(&[(name, wrong)]).await;
        }
        // Beside a right one, in its own algorithm or another.
        let sha256 = STANDARD.encode(Sha256::of(LINE.repeat(LINES).as_bytes()).0);
        assert_refused(&[("x-amz-checksum-sha256", sha256), (name, other.clone())]).await;
        put_answered(&[(name, ours.to_owned()), (name, other)]).await.unwrap_err();
    }
    put_answered(&OURS.map(|(name, ours)| (name, ours.to_owned()))).await.unwrap();
}

#[tokio::test]
async fn a_checksum_of_an_object_made_in_parts_confirms_nothing() {
    let composite = ("x-amz-checksum-type", "COMPOSITE".to_owned());
    for (name, ours) in OURS {
        assert_refused(&[(name, ours.to_owned()), composite.clone()]).await;
    }
    assert_refused(std::slice::from_ref(&composite)).await;
    // Our own hash tells enough.
    let sha256 = STANDARD.encode(Sha256::of(LINE.repeat(LINES).as_bytes()).0);
    put_answered(&[("x-amz-checksum-sha256", sha256), composite]).await.unwrap();
}

#[tokio::test]
async fn a_checksum_of_an_unknown_algorithm_is_not_judged() {
    for name in ["x-amz-checksum-xxhash64", "x-amz-checksum-md5", "x-amz-checksum-sha512"] {
        put_answered(&[(name, "AAAAAAAAAAA=".to_owned())]).await.unwrap();
    }
}
