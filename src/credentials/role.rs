//! A role that sessions are fetched for, and the words for what they are for.

use std::time::Duration;

use crate::config::{CloudWatch, Config};

/// Every role allows sessions of this length. It is asked for where a role doesn't allow the configured one.
pub(super) const STEP_DOWN: Duration = Duration::from_secs(3600);

/// A role, and how long its sessions are asked for.
#[derive(Debug, Clone)]
pub struct Role {
    /// As configured.
    pub arn: String,
    /// `DurationSeconds` of a session, 900 s to 43 200 s.
    pub duration: Duration,
    /// Region of the STS endpoint.
    pub region: String,
    /// What the sessions are for.
    pub service: Service,
}

/// What sessions are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// The bucket.
    S3,
    /// The log groups beside it.
    CloudWatch,
}

impl Role {
    /// The bucket's.
    pub fn of_bucket(config: &Config) -> Role {
        Role {
            arn: config.role_arn.clone(),
            duration: config.session_duration,
            region: config.aws_region.clone(),
            service: Service::S3,
        }
    }

    /// The log groups'.
    pub fn of_cloudwatch(config: &CloudWatch) -> Role {
        Role {
            arn: config.role_arn.clone(),
            duration: config.session_duration,
            region: config.aws_region.clone(),
            service: Service::CloudWatch,
        }
    }
}

impl Service {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Service::S3 => "S3",
            Service::CloudWatch => "CloudWatch Logs",
        }
    }

    /// What begins a log line. The bucket's begin with none: there is always a bucket.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Service::S3 => "",
            Service::CloudWatch => "CloudWatch Logs: ",
        }
    }

    /// What becomes of events while there is no session.
    pub(super) fn meanwhile(self) -> &'static str {
        match self {
            Service::S3 => "events stay in the spool meanwhile",
            Service::CloudWatch => "what S3 has waits in the spool meanwhile, as long as there is room",
        }
    }

    pub(super) fn role_variable(self) -> &'static str {
        match self {
            Service::S3 => "ENV0_S3_LOG_ROLE_ARN",
            Service::CloudWatch => "ENV0_CLOUDWATCH_ROLE_ARN",
        }
    }

    pub(super) fn region_variable(self) -> &'static str {
        match self {
            Service::S3 => "ENV0_S3_LOG_AWS_REGION",
            Service::CloudWatch => "ENV0_CLOUDWATCH_AWS_REGION",
        }
    }

    /// The variable that sets how long a session is asked for.
    pub fn duration_variable(self) -> &'static str {
        match self {
            Service::S3 => "ENV0_S3_LOG_SESSION_DURATION",
            Service::CloudWatch => "ENV0_CLOUDWATCH_SESSION_DURATION",
        }
    }
}
