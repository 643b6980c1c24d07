//! One run of one point: the daemon, then the yardsticks.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::client::{self, Load, Outcome};
use crate::events::{self, EVENT_BYTES, TOKEN};
use crate::local_aws::LocalAws;
use crate::machine::Cores;
use crate::plan::Point;
use crate::process::Pinned;
use crate::yardsticks::{self, Appended};

/// The default is a minute: nobody waits that long for the last batch of each run.
const BATCH_MAX_AGE: &str = "2s";
/// How long the objects may take to arrive after the last acknowledgement.
const DELIVERY_DEADLINE: Duration = Duration::from_secs(300);
/// For the threads to rest before memory is read. Nothing tells when they do.
const SETTLE: Duration = Duration::from_millis(300);
/// The niceness of the threads of S3, STS and issuer.
const YIELDING_NICENESS: i32 = 15;
/// How long the pass at half load sends.
const HALF_LOAD_SECONDS: f64 = 2.0;
const HALF_LOAD_REQUESTS_MIN: f64 = 200.0;

/// What every run needs.
pub(crate) struct Bench {
    pub(crate) cores: Cores,
    pub(crate) binary: PathBuf,
    pub(crate) spool: PathBuf,
    pub(crate) env: Vec<String>,
    pub(crate) alone: bool,
    pub(crate) runtime: tokio::runtime::Runtime,
}

/// The figures of one run.
pub(crate) struct Run {
    pub(crate) acknowledged: usize,
    pub(crate) refused: usize,
    pub(crate) in_objects: usize,
    pub(crate) events_per_second: f64,
    /// Ingest and upload together.
    pub(crate) cpu_seconds: f64,
    /// How busy the measured core was while events were acknowledged.
    pub(crate) busy: f64,
    pub(crate) latency_ms: [f64; 3],
    pub(crate) half_load_p99_ms: Option<f64>,
    pub(crate) start_to_ready: Duration,
    pub(crate) idle_mib: f64,
    pub(crate) peak_mib: f64,
    /// Events a second, and CPU seconds a million.
    pub(crate) discard: Option<(f64, f64)>,
    pub(crate) keep: Option<(f64, f64)>,
    pub(crate) append: Option<Appended>,
}

impl Run {
    /// Why it doesn't count, if it doesn't.
    pub(crate) fn failure(&self, point: &Point) -> Option<String> {
        let sent = point.requests() * point.events_per_request;
        let whole = self.refused == 0 && self.acknowledged == sent && self.in_objects == sent;
        (!whole).then(|| {
            let Run { acknowledged, refused, in_objects, .. } = self;
            format!("{point}: {sent} events sent, {refused} requests refused, {acknowledged} events acknowledged, {in_objects} in the objects")
        })
    }
}

impl Bench {
    pub(crate) fn run(&self, point: &Point) -> Result<Run> {
        let requests = Arc::new(events::requests(point)?);
        let aws = local_aws()?;
        let mut run = self.runtime.block_on(self.daemon(point, &requests, &aws))?;
        if !self.alone {
            let spool = self.spool.display().to_string();
            run.discard = Some(self.runtime.block_on(self.server(&[yardsticks::DISCARD], point, &requests))?);
            run.keep = Some(self.runtime.block_on(self.server(&[yardsticks::KEEP, &spool], point, &requests))?);
            run.append = Some(yardsticks::run_append(self.cores.measured, &self.spool, point)?);
        }
        Ok(run)
    }

    async fn daemon(&self, point: &Point, requests: &Arc<Vec<Vec<u8>>>, aws: &LocalAws) -> Result<Run> {
        if point.codec == "none" {
            aws.s3.measure_only();
        }
        if point.backlog {
            aws.s3.hold_puts();
        }
        let folder = tempfile::tempdir_in(&self.spool)?;
        let daemon = self.start(point, aws, folder.path())?;
        while aws.sts.sessions_issued() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(SETTLE).await;
        let idle_mib = daemon.memory_mib("VmRSS")?;

        let load = |count, pace| Load {
            address: daemon.address,
            requests: requests.clone(),
            count,
            connections: point.connections,
            pace,
        };
        let cpu_before = daemon.cpu_seconds()?;
        let outcome = client::send(load(point.requests(), None)).await?;
        let cpu_acknowledged = daemon.cpu_seconds()? - cpu_before;
        aws.s3.release_puts();
        let in_objects = delivered(aws, point, outcome.acknowledged).await?;
        let cpu_seconds = daemon.cpu_seconds()? - cpu_before;
        let peak_mib = daemon.memory_mib("VmHWM")?;

        let seconds = outcome.elapsed.as_secs_f64();
        let half_load_p99_ms = match self.alone {
            true => None,
            false => {
                let pace = point.requests() as f64 / seconds / 2.0;
                let count = (pace * HALF_LOAD_SECONDS).max(HALF_LOAD_REQUESTS_MIN) as usize;
                Some(client::send(load(count, Some(pace))).await?.latency_ms(0.99))
            }
        };
        let Outcome { acknowledged, refused, .. } = outcome;
        Ok(Run {
            acknowledged,
            refused,
            in_objects,
            events_per_second: acknowledged as f64 / seconds,
            cpu_seconds,
            busy: cpu_acknowledged / seconds,
            latency_ms: [0.5, 0.99, 0.999].map(|share| outcome.latency_ms(share)),
            half_load_p99_ms,
            start_to_ready: daemon.start_to_ready,
            idle_mib,
            peak_mib,
            discard: None,
            keep: None,
            append: None,
        })
    }

