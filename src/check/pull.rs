//! The steps that try an env0 API key: one request of each kind.

use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::time::Instant;

use super::report::Step;
use crate::batch::LogType;
use crate::config::{self, Config};
use crate::exit_code::{CONFIG, DENIED, UNAVAILABLE};
use crate::network::Network;
use crate::pull::api::{Api, ApiError, Endpoint, ErrorKind};
use crate::pull::{explained, organizations};

const KEY: &str = "api-key";
/// env0 gives no more in one page.
const PAGE_MAX: usize = 100;

pub(super) async fn steps(config: &Config) -> Vec<Step> {
    let Some(pull) = &config.pull else { return Vec::new() };
    let api =
        Network::new(&config.network).map_err(|error| error.to_string()).and_then(|network| Api::new(pull, &network));
    let api = match api {
        Ok(api) => api,
        Err(error) => return vec![Step::fail(KEY, CONFIG, error, "correct the variable")],
    };
    let seen = match organizations(&api).await {
        Ok(seen) => seen,
        Err(error) => return vec![failed(KEY, &error)],
    };
    let ids = match &pull.organization_ids[..] {
        [] => seen.clone(),
        configured => configured.to_vec(),
    };
    let mut steps = vec![Step::ok(KEY, format!("{} is known to env0; it sees {}", pull.key_id, seen.join(", ")))];
    for id in &ids {
        if pull.types.contains(&LogType::Audits) {
            steps.push(audits(&api, id).await);
        }
        if pull.types.contains(&LogType::Deployments) {
            steps.push(deployments(&api, id, pull).await);
        }
        steps.push(forwarding(&api, id).await);
    }
    steps
}

fn failed(name: &'static str, error: &ApiError) -> Step {
    let exit_code = match error.kind {
        ErrorKind::Unauthorized
        | ErrorKind::Revoked
        | ErrorKind::Forbidden
        | ErrorKind::OtherOrganization(_)
        | ErrorKind::AllForbidden => DENIED,
        ErrorKind::WrongUrl => CONFIG,
        _ => UNAVAILABLE,
    };
    Step::fail(name, exit_code, error.to_string(), error.remedy())
}

#[derive(Deserialize)]
struct AuditPage {
    events: Vec<IgnoredAny>,
}

async fn audits(api: &Api, organization: &str) -> Step {
    const NAME: &str = "pull-audits";
    let page = async {
        let query = [("organizationId", organization), ("limit", "1")];
        let answer = api.get(Endpoint::AuditEvents, &["audit", "events"], &query).await?;
        answer.parse::<AuditPage>()
    };
    match page.await {
        Ok(page) if page.events.is_empty() => Step::ok(NAME, format!("{organization}: readable, and still empty")),
        Ok(_) => Step::ok(NAME, format!("{organization}: the audit trail is readable")),
        Err(error) => failed(NAME, &explained(api, organization, error).await),
    }
}

#[derive(Deserialize)]
struct Environment {
    id: String,
}

/// A deployment's record, of which only the presence of a token is looked at.
#[derive(Deserialize)]
struct Deployment {
    #[serde(rename = "customEnv0EnvironmentVariables")]
    variables: Option<Variables>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Variables {
    oidc_token: Option<IgnoredAny>,
}

impl Deployment {
    /// env0 documents the token, but need not fill it in.
    fn words(&self) -> &'static str {
        match self.variables.as_ref().and_then(|variables| variables.oidc_token.as_ref()) {
            Some(_) => "; a deployment's record has an OIDC token, so the pull brings its own",
            None => "; a deployment's record has no OIDC token, so it has to come another way",
        }
    }
}

async fn deployments(api: &Api, organization: &str, pull: &config::Pull) -> Step {
    const NAME: &str = "pull-logs";
    let started = Instant::now();
    let listed = async {
        let mut environments: Vec<Environment> = Vec::new();
        let mut pages = 0;
        loop {
            let offset = environments.len().to_string();
            let query = [("organizationId", organization), ("limit", "100"), ("offset", &*offset)];
            let answer = api.get(Endpoint::Environments, &["environments"], &query).await?;
            let page: Vec<Environment> = answer.parse()?;
            let full = page.len() >= PAGE_MAX;
            environments.extend(page);
            pages += 1;
            if !full {
                break;
            }
        }
        let mut token = "";
        if let Some(first) = environments.first() {
            let path = ["environments", &*first.id, "deployments"];
            let answer = api.get(Endpoint::Deployments, &path, &[("limit", "1"), ("offset", "0")]).await?;
            let latest: Vec<Deployment> = answer.parse()?;
            token = latest.first().map(Deployment::words).unwrap_or_default();
        }
        Ok::<_, ApiError>((environments.len(), pages, token))
    };
    let (environments, pages, token) = match listed.await {
        Ok(listed) => listed,
        Err(error) => return failed(NAME, &explained(api, organization, error).await),
    };
    let took = started.elapsed();
    let detail = format!(
        "{organization}: {environments} environments in {pages} requests of {} ms in all, every {} s{token}",
        took.as_millis(),
        pull.interval.as_secs()
    );
    if took > pull.interval.max(Duration::from_secs(1)) {
        return Step::warn(NAME, detail, "a round takes longer than ENV0_S3_LOG_PULL_INTERVAL: raise it");
    }
    Step::ok(NAME, detail)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Forwarding {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    audit_log_forwarding: bool,
    #[serde(default)]
    deployment_log_forwarding: bool,
}

/// What env0 sends by itself would be stored twice, where it comes here or into the same bucket.
async fn forwarding(api: &Api, organization: &str) -> Step {
    const NAME: &str = "forwarding";
    let path = ["log-forwarding", "configurations"];
    let answer = api.get(Endpoint::Forwarding, &path, &[("organizationId", organization)]).await;
    let listed = answer.and_then(|answer| answer.parse::<Vec<Forwarding>>());
    let on = match listed {
        Ok(listed) => listed.into_iter().filter(|one| one.audit_log_forwarding || one.deployment_log_forwarding),
        // Only `check` looks at it: the pull itself needs no such permission.
        Err(error) => {
            return Step::warn(
                NAME,
                error.to_string(),
                "not needed for pulling; look in env0 whether it forwards its logs as well",
            );
        }
    };
    let kinds: Vec<String> = on.map(|one| one.kind).collect();
    match kinds.is_empty() {
        true => Step::ok(NAME, format!("{organization}: env0 forwards nothing by itself")),
        false => Step::warn(
            NAME,
            format!("{organization}: env0 forwards by itself, too: {}", kinds.join(", ")),
            "what it sends to this daemon or to this bucket is stored twice; turn one of the two off",
        ),
    }
}
