//! What a failure of CloudWatch Logs means: to the lane, to the metrics and to a person.

use std::fmt;
use std::time::Duration;

use aws_sdk_cloudwatchlogs::error::SdkError;
use aws_sdk_cloudwatchlogs::operation::RequestId;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use crate::config;
use crate::exit_code::{CONFIG, DENIED, UNAVAILABLE};
use crate::metric_table;
use crate::network::{broken_words, cut_off, foreign_name, foreign_words, retry_after, way_out};

/// Why a request failed. Displays as what happened and what to do about it.
#[derive(Debug, Clone)]
pub struct LogsError {
    /// What to do about it.
    pub kind: LogsErrorKind,
    /// What the answer's `Retry-After` asks for, 60 s at most.
    pub retry_after: Option<Duration>,
    /// HTTP status, where there was an answer.
    pub status: Option<u16>,
    /// CloudWatch's own code.
    pub code: Option<String>,
    /// For AWS support.
    pub request_id: Option<String>,
    /// What happened, in a sentence.
    pub message: String,
    /// What an operator can do, and the section on it.
    pub remedy: String,
}

impl fmt::Display for LogsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message, self.remedy)
    }
}

impl std::error::Error for LogsError {}

metric_table::label_values! {
    "env0_s3_logs_cloudwatch_errors_total", "error":
    /// The closed set of failures.
    pub enum LogsErrorKind {
        /// Nothing to sign with: no request was made.
        NoSession = "no_session",
        /// The session has expired, or isn't known to CloudWatch.
        SessionRejected = "session_rejected",
        /// The role may not do this.
        Denied = "denied",
        /// Group or stream are not there.
        Missing = "missing",
        /// The request was signed for another region.
        WrongRegion = "wrong_region",
        /// Our clock and CloudWatch's differ by too much.
        ClockSkew = "clock_skew",
        /// CloudWatch doesn't take these events, now or later.
        Events = "events",
        /// Too many requests.
        Throttled = "throttled",
        /// No answer in time.
        Timeout = "timeout",
        /// DNS, TCP, TLS, proxy, or a connection that broke.
        Unreachable = "unreachable",
        /// Any 5xx, or another request for the same group is under way.
        ServerError = "server_error",
        /// A proxy asks for credentials of its own.
        ProxyRefused = "proxy_refused",
        /// What answered is not CloudWatch, or doesn't show that it is.
        NotCloudWatch = "not_cloudwatch",
        /// Anything else.
        Other = "other",
    }
}

impl LogsErrorKind {
    /// The kind that a label names.
    pub fn of_label(label: &str) -> Option<LogsErrorKind> {
        LogsErrorKind::ALL.into_iter().find(|kind| kind.as_str() == label)
    }

    /// The exit code of a check that finds it.
    pub fn exit_code(self) -> u8 {
        use LogsErrorKind::*;
        match self {
            Denied | SessionRejected | NoSession | ClockSkew => DENIED,
            WrongRegion => CONFIG,
            Missing | Events | Throttled | Timeout | Unreachable | ServerError | ProxyRefused | NotCloudWatch
            | Other => UNAVAILABLE,
        }
    }
}

/// The operation that takes events.
pub(super) const PUT: &str = "PutLogEvents";

/// A request, as far as its failure tells of it.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    /// CloudWatch's name of the operation.
    pub(super) operation: &'static str,
    pub(super) group: &'a str,
    pub(super) role_arn: &'a str,
    pub(super) region: &'a str,
    /// Host and port.
    pub(super) server: &'a str,
    pub(super) proxies: &'a config::Network,
    /// Removed from foreign text, in whole and in part.
    pub(super) secrets: &'a [&'a str],
}

impl LogsError {
    /// A failure without an answer.
    pub(super) fn unanswered(kind: LogsErrorKind, words: &str, call: &Call<'_>) -> LogsError {
        LogsError {
            kind,
            retry_after: None,
            status: None,
            code: None,
            request_id: None,
            message: format!("{} at {}: {words}", call.operation, call.server),
            remedy: remedy(kind, words, call),
        }
    }

