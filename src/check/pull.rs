//! The steps that try an env0 API key: one request of each kind.

use std::collections::BTreeSet;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use tokio::time::Instant;

use super::beside::{found_words, pulls};
use super::report::{PULL_ALONE, Step, TOKEN};
use crate::batch::{LogType, counted};
use crate::config::{self, Config};
use crate::credentials::ways_to_a_token;
use crate::exit_code::{CONFIG, DENIED, UNAVAILABLE};
use crate::network::{Network, way_out};
use crate::oidc::{OidcToken, Reason, Source, VerifyError};
use crate::pull::api::pages::PageSize;
use crate::pull::api::{Api, ApiError, Endpoint, ErrorKind, List};
use crate::pull::{
    Environment, ahead_of, begun_too_late, environments, explained, followed, foreign, organizations,
    pulled_by_another, verifier_of_records,
};
use crate::status::{Status, Timestamp};

const KEY: &str = "api-key";
const ENVIRONMENTS: &str = "pull-environments";
const LOGS: &str = "pull-logs";
const PLACE: &str = "pull-place";
/// env0's limit for one address, method and path.
const LIMIT_A_MINUTE: u64 = 1000;

/// What trying the API key told.
#[derive(Default)]
pub(super) struct Pulled {
    pub(super) steps: Vec<Step>,
    /// The OIDC token in a deployment's record, as the pull would take it for AWS, or the step that says why it wouldn't.
    pub(super) token: Option<Result<OidcToken, Step>>,
}

impl From<Step> for Pulled {
    fn from(step: Step) -> Pulled {
        Pulled { steps: vec![step], token: None }
    }
}

/// `daemon` is what the running daemon tells, if one runs.
pub(super) async fn steps(config: &Config, daemon: Option<&Status>) -> Pulled {
    let Some(pull) = &config.pull else { return Pulled::default() };
    let network = Network::new(&config.network).map_err(|error| error.to_string());
    let (api, network) = match network.and_then(|network| Ok((Api::new(pull, &network)?, network))) {
        Ok(made) => made,
        Err(error) => return Step::fail(KEY, CONFIG, error, "correct the variable").into(),
    };
    let (seen, bad) = match organizations(&api).await {
        Ok(seen) => seen,
        Err(error) => return failed_first(config, &error).into(),
    };
    if let Some(detail) = pull.organization_ids.iter().find_map(|id| foreign(pull, id, &seen)) {
        let remedy = "correct it, leave it out, or make a key in that organization";
        return Step::fail(KEY, DENIED, detail, remedy).into();
    }
    let (ids, too_many) = match &pull.organization_ids[..] {
        [] => followed(&api, seen.clone(), &BTreeSet::new()),
        configured => (configured.to_vec(), None),
    };
    let mut token = None;
    let mut steps = vec![Step::ok(KEY, format!("{} is known to env0; it sees {}", pull.key_id, seen.join(", ")))];
    steps.extend(bad.into_iter().chain(too_many).map(|error| failed(KEY, &error)));
    for id in &ids {
        if pull.types.contains(&LogType::Audits) {
            steps.push(audits(&api, id).await);
        }
        if pull.types.contains(&LogType::Deployments) {
            let (of_type, in_record) = deployments(&api, id, pull).await;
            steps.extend(of_type);
            if let Some(in_record) = in_record.filter(|_| !matches!(token, Some(Ok(_)))) {
                token = Some(judge_token(config, &network, id, &in_record).await);
            }
        }
        steps.push(forwarding(&api, id).await);
        steps.extend(pulled_twice(config, pull, id, daemon));
    }
    steps.extend(ahead(config, &api, daemon));
    steps.extend(begun(config, pull));
    steps.extend(daemon.into_iter().flat_map(pulls));
    Pulled { steps, token }
}

/// Warns where a daemon on this host pulls the organization already, and it is not the one with this configuration.
fn pulled_twice(config: &Config, pull: &config::Pull, organization: &str, daemon: Option<&Status>) -> Option<Step> {
    let is_ours = daemon.is_some_and(|status| status.pull.iter().any(|of| of.organization == organization));
    if is_ours {
        return None;
    }
    let other = pulled_by_another(config, pull, organization)?;
    let detail = format!("{organization}: another daemon on this host pulls it into the same bucket already{other}");
    let remedy = "one daemon pulls an organization: with two, every event is stored twice";
    Some(Step::warn(PULL_ALONE, detail, remedy))
}

