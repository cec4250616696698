//! Replicas of an archive in this process: that they read what its writer reads, follow it, and leave
//! it alone. `replicas.rs` has them as processes.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pressmark::archive::{
    Archive, Bucket, CopiesQuery, Direction, Guard, Limits, NearCopies, Order, Query, Role,
    Selector, SelectorFields, TimelineQuery, VerifyReport,
};
use pressmark::article::{Article, ArticleFields};
use pressmark::error::{Error, Reason, Result};
use pressmark::key::{self, IndexFacts, TABLE_DATE, meta};
use pressmark::store::{self, Batch, Change, Chunk, Durability, Locator, Scan, Store, StoreStats};
use tempfile::TempDir;

use crate::dictionary::{limits, worded};
use crate::limits::within;
use crate::store::{batch, get};
use crate::support::{
    TestResult, articles_max, bucket_in, check_error, fields, prepared, small_cache, time,
};
use crate::verify::write_to;

/// A store that is written by a writer and read by a replica of it.
#[derive(Debug)]
pub struct Followed {
    writer: Arc<dyn Store>,
    replica: Arc<dyn Store>,
    count: AtomicU64,
}

/// Behind all keys of the suite: how many batches were written.
const COUNT: [u8; 1] = [0xff];

impl Followed {
    pub async fn open(place: &Locator) -> Result<Self> {
        let writer = store::open(place, small_cache()).await?;
        let replica = store::open_replica(place, &small_cache()).await?;
        Ok(Self {
            writer,
            replica,
            count: AtomicU64::new(0),
        })
    }
}

#[async_trait::async_trait]
impl Store for Followed {
    fn engine(&self) -> &'static str {
        self.replica.engine()
    }

    async fn get_many(&self, keys: Vec<Vec<u8>>) -> Result<Vec<Option<Bytes>>> {
        self.replica.get_many(keys).await
    }

    async fn scan_many(&self, scans: Vec<Scan>) -> Result<Vec<Chunk>> {
        self.replica.scan_many(scans).await
    }

    /// Returns when the replica has it, too.
    async fn write(&self, batch: Batch, _durability: Durability) -> Result<()> {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let mut changes = batch.into_changes();
        changes.push(Change::Put(COUNT.into(), count.to_be_bytes().into()));
        let mut counted = Batch::new();
        for change in changes {
            match change {
                Change::Put(key, value) => counted.put(key, value),
                Change::Remove(key) => counted.remove(key),
            }
        }
        self.writer.write(counted, Durability::Synced).await?;
        let mut looks = self.replica.looks().unwrap();
        loop {
            let seen = self.replica.get_many(vec![COUNT.into()]).await?.remove(0);
            if seen.is_some_and(|seen| seen >= count.to_be_bytes().as_slice()) {
                return Ok(());
            }
            within(looks.changed()).await.unwrap();
        }
    }

    async fn stats(&self) -> Result<StoreStats> {
        self.replica.stats().await
    }

    async fn close(&self) -> Result<()> {
        self.replica.close().await?;
        self.writer.close().await
    }
}

/// An archive and a replica of it.
struct Pair {
    folder: TempDir,
    writer: (Archive, Guard),
    replica: (Archive, Guard),
}

async fn open_writer(folder: &Path, limits: Limits) -> Result<(Archive, Guard)> {
    let store = store::open(&bucket_in(folder), small_cache()).await?;
    Archive::open(store, limits).await
}

async fn open_replica(folder: &Path) -> Result<(Archive, Guard)> {
    let store = store::open_replica(&bucket_in(folder), &small_cache()).await?;
    Archive::open_replica(store, Limits::default()).await
}

impl Pair {
    async fn open(limits: Limits) -> Result<Self> {
        let folder = TempDir::new().unwrap();
        let writer = open_writer(folder.path(), limits).await?;
        let replica = open_replica(folder.path()).await?;
        Ok(Self {
            folder,
            writer,
            replica,
        })
    }

    async fn put(&self, all: impl IntoIterator<Item = ArticleFields>) -> Result<()> {
        let mut pending = Vec::new();
        for fields in all {
            let prepared = prepared(&Article::new(fields)?);
            pending.push(self.writer.0.enqueue(prepared).await?);
        }
        for put in pending {
            put.result().await?;
        }
        Ok(())
    }

    async fn delete(&self, n: u32) -> Result<()> {
        let (id, now) = (crate::support::article(n).id(), time(2_000_000_000));
        self.writer.0.delete(id, "unwanted", now).await.map(drop)
    }

