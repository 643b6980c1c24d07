//! Sends requests to CloudWatch Logs. Only this file and `error` name `aws_sdk_cloudwatchlogs`. Four actions of IAM are
//! used: `PutLogEvents`, `CreateLogStream`, `CreateLogGroup`, and `DescribeLogStreams` for `check`. The policy also has
//! `DescribeLogGroups`, as env0's own has.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aws_sdk_cloudwatchlogs::config::{
    Builder, IdentityCache, Region, StalledStreamProtectionConfig, timeout::TimeoutConfig,
};
use aws_sdk_cloudwatchlogs::error::SdkError;
use aws_sdk_cloudwatchlogs::types::{InputLogEvent, RejectedLogEventsInfo};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::behavior_version::BehaviorVersion;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::AfterDeserializationInterceptorContextRef;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_smithy_types::retry::RetryConfig;
use serde_json::Value;

use super::calls::Event;
use super::error::{Call, LogsError, LogsErrorKind, PUT};
use crate::batch::LogType;
use crate::config;
use crate::credentials::{Credentials, Session};
use crate::network::{Network, regional_endpoint, server};

/// The time for one request, from its first byte to the answer's last: enough for a megabyte at 200 kbit/s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// The type of CloudWatch's answers.
const CONTENT_TYPE: &str = "application/x-amz-json-1.1";

/// The log groups, by the session at hand. Cheap to clone.
#[derive(Clone)]
pub struct Logs(Arc<Inner>);

struct Inner {
    client: aws_sdk_cloudwatchlogs::Client,
    credentials: Credentials,
    network: Network,
    role_arn: String,
    region: String,
    group_prefix: String,
    stream: String,
    /// Host and port.
    server: String,
}

/// How many events of a call CloudWatch took and won't keep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rejected {
    /// More than 14 days old.
    pub too_old: usize,
    /// More than 2 hours in the future.
    pub too_new: usize,
    /// Older than what the group keeps.
    pub expired: usize,
}

/// What there is of a log type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// No group.
    Nothing,
    /// The group, without this daemon's stream.
    Group,
    /// Both.
    Stream,
}

