//! Groups of puts on their way to a store that takes long to make them durable, as object storage
//! does: several are written before the first is durable, and nobody is told of any too early.
//!
//! The store here has its batches made durable by the test, one by one, or refuses to.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use pressmark::archive::{Archive, Guard, Limits, PendingPut, PutOutcome};
use pressmark::article::ContentHash;
use pressmark::error::{Error, Kind, Reason};
use pressmark::store::{Batch, Chunk, Commit, Durability, MemoryStore, Scan, Store, StoreStats};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{Mutex, Notify, oneshot};

use crate::load::seed;
use crate::server::check;
use crate::support::{TestResult, article, check_error, prepared, time};

/// A store whose batches are durable when the test says so.
#[derive(Debug, Default)]
struct SlowStore {
    live: MemoryStore,
    durable: MemoryStore,
    waiting: Mutex<VecDeque<(Batch, oneshot::Sender<()>)>>,
    submitted: Notify,
    /// Whether every batch is durable at once.
    is_fast: AtomicBool,
}

impl SlowStore {
    /// Makes the next batch durable; returns whether there was one.
    async fn make_one_durable(&self) -> bool {
        let Some((batch, done)) = self.waiting.lock().await.pop_front() else {
            return false;
        };
        self.durable.write(batch, Durability::Synced).await.unwrap();
        let _ = done.send(());
        true
    }

    /// Loses all batches that are not durable.
    async fn fail(&self) {
        self.waiting.lock().await.clear();
    }

    /// Waits until so many batches are waiting.
    async fn until_waiting(&self, count: usize) {
        loop {
            let submitted = self.submitted.notified();
            if self.waiting.lock().await.len() >= count {
                return;
            }
            submitted.await;
        }
    }
}

#[async_trait]
impl Store for SlowStore {
    fn engine(&self) -> &'static str {
        "slow"
    }

    async fn get_many(&self, keys: Vec<Vec<u8>>) -> Result<Vec<Option<Bytes>>, Error> {
        self.live.get_many(keys).await
    }

    async fn scan_many(&self, scans: Vec<Scan>) -> Result<Vec<Chunk>, Error> {
        self.live.scan_many(scans).await
    }

    async fn write(&self, batch: Batch, _durability: Durability) -> Result<(), Error> {
        self.submit(batch).await?.await
    }

    async fn submit(&self, batch: Batch) -> Result<Commit, Error> {
        self.live.write(batch.clone(), Durability::Synced).await?;
        let (done, durable) = oneshot::channel();
        self.waiting.lock().await.push_back((batch, done));
        if self.is_fast.load(Ordering::Relaxed) {
            while self.make_one_durable().await {}
        }
        self.submitted.notify_one();
        Ok(Commit::pending(async move {
            let lost = |_| Error::new(Reason::StoreFailed, "a batch is lost on purpose");
            durable.await.map_err(lost)
        }))
    }

    async fn stats(&self) -> Result<StoreStats, Error> {
        self.live.stats().await
    }

    async fn close(&self) -> Result<(), Error> {
        self.live.close().await
    }
}

async fn open() -> (Arc<SlowStore>, Archive, Guard) {
    let store = Arc::new(SlowStore::default());
    store.is_fast.store(true, Ordering::Relaxed);
    let opened = Archive::open(Arc::clone(&store) as Arc<dyn Store>, Limits::default()).await;
    store.is_fast.store(false, Ordering::Relaxed);
    let (archive, guard) = opened.unwrap();
    (store, archive, guard)
}

async fn enqueue(archive: &Archive, number: u32) -> PendingPut {
    let prepared = prepared(&article(number));
    archive.enqueue(prepared).await.unwrap()
}

async fn is_stored(archive: &Archive, number: u32) -> bool {
    archive.get(&article(number).id()).await.is_ok()
}

/// Opens what was durable, and proves it.
async fn after_a_crash(store: &SlowStore) -> (Archive, Guard) {
    let disk = crate::faulty::FaultyStore::on(&store.durable, crate::faulty::Fails::Never).await;
    let (archive, guard) = Archive::open(disk, Limits::default()).await.unwrap();
    check(&archive).await;
    (archive, guard)
}

#[tokio::test]
async fn groups_are_acknowledged_in_order_once_they_are_durable() -> TestResult {
    let (store, archive, guard) = open().await;
    let mut puts = VecDeque::new();
    for number in 1..=5_u32 {
        puts.push_back(enqueue(&archive, number).await);
        store.until_waiting(number as usize).await;
    }
    for number in 1..=5_u32 {
        assert_eq!(archive.committed(), u64::from(number) - 1);
        assert!(
            !is_stored(&archive, number).await,
            "{number} is not durable"
        );
        assert!(store.make_one_durable().await);
        let put = puts.pop_front().unwrap().result().await?;
        assert_eq!(put.sequence, u64::from(number));
        assert!(is_stored(&archive, number).await);
    }
    store.is_fast.store(true, Ordering::Relaxed);
    check(&archive).await;
    Ok(guard.close().await?)
}

