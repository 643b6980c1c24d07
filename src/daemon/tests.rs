use bytes::Bytes;

use super::*;
use crate::admin::client;
use crate::network::Network;
use crate::testing::hanging_disk::{HangingDisk, Op};
use crate::testing::{self, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_writer_that_hangs_in_an_fsync_fails_liveness_and_only_that_until_it_gets_on() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { spool_dir: dir.path().to_owned(), ..testing::config(&testing::nobody().await) };
    let disk = HangingDisk::default();
    let (spool, _sealed) = Spool::open(&spool_settings(&config), Arc::new(disk.clone())).unwrap();
    let network = Network::new(&config.network).unwrap();
    let credentials = Credentials::start(&config, &network, spool.instance(), CancellationToken::new());
    let verifier = Verifier::new(&config, &network).unwrap();
    let probe = Probe::new(config);
    let parts = Parts { spool: spool.clone(), credentials, verifier, deliveries: Default::default(), puller: None };
    *probe.parts.lock().unwrap() = Some(parts);
    probe.enter(Phase::Running);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let health = Health::new(sources(&probe, Duration::from_millis(50)), Exporter::install());
    tokio::spawn(health.serve(listener, Vec::new(), CancellationToken::new()));

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
