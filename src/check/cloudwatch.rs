//! The steps that try CloudWatch Logs, where it is configured; or, without a token of their
//! own, the running daemon's word.

use super::beside;
use super::online::{self, Own};
use super::report::Step;
use crate::batch::LogType;
use crate::cloudwatch::calls::Event;
use crate::cloudwatch::error::{LogsError, LogsErrorKind};
use crate::cloudwatch::logs::{Found, Logs};
use crate::config::Config;
use crate::credentials::Role;
use crate::exit_code::UNAVAILABLE;
use crate::status::{CloudWatchTypeStatus, Status};

const SESSION: &str = "cloudwatch";
const GROUP: &str = "log-group";
const WRITE: &str = "log-write";
const MESSAGE: &str = "{\"check\":\"env0-s3-logs\"}";

pub(super) async fn steps(config: &Config, own: &Own, daemon: Option<&Status>, write: bool) -> Vec<Step> {
    let Some(cloudwatch) = &config.cloudwatch else { return Vec::new() };
    let network = &own.network;
    let token = match (own.token(daemon, write), daemon) {
        (Some(token), None) => token,
        (Some(token), Some(_)) if !online::has_ended(token) => token,
        (_, Some(status)) => return of_daemon(status),
        (None, None) => return vec![Step::skipped(SESSION, "there is no token")],
    };
    let role = Role::of_cloudwatch(cloudwatch);
    let credentials = online::with_a_session(&role, token, config, network).await;
    let mut steps = vec![online::exchange(SESSION, &role, &token.claims(), &credentials, config)];
    if credentials.session().is_none() {
        return steps;
    }
    let logs = |instance: &str| Logs::new(cloudwatch, network, credentials.clone(), instance);
    let (daemons, own) = (logs(&online::instance(config)), logs("check"));
    for log_type in LogType::ALL {
        // Whether events may be written is told by the running daemon alone, unless one is written here.
        steps.push(match daemon.and_then(|status| refused_of(status, log_type)) {
            Some(refused) if !write => refused,
            _ => group(&daemons, log_type).await,
        });
        if write {
            steps.push(one_event(&own, log_type).await);
        }
    }
    steps
}

/// What the running daemon tells of its way to CloudWatch.
fn of_daemon(status: &Status) -> Vec<Step> {
    let Some(cloudwatch) = &status.cloudwatch else {
        return vec![Step::skipped(SESSION, "the running daemon sends nothing to CloudWatch Logs")];
    };
    let group = |of: &CloudWatchTypeStatus| {
        refused(of).unwrap_or_else(|| match of.last_sent {
            Some(last) => Step::ok(GROUP, format!("the running daemon wrote to {} at {last}", of.group)),
            None => Step::skipped(GROUP, format!("the running daemon has written nothing to {} yet", of.group)),
        })
    };
    let session = beside::daemon_sts(SESSION, Some(&cloudwatch.credentials));
    std::iter::once(session).chain(cloudwatch.types.iter().map(group)).collect()
}

/// Why the running daemon can't write to the log group; nothing where it can.
fn refused(of: &CloudWatchTypeStatus) -> Option<Step> {
    let error = of.error.as_ref()?;
    let kind = error.kind.as_deref().and_then(LogsErrorKind::of_label);
    let detail = format!("the running daemon can't write to {} since {}: {}", of.group, error.since, error.message);
    let remedy = error.remedy.clone().unwrap_or_default();
    let step = Step::fail(GROUP, kind.map_or(UNAVAILABLE, LogsErrorKind::exit_code), detail, remedy);
    Some(step.of_service(error.code.clone(), error.request_id.clone()))
}

fn refused_of(status: &Status, log_type: LogType) -> Option<Step> {
    status.cloudwatch.as_ref()?.types.iter().find(|of| of.log_type == log_type).and_then(refused)
}

/// Looks for group and stream without making them.
async fn group(logs: &Logs, log_type: LogType) -> Step {
    let (name, stream) = (logs.group(log_type), logs.stream());
    match logs.find(log_type).await {
        Ok(Found::Stream) => Step::ok(GROUP, format!("{name} has the stream {stream}")),
        Ok(Found::Group) => Step::ok(GROUP, format!("{name} is there; {stream} is made with the first events")),
        Ok(Found::Nothing) => {
            Step::ok(GROUP, format!("{name} is not there; it is made with the first events, if the role may (--write tries it)"))
        }
        Err(error) if error.kind == LogsErrorKind::Denied => Step::warn(
            GROUP,
            format!("{name} can't be looked for: {}", error.message),
            "nothing for delivery, which asks for logs:PutLogEvents, logs:CreateLogStream and logs:CreateLogGroup alone \
             (--write tries them); allow logs:DescribeLogStreams to have this step judged",
        )
        .of_service(error.code, error.request_id),
        Err(error) => failed(GROUP, error),
    }
}

async fn one_event(logs: &Logs, log_type: LogType) -> Step {
    let event = Event { timestamp: crate::batch::now().timestamp_millis(), message: MESSAGE.to_owned() };
    match logs.put(log_type, &[event]).await {
        Ok(_) => Step::ok(WRITE, format!("wrote one event to {}, stream {}", logs.group(log_type), logs.stream())),
        Err(error) => failed(WRITE, error),
    }
}

fn failed(name: &'static str, error: LogsError) -> Step {
    Step::fail(name, error.kind.exit_code(), error.message, error.remedy).of_service(error.code, error.request_id)
}
