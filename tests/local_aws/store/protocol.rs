//! The operations, identities and policy behind `s3s`.

use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::dto;
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};

use super::*;
use crate::local_aws::{ACCOUNT, AUDITOR, ROLE_ARN};

/// Secrets for SigV4: the auditor's, and those of the sessions that STS handed out.
pub(super) struct Identities(pub(super) Arc<Sessions>);

#[async_trait::async_trait]
impl S3Auth for Identities {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        if access_key == AUDITOR.0 {
            return Ok(AUDITOR.1.into());
        }
        let session = self.0.get(access_key).ok_or_else(|| {
            s3_error!(InvalidAccessKeyId, "The AWS Access Key Id you provided does not exist in our records.")
        })?;
        Ok(session.secret.into())
    }
}

/// What each identity may do. A session holds exactly the two statements that env0 documents.
pub(super) struct Policy {
    pub(super) store: Arc<Store>,
    pub(super) sessions: Arc<Sessions>,
}

#[async_trait::async_trait]
impl S3Access for Policy {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        let header = |name: &str| cx.headers().get(name).and_then(|value| value.to_str().ok());
        let denied = |action: &str| Err(s3_error!(AccessDenied, "User is not authorized to perform: s3:{action}"));
        let Some(credentials) = cx.credentials() else { return denied("anonymous") };
        if header("x-amz-expected-bucket-owner").is_some_and(|owner| owner != ACCOUNT) {
            return Err(s3_error!(AccessDenied, "Access Denied"));
        }
        let action = cx.s3_op().name();
        if credentials.access_key == AUDITOR.0 {
            let readable = ["GetObject", "HeadObject", "ListObjectsV2", "GetBucketLocation"];
            return if readable.contains(&action) { Ok(()) } else { denied(action) };
        }
        let session = self.sessions.get(&credentials.access_key);
        let session = session.filter(|session| header("x-amz-security-token") == Some(&session.token));
        let Some(session) = session else {
            return Err(s3_error!(InvalidToken, "The provided token is malformed or otherwise invalid."));
        };
        if session.expires <= SystemTime::now() {
            return Err(s3_error!(ExpiredToken, "The provided token has expired."));
        }
        if session.role != ROLE_ARN || !["PutObject", "GetBucketLocation"].contains(&action) {
            return denied(action);
        }
        if header("x-amz-tagging").is_some() && !self.store.state().tagging_allowed {
            return denied("PutObjectTagging");
        }
        if header("x-amz-acl").is_some() {
            return denied("PutObjectAcl");
        }
        Ok(())
    }
}

/// The operations that a daemon and an auditor need.
pub(super) struct Backend(pub(super) Arc<Store>);

