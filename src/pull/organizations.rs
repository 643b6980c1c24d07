//! What an API key sees: organizations, which of them are pulled, and their environments.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::config;
use crate::pull::api::{Answer, Api, ApiError, Endpoint, ErrorKind, List};
use crate::pull::deployments::{EnvironmentRecord, Lists};

/// At most this many of the organizations that the key sees are pulled: each takes memory, requests and a socket.
const ORGANIZATIONS_MAX: usize = 100;

/// What is wrong with a configured organization that is not among those that the key sees.
pub fn foreign(pull: &config::Pull, organization: &str, seen: &[String]) -> Option<String> {
    (!seen.iter().any(|id| id == organization)).then(|| {
        format!(
            "ENV0_S3_LOG_PULL_ORGANIZATION_ID names {organization}, and the API key {} is of another organization: it sees {}",
            pull.key_id,
            seen.join(", ")
        )
    })
}

/// A 403 has three possible causes, and env0's answer is the same for all. The list of organizations that the key sees
/// tells which one it is, so that list is asked for once more.
pub async fn explained(api: &Api, organization: &str, error: ApiError) -> ApiError {
    if error.kind != ErrorKind::Forbidden {
        return error;
    }
    let kind = match organizations(api).await {
        Ok((seen, _)) if !seen.iter().any(|id| id == organization) => ErrorKind::OtherOrganization(seen.join(", ")),
        Err(ApiError { kind: ErrorKind::AllForbidden, .. }) => ErrorKind::AllForbidden,
        _ => ErrorKind::Forbidden,
    };
    error.because(kind)
}

#[derive(Deserialize)]
struct Organization {
    id: String,
}

/// The organizations that the key sees, and what is missing in the first record that is not an organization's.
///
/// # Errors
/// The request failed, or the key sees no organization.
pub async fn organizations(api: &Api) -> Result<(Vec<String>, Option<ApiError>), ApiError> {
    let answer = api.get(Endpoint::Organizations, &["organizations"], &[]).await;
    let answer: Answer = answer.map_err(|error| match error.kind {
        // Every role may ask for this, so it is the address in most cases.
        ErrorKind::Forbidden => error.because(ErrorKind::AllForbidden),
        _ => error,
    })?;
    let list: List<Organization> = answer.list()?;
    if list.elements == 0 {
        return Err(answer.malformed("it holds no organization, so the key sees none"));
    }
    let ids = config::distinct(list.records.into_iter().map(|organization| organization.id).collect());
    let (ids, odd): (Vec<String>, Vec<String>) = ids.into_iter().partition(|id| config::is_env0_id(id));
    let odd = odd.first().map(|_| answer.malformed("the id of an organization is none"));
    Ok((ids, list.bad.or(odd)))
}

/// An environment, as far as `check` looks at it.
pub struct Environment {
    /// Its id.
    pub id: String,
    /// Whether there is a deployment of it.
    pub is_deployed: bool,
}

/// The environments of an organization, as a round lists them, and how many requests that takes.
///
/// # Errors
/// A request failed, or a record is not what env0 documents.
pub async fn environments(api: &Api, organization: &str) -> Result<(Vec<Environment>, usize), ApiError> {
    let listed = Lists::new(api.clone(), organization).environments().await?;
    let environment = |record: EnvironmentRecord| Environment {
        is_deployed: record.latest_deployment_log_id.is_some(),
        id: record.id,
    };
    let all = listed.records.into_iter().map(environment).collect();
    listed.bad.map_or(Ok((all, listed.requests)), Err)
}

/// Those of the organizations that the key sees which are pulled: no more than a hundred, together with those
/// that were `begun`. The error tells of the others.
pub fn followed(api: &Api, seen: Vec<String>, begun: &BTreeSet<String>) -> (Vec<String>, Option<ApiError>) {
    let mut new: Vec<String> = seen.into_iter().filter(|id| !begun.contains(id)).collect();
    let room = ORGANIZATIONS_MAX.saturating_sub(begun.len());
    let left_out = new.len().saturating_sub(room);
    // env0 may list them in another order next time, and a start is to take the same ones.
    new.sort();
    new.truncate(room);
    let kind = ErrorKind::TooManyOrganizations(left_out, begun.len() + new.len());
    (new, (left_out > 0).then(|| api.error(Endpoint::Organizations, kind)))
}
