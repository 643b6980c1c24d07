//! A local env0 in the process: its REST API on loopback, as far as the daemon pulls from it.
//!
//! Made from what env0 publishes. What it doesn't publish, and everything that can go wrong, is turned by a test:
//! [`Shape`] and [`Fault`].

// Each of the programs that share this module uses a part of it.
#![allow(dead_code, unused_imports)]
#![allow(clippy::unwrap_used)]

pub(crate) mod audits;
pub(crate) mod deployments;
mod serve;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

pub(crate) use audits::{Key, LastKey, Order, Shape};

/// The API key that exists.
pub(crate) const KEY: (&str, &str) = ("local-key-id", "local-key-secret-canary");
/// The organization that the key sees; the local issuer's tokens are of it.
pub(crate) const ORGANIZATION: &str = "51d48700-4aee-5a5d-a8a5-27a5c1471ac6";

/// What goes wrong with an answer.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// None: this one is answered.
    Pass,
    /// A status, a body, and `Retry-After` in seconds.
    Status(u16, &'static str, Option<u64>),
    /// 429 with `Retry-After` as a date, so many seconds from now.
    ThrottledUntil(u64),
    /// 200 with a page of HTML.
    Html,
    /// This status with a page of HTML.
    Page(u16),
    /// 200 with these bytes as JSON.
    Bytes(&'static [u8]),
    /// The connection ends in the middle of the body.
    Cut,
    /// The right answer, in chunks, so that no header tells its size.
    Chunked,
    /// The right answer, whose connection ends after so many bytes.
    CutAfter(usize),
    /// A body without an end.
    Endless,
    /// No answer at all; the connection is closed.
    Dropped,
    /// An answer that never comes.
    Silent,
    /// So many bytes of a body, and then nothing more.
    Stalls(usize),
    /// So many bytes are promised in the header.
    Promised(u64),
    /// 200 with another JSON.
    Json(&'static str),
    /// 302 to another address.
    Redirect(String),
}

/// The running API.
pub(crate) struct LocalEnv0 {
    world: Arc<World>,
    address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

/// What the API knows, and what it was asked.
#[derive(Default)]
pub(crate) struct World {
    state: Mutex<State>,
}

#[derive(Default)]
pub(crate) struct State {
    /// Organizations that the key sees beside [`ORGANIZATION`].
    pub(crate) other_organizations: Vec<String>,
    pub(crate) audits: audits::Trail,
    pub(crate) shape: Shape,
    /// How far its clock, which every answer tells, is behind this machine's.
    pub(crate) clock_behind: chrono::TimeDelta,
    pub(crate) environments: Vec<deployments::Environment>,
    /// Listed before the environments.
    pub(crate) odd_records: Vec<serde_json::Value>,
    /// Whether something is made between two pages of a list of deployments.
    pub(crate) pages_move: bool,
    /// Whether every page of environments and deployments is the first one.
    pub(crate) ignores_offset: bool,
    /// How long each answer takes.
    pub(crate) latency: std::time::Duration,
    /// Whether there is always one more page of environments without a deployment.
    pub(crate) endless: bool,
    /// Bytes of output in each record of a deployment.
    pub(crate) padding: usize,
    /// JSON in place of each such record's `variables`, where it isn't empty.
    pub(crate) variables: String,
    /// Listed before the steps of each deployment.
    pub(crate) odd_steps: Vec<serde_json::Value>,
    pub(crate) log_shape: deployments::LogShape,
    /// By the beginning of the path; each is used up by one request.
    pub(crate) faults: Vec<(String, VecDeque<Fault>)>,
    /// By the beginning of the path, until taken away.
    pub(crate) lasting: BTreeMap<String, Fault>,
    /// Path and query of every request.
    pub(crate) requests: Vec<String>,
    /// Requests that have no answer yet, and the most that there were.
    pub(crate) running: (usize, usize),
}

/// A segment of a path as requests hold it.
fn encoded(segment: &str) -> String {
    percent_encoding::utf8_percent_encode(segment, percent_encoding::NON_ALPHANUMERIC).to_string()
}

impl World {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl LocalEnv0 {
    /// Starts on a free loopback port.
    pub(crate) fn start() -> LocalEnv0 {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let world = Arc::new(World::default());
        let address = runtime.block_on(serve::start(world.clone()));
        LocalEnv0 { world, address, runtime: Some(runtime) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The variables that make a daemon pull from here, every 5 s.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("ENV0_API_KEY_ID", KEY.0.into()),
            ("ENV0_API_KEY_SECRET", KEY.1.into()),
            ("ENV0_S3_LOG_API_URL", self.url()),
            ("ENV0_S3_LOG_PULL_INTERVAL", "5s".into()),
        ]
    }

    /// Everything, to look at and to change.
    pub(crate) fn world(&self) -> MutexGuard<'_, State> {
        self.world.lock()
    }

    /// The next request whose path begins with `path` meets `fault`, after those that were injected before.
    pub(crate) fn inject(&self, path: &str, fault: Fault) {
        let mut world = self.world.lock();
        match world.faults.iter_mut().find(|(known, _)| known == path) {
            Some((_, faults)) => faults.push_back(fault),
            None => world.faults.push((path.to_owned(), [fault].into())),
        }
    }

    /// Every request whose path begins with `path` meets `fault`, until [`LocalEnv0::heal`].
    pub(crate) fn break_down(&self, path: &str, fault: Fault) {
        self.world.lock().lasting.insert(path.to_owned(), fault);
    }

    pub(crate) fn heal(&self) {
        let mut world = self.world.lock();
        world.lasting.clear();
        world.faults.clear();
    }

    /// How many requests came whose path begins with `path`.
    pub(crate) fn asked(&self, path: &str) -> usize {
        self.world.lock().requests.iter().filter(|request| request.starts_with(path)).count()
    }
}

impl Drop for LocalEnv0 {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