#[async_trait::async_trait]
impl S3 for Backend {
    async fn put_object(&self, req: S3Request<dto::PutObjectInput>) -> S3Result<S3Response<dto::PutObjectOutput>> {
        let (input, headers) = (req.input, req.headers);
        check_bucket(&input.bucket)?;
        let body = collect(input.body).await?;
        if input.content_length.is_some_and(|length| length != body.len() as i64) {
            return Err(s3_error!(IncompleteBody));
        }
        let metadata = input.metadata.unwrap_or_default();
        let mut object = Object::new(&input.key, body, metadata, headers);
        if let Some(given) = &input.checksum_sha256
            && *given != base64_of(&object.sha256)
        {
            return Err(s3_error!(BadDigest, "The SHA256 you specified did not match the calculated checksum."));
        }
        let mut state = self.0.state();
        if input.if_none_match.is_some_and(|condition| condition.is_any()) && state.get(&input.key).is_some() {
            let message = "At least one of the pre-conditions you specified did not hold";
            return Err(S3Error::with_message(S3ErrorCode::PreconditionFailed, message));
        }
        if state.measure_only {
            object.body = Bytes::new();
        }
        let output = dto::PutObjectOutput {
            e_tag: Some(e_tag(&object)),
            checksum_sha256: Some(base64_of(&object.sha256)),
            ..Default::default()
        };
        state.insert(object);
        Ok(S3Response::new(output))
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<dto::GetBucketLocationInput>,
    ) -> S3Result<S3Response<dto::GetBucketLocationOutput>> {
        check_bucket(&req.input.bucket)?;
        let region = self.0.region.lock().unwrap().clone();
        let location_constraint = region.map(dto::BucketLocationConstraint::from);
        Ok(S3Response::new(dto::GetBucketLocationOutput { location_constraint }))
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<dto::ListObjectsV2Input>,
    ) -> S3Result<S3Response<dto::ListObjectsV2Output>> {
        let input = req.input;
        check_bucket(&input.bucket)?;
        let prefix = input.prefix.unwrap_or_default();
        // The last key of the page before is the continuation token.
        let after = input.continuation_token.clone().or(input.start_after.clone()).unwrap_or_default();
        let mut objects = self.0.objects();
        objects.retain(|object| object.key.starts_with(&prefix) && object.key > after);
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        let page = usize::try_from(input.max_keys.unwrap_or(1000).clamp(1, 1000)).unwrap();
        let more = objects.len() > page;
        objects.truncate(page);
        let next = objects.last().filter(|_| more).map(|object| object.key.clone());
        let output = dto::ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: Some(prefix),
            key_count: Some(objects.len() as i32),
            max_keys: Some(page as i32),
            is_truncated: Some(more),
            continuation_token: input.continuation_token,
            next_continuation_token: next,
            start_after: input.start_after,
            contents: Some(objects.iter().map(listed).collect()),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn head_object(&self, req: S3Request<dto::HeadObjectInput>) -> S3Result<S3Response<dto::HeadObjectOutput>> {
        check_bucket(&req.input.bucket)?;
        let object = self.0.state().get(&req.input.key).cloned().ok_or_else(|| s3_error!(NoSuchKey))?;
        let output = dto::HeadObjectOutput {
            content_length: Some(object.size as i64),
            checksum_sha256: Some(base64_of(&object.sha256)),
            e_tag: Some(e_tag(&object)),
            last_modified: Some(object.last_modified.into()),
            metadata: Some(object.metadata),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn get_object(&self, req: S3Request<dto::GetObjectInput>) -> S3Result<S3Response<dto::GetObjectOutput>> {
        check_bucket(&req.input.bucket)?;
        let object = self.0.state().get(&req.input.key).cloned().ok_or_else(|| s3_error!(NoSuchKey))?;
        let output = dto::GetObjectOutput {
            content_length: Some(object.size as i64),
            e_tag: Some(e_tag(&object)),
            last_modified: Some(object.last_modified.into()),
            metadata: Some(object.metadata),
            body: Some(dto::StreamingBlob::from(s3s::Body::from(object.body))),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }
}

fn check_bucket(bucket: &str) -> S3Result<()> {
    if bucket == BUCKET { Ok(()) } else { Err(s3_error!(NoSuchBucket, "The specified bucket does not exist")) }
}

async fn collect(body: Option<dto::StreamingBlob>) -> S3Result<Bytes> {
    use futures_util::StreamExt;
    let mut whole = bytes::BytesMut::new();
    if let Some(mut stream) = body {
        while let Some(part) = stream.next().await {
            whole.extend_from_slice(&part.map_err(|_| s3_error!(IncompleteBody))?);
            // As in `Object::measure`.
            std::thread::yield_now();
        }
    }
    Ok(whole.freeze())
}

fn listed(object: &Object) -> dto::Object {
    dto::Object {
        key: Some(object.key.clone()),
        size: Some(object.size as i64),
        e_tag: Some(e_tag(object)),
        last_modified: Some(object.last_modified.into()),
        ..Default::default()
    }
}

fn e_tag(object: &Object) -> dto::ETag {
    dto::ETag::Strong(object.sha256[..32].to_owned())
}

/// A hash in hex as S3's checksum headers have it.
fn base64_of(hex: &str) -> String {
    let hash: env0_s3_logs::batch::Sha256 = hex.parse().unwrap();
    base64::engine::general_purpose::STANDARD.encode(hash.0)
}
