//! Tests what the sealer's queue takes while batches are closed faster than they are compressed.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::world::{self, TYPE};
use crate::batch::Codec;
use crate::spool::disk::OsDisk;
use crate::spool::{SealedBatches, Settings, Spool};
use crate::testing::hanging_disk::{HangingDisk, Op};
use crate::testing::{soon, until};

const EVENT: &str = "{\"message\":\"created\"}\n";

fn settings(folder: &tempfile::TempDir, codec: Codec, batch_max_bytes: u64) -> Settings {
    let settings = world::settings(folder.path().join("spool"));
    Settings { codec, batch_max_bytes, max_bytes: 64 << 30, ..settings }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_that_wait_to_be_compressed_take_few_descriptors_and_no_listing() {
    const BATCHES: usize = 100;
    const DESCRIPTORS_MAX: usize = 80;
    let folder = tempfile::tempdir().unwrap();
    let disk = HangingDisk::default();
    let settings = settings(&folder, Codec::Gzip, EVENT.len() as u64);
    let (spool, sealed) = Spool::open(&settings, Arc::new(disk.clone())).unwrap();
    let [mut sealed, _] = sealed.into_array();
    disk.hang(Op::List, TYPE.as_str());
    // An idle writer's probe doesn't count.
    disk.hang(Op::Sync, ".gz.tmp");
    for _ in 0..BATCHES {
        spool.append(TYPE, EVENT.into(), 1).await.unwrap();
    }
    until("the first copy is being made", || disk.hangs_at(".gz.tmp")).await;
    assert!(disk.open_files() < DESCRIPTORS_MAX, "{} files are open", disk.open_files());
    disk.let_go(".gz.tmp");
    for sequence in 1..=BATCHES as u64 {
        let batch = soon(sealed.recv()).await.expect("the spool is open");
        assert_eq!((batch.name.sequence, batch.name.records), (sequence, 1));
    }
}

/// Bytes a second that are acknowledged and then compressed, in batches of `batch_bytes`.
async fn bytes_a_second(codec: Codec, batch_bytes: usize, total_bytes: usize) -> f64 {
    const TOGETHER: usize = 8;
    let events = include_str!("../../../tests/fixtures/deployment-events.ndjson");
    let folder = tempfile::tempdir_in(concat!(env!("CARGO_MANIFEST_DIR"), "/target")).unwrap();
    let settings = settings(&folder, codec, batch_bytes as u64);
    let (spool, sealed) = Spool::open(&settings, Arc::new(OsDisk)).unwrap();
    let [sealed, _] = sealed.into_array();
    tokio::spawn(deliver(spool.clone(), sealed));
    let mut body = String::new();
    for line in events.split_inclusive('\n').cycle() {
        body.push_str(line);
        if body.len() >= batch_bytes / TOGETHER {
            break;
        }
    }
    let body = Bytes::from(body);
    let requests = total_bytes / TOGETHER / body.len();
    let started = Instant::now();
    let senders = (0..TOGETHER).map(|_| {
        let (spool, body) = (spool.clone(), body.clone());
        tokio::spawn(async move {
            for _ in 0..requests {
                spool.append(TYPE, body.clone(), 1).await.unwrap();
            }
        })
    });
    for sender in senders.collect::<Vec<_>>() {
        sender.await.unwrap();
    }
    spool.close().await;
    (requests * body.len() * TOGETHER) as f64 / started.elapsed().as_secs_f64()
}

async fn deliver(spool: Spool, mut sealed: SealedBatches) {
    let folder = spool.folder(TYPE);
    while let Some(mut batch) = sealed.recv().await {
        folder.delivered(&mut batch).unwrap();
    }
}

/// `cargo test --lib -- --ignored --nocapture compression_in_small_batches`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, which another program on the machine would spoil"]
async fn compression_in_small_batches_is_within_a_factor_of_three_of_plain() {
    let mut worst = f64::MAX;
    for (batch_bytes, total_bytes) in [(2 << 10, 1 << 20), (256 << 10, 64 << 20)] {
        let plain = bytes_a_second(Codec::None, batch_bytes, total_bytes).await;
        for codec in [Codec::Gzip, Codec::Zstd] {
            let compressed = bytes_a_second(codec, batch_bytes, total_bytes).await;
            let ratio = compressed / plain;
            println!("{batch_bytes} B {codec:?}: {:.1} MB/s of {:.1}: {ratio:.2}", compressed / 1e6, plain / 1e6);
            worst = ratio.min(worst);
        }
    }
    assert!(worst > 1.0 / 3.0, "{worst:.2}");
}