impl Logs {
    /// Makes no request yet. `credentials` are those of CloudWatch's role.
    pub fn new(config: &config::CloudWatch, network: &Network, credentials: Credentials, instance: &str) -> Logs {
        let endpoint = config.endpoint_url.as_deref();
        // No retries and no time-outs of the SDK's: the lane backs off, and `sent` bounds each request.
        let mut client = Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(config.aws_region.clone()))
            .http_client(network.aws(endpoint))
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .identity_cache(IdentityCache::no_cache());
        client.set_endpoint_url(endpoint.map(str::to_owned));
        Logs(Arc::new(Inner {
            client: aws_sdk_cloudwatchlogs::Client::from_conf(client.build()),
            credentials,
            network: network.clone(),
            role_arn: config.role_arn.clone(),
            region: config.aws_region.clone(),
            group_prefix: config.group_prefix.clone(),
            stream: format!("env0-s3-logs-{instance}"),
            server: server(&endpoint.map_or_else(|| regional_endpoint("logs", &config.aws_region), str::to_owned)),
        }))
    }

    /// Name of a type's log group.
    pub fn group(&self, log_type: LogType) -> String {
        format!("{}{log_type}", self.0.group_prefix)
    }

    /// Name of this daemon's stream, the same in each group.
    pub fn stream(&self) -> &str {
        &self.0.stream
    }

    /// Puts one call's events, as [`super::calls::Calls`] gives them. Makes group and stream where they are missing,
    /// also where they were there before.
    ///
    /// # Errors
    /// Nothing is known of the events after one: the same call may be made again. Tells the credentials where the
    /// session is the reason, or may be.
    pub async fn put(&self, log_type: LogType, events: &[Event]) -> Result<Rejected, LogsError> {
        let group = self.group(log_type);
        let session = self.session(PUT, &group)?;
        match self.put_events(&session, &group, events).await {
            Err(error) if error.kind == LogsErrorKind::Missing => {
                self.make(&session, &group).await?;
                self.put_events(&session, &group, events).await
            }
            outcome => outcome,
        }
    }

    /// What there is of a log type.
    ///
    /// # Errors
    /// As of [`Logs::put`].
    pub async fn find(&self, log_type: LogType) -> Result<Found, LogsError> {
        const OPERATION: &str = "DescribeLogStreams";
        let group = self.group(log_type);
        let session = self.session(OPERATION, &group)?;
        let request = self.0.client.describe_log_streams().log_group_name(&group).log_stream_name_prefix(self.stream());
        let seen = Seen::default();
        let request = request.limit(1).customize().config_override(signed_by(&session, &seen));
        match self.sent(OPERATION, &group, &session, &seen, request.send()).await {
            Ok(answer) => {
                let is_ours = answer.log_streams().iter().any(|found| found.log_stream_name() == Some(self.stream()));
                Ok(if is_ours { Found::Stream } else { Found::Group })
            }
            Err(error) if error.kind == LogsErrorKind::Missing => Ok(Found::Nothing),
            Err(error) => Err(error),
        }
    }

    async fn put_events(&self, session: &Session, group: &str, events: &[Event]) -> Result<Rejected, LogsError> {
        let input = events.iter().map(|event| {
            let input = InputLogEvent::builder().timestamp(event.timestamp).message(&event.message).build();
            input.expect("both fields are set")
        });
        let request = self.0.client.put_log_events().log_group_name(group).log_stream_name(self.stream());
        let seen = Seen::default();
        let request = request.set_log_events(Some(input.collect())).customize();
        let request = request.config_override(signed_by(session, &seen));
        let answer = match self.sent(PUT, group, session, &seen, request.send()).await {
            Ok(answer) => answer,
            // An older service says so of events that it has.
            Err(error) if error.code.as_deref() == Some("DataAlreadyAcceptedException") => {
                return Ok(Rejected::default());
            }
            Err(error) => return Err(error),
        };
        Ok(answer.rejected_log_events_info().map(|info| rejected(info, events.len())).unwrap_or_default())
    }

    /// The stream, and the group before it where there is none.
    async fn make(&self, session: &Session, group: &str) -> Result<(), LogsError> {
        match self.make_stream(session, group).await {
            Err(error) if error.kind == LogsErrorKind::Missing => {
                self.make_group(session, group).await?;
                self.make_stream(session, group).await
            }
            outcome => outcome,
        }
    }

    async fn make_stream(&self, session: &Session, group: &str) -> Result<(), LogsError> {
        let request = self.0.client.create_log_stream().log_group_name(group).log_stream_name(self.stream());
        let seen = Seen::default();
        let request = request.customize().config_override(signed_by(session, &seen));
        if is_new(self.sent("CreateLogStream", group, session, &seen, request.send()).await)? {
            tracing::info!(
                log.group = group,
                log.stream = self.stream(),
                "CloudWatch Logs: made the log stream, which was missing"
            );
        }
        Ok(())
    }

    async fn make_group(&self, session: &Session, group: &str) -> Result<(), LogsError> {
        let request = self.0.client.create_log_group().log_group_name(group);
        let seen = Seen::default();
        let request = request.customize().config_override(signed_by(session, &seen));
        if is_new(self.sent("CreateLogGroup", group, session, &seen, request.send()).await)? {
            tracing::info!(
                log.group = group,
                "CloudWatch Logs: made the log group, which was missing; it keeps events for ever until you set a retention"
            );
        }
        Ok(())
    }

    fn session(&self, operation: &'static str, group: &str) -> Result<Arc<Session>, LogsError> {
        let none = "there is no session to sign with";
        let call = self.call(operation, group, &[]);
        self.0.credentials.session().ok_or_else(|| LogsError::unanswered(LogsErrorKind::NoSession, none, &call))
    }

    /// Sends one request, without a retry. `seen` is of its answer.
    async fn sent<T, E>(
        &self,
        operation: &'static str,
        group: &str,
        session: &Session,
        seen: &Seen,
        request: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T, LogsError>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let secrets = session.secrets();
        let call = self.call(operation, group, &secrets);
        let error = match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
            Ok(Ok(answer)) => match seen.0.get() {
                Some(Answer { is_cloudwatchs: true, error_type: None }) => return Ok(answer),
                told => LogsError::unconfirmed(told.and_then(|told| told.error_type.as_deref()), &call),
            },
            Ok(Err(error)) => LogsError::of(&error, &call),
            Err(_) => {
                let words = format!("no answer within {} s", REQUEST_TIMEOUT.as_secs());
                LogsError::unanswered(LogsErrorKind::Timeout, &words, &call)
            }
        };
        match error.kind {
            LogsErrorKind::SessionRejected => self.0.credentials.session_is_refused(session.id),
            LogsErrorKind::Denied => self.0.credentials.session_is_suspect(session.id),
            _ => {}
        }
        Err(error)
    }

    fn call<'a>(&'a self, operation: &'static str, group: &'a str, secrets: &'a [&'a str]) -> Call<'a> {
        let Inner { role_arn, region, server, network, .. } = &*self.0;
        Call { operation, group, role_arn, region, server, proxies: network.proxies(), secrets }
    }
}

