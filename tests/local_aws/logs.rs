//! CloudWatch Logs: JSON 1.1, the five operations of env0's policy, the limits of `PutLogEvents`, faults on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::SystemTime;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::http::{self, Drop, HttpRequest, HttpResponse, answer, read_body};
use super::sessions::Sessions;
use super::{CLOUDWATCH_REGION, CLOUDWATCH_ROLE_ARN};

mod faults;
mod limits;

pub(crate) use faults::LogsFault;

/// The operation that takes events.
pub(crate) const PUT: &str = "PutLogEvents";

/// An event in a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoggedEvent {
    /// Milliseconds since 1970.
    pub(crate) timestamp: i64,
    pub(crate) message: String,
}

/// One request that arrived.
#[derive(Debug, Clone)]
pub(crate) struct LogsRequest {
    /// For instance `PutLogEvents`.
    pub(crate) action: String,
    pub(crate) group: String,
    /// How many events it brought.
    pub(crate) events: usize,
    /// Status of the answer, none where there is none (yet).
    pub(crate) status: Option<u16>,
}

/// An error of the service's: status, code, message.
pub(super) struct LogsError(pub(super) u16, pub(super) String, pub(super) String);

type Streams = BTreeMap<String, Vec<LoggedEvent>>;

#[derive(Default)]
struct State {
    groups: BTreeMap<String, Streams>,
    requests: Vec<LogsRequest>,
    faults: Vec<LogsFault>,
    denied: BTreeSet<String>,
    retention_days: Option<i64>,
}

/// The CloudWatch Logs endpoint.
pub(crate) struct Logs {
    address: OnceLock<SocketAddr>,
    sessions: Arc<Sessions>,
    state: Mutex<State>,
    held: watch::Sender<bool>,
}

impl Logs {
    pub(crate) async fn start(sessions: Arc<Sessions>) -> Arc<Logs> {
        let logs = Arc::new(Logs {
            address: OnceLock::new(),
            sessions,
            state: Mutex::default(),
            held: watch::Sender::new(false),
        });
        let handler = logs.clone();
        let address = http::serve(move |request| handler.clone().handle(request)).await;
        logs.address.get_or_init(|| address);
        logs
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address.get().unwrap())
    }

    /// The names of all groups.
    pub(crate) fn groups(&self) -> Vec<String> {
        self.state().groups.keys().cloned().collect()
    }

    /// The names of a group's streams; none where there is no such group.
    pub(crate) fn streams(&self, group: &str) -> Vec<String> {
        self.state().groups.get(group).map(|streams| streams.keys().cloned().collect()).unwrap_or_default()
    }

    /// Every event of a group, stream by stream, in the order of arrival.
    pub(crate) fn events(&self, group: &str) -> Vec<LoggedEvent> {
        self.state().groups.get(group).map(|streams| streams.values().flatten().cloned().collect()).unwrap_or_default()
    }

    /// The messages of [`Logs::events`].
    pub(crate) fn messages(&self, group: &str) -> Vec<String> {
        self.events(group).into_iter().map(|event| event.message).collect()
    }

    /// Every request that arrived, in order.
    pub(crate) fn requests(&self) -> Vec<LogsRequest> {
        self.state().requests.clone()
    }

    /// How many requests asked for `action`, answered or not.
    pub(crate) fn count(&self, action: &str) -> usize {
        self.state().requests.iter().filter(|request| request.action == action).count()
    }

    /// Takes `action`, for instance `PutLogEvents`, out of the role's policy until [`Logs::heal`].
    pub(crate) fn deny(&self, action: &str) {
        self.state().denied.insert(action.to_owned());
    }

    /// Makes a fault happen; of several that match a request the oldest does.
    pub(crate) fn inject(&self, fault: LogsFault) {
        self.state().faults.push(fault);
    }

    /// Ends every fault and denial, and lets go what was held.
    pub(crate) fn heal(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.denied.clear();
        drop(state);
        self.release();
    }

    /// Holds every request that arrives, unread, until [`Logs::release`].
    pub(crate) fn hold(&self) {
        self.held.send_replace(true);
    }

    /// Lets held requests go on.
    pub(crate) fn release(&self) {
        self.held.send_replace(false);
    }

    /// Deletes a group with all that it holds, as an operator would.
    pub(crate) fn delete_group(&self, group: &str) {
        self.state().groups.remove(group);
    }

    /// Deletes a group's streams.
    pub(crate) fn delete_streams(&self, group: &str) {
        self.state().groups.entry(group.to_owned()).or_default().clear();
    }

    /// The retention of every group: older events count as expired.
    pub(crate) fn set_retention_days(&self, days: i64) {
        self.state().retention_days = Some(days);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    async fn handle(self: Arc<Self>, request: HttpRequest) -> Result<HttpResponse, Drop> {
        let mut held = self.held.subscribe();
        // The sender lives as long as the service, so waiting can't fail.
        let _ = held.wait_for(|held| !held).await;
        let target = header(&request, "x-amz-target");
        let action = target.strip_prefix("Logs_20140328.").unwrap_or_default().to_owned();
        let identity = self.judge(&request, &action);
        let body = read_body(request).await?;
        let input: Value = serde_json::from_slice(&body).unwrap_or_default();
        let group = input["logGroupName"].as_str().unwrap_or_default().to_owned();
        let events = input["logEvents"].as_array().map_or(0, Vec::len);
        let (index, fault) = {
            let mut state = self.state();
            state.requests.push(LogsRequest { action: action.clone(), group, events, status: None });
            (state.requests.len() - 1, state.next_fault(&action))
        };
        let serve = || self.state().answered(identity, &action, &input);
        let response = match fault {
            None => reply(serve()),
            Some(fault) => fault.happen(serve).await?,
        };
        self.state().requests[index].status = Some(response.status().as_u16());
        Ok(response)
    }

    /// Whose request it is, and whether that may do it. The signature itself is not checked.
    fn judge(&self, request: &HttpRequest, action: &str) -> Result<(), LogsError> {
        let refused = |code: &str, message: &str| Err(LogsError(400, code.to_owned(), message.to_owned()));
        let authorization = header(request, "authorization");
        let scope = authorization.split_once("Credential=").and_then(|(_, rest)| rest.split_once(','));
        let scope: Vec<&str> = scope.map(|(scope, _)| scope.split('/').collect()).unwrap_or_default();
        let [access_key, _, region, "logs", "aws4_request"] = scope[..] else {
            return refused("MissingAuthenticationTokenException", "Missing Authentication Token");
        };
        if region != CLOUDWATCH_REGION {
            return refused("InvalidSignatureException", "Credential should be scoped to a valid region.");
        }
        let session = self.sessions.get(access_key);
        let session = session.filter(|session| header(request, "x-amz-security-token") == session.token);
        let Some(session) = session else {
            return refused("UnrecognizedClientException", "The security token included in the request is invalid.");
        };
        if session.expires <= SystemTime::now() {
            return refused("ExpiredTokenException", "The security token included in the request is expired");
        }
        if session.role != CLOUDWATCH_ROLE_ARN || self.state().denied.contains(action) {
            let message = format!(
                "User: {} is not authorized to perform: logs:{action} on resource because no identity-based policy \
                 allows the logs:{action} action",
                session.role
            );
            return refused("AccessDeniedException", &message);
        }
        Ok(())
    }
}

