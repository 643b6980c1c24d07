//! A real spool on a real disk, real credentials and a real client, and an S3 that answers as each test says.

mod disk;
mod names;
mod outage;
mod shutdown;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use axum::http::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use tokio_util::sync::CancellationToken;

use super::attempt::put;
use super::*;
use crate::batch::{ByType, Sha256, SpoolName, Stage};
use crate::config::Config;
use crate::credentials::Credentials;
use crate::network::Network;
use crate::oidc::{OidcToken, Source};
use crate::s3::S3;
use crate::spool::disk::OsDisk;
use crate::spool::manifest::Destination;
use crate::spool::{QUARANTINE, Settings, Spool};
use crate::testing::{self, Seen, Server, answer, s3_error, soon, sts_that_gives_sessions, until};

const TYPE: LogType = LogType::Deployments;
const PROJECT: &str = "env0_s3_logs_";
const LINE: &str = "{\"message\":\"one\"}\n";

type Judge = Box<dyn FnMut(&Seen) -> Response<Bytes> + Send>;

/// The daemon from its spool down, and what it talks to.
struct Case {
    flusher: Option<Flusher>,
    states: ByType<Arc<Mutex<DeliveryStatus>>>,
    /// There until the lanes are started.
    sealed: Option<ByType<SealedBatches>>,
    spool: Spool,
    credentials: Credentials,
    config: Config,
    network: Network,
    s3: Server,
    judge: Arc<Mutex<Judge>>,
    metrics: PrometheusRecorder,
    dir: tempfile::TempDir,
    _sts: Server,
}

impl Case {
    /// Has a session; sends nothing before [`Case::flush`].
    async fn new(judge: impl FnMut(&Seen) -> Response<Bytes> + Send + 'static) -> Case {
        let case = Case::with(|config| Config { oidc_token: Some("token".into()), ..config }, judge).await;
        soon(case.credentials.wait_session()).await;
        case
    }

    /// Without a session before [`Case::hand_over`].
    async fn without_a_session() -> Case {
        let case = Case::with(|config| config, first([])).await;
        until("the credentials wait", || case.credentials.status().waits_for.is_some()).await;
        case
    }

    fn hand_over(&self) {
        self.credentials.offer(OidcToken::own("token", Source::HandOver).unwrap());
    }

    async fn with(
        change: impl FnOnce(Config) -> Config,
        judge: impl FnMut(&Seen) -> Response<Bytes> + Send + 'static,
    ) -> Case {
        let judge: Arc<Mutex<Judge>> = Arc::new(Mutex::new(Box::new(judge)));
        let judged_by = judge.clone();
        let s3 = Server::start(move |request| (judged_by.lock().unwrap())(request)).await;
        let sts = sts_that_gives_sessions().await;
        let dir = tempfile::tempdir().unwrap();
        let config = change(Config {
            endpoint_url_sts: Some(sts.url()),
            bucket_path: "acme/logs".to_owned(),
            ..testing::config(&s3.url())
        });
        let network = Network::new(&config.network).unwrap();
        let credentials = Credentials::start(&config, &network, "id", CancellationToken::new());
        let settings = Settings {
            dir: dir.path().to_owned(),
            max_bytes: 1 << 20,
            batch_max_bytes: 1 << 16,
            batch_max_age: Duration::from_secs(3600),
            codec: config.compression,
            destination: Destination {
                endpoint: s3.url(),
                bucket: config.bucket_name.clone(),
                region: config.aws_region.clone(),
                path: config.bucket_path.clone(),
            },
            copies: false,
        };
        let (spool, sealed) = Spool::open(&settings, Arc::new(OsDisk)).unwrap();
        Case {
            flusher: None,
            states: Default::default(),
            sealed: Some(sealed),
            spool,
            credentials,
            config,
            network,
            s3,
            judge,
            metrics: PrometheusBuilder::new().build_recorder(),
            dir,
            _sts: sts,
        }
    }

    /// From now on S3 answers as `judge` says.
    fn s3_says(&self, judge: impl FnMut(&Seen) -> Response<Bytes> + Send + 'static) {
        *self.judge.lock().unwrap() = Box::new(judge);
    }

    /// A batch of these lines, closed; the key that they were acknowledged with.
    async fn batch(&self, log_type: LogType, lines: &'static str) -> String {
        let records = lines.lines().count() as u64;
        let receipt = self.spool.append(log_type, Bytes::from(lines), records).await.unwrap();
        self.spool.seal();
        object_key(&self.config.bucket_path, log_type, &receipt.batch)
    }

