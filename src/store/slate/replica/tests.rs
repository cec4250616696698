//! Object storage that changes while a replica reads from it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use object_store::{
    CopyOptions, Error as StorageError, GetOptions, GetResult, ListResult, MultipartUpload,
    ObjectMeta, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as StorageResult,
};
use slatedb::config::{FlushOptions, FlushType};
use tempfile::TempDir;
use tokio::sync::Semaphore;

use super::super::SlateStore;
use super::*;
use crate::store::{Direction, Provider};

/// What a replica is answered with. Tables are what a replica reads for whoever asks, the rest of the
/// files is for its looks.
#[derive(Debug)]
struct Moving {
    inner: Arc<dyn ObjectStore>,
    /// Reads of tables that find their file removed.
    removed: AtomicU32,
    /// Reads of tables.
    reads: AtomicU32,
    /// Each read of a table takes one of these.
    passes: Semaphore,
    /// Whether a look ends the task that looks.
    breaks: AtomicBool,
}

impl fmt::Display for Moving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Moving {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> StorageResult<PutResult> {
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> StorageResult<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> StorageResult<GetResult> {
        if !location.as_ref().contains("/compacted/") {
            assert!(!self.breaks.load(Ordering::Relaxed), "on purpose");
            return self.inner.get_opts(location, options).await;
        }
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.passes.acquire().await.unwrap().forget();
        let less_one = |left: u32| left.checked_sub(1);
        let was_removed = self
            .removed
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less_one);
        if was_removed.is_ok() {
            return Err(StorageError::NotFound {
                path: location.to_string(),
                source: "removed on purpose".into(),
            });
        }
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, StorageResult<Path>>,
    ) -> BoxStream<'static, StorageResult<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StorageResult<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StorageResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StorageResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// A writer, and a replica that has read nothing of its tables yet.
struct Pair {
    _folder: TempDir,
    writer: SlateStore,
    replica: SlateReplica,
    storage: Arc<Moving>,
}

impl Pair {
    /// Opens both. One table has these rows.
    async fn with_table(rows: &[(&str, &str)]) -> Self {
        let folder = TempDir::new().unwrap();
        let objects = Objects {
            provider: Provider::Folder,
            bucket: folder.path().display().to_string(),
            prefix: String::new(),
        };
        let mut options = StoreOptions::default();
        options.objects.flush_interval = Duration::from_millis(1);
        options.objects.poll_interval = Duration::from_millis(20);
        let writer = SlateStore::open(&objects, &options).await.unwrap();
        write(&writer, rows).await;
        let flush = FlushOptions {
            flush_type: FlushType::MemTable,
        };
        let db = writer.db().unwrap();
        db.flush_with_options(flush).await.unwrap();
        let mut place = Place::open(&objects, &options.objects).unwrap();
        let storage = Arc::new(Moving {
            inner: Arc::clone(&place.storage),
            removed: AtomicU32::new(0),
            reads: AtomicU32::new(0),
            passes: Semaphore::new(1000),
            breaks: AtomicBool::new(false),
        });
        place.storage = storage.clone();
        let replica = SlateReplica::at(place, &options).await.unwrap();
        Self {
            _folder: folder,
            writer,
            replica,
            storage,
        }
    }

    fn reads(&self) -> u32 {
        self.storage.reads.load(Ordering::Relaxed)
    }

    async fn close(self) {
        self.replica.close().await.unwrap();
        self.writer.close().await.unwrap();
    }
}

async fn write(store: &SlateStore, rows: &[(&str, &str)]) {
    let mut batch = Batch::new();
    for (key, value) in rows {
        batch.put((*key).into(), (*value).into());
    }
    store.write(batch, Durability::Synced).await.unwrap();
}

fn keys() -> Vec<Vec<u8>> {
    vec!["a".into(), "b".into()]
}

fn everything() -> Scan {
    Scan {
        range: "a".into()..Vec::from("c"),
        direction: Direction::Ascending,
        rows_max: 10,
        bytes_max: usize::MAX,
    }
}

/// The values of both keys, once by each way to read them.
async fn values(replica: &SlateReplica, scans: bool) -> Result<Vec<Bytes>> {
    if scans {
        let chunk = replica.scan_many(vec![everything()]).await?.remove(0);
        return Ok(chunk.rows.into_iter().map(|row| row.value).collect());
    }
    let values = replica.get_many(keys()).await?;
    Ok(values.into_iter().flatten().collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_whose_file_was_removed_is_tried_again() {
    for scans in [false, true] {
        for removals in [1, 3] {
            let pair = Pair::with_table(&[("a", "1"), ("b", "2")]).await;
            assert_eq!(pair.reads(), 0, "nothing was read yet");
            // One of two reads at once is enough to fail a call.
            pair.storage.removed.store(removals, Ordering::Relaxed);
            let values = values(&pair.replica, scans).await.unwrap();
            assert_eq!(values, ["1", "2"], "after {removals}");
            assert_eq!(pair.storage.removed.load(Ordering::Relaxed), 0);
            pair.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_stays_away_fails_the_read() {
    for scans in [false, true] {
        let pair = Pair::with_table(&[("a", "1"), ("b", "2")]).await;
        pair.storage.removed.store(u32::MAX, Ordering::Relaxed);
        let error = values(&pair.replica, scans).await.unwrap_err();
        assert!(error.to_string().contains("on purpose"), "{error}");
        assert!(pair.reads() >= 4, "{} reads", pair.reads());
        pair.storage.removed.store(0, Ordering::Relaxed);
        assert_eq!(values(&pair.replica, scans).await.unwrap(), ["1", "2"]);
        pair.close().await;
    }
}

/// All that a call answers is there at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_during_which_the_reader_went_on_reads_again() {
    for scans in [false, true] {
        let pair = Pair::with_table(&[("a", "1"), ("b", "1")]).await;
        let passes = pair.storage.passes.forget_permits(usize::MAX);
        let reading = values(&pair.replica, scans);
        let moving = async {
            // The call is at the table, and saw none of what comes now.
            while pair.reads() == 0 {
                tokio::task::yield_now().await;
            }
            let mut status = pair.replica.source.current().unwrap().reader.subscribe();
            let before = status.borrow_and_update().durable_seq;
            write(&pair.writer, &[("a", "2"), ("b", "2")]).await;
            let moved = status.wait_for(|status| status.durable_seq > before);
            drop(moved.await.unwrap());
            pair.storage.passes.add_permits(passes);
        };
        let (values, ()) = tokio::join!(reading, moving);
        assert_eq!(values.unwrap(), ["2", "2"]);
        pair.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_looks_no_more_says_so() {
    let pair = Pair::with_table(&[("a", "1"), ("b", "2")]).await;
    pair.replica.check_not_replaced().unwrap();
    pair.storage.breaks.store(true, Ordering::Relaxed);
    for error in [
        pair.replica.replaced().await,
        pair.replica.check_not_replaced().unwrap_err(),
    ] {
        assert_eq!(error.reason(), Reason::StoreFailed, "{error}");
        let text = error.to_string();
        assert!(text.contains("cannot be followed any more"), "{text}");
    }
    pair.writer.check_not_replaced().unwrap();
    pair.writer.close().await.unwrap();
}
