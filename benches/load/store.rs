//! The limit of a write: the batches of an import, fed to the engine alone.
//!
//! The articles are first imported through the archive in this process, on sled, without gRPC; the
//! batches that its writer makes are kept. Then a fresh sled is fed with the very same batches.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use pressmark::archive::{Archive, Limits, PendingPut, Prepared};
use pressmark::article::Timestamp;
use pressmark::error::Result;
use pressmark::rpc::{article_of, proto};
use pressmark::store::{
    Batch, Chunk, Durability, Locator, Scan, Store, StoreOptions, StoreStats, open,
};
use prost::Message;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::corpus::{Reading, Workload};
use crate::measure::round;

/// Puts whose answers have not been looked at.
const PENDING: usize = 4096;

/// Keeps every batch that passes through.
#[derive(Debug)]
struct Recorder {
    store: Arc<dyn Store>,
    batches: Mutex<Vec<Batch>>,
}

#[async_trait]
impl Store for Recorder {
    fn engine(&self) -> &'static str {
        self.store.engine()
    }

    async fn get_many(&self, keys: Vec<Vec<u8>>) -> Result<Vec<Option<Bytes>>> {
        self.store.get_many(keys).await
    }

    async fn scan_many(&self, scans: Vec<Scan>) -> Result<Vec<Chunk>> {
        self.store.scan_many(scans).await
    }

    async fn write(&self, batch: Batch, durability: Durability) -> Result<()> {
        self.batches.lock().unwrap().push(batch.clone());
        self.store.write(batch, durability).await
    }

    async fn stats(&self) -> Result<StoreStats> {
        self.store.stats().await
    }

    async fn close(&self) -> Result<()> {
        self.store.close().await
    }
}

/// Rates of the archive in this process and of the store alone.
pub async fn compare(work: &Workload, folder: &Path) -> Value {
    let fresh = async |name: &str| {
        let locator = Locator::Folder(folder.join(name));
        open(&locator, StoreOptions::default()).await.unwrap()
    };
    let recorder = Arc::new(Recorder {
        store: fresh("archive").await,
        batches: Mutex::default(),
    });
    let started = Instant::now();
    import(work, Arc::clone(&recorder) as Arc<dyn Store>).await;
    let archive_seconds = started.elapsed().as_secs_f64();

    let batches = std::mem::take(&mut *recorder.batches.lock().unwrap());
    let rows: usize = batches.iter().map(|batch| batch.changes().len()).sum();
    let commits = batches.len();
    let store = fresh("store").await;
    let started = Instant::now();
    for batch in batches {
        store.write(batch, Durability::Synced).await.unwrap();
    }
    let store_seconds = started.elapsed().as_secs_f64();
    store.close().await.unwrap();

    let count = work.article_count as f64;
    json!({
        "count": work.article_count, "rows": rows, "commits": commits,
        "articles_per_commit": round(count / commits as f64),
        "archive_per_s": (count / archive_seconds).round(),
        "store_per_s": (count / store_seconds).round(),
        "store_ms_per_commit": round(store_seconds * 1e3 / commits as f64),
    })
}

async fn import(work: &Workload, store: Arc<dyn Store>) {
    let (archive, guard) = Archive::open(store, Limits::default()).await.unwrap();
    let (sender, mut pending) = mpsc::channel::<PendingPut>(PENDING);
    let now = Timestamp::new("archived_at", 1_700_000_000, 0).unwrap();
    let streams: Vec<_> = work
        .files
        .iter()
        .map(|file| {
            let (archive, sender, file) = (archive.clone(), sender.clone(), file.clone());
            tokio::spawn(async move {
                for article in Reading::open(&file) {
                    let article = proto::Article::decode(article).unwrap();
                    let (article, claimed) = article_of(article).unwrap();
                    let prepared = Prepared::new(article, now, claimed).unwrap();
                    let put = archive.enqueue(prepared).await.unwrap();
                    sender.send(put).await.unwrap();
                }
            })
        })
        .collect();
    drop(sender);
    while let Some(put) = pending.recv().await {
        put.result().await.unwrap();
    }
    for stream in streams {
        stream.await.unwrap();
    }
    drop(archive);
    guard.close().await.unwrap();
}
