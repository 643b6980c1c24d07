//! Bounds on what an AWS service may answer. The SDK reads an answer's body into memory, to its end, and signs the
//! next request by the clock that the answer's `Date` tells.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use chrono::{DateTime, TimeDelta, Utc};
use http_body_util::Limited;
use tokio::sync::Notify;

/// The most bytes of an answer. The largest that the daemon asks for, a session of STS, has some 3 KB.
pub const ANSWER_MAX_BYTES: usize = 64 * 1024;

/// The longest pause that a `Retry-After` can ask for, as long as the longest of our own.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// How far a service's clock may be from ours. Beyond it the `Date` is not a clock's: a signature of the year 10000
/// has no text, and the SDK panics over it.
const CLOCK_MAX_DIFFERENCE: TimeDelta = TimeDelta::days(3650);

/// The most informational answers (1xx) to one request. A server that sends them without an end would keep a processor
/// busy for as long as an attempt may take.
const INFORMATIONAL_MAX: usize = 16;

#[derive(Debug, thiserror::Error)]
#[error("more than {INFORMATIONAL_MAX} informational answers (1xx) came, and no answer")]
struct TooManyInformational;

/// A connector whose answers end with an error at their bound.
#[derive(Debug)]
pub(super) struct Bounded {
    pub(super) connector: SharedHttpConnector,
    /// The most bytes of a 2xx; none where the body is passed on as it comes. Any other answer is a refusal, and small.
    pub(super) success_max_bytes: Option<usize>,
}

impl HttpConnector for Bounded {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (request, too_many) = match count_informational(request) {
            Ok(counted) => counted,
            Err(error) => return HttpConnectorFuture::ready(Err(error)),
        };
        let answer = self.connector.call(request);
        let success_max_bytes = self.success_max_bytes;
        HttpConnectorFuture::new(async move {
            let mut answer = tokio::select! {
                biased;
                answer = answer => answer?,
                // The connection is closed, because nobody waits for its answer any more.
                () = too_many.notified() => return Err(ConnectorError::other(TooManyInformational.into(), None)),
            };
            if !tells_a_clock(&answer, crate::batch::now()) {
                answer.headers_mut().remove("date");
            }
            let max_bytes = if answer.status().is_success() { success_max_bytes } else { Some(ANSWER_MAX_BYTES) };
            Ok(match max_bytes {
                Some(max_bytes) => answer.map(|body| SdkBody::from_body_1_x(Limited::new(body, max_bytes))),
                None => answer,
            })
        })
    }
}

/// The request, and what is told when it has had too many informational answers.
fn count_informational(request: HttpRequest) -> Result<(HttpRequest, Arc<Notify>), ConnectorError> {
    let unusable = |error| ConnectorError::user(Box::new(error));
    let mut request = request.try_into_http1x().map_err(unusable)?;
    let too_many = Arc::new(Notify::new());
    let (seen, tell) = (AtomicUsize::new(0), too_many.clone());
    hyper::ext::on_informational(&mut request, move |_| {
        if seen.fetch_add(1, Ordering::Relaxed) == INFORMATIONAL_MAX {
            tell.notify_one();
        }
    });
    Ok((HttpRequest::try_from(request).map_err(unusable)?, too_many))
}

fn tells_a_clock(answer: &HttpResponse, now: DateTime<Utc>) -> bool {
    let date = answer.headers().get("date").and_then(|date| DateTime::parse_from_rfc2822(date).ok());
    date.is_some_and(|date| date.to_utc().signed_duration_since(now).abs() <= CLOCK_MAX_DIFFERENCE)
}

/// Seconds or a date; `RETRY_AFTER_MAX` at most.
pub fn retry_after(value: &str, now: DateTime<Utc>) -> Option<Duration> {
    let seconds = value.trim().parse().map(Duration::from_secs).ok();
    let asked = seconds.or_else(|| (DateTime::parse_from_rfc2822(value.trim()).ok()?.to_utc() - now).to_std().ok());
    asked.map(|asked| asked.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use aws_smithy_runtime_api::http::StatusCode;

    use super::*;

    /// Answers every request with this `Date`, in memory.
    #[derive(Debug)]
    struct Dated(Option<String>);

    impl HttpConnector for Dated {
        fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
            let mut answer = HttpResponse::new(StatusCode::try_from(200).unwrap(), SdkBody::empty());
            if let Some(date) = &self.0 {
                answer.headers_mut().insert("date", date.clone());
            }
            HttpConnectorFuture::ready(Ok(answer))
        }
    }

    /// The `Date` that reaches the SDK.
    async fn passed_on(date: Option<String>) -> Result<Option<String>, Box<dyn Error>> {
        let connector = Bounded { connector: SharedHttpConnector::new(Dated(date)), success_max_bytes: None };
        let answer = connector.call(HttpRequest::get("http://localhost")?).await?;
        Ok(answer.headers().get("date").map(str::to_owned))
    }

    #[tokio::test]
    async fn the_sdk_sees_no_date_more_than_ten_years_from_our_clock() {
        for date in ["Fri, 31 Dec 9999 23:59:59 GMT", "Thu, 01 Jan 1970 00:00:00 GMT", "soon", ""] {
            assert_eq!(passed_on(Some(date.to_owned())).await.unwrap(), None, "{date}");
        }
        assert_eq!(passed_on(None).await.unwrap(), None);
        for days in [-3649, 0, 3649] {
            let date = Some((crate::batch::now() + TimeDelta::days(days)).to_rfc2822());
            assert_eq!(passed_on(date.clone()).await.unwrap(), date);
        }
    }
}
