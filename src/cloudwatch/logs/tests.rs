use axum::http::{HeaderValue, Response};
use bytes::Bytes;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::config::{CloudWatch, Config};
use crate::credentials::Role;
use crate::testing::{Seen, Server, answer, breaks_off, config, nobody, soon, sts_that_gives_sessions};

const EVENTS: LogType = LogType::Deployments;

/// CloudWatch Logs at `endpoint`, with a session.
async fn logs_at(endpoint: &str) -> (Logs, Server) {
    let sts = sts_that_gives_sessions().await;
    let config = Config { endpoint_url_sts: Some(sts.url()), oidc_token: Some("token".into()), ..config("") };
    let cloudwatch = CloudWatch {
        role_arn: "arn:aws:iam::123456789012:role/env0-cloudwatch".to_owned(),
        aws_region: "us-west-2".to_owned(),
        session_duration: Duration::from_secs(900),
        group_prefix: "team/".to_owned(),
        endpoint_url: Some(endpoint.to_owned()),
    };
    let network = Network::new(&config.network).unwrap();
    let stop = CancellationToken::new();
    let bucket = Credentials::start(&config, &network, "id", stop.clone());
    let credentials = bucket.start_beside(Role::of_cloudwatch(&cloudwatch), &config, &network, "id", stop);
    soon(credentials.wait_session()).await;
    (Logs::new(&cloudwatch, &network, credentials, "0123456789abcdef"), sts)
}

fn operation(request: &Seen) -> &str {
    request.header("x-amz-target").unwrap().strip_prefix("Logs_20140328.").unwrap()
}

fn operations(server: &Server) -> Vec<String> {
    server.seen().iter().map(|request| operation(request).to_owned()).collect()
}

fn ok(body: Value) -> Response<Bytes> {
    let mut response = answer(200, body.to_string());
    response.headers_mut().insert("x-amzn-requestid", HeaderValue::from_static("logs-request"));
    response
}

fn error(status: u16, code: &str, message: &str) -> Response<Bytes> {
    let mut response = answer(status, json!({"__type": code, "message": message}).to_string());
    response.headers_mut().insert("x-amzn-requestid", HeaderValue::from_static("logs-request"));
    response
}

