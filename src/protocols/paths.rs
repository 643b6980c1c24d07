//! Which protocol a path leads to, and which log type the path names.

use axum::http::HeaderMap;

use super::Protocol;
pub use super::head::tidy;
use super::head::{content_type_is, split_log_type};
use super::logzio::Logzio;
use super::loki::Loki;
use super::native::Native;
use super::newrelic::NewRelic;
use super::otlp::Otlp;
use super::splunk::Splunk;
use super::sumologic::{self, SumoLogic};
use crate::batch::LogType;

/// How many segments the longest known path has.
const SEGMENTS_MAX: usize = 4;
/// How many paths may have been appended to the one that a client was given.
const APPENDED_MAX: u32 = 3;

/// What a path leads to.
#[derive(Clone, Copy)]
pub struct Endpoint {
    /// The protocol that reads the request and writes the answer.
    pub protocol: &'static dyn Protocol,
    /// The log type that the path names.
    pub log_type: Option<LogType>,
    /// The requests that the path takes.
    pub takes: Takes,
}

/// The requests that a path takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// `POST`: events.
    Events,
    /// `POST`: events; `GET`, `HEAD`: whether the listener is up.
    EventsAndHealth,
    /// `GET`, `HEAD`: whether the listener is up.
    Health,
    /// `POST`: events; `OPTIONS`: whether it takes them (Docker's driver for Splunk asks before it starts a container).
    EventsAndOptions,
    /// `GET`, `HEAD`, `OPTIONS`: whether the listener is up.
    HealthAndOptions,
    /// `POST`: whether Splunk's indexer has events. Nobody can ask that here, because no
    /// answer gives an id to ask with.
    SplunkAcks,
}

impl Takes {
    /// The methods, for the `Allow` header.
    pub fn methods(self) -> &'static str {
        match self {
            Takes::Events => "POST",
            Takes::EventsAndHealth => "GET, HEAD, POST",
            Takes::Health => "GET, HEAD",
            Takes::EventsAndOptions | Takes::SplunkAcks => "POST, OPTIONS",
            Takes::HealthAndOptions => "GET, HEAD, OPTIONS",
        }
    }
}

/// The endpoint of `path`, which is [`tidy`]. It may begin with `/<log type>`, which then is the events' log type: a
/// client that can't name one otherwise is given such a path. Of the headers only OTLP's `Content-Type` matters, which
/// decides the encoding of its answer.
pub fn endpoint(path: &str, headers: &HeaderMap) -> Option<Endpoint> {
    let endpoint = |path| {
        let (rest, log_type) = split_log_type(path);
        let found = known(rest, headers).or_else(|| appended(rest, headers, APPENDED_MAX - 1))?;
        match (log_type, found.log_type) {
            (Some(_), Some(_)) => None,
            _ => Some(Endpoint { log_type: log_type.or(found.log_type), ..found }),
        }
    };
    endpoint(path).or_else(|| endpoint(without_repeat(path)?))
}

/// A path without the last of its segments, where the same ones stand before them: `/services/collector/event/event`.
pub fn without_repeat(path: &str) -> Option<&str> {
    let ends = path.rmatch_indices('/').take(SEGMENTS_MAX + 1);
    ends.map(|(at, _)| path.split_at(at)).find_map(|(given, end)| given.ends_with(end).then_some(given))
}

fn known(path: &str, headers: &HeaderMap) -> Option<Endpoint> {
    let log_type = path.strip_prefix("/v1/logs/").and_then(|name| name.parse().ok());
    let (protocol, takes): (&'static dyn Protocol, _) = match path {
        _ if log_type.is_some() => (&Native, Takes::Events),
        "" | "/" => (&Logzio, Takes::EventsAndHealth),
        "/services/collector" | "/services/collector/1.0" => (&Splunk, Takes::EventsAndOptions),
        "/services/collector/event" | "/services/collector/event/1.0" => (&Splunk, Takes::EventsAndOptions),
        "/services/collector/raw" | "/services/collector/raw/1.0" => (&Splunk, Takes::EventsAndOptions),
        "/services/collector/health" | "/services/collector/health/1.0" => (&Splunk, Takes::HealthAndOptions),
        "/services/collector/ack" | "/services/collector/ack/1.0" => (&Splunk, Takes::SplunkAcks),
        "/loki/api/v1/push" => (&Loki, Takes::Events),
        // Vector asks this before it pushes.
        "/ready" => (&Loki, Takes::Health),
        "/v1/logs" if content_type_is(headers, "protobuf") => (&Otlp::Protobuf, Takes::Events),
        "/v1/logs" => (&Otlp::Json, Takes::Events),
        "/log/v1" => (&NewRelic, Takes::Events),
        path if sumologic::secret(path).is_some() => (&SumoLogic, Takes::Events),
        _ => return None,
    };
    Some(Endpoint { protocol, log_type, takes })
}

/// Clients append their own path to the URL that they are given, also when that has a path already. The appended path
/// counts, if the part before it is the beginning of the same path, or another path of the same protocol and log type.
fn appended(path: &str, headers: &HeaderMap, more: u32) -> Option<Endpoint> {
    path.rmatch_indices('/').take(SEGMENTS_MAX).find_map(|(at, _)| {
        let (given, appended) = path.split_at(at);
        let found = known(appended, headers)?;
        let is_beginning = || appended.strip_prefix(given).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let of_given = || match known(given, headers) {
            None if more > 0 => self::appended(given, headers, more - 1),
            known => known,
        };
        let is_same =
            |given: Endpoint| (given.protocol.name(), given.log_type) == (found.protocol.name(), found.log_type);
        (is_beginning() || of_given().is_some_and(is_same)).then_some(found)
    })
}