    /// A success that nothing shows to be CloudWatch's, or that holds an error document (`error_type`): nothing may have
    /// been done.
    pub(super) fn unconfirmed(error_type: Option<&str>, call: &Call<'_>) -> LogsError {
        let code = error_type.and_then(|error_type| foreign_name(error_type, call.secrets));
        let what = match error_type {
            Some(_) => format!("with an error document, {}", code.as_deref().unwrap_or("of no type")),
            None => "without a mark of CloudWatch's".to_owned(),
        };
        let words = format!("a success {what}, which confirms nothing: it is tried again");
        // Not as its code, which other calls' answers are judged by.
        LogsError::unanswered(LogsErrorKind::NotCloudWatch, &words, call)
    }

    pub(super) fn of<E>(error: &SdkError<E, HttpResponse>, call: &Call<'_>) -> LogsError
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let Some(response) = error.raw_response() else {
            let kind = match error {
                SdkError::ConstructionFailure(_) => LogsErrorKind::Other,
                _ => LogsErrorKind::Unreachable,
            };
            return LogsError::unanswered(kind, &broken_words(error, call.secrets), call);
        };
        let status = response.status().as_u16();
        if let Some(words) = cut_off(error, call.secrets) {
            let unanswered = LogsError::unanswered(LogsErrorKind::Unreachable, &words, call);
            return LogsError { status: Some(status), ..unanswered };
        }
        let header = |name| response.headers().get(name);
        let request_id = error.request_id().and_then(|id| foreign_name(id, call.secrets));
        // Anything in between can answer with JSON. CloudWatch's says what type of error it is.
        let body = response.body().bytes().unwrap_or_default();
        let is_cloudwatchs = request_id.is_some() || memchr::memmem::find(body, b"\"__type\"").is_some();
        let code = error.code().filter(|_| is_cloudwatchs).and_then(|code| foreign_name(code, call.secrets));
        let words = foreign_words(error.message().unwrap_or("no reason given"), call.secrets);
        let kind = classify(status, code.as_deref(), error.message().unwrap_or_default(), call.operation);
        let said = match &code {
            // CloudWatch repeats the values that it refuses: nothing of an event may be shown.
            Some(code) if call.operation == PUT && matches!(kind, LogsErrorKind::Events | LogsErrorKind::Other) => {
                format!("{code}, HTTP {status}")
            }
            Some(code) => format!("{code}, HTTP {status}: {words}"),
            None => {
                let content_type = header("content-type").and_then(|kind| foreign_name(kind, &[]));
                let content_type = content_type.unwrap_or_else(|| "no content type".to_owned());
                format!("HTTP {status} without CloudWatch's error document, {content_type}")
            }
        };
        LogsError {
            retry_after: header("retry-after").and_then(|value| retry_after(value, crate::batch::now())),
            status: Some(status),
            code,
            request_id,
            remedy: remedy(kind, &words, call),
            ..LogsError::unanswered(kind, &said, call)
        }
    }
}

/// What an answer means: by CloudWatch's own code, else by what anybody's status tells.
fn classify(status: u16, code: Option<&str>, words: &str, operation: &str) -> LogsErrorKind {
    use LogsErrorKind::*;
    let words = words.to_lowercase();
    let has = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
    match code.unwrap_or_default() {
        code if status == 413 && operation == PUT && !code.is_empty() => Events,
        "ResourceNotFoundException" => Missing,
        "AccessDeniedException" | "AccessDenied" | "NotAuthorized" => Denied,
        "ExpiredTokenException" | "ExpiredToken" | "UnrecognizedClientException" | "InvalidClientTokenId" => {
            SessionRejected
        }
        "InvalidSignatureException" | "SignatureDoesNotMatch" if has(&["region"]) => WrongRegion,
        "InvalidSignatureException" if has(&["expired", "not yet current"]) => ClockSkew,
        "RequestExpired" | "RequestTimeTooSkewed" | "RequestInTheFuture" => ClockSkew,
        // The name of the group or stream is refused: no half of the events passes either.
        "InvalidParameterException" | "ValidationException" | "ValidationError"
            if has(&["loggroup", "log group", "logstream", "log stream", "kms"])
                && !has(&["logevents", "log event"]) =>
        {
            Other
        }
        "InvalidParameterException" | "SerializationException" | "ValidationException" | "ValidationError"
            if operation == PUT =>
        {
            Events
        }
        "ThrottlingException" | "Throttling" | "TooManyRequestsException" | "RequestLimitExceeded" => Throttled,
        "OperationAbortedException" => ServerError,
        "UnknownOperationException" | "UnknownOperation" | "MissingAuthenticationTokenException" => NotCloudWatch,
        "" => match status {
            407 => ProxyRefused,
            408 => Timeout,
            429 => Throttled,
            500.. => ServerError,
            _ => NotCloudWatch,
        },
        _ if status == 429 => Throttled,
        _ if status >= 500 => ServerError,
        _ => Other,
    }
}

