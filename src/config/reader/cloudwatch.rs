//! The variables of CloudWatch Logs.

use std::time::Duration;

use super::Reader;
use crate::config::effective::CloudWatch;
use crate::config::values::{self, Parsed, aws};

const ROLE: &str = "ENV0_CLOUDWATCH_ROLE_ARN";
const REGION: &str = "ENV0_CLOUDWATCH_AWS_REGION";
const DURATION: &str = "ENV0_CLOUDWATCH_SESSION_DURATION";
const PREFIX: &str = "ENV0_CLOUDWATCH_LOG_GROUP_NAME_PREFIX";
const ENDPOINT: &str = "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS";

impl Reader {
    /// CloudWatch Logs: role and region together, or not at all.
    pub(super) fn cloudwatch(
        &mut self,
        [role_arn, aws_region, session_duration, group_prefix, endpoint_url]: [Option<String>; 5],
        parse_role: impl Fn(&str) -> Parsed<String>,
        common_endpoint: Option<String>,
    ) -> Option<CloudWatch> {
        match (&role_arn, &aws_region) {
            (Some(_), None) => self.refuse(REGION, &format!("not set, and needed beside {ROLE}")),
            (None, Some(_)) => self.refuse(ROLE, &format!("not set, and needed beside {REGION}")),
            (Some(_), Some(_)) => {}
            (None, None) => self.warn_of_idle_variables(),
        }
        let role_arn = self.optional(ROLE, role_arn, parse_role);
        let aws_region = self.optional(REGION, aws_region, aws::region);
        let session_duration = self.value(
            DURATION,
            session_duration,
            values::duration(Duration::from_secs(900), Duration::from_secs(43_200)),
        );
        let group_prefix = self.optional(PREFIX, group_prefix, aws::log_group_prefix).unwrap_or_default();
        let endpoint_url = self.optional(ENDPOINT, endpoint_url, values::endpoint_url).or(common_endpoint);
        let (role_arn, aws_region) = (role_arn?, aws_region?);
        Some(CloudWatch { role_arn, aws_region, session_duration, group_prefix, endpoint_url })
    }

    /// Without role and region nothing goes to CloudWatch, and the other variables do nothing.
    fn warn_of_idle_variables(&mut self) {
        self.warn_of_idle([DURATION, PREFIX, ENDPOINT], [ROLE, REGION]);
    }
}
