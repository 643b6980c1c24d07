//! `run`: binds the sockets, owns the order of start and of shutdown.

mod bucket_facts;
mod disk_facts;
mod file_watch;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::SetOnce;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admin::{Check, Health, Sources};
use crate::assembly::{Failure, Files, spool_settings, start_cloudwatch, start_flusher};
use crate::batch::{self, ByType, LogType};
use crate::cloudwatch::lane::{Lanes, Watched};
use crate::config::Config;
use crate::credentials::Credentials;
use crate::daemon::bucket_facts::BucketFacts;
use crate::daemon::disk_facts::DiskWatch;
use crate::daemon::file_watch::FileWatch;
use crate::exit_code;
use crate::http::descriptors;
use crate::http::listener::{self, Listener};
use crate::http::refusals;
use crate::http::site::{self, Site};
use crate::http::tls::Tls;
use crate::ingest::auth::Authenticator;
use crate::ingest::{self, BothWays, Ingest};
use crate::oidc::Verifier;
use crate::pull::Puller;
use crate::s3::S3;
use crate::spool::Spool;
use crate::spool::disk::OsDisk;
use crate::status::{
    CredentialsStatus, DeliveryStatus, DestinationStatus, Phase, SpoolStatus, Status, Timestamp, TypeStatus,
};
use crate::telemetry::metrics::Exporter;

/// After SIGTERM: how long new requests are still taken while load balancers look away.
const STILL_INGESTING: Duration = Duration::from_secs(1);
/// The part of the grace period that is kept for the exit itself.
const EXIT_RESERVE: Duration = Duration::from_secs(2);
/// Bodies that began before SIGTERM may arrive until this fraction of the grace period is over: a third.
const BODIES_SHARE: u32 = 3;
/// How long the end waits for calls of CloudWatch that are under way. It is short, because senders are refused
/// meanwhile, and batches that wait for CloudWatch stay on the disk.
const LAST_CALLS: Duration = Duration::from_secs(1);
/// How long the end waits for answers that are on their way when the listeners close.
const LAST_ANSWERS: Duration = Duration::from_millis(500);
/// A writer that has been at one piece of work for so long counts as hanging.
const WRITER_STALLED: Duration = Duration::from_secs(30);
/// Connections that the system may accept before the daemon takes them. Beyond it the system drops new ones, and their
/// clients try again after a second or more. The system cuts it to its own limit (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;
/// Sent where a write exceeds the limit of a file's size (`ulimit -f`). It is caught, so that the write
/// fails and the process goes on.
const SIGXFSZ: i32 = 25;

/// What `/status` and the probes read; filled as the parts come up.
pub struct Probe {
    config: Config,
    started_at: Timestamp,
    phase: AtomicU8,
    parts: Mutex<Option<Parts>>,
}

#[derive(Clone)]
struct Parts {
    spool: Spool,
    credentials: Credentials,
    verifier: Verifier,
    deliveries: ByType<Arc<Mutex<DeliveryStatus>>>,
    puller: Option<Puller>,
    cloudwatch: Option<Watched>,
    disk: Arc<DiskWatch>,
    bucket: BucketFacts,
    both_ways: BothWays,
}

impl Probe {
    fn new(config: Config) -> Arc<Probe> {
        let phase = AtomicU8::new(Phase::Starting as u8);
        Arc::new(Probe { config, started_at: Timestamp::now(), phase, parts: Mutex::new(None) })
    }

