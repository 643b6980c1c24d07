//! The bucket: one PUT an attempt, and what its failure means. The only room that names `aws_sdk_s3`.

mod answer;
mod checksums;
mod condition;
mod error;
pub mod read;
mod sent;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_s3::config::{
    Builder, IdentityCache, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig, timeout::TimeoutConfig,
};
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{BucketLocationConstraint, ServerSideEncryption, StorageClass};
use aws_smithy_runtime_api::client::behavior_version::BehaviorVersion;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_smithy_types::retry::RetryConfig;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::batch::Sha256;
use crate::config::Config;
use crate::credentials::{Credentials, Session};
use crate::network::{Network, causes, foreign_name};
use answer::{Answer, NotConfirmed, Watch, Watched};
use condition::Condition;
use error::Call;
pub use error::{LocateError, PutError, PutErrorKind};

/// How much of the file that is sent is in memory at once.
const READ_BUFFER_BYTES: usize = 256 * 1024;
/// For the small question of `check`.
const LOCATE_TIMEOUT: Duration = Duration::from_secs(30);

/// The bucket, by the session at hand. Cheap to clone.
#[derive(Clone)]
pub struct S3(Arc<Inner>);

struct Inner {
    client: aws_sdk_s3::Client,
    credentials: Credentials,
    bucket: String,
    storage_class: Option<StorageClass>,
    kms_key_id: Option<String>,
    bucket_owner: Option<String>,
    tags: Option<String>,
    other_than_aws: bool,
    condition: Condition,
}

/// One object to be written.
#[derive(Debug, Clone)]
pub struct Put {
    /// The object's key.
    pub key: String,
    /// The object's body, streamed.
    pub file: PathBuf,
    /// The file's length.
    pub bytes: u64,
    /// The file's hash: S3 refuses anything else.
    pub sha256: Sha256,
    /// User metadata, names without `x-amz-meta-`.
    pub metadata: Vec<(&'static str, String)>,
    /// The time for the whole attempt.
    pub timeout: Duration,
}

/// What `GetBucketLocation` told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BucketRegion {
    /// The bucket's region.
    Known(String),
    /// A store that isn't AWS answered, but without a region: no failure.
    NotTold,
}

