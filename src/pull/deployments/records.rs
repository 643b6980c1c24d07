//! The records of environments, deployments and steps, with only the members that are read.
//!
//! A deployment's record holds secrets. Only the fields named here are read from it, and of those only plain values:
//! whatever else stands in a record is never stored, logged or kept.

use std::borrow::Cow;
use std::fmt::Write;

use chrono::DateTime;
use secrecy::SecretString;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::protocols::body::members;

/// No id, type or name of a step is longer. A longer one would be kept for each of many records.
pub(super) const ID_MAX_BYTES: usize = 512;
/// What is wrong with a record that has a longer one.
pub(super) const LONG_ID: &str = "an id, a type or a name has more than 512 bytes";
/// Longer texts of a record are cut.
const TEXT_MAX_BYTES: usize = 1024;

/// An environment, from the list of an organization's.
pub(in crate::pull) struct EnvironmentRecord {
    pub(in crate::pull) id: String,
    pub(super) name: Option<String>,
    pub(super) project_id: Option<String>,
    updated_at: Option<String>,
    pub(in crate::pull) latest_deployment_log_id: Option<String>,
    /// The id of its latest deployment, if the list says that it runs.
    pub(super) running: Option<String>,
}

/// The same, as env0 lists it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListedEnvironment<'a> {
    id: String,
    name: Option<String>,
    project_id: Option<String>,
    updated_at: Option<String>,
    latest_deployment_log_id: Option<String>,
    #[serde(borrow)]
    latest_deployment_log: Option<&'a RawValue>,
}

impl From<ListedEnvironment<'_>> for EnvironmentRecord {
    fn from(listed: ListedEnvironment<'_>) -> EnvironmentRecord {
        let ListedEnvironment { id, name, project_id, updated_at, latest_deployment_log_id, .. } = listed;
        // The deployments' own list decides what a deployment is. This only saves asking for it, so a record that can't
        // be read does no harm.
        let latest = || serde_json::from_str::<DeploymentRecord<'_>>(listed.latest_deployment_log?.get()).ok();
        let running = latest().filter(|latest| !latest.is_final() && latest.id.len() <= ID_MAX_BYTES);
        let running = running.map(|latest| latest.id);
        let [name, project_id, updated_at, latest_deployment_log_id] =
            [name, project_id, updated_at, latest_deployment_log_id].map(|text| text.map(cut));
        EnvironmentRecord { id, name, project_id, updated_at, latest_deployment_log_id, running }
    }
}

/// The beginning of a text, up to [`TEXT_MAX_BYTES`].
fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_MAX_BYTES));
    text.shrink_to_fit();
    text
}

impl EnvironmentRecord {
    /// A record for an environment that env0 no longer lists but that has a followed deployment.
    pub(super) fn unlisted(id: String, name: Option<String>, project_id: Option<String>) -> EnvironmentRecord {
        EnvironmentRecord { id, name, project_id, updated_at: None, latest_deployment_log_id: None, running: None }
    }

    /// How many bytes its texts have.
    pub(super) fn bytes(&self) -> usize {
        let EnvironmentRecord { id, name, project_id, updated_at, latest_deployment_log_id, running } = self;
        let optional = [name, project_id, updated_at, latest_deployment_log_id, running];
        id.len() + optional.into_iter().flatten().map(String::len).sum::<usize>()
    }

    /// A text that changes when the environment has a new deployment or was updated.
    pub(super) fn state(&self) -> String {
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        format!("{} {}", part(&self.updated_at), part(&self.latest_deployment_log_id))
    }
}

