//! What `/status` says about the bucket. A task of its own asks for it, and nothing waits for the answer. `check` shows it
//! where it has no token to ask with by itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::credentials::Credentials;
use crate::s3::{BucketRegion, S3};
use crate::status::{BucketStatus, Timestamp};

/// How often the bucket is asked while it answers.
const ASK_EVERY: Duration = Duration::from_secs(3600);
/// How soon it is asked again after a failure.
const AFTER_A_FAILURE: Duration = Duration::from_secs(300);

/// The latest answer. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct BucketFacts(Arc<Mutex<Option<BucketStatus>>>);

impl BucketFacts {
    /// Asks with the first session, and then from time to time, until `stop`. Needs a Tokio runtime.
    pub(super) fn start(bucket: String, s3: S3, credentials: Credentials, stop: CancellationToken) -> BucketFacts {
        let facts = BucketFacts::default();
        let latest = facts.0.clone();
        tokio::spawn(async move {
            let asking = async {
                loop {
                    credentials.wait_session().await;
                    let told = ask(&bucket, &s3).await;
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

async fn ask(bucket: &str, s3: &S3) -> BucketStatus {
    let answer = s3.bucket_region().await;
    let nothing = BucketStatus { region: None, checked_at: Timestamp::now(), error: None, remedy: None, code: None };
    match answer {
        Ok(BucketRegion::Known(region)) => BucketStatus { region: Some(region), ..nothing },
        Ok(BucketRegion::NotTold) => nothing,
        Err(error) => {
            let remedy = Some(error.remedy(bucket));
            BucketStatus { remedy, code: error.code, error: Some(error.message), ..nothing }
        }
    }
}