/// Warns of pulls that began after the time from which they are wanted now.
fn begun(config: &Config, pull: &config::Pull) -> Vec<Step> {
    let late = pull.from.map(|wanted| begun_too_late(&config.spool_dir, wanted)).unwrap_or_default();
    late.into_iter().map(|(told, remedy)| Step::warn(PLACE, told, remedy)).collect()
}

/// Warns of places that are ahead of the clock, and of those that the running daemon has found to be so.
fn ahead(config: &Config, api: &Api, daemon: Option<&Status>) -> Vec<Step> {
    let told = daemon
        .into_iter()
        .flat_map(|status| &status.pull)
        .filter_map(|of| Some(Step::warn(PLACE, of.notice.clone()?, "see that this machine's clock is right")));
    let found = ahead_of(&config.spool_dir, api.now()).into_iter().map(|(name, at)| {
        let detail = format!("{name} says that all before {} is stored, which is ahead of the clock", Timestamp(at));
        Step::warn(
            PLACE,
            detail,
            "see that this machine's clock is right; the daemon sets the place back and fetches what lies between",
        )
    });
    told.chain(found).collect()
}

fn failed(name: &'static str, error: &ApiError) -> Step {
    let exit_code = match error.kind {
        ErrorKind::Unauthorized
        | ErrorKind::Revoked
        | ErrorKind::Forbidden
        | ErrorKind::OtherOrganization(_)
        | ErrorKind::AllForbidden => DENIED,
        ErrorKind::WrongUrl(_) | ErrorKind::TooManyOrganizations(..) => CONFIG,
        _ => UNAVAILABLE,
    };
    Step::fail(name, exit_code, error.to_string(), error.remedy())
}

