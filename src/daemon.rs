//! `run`: binds the sockets, owns the order of start and of shutdown.

mod bucket_facts;
mod disk_facts;
mod file_watch;
mod probe;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::SetOnce;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admin::Health;
use crate::assembly::{Failure, Files, spool_settings, start_cloudwatch, start_flusher};
use crate::batch::{self, ByType, LogType};
use crate::cloudwatch::lane::Lanes;
use crate::config::Config;
use crate::credentials::Credentials;
use crate::daemon::bucket_facts::BucketFacts;
use crate::daemon::disk_facts::DiskWatch;
use crate::daemon::file_watch::FileWatch;
use crate::daemon::probe::{Parts, Probe, WRITER_STALLED, destination};
use crate::exit_code;
use crate::flusher::Flusher;
use crate::http::descriptors;
use crate::http::listener::{self, Listener};
use crate::http::site::{self, Site};
use crate::http::tls::Tls;
use crate::ingest::auth::Authenticator;
use crate::ingest::{self, Ingest};
use crate::pull::Puller;
use crate::s3::S3;
use crate::spool::disk::OsDisk;
use crate::spool::{SealedBatches, Spool};
use crate::status::Phase;
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
/// Connections that the system may accept before the daemon takes them. Beyond it the system drops new ones, and their
/// clients try again after a second or more. The system cuts it to its own limit (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;
/// Sent where a write exceeds the limit of a file's size (`ulimit -f`). It is caught, so that the write
/// fails and the process goes on.
const SIGXFSZ: i32 = 25;

/// Runs the daemon until a signal ends it. `settings` are the digests of [`crate::config::Loaded::digests`].
pub async fn run(config: Config, settings: BTreeMap<String, String>, files: Files) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    if let Some(problem) = batch::clock_problem() {
        return Err(Failure::new(exit_code::UNAVAILABLE, anyhow::anyhow!("{problem}; set it, and start again")));
    }
    let probe = Probe::new(config.clone(), settings);
    let listeners = Listeners::open(&config, files.tls.clone(), &probe)?;
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
    let opened = opened.map_err(|error| Failure::new(exit_code::SOFTWARE, error))??;
    let (running, files) = Running::start(&config, files, opened, &probe, listeners)?;
    tell_systemd("READY=1");
    signals.next(|| files.read_again()).await;

    tell_systemd("STOPPING=1");
    probe.enter(Phase::Draining);
    let (grace, spool) = (config.shutdown_grace, running.spool.clone());
    tracing::info!(grace.seconds = grace.as_secs(), "shutting down: sealing and uploading what there is");
    tokio::select! {
        _ = tokio::time::timeout(grace, running.shut_down(grace)) => {
            let left: u64 = LogType::ALL.iter().map(|log_type| spool.usage().used_bytes(*log_type)).sum();
            tracing::info!(spool.bytes = left, "stopped; what the spool holds is sent after the next start");
        }
        () = signals.next(|| ()) => tracing::info!("stopped at once by a second signal; what the spool holds is sent after the next start"),
    }
    Ok(())
}

/// Both listeners. They answer from the first moment on: probes ask during a long start, too.
struct Listeners {
    listen_address: Option<SocketAddr>,
    admin_address: SocketAddr,
    /// Set once the spool is open; until then requests wait.
    open_ingest: Arc<SetOnce<Arc<Ingest>>>,
    ingest: Option<JoinHandle<()>>,
    stop_ingest: CancellationToken,
    admin: JoinHandle<()>,
    stop_admin: CancellationToken,
}

impl Listeners {
    fn open(config: &Config, tls: Option<Tls>, probe: &Arc<Probe>) -> Result<Listeners, Failure> {
        let open_files = descriptors::raise_limit();
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

        let (stop_ingest, stop_admin) = (CancellationToken::new(), CancellationToken::new());
        let health = Health::new(probe::sources(probe, WRITER_STALLED), Exporter::install());
        let admin = tokio::spawn(health.serve(admin_socket, site::own_names(), stop_admin.clone()));
        let open_ingest = Arc::new(SetOnce::new());
        let once_started = open_ingest.clone();
        let handler = Arc::new(move |request, guest| ingest::answer_once_started(once_started.clone(), request, guest));
        let ingest = ingest_socket.map(|tcp| {
            let max_connections = connections(config, open_files);
            let listener = Listener { name: "ingest", tcp, tls, max_connections, site: ingest_site(config) };
            tokio::spawn(listener.serve(handler, stop_ingest.clone()))
        });
        Ok(Listeners { listen_address, admin_address, open_ingest, ingest, stop_ingest, admin, stop_admin })
    }