const SECTION: &str = "see config/README.md#cloudwatch-logs";

fn remedy(kind: LogsErrorKind, words: &str, call: &Call<'_>) -> String {
    use LogsErrorKind::*;
    let Call { operation, group, role_arn, region, .. } = call;
    let remedy = match kind {
        NoSession => return "see the credentials in /status, and config/README.md#no-token".to_owned(),
        SessionRejected => format!(
            "a new session is fetched; if this persists, look at the clock, and whether the account uses the region \
             ENV0_CLOUDWATCH_AWS_REGION={region}"
        ),
        Denied => format!(
            "allow the role {role_arn} logs:{operation} on the log group {group}, as in config/cloudwatch-policy.json"
        ),
        Missing => format!("nothing: the log group {group} and its stream are made again"),
        WrongRegion => format!(
            "set ENV0_CLOUDWATCH_AWS_REGION, now {region}, to the region of the log groups and of the endpoint, if \
             AWS_ENDPOINT_URL_CLOUDWATCH_LOGS names one"
        ),
        ClockSkew => "set this machine's clock right".to_owned(),
        Events => "nothing: the call is divided, and an event that is refused alone is skipped; S3 has it".to_owned(),
        Throttled => "nothing: it is tried again".to_owned(),
        Timeout | Unreachable => way_out(call.proxies, words, "CloudWatch Logs"),
        ServerError => "it is tried again; if this persists, look at CloudWatch, at a proxy on the way to it, and at AWS_ENDPOINT_URL_CLOUDWATCH_LOGS".to_owned(),
        ProxyRefused => {
            "give the proxy's user and password in HTTPS_PROXY or HTTP_PROXY, or name CloudWatch's host in NO_PROXY".to_owned()
        }
        NotCloudWatch => {
            "look at what answers in CloudWatch's place: a proxy (HTTPS_PROXY, NO_PROXY), a firewall, a login page, or a \
             server at AWS_ENDPOINT_URL_CLOUDWATCH_LOGS that is no CloudWatch"
                .to_owned()
        }
        Other => format!(
            "look the code up in CloudWatch's documentation, and whether the log group {group} and its stream can have \
             their names"
        ),
    };
    format!("{remedy}; {SECTION}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_not_to_blame_where_the_name_of_a_group_or_stream_is_refused() {
        for (words, kind) in [
            (
                "1 validation error detected: Value 'a b' at 'logGroupName' failed to satisfy constraint",
                LogsErrorKind::Other,
            ),
            (
                "1 validation error detected: Value '*' at 'logStreamName' failed to satisfy constraint",
                LogsErrorKind::Other,
            ),
            ("The log stream name is not valid", LogsErrorKind::Other),
            ("The specified KMS key is disabled", LogsErrorKind::Other),
            ("Log event too large: 300000 bytes exceeds limit of 262144", LogsErrorKind::Events),
            ("Value 'of log group x' at 'logEvents.1.member.message' failed", LogsErrorKind::Events),
            ("Log events in a single PutLogEvents request must be in chronological order.", LogsErrorKind::Events),
        ] {
            assert_eq!(classify(400, Some("InvalidParameterException"), words, PUT), kind, "{words}");
        }
    }

    #[test]
    fn each_kind_has_a_label_of_its_own() {
        let labels: std::collections::BTreeSet<_> = LogsErrorKind::ALL.iter().map(|kind| kind.as_str()).collect();
        assert_eq!(labels.len(), LogsErrorKind::ALL.len());
    }
}
