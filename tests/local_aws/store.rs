//! S3: the protocol by `s3s`, the objects in memory under one lock, faults on demand.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, SystemTime};

use base64::Engine;
use bytes::Bytes;
use hyper::HeaderMap;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::sync::watch;

use super::http::{self, Drop, HttpRequest, HttpResponse, answer, xml};
use super::sessions::Sessions;
use super::{BUCKET, REGION};

mod faults;
mod protocol;

pub(crate) use faults::Fault;

/// How much of an object is hashed before other tasks may run.
const MEASURED_AT_ONCE_BYTES: usize = 256 * 1024;

/// An object in the bucket.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    pub(crate) key: String,
    /// The body; empty where the store only measures, see [`Store::measure_only`].
    pub(crate) body: Bytes,
    /// Length of the body, in bytes.
    pub(crate) size: usize,
    /// Lines of the body.
    pub(crate) lines: usize,
    /// SHA-256 of the body, in lower-case hex.
    pub(crate) sha256: String,
    /// `x-amz-meta-*`, without that prefix.
    pub(crate) metadata: HashMap<String, String>,
    /// The headers of the request that stored it.
    pub(crate) headers: HeaderMap,
    pub(crate) last_modified: SystemTime,
}

impl Object {
    /// The body as text, a line each.
    pub(crate) fn text_lines(&self) -> Vec<String> {
        let text = std::str::from_utf8(&self.body).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

/// What a request asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    PutObject,
    GetObject,
    HeadObject,
    ListObjects,
    GetBucketLocation,
    Other,
}

/// One request that arrived.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) operation: Operation,
    /// Decoded; empty where the operation has none.
    pub(crate) key: String,
    pub(crate) headers: HeaderMap,
    /// Status of the answer, none where there is none (yet).
    pub(crate) status: Option<u16>,
}

#[derive(Default)]
struct State {
    /// In the order of arrival; a key that is written again moves to the end.
    objects: Vec<Object>,
    requests: Vec<Request>,
    faults: Vec<Fault>,
    overwritten: usize,
    measure_only: bool,
    tagging_allowed: bool,
}

/// The S3 endpoint with its one bucket.
pub(crate) struct Store {
    address: OnceLock<SocketAddr>,
    state: Mutex<State>,
    held: watch::Sender<bool>,
    region: Mutex<Option<String>>,
}