    /// The file of a batch that is not sent yet.
    async fn sealed_file(&self, key: &str) -> PathBuf {
        let (_, suffix) = key.trim_end_matches(".log").rsplit_once('_').unwrap();
        let is_it = |name: &String| name.contains(&format!("_{suffix}.")) && name.ends_with(".sealed");
        until("the batch is sealed", || self.files().iter().any(is_it)).await;
        self.spool.folder(TYPE).dir.join(self.files().into_iter().find(is_it).unwrap())
    }

    /// Names in the type's folder.
    fn files(&self) -> Vec<String> {
        names_in(self.spool.folder(TYPE).dir.clone())
    }

    fn quarantine(&self) -> Vec<String> {
        names_in(self.dir.path().join(QUARANTINE))
    }

    /// The stages of the batches that are not delivered, oldest first.
    fn stages(&self) -> Vec<Stage> {
        let stage = |name: String| match name.parse() {
            Ok(SpoolName::Sealed(name)) => Some(name.stage),
            _ => None,
        };
        self.files().into_iter().filter_map(stage).filter(|stage| *stage != Stage::Sent).collect()
    }

    fn uploads(&self) -> Uploads {
        Uploads {
            spool: self.spool.clone(),
            s3: S3::new(&self.config, &self.network, self.credentials.clone()),
            credentials: self.credentials.clone(),
            bucket_path: self.config.bucket_path.clone(),
            concurrency: self.config.upload_concurrency,
            signing_key: None,
            upload_duration: metrics::histogram!("upload_duration"),
        }
    }

    /// Starts the lanes.
    fn flush(&mut self) {
        let sealed = self.sealed.take().unwrap();
        // A recorder of this test's own: other tests of the process count, too.
        let flusher = metrics::with_local_recorder(&self.metrics, || Flusher::start(self.uploads(), sealed)).unwrap();
        self.states = flusher.states();
        self.flusher = Some(flusher);
    }

    /// Gives every batch that waits its last attempt; what the figures say adds up after it.
    async fn drain(&mut self) {
        self.drain_until(Instant::now() + Duration::from_secs(20)).await;
        for log_type in LogType::ALL {
            let spooled = self.spool.folder(log_type).status("");
            let uploaded = self.status(log_type).events_uploaded;
            assert_eq!(
                spooled.events_accepted,
                uploaded + spooled.events_spooled + spooled.events_quarantined,
                "{spooled:?}"
            );
        }
    }

    /// Ends as the daemon does: all is sealed before the lanes hear that it is to end.
    async fn drain_until(&mut self, deadline: Instant) {
        self.spool.close().await;
        soon(self.flusher.take().unwrap().drain(deadline)).await;
    }

    fn status(&self, log_type: LogType) -> DeliveryStatus {
        self.states[log_type].lock().unwrap().clone()
    }

    /// Waits until this many attempts of the type have failed in a row.
    async fn failed(&self, attempts: u64) -> Trouble {
        let mut failed = None;
        until("attempts fail", || {
            failed = self.status(TYPE).error.filter(|error| error.attempts >= attempts);
            failed.is_some()
        })
        .await;
        failed.unwrap()
    }

    /// Waits until this many objects of the type are delivered.
    async fn delivered(&self, objects: u64) {
        until("objects are delivered", || self.status(TYPE).objects_uploaded >= objects).await;
        assert_eq!(self.status(TYPE).objects_uploaded, objects);
    }

    /// What S3 was asked.
    fn puts(&self) -> Vec<Seen> {
        let seen = self.s3.seen();
        assert!(seen.iter().all(|request| request.method == "PUT"), "{seen:?}");
        seen
    }

    /// The keys that S3 was asked for.
    fn keys(&self) -> Vec<String> {
        self.puts().iter().map(key).collect()
    }

    /// By its name without the project's.
    fn metric(&self, name: &str) -> Option<f64> {
        let text = self.metrics.handle().render();
        let value = |line: &str| line.trim_start_matches(PROJECT).strip_prefix(name)?.trim().parse().ok();
        text.lines().find_map(value)
    }
}

fn names_in(folder: PathBuf) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn key(put: &Seen) -> String {
    let path = put.uri.split('?').next().unwrap();
    path.strip_prefix("/logs/").unwrap().replace("%3A", ":")
}

/// The five random characters.
fn suffix(key: &str) -> &str {
    let end = key.len() - ".log".len();
    &key[end - 5..end]
}

fn metadata<'a>(put: &'a Seen, name: &str) -> Option<&'a str> {
    put.header(&format!("x-amz-meta-env0-{name}"))
}

fn ok() -> Response<Bytes> {
    testing::s3_ok()
}

/// These answers in turn, then that all is well.
fn first(answers: impl IntoIterator<Item = Response<Bytes>>) -> impl FnMut(&Seen) -> Response<Bytes> + Send {
    let mut answers = answers.into_iter().collect::<Vec<_>>().into_iter();
    move |_| answers.next().unwrap_or_else(ok)
}

