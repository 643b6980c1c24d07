//! Where a bucket is, as far as its store tells.

use super::*;

#[tokio::test]
async fn the_buckets_region_is_told_as_far_as_the_store_tells_it() {
    let location = |text: &str| {
        answer(
            200,
            format!(
                "<LocationConstraint xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{text}</LocationConstraint>"
            ),
        )
    };
    for (told, region) in [
        ("eu-west-3", BucketRegion::Known("eu-west-3".to_owned())),
        ("EU", BucketRegion::Known("eu-west-1".to_owned())),
        ("", BucketRegion::NotTold),
        ("default", BucketRegion::NotTold),
    ] {
        let server = Server::start(move |_| location(told)).await;
        let (s3, _sts) = s3_at(&server.url()).await;
        assert_eq!(s3.bucket_region().await.unwrap(), region, "{told}");
        let request = &server.seen()[0];
        assert_eq!((request.method.as_str(), request.uri.as_str()), ("GET", "/logs/?location"));
    }
    let odd = Server::start(|_| answer(200, "<Something/>")).await;
    assert_eq!(s3_at(&odd.url()).await.0.bucket_region().await.unwrap(), BucketRegion::NotTold);
    for foreign in ["", "hello", "{\"status\":\"ok\"}"] {
        let server = Server::start(move |_| answer(200, foreign)).await;
        let error = s3_at(&server.url()).await.0.bucket_region().await.unwrap_err();
        assert_eq!((error.kind, error.status), (PutErrorKind::NotS3, Some(200)), "{foreign}: {error}");
    }
    let denied = Server::start(|_| s3_error(403, "AccessDenied", "Access Denied")).await;
    let error = s3_at(&denied.url()).await.0.bucket_region().await.unwrap_err();
    assert_eq!((error.kind, error.code.as_deref()), (PutErrorKind::Denied, Some("AccessDenied")));
}

#[test]
fn a_bucket_of_aws_without_a_location_is_in_us_east_1() {
    assert_eq!(region_of(None, false), BucketRegion::Known("us-east-1".to_owned()));
    assert_eq!(region_of(Some("EU"), false), BucketRegion::Known("eu-west-1".to_owned()));
}
