//! Answers that come before the object was sent.

use super::*;

/// More than the buffers of two sockets hold.
const BYTES: u64 = 64 << 20;

#[tokio::test]
async fn a_200_that_comes_before_all_of_the_object_was_sent_confirms_nothing() {
    let checksum = STANDARD.encode(Sha256::of(BODY).0);
    for mark in
        ["ETag: \"abc\"".to_owned(), "x-amz-request-id: R".to_owned(), format!("x-amz-checksum-sha256: {checksum}")]
    {
        let answer = format!("HTTP/1.1 200 OK\r\n{mark}\r\nContent-Length: 0\r\n\r\n");
        // It takes no more than the head, and keeps the connection.
        let url = server_that(move |mut stream| {
            let answer = answer.clone();
            tokio::spawn(async move {
                stream.write_all(answer.as_bytes()).await.unwrap();
                std::future::pending::<()>().await;
            });
        })
        .await;
        let (s3, _sts) = s3_at(&url).await;
        let file = file();
        file.as_file().set_len(BYTES).unwrap();
        let error = s3.put(&Put { bytes: BYTES, ..put(&file) }).await.unwrap_err();
        assert_eq!((error.kind, error.may_have_arrived), (PutErrorKind::NotS3, true), "{mark}: {}", error.message);
        assert!(error.message.contains("before all of the object was sent"), "{}", error.message);
    }
}