    /// Closes both, ingest last: whoever still sends learns why the events are refused.
    async fn close(self) {
        self.stop_admin.cancel();
        let _ = tokio::time::timeout(LAST_ANSWERS, self.admin).await;
        self.stop_ingest.cancel();
        if let Some(ingest) = self.ingest {
            let _ = tokio::time::timeout(LAST_ANSWERS, ingest).await;
        }
    }
}

/// The parts that a shutdown ends.
struct Running {
    listeners: Listeners,
    ingest: Arc<Ingest>,
    puller: Option<Puller>,
    spool: Spool,
    flusher: Flusher,
    cloudwatch: Option<Lanes>,
    stop_credentials: CancellationToken,
}

impl Running {
    /// Starts every part on the `opened` spool, and lets requests in.
    fn start(
        config: &Config,
        files: Files,
        opened: (Spool, ByType<SealedBatches>),
        probe: &Probe,
        listeners: Listeners,
    ) -> Result<(Running, FileWatch), Failure> {
        let Files { network, verifier, tls, signing_key } = files;
        let (spool, sealed) = opened;
        let stop_credentials = CancellationToken::new();
        let credentials = Credentials::start(config, &network, spool.instance(), stop_credentials.clone());
        let authenticator = Authenticator::new(config, verifier.clone(), credentials.clone())
            .map_err(|error| Failure::new(exit_code::CONFIG, error))?;
        let cloudwatch = start_cloudwatch(config, &network, &spool, &credentials, stop_credentials.clone())?;
        let (flusher, settled) = start_flusher(config, &network, &spool, &credentials, signing_key, sealed)?;
        let tokens = (&verifier, &credentials);
        let puller =
            config.pull.as_ref().map(|pull| Puller::start(config, pull, &network, &spool, settled, tokens)).transpose();
        let puller = puller.map_err(|error| Failure::new(exit_code::CONFIG, anyhow::Error::msg(error)))?;
        let s3 = S3::new(config, &network, credentials.clone());
        let bucket = BucketFacts::start(destination(config), s3, credentials.clone(), stop_credentials.clone());
        let ingest = Ingest::new(config, spool.clone(), authenticator.clone());
        probe.show(Parts {
            spool: spool.clone(),
            credentials,
            verifier,
            deliveries: flusher.states(),
            puller: puller.clone(),
            cloudwatch: cloudwatch.as_ref().map(Lanes::watched),
            disk: Arc::new(DiskWatch::start(config.spool_dir.clone(), spool.folder(LogType::Deployments))),
            bucket,
            both_ways: ingest.both_ways(),
        });
        // It can't be set already: this is the only place that does.
        let _ = listeners.open_ingest.set(ingest.clone());
        probe.enter(Phase::Running);
        let recovered = LogType::ALL.map(|log_type| spool.folder(log_type).status("").events_recovered);
        if recovered.iter().any(|events| *events > 0) {
            tracing::info!(
                spool.events = recovered.iter().sum::<u64>(),
                "the spool holds events from before this start; they are uploaded now"
            );
        }
        tracing::info!(listen.addr = listeners.listen_address.map(tracing::field::display), admin.addr = %listeners.admin_address, instance = spool.instance(), "listening");
        let files = FileWatch::start(config, tls, authenticator, puller.clone());
        Ok((Running { listeners, ingest, puller, spool, flusher, cloudwatch, stop_credentials }, files))
    }

    /// Ends all parts within `grace`, in the order in which events pass them: requests, pulls, spool, uploads.
    async fn shut_down(mut self, grace: Duration) {
        let begun = Instant::now();
        tokio::time::sleep(STILL_INGESTING.min(grace / BODIES_SHARE)).await;
        self.ingest.refuse_new_requests();
        let _ = tokio::time::timeout_at(begun + grace / BODIES_SHARE, self.ingest.idle()).await;
        self.ingest.refuse_bodies();
        if let Some(puller) = self.puller {
            puller.stop().await;
        }
        let deadline = begun + grace.saturating_sub(EXIT_RESERVE);
        // Half of the time is left for uploads, even where a batch can't be sealed.
        let sealing = deadline.saturating_duration_since(Instant::now()) / 2;
        if tokio::time::timeout(sealing, self.spool.close()).await.is_err() {
            tracing::warn!(
                "a batch can't be sealed in time; it stays in the spool, and is sealed by the next start; see config/README.md#disk-refuses-writes"
            );
        }
        self.flusher.drain(deadline).await;
        if let Some(cloudwatch) = &mut self.cloudwatch {
            let _ = tokio::time::timeout_at(deadline.min(Instant::now() + LAST_CALLS), cloudwatch.drain()).await;
        }
        self.stop_credentials.cancel();
        self.listeners.close().await;
    }
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
        let (what, remedy) = listener::cannot_listen(variable, address, &error);
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
