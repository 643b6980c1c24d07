//! The admin listener: `/livez`, `/readyz`, `/status`, `/metrics` and the page. Reads snapshots, changes nothing.

pub mod client;
mod history;
mod shared;

use std::convert::Infallible;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::FutureExt;
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::http::listener::{Guest, Listener};
use crate::http::site::Site;
use crate::status::Status;
use crate::telemetry::metrics::{Exporter, Exposition};
use crate::telemetry::{self, report_suppressed};
use history::History;
use shared::SharedAnswer;

/// Probes, a scraper and a few pages. Apart from the connections of ingest, so that nobody there keeps a probe out. At the
/// limit the oldest is closed: so many that a probe whose request comes a moment behind its connection is answered,
/// though a hundred others connect in that moment. Each may keep 40 KiB of answers that nobody reads.
const CONNECTIONS_MAX: usize = 128;
/// How often gathered metrics and counts of repeated log lines are worked off.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
const PAGE: &str = include_str!("admin/status.html");

/// One condition of being alive or ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What is checked; one word.
    pub name: &'static str,
    /// Why it does not hold, in words.
    pub failure: Option<String>,
}

/// What the listener reads; each is called at every request and must neither block nor fail.
pub struct Sources {
    /// The whole of `/status`.
    pub status: Box<dyn Fn() -> Status + Send + Sync>,
    /// Whether the process and its writers respond; S3 is none of it.
    pub live: Box<dyn Fn() -> Vec<Check> + Send + Sync>,
    /// Whether events can be taken; neither S3 nor a full spool is any of it.
    pub ready: Box<dyn Fn() -> Vec<Check> + Send + Sync>,
}

/// The admin listener's answers.
#[derive(Clone)]
pub struct Health(Arc<Inner>);

struct Inner {
    sources: Sources,
    exporter: &'static Exporter,
    history: History,
    answers: Answers,
}

/// Answers that take work to make. Each is made once for all who wait for it, because anybody may ask.
#[derive(Default)]
struct Answers {
    status: SharedAnswer,
    history: SharedAnswer,
    prometheus: SharedAnswer,
    open_metrics: SharedAnswer,
}

impl Health {
    /// Answers from `sources`.
    pub fn new(sources: Sources, exporter: &'static Exporter) -> Health {
        Health(Arc::new(Inner { sources, exporter, history: History::default(), answers: Answers::default() }))
    }

    /// The routes, for a server of the caller's.
    pub fn router(&self) -> Router {
        let probe = |judge: fn(&Sources) -> Vec<Check>, failed: StatusCode| {
            get(move |State(health): State<Health>, request: Request| async move {
                let verbose = request.uri().query() == Some("verbose");
                verdict(request.uri().path(), &judge(&health.0.sources), failed, verbose)
            })
        };
        let live = || probe(|sources| (sources.live)(), StatusCode::INTERNAL_SERVER_ERROR);
        Router::new()
            .route("/", get(async || Html(PAGE)))
            .route("/livez", live())
            .route("/healthz", live())
            .route("/readyz", probe(|sources| (sources.ready)(), StatusCode::SERVICE_UNAVAILABLE))
            .route("/status", get(status))
            .route("/metrics", get(metrics))
            .layer(from_fn(guard))
            .with_state(self.clone())
    }

    /// Serves `tcp` until `stop`; `own_names` are names of this machine that are no private ones.
    pub async fn serve(self, tcp: TcpListener, own_names: Vec<String>, stop: CancellationToken) {
        let site = Site { has_pages: true, own_names: Some(own_names) };
        let listener = Listener { name: "admin", tcp, tls: None, max_connections: CONNECTIONS_MAX, site };
        let router = self.router();
        let handler = move |request: Request<Incoming>, _: Guest| {
            router.clone().oneshot(request.map(Body::new)).map(|Ok(answer)| answer)
        };
        tokio::select! {
            () = listener.serve(Arc::new(handler), stop) => {}
            () = self.keep() => {}
        }
    }

    /// Keeps the last hour's history, and gathered metrics small.
    async fn keep(&self) {
        let mut ticks = tokio::time::interval(UPKEEP_EVERY);
        loop {
            ticks.tick().await;
            self.0.history.sample(&(self.0.sources.status)());
            self.0.exporter.upkeep();
            report_suppressed();
        }
    }
}

async fn status(State(health): State<Health>, request: Request) -> Response {
    let made = health.clone();
    let json = match request.uri().query() {
        Some("history") => health.0.answers.history.get(move || serde_json::to_vec(&made.0.history.snapshot())).await,
        _ => {
            let text = move || serde_json::to_string(&(made.0.sources.status)());
            health.0.answers.status.get(move || text().map(|text| telemetry::linked(&text).into_owned())).await
        }
    };
    made_answer("application/json", json)
}

