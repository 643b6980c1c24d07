//! What a request's method and path ask for.

use axum::http::{HeaderMap, Method};

use crate::batch::LogType;
use crate::protocols::native::Native;
use crate::protocols::paths::{Endpoint, Takes, endpoint, tidy, without_repeat};
use crate::protocols::{Answer, Protocol, Refusal, splunk};

const OIDC_TOKEN: &str = "/v1/oidc-token";

/// Where a request goes.
pub enum Route {
    /// Events.
    Events {
        /// How they are read and answered.
        protocol: &'static dyn Protocol,
        /// The log type that the path names.
        log_type: Option<LogType>,
    },
    /// A question of the protocol's clients that needs no credentials and has no body.
    Question {
        /// Whose.
        protocol: &'static dyn Protocol,
        /// What it is answered with.
        answer: Answer,
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
            Route::Events { protocol, .. } | Route::Question { protocol, .. } | Route::Refused { protocol, .. } => {
                *protocol
            }
            Route::OidcToken => &Native,
        }
    }
}

/// Where `method` on `path` goes. Empty segments and a slash at the end of the path count for nothing.
pub fn route(method: &Method, path: &str, headers: &HeaderMap) -> Route {
    let path = &*tidy(path);
    let wrong_method = |protocol, allowed| Route::Refused { protocol, refusal: Refusal::WrongMethod { allowed } };
    if path.starts_with(OIDC_TOKEN) && without_repeat(path).unwrap_or(path) == OIDC_TOKEN {
        return if method == Method::PUT { Route::OidcToken } else { wrong_method(&Native, "PUT") };
    }
    let Some(Endpoint { protocol, log_type, takes }) = endpoint(path, headers) else {
        return Route::Refused { protocol: &Native, refusal: Refusal::UnknownPath };
    };
    match (takes, method.as_str()) {
        (Takes::Events | Takes::EventsAndHealth | Takes::EventsAndOptions, "POST") => {
            Route::Events { protocol, log_type }
        }
        (Takes::Health | Takes::HealthAndOptions | Takes::EventsAndHealth, "GET" | "HEAD") => {
            Route::Question { protocol, answer: protocol.alive() }
        }
        (Takes::EventsAndOptions | Takes::HealthAndOptions | Takes::SplunkAcks, "OPTIONS") => {
            Route::Question { protocol, answer: splunk::options(takes.methods()) }
        }
        (Takes::SplunkAcks, "POST") => Route::Question { protocol, answer: splunk::acks_are_disabled() },
        _ => wrong_method(protocol, takes.methods()),
    }
}

#[cfg(test)]
mod tests;
