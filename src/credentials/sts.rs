//! One exchange with STS, and what its refusals mean.
//!
//! The only file that names `aws_sdk_sts`. Uses the identity configured here and no other.

use std::time::Duration;

use aws_sdk_sts::config::Region;
use aws_sdk_sts::error::SdkError;
use aws_sdk_sts::operation::RequestId;
use aws_sdk_sts::operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityError;
use aws_smithy_runtime_api::client::behavior_version::BehaviorVersion;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_smithy_types::retry::RetryConfig;
use chrono::{DateTime, Utc};

use super::status::{ExchangeError, rfc3339};
use super::{Clock, Session};
use crate::config::Config;
use crate::network::{Network, causes};
use crate::oidc::OidcToken;

/// A whole exchange, beside the connect time-out.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Of STS's words.
const MAX_MESSAGE_CHARS: usize = 500;

/// STS, asked for sessions of one role.
pub(super) struct Sts {
    clock: Clock,
    client: aws_sdk_sts::Client,
    pub(super) role_arn: String,
    session_name: String,
}

impl Sts {
    /// Sends nothing yet.
    pub(super) fn new(clock: Clock, config: &Config, network: &Network, instance_id: &str) -> Sts {
        let endpoint = config.endpoint_url_sts.as_deref();
        let mut client = aws_sdk_sts::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(config.aws_region.clone()))
            .http_client(network.aws(endpoint))
            .retry_config(RetryConfig::disabled());
        client.set_endpoint_url(endpoint.map(str::to_owned));
        Sts {
            clock,
            client: aws_sdk_sts::Client::from_conf(client.build()),
            role_arn: config.role_arn.clone(),
            session_name: format!("env0-s3-logs-{instance_id}"),
        }
    }

    /// Asks once for a session of `duration`, without a retry.
    pub(super) async fn ask(&self, token: &OidcToken, duration: Duration) -> Result<Session, ExchangeError> {
        let request = self
            .client
            .assume_role_with_web_identity()
            .role_arn(&self.role_arn)
            .role_session_name(&self.session_name)
            .duration_seconds(i32::try_from(duration.as_secs()).unwrap_or(i32::MAX))
            .web_identity_token(token.expose());
        let answer = match tokio::time::timeout(EXCHANGE_TIMEOUT, request.send()).await {
            Ok(answer) => answer.map_err(|error| ExchangeError::new(&error, token))?,
            Err(_) => return Err(ExchangeError::unreachable("no answer from STS within 30 s".to_owned())),
        };
        let keys = answer.credentials().ok_or_else(|| ExchangeError::unreachable("STS sent no session".to_owned()))?;
        let obtained_at = (self.clock)();
        let asked_end = obtained_at + duration;
        // An end that is over already means that our clock is ahead: what was asked is what counts then.
        let end = DateTime::from_timestamp(keys.expiration().secs(), 0).filter(|end| *end > obtained_at);
        Ok(Session {
            id: 0,
            access_key_id: keys.access_key_id().to_owned(),
            secret_access_key: keys.secret_access_key().into(),
            session_token: keys.session_token().into(),
            obtained_at,
            expires_at: end.map_or(asked_end, |end| end.min(asked_end)),
            outage_seconds: None,
        })
    }
}

impl ExchangeError {
    fn unreachable(message: String) -> ExchangeError {
        let since = rfc3339(Utc::now());
        ExchangeError { refused: false, of_this_token: false, code: None, request_id: None, message, since }
    }

    fn new(error: &SdkError<AssumeRoleWithWebIdentityError>, token: &OidcToken) -> ExchangeError {
        let Some(refusal) = error.as_service_error() else {
            return ExchangeError::unreachable(causes(error));
        };
        let status = error.raw_response().map_or(0, |response| response.status().as_u16());
        let code = refusal.code().map(str::to_owned);
        let words = refusal.message().map_or_else(|| causes(refusal), str::to_owned);
        // A validation error repeats what it was given.
        let message: String = words.replace(token.expose(), "[token]").chars().take(MAX_MESSAGE_CHARS).collect();
        // STS can't reach the issuer that this token names.
        let of_this_token = match code.as_deref() {
            Some("IDPCommunicationError" | "IDPCommunicationErrorException") => true,
            Some("InvalidIdentityToken" | "InvalidIdentityTokenException") => message.contains("verification key"),
            _ => false,
        };
        let out_of_reach = match code.as_deref() {
            Some("Throttling" | "ThrottlingException" | "RequestLimitExceeded" | "TooManyRequestsException") => true,
            Some("RegionDisabledException") | None => true,
            Some(_) => status == 429 || status >= 500,
        };
        let request_id = error.request_id().map(str::to_owned);
        let refused = !of_this_token && !out_of_reach;
        ExchangeError { refused, of_this_token, code, request_id, message, since: rfc3339(Utc::now()) }
    }

    /// Whether a shorter session may be granted. The words don't always name the duration.
    pub(super) fn may_be_the_duration(&self) -> bool {
        self.refused && (self.code.as_deref() == Some("AccessDenied") || self.message.contains("DurationSeconds"))
    }
}