    fn parts(&self) -> Option<Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Where the daemon is in its life.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            phase if phase == Phase::Running as u8 => Phase::Running,
            phase if phase == Phase::Draining as u8 => Phase::Draining,
            _ => Phase::Starting,
        }
    }

    /// How long the slowest spool writer has been at one piece of work.
    pub fn writers_busy_for(&self) -> Duration {
        self.parts().map(|parts| parts.spool.busy_for()).unwrap_or_default()
    }

    /// A snapshot of everything.
    pub fn status(&self) -> Status {
        let config = &self.config;
        let parts = self.parts();
        let spool = parts.as_ref().map(|parts| &parts.spool);
        let disk = parts.as_ref().map(|parts| parts.disk.latest()).unwrap_or_default();
        let of_type = |log_type: LogType| {
            let delivery = parts.as_ref().map(|parts| &parts.deliveries[log_type]);
            TypeStatus {
                log_type,
                pulled_and_sent: parts.as_ref().is_some_and(|parts| parts.both_ways.has_seen(log_type)),
                spooled: spool
                    .map(|spool| spool.folder(log_type).status(spool.chain_instance(log_type)))
                    .unwrap_or_default(),
                delivery: delivery
                    .map(|delivery| delivery.lock().unwrap_or_else(PoisonError::into_inner).clone())
                    .unwrap_or_default(),
            }
        };
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: spool.map(|spool| spool.instance().to_owned()).unwrap_or_default(),
            phase: self.phase(),
            started_at: self.started_at,
            now: Timestamp::now(),
            destination: destination(config),
            spool: SpoolStatus {
                dir: config.spool_dir.display().to_string(),
                bytes: spool
                    .map_or(0, |spool| LogType::ALL.iter().map(|log_type| spool.usage().used_bytes(*log_type)).sum()),
                limit_bytes: spool.map_or(config.spool_max_bytes, |spool| spool.usage().limit_bytes()),
                disk_available_bytes: disk.available_bytes,
                quarantine_bytes: disk.quarantine_bytes,
                disk_asked_at: disk.asked_at,
            },
            types: LogType::ALL.map(of_type).into(),
            bucket: parts.as_ref().and_then(|parts| parts.bucket.latest()),
            connections_refused_total: refusals::totals(),
            pull: parts.as_ref().and_then(|parts| Some(parts.puller.as_ref()?.status())).unwrap_or_default(),
            cloudwatch: parts.as_ref().and_then(|parts| Some(parts.cloudwatch.as_ref()?.status())),
            credentials: parts.map(|parts| CredentialsStatus {
                refused_tokens: parts.verifier.refusals(),
                ..parts.credentials.status()
            }),
        }
    }
}

/// Where objects go.
fn destination(config: &Config) -> DestinationStatus {
    DestinationStatus {
        bucket: config.bucket_name.clone(),
        region: config.aws_region.clone(),
        path: config.bucket_path.clone(),
        endpoint: config.endpoint_url_s3.clone(),
    }
}

/// What the admin listener reads. A writer counts as hanging when it has been at one write
/// for longer than `stalled_after`.
fn sources(probe: &Arc<Probe>, stalled_after: Duration) -> Sources {
    let (status, live, ready) = (Arc::clone(probe), Arc::clone(probe), Arc::clone(probe));
    Sources {
        status: Box::new(move || status.status()),
        live: Box::new(move || {
            let busy = live.writers_busy_for();
            let stalled =
                (busy > stalled_after).then(|| format!("a writer has been at one write for {} s", busy.as_secs()));
            vec![Check { name: "writers", failure: stalled }]
        }),
        ready: Box::new(move || {
            let phase = ready.phase();
            let starting = (phase == Phase::Starting).then(|| "the spool is being recovered".to_owned());
            let draining = (phase == Phase::Draining).then(|| "a signal asked for the end".to_owned());
            let disk = LogType::ALL.into_iter().find_map(|log_type| ready.parts()?.spool.failing(log_type));
            let disk = disk.map(|error| error.to_string());
            vec![
                Check { name: "started", failure: starting },
                Check { name: "disk", failure: disk },
                Check { name: "not-draining", failure: draining },
            ]
        }),
    }
}