impl S3 {
    /// Needs a Tokio runtime. Makes no request yet.
    pub fn new(config: &Config, network: &Network, credentials: Credentials) -> S3 {
        let endpoint = config.endpoint_url_s3.as_deref();
        // No retries, no time-outs, no guard against stalled streams: the flusher's own rules hold
        // (an attempt that may have arrived has to be known as such), and `put` bounds each attempt.
        let mut client = Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(config.aws_region.clone()))
            .http_client(network.aws(endpoint))
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .identity_cache(IdentityCache::no_cache())
            .force_path_style(config.force_path_style)
            .disable_s3_express_session_auth(true)
            // With the checksum given, `WhenRequired` sends the body as it is: no aws-chunked, no trailer.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        client.set_endpoint_url(endpoint.map(str::to_owned));
        S3(Arc::new(Inner {
            client: aws_sdk_s3::Client::from_conf(client.build()),
            credentials,
            bucket: config.bucket_name.clone(),
            storage_class: config.storage_class.as_deref().map(StorageClass::from),
            kms_key_id: config.sse_kms_key_id.clone(),
            bucket_owner: config.expected_bucket_owner.clone(),
            tags: config.object_tags.clone(),
            other_than_aws: endpoint.is_some(),
            condition: Condition::default(),
        }))
    }

    /// One attempt at one `PutObject`, refused where the key exists already. Never repeated here but
    /// in one case: a store that isn't AWS and may have no `If-None-Match` is asked again without it.
    ///
    /// `Ok` only where the store itself confirms these bytes. Where the session is the reason of a refusal, or may be,
    /// the credentials are told.
    pub async fn put(&self, put: &Put) -> Result<(), PutError> {
        let Some(session) = self.0.credentials.session() else {
            return Err(PutError::before(PutErrorKind::NoSession, "there is no session to sign with".to_owned()));
        };
        let conditional = !self.0.other_than_aws || self.0.condition.is_in_use(Instant::now());
        let outcome = match self.put_once(put, &session, conditional).await {
            Ok(()) => {
                if conditional {
                    self.0.condition.worked();
                }
                Ok(())
            }
            Err(refused) if conditional && refused.may_lack_the_condition && self.0.other_than_aws => {
                self.put_without_condition(put, &session, refused.error).await
            }
            Err(refused) => Err(refused.error),
        };
        outcome.map_err(|error| PutError { session: Some(session.id), ..error }).inspect_err(|error| match error.kind {
            PutErrorKind::SessionRejected => self.0.credentials.session_is_refused(session.id),
            _ if error.status == Some(403) => self.0.credentials.session_is_suspect(session.id),
            _ => {}
        })
    }

    /// Whether the condition was the reason shows only where the PUT succeeds without it.
    async fn put_without_condition(&self, put: &Put, session: &Session, with: PutError) -> Result<(), PutError> {
        match self.put_once(put, session, false).await {
            Ok(()) => {
                self.0.condition.is_unknown(Instant::now());
                Ok(())
            }
            Err(without) => {
                let may_have_arrived = with.may_have_arrived || without.error.may_have_arrived;
                Err(PutError { may_have_arrived, ..without.error })
            }
        }
    }

    /// One request, and what its answer means.
    async fn put_once(&self, put: &Put, session: &Session, conditional: bool) -> Result<(), FailedPut> {
        let body = body_of(put).await?;
        let metadata = put.metadata.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let inner = &self.0;
        let watch = Watch::default();
        let request = inner
            .client
            .put_object()
            .bucket(&inner.bucket)
            .key(&put.key)
            .set_if_none_match(conditional.then(|| "*".to_owned()))
            .content_type("application/x-ndjson")
            .checksum_sha256(STANDARD.encode(put.sha256.0))
            .set_metadata(Some(metadata))
            .set_storage_class(inner.storage_class.clone())
            .set_server_side_encryption(inner.kms_key_id.as_ref().map(|_| ServerSideEncryption::AwsKms))
            .set_ssekms_key_id(inner.kms_key_id.clone())
            .set_expected_bucket_owner(inner.bucket_owner.clone())
            .set_tagging(inner.tags.clone())
            .body(body)
            .customize()
            .interceptor(watch.clone())
            .config_override(Builder::new().credentials_provider(session.keys()));
        let sent = tokio::time::timeout(put.timeout, request.send()).await;
        let seen = watch.seen();
        let secrets = session.secrets();
        let call = Call { operation: "PutObject", bucket: &inner.bucket, key: &put.key, secrets: &secrets };
        let stored = match sent {
            Ok(Ok(_)) => is_confirmed(put, &seen, &call).await,
            Ok(Err(error)) => Err(refusal(&error, put, &seen, &call)),
            Err(_) => Err(PutError::no_answer(put.timeout, &seen, &call)),
        };
        stored.map_err(|error| {
            let lacks = |answer: &Answer| answer.may_lack_the_condition(error.code.as_deref());
            FailedPut { may_lack_the_condition: seen.answer.as_ref().is_some_and(lacks), error }
        })
    }

    /// What an operator can do about an error of [`S3::bucket_region`].
    pub fn locate_remedy(&self, error: &LocateError) -> String {
        if error.kind != PutErrorKind::Denied {
            return error.kind.remedy(error.code.as_deref());
        }
        // S3 denies every request that names another owner than the bucket's.
        let by_owner = self.0.bucket_owner.as_ref().map(|owner| {
            format!(
                "the likely cause is ENV0_S3_LOG_EXPECTED_BUCKET_OWNER={owner}: see that this account owns the bucket, or unset the variable; else "
            )
        });
        format!(
            "{}allow the role s3:GetBucketLocation on arn:aws:s3:::{}; see that the bucket is yours and its policy denies nothing",
            by_owner.unwrap_or_default(),
            self.0.bucket
        )
    }

    /// Where the bucket is, by `GetBucketLocation`.
    pub async fn bucket_region(&self) -> Result<BucketRegion, LocateError> {
        let Some(session) = self.0.credentials.session() else {
            let error = PutError::before(PutErrorKind::NoSession, "there is no session to sign with".to_owned());
            return Err(error.into());
        };
        let watch = Watch::default();
        let request = self
            .0
            .client
            .get_bucket_location()
            .bucket(&self.0.bucket)
            .set_expected_bucket_owner(self.0.bucket_owner.clone())
            .customize()
            .interceptor(watch.clone())
            .config_override(Builder::new().credentials_provider(session.keys()));
        let sent = tokio::time::timeout(LOCATE_TIMEOUT, request.send()).await;
        let seen = watch.seen();
        let secrets = session.secrets();
        let call = Call { operation: "GetBucketLocation", bucket: &self.0.bucket, key: "", secrets: &secrets };
        let is_the_stores = seen.answer.as_ref().is_some_and(Answer::may_tell_a_location);
        match sent {
            Ok(Ok(_)) if !is_the_stores => {
                let message = format!("{} at {}: HTTP 200 without a mark of S3's", call.operation, seen.host);
                Err(PutError { status: Some(200), ..PutError::before(PutErrorKind::NotS3, message) }.into())
            }
            Ok(Ok(location)) => {
                let constraint = location.location_constraint().map(BucketLocationConstraint::as_str);
                Ok(region_of(constraint, self.0.other_than_aws))
            }
            Ok(Err(error)) => match PutError::of(&error, &seen, &call) {
                _ if self.0.other_than_aws && is_the_stores => Ok(BucketRegion::NotTold),
                error => Err(error.into()),
            },
            Err(_) => Err(PutError::no_answer(LOCATE_TIMEOUT, &seen, &call).into()),
        }
    }
}