async fn metrics(State(health): State<Health>, request: Request) -> Response {
    let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let exposition = Exposition::by_accept(accept);
    let shared = match exposition {
        Exposition::Prometheus => &health.0.answers.prometheus,
        Exposition::OpenMetrics => &health.0.answers.open_metrics,
    };
    let made = health.clone();
    let render = move || Ok::<_, Infallible>(made.0.exporter.render(&(made.0.sources.status)(), exposition));
    made_answer(exposition.content_type(), shared.get(render).await)
}

fn made_answer(content_type: &'static str, made: Result<Bytes, String>) -> Response {
    match made {
        Ok(bytes) => ([(header::CONTENT_TYPE, content_type)], bytes).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
    }
}

/// Kubernetes' own form of a verdict: each reason in a line where `?verbose` or a failure asks for it.
fn verdict(path: &str, checks: &[Check], failed: StatusCode, verbose: bool) -> Response {
    let holds = checks.iter().all(|check| check.failure.is_none());
    let mut text = String::new();
    for check in checks.iter().filter(|check| verbose || check.failure.is_some()) {
        match &check.failure {
            None => text.push_str(&format!("[+]{} ok\n", check.name)),
            Some(reason) => text.push_str(&format!("[-]{}: {reason}\n", check.name)),
        }
    }
    let name = path.trim_start_matches('/');
    match (holds, verbose) {
        (true, false) => text.push_str("ok\n"),
        (true, true) => text.push_str(&format!("{name} check passed\n")),
        (false, _) => text.push_str(&format!("{name} check failed\n")),
    }
    (if holds { StatusCode::OK } else { failed }, text).into_response()
}

/// Refuses unknown paths and queries, and every method that could mean a change; adds the
/// headers that all answers have.
async fn guard(request: Request, next: Next) -> Response {
    let known_query = match (request.uri().path(), request.uri().query()) {
        (_, None | Some("")) => true,
        ("/livez" | "/readyz" | "/healthz", Some(query)) => query == "verbose",
        ("/status", Some(query)) => query == "history",
        _ => false,
    };
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let mut response = match (known_query, reads) {
        (false, _) => StatusCode::NOT_FOUND.into_response(),
        (true, false) => {
            let response = next.run(request).await;
            if response.status() == StatusCode::NOT_FOUND {
                response
            } else {
                StatusCode::METHOD_NOT_ALLOWED.into_response()
            }
        }
        (true, true) => next.run(request).await,
    };
    if response.status() == StatusCode::NOT_FOUND {
        response = (StatusCode::NOT_FOUND, NOT_HERE).into_response();
    }
    if response.status() == StatusCode::METHOD_NOT_ALLOWED {
        response = (StatusCode::METHOD_NOT_ALLOWED, READS_ONLY).into_response();
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    for (name, value) in ANSWER_HEADERS.iter() {
        response.headers_mut().insert(name, value.clone());
    }
    response
}

const READS_ONLY: &str = "this is the admin listener: it takes GET and HEAD, and changes nothing\n";

/// Two ports are easily mixed up.
const NOT_HERE: &str = "not here: this is the admin listener (/, /livez, /readyz, /status, /metrics); events and tokens go to the one of ENV0_S3_LOG_LISTEN_ADDR\n";

/// The page runs its own script and style, known by their hashes, and talks to this listener alone.
static ANSWER_HEADERS: LazyLock<Vec<(HeaderName, HeaderValue)>> = LazyLock::new(|| {
    let hash_of = |tag: &str| {
        let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
        let inline =
            PAGE.split_once(&open).and_then(|(_, rest)| rest.split_once(&close)).map_or("", |(inline, _)| inline);
        STANDARD.encode(digest(&SHA256, inline.as_bytes()))
    };
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash_of("script"),
        hash_of("style"),
    );
    let policy = HeaderValue::try_from(policy).expect("base64 and ASCII words are a header's value");
    let fixed = HeaderValue::from_static;
    vec![
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::CACHE_CONTROL, fixed("no-store")),
        (header::X_CONTENT_TYPE_OPTIONS, fixed("nosniff")),
        (header::X_FRAME_OPTIONS, fixed("DENY")),
        (header::REFERRER_POLICY, fixed("no-referrer")),
        (HeaderName::from_static("cross-origin-resource-policy"), fixed("same-origin")),
    ]
});

#[cfg(test)]
mod tests;