fn denied() -> Response<Bytes> {
    s3_error(403, "AccessDenied", "Access Denied")
}

fn name_taken() -> Response<Bytes> {
    s3_error(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
}

fn internal_error() -> Response<Bytes> {
    s3_error(500, "InternalError", "We encountered an internal error.")
}

/// Makes the batch wait until the test drains, so that the test has time to look.
fn held(mut answer: Response<Bytes>) -> Response<Bytes> {
    answer.headers_mut().insert("retry-after", "3600".parse().unwrap());
    answer
}

#[tokio::test]
async fn a_sealed_batch_becomes_one_object_with_its_place_in_the_chain_and_its_file_goes() {
    let mut case = Case::new(first([])).await;
    let lines = ["{\"message\":\"one\"}\n{\"message\":\"two\"}\n", "{\"message\":\"three\"}\n"];
    let mut keys = vec![case.batch(TYPE, lines[0]).await];
    case.flush();
    case.delivered(1).await;
    keys.push(case.batch(TYPE, lines[1]).await);
    case.delivered(2).await;
    case.drain().await;

    let hashes = lines.map(|lines| Sha256::of(lines.as_bytes()));
    let puts = case.puts();
    assert_eq!(case.keys(), keys);
    for (index, previous) in [(0, Sha256::ZERO), (1, hashes[0])] {
        let put = &puts[index];
        assert_eq!(put.body, lines[index]);
        for (name, value) in [
            ("instance", case.spool.chain_instance(TYPE)),
            ("sequence", &(index + 1).to_string()),
            ("records", &lines[index].lines().count().to_string()),
            ("sha256", &hashes[index].to_string()),
            ("previous-sha256", &previous.to_string()),
        ] {
            assert_eq!(metadata(put, name), Some(value), "{name}");
        }
        for name in ["renamed-from", "gaps", "signature"] {
            assert_eq!(metadata(put, name), None, "{name}");
        }
    }

    let status = case.status(TYPE);
    assert_eq!((status.events_uploaded, status.objects_uploaded), (3, 2));
    let shown: Vec<_> = status.last_objects.iter().map(|object| (&*object.key, object.bytes, object.records)).collect();
    let sizes = lines.map(|lines| lines.len() as u64);
    assert_eq!(shown, [(&*keys[1], sizes[1], 1), (&*keys[0], sizes[0], 2)], "newest first");
    assert_eq!((status.error, status.last_outage), (None, None));
    assert_eq!(case.status(LogType::Audits), DeliveryStatus::default());

    assert_eq!(case.stages(), []);
    assert_eq!(case.spool.usage().used_bytes(TYPE), 0);
    let label = "{type=\"env0-deployments\"}";
    assert_eq!(case.metric(&format!("objects_uploaded_total{label}")), Some(2.0));
    assert_eq!(case.metric(&format!("upload_bytes_total{label}")), Some((sizes[0] + sizes[1]) as f64));
    assert_eq!(case.metric("upload_duration_count"), Some(2.0));
    let uploaded = case.metric(&format!("last_uploaded_timestamp_seconds{label}")).unwrap();
    assert!((Timestamp::now().0.timestamp() as f64 - uploaded).abs() < 60.0, "{uploaded}");
}

#[tokio::test]
async fn a_backlog_goes_oldest_first_and_the_status_shows_the_newest_objects() {
    let one_slot = |config| Config { oidc_token: Some("token".into()), upload_concurrency: 1, ..config };
    let mut case = Case::with(one_slot, first([])).await;
    let mut keys = Vec::new();
    for _ in 0..LAST_OBJECTS + 2 {
        keys.push(case.batch(TYPE, LINE).await);
    }
    case.flush();
    case.delivered(keys.len() as u64).await;
    assert_eq!(case.keys(), keys);
    let shown: Vec<String> = case.status(TYPE).last_objects.into_iter().map(|object| object.key).collect();
    assert_eq!(shown, keys.into_iter().rev().take(LAST_OBJECTS).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_attempt_has_half_a_minute_and_its_size_at_64_kib_a_second() {
    let mut case = Case::new(first([])).await;
    case.batch(TYPE, LINE).await;
    let sealed = &mut case.sealed.as_mut().unwrap()[TYPE];
    let mut batch = soon(sealed.recv()).await.unwrap();
    let (uploads, folder) = (case.uploads(), case.spool.folder(TYPE));
    for (kib, seconds) in [(0, 30), (63, 30), (64, 31), (16 * 1024, 286), (1024 * 1024, 16_414)] {
        batch.bytes = kib * 1024;
        assert_eq!(put(&uploads, &folder, &batch, &[]).timeout, Duration::from_secs(seconds), "{kib} KiB");
    }
}
