//! The variables of CloudWatch Logs.

use super::{Given, Reader};
use crate::config::effective::CloudWatch;
use crate::config::values::{self, Rule, aws};

impl Reader {
    /// CloudWatch Logs: role and region together, or not at all. Without them nothing goes there, and the other
    /// variables do nothing.
    pub(super) fn cloudwatch(
        &mut self,
        [role_arn, aws_region, session_duration, group_prefix, endpoint_url]: [Given; 5],
        role_rule: Rule,
        common_endpoint: Option<String>,
    ) -> Option<CloudWatch> {
        let (role, region) = (role_arn.name, aws_region.name);
        match (role_arn.text.is_some(), aws_region.text.is_some()) {
            (true, false) => self.refuse(region, &format!("not set, and needed beside {role}")),
            (false, true) => self.refuse(role, &format!("not set, and needed beside {region}")),
            (true, true) => {}
            (false, false) => {
                self.warn_of_idle([session_duration.name, group_prefix.name, endpoint_url.name], [role, region]);
            }
        }
        let role_arn = self.optional(role_arn, role_rule);
        let aws_region = self.optional(aws_region, aws::region);
        let session_duration = self.value(session_duration, aws::session_duration);
        let group_prefix = self.optional(group_prefix, aws::log_group_prefix).unwrap_or_default();
        let endpoint_url = self.optional(endpoint_url, values::endpoint_url).or(common_endpoint);
        let (role_arn, aws_region) = (role_arn?, aws_region?);
        Some(CloudWatch { role_arn, aws_region, session_duration, group_prefix, endpoint_url })
    }
}
