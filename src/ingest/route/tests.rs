use futures_util::FutureExt;
use http_body_util::BodyExt;

use super::*;

const DEPLOYMENTS: Option<LogType> = Some(LogType::Deployments);
const AUDITS: Option<LogType> = Some(LogType::Audits);

/// Where a request without headers goes.
fn route_of(method: &Method, path: &str) -> Route {
    route(method, path, &HeaderMap::new())
}

/// The protocol and log type of a path that takes events.
fn events(path: &str) -> Option<(&'static str, Option<LogType>)> {
    match route_of(&Method::POST, path) {
        Route::Events { protocol, log_type } => Some((protocol.name(), log_type)),
        _ => None,
    }
}

/// Status, `Allow` and body of the answer to a question.
fn answered(method: Method, path: &str) -> (u16, String, String) {
    let Route::Question { answer, .. } = route_of(&method, path) else { panic!("{method} {path} is no question") };
    let allow = answer.headers().get("allow").map_or("", |allow| allow.to_str().unwrap()).to_owned();
    let (head, body) = answer.into_parts();
    let body = body.collect().now_or_never().unwrap().unwrap().to_bytes();
    (head.status.as_u16(), allow, String::from_utf8(body.to_vec()).unwrap())
}

const PATHS: [(&str, &str); 13] = [
    ("/", "logzio"),
    ("/services/collector", "splunk"),
    ("/services/collector/1.0", "splunk"),
    ("/services/collector/event", "splunk"),
    ("/services/collector/event/1.0", "splunk"),
    ("/services/collector/raw", "splunk"),
    ("/services/collector/raw/1.0", "splunk"),
    ("/loki/api/v1/push", "loki"),
    ("/v1/logs", "otlp"),
    ("/receiver/v1/http/ZaVnC4dhaV1", "sumologic"),
    ("/log/v1", "newrelic"),
    ("/v1/logs/env0-audits", "native"),
    ("/v1/logs/env0-deployments", "native"),
];

#[test]
fn paths_lead_to_protocols_and_may_begin_with_a_log_type() {
    for (path, name) in PATHS {
        let named = path.strip_prefix("/v1/logs/").map(|name| name.parse().unwrap());
        assert_eq!(events(path), Some((name, named)), "{path}");
        let prefixed = (name != "native").then_some((name, AUDITS));
        assert_eq!(events(&format!("/env0-audits{path}")), prefixed, "{path}");
    }
    assert_eq!(events("/env0-deployments"), Some(("logzio", DEPLOYMENTS)));
    for (doubled, name, log_type) in [
        ("/services/collector/event/event", "splunk", None),
        ("/services/collector/raw/raw", "splunk", None),
        ("/v1/logs/env0-audits/env0-audits", "native", AUDITS),
        ("/env0-audits/env0-audits", "logzio", AUDITS),
        ("/env0-audits/loki/api/v1/push/env0-audits/loki/api/v1/push", "loki", AUDITS),
    ] {
        assert_eq!(events(doubled), Some((name, log_type)), "{doubled}");
    }
    for path in [
        "/v1/logs/env0-audit",
        "/env0-audits/v1/logs/env0-deployments",
        "/env0-auditsx/v1/logs",
        "/receiver/v1/http/",
        "/receiver/v1/http/a/b",
        "/other/receiver/v1/http/a",
        "/services",
        "/v1/logs/env0-audits/v1/logs/env0-deployments",
        "/loki/api/v1/push/v1/logs",
        "/log/v1/log/v1/log/v1/log/v1/log/v1/log/v1",
        "/services/collector/event/event/event",
        "*",
    ] {
        let Route::Refused { refusal, protocol } = route_of(&Method::POST, path) else { panic!("{path} is known") };
        assert_eq!((refusal, protocol.name()), (Refusal::UnknownPath, "native"), "{path}");
    }
}

