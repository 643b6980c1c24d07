//! Environments, their deployments and the logs of their steps.

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use super::{ORGANIZATION, State};

/// How a log says where the next page begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Cursor {
    /// A number.
    #[default]
    Number,
    /// A string.
    Text,
    /// A number, and none behind the last page: the old one is to be kept.
    NoneAtTheEnd,
    /// None, and yet each page says that there is more.
    NeverThoughMore,
}

/// What env0 doesn't publish of its logs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogShape {
    pub(crate) cursor: Cursor,
    /// Whether a page begins with the last event of the page before.
    pub(crate) repeats: bool,
    pub(crate) page_events: usize,
    /// Empty pages before the first event, each of which names a next one.
    pub(crate) empty_pages: usize,
}

impl Default for LogShape {
    fn default() -> LogShape {
        LogShape { cursor: Cursor::Number, repeats: false, page_events: 1000, empty_pages: 0 }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Environment {
    pub(crate) id: String,
    /// Whose it is.
    pub(crate) organization: String,
    pub(crate) moved: usize,
    /// Newest first.
    pub(crate) deployments: Vec<Deployment>,
}

#[derive(Debug, Clone)]
pub(crate) struct Deployment {
    pub(crate) id: String,
    pub(crate) status: &'static str,
    /// `None` is a record without any time.
    pub(crate) created_at: Option<String>,
    pub(crate) finished_at: Option<String>,
    /// Whether its environment names it as its latest deployment.
    pub(crate) moves_environment: bool,
    pub(crate) oidc_token: Option<String>,
    pub(crate) steps: Vec<Step>,
}

#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) status: &'static str,
    pub(crate) lines: usize,
    pub(crate) retries: usize,
    /// How often the log began anew, with the same ids.
    pub(crate) begun_anew: usize,
    /// Among `lines`, how many the first page that is asked for doesn't show yet.
    pub(crate) late: usize,
}

impl Environment {
    pub(crate) fn new(id: &str) -> Environment {
        Environment { id: id.to_owned(), organization: ORGANIZATION.to_owned(), moved: 0, deployments: Vec::new() }
    }
}

impl Deployment {
    /// One that was made now and runs, with a step.
    pub(crate) fn running(id: &str, step: &str, lines: usize) -> Deployment {
        Deployment {
            id: id.to_owned(),
            status: "IN_PROGRESS",
            created_at: Some(rfc3339(Utc::now())),
            finished_at: None,
            moves_environment: true,
            oidc_token: None,
            steps: vec![Step::running(step, lines)],
        }
    }

    /// It was made at `time`.
    pub(crate) fn made_at(self, time: DateTime<Utc>) -> Deployment {
        Deployment { created_at: Some(rfc3339(time)), ..self }
    }

    /// It ended at `time`, as its record says.
    pub(crate) fn ended_at(self, time: DateTime<Utc>) -> Deployment {
        Deployment { finished_at: Some(rfc3339(time)), ..self.ended() }
    }

    /// It and its steps have ended.
    pub(crate) fn ended(mut self) -> Deployment {
        self.status = "SUCCESS";
        self.steps.iter_mut().for_each(|step| step.status = "SUCCESS");
        self
    }

