//! What `/status` says about the bucket. A task of its own asks for it, and nothing waits for the answer. `check` shows it
//! where it has no token to ask with by itself. What is wrong is told in the log once per change: where nothing is uploaded
//! yet, nothing else would say it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::credentials::Credentials;
use crate::s3::{BucketRegion, PutErrorKind, S3};
use crate::status::{BucketStatus, DestinationStatus, Timestamp};

/// How often the bucket is asked while it answers.
const ASK_EVERY: Duration = Duration::from_secs(3600);
/// How soon it is asked again after a failure.
const AFTER_A_FAILURE: Duration = Duration::from_secs(300);

/// The latest answer. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct BucketFacts(Arc<Mutex<Option<BucketStatus>>>);

impl BucketFacts {
    /// Asks with the first session, and then from time to time, until `stop`. Needs a Tokio runtime.
    pub(super) fn start(
        destination: DestinationStatus,
        s3: S3,
        credentials: Credentials,
        stop: CancellationToken,
    ) -> BucketFacts {
        let facts = BucketFacts::default();
        let latest = facts.0.clone();
        tokio::spawn(async move {
            let asking = async {
                let mut wrong = None;
                loop {
                    credentials.wait_session().await;
                    let (told, now_wrong) = ask(&destination, &s3).await;
                    // A session that has just ended says nothing about the bucket.
                    let by_session = matches!(now_wrong, Some(PutErrorKind::NoSession | PutErrorKind::SessionRejected));
                    if now_wrong != wrong && !by_session {
                        tell(&destination, &told, now_wrong);
                        wrong = now_wrong;
                    }
                    let pause = if told.error.is_some() { AFTER_A_FAILURE } else { ASK_EVERY };
                    *latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
                    tokio::time::sleep(pause).await;
                }
            };
            stop.run_until_cancelled(asking).await
        });
        facts
    }

    /// `None` before the first answer.
    pub(super) fn latest(&self) -> Option<BucketStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The answer, and the kind of what is wrong with it.
async fn ask(destination: &DestinationStatus, s3: &S3) -> (BucketStatus, Option<PutErrorKind>) {
    let answer = s3.bucket_region().await;
    let nothing =
        BucketStatus { region: None, checked_at: Timestamp::now(), error: None, remedy: None, code: None, kind: None };
    match answer {
        Ok(BucketRegion::Known(region)) => {
            let wrong = (region != destination.region).then_some(PutErrorKind::WrongRegion);
            (BucketStatus { region: Some(region), ..nothing }, wrong)
        }
        Ok(BucketRegion::NotTold) => (nothing, None),
        Err(error) => {
            let remedy = Some(s3.locate_remedy(&error));
            let kind = Some(error.kind.as_str().to_owned());
            (BucketStatus { remedy, code: error.code, error: Some(error.message), kind, ..nothing }, Some(error.kind))
        }
    }
}

/// Tells a change: what is wrong now, or that nothing is any more.
fn tell(destination: &DestinationStatus, told: &BucketStatus, wrong: Option<PutErrorKind>) {
    let DestinationStatus { bucket, region: configured, .. } = destination;
    match (wrong, &told.error, &told.region) {
        (Some(_), Some(error), _) => tracing::warn!(
            s3.code = told.code.as_deref().unwrap_or("none"),
            "the bucket {bucket} can't be asked where it is: {error}; {}",
            told.remedy.as_deref().unwrap_or_default()
        ),
        (Some(_), None, Some(region)) => tracing::warn!(
            "the bucket {bucket} is in {region}, not in {configured}; set ENV0_S3_LOG_AWS_REGION={region}"
        ),
        _ => tracing::info!("the bucket {bucket} answers as it should"),
    }
}
