use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::assembly::{Files, spool_settings};
use crate::config::Config;
use crate::credentials::Credentials;
use crate::http::listener::Listener;
use crate::http::site::Site;
use crate::ingest::auth::Authenticator;
use crate::spool::SealedBatches;
use crate::testing::hanging_disk::{HangingDisk, Op};
use crate::testing::{self, soon, until};

const DEPLOYMENTS: &str = "env0-deployments";
const AUDITS: &str = "env0-audits";
/// The length of an event's line whose id has one letter.
const LINE_BYTES: u64 = 11;

/// Ingest on a spool of its own, which takes events from everyone.
struct Case {
    address: SocketAddr,
    disk: HangingDisk,
    spool: Spool,
    folder: tempfile::TempDir,
    _sealed: ByType<SealedBatches>,
}

impl Case {
    async fn start() -> Case {
        let folder = tempfile::tempdir().unwrap();
        let config = testing::config(&testing::nobody().await);
        let config = Config { spool_dir: folder.path().to_owned(), ingest_auth_required: false, ..config };
        let disk = HangingDisk::default();
        let (spool, sealed) = Spool::open(&spool_settings(&config), Arc::new(disk.clone())).unwrap();
        let Files { network, verifier, .. } = Files::read(&config).unwrap();
        let credentials = Credentials::start(&config, &network, spool.instance(), CancellationToken::new());
        let authenticator = Authenticator::new(&config, verifier, credentials).unwrap();
        let ingest = Ingest::new(&config, spool.clone(), authenticator);
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let handler = Arc::new(move |request, guest| {
            let ingest = ingest.clone();
            async move { ingest.handle(request, guest).await }
        });
        let listener = Listener { name: "ingest", tcp, tls: None, max_connections: 64, site: Site::default() };
        tokio::spawn(listener.serve(handler, CancellationToken::new()));
        Case { address, disk, spool, folder, _sealed: sealed }
    }

    /// Sends a request; the task ends with its status.
    fn post(&self, path: &str, body: &str) -> JoinHandle<u16> {
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}", body.len());
        let (address, request) = (self.address, format!("{head}\r\n\r\n{body}"));
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer.split(' ').nth(1).unwrap_or_else(|| panic!("no status: {answer:?}")).parse().unwrap()
        })
    }

    fn post_type(&self, log_type: &str, id: &str) -> JoinHandle<u16> {
        self.post(&format!("/v1/logs/{log_type}"), &format!("{{\"id\":\"{id}\"}}"))
    }

    /// One request with an event of each type.
    fn post_both(&self, id: &str) -> JoinHandle<u16> {
        let event = |source: &str| format!("{{\"source\":\"{source}\",\"event\":\"{id}\"}}");
        self.post("/services/collector", &format!("{}{}", event(DEPLOYMENTS), event(AUDITS)))
    }

    /// Bytes of a log type's lines that are in its files or on their way there.
    fn taken_bytes(&self, log_type: LogType) -> u64 {
        self.spool.usage().used_bytes(log_type)
    }

    /// How often `text` is in a log type's files.
    fn stored(&self, log_type: &str, text: &str) -> usize {
        let files = std::fs::read_dir(self.folder.path().join(log_type)).unwrap();
        let contents = files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
        contents.map(|content| content.matches(text).count()).sum()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_503_means_not_stored_and_what_is_being_written_waits_for_its_fsync() {
    let case = Case::start().await;
    case.disk.hang(Op::Sync, DEPLOYMENTS);
    let written = case.post_type(DEPLOYMENTS, "first");
    until("its fsync hangs", || case.disk.hangs_at(DEPLOYMENTS)).await;
    // It has waited for longer than whoever comes after it and is refused.
    assert_eq!(soon(case.post_type(DEPLOYMENTS, "second")).await.unwrap(), 503);
    assert!(!written.is_finished(), "answered while nobody knew whether it is stored");
    case.disk.let_go(DEPLOYMENTS);
    assert_eq!(soon(written).await.unwrap(), 200);
    // The sender of the refused one sends it again.
    assert_eq!(soon(case.post_type(DEPLOYMENTS, "second")).await.unwrap(), 200);
    assert_eq!((case.stored(DEPLOYMENTS, "first"), case.stored(DEPLOYMENTS, "second")), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_type_never_waits_for_the_others_disk_whoever_sends_both_at_once() {
    let case = Case::start().await;
    case.disk.hang(Op::Sync, DEPLOYMENTS);
    case.disk.hang(Op::Sync, AUDITS);
    let deployment = case.post_type(DEPLOYMENTS, "deployment");
    let audit = case.post_type(AUDITS, "audit");
    until("both fsyncs hang", || case.disk.hangs_at(DEPLOYMENTS) && case.disk.hangs_at(AUDITS)).await;
    // They share the next fsync of audits, and the one with both types is the first of them.
    let before = case.taken_bytes(LogType::Audits);
    let both = case.post_both("both");
    until("it is on its way", || case.taken_bytes(LogType::Audits) > before).await;
    let before = case.taken_bytes(LogType::Audits);
    let audits = ["a", "b", "c"].map(|id| case.post_type(AUDITS, id));
    until("the audits are on their way", || case.taken_bytes(LogType::Audits) == before + 3 * LINE_BYTES).await;
    case.disk.let_go(AUDITS);
    for audit in audits.into_iter().chain([audit]) {
        assert_eq!(soon(audit).await.unwrap(), 200);
    }
    assert!(!both.is_finished() && !deployment.is_finished());
    case.disk.let_go(DEPLOYMENTS);
    for request in [both, deployment] {
        assert_eq!(soon(request).await.unwrap(), 200);
    }
    assert_eq!((case.stored(DEPLOYMENTS, "both"), case.stored(AUDITS, "both")), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_of_both_types_that_one_disk_refuses_is_answered_once_both_have_it() {
    let case = Case::start().await;
    let folder = case.folder.path().join(DEPLOYMENTS);
    let aside = case.folder.path().join("aside");
    // Where the folder is a file, no batch can be opened, and nobody knows yet.
    std::fs::rename(&folder, &aside).unwrap();
    std::fs::write(&folder, "").unwrap();
    let both = case.post_both("both");
    until("one half is stored", || case.stored(AUDITS, "both") == 1).await;
    until("the other is refused", || case.spool.failing(LogType::Deployments).is_some()).await;
    assert!(!both.is_finished(), "answered while half of it was stored");
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&aside, &folder).unwrap();
    assert_eq!(soon(both).await.unwrap(), 200);
    assert_eq!((case.stored(DEPLOYMENTS, "both"), case.stored(AUDITS, "both")), (1, 1));
}