/// Runs the daemon until a signal ends it.
pub async fn run(config: Config, files: Files) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    if let Some(problem) = batch::clock_problem() {
        return Err(Failure::new(exit_code::UNAVAILABLE, anyhow::anyhow!("{problem}; set it, and start again")));
    }
    let open_files = descriptors::raise_limit();
    let Files { network, verifier, tls, signing_key } = files;
    if let Some(ended) = tls.as_ref().and_then(Tls::ended) {
        tracing::error!("{ended}");
    }
    let ingest_socket = match config.ingest {
        true => Some(bind("ENV0_S3_LOG_LISTEN_ADDR", config.listen_addr)?),
        false => None,
    };
    let admin_socket = bind("ENV0_S3_LOG_ADMIN_ADDR", config.admin_addr)?;
    let listen_address = ingest_socket.as_ref().map(local_address).transpose()?;
    let admin_address = local_address(&admin_socket)?;

    let probe = Probe::new(config.clone());
    let stop_admin = CancellationToken::new();
    let admin = tokio::spawn(Health::new(sources(&probe, WRITER_STALLED), Exporter::install()).serve(
        admin_socket,
        site::own_names(),
        stop_admin.clone(),
    ));

    let open_ingest = Arc::new(SetOnce::new());
    let ingest = open_ingest.clone();
    let stop_ingest = CancellationToken::new();
    let handler = Arc::new(move |request, guest| ingest::answer_once_started(ingest.clone(), request, guest));
    let serving = ingest_socket.map(|tcp| {
        let listener = Listener {
            name: "ingest",
            tcp,
            tls: tls.clone(),
            max_connections: connections(&config, open_files),
            site: ingest_site(&config),
        };
        tokio::spawn(listener.serve(handler, stop_ingest.clone()))
    });

    let settings = spool_settings(&config);
    let opened = tokio::select! {
        opened = tokio::task::spawn_blocking(move || Spool::open(&settings, Arc::new(OsDisk))) => opened,
        // SIGHUP does nothing here: every file was read a moment ago.
        () = signals.next(|| {}) => {
            // No event was taken yet, and the next start recovers from this one as from a crash.
            tracing::info!("stopped by a signal while the spool was being recovered; the next start begins anew");
            return Ok(());
        }
    };
    let (spool, sealed) = opened.map_err(|error| Failure::new(exit_code::SOFTWARE, error))??;
    let stop_credentials = CancellationToken::new();
    let credentials = Credentials::start(&config, &network, spool.instance(), stop_credentials.clone());
    let authenticator = Authenticator::new(&config, verifier.clone(), credentials.clone())
        .map_err(|error| Failure::new(exit_code::CONFIG, error))?;
    let cloudwatch = start_cloudwatch(&config, &network, &spool, &credentials, stop_credentials.clone())?;
    let (flusher, settled) = start_flusher(&config, &network, &spool, &credentials, signing_key, sealed)?;
    let tokens = (&verifier, &credentials);
    let puller =
        config.pull.as_ref().map(|pull| Puller::start(&config, pull, &network, &spool, settled, tokens)).transpose();
    let puller = puller.map_err(|error| Failure::new(exit_code::CONFIG, anyhow::Error::msg(error)))?;
    let disk = Arc::new(DiskWatch::start(config.spool_dir.clone(), spool.folder(LogType::Deployments)));
    let s3 = S3::new(&config, &network, credentials.clone());
    let bucket = BucketFacts::start(destination(&config), s3, credentials.clone(), stop_credentials.clone());
    let ingest = Ingest::new(&config, spool.clone(), authenticator.clone());
    let parts = Parts {
        spool: spool.clone(),
        credentials,
        verifier,
        deliveries: flusher.states(),
        puller: puller.clone(),
        cloudwatch: cloudwatch.as_ref().map(Lanes::watched),
        disk,
        bucket,
        both_ways: ingest.both_ways(),
    };
    *probe.parts.lock().unwrap_or_else(PoisonError::into_inner) = Some(parts);

    // It can't be set already: this is the only place that does.
    let _ = open_ingest.set(ingest.clone());
    probe.enter(Phase::Running);
    tracing::info!(listen.addr = listen_address.map(tracing::field::display), admin.addr = %admin_address, instance = spool.instance(), "listening");

    tell_systemd("READY=1");

    let files = FileWatch::start(tls, authenticator, puller.clone());
    signals.next(|| files.read_again()).await;
    tell_systemd("STOPPING=1");
    let started = Instant::now();
    let grace = config.shutdown_grace;
    probe.enter(Phase::Draining);
    tracing::info!(grace.seconds = grace.as_secs(), "shutting down: sealing and uploading what there is");
    let shutdown = async {
        tokio::time::sleep_until(started + STILL_INGESTING.min(grace / BODIES_SHARE)).await;
        ingest.refuse_new_requests();
        let _ = tokio::time::timeout_at(started + grace / BODIES_SHARE, ingest.idle()).await;
        ingest.refuse_bodies();
        if let Some(puller) = puller {
            puller.stop().await;
        }
        let deadline = started + grace.saturating_sub(EXIT_RESERVE);
        // Half of the time is left for uploads, even where a batch can't be sealed.
        let sealing = deadline.saturating_duration_since(Instant::now()) / 2;
        if tokio::time::timeout(sealing, spool.close()).await.is_err() {
            tracing::warn!(
                "a batch can't be sealed in time; it stays in the spool, and is sealed by the next start; see config/README.md#disk-refuses-writes"
            );
        }
        flusher.drain(deadline).await;
        if let Some(mut cloudwatch) = cloudwatch {
            let _ = tokio::time::timeout_at(deadline.min(Instant::now() + LAST_CALLS), cloudwatch.drain()).await;
        }
        stop_credentials.cancel();
        stop_admin.cancel();
        let _ = tokio::time::timeout(LAST_ANSWERS, admin).await;
        stop_ingest.cancel();
        if let Some(serving) = serving {
            let _ = tokio::time::timeout(LAST_ANSWERS, serving).await;
        }
    };
    tokio::select! {
        _ = tokio::time::timeout_at(started + grace, shutdown) => {
            let left: u64 = LogType::ALL.iter().map(|log_type| spool.usage().used_bytes(*log_type)).sum();
            tracing::info!(spool.bytes = left, "stopped; what the spool holds is sent after the next start");
        }
        () = signals.next(|| ()) => tracing::info!("stopped at once by a second signal; what the spool holds is sent after the next start"),
    }
    Ok(())
}