/// A deployment.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DeploymentRecord<'a> {
    pub(super) id: String,
    #[serde(borrow)]
    created_at: Option<&'a RawValue>,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) status: String,
    #[serde(borrow)]
    started_by: Option<&'a RawValue>,
    #[serde(borrow)]
    started_by_user: Option<&'a RawValue>,
    #[serde(borrow)]
    queued_at: Option<&'a RawValue>,
    #[serde(borrow)]
    started_at: Option<&'a RawValue>,
    #[serde(borrow)]
    finished_at: Option<&'a RawValue>,
    #[serde(borrow)]
    updated_at: Option<&'a RawValue>,
    #[serde(borrow)]
    trigger_name: Option<&'a RawValue>,
    #[serde(borrow)]
    blueprint_name: Option<&'a RawValue>,
    #[serde(borrow)]
    blueprint_revision: Option<&'a RawValue>,
    #[serde(borrow)]
    pr_number: Option<&'a RawValue>,
    #[serde(borrow)]
    plan_summary: Option<&'a RawValue>,
    #[serde(borrow)]
    resource_count: Option<&'a RawValue>,
    #[serde(borrow, rename = "customEnv0EnvironmentVariables")]
    variables: Option<&'a RawValue>,
}

impl DeploymentRecord<'_> {
    /// When it was made, in milliseconds since 1970; where env0 doesn't say that, when it was queued, began or ended.
    pub(super) fn created_millis(&self) -> Option<i64> {
        [self.created_at, self.queued_at, self.started_at, self.finished_at].into_iter().find_map(millis)
    }

    /// When it ended, in milliseconds since 1970; where env0 doesn't say that, when its record last changed.
    pub(super) fn ended_millis(&self) -> Option<i64> {
        [self.finished_at, self.updated_at].into_iter().find_map(millis)
    }

    /// Whether the status is final. An unknown status counts as final if the record has a time of its end.
    pub(super) fn is_final(&self) -> bool {
        match &*self.status {
            "QUEUED" | "IN_PROGRESS" | "WAITING_FOR_USER" | "ABORTING" => false,
            "SUCCESS" | "FAILURE" | "INTERNAL_FAILURE" | "TIMEOUT" | "CANCELLED" | "ABORTED" | "SKIPPED"
            | "NEVER_DEPLOYED" => true,
            _ => self.finished_at.and_then(plain).is_some(),
        }
    }

    /// env0's token of this deployment, where env0 shows it.
    pub(super) fn oidc_token(&self) -> Option<SecretString> {
        let [token] = within(self.variables, ["oidcToken"]);
        serde_json::from_str::<String>(token?.get()).ok().map(SecretString::from)
    }

    /// The members of the line that says how it ended, without braces, from `status` on.
    pub(super) fn outcome(&self) -> String {
        let mut text = format!("\"status\":{}", serde_json::Value::from(&*self.status));
        let mut member = |name: &str, value: Option<&RawValue>| {
            if let Some(value) = value.and_then(plain) {
                let _ = write!(text, ",\"{name}\":{value}");
            }
        };
        member("startedBy", self.started_by);
        let [email] = within(self.started_by_user, ["email"]);
        member("startedByEmail", email);
        member("queuedAt", self.queued_at);
        member("startedAt", self.started_at);
        member("finishedAt", self.finished_at);
        member("triggerName", self.trigger_name);
        member("blueprintName", self.blueprint_name);
        member("blueprintRevision", self.blueprint_revision);
        member("prNumber", self.pr_number);
        member("resourceCount", self.resource_count);
        const COUNTS: [&str; 4] = ["added", "changed", "destroyed", "imported"];
        let counts = COUNTS.into_iter().zip(within(self.plan_summary, COUNTS));
        let counts = counts.filter_map(|(name, count)| Some(format!("\"{name}\":{}", plain(count?)?)));
        let counts = counts.collect::<Vec<_>>().join(",");
        if !counts.is_empty() {
            let _ = write!(text, ",\"planSummary\":{{{counts}}}");
        }
        text
    }
}

/// A point in time as RFC 3339, in milliseconds since 1970.
fn millis(time: Option<&RawValue>) -> Option<i64> {
    let text: String = serde_json::from_str(time?.get()).ok()?;
    Some(DateTime::parse_from_rfc3339(&text).ok()?.timestamp_millis())
}

