//! What can go wrong with a request to CloudWatch Logs.

use serde_json::{Value, json};

use super::{LogsError, PUT, reply};
use crate::local_aws::http::{Drop, HttpResponse, answer};

/// A fault, for every matching request until [`super::Logs::heal`], or for a number of them. For `PutLogEvents` unless
/// [`LogsFault::on`] says otherwise.
#[derive(Debug, Clone)]
pub(crate) struct LogsFault {
    kind: Kind,
    action: &'static str,
    /// How many more requests it hits; none is all of them.
    left: Option<usize>,
}

#[derive(Debug, Clone)]
enum Kind {
    Error { status: u16, code: &'static str, message: &'static str },
    Foreign { status: u16, body: &'static str },
    Success { body: &'static str },
    LoseResponse,
    DropConnection,
    Hang,
    Reject(Value),
}

impl LogsFault {
    fn new(kind: Kind) -> LogsFault {
        LogsFault { kind, action: PUT, left: None }
    }

    /// CloudWatch's own error document, without carrying anything out.
    pub(crate) fn error(status: u16, code: &'static str, message: &'static str) -> LogsFault {
        LogsFault::new(Kind::Error { status, code, message })
    }

    /// Too many requests.
    pub(crate) fn throttling() -> LogsFault {
        LogsFault::error(400, "ThrottlingException", "Rate exceeded")
    }

    /// 503 of CloudWatch's.
    pub(crate) fn unavailable() -> LogsFault {
        LogsFault::error(503, "ServiceUnavailableException", "The service cannot complete the request.")
    }

    /// 500 of CloudWatch's.
    pub(crate) fn internal_failure() -> LogsFault {
        LogsFault::error(500, "InternalFailure", "An internal error occurred.")
    }

    /// These events are refused, now and later.
    pub(crate) fn invalid_parameter() -> LogsFault {
        LogsFault::error(400, "InvalidParameterException", "Log event is not valid")
    }

    /// A page of something that is no CloudWatch, whatever its status.
    pub(crate) fn foreign(status: u16, body: &'static str) -> LogsFault {
        LogsFault::new(Kind::Foreign { status, body })
    }

    /// A 200 with CloudWatch's headers and this body, without carrying anything out.
    pub(crate) fn success(body: &'static str) -> LogsFault {
        LogsFault::new(Kind::Success { body })
    }

    /// Carries the request out, then drops the connection without an answer.
    pub(crate) fn lose_response() -> LogsFault {
        LogsFault::new(Kind::LoseResponse)
    }

    /// Drops the connection without carrying anything out.
    pub(crate) fn drop_connection() -> LogsFault {
        LogsFault::new(Kind::DropConnection)
    }

    /// Never answers.
    pub(crate) fn hang() -> LogsFault {
        LogsFault::new(Kind::Hang)
    }

    /// Carries the request out, and answers with this `rejectedLogEventsInfo`.
    pub(crate) fn reject(info: Value) -> LogsFault {
        LogsFault::new(Kind::Reject(info))
    }

    /// Ends after `times` requests.
    pub(crate) fn times(self, times: usize) -> LogsFault {
        LogsFault { left: Some(times), ..self }
    }

    /// For `action` in place of `PutLogEvents`.
    pub(crate) fn on(self, action: &'static str) -> LogsFault {
        LogsFault { action, ..self }
    }

    pub(super) fn matches(&self, action: &str) -> bool {
        self.action == action
    }

    /// Counts one request; true when that was the last.
    pub(super) fn use_up(&mut self) -> bool {
        self.left = self.left.map(|left| left - 1);
        self.left == Some(0)
    }

    /// `serve` carries the request out.
    pub(super) async fn happen(self, serve: impl FnOnce() -> Result<Value, LogsError>) -> Result<HttpResponse, Drop> {
        match self.kind {
            Kind::Error { status, code, message } => Ok(reply(Err(LogsError(status, code.into(), message.into())))),
            Kind::Foreign { status, body } => Ok(answer(status, "text/html", body)),
            Kind::Success { body } => Ok(reply(Ok(serde_json::from_str(body).unwrap()))),
            Kind::LoseResponse => {
                let _ = serve();
                Err(Drop)
            }
            Kind::DropConnection => Err(Drop),
            Kind::Hang => std::future::pending().await,
            Kind::Reject(info) => Ok(reply(serve().map(|_| json!({"rejectedLogEventsInfo": info})))),
        }
    }
}