    /// With secrets where env0's have some.
    fn record(&self, environment: &str, padding: usize) -> Value {
        json!({
            "id": self.id, "environmentId": environment, "type": "deploy", "status": self.status,
            "createdAt": self.created_at, "queuedAt": self.created_at, "startedAt": self.created_at, "finishedAt": self.finished_at, "startedBy": "auth0|1", "startedByUser": {"email": "dev@acme.io", "name": "canary"},
            "output": format!("canary-output{}", "x".repeat(padding)), "plan": "canary-plan", "error": "canary-error", "triggerName": "vcs", "blueprintName": "network",
            "blueprintRevision": "main", "blueprintRepository": {"url": "canary"}, "prNumber": "7", "resourceCount": 12,
            "planSummary": {"added": 1, "changed": 0, "destroyed": 0, "imported": 2, "secret": "canary"},
            "variables": [{"name": "PASSWORD", "value": "canary-value"}],
            "customEnv0EnvironmentVariables": {"oidcToken": self.oidc_token, "vcsAccessToken": "canary-vcs"},
        })
    }
}

impl Step {
    pub(crate) fn running(name: &str, lines: usize) -> Step {
        Step { name: name.to_owned(), status: "IN_PROGRESS", lines, retries: 0, begun_anew: 0, late: 0 }
    }
}

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Event number `number` of a step, as env0 sends it.
pub(crate) fn event(step: &str, number: usize) -> String {
    format!(
        r#"{{"eventId":"{step}-{number}", "message":"\u001b[32mline {number}\u001b[0m","level":"info","timestamp":{}}}"#,
        1_790_000_000_000_u64 + number as u64
    )
}

/// The stored line of that event.
pub(crate) fn line(environment: &str, deployment: &str, step: &str, number: usize) -> String {
    line_of(ORGANIZATION, environment, deployment, step, number)
}

fn line_of(organization: &str, environment: &str, deployment: &str, step: &str, number: usize) -> String {
    let event = event(step, number);
    let inner = event.strip_suffix('}').unwrap();
    format!(
        r#"{inner},"deploymentLogId":"{deployment}","stepName":"{step}","environmentId":"{environment}","environmentName":"name of {environment}","projectId":"project-1","organizationId":"{organization}","deploymentType":"deploy"}}"#
    )
}

/// Every line of all logs, without those that end a deployment.
pub(crate) fn all_lines(state: &State) -> Vec<String> {
    let mut lines = Vec::new();
    for environment in &state.environments {
        for deployment in &environment.deployments {
            for step in &deployment.steps {
                let Environment { organization, id, .. } = environment;
                let line = |number| line_of(organization, id, &deployment.id, &step.name, number);
                lines.extend((0..step.lines).map(line));
            }
        }
    }
    lines
}

/// `records` with the variables that a test has chosen, which may be too many to be built of values.
fn with_variables(state: &State, records: String) -> String {
    const VARIABLES: &str = r#"[{"name":"PASSWORD","value":"canary-value"}]"#;
    if state.variables.is_empty() { records } else { records.replace(VARIABLES, &state.variables) }
}

/// The answer to a path; none where there is no such thing.
pub(super) fn answer(state: &State, path: &[String], query: &dyn Fn(&str) -> Option<String>) -> Option<(u16, String)> {
    let path: Vec<&str> = path.iter().map(|part| &**part).collect();
    let deployment = |id: &str| {
        state
            .environments
            .iter()
            .flat_map(|environment| &environment.deployments)
            .find(|deployment| deployment.id == id)
    };
    let window = || {
        let number = |name: &str, default| query(name).and_then(|number| number.parse().ok()).unwrap_or(default);
        let offset = if state.ignores_offset { 0 } else { number("offset", 0) };
        (offset, number("limit", 100_usize).min(100))
    };
    Some(match path[..] {
        ["environments"] => {
            let (offset, limit) = window();
            let record = |environment: &Environment| {
                let latest = environment.deployments.iter().find(|deployment| deployment.moves_environment);
                json!({
                    "id": environment.id, "name": format!("name of {}", environment.id), "projectId": "project-1",
                    "updatedAt": format!("moved {}", environment.moved),
                    "latestDeploymentLogId": latest.map(|latest| &latest.id),
                    "latestDeploymentLog": latest.map(|latest| latest.record(&environment.id, state.padding)),
                })
            };
            let organization = query("organizationId").unwrap_or_default();
            let environments = state.environments.iter().filter(|environment| environment.organization == organization);
            let records = state.odd_records.iter().cloned().chain(environments.map(&record));
            let beyond = (0..).map(|number| record(&Environment::new(&format!("beyond-{number}"))));
            let page: Vec<Value> = match state.endless {
                true => records.chain(beyond).skip(offset).take(limit).collect(),
                false => records.skip(offset).take(limit).collect(),
            };
            (200, with_variables(state, Value::from(page).to_string()))
        }
        ["environments", id, "deployments"] => {
            let environment = state.environments.iter().find(|environment| environment.id == id)?;
            let (offset, limit) = window();
            // One that was made since the page before has moved the others.
            let offset = if state.pages_move { offset.saturating_sub(1) } else { offset };
            let page = environment.deployments.iter().skip(offset).take(limit);
            let page = Value::from_iter(page.map(|deployment| deployment.record(id, state.padding)));
            (200, with_variables(state, page.to_string()))
        }
        ["deployments", id, "steps"] => {
            let steps = deployment(id)?.steps.iter().enumerate();
            let steps = steps.map(|(order, step)| json!({"id": format!("{id}-{order}"), "name": step.name, "order": order, "status": step.status, "retryCount": step.retries}));
            (200, Value::from_iter(state.odd_steps.iter().cloned().chain(steps)).to_string())
        }
        ["deployments", id, "steps", name, "log"] => {
            let step = deployment(id)?.steps.iter().find(|step| step.name == name)?;
            if step.status == "NOT_STARTED" {
                return Some((400, json!({"message": "the step has not started"}).to_string()));
            }
            let LogShape { cursor, repeats, page_events, empty_pages } = state.log_shape;
            let from: usize = query("startTime").map_or(0, |start| start.trim_start_matches("t-").parse().unwrap());
            if from < empty_pages {
                return Some((200, format!(r#"{{"events":[],"nextStartTime":{},"hasMoreLogs":true}}"#, from + 1)));
            }
            let from = from - empty_pages;
            let first = if repeats { from.saturating_sub(1) } else { from };
            let request = format!("/deployments/{id}/steps/{}/log", super::encoded(name));
            let first_time = state.requests.iter().filter(|asked| asked.starts_with(&request)).count() == 1;
            let lines = if first_time { step.lines - step.late } else { step.lines };
            let end = (from + page_events).min(lines);
            let more = end < lines;
            let again = "again: ".repeat(step.begun_anew);
            let of = |number| event(&step.name, number).replace("line ", &format!("{again}line "));
            let events = (first..end).map(of).collect::<Vec<_>>().join(",");
            let more = more || cursor == Cursor::NeverThoughMore;
            let next = match cursor {
                Cursor::NeverThoughMore => String::new(),
                Cursor::NoneAtTheEnd if !more => String::new(),
                Cursor::Text => format!(r#","nextStartTime":"t-{}""#, end + empty_pages),
                _ => format!(r#","nextStartTime":{}"#, end + empty_pages),
            };
            (200, format!(r#"{{"events":[{events}]{next},"hasMoreLogs":{more}}}"#))
        }
        _ => return None,
    })
}