fn events() -> Vec<Event> {
    let event = |timestamp, message: &str| Event { timestamp, message: message.to_owned() };
    vec![event(1_795_381_445_678, r#"{"message":"one"}"#), event(1_795_381_445_679, r#"{"message":"zwölf"}"#)]
}

async fn refused_by(answer: impl Fn(&Seen) -> Response<Bytes> + Send + Sync + 'static) -> LogsError {
    let server = Server::start(answer).await;
    let (logs, _sts) = logs_at(&server.url()).await;
    logs.put(EVENTS, &events()).await.unwrap_err()
}

#[tokio::test]
async fn a_call_names_group_and_stream_and_is_signed_with_the_session_of_cloudwatchs_role() {
    let server = Server::start(|_| ok(json!({}))).await;
    let (logs, _sts) = logs_at(&server.url()).await;
    assert_eq!(logs.put(EVENTS, &events()).await.unwrap(), Rejected::default());
    let seen = server.seen();
    assert_eq!(operations(&server), ["PutLogEvents"], "group and stream are asked for only where they are missing");
    let body: Value = serde_json::from_slice(&seen[0].body).unwrap();
    let expected = json!({
        "logGroupName": "team/env0-deployments",
        "logStreamName": "env0-s3-logs-0123456789abcdef",
        "logEvents": [
            {"timestamp": 1_795_381_445_678_i64, "message": r#"{"message":"one"}"#},
            {"timestamp": 1_795_381_445_679_i64, "message": r#"{"message":"zwölf"}"#},
        ],
    });
    assert_eq!(body, expected);
    let session = logs.0.credentials.session().unwrap();
    let signature = seen[0].header("authorization").unwrap();
    let key = format!("Credential={}/", session.access_key_id);
    assert!(signature.contains(&key) && signature.contains("/us-west-2/logs/aws4_request"), "{signature}");
    assert_eq!(seen[0].header("x-amz-security-token"), Some(session.session_token.expose_secret()));
}

/// A CloudWatch in which things are missing until they are made.
async fn empty_cloudwatch() -> Server {
    let there = std::sync::Mutex::new((false, false));
    Server::start(move |request| {
        let mut there = there.lock().unwrap();
        match (operation(request), *there) {
            ("CreateLogGroup", (false, _)) => there.0 = true,
            ("CreateLogStream", (true, false)) => there.1 = true,
            ("CreateLogGroup", _) | ("CreateLogStream", (true, true)) => {
                return error(400, "ResourceAlreadyExistsException", "The specified resource already exists");
            }
            (PUT, (true, true)) => {}
            _ => return error(400, "ResourceNotFoundException", "The specified resource does not exist."),
        }
        ok(json!({}))
    })
    .await
}

#[tokio::test]
async fn a_missing_group_and_its_stream_are_made_and_the_call_is_made_again() {
    let server = empty_cloudwatch().await;
    let (logs, _sts) = logs_at(&server.url()).await;
    logs.put(EVENTS, &events()).await.unwrap();
    assert_eq!(operations(&server), [PUT, "CreateLogStream", "CreateLogGroup", "CreateLogStream", PUT]);
    logs.put(EVENTS, &events()).await.unwrap();
    assert_eq!(operations(&server).len(), 6);
}

#[tokio::test]
async fn what_somebody_else_makes_at_the_same_moment_is_taken() {
    let puts = std::sync::atomic::AtomicUsize::new(0);
    let server = Server::start(move |request| match operation(request) {
        PUT if puts.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0 => {
            error(400, "ResourceNotFoundException", "The specified log stream does not exist.")
        }
        PUT => ok(json!({})),
        _ => error(400, "ResourceAlreadyExistsException", "The specified resource already exists"),
    })
    .await;
    let (logs, _sts) = logs_at(&server.url()).await;
    logs.put(EVENTS, &events()).await.unwrap();
    assert_eq!(operations(&server), [PUT, "CreateLogStream", PUT]);
}

#[tokio::test]
async fn a_group_that_stays_missing_is_an_error_and_not_asked_for_without_end() {
    let server = Server::start(|request| match operation(request) {
        PUT => error(400, "ResourceNotFoundException", "The specified log stream does not exist."),
        _ => ok(json!({})),
    })
    .await;
    let (logs, _sts) = logs_at(&server.url()).await;
    assert_eq!(logs.put(EVENTS, &events()).await.unwrap_err().kind, LogsErrorKind::Missing);
    assert_eq!(operations(&server).len(), 3);
}

#[tokio::test]
async fn a_denied_action_is_named_with_role_group_and_policy() {
    for denied in [PUT, "CreateLogStream", "CreateLogGroup"] {
        let refusal = refused_by(move |request| match operation(request) {
            asked if asked == denied => error(400, "AccessDeniedException", "User: x is not authorized to perform it"),
            _ => error(400, "ResourceNotFoundException", "The specified resource does not exist."),
        })
        .await;
        assert_eq!(refusal.kind, LogsErrorKind::Denied, "{denied}");
        let told = refusal.to_string();
        for part in [
            &format!("{denied} at 127.0.0.1:"),
            "AccessDeniedException, HTTP 400: User: x is not",
            &format!("allow the role arn:aws:iam::123456789012:role/env0-cloudwatch logs:{denied} on the log group"),
            "team/env0-deployments, as in config/cloudwatch-policy.json",
        ] {
            assert!(told.contains(part), "{denied}: {told}");
        }
    }
}

#[tokio::test]
async fn an_answers_meaning_is_its_code_or_where_it_has_none_its_status() {
    use LogsErrorKind::*;
    for (status, code, message, kind) in [
        (400, "ExpiredTokenException", "The security token included in the request is expired", SessionRejected),
        (400, "UnrecognizedClientException", "The security token included in the request is invalid.", SessionRejected),
        (400, "InvalidSignatureException", "Credential should be scoped to a valid region.", WrongRegion),
        (400, "InvalidSignatureException", "Signature expired: 20261129T100000Z is now earlier than", ClockSkew),
        (400, "InvalidSignatureException", "The request signature we calculated does not match", Other),
        (400, "InvalidParameterException", "Log events must be in chronological order", Events),
        (400, "ValidationException", "1 validation error detected", Events),
        (413, "RequestEntityTooLargeException", "", Events),
        (400, "ThrottlingException", "Rate exceeded", Throttled),
        (400, "OperationAbortedException", "A conflicting operation is in progress", ServerError),
        (500, "InternalFailure", "", ServerError),
        (503, "ServiceUnavailableException", "The service cannot complete the request.", ServerError),
        (400, "UnknownOperationException", "", NotCloudWatch),
        (400, "LimitExceededException", "Resource limit exceeded", Other),
    ] {
        let refusal = refused_by(move |_| error(status, code, message)).await;
        assert_eq!((refusal.kind, refusal.code.as_deref()), (kind, Some(code)), "{code}: {message}");
        assert_eq!((refusal.status, refusal.request_id.as_deref()), (Some(status), Some("logs-request")), "{code}");
    }
    for (status, kind) in
        [(403, NotCloudWatch), (407, ProxyRefused), (413, NotCloudWatch), (429, Throttled), (502, ServerError)]
    {
        let refusal = refused_by(move |_| answer(status, "<html>Blocked</html>")).await;
        assert_eq!((refusal.kind, refusal.code), (kind, None), "{status}");
    }
    let json_of_somebody_else = refused_by(|_| answer(403, r#"{"code":"blocked","message":"by policy"}"#)).await;
    assert_eq!(json_of_somebody_else.kind, NotCloudWatch);
    let (logs, _sts) = logs_at(&nobody().await).await;
    assert_eq!(logs.put(EVENTS, &events()).await.unwrap_err().kind, Unreachable);
}

#[tokio::test]
async fn a_200_of_somebody_else_confirms_nothing() {
    for body in ["", "{}", "<html>Please log in</html>"] {
        let refusal = refused_by(move |_| answer(200, body)).await;
        assert_eq!(refusal.kind, LogsErrorKind::NotCloudWatch, "{body}");
    }
    for status in [202, 204] {
        let refusal = refused_by(move |_| error(status, "", "")).await;
        assert_eq!(refusal.kind, LogsErrorKind::NotCloudWatch, "{status}");
    }
}

#[tokio::test]
async fn a_200_with_an_error_document_confirms_nothing_and_names_it() {
    for code in ["ThrottlingException", "DataAlreadyAcceptedException"] {
        let refusal = refused_by(move |_| error(200, code, "Rate exceeded")).await;
        assert_eq!(refusal.kind, LogsErrorKind::NotCloudWatch);
        assert!(refusal.message.contains(code), "{refusal}");
    }
}

#[tokio::test]
async fn what_somebody_else_answers_is_no_group() {
    let server = Server::start(|_| answer(200, "{}")).await;
    let (logs, _sts) = logs_at(&server.url()).await;
    assert_eq!(logs.find(EVENTS).await.unwrap_err().kind, LogsErrorKind::NotCloudWatch);
}

#[tokio::test]
async fn a_200_that_breaks_off_is_told_as_one_and_confirms_nothing() {
    let half = "HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.1\r\nContent-Length: 100\r\n\r\n{\"rej";
    let (logs, _sts) = logs_at(&breaks_off(half).await).await;
    let error = logs.put(EVENTS, &events()).await.unwrap_err();
    assert_eq!((error.kind, error.status), (LogsErrorKind::Unreachable, Some(200)), "{error}");
    assert!(error.message.contains("HTTP 200, but the answer was cut off: "), "{error}");
    assert!(error.remedy.contains("broke off"), "{error}");
}

#[tokio::test]
async fn a_200_of_cloudwatchs_own_type_confirms_events_without_a_request_id() {
    let server = Server::start(|_| {
        let mut response = answer(200, "{}");
        let own_type = HeaderValue::from_static("application/x-amz-json-1.1; charset=utf-8");
        response.headers_mut().insert("content-type", own_type);
        response
    })
    .await;
    let (logs, _sts) = logs_at(&server.url()).await;
    assert_eq!(logs.put(EVENTS, &events()).await.unwrap(), Rejected::default());
}

#[tokio::test]
async fn no_error_tells_an_event_or_a_secret() {
    let events_repeated = refused_by(|request| {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        error(400, "InvalidParameterException", &format!("Value '{body}' at 'logEvents' failed to satisfy constraint"))
    })
    .await;
    assert!(!format!("{events_repeated} {events_repeated:?}").contains("zw"), "{events_repeated}");
    let secret_repeated = refused_by(|request| {
        error(400, "AccessDeniedException", &format!("token {}", request.header("x-amz-security-token").unwrap()))
    })
    .await;
    assert!(!format!("{secret_repeated} {secret_repeated:?}").contains("canary-session"), "{secret_repeated}");
}

#[tokio::test]
async fn a_session_that_is_refused_as_expired_is_replaced() {
    let server = Server::start(|request| match request.header("authorization").unwrap().contains("AKIA3") {
        false => error(400, "ExpiredTokenException", "The security token included in the request is expired"),
        true => ok(json!({})),
    })
    .await;
    let (logs, _sts) = logs_at(&server.url()).await;
    assert_eq!(logs.put(EVENTS, &events()).await.unwrap_err().kind, LogsErrorKind::SessionRejected);
    soon(logs.0.credentials.wait_session()).await;
    logs.put(EVENTS, &events()).await.unwrap();
}

#[tokio::test]
async fn events_that_are_taken_and_not_kept_are_told_by_reason() {
    let server = Server::start(|_| {
        ok(json!({"rejectedLogEventsInfo": {"tooOldLogEventEndIndex": 1, "tooNewLogEventStartIndex": 1}}))
    })
    .await;
    let (logs, _sts) = logs_at(&server.url()).await;
    assert_eq!(logs.put(EVENTS, &events()).await.unwrap(), Rejected { too_old: 1, too_new: 1, expired: 0 });
}

#[test]
fn a_rejected_event_counts_once_whatever_the_indices_say() {
    let of = |too_old, expired, too_new| {
        let info = RejectedLogEventsInfo::builder()
            .set_too_old_log_event_end_index(too_old)
            .set_expired_log_event_end_index(expired)
            .set_too_new_log_event_start_index(too_new);
        let Rejected { too_old, too_new, expired } = rejected(&info.build(), 10);
        (too_old, expired, too_new)
    };
    assert_eq!(of(None, None, None), (0, 0, 0));
    assert_eq!(of(Some(3), None, None), (3, 0, 0), "the end is exclusive");
    assert_eq!(of(None, None, Some(8)), (0, 0, 2), "the start is inclusive");
    assert_eq!(of(Some(2), Some(5), None), (2, 3, 0), "what is too old has expired as well");
    assert_eq!(of(Some(5), Some(2), Some(9)), (5, 0, 1));
    assert_eq!(of(Some(99), None, Some(0)), (10, 0, 0));
    assert_eq!(of(Some(-1), Some(-7), Some(-1)), (0, 0, 0), "no index is below 0");
}

#[tokio::test]
async fn what_there_is_of_a_type_is_found_without_making_it() {
    let stream = json!({"logStreams": [{"logStreamName": "env0-s3-logs-0123456789abcdef"}]});
    for (reply, found) in [
        (ok(stream), Found::Stream),
        (ok(json!({"logStreams": [{"logStreamName": "env0-s3-logs-0123456789abcdef0"}]})), Found::Group),
        (ok(json!({"logStreams": []})), Found::Group),
        (error(400, "ResourceNotFoundException", "The specified log group does not exist."), Found::Nothing),
    ] {
        let server = Server::start(move |_| reply.clone()).await;
        let (logs, _sts) = logs_at(&server.url()).await;
        assert_eq!(logs.find(EVENTS).await.unwrap(), found);
        assert_eq!(operations(&server), ["DescribeLogStreams"]);
    }
}