/// The failure of the first request, which tells whether the API can be reached at all.
fn failed_first(config: &Config, error: &ApiError) -> Step {
    match &error.kind {
        ErrorKind::Unreachable(words) => {
            Step::fail(KEY, UNAVAILABLE, error.to_string(), way_out(&config.network, words, "env0's API"))
        }
        _ => failed(KEY, error),
    }
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

/// Judges the token in a record as the pull does.
async fn judge_token(
    config: &Config,
    network: &Network,
    organization: &str,
    in_record: &SecretString,
) -> Result<OidcToken, Step> {
    let now = crate::batch::now();
    let ended = OidcToken::own(in_record.expose_secret(), Source::Record).and_then(|token| token.expires_at);
    if let Some(end) = ended.filter(|end| *end <= now) {
        let detail = format!("the token in the latest deployment's record ended at {}", Timestamp(end));
        let remedy = format!("run a deployment in env0: the pull takes its token; or {}", ways_to_a_token(config));
        return Err(Step::warn(TOKEN, detail, remedy));
    }
    let verifier = verifier_of_records(config, network, organization)
        .map_err(|error| Step::fail(TOKEN, CONFIG, error.to_string(), "correct the variable"))?;
    match verifier.verify(in_record.expose_secret(), now).await {
        Ok(mut token) => {
            token.source = Source::Record;
            Ok(token)
        }
        Err(VerifyError::Refused(refusal)) => {
            let is_issuer = refusal.reason == Reason::Issuer;
            let configured = is_issuer.then(|| format!("ENV0_S3_LOG_OIDC_ISSUER={}", config.oidc_issuer));
            let found = found_words(refusal.found.as_deref(), configured.as_deref());
            let detail = format!("the pull refuses the token in the latest deployment's record: {refusal}{found}");
            let ways = ways_to_a_token(config);
            let remedy = match is_issuer {
                true => format!(
                    "set ENV0_S3_LOG_OIDC_ISSUER to the token's issuer, or unset it, which means env0's own; or bring a token another \
                     way: {ways}"
                ),
                false => format!("bring a token another way: {ways}"),
            };
            Err(Step::fail(TOKEN, DENIED, detail, remedy))
        }
        Err(VerifyError::Unavailable(words)) => {
            let detail = format!("the token in the latest deployment's record can't be verified: {words}");
            Err(Step::fail(TOKEN, UNAVAILABLE, detail, way_out(&config.network, &words, "the issuer")))
        }
    }
}

/// A deployment's record, of which only the token is looked at.
#[derive(Deserialize)]
struct Deployment {
    id: String,
    #[serde(rename = "customEnv0EnvironmentVariables")]
    variables: Option<Variables>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Variables {
    oidc_token: Option<Value>,
}

impl Deployment {
    /// env0 documents the token, but need not fill it in.
    fn take_token(&mut self) -> Option<SecretString> {
        match self.variables.take()?.oidc_token? {
            Value::String(token) => Some(token.into()),
            _ => None,
        }
    }
}

#[derive(Deserialize)]
struct LogStep {
    name: String,
    status: String,
}

#[derive(Deserialize)]
struct LogPage {
    #[serde(rename = "events")]
    _events: Vec<IgnoredAny>,
}

/// The environments that a round lists.
struct Round {
    environments: Vec<Environment>,
    requests: usize,
    took: Duration,
}

/// The steps, and the token in the latest deployment's record.
async fn deployments(api: &Api, organization: &str, pull: &config::Pull) -> (Vec<Step>, Option<SecretString>) {
    let started = Instant::now();
    let round = match environments(api, organization).await {
        Ok((environments, requests)) => Round { environments, requests, took: started.elapsed() },
        Err(error) => return (vec![failed(ENVIRONMENTS, &explained(api, organization, error).await)], None),
    };
    let of_round = judge(&round, organization, pull.interval);
    let mut token = None;
    let of_logs = match try_logs(api, &round.environments, &mut token).await {
        Ok(tried) => Step::ok(LOGS, format!("{organization}: {tried}")),
        Err(error) => failed(LOGS, &explained(api, organization, error).await),
    };
    (vec![of_round, of_logs], token)
}

/// How long a round takes, and what part of env0's limit.
fn judge(round: &Round, organization: &str, interval: Duration) -> Step {
    let Round { environments, requests, took } = round;
    let (count, seconds) = (environments.len(), interval.as_secs().max(1));
    let a_minute = (*requests as u64 * 60).div_ceil(seconds);
    let detail = format!(
        "{organization}: {} in {} of {} ms in all, every {seconds} s: {a_minute} of the \
         {LIMIT_A_MINUTE} requests a minute that env0 allows for this list; beside it each environment's deployments \
         once an hour ({} a minute), and two requests for each deployment that runs",
        counted(count, "environment"),
        counted(*requests, "request"),
        took.as_millis(),
        counted(count.div_ceil(60), "request"),
    );
    if a_minute >= LIMIT_A_MINUTE {
        return Step::warn(ENVIRONMENTS, detail, "it is over env0's limit: raise ENV0_S3_LOG_PULL_INTERVAL");
    }
    if *took > interval.max(Duration::from_secs(1)) {
        let remedy = "a round takes longer than ENV0_S3_LOG_PULL_INTERVAL: raise it";
        return Step::warn(ENVIRONMENTS, detail, remedy);
    }
    Step::ok(ENVIRONMENTS, detail)
}

/// Asks for one environment's deployments, for the steps of the latest, and for the log of one step. Sets `token` to the one
/// in the latest deployment's record.
async fn try_logs(
    api: &Api,
    environments: &[Environment],
    token: &mut Option<SecretString>,
) -> Result<String, ApiError> {
    let deployed = environments.iter().find(|environment| environment.is_deployed);
    let Some(environment) = deployed.or(environments.first()) else {
        return Ok("there is no environment yet, so no log was tried".to_owned());
    };
    let path = ["environments", &*environment.id, "deployments"];
    let (answer, _) = api.page(Endpoint::Deployments, &path, &[("offset", "0")], &PageSize::between(1, 1)).await?;
    let latest: Vec<Deployment> = answer.parse()?;
    let Some(mut latest) = latest.into_iter().next() else {
        return Ok("deployments are readable; there is none yet, so no log was tried".to_owned());
    };
    *token = latest.take_token();
    let words = match token {
        Some(_) => "its record has an OIDC token, which the pull takes",
        None => "its record has no OIDC token, so it has to come another way",
    };
    let steps = api.get(Endpoint::Steps, &["deployments", &latest.id, "steps"], &[]).await?.parse::<Vec<LogStep>>()?;
    let Some(step) = steps.iter().find(|step| step.status != "NOT_STARTED") else {
        return Ok(format!("deployments and steps are readable; no step has begun, so no log was tried; {words}"));
    };
    let path = ["deployments", &*latest.id, "steps", &*step.name, "log"];
    match api.get(Endpoint::StepLog, &path, &[]).await {
        Ok(answer) => drop(answer.parse::<LogPage>()?),
        // A step without a log answers so; the key may ask for it.
        Err(error) if matches!(error.kind, ErrorKind::Refused(400) | ErrorKind::Gone) => {}
        Err(error) => return Err(error),
    }
    Ok(format!(
        "deployments, their steps and logs are readable (tried with the latest deployment of one environment, {}); {words}",
        latest.id
    ))
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
    let listed = answer.and_then(|answer| {
        let list: List<Forwarding> = answer.list()?;
        list.bad.map_or(Ok(list.records), Err)
    });
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
