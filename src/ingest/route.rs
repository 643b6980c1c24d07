//! Which protocol a method and a path lead to, and which log type the path names.

use axum::http::{HeaderMap, Method};

use crate::batch::LogType;
use crate::protocols::logzio::Logzio;
use crate::protocols::loki::Loki;
use crate::protocols::native::Native;
use crate::protocols::newrelic::NewRelic;
use crate::protocols::otlp::Otlp;
use crate::protocols::splunk::Splunk;
use crate::protocols::sumologic::{self, SumoLogic};
use crate::protocols::{Protocol, Refusal, content_type_is, split_log_type};

/// Where a request goes.
pub enum Route {
    /// Events.
    Events {
        /// How they are read and answered.
        protocol: &'static dyn Protocol,
        /// The log type that the path names.
        log_type: Option<LogType>,
    },
    /// A question whether anyone is there; needs no credentials and has no body.
    Alive {
        /// Answers by [`Protocol::alive`].
        protocol: &'static dyn Protocol,
    },
    /// `PUT /v1/oidc-token`: hand-over of an env0 OIDC token.
    OidcToken,
    /// 404 or 405.
    Refused {
        /// Answers by [`Protocol::refused`].
        protocol: &'static dyn Protocol,
        /// Which of the two.
        refusal: Refusal,
    },
}

impl Route {
    /// In whose words the request is answered.
    pub fn protocol(&self) -> &'static dyn Protocol {
        match self {
            Route::Events { protocol, .. } | Route::Alive { protocol } | Route::Refused { protocol, .. } => *protocol,
            Route::OidcToken => &Native,
        }
    }
}

const POST: &str = "POST";
const GET: &str = "GET, HEAD";
const GET_AND_POST: &str = "GET, HEAD, POST";

/// Where `method` on `path` goes. A path may begin with `/<log type>`, which then is the events'
/// type: that is how a client that can't say what it sends is told apart. Of the headers only OTLP's
/// `Content-Type` counts, which tells the encoding of its answer.
pub fn route(method: &Method, path: &str, headers: &HeaderMap) -> Route {
    let (protocol, log_type, allowed) = match endpoint(path, headers) {
        Some(found) => found,
        None => return Route::Refused { protocol: &Native, refusal: Refusal::UnknownPath },
    };
    if !allowed.split(", ").any(|allowed| allowed == method.as_str()) {
        return Route::Refused { protocol, refusal: Refusal::WrongMethod { allowed } };
    }
    match *method {
        Method::POST => Route::Events { protocol, log_type },
        Method::PUT => Route::OidcToken,
        _ => Route::Alive { protocol },
    }
}

type Endpoint = (&'static dyn Protocol, Option<LogType>, &'static str);

fn endpoint(path: &str, headers: &HeaderMap) -> Option<Endpoint> {
    if let Some(log_type) = path.strip_prefix("/v1/logs/") {
        return Some((&Native, Some(log_type.parse().ok()?), POST));
    }
    if path == "/v1/oidc-token" {
        return Some((&Native, None, "PUT"));
    }
    let (path, log_type) = split_log_type(path);
    let (protocol, allowed): (&'static dyn Protocol, _) = match path {
        "" | "/" => (&Logzio, GET_AND_POST),
        "/services/collector" | "/services/collector/event" | "/services/collector/event/1.0" => (&Splunk, POST),
        "/services/collector/raw" | "/services/collector/raw/1.0" => (&Splunk, POST),
        "/services/collector/health" | "/services/collector/health/1.0" => (&Splunk, GET),
        "/loki/api/v1/push" => (&Loki, POST),
        "/v1/logs" if content_type_is(headers, "protobuf") => (&Otlp::Protobuf, POST),
        "/v1/logs" => (&Otlp::Json, POST),
        "/log/v1" | "/log/v1/log/v1" => (&NewRelic, POST),
        path if sumologic::secret(path).is_some() => (&SumoLogic, POST),
        _ => return None,
    };
    Some((protocol, log_type, allowed))
}
