//! `cargo bench --bench spool`: append with its fsync, alone and in groups, and sealing by codec. The
//! spool is under `target`, because a `/tmp` in memory has no fsync to speak of.

mod measure;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use env0_s3_logs::batch::{Codec, LogType};
use env0_s3_logs::spool::disk::OsDisk;
use env0_s3_logs::spool::manifest::Destination;
use env0_s3_logs::spool::{SealedBatches, Settings, Spool};
use futures_util::future::join_all;
use measure::{measure, timed};
use tokio::runtime::Runtime;

const EVENTS: &str = include_str!("../fixtures/deployment-events.ndjson");
const BATCH_BYTES: usize = 16 << 20;

/// A spool of its own, removed with the folder.
fn open(folder: &Path, codec: Codec) -> (Spool, SealedBatches) {
    let settings = Settings {
        dir: folder.join("spool"),
        max_bytes: 64 << 30,
        batch_max_bytes: BATCH_BYTES as u64,
        batch_max_age: Duration::from_secs(3600),
        codec,
        destination: Destination {
            endpoint: String::new(),
            bucket: "bucket".into(),
            region: "eu-west-1".into(),
            path: String::new(),
        },
        copies: false,
    };
    let (spool, sealed) = Spool::open(&settings, Arc::new(OsDisk)).expect("the folder is new");
    let [sealed, _] = sealed.into_array();
    (spool, sealed)
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(concat!(env!("CARGO_MANIFEST_DIR"), "/target")).expect("there is a target folder")
}

fn append() {
    let runtime = Runtime::new().expect("a runtime");
    let folder = folder();
    let (spool, mut sealed) = runtime.block_on(async { open(folder.path(), Codec::None) });
    // Delivered as soon as it is sealed, so that the disk doesn't fill.
    let deliver = spool.folder(LogType::Deployments);
    runtime.spawn(async move {
        while let Some(mut batch) = sealed.recv().await {
            deliver.delivered(&mut batch).expect("the disk works");
        }
    });
    for (name, together, bytes) in
        [("440 B alone", 1, 440), ("64 x 440 B", 64, 440), ("64 x 44 kB", 64, 44_000), ("440 kB alone", 1, 440_000)]
    {
        let lines = Bytes::from(vec![b'\n'; bytes]);
        measure(&format!("append {name}"), together * bytes, || {
            let appends = (0..together).map(|_| spool.append(LogType::Deployments, lines.clone(), 1));
            timed(|| {
                let receipts = runtime.block_on(async { join_all(appends).await });
                assert!(receipts.iter().all(Result::is_ok));
            })
        });
    }
}

fn seal() {
    let runtime = Runtime::new().expect("a runtime");
    let lines = Bytes::from(EVENTS);
    for (name, codec) in [("plain", Codec::None), ("gzip", Codec::Gzip), ("zstd", Codec::Zstd)] {
        let folder = folder();
        let (spool, mut sealed) = runtime.block_on(async { open(folder.path(), codec) });
        measure(&format!("seal 16 MiB {name}"), BATCH_BYTES, || {
            runtime.block_on(async {
                for _ in 0..BATCH_BYTES / lines.len() {
                    spool.append(LogType::Deployments, lines.clone(), 1).await.expect("the disk works");
                }
            });
            let mut batch = None;
            let took = timed(|| {
                spool.seal();
                batch = runtime.block_on(sealed.recv());
            });
            let mut batch = batch.expect("the spool is open");
            spool.folder(LogType::Deployments).delivered(&mut batch).expect("the disk works");
            took
        });
    }
}

fn main() {
    append();
    seal();
}
