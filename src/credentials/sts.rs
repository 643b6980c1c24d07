//! One exchange with STS. Uses the identity configured here and no other.

// Moments come from elsewhere: every step from one to another is a checked one.
#![warn(clippy::arithmetic_side_effects)]

use std::time::Duration;

use aws_sdk_sts::config::Region;
use aws_smithy_runtime_api::client::behavior_version::BehaviorVersion;
use aws_smithy_types::retry::RetryConfig;
use chrono::{DateTime, TimeDelta, Utc};

use super::failure::{Failure, Question, session_field};
use super::role::Role;
use super::session::{Clock, Session};
use super::status::ways_to_a_token;
use crate::config::Config;
use crate::network::{Network, regional_endpoint, server, way_out};
use crate::oidc::{OidcToken, moment};

/// A whole exchange, beside the connect time-out.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(30);

/// STS, asked for sessions of one role.
pub(super) struct Sts {
    clock: Clock,
    client: aws_sdk_sts::Client,
    role: Role,
    session_name: String,
    /// Host and port.
    server: String,
    network: Network,
    ways_to_a_token: String,
}

impl Sts {
    /// Sends nothing yet.
    pub(super) fn new(clock: Clock, role: Role, config: &Config, network: &Network, instance_id: &str) -> Sts {
        let endpoint = config.endpoint_url_sts.as_deref();
        let mut client = aws_sdk_sts::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(role.region.clone()))
            .http_client(network.aws(endpoint))
            .retry_config(RetryConfig::disabled());
        client.set_endpoint_url(endpoint.map(str::to_owned));
        Sts {
            clock,
            client: aws_sdk_sts::Client::from_conf(client.build()),
            session_name: format!("env0-s3-logs-{instance_id}"),
            server: server(&endpoint.map_or_else(|| regional_endpoint("sts", &role.region), str::to_owned)),
            network: network.clone(),
            ways_to_a_token: ways_to_a_token(config),
            role,
        }
    }

    /// Asks once for a session of `duration`, without a retry.
    pub(super) async fn ask(&self, token: &OidcToken, duration: Duration) -> Result<Session, Failure> {
        let (role, server, network) = (&self.role, &self.server, &self.network);
        let question = Question { token, role, server, duration, network, ways_to_a_token: &self.ways_to_a_token };
        let request = self
            .client
            .assume_role_with_web_identity()
            .role_arn(&role.arn)
            .role_session_name(&self.session_name)
            .duration_seconds(i32::try_from(duration.as_secs()).unwrap_or(i32::MAX))
            .web_identity_token(token.expose());
        let asked = network.fetches().run(async { request.send().await });
        let answer = match tokio::time::timeout(EXCHANGE_TIMEOUT, asked).await {
            Ok(answer) => answer.map_err(|error| Failure::of(&error, &question))?,
            Err(_) => {
                let message = format!("{server}: no answer within {} s", EXCHANGE_TIMEOUT.as_secs());
                return Err(Failure::out_of_reach(message, way_out(network.proxies(), "timeout", "STS")));
            }
        };
        let Some(keys) = answer.credentials() else {
            return Err(Failure::out_of_reach(
                format!("what answers at {server} sent no session"),
                super::failure::wrong_endpoint(role.service),
            ));
        };
        let obtained_at = (self.clock)();
        Ok(Session {
            id: 0,
            access_key_id: session_field("AccessKeyId", keys.access_key_id(), &question)?,
            secret_access_key: session_field("SecretAccessKey", keys.secret_access_key(), &question)?.into(),
            session_token: session_field("SessionToken", keys.session_token(), &question)?.into(),
            obtained_at,
            expires_at: session_end(obtained_at, duration, keys.expiration().secs()),
            outage_seconds: None,
        })
    }
}

/// The end of a session by our clock: what was asked for, or what STS says where that is sooner. An end that is over
/// already means that our clock is ahead: what was asked for is what counts then.
pub(super) fn session_end(obtained_at: DateTime<Utc>, asked: Duration, told_seconds: i64) -> DateTime<Utc> {
    let asked = TimeDelta::from_std(asked).ok().and_then(|asked| obtained_at.checked_add_signed(asked));
    let asked_end = asked.unwrap_or(obtained_at);
    let told = moment(told_seconds as f64);
    if told > obtained_at { told.min(asked_end) } else { asked_end }
}