/// A failed attempt.
struct FailedPut {
    error: PutError,
    /// The store may not know `If-None-Match`.
    may_lack_the_condition: bool,
}

impl From<PutError> for FailedPut {
    fn from(error: PutError) -> FailedPut {
        FailedPut { error, may_lack_the_condition: false }
    }
}

/// The file as a request's body, if it still is the file that is meant.
async fn body_of(put: &Put) -> Result<ByteStream, PutError> {
    let unreadable = |reason: String| PutError::before(PutErrorKind::FileUnreadable, reason);
    // Looks at a link itself, because a file that it leads to is not the spool's.
    let found = std::fs::symlink_metadata(&put.file);
    let found = found.map_err(|error| unreadable(format!("the file can't be read: {error}")))?;
    if !found.is_file() {
        return Err(unreadable("the file can't be read: a link or something else has its name".to_owned()));
    }
    if found.len() != put.bytes {
        return Err(unreadable(format!("the file has {} bytes instead of {}", found.len(), put.bytes)));
    }
    let body = ByteStream::read_from().path(&put.file).buffer_size(READ_BUFFER_BYTES).build().await;
    body.map_err(|error| unreadable(format!("the file can't be read: {}", causes(&error))))
}

/// `Ok` where the answer to a PUT, a 2xx, shows that the store has all of the file's bytes and no others.
async fn is_confirmed(put: &Put, seen: &Watched, call: &Call<'_>) -> Result<(), PutError> {
    let unconfirmed = |reason| PutError::unconfirmed(reason, seen, call);
    let answer = seen.answer.clone().unwrap_or_default();
    answer.confirms(&put.sha256).map_err(unconfirmed)?;
    if seen.sent_bytes < put.bytes {
        return Err(unconfirmed(NotConfirmed::TooEarly));
    }
    match answer.other_checksums.are_of(put.file.clone()).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(unconfirmed(NotConfirmed::OtherChecksum)),
        Err(error) => {
            let message =
                format!("the file can't be read again, to compare it with the checksum in S3's answer: {error}");
            Err(PutError { may_have_arrived: true, ..PutError::before(PutErrorKind::FileUnreadable, message) })
        }
    }
}

/// What the SDK's error means for a PUT.
fn refusal<E>(error: &SdkError<E, HttpResponse>, put: &Put, seen: &Watched, call: &Call<'_>) -> PutError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    match (error, seen.answer.as_ref().map(|answer| answer.confirms(&put.sha256))) {
        // The SDK takes headers that contradict each other for a refusal, but the status is a success.
        (SdkError::ServiceError(_), Some(Err(NotConfirmed::OtherChecksum))) => {
            PutError::unconfirmed(NotConfirmed::OtherChecksum, seen, call)
        }
        _ => PutError::of(error, seen, call),
    }
}

fn region_of(constraint: Option<&str>, other_than_aws: bool) -> BucketRegion {
    match constraint {
        Some("EU") => BucketRegion::Known("eu-west-1".to_owned()),
        None | Some("" | "null" | "default") if other_than_aws => BucketRegion::NotTold,
        None | Some("" | "null") => BucketRegion::Known("us-east-1".to_owned()),
        Some(region) => foreign_name(region, &[]).map_or(BucketRegion::NotTold, BucketRegion::Known),
    }
}

#[cfg(test)]
mod tests;