    /// Waits until the replica has what the writer has, and compares all that can be asked.
    async fn check(&self, articles: &[ArticleFields]) -> TestResult {
        let (writer, replica) = (&self.writer.0, &self.replica.0);
        within(replica.committed_to(writer.committed())).await?;
        let expected = answers(writer, articles).await;
        let found = answers(replica, articles).await;
        for (expected, found) in expected.lines().zip(found.lines()) {
            assert_eq!(expected, found);
        }
        assert_eq!(expected.len(), found.len());
        Ok(())
    }

    /// Proves both, and closes them.
    async fn finish(self) -> Result<TempDir> {
        for archive in [&self.writer.0, &self.replica.0] {
            let report = whole(archive).await?;
            assert!(report.figures_checked, "{:?}: {report:?}", archive.role());
        }
        self.replica.1.close().await?;
        self.writer.1.close().await?;
        Ok(self.folder)
    }
}

/// Fails if the full check finds anything.
async fn whole(archive: &Archive) -> Result<VerifyReport> {
    let report = archive.verify().await?;
    let role = archive.role();
    assert_eq!(report.finding_count, 0, "{role:?}: {:#?}", report.findings);
    Ok(report)
}

/// What an archive answers to everything that can be asked of it, a line each.
async fn answers(archive: &Archive, articles: &[ArticleFields]) -> String {
    let mut text = String::new();
    let mut add = |what: &str, answer: String| writeln!(text, "{what}: {answer}").unwrap();
    let stats = archive.stats().await.unwrap();
    add(
        "figures",
        format!("{:?} {}", stats.totals, stats.last_sequence),
    );
    add(
        "sources",
        format!("{:?}", archive.list_sources(100, "").await),
    );
    let everything = || Selector::new(SelectorFields::default(), archive.limits()).unwrap();
    add("count", format!("{:?}", archive.count(&everything()).await));
    for order in [
        Order::Arrival(Direction::Ascending),
        Order::Arrival(Direction::Descending),
        Order::Published(Direction::Ascending),
        Order::Published(Direction::Descending),
    ] {
        let selector = everything();
        let query = Query { selector, order };
        let page = archive.page(&query, "", &articles_max(1000)).await;
        add(&format!("{order:?}"), format!("{page:?}"));
    }
    let changes = archive.changes(1, &everything(), &articles_max(1000)).await;
    add("changes", format!("{changes:?}"));
    let timeline = TimelineQuery {
        selector: everything(),
        bucket: Bucket::Hour,
        by_source: true,
    };
    add(
        "timeline",
        format!("{:?}", archive.timeline(&timeline).await),
    );
    let mut backup = archive.backup(1).await.unwrap();
    while let Some(bytes) = backup.next().await.unwrap() {
        let hash = pressmark::article::ContentHash::of(&bytes);
        add("backup", format!("{} bytes, {hash}", bytes.len()));
    }
    for fields in articles {
        let id = Article::new(fields.clone()).unwrap().id();
        let text = |error: Error| error.to_string();
        let found = archive.get(&id).await.map_err(text);
        add(&id.to_string(), format!("{found:?}"));
        let of_url = archive.get_by_url(&fields.url).await.map_err(text);
        add(&fields.url, format!("{of_url:?}"));
        let similarity_min = Some(0.5);
        let query = CopiesQuery { id, similarity_min };
        let copies = archive.copies(&query, "", &articles_max(1000)).await;
        add("copies", format!("{:?}", copies.map_err(text)));
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_answers_as_its_writer_does() -> TestResult {
    let pair = Pair::open(Limits::default()).await?;
    assert_eq!(pair.writer.0.role(), Role::Writer);
    assert_eq!(pair.replica.0.role(), Role::Replica);
    assert_eq!(pair.writer.0.staleness(), None);
    let all: Vec<ArticleFields> = (0..60).map(fields).collect();
    pair.check(&all).await?;
    pair.put(all[..40].to_vec()).await?;
    pair.delete(3).await?;
    pair.check(&all).await?;
    // What is in memory by now has to go on from there.
    pair.put(all[40..].to_vec()).await?;
    pair.delete(4).await?;
    pair.delete(50).await?;
    let revised = ArticleFields {
        body: "Mended.\n".into(),
        ..fields(7)
    };
    pair.put([revised]).await?;
    pair.check(&all).await?;
    // One that is opened later reads tables and log from their beginning.
    let late = open_replica(pair.folder.path()).await?;
    assert_eq!(
        answers(&late.0, &all).await,
        answers(&pair.writer.0, &all).await
    );
    late.1.close().await?;
    pair.finish().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_reads_while_its_writer_writes() -> TestResult {
    const ARTICLES: u32 = 600;
    let pair = Pair::open(Limits::default()).await?;
    let replica = pair.replica.0.clone();
    let reading = tokio::spawn(async move {
        let everything = Selector::new(SelectorFields::default(), replica.limits()).unwrap();
        let (mut next, mut sequences) = (1, Vec::new());
        let mut checks = 0;
        while next <= u64::from(ARTICLES) {
            within(replica.committed_to(next)).await.unwrap();
            let budget = articles_max(1000);
            let read = replica.changes(next, &everything, &budget).await.unwrap();
            let changes = read.changes.iter();
            sequences.extend(changes.map(|change| match change {
                pressmark::archive::Change::Stored(stored) => stored.sequence,
                deleted @ pressmark::archive::Change::Deleted { .. } => panic!("{deleted:?}"),
            }));
            next = read.sequence + 1;
            // What was told of is there, with all its rows.
            let (count, as_of) = replica.count(&everything).await.unwrap();
            assert!(count >= read.sequence && as_of >= read.sequence);
            checks += 1;
            if checks % 5 == 0 {
                whole(&replica).await.unwrap();
            }
        }
        sequences
    });
    for first in (0..ARTICLES).step_by(20) {
        pair.put((first..first + 20).map(fields)).await?;
    }
    let sequences = reading.await?;
    assert_eq!(sequences, (1..=u64::from(ARTICLES)).collect::<Vec<_>>());
    pair.finish().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dictionary_that_comes_later_is_used() -> TestResult {
    let pair = Pair::open(limits()).await?;
    let all: Vec<ArticleFields> = (0..120).map(worded).collect();
    pair.put(all[..80].to_vec()).await?;
    within(pair.writer.0.trained()).await?;
    assert_eq!(pair.writer.0.format(), 3);
    pair.put(all[80..].to_vec()).await?;
    pair.check(&all).await?;
    assert_eq!(pair.replica.0.format(), 3);
    pair.finish().await?;
    Ok(())
}

/// Whether there are sketches is the writer's to say, and can change while a replica is open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn near_copies_are_switched_by_the_writer() -> TestResult {
    let Pair {
        folder,
        writer,
        replica,
    } = Pair::open(Limits::default()).await?;
    assert_eq!(replica.0.near_copies(), NearCopies::On);
    writer.1.close().await?;
    let store = store::open(&bucket_in(folder.path()), small_cache()).await?;
    let writer = Archive::open_with(store, Limits::default(), NearCopies::Off).await?;
    let pair = Pair {
        folder,
        writer,
        replica,
    };
    pair.put([fields(1)]).await?;
    pair.check(&[fields(1)]).await?;
    assert_eq!(pair.replica.0.near_copies(), NearCopies::Off);
    pair.finish().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_writes_nothing() -> TestResult {
    let folder = TempDir::new()?;
    let mut options = small_cache();
    options.objects.name = "the writer".into();
    let store = store::open(&bucket_in(folder.path()), options).await?;
    let writer = Archive::open(store, Limits::default()).await?;
    let replicas = [
        open_replica(folder.path()).await?,
        open_replica(folder.path()).await?,
    ];
    for (replica, _) in &replicas {
        let put = replica.put(prepared(&Article::new(fields(1))?)).await;
        let error = check_error(put, Reason::NotTheWriter, &["replica", "the writer"]);
        assert_eq!(error.resource(), Some("the writer"));
        let id = crate::support::article(1).id();
        let deleted = replica.delete(id, "unwanted", time(0)).await;
        check_error(deleted, Reason::NotTheWriter, &["the writer"]);
        let mended = replica.mend(time(0)).await;
        check_error(mended, Reason::NotTheWriter, &["the writer"]);
        check_error(replica.check_writes(), Reason::NotTheWriter, &[]);
    }
    let put = writer.0.put(prepared(&Article::new(fields(1))?)).await?;
    for (replica, _) in &replicas {
        within(replica.committed_to(put.sequence)).await?;
        let requests = replica.stats().await?.store.requests.unwrap();
        assert_eq!(
            (requests.put_count, requests.delete_count),
            (0, 0),
            "{requests:?}"
        );
    }
    // It was not disturbed, and goes when it wants to.
    writer.1.close().await?;
    for (replica, guard) in replicas {
        assert_eq!(replica.writer().await?, None);
        let put = replica.put(prepared(&Article::new(fields(2))?)).await;
        check_error(put, Reason::NotTheWriter, &["another one"]);
        assert!(replica.get(&put_id(1)).await.is_ok(), "reads go on");
        guard.close().await?;
        let late = replica.get(&put_id(1)).await;
        check_error(late, Reason::ShuttingDown, &["closed"]);
    }
    let writer = open_writer(folder.path(), Limits::default()).await?;
    whole(&writer.0).await?;
    Ok(writer.1.close().await?)
}

/// A repair changes rows of which the log tells nothing, or something else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_repair_mends_is_followed() -> TestResult {
    let folder = TempDir::new()?;
    let store = store::open(&bucket_in(folder.path()), small_cache()).await?;
    let pair = Pair {
        writer: Archive::open(Arc::clone(&store), Limits::default()).await?,
        replica: open_replica(folder.path()).await?,
        folder,
    };
    let all: Vec<ArticleFields> = (0..30).map(fields).collect();
    pair.put(all[..20].to_vec()).await?;
    // A row that is gone before the replica reads them all into memory.
    let of_third = crate::support::article(2);
    let facts = IndexFacts::of(&of_third, of_third.id(), NearCopies::On);
    let row = facts.rows(3).into_iter().find(|row| row[0] == TABLE_DATE);
    write_to(&*store, [Change::Remove(row.unwrap())]).await;
    pair.put([fields(20)]).await?;
    let replica = &pair.replica.0;
    within(replica.committed_to(21)).await?;
    let timeline = || TimelineQuery {
        selector: Selector::new(SelectorFields::default(), replica.limits()).unwrap(),
        bucket: Bucket::Year,
        by_source: false,
    };
    let counted = async || {
        let timeline = replica.timeline(&timeline()).await.unwrap();
        let counts = timeline.series[0].counts.iter();
        counts.map(|(_, count)| count).sum::<u64>()
    };
    assert_eq!(counted().await, 20);
    // The figures are the same, and so is the last sequence.
    let counts = pair.writer.0.mend(time(5)).await?;
    assert_eq!((counts.added_count, counts.quarantined_count), (1, 0));
    pair.put([fields(21)]).await?;
    pair.check(&all[..22]).await?;
    assert_eq!(counted().await, 22);
    // One that is set aside while others come.
    write_to(&*store, [Change::Put(key::log(6), b"damage".into())]).await;
    let counts = pair.writer.0.mend(time(5)).await?;
    assert_eq!(counts.quarantined_count, 1);
    pair.put(all[22..].to_vec()).await?;
    pair.check(&all).await?;
    assert_eq!(counted().await, 29);
    // And healed.
    pair.put([fields(5)]).await?;
    pair.check(&all).await?;
    assert_eq!(counted().await, 30);
    pair.finish().await?;
    Ok(())
}

fn put_id(n: u32) -> pressmark::article::ContentHash {
    crate::support::article(n).id()
}

#[tokio::test]
async fn only_an_archive_in_object_storage_is_followed() -> TestResult {
    let folder = TempDir::new()?;
    for locator in [Locator::Memory, Locator::Folder(folder.path().into())] {
        let opened = store::open_replica(&locator, &small_cache()).await;
        let name = locator.to_string();
        let error = check_error(opened.map(drop), Reason::ArgumentInvalid, &[&name]);
        assert_eq!(error.field_name(), Some("replica"));
    }
    let place = bucket_in(folder.path());
    let opened = store::open_replica(&place, &small_cache()).await;
    let parts = ["no archive is at", "start the server that writes it first"];
    check_error(opened.map(drop), Reason::FileFailed, &parts);
    // A database that is no archive yet.
    let writer = store::open(&place, small_cache()).await?;
    writer
        .write(batch(&[("a", Some("1"))]), Durability::Synced)
        .await?;
    let opened = open_replica(folder.path()).await;
    check_error(opened.map(drop), Reason::FileFailed, &["not begun yet"]);
    let memory = Archive::open_replica(
        Arc::new(pressmark::store::MemoryStore::new()),
        Limits::default(),
    );
    check_error(memory.await.map(drop), Reason::Internal, &[]);
    writer.close().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_replica_cannot_read_is_not_followed() -> TestResult {
    let folder = TempDir::new()?;
    let place = bucket_in(folder.path());
    let writer = open_writer(folder.path(), Limits::default()).await?;
    writer.1.close().await?;
    let row = async |key: Vec<u8>, value: Option<Vec<u8>>| -> TestResult {
        let store = store::open(&place, small_cache()).await?;
        let mut batch = Batch::new();
        match value {
            Some(value) => batch.put(key, value),
            None => batch.remove(key),
        }
        store.write(batch, Durability::Synced).await?;
        Ok(store.close().await?)
    };
    row(meta::restoring(), Some(7_u64.to_be_bytes().into())).await?;
    let opened = open_replica(folder.path()).await.map(drop);
    check_error(opened, Reason::RestoreUnfinished, &["sequence 7"]);
    row(meta::restoring(), None).await?;
    let (replica, guard) = open_replica(folder.path()).await?;
    row(meta::format(), Some(vec![99])).await?;
    let late = open_replica(folder.path()).await.map(drop);
    check_error(late, Reason::FormatUnsupported, &["99"]);
    // The one that is open gets older and older, until the archive is as it was.
    let least = Duration::from_millis(300);
    while replica.staleness().unwrap() < least {
        tokio::task::yield_now().await;
    }
    row(meta::format(), Some(vec![2])).await?;
    within(async {
        while replica.staleness().unwrap() >= least {
            tokio::task::yield_now().await;
        }
    })
    .await;
    Ok(guard.close().await?)
}

/// A reader that follows a store sees a batch whole, and rows of the writer alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_are_not_durable_are_not_seen() -> TestResult {
    let folder = TempDir::new()?;
    let mut options = small_cache();
    options.objects.flush_interval = Duration::from_secs(3600);
    let writer = store::open(&bucket_in(folder.path()), options).await?;
    let replica = store::open_replica(&bucket_in(folder.path()), &small_cache()).await?;
    let rows = batch(&[("a", Some("1"))]);
    writer.write(rows, Durability::Buffered).await?;
    assert_eq!(get(&*writer, "a").await?.as_deref(), Some("1"));
    let mut looks = replica.looks().unwrap();
    let begun = std::time::Instant::now();
    while looks.borrow_and_update().complete_to <= begun {
        within(looks.changed()).await?;
    }
    assert_eq!(get(&*replica, "a").await?, None);
    writer.close().await?;
    let closed = std::time::Instant::now();
    while looks.borrow_and_update().complete_to <= closed {
        within(looks.changed()).await?;
    }
    assert_eq!(get(&*replica, "a").await?.as_deref(), Some("1"));
    let late = replica.write(batch(&[]), Durability::Synced).await;
    check_error(late, Reason::NotTheWriter, &["only read"]);
    Ok(replica.close().await?)
}

/// A replica that finds one article each time that it looks, for long enough to be renewed some times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_looked_often_is_as_fast_as_a_new_one() -> TestResult {
    const ARTICLES: u32 = 450;
    const READ: u32 = 100;
    let pair = Pair::open(Limits::default()).await?;
    let replica = pair.replica.0.clone();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    // What was told of stays there while readers come and go.
    let reading = tokio::spawn(async move {
        let mut reads = 0;
        while !*stopped.borrow() {
            let last = u32::try_from(replica.committed()).unwrap();
            for n in (0..last).rev().step_by(40) {
                replica.get(&put_id(n)).await.unwrap();
                reads += 1;
            }
            tokio::task::yield_now().await;
        }
        reads
    });
    for n in 0..ARTICLES {
        pair.put([fields(n)]).await?;
        within(pair.replica.0.committed_to(pair.writer.0.committed())).await?;
    }
    stop.send_replace(true);
    println!("{} reads meanwhile", within(reading).await?);
    let late = open_replica(pair.folder.path()).await?;
    let time = async |archive: &Archive| {
        let mut fastest = Duration::MAX;
        for _ in 0..5 {
            let started = std::time::Instant::now();
            for n in 0..READ {
                archive.get(&put_id(n)).await.unwrap();
            }
            fastest = fastest.min(started.elapsed() / READ);
        }
        fastest
    };
    let (old, new) = (time(&pair.replica.0).await, time(&late.0).await);
    println!("a read takes {old:?}, and {new:?} from a replica that was just opened");
    assert!(old < new * 10, "{old:?} is far more than {new:?}");
    late.1.close().await?;
    pair.check(&[fields(0), fields(ARTICLES - 1)]).await?;
    pair.finish().await?;
    Ok(())
}