/// An article is known before it is durable, and whoever sends it again is not told so until it is.
#[tokio::test]
async fn a_duplicate_waits_for_its_original() -> TestResult {
    let (store, archive, guard) = open().await;
    let first = enqueue(&archive, 1).await;
    store.until_waiting(1).await;
    let mut again = Box::pin(enqueue(&archive, 1).await.result());
    // A later group has been written, so the writer is done with the duplicate.
    let later = enqueue(&archive, 2).await;
    store.until_waiting(2).await;
    let early = futures_util::poll!(&mut again);
    assert!(early.is_pending(), "{early:?}");
    let missing = archive.find_missing(&[article(1).id()]).await?;
    assert_eq!(missing.stored_count, 0);

    store.make_one_durable().await;
    assert_eq!(first.result().await?.outcome, PutOutcome::Created);
    // It may be in one group with the later article.
    store.make_one_durable().await;
    let again = again.await?;
    assert_eq!((again.outcome, again.sequence), (PutOutcome::Duplicate, 1));
    assert_eq!(later.result().await?.sequence, 2);
    Ok(guard.close().await?)
}

/// What is not a put comes after all puts before it, and before those behind it.
#[tokio::test]
async fn a_delete_waits_for_what_is_on_its_way() -> TestResult {
    let (store, archive, guard) = open().await;
    let put = enqueue(&archive, 1).await;
    store.until_waiting(1).await;
    let deleting = {
        let archive = archive.clone();
        tokio::spawn(async move { archive.delete(article(1).id(), "unwanted", time(0)).await })
    };
    tokio::task::yield_now().await;
    store.make_one_durable().await;
    put.result().await?;
    store.until_waiting(1).await;
    store.make_one_durable().await;
    assert_eq!(deleting.await??.sequence, 2);
    check(&archive).await;
    Ok(guard.close().await?)
}

/// A store that loses a batch has lost what came behind it too, whatever it says of that.
#[tokio::test]
async fn nothing_behind_a_lost_group_is_acknowledged() -> TestResult {
    let (store, archive, guard) = open().await;
    let mut puts = Vec::new();
    for number in 1..=4_u32 {
        puts.push(enqueue(&archive, number).await);
        store.until_waiting(number as usize).await;
    }
    // Known, and written nowhere.
    let again = enqueue(&archive, 3).await;
    store.make_one_durable().await;
    let lost = store.waiting.lock().await.pop_front();
    drop(lost);
    while store.make_one_durable().await {}
    let mut puts = puts.into_iter();
    assert_eq!(puts.next().unwrap().result().await?.sequence, 1);
    for put in puts {
        check_error(put.result().await, Reason::StoreFailed, &["on purpose"]);
    }
    let again = again.result().await.unwrap_err();
    assert_eq!(again.kind(), Kind::Unavailable, "{again}");
    let later = archive.put(prepared(&article(9))).await;
    check_error(later, Reason::WritesStopped, &["on purpose"]);
    assert_eq!(archive.committed(), 1);
    guard.close().await?;
    Ok(())
}

/// Closing waits for what is on its way.
#[tokio::test]
async fn a_close_acknowledges_what_is_on_its_way() -> TestResult {
    let (store, archive, guard) = open().await;
    let put = enqueue(&archive, 1).await;
    store.until_waiting(1).await;
    let closing = tokio::spawn(guard.close());
    tokio::task::yield_now().await;
    assert!(!closing.is_finished());
    store.make_one_durable().await;
    assert_eq!(put.result().await?.sequence, 1);
    closing.await??;
    let late = archive.put(prepared(&article(2))).await;
    check_error(late, Reason::ShuttingDown, &[]);
    Ok(())
}

/// Many clients, and a store that makes some of their work durable and then loses the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_moment_loses_nothing_acknowledged() -> TestResult {
    const ROUNDS: usize = 40;
    let mut random = StdRng::seed_from_u64(seed());
    let (mut acknowledged_count, mut lost_count) = (0, 0);
    for _ in 0..ROUNDS {
        let (store, archive, guard) = open().await;
        let clients: Vec<_> = (0..4_u32)
            .map(|client| {
                let archive = archive.clone();
                tokio::spawn(async move {
                    let mut acknowledged = BTreeSet::<ContentHash>::new();
                    let mut pending = VecDeque::new();
                    for number in 0..40 {
                        // A quarter of the articles is every client's.
                        let number = if number % 4 == 0 {
                            number
                        } else {
                            number + 100 * client
                        };
                        let prepared = prepared(&article(number));
                        match archive.enqueue(prepared).await {
                            Ok(put) => pending.push_back(put),
                            Err(_) => break,
                        }
                        tokio::task::yield_now().await;
                    }
                    for put in pending {
                        acknowledged.extend(put.result().await.ok().map(|put| put.id));
                    }
                    acknowledged
                })
            })
            .collect();
        store.until_waiting(1).await;
        for _ in 0..random.random_range(0..30) {
            store.make_one_durable().await;
            tokio::task::yield_now().await;
        }
        // From now on nothing is durable any more.
        let mut acknowledged = BTreeSet::new();
        let losing = async {
            loop {
                store.fail().await;
                tokio::task::yield_now().await;
            }
        };
        let gathering = async {
            for client in clients {
                acknowledged.extend(client.await.unwrap());
            }
        };
        tokio::select! {
            () = gathering => {}
            () = losing => {}
        }
        drop(archive);
        guard.close().await?;
        let (archive, guard) = after_a_crash(&store).await;
        for id in &acknowledged {
            lost_count += usize::from(archive.get(id).await.is_err());
        }
        acknowledged_count += acknowledged.len();
        guard.close().await?;
    }
    println!("{ROUNDS} crashes, {acknowledged_count} acknowledged, {lost_count} lost");
    assert!(acknowledged_count > 0, "some of the work was durable");
    assert_eq!(lost_count, 0);
    Ok(())
}