impl State {
    fn next_fault(&mut self, action: &str) -> Option<LogsFault> {
        let index = self.faults.iter().position(|fault| fault.matches(action))?;
        let fault = self.faults[index].clone();
        if self.faults[index].use_up() {
            self.faults.remove(index);
        }
        Some(fault)
    }

    fn answered(&mut self, identity: Result<(), LogsError>, action: &str, input: &Value) -> Result<Value, LogsError> {
        identity?;
        let name = |field: &str| input[field].as_str().unwrap_or_default().to_owned();
        let (group, stream) = (name("logGroupName"), name("logStreamName"));
        let exists =
            || LogsError(400, "ResourceAlreadyExistsException".into(), "The specified log already exists".into());
        let missing = |what| {
            LogsError(400, "ResourceNotFoundException".into(), format!("The specified log {what} does not exist."))
        };
        match action {
            "CreateLogGroup" => match self.groups.contains_key(&group) {
                true => return Err(exists()),
                false => drop(self.groups.insert(group, Streams::new())),
            },
            "CreateLogStream" => {
                let streams = self.groups.get_mut(&group).ok_or_else(|| missing("group"))?;
                if streams.contains_key(&stream) {
                    return Err(exists());
                }
                streams.insert(stream, Vec::new());
            }
            "DescribeLogGroups" => {
                let prefix = name("logGroupNamePrefix");
                let found = self.groups.keys().filter(|group| group.starts_with(&prefix));
                return Ok(json!({"logGroups": found.map(|group| json!({"logGroupName": group})).collect::<Vec<_>>()}));
            }
            "DescribeLogStreams" => {
                let (streams, prefix) =
                    (self.groups.get(&group).ok_or_else(|| missing("group"))?, name("logStreamNamePrefix"));
                let found = streams.keys().filter(|stream| stream.starts_with(&prefix));
                return Ok(json!({"logStreams": found.map(|name| json!({"logStreamName": name})).collect::<Vec<_>>()}));
            }
            PUT => {
                let retention = self.retention_days;
                let streams = self.groups.get_mut(&group).ok_or_else(|| missing("group"))?;
                let events = streams.get_mut(&stream).ok_or_else(|| missing("stream"))?;
                let (taken, answer) = limits::judge(&input["logEvents"], retention)?;
                events.extend(taken);
                return Ok(answer);
            }
            _ => return Err(LogsError(400, "UnknownOperationException".into(), String::new())),
        }
        Ok(Value::Null)
    }
}

fn header(request: &HttpRequest, name: &str) -> String {
    let value = request.headers().get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

fn reply(outcome: Result<Value, LogsError>) -> HttpResponse {
    let (status, body) = match outcome {
        Ok(Value::Null) => (200, String::new()),
        Ok(body) => (200, body.to_string()),
        Err(LogsError(status, code, message)) => (status, json!({"__type": code, "message": message}).to_string()),
    };
    let mut response = answer(status, "application/x-amz-json-1.1", body);
    let id = hyper::header::HeaderValue::from_static("5b8a2c1e-local-logs");
    response.headers_mut().insert("x-amzn-requestid", id);
    response
}
