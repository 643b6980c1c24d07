use std::io;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;

use super::*;
use crate::admin::client;
use crate::network::Network;
use crate::spool::disk::{Disk, DiskFile};
use crate::testing::{self, until};

/// A disk whose fsyncs hang while the flag is set, as those of a network volume can.
struct HangingDisk(Arc<AtomicBool>);

struct HangingFile {
    file: Box<dyn DiskFile>,
    hangs: Arc<AtomicBool>,
}

impl HangingDisk {
    fn file(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(HangingFile { file, hangs: self.0.clone() })
    }
}

impl Disk for HangingDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        OsDisk.create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        OsDisk.create(path).map(|file| self.file(file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        OsDisk.open(path).map(|file| self.file(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        OsDisk.remove(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        OsDisk.sync_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<(String, u64)>> {
        OsDisk.list(path)
    }
}

impl DiskFile for HangingFile {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(bytes, offset)
    }

    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.file.truncate(len)
    }

    fn begin_write_out(&mut self, offset: u64, bytes: u64) {
        self.file.begin_write_out(offset, bytes);
    }

    fn sync(&mut self) -> io::Result<()> {
        while self.hangs.load(Ordering::Relaxed) {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        self.file.sync()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_writer_that_hangs_in_an_fsync_fails_liveness_and_only_that_until_it_gets_on() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { spool_dir: dir.path().to_owned(), ..testing::config(&testing::nobody().await) };
    let hangs = Arc::new(AtomicBool::new(false));
    let (spool, _sealed) = Spool::open(&spool_settings(&config), Arc::new(HangingDisk(hangs.clone()))).unwrap();
    let network = Network::new(&config.network).unwrap();
    let credentials = Credentials::start(&config, &network, spool.instance(), CancellationToken::new());
    let probe = Probe::new(config);
    *probe.parts.lock().unwrap() = Some(Parts { spool: spool.clone(), credentials, deliveries: Default::default() });
    probe.enter(Phase::Running);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let health = Health::new(sources(&probe, Duration::from_millis(50)), Exporter::install());
    tokio::spawn(health.serve(listener, CancellationToken::new()));

    client::healthy(address).unwrap();
    hangs.store(true, Ordering::Relaxed);
    let appended = tokio::spawn(async move { spool.append(LogType::Audits, Bytes::from("{}\n"), 1).await });
    until("liveness fails", || {
        client::healthy(address).is_err_and(|error| error.to_string().contains("a writer has been at one write for"))
    })
    .await;
    assert!((sources(&probe, WRITER_STALLED).ready)().iter().all(|check| check.failure.is_none()));
    hangs.store(false, Ordering::Relaxed);
    appended.await.unwrap().unwrap();
    until("it is alive again", || client::healthy(address).is_ok()).await;
}