impl Store {
    pub(crate) async fn start(sessions: Arc<Sessions>) -> Arc<Store> {
        let store = Arc::new(Store {
            address: OnceLock::new(),
            state: Mutex::default(),
            held: watch::Sender::new(false),
            region: Mutex::new(Some(REGION.into())),
        });
        let mut builder = S3ServiceBuilder::new(protocol::Backend(store.clone()));
        builder.set_auth(protocol::Identities(sessions.clone()));
        builder.set_access(protocol::Policy { store: store.clone(), sessions });
        let service = builder.build();
        let handler = store.clone();
        let address = http::serve(move |request| handler.clone().handle(service.clone(), request)).await;
        store.address.get_or_init(|| address);
        store
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address.get().unwrap())
    }

    /// Every object, in the order of arrival.
    pub(crate) fn objects(&self) -> Vec<Object> {
        self.state().objects.clone()
    }

    /// The objects whose key contains `part`, in the order of arrival.
    pub(crate) fn objects_with(&self, part: &str) -> Vec<Object> {
        self.objects().into_iter().filter(|object| object.key.contains(part)).collect()
    }

    /// Every line of every object, in the order of arrival.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.objects().iter().flat_map(Object::text_lines).collect()
    }

    /// How many lines all objects hold.
    pub(crate) fn line_count(&self) -> usize {
        self.state().objects.iter().map(|object| object.lines).sum()
    }

    /// How many PUTs replaced an object. Must stay 0.
    pub(crate) fn overwritten(&self) -> usize {
        self.state().overwritten
    }

    /// Every request that arrived, in order.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.state().requests.clone()
    }

    /// How many PUTs arrived, answered or not.
    pub(crate) fn put_count(&self) -> usize {
        self.state().requests.iter().filter(|request| request.operation == Operation::PutObject).count()
    }

    /// Makes a fault happen; of several that match a request the oldest does.
    pub(crate) fn inject(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Ends every fault and lets go what was held.
    pub(crate) fn heal(&self) {
        self.state().faults.clear();
        self.release_puts();
    }

    /// Holds every PUT that arrives, unread, until [`Store::release_puts`].
    pub(crate) fn hold_puts(&self) {
        self.held.send_replace(true);
    }

    /// Lets held PUTs go on.
    pub(crate) fn release_puts(&self) {
        self.held.send_replace(false);
    }

    /// From now on keeps size, line count, hash and metadata of an object, not its body.
    pub(crate) fn measure_only(&self) {
        self.state().measure_only = true;
    }

    /// Adds `s3:PutObjectTagging` to the role's policy.
    pub(crate) fn allow_tagging(&self) {
        self.state().tagging_allowed = true;
    }

    /// What GetBucketLocation answers; none is the null that stands for us-east-1.
    pub(crate) fn set_region(&self, region: Option<&str>) {
        *self.region.lock().unwrap() = region.map(str::to_owned);
    }

    /// Puts an object past the protocol, as another writer would.
    pub(crate) fn put(&self, key: &str, body: impl Into<Bytes>, metadata: HashMap<String, String>) {
        let object = Object::new(key, body.into(), metadata, HeaderMap::new());
        self.state().insert(object);
    }

    /// Changes an object past the protocol, as an attacker or an accident would; false where there is none.
    pub(crate) fn change(&self, key: &str, change: impl FnOnce(&mut Object)) -> bool {
        let mut state = self.state();
        let Some(object) = state.objects.iter_mut().find(|object| object.key == key) else { return false };
        change(object);
        object.measure();
        true
    }

    /// Removes an object past the protocol; false where there is none.
    pub(crate) fn remove(&self, key: &str) -> bool {
        let mut state = self.state();
        let before = state.objects.len();
        state.objects.retain(|object| object.key != key);
        state.objects.len() < before
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    async fn handle(self: Arc<Self>, service: S3Service, request: HttpRequest) -> Result<HttpResponse, Drop> {
        let (operation, key) = what_is_asked(&request);
        let headers = request.headers().clone();
        let (index, fault) = {
            let mut state = self.state();
            state.requests.push(Request { operation, key: key.clone(), headers, status: None });
            (state.requests.len() - 1, state.next_fault(operation, &key))
        };
        if operation == Operation::PutObject {
            let mut held = self.held.subscribe();
            // The sender lives as long as the store, so waiting can't fail.
            let _ = held.wait_for(|held| !held).await;
        }
        let response = match fault {
            None => self.serve(&service, request).await?,
            Some(fault) => fault.happen(&self, &service, request, &key).await?,
        };
        let response = with_request_id(response, index);
        self.state().requests[index].status = Some(response.status().as_u16());
        Ok(response)
    }

    /// The service without faults.
    async fn serve(&self, service: &S3Service, request: HttpRequest) -> Result<HttpResponse, Drop> {
        service.call(request.map(s3s::Body::from)).await.map_err(|_| Drop)
    }
}

impl State {
    fn get(&self, key: &str) -> Option<&Object> {
        self.objects.iter().find(|object| object.key == key)
    }

    fn insert(&mut self, object: Object) {
        let before = self.objects.len();
        self.objects.retain(|existing| existing.key != object.key);
        self.overwritten += before - self.objects.len();
        self.objects.push(object);
    }

    fn next_fault(&mut self, operation: Operation, key: &str) -> Option<Fault> {
        let index = self.faults.iter().position(|fault| fault.matches(operation, key))?;
        let fault = self.faults[index].clone();
        if self.faults[index].use_up() {
            self.faults.remove(index);
        }
        Some(fault)
    }
}

impl Object {
    fn new(key: &str, body: Bytes, metadata: HashMap<String, String>, headers: HeaderMap) -> Object {
        let (key, sha256, last_modified) = (key.to_owned(), String::new(), SystemTime::now());
        let mut object = Object { key, body, size: 0, lines: 0, sha256, metadata, headers, last_modified };
        object.measure();
        object
    }

    fn measure(&mut self) {
        self.size = self.body.len();
        self.lines = 0;
        let mut hasher = env0_s3_logs::batch::Sha256Hasher::default();
        for part in self.body.chunks(MEASURED_AT_ONCE_BYTES) {
            self.lines += memchr::memchr_iter(b'\n', part).count();
            hasher.update(part);
            // Who shares the processor must not wait for all of a large object.
            std::thread::yield_now();
        }
        self.sha256 = hasher.finish().to_string();
    }
}

fn what_is_asked(request: &HttpRequest) -> (Operation, String) {
    let path = request.uri().path().trim_start_matches('/');
    let query = request.uri().query().unwrap_or_default();
    let (_, key) = path.split_once('/').unwrap_or((path, ""));
    let operation = match (request.method().as_str(), key.is_empty()) {
        ("PUT", false) if query.is_empty() || query == "x-id=PutObject" => Operation::PutObject,
        ("GET", false) => Operation::GetObject,
        ("HEAD", false) => Operation::HeadObject,
        ("GET", true) if query.split('&').any(|pair| pair.starts_with("location")) => Operation::GetBucketLocation,
        ("GET", true) => Operation::ListObjects,
        _ => Operation::Other,
    };
    (operation, http::percent_decode(key))
}

fn with_request_id(mut response: HttpResponse, index: usize) -> HttpResponse {
    if response.extensions().get::<faults::NoRequestId>().is_some() {
        return response;
    }
    let id = hyper::header::HeaderValue::try_from(format!("LOCAL{index:011}")).unwrap();
    response.headers_mut().insert("x-amz-request-id", id);
    response
}