/// Reads members of an object within a record; none if it isn't an object.
fn within<'a, const N: usize>(object: Option<&'a RawValue>, names: [&str; N]) -> [Option<&'a RawValue>; N] {
    object.map_or([None; N], |object| members(object, names))
}

/// The value if it is a string, a number or a boolean. Objects and lists are left out: they could hold secrets. A long
/// string is cut.
fn plain(value: &RawValue) -> Option<Cow<'_, str>> {
    let text = value.get();
    if text.starts_with(['{', '[']) || text == "null" {
        return None;
    }
    if text.len() <= TEXT_MAX_BYTES {
        return Some(text.into());
    }
    let text: String = serde_json::from_str(text).ok()?;
    Some(serde_json::Value::from(cut(text)).to_string().into())
}

/// A step of a deployment.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StepRecord {
    id: Option<String>,
    pub(super) name: String,
    pub(super) status: String,
    retry_count: Option<i64>,
}

/// The last started attempt of each step. The attempts of a step share its name and its log.
pub(super) fn last_attempts(steps: Vec<StepRecord>) -> Vec<StepRecord> {
    let mut last: Vec<StepRecord> = Vec::new();
    for step in steps {
        match last.iter_mut().find(|known| known.name == step.name) {
            None => last.push(step),
            Some(known) if known.has_not_started() => *known = step,
            Some(known) if !step.has_not_started() && step.retry_count >= known.retry_count => *known = step,
            Some(_) => {}
        }
    }
    last
}

impl StepRecord {
    /// A text that changes when the step is retried.
    pub(super) fn attempt(&self) -> String {
        format!("{} {}", self.id.as_deref().unwrap_or_default(), self.retry_count.unwrap_or_default())
    }

    /// Whether there can be no log yet.
    pub(super) fn has_not_started(&self) -> bool {
        self.status == "NOT_STARTED"
    }

    /// Whether it has ended. A status that isn't documented doesn't say so; then the deployment's end does.
    pub(super) fn has_ended(&self) -> bool {
        matches!(&*self.status, "SUCCESS" | "FAIL" | "SKIPPED" | "CANCELLED" | "TIMEOUT" | "WARNING")
    }

    /// Whether more may come of it.
    pub(super) fn is_running(&self) -> bool {
        !self.has_ended() && !self.has_not_started()
    }

    /// Whether it may have ended without ever having run.
    pub(super) fn was_left_out(&self) -> bool {
        matches!(&*self.status, "SKIPPED" | "CANCELLED")
    }
}

/// What a page of a step's log says beside its events.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LogPage<'a> {
    /// The events were read before; the list has to be there all the same.
    pub(super) events: Vec<IgnoredAny>,
    /// A string or a number; its meaning is env0's.
    #[serde(borrow)]
    pub(super) next_start_time: Option<&'a RawValue>,
    #[serde(default)]
    pub(super) has_more_logs: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_record_only_named_plain_values_come_into_the_line() {
        let json = r#"{"id":"d","status":"SUCCESS","createdAt":"2026-11-01T00:00:00.000Z","startedBy":"auth0|1",
            "startedByUser":{"email":"a@b.c","name":"canary"},"finishedAt":null,"prNumber":7,"blueprintName":"net\"work",
            "triggerName":{"value":"canary"},"planSummary":{"added":1,"changed":["canary"],"destroyed":0,"output":"canary"},
            "variables":[{"value":"canary"}],"output":"canary","plan":"canary","error":"canary",
            "customEnv0EnvironmentVariables":{"oidcToken":"canary","vcsAccessToken":"canary"}}"#;
        let record: DeploymentRecord<'_> = serde_json::from_str(json).unwrap();
        assert_eq!(
            record.outcome(),
            r#""status":"SUCCESS","startedBy":"auth0|1","startedByEmail":"a@b.c","blueprintName":"net\"work","prNumber":7,"planSummary":{"added":1,"destroyed":0}"#
        );
        assert!(record.is_final() && record.oidc_token().is_some());
        assert_eq!(record.created_millis(), Some(1_793_491_200_000));
    }
}