    fn start(&self, point: &Point, aws: &LocalAws, folder: &std::path::Path) -> Result<Pinned> {
        let mut environment = aws.environment();
        environment.extend([
            ("ENV0_S3_LOG_INGEST_TOKEN", TOKEN.into()),
            ("ENV0_S3_LOG_SPOOL_DIR", folder.join("spool").display().to_string()),
            ("ENV0_S3_LOG_SPOOL_MAX_BYTES", "64GiB".into()),
            ("ENV0_S3_LOG_LISTEN_ADDR", "127.0.0.1:0".into()),
            ("ENV0_S3_LOG_ADMIN_ADDR", "127.0.0.1:0".into()),
            ("ENV0_S3_LOG_BATCH_MAX_AGE", BATCH_MAX_AGE.into()),
            ("ENV0_S3_LOG_COMPRESSION", point.codec.clone()),
        ]);
        let environment = environment.into_iter().map(|(name, value)| (name.to_owned(), value));
        let added = self
            .env
            .iter()
            .filter_map(|pair| pair.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())));
        let environment: Vec<_> = environment.chain(added).collect();
        Pinned::start(self.cores.measured, &self.binary, &["run"], &environment, |line| {
            let entry: serde_json::Value = serde_json::from_str(line).ok()?;
            let field = |name: &str| entry.get(name).or(entry["fields"].get(name)).and_then(|value| value.as_str());
            field("listen.addr").filter(|_| field("message") == Some("listening"))?.parse().ok()
        })
    }

    async fn server(&self, words: &[&str], point: &Point, requests: &Arc<Vec<Vec<u8>>>) -> Result<(f64, f64)> {
        let server = Pinned::start(self.cores.measured, &std::env::current_exe()?, words, &[], |line| {
            line.strip_prefix(yardsticks::LISTENING)?.trim().parse().ok()
        })?;
        let count = point.requests();
        let before = server.cpu_seconds()?;
        let load = Load {
            address: server.address,
            requests: requests.clone(),
            count,
            connections: point.connections,
            pace: None,
        };
        let outcome = client::send(load).await?;
        let events = (count * point.events_per_request) as f64;
        Ok((events / outcome.elapsed.as_secs_f64(), (server.cpu_seconds()? - before) / events * 1e6))
    }
}

/// On threads that leave the client's core to the client: while S3 hashes an object, answers that have come
/// must not wait to be noticed.
fn local_aws() -> Result<LocalAws> {
    let start = || {
        rustix::process::nice(YIELDING_NICENESS)?;
        anyhow::Ok(LocalAws::start())
    };
    std::thread::spawn(start).join().map_err(|_| anyhow::anyhow!("the local AWS does not start"))?
}

/// Waits until the bucket has as many events as were acknowledged, and counts them.
async fn delivered(aws: &LocalAws, point: &Point, acknowledged: usize) -> Result<usize> {
    let deadline = Instant::now() + DELIVERY_DEADLINE;
    let in_metadata = || {
        let objects = aws.s3.objects();
        objects.iter().filter_map(|object| object.metadata.get("env0-records")?.parse::<usize>().ok()).sum::<usize>()
    };
    while in_metadata() < acknowledged {
        if Instant::now() > deadline {
            bail!("{point}: {acknowledged} events were acknowledged, but the objects have {}", in_metadata());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    match point.codec.as_str() {
        "none" => Ok(aws.s3.line_count()),
        codec => aws.s3.objects().iter().map(|object| lines(codec, &object.body)).sum(),
    }
}

fn lines(codec: &str, body: &[u8]) -> Result<usize> {
    let mut plain = Vec::with_capacity(16 * EVENT_BYTES * body.len() / EVENT_BYTES);
    match codec {
        "gzip" => std::io::copy(&mut flate2::read::GzDecoder::new(body), &mut plain)?,
        _ => std::io::copy(&mut zstd::Decoder::new(body)?, &mut plain)?,
    };
    Ok(memchr::memchr_iter(b'\n', &plain).count())
}