/// What one request's answer says of who sent it.
#[derive(Debug, Clone, Default)]
struct Seen(Arc<OnceLock<Answer>>);

#[derive(Debug)]
struct Answer {
    /// A 200 with a mark that no page and no proxy has: a request id, CloudWatch's own type, or a member of its own.
    /// Services that stand in for it don't all number their answers.
    is_cloudwatchs: bool,
    /// The type of an error document. CloudWatch sends none with a 200, and the SDK doesn't look for one there.
    error_type: Option<String>,
}

impl Answer {
    fn of(response: &HttpResponse) -> Answer {
        let header = |name| response.headers().get(name).map(str::trim).filter(|value| !value.is_empty());
        let content_type = header("content-type").and_then(|value| value.split(';').next()).unwrap_or_default();
        let body: Value = serde_json::from_slice(response.body().bytes().unwrap_or_default()).unwrap_or_default();
        let has_mark = ["x-amzn-requestid", "x-amz-request-id"].into_iter().any(|name| header(name).is_some())
            || content_type.trim().eq_ignore_ascii_case(CONTENT_TYPE)
            || ["nextSequenceToken", "rejectedLogEventsInfo"].into_iter().any(|name| body.get(name).is_some());
        Answer {
            is_cloudwatchs: has_mark && response.status().as_u16() == 200,
            error_type: body.get("__type").map(|kind| kind.as_str().unwrap_or_default().to_owned()),
        }
    }
}

impl Intercept for Seen {
    fn name(&self) -> &'static str {
        "Seen"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        // Set once, because no request is sent again.
        let _ = self.0.set(Answer::of(context.response()));
        Ok(())
    }
}

impl Rejected {
    /// All of them.
    pub fn total(self) -> usize {
        self.too_old + self.too_new + self.expired
    }
}

fn signed_by(session: &Session, seen: &Seen) -> Builder {
    Builder::new().credentials_provider(session.keys()).interceptor(seen.clone())
}

/// Whether we made it: somebody else may have, a moment ago.
fn is_new<T>(made: Result<T, LogsError>) -> Result<bool, LogsError> {
    match made {
        Ok(_) => Ok(true),
        Err(error) if error.code.as_deref() == Some("ResourceAlreadyExistsException") => Ok(false),
        Err(error) => Err(error),
    }
}

/// The events of a sorted call of `count`: those before the end of the old ones are too old, further ones before the
/// end of the expired ones have expired, and from the start of the new ones on they are too new. Each counts once.
fn rejected(info: &RejectedLogEventsInfo, count: usize) -> Rejected {
    // One below 0 tells nothing.
    let index = |told: Option<i32>, untold: usize| {
        told.and_then(|index| usize::try_from(index).ok()).map_or(untold, |index| index.min(count))
    };
    let too_old = index(info.too_old_log_event_end_index(), 0);
    let gone = index(info.expired_log_event_end_index(), 0).max(too_old);
    let too_new = count - index(info.too_new_log_event_start_index(), count).max(gone);
    Rejected { too_old, too_new, expired: gone - too_old }
}

#[cfg(test)]
mod tests;