/// How many connections of ingest there may be when so many files may be open.
fn connections(config: &Config, open_files: u64) -> usize {
    let wanted = config.max_connections;
    let connections =
        descriptors::connections_within(open_files, wanted, config.upload_concurrency * LogType::ALL.len());
    if connections < wanted {
        tracing::warn!(
            open_files,
            "ENV0_S3_LOG_MAX_CONNECTIONS={wanted} is more than the limit of open files allows: {connections} are taken; \
             raise the hard limit (ulimit -Hn, LimitNOFILE=)"
        );
    }
    connections
}

/// Without credentials on loopback, requests under other host names are refused, so that no web page can send events.
fn ingest_site(config: &Config) -> Site {
    let open_to_browsers = !config.ingest_auth_required && config.listen_addr.ip().is_loopback();
    Site { has_pages: false, own_names: open_to_browsers.then(site::own_names) }
}

/// `sd_notify(3)`; without systemd nothing happens.
#[cfg(target_os = "linux")]
fn tell_systemd(state: &str) {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    let Some(path) = crate::config::notify_socket() else { return };
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let sent = UnixDatagram::unbound().and_then(|socket| socket.send_to_addr(state.as_bytes(), &address?));
    if let Err(error) = sent {
        tracing::warn!(%error, "systemd can't be told that the daemon is {state}");
    }
}

/// Other systems have no systemd.
#[cfg(not(target_os = "linux"))]
fn tell_systemd(_: &str) {}

fn bind(variable: &str, address: SocketAddr) -> Result<TcpListener, Failure> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restart doesn't wait until the system has forgotten the connections of the process before.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|error| {
        let (what, remedy) = listener::refused(variable, address, &error);
        Failure::new(exit_code::CANT_BIND, anyhow::anyhow!("{what}; {remedy}"))
    })
}

fn local_address(socket: &TcpListener) -> Result<SocketAddr, Failure> {
    socket.local_addr().map_err(|error| Failure::new(exit_code::SOFTWARE, error))
}

/// SIGTERM and SIGINT, which end the daemon, and SIGHUP, which does not.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    _file_size: Signal,
}

impl Signals {
    fn new() -> Result<Signals, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::new(exit_code::SOFTWARE, error));
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
            _file_size: listen(SignalKind::from_raw(SIGXFSZ))?,
        })
    }

    /// Waits for one that ends the daemon; `hung_up` is called for each SIGHUP until then.
    async fn next(&mut self, hung_up: impl Fn()) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hang_up.recv() => hung_up(),
            }
        }
    }
}

#[cfg(test)]
mod tests;