#[test]
fn a_token_is_handed_over_at_one_path_and_nowhere_behind_the_audits_prefix() {
    // The prefix is all that the Helm chart opens to the internet, and not every load balancer resolves `..`.
    let takes_tokens = |path: &str| matches!(route_of(&Method::PUT, path), Route::OidcToken);
    assert!(takes_tokens("/v1/oidc-token") && takes_tokens("/v1/oidc-token/v1/oidc-token"));
    for path in ["v1/oidc-token", "/v1/oidc-token/", "../v1/oidc-token", "%2e%2e/v1/oidc-token", "..%2fv1/oidc-token"] {
        assert!(!takes_tokens(&format!("/env0-audits/{path}")), "{path}");
    }
}

#[test]
fn empty_segments_and_a_slash_at_the_end_do_no_harm() {
    for (path, _) in PATHS {
        for prefix in ["", "/env0-audits"] {
            let plain = format!("{prefix}{path}");
            for spelt in [format!("/{plain}"), format!("{plain}/"), plain.replace('/', "//"), format!("{plain}///")] {
                assert_eq!(events(&spelt), events(&plain), "{spelt}");
            }
        }
    }
    assert!(matches!(route_of(&Method::PUT, "//v1/oidc-token/"), Route::OidcToken));
}

#[test]
fn a_path_that_a_client_appends_to_a_whole_url_is_the_one_that_counts() {
    for (path, name) in PATHS.into_iter().skip(1) {
        assert_eq!(events(&format!("{path}{path}")), events(path), "{path} twice is {name}'s");
    }
    for (path, found) in [
        ("/services/collector/services/collector/event/1.0", ("splunk", None)),
        ("/services/collector/event/services/collector/raw", ("splunk", None)),
        ("/env0-audits/services/services/collector", ("splunk", AUDITS)),
        ("/v1/v1/logs", ("otlp", None)),
        ("/env0-audits/loki/loki/api/v1/push/", ("loki", AUDITS)),
        ("//log/v1//log/v1/", ("newrelic", None)),
        ("/log/v1/log/v1/log/v1/log/v1", ("newrelic", None)),
    ] {
        assert_eq!(events(path), Some(found), "{path}");
    }
}

#[test]
fn a_wrong_method_is_told_the_right_ones() {
    for (method, path, right) in [
        (Method::GET, "/v1/logs/env0-audits", "POST"),
        (Method::PUT, "/", "GET, HEAD, POST"),
        (Method::POST, "/services/collector/health", "GET, HEAD, OPTIONS"),
        (Method::GET, "/services/collector/event", "POST, OPTIONS"),
        (Method::GET, "/services/collector/ack", "POST, OPTIONS"),
        (Method::POST, "/v1/oidc-token", "PUT"),
        (Method::DELETE, "/loki/api/v1/push", "POST"),
    ] {
        let Route::Refused { refusal, .. } = route_of(&method, path) else { panic!("{method} {path} is taken") };
        assert_eq!(refusal, Refusal::WrongMethod { allowed: right });
    }
}

#[test]
fn whoever_asks_is_told_that_the_daemon_is_there() {
    let healthy = r#"{"text":"HEC is healthy","code":17}"#;
    for (method, path, body) in [
        (Method::GET, "/", ""),
        (Method::HEAD, "/", ""),
        (Method::GET, "/env0-audits/", ""),
        (Method::GET, "/ready", ""),
        (Method::GET, "/services/collector/health", healthy),
        (Method::GET, "/services/collector/health/1.0", healthy),
    ] {
        assert_eq!(answered(method, path), (200, String::new(), body.to_owned()), "{path}");
    }
}

#[test]
fn splunk_clients_are_answered_as_splunk_answers_them() {
    for (path, methods) in [
        ("/services/collector", "POST, OPTIONS"),
        ("/services/collector/event/1.0", "POST, OPTIONS"),
        ("/env0-audits/services/collector/raw", "POST, OPTIONS"),
        ("/services/collector/health", "GET, HEAD, OPTIONS"),
        ("/services/collector/ack", "POST, OPTIONS"),
    ] {
        assert_eq!(answered(Method::OPTIONS, path), (200, methods.to_owned(), String::new()), "{path}");
    }
    let (status, _, body) = answered(Method::POST, "/services/collector/ack");
    assert_eq!((status, &*body), (400, r#"{"text":"ACK is disabled","code":14}"#));
}
