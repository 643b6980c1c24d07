use bytes::Bytes;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::admin::{Health, client};
use crate::assembly::spool_settings;
use crate::network::Network;
use crate::telemetry::metrics::Exporter;
use crate::testing::hanging_disk::{HangingDisk, Op};
use crate::testing::{self, until};

/// The admin listener of a daemon that runs on `disk`.
struct Running {
    address: std::net::SocketAddr,
    probe: Arc<Probe>,
    spool: Spool,
    _dir: tempfile::TempDir,
}

impl Running {
    async fn on(disk: &HangingDisk) -> Running {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { spool_dir: dir.path().to_owned(), ..testing::config(&testing::nobody().await) };
        let (spool, _sealed) = Spool::open(&spool_settings(&config), Arc::new(disk.clone())).unwrap();
        let network = Network::new(&config.network).unwrap();
        let credentials = Credentials::start(&config, &network, spool.instance(), CancellationToken::new());
        let verifier = Verifier::new(&config, &network).unwrap();
        let both_ways = BothWays::new(&config);
        let probe = Probe::new(config, BTreeMap::new());
        let watch = Arc::new(DiskWatch::start(dir.path().to_owned(), spool.folder(LogType::Audits)));
        let (deliveries, puller) = (Default::default(), None);
        let parts = Parts {
            spool: spool.clone(),
            credentials,
            verifier,
            deliveries,
            puller,
            cloudwatch: None,
            disk: watch,
            bucket: Default::default(),
            both_ways,
        };
        *probe.parts.lock().unwrap() = Some(parts);
        probe.enter(Phase::Running);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let health = Health::new(sources(&probe, Duration::from_millis(50)), Exporter::install());
        tokio::spawn(health.serve(listener, Vec::new(), CancellationToken::new()));
        Running { address, probe, spool, _dir: dir }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_writer_that_hangs_in_an_fsync_fails_liveness_and_only_that_until_it_gets_on() {
    let disk = HangingDisk::default();
    let Running { address, probe, spool, _dir } = Running::on(&disk).await;
    client::healthy(address).unwrap();
    disk.hang(Op::Sync, "");
    let appended = tokio::spawn(async move { spool.append(LogType::Audits, Bytes::from("{}\n"), 1).await });
    until("liveness fails", || {
        client::healthy(address).is_err_and(|error| error.to_string().contains("a writer has been at one write for"))
    })
    .await;
    assert!((sources(&probe, WRITER_STALLED).ready)().iter().all(|check| check.failure.is_none()));
    disk.let_go("");
    appended.await.unwrap().unwrap();
    until("it is alive again", || client::healthy(address).is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_listing_that_hangs_holds_up_no_answer_and_the_status_dates_its_figures() {
    let disk = HangingDisk::default();
    let Running { address, spool, _dir, .. } = Running::on(&disk).await;
    let asked_at = || client::status(address).unwrap().spool.disk_asked_at;
    until("the disk has answered", || asked_at().is_some()).await;
    disk.hang(Op::List, "quarantine");
    until("a listing hangs", || disk.hangs_at("quarantine")).await;
    let before = asked_at();
    client::healthy(address).unwrap();
    spool.append(LogType::Audits, Bytes::from("{}\n"), 1).await.unwrap();
    assert_eq!(asked_at(), before);
    disk.let_go("quarantine");
    until("the disk has answered again", || asked_at() > before).await;
}
